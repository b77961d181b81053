"""Moves finished spans, log records and figures off the request path and into the trace store.

The request path pays for one `append` to a bounded queue. Scrubbing, packing
and writing happen in a thread of its own; what the queue has no room for, or
the disk does not take, is dropped and counted.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan

from django_otel.base import guard
from django_otel.base.private_files import Unusable
from django_otel.base.sdk_compat import context_of, flags_of
from django_otel.config.schema import Config
from django_otel.export.batch import BatchWorker, WorkerOwner
from django_otel.metrics.model import OWN_SCOPE, Family, HistogramValue, Point
from django_otel.redaction.scrub import Scrubber
from django_otel.tracestore import records
from django_otel.tracestore.errors import ErrorCollector
from django_otel.tracestore.file import BUSY_TIMEOUT_S
from django_otel.tracestore.issues import StoredErrors
from django_otel.tracestore.items import (
    LAYERS,
    RouteNumbers,
    SampleNumbers,
    Stored,
    StoredLog,
    StoredProcess,
    StoredSample,
)
from django_otel.tracestore.numbers import SAMPLE_INTERVAL_S
from django_otel.tracestore.preparing import SpanPreparer
from django_otel.tracestore.writer import TraceStore, find_store, reason_of
from django_otel.tracing.provider import Taker
from django_otel.tracing.spans import RecordedSpan, is_discarded

if TYPE_CHECKING:
    from opentelemetry._logs import LogRecord
    from opentelemetry.trace import Span

    #: Items of the queue beside spans: a log record with the name of its logger, numbers, a report.
    _Taken = tuple[LogRecord, str] | StoredSample | StoredProcess | type[ErrorCollector]
    _Item = ReadableSpan | _Taken

#: The lowest `SeverityNumber` of a warning.
_WARNING = 13
#: The queue's bounds: spans and log records. Full after 0.1 s at 40 000 spans a second.
QUEUE_SIZE = 4096
BATCH_SIZE = 512
#: A trace is to be seen in the list soon after it has ended, in seconds.
DELAY_S = 1.0
#: Routes that a label limit or a 404 has taken away.
NO_ROUTE = "(no route)"
OVERFLOW_ROUTE = "(overflow)"

_MAX_BODY = 20_000


class StoreProcessor(WorkerOwner, Taker):
    """Sampled spans, their log records and the dashboard's numbers to the trace store.

    `clean` scrubs a span, `collect` gives the families that `/metrics` shows, `group` the name of the processes
    over which they are summed (None: of this process alone, "": not known now); `on_drop(count, reason)` counts losses.
    """

    def __init__(  # noqa: PLR0913 (one parameter for each limit)
        self,
        config: Config,
        identity: str,
        *,
        clean: Callable[[ReadableSpan], ReadableSpan],
        scrubber: Scrubber,
        resource: Callable[[], Resource],
        collect: Callable[[], list[Family]],
        group: Callable[[], str | None],
        facts: Callable[[], Mapping[str, object]],
        on_drop: Callable[[int, str], None],
    ) -> None:
        self._config = config
        self._identity = identity
        self._preparer = SpanPreparer(clean, scrubber, lambda count: on_drop(count, "encode"))
        self._scrubber = scrubber
        self._resource = resource
        self._collect = collect
        self._group = group
        self._facts = facts
        self._on_drop = on_drop
        self._store: TraceStore | None = None
        #: Exceptions of this process until they are written; the class itself in the queue says that there are some.
        self.errors = ErrorCollector(lambda: self.worker.put(ErrorCollector))
        #: Called in the writing thread when a notice of an issue is due, and every ten seconds.
        self.on_notices: Callable[[], None] | None = None
        #: Why the last batch could not be written; empty when it could.
        self.problem = ""
        self.worker: BatchWorker[_Item] = BatchWorker(
            "console",
            self._export,
            queue_size=QUEUE_SIZE,
            batch_size=BATCH_SIZE,
            delay_s=DELAY_S,
            on_drop=on_drop,
            on_failure=lambda: None,
        )
        self._started_s = time.time()
        self._reset()

    def _reset(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # In: each is one append.

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self.worker.put(span)

    def take(self, span: RecordedSpan) -> None:
        if flags_of(context_of(span)) & 1:
            self.worker.put(span)

    def on_log(self, record: LogRecord, logger_name: str) -> None:
        """Take a log record (of the OpenTelemetry API) of a sampled trace or of none, and any warning.

        What an unsampled trace logs below that is left out, as its spans are.
        """
        is_sampled = record.trace_flags is not None and record.trace_flags.sampled
        if is_sampled or not record.trace_id or int(getattr(record.severity_number, "value", 0) or 0) >= _WARNING:
            self.worker.put((record, logger_name))

    def on_error(self, error: BaseException, route: str, span: Span | None = None) -> None:
        """Count an exception that ended a request or a task; `span` is the one it is recorded in, if there is one."""
        context = span.get_span_context() if isinstance(span, ReadableSpan) and span.is_recording() else None
        if context is not None and context.trace_flags & 1:
            self.errors.add(error, route, context.trace_id, context.span_id)
        else:
            self.errors.add(error, route)

    # Out: in the worker's thread.

    def store(self) -> TraceStore:
        """The store, found when it is first needed. Errors: `Unusable`."""
        if self._store is None:
            self._store = find_store(self._config, self._identity)
        return self._store

    def _export(self, items: Sequence[_Item]) -> bool:
        stored: list[Stored] = []
        spans: list[ReadableSpan] = []
        has_errors = False
        for item in items:
            if isinstance(item, ReadableSpan):
                if not is_discarded(item):
                    spans.append(item)
            elif item is ErrorCollector:
                has_errors = True
            else:
                # One that cannot be cleaned may not be stored, and must not take its batch along.
                with guard.contained("preparing a record for the trace store"):
                    stored.append(self._convert(item))
        if has_errors:
            items = [item for item in items if item is not ErrorCollector]
            self._write_errors()
        with guard.contained("preparing spans for the trace store"):
            stored += self._preparer.prepare(spans)
        try:
            self.store().write(stored, self._on_drop)
        except (Unusable, sqlite3.Error, OSError) as error:
            reason = reason_of(error)
            self._on_drop(len(items), reason)
            self.problem = _describe(error)
            if reason != "busy":
                guard.warn_once(
                    f"trace store {reason}",
                    "django_otel: the trace store cannot be written to (%s); what it would have shown is dropped and "
                    "counted in django_otel.console.dropped. CONSOLE.PATH names another place.",
                    self.problem,
                )
        else:
            self.problem = ""
        return True

    def _write_errors(self) -> None:
        """Write the pending exceptions in one transaction, or keep all of them."""
        errors = self.errors.take()
        if not errors:
            return
        wanted = self._config.errors
        try:
            self.store().write(
                [
                    StoredErrors(
                        self.service(), self._config.service_version or "", self._started_s, errors, self._scrubber,
                        tuple(wanted.notify), wanted.quiet_s,
                    )
                ],
                self._on_drop,
            )  # fmt: skip
        except (Unusable, sqlite3.Error, OSError) as error:
            # Once more with the next sample, or with the next exception.
            self.errors.give_back(errors)
            self.problem = _describe(error)
        else:
            self._notify()

    def _notify(self) -> None:
        if self.on_notices is not None and self._config.errors.notify:
            with guard.contained("notifying of errors"):
                self.on_notices()

    def _convert(self, item: _Taken) -> Stored:
        if isinstance(item, StoredSample | StoredProcess):
            return item
        assert isinstance(item, tuple)
        record, logger_name = item
        return convert_log(record, logger_name, self._scrubber, self.service())

    # The dashboard's numbers.

    def start(self) -> None:
        """Start to sample the numbers; idempotent."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="django_otel-console-numbers", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        stop = self._stop
        self._say_alive()
        while not stop.wait(SAMPLE_INTERVAL_S):
            with guard.contained("sampling numbers for the dashboard"):
                self.sample()

    def source(self) -> str:
        """Whose numbers `collect` gives: a group of processes, or this process."""
        group = self._group()
        return f"group {group}" if group is not None else f"process {self._instance()}"

    def _instance(self) -> str:
        return str(self._resource().attributes.get("service.instance.id", os.getpid()))

    def service(self) -> str:
        """The name of this process's service."""
        return str(self._resource().attributes.get("service.name", ""))

    def sample(self) -> bool:
        """Sample the numbers once, unless another process of the group has just done so; whether it was done here."""
        self._say_alive()
        if self.errors.has_pending:
            self.worker.put(ErrorCollector)
        self._notify()
        group = self._group()
        # Between sharing and not, a sum over fewer processes would look like a new beginning.
        if group == "" or (group is not None and not self._is_due(self.source())):
            return False
        self._put_sample(self.source())
        return True

    def _put_sample(self, source: str) -> None:
        at_s = time.time()
        self.worker.put(StoredSample(source, self.service(), at_s, numbers_of(self._collect())))

    def _is_due(self, source: str) -> bool:
        try:
            with self.store().connection() as connection:
                row = connection.execute("SELECT at_s FROM baseline WHERE source = ?", (source,)).fetchone()
        except (sqlite3.Error, OSError):
            # The write that follows says what is wrong.
            return True
        # A little less than the interval: each process has its own clock tick.
        return row is None or row[0] <= time.time() - SAMPLE_INTERVAL_S + 1.0

    def _say_alive(self) -> None:
        self.worker.put(
            StoredProcess(
                self._instance(), self.service(), socket.gethostname(), os.getpid(), self._started_s, time.time(),
                dict(self._facts()),
            )
        )  # fmt: skip

    # The end.

    def shutdown(self) -> None:
        """Take a last sample and nothing more; `finish_shutdown` waits for what is left."""
        self._stop.set()
        self._put_last_sample()
        self.worker.start_shutdown()

    def _put_last_sample(self) -> None:
        if self._thread is not None and self._group() != "":
            with guard.contained("the last sample of the dashboard"):
                self._put_sample(self.source())

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Write the queue and the counts now; return whether that was done in time.

        Where a server stops without running anything at exit (uvicorn) this is the last that happens here.
        """
        self._put_last_sample()
        return super().force_flush(timeout_millis)

    def finish_shutdown(self, timeout_s: float) -> bool:
        """Wait for the writing thread, `timeout_s` seconds at most; whether everything was written."""
        return self.worker.finish_shutdown(min(timeout_s, BUSY_TIMEOUT_S + 1.0))

    def after_fork(self) -> None:
        """In the child: queue and threads are the parent's."""
        self.worker.after_fork()
        self.errors.reset()
        self._started_s = time.time()
        self._reset()

    def renew_locks(self) -> None:
        """Replace the locks, using the current `threading`."""
        self.worker.renew_locks()
        if self._thread is None:
            self._reset()


