"""Recent traces of all worker processes, in one bounded SQLite file on disk.

The file is never the application's database, and no connection outlives the
batch or the page it was opened for, so that none is carried over a fork. What
stands in it is scrubbed before it is written, JSON rather than pickle, and
readable by this user alone.

`TraceStore` makes and checks the file and writes to it; `tracestore.reader`
reads. Whoever writes does so off the request path (`tracestore.processor`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sqlite3
import stat
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django_otel.base import guard
from django_otel.multiprocess.shared import Unusable

#: "DjOt": tells our file from anybody else's. Source: SQLite, "PRAGMA application_id".
APPLICATION_ID = 0x446A4F74
#: Grows with every change of the tables; each version has a file of its own, so that two may run side by side.
SCHEMA_VERSION = 2
FILE_NAME = f"traces-{SCHEMA_VERSION}.sqlite3"
#: A path with one of these endings is the file, any other is a folder.
FILE_ENDINGS = (".sqlite3", ".sqlite", ".db")
DAMAGED_SUFFIX = ".damaged"

#: How long a batch or a page waits for another process that is writing, in seconds.
BUSY_TIMEOUT_S = 2.0
#: An error or a slow trace outlives this many times MAX_TRACES newer ones, then it is old news.
PROTECTED_GENERATIONS = 10
_PAGE_BYTES = 4096
#: A batch is committed in parts of about this size, compressed, so that the log beside the file stays short.
_COMMIT_BYTES = 2 << 20
_LARGEST_LOG_BYTES = 8 << 20
#: How often numbers are sampled for the dashboard, in seconds.
SAMPLE_INTERVAL_S = 10.0
#: Numbers of the dashboard: their steps in seconds, and how long each is kept. A step for each period that can be
#: looked at, so that every page reads at most some sixty of them.
STEPS_S = {10: 7 * 60, 30: 35 * 60, 180: 190 * 60}
#: A process that was not seen for so long is forgotten, in seconds.
PROCESS_FORGOTTEN_S = 3600.0
#: Routes of one source that keep figures of their own, the busiest at first; all others share one row.
MAX_ROUTES = 300
OTHER_ROUTES = "(other routes)"

_SCHEMA = """
CREATE TABLE trace (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  trace_id TEXT NOT NULL UNIQUE,
  start_ns INTEGER NOT NULL,
  end_ns INTEGER NOT NULL,
  duration_ns INTEGER NOT NULL,
  root_rank INTEGER NOT NULL,
  root_start_ns INTEGER NOT NULL,
  name TEXT NOT NULL,
  method TEXT NOT NULL,
  route TEXT NOT NULL,
  status INTEGER NOT NULL,
  service TEXT NOT NULL,
  services TEXT NOT NULL,
  spans INTEGER NOT NULL,
  queries INTEGER NOT NULL,
  errors INTEGER NOT NULL,
  logs INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  dropped INTEGER NOT NULL
);
CREATE INDEX trace_start ON trace (start_ns) WHERE spans > 0;
CREATE INDEX trace_duration ON trace (duration_ns);
CREATE INDEX trace_route ON trace (route);
CREATE INDEX trace_status ON trace (status);
CREATE INDEX trace_service ON trace (service);
CREATE TABLE chunk (id INTEGER PRIMARY KEY, seq INTEGER NOT NULL, kind TEXT NOT NULL, data BLOB NOT NULL);
CREATE INDEX chunk_seq ON chunk (seq);
CREATE TABLE event (seq INTEGER NOT NULL, name TEXT NOT NULL, PRIMARY KEY (seq, name)) WITHOUT ROWID;
CREATE INDEX event_name ON event (name);
CREATE TABLE sample (
  step_s INTEGER NOT NULL, at_s INTEGER NOT NULL, source TEXT NOT NULL, service TEXT NOT NULL, data BLOB NOT NULL,
  routes BLOB NOT NULL, opening BLOB NOT NULL,
  PRIMARY KEY (step_s, at_s, source)
);
CREATE TABLE baseline (source TEXT PRIMARY KEY, at_s REAL NOT NULL, data BLOB NOT NULL, running BLOB NOT NULL);
CREATE TABLE process (
  instance TEXT PRIMARY KEY, service TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL,
  started_s REAL NOT NULL, seen_s REAL NOT NULL, data BLOB NOT NULL
);
"""

_CORRUPT_CODES = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

# --- What is stored. ---


@dataclass(frozen=True, slots=True)
class StoredSpan:
    """A finished span as it goes into the file: `record` is JSON, the rest is what the list of traces needs.

    `rank` is 2 for a span without a parent, 1 for the first of its process (remote parent), else 0.
    Units: times are nanoseconds since the Unix epoch.
    """

    trace_id: str
    start_ns: int
    end_ns: int
    rank: int
    name: str
    method: str
    route: str
    status: int
    service: str
    is_error: bool
    is_query: bool
    business_event: str
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredLog:
    """A log record of a trace."""

    trace_id: str
    time_ns: int
    service: str
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredSample:
    """What `/metrics` would show now, as cumulative numbers of one `source` (a group of processes)."""

    source: str
    service: str
    at_s: float
    numbers: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredProcess:
    """A sign of life of one process."""

    instance: str
    service: str
    host: str
    pid: int
    started_s: float
    seen_s: float
    facts: Mapping[str, Any]


Stored = StoredSpan | StoredLog | StoredSample | StoredProcess


def pack(content: Any) -> bytes:
    """JSON, compressed. What JSON does not know (NaN, bytes, foreign objects) becomes text."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), default=str)
    return zlib.compress(text.encode("utf-8", "replace"), 1)


