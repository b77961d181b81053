"""The shapes numbers have on their way from a source to a reader.

Sources are our own cells (`core.cells`) and the SDK's instruments
(`core.sdk_metrics`); readers are the scrape (`core.exposition`) and OTLP
(`core.sdk_metrics`). Values are always cumulative since `start_time_unix_nano`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

AttributeValue = str | bool | int | float | tuple[str | bool | int | float, ...]
#: Sorted by key, so that equal sets of attributes are equal tuples.
Attributes = tuple[tuple[str, AttributeValue], ...]


class Kind(enum.StrEnum):
    """What a number means, as the OpenTelemetry data model distinguishes it."""

    COUNTER = "counter"
    UP_DOWN_COUNTER = "up_down_counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    EXPONENTIAL_HISTOGRAM = "exponential_histogram"


@dataclass(frozen=True, slots=True)
class Scope:
    """The instrumentation scope that made an instrument."""

    name: str
    version: str = ""
    schema_url: str = ""
    attributes: Attributes = ()


#: The scope of everything in `core.names` and of the instruments made with `django_otel.counter()` and friends.
OWN_SCOPE = Scope("django_otel")


class Exemplar(NamedTuple):
    """One measurement that shows what a number is made of.

    A tuple, because one is made for each measurement of a sampled request: a
    frozen dataclass costs four times as much (3 kI more).

    Units: `value` is in the instrument's unit, `time_unix_s` in seconds since the epoch.
    """

    value: float
    time_unix_s: float
    trace_id: int
    span_id: int


@dataclass(slots=True)
class HistogramValue:
    """An explicit-bucket histogram.

    `bounds` are upper, inclusive and ascending; `buckets` has one more entry
    than `bounds` and is not cumulative; the count is the sum of the buckets.
    """

    bounds: tuple[float, ...]
    buckets: list[float]
    sum: float

    @property
    def count(self) -> float:
        return sum(self.buckets)


@dataclass(slots=True)
class ExponentialValue:
    """A base-2 exponential histogram (OpenTelemetry data model, "ExponentialHistogram").

    Bucket `i` of a side counts values in (base**(offset+i), base**(offset+i+1)], base = 2**(2**-scale).
    """

    scale: int
    zero_count: int
    positive_offset: int
    positive: list[int]
    negative_offset: int
    negative: list[int]
    sum: float
    count: int


@dataclass(slots=True)
class Point:
    """One series of a family."""

    attributes: Attributes
    value: float | HistogramValue | ExponentialValue
    exemplars: Sequence[Exemplar] = ()
    start_time_unix_nano: int = 0


@dataclass(slots=True)
class Family:
    """All series of one instrument: OpenTelemetry name and unit, not yet Prometheus'."""

    name: str
    kind: Kind
    unit: str
    description: str
    scope: Scope
    points: list[Point] = field(default_factory=list)
