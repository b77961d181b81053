"""Spans and log records of other services, received as OTLP, as items of the store: redacted and by trace.

`otel collect` and the import of a trace use it. What arrives is another program's: everything is redacted as our own
data is, statements lose their literals, and what cannot be read is refused or counted, never stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django_otel.metrics.model import OWN_SCOPE
from django_otel.redaction.library_spans import vendor_of
from django_otel.redaction.scrub import Scrubber
from django_otel.redaction.statements import parameterise
from django_otel.tracestore import otlp, records
from django_otel.tracestore.columns import to_storable
from django_otel.tracestore.items import StoredLog, StoredSpans
from django_otel.tracestore.otlp_json import LOGS, TRACES, from_json, to_json
from django_otel.tracing.spans import SPANS_DROPPED

_STATEMENTS = ("db.query.text", "db.statement")
_SYSTEMS_WITHOUT_SQL = ("redis", "valkey", "memcached", "mongodb", "elasticsearch", "opensearch", "dynamodb")
_LONGEST_BODY = 20_000


@dataclass(slots=True)
class Received:
    """Stored part of a message, and how many of its spans or log records were refused."""

    items: list[StoredSpans | StoredLog] = field(default_factory=list)
    refused: int = 0


def read_spans(data: bytes, scrubber: Scrubber, *, keeps_statements: bool = True) -> Received:
    """Return the spans of the bytes of a `TracesData` by trace. Errors: `ValueError` for other bytes."""
    return read_spans_json(to_json(data, TRACES), scrubber, keeps_statements=keeps_statements)


def read_spans_json(content: object, scrubber: Scrubber, *, keeps_statements: bool = True) -> Received:
    """Return the spans of an object of OTLP/JSON by trace. Errors: `ValueError` for other objects."""
    received = Received()
    traces: dict[str, list[dict[str, Any]]] = {}
    for resource in _objects(content, "resourceSpans"):
        clean = {"resource": _clean_resource(resource.get("resource"), scrubber)}
        for scope in _objects(resource, "scopeSpans"):
            for span in _objects(scope, "spans"):
                trace_id = str(span.get("traceId", "")).lower()
                if not is_id(trace_id, 32) or not is_id(str(span.get("spanId", "")).lower(), 16):
                    received.refused += 1
                    continue
                groups = traces.setdefault(trace_id, [])
                if not groups or groups[-1]["of"] is not scope:
                    clean_scope = _clean_scope(scope.get("scope"), scrubber)
                    groups.append({"of": scope, **clean, "scope": clean_scope, "spans": []})
                groups[-1]["spans"].append(_clean_span(span, scrubber, keeps_statements=keeps_statements))
    for trace_id, groups in traces.items():
        parts = [
            {"resource": group["resource"], "scopeSpans": [{"scope": group["scope"], "spans": group["spans"]}]}
            for group in groups
        ]
        data = from_json({"resourceSpans": parts}, TRACES)
        received.items.append(summarize(trace_id, data))
    return received


def read_logs(data: bytes, scrubber: Scrubber) -> Received:
    """Return the log records of the bytes of a `LogsData`; those of no trace have the id of zeros.

    Errors: `ValueError` for other bytes.
    """
    return read_logs_json(to_json(data, LOGS), scrubber)


def read_logs_json(content: object, scrubber: Scrubber) -> Received:
    """Return the log records of an object of OTLP/JSON. Errors: `ValueError` for other objects."""
    received = Received()
    for resource in _objects(content, "resourceLogs"):
        service = ""
        for pair in _objects(_clean_resource(resource.get("resource"), scrubber), "attributes"):
            if pair.get("key") == "service.name":
                service = str(_plain(pair.get("value")))
        for scope in _objects(resource, "scopeLogs"):
            name = str((scope.get("scope") or {}).get("name", ""))
            for log in _objects(scope, "logRecords"):
                received.items.append(_log_of(log, scrubber.text(name), service, scrubber))
    return received


def is_id(text: str, digits: int) -> bool:
    """Return whether a text is the id of a trace (32 digits) or a span (16)."""
    return len(text) == digits and not text.strip("0123456789abcdef") and bool(text.strip("0"))


def summarize(trace_id: str, data: bytes) -> StoredSpans:
    """Return the bytes of a redacted `TracesData` of one trace as an item of the store.

    Errors: `ValueError` for other bytes.
    """
    spans = otlp.decode(data, OWN_SCOPE.name)
    stored = StoredSpans(trace_id, data, spans=len(spans))
    best = (-1, 0)
    for span in spans:
        attributes, service = span["attributes"], span.get("service", "")
        stored.services.add(service)
        stored.start_ns = min(stored.start_ns or span["start"], span["start"])
        stored.end_ns = max(stored.end_ns, span["end"], span["start"])
        stored.errors += span.get("status") == "ERROR"
        system = attributes.get("db.system.name") or attributes.get("db.system")
        if system and system not in records.SYSTEMS_WITHOUT_QUERIES:
            stored.queries += 1
            records.add_query(stored, attributes, span["end"] - span["start"])
        for event_of_span in span.get("events", ()):
            if event_of_span["name"] == "django.n_plus_one":
                records.add_n_plus_one(stored, event_of_span["attributes"])
        records.add_object(stored, attributes)
        if event := attributes.get("business.event"):
            stored.events.add(str(event))
        stored.spans_dropped += records.to_whole(attributes.get(SPANS_DROPPED))
        rank = 2 if "parent" not in span else 1 if span.get("entry") else 0
        if (rank, -span["start"]) > best or best[0] < 0:
            best = (rank, -span["start"])
            _set_root(stored, span, rank)
    return stored


def _set_root(stored: StoredSpans, span: otlp.SpanRecord, rank: int) -> None:
    attributes = span["attributes"]
    stored.rank, stored.service = rank, span.get("service", "")
    stored.root_start_ns, stored.root_end_ns = span["start"], max(span["end"], span["start"])
    stored.method = str(attributes.get("http.request.method", ""))
    stored.route = str(attributes.get("http.route", ""))
    stored.status = records.to_whole(attributes.get("http.response.status_code"))
    stored.release = span.get("release", "")
    stored.user = str(next((user for key in records.USER_KEYS if (user := attributes.get(key))), ""))
    stored.name = span["name"]
    if not stored.route and span["kind"] == "SERVER" and (path := attributes.get("url.path")):
        stored.name = f"{span['name']} {path}"[: records.LONGEST_TITLE]


# --- Redaction of the objects of OTLP/JSON. ---


def _objects(content: object, name: str) -> list[dict[str, Any]]:
    """The list of objects under a name. Errors: `ValueError` for anything else there."""
    found: object = content.get(name, []) if isinstance(content, Mapping) else None
    if found is None and isinstance(content, Mapping):
        return []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"expected a list of objects as {name}")
    return found


def _plain(value: Any, depth: int = 0) -> Any:
    """An `AnyValue` as a Python value."""
    if not isinstance(value, Mapping) or depth > 20:
        return None
    for name, inner in value.items():
        if name == "intValue":
            return int(inner)
        if name == "arrayValue":
            return [_plain(item, depth + 1) for item in _objects(inner, "values")]
        if name == "kvlistValue":
            return {str(pair.get("key")): _plain(pair.get("value"), depth + 1) for pair in _objects(inner, "values")}
        return inner
    return None


def _any_value(value: Any) -> dict[str, Any]:
    """A Python value as an `AnyValue`."""
    if value is None:
        return {}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, Mapping):
        pairs = [{"key": str(key), "value": _any_value(item)} for key, item in value.items()]
        return {"kvlistValue": {"values": pairs}}
    if isinstance(value, list | tuple):
        return {"arrayValue": {"values": [_any_value(item) for item in value]}}
    return {"stringValue": str(value)}


def _clean_pairs(pairs: object, scrubber: Scrubber, *, keeps_statements: bool = True) -> list[dict[str, Any]]:
    found = {str(pair.get("key", "")): _plain(pair.get("value")) for pair in _objects({"a": pairs}, "a")}
    system = str(found.get("db.system.name") or found.get("db.system") or "")
    for key in _STATEMENTS:
        if key in found and system not in _SYSTEMS_WITHOUT_SQL:
            found[key] = parameterise(str(found[key]), vendor_of(system)).text if keeps_statements else None
    return [
        {"key": scrubber.key(key), "value": _any_value(scrubber.value(key, value))}
        for key, value in found.items()
        if value is not None
    ]


def _clean_resource(resource: Any, scrubber: Scrubber) -> dict[str, Any]:
    if resource is not None and not isinstance(resource, Mapping):
        raise ValueError("expected an object as resource")
    return {"attributes": _clean_pairs((resource or {}).get("attributes"), scrubber)}


def _clean_scope(scope: Any, scrubber: Scrubber) -> dict[str, Any]:
    given = scope if isinstance(scope, Mapping) else {}
    return {
        "name": scrubber.text(str(given.get("name", ""))),
        "version": scrubber.text(str(given.get("version", ""))),
    }


def _clean_span(span: dict[str, Any], scrubber: Scrubber, *, keeps_statements: bool) -> dict[str, Any]:
    clean = {name: value for name, value in span.items() if name not in ("attributes", "events", "links", "status")}
    clean["name"] = scrubber.text(str(span.get("name", "")))
    clean["attributes"] = _clean_pairs(span.get("attributes"), scrubber, keeps_statements=keeps_statements)
    clean["events"] = [
        {**event, "name": scrubber.text(str(event.get("name", ""))),
         "attributes": _clean_pairs(event.get("attributes"), scrubber)}
        for event in _objects(span, "events")
    ]  # fmt: skip
    clean["links"] = [
        {**link, "attributes": _clean_pairs(link.get("attributes"), scrubber)} for link in _objects(span, "links")
    ]
    status = span.get("status")
    if isinstance(status, Mapping):
        message = scrubber.value("status.description", str(status.get("message") or ""))
        clean["status"] = {"code": status.get("code"), "message": str(message) or None}
    return clean


def _log_of(log: dict[str, Any], logger: str, service: str, scrubber: Scrubber) -> StoredLog:
    # Text of JSON has no bounds.
    time_ns = to_storable(int(log.get("timeUnixNano") or log.get("observedTimeUnixNano") or 0))
    body = scrubber.value("body", _plain(log.get("body")))
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, default=str)
    trace_id, span_id = str(log.get("traceId", "")).lower(), str(log.get("spanId", "")).lower()
    attributes = {pair["key"]: _plain(pair["value"]) for pair in _clean_pairs(log.get("attributes"), scrubber)}
    record = {
        "time": time_ns,
        "span": span_id if is_id(span_id, 16) else "0" * 16,
        "level": scrubber.text(str(log.get("severityText", "")))[:40],
        "severity": to_storable(int(log.get("severityNumber") or 0)),
        "logger": logger,
        "body": text[:_LONGEST_BODY],
        "service": service,
        "attributes": attributes,
    }
    return StoredLog(trace_id if is_id(trace_id, 32) else records.NO_TRACE, time_ns, service, record)
