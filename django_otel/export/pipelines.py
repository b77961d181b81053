"""From a `Config` to providers, processors and exporters; flush and shutdown within one budget.

Providers live as long as the process, because tracers, meters and loggers are
kept by whoever asked for them; what hangs behind a provider is replaced when
the settings change. Every SDK constructor gets every argument, since each would
read `OTEL_*` for itself otherwise, and the source shown to the operator be wrong.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from opentelemetry.context import Context
from opentelemetry.sdk import version as sdk_version
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits, SpanProcessor
from opentelemetry.trace import StatusCode, TraceFlags

from django_otel._version import __version__
from django_otel.base import guard, sdk_environment
from django_otel.base.sdk_compat import (
    LOG_EXPORTER_MODULE,
    EndingForwarder,
    context_of,
    flags_of,
    rebuild_span,
    watch_grpc_answers,
)
from django_otel.config.schema import Config, ConfigError, Problem
from django_otel.export.answers import Answers, DropCounter, Items, Points, send_in_parts
from django_otel.export.batch import BatchWorker, WorkerOwner
from django_otel.metrics.model import Family
from django_otel.redaction.scrub import Scrubber
from django_otel.tracing.propagation import BaggagePropagator, TraceContextPropagator
from django_otel.tracing.provider import Distributor, Taker, does_nothing
from django_otel.tracing.spans import RecordedSpan, is_discarded, to_readable

if TYPE_CHECKING:
    from opentelemetry.propagators.textmap import TextMapPropagator
    from opentelemetry.sdk._logs.export import LogRecordExporter
    from opentelemetry.sdk.trace.export import SpanExporter

    from django_otel.metrics.sdk_metrics import MetricsDataBuilder
    from django_otel.tracing.tail import TailBuffer

#: Counts failed exports by signal.
FailureCounter = Callable[[str], None]

#: Names of exporters that send OTLP: protobuf or JSON over HTTP, protobuf over gRPC.
OTLP_KINDS = ("otlp", "otlp-json", "otlp-grpc")
_CONSOLE_DELAY_S = 0.2
_DEFAULT_HTTP_ENDPOINT = "http://localhost:4318"
#: Names the package that makes the session of a signal's exporter.
_CREDENTIALS = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_{}CREDENTIAL_PROVIDER"
_DEFAULT_GRPC_ENDPOINT = "http://localhost:4317"


def package_version(distribution: str) -> str:
    """The installed version of a distribution, or ""."""
    # What pip writes has it in its name. `importlib.metadata` imports as much as the rest of our start-up.
    prefix = f"{distribution.replace('-', '_')}-"
    for folder in sys.path:
        with contextlib.suppress(OSError):
            for name in os.listdir(folder or "."):  # noqa: PTH208 (no path is made of the thousand others)
                if name.startswith(prefix) and name.endswith(".dist-info") and Path(folder, name, "METADATA").exists():
                    return name.removeprefix(prefix).removesuffix(".dist-info")
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def build_resource(config: Config, clean: Callable[[Mapping[str, Any]], Any] | None = None) -> Resource:
    """The resource of this process, through `clean`; `service.instance.id` is new with each call.

    Not `Resource.create`, which runs detectors in a thread pool and reads the
    environment a second time.
    Source: OpenTelemetry semantic conventions, "Service" and "Telemetry SDK".
    """
    attributes: dict[str, Any] = {
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
        "telemetry.sdk.version": sdk_version.__version__,
        "telemetry.distro.name": "django-otel-kit",
        "telemetry.distro.version": __version__,
    }
    attributes.update(config.resource)
    attributes["service.name"] = config.service_name or "django"
    if config.service_version is not None:
        attributes["service.version"] = config.service_version
    if config.environment is not None:
        attributes["deployment.environment.name"] = config.environment
    # One that is given is kept, but two processes must not be one instance.
    given = attributes.get("service.instance.id")
    attributes["service.instance.id"] = f"{given}-{uuid.uuid4().hex[:12]}" if given else str(uuid.uuid4())
    return Resource(attributes if clean is None else clean(attributes))


def build_span_limits() -> SpanLimits:
    """Limits that `apply_limits` changes in place: tracers copy the object, not its values."""
    return SpanLimits(
        max_attributes=128,
        max_span_attributes=128,
        max_events=128,
        max_links=128,
        max_event_attributes=128,
        max_link_attributes=128,
        max_attribute_length=4096,
        max_span_attribute_length=4096,
    )


def apply_limits(limits: SpanLimits, config: Config) -> None:
    """Put the settings' limits in force for spans started from now on."""
    wanted = config.traces.limits
    limits.max_attributes = limits.max_span_attributes = wanted.attributes
    limits.max_event_attributes = wanted.attributes if wanted.event_attributes is None else wanted.event_attributes
    limits.max_link_attributes = wanted.attributes if wanted.link_attributes is None else wanted.link_attributes
    limits.max_attribute_length = limits.max_span_attribute_length = wanted.attribute_length
    limits.max_events = wanted.events
    limits.max_links = wanted.links


