"""The processes of one host that follow one policy, and the file through which it reaches them.

Each process holds a numbered slot by `flock` (`lease.Lease`) and says
beside it, in `N.json`, who it is and what it has applied; the kernel frees the
slot at its death. `policy.json` holds the policy that was read last, by whichever process
read it: a process that saved it, or the one of all that is elected to ask the
database (it holds `leader.lock`). The others look at the file's status, which
takes microseconds and no connection.

Of two readings of the database the one that began later saw the newer state,
so each carries the monotonic time at which it began, which is one clock for all
processes of a host.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import struct
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

from django_otel.base import frozen, guard
from django_otel.base.private_files import Unusable, check_folder, make_folder, open_file
from django_otel.multiprocess import server_group
from django_otel.multiprocess.lease import Lease, living_slots, lock_exclusively_in_time
from django_otel.sampling.policy import Policy

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_POLICY_FILE = "policy.json"
#: Larger files are not ours.
_MAX_BYTES = 1 << 20
#: How long the lock around replacing the file is waited for, in seconds; it is held for microseconds.
_LOCK_TIMEOUT_S = 1.0
FORMAT = 1
_MOMENT = struct.Struct("<d")


@frozen.record
class Reading:
    """Result of reading the database.

    Units: `began_s` is `time.monotonic()` when it began, `read_at_s` seconds
        since the Unix epoch.
    """

    policy: Policy | None
    began_s: float
    read_at_s: float
    #: The fault of the table, the row or the database; "" without one.
    fault: str = ""

    def to_bytes(self) -> bytes:
        policy = self.policy.to_json() if self.policy is not None else None
        content = {"format": FORMAT, "began_s": self.began_s, "read_at_s": self.read_at_s, "fault": self.fault}
        return json.dumps({**content, "policy": policy}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Reading:
        """The reading of `to_bytes`. Errors: `ValueError` for anything else."""
        content = json.loads(data)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError("A reading of another format.")
        policy, began_s, read_at_s, fault = (content.get(key) for key in ("policy", "began_s", "read_at_s", "fault"))
        if not isinstance(began_s, float | int) or not isinstance(read_at_s, float | int) or not isinstance(fault, str):
            raise ValueError("A reading without its times.")
        if began_s > time.monotonic():
            # Of before the machine was started last: older than anything of now.
            began_s = 0.0
        return cls(Policy.from_json(policy) if policy is not None else None, began_s, read_at_s, fault)


def registry_folder(identity: str, bases: Sequence[Path]) -> Path:
    """The folder for a policy that is known by `identity`. Errors: `Unusable` with every reason."""
    if fcntl is None:
        raise Unusable("This system has no file locks (fcntl).")
    reasons = []
    for base in bases:
        try:
            # Apart from the folders of numbers: those are swept when their server is gone.
            parent = server_group.make_parent(bases, base, f"django-otel-{os.geteuid()}-policy")
            folder = parent / hashlib.sha256(identity.encode()).hexdigest()[:16]
            make_folder(folder)
            with guard.contained("sweeping old policies"):
                sweep(parent, keep=folder.name)
            return folder
        except OSError as error:
            reasons.append(f"{base}: {error}")
    raise Unusable("; ".join(reasons) or server_group.NO_PLACE)


def sweep(parent: Path, keep: str) -> list[str]:
    """Remove the folders of policies that no process follows and that had no write for an hour; return their names."""
    removed = []
    for folder in parent.iterdir():
        if folder.name == keep:
            continue
        try:
            check_folder(folder)
            is_idle = server_group.is_idle(folder, server_group.FOREIGN_AGE_S)
        except (OSError, ValueError):
            continue
        if is_idle:
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
    return removed


_Content = TypeVar("_Content")


class ReadingFile(Generic[_Content]):
    """A file that all processes of a folder read, as one process sees it; `parse` makes a reading of its content."""

    def __init__(self, path: Path, parse: Callable[[bytes], _Content]) -> None:
        self.path = path
        self._parse = parse
        self._seen: tuple[int, ...] | None = None

    def has_changed(self) -> bool:
        """Return whether the file is another than the one read last."""
        try:
            return stamp_of(self.path) != self._seen
        except OSError:
            return False

    def read(self) -> _Content | None:
        """Return the content of the file, or None without one. Errors: `OSError`, `ValueError` when damaged."""
        try:
            # Before the content: a change in between is then read again, not missed.
            self._seen = stamp_of(self.path)
            return self._parse(read_bounded(self.path))
        except FileNotFoundError:
            return None

    def read_contained(self) -> _Content | None:
        """Return the content of the file, or None when it cannot be read."""
        try:
            return self._parse(read_bounded(self.path))
        except (OSError, ValueError, RecursionError):
            return None


class HostRegistry:
    """One folder of processes that follow one policy. Take a slot of it with `join()`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lease: Lease | None = None
        self._leader = -1
        self._policy = ReadingFile(folder / _POLICY_FILE, Reading.from_bytes)
        self._reported: dict[str, object] | None = None
        self._members: dict[int, tuple[tuple[int, ...], dict[str, object]]] = {}
        self._clock: tuple[Path, tuple[int, int], memoryview[float]] | None = None

    # --- The slot. ---

    def join(self) -> None:
        """Take the lowest free slot. Errors: `OSError`."""
        self.lease = Lease(self.folder)
        # The report of a dead process must not pass for ours.
        (self.folder / f"{self.lease.number}.json").unlink(missing_ok=True)

    def is_intact(self) -> bool:
        """Return whether the slot is still where others look for it."""
        return self.lease is not None and self.lease.is_intact()

    def close(self) -> None:
        """Give everything up; in a forked child this leaves the parent's locks alone, since nothing is unlocked."""
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.close()
        self.resign()

    def report(self, content: Mapping[str, object]) -> None:
        """Write this process's report, if it has changed. Errors: `OSError`."""
        found = dict(content)
        if self.lease is not None and found != self._reported:
            self.replace_file(f"{self.lease.number}.json", json.dumps(found).encode())
            self._reported = found

    def members(self) -> list[dict[str, object]]:
        """Return the reports of living processes of the folder, by slot; without those that have not reported yet."""
        numbers = sorted(int(path.stem) for path in self.folder.glob("*.lock") if path.stem.isdecimal())
        own = self.lease.number if self.lease is not None else None
        living = living_slots(self.folder, [number for number in numbers if number != own])
        found = []
        for number in numbers:
            if number == own or number in living:
                content = self._member(number)
                if content is not None:
                    found.append({**content, "slot": number})
        return found

    def _member(self, number: int) -> dict[str, object] | None:
        path = self.folder / f"{number}.json"
        try:
            stamp = stamp_of(path)
            known = self._members.get(number)
            if known is not None and known[0] == stamp:
                return known[1]
            content = json.loads(read_bounded(path))
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(content, dict):
            return None
        self._members[number] = stamp, content
        return content

    # --- The election. ---

    def lead(self) -> bool:
        """Return whether this process is the one that asks the database; becomes the leader if there is none."""
        path = self.folder / "leader.lock"
        if self._leader >= 0:
            try:
                there, here = path.lstat(), os.fstat(self._leader)
                if (there.st_ino, there.st_dev) == (here.st_ino, here.st_dev):
                    self._beat()
                    return True
            except OSError:
                pass
            # Removed while we hold it: another process may hold a new one.
            self.resign()
        descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._leader = descriptor
        self._beat()
        return True

    def _beat(self) -> None:
        # On a full disk there is none, and the others ask as well.
        with contextlib.suppress(OSError):
            os.pwrite(self._leader, _MOMENT.pack(time.monotonic()), 0)

    def silent_s(self) -> float:
        """For how many seconds the leader has given no heartbeat; 0.0 when that cannot be said.

        It is given with each `lead()`. A process that is stopped, or waits for a
        database that does not answer, keeps the lock and gives none.
        """
        try:
            with os.fdopen(open_file(self.folder / "leader.lock", os.O_RDONLY), "rb") as file:
                found = file.read(_MOMENT.size)
                if not found:
                    # It could not write any.
                    return max(0.0, time.time() - os.fstat(file.fileno()).st_mtime)
                beat_s: float = _MOMENT.unpack(found)[0]
        except (OSError, struct.error):
            return 0.0
        return max(0.0, time.monotonic() - beat_s)

    @property
    def is_leading(self) -> bool:
        """Return whether this process is the leader."""
        return self._leader >= 0

    def resign(self) -> None:
        """Give up leading."""
        descriptor, self._leader = self._leader, -1
        if descriptor >= 0:
            os.close(descriptor)

    # --- The limit per second. ---

    def clock(self, group: str) -> memoryview[float]:
        """One number in memory that the processes of `group` share, 0.0 at first. Errors: `OSError`, `ValueError`."""
        path = self._clock_path(group)
        if self._clock is not None and self._clock[0] == path:
            with contextlib.suppress(OSError):
                status = path.lstat()
                if (status.st_ino, status.st_dev) == self._clock[1]:
                    return self._clock[2]
        descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
        try:
            # Reserved before it is mapped: on a full disk this is an error, and not one in the middle of a request.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, mmap.PAGESIZE)
            else:
                os.pwrite(descriptor, bytes(mmap.PAGESIZE - 8), 8)
            status = os.fstat(descriptor)
            found = memoryview(mmap.mmap(descriptor, mmap.PAGESIZE)).cast("d")
        finally:
            os.close(descriptor)
        self._clock = path, (status.st_ino, status.st_dev), found
        return found

    def sweep_clocks(self, groups: Collection[str]) -> None:
        """Remove the clocks of servers that are gone; `groups` are those that live. Errors: `OSError`."""
        living = {self._clock_path(group) for group in groups}
        for path in self.folder.glob("limit-*"):
            if path not in living:
                path.unlink(missing_ok=True)

    def _clock_path(self, group: str) -> Path:
        return self.folder / f"limit-{hashlib.sha256(group.encode()).hexdigest()[:16]}"

    # --- The policy. ---

    def has_changed(self) -> bool:
        """Return whether the file is another than the one read last."""
        return self._policy.has_changed()

    def read(self) -> Reading | None:
        """Return the policy read last on this host, or None. Errors: `OSError`, `ValueError` when damaged."""
        return self._policy.read()

    def publish(self, reading: Reading) -> bool:
        """Let the other processes have a reading, unless theirs is newer; whether that was done. Errors: `OSError`."""
        with self.locked():
            before = self._policy.read_contained()
            if before is not None and before.began_s > reading.began_s:
                return False
            if before is None or (before.policy, before.fault) != (reading.policy, reading.fault):
                self.replace_file(_POLICY_FILE, reading.to_bytes())
            return True

    def publish_fault(self, fault: str, began_s: float) -> None:
        """Say that the database could not be read; the policy stays. Errors: `OSError`."""
        with self.locked():
            before = self._policy.read_contained()
            if before is None:
                before = Reading(None, 0.0, 0.0)
            if before.began_s <= began_s and before.fault != fault:
                self.replace_file(_POLICY_FILE, replace(before, fault=fault).to_bytes())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock around replacing a file that all processes read. Errors: `OSError`."""
        path = self.folder / "policy.lock"
        descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
        try:
            lock_exclusively_in_time(descriptor, _LOCK_TIMEOUT_S, path)
            yield
        finally:
            os.close(descriptor)

    def replace_file(self, name: str, data: bytes) -> None:
        """Put a file of the folder in the place of the one before, in one step. Errors: `OSError`."""
        temporary = self.folder / f"{name}.{os.getpid()}-{time.monotonic_ns()}"
        try:
            with os.fdopen(open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                file.write(data)
            temporary.replace(self.folder / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def stamp_of(path: Path) -> tuple[int, ...]:
    """Return a stamp that changes when the file is replaced. Errors: `OSError`."""
    status = path.lstat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def read_bounded(path: Path) -> bytes:
    """Return the content of a file of ours. Errors: `OSError`; `ValueError` when it is too long."""
    with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{path} is too long.")
    return data
