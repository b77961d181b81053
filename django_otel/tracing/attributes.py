"""Attributes of spans: cleaned as the SDK does, within their limits, shared where many spans have the same."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits
from opentelemetry.trace import Link

from django_otel.base import guard, proxies
from django_otel.base.sdk_compat import rebuild_span
from django_otel.redaction.cutting import cut_attributes, cut_stack, has_long_text
from django_otel.tracing.exceptions import MAX_STACK, STACK

if TYPE_CHECKING:
    from opentelemetry.util.types import Attributes

_attributes_logger = logging.getLogger("opentelemetry.attributes")
_PLAIN = frozenset({str, int, bool, float})
_TEXT = frozenset({str})
#: The class of Django's lazy texts, which claim no other class.
_LAZY_TEXT = "__proxy__"


class SharedAttributes(dict[str, Any]):
    """Attributes of many spans, such as those of one query, which are never changed: a span with more takes a copy."""

    #: For who writes them out, so that it is done once: who, and what was written.
    __slots__ = ("encoded",)

    def __init__(self, attributes: Mapping[str, object]) -> None:
        super().__init__(attributes)
        self.encoded: tuple[object, bytes] | None = None


def clean(
    attributes: Mapping[str, Any], longest: int | None, most: int | None, scrub: Callable[[str], str]
) -> tuple[Mapping[str, object], int]:
    """The attributes with every value as OpenTelemetry has it, and how many were dropped.

    Nearly all are plain already, which their exact types show; the SDK's own class
    cleans anything else, at a higher cost.
    """
    # The types are compared without a step of the interpreter for each.
    if (
        _PLAIN.issuperset(map(type, attributes.values()))
        and _TEXT.issuperset(map(type, attributes))
        and "" not in attributes
    ):
        if longest is None:
            return attributes, 0
        for value in attributes.values():
            if type(value) is str and len(value) > longest:
                break
        else:
            return attributes, 0
    else:
        attributes = resolve_all(attributes)
    # With a limit of none the SDK does not even look at them. Cut afterwards: it makes texts of objects, too.
    bounded = _build_bounded(None if most else most, attributes, is_fixed=False)
    return cut_attributes(dict(bounded), longest, scrub) or {}, bounded.dropped


def _build_bounded(most: int | None, attributes: Attributes, *, is_fixed: bool = True) -> BoundedAttributes:
    """Return the SDK's container of attributes, without those that it cannot take, as a list that contains itself."""
    try:
        return BoundedAttributes(most, attributes, is_fixed)
    except Exception as error:
        guard.report("the attributes of a span", error)
    kept: dict[str, Any] = {}
    for key, value in (attributes or {}).items():
        try:
            BoundedAttributes(None, {key: value})
        except Exception as error:
            guard.pass_on(error)
        else:
            kept[key] = value
    return BoundedAttributes(most, kept, is_fixed)


def resolve(value: object) -> Any:
    """The value behind a proxy, also in a sequence; the SDK would keep a lazy text, and no exporter can send it."""
    if type(value) in _PLAIN:
        return value
    if type(value) is list or type(value) is tuple:
        return [resolve(item) for item in value] if any(map(_is_lazy, value)) else value
    with guard.contained("a lazy attribute of a span"):
        # To ask for its class evaluates a lazy one.
        if value.__class__ is type(value):
            return plain_name(value) if type(value).__name__ == _LAZY_TEXT else value
        return proxies.resolve(value)
    return f"<{type(value).__name__}>"


def resolve_all(attributes: Mapping[str, object]) -> Mapping[str, Any]:
    """The attributes without proxies, as keys, as values and in sequences; the same object when there is none."""
    found = {plain_name(key) if _is_lazy(key) else key: resolve(value) for key, value in attributes.items()}
    changed = any(map(_is_lazy, attributes)) or any(found[key] is not value for key, value in attributes.items())
    return found if changed else attributes


def _is_lazy(value: object) -> bool:
    try:
        return value.__class__ is not type(value) or type(value).__name__ == _LAZY_TEXT
    except Exception as error:
        guard.pass_on(error)
        # A lazy one that fails; `resolve` reports it.
        return True


def plain_name(name: object) -> str:
    """Return the name of a span as text; lazy texts and other values are evaluated now."""
    with guard.contained("a lazy name of a span"):
        return str.__str__(name) if issubclass(type(name), str) else str(name)
    return f"<{type(name).__name__}>"


def bound_event(attributes: Attributes, limits: SpanLimits, scrub: Callable[[str], str]) -> BoundedAttributes:
    """Return the attributes of an event within their limits, long ones redacted before; a stack has its own limit."""
    longest = limits.max_attribute_length
    if attributes:
        attributes = resolve_all(attributes)
    stack = attributes.get(STACK) if attributes else None
    if attributes is None or type(stack) is not str or longest is None or len(stack) <= longest:
        return _bound(attributes, limits.max_event_attributes, longest, scrub)
    # In its place already short, so that nothing is done about it; then in whole.
    bounded = _bound({**attributes, STACK: ""}, limits.max_event_attributes, longest, scrub)
    if STACK not in bounded:
        return bounded
    return _replace(bounded, {**bounded, STACK: cut_stack(stack, MAX_STACK, scrub)})


