"""Our instruments: numbers in cells of float64, updated in well under a microsecond.

A series owns a run of cells in a `Memory`: one for a counter, up-down counter
or gauge; one per bucket and one for the sum for a histogram (its count is the
sum of the buckets, never stored). `Memory` is the only part that knows where
the cells are; here they are private to the process.

Updates take no lock where Python has its global one. CPython lets another
thread run, and signal handlers, only where a function begins, at a jump
backwards and after a call. Between "Not interrupted from here" and the end of
an update there is none of these, so to other threads it happens at once: half
the cost of an update (1 kI of 2). A build without the global lock takes ours
(`_under_lock`). `tests/test_cells.py` looks at the bytecode.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from django_otel.base import guard
from django_otel.metrics import catalogue
from django_otel.metrics.model import (
    OWN_SCOPE,
    Attributes,
    AttributeValue,
    Exemplar,
    Family,
    HistogramValue,
    Kind,
    Point,
)

#: OpenTelemetry metrics SDK, "Overflow attribute".
OVERFLOW: Attributes = (("otel.metric.overflow", True),)
_EXEMPLAR_RECORDS = 64
#: A bucket's exemplar is replaced so many times in so long, in seconds: scrapes come seconds apart, and a busy series
#: would push the exemplars of all others out (and pay 10 kI for each).
_EXEMPLAR_AGE_S = 0.5
#: Of a bucket, in that time.
_EXEMPLARS_AT_ONCE = 5
_OVERFLOW_METRIC = "django_otel.cardinality.overflow"
#: OpenTelemetry's integers have 64 bits; a larger one is a text.
_INT_LIMIT = 1 << 63
#: Whether one thread at a time runs Python. A build that can do without says so; once on, it stays on.
HAS_GLOBAL_LOCK = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()


@dataclass(frozen=True, slots=True)
class Definition:
    """What an instrument is. Two definitions of one name must agree in kind."""

    name: str
    kind: Kind
    unit: str = ""
    #: Another wording is not another instrument.
    description: str = field(default="", compare=False)
    bounds: tuple[float, ...] = ()
    aggregation: str = "sum"


def cells_of(definition: Definition) -> int:
    """How many cells a series takes: buckets and sum, value and time of setting, or a value."""
    if definition.kind is Kind.HISTOGRAM:
        return len(definition.bounds) + 2
    return 2 if definition.kind is Kind.GAUGE else 1


class Memory:
    """Hands out runs of float64 cells, zeroed, that never move. These are private to the process.

    Memory grows by whole segments, because a buffer with an exported view
    cannot be resized; a run never spans two segments.
    """

    SEGMENT_CELLS = 4096
    #: Whether a growth has failed, so that some series are not where they should be.
    is_degraded = False

    def __init__(self) -> None:
        self._view: memoryview[float] = memoryview(bytearray()).cast("d")
        self._free = 0

    def allocate(self, cells: int) -> tuple[memoryview[float], int]:
        """Return the view and the index in it at which `cells` cells begin."""
        if self._free + cells > len(self._view):
            size = max(self.SEGMENT_CELLS, cells)
            self._view = memoryview(bytearray(size * 8)).cast("d")
            self._free = 0
        base = self._free
        self._free += cells
        return self._view, base

    def place(
        self, definition: Definition, attributes: Attributes, start_time_unix_nano: int
    ) -> tuple[memoryview[float], int]:
        """Where the cells of a series are; they may hold what an earlier process counted."""
        return self.allocate(cells_of(definition))

    def has_room(self, definition: Definition, attributes: Attributes, limit: int) -> bool:
        """Whether one more series fits below the cardinality limit, earlier processes' series included."""
        return True

    def mark(self, definition: Definition, attributes: Attributes) -> int | None:
        """What `put_exemplar` knows a series by that has been placed; None where there is nobody to show it to."""
        return None

    def put_exemplar(self, mark: int, bucket: int, exemplar: Exemplar) -> None:
        """Show an exemplar to the other processes."""


def build_attributes(attributes: Mapping[str, object]) -> Attributes:
    """Sort and clean attributes: values keep their type where OpenTelemetry has it, others become text."""
    return tuple(sorted(((str(key), _clean(value)) for key, value in attributes.items()), key=_by_key))


def _by_key(item: tuple[str, AttributeValue]) -> str:
    return item[0]


