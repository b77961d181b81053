"""Span processors: the one of our provider, and those behind it that batch, clean or keep spans."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import StatusCode, TraceFlags

from django_otel.base import forks, guard
from django_otel.base.sdk_compat import EndingForwarder, context_of, flags_of, rebuild_span
from django_otel.config.schema import Config
from django_otel.export.batch import BatchWorker, WorkerOwner
from django_otel.tracing.provider import Distributor, Taker, does_nothing
from django_otel.tracing.spans import UNSET, RecordedSpan, is_discarded, to_readable

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from django_otel.export.answers import DropCounter, FailureCounter
    from django_otel.tracing.tail import TailBuffer


class SwitchProcessor(EndingForwarder, Distributor, Taker):
    """The only processor of our tracer provider; those behind it change with the settings."""

    def __init__(self) -> None:
        self._parts: tuple[SpanProcessor, ...] = ()
        #: Those that do something when a span begins, and those that are the project's own.
        self._starters: tuple[Callable[..., None], ...] = ()
        self._projects: tuple[SpanProcessor, ...] = ()
        self._tail: TailBuffer | None = None
        #: Cuts long texts of spans that the SDK has made; ours are cut when they are set.
        self.cut: Callable[[ReadableSpan], ReadableSpan] | None = None

    @property
    def parts(self) -> tuple[SpanProcessor, ...]:
        """The processor that receives spans; assign it."""
        return self._parts

    @parts.setter
    def parts(self, parts: tuple[SpanProcessor, ...]) -> None:
        self._parts = parts
        self._starters = tuple(
            part.on_start for part in parts if not does_nothing(part.on_start, SpanProcessor.on_start)
        )
        self._projects = tuple(part for part in parts if isinstance(part, CleanProcessor))
        self.changed()

    @property
    def tail(self) -> TailBuffer | None:
        """Return where the spans of traces go that are recorded and not sampled; they exist only with tail keeping."""
        return self._tail

    @tail.setter
    def tail(self, tail: TailBuffer | None) -> None:
        self._tail = tail
        self.changed()

    def targets(self) -> tuple[SpanProcessor, ...]:
        # Two calls per span less where nothing is held back, and no processor of the project's changes spans.
        return self._parts if self._tail is None and not self._projects else (self,)

    def held(self) -> TailBuffer | None:
        # Every processor with a start of its own sees them as well.
        return self._tail if not self._starters and not self._projects else None

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        for start in self._starters:
            start(span, parent_context)
        if self._tail is not None and not flags_of(span.context) & 1:
            self._tail.start(span)

    def take(self, span: RecordedSpan) -> None:
        tail = self._tail
        if tail is not None and not flags_of(context_of(span)) & 1:
            tail.end(span)
        elif tail is not None and span.status is not UNSET and span.status.status_code is StatusCode.ERROR:
            self.emit(tail.correct(to_readable(span)))
        else:
            self.emit(span)

    def on_end(self, span: ReadableSpan) -> None:
        if self.cut is not None:
            with guard.contained("cutting the texts of a span"):
                span = self.cut(span)
        if self.tail is not None and span.context is not None:
            if not span.context.trace_flags.sampled:
                self.tail.end(span)
                return
            if span.status.status_code is StatusCode.ERROR:
                span = self.tail.correct(span)
        self.emit(span)

    def emit(self, span: ReadableSpan) -> None:
        """Hand on a span that is exported; what a project's processor changes in it, the parts after it see."""
        for part in self._parts:
            if isinstance(part, CleanProcessor):
                span = part.process(to_readable(span))
            elif type(span) is not RecordedSpan:
                part.on_end(span)
            elif isinstance(part, Taker):
                part.take(span)
            else:
                part.on_end(to_readable(span))

    def withdraw(self, root: RecordedSpan) -> None:
        if self._tail is not None:
            self._tail.withdraw(root)
        for part in self._parts:
            if isinstance(part, Taker):
                part.withdraw(root)

    def discard(self, span: ReadableSpan) -> None:
        """Report the end of a span that is not kept to the project's own processors, which have seen it begin."""
        for part in self._projects:
            part.on_end(to_readable(span))

    def shutdown(self) -> None:
        for part in self.parts:
            part.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        # A list: each one is flushed, also after one has failed.
        return all([part.force_flush(timeout_millis) for part in self.parts])  # noqa: C419 (every part is flushed)


