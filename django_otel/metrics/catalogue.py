"""The catalogue: every metric this package emits, with unit, buckets, meaning, cardinality and source.

Documentation, dashboards and tests are checked against this module.
"""

from __future__ import annotations

from django_otel.base.frozen import record
from django_otel.metrics.model import OWN_SCOPE, Family, MetricType, Point

SECONDS_HTTP = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
SECONDS_DB = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
SECONDS_COMMAND = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1_800.0, 3_600.0, 21_600.0, 86_400.0)
SECONDS_TASK = (0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0)
SECONDS_LAYER = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SECONDS_WAIT = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SECONDS_PAUSE = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
SECONDS_CONNECTION = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1_800.0, 3_600.0, 14_400.0, 86_400.0)
BYTES = (0.0, 100.0, 1_000.0, 10_000.0, 100_000.0, 1_000_000.0, 10_000_000.0, 100_000_000.0)
QUERIES = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0)
#: Default bounds of a histogram made by a project (OpenTelemetry metrics SDK, explicit bucket aggregation).
DEFAULT_BOUNDS = (
    0.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 750.0, 1_000.0, 2_500.0, 5_000.0, 7_500.0, 10_000.0,
)  # fmt: skip


@record
class Metric:
    """One metric of the catalogue.

    `aggregation` is how values of several processes add up: "sum" (all that
    ever lived), "livesum" (living processes), "max", "min", "last" (of the
    living ones), "max_ever" (the largest of all that ever lived).
    """

    name: str
    metric_type: MetricType
    unit: str
    description: str
    attributes: tuple[str, ...]
    cardinality: str
    source: str
    bounds: tuple[float, ...] = ()
    aggregation: str = "sum"


HTTP_SEMCONV = "OpenTelemetry semantic conventions, HTTP metrics"
DB_SEMCONV = "OpenTelemetry semantic conventions, database client metrics"
PROCESS_SEMCONV = "OpenTelemetry semantic conventions, process metrics"
OWN = "django_otel"

_PER_ROUTE = "routes x methods x status codes"
_TASK = ("django.task.backend", "django.task.name", "django.task.queue")
_PER_TASK = "registered tasks x queues"

