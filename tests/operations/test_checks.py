"""System checks: each id is reachable, says what to do, never tells a secret; a default project hears nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.core import checks as django_checks
from django.core.checks import run_checks
from django.db import connection
from opentelemetry.instrumentation.django import DjangoInstrumentor

from django_otel import runtime
from django_otel.operations import checks
from tests.services import ROOT, run_django, server_env

SECRET = "hunter2-very-secret"


def find(messages, check_id):
    found = [message for message in messages if message.id == f"django_otel.{check_id}"]
    assert found, [message.id for message in messages]
    return found[0]


def run_all(**kwargs):
    """Everything that `check --deploy --database default` would say."""
    return [
        *checks.check_configuration(),
        *checks.check_project(),
        *checks.check_deployment(),
        *checks.check_live_table(databases=["default"]),
    ]


BAD = [
    ("E001", {"SERVICENAME": "x"}, "OTEL has no key 'SERVICENAME'. Did you mean OTEL[\"SERVICE_NAME\"]?"),
    ("E001", {"SAMPLING": {"SAMPLE_RATE": 0.1}}, 'Did you mean OTEL["SAMPLING"]["RATIO"]?'),
    ("E001", {"SMS": True}, "OTEL has no key 'SMS'."),
    ("E002", {"SAMPLING": {"RATIO": 25}}, "expected a number from 0.0 to 1.0. For 25 % write 0.25."),
    ("E002", {"TRACES": {"HEADERS": {"authorization": [SECRET]}}}, 'The value of "authorization" is a list.'),
    ("E002", {"METRICS_VIEW": {"TOKEN": [SECRET]}}, 'OTEL["METRICS_VIEW"]["TOKEN"] is a list'),
    ("E002", {"INSTRUMENT": ["django"]}, 'OTEL["REQUEST"]["SPANS"] = "instrumentor"'),
    ("E002", ["SERVICE_NAME"], "OTEL is a list; expected a dict."),
    ("E003", {"REQUEST": {"ENRICH": "tests.nowhere.enrich"}}, "No module named 'tests.nowhere'"),
    ("E003", {"SCRUB": {"CALLBACK": "tests.settings.NOTHING"}}, "OTEL"),
    ("E003", {"TRACES": {"EXPORTERS": ["tests.nowhere.Exporter"]}}, "'tests.nowhere.Exporter'"),
    ("E003", {"METRICS_VIEW": {"ALLOW": "tests.nowhere.allow"}}, 'OTEL["METRICS_VIEW"]["ALLOW"] names'),
    ("E005", {"SAMPLING": {"RULES": [{"path": "checkout/*", "ratio": 1}]}}, "such as '/checkout/*'"),
    ("E004", {"PROPAGATION": {"FORMATS": ["jaeger"]}}, "opentelemetry-propagator-jaeger is not installed"),
]


@pytest.mark.parametrize(("check_id", "otel", "text"), BAD)
def test_every_error_is_reached_by_a_bad_dict(check_id, otel, text, settings):
    """Id and text; an Error, so that `check` refuses."""
    settings.OTEL = otel
    message = find(checks.check_configuration(), check_id)
    assert text in message.msg
    assert isinstance(message, django_checks.Error)
    assert SECRET not in str(message)


def test_missing_exporter_packages_are_named(settings, monkeypatch):
    """E004 says what to install, for gRPC by the name of our extra."""
    monkeypatch.setattr(checks, "package_version", lambda name: "")
    settings.OTEL = {
        "TRACES": {"EXPORTERS": ["otlp-grpc", "otlp"], "ENDPOINT": "http://127.0.0.1:4317"},
        "METRICS": {"INCLUDE_REGISTRY": True},
    }
    messages = [message for message in checks.check_configuration() if message.id == "django_otel.E004"]
    assert [message.hint for message in messages] == [
        "Run: pip install opentelemetry-exporter-otlp-proto-http",
        'Run: pip install "django-otel-kit[grpc]"',
        "Run: pip install prometheus-client",
    ]


WARNINGS = [
    ("W004", {"METRICS_VIEW": {"ALLOW": "all"}}, "anyone who can reach the site can read /metrics"),
    ("W006", {"TRACES": {"ENDPOINT": "http://collector:4318"}}, "is 1.0"),
    ("W010", {"REQUEST": {"REQUEST_HEADERS": ["x-tenant", "Authorization"]}}, "'Authorization'"),
    ("W010", {"REQUEST": {"RESPONSE_HEADERS": ["Set-Cookie"]}}, "'Set-Cookie'"),
    ("W012", {"INSTRUMENT": ["no-such-thing"]}, "opentelemetry-instrumentation-no-such-thing"),
]


@pytest.mark.parametrize(("check_id", "otel", "text"), WARNINGS)
def test_every_warning_of_a_setting_is_reached(check_id, otel, text, settings):
    """Id and text; a Warning, so that nothing refuses to run."""
    settings.OTEL = otel
    message = find(run_all(), check_id)
    assert text in message.msg
    assert isinstance(message, django_checks.Warning)
    assert message.hint


def test_a_shared_folder_that_cannot_be_used(settings, tmp_path):
    """W005 with the reason; only where numbers are to be shared, and nothing is made by asking."""
    missing = tmp_path / "missing" / "deeper"
    settings.OTEL = {"METRICS": {"SHARED_DIR": str(missing)}}
    message = find(checks.check_project(), "W005")
    assert isinstance(message, django_checks.Warning)
    assert f"{missing.parent} is not a folder" in message.msg
    assert "SHARED_DIR" in message.hint
    assert not missing.parent.exists()
    settings.OTEL = {"METRICS": {"SHARED_DIR": str(missing), "EXPORTERS": ["otlp"], "ENDPOINT": "http://127.0.0.1:1"}}
    assert not [found for found in checks.check_project() if found.id == "django_otel.W005"]
    for usable in (tmp_path, tmp_path / "made by the first process"):
        settings.OTEL = {"METRICS": {"SHARED_DIR": str(usable)}}
        assert not [found for found in checks.check_project() if found.id == "django_otel.W005"]
    settings.OTEL = {"METRICS": {"SHARED_DIR": str(tmp_path)}}
    own = tmp_path / f"django-otel-{os.geteuid()}"
    own.mkdir(mode=0o777)
    own.chmod(0o777)
    assert "has mode 777; expected 700" in find(checks.check_project(), "W005").msg
    own.rmdir()
    own.symlink_to(tmp_path)
    assert "is a link or not a folder" in find(checks.check_project(), "W005").msg
    own.unlink()
    own.mkdir(mode=0o500)
    if os.geteuid():
        # Root may write anywhere.
        assert "is not writable" in find(checks.check_project(), "W005").msg


def test_missing_middleware(settings):
    """W001."""
    settings.MIDDLEWARE = [path for path in settings.MIDDLEWARE if "django_otel" not in path]
    message = find(checks.check_project(), "W001")
    assert "OTelMiddleware is not in MIDDLEWARE" in message.msg
    assert "django_otel.middleware.OTelMiddleware" in message.hint


def test_middleware_not_first(settings):
    """W002 says how many are before it."""
    own, *others = settings.MIDDLEWARE
    settings.MIDDLEWARE = [*others[:4], own, *others[4:]]
    message = find(checks.check_project(), "W002")
    assert message.msg == (
        "OTelMiddleware is at position 4 of MIDDLEWARE; time spent in the 4 before it is not measured."
    )


def test_the_official_instrumentor_before_ours_is_no_wrong_place(settings):
    """It puts itself first, and ours joins its span."""
    settings.OTEL = {"REQUEST": {"SPANS": "instrumentor"}}
    assert settings.MIDDLEWARE[1] == checks.MIDDLEWARE
    assert checks.check_project() == []


def test_middleware_twice(settings):
    """W003: each request would be counted twice."""
    settings.MIDDLEWARE = [checks.MIDDLEWARE, *settings.MIDDLEWARE]
    assert "is in MIDDLEWARE 2 times" in find(checks.check_project(), "W003").msg


def test_django_instrumented_by_another_tool(settings):
    """W003: their metrics double ours."""
    settings.MIDDLEWARE = list(settings.MIDDLEWARE)
    DjangoInstrumentor().instrument()
    try:
        assert "Another tool has enabled the official DjangoInstrumentor" in find(checks.check_project(), "W003").msg
    finally:
        DjangoInstrumentor().uninstrument()


def test_environment_overrides_a_setting(settings, monkeypatch):
    """W007 names the variable, and shows neither value; equal values are no conflict."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization={SECRET}")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    settings.OTEL = {"TRACES": {"HEADERS": {"authorization": "other-" + SECRET}}, "SERVICE_NAME": "shop"}
    messages = checks.check_project()
    assert [message.id for message in messages] == ["django_otel.W007"]
    assert messages[0].msg == (
        'OTEL["TRACES"]["HEADERS"] is overridden by the environment variable OTEL_EXPORTER_OTLP_HEADERS.'
    )
    assert SECRET not in str(messages)


