"""Every name of the OpenTelemetry packages that is not public, in one place.

Each is used through a function or constant here, with a fallback where a
version lacks it, so that a new SDK breaks one file and one test.
"""

# The one module for private names of the SDK and of its instrumentors.
# ruff: noqa: SLF001

from __future__ import annotations

import logging
import operator
import threading
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar, cast

from opentelemetry import metrics, trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import _RUNTIME_CONTEXT, _SUPPRESS_INSTRUMENTATION_KEY, Context
from opentelemetry.context import attach as _attach
from opentelemetry.context import detach as _detach
from opentelemetry.context import get_current as _get_current
from opentelemetry.sdk import trace as sdk_trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import SpanContext, Status, TraceFlags, TraceState
from opentelemetry.trace.propagation import _SPAN_KEY

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider

#: Marks a context in which nothing may be instrumented.
SUPPRESS_INSTRUMENTATION_KEY = _SUPPRESS_INSTRUMENTATION_KEY
#: The module below `opentelemetry.exporter.otlp.proto.http` (or `.grpc`) with the exporter of logs.
LOG_EXPORTER_MODULE = "_log_exporter"
#: Middleware that the official DjangoInstrumentor adds to `settings.MIDDLEWARE`.
DJANGO_MIDDLEWARE = "opentelemetry.instrumentation.django.middleware.otel_middleware._DjangoMiddleware"


def is_placeholder(provider: object) -> bool:
    """Return whether a global provider is the API's proxy or no-op, that is, none has been installed."""
    kind = type(provider)
    # By its module as well: what Logfire installs is a ProxyTracerProvider, too, and no placeholder.
    return kind.__module__.startswith("opentelemetry.") and kind.__name__.lstrip("_").startswith(
        ("Proxy", "NoOp", "Default")
    )


def global_tracer_provider() -> trace.TracerProvider | None:
    """Return the tracer provider that is installed, or None. Installs none itself."""
    # get_tracer_provider() would load the one of OTEL_PYTHON_TRACER_PROVIDER.
    provider = getattr(trace, "_TRACER_PROVIDER", None)
    return None if provider is None or is_placeholder(provider) else provider


def global_meter_provider() -> metrics.MeterProvider | None:
    """Return the meter provider that is installed, or None. Installs none itself."""
    from opentelemetry.metrics import _internal

    provider = getattr(_internal, "_METER_PROVIDER", None)
    return None if provider is None or is_placeholder(provider) else provider


def global_logger_provider() -> object | None:
    """Return the logger provider that is installed, or None. Installs none itself."""
    from opentelemetry._logs import _internal

    provider = getattr(_internal, "_LOGGER_PROVIDER", None)
    return None if provider is None or is_placeholder(provider) else provider


def set_resource(provider: Any, resource: Resource) -> None:
    """Give a provider another resource; its tracers, meters and loggers follow, also those handed out before."""
    if hasattr(provider, "_sdk_config"):
        provider._sdk_config.resource = resource
        return
    provider._resource = resource
    for tracer in list(getattr(provider, "_tracers", {}).values()):
        tracer.resource = resource
    # Not the cache of loggers: those with attributes are not in it.
    for logger in list(getattr(provider, "_active_loggers", ())):
        logger._resource = resource


def build_log_limits() -> object:
    """Limits of log records that `apply_log_limits` changes in place; without them the SDK reads the environment."""
    from opentelemetry.sdk import _logs

    # Each value is given: one that is left out is read from the environment, and may raise.
    kind: Any = getattr(_logs, "LogRecordLimits", None) or _logs.LogLimits
    try:
        limits = kind(128, 128, 128, 128)
    except TypeError:
        limits = kind(128, 128)
    # Afterwards: what means "no limit" to the class differs from release to release.
    apply_log_limits(limits, 128, None)
    return limits


