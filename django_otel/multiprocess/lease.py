"""Leases: each process holds one numbered slot of the shared folder for its life.

It does so by `flock` on `N.lock`. The kernel frees it when the process dies,
however it dies, so no pid is ever compared.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from django_otel.base.private_files import Unusable, open_file
from django_otel.multiprocess.format import HEADER_BYTES, MAX_SLOTS, READY_CELL

try:
    import fcntl
except ImportError:  # Windows: no leases, so plain memory.
    fcntl = None  # type: ignore[assignment]

#: Whether this system can share numbers at all.
HAS_LOCKS = fcntl is not None
#: How long a joiner and a probe wait for `join.lock`, in seconds.
_JOIN_TIMEOUT_S = 2.0
_PROBE_TIMEOUT_S = 0.5


class Lease:
    """The lowest free slot of a folder, held until `close()` or the process's death.

    Slots below `first` are passed over, and those whose lock is not a file of our own.
    """

    def __init__(self, folder: Path, first: int = 0) -> None:
        self.folder = folder
        self._descriptor = -1
        with _joining(folder, fcntl.LOCK_EX):
            for number in range(first, MAX_SLOTS):
                try:
                    descriptor = open_file(folder / f"{number}.lock", os.O_RDWR | os.O_CREAT)
                except Unusable:
                    continue
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    os.close(descriptor)
                    if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                        raise
                    continue
                self.number = number
                self._descriptor = descriptor
                # Still inside the lock: who asks now whether the slot lives must not see the dead one's gauges.
                _mark_unready(folder / f"{number}.cells")
                return
        raise Unusable(f"{folder} has {MAX_SLOTS} slots in use.")

    def renew(self) -> None:
        """Recreate the lock file after it was removed; the caller still holds the slot's cells."""
        with _joining(self.folder, fcntl.LOCK_EX):
            descriptor = open_file(self.folder / f"{self.number}.lock", os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                raise
        self.close()
        self._descriptor = descriptor

    def is_intact(self) -> bool:
        """Return whether the lock is still where others look for it."""
        try:
            there = (self.folder / f"{self.number}.lock").lstat()
            here = os.fstat(self._descriptor)
        except OSError:
            return False
        return (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev)

    def close(self) -> None:
        """Give the slot up. In a forked child this leaves the parent's lease alone: it is never unlocked."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def lock_exclusively(descriptor: int) -> None:
    """Lock a file of this process's slot. Errors: `BlockingIOError` while another process holds it."""
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _mark_unready(path: Path) -> None:
    """Mark a slot whose new owner has not zeroed the gauges and up-down counters yet."""
    try:
        descriptor = open_file(path, os.O_RDWR)
    except OSError:
        return
    try:
        if os.fstat(descriptor).st_size >= HEADER_BYTES:
            os.pwrite(descriptor, struct.pack("<d", 0.0), READY_CELL * 8)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _joining(folder: Path, how: int) -> Iterator[None]:
    """Hold `join.lock`: exclusively to join, shared to probe, else a probe's lock would make a joiner skip a slot.

    It is held for microseconds, unless its holder was stopped in the middle: no
    request waits for that for long. A probe then goes on without. Errors:
    `Unusable` when joining.
    """
    path = folder / "join.lock"
    try:
        # For reading, so that a probe works in a file system that has become read-only.
        descriptor = open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        timeout_s = _JOIN_TIMEOUT_S if how == fcntl.LOCK_EX else _PROBE_TIMEOUT_S
        if not _lock_in_time(descriptor, how, timeout_s) and how == fcntl.LOCK_EX:
            raise Unusable(f"{path} is held by another process for more than {_JOIN_TIMEOUT_S} s.")
        yield
    finally:
        os.close(descriptor)


def lock_exclusively_in_time(descriptor: int, timeout_s: float, path: Path) -> None:
    """Lock a file that others hold for the time of a write; `path` is for the message.

    Errors: `Unusable` when one holds it for longer, or where the system has no file locks; `OSError`.
    """
    if not HAS_LOCKS:
        raise Unusable("This system has no file locks (fcntl).")
    if not _lock_in_time(descriptor, fcntl.LOCK_EX, timeout_s):
        raise Unusable(f"{path} is held by another process.")


def _lock_in_time(descriptor: int, how: int, timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
        else:
            return True
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(0.001)


def living_slots(folder: Path, numbers: Iterable[int]) -> set[int]:
    """Return which of these slots are held by a process, this one included."""
    living = set()
    with _joining(folder, fcntl.LOCK_SH):
        for number in numbers:
            try:
                descriptor = open_file(folder / f"{number}.lock", os.O_RDONLY)
            except OSError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                living.add(number)
            finally:
                os.close(descriptor)
    return living