def _clean(value: object) -> AttributeValue:
    if isinstance(value, bool | str):
        # str() also turns a lazy or safe string into a plain one.
        return value if isinstance(value, bool) else str(value)
    if isinstance(value, float):
        return value
    if isinstance(value, int) and -_INT_LIMIT <= value < _INT_LIMIT:
        return value
    if isinstance(value, list | tuple):
        cleaned = (_clean(item) for item in value)
        return tuple(item if isinstance(item, str | bool | int | float) else str(item) for item in cleaned)
    try:
        return str(value)
    except Exception as error:
        # A __str__ that raises, for example on a query where none is allowed.
        guard.report(f"str() of an attribute of type {type(value).__name__}", error)
        return f"<{type(value).__name__}>"


def _cut(value: AttributeValue, length: int) -> AttributeValue:
    """Return `value` with at most `length` characters of text, over all items of a list; itself where that fits."""
    if isinstance(value, str):
        return value if len(value) <= length else value[:length]
    if not isinstance(value, tuple):
        return value
    kept: list[Any] = []
    left = length
    for item in value:
        if left <= 0:
            break
        kept.append(item[:left] if isinstance(item, str) else item)
        # With quotes and comma, as the page shows a list.
        left -= len(item) + 3 if isinstance(item, str) else 8
    found = tuple(kept)
    return value if found == value else found


def cut(attributes: Attributes, length: int) -> Attributes:
    """Return the attributes with texts of at most `length` characters; the same object where none is longer."""
    found = tuple([(key, _cut(value, length)) for key, value in attributes])
    return attributes if all(new[1] is old[1] for new, old in zip(found, attributes, strict=True)) else found


def identity(attributes: Attributes) -> object:
    # 1, 1.0 and True are equal in Python and different labels in Prometheus.
    return tuple((key, value.__class__, value) for key, value in attributes)


class Series:
    """One value with its attributes: counter or up-down counter."""

    __slots__ = (
        "_baseline", "_cells", "_definition", "_lock", "_store", "attributes", "base", "is_overflow", "is_set",
        "start_time_unix_nano", "view",
    )  # fmt: skip

    def __init__(self, store: CellStore, definition: Definition, attributes: Attributes, is_overflow: bool) -> None:
        self.attributes = attributes
        self.is_overflow = is_overflow
        self.is_set = False
        self.start_time_unix_nano = time.time_ns()
        self._definition = definition
        self._cells = cells_of(definition)
        self._store = store
        self._lock = store.lock
        self._put(store.memory)

    def _put(self, memory: Memory) -> None:
        view, base = memory.place(self._definition, self.attributes, self.start_time_unix_nano)
        found: list[float] = view[base : base + self._cells].tolist()  # type: ignore[assignment]
        #: What an earlier process had counted in these cells; None where that is nothing.
        self._baseline: list[float] | None = found if any(found) else None
        #: Where the cells are. All at once, for updates take no lock.
        self.view, self.base = view, base

    def _own(self) -> list[float]:
        """What this process has counted."""
        return self._read_own(self.view, self.base, self._baseline)

    def _read_own(self, view: memoryview[float], base: int, baseline: list[float] | None) -> list[float]:
        cells: list[float] = view[base : base + self._cells].tolist()  # type: ignore[assignment]
        return cells if baseline is None else [now - before for now, before in zip(cells, baseline, strict=True)]

    def move(self, memory: Memory) -> None:
        """Go on in other memory, with what this process has counted so far. The store's lock is held."""
        view, base, baseline = self.view, self.base, self._baseline
        self._put(memory)
        self._store.moves += 1
        if self.view is view and self.base == base:
            # It is there already (others were not, because the memory could not grow).
            self._baseline = baseline
            return
        # Only now that updates go to the new cells, so that none is lost.
        for index, counted in enumerate(self._read_own(view, base, baseline)):
            place = self.base + index
            self.view[place] += counted

    def rebase(self) -> None:
        """Take the cells as they are for what this process has counted, where they are below the baseline.

        Somebody has cut the file beneath this process. The store's lock is held.
        """
        if self._baseline is not None and any(value < 0 for value in self._own()):
            self._baseline = None

    def leave(self, memory: Memory) -> None:
        """Go on at zero in private memory (in a forked child)."""
        self._put(memory)
        self.clear()

    def add(self, amount: float) -> None:
        """Add `amount`, in the instrument's unit."""
        if not self._store.joined:
            self._store.wake()
        # Not interrupted from here.
        view, base = self.view, self.base
        view[base] += amount
        self.is_set = True

    def read(self) -> float:
        """The value, as far as this process has counted it."""
        baseline = self._baseline
        value: float = self.view[self.base]
        return value if baseline is None else value - baseline[0]

    def clear(self) -> None:
        self._store.moves += 1
        for index in range(self.base, self.base + self._cells):
            self.view[index] = 0.0
        self._baseline = None
        self.is_set = False
        self.start_time_unix_nano = time.time_ns()


