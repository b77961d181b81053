"""Database connections of callbacks that return a metric's value, in any reading thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connections

from django_otel.base import guard


@contextmanager
def own_connections() -> Iterator[None]:
    """Close the connections that callbacks open, and those that they find lost.

    A background thread sees no end of a request: its connection would stay open
    indefinitely, hold the only connection of a pool, and keep failing once it was lost.
    A connection that a request has open already is left to it.
    """
    open_before: dict[str, bool] = {}
    with guard.contained("looking at database connections before a round of callbacks"):
        open_before = {
            found.alias: found.errors_occurred
            for found in connections.all(initialized_only=True)
            if found.connection is not None
        }
    try:
        yield
    finally:
        with guard.contained("closing database connections after a round of callbacks"):
            for found in connections.all(initialized_only=True):
                if found.connection is None or found.in_atomic_block:
                    continue
                if found.alias not in open_before:
                    found.close()
                elif found.errors_occurred and not open_before[found.alias]:
                    found.close_if_unusable_or_obsolete()