class SpanBatchProcessor(WorkerOwner, Taker):
    """Sampled spans to an exporter in batches; each is scrubbed on the way, in the exporting thread.

    Without `clean` the exporter does that itself. Spans that cannot be cleaned
    or encoded are counted as dropped for the reason "encode".
    """

    def __init__(
        self,
        exporter: SpanExporter,
        clean: Callable[[ReadableSpan], ReadableSpan] | None,
        config: Config,
        on_drop: DropCounter,
        on_failure: FailureCounter,
        *,
        delay_s: float | None = None,
    ) -> None:
        self.exporter = exporter
        self._clean = None
        if clean is not None:
            from django_otel.export.lazy_spans import build_lazy_cleaner

            self._clean = build_lazy_cleaner(clean)
        self._on_drop = on_drop
        self._lost = 0
        batch = config.traces.batch
        self.worker: BatchWorker[ReadableSpan] = BatchWorker(
            "spans",
            self._export,
            queue_size=batch.queue_size,
            batch_size=batch.batch_size,
            delay_s=batch.delay_s if delay_s is None else delay_s,
            on_drop=lambda count, reason: on_drop(count, reason, "traces"),
            on_failure=lambda: on_failure("traces"),
        )

    def take(self, span: RecordedSpan) -> None:
        if flags_of(context_of(span)) & 1:
            self.worker.put(span)

    def _export(self, spans: list[ReadableSpan]) -> bool:
        # Here: who exports nothing needs no part of it.
        with forks.importing.using():
            from opentelemetry.sdk.trace.export import SpanExportResult

        self._lost = 0
        if any(map(is_discarded, spans)):
            spans[:] = [span for span in spans if not is_discarded(span)]
            if not spans:
                return True
        try:
            return self.exporter.export(self._cleaned(spans)) is SpanExportResult.SUCCESS
        finally:
            # They are counted; should the export have failed, the worker counts what stays in its list.
            del spans[: self._lost]

    def _cleaned(self, spans: list[ReadableSpan]) -> list[ReadableSpan]:
        if self._clean is None:
            return spans
        cleaned: list[ReadableSpan] = []
        for span in spans:
            # One that cannot be cleaned may not leave, and must not take its batch along.
            with guard.contained("cleaning a span"):
                cleaned.append(self._clean(span))
        if len(cleaned) < len(spans):
            self.lose(len(spans) - len(cleaned))
        return cleaned

    def lose(self, count: int, reason: str = "encode") -> None:
        """Count spans of the batch under way that are not exported, apart from the others.

        "" is the reason of those that have arrived.
        """
        self._lost += count
        if reason:
            self._on_drop(count, reason, "traces")

    def on_end(self, span: ReadableSpan) -> None:
        context = span.context
        if context is not None and context.trace_flags & TraceFlags.SAMPLED:
            self.worker.put(span)


class CleanProcessor(EndingForwarder, SpanProcessor):
    """A project's own span processor, which gets spans scrubbed and whose faults are contained."""

    def __init__(self, inner: SpanProcessor, clean: Callable[[ReadableSpan], ReadableSpan]) -> None:
        self._inner = inner
        self._clean = clean
        self.parts = (inner,)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        with guard.contained(f"the span processor {type(self._inner).__name__}"):
            self._inner.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        self.process(span)

    def process(self, span: ReadableSpan) -> ReadableSpan:
        """Pass the span on, scrubbed; return it with the changes that the processor has made."""
        with guard.contained(f"the span processor {type(self._inner).__name__}"):
            # Also when the processor fails later: it may have changed a part.
            span = self._clean(span)
            # A copy whose attributes can be changed: those of an ended span cannot, or are also others'.
            span = rebuild_span(span, span.attributes or {}, span.context)
            self._inner.on_end(span)
        return span

    def shutdown(self) -> None:
        with guard.contained(f"the span processor {type(self._inner).__name__}"):
            self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._inner.force_flush(timeout_millis)


class MemorySpanProcessor(Taker):
    """Finished, scrubbed spans in a list, for tests and the exporter "memory"."""

    #: The exporter "memory" in a running server must not grow without end.
    MAX_SPANS = 100_000
    MAX_ROOTS = 1000

    def __init__(self, clean: Callable[[ReadableSpan], ReadableSpan]) -> None:
        self._clean = clean
        self.spans: list[ReadableSpan] = []
        #: Local roots by the `id()` of a kept span inside one; of the last spans alone.
        self._roots: dict[int, RecordedSpan] = {}

    def take(self, span: RecordedSpan) -> None:
        if flags_of(context_of(span)) & 1:
            kept = self._keep(to_readable(span))
            self._roots[id(kept)] = span.root
            while len(self._roots) > self.MAX_ROOTS:
                self._roots.pop(next(iter(self._roots)), None)

    def withdraw(self, root: RecordedSpan) -> None:
        for kept in list(self.spans):
            if self._roots.get(id(kept)) is root:
                self.spans.remove(kept)

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self._keep(span)

    def _keep(self, span: ReadableSpan) -> ReadableSpan:
        kept = self._clean(span)
        self.spans.append(kept)
        if len(self.spans) > self.MAX_SPANS:
            del self.spans[: self.MAX_SPANS // 10]
        return kept

    def after_fork(self) -> None:
        """In the child: what is kept was recorded by the parent."""
        self.spans.clear()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True
