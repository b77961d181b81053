"""Read the corpus of redaction: texts with secrets in them, and texts without any.

A line is `key | text`; "-" stands for a text under no key. `{form}` in a text of
`secrets*.txt` is replaced by a secret of that form, drawn by `fakes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.redaction.fakes import Fakes

FOLDER = Path(__file__).parent
_PART = re.compile(r"\{\{|\}\}|\{(\w+)\}")


class Entry(NamedTuple):
    """One text of the corpus; `secrets` are the parts that may not leave."""

    section: str
    key: str
    text: str
    secrets: tuple[str, ...] = ()


def _lines(name: str) -> Iterator[tuple[str, str, str]]:
    section = ""
    for line in (FOLDER / name).read_text("utf-8").splitlines():
        if not line or line.startswith("# "):
            continue
        if line.startswith("[") and line.endswith("]") and " | " not in line:
            section = line[1:-1]
            continue
        key, _, text = line.partition(" | ")
        text = (
            text.replace("\\\\", "\0")
            .replace("\\n", "\n")
            .replace("\\t", "\t")
            .replace("\\e", "\x1b")
            .replace("\0", "\\")
        )
        yield section, key if key != "-" else "", text


def read_secrets(name: str, fakes: Fakes) -> list[Entry]:
    """Return the entries of a file with fakes drawn for every form in it."""
    entries = []
    for section, key, text in _lines(name):
        found: list[str] = []

        def fill(match: re.Match[str], found: list[str] = found) -> str:
            if match.group(1) is None:
                return match.group()[0]
            found.append(fakes.draw(match.group(1)))
            return found[-1]

        filled = _PART.sub(fill, text)
        entries.append(Entry(section, key, filled, tuple(found)))
    return entries


def read_harmless(name: str) -> list[Entry]:
    """Return the entries of a file that have to stay as they are."""
    return [Entry(section, key, text) for section, key, text in _lines(name)]