class GaugeSeries(Series):
    """One value that is set, and when it was."""

    __slots__ = ()

    def set(self, value: float) -> None:
        """Replace the value, in the instrument's unit."""
        with self._lock:
            self.view[self.base] = value
            self.view[self.base + 1] = time.time()
            self.is_set = True
        if not self._store.joined:
            self._store.wake()

    def read(self) -> float:
        value: float = self.view[self.base]
        return value

    def move(self, memory: Memory) -> None:
        value, set_at_s = self.view[self.base], self.view[self.base + 1]
        self._put(memory)
        self._store.moves += 1
        if self.is_set:
            self.view[self.base], self.view[self.base + 1] = value, set_at_s


class HistogramSeries(Series):
    """One distribution with its attributes."""

    __slots__ = ("_bounds", "_exemplars", "_mark", "_shown", "_shown_since_s", "_to_sum")

    def __init__(self, store: CellStore, definition: Definition, attributes: Attributes, is_overflow: bool) -> None:
        self._bounds = definition.bounds
        self._to_sum = len(definition.bounds) + 1
        self._exemplars = store.exemplars
        super().__init__(store, definition, attributes, is_overflow)

    def _put(self, memory: Memory) -> None:
        super()._put(memory)
        # Found once: to look for it costs more than all else about an exemplar (4 kI).
        self._mark = memory.mark(self._definition, self.attributes)
        #: By bucket, since when the replacements of its exemplar are counted, and how many there were; empty before the
        #: first, for most series have none.
        self._shown_since_s: list[float] = []
        self._shown: list[int] = []

    def observe(self, value: float, trace_id: int = 0, span_id: int = 0) -> None:
        """Count `value`, in the instrument's unit; with ids it may be shown as the bucket's exemplar."""
        if not self._store.joined:
            self._store.wake()
        if trace_id:
            self.show_exemplar(value, trace_id, span_id)
        # A bound is the inclusive upper end of its bucket, in OpenTelemetry and in Prometheus ("le").
        bucket = bisect_left(self._bounds, value)
        # Not interrupted from here.
        view, base = self.view, self.base
        view[base + bucket] += 1.0
        view[base + self._to_sum] += value
        self.is_set = True

    def show_exemplar(self, value: float, trace_id: int, span_id: int) -> None:
        """Let `value`, which is counted as well, be its bucket's exemplar, unless that is replaced all the time."""
        bucket = bisect_left(self._bounds, value)
        now_s = time.time()
        if not self._shown:
            # This one last: it is looked at without a lock.
            self._shown_since_s = [-math.inf] * self._to_sum
            self._shown = [0] * self._to_sum
        since_s = self._shown_since_s[bucket]
        if not 0.0 <= now_s - since_s < _EXEMPLAR_AGE_S or since_s < self._exemplars.cleared_at_s:
            self._shown_since_s[bucket] = now_s
            self._shown[bucket] = 0
        elif self._shown[bucket] >= _EXEMPLARS_AT_ONCE:
            return
        self._shown[bucket] += 1
        exemplar = Exemplar(value, now_s, trace_id, span_id)
        # Not `with`, which looks up two special methods each time (1 kI).
        lock = self._lock
        lock.acquire()
        try:
            self._put_exemplar(bucket, exemplar)
        finally:
            lock.release()

    def _put_exemplar(self, bucket: int, exemplar: Exemplar) -> None:
        # Shown to the other processes as well. The store's lock is held.
        self._exemplars.put(self, bucket, exemplar)
        if self._mark is not None:
            self._store.memory.put_exemplar(self._mark, bucket, exemplar)

    def read_histogram(self) -> HistogramValue:
        """The distribution, as far as this process has counted it."""
        with self._lock:
            cells = self._own()
        return HistogramValue(self._bounds, cells[:-1], cells[-1])


