"""Every `OTEL_*` variable is obeyed or named, and none keeps the site from starting."""

import collections
import json
import os
import socket
import subprocess
import sys

import pytest

from django_otel import runtime
from django_otel.base.sdk_environment import WATCHED
from django_otel.config.parse import parse
from django_otel.config.schema import Config, ConfigError, walk
from django_otel.config.variables import VARIABLES
from django_otel.export.exporters import grpc_target
from django_otel.operations import variables
from django_otel.sampling.sampler import Limiter
from tests import sizes

#: Values that fit where no function of the table can say so.
FITTING = {
    "OTEL_RESOURCE_ATTRIBUTES": "team=blue",
    "OTEL_PROPAGATORS": "b3",
    "OTEL_TRACES_SAMPLER": "always_off",
    "_ENDPOINT": "https://collector:4318",
    "_HEADERS": "key=value",
    "_EXPORTER": "console",
    "_PROTOCOL": "grpc",
}
#: Of a certificate and a key, as far as it is read.
PEM = "-----BEGIN CERTIFICATE-----\n-----BEGIN EC PRIVATE " + "KEY-----\n"
#: Of these: lists without an entry, which set nothing.
HARMLESS = (",",)
GARBAGE = (
    "9" * 20, "9" * 400,
    "-1", "garbage", "1e9", "\udce4", "=;,", "x" * 5000, "", " ", "\t\n", "0", "nan", "inf", "-inf", "1e400",
    "9" * 5000, "\x00", "\u0663", "%", "%ff=%00", "1e-9",
    "://", "http://[::1", "http://h:99999", ",", "a=b=c", "none,none", "true,", "--",
)  # fmt: skip


def fitting_value(variable):
    for name, value in FITTING.items():
        if variable.name.endswith(name):
            return value
    for value in ("7", "true", "always_off", "delta", "gzip", "logs", "PURGE,GET", "info", "explicit_bucket_histogram"):
        try:
            if variable.convert(value) is not None:
                return value
        except (ValueError, KeyError):
            continue
    raise AssertionError(variable.name)


@sizes.each("variable", VARIABLES.values())
def test_every_variable_is_obeyed_or_named(variable):
    dotted = {name for name, _ in walk(Config)}
    assert set(variable.keys) <= dotted
    if variable.keys and variable.name != "OTEL_TRACES_SAMPLER_ARG":
        environ = {variable.name: fitting_value(variable)}
        if variable.name.endswith("_PROTOCOL"):
            environ |= {f"OTEL_{signal}_EXPORTER": "otlp" for signal in ("TRACES", "METRICS", "LOGS")}
        config = parse({}, environ)
        assert any(source.startswith("environment") for source in config.sources.values()), config.warnings
        # It stands above the settings, and what it says is said of no other.
        assert not [text for text in config.warnings if "ignored" in text or "no effect" in text], config.warnings
    elif variable.name == "OTEL_TRACES_SAMPLER_ARG":
        assert variable.name in parse({}, {variable.name: "0.5"}).warnings[0]
    elif not variable.reader:
        found = parse({}, {variable.name: "some value"}).warnings
        assert len(found) == 1
        assert variable.name in found[0]
        assert variable.advice in found[0]
        assert "some value" not in found[0]


def judge(variable, value):
    """Fail where a variable with `value` is neither obeyed nor named, or `otel config` says something else."""
    config = parse({}, {variable.name: value})
    is_obeyed = any(variable.name in source for source in config.sources.values())
    is_named = any(variable.name in text for text in config.warnings)
    state = variables.find_state(variable, config, {variable.name: value})
    if not value.strip():
        assert (is_obeyed, is_named, state) == (False, False, variables.NOT_SET)
    else:
        does_nothing = state in (variables.IDLE, variables.OVERRIDDEN)
        assert is_obeyed or is_named or variable.reader or does_nothing
        # Values that ask for nothing but the default, such as a list of no entries, may say nothing.
        assert not does_nothing or variable.idle or value in HARMLESS, state
        assert (state in (variables.IGNORED, variables.OBEYED_IN_PART)) is is_named
    assert all(len(text) < 1000 for text in config.warnings)
    json.dumps(config.warnings)


