"""Operations that Django calls on the driver directly: commit, rollback, fetches of a server-side cursor, COPY.

They pass no execute wrapper. `begin` and `DriverCall.finish` measure one as the connection's `QueryWrapper` measures
a query: `db.client.operation.duration`, the request's database time, and a span. A call that is slow
(`DATABASE.SOURCE_OVER_S`) gets a span inside every recorded span, the others only where `has_span` asks for one.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter, time_ns

from django.db.backends.base.base import BaseDatabaseWrapper
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, get_current_span

from django_otel import runtime
from django_otel.base import guard
from django_otel.base.sdk_compat import SPAN_KEY, SUPPRESS_INSTRUMENTATION_KEY, get_current
from django_otel.instrumentation import database
from django_otel.requests import layers
from django_otel.requests.record import RequestRecord, current
from django_otel.requests.timed_calls import time_call
from django_otel.tracing.spans import DroppedSpan, RecordedSpan

_PLACE = "the database layer"


def is_suppressed(context: Context) -> bool:
    """Return whether instrumentation is switched off in `context`, by this or by the older key."""
    if type(context) is RequestRecord:
        return False
    return bool(context.get(SUPPRESS_INSTRUMENTATION_KEY) or context.get("suppress_instrumentation"))


def is_recorded(context: Context) -> bool:
    """Return whether the span of `context` is recorded. Makes no span for a request that is not."""
    parent = context.span_or_none if type(context) is RequestRecord else context.get(SPAN_KEY)
    if type(parent) is RecordedSpan:
        return parent.is_recording()
    return parent is not None and type(parent) is not DroppedSpan and get_current_span(context).is_recording()


class DriverCall:
    """One operation under way."""

    __slots__ = ("_context", "_opened", "_query", "_settings", "_span", "_started_s", "_wrapper")

    def __init__(
        self, wrapper: database.QueryWrapper, settings: database.Settings, query: database.Query, context: Context
    ) -> None:
        self._wrapper = wrapper
        self._settings = settings
        self._query = query
        self._context = context
        self._span: Span | None = None
        self._opened: layers.Layers | None = None
        self._started_s = 0.0

    def start(self, *, has_span: bool) -> DriverCall:
        """Start the clock, and the span if it is wanted."""
        if has_span:
            self._span = self._start_span(None)
        self._started_s = perf_counter()
        if self._settings.times_requests:
            self._opened = layers.enter(current(), layers.DATABASE, self._started_s)
        return self

    def pause(self) -> None:
        """The project's code runs: its time is not the database's in the request's budget."""
        layers.leave(self._opened, layers.DATABASE)
        self._opened = None

    def resume(self) -> None:
        """The database works again."""
        if self._settings.times_requests:
            self._opened = layers.enter(current(), layers.DATABASE, perf_counter())

    def step(self, method: Callable[..., object]) -> Callable[..., object]:
        """Return `method`, whose time is the database's while this operation pauses."""
        return time_call(layers.DATABASE, method)

    @property
    def is_in_budget(self) -> bool:
        """Return whether its time is part of a request's budget now."""
        return self._opened is not None

    def _start_span(self, start_time_unix_ns: int | None) -> Span | None:
        if not (self._settings.makes_spans and is_recorded(self._context)):
            return None
        query = self._query
        return runtime.tracer().start_span(
            query.statement.summary, self._context, SpanKind.CLIENT, query.attributes, start_time=start_time_unix_ns
        )

    def finish(self, error: BaseException | None = None, rows: int | None = None) -> None:
        """Stop the clock and record the operation; `rows` is how many it has returned."""
        duration_s = layers.leave(self._opened, layers.DATABASE) - self._started_s
        try:
            span, slow_s = self._span, self._settings.source_over_s
            if span is None and slow_s is not None and duration_s >= slow_s:
                span = self._start_span(time_ns() - int(duration_s * 1e9))
            if span is not None and rows is not None:
                span.set_attribute("db.response.returned_rows", rows)
            self._wrapper.finish(self._settings, self._query, duration_s, span, None, error)
        except Exception as fault:
            guard.report(_PLACE, fault)


def begin(connection: BaseDatabaseWrapper, sql: object, *, has_span: bool = False) -> DriverCall | None:
    """Start to measure `sql`, an operation of `connection`; None where the database layer is off or suppressed."""
    try:
        context = get_current()
        settings = database.current_settings()
        wrapper = database.wrapper_of(connection)
        if settings is None or wrapper is None or is_suppressed(context):
            return None
        return DriverCall(wrapper, settings, wrapper.query_of(settings, sql), context).start(has_span=has_span)
    except Exception as fault:
        guard.report(_PLACE, fault)
        return None


def run(call: DriverCall | None, function: Callable[..., object], *args: object, **kwargs: object) -> object:
    """Return what `function` returns for these arguments, and finish `call` with its end, if there is one."""
    try:
        result = function(*args, **kwargs)
    except BaseException as error:
        if call is not None:
            call.finish(error)
        raise
    if call is not None:
        call.finish()
    return result
