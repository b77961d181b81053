"""`manage.py otel`: config, doctor, send-test, catalogue, against receivers that work and receivers that do not."""

from __future__ import annotations

import argparse
import contextlib
import http.server
import io
import json
import os
import re
import socket
import threading

import pytest
import requests
from django.core.management import CommandError, call_command
from django.urls import path
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from urllib3.exceptions import ProtocolError

from django_otel.config.schema import Config, walk
from django_otel.instrumentation import instrumentors
from django_otel.metrics import catalogue
from django_otel.multiprocess import server_group
from django_otel.operations import reasons
from tests.services import attributes_of, free_port, run_django, server_env, start_black_hole, wait_until

SECRET = "hunter2-very-secret"
urlpatterns = [path("elsewhere/", lambda request: None)]
TAKEN: list = []


class ListExporter(SpanExporter):
    def export(self, spans):
        TAKEN.extend(spans)
        return SpanExportResult.SUCCESS

    def shutdown(self):
        pass


class RaisingExporter(SpanExporter):
    def export(self, spans):
        raise RuntimeError(SECRET)

    def shutdown(self):
        pass


class ListProcessor(SpanProcessor):
    def on_end(self, span):
        TAKEN.append(span)


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and output of `manage.py otel ...`."""
    out = io.StringIO()
    try:
        call_command("otel", *arguments, stdout=out, no_color=True)
    except SystemExit as exit_:
        return int(exit_.code or 0), flatten(out.getvalue())
    return 0, flatten(out.getvalue())


def flatten(text: str) -> str:
    """Output with wrapped lines put together again."""
    return re.sub(r"\n {8,}", " ", text)


def manage(*arguments: str, otel=None, **env: str) -> tuple[int, str]:
    """The same in a process of its own."""
    done = run_django(server_env(otel, **env), "otel", *arguments, check=False)
    return done.returncode, flatten(done.stdout) + done.stderr


@pytest.fixture
def answering():
    """Start servers that give the same answer to everything: answering(status, content type, body) is a URL."""
    with contextlib.ExitStack() as stack:

        def start(status: int, content_type: str = "text/plain", body: bytes = b"", **headers: str) -> str:
            class Handler(http.server.BaseHTTPRequestHandler):
                def do_POST(self) -> None:
                    self.rfile.read(int(self.headers.get("Content-Length", 0)))
                    self.send_response(status)
                    self.send_header("Content-Type", content_type)
                    self.send_header("Content-Length", str(len(body)))
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)

                def log_message(self, *_: object) -> None:
                    pass

            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield start


@pytest.fixture
def talking():
    """A server that sends `greeting` to each client, and hangs up: talking(greeting) is a URL."""
    with contextlib.ExitStack() as stack:

        def start(greeting: bytes) -> str:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def serve() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        client, _ = listener.accept()
                        with client:
                            client.settimeout(60)
                            client.recv(1024)
                            client.sendall(greeting)

            threading.Thread(target=serve, daemon=True).start()
            return f"http://127.0.0.1:{listener.getsockname()[1]}"

        yield start


# --- The command itself. ---


def test_without_a_subcommand_it_prints_help():
    """And the exit codes, and only the subcommands that exist."""
    code, text = manage(otel={})
    assert code == 0
    assert "Exit codes: 0 success" in text
    assert re.findall(r"^    (\w[\w-]*) ", text, re.MULTILINE) == [
        "config", "doctor", "send-test", "sampling", "traces", "trace", "errors", "slow", "n-plus-one", "logs",
        "collect", "mcp",
        "catalogue", "serve",
        "folder", "dashboards", "rules", "collector",
    ]  # fmt: skip


def test_a_nonsense_subcommand_is_an_error_of_the_command_line():
    """argparse's exit code."""
    code, text = manage("nonsense", otel={})
    assert code == 2
    assert "invalid choice" in text
    assert manage("doctor", "--timeout", "-1", otel={})[0] == 2


# --- config. ---