class RequestSeries:
    """The series of all requests of one kind, and what is counted at the end of each, in one update.

    One update after the other costs 12 kI, this 6: the calls are left out, the
    look for where each series is and, as a view mostly makes the same number of
    queries and answers with the same size, the search for those two buckets.
    """

    __slots__ = (
        "_active", "_first_bound", "_last_queries", "_last_size", "_lock", "_moves", "_places", "_store", "duration",
        "is_overflow", "queries", "request_size", "response_size",
    )  # fmt: skip

    def __init__(
        self,
        active: Series,
        duration: HistogramSeries,
        request_size: HistogramSeries,
        response_size: HistogramSeries,
        queries: HistogramSeries | None,
    ) -> None:
        self._active = active
        self.duration = duration
        self.request_size = request_size
        self.response_size = response_size
        self.queries = queries
        self.is_overflow = duration.is_overflow
        self._store = duration._store
        self._lock = duration._lock
        #: Most requests end within the first bound.
        self._first_bound = duration._bounds[0] if duration._bounds else -math.inf
        #: Size and queries of the last request, each with its bucket, and as a float, which is quicker to add. Read and
        #: replaced whole, so that threads need no lock.
        self._last_size: tuple[int, int, float] = (-1, 0, 0.0)
        self._last_queries: tuple[int, int, float] = (-1, 0, 0.0)
        self._places: tuple[Any, ...] = ()
        #: `CellStore.moves` when that was found out.
        self._moves = -1

    def _find_places(self) -> None:
        """Find out where the cells are now: again after one has moved, or was set to zero."""
        duration, size, queries = self.duration, self.response_size, self.queries
        # First, so that what moves meanwhile is seen the next time.
        self._moves = self._store.moves
        self._places = (
            self._active.view, self._active.base,
            duration.view, duration.base, duration.base + duration._to_sum,
            size.view, size.base, size.base + size._to_sum,
            *((queries.view, queries.base, queries.base + queries._to_sum) if queries is not None else (None, 0, 0)),
        )  # fmt: skip
        self._active.is_set = duration.is_set = True
        if queries is not None:
            queries.is_set = True

    def finish(
        self, decisions: Series | None, duration_s: float, response_size_bytes: int | None, query_count: int
    ) -> None:
        """A request has ended: one less is active, one more in `decisions` and the histograms.

        Without a size it is not counted.
        """
        last_size, last_queries = self._last_size, self._last_queries
        if last_size[0] != response_size_bytes and response_size_bytes is not None:
            bucket = bisect_left(self.response_size._bounds, response_size_bytes)
            self._last_size = last_size = (response_size_bytes, bucket, float(response_size_bytes))
        if last_queries[0] != query_count and self.queries is not None:
            bucket = bisect_left(self.queries._bounds, query_count)
            self._last_queries = last_queries = (query_count, bucket, float(query_count))
        bucket = 0 if duration_s <= self._first_bound else bisect_left(self.duration._bounds, duration_s)
        store = self._store
        while self._moves != store.moves:
            self._find_places()
        # Not interrupted from here; the loop above ends with a look at whether anything has moved.
        active, place, durations, first, to_sum, sizes, size_first, size_sum, counts, count_first, count_sum = (
            self._places
        )
        active[place] -= 1.0
        durations[first + bucket] += 1.0
        durations[to_sum] += duration_s
        if response_size_bytes is not None:
            sizes[size_first + last_size[1]] += 1.0
            sizes[size_sum] += last_size[2]
            self.response_size.is_set = True
        if counts is not None:
            counts[count_first + last_queries[1]] += 1.0
            if query_count:
                counts[count_sum] += last_queries[2]
        if decisions is not None:
            active, place = decisions.view, decisions.base
            active[place] += 1.0
            decisions.is_set = True


def _under_lock(update: Any) -> Any:
    """The update for a Python without a global lock."""

    @functools.wraps(update)
    def locked(self: Any, *arguments: Any) -> None:
        # Joining takes locks of its own, in another order.
        if not self._store.joined:
            self._store.wake()
        with self._lock:
            update(self, *arguments)

    return locked


#: The updates that take no lock where they need none.
UPDATES = ((Series, "add"), (HistogramSeries, "observe"), (RequestSeries, "finish"))
if not HAS_GLOBAL_LOCK:
    for _owner, _name in UPDATES:
        setattr(_owner, _name, _under_lock(getattr(_owner, _name)))


