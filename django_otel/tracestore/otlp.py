"""Reads spans out of the bytes of an OTLP `TracesData`, in the form the pages use.

Without protobuf, which is installed only with an OTLP exporter. Unknown fields
are skipped, so that spans of newer senders can be read.

Source: opentelemetry-proto 1.x, trace.proto, common.proto, resource.proto; protobuf's wire format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, TypedDict

_KINDS = ("INTERNAL", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_STATUSES = ("", "OK", "ERROR")
#: Deeper values are left out, as protobuf's own parsers refuse them.
_DEEPEST = 100
#: `Span.flags`: whether the parent is remote is known, and that it is.
_IS_REMOTE = 0x300


class EventRecord(TypedDict):
    """An event of a span."""

    name: str
    time: int
    attributes: dict[str, object]


class LinkRecord(TypedDict):
    """A link of a span: ids in hexadecimal digits."""

    trace: str
    span: str
    attributes: dict[str, object]


class _Optional(TypedDict, total=False):
    parent: str
    events: list[EventRecord]
    links: list[LinkRecord]
    lost: int
    entry: bool
    status: str
    description: str
    service: str
    instance: str
    release: str
    scope: str


class SpanRecord(_Optional):
    """A span as the pages use it: ids in hexadecimal digits, times in nanoseconds since the Unix epoch."""

    id: str
    name: str
    kind: str
    start: int
    end: int
    attributes: dict[str, object]


def decode(data: bytes, own_scope: str) -> list[SpanRecord]:
    """The spans of a `TracesData`. `own_scope` is the scope that is not worth a mention.

    Errors: `ValueError` for anything else.
    """
    try:
        return _decode(data, own_scope)
    except (IndexError, TypeError, AttributeError, OverflowError) as error:
        # It ends early, or a field is of another type.
        raise ValueError("not a TracesData message") from error


def _decode(data: bytes, own_scope: str) -> list[SpanRecord]:
    spans: list[SpanRecord] = []
    for number, resource_spans in fields_of(data):
        if number != 1:
            continue
        resource: dict[str, object] = {}
        groups = []
        for field, value in fields_of(resource_spans):
            if field == 1:
                resource = _attributes(value, 1)
            elif field == 2:
                groups.append(value)
        service = str(resource.get("service.name", ""))
        instance = str(resource.get("service.instance.id", ""))
        release = str(resource.get("service.version", ""))
        for group in groups:
            begin = len(spans)
            _decode_scope(group, service, instance, own_scope, spans)
            if release:
                for span in spans[begin:]:
                    span["release"] = release
    return spans


def _decode_scope(data: memoryview, service: str, instance: str, own_scope: str, spans: list[SpanRecord]) -> None:
    scope = ""
    bodies = []
    for field, value in fields_of(data):
        if field == 1:
            parts = {number: _text(text) for number, text in fields_of(value) if number in (1, 2)}
            if parts.get(1, "") != own_scope:
                scope = f"{parts.get(1, '')} {parts.get(2, '')}".strip()
        elif field == 2:
            bodies.append(value)
    for body in bodies:
        span = _decode_span(body)
        span["service"], span["instance"] = service, instance
        if scope:
            span["scope"] = scope
        spans.append(span)


def _decode_span(data: memoryview) -> SpanRecord:  # noqa: C901 (one decision after the other, each with its reason)
    attributes: dict[str, object] = {}
    events: list[EventRecord] = []
    links: list[LinkRecord] = []
    span: SpanRecord = {"id": "", "name": "", "kind": "INTERNAL", "start": 0, "end": 0, "attributes": attributes}
    lost = flags = 0
    for field, value in fields_of(data):
        if field == 9:
            key, content = _pair(value)
            attributes[key] = content
        elif field == 2:
            span["id"] = value.hex()
        elif field == 4:
            if value:
                span["parent"] = value.hex()
        elif field == 5:
            span["name"] = _text(value)
        elif field == 6:
            span["kind"] = _KINDS[value] if value < len(_KINDS) else "INTERNAL"
        elif field == 7:
            span["start"] = value
        elif field == 8:
            span["end"] = value
        elif field == 11:
            events.append(_decode_event(value))
        elif field == 13:
            links.append(_decode_link(value))
        elif field in (10, 12, 14):
            lost += value
        elif field == 15:
            _decode_status(value, span)
        elif field == 16:
            flags = value
    if events:
        span["events"] = events
    if links:
        span["links"] = links
    if lost:
        span["lost"] = lost
    if "parent" in span and (flags & _IS_REMOTE == _IS_REMOTE or span["kind"] in ("SERVER", "CONSUMER")):
        span["entry"] = True
    return span


def _decode_event(data: memoryview) -> EventRecord:
    attributes: dict[str, object] = {}
    event: EventRecord = {"name": "", "time": 0, "attributes": attributes}
    for field, value in fields_of(data):
        if field == 1:
            event["time"] = value
        elif field == 2:
            event["name"] = _text(value)
        elif field == 3:
            key, content = _pair(value)
            attributes[key] = content
    return event


def _decode_link(data: memoryview) -> LinkRecord:
    attributes: dict[str, object] = {}
    link: LinkRecord = {"trace": "", "span": "", "attributes": attributes}
    for field, value in fields_of(data):
        if field == 1:
            link["trace"] = value.hex()
        elif field == 2:
            link["span"] = value.hex()
        elif field == 4:
            key, content = _pair(value)
            attributes[key] = content
    return link


def _decode_status(data: memoryview, span: SpanRecord) -> None:
    for field, value in fields_of(data):
        if field == 2:
            span["description"] = _text(value)
        elif field == 3 and 0 < value < len(_STATUSES):
            span["status"] = _STATUSES[value]


def _attributes(data: memoryview, wanted: int) -> dict[str, object]:
    return dict(_pair(value) for field, value in fields_of(data) if field == wanted)


def _pair(data: memoryview, depth: int = 0) -> tuple[str, object]:
    key = ""
    content: object = None
    for field, value in fields_of(data):
        if field == 1:
            key = _text(value)
        elif field == 2:
            content = _any_value(value, depth)
    return key, content


def _any_value(data: memoryview, depth: int) -> object:
    if depth > _DEEPEST:
        return None
    for field, value in fields_of(data):
        if field == 1:
            return _text(value)
        if field == 2:
            return bool(value)
        if field == 3:
            return value - 2**64 if value >= 2**63 else value
        if field == 4:
            return struct.unpack("<d", value.to_bytes(8, "little"))[0]
        if field == 5:
            return [_any_value(item, depth + 1) for number, item in fields_of(value) if number == 1]
        if field == 6:
            return dict(_pair(item, depth + 1) for number, item in fields_of(value) if number == 1)
        if field == 7:
            return value.hex()
    return None


def _text(data: memoryview) -> str:
    return str(data, "utf-8", "replace")


def fields_of(data: bytes | memoryview) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field: an int, or bytes for a length-delimited one."""
    view = memoryview(data)
    position, end = 0, len(view)
    while position < end:
        tag = view[position]
        position += 1
        if tag > 127:
            tag, position = _varint(view, position, tag)
        wire_type = tag & 7
        if wire_type == 2:
            length = view[position]
            position += 1
            if length > 127:
                length, position = _varint(view, position, length)
            if position + length > end:
                raise ValueError("a field ends beyond its message")
            yield tag >> 3, view[position : position + length]
            position += length
        elif wire_type == 0:
            number = view[position]
            position += 1
            if number > 127:
                number, position = _varint(view, position, number)
            yield tag >> 3, number
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
            if position + size > end:
                raise ValueError("a field ends beyond its message")
            yield tag >> 3, int.from_bytes(view[position : position + size], "little")
            position += size
        else:
            raise ValueError(f"wire type {wire_type} is unknown")


def _varint(view: memoryview, position: int, first: int) -> tuple[int, int]:
    """The number that goes on at `position`, and where it ends."""
    number = first & 127
    for shift in range(7, 70, 7):
        part = view[position]
        position += 1
        number |= (part & 127) << shift
        if part < 128:
            return number & 0xFFFF_FFFF_FFFF_FFFF, position
    raise ValueError("a number is longer than 64 bits")
