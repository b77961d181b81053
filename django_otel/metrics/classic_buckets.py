"""Classic buckets of exponential histograms, because the text formats have no others."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

from django_otel.base import guard
from django_otel.metrics.model import ExponentialValue, HistogramValue, Point

#: Finest step of the classic buckets: 2**(1/4), 19 %. Finer is more series than a quantile is worth.
_MAX_SCALE = 2
#: Most buckets of a side.
_MAX_BUCKETS = 24


def with_classic_buckets(points: Sequence[Point], place: str) -> list[Point]:
    """Give exponential histograms explicit buckets, the same ones for every point of the family.

    The same, or `sum by (le)` over the series would be wrong. The bounds are
    those of the histogram's own buckets at a coarser scale; a bound of a
    coarser scale is one of every finer scale, so when the range grows, series
    end but none changes its meaning.
    """
    scale = _MAX_SCALE
    sides: list[tuple[int, int, int]] = []
    usable: list[Point] = []
    for point in points:
        value = point.value
        if isinstance(value, ExponentialValue):
            used = [
                (value.scale, value.positive_offset + first, value.positive_offset + last)
                for first, last in _used(value.positive)
            ] + [
                (value.scale, value.negative_offset + first, value.negative_offset + last)
                for first, last in _used(value.negative)
            ]
            scale = min(scale, value.scale)
            sides += used
        usable.append(point)
    if sides:
        while True:
            low = min(_rescale(first, from_scale, scale) for from_scale, first, _ in sides)
            high = max(_rescale(last, from_scale, scale) for from_scale, _, last in sides)
            if high - low < _MAX_BUCKETS:
                break
            scale -= 1
        magnitudes = [_lower_bound(index, scale) for index in range(low, high + 2)]
    else:
        magnitudes = []
    has_negative = any(isinstance(p.value, ExponentialValue) and any(p.value.negative) for p in usable)
    has_zero = any(isinstance(p.value, ExponentialValue) and p.value.zero_count for p in usable)
    negative = [-magnitude for magnitude in reversed(magnitudes)] if has_negative else []
    zero = [0.0] if has_negative or has_zero else []
    # Beyond the range of a float a bound is 0 or infinity; the set leaves one of each at most.
    bounds = tuple(sorted({b for b in (*negative, *zero, *magnitudes) if math.isfinite(b)}))
    converted: list[Point] = []
    for point in usable:
        try:
            value = point.value
            if isinstance(value, ExponentialValue):
                classic = _to_classic(value, bounds, scale)
                point = Point(point.attributes, classic, point.exemplars, point.start_time_unix_nano)
            converted.append(point)
        except Exception as error:
            guard.report(place, error)
    return converted


def _used(counts: Sequence[int]) -> list[tuple[int, int]]:
    """The first and last index that counted anything, as a list of one pair or none."""
    used = [index for index, count in enumerate(counts) if count]
    return [(used[0], used[-1])] if used else []


def _rescale(index: int, from_scale: int, to_scale: int) -> int:
    """The bucket at a coarser scale that holds bucket `index` (data model, "Exponential Scale")."""
    return index >> (from_scale - to_scale)


def _lower_bound(index: int, scale: int) -> float:
    """The lower bound of bucket `index`: 2**(index * 2**-scale)."""
    try:
        return float(2.0 ** math.ldexp(index, -scale))
    except OverflowError:
        return math.inf if index > 0 else 0.0


def _to_classic(value: ExponentialValue, bounds: tuple[float, ...], scale: int) -> HistogramValue:
    buckets = [0.0] * (len(bounds) + 1)
    for index, count in enumerate(value.negative):
        if count:
            upper = -_lower_bound(_rescale(value.negative_offset + index, value.scale, scale), scale)
            buckets[bisect.bisect_left(bounds, upper)] += count
    if value.zero_count:
        buckets[bisect.bisect_left(bounds, 0.0)] += value.zero_count
    for index, count in enumerate(value.positive):
        if count:
            upper = _lower_bound(_rescale(value.positive_offset + index, value.scale, scale) + 1, scale)
            buckets[bisect.bisect_left(bounds, upper)] += count
    return HistogramValue(bounds, buckets, value.sum)
