"""CPU time, memory, descriptors and threads of the processes of a group, read from /proc when the page is requested.

The process that answers reads them for all: each slot's header has pid, start and pid namespace of its process, so a
pid that means something else is never read. What a killed process had used stays, in a file of the folder. Where there
is no /proc, these metrics are absent.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from django_otel.base import frozen, guard
from django_otel.base.private_files import open_file
from django_otel.metrics.catalogue import build_family
from django_otel.metrics.model import Attributes, Family, Point
from django_otel.multiprocess.lease import lock_exclusively_in_time
from django_otel.multiprocess.shared_values import LOCK_TIMEOUT_S

_FILE = "cpu-times"
_MAX_BYTES = 1 << 20
#: Processes that are remembered, until the oldest of other containers are taken for gone.
_MAX_KNOWN = 2000


@frozen.record
class Member:
    """A living process of the group: its slot, its identity, and how many requests it serves now."""

    slot: int
    pid: int
    #: Clock ticks since boot, as in /proc.
    started_ticks: int
    #: Of the pids; 0 where the system has none.
    namespace: int
    active: float


@frozen.record
class Usage:
    """Resources that a process uses. Units: seconds, bytes, numbers; `descriptors` is None if it may not be read."""

    user_s: float
    system_s: float
    memory_bytes: int
    threads: int
    uptime_s: float
    descriptors: int | None


def pid_namespace() -> int:
    """Return the number of this process's pid namespace; 0 where the system has none."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def start_ticks(pid: int) -> int:
    """Return when a process began, in clock ticks since boot; 0 if it does not exist or the system does not say."""
    try:
        return int(_stat(pid)[19])
    except (OSError, ValueError, IndexError):
        return 0


def _stat(pid: int) -> list[str]:
    # The command name stands in parentheses and may itself contain some.
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def read_usage(pid: int, started_ticks: int) -> Usage | None:
    """Return the resources that the process uses now; None when it is gone, or the pid is another one's."""
    try:
        fields = _stat(pid)
        if int(fields[19]) != started_ticks:
            return None
        ticks = os.sysconf("SC_CLK_TCK")
        up_s = float(Path("/proc/uptime").read_text().split()[0])
        return Usage(
            int(fields[11]) / ticks,
            int(fields[12]) / ticks,
            int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
            int(fields[17]),
            max(0.0, up_s - started_ticks / ticks),
            _count_descriptors(pid),
        )
    except (OSError, ValueError, IndexError):
        return None


def _count_descriptors(pid: int) -> int | None:
    try:
        number = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return None
    # Reading the list takes one.
    return number - 1 if pid == os.getpid() else number


# --- CPU time of all that ever lived. ---


def add_cpu_times(folder: Path, times: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """Note the CPU time (user, system; seconds) of living processes; return that of all there ever were.

    Errors: `OSError`, also where the system has no file locks.
    """
    path = folder / _FILE
    descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        lock_exclusively_in_time(descriptor, LOCK_TIMEOUT_S, path)
        gone, known = _parse(os.pread(descriptor, _MAX_BYTES, 0))
        for key, (user_s, system_s) in times.items():
            before = known.pop(key, (0.0, 0.0))
            known[key] = (max(before[0], user_s), max(before[1], system_s))
        own = str(pid_namespace())
        for key in [key for key in known if key not in times and (len(known) > _MAX_KNOWN or _is_gone(key, own))]:
            user_s, system_s = known.pop(key)
            gone = (gone[0] + user_s, gone[1] + system_s)
        data = json.dumps([gone, known]).encode()
        os.ftruncate(descriptor, os.pwrite(descriptor, data, 0))
    finally:
        os.close(descriptor)
    return gone[0] + sum(user_s for user_s, _ in known.values()), gone[1] + sum(system for _, system in known.values())


def _parse(data: bytes) -> tuple[tuple[float, float], dict[str, tuple[float, float]]]:
    """Return the content of the file, without damaged parts."""
    try:
        gone, known = json.loads(data)
        return (float(gone[0]), float(gone[1])), {
            str(key): (float(one), float(two)) for key, (one, two) in known.items()
        }
    except (ValueError, TypeError, IndexError, AttributeError, RecursionError):
        return (0.0, 0.0), {}


def build_key(member: Member) -> str:
    """Return an identity that no other process has."""
    return f"{member.namespace}:{member.pid}:{member.started_ticks}"


def _is_gone(key: str, own_namespace: str) -> bool:
    namespace, _, rest = key.partition(":")
    pid, _, started = rest.partition(":")
    # Of another container nothing can be said.
    return namespace == own_namespace and pid.isdecimal() and str(start_ticks(int(pid))) != started


# --- Families. ---


@functools.lru_cache(maxsize=4)
def _begun_ns(pid: int, started_ticks: int) -> int:
    """Return when a process began, in nanoseconds since the Unix epoch; the same after the clock was set."""
    found = read_usage(pid, started_ticks)
    return 0 if found is None else int((time.time() - found.uptime_s) * 1e9)


def own_member(active: float, slot: int = 0) -> Member:
    """Return this process."""
    pid = os.getpid()
    return Member(slot, pid, start_ticks(pid), pid_namespace(), active)


def describe_processes(members: Sequence[Member], folder: Path | None) -> list[Family]:
    """Return the metrics of these living processes, and the CPU time of all that were in `folder`."""
    busy = sum(1 for member in members if member.active > 0)
    states = [(("state", "busy"), float(busy)), (("state", "idle"), float(len(members) - busy))]
    families = [build_family("django_otel.workers", [Point((attribute,), number) for attribute, number in states])]
    namespace = pid_namespace()
    readable = [member for member in members if member.namespace == namespace and member.started_ticks]
    if len(readable) < len(members) or not namespace:
        # Sums over a part of the processes would be wrong.
        return families
    usages = {member: found for member in readable if (found := read_usage(member.pid, member.started_ticks))}
    times = {build_key(member): (found.user_s, found.system_s) for member, found in usages.items()}
    total: tuple[float, float] | None = None
    if folder is None:
        total = (sum(user_s for user_s, _ in times.values()), sum(system_s for _, system_s in times.values()))
    else:
        # Absent when the file cannot be had: without those that are gone the counter would go backwards.
        with guard.contained("the CPU times of the processes"):
            total = add_cpu_times(folder, times)
    if total is not None:
        # Of several processes, or of those that are gone, the beginning is not known.
        is_single = folder is None and len(readable) == 1
        start_ns = _begun_ns(readable[0].pid, readable[0].started_ticks) if is_single else 0
        points = [
            Point((("cpu.mode", mode),), used_s, (), start_ns)
            for mode, used_s in zip(("user", "system"), total, strict=True)
        ]
        families.append(build_family("process.cpu.time", points))
    families += _describe_usages(usages)
    return families


def _describe_usages(usages: Mapping[Member, Usage]) -> Iterable[Family]:
    nothing: Attributes = ()
    found = usages.values()
    yield build_family("process.memory.usage", [Point(nothing, float(sum(usage.memory_bytes for usage in found)))])
    yield build_family("process.thread.count", [Point(nothing, float(sum(usage.threads for usage in found)))])
    descriptors = [usage.descriptors for usage in found]
    if None not in descriptors:
        total = sum(number for number in descriptors if number is not None)
        yield build_family("process.open_file_descriptor.count", [Point(nothing, float(total))])
    yield build_family(
        "process.uptime",
        [Point((("worker", str(member.slot)),), usage.uptime_s) for member, usage in usages.items()],
    )
