"""The settings table: rules, sources, precedence, problems."""

import re
from pathlib import Path

import pytest

from django_otel.config.parse import parse
from django_otel.config.schema import SECRET_KEYS, Config, ConfigError, walk
from django_otel.export.exporters import grpc_target
from tests import sizes


def problems_of(mapping, environ=None):
    with pytest.raises(ConfigError) as caught:
        parse(mapping, environ or {})
    return caught.value.problems


@sizes.each(
    ("mapping", "problem_id", "text"),
    [
        ({"NO_SUCH": 1}, "E001", "OTEL has no key 'NO_SUCH'."),
        ({"SERVICENAME": "x"}, "E001", "Did you mean OTEL[\"SERVICE_NAME\"]?"),
        ({"SAMPLING": {"SAMPLE_RATE": 1}}, "E001",
         'OTEL["SAMPLING"] has no key \'SAMPLE_RATE\'. Did you mean OTEL["SAMPLING"]["RATIO"]?'),
        ({"RATIO": 1}, "E001", 'Did you mean OTEL["SAMPLING"]["RATIO"]?'),
        ({1: 2}, "E001", "OTEL has no key 1."),
        ({"SAMPLING": {"RATIO": 25}}, "E002",
         'OTEL["SAMPLING"]["RATIO"] is 25; expected a number from 0.0 to 1.0. For 25 % write 0.25.'),
        ({"SAMPLING": {"RATIO": True}}, "E002", "expected a number"),
        ({"SAMPLING": {"RATIO": float("nan")}}, "E002", "expected a number"),
        ({"SAMPLING": 1}, "E002", 'OTEL["SAMPLING"] is 1; expected a dict with RATIO, RULES, MAX_PER_SECOND, '),
        ({"SAMPLING": {"RULES": {"path": "/a", "ratio": 1}}}, "E005", "Write a list, even for one rule."),
        ({"SAMPLING": {"RULES": [{"path": "/a", "ratio": 1}, {"path": "b", "ratio": 1}]}}, "E005",
         "Look at rule 2: The path of a sampling rule is 'b' and could never match"),
        ({"SAMPLING": {"RULES": [{"path": "/a", "ratio": 50}]}}, "E005", "For 50 % write 0.5."),
        ({"SAMPLING": {"RULES": [{"path": "/a"}]}}, "E005", "has no ratio"),
        ({"SAMPLING": {"RULES": [{"pth": "/a", "ratio": 1}]}}, "E005", "has the key 'pth'"),
        ({"SAMPLING": {"RULES": ["/a"]}}, "E005", "Look at rule 1"),
        ({"SAMPLING": {"MAX_PER_SECOND": 0}}, "E002", "above 0"),
        ({"ENABLED": "yes"}, "E002", "expected True or False"),
        ({"TEMPLATES": {"MIN": 1}}, "E001", "There is no key 'MIN'."),
        ({"TEMPLATES": {"MIN_S": -1}}, "E002", "a number of at least 0"),
        ({"TEMPLATES": 0.1}, "E002", 'True, False or a dict such as {"MIN_S": 0.001}'),
        ({"MIDDLEWARE_SPANS": 1}, "E002", "expected True or False"),
        ({"SERVICE_NAME": ""}, "E002", "None or a non-empty string"),
        ({"TRACES": {"EXPORTERS": "otlp"}}, "E002", "Write ['otlp']."),
        ({"TRACES": {"EXPORTERS": ["oltp"]}}, "E002", "Did you mean 'otlp'?"),
        ({"TRACES": {"EXPORTERS": ["1bad.path"]}}, "E003", "dotted import path"),
        ({"TRACES": {"ENDPOINT": "localhost:4317"}}, "E002", "Write 'http://localhost:4317'."),
        ({"TRACES": {"ENDPOINT": "ftp://x"}}, "E002", "It must begin with http://"),
        ({"TRACES": {"HEADERS": {"authorization": ["x"]}}}, "E002", 'The value of "authorization" is a list.'),
        ({"TRACES": {"BATCH": {"BATCH_SIZE": 100, "QUEUE_SIZE": 10}}}, "E002",
         "expected at most QUEUE_SIZE, which is 10"),
        ({"TRACES": {"LIMITS": {"ATTRIBUTES": 0}}}, "E002", "a whole number of at least 1"),
        ({"TRACES": {"COMPRESSION": "zip"}}, "E002", "Did you mean 'gzip'?"),
        ({"METRICS": {"BUCKETS": {"x": [2, 1]}}}, "E002", "each list must ascend"),
        ({"METRICS": {"EXPORTERS": ["console", "memory"]}}, "E002", "'prometheus-registry'"),
        ({"LOGS": {"LEVEL": "LOUD"}}, "E002", "'WARNING'"),
        ({"PROPAGATION": {"TRUST_INBOUND": ["10.0.0.0/99"]}}, "E002", "is not a network"),
        ({"PROPAGATION": {"FORMATS": ["b4"]}}, "E002", "each one of 'tracecontext'"),
        ({"REQUEST": {"USER": "name"}}, "E002", "'hash'"),
        ({"REQUEST": {"EXCLUDE": "/x"}}, "E002", "Write a list, even for one entry."),
        ({"REQUEST": {"ENRICH": "nodots"}}, "E003", "dotted import path"),
        ({"DATABASE": {"STATEMENT": "full"}}, "E002", "'parameterised'"),
        ({"INSTRUMENT": ["django"]}, "E002", '"instrumentor"'),
        ({"INSTRUMENT": "redis"}, "E002", "a list of instrumentor names"),
        ({"BUSINESS": {"Order": {}}}, "E002", "is not a model label"),
        ({"BUSINESS": {"shop.Order": {"creatd": "x"}}}, "E001", "Did you mean 'created'?"),
        ({"BUSINESS": {"shop.Order": {"transitions": {"status": "paid"}}}}, "E002", "'transitions'"),
        ({"CONSOLE": {"PATH": "traces"}}, "E002", "None or an absolute path on a disk"),
        ({"CONSOLE": {"PATH": "/dev/shm/traces"}}, "E002", "/dev/shm is memory, and small"),
        ({"CONSOLE": {"MAX_TRACES": 0}}, "E002", "a whole number of at least 1"),
        ({"CONSOLE": {"ENABLED": "DEBUG"}}, "E002", "None or True or False"),
        ({"METRICS_VIEW": {"ALLOW": "everyone"}}, "E002", "'staff'"),
        ({"METRICS_VIEW": {"ALLOW": "token"}}, "E002", "is not set"),
        ({"TRACE_URL": "http://x/"}, "E002", "{trace_id}"),
        ({"TRACE_URL": "http://[x/{trace_id}"}, "E002", "Its host cannot be read."),
        ({"TRACES": {"ENDPOINT": "http://[::1"}}, "E002", "Its host cannot be read."),
        ({"LOGS": {"ENDPOINT": "http://[x]:1"}}, "E002", "Its host cannot be read."),
        ({"TRACES": {"ENDPOINT": "http://collector:4318\n"}}, "E002", "a space or a line end"),
        ({"TRACES": {"ENDPOINT": "collector:70000"}}, "E002", "Its port is not a number"),
        ({"METRICS": {"BUCKETS": {"a": [1, 10**400]}}}, "E002", "without repetition or infinity"),
        ([], "E002", "OTEL is a list; expected a dict."),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place_what_was_found_and_what_fits(mapping, problem_id, text):
    found = problems_of(mapping)
    assert len(found) == 1
    assert found[0].id == f"django_otel.{problem_id}"
    assert text in found[0].message


ODD = (
    None, True, -1, float("nan"), 10**400, 10**5000, -(10**5000), "", "\x00", "\ud800", "http://[", "http://[{trace_id}",
    b"x",
    [None], [10**5000], [[]], [{}], {1: 2}, {"a": None}, {"a": [10**400]}, {"a.b": {1: 2}}, object(), len,
    [{"path": "x", "ratio": 10**400}], [10**50],
)  # fmt: skip


def test_no_value_of_any_key_raises_something_else_than_a_fault_of_the_configuration():
    wrong = []
    for dotted, _ in walk(Config):
        for value in ODD:
            mapping = value
            for part in reversed(dotted.split(".")):
                mapping = {part: mapping}
            try:
                parse(mapping, {})
            except ConfigError as error:
                assert "\x1b" not in str(error)
            except Exception as error:
                wrong.append((dotted, type(value), repr(error)[:100]))
    assert wrong == []


def test_grpc_takes_an_address_in_brackets():
    config = parse({"TRACES": {"EXPORTERS": ["otlp-grpc"], "ENDPOINT": "[::1]:4317"}}, {})
    assert grpc_target(config.traces) == "https://[::1]:4317"


def test_every_mistake_is_told_at_once():
    found = problems_of({"A": 1, "SAMPLING": {"RATIO": 2, "B": 1}, "ENABLED": 3})
    assert len(found) == 4


def test_a_secret_is_never_shown():
    for mapping in (
        {"METRICS_VIEW": {"TOKEN": 12345678}},
        {"TRACES": {"HEADERS": "authorization=hunter2"}},
        {"TRACES": {"ENDPOINT": "ftp://user:hunter2@host/"}},
    ):
        text = problems_of(mapping)[0].message
        assert "hunter2" not in text
        assert "12345678" not in text


def test_the_defaults_are_those_of_the_table():
    config = parse({}, {}, "shop")
    assert config.enabled
    assert config.service_name == "shop"
    assert config.traces.exporters == ()
    assert config.metrics.exporters == ("prometheus",)
    assert config.sampling.ratio == 1.0
    assert list(config.instrument) == ["psycopg2", "redis", "requests"]
    assert set(config.sources.values()) == {"default", "default (auto)"}


def test_every_value_has_a_source_and_a_meaning():
    config = parse({}, {})
    assert set(config.flat()) == set(config.sources)
    assert all(entry.metadata["doc"] for _, entry in walk(Config))
    assert set(config.flat()) >= SECRET_KEYS


@sizes.each(
    ("environ", "dotted", "value"),
    [
        ({"OTEL_SDK_DISABLED": "true"}, "ENABLED", False),
        ({"OTEL_SERVICE_NAME": "env"}, "SERVICE_NAME", "env"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=r,service.version=2"}, "SERVICE_VERSION", "2"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=prod"}, "ENVIRONMENT", "prod"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "team=a%20b"}, "RESOURCE", {"a": 1, "team": "a b"}),
        ({"OTEL_TRACES_EXPORTER": "otlp,console"}, "TRACES.EXPORTERS", ("otlp", "console")),
        ({"OTEL_TRACES_EXPORTER": "none"}, "TRACES.EXPORTERS", ()),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "TRACES.EXPORTERS", ("otlp-grpc",)),
        ({"OTEL_METRICS_EXPORTER": "otlp,prometheus"}, "METRICS.EXPORTERS", ("otlp", "prometheus")),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "TRACES.ENDPOINT", "http://c:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, "LOGS.ENDPOINT", "http://c:4318/v1/logs"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/x"}, "TRACES.ENDPOINT", "http://c:4318/x"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "a=1,b=x%3Dy"}, "TRACES.HEADERS", {"a": "1", "b": "x=y"}),
        ({"OTEL_TRACES_EXPORTER": "OTLP, Console"}, "TRACES.EXPORTERS", ("otlp", "console")),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "2500"}, "METRICS.TIMEOUT_S", 2.5),
        ({"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "0"}, "TRACES.TIMEOUT_S", 2_000_000.0),
        ({"OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "none"}, "TRACES.COMPRESSION", "none"),
        ({"OTEL_BSP_SCHEDULE_DELAY": "250"}, "TRACES.BATCH.DELAY_S", 0.25),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "7"}, "TRACES.LIMITS.ATTRIBUTES", 7),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "1000"}, "METRICS.INTERVAL_S", 1.0),
        ({"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta"}, "METRICS.TEMPORALITY", "delta"),
        ({"OTEL_METRICS_EXEMPLAR_FILTER": "always_off"}, "METRICS.EXEMPLARS", False),
        ({"OTEL_PROPAGATORS": "tracecontext,b3"}, "PROPAGATION.FORMATS", ("tracecontext", "b3")),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, "SAMPLING.RATIO", 0.0),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}, "SAMPLING.RATIO", 0.1),
    ],
)
def test_the_environment_stands_above_the_settings(environ, dotted, value):
    settings = {
        "SERVICE_NAME": "settings",
        "RESOURCE": {"a": 1},
        "SAMPLING": {"RATIO": 0.5},
        "TRACES": {"ENDPOINT": "http://settings:1", "EXPORTERS": ["console"], "COMPRESSION": "deflate"},
    }
    config = parse(settings, environ)
    assert config.flat()[dotted] == value
    assert config.sources[dotted].startswith("environment OTEL_")


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_TRACES_SAMPLER": "coin"},
        {"OTEL_BSP_SCHEDULE_DELAY": "soon"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "nowhere"},
        {"OTEL_PROPAGATORS": "carrier-pigeon"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "hunter2"},
    ],
)
def test_a_faulty_variable_is_ignored_with_a_warning(environ):
    config = parse({"SAMPLING": {"RATIO": 0.5}}, environ)
    assert config.sampling.ratio == 0.5
    assert config.warnings
    assert "hunter2" not in " ".join(config.warnings)


