"""Spans of one form share their attributes, and are those that `start_span` makes."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.trace import SpanKind

from django_otel.base.sdk_compat import with_span
from django_otel.sampling.policy import Policy
from django_otel.sampling.sampler import LiveSampler
from django_otel.tracing.attributes import SharedAttributes
from django_otel.tracing.ids import OwnRandomIdGenerator
from django_otel.tracing.provider import OwnTracerProvider
from django_otel.tracing.span_form import SpanForm

GIVEN = {"cache": "default", "operation": "get"}


def start_two(**limits):
    """A span of a form, and one with the same contents made in the usual way; below one parent."""
    provider = OwnTracerProvider(
        LiveSampler(Policy(1.0, "settings")), Resource({}), OwnRandomIdGenerator(), SpanLimits(**limits)
    )
    tracer = provider.get_tracer("test")
    parent = tracer.start_span("request")
    outer = with_span({}, parent)
    formed = SpanForm("cache get", GIVEN).start(tracer, outer, parent)
    return formed, tracer.start_span("cache get", outer, attributes=GIVEN), parent


@pytest.mark.parametrize(
    "limits", [{}, {"max_span_attributes": 1}, {"max_span_attributes": 0}, {"max_span_attribute_length": 3}], ids=str
)
def test_a_span_of_a_form_is_a_span_like_any_other(limits):
    formed, plain, parent = start_two(**limits)
    assert dict(formed.attributes) == dict(plain.attributes)
    assert formed.dropped_attributes == plain.dropped_attributes
    assert formed.name == plain.name
    assert formed.kind is plain.kind is SpanKind.INTERNAL
    assert formed.parent == parent.get_span_context()


def test_attributes_are_exchanged_while_the_span_has_no_others():
    form = SpanForm("cache get", GIVEN)
    wanted = SharedAttributes({**GIVEN, "outcome": "hit"})
    formed, _, parent = start_two()
    tracer = formed._tracer
    span = form.start(tracer, with_span({}, parent), parent)
    assert span.exchange(form.attributes, wanted)
    assert dict(span.attributes) == dict(wanted)

    changed = form.start(tracer, with_span({}, parent), parent)
    changed.set_attribute("own", 1)
    assert not changed.exchange(form.attributes, wanted)
    assert dict(changed.attributes) == {**GIVEN, "own": 1}

    ended = form.start(tracer, with_span({}, parent), parent)
    ended.end()
    assert not ended.exchange(form.attributes, wanted)
    assert dict(ended.attributes) == GIVEN
    assert form.attributes == GIVEN
