"""The bridge to prometheus_client's registry: our families there, its collectors on our page."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import pytest
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Enum,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    Summary,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from django_otel.base import guard
from django_otel.metrics import registry
from django_otel.metrics.exposition import render
from django_otel.metrics.model import OWN_SCOPE, Exemplar, Family, HistogramValue, MetricType, Point
from django_otel.metrics.store import CellStore
from tests.pages import assert_same_samples, parse_openmetrics, parse_text

RESOURCE = {"service.name": "shop", "service.instance.id": "one of many"}


@pytest.fixture(autouse=True)
def _fresh():
    """Nothing registered, nothing logged, before and after."""
    guard.reset()
    registry.stop_registry()
    yield
    registry.stop_registry()
    guard.reset()


@pytest.fixture
def theirs():
    return CollectorRegistry(auto_describe=True)


@pytest.fixture
def store():
    store = CellStore()
    store.counter("orders.total", "{order}", "Orders.").add(3, {"region": "eu", "a.b": 1})
    store.gauge("fill", "1", "Fill.").set(0.5)
    store.up_down_counter("open").add(2, {"k": True})
    histogram = store.histogram("work.duration", "s", "Work.", (0.1, 1.0, 10.0))
    for value in (0.05, 0.5, 0.7, 20.0):
        histogram.record(value, {"le": "mine", "kind": "x"}, trace_id=0xABC, span_id=0xDEF)
    return store


def page_of(source, openmetrics=False, **options):
    return render(source.collect(), openmetrics=openmetrics, resource_attributes=RESOURCE, **options)


def with_registry(theirs, families=(), openmetrics=False):
    """Our page with the registry's collectors, judged."""
    page = render(
        families,
        openmetrics=openmetrics,
        resource_attributes=RESOURCE,
        extra=lambda page: registry.render_registry(page, theirs),
    )
    return parse_openmetrics(page) if openmetrics else parse_text(page)


# --- Ours in theirs --------------------------------------------------------------------


def test_the_registry_shows_the_samples_of_our_page(store, theirs):
    """Both formats, exemplars and the resource included."""
    registry.start_registry(store.collect, lambda: RESOURCE, theirs)
    assert_same_samples(parse_text(generate_latest(theirs)).samples, parse_text(page_of(store)).samples)
    newer, ours = parse_openmetrics(generate_openmetrics(theirs)), parse_openmetrics(page_of(store, openmetrics=True))
    assert_same_samples(newer.samples, ours.samples)
    assert newer.exemplars.keys() == ours.exemplars.keys() and len(ours.exemplars) == 3
    for key, exemplar in ours.exemplars.items():
        assert newer.exemplars[key].labels == exemplar.labels
        assert newer.exemplars[key].value == exemplar.value
    assert {name: (family.type, family.unit) for name, family in newer.families.items()} == {
        name: (family.type, family.unit) for name, family in ours.families.items()
    }


def test_starting_twice_shows_everything_once_and_from_the_newer_source(store, theirs):
    """A restart with other settings must not fail or double anything."""
    registry.start_registry(list, None, theirs)
    registry.start_registry(store.collect, None, theirs)
    assert parse_text(generate_latest(theirs)).value("orders_total", region="eu", a_b="1") == 3


def test_stopping_twice_is_no_fault(store, theirs):
    """The official reader raises KeyError at its second shutdown."""
    registry.start_registry(store.collect, None, theirs)
    registry.stop_registry()
    registry.stop_registry()
    assert generate_latest(theirs) == b""
    registry.start_registry(store.collect, None, theirs)
    assert b"orders_total" in generate_latest(theirs)


def test_a_registry_that_was_emptied_can_be_stopped(store, theirs):
    """Other code removed our collector."""
    registry.start_registry(store.collect, None, theirs)
    theirs.unregister(next(iter(theirs._collector_to_names)))
    registry.stop_registry()


def test_moving_to_another_registry_leaves_the_first(store, theirs):
    """Ours is in one registry at a time."""
    other = CollectorRegistry()
    registry.start_registry(store.collect, None, theirs)
    registry.start_registry(store.collect, None, other)
    assert generate_latest(theirs) == b"" and b"orders_total" in generate_latest(other)


def test_registering_collects_nothing(theirs):
    """At start-up no callback runs and no database is asked."""
    asked = []
    registry.start_registry(lambda: asked.append(1) or [], None, theirs)
    assert asked == []
    generate_latest(theirs)
    assert asked == [1]