class SwitchProcessor(EndingForwarder, Distributor, Taker):
    """The one processor our tracer provider knows; what it hands on to changes with the settings."""

    def __init__(self) -> None:
        self._parts: tuple[SpanProcessor, ...] = ()
        #: Those that do something when a span begins, and those that are the project's own.
        self._starters: tuple[Any, ...] = ()
        self._projects: tuple[SpanProcessor, ...] = ()
        self._tail: TailBuffer | None = None

    @property
    def parts(self) -> tuple[SpanProcessor, ...]:
        """What spans are handed on to; assign it."""
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
        """Where the spans of traces go that are recorded and not sampled; they exist only with tail keeping."""
        return self._tail

    @tail.setter
    def tail(self, tail: TailBuffer | None) -> None:
        self._tail = tail
        self.changed()

    def targets(self) -> tuple[SpanProcessor, ...]:
        # Two calls per span less where nothing is held back, and no processor of the project's changes spans.
        return self._parts if self._tail is None and not self._projects else (self,)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        for start in self._starters:
            start(span, parent_context)
        if self._tail is not None and not flags_of(span.context) & 1:
            self._tail.start(span)

    def take(self, span: RecordedSpan) -> None:
        tail = self._tail
        if tail is not None and not flags_of(context_of(span)) & 1:
            tail.end(span)
        elif tail is not None and span.status.status_code is StatusCode.ERROR:
            self.emit(tail.correct(to_readable(span)))
        else:
            self.emit(span)

    def on_end(self, span: ReadableSpan) -> None:
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
        """Tell a project's own processors of the end of a span that is not kept; they have seen it begin."""
        for part in self._projects:
            part.on_end(to_readable(span))

    def shutdown(self) -> None:
        for part in self.parts:
            part.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        # A list: each one is flushed, also after one has failed.
        return all([part.force_flush(timeout_millis) for part in self.parts])  # noqa: C419


