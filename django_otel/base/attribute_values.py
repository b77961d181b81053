"""Attribute values: any Python value turned into one that every exporter can send."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from django_otel.base import guard, proxies

AttributeValue = str | bool | int | float | list[str] | list[bool] | list[int] | list[float]
#: OTLP carries integers in 64 bits; a larger one would make its whole batch impossible to encode.
_SMALLEST_INT = -(2**63)
_LARGEST_INT = 2**63 - 1
_READY_TYPES = frozenset({bool, float})


def clean_value(value: object) -> AttributeValue | None:
    """Turn any value into one that every exporter can send; None when there is nothing to send.

    Text, booleans, integers and floats stay what they are, enumeration members
    become their value, sequences and sets become lists of one type, all else
    (Decimal, datetime, UUID, lazy text, model instances) becomes text by `str()`.
    """
    if value.__class__ is not type(value):
        value = proxies.resolve(value)
    if value is None:
        return None
    if isinstance(value, list | tuple | set | frozenset):
        return _clean_items([_clean_scalar(item) for item in value if item is not None])
    return _clean_scalar(value)


def clean_attributes(attributes: Mapping[str, object]) -> dict[str, AttributeValue]:
    """Clean every attribute; those whose value is None are left out."""
    cleaned = {}
    for key, value in attributes.items():
        # One by one: a value that cannot be read does not cost the others.
        with guard.contained("the cleaning of an attribute"):
            kept = clean_value(value)
            if kept is not None:
                cleaned[clean_text(key)] = kept
    return cleaned


def _clean_scalar(value: object) -> str | bool | int | float:
    if value.__class__ is not type(value):
        value = proxies.resolve(value)
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if _SMALLEST_INT <= value <= _LARGEST_INT else clean_text(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, dict) and any(item.__class__ is not type(item) for item in value.values()):
        value = {key: proxies.resolve(item) for key, item in value.items()}
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "replace")
    return clean_text(value)


def _clean_items(items: list[str | bool | int | float]) -> AttributeValue:
    kinds = {item.__class__ for item in items}
    if kinds == {int, float}:
        return [float(item) for item in items]
    if len(kinds) > 1:
        # OpenTelemetry's arrays hold one type.
        return [clean_text(item) for item in items]
    return items  # type: ignore[return-value]


def clean_text(value: object) -> str:
    try:
        # str.__str__ makes a plain str of a subclass such as SafeString.
        # A lazy object claims to be a text, and is none.
        text = str.__str__(value if issubclass(type(value), str) else str(value))
        if not text.isascii():
            text.encode("utf-8")
    except UnicodeEncodeError:
        # A lone surrogate: an exporter could not encode the batch.
        return text.encode("utf-8", "replace").decode("utf-8")
    except Exception as error:
        # A __str__ that raises, for example on a query where none is allowed.
        guard.report(f"str() of an attribute of type {type(value).__name__}", error)
        return f"<{type(value).__name__}>"
    return text


def is_ready(value: object) -> bool:
    """Return whether a value needs no cleaning, so that also samplers may look at it."""
    # Not `__class__`: a lazy object claims to be of the type that it makes, and is asked later.
    kind = type(value)
    if kind is str:
        return value.isascii()  # type: ignore[attr-defined, no-any-return]
    if kind is int:
        return _SMALLEST_INT <= value <= _LARGEST_INT  # type: ignore[operator]
    return kind in _READY_TYPES
