"""Our own spans: what the SDK's are, at a seventh of their cost.

`RecordedSpan` is a span under way. Span processors get it at its start, where
they can read and change it as they can the SDK's, and at its end the SDK's own
`ReadableSpan`, made of what it holds. `DroppedSpan` records nothing and draws
its ids only when somebody asks for them. `Tracer` makes both for everybody who
asks our `OwnTracerProvider` for one: the request path, the database layer,
`django_otel.span` and every other instrumentor.

Where something of the SDK is not as this module knows it, or asks for more than
it does (`OwnTracerProvider.refresh`), the SDK's own tracer makes the spans: the
plain API path. `tests/test_equivalence.py` compares the two.

What the SDK's span spends its time on and ours does not: a lock and a dict class
of its own per span, event list and link list (here a dict, and lists when the
first event or link comes), cleaning every value by six `isinstance` tests (here
by its exact type, everything else goes to the SDK's own class), and a sampler,
context and parent found out by way of abstract base classes.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from time import time_ns
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, cast

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context, get_current
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, SpanProcessor
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from django_otel.base import guard, proxies, sdk_compat
from django_otel.base.sdk_compat import SPAN_KEY, SpanParts, build_child_context, build_root_context, read_list
from django_otel.redaction.cutting import cut_attributes, cut_stack, cut_value
from django_otel.redaction.scrub import Scrubber
from django_otel.sampling.sampler import LiveSampler
from django_otel.tracing.exceptions import MAX_STACK, STACK, recording
from django_otel.tracing.ids import OwnRandomIdGenerator

if TYPE_CHECKING:
    from opentelemetry.util.types import Attributes, AttributeValue

#: The SDK's own, so that its warnings are found, and silenced, in one place.
_logger = logging.getLogger("opentelemetry.sdk.trace")
_attributes_logger = logging.getLogger("opentelemetry.attributes")
_UNSET = Status(StatusCode.UNSET)
_PLAIN = frozenset({str, int, bool, float})
_TEXT = frozenset({str})
#: The SDK marks ids that it draws as random, from a certain version on.
_RANDOM = getattr(TraceFlags, "RANDOM_TRACE_ID", 0)
_ROOT_SAMPLED = TraceFlags(TraceFlags.SAMPLED | _RANDOM)
_ROOT_UNSAMPLED = TraceFlags(_RANDOM)
_MAX_TRACERS = 1000


#: How many spans of a trace this process did not record, on the span that began it here.
SPANS_DROPPED = "django_otel.spans.dropped"


class Shared:
    """What all tracers and spans of a provider share; its attributes change with the settings."""

    __slots__ = (
        "enders", "ids", "is_plain", "limits", "resource", "sampler", "scrub", "starters", "takers", "withdrawers",
    )  # fmt: skip

    def __init__(
        self,
        sampler: LiveSampler,
        ids: OwnRandomIdGenerator,
        limits: SpanLimits,
        resource: Resource,
        scrub: Callable[[str], str] | None = None,
    ) -> None:
        #: Redacts a text that is about to be cut.
        self.scrub = scrub or Scrubber().text
        self.sampler = sampler
        self.ids = ids
        self.limits = limits
        self.resource = resource
        #: `on_start` and `on_end` of the processors that have one, and `take` of those that are a `Taker`.
        self.starters: tuple[Any, ...] = ()
        self.enders: tuple[Any, ...] = ()
        self.takers: tuple[Any, ...] = ()
        self.withdrawers: tuple[Any, ...] = ()
        self.is_plain = False


# --- Attributes. ---


class _Watching:
    """Stands in for `Shared` at the end of spans above LIMITS.SPANS_PER_TRACE: what failed is exported all the same."""

    __slots__ = ("_shared", "enders", "scrub", "takers", "withdrawers")

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.takers = (self._end,)
        self.enders: tuple[Any, ...] = ()
        self.scrub = shared.scrub
        # No processor has seen such a span: there is nothing to take back.
        self.withdrawers: tuple[Any, ...] = ()

    def _end(self, span: RecordedSpan) -> None:
        shared = self._shared
        end = shared.sampler.end_over_budget
        if end is not None and end(span._context.trace_id, span._status.status_code is StatusCode.ERROR):
            span._shared = shared
            span.hand_on()


class SharedAttributes(dict[str, Any]):
    """Attributes of many spans, such as those of one query, which nobody changes: one that gets more takes a copy."""

    #: For who writes them out, so that it is done once: who, and what was written.
    __slots__ = ("encoded",)

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        super().__init__(attributes)
        self.encoded: tuple[Any, bytes] | None = None


def _clean(
    attributes: Mapping[str, Any], longest: int | None, most: int | None, scrub: Callable[[str], str]
) -> tuple[Mapping[str, Any], int]:
    """The attributes with every value as OpenTelemetry has it, and how many were dropped.

    Nearly all are plain already, which their exact types tell at a fifth of the
    SDK's cost; anything else is the SDK's own class's business.
    """
    # The types are compared without a step of the interpreter for each (1 kI less per attribute).
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
    elif any(value.__class__ is not type(value) for value in attributes.values()):
        attributes = {key: _resolve(value) for key, value in attributes.items()}
    attributes = cut_attributes(attributes, longest, scrub) or {}
    # With a limit of none the SDK does not even look at them.
    bounded = BoundedAttributes(None if most else most, attributes, False, longest)
    return dict(bounded), bounded.dropped


def _resolve(value: Any) -> Any:
    """The value behind a proxy; the SDK would keep a lazy text as it is, and no exporter can send it."""
    with guard.contained("a lazy attribute of a span"):
        return proxies.resolve(value)
    return f"<{type(value).__name__}>"


def _plain_name(name: Any) -> str:
    """The name of a span as text: a lazy text, or what else was given, is evaluated now."""
    with guard.contained("a lazy name of a span"):
        return str.__str__(name) if issubclass(type(name), str) else str(name)
    return f"<{type(name).__name__}>"


def _bound_event(attributes: Attributes, limits: SpanLimits, scrub: Callable[[str], str]) -> BoundedAttributes:
    """Return the attributes of an event within their limits, long ones redacted before; a stack has its own limit."""
    most, longest = limits.max_event_attributes, limits.max_attribute_length
    bounded = BoundedAttributes(most, cut_attributes(attributes, longest, scrub), max_value_len=longest)
    stack = attributes.get(STACK) if attributes else None
    if type(stack) is not str or longest is None or len(stack) <= longest or STACK not in bounded:
        return bounded
    whole = BoundedAttributes(most, {**bounded, STACK: cut_stack(stack, MAX_STACK, scrub)})
    whole.dropped = bounded.dropped
    return whole


def are_ready(attributes: Mapping[str, Any], limits: SpanLimits) -> bool:
    """Whether a span would keep these attributes just as they are; then it need not look at them again."""
    longest, most = limits.max_span_attribute_length, limits.max_span_attributes
    return (most is None or len(attributes) <= most) and _clean(attributes, longest, most, str)[0] is attributes


def _store(kept: dict[str, Any], cleaned: Mapping[str, Any], most: int | None) -> int:
    """Add attributes to the kept ones; beyond `most` the oldest go. How many went."""
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


def _warn_full(times: int, most: int | None) -> None:
    # A limit of none is no accident, and the SDK says nothing then.
    for _ in range(times if most else 0):
        _attributes_logger.warning(
            "Attributes dict is full. Dropping the oldest key-value pair from attributes to make space for the new "
            "key-value pair."
        )


def _is_valid_link(context: Any, attributes: Any) -> bool:
    return bool(context and (context.is_valid or attributes or context.trace_state))


# --- Spans. ---


class RecordedSpan(SdkSpan):
    """A span under way; made by `Tracer` alone. Thread safe.

    It is recorded, but not necessarily sampled: `context.trace_flags` says
    whether it is exported, and one that is not may still be (`tracing.tail`).
    It is an SDK `Span` for whoever tests for that, and uses nothing of it: every
    public name is defined here, and `sdk_compat.find_unknown_names` makes sure.
    """

    # Named as in the SDK, for processors that reach into its spans. Slots, and no defaults in the class, so that the
    # interpreter finds each at once (200 instructions a time).
    __slots__ = (
        "_attributes", "_context", "_dropped", "_end_time", "_events", "_is_discarded", "_kind", "_limits", "_links",
        "_lock", "_name", "_parent", "_record_exception", "_resource", "_root", "_set_status_on_exception", "_shared",
        "_start_time", "_status", "_tracer", "encoded",
    )  # fmt: skip

    if TYPE_CHECKING:

        def __init__(self) -> None: ...
    else:
        #: Not the SDK's: its `__new__` refuses some, and its `__init__` builds what is not needed here.
        __new__ = object.__new__
        __init__ = object.__init__

    #: Stack traces have a limit of their own.
    keeps_long_stacks = True

    _attributes: dict[str, Any]
    _context: SpanContext
    _dropped: int
    _end_time: int | None
    _events: Any
    #: Of a local root: whether it and all spans inside it are dropped, also those that have ended.
    _is_discarded: bool
    _kind: SpanKind
    _limits: SpanLimits
    _links: Any
    _lock: threading.Lock
    _name: str
    _parent: SpanContext | None
    _record_exception: bool
    _resource: Resource
    #: The span of ours that began this part of the trace in this process; None for that one itself.
    _root: RecordedSpan | None
    _set_status_on_exception: bool
    _shared: Shared | _Watching
    _start_time: int
    _status: Status
    _tracer: Tracer
    #: For who writes it out, so that it is done once: who, and what was written. Not set until then.
    encoded: tuple[object, bytes]

    # --- The API's Span. ---

    def get_span_context(self) -> SpanContext:
        return self._context

    def is_recording(self) -> bool:
        return self._end_time is None

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        limits = self._limits
        kind = type(value)
        dropped = 0
        cleaned: Mapping[str, Any]
        longest = limits.max_span_attribute_length
        is_plain = (
            (longest is None or len(cast(str, value)) <= longest)
            if kind is str
            else kind is int or kind is bool or kind is float
        )
        if is_plain and key and type(key) is str:
            cleaned = {key: value}
        else:
            # Not by the constructor, which treats a key that is no text in another way.
            most = limits.max_span_attributes
            bounded = BoundedAttributes(None if most else most, None, False, longest)
            bounded[key] = cut_value(value, longest, self._shared.scrub) if value.__class__ is kind else _resolve(value)
            cleaned, dropped = dict(bounded), bounded.dropped
        self._add(cleaned, dropped, "Setting attribute on ended span.")

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        limits = self._limits
        cleaned, dropped = _clean(
            attributes, limits.max_span_attribute_length, limits.max_span_attributes, self._shared.scrub
        )
        self._add(cleaned, dropped, "Setting attribute on ended span.")

    def complete(self, name: str, attributes: Mapping[str, Any], *, are_clean: bool = False) -> None:
        """Rename the span and set attributes, as `update_name` and `set_attributes` do, under the lock taken once."""
        most = self._limits.max_span_attributes
        cleaned, dropped = attributes, 0
        if not are_clean:
            cleaned, dropped = _clean(attributes, self._limits.max_span_attribute_length, most, self._shared.scrub)
        full = 0
        # Not `with`, which looks up two special methods each time (1 kI).
        lock = self._lock
        lock.acquire()
        try:
            if self._end_time is None:
                self._name = name
                if type(self._attributes) is SharedAttributes:
                    self._attributes = self._attributes.copy()
                full = _store(self._attributes, cleaned, most)
                self._dropped += full + dropped
        finally:
            lock.release()
        if full:
            _warn_full(full, most)

    def _add(self, cleaned: Mapping[str, Any], dropped: int, refusal: str) -> None:
        most = self._limits.max_span_attributes
        lock = self._lock
        lock.acquire()
        try:
            if self._end_time is None:
                if type(self._attributes) is SharedAttributes:
                    self._attributes = self._attributes.copy()
                full = _store(self._attributes, cleaned, most)
                if full or dropped:
                    self._dropped += full + dropped
            else:
                full = -1
        finally:
            lock.release()
        if full > 0:
            _warn_full(full, most)
        elif full:
            _logger.warning(refusal)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        limits = self._limits
        event = Event(name, _bound_event(attributes, limits, self._shared.scrub), timestamp)
        with self._lock:
            is_recording = self._end_time is None
            if is_recording:
                if type(self._events) is tuple:
                    self._events = BoundedList(limits.max_events)
                self._events.append(event)
        if not is_recording:
            _logger.warning("Tried calling %s on an ended span.", "_add_event")

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        if not _is_valid_link(context, attributes):
            return
        limits = self._limits
        attributes = cut_attributes(attributes, limits.max_attribute_length, self._shared.scrub)
        bounded = BoundedAttributes(limits.max_link_attributes, attributes, max_value_len=limits.max_attribute_length)
        link = Link(context, bounded)
        with self._lock:
            is_recording = self._end_time is None
            if is_recording:
                if type(self._links) is tuple:
                    self._links = BoundedList(limits.max_links)
                self._links.append(link)
        if not is_recording:
            _logger.warning("Tried calling %s on an ended span.", "_add_link")

    def update_name(self, name: str) -> None:
        if type(name) is not str:
            name = _plain_name(name)
        with self._lock:
            is_recording = self._end_time is None
            if is_recording:
                self._name = name
        if not is_recording:
            _logger.warning("Tried calling %s on an ended span.", "update_name")

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        is_ignored = False
        with self._lock:
            is_recording = self._end_time is None
            # A status that was set OK stays, and UNSET never takes one back.
            if is_recording and self._status.status_code is not StatusCode.OK:
                if isinstance(status, Status):
                    if status.status_code is not StatusCode.UNSET:
                        is_ignored = description is not None
                        self._status = status
                elif isinstance(status, StatusCode) and status is not StatusCode.UNSET:
                    self._status = Status(status, description)
        if not is_recording:
            _logger.warning("Tried calling %s on an ended span.", "set_status")
        elif is_ignored:
            _logger.warning("Description %s ignored. Use either `Status` or `(StatusCode, Description)`", description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        kind = type(exception)
        is_builtin = not kind.__module__ or kind.__module__ == "builtins"
        given: dict[str, Any] = {
            "exception.type": kind.__qualname__ if is_builtin else f"{kind.__module__}.{kind.__qualname__}",
            "exception.message": str(exception),
            STACK: "".join(traceback.format_exception(exception)),
            "exception.escaped": str(escaped),
        }
        if attributes:
            given.update(attributes)
        plain = {key: value for key, value in given.items() if key != "exception.escaped"}
        if recording.wants_event(self, plain):
            self.add_event("exception", given, timestamp)

    def start(self, start_time: int | None = None, parent_context: Context | None = None) -> None:
        _logger.warning("Calling start() on a started span.")

    def end(self, end_time: int | None = None) -> None:
        lock = self._lock
        lock.acquire()
        try:
            is_recording = self._end_time is None
            if is_recording:
                self._end_time = time_ns() if end_time is None else end_time
        finally:
            lock.release()
        if not is_recording:
            _logger.warning("Calling end() on an ended span.")
            return
        if (self._root or self)._is_discarded:
            return
        self.hand_on()

    def hand_on(self) -> None:
        """Give the ended span to the processors."""
        shared = self._shared
        for take in shared.takers:
            take(self)
        if shared.enders:
            span = self._readable_span()
            for on_end in shared.enders:
                on_end(span)

    def discard(self) -> None:
        """Drop this span, a local root, and all spans inside it, as far as they have not been exported."""
        self._is_discarded = True
        for withdraw in self._shared.withdrawers:
            withdraw(self)

    @property
    def root(self) -> RecordedSpan:
        """The local root: the span of ours that began this part of the trace in this process."""
        return self._root or self

    @property
    def is_discarded(self) -> bool:
        """Whether this span, or the local root around it, has been dropped."""
        return (self._root or self)._is_discarded

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        if exc_val is not None and self._end_time is None:
            if self._record_exception:
                self.record_exception(exc_val, escaped=True)
            if self._set_status_on_exception:
                self.set_status(Status(StatusCode.ERROR, f"{type(exc_val).__name__}: {exc_val}"))
        self.end()

    # --- The SDK's ReadableSpan. ---

    def parts(self) -> SpanParts:
        """What the ended span holds, not to be changed; as `sdk_compat.read_span` has it."""
        events, links = self._events, self._links
        dropped_events = dropped_links = 0
        if type(events) is not tuple:
            events, dropped_events = read_list(events)
        if type(links) is not tuple:
            links, dropped_links = read_list(links)
        return (
            self._resource, self._tracer.scope, self._name, self._context, self._parent, self._kind, self._start_time,
            self._end_time, self._attributes, self._dropped, events, dropped_events, links, dropped_links, self._status,
        )  # fmt: skip

    def _readable_span(self) -> ReadableSpan:
        attributes: Any = self._attributes
        if type(attributes) is SharedAttributes:
            # Who is given it may reach into it.
            attributes = attributes.copy()
        if self._dropped:
            # The SDK's class is what tells how many were dropped.
            attributes = BoundedAttributes(None, attributes, True)
            attributes.dropped = self._dropped
        # By position: keywords cost half as much again.
        return ReadableSpan(
            self._name, self._context, self._parent, self._resource, attributes, self._events, self._links,
            self._kind, self._tracer.instrumentation_info, self._status, self._start_time, self._end_time,
            self._tracer.scope,
        )  # fmt: skip

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
        return cast(str, self._readable_span().to_json(indent))

    def __repr__(self) -> str:
        return f'{type(self).__name__}(name="{self._name}", context={self._context})'


class DroppedSpan(NonRecordingSpan):
    """A span that is not recorded. Its ids are drawn when somebody asks for them, which is seldom.

    `low_bits` are the trace id's low 64 bits, which the decision was made by, or None where it needed none. Who
    makes one sets the three attributes: to call an `__init__` costs more than all that (1 kI).
    """

    __slots__ = ("below", "low_bits", "shared")
    shared: Shared
    low_bits: int | None
    #: Its parent.
    below: SpanContext | DroppedSpan | None

    if TYPE_CHECKING:

        def __init__(self) -> None: ...
    else:
        #: Not the API's, which takes a context.
        __init__ = object.__init__

    def get_span_context(self) -> SpanContext:
        made: SpanContext | None = self.__dict__.get("_made")
        if made is None:
            # Of two threads that ask at once one has its ids kept, and both see those.
            made = self.__dict__.setdefault("_made", self._draw())
        return made

    @property
    def _context(self) -> SpanContext:  # type: ignore[override]
        return self.get_span_context()

    def _draw(self) -> SpanContext:
        ids = self.shared.ids
        parent = self.below
        if isinstance(parent, DroppedSpan):
            parent = parent.get_span_context()
        if parent is None:
            low_bits = self.low_bits
            trace_id = ids.generate_trace_id()
            if low_bits is not None:
                trace_id = ids.bits(64) << 64 | low_bits or trace_id
            return SpanContext(trace_id, ids.generate_span_id(), False, _ROOT_UNSAMPLED)
        flags = TraceFlags(parent.trace_flags & _RANDOM)
        return SpanContext(parent.trace_id, ids.generate_span_id(), False, flags, parent.trace_state)


def _drop(shared: Shared, low_bits: int | None, parent: SpanContext | DroppedSpan | None) -> DroppedSpan:
    span = DroppedSpan()
    span.shared, span.low_bits, span.below = shared, low_bits, parent
    return span


# --- Tracer and provider. ---


class Tracer(trace.Tracer):
    """Makes our spans of one instrumentation scope; `plain` is the SDK's tracer of the same scope."""

    def __init__(self, shared: Shared, plain: SdkTracer, scope: InstrumentationScope) -> None:
        self.shared = shared
        self._plain = plain
        self.scope = scope
        self.instrumentation_info = plain.instrumentation_info

        # As the SDK's tracer has them. No __getattr__: it would cost half a kilo-instruction at each use of the others.
        self.sampler = plain.sampler
        self.span_processor = plain.span_processor
        self.id_generator = plain.id_generator
        self._instrumentation_scope = scope

    @property
    def resource(self) -> Resource:
        """What the spans tell about their process."""
        return self.shared.resource

    @property
    def is_plain(self) -> bool:
        """Whether the SDK's tracer makes the spans now."""
        return self.shared.is_plain

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = (),
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> trace.Span:
        shared = self.shared
        if shared.is_plain:
            return self._plain.start_span(
                name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception
            )
        if context is None:
            context = get_current()
        parent: Any = context.get(SPAN_KEY)
        root: RecordedSpan | None = None
        # By exact type: isinstance() with the API's abstract class costs ten times as much.
        if type(parent) is DroppedSpan:
            # What a dropped span begins is dropped.
            return _drop(shared, None, parent)
        if type(parent) is RecordedSpan:
            parent_context = parent.get_span_context()
            follows = shared.sampler.follows(context, parent, parent_context)
            if not follows and not self._may_watch(follows, parent_context):
                return _drop(shared, None, parent_context)
            span_context = build_child_context(parent_context, shared.ids.bits(64) or shared.ids.generate_span_id())
            # A request inside another span can be discarded alone.
            root = None if kind is SpanKind.SERVER else parent._root or parent
        else:
            follows = True
            found = self._decide(name, context, kind, attributes, links)
            if isinstance(found, DroppedSpan):
                return found
            parent_context, span_context, attributes = cast("tuple[Any, SpanContext, Attributes]", found)
        span = self.record(
            name, context, kind, span_context, parent_context, attributes, links, start_time, record_exception,
            set_status_on_exception, root=root,
        )  # fmt: skip
        if follows is None:
            span._shared = _Watching(shared)
        return span

    def _may_watch(self, follows: bool | None, parent_context: SpanContext) -> bool:
        """Whether a span above the limit of its trace is recorded in case it fails, as most of them do not.

        Not where a processor has seen its start: it would wait for an end that does not come.
        """
        is_over = follows is None and bool(parent_context.trace_flags & 1) and not self.shared.starters
        if follows is None and not is_over and self.shared.sampler.end_over_budget is not None:
            self.shared.sampler.end_over_budget(parent_context.trace_id, False)
        return is_over

    def start_child(
        self, name: str, context: Context, kind: SpanKind, parent: RecordedSpan, attributes: SharedAttributes
    ) -> trace.Span:
        """`start_span` where `parent`, the span of `context`, is ours, and the attributes are known to be ready."""
        shared = self.shared
        if shared.is_plain:
            return self._plain.start_span(name, context, kind, attributes)
        parent_context = parent.get_span_context()
        follows = shared.sampler.follows(context, parent, parent_context)
        if not follows and not self._may_watch(follows, parent_context):
            return _drop(shared, None, parent_context)
        span_context = build_child_context(parent_context, shared.ids.bits(64) or shared.ids.generate_span_id())
        own = attributes.copy() if shared.starters else attributes
        span = self.record(
            name, context, kind, span_context, parent_context, own, are_ready=True, root=parent._root or parent
        )
        if follows is None:
            span._shared = _Watching(shared)
        return span

    #: The SDK's, which calls `start_span` above and is a decorator as well.
    start_as_current_span = SdkTracer.start_as_current_span

    def _decide(
        self, name: str, context: Context, kind: SpanKind, attributes: Attributes, links: Sequence[Link] | None
    ) -> DroppedSpan | tuple[SpanContext | None, SpanContext, Attributes]:
        """A span whose parent is not one of ours: a root, a remote parent's child, another provider's child."""
        shared = self.shared
        parent: SpanContext | None = trace.get_current_span(context).get_span_context()
        if parent is not None and not isinstance(parent, SpanContext):
            raise TypeError("parent_span_context must be a SpanContext or None.")
        if parent is None or not parent.is_valid:
            parent = None
            trace_id = shared.ids.generate_trace_id()
            random = _RANDOM
        else:
            trace_id = parent.trace_id
            random = parent.trace_flags & _RANDOM
        result = shared.sampler.should_sample(context, trace_id, name, kind, attributes, links)
        decision: Any = result.decision
        if not decision.is_recording():
            return _drop(shared, trace_id & 0xFFFFFFFFFFFFFFFF, parent)
        flags = TraceFlags(random | TraceFlags.SAMPLED if decision.is_sampled() else random)
        span_context = SpanContext(trace_id, shared.ids.generate_span_id(), False, flags, result.trace_state)
        return parent, span_context, result.attributes

    def record_root(
        self,
        name: str,
        context: Context,
        kind: SpanKind,
        low_bits: int,
        is_sampled: bool,
        attributes: dict[str, Any],
        *,
        are_ready: bool,
    ) -> RecordedSpan:
        """The span of a trace that begins here and is recorded."""
        ids = self.shared.ids
        trace_id = ids.bits(64) << 64 | low_bits or ids.generate_trace_id()
        flags = _ROOT_SAMPLED if is_sampled else _ROOT_UNSAMPLED
        span_context = build_root_context(trace_id, ids.bits(64) or ids.generate_span_id(), flags)
        return self.record(name, context, kind, span_context, None, attributes, are_ready=are_ready)

    def record_entry(
        self,
        name: str,
        context: Context,
        kind: SpanKind,
        parent: SpanContext,
        is_sampled: bool,
        attributes: dict[str, Any],
        *,
        are_ready: bool,
    ) -> RecordedSpan:
        """The span of a request of `parent`, a caller's span without a state, that is recorded."""
        ids = self.shared.ids
        flags = TraceFlags(parent.trace_flags & _RANDOM | (TraceFlags.SAMPLED if is_sampled else 0))
        span_context = build_root_context(parent.trace_id, ids.bits(64) or ids.generate_span_id(), flags)
        return self.record(name, context, kind, span_context, parent, attributes, are_ready=are_ready)

    def record(
        self,
        name: str,
        context: Context,
        kind: SpanKind,
        span_context: SpanContext,
        parent: SpanContext | None,
        attributes: Attributes,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        are_ready: bool = False,
        root: RecordedSpan | None = None,
    ) -> RecordedSpan:
        """Start a span that is recorded, whoever decided it; attributes that are ready become its own."""
        shared = self.shared
        limits = shared.limits
        # Filled in here and not by an __init__: the call alone costs as much as ten attributes.
        span = RecordedSpan()
        span._shared = shared
        span._tracer = self
        span._limits = limits
        span._name = name if type(name) is str else _plain_name(name)
        span._context = span_context
        span._parent = parent
        span._kind = kind
        span._resource = shared.resource
        span._status = _UNSET
        span._events = span._links = ()
        span._dropped = 0
        span._record_exception = record_exception
        span._set_status_on_exception = set_status_on_exception
        span._lock = threading.Lock()
        span._root = root
        span._is_discarded = False
        span._end_time = None
        if are_ready:
            span._attributes = cast("dict[str, Any]", attributes)
        elif attributes:
            most = limits.max_span_attributes
            cleaned, dropped = _clean(attributes, limits.max_span_attribute_length, most, shared.scrub)
            if most is None or len(cleaned) <= most:
                span._attributes = dict(cleaned)
                if dropped:
                    span._dropped = dropped
            else:
                span._attributes = {}
                full = _store(span._attributes, cleaned, most)
                span._dropped = dropped + full
                _warn_full(full, most)
        else:
            span._attributes = {}
        if links:
            _set_links(span, links, limits)
        span._start_time = time_ns() if start_time is None else start_time
        for on_start in shared.starters:
            on_start(span, parent_context=context)
        return span


