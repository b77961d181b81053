"""Reader of all slots of a shared folder.

Any process reads all slots with `pread`, never through a mapping: truncating a
mapped file kills the process that reads the mapping.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from django_otel.base import guard
from django_otel.base.private_files import open_file
from django_otel.metrics.cells import Definition
from django_otel.metrics.merging import merge_processes
from django_otel.metrics.model import Family
from django_otel.multiprocess.format import (
    ADOPTIONS_CELL,
    HEADER_BYTES,
    JOINED_AT_CELL,
    KEYS_LENGTH_CELL,
    MAGIC,
    MAGIC_CELL,
    MAX_CELLS_BYTES,
    MAX_KEYS_BYTES,
    MAX_SLOTS,
    NAMESPACE_CELL,
    PID_CELL,
    READY_CELL,
    STARTED_CELL,
)
from django_otel.multiprocess.layout import Instrument, Series, SlotLayout
from django_otel.multiprocess.lease import living_slots
from django_otel.multiprocess.merge import MergePlan
from django_otel.multiprocess.processes import Member
from django_otel.multiprocess.snapshot import read_snapshot

#: One slot in a scrape: its number, its layout, the bytes of its cells.
_Loaded = tuple[int, SlotLayout, bytes]


def _is_slot(name: str) -> bool:
    # Only names as we write them: "05" and "²" are foreign.
    return name.isascii() and name.isdecimal() and str(int(name)) == name and int(name) < MAX_SLOTS


class Reader:
    """Reads all slots of a folder and adds them up; `on_skip(reason)` is called once for each unreadable file."""

    def __init__(self, folder: Path, on_skip: Callable[[str], None] = lambda reason: None) -> None:
        self.folder = folder
        self._on_skip = on_skip
        #: Scrapes may run at once, in threads; what is remembered is changed by one of them at a time.
        self._lock = threading.Lock()
        self._layouts: dict[int, SlotLayout] = {}
        self._instruments: dict[Definition, Instrument] = {}
        self._plan: MergePlan | None = None
        self._snapshots: dict[int, tuple[tuple[int, int, int], list[Family]]] = {}
        #: The living processes, as the last merge found them.
        self.members: list[Member] = []
        self._warned: set[tuple[int, str]] = set()

    def numbers(self) -> list[int]:
        """The slots that have numbers."""
        try:
            found = [path.name[:-6] for path in self.folder.iterdir() if path.name.endswith(".cells")]
        except OSError:
            return []
        return sorted(int(name) for name in found if _is_slot(name))

    def _skip(self, number: int, reason: str) -> None:
        # A damaged file stays damaged: counted once, not with every scrape.
        if (number, reason) not in self._warned:
            self._warned.add((number, reason))
            self._on_skip(reason)

    def merge(self) -> list[Family]:
        """Add up our own instruments over all slots, living and free."""
        numbers = self.numbers()
        living = living_slots(self.folder, numbers) if numbers else set()
        with self._lock:
            for number in self._layouts.keys() - set(numbers):
                del self._layouts[number]
            loaded: list[_Loaded] = []
            for number in numbers:
                with guard.contained("reading a slot of the shared folder"):
                    found = self._load(number, number in living)
                    if found is not None:
                        loaded.append((number, *found))
            state = [
                (number, layout, len(layout.series), len(layout.definitions),
                 # Only taken, the slot still has the dead process's gauges.
                 number in living and struct.unpack_from("<d", data, READY_CELL * 8)[0] == 1.0,
                 # Beyond the end of a truncated file there is nothing to read.
                 min(len(data) // 8, layout.end))
                for number, layout, data in loaded
            ]  # fmt: skip
            if self._plan is None or self._plan.state != state:
                self._plan = MergePlan(state)
                self._forget()
            slots = [data for _, _, data in loaded]
            self.members = _find_members(self._plan, slots)
            return self._plan.read(slots)

    def collect(self) -> list[Family]:
        """Return every family over all slots, for a process that holds none of them."""
        merged = self.merge()
        snapshots = list(self.snapshots())
        living = living_slots(self.folder, [number for number, _ in snapshots]) if snapshots else set()
        return [*merged, *merge_processes((families, number in living) for number, families in snapshots)]

    def newest_definitions(self) -> dict[str, tuple[Definition, float]]:
        """Return the last merged value of each name and its time, in seconds since the epoch."""
        plan = self._plan
        return {} if plan is None else plan.newest

    def _forget(self) -> None:
        """Drop the series that no slot has any more, when they are as many as those in use."""
        known = sum(len(instrument.series) for instrument in self._instruments.values())
        used: set[Series] = set()
        for layout in self._layouts.values():
            used.update(layout.series)
        if known <= 2 * len(used):
            return
        for instrument in self._instruments.values():
            instrument.series = {key: series for key, series in instrument.series.items() if series in used}

    def _load(self, number: int, is_living: bool) -> tuple[SlotLayout, bytes] | None:
        descriptor = self._open(number, "cells")
        if descriptor is None:
            return None
        try:
            status = os.fstat(descriptor)
            if status.st_size > MAX_CELLS_BYTES:
                self._skip(number, "foreign")
                return None
            data = os.pread(descriptor, status.st_size, 0)
        finally:
            os.close(descriptor)
        if len(data) < HEADER_BYTES:
            # A living process may just be making the file.
            if not (is_living and not data):
                self._skip(number, "truncated")
            return None
        header = struct.unpack_from("<6d", data)
        if header[MAGIC_CELL] != MAGIC:
            if not (is_living and not header[MAGIC_CELL]):
                self._skip(number, "foreign")
            return None
        layout = self._layout(number, status.st_ino, header)
        return None if layout is None else (layout, data)

    def _open(self, number: int, suffix: str) -> int | None:
        """Open a file of a slot; None, and the slot is counted as skipped, where it cannot be read."""
        try:
            return open_file(self.folder / f"{number}.{suffix}", os.O_RDONLY)
        except OSError:
            self._skip(number, "unreadable")
            return None

    def _layout(self, number: int, inode: int, header: Sequence[float]) -> SlotLayout | None:
        committed = header[KEYS_LENGTH_CELL]
        # A process that takes a slot may cut damaged keys off and write others in their place.
        stamp = (inode, header[ADOPTIONS_CELL], header[JOINED_AT_CELL])
        layout = self._layouts.get(number)
        if layout is None or layout.stamp != stamp or layout.length > committed:
            layout = self._layouts[number] = SlotLayout(stamp)
        if not 0 <= committed <= MAX_KEYS_BYTES:
            self._skip(number, "damaged")
            committed = 0.0
        length = int(committed)
        if layout.length < length and not layout.is_damaged:
            descriptor = self._open(number, "keys")
            if descriptor is None:
                return None
            try:
                layout.read(os.pread(descriptor, length - layout.length, layout.length), self._instruments)
            finally:
                os.close(descriptor)
            if layout.is_damaged or layout.length < length:
                self._skip(number, "damaged")
        return layout

    def snapshots(self, *, except_slot: int | None = None) -> Iterator[tuple[int, list[Family]]]:
        """Return the SDK's metrics of each slot; of damaged ones the last good copy."""
        for number in self.numbers():
            if number == except_slot:
                continue
            path = self.folder / f"{number}.snap"
            try:
                status = path.lstat()
            except OSError:
                continue
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            known = self._snapshots.get(number)
            if known is None or known[0] != stamp:
                families = read_snapshot(path)
                if families is None:
                    self._skip(number, "damaged")
                    if known is not None:
                        yield number, known[1]
                    continue
                known = (stamp, families)
                self._snapshots[number] = known
            yield number, known[1]


def _find_members(plan: MergePlan, slots: Sequence[bytes]) -> list[Member]:
    """Return the living processes whose slots a plan is for."""
    members = []
    for (number, _, _, _, is_living, _), bases, data in zip(plan.state, plan.active_bases, slots, strict=True):
        if is_living:
            header = struct.unpack_from("<8d", data)
            active = sum(struct.unpack_from("<d", data, base * 8)[0] for base in bases)
            pid, started, namespace = (int(header[cell]) for cell in (PID_CELL, STARTED_CELL, NAMESPACE_CELL))
            members.append(Member(number, pid, started, namespace, active))
    return members
