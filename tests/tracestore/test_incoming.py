"""OTLP of other services: between bytes and JSON, redacted, and stored by trace."""

from __future__ import annotations

import json

import pytest

from django_otel.redaction.scrub import Scrubber
from django_otel.tracestore import incoming
from django_otel.tracestore.items import StoredSpans
from django_otel.tracestore.otlp_json import LOGS, TRACES, from_json, to_json
from django_otel.tracestore.reader import TraceFilter, read
from django_otel.tracestore.record_reader import LogFilter, search_logs
from django_otel.tracestore.writer import TraceStore
from tests import sizes

TRACE_ID, OTHER_ID = "0af7651916cd43dd8448eb211c80319c", "1af7651916cd43dd8448eb211c80319c"


def build_message():
    """A message of protobuf's own making."""
    from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

    message = TracesData()
    resource = message.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "gateway"
    resource.resource.attributes.add(key="api_key").value.string_value = "hunter2"
    scope = resource.scope_spans.add()
    scope.scope.name = "js"
    for number, trace_id in enumerate((TRACE_ID, OTHER_ID)):
        span = scope.spans.add(
            trace_id=bytes.fromhex(trace_id), span_id=bytes([0] * 7 + [number + 1]), name="GET /pay", kind=2,
            start_time_unix_nano=10**18 + number, end_time_unix_nano=10**18 + 5, flags=0x101,
        )  # fmt: skip
        span.attributes.add(key="http.route").value.string_value = "/pay"
        span.attributes.add(key="password").value.string_value = "hunter2"
        span.attributes.add(key="n").value.int_value = -3
        span.attributes.add(key="f").value.double_value = 0.5
        span.attributes.add(key="b").value.bool_value = True
        span.attributes.add(key="raw").value.bytes_value = b"\x00\xff"
        span.attributes.add(key="list").value.array_value.values.add().string_value = "a"
        span.attributes.add(key="db.system.name").value.string_value = "postgresql"
        span.attributes.add(key="db.query.text").value.string_value = "SELECT 1 WHERE name = 'Ada'"
        event = span.events.add(time_unix_nano=7, name="exception")
        event.attributes.add(key="exception.message").value.string_value = "token=hunter2"
        span.links.add(trace_id=bytes.fromhex(OTHER_ID), span_id=bytes([1] * 8))
        span.status.code = 2
        span.status.message = "password=hunter2"
    return message


def test_bytes_to_json_and_back_are_those_of_protobuf():
    pytest.importorskip("opentelemetry.proto")
    from google.protobuf.json_format import MessageToDict

    message = build_message()
    found = to_json(message.SerializeToString(), TRACES)
    theirs = MessageToDict(message)
    # They write ids in base64 and enumerations by name, where OTLP asks for hexadecimal digits and numbers.
    ours = found["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    other = theirs["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert ours["attributes"] == other["attributes"]
    assert ours["traceId"] == TRACE_ID
    assert (ours["kind"], ours["status"]["code"]) == (2, 2)
    assert (ours["startTimeUnixNano"], ours["flags"]) == (other["startTimeUnixNano"], other["flags"])
    again = type(message).FromString(from_json(json.loads(json.dumps(found)), TRACES))
    assert again == message


def test_what_arrives_is_redacted_and_stored_by_trace(tmp_path):
    pytest.importorskip("opentelemetry.proto")
    received = incoming.read_spans(build_message().SerializeToString(), Scrubber())
    assert received.refused == 0
    assert [(item.trace_id, item.spans, item.errors, item.queries) for item in received.items] == [
        (TRACE_ID, 1, 1, 1), (OTHER_ID, 1, 1, 1)
    ]  # fmt: skip
    store = TraceStore(tmp_path / "store.sqlite3", max_traces=10, max_bytes=1 << 22)
    store.write(received.items, lambda *lost: pytest.fail(str(lost)))
    with read(store) as reader:
        assert {row.route for row in reader.list_traces(TraceFilter()).rows} == {"/pay"}
        (span,) = reader.trace(TRACE_ID).spans
    assert span["attributes"] | {"raw": "", "list": ""} == {
        "http.route": "/pay", "password": "[redacted]", "n": -3, "f": 0.5, "b": True, "raw": "", "list": "",
        "db.system.name": "postgresql", "db.query.text": "SELECT ? WHERE name = ?",
    }  # fmt: skip
    assert "hunter2" not in json.dumps(span)
    assert b"hunter2" not in b"".join(item.data for item in received.items if isinstance(item, StoredSpans))


def test_spans_without_an_id_are_refused_and_counted():
    span = {"traceId": "0" * 32, "spanId": "00" * 8, "name": "x"}
    good = {"traceId": TRACE_ID, "spanId": "01" * 8, "name": "x"}
    received = incoming.read_spans_json({"resourceSpans": [{"scopeSpans": [{"spans": [span, good]}]}]}, Scrubber())
    assert (received.refused, [item.trace_id for item in received.items]) == (1, [TRACE_ID])


@sizes.each(
    "content",
    [
        [], "x", 7, {"resourceSpans": {}}, {"resourceSpans": [1]},
        {"resourceSpans": [{"scopeSpans": [{"spans": "x"}]}]},
        {"resourceSpans": [{"resource": 7}]},
        {"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": TRACE_ID, "spanId": "01" * 8, "kind": "SERVER"}]}]}]},
        {"resourceSpans": [{"scopeSpans": [{"spans": [
            {"traceId": TRACE_ID, "spanId": "01" * 8, "startTimeUnixNano": "-1"}]}]}]},
        {"resourceSpans": [{"scopeSpans": [{"spans": [
            {"traceId": TRACE_ID, "spanId": "01" * 8, "attributes": [{"key": "a", "value": {"intValue": "x"}}]}]}]}]},
    ],
)  # fmt: skip
def test_what_is_no_such_message_is_refused(content):
    with pytest.raises(ValueError):  # noqa: PT011 (any sentence)
        incoming.read_spans_json(content, Scrubber())


