"""Each peer switched on in the measured process, as its own documentation says.

What is not measured is made equal: without export, recorded spans wait in the
peer's queue and are dropped where they would be sent, outside of the measured
time; with export, a block ends when everything has been sent. Limits that would
let a peer drop what it was asked to record (rates, queue lengths) are lifted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers import sinks
from benchmarks.peers.catalogue import Variant
from benchmarks.peers.receiver import Emission

SERVICE = "measured"
#: Queue and delay of a batch processor that sends nothing while requests are measured.
_QUEUE = 100_000
_DELAY_S = 3600


class UnsupportedError(Exception):
    """A variant that this version of a peer does not know."""


class Subject:
    """Bare Django, and what a peer may override."""

    def __init__(self, variant: Variant, endpoint: str) -> None:
        self.variant = variant
        self.endpoint = endpoint

    def before_setup(self, settings: dict[str, Any]) -> None:
        """Change the settings, set the environment; before anything of Django is imported."""

    def after_setup(self) -> None:
        """After `django.setup()`."""

    def stop_clocks(self) -> None:
        """Let threads that work by the clock sleep: where a second holds few requests, each would pay for them."""

    def flush(self) -> None:
        """Send or drop what is queued; returns when it is done."""

    def emission(self) -> Emission:
        """What was recorded so far, where it is not exported."""
        return sinks.emission

    def requests_counted(self) -> float:
        """Requests in the metrics so far."""
        return 0.0

    def queries_counted(self) -> float:
        """Queries in the metrics so far."""
        return 0.0


# --- django_otel. ---


def stop_clocks() -> None:
    """Let our threads that work by the clock sleep; before the first request, which starts them."""
    from django_otel import live
    from django_otel.core import sharing

    live._TICK_S = sharing._TICK_S = _DELAY_S


class DjangoOtel(Subject):
    def before_setup(self, settings: dict[str, Any]) -> None:
        sampling: dict[str, Any] = {"RATIO": self.variant.ratio}
        if self.variant.keeps_errors:
            from django_otel.core.config import Config

            if not hasattr(Config().sampling, "keep_errors"):
                raise UnsupportedError("this version of django_otel has no SAMPLING.KEEP_ERRORS")
            sampling["KEEP_ERRORS"] = True
        traces: dict[str, Any] = {
            "EXPORTERS": ["benchmarks.peers.sinks.Exporter"],
            "BATCH": {"QUEUE_SIZE": _QUEUE, "BATCH_SIZE": _QUEUE, "DELAY_S": _DELAY_S},
        }
        if self.variant.exports:
            traces = {"EXPORTERS": ["otlp"], "ENDPOINT": self.endpoint}
        settings["INSTALLED_APPS"].append("django_otel")
        settings["MIDDLEWARE"].insert(0, "django_otel.middleware.OTelMiddleware")
        settings["OTEL"] = {
            "SERVICE_NAME": SERVICE,
            "SAMPLING": sampling,
            "TRACES": traces,
            # The process runs in a folder of its own, which goes with it.
            "METRICS": {"SHARED_DIR": str(Path.cwd())},
        }

    def stop_clocks(self) -> None:
        stop_clocks()

    def flush(self) -> None:
        from django_otel import runtime

        runtime.flush(60)

    def requests_counted(self) -> float:
        return self._count("http.server.request.duration")

    def queries_counted(self) -> float:
        return self._count("db.client.operation.duration")

    def _count(self, name: str) -> float:
        from django_otel import runtime

        points = [point for family in runtime.collect() if family.name == name for point in family.points]
        return float(sum(sum(point.value.buckets) for point in points))


# --- The official instrumentation, and what is built on it. ---


def _sampler(ratio: float) -> Any:
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    return ParentBased(TraceIdRatioBased(ratio))


def _processor(variant: Variant, endpoint: str) -> Any:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if variant.exports:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces"))
    exporter: Any = sinks.Exporter()
    return BatchSpanProcessor(
        exporter, max_queue_size=_QUEUE, max_export_batch_size=_QUEUE, schedule_delay_millis=_DELAY_S * 1000
    )


class _Prometheus(Subject):
    """Counts requests in prometheus_client's registry under `requests_sample`."""

    requests_samples: tuple[str, ...] = ()
    queries_samples: tuple[str, ...] = ()

    def requests_counted(self) -> float:
        return _registry_sum(self.requests_samples)

    def queries_counted(self) -> float:
        return _registry_sum(self.queries_samples)


def _registry_sum(samples: tuple[str, ...]) -> float:
    from prometheus_client import REGISTRY

    return sum(sample.value for family in REGISTRY.collect() for sample in family.samples if sample.name in samples)


class Official(_Prometheus):
    requests_samples = ("http_server_duration_milliseconds_count", "http_server_request_duration_seconds_count")

    def before_setup(self, settings: dict[str, Any]) -> None:
        # Reads django.conf.settings when it instruments, so that comes after they are configured.
        self._provider: Any = None

    def after_setup(self) -> None:
        from opentelemetry import metrics, trace
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from opentelemetry.instrumentation.django import DjangoInstrumentor
        from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor
        from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        resource = Resource.create({"service.name": SERVICE})
        self._provider = TracerProvider(sampler=_sampler(self.variant.ratio), resource=resource)
        self._provider.add_span_processor(_processor(self.variant, self.endpoint))
        trace.set_tracer_provider(self._provider)
        metrics.set_meter_provider(MeterProvider(metric_readers=[PrometheusMetricReader()], resource=resource))
        DjangoInstrumentor().instrument()
        Psycopg2Instrumentor().instrument()
        # Through dbapi, as every driver but a few.
        SQLite3Instrumentor().instrument()

    def flush(self) -> None:
        self._provider.force_flush(60_000)