class SpanCleaner:
    """What is done to a finished span before it leaves: library spans set right, then secrets redacted.

    Calling it does both. The encoder takes the parts: `prepare` for spans of
    official instrumentors, and the scrubber for each text that it has not seen.
    """

    def __init__(self, scrubber: Scrubber, statement: str = "parameterised", keep_query: bool = False) -> None:
        self.scrubber = scrubber
        self._statement = statement
        self._keep_query = keep_query

    def __call__(self, span: ReadableSpan) -> ReadableSpan:
        return self.scrubber.span(self.prepare(span))

    def prepare(self, span: ReadableSpan) -> ReadableSpan:
        """The span with what an official instrumentor has written into it set right."""
        from django_otel.redaction import library_spans

        return library_spans.clean_span(span, self._statement, self._keep_query)


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
        self._clean = clean
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
                cleaned.append(self._clean(to_readable(span)))
        if len(cleaned) < len(spans):
            self.lose(len(spans) - len(cleaned))
        return cleaned

    def lose(self, count: int, reason: str = "encode") -> None:
        """Count spans of the batch under way that are not exported whatever becomes of the others.

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
        """Hand the span over, scrubbed; what was handed over, with the changes that the processor has made in it."""
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


def import_path(path: str) -> Any:
    """What a dotted path names. Errors: `ConfigError` (E003) when it cannot be imported."""
    module_name, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        raise ConfigError(
            [
                Problem(
                    "django_otel.E003",
                    f"{path!r} in OTEL cannot be imported: {type(error).__name__}: {error}.",
                    "Write the path of something that can be imported, as in 'shop.telemetry.enrich'.",
                )
            ]
        ) from error


def _missing_package(name: str, package: str, extra: str) -> ConfigError:
    return ConfigError(
        [
            Problem(
                "django_otel.E004",
                f"OTEL asks for {name!r}, but the package {package} is not installed.",
                f"Run: pip install {extra}",
            )
        ]
    )


# --- Exporters. ---


def grpc_target(settings: Any) -> str:
    """Where gRPC sends to: scheme (https is TLS), host and port, no path.

    Without a scheme it is TLS, unless INSECURE asks for none.
    Source: OTLP exporter specification, "Insecure".
    """
    if settings.endpoint is None:
        return _DEFAULT_GRPC_ENDPOINT
    scheme, separator, rest = settings.endpoint.partition("://")
    if not separator:
        return f"{'http' if settings.insecure else 'https'}://{settings.endpoint}"
    return f"{scheme}://{rest.split('/', 1)[0]}"


def _http_arguments(settings: Any, signal: str) -> dict[str, Any]:
    from opentelemetry.exporter.otlp.proto.http import Compression

    compression = {"gzip": Compression.Gzip, "deflate": Compression.Deflate, "none": Compression.NoCompression}
    return {
        "endpoint": settings.endpoint or f"{_DEFAULT_HTTP_ENDPOINT}/v1/{signal}",
        "headers": dict(settings.headers),
        "timeout": settings.timeout_s,
        "compression": compression[settings.compression],
    }


def _grpc_arguments(settings: Any) -> dict[str, Any]:
    import grpc

    target = grpc_target(settings)
    return {
        "endpoint": target,
        "insecure": not target.startswith("https://"),
        # gRPC metadata keys are lower-case.
        "headers": [(name.lower(), value) for name, value in settings.headers.items()],
        "timeout": settings.timeout_s,
        "compression": grpc.Compression.NoCompression if settings.compression == "none" else grpc.Compression.Gzip,
    }


def _import_exporter(kind: str, signal: str) -> Any:
    """The OTLP exporter class of a signal. Errors: `ConfigError` (E004) when its package is missing."""
    transport = "grpc" if kind == "otlp-grpc" else "http"
    module, name = {
        "traces": ("trace_exporter", "OTLPSpanExporter"),
        "metrics": ("metric_exporter", "OTLPMetricExporter"),
        "logs": (LOG_EXPORTER_MODULE, "OTLPLogExporter"),
    }[signal]
    try:
        return getattr(importlib.import_module(f"opentelemetry.exporter.otlp.proto.{transport}.{module}"), name)
    except ImportError as error:
        package = f"opentelemetry-exporter-otlp-proto-{transport}"
        raise _missing_package(kind, package, "django-otel-kit[grpc]" if transport == "grpc" else package) from error


def _otlp_arguments(kind: str, signal: str, config: Config) -> dict[str, Any]:
    settings = getattr(config, signal)
    arguments = _grpc_arguments(settings) if kind == "otlp-grpc" else _http_arguments(settings, signal)
    if kind == "otlp-json":
        # Compressed by the session, after what the exporter encodes has been rewritten.
        arguments["compression"] = type(arguments["compression"]).NoCompression
    if signal == "metrics":
        # Ours: what is handed over is already cumulative or delta.
        arguments["preferred_temporality"] = {}
        arguments["preferred_aggregation"] = {}
    return arguments


def _watch_answers(
    kind: str, signal: str, arguments: dict[str, Any], compression: str, on_drop: DropCounter
) -> tuple[Any, Answers]:
    """The class of the exporter, which hands over what the receiver answers; `arguments` are added to."""
    exporter_class = _import_exporter(kind, signal)
    answers = Answers(signal, on_drop)
    if kind == "otlp-grpc":
        return watch_grpc_answers(exporter_class, answers), answers
    from django_otel.export.http_session import build_session, watch_session

    if kind == "otlp-json":
        from django_otel.export.json_transport import JsonSession

        arguments["session"] = build_session(answers, JsonSession, signal, compression)
        return exporter_class, answers
    variables = (_CREDENTIALS.format(""), _CREDENTIALS.format(f"{signal.upper()}_"))
    if not sdk_environment.is_any_set(variables):
        arguments["session"] = build_session(answers)
        return exporter_class, answers
    # The project has a session of its own, with its credentials.
    return watch_session(exporter_class, answers), answers


def build_otlp_exporter(kind: str, signal: str, config: Config, on_drop: DropCounter = lambda *_: None) -> Any:
    """The stock OTLP exporter `kind` (one of `OTLP_KINDS`) of a signal ("traces", "metrics", "logs"), as configured.

    What its receiver refuses is given to `on_drop`; a batch that is too large is sent in parts.
    """

    def build() -> _PartsExporter:
        arguments = _otlp_arguments(kind, signal, config)
        exporter_class, answers = _watch_answers(kind, signal, arguments, getattr(config, signal).compression, on_drop)
        return _PartsExporter(exporter_class(**arguments), answers, on_drop)

    return sdk_environment.survive(build)


class _PartsExporter:
    """A stock exporter of metrics or logs whose batches are halved when the receiver calls them too large.

    Items that are too large alone are counted by it, and so are those of a
    part that failed when others have arrived; `lost` tells how many of the
    last batch are no longer the caller's to count.
    """

    def __init__(self, inner: Any, answers: Answers, on_drop: DropCounter) -> None:
        self._inner = inner
        self._answers = answers
        self._on_drop = on_drop
        self.lost = 0

    def export(self, batch: Any, **options: Any) -> Any:
        results: list[Any] = []

        def send(part: Any) -> bool:
            results.append(self._inner.export(part, **options))
            return bool(results[-1].name == "SUCCESS")

        kind: Any = Points if self._answers.signal == "metrics" else Items
        outcome = send_in_parts(batch, send, self._answers, kind)
        if outcome.too_large:
            self._on_drop(outcome.too_large, "too_large", self._answers.signal)
        self.lost = outcome.too_large + outcome.delivered
        result = type(results[-1])
        return result.FAILURE if outcome.failed else result.SUCCESS

    def shutdown(self, *args: Any, **options: Any) -> None:
        self._inner.shutdown(*args, **options)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True


def build_direct_exporter(
    kind: str,
    config: Config,
    clean: Callable[[ReadableSpan], ReadableSpan],
    on_lost: Callable[[int, str], None],
    on_drop: DropCounter = lambda *_: None,
) -> Any:
    """An exporter that takes spans as they are, cleans and encodes them, and sends them as the stock exporter does.

    Where the installed exporter is not built as we know it, the stock one with its own encoding.
    """
    from django_otel.export import otlp

    def build() -> Any:
        arguments = _otlp_arguments(kind, "traces", config)
        watched_class, answers = _watch_answers(kind, "traces", arguments, config.traces.compression, on_drop)
        return otlp.build(kind, watched_class, arguments, config, clean, on_lost, answers)

    return sdk_environment.survive(build)


class LazyExporter:
    """Builds an exporter in the exporting thread, at its first batch.

    Importing `requests`, protobuf or gRPC takes longer than the rest of the
    start-up, and a process that exports nothing never needs them.
    """

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build
        self._lock = threading.Lock()
        self._inner: Any = None
        self._is_shut_down = False

    def export(self, batch: Any, **kwargs: Any) -> Any:
        return self._get().export(batch, **kwargs)

    @property
    def lost(self) -> int:
        """How many items of the last batch, whose export failed, are no longer the caller's to count."""
        return getattr(self._inner, "lost", 0)

    def _get(self) -> Any:
        with self._lock:
            if self._inner is None:
                self._inner = self._build()
            return self._inner

    def after_fork(self) -> None:
        """A connection must not be shared with the parent."""
        self._lock = threading.Lock()
        self._inner = None

    def renew_locks(self) -> None:
        """Make the lock anew, of what `threading` gives now; only before the first batch."""
        if self._inner is None:
            self._lock = threading.Lock()

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        inner = self._inner
        if inner is not None and not self._is_shut_down:
            self._is_shut_down = True
            inner.shutdown()

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True