class ExemplarRing:
    """The last 64 exemplars of the process, so that their number does not grow with the series."""

    def __init__(self) -> None:
        self._records: list[tuple[HistogramSeries, int, Exemplar] | None] = [None] * _EXEMPLAR_RECORDS
        self._next = 0
        #: `time.time()` of it.
        self.cleared_at_s = -math.inf

    def put(self, series: HistogramSeries, bucket: int, exemplar: Exemplar) -> None:
        self._records[self._next] = (series, bucket, exemplar)
        self._next = (self._next + 1) % _EXEMPLAR_RECORDS

    def latest(self) -> dict[tuple[int, int], Exemplar]:
        """The newest exemplar of each (id of the series, bucket)."""
        found: dict[tuple[int, int], Exemplar] = {}
        for offset in range(_EXEMPLAR_RECORDS):
            record = self._records[(self._next + offset) % _EXEMPLAR_RECORDS]
            if record is not None:
                found[(id(record[0]), record[1])] = record[2]
        return found

    def clear(self) -> None:
        self._records = [None] * _EXEMPLAR_RECORDS
        self._next = 0
        self.cleared_at_s = time.time()


class Instrument:
    """A named instrument and its series. Made by `CellStore`, never directly."""

    def __init__(self, store: CellStore, definition: Definition) -> None:
        self.definition = definition
        self.name = definition.name
        self._store = store
        self._series: dict[object, Series] = {}
        self._overflow: Series | None = None

    def series(self, attributes: Mapping[str, object]) -> Series:
        """The series with these attributes, made if need be; the overflow series at the cardinality limit.

        Look it up once and keep it where the attributes repeat.
        """
        # None too, as in OpenTelemetry's own instruments.
        cleaned = build_attributes(attributes) if attributes else ()
        key = identity(cleaned)
        found = self._series.get(key)
        return found if found is not None else self._make(key, cleaned)

    def _make(self, key: object, attributes: Attributes) -> Series:
        store = self._store
        # What counts the cuts is not cut itself.
        scrubbed = attributes if self.name == _OVERFLOW_METRIC else store.clean(attributes)
        with store.lock:
            if scrubbed is not attributes:
                # Known by what is shown: every secret would be a series of its own otherwise, all looking alike.
                key = identity(scrubbed)
            found = self._series.get(key)
            if found is not None:
                return found
            limit = store.cardinality_limit
            if len(self._series) >= limit or not store.memory.has_room(self.definition, scrubbed, limit):
                if self._overflow is None:
                    self._overflow = self._build(OVERFLOW, is_overflow=True)
                overflow = self._overflow
            else:
                made = self._build(scrubbed, is_overflow=False)
                self._series[key] = made
                return made
        store.count_overflow(self.name)
        return overflow

    def _build(self, attributes: Attributes, *, is_overflow: bool) -> Series:
        return _SERIES.get(self.definition.kind, Series)(self._store, self.definition, attributes, is_overflow)

    def all_series(self) -> list[Series]:
        with self._store.lock:
            found = list(self._series.values())
            if self._overflow is not None:
                found.append(self._overflow)
            return found

    def family(self, latest: Mapping[tuple[int, int], Exemplar]) -> Family:
        definition = self.definition
        family = Family(definition.name, definition.kind, definition.unit, definition.description, OWN_SCOPE)
        # Few series have exemplars: ask once per series, not once per bucket.
        shown = {series_id for series_id, _ in latest}
        for series in self.all_series():
            if not series.is_set:
                continue
            if isinstance(series, HistogramSeries):
                value: float | HistogramValue = series.read_histogram()
                exemplars: Sequence[Exemplar] = ()
                if id(series) in shown:
                    buckets = range(len(definition.bounds) + 1)
                    exemplars = [latest[key] for bucket in buckets if (key := (id(series), bucket)) in latest]
            else:
                value = series.read()
                exemplars = ()
            family.points.append(Point(series.attributes, value, exemplars, series.start_time_unix_nano))
        return family