class Logfire(Subject):
    def after_setup(self) -> None:
        import logfire
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        # Its exponential histograms break the official Prometheus exporter.
        self._reader = InMemoryMetricReader()
        logfire.configure(
            send_to_logfire=False,
            service_name=SERVICE,
            console=False,
            inspect_arguments=False,
            sampling=logfire.SamplingOptions(head=self.variant.ratio),
            additional_span_processors=[_processor(self.variant, self.endpoint)],
            metrics=logfire.MetricsOptions(additional_readers=[self._reader]),
            distributed_tracing=True,
        )
        logfire.instrument_django()
        logfire.instrument_psycopg("psycopg2")
        logfire.instrument_sqlite3()

    def flush(self) -> None:
        import logfire

        logfire.force_flush(60_000)

    def requests_counted(self) -> float:
        data = self._reader.get_metrics_data()
        metrics = [
            metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]
        names = ("http.server.duration", "http.server.request.duration")
        return float(
            sum(point.count for metric in metrics if metric.name in names for point in metric.data.data_points)
        )


class DjangoPrometheus(_Prometheus):
    requests_samples = ("django_http_requests_latency_including_middlewares_seconds_count",)
    queries_samples = ("django_db_query_duration_seconds_count",)

    def before_setup(self, settings: dict[str, Any]) -> None:
        settings["INSTALLED_APPS"].append("django_prometheus")
        settings["MIDDLEWARE"] = [
            "django_prometheus.middleware.PrometheusBeforeMiddleware",
            *settings["MIDDLEWARE"],
            "django_prometheus.middleware.PrometheusAfterMiddleware",
        ]
        for database in settings["DATABASES"].values():
            database["ENGINE"] = database["ENGINE"].replace("django.db.backends", "django_prometheus.db.backends")


# --- Vendors' own. ---


class Sentry(Subject):
    def before_setup(self, settings: dict[str, Any]) -> None:
        import sentry_sdk
        from sentry_sdk.transport import Transport

        class Sink(Transport):
            def capture_envelope(self, envelope: Any) -> None:
                for item in envelope.items:
                    event = item.get_transaction_event()
                    if event is not None:
                        sinks.emission.requests += 1
                        sinks.emission.queries += sum(span.get("op", "").startswith("db") for span in event["spans"])
                        sinks.emission.trace_ids = {event["contexts"]["trace"]["trace_id"]}

        host = self.endpoint.removeprefix("http://")
        sentry_sdk.init(
            dsn=f"http://key@{host}/1",
            traces_sample_rate=self.variant.ratio,
            transport=None if self.variant.exports else Sink,
            transport_queue_size=_QUEUE,
        )

    def flush(self) -> None:
        import sentry_sdk

        sentry_sdk.flush(60)


class Elastic(Subject):
    def before_setup(self, settings: dict[str, Any]) -> None:
        settings["INSTALLED_APPS"].append("elasticapm.contrib.django")
        settings["MIDDLEWARE"].insert(0, "elasticapm.contrib.django.middleware.TracingMiddleware")
        settings["ELASTIC_APM"] = {
            "SERVICE_NAME": SERVICE,
            "SERVER_URL": self.endpoint,
            "TRANSACTION_SAMPLE_RATE": self.variant.ratio,
            "CENTRAL_CONFIG": False,
            "CLOUD_PROVIDER": "none",
        }
        if not self.variant.exports:
            settings["ELASTIC_APM"]["TRANSPORT_CLASS"] = "benchmarks.peers.elastic_sink.Sink"

    def flush(self) -> None:
        from elasticapm import get_client

        if self.variant.exports:
            get_client()._transport.flush()


class Datadog(Subject):
    def before_setup(self, settings: dict[str, Any]) -> None:
        os.environ.update(
            {
                "DD_SERVICE": SERVICE,
                "DD_TRACE_AGENT_URL": self.endpoint,
                "DD_TRACE_SAMPLING_RULES": f'[{{"sample_rate": {self.variant.ratio}}}]',
                "DD_TRACE_RATE_LIMIT": "-1",
                # What would talk to the network or the machine beside tracing.
                "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
                "DD_REMOTE_CONFIGURATION_ENABLED": "false",
                "DD_CRASHTRACKING_ENABLED": "false",
            }
        )
        if not self.variant.exports:
            # Which traces are recorded is settled as they are written, so they are: into a buffer that nobody empties
            # while requests are measured.
            os.environ["DD_TRACE_WRITER_INTERVAL_SECONDS"] = str(_DELAY_S)
            os.environ["DD_TRACE_WRITER_BUFFER_SIZE_BYTES"] = str(200 * 2**20)
        import ddtrace.auto  # noqa: F401 (switches everything on)

    def flush(self) -> None:
        from ddtrace.trace import tracer

        tracer.flush()


SUBJECTS: dict[str, Callable[[Variant, str], Subject]] = {
    "bare": Subject,
    "django-otel": DjangoOtel,
    "official": Official,
    "django-prometheus": DjangoPrometheus,
    "elastic": Elastic,
    "sentry": Sentry,
    "logfire": Logfire,
    "ddtrace": Datadog,
}
