"""Numbers that all worker processes share: leased slots in a folder, and their merge.

Every process holds one numbered slot for its life by `flock` on `N.lock`; the
kernel frees it at death, however the process dies, so no pid is ever compared.
A slot's numbers live in the memory-mapped `N.cells`, described by the
append-only `N.keys`; what was measured through the SDK stands in `N.snap`. A
process that takes a dead one's slot goes on from the counters and histograms
it finds there and zeroes what only a living process has. So every count lives
in exactly one place, and counters never go backwards.

Any process reads all slots with `pread`, never through a mapping: a file that
is truncated beneath a mapping kills the reader.
"""

from __future__ import annotations

import array
import bisect
import contextlib
import errno
import json
import math
import mmap
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django_otel.base import guard
from django_otel.base.private_files import Unusable, open_file
from django_otel.metrics.cells import Definition, Memory, cells_of, identity
from django_otel.metrics.model import (
    OWN_SCOPE,
    Attributes,
    Exemplar,
    ExponentialValue,
    Family,
    HistogramValue,
    Kind,
    Point,
    Scope,
)

try:
    import fcntl
except ImportError:  # Windows: no leases, so plain memory.
    fcntl = None  # type: ignore[assignment]

#: Whether this system can share numbers at all.
HAS_LOCKS = fcntl is not None

#: File format; a file of another format is foreign and skipped.
MAGIC = 20261123.0
_MAGIC, _KEYS_LENGTH, _ADOPTIONS, _JOINED_AT_S, _PID, _READY = range(6)
_RING_OFFSET = 1024
_RING_RECORDS = 64
_RECORD = struct.Struct("<QIIddQQQ")
_RECORD_SIZE = 64
_HEADER_CELLS = 1024
_HEADER_BYTES = _HEADER_CELLS * 8
_SEGMENT_CELLS = 8192
_SEGMENT_BYTES = _SEGMENT_CELLS * 8
_ENTRY = struct.Struct("<II")
_MAX_SLOTS = 4096
#: How long a joiner and a probe wait for `join.lock`, in seconds.
_JOIN_TIMEOUT_S = 2.0
_PROBE_TIMEOUT_S = 0.5
_MAX_KEYS_BYTES = 64 << 20
#: Beyond this a slot does not grow, and a file is not read: a length may be garbage.
_MAX_CELLS_BYTES = 256 << 20
_LIVE_KINDS = frozenset({Kind.UP_DOWN_COUNTER, Kind.GAUGE})


#: What reading a file raises whose checksums are right and whose content is not ours.
_MALFORMED = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError)


# --- Leases. ---


class Lease:
    """The lowest free slot of a folder, held until `close()` or the process's death.

    Slots below `first` are passed over, and those whose lock is no file of our own.
    """

    def __init__(self, folder: Path, first: int = 0) -> None:
        self.folder = folder
        self._descriptor = -1
        with _joining(folder, fcntl.LOCK_EX):
            for number in range(first, _MAX_SLOTS):
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
        raise Unusable(f"{folder} has {_MAX_SLOTS} slots in use.")

    def renew(self) -> None:
        """Make the lock file anew after somebody has removed it; the caller still holds the slot's cells."""
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
        """Whether the lock is still where others look for it."""
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


def _mark_unready(path: Path) -> None:
    """Note in a slot's cells that its new owner has not zeroed yet what only a living process has."""
    try:
        descriptor = open_file(path, os.O_RDWR)
    except OSError:
        return
    try:
        if os.fstat(descriptor).st_size >= _HEADER_BYTES:
            os.pwrite(descriptor, struct.pack("<d", 0.0), _READY * 8)
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
        if not _lock_in_time(descriptor, how) and how == fcntl.LOCK_EX:
            raise Unusable(f"{path} is held by another process for more than {_JOIN_TIMEOUT_S} s.")
        yield
    finally:
        os.close(descriptor)


def _lock_in_time(descriptor: int, how: int) -> bool:
    deadline_s = time.monotonic() + (_JOIN_TIMEOUT_S if how == fcntl.LOCK_EX else _PROBE_TIMEOUT_S)
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
    """Which of these slots are held by a process, this one included."""
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


# --- The dictionary of a slot. ---


@dataclass(slots=True)
class Entry:
    """One series of a slot: where its cells are."""

    definition: Definition
    attributes: Attributes
    base: int
    cells: int
    start_time_unix_nano: int


@dataclass(slots=True)
class Keys:
    """A slot's dictionary, as far as it was read."""

    length: int = 0
    definitions: list[tuple[Definition, float]] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    is_damaged: bool = False

    def read(self, data: bytes) -> None:
        """Take in further bytes; stop at the first entry that is torn or damaged."""
        position = 0
        while position + _ENTRY.size <= len(data):
            size, checksum = _ENTRY.unpack_from(data, position)
            payload = data[position + _ENTRY.size : position + _ENTRY.size + size]
            if len(payload) < size or zlib.crc32(payload) != checksum:
                self.is_damaged = True
                break
            try:
                self._take(json.loads(payload))
            except _MALFORMED:
                self.is_damaged = True
                break
            position += _ENTRY.size + size
        self.length += position

    def _take(self, content: Any) -> None:
        if "d" in content:
            self.definitions.append(_parse_definition(content["d"]))
            return
        index, attributes, base, start = content["s"]
        definition = self.definitions[index][0]
        base = int(base)
        if not _HEADER_CELLS <= base < _MAX_CELLS_BYTES // 8:
            raise ValueError("cells outside the file")
        self.entries.append(Entry(definition, _parse_attributes(attributes), base, cells_of(definition), int(start)))


