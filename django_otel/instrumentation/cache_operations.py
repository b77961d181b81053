"""One cache operation in progress: its outcome, duration, span, and its part of the time budget.

`cache` decides what is an operation. Keys are read for `CACHE.KEY_GROUP` alone, whose answer is what is exported: at
most 100 different groups, all others are `_other`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar, Token
from time import perf_counter
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Span

from django_otel import runtime
from django_otel.base import guard
from django_otel.base.sdk_compat import SPAN_KEY, attach, detach, get_current
from django_otel.instrumentation.driver_calls import is_recorded, is_suppressed
from django_otel.metrics.series import HistogramSeries, Series
from django_otel.requests import layers
from django_otel.requests.record import REQUEST_KEY, RequestRecord
from django_otel.tracing.exceptions import mark_failed
from django_otel.tracing.span_form import Extension, SpanForm, with_enclosing
from django_otel.tracing.spans import RecordedSpan

#: Outcome, number of keys, and their group where there are groups.
Outcome = tuple[str, int, str | None]
KeyGroup = Callable[[object], object]

OTHER_GROUP = "_other"
#: In place of a default, which may be what is stored.
MISSING = object()
_MAX_GROUPS = 100
_PLACE = "measuring a cache operation"
_OUTCOME = "django.cache.outcome"
#: The operation that runs, or True for one that is not counted: what a backend makes of others counts once. Not a
#: thread's own variable: greenlets share a thread.
inside: ContextVar[CacheOperation | bool] = ContextVar("django_otel_in_cache", default=False)

#: Operations of one key, their first argument.
_BY_KEY = frozenset(
    {"get", "has_key", "add", "set", "touch", "delete", "incr", "decr", "incr_version", "decr_version"}
    | {"ttl", "pttl", "persist", "expire", "expire_at", "pexpire", "pexpire_at", "lock"}
)
#: Operations that raise ValueError for a key that is not there.
_RAISING = frozenset({"incr", "decr", "incr_version", "decr_version"})
#: Operations whose arguments are not passed on as they are; those, besides `get`, whose result says what was found.
_REWRITTEN = frozenset({"get", "get_many", "delete_many"})
_LOOKING = frozenset({"has_key", "get_many"})


class State:
    """State that changes with the settings."""

    def __init__(self) -> None:
        #: Whether operations are counted.
        self.counts = False
        #: Whether their time is part of a request's time budget.
        self.times_requests = False
        self.makes_spans = False
        self.makes_roots = False
        self.key_group: KeyGroup | None = None
        self.groups: set[str] = set()
        #: A new object with every change, which what was looked up before goes by.
        self.generation = object()

    def forget(self) -> None:
        """Look everything up again."""
        self.groups = set()
        self.generation = object()


state = State()


# --- Groups of keys. ---


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


# --- What the calls of an operation have in common. ---


class _Known(SpanForm):
    """Form of the spans of one operation on one cache, for keys of one group, and its series."""

    __slots__ = ("_labels", "duration", "outcomes", "says")

    def __init__(self, alias: str, operation: str, group: str | None) -> None:
        labels = {"django.cache.alias": alias, "django.cache.operation": operation}
        if group is not None:
            labels["django.cache.key.group"] = group
        super().__init__(f"cache {operation}", labels)
        self._labels = labels
        #: The series of its duration; None until one was counted.
        self.duration: HistogramSeries | None = None
        #: By outcome: the counter's series, and what a span gets.
        self.outcomes: dict[str, Series] = {}
        self.says: dict[str, Extension] = {}

    def count(self, took_s: float, outcome: str | None) -> None:
        """Count a call that took so long, and its outcome if it has one."""
        if self.duration is None:
            made = runtime.store.catalogued("django.cache.operation.duration").series(self._labels)
            assert isinstance(made, HistogramSeries)
            self.duration = made
        self.duration.observe(took_s)
        if outcome is not None:
            (self.outcomes.get(outcome) or self.counter_of(outcome)).add(1.0)

    def counter_of(self, outcome: str) -> Series:
        """Return where an outcome is counted."""
        series = self.outcomes.get(outcome)
        if series is None:
            series = runtime.store.catalogued("django.cache.operations").series({**self._labels, _OUTCOME: outcome})
            self.outcomes[outcome] = series
        return series

    def extension_of(self, outcome: str) -> Extension:
        """Return the attributes of a span with this outcome."""
        found = self.says[outcome] = Extension(self.attributes, {_OUTCOME: outcome}, runtime.tracer())
        return found


class Measured:
    """One operation of one cache."""

    __slots__ = ("_generation", "_known", "_usual", "alias", "name")

    def __init__(self, alias: str, name: str) -> None:
        self.alias = alias
        self.name = name
        self._generation: object = None
        #: By the group of the keys, and without one.
        self._known: dict[str | None, _Known] = {}
        self._usual = _Known(alias, name, None)

    def find(self, group: str | None) -> _Known:
        """Return the common parts of calls with keys of that group."""
        if self._generation is not state.generation:
            self._known = {None: _Known(self.alias, self.name, None)}
            self._usual = self._known[None]
            self._generation = state.generation
        found = self._known.get(group)
        if found is None:
            found = self._known.setdefault(group, _Known(self.alias, self.name, group))
        return found

    def begin(self, args: tuple[object, ...], kwargs: dict[str, Any]) -> CacheOperation:
        """Begin a call with these arguments; `CacheOperation.end` ends it."""
        # Filled in here and not by an `__init__`, to save its call.
        operation = CacheOperation()
        operation.measured = self
        operation.asked = operation.span = None
        operation.has_swallowed = False
        if self.name == "get" and args and len(args) < 3 and not kwargs:
            # As it is nearly always called.
            operation.asked = args[1] if len(args) == 2 else None
            args = (args[0], MISSING)
        elif self.name in _REWRITTEN:
            args = operation.rewrite(args, kwargs)
        operation.args, operation.kwargs = args, kwargs
        if self._generation is state.generation and state.key_group is None:
            operation.known = self._usual
        else:
            operation.known = self.find(operation.find_group())
        operation.token = inside.set(operation)
        outer = get_current()
        request: Any = outer
        is_silent = False
        # As within most requests; nothing else is in it.
        if type(outer) is not RequestRecord:
            request, is_silent = outer.get(REQUEST_KEY), is_suppressed(outer)
        operation.is_counted = state.counts and not is_silent
        if state.makes_spans and not is_silent:
            operation.start_span(outer)
        operation.started_s = started_s = perf_counter()
        operation.opened = layers.enter(request, layers.CACHE, started_s) if state.times_requests else None
        return operation

    def count(self, took_s: float, outcome: str) -> None:
        """Count a call without a key that took so long."""
        self.find(None).count(took_s, outcome)


# --- One call. ---


class CacheSpan:
    """Operation with a span, where there is one: current from `start_span` to `end_span`."""

    __slots__ = ("_context", "_span_token", "known", "span")

    _context: Context
    _span_token: Token[Context]
    known: _Known
    #: None without one.
    span: Span | None

    def start_span(self, outer: Context) -> None:
        """Start it in the context `outer`, if that is recorded. Never raises an `Exception`."""
        try:
            parent = outer.span_or_none if type(outer) is RequestRecord else outer.get(SPAN_KEY)
            if type(parent) is RecordedSpan:
                if not parent.is_recording():
                    return
            elif not (is_recorded(outer) or (state.makes_roots and outer.get(REQUEST_KEY) is None)):
                return
            span = self.known.start(runtime.tracer(), outer, parent)
            self._context = context = with_enclosing(outer, span)
            self._span_token = attach(context)
            self.span = span
        except Exception as fault:
            guard.report(_PLACE, fault)

    def end_span(
        self, outcome: str | None, error: BaseException | None, several: Sequence[Outcome] | None = None
    ) -> None:
        """End it with the outcome of the operation, or of each key; there must be one. Never raises an `Exception`."""
        span = self.span
        assert span is not None
        try:
            if get_current() is self._context:
                detach(self._span_token)
            if several is not None:
                for name, attribute in (("hit", "django.cache.hits"), ("miss", "django.cache.misses")):
                    span.set_attribute(attribute, sum(number for found, number, _ in several if found == name))
            elif outcome is not None:
                known = self.known
                (known.says.get(outcome) or known.extension_of(outcome)).add_to(span)
            if error is not None:
                mark_failed(span, error)
            span.end()
        except Exception as fault:
            guard.report(_PLACE, fault)


class CacheOperation(CacheSpan):
    """One call of an operation, made by `Measured.begin`: its arguments as they are passed on, and its measurement."""

    __slots__ = (
        "args", "asked", "has_swallowed", "is_counted", "kwargs", "measured", "opened", "started_s", "token",
    )  # fmt: skip

    args: tuple[object, ...]
    kwargs: dict[str, Any]
    #: The result of `get` for a miss; the keys of an operation of several.
    asked: Any
    #: Whether the backend has swallowed an error of its server.
    has_swallowed: bool
    is_counted: bool
    measured: Measured
    opened: layers.Layers | None
    started_s: float
    token: Token[CacheOperation | bool]

    def rewrite(self, args: tuple[object, ...], kwargs: dict[str, Any]) -> tuple[object, ...]:
        """Return the positional arguments to pass on, and note how to read the result."""
        if self.measured.name == "get":
            if args or "key" in kwargs:
                # None may be what is stored, and the default as well: a value of our own marks a miss.
                key, *rest = args or (kwargs.pop("key"),)
                self.asked = rest.pop(0) if rest else kwargs.pop("default", None)
                return (key, MISSING, *rest)
        elif args or "keys" in kwargs:
            keys, *more = args or (kwargs.pop("keys"),)
            if isinstance(keys, Iterable):
                # An iterator would be used up by counting.
                self.asked = keys if isinstance(keys, list | tuple) else list(keys)
                keys = keys if isinstance(keys, set | frozenset) else self.asked
            return (keys, *more)
        return args

    def find_group(self) -> str | None:
        """Return the group of the keys; None where there are no groups."""
        if state.key_group is None:
            return None
        name = self.measured.name
        if name in _BY_KEY:
            return group_of(self.args[0] if self.args else self.kwargs.get("key"))
        if name == "set_many":
            data = self.args[0] if self.args else self.kwargs.get("data")
            return group_of_all(data) if isinstance(data, Mapping) else None
        return group_of_all(self.asked or ())

    def end(self, result: object, error: BaseException | None = None) -> object:
        """End it with its result or its exception; return the result that the caller expects."""
        took_s = layers.leave(self.opened, layers.CACHE) - self.started_s
        try:
            inside.reset(self.token)
        except ValueError:
            # An abandoned coroutine, closed elsewhere: nothing of it is current there.
            pass
        name, outcome = self.measured.name, "ok"
        several: Sequence[Outcome] | None = None
        if self.has_swallowed:
            outcome = "error"
        elif error is not None:
            # How Django says that there is no such key.
            is_miss = name in _RAISING and isinstance(error, ValueError)
            outcome, error = ("miss", None) if is_miss else ("error", error)
        elif name == "get":
            outcome = "miss" if result is MISSING else "hit"
        elif name in _LOOKING:
            outcome, several = self._look_at(result)
        if self.span is not None:
            self.end_span(outcome, error, several)
        if self.is_counted:
            try:
                self.known.count(took_s, outcome if several is None else None)
                for each, number, group in several or ():
                    if number:
                        self.measured.find(group).counter_of(each).add(float(number))
            except Exception as fault:
                guard.report(_PLACE, fault)
        return self.asked if result is MISSING else result

    @guard.guarded(_PLACE, ("ok", None))
    def _look_at(self, result: object) -> tuple[str, Sequence[Outcome] | None]:
        """Return the outcome, or those of each key."""
        if self.measured.name == "has_key":
            return "hit" if result else "miss", None
        if not isinstance(result, Mapping):
            return "ok", None
        asked = set(self.asked or ())
        if state.key_group is None:
            return "ok", (("hit", len(result), None), ("miss", max(0, len(asked) - len(result)), None))
        counts: dict[tuple[str, str | None], int] = {}
        for key in asked:
            found = ("hit" if key in result else "miss", group_of(key))
            counts[found] = counts.get(found, 0) + 1
        return "ok", [(outcome, number, of_group) for (outcome, of_group), number in counts.items()]
