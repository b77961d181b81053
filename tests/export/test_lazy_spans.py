"""Spans for a project's own exporter: built when they are read, redacted in any case."""

from __future__ import annotations

import copy

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan

from django_otel import runtime
from django_otel.export.lazy_spans import LazySpan, build_lazy_cleaner
from django_otel.redaction.keys import REDACTED
from django_otel.redaction.span_cleaner import SpanCleaner
from django_otel.tracing.provider import Taker
from django_otel.tracing.spans import RecordedSpan
from tests.requests.test_equivalence import build_provider


class Keeper(Taker):
    """Makes our provider record spans of its own kind."""

    def take(self, span):
        assert type(span) is RecordedSpan


def record(**attributes):
    """A finished span of ours."""
    provider = build_provider("ours", processors=[Keeper()])
    with provider.get_tracer("t").start_as_current_span("GET /x", attributes=attributes) as span:
        try:
            raise ValueError("password=hunter2")
        except ValueError as error:
            span.record_exception(error)
    return span


def cleaner():
    return SpanCleaner(runtime.current().scrubber)


def test_a_lazy_span_equals_the_one_built_at_once():
    span = record(password="hunter2", route="/x", count=3)
    lazy, built = build_lazy_cleaner(cleaner())(span), cleaner()(span.readable_span())
    assert type(lazy) is LazySpan
    assert isinstance(lazy, ReadableSpan)
    assert lazy.to_json() == built.to_json()
    assert "hunter2" not in lazy.to_json()
    assert lazy.attributes["password"] == "[redacted]"
    assert (lazy.context, lazy.resource, lazy.kind) == (built.context, built.resource, trace.SpanKind.INTERNAL)


def test_nothing_is_built_until_a_field_is_read():
    calls = []

    class Counting(SpanCleaner):
        def __call__(self, span):
            calls.append(span)
            return super().__call__(span)

    lazy = build_lazy_cleaner(Counting(runtime.current().scrubber))(record(a="b"))
    assert calls == []
    assert (lazy.name, lazy.name, dict(lazy.attributes)) == ("GET /x", "GET /x", {"a": "b"})
    assert len(calls) == 1


def test_a_field_that_an_exporter_sets_stays():
    lazy = build_lazy_cleaner(cleaner())(record(customer="Ada"))
    lazy._attributes = {"customer": "[hidden]"}
    assert (dict(lazy.attributes), lazy.name) == ({"customer": "[hidden]"}, "GET /x")


def test_a_lazy_span_can_be_copied_and_is_redacted_before():
    lazy = build_lazy_cleaner(cleaner())(record(password="hunter2"))
    assert copy.copy(lazy).attributes["password"] == "[redacted]"


def test_a_span_that_cannot_be_cleaned_shows_nothing():
    class Broken(SpanCleaner):
        def __call__(self, span):
            raise RuntimeError("mine")

    lazy = build_lazy_cleaner(Broken(runtime.current().scrubber))(record(a="b"))
    assert (lazy.name, dict(lazy.attributes), list(lazy.events)) == (REDACTED, {}, [])
    assert lazy.context is not None


def test_equal_values_are_judged_by_their_type_and_key():
    scrubber = runtime.current().scrubber
    for _ in range(2):
        assert scrubber.attributes({"a": "hunter2"}) == {"a": "hunter2"}
        assert scrubber.attributes({"password": "hunter2"}) == {"password": "[redacted]"}
        assert scrubber.attributes({"password": True, "pin": 1}) == {"password": True, "pin": "[redacted]"}
        long = "SELECT 1 " * 400
        assert scrubber.attributes({"x": long}) == {"x": long}