def _parse_definition(content: Any) -> tuple[Definition, float]:
    """A definition and when it was made, in seconds since the epoch."""
    name, kind, unit, description, bounds, aggregation, defined_at_s = content
    if not all(isinstance(text, str) for text in (name, unit, description, aggregation)):
        raise TypeError("not texts")
    return Definition(name, Kind(kind), unit, description, _parse_bounds(bounds), aggregation), float(defined_at_s)


def _parse_bounds(bounds: Any) -> tuple[float, ...]:
    if not all(isinstance(bound, int | float) for bound in bounds) or len(bounds) >= _SEGMENT_CELLS:
        raise TypeError("no bounds")
    return tuple(bounds)


def _parse_attributes(pairs: Any) -> Attributes:
    return tuple((str(key), _parse_attribute(value)) for key, value in pairs)


def _parse_attribute(value: Any) -> Any:
    if value.__class__ is str:
        # Nearly all are; the checks below take most of the time of a first scrape.
        return value
    if isinstance(value, list):
        value = tuple(value)
    items = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(item, str | bool | int | float) for item in items):
        raise TypeError("no attribute")
    return value


def _pack_definition(definition: Definition, defined_at_s: float) -> bytes:
    return _pack_entry(
        {
            "d": [
                definition.name, definition.kind.value, definition.unit, definition.description,
                definition.bounds, definition.aggregation, defined_at_s,
            ]
        }
    )  # fmt: skip


def _pack_series(definition_index: int, attributes: Attributes, base: int, start_time_unix_nano: int) -> bytes:
    return _pack_entry({"s": [definition_index, attributes, base, start_time_unix_nano]})


def _pack_entry(content: Any) -> bytes:
    payload = json.dumps(content, separators=(",", ":")).encode()
    return _ENTRY.pack(len(payload), zlib.crc32(payload)) + payload


# --- The memory of this process. ---