def test_ignored_environment_variable(settings, monkeypatch):
    """W013: the specification wants a warning, not an error."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "soon")
    settings.OTEL = {"SERVICE_NAME": "shop"}
    assert "OTEL_BSP_SCHEDULE_DELAY is ignored" in find(checks.check_project(), "W013").msg


@pytest.mark.django_db(transaction=True)
def test_live_sampling_without_its_table(settings, monkeypatch):
    """W008 asks the database, so only where databases are checked; not while migrate makes the table."""
    from django_otel.models import SamplingPolicy

    settings.OTEL = {"SERVICE_NAME": "shop"}
    assert checks.check_live_table(databases=["default"]) == []
    with connection.schema_editor() as editor:
        editor.delete_model(SamplingPolicy)
    try:
        message = find(checks.check_live_table(databases=["default"]), "W008")
        assert "table of the sampling policy is missing" in message.msg
        assert "migrate django_otel" in message.hint
        assert checks.check_live_table(databases=None) == []
        monkeypatch.setattr(sys, "argv", ["manage.py", "migrate"])
        assert checks.check_live_table(databases=["default"]) == []
        monkeypatch.undo()
        settings.OTEL = {"SAMPLING": {"LIVE": False}}
        assert checks.check_live_table(databases=["default"]) == []
    finally:
        with connection.schema_editor() as editor:
            editor.create_model(SamplingPolicy)


def manage(*arguments, otel=None, **env):
    """`manage.py` in a process of its own: code, and all it printed."""
    done = run_django(server_env(otel, **env), *arguments, check=False)
    return done.returncode, done.stdout + done.stderr


def test_driver_instrumented_is_not_the_driver_in_use():
    """W009: Django prefers psycopg 3 when both are there, so spans of psycopg2 would be waited for in vain."""
    url = "postgresql://shop@127.0.0.1:9/shop"
    code, text = manage("check", otel={"INSTRUMENT": ["psycopg2"]}, TEST_DATABASE_URL=url)
    assert code == 0
    assert "(django_otel.W009)" in text
    assert """names "psycopg2", but Django connects to PostgreSQL (database 'default') with psycopg 3.""" in text
    assert "W009" not in manage("check", otel={"INSTRUMENT": ["psycopg"]}, TEST_DATABASE_URL=url)[1]
    assert "W009" not in manage("check", otel={}, TEST_DATABASE_URL=url)[1], "the default was not asked for"


@pytest.mark.parametrize("name", ["TracerProvider", "ProxyTracerProvider"])
def test_foreign_provider_takes_no_live_sampling(name):
    """W011: another tool's provider has its own sampler. Logfire's is named like the placeholder of the API."""
    code = (
        "from opentelemetry import trace; from opentelemetry.sdk.trace import TracerProvider;"
        f"trace.set_tracer_provider(type({name!r}, (TracerProvider,), {{'__module__': 'tool'}})());"
        "import django; django.setup();"
        "from django_otel.operations import checks;"
        "print([m.id + ' ' + m.msg for m in checks.check_project()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=server_env({}), capture_output=True, text=True, timeout=60
    )
    assert "django_otel.W011 Sampling should follow the admin, but another tool's tracer provider" in done.stdout


def test_a_default_project_hears_nothing():
    """`check` and the first `migrate` print no warning, and neither does the log."""
    code, text = manage("check", otel={"SERVICE_NAME": "shop"})
    assert (code, text) == (0, "System check identified no issues (0 silenced).\n")
    code, text = manage("migrate", "-v", "0", otel={"SERVICE_NAME": "shop"}, TEST_SQLITE=":memory:")
    assert (code, text) == (0, "")


def test_a_default_project_hears_of_the_ratio_alone_when_deploying():
    """What is fine while developing is said by `check --deploy`, where something is exported."""
    _, text = manage("check", "--deploy", otel={"SERVICE_NAME": "shop"})
    assert "django_otel." not in text
    _, text = manage("check", "--deploy", otel={"TRACES": {"ENDPOINT": "http://collector:4318"}})
    assert sorted(set(re.findall(r"django_otel\.\w+", text))) == ["django_otel.W006"]


def test_otlp_over_http_to_the_port_of_grpc(settings):
    """Said once for one receiver."""
    settings.OTEL = {"TRACES": {"ENDPOINT": "http://collector:4317"}, "LOGS": {"EXPORTERS": ["otlp"]}}
    [message] = [message for message in run_all() if message.id == "django_otel.W014"]
    assert "port 4317 of collector" in message.msg
    settings.OTEL = {"TRACES": {"ENDPOINT": "http://collector:4317", "EXPORTERS": ["otlp-grpc"]}}
    assert "django_otel.W014" not in {message.id for message in run_all()}


@pytest.mark.parametrize("name", ["a folder", "a file.sqlite3"])
def test_a_console_path_that_cannot_be_written(settings, tmp_path, name):
    """A file stands where a folder would have to be."""
    (tmp_path / "in the way").touch()
    settings.OTEL = {"CONSOLE": {"ENABLED": True, "PATH": str(tmp_path / "in the way" / name)}}
    [message] = [message for message in run_all() if message.id == "django_otel.W015"]
    assert "in the way is not a folder" in message.msg
    settings.OTEL = {"CONSOLE": {"ENABLED": True, "PATH": str(tmp_path / "there" / name)}}
    assert "django_otel.W015" not in {message.id for message in run_all()}
    assert not (tmp_path / "there").exists()


def test_none_is_no_dict(settings):
    """It is as good as nothing, and said."""
    settings.OTEL = None
    assert "django_otel.W016" in {message.id for message in run_all()}


@pytest.mark.parametrize("command", [["check"], ["migrate", "-v", "0"], ["otel", "config"]], ids=lambda words: words[0])
def test_a_faulty_dict_is_printed_once(command):
    """By the check or the command, not by the log as well."""
    _, text = manage(*command, otel={"SAMPLING": {"RATIO": 25}}, TEST_SQLITE=":memory:")
    assert " ".join(text.split()).count("is 25; expected") == 1


def test_a_bad_dict_stops_check_and_migrate_but_not_django():
    """Refused through the check framework; importing the project goes on, with one error in the log."""
    otel = {"SAMPLING": {"RATIO": 25}, "NONSENSE": 1, "METRICS_VIEW": {"TOKEN": [SECRET]}}
    for command in (["check"], ["migrate", "-v", "0"]):
        code, text = manage(*command, otel=otel, TEST_SQLITE=":memory:")
        assert code == 1
        assert "(django_otel.E001)" in text
        assert "(django_otel.E002)" in text
        assert SECRET not in text
    done = subprocess.run(
        [sys.executable, "-c", "import django; django.setup(); print('up')"],
        cwd=ROOT, env=server_env(otel), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "up\n"
    assert done.stderr.count("django_otel is off because settings.OTEL is invalid") == 1


def test_nothing_is_said_when_telemetry_is_off(settings):
    """ENABLED = False: there is nothing that could go wrong."""
    settings.OTEL = {"ENABLED": False, "METRICS_VIEW": {"ALLOW": "all"}}
    settings.MIDDLEWARE = []
    assert run_all() == []


def test_a_check_that_fails_itself_is_contained(settings, monkeypatch):
    """The other checks still speak."""
    settings.OTEL = {"SERVICE_NAME": "shop"}
    settings.MIDDLEWARE = []
    monkeypatch.setattr(checks.instrumentors, "is_django_instrumented_elsewhere", lambda: 1 / 0)
    assert [message.id for message in checks.check_project()] == ["django_otel.W001"]


def test_ids_are_unique_and_all_tested():
    """Each id stands for one thing; W003 and W010 each have two ways to say it, in one function."""
    source = (ROOT / "django_otel" / "operations" / "checks.py").read_text()
    functions = re.split(r"\ndef ", source)
    places: dict[str, set[str]] = {}
    for function in functions:
        for check_id in re.findall(r'"django_otel\.([EW]\d{3})"', function):
            places.setdefault(check_id, set()).add(function.split("(")[0])
    assert {check_id: where for check_id, where in places.items() if len(where) > 1} == {}
    tested = Path(__file__).read_text()
    assert [check_id for check_id in places if check_id not in tested] == []


def test_checks_are_registered(settings):
    """With the database tag for the one that asks the database, and `deploy` for the two of production."""
    registry = django_checks.registry.registry
    own = {check.__name__: check for check in registry.get_checks(True) if check.__module__.startswith("django_otel.")}
    assert set(own) == {"check_configuration", "check_project", "check_deployment", "check_live_table"}
    deployed = {check.__name__ for check in own.values() if check in registry.deployment_checks}
    assert deployed == {"check_deployment"}
    assert django_checks.Tags.database in own["check_live_table"].tags
    assert runtime.current().problems == []
    settings.OTEL = {
        "TRACES": {"ENDPOINT": "http://collector:4318"},
        "METRICS_VIEW": {"ALLOW": "all"},
        "INSTRUMENT": ["no-such-thing"],
    }
    said = {message.id for message in django_checks.run_checks(tags=["django_otel"], include_deployment_checks=True)}
    assert {"django_otel.W004", "django_otel.W006", "django_otel.W012"} <= said
    settings.OTEL = {"SAMPLING": {"RATIO": 25}}
    assert {message.id for message in django_checks.run_checks(tags=["django_otel"])} == {"django_otel.E002"}


@pytest.mark.parametrize("name", ["configuration", "project", "deployment", "live_table"])
def test_a_registered_check_says_what_its_function_says(settings, name):
    """What is registered imports the function when it runs."""
    settings.OTEL = {"SAMPLING": {"RATIO": 25}, "METRICS_VIEW": {"ALLOW": "all"}}
    registered = {check.__name__: check for check in django_checks.registry.registry.get_checks(True)}
    function = getattr(checks, f"check_{name}")
    databases = {"databases": None} if name == "live_table" else {}
    assert registered[f"check_{name}"](app_configs=None, **databases) == function(app_configs=None, **databases)


def test_static_files_that_are_not_collected_are_named(settings, tmp_path):
    """W017, with a storage whose manifest is empty; tests/console/test_static_files.py asks the pages themselves."""
    settings.DEBUG = False
    settings.STATIC_ROOT = str(tmp_path)
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"},
    }
    assert [message.hint for message in run_checks(tags=["django_otel"]) if message.id == "django_otel.W017"] == [
        "Run `manage.py collectstatic`, as after every installation of an app with static files."
    ]