def to_readable(span: ReadableSpan) -> ReadableSpan:
    """The SDK's own form of an ended span, whichever of the two it is."""
    return span._readable_span() if type(span) is RecordedSpan else span


def is_discarded(span: Any) -> bool:
    """Whether a span, which may have ended, is not to be exported after all."""
    return type(span) is RecordedSpan and span.is_discarded


def _set_links(span: RecordedSpan, links: Sequence[Link], limits: SpanLimits) -> None:
    valid = [
        Link(
            link.context,
            BoundedAttributes(limits.max_link_attributes, link.attributes, max_value_len=limits.max_attribute_length),
        )
        for link in links
        if link and _is_valid_link(link.context, link.attributes)
    ]
    if valid:
        span._links = BoundedList.from_seq(limits.max_links, valid)


class Taker(SpanProcessor):
    """A span processor of ours, which takes our spans as they are when they end: no `ReadableSpan` is made (5 kI)."""

    def take(self, span: RecordedSpan) -> None:
        """A span ended. `to_readable` and `parts` tell what it holds."""
        raise NotImplementedError

    def withdraw(self, root: RecordedSpan) -> None:
        """Forget what was taken of a local root that is discarded, unless `is_discarded` is asked before the export."""


class Distributor(SpanProcessor):
    """A span processor that hands spans on to others, which may change; call `changed` then."""

    #: Set by the provider that the processor was added to.
    on_change: Callable[[], None] | None = None

    def targets(self) -> tuple[SpanProcessor, ...]:
        """Where spans go that are given to this processor: they are given there straight away."""
        raise NotImplementedError

    def changed(self) -> None:
        """Say that `targets` has changed."""
        if self.on_change is not None:
            self.on_change()


