"""What the limits of a trace leave out is named on it, and what failed is kept."""

from __future__ import annotations

import pytest
from django.test import override_settings
from opentelemetry import trace

from django_otel.requests.budget import SpanBudget
from django_otel.tracing.exceptions import MAX_STACK
from django_otel.tracing.spans import SPANS_DROPPED


def deep(levels):
    if levels % 2:
        return deeper(levels - 1)
    if levels:
        return deep(levels - 1)
    raise ValueError("the bottom")


def deeper(levels):
    return deep(levels)


@pytest.fixture
def few_spans(settings):
    with override_settings(OTEL={"TRACES": {"LIMITS": {"SPANS_PER_TRACE": 3}}}):
        yield


def run_many(count, failing=()):
    tracer = trace.get_tracer("tests")
    for number in range(count):
        try:
            with tracer.start_as_current_span(f"step {number}"):
                if number in failing:
                    raise ValueError(number)
        except ValueError:
            pass


@pytest.fixture
def many_view(monkeypatch):
    from tests import views

    def install(run):
        original = views.hello

        def hello(request):
            run()
            return original(request)

        from tests import urls

        for pattern in urls.urlpatterns:
            if getattr(pattern, "callback", None) is original:
                monkeypatch.setattr(pattern, "callback", hello)

    return install


def test_what_the_limit_left_out_is_named_and_failed_spans_are_kept(
    client, otel_spans, otel_metrics, few_spans, many_view
):
    many_view(lambda: run_many(20, failing={15, 18}))
    client.get("/hello/")
    names = [span.name for span in otel_spans if span.name.startswith("step")]
    assert names == ["step 0", "step 1", "step 15", "step 18"]
    root = next(span for span in otel_spans if span.parent is None)
    assert root.attributes[SPANS_DROPPED] == 16
    assert otel_metrics.value("django_otel.spans.dropped", {"django_otel.reason": "trace_limit"}) == 16


def test_a_trace_within_the_limit_says_nothing(client, otel_spans, few_spans, many_view):
    many_view(lambda: run_many(2))
    client.get("/hello/")
    assert all(SPANS_DROPPED not in (span.attributes or {}) for span in otel_spans)


def test_failed_spans_above_the_limit_are_bounded(client, otel_spans, few_spans, many_view):
    many_view(lambda: run_many(300, failing=set(range(300))))
    client.get("/hello/")
    assert len([span for span in otel_spans if span.name.startswith("step")]) == 2 + SpanBudget.MAX_FAILED


def test_a_long_stack_is_kept_and_its_end_always(otel_spans):
    tracer = trace.get_tracer("tests")
    for levels in (50, 500):
        with pytest.raises(ValueError, match="the bottom"), tracer.start_as_current_span(f"{levels} levels"):
            deep(levels)
    short, long = (span.events[0].attributes["exception.stacktrace"] for span in otel_spans)
    assert len(short) > 4096
    assert "[cut]" not in short
    assert MAX_STACK - 100 <= len(long) <= MAX_STACK
    assert long.startswith("Traceback")
    assert long.rstrip().endswith("ValueError: the bottom")


def test_a_span_above_the_limit_can_be_discarded(client, many_view, few_spans, otel_spans):
    """Also one that is only watched for a failure."""

    def run():
        run_many(5)
        with trace.get_tracer("tests").start_as_current_span("above") as span:
            discard = getattr(span, "discard", None)
            if discard is not None:
                discard()

    many_view(run)
    assert client.get("/hello/").status_code == 200
    assert not [span for span in otel_spans if span.name == "above"]