def test_a_source_that_fails_leaves_the_projects_own_metrics(theirs):
    """Their page must not fail because of us."""
    Counter("mine", "Mine.", registry=theirs).inc()

    def fail():
        raise RuntimeError("no numbers")

    registry.start_registry(fail, None, theirs)
    assert parse_text(generate_latest(theirs)).value("mine_total") == 1


def test_a_broken_point_leaves_the_others(theirs):
    """A falling bound, a NaN counter and a text are left out."""
    families = [
        Family(
            "h", MetricType.HISTOGRAM, "", "", OWN_SCOPE, [Point((), HistogramValue((2.0, 1.0), [1.0, 1.0, 1.0], 1.0))]
        ),
        Family("c", MetricType.COUNTER, "", "", OWN_SCOPE, [Point((), float("nan")), Point((("k", "v"),), 1.0)]),
        Family("g", MetricType.GAUGE, "", "", OWN_SCOPE, [Point((), "text"), Point((("k", "v"),), 1.0)]),  # type: ignore[arg-type]
    ]
    registry.start_registry(lambda: families, None, theirs)
    page = parse_openmetrics(generate_openmetrics(theirs))
    assert page.value("c_total", k="v") == page.value("g", k="v") == 1
    assert len(page.samples) == 2


def test_a_name_that_the_project_uses_itself_stays_the_projects(store, theirs, caplog):
    """On their page theirs wins, with one warning."""
    Counter("orders", "Theirs.", registry=theirs).inc(100)
    registry.start_registry(store.collect, None, theirs)
    with caplog.at_level(logging.WARNING, "django_otel"):
        for _ in range(2):
            page = parse_text(generate_latest(theirs))
    assert page.value("orders_total") == 100
    assert page.value("fill_ratio") == 0.5
    assert len(caplog.records) == 1


def test_the_registrys_own_target_info_stays(store):
    """One resource per page."""
    theirs = CollectorRegistry(target_info={"service_name": "theirs"})
    registry.start_registry(store.collect, lambda: RESOURCE, theirs)
    assert parse_text(generate_latest(theirs)).value("target_info", service_name="theirs") == 1


def test_negative_buckets_have_no_sum(theirs):
    """As on our page."""
    point = Point((), HistogramValue((-1.0, 1.0), [1.0, 1.0, 0.0], -3.0), [Exemplar(0.5, 1.0, 0, 0)])
    registry.start_registry(lambda: [Family("h", MetricType.HISTOGRAM, "", "", OWN_SCOPE, [point])], None, theirs)
    assert parse_openmetrics(generate_openmetrics(theirs)).names() == {"h_bucket"}


