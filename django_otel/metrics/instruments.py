"""Instruments: counters, gauges and histograms, each with its series."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, SupportsFloat

from django_otel.base import guard, proxies
from django_otel.metrics.attributes import build_attributes, identity
from django_otel.metrics.cells import Definition
from django_otel.metrics.model import OWN_SCOPE, Attributes, Exemplar, Family, HistogramValue, MetricType, Point
from django_otel.metrics.series import GaugeSeries, HistogramSeries, Series

#: OpenTelemetry metrics SDK, "Overflow attribute".
OVERFLOW: Attributes = (("otel.metric.overflow", True),)
OVERFLOW_METRIC = "django_otel.cardinality.overflow"
#: Characters of a refused value in a log line.
_LONGEST_REFUSED = 100


if TYPE_CHECKING:
    from django_otel.metrics.series import SeriesStore

    class InstrumentStore(SeriesStore, Protocol):
        """The store of instruments, as far as an instrument uses it."""

        cardinality_limit: int
        #: Return the ids of the trace and span that are current and recorded, else zeros. None: no exemplars.
        current_ids: Callable[[], tuple[int, int]] | None

        def clean(self, attributes: Attributes) -> Attributes:
            """Scrub and cut attributes."""

        def count_overflow(self, name: str) -> None:
            """Count a measurement that met the cardinality limit of the instrument `name`."""


class Instrument:
    """A named instrument and its series. Made by `CellStore`, never directly."""

    def __init__(self, store: InstrumentStore, definition: Definition) -> None:
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
        try:
            cleaned = build_attributes(attributes) if attributes else ()
        except Exception as error:
            # Not a mapping: the measurement counts all the same.
            guard.report(f"the attributes of {self.name}", error)
            cleaned = ()
        key = identity(cleaned) if cleaned else ()
        found = self._series.get(key)
        return found if found is not None else self._make(key, cleaned)

    def _make(self, key: object, attributes: Attributes) -> Series:
        store = self._store
        # The counter of cuts is not cut itself.
        scrubbed = attributes if self.name == OVERFLOW_METRIC else store.clean(attributes)
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
        return SERIES_CLASSES.get(self.definition.metric_type, Series)(
            self._store, self.definition, attributes, is_overflow
        )

    def redefine(self, definition: Definition) -> None:
        """Start again by another definition. The store's lock is held."""
        self.definition = definition
        self._series.clear()
        self._overflow = None

    def all_series(self) -> list[Series]:
        with self._store.lock:
            found = list(self._series.values())
            if self._overflow is not None:
                found.append(self._overflow)
            return found

    def family(self, latest: Mapping[tuple[int, int], Exemplar]) -> Family:
        definition = self.definition
        family = Family(definition.name, definition.metric_type, definition.unit, definition.description, OWN_SCOPE)
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


def _read_number(value: object) -> float | None:
    """A project's number as a cell holds it (Decimal, Fraction and lazy ones too); None for anything else."""
    try:
        found: float = float(proxies.resolve(value))
    except Exception as error:
        guard.pass_on(error)
        # A `__float__` of the project, or the query behind a lazy value, may raise anything.
        return None
    return found