@pytest.mark.heavy
@pytest.mark.scaled
@sizes.each(("number", "value"), enumerate(GARBAGE))
def test_a_value_that_does_not_fit_is_named_and_changes_nothing(number, value):
    """For every variable; in one loop, since there are thousands of pairs: each value with a third of them."""
    wrong = []
    step = sizes.scaled(3, 1)
    for variable in list(VARIABLES.values())[number % step :: step]:
        try:
            judge(variable, value)
        except Exception as error:
            wrong.append((variable.name, repr(error)[:200]))
    assert wrong == []


def test_otel_config_says_what_became_of_each_variable(tmp_path):
    pem = tmp_path / "ca.pem"
    pem.write_text(PEM)
    environ = {
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_SDK_DISABLED": "false",
        "OTEL_CONFIG_FILE": "otel.yaml",
        "OTEL_BSP_SCHEDULE_DELAY": "soon",
        "OTEL_EXPORTER_OTLP_HEADERS": "a=1,b",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2000",
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "3000",
        "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "3000",
        "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT": "3000",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/json",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(pem),
    }
    found = variables.list_states(parse({}, environ), environ, all_variables=False)
    assert {name: entry["state"] for name, entry in found.items()} == {
        "OTEL_SERVICE_NAME": "obeyed",
        "OTEL_SDK_DISABLED": variables.IDLE,
        "OTEL_CONFIG_FILE": "ignored",
        "OTEL_BSP_SCHEDULE_DELAY": "ignored",
        "OTEL_EXPORTER_OTLP_HEADERS": "obeyed in part",
        "OTEL_EXPORTER_OTLP_TIMEOUT": variables.OVERRIDDEN,
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "obeyed",
        "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "obeyed",
        "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT": "obeyed",
        "OTEL_TRACES_EXPORTER": "obeyed",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "obeyed",
        "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": variables.OVERRIDDEN,
        "OTEL_EXPORTER_OTLP_CERTIFICATE": "read by the OTLP exporter",
    }
    assert set(variables.list_states(parse({}, {}), {}, all_variables=True)) == set(VARIABLES)


SETUP = """
import json, logging, os, sys
from django.conf import settings
settings.configure(SECRET_KEY="x",
    INSTALLED_APPS=["django_otel"], DATABASES={}, MIDDLEWARE=[], OTEL=json.loads(sys.argv[1]))
before = dict(os.environ)
import django
django.setup()
from django_otel import runtime
from opentelemetry import metrics, propagate, trace
from opentelemetry._logs import get_logger_provider
trace.get_tracer("project"); metrics.get_meter("project").create_counter("project.things").add(3)
logging.getLogger("project").setLevel("INFO"); logging.getLogger("project").addHandler(
    __import__("django_otel.logs").logs.OTelHandler())
logging.getLogger("project").warning("a record")
with runtime.tracer().start_as_current_span("a span"): pass
changed = {name for name in {*before, *os.environ} if before.get(name) != os.environ.get(name)}
print(json.dumps({
    "started": runtime.current().started, "enabled": runtime.current().enabled,
    "spans": [span.name for span in runtime.memory_spans()],
    "records": [str(item.log_record.body) for item in runtime.memory_logs()],
    "things": [p.value for f in runtime.collect_process() if f.name == "project.things" for p in f.points],
    "changed": sorted(changed - {"OTEL_SEMCONV_STABILITY_OPT_IN"}),
    "warnings": runtime.current().config.warnings,
}))
"""
OTEL = {"TRACES": {"EXPORTERS": ["memory"]}, "LOGS": {"EXPORTERS": ["memory"]}}


#: As a settings module does that reads a file of variables.
LATE = "import django_otel, json, os, sys; os.environ.update(json.load(sys.stdin))\n"


def start(environ, otel=OTEL, *, late=False):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", LATE + SETUP if late else SETUP, json.dumps(otel)],
        # Not as an argument: Linux takes one of 128 KiB at most, and all variables can be longer.
        input=json.dumps(environ) if late else "",
        env=clean if late else {**clean, **environ},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


