"""Tracer that creates our spans.

It serves everything that asks our `OwnTracerProvider` for one: the request
path, the database layer, `django_otel.span` and every other instrumentor.
Where something of the SDK is not as this package knows it, or asks for more
than it does (`OwnTracerProvider.refresh`), the SDK's own tracer makes the spans:
the plain API path. `tests/requests/test_equivalence.py` compares the two.
"""

# A span is filled here and not by its `__init__`, which costs a call for each span.
# ruff: noqa: SLF001

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import time_ns
from typing import TYPE_CHECKING, Any, cast

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags

from django_otel.base.sdk_compat import EMPTY_TRACE_STATE, SPAN_KEY, build_child_context, build_root_context
from django_otel.sampling.tracestate import ALWAYS, build_state
from django_otel.tracing.attributes import SharedAttributes, clean, plain_name, store, warn_full
from django_otel.tracing.spans import (
    RANDOM,
    ROOT_UNSAMPLED,
    UNSET,
    DroppedSpan,
    OverBudget,
    RecordedSpan,
    Shared,
    drop,
    set_links,
)

if TYPE_CHECKING:
    from opentelemetry.util.types import Attributes

_SERVER = SpanKind.SERVER
_ROOT_SAMPLED = TraceFlags(TraceFlags.SAMPLED | RANDOM)


class Tracer(trace.Tracer):
    """Makes our spans of one instrumentation scope; `plain` is the SDK's tracer of the same scope."""

    def __init__(self, shared: Shared, plain: SdkTracer, scope: InstrumentationScope) -> None:
        self.shared = shared
        self._sdk_tracer = plain
        self.scope = scope
        self.instrumentation_info = plain.instrumentation_info

        # As the SDK's tracer has them. No __getattr__: it would slow down every use of the others.
        self.sampler = plain.sampler
        self.span_processor = plain.span_processor
        self.id_generator = plain.id_generator
        self._instrumentation_scope = scope

    @property
    def resource(self) -> Resource:
        """The resource of the spans: attributes of their process."""
        return self.shared.resource

    @property
    def is_sdk_path(self) -> bool:
        """Return whether the SDK's tracer makes the spans now."""
        return self.shared.is_sdk_path

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
        if shared.is_sdk_path:
            return self._sdk_tracer.start_span(
                name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception
            )
        if context is None:
            context = get_current()
        parent: object = context.get(SPAN_KEY)
        root: RecordedSpan | None = None
        # By exact type: isinstance() with the API's abstract class is slow.
        if type(parent) is DroppedSpan:
            # Children of a dropped span are dropped.
            return drop(shared, None, parent)
        if type(parent) is RecordedSpan:
            parent_context = parent.get_span_context()
            follows = shared.sampler.follows(context, parent, parent_context)
            if not follows and not self._may_watch(follows, parent_context):
                return drop(shared, None, parent_context)
            span_context = build_child_context(parent_context, shared.ids.bits(64) or shared.ids.generate_span_id())
            # A request inside another span can be discarded alone.
            root = None if kind is _SERVER else parent._root or parent
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
            span._shared = OverBudget(shared)
        return span

    def _may_watch(self, follows: bool | None, parent_context: SpanContext) -> bool:
        """Return whether a span above the limit of its trace is recorded in case it fails, as most of them do not.

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
        if shared.is_sdk_path:
            return self._sdk_tracer.start_span(name, context, kind, attributes)
        parent_context = parent.get_span_context()
        follows = shared.sampler.follows(context, parent, parent_context)
        if not follows and not self._may_watch(follows, parent_context):
            return drop(shared, None, parent_context)
        span_context = build_child_context(parent_context, shared.ids.bits(64) or shared.ids.generate_span_id())
        own = attributes.copy() if shared.starters else attributes
        span = self.record(
            name, context, kind, span_context, parent_context, own, are_ready=True, root=parent._root or parent
        )
        if follows is None:
            span._shared = OverBudget(shared)
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
            random = RANDOM
        else:
            trace_id = parent.trace_id
            random = parent.trace_flags & RANDOM
        result = shared.sampler.should_sample(context, trace_id, name, kind, attributes, links)
        decision: Any = result.decision
        if not decision.is_recording():
            return drop(shared, trace_id & 0xFFFFFFFFFFFFFFFF, parent)
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
        threshold: str = "",
    ) -> RecordedSpan:
        """The span of a trace that begins here and is recorded; `threshold` is `th` of its state."""
        ids = self.shared.ids
        trace_id = ids.bits(64) << 64 | low_bits or ids.generate_trace_id()
        flags = _ROOT_SAMPLED if is_sampled else ROOT_UNSAMPLED
        state = ALWAYS if threshold == "0" else build_state(threshold, trace_id)
        span_context = build_root_context(trace_id, ids.bits(64) or ids.generate_span_id(), flags, state)
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
        threshold: str = "",
    ) -> RecordedSpan:
        """The span of a request of `parent`, a caller's span without a state, that is recorded."""
        ids = self.shared.ids
        flags = TraceFlags(parent.trace_flags & RANDOM | (TraceFlags.SAMPLED if is_sampled else 0))
        # Another threshold than 0 would need the randomness of an id that we have not drawn.
        state = ALWAYS if threshold == "0" else EMPTY_TRACE_STATE
        span_context = build_root_context(parent.trace_id, ids.bits(64) or ids.generate_span_id(), flags, state)
        return self.record(name, context, kind, span_context, parent, attributes, are_ready=are_ready)

    def record(  # noqa: PLR0913 (one parameter for each part that a span has)
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
        """Start a recorded span, after the decision; prepared attributes become its own."""
        shared = self.shared
        limits = shared.limits
        # Filled in here and not by an __init__, to save its call.
        span = RecordedSpan()
        span._shared = shared
        span._tracer = self
        span._limits = limits
        span._name = name if type(name) is str else plain_name(name)
        span._context = span_context
        span._parent = parent
        span._kind = kind
        span._resource = shared.resource
        span._status = UNSET
        span._kept_events = span._links = ()
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
            cleaned, dropped = clean(attributes, limits.max_span_attribute_length, most, shared.scrub)
            if most is None or len(cleaned) <= most:
                span._attributes = dict(cleaned)
                if dropped:
                    span._dropped = dropped
            else:
                span._attributes = {}
                full = store(span._attributes, cleaned, most)
                span._dropped = dropped + full
                warn_full(full, most)
        else:
            span._attributes = {}
        if links:
            set_links(span, links, limits)
        span._start_time = time_ns() if start_time is None else start_time
        for on_start in shared.starters:
            on_start(span, parent_context=context)
        return span
