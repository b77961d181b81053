"""Log records on their way from the SDK's logger provider to an exporter."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry._logs import Logger, LogRecord, SeverityNumber
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk._logs import LogRecordProcessor, ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import Span

from django_otel.config.schema import Config
from django_otel.export.batch import BatchWorker, WorkerOwner
from django_otel.redaction.cutting import cut_attributes
from django_otel.redaction.scrub import Scrubber
from django_otel.redaction.sdk_items import scrub_log_record

if TYPE_CHECKING:
    from opentelemetry.sdk._logs.export import LogRecordExporter


class SwitchLogProcessor(LogRecordProcessor):
    """The only processor of our logger provider; those behind it change with the settings.

    `limits` hold for every record: providers of OpenTelemetry 1.43 take none, and one that was built elsewhere has its
    own.
    """

    def __init__(self, limits: Any) -> None:
        self.parts: tuple[LogRecordProcessor, ...] = ()
        self._limits = limits

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        if log_record.limits is not self._limits:
            _limit(log_record, self._limits.max_attributes)
        for part in self.parts:
            part.on_emit(log_record)

    def shutdown(self) -> None:
        for part in self.parts:
            part.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        # A list: each one is flushed, also after one has failed.
        return all([part.force_flush(timeout_millis) for part in self.parts])  # noqa: C419 (every part is flushed)


def _limit(record: ReadWriteLogRecord, attributes: int) -> None:
    """Leave at most this number of attributes on a record; the others count as dropped."""
    found = record.log_record.attributes
    if found is not None and len(found) > attributes:
        kept = BoundedAttributes(attributes, found, immutable=False, extended_attributes=True)
        kept.dropped += record.dropped_attributes
        record.log_record.attributes = kept


def _readable(record: ReadWriteLogRecord, resource: Resource) -> ReadableLogRecord:
    return ReadableLogRecord(record.log_record, resource, record.instrumentation_scope, record.limits)


def emit_exception(logger: Logger, span: Span, attributes: Mapping[str, Any]) -> None:
    """Emit an exception of `span` as a log record. Source: semantic conventions, "Exceptions in logs"."""
    now_ns = time.time_ns()
    logger.emit(
        LogRecord(
            timestamp=now_ns,
            observed_timestamp=now_ns,
            context=trace.set_span_in_context(trace.NonRecordingSpan(span.get_span_context())),
            severity_number=SeverityNumber.ERROR,
            severity_text="ERROR",
            body=attributes.get("exception.message"),
            attributes=attributes,
            event_name="exception",
        )
    )


class LogCleaner:
    """Last processing of a log record before it leaves: secrets are redacted, then long attributes cut."""

    def __init__(self, scrubber: Scrubber, attribute_length: int | None) -> None:
        self._scrubber = scrubber
        self._attribute_length = attribute_length

    def __call__(self, record: ReadableLogRecord) -> ReadableLogRecord:
        """Return the record as it may leave; the one given is not changed."""
        scrubbed = scrub_log_record(self._scrubber, record)
        log = scrubbed.log_record
        attributes = cut_attributes(log.attributes, self._attribute_length, str)
        if attributes is log.attributes:
            return scrubbed
        changed = copy.copy(log)
        bounded = BoundedAttributes(attributes=attributes)
        bounded.dropped = scrubbed.dropped_attributes
        changed.attributes = bounded
        scrubbed = copy.copy(scrubbed)
        object.__setattr__(scrubbed, "log_record", changed)  # ReadableLogRecord is frozen
        return scrubbed


class LogBatchProcessor(WorkerOwner, LogRecordProcessor):
    """Log records to an exporter in batches; each is scrubbed on the way, in the exporting thread."""

    def __init__(
        self,
        exporter: LogRecordExporter,
        clean: LogCleaner,
        config: Config,
        on_drop: Callable[[int, str, str], None],
        on_failure: Callable[[str], None],
        resource: Callable[[], Resource],
        *,
        delay_s: float,
    ) -> None:
        self.exporter = exporter
        self._clean = clean
        self._resource = resource
        batch = config.traces.batch
        self.worker: BatchWorker[ReadableLogRecord] = BatchWorker(
            "logs",
            self._export,
            queue_size=batch.queue_size,
            batch_size=batch.batch_size,
            delay_s=delay_s,
            on_drop=lambda count, reason: on_drop(count, reason, "logs"),
            on_failure=lambda: on_failure("logs"),
        )

    def _export(self, records: list[ReadableLogRecord]) -> bool:
        result: Any = self.exporter.export([self._clean(record) for record in records])
        arrived = bool(result.name == "SUCCESS")
        if not arrived:
            # Sent in parts, of which some have arrived.
            del records[: getattr(self.exporter, "lost", 0)]
        return arrived

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        self.worker.put(_readable(log_record, self._resource()))


class MemoryLogProcessor(LogRecordProcessor):
    """Scrubbed log records in a list, for tests and the exporter "memory"."""

    MAX_RECORDS = 100_000

    def __init__(self, clean: LogCleaner, resource: Callable[[], Resource]) -> None:
        self._clean = clean
        self._resource = resource
        self.records: list[ReadableLogRecord] = []

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        self.records.append(self._clean(_readable(log_record, self._resource())))
        if len(self.records) > self.MAX_RECORDS:
            del self.records[: self.MAX_RECORDS // 10]

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True
