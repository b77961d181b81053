"""Fields of our spans, and the read-only public names that the SDK's spans have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationInfo, InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status

from django_otel.base.sdk_compat import SpanParts, read_list
from django_otel.tracing.attributes import EventPattern, SharedAttributes

if TYPE_CHECKING:

    class Scoped(Protocol):
        """The tracer of a span, as far as the span reads it."""

        scope: InstrumentationScope
        instrumentation_info: InstrumentationInfo


class SpanFields(SdkSpan):
    """The fields of a span of ours, and the public names of the SDK's `ReadableSpan` that read them."""

    # Named as in the SDK, for processors that reach into its spans. Slots, and no defaults in the class, so that the
    # interpreter finds each at once (200 instructions a time).
    __slots__ = (
        "_attributes", "_context", "_dropped", "_end_time", "_kept_events", "_kind", "_links", "_name", "_parent",
        "_resource", "_start_time", "_status", "_tracer", "encoded",
    )  # fmt: skip

    if TYPE_CHECKING:

        def __init__(self) -> None: ...
    else:
        #: Not the SDK's: its `__new__` refuses some, and its `__init__` builds what is not needed here.
        __new__ = object.__new__
        __init__ = object.__init__

    _attributes: dict[str, Any]
    _context: SpanContext
    _dropped: int
    _end_time: int | None
    #: A tuple of at most one, or the SDK's list; of links, an empty tuple or that list.
    _events: tuple[Event, ...] | BoundedList[Event]
    #: The same, or the pattern of a single one that is not made yet.
    _kept_events: tuple[Event, ...] | BoundedList[Event] | EventPattern
    _kind: SpanKind
    _links: tuple[()] | BoundedList[Link]
    _name: str
    _parent: SpanContext | None
    _resource: Resource
    _start_time: int
    _status: Status
    _tracer: Scoped
    #: For who writes it out, so that it is done once: who, resource and scope, what was written. Not set until then.
    encoded: tuple[object, object, object, bytes]

    def parts(self) -> SpanParts:
        """Return the contents of the ended span, read-only; as `sdk_compat.read_span` does."""
        events, links = self._events, self._links
        dropped_events = dropped_links = 0
        if type(events) is BoundedList:
            events, dropped_events = read_list(events)
        if type(links) is BoundedList:
            links, dropped_links = read_list(links)
        return (
            self._resource, self._tracer.scope, self._name, self._context, self._parent, self._kind, self._start_time,
            self._end_time, self._attributes, self._dropped, events, dropped_events, links, dropped_links, self._status,
        )  # fmt: skip

    def readable_span(self) -> ReadableSpan:
        """Return the ended span in the SDK's own form."""
        attributes: Any = self._attributes
        if type(attributes) is SharedAttributes:
            # Its receiver may change its contents.
            attributes = attributes.copy()
        if self._dropped:
            # The SDK's class carries the number of dropped ones.
            attributes = BoundedAttributes(None, attributes, True)
            attributes.dropped = self._dropped
        # By position, which is faster than keywords.
        return ReadableSpan(
            self._name, self._context, self._parent, self._resource, attributes, self._events, self._links,
            self._kind, self._tracer.instrumentation_info, self._status, self._start_time, self._end_time,
            self._tracer.scope,
        )  # fmt: skip

    #: The name that the SDK's span has for it.
    _readable_span = readable_span

    @property
    def name(self) -> str:
        return self._name

    @property
    def context(self) -> SpanContext:
        return self._context

    @property
    def parent(self) -> SpanContext | None:
        return self._parent

    @property
    def kind(self) -> SpanKind:
        return self._kind

    @property
    def start_time(self) -> int:
        return self._start_time

    @property
    def end_time(self) -> int | None:
        return self._end_time

    @property
    def status(self) -> Status:
        return self._status

    @property
    def attributes(self) -> Mapping[str, Any]:
        return MappingProxyType(self._attributes)

    @property
    def events(self) -> Sequence[Event]:
        return tuple(self._events)

    @property
    def links(self) -> Sequence[Link]:
        return tuple(self._links)

    @property
    def resource(self) -> Resource:
        return self._resource

    @property
    def dropped_attributes(self) -> int:
        return self._dropped

    @property
    def dropped_events(self) -> int:
        return getattr(self._events, "dropped", 0)

    @property
    def dropped_links(self) -> int:
        return getattr(self._links, "dropped", 0)

    @property
    def instrumentation_info(self) -> Any:
        return self._tracer.instrumentation_info

    @property
    def instrumentation_scope(self) -> InstrumentationScope:
        return self._tracer.scope

    def to_json(self, indent: int | None = 4) -> str:
        return cast(str, self.readable_span().to_json(indent))

    def __repr__(self) -> str:
        return f'{type(self).__name__}(name="{self._name}", context={self._context})'
