"""The pipeline of metrics: our meter provider over the SDK's, the exporting thread, and the registry bridge."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from django_otel.base import forks, guard, sdk_compat
from django_otel.config.schema import Config
from django_otel.export.state import ProcessState
from django_otel.metrics.exponential import exponentialize
from django_otel.metrics.lazy_metrics import LazyMeterProvider
from django_otel.metrics.model import Family

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
    from opentelemetry.sdk.metrics.export import MetricExporter

    from django_otel.export.metrics_thread import MetricsThread
    from django_otel.metrics.sdk_metrics import SdkMetrics

#: Those that are asked for the numbers; the others push them.
_PULLED = frozenset({"prometheus", "prometheus-registry"})


class MetricPipeline:
    """Metrics on their way out. `collect` gives every family as a scrape shows them."""

    def __init__(self, state: ProcessState, collect: Callable[[], list[Family]]) -> None:
        self._state = state
        self._collect = collect
        #: The provider in use, ours or another tool's.
        self.provider: MeterProvider | None = None
        self.own_provider: LazyMeterProvider | None = None
        #: Metrics of the SDK; None until a meter is requested.
        self.sdk_metrics: SdkMetrics | None = None
        self.thread: MetricsThread | None = None

    def build_exporters(self, config: Config) -> Sequence[MetricExporter]:
        """Exporters that metrics are pushed to. Errors: `ConfigError`, before anything is changed."""
        if self._state.is_quiet or _PULLED.issuperset(config.metrics.exporters):
            return []
        from django_otel.export.building import build_metric_exporters

        return build_metric_exporters(config, self._state.count_drop)

    def start(self, config: Config, exporters: Sequence[MetricExporter]) -> None:
        """Measure as `config` says, and export to `exporters` once the thread has been started."""
        from opentelemetry import metrics

        installed = sdk_compat.global_meter_provider()
        foreign = installed if installed is not None and installed is not self.own_provider else None
        if config.providers == "auto" and foreign is not None:
            self.provider = foreign
        else:
            if self.own_provider is None:
                self.own_provider = LazyMeterProvider(self._build_sdk_provider)
            if installed is None:
                metrics.set_meter_provider(self.own_provider)
            self._set_resource()
            self.provider = self.own_provider
        if self.sdk_metrics is not None:
            self._set_scrubber(self.sdk_metrics)
        self.thread = self._build_thread(config, exporters) if exporters else None
        self._switch_registry(config)

    def _build_thread(self, config: Config, exporters: Sequence[MetricExporter]) -> MetricsThread:
        from django_otel.export.metrics_thread import MetricsThread

        state = self._state
        return MetricsThread(
            exporters, self.collect_for_export, lambda: state.resource, config, state.count_failure
        )  # fmt: skip

    def stop(self) -> None:
        """Export no more; instruments that were handed out go on to count."""
        self.thread = None

    def after_fork(self) -> None:
        """In the child: the new resource, no thread, and SDK instruments at zero."""
        if self.own_provider is not None:
            # Another of the parent's threads may have held it.
            self.own_provider.renew_locks()
        self._set_resource()
        if self.thread is not None:
            self.thread.after_fork()
        if self.sdk_metrics is not None:
            self.sdk_metrics.after_fork()

    def _set_scrubber(self, sdk_metrics: SdkMetrics) -> None:
        from django_otel.redaction.sdk_items import scrub_metric_scope

        sdk_metrics.scrub = self._state.store.clean
        sdk_metrics.scrub_scope = partial(scrub_metric_scope, self._state.scrubber)

    def _build_sdk_provider(self) -> SdkMeterProvider:
        """The SDK's meter provider, for the first that asks ours for a meter."""
        from opentelemetry.sdk.metrics import MeterProvider, TraceBasedExemplarFilter

        from django_otel.metrics.sdk_metrics import SdkMetrics, build_reader

        reader = build_reader(is_exponential=self._state.config.metrics.histograms == "exponential")
        provider = MeterProvider(
            metric_readers=[reader],
            resource=self._state.resource,
            exemplar_filter=TraceBasedExemplarFilter(),
            shutdown_on_exit=False,
            views=(),
        )
        # Its own fork hook touches the resource; what we do there comes after it.
        forks.listen()
        found = SdkMetrics(reader, provider)
        self._set_scrubber(found)
        self.sdk_metrics = found
        return provider

    def _set_resource(self) -> None:
        provider = None if self.own_provider is None else self.own_provider.built
        if provider is not None:
            sdk_compat.set_resource(provider, self._state.resource)

    def _switch_registry(self, config: Config) -> None:
        if "prometheus-registry" in config.metrics.exporters and not self._state.is_skipped:
            from django_otel.metrics.registry import start_registry

            start_registry(lambda: self._state.present(self._collect()), lambda: self._state.resource.attributes)
        elif "django_otel.metrics.registry" in sys.modules:
            from django_otel.metrics.registry import stop_registry

            stop_registry()

    def collect_process(self, *, observed: bool = True) -> list[Family]:
        """Every family of this process alone, as OTLP gets them: our own cells and the SDK's instruments.

        Without `observed` the callbacks of our own observable gauges are not asked.
        """
        return self._state.store.collect(observed=observed) + self.collect_sdk() + self._describe_process()

    def _describe_process(self) -> list[Family]:
        """The metrics of this process itself."""
        state = self._state
        if not (state.enabled and state.config.runtime):
            return []
        with guard.contained("reading the use of this process"):
            with forks.importing.using():
                from django_otel.multiprocess.processes import describe_processes, own_member

            active = state.store.catalogued("http.server.active_requests").all_series()
            return describe_processes([own_member(sum(series.read() for series in active))], None)
        return []

    def collect_for_export(self) -> list[Family]:
        """The families of this process under the names and with the buckets of the settings."""
        state = self._state
        families = state.present(self.collect_process())
        return exponentialize(families) if state.store.is_exponential else families

    def collect_sdk(self) -> list[Family]:
        """The families that are measured through the SDK."""
        if self.sdk_metrics is not None:
            with guard.contained("collecting SDK metrics"), self._state.store.around_callbacks():
                return self.sdk_metrics.collect()
        return []
