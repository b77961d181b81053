"""Keeps the store within its bounds: which traces go, which stay longest, which are pinned."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from django_otel.tracestore import records
from django_otel.tracestore.file import PAGE_BYTES, used_bytes
from django_otel.tracestore.rows import delete_in

#: An error or a slow trace outlives this many times MAX_TRACES newer ones, then it is old news.
PROTECTED_GENERATIONS = 10
#: Pinned traces may be this share of MAX_TRACES, and of the bytes: one part of so many.
_PINNED_PART = 4
#: From so many on, one part of so many is left free by an eviction.
_MANY_TRACES = 1000
_SPARE_PART = 50
_TABLES = ("trace", "chunk", "event", "statement", "object")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Most traces, and most bytes of the file. Methods run inside the caller's transaction."""

    max_traces: int
    file_bytes: int

    @property
    def max_pinned(self) -> int:
        """Most pinned traces."""
        return max(1, self.max_traces // _PINNED_PART)

    def keep(self, connection: sqlite3.Connection) -> None:
        """Evict traces above the bounds."""
        (total,) = connection.execute("SELECT count(*) FROM trace").fetchone()
        if total > self.max_traces:
            # Of many some more than needed: to choose looks at all of them, and would else do so for each batch.
            spare = self.max_traces // _SPARE_PART if self.max_traces >= _MANY_TRACES else 0
            total -= self.evict(connection, total, total - self.max_traces + spare)
        # A tenth is left free for the next batch.
        allowed = self.file_bytes - self.file_bytes // 10
        while total > 1 and used_bytes(connection) > allowed:
            evicted = self.evict(connection, total, max(1, total // 20))
            if not evicted:
                break
            total -= evicted

    def make_room(self, connection: sqlite3.Connection) -> None:
        """Evict a fifth, because the file is full in the middle of a batch."""
        (total,) = connection.execute("SELECT count(*) FROM trace").fetchone()
        self.evict(connection, total, max(1, total // 5))
        records.make_room(connection)

    def evict(self, connection: sqlite3.Connection, total: int, count: int) -> int:
        """Forget `count` of `total` traces: the oldest ordinary ones, as long as half of MAX_TRACES are ordinary.

        Pinned traces stay. Returns how many went.
        """
        kept = min(self.max_traces, total)
        slow = connection.execute(
            "SELECT duration_ns FROM trace ORDER BY duration_ns DESC LIMIT 1 OFFSET ?", (max(1, kept // 10),)
        ).fetchone()
        (newest,) = connection.execute("SELECT max(seq) FROM trace").fetchone()
        ordinary = "NOT ((errors > 0 OR status >= 500 OR duration_ns > ?) AND seq > ?)"
        # Not all traces of equal duration are protected.
        bounds = (slow[0] if slow is not None else 0, (newest or 0) - PROTECTED_GENERATIONS * self.max_traces)
        (ordinaries,) = connection.execute(
            f"SELECT count(*) FROM trace WHERE NOT is_pinned AND {ordinary}",
            bounds,
        ).fetchone()
        take = min(count, max(0, ordinaries - (kept - count) // 2))
        victims = _oldest(connection, ordinary, bounds, take)
        if len(victims) < count:
            victims += _oldest(connection, f"NOT ({ordinary})", bounds, count - len(victims))
        if len(victims) < count:
            # Few are neither pinned nor chosen already.
            known = {seq for (seq,) in victims}
            victims += [row for row in _oldest(connection, "1", (), count) if row[0] not in known]
            del victims[count:]
        numbers = [seq for (seq,) in victims]
        for table in _TABLES:
            delete_in(connection, table, "seq", numbers)
        records.forget_statements(connection)
        return len(victims)

    def shrink(self, connection: sqlite3.Connection) -> None:
        """Give pages back when the bound was lowered in the settings; otherwise they are used again."""
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        if pages * PAGE_BYTES > self.file_bytes:
            # A page is given back by each step of the statement; execute() takes only one.
            connection.executescript("PRAGMA incremental_vacuum(2000)")

    def pin(self, connection: sqlite3.Connection, trace_id: str) -> bool:
        """Pin a trace; whether there was room for one more pinned trace."""
        count, size_bytes = connection.execute(
            "SELECT count(*), coalesce(sum(bytes), 0) FROM trace WHERE is_pinned AND trace_id != ?", (trace_id,)
        ).fetchone()
        row = connection.execute("SELECT bytes FROM trace WHERE trace_id = ?", (trace_id,)).fetchone()
        if count >= self.max_pinned or (row is not None and size_bytes + row[0] > self.file_bytes // _PINNED_PART):
            return False
        connection.execute("UPDATE trace SET is_pinned = 1 WHERE trace_id = ?", (trace_id,))
        return True


def _oldest(connection: sqlite3.Connection, condition: str, values: tuple[int, ...], count: int) -> list[tuple[int]]:
    return connection.execute(
        f"SELECT seq FROM trace WHERE NOT is_pinned AND {condition} ORDER BY seq LIMIT ?",
        (*values, count),
    ).fetchall()
