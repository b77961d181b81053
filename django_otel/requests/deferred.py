"""A span whose sampling decision is made at its first use.

A rule may name a route, and the route is known only once Django has resolved
the path. So the request's span is decided by the first who asks it anything: a
child span, a log record, an outgoing call. From the view on that is with the
route, before (in a middleware that queries the database) on method and path
alone; at the end of the request at the latest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span, SpanContext, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from django_otel.base import guard


class DeferredSpan(Span):
    """Stands for the span that `decide()` starts; calls it once, when it is first asked for anything."""

    def __init__(self, decide: Callable[[], Span]) -> None:
        self._decide: Callable[[], Span] | None = decide
        self._span: Span | None = None
        # Two threads of one request may ask at once, and one trace has one root. Only while it is undecided.
        self._lock = threading.RLock()

    def decided(self) -> Span:
        """Return the span itself; decides at the first call."""
        span = self._span
        if span is not None:
            return span
        with self._lock:
            if self._span is None:
                decide, self._decide = self._decide, None
                if decide is None:
                    # A span processor asks for the current span while this one is being started.
                    return trace.INVALID_SPAN
                started: Span = trace.INVALID_SPAN
                try:
                    # The application may be the one that asks.
                    with guard.contained("starting the span of a request"):
                        started = decide()
                finally:
                    self._span = started
            return self._span

    def started(self) -> Span | None:
        """The span itself if it has been decided, else None."""
        return self._span

    def __getattr__(self, name: str) -> Any:
        # Attributes of the SDK's span beyond the API (kind, name, attributes, ...).
        return getattr(self.decided(), name)

    def end(self, end_time: int | None = None) -> None:
        self.decided().end(end_time)

    def get_span_context(self) -> SpanContext:
        return self.decided().get_span_context()

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        self.decided().set_attributes(attributes)

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        self.decided().set_attribute(key, value)

    def add_event(
        self, name: str, attributes: Mapping[str, AttributeValue] | None = None, timestamp: int | None = None
    ) -> None:
        self.decided().add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        self.decided().add_link(context, attributes)

    def update_name(self, name: str) -> None:
        self.decided().update_name(name)

    def is_recording(self) -> bool:
        return self.decided().is_recording()

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self.decided().set_status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Mapping[str, AttributeValue] | None = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        self.decided().record_exception(exception, attributes, timestamp, escaped)
