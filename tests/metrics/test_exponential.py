"""METRICS["HISTOGRAMS"] = "exponential": exact exponential buckets over OTLP, exact explicit ones in the scrape."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_otel import runtime
from django_otel.metrics.catalogue import CATALOGUE
from django_otel.metrics.exponential import SCALE, exponentialize, narrow, narrow_value, to_exponential, widen
from django_otel.metrics.model import ExponentialValue, HistogramValue, MetricType
from django_otel.metrics.store import CellStore
from tests import sizes

BOUNDS = CATALOGUE["http.server.request.duration"].bounds
values = st.floats(min_value=0, max_value=600, allow_nan=False) | st.sampled_from(
    [0.0, 0.5, 1.0, 2.0, 2.5, 10.0, 0.005]
)


def count(seen: list[float], bounds: tuple[float, ...]) -> HistogramValue:
    buckets = [0.0] * (len(bounds) + 1)
    for value in seen:
        buckets[next((i for i, bound in enumerate(bounds) if value <= bound), len(bounds))] += 1
    return HistogramValue(bounds, buckets, math.fsum(seen))


@given(st.lists(values, min_size=1, max_size=60))
def test_both_kinds_of_buckets_are_exact(seen):
    counted = count(seen, widen(BOUNDS))
    assert narrow_value(counted, BOUNDS).buckets == count(seen, BOUNDS).buckets
    found = to_exponential(counted)
    assert isinstance(found, ExponentialValue)
    assert (found.scale, found.count) == (SCALE, len(seen))
    assert found.zero_count == seen.count(0.0)
    assert found.zero_count + sum(found.positive) == found.count
    lowest = widen(BOUNDS)[1]
    for index, number in enumerate(found.positive):
        low, high = (2.0 ** ((found.positive_offset + index + step) / 2**SCALE) for step in (0, 1))
        # What is smaller than every bound is in the first bucket.
        expected = [value for value in seen if (low < value <= high) or (high == lowest and 0 < value <= low)]
        assert number == len(expected)


def test_what_is_larger_than_every_bound_is_in_the_bucket_above():
    found = to_exponential(count([1e9], widen(BOUNDS)))
    assert sum(found.positive) == 1
    assert 2.0 ** (found.positive_offset / 4) == widen(BOUNDS)[-1]


@pytest.mark.parametrize("bounds", [(), (-1.0, 0.0, 1.0), (0.0,)])
def test_bounds_without_a_positive_or_with_a_negative_one_stay(bounds):
    assert widen(bounds) == bounds
    assert to_exponential(count([], bounds)) is None


@sizes.each("name", [name for name, metric in CATALOGUE.items() if metric.bounds])
def test_every_histogram_of_the_catalogue_can_be_widened(name):
    wide = widen(CATALOGUE[name].bounds)
    assert set(CATALOGUE[name].bounds) <= set(wide)
    assert len(wide) < 260
    assert to_exponential(HistogramValue(wide, [1.0] * (len(wide) + 1), 1.0)).count == len(wide) + 1


def make_store(is_exponential: bool) -> CellStore:
    store = CellStore()
    store.configure(cardinality_limit=100, buckets={"own.two": (1.0, 2.0)}, is_exponential=is_exponential)
    for name, bounds in (("own.one", (0.1, 1.0, 10.0)), ("own.two", (7.0,)), ("own.default", ())):
        histogram = store.histogram(name, "s", "", bounds)
        for value in (0.0, 0.05, 0.1, 0.7, 3.0, 99.0):
            histogram.record(value, {"a": "b"})
    store.histogram("own.negative", "", "", (-1.0, 1.0)).record(-5.0)
    return store


def test_a_scrape_shows_the_explicit_buckets_and_otlp_exponential_ones():
    plain, wide = make_store(False), make_store(True)
    shown = {family.name: family for family in narrow(wide.collect(), wide.explicit_bounds)}
    for family in plain.collect():
        found = shown[family.name]
        assert found.metric_type is MetricType.HISTOGRAM
        assert [point.value for point in found.points] == [point.value for point in family.points], family.name
    exported = {family.name: family for family in exponentialize(wide.collect())}
    assert {name: family.metric_type for name, family in exported.items()} == {
        "own.one": MetricType.EXPONENTIAL_HISTOGRAM, "own.two": MetricType.EXPONENTIAL_HISTOGRAM,
        "own.default": MetricType.EXPONENTIAL_HISTOGRAM, "own.negative": MetricType.HISTOGRAM,
    }  # fmt: skip
    assert exported["own.one"].points[0].value.count == 6


def test_the_buckets_come_back_when_the_setting_is_taken_back():
    store = make_store(True)
    store.configure(cardinality_limit=100, buckets={}, is_exponential=False)
    store.histogram("own.one").record(1.0)
    [family] = [family for family in store.collect() if family.name == "own.one"]
    assert family.points[0].value.bounds == (0.1, 1.0, 10.0)


@pytest.mark.parametrize("names", ["otel", "both"])
def test_the_page_of_a_site_is_the_same_with_exponential_histograms(names, settings, client):
    settings.OTEL = {
        **settings.OTEL, "METRICS": {"HISTOGRAMS": "exponential", "NAMES": names}, "METRICS_VIEW": {"ALLOW": "all"},
    }  # fmt: skip
    client.get("/hello/")
    page = client.get("/metrics").content.decode()
    bounds = [
        line.partition('le="')[2].partition('"')[0]
        for line in page.splitlines()
        if line.startswith("http_server_request_duration_seconds_bucket") and 'http_route="/hello/"' in line
    ]
    assert bounds == ["0.005", "0.01", "0.025", "0.05", "0.075", "0.1", "0.25", "0.5", "0.75", "1.0", "2.5", "5.0",
                      "7.5", "10.0", "+Inf"]  # fmt: skip


def test_otlp_gets_exponential_points(settings, client):
    from opentelemetry.sdk.metrics.export import ExponentialHistogram

    from django_otel.metrics.sdk_metrics import MetricsDataBuilder

    settings.OTEL = {**settings.OTEL, "METRICS": {"HISTOGRAMS": "exponential"}}
    client.get("/hello/")
    current = runtime.current()
    data = MetricsDataBuilder("cumulative").build(current.metrics.collect_for_export(), current.resource)
    kinds = {
        metric.name: metric.data
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    found = kinds["http.server.request.duration"]
    assert isinstance(found, ExponentialHistogram)
    assert all(point.scale == SCALE and point.count for point in found.data_points)


def test_the_variable_of_the_specification_chooses():
    from django_otel.config.parse import parse

    name = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
    assert parse({}, {name: "base2_exponential_bucket_histogram"}).metrics.histograms == "exponential"
    assert parse(
        {"METRICS": {"HISTOGRAMS": "exponential"}}, {name: "explicit_bucket_histogram"}
    ).metrics.histograms == ("explicit")