def _number(value: object) -> float:
    """A project's number as a cell holds it (Decimal and Fraction too); NaN for what is no number."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan


class Counter(Instrument):
    """A sum that only grows."""

    def add(self, amount: float = 1, attributes: Mapping[str, object] = {}) -> None:
        """Add `amount` (in the instrument's unit, not negative: such a call is ignored and logged once)."""
        number = _number(amount)
        if not 0 <= number < math.inf:
            guard.warn_once(
                f"cells.{self.name}", "Counter %s: %r was not added; expected a number >= 0.", self.name, amount
            )
            return
        self.series(attributes).add(number)


class UpDownCounter(Instrument):
    """A sum that grows and shrinks."""

    def add(self, amount: float, attributes: Mapping[str, object] = {}) -> None:
        """Add `amount`, in the instrument's unit."""
        number = _number(amount)
        if not math.isfinite(number):
            guard.warn_once(f"cells.{self.name}", "Up-down counter %s: %r was not added.", self.name, amount)
            return
        self.series(attributes).add(number)


class Gauge(Instrument):
    """A value as it was last set."""

    def set(self, value: float, attributes: Mapping[str, object] = {}) -> None:
        """Replace the value, in the instrument's unit. What is not a number is ignored and logged once."""
        number = _number(value)
        if math.isnan(number) and value == value:
            guard.warn_once(f"cells.{self.name}", "Gauge %s was not set to %r.", self.name, value)
            return
        series = self.series(attributes)
        assert isinstance(series, GaugeSeries)
        series.set(number)


class Histogram(Instrument):
    """A distribution of values in fixed buckets."""

    def record(self, value: float, attributes: Mapping[str, object] = {}, trace_id: int = 0, span_id: int = 0) -> None:
        """Count one value, in the instrument's unit.

        Values that are not finite are ignored and logged once, and so are
        negative ones, by which the sum would fall, unless a bound is below zero.
        """
        number = _number(value)
        if not 0 <= number < math.inf:
            bounds = self.definition.bounds
            if not math.isfinite(number) or not bounds or bounds[0] >= 0:
                guard.warn_once(
                    f"cells.{self.name}", "Histogram %s: %r was not recorded; expected a number >= 0.", self.name, value
                )
                return
        series = self.series(attributes)
        assert isinstance(series, HistogramSeries)
        series.observe(number, trace_id, span_id)


#: What an observable callback gives: a value, or pairs of value and attributes.
Observed = float | Iterable[tuple[float, Mapping[str, object]]]


class ObservableGauge(Instrument):
    """A gauge that asks its callback when it is read, at most every 15 seconds."""

    def __init__(self, store: CellStore, definition: Definition, callback: Callable[[], Observed]) -> None:
        super().__init__(store, definition)
        self.callback = callback
        #: How long a reading is used again, in seconds.
        self.cache_s = 15.0
        self._read_at_s = -math.inf
        self._points: list[Point] = []

    def is_due(self) -> bool:
        """Whether the next reading asks the callback."""
        return time.monotonic() - self._read_at_s >= self.cache_s

    def family(self, latest: Mapping[tuple[int, int], Exemplar]) -> Family:
        definition = self.definition
        if self.is_due():
            # Set first: a slow callback must not be run by every scrape that arrives meanwhile.
            self._read_at_s = time.monotonic()
            # No lock is held here: a callback may itself count something.
            with guard.contained(f"the callback of {self.name}"):
                observed = self.callback()
                pairs = [(observed, {})] if isinstance(observed, int | float) else list(observed)
                self._points = [
                    Point(self._store.clean(build_attributes(attributes)), float(value))
                    for value, attributes in pairs[: self._store.cardinality_limit]
                ]
        return Family(
            definition.name, definition.kind, definition.unit, definition.description, OWN_SCOPE, list(self._points)
        )

    def forget(self) -> None:
        """Ask the callback again at the next reading."""
        self._read_at_s = -math.inf
        self._points = []


_SERIES: dict[Kind, type[Series]] = {Kind.HISTOGRAM: HistogramSeries, Kind.GAUGE: GaugeSeries}
_CLASSES: dict[Kind, type[Instrument]] = {
    Kind.COUNTER: Counter,
    Kind.UP_DOWN_COUNTER: UpDownCounter,
    Kind.GAUGE: Gauge,
    Kind.HISTOGRAM: Histogram,
}


class CellStore:
    """All instruments of the process, by name.

    `lock` guards everything but the updates of cells (see above). It is
    re-entrant, because a signal handler may count something meanwhile.
    """

    def __init__(self, memory: Memory | None = None) -> None:
        self.lock = threading.RLock()
        self.memory = memory if memory is not None else Memory()
        self.exemplars = ExemplarRing()
        self.cardinality_limit = 2000
        #: Characters of a label value.
        self.attribute_length = 256
        #: Wrapped around each round of callbacks; they may use resources that must be given back, such as connections.
        self.around_callbacks: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
        self.scrub: Callable[[Attributes], Attributes] = _unchanged
        self._buckets: Mapping[str, tuple[float, ...]] = {}
        self._instruments: dict[str, Instrument] = {}
        #: How often cells have moved, or were set to zero.
        self.moves = 0
        #: Whether the process has joined, that is, its first measurement was noticed.
        self.joined = False
        #: Called by a measurement while `joined` is False.
        self.on_measurement: Callable[[], None] | None = None
        if hasattr(os, "register_at_fork"):
            # Taken over the fork, so that the child does not inherit it held by a thread it does not have.
            os.register_at_fork(
                before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._after_fork_in_child
            )

    def wake(self) -> None:
        """Tell whoever waits for it that something was measured. No lock is held here."""
        if self.on_measurement is not None:
            with guard.contained("the first measurement"):
                self.on_measurement()

    def _before_fork(self) -> None:
        self.lock.acquire()

    def _after_fork(self) -> None:
        self.lock.release()

    def _after_fork_in_child(self) -> None:
        try:
            self.leave()
        finally:
            self.lock.release()

    def leave(self) -> None:
        """Go on at zero in private memory: in a forked child, what the parent counted is the parent's, as its cells."""
        with self.lock:
            self.joined = False
            self.memory = Memory()
            self.exemplars.clear()
            for instrument in self._instruments.values():
                if isinstance(instrument, ObservableGauge):
                    instrument.forget()
                for series in instrument.all_series():
                    series.leave(self.memory)

    def configure(
        self,
        *,
        cardinality_limit: int,
        attribute_length: int = 256,
        buckets: Mapping[str, tuple[float, ...]],
        scrub: Callable[[Attributes], Attributes] | None = None,
    ) -> None:
        """Apply settings. An instrument whose bounds change starts again; the others keep their numbers."""
        with self.lock:
            self.cardinality_limit = cardinality_limit
            self.attribute_length = attribute_length
            self.scrub = scrub or _unchanged
            self._buckets = dict(buckets)
            for instrument in self._instruments.values():
                wanted = self._with_bounds(instrument.definition)
                if wanted.bounds != instrument.definition.bounds:
                    instrument.definition = wanted
                    instrument._series.clear()
                    instrument._overflow = None

    def _with_bounds(self, definition: Definition) -> Definition:
        if definition.kind is not Kind.HISTOGRAM:
            return definition
        metric = catalogue.CATALOGUE.get(definition.name)
        default = metric.bounds if metric is not None else (definition.bounds or catalogue.DEFAULT_BOUNDS)
        bounds = self._buckets.get(definition.name, default)
        return Definition(
            definition.name, definition.kind, definition.unit, definition.description, bounds, definition.aggregation
        )

    def define(self, definition: Definition) -> Instrument:
        """The instrument of that name, made if need be.

        Errors: `ValueError` when the name is taken by an instrument of another kind.
        """
        with self.lock:
            found = self._instruments.get(definition.name)
            if found is not None:
                if found.definition.kind is not definition.kind or isinstance(found, ObservableGauge):
                    kind = "observable gauge" if isinstance(found, ObservableGauge) else found.definition.kind.value
                    raise ValueError(
                        f"The instrument {definition.name!r} is of kind {kind}; "
                        f"it cannot be a {definition.kind.value} as well. Choose another name."
                    )
                return found
            made = _CLASSES[definition.kind](self, self._with_bounds(definition))
            self._instruments[definition.name] = made
            return made

    def counter(self, name: str, unit: str = "", description: str = "") -> Counter:
        instrument = self.define(Definition(name, Kind.COUNTER, unit, description))
        assert isinstance(instrument, Counter)
        return instrument

    def up_down_counter(self, name: str, unit: str = "", description: str = "") -> UpDownCounter:
        instrument = self.define(Definition(name, Kind.UP_DOWN_COUNTER, unit, description, aggregation="livesum"))
        assert isinstance(instrument, UpDownCounter)
        return instrument

    def gauge(self, name: str, unit: str = "", description: str = "") -> Gauge:
        instrument = self.define(Definition(name, Kind.GAUGE, unit, description, aggregation="last"))
        assert isinstance(instrument, Gauge)
        return instrument

    def histogram(self, name: str, unit: str = "", description: str = "", bounds: tuple[float, ...] = ()) -> Histogram:
        instrument = self.define(Definition(name, Kind.HISTOGRAM, unit, description, tuple(bounds)))
        assert isinstance(instrument, Histogram)
        return instrument

    def observable_gauge(
        self, name: str, callback: Callable[[], Observed], unit: str = "", description: str = ""
    ) -> ObservableGauge:
        """A gauge read through `callback`; asking again for one name replaces its callback."""
        with self.lock:
            found = self._instruments.get(name)
            if found is None:
                made = ObservableGauge(self, Definition(name, Kind.GAUGE, unit, description, (), "last"), callback)
                self._instruments[name] = made
                return made
        if not isinstance(found, ObservableGauge):
            raise ValueError(
                f"The instrument {name!r} is a {found.definition.kind.value}; it cannot be an observable gauge as well."
            )
        found.callback = callback
        found.forget()
        return found

    def kind_of(self, name: str) -> Kind | None:
        """What kind of instrument has that name; None when none has."""
        found = self._instruments.get(name)
        return None if found is None else found.definition.kind

    def forget_observed(self) -> None:
        """Ask the callbacks of all observable gauges again at the next reading (for tests)."""
        with self.lock:
            for instrument in self._instruments.values():
                if isinstance(instrument, ObservableGauge):
                    instrument.forget()

    def catalogued(self, name: str) -> Instrument:
        """The instrument of `core.names.CATALOGUE` with that name."""
        metric = catalogue.CATALOGUE[name]
        return self.define(
            Definition(metric.name, metric.kind, metric.unit, metric.description, metric.bounds, metric.aggregation)
        )

    def clean(self, attributes: Attributes) -> Attributes:
        """Scrub attributes, then cut their texts at METRICS.ATTRIBUTE_LENGTH, counted; as they are where they fit."""
        scrubbed = self.scrub(attributes)
        found = cut(scrubbed, self.attribute_length)
        if found is not scrubbed:
            guard.warn_once(
                "cells.attribute_length",
                "A label value was cut at METRICS.ATTRIBUTE_LENGTH (%d characters): %s.",
                self.attribute_length,
                ", ".join(key for (key, new), (_, old) in zip(found, scrubbed, strict=True) if new is not old),
            )
            self._count_refused("attribute_length")
        return found

    def _count_refused(self, reason: str) -> None:
        instrument = self.catalogued(_OVERFLOW_METRIC)
        assert isinstance(instrument, Counter)
        instrument.add(1, {"django_otel.reason": reason, "django_otel.signal": "metrics"})

    def count_overflow(self, name: str) -> None:
        """Count a measurement that met the cardinality limit of the instrument `name`."""
        guard.warn_once(
            f"cells.overflow.{name}",
            "Metric %s has reached METRICS.CARDINALITY_LIMIT (%d series); further label sets go to one overflow series."
            " Is an identifier used as an attribute?",
            name,
            self.cardinality_limit,
        )
        self._count_refused("cardinality_limit")

    def move(self, memory: Memory) -> None:
        """Go on in other memory: what this process has counted so far is added to what is there."""
        with self.lock:
            self.memory = memory
            for instrument in self._instruments.values():
                for series in instrument.all_series():
                    series.move(memory)

    def rebase(self) -> None:
        """Set right what this process counts as its own after cells were lost."""
        with self.lock:
            for instrument in self._instruments.values():
                for series in instrument.all_series():
                    series.rebase()

    def observed(self) -> list[Family]:
        """The observable gauges, as this process reads them."""
        with self.lock:
            instruments = [found for found in self._instruments.values() if isinstance(found, ObservableGauge)]
        return self._read(instruments, {})

    def collect(self, *, observed: bool = True) -> list[Family]:
        """Read every instrument that has a value, as far as this process has counted.

        Without `observed` no callback is asked.
        """
        with self.lock:
            instruments = [
                found for found in self._instruments.values() if observed or not isinstance(found, ObservableGauge)
            ]
            latest = self.exemplars.latest()
        return self._read(instruments, latest)

    def _read(self, instruments: Sequence[Instrument], latest: Mapping[tuple[int, int], Exemplar]) -> list[Family]:
        is_due = any(isinstance(instrument, ObservableGauge) and instrument.is_due() for instrument in instruments)
        with self.around_callbacks() if is_due else contextlib.nullcontext():
            families = [instrument.family(latest) for instrument in instruments]
        return [family for family in families if family.points]

    def clear(self) -> None:
        """Set every number to zero and forget exemplars; instruments and series stay valid."""
        with self.lock:
            self.exemplars.clear()
            for instrument in self._instruments.values():
                if isinstance(instrument, ObservableGauge):
                    instrument.forget()
                for series in instrument.all_series():
                    series.clear()


def _unchanged(attributes: Attributes) -> Attributes:
    return attributes
