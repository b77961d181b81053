"""Saves and deletes of the models that `business` registers: which events they are, and their spans.

`business.install` connects the receivers of this module and wraps `save_base`,
`from_db` and `refresh_from_db` of the registered classes; the rules are told there.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import enum
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.db import connections, models
from django.utils.duration import duration_iso_string
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from django_otel import api, runtime
from django_otel.base import guard
from django_otel.base.frozen import record
from django_otel.business import transactions
from django_otel.business.transactions import ROLLED_BACK, Unit
from django_otel.signals import business_event

Attributes = dict[str, Any]
Values = dict[str, Any]

#: On `instance._state`: the values of the watched columns as they are in the database. A plain dict, or a
#: `_Provisional` while a transaction may still undo them; never changed in place, since copies share it.
_LOADED = "_django_otel_loaded"
_DELETING = "_django_otel_deleting"
#: The row does not exist (any more): its creation was rolled back. Known by identity.
_NO_ROW: Values = {}
#: What `plain` gives for a value that cannot be compared.
UNKNOWN = object()


@record
class Transition:
    """The events of changes to one column, by the new value."""

    attname: str
    names: frozenset[str]
    column: Any
    events: Mapping[Any, str]


@record
class Spec:
    """A registration made ready for one concrete class."""

    model: type[models.Model]
    label: str
    created: str | None = None
    updated: str | None = None
    deleted: str | None = None
    transitions: tuple[Transition, ...] = ()
    #: (attribute name, attname)
    attributes: tuple[tuple[str, str], ...] = ()
    metric: bool = True

    @property
    def is_watching(self) -> bool:
        """Whether values must be remembered when instances are loaded."""
        return bool(self.transitions)


class Registered:
    """What is said of models."""

    def __init__(self) -> None:
        #: By class, also of proxies and children. Replaced as a whole by `business`, never changed.
        self.specs: Mapping[type[models.Model], Spec] = {}


registered = Registered()


def spec_of(cls: type[models.Model]) -> Spec | None:
    """The spec of a class, or of its nearest ancestor if the class was made after the registration."""
    specs = registered.specs
    spec = specs.get(cls)
    if spec is None:
        spec = next((specs[base] for base in cls.__mro__ if base in specs), None)
    return spec


# --- what is in the database, without asking it -------------------------------------


class _Provisional:
    """Values saved in a transaction that is still open, and what holds if it is undone.

    Pickled as the plain dict that is in force, so that a cached instance can be
    loaded where this package is not installed.
    """

    __slots__ = ("previous", "unit", "values")

    def __init__(self, values: Values, previous: Values | _Provisional | None, unit: Unit) -> None:
        self.values = values
        self.previous = previous
        self.unit = unit

    def __deepcopy__(self, memo: object) -> _Provisional:
        # Never changed in place, and a copied unit would never learn its outcome.
        return self

    def __reduce__(self) -> tuple[type[Values], tuple[Values]]:
        held = _settled(self)
        return dict, (held.values if isinstance(held, _Provisional) else held or {},)


def _settled(held: Values | _Provisional | None) -> Values | _Provisional | None:
    while isinstance(held, _Provisional):
        outcome = held.unit.outcome
        if outcome is None:
            return held
        held = held.previous if outcome == ROLLED_BACK else held.values
    return held


def _below(held: Values | _Provisional | None, unit: Unit) -> Values | _Provisional | None:
    """What holds if `unit` is undone."""
    while isinstance(held, _Provisional) and held.unit.find() is unit:
        held = held.previous
    return held


def _loaded_values(instance: models.Model) -> Values | None:
    """The watched values as they are in the database, as far as this instance knows."""
    state = instance._state.__dict__
    held = state.get(_LOADED)
    if held is None or held.__class__ is dict:
        return held
    held = state[_LOADED] = _settled(held)
    return held.values if isinstance(held, _Provisional) else held


def _set_loaded(instance: models.Model, values: Values, unit: Unit | None, is_new: bool = False) -> None:
    state = instance._state.__dict__
    if unit is None:
        state[_LOADED] = values
        return
    previous = _settled(state.get(_LOADED))
    if isinstance(previous, _Provisional):
        # What is undone together needs no entry of its own: else a chain of all saves of one instance.
        root = previous.unit.find()
        below = _below(previous, root)
        previous = below if root is unit else _Provisional(previous.values, below, root)
    if previous is None and is_new:
        previous = _NO_ROW
    state[_LOADED] = _Provisional(values, previous, unit)


def remember_loaded(instance: models.Model) -> None:
    try:
        spec = spec_of(instance.__class__)
        if spec is None:
            return
        values = instance.__dict__
        loaded = {
            transition.attname: values[transition.attname]
            for transition in spec.transitions
            if transition.attname in values
        }
        instance._state.__dict__[_LOADED] = loaded
        refreshing = per_thread.refreshing
        if refreshing:
            refreshing[-1].append(instance)
    except Exception as error:
        guard.report("remembering loaded values", error)


@contextlib.contextmanager
def refreshing(instance: models.Model) -> Iterator[None]:
    """Around `refresh_from_db`: what it loads is what `instance` has loaded afterwards.

    Django loads a second instance and copies from it; that one knows which
    fields were asked for, whichever way.
    """
    loaded: list[models.Model] = []
    under_way = per_thread.refreshing
    under_way.append(loaded)
    try:
        yield
    finally:
        # By identity: two refreshes under way that loaded nothing yet are equal lists.
        del under_way[[other is loaded for other in under_way].index(True) :]
    try:
        _remember_refreshed(instance, loaded)
    except Exception as error:
        guard.report("remembering refreshed values", error)


def _remember_refreshed(instance: models.Model, loaded: list[models.Model]) -> None:
    if spec_of(instance.__class__) is None:
        return
    key = _primary_key(instance)
    for other in reversed(loaded):
        if other._meta.concrete_model is instance._meta.concrete_model and _primary_key(other) == key:
            fresh = other._state.__dict__.get(_LOADED) or {}
            former = _loaded_values(instance)
            held = instance._state.__dict__.get(_LOADED)
            unit = held.unit.find() if isinstance(held, _Provisional) else None
            _set_loaded(instance, {**(former or {}), **fresh}, unit)
            return


def _primary_key(instance: models.Model) -> tuple[Any, ...]:
    values = instance.__dict__
    return tuple(values.get(column.attname) for column in instance._meta.pk_fields)


def plain(column: Any, value: object) -> Any:
    """A value as the column holds it, hashable, or `UNKNOWN`."""
    try:
        if isinstance(value, enum.Enum):
            value = value.value
        if value is None or hasattr(value, "resolve_expression"):
            return None if value is None else UNKNOWN
        value = column.to_python(value)
        hash(value)
    except Exception:
        # Not a value of this column, or a mutable one: nothing it could be compared with.
        return UNKNOWN
    return value


# --- a save ---------------------------------------------------------------------------


class _PerThread(threading.local):
    def __init__(self) -> None:
        #: Saves under way, innermost last.
        self.saves: list[_Save] = []
        #: For each `refresh_from_db` under way, the instances loaded by it.
        self.refreshing: list[list[models.Model]] = []


per_thread = _PerThread()


@dataclass(slots=True, eq=False)
class Event:
    """One event of a save: its name and, for a transition, the values on both sides."""

    name: str
    former: Any = None
    value: Any = None
    is_transition: bool = False


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
        """Make current again what was before."""
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
            span.set_attribute("error.type", _type_name(save.error_type))
            span.set_status(trace.Status(trace.StatusCode.ERROR))
    span.end(end_time=save.end_unix_ns())


def _type_name(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _open_save_of(instance: models.Model) -> _Save | None:
    saves = per_thread.saves
    return saves[-1] if saves and saves[-1].instance is instance else None


def on_pre_save(
    sender: type[models.Model], instance: models.Model, raw: bool, update_fields: Any, **kwargs: Any
) -> None:
    try:
        save = _open_save_of(instance)
        if save is None or save.is_started:
            return
        save.start()
        if raw:
            return
        loaded = _loaded_values(instance)
        is_new = instance._state.adding or loaded is _NO_ROW or None in _primary_key(instance)
        expected = _events_of_save(save.spec, instance, is_new, update_fields, loaded)
        if not expected:
            return
        # What is expected now is corrected by post_save; the SQL needs its parent before.
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
    update_fields: Any,
    **kwargs: Any,
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


def _finish_save(save: _Save, created: bool, raw: bool, using: str, update_fields: Any) -> None:
    spec, instance = save.spec, save.instance
    connection = connections[using]
    outcome = transactions.outcome_now(connection)
    unit = transactions.tracker(connection, _count_committed).unit if outcome is None else None
    loaded = _loaded_values(instance)
    events = [] if raw else _events_of_save(spec, instance, created, update_fields, loaded)
    save.is_done = True
    _remember_saved(spec, instance, created, update_fields, loaded, unit)
    if raw:
        return
    if spec.metric:
        _count_operation(spec, "create" if created else "update")
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
        value = plain(transition.column, values[attname])
        if value is UNKNOWN:
            continue
        name = transition.events.get(value)
        if name is None:
            continue
        former = plain(transition.column, loaded[attname])
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
    _set_loaded(instance, saved, unit, is_new=created)


# --- a deletion ------------------------------------------------------------------------


def on_pre_delete(sender: type[models.Model], instance: models.Model, **kwargs: Any) -> None:
    try:
        # Nothing becomes current: all pre_delete of a cascade come before all post_delete.
        instance._state.__dict__[_DELETING] = (time.time_ns(), time.perf_counter_ns())
    except Exception as error:
        guard.report("pre_delete of a business event", error)


def on_post_delete(sender: type[models.Model], instance: models.Model, using: str, **kwargs: Any) -> None:
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
            _count_operation(spec, "delete")
        span = start_span(spec, spec.deleted, started_unix_ns, None)
        happened = Happened(Event(spec.deleted), spec, instance, using, span, end_unix_ns)
        hand_over([happened], connections[using])
    except Exception as error:
        guard.report("post_delete of a business event", error)


# --- an event that happened -----------------------------------------------------------------


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
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = event.name
        self.spec = spec
        self.using = using
        self.span = span
        self.end_unix_ns = end_unix_ns
        self.count = count
        self.attributes: Attributes = {}
        # The instance is only held, and the attributes only built, for somebody.
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
        tracker = transactions.tracker(connection, _count_committed)
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
    if parent.get(api._NO_SPANS_KEY):
        return trace.NonRecordingSpan(trace.get_current_span(parent).get_span_context())
    return runtime.tracer().start_span(
        name, parent, trace.SpanKind.INTERNAL, {"django.model": spec.label}, start_time=started_unix_ns
    )


def _attributes(spec: Spec, instance: models.Model | None, event: Event, extra: Mapping[str, Any] | None) -> Attributes:
    attributes: Attributes = {"django.model": spec.label, "business.event": event.name}
    if instance is not None:
        values = instance.__dict__
        # A composite key's parts in the order of its definition.
        attributes["django.model.pk"] = ",".join(str(_bare(value)) for value in _primary_key(instance))
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


def clean(value: Any) -> Any:
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
    return api.clean_value(value)


# --- counters -------------------------------------------------------------------------------


def _add(metric: str, amount: int, attributes: Mapping[str, object]) -> None:
    instrument: Any = runtime.store.catalogued(metric)
    instrument.add(amount, attributes)


def _count_event(name: str, amount: int) -> None:
    _add("django.business.events", amount, {"business.event": name})


def _count_committed(name: str, amount: int) -> None:
    """Count what a tracker saw committed; the tracker lives as long as its connection and must not keep the parts."""
    _count_event(name, amount)


def _count_operation(spec: Spec, operation: str) -> None:
    """Count a save or delete at once: it was work for the database, also if it is undone."""
    _add("django.model.operations", 1, {"django.model": spec.label, "django.model.operation": operation})
