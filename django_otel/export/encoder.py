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

import operator
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from django_otel.base import guard
from django_otel.base.sdk_compat import CONTEXT_TUPLE, SpanParts, read_span
from django_otel.tracing.attributes import SharedAttributes
from django_otel.tracing.spans import RecordedSpan, to_readable

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, SpanContext, Status

# A field's tag is its number times 8 plus its wire type: 0 varint, 1 fixed 64 bits, 2 with a length, 5 fixed 32 bits.
_KEY = b"\x0a"
_VALUE = b"\x12"
_STRING = b"\x0a"
_BOOL_FALSE = b"\x10\x00"
_BOOL_TRUE = b"\x10\x01"
_INT = b"\x18"
_ARRAY = b"\x2a"
_MAPPING = b"\x32"
_BYTES = b"\x3a"
_ITEM = b"\x0a"

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

# "<": without padding. The double of an AnyValue; kind, start and end of a span; the time of an event.
_DOUBLE = struct.Struct("<cd")
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

_MAX_UINT32 = 2**32 - 1
#: How deep messages may lie within a request before protobuf's parsers refuse all of it.
_MAX_LEVEL = 100
#: Where an attribute's value lies: spans of a resource, of a scope, span, (event or link,) pair, value.
_SPAN_LEVEL = _SCOPE_LEVEL = 5
_EVENT_LEVEL = 6
_RESOURCE_LEVEL = 4

#: Longer texts are encoded each time: they are seldom repeated.
_MAX_CACHED_LENGTH = 512
#: What an encoder remembers before it starts anew, in bytes (estimated, with the dict entries).
_MAX_CACHE_BYTES = 4 * 2**20
#: What a remembered value costs beside its own and its encoding's length: two objects and a dict entry.
_CACHE_ENTRY_BYTES = 190
#: Different values of one key that are remembered.
_MAX_CACHED_VALUES = 1024
_MAX_CACHED_RESOURCES = 64
#: Attributes of a query that are kept as they were written; there may be some thousand such.
_MAX_BLOCK_BYTES = 2048

_FIRST_VARINTS = tuple(
    bytes((number,)) if number < 128 else bytes((number & 127 | 128, number >> 7)) for number in range(1024)
)


class ValueScrubber(Protocol):
    """What the encoder needs of `core.scrub.Scrubber`."""

    @property
    def is_pure(self) -> bool:
        """Whether equal values give equal results each time."""

    def value(self, key: str, value: Any) -> Any: ...

    def text(self, text: str) -> str: ...

    def key(self, key: str) -> str: ...

    def scope(self, scope: InstrumentationScope | None) -> InstrumentationScope | None: ...

    def is_text_only(self, key: str) -> bool:
        """Whether `value` of a text under this key is its `fresh_text`."""

    def fresh_text(self, text: str) -> str: ...


