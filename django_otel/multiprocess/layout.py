"""Dictionaries of the slots as a reader remembers them between two scrapes."""

from __future__ import annotations

import array
import json
import zlib
from collections.abc import Collection, Mapping
from typing import Any

from django_otel.metrics.cells import Definition, cells_of
from django_otel.metrics.model import Attributes
from django_otel.multiprocess.format import ENTRY, HEADER_CELLS, MALFORMED, parse_attribute, parse_definition

#: The beginning of a series' payload, up to the number of its definition.
_SERIES_START = b'{"s":['


class Series:
    """One series, whichever slots have it, so that its attributes are parsed and kept once. Compared by identity."""

    __slots__ = ("attributes", "instrument")

    def __init__(self, instrument: Instrument, attributes: Attributes = ()) -> None:
        self.instrument = instrument
        self.attributes = attributes


class Instrument:
    """A definition and its series over all slots, by the bytes that describe them."""

    __slots__ = ("definition", "series")

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.series: dict[bytes, Series] = {}


class SlotLayout:
    """A slot's dictionary as a reader remembers it between two scrapes: 24 bytes per series.

    Most series are the same in all workers, so equal bytes are parsed once, and
    what is new is parsed by a single call: one call per entry would take longer
    than all the rest of the first scrape.
    """

    def __init__(self, stamp: tuple[float, ...]) -> None:
        self.stamp = stamp
        self.length = 0
        self.is_damaged = False
        self.definitions: list[tuple[Instrument, float]] = []
        self.series: list[Series] = []
        self.bases = array.array("q")
        self.starts = array.array("q")
        #: No series has a cell at or after this one.
        self.end = 0

    def read(self, data: bytes, instruments: dict[Definition, Instrument]) -> None:
        """Take in further bytes; stop at the first entry that is torn or damaged."""
        position, size = 0, len(data)
        found: list[Series] = []
        fresh: dict[bytes, list[Series]] = {}
        bases: list[bytes] = []
        starts: list[bytes] = []
        # The beginning of a payload, up to the definition's number, is the same for a whole instrument.
        by_prefix: dict[bytes, Instrument] = {}
        unpack, header, checksum_of = ENTRY.unpack_from, ENTRY.size, zlib.crc32
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
                        definition, defined_at_s = parse_definition(json.loads(payload)["d"])
                        instrument = instruments.setdefault(definition, Instrument(definition))
                        self.definitions.append((instrument, defined_at_s))
                        position = end
                        continue
                    instrument = by_prefix[prefix] = self.definitions[int(prefix[len(_SERIES_START) :])][0]
                series = instrument.series.get(attributes)
                if series is None:
                    series = instrument.series[attributes] = Series(instrument)
                    fresh.setdefault(attributes, []).append(series)
                found.append(series)
                bases.append(base)
                # Without the brackets that close the entry.
                starts.append(start[:-2])
                position = end
        except MALFORMED:
            self.is_damaged = True
        try:
            self._take(found, fresh, bases, starts)
        except MALFORMED:
            # A checksum that is right and a content that is not: foreign, and nothing in it is to be trusted.
            self.is_damaged = True
            for attributes, made in fresh.items():
                for series in made:
                    del series.instrument.series[attributes]
        self.length += position

    def _take(
        self, found: list[Series], fresh: Mapping[bytes, list[Series]], bases: list[bytes], starts: list[bytes]
    ) -> None:
        new_bases, new_starts = array.array("q", _parse_all(bases)), array.array("q", _parse_all(starts))
        if new_bases and min(new_bases) < HEADER_CELLS:
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
                    found[index] = Series(series.instrument, series.attributes)
                seen.add(found[index])
        self.series += found
        self.bases += new_bases
        self.starts += new_starts
        widest = max((cells_of(instrument.definition) for instrument, _ in self.definitions), default=0)
        self.end = max(self.end, max(new_bases, default=0) + widest)


def _parse_all(texts: Collection[bytes]) -> list[Any]:
    """The values of many JSON texts. Errors: `ValueError`."""
    found: list[object] = json.loads((b"[%b]" % b",".join(texts)).decode())
    if len(found) != len(texts):
        raise ValueError("not one value each")
    return found


def _parse_shared(pairs: Any, known: dict[str, str]) -> Attributes:
    """Attributes whose equal keys and texts are one object over all series: a quarter of the memory."""
    share = known.setdefault
    return tuple(
        [
            (share(key, key), share(value, value) if value.__class__ is str else parse_attribute(value))
            for key, value in pairs
        ]
    )