class SharedMemory(Memory):
    """Cells in this process's slot. Errors of the constructor: `OSError`, among them `Unusable`."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._segments: list[memoryview[float]] = []
        self._maps: list[mmap.mmap] = []
        self._cells_file = self._keys_file = -1
        self._is_appending = False
        self._ring_next = 0
        self._sequence = 0
        #: What was found in the slot and could not be used: "foreign", "truncated", "damaged".
        self.problems: list[str] = []
        #: What the process before had measured through the SDK, without what only a living one has.
        self.inherited: list[Family] = []
        self.lease = self._take_slot(folder)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _take_slot(self, folder: Path) -> Lease:
        """The lowest free slot whose files are, or can be made, our own."""
        first = 0
        while True:
            lease = Lease(folder, first)
            try:
                for suffix in ("cells", "keys"):
                    path = folder / f"{lease.number}.{suffix}"
                    if path.is_symlink() or (path.exists() and not path.is_file()):
                        path.unlink()
                self._cells_file = open_file(folder / f"{lease.number}.cells", os.O_RDWR | os.O_CREAT)
                # Somebody who tidies up may have removed the lock of a process that lives.
                fcntl.flock(self._cells_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._keys_file = open_file(folder / f"{lease.number}.keys", os.O_RDWR | os.O_CREAT)
                return lease
            except OSError as error:
                self._close_files()
                lease.close()
                is_this_slot = isinstance(error, Unusable | BlockingIOError | IsADirectoryError | PermissionError)
                if not is_this_slot or lease.number + 1 >= _MAX_SLOTS:
                    raise
                first = lease.number + 1
            except BaseException:
                self._close_files()
                lease.close()
                raise

    def path(self, suffix: str) -> Path:
        """The file of this slot with that suffix."""
        return self.folder / f"{self.lease.number}.{suffix}"

    # Adoption.

    def _open(self) -> None:
        size = os.fstat(self._cells_file).st_size
        header = os.pread(self._cells_file, 5 * 8, 0)
        self.keys = Keys()
        if size and (size < _HEADER_BYTES or struct.unpack_from("<d", header)[0] != MAGIC):
            if size < _HEADER_BYTES or struct.unpack_from("<d", header)[0]:
                self.problems.append("truncated" if size < _HEADER_BYTES else "foreign")
            self._begin_anew()
        elif size:
            committed = struct.unpack_from("<d", header, _KEYS_LENGTH * 8)[0]
            length = int(committed) if 0 <= committed <= _MAX_KEYS_BYTES else 0
            self.keys.read(os.pread(self._keys_file, length, 0))
            if self.keys.is_damaged or self.keys.length != committed:
                self.problems.append("damaged")
            if any((entry.base + entry.cells) * 8 > size for entry in self.keys.entries):
                # What is beyond the end is gone and starts again at zero; the others go on.
                self.problems.append("truncated")
            end = max((entry.base + entry.cells for entry in self.keys.entries), default=_HEADER_CELLS)
            whole = _HEADER_BYTES - (_HEADER_CELLS - end) // _SEGMENT_CELLS * _SEGMENT_BYTES
            if size > whole:
                # Grown by a process that died before it used it, or stretched by somebody: then it has holes.
                os.ftruncate(self._cells_file, whole)
        os.ftruncate(self._keys_file, self.keys.length)
        self._reserve(_HEADER_BYTES)
        self._header_map = mmap.mmap(self._cells_file, _HEADER_BYTES)
        self._header = memoryview(self._header_map).cast("d")
        self._adopt()

    def _begin_anew(self) -> None:
        """Make new files in the place of foreign ones. Those are not cut: somebody may have them mapped."""
        self._close_files()
        for suffix in ("keys", "cells"):
            self.path(suffix).unlink(missing_ok=True)
        self._cells_file = open_file(self.path("cells"), os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._cells_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._keys_file = open_file(self.path("keys"), os.O_RDWR | os.O_CREAT)

    def _adopt(self) -> None:
        header = self._header
        header[_KEYS_LENGTH] = float(self.keys.length)
        header[_ADOPTIONS] += 1.0
        header[_JOINED_AT_S] = time.time()
        header[_PID] = float(os.getpid())
        header[_MAGIC] = MAGIC
        self._known = {(entry.definition, identity(entry.attributes)): entry for entry in self.keys.entries}
        self._definition_indexes = {definition: index for index, (definition, _) in enumerate(self.keys.definitions)}
        #: Definitions that this process itself counts by.
        self._claimed: set[Definition] = set()
        self._per_definition: dict[Definition, int] = {}
        for entry in self.keys.entries:
            self._per_definition[entry.definition] = self._per_definition.get(entry.definition, 0) + 1
        self._next_cell = max((entry.base + entry.cells for entry in self.keys.entries), default=_HEADER_CELLS)
        for entry in self.keys.entries:
            if entry.definition.kind in _LIVE_KINDS:
                view, base = self._locate(entry.base)
                for index in range(base, base + entry.cells):
                    view[index] = 0.0
        self._adopt_snapshot()
        # The dead process's exemplars stay, they are still true; ours come after them.
        self._sequence = _last_sequence(self._header_map[:])
        self._ring_next = self._sequence % _RING_RECORDS
        header[_READY] = 1.0

    def _adopt_snapshot(self) -> None:
        path = self.path("snap")
        found = read_snapshot(path)
        if found is None:
            if path.exists():
                self.problems.append("damaged")
            return
        self.inherited = [family for family in found if family.kind not in _LIVE_KINDS]
        if len(self.inherited) != len(found):
            # Readers take the slot for living now.
            with contextlib.suppress(OSError):
                write_snapshot(path, self.inherited)

    # Places.

    def _reserve(self, size: int) -> None:
        """Make the file that large for certain: a full disk is an error here and not a bus error in a request."""
        if size > _MAX_CELLS_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        here = os.fstat(self._cells_file).st_size
        if here >= size:
            return
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._cells_file, here, size - here)
        else:  # macOS
            os.ftruncate(self._cells_file, size)

    def _locate(self, base: int) -> tuple[memoryview[float], int]:
        """The view and the index in it of the cell number `base` of the file."""
        segment, index = divmod(base - _HEADER_CELLS, _SEGMENT_CELLS)
        while len(self._segments) <= segment:
            offset = _HEADER_BYTES + len(self._segments) * _SEGMENT_BYTES
            self._reserve(offset + _SEGMENT_BYTES)
            mapped = mmap.mmap(self._cells_file, _SEGMENT_BYTES, offset=offset)
            self._maps.append(mapped)
            self._segments.append(memoryview(mapped).cast("d"))
        return self._segments[segment], index

    def has_room(self, definition: Definition, attributes: Attributes, limit: int) -> bool:
        if self._per_definition.get(definition, 0) < limit:
            return True
        return (definition, identity(attributes)) in self._known

    def place(
        self, definition: Definition, attributes: Attributes, start_time_unix_nano: int
    ) -> tuple[memoryview[float], int]:
        """Where the cells of a series are, found or made; plain memory when the disk is full."""
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
            return self._locate(entry.base)
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
        room = _SEGMENT_CELLS - (base - _HEADER_CELLS) % _SEGMENT_CELLS
        if cells > _SEGMENT_CELLS:
            raise OSError(errno.EFBIG, "a histogram with so many buckets does not fit into a segment")
        if room < cells:
            base += room
        view, index = self._locate(base)
        # A killed process may have left something here that it never committed.
        for position in range(index, index + cells):
            view[position] = 0.0
        data = b""
        number = self._definition_indexes.get(definition)
        if number is None:
            number = len(self.keys.definitions)
            data = _pack_definition(definition, time.time())
        data += _pack_series(number, attributes, base, start_time_unix_nano)
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
        """Note that this process's definitions are in force again, where an earlier one's look newer.

        So it is after a change was rolled back: what a dead process left in this
        slot is of an older date than what it was rolled back from. `newest`
        gives for each name the definition that is shown and when it was made,
        in seconds since the epoch. Return whether there were any. Errors: `OSError`.
        """
        joined_at_s = self._header[_JOINED_AT_S]
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
                self._write_keys(_pack_definition(definition, made_at_s))
                self.keys.definitions.append((definition, made_at_s))
        finally:
            self._is_appending = False
        return bool(older)

    def _write_keys(self, data: bytes) -> None:
        if os.pwrite(self._keys_file, data, self.keys.length) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.keys.length += len(data)
        # Last: before this a reader, or the next process, does not see the entry.
        self._header[_KEYS_LENGTH] = float(self.keys.length)

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
        packed = _RECORD.pack(*content)
        offset = _RING_OFFSET + self._ring_next * _RECORD_SIZE
        self._header_map[offset : offset + _RECORD_SIZE] = packed + struct.pack("<Q", zlib.crc32(packed))
        self._ring_next = (self._ring_next + 1) % _RING_RECORDS

    # The end.

    def is_intact(self) -> bool:
        """Whether the files are still where others look for them."""
        try:
            here, there = os.fstat(self._cells_file), self.path("cells").lstat()
            keys_here, keys_there = os.fstat(self._keys_file), self.path("keys").lstat()
        except OSError:
            return False
        return here.st_ino == there.st_ino and keys_here.st_ino == keys_there.st_ino

    def restore_size(self) -> bool:
        """Make a file that somebody has cut as long as what is mapped: touching what lies beyond kills.

        Return whether it was cut. Errors: `OSError`.
        """
        if os.fstat(self._keys_file).st_size < self.keys.length and not self._is_appending:
            self._is_appending = True
            try:
                self._restore_keys()
            finally:
                self._is_appending = False
        size = _HEADER_BYTES + len(self._segments) * _SEGMENT_BYTES
        if os.fstat(self._cells_file).st_size >= size:
            return False
        self._reserve(size)
        if self._header[_MAGIC] != MAGIC:
            self._header[_ADOPTIONS] += 1.0
            self._header[_JOINED_AT_S] = time.time()
            self._header[_PID] = float(os.getpid())
            self._header[_KEYS_LENGTH] = float(self.keys.length)
            self._header[_READY] = 1.0
            self._header[_MAGIC] = MAGIC
        return True

    def _restore_keys(self) -> None:
        """Write the dictionary anew, from memory."""
        data = b"".join(
            [
                *(_pack_definition(*defined) for defined in self.keys.definitions),
                *(
                    _pack_series(
                        self._definition_indexes[entry.definition], entry.attributes, entry.base,
                        entry.start_time_unix_nano,
                    )
                    for entry in self.keys.entries
                ),
            ]
        )  # fmt: skip
        self._header[_KEYS_LENGTH] = 0.0
        os.ftruncate(self._keys_file, 0)
        self.keys.length = 0
        # Readers forget what they know of the slot.
        self._header[_ADOPTIONS] += 1.0
        self._write_keys(data)

    def close(self) -> None:
        """Close the files; mapped views stay valid as long as a series uses them."""
        self._close_files()
        self.lease.close()

    def _close_files(self) -> None:
        descriptors = (self._cells_file, self._keys_file)
        self._cells_file = self._keys_file = -1
        for descriptor in descriptors:
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(descriptor)


# --- Snapshots of what was measured through the SDK. ---


def write_snapshot(path: Path, families: Sequence[Family]) -> None:
    """Write families to a temporary name and rename it, so that a reader sees the old or the new, whole."""
    payload = json.dumps([_dump_family(family) for family in families], separators=(",", ":")).encode()
    temporary = path.with_suffix(".tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        try:
            data = _ENTRY.pack(len(payload), zlib.crc32(payload)) + payload
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
        temporary.rename(path)
    except BaseException:
        # Space that nobody else would give back.
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def read_snapshot(path: Path) -> list[Family] | None:
    """The families of a snapshot; None when there is none or it is damaged."""
    try:
        descriptor = open_file(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        data = os.pread(descriptor, _MAX_KEYS_BYTES, 0)
    finally:
        os.close(descriptor)
    if len(data) < _ENTRY.size:
        return None
    size, checksum = _ENTRY.unpack_from(data)
    payload = data[_ENTRY.size : _ENTRY.size + size]
    if len(payload) != size or zlib.crc32(payload) != checksum:
        return None
    try:
        return [_parse_family(item) for item in json.loads(payload)]
    except _MALFORMED:
        return None


def _dump_family(family: Family) -> Any:
    return [
        family.name, family.kind.value, family.unit, family.description,
        [family.scope.name, family.scope.version, family.scope.schema_url, family.scope.attributes],
        [
            [point.attributes, _dump_value(point.value), point.start_time_unix_nano,
             [[e.value, e.time_unix_s, f"{e.trace_id:x}", f"{e.span_id:x}"] for e in point.exemplars]]
            for point in family.points
        ],
    ]  # fmt: skip


def _dump_value(value: Any) -> Any:
    if isinstance(value, HistogramValue):
        return {"b": value.bounds, "c": value.buckets, "s": value.sum}
    if isinstance(value, ExponentialValue):
        return {"e": [value.scale, value.zero_count, value.positive_offset, value.positive, value.negative_offset,
                      value.negative, value.sum, value.count]}  # fmt: skip
    return value


def _parse_family(item: Any) -> Family:
    name, kind, unit, description, scope, points = item
    if not all(isinstance(text, str) for text in (name, unit, description, *scope[:3])):
        raise TypeError("not texts")
    family = Family(
        name, Kind(kind), unit, description, Scope(scope[0], scope[1], scope[2], _parse_attributes(scope[3]))
    )
    for attributes, value, start, exemplars in points:
        found = [Exemplar(float(e[0]), float(e[1]), int(e[2], 16), int(e[3], 16)) for e in exemplars]
        parsed = _parse_value(value)
        expected = {Kind.HISTOGRAM: HistogramValue, Kind.EXPONENTIAL_HISTOGRAM: ExponentialValue}.get(family.kind)
        if not (_is_number(parsed) if expected is None else isinstance(parsed, expected)):
            raise TypeError("a value of another kind")
        family.points.append(Point(_parse_attributes(attributes), parsed, found, int(start)))
    return family


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parse_value(value: Any) -> Any:
    if not isinstance(value, dict):
        if not _is_number(value):
            raise TypeError("no number")
        return value
    if "e" in value:
        scale, zero_count, positive_offset, positive, negative_offset, negative, total, count = value["e"]
        whole = (scale, zero_count, positive_offset, *positive, negative_offset, *negative, count)
        if not all(isinstance(number, int) for number in whole) or not _is_number(total):
            raise TypeError("no exponential histogram")
        return ExponentialValue(scale, zero_count, positive_offset, positive, negative_offset, negative, total, count)
    bounds, buckets = _parse_bounds(value["b"]), list(value["c"])
    if len(buckets) != len(bounds) + 1 or not all(map(_is_number, (*buckets, value["s"]))):
        raise TypeError("no histogram")
    return HistogramValue(bounds, buckets, value["s"])


# --- The merge. ---


#: What begins the payload of a series, up to the number of its definition.
_SERIES_START = b'{"s":['


class _Series:
    """One series, whichever slots have it, so that its attributes are parsed and kept once. Compared by identity."""

    __slots__ = ("attributes", "instrument")

    def __init__(self, instrument: _Instrument, attributes: Attributes = ()) -> None:
        self.instrument = instrument
        self.attributes = attributes


class _Instrument:
    """A definition and its series over all slots, by the bytes that describe them."""

    __slots__ = ("definition", "series")

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.series: dict[bytes, _Series] = {}


class _Layout:
    """A slot's dictionary as a reader remembers it between two scrapes: 24 bytes per series.

    Most series are the same in all workers, so equal bytes are parsed once, and
    what is new is parsed by a single call: one call per entry would take longer
    than all the rest of the first scrape.
    """

    def __init__(self, stamp: tuple[float, ...]) -> None:
        self.stamp = stamp
        self.length = 0
        self.is_damaged = False
        self.definitions: list[tuple[_Instrument, float]] = []
        self.series: list[_Series] = []
        self.bases = array.array("q")
        self.starts = array.array("q")
        #: No series has a cell at or after this one.
        self.end = 0

    def read(self, data: bytes, instruments: dict[Definition, _Instrument]) -> None:
        """Take in further bytes; stop at the first entry that is torn or damaged."""
        position, size = 0, len(data)
        found: list[_Series] = []
        fresh: dict[bytes, list[_Series]] = {}
        bases: list[bytes] = []
        starts: list[bytes] = []
        # What a payload begins with, up to the definition's number, is the same for a whole instrument.
        by_prefix: dict[bytes, _Instrument] = {}
        unpack, header, checksum_of = _ENTRY.unpack_from, _ENTRY.size, zlib.crc32
        try:
            while position + header <= size:
                length, checksum = unpack(data, position)
                end = position + header + length
                payload = data[position + header : end]
                if checksum_of(payload) != checksum or len(payload) < length:
                    raise ValueError("torn or damaged")
                head, base, start = payload.rsplit(b",", 2)
                prefix, _, attributes = head.partition(b",")
                instrument = by_prefix.get(prefix)
                if instrument is None:
                    if not prefix.startswith(_SERIES_START):
                        definition, defined_at_s = _parse_definition(json.loads(payload)["d"])
                        instrument = instruments.setdefault(definition, _Instrument(definition))
                        self.definitions.append((instrument, defined_at_s))
                        position = end
                        continue
                    instrument = by_prefix[prefix] = self.definitions[int(prefix[len(_SERIES_START) :])][0]
                series = instrument.series.get(attributes)
                if series is None:
                    series = instrument.series[attributes] = _Series(instrument)
                    fresh.setdefault(attributes, []).append(series)
                found.append(series)
                bases.append(base)
                # Without the brackets that close the entry.
                starts.append(start[:-2])
                position = end
        except _MALFORMED:
            self.is_damaged = True
        try:
            self._take(found, fresh, bases, starts)
        except _MALFORMED:
            # A checksum that is right and a content that is not: foreign, and nothing in it is to be trusted.
            self.is_damaged = True
            for attributes, made in fresh.items():
                for series in made:
                    del series.instrument.series[attributes]
        self.length += position

    def _take(
        self, found: list[_Series], fresh: Mapping[bytes, list[_Series]], bases: list[bytes], starts: list[bytes]
    ) -> None:
        new_bases, new_starts = array.array("q", _parse_all(bases)), array.array("q", _parse_all(starts))
        if new_bases and min(new_bases) < _HEADER_CELLS:
            raise ValueError("cells inside the header")
        share: dict[str, str] = {}
        for pairs, made in zip(_parse_all(fresh), fresh.values(), strict=True):
            attributes = _parse_shared(pairs, share)
            for series in made:
                series.attributes = attributes
        seen = set(self.series)
        if len(seen) + len(found) > len(seen.union(found)):
            # Twice in one slot: a NaN among the attributes differs from itself. Each has cells of its own.
            for index, series in enumerate(found):
                if series in seen:
                    found[index] = _Series(series.instrument, series.attributes)
                seen.add(found[index])
        self.series += found
        self.bases += new_bases
        self.starts += new_starts
        widest = max((cells_of(instrument.definition) for instrument, _ in self.definitions), default=0)
        self.end = max(self.end, max(new_bases, default=0) + widest)


def _parse_all(texts: Collection[bytes]) -> list[Any]:
    """The values of many JSON texts. Errors: `ValueError`."""
    found: list[Any] = json.loads((b"[%b]" % b",".join(texts)).decode())
    if len(found) != len(texts):
        raise ValueError("not one value each")
    return found


def _parse_shared(pairs: Any, known: dict[str, str]) -> Attributes:
    """Attributes whose equal keys and texts are one object over all series: a quarter of the memory."""
    share = known.setdefault
    return tuple(
        [
            (share(key, key), share(value, value) if value.__class__ is str else _parse_attribute(value))
            for key, value in pairs
        ]
    )


#: What a scrape reads of a slot: its number, what is in it, the bytes of its cells.
_Loaded = tuple[int, _Layout, bytes]


def _is_slot(name: str) -> bool:
    # As we write them: "05" and "²" are somebody else's.
    return name.isascii() and name.isdecimal() and str(int(name)) == name and int(name) < _MAX_SLOTS


class Reader:
    """Reads all slots of a folder and adds them up; `on_skip(reason)` is called once for each unreadable file."""

    def __init__(self, folder: Path, on_skip: Callable[[str], None] = lambda reason: None) -> None:
        self.folder = folder
        self._on_skip = on_skip
        #: Scrapes may run at once, in threads; what is remembered is changed by one of them at a time.
        self._lock = threading.Lock()
        self._layouts: dict[int, _Layout] = {}
        self._instruments: dict[Definition, _Instrument] = {}
        self._plan: _Plan | None = None
        self._snapshots: dict[int, tuple[tuple[int, int, int], list[Family]]] = {}
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
                 number in living and struct.unpack_from("<d", data, _READY * 8)[0] == 1.0,
                 # Beyond the end of a truncated file there is nothing to read.
                 min(len(data) // 8, layout.end))
                for number, layout, data in loaded
            ]  # fmt: skip
            if self._plan is None or self._plan.state != state:
                self._plan = _Plan(state)
                self._forget()
            return self._plan.read([data for _, _, data in loaded])

    def newest_definitions(self) -> dict[str, tuple[Definition, float]]:
        """What the last merge showed for each name, and when it was made, in seconds since the epoch."""
        plan = self._plan
        return {} if plan is None else plan.newest

    def _forget(self) -> None:
        """Drop the series that no slot has any more, when they are as many as those in use."""
        known = sum(len(instrument.series) for instrument in self._instruments.values())
        used: set[_Series] = set()
        for layout in self._layouts.values():
            used.update(layout.series)
        if known <= 2 * len(used):
            return
        for instrument in self._instruments.values():
            instrument.series = {key: series for key, series in instrument.series.items() if series in used}

    def _load(self, number: int, is_living: bool) -> tuple[_Layout, bytes] | None:
        try:
            descriptor = open_file(self.folder / f"{number}.cells", os.O_RDONLY)
        except OSError:
            self._skip(number, "unreadable")
            return None
        try:
            status = os.fstat(descriptor)
            if status.st_size > _MAX_CELLS_BYTES:
                self._skip(number, "foreign")
                return None
            data = os.pread(descriptor, status.st_size, 0)
        finally:
            os.close(descriptor)
        if len(data) < _HEADER_BYTES:
            # A living process may just be making the file.
            if not (is_living and not data):
                self._skip(number, "truncated")
            return None
        header = struct.unpack_from("<6d", data)
        if header[_MAGIC] != MAGIC:
            if not (is_living and not header[_MAGIC]):
                self._skip(number, "foreign")
            return None
        layout = self._layout(number, status.st_ino, header)
        return None if layout is None else (layout, data)

    def _layout(self, number: int, inode: int, header: Sequence[float]) -> _Layout | None:
        committed = header[_KEYS_LENGTH]
        # A process that takes a slot may cut damaged keys off and write others in their place.
        stamp = (inode, header[_ADOPTIONS], header[_JOINED_AT_S])
        layout = self._layouts.get(number)
        if layout is None or layout.stamp != stamp or layout.length > committed:
            layout = self._layouts[number] = _Layout(stamp)
        if not 0 <= committed <= _MAX_KEYS_BYTES:
            self._skip(number, "damaged")
            committed = 0.0
        length = int(committed)
        if layout.length < length and not layout.is_damaged:
            try:
                descriptor = open_file(self.folder / f"{number}.keys", os.O_RDONLY)
            except OSError:
                self._skip(number, "unreadable")
                return None
            try:
                layout.read(os.pread(descriptor, length - layout.length, layout.length), self._instruments)
            finally:
                os.close(descriptor)
            if layout.is_damaged or layout.length < length:
                self._skip(number, "damaged")
        return layout

    def snapshots(self, *, except_slot: int | None = None) -> Iterator[tuple[int, list[Family]]]:
        """What the slots measured through the SDK, with the slot's number; damaged ones as they last were."""
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