def unpack(data: bytes) -> Any:
    """The reverse of `pack`. Errors: `ValueError`, `zlib.error` for what is not ours."""
    return json.loads(zlib.decompress(data))


def pack_routes(routes: Mapping[str, Any]) -> bytes:
    """Figures by route as lines, so that those of one are found without parsing all of them."""
    lines = [f"{_line_name(route)}{json.dumps(figures, separators=(',', ':'))}\n" for route, figures in routes.items()]
    return zlib.compress("".join(lines).encode(), 1)


def unpack_routes(data: bytes) -> dict[str, Any]:
    """The reverse of `pack_routes`. Errors: `ValueError`, `zlib.error` for what is not ours."""
    lines = (line.split("\t", 1) for line in zlib.decompress(data).decode().splitlines())
    return {json.loads(name): json.loads(figures) for name, figures in lines}


def unpack_route(data: bytes, route: str) -> dict[str, Any]:
    """The figures of one route, empty when it is not there. Errors: as `unpack_routes`."""
    lines = "\n" + zlib.decompress(data).decode()
    mark = "\n" + _line_name(route)
    found = lines.find(mark)
    if found < 0:
        return {}
    begin = found + len(mark)
    figures: dict[str, Any] = json.loads(lines[begin : lines.index("\n", begin)])
    return figures


def _line_name(route: str) -> str:
    # ASCII alone: neither a tab nor any line break that a route may contain stands in it as such.
    return f"{json.dumps(route)}\t"


# --- Where the file is. ---


def candidate_folders(path: str | None, surroundings: Mapping[str, str], identity: str) -> list[Path]:
    """Folders the store may be in, best first; only the one of the settings when there is one.

    On disk: `/dev/shm` has 64 MB in a default container, and is memory. `identity` tells one deployment on
    this machine from another.
    """
    if path is not None:
        return [Path(path).parent if path.endswith(FILE_ENDINGS) else Path(path)]
    bases = [
        surroundings.get("CACHE_DIRECTORY", "").split(":")[0],
        surroundings.get("TMPDIR", ""),
        "/var/tmp",  # noqa: S108 (a private folder is made in it and checked)
        tempfile.gettempdir(),
    ]
    name = f"console-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    user = f"django-otel-{os.geteuid()}" if hasattr(os, "geteuid") else "django-otel"
    found = [Path(base) / user / name for base in dict.fromkeys(bases) if base and not is_in_memory(base)]
    return [folder for folder in found if folder.is_absolute()]