def test_config_shows_every_setting_and_its_source(settings, monkeypatch):
    """Default, settings, environment, derived."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "soon")
    settings.OTEL = {"SERVICE_NAME": "shop", "TRACES": {"ENDPOINT": "http://127.0.0.1:4318"}}
    code, text = run("config")
    assert code == 0
    shown = [line.split()[0] for line in text.splitlines()[1:] if line and line.split()[0].isupper()]
    assert shown == [dotted for dotted, _ in walk(Config)]
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert re.fullmatch(r"SERVICE_NAME +shop +settings", lines["SERVICE_NAME"])
    assert re.fullmatch(r"SAMPLING.RATIO +0.25 +environment OTEL_TRACES_SAMPLER_ARG", lines["SAMPLING.RATIO"])
    assert re.fullmatch(
        r"METRICS.ENDPOINT +http://127.0.0.1:4318/v1/metrics +TRACES.ENDPOINT", lines["METRICS.ENDPOINT"]
    )
    assert lines["DATABASE.STATEMENT"].endswith("default")
    assert "OTEL_BSP_SCHEDULE_DELAY is ignored" in text


@pytest.mark.parametrize("form", ["text", "json"])
def test_config_masks_secrets(form, settings):
    """Headers by name alone, the token not at all, passwords in URLs and arguments redacted."""
    settings.OTEL = {
        "TRACES": {"ENDPOINT": f"http://user:{SECRET}@127.0.0.1:4318", "HEADERS": {"x-tenant": SECRET}},
        "METRICS_VIEW": {"TOKEN": SECRET},
        "INSTRUMENT": {"requests": {"api_key": SECRET, "request_hook": flatten}},
        "RESOURCE": {"db.password": SECRET, "team": "blue"},
    }
    code, text = run("config", "--format", form)
    assert code == 0
    assert SECRET not in text
    for shown in ("x-tenant", "127.0.0.1:4318", "tests.operations.test_otel_command.flatten", "blue"):
        assert shown in text


def test_config_as_json_is_json(settings):
    """Value and source under each dotted key."""
    settings.OTEL = {"SAMPLING": {"RATIO": 0.5}, "PROPAGATION": {"TRUST_INBOUND": ["10.0.0.0/8"]}}
    shown = json.loads(run("config", "--format", "json")[1])["settings"]
    assert shown["SAMPLING.RATIO"] == {"value": 0.5, "source": "settings"}
    assert shown["PROPAGATION.TRUST_INBOUND"]["value"] == ["10.0.0.0/8"]
    assert list(shown) == [dotted for dotted, _ in walk(Config)]


@pytest.mark.django_db
def test_config_says_when_the_admin_stands_above_the_settings(settings):
    """The ratio that holds is the admin's."""
    from django_otel.models import SamplingPolicy

    settings.OTEL = {"SAMPLING": {"RATIO": 0.5}}
    SamplingPolicy.objects.create(enabled=True, ratio=0.125)
    shown = json.loads(run("config", "--format", "json")[1])["settings"]
    assert shown["SAMPLING.RATIO"] == {"value": 0.125, "source": "admin"}
    SamplingPolicy.objects.all().delete()
    shown = json.loads(run("config", "--format", "json")[1])["settings"]
    assert shown["SAMPLING.RATIO"] == {"value": 0.5, "source": "settings"}


@pytest.mark.parametrize("subcommand", ["config", "doctor", "send-test"])
def test_a_faulty_dict_is_told_and_has_its_own_exit_code(subcommand):
    """The command runs although the checks fail."""
    code, text = manage(subcommand, otel={"SAMPLING": {"RATIO": 25}, "METRICS_VIEW": {"TOKEN": [SECRET]}})
    assert code == 3
    assert 'OTEL["SAMPLING"]["RATIO"] is 25' in text
    assert "(django_otel.E002)" in text
    assert SECRET not in text


# --- doctor: what works. ---


