"""The wire format of protobuf: numbers, texts and the values of attributes as bytes.

Source: protobuf's wire format; opentelemetry-proto 1.x, common.proto.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Mapping, Sequence
from typing import Any

# A field's tag is its number times 8 plus its wire type: 0 varint, 1 fixed 64 bits, 2 with a length, 5 fixed 32 bits.
# Fields 1 and 2 with a length: key and value of a pair, an item of a list.
KEY = b"\x0a"
VALUE = b"\x12"
ITEM = b"\x0a"
# The fields of an AnyValue.
STRING = b"\x0a"
FLOAT = b"\x21"
_BOOL_FALSE = b"\x10\x00"
_BOOL_TRUE = b"\x10\x01"
_INT = b"\x18"
_ARRAY = b"\x2a"
_MAPPING = b"\x32"
_BYTES = b"\x3a"
#: "<": without padding.
_DOUBLE = struct.Struct("<cd")

_MAX_UINT32 = 2**32 - 1
#: How deep messages may lie within a request before protobuf's parsers refuse all of it.
_MAX_LEVEL = 100

#: The numbers below 1024 as `write_varint` has them, for those who save the call.
FIRST_VARINTS = tuple(
    bytes((number,)) if number < 128 else bytes((number & 127 | 128, number >> 7)) for number in range(1024)
)


def write_value(value: Any, level: int) -> bytes:
    """Return the body of an `AnyValue`, with the stock encoder's order of types.

    Errors: `ValueError` for what does not fit in 64 bits or lies too deep, `TypeError` for what has no encoding,
    `UnicodeEncodeError` for half a surrogate pair.
    """
    if value is None:
        return b""
    if isinstance(value, bool):
        return _BOOL_TRUE if value else _BOOL_FALSE
    if isinstance(value, str):
        return write_field(STRING, str.encode(value))
    if isinstance(value, int):
        number = operator.index(value)
        if not -(2**63) <= number < 2**63:
            raise ValueError("an int does not fit in 64 bits")
        # A negative number is written as its two's complement of 64 bits.
        return _INT + write_varint(number & 0xFFFF_FFFF_FFFF_FFFF)
    if isinstance(value, float):
        return _DOUBLE.pack(FLOAT, value)
    if isinstance(value, bytes):
        return write_field(_BYTES, bytes(value))
    if isinstance(value, Sequence):
        _check_level(level + 2 if value else level + 1)
        return write_field(_ARRAY, b"".join([write_field(ITEM, write_value(item, level + 2)) for item in value]))
    if isinstance(value, Mapping):
        _check_level(level + 3 if value else level + 1)
        items = [write_field(ITEM, write_pair(str(key), write_value(item, level + 3))) for key, item in value.items()]
        return write_field(_MAPPING, b"".join(items))
    raise TypeError(f"an attribute of type {type(value).__name__} has no encoding")


def _check_level(level: int) -> None:
    if level > _MAX_LEVEL:
        raise ValueError("an attribute is nested too deep")


def write_pair(key: Any, content: bytes) -> bytes:
    """Return the body of a `KeyValue`; `content` is that of its value."""
    head = b"" if key is None else write_field(KEY, str.encode(key) if isinstance(key, str) else to_utf8(key))
    return head + write_field(VALUE, content)


def write_field(tag: bytes, content: bytes) -> bytes:
    """Return a field with a length: its tag, the length, and `content`."""
    length = len(content)
    return tag + (FIRST_VARINTS[length] if length < 1024 else write_varint(length)) + content


def write_varint(number: int) -> bytes:
    """Return a number from 0 in groups of seven bits, the lowest first."""
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def write_count(number: int) -> bytes:
    """Return a number of things. Errors: `ValueError` when it does not fit in 32 bits."""
    if not 0 <= number <= _MAX_UINT32:
        raise ValueError("a count does not fit in 32 bits")
    return write_varint(operator.index(number))


def to_whole(number: Any) -> int:
    """Return a time in nanoseconds; 0 for None, as protobuf has it."""
    if number is None:
        return 0
    if isinstance(number, bool):
        raise TypeError("a time is a bool")
    return operator.index(number)


def to_utf8(text: Any) -> bytes:
    """Return the bytes of a text where one must stand; half a surrogate pair becomes `?`.

    Errors: `TypeError` when it is not a string.
    """
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