def _describe(error: Exception) -> str:
    return f"{error}" if isinstance(error, Unusable) else f"{type(error).__name__}: {error}"


# --- Conversion. ---


def convert_log(record: LogRecord, logger_name: str, scrubber: Scrubber, service: str) -> StoredLog:
    """A log record of the OpenTelemetry API, scrubbed, in the form of the store."""
    time_ns = record.timestamp or record.observed_timestamp or 0
    attributes = dict(scrubber.attributes(record.attributes) or {})
    body = str(scrubber.value("body", record.body))
    is_sampled = record.trace_flags is not None and record.trace_flags.sampled
    return StoredLog(
        # One of a trace that is not recorded leads nowhere.
        f"{(record.trace_id or 0) if is_sampled else 0:032x}",
        time_ns,
        service,
        {
            "time": time_ns,
            "span": f"{record.span_id or 0:016x}",
            "level": str(record.severity_text or ""),
            "severity": int(getattr(record.severity_number, "value", 0) or 0),
            "logger": scrubber.text(logger_name),
            "body": body[:_MAX_BODY],
            "service": service,
            "attributes": attributes,
        },
    )


# --- Numbers. ---


def numbers_of(families: Sequence[Family]) -> SampleNumbers:
    """Return the dashboard's numbers from the families of a scrape: cumulative sums by route, event, reason.

    A histogram is the list of its count, its sum and its buckets (not cumulative); their bounds are a text under
    "bounds". Durations are seconds.
    """
    numbers: SampleNumbers = {"routes": {}, "bounds": {}, "cache": {}, "events": {}, "failures": {}, "dropped": {}}
    for family in families:
        if family.scope.name != OWN_SCOPE.name:
            continue
        take = _TAKERS.get(family.name)
        if take is None:
            continue
        for point in family.points:
            take(numbers, family, point)
    return numbers


