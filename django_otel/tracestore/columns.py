"""Reads values from the store's file, where any column may contain any type.

SQLite keeps any value in any column: a damaged file, or another tool's hand, must not break a page.
"""

from __future__ import annotations

import math
import zlib

#: Errors of reading a damaged or foreign part.
DAMAGED = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, zlib.error)


#: SQLite's integers end there.
_MOST = 2**63 - 1


def to_storable(value: int) -> int:
    """Return a whole number as SQLite can compare it: the nearest that it has."""
    return max(-_MOST, min(_MOST, value))


def to_text(value: object) -> str:
    """Return a value as text; nothing as ""."""
    if isinstance(value, str):
        return value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)


def to_integer(value: object) -> int:
    """Return a value as a whole number; 0 for anything else."""
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, float) and math.isfinite(value) else 0


def to_number(value: object) -> float:
    """Return a value as a finite number; 0 for anything else."""
    return value if isinstance(value, int | float) and math.isfinite(value) else 0.0
