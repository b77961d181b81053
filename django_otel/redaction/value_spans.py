"""Where the value behind a name ends: quoted, escaped, in brackets, a run of characters, or a whole line."""

from __future__ import annotations

import re

from django_otel.base.patterns import lazy_pattern

_QUOTE = lazy_pattern(r"""(?:[bBuUrRfF]{0,2})(["'`])""")
_ESCAPED_QUOTE = lazy_pattern(r"""[bBuUrRfF]{0,2}(\\{1,8}+)(["'])""")
#: What follows a quoted value; behind a separator a blank or the next name.
_VALUE_ENDS = r"""\s|[)\]}](?!\w)|[,;:](?:[\s"']|\Z)|\Z"""
_QUOTED_REST = {
    # A quote behind an escaped backslash closes only where a value can end: in the repr of JSON it is in the value.
    '"': lazy_pattern(rf'(?:[^"\\]|\\.|""|(?<=\\)"(?!{_VALUE_ENDS}))*+"', re.DOTALL),
    "'": lazy_pattern(rf"(?:[^'\\]|\\.|''|(?<=\\)'(?!{_VALUE_ENDS}))*+'", re.DOTALL),
    "`": lazy_pattern(r"[^`]*+`"),
}
_RUN = lazy_pattern(
    r"""(?:[^\s&"'\\]|\\.|&(?!(?:amp;)?[\w.%\-\[\]]{1,64}=)|["'](?![\s,;:)\]}>]|\Z))++""",
    re.DOTALL,
)
_RUN_GOES_ON = lazy_pattern(r"""[.!`]*+[^\s,;:)\]}>&"'|/\\.!`]""")
_ESCAPED_CLOSING = {quote: lazy_pattern(rf"\\*+{quote}") for quote in "\"'"}
_BRACKET_TOKEN = lazy_pattern(r"""[\[({\])}"']""")
_STRINGS = {
    '"': lazy_pattern(r'"(?:[^"\\]|\\.)*+"', re.DOTALL),
    "'": lazy_pattern(r"'(?:[^'\\]|\\.)*+'", re.DOTALL),
}
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
#: A text that goes on behind a closed bracket without a blank: the structure did not end there.
_BRACKET_GOES_ON = lazy_pattern(r""":++[^\s,;:)\]}>&"'|]""")
_YAML_MARK = lazy_pattern(r"(?:(?:!!?|&)[A-Za-z_]\w{0,30}+|[>|][+\-]?|string\([0-9]{1,6}\))\s{1,40}+(?=[^\s])")
#: Of JSON without blanks: {"mfa":true,"user":7}
_JSON_LITERAL = lazy_pattern(
    r"(?:true|false|null|-?[0-9]{1,20}(?:\.[0-9]{1,20})?)(?=,\s{0,8}\\{0,8}[\"']|\s{0,8}[}\]])"
)
_CLOSERS = ")]},;.!\"'`>"
_SCHEME_WORD = lazy_pattern(
    r"(?i)(?:bearer|basic|token|digest|negotiate|apikey|aws4-hmac-sha256|key|ntlm|hawk|oauth|dpop|jwt|ssws|signature|sharedkey|kerberos"
    r"|geniekey|gnap|hmac(?:-sha[0-9]{1,3})?|scram-sha-[0-9]{1,3}|mutual|hoba|vapid|aws)\Z"
)
_CREDENTIAL = lazy_pattern(r"\S{0,3}+(?<=\w)|\S{0,3}\w")
#: The parameters of such a scheme: id="x", mac="y"
_PARAMETERS = lazy_pattern(
    r"[\w\-]{1,40}=(?:\"[^\"\n]{0,400}\"|[^\s,\"]{1,400})(?:,\s{0,4}[\w\-]{1,40}=(?:\"[^\"\n]{0,400}\"|[^\s,\"]{1,400}))*+"
)


def bracket_end(text: str, pos: int, stop: int | None = None) -> int:
    """Return where the bracket that opens at `pos` closes; the end of the text, or `stop`, when it does not.

    A closing bracket of another kind than the last open one closes nothing: it is a part of the value.
    """
    awaited: list[str] = []
    stop = len(text) if stop is None else stop
    unclosed = ""
    while (token := _BRACKET_TOKEN.search(text, pos, stop)) is not None:
        character, pos = token.group(), token.end()
        if character in _STRINGS:
            # Where one string does not end, no later one with its quotes does.
            string = None if character in unclosed else _STRINGS[character].match(text, pos - 1, stop)
            if string is None:
                unclosed += character
            else:
                pos = string.end()
        elif character in _BRACKETS:
            awaited.append(_BRACKETS[character])
        elif character == awaited[-1]:
            awaited.pop()
            if not awaited:
                return pos
    return stop