def _last_sequence(data: bytes) -> int:
    """The number of the newest record in a ring; 0 when it is empty."""
    last = 0
    for offset in range(_RING_OFFSET, _RING_OFFSET + _RING_RECORDS * _RECORD_SIZE, _RECORD_SIZE):
        sequence: int = struct.unpack_from("<Q", data, offset)[0]
        packed = data[offset : offset + _RECORD.size]
        if sequence > last and zlib.crc32(packed) == struct.unpack_from("<Q", data, offset + _RECORD.size)[0]:
            last = sequence
    return last


def _read_ring(data: bytes) -> tuple[dict[tuple[int, int], Exemplar], float]:
    """Return the newest exemplar of each (base of the series, bucket), and a lower bound.

    The bound is the time of the oldest record of a ring that has lost some: all
    it has lost are older. Seconds since the Unix epoch.
    """
    found: dict[tuple[int, int], Exemplar] = {}
    oldest: tuple[int, float] | None = None
    for index in range(_RING_RECORDS):
        offset = _RING_OFFSET + index * _RECORD_SIZE
        sequence, base, bucket, value, at_s, high, low, span_id = _RECORD.unpack_from(data, offset)
        if not sequence:
            continue
        packed = data[offset : offset + _RECORD.size]
        if zlib.crc32(packed) != struct.unpack_from("<Q", data, offset + _RECORD.size)[0]:
            continue
        if oldest is None or sequence < oldest[0]:
            oldest = sequence, at_s
        known = found.get((base, bucket))
        if known is None or known.time_unix_s <= at_s:
            found[(base, bucket)] = Exemplar(value, at_s, high << 64 | low, span_id)
    return found, oldest[1] if oldest is not None and oldest[0] > 1 else -math.inf