def check_installed(kind: str, signal: str) -> None:
    """Find a missing exporter package without importing it. Errors: `ConfigError` (E004)."""
    if kind not in OTLP_KINDS:
        return
    package = f"opentelemetry-exporter-otlp-proto-{'grpc' if kind == 'otlp-grpc' else 'http'}"
    if not package_version(package):
        raise _missing_package(kind, package, "django-otel-kit[grpc]" if kind == "otlp-grpc" else package)


def build_span_processors(
    config: Config,
    clean: Callable[[ReadableSpan], ReadableSpan],
    on_drop: DropCounter,
    on_failure: FailureCounter,
) -> tuple[SpanProcessor, ...]:
    """What `TRACES.EXPORTERS` names. Errors: `ConfigError` (E003, E004)."""
    processors: list[SpanProcessor] = []
    for name in config.traces.exporters:
        if name in OTLP_KINDS:
            processors.append(_build_otlp_processor(name, config, clean, on_drop, on_failure))
        elif name == "console":
            from opentelemetry.sdk.trace.export import ConsoleSpanExporter

            processors.append(
                SpanBatchProcessor(ConsoleSpanExporter(), clean, config, on_drop, on_failure, delay_s=_CONSOLE_DELAY_S)
            )
        elif name == "memory":
            processors.append(MemorySpanProcessor(clean))
        else:
            processors.append(_build_own(name, config, clean, on_drop, on_failure))
    return tuple(processors)