class _Refused:
    """A value of the project in a log line: its `repr()`, where it has one, and only the beginning of a long one."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __repr__(self) -> str:
        try:
            return repr(self._value)[:_LONGEST_REFUSED]
        except Exception as error:
            guard.pass_on(error)
            return f"<{type(self._value).__name__}>"


class Counter(Instrument):
    """A sum that only grows."""

    def add(self, amount: float = 1, attributes: Mapping[str, object] = {}) -> None:
        """Add `amount` (in the instrument's unit, not negative: such a call is ignored and logged once)."""
        number = _read_number(amount)
        if number is None or not 0 <= number < math.inf:
            guard.warn_once(
                f"cells.{self.name}",
                "Counter %s: %r was not added; expected a number >= 0.",
                self.name,
                _Refused(amount),
            )
            return
        self.series(attributes).add(number)


class UpDownCounter(Instrument):
    """A sum that grows and shrinks."""

    def add(self, amount: float, attributes: Mapping[str, object] = {}) -> None:
        """Add `amount`, in the instrument's unit."""
        number = _read_number(amount)
        if number is None or not math.isfinite(number):
            guard.warn_once(f"cells.{self.name}", "Up-down counter %s: %r was not added.", self.name, _Refused(amount))
            return
        self.series(attributes).add(number)


class Gauge(Instrument):
    """A value as it was last set."""

    def set(self, value: float, attributes: Mapping[str, object] = {}) -> None:
        """Replace the value, in the instrument's unit. What is not a number is ignored and logged once."""
        number = _read_number(value)
        if number is None:
            guard.warn_once(f"cells.{self.name}", "Gauge %s was not set to %r.", self.name, _Refused(value))
            return
        series = self.series(attributes)
        assert isinstance(series, GaugeSeries)
        series.set(number)


class Histogram(Instrument):
    """A distribution of values in fixed buckets."""

    def record(self, value: float, attributes: Mapping[str, object] = {}, trace_id: int = 0, span_id: int = 0) -> None:
        """Count one value, in the instrument's unit, with the ids of its trace or those of the current span.

        Values that are not finite are ignored and logged once, and so are
        negative ones, by which the sum would fall, unless a bound is below zero.
        """
        number = value if type(value) is float else _read_number(value)
        if number is None or not 0 <= number < math.inf:
            bounds = self.definition.bounds
            if number is None or not math.isfinite(number) or not bounds or bounds[0] >= 0:
                guard.warn_once(
                    f"cells.{self.name}",
                    "Histogram %s: %r was not recorded; expected a number >= 0.",
                    self.name,
                    _Refused(value),
                )
                return
        series: HistogramSeries = self.series(attributes)  # type: ignore[assignment]  # by the kind of the instrument
        current_ids = self._store.current_ids
        if current_ids is None:
            trace_id = 0
        elif not trace_id:
            trace_id, span_id = current_ids()
        series.observe(number, trace_id, span_id)


#: Result of an observable callback: a value, or pairs of value and attributes. None (a sum over no rows) is no value.
Observed = SupportsFloat | None | Iterable[tuple[SupportsFloat | None, Mapping[str, object]]]


class ObservableGauge(Instrument):
    """A gauge that asks its callback when it is read, at most every 15 seconds."""

    def __init__(self, store: InstrumentStore, definition: Definition, callback: Callable[[], Observed]) -> None:
        super().__init__(store, definition)
        self.callback = callback
        #: How long a reading is used again, in seconds.
        self.cache_s = 15.0
        self._read_at_s = -math.inf
        self._points: list[Point] = []

    def is_due(self) -> bool:
        """Return whether the next reading asks the callback."""
        return time.monotonic() - self._read_at_s >= self.cache_s

    def family(self, latest: Mapping[tuple[int, int], Exemplar]) -> Family:
        definition = self.definition
        if self.is_due():
            # Set first: a slow callback must not be run by every scrape that arrives meanwhile.
            self._read_at_s = time.monotonic()
            points: list[Point] = []
            # No lock is held here: a callback may itself count something.
            with guard.contained(f"the callback of {self.name}"):
                points = self._observe()
            # Not what was there before, where it failed: that is no longer true.
            self._points = points
        return Family(
            definition.name,
            definition.metric_type,
            definition.unit,
            definition.description,
            OWN_SCOPE,
            list(self._points),
        )

    def _observe(self) -> list[Point]:
        """Ask the callback. Of several values with the same attributes the last one counts."""
        observed = self.callback()
        if observed is None or isinstance(observed, SupportsFloat):
            observed = [(observed, {})]
        points: dict[object, Point] = {}
        for value, attributes in observed:
            number = _read_number(value)
            if number is None:
                if value is not None:
                    guard.warn_once(f"cells.{self.name}", "Gauge %s was not set to %r.", self.name, _Refused(value))
                continue
            cleaned = self._store.clean(build_attributes(attributes))
            if len(points) >= self._store.cardinality_limit and identity(cleaned) not in points:
                self._store.count_overflow(self.name)
                break
            points[identity(cleaned)] = Point(cleaned, number)
        return list(points.values())

    def forget(self) -> None:
        """Ask the callback again at the next reading."""
        self._read_at_s = -math.inf
        self._points = []


SERIES_CLASSES: dict[MetricType, type[Series]] = {MetricType.HISTOGRAM: HistogramSeries, MetricType.GAUGE: GaugeSeries}
INSTRUMENT_CLASSES: dict[MetricType, type[Instrument]] = {
    MetricType.COUNTER: Counter,
    MetricType.UP_DOWN_COUNTER: UpDownCounter,
    MetricType.GAUGE: Gauge,
    MetricType.HISTOGRAM: Histogram,
}
