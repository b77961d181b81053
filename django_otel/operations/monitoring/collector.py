"""Configuration of an OpenTelemetry Collector (distribution "contrib", 0.144 or newer) that forwards to backends.

Keys come from the environment (`${env:NAME}`), so the file holds no secret.
Source: OpenTelemetry Collector documentation; READMEs of the components in opentelemetry-collector-contrib.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from django.utils.translation import gettext

from django_otel.base.frozen import record
from django_otel.metrics.catalogue import SECONDS_HTTP


@record
class Backend:
    """A destination: its exporters by name, the exporters of each signal, and the extensions they need."""

    exporters: Mapping[str, object]
    traces: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    logs: tuple[str, ...] = ()
    extensions: Mapping[str, object] | None = None


BACKENDS: Mapping[str, Backend] = {
    "jaeger": Backend({"otlp_http/jaeger": {"endpoint": "${env:JAEGER_ENDPOINT}"}}, traces=("otlp_http/jaeger",)),
    "tempo": Backend({"otlp_http/tempo": {"endpoint": "${env:TEMPO_ENDPOINT}"}}, traces=("otlp_http/tempo",)),
    "datadog": Backend(
        {"datadog": {"api": {"site": "${env:DD_SITE}", "key": "${env:DD_API_KEY}"}}},
        traces=("datadog",), metrics=("datadog",), logs=("datadog",),
    ),
    "grafana-cloud": Backend(
        {
            "otlp_http/grafana_cloud": {
                "endpoint": "${env:GRAFANA_CLOUD_OTLP_ENDPOINT}", "auth": {"authenticator": "basicauth/grafana_cloud"},
            }
        },
        traces=("otlp_http/grafana_cloud",), metrics=("otlp_http/grafana_cloud",), logs=("otlp_http/grafana_cloud",),
        extensions={
            "basicauth/grafana_cloud": {
                "client_auth": {
                    "username": "${env:GRAFANA_CLOUD_INSTANCE_ID}", "password": "${env:GRAFANA_CLOUD_TOKEN}",
                }
            }
        },
    ),
    "prometheus": Backend(
        {
            "prometheusremotewrite": {
                "endpoint": "${env:PROMETHEUS_REMOTE_WRITE_ENDPOINT}",
                "target_info": {"enabled": True},
            }
        },
        metrics=("prometheusremotewrite",),
    ),
}  # fmt: skip

#: Traces that are kept whole: errors and slow ones, and a share of the others.
_TAIL_SAMPLING = {
    "decision_wait": "10s",
    "policies": [
        {"name": "errors", "type": "status_code", "status_code": {"status_codes": ["ERROR"]}},
        {"name": "slow", "type": "latency", "latency": {"threshold_ms": 2000}},
        {"name": "share", "type": "probabilistic", "probabilistic": {"sampling_percentage": 5}},
    ],
}


def build_collector(
    names: Iterable[str], *, has_tail_sampling: bool = False, has_span_metrics: bool = False
) -> dict[str, object]:
    """Return a configuration for the named backends (keys of `BACKENDS`) as plain data.

    Errors: `ValueError` without a backend, for an unknown one, and for span metrics without a backend for metrics.
    """
    names = list(dict.fromkeys(names))
    unknown = [name for name in names if name not in BACKENDS]
    if unknown or not names:
        message = gettext('"%(found)s" is not valid; expected one or more of %(backends)s.')
        raise ValueError(message % {"found": ", ".join(unknown), "backends": ", ".join(BACKENDS)})
    backends = [BACKENDS[name] for name in names]
    exporters = {name: part for backend in backends for name, part in backend.exporters.items()}
    extensions = {name: part for backend in backends for name, part in (backend.extensions or {}).items()}
    traces = [name for backend in backends for name in backend.traces]
    metrics = [name for backend in backends for name in backend.metrics]
    logs = [name for backend in backends for name in backend.logs]
    if has_span_metrics and not (traces and metrics):
        raise ValueError(
            gettext("Span metrics need a backend for traces and one for metrics, such as jaeger and prometheus.")
        )
    processors: dict[str, object] = {
        "memory_limiter": {"check_interval": "1s", "limit_percentage": 80, "spike_limit_percentage": 20},
        "batch": {"timeout": "5s"},
    }
    if has_tail_sampling:
        processors["tail_sampling"] = _TAIL_SAMPLING
    config: dict[str, object] = {
        "receivers": {
            "otlp": {"protocols": {"http": {"endpoint": "localhost:4318"}, "grpc": {"endpoint": "localhost:4317"}}}
        },
        "processors": processors,
    }
    pipelines = _build_pipelines(traces, metrics, logs, has_tail_sampling=has_tail_sampling)
    if has_span_metrics:
        config["connectors"] = {"spanmetrics": _build_span_metrics()}
        pipelines["traces/spanmetrics"] = _build_pipeline(["otlp"], ["memory_limiter"], ["spanmetrics"])
        pipelines["metrics/spanmetrics"] = _build_pipeline(["spanmetrics"], ["batch"], metrics)
    config["exporters"] = exporters
    if extensions:
        config["extensions"] = extensions
    service: dict[str, object] = {"extensions": list(extensions)} if extensions else {}
    config["service"] = {**service, "pipelines": pipelines}
    return config


def _build_span_metrics() -> dict[str, object]:
    """Metrics of spans, computed before tail sampling; buckets as those of `http.server.request.duration`."""
    buckets = [f"{bound * 1000:g}ms" for bound in SECONDS_HTTP]
    return {"histogram": {"explicit": {"buckets": buckets}}, "dimensions": [{"name": "http.route"}]}


def _build_pipelines(
    traces: list[str], metrics: list[str], logs: list[str], *, has_tail_sampling: bool
) -> dict[str, object]:
    middle = ["memory_limiter", "tail_sampling", "batch"] if has_tail_sampling else ["memory_limiter", "batch"]
    pipelines: dict[str, object] = {}
    if traces:
        pipelines["traces"] = _build_pipeline(["otlp"], middle, traces)
    if metrics:
        pipelines["metrics"] = _build_pipeline(["otlp"], ["memory_limiter", "batch"], metrics)
    if logs:
        pipelines["logs"] = _build_pipeline(["otlp"], ["memory_limiter", "batch"], logs)
    return pipelines


def _build_pipeline(receivers: list[str], processors: list[str], exporters: list[str]) -> dict[str, list[str]]:
    return {"receivers": receivers, "processors": processors, "exporters": exporters}
