"""Adds up families: increments of one process, and equal instruments of several processes.

Apart from `metrics.sdk_metrics`, which imports the SDK's metrics: a scrape does not need them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from django_otel.metrics.attributes import identity
from django_otel.metrics.catalogue import CATALOGUE
from django_otel.metrics.exemplar_choice import keep_newest
from django_otel.metrics.model import ExponentialValue, Family, HistogramValue, MetricType, Point


def merge_point(known: Point, increment: Point) -> bool:
    """Add a delta to a total; False when they do not fit (bounds changed): then the total starts again."""
    before, more = known.value, increment.value
    if isinstance(before, HistogramValue) and isinstance(more, HistogramValue):
        if before.bounds != more.bounds:
            return False
        known.value = HistogramValue(
            before.bounds, [a + b for a, b in zip(before.buckets, more.buckets, strict=True)], before.sum + more.sum
        )
    elif isinstance(before, ExponentialValue) and isinstance(more, ExponentialValue):
        known.value = merge_exponential(before, more)
    elif isinstance(before, int | float) and isinstance(more, int | float):
        known.value = before + more
    else:
        return False
    known.exemplars = keep_newest(known.value, known.exemplars, increment.exemplars)
    return True


def merge_exponential(one: ExponentialValue, other: ExponentialValue) -> ExponentialValue:
    """Add two exponential histograms at the coarser of their scales.

    Source: OpenTelemetry metrics data model, "Exponential Histograms: Perfect subsetting".
    """
    scale = min(one.scale, other.scale)
    positive_offset, positive = _add_sides(
        _downscale(one.positive_offset, one.positive, one.scale - scale),
        _downscale(other.positive_offset, other.positive, other.scale - scale),
    )
    negative_offset, negative = _add_sides(
        _downscale(one.negative_offset, one.negative, one.scale - scale),
        _downscale(other.negative_offset, other.negative, other.scale - scale),
    )
    return ExponentialValue(
        scale,
        one.zero_count + other.zero_count,
        positive_offset,
        positive,
        negative_offset,
        negative,
        one.sum + other.sum,
        one.count + other.count,
    )


def _downscale(offset: int, counts: Sequence[int], by: int) -> dict[int, int]:
    """Bucket counts by index, `by` scales coarser: an index halves, rounded down, per scale."""
    found: dict[int, int] = {}
    for position, count in enumerate(counts):
        if count:
            index = (offset + position) >> by
            found[index] = found.get(index, 0) + count
    return found


def _add_sides(one: Mapping[int, int], other: Mapping[int, int]) -> tuple[int, list[int]]:
    indexes = one.keys() | other.keys()
    if not indexes:
        return 0, []
    low, high = min(indexes), max(indexes)
    # A distribution this wide would need a coarser scale; the SDK keeps at most 160 buckets a side.
    return low, [one.get(index, 0) + other.get(index, 0) for index in range(low, high + 1)]


def merge_processes(parts: Iterable[tuple[Iterable[Family], bool]]) -> list[Family]:
    """Add up the families of several processes, each with whether the process lives.

    Counters and histograms add over all; up-down counters over the living; of
    gauges the last living process given counts. Instruments merge by scope,
    name, kind and unit, series by attributes; where bounds differ, the later
    process's distribution starts again.
    """
    families: dict[object, Family] = {}
    points: dict[object, Point] = {}
    for found, is_living in parts:
        for family in found:
            if not is_living and family.metric_type in (MetricType.UP_DOWN_COUNTER, MetricType.GAUGE):
                continue
            key = (family.scope, family.name, family.metric_type, family.unit)
            total = families.get(key)
            if total is None:
                total = families[key] = Family(
                    family.name, family.metric_type, family.unit, family.description, family.scope
                )
            for point in family.points:
                point_key = (key, identity(point.attributes))
                known = points.get(point_key)
                if known is None:
                    copy = Point(point.attributes, point.value, point.exemplars, point.start_time_unix_nano)
                    points[point_key] = copy
                    total.points.append(copy)
                elif family.metric_type is MetricType.GAUGE and _keeps_largest(family.name):
                    known.value = max(known.value, point.value)  # type: ignore[type-var]
                elif family.metric_type is MetricType.GAUGE or not merge_point(known, point):
                    known.value, known.exemplars = point.value, point.exemplars
    return list(families.values())


def _keeps_largest(name: str) -> bool:
    """Return whether of this gauge the largest value counts, whichever process has set it."""
    metric = CATALOGUE.get(name)
    return metric is not None and metric.aggregation == "max_ever"
