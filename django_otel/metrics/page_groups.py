"""Groups of a Prometheus page: the points of every meter that share a Prometheus name."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from django_otel.base import guard
from django_otel.metrics.classic_buckets import with_classic_buckets
from django_otel.metrics.model import OWN_SCOPE, Attributes, ExponentialValue, Family, HistogramValue, MetricType, Point
from django_otel.metrics.prometheus_names import Naming, printable

_TYPES = {
    MetricType.COUNTER: "counter",
    MetricType.UP_DOWN_COUNTER: "gauge",
    MetricType.GAUGE: "gauge",
    MetricType.HISTOGRAM: "histogram",
    MetricType.EXPONENTIAL_HISTOGRAM: "histogram",
}
#: Suffixes of the names of a family's samples (OpenMetrics 1.0, "Suffixes").
SUFFIXES = {
    "counter": ("", "_total", "_created"),
    "gauge": ("",),
    "histogram": ("", "_bucket", "_sum", "_count", "_created"),
    "info": ("", "_info"),
}


@dataclass(slots=True)
class Group:
    """One family of the page, made of the families of any number of meters.

    `name` is without `_total`; `series` maps the formatted labels to the
    point, in which an exponential histogram is already a `HistogramValue`.
    """

    name: str
    type: str
    unit: str
    help: str
    #: Whether points with one label set are added (sums, distributions) or the last one stays (gauges).
    is_additive: bool = True
    series: dict[bytes, Point] = field(default_factory=dict)


class Claims:
    """Owners of sample names, so that no two families of a page share one."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}

    def take(self, name: str, suffixes: Iterable[str]) -> str | None:
        """Claim `name` with each suffix; when one is taken nothing is claimed and its owner's name returned."""
        wanted = [name + suffix for suffix in suffixes]
        for sample_name in wanted:
            if sample_name in self._owners:
                return self._owners[sample_name]
        self._owners.update(dict.fromkeys(wanted, name))
        return None


#: For each family the attributes of its points, by their identity, and their labels as they are written. The tuple is
#: kept with its string, so an identity cannot be another tuple's; equality would not do, since 1 == 1.0 == True.
_Labels = dict[str, dict[int, tuple[Attributes, bytes]]]
_MAX_CACHED_LABELS = 50_000


class _LabelCache:
    """Labels of the last page, which the next one mostly has again. Replaced whole, so that scrapes need no lock."""

    def __init__(self) -> None:
        self.labels: _Labels = {}


_cache = _LabelCache()


_USUAL = Naming()


def build_groups(
    families: Iterable[Family], claims: Claims | None = None, naming: Naming = _USUAL
) -> list[Group]:  # fmt: skip
    """Sort the points of all families under their Prometheus names.

    Families are taken in an order of their own (this package's first, then by
    name and scope), so that each worker and each scrape decides the same way:
    when two differ in type, the later is left out with one warning; of several
    descriptions the first is shown. Equal label sets become one series:
    counters, up-down counters and histograms add, of gauges the last stays.

    Errors: none; a family or point that cannot be shown is reported and left out.
    """
    claims = claims if claims is not None else Claims()
    known, fresh = _cache.labels, _Labels()
    budget = _MAX_CACHED_LABELS
    if naming.escaping:
        # Kept for the usual names alone.
        known, budget = {}, 0
    groups: dict[str, Group] = {}
    for family in sorted(families, key=_order):
        place = f"the exposition of {family.name}"
        try:
            group = _group_of(family, groups, claims, naming)
            if group is None:
                continue
            points = family.points
            if family.metric_type is MetricType.EXPONENTIAL_HISTOGRAM:
                points = with_classic_buckets(points, place)
            labels_now = fresh.setdefault(group.name, {}) if budget > 0 else {}
            _add_points(group, points, known.get(group.name, {}), labels_now, place, naming)
            budget -= len(points)
        except Exception as error:
            guard.report(place, error)
    if not naming.escaping:
        _cache.labels = fresh
    return list(groups.values())


def _order(family: Family) -> tuple[bool, str, str, str, str, str, str]:
    scope = family.scope
    return (
        scope != OWN_SCOPE,
        family.name,
        scope.name,
        scope.version,
        family.metric_type.value,
        family.unit,
        family.description,
    )


def _group_of(family: Family, groups: dict[str, Group], claims: Claims, naming: Naming) -> Group | None:
    name, unit = naming.family(family.name, family.unit, family.metric_type)
    type_ = _TYPES[family.metric_type]
    group = groups.get(name)
    if group is not None and group.type == type_:
        group.help = group.help or _clean_help(family.description)
        group.unit = group.unit or unit
        group.is_additive = group.is_additive and family.metric_type is not MetricType.GAUGE
        return group
    owner = group.name if group is not None else claims.take(name, SUFFIXES[type_])
    if owner is not None:
        guard.warn_once(
            f"exposition.conflict.{name}.{type_}",
            "The metric %s (%s, from %s) is not on the Prometheus page: its name there, %s, meets that of another "
            "metric, %s. Rename one of the two.",
            family.name,
            family.metric_type.value,
            family.scope.name,
            name,
            owner,
        )
        return None
    group = Group(
        name, type_, unit, _clean_help(family.description), is_additive=family.metric_type is not MetricType.GAUGE
    )
    groups[name] = group
    return group


def _clean_help(description: str) -> str:
    return printable(description.strip())


def _add_points(
    group: Group,
    points: Iterable[Point],
    known: Mapping[int, tuple[Attributes, bytes]],
    fresh: dict[int, tuple[Attributes, bytes]],
    place: str,
    naming: Naming,
) -> None:
    series = group.series
    is_histogram = group.type == "histogram"
    for point in points:
        try:
            attributes = point.attributes
            key = id(attributes)
            entry = known.get(key)
            if entry is None or entry[0] is not attributes:
                entry = (attributes, naming.labels(attributes, is_histogram=is_histogram))
            fresh[key] = entry
            labels = entry[1]
            if labels in series:
                point = _merge(series[labels], point, is_additive=group.is_additive)
            series[labels] = point
        except Exception as error:
            guard.report(place, error)


def _merge(first: Point, second: Point, *, is_additive: bool) -> Point:
    if not is_additive:
        return second
    value: float | HistogramValue
    if isinstance(first.value, HistogramValue) and isinstance(second.value, HistogramValue):
        value = _merge_histograms(first.value, second.value)
    elif isinstance(first.value, HistogramValue | ExponentialValue) or isinstance(
        second.value, HistogramValue | ExponentialValue
    ):
        raise TypeError("a number and a distribution cannot be added")
    else:
        value = first.value + second.value
    return Point(first.attributes, value, (*first.exemplars, *second.exemplars), first.start_time_unix_nano)


def _merge_histograms(first: HistogramValue, second: HistogramValue) -> HistogramValue:
    bounds = first.bounds
    if bounds != second.bounds:
        # Counts up to a bound that both have are exact; anything finer would be a guess.
        bounds = tuple(bound for bound in bounds if bound in set(second.bounds))
        first, second = _coarsen(first, bounds), _coarsen(second, bounds)
    buckets = [a + b for a, b in zip(first.buckets, second.buckets, strict=True)]
    return HistogramValue(bounds, buckets, first.sum + second.sum)


def _coarsen(value: HistogramValue, bounds: tuple[float, ...]) -> HistogramValue:
    buckets = [0.0] * (len(bounds) + 1)
    for bound, count in zip((*value.bounds, math.inf), value.buckets, strict=True):
        buckets[bisect.bisect_left(bounds, bound)] += count
    return HistogramValue(bounds, buckets, value.sum)
