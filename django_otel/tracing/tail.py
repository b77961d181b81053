"""Tail keeping: exports traces that the head decision dropped if they end in an error or take long.

With `KEEP_ERRORS` or `KEEP_SLOW_S` the spans of a dropped trace are recorded
without the sampled flag and held here, per local trace, until the local root
ends. Then they are exported, re-created with the flag, a reason and a weight of
one, or forgotten. Other services received an unsampled trace, so
only what happened in this process is kept.

The buffer is bounded in spans over all traces of the process; when it is full
the oldest trace is dropped and counted. Its root is still seen when it ends:
an error is then exported without the spans inside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, StatusCode, TraceFlags

from django_otel.base.sdk_compat import context_of, outcome_of, parent_of, rebuild_span, span_id_of
from django_otel.sampling.decision import REASON, WEIGHT
from django_otel.sampling.effective import EffectivePolicy
from django_otel.tracing.spans import UNSET, RecordedSpan, to_readable

_NANOSECONDS_PER_S = 1_000_000_000


class _LocalTrace:
    """The spans of one trace in this process, below one root."""

    # Filled in by who makes one: an `__init__` would cost more than the rest.
    __slots__ = ("ended", "ids", "reason", "root_id")
    root_id: int
    #: Every span that is held, under way or ended.
    ids: list[int]
    ended: list[Any]
    #: None while the root is under way; then why the trace was kept, or "".
    reason: str | None


class TailBuffer:
    """Holds back the spans of dropped traces until it is known how they end.

    `policy()` is the effective policy; `emit(span)` exports a kept one, `discard(span)`
    drops an unsampled one; `on_keep(reason)` is called per kept trace
    ("error", "slow"), `on_drop(count)` for spans that are pushed out.

    Written without a lock around what every span does: the dictionaries' own
    operations are atomic.

    Units: `most_spans` counts spans under way and ended, over all traces.
    """

    def __init__(
        self,
        most_spans: int,
        *,
        policy: Callable[[], EffectivePolicy],
        emit: Callable[[ReadableSpan], None],
        discard: Callable[[ReadableSpan], None] | None,
        on_keep: Callable[[str], None],
        on_drop: Callable[[int], None],
    ) -> None:
        self._most_spans = most_spans
        self._policy = policy
        self._emit = emit
        self._discard = discard
        self._on_keep = on_keep
        self._on_drop = on_drop
        self.after_fork()

    def after_fork(self) -> None:
        """In the child: held spans are the parent's."""
        #: By root span id, oldest first.
        self._traces: dict[int, _LocalTrace] = {}
        #: By span id, for every span that is held: its length is what is bounded.
        self._owners: dict[int, _LocalTrace] = {}
        self._evicting = threading.Lock()

    renew_locks = after_fork

    def clear(self) -> None:
        """Forget the held spans, because no policy asks for them any more."""
        self._traces.clear()
        self._owners.clear()

    def withdraw(self, root: object) -> None:
        """Forget the trace of a local root that is discarded."""
        owner = self._traces.pop(span_id_of(context_of(root)), None)
        if owner is not None:
            for span_id in list(owner.ids):
                self._owners.pop(span_id, None)
            owner.ended = []

    def passes(self, root: RecordedSpan, duration_s: float) -> bool:
        """Return whether nothing is kept of the trace of `root`, a root that ends now after so many seconds."""
        if span_id_of(context_of(root)) not in self._traces:
            # Inside another span of this process, which decides; or pushed out.
            return False
        slow_s = self._policy().keep_slow_s
        return root.status is UNSET and (slow_s is None or duration_s < slow_s)

    def __len__(self) -> int:
        """Return how many spans are held."""
        return len(self._owners)

    def start(self, span: object) -> None:
        """A span began that is recorded and not sampled."""
        span_id = span_id_of(context_of(span))
        parent = parent_of(span)
        if parent is None or parent.is_remote:
            owner = _LocalTrace()
            owner.root_id = span_id
            owner.ids = [span_id]
            owner.ended = []
            owner.reason = None
            self._traces[span_id] = owner
        else:
            found = self._owners.get(span_id_of(parent))
            if found is None:
                # Its trace was pushed out, or is over.
                return
            owner = found
            owner.ids.append(span_id)
        self._owners[span_id] = owner
        if len(self._owners) > self._most_spans:
            self._evict()

    def end(self, span: Any) -> None:
        """A span ended that is recorded and not sampled; exports its trace if this is the root and it is to be kept."""
        span_id = span_id_of(context_of(span))
        owner = self._owners.get(span_id)
        if owner is None:
            if span.parent is None or span.parent.is_remote:
                self._end_alone(span)
            else:
                self._forget(span)
        elif owner.reason is not None:
            # It outlived its root, and shares its lot.
            self._owners.pop(span_id, None)
            if owner.reason:
                self._emit(keep(span, owner.reason))
            else:
                self._forget(span)
        elif span_id != owner.root_id:
            owner.ended.append(span)
        else:
            self._end_root(owner, span)

    def _end_root(self, owner: _LocalTrace, root: ReadableSpan) -> None:
        owner.reason = reason = self._reason(root)
        owners, ended = self._owners, owner.ended
        self._traces.pop(owner.root_id, None)
        owners.pop(owner.root_id, None)
        for span in ended:
            owners.pop(span_id_of(context_of(span)), None)
        if reason:
            self._on_keep(reason)
            for span in ended:
                self._emit(keep(span, reason))
            self._emit(keep(root, reason))
        elif self._discard is not None:
            for span in ended:
                self._discard(span)
            self._discard(root)
        owner.ended = []

    def _end_alone(self, root: ReadableSpan) -> None:
        reason = self._reason(root)
        if reason:
            self._on_keep(reason)
            self._emit(keep(root, reason))
        else:
            self._forget(root)

    def _forget(self, span: ReadableSpan) -> None:
        if self._discard is not None:
            self._discard(span)

    def _reason(self, root: object) -> str:
        policy = self._policy()
        status, start_unix_nano, end_unix_nano = outcome_of(root)
        if status is not UNSET and policy.keep_errors and status.status_code is StatusCode.ERROR:
            # Not under the limit: it never starves errors.
            return "error"
        slow_s = policy.keep_slow_s
        if (
            slow_s is not None
            and end_unix_nano - start_unix_nano >= slow_s * _NANOSECONDS_PER_S
            and (policy.limiter is None or policy.limiter.acquire())
        ):
            return "slow"
        return ""

    def correct(self, span: ReadableSpan) -> ReadableSpan:
        """A sampled root that would have been kept anyway stands for itself alone, whatever share was recorded."""
        attributes = span.attributes
        if (
            attributes is None
            or WEIGHT not in attributes
            or not (span.parent is None or span.parent.is_remote)
            or not self._policy().keep_errors
            or span.status.status_code is not StatusCode.ERROR
        ):
            return span
        return rebuild_span(span, {**attributes, WEIGHT: 1.0}, span.get_span_context())

    def _evict(self) -> None:
        owners = self._owners
        # Blocks, else the bound would be passed while the thread that evicts is not given the processor.
        with self._evicting:
            while len(owners) > self._most_spans:
                try:
                    oldest = next(iter(self._traces), None)
                except RuntimeError:
                    # A trace began in another thread at this moment.
                    continue
                owner = self._traces.pop(oldest, None) if oldest is not None else None
                if owner is None:
                    if oldest is None:
                        # Only spans that outlived their roots are left.
                        self._on_drop(len(owners))
                        owners.clear()
                    continue
                held = sum(owners.pop(span_id, None) is not None for span_id in list(owner.ids))
                ended, owner.ended = owner.ended, []
                self._on_drop(held)
                if self._discard is not None:
                    for span in ended:
                        self._discard(span)


def keep(span: ReadableSpan, reason: str) -> ReadableSpan:
    """A finished span of a trace that is kept: with the sampled flag, the reason and the weight 1."""
    span = to_readable(span)
    context = span.get_span_context()
    assert context is not None
    kept = SpanContext(
        context.trace_id,
        context.span_id,
        context.is_remote,
        TraceFlags(context.trace_flags | TraceFlags.SAMPLED),
        context.trace_state,
    )
    return rebuild_span(span, {**(span.attributes or {}), REASON: reason, WEIGHT: 1.0}, kept)
