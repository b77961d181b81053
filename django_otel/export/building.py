"""Builds the processors and exporters of each signal from the exporters that the settings name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from django_otel.config.packages import import_path
from django_otel.config.schema import Config, ConfigError, Problem
from django_otel.export.exporters import (
    OTLP_KINDS,
    LazyExporter,
    build_direct_exporter,
    build_otlp_exporter,
    check_installed,
)
from django_otel.export.processors import CleanProcessor, MemorySpanProcessor, SpanBatchProcessor
from django_otel.redaction.scrub import Scrubber

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import LogRecordProcessor
    from opentelemetry.sdk._logs.export import LogRecordExporter
    from opentelemetry.sdk.trace.export import SpanExporter

    from django_otel.export.answers import DropCounter, FailureCounter

_CONSOLE_DELAY_S = 0.2


def build_span_processors(
    config: Config,
    clean: Callable[[ReadableSpan], ReadableSpan],
    on_drop: DropCounter,
    on_failure: FailureCounter,
) -> tuple[SpanProcessor, ...]:
    """Return the processors of `TRACES.EXPORTERS`. Errors: `ConfigError` (E003, E004)."""
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


def build_log_processors(
    config: Config,
    scrubber: Scrubber,
    on_drop: DropCounter,
    on_failure: FailureCounter,
    resource: Callable[[], Resource],
) -> tuple[LogRecordProcessor, ...]:
    """Return the processors of `LOGS.EXPORTERS`. Errors: `ConfigError` (E004)."""
    from django_otel.export.log_processors import LogBatchProcessor, LogCleaner, MemoryLogProcessor

    clean = LogCleaner(scrubber, config.logs.limits.attribute_length)
    processors: list[LogRecordProcessor] = []
    for name in config.logs.exporters:
        if name == "memory":
            processors.append(MemoryLogProcessor(clean, resource))
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
                cast("LogRecordExporter", exporter), clean, config, on_drop, on_failure, resource, delay_s=delay_s
            )
        )
    return tuple(processors)