def test_doctor_sends_all_three_signals_through_the_real_exporters(settings, receiver, otel_spans):
    """One span, one metric, one log record arrive, decoded by a real receiver, with headers and resource."""
    settings.OTEL = {
        "SERVICE_NAME": "shop",
        "TRACES": {"ENDPOINT": receiver.url, "HEADERS": {"x-key": SECRET}},
        "METRICS": {"EXPORTERS": ["prometheus", "otlp"]},
        "LOGS": {"EXPORTERS": ["otlp"]},
        "SAMPLING": {"RATIO": 0.0, "LIVE": False},
    }
    code, text = run("doctor")
    assert code == 0, text
    for signal in ("traces", "metrics", "logs"):
        assert re.search(rf"ok      {signal} otlp: one [\w ]+ arrived at {receiver.url}/v1/{signal} in \d+ ms", text)
    [(resource, span)] = receiver.spans()
    assert (resource["service.name"], span.name) == ("shop", "django_otel doctor")
    [(_, scope, metric)] = receiver.metrics()
    assert (scope, metric.name, metric.sum.data_points[0].as_int) == (
        "django_otel.doctor",
        "django_otel.doctor.tests",
        1,
    )
    [(_, record)] = receiver.logs()
    assert attributes_of(record) == {"django_otel.test": True}
    assert {headers["x-key"] for _, headers, _ in receiver.requests} == {SECRET}
    assert SECRET not in text
    assert list(otel_spans) == [], "the doctor's own calls are not measured"
    assert "All is well" in text


def test_doctor_over_grpc_and_http_to_a_strict_collector(settings, rotel):
    """rotel refuses what is not OTLP."""
    settings.OTEL = {
        "TRACES": {"EXPORTERS": ["otlp-grpc"], "ENDPOINT": rotel.grpc_url},
        "METRICS": {"EXPORTERS": ["otlp"], "ENDPOINT": rotel.http_url},
        "LOGS": {"EXPORTERS": ["otlp-grpc"]},
    }
    code, text = run("doctor")
    assert code == 0, text
    assert len(re.findall("arrived at", text)) == 3
    for name in ("django_otel doctor", "django_otel.doctor.tests", "A test record of manage.py otel doctor."):
        wait_until(lambda name=name: name in rotel.log, 60, name)


def test_doctor_tells_the_rest_of_the_set_up(settings):
    """Service, middleware, page and who may read it, instrumentors."""
    settings.OTEL = {"SERVICE_NAME": "shop", "METRICS_VIEW": {"TOKEN": SECRET}, "SAMPLING": {"LIVE": False}}
    code, text = run("doctor")
    assert code == 0
    for line in (
        "ok      configuration: settings.OTEL is valid; the service is called 'shop'.",
        "ok      middleware: OTelMiddleware is in MIDDLEWARE.",
        '-       traces: no exporter is configured: "auto" exports when an endpoint is set',
        "ok      metrics prometheus: metrics are served at /metrics; nothing is pushed.",
        "ok      /metrics: is at /metrics; who may read it: clients that send the token, signed-in staff.",
        "ok      instrumentor requests: on.",
    ):
        assert line in text, line
    assert SECRET not in text


def test_doctor_warns_without_failing(settings):
    """No middleware and no URL: warnings, exit code 0."""
    settings.OTEL = {"SAMPLING": {"LIVE": False}, "INSTRUMENT": ["nonsense"]}
    settings.MIDDLEWARE = []
    settings.ROOT_URLCONF = "tests.operations.test_otel_command"
    code, text = run("doctor")
    assert code == 0
    assert "warning configuration django_otel.W001: OTelMiddleware is not in MIDDLEWARE" in text
    assert "warning configuration django_otel.W012:" in text
    assert "-       instrumentor nonsense: off: no installed package provides" in text
    assert "warning /metrics: no URL is routed to it." in text
    assert re.search(r"All is well, with \d warnings\.", text)


def test_doctor_as_json(settings, receiver):
    """For scripts: healthy, and one object per finding."""
    settings.OTEL = {"TRACES": {"ENDPOINT": receiver.url}, "SAMPLING": {"LIVE": False}}
    code, text = run("doctor", "--format", "json")
    report = json.loads(text)
    assert code == 0
    assert report["healthy"] is True
    assert {"traces otlp", "metrics prometheus", "/metrics"} <= {item["subject"] for item in report["findings"]}