#: Each on its own: what the API, the SDK and the exporters are known to read by themselves.
ALONE = [
    {"OTEL_PROPAGATORS": "tracecontext,xray"},
    {"OTEL_PROPAGATORS": "jaeger"},
    {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "-1"},
    {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "garbage"},
    {"OTEL_ATTRIBUTE_COUNT_LIMIT": "garbage", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "-5"},
    {"OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT": "garbage", "OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT": "x"},
    {"OTEL_PYTHON_METER_PROVIDER": "sdk_meter_provider"},
    {"OTEL_PYTHON_TRACER_PROVIDER": "sdk_tracer_provider", "OTEL_PYTHON_LOGGER_PROVIDER": "sdk_logger_provider"},
    {"OTEL_PYTHON_TRACER_PROVIDER": "no_such", "OTEL_PYTHON_METER_PROVIDER": "no_such"},
    {"OTEL_PYTHON_CONTEXT": "no_such"},
    {"OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "no_such,process"},
]


@pytest.mark.parametrize("environ", sizes.few(ALONE, 6), ids=lambda environ: "+".join(map("=".join, environ.items())))
def test_nothing_stops_the_start_and_nothing_is_lost(environ):
    found, said = start(environ)
    assert found["started"] and found["enabled"], said
    assert found["spans"] == ["a span"]
    assert found["records"] == ["a record"]
    assert found["things"] == [3]
    assert found["changed"] == []
    # The API itself logs what it cannot load.
    assert "Traceback" not in said or "OTEL_PYTHON_CONTEXT" in environ
    for name in environ:
        if not VARIABLES[name].reader:
            assert any(name in text for text in found["warnings"]), name


def test_variables_that_the_settings_module_sets_stop_nothing_either():
    environ = {
        "OTEL_PROPAGATORS": "xray",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "garbage",
        "OTEL_PYTHON_METER_PROVIDER": "no_such",
    }
    found, said = start(environ, late=True)
    assert found["started"] and found["enabled"], said
    assert found["spans"] == ["a span"]
    assert found["things"] == [3]
    assert all(any(name in text for text in found["warnings"]) for name in environ)


@pytest.mark.parametrize(
    "value",
    sizes.few(["-1", "garbage", " ", "=;,", "0", "nan", "9" * 20, "9" * 400, "9" * 5000, "x" * 5000, "\udce4"], 5),
)
def test_every_variable_at_once(value):
    keep = ("OTEL_SDK_DISABLED",)
    environ = {name: value for name in VARIABLES if name not in keep}
    found, said = start(environ)
    assert found["started"] and found["enabled"], said
    assert found["spans"] == ["a span"]
    assert found["records"] == ["a record"]
    assert found["things"] == [3]


def test_the_face_watches_what_the_guard_handles():
    import django_otel

    assert set(django_otel._WATCHED) == set(WATCHED)


@pytest.mark.parametrize("kind", ["otlp", "otlp-grpc"])
@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
@pytest.mark.parametrize("value", ["10s", "-1", "garbage"])
def test_no_value_keeps_an_exporter_from_being_built(kind, signal, value, monkeypatch):
    from django_otel.export import exporters

    for name in VARIABLES:
        if name.startswith("OTEL_EXPORTER_OTLP") and name.endswith(("TIMEOUT", "COMPRESSION", "INSECURE")):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES", value)
    exporter = exporters.build_otlp_exporter(kind, signal, parse({}, dict(os.environ)))
    exporter.shutdown()
    assert os.environ["OTEL_EXPORTER_OTLP_TIMEOUT"] == value


@pytest.mark.parametrize(
    ("environ", "ratio", "parent"),
    [
        ({"OTEL_TRACES_SAMPLER": "always_on"}, 1.0, False),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, 0.0, False),
        ({"OTEL_TRACES_SAMPLER": "TraceIdRatio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}, 0.25, False),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_on"}, 1.0, True),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, 0.0, True),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}, 0.5, True),
    ],
)
def test_samplers(environ, ratio, parent):
    config = parse({"SAMPLING": {"RATIO": 0.7}}, environ)
    assert (config.sampling.ratio, config.sampling.parent) == (ratio, parent)
    assert config.warnings == ()


