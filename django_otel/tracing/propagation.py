"""Trace context and baggage over process borders, in W3C's formats and others.

Our own parser of `traceparent` is faster than the API's propagator and
logs nothing that a client could repeat at will. Source: W3C Trace Context
level 2, W3C Baggage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote, unquote

from opentelemetry import baggage
from opentelemetry.context import Context, create_key, get_current, get_value, set_value
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    TraceState,
    get_current_span,
    set_span_in_context,
)

from django_otel.base.patterns import lazy_pattern
from django_otel.config.packages import missing_package
from django_otel.config.schema import Config
from django_otel.tracing import outbound

_TRACEPARENT = lazy_pattern(r"[ \t]*([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?[ \t]*")
_STATE_KEY = lazy_pattern(r"[a-z0-9][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13}")
_STATE_VALUE = lazy_pattern(r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
_BAGGAGE_KEY = lazy_pattern(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_STATE_MEMBERS = 32
_STATE_LENGTH = 4096
_BAGGAGE_MEMBERS = 64
_BAGGAGE_LENGTH = 8192
_INBOUND_BAGGAGE = create_key("django_otel-inbound-baggage")
_KNOWN_FLAGS = TraceFlags.SAMPLED | 0x02


def parse_traceparent(header: str) -> tuple[int, int, int] | None:
    """Trace id, span id and flags of a `traceparent` header; None when it is not valid.

    Source: W3C Trace Context, "Versioning of traceparent": version 00 has
    nothing after the flags, a later one may; ff is forbidden.
    """
    match = _TRACEPARENT.fullmatch(header)
    if match is None:
        return None
    version, trace_id_hex, span_id_hex, flags_hex, rest = match.groups()
    if version == "ff" or (rest and version == "00"):
        return None
    trace_id, span_id = int(trace_id_hex, 16), int(span_id_hex, 16)
    if not trace_id or not span_id:
        return None
    return trace_id, span_id, int(flags_hex, 16) & _KNOWN_FLAGS


def parse_tracestate(headers: Sequence[str]) -> TraceState | None:
    """The members of `tracestate` headers; None when there are none or one of them is not valid.

    Source: W3C Trace Context, "Combined Header Value": empty members are
    allowed, at most 32 others; a header that does not parse is discarded whole.
    """
    if sum(map(len, headers)) + len(headers) > _STATE_LENGTH:
        return None
    members: dict[str, str] = {}
    count = 0
    for member in ",".join(headers).split(","):
        member = member.strip(" \t")
        if not member:
            continue
        count += 1
        name, equals, value = member.partition("=")
        if not equals or count > _STATE_MEMBERS or not _STATE_KEY.fullmatch(name) or not _STATE_VALUE.fullmatch(value):
            return None
        # Of a repeated key the first, which is the most recent, counts.
        members.setdefault(name, value)
    return TraceState(list(members.items())) if members else None


class TraceContextPropagator(TextMapPropagator):
    """`traceparent` and `tracestate`."""

    def extract(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,
    ) -> Context:
        context = get_current() if context is None else context
        header = getter.get(carrier, "traceparent")
        # Several traceparent headers are as bad as a broken one.
        parsed = parse_traceparent(header[0]) if header and len(header) == 1 else None
        if parsed is None:
            return context
        trace_id, span_id, flags = parsed
        states = getter.get(carrier, "tracestate")
        state = parse_tracestate(states) if states else None
        span_context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags), trace_state=state)
        return set_span_in_context(NonRecordingSpan(span_context), context)

    def inject(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        setter: Setter[CarrierT] = default_setter,
    ) -> None:
        span_context = get_current_span(context).get_span_context()
        if not span_context.is_valid:
            return
        flags = span_context.trace_flags & _KNOWN_FLAGS
        setter.set(carrier, "traceparent", f"00-{span_context.trace_id:032x}-{span_context.span_id:016x}-{flags:02x}")
        if span_context.trace_state:
            setter.set(carrier, "tracestate", span_context.trace_state.to_header())

    @property
    def fields(self) -> set[str]:
        return {"traceparent", "tracestate"}


class BaggagePropagator(TextMapPropagator):
    """`baggage`. What came in can be read here, but is sent on only for the keys in `keys`."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._keys = frozenset(keys)

    def extract(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,
    ) -> Context:
        context = get_current() if context is None else context
        headers = getter.get(carrier, "baggage")
        if not headers:
            return context
        header = ",".join(headers)
        if len(header) > _BAGGAGE_LENGTH:
            return context
        inbound: dict[str, str] = {}
        for member in header.split(",", _BAGGAGE_MEMBERS)[:_BAGGAGE_MEMBERS]:
            # Properties behind a semicolon are metadata; the API has no place for them.
            name, equals, value = member.partition(";")[0].partition("=")
            name, value = name.strip(" \t"), value.strip(" \t")
            if equals and _BAGGAGE_KEY.fullmatch(name) and value.isascii():
                inbound[name] = unquote(value)
        if not inbound:
            return context
        for name, value in inbound.items():
            context = baggage.set_baggage(name, value, context)
        return set_value(_INBOUND_BAGGAGE, inbound, context)

    def inject(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        setter: Setter[CarrierT] = default_setter,
    ) -> None:
        entries = baggage.get_all(context)
        if not entries:
            return
        inbound = get_value(_INBOUND_BAGGAGE, context)
        came_in: Mapping[str, str] = inbound if isinstance(inbound, dict) else {}
        members = [
            f"{name}={quote(str(value), safe='')}"
            for name, value in entries.items()
            if (name in self._keys or came_in.get(name) != value) and _BAGGAGE_KEY.fullmatch(name)
        ][:_BAGGAGE_MEMBERS]
        header = ",".join(members)
        if members and len(header) <= _BAGGAGE_LENGTH:
            setter.set(carrier, "baggage", header)

    @property
    def fields(self) -> set[str]:
        return {"baggage"}