def _route_of(attributes: Mapping[str, object]) -> str:
    if attributes.get("otel_metric_overflow"):
        return OVERFLOW_ROUTE
    return str(attributes.get("http.route") or NO_ROUTE)


def _add_histogram(place: RouteNumbers, name: Literal["duration", "queries"], value: HistogramValue) -> None:
    values = [_short(value.count), value.sum, *map(_short, value.buckets)]
    before = place.get(name)
    place[name] = values if before is None else [a + b for a, b in zip(before, values, strict=True)]


def _short(number: float) -> float:
    return int(number) if number == int(number) else number


def _take_duration(numbers: SampleNumbers, family: Family, point: Point) -> None:
    value = point.value
    if not isinstance(value, HistogramValue):
        return
    attributes = dict(point.attributes)
    route = numbers["routes"].setdefault(_route_of(attributes), {})
    numbers["bounds"]["duration"] = " ".join(map(repr, value.bounds))
    _add_histogram(route, "duration", value)
    status = records.to_whole(attributes.get("http.response.status_code"))
    if status >= 500 or attributes.get("error.type"):
        route["errors"] = route.get("errors", 0) + _short(value.count)
    elif status >= 400:
        route["refused"] = route.get("refused", 0) + _short(value.count)


def _take_queries(numbers: SampleNumbers, family: Family, point: Point) -> None:
    if isinstance(point.value, HistogramValue):
        route = numbers["routes"].setdefault(_route_of(dict(point.attributes)), {})
        numbers["bounds"]["queries"] = " ".join(map(repr, point.value.bounds))
        _add_histogram(route, "queries", point.value)