def is_in_memory(path: str | os.PathLike[str]) -> bool:
    """Whether a path lies in `/dev/shm`."""
    real = os.path.realpath(path)
    return real == "/dev/shm" or real.startswith("/dev/shm/")  # noqa: S108


def find_file(path: str | None, surroundings: Mapping[str, str], identity: str) -> Path:
    """The store's file; its folder is made, the file itself not. Errors: `Unusable` with every reason."""
    reasons = []
    for folder in candidate_folders(path, surroundings, identity):
        try:
            if path is None:
                _make_folder(folder.parent)
            else:
                folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make_folder(folder)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise Unusable(f"{folder} cannot be written to.")
        except OSError as error:
            reasons.append(f"{folder}: {_text(error)}")
        else:
            return Path(path) if path is not None and path.endswith(FILE_ENDINGS) else folder / FILE_NAME
    raise Unusable("; ".join(reasons) or "no folder on a disk was found")


def _text(error: OSError) -> str:
    return str(error) if isinstance(error, Unusable) else (error.strerror or type(error).__name__)


def _make_folder(folder: Path) -> None:
    """Make a private folder, or refuse one that others could write to. Errors: `Unusable`, `OSError`."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    else:
        # Whatever the umask says.
        folder.chmod(0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise Unusable(f"{folder} is a link or no folder; expected a folder of this user's own.")
    if hasattr(os, "geteuid"):
        if status.st_uid != os.geteuid():
            raise Unusable(f"{folder} belongs to user {status.st_uid}; expected user {os.geteuid()}.")
        if status.st_mode & 0o022:
            raise Unusable(f"{folder} can be written to by others (mode {stat.S_IMODE(status.st_mode):o}).")


# --- Forks. ---


class _ForkGate:
    """Lets a fork wait for the moment in which no connection is open.

    SQLite keeps the locks of a file in the process's memory; a child that
    inherits them in the middle of a transaction would take the file for locked.
    """

    #: A fork waits no longer than this, in seconds; the child then leaves the store alone.
    PATIENCE_S = 1.0

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._users = 0
        self._forks = 0
        self.is_tainted = False

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Around everything that has a connection open. Errors: `Unusable` in a child forked at a bad moment."""
        if self.is_tainted:
            raise Unusable("this process was forked in the middle of a write; it cannot use the store.")
        with self._condition:
            self._condition.wait_for(lambda: not self._forks, self.PATIENCE_S)
            self._users += 1
        try:
            yield
        finally:
            with self._condition:
                self._users -= 1
                self._condition.notify_all()

    def before_fork(self) -> None:
        with self._condition:
            self._forks += 1
            self._condition.wait_for(lambda: not self._users, self.PATIENCE_S)

    def after_in_parent(self) -> None:
        with self._condition:
            self._forks -= 1
            self._condition.notify_all()

    def after_in_child(self) -> None:
        self.is_tainted = self.is_tainted or self._users > 0
        self._condition = threading.Condition()
        self._users = self._forks = 0


#: Made with the first connection, after gevent has patched `threading`.
_gate: _ForkGate | None = None
_gate_pid = 0


def fork_gate() -> _ForkGate:
    """This process's gate."""
    global _gate, _gate_pid
    if _gate is None:
        _gate, _gate_pid = _ForkGate(), os.getpid()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=_gate.before_fork,
                after_in_parent=_gate.after_in_parent,
                after_in_child=_after_in_child,
            )
    elif _gate_pid != os.getpid():
        # A fork that ran no hooks (uWSGI's own).
        _after_in_child()
    return _gate


def _after_in_child() -> None:
    global _gate_pid
    if _gate is not None and _gate_pid != os.getpid():
        _gate_pid = os.getpid()
        _gate.after_in_child()


# --- The store. ---


