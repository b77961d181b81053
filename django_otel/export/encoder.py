"""Finished spans as the bytes of an OTLP `ExportTraceServiceRequest`, written without protobuf objects.

The stock encoder builds a protobuf object per attribute and takes 35 to 61 us
per span; this one joins byte strings, most of which it has made before, and
takes a tenth. After parsing both give the same message: the same groups,
order, flags, counts and values. They differ where the stock encoder raises,
which costs it the whole batch, and where a receiver would refuse what it has
sent:

- a span that cannot be written (a time or an id out of range, a name that is
  no text, an unknown kind) is left out and counted, the others go on;
- a name, a description or a schema URL that holds half a surrogate pair keeps
  its place with `?` in it (as an attribute value it costs its attribute, as it
  does in the stock encoder);
- an attribute nested deeper than protobuf parsers go (100 messages) is left out.

Redaction happens on the way when a scrubber is given: what is remembered is
the redacted encoding of a value that the rules left alone, so that a value seen
before is neither looked at nor encoded again.

Source: opentelemetry-proto 1.x, trace.proto, common.proto, resource.proto,
trace_service.proto; protobuf's wire format.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from django_otel.base import guard
from django_otel.base.sdk_compat import CONTEXT_TUPLE, SpanParts, read_span
from django_otel.export.attribute_writer import (
    CACHE_ENTRY_BYTES,
    MAX_CACHE_BYTES,
    MAX_CACHED_LENGTH,
    AttributeWriter,
)
from django_otel.export.wire import (
    ITEM,
    VALUE,
    to_utf8,
    to_whole,
    write_count,
    write_field,
)
from django_otel.redaction.sdk_items import scrub_scope
from django_otel.tracing.attributes import SharedAttributes
from django_otel.tracing.spans import RecordedSpan, to_readable

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, SpanContext, Status

    from django_otel.redaction.scrub import Scrubber

# Tags of fields; `export.wire` says how they are made.
_SPAN_TRACE_ID = b"\x0a\x10"
_SPAN_ID = b"\x12\x08"
_SPAN_TRACE_STATE = b"\x1a"
_SPAN_PARENT_ID = b"\x22\x08"
_SPAN_NAME = b"\x2a"
_SPAN_ATTRIBUTE = b"\x4a"
_SPAN_DROPPED_ATTRIBUTES = b"\x50"
_SPAN_EVENT = b"\x5a"
_SPAN_DROPPED_EVENTS = b"\x60"
_SPAN_LINK = b"\x6a"
_SPAN_DROPPED_LINKS = b"\x70"
_SPAN_STATUS = b"\x7a"
_EVENT_NAME = b"\x12"
_EVENT_ATTRIBUTE = b"\x1a"
_EVENT_DROPPED_ATTRIBUTES = b"\x20"
_LINK_ATTRIBUTE = b"\x22"
_LINK_DROPPED_ATTRIBUTES = b"\x28"
_STATUS_MESSAGE = b"\x12"

# "<": without padding. Start and end of a span; the time of an event.
_TIMES = struct.Struct("<cQcQ")
_TIME = struct.Struct("<cQ")

#: `Span.kind` by the API's value, which is one less.
_KINDS = tuple(bytes((0x30, number)) for number in range(1, 6))
#: A status without a description. The field is there even when it is empty, as in the stock encoder.
_STATUSES = (b"\x7a\x00", b"\x7a\x02\x18\x01", b"\x7a\x02\x18\x02")
_STATUS_CODES = (b"", b"\x18\x01", b"\x18\x02")
# 0x100: "whether the parent is remote is known", 0x200: "it is".
_SPAN_FLAGS_LOCAL = b"\x85\x01" + struct.pack("<I", 0x100)
_SPAN_FLAGS_REMOTE = b"\x85\x01" + struct.pack("<I", 0x300)
_LINK_FLAGS_LOCAL = b"\x35" + struct.pack("<I", 0x100)
_LINK_FLAGS_REMOTE = b"\x35" + struct.pack("<I", 0x300)

#: Path to an attribute's value: spans of a resource, of a scope, span, (event or link,) pair, value.
_SPAN_LEVEL = _SCOPE_LEVEL = 5
_EVENT_LEVEL = 6
_RESOURCE_LEVEL = 4

_MAX_CACHED_RESOURCES = 64
_NOT_READ: Any = itertools.repeat(None)


class SpanEncoder:
    """Encodes batches of spans, with a cache of repeated parts. For one thread at a time.

    `scrubber` redacts on the way; without one the spans must be clean. `prepare`
    gives the span to encode instead of one whose scope `is_prepared` says so of.
    Encoders with the same object `sharing` give the same bytes for a span; each of
    our spans is encoded by one of them and kept with the span for the others.

    After each `encode`: `spans_lost`, the number of spans that could not be
    written. `attributes_lost` counts attributes since the encoder was made.
    """

    def __init__(
        self,
        scrubber: Scrubber | None = None,
        *,
        prepare: Callable[[ReadableSpan], ReadableSpan] | None = None,
        is_prepared: Callable[[InstrumentationScope | None], bool] = lambda scope: True,
        sharing: object = None,
    ) -> None:
        self._sharing = sharing
        self._scrubber = scrubber
        self._prepare = prepare
        self._is_prepared = is_prepared
        self.spans_lost = 0
        self._span_attributes = AttributeWriter(_SPAN_ATTRIBUTE, _SPAN_LEVEL, scrubber)
        self._event_attributes = AttributeWriter(_EVENT_ATTRIBUTE, _EVENT_LEVEL, scrubber)
        self._link_attributes = AttributeWriter(_LINK_ATTRIBUTE, _EVENT_LEVEL, scrubber)
        self._names: dict[str, bytes] = {}
        self._names_bytes = 0
        self._equals = _Equals()
        # By identity, because hashing a Resource takes longer than encoding a span. The object is kept, so that its
        # identity stays its own.
        self._resources: dict[int, tuple[Resource, bytes]] = {}
        self._scopes: dict[int, tuple[InstrumentationScope | None, bytes, bytes]] = {}
        # Parts of the last span, by identity: the objects are kept, so that their identity stays theirs.
        self._trace_id: object = None
        self._trace_head = b""
        self._trace_state: object = None
        self._trace_state_field = b""
        self._parent: SpanContext | None = None
        self._parent_field, self._flags = b"", _SPAN_FLAGS_LOCAL
        self._status: object = None
        self._status_field = b""

    @property
    def attributes_lost(self) -> int:
        """Return how many attributes could not be written so far."""
        return self._span_attributes.lost + self._event_attributes.lost + self._link_attributes.lost

    def encode(self, spans: Iterable[ReadableSpan], read: Iterable[SpanParts | None] = _NOT_READ) -> bytes:
        """The bytes of an `ExportTraceServiceRequest`; `read` are the parts of the spans where they are at hand.

        Errors: none; see `spans_lost`.
        """
        self.spans_lost = 0
        groups = _Groups(self._equals)
        group: _Group | None = None
        resource: object = None
        scope: Any = None
        sharing = self._sharing
        for span, parts in zip(spans, read, strict=False):
            try:
                is_own = type(span) is RecordedSpan
                known = getattr(span, "encoded", None) if is_own else None
                if known is not None and known[0] is sharing:
                    _, its_resource, its_scope, field = known
                    is_known = True
                else:
                    is_known = False
                    if parts is None:
                        parts = span.parts() if is_own else read_span(span)  # type: ignore[attr-defined]
                    its_resource, its_scope = parts[0], parts[1]
                if group is None or its_resource is not resource or its_scope is not scope:
                    resource, scope = its_resource, its_scope
                    group = groups.find(resource, scope)
                    if group.is_prepared is None:
                        group.is_prepared = self._prepare is not None and self._is_prepared(scope)
                if not is_known:
                    if group.is_prepared:
                        parts = read_span(self._prepare(to_readable(span)))  # type: ignore[misc]
                    field = write_field(VALUE, self._span(parts))  # type: ignore[arg-type]
                    if is_own and sharing is not None:
                        span.encoded = (sharing, resource, scope, field)  # type: ignore[attr-defined]
            except Exception as error:
                self.spans_lost += 1
                guard.report("encoding a span", error)
                continue
            group.spans.append(field)
        return b"".join([self._resource_spans(*item) for item in groups.by_resource()])

    def _span(self, span: SpanParts) -> bytes:  # noqa: C901 (one decision after the other, each with its reason)
        _, _, name, context, parent, kind, start_ns, end_ns, attributes, dropped, events, dropped_events, links, \
            dropped_links, status = span  # fmt: skip
        if type(context) is CONTEXT_TUPLE:
            trace_id, span_id, _, _, trace_state, _ = context
        else:
            trace_id, span_id, trace_state = context.trace_id, context.span_id, context.trace_state
        # Most spans share the parts of the last one: all spans of a trace share its id and state, siblings a parent.
        if trace_id != self._trace_id:
            self._trace_head = _SPAN_TRACE_ID + trace_id.to_bytes(16, "big") + _SPAN_ID
            self._trace_id = trace_id
        if trace_state is not self._trace_state:
            self._trace_state_field = _trace_state_field(trace_state)
            self._trace_state = trace_state
        if parent is not self._parent:
            self._parent_field, self._flags = _parent_fields(parent)
            self._parent = parent
        try:
            times = _TIMES.pack(b"\x39", start_ns, b"\x41", end_ns)
        except struct.error:
            # None, which is 0, or no time.
            times = _TIMES.pack(b"\x39", to_whole(start_ns), b"\x41", to_whole(end_ns))
        # In the order of the fields' numbers, which parsers read fastest.
        fields = [
            self._trace_head,
            span_id.to_bytes(8, "big"),
            self._trace_state_field,
            self._parent_field,
            self._names.get(name) or self._name_field(name),
            _KINDS[kind._value_],
            times,
        ]
        if type(attributes) is SharedAttributes:
            # Written out once for all spans that have them.
            known = attributes.encoded
            is_known = known is not None and known[0] is self._span_attributes
            fields.append(known[1] if is_known else self._span_attributes.block(attributes))  # type: ignore[index]
        elif attributes:
            fields += self._span_attributes.fields(attributes)
        if dropped:
            fields.append(_SPAN_DROPPED_ATTRIBUTES + write_count(dropped))
        if events:
            fields += self._event_fields(events)
        if dropped_events:
            fields.append(_SPAN_DROPPED_EVENTS + write_count(dropped_events))
        if links:
            fields += self._link_fields(links)
        if dropped_links:
            fields.append(_SPAN_DROPPED_LINKS + write_count(dropped_links))
        if status is not self._status or status is None:
            # Nearly all spans have the same, unset one.
            self._status_field = b"" if status is None else self._encode_status(status)
            self._status = None if status is None or status.description else status
        fields += (self._status_field, self._flags)
        return b"".join(fields)

    # Not where a span is written: what a comprehension refers to is slower there, events or not.

    def _event_fields(self, events: Sequence[Event]) -> list[bytes]:
        return [write_field(_SPAN_EVENT, self._event(event)) for event in events]

    def _link_fields(self, links: Sequence[Link]) -> list[bytes]:
        return [write_field(_SPAN_LINK, self._link(link)) for link in links]

    def _name_field(self, name: object) -> bytes:
        if name is None:
            return b""
        scrubbed = name if self._scrubber is None or not isinstance(name, str) else self._scrubber.text(name)
        field = write_field(_SPAN_NAME, to_utf8(scrubbed))
        if scrubbed is name and type(name) is str and len(name) <= MAX_CACHED_LENGTH:
            self._names_bytes += len(field) + len(name) + CACHE_ENTRY_BYTES
            if self._names_bytes > MAX_CACHE_BYTES // 8:
                self._names.clear()
                self._names_bytes = 0
            self._names[name] = field
        return field

    def _encode_status(self, status: Status) -> bytes:
        description: object = status.description
        if not description:
            return _STATUSES[status.status_code._value_]
        if self._scrubber is not None:
            description = self._scrubber.value("status.description", description)
        message = write_field(
            _STATUS_MESSAGE, to_utf8(description if isinstance(description, (str, bytes)) else str(description))
        )
        return write_field(_SPAN_STATUS, message + _STATUS_CODES[status.status_code._value_])

    def _event(self, event: Event) -> bytes:
        name: object = event.name
        if self._scrubber is not None and isinstance(name, str):
            name = self._scrubber.text(name)
        parts = [
            _TIME.pack(b"\x09", to_whole(event.timestamp)),
            b"" if name is None else write_field(_EVENT_NAME, to_utf8(name)),
        ]
        if attributes := event.attributes:
            parts += self._event_attributes.fields(attributes)
        if dropped := event.dropped_attributes:
            parts.append(_EVENT_DROPPED_ATTRIBUTES + write_count(dropped))
        return b"".join(parts)

    def _link(self, link: Link) -> bytes:
        context: SpanContext = link.context
        parts = [
            _SPAN_TRACE_ID,
            context.trace_id.to_bytes(16, "big"),
            _SPAN_ID,
            context.span_id.to_bytes(8, "big"),
        ]
        # No trace state: the stock encoder sends none either.
        if attributes := link.attributes:
            parts += self._link_attributes.fields(attributes)
        if dropped := link.dropped_attributes:
            parts.append(_LINK_DROPPED_ATTRIBUTES + write_count(dropped))
        parts.append(_LINK_FLAGS_REMOTE if context.is_remote else _LINK_FLAGS_LOCAL)
        return b"".join(parts)

    # --- Resources and scopes. ---

    def _resource_spans(self, resource: Any, groups: list[_Group]) -> bytes:
        found = self._resources.get(id(resource))
        if found is None:
            with guard.contained("encoding a resource"):
                found = (resource, _encode_resource(resource))
            if found is None:
                # Its spans are worth more than its attributes.
                found = (resource, b"\x0a\x00")
            _remember(self._resources, resource, found)
        scopes = []
        for group in groups:
            head, schema_url = self._scope_fields(group.scope)
            scopes.append(write_field(VALUE, b"".join([head, *group.spans, schema_url])))
        return write_field(ITEM, b"".join([found[1], *scopes, _schema_url(resource)]))

    def _scope_fields(self, scope: InstrumentationScope | None) -> tuple[bytes, bytes]:
        """The scope without its secrets, and its schema URL, which comes after the spans."""
        found = self._scopes.get(id(scope))
        if found is None:
            with guard.contained("encoding a scope"):
                clean = scope if self._scrubber is None else scrub_scope(self._scrubber, scope)
                found = (scope, _encode_scope(clean), _schema_url(clean))
            if found is None:
                found = (scope, b"\x0a\x00", b"")
            _remember(self._scopes, scope, found)
        return found[1:]


class _Group:
    """The spans of one scope of one resource, each as a field of its message."""

    __slots__ = ("is_prepared", "scope", "spans")

    def __init__(self, scope: InstrumentationScope | None) -> None:
        self.scope = scope
        self.spans: list[bytes] = []
        self.is_prepared: bool | None = None


class _Equals:
    """Finds the first seen of equal resources and of equal scopes; known ones by identity.

    To hash a resource takes longer than to encode a span.
    """

    def __init__(self) -> None:
        # The objects are kept, so that their identities stay theirs.
        self._known: dict[int, tuple[object, object]] = {}
        self._firsts: dict[object, object] = {}

    def first(self, thing: object) -> object:
        """Return the one that stands for all that equal this one."""
        found = self._known.get(id(thing))
        if found is None:
            found = self._known[id(thing)] = (thing, self._firsts.setdefault(_hashable(thing), thing))
        return found[1]

    def forget_many(self) -> None:
        """Begin from empty tables when they are full; between two batches, since one must group all that is equal."""
        if len(self._known) > _MAX_CACHED_RESOURCES:
            self._known.clear()
            self._firsts.clear()


class _Groups:
    """Spans by equal resource and equal scope, in the order in which the first of each came."""

    def __init__(self, equals: _Equals) -> None:
        equals.forget_many()
        self._equals = equals
        self._resources: dict[int, tuple[object, dict[int, _Group]]] = {}

    def find(self, resource: object, scope: InstrumentationScope | None) -> _Group:
        first = self._equals.first
        _, scopes = self._resources.setdefault(id(first(resource)), (resource, {}))
        key = id(first(scope))
        group = scopes.get(key)
        if group is None:
            group = scopes[key] = _Group(scope)
        return group

    def by_resource(self) -> Iterable[tuple[object, list[_Group]]]:
        for resource, scopes in self._resources.values():
            groups = [group for group in scopes.values() if group.spans]
            if groups:
                yield resource, groups


def _hashable(thing: object) -> object:
    """The thing itself, or its identity where its attributes cannot be hashed (the stock encoder raises)."""
    try:
        hash(thing)
    except Exception as error:
        guard.pass_on(error)
        return id(thing)
    return thing


def _remember(known: dict[int, Any], thing: object, entry: object) -> None:
    if len(known) >= _MAX_CACHED_RESOURCES:
        known.clear()
    known[id(thing)] = entry


def _encode_resource(resource: Resource) -> bytes:
    # A field of ResourceSpans; an attribute is a field of Resource.
    return write_field(b"\x0a", _plain_attributes(ITEM, resource.attributes, _RESOURCE_LEVEL))


def _encode_scope(scope: InstrumentationScope | None) -> bytes:
    if scope is None:
        return b"\x0a\x00"
    name: object = scope.name
    body = b"" if name is None else write_field(b"\x0a", to_utf8(name))
    if scope.version is not None:
        body += write_field(b"\x12", to_utf8(scope.version))
    return write_field(b"\x0a", body + _plain_attributes(b"\x1a", scope.attributes, _SCOPE_LEVEL))


def _plain_attributes(tag: bytes, attributes: Any, level: int) -> bytes:
    """Attributes of resources and scopes: set by the project and cleaned when they were set."""
    return b"".join(AttributeWriter(tag, level, None).fields(attributes or {}))


def _schema_url(thing: object) -> bytes:
    """The field of ResourceSpans or ScopeSpans; nothing when there is none."""
    url = getattr(thing, "schema_url", None)
    if not url:
        return b""
    with guard.contained("encoding a schema URL"):
        return write_field(b"\x1a", to_utf8(url))
    return b""


def _parent_fields(parent: Any) -> tuple[bytes, bytes]:
    """The id of a span's parent, and the flags that say where that is."""
    if parent is None:
        return b"", _SPAN_FLAGS_LOCAL
    flags = _SPAN_FLAGS_REMOTE if parent.is_remote else _SPAN_FLAGS_LOCAL
    return _SPAN_PARENT_ID + parent.span_id.to_bytes(8, "big"), flags


def _trace_state_field(trace_state: Any) -> bytes:
    if not trace_state:
        return b""
    return write_field(_SPAN_TRACE_STATE, to_utf8(",".join([f"{key}={value}" for key, value in trace_state.items()])))
