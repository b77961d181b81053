"""Public API of a project: spans, events, instruments, context for other threads and queues.

Everything here works before settings are configured (it then records nothing,
except for instruments, whose numbers are kept) and never raises by a fault of
its own into the application. Wrong use that shows at import time (a name used
for two kinds of instrument, `@span` without a name) is an error.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import TYPE_CHECKING, Any, Self, overload

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace

from django_otel.base import guard
from django_otel.base.attribute_values import clean_attributes, clean_text, is_ready
from django_otel.live_sampling.force import force_trace_token as force_trace_token
from django_otel.metrics import catalogue
from django_otel.tracing import exceptions
from django_otel.tracing.enclosing import find_own_span
from django_otel.tracing.scopes import F, Run, Scope, decorate

if TYPE_CHECKING:
    from django_otel.config.schema import Config
    from django_otel.metrics.instruments import Counter, Gauge, Histogram, ObservableGauge, Observed, UpDownCounter


NO_SPANS_KEY = otel_context.create_key("django_otel-no-spans")
_NANOSECONDS_PER_S = 1_000_000_000


class span(Scope):  # noqa: N801 (used like a function)
    """A span around a block or a function, a child of what is active.

    `with span("checkout", items=3) as current:`, `async with ...`, or
    `@span("checkout")` on a function, coroutine function, generator, async
    generator or method; a generator's span lasts while it is consumed, and is
    not current in the consumer between items. Attribute names with dots:
    `span("checkout", **{"cart.items": 3})`. The OpenTelemetry span is yielded.

    An exception is recorded, sets the status ERROR and propagates. Cancellation
    and other exceptions that are not an `Exception` end the span without an error.

    Errors: `TypeError` for `@span` without a name.
    """

    _place = "the start of a span"

    def __init__(self, name: str, /, **attributes: Any) -> None:
        super().__init__()
        kind = type(self).__name__
        is_nameless = False
        # To ask evaluates a lazy name, which may fail.
        with guard.contained(self._place):
            is_nameless = inspect.isroutine(name) or inspect.isclass(name)
        if is_nameless:
            example = getattr(name, "__name__", "")
            raise TypeError(f'@{kind} needs a name: write @{kind}("{example}").')
        self._name = name
        self._attributes = attributes

    def _begin(self) -> Run:
        started = _start_span(self._name, self._attributes)
        return Run(trace.set_span_in_context(started), started, functools.partial(_end_span, started))

    def _entered(self, run: Run) -> trace.Span:
        return run.span

    if TYPE_CHECKING:

        def __enter__(self) -> trace.Span: ...

        async def __aenter__(self) -> trace.Span: ...


def _start_span(name: object, attributes: Mapping[str, object], start_time_unix_ns: int | None = None) -> trace.Span:
    current = otel_context.get_current()
    if current.get(NO_SPANS_KEY):
        return trace.NonRecordingSpan(trace.get_current_span(current).get_span_context())
    ready: dict[str, Any] = {key: value for key, value in attributes.items() if is_ready(value)}
    from django_otel import runtime

    tracer = runtime.tracer()
    started = tracer.start_span(clean_text(name) or "span", attributes=ready or None, start_time=start_time_unix_ns)
    if len(ready) < len(attributes) and started.is_recording():
        # Only now: text is not made, and no __str__ called, for spans that are not recorded.
        with guard.contained("the attributes of a span"):
            started.set_attributes(clean_attributes({k: v for k, v in attributes.items() if k not in ready}))
    return started


def _end_span(span: trace.Span, error: BaseException | None, end_time_unix_ns: int | None = None) -> None:
    try:
        if error is not None and span.is_recording():
            with guard.contained("the recording of an exception"):
                _record_error(span, error)
    finally:
        span.end(end_time_unix_ns)


def _record_error(span: trace.Span, error: BaseException) -> None:
    from django_otel import runtime

    kind = exceptions.type_name(error)
    scrub = runtime.current().scrubber.text
    span.set_attribute("error.type", kind)
    # The message is in the exception event; here it only helps a reader of a list of spans.
    span.set_status(trace.Status(trace.StatusCode.ERROR, f"{kind}: {exceptions.message_for(span, error, scrub)}"))
    exceptions.record_exception(span, error, scrub)


class timed(span):  # noqa: N801 (used like a function)
    """A span and a histogram of durations, both called `name`, from one measurement.

    Tags are the span's attributes and the histogram's; `error.type` is added
    when an exception passes. The histogram counts whatever is sampled. Used as
    `span` is; the OpenTelemetry span is yielded.

    Units: the histogram is in seconds.
    Errors: as `span`; a name that another kind of instrument has is logged once
        and the span is made all the same.
    """

    _place = "the start of a timed span"

    def _begin(self) -> Run:
        started_unix_ns = time.time_ns()
        started_ns = time.perf_counter_ns()
        try:
            started = _start_span(self._name, self._attributes, started_unix_ns)
            context = trace.set_span_in_context(started)
        except Exception as error:
            guard.report(self._place, error)
            started, context = trace.INVALID_SPAN, None

        def end(error: BaseException | None) -> None:
            elapsed_ns = time.perf_counter_ns() - started_ns
            try:
                _end_span(started, error, started_unix_ns + elapsed_ns)
            finally:
                self._record(elapsed_ns / _NANOSECONDS_PER_S, started.get_span_context(), error)

        return Run(context, started, end)

    @guard.guarded("the duration of a timed span", None)
    def _record(self, elapsed_s: float, ids: trace.SpanContext, error: BaseException | None) -> None:
        tags = clean_attributes(self._attributes)
        if error is not None:
            tags["error.type"] = exceptions.type_name(error)
        from django_otel import runtime

        durations = runtime.store.histogram(
            clean_text(self._name), "s", "Durations measured by django_otel.timed.", catalogue.SECONDS_HTTP
        )
        if ids.trace_flags.sampled:
            durations.record(elapsed_s, tags, ids.trace_id, ids.span_id)
        else:
            durations.record(elapsed_s, tags)


@guard.guarded("event()", None)
def event(name: str, /, **attributes: Any) -> None:
    """Add an event to the current span, if one is recorded."""
    current = find_own_span()
    if current.is_recording():
        current.add_event(clean_text(name), clean_attributes(attributes))


@guard.guarded("set_attributes()", None)
def set_attributes(**attributes: Any) -> None:
    """Set attributes of the current span, if one is recorded. Names with dots: `**{"cart.items": 3}`."""
    current = find_own_span()
    if current.is_recording():
        current.set_attributes(clean_attributes(attributes))


@guard.guarded("set_metric_attributes()", None)
def set_metric_attributes(**attributes: object) -> None:
    """Add attributes to the metrics of the request under way. Names with dots: `**{"shop.tenant": tenant}`.

    Only names of `OTEL["REQUEST"]["METRIC_ATTRIBUTES"]` count; others are ignored and logged once. The last value
    holds, and None takes an attribute back. Outside of a request nothing happens.
    """
    from django_otel.requests import record
    from django_otel.requests.dimensions import to_text

    current = record.current()
    if current is None or current.is_finished:
        return
    dimensions = current.observer.dimensions
    limits = dimensions.limits if dimensions is not None else {}
    values = current.make_rare().metric_attributes
    for name, value in attributes.items():
        if name not in limits or name == "http.route":
            guard.warn_once(
                f"set_metric_attributes {clean_text(name)[:80]}",
                'set_metric_attributes(): %r is not in OTEL["REQUEST"]["METRIC_ATTRIBUTES"] and was ignored.',
                clean_text(name)[:80],
            )
            continue
        try:
            text = to_text(value)
        except Exception as error:
            # The others are good.
            guard.report("set_metric_attributes()", error)
            continue
        if text:
            values[name] = clean_text(text)
        else:
            values.pop(name, None)


class _Untraced(Scope):
    """No spans inside: of ours, of instrumentors, of the OpenTelemetry API. Metrics still count.

    `@untraced` on a view drops the request's own span as well: a function whose
    first argument (or `request` argument) is a request counts as a view. On
    any other function, and as `with untraced:`, only what happens inside is
    left out; the span around it stays current for events and log records.
    """

    _place = "untraced"

    def _begin(self) -> Run:
        # Not at the top: both load a part of the SDK or of the instrumentors.
        from django_otel.base.suppression import suppress_instrumentation
        from django_otel.sampling import sampler

        with suppress_instrumentation():
            context = otel_context.get_current()
        return Run(otel_context.set_value(NO_SPANS_KEY, True, sampler.untraced(context)))

    def begin_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
        with guard.contained("untraced on a view"):
            from django_otel.requests import record

            # A view's request comes first, or after self.
            for argument in (*args[:2], kwargs.get("request")):
                observed = record.find(argument)
                if observed is not None:
                    observed.discard_span()
                    break
        return self._begin_safely()

    @overload
    def __call__(self, function: None = None) -> Self: ...

    @overload
    def __call__(self, function: F) -> F: ...

    def __call__(self, function: Any = None) -> Any:
        """Decorate a function; without an argument, so that `untraced()` reads as well as `untraced`, itself."""
        return self if function is None else decorate(function, self)

    def __repr__(self) -> str:
        return "django_otel.untraced"


untraced = _Untraced()
untraced.__doc__ = _Untraced.__doc__


VIEW_RATIO = "_django_otel_sample_ratio"


def sample(ratio: float) -> Callable[[F], F]:
    """Record this share of a view's requests, where no rule of the settings or the admin says otherwise.

    For function views, sync and async, and with `method_decorator` on
    `dispatch` of class-based ones. As a view is known only once Django has
    resolved the path, a process with such a view decides later for all its
    requests, see "Sampling" in the documentation; a rule by path costs less.

    Units: `ratio` is a share from 0.0 to 1.0.
    Errors: `ValueError` when it is none.
    """
    from django_otel.sampling.policy import check_ratio

    share = check_ratio(ratio, "The ratio of sample()")

    def mark(view: F) -> F:
        if type(view) is FunctionType:
            # A copy, which costs no call: the same view may be in the URLconf without a ratio, or with another.
            view = _copy_function(view)
        # Not wrapped: attributes of a view go with functools.wraps and as_view.
        setattr(view, VIEW_RATIO, share)
        with guard.contained("sample()"):
            from django_otel import runtime

            runtime.current().sampler.expect_views()
        return view

    return mark


def _copy_function(found: Any) -> Any:
    copy = FunctionType(found.__code__, found.__globals__, found.__name__, found.__defaults__, found.__closure__)
    copy.__kwdefaults__ = found.__kwdefaults__
    functools.update_wrapper(copy, found)
    return copy


@guard.guarded("set_user()", None)
def set_user(user: object) -> None:
    """Record who the request is for, as far as `OTEL["REQUEST"]["USER"]` allows.

    "none" (the default) records nothing, "id" `user.id`, "hash" `user.hash`
    (keyed with SECRET_KEY, so that it cannot be reversed by trying ids). `user`
    is a model instance or a primary key; anonymous users are not recorded. It
    is set on the request's span, outside of requests on the current one.
    """
    config = _config()
    if config.request.user == "none":
        return
    target = _request_span() or trace.get_current_span()
    key = getattr(user, "pk", user)
    if key is None or not target.is_recording() or getattr(user, "is_anonymous", False) is True:
        return
    target.set_attributes(user_attributes(key, config.request.user))


def user_attributes(key: object, policy: str) -> dict[str, str]:
    """The attributes for the user with primary key `key` under `policy` ("none", "id", "hash").

    Source: OpenTelemetry semantic conventions, "User" registry.
    """
    if policy == "id":
        return {"user.id": clean_text(key)}
    if policy == "hash":
        from django.utils.crypto import salted_hmac

        return {"user.hash": salted_hmac("django_otel.user", clean_text(key), algorithm="sha256").hexdigest()}
    return {}


def _request_span() -> trace.Span | None:
    from django_otel.requests import record

    current = record.current()
    return None if current is None else current.span


def _text(given: object) -> str:
    return clean_text(given) if given else ""


def counter(name: str, unit: str = "", description: str = "") -> Counter:
    """The counter of that name: `counter("orders.total").add(1, {"region": "eu"})`.

    Asking again gives the same instrument; the first unit and description hold.

    Errors: `ValueError` when the name is another kind of instrument's.
    """
    from django_otel import runtime

    return runtime.store.counter(clean_text(name), _text(unit), _text(description))


def up_down_counter(name: str, unit: str = "", description: str = "") -> UpDownCounter:
    """The up-down counter of that name: `.add(1)` and `.add(-1)`. Errors: as `counter`."""
    from django_otel import runtime

    return runtime.store.up_down_counter(clean_text(name), _text(unit), _text(description))


def gauge(name: str, unit: str = "", description: str = "") -> Gauge:
    """The gauge of that name: `.set(21.5, {"room": "attic"})`. Errors: as `counter`."""
    from django_otel import runtime

    return runtime.store.gauge(clean_text(name), _text(unit), _text(description))


def histogram(name: str, unit: str = "", description: str = "", bounds: tuple[float, ...] = ()) -> Histogram:
    """The histogram of that name: `.record(0.25)`.

    `bounds` are upper and ascending, in `unit`; `OTEL["METRICS"]["BUCKETS"]` overrides them.

    Errors: as `counter`, and for bounds that are not ascending numbers.
    """
    from django_otel import runtime
    from django_otel.metrics.bounds import read_bounds

    return runtime.store.histogram(clean_text(name), _text(unit), _text(description), read_bounds(name, bounds))


def observable_gauge(
    name: str, callback: Callable[[], Observed], unit: str = "", description: str = ""
) -> ObservableGauge:
    """A gauge that asks `callback` when it is read, at most every 15 seconds.

    `callback` gives a number, or pairs of a number and attributes; None and a
    failure are no value. Asking again for one name replaces the callback.
    Errors: as `counter`.
    """
    from django_otel import runtime

    return runtime.store.observable_gauge(clean_text(name), callback, _text(unit), _text(description))


@guard.guarded("current_trace_id()", None)
def current_trace_id() -> str | None:
    """The id of the active trace, 32 hexadecimal digits, or None."""
    ids = trace.get_current_span().get_span_context()
    return trace.format_trace_id(ids.trace_id) if ids.is_valid else None


@guard.guarded("trace_url()", None)
def trace_url() -> str | None:
    """Return where the active trace can be looked at: `OTEL["TRACE_URL"]` with its id.

    None without that setting, without a trace, and for a trace that is not
    recorded, which could be looked at nowhere.
    """
    current = trace.get_current_span()
    ids = current.get_span_context()
    if not ids.is_valid or not (ids.trace_flags.sampled or current.is_recording()):
        return None
    url = _config().trace_url
    if not url:
        return None
    # Not str.format: other braces in the URL are the URL's.
    return url.replace("{trace_id}", trace.format_trace_id(ids.trace_id))


def carrier() -> dict[str, str]:
    """The active context as text, for a queue or another thread; give it to `from_carrier` there.

    Empty when there is no trace. In the formats of `OTEL["PROPAGATION"]["FORMATS"]`.
    """
    carried: dict[str, str] = {}
    with guard.contained("carrier()"):
        propagate.inject(carried)
    return carried


class from_carrier(Scope):  # noqa: N801 (used like a function)
    """Continue the context of a `carrier()`: `with from_carrier(message["otel"]): ...`.

    Also a decorator and `async with`. Whatever cannot be read is left out; with
    nothing readable (None, garbage) the context stays as it is.
    """

    _place = "from_carrier()"

    def __init__(self, carrier: Mapping[str, str] | None, /) -> None:
        super().__init__()
        self._carrier = carrier

    def _begin(self) -> Run:
        # The context is given: without it, an unreadable carrier would empty the context.
        return Run(propagate.extract(_readable(self._carrier), otel_context.get_current()))


#: The W3C limit of one header's length; whatever is longer is not a carrier's.
_LONGEST_FIELD = 8192


def _readable(carrier: object) -> dict[str, str]:
    if not isinstance(carrier, Mapping):
        return {}
    # Lower case: some brokers change the case of header names, and propagators look for theirs in lower case.
    return {
        key.lower(): value
        for key, value in carrier.items()
        if isinstance(key, str) and isinstance(value, str) and len(value) <= _LONGEST_FIELD
    }


def flush(timeout_s: float = 5.0) -> bool:
    """Export what is waiting, for at most `timeout_s` seconds; whether all of it went out.

    For scripts and serverless functions that end at once; a server does it by itself.
    """
    try:
        from django_otel import runtime

        return runtime.flush(timeout_s)
    except Exception as error:
        guard.report("flush()", error)
        return False


def _config() -> Config:
    from django_otel import runtime

    return runtime.current().config