@pytest.mark.django_db
def test_doctor_covers_what_the_site_stands_on(settings, tmp_path):
    """Databases, caches, shared folder, console and store, versions."""
    settings.CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
        "gone": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": "redis://user:hunter2@127.0.0.1:1",
        },
    }
    settings.OTEL = {"SAMPLING": {"LIVE": False}, "CONSOLE": {"ENABLED": True, "PATH": str(tmp_path / "store")}}
    _, text = run("doctor", "--format", "json")
    found = {item["subject"]: item for item in json.loads(text)["findings"]}
    assert found["database default"]["outcome"] == "ok"
    assert found["cache default"]["outcome"] == "ok"
    assert found["cache gone"]["outcome"] == "warning"
    assert found["shared folder"]["outcome"] in ("ok", "warning")
    assert found["console"]["outcome"] == "ok"
    assert str(tmp_path / "store") in found["store"]["text"]
    assert "OpenTelemetry 1." in found["versions"]["text"]
    assert "hunter2" not in text


@pytest.mark.parametrize(
    "words",
    [
        ["config", "--settings", "tests.settings", "-v", "0", "--no-color", "--traceback"],
        ["sampling", "get", "--settings", "tests.settings", "-v", "2"],
        ["catalogue", "--pythonpath", ".", "--force-color", "--skip-checks"],
    ],
    ids=lambda words: words[0],
)
def test_common_options_work_after_the_subcommand(words):
    from django_otel.management.commands.otel import Command

    parsed = Command().create_parser("manage.py", "otel").parse_args(words)
    assert parsed.subcommand == words[0]
    if "-v" in words:
        assert parsed.verbosity == int(words[words.index("-v") + 1])
    assert parsed.no_color is ("--no-color" in words)
    assert parsed.traceback is ("--traceback" in words)


def test_common_options_before_the_subcommand_are_kept():
    from django_otel.management.commands.otel import Command

    parsed = Command().create_parser("manage.py", "otel").parse_args(["-v", "3", "--no-color", "config"])
    assert (parsed.verbosity, parsed.no_color) == (3, True)


def test_options_of_a_subcommand_are_no_abbreviations_of_those_before_it():
    """`--for` of `logs level` begins like `--format` of `logs` and `--force-color` of all."""
    from django_otel.management.commands.otel import Command

    refused, tried = [], 0

    def walk_parsers(parser, words, outer):
        nonlocal tried
        for option in [option for action in parser._actions for option in action.option_strings]:
            for before in outer:
                tried += 1
                try:
                    before._parse_optional(option)
                except CommandError as error:
                    refused.append(f"{' '.join(words)} {option}: {error}")
        for action in parser._actions:
            for name, inner in action.choices.items() if isinstance(action, argparse._SubParsersAction) else ():
                walk_parsers(inner, [*words, name], [*outer, parser])

    walk_parsers(Command().create_parser("manage.py", "otel"), ["otel"], [])
    assert not refused
    assert tried > 100


@pytest.mark.parametrize("debug", [True, False])
def test_config_shows_what_is_in_force(settings, debug):
    """Where a setting is None: what stands in its place, and why."""
    settings.DEBUG = debug
    settings.OTEL = {"TRACES": {"EXPORTERS": ["otlp"]}, "SAMPLING": {"LIVE": False}}
    _, text = run("config", "--format", "json")
    shown = json.loads(text)["settings"]
    assert shown["CONSOLE.ENABLED"]["value"] is debug
    assert "DEBUG" in shown["CONSOLE.ENABLED"]["source"]
    assert (shown["CONSOLE.PATH"]["value"] is not None) is debug
    assert shown["METRICS.SHARED_DIR"]["value"].endswith(f"django-otel-{os.geteuid()}")
    assert shown["TRACES.ENDPOINT"]["value"] == "http://localhost:4318/v1/traces"


def test_config_lists_environment_variables_and_whether_they_are_obeyed(monkeypatch):
    """Those that are set; all of the table with --variables."""
    from django_otel import conf
    from django_otel.config.variables import VARIABLES

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=hunter2")
    monkeypatch.setenv("OTEL_CONFIG_FILE", "otel.yaml")
    conf.forget()
    _, text = run("config")
    assert re.search(r"obeyed +OTEL_EXPORTER_OTLP_HEADERS +sets TRACES.HEADERS", text)
    assert re.search(r"ignored +OTEL_CONFIG_FILE +none", text)
    assert "OTEL_BSP_SCHEDULE_DELAY" not in text
    assert "hunter2" not in text
    _, text = run("config", "--variables", "--format", "json")
    found = json.loads(text)["variables"]
    assert list(found) == list(VARIABLES)
    assert found["OTEL_EXPORTER_OTLP_HEADERS"]["state"] == "obeyed"
    assert found["OTEL_BLRP_MAX_QUEUE_SIZE"]["state"] == "not set"
    _, text = run("config", "--variables")
    assert len(re.findall(r"^[a-z].* {2}OTEL_\w+ ", text, re.MULTILINE)) == len(VARIABLES)