@dataclass(slots=True)
class _Summary:
    """A row of the table of traces, and what this batch adds beneath it."""

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
    events: set[str] = field(default_factory=set)

    def add(self, span: StoredSpan) -> None:
        self._stretch(span.start_ns, span.end_ns)
        self.spans += 1
        self.queries += span.is_query
        self.errors += span.is_error
        self._add_service(span.service)
        if span.business_event:
            self.events.add(span.business_event)
        earlier = span.rank == self.root_rank and span.start_ns < self.root_start_ns
        if span.rank > self.root_rank or earlier:
            self.root_rank, self.root_start_ns = span.rank, span.start_ns
            self.name, self.method, self.route = span.name, span.method, span.route
            self.status, self.service = span.status, span.service
            self.duration_ns = span.end_ns - span.start_ns
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


_COLUMNS = (
    "start_ns", "end_ns", "duration_ns", "root_rank", "root_start_ns", "name", "method", "route", "status", "service",
    "services", "spans", "queries", "errors", "logs", "bytes", "dropped",
)  # fmt: skip
_SELECT = f"SELECT seq, {', '.join(_COLUMNS)} FROM trace WHERE trace_id = ?"  # noqa: S608 (names of our own columns)
_INSERT = (
    f"INSERT INTO trace (trace_id, {', '.join(_COLUMNS)}) "  # noqa: S608
    f"VALUES (?{', ?' * len(_COLUMNS)})"
)
_UPDATE = f"UPDATE trace SET {', '.join(f'{column} = ?' for column in _COLUMNS)} WHERE seq = ?"  # noqa: S608


