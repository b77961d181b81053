"""Prometheus rules: recording rules per route, alerts, and burn-rate alerts of objectives.

All use metrics of the catalogue alone (a test compares).
"""

from __future__ import annotations

from collections.abc import Iterable

from django_otel.base.frozen import record
from django_otel.operations.monitoring.slo import Slo, quote

_DURATION = "http_server_request_duration_seconds"


@record
class Alert:
    """An alert rule. `pending` is how long the expression must hold."""

    name: str
    expr: str
    pending: str
    severity: str
    summary: str
    description: str


#: Recording rules: name and expression. `job` and `instance` are added by Prometheus.
RECORDED = (
    ("job_route:http_server_requests:rate5m", f"sum by (job, http_route) (rate({_DURATION}_count[5m]))"),
    (
        "job_route:http_server_errors:rate5m",
        f'sum by (job, http_route) (rate({_DURATION}_count{{http_response_status_code=~"5.."}}[5m]))',
    ),
    (
        "job_route:http_server_error_ratio:rate5m",
        (
            "(job_route:http_server_errors:rate5m or job_route:http_server_requests:rate5m * 0)\n"
            "  / job_route:http_server_requests:rate5m"
        ),
    ),
    *(
        (
            f"job_route:{_DURATION}:p{quantile}_5m",
            f"histogram_quantile(0.{quantile}, sum by (job, http_route, le) (rate({_DURATION}_bucket[5m])))",
        )
        for quantile in (50, 95, 99)
    ),
    (
        "job_route:django_request_queries:mean5m",
        (
            "sum by (job, http_route) (rate(django_request_queries_sum[5m]))\n"
            "  / sum by (job, http_route) (rate(django_request_queries_count[5m]))"
        ),
    ),
)

