"""`settings.OTEL` and the `OTEL_*` environment variables, as frozen dataclasses.

An attribute is the lower-case key: `OTEL["TRACES"]["BATCH"]["DELAY_S"]` is
`config.traces.batch.delay_s`. Each field carries its rule and its meaning, so
that validation, `manage.py otel config` and the documentation read one table.

Precedence, highest first: environment variables of the OpenTelemetry
specification, `settings.OTEL`, the default. (The admin's sampling policy stands
above both; it is not configuration, see `sampling.sampler`.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

from django_otel.base.frozen import record
from django_otel.config.validators import (
    Rule,
    absolute_path,
    allow,
    boolean,
    boolean_or,
    buckets,
    business,
    callable_or_path,
    editor_url,
    endpoint,
    exporters,
    headers,
    health_check,
    instrument,
    list_of,
    log_level,
    metric_attributes,
    notify_target,
    number,
    off_or_list_of,
    one_of,
    optional,
    path_on_disk,
    render_spans,
    resource,
    sampling_rules,
    text,
    trace_url,
    trust_inbound,
    whole,
)
from django_otel.sampling.policy import METHODS
from django_otel.sampling.policy import Rule as SamplingRule

DEFAULT_SKIP_COMMANDS = ("makemigrations", "migrate", "collectstatic", "check", "test", "shell")
DEFAULT_INSTRUMENT = ("psycopg2", "redis", "requests")
SPAN_EXPORTERS = ("otlp", "otlp-json", "otlp-grpc", "console", "memory", "none")
METRIC_EXPORTERS = ("prometheus", "prometheus-registry", "otlp", "otlp-json", "otlp-grpc", "console", "none")
LOG_EXPORTERS = ("otlp", "otlp-json", "otlp-grpc", "console", "memory", "none")
#: Methods that metrics and spans name; every other method is `_OTHER`.
KNOWN_METHODS = METHODS[:-1]
PROPAGATORS = ("tracecontext", "baggage", "b3", "b3multi", "jaeger", "none")
#: Variables that are kept beside the settings, in `Config.surroundings`.
SURROUNDINGS = ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "RUN_MAIN", "CACHE_DIRECTORY", "TMPDIR")
#: Dotted keys whose value is never shown.
SECRET_KEYS = frozenset(
    {"TRACES.HEADERS", "METRICS.HEADERS", "LOGS.HEADERS", "METRICS_VIEW.TOKEN"},
)


@record
class Problem:
    """One fault of the configuration: `id` is the system check's, `message` never holds a secret."""

    id: str
    message: str
    hint: str = ""


