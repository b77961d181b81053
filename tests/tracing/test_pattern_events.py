"""Events of a pattern, made when they are read, are those that `add_event` would have made at once."""

from __future__ import annotations

import itertools
from time import time_ns

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits

from django_otel.sampling.policy import Policy
from django_otel.sampling.sampler import LiveSampler
from django_otel.tracing.attributes import EventPattern
from django_otel.tracing.ids import OwnRandomIdGenerator
from django_otel.tracing.provider import OwnTracerProvider

GIVEN = {"count": 0, "line": 7, "text": "SELECT ?" * 20}


def start(**limits):
    provider = OwnTracerProvider(
        LiveSampler(Policy(1.0, "settings")), Resource({}), OwnRandomIdGenerator(), SpanLimits(**limits)
    )
    return provider.get_tracer("test").start_span("request")


def contents(span):
    found = [(event.name, dict(event.attributes)) for event in span.events]
    return found, span.dropped_events


@pytest.mark.parametrize("limits", [{}, {"max_events": 0}, {"max_events": 1}, {"max_events": 2}], ids=str)
@pytest.mark.parametrize("order", list(itertools.product("pe", repeat=3)), ids="".join)
def test_a_pattern_is_an_event_like_any_other(order, limits):
    pattern = EventPattern("repeated", GIVEN, "count")
    with_patterns, plain = start(**limits), start(**limits)
    for number, kind in enumerate(order):
        if kind == "p":
            with_patterns.add_pattern_event(pattern, number)
            plain.add_event("repeated", {**GIVEN, "count": number})
        else:
            with_patterns.add_event("other", {"number": number})
            plain.add_event("other", {"number": number})
    assert contents(with_patterns) == contents(plain)
    with_patterns.end()
    plain.end()
    assert contents(with_patterns.readable_span()) == contents(plain.readable_span())


def test_an_event_that_comes_while_a_pattern_is_made_is_kept():
    """As from another thread, while the first one reads the span."""
    span = start()

    class Slow(EventPattern):
        is_first = True

        def make(self, *given):
            if self.is_first:
                self.is_first = False
                span.add_event("other")
            return super().make(*given)

    span.add_pattern_event(Slow("repeated", GIVEN, "count"), 12)
    for _ in range(2):
        assert [event.name for event in span.events][:1] == ["repeated"]
    assert [event.name for event in span.events] == ["repeated", "other"]


@pytest.mark.parametrize("limits", [{"max_event_attributes": 2}, {"max_attribute_length": 9}], ids=str)
def test_a_pattern_is_within_the_limits_of_its_span(limits):
    pattern = EventPattern("repeated", GIVEN, "count")
    for bounds in (limits, {}):
        span, plain = start(**bounds), start(**bounds)
        span.add_pattern_event(pattern, 12)
        plain.add_event("repeated", {**GIVEN, "count": 12})
        assert contents(span) == contents(plain)


@pytest.mark.parametrize("ends_first", [True, False])
def test_it_happened_when_the_span_ended_or_was_read(ends_first):
    """Such an event is the last that is added to the span of a request."""
    span = start()
    span.add_pattern_event(EventPattern("repeated", GIVEN, "count"), 12)
    before_ns = time_ns()
    if ends_first:
        span.end()
    (event,) = span.events
    span.end()
    assert before_ns <= event.timestamp <= span.end_time
    assert span.events[0] is event


def test_an_ended_span_takes_none(caplog):
    span = start()
    span.end()
    span.add_pattern_event(EventPattern("repeated", GIVEN, "count"), 12)
    assert span.events == ()
    assert not caplog.records


def test_changing_what_was_read_changes_no_other_event():
    pattern = EventPattern("repeated", GIVEN, "count")
    first, second = start(), start()
    first.add_pattern_event(pattern, 12)
    first.events[0].attributes["line"] = 8
    second.add_pattern_event(pattern, 13)
    assert dict(second.events[0].attributes) == {**GIVEN, "count": 13}
