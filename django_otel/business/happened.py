"""Events that happened: their span, signal and count, at once or with the outcome of their transaction."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db import models
from django.utils.duration import duration_iso_string
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from django_otel import api, runtime
from django_otel.base import attribute_values, guard
from django_otel.business import transactions
from django_otel.business.loaded import primary_key
from django_otel.business.specs import Spec
from django_otel.signals import business_event

Attributes = dict[str, Any]


@dataclass(slots=True, eq=False)
class Event:
    """One event of a save: its name and, for a transition, the values on both sides."""

    name: str
    former: object = None
    value: object = None
    is_transition: bool = False


class Happened:
    """An event on its way to its outcome. A `transactions.Pending`."""

    __slots__ = (
        "attributes",
        "count",
        "end_unix_ns",
        "instance",
        "is_delivered",
        "name",
        "span",
        "spec",
        "using",
    )

    def __init__(
        self,
        event: Event,
        spec: Spec,
        instance: models.Model | None,
        using: str,
        span: trace.Span,
        end_unix_ns: int,
        count: int = 1,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        self.name = event.name
        self.spec = spec
        self.using = using
        self.span = span
        self.end_unix_ns = end_unix_ns
        self.count = count
        self.attributes: Attributes = {}
        # The instance is kept, and the attributes are built, only if there is a receiver.
        self.is_delivered = business_event.has_listeners(spec.model)
        self.instance = instance if self.is_delivered else None
        if self.is_delivered or span.is_recording():
            try:
                self.attributes = _attributes(spec, instance, event, extra)
                span.set_attributes(self.attributes)
            except Exception as error:
                guard.report("the attributes of a business event", error)

    def settle(self, outcome: str) -> None:
        if self.span.is_recording():
            self.span.set_attribute("django.transaction.outcome", outcome)
        self.span.end(end_time=self.end_unix_ns)

    def deliver(self, outcome: str) -> None:
        business_event.send_robust(
            self.spec.model,
            event=self.name,
            model=self.spec.label,
            instance=self.instance,
            count=self.count,
            outcome=outcome,
            attributes={**self.attributes, "django.transaction.outcome": outcome},
            using=self.using,
        )


def hand_over(happened: list[Happened], connection: Any) -> None:
    """Give events to the transaction they are part of, or settle them at once if there is none."""
    outcome = transactions.outcome_now(connection)
    if outcome is None:
        tracker = transactions.tracker(connection, count_committed)
        for item in happened:
            _wait(item, tracker)
        return
    missed = transactions.existing_tracker(connection)
    if missed is not None:
        missed.abandon()
    for item in happened:
        try:
            item.settle(outcome)
        except Exception as error:
            guard.report("settling a business event", error)
        if item.spec.metric:
            _count_event(item.name, item.count)
    for item in happened:
        # Last: a receiver may do anything, such as saving the instance again.
        if item.is_delivered:
            item.deliver(outcome)


def _wait(happened: Happened, tracker: transactions.Tracker) -> None:
    if happened.spec.metric:
        tracker.add(happened.name, happened.count)
    is_recorded = happened.span.is_recording()
    if not (is_recorded or happened.is_delivered):
        return
    if tracker.has_room:
        tracker.hold(happened)
        return
    # A span that is not ended is not exported; the counter stays exact.
    if is_recorded:
        _add("django_otel.spans.dropped", 1, {"django_otel.reason": "transaction_limit"})
    guard.warn_once(
        "business.limit",
        "More than %d business events wait for one transaction; further ones of it are counted, but have no span "
        "and no signal.",
        transactions.PENDING_LIMIT,
    )


def start_span(spec: Spec, name: str, started_unix_ns: int, parent: Context | None) -> trace.Span:
    parent = otel_context.get_current() if parent is None else parent
    if parent.get(api.NO_SPANS_KEY):
        return trace.NonRecordingSpan(trace.get_current_span(parent).get_span_context())
    return runtime.tracer().start_span(
        name, parent, trace.SpanKind.INTERNAL, {"django.model": spec.label}, start_time=started_unix_ns
    )


def _attributes(
    spec: Spec, instance: models.Model | None, event: Event, extra: Mapping[str, object] | None
) -> Attributes:
    attributes: Attributes = {"django.model": spec.label, "business.event": event.name}
    if instance is not None:
        values = instance.__dict__
        # A composite key's parts in the order of its definition.
        attributes["django.model.pk"] = ",".join(str(_bare(value)) for value in primary_key(instance))
        for name, attname in spec.attributes:
            # From __dict__: a deferred field would be loaded by a query.
            if attname in values and (cleaned := clean(values[attname])) is not None:
                attributes[name] = cleaned
    if event.is_transition:
        for name, value in (("business.from", event.former), ("business.to", event.value)):
            if (cleaned := clean(value)) is not None:
                attributes[name] = cleaned
    for name, value in (extra or {}).items():
        if (cleaned := clean(value)) is not None:
            attributes[name] = cleaned
    return attributes


def _bare(value: object) -> object:
    return value.value if isinstance(value, enum.Enum) else value


def clean(value: object) -> object:
    """A value as OpenTelemetry can hold it, or None to leave it out."""
    value = _bare(value)
    if value is None or isinstance(value, bytes | bytearray | memoryview) or hasattr(value, "resolve_expression"):
        return None
    if isinstance(value, decimal.Decimal):
        # repr() is the shortest text that gives the float: equal means that no digit is lost.
        is_exact = value.is_finite() and decimal.Decimal(repr(float(value))) == value
        return float(value) if is_exact else str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return duration_iso_string(value)
    if isinstance(value, dict) or (isinstance(value, list | tuple) and any(isinstance(v, dict | list) for v in value)):
        return json.dumps(value, default=str, ensure_ascii=False)
    return attribute_values.clean_value(value)


def _add(metric: str, amount: int, attributes: Mapping[str, object]) -> None:
    instrument: Any = runtime.store.catalogued(metric)
    instrument.add(amount, attributes)


def _count_event(name: str, amount: int) -> None:
    _add("django.business.events", amount, {"business.event": name})


def count_committed(name: str, amount: int) -> None:
    """Count the events that a tracker saw committed; it lives as long as its connection and must not keep them."""
    _count_event(name, amount)


def count_operation(spec: Spec, operation: str) -> None:
    """Count a save or delete at once: it was work for the database, also if it is undone."""
    _add("django.model.operations", 1, {"django.model": spec.label, "django.model.operation": operation})