class ConfigError(ValueError):
    """The configuration is unusable; `problems` lists everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(f"{problem.message} ({problem.id})" for problem in problems))


# --- The table. ---


def key(default: object, rule: Rule, doc: str) -> Any:
    """A setting: its default, its rule, and its meaning for the documentation."""
    metadata = {"rule": rule, "doc": doc}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type, doc: str = "") -> Any:
    """A nested dict of settings."""
    return field(default_factory=kind, metadata={"section": kind, "doc": doc})


@record
class Batch:
    queue_size: int = key(8192, whole(1), "Finished spans held for export; spans beyond it are dropped and counted.")
    batch_size: int = key(512, whole(1), "Maximum number of spans in one export.")
    delay_s: float = key(5.0, number(0, exclusive=True), "Maximum wait before an export, in seconds.")


@record
class Limits:
    attributes: int = key(128, whole(1), "Maximum number of attributes of a span.")
    attribute_length: int = key(4096, whole(1), "Maximum length of an attribute, in characters.")
    events: int = key(128, whole(0), "Maximum number of events of a span.")
    links: int = key(128, whole(0), "Maximum number of links of a span.")
    event_attributes: int | None = key(
        None, optional(whole(0)), "Maximum number of attributes of an event; None uses ATTRIBUTES."
    )
    link_attributes: int | None = key(
        None, optional(whole(0)), "Maximum number of attributes of a link; None uses ATTRIBUTES."
    )
    spans_per_trace: int = key(
        1000,
        whole(1),
        "Maximum number of spans one process records in one trace; further spans are dropped and counted.",
    )


@record
class LogLimits:
    attributes: int = key(128, whole(0), "Maximum number of attributes of a log record.")
    attribute_length: int | None = key(None, optional(whole(0)), "Maximum length of an attribute; None means no limit.")


_INSECURE = (
    "gRPC without TLS to an endpoint without a scheme (`host:4317`); with http:// or https:// the scheme decides."
)


@record
class Traces:
    exporters: tuple[str, ...] | str = key(
        "auto",
        exporters(*SPAN_EXPORTERS, auto=True, paths=True),
        '"auto" (OTLP when an endpoint is set, else none) or a list of "otlp", "otlp-json", "otlp-grpc", "console",'
        ' "memory",'
        ' "none", or a dotted path to a class or factory that gives a SpanExporter or a SpanProcessor.',
    )
    endpoint: str | None = key(
        None, optional(endpoint), "OTLP endpoint: a base URL (`/v1/traces` is added) or a URL that ends in `/traces`."
    )
    headers: Mapping[str, str] = key({}, headers, "Headers of OTLP requests, for example an API key.")
    timeout_s: float = key(
        10.0, number(0, exclusive=True), "Maximum time for one export, retries included, in seconds."
    )
    compression: str = key("gzip", one_of("gzip", "deflate", "none"), "Compression of OTLP requests.")
    insecure: bool = key(False, boolean, _INSECURE)
    batch: Batch = section(Batch)
    limits: Limits = section(Limits)
    exception_signal: str = key(
        "events",
        one_of("events", "logs", "logs/dup"),
        'How an exception is recorded: "events" of its span, "logs" (a log record, LOGS.EXPORTERS send it), or'
        ' "logs/dup", both.',
    )


@record
class Metrics:
    exporters: tuple[str, ...] = key(
        ("prometheus",),
        exporters(*METRIC_EXPORTERS),
        'A list of "prometheus" (`/metrics`), "prometheus-registry" (our families as a collector in'
        ' prometheus_client\'s registry), "otlp", "otlp-grpc", "console".',
    )
    include_registry: bool = key(
        False,
        boolean,
        "Show the collectors of prometheus_client's registry on `/metrics` too. With several worker processes"
        " set `PROMETHEUS_MULTIPROC_DIR`; otherwise they are the values of the answering process.",
    )
    endpoint: str | None = key(None, optional(endpoint), "OTLP endpoint; None uses that of TRACES.")
    headers: Mapping[str, str] = key({}, headers, "Headers of OTLP requests; with the endpoint of TRACES, its headers.")
    timeout_s: float = key(10.0, number(0, exclusive=True), "Maximum time for one export, in seconds.")
    compression: str = key("gzip", one_of("gzip", "deflate", "none"), "Compression of OTLP requests.")
    insecure: bool = key(False, boolean, _INSECURE)
    interval_s: float = key(60.0, number(0, exclusive=True), "Time between OTLP or console exports, in seconds.")
    temporality: str = key("cumulative", one_of("cumulative", "delta"), "Temporality of exported sums and histograms.")
    buckets: Mapping[str, tuple[float, ...]] = key({}, buckets, "Bucket bounds by metric name, ascending.")
    histograms: str = key(
        "explicit",
        one_of("explicit", "exponential"),
        'Buckets of histograms over OTLP: "explicit" or "exponential" (base 2, scale 2); `/metrics` has explicit ones.',
    )
    cardinality_limit: int = key(
        2000,
        whole(1),
        "Maximum number of series of an instrument; further measurements are aggregated in one overflow series.",
    )
    attribute_length: int = key(
        256, whole(1), "Maximum length of a label, name or value, in characters; longer ones are cut and counted."
    )
    shared_dir: str | None = key(
        None,
        optional(absolute_path),
        "Folder in which worker processes share their metrics; None finds or creates one.",
    )
    group: str | None = key(
        None,
        optional(text),
        "Name of the group of processes that share their metrics; None is one group per server instance.",
    )
    names: str = key(
        "otel",
        one_of("otel", "django_prometheus", "both"),
        'Names of the metrics: "otel", those of "django_prometheus" 2.5 in place of ours that say the same, or "both".',
    )
    negotiate_names: bool = key(
        False,
        boolean,
        "Show OpenTelemetry's names (`http.server.request.duration_seconds`) to a scraper whose Accept header has"
        " `escaping=`; generated dashboards and rules use the names with underscores.",
    )
    exemplars: bool = key(True, boolean, "Trace ids beside histogram buckets (OpenMetrics), for sampled requests.")


@record
class Logs:
    exporters: tuple[str, ...] = key(
        (), exporters(*LOG_EXPORTERS), 'A list of "otlp", "otlp-grpc", "console", "memory".'
    )
    endpoint: str | None = key(None, optional(endpoint), "OTLP endpoint; None uses that of TRACES.")
    headers: Mapping[str, str] = key({}, headers, "Headers of OTLP requests; with the endpoint of TRACES, its headers.")
    timeout_s: float = key(10.0, number(0, exclusive=True), "Maximum time for one export, in seconds.")
    compression: str = key("gzip", one_of("gzip", "deflate", "none"), "Compression of OTLP requests.")
    insecure: bool = key(False, boolean, _INSECURE)
    level: str = key("INFO", log_level, "Lowest level that is exported.")
    correlation: bool = key(
        True, boolean, "otelTraceID, otelSpanID, otelTraceSampled, otelServiceName on every record."
    )
    limits: LogLimits = section(LogLimits)


@record
class Propagation:
    formats: tuple[str, ...] = key(
        ("tracecontext", "baggage"),
        list_of(one_of(*PROPAGATORS), "formats"),
        "Formats read from and written to requests.",
    )
    trust_inbound: Any = key(
        True,
        trust_inbound,
        "Whether a caller's trace context is continued: True, False (a new trace with a link), or a list of networks "
        "whose direct clients (REMOTE_ADDR) are trusted.",
    )
    outbound_hosts: tuple[str, ...] | None = key(
        None, optional(list_of(text, "host patterns")), "Hosts that may receive trace headers; None is every host."
    )
    baggage_keys: tuple[str, ...] = key(
        (), list_of(text, "baggage keys"), "Inbound baggage keys that are propagated to other services."
    )


@record
class Sampling:
    ratio: float = key(1.0, number(0.0, 1.0, hint="For {value} % write {fraction}."), "Share of new traces to record.")
    rules: tuple[SamplingRule, ...] = key(
        (),
        sampling_rules,
        'A list of {"path": glob or "route": URL pattern, "method": optional, "ratio": share}; the first rule'
        " that matches a request replaces RATIO.",
    )
    max_per_second: float | None = key(
        None,
        optional(number(0, exclusive=True)),
        "Maximum number of traces recorded per second, over all processes of the server; None means no limit.",
    )
    keep_errors: bool = key(
        False,
        boolean,
        "Always export traces that end in an error (tail sampling; spans are buffered until the request finishes).",
    )
    keep_slow_s: float | None = key(
        None, optional(number(0, exclusive=True)), "Always export traces that take at least this many seconds."
    )
    tail_buffer_spans: int = key(
        10_000,
        whole(1),
        "Maximum number of spans one process buffers for KEEP_ERRORS and KEEP_SLOW_S; beyond it the oldest trace is"
        " dropped.",
    )
    force: bool = key(False, boolean, "Whether a token of `force_trace_token()` records its visit at any ratio.")
    parent: bool = key(
        True, boolean, "Whether a trusted caller's decision is followed; False decides every request here."
    )
    live: bool = key(True, boolean, "Whether the admin's sampling policy is followed.")
    refresh_s: float = key(5.0, number(0.1), "Maximum time until a policy reaches every process, in seconds.")


@record
class Request:
    spans: str = key("native", one_of("native", "instrumentor"), "Which code creates the request span.")
    exclude: tuple[str, ...] = key(
        (), list_of(text, "path patterns"), "Paths (globs) excluded from both spans and metrics."
    )
    request_headers: tuple[str, ...] = key((), list_of(text, "header names"), "Request headers recorded on spans.")
    response_headers: tuple[str, ...] = key((), list_of(text, "header names"), "Response headers recorded on spans.")
    known_methods: tuple[str, ...] = key(
        KNOWN_METHODS,
        list_of(text, "methods"),
        "Methods that metrics and spans show; any other method is `_OTHER`.",
    )
    static: bool = key(
        False,
        boolean,
        "Whether requests below STATIC_URL and MEDIA_URL (such as WhiteNoise's) are traced; they are always counted.",
    )
    query: bool = key(False, boolean, "Record the query string (scrubbed).")
    user: str = key("none", one_of("none", "id", "hash"), "Record the signed-in user, if it is already loaded.")
    client_address: bool = key(False, boolean, "Record REMOTE_ADDR.")
    server_timing: bool = key(
        False,
        boolean,
        "A `Server-Timing` header: total, db, cache, template, http, middleware and view time. It is visible to every"
        " client.",
    )
    time_budget: bool = key(
        True,
        boolean,
        "`django.request.layer.duration`: how the time of requests is divided over database, cache, template, outbound"
        " HTTP, middleware and view.",
    )
    traceresponse: bool = key(False, boolean, "A `traceresponse` header with the trace id (W3C draft).")
    queue_headers: tuple[str, ...] = key(
        ("X-Request-Start", "X-Queue-Start"),
        list_of(text, "header names"),
        "Headers in which a proxy says when it received the request: http.server.request.time_in_queue.",
    )
    enrich: Any = key(None, optional(callable_or_path), "Dotted path to f(span, request, response).")
    metric_attributes: Mapping[str, int] = key(
        {},
        metric_attributes,
        "Attributes that `set_metric_attributes()` may add to the request metrics: {name: number of distinct values};"
        " further values become `_other` and are counted.",
    )
    route: Any = key(
        None,
        optional(callable_or_path),
        "Dotted path to f(request, response) -> str or None, which names the route of metrics and span where one URL"
        " pattern serves many kinds of pages; None keeps Django's.",
    )


@record
class Database:
    spans: bool = key(True, boolean, "A span per query of a recorded request.")
    metrics: bool = key(True, boolean, "db.client.operation.duration for every Django connection.")
    statement: str = key("parameterised", one_of("parameterised", "off"), "The statement on spans, without literals.")
    source_over_s: float | None = key(
        0.1,
        optional(number(0)),
        "Duration from which a query's span names the project's line that made it, in seconds; None never does.",
    )
    transactions: bool = key(
        False, boolean, "A span per transaction of a recorded request; its duration is always measured with METRICS."
    )
    comments: tuple[str, ...] | bool = key(
        False,
        off_or_list_of("route", "view", "traceparent"),
        'Comments in SQL: False, or a list out of "route", "view", "traceparent" (in sampled traces), in the format of'
        " sqlcommenter.",
    )
    root_spans: bool = key(
        False,
        boolean,
        "Whether queries and Redis commands outside any recorded span get a span, each in its own trace.",
    )
    n_plus_one: int | None = key(
        10,
        optional(whole(2)),
        "Equal statements from one line in one request that count as N+1: an event on the request's span and"
        " django.request.n_plus_one; None is off.",
    )


@record
class Cache:
    metrics: bool = key(True, boolean, "django.cache.operations and their duration, for every cache; never a key.")
    spans: bool = key(False, boolean, "A span per cache operation of a recorded request; never a key.")
    key_group: Any = key(
        None,
        optional(callable_or_path),
        "Dotted path to f(key) -> str or None: the group of a key, on metrics and spans; at most 100 different ones.",
    )


@record
class Scrub:
    extra: tuple[str, ...] = key((), list_of(text, "key patterns"), "Further key patterns whose values are redacted.")
    callback: Any = key(None, optional(callable_or_path), "Dotted path to f(key, value) -> value.")
    personal: bool = key(
        False,
        boolean,
        "Whether e-mail addresses, telephone numbers, IBANs and IP addresses are redacted too, `client.address` among"
        " them. The server's own addresses stay.",
    )


@record
class MetricsView:
    token: str | None = key(None, optional(text), "Bearer token for `/metrics`.")
    allow: object = key(
        "auto", allow, 'Who may read `/metrics`: "auto", "private", "token", "staff", "all", or a dotted path.'
    )


@record
class Health:
    ready: tuple[str, ...] = key(
        ("config",),
        list_of(health_check, "checks"),
        'Checks that `/readyz` requires: "config", "databases", "database:<alias>", "caches", "cache:<alias>",'
        ' "migrations", or the dotted path of a callable that raises.',
    )
    timeout_s: float = key(1.0, number(0, exclusive=True), "Time limit of each check, in seconds; all run in parallel.")
    startup: tuple[str, ...] = key(
        ("config", "migrations"), list_of(health_check, "checks"), "Checks that `/startupz` requires."
    )


@record
class Console:
    enabled: bool | None = key(
        None, optional(boolean), "Traces and dashboard in the admin, and their store; None is on with DEBUG."
    )
    max_traces: int = key(
        500, whole(1), "Maximum number of traces in the store; errors and slow traces are kept longest."
    )
    max_mb: int = key(64, whole(1), "Maximum size of the store on disk, in MiB.")
    path: str | None = key(
        None,
        optional(path_on_disk),
        "Folder of the store, or a file ending in .sqlite3, .sqlite or .db; None creates a private folder per"
        " deployment. Services with the same path share one store.",
    )


@record
class Errors:
    notify: tuple[str, ...] = key(
        (),
        list_of(notify_target, '"mail", https URLs or dotted paths'),
        'Where new errors, and those that come back, are reported: "mail" (to ADMINS), an https URL (webhook), a dotted'
        " path to a function that is called with a dict. Needs the console's store.",
    )
    quiet_s: float = key(3600.0, number(0), "Minimum time between two notifications of one error, in seconds.")


@record
class Config:
    """The whole configuration. `sources` and `warnings` say where it came from and what was ignored."""

    enabled: bool = key(True, boolean, "Whether telemetry is enabled.")
    service_name: str | None = key(None, optional(text), "service.name; default: the settings module's top package.")
    service_version: str | None = key(None, optional(text), "service.version.")
    environment: str | None = key(None, optional(text), "deployment.environment.name, for example 'production'.")
    resource: Mapping[str, object] = key({}, resource, "Further resource attributes.")
    providers: str = key(
        "auto",
        one_of("auto", "own", "none"),
        '"auto": use providers that another tool has installed, otherwise our own; "own"; "none": only metrics.',
    )
    skip_commands: tuple[str, ...] = key(
        DEFAULT_SKIP_COMMANDS, list_of(text, "command names"), "Management commands in which nothing is exported."
    )
    traces: Traces = section(Traces)
    metrics: Metrics = section(Metrics)
    logs: Logs = section(Logs)
    propagation: Propagation = section(Propagation)
    sampling: Sampling = section(Sampling)
    instrument: Mapping[str, Mapping[str, object]] = key(
        {name: {} for name in DEFAULT_INSTRUMENT},
        instrument,
        "OpenTelemetry instrumentors by entry-point name, or a dict {name: {keyword: value}}.",
    )
    request: Request = section(Request)
    database: Database = section(Database)
    cache: Cache = section(Cache)
    auth: bool = key(True, boolean, "django.auth.events and django.security.events: sign-ins, and refused requests.")
    templates: bool | Mapping[str, float] = key(
        False,
        boolean_or(render_spans),
        "django.template.duration, and render spans of templates that take at least MIN_S seconds;"
        ' True is {"MIN_S": 0.001}.',
    )
    middleware_spans: bool = key(False, boolean, "A span per middleware of a recorded request.")
    email: bool = key(False, boolean, "django.email.sent, and a span per call of the mail backend; never an address.")
    commands: bool | tuple[str, ...] = key(
        False,
        boolean_or(list_of(text, "command names")),
        "Spans and metrics of management commands: True, or a list of their names. Never of SKIP_COMMANDS, or of"
        " commands that run until they are stopped.",
    )
    feature_flags: bool = key(
        False, boolean, "Evaluations of django-waffle and OpenFeature as events of the current span."
    )
    tasks: bool = key(True, boolean, "Spans and django.task metrics of tasks (Celery, django.tasks, Dramatiq).")
    runtime: bool = key(
        True, boolean, "Metrics of the processes, of Python's garbage collector and of the event loop; busy workers."
    )
    business: Mapping[str, Mapping[str, object]] = key({}, business, "Business events by model label.")
    scrub: Scrub = section(Scrub)
    metrics_view: MetricsView = section(MetricsView)
    health: Health = section(Health)
    console: Console = section(Console)
    errors: Errors = section(Errors)
    editor_url: str | None = key(
        None,
        optional(editor_url),
        "Address that opens a file in your editor, with {file} and {line}; links of stack frames while DEBUG is on.",
    )
    trace_url: str | None = key(None, optional(trace_url), "Where a trace can be looked at, with {trace_id}.")

    sources: Mapping[str, str] = field(default_factory=dict, metadata={"internal": True})
    #: Environment variables that were ignored, and why (the specification wants a warning, not an error).
    warnings: tuple[str, ...] = field(default=(), metadata={"internal": True})
    #: Variables of the system that are not settings: where run-time folders are, whether the reloader runs.
    surroundings: Mapping[str, str] = field(default_factory=dict, metadata={"internal": True})

    def flat(self) -> dict[str, object]:
        """Every value by its dotted key, in the order of the table."""
        return {dotted: _get(self, dotted) for dotted, _ in walk(Config)}


def walk(kind: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[object]]]:
    """Every setting of the table with its dotted key."""
    for entry in dataclasses.fields(kind):
        if "internal" in entry.metadata:
            continue
        dotted = prefix + entry.name.upper()
        nested = entry.metadata.get("section")
        if nested is None:
            yield dotted, entry
        else:
            yield from walk(nested, dotted + ".")


def _get(config: Config, dotted: str) -> object:
    value: object = config
    for part in dotted.split("."):
        value = getattr(value, part.lower())
    return value
