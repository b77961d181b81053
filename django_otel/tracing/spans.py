"""Our own spans: equivalent to the SDK's, at a seventh of their cost.

`RecordedSpan` is a span under way. Span processors get it at its start, where
they can read and change it as they can the SDK's, and at its end the SDK's own
`ReadableSpan`, made of what it holds. `DroppedSpan` records nothing and draws
its ids only when they are asked for.

The SDK's span spends its time on a lock and a dict class of its own per span,
event list and link list (here a dict, and lists when the first event or link
comes), and on cleaning every value by six `isinstance` tests (here by its exact
type; everything else goes to the SDK's own class).
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from time import time_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags, TraceState

from django_otel.base import guard
from django_otel.metrics.series import HAS_GLOBAL_LOCK
from django_otel.redaction.cutting import cut_attributes
from django_otel.redaction.scrub import Scrubber
from django_otel.sampling.sampler import LiveSampler
from django_otel.sampling.tracestate import replace_threshold
from django_otel.tracing.attributes import (
    EventPattern,
    SharedAttributes,
    bound_event,
    bound_link,
    clean,
    is_valid_link,
    plain_name,
    resolve,
    resolve_all,
    store,
    warn_full,
)
from django_otel.tracing.exceptions import STACK, recording, type_name
from django_otel.tracing.ids import OwnRandomIdGenerator
from django_otel.tracing.span_fields import SpanFields

if TYPE_CHECKING:
    from opentelemetry.util.types import Attributes, AttributeValue

    from django_otel.tracing.tail import TailBuffer


#: The SDK's own, so that its warnings are found, and silenced, in one place.
_logger = logging.getLogger("opentelemetry.sdk.trace")
UNSET = Status(StatusCode.UNSET)
#: The SDK marks ids that it draws as random, from a certain version on.
RANDOM = getattr(TraceFlags, "RANDOM_TRACE_ID", 0)
ROOT_UNSAMPLED = TraceFlags(RANDOM)
#: What a span begins with. CPython has one empty tuple; elsewhere the look at it only takes longer.
_NO_EVENTS: tuple[Event, ...] = ()


#: How many spans of a trace this process did not record, on the span that began it here.
SPANS_DROPPED = "django_otel.spans.dropped"


class Shared:
    """State shared by all tracers and spans of a provider; its attributes change with the settings."""

    __slots__ = (
        "enders", "held", "ids", "is_sdk_path", "limits", "resource", "sampler", "scrub", "starters", "takers",
        "withdrawers",
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
        #: The buffer of spans that are recorded and not sampled, if nothing else sees them; else None.
        self.held: TailBuffer | None = None
        self.is_sdk_path = False


class OverBudget:
    """Stands in for `Shared` at the end of spans above LIMITS.SPANS_PER_TRACE: failed ones are still exported."""

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
        if end is not None and end(span._context.trace_id, span._status.status_code is StatusCode.ERROR):  # noqa: SLF001 (classes of one module, on the hot path)
            span._shared = shared  # noqa: SLF001 (classes of one module, on the hot path)
            span.hand_on()


class RecordedSpan(SpanFields):
    """A span under way; made by `Tracer` alone. Thread safe.

    It is recorded, but not necessarily sampled: `context.trace_flags` says
    whether it is exported, and one that is not may still be (`tracing.tail`).
    It is an SDK `Span` for `isinstance()` and uses none of its code: every
    public name is defined here, and `sdk_compat.find_unknown_names` makes sure.
    """

    # Slots, and no defaults in the class, so that the interpreter finds each at once (200 instructions a time).
    __slots__ = (
        "_is_discarded", "_limits", "_lock", "_pattern_number", "_record_exception", "_root",
        "_set_status_on_exception", "_shared",
    )  # fmt: skip

    #: Stack traces have a limit of their own.
    keeps_long_stacks = True

    #: Of a local root: whether it and all spans inside it are dropped, also those that have ended.
    _is_discarded: bool
    _limits: SpanLimits
    _lock: threading.Lock
    #: Of an event that is not made yet; see `add_pattern_event`.
    _pattern_number: int
    _record_exception: bool
    #: The span of ours that began this part of the trace in this process; None for that one itself.
    _root: RecordedSpan | None
    _set_status_on_exception: bool
    _shared: Shared | OverBudget

    def get_span_context(self) -> SpanContext:
        return self._context

    def is_recording(self) -> bool:
        return self._end_time is None

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        limits = self._limits
        kind = type(value)
        dropped = 0
        cleaned: Mapping[str, object]
        longest = limits.max_span_attribute_length
        is_clean = (
            (longest is None or len(cast(str, value)) <= longest)
            if kind is str
            else kind is int or kind is bool or kind is float
        )
        if is_clean and key and type(key) is str:
            cleaned = {key: value}
        else:
            # Not by the constructor, which treats a key that is not a string in another way.
            most = limits.max_span_attributes
            bounded = BoundedAttributes(None if most else most, None, False)
            name = key if type(key) is str else next(iter(resolve_all({key: None})))
            with guard.contained("an attribute of a span"):
                # Such as a list that contains itself.
                bounded[name] = resolve(value)
            cleaned, dropped = cut_attributes(dict(bounded), longest, self._shared.scrub) or {}, bounded.dropped
        self._add(cleaned, dropped, "Setting attribute on ended span.")

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        limits = self._limits
        cleaned, dropped = clean(
            attributes, limits.max_span_attribute_length, limits.max_span_attributes, self._shared.scrub
        )
        self._add(cleaned, dropped, "Setting attribute on ended span.")

    def complete(self, name: str, attributes: Mapping[str, object], *, are_clean: bool = False) -> None:
        """Rename the span and set attributes, as `update_name` and `set_attributes` do, under the lock taken once."""
        most = self._limits.max_span_attributes
        cleaned, dropped = attributes, 0
        if not are_clean:
            cleaned, dropped = clean(attributes, self._limits.max_span_attribute_length, most, self._shared.scrub)
        full = 0
        # Not `with`, which looks up two special methods each time.
        lock = self._lock
        lock.acquire()
        try:
            if self._end_time is None:
                self._name = name
                if type(self._attributes) is SharedAttributes:
                    self._attributes = self._attributes.copy()
                full = store(self._attributes, cleaned, most)
                self._dropped += full + dropped
        finally:
            lock.release()
        if full:
            warn_full(full, most)

    def exchange(self, given: SharedAttributes, wanted: SharedAttributes) -> bool:
        """Have the shared attributes `wanted` instead of `given`; False where the span has others by now."""
        if not HAS_GLOBAL_LOCK:
            return False
        # Not interrupted between the look and the store, which the lock would cost more than; see `metrics.series`.
        if self._attributes is not given or self._end_time is not None:
            return False
        self._attributes = wanted
        return True

    def _add(self, cleaned: Mapping[str, object], dropped: int, refusal: str) -> None:
        most = self._limits.max_span_attributes
        lock = self._lock
        lock.acquire()
        try:
            if self._end_time is None:
                if type(self._attributes) is SharedAttributes:
                    self._attributes = self._attributes.copy()
                full = store(self._attributes, cleaned, most)
                if full or dropped:
                    self._dropped += full + dropped
            else:
                full = -1
        finally:
            lock.release()
        if full > 0:
            warn_full(full, most)
        elif full:
            _logger.warning(refusal)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        limits = self._limits
        if type(name) is not str:
            name = plain_name(name)
        event = Event(name, bound_event(attributes, limits, self._shared.scrub), timestamp)
        with self._lock:
            is_recording = self._end_time is None
            if is_recording:
                self._keep(event)
        if not is_recording:
            _logger.warning("Tried calling %s on an ended span.", "_add_event")

    def add_pattern_event(self, pattern: EventPattern, number: int) -> None:
        """Add an event of `pattern` with that number, of the span's end unless it is read before; no late one."""
        # Not interrupted between the look and the store, which the lock would cost more than; see `metrics.series`.
        if HAS_GLOBAL_LOCK and self._kept_events is _NO_EVENTS and self._end_time is None:
            self._pattern_number = number
            self._kept_events = pattern
            return
        with self._lock:
            if self._end_time is None:
                self._keep(pattern.make(number, time_ns(), self._limits, self._shared.scrub))

    @property
    def _events(self) -> tuple[Event, ...] | BoundedList[Event]:  # type: ignore[override]
        kept = self._kept_events
        if not isinstance(kept, EventPattern):
            return kept
        time_of_ns = self._end_time or time_ns()
        made = self._limited(kept.make(self._pattern_number, time_of_ns, self._limits, self._shared.scrub))
        # Two threads that read a span before its end may see two times; another may have kept a further event by now.
        if self._kept_events is kept:
            self._kept_events = made
        return made

    def _limited(self, event: Event) -> tuple[Event, ...] | BoundedList[Event]:
        # Most spans with events have one; the SDK's list costs more than the event.
        return (event,) if self._limits.max_events != 0 else BoundedList.from_seq(0, (event,))

    def _keep(self, event: Event) -> None:
        """Keep an event; the lock is held."""
        events = self._events
        if not events and type(events) is tuple:
            self._kept_events = self._limited(event)
            return
        if isinstance(events, tuple):
            events = BoundedList.from_seq(self._limits.max_events, events)
        self._kept_events = events
        events.append(event)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        if not is_valid_link(context, attributes):
            return
        link = Link(context, bound_link(attributes, self._limits, self._shared.scrub))
        with self._lock:
            is_recording = self._end_time is None
            if is_recording:
                if isinstance(self._links, tuple):
                    self._links = BoundedList(self._limits.max_links)
                self._links.append(link)
        if not is_recording:
            _logger.warning("Tried calling %s on an ended span.", "_add_link")

    def update_name(self, name: str) -> None:
        if type(name) is not str:
            name = plain_name(name)
        with self._lock:
            is_recording = self._end_time is None
            if is_recording:
                self._name = name
        if not is_recording:
            _logger.warning("Tried calling %s on an ended span.", "update_name")

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        is_ignored = False
        if isinstance(status, StatusCode):
            if description is not None and type(description) is not str:
                description = plain_name(description)
        elif isinstance(status, Status) and type(status.description) not in (str, type(None)):
            status = Status(status.status_code, plain_name(status.description))
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
        given: dict[str, Any] = {
            "exception.type": type_name(exception),
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
        if (self._root or self)._is_discarded:  # noqa: SLF001 (classes of one module, on the hot path)
            return
        self.hand_on()

    def hand_on(self) -> None:
        """Give the ended span to the processors."""
        shared = self._shared
        for take in shared.takers:
            take(self)
        if shared.enders:
            span = self.readable_span()
            for on_end in shared.enders:
                on_end(span)

    def forget(self, held: TailBuffer) -> None:
        """End this span, a local root of which nothing is kept, and let go of the spans inside it."""
        self._is_discarded = True
        self._end_time = time_ns()
        held.withdraw(self)

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
        """Return whether this span, or the local root around it, has been dropped."""
        return (self._root or self)._is_discarded  # noqa: SLF001 (classes of one module, on the hot path)

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


class DroppedSpan(NonRecordingSpan):
    """A span that is not recorded. Its ids are generated on the first access, which is rare.

    `low_bits` are the trace id's low 64 bits, which the decision was made by, or None where it needed none. Who
    makes one sets the three attributes: to call an `__init__` costs more than all that.
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
            return SpanContext(trace_id, ids.generate_span_id(), False, ROOT_UNSAMPLED)
        flags = TraceFlags(parent.trace_flags & RANDOM)
        state: TraceState | None = parent.trace_state
        if parent.trace_flags & TraceFlags.SAMPLED:
            # A trace that is not sampled has no threshold.
            state = replace_threshold(state, "")
        return SpanContext(parent.trace_id, ids.generate_span_id(), False, flags, state)


def drop(shared: Shared, low_bits: int | None, parent: SpanContext | DroppedSpan | None) -> DroppedSpan:
    span = DroppedSpan()
    span.shared, span.low_bits, span.below = shared, low_bits, parent
    return span


def to_readable(span: ReadableSpan) -> ReadableSpan:
    """The SDK's own form of an ended span, whichever of the two it is."""
    return span.readable_span() if type(span) is RecordedSpan else span


def is_discarded(span: object) -> bool:
    """Return whether a span, which may have ended, is not to be exported after all."""
    return type(span) is RecordedSpan and span.is_discarded


def set_links(span: RecordedSpan, links: Sequence[Link], limits: SpanLimits) -> None:
    valid = [
        Link(
            link.context,
            bound_link(link.attributes, limits, span._shared.scrub),  # noqa: SLF001 (classes of one module, on the hot path)
        )
        for link in links
        if link and is_valid_link(link.context, link.attributes)
    ]
    if valid:
        span._links = BoundedList.from_seq(limits.max_links, valid)  # noqa: SLF001 (classes of one module, on the hot path)
