"""Statements over many rows at once: a single statement costs as much as several rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

#: Values of one statement. Source: SQLite, "Limits": 999 before version 3.32.
_MOST_VALUES = 900


def select_in(connection: sqlite3.Connection, select: str, keys: Sequence[object]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a `select`, which ends with the name of a column, for those whose column is one of `keys`."""
    for part, marks in _by_marks(keys):
        yield from connection.execute(f"{select} IN ({marks})", part)


def delete_in(connection: sqlite3.Connection, table: str, column: str, keys: Sequence[object]) -> None:
    """Delete the rows of a table whose column is one of `keys`."""
    for part, marks in _by_marks(keys):
        connection.execute(f"DELETE FROM {table} WHERE {column} IN ({marks})", part)


def _by_marks(keys: Sequence[object]) -> Iterator[tuple[Sequence[object], str]]:
    for begin in range(0, len(keys), _MOST_VALUES):
        part = keys[begin : begin + _MOST_VALUES]
        yield part, ", ".join("?" * len(part))