@pytest.mark.parametrize(
    ("endpoint", "traces", "metrics"),
    [
        ("http://c:4318", "http://c:4318/v1/traces", "http://c:4318/v1/metrics"),
        ("https://x.io/otlp/", "https://x.io/otlp/v1/traces", "https://x.io/otlp/v1/metrics"),
        ("http://c:4318/v1/traces", "http://c:4318/v1/traces", "http://c:4318/v1/metrics"),
        ("https://agent/api/v0.2/traces", "https://agent/api/v0.2/traces", None),
    ],
)
def test_an_endpoint_may_be_a_base_url_or_the_signals_own(endpoint, traces, metrics):
    config = parse({"TRACES": {"ENDPOINT": endpoint, "HEADERS": {"k": "v"}}}, {})
    assert config.traces.exporters == ("otlp",)
    assert config.traces.endpoint == traces
    assert config.metrics.endpoint == metrics
    assert config.metrics.headers == ({"k": "v"} if metrics else {})


def test_none_among_exporters_means_none():
    assert parse({"TRACES": {"EXPORTERS": ["none"], "ENDPOINT": "http://c:1"}}, {}).traces.exporters == ()


def test_the_lower_packages_import_no_django():
    import subprocess
    import sys

    packages = (
        "base", "metrics", "redaction", "sampling", "config", "tracing", "multiprocess", "export", "tracestore",
        "requests",
    )  # fmt: skip
    modules = [
        ".".join(path.with_suffix("").parts)
        for package in packages
        for path in Path("django_otel", package).glob("*.py")
        if path.stem != "__init__"
    ]
    assert len(modules) > 40
    code = (
        "import sys, types, importlib\n"
        # The package's own __init__ is the public face; the lower packages must do without it.
        "package = types.ModuleType('django_otel'); package.__path__ = ['django_otel']\n"
        "sys.modules['django_otel'] = package\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'django': raise ImportError('a lower package imports Django: ' + name)\n"
        "sys.meta_path.insert(0, Block())\n"
        f"[importlib.import_module(name) for name in {modules!r}]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_the_parser_reads_the_environment():
    found = []
    for path in Path("django_otel").rglob("*.py"):
        text = path.read_text()
        if re.search(r"os\.environ|getenv|environ\[", text):
            found.append(path.name)
    # sdk_environment hides what the packages cannot read for a moment, and __init__ asks whether it is needed; conf
    # hands the environment to the parser and names the service by DJANGO_SETTINGS_MODULE; instrumentors opts
    # in to the stable conventions, the one thing that is written; the command, its variables and the checks show what
    # was read; expressions knows how others read it.
    allowed = {"environment.py", "parse.py", "conf.py", "instrumentors.py", "sdk_environment.py", "__init__.py"}
    assert set(found) <= {*allowed, "doctor.py", "checks.py", "otel.py", "variables.py", "expressions.py"}, found