#: What a plan is made for: number, layout, series, definitions, whether it lives, and readable cells of each slot.
_State = list[tuple[int, _Layout, int, int, bool, int]]


@dataclass(slots=True)
class _Block:
    """Series of one instrument that the same slots have: their cells are gathered from each slot and added at once."""

    instrument: _Instrument
    series: list[_Series]
    starts: list[int]
    #: For each slot that has them its index in the state and where the cells are in its bytes, in the order of
    #: `series`; neighbours are one run.
    runs: list[tuple[int, list[slice]]]


class _Plan:
    """Where the cells of every series are in every slot. Made anew when a slot, or who lives, has changed.

    A scrape then looks nothing up: it copies runs of bytes, adds columns of numbers and cuts the result into points.
    """

    def __init__(self, state: _State) -> None:
        self.state = state
        # An instrument whose definition changed starts again, once: the newest definition counts, everywhere.
        newest: dict[str, tuple[_Instrument, float]] = {}
        for _, layout, *_ in state:
            for instrument, defined_at_s in layout.definitions:
                name = instrument.definition.name
                known = newest.get(name)
                if known is None or known[1] < defined_at_s:
                    newest[name] = (instrument, defined_at_s)
        self.newest = {name: (instrument.definition, made_at_s) for name, (instrument, made_at_s) in newest.items()}
        wanted = {instrument for instrument, _ in newest.values()}
        #: For each slot, the series that count and where they are.
        self._places = [_places(layout, wanted, is_living, cells) for _, layout, _, _, is_living, cells in state]
        holders: dict[_Series, int] = {}
        for index, places in enumerate(self._places):
            bit = 1 << index
            for series in places:
                holders[series] = holders.get(series, 0) | bit
        grouped: dict[tuple[_Instrument, int], list[_Series]] = {}
        for series, mask in holders.items():
            grouped.setdefault((series.instrument, mask), []).append(series)
        self._blocks = [
            self._block(instrument, mask, series) for (instrument, mask), series in grouped.items()
        ]  # fmt: skip

    def _block(self, instrument: _Instrument, mask: int, series: list[_Series]) -> _Block:
        size = cells_of(instrument.definition)
        runs: list[tuple[int, list[slice]]] = []
        starts: list[int] = []
        for index, places in enumerate(self._places):
            if not mask >> index & 1:
                continue
            layout = self.state[index][1]
            positions = [places[item] for item in series]
            own_starts = [layout.starts[position] for position in positions]
            starts = list(map(min, starts, own_starts)) if starts else own_starts
            runs.append((index, _runs([layout.bases[position] for position in positions], size)))
        return _Block(instrument, series, starts, runs)

    def read(self, slots: Sequence[bytes]) -> list[Family]:
        """The families that these bytes hold."""
        exemplars = self._exemplars(slots)
        families: dict[_Instrument, Family] = {}
        for block in self._blocks:
            definition = block.instrument.definition
            columns = [_gather(slots[index], runs) for index, runs in block.runs]
            if definition.kind is Kind.HISTOGRAM:
                points = _histogram_points(block, definition, columns, exemplars)
            elif definition.kind is Kind.GAUGE:
                points = _gauge_points(block, definition, columns)
            else:
                # Series and sums are of one length, and nothing is measured by their mere existence but zero.
                points = list(map(_point, block.series, _add_columns(columns), block.starts))
            if not points:
                continue
            family = families.get(block.instrument)
            if family is None:
                families[block.instrument] = Family(
                    definition.name, definition.kind, definition.unit, definition.description, OWN_SCOPE, points
                )
            else:
                family.points += points
        return list(families.values())

    def _exemplars(self, slots: Sequence[bytes]) -> dict[_Series, dict[int, Exemplar]]:
        """The newest exemplar of each series and bucket.

        None of before what a ring has lost: the lost one may have been shown
        already, and Prometheus refuses exemplars that go back in time.
        """
        newest: dict[_Series, dict[int, Exemplar]] = {}
        rings = [_read_ring(data) for data in slots]
        since_s = max((bound_s for _, bound_s in rings), default=-math.inf)
        for (ring, _), places, (_, layout, *_) in zip(rings, self._places, self.state, strict=True):
            for (base, bucket), exemplar in ring.items():
                if exemplar.time_unix_s < since_s:
                    continue
                # Cells are handed out in ascending order.
                position = bisect.bisect_left(layout.bases, base)
                if position == len(layout.bases) or layout.bases[position] != base:
                    continue
                series = layout.series[position]
                if series not in places:
                    continue
                known = newest.setdefault(series, {})
                if bucket not in known or known[bucket].time_unix_s < exemplar.time_unix_s:
                    known[bucket] = exemplar
        return newest


