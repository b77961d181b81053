"""Saves and deletes of the models that `business` registers: which events they are, and their spans.

`business.install` connects the receivers of this module and wraps `save_base`,
`from_db` and `refresh_from_db` of the registered classes.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from django.db import connections, models
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from django_otel.base import guard
from django_otel.business import transactions
from django_otel.business.happened import Event, Happened, count_committed, count_operation, hand_over, start_span
from django_otel.business.loaded import NO_ROW, UNKNOWN, Values, comparable, loaded_values, primary_key, set_loaded
from django_otel.business.specs import Spec, spec_of
from django_otel.business.transactions import Unit
from django_otel.tracing.exceptions import class_name

_DELETING = "_django_otel_deleting"


class _PerThread(threading.local):
    def __init__(self) -> None:
        #: Saves under way, innermost last.
        self.saves: list[_Save] = []


per_thread = _PerThread()


class _Save:
    """One `save_base` under way."""

    __slots__ = (
        "error_type",
        "instance",
        "is_done",
        "is_started",
        "parent",
        "span",
        "spec",
        "started_ns",
        "started_unix_ns",
        "token",
    )

    def __init__(self, instance: models.Model, spec: Spec) -> None:
        self.instance = instance
        self.spec = spec
        self.is_started = False
        self.is_done = False
        self.span: trace.Span | None = None
        self.token: Any = None
        self.parent: Context | None = None
        self.error_type: type[BaseException] | None = None
        self.started_unix_ns = 0
        self.started_ns = 0

    def start(self) -> None:
        self.is_started = True
        self.started_unix_ns = time.time_ns()
        self.started_ns = time.perf_counter_ns()
        self.parent = otel_context.get_current()

    def end_unix_ns(self) -> int:
        # By the monotonic clock, so that a step of the wall clock cannot end a span before it began.
        return self.started_unix_ns + time.perf_counter_ns() - self.started_ns

    def release(self) -> None:
        """Make the previous context current again."""
        token, self.token = self.token, None
        if token is not None:
            otel_context.detach(token)


def open_save(instance: models.Model) -> _Save | None:
    try:
        saves = per_thread.saves
        if saves and saves[-1].instance is instance and not saves[-1].is_started:
            # A parent's wrapper, reached from a child's through super().
            return None
        spec = spec_of(instance.__class__)
        if spec is None:
            return None
        save = _Save(instance, spec)
        saves.append(save)
        return save
    except Exception as error:
        guard.report("the start of a save", error)
        return None


def close_save(save: _Save) -> None:
    try:
        saves = per_thread.saves
        if save in saves:
            # Also what a BaseException in the middle of `_open_save` may have left above.
            del saves[saves.index(save) :]
        save.release()
        if save.span is not None and not save.is_done:
            _end_without_event(save)
    except Exception as error:
        guard.report("the end of a save", error)


def _end_without_event(save: _Save) -> None:
    """End the span of a save that made no event. It is not dropped: the SQL has it as its parent."""
    span, save.span = save.span, None
    if span is None:
        return
    if span.is_recording():
        span.update_name(f"save {save.spec.label}")
        # An attribute cannot be removed, so business.event is set at the end only.
        if save.error_type is not None:
            # The message would quote values ("Key (email)=(...) already exists").
            span.set_attribute("error.type", class_name(save.error_type))
            span.set_status(trace.Status(trace.StatusCode.ERROR))
    span.end(end_time=save.end_unix_ns())


def _open_save_of(instance: models.Model) -> _Save | None:
    saves = per_thread.saves
    return saves[-1] if saves and saves[-1].instance is instance else None


def on_pre_save(
    sender: type[models.Model], instance: models.Model, raw: bool, update_fields: object, **kwargs: object
) -> None:
    try:
        save = _open_save_of(instance)
        if save is None or save.is_started:
            return
        save.start()
        if raw:
            return
        loaded = loaded_values(instance)
        is_new = instance._state.adding or loaded is NO_ROW or None in primary_key(instance)
        expected = _events_of_save(save.spec, instance, is_new, update_fields, loaded)
        if not expected:
            return
        # The expected events are corrected by post_save; the SQL needs its parent before.
        save.span = start_span(save.spec, expected[0].name, save.started_unix_ns, save.parent)
        if save.span.get_span_context().is_valid:
            save.token = otel_context.attach(trace.set_span_in_context(save.span, save.parent))
    except Exception as error:
        guard.report("pre_save of a business event", error)


def on_post_save(
    sender: type[models.Model],
    instance: models.Model,
    created: bool,
    raw: bool,
    using: str,
    update_fields: object,
    **kwargs: object,
) -> None:
    try:
        save = _open_save_of(instance)
        if save is None or save.is_done or not save.is_started:
            # save_base was called on the base class: no span could be made around the SQL.
            spec = spec_of(sender)
            if spec is None:
                return
            save = _Save(instance, spec)
            save.start()
        save.release()
        _finish_save(save, created, raw, using, update_fields)
    except Exception as error:
        guard.report("post_save of a business event", error)


def _finish_save(save: _Save, created: bool, raw: bool, using: str, update_fields: object) -> None:
    spec, instance = save.spec, save.instance
    connection = connections[using]
    outcome = transactions.outcome_now(connection)
    unit = transactions.tracker(connection, count_committed).unit if outcome is None else None
    loaded = loaded_values(instance)
    events = [] if raw else _events_of_save(spec, instance, created, update_fields, loaded)
    save.is_done = True
    _remember_saved(spec, instance, created, update_fields, loaded, unit)
    if raw:
        return
    if spec.metric:
        count_operation(spec, "create" if created else "update")
    if not events:
        _end_without_event(save)
        return
    end_unix_ns = save.end_unix_ns()
    happened = []
    for event in events:
        span, save.span = save.span, None
        if span is None:
            span = start_span(spec, event.name, save.started_unix_ns, save.parent)
        elif span.is_recording():
            span.update_name(event.name)
        happened.append(Happened(event, spec, instance, using, span, end_unix_ns))
    hand_over(happened, connection)


def _events_of_save(
    spec: Spec, instance: models.Model, created: bool, update_fields: Any, loaded: Values | None
) -> list[Event]:
    if created:
        return [Event(spec.created)] if spec.created else []
    events = [Event(spec.updated)] if spec.updated else []
    if not loaded:
        return events
    values = instance.__dict__
    for transition in spec.transitions:
        attname = transition.attname
        if attname not in loaded or attname not in values:
            continue
        if update_fields is not None and transition.names.isdisjoint(update_fields):
            continue
        value = comparable(transition.column, values[attname])
        if value is UNKNOWN:
            continue
        name = transition.events.get(value)
        if name is None:
            continue
        former = comparable(transition.column, loaded[attname])
        if former is not UNKNOWN and former != value:
            events.append(Event(name, former, value, is_transition=True))
    return events


def _remember_saved(
    spec: Spec, instance: models.Model, created: bool, update_fields: Any, loaded: Values | None, unit: Unit | None
) -> None:
    values = instance.__dict__
    saved: Values = {} if created or loaded is None else dict(loaded)
    for transition in spec.transitions:
        attname = transition.attname
        if update_fields is not None and transition.names.isdisjoint(update_fields):
            continue
        if attname in values and not hasattr(values[attname], "resolve_expression"):
            saved[attname] = values[attname]
        elif attname in values:
            # An expression: its result only the database knows.
            saved.pop(attname, None)
    set_loaded(instance, saved, unit, is_new=created)


def on_pre_delete(sender: type[models.Model], instance: models.Model, **kwargs: object) -> None:
    try:
        # Nothing becomes current: all pre_delete of a cascade come before all post_delete.
        instance._state.__dict__[_DELETING] = (time.time_ns(), time.perf_counter_ns())
    except Exception as error:
        guard.report("pre_delete of a business event", error)


def on_post_delete(sender: type[models.Model], instance: models.Model, using: str, **kwargs: object) -> None:
    try:
        now_unix_ns = time.time_ns()
        started_unix_ns, started_ns = instance._state.__dict__.pop(_DELETING, (now_unix_ns, None))
        end_unix_ns = now_unix_ns
        if started_ns is not None:
            end_unix_ns = started_unix_ns + time.perf_counter_ns() - started_ns
        spec = spec_of(sender)
        if spec is None or spec.deleted is None:
            return
        if spec.metric:
            count_operation(spec, "delete")
        span = start_span(spec, spec.deleted, started_unix_ns, None)
        happened = Happened(Event(spec.deleted), spec, instance, using, span, end_unix_ns)
        hand_over([happened], connections[using])
    except Exception as error:
        guard.report("post_delete of a business event", error)
