"""Tracer provider of our tracers, and the kinds of span processors that it calls directly."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from django_otel.base import sdk_compat
from django_otel.sampling.sampler import LiveSampler
from django_otel.tracing.ids import OwnRandomIdGenerator
from django_otel.tracing.spans import RecordedSpan, Shared
from django_otel.tracing.tracer import Tracer

if TYPE_CHECKING:
    from django_otel.tracing.tail import TailBuffer

_MAX_TRACERS = 1000


class Taker(SpanProcessor):
    """A span processor of ours, which takes our spans as they are when they end: no `ReadableSpan` is made."""

    def take(self, span: RecordedSpan) -> None:
        """A span ended. `to_readable` and `parts` give its contents."""
        raise NotImplementedError

    def withdraw(self, root: RecordedSpan) -> None:
        """Forget the spans of a local root that is discarded, unless `is_discarded` is checked before the export."""


class Distributor(SpanProcessor):
    """A span processor that hands spans on to others, which may change; call `changed` then."""

    #: Set by the provider that the processor was added to.
    on_change: Callable[[], None] | None = None

    def targets(self) -> tuple[SpanProcessor, ...]:
        """Return where spans go that are given to this processor: they are given there straight away."""
        raise NotImplementedError

    def held(self) -> TailBuffer | None:
        """Return where spans wait that are recorded and not sampled, if nothing else sees these; else None."""
        return None

    def changed(self) -> None:
        """Say that `targets` has changed."""
        if self.on_change is not None:
            self.on_change()


def does_nothing(method: object, function: object) -> bool:
    """Return whether a processor's method is `SpanProcessor`'s own."""
    return getattr(method, "__func__", None) is function


class OwnTracerProvider(sdk_compat.WatchedTracerProvider):
    """The SDK's provider, whose tracers make our spans.

    Call `refresh` after a change of its resource or of what its processors are.
    `sdk_limits` are those of spans that the SDK makes, where they differ from `limits`.
    """

    def __init__(
        self,
        sampler: LiveSampler,
        resource: Resource,
        ids: OwnRandomIdGenerator,
        limits: SpanLimits,
        scrub: Callable[[str], str] | None = None,
        sdk_limits: SpanLimits | None = None,
    ) -> None:
        self._shared = Shared(sampler, ids, limits, resource, scrub)
        self._added: tuple[SpanProcessor, ...] = ()
        self._own_tracers: dict[tuple[object, ...], Tracer] = {}
        super().__init__(
            sampler=sampler,
            resource=resource,
            shutdown_on_exit=False,
            id_generator=ids,
            span_limits=sdk_limits or limits,
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
        shared.held = (
            self._added[0].held() if len(self._added) == 1 and isinstance(self._added[0], Distributor) else None
        )
        shared.is_sdk_path = (
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
            # Switched off by OTEL_SDK_DISABLED, with a foreign sampler, or measured by the SDK itself.
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
