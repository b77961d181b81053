"""Spans of one query share their attributes, and what was written of them, until one of them gets more."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor
from opentelemetry.trace import SpanKind

from django_otel.base.sdk_compat import with_span
from django_otel.export.encoder import SpanEncoder
from django_otel.redaction.scrub import Scrubber
from django_otel.sampling.policy import Policy
from django_otel.sampling.sampler import LiveSampler
from django_otel.tracing.attributes import SharedAttributes
from django_otel.tracing.ids import OwnRandomIdGenerator
from django_otel.tracing.provider import OwnTracerProvider, Taker
from django_otel.tracing.spans import to_readable

QUERY = {"db.system.name": "postgresql", "db.query.text": "SELECT ?", "server.port": 5432, "note": "password=hunter2"}


class Kept(Taker):
    """What an exporter of ours is handed."""

    def __init__(self):
        self.spans = []

    def take(self, span):
        self.spans.append(span)


class Rude(SpanProcessor):
    """Changes what it can reach, as some processors written for the SDK do."""

    def __init__(self, when):
        self.when = when

    def on_start(self, span, parent_context=None):
        if self.when == "start":
            span._attributes["seen"] = True

    def on_end(self, span):
        if self.when == "end":
            span._attributes["seen"] = True


@pytest.fixture
def kept():
    return Kept()


def provider_with(*processors):
    provider = OwnTracerProvider(
        LiveSampler(Policy(1.0, "settings")), Resource({"service.name": "s"}), OwnRandomIdGenerator(), SpanLimits()
    )
    for processor in processors:
        provider.add_span_processor(processor)
    return provider


def child_of_a_root(provider, attributes, change=lambda span: None):
    tracer = provider.get_tracer("scope")
    root = tracer.start_span("root", Context())
    span = tracer.start_child("SELECT", with_span(Context(), root), SpanKind.CLIENT, root, attributes)
    change(span)
    span.end()
    return span


def attributes_sent(data):
    scopes = ExportTraceServiceRequest.FromString(data).resource_spans[0].scope_spans
    return [sorted(pair.key for pair in span.attributes) for scope in scopes for span in scope.spans]


def test_spans_that_get_nothing_more_share_them(kept):
    provider, shared = provider_with(kept), SharedAttributes(QUERY)
    for _ in range(2):
        assert child_of_a_root(provider, shared).attributes == QUERY
    assert [span.parts()[8] is shared for span in kept.spans] == [True, True]


@pytest.mark.parametrize(
    "change",
    [
        lambda span: span.set_attribute("more", 1),
        lambda span: span.set_attributes({"more": 1}),
        lambda span: span.complete("SELECT", {"more": 1}),
        lambda span: span.set_attribute("server.port", 1),
    ],
    ids=["set_attribute", "set_attributes", "complete", "set again"],
)
def test_one_that_gets_more_has_its_own_from_then_on(kept, change):
    provider, shared = provider_with(kept), SharedAttributes(QUERY)
    changed = child_of_a_root(provider, shared, change)
    other = child_of_a_root(provider, shared)
    assert dict(changed.attributes) != QUERY
    assert dict(other.attributes) == dict(shared) == QUERY
    changes = {"more": 1} if "more" in changed.attributes else {"server.port": 1}
    assert dict(changed.attributes) == QUERY | changes


@pytest.mark.parametrize("when", ["start", "end"])
def test_processors_and_exporters_of_others_cannot_reach_them(kept, when):
    """They may write into `_attributes`, which is each span's own in the SDK."""
    provider, shared = provider_with(kept, Rude(when)), SharedAttributes(QUERY)
    spans = [child_of_a_root(provider, shared) for _ in range(2)]
    assert shared == QUERY
    readable = to_readable(spans[0])
    assert type(readable._attributes) is dict
    readable._attributes["x"] = 1
    assert shared == QUERY and "x" not in spans[1].attributes


def test_what_was_written_of_them_is_written_again_and_equals_the_stock_encoders(kept):
    provider, shared = provider_with(kept), SharedAttributes(QUERY)
    for number in range(6):
        child_of_a_root(provider, shared, lambda span, n=number: span.set_attribute("n", n) if n % 3 == 2 else None)
    ours = SpanEncoder()
    readable = [to_readable(span) for span in kept.spans]
    stock = encode_spans(readable)
    for _ in range(2):
        assert ExportTraceServiceRequest.FromString(ours.encode(kept.spans)) == stock
    assert shared.encoded is not None


def test_each_encoder_writes_them_as_it_redacts(kept):
    provider, shared = provider_with(kept), SharedAttributes(QUERY)
    child_of_a_root(provider, shared)
    plain, redacting = SpanEncoder(), SpanEncoder(Scrubber())
    for _ in range(2):
        assert b"hunter2" in plain.encode(kept.spans)
        assert b"hunter2" not in redacting.encode(kept.spans)
    assert shared.encoded is not None and b"hunter2" not in shared.encoded[1]


def test_what_a_callback_answers_is_not_kept(kept):
    provider, shared = provider_with(kept), SharedAttributes({"a": "x"})
    child_of_a_root(provider, shared)
    asked = []

    def callback(key, value):
        asked.append(key)
        return f"{value}-{len(asked)}"

    encoder = SpanEncoder(Scrubber((), callback))
    first, second = encoder.encode(kept.spans), encoder.encode(kept.spans)
    assert first != second and asked == ["a", "a"] and shared.encoded is None


def test_what_is_lost_of_them_is_counted_each_time(kept):
    provider, shared = provider_with(kept), SharedAttributes({"a": "x", "b": "\ud800"})
    child_of_a_root(provider, shared)
    encoder = SpanEncoder()
    for times in (1, 2):
        assert attributes_sent(encoder.encode(kept.spans)) == [["a"]]
        assert encoder.attributes_lost == times


def test_long_ones_are_not_kept(kept):
    provider, shared = provider_with(kept), SharedAttributes({"db.query.text": "x" * 5000})
    child_of_a_root(provider, shared)
    SpanEncoder().encode(kept.spans)
    assert shared.encoded is None


@pytest.mark.django_db
def test_the_queries_of_a_request_share_them_and_are_told_apart(otel_spans):
    from django_otel import runtime
    from tests.app.models import Item

    with runtime.tracer().start_as_current_span("root"):
        for _ in range(2):
            Item.objects.count()
    found = [span for span in otel_spans if span.kind is SpanKind.CLIENT]
    assert len(found) == 2
    assert found[0].attributes == found[1].attributes
    assert trace.format_span_id(found[0].context.span_id) != trace.format_span_id(found[1].context.span_id)