def _take_layers(numbers: SampleNumbers, family: Family, point: Point) -> None:
    attributes = dict(point.attributes)
    layer = attributes.get("django.layer")
    if isinstance(point.value, HistogramValue) and layer in LAYERS:
        route = numbers["routes"].setdefault(_route_of(attributes), {})
        seconds = route.setdefault("layers", [0.0] * len(LAYERS))
        seconds[LAYERS.index(str(layer))] += point.value.sum


def _take_by(
    place: Literal["cache", "events", "failures", "dropped"], attribute: str
) -> Callable[[SampleNumbers, Family, Point], None]:
    def take(numbers: SampleNumbers, family: Family, point: Point) -> None:
        if isinstance(point.value, int | float):
            key = str(dict(point.attributes).get(attribute, ""))
            numbers[place][key] = numbers[place].get(key, 0) + _short(point.value)

    return take


_TAKERS: dict[str, Callable[[SampleNumbers, Family, Point], None]] = {
    "http.server.request.duration": _take_duration,
    "django.request.queries": _take_queries,
    "django.request.layer.duration": _take_layers,
    "django.cache.operations": _take_by("cache", "django.cache.outcome"),
    "django.business.events": _take_by("events", "business.event"),
    "django_otel.export.failures": _take_by("failures", "django_otel.signal"),
    "django_otel.spans.dropped": _take_by("dropped", "django_otel.reason"),
}