class Router:
    """As Channels' `ProtocolTypeRouter`, which keeps its parts by protocol."""

    def __init__(self, **parts):
        self.application_mapping = parts


refusing_router, answering_router = Router(http=None), Router(http=None, lifespan=None)


@pytest.mark.parametrize(
    ("name", "installed", "is_told"),
    [
        ("refusing_router", True, True),
        ("refusing_router", False, False),
        ("answering_router", True, False),
        ("no_such_router", True, False),
    ],
)
def test_doctor_says_where_a_router_refuses_the_lifespan(name, installed, is_told, settings, monkeypatch):
    from django_otel.operations import surroundings

    monkeypatch.setattr(surroundings.apps, "is_installed", lambda app: installed and app == "channels")
    settings.ASGI_APPLICATION = f"{__name__}.{name}"
    found = list(surroundings._examine_router())
    assert bool(found) is is_told
    if is_told:
        [(subject, outcome, text, advice)] = found
        assert (subject, outcome) == ("ASGI", "note")
        assert settings.ASGI_APPLICATION in text and "SIGKILL" in text and "lifespan" in advice


# --- doctor: what does not work, in words. ---


def diagnose(settings, url: str, exporter: str = "otlp", *, hangs: bool = False, **traces) -> str:
    """What the doctor says about a trace exporter to `url`, which must not work."""
    sending = {"EXPORTERS": [exporter], "ENDPOINT": url, "TIMEOUT_S": 600, **traces}
    settings.OTEL = {"TRACES": sending, "SAMPLING": {"LIVE": False}}

    def ask() -> str:
        code, text = run("doctor", "--timeout", "1")
        assert code == 1, text
        [line] = [line for line in text.splitlines() if line.startswith("FAILED")]
        assert line.startswith(f"FAILED  traces {exporter}: ")
        assert "1 check failed." in text
        # A busy machine may need another second for an answer.
        return line if hangs or "no answer came" not in line else ""

    return wait_until(ask, what="an answer in time")


@pytest.mark.parametrize("exporter", ["otlp", "otlp-grpc"])
def test_doctor_on_a_refused_port(exporter, settings):
    """Nothing listens."""
    port = free_port()
    line = diagnose(settings, f"http://127.0.0.1:{port}", exporter)
    assert f"connection refused: nothing listens on 127.0.0.1:{port}." in line
    assert "Is the receiver running" in line


@pytest.mark.heavy
@pytest.mark.parametrize("exporter", ["otlp", "otlp-grpc"])
def test_doctor_on_a_black_hole(exporter, settings):
    """Connected, but no answer, and within the time allowed."""
    with start_black_hole() as url:
        line = diagnose(settings, url, exporter, hangs=True)
    assert "timeout: the connection was accepted, but no answer came within 1 s." in line


def test_a_receiver_that_does_not_take_the_request_in_time_is_a_timeout():
    """As the libraries say it: the connection was aborted."""
    aborted = ProtocolError("Connection aborted.", TimeoutError("The write operation timed out"))
    reason = reasons.explain_http_error(requests.exceptions.ConnectionError(aborted), "http://collector:4318", 1.0)
    assert reason.text.startswith("timeout: ")


