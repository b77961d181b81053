"""Secrets whose name stands in a row above them: INSERT statements, and tables with a heading."""

from __future__ import annotations

import re
from collections.abc import Sequence

from django_otel.base.patterns import lazy_pattern
from django_otel.redaction.bare_pairs import Judge
from django_otel.redaction.keys import LABEL, PLAIN, REDACTED, is_harmless

_INSERT = lazy_pattern(
    r"(?i)\b(?:insert|replace)\s+(?:(?:or\s+\w{1,10}|ignore|low_priority|delayed)\s+)?into\s+[^\s(]{1,200}\s*"
    r"\((?P<columns>[^()]{1,4000})\)\s*(?:overriding\s+\w{1,10}\s+value\s+)?values\s*(?=\()"
)
#: SELECT 'x' AS api_key
_ALIASED = lazy_pattern(r"(?i)'([^'\n]{1,400}+)'[ ]as[ ][\"`\[]?([A-Za-z_]\w{0,60})")
#: One value of a row with the comma or bracket behind it; a call is one value.
_ITEM = lazy_pattern(
    r"\s*+(?P<value>(?:[NnEeXxBb]?'(?:[^'\\]|''|\\.)*+'?|\"(?:[^\"\\]|\"\"|\\.)*+\"?|\((?:[^()]|\([^()]*+\))*+\)?|[^\s,()'\"]++|\s++(?![,)]))*+)"
    r"\s*+(?P<end>[,)]|\Z)",
    re.DOTALL,
)
_NEXT_ROW = lazy_pattern(r"\s*+,\s*+\(")
#: A literal within a value.
_LITERAL = lazy_pattern(r"[NnEeXxBb]?'(?P<text>(?:[^'\\]|''|\\.)*+)'?|\"(?P<other>(?:[^\"\\]|\"\"|\\.)*+)\"?")
_NUMBER = lazy_pattern(r"[0-9A-Za-z.+\-]++\Z")
_WORD = lazy_pattern(r"(?:null|default|true|false|current_timestamp|now)\Z", re.IGNORECASE)

_HEADING_CELL = lazy_pattern(r"[\"'`*]{0,2}[A-Za-z][\w.\- ]{0,40}[\"'`*]{0,2}\Z")
_RULE = lazy_pattern(r"[\s|+:=\-]+\Z")
_SEPARATORS = ("|", "\t", ";", ",")
#: Lines below a heading that are read.
_MOST_LINES = 1000


def redact_rows(text: str, lowered: str, judge: Judge) -> str:
    """Return `text` without the secrets in columns named like one. `lowered` is `text` in lower case."""
    if "' as " in lowered:
        text = _ALIASED.sub(lambda found: _redact_aliased(found, judge), text)
    if "into" in lowered and "values" in lowered:
        text = _redact_inserts(text, judge)
    if "\n" in text:
        text = _redact_tables(text, judge)
    return text


def _redact_aliased(match: re.Match[str], judge: Judge) -> str:
    value, alias = match.groups()
    verdict = judge(alias, True, False)
    if verdict == PLAIN or is_harmless(value, alias, verdict):
        return match.group()
    return f"'{REDACTED}'{match.group()[len(value) + 2 :]}"


def _columns(names: Sequence[str], judge: Judge) -> dict[int, tuple[str, int]]:
    """Return the key and the verdict of each column that holds secrets, by its index."""
    found = {}
    for index, name in enumerate(names):
        key = name.strip().strip("\"'`[]*").strip()
        verdict = judge(key, True, False) if key else PLAIN
        if verdict not in (PLAIN, LABEL):
            found[index] = (key, verdict)
    return found


def _redact_inserts(text: str, judge: Judge) -> str:
    out: list[str] = []
    done = read = 0
    for insert in _INSERT.finditer(text):
        if insert.start() < read:
            # Within the values of another one.
            continue
        columns = _columns(insert.group("columns").split(","), judge)
        pos = insert.end() + 1
        index = 0
        while columns and (item := _ITEM.match(text, pos)) is not None:
            if index in columns:
                for start, end in _literals(item, *columns[index]):
                    out += (text[done:start], REDACTED)
                    done = end
            pos, index = item.end(), index + 1
            read = pos
            if item.group("end") == ")":
                row = _NEXT_ROW.match(text, pos)
                if row is None:
                    break
                pos, index = row.end(), 0
            elif not item.group("end"):
                break
    out.append(text[done:])
    return "".join(out) if done else text


def _literals(item: re.Match[str], key: str, verdict: int) -> list[tuple[int, int]]:
    """Return where the literals of a value stand, without their quotes."""
    value, offset = item.group("value"), item.start("value")
    spans = [found.span("text" if found.group("text") is not None else "other") for found in _LITERAL.finditer(value)]
    if not spans and _NUMBER.match(value) and not _WORD.match(value) and value[0].isdigit():
        spans = [(0, len(value))]
    return [
        (start + offset, end + offset)
        for start, end in spans
        if end > start and not is_harmless(value[start:end], key, verdict)
    ]


def _redact_tables(text: str, judge: Judge) -> str:
    lines = text.split("\n")
    is_changed = False
    columns: dict[int, tuple[str, int]] = {}
    separator, count, left = "", 0, 0
    for number, line in enumerate(lines):
        if columns and left > 0:
            left -= 1
            cells = line.split(separator)
            if len(cells) == count:
                for index, (key, verdict) in columns.items():
                    cell = cells[index].strip().strip("\"'`")
                    if cell and cell != REDACTED and not is_harmless(cell, key, verdict):
                        cells[index] = cells[index].replace(cell, REDACTED, 1)
                        is_changed = True
                lines[number] = separator.join(cells)
                continue
            if _RULE.match(line):
                continue
        columns = {}
        if number + 1 == len(lines) or len(line) > 1000:
            continue
        for separator in _SEPARATORS:
            if separator not in line:
                continue
            cells = line.split(separator)
            if _is_heading(cells, separator) and (columns := _columns(cells, judge)):
                count, left = len(cells), _MOST_LINES
            break
    return "\n".join(lines) if is_changed else text


def _is_heading(cells: Sequence[str], separator: str) -> bool:
    """Return whether every cell of a line is a name."""
    least = 2
    if separator == "|" and len(cells) > 2:
        least -= not cells[0].strip() and not cells[-1].strip()
        cells = cells[not cells[0].strip() : len(cells) - (not cells[-1].strip())]
    if separator in ",;" and any(cell != cell.strip() for cell in cells):
        # A sentence.
        return False
    return len(cells) >= least and all(_HEADING_CELL.match(cell.strip()) is not None for cell in cells)