class SwitchPropagator(TextMapPropagator):
    """The process's one global propagator, whose parts change with the settings."""

    def __init__(self) -> None:
        self.parts: tuple[TextMapPropagator, ...] = ()

    def extract(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,
    ) -> Context:
        context = get_current() if context is None else context
        for part in self.parts:
            context = part.extract(carrier, context, getter)
        return context

    def inject(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        setter: Setter[CarrierT] = default_setter,
    ) -> None:
        if not outbound.allowed(context):
            return
        for part in self.parts:
            part.inject(carrier, context, setter)

    @property
    def fields(self) -> set[str]:
        return {field for part in self.parts for field in part.fields}


class MetaGetter(Getter[Mapping[str, object]]):
    """Reads header names from a WSGI environment or Django's `request.META`."""

    def get(self, carrier: Mapping[str, object], key: str) -> list[str] | None:
        value = carrier.get("HTTP_" + key.upper().replace("-", "_"))
        return [value] if isinstance(value, str) else None

    def keys(self, carrier: Mapping[str, object]) -> list[str]:
        return [name[5:].lower().replace("_", "-") for name in carrier if name.startswith("HTTP_")]


META_GETTER = MetaGetter()


def build_propagators(config: Config) -> tuple[TextMapPropagator, ...]:
    """Return the propagators of `PROPAGATION.FORMATS`. Errors: `ConfigError` (E004) when a package is missing."""
    parts: list[TextMapPropagator] = []
    for name in config.propagation.formats:
        if name == "tracecontext":
            parts.append(TraceContextPropagator())
        elif name == "baggage":
            parts.append(BaggagePropagator(config.propagation.baggage_keys))
        elif name != "none":
            from importlib.metadata import entry_points

            found = list(entry_points(group="opentelemetry_propagator", name=name))
            if not found:
                package = f"opentelemetry-propagator-{name.removesuffix('multi')}"
                raise missing_package(name, package, package)
            parts.append(found[0].load()())
    return tuple(parts)
