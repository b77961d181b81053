"""The pages on moving in from opentelemetry-instrument, Sentry and Elastic, tried on the small project."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from django_otel.config.parse import parse
from tests import services

PAGES = sorted(Path("docs/moving").glob("*.md"))


def blocks(page: Path) -> list[str]:
    """The Python of a page, without the indentation of a list."""
    found = re.findall(r"^( *)```python\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


def read_settings(code: str) -> dict:
    found: dict = {}
    exec(code, {}, found)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_settings_on_the_pages_are_valid(page):
    given = [code for code in blocks(page) if "OTEL =" in code]
    assert given
    for code in given:
        parse(read_settings(code)["OTEL"], {}, "shop")


def serve(folder: Path, env: dict[str, str]):
    port = services.free_port()
    command = [
        sys.executable, "-m", "gunicorn", "tests.wsgi:application", "--bind", f"127.0.0.1:{port}", "--workers", "1",
    ]  # fmt: skip
    return port, services.running(command, services.server_env({}, **env), folder / "log")


def test_the_variables_of_opentelemetry_instrument_lead_the_same_spans_to_the_same_place(tmp_path):
    """The command line loses its wrapper; the environment stays as it was."""
    with services.start_receiver() as receiver:
        env = {
            "OTEL_SERVICE_NAME": "moved-shop", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=moving",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-key=1", "OTEL_TRACES_SAMPLER": "parentbased_always_on",
            "OTEL_BSP_SCHEDULE_DELAY": "100", "TEST_SQLITE": str(tmp_path / "db"),
        }  # fmt: skip
        # Not through server_env, which leaves such variables out.
        port, running = serve(tmp_path, env)
        with running as process:
            services.wait_until(lambda: services.is_listening(port), 30, "gunicorn")
            server = services.Server(f"http://127.0.0.1:{port}", process, tmp_path / "log")

            def arrived():
                server.get("/hello/")
                return [(headers, message) for path, headers, message in receiver.requests if path == "/v1/traces"]

            headers, message = services.wait_until(arrived, 30, "a trace")[0]
    resource = services.attributes_of(message.resource_spans[0].resource)
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("moved-shop", "moving")
    assert headers["x-key"] == "1"
    spans = [span for scope in message.resource_spans[0].scope_spans for span in scope.spans]
    assert "GET /hello/" in {span.name for span in spans}


SENTRY = """
import json, sys
import django, sentry_sdk
from django.test import Client
from django_otel.testing import capture_spans

sent = {"events": [], "others": []}

class Transport(sentry_sdk.transport.Transport):
    def capture_envelope(self, envelope):
        sent["events"].extend(json.loads(item.get_bytes()) for item in envelope.items if item.type == "event")
        sent["others"].extend(item.type for item in envelope.items if item.type != "event")

scope = {}
exec(sys.argv[1], scope)
sentry_sdk.init(
    dsn="https://key@sentry.example/1", before_send=scope["add_trace_id"], transport=Transport,
    auto_session_tracking=False,
)
django.setup()
with capture_spans() as spans:
    Client(raise_request_exception=False, SERVER_NAME="localhost").get("/boom/")
sentry_sdk.flush(2)
sent["trace_id"] = f"{spans.one('GET /boom/').context.trace_id:032x}"
print(json.dumps(sent))
"""


@pytest.mark.long
def test_errors_stay_with_sentry_and_name_the_trace():
    """In a process of its own: Sentry's integrations patch Django, logging and Celery for good."""
    pytest.importorskip("sentry_sdk", reason="needs sentry-sdk")
    given = next(code for page in PAGES for code in blocks(page) if "add_trace_id" in code)
    functions, _, _ = given.partition("\n\nsentry_sdk.init(")
    done = subprocess.run(
        [sys.executable, "-c", SENTRY, functions],
        env=services.server_env(), cwd=services.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sent = json.loads(done.stdout.splitlines()[-1])
    assert [event["tags"]["otel_trace_id"] for event in sent["events"]] == [sent["trace_id"]]
    assert "transaction" not in sent["others"]


def test_traces_reach_an_apm_server_with_its_token(tmp_path):
    """The settings of the page, with the address of a receiver that stands for the APM server."""
    code = next(code for page in PAGES for code in blocks(page) if "apm.example" in code)
    otel = read_settings(code)["OTEL"]
    with services.start_receiver() as receiver:
        otel["TRACES"]["ENDPOINT"] = receiver.url
        otel["TRACES"]["BATCH"] = {"DELAY_S": 0.1}
        otel["METRICS"]["INTERVAL_S"] = 0.2
        with services.serve("gunicorn", otel) as server:

            def arrived():
                server.get("/hello/")
                return {path for path, _, _ in receiver.requests} >= {"/v1/traces", "/v1/metrics"}

            services.wait_until(arrived, 30, "traces and metrics")
        assert {headers.get("authorization") for _, headers, _ in receiver.requests} == {"Bearer secret-token"}
