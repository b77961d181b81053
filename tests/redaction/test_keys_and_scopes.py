"""Keys of attributes, and instrumentation scopes, are texts of the project: a secret in one does not leave either."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext

from django_otel.export.encoder import SpanEncoder
from django_otel.metrics.model import Scope
from django_otel.redaction.scrub import REDACTED, Scrubber
from django_otel.redaction.sdk_items import scrub_log_record, scrub_metric_scope, scrub_scope, scrub_span
from tests import services, sizes
from tests.redaction.fakes import Fakes

SCRUBBER = Scrubber()
SECRET = "Qz7Xk2Vb9Wn4Lp"
CONTEXT = SpanContext(1, 2, is_remote=False)
KEYS = [
    (f"postgres://bob:{SECRET}@db/shop", f"postgres://{REDACTED}@db/shop"),
    (f"password={SECRET}", f"password={REDACTED}"),
    (f"Bearer {SECRET}", f"Bearer {REDACTED}"),
    (f"/reset/MQ/{SECRET}tok3n9x", f"/reset/MQ/{REDACTED}"),
    (f"n {Fakes(3).draw('github')}", f"n {REDACTED}"),
]
VALUES = ["a", 1, True, 1.5, ["a", "b"], {"a": 1}, [], b"x", 10**30]


def _span(**more) -> ReadableSpan:
    return ReadableSpan(name="s", context=CONTEXT, resource=Resource({"a": "b"}), start_time=1, end_time=2, **more)


def _span_with(attributes, scope=None):
    return _span(
        attributes=attributes,
        events=[Event("e", attributes, 5)],
        links=[Link(CONTEXT, attributes)],
        instrumentation_scope=scope,
    )


@sizes.each(("key", "expected"), KEYS)
@sizes.each("value", VALUES)
def test_a_secret_in_a_key_does_not_reach_the_bytes(key, expected, value):
    encoder = SpanEncoder(SCRUBBER)
    for _ in range(3):
        data = encoder.encode([_span_with({"first": "x", key: value, "last": "y"})])
        assert SECRET.encode() not in data
        span = ExportTraceServiceRequest.FromString(data).resource_spans[0].scope_spans[0].spans[0]
        for holder in (span, span.events[0], span.links[0]):
            assert [pair.key for pair in holder.attributes] == ["first", expected, "last"]


@pytest.mark.parametrize("value", ["a", ["a"]])
def test_of_keys_that_are_alike_without_their_secrets_the_last_one_counts(value):
    attributes = {"x://a:abcdef@db": value, "n": value, "x://a:xyzuvw@db": "last"}
    data = SpanEncoder(SCRUBBER).encode([_span(attributes=attributes)])
    span = ExportTraceServiceRequest.FromString(data).resource_spans[0].scope_spans[0].spans[0]
    assert {pair.key: pair.value.string_value for pair in span.attributes if pair.key != "n"} == {
        f"x://{REDACTED}@db": "last"
    }
    assert len(span.attributes) == 2


def test_a_key_with_a_secret_is_not_remembered():
    encoder = SpanEncoder(SCRUBBER)
    encoder.encode([_span_with({f"password={SECRET}": "a", "plain": "b"})])
    for writer in (encoder._span_attributes, encoder._event_attributes, encoder._link_attributes):
        assert SECRET not in f"{list(writer._tables)} {list(writer._shapes)}"


def test_equal_keys_that_are_other_objects_leave_the_attributes_as_they_are():
    first, again = {"shop.size": 1}, {"".join(["shop", ".size"]): 1}
    assert SCRUBBER.attributes(first) is first
    assert SCRUBBER.attributes(again) is again


@pytest.mark.parametrize(("key", "expected"), KEYS)
def test_a_secret_in_a_key_does_not_reach_other_exporters(key, expected):
    clean = scrub_span(SCRUBBER, _span_with({key: "v", "nested": 1}))
    assert list(clean.attributes) == ["nested", expected] or list(clean.attributes) == [expected, "nested"]
    assert SECRET not in clean.to_json() + str(encode_spans([clean]))
    assert [name for name, _ in SCRUBBER.labels(((key, "v"),))] == [expected]
    record = ReadableLogRecord(LogRecord(body={key: {key: 1}}, attributes={key: [{key: "v"}]}), Resource({}))
    assert SECRET not in scrub_log_record(SCRUBBER, record).to_json()


SCOPES = [
    InstrumentationScope(f"tenant password={SECRET}", "1"),
    InstrumentationScope("shop", f"1+token={SECRET}"),
    InstrumentationScope("shop", "1", f"https://bob:{SECRET}@schema.example/1"),
    InstrumentationScope("shop", "1", None, {"db.dsn": f"redis://:{SECRET}@cache/1"}),
    InstrumentationScope("shop", "1", None, {"api_token": SECRET}),
    InstrumentationScope("shop", "1", None, {f"password={SECRET}": "x"}),
]


@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_a_secret_in_a_scope_leaves_on_no_way(scope):
    span = _span_with({"a": 1}, scope)
    data = SpanEncoder(SCRUBBER).encode([span, span])
    assert SECRET.encode() not in data
    clean = scrub_span(SCRUBBER, span)
    assert SECRET not in str(encode_spans([clean])) + repr(clean.instrumentation_scope)
    record = ReadableLogRecord(LogRecord(body="x"), Resource({}), instrumentation_scope=scope)
    assert SECRET not in repr(scrub_log_record(SCRUBBER, record).instrumentation_scope)
    attributes = tuple((scope.attributes or {}).items())
    metric = Scope(scope.name, scope.version or "", scope.schema_url or "", attributes)
    assert SECRET not in repr(scrub_metric_scope(SCRUBBER, metric))


def test_a_clean_scope_is_the_same_object():
    scope = InstrumentationScope("opentelemetry.instrumentation.redis", "0.50b0", "https://x.example/1", {"a": 1})
    assert scrub_scope(SCRUBBER, scope) is scope
    metric = Scope("shop.token_service", "1.0", "", (("a", 1),))
    assert scrub_metric_scope(SCRUBBER, metric) is metric


_PROJECT = """
import json, logging, sys
import django
from django.conf import settings
settings.configure(SECRET_KEY="x", INSTALLED_APPS=["django_otel"], DATABASES={}, OTEL=json.loads(sys.argv[1]))
django.setup()
from opentelemetry import metrics, trace
from django_otel import counter, runtime
secret = sys.argv[2]
meter = metrics.get_meter(f"shop password={secret}", "1", attributes={f"redis://:{secret}@cache": "x"})
meter.create_counter("sdk.orders").add(1, {f"token={secret}": "a"})
counter("own.orders").add(1, {f"token={secret}": "a"})
tracer = trace.get_tracer(f"shop password={secret}", attributes={"dsn": f"redis://:{secret}@cache"})
with tracer.start_as_current_span("a") as span:
    span.set_attribute(f"token={secret}", 1)
    logging.getLogger(f"shop.password={secret}").warning("hello", extra={f"token={secret}": 1})
