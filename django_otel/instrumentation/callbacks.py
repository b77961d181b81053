"""Database connections of callbacks that are asked for a metric's value, in whichever thread reads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connections

from django_otel.base import guard


@contextmanager
def own_connections() -> Iterator[None]:
    """Close what the callbacks open, and drop connections that were lost, before and after a round.

    A background thread sees no end of a request: its connection would stay open
    for ever, hold the only place of a pool, and fail for ever once it was lost.
    """
    open_before: set[str] = set()
    with guard.contained("looking at database connections before a round of callbacks"):
        for connection in connections.all(initialized_only=True):
            connection.close_if_unusable_or_obsolete()
            if connection.connection is not None:
                open_before.add(connection.alias)
    try:
        yield
    finally:
        with guard.contained("closing database connections after a round of callbacks"):
            for connection in connections.all(initialized_only=True):
                if connection.alias in open_before:
                    connection.close_if_unusable_or_obsolete()
                elif not connection.in_atomic_block:
                    connection.close()
