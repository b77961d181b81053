"""Regular expressions that are compiled when they are first used.

Those of redaction and of SQL take tens of milliseconds together, at every start
of every process, and a management command needs none of them.
"""

from __future__ import annotations

import re
from typing import Any, cast


class _LazyPattern:
    """Stands for a compiled pattern; after its first use its methods are the pattern's own."""

    def __init__(self, text: str, flags: int) -> None:
        self._arguments = (text, flags)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        compiled = re.compile(*self._arguments)
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


def lazy_pattern(text: str, flags: int = 0) -> re.Pattern[str]:
    """`re.compile(text, flags)`, later. Errors: `re.error` at the first use."""
    return cast("re.Pattern[str]", _LazyPattern(text, flags))
