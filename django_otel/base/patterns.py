"""Regular expressions that are compiled when they are first used.

Those of redaction and of SQL take tens of milliseconds together, at every start
of every process, and a management command needs none of them.
"""

from __future__ import annotations

import re
import sys
from typing import Any, cast

#: Before Python 3.11.5, Debian 12's among them, a repeated group that gives nothing back, such as `(?:ab?c)*+`, matches
#: more than it should; `(?>(?:ab?c)*)`, which means the same, does not. Source: CPython issue 106052.
_REPEATS_TOO_MUCH = sys.version_info < (3, 11, 5)
_QUANTIFIER = re.compile(r"[*+?]|\{\d*,?\d*\}")
#: Parts of a pattern in which a bracket is none, and brackets.
_PARTS = re.compile(r"\\.|\[\^?\]?(?:[^\]\\]|\\.)*\]|[()]|[^\\\[()]+", re.DOTALL)


class _LazyPattern:
    """Stands for a compiled pattern; after its first use its methods are the pattern's own."""

    def __init__(self, text: str, flags: int) -> None:
        self._arguments = (text, flags)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        compiled = compile_pattern(*self._arguments)
        for known in (
            "search",
            "match",
            "fullmatch",
            "sub",
            "subn",
            "split",
            "findall",
            "finditer",
            "pattern",
            "flags",
        ):
            # Two threads do the same.
            self.__dict__[known] = getattr(compiled, known)
        return getattr(compiled, name)


def compile_pattern(text: str, flags: int = 0) -> re.Pattern[str]:
    """`re.compile(text, flags)`, right on every Python. Errors: `re.error`."""
    return re.compile(write_atomic(text) if _REPEATS_TOO_MUCH else text, flags)


def write_atomic(text: str) -> str:
    """Return a pattern with each `(...)*+` written as `(?>(...)*)`. Brackets in its comments count as its own."""
    written: list[str] = []
    begins: list[int] = []
    at = 0
    while at < len(text):
        part = _PARTS.match(text, at)
        assert part is not None, text
        at = part.end()
        written.append(part[0])
        if part[0] == "(":
            begins.append(len(written) - 1)
        elif part[0] == ")":
            begin = begins.pop()
            quantifier = _QUANTIFIER.match(text, at)
            if quantifier is not None and text.startswith("+", quantifier.end()):
                written[begin] = f"(?>{written[begin]}"
                written.append(f"{quantifier[0]})")
                at = quantifier.end() + 1
    return "".join(written)


def lazy_pattern(text: str, flags: int = 0) -> re.Pattern[str]:
    """`re.compile(text, flags)`, later. Errors: `re.error` at the first use."""
    return cast("re.Pattern[str]", _LazyPattern(text, flags))