def line_end(text: str, pos: int) -> int:
    end = text.find("\n", pos)
    return len(text) if end < 0 else end


def run_end(text: str, pos: int) -> int:
    run = _RUN.match(text, pos)
    if run is None:
        return pos
    end = run.end()
    while end > pos and text[end - 1] in _CLOSERS:
        end -= 1
    return end if end > pos else run.end()


def _escaped_end(text: str, pos: int, escapes: int, quote: str) -> int:
    """Return the end of the string that `escapes` backslashes and a quote open; the end of the text if nowhere.

    JSON in JSON doubles backslashes and adds one before a quote, repr only
    doubles: an opening has (2**depth - 1) * 2**reprs of them. A quote in the
    value, or one after a backslash in the value, has other numbers.
    """
    reprs = 0
    while escapes % 2 == 0:
        escapes //= 2
        reprs += 1
    for match in _ESCAPED_CLOSING[quote].finditer(text, pos):
        count = (match.end() - match.start() - 1) >> reprs
        if count % (2 * (escapes + 1)) == escapes:
            return match.end() - 1 - (escapes << reprs)
    return len(text)


def value_span(text: str, pos: int, whole_line: bool, closed_key: bool, *, is_marked: bool = False) -> tuple[int, int]:
    """Return where the value that begins at `pos` begins and ends, without the quotes around it.

    `closed_key`: the key had a quote or bracket around it, so that a quote
    before the value is one around it, also where a value takes its whole line.
    """
    if whole_line and not closed_key:
        return pos, line_end(text, pos)
    quote = _QUOTE.match(text, pos)
    if quote is not None:
        start = quote.end()
        rest = _QUOTED_REST[quote.group(1)].match(text, start)
        if rest is None:
            return start, len(text)
        end = rest.end()
        if quote.group(1) == "`" and end == start + 1:
            # Two backquotes quote nothing: they are a part of the value, or begin a block of three.
            return pos, _backquoted_end(text, end)
        # 'a'b: what follows belongs to it, and what is left must not look like an open quote.
        return (pos, run_end(text, end)) if _RUN_GOES_ON.match(text, end) else (start, end - 1)
    escaped = _ESCAPED_QUOTE.match(text, pos)
    if escaped is not None:
        start = escaped.end()
        end = _escaped_end(text, start, len(escaped.group(1)), escaped.group(2))
        if end == start and _RUN_GOES_ON.match(text, after := start + len(escaped.group(1)) + 1):
            # An empty string with the value behind it.
            return pos, run_end(text, after)
        return start, end
    if whole_line:
        return pos, line_end(text, pos)
    if text[pos : pos + 1] in ("[", "(", "{"):
        end = bracket_end(text, pos)
        goes_on = _RUN_GOES_ON.match(text, end) or _BRACKET_GOES_ON.match(text, end)
        return pos, (run_end(text, end) if goes_on else end)
    if closed_key and (literal := _JSON_LITERAL.match(text, pos)) is not None:
        return literal.span()
    return pos, _bare_end(text, pos, closed_key=closed_key, is_marked=is_marked)


def _bare_end(text: str, pos: int, *, closed_key: bool, is_marked: bool) -> int:
    """Return where a value without quotes and brackets ends."""
    end = run_end(text, pos)
    mark = None if is_marked else _YAML_MARK.match(text, pos)
    if mark is not None and mark.end() >= end:
        # "password: !vault x", "password: &anchor x", a block of lines.
        return value_span(text, mark.end(), False, closed_key, is_marked=True)[1]
    if text[end - 1 : end] == ":" and text[end : end + 1] in (" ", "\t"):
        # "credentials: password: x"  # noqa: ERA001 (prose)
        end = max(end, run_end(text, skip_blanks(text, end)))
    if _SCHEME_WORD.match(text[pos:end][:20]) and text[end : end + 1] in (" ", "\t"):
        after = skip_blanks(text, end)
        if not _CREDENTIAL.match(text, after):
            # token=token %}
            return end
        parameters = _PARAMETERS.match(text, after)
        end = max(end, run_end(text, after) if parameters is None else parameters.end())
    return end


def _backquoted_end(text: str, pos: int) -> int:
    """Return where a value that begins with two backquotes, which end at `pos`, ends."""
    if text.startswith("`", pos):
        closing = text.find("```", pos + 1)
        return len(text) if closing < 0 else closing + 3
    return run_end(text, skip_blanks(text, pos))


def skip_blanks(text: str, pos: int) -> int:
    while text[pos : pos + 1] in (" ", "\t"):
        pos += 1
    return pos
