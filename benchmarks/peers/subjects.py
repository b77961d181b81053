"""Each peer switched on in the measured process, as its own documentation says.

What is not measured is made equal: without export, recorded spans wait in the
peer's queue and are dropped where they would be sent, outside of the measured
time; with export, a block ends when everything has been sent. Limits that would
let a peer drop what it was asked to record (rates, queue lengths) are lifted.
"""

from __future__ import annotations

import os
from typing import Any

from benchmarks.peers import sinks
from benchmarks.peers.catalogue import Variant
from benchmarks.peers.own import DjangoOtel
from benchmarks.peers.subject import DELAY_S, QUEUE, SERVICE, OpenTelemetrySubject, Subject

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
        exporter, max_queue_size=QUEUE, max_export_batch_size=QUEUE, schedule_delay_millis=DELAY_S * 1000
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


class Official(OpenTelemetrySubject, _Prometheus):
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


class Logfire(OpenTelemetrySubject):
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
            transport_queue_size=QUEUE,
            # From 100 ms on it looks up a query's place in the code: as with Elastic's client, see there.
            db_query_source_threshold_ms=3_600_000,
        )

    def flush(self) -> None:
        import sentry_sdk

        sentry_sdk.flush(60)

    def has_span(self) -> bool:
        import sentry_sdk

        return sentry_sdk.get_current_scope().transaction is not None


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
            # Where instructions are counted every query takes long; at its real speed none here is slow enough to have
            # its stack recorded (5 ms) or to stand alone beside its like (50 ms).
            "SPAN_STACK_TRACE_MIN_DURATION": "60m",
            "SPAN_COMPRESSION_EXACT_MATCH_MAX_DURATION": "60m",
        }
        if not self.variant.exports:
            settings["ELASTIC_APM"]["TRANSPORT_CLASS"] = "benchmarks.peers.elastic_sink.Sink"

    def flush(self) -> None:
        from elasticapm import get_client

        if self.variant.exports:
            get_client()._transport.flush()  # noqa: SLF001 (measures the inside)

    def has_span(self) -> bool:
        from elasticapm.traces import execution_context

        return execution_context.get_transaction() is not None


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
            # Which traces are recorded is settled as they are written, so they are: into a buffer that is not emptied
            # while requests are measured.
            os.environ["DD_TRACE_WRITER_INTERVAL_SECONDS"] = str(DELAY_S)
            os.environ["DD_TRACE_WRITER_BUFFER_SIZE_BYTES"] = str(200 * 2**20)
        import ddtrace.auto  # noqa: F401 (switches everything on)

    def flush(self) -> None:
        from ddtrace.trace import tracer

        tracer.flush()

    def has_span(self) -> bool:
        from ddtrace.trace import tracer

        return tracer.current_span() is not None


SUBJECTS: dict[str, type[Subject]] = {
    "bare": Subject,
    "django-otel": DjangoOtel,
    "official": Official,
    "django-prometheus": DjangoPrometheus,
    "elastic": Elastic,
    "sentry": Sentry,
    "logfire": Logfire,
    "ddtrace": Datadog,
}
