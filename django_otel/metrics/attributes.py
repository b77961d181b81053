"""Attributes of series: cleaned, cut, and compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django_otel.base import guard, proxies
from django_otel.base.attribute_values import clean_text, clean_value, is_ready
from django_otel.metrics.model import Attributes, AttributeValue


def build_attributes(attributes: Mapping[str, object]) -> Attributes:
    """Sort and clean attributes: values keep their type where OpenTelemetry has it, others become text."""
    return tuple(
        sorted(
            ((key if type(key) is str else clean_text(key), _clean(value)) for key, value in attributes.items()),
            key=_by_key,
        )
    )


def _by_key(item: tuple[str, AttributeValue]) -> str:
    return item[0]


def _clean(value: object) -> AttributeValue:
    if is_ready(value):
        return value  # type: ignore[return-value]
    try:
        value = proxies.resolve(value)
        if isinstance(value, list | tuple):
            return tuple([clean_text(item) if isinstance(item, list | tuple) else _clean_item(item) for item in value])
        found = clean_value(value)
    except Exception as error:
        # A lazy value that raises, for example on a query where none is allowed.
        guard.report(f"an attribute of type {type(value).__name__}", error)
        return f"<{type(value).__name__}>"
    if found is None:
        return "None"
    return tuple(found) if isinstance(found, list) else found


def _clean_item(item: object) -> str | bool | int | float:
    cleaned = _clean(item)
    return cleaned if isinstance(cleaned, str | bool | int | float) else str(cleaned)


def _cut(value: AttributeValue, length: int) -> AttributeValue:
    """Return `value` with at most `length` characters of text, over all items of a list; itself where that fits."""
    if isinstance(value, str):
        return value if len(value) <= length else value[:length]
    if not isinstance(value, tuple):
        return value
    kept: list[Any] = []
    left = length
    for item in value:
        if left <= 0:
            break
        kept.append(item[:left] if isinstance(item, str) else item)
        # With quotes and comma, as the page shows a list.
        left -= len(item) + 3 if isinstance(item, str) else 8
    found = tuple(kept)
    return value if found == value else found


def cut(attributes: Attributes, length: int) -> Attributes:
    """Return the attributes with names and texts of at most `length` characters; the same object where all fit."""
    found = tuple([(key, _cut(value, length)) for key, value in attributes])
    if all(new[1] is old[1] and len(new[0]) <= length for new, old in zip(found, attributes, strict=True)):
        return attributes
    # A page with one label twice would be none: of two names that are equal then, the last is kept.
    return tuple({key[:length]: value for key, value in found}.items())


def identity(attributes: Attributes) -> object:
    # 1, 1.0 and True are equal in Python and different labels in Prometheus.
    # Of a list, which is faster than a generator.
    return tuple([(key, value.__class__, value) for key, value in attributes])