@pytest.mark.parametrize("exporter", ["otlp", "otlp-grpc"])
def test_doctor_on_a_name_that_does_not_resolve(exporter, settings):
    """.invalid never resolves (RFC 2606)."""
    line = diagnose(settings, "http://collector.invalid:4318", exporter)
    assert "the host name 'collector.invalid' cannot be resolved (DNS)." in line


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, "401 Unauthorized: credentials are missing or wrong."),
        (403, "403 Forbidden: the credentials have no permission to write."),
        (404, "404 Not Found: nothing at the path /v1/traces."),
        (405, "405 Method Not Allowed"),
        (400, "400 Bad Request"),
        (429, "429 Too Many Requests"),
        (500, "500: an internal error of the receiver."),
    ],
)
def test_doctor_on_an_answer_that_is_no_success(status, text, settings, answering):
    """Each status in words, and where to look; never the credentials."""
    line = diagnose(settings, answering(status), HEADERS={"authorization": f"Bearer {SECRET}"})
    assert f"answers {text}" in line
    assert SECRET not in line
    if status in (401, 403):
        assert 'Check OTEL["TRACES"]["HEADERS"]' in line


def test_doctor_on_a_web_page(settings, answering):
    """A success to the exporter, but no receiver: a page that answers 200 to everything."""
    line = diagnose(settings, answering(200, "text/html; charset=utf-8", b"<html>Welcome</html>"))
    assert "answers 200 with a web page (text/html), not as an OTLP receiver does." in line


def test_doctor_on_a_redirect(settings, answering):
    """A redirect would turn the POST into a GET."""
    line = diagnose(settings, answering(301, Location=f"https://user:{SECRET}@other.example/v1/traces?key={SECRET}"))
    assert "redirects (301) to https://other.example/v1/traces." in line
    assert SECRET not in line


def test_doctor_on_the_grpc_port_with_http(settings, rotel):
    """The usual mistake: 4317 where 4318 is meant."""
    line = diagnose(settings, rotel.grpc_url)
    assert "did not answer in HTTP/1.1; it may speak gRPC on this port" in line


def test_doctor_on_the_http_port_with_grpc(settings, answering):
    """The other way round."""
    line = diagnose(settings, answering(200), "otlp-grpc")
    assert "does not speak gRPC on this port; it may speak HTTP" in line


def test_doctor_on_something_that_is_not_http(settings, talking):
    """An SSH server, say."""
    line = diagnose(settings, talking(b"SSH-2.0-OpenSSH_9.2\r\n"))
    assert "did not answer in HTTP/1.1" in line


def test_doctor_on_tls_to_a_server_without(settings, answering):
    """https:// where http:// is meant."""
    line = diagnose(settings, answering(200).replace("http://", "https://"))
    assert "TLS failed: the server does not speak TLS on this port." in line
    assert "Write http:// instead of https://." in line


def test_doctor_on_exporters_of_the_project(settings):
    """A dotted path is built and tried; what its exception says may be anything, so only its type is shown."""
    settings.OTEL = {
        "TRACES": {"EXPORTERS": ["tests.operations.test_otel_command.ListExporter"]},
        "SAMPLING": {"LIVE": False},
    }
    TAKEN.clear()
    assert run("doctor")[0] == 0
    assert len(TAKEN) == 2
    settings.OTEL = {
        "TRACES": {"EXPORTERS": ["tests.operations.test_otel_command.RaisingExporter"]},
        "SAMPLING": {"LIVE": False},
    }
    code, text = run("doctor")
    assert code == 1
    assert "raised RuntimeError when exporting one span." in text
    assert SECRET not in text


#: In what the doctor says: names of exporters, databases, packages, checks and values of settings.
NAMES = {
    "auto", "celery", "console", "default", "django-otel-kit", "django_otel", "memory", "nope",
    "opentelemetry-instrumentation-celery", "opentelemetry-instrumentation-nope", "other", "otlp", "prometheus",
}  # fmt: skip


