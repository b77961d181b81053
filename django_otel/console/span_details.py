"""Details of one span, and the address of a trace elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext_lazy

from django_otel.console import text
from django_otel.console.stored_spans import attributes_of, kind_of, list_of, whole_number
from django_otel.tracestore.reader import Trace

_LOST = ngettext_lazy("%(count)s item above TRACES.LIMITS", "%(count)s items above TRACES.LIMITS", "n")


@dataclass(frozen=True, slots=True)
class Fault:
    """An exception of a span."""

    type: str
    message: str
    stack: str


@dataclass(frozen=True, slots=True)
class SpanEvent:
    name: str
    offset: str
    attributes: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class SpanLink:
    trace_id: str
    span_id: str
    attributes: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Details:
    """Everything that is known of one span."""

    id: str
    facts: Sequence[tuple[str, str]]
    sql: SafeString
    #: Whether it is a query of a database.
    is_query: bool
    faults: Sequence[Fault]
    attributes: Sequence[tuple[str, str]]
    events: Sequence[SpanEvent]
    links: Sequence[SpanLink]


def details(trace: Trace, span_id: str) -> Details | None:
    """One span of a trace; None when it is not in it."""
    span = next((span for span in trace.spans if span.get("id") == span_id), None)
    if span is None:
        return None
    start, end = whole_number(span.get("start")), whole_number(span.get("end"))
    begin = min(whole_number(other.get("start")) for other in trace.spans)
    attributes = attributes_of(span)
    facts = [
        (gettext("Service"), str(span.get("service", ""))),
        (gettext("Kind"), str(span.get("kind", "")).capitalize()),
        (gettext("Began after"), text.duration(start - begin)),
        (gettext("Took"), text.duration(end - start)),
        (gettext("Created by"), str(span.get("scope", "")) or "django_otel"),
        (gettext("Span"), span_id),
    ]
    if source := text.source_line(attributes):
        facts.insert(0, (gettext("Called from"), source))
    if span.get("status"):
        description = f": {span['description']}" if span.get("description") else ""
        facts.insert(0, (gettext("Status"), f"{str(span['status']).capitalize()}{description}"))
    if span.get("lost"):
        facts.append((gettext("Left out"), text.plural(whole_number(span["lost"]), _LOST)))
    faults, events = [], []
    for event in list_of(span.get("events")):
        known = attributes_of(event)
        if event.get("name") == "exception":
            faults.append(
                Fault(
                    text.value(known.get("exception.type", "")),
                    text.value(known.get("exception.message", "")),
                    str(known.get("exception.stacktrace", "")),
                )
            )
            known = {key: item for key, item in known.items() if not key.startswith("exception.")}
            if not known:
                continue
        offset = text.duration(max(0, whole_number(event.get("time")) - start))
        events.append(SpanEvent(str(event.get("name", "")), offset, _pairs(known)))
    statement = str(attributes.get("db.query.text") or attributes.get("db.statement") or "")
    return Details(
        id=span_id,
        facts=facts,
        sql=text.sql(statement) if statement else SafeString(""),
        is_query=kind_of(span) == "database",
        faults=faults,
        attributes=_pairs({key: item for key, item in attributes.items() if key != "db.query.text"}),
        events=events,
        links=[
            SpanLink(str(link.get("trace", "")), str(link.get("span", "")), _pairs(attributes_of(link)))
            for link in list_of(span.get("links"))
        ],
    )


def _pairs(attributes: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(str(key), text.value(attributes[key])) for key in sorted(attributes)]


def trace_address(template: str | None, trace_id: str) -> tuple[str, str] | None:
    """Return where a trace can be looked at elsewhere, and the name of that place; None when TRACE_URL is not set."""
    if not template:
        return None
    url = template.replace("{trace_id}", trace_id)
    lowered = template.lower()
    for mark, name in (("jaeger", "Jaeger"), ("16686", "Jaeger"), ("tempo", "Tempo"), ("grafana", "Grafana"),
                       ("zipkin", "Zipkin"), ("datadog", "Datadog"), ("honeycomb", "Honeycomb")):  # fmt: skip
        if mark in lowered:
            return url, name
    return url, urlsplit(url).hostname or gettext("the trace backend")