def does_nothing(method: Any, function: Any) -> bool:
    """Whether a processor's method is `SpanProcessor`'s own."""
    return getattr(method, "__func__", None) is function


class OwnTracerProvider(sdk_compat.WatchedTracerProvider):
    """The SDK's provider, whose tracers make our spans.

    Call `refresh` after a change of its resource or of what its processors are.
    """

    def __init__(
        self,
        sampler: LiveSampler,
        resource: Resource,
        ids: OwnRandomIdGenerator,
        limits: SpanLimits,
        scrub: Callable[[str], str] | None = None,
    ) -> None:
        self._shared = Shared(sampler, ids, limits, resource, scrub)
        self._added: tuple[SpanProcessor, ...] = ()
        self._own_tracers: dict[tuple[Any, ...], Tracer] = {}
        super().__init__(
            sampler=sampler, resource=resource, shutdown_on_exit=False, id_generator=ids, span_limits=limits
        )
        self.refresh()

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        super().add_span_processor(span_processor)
        self._added += (span_processor,)
        if isinstance(span_processor, Distributor):
            span_processor.on_change = self.refresh
        self.refresh()

    def refresh(self) -> None:
        """See which processors there are now, and whether we can make the spans for them."""
        shared = self._shared
        shared.resource = self.resource
        parts: list[SpanProcessor] = []
        for processor in self._added:
            parts += processor.targets() if isinstance(processor, Distributor) else (processor,)
        # Those that do nothing are not called, for every span.
        shared.starters = tuple(
            part.on_start for part in parts if not does_nothing(part.on_start, SpanProcessor.on_start)
        )
        shared.takers = tuple(part.take for part in parts if isinstance(part, Taker))
        shared.withdrawers = tuple(
            part.withdraw
            for part in parts
            if isinstance(part, Taker) and not does_nothing(part.withdraw, Taker.withdraw)
        )
        shared.enders = tuple(
            part.on_end
            for part in parts
            if not isinstance(part, Taker) and not does_nothing(part.on_end, SpanProcessor.on_end)
        )
        shared.is_plain = (
            self.is_configured
            or bool(sdk_compat.find_unknown_names(RecordedSpan))
            or any(sdk_compat.sees_ending(part) for part in parts)
        )

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Any = None,
    ) -> trace.Tracer:
        plain = super().get_tracer(instrumenting_module_name, instrumenting_library_version, schema_url, attributes)
        if type(plain) is not SdkTracer or plain.sampler is not self._shared.sampler or sdk_compat.counts_spans(plain):
            # Switched off by OTEL_SDK_DISABLED, with a sampler that somebody has put in, or measured by the SDK itself.
            return plain
        scope = InstrumentationScope(
            instrumenting_module_name or "", instrumenting_library_version or "", schema_url, attributes
        )
        # One object for one scope; of two threads that ask at once both get the same.
        key = (scope.name, scope.version, scope.schema_url, tuple(sorted((attributes or {}).items(), key=str)))
        try:
            known = self._own_tracers.get(key)
        except TypeError:
            # Attributes that are lists.
            return Tracer(self._shared, plain, scope)
        if known is not None:
            return known
        tracer = Tracer(self._shared, plain, scope)
        # Bounded: a project could make scopes as it goes.
        return self._own_tracers.setdefault(key, tracer) if len(self._own_tracers) < _MAX_TRACERS else tracer
