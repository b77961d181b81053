"""Exponential histograms of our own instruments (`METRICS["HISTOGRAMS"] = "exponential"`).

Cells have the bounds of both: the explicit ones and the powers of 2**(1/4). So a measurement costs the same, a scrape
shows the explicit buckets exactly, and OTLP gets an exponential histogram of scale 2 that is exact as well.
Source: OpenTelemetry data model, "ExponentialHistogram".
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Iterable

from django_otel.base import guard
from django_otel.metrics.model import OWN_SCOPE, ExponentialValue, Family, HistogramValue, MetricType, Point

SCALE = 2
_PER_DOUBLING: int = 2**SCALE
#: Doublings below the smallest bound and above the largest that have buckets; values beyond are in the outermost.
_MARGIN = 6


@functools.lru_cache(maxsize=256)
def widen(bounds: tuple[float, ...]) -> tuple[float, ...]:
    """Return bounds with those of the exponential buckets among them; as they are where values may be negative."""
    positive = [bound for bound in bounds if bound > 0]
    if not positive or bounds[0] < 0:
        return bounds
    low = _index_of(positive[0]) - _MARGIN * _PER_DOUBLING
    high = _index_of(positive[-1]) + _MARGIN * _PER_DOUBLING
    return tuple(sorted({0.0, *bounds, *(_power(index) for index in range(low, high + 1))}))


def _power(index: int) -> float:
    """The upper bound of the bucket before `index`: 2**(index / 4), the same float in every process."""
    return float(2.0 ** (index / _PER_DOUBLING))


def _index_of(value: float) -> int:
    """Return the smallest index whose power is at least `value`."""
    low, high = -1100 * _PER_DOUBLING, 1024 * _PER_DOUBLING - 1
    place = bisect.bisect_left(range(low, high), value, key=_power)
    return place + low


@functools.lru_cache(maxsize=256)
def _buckets_of(bounds: tuple[float, ...]) -> tuple[tuple[int, ...], int] | None:
    """For each bucket of widened bounds its place among the exponential ones (-1: zero), and the first one's offset."""
    if not bounds or bounds[0] != 0.0 or len(bounds) < _MARGIN * _PER_DOUBLING:
        return None
    indexes = [_index_of(bound) - 1 for bound in bounds[1:]]
    # Smaller than any bound, and larger than all.
    places = [*indexes, indexes[-1] + 1]
    offset = places[0]
    return (-1, *(place - offset for place in places)), offset


def to_exponential(value: HistogramValue) -> ExponentialValue | None:
    """Return a distribution over widened bounds as an exponential one; None over other bounds."""
    found = _buckets_of(value.bounds)
    if found is None:
        return None
    places, offset = found
    counts = [0] * (max(places) + 1)
    zero = 0
    for place, number in zip(places, value.buckets, strict=True):
        if place < 0:
            zero += int(number)
        else:
            counts[place] += int(number)
    first = next((index for index, number in enumerate(counts) if number), len(counts))
    last = next((index for index in range(len(counts), 0, -1) if counts[index - 1]), 0)
    kept = counts[first:last]
    return ExponentialValue(SCALE, zero, offset + first if kept else 0, kept, 0, [], value.sum, int(sum(value.buckets)))


def narrow_value(value: HistogramValue, bounds: tuple[float, ...]) -> HistogramValue:
    """Return a distribution over bounds that are all among its own."""
    buckets = [0.0] * (len(bounds) + 1)
    place = 0
    for index, number in enumerate(value.buckets):
        upper = value.bounds[index] if index < len(value.bounds) else float("inf")
        while place < len(bounds) and bounds[place] < upper:
            place += 1
        buckets[place] += number
    return HistogramValue(bounds, buckets, value.sum)


def narrow(families: Iterable[Family], explicit: Callable[[str], tuple[float, ...]]) -> list[Family]:
    """Return families whose histograms have the explicit bounds again; `explicit` gives those of a metric by name."""
    return [_convert(family, lambda value, name=family.name: _narrowed(value, explicit(name))) for family in families]  # type: ignore[misc]


def _narrowed(value: HistogramValue, bounds: tuple[float, ...]) -> HistogramValue:
    # Another worker may run under other settings.
    return narrow_value(value, bounds) if set(bounds) < set(value.bounds) else value


def exponentialize(families: Iterable[Family]) -> list[Family]:
    """Return families for OTLP: histograms of our own instruments over widened bounds as exponential ones."""
    return [_convert(family, lambda value: to_exponential(value) or value) for family in families]


def _convert(
    family: Family, convert: Callable[[HistogramValue], HistogramValue | ExponentialValue]
) -> Family:  # fmt: skip
    if family.metric_type is not MetricType.HISTOGRAM or family.scope != OWN_SCOPE or not family.points:
        return family
    with guard.contained(f"the buckets of {family.name}"):
        points = [
            Point(point.attributes, convert(point.value), point.exemplars, point.start_time_unix_nano)
            for point in family.points
            if isinstance(point.value, HistogramValue)
        ]
        is_exponential = all(isinstance(point.value, ExponentialValue) for point in points)
        metric_type = MetricType.EXPONENTIAL_HISTOGRAM if is_exponential else MetricType.HISTOGRAM
        return Family(family.name, metric_type, family.unit, family.description, family.scope, points)
    return family