ALERTS = (
    Alert(
        "DjangoErrorRatioHigh",
        f'sum by (job) (rate({_DURATION}_count{{http_response_status_code=~"5.."}}[5m]))\n'
        f"  / sum by (job) (rate({_DURATION}_count[5m])) > 0.05",
        "5m",
        "critical",
        "{{ $labels.job }}: {{ $value | humanizePercentage }} of requests fail",
        "More than 5 % of the requests of the last five minutes were answered with a server error.",
    ),
    Alert(
        "DjangoRouteErrorRatioHigh",
        "job_route:http_server_error_ratio:rate5m > 0.2 and job_route:http_server_requests:rate5m > 0.05",
        "10m",
        "warning",
        "{{ $labels.http_route }}: {{ $value | humanizePercentage }} of requests fail",
        "More than 20 % of the requests of one route fail, at more than three requests a minute.",
    ),
    Alert(
        "DjangoLatencyHigh",
        f"histogram_quantile(0.95, sum by (job, le) (rate({_DURATION}_bucket[5m]))) > 1",
        "10m",
        "warning",
        "{{ $labels.job }}: 95th percentile is {{ $value | humanizeDuration }}",
        "One request in twenty takes longer than a second.",
    ),
    Alert(
        "DjangoSaturated",
        "sum by (job) (avg_over_time(http_server_active_requests[5m])) > 50",
        "5m",
        "warning",
        "{{ $labels.job }}: {{ $value | humanize }} requests in flight",
        "More than 50 requests are in flight on average. Compare with the number of workers and threads.",
    ),
    Alert(
        "DjangoUnhandledExceptions",
        "sum by (job, exception_type) (increase(django_request_exceptions_total[10m])) > 10",
        "0m",
        "warning",
        "{{ $labels.exception_type }}: {{ $value | humanize }} unhandled in ten minutes",
        "The same type of exception reached Django's handler more than ten times in ten minutes.",
    ),
    Alert(
        "DjangoDatabaseErrors",
        (
            "sum by (job, django_db_alias, error_type)"
            ' (increase(db_client_operation_duration_seconds_count{error_type!=""}[10m])) > 10'
        ),
        "0m",
        "warning",
        "{{ $labels.django_db_alias }}: {{ $value | humanize }} operations failed with {{ $labels.error_type }}",
        "More than ten database operations failed with the same error in ten minutes.",
    ),
    Alert(
        "DjangoCacheErrors",
        (
            "sum by (job, django_cache_alias)"
            ' (increase(django_cache_operations_total{django_cache_outcome="error"}[10m])) > 10'
        ),
        "0m",
        "warning",
        "{{ $labels.django_cache_alias }}: {{ $value | humanize }} cache operations failed",
        "More than ten cache operations failed in ten minutes.",
    ),
    Alert(
        "DjangoOtelExportFailing",
        "sum by (job, django_otel_signal) (increase(django_otel_export_failures_total[15m])) > 0",
        "15m",
        "warning",
        "{{ $labels.job }}: exports of {{ $labels.django_otel_signal }} fail",
        "Exports have failed for 15 minutes. Run `manage.py otel doctor`.",
    ),
    Alert(
        "DjangoOtelSpansDropped",
        "sum by (job, django_otel_reason) (increase(django_otel_spans_dropped_total[15m])) > 0",
        "15m",
        "warning",
        "{{ $labels.job }}: {{ $value | humanize }} spans dropped ({{ $labels.django_otel_reason }})",
        "Spans have been dropped for 15 minutes: the queue is full or the receiver rejects them.",
    ),
    Alert(
        "DjangoOtelCardinalityOverflow",
        "sum by (job) (increase(django_otel_cardinality_overflow_total[15m])) > 0",
        "0m",
        "warning",
        "{{ $labels.job }}: an instrument is at its cardinality limit",
        "Measurements are aggregated in an overflow series. Look for an attribute with too many values.",
    ),
    Alert(
        "DjangoOtelWorkersNotShared",
        "min by (job, instance) (django_otel_shared_active) == 0",
        "15m",
        "warning",
        "{{ $labels.instance }}: /metrics shows one worker only",
        "The worker processes cannot share their metrics. See check W005 and the log.",
    ),
    Alert(
        "DjangoNPlusOneQueries",
        "sum by (job, http_route) (increase(django_request_n_plus_one_total[30m])) > 20",
        "10m",
        "warning",
        "{{ $labels.http_route }}: {{ $value | humanize }} requests repeat one statement",
        "A view reads related objects one by one. The console's page of the route names the line.",
    ),
    Alert(
        "DjangoMigrationsUnapplied",
        'max by (job, django_db_alias) (django_migrations{django_migration_state="unapplied"}) > 0',
        "15m",
        "warning",
        "{{ $labels.job }}: {{ $value }} migrations of {{ $labels.django_db_alias }} are not applied",
        "The code that runs has migrations that the database does not have. Run `manage.py migrate`.",
    ),
    Alert(
        "DjangoTasksFailing",
        "sum by (job, django_task_name)"
        ' (increase(django_task_duration_seconds_count{django_task_outcome="failed"}[15m])) > 5\n'
        "  and sum by (job, django_task_name)"
        ' (rate(django_task_duration_seconds_count{django_task_outcome="failed"}[15m]))\n'
        "  / sum by (job, django_task_name) (rate(django_task_duration_seconds_count[15m])) > 0.1",
        "5m",
        "warning",
        "{{ $labels.django_task_name }}: {{ $value | humanize }} runs failed in 15 minutes",
        "More than one run in ten of this task fails.",
    ),
    Alert(
        "DjangoTasksWaiting",
        "histogram_quantile(0.95, sum by (job, django_task_queue, le) (rate(django_task_wait_seconds_bucket[10m])))"
        " > 60",
        "10m",
        "warning",
        "{{ $labels.django_task_queue }}: tasks wait {{ $value | humanizeDuration }}",
        "One task in twenty waits for more than a minute. Start more workers.",
    ),
    Alert(
        "DjangoCommandLate",
        # Commands that ran within a week; one that ran once is not late.
        "time() - max by (job, django_command_name) (django_command_last_success_seconds) > 26 * 3600\n"
        "  and time() - max by (job, django_command_name) (django_command_last_success_seconds) < 7 * 86400",
        "0m",
        "warning",
        "{{ $labels.django_command_name }}: last success {{ $value | humanizeDuration }} ago",
        "A command that runs every day has not succeeded for 26 hours. Silence the alert for commands that run less"
        " often.",
    ),
    Alert(
        "DjangoWorkersBusy",
        "(\n"
        '  sum by (job, instance) (avg_over_time(django_otel_workers{state="busy"}[10m]))\n'
        "    / sum by (job, instance) (avg_over_time(django_otel_workers_web[10m]))\n"
        '  unless sum by (job, instance) (django_otel_workers_web{concurrency="several"}) > 0\n'
        ") > 0.9\n"
        "or\n"
        "sum by (job, instance) (rate(process_cpu_time_seconds_total[10m]))\n"
        "  / sum by (job, instance) (avg_over_time(django_otel_workers[10m])) > 0.9",
        "10m",
        "warning",
        "{{ $labels.instance }}: the workers are {{ $value | humanizePercentage }} busy",
        "Nearly every worker process has been busy for ten minutes, so requests wait. A process that takes one request"
        " at a time is busy while it has one; one with threads or an event loop, while it uses a processor all the"
        " time.",
    ),
    Alert(
        "DjangoRequestsWaiting",
        "histogram_quantile(0.95, sum by (job, le) (rate(http_server_request_time_in_queue_seconds_bucket[5m]))) > 0.5",
        "10m",
        "warning",
        "{{ $labels.job }}: requests wait {{ $value | humanizeDuration }} for a worker",
        "One request in twenty waits for more than half a second between the proxy and Django.",
    ),
    Alert(
        "DjangoDatabaseUnreachable",
        "sum by (job, django_db_alias) (increase(django_db_connection_errors_total[10m])) > 10",
        "0m",
        "critical",
        "{{ $labels.django_db_alias }}: {{ $value | humanize }} connections failed",
        "More than ten connections to the database failed in ten minutes.",
    ),
)

