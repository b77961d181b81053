"""PromQL examples for each metric of the catalogue: by kind, with specific ones for the best-known metrics."""

from __future__ import annotations

from django_otel.base.frozen import record
from django_otel.metrics.catalogue import Metric
from django_otel.metrics.model import MetricType
from django_otel.metrics.prometheus_names import family_name, label_name

_DURATION = "http_server_request_duration_seconds"
_DB = "db_client_operation_duration_seconds"
_CACHE_READS = 'sum by (django_cache_alias) (rate(django_cache_operations_total{django_cache_outcome=~"hit|miss"}[5m]))'


@record
class Example:
    """A question and the PromQL that answers it."""

    title: str
    query: str


def sample_name(metric: Metric) -> str:
    """Return the name of a metric on `/metrics`; of a histogram without `_bucket`, `_sum`, `_count`."""
    name, _ = family_name(metric.name, metric.unit, metric.metric_type)
    return f"{name}_total" if metric.metric_type is MetricType.COUNTER else name


def find_examples(metric: Metric) -> tuple[Example, ...]:
    """Return the examples of a metric, at least one."""
    return (*_OWN.get(metric.name, ()), *_build_examples(metric))


def _build_examples(metric: Metric) -> tuple[Example, ...]:
    """The queries that make sense for every metric of this kind, by its first attribute."""
    name = sample_name(metric)
    attribute = _BY.get(metric.name, metric.attributes[0] if metric.attributes else "")
    label = label_name(attribute) if attribute else "job"
    by = f"by `{attribute}`" if attribute else "by service"
    if metric.metric_type is MetricType.COUNTER:
        return (Example(f"Per second, {by}", f"sum by ({label}) (rate({name}[5m]))"),)
    if metric.metric_type is MetricType.HISTOGRAM:
        return (
            Example(
                f"95th percentile, {by}", f"histogram_quantile(0.95, sum by ({label}, le) (rate({name}_bucket[5m])))"
            ),
            Example(
                f"Mean, {by}",
                f"sum by ({label}) (rate({name}_sum[5m])) / sum by ({label}) (rate({name}_count[5m]))",
            ),
        )
    function = {"sum": "sum", "livesum": "sum", "min": "min"}.get(metric.aggregation, "max")
    return (Example(f"Now, {by}", f"{function} by ({label}) ({name})"),)


#: The attribute that says most, where it is not the first.
_BY = {
    "http.server.request.duration": "http.route",
    "http.server.request.body.size": "http.route",
    "http.server.response.body.size": "http.route",
    "db.client.operation.duration": "db.operation.name",
    "django.cache.operations": "django.cache.outcome",
    "django.sampling.decisions": "sampling.decision",
    "django.model.operations": "django.model.operation",
    "django_otel.sampling.decisions": "sampling.decision",
    "django.task.sent": "django.task.name",
    "django.task.duration": "django.task.name",
    "django.task.wait": "django.task.queue",
    "django.task.queue.length": "django.task.queue",
    "django.request.layer.duration": "django.layer",
    "django.migrations": "django.migration.state",
    "django.db.pool.connections": "state",
    "django.db.transaction.duration": "django.transaction.outcome",
}

_OWN = {
    "http.server.request.duration": (
        Example("Requests per second, by route", f"sum by (http_route) (rate({_DURATION}_count[5m]))"),
        Example(
            "Share of requests that failed",
            f'sum(rate({_DURATION}_count{{http_response_status_code=~"5.."}}[5m])) / sum(rate({_DURATION}_count[5m]))',
        ),
        Example(
            "Share of requests within half a second",
            f'sum(rate({_DURATION}_bucket{{le="0.5"}}[5m])) / sum(rate({_DURATION}_count[5m]))',
        ),
        Example(
            "Routes on which the server spends its time",
            f"topk(10, sum by (http_route) (rate({_DURATION}_sum[5m])))",
        ),
    ),
    "db.client.operation.duration": (
        Example("Operations per second, by operation", f"sum by (db_operation_name) (rate({_DB}_count[5m]))"),
        Example(
            "Failed operations per second, by error", f'sum by (error_type) (rate({_DB}_count{{error_type!=""}}[5m]))'
        ),
        Example("Database time per request", f"sum(rate({_DB}_sum[5m])) / sum(rate({_DURATION}_count[5m]))"),
    ),
    "django.request.queries": (
        Example(
            "Share of requests with more than 50 queries, by route",
            "1 - sum by (http_route) (rate(django_request_queries_bucket{le=~\"50([.]0)?\"}[5m]))"
            " / sum by (http_route) (rate(django_request_queries_count[5m]))",
        ),
    ),
    "django.cache.operations": (
        Example(
            "Hit share, by cache",
            '(sum by (django_cache_alias) (rate(django_cache_operations_total{django_cache_outcome="hit"}[5m]))'
            f" or {_CACHE_READS} * 0) / {_CACHE_READS}",
        ),
    ),
    "django.business.events": (
        Example(
            "Events of the last day, by event",
            "sum by (business_event) (increase(django_business_events_total[1d]))",
        ),
    ),
    "django.auth.events": (
        Example(
            "Failed sign-ins per minute",
            '60 * sum(rate(django_auth_events_total{django_auth_event="login_failed"}[5m]))',
        ),
    ),
    "django.command.last_success": (
        Example(
            "Seconds since the last success, by command",
            "time() - max by (django_command_name) (django_command_last_success_seconds)",
        ),
    ),
}  # fmt: skip