def apply_log_limits(limits: Any, attributes: int, attribute_length: int | None) -> None:
    """Apply limits to log records made from now on; `attribute_length` None means no limit."""
    limits.max_attributes = limits.max_log_record_attributes = attributes
    limits.max_attribute_length = limits.max_log_record_attribute_length = attribute_length


def build_logger_provider(resource: Resource, limits: Any) -> Any:
    """The SDK's logger provider with `limits`."""
    from opentelemetry.sdk import _logs
    from opentelemetry.sdk._logs import LoggerProvider

    # It is what the limits ask for, and counted on the record.
    kind = getattr(_logs, "LogRecordDroppedAttributesWarning", None) or getattr(
        _logs, "LogDroppedAttributesWarning", None
    )
    if kind is not None:
        warnings.filterwarnings("ignore", category=kind)
    try:
        return LoggerProvider(resource=resource, shutdown_on_exit=False, log_record_limits=limits)
    except TypeError:
        return LoggerProvider(resource=resource, shutdown_on_exit=False)


def is_observed(provider: object, scope_name: str, name: str) -> bool:
    """Return whether callbacks give an instrument's values; other instruments are set. True if the SDK does not say."""
    instruments = getattr(getattr(provider, "_measurement_consumer", None), "_async_instruments", None)
    return instruments is None or any(
        instrument.name == name and instrument.instrumentation_scope.name == scope_name
        for instrument in list(instruments)
    )


def renew_collection_lock(provider: MeterProvider) -> None:
    """Replace the lock that the SDK holds during callbacks, using the current `threading`."""
    consumer = getattr(provider, "_measurement_consumer", None)
    if consumer is not None and hasattr(consumer, "_lock"):
        consumer._lock = threading.Lock()


def find_dependency_conflict(instrumentor: Any) -> object | None:
    """Return why an official instrumentor rejects the installed version of its library, or None."""
    conflict: object | None = instrumentor._check_dependency_conflicts()
    return conflict


def unpatch(instrumentor: Any) -> None:
    """Take out whatever an instrumentor has patched, also when it does not count as installed."""
    instrumentor._uninstrument()


class _ExcludedUrls:
    """The instrumentor's list of excluded URLs, and those that a function knows."""

    def __init__(self, inner: Any, is_excluded: Callable[[str], bool]) -> None:
        self._inner = inner
        self._is_excluded = is_excluded

    def url_disabled(self, url: str) -> bool:
        return self._is_excluded(url) or self._inner.url_disabled(url)


def exclude_urls(is_excluded: Callable[[str], bool]) -> bool:
    """Exclude further URLs from the official DjangoInstrumentor; False where it is built differently."""
    from opentelemetry.instrumentation.django.middleware import otel_middleware

    middleware = getattr(otel_middleware, "_DjangoMiddleware", None)
    if not callable(getattr(getattr(middleware, "_excluded_urls", None), "url_disabled", None)):
        return False
    cast(Any, middleware)._excluded_urls = _ExcludedUrls(cast(Any, middleware)._excluded_urls, is_excluded)
    return True


# --- The stock span exporters with another encoding. ---

_GRPC_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class EncodedSpans:
    """A batch of spans that is encoded already, in the place of the batch and of its protobuf message."""

    __slots__ = ("_count", "data")

    def __init__(self, data: bytes, count: int) -> None:
        self.data = data
        self._count = count

    def __len__(self) -> int:
        """For the exporter's own metrics."""
        return self._count

    def SerializePartialToString(self) -> bytes:  # noqa: N802 (as gRPC and protobuf have it)
        return self.data

    SerializeToString = SerializePartialToString


def build_encoded_exporter_class(kind: str, exporter_class: type) -> type | None:
    """A subclass of the stock OTLP span exporter whose `export` takes `EncodedSpans`; everything else is the stock's.

    `kind`: "otlp" (HTTP) or "otlp-grpc". None where the exporter is not built as we know it.
    """
    return _build_grpc_class(exporter_class) if kind == "otlp-grpc" else _build_http_class(exporter_class)


