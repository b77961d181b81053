"""The limit of spans in one trace."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from django_otel.requests import record


class SpanBudget:
    """Most spans recorded in one trace by this process: per request, or per trace id outside of one.

    Of the spans above the limit those that fail are exported, `MAX_FAILED` of a trace at most; `on_drop()` is called
    for each of the others.
    """

    MAX_FAILED = 100

    #: Traces outside of requests that are counted at a time; the oldest is forgotten.
    MAX_TRACES = 1000

    def __init__(self, limit: int, on_drop: Callable[[], None]) -> None:
        self._limit = limit
        self._on_drop = on_drop
        self._counts: dict[int, int] = {}
        self._failed: dict[int, int] = {}

    def take(self, trace_id: int) -> bool | None:
        """Return whether one more span of this trace may be recorded; None when it is above the limit."""
        found = record.current()
        if found is not None:
            if found.is_span_discarded:
                return False
            found.spans += 1
            taken = found.spans
        else:
            # The root was the first; a race between threads of one trace may let a span too many through.
            taken = self._counts.pop(trace_id, 1) + 1
            self._count(self._counts, trace_id, taken)
        return True if taken <= self._limit else None

    def end(self, trace_id: int, is_error: bool) -> bool:
        """A span above the limit has ended; whether it is exported."""
        failed = self._failed.pop(trace_id, 0) + 1 if is_error else 0
        if is_error:
            self._count(self._failed, trace_id, failed)
        if is_error and failed <= self.MAX_FAILED:
            found = record.current()
            if found is not None:
                # It is none of those that are missing in the trace.
                found.spans -= 1
            return True
        self._on_drop()
        return False

    def _count(self, counts: dict[int, int], trace_id: int, number: int) -> None:
        counts[trace_id] = number
        if len(counts) > self.MAX_TRACES:
            with contextlib.suppress(KeyError, StopIteration, RuntimeError):
                del counts[next(iter(counts))]
