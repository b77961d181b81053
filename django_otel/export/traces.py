"""The pipeline of spans: our tracer provider, its limits and processors, and the tail buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from django_otel._version import __version__
from django_otel.base import forks, guard, sdk_compat
from django_otel.config.schema import Config
from django_otel.export.limits import apply_sdk_span_limits, apply_span_limits, build_span_limits
from django_otel.export.processors import MemorySpanProcessor, SwitchProcessor
from django_otel.export.state import SCOPE_NAME, ProcessState
from django_otel.metrics.instruments import Counter
from django_otel.metrics.series import Series
from django_otel.redaction.span_cleaner import SpanCleaner
from django_otel.sampling.effective import EffectivePolicy
from django_otel.tracing.attributes import cut_span
from django_otel.tracing.ids import OwnRandomIdGenerator
from django_otel.tracing.provider import OwnTracerProvider

if TYPE_CHECKING:
    from django_otel.tracing.tail import TailBuffer

_NOOP_TRACER = trace.NoOpTracer()


class TracePipeline:
    """Spans on their way out. The provider is made once and kept: tracers that were handed out go on to work."""

    def __init__(self, state: ProcessState) -> None:
        self._state = state
        #: For our own spans, by the effective settings.
        self.tracer: trace.Tracer = _NOOP_TRACER
        #: The provider in use, ours or another tool's; None when no spans are made.
        self.provider: trace.TracerProvider | None = None
        self.own_provider: OwnTracerProvider | None = None
        self.ids = OwnRandomIdGenerator()
        self.switch = SwitchProcessor()
        self.tail: TailBuffer | None = None
        self._limits = build_span_limits()
        #: Of spans that the SDK makes; these are cut when they end.
        self._sdk_limits = build_span_limits()
        self.switch.cut = self._cut
        #: Kept over restarts: a test sees what was recorded inside its `override_settings` also after it.
        self._memory: list[ReadableSpan] = []
        forks.register("tracing.ids", self.ids.after_fork)

    def build_processors(self, config: Config) -> tuple[SpanProcessor, ...]:
        """Processors that spans are to be handed to. Errors: `ConfigError`, before anything is changed."""
        state = self._state
        if state.is_testing:
            memory = MemorySpanProcessor(self.clean)
            memory.spans = self._memory
            return (memory,)
        if state.is_skipped:
            return ()
        if not config.traces.exporters:
            return ()
        from django_otel.export.building import build_span_processors

        return build_span_processors(config, self.build_cleaner(config), state.count_drop, state.count_failure)

    def build_cleaner(self, config: Config) -> SpanCleaner:
        """Cleaner of spans before they leave."""
        return SpanCleaner(self._state.scrubber, config.database.statement, config.request.query)

    def clean(self, span: ReadableSpan) -> ReadableSpan:
        """A finished span as it may leave under the settings of now."""
        return self.build_cleaner(self._state.config)(span)

    def start(self, config: Config, processors: tuple[SpanProcessor, ...]) -> None:
        """Make spans as `config` says and hand them to `processors`."""
        state = self._state
        installed = sdk_compat.global_tracer_provider()
        foreign = installed if installed is not None and installed is not self.own_provider else None
        state.is_foreign = False
        if config.providers == "none":
            self.stop()
            return
        if config.providers == "auto" and foreign is not None:
            state.is_foreign = True
            self.provider = foreign
            self.switch.parts = ()
            guard.warn_once(
                "foreign provider",
                "django_otel: another tool has installed a tracer provider (%s); its exporters and its sampler are "
                "used. TRACES.EXPORTERS and the admin's sampling have no effect. For our own set "
                "OTEL['PROVIDERS'] = 'own'.",
                type(foreign).__module__,
            )
        else:
            own = self._find_own_provider()
            if installed is None:
                trace.set_tracer_provider(own)
            apply_span_limits(self._limits, config)
            apply_sdk_span_limits(self._sdk_limits, self._limits)
            sdk_compat.set_resource(own, state.resource)
            self.provider = own
            # Has the provider look at its resource, too.
            self.switch.parts = processors
            self.tail = None
            self.switch_tail(state.sampler.policy)
        self.tracer = self.provider.get_tracer(SCOPE_NAME, __version__)

    def stop(self) -> None:
        """Make no spans of our own, and hand on none."""
        self.provider = None
        self.tracer = _NOOP_TRACER
        self.switch.parts = ()

    def after_fork(self) -> None:
        """In the child: the new resource; nothing of what the parent has queued or held back."""
        own = self.own_provider
        if own is not None:
            sdk_compat.set_resource(own, self._state.resource)
            own.refresh()
        parts: tuple[object, ...] = (*self.switch.parts, self.switch.tail)
        for part in parts:
            if hasattr(part, "after_fork"):
                part.after_fork()

    def _find_own_provider(self) -> OwnTracerProvider:
        if self.own_provider is None:
            state = self._state
            # Shut down by us: there is one budget for all signals.
            self.own_provider = OwnTracerProvider(
                state.sampler,
                state.resource,
                self.ids,
                self._limits,
                lambda text: state.scrubber.text(text),
                self._sdk_limits,
            )
            self.own_provider.add_span_processor(self.switch)
        return self.own_provider

    def _cut(self, span: ReadableSpan) -> ReadableSpan:
        """Return a span that the SDK has made as `LIMITS` ask for."""
        return cut_span(span, self._limits, self._state.scrubber.text)

    def switch_tail(self, policy: EffectivePolicy) -> None:
        """Hold back the spans of dropped traces while a policy asks for it, and do nothing about it otherwise."""
        if policy.keeps and self.tail is None:
            self.tail = self._build_tail(self._state.config)
        tail = self.tail if policy.keeps else None
        if self.switch.tail is not tail:
            before, self.switch.tail = self.switch.tail, tail
            if before is not None:
                before.clear()

    def _build_tail(self, config: Config) -> TailBuffer:
        """Return the buffer of spans of unsampled traces; empty unless a policy needs it."""
        # Late: most policies hold nothing back.
        from django_otel.tracing.tail import TailBuffer

        state = self._state
        return TailBuffer(
            config.sampling.tail_buffer_spans,
            policy=lambda: state.sampler.policy,
            emit=self.switch.emit,
            discard=self.switch.discard,
            on_keep=lambda reason: self.open_decisions("", "kept", reason).add(1.0),
            on_drop=lambda count: state.count_drop(count, "tail_buffer", "traces"),
        )

    def open_decisions(self, rule: str, decision: str, reason: str) -> Series:
        """The series that counts traces decided like this."""
        attributes = {"sampling.rule": rule} if rule else {}
        decisions = self._state.store.catalogued("django_otel.sampling.decisions")
        assert isinstance(decisions, Counter)
        return decisions.series({**attributes, "sampling.decision": decision, "sampling.reason": reason})

    def find_memory(self) -> list[ReadableSpan]:
        """The finished spans of the memory exporter, oldest first; the list itself, so it may be cleared."""
        if self._state.is_testing:
            return self._memory
        return next((part.spans for part in self.switch.parts if isinstance(part, MemorySpanProcessor)), [])

    def clear_memory(self) -> None:
        """Drop what memory holds for tests."""
        self._memory.clear()
