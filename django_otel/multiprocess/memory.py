"""Shared memory of this process: the cells of its slot.

A process that takes a dead one's slot goes on from the counters and histograms
it finds there and zeroes the series that only a living process has. So every
count lives in exactly one place, and counters never go backwards.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

from django_otel.base import guard
from django_otel.metrics.attributes import identity
from django_otel.metrics.cells import Definition, Memory, cells_of
from django_otel.metrics.model import Attributes, Exemplar, Family
from django_otel.multiprocess.format import (
    ADOPTIONS_CELL,
    HEADER_BYTES,
    HEADER_CELLS,
    JOINED_AT_CELL,
    KEYS_LENGTH_CELL,
    LIVE_TYPES,
    MAGIC,
    MAGIC_CELL,
    MAX_KEYS_BYTES,
    NAMESPACE_CELL,
    PID_CELL,
    READY_CELL,
    RECORD,
    RECORD_SIZE,
    RING_OFFSET,
    RING_RECORDS,
    SEGMENT_BYTES,
    SEGMENT_CELLS,
    STARTED_CELL,
    Entry,
    Keys,
    is_live,
    last_sequence,
    pack_definition,
    pack_series,
)
from django_otel.multiprocess.processes import pid_namespace, start_ticks
from django_otel.multiprocess.slot_files import SlotFiles


class SharedMemory(Memory):
    """Cells in this process's slot. Errors of the constructor: `OSError`, among them `Unusable`."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._is_appending = False
        self._ring_next = 0
        self._sequence = 0
        #: States of files in the slot that could not be used: "foreign", "truncated", "damaged".
        self.problems: list[str] = []
        #: SDK metrics of the previous process, without gauges and up-down counters.
        self.inherited: list[Family] = []
        self._files = SlotFiles(folder)
        self.lease = self._files.lease
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def path(self, suffix: str) -> Path:
        """Return the file of this slot with that suffix."""
        return self._files.path(suffix)

    # Adoption.

    def _open(self) -> None:
        files = self._files
        size = os.fstat(files.cells).st_size
        header = os.pread(files.cells, 5 * 8, 0)
        self.keys = Keys()
        if size and (size < HEADER_BYTES or struct.unpack_from("<d", header)[0] != MAGIC):
            if size < HEADER_BYTES or struct.unpack_from("<d", header)[0]:
                self.problems.append("truncated" if size < HEADER_BYTES else "foreign")
            files.replace()
        elif size:
            committed = struct.unpack_from("<d", header, KEYS_LENGTH_CELL * 8)[0]
            length = int(committed) if 0 <= committed <= MAX_KEYS_BYTES else 0
            self.keys.read(os.pread(files.keys, length, 0))
            if self.keys.is_damaged or self.keys.length != committed:
                self.problems.append("damaged")
            if any((entry.base + entry.cells) * 8 > size for entry in self.keys.entries):
                # Series beyond the end are lost and start again at zero; the others go on.
                self.problems.append("truncated")
            end = max((entry.base + entry.cells for entry in self.keys.entries), default=HEADER_CELLS)
            whole = HEADER_BYTES - (HEADER_CELLS - end) // SEGMENT_CELLS * SEGMENT_BYTES
            if size > whole:
                # Grown by a process that died before it used it, or extended by another process: then it has holes.
                os.ftruncate(files.cells, whole)
        os.ftruncate(files.keys, self.keys.length)
        files.reserve(HEADER_BYTES)
        self._header_map = mmap.mmap(files.cells, HEADER_BYTES)
        self._header = memoryview(self._header_map).cast("d")
        self._adopt()

    def _adopt(self) -> None:
        header = self._header
        header[KEYS_LENGTH_CELL] = float(self.keys.length)
        header[ADOPTIONS_CELL] += 1.0
        header[JOINED_AT_CELL] = time.time()
        self._sign()
        header[MAGIC_CELL] = MAGIC
        self._known = {(entry.definition, identity(entry.attributes)): entry for entry in self.keys.entries}
        self._definition_indexes = {definition: index for index, (definition, _) in enumerate(self.keys.definitions)}
        #: Definitions that this process itself counts by.
        self._claimed: set[Definition] = set()
        self._per_definition: dict[Definition, int] = {}
        for entry in self.keys.entries:
            self._per_definition[entry.definition] = self._per_definition.get(entry.definition, 0) + 1
        self._next_cell = max((entry.base + entry.cells for entry in self.keys.entries), default=HEADER_CELLS)
        for entry in self.keys.entries:
            if is_live(entry.definition):
                view, base = self._files.locate(entry.base)
                for index in range(base, base + entry.cells):
                    view[index] = 0.0
        self._adopt_snapshot()
        # The dead process's exemplars stay, they are still true; ours come after them.
        self._sequence = last_sequence(self._header_map[:])
        self._ring_next = self._sequence % RING_RECORDS
        header[READY_CELL] = 1.0

    def _sign(self) -> None:
        """Note which process this is."""
        header = self._header
        header[PID_CELL], header[STARTED_CELL] = float(os.getpid()), float(start_ticks(os.getpid()))
        header[NAMESPACE_CELL] = float(pid_namespace())

    def _adopt_snapshot(self) -> None:
        path = self.path("snap")
        if not path.exists():
            return
        # Late: only a slot that another process has left has one.
        from django_otel.multiprocess.snapshot import read_snapshot, write_snapshot

        found = read_snapshot(path)
        if found is None:
            if path.exists():
                self.problems.append("damaged")
            return
        self.inherited = [family for family in found if family.metric_type not in LIVE_TYPES]
        if len(self.inherited) != len(found):
            # Readers take the slot for living now.
            with contextlib.suppress(OSError):
                write_snapshot(path, self.inherited)

    # Series.

    def has_room(self, definition: Definition, attributes: Attributes, limit: int) -> bool:
        if self._per_definition.get(definition, 0) < limit:
            return True
        return (definition, identity(attributes)) in self._known

    def place(
        self, definition: Definition, attributes: Attributes, start_time_unix_nano: int
    ) -> tuple[memoryview[float], int]:
        """Return where the cells of a series are, found or made; plain memory when the disk is full."""
        key = (definition, identity(attributes))
        entry = self._known.get(key)
        if entry is None and self._is_appending:
            # A signal handler in the middle of an append; the next look after the folder moves the series here.
            self.is_degraded = True
            return super().place(definition, attributes, start_time_unix_nano)
        self._claimed.add(definition)
        try:
            if entry is None:
                self._is_appending = True
                try:
                    entry = self._append(definition, attributes, start_time_unix_nano)
                finally:
                    self._is_appending = False
                self._known[key] = entry
            return self._files.locate(entry.base)
        except (OSError, ValueError) as error:
            self.is_degraded = True
            guard.warn_once(
                "shared memory growth",
                "django_otel: %s cannot grow (%s); new series of this process are not shared until it can.",
                self.path("cells"),
                error,
            )
            return super().place(definition, attributes, start_time_unix_nano)

    def _append(self, definition: Definition, attributes: Attributes, start_time_unix_nano: int) -> Entry:
        cells = cells_of(definition)
        base = self._next_cell
        room = SEGMENT_CELLS - (base - HEADER_CELLS) % SEGMENT_CELLS
        if cells > SEGMENT_CELLS:
            raise OSError(errno.EFBIG, "a histogram with so many buckets does not fit into a segment")
        if room < cells:
            base += room
        view, index = self._files.locate(base)
        # A killed process may have left something here that it never committed.
        for position in range(index, index + cells):
            view[position] = 0.0
        data = b""
        number = self._definition_indexes.get(definition)
        if number is None:
            number = len(self.keys.definitions)
            data = pack_definition(definition, time.time())
        data += pack_series(number, attributes, base, start_time_unix_nano)
        self._write_keys(data)
        if number == len(self.keys.definitions):
            self.keys.definitions.append((definition, time.time()))
            self._definition_indexes[definition] = number
        self._next_cell = base + cells
        self._per_definition[definition] = self._per_definition.get(definition, 0) + 1
        entry = Entry(definition, attributes, base, cells, start_time_unix_nano)
        self.keys.entries.append(entry)
        return entry

    def claim_definitions(self, newest: Mapping[str, tuple[Definition, float]]) -> bool:
        """Note that this process's definitions apply again, where an earlier one's look newer.

        So it is after a change was rolled back: what a dead process left in this
        slot is of an older date than what it was rolled back from. `newest`
        gives for each name the definition that is shown and when it was made,
        in seconds since the epoch. Return whether there were any. Errors: `OSError`.
        """
        joined_at_s = self._header[JOINED_AT_CELL]
        older = [
            definition
            for definition in self._claimed
            if definition in self._definition_indexes
            and (found := newest.get(definition.name)) is not None
            and found[0] != definition
            and found[1] < joined_at_s
        ]
        if self._is_appending:
            return False
        self._is_appending = True
        try:
            for definition in older:
                made_at_s = time.time()
                self._write_keys(pack_definition(definition, made_at_s))
                self.keys.definitions.append((definition, made_at_s))
        finally:
            self._is_appending = False
        return bool(older)

    def _write_keys(self, data: bytes) -> None:
        if os.pwrite(self._files.keys, data, self.keys.length) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.keys.length += len(data)
        # Last: before this a reader, or the next process, does not see the entry.
        self._header[KEYS_LENGTH_CELL] = float(self.keys.length)

    def mark(self, definition: Definition, attributes: Attributes) -> int | None:
        entry = self._known.get((definition, identity(attributes)))
        return None if entry is None else entry.base

    def put_exemplar(self, mark: int, bucket: int, exemplar: Exemplar) -> None:
        """Keep an exemplar in the slot's ring of 64, for the other processes; `mark` is the series's first cell."""
        self._sequence += 1
        content = (
            self._sequence, mark, bucket, exemplar.value, exemplar.time_unix_s,
            exemplar.trace_id >> 64, exemplar.trace_id & (1 << 64) - 1, exemplar.span_id,
        )  # fmt: skip
        packed = RECORD.pack(*content)
        offset = RING_OFFSET + self._ring_next * RECORD_SIZE
        self._header_map[offset : offset + RECORD_SIZE] = packed + struct.pack("<Q", zlib.crc32(packed))
        self._ring_next = (self._ring_next + 1) % RING_RECORDS

    # The end.

    def is_intact(self) -> bool:
        """Return whether the files are still where other processes look for them."""
        return self._files.is_intact()

    def restore_size(self) -> bool:
        """Extend a truncated file to the mapped length: access beyond its end kills the process.

        Return whether it was cut. Errors: `OSError`.
        """
        if os.fstat(self._files.keys).st_size < self.keys.length and not self._is_appending:
            self._is_appending = True
            try:
                self._restore_keys()
            finally:
                self._is_appending = False
        size = self._files.mapped_bytes()
        if os.fstat(self._files.cells).st_size >= size:
            return False
        self._files.reserve(size)
        if self._header[MAGIC_CELL] != MAGIC:
            self._header[ADOPTIONS_CELL] += 1.0
            self._header[JOINED_AT_CELL] = time.time()
            self._sign()
            self._header[KEYS_LENGTH_CELL] = float(self.keys.length)
            self._header[READY_CELL] = 1.0
            self._header[MAGIC_CELL] = MAGIC
        return True

    def _restore_keys(self) -> None:
        """Rewrite the dictionary from memory."""
        data = b"".join(
            [
                *(pack_definition(*defined) for defined in self.keys.definitions),
                *(
                    pack_series(
                        self._definition_indexes[entry.definition], entry.attributes, entry.base,
                        entry.start_time_unix_nano,
                    )
                    for entry in self.keys.entries
                ),
            ]
        )  # fmt: skip
        self._header[KEYS_LENGTH_CELL] = 0.0
        os.ftruncate(self._files.keys, 0)
        self.keys.length = 0
        # Readers forget what they know of the slot.
        self._header[ADOPTIONS_CELL] += 1.0
        self._write_keys(data)

    def close(self) -> None:
        """Close the files; mapped views stay valid as long as a series uses them."""
        self._files.close()