CATALOGUE: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "http.server.request.duration",
            MetricType.HISTOGRAM,
            "s",
            "Duration of HTTP server requests, to the last byte of the response.",
            (
                "http.request.method",
                "http.route",
                "http.response.status_code",
                "url.scheme",
                "error.type",
                "network.protocol.version",
            ),
            _PER_ROUTE,
            HTTP_SEMCONV,
            SECONDS_HTTP,
        ),
        Metric(
            "http.server.active_requests",
            MetricType.UP_DOWN_COUNTER,
            "{request}",
            "Number of HTTP server requests in flight.",
            ("http.request.method", "url.scheme"),
            "methods x schemes",
            HTTP_SEMCONV,
            aggregation="livesum",
        ),
        Metric(
            "http.server.request.body.size",
            MetricType.HISTOGRAM,
            "By",
            "Size of HTTP server request bodies, from Content-Length.",
            ("http.request.method", "http.route", "http.response.status_code"),
            _PER_ROUTE,
            HTTP_SEMCONV,
            BYTES,
        ),
        Metric(
            "http.server.response.body.size",
            MetricType.HISTOGRAM,
            "By",
            "Size of HTTP server response bodies as Django produced them.",
            ("http.request.method", "http.route", "http.response.status_code"),
            _PER_ROUTE,
            HTTP_SEMCONV,
            BYTES,
        ),
        Metric(
            "django.request.queries",
            MetricType.HISTOGRAM,
            "{query}",
            "Number of database queries per request.",
            ("http.route",),
            "routes",
            OWN,
            QUERIES,
        ),
        Metric(
            "django.request.n_plus_one",
            MetricType.COUNTER,
            "{detection}",
            "Statements that one line ran DATABASE.N_PLUS_ONE times or more in a request.",
            ("http.route",),
            "routes",
            OWN,
        ),
        Metric(
            "django.request.layer.duration",
            MetricType.HISTOGRAM,
            "s",
            "Time of a request in each layer: database, cache, template, http, middleware and the view's own code.",
            ("http.route", "django.layer"),
            "routes x 6",
            OWN,
            SECONDS_LAYER,
        ),
        Metric(
            "django.request.exceptions",
            MetricType.COUNTER,
            "{exception}",
            "Exceptions not handled by a view or middleware.",
            ("exception.type", "http.route"),
            "exception types x routes",
            OWN,
        ),
        Metric(
            "django.template.duration",
            MetricType.HISTOGRAM,
            "s",
            "Duration of template renders, with the templates that are included.",
            ("django.template.name",),
            "templates",
            OWN,
            SECONDS_LAYER,
        ),
        Metric(
            "db.client.operation.duration",
            MetricType.HISTOGRAM,
            "s",
            "Duration of database client operations.",
            ("db.system.name", "db.operation.name", "db.namespace", "django.db.alias", "error.type"),
            "databases x operations",
            DB_SEMCONV,
            SECONDS_DB,
        ),
        Metric(
            "django.db.connections",
            MetricType.COUNTER,
            "{connection}",
            "Database connections opened.",
            ("django.db.alias",),
            "databases",
            OWN,
        ),
        Metric(
            "django.db.connection.errors",
            MetricType.COUNTER,
            "{error}",
            "Database connections that could not be opened.",
            ("django.db.alias", "error.type"),
            "databases x error classes",
            OWN,
        ),
        Metric(
            "django.db.pool.connections",
            MetricType.GAUGE,
            "{connection}",
            "Connections of psycopg's pools, by state (idle, used).",
            ("django.db.alias", "state"),
            "pools x 2",
            OWN,
            aggregation="livesum",
        ),
        Metric(
            "django.db.pool.waiting",
            MetricType.GAUGE,
            "{request}",
            "Requests that wait for a connection of a pool.",
            ("django.db.alias",),
            "pools",
            OWN,
            aggregation="livesum",
        ),
        Metric(
            "django.db.transaction.duration",
            MetricType.HISTOGRAM,
            "s",
            "Duration of database transactions, by outcome (committed, rolled_back).",
            ("django.db.alias", "django.transaction.outcome"),
            "databases x 2",
            OWN,
            SECONDS_DB,
        ),
        Metric(
            "django.cache.operations",
            MetricType.COUNTER,
            "{operation}",
            "Cache operations. Multi-key operations count each key.",
            ("django.cache.alias", "django.cache.operation", "django.cache.outcome", "django.cache.key.group"),
            "caches x operations x 4 x groups",
            OWN,
        ),
        Metric(
            "django.cache.operation.duration",
            MetricType.HISTOGRAM,
            "s",
            "Duration of cache operations.",
            ("django.cache.alias", "django.cache.operation", "django.cache.key.group"),
            "caches x operations x groups",
            OWN,
            SECONDS_DB,
        ),
        Metric(
            "django.auth.events",
            MetricType.COUNTER,
            "{event}",
            "Sign-ins, sign-outs and failed sign-ins.",
            ("django.auth.event",),
            "3",
            OWN,
        ),
        Metric(
            "django.security.events",
            MetricType.COUNTER,
            "{event}",
            "Requests refused by the CSRF check, for their host, as suspicious, or for missing permission.",
            ("django.security.event",),
            "4",
            OWN,
        ),
        Metric(
            "django.email.sent",
            MetricType.COUNTER,
            "{message}",
            "Mail messages passed to the backend, by outcome.",
            ("django.email.outcome",),
            "2",
            OWN,
        ),
        Metric(
            "django.command.duration",
            MetricType.HISTOGRAM,
            "s",
            "Duration of management commands.",
            ("django.command.name", "django.command.outcome"),
            "commands x 2",
            OWN,
            SECONDS_COMMAND,
        ),
        Metric(
            "django.command.last_success",
            MetricType.GAUGE,
            "s",
            "When a management command last succeeded, in seconds since the Unix epoch.",
            ("django.command.name",),
            "commands",
            OWN,
            aggregation="max_ever",
        ),
        Metric(
            "django.migrations",
            MetricType.GAUGE,
            "{migration}",
            "Migrations of the project's apps, by whether they are applied.",
            ("django.db.alias", "django.migration.state"),
            "databases x 2",
            OWN,
            aggregation="last",
        ),
        Metric(
            "django.task.sent",
            MetricType.COUNTER,
            "{task}",
            "Tasks sent to a queue; each retry is sent again.",
            _TASK,
            _PER_TASK,
            OWN,
        ),
        Metric(
            "django.task.duration",
            MetricType.HISTOGRAM,
            "s",
            "Duration of task runs, by outcome (succeeded, failed, retried, rejected).",
            (*_TASK, "django.task.outcome"),
            f"{_PER_TASK} x 4",
            OWN,
            SECONDS_TASK,
        ),
        Metric(
            "django.task.wait",
            MetricType.HISTOGRAM,
            "s",
            "Time from when a task was sent, or was due, until it started.",
            _TASK,
            _PER_TASK,
            OWN,
            SECONDS_TASK,
        ),
        Metric(
            "django.task.queue.length",
            MetricType.GAUGE,
            "{task}",
            "Tasks waiting in a queue.",
            ("django.task.backend", "django.task.queue"),
            "queues",
            OWN,
            aggregation="last",
        ),
        Metric(
            "http.server.request.time_in_queue",
            MetricType.HISTOGRAM,
            "s",
            "Time from the proxy's header (REQUEST.QUEUE_HEADERS) to the middleware.",
            (),
            "1",
            OWN,
            SECONDS_WAIT,
        ),
        Metric(
            "django.websocket.connections",
            MetricType.UP_DOWN_COUNTER,
            "{connection}",
            "Open WebSocket connections.",
            ("http.route",),
            "routes",
            OWN,
            aggregation="livesum",
        ),
        Metric(
            "django.websocket.duration",
            MetricType.HISTOGRAM,
            "s",
            "Duration of WebSocket connections, from their acceptance to their end.",
            ("http.route", "django.websocket.closed_by"),
            "routes x 2",
            OWN,
            SECONDS_CONNECTION,
        ),
        Metric(
            "django.websocket.messages",
            MetricType.COUNTER,
            "{message}",
            "Messages of WebSocket connections.",
            ("http.route", "network.io.direction"),
            "routes x 2",
            OWN,
        ),
        Metric(
            "process.cpu.time",
            MetricType.COUNTER,
            "s",
            "CPU time of all worker processes, also of those that have ended.",
            ("cpu.mode",),
            "2",
            PROCESS_SEMCONV,
        ),
        Metric(
            "process.memory.usage",
            MetricType.UP_DOWN_COUNTER,
            "By",
            "Resident memory of the living worker processes; memory that they share counts for each.",
            (),
            "1",
            PROCESS_SEMCONV,
            aggregation="livesum",
        ),
        Metric(
            "process.open_file_descriptor.count",
            MetricType.UP_DOWN_COUNTER,
            "{file_descriptor}",
            "Open file descriptors of the living worker processes.",
            (),
            "1",
            PROCESS_SEMCONV,
            aggregation="livesum",
        ),
        Metric(
            "process.thread.count",
            MetricType.UP_DOWN_COUNTER,
            "{thread}",
            "Threads of the living worker processes.",
            (),
            "1",
            PROCESS_SEMCONV,
            aggregation="livesum",
        ),
        Metric(
            "process.uptime",
            MetricType.GAUGE,
            "s",
            "Age of each living worker process.",
            ("worker",),
            "workers",
            PROCESS_SEMCONV,
            aggregation="last",
        ),
        Metric(
            "cpython.gc.collections",
            MetricType.COUNTER,
            "{collection}",
            "Collections of Python's garbage collector, by generation.",
            ("cpython.gc.generation",),
            "3",
            "OpenTelemetry semantic conventions, CPython metrics",
        ),
        Metric(
            "cpython.gc.pause",
            MetricType.HISTOGRAM,
            "s",
            "Duration of collections, other than those of the youngest objects.",
            ("cpython.gc.generation",),
            "2",
            OWN,
            SECONDS_PAUSE,
        ),
        Metric(
            "django.event_loop.lag",
            MetricType.HISTOGRAM,
            "s",
            "How late the timers of an ASGI server's event loop are.",
            (),
            "1",
            OWN,
            SECONDS_PAUSE,
        ),
        Metric(
            "django_otel.workers",
            MetricType.GAUGE,
            "{process}",
            "Living worker processes that serve a request now, or none.",
            ("state",),
            "2",
            OWN,
            aggregation="last",
        ),
        Metric(
            "django_otel.workers.web",
            MetricType.UP_DOWN_COUNTER,
            "{process}",
            "Living worker processes that have served a request, by how many they take at once (one, several).",
            ("concurrency",),
            "2",
            OWN,
            aggregation="livesum",
        ),
        Metric(
            "django.model.operations",
            MetricType.COUNTER,
            "{operation}",
            "Saves and deletes of models registered for business events.",
            ("django.model", "django.model.operation"),
            "registered models x 3",
            OWN,
        ),
        Metric(
            "django.business.events",
            MetricType.COUNTER,
            "{event}",
            "Business events whose transaction was committed, or that had none.",
            ("business.event",),
            "registered events",
            OWN,
        ),
        Metric(
            "django_otel.sampling.ratio",
            MetricType.GAUGE,
            "1",
            "Sampling ratio applied by this process.",
            (),
            "1",
            OWN,
            aggregation="last",
        ),
        Metric(
            "django_otel.sampling.decisions",
            MetricType.COUNTER,
            "{trace}",
            "Traces started here, by sampling decision (recorded, dropped) and reason (ratio, rule, view, parent, "
            "forced, rate_limit); kept: dropped at first, exported at their end (error, slow).",
            ("sampling.rule", "sampling.decision", "sampling.reason"),
            "(rules + 5) x 2",
            OWN,
        ),
        Metric(
            "django_otel.spans.dropped",
            MetricType.COUNTER,
            "{span}",
            "Finished spans that were not exported, by reason.",
            ("django_otel.reason",),
            "reasons",
            OWN,
        ),
        Metric(
            "django_otel.logs.dropped",
            MetricType.COUNTER,
            "{record}",
            "Log records that were not exported, by reason.",
            ("django_otel.reason",),
            "reasons",
            OWN,
        ),
        Metric(
            "django_otel.metrics.dropped",
            MetricType.COUNTER,
            "{data_point}",
            "Data points rejected by an OTLP receiver, by reason.",
            ("django_otel.reason",),
            "reasons",
            OWN,
        ),
        Metric(
            "django_otel.export.failures",
            MetricType.COUNTER,
            "{export}",
            "Exports that failed after all retries, by signal.",
            ("django_otel.signal",),
            "3",
            OWN,
        ),
        Metric(
            "django_otel.shared.active",
            MetricType.GAUGE,
            "",
            "1 if the processes of this server share their metrics; 0 if the page shows only some of them.",
            (),
            "1",
            OWN,
            aggregation="min",
        ),
        Metric(
            "django_otel.shared.files.skipped",
            MetricType.COUNTER,
            "{file}",
            "Files in the shared folder that could not be read, by reason.",
            ("django_otel.reason",),
            "reasons",
            OWN,
        ),
        Metric(
            "django_otel.console.dropped",
            MetricType.COUNTER,
            "{item}",
            "Spans, log records and samples not stored by the console, by reason.",
            ("django_otel.reason",),
            "reasons",
            OWN,
        ),
        Metric(
            "django_otel.cardinality.overflow",
            MetricType.COUNTER,
            "{measurement}",
            "Measurements aggregated in an overflow series because their instrument reached its cardinality limit.",
            ("django_otel.reason", "django_otel.signal"),
            "1",
            OWN,
        ),
    )
}


def build_family(name: str, points: list[Point]) -> Family:
    """Return a family of the catalogue with these points. Errors: `KeyError` for another name."""
    metric = CATALOGUE[name]
    return Family(metric.name, metric.metric_type, metric.unit, metric.description, OWN_SCOPE, points)
