"""Store of all instruments of the process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from django_otel.base import forks, guard
from django_otel.metrics import catalogue
from django_otel.metrics.attributes import cut
from django_otel.metrics.cells import Definition, Memory
from django_otel.metrics.exponential import widen
from django_otel.metrics.instruments import (
    INSTRUMENT_CLASSES,
    OVERFLOW_METRIC,
    Counter,
    Gauge,
    Histogram,
    Instrument,
    ObservableGauge,
    Observed,
    UpDownCounter,
)
from django_otel.metrics.model import Attributes, Exemplar, Family, MetricType
from django_otel.metrics.series import ExemplarRing


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
        #: Return the ids of the trace and span that are current and recorded, else zeros. None: no exemplars.
        self.current_ids: Callable[[], tuple[int, int]] | None = _no_ids
        #: Characters of a label value.
        self.attribute_length = 256
        #: Wrapped around each round of callbacks; they may use resources that must be given back, such as connections.
        self.around_callbacks: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
        #: Called before numbers are read or shown: what counts elsewhere is brought up to date.
        self.updaters: list[Callable[[], None]] = []
        self.scrub: Callable[[Attributes], Attributes] = _unchanged
        self._buckets: Mapping[str, tuple[float, ...]] = {}
        #: Bounds that the maker of a histogram has asked for, by name.
        self._given: dict[str, tuple[float, ...]] = {}
        #: Whether histograms have the bounds of exponential buckets as well (METRICS.HISTOGRAMS).
        self.is_exponential = False
        self._instruments: dict[str, Instrument] = {}
        #: How often cells have moved, or were set to zero.
        self.moves = 0
        #: Whether the process has joined, that is, its first measurement was noticed.
        self.joined = False
        #: Called by a measurement while `joined` is False.
        self.on_measurement: Callable[[], None] | None = None
        self._is_forking = False
        # Taken over the fork, so that the child does not inherit it held by a thread it does not have.
        forks.register("metrics.store", self._after_fork_in_child, before=self._before_fork, in_parent=self._after_fork)

    def wake(self) -> None:
        """Notify the waiting thread of the first measurement. No lock is held here."""
        if self.on_measurement is not None:
            with guard.contained("the first measurement"):
                self.on_measurement()

    def _before_fork(self) -> None:
        self.lock.acquire()
        self._is_forking = True

    def _after_fork(self) -> None:
        self._is_forking = False
        self.lock.release()

    def _after_fork_in_child(self) -> None:
        try:
            self.leave()
        finally:
            # Not where the fork ran none of Python's hooks.
            if self._is_forking:
                self._after_fork()

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
        is_exponential: bool = False,
    ) -> None:
        """Apply settings. An instrument whose bounds change starts again; the others keep their numbers."""
        with self.lock:
            self.cardinality_limit = cardinality_limit
            self.attribute_length = attribute_length
            self.scrub = scrub or _unchanged
            self._buckets = dict(buckets)
            self.is_exponential = is_exponential
            for instrument in self._instruments.values():
                wanted = self._with_bounds(instrument.definition)
                if wanted.bounds != instrument.definition.bounds:
                    instrument.redefine(wanted)

    def explicit_bounds(self, name: str) -> tuple[float, ...]:
        """Return the bounds of a histogram as the settings, the catalogue or its maker give them, by its name."""
        metric = catalogue.CATALOGUE.get(name)
        default = metric.bounds if metric is not None else (self._given.get(name) or catalogue.DEFAULT_BOUNDS)
        return self._buckets.get(name, default)

    def _with_bounds(self, definition: Definition) -> Definition:
        if definition.metric_type is not MetricType.HISTOGRAM:
            return definition
        bounds = self.explicit_bounds(definition.name)
        if self.is_exponential:
            bounds = widen(bounds)
        return Definition(
            definition.name,
            definition.metric_type,
            definition.unit,
            definition.description,
            bounds,
            definition.aggregation,
        )

    def define(self, definition: Definition) -> Instrument:
        """The instrument of that name, made if need be.

        Errors: `ValueError` when the name is taken by an instrument of another kind, or by a metric of ours.
        """
        definition = _own_definition(definition)
        with self.lock:
            found = self._instruments.get(definition.name)
            if found is not None:
                if found.definition.metric_type is not definition.metric_type or isinstance(found, ObservableGauge):
                    kind = (
                        "observable gauge" if isinstance(found, ObservableGauge) else found.definition.metric_type.value
                    )
                    raise ValueError(
                        f"The instrument {definition.name!r} is of kind {kind}; "
                        f"it cannot be a {definition.metric_type.value} as well. Choose another name."
                    )
                return found
            self._given[definition.name] = definition.bounds
            made = INSTRUMENT_CLASSES[definition.metric_type](self, self._with_bounds(definition))
            self._instruments[definition.name] = made
            return made

    def counter(self, name: str, unit: str = "", description: str = "") -> Counter:
        instrument = self.define(Definition(name, MetricType.COUNTER, unit, description))
        assert isinstance(instrument, Counter)
        return instrument

    def up_down_counter(self, name: str, unit: str = "", description: str = "") -> UpDownCounter:
        instrument = self.define(Definition(name, MetricType.UP_DOWN_COUNTER, unit, description, aggregation="livesum"))
        assert isinstance(instrument, UpDownCounter)
        return instrument

    def gauge(self, name: str, unit: str = "", description: str = "") -> Gauge:
        instrument = self.define(Definition(name, MetricType.GAUGE, unit, description, aggregation="last"))
        assert isinstance(instrument, Gauge)
        return instrument

    def histogram(self, name: str, unit: str = "", description: str = "", bounds: tuple[float, ...] = ()) -> Histogram:
        instrument = self.define(Definition(name, MetricType.HISTOGRAM, unit, description, tuple(bounds)))
        assert isinstance(instrument, Histogram)
        return instrument

    def observable_gauge(
        self, name: str, callback: Callable[[], Observed], unit: str = "", description: str = ""
    ) -> ObservableGauge:
        """A gauge read through `callback`; asking again for one name replaces its callback."""
        definition = _own_definition(Definition(name, MetricType.GAUGE, unit, description, (), "last"))
        with self.lock:
            found = self._instruments.get(name)
            if found is None:
                made = ObservableGauge(self, definition, callback)
                self._instruments[name] = made
                return made
        if not isinstance(found, ObservableGauge):
            raise ValueError(
                f"The instrument {name!r} is a {found.definition.metric_type.value}; "
                "it cannot be an observable gauge as well."
            )
        found.callback = callback
        found.forget()
        return found

    def type_of(self, name: str) -> MetricType | None:
        """Return the type of the instrument of that name; None if there is none."""
        found = self._instruments.get(name)
        return None if found is None else found.definition.metric_type

    def forget_observed(self) -> None:
        """Ask the callbacks of all observable gauges again at the next reading (for tests)."""
        with self.lock:
            for instrument in self._instruments.values():
                if isinstance(instrument, ObservableGauge):
                    instrument.forget()

    def catalogued(self, name: str) -> Instrument:
        """Return the instrument of `catalogue.CATALOGUE` with that name."""
        found = self._instruments.get(name)
        if found is not None and not isinstance(found, ObservableGauge):
            # Names of the catalogue have one type only, so no definition is built to compare.
            return found
        return self.define(_define_catalogued(catalogue.CATALOGUE[name]))

    def clean(self, attributes: Attributes) -> Attributes:
        """Scrub attributes, then cut their texts at METRICS.ATTRIBUTE_LENGTH, counted; as they are where they fit."""
        scrubbed = self.scrub(attributes)
        found = cut(scrubbed, self.attribute_length)
        if found is not scrubbed:
            guard.warn_once(
                "cells.attribute_length",
                "A label was cut at METRICS.ATTRIBUTE_LENGTH (%d characters): %s.",
                self.attribute_length,
                ", ".join(item[0] for item in found if item not in scrubbed),
            )
            self.count_refused("attribute_length")
        return found

    def count_refused(self, reason: str) -> None:
        """Count a measurement of which a label was cut or replaced, or that went to an overflow series, by `reason`."""
        instrument = self.catalogued(OVERFLOW_METRIC)
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
        self.count_refused("cardinality_limit")

    def move(self, memory: Memory) -> None:
        """Move to other memory, and add the counts of this process to those there."""
        with self.lock:
            self.memory = memory
            for instrument in self._instruments.values():
                for series in instrument.all_series():
                    series.move(memory)

    def rebase(self) -> None:
        """Correct the counts of this process after cells were lost."""
        with self.lock:
            for instrument in self._instruments.values():
                for series in instrument.all_series():
                    series.rebase()

    def update(self) -> None:
        """Bring numbers up to date that are counted elsewhere."""
        for updater in list(self.updaters):
            with guard.contained("bringing metrics up to date"):
                updater()

    def observed(self) -> list[Family]:
        """The observable gauges, as this process reads them."""
        with self.lock:
            instruments = [found for found in self._instruments.values() if isinstance(found, ObservableGauge)]
        return self._read(instruments, {})

    def collect(self, *, observed: bool = True) -> list[Family]:
        """Read every instrument that has a value, as far as this process has counted.

        Without `observed` no callback is asked.
        """
        self.update()
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


def _define_catalogued(metric: catalogue.Metric) -> Definition:
    return Definition(
        metric.name, metric.metric_type, metric.unit, metric.description, metric.bounds, metric.aggregation
    )


def _own_definition(definition: Definition) -> Definition:
    """Return the catalogue's definition of a metric of ours, and any other as it is.

    Errors: `ValueError` when the metric of ours is of another kind.
    """
    metric = catalogue.CATALOGUE.get(definition.name)
    if metric is None:
        return definition
    if metric.metric_type is not definition.metric_type:
        raise ValueError(
            f"The instrument {definition.name!r} is a {metric.metric_type.value} of django_otel; "
            f"it cannot be a {definition.metric_type.value} as well. Choose another name."
        )
    return _define_catalogued(metric)


def _no_ids() -> tuple[int, int]:
    return 0, 0


def _unchanged(attributes: Attributes) -> Attributes:
    return attributes