@pytest.mark.parametrize("fault", ["none", "folder", "store", "instrument", "off", "exporter"])
def test_everything_the_doctor_says_can_be_translated(fault, settings, tmp_path, monkeypatch, receiver):
    """In a language of capitals nothing else is left but names and what others have said."""
    from django.utils import translation

    otel = {
        "none": {"TRACES": {"ENDPOINT": receiver.url}},
        "folder": {"METRICS": {"SHARED_DIR": str(tmp_path / "SHARED")}},
        "store": {"CONSOLE": {"ENABLED": True, "PATH": str(tmp_path / "FILE" / "BELOW")}},
        "instrument": {"INSTRUMENT": ["nope", "celery", "sqlite3", "requests", "httpx"]},
        "off": {"ENABLED": False},
        "exporter": {"TRACES": {"EXPORTERS": ["otlp", "console", "memory"], "ENDPOINT": "http://127.0.0.1:9"}},
    }[fault]
    (tmp_path / "FILE").write_text("")
    shared = tmp_path / "SHARED" / server_group.find_parent(tmp_path / "SHARED").name
    shared.mkdir(parents=True, mode=0o755)
    settings.OTEL = {"SERVICE_NAME": "SHOP", **otel}

    def shout(message: str) -> str:
        return "".join(
            part if part.startswith("%") or part[:1] in "`'\"" else part.upper()
            for part in re.split(r"(%\(\w+\)[sd]|%%|`[^`]*`|'[^']*'|\"[^\"]*\")", message)
        )

    monkeypatch.setattr(translation._trans, "gettext", shout)
    monkeypatch.setattr(translation._trans, "pgettext", lambda context, message: shout(message))
    monkeypatch.setattr(translation._trans, "ngettext", lambda one, many, n: shout(one if n == 1 else many))
    _, text = run("doctor", "--timeout", "5")
    text = re.sub(r"/\S+|https?:\S+|'[^']*'|`[^`]*`", "", " ".join(text.split()))
    assert set(re.findall(r"(?<![\w.-])[a-z][\w-]+", text)) <= {*NAMES, *instrumentors.available()}, text


def test_doctor_runs_from_the_shell():
    """Exit code and no stray output of the exporters."""
    port = free_port()
    code, text = manage("doctor", "--timeout", "1", otel={"TRACES": {"ENDPOINT": f"http://127.0.0.1:{port}"}})
    assert code == 1
    assert "connection refused" in text
    assert "Traceback" not in text
    assert "Transient error" not in text


# --- send-test. ---


def test_send_test_prints_the_trace_it_sent(settings, receiver):
    """The id that is printed is the id that arrived, two spans, sampled although the ratio is 0."""
    settings.OTEL = {
        "TRACES": {"ENDPOINT": receiver.url},
        "TRACE_URL": "http://jaeger.example/trace/{trace_id}",
        "SAMPLING": {"RATIO": 0.0},
    }
    code, text = run("send-test")
    assert code == 0
    trace_id = re.search(r"trace id: ([0-9a-f]{32})", text)[1]
    assert f"look at:  http://jaeger.example/trace/{trace_id}" in text
    spans = [span for _, span in receiver.spans()]
    assert {span.trace_id.hex() for span in spans} == {trace_id}
    assert [span.name for span in spans] == ["child of the test", "django_otel send-test"]
    assert spans[0].parent_span_id == spans[1].span_id


def test_send_test_fails_when_nothing_arrives(settings):
    """Exit code 1, and where to go from there."""
    settings.OTEL = {"TRACES": {"ENDPOINT": f"http://127.0.0.1:{free_port()}"}}
    code, text = run("send-test", "--timeout", "1")
    assert code == 1
    assert "not sent to http://127.0.0.1" in text
    assert "otel doctor" in text


def test_send_test_without_an_exporter_says_so(settings):
    """There is nowhere to send to."""
    settings.OTEL = {}
    code, text = run("send-test")
    assert code == 1
    assert 'Set OTEL["TRACES"]["ENDPOINT"]' in text


def test_send_test_through_the_projects_own(settings):
    """Exporters and processors by dotted path."""
    paths = ["tests.operations.test_otel_command.ListExporter", "tests.operations.test_otel_command.ListProcessor"]
    settings.OTEL = {"TRACES": {"EXPORTERS": paths}}
    TAKEN.clear()
    assert run("send-test")[0] == 0
    assert len(TAKEN) == 4


# --- catalogue. ---


def test_catalogue_lists_every_metric():
    """Markdown for people, JSON for programs, both from the catalogue."""
    code, text = run("catalogue")
    assert code == 0
    assert re.findall(r"^\| `([^`]+)`", text, re.MULTILINE) == list(catalogue.CATALOGUE)
    listed = json.loads(run("catalogue", "--format", "json")[1])
    assert [metric["name"] for metric in listed] == list(catalogue.CATALOGUE)
    duration = listed[0]
    assert (duration["kind"], duration["unit"], duration["bounds"][0]) == ("histogram", "s", 0.005)