def test_prometheus_client_is_not_imported_before_it_is_used():
    """It costs start-up time and is not a dependency of the page."""
    script = (
        "import sys; import django_otel.metrics.exposition as e, django_otel.metrics.registry;"
        "e.render([], openmetrics=True, resource_attributes={'a': 'b'});"
        "assert 'prometheus_client' not in sys.modules;"
        "assert 'django' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# --- Theirs on ours --------------------------------------------------------------------


@pytest.fixture
def filled(theirs):
    """One of everything that prometheus_client has."""
    Counter("jobs", "Jobs with a \\ and a \n newline.", ["queue"], registry=theirs).labels('a"b').inc(
        2, exemplar={"trace_id": "abc"}
    )
    Gauge("temperature", "Degrees.", registry=theirs).set(float("nan"))
    Summary("size", "Size.", unit="bytes", registry=theirs).observe(7)
    Histogram("latency_seconds", "Latency.", ["k"], registry=theirs).labels("v").observe(0.3)
    Info("build", "Build.", registry=theirs).info({"version": "1"})
    Enum("state", "State.", states=["on", "off"], registry=theirs).state("on")
    PlatformCollector(registry=theirs)
    return theirs


@pytest.mark.parametrize("openmetrics", [False, True])
def test_the_registrys_collectors_stand_on_our_page(filled, store, openmetrics):
    """Everything that prometheus_client itself would show, beside everything of ours."""
    generate, parse = (generate_openmetrics, parse_openmetrics) if openmetrics else (generate_latest, parse_text)
    page = with_registry(filled, store.collect(), openmetrics)
    both = {**parse(page_of(store, openmetrics)).samples, **parse(generate(filled)).samples}
    assert_same_samples(page.samples, both)
    assert page.value("jobs_total", queue='a"b') == 2
    assert page.value("orders_total", region="eu", a_b="1") == 3
    if openmetrics:
        assert ("jobs_total", frozenset({("queue", 'a"b')})) in page.exemplars


@pytest.mark.parametrize("openmetrics", [False, True])
def test_nothing_doubles_when_we_are_in_that_registry_too(filled, store, openmetrics):
    """ "prometheus-registry" and INCLUDE_REGISTRY together."""
    before = with_registry(filled, store.collect(), openmetrics)
    asked = []
    registry.start_registry(lambda: asked.append(1) or store.collect(), lambda: RESOURCE, filled)
    assert_same_samples(with_registry(filled, store.collect(), openmetrics).samples, before.samples)
    assert asked == []


@pytest.mark.parametrize("openmetrics", [False, True])
def test_our_family_wins_over_theirs_with_one_warning(theirs, store, openmetrics, caplog):
    """One name, one family: ours, and their others stay."""
    Counter("orders", "Theirs.", registry=theirs).inc(100)
    Gauge("other", "Theirs.", registry=theirs).set(1)
    with caplog.at_level(logging.WARNING, "django_otel"):
        for _ in range(2):
            page = with_registry(theirs, store.collect(), openmetrics)
    assert page.value("orders_total", region="eu", a_b="1") == 3
    assert ("orders_total", frozenset()) not in page.samples
    assert page.value("other") == 1
    assert len(caplog.records) == 1


def test_the_resource_is_ours(store):
    """The registry's own target_info gives way."""
    theirs = CollectorRegistry(target_info={"service_name": "theirs"})
    page = with_registry(theirs, store.collect())
    assert [dict(labels) for name, labels in page.samples if name == "target_info"] == [{"service_name": "shop"}]


class Failing:
    def describe(self):
        return []

    def collect(self):
        yield GaugeMetricFamily("before_the_fault", "x", value=1)
        raise RuntimeError("no numbers")


class Doubling:
    """A custom collector that gives a series twice, and one with an empty label."""

    def collect(self):
        family = CounterMetricFamily("doubled", "x", labels=["k"])
        family.add_metric(["v"], 1)
        family.add_metric(["v"], 2)
        family.add_metric([""], 3)
        yield family
        yield GaugeMetricFamily("doubled_total", "Meets the counter.", value=9)


@pytest.mark.parametrize("openmetrics", [False, True])
def test_a_collector_that_fails_costs_only_itself(theirs, openmetrics):
    """Those before and after it are shown."""
    Counter("first", "x", registry=theirs).inc()
    theirs.register(Failing())
    Counter("last", "x", registry=theirs).inc()
    page = with_registry(theirs, (), openmetrics)
    assert page.value("first_total") == page.value("last_total") == 1


@pytest.mark.parametrize("openmetrics", [False, True])
def test_a_collector_cannot_bring_duplicates(theirs, openmetrics):
    """Prometheus would reject them."""
    theirs.register(Doubling())
    page = with_registry(theirs, (), openmetrics)
    assert page.value("doubled_total", k="v") == 1
    assert page.value("doubled_total") == 3


class Ill:
    def collect(self):
        family = GaugeMetricFamily("ill", "x", labels=["k"])
        family.add_metric([7], 1)
        yield family
        yield GaugeMetricFamily("well", "x", value=1)


def test_a_metric_that_cannot_be_written_costs_only_itself(theirs):
    """A label that is no text."""
    theirs.register(Ill())
    assert with_registry(theirs).value("well") == 1


def test_the_default_registry_is_prometheus_clients(store):
    """Python's and the process's own metrics are there without a word."""
    page = render(store.collect(), openmetrics=True, resource_attributes=RESOURCE, extra=registry.render_registry)
    assert "python_info" in parse_openmetrics(page).names()
    registry.start_registry(store.collect)
    assert b"orders_total" in generate_latest()
    registry.stop_registry()
    assert b"orders_total" not in generate_latest()


def test_their_page_and_ours_can_be_scraped_at_once(filled, store):
    """Leaving ourselves out of our page does not leave us out of theirs, in other threads."""
    registry.start_registry(store.collect, lambda: RESOURCE, filled)
    missing = []

    def scrape_theirs():
        for _ in range(30):
            if b"orders_total" not in generate_latest(filled):
                missing.append(1)

    def scrape_ours():
        for _ in range(30):
            with_registry(filled, store.collect())

    threads = [threading.Thread(target=target) for target in (scrape_theirs, scrape_ours) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert missing == []
