"""File format of the shared folder: constants, the dictionary of a slot, and its ring of exemplars.

A slot's numbers are in the memory-mapped `N.cells`, described by the
append-only `N.keys`; what was measured through the SDK is in `N.snap`.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from typing import Any

from django_otel.metrics.cells import Definition, cells_of
from django_otel.metrics.model import Attributes, Exemplar, MetricType

#: File format; a file of another format is foreign and skipped.
MAGIC = 20261123.0
MAGIC_CELL, KEYS_LENGTH_CELL, ADOPTIONS_CELL, JOINED_AT_CELL, PID_CELL, READY_CELL, NAMESPACE_CELL, STARTED_CELL = (
    range(8)
)
RING_OFFSET = 1024
RING_RECORDS = 64
RECORD = struct.Struct("<QIIddQQQ")
RECORD_SIZE = 64
HEADER_CELLS = 1024
HEADER_BYTES = HEADER_CELLS * 8
SEGMENT_CELLS = 8192
SEGMENT_BYTES = SEGMENT_CELLS * 8
ENTRY = struct.Struct("<II")
MAX_SLOTS = 4096
MAX_KEYS_BYTES = 64 << 20
#: Beyond this a slot does not grow, and a file is not read: a length may be garbage.
MAX_CELLS_BYTES = 256 << 20
LIVE_TYPES = frozenset({MetricType.UP_DOWN_COUNTER, MetricType.GAUGE})


def is_live(definition: Definition) -> bool:
    """Return whether only living processes have values of this instrument."""
    return definition.metric_type in LIVE_TYPES and definition.aggregation != "max_ever"


#: Errors of reading a file with right checksums whose content is not ours.
MALFORMED = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError)


class Entry:
    """One series of a slot: where its cells are."""

    __slots__ = ("attributes", "base", "cells", "definition", "start_time_unix_nano")

    def __init__(
        self, definition: Definition, attributes: Attributes, base: int, cells: int, start_time_unix_nano: int
    ) -> None:
        self.definition = definition
        self.attributes = attributes
        self.base = base
        self.cells = cells
        self.start_time_unix_nano = start_time_unix_nano


class Keys:
    """A slot's dictionary, as far as it was read."""

    __slots__ = ("definitions", "entries", "is_damaged", "length")

    def __init__(self) -> None:
        self.length = 0
        self.definitions: list[tuple[Definition, float]] = []
        self.entries: list[Entry] = []
        self.is_damaged = False

    def read(self, data: bytes) -> None:
        """Take in further bytes; stop at the first entry that is torn or damaged."""
        position = 0
        while position + ENTRY.size <= len(data):
            size, checksum = ENTRY.unpack_from(data, position)
            payload = data[position + ENTRY.size : position + ENTRY.size + size]
            if len(payload) < size or zlib.crc32(payload) != checksum:
                self.is_damaged = True
                break
            try:
                self._take(json.loads(payload))
            except MALFORMED:
                self.is_damaged = True
                break
            position += ENTRY.size + size
        self.length += position

    def _take(self, content: Any) -> None:
        if "d" in content:
            self.definitions.append(parse_definition(content["d"]))
            return
        index, attributes, base, start = content["s"]
        definition = self.definitions[index][0]
        base = int(base)
        if not HEADER_CELLS <= base < MAX_CELLS_BYTES // 8:
            raise ValueError("cells outside the file")
        self.entries.append(Entry(definition, parse_attributes(attributes), base, cells_of(definition), int(start)))


def parse_definition(content: Any) -> tuple[Definition, float]:
    """A definition and when it was made, in seconds since the epoch."""
    name, metric_type, unit, description, bounds, aggregation, defined_at_s = content
    if not all(isinstance(text, str) for text in (name, unit, description, aggregation)):
        raise TypeError("not texts")
    return Definition(name, MetricType(metric_type), unit, description, parse_bounds(bounds), aggregation), float(
        defined_at_s
    )


def parse_bounds(bounds: Any) -> tuple[float, ...]:
    if not all(isinstance(bound, int | float) for bound in bounds) or len(bounds) >= SEGMENT_CELLS:
        raise TypeError("no bounds")
    return tuple(bounds)


def parse_attributes(pairs: Any) -> Attributes:
    return tuple((str(key), parse_attribute(value)) for key, value in pairs)


def parse_attribute(value: object) -> Any:
    if value.__class__ is str:
        # Nearly all are; the checks below take most of the time of a first scrape.
        return value
    if isinstance(value, list):
        value = tuple(value)
    items = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(item, str | bool | int | float) for item in items):
        raise TypeError("no attribute")
    return value


def pack_definition(definition: Definition, defined_at_s: float) -> bytes:
    return _pack_entry(
        {
            "d": [
                definition.name, definition.metric_type.value, definition.unit, definition.description,
                definition.bounds, definition.aggregation, defined_at_s,
            ]
        }
    )  # fmt: skip


def pack_series(definition_index: int, attributes: Attributes, base: int, start_time_unix_nano: int) -> bytes:
    return _pack_entry({"s": [definition_index, attributes, base, start_time_unix_nano]})


def _pack_entry(content: object) -> bytes:
    payload = json.dumps(content, separators=(",", ":")).encode()
    return ENTRY.pack(len(payload), zlib.crc32(payload)) + payload


def last_sequence(data: bytes) -> int:
    """The number of the newest record in a ring; 0 when it is empty."""
    last = 0
    for offset in range(RING_OFFSET, RING_OFFSET + RING_RECORDS * RECORD_SIZE, RECORD_SIZE):
        sequence: int = struct.unpack_from("<Q", data, offset)[0]
        packed = data[offset : offset + RECORD.size]
        if sequence > last and zlib.crc32(packed) == struct.unpack_from("<Q", data, offset + RECORD.size)[0]:
            last = sequence
    return last


def read_ring(data: bytes) -> tuple[dict[tuple[int, int], Exemplar], float]:
    """Return the newest exemplar of each (base of the series, bucket), and a lower bound.

    The bound is the time of the oldest record of a ring that has lost some: all
    it has lost are older. Seconds since the Unix epoch.
    """
    found: dict[tuple[int, int], Exemplar] = {}
    oldest: tuple[int, float] | None = None
    for index in range(RING_RECORDS):
        offset = RING_OFFSET + index * RECORD_SIZE
        sequence, base, bucket, value, at_s, high, low, span_id = RECORD.unpack_from(data, offset)
        if not sequence:
            continue
        packed = data[offset : offset + RECORD.size]
        if zlib.crc32(packed) != struct.unpack_from("<Q", data, offset + RECORD.size)[0]:
            continue
        if oldest is None or sequence < oldest[0]:
            oldest = sequence, at_s
        known = found.get((base, bucket))
        if known is None or known.time_unix_s <= at_s:
            found[(base, bucket)] = Exemplar(value, at_s, high << 64 | low, span_id)
    return found, oldest[1] if oldest is not None and oldest[0] > 1 else -math.inf
