"""The store's file: its place, and how it is created, opened, checked and set aside.

The file is never the application's database, and no connection outlives the
batch or the page it was opened for, so that none is carried over a fork. It is
readable by this user alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from django_otel.base import forks, guard
from django_otel.base.private_files import Unusable, create_folder, temporary_folder
from django_otel.tracestore import records
from django_otel.tracestore.tables import SCHEMA, SCHEMA_VERSION

#: "DjOt": identifies our file. Source: SQLite, "PRAGMA application_id".
APPLICATION_ID = 0x446A4F74
FILE_NAME = f"traces-{SCHEMA_VERSION}.sqlite3"
#: A path with one of these endings is the file, any other is a folder.
FILE_ENDINGS = (".sqlite3", ".sqlite", ".db")
DAMAGED_SUFFIX = ".damaged"

#: How long a batch or a page waits for another process that is writing, in seconds.
BUSY_TIMEOUT_S = 2.0
PAGE_BYTES = 4096


_CORRUPT_CODES = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


# --- Where the file is. ---


def candidate_folders(path: str | None, surroundings: Mapping[str, str], identity: str) -> list[Path]:
    """Folders the store may be in, best first; only the one of the settings when there is one.

    On disk: `/dev/shm` has 64 MB in a default container, and is memory. `identity` distinguishes one deployment on
    this machine from another.
    """
    if path is not None:
        return [Path(path).parent if path.endswith(FILE_ENDINGS) else Path(path)]
    bases = [
        surroundings.get("CACHE_DIRECTORY", "").split(":")[0],
        surroundings.get("TMPDIR", ""),
        "/var/tmp",  # noqa: S108 (a private folder is made in it and checked)
        temporary_folder(),
    ]
    name = f"console-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    user = f"django-otel-{os.geteuid()}" if hasattr(os, "geteuid") else "django-otel"
    found = [Path(base) / user / name for base in dict.fromkeys(bases) if base and not is_in_memory(base)]
    return [folder for folder in found if folder.is_absolute()]


def is_in_memory(path: str | os.PathLike[str]) -> bool:
    """Return whether a path lies in `/dev/shm`."""
    real = os.path.realpath(path)
    return real == "/dev/shm" or real.startswith("/dev/shm/")  # noqa: S108 (only compared)


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
    create_folder(folder)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise Unusable(f"{folder} is a link or not a folder; expected a folder that belongs to this user.")
    if hasattr(os, "geteuid"):
        if status.st_uid != os.geteuid():
            raise Unusable(f"{folder} belongs to user {status.st_uid}; expected user {os.geteuid()}.")
        if status.st_mode & 0o022:
            raise Unusable(f"{folder} can be written to by others (mode {stat.S_IMODE(status.st_mode):o}).")


# --- Forks. ---

#: SQLite keeps the locks of a file in the process's memory; a child that inherits them in the middle of a transaction
#: would take the file for locked. Such a child leaves the store alone.
_gate = forks.ForkGate(patience_s=1.0)
forks.register("tracestore.file", _gate.after_in_child, before=_gate.before_fork, in_parent=_gate.after_in_parent)


# --- The file. ---


class StoreFile:
    """The SQLite file at `path`; makes it where it is missing.

    Errors: methods raise `Unusable`, `sqlite3.Error` or `OSError`; callers count and go on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection for a moment; the file is made when it is missing, and set aside when it is damaged."""
        with _gate.using():
            if _gate.is_tainted:
                raise Unusable("this process was forked in the middle of a write; it cannot use the store.")
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
        # Stored rows can be read so, and rows written that have room in the file; others wait meanwhile.
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
        """Make the file, for this user alone, unless it is there. Errors: `Unusable` for anything but a file of ours.

        One that is there is never opened here: closing it again would drop the locks that other threads of this
        process hold on it through SQLite (POSIX), and another process could then delete the log they write to.
        """
        try:
            status = self.path.lstat()
        except FileNotFoundError:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
            if not self.path.parent.is_dir():
                # The folder was removed while in use.
                _make_folder(self.path.parent)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, flags, 0o600))
            status = self.path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise Unusable(f"{self.path} is a link or a folder; expected a file that belongs to this user.")
        if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
            raise Unusable(f"{self.path} does not belong to this user.")

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # The tables first: another process makes them and the two numbers in one transaction, so that tables seen here
        # have their numbers by the next statement, while numbers read first could be those of a file still empty.
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if (application_id, version) == (APPLICATION_ID, SCHEMA_VERSION):
            self._make_private()
            return
        if tables:
            if application_id != APPLICATION_ID:
                raise Unusable(f"{self.path} is another application's database; name a file or folder of its own.")
            raise Unusable(
                f"{self.path} was made by another version of django_otel (its tables are of version {version}, "
                f"expected {SCHEMA_VERSION}); remove it, or name another file."
            )
        self._create(connection)

    def _create(self, connection: sqlite3.Connection) -> None:
        # Before the first table; afterwards each of these would rewrite the whole file.
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        # Readers do not wait for the writer. A network file system has no WAL; then it stays as it is.
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        with transaction(connection):
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not tables:
                for statement in (SCHEMA + records.SCHEMA).split(";"):
                    if statement.strip():
                        connection.execute(statement)
                connection.execute("INSERT INTO store (begun_s) VALUES (?)", (time.time(),))
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._make_private()

    def _make_private(self) -> None:
        """Another application's database keeps its mode: this is called once the file is known to be ours."""
        if stat.S_IMODE(self.path.stat().st_mode) != 0o600:
            self.path.chmod(0o600)

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


def is_corrupt(error: sqlite3.Error) -> bool:
    """Return whether an error says that the file itself is damaged, or is not a database."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF) in _CORRUPT_CODES


def used_bytes(connection: sqlite3.Connection) -> int:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    return int(pages - free) * PAGE_BYTES


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    # IMMEDIATE waits for the other writer here, where waiting is possible; upgrading a reader is refused at once.
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk has rolled back by itself. The reason is the first error, not one of going back.
        if connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise
