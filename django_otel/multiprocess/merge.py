"""Merge plan: where the cells of every series are in every slot, and how they add up."""

from __future__ import annotations

import array
import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from django_otel.metrics.cells import Definition, cells_of
from django_otel.metrics.model import OWN_SCOPE, Exemplar, Family, HistogramValue, MetricType, Point
from django_otel.multiprocess.format import is_live, read_ring
from django_otel.multiprocess.layout import Instrument, Series, SlotLayout

ACTIVE = "http.server.active_requests"
#: The input of a plan: number, layout, series, definitions, whether it lives, and readable cells of each slot.
State = list[tuple[int, SlotLayout, int, int, bool, int]]


@dataclass(slots=True)
class _Block:
    """Series of one instrument that the same slots have: their cells are gathered from each slot and added at once."""

    instrument: Instrument
    series: list[Series]
    starts: list[int]
    #: For each slot that has them its index in the state and where the cells are in its bytes, in the order of
    #: `series`; neighbours are one run.
    runs: list[tuple[int, list[slice]]]


class MergePlan:
    """Positions of the cells of every series in every slot. Rebuilt when a slot or the living processes have changed.

    A scrape then looks nothing up: it copies runs of bytes, adds columns of numbers and cuts the result into points.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        # An instrument whose definition changed starts again, once: the newest definition counts, everywhere.
        newest: dict[str, tuple[Instrument, float]] = {}
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
        #: For each slot, where it counts its requests under way.
        self.active_bases = [
            [
                layout.bases[position]
                for series, position in places.items()
                if series.instrument.definition.name == ACTIVE
            ]
            for (_, layout, *_), places in zip(state, self._places, strict=True)
        ]
        holders: dict[Series, int] = {}
        for index, places in enumerate(self._places):
            bit = 1 << index
            for series in places:
                holders[series] = holders.get(series, 0) | bit
        grouped: dict[tuple[Instrument, int], list[Series]] = {}
        for series, mask in holders.items():
            grouped.setdefault((series.instrument, mask), []).append(series)
        self._blocks = [
            self._block(instrument, mask, series) for (instrument, mask), series in grouped.items()
        ]  # fmt: skip

    def _block(self, instrument: Instrument, mask: int, series: list[Series]) -> _Block:
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
        families: dict[Instrument, Family] = {}
        for block in self._blocks:
            definition = block.instrument.definition
            columns = [_gather(slots[index], runs) for index, runs in block.runs]
            if definition.metric_type is MetricType.HISTOGRAM:
                points = _histogram_points(block, definition, columns, exemplars)
            elif definition.metric_type is MetricType.GAUGE:
                points = _gauge_points(block, definition, columns)
            else:
                # Series and sums are of one length, and nothing is measured by their mere existence but zero.
                points = list(map(_point, block.series, _add_columns(columns), block.starts))
            if not points:
                continue
            family = families.get(block.instrument)
            if family is None:
                families[block.instrument] = Family(
                    definition.name, definition.metric_type, definition.unit, definition.description, OWN_SCOPE, points
                )
            else:
                family.points += points
        return list(families.values())

    def _exemplars(self, slots: Sequence[bytes]) -> dict[Series, dict[int, Exemplar]]:
        """The newest exemplar of each series and bucket.

        None of before what a ring has lost: the lost one may have been shown
        already, and Prometheus refuses exemplars that go back in time.
        """
        newest: dict[Series, dict[int, Exemplar]] = {}
        rings = [read_ring(data) for data in slots]
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


def _places(layout: SlotLayout, wanted: set[Instrument], is_living: bool, cells: int) -> dict[Series, int]:
    """The series of a slot that count, and their positions in its layout."""
    places = {series: position for position, series in enumerate(layout.series)}
    refused = {
        instrument
        for instrument, _ in layout.definitions
        if instrument not in wanted or (is_live(instrument.definition) and not is_living)
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
    """Return where runs of `size` cells are in the bytes of a file."""
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


def _point(series: Series, value: float, start_time_unix_nano: int) -> Point:
    return Point(series.attributes, value, (), start_time_unix_nano)


def _histogram_points(
    block: _Block,
    definition: Definition,
    columns: Sequence[array.array[float]],
    exemplars: Mapping[Series, Mapping[int, Exemplar]],
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
    if aggregation in ("max", "max_ever"):
        return max(values)
    if aggregation == "min":
        return min(values)
    if aggregation in ("sum", "livesum"):
        return sum(values)
    # Of two that were set at one time the one in the higher slot.
    return max(reversed(found), key=_set_at)[1]


def _set_at(item: tuple[float, float]) -> float:
    return item[0]