#: Burn rate, long and short window, severity (SRE workbook, table 5-8).
_BURN_RATES = (
    (14.4, "1h", "5m", "critical"),
    (6.0, "6h", "30m", "critical"),
    (3.0, "1d", "2h", "warning"),
    (1.0, "3d", "6h", "warning"),
)


def build_rules(slos: Iterable[Slo] = ()) -> dict[str, object]:
    """Return a rule file of Prometheus as plain data."""
    groups = [
        {"name": "django_otel.recorded", "rules": [{"record": name, "expr": expr} for name, expr in RECORDED]},
        {"name": "django_otel.alerts", "rules": [_build_alert(alert) for alert in ALERTS]},
    ]
    rules: list[dict[str, object]] = []
    for slo in slos:
        # Two objectives of one thing have their recording rules in common.
        rules += [rule for rule in _build_slo(slo) if rule not in rules]
    if rules:
        groups.append({"name": "django_otel.slo", "rules": rules})
    return {"groups": groups}


def _build_alert(alert: Alert) -> dict[str, object]:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.pending,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "description": alert.description},
    }


def _build_slo(slo: Slo) -> list[dict[str, object]]:
    """Record the error ratio of each window, and alert when a long and a short window both burn too fast."""
    windows = sorted({window for _, *pair, _ in _BURN_RATES for window in pair})
    labels = {"slo": slo.name}
    rules: list[dict[str, object]] = [
        {"record": f"job_slo:error_ratio:rate{window}", "expr": slo.error_ratio(window), "labels": labels}
        for window in windows
    ]
    selector = f"{{slo={quote(slo.name)}}}"
    # Labels and annotations of alerts are templates.
    shown, objective = slo.name.replace("{{", '{{ "{{" }}'), f"{slo.objective * 100:.10g}"
    budget = f"{1 - slo.objective:.10g}"
    for rate, long, short, severity in _BURN_RATES:
        limit = f"{rate:g} * {budget}"
        rules.append(
            {
                "alert": "DjangoErrorBudgetBurning",
                "expr": f"job_slo:error_ratio:rate{long}{selector} > {limit}\n"
                f"  and job_slo:error_ratio:rate{short}{selector} > {limit}",
                "labels": {"severity": severity, "slo": shown, "objective": objective, "window": long},
                "annotations": {
                    "summary": f"{{{{ $labels.job }}}}: the error budget of {shown} burns {rate:g} times too fast",
                    "description": f"The objective is {objective} %. In the last {long} the share of bad"
                    " requests is {{ $value | humanizePercentage }}.",
                },
            }
        )
    return rules
