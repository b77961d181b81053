"""Converts between the SDK's metrics and our families, in both directions.

In: a passive reader with delta temporality, whose increments are added up here.
So a fork needs no baseline, and OTLP and the scrape see one set of numbers.
Out: families as the SDK's `MetricsData`, cumulative or delta, for its exporters.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry.sdk.metrics import (
    Counter,
    Histogram,
    MeterProvider,
    ObservableCounter,
    UpDownCounter,
)
from opentelemetry.sdk.metrics import Exemplar as SdkExemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Buckets,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.metrics.view import Aggregation, ExponentialBucketHistogramAggregation
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from django_otel.base import guard
from django_otel.base.sdk_compat import is_observed, renew_collection_lock
from django_otel.metrics.attributes import build_attributes, identity
from django_otel.metrics.merging import merge_exponential, merge_point
from django_otel.metrics.model import (
    Attributes,
    Exemplar,
    ExponentialValue,
    Family,
    HistogramValue,
    MetricType,
    Point,
    Scope,
)

#: Delta for whatever is counted; observed values (gauges, observable up-down counters) are absolute anyway.
_TEMPORALITY: dict[type, AggregationTemporality] = {
    Counter: AggregationTemporality.DELTA,
    UpDownCounter: AggregationTemporality.DELTA,
    Histogram: AggregationTemporality.DELTA,
    ObservableCounter: AggregationTemporality.DELTA,
}


def build_reader(*, is_exponential: bool = False) -> InMemoryMetricReader:
    """The passive reader that `SdkMetrics` empties; `is_exponential` is about histograms without a view."""
    aggregation: dict[type, Aggregation] | None = None
    if is_exponential:
        aggregation = {Histogram: ExponentialBucketHistogramAggregation()}
    return InMemoryMetricReader(preferred_temporality=dict(_TEMPORALITY), preferred_aggregation=aggregation)


class SdkMetrics:
    """The running totals of every instrument made through one SDK meter provider."""

    def __init__(self, reader: InMemoryMetricReader, provider: MeterProvider) -> None:
        self._reader = reader
        self._provider = provider
        self._lock = threading.Lock()
        self._families: dict[object, Family] = {}
        self._points: dict[object, Point] = {}
        #: Cleans the attributes of every point; those that look alike then are one series.
        self.scrub: Callable[[Attributes], Attributes] = _unchanged
        #: Cleans the scope that the project has named.
        self.scrub_scope: Callable[[Scope], Scope] = _same_scope

    def after_fork(self) -> None:
        """In the child: start at zero; the SDK's values were counted by the parent."""
        self._lock = threading.Lock()
        self._families = {}
        self._points = {}
        # Another of the parent's threads may have held it.
        renew_collection_lock(self._provider)
        fresh = build_reader()
        with guard.contained("restarting SDK metrics after a fork"):
            self._provider.remove_metric_reader(self._reader)
            self._provider.add_metric_reader(fresh)
            self._reader = fresh

    def renew_locks(self) -> None:
        """Replace the locks, using the current `threading`: one is held while callbacks run, which may wait."""
        self._lock = threading.Lock()
        renew_collection_lock(self._provider)

    def collect(self) -> list[Family]:
        """Read the SDK and return all families, cumulative since the process began."""
        with self._lock:
            data = self._reader.get_metrics_data()
            # None is normal: no instrument has measured anything yet.
            if data is not None:
                self._add(data)
            return [
                Family(
                    family.name, family.metric_type, family.unit, family.description, family.scope, list(family.points)
                )
                for family in self._families.values()
            ]

    def _add(self, data: MetricsData) -> None:
        for resource_metrics in data.resource_metrics:
            for scope_metrics in resource_metrics.scope_metrics:
                scope = self.scrub_scope(_parse_scope(scope_metrics.scope))
                for metric in scope_metrics.metrics:
                    with guard.contained("reading an SDK metric"):
                        self._add_metric(scope, metric)

    def _add_metric(self, scope: Scope, metric: Metric) -> None:
        data = metric.data
        metric_type = _type_of(data)
        if metric_type is None:
            return
        key = (scope, metric.name, metric_type, metric.unit)
        family = self._families.get(key)
        if family is None:
            family = Family(metric.name, metric_type, metric.unit or "", metric.description or "", scope)
            self._families[key] = family
        is_absolute = (
            isinstance(data, Gauge)
            or getattr(data, "aggregation_temporality", None) == AggregationTemporality.CUMULATIVE
        )
        if is_absolute and not isinstance(data, Gauge | Sum):
            is_absolute = False
        if is_absolute:
            now = {identity(point.attributes): point for point in map(self._parse_point, data.data_points)}
            if isinstance(data, Gauge) and not is_observed(self._provider, scope.name, metric.name):
                # Before 1.45 the SDK gives only the series that were set since the last reading.
                now = {identity(point.attributes): point for point in family.points} | now
            # Otherwise observed now, all of them: a series that is not observed any more is gone.
            family.points = list(now.values())
            return
        for data_point in data.data_points:
            point = self._parse_point(data_point)
            point_key = (key, identity(point.attributes))
            known = self._points.get(point_key)
            if known is None or not merge_point(known, point):
                if known is not None:
                    family.points.remove(known)
                self._points[point_key] = point
                family.points.append(point)

    def _parse_point(self, data_point: object) -> Point:
        point = _parse_point(data_point)
        point.attributes = self.scrub(point.attributes)
        return point