@pytest.mark.parametrize("name", ["traceidratio", "parentbased_traceidratio"])
@pytest.mark.parametrize("argument", ["half", "1.5", "-0.1", "nan", "inf", "0,1", "10%"])
def test_a_sampler_argument_that_does_not_fit_counts_as_none(name, argument):
    """Specification, "OTEL_TRACES_SAMPLER_ARG": named, and the implementation behaves as if it were not set."""
    environ = {"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": argument}
    config = parse({"SAMPLING": {"RATIO": 0.7, "PARENT": name == "traceidratio"}}, environ)
    unset = parse({"SAMPLING": {"RATIO": 0.7}}, {"OTEL_TRACES_SAMPLER": name})
    assert config.sampling == unset.sampling
    assert (config.sampling.ratio, config.sampling.parent) == (1.0, name != "traceidratio")
    assert config.sources["SAMPLING.RATIO"] == "environment OTEL_TRACES_SAMPLER"
    assert len(config.warnings) == 1
    assert "OTEL_TRACES_SAMPLER_ARG is ignored" in config.warnings[0]


@pytest.mark.parametrize("argument", ["", "  "])
def test_a_sampler_without_an_argument_records_all(argument):
    config = parse(
        {"SAMPLING": {"RATIO": 0.7}}, {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": argument}
    )
    assert config.sampling.ratio == 1.0
    assert config.warnings == ()


@pytest.mark.parametrize("flag", [0, 1])
@pytest.mark.parametrize(("ratio", "recorded"), [(1.0, 1), (0.0, 0)])
def test_a_callers_flag_is_ignored_where_the_sampler_does_not_follow_it(
    flag, ratio, recorded, settings, client, otel_spans
):
    settings.OTEL = {"SAMPLING": {"RATIO": ratio, "PARENT": False, "LIVE": False}}
    client.get("/plain/", headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-0{flag}"})
    assert len(otel_spans) == recorded
    if recorded:
        # The trace goes on all the same.
        assert format(otel_spans[0].context.trace_id, "032x") == "a" * 32


@pytest.mark.parametrize(
    ("environ", "target"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "host:4317"}, "https://host:4317"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "host:4317", "OTEL_EXPORTER_OTLP_INSECURE": "true"}, "http://host:4317"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "host:4317", "OTEL_EXPORTER_OTLP_INSECURE": "false"}, "https://host:4317"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "host:4317", "OTEL_EXPORTER_OTLP_TRACES_INSECURE": "TRUE"}, "http://host:4317"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://host:4317"}, "http://host:4317"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://host:4317", "OTEL_EXPORTER_OTLP_INSECURE": "true"}, "https://host:4317"),
        ({}, "http://localhost:4317"),
    ],
)  # fmt: skip
def test_grpc_is_encrypted_unless_plain_text_is_asked_for(environ, target):
    from django_otel.export import exporters

    config = parse({}, {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", **environ})
    assert config.traces.exporters == ("otlp-grpc",)
    assert exporters.grpc_target(config.traces) == target
    assert exporters._grpc_arguments(config.traces)["insecure"] is target.startswith("http://")


def test_an_endpoint_without_scheme_needs_grpc():
    config = parse({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4317"})
    assert config.traces.endpoint is None
    assert config.traces.exporters == ()
    assert "no scheme" in config.warnings[0]
    assert "http://localhost:4317" in config.warnings[0]


def test_the_environments_protocol_stands_above_the_settings_exporters():
    config = parse({"TRACES": {"EXPORTERS": ["otlp", "console"]}}, {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    assert config.traces.exporters == ("otlp-grpc", "console")


def test_an_instance_id_is_kept_and_unique():
    from django_otel.export.resource import build_resource

    config = parse({}, {"OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=pod-7"})
    first, second = (build_resource(config).attributes["service.instance.id"] for _ in range(2))
    assert first.startswith("pod-7-")
    assert first != second


def test_limits_reach_spans_and_log_records():
    environ = {
        "OTEL_SPAN_EVENT_COUNT_LIMIT": "0",
        "OTEL_SPAN_LINK_COUNT_LIMIT": "1",
        "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": "2",
        "OTEL_ATTRIBUTE_COUNT_LIMIT": "5",
        "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT": "3",
        "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "9",
    }
    config = parse({}, environ)
    limits = config.traces.limits
    assert (limits.events, limits.links, limits.event_attributes, limits.attributes) == (0, 1, 2, 5)
    assert (limits.attribute_length, config.logs.limits.attributes, config.logs.limits.attribute_length) == (9, 3, 9)


def test_no_events_and_one_link(settings, otel_spans):
    from opentelemetry.trace import Link, SpanContext

    from django_otel import runtime

    settings.OTEL = {"TRACES": {"LIMITS": {"EVENTS": 0, "LINKS": 1, "LINK_ATTRIBUTES": 1}}}
    links = [Link(SpanContext(number, number, False), {"a": 1, "b": 2}) for number in (1, 2, 3)]
    with runtime.tracer().start_as_current_span("limited", links=links) as span:
        span.add_event("lost")
        span.add_link(SpanContext(4, 4, False))
    found = otel_spans.one("limited")
    assert (len(found.events), found.dropped_events) == (0, 1)
    assert (len(found.links), found.dropped_links) == (1, 3)


# Ours is a filter of the process, and pytest puts its own in its place.
@pytest.mark.filterwarnings("ignore:Log record attributes were dropped")
def test_a_log_record_has_no_more_attributes_than_its_limit(settings, otel_logs):
    import logging

    settings.OTEL = {"LOGS": {"EXPORTERS": ["memory"], "LIMITS": {"ATTRIBUTES": 2, "ATTRIBUTE_LENGTH": 4}}}
    logging.getLogger("project.limits").warning("many", extra={name * 6: name * 6 for name in "abcdef"})
    attributes = otel_logs[-1].log_record.attributes
    assert len(attributes) == 2
    assert all(len(value) <= 4 for value in attributes.values() if isinstance(value, str))
    # Beside these six there are the file, the function and the line.
    assert otel_logs[-1].dropped_attributes == 7


@pytest.mark.filterwarnings("ignore:Log record attributes were dropped")
def test_the_limit_holds_for_records_that_were_built_with_limits_of_their_own(settings, otel_logs):
    from opentelemetry._logs import LogRecord
    from opentelemetry.sdk import _logs

    settings.OTEL = {"LOGS": {"EXPORTERS": ["memory"], "LIMITS": {"ATTRIBUTES": 2}}}
    limits = (getattr(_logs, "LogRecordLimits", None) or _logs.LogLimits)()
    limits.max_attributes = limits.max_log_record_attributes = 4
    record = _logs.ReadWriteLogRecord(LogRecord(attributes=dict.fromkeys("abcdef", 1)), limits=limits)
    runtime.current().logs.find_provider().get_logger("shop").emit(record)
    assert (dict(otel_logs[-1].log_record.attributes), otel_logs[-1].dropped_attributes) == ({"e": 1, "f": 1}, 4)


@pytest.mark.parametrize(("raw", "pairs", "text"), [
    ("good=1,bad", {"good": "1"}, "the other one is sent"),
    ("bad", {}, "none is sent"),
    ("a=1,b=2,=3", {"a": "1", "b": "2"}, "the other 2 are sent"),
])  # fmt: skip
def test_a_bad_pair_of_headers_is_left_out_and_said_so(raw, pairs, text):
    config = parse({}, {"OTEL_EXPORTER_OTLP_HEADERS": raw})
    assert config.traces.headers == pairs
    assert text in config.warnings[0]
    assert "bad" not in config.warnings[0]


def test_a_time_out_of_some_milliseconds_is_likely_meant_in_seconds():
    config = parse({}, {"OTEL_EXPORTER_OTLP_TIMEOUT": "10"})
    assert config.traces.timeout_s == 0.01
    assert "For 10 seconds write 10000" in config.warnings[0]
    assert parse({}, {"OTEL_EXPORTER_OTLP_TIMEOUT": "100"}).warnings == ()


def test_an_interval_of_some_milliseconds_is_likely_meant_in_seconds():
    config = parse({}, {"OTEL_METRIC_EXPORT_INTERVAL": "60"})
    assert config.metrics.interval_s == 0.06
    assert "For 60 seconds write 60000" in config.warnings[0]
    assert parse({}, {"OTEL_METRIC_EXPORT_INTERVAL": "1000"}).warnings == ()


@pytest.mark.parametrize(
    ("variable", "value", "fitting"),
    [
        ("OTEL_PYTHON_REQUESTS_EXCLUDED_URLS", "health,(", "health,/static/.*"),
        ("OTEL_PYTHON_HTTPX_EXCLUDED_URLS", "[a-", "[a-z]+"),
        ("OTEL_SEMCONV_STABILITY_OPT_IN", "htpp", "http/dup, database,gen_ai_latest_experimental"),
        ("OTEL_PYTHON_CONTEXT", "no_such", "contextvars_context"),
        ("OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER", "no_such", ""),
        ("OTEL_PYTHON_EXPORTER_OTLP_GRPC_TRACES_CREDENTIAL_PROVIDER", "no_such", ""),
    ],
)
def test_what_the_package_that_reads_it_cannot_use_is_named(variable, value, fitting):
    [said] = parse({}, {variable: value}).warnings
    assert variable in said
    assert VARIABLES[variable].fits in said
    assert parse({}, {variable: fitting}).warnings == ()


def test_a_misspelt_variable_is_named_and_kubernetes_links_are_not():
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPONT": "http://x:1",
        "OTEL_COLLECTOR_SERVICE_HOST": "10.0.0.1",
        "OTEL_COLLECTOR_PORT_4318_TCP": "tcp://10.0.0.1:4318",
        "OTEL_JAVAAGENT_ENABLED": "true",
    }
    assert [text.split()[3] for text in parse({}, environ).warnings] == ["OTEL_EXPORTER_OTLP_ENDPONT"]


def test_known_methods(settings, client, otel_spans):
    environ = {"OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS": "GET,PURGE"}
    assert parse({}, environ).request.known_methods == ("GET", "PURGE")
    settings.OTEL = {"REQUEST": {"KNOWN_METHODS": ["PURGE"]}}
    client.generic("PURGE", "/plain/")
    client.get("/plain/")
    assert [span.attributes["http.request.method"] for span in otel_spans] == ["PURGE", "_OTHER"]


@pytest.mark.parametrize(("signal", "events", "records"), [("events", 1, 0), ("logs", 0, 1), ("logs/dup", 1, 1)])
def test_exceptions_are_events_or_log_records(signal, events, records, settings, otel_spans, otel_logs):
    from django_otel import span

    settings.OTEL = {"TRACES": {"EXCEPTION_SIGNAL": signal}, "LOGS": {"EXPORTERS": ["memory"]}}
    with pytest.raises(KeyError), span("failing"):
        raise KeyError("gone")
    found = otel_spans.one("failing")
    assert len(found.events) == events
    made = [item.log_record for item in otel_logs if item.log_record.event_name == "exception"]
    assert len(made) == records
    for record in made:
        assert record.attributes["exception.type"] == "KeyError"
        assert "gone" in record.attributes["exception.stacktrace"]
        assert (record.trace_id, record.span_id) == (found.context.trace_id, found.context.span_id)


@sizes.each(
    ("mapping", "secret"),
    [
        ({"TRACES": {"ENDPOINT": "ftp://user:hunter2@host/x"}}, "hunter2"),
        ({"TRACES": {"ENDPOINT": "user:hun@ter2@host:4318"}}, "ter2"),
        ({"TRACES": {"ENDPOINT": "ftp://host/v1?api_key=hunter2"}}, "hunter2"),
        ({"METRICS_VIEW": {"ALLOW": "s3cr3t0123456789abcdefXYZ"}}, "s3cr3t"),
        ({"METRICS_VIEW": {"TOKEN": {"a": "hunter2"}}}, "hunter2"),
        ({"TRACES": {"EXPORTERS": ["ghp_0123456789abcdefghijABCDEFGHIJ012345"]}}, "ghp_"),
        ({"RESOURCE": {"password": {"a": "hunter2"}}}, "hunter2"),
        ({"SAMPLING": {"password": "hunter2"}}, "hunter2"),
        ({"SAMPLING": [{"password": "hunter2"}]}, "hunter2"),
        ({"INSTRUMENT": [{"redis": {"password": "hunter2"}}]}, "hunter2"),
        ({"TRACE_URL": "https://user:hunter2@host/x"}, "hunter2"),
        ({"LOGS": "postgres://user:hunter2@db/x"}, "hunter2"),
        ({"TRACES": {"HEADERS": "authorization=Bearer hunter2"}}, "hunter2"),
    ],
)
def test_no_problem_shows_a_secret(mapping, secret):
    from django_otel.config.schema import ConfigError

    with pytest.raises(ConfigError) as caught:
        parse(mapping, {})
    assert secret not in str(caught.value)
    assert all(secret not in problem.hint for problem in caught.value.problems)


@sizes.each("variable", VARIABLES.values())
@sizes.each(
    "value",
    ["ftp://user:hunter2@host/x", "user:hunter2@host", "hunter2token0123456789", "a=1,Bearer hunter2token0123456789"],
)
@pytest.mark.heavy
def test_no_warning_shows_a_secret(variable, value):
    assert not [text for text in parse({}, {variable.name: value}).warnings if "hunter2" in text]


@pytest.mark.parametrize("compression", ["gzip", "deflate", "none"])
@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
def test_otlp_in_json(signal, compression):
    """As the specification's JSON encoding: hexadecimal ids, numbers for enumerations, names in camel case."""
    import http.server
    import threading
    import zlib

    from django_otel.export import exporters
    from django_otel.operations import doctor

    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            requests.append((self.path, dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json",
            "OTEL_EXPORTER_OTLP_COMPRESSION": compression,
            f"OTEL_{signal.upper()}_EXPORTER": "otlp",
        }
        config = parse({}, environ)
        assert getattr(config, signal).exporters == ("otlp-json",)
        if signal == "traces":
            exporter = exporters.build_direct_exporter("otlp-json", config, lambda span: span, lambda count: None)
        else:
            exporter = exporters.build_otlp_exporter("otlp-json", signal, config)
        batch = doctor.build_test_batch(signal, config)
        assert exporter.export(batch).name == "SUCCESS"
        exporter.shutdown()
    finally:
        server.shutdown()
        server.server_close()
    [(path, headers, body)] = requests
    assert path == f"/v1/{signal}"
    assert headers["Content-Type"] == "application/json"
    if compression != "none":
        assert headers["Content-Encoding"] == compression
        body = zlib.decompress(body, 47)
    content = json.loads(body)
    if signal == "traces":
        [span] = content["resourceSpans"][0]["scopeSpans"][0]["spans"]
        assert span["traceId"] == format(batch[0].context.trace_id, "032x")
        assert span["spanId"] == format(batch[0].context.span_id, "016x")
        assert span["kind"] == 1
    elif signal == "metrics":
        [metric] = content["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
        assert metric["name"] == "django_otel.doctor.tests"
    else:
        [record] = content["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
        assert record["severityNumber"] == 9


HUGE = 10**20


def test_a_number_no_container_or_timer_takes_is_the_largest_that_one_does():
    """None of them may raise where it is used, which is in a request or in a thread of ours."""
    config = parse({"TRACES": {"TIMEOUT_S": 1e300, "BATCH": {"DELAY_S": HUGE, "QUEUE_SIZE": HUGE, "BATCH_SIZE": HUGE},
                               "LIMITS": {"EVENTS": HUGE, "LINKS": HUGE, "ATTRIBUTES": HUGE}},
                    "SAMPLING": {"MAX_PER_SECOND": 10**400, "TAIL_BUFFER_SPANS": HUGE}}, {})  # fmt: skip
    for size in (config.traces.batch.queue_size, config.traces.limits.events, config.sampling.tail_buffer_spans):
        collections.deque(maxlen=size)
    for seconds in (config.traces.timeout_s, config.traces.batch.delay_s):
        with socket.socket() as one:
            one.settimeout(seconds)
    assert Limiter(config.sampling.max_per_second, 1).acquire() == 1


def test_a_huge_limit_is_no_limit():
    limits = parse({}, {name: str(HUGE) for name in VARIABLES if name.endswith("_LIMIT")}).traces.limits
    for name in ("events", "links", "attributes"):
        collections.deque(maxlen=getattr(limits, name))


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("x=a%0d%0ab,y=1", {"y": "1"}),
        ("api-key=hunter2\udce9,y=1", {"y": "1"}),
        ("x=\u65e5\u672c,y=1", {"y": "1"}),
        ("a b=hunter2,y=1", {"y": "1"}),
        ("hunter2,y=1", {"y": "1"}),
        ("hunter2", {}),
        ("x=caf%C3%A9", {}),
    ],
)
@pytest.mark.parametrize("kind", ["otlp", "otlp-grpc"])
def test_an_entry_that_is_no_header_is_neither_sent_nor_logged(value, sent, kind, monkeypatch, caplog):
    from django_otel.export import exporters

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", value)
    config = parse({}, dict(os.environ))
    exporter = exporters.build_otlp_exporter(kind, "traces", config)
    stock = exporter._inner
    # Before 1.45 the exporter over HTTP has them itself.
    headers = dict((stock if kind == "otlp-grpc" else getattr(stock, "_client", stock))._headers)
    exporter.shutdown()
    assert {name: headers[name] for name in headers if name in ("x", "y", "api-key", "a b")} == sent
    assert dict(config.traces.headers) == sent
    assert [text for text in config.warnings if "OTEL_EXPORTER_OTLP_HEADERS" in text]
    assert "hunter2" not in caplog.text + " ".join(config.warnings)
    assert os.environ["OTEL_EXPORTER_OTLP_HEADERS"] == value


@pytest.mark.parametrize(
    "headers", [{"api-key": "hunter2\n"}, {"api key": "hunter2"}, {"x": "hunter2 \u65e5"}, {"": "1"}]
)
def test_a_header_that_cannot_be_sent_is_a_fault_of_the_settings(headers):
    with pytest.raises(ConfigError) as caught:
        parse({"TRACES": {"HEADERS": headers}}, {})
    (problem,) = caught.value.problems
    assert problem.id == "django_otel.E002"
    assert "hunter2" not in problem.message + problem.hint


@pytest.mark.parametrize("part", ["CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"])
@pytest.mark.parametrize("signal", ["", "LOGS_"])
def test_a_certificate_that_does_not_exist_is_named(part, signal, tmp_path):
    name = f"OTEL_EXPORTER_OTLP_{signal}{part}"
    (warning,) = parse({}, {name: str(tmp_path / "gone.pem")}).warnings
    assert name in warning
    (tmp_path / "here.pem").write_text(PEM)
    environ = {"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(tmp_path / "here.pem"), name: str(tmp_path / "here.pem")}
    assert parse({}, environ).warnings == ()


@pytest.mark.parametrize("part", ["CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"])
@pytest.mark.parametrize("content", ["", "127.0.0.1 localhost", "-----BEGIN PUBLIC KEY-----", "\x00" * 100])
def test_a_file_that_is_none_of_certificates_is_named(part, content, tmp_path):
    name = f"OTEL_EXPORTER_OTLP_TRACES_{part}"
    (tmp_path / "a.pem").write_text(content)
    (warning,) = parse({}, {name: str(tmp_path / "a.pem")}).warnings
    assert name in warning
    assert "exports over TLS fail" in warning


def test_a_key_of_a_client_without_its_certificate_is_named(tmp_path):
    (tmp_path / "a.pem").write_text(PEM)
    (warning,) = parse({}, {"OTEL_EXPORTER_OTLP_CLIENT_KEY": str(tmp_path / "a.pem")}).warnings
    assert warning.endswith("has no effect without OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE.")


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://host:4318?tenant=a", "http://host:4318/v1/traces?tenant=a"),
        ("https://host/otlp/?tenant=a/b&x=1", "https://host/otlp/v1/traces?tenant=a/b&x=1"),
        ("https://host/v1/traces?tenant=a", None),
    ],
)
def test_a_query_stays_behind_the_path_of_a_signal(endpoint, url):
    assert parse({"TRACES": {"ENDPOINT": endpoint}}, {}).traces.endpoint == (url or endpoint)
    if url is not None:
        assert parse({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}).traces.endpoint == url
    target = grpc_target(parse({"TRACES": {"ENDPOINT": endpoint}}, {}).traces)
    assert target in ("http://host:4318", "https://host")