def _build_http_class(exporter_class: type) -> type | None:
    export: Any = getattr(exporter_class, "export", None)
    names = getattr(getattr(export, "__code__", None), "co_names", ())
    if "encode_spans" not in names or not {"SerializePartialToString", "SerializeToString"} & set(names):
        return None
    # The stock function with its own names but one. Its checks, retries, timeouts and metrics stay, which differ from
    # version to version; nothing of the module is replaced, so other exporters in the process are as they were.
    own_names = {**export.__globals__, "encode_spans": _as_it_is}
    rebound = types.FunctionType(export.__code__, own_names, "export", export.__defaults__, export.__closure__)
    rebound.__kwdefaults__ = export.__kwdefaults__
    return type(exporter_class.__name__, (exporter_class,), {"export": rebound, "__module__": __name__})


def _as_it_is(encoded: EncodedSpans) -> EncodedSpans:
    return encoded


def _build_grpc_class(exporter_class: type) -> type | None:
    wanted = ("_translate_data", "_count_data", "_initialize_channel_and_stub")
    if not all(callable(getattr(exporter_class, name, None)) for name in wanted):
        return None

    class Stub:
        """The generated stub, but for bytes."""

        def __init__(self, channel: Any) -> None:
            from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

            self.Export = channel.unary_unary(
                _GRPC_METHOD, request_serializer=bytes, response_deserializer=ExportTraceServiceResponse.FromString
            )

    class Exporter(exporter_class):  # type: ignore[misc]
        def _initialize_channel_and_stub(self) -> None:
            # Created for each connection by the code in `_stub`.
            self._stub = Stub
            super()._initialize_channel_and_stub()

        def _translate_data(self, data: EncodedSpans) -> bytes:
            return data.data

        def _count_data(self, data: EncodedSpans) -> int:
            return len(data)

    return Exporter


def watch_grpc_answers(exporter_class: Any, answers: Any) -> object:
    """A subclass of a stock gRPC exporter whose answers and errors go to `answers` (`export.answers.Answers`).

    Itself where it is built differently.
    """
    if not callable(getattr(exporter_class, "_initialize_channel_and_stub", None)):
        return exporter_class
    import grpc

    class TooLarge(grpc.RpcError):  # type: ignore[misc]
        """In the place of an error that the stock exporter would try again until its time is over."""

        def __init__(self, text: str) -> None:
            super().__init__(text)
            self._text = text

        def code(self) -> object:
            return grpc.StatusCode.INVALID_ARGUMENT

        def details(self) -> str:
            return self._text

        def trailing_metadata(self) -> tuple[object, ...]:
            return ()

    class Client:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def Export(self, *args: object, **options: object) -> object:  # noqa: N802 (as gRPC and protobuf have it)
            answers.status = None
            try:
                answer = self._inner.Export(*args, **options)
            except grpc.RpcError as error:
                details = str(error.details() or "")
                if answers.is_message_too_large(error.code().name, details):
                    raise TooLarge(f"too large for the receiver: {details}") from error
                raise
            answers.take(answer)
            return answer

    class Watched(exporter_class):  # type: ignore[misc]
        def _initialize_channel_and_stub(self) -> None:
            super()._initialize_channel_and_stub()
            inner = getattr(self, "_client", None)
            if inner is not None:
                self._client = Client(inner)

    Watched.__name__ = exporter_class.__name__
    return Watched


def find_http_session(exporter: object) -> Any:
    """The `requests` session of a stock OTLP exporter over HTTP, or None where it is built differently."""
    transport = getattr(getattr(exporter, "_client", None), "_transport", None)
    return getattr(transport, "_session", None) or getattr(exporter, "_session", None)


def set_body(response: Any, body: bytes) -> None:
    """Give a `requests` response a body that was read by us, so that the stock exporters read no more of it."""
    response._content = body
    response._content_consumed = True


