"""Writes batches into the trace store and keeps its bounds."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from django_otel.base.private_files import Unusable
from django_otel.config.schema import Config
from django_otel.tracestore import records
from django_otel.tracestore.bounds import Bounds
from django_otel.tracestore.columns import to_storable
from django_otel.tracestore.file import PAGE_BYTES, StoreFile, find_file, is_corrupt, transaction, used_bytes
from django_otel.tracestore.issues import StoredErrors, note_release, write_errors
from django_otel.tracestore.items import Stored, StoredLog, StoredProcess, StoredSample, StoredSpans
from django_otel.tracestore.numbers import write_sample
from django_otel.tracestore.packing import compress, pack, wrap
from django_otel.tracestore.rows import select_in

#: A batch is committed in parts of about this size, uncompressed, so that the log beside the file stays short.
_COMMIT_BYTES = 8 << 20
_LARGEST_LOG_BYTES = 8 << 20
#: As long as the file takes less than one part of so many of its bound, small traces are not compressed: that costs
#: as much as all the rest of storing them.
_ROOMY_PART = 2
_SMALL_BYTES = 16 << 10
#: A process that was not seen for so long is forgotten, in seconds.
PROCESS_FORGOTTEN_S = 3600.0

OnDrop = Callable[[int, str], None]


@dataclass(slots=True)
class _Summary:
    """A row of the table of traces."""

    seq: int = 0
    start_ns: int = 0
    end_ns: int = 0
    duration_ns: int = 0
    root_rank: int = -1
    root_start_ns: int = 0
    name: str = ""
    method: str = ""
    route: str = ""
    status: int = 0
    service: str = ""
    services: str = ""
    spans: int = 0
    queries: int = 0
    errors: int = 0
    logs: int = 0
    bytes: int = 0
    dropped: int = 0
    spans_dropped: int = 0
    release: str = ""
    user: str = ""

    def add(self, part: StoredSpans) -> None:
        self._stretch(part.start_ns, part.end_ns)
        self.spans += part.spans
        self.queries += part.queries
        self.errors += part.errors
        self.spans_dropped += part.spans_dropped
        for service in sorted(part.services):
            self._add_service(service)
        earlier = part.rank == self.root_rank and part.root_start_ns < self.root_start_ns
        if part.rank > self.root_rank or earlier:
            self.root_rank, self.root_start_ns = part.rank, part.root_start_ns
            self.name, self.method, self.route = part.name, part.method, part.route
            self.status, self.service = part.status, part.service
            self.release, self.user = part.release, part.user
            self.duration_ns = part.root_end_ns - part.root_start_ns
        if self.root_rank == 0:
            # No root yet: the duration is what is known of it.
            self.duration_ns = self.end_ns - self.start_ns

    def add_log(self, log: StoredLog) -> None:
        self._stretch(log.time_ns, log.time_ns)
        self.logs += 1
        self._add_service(log.service)

    def _stretch(self, start_ns: int, end_ns: int) -> None:
        self.start_ns = min(self.start_ns, start_ns) if self.start_ns else start_ns
        self.end_ns = max(self.end_ns, end_ns)

    def _add_service(self, service: str) -> None:
        # With line breaks around each, so that one is found with instr().
        if f"\n{service}\n" not in self.services:
            self.services = f"{self.services or chr(10)}{service}\n"

    def values(self) -> tuple[object, ...]:
        """The columns after `seq`, in the order of `_COLUMNS`."""
        # OTLP and the SDK have later times than SQLite's numbers.
        return (
            *map(to_storable, (self.start_ns, self.end_ns, self.duration_ns)), self.root_rank,
            to_storable(self.root_start_ns), self.name, self.method,
            self.route, self.status, self.service, self.services, self.spans, self.queries, self.errors, self.logs,
            self.bytes, self.dropped, self.spans_dropped, self.release, self.user,
        )  # fmt: skip


_COLUMNS = (
    "start_ns", "end_ns", "duration_ns", "root_rank", "root_start_ns", "name", "method", "route", "status", "service",
    "services", "spans", "queries", "errors", "logs", "bytes", "dropped", "spans_dropped", "release",
    "user",
)  # fmt: skip
_SELECT = f"SELECT trace_id, seq, {', '.join(_COLUMNS)} FROM trace WHERE trace_id"
_INSERT = f"INSERT INTO trace (trace_id, {', '.join(_COLUMNS)}) VALUES (?{', ?' * len(_COLUMNS)})"
_UPDATE = f"UPDATE trace SET {', '.join(f'{column} = ?' for column in _COLUMNS)} WHERE seq = ?"


class TraceStore(StoreFile):
    """The file at `path`, with its bounds.

    Units: `max_bytes` bounds the file and the log that SQLite keeps beside it.
    Errors: methods raise `Unusable`, `sqlite3.Error` or `OSError`; callers count and go on.
    """

    def __init__(self, path: Path, *, max_traces: int, max_bytes: int) -> None:
        super().__init__(path)
        self.max_traces = max_traces
        self.max_bytes = max_bytes
        self._log_bytes = min(_LARGEST_LOG_BYTES, max_bytes // 4)
        file_bytes = max_bytes - self._log_bytes
        self.bounds = Bounds(max_traces, file_bytes)
        #: Beyond this a single trace would push out the others.
        self._trace_bytes = max(64 << 10, file_bytes // 8)

    def write(self, items: Sequence[Stored], on_drop: OnDrop) -> None:
        """Put a batch into the file and keep its bounds; `on_drop(count, reason)` for what had no room."""
        try:
            self._write(items, on_drop)
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
            # Found only while writing. What was in it is lost, this batch is not.
            self.set_aside()
            self._write(items, on_drop)

    def pin(self, trace_id: str, *, is_pinned: bool) -> bool:
        """Keep a trace out of eviction, or no longer; whether there was room for one more pinned trace."""
        with self.connection() as connection, transaction(connection):
            if is_pinned:
                return self.bounds.pin(connection, trace_id)
            connection.execute("UPDATE trace SET is_pinned = 0 WHERE trace_id = ?", (trace_id,))
            return True

    def clear(self) -> None:
        """Forget every trace; the numbers of the dashboard stay."""
        with self.connection() as connection, transaction(connection):
            for table in ("trace", "chunk", "event", "log", "sql", "statement", "object"):
                connection.execute(f"DELETE FROM {table}")

    def _write(self, items: Sequence[Stored], on_drop: OnDrop) -> None:
        with self.connection() as connection:
            connection.execute(f"PRAGMA max_page_count = {max(64, self.bounds.file_bytes // PAGE_BYTES)}")
            connection.execute(f"PRAGMA journal_size_limit = {self._log_bytes // 2}")
            connection.execute("PRAGMA wal_autocheckpoint = 256")
            for part in _parts(items):
                try:
                    self._write_part(connection, part, on_drop)
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                        raise
                    # The bound is reached in the middle of a batch (or the disk is full): make room once.
                    with transaction(connection):
                        self.bounds.make_room(connection)
                    self._write_part(connection, part, on_drop)

    def _write_part(self, connection: sqlite3.Connection, items: Sequence[Stored], on_drop: OnDrop) -> None:
        with transaction(connection):
            traces: dict[str, tuple[list[StoredSpans], list[StoredLog]]] = {}
            logs: list[StoredLog] = []
            for item in items:
                if isinstance(item, StoredSpans):
                    traces.setdefault(item.trace_id, ([], []))[0].append(item)
                elif isinstance(item, StoredLog):
                    logs.append(item)
                    if item.trace_id != records.NO_TRACE:
                        traces.setdefault(item.trace_id, ([], []))[1].append(item)
                elif isinstance(item, StoredSample):
                    write_sample(connection, item)
                elif isinstance(item, StoredErrors):
                    write_errors(connection, item, self.bounds.file_bytes)
                else:
                    _write_process(connection, item)
            dropped = self._write_traces(connection, traces)
            records.write_logs(connection, logs, self.bounds.file_bytes)
            if traces:
                self.bounds.keep(connection)
        # The rows are in the file; a later batch shrinks it where that is not possible now.
        with contextlib.suppress(sqlite3.OperationalError):
            self.bounds.shrink(connection)
        if dropped:
            on_drop(dropped, "trace_too_large")

    def _write_traces(
        self, connection: sqlite3.Connection, traces: Mapping[str, tuple[list[StoredSpans], list[StoredLog]]]
    ) -> int:
        """Add to traces, with a few statements for all of them; how many items had no room in theirs."""
        if not traces:
            return 0
        known = {row[0]: row[1:] for row in select_in(connection, _SELECT, list(traces))}
        (seq,) = connection.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'trace'").fetchone()
        has_room = used_bytes(connection) < self.bounds.file_bytes // _ROOMY_PART
        new: list[tuple[object, ...]] = []
        chunks: list[tuple[int, str, bytes]] = []
        parts: list[tuple[int, StoredSpans]] = []
        dropped = 0
        for trace_id, (spans, logs) in traces.items():
            summary = _Summary(*known[trace_id]) if trace_id in known else _Summary()
            if not summary.seq:
                seq = summary.seq = (seq or 0) + 1
            lost, found = self._pack(summary, spans, logs, has_room=has_room)
            chunks += found
            # Also those without room count, so that the list says how long the trace really was.
            for part in spans:
                summary.add(part)
                parts.append((summary.seq, part))
            for log in logs:
                summary.add_log(log)
            summary.dropped += lost
            dropped += lost
            if trace_id in known:
                connection.execute(_UPDATE, (*summary.values(), summary.seq))
            else:
                new.append((trace_id, *summary.values()))
        # They get the numbers that follow: that is how AUTOINCREMENT counts. To give the numbers costs more.
        connection.executemany(_INSERT, new)
        connection.executemany("INSERT INTO chunk (seq, kind, data) VALUES (?, ?, ?)", chunks)
        events = [(seq, name) for seq, part in parts for name in part.events]
        connection.executemany("INSERT OR IGNORE INTO event (seq, name) VALUES (?, ?)", events)
        records.write_statements(connection, parts)
        return dropped

    def _pack(
        self, summary: _Summary, spans: list[StoredSpans], logs: list[StoredLog], *, has_room: bool
    ) -> tuple[int, list[tuple[int, str, bytes]]]:
        """Return how many items have no room in a trace, and the rows of the others."""
        contents: list[tuple[str, bytes, int]] = []
        if spans:
            # The bytes of protobuf messages one after the other are their union.
            data = spans[0].data if len(spans) == 1 else b"".join([part.data for part in spans])
            is_small = len(data) <= _SMALL_BYTES and summary.bytes <= _SMALL_BYTES
            packed = wrap(data) if has_room and is_small else compress(data)
            contents.append(("spans", packed, sum(part.spans for part in spans)))
        if logs:
            contents.append(("logs", pack([log.record for log in logs]), len(logs)))
        dropped = 0
        chunks: list[tuple[int, str, bytes]] = []
        for kind, packed, count in contents:
            if summary.bytes + len(packed) > self._trace_bytes:
                dropped += count
            else:
                summary.bytes += len(packed)
                chunks.append((summary.seq, kind, packed))
        return dropped, chunks


def find_store(config: Config, identity: str) -> TraceStore:
    """Return the store of the settings; `identity` is that of the deployment. Errors: `Unusable`."""
    console = config.console
    path = find_file(console.path, config.surroundings, identity)
    return TraceStore(path, max_traces=console.max_traces, max_bytes=console.max_mb << 20)


def reason_of(error: BaseException) -> str:
    """Why a batch could not be written, as the value of a metric's attribute."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if code is not None else None
    # Without room for the index of the log SQLite says that it could not be made longer.
    is_full = primary == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE
    if is_full or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "disk_full"
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "busy"
    if isinstance(error, Unusable):
        return "unusable"
    return "failed"


def _parts(items: Sequence[Stored]) -> Iterator[list[Stored]]:
    """The batch in pieces that are committed one by one: by a rough guess at their size."""
    part: list[Stored] = []
    size = 0
    for item in items:
        part.append(item)
        size += _rough_bytes(item)
        if size > _COMMIT_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _rough_bytes(item: Stored) -> int:
    if isinstance(item, StoredSpans):
        return len(item.data)
    if isinstance(item, StoredLog):
        return sum(len(str(value)) for value in item.record.values()) + 100
    return 10_000


def _write_process(connection: sqlite3.Connection, process: StoredProcess) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO process (instance, service, host, pid, started_s, seen_s, data) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            process.instance, process.service, process.host, process.pid, process.started_s, process.seen_s,
            pack(process.facts),
        ),
    )  # fmt: skip
    connection.execute("DELETE FROM process WHERE seen_s < ?", (process.seen_s - PROCESS_FORGOTTEN_S,))
    if release := str(process.facts.get("release", "")):
        note_release(connection, process.service, release, process.started_s)
