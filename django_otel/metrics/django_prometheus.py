"""The names of django-prometheus 2.5: its metrics as a table, and those that follow from ours.

`METRICS["NAMES"]` chooses them. What our own metrics hold already (cache, models, connections, migrations) is read from
them when a page is written; requests and statements have labels and buckets of their own and are measured beside ours.
Source: django-prometheus 2.5.0, `middleware.py`, `db/metrics.py`, `cache/metrics.py`, `models.py`, `migrations.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from django_otel.base import guard
from django_otel.base.frozen import record
from django_otel.metrics.model import OWN_SCOPE, Attributes, Family, MetricType, Point

#: `PROMETHEUS_LATENCY_BUCKETS`, in seconds.
LATENCY_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 25.0, 50.0, 75.0)
#: `PowersOf(2, 30)`, in bytes.
POWERS_OF_2 = (0.0, *(float(2**power) for power in range(30)))


@record
class LegacyMetric:
    """One metric of django-prometheus. `name` is as its source has it; a counter's sample ends in `_total`."""

    name: str
    metric_type: MetricType
    description: str
    bounds: tuple[float, ...] = ()


_C, _H, _G = MetricType.COUNTER, MetricType.HISTOGRAM, MetricType.GAUGE

#: Measured where the requests and the statements are.
MEASURED = {
    metric.name: metric
    for metric in (
        LegacyMetric(
            "django_http_requests_before_middlewares_total", _C, "Total count of requests before middlewares run."
        ),
        LegacyMetric(
            "django_http_responses_before_middlewares_total", _C, "Total count of responses before middlewares run."
        ),
        LegacyMetric(
            "django_http_requests_latency_including_middlewares_seconds", _H,
            "Histogram of requests processing time (including middleware processing time).", LATENCY_S,
        ),
        LegacyMetric(
            "django_http_requests_latency_seconds_by_view_method", _H,
            "Histogram of request processing time labelled by view.", LATENCY_S,
        ),
        LegacyMetric("django_http_ajax_requests_total", _C, "Count of AJAX requests."),
        LegacyMetric("django_http_requests_total_by_method", _C, "Count of requests by method."),
        LegacyMetric("django_http_requests_total_by_transport", _C, "Count of requests by transport."),
        LegacyMetric(
            "django_http_requests_total_by_view_transport_method", _C, "Count of requests by view, transport, method."
        ),
        LegacyMetric(
            "django_http_requests_body_total_bytes", _H, "Histogram of requests by body size.", POWERS_OF_2
        ),
        LegacyMetric("django_http_responses_total_by_templatename", _C, "Count of responses by template name."),
        LegacyMetric("django_http_responses_total_by_status", _C, "Count of responses by status."),
        LegacyMetric(
            "django_http_responses_total_by_status_view_method", _C, "Count of responses by status, view, method."
        ),
        LegacyMetric(
            "django_http_responses_body_total_bytes", _H, "Histogram of responses by body size.", POWERS_OF_2
        ),
        LegacyMetric("django_http_responses_total_by_charset", _C, "Count of responses by charset."),
        LegacyMetric("django_http_responses_streaming_total", _C, "Count of streaming responses."),
        LegacyMetric("django_http_exceptions_total_by_type", _C, "Count of exceptions by object type."),
        LegacyMetric("django_http_exceptions_total_by_view", _C, "Count of exceptions by view."),
        LegacyMetric(
            "django_db_execute_total", _C,
            "Counter of executed statements by database and by vendor, including bulk executions.",
        ),
        LegacyMetric(
            "django_db_execute_many_total", _C,
            "Counter of executed statements in bulk operations by database and by vendor.",
        ),
        LegacyMetric(
            "django_db_errors_total", _C, "Counter of execution errors by database, vendor and exception type."
        ),
        LegacyMetric(
            "django_db_query_duration_seconds", _H, "Histogram of query duration by database and vendor.", LATENCY_S
        ),
    )
}  # fmt: skip

#: Read from our own metrics.
DERIVED = {
    metric.name: metric
    for metric in (
        LegacyMetric(
            "django_db_new_connections_total", _C, "Counter of created connections by database and by vendor."
        ),
        LegacyMetric(
            "django_db_new_connection_errors_total", _C, "Counter of connection failures by database and by vendor."
        ),
        LegacyMetric("django_cache_get_total", _C, "Total get requests on cache"),
        LegacyMetric("django_cache_get_hits_total", _C, "Total hits on cache"),
        LegacyMetric("django_cache_get_misses_total", _C, "Total misses on cache"),
        LegacyMetric("django_cache_get_fail_total", _C, "Total get request failures by cache"),
        LegacyMetric("django_model_inserts_total", _C, "Number of insert operations by model."),
        LegacyMetric("django_model_updates_total", _C, "Number of update operations by model."),
        LegacyMetric("django_model_deletes_total", _C, "Number of delete operations by model."),
        LegacyMetric(
            "django_migrations_unapplied_total", _G, "Count of unapplied migrations by database connection"
        ),
        LegacyMetric("django_migrations_applied_total", _G, "Count of applied migrations by database connection"),
    )
}  # fmt: skip

#: Metrics of ours that say the same, and are left out when only the names of django-prometheus are asked for.
REPLACED = frozenset(
    {
        "http.server.request.duration", "http.server.request.body.size", "http.server.response.body.size",
        "django.request.exceptions", "db.client.operation.duration", "django.db.connections",
        "django.db.connection.errors", "django.cache.operations", "django.model.operations", "django.migrations",
    }
)  # fmt: skip

