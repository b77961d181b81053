"""Common parts of many spans, such as those of one cache operation or middleware, computed once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind
from opentelemetry.trace import Tracer as ApiTracer

from django_otel.base.sdk_compat import SPAN_KEY
from django_otel.tracing.attributes import SharedAttributes, are_ready
from django_otel.tracing.enclosing import ENCLOSING_KEY
from django_otel.tracing.spans import RecordedSpan
from django_otel.tracing.tracer import Tracer


class SpanForm:
    """Name, kind and attributes of spans that come again and again, for one set of settings."""

    __slots__ = ("_is_ready", "attributes", "kind", "name")

    def __init__(self, name: str, attributes: Mapping[str, Any], kind: SpanKind = SpanKind.INTERNAL) -> None:
        self.name = name
        self.attributes = SharedAttributes(attributes)
        self.kind = kind
        #: Whether a span keeps the attributes as they are; None when not known yet.
        self._is_ready: bool | None = None

    def start(self, tracer: ApiTracer, outer: Context, parent: object) -> Span:
        """Start a span of this form below `parent`, which is the span of `outer`."""
        if type(tracer) is Tracer and type(parent) is RecordedSpan:
            if self._is_ready is None:
                self._is_ready = are_ready(self.attributes, tracer.shared.limits)
            if self._is_ready:
                return tracer.start_child(self.name, outer, self.kind, parent, self.attributes)
        return tracer.start_span(self.name, outer, self.kind, self.attributes.copy())


class Extension:
    """Attributes that spans of a form get on top of those that they began with: both together, worked out once."""

    __slots__ = ("_both", "_given", "_more")

    def __init__(self, given: SharedAttributes, more: Mapping[str, Any], tracer: ApiTracer) -> None:
        self._given = given
        self._more = more
        both = SharedAttributes({**given, **more})
        is_ready = type(tracer) is Tracer and are_ready(both, tracer.shared.limits)
        #: None where a span would not keep them as they are.
        self._both = both if is_ready else None

    def add_to(self, span: Span) -> None:
        """Set them in a span of `tracer`, which may have got others meanwhile."""
        both = self._both
        if both is None or type(span) is not RecordedSpan or not span.exchange(self._given, both):
            span.set_attributes(self._more)


def with_enclosing(context: Context, span: Span) -> Context:
    """Return `context` with `span` as its current one, which stands for the one before."""
    values = context.copy()
    around = values.get(SPAN_KEY)
    values[ENCLOSING_KEY] = (span, INVALID_SPAN if around is None else around, values.get(ENCLOSING_KEY))
    values[SPAN_KEY] = span
    return Context(values)
