"""One operation of a cache while it is under way: its outcome, duration, span, and its part of the time budget.

`cache` decides what is an operation. Keys are read for `CACHE.KEY_GROUP` alone, whose answer is what is exported: at
most 100 different groups, all others are `_other`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from time import perf_counter

from opentelemetry.trace import Span

from django_otel import runtime
from django_otel.base import guard
from django_otel.base.sdk_compat import SPAN_KEY, attach, detach, get_current
from django_otel.instrumentation.driver_calls import is_recorded, is_suppressed
from django_otel.metrics.series import HistogramSeries, Series
from django_otel.requests import layers, record
from django_otel.requests.record import RequestRecord
from django_otel.tracing.attributes import SharedAttributes, are_ready
from django_otel.tracing.exceptions import mark_failed
from django_otel.tracing.span_form import SpanForm, with_enclosing
from django_otel.tracing.spans import RecordedSpan
from django_otel.tracing.tracer import Tracer

#: Outcome, number of keys, and their group where there are groups.
Outcome = tuple[str, int, str | None]
KeyGroup = Callable[[object], object]

OTHER_GROUP = "_other"
_MAX_GROUPS = 100
_PLACE = "measuring a cache operation"
_OUTCOME = "django.cache.outcome"
#: The operation that runs, or True for one that is not counted: what a backend makes of others counts once. Not a
#: thread's own variable: greenlets share a thread.
inside: ContextVar[CacheOperation | bool] = ContextVar("django_otel_in_cache", default=False)


class State:
    """State that changes with the settings, and the series that were looked up."""

    def __init__(self) -> None:
        #: Whether operations are counted.
        self.counts = False
        #: Whether their time is part of a request's time budget.
        self.times_requests = False
        self.makes_spans = False
        self.makes_roots = False
        self.key_group: KeyGroup | None = None
        self.groups: set[str] = set()
        #: By alias, operation, outcome and group; and by alias, operation and group.
        self.operations: dict[tuple[str, str, str, str | None], Series] = {}
        self.durations: dict[tuple[str, str, str | None], HistogramSeries] = {}
        self.forms: dict[tuple[str, str, str | None], _Form] = {}

    def forget(self) -> None:
        """Look everything up again."""
        self.groups = set()
        self.operations = {}
        self.durations = {}
        self.forms = {}


state = State()


def group_of(key: object) -> str | None:
    """Return the group of a key by `CACHE.KEY_GROUP`; None without one."""
    find = state.key_group
    if find is None:
        return None
    try:
        found = find(key)
    except Exception as error:
        guard.report("CACHE.KEY_GROUP", error)
        return None
    if not isinstance(found, str) or not found:
        return None
    groups = state.groups
    if found not in groups:
        if len(groups) >= _MAX_GROUPS:
            return OTHER_GROUP
        groups.add(found)
    return found


def group_of_all(keys: Iterable[object]) -> str | None:
    """Return the group that all `keys` are of; None where they are of several."""
    if state.key_group is None:
        return None
    found = {group_of(key) for key in keys}
    return found.pop() if len(found) == 1 else None


class _Form(SpanForm):
    """Common parts of the spans of one operation on one cache."""

    __slots__ = ("_by_outcome",)

    def __init__(self, alias: str, operation: str, group: str | None) -> None:
        given = {"django.cache.alias": alias, "django.cache.operation": operation}
        if group is not None:
            given["django.cache.key.group"] = group
        super().__init__(f"cache {operation}", given)
        #: The attributes with the outcome; None where a span would not keep them as they are.
        self._by_outcome: dict[str, SharedAttributes | None] = {}

    def say_outcome(self, span: Span, outcome: str) -> None:
        """Say in a span of this form what has come of the operation."""
        if outcome not in self._by_outcome:
            tracer = runtime.tracer()
            wanted = SharedAttributes({**self.attributes, _OUTCOME: outcome})
            is_ready = type(tracer) is Tracer and are_ready(wanted, tracer.shared.limits)
            self._by_outcome[outcome] = wanted if is_ready else None
        known = self._by_outcome[outcome]
        if known is None or type(span) is not RecordedSpan or not span.exchange(self.attributes, known):
            span.set_attribute(_OUTCOME, outcome)


class CacheSpan:
    """The span of an operation, where there is one: current from its start to `end`."""

    __slots__ = ("_context", "_form", "_operation", "_span", "_token")

    def __init__(self, alias: str, operation: str, group: str | None) -> None:
        self._operation = operation
        self._span: Span | None = None
        if not state.makes_spans:
            return
        try:
            outer = get_current()
            if is_suppressed(outer) or not (is_recorded(outer) or (state.makes_roots and record.current() is None)):
                return
            form = state.forms.get((alias, operation, group))
            if form is None:
                form = state.forms[alias, operation, group] = _Form(alias, operation, group)
            self._form = form
            parent = outer.span_or_none if type(outer) is RequestRecord else outer.get(SPAN_KEY)
            span = form.start(runtime.tracer(), outer, parent)
            self._context = with_enclosing(outer, span)
            self._token = attach(self._context)
            self._span = span
        except Exception as fault:
            guard.report(_PLACE, fault)

    def end(self, outcomes: Sequence[Outcome], error: BaseException | None) -> None:
        """End the span, with what has come of the operation. Never raises an `Exception`."""
        span = self._span
        if span is None:
            return
        try:
            if get_current() is self._context:
                detach(self._token)
            if self._operation == "get_many":
                for outcome, name in (("hit", "django.cache.hits"), ("miss", "django.cache.misses")):
                    span.set_attribute(name, sum(number for found, number, _ in outcomes if found == outcome))
            elif outcomes:
                self._form.say_outcome(span, outcomes[0][0])
            if error is not None:
                mark_failed(span, error)
            span.end()
        except Exception as fault:
            guard.report(_PLACE, fault)


class CacheOperation:
    """One operation, from its making to `succeed` or `fail`."""

    __slots__ = (
        "_alias", "_group", "_opened", "_operation", "_span", "_started_s", "_token", "has_swallowed",
    )  # fmt: skip

    def __init__(self, alias: str, operation: str, group: str | None = None) -> None:
        self._alias = alias
        self._operation = operation
        self._group = group
        #: Whether the backend has swallowed an error of its server.
        self.has_swallowed = False
        self._token = inside.set(self)
        self._span = CacheSpan(alias, operation, group) if state.makes_spans else None
        self._opened: layers.Layers | None = None
        self._started_s = perf_counter()
        if state.times_requests:
            self._opened = layers.enter(record.current(), layers.CACHE, self._started_s)

    def succeed(self, outcomes: Callable[[], Sequence[Outcome]]) -> None:
        """End the operation; `outcomes()` is not asked where the backend has swallowed an error."""
        took_s = self._stop()
        found: Sequence[Outcome] = (("error", 1, self._group),)
        if not self.has_swallowed:
            try:
                found = outcomes()
            except Exception as error:
                guard.report(_PLACE, error)
                found = (("ok", 1, self._group),)
        self._record(took_s, found, None)

    def fail(self, error: BaseException) -> None:
        """End the operation with what it has raised."""
        took_s = self._stop()
        # How Django says that there is no such key, also of one that a swallowed error has kept it from reading.
        is_miss = isinstance(error, ValueError) and self._operation in _RAISING and not self.has_swallowed
        self._record(took_s, (("miss" if is_miss else "error", 1, self._group),), None if is_miss else error)

    def _stop(self) -> float:
        took_s = layers.leave(self._opened, layers.CACHE) - self._started_s
        try:
            inside.reset(self._token)
        except ValueError:
            # An abandoned coroutine, closed elsewhere: nothing of it is current there.
            pass
        return took_s

    def _record(self, took_s: float, outcomes: Sequence[Outcome], error: BaseException | None) -> None:
        if self._span is not None:
            self._span.end(outcomes, error)
        try:
            if state.counts and not is_suppressed(get_current()):
                count(self._alias, self._operation, took_s, outcomes, self._group)
        except Exception as fault:
            guard.report(_PLACE, fault)


#: Operations that raise ValueError for a key that is not there.
_RAISING = frozenset({"incr", "decr", "incr_version", "decr_version"})


def count(alias: str, operation: str, took_s: float, outcomes: Sequence[Outcome], group: str | None) -> None:
    """Count an operation by its outcomes and its duration."""
    duration = state.durations.get((alias, operation, group))
    if duration is None:
        attributes = {"django.cache.alias": alias, "django.cache.operation": operation}
        if group is not None:
            attributes["django.cache.key.group"] = group
        made = runtime.store.catalogued("django.cache.operation.duration").series(attributes)
        assert isinstance(made, HistogramSeries)
        duration = state.durations[alias, operation, group] = made
    duration.observe(took_s)
    for outcome, number, of_group in outcomes:
        if not number:
            continue
        series = state.operations.get((alias, operation, outcome, of_group))
        if series is None:
            attributes = {
                "django.cache.alias": alias, "django.cache.operation": operation, "django.cache.outcome": outcome,
            }  # fmt: skip
            if of_group is not None:
                attributes["django.cache.key.group"] = of_group
            series = runtime.store.catalogued("django.cache.operations").series(attributes)
            state.operations[alias, operation, outcome, of_group] = series
        series.add(float(number))
