"""Finding and reading a group's shared folder without joining it: for `manage.py otel serve` and `folder`."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from django_otel.base import private_files
from django_otel.base.private_files import Unusable, check_folder
from django_otel.config.schema import Config
from django_otel.metrics.catalogue import build_family
from django_otel.metrics.model import Family, Point
from django_otel.multiprocess import server_group
from django_otel.multiprocess.format import JOINED_AT_CELL, KEYS_LENGTH_CELL, MAGIC, MAGIC_CELL, PID_CELL, Keys
from django_otel.multiprocess.lease import HAS_LOCKS, living_slots
from django_otel.multiprocess.processes import describe_processes
from django_otel.multiprocess.reader import Reader


@dataclass(frozen=True)
class Group:
    """A group's folder as it was found."""

    folder: Path
    #: The name of the settings; the master's pid for a group without one.
    owner_pid: int | None
    is_living: bool
    living: frozenset[int] = frozenset()
    #: Whether it may be another project's: its master is gone or in another container, and its name is a hash.
    is_foreign: bool = False


@dataclass
class Slot:
    """Files of one process in a group's folder."""

    number: int
    is_living: bool
    size_bytes: int
    series: int
    instruments: set[str] = field(default_factory=set)
    pid: int = 0
    joined_at_s: float = 0.0


def find_groups(config: Config) -> list[Group]:
    """This project's groups under every base folder, the living first. Errors: `Unusable` without file locks."""
    if not HAS_LOCKS:
        raise Unusable("This system has no file locks (fcntl).")
    found: dict[Path, Group] = {}
    for base in server_group.candidate_bases(config.metrics.shared_dir, config.surroundings):
        parent = server_group.find_parent(base)
        try:
            check_folder(parent)
            names = sorted(path.name for path in parent.iterdir())
        except OSError:
            continue
        for name in names:
            group = _read_group(parent / name, config)
            if group is not None:
                found.setdefault(group.folder, group)
    return sorted(found.values(), key=lambda group: (not group.is_living, str(group.folder)))


def _read_group(folder: Path, config: Config) -> Group | None:
    project = config.service_name or ""
    owner: int | None = None
    is_owned = False
    if config.metrics.group is not None:
        if folder.name != server_group.build_group_name(project, config.metrics.group, None):
            return None
    else:
        try:
            pid, began, _ = (folder / "owner").read_text().split(" ")
            owner = int(pid)
        except (OSError, ValueError):
            return None
        # Names are hashes over the master as it began; a master that is gone looks like another project's.
        if server_group.start_time(owner) == began:
            if folder.name != server_group.build_group_name(project, None, owner):
                return None
            is_owned = True
    try:
        living = find_living(folder)
    except OSError:
        return None
    is_foreign = owner is not None and not is_owned
    return Group(folder, owner, is_owned or bool(living), frozenset(living), is_foreign)


def open_folder(folder: Path) -> Group:
    """Return the group in a named folder. Errors: `Unusable`, `OSError`."""
    check_folder(folder)
    living = find_living(folder)
    return Group(folder, None, bool(living), frozenset(living))


def find_living(folder: Path) -> set[int]:
    """The slots that are held by a process. Errors: `Unusable`, `OSError`."""
    check_folder(folder)
    numbers = sorted(int(path.stem) for path in folder.glob("*.lock") if path.stem.isdigit())
    return living_slots(folder, numbers) if numbers else set()


class Outsider:
    """Reads a group's numbers without being one of its processes."""

    def __init__(self, folder: Path, *, shows_processes: bool = False) -> None:
        self.folder = folder
        self._shows_processes = shows_processes
        self._skipped: dict[str, int] = {}
        self._reader = Reader(folder, self._count_skipped)

    def _count_skipped(self, reason: str) -> None:
        self._skipped[reason] = self._skipped.get(reason, 0) + 1

    def collect(self) -> list[Family]:
        """Every family over all processes of the group, at this moment. Errors: `OSError` when the folder is gone."""
        check_folder(self.folder)
        return [
            *self._reader.collect(),
            *_build_state(self._skipped),
            *(describe_processes(self._reader.members, self.folder) if self._shows_processes else ()),
        ]

    def slots(self) -> list[Slot]:
        """Return the contents of each slot, for operators. Errors: `OSError` when the folder is gone."""
        numbers = self._reader.numbers()
        living = find_living(self.folder)
        found = []
        for number in numbers:
            files = [path for path in self.folder.glob(f"{number}.*") if path.suffix != ".lock"]
            slot = Slot(number, number in living, sum(path.stat().st_size for path in files), 0)
            with contextlib.suppress(OSError, ValueError, struct.error):
                _describe(self.folder, slot)
            found.append(slot)
        return found


def _describe(folder: Path, slot: Slot) -> None:
    header = struct.unpack("<5d", _read(folder / f"{slot.number}.cells", 5 * 8))
    if header[MAGIC_CELL] != MAGIC:
        return
    slot.joined_at_s, slot.pid = header[JOINED_AT_CELL], int(header[PID_CELL])
    keys = Keys()
    keys.read(_read(folder / f"{slot.number}.keys", int(header[KEYS_LENGTH_CELL])))
    slot.series = len(keys.entries)
    slot.instruments = {entry.definition.name for entry in keys.entries}


def _read(path: Path, size: int) -> bytes:
    descriptor = private_files.open_file(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, size, 0)
    finally:
        os.close(descriptor)


def _build_state(skipped: Mapping[str, int]) -> list[Family]:
    active = build_family("django_otel.shared.active", [Point((), 1.0)])
    if not skipped:
        return [active]
    points = [Point((("django_otel.reason", reason),), float(count)) for reason, count in sorted(skipped.items())]
    return [active, build_family("django_otel.shared.files.skipped", points)]
