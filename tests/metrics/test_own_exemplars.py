"""Histograms of the project show the trace of the span in which they were recorded."""

from __future__ import annotations

import threading

import pytest
from django.http import HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from opentelemetry import context, trace

import django_otel
from django_otel import runtime
from django_otel.metrics import exposition
from django_otel.requests import record
from django_otel.testing import override_sampling
from tests.pages import parse_openmetrics

NAME = "own.wait"


def own():
    return django_otel.histogram(NAME, "s", bounds=(1.0, 10.0))


def measure(request):
    own().record(0.5)
    with django_otel.span("inside"):
        own().record(5)
    return HttpResponse(django_otel.current_trace_id() or "")


async def measure_async(request):
    return measure(request)


@django_otel.untraced
def leave_out(request):
    return measure(request)


def measures_early(get_response):
    """A middleware that measures before Django has found the route."""

    def middleware(request):
        own().record(0.5)
        return get_response(request)

    return middleware


urlpatterns = [
    path("measure/", measure), path("async/", measure_async), path("left-out/", leave_out),
]  # fmt: skip

pytestmark = pytest.mark.urls(__name__)


@pytest.fixture(autouse=True)
def forgotten():
    """No exemplar of an earlier test."""
    runtime.store.clear()


def exemplars(name: str = NAME) -> dict[float, tuple[int, int]]:
    """The ids of trace and span by value."""
    return {
        one.value: (one.trace_id, one.span_id)
        for family in runtime.collect()
        if family.name == name
        for point in family.points
        for one in point.exemplars
    }


@pytest.mark.parametrize("address", ["/measure/", "/async/"])
async def test_a_recorded_request_is_the_exemplar_of_what_it_measured(otel_spans, otel_metrics, address):
    with override_sampling(1.0):
        await AsyncClient().get(address)
    inside = otel_spans.one("inside")
    request = next(span for span in otel_spans if span.parent is None)
    trace_id = request.context.trace_id
    assert exemplars() == {0.5: (trace_id, request.context.span_id), 5.0: (trace_id, inside.context.span_id)}
    shown = parse_openmetrics(exposition.render(runtime.collect(), openmetrics=True, resource_attributes={})).exemplars
    buckets = [one for (name, _), one in shown.items() if name == "own_wait_seconds_bucket"]
    assert [one.value for one in buckets] == [0.5, 5.0]
    assert {one.labels["trace_id"] for one in buckets} == {f"{trace_id:032x}"}


@pytest.mark.parametrize("address", ["/measure/", "/left-out/"])
def test_what_is_not_recorded_is_no_exemplar(otel_spans, otel_metrics, address):
    with override_sampling(1.0 if address == "/left-out/" else 0.0):
        Client().get(address)
    own().record(20.0)
    assert otel_metrics.value(NAME).count == 3
    assert exemplars() == {}


def test_no_span_is_made_for_a_request_that_is_not_recorded(monkeypatch):
    made = []

    def measures(get_response):
        def middleware(request):
            own().record(0.5)
            made.append(record.current().span_or_none)
            return get_response(request)

        return middleware

    monkeypatch.setattr("tests.metrics.test_own_exemplars.measures_early", measures)
    middleware = ["django_otel.middleware.OTelMiddleware", f"{__name__}.measures_early"]
    with override_settings(MIDDLEWARE=middleware), override_sampling(0.0):
        Client().get("/left-out/")
    assert made == [None]


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_a_measurement_before_the_route_decides_nothing(otel_spans, ratio):
    """The rule by route still holds; from the view on the trace is known."""
    middleware = ["django_otel.middleware.OTelMiddleware", f"{__name__}.measures_early"]
    rules = [{"route": "/measure/", "ratio": ratio}]
    otel = {"SAMPLING": {"RATIO": 1.0 - ratio, "RULES": rules}}
    with override_settings(OTEL=otel, MIDDLEWARE=middleware):
        Client().get("/measure/")
    recorded = [span for span in otel_spans if span.parent is None]
    assert len(recorded) == ratio
    assert set(exemplars().values()) == {(span.context.trace_id, span.context.span_id) for span in otel_spans}


def test_exemplars_can_be_switched_off(otel_spans, otel_metrics):
    """Also those of `timed`, over OTLP as on the page."""
    with override_settings(OTEL={"METRICS": {"EXEMPLARS": False}, "SAMPLING": {"RATIO": 1.0}}):
        Client().get("/measure/")
        with django_otel.timed("own.timed"):
            pass
        assert exemplars() == exemplars("own.timed") == {}
    with override_settings(OTEL={"SAMPLING": {"RATIO": 1.0}}):
        Client().get("/measure/")
        with django_otel.timed("own.timed"):
            pass
        assert len(exemplars()) == 2 and len(exemplars("own.timed")) == 1


def test_a_span_of_another_library_is_an_exemplar_where_it_is_sampled(otel_metrics):
    histogram = own()
    for value, flags in ((0.5, 1), (5.0, 0)):
        ids = trace.SpanContext(0xABC, 7, is_remote=True, trace_flags=trace.TraceFlags(flags))
        with trace.use_span(trace.NonRecordingSpan(ids)):
            histogram.record(value)
    assert list(exemplars()) == [0.5]


@pytest.mark.parametrize("found", [None, 5, "span", object()])
def test_what_is_no_span_is_no_exemplar(otel_metrics, found):
    from django_otel.base.sdk_compat import SPAN_KEY

    token = context.attach(context.set_value(SPAN_KEY, found))
    try:
        own().record(0.5)
    finally:
        context.detach(token)
    assert otel_metrics.value(NAME).count == 1
    assert exemplars() == {}


def test_the_span_is_that_of_the_thread(otel_spans):
    """Another thread without the context has no trace to show."""
    with override_sampling(1.0), django_otel.span("outer"):
        thread = threading.Thread(target=lambda: own().record(0.5))
        thread.start()
        thread.join()
        own().record(5.0)
    assert exemplars() == {5.0: (otel_spans.one("outer").context.trace_id, otel_spans.one("outer").context.span_id)}