class EventPattern:
    """Events at the end of spans, that come often and differ in one number: brought within the limits once."""

    __slots__ = ("_bounded", "_limits", "given", "key", "name")

    def __init__(self, name: str, given: Mapping[str, Any], key: str) -> None:
        self.name = name
        self.given = given
        #: The attribute that is the number.
        self.key = key
        self._limits: SpanLimits | None = None
        self._bounded: Mapping[str, Any] = {}

    def make(self, number: int, time_ns: int, limits: SpanLimits, scrub: Callable[[str], str]) -> Event:
        """Return the event with that number and time, its attributes as `bound_event` makes them."""
        if limits is not self._limits:
            self._bounded = dict(bound_event(self.given, limits, scrub))
            self._limits = limits
        attributes = dict(self._bounded)
        if self.key in attributes:
            attributes[self.key] = number
        return Event(self.name, attributes, time_ns)


def bound_link(attributes: Attributes, limits: SpanLimits, scrub: Callable[[str], str]) -> BoundedAttributes:
    """Return the attributes of a link within their limits, long ones redacted before they are cut."""
    if attributes:
        attributes = resolve_all(attributes)
    return _bound(attributes, limits.max_link_attributes, limits.max_attribute_length, scrub)


def _bound(
    attributes: Attributes, most: int | None, longest: int | None, scrub: Callable[[str], str]
) -> BoundedAttributes:
    bounded = _build_bounded(most, attributes)
    cut = cut_attributes(bounded, longest, scrub)
    return bounded if cut is bounded or cut is None else _replace(bounded, cut)


def _replace(bounded: BoundedAttributes, values: Mapping[str, Any]) -> BoundedAttributes:
    """Return the same container with other values under the same keys."""
    replaced = BoundedAttributes(bounded.maxlen, values)
    replaced.dropped = bounded.dropped
    return replaced


def cut_span(span: ReadableSpan, limits: SpanLimits, scrub: Callable[[str], str]) -> ReadableSpan:
    """Return a finished span that the SDK has made, with its long texts redacted and cut; itself when it has none."""
    given, given_events, given_links = span.attributes, span.events, span.links
    attributes = cut_attributes(given, limits.max_span_attribute_length, scrub)
    events = [_cut_event(event, limits, scrub) for event in given_events]
    links = [_cut_link(link, limits, scrub) for link in given_links]
    is_same = all(map(operator.is_, (*events, *links), (*given_events, *given_links)))
    if attributes is given and is_same:
        return span
    return rebuild_span(span, attributes or {}, span.context, events=events, links=links)


def _cut_event(event: Event, limits: SpanLimits, scrub: Callable[[str], str]) -> Event:
    given = event.attributes
    if not given or not has_long_text(given, limits.max_attribute_length):
        return event
    bounded = bound_event(dict(given), limits, scrub)
    bounded.dropped = event.dropped_attributes
    return Event(event.name, bounded, event.timestamp)


def _cut_link(link: Link, limits: SpanLimits, scrub: Callable[[str], str]) -> Link:
    given = link.attributes
    if not given or not has_long_text(given, limits.max_attribute_length):
        return link
    bounded = bound_link(given, limits, scrub)
    bounded.dropped = link.dropped_attributes
    return Link(link.context, bounded)


def are_ready(attributes: Mapping[str, Any], limits: SpanLimits) -> bool:
    """Return whether a span would keep these attributes just as they are; then it need not look at them again."""
    longest, most = limits.max_span_attribute_length, limits.max_span_attributes
    return (most is None or len(attributes) <= most) and clean(attributes, longest, most, str)[0] is attributes


def store(kept: dict[str, object], cleaned: Mapping[str, object], most: int | None) -> int:
    """Add attributes to the kept ones; beyond `most` the oldest go. How many went."""
    if (most is None or len(kept) + len(cleaned) <= most) and kept.keys().isdisjoint(cleaned):
        # Mostly all are new, and there is room for them: no loop is needed.
        kept.update(cleaned)
        return 0
    dropped = 0
    for key, value in cleaned.items():
        if key in kept:
            # Set again is set last, as in the SDK.
            del kept[key]
        elif most is not None and len(kept) >= most:
            if not most:
                dropped += 1
                continue
            del kept[next(iter(kept))]
            dropped += 1
        kept[key] = value
    return dropped


def warn_full(times: int, most: int | None) -> None:
    # A limit of 0 is intended, and the SDK logs nothing then.
    for _ in range(times if most else 0):
        _attributes_logger.warning(
            "Attributes dict is full. Dropping the oldest key-value pair from attributes to make space for the new "
            "key-value pair."
        )


def is_valid_link(context: Any, attributes: object) -> bool:
    return bool(context and (context.is_valid or attributes or context.trace_state))
