"""Every `OTEL_*` variable of the OpenTelemetry specification, its Python packages and the semantic conventions.

One table: `environment` reads it, `manage.py otel config` and docs/settings.md show it, and one test tries each
row. A variable is obeyed (by the setting it stands for, or by the package that reads it) or ignored and named (W013).
Sources: OpenTelemetry specification, "Environment Variable Specification" and "OTLP Exporter Configuration";
opentelemetry-python and -contrib 1.45/0.66; semantic conventions, "HTTP" and "Exceptions".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import unquote

from django_otel.base.frozen import record
from django_otel.config.signals import SIGNALS
from django_otel.config.validators import MOST, MOST_WHOLE, Misfit, endpoint, is_header, log_level

#: Turns the text of a variable into the value of its setting; raises ValueError or KeyError where it does not fit.
Convert = Callable[[str], object]


@record
class Variable:
    """One variable. `keys` are the dotted settings it stands for; without any, `reader` obeys it or it is ignored."""

    name: str
    keys: tuple[str, ...] = ()
    #: None where `environment` has a function of its own for it.
    convert: Convert | None = None
    #: Completes the sentence "expected ...".
    fits: str = ""
    #: The package that reads it for itself.
    reader: str = ""
    #: Advice, for one that is ignored.
    advice: str = ""
    #: Values (lower case) of an ignored variable that ask for nothing but what happens anyway.
    idle: tuple[str, ...] = ()
    #: Whether its value may hold a secret and is never shown.
    is_secret: bool = False

    @property
    def is_obeyed(self) -> bool:
        """Return whether it has an effect; else it is named by W013."""
        return bool(self.keys or self.reader)

    @property
    def effect(self) -> str:
        """Return its effect in a few words; names of settings are in backticks."""
        if self.keys:
            return "sets " + ", ".join(f"`{dotted}`" for dotted in self.keys)
        if self.reader:
            return f"read by {self.reader}"
        return f"none (W013). {self.advice}"


# --- Conversions. ---


def milliseconds(value: str) -> float:
    """Seconds, from a whole number of milliseconds above 0."""
    return min(positive(value) / 1000, MOST)


def timeout(value: str) -> float:
    """Seconds, from a whole number of milliseconds; 0 means no limit (OpenTelemetry specification, "Timeout")."""
    return min(count(value) / 1000, MOST) or MOST


def positive(value: str) -> int:
    parsed = int(value)
    if parsed <= 0:
        raise ValueError
    return min(parsed, MOST_WHOLE)


def count(value: str) -> int:
    parsed = int(value)
    if parsed < 0:
        raise ValueError
    return min(parsed, MOST_WHOLE)


def choice(**choices: object) -> Convert:
    def convert(value: str) -> object:
        return choices[value.strip().lower()]

    return convert


def _name_list(value: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    if not names or not all(name.replace("-", "").replace("_", "").isalnum() for name in names):
        raise ValueError
    return names


def _method_list(value: str) -> tuple[str, ...]:
    # Methods are case-sensitive (semantic conventions, `http.request.method`).
    names = tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    if not names or not all(name.replace("-", "").isalnum() and name.isascii() for name in names):
        raise ValueError
    return names


def _patterns(value: str) -> str:
    # As `opentelemetry.util.http.ExcludeList` has them.
    try:
        re.compile("|".join(part.strip() for part in value.split(",")))
    except (re.error, OverflowError, RecursionError):
        raise ValueError from None
    return value


def _conventions_list(value: str) -> str:
    if not {part.strip() for part in value.split(",") if part.strip()} <= _OPT_INS:
        raise ValueError
    return value


def _log_level(value: str) -> str:
    try:
        return log_level({"WARN": "WARNING", "FATAL": "CRITICAL"}.get(value.upper(), value))
    except Misfit:
        raise ValueError from None


def key_values(value: str) -> tuple[dict[str, str], int]:
    """The pairs of `a=1,b=2`, percent-encoded, and how many entries are not pairs.

    Source: OpenTelemetry, "Specifying headers via environment variables" (W3C Baggage without properties).
    """
    pairs: dict[str, str] = {}
    bad = 0
    for item in value.split(","):
        if not item.strip():
            continue
        name, equals, content = item.partition("=")
        name = unquote(name).strip()
        content = unquote(content).strip()
        if not equals or not name or not name.isascii() or not name.isprintable() or not content.isprintable():
            bad += 1
        else:
            pairs[name] = content
    return pairs, bad


def header_pairs(value: str) -> tuple[dict[str, str], int]:
    """The pairs of `a=1,b=2` that can be sent as headers, and how many entries cannot."""
    pairs, bad = key_values(value)
    fitting = {name: content for name, content in pairs.items() if is_header(name, content)}
    return fitting, bad + len(pairs) - len(fitting)


def env_endpoint(value: str) -> str:
    try:
        return endpoint(value)
    except Misfit:
        raise ValueError from None


_BOOLEAN = choice(true=True, false=False)
_PATH = "the path of a PEM file"
_COUNT = "a whole number of at least 0"


# --- The table. ---


def _general() -> Iterator[Variable]:
    yield Variable("OTEL_SDK_DISABLED", ("ENABLED",), choice(true=False, false=None), "true or false")
    yield Variable("OTEL_SERVICE_NAME", ("SERVICE_NAME",), str, "a text")
    yield Variable(
        "OTEL_RESOURCE_ATTRIBUTES",
        ("RESOURCE", "SERVICE_NAME", "SERVICE_VERSION", "ENVIRONMENT"),
        fits="name=value pairs, separated by commas",
    )
    yield Variable("OTEL_PROPAGATORS", ("PROPAGATION.FORMATS",), fits="a list of formats")
    yield Variable("OTEL_TRACES_SAMPLER", ("SAMPLING.RATIO", "SAMPLING.PARENT"), fits="a sampler")
    yield Variable("OTEL_TRACES_SAMPLER_ARG", ("SAMPLING.RATIO",), fits="a number from 0.0 to 1.0")


def _limits() -> Iterator[Variable]:
    for name, dotted in (
        # The general one comes first: that of a signal stands above it.
        ("OTEL_ATTRIBUTE_COUNT_LIMIT", ("TRACES.LIMITS.ATTRIBUTES", "LOGS.LIMITS.ATTRIBUTES")),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", ("TRACES.LIMITS.ATTRIBUTES",)),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", ("TRACES.LIMITS.EVENTS",)),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", ("TRACES.LIMITS.LINKS",)),
        ("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", ("TRACES.LIMITS.EVENT_ATTRIBUTES",)),
        ("OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", ("TRACES.LIMITS.LINK_ATTRIBUTES",)),
        ("OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT", ("LOGS.LIMITS.ATTRIBUTES",)),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", ("TRACES.LIMITS.ATTRIBUTE_LENGTH", "LOGS.LIMITS.ATTRIBUTE_LENGTH")),
        ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", ("TRACES.LIMITS.ATTRIBUTE_LENGTH",)),
        ("OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT", ("LOGS.LIMITS.ATTRIBUTE_LENGTH",)),
    ):
        yield Variable(name, dotted, count, _COUNT)


def _batches() -> Iterator[Variable]:
    yield Variable("OTEL_BSP_SCHEDULE_DELAY", ("TRACES.BATCH.DELAY_S",), milliseconds, "milliseconds above 0")
    yield Variable("OTEL_BSP_MAX_QUEUE_SIZE", ("TRACES.BATCH.QUEUE_SIZE",), positive, "a whole number above 0")
    yield Variable("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", ("TRACES.BATCH.BATCH_SIZE",), positive, "a whole number above 0")
    yield Variable("OTEL_BSP_EXPORT_TIMEOUT", advice="OTEL_EXPORTER_OTLP_TIMEOUT is the time of one export.")
    for name in ("SCHEDULE_DELAY", "MAX_QUEUE_SIZE", "MAX_EXPORT_BATCH_SIZE", "EXPORT_TIMEOUT"):
        yield Variable(f"OTEL_BLRP_{name}", advice="Log records are batched as TRACES.BATCH (OTEL_BSP_*) says.")
    yield Variable("OTEL_METRIC_EXPORT_INTERVAL", ("METRICS.INTERVAL_S",), milliseconds, "milliseconds above 0")
    yield Variable("OTEL_METRIC_EXPORT_TIMEOUT", advice="OTEL_EXPORTER_OTLP_METRICS_TIMEOUT is the time of one export.")
    yield Variable(
        "OTEL_METRICS_EXEMPLAR_FILTER",
        ("METRICS.EXEMPLARS",),
        choice(always_off=False, trace_based=True, alwaysoff=False, tracebased=True),
        "always_off or trace_based",
    )


def _exporters() -> Iterator[Variable]:
    for signal in SIGNALS:
        yield Variable(f"OTEL_{signal}_EXPORTER", (f"{signal}.EXPORTERS",), fits="a list of exporters")
    for signals, prefix in (
        (tuple(SIGNALS), "OTEL_EXPORTER_OTLP"),
        *(((signal,), f"OTEL_EXPORTER_OTLP_{signal}") for signal in SIGNALS),
    ):

        def keys(name: str, signals: tuple[str, ...] = signals) -> tuple[str, ...]:
            return tuple(f"{signal}.{name}" for signal in signals)

        yield Variable(f"{prefix}_ENDPOINT", keys("ENDPOINT"), fits="a URL such as http://localhost:4318",
                       is_secret=True)  # fmt: skip
        yield Variable(f"{prefix}_HEADERS", keys("HEADERS"), fits="name=value pairs, separated by commas",
                       is_secret=True)  # fmt: skip
        yield Variable(f"{prefix}_TIMEOUT", keys("TIMEOUT_S"), timeout, "milliseconds, 0 for no limit")
        yield Variable(f"{prefix}_COMPRESSION", keys("COMPRESSION"),
                       choice(gzip="gzip", deflate="deflate", none="none"), "gzip, deflate or none")  # fmt: skip
        yield Variable(f"{prefix}_PROTOCOL", keys("EXPORTERS"), fits="grpc, http/protobuf or http/json")
        yield Variable(f"{prefix}_INSECURE", keys("INSECURE"), _BOOLEAN, "true or false")
        for part in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"):
            yield Variable(f"{prefix}_{part}", fits=_PATH, reader="the OTLP exporter")
    yield Variable(
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
        ("METRICS.TEMPORALITY",),
        choice(cumulative="cumulative", delta="delta", lowmemory="delta"),
        "cumulative, delta or lowmemory",
    )
    yield Variable(
        "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
        ("METRICS.HISTOGRAMS",),
        choice(explicit_bucket_histogram="explicit", base2_exponential_bucket_histogram="exponential"),
        "explicit_bucket_histogram or base2_exponential_bucket_histogram",
    )
    for name in ("OTEL_EXPORTER_OTLP_SPAN_INSECURE", "OTEL_EXPORTER_OTLP_METRIC_INSECURE"):
        yield Variable(name, advice="It is obsolete; use OTEL_EXPORTER_OTLP_INSECURE.")
    for name in ("HOST", "PORT"):
        yield Variable(
            f"OTEL_EXPORTER_PROMETHEUS_{name}",
            advice="/metrics is a page of the site; `otel serve` has a port.",
        )
    for name in ("ENDPOINT", "TIMEOUT", "PROTOCOL"):
        yield Variable(f"OTEL_EXPORTER_ZIPKIN_{name}", advice="There is no Zipkin exporter; use OTLP.", is_secret=True)
    for name in ("AGENT_HOST", "AGENT_PORT", "ENDPOINT", "TIMEOUT", "USER", "PASSWORD", "PROTOCOL", "CERTIFICATE",
                 "AGENT_SPLIT_OVERSIZED_BATCHES"):  # fmt: skip
        yield Variable(
            f"OTEL_EXPORTER_JAEGER_{name}", advice="Jaeger takes OTLP; there is no other exporter.", is_secret=True
        )


def _conventions() -> Iterator[Variable]:
    yield Variable(
        "OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS", ("REQUEST.KNOWN_METHODS",), _method_list, "a list of methods"
    )
    yield Variable(
        "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN",
        ("TRACES.EXCEPTION_SIGNAL",),
        choice(**{"logs": "logs", "logs/dup": "logs/dup"}),
        "logs or logs/dup",
    )
    yield Variable(
        "OTEL_SEMCONV_STABILITY_OPT_IN",
        convert=_conventions_list,
        fits="a list of conventions such as http or database, each alone or with /dup",
        reader="the official instrumentors",
    )
    for part, dotted in (("REQUEST", "REQUEST.REQUEST_HEADERS"), ("RESPONSE", "REQUEST.RESPONSE_HEADERS")):
        yield Variable(
            f"OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_{part}", (dotted,), _name_list, "a list of header names"
        )
        yield Variable(f"OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_{part}", reader="the official instrumentors")
    yield Variable(
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS",
        advice="Sensitive headers are never recorded; SCRUB.EXTRA adds key patterns.",
    )
    yield Variable("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", reader="the instrumentors of AI libraries")
    yield Variable("OTEL_SEMCONV_METRICS_OPT_IN", advice="Stable conventions are used.")


_IGNORED: Mapping[str, str] = {
    "OTEL_CONFIG_FILE": "Declarative configuration is not read; use settings.OTEL.",
    "OTEL_EXPERIMENTAL_CONFIG_FILE": "Declarative configuration is not read; use settings.OTEL.",
    "OTEL_LOG_LEVEL": 'The level of our own lines is that of the logger "django_otel" in LOGGING.',
    "OTEL_ENTITIES": "Use RESOURCE or OTEL_RESOURCE_ATTRIBUTES.",
    "OTEL_EXPERIMENTAL_ENTITIES_ENABLED": "Use RESOURCE or OTEL_RESOURCE_ATTRIBUTES.",
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "No detectors run; use RESOURCE or OTEL_RESOURCE_ATTRIBUTES.",
    "OTEL_PYTHON_TRACER_PROVIDER": "PROVIDERS says whose providers are used.",
    "OTEL_PYTHON_METER_PROVIDER": "PROVIDERS says whose providers are used.",
    "OTEL_PYTHON_LOGGER_PROVIDER": "PROVIDERS says whose providers are used.",
    "OTEL_PYTHON_ID_GENERATOR": "Ids are random, as trace context level 2 asks.",
    "OTEL_PYTHON_TRACER_CONFIGURATOR": "Use INSTRUMENT and SAMPLING.RULES.",
    "OTEL_PYTHON_METER_CONFIGURATOR": "Use INSTRUMENT.",
    "OTEL_PYTHON_LOGGER_CONFIGURATOR": "Use LOGS.LEVEL and LOGGING.",
    "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED": "See the metrics django_otel.* instead.",
    "OTEL_PYTHON_EXCLUDED_URLS": "Use REQUEST.EXCLUDE (globs); only instrumentors of HTTP clients obey it.",
    "OTEL_PYTHON_DJANGO_EXCLUDED_URLS": "Use REQUEST.EXCLUDE (globs).",
    "OTEL_PYTHON_DJANGO_TRACED_REQUEST_ATTRS": "Use REQUEST.ENRICH.",
    "OTEL_PYTHON_DJANGO_INSTRUMENT": "Use ENABLED.",
    "OTEL_PYTHON_DJANGO_MIDDLEWARE_POSITION": "The place of OTelMiddleware in MIDDLEWARE decides.",
    "OTEL_PYTHON_INSTRUMENTATION_HTTP_CAPTURE_ALL_METHODS": "Use REQUEST.KNOWN_METHODS.",
    "OTEL_PYTHON_LOG_FORMAT": "Use LOGGING.",
    "OTEL_PYTHON_LOG_LEVEL": "Use LOGS.LEVEL and LOGGING.",
    "OTEL_PYTHON_LOG_HANDLER_LEVEL_BY_NAME": "Use LOGGING.",
    "OTEL_PYTHON_LOG_CODE_ATTRIBUTES": "Where a record was made is always recorded.",
    "OTEL_PYTHON_LOG_AUTO_INSTRUMENTATION": "Use LOGS.EXPORTERS.",
    "OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED": "Use LOGS.EXPORTERS.",
}

#: Variables that only a start under `opentelemetry-instrument` has a use for, which reads them before us.
_LAUNCHER = (
    "OTEL_PYTHON_CONFIGURATOR",
    "OTEL_PYTHON_DISTRO",
    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS",
    "OTEL_PYTHON_AUTO_INSTRUMENTATION_EXPERIMENTAL_GEVENT_PATCH",
)
#: Valid names in `OTEL_SEMCONV_STABILITY_OPT_IN`.
_OPT_INS = frozenset(
    name + dup
    for name in ("http", "database", "messaging", "rpc", "code", "k8s", "faas", "cicd", "gen_ai")
    for dup in ("", "/dup")
) | {"gen_ai_latest_experimental", "default"}
#: Official instrumentors of clients that read their own list of URLs.
_CLIENTS = ("AIOHTTP_CLIENT", "FASTAPI", "HTTPX", "REQUESTS", "STARLETTE", "TORNADO", "URLLIB", "URLLIB3")


def _python() -> Iterator[Variable]:
    yield Variable("OTEL_PYTHON_LOG_CORRELATION", ("LOGS.CORRELATION",), _BOOLEAN, "true or false")
    yield Variable("OTEL_PYTHON_LOG_HANDLER_LEVEL", ("LOGS.LEVEL",), _log_level, "a level such as info")
    yield Variable(
        "OTEL_PYTHON_CONTEXT",
        fits="contextvars_context, or the name of an installed one",
        reader="the OpenTelemetry API",
    )
    for name in _LAUNCHER:
        yield Variable(name, reader="opentelemetry-instrument")
    for name in _CLIENTS:
        yield Variable(
            f"OTEL_PYTHON_{name}_EXCLUDED_URLS",
            convert=_patterns,
            fits="a list of regular expressions",
            reader="the official instrumentor",
        )
    for transport in ("HTTP", "GRPC"):
        for part in ("", "_TRACES", "_METRICS", "_LOGS"):
            yield Variable(
                f"OTEL_PYTHON_EXPORTER_OTLP_{transport}{part}_CREDENTIAL_PROVIDER",
                fits="the name of an installed one",
                reader="the OTLP exporter",
            )
    yield Variable("OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES", reader="the OTLP exporter")
    for name, advice in _IGNORED.items():
        idle = ("false",) if name.endswith(("ENABLED", "INSTRUMENTATION", "ALL_METHODS", "CODE_ATTRIBUTES")) else ()
        yield Variable(name, advice=advice, idle=("true",) if name.endswith("DJANGO_INSTRUMENT") else idle)


def _build_table() -> dict[str, Variable]:
    parts = (_general, _limits, _batches, _exporters, _conventions, _python)
    return {variable.name: variable for part in parts for variable in part()}


#: Every variable by its name, in the order in which they are read.
VARIABLES: Mapping[str, Variable] = _build_table()
