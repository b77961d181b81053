"""The thread that exports all metrics every interval."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.resources import Resource

from django_otel.base import forks, guard
from django_otel.config.schema import Config
from django_otel.export.exporters import LazyExporter
from django_otel.metrics.model import Family

if TYPE_CHECKING:
    from django_otel.export.answers import FailureCounter
    from django_otel.metrics.sdk_metrics import MetricsDataBuilder


class MetricsThread:
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
        """Replace the locks, using the current `threading`; only before the thread has started."""
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
                    with forks.importing.using():
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
