"""Contents of the Grafana dashboards: panels and their PromQL, by topic.

They work for metrics that Prometheus scraped and for metrics received over OTLP: both have the labels `job` and
`instance` and the series `target_info`.
"""

from __future__ import annotations

from django_otel.base.frozen import record

TARGET = 'job=~"$job", instance=~"$instance"'
ROUTE = f'{TARGET}, http_route=~"$route"'
DURATION = "http_server_request_duration_seconds"


@record
class Query:
    """One PromQL expression of a panel and the legend of its series."""

    expr: str
    legend: str


@record
class Panel:
    """One panel. `kind` is a panel type of Grafana; `unit` one of Grafana's units."""

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 12
    has_exemplars: bool = False
    is_stacked: bool = False


@record
class Dashboard:
    """A dashboard by its topic, which is also its file's name."""

    topic: str
    title: str
    description: str
    panels: tuple[Panel, ...]


def rate(metric: str, by: str, matchers: str = TARGET) -> str:
    """Return the PromQL of a rate, summed by labels."""
    return f"sum by ({by}) (rate({metric}{{{matchers}}}[$__rate_interval]))"


def quantile(part: float, metric: str, by: str = "", matchers: str = TARGET) -> str:
    """Return the PromQL of a quantile of a histogram, interpolated within buckets."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({part}, sum by ({labels}) (rate({metric}_bucket{{{matchers}}}[$__rate_interval])))"


def share(part: str, whole: str) -> str:
    """Return the PromQL of a share; 0 where there is no part."""
    return f"({part} or {whole} * 0) / {whole}"


def percentiles(metric: str, matchers: str) -> tuple[Query, ...]:
    """Return the queries of the median, p95 and p99 of a histogram."""
    return tuple(Query(quantile(part, metric, matchers=matchers), f"p{part * 100:g}") for part in (0.5, 0.95, 0.99))


_ERRORS = f'{ROUTE}, http_response_status_code=~"5.."'
_REQUESTS = Query(rate(f"{DURATION}_count", "http_route", ROUTE), "{{http_route}}")
_ERROR_SHARE = Query(
    share(rate(f"{DURATION}_count", "job", _ERRORS), rate(f"{DURATION}_count", "job", ROUTE)), "{{job}}"
)
_LATENCY = Panel(
    "Duration",
    "Percentiles of the request duration, interpolated within buckets.",
    percentiles(DURATION, ROUTE),
    "s",
    has_exemplars=True,
)

_OVERVIEW = Dashboard(
    "overview",
    "Django: overview",
    "Requests, errors, duration, database, cache and telemetry of one or more services.",
    (
        Panel(
            "Requests per second",
            "All routes.",
            (Query(rate(f"{DURATION}_count", "job", ROUTE), "{{job}}"),),
            "reqps",
            "stat",
            6,
        ),
        Panel(
            "Error share", "Share of requests answered with a server error.", (_ERROR_SHARE,), "percentunit", "stat", 6
        ),
        Panel(
            "95th percentile",
            "Of the request duration.",
            (Query(quantile(0.95, DURATION, "job", ROUTE), "{{job}}"),),
            "s",
            "stat",
            6,
        ),
        Panel(
            "In flight",
            "Requests in progress.",
            (Query(f"sum by (job) (http_server_active_requests{{{TARGET}}})", "{{job}}"),),
            "short",
            "stat",
            6,
        ),
        Panel("Requests by route", "Requests per second.", (_REQUESTS,), "reqps", is_stacked=True),
        _LATENCY,
        Panel("Error share", "Share of requests answered with a server error.", (_ERROR_SHARE,), "percentunit"),
        Panel(
            "Database time per request",
            "Total duration of database operations per request.",
            (
                Query(
                    f"{rate('db_client_operation_duration_seconds_sum', 'job')} / {rate(f'{DURATION}_count', 'job')}",
                    "{{job}}",
                ),
            ),
            "s",
        ),
        Panel(
            "Cache hit share",
            "Hits among reads.",
            (
                Query(
                    share(
                        rate(
                            "django_cache_operations_total",
                            "django_cache_alias",
                            f'{TARGET}, django_cache_outcome="hit"',
                        ),
                        rate(
                            "django_cache_operations_total",
                            "django_cache_alias",
                            f'{TARGET}, django_cache_outcome=~"hit|miss"',
                        ),
                    ),
                    "{{django_cache_alias}}",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Business events",
            "Committed events per minute.",
            (Query(f"60 * {rate('django_business_events_total', 'business_event')}", "{{business_event}}"),),
        ),
    ),
)

_REQUESTS_BOARD = Dashboard(
    "requests",
    "Django: requests and routes",
    "Every figure of HTTP requests, by route.",
    (
        Panel("Requests by route", "Requests per second.", (_REQUESTS,), "reqps", is_stacked=True),
        Panel(
            "Requests by status",
            "Requests per second.",
            (Query(rate(f"{DURATION}_count", "http_response_status_code", ROUTE), "{{http_response_status_code}}"),),
            "reqps",
            is_stacked=True,
        ),
        _LATENCY,
        Panel(
            "95th percentile by route",
            "Of the request duration.",
            (Query(quantile(0.95, DURATION, "http_route", ROUTE), "{{http_route}}"),),
            "s",
            has_exemplars=True,
        ),
        Panel(
            "Errors by route",
            "Server errors per second.",
            (Query(rate(f"{DURATION}_count", "http_route", _ERRORS), "{{http_route}}"),),
            "reqps",
        ),
        Panel(
            "Unhandled exceptions",
            "Exceptions per minute, by type.",
            (Query(f"60 * {rate('django_request_exceptions_total', 'exception_type', ROUTE)}", "{{exception_type}}"),),
        ),
        Panel(
            "Requests in flight",
            "By method.",
            (
                Query(
                    f"sum by (http_request_method) (http_server_active_requests{{{TARGET}}})", "{{http_request_method}}"
                ),
            ),
        ),
        Panel(
            "Response size",
            "95th percentile by route.",
            (Query(quantile(0.95, "http_server_response_body_size_bytes", "http_route", ROUTE), "{{http_route}}"),),
            "bytes",
        ),
        Panel(
            "Request size",
            "95th percentile by route.",
            (Query(quantile(0.95, "http_server_request_body_size_bytes", "http_route", ROUTE), "{{http_route}}"),),
            "bytes",
        ),
        Panel(
            "Routes",
            "Requests per second, mean duration and error share in the selected range.",
            (
                Query(f"sum by (http_route) (rate({DURATION}_count{{{ROUTE}}}[$__range]))", "requests/s"),
                Query(
                    f"sum by (http_route) (rate({DURATION}_sum{{{ROUTE}}}[$__range]))"
                    f" / sum by (http_route) (rate({DURATION}_count{{{ROUTE}}}[$__range]))",
                    "mean s",
                ),
            ),
            kind="table",
            width=24,
        ),
    ),
)

_DB = "db_client_operation_duration_seconds"
_DATABASE = Dashboard(
    "database",
    "Django: database",
    "Database operations of Django's connections, and queries per request.",
    (
        Panel(
            "Operations per second",
            "By operation.",
            (
                Query(
                    rate(f"{_DB}_count", "django_db_alias, db_operation_name"),
                    "{{django_db_alias}} {{db_operation_name}}",
                ),
            ),
            "ops",
            is_stacked=True,
        ),
        Panel("Duration", "Percentiles of the operation duration.", percentiles(_DB, TARGET), "s"),
        Panel(
            "Errors",
            "Failed operations per second, by error.",
            (
                Query(
                    rate(f"{_DB}_count", "django_db_alias, error_type", f'{TARGET}, error_type!=""'),
                    "{{django_db_alias}} {{error_type}}",
                ),
            ),
            "ops",
        ),
        Panel(
            "Connections opened",
            "Per second.",
            (Query(rate("django_db_connections_total", "django_db_alias"), "{{django_db_alias}}"),),
            "ops",
        ),
        Panel(
            "Queries per request",
            "Mean by route.",
            (
                Query(
                    f"{rate('django_request_queries_sum', 'http_route', ROUTE)}"
                    f" / {rate('django_request_queries_count', 'http_route', ROUTE)}",
                    "{{http_route}}",
                ),
            ),
        ),
        Panel(
            "Queries per request, 95th percentile",
            "By route.",
            (Query(quantile(0.95, "django_request_queries", "http_route", ROUTE), "{{http_route}}"),),
        ),
    ),
)

_CACHE_OPERATIONS = "django_cache_operations_total"
_CACHE = Dashboard(
    "cache",
    "Django: cache",
    "Operations on Django's caches.",
    (
        Panel(
            "Operations per second",
            "By operation.",
            (
                Query(
                    rate(_CACHE_OPERATIONS, "django_cache_alias, django_cache_operation"),
                    "{{django_cache_alias}} {{django_cache_operation}}",
                ),
            ),
            "ops",
            is_stacked=True,
        ),
        Panel(
            "Hit share",
            "Hits among reads.",
            (
                Query(
                    share(
                        rate(_CACHE_OPERATIONS, "django_cache_alias", f'{TARGET}, django_cache_outcome="hit"'),
                        rate(_CACHE_OPERATIONS, "django_cache_alias", f'{TARGET}, django_cache_outcome=~"hit|miss"'),
                    ),
                    "{{django_cache_alias}}",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Duration",
            "95th percentile by operation.",
            (
                Query(
                    quantile(
                        0.95, "django_cache_operation_duration_seconds", "django_cache_alias, django_cache_operation"
                    ),
                    "{{django_cache_alias}} {{django_cache_operation}}",
                ),
            ),
            "s",
        ),
        Panel(
            "Errors",
            "Failed operations per second.",
            (
                Query(
                    rate(_CACHE_OPERATIONS, "django_cache_alias", f'{TARGET}, django_cache_outcome="error"'),
                    "{{django_cache_alias}}",
                ),
            ),
            "ops",
        ),
    ),
)

_BUSINESS = Dashboard(
    "business",
    "Django: business events",
    "Events of registered models, and their saves.",
    (
        Panel(
            "Events per minute",
            "Committed events.",
            (Query(f"60 * {rate('django_business_events_total', 'business_event')}", "{{business_event}}"),),
            is_stacked=True,
        ),
        Panel(
            "Events in the selected range",
            "Committed events.",
            (
                Query(
                    f"sum by (business_event) (increase(django_business_events_total{{{TARGET}}}[$__range]))",
                    "{{business_event}}",
                ),
            ),
            kind="stat",
        ),
        Panel(
            "Saves and deletes",
            "Of registered models, per minute.",
            (
                Query(
                    f"60 * {rate('django_model_operations_total', 'django_model, django_model_operation')}",
                    "{{django_model}} {{django_model_operation}}",
                ),
            ),
            width=24,
        ),
    ),
)

_TELEMETRY = Dashboard(
    "telemetry",
    "Django: sampling and export",
    "Whether telemetry itself works: sampling, exports, drops, cardinality.",
    (
        Panel(
            "Sampling ratio",
            "Ratio in effect.",
            (Query(f"max by (job) (django_otel_sampling_ratio{{{TARGET}}})", "{{job}}"),),
            "percentunit",
        ),
        Panel(
            "Sampling decisions",
            "Traces per second, by decision and reason.",
            (
                Query(
                    rate("django_otel_sampling_decisions_total", "sampling_decision, sampling_reason"),
                    "{{sampling_decision}} {{sampling_reason}}",
                ),
            ),
            is_stacked=True,
        ),
        Panel(
            "Failed exports",
            "Per minute, by signal.",
            (
                Query(
                    f"60 * {rate('django_otel_export_failures_total', 'django_otel_signal')}", "{{django_otel_signal}}"
                ),
            ),
        ),
        Panel(
            "Dropped",
            "Spans, log records and data points dropped per minute.",
            tuple(
                Query(
                    f"60 * {rate(f'django_otel_{signal}_dropped_total', 'django_otel_reason')}",
                    f"{signal} {{{{django_otel_reason}}}}",
                )
                for signal in ("spans", "logs", "metrics", "console")
            ),
        ),
        Panel(
            "Cardinality overflow",
            "Measurements in overflow series per minute.",
            (Query(f"60 * {rate('django_otel_cardinality_overflow_total', 'job')}", "{{job}}"),),
        ),
        Panel(
            "Workers share their metrics",
            "1 if /metrics shows all workers.",
            (Query(f"min by (job, instance) (django_otel_shared_active{{{TARGET}}})", "{{instance}}"),),
        ),
        Panel(
            "Unreadable files of the shared folder",
            "Per minute, by reason.",
            (
                Query(
                    f"60 * {rate('django_otel_shared_files_skipped_total', 'django_otel_reason')}",
                    "{{django_otel_reason}}",
                ),
            ),
            width=24,
        ),
    ),
)

_SECURITY = Dashboard(
    "security",
    "Django: sign-ins, security and mail",
    "Sign-ins, refused requests and mail.",
    (
        Panel(
            "Sign-ins",
            "Sign-ins, sign-outs and failed sign-ins per minute.",
            (Query(f"60 * {rate('django_auth_events_total', 'django_auth_event')}", "{{django_auth_event}}"),),
        ),
        Panel(
            "Refused requests",
            "By kind, per minute.",
            (
                Query(
                    f"60 * {rate('django_security_events_total', 'django_security_event')}",
                    "{{django_security_event}}",
                ),
            ),
        ),
        Panel(
            "Mail",
            "Messages per minute, by outcome (EMAIL).",
            (Query(f"60 * {rate('django_email_sent_total', 'django_email_outcome')}", "{{django_email_outcome}}"),),
            width=24,
        ),
    ),
)

DASHBOARDS: tuple[Dashboard, ...] = (_OVERVIEW, _REQUESTS_BOARD, _DATABASE, _CACHE, _BUSINESS, _SECURITY, _TELEMETRY)
