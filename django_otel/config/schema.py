"""`settings.OTEL` and the `OTEL_*` environment variables, as frozen dataclasses.

An attribute is the lower-case key: `OTEL["TRACES"]["BATCH"]["DELAY_S"]` is
`config.traces.batch.delay_s`. Each field carries its rule and its meaning, so
that validation, `manage.py otel config` and the documentation read one table.

Precedence, highest first: environment variables of the OpenTelemetry
specification, `settings.OTEL`, the default. (The admin's sampling policy stands
above both; it is no configuration, see `sampling.sampler`.)
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from django_otel.base.frozen import record
from django_otel.sampling.policy import MAX_RULES
from django_otel.sampling.policy import Rule as SamplingRule

Rule = Callable[[object], object]

DEFAULT_SKIP_COMMANDS = ("makemigrations", "migrate", "collectstatic", "check", "test", "shell")
DEFAULT_INSTRUMENT = ("psycopg2", "redis", "requests")
SPAN_EXPORTERS = ("otlp", "otlp-grpc", "console", "memory", "none")
METRIC_EXPORTERS = ("prometheus", "prometheus-registry", "otlp", "otlp-grpc", "console", "none")
LOG_EXPORTERS = ("otlp", "otlp-grpc", "console", "memory", "none")
PROPAGATORS = ("tracecontext", "baggage", "b3", "b3multi", "jaeger", "none")
ALLOW = ("auto", "private", "token", "staff", "all")
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


class Misfit(Exception):  # noqa: N818 (a value that does not fit is no fault of the program)
    """A value does not fit its rule. `expected` completes the sentence "expected ..."."""

    def __init__(self, expected: str, hint: str = "", problem_id: str = "django_otel.E002") -> None:
        self.expected = expected
        self.hint = hint
        self.problem_id = problem_id
        super().__init__(expected)


# --- Rules: each takes a value and returns it in its final form, or raises Misfit. ---


def boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise Misfit("True or False")
    return value


def text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Misfit("a text that is not empty")
    return value


def number(low: float, high: float = math.inf, *, hint: str = "", exclusive: bool = False) -> Rule:
    if high == math.inf:
        expected = f"a number {'above' if exclusive else 'of at least'} {low}"
    else:
        expected = f"a number from {low} to {high}"

    def rule(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Misfit(expected)
        if not low <= value <= high or not math.isfinite(value) or (exclusive and value == low):
            fix = hint.format(fraction=f"{value / 100:g}", value=f"{value:g}") if hint and 1 < value <= 100 else ""
            raise Misfit(expected, fix)
        return float(value)

    return rule


def whole(low: int) -> Rule:
    def rule(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise Misfit(f"a whole number of at least {low}")
        return value

    return rule


def one_of(*choices: str) -> Rule:
    def rule(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise Misfit("one of " + ", ".join(repr(choice) for choice in choices), _nearest(value, choices))
        return value

    return rule


def optional(rule: Rule) -> Rule:
    def check(value: object) -> object:
        if value is None:
            return None
        try:
            return rule(value)
        except Misfit as misfit:
            raise Misfit(f"None or {misfit.expected}", misfit.hint, misfit.problem_id) from None

    return check


def list_of(rule: Rule, what: str) -> Rule:
    def check(value: object) -> tuple[object, ...]:
        if isinstance(value, str) or not isinstance(value, list | tuple | set | frozenset):
            hint = "Write a list, even for one entry." if isinstance(value, str) else ""
            raise Misfit(f"a list of {what}", hint)
        try:
            return tuple(rule(item) for item in value)
        except Misfit as misfit:
            raise Misfit(f"a list of {what}, each {misfit.expected}", misfit.hint, misfit.problem_id) from None

    return check


def dotted_path(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", value):
        raise Misfit("a dotted import path such as 'shop.telemetry.enrich'", problem_id="django_otel.E003")
    return value


def callable_or_path(value: object) -> object:
    return value if callable(value) else dotted_path(value)


def headers(value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise Misfit("a dict that maps header names to texts")
    for name, content in value.items():
        if not isinstance(name, str):
            raise Misfit("a dict that maps header names to texts", f"One of its keys is a {type(name).__name__}.")
        if not isinstance(content, str):
            raise Misfit(
                "a dict that maps header names to texts", f'The value of "{name}" is a {type(content).__name__}.'
            )
    return dict(value)


def resource(value: object) -> Mapping[str, object]:
    expected = "a dict that maps attribute names to texts, numbers, booleans or lists of one of these"
    if not isinstance(value, Mapping):
        raise Misfit(expected)
    for name, content in value.items():
        items = content if isinstance(content, list | tuple) else [content]
        if (
            not isinstance(name, str)
            or not name
            or not all(isinstance(item, str | bool | int | float) for item in items)
        ):
            raise Misfit(expected, f"Look at {name!r}.")
    return dict(value)


def endpoint(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise Misfit("a URL such as 'http://localhost:4318'")
    if re.fullmatch(r"[\w.-]+:\d+", value):
        # gRPC's own way to write a target; HTTP needs a scheme, see _check_endpoints.
        return value
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Misfit("a URL such as 'http://localhost:4318'", "It begins with http:// or https:// and names a host.")
    try:
        parts.port  # noqa: B018 (reading it validates it)
    except ValueError:
        raise Misfit("a URL such as 'http://localhost:4318'", "Its port is not a number from 0 to 65535.") from None
    return value


def exporters(*known: str, auto: bool = False, paths: bool = False) -> Rule:
    expected = "a list of " + ", ".join(repr(name) for name in known)
    expected += " or dotted import paths" if paths else ""
    expected = f"'auto' or {expected}" if auto else expected

    def rule(value: object) -> object:
        if auto and value == "auto":
            return "auto"
        if isinstance(value, str) or not isinstance(value, list | tuple):
            hint = f"Write [{value!r}]." if isinstance(value, str) and value in known else ""
            raise Misfit(expected, hint)
        for item in value:
            if item in known:
                continue
            if paths and isinstance(item, str) and "." in item:
                dotted_path(item)
                continue
            raise Misfit(expected, _nearest(item, known) or f"{item!r} is not one of them.")
        return tuple(item for item in dict.fromkeys(value) if item != "none")

    return rule


def buckets(value: object) -> Mapping[str, tuple[float, ...]]:
    expected = "a dict that maps metric names to ascending lists of numbers"
    if not isinstance(value, Mapping):
        raise Misfit(expected)
    parsed: dict[str, tuple[float, ...]] = {}
    for name, bounds in value.items():
        numbers = isinstance(bounds, list | tuple) and all(
            isinstance(bound, int | float) and not isinstance(bound, bool) and math.isfinite(bound) for bound in bounds
        )
        if not isinstance(name, str) or not numbers or not bounds or list(bounds) != sorted(set(bounds)):
            raise Misfit(expected, f"Look at {name!r}: each list ascends, without repetition and without infinity.")
        parsed[name] = tuple(float(bound) for bound in bounds)
    return parsed


def absolute_path(value: object) -> str:
    if not isinstance(value, str | os.PathLike) or not Path(value).is_absolute():
        raise Misfit("an absolute path")
    return str(Path(value))


def path_on_disk(value: object) -> str:
    try:
        path = absolute_path(value)
    except Misfit:
        raise Misfit("an absolute path on a disk") from None
    if Path(path).is_relative_to("/dev/shm"):  # noqa: S108 (refused)
        raise Misfit("an absolute path on a disk", "A folder in /dev/shm is memory, and small in a container.")
    return path


def trust_inbound(value: object) -> object:
    expected = "True, False or a list of networks such as '10.0.0.0/8'"
    if isinstance(value, bool):
        return value
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise Misfit(expected)
    networks = []
    for item in value:
        try:
            networks.append(ipaddress.ip_network(item, strict=False))
        except ValueError:
            raise Misfit(expected, f"{item!r} is not a network.") from None
    return tuple(networks)


def sampling_rules(value: object) -> tuple[SamplingRule, ...]:
    expected = "a list of dicts with path or route, method (optional) and ratio"
    if not isinstance(value, list | tuple):
        raise Misfit(
            expected, "Write a list, even for one rule." if isinstance(value, Mapping) else "", "django_otel.E005"
        )
    if len(value) > MAX_RULES:
        raise Misfit(expected, f"There are {len(value)}; {MAX_RULES} is the most.", "django_otel.E005")
    rules = []
    for place, item in enumerate(value):
        try:
            rules.append(SamplingRule.from_settings(item))
        except ValueError as error:
            raise Misfit(expected, f"Look at rule {place + 1}: {error}", "django_otel.E005") from None
    return tuple(rules)


def instrument(value: object) -> Mapping[str, Mapping[str, object]]:
    expected = "a list of instrumentor names, or a dict that maps names to dicts of keyword arguments"
    if isinstance(value, Mapping):
        for name, arguments in value.items():
            if not isinstance(name, str) or not isinstance(arguments, Mapping):
                raise Misfit(expected, f"Look at {name!r}.")
            if not all(isinstance(key, str) for key in arguments):
                raise Misfit(expected, f"The keyword arguments of {name!r} must be named by texts.")
        names: Mapping[str, Mapping[str, object]] = {name: dict(arguments) for name, arguments in value.items()}
    elif isinstance(value, list | tuple) and all(isinstance(name, str) and name for name in value):
        names = {name: {} for name in value}
    else:
        raise Misfit(expected)
    if "django" in names:
        raise Misfit(expected, "Django itself is measured by OTelMiddleware; for the official instrumentor's span set "
                     'OTEL["REQUEST"]["SPANS"] = "instrumentor" instead of naming "django" here.')  # fmt: skip
    return names


HEALTH_CHECKS = ("config", "databases", "caches", "migrations")


def health_check(value: object) -> str:
    """One entry of `HEALTH["READY"]` or `HEALTH["STARTUP"]`."""
    expected = (
        ", ".join(repr(name) for name in HEALTH_CHECKS)
        + ", 'database:<alias>', 'cache:<alias>' or the dotted path of a callable that raises"
    )
    if not isinstance(value, str):
        raise Misfit(expected)
    kind, separator, alias = value.partition(":")
    if value in HEALTH_CHECKS or (separator and alias.strip() and kind in ("database", "cache")):
        return value
    if "." in value and not separator:
        return dotted_path(value)
    raise Misfit(expected, _nearest(value, HEALTH_CHECKS))


_MODEL_KEYS = ("created", "updated", "deleted", "transitions", "attributes", "metric")


def business(value: object) -> Mapping[str, Mapping[str, object]]:
    expected = 'a dict that maps "app.Model" to a dict with ' + ", ".join(_MODEL_KEYS)
    if not isinstance(value, Mapping):
        raise Misfit(expected)
    for label, events in value.items():
        if not isinstance(label, str) or label.count(".") != 1:
            raise Misfit(expected, f'{label!r} is not a model label such as "shop.Order".')
        if not isinstance(events, Mapping):
            raise Misfit(expected, f"The value of {label!r} is a {type(events).__name__}.")
        for key, content in events.items():
            if key not in _MODEL_KEYS:
                near = _nearest(key, _MODEL_KEYS)
                raise Misfit(expected, f"{label!r} has no key {key!r}. {near}".strip(), "django_otel.E001")
            if not _fits_model_key(key, content):
                raise Misfit(expected, f"Look at {label!r}: {key!r}.")
    return {label: dict(events) for label, events in value.items()}


def _fits_model_key(key: str, content: object) -> bool:
    if key == "metric":
        return isinstance(content, bool)
    if key == "attributes":
        return isinstance(content, list | tuple) and all(isinstance(name, str) for name in content)
    if key == "transitions":
        return isinstance(content, Mapping) and all(
            isinstance(name, str)
            and isinstance(events, Mapping)
            and all(isinstance(event, str) and event for event in events.values())
            for name, events in content.items()
        )
    return content is None or (isinstance(content, str) and bool(content))


def allow(value: object) -> object:
    if isinstance(value, str) and value in ALLOW:
        return value
    if isinstance(value, str) and "." not in value:
        choices = ", ".join(repr(choice) for choice in ALLOW)
        raise Misfit(f"one of {choices} or a dotted import path", _nearest(value, ALLOW))
    return callable_or_path(value)


def trace_url(value: object) -> str:
    if not isinstance(value, str) or "{trace_id}" not in value:
        raise Misfit("a URL with {trace_id} in it", "For Jaeger: 'http://localhost:16686/trace/{trace_id}'.")
    if urlsplit(value).scheme not in ("http", "https", ""):
        raise Misfit("a URL with {trace_id} in it", "It begins with http:// or https:// or a slash.")
    return value


def log_level(value: object) -> str:
    levels = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    if not isinstance(value, str) or value.upper() not in levels:
        raise Misfit("one of " + ", ".join(repr(level) for level in levels))
    return value.upper()


def _nearest(value: object, choices: tuple[str, ...]) -> str:
    if isinstance(value, str):
        near = difflib.get_close_matches(value.lower(), choices, n=1, cutoff=0.6)
        if near:
            return f"Did you mean {near[0]!r}?"
    return ""


# --- The table. ---


def key(default: Any, rule: Rule, doc: str) -> Any:
    """A setting: its default, its rule and, for the documentation, what it means."""
    metadata = {"rule": rule, "doc": doc}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type, doc: str = "") -> Any:
    """A nested dict of settings."""
    return field(default_factory=kind, metadata={"section": kind, "doc": doc})


@record
class Batch:
    queue_size: int = key(8192, whole(1), "Finished spans held for export; what comes on top is dropped and counted.")
    batch_size: int = key(512, whole(1), "Most spans in one export.")
    delay_s: float = key(5.0, number(0, exclusive=True), "Longest wait before an export, in seconds.")


@record
class Limits:
    attributes: int = key(128, whole(1), "Most attributes of a span.")
    attribute_length: int = key(4096, whole(1), "Longest text of an attribute, in characters.")
    events: int = key(128, whole(0), "Most events of a span.")
    spans_per_trace: int = key(
        1000, whole(1), "Most spans one process records in one trace; more are dropped and counted."
    )


@record
class Traces:
    exporters: tuple[str, ...] | str = key(
        "auto",
        exporters(*SPAN_EXPORTERS, auto=True, paths=True),
        '"auto" (OTLP when an endpoint is set, else none) or a list of "otlp", "otlp-grpc", "console", "memory",'
        ' "none", or a dotted path to a class or factory that gives a SpanExporter or a SpanProcessor.',
    )
    endpoint: str | None = key(
        None, optional(endpoint), "OTLP endpoint: a base URL (`/v1/traces` is added) or a URL that ends in `/traces`."
    )
    headers: Mapping[str, str] = key({}, headers, "Headers of OTLP requests, for example an API key.")
    timeout_s: float = key(
        10.0, number(0, exclusive=True), "Longest time for one export, retries included, in seconds."
    )
    compression: str = key("gzip", one_of("gzip", "deflate", "none"), "Compression of OTLP requests.")
    batch: Batch = section(Batch)
    limits: Limits = section(Limits)


@record
class Metrics:
    exporters: tuple[str, ...] = key(
        ("prometheus",),
        exporters(*METRIC_EXPORTERS),
        'A list of "prometheus" (`/metrics`), "prometheus-registry" (our families as a collector in'
        ' prometheus_client\'s registry), "otlp", "otlp-grpc", "console".',
    )
    include_registry: bool = key(
        False, boolean, "Show the collectors of prometheus_client's registry on `/metrics` too."
    )
    endpoint: str | None = key(None, optional(endpoint), "OTLP endpoint; None takes that of TRACES.")
    headers: Mapping[str, str] = key({}, headers, "Headers of OTLP requests; with TRACES' endpoint, TRACES' headers.")
    timeout_s: float = key(10.0, number(0, exclusive=True), "Longest time for one export, in seconds.")
    compression: str = key("gzip", one_of("gzip", "deflate", "none"), "Compression of OTLP requests.")
    interval_s: float = key(60.0, number(0, exclusive=True), "Time between OTLP or console exports, in seconds.")
    temporality: str = key("cumulative", one_of("cumulative", "delta"), "Temporality of exported sums and histograms.")
    buckets: Mapping[str, tuple[float, ...]] = key({}, buckets, "Bucket bounds by metric name, ascending.")
    cardinality_limit: int = key(2000, whole(1), "Most series of an instrument; the rest share one overflow series.")
    attribute_length: int = key(256, whole(1), "Most characters of a label value; longer ones are cut, and counted.")
    shared_dir: str | None = key(
        None, optional(absolute_path), "Folder in which worker processes share their numbers; None finds or makes one."
    )
    group: str | None = key(
        None, optional(text), "Name of the processes that share their numbers; None is one group per server instance."
    )
    exemplars: bool = key(True, boolean, "Trace ids beside histogram buckets (OpenMetrics), for sampled requests.")


@record
class Logs:
    exporters: tuple[str, ...] = key(
        (), exporters(*LOG_EXPORTERS), 'A list of "otlp", "otlp-grpc", "console", "memory".'
    )
    endpoint: str | None = key(None, optional(endpoint), "OTLP endpoint; None takes that of TRACES.")
    headers: Mapping[str, str] = key({}, headers, "Headers of OTLP requests; with TRACES' endpoint, TRACES' headers.")
    timeout_s: float = key(10.0, number(0, exclusive=True), "Longest time for one export, in seconds.")
    compression: str = key("gzip", one_of("gzip", "deflate", "none"), "Compression of OTLP requests.")
    level: str = key("INFO", log_level, "Lowest level that is exported.")
    correlation: bool = key(
        True, boolean, "otelTraceID, otelSpanID, otelTraceSampled, otelServiceName on every record."
    )


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
    baggage_keys: tuple[str, ...] = key((), list_of(text, "baggage keys"), "Inbound baggage keys that are sent on.")


@record
class Sampling:
    ratio: float = key(1.0, number(0.0, 1.0, hint="For {value} % write {fraction}."), "Share of new traces to record.")
    rules: tuple[SamplingRule, ...] = key(
        (),
        sampling_rules,
        'A list of {"path": glob or "route": URL pattern, "method": optional, "ratio": share}; the first that matches'
        " a request decides instead of RATIO.",
    )
    max_per_second: float | None = key(
        None,
        optional(number(0, exclusive=True)),
        "Most traces recorded per second, over all processes of the server; None is no limit.",
    )
    keep_errors: bool = key(
        False,
        boolean,
        "Record what ends in an error whatever the ratio: its spans are held back until it is known how it ends.",
    )
    keep_slow_s: float | None = key(
        None, optional(number(0, exclusive=True)), "Record what takes at least so many seconds whatever the ratio."
    )
    tail_buffer_spans: int = key(
        10_000,
        whole(1),
        "Most spans one process holds back for KEEP_ERRORS and KEEP_SLOW_S; above it the oldest trace is dropped.",
    )
    force: bool = key(
        False, boolean, "Whether a token of `force_trace_token()` traces the visit that brings it, whatever the ratio."
    )
    live: bool = key(True, boolean, "Whether the admin's sampling policy is followed.")
    refresh_s: float = key(5.0, number(0.1), "Longest time until a policy reaches every process, in seconds.")


@record
class Request:
    spans: str = key("native", one_of("native", "instrumentor"), "Who makes the request span.")
    exclude: tuple[str, ...] = key((), list_of(text, "path patterns"), "Paths (globs) out of both spans and metrics.")
    request_headers: tuple[str, ...] = key((), list_of(text, "header names"), "Request headers recorded on spans.")
    response_headers: tuple[str, ...] = key((), list_of(text, "header names"), "Response headers recorded on spans.")
    query: bool = key(False, boolean, "Record the query string (scrubbed).")
    user: str = key("none", one_of("none", "id", "hash"), "Record the signed-in user, when already loaded.")
    client_address: bool = key(False, boolean, "Record REMOTE_ADDR.")
    server_timing: bool = key(
        False, boolean, "A `Server-Timing` header: total, db, cache and template time. Anybody can read it."
    )
    traceresponse: bool = key(False, boolean, "A `traceresponse` header with the trace's id (W3C draft).")
    enrich: Any = key(None, optional(callable_or_path), "Dotted path to f(span, request, response).")


@record
class Database:
    spans: bool = key(True, boolean, "A span per query of a recorded request.")
    metrics: bool = key(True, boolean, "db.client.operation.duration for every Django connection.")
    statement: str = key(
        "parameterised", one_of("parameterised", "off"), "The statement on spans, without any literal."
    )


@record
class Cache:
    metrics: bool = key(True, boolean, "django.cache.operations and their duration, for every cache; never a key.")


@record
class Scrub:
    extra: tuple[str, ...] = key((), list_of(text, "key patterns"), "Further key patterns whose values are redacted.")
    callback: Any = key(None, optional(callable_or_path), "Dotted path to f(key, value) -> value.")


@record
class MetricsView:
    token: str | None = key(None, optional(text), "Bearer token for `/metrics`.")
    allow: Any = key(
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
        None, optional(boolean), "Traces and dashboard in the admin, and the store they read; None is on with DEBUG."
    )
    max_traces: int = key(500, whole(1), "Most traces in the store; errors and slow ones are kept longest.")
    max_mb: int = key(64, whole(1), "Most space the store takes on disk, in MiB.")
    path: str | None = key(
        None,
        optional(path_on_disk),
        "Folder of the store, or a file ending in .sqlite3, .sqlite or .db; None makes a private folder per"
        " deployment. Services that name the same path show their traces whole.",
    )


@record
class Config:
    """The whole configuration. `sources` and `warnings` say where it came from and what was ignored."""

    enabled: bool = key(True, boolean, "Whether anything is measured at all.")
    service_name: str | None = key(None, optional(text), "service.name; default: the settings module's top package.")
    service_version: str | None = key(None, optional(text), "service.version.")
    environment: str | None = key(None, optional(text), "deployment.environment.name, for example 'production'.")
    resource: Mapping[str, object] = key({}, resource, "Further resource attributes.")
    providers: str = key(
        "auto",
        one_of("auto", "own", "none"),
        '"auto": use providers another tool has installed, else our own; "own"; "none": no tracing, metrics only.',
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
    business: Mapping[str, Mapping[str, object]] = key({}, business, "Business events by model label.")
    scrub: Scrub = section(Scrub)
    metrics_view: MetricsView = section(MetricsView)
    health: Health = section(Health)
    console: Console = section(Console)
    trace_url: str | None = key(None, optional(trace_url), "Where a trace can be looked at, with {trace_id}.")

    sources: Mapping[str, str] = field(default_factory=dict, metadata={"internal": True})
    #: Environment variables that were ignored, and why (the specification wants a warning, not an error).
    warnings: tuple[str, ...] = field(default=(), metadata={"internal": True})
    #: Variables of the system that are no settings: where run-time folders are, whether the reloader runs.
    surroundings: Mapping[str, str] = field(default_factory=dict, metadata={"internal": True})

    def flat(self) -> dict[str, object]:
        """Every value by its dotted key, in the order of the table."""
        return {dotted: _get(self, dotted) for dotted, _ in walk(Config)}


def walk(kind: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
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


# --- Parsing. ---


def parse(mapping: object, environ: Mapping[str, str], default_service_name: str = "django") -> Config:
    """Build the configuration from `settings.OTEL` and the environment.

    Pure: reads nothing else, imports nothing.
    Errors: `ConfigError` with every problem at once. A faulty environment
    variable is no error but ignored with an entry in `warnings`
    (OpenTelemetry specification, "Parsing environment variables").
    """
    problems: list[Problem] = []
    given: dict[str, object] = {}
    if mapping is None:
        mapping = {}
    if isinstance(mapping, Mapping):
        _read_section(Config, mapping, "", given, problems)
    else:
        problems.append(Problem("django_otel.E002", f"OTEL is a {type(mapping).__name__}; expected a dict."))
    _check_together(given, problems)
    if problems:
        raise ConfigError(problems)

    sources = {dotted: "default" for dotted, _ in walk(Config)}
    sources.update(dict.fromkeys(given, "settings"))
    warnings: list[str] = []
    for dotted, (value, variable) in _read_environment(environ, given, warnings).items():
        given[dotted] = value
        sources[dotted] = f"environment {variable}"
    _resolve(given, sources, environ, default_service_name)
    config: Config = _build_section(Config, given, "")
    surroundings = {name: environ[name] for name in SURROUNDINGS if name in environ}
    return dataclasses.replace(config, sources=sources, warnings=tuple(warnings), surroundings=surroundings)


def _place(dotted: str) -> str:
    return "OTEL" + "".join(f'["{part}"]' for part in dotted.split(".") if part)


def _read_section(
    kind: type, mapping: Mapping[Any, object], prefix: str, given: dict[str, object], problems: list[Problem]
) -> None:
    known = {entry.name.upper(): entry for entry in dataclasses.fields(kind) if "internal" not in entry.metadata}
    for name, value in mapping.items():
        entry = known.get(name) if isinstance(name, str) else None
        if entry is None:
            problems.append(_unknown_key(name, prefix, tuple(known)))
            continue
        dotted = prefix + str(name)
        nested = entry.metadata.get("section")
        if nested is not None:
            if isinstance(value, Mapping):
                _read_section(nested, value, dotted + ".", given, problems)
            else:
                keys = ", ".join(item.name.upper() for item in dataclasses.fields(nested))
                problems.append(
                    Problem(
                        "django_otel.E002", f"{_place(dotted)} is {_show(dotted, value)}; expected a dict with {keys}."
                    )
                )
            continue
        try:
            given[dotted] = entry.metadata["rule"](value)
        except Misfit as misfit:
            message = f"{_place(dotted)} is {_show(dotted, value)}; expected {misfit.expected}."
            if misfit.hint:
                message += f" {misfit.hint}"
            problems.append(Problem(misfit.problem_id, message, misfit.hint))


def _show(dotted: str, value: object) -> str:
    """A value as an error message may show it: never a secret, never long."""
    if dotted in SECRET_KEYS or re.search(r"(?i)token|secret|password|header", dotted):
        return f"a {type(value).__name__}"
    shown = repr(value)
    # A URL may carry user:password.
    shown = re.sub(r"//[^/@\s]+@", "//[redacted]@", shown)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _unknown_key(name: object, prefix: str, known: tuple[str, ...]) -> Problem:
    place = _place(prefix.rstrip("."))
    message = f"{place} has no key {name!r}."
    near = ""
    if isinstance(name, str):
        here = max(known, key=lambda candidate: _likeness(name, candidate))
        everywhere = [dotted for dotted, _ in walk(Config)]
        there = max(everywhere, key=lambda dotted: _likeness(name, dotted.rsplit(".", 1)[-1]))
        likeness_here, likeness_there = _likeness(name, here), _likeness(name, there.rsplit(".", 1)[-1])
        # A key of this very section is the likelier slip, unless another fits much better.
        if likeness_here >= 0.6 and likeness_here + 0.15 >= likeness_there:
            near = _place(prefix + here)
        elif likeness_there >= 0.75:
            near = _place(there)
    hint = f"Did you mean {near}?" if near else "Its keys are " + ", ".join(known) + "."
    return Problem("django_otel.E001", f"{message} {hint}", hint)


def _likeness(found: str, key: str) -> float:
    """How alike two keys are, 0 to 1: as a whole, or in one word of each ("SAMPLE_RATE" and "RATIO")."""
    found = found.upper()
    whole_key = difflib.SequenceMatcher(None, found, key).ratio()
    words = (
        difflib.SequenceMatcher(None, one, other).ratio() * 0.95
        for one in found.split("_")
        for other in key.split("_")
        if len(one) > 2 and len(other) > 2
    )
    return max(whole_key, *words, 0.0)


def _check_together(given: Mapping[str, object], problems: list[Problem]) -> None:
    """What only holds for several keys at once."""
    batch_size = given.get("TRACES.BATCH.BATCH_SIZE", Batch.__dataclass_fields__["batch_size"].default)
    queue_size = given.get("TRACES.BATCH.QUEUE_SIZE", Batch.__dataclass_fields__["queue_size"].default)
    if isinstance(batch_size, int) and isinstance(queue_size, int) and batch_size > queue_size:
        problems.append(
            Problem(
                "django_otel.E002",
                f'OTEL["TRACES"]["BATCH"]["BATCH_SIZE"] is {batch_size}; '
                f"expected at most QUEUE_SIZE, which is {queue_size}.",
            )
        )
    for signal in ("TRACES", "METRICS", "LOGS"):
        url = given.get(f"{signal}.ENDPOINT")
        chosen = given.get(f"{signal}.EXPORTERS", ())
        if (
            isinstance(url, str)
            and "://" not in url
            and "otlp-grpc" not in (chosen if isinstance(chosen, tuple) else ())
        ):
            problems.append(
                Problem(
                    "django_otel.E002",
                    f'OTEL["{signal}"]["ENDPOINT"] is {url!r}; expected a URL such as \'http://localhost:4318\'. '
                    f"Write 'http://{url}'.",
                    f"Write 'http://{url}'.",
                )
            )
    if given.get("METRICS_VIEW.ALLOW") == "token" and not given.get("METRICS_VIEW.TOKEN"):
        problems.append(
            Problem(
                "django_otel.E002",
                'OTEL["METRICS_VIEW"]["ALLOW"] is \'token\', but OTEL["METRICS_VIEW"]["TOKEN"] is not set; '
                "expected a token that the scraper sends as 'Authorization: Bearer ...'.",
                'Set OTEL["METRICS_VIEW"]["TOKEN"].',
            )
        )


def _build_section(kind: type, given: Mapping[str, object], prefix: str) -> Any:
    values: dict[str, object] = {}
    for entry in dataclasses.fields(kind):
        if "internal" in entry.metadata:
            continue
        dotted = prefix + entry.name.upper()
        nested = entry.metadata.get("section")
        if nested is not None:
            values[entry.name] = _build_section(nested, given, dotted + ".")
        elif dotted in given:
            values[entry.name] = given[dotted]
    return kind(**values)


# --- The environment of the OpenTelemetry specification. ---

_SIGNALS = {"TRACES": "traces", "METRICS": "metrics", "LOGS": "logs"}


def _milliseconds(value: str) -> float:
    parsed = int(value) / 1000
    if parsed <= 0:
        raise ValueError
    return parsed


def _positive(value: str) -> int:
    parsed = int(value)
    if parsed <= 0:
        raise ValueError
    return parsed


def _level(value: str) -> str:
    try:
        return log_level(value)
    except Misfit:
        raise ValueError from None


def _choice(**choices: object) -> Callable[[str], object]:
    def convert(value: str) -> object:
        return choices[value.strip().lower()]

    return convert


def _key_values(value: str) -> dict[str, str]:
    """`a=1,b=2`, percent-encoded, as in W3C Baggage (OpenTelemetry, "Specifying headers via environment variables")."""
    pairs: dict[str, str] = {}
    for item in value.split(","):
        if not item.strip():
            continue
        name, equals, content = item.partition("=")
        if not equals or not name.strip():
            raise ValueError
        pairs[unquote(name).strip()] = unquote(content).strip()
    return pairs


def _env_endpoint(value: str) -> str:
    try:
        return endpoint(value)
    except Misfit:
        raise ValueError from None


def _env_propagators(value: str) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(item.strip() for item in value.split(",") if item.strip()))
    if not all(item in PROPAGATORS for item in chosen):
        raise ValueError
    return chosen


#: Variable, dotted key, conversion (raises ValueError or KeyError when the value does not fit), what fits.
_SIMPLE: tuple[tuple[str, str, Callable[[str], object], str], ...] = (
    ("OTEL_SERVICE_NAME", "SERVICE_NAME", str, "a text"),
    ("OTEL_BSP_SCHEDULE_DELAY", "TRACES.BATCH.DELAY_S", _milliseconds, "milliseconds"),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "TRACES.BATCH.QUEUE_SIZE", _positive, "a whole number above 0"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "TRACES.BATCH.BATCH_SIZE", _positive, "a whole number above 0"),
    ("OTEL_ATTRIBUTE_COUNT_LIMIT", "TRACES.LIMITS.ATTRIBUTES", _positive, "a whole number above 0"),
    ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "TRACES.LIMITS.ATTRIBUTES", _positive, "a whole number above 0"),
    ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "TRACES.LIMITS.ATTRIBUTE_LENGTH", _positive, "a whole number above 0"),
    ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "TRACES.LIMITS.ATTRIBUTE_LENGTH", _positive, "a whole number above 0"),
    ("OTEL_SPAN_EVENT_COUNT_LIMIT", "TRACES.LIMITS.EVENTS", _positive, "a whole number above 0"),
    ("OTEL_METRIC_EXPORT_INTERVAL", "METRICS.INTERVAL_S", _milliseconds, "milliseconds"),
    (
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
        "METRICS.TEMPORALITY",
        _choice(cumulative="cumulative", delta="delta", lowmemory="delta"),
        "cumulative, delta or lowmemory",
    ),
    (
        "OTEL_METRICS_EXEMPLAR_FILTER",
        "METRICS.EXEMPLARS",
        _choice(always_off=False, trace_based=True, always_on=True),
        "always_off, trace_based or always_on",
    ),
    ("OTEL_PROPAGATORS", "PROPAGATION.FORMATS", _env_propagators, "a list of " + ", ".join(PROPAGATORS)),
)


def _read_environment(
    environ: Mapping[str, str], given: Mapping[str, object], warnings: list[str]
) -> dict[str, tuple[object, str]]:
    """What the environment sets: {dotted key: (value, variable)}."""
    found: dict[str, tuple[object, str]] = {}

    def take(variable: str, dotted: str, convert: Callable[[str], object], fits: str) -> None:
        raw = environ.get(variable, "").strip()
        if not raw:
            return
        try:
            found[dotted] = (convert(raw), variable)
        except (ValueError, KeyError):
            shown = "its value" if "HEADERS" in variable else repr(raw[:80])
            warnings.append(f"The environment variable {variable} is ignored: {shown} does not fit; expected {fits}.")

    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        found["ENABLED"] = (False, "OTEL_SDK_DISABLED")
    _read_resource(environ, given, found, warnings)
    for variable, dotted, convert, fits in _SIMPLE:
        take(variable, dotted, convert, fits)
    for signal in _SIGNALS:
        take("OTEL_EXPORTER_OTLP_ENDPOINT", f"{signal}.ENDPOINT", _base_endpoint(_SIGNALS[signal]), "a URL")
        take(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", f"{signal}.ENDPOINT", _env_endpoint, "a URL")
        for prefix in ("OTEL_EXPORTER_OTLP", f"OTEL_EXPORTER_OTLP_{signal}"):
            take(f"{prefix}_HEADERS", f"{signal}.HEADERS", _key_values, "name=value pairs, separated by commas")
            take(f"{prefix}_TIMEOUT", f"{signal}.TIMEOUT_S", _milliseconds, "milliseconds")
            take(
                f"{prefix}_COMPRESSION",
                f"{signal}.COMPRESSION",
                _choice(gzip="gzip", deflate="deflate", none="none"),
                "gzip, deflate or none",
            )
        _read_exporters(signal, environ, found, warnings)
    _read_sampler(environ, found, warnings)
    return found


def _base_endpoint(signal: str) -> Callable[[str], str]:
    def convert(value: str) -> str:
        return add_signal_path(_env_endpoint(value), signal)

    return convert


def _read_resource(
    environ: Mapping[str, str], given: Mapping[str, object], found: dict[str, tuple[object, str]], warnings: list[str]
) -> None:
    raw = environ.get("OTEL_RESOURCE_ATTRIBUTES", "").strip()
    if not raw:
        return
    try:
        pairs = _key_values(raw)
    except ValueError:
        warnings.append("The environment variable OTEL_RESOURCE_ATTRIBUTES is ignored: expected name=value pairs.")
        return
    variable = "OTEL_RESOURCE_ATTRIBUTES"
    for attribute, dotted in (
        ("service.name", "SERVICE_NAME"),
        ("service.version", "SERVICE_VERSION"),
        ("deployment.environment.name", "ENVIRONMENT"),
        ("deployment.environment", "ENVIRONMENT"),
    ):
        value = pairs.pop(attribute, "")
        if value and dotted not in found:
            found[dotted] = (value, variable)
    if pairs:
        base = given.get("RESOURCE", {})
        found["RESOURCE"] = ({**(base if isinstance(base, Mapping) else {}), **pairs}, variable)


def _protocol(signal: str, environ: Mapping[str, str]) -> str:
    specific = environ.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "").strip()
    protocol = specific or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "").strip()
    return "otlp-grpc" if protocol == "grpc" else "otlp"


def _read_exporters(
    signal: str, environ: Mapping[str, str], found: dict[str, tuple[object, str]], warnings: list[str]
) -> None:
    variable = f"OTEL_{signal}_EXPORTER"
    raw = environ.get(variable, "").strip()
    if not raw:
        return
    known = {"TRACES": SPAN_EXPORTERS, "METRICS": METRIC_EXPORTERS, "LOGS": LOG_EXPORTERS}[signal]
    chosen: list[str] = []
    for item in (part.strip() for part in raw.split(",")):
        name = _protocol(signal, environ) if item == "otlp" else item
        if item == "none" or not item:
            continue
        if name not in known:
            warnings.append(f"The environment variable {variable} is ignored: {raw[:80]!r}; expected a list of "
                            + ", ".join(known) + ".")  # fmt: skip
            return
        chosen.append(name)
    found[f"{signal}.EXPORTERS"] = (tuple(dict.fromkeys(chosen)), variable)


def _read_sampler(environ: Mapping[str, str], found: dict[str, tuple[object, str]], warnings: list[str]) -> None:
    sampler = environ.get("OTEL_TRACES_SAMPLER", "").strip()
    if not sampler:
        return
    kind = sampler.removeprefix("parentbased_")
    if kind == "always_on":
        found["SAMPLING.RATIO"] = (1.0, "OTEL_TRACES_SAMPLER")
    elif kind == "always_off":
        found["SAMPLING.RATIO"] = (0.0, "OTEL_TRACES_SAMPLER")
    elif kind == "traceidratio":
        raw = environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or "1.0"
        try:
            ratio = float(raw)
            if not 0.0 <= ratio <= 1.0:
                raise ValueError
        except ValueError:
            warnings.append(
                f"The environment variable OTEL_TRACES_SAMPLER_ARG is ignored: {raw[:80]!r}; expected 0.0 to 1.0."
            )
            return
        found["SAMPLING.RATIO"] = (ratio, "OTEL_TRACES_SAMPLER_ARG")
    else:
        warnings.append(
            f"The environment variable OTEL_TRACES_SAMPLER is ignored: {sampler[:80]!r}; expected always_on, always_off"
            " or traceidratio, with or without parentbased_."
        )


# --- Values that depend on others. ---


def add_signal_path(url: str, signal: str) -> str:
    """The URL of one signal below a base URL (OTLP exporter specification, "Endpoint URLs for OTLP/HTTP")."""
    if "://" not in url:
        return url
    return f"{url.rstrip('/')}/v1/{signal}"


def _signal_url(url: str, signal: str) -> str:
    """A setting may be a base URL or the signal's own; the latter ends in the signal's name."""
    return url if urlsplit(url).path.rstrip("/").endswith(f"/{signal}") else add_signal_path(url, signal)


def _resolve(
    given: dict[str, object], sources: dict[str, str], environ: Mapping[str, str], default_service_name: str
) -> None:
    if given.get("SERVICE_NAME") is None:
        given["SERVICE_NAME"] = default_service_name
    for signal, path in _SIGNALS.items():
        dotted = f"{signal}.ENDPOINT"
        if isinstance(url := given.get(dotted), str) and sources[dotted] == "settings":
            given[dotted] = _signal_url(url, path)
    traces_url = given.get("TRACES.ENDPOINT")
    if isinstance(traces_url, str) and sources["TRACES.ENDPOINT"] == "settings":
        for signal in ("METRICS", "LOGS"):
            if given.get(f"{signal}.ENDPOINT") is None:
                _follow_traces(signal, traces_url, given, sources)
    if given.get("TRACES.EXPORTERS", "auto") == "auto":
        chosen = (_protocol("TRACES", environ),) if isinstance(traces_url, str) else ()
        given["TRACES.EXPORTERS"] = chosen
        if sources["TRACES.EXPORTERS"] == "default" or sources["TRACES.EXPORTERS"] == "settings":
            sources["TRACES.EXPORTERS"] += " (auto)"


def _follow_traces(signal: str, traces_url: str, given: dict[str, object], sources: dict[str, str]) -> None:
    if "://" not in traces_url:
        url = traces_url
    elif traces_url.endswith("/v1/traces"):
        url = traces_url.removesuffix("traces") + _SIGNALS[signal]
    else:
        return
    given[f"{signal}.ENDPOINT"] = url
    sources[f"{signal}.ENDPOINT"] = "TRACES.ENDPOINT"
    for name in ("HEADERS", "TIMEOUT_S", "COMPRESSION"):
        if f"{signal}.{name}" not in given and f"TRACES.{name}" in given:
            given[f"{signal}.{name}"] = given[f"TRACES.{name}"]
            sources[f"{signal}.{name}"] = f"TRACES.{name}"