def _places(layout: _Layout, wanted: set[_Instrument], is_living: bool, cells: int) -> dict[_Series, int]:
    """The series of a slot that count, and their positions in its layout."""
    places = {series: position for position, series in enumerate(layout.series)}
    refused = {
        instrument
        for instrument, _ in layout.definitions
        if instrument not in wanted or (instrument.definition.kind in _LIVE_KINDS and not is_living)
    }
    if refused or layout.end > cells:
        return {
            series: position
            for series, position in places.items()
            if series.instrument not in refused
            and layout.bases[position] + cells_of(series.instrument.definition) <= cells
        }
    return places


def _runs(bases: Sequence[int], size: int) -> list[slice]:
    """Where runs of `size` cells are in the bytes of a file."""
    runs: list[slice] = []
    first = end = bases[0]
    for base in bases:
        if base != end:
            runs.append(slice(first * 8, end * 8))
            first = base
        end = base + size
    runs.append(slice(first * 8, end * 8))
    return runs


def _gather(data: bytes, runs: Sequence[slice]) -> array.array[float]:
    cells = array.array("d")
    cells.frombytes(b"".join([data[run] for run in runs]))
    return cells


def _add_columns(columns: Sequence[array.array[float]]) -> list[float]:
    # One sum() over a row of all slots makes half the numbers that adding the slots one after another does.
    return columns[0].tolist() if len(columns) == 1 else list(map(sum, zip(*columns, strict=True)))


