"""Converts OTLP messages between protobuf bytes and OTLP/JSON objects.

Driven by one table of messages, without protobuf, which is installed only with an OTLP exporter. Unknown fields are
left out.

Source: opentelemetry-proto 1.x, trace.proto, logs.proto, common.proto, resource.proto; OTLP specification,
"JSON Protobuf Encoding" (ids in hexadecimal digits, 64-bit numbers as text, enumerations as numbers).
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Mapping
from typing import Any

from django_otel.export.wire import write_field, write_varint
from django_otel.tracestore.otlp import fields_of

#: A message: by the number of a field its JSON name, its type, and whether it is repeated.
Message = dict[int, tuple[str, Any, bool]]

#: Protobuf's own parsers refuse deeper messages.
_DEEPEST = 100

_VALUE: Message = {
    1: ("stringValue", "text", False), 2: ("boolValue", "bool", False), 3: ("intValue", "int64", False),
    4: ("doubleValue", "double", False), 7: ("bytesValue", "base64", False),
}  # fmt: skip
_PAIR: Message = {1: ("key", "text", False), 2: ("value", _VALUE, False)}
_VALUE[5] = ("arrayValue", {1: ("values", _VALUE, True)}, False)
_VALUE[6] = ("kvlistValue", {1: ("values", _PAIR, True)}, False)
_RESOURCE: Message = {1: ("attributes", _PAIR, True), 2: ("droppedAttributesCount", "number", False)}
_SCOPE: Message = {
    1: ("name", "text", False), 2: ("version", "text", False), 3: ("attributes", _PAIR, True),
    4: ("droppedAttributesCount", "number", False),
}  # fmt: skip
_EVENT: Message = {
    1: ("timeUnixNano", "fixed64", False), 2: ("name", "text", False), 3: ("attributes", _PAIR, True),
    4: ("droppedAttributesCount", "number", False),
}  # fmt: skip
_LINK: Message = {
    1: ("traceId", "hex", False), 2: ("spanId", "hex", False), 3: ("traceState", "text", False),
    4: ("attributes", _PAIR, True), 5: ("droppedAttributesCount", "number", False), 6: ("flags", "fixed32", False),
}  # fmt: skip
_STATUS: Message = {2: ("message", "text", False), 3: ("code", "number", False)}
_SPAN: Message = {
    1: ("traceId", "hex", False), 2: ("spanId", "hex", False), 3: ("traceState", "text", False),
    4: ("parentSpanId", "hex", False), 5: ("name", "text", False), 6: ("kind", "number", False),
    7: ("startTimeUnixNano", "fixed64", False), 8: ("endTimeUnixNano", "fixed64", False),
    9: ("attributes", _PAIR, True), 10: ("droppedAttributesCount", "number", False), 11: ("events", _EVENT, True),
    12: ("droppedEventsCount", "number", False), 13: ("links", _LINK, True),
    14: ("droppedLinksCount", "number", False), 15: ("status", _STATUS, False), 16: ("flags", "fixed32", False),
}  # fmt: skip
_LOG: Message = {
    1: ("timeUnixNano", "fixed64", False), 2: ("severityNumber", "number", False), 3: ("severityText", "text", False),
    5: ("body", _VALUE, False), 6: ("attributes", _PAIR, True), 7: ("droppedAttributesCount", "number", False),
    8: ("flags", "fixed32", False), 9: ("traceId", "hex", False), 10: ("spanId", "hex", False),
    11: ("observedTimeUnixNano", "fixed64", False), 12: ("eventName", "text", False),
}  # fmt: skip


def _of_resources(all_name: str, scope_name: str, item_name: str, item: Message) -> Message:
    scope: Message = {
        1: ("scope", _SCOPE, False), 2: (item_name, item, True), 3: ("schemaUrl", "text", False),
    }  # fmt: skip
    resource: Message = {
        1: ("resource", _RESOURCE, False), 2: (scope_name, scope, True), 3: ("schemaUrl", "text", False),
    }  # fmt: skip
    return {1: (all_name, resource, True)}


#: `TracesData` and `LogsData`, which equal the requests of OTLP's exporters.
TRACES = _of_resources("resourceSpans", "scopeSpans", "spans", _SPAN)
LOGS = _of_resources("resourceLogs", "scopeLogs", "logRecords", _LOG)


def to_json(data: bytes, message: Message) -> dict[str, Any]:
    """Return the bytes of a message as the object of OTLP/JSON. Errors: `ValueError` for other bytes."""
    try:
        return _read(data, message, 0)
    except (IndexError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise ValueError("not an OTLP message of this kind") from error


def from_json(content: object, message: Message) -> bytes:
    """Return an object of OTLP/JSON as the bytes of its message. Errors: `ValueError` for other objects."""
    try:
        return _write(content, message, 0)
    except (TypeError, AttributeError, OverflowError, struct.error, UnicodeEncodeError) as error:
        raise ValueError("not an OTLP message of this kind") from error


def _read(data: bytes | memoryview, message: Message, depth: int) -> dict[str, Any]:
    if depth > _DEEPEST:
        raise ValueError("messages are nested too deep")
    found: dict[str, Any] = {}
    for number, raw in fields_of(data):
        field = message.get(number)
        if field is None:
            continue
        name, kind, is_repeated = field
        value = _read(raw, kind, depth + 1) if isinstance(kind, dict) else _READERS[kind](raw)
        if is_repeated:
            found.setdefault(name, []).append(value)
        else:
            found[name] = value
    return found


def _write(content: Any, message: Message, depth: int) -> bytes:
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        raise ValueError("expected an object that is not nested too deep")
    parts: list[bytes] = []
    for number, (name, kind, is_repeated) in sorted(message.items()):
        value = content.get(name)
        if value is None:
            continue
        if is_repeated and not isinstance(value, list):
            raise ValueError(f"expected a list as {name}")
        for item in value if is_repeated else (value,):
            if isinstance(kind, dict):
                parts.append(write_field(_tag(number, 2), _write(item, kind, depth + 1)))
            else:
                wire_type, write = _WRITERS[kind]
                parts.append(_tag(number, wire_type) + write(item))
    return b"".join(parts)


def _tag(number: int, wire_type: int) -> bytes:
    return write_varint(number << 3 | wire_type)


def _signed(raw: int) -> str:
    return str(raw - 2**64 if raw >= 2**63 else raw)


def _read_double(raw: int) -> float | str:
    number: float = struct.unpack("<d", raw.to_bytes(8, "little"))[0]
    # JSON has none of these; protobuf writes them as text.
    return number if number - number == 0 else {"nan": "NaN", "inf": "Infinity"}.get(str(number), "-Infinity")


def _whole(value: Any, bits: int, lowest: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("expected a whole number")
    number = int(value)
    if not lowest <= number < 2**bits:
        raise ValueError("a number is out of range")
    return number


def _text(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError("expected a string")
    encoded = value.encode("utf-8", "replace")
    return write_varint(len(encoded)) + encoded


def _hex(value: Any) -> bytes:
    data = bytes.fromhex(value)
    return write_varint(len(data)) + data


def _base64(value: Any) -> bytes:
    data = base64.b64decode(value, validate=True)
    return write_varint(len(data)) + data


_READERS: dict[str, Callable[[Any], Any]] = {
    "text": lambda raw: str(raw, "utf-8", "replace"),
    "hex": lambda raw: raw.hex(),
    "base64": lambda raw: base64.b64encode(raw).decode(),
    "bool": bool,
    "number": int,
    "int64": _signed,
    "fixed32": int,
    "fixed64": str,
    "double": _read_double,
}
_WRITERS: dict[str, tuple[int, Callable[[Any], bytes]]] = {
    "text": (2, _text),
    "hex": (2, _hex),
    "base64": (2, _base64),
    "bool": (0, lambda value: b"\x01" if value is True or value == "true" else b"\x00"),
    "number": (0, lambda value: write_varint(_whole(value, 32))),
    "int64": (0, lambda value: write_varint(_whole(value, 63, -(2**63)) & 0xFFFF_FFFF_FFFF_FFFF)),
    "fixed32": (5, lambda value: struct.pack("<I", _whole(value, 32))),
    "fixed64": (1, lambda value: struct.pack("<Q", _whole(value, 64))),
    "double": (1, lambda value: struct.pack("<d", float(value))),
}
