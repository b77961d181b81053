"""Data model: families, points, histogram values and exemplars, from a source to a reader.

Sources are our own cells (`metrics.cells`) and the SDK's instruments
(`metrics.sdk_metrics`); readers are the scrape (`metrics.exposition`) and OTLP
(`metrics.sdk_metrics`). Values are always cumulative since `start_time_unix_nano`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

from django_otel.base import frozen

AttributeValue = str | bool | int | float | tuple[str | bool | int | float, ...]
#: Sorted by key, so that equal sets of attributes are equal tuples.
Attributes = tuple[tuple[str, AttributeValue], ...]


class MetricType(enum.StrEnum):
    """Types of metrics of the OpenTelemetry data model."""

    COUNTER = "counter"
    UP_DOWN_COUNTER = "up_down_counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    EXPONENTIAL_HISTOGRAM = "exponential_histogram"


@frozen.record
class Scope:
    """The instrumentation scope that made an instrument."""

    name: str
    version: str = ""
    schema_url: str = ""
    attributes: Attributes = ()


#: The scope of everything in `metrics.catalogue` and of the instruments made with `django_otel.counter()` and friends.
OWN_SCOPE = Scope("django_otel")


class Exemplar(NamedTuple):
    """One measurement as an example of those in a number.

    A tuple, because one is made for each measurement of a sampled request: a
    frozen dataclass is slower.

    Units: `value` is in the instrument's unit, `time_unix_s` in seconds since the epoch.
    """

    value: float
    time_unix_s: float
    trace_id: int
    span_id: int


class _Value:
    """Base like a dataclass with slots, without code that is compiled at every start."""

    __slots__: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__: Any = None

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({shown})"


class HistogramValue(_Value):
    """An explicit-bucket histogram.

    `bounds` are upper, inclusive and ascending; `buckets` has one more entry
    than `bounds` and is not cumulative; the count is the sum of the buckets.
    """

    __slots__ = ("bounds", "buckets", "sum")

    def __init__(self, bounds: tuple[float, ...], buckets: list[float], sum: float) -> None:  # noqa: A002 (the name of the field)
        self.bounds = bounds
        self.buckets = buckets
        self.sum = sum

    @property
    def count(self) -> float:
        return sum(self.buckets)


class ExponentialValue(_Value):
    """A base-2 exponential histogram (OpenTelemetry data model, "ExponentialHistogram").

    Bucket `i` of a side counts values in (base**(offset+i), base**(offset+i+1)], base = 2**(2**-scale).
    """

    __slots__ = ("count", "negative", "negative_offset", "positive", "positive_offset", "scale", "sum", "zero_count")

    def __init__(
        self,
        scale: int,
        zero_count: int,
        positive_offset: int,
        positive: list[int],
        negative_offset: int,
        negative: list[int],
        sum: float,  # noqa: A002 (the name of the field)
        count: int,
    ) -> None:
        self.scale = scale
        self.zero_count = zero_count
        self.positive_offset = positive_offset
        self.positive = positive
        self.negative_offset = negative_offset
        self.negative = negative
        self.sum = sum
        self.count = count


class Point(_Value):
    """One series of a family."""

    __slots__ = ("attributes", "exemplars", "start_time_unix_nano", "value")

    def __init__(
        self,
        attributes: Attributes,
        value: float | HistogramValue | ExponentialValue,
        exemplars: Sequence[Exemplar] = (),
        start_time_unix_nano: int = 0,
    ) -> None:
        self.attributes = attributes
        self.value = value
        self.exemplars = exemplars
        self.start_time_unix_nano = start_time_unix_nano


class Family(_Value):
    """All series of one instrument: OpenTelemetry name and unit, not yet Prometheus'."""

    __slots__ = ("description", "metric_type", "name", "points", "scope", "unit")

    def __init__(
        self,
        name: str,
        metric_type: MetricType,
        unit: str,
        description: str,
        scope: Scope,
        points: list[Point] | None = None,
    ) -> None:
        self.name = name
        self.metric_type = metric_type
        self.unit = unit
        self.description = description
        self.scope = scope
        self.points: list[Point] = [] if points is None else points