assert runtime.flush(20)
from django_otel.tracestore.reader import TraceFilter, read
with read(runtime.console().store()) as reader:
    for row in reader.list_traces(TraceFilter()).rows:
        print(repr(row), reader.trace(row.trace_id))
from django.test import RequestFactory
from django_otel import views
response = views.metrics(RequestFactory().get("/metrics"))
assert response.status_code == 200, response
print(b"".join(response) if response.streaming else response.content)
"""


def test_no_key_and_no_scope_with_a_secret_leaves_a_project(receiver, tmp_path):
    export = {"EXPORTERS": ["otlp", "console"], "ENDPOINT": receiver.url}
    otel = {
        "SERVICE_NAME": "shop",
        "TRACES": export,
        "LOGS": export,
        "METRICS": {**export, "EXPORTERS": ["otlp", "console", "prometheus"]},
        "METRICS_VIEW": {"ALLOW": "all"},
        "CONSOLE": {"ENABLED": True, "PATH": str(tmp_path / "store")},
    }
    done = subprocess.run(
        [sys.executable, "-c", _PROJECT, json.dumps(otel), SECRET],
        capture_output=True, text=True, timeout=120, env=services.server_env(), cwd=services.ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sent = "".join(str(message) for _, _, message in receiver.requests)
    assert sent.count(REDACTED) >= 6
    assert "own.orders" in sent
    assert "sdk.orders" in sent
    assert "sdk_orders" in done.stdout
    assert SECRET not in sent
    assert SECRET not in done.stdout
