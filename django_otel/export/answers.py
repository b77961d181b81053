"""Answers of receivers: rejected items, and batches that are too large.

Source: OpenTelemetry protocol specification, "Partial Success" and "Failures".
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sized
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from django_otel.base import forks, guard
from django_otel.export.quiet_addresses import find_stock_loggers
from django_otel.redaction.scrub import Scrubber

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricsData

    Batch = TypeVar("Batch")
    Item = TypeVar("Item")

    class Halving(Protocol[Batch]):
        """How the items of a batch are counted and halved."""

        def count(self, part: Batch, /) -> int: ...

        def halve(self, part: Batch, count: int, /) -> tuple[Batch, Batch]: ...


#: By signal: module and class of the answer, and the field that counts refused items.
_MESSAGES = {
    "traces": ("trace.v1.trace_service_pb2", "ExportTraceServiceResponse", "rejected_spans"),
    "metrics": ("metrics.v1.metrics_service_pb2", "ExportMetricsServiceResponse", "rejected_data_points"),
    "logs": ("logs.v1.logs_service_pb2", "ExportLogsServiceResponse", "rejected_log_records"),
}
_TOO_LARGE = 413
#: How gRPC servers (C core, Go, Java, .NET, Rust), and the HTTP proxies before them, call a message too large.
_TOO_LARGE_WORDS = re.compile(
    r"larger than max|too large|exceed\w*\b.{0,80}\b(size|length|bytes)|size.{0,80}\bexceed|status(?: code)?:? ?413",
    re.IGNORECASE | re.DOTALL,
)
#: Codes of gRPC that go with these words; UNKNOWN and INTERNAL are those of proxies.
_TOO_LARGE_CODES = frozenset({"RESOURCE_EXHAUSTED", "OUT_OF_RANGE", "UNKNOWN", "INTERNAL"})
#: Of a receiver's own message, in characters.
_MESSAGE_LENGTH = 300

#: Counts lost items: number, reason, signal ("traces", "metrics", "logs").
DropCounter = Callable[[int, str, str], None]
#: Counts failed exports by signal.
FailureCounter = Callable[[str], None]


class Answers:
    """The last answer to an exporter of one signal, and the count of what receivers refused.

    Refused items are given to `on_drop` for the reason "rejected"; the first
    answer that reports any, or a warning, is logged.
    """

    def __init__(self, signal: str, on_drop: DropCounter) -> None:
        self.signal = signal
        self._on_drop = on_drop
        #: The status of the last answer, as HTTP has it; None before the first, and when there was none.
        self.status: int | None = None
        #: Items of the batch that is under way, where that is known: no more can be refused.
        self.items: int | None = None

    @property
    def is_too_large(self) -> bool:
        """Return whether the last batch was refused for its size."""
        return self.status == _TOO_LARGE

    def refuse_redirect(self, status: int, target: str) -> None:
        """Log, once, that the receiver sends requests elsewhere; `target` is the scheme and host of the new place."""
        guard.warn_once(
            f"redirect {self.signal}",
            "The OTLP receiver of %s answered %d%s. Redirects are not followed, so that headers and secrets go only "
            "where the settings say; the batches are dropped. Write the receiver's own address into ENDPOINT.",
            self.signal,
            status,
            f", a redirect to {target}" if target else "",
        )

    def is_message_too_large(self, code: str, details: str) -> bool:
        """Return whether a gRPC error, by its code's name and its text, is that of a message too large; noted if so."""
        if code in _TOO_LARGE_CODES and _TOO_LARGE_WORDS.search(details):
            self.status = _TOO_LARGE
            return True
        return False

    def call_too_large(self) -> None:
        """Note that the last batch is too large to be sent at all."""
        self.status = _TOO_LARGE

    def lose_too_large(self, count: int) -> None:
        """Log, once, that items were dropped which are too large alone."""
        guard.warn_once(
            f"too large {self.signal}",
            "%d items of %s were dropped: alone each is larger than the OTLP receiver takes in one request. "
            'Further ones are counted (reason "too_large") and not logged. '
            "Raise the receiver's limit, or lower LIMITS.",
            count,
            self.signal,
        )

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep the stock exporters from logging, in this thread, each batch that is too large and sent in parts."""
        thread = threading.get_ident()

        def is_logged(record: logging.LogRecord) -> bool:
            return threading.get_ident() != thread or not self.is_too_large

        loggers = find_stock_loggers()
        for logger in loggers:
            logger.addFilter(is_logged)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(is_logged)

    def read(self, body: bytes, *, is_json: bool = False) -> None:
        """Read the body of an answer of success."""
        if not body:
            return
        with guard.contained("reading the answer of an OTLP receiver"):
            path, name, _ = _MESSAGES[self.signal]
            with forks.importing.using():
                module = importlib.import_module(f"opentelemetry.proto.collector.{path}")
            try:
                # A receiver may call it by another type; no message of protobuf begins so.
                if is_json or body.startswith(b"{"):
                    with forks.importing.using():
                        from google.protobuf.json_format import Parse  # type: ignore[import-untyped]

                    message = Parse(body, getattr(module, name)(), ignore_unknown_fields=True)
                else:
                    message = getattr(module, name).FromString(body)
            except Exception as error:
                guard.pass_on(error)
                # A receiver that says "OK" in words has taken everything.
                return
            self.take(message)

    def take(self, message: object) -> None:
        """Count the items that a successful answer reports as rejected."""
        partial = getattr(message, "partial_success", None)
        if partial is None:
            return
        rejected = max(0, int(getattr(partial, _MESSAGES[self.signal][2], 0)))
        if self.items is not None:
            rejected = min(rejected, self.items)
        if rejected:
            self._on_drop(rejected, "rejected", self.signal)
        if rejected or partial.error_message:
            guard.warn_once(
                f"partial success {self.signal}",
                "The OTLP receiver of %s took a batch and refused %d items of it: %r. "
                'Further ones are counted (reason "rejected") and not logged.',
                self.signal,
                rejected,
                # It may quote what it refused.
                Scrubber().text(partial.error_message)[:_MESSAGE_LENGTH],
            )


@dataclasses.dataclass
class Outcome:
    """Outcome of a batch, in numbers of items."""

    delivered: int = 0
    too_large: int = 0
    failed: int = 0


def send_in_parts(items: Batch, send: Callable[[Batch], bool], answers: Answers, kind: Halving[Batch]) -> Outcome:
    """Send `items`; batches that the receiver calls too large are sent again in halves.

    `send` returns whether the receiver took its items; `kind` is how they are counted and halved (`Items`, `Points`).
    """
    outcome = Outcome()
    waiting = [items]
    with answers.quiet():
        while waiting:
            part = waiting.pop()
            count = kind.count(part)
            answers.status, answers.items = None, count
            if send(part):
                outcome.delivered += count
            elif not answers.is_too_large:
                outcome.failed += count
            elif count > 1:
                first, second = kind.halve(part, count)
                waiting += [second, first]
            else:
                outcome.too_large += count
    if outcome.too_large:
        answers.lose_too_large(outcome.too_large)
    return outcome


class Items:
    """Spans and log records: lists."""

    @staticmethod
    def count(part: Sized) -> int:
        return len(part)

    @staticmethod
    def halve(part: list[Item], count: int) -> tuple[list[Item], list[Item]]:
        return part[: count // 2], part[count // 2 :]


class Points:
    """Metrics: the SDK's `MetricsData`, counted and halved by data points."""

    @staticmethod
    def count(part: MetricsData) -> int:
        return sum(
            len(metric.data.data_points)
            for group in part.resource_metrics
            for scope in group.scope_metrics
            for metric in scope.metrics
        )

    @classmethod
    def halve(cls, part: MetricsData, count: int) -> tuple[MetricsData, MetricsData]:
        return cls._cut(part, 0, count // 2), cls._cut(part, count // 2, count)

    @staticmethod
    def _cut(part: MetricsData, begin: int, end: int) -> MetricsData:
        """The data points from number `begin` to `end`, with all that stands around them."""
        position = 0
        groups = []
        for group in part.resource_metrics:
            scopes = []
            for scope in group.scope_metrics:
                metrics = []
                for metric in scope.metrics:
                    points = metric.data.data_points
                    kept = points[max(0, begin - position) : max(0, end - position)]
                    position += len(points)
                    if kept:
                        whole: Any = metric.data
                        data = dataclasses.replace(whole, data_points=kept)
                        metrics.append(dataclasses.replace(metric, data=data))
                if metrics:
                    scopes.append(dataclasses.replace(scope, metrics=metrics))
            if scopes:
                groups.append(dataclasses.replace(group, scope_metrics=scopes))
        return dataclasses.replace(part, resource_metrics=groups)