_CACHE_OUTCOMES = {
    "hit": "django_cache_get_hits_total", "miss": "django_cache_get_misses_total",
    "error": "django_cache_get_fail_total",
}  # fmt: skip
_MODEL_OPERATIONS = {
    "create": "django_model_inserts_total", "update": "django_model_updates_total",
    "delete": "django_model_deletes_total",
}  # fmt: skip
_MIGRATION_STATES = {
    "unapplied": "django_migrations_unapplied_total", "applied": "django_migrations_applied_total",
}  # fmt: skip

#: Gives (name of a metric, its labels) of a point of ours; it may be several, or none.
_Translate = Callable[["Names", Mapping[str, object]], Iterable[tuple[str, Mapping[str, str]]]]


@record
class Names:
    """Names of the project's parts: vendor by database alias, backend by cache alias, label by model."""

    vendors: Mapping[str, str]
    backends: Mapping[str, str]
    models: Mapping[str, str]


def present(families: Iterable[Family], names: Names, *, keeps_ours: bool) -> list[Family]:
    """Return the families as they are shown under the names of django-prometheus; with ours if `keeps_ours`.

    Errors: none; a point that cannot be translated is reported and left out.
    """
    families = list(families)
    shown = [
        family
        for family in families
        if keeps_ours or family.scope != OWN_SCOPE or family.name not in REPLACED
    ]  # fmt: skip
    return [*shown, *_derive(families, names)]


def without_legacy(families: Iterable[Family]) -> list[Family]:
    """Return the families without those that are measured under the names of django-prometheus."""
    return [family for family in families if family.scope != OWN_SCOPE or family.name not in MEASURED]


def _derive(families: Iterable[Family], names: Names) -> list[Family]:
    series: dict[str, dict[Attributes, float]] = {}
    starts: dict[str, int] = {}
    for label in names.models.values():
        # django-prometheus has the counters of a model at zero from the start.
        for name in _MODEL_OPERATIONS.values():
            series.setdefault(name, {})[("model", label),] = 0.0
    for family in families:
        translate = _TRANSLATIONS.get(family.name) if family.scope == OWN_SCOPE else None
        if translate is None:
            continue
        for point in family.points:
            with guard.contained(f"the django-prometheus name of {family.name}"):
                value = point.value
                if not isinstance(value, int | float):
                    continue
                for name, labels in translate(names, dict(point.attributes)):
                    key = tuple(sorted(labels.items()))
                    found = series.setdefault(name, {})
                    found[key] = found.get(key, 0.0) + value
                    starts[name] = min(point.start_time_unix_nano, starts.get(name, point.start_time_unix_nano))
    return [_build(DERIVED[name], points, starts.get(name, 0)) for name, points in series.items()]


def _build(metric: LegacyMetric, points: Mapping[Attributes, float], start_ns: int) -> Family:
    made = [Point(attributes, value, (), start_ns) for attributes, value in points.items()]
    return Family(metric.name, metric.metric_type, "", metric.description, OWN_SCOPE, made)


def _translate_connections(names: Names, attributes: Mapping[str, object]) -> Iterable[tuple[str, Mapping[str, str]]]:
    yield "django_db_new_connections_total", _name_database(names, attributes)


def _translate_connection_errors(
    names: Names, attributes: Mapping[str, object]
) -> Iterable[tuple[str, Mapping[str, str]]]:
    yield "django_db_new_connection_errors_total", _name_database(names, attributes)


def _name_database(names: Names, attributes: Mapping[str, object]) -> dict[str, str]:
    alias = str(attributes.get("django.db.alias", ""))
    return {"alias": alias, "vendor": names.vendors.get(alias, "unknown")}


def _translate_cache(names: Names, attributes: Mapping[str, object]) -> Iterable[tuple[str, Mapping[str, str]]]:
    if attributes.get("django.cache.operation") != "get":
        return
    alias = str(attributes.get("django.cache.alias", ""))
    labels = {"backend": names.backends.get(alias, alias)}
    yield "django_cache_get_total", labels
    outcome = _CACHE_OUTCOMES.get(str(attributes.get("django.cache.outcome")))
    if outcome is not None:
        yield outcome, labels


def _translate_models(names: Names, attributes: Mapping[str, object]) -> Iterable[tuple[str, Mapping[str, str]]]:
    label = str(attributes.get("django.model", ""))
    name = _MODEL_OPERATIONS.get(str(attributes.get("django.model.operation")))
    if name is not None:
        yield name, {"model": names.models.get(label, label.rpartition(".")[2].lower())}


def _translate_migrations(names: Names, attributes: Mapping[str, object]) -> Iterable[tuple[str, Mapping[str, str]]]:
    name = _MIGRATION_STATES.get(str(attributes.get("django.migration.state")))
    if name is not None:
        yield name, {"connection": str(attributes.get("django.db.alias", ""))}


_TRANSLATIONS: dict[str, _Translate] = {
    "django.db.connections": _translate_connections,
    "django.db.connection.errors": _translate_connection_errors,
    "django.cache.operations": _translate_cache,
    "django.model.operations": _translate_models,
    "django.migrations": _translate_migrations,
}