# --- Reading the SDK's finished spans. The public properties copy, under a lock, what does not change any more. ---

#: Resource, scope, name, context, parent, kind, start, end, attributes, how many were dropped, events, dropped, links,
#: dropped, status.
SpanParts = tuple[Any, Any, Any, Any, Any, Any, Any, Any, Any, int, Any, int, Any, int, Any]

# In C, and in one go, which so many properties are not.
_raw_parts = operator.attrgetter(
    "_resource", "_instrumentation_scope", "_name", "_context", "_parent", "_kind", "_start_time", "_end_time",
    "_attributes", "_events", "_links", "_status",
)  # fmt: skip


def _find_raw_span_types() -> frozenset[type]:
    """The SDK's classes of spans, where they are built as we know them."""
    span = ReadableSpan("probe", resource=Resource({}), attributes=BoundedAttributes(attributes={"key": "value"}))
    events: BoundedList[int] = BoundedList(None)
    events.append(1)
    try:
        if _raw_parts(span)[8]._dict != {"key": "value"} or list(cast(Any, events)._dq) != [1]:
            return frozenset()
    except AttributeError:
        return frozenset()
    # `_Span` is the class of what tracers make. A subclass of any of them may have properties of its own.
    return frozenset({ReadableSpan, Span, getattr(sdk_trace, "_Span", Span)})


_RAW_SPAN_TYPES = _find_raw_span_types()


def read_list(found: BoundedList[Any]) -> tuple[Any, int]:
    """The items of a span's events or links, not to be changed, and how many were dropped."""
    # Not asked for their length, which the class answers in Python.
    return (cast(Any, found)._dq if _RAW_SPAN_TYPES else tuple(found)), found.dropped


def read_span(span: ReadableSpan) -> SpanParts:
    """Return the contents of a finished span, read-only; without copies where the SDK allows it."""
    if type(span) not in _RAW_SPAN_TYPES:
        return (
            span.resource, span.instrumentation_scope, span.name, span.get_span_context(), span.parent, span.kind,
            span.start_time, span.end_time, span.attributes, span.dropped_attributes, span.events, span.dropped_events,
            span.links, span.dropped_links, span.status,
        )  # fmt: skip
    resource, scope, name, context, parent, kind, start_ns, end_ns, attributes, events, links, status = _raw_parts(span)
    dropped = dropped_events = dropped_links = 0
    if type(attributes) is BoundedAttributes:
        dropped = attributes.dropped
        attributes = cast(Any, attributes)._dict
    if type(events) is BoundedList:
        events, dropped_events = read_list(events)
    if type(links) is BoundedList:
        links, dropped_links = read_list(links)
    return (
        resource, scope, name, context, parent, kind, start_ns, end_ns, attributes, dropped, events, dropped_events,
        links, dropped_links, status,
    )  # fmt: skip


_Item = TypeVar("_Item")