def _unchanged(attributes: Attributes) -> Attributes:
    return attributes


def _same_scope(scope: Scope) -> Scope:
    return scope


def _type_of(data: object) -> MetricType | None:
    if isinstance(data, Sum):
        return MetricType.COUNTER if data.is_monotonic else MetricType.UP_DOWN_COUNTER
    if isinstance(data, Gauge):
        return MetricType.GAUGE
    if isinstance(data, HistogramData):
        return MetricType.HISTOGRAM
    if isinstance(data, ExponentialHistogram):
        return MetricType.EXPONENTIAL_HISTOGRAM
    return None


def _parse_scope(scope: InstrumentationScope | None) -> Scope:
    if scope is None:
        return Scope("")
    return Scope(scope.name, scope.version or "", scope.schema_url or "", build_attributes(scope.attributes or {}))


def _parse_point(point: Any) -> Point:
    attributes = build_attributes(point.attributes or {})
    exemplars = [
        Exemplar(exemplar.value, exemplar.time_unix_nano / 1e9, exemplar.trace_id or 0, exemplar.span_id or 0)
        for exemplar in point.exemplars
    ]
    value: float | HistogramValue | ExponentialValue
    if isinstance(point, HistogramDataPoint):
        value = HistogramValue(tuple(point.explicit_bounds), list(point.bucket_counts), point.sum)
    elif isinstance(point, ExponentialHistogramDataPoint):
        value = ExponentialValue(
            point.scale,
            point.zero_count,
            point.positive.offset,
            list(point.positive.bucket_counts),
            point.negative.offset,
            list(point.negative.bucket_counts),
            point.sum,
            point.count,
        )
    else:
        value = point.value
    # A gauge has no start.
    return Point(attributes, value, exemplars, point.start_time_unix_nano or 0)


# --- Out. ---