class SpanEncoder:
    """Encodes batches of spans, and remembers between them what repeats. For one thread at a time.

    `scrubber` redacts on the way; without one the spans must be clean. `prepare`
    gives the span to encode instead of one whose scope `is_prepared` says so of.
    Encoders with the same object `sharing` give the same bytes for a span; each of
    our spans is encoded by one of them and kept with the span for the others.

    After each `encode`: `spans_lost`, the number of spans that could not be
    written. `attributes_lost` counts attributes since the encoder was made.
    """

    def __init__(
        self,
        scrubber: ValueScrubber | None = None,
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
        self._span_attributes = _AttributeWriter(_SPAN_ATTRIBUTE, _SPAN_LEVEL, scrubber)
        self._event_attributes = _AttributeWriter(_EVENT_ATTRIBUTE, _EVENT_LEVEL, scrubber)
        self._link_attributes = _AttributeWriter(_LINK_ATTRIBUTE, _EVENT_LEVEL, scrubber)
        self._names: dict[str, bytes] = {}
        self._names_bytes = 0
        # By identity, because hashing a Resource takes longer than encoding a span. The object is kept, so that its
        # identity stays its own.
        self._resources: dict[int, tuple[Resource, bytes]] = {}
        self._scopes: dict[int, tuple[InstrumentationScope | None, bytes, bytes]] = {}
        # What the last span had, by identity: the objects are kept, so that their identity stays theirs.
        self._trace_state: Any = None
        self._trace_state_field = b""
        self._status: Any = None
        self._status_field = b""

    @property
    def attributes_lost(self) -> int:
        """How many attributes could not be written so far."""
        return self._span_attributes.lost + self._event_attributes.lost + self._link_attributes.lost

    def encode(self, spans: Iterable[ReadableSpan]) -> bytes:
        """The bytes of an `ExportTraceServiceRequest`. Errors: none; see `spans_lost`."""
        self.spans_lost = 0
        groups = _Groups()
        group: _Group | None = None
        resource: Any = None
        scope: Any = None
        for span in spans:
            try:
                parts = span.parts() if type(span) is RecordedSpan else read_span(span)
                if group is None or parts[0] is not resource or parts[1] is not scope:
                    resource, scope, *_ = parts
                    group = groups.find(resource, scope)
                    if group.is_prepared is None:
                        group.is_prepared = self._prepare is not None and self._is_prepared(scope)
                body = self._shared_body(span)
                if body is not None:
                    group.add(body)
                    continue
                if group.is_prepared:
                    parts = read_span(self._prepare(to_readable(span)))  # type: ignore[misc]
                body = self._span(parts)
                if self._sharing is not None and type(span) is RecordedSpan:
                    span.encoded = (self._sharing, body)
            except Exception as error:
                self.spans_lost += 1
                guard.report("encoding a span", error)
                continue
            group.add(body)
        return b"".join([self._resource_spans(*item) for item in groups.by_resource()])

    def _shared_body(self, span: Any) -> bytes | None:
        if self._sharing is None or type(span) is not RecordedSpan:
            return None
        known = getattr(span, "encoded", None)
        return known[1] if known is not None and known[0] is self._sharing else None

    def _span(self, span: SpanParts) -> bytes:  # noqa: C901 (one decision after the other, each with its reason)
        _, _, name, context, parent, kind, start_ns, end_ns, attributes, dropped, events, dropped_events, links, \
            dropped_links, status = span  # fmt: skip
        if type(context) is CONTEXT_TUPLE:
            trace_id, span_id, _, _, trace_state, _ = context
        else:
            trace_id, span_id, trace_state = context.trace_id, context.span_id, context.trace_state
        if trace_state is not self._trace_state:
            # All spans of a trace, and all without a state, share one object.
            self._trace_state_field = _trace_state_field(trace_state)
            self._trace_state = trace_state
        # In the order of the fields' numbers, as parsers have it quickest.
        fields = [
            _SPAN_TRACE_ID,
            trace_id.to_bytes(16, "big"),
            _SPAN_ID,
            span_id.to_bytes(8, "big"),
            self._trace_state_field,
        ]
        flags = _SPAN_FLAGS_LOCAL
        if parent is not None:
            fields += (_SPAN_PARENT_ID, parent.span_id.to_bytes(8, "big"))
            if parent.is_remote:
                flags = _SPAN_FLAGS_REMOTE
        try:
            times = _TIMES.pack(b"\x39", start_ns, b"\x41", end_ns)
        except struct.error:
            # None, which is 0, or no time.
            times = _TIMES.pack(b"\x39", _whole(start_ns), b"\x41", _whole(end_ns))
        fields += (self._names.get(name) or self._name_field(name), _KINDS[kind._value_], times)
        if type(attributes) is SharedAttributes:
            # Written out once for all spans that have them: nearly a third of what the export of a query took.
            known = attributes.encoded
            is_known = known is not None and known[0] is self._span_attributes
            fields.append(known[1] if is_known else self._span_attributes.block(attributes))  # type: ignore[index]
        elif attributes:
            fields += self._span_attributes.fields(attributes)
        if dropped:
            fields.append(_SPAN_DROPPED_ATTRIBUTES + _count(dropped))
        if events:
            fields += self._event_fields(events)
        if dropped_events:
            fields.append(_SPAN_DROPPED_EVENTS + _count(dropped_events))
        if links:
            fields += self._link_fields(links)
        if dropped_links:
            fields.append(_SPAN_DROPPED_LINKS + _count(dropped_links))
        if status is not self._status or status is None:
            # Nearly all spans have the same one, that nobody has set.
            self._status_field = b"" if status is None else self._encode_status(status)
            self._status = None if status is None or status.description else status
        fields.append(self._status_field)
        fields.append(flags)
        return b"".join(fields)

    # Not where a span is written: what a comprehension refers to is slower there, events or not.

    def _event_fields(self, events: Sequence[Event]) -> list[bytes]:
        return [_field(_SPAN_EVENT, self._event(event)) for event in events]

    def _link_fields(self, links: Sequence[Link]) -> list[bytes]:
        return [_field(_SPAN_LINK, self._link(link)) for link in links]

    def _name_field(self, name: Any) -> bytes:
        if name is None:
            return b""
        scrubbed = name if self._scrubber is None or not isinstance(name, str) else self._scrubber.text(name)
        field = _field(_SPAN_NAME, _utf8(scrubbed))
        if scrubbed is name and type(name) is str and len(name) <= _MAX_CACHED_LENGTH:
            self._names_bytes += len(field) + len(name) + _CACHE_ENTRY_BYTES
            if self._names_bytes > _MAX_CACHE_BYTES // 8:
                self._names.clear()
                self._names_bytes = 0
            self._names[name] = field
        return field

    def _encode_status(self, status: Status) -> bytes:
        description: Any = status.description
        if not description:
            return _STATUSES[status.status_code._value_]
        if self._scrubber is not None:
            description = self._scrubber.value("status.description", description)
        message = _field(
            _STATUS_MESSAGE, _utf8(description if isinstance(description, (str, bytes)) else str(description))
        )
        return _field(_SPAN_STATUS, message + _STATUS_CODES[status.status_code._value_])

    def _event(self, event: Event) -> bytes:
        name: Any = event.name
        if self._scrubber is not None and isinstance(name, str):
            name = self._scrubber.text(name)
        parts = [
            _TIME.pack(b"\x09", _whole(event.timestamp)),
            b"" if name is None else _field(_EVENT_NAME, _utf8(name)),
        ]
        if attributes := event.attributes:
            parts += self._event_attributes.fields(attributes)
        if dropped := event.dropped_attributes:
            parts.append(_EVENT_DROPPED_ATTRIBUTES + _count(dropped))
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
            parts.append(_LINK_DROPPED_ATTRIBUTES + _count(dropped))
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
            scopes.append(_field(_VALUE, b"".join([head, *group.spans, schema_url])))
        return _field(_ITEM, b"".join([found[1], *scopes, _schema_url(resource)]))

    def _scope_fields(self, scope: InstrumentationScope | None) -> tuple[bytes, bytes]:
        """The scope without its secrets, and its schema URL, which comes after the spans."""
        found = self._scopes.get(id(scope))
        if found is None:
            with guard.contained("encoding a scope"):
                clean = scope if self._scrubber is None else self._scrubber.scope(scope)
                found = (scope, _encode_scope(clean), _schema_url(clean))
            if found is None:
                found = (scope, b"\x0a\x00", b"")
            _remember(self._scopes, scope, found)
        return found[1:]


class _AttributeWriter:
    """Encodes the attributes of spans, of events or of links; each kind has a tag of its own.

    Attributes come in few shapes (which keys, in which order). A shape has one
    table per key, from value to encoding, so that a span's attributes are found
    by as many look-ups, all of them in C: a third of the time of a loop.
    """

    def __init__(self, tag: bytes, level: int, scrubber: ValueScrubber | None) -> None:
        self._tag = tag
        self._level = level
        self._scrubber = scrubber
        self._is_pure = scrubber is None or scrubber.is_pure
        self._fresh_text = None if scrubber is None else scrubber.fresh_text
        self.lost = 0
        self._shapes: dict[tuple[Any, ...], list[_Table]] = {}
        self._tables: dict[Any, _Table] = {}
        self._bytes = 0

    def fields(self, attributes: Mapping[str, Any]) -> list[bytes]:
        """The encoding of each attribute; of one that cannot be encoded nothing."""
        shape = tuple(attributes)
        lost = self.lost
        try:
            return list(map(operator.getitem, self._shapes.get(shape) or self._add_shape(shape), attributes.values()))
        except TypeError:
            # A value that cannot be looked up, such as a list; those before it are done again.
            self.lost = lost
            tables = self._shapes.get(shape) or self._add_shape(shape)
            return [table.encode(value) for table, value in zip(tables, attributes.values(), strict=True)]

    def block(self, attributes: SharedAttributes) -> bytes:
        """The encoding of all of them, left with them for the next span unless it is long or one is missing."""
        lost = self.lost
        block = b"".join(self.fields(attributes))
        if self._is_pure and self.lost == lost and len(block) <= _MAX_BLOCK_BYTES:
            attributes.encoded = (self, block)
        return block

    def _add_shape(self, shape: tuple[Any, ...]) -> list[_Table]:
        tables = [self._tables[key] if key in self._tables else self._add_table(key) for key in shape]
        if any(table.exported_key is not table.key for table in tables):
            # Keys that hold a secret are not remembered. Of those that look alike without it the last one counts.
            last = {table.exported_key: table for table in tables}
            return [table if last[table.exported_key] is table else _LeftOut(self, table.key) for table in tables]
        self._count_in(len(shape) * 16 + _CACHE_ENTRY_BYTES)
        self._shapes[shape] = tables
        return tables

    def _add_table(self, key: Any) -> _Table:
        self._count_in(4 * _CACHE_ENTRY_BYTES)
        table = _Table(self, key)
        if table.exported_key is key:
            self._tables[key] = table
        return table

    def clean_key(self, key: Any) -> Any:
        """Return the key as it is exported, the same object unless a secret was in it."""
        return key if self._scrubber is None or not isinstance(key, str) else self._scrubber.key(key)

    def _count_in(self, size_bytes: int) -> None:
        self._bytes += size_bytes
        if self._bytes > _MAX_CACHE_BYTES // 4:
            self._bytes = size_bytes
            self._shapes.clear()
            for table in self._tables.values():
                # The span that is being encoded goes on with them.
                table.forget()
            self._tables.clear()

    def make_text(self, table: _Table, text: str) -> bytes:
        """Encode a text that is not in its key's table, and put it there if it may be.

        In one go, since every request has such a one: its path.
        """
        scrubbed = text
        if self._fresh_text is not None:
            if not table.is_text_only:
                return self.make(table, text)
            scrubbed = self._fresh_text(text)
        # Of ASCII as many bytes as characters; 900: so that every length below is in the table of varints.
        length = len(scrubbed)
        if length > 900 or not table.head or not scrubbed.isascii():
            return self.make(table, text)
        value = _FIRST_VARINTS[length]
        length += 1 + len(value)
        content = _FIRST_VARINTS[length]
        length += len(table.head) + len(content)
        field = b"".join((self._tag, _FIRST_VARINTS[length], table.head, content, _STRING, value, scrubbed.encode()))
        if scrubbed is text:
            self._keep(table, table, text, field)
        return field

    def make(self, table: _Table, value: Any) -> bytes:
        """Encode any value that is not in its key's tables, and put it there if it may be."""
        field, is_kept = self.encode(table.key, table.exported_key, value)
        if is_kept and self._is_pure:
            kind = type(value)
            known = table if kind is str else table.integers if kind is int else table.flags if kind is bool else None
            if known is not None:
                self._keep(table, known, value, field)
        return field

    def _keep(self, table: _Table, known: dict[Any, bytes], value: Any, field: bytes) -> None:
        if len(field) > _MAX_CACHED_LENGTH:
            return
        if len(known) >= _MAX_CACHED_VALUES:
            # A key with ever new values, such as a path. Those that came first may still be the usual ones, and
            # keeping each new one for nothing costs more than encoding it; now and then the table begins anew.
            table.refused += 1
            if table.refused < 16 * _MAX_CACHED_VALUES:
                return
            self._bytes -= table.size_bytes
            table.forget()
        size_bytes = 2 * len(field) + _CACHE_ENTRY_BYTES
        table.size_bytes += size_bytes
        self._count_in(size_bytes)
        known[value] = field

    def encode(self, key: Any, exported_key: Any, value: Any) -> tuple[bytes, bool]:
        """The field, or nothing; and whether the scrubber left the value as it was."""
        try:
            scrubbed = value if self._scrubber is None else self._scrubber.value(key, value)
            return _field(self._tag, _pair(exported_key, _any_value(scrubbed, self._level))), scrubbed is value
        except Exception as error:
            # As the stock encoder has it: this attribute alone is missing.
            self.lost += 1
            guard.report("encoding an attribute", error)
            return b"", False

    def head(self, key: Any) -> tuple[bytes, bool]:
        """What comes before the value's length in a pair, or nothing; and whether a text's key says nothing of it."""
        if type(key) is not str:
            return b"", False
        if len(key) > 100:
            return b"", False
        try:
            head = _field(_KEY, self.clean_key(key).encode()) + _VALUE
            return head, self._scrubber is not None and self._scrubber.is_text_only(key)
        except UnicodeEncodeError:
            # Counted for each attribute under it.
            return b"", False


class _Table(dict[Any, bytes]):
    """From the texts under one key to their fields; makes what it does not have.

    Numbers have tables of their own, by type, since 1, True and 1.0 are equal
    and have the same hash. Floats have none: 0.0 and -0.0 are equal, too.
    """

    __slots__ = (
        "_writer", "exported_key", "flags", "head", "integers", "is_text_only", "key", "refused", "size_bytes",
    )  # fmt: skip

    def __init__(self, writer: _AttributeWriter, key: Any) -> None:
        self._writer = writer
        self.key = key
        #: The key without the secret that is in it; the same object when there is none.
        self.exported_key = writer.clean_key(key)
        self.head, self.is_text_only = writer.head(key)
        self.integers: dict[int, bytes] = {}
        self.flags: dict[bool, bytes] = {}
        self.size_bytes = 0
        #: Values that came when the table was full.
        self.refused = 0

    def __missing__(self, value: Any) -> bytes:
        kind = type(value)
        found = None
        if kind is str:
            return self._writer.make_text(self, value)
        if kind is int:
            found = self.integers.get(value)
        elif kind is bool:
            found = self.flags.get(value)
        return self._writer.make(self, value) if found is None else found

    def encode(self, value: Any) -> bytes:
        """Encode a value without a look into the table."""
        return self._writer.encode(self.key, self.exported_key, value)[0]

    def forget(self) -> None:
        self.clear()
        self.integers.clear()
        self.flags.clear()
        self.size_bytes = self.refused = 0


class _LeftOut(_Table):
    """Stands for an attribute whose key is another one's after redaction."""

    __slots__ = ()

    def __missing__(self, value: Any) -> bytes:
        return b""

    def encode(self, value: Any) -> bytes:
        return b""


class _Group:
    """The spans of one scope of one resource, each as three byte strings: tag, length and body."""

    __slots__ = ("is_prepared", "scope", "spans")

    def __init__(self, scope: InstrumentationScope | None) -> None:
        self.scope = scope
        self.spans: list[bytes] = []
        self.is_prepared: bool | None = None

    def add(self, body: bytes) -> None:
        """Append a span."""
        length = len(body)
        self.spans += (_VALUE, _FIRST_VARINTS[length] if length < 1024 else _varint(length), body)


class _Groups:
    """Spans by equal resource and equal scope, in the order in which the first of each came."""

    def __init__(self) -> None:
        self._by_identity: dict[tuple[int, int], tuple[Any, Any, _Group]] = {}
        self._resources: dict[Any, tuple[Any, dict[Any, _Group]]] = {}

    def find(self, resource: Any, scope: InstrumentationScope | None) -> _Group:
        identity = (id(resource), id(scope))
        found = self._by_identity.get(identity)
        if found is None:
            group = self._find_equal(resource, scope)
            # Both are kept, so that their identities stay theirs until the batch is done.
            found = self._by_identity[identity] = (resource, scope, group)
        return found[2]

    def _find_equal(self, resource: Any, scope: InstrumentationScope | None) -> _Group:
        _, scopes = self._resources.setdefault(_hashable(resource), (resource, {}))
        key = _hashable(scope)
        group = scopes.get(key)
        if group is None:
            group = scopes[key] = _Group(scope)
        return group

    def by_resource(self) -> Iterable[tuple[Any, list[_Group]]]:
        for resource, scopes in self._resources.values():
            groups = [group for group in scopes.values() if group.spans]
            if groups:
                yield resource, groups


def _hashable(thing: Any) -> Any:
    """The thing itself, or its identity where its attributes cannot be hashed (the stock encoder raises)."""
    try:
        hash(thing)
    except Exception:
        return id(thing)
    return thing


def _remember(known: dict[int, Any], thing: Any, entry: Any) -> None:
    if len(known) >= _MAX_CACHED_RESOURCES:
        known.clear()
    known[id(thing)] = entry


def _encode_resource(resource: Resource) -> bytes:
    # A field of ResourceSpans; an attribute is a field of Resource.
    return _field(b"\x0a", _plain_attributes(_ITEM, resource.attributes, _RESOURCE_LEVEL))


def _encode_scope(scope: InstrumentationScope | None) -> bytes:
    if scope is None:
        return b"\x0a\x00"
    name: Any = scope.name
    body = b"" if name is None else _field(b"\x0a", _utf8(name))
    if scope.version is not None:
        body += _field(b"\x12", _utf8(scope.version))
    return _field(b"\x0a", body + _plain_attributes(b"\x1a", scope.attributes, _SCOPE_LEVEL))


def _plain_attributes(tag: bytes, attributes: Any, level: int) -> bytes:
    """Attributes of resources and scopes: set by the project and cleaned when they were set."""
    return b"".join(_AttributeWriter(tag, level, None).fields(attributes or {}))


def _schema_url(thing: Any) -> bytes:
    """The field of ResourceSpans or ScopeSpans; nothing when there is none."""
    url = getattr(thing, "schema_url", None)
    if not url:
        return b""
    with guard.contained("encoding a schema URL"):
        return _field(b"\x1a", _utf8(url))
    return b""


def _trace_state_field(trace_state: Any) -> bytes:
    if not trace_state:
        return b""
    return _field(_SPAN_TRACE_STATE, _utf8(",".join([f"{key}={value}" for key, value in trace_state.items()])))


# --- Values. ---


def _any_value(value: Any, level: int) -> bytes:
    """The body of an `AnyValue`, with the stock encoder's order of types.

    Errors: `ValueError` for what does not fit in 64 bits or lies too deep, `TypeError` for what has no encoding,
    `UnicodeEncodeError` for half a surrogate pair.
    """
    if value is None:
        return b""
    if isinstance(value, bool):
        return _BOOL_TRUE if value else _BOOL_FALSE
    if isinstance(value, str):
        return _field(_STRING, str.encode(value))
    if isinstance(value, int):
        number = operator.index(value)
        if not -(2**63) <= number < 2**63:
            raise ValueError("an int does not fit in 64 bits")
        # A negative number is written as its two's complement of 64 bits.
        return _INT + _varint(number & 0xFFFF_FFFF_FFFF_FFFF)
    if isinstance(value, float):
        return _DOUBLE.pack(b"\x21", value)
    if isinstance(value, bytes):
        return _field(_BYTES, bytes(value))
    if isinstance(value, Sequence):
        _check_level(level + 2 if value else level + 1)
        return _field(_ARRAY, b"".join([_field(_ITEM, _any_value(item, level + 2)) for item in value]))
    if isinstance(value, Mapping):
        _check_level(level + 3 if value else level + 1)
        items = [_field(_ITEM, _pair(str(key), _any_value(item, level + 3))) for key, item in value.items()]
        return _field(_MAPPING, b"".join(items))
    raise TypeError(f"an attribute of type {type(value).__name__} has no encoding")


def _check_level(level: int) -> None:
    if level > _MAX_LEVEL:
        raise ValueError("an attribute is nested too deep")


def _pair(key: Any, content: bytes) -> bytes:
    head = b"" if key is None else _field(_KEY, str.encode(key) if isinstance(key, str) else _utf8(key))
    return head + _field(_VALUE, content)


def _field(tag: bytes, content: bytes) -> bytes:
    length = len(content)
    return tag + (_FIRST_VARINTS[length] if length < 1024 else _varint(length)) + content


def _varint(number: int) -> bytes:
    """A number from 0 in groups of seven bits, the lowest first."""
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _count(number: int) -> bytes:
    if not 0 <= number <= _MAX_UINT32:
        raise ValueError("a count does not fit in 32 bits")
    return _varint(operator.index(number))


def _whole(number: Any) -> int:
    """A time in nanoseconds; 0 for None, as protobuf has it."""
    if number is None:
        return 0
    if isinstance(number, bool):
        raise TypeError("a time is a bool")
    return operator.index(number)


def _utf8(text: Any) -> bytes:
    """A text where one must stand. Half a surrogate pair becomes `?`. Errors: `TypeError` when it is no text."""
    if isinstance(text, str):
        try:
            return str.encode(text)
        except UnicodeEncodeError:
            return str.encode(text, errors="replace")
    if isinstance(text, bytes):
        # Protobuf takes bytes for a text when they are one.
        text.decode()
        return bytes(text)
    raise TypeError(f"a text is of type {type(text).__name__}")