def _build_otlp_processor(
    name: str,
    config: Config,
    clean: Callable[[ReadableSpan], ReadableSpan],
    on_drop: DropCounter,
    on_failure: FailureCounter,
) -> SpanBatchProcessor:
    check_installed(name, "traces")
    exporter = LazyExporter(
        lambda: build_direct_exporter(name, config, clean, lambda *lost: processor.lose(*lost), on_drop)
    )
    # Cleaned while they are encoded: a text that was seen before is not scrubbed a second time.
    processor = SpanBatchProcessor(cast("SpanExporter", exporter), None, config, on_drop, on_failure)
    return processor


def _build_own(
    path: str,
    config: Config,
    clean: Callable[[ReadableSpan], ReadableSpan],
    on_drop: DropCounter,
    on_failure: FailureCounter,
) -> SpanProcessor:
    factory = import_path(path)
    try:
        made = factory()
    except Exception as error:
        raise ConfigError(
            [Problem("django_otel.E003", f"{path!r} in TRACES.EXPORTERS raised {type(error).__name__} when called.")]
        ) from error
    if isinstance(made, SpanProcessor):
        return CleanProcessor(made, clean)
    if callable(getattr(made, "export", None)):
        return SpanBatchProcessor(made, clean, config, on_drop, on_failure)
    raise ConfigError(
        [
            Problem(
                "django_otel.E003",
                f"{path!r} in TRACES.EXPORTERS gave a {type(made).__name__}; "
                "expected a SpanExporter or a SpanProcessor.",
            )
        ]
    )


# --- Metrics over OTLP or to the console. ---


class MetricsPump:
    """Exports all families every interval, from a thread that starts when the process has something to say."""

    def __init__(
        self,
        exporters: Sequence[Any],
        collect: Callable[[], list[Family]],
        resource: Callable[[], Resource],
        config: Config,
        on_failure: FailureCounter,
    ) -> None:
        self._exporters = exporters
        self._collect = collect
        self._resource = resource
        self._config = config
        self._on_failure = on_failure
        self._builder: MetricsDataBuilder | None = None
        self._last_failed = False
        self._reset()

    def _reset(self) -> None:
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._export_lock = threading.Lock()

    def after_fork(self) -> None:
        self._reset()
        if self._builder is not None:
            self._builder.forget()
        for exporter in self._exporters:
            if isinstance(exporter, LazyExporter):
                exporter.after_fork()

    def renew_locks(self) -> None:
        """Make the locks anew, of what `threading` gives now; only before the thread has started."""
        if self._thread is None:
            self._reset()
            for exporter in self._exporters:
                if isinstance(exporter, LazyExporter):
                    exporter.renew_locks()

    def start(self) -> None:
        """Start the thread if there is none; idempotent."""
        if self._thread is None and self._exporters:
            self._thread = threading.Thread(target=self._run, name="django_otel-metrics", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._config.metrics.interval_s):
            self.export_now()
        self.export_now()

    def export_now(self) -> bool:
        """Collect and export once; whether every exporter took it."""
        from opentelemetry import context as otel_context

        from django_otel.base.sdk_compat import SUPPRESS_INSTRUMENTATION_KEY

        token = otel_context.attach(otel_context.set_value(SUPPRESS_INSTRUMENTATION_KEY, True))
        try:
            with self._export_lock:
                arrived = False
                with guard.contained("the export of metrics"):
                    # Imports as well: another thread may import the same modules, and one of the two then fails.
                    from opentelemetry.sdk.metrics.export import MetricExportResult

                    from django_otel.metrics.sdk_metrics import MetricsDataBuilder

                    if self._builder is None:
                        self._builder = MetricsDataBuilder(self._config.metrics.temporality)
                    arrived = True
                    data = self._builder.build(self._collect(), self._resource())
                    for exporter in self._exporters if data is not None else ():
                        result = None
                        with guard.contained(f"the metric exporter {type(exporter).__name__}"):
                            result = exporter.export(data)
                        if result is not MetricExportResult.SUCCESS:
                            arrived = False
                            self._on_failure("metrics")
                self._last_failed = not arrived
                return arrived
        finally:
            otel_context.detach(token)

    def flush(self, timeout_s: float) -> bool:
        """Export now, in a thread of its own so that `timeout_s` seconds hold; whether it arrived."""
        if not self._exporters or self._thread is None:
            return True
        done: list[bool] = []
        thread = threading.Thread(target=lambda: done.append(self.export_now()), daemon=True)
        thread.start()
        thread.join(timeout_s)
        return bool(done and done[0])

    def start_shutdown(self) -> None:
        self._stop.set()

    def finish_shutdown(self, timeout_s: float) -> bool:
        thread = self._thread
        if thread is not None:
            thread.join(min(timeout_s, 1.0) if self._last_failed else timeout_s)
        for exporter in self._exporters:
            with guard.contained("the shutdown of a metric exporter"):
                exporter.shutdown()
        return thread is None or not thread.is_alive()


