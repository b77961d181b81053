"""Redaction of the spans, scopes and log records of the SDK: their attributes and texts by a `Scrubber`.

Each function returns the object it was given when there was nothing to do, and never raises `Exception`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, Status

from django_otel.base.sdk_compat import build_list
from django_otel.metrics.model import Scope
from django_otel.redaction.scrub import Scrubber

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadableLogRecord, ReadWriteLogRecord

Item = TypeVar("Item")
LogRecordT = TypeVar("LogRecordT", "ReadableLogRecord", "ReadWriteLogRecord")


def scrub_span(scrubber: Scrubber, span: ReadableSpan) -> ReadableSpan:
    """Scrub a finished span: name, attributes, events, links, status. Counts of what was dropped are kept."""
    name = scrubber.text(span.name)
    given = span.attributes  # a new view at each access
    attributes = scrubber.attributes(given)
    events = _each(_scrub_event, scrubber, span.events)
    links = _each(_scrub_link, scrubber, span.links)
    description = span.status.description
    status_text = scrubber.value("status.description", description) if description else description
    scope = scrub_scope(scrubber, span.instrumentation_scope)
    if (
        name is span.name
        and attributes is given
        and events is None
        and links is None
        and status_text is description
        and scope is span.instrumentation_scope
    ):
        return span
    return ReadableSpan(
        name=name,
        context=span.get_span_context(),
        parent=span.parent,
        resource=span.resource,
        attributes=_bounded(attributes, span.dropped_attributes),
        events=build_list(events if events is not None else span.events, span.dropped_events),
        links=build_list(links if links is not None else span.links, span.dropped_links),
        kind=span.kind,
        status=span.status if status_text is description else Status(span.status.status_code, str(status_text)),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=scope,
    )


def scrub_scope(scrubber: Scrubber, scope: InstrumentationScope | None) -> InstrumentationScope | None:
    """Scrub name, version, attributes and schema URL of an instrumentation scope; the same object when clean."""
    if scope is None:
        return scope
    name = scrubber.text(scope.name)
    version, url = (scrubber.text(text) if text else text for text in (scope.version, scope.schema_url))
    attributes = scrubber.attributes(scope.attributes)
    if name is scope.name and version is scope.version and url is scope.schema_url and attributes is scope.attributes:
        return scope
    return InstrumentationScope(name, version, url, dict(attributes) if attributes else None)


def scrub_metric_scope(scrubber: Scrubber, scope: Scope) -> Scope:
    """Scrub the scope of metrics as `scope` does that of spans."""
    name, version, url = (scrubber.text(text) for text in (scope.name, scope.version, scope.schema_url))
    found = Scope(name, version, url, scrubber.labels(scope.attributes))
    return scope if found == scope else found


def _scrub_event(scrubber: Scrubber, event: Event) -> Event:
    name = scrubber.text(event.name)
    attributes = scrubber.attributes(event.attributes)
    if name is event.name and attributes is event.attributes:
        return event
    return Event(name, _bounded(attributes, event.dropped_attributes), event.timestamp)


def _scrub_link(scrubber: Scrubber, link: Link) -> Link:
    attributes = scrubber.attributes(link.attributes)
    if attributes is link.attributes:
        return link
    return Link(link.context, _bounded(attributes, link.dropped_attributes))


def scrub_log_record(scrubber: Scrubber, record: LogRecordT) -> LogRecordT:
    """Scrub a record of the SDK's log pipeline: body, attributes, event name. The exception object is taken out.

    The record given is not changed: other processors may hold it.
    """
    log = record.log_record
    body = scrubber.value("body", log.body)
    attributes = scrubber.attributes(log.attributes)
    event_name = scrubber.text(log.event_name) if log.event_name else log.event_name
    exception = getattr(log, "exception", None)
    given_scope = record.instrumentation_scope
    scope = scrub_scope(scrubber, given_scope)
    is_same = body is log.body and attributes is log.attributes and event_name is log.event_name
    if is_same and exception is None and scope is given_scope:
        return record
    changed = copy.copy(log)
    changed.body = body
    changed.attributes = _bounded(attributes, record.dropped_attributes)
    changed.event_name = event_name
    if exception is not None:
        changed.exception = None
    scrubbed = copy.copy(record)
    object.__setattr__(scrubbed, "log_record", changed)  # ReadableLogRecord is frozen
    if scope is not given_scope:
        object.__setattr__(scrubbed, "instrumentation_scope", scope)
    return scrubbed


def _each(function: Callable[[Scrubber, Item], Item], scrubber: Scrubber, items: Iterable[Item]) -> list[Item] | None:
    """The items after `function`, or None when it changed none of them."""
    items = tuple(items)
    changed = [function(scrubber, item) for item in items]
    return None if all(new is old for new, old in zip(changed, items, strict=True)) else changed


def _bounded(attributes: Any, dropped: int) -> BoundedAttributes:
    if isinstance(attributes, BoundedAttributes):
        return attributes
    bounded = BoundedAttributes(attributes=dict(attributes) if attributes else None)
    bounded.dropped = dropped
    return bounded