def _point(series: _Series, value: float, start_time_unix_nano: int) -> Point:
    return Point(series.attributes, value, (), start_time_unix_nano)


def _histogram_points(
    block: _Block,
    definition: Definition,
    columns: Sequence[array.array[float]],
    exemplars: Mapping[_Series, Mapping[int, Exemplar]],
) -> list[Point]:
    cells = _add_columns(columns)
    size = cells_of(definition)
    bounds = definition.bounds
    points: list[Point] = []
    first = 0
    for series, start in zip(block.series, block.starts, strict=True):
        to_sum = first + size - 1
        buckets = cells[first:to_sum]
        # Made and not used yet, or zeroed.
        if any(buckets):
            shown: Sequence[Exemplar] = ()
            if exemplars and series in exemplars:
                by_bucket = exemplars[series]
                shown = [by_bucket[bucket] for bucket in sorted(by_bucket)]
            points.append(Point(series.attributes, HistogramValue(bounds, buckets, cells[to_sum]), shown, start))
        first += size
    return points


def _gauge_points(block: _Block, definition: Definition, columns: Sequence[array.array[float]]) -> list[Point]:
    points: list[Point] = []
    for index, (series, start) in enumerate(zip(block.series, block.starts, strict=True)):
        values = [(column[2 * index + 1], column[2 * index]) for column in columns]
        value = _combine(definition.aggregation, [(set_at_s, value) for set_at_s, value in values if set_at_s])
        if value is not None:
            points.append(Point(series.attributes, value, (), start))
    return points


def _combine(aggregation: str, found: Sequence[tuple[float, float]]) -> float | None:
    """One gauge over the processes that have set it; `found` is (when, value) of each."""
    if not found:
        return None
    values = [value for _, value in found]
    if aggregation == "max":
        return max(values)
    if aggregation == "min":
        return min(values)
    if aggregation in ("sum", "livesum"):
        return sum(values)
    # Of two that were set at one time the one in the higher slot.
    return max(reversed(found), key=_set_at)[1]


def _set_at(item: tuple[float, float]) -> float:
    return item[0]