@pytest.mark.parametrize("data", [b"\x0a\xff", b"\x0a\x02\x08\x01", b"garbage", b"\x0f"])
def test_other_bytes_are_refused(data):
    with pytest.raises(ValueError):  # noqa: PT011 (any sentence)
        to_json(data, TRACES)


def test_log_records_are_redacted():
    received = incoming.read_logs_json(
        {"resourceLogs": [{
            "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "gateway"}}]},
            "scopeLogs": [{"scope": {"name": "pay"}, "logRecords": [{
                "timeUnixNano": "7", "severityNumber": 17, "severityText": "ERROR", "traceId": TRACE_ID.upper(),
                "spanId": "01" * 8, "body": {"stringValue": "password=hunter2"},
                "attributes": [{"key": "token", "value": {"stringValue": "hunter2"}}],
            }]}],
        }]}, Scrubber(),
    )  # fmt: skip
    (log,) = received.items
    assert (log.trace_id, log.service, log.record["logger"], log.record["level"]) == (
        TRACE_ID, "gateway", "pay", "ERROR"
    )  # fmt: skip
    assert "hunter2" not in json.dumps(log.record)
    data = from_json({"resourceLogs": [{"scopeLogs": [{"logRecords": [{"timeUnixNano": "7"}]}]}]}, LOGS)
    assert incoming.read_logs(data, Scrubber()).items[0].time_ns == 7


@pytest.mark.parametrize(("start", "end"), [(2**63 - 1, 2**64 - 1), (2**64 - 1, 2**64 - 1), (2**64 - 1, 0), (0, 2**63)])
def test_times_beyond_those_of_the_store_cost_nothing_else(tmp_path, start, end):
    tmp_path.chmod(0o700)
    query = {"key": "db.system.name", "value": {"stringValue": "sqlite"}}
    text = {"key": "db.query.text", "value": {"stringValue": "SELECT 1"}}

    def span(trace_id, number, start_ns, end_ns):
        return {
            "traceId": trace_id, "spanId": f"{number:016x}", "name": "pay", "attributes": [query, text],
            "startTimeUnixNano": str(start_ns), "endTimeUnixNano": str(end_ns),
        }  # fmt: skip

    spans = [*(span(TRACE_ID, number, start, end) for number in range(1, 5)), span(OTHER_ID, 9, 10**18, 10**18 + 5)]
    content = {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}
    store = TraceStore(tmp_path / "traces.sqlite3", max_traces=500, max_bytes=16 << 20)
    for _ in range(2):
        # Into a new row, and into one that is there.
        store.write(incoming.read_spans_json(content, Scrubber()).items, lambda count, reason: pytest.fail(reason))
    with read(store) as reader:
        assert {row.trace_id for row in reader.list_traces(TraceFilter(), limit=10).rows} == {TRACE_ID, OTHER_ID}


@pytest.mark.parametrize("value", ["18446744073709551615", "1" + "0" * 300, "-1" + "0" * 300])
def test_numbers_of_log_records_beyond_those_of_the_store_cost_nothing_else(tmp_path, value):
    tmp_path.chmod(0o700)
    odd = {"timeUnixNano": value, "severityNumber": int(value), "body": {"stringValue": "odd"}, "traceId": TRACE_ID}
    usual = {"timeUnixNano": str(10**18), "body": {"stringValue": "usual"}, "traceId": OTHER_ID}
    content = {"resourceLogs": [{"scopeLogs": [{"logRecords": [odd, usual]}]}]}
    store = TraceStore(tmp_path / "traces.sqlite3", max_traces=500, max_bytes=16 << 20)
    store.write(incoming.read_logs_json(content, Scrubber()).items, lambda count, reason: pytest.fail(reason))
    with read(store) as reader:
        assert sorted(row.body for row in search_logs(reader.connection, LogFilter()).rows) == ["odd", "usual"]