class MetricsDataBuilder:
    """Families as `MetricsData`; remembers the previous export for deltas."""

    def __init__(self, temporality: str) -> None:
        self._is_delta = temporality == "delta"
        self._before: dict[object, Point] = {}
        self._exported_at_ns = time.time_ns()

    def forget(self) -> None:
        """Start again at zero (in a forked child)."""
        self._before = {}
        self._exported_at_ns = time.time_ns()

    def build(self, families: Iterable[Family], resource: Resource) -> MetricsData | None:
        """All families under one resource, a scope once; None when there is nothing to say."""
        now_ns = time.time_ns()
        scopes: dict[Scope, list[Metric]] = {}
        for family in families:
            points = [made for point in family.points if (made := self._build_point(family, point, now_ns)) is not None]
            if points:
                metric = Metric(
                    family.name, family.description, family.unit, self._build_data(family.metric_type, points)
                )
                scopes.setdefault(family.scope, []).append(metric)
        self._exported_at_ns = now_ns
        if not scopes:
            return None
        return MetricsData(
            [
                ResourceMetrics(
                    resource,
                    [ScopeMetrics(_build_scope(scope), metrics, scope.schema_url) for scope, metrics in scopes.items()],
                    "",
                )
            ]
        )

    def _build_data(self, metric_type: MetricType, points: list[Any]) -> Any:
        counted = AggregationTemporality.DELTA if self._is_delta else AggregationTemporality.CUMULATIVE
        if metric_type is MetricType.COUNTER:
            return Sum(points, counted, is_monotonic=True)
        if metric_type is MetricType.UP_DOWN_COUNTER:
            # Specification, "OTLP exporter, delta preference": up-down counters stay cumulative.
            return Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=False)
        if metric_type is MetricType.GAUGE:
            return Gauge(points)
        if metric_type is MetricType.HISTOGRAM:
            return HistogramData(points, counted)
        return ExponentialHistogram(points, counted)

    def _build_point(self, family: Family, point: Point, now_ns: int) -> object:
        value, start_ns = point.value, point.start_time_unix_nano
        if self._is_delta and family.metric_type not in (MetricType.UP_DOWN_COUNTER, MetricType.GAUGE):
            key = (family.scope, family.name, family.metric_type, identity(point.attributes))
            before = self._before.get(key)
            self._before[key] = Point(point.attributes, _copy_value(value), (), start_ns)
            if before is not None and before.start_time_unix_nano == start_ns:
                start_ns = self._exported_at_ns
                difference = _subtract(value, before.value)
                if difference is None:
                    return None
                value = difference
        attributes = dict(point.attributes)
        exemplars = [_build_exemplar(exemplar) for exemplar in point.exemplars]
        if isinstance(value, HistogramValue):
            counts = [int(count) for count in value.buckets]
            return HistogramDataPoint(
                attributes=attributes,
                start_time_unix_nano=start_ns,
                time_unix_nano=now_ns,
                count=sum(counts),
                sum=value.sum,
                bucket_counts=counts,
                explicit_bounds=list(value.bounds),
                # Not kept: None leaves the optional fields out of OTLP.
                min=None,  # type: ignore[arg-type]
                max=None,  # type: ignore[arg-type]
                exemplars=exemplars,
            )
        if isinstance(value, ExponentialValue):
            return ExponentialHistogramDataPoint(
                attributes=attributes,
                start_time_unix_nano=start_ns,
                time_unix_nano=now_ns,
                count=value.count,
                sum=value.sum,
                scale=value.scale,
                zero_count=value.zero_count,
                positive=Buckets(value.positive_offset, value.positive),
                negative=Buckets(value.negative_offset, value.negative),
                flags=0,
                min=None,  # type: ignore[arg-type]
                max=None,  # type: ignore[arg-type]
                exemplars=exemplars,
            )
        is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
        if is_whole and family.metric_type is not MetricType.GAUGE:
            value = int(value)
        return NumberDataPoint(
            attributes=attributes,
            start_time_unix_nano=start_ns,
            time_unix_nano=now_ns,
            value=value,
            exemplars=exemplars,
        )


def _copy_value(value: object) -> Any:
    if isinstance(value, HistogramValue):
        return HistogramValue(value.bounds, list(value.buckets), value.sum)
    return value


def _subtract(now: object, before: Any) -> Any:
    """Return the increment since `before`; None if there is none."""
    if isinstance(now, HistogramValue):
        if not isinstance(before, HistogramValue) or now.bounds != before.bounds:
            return now
        buckets = [a - b for a, b in zip(now.buckets, before.buckets, strict=True)]
        return HistogramValue(now.bounds, buckets, now.sum - before.sum) if any(buckets) else None
    if isinstance(now, ExponentialValue):
        if now.count == before.count:
            return None
        negated = ExponentialValue(
            before.scale,
            -before.zero_count,
            before.positive_offset,
            [-count for count in before.positive],
            before.negative_offset,
            [-count for count in before.negative],
            -before.sum,
            -before.count,
        )
        return merge_exponential(now, negated)
    return None if now == before else now - before


def _build_scope(scope: Scope) -> InstrumentationScope:
    return InstrumentationScope(
        scope.name, scope.version or None, scope.schema_url or None, dict(scope.attributes) or None
    )


def _build_exemplar(exemplar: Exemplar) -> SdkExemplar:
    return SdkExemplar(
        {}, exemplar.value, int(exemplar.time_unix_s * 1e9), exemplar.span_id or None, exemplar.trace_id or None
    )