def build_metric_exporters(config: Config, on_drop: DropCounter = lambda *_: None) -> list[Any]:
    """The pushing exporters of `METRICS.EXPORTERS`. Errors: `ConfigError` (E004)."""
    exporters: list[Any] = []
    for name in config.metrics.exporters:
        if name in OTLP_KINDS:
            check_installed(name, "metrics")
            exporters.append(LazyExporter(lambda name=name: build_otlp_exporter(name, "metrics", config, on_drop)))  # type: ignore[misc]
        elif name == "console":
            from opentelemetry.sdk.metrics.export import ConsoleMetricExporter

            exporters.append(ConsoleMetricExporter())
    return exporters


# --- Logs. ---


def build_log_processors(
    config: Config,
    scrubber: Scrubber,
    on_drop: DropCounter,
    on_failure: FailureCounter,
    resource: Callable[[], Resource],
) -> tuple[Any, ...]:
    """What `LOGS.EXPORTERS` names. Errors: `ConfigError` (E004)."""
    from django_otel.export.log_pipeline import LogBatchProcessor, MemoryLogProcessor

    processors: list[Any] = []
    for name in config.logs.exporters:
        if name == "memory":
            processors.append(MemoryLogProcessor(scrubber, resource))
            continue
        if name == "console":
            from opentelemetry.sdk._logs import export as logs_export

            exporter_class = getattr(logs_export, "ConsoleLogRecordExporter", None) or logs_export.ConsoleLogExporter
            exporter: Any = exporter_class()
            delay_s = _CONSOLE_DELAY_S
        else:
            check_installed(name, "logs")
            exporter = LazyExporter(lambda name=name: build_otlp_exporter(name, "logs", config, on_drop))  # type: ignore[misc]
            delay_s = config.traces.batch.delay_s
        processors.append(
            LogBatchProcessor(
                cast("LogRecordExporter", exporter), scrubber, config, on_drop, on_failure, resource, delay_s=delay_s
            )
        )
    return tuple(processors)


# --- Propagation. ---


def build_propagators(config: Config) -> tuple[TextMapPropagator, ...]:
    """What `PROPAGATION.FORMATS` names. Errors: `ConfigError` (E004) when a format's package is missing."""
    parts: list[TextMapPropagator] = []
    for name in config.propagation.formats:
        if name == "tracecontext":
            parts.append(TraceContextPropagator())
        elif name == "baggage":
            parts.append(BaggagePropagator(config.propagation.baggage_keys))
        elif name != "none":
            from importlib.metadata import entry_points

            found = list(entry_points(group="opentelemetry_propagator", name=name))
            if not found:
                package = f"opentelemetry-propagator-{name.removesuffix('multi')}"
                raise _missing_package(name, package, package)
            parts.append(found[0].load()())
    return tuple(parts)


# --- The end. ---


def is_waiting(part: Any) -> bool:
    """Whether a processor holds something that is not exported yet."""
    worker = getattr(part, "worker", None)
    return isinstance(worker, BatchWorker) and worker.is_used


def shut_down(parts: Sequence[Any], budget_s: float) -> bool:
    """Shut everything down within `budget_s` seconds in all; whether everything was exported.

    All parts begin at once, so that one black hole does not use up the time of the others.
    """
    deadline_s = time.monotonic() + budget_s
    for part in parts:
        with guard.contained("the start of a shutdown"):
            part.start_shutdown() if hasattr(part, "start_shutdown") else part.shutdown()
    done = True
    for part in parts:
        if hasattr(part, "finish_shutdown"):
            with guard.contained("a shutdown"):
                done = part.finish_shutdown(max(0.0, deadline_s - time.monotonic())) and done
    return done