class TraceStore:
    """The file at `path`, with its bounds.

    Units: `max_bytes` bounds the file and the log that SQLite keeps beside it.
    Errors: methods raise `Unusable`, `sqlite3.Error` or `OSError`; callers count and go on.
    """

    def __init__(self, path: Path, *, max_traces: int, max_bytes: int) -> None:
        self.path = path
        self.max_traces = max_traces
        self.max_bytes = max_bytes
        log_bytes = min(_LARGEST_LOG_BYTES, max_bytes // 4)
        self._log_bytes = log_bytes
        self._file_bytes = max_bytes - log_bytes
        #: Beyond this a single trace would push out the others.
        self._trace_bytes = max(64 << 10, self._file_bytes // 8)

    # Opening.

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection for a moment; the file is made when it is missing, and set aside when it is damaged."""
        with fork_gate().using():
            connection = self._open()
            try:
                yield connection
            finally:
                connection.close()

    def _open(self) -> sqlite3.Connection:
        try:
            return self._open_it(is_alone=False)
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_IOERR_SHMSIZE:
                raise
        # A full disk has no room for the index of the log that processes share; alone one keeps it in its memory.
        # What is stored can be read so, and what has room in the file be written; others wait meanwhile.
        return self._open_it(is_alone=True)

    def _open_it(self, *, is_alone: bool) -> sqlite3.Connection:
        for attempt in (1, 2):
            self._make_file()
            connection = self._connect()
            try:
                if is_alone:
                    connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchone()
                connection.execute("PRAGMA synchronous = OFF")
                self._prepare(connection)
            except sqlite3.DatabaseError as error:
                connection.close()
                if attempt == 2 or not is_corrupt(error):
                    raise
                self.set_aside()
            except BaseException:
                connection.close()
                raise
            else:
                return connection
        raise AssertionError("unreachable")

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=32
        )

    def _make_file(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            descriptor = os.open(self.path, flags, 0o600)
        except FileNotFoundError:
            # The folder was removed beneath us.
            _make_folder(self.path.parent)
            descriptor = os.open(self.path, flags, 0o600)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR):
                raise Unusable(f"{self.path} is a link or a folder; expected a file of this user's own.") from error
            raise
        try:
            status = os.fstat(descriptor)
            own = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
            if not stat.S_ISREG(status.st_mode) or not own:
                raise Unusable(f"{self.path} is not a file of this user's own.")
            is_ours = status.st_size == 0 or _application_id(descriptor) == APPLICATION_ID
            # A file that is somebody else's database is left as it is: see _prepare.
            if is_ours and stat.S_IMODE(status.st_mode) != 0o600 and hasattr(os, "fchmod"):
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if (application_id, version) == (APPLICATION_ID, SCHEMA_VERSION):
            return
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables:
            if application_id != APPLICATION_ID:
                raise Unusable(f"{self.path} is another application's database; name a file or folder of its own.")
            raise Unusable(
                f"{self.path} was made by another version of django_otel (its tables are of version {version}, "
                f"expected {SCHEMA_VERSION}); remove it, or name another file."
            )
        self._create(connection)

    def _create(self, connection: sqlite3.Connection) -> None:
        # Before the first table; afterwards each of these would need the whole file to be written anew.
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        # Readers do not wait for the writer. A network file system has no WAL; then it stays as it is.
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("BEGIN IMMEDIATE")
        try:
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not tables:
                for statement in _SCHEMA.split(";"):
                    if statement.strip():
                        connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    def set_aside(self) -> None:
        """Rename a damaged file; the next opening makes a new one. One damaged file is kept."""
        try:
            self.path.replace(self.path.with_name(self.path.name + DAMAGED_SUFFIX))
        except FileNotFoundError:
            # Another process was first.
            return
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        guard.warn_once(
            f"damaged store {self.path}",
            "django_otel: the trace store %s was damaged; it was set aside as %s and a new one begun.",
            self.path,
            self.path.name + DAMAGED_SUFFIX,
        )

    # Writing.

    def write(self, items: Sequence[Stored], on_drop: Callable[[int, str], None]) -> None:
        """Put a batch into the file and keep its bounds; `on_drop(count, reason)` for what had no room."""
        try:
            self._write(items, on_drop)
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
            # Found only while writing. What was in it is lost, this batch is not.
            self.set_aside()
            self._write(items, on_drop)

    def _write(self, items: Sequence[Stored], on_drop: Callable[[int, str], None]) -> None:
        with self.connection() as connection:
            connection.execute(f"PRAGMA max_page_count = {max(64, self._file_bytes // _PAGE_BYTES)}")
            connection.execute(f"PRAGMA journal_size_limit = {self._log_bytes // 2}")
            connection.execute("PRAGMA wal_autocheckpoint = 256")
            for part in _parts(items):
                try:
                    self._transaction(connection, part, on_drop)
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                        raise
                    # The bound is reached in the middle of a batch (or the disk is full): make room once.
                    self._make_room(connection)
                    self._transaction(connection, part, on_drop)

    def _make_room(self, connection: sqlite3.Connection) -> None:
        with _transaction(connection):
            (total,) = connection.execute("SELECT count(*) FROM trace").fetchone()
            self._evict(connection, total, max(1, total // 5))

    def _transaction(
        self, connection: sqlite3.Connection, items: Sequence[Stored], on_drop: Callable[[int, str], None]
    ) -> None:
        dropped = 0
        with _transaction(connection):
            traces: dict[str, tuple[list[StoredSpan], list[StoredLog]]] = {}
            for item in items:
                if isinstance(item, StoredSpan):
                    traces.setdefault(item.trace_id, ([], []))[0].append(item)
                elif isinstance(item, StoredLog):
                    traces.setdefault(item.trace_id, ([], []))[1].append(item)
                elif isinstance(item, StoredSample):
                    _write_sample(connection, item)
                else:
                    _write_process(connection, item)
            for trace_id, (spans, logs) in traces.items():
                dropped += self._write_trace(connection, trace_id, spans, logs)
            if traces:
                self._keep_bounds(connection)
        self._shrink(connection)
        if dropped:
            on_drop(dropped, "trace_too_large")

    def _write_trace(
        self, connection: sqlite3.Connection, trace_id: str, spans: list[StoredSpan], logs: list[StoredLog]
    ) -> int:
        """Add to one trace; how many items had no room in it."""
        row = connection.execute(_SELECT, (trace_id,)).fetchone()
        summary = _Summary(*row) if row is not None else _Summary()
        chunks: list[tuple[str, bytes]] = []
        dropped = 0
        for kind, items in (("spans", spans), ("logs", logs)):
            if not items:
                continue
            data = pack([item.record for item in items])
            if summary.bytes + len(data) > self._trace_bytes:
                dropped += len(items)
            else:
                summary.bytes += len(data)
                chunks.append((kind, data))
        for span in spans:
            # Also those without room count, so that the list tells how long the trace really was.
            summary.add(span)
        for log in logs:
            summary.add_log(log)
        summary.dropped += dropped
        values = [getattr(summary, column) for column in _COLUMNS]
        if row is None:
            seq = connection.execute(_INSERT, (trace_id, *values)).lastrowid
        else:
            seq = summary.seq
            connection.execute(_UPDATE, (*values, seq))
        connection.executemany(
            "INSERT INTO chunk (seq, kind, data) VALUES (?, ?, ?)", [(seq, kind, data) for kind, data in chunks]
        )
        connection.executemany(
            "INSERT OR IGNORE INTO event (seq, name) VALUES (?, ?)", [(seq, name) for name in summary.events]
        )
        return dropped

    # Bounds.

    def _keep_bounds(self, connection: sqlite3.Connection) -> None:
        (total,) = connection.execute("SELECT count(*) FROM trace").fetchone()
        if total > self.max_traces:
            total -= self._evict(connection, total, total - self.max_traces)
        # A tenth is left free for the next batch.
        allowed = self._file_bytes - self._file_bytes // 10
        while total > 1 and _used_bytes(connection) > allowed:
            evicted = self._evict(connection, total, max(1, total // 20))
            if not evicted:
                break
            total -= evicted

    def _evict(self, connection: sqlite3.Connection, total: int, count: int) -> int:
        """Forget `count` of `total` traces: the oldest ordinary ones, as long as half of MAX_TRACES are ordinary."""
        kept = min(self.max_traces, total)
        slow = connection.execute(
            "SELECT duration_ns FROM trace ORDER BY duration_ns DESC LIMIT 1 OFFSET ?", (max(1, kept // 10),)
        ).fetchone()
        (newest,) = connection.execute("SELECT max(seq) FROM trace").fetchone()
        ordinary = "NOT ((errors > 0 OR status >= 500 OR duration_ns > ?) AND seq > ?)"
        # Equal durations are no reason to protect all of them.
        bounds = (slow[0] if slow is not None else 0, (newest or 0) - PROTECTED_GENERATIONS * self.max_traces)
        (ordinaries,) = connection.execute(
            f"SELECT count(*) FROM trace WHERE {ordinary}",  # noqa: S608
            bounds,
        ).fetchone()
        take = min(count, max(0, ordinaries - (kept - count) // 2))
        victims = [
            seq
            for (seq,) in connection.execute(
                f"SELECT seq FROM trace WHERE {ordinary} ORDER BY seq LIMIT ?",  # noqa: S608
                (*bounds, take),
            )
        ]
        if len(victims) < count:
            victims += [
                seq
                for (seq,) in connection.execute(
                    f"SELECT seq FROM trace WHERE NOT ({ordinary}) ORDER BY seq LIMIT ?",  # noqa: S608
                    (*bounds, count - len(victims)),
                )
            ]
        rows = [(seq,) for seq in victims]
        for table in ("trace", "chunk", "event"):
            connection.executemany(f"DELETE FROM {table} WHERE seq = ?", rows)  # noqa: S608
        return len(victims)

    def _shrink(self, connection: sqlite3.Connection) -> None:
        """Give pages back when the bound was lowered in the settings; otherwise they are used again."""
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        if pages * _PAGE_BYTES > self._file_bytes:
            # A page is given back by each step of the statement; execute() takes only one.
            connection.executescript("PRAGMA incremental_vacuum(2000)")

    def clear(self) -> None:
        """Forget every trace; the numbers of the dashboard stay."""
        with self.connection() as connection, _transaction(connection):
            for table in ("trace", "chunk", "event"):
                connection.execute(f"DELETE FROM {table}")  # noqa: S608


def is_corrupt(error: sqlite3.Error) -> bool:
    """Whether an error says that the file itself is damaged, or is no database."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF) in _CORRUPT_CODES


def reason_of(error: BaseException) -> str:
    """Why a batch could not be written, as the value of a metric's attribute."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if code is not None else None
    if primary == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "disk_full"
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "busy"
    if isinstance(error, Unusable):
        return "unusable"
    return "failed"


def _application_id(descriptor: int) -> int:
    """Source: SQLite, "Database File Format", the 4 bytes at offset 68."""
    return int.from_bytes(os.pread(descriptor, 4, 68), "big")


def _used_bytes(connection: sqlite3.Connection) -> int:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    return int(pages - free) * _PAGE_BYTES


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    # IMMEDIATE waits for the other writer here, where waiting is possible; upgrading a reader is refused at once.
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk has rolled back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _parts(items: Sequence[Stored]) -> Iterator[list[Stored]]:
    """The batch in pieces that are committed one by one: by a rough guess at their size."""
    part: list[Stored] = []
    size = 0
    for item in items:
        part.append(item)
        size += _rough_bytes(item)
        if size > _COMMIT_BYTES * 4:
            yield part
            part, size = [], 0
    if part:
        yield part


def _rough_bytes(item: Stored) -> int:
    if isinstance(item, StoredSpan | StoredLog):
        return sum(len(str(value)) for value in item.record.values()) + 100
    return 10_000


# --- Numbers of the dashboard. ---


def _write_sample(connection: sqlite3.Connection, sample: StoredSample) -> None:
    """Turn cumulative numbers into what was added since the last sample, and keep it in every step.

    A step has the sums over all routes (`data`), its own figures of each route (`routes`), and what had been counted
    of each route when it began (`opening`). So a page about all routes reads sixty small rows and two large ones for
    each source, whatever the number of routes: `running` less the `opening` of the first step is what came between.
    """
    row = connection.execute("SELECT at_s, data, running FROM baseline WHERE source = ?", (sample.source,)).fetchone()
    if row is not None and row[0] >= sample.at_s:
        # Another process of the group was faster; older numbers would look like a new beginning.
        return
    before = _unpack_or_nothing(row[1]) if row is not None else {}
    running = _unpack_or_nothing(row[2]) if row is not None else {}
    # What was counted since the last sample belongs, for want of better knowledge, to the middle of that time.
    counted_s = sample.at_s - min(sample.at_s - row[0] if row is not None else SAMPLE_INTERVAL_S, SAMPLE_INTERVAL_S) / 2
    bounds = sample.numbers.get("bounds", {})
    running = without_other_bounds(running, bounds)
    added = rise(sample.numbers, before, running)
    opening = pack(running)
    routes = added.pop("routes", {})
    if routes:
        running["routes"] = merge(running.get("routes", {}), routes)
    running["bounds"] = {**running.get("bounds", {}), **bounds}
    connection.execute(
        "INSERT OR REPLACE INTO baseline (source, at_s, data, running) VALUES (?, ?, ?, ?)",
        (sample.source, sample.at_s, pack(sample.numbers), pack(running)),
    )
    for step_s, kept_s in STEPS_S.items():
        if added or routes:
            at_s = int(counted_s // step_s) * step_s
            key = (step_s, at_s, sample.source)
            row = connection.execute(
                "SELECT data, routes, opening FROM sample WHERE step_s = ? AND at_s = ? AND source = ?", key
            ).fetchone()
            if row is None:
                total, by_route, begun = added, routes, opening
            else:
                total = merge(_unpack_or_nothing(row[0]), added)
                by_route = merge(_unpack_or_nothing(row[1], unpack_routes), routes)
                begun = row[2]
            connection.execute(
                "INSERT OR REPLACE INTO sample (step_s, at_s, source, service, data, routes, opening) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*key, sample.service, pack({**total, "bounds": bounds}), pack_routes(by_route), begun),
            )
        connection.execute("DELETE FROM sample WHERE step_s = ? AND at_s < ?", (step_s, sample.at_s - kept_s))
    connection.execute("DELETE FROM baseline WHERE at_s < ?", (sample.at_s - 86_400,))


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


def _unpack_or_nothing(data: bytes, unpack: Callable[[bytes], Any] = unpack) -> dict[str, Any]:
    try:
        found = unpack(data)
    except (ValueError, zlib.error):
        return {}
    return found if isinstance(found, dict) else {}


def subtract(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """What `now` has more than `before`, leaf by leaf; a number that fell has begun anew and counts whole.

    Leaves are numbers and lists of numbers (a histogram: its count, sum and buckets, which begins anew as a whole).
    What did not change is left out.
    """
    added: dict[str, Any] = {}
    for key, value in now.items():
        old = before.get(key)
        if isinstance(value, Mapping):
            inner = subtract(value, old if isinstance(old, Mapping) else {})
            if inner:
                added[key] = inner
        elif isinstance(value, list):
            more = _subtract_lists(value, old)
            if any(more):
                added[key] = more
        else:
            rise = value - old if isinstance(old, int | float) and old <= value else value
            if rise:
                added[key] = rise
    return added


def _subtract_lists(now: list[float], before: object) -> list[float]:
    if not isinstance(before, list) or len(before) != len(now):
        return now
    rise = [new - old for new, old in zip(now, before, strict=True)]
    # The sum (second) is left out: what is added to it may round it down.
    fell = any(step < 0 for index, step in enumerate(rise) if index != 1)
    return now if fell else rise


def merge(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The sum of two sets of numbers, leaf by leaf; where they do not fit each other the newer (`other`) is kept."""
    total = dict(one)
    for key, value in other.items():
        old = total.get(key)
        if isinstance(value, Mapping):
            total[key] = merge(old, value) if isinstance(old, Mapping) else value
        elif isinstance(value, list):
            same = isinstance(old, list) and len(old) == len(value)
            total[key] = [a + b for a, b in zip(old or (), value, strict=True)] if same else value
        elif isinstance(value, int | float) and isinstance(old, int | float):
            total[key] = old + value
        else:
            total[key] = value
    return total


#: What begins anew with the buckets of a histogram: it and what is counted out of the same points.
_OF_HISTOGRAM = {"duration": ("duration", "errors", "refused"), "queries": ("queries",)}


def without_other_bounds(numbers: Mapping[str, Any], bounds: Mapping[str, str]) -> dict[str, Any]:
    """Cumulative numbers without the figures of routes whose histogram has other bounds now: it has begun anew."""
    known = numbers.get("bounds", {})
    stale = {
        part
        for name, text in bounds.items()
        if known.get(name, text) != text
        for part in _OF_HISTOGRAM.get(name, (name,))
    }
    if not stale:
        return dict(numbers)
    routes = {
        route: {part: value for part, value in figures.items() if part not in stale}
        for route, figures in numbers.get("routes", {}).items()
    }
    return {**numbers, "routes": routes}


def rise(now: Mapping[str, Any], before: Mapping[str, Any], running: Mapping[str, Any]) -> dict[str, Any]:
    """What `now` has more than `before`, without bounds: by route as `running` knows them, and over all as "total"."""
    before = without_other_bounds(before, now.get("bounds", {}))
    added = subtract({name: part for name, part in now.items() if name != "bounds"}, before)
    routes = added.get("routes")
    if routes:
        added["routes"] = _fold_routes(routes, running.get("routes", {}))
        added["total"] = sum_routes(routes)
    return added


def rise_of_routes(running: Mapping[str, Any], opening: Mapping[str, Any]) -> dict[str, Any]:
    """What was counted of each route between two moments of one source."""
    opening = without_other_bounds(opening, running.get("bounds", {}))
    return subtract(running.get("routes", {}), opening.get("routes", {}))


def sum_routes(routes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of all routes together."""
    total: dict[str, Any] = {}
    for figures in routes.values():
        total = merge(total, figures)
    return total


def _fold_routes(routes: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Figures under the names they are kept by: those already known, further ones while there is room, "others"."""
    room = MAX_ROUTES - 1 - len(known)
    new = [route for route in routes if route not in known]
    if len(new) <= room:
        return dict(routes)
    new.sort(key=lambda route: routes[route].get("duration", [0])[0], reverse=True)
    others = set(new[max(0, room) :])
    folded: dict[str, Any] = {}
    for route, figures in routes.items():
        name = OTHER_ROUTES if route in others else route
        folded[name] = merge(folded[name], figures) if name in folded else figures
    return folded