def rebuild_span(
    span: ReadableSpan,
    attributes: Mapping[str, Any],
    context: trace.SpanContext | None,
    *,
    events: Sequence[Event] | None = None,
    links: Sequence[trace.Link] | None = None,
) -> ReadableSpan:
    """The same finished span with other attributes and context; counts of what was dropped are kept.

    `events` and `links`, as many as the span has, stand in the place of its own when they are given.
    """
    bounded = BoundedAttributes(attributes=dict(attributes), immutable=False)
    bounded.dropped = span.dropped_attributes
    is_raw = type(span) in _RAW_SPAN_TYPES
    own_events = span._events if is_raw else span.events
    own_links = span._links if is_raw else span.links
    return ReadableSpan(
        name=span.name,
        context=context,
        parent=span.parent,
        resource=span.resource,
        attributes=bounded,
        events=own_events if events is None else build_list(events, span.dropped_events),
        links=own_links if links is None else build_list(links, span.dropped_links),
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def build_list(items: Sequence[_Item], dropped: int) -> BoundedList[_Item]:
    """Return the items in the SDK's list, which also has how many were dropped."""
    built: BoundedList[_Item] = BoundedList(None)
    built.extend(items)
    built.dropped = dropped
    return built


#: `SpanContext`, where it is a tuple that begins with trace id, span id, whether remote, flags, state; else no type.
CONTEXT_TUPLE: object = (
    trace.SpanContext
    if tuple(cast(Any, trace.SpanContext(1, 2, True)))[:4] == (1, 2, True, trace.DEFAULT_TRACE_OPTIONS)
    else None
)


#: Contents of a span under way or ended, ours or the SDK's, without its properties, which are written in Python. By the
#: private names where the SDK's spans have them (`_RAW_SPAN_TYPES`).
context_of: Callable[[object], SpanContext]
parent_of: Callable[[object], SpanContext | None]
outcome_of: Callable[[object], tuple[Status, int, int]]
if _RAW_SPAN_TYPES:
    context_of, parent_of = operator.attrgetter("_context"), operator.attrgetter("_parent")
    outcome_of = operator.attrgetter("_status", "_start_time", "_end_time")
else:
    context_of, parent_of = operator.attrgetter("context"), operator.attrgetter("parent")
    outcome_of = operator.attrgetter("status", "start_time", "end_time")
#: The parts of a `SpanContext`, read from the tuple, which costs less than the property.
flags_of: Callable[[Any], int]
trace_id_of: Callable[[Any], int]
span_id_of: Callable[[Any], int]
is_remote_of: Callable[[Any], bool]
if CONTEXT_TUPLE is not None:
    trace_id_of, span_id_of, is_remote_of, flags_of = map(operator.itemgetter, range(4))
else:
    trace_id_of, span_id_of, is_remote_of, flags_of = map(
        operator.attrgetter, ("trace_id", "span_id", "is_remote", "trace_flags")
    )


# --- Making our own spans (`tracing.spans`). ---

#: Key of a context's span.
SPAN_KEY = _SPAN_KEY
#: The trace state of a span whose parent has none.
EMPTY_TRACE_STATE: TraceState = SpanContext(1, 1, False).trace_state

_logger = logging.getLogger("opentelemetry.context")


def _build_quickly(trace_id: int, span_id: int, trace_flags: TraceFlags, trace_state: TraceState) -> SpanContext:
    # Its __new__ tests what is known to hold, for half a kilo-instruction.
    return tuple.__new__(SpanContext, (trace_id, span_id, False, trace_flags, trace_state, True))


def _is_context_known() -> bool:
    flags, state = TraceFlags(1), TraceState([("a", "b")])
    try:
        quick, plain = _build_quickly(3, 4, flags, state), SpanContext(3, 4, False, flags, state)
        return (
            tuple(quick) == tuple(plain)
            and repr(quick) == repr(plain)
            and (quick[0], quick[3], quick[4], quick.is_valid) == (3, flags, state, True)
        )
    except (TypeError, ValueError, AttributeError, IndexError):
        return False


_IS_CONTEXT_KNOWN = _is_context_known()


def build_root_context(
    trace_id: int, span_id: int, trace_flags: TraceFlags, state: TraceState = EMPTY_TRACE_STATE
) -> SpanContext:
    """The context of a local span without a parent; the ids are not zero."""
    if _IS_CONTEXT_KNOWN:
        return tuple.__new__(SpanContext, (trace_id, span_id, False, trace_flags, state, True))
    return SpanContext(trace_id, span_id, False, trace_flags, state)


#: The flags of a caller: whether it is sampled, whether its id is random.
_REMOTE_FLAGS = tuple(map(TraceFlags, range(4)))


def build_remote_context(trace_id: int, span_id: int, flags: int) -> SpanContext:
    """The context of a caller's span without a state; the ids are not zero, of the flags there are the known two."""
    if _IS_CONTEXT_KNOWN:
        return tuple.__new__(SpanContext, (trace_id, span_id, True, _REMOTE_FLAGS[flags], EMPTY_TRACE_STATE, True))
    return SpanContext(trace_id, span_id, True, _REMOTE_FLAGS[flags])


def build_child_context(parent: SpanContext, span_id: int) -> SpanContext:
    """The context of a child of a local span, with the parent's flags and state."""
    if _IS_CONTEXT_KNOWN:
        return tuple.__new__(SpanContext, (parent[0], span_id, False, parent[3], parent[4], True))
    return SpanContext(parent.trace_id, span_id, False, parent.trace_flags, parent.trace_state)


def _find_context_variable() -> ContextVar[Context] | None:
    """The variable that holds the current context, where the default implementation is in use."""
    found = getattr(_RUNTIME_CONTEXT, "_current_context", None)
    name = type(_RUNTIME_CONTEXT).__name__
    if name != "ContextVarsRuntimeContext" or not isinstance(found, ContextVar) or found.get() is not _get_current():
        return None
    return found


_variable = _find_context_variable()


def _detach_quickly(token: Any) -> None:
    try:
        _reset(token)
    except ValueError:
        # Ended in another context than it began in (an abandoned coroutine): nothing of ours is current there.
        _logger.debug("Failed to detach context", exc_info=True)


if _variable is not None:
    # The API's functions go through two more calls each.
    get_current: Callable[[], Context] = _variable.get
    attach: Callable[[Context], Any] = _variable.set
    detach: Callable[[Any], None] = _detach_quickly
    #: May raise `ValueError` for a token of another context, where the API logs an error.
    detach_or_raise: Callable[[Any], None] = _variable.reset
    _reset = _variable.reset
else:
    get_current, attach, detach, detach_or_raise = _get_current, _attach, _detach, _detach


def with_span(context: Context, span: trace.Span) -> Context:
    """`context` with `span` as its current one."""
    # As the API's set_span_in_context, without its calls.
    values = context.copy()
    values[SPAN_KEY] = span
    return Context(values)


def find_unknown_names(own: type) -> list[str]:
    """Public names of the SDK's Span that `own`, a subclass, does not define: not empty in an SDK we do not know."""
    bases = own.__mro__[: own.__mro__.index(Span)]
    defined = {name for base in bases for name in vars(base)}
    return sorted(
        name for base in (Span, ReadableSpan) for name in vars(base) if not name.startswith("_") and name not in defined
    )


def sees_ending(processor: Any) -> bool:
    """Return whether a span processor has the SDK's private hook that sees a span just before it ends."""
    plain = getattr(SpanProcessor, "_on_ending", None)
    own = getattr(type(processor), "_on_ending", None)
    if own is EndingForwarder._on_ending:
        return any(map(sees_ending, processor.parts))
    return own is not None and own is not plain


class EndingForwarder:
    """For a processor that hands spans on to `parts`: hands on the private hook as well."""

    parts: tuple[Any, ...]

    def _on_ending(self, span: Any) -> None:
        for part in self.parts:
            hook = getattr(part, "_on_ending", None)
            if hook is not None:
                hook(span)


def counts_spans(tracer: object) -> bool:
    """Return whether the SDK measures the spans of its own tracer (OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED)."""
    metrics = getattr(tracer, "_tracer_metrics", None)
    return metrics is not None and type(metrics).__name__ != "NoOpTracerMetrics"


class WatchedTracerProvider(TracerProvider):
    """Return, by the private method `is_configured`, whether single tracers were enabled or disabled."""

    is_configured = False

    def refresh(self) -> None:
        """Called when that has happened."""

    def _set_tracer_configurator(self, **arguments: Any) -> None:
        super()._set_tracer_configurator(**arguments)
        self.is_configured = True
        self.refresh()
