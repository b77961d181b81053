"""What a start imports and what it does not: each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.services import ROOT, server_env

#: Nothing of these before it is needed, unless the project itself imports it.
LATE = (
    "opentelemetry.exporter", "opentelemetry.proto", "google.protobuf", "prometheus_client", "grpc", "requests",
    "redis", "psycopg2", "urllib3", "opentelemetry.sdk.metrics", "opentelemetry.sdk._logs", "opentelemetry._logs",
    "opentelemetry.instrumentation", "wrapt", "packaging", "importlib.metadata", "sqlite3.dbapi2",
    "psutil",
)  # fmt: skip
PRELUDE = f"""
import json, sys, django
from django.conf import settings
otel = json.loads(sys.argv[1])
settings.configure(
    SECRET_KEY="s", ALLOWED_HOSTS=["testserver"], ROOT_URLCONF="startup_urls", OTEL=otel,
    INSTALLED_APPS=["django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes",
                    "django.contrib.sessions", "django.contrib.messages", "django_otel"],
    MIDDLEWARE=["django_otel.middleware.OTelMiddleware"],
    DATABASES={{}},
)
def late():
    return [name for name in {LATE!r} if any(f"{{loaded}}.".startswith(f"{{name}}.") for loaded in sys.modules)]
before = late()
django.setup()
import types
from django.http import HttpResponse
from django.urls import include, path
urls = types.ModuleType("startup_urls")
urls.urlpatterns = [path("a/", lambda request: HttpResponse("a")), path("", include("django_otel.urls"))]
sys.modules["startup_urls"] = urls
def get(target, **headers):
    from django.test import Client
    return Client().get(target, **headers)
def show(**values):
    print(json.dumps(values))
"""


def run(code: str, otel: dict | None = None) -> dict:
    """What `code` gives to `show()`, after the prelude, with these settings."""
    otel = {"SERVICE_NAME": "shop", "METRICS_VIEW": {"ALLOW": "all"}, **(otel or {})}
    environ = {name: value for name, value in server_env(None).items() if name != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + code, json.dumps(otel)],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


OTLP = {
    "TRACES": {"ENDPOINT": "http://127.0.0.1:9/v1/traces"},
    "METRICS": {"EXPORTERS": ["prometheus", "otlp"], "ENDPOINT": "http://127.0.0.1:9/v1/metrics"},
    "LOGS": {"EXPORTERS": ["otlp"], "ENDPOINT": "http://127.0.0.1:9/v1/logs"},
}
GRPC = {
    "TRACES": {"EXPORTERS": ["otlp-grpc"], "ENDPOINT": "http://127.0.0.1:9"},
    "METRICS": {"EXPORTERS": ["prometheus", "otlp-grpc"], "ENDPOINT": "http://127.0.0.1:9"},
    "LOGS": {"EXPORTERS": ["otlp-grpc"], "ENDPOINT": "http://127.0.0.1:9"},
}


#: Modules of ours that most processes never need, or not before an export, a scrape or a page of the admin.
OURS_LATE = (
    "django_otel.asgi", "django_otel.config.environment", "django_otel.config.variables", "django_otel.console.pages",
    "django_otel.console.notify", "django_otel.export.answers", "django_otel.export.building",
    "django_otel.export.exporters", "django_otel.export.lazy_spans", "django_otel.health",
    "django_otel.export.metrics_thread", "django_otel.instrumentation.client_hooks",
    "django_otel.instrumentation.commands", "django_otel.instrumentation.copies",
    "django_otel.instrumentation.django_prometheus", "django_otel.instrumentation.email",
    "django_otel.instrumentation.feature_flags", "django_otel.instrumentation.graphql_names",
    "django_otel.instrumentation.middleware_spans", "django_otel.instrumentation.pools",
    "django_otel.instrumentation.sql_comments", "django_otel.instrumentation.tasks",
    "django_otel.live_sampling.admin_forms", "django_otel.live_sampling.force",
    "django_otel.live_sampling.log_level_form", "django_otel.live_sampling.overview",
    "django_otel.live_sampling.preview", "django_otel.metrics.django_prometheus", "django_otel.metrics.exposition",
    "django_otel.metrics.merging", "django_otel.metrics.negotiation", "django_otel.metrics.registry",
    "django_otel.multiprocess.background", "django_otel.multiprocess.memory", "django_otel.multiprocess.merge",
    "django_otel.multiprocess.sharing", "django_otel.multiprocess.snapshot",
    "django_otel.operations", "django_otel.redaction.sdk_items", "django_otel.requests.django_prometheus",
    "django_otel.requests.protocols",
    "django_otel.testing", "django_otel.tracestore", "django_otel.tracing.tail",
)  # fmt: skip


def test_setup_and_a_request_import_nothing_of_ours_that_few_processes_need():
    """Neither parts for libraries that are not there, nor forms and pages, nor what a scrape takes."""
    found = run(
        f"wanted = {OURS_LATE!r}\n"
        "answer = get('/a/').content.decode()\n"
        "show(answer=answer, loaded=[name for name in sorted(sys.modules)"
        " if any(f'{name}.'.startswith(f'{late}.') for late in wanted)])"
    )
    assert found == {"answer": "a", "loaded": []}


@pytest.mark.parametrize("otel", [{}, OTLP, GRPC, {"ENABLED": False}], ids=["defaults", "otlp", "grpc", "off"])
def test_setup_imports_nothing_before_it_is_needed(otel):
    """No exporter, no protobuf, no library that is only instrumented, no metrics or logs of the SDK."""
    found = run("show(before=before, after=late())", otel)
    assert found["after"] == found["before"]


def test_requests_and_scrapes_need_none_of_them_either():
    """Our numbers and our page go without the SDK's metrics and without prometheus_client."""
    found = run(
        "answers = [get('/a/').content.decode() for _ in range(2)]; setup = late()\n"
        "page = get('/metrics'); show(before=before, setup=setup, after=late(), answers=answers,\n"
        "    status=page.status_code, page=page.content.decode())"
    )
    assert found["answers"] == ["a", "a"]
    assert found["status"] == 200
    assert "http_server_request_duration_seconds_count{" in found["page"]
    assert found["after"] == found["before"]


def test_the_first_export_imports_the_exporter(receiver):
    """In the exporting thread; the span arrives."""
    found = run(
        "get('/a/'); asked = late()\n"
        "import django_otel; done = django_otel.flush(20); show(before=before, asked=asked, after=late(), done=done)",
        {"TRACES": {"ENDPOINT": receiver.url, "BATCH": {"DELAY_S": 30}}},
    )
    assert found["asked"] == found["before"]
    assert found["done"] is True
    assert {"opentelemetry.exporter", "google.protobuf", "requests"} <= set(found["after"])
    assert not {"grpc", "prometheus_client", "redis", "psycopg2"} & set(found["after"])
    assert [span.name for _, span in receiver.spans()] == ["GET /a/"]


def test_the_librarys_import_instruments_it(receiver):
    """Of the libraries alone that the project imports, at the moment it does."""
    found = run(
        "import django_otel.instrumentation.instrumentors as i\n"
        "waiting = {state.name: (state.is_on, state.reason) for state in i.states()}\n"
        "import requests\n"
        "is_patched = hasattr(requests.Session.send, 'opentelemetry_instrumentation_requests_applied')\n"
        "states = {state.name: (state.is_on, state.reason) for state in i.states()}\n"
        "show(waiting=waiting, states=states, patched=is_patched, after=late())"
    )
    assert found["waiting"]["requests"] == [True, "on as soon as requests is imported"]
    assert found["patched"]
    assert found["states"]["requests"] == [True, "on"]
    assert found["states"]["redis"] == [True, "on as soon as redis is imported"]
    assert not {"redis", "psycopg2", "grpc", "prometheus_client"} & set(found["after"])


def test_a_project_that_imports_the_instrumentor_itself_has_it_switched_on():
    """It imports the library on its way, at a moment when it cannot be used yet."""
    found = run(
        "from opentelemetry.instrumentation.requests import RequestsInstrumentor\n"
        "from django_otel.instrumentation import instrumentors\n"
        "show(on=RequestsInstrumentor().is_instrumented_by_opentelemetry,"
        "     states={s.name: [s.is_on, s.reason] for s in instrumentors.states()}, here='requests' in sys.modules)"
    )
    assert found["here"]
    assert found["on"], found
    assert found["states"]["requests"] == [True, "on"]


@pytest.mark.parametrize("module", ["django_hooks", "queue_lengths"])
def test_task_hooks_that_are_imported_first_are_switched_on(module):
    """Also one whose import leads to that of others, while it is not finished itself."""
    found = run(
        f"""
        from django_otel.instrumentation.tasks import {module}, runs
        from django_otel.base import guard
        show(is_on=runs.state.is_on, faults=guard.fault_counts())
        """.replace("\n        ", "\n"),
    )
    assert found == {"is_on": True, "faults": {}}


def test_a_library_that_is_there_before_is_instrumented_at_setup():
    """The settings module may have imported it."""
    code = "import requests; import django.test.utils\n" + "".join(PRELUDE)
    environ = {name: value for name, value in server_env(None).items() if name != "DJANGO_SETTINGS_MODULE"}
    code += "show(patched=hasattr(requests.Session.send, 'opentelemetry_instrumentation_requests_applied'))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "{}"],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == {"patched": True}, done.stderr


def test_the_instrumentor_of_a_library_that_comes_late_measures(receiver):
    """Its meter is the first one asked for: the SDK's metrics are built then, and the scrape shows them."""
    found = run(
        f"import requests; requests.get({receiver.url!r}, timeout=5); page = get('/metrics').content.decode()\n"
        "name = 'http_client_request_duration_seconds_count'\n"
        "show(count=[line for line in page.splitlines() if line.startswith(name)])"
    )
    assert len(found["count"]) == 1
    assert found["count"][0].split()[-1] in ("1", "1.0")


def test_a_meter_of_the_project_works_whenever_it_was_asked_for(tmp_path):
    """Before setup (the API's proxy), after it, and after a fork, where it begins at zero."""
    code = (
        "from opentelemetry import metrics\n"
        "late_counter = metrics.get_meter('late').create_counter('late.total')\n"
        "late_counter.add(2)\n"
        "def numbers():\n"
        "    from django_otel import runtime\n"
        "    return {f.name: f.points[0].value for f in runtime.collect_process() if f.name.endswith('.total')}\n"
        "first = numbers()\n"
        "import os\n"
        "read, write = os.pipe()\n"
        "if not os.fork():\n"
        "    late_counter.add(5)\n"
        "    from django_otel import runtime\n"
        "    provider = metrics.get_meter_provider()\n"
        "    same = provider._sdk_config.resource is runtime.current().resource\n"
        "    os.write(write, json.dumps([numbers(), same]).encode()); os._exit(0)\n"
        "os.wait()\n"
        "show(first=first, child=json.loads(os.read(read, 1000)), parent=numbers())"
    )
    found = run(code)
    assert found["first"] == {"late.total": 2}
    assert found["child"] == [{"late.total": 5}, True]
    assert found["parent"] == {"late.total": 2}


def test_the_sdks_detector_finds_psutil_when_it_is_asked_for():
    """It is imported then, for the SDK and for everyone else alike."""
    found = run(
        "from opentelemetry.sdk import resources\n"
        "kept = resources.psutil; asked = late()\n"
        "found = resources.ProcessResourceDetector().detect().attributes\n"
        "import psutil\n"
        "same = kept.Process is psutil.Process\n"
        "show(before=before, asked=asked, after=late(), user=found.get('process.owner'),"
        "     wanted=psutil.Process().username(), same=same)"
    )
    assert found["asked"] == found["before"]
    assert "psutil" in found["after"]
    assert found["user"] == found["wanted"]
    assert found["same"]


def test_a_project_that_imports_psutil_itself_gets_the_whole_of_it():
    """Before or after setup, also in another thread."""
    found = run(
        "import threading; got = []\n"
        "thread = threading.Thread(target=lambda: got.append(__import__('psutil').Process().pid))\n"
        "thread.start(); thread.join()\n"
        "import os, psutil._common; show(pids=got, wanted=os.getpid())"
    )
    assert found["pids"] == [found["wanted"]]


def test_a_missing_exporter_package_is_told_at_the_start():
    """Not by the first export: E004, without importing anything."""
    code = (
        "import os\n"
        "from django_otel.config.schema import ConfigError; from django_otel.config.parse import parse\n"
        "real = os.listdir\n"
        "os.listdir = lambda folder: [n for n in real(folder) if 'otlp' not in n]\n"
        "import importlib.metadata as m\n"
        "real_version = m.version\n"
        "def version(name):\n"
        "    if 'otlp' in name: raise m.PackageNotFoundError(name)\n"
        "    return real_version(name)\n"
        "m.version = version\n"
        "from django_otel import runtime\n"
        "config = parse({'TRACES': {'EXPORTERS': ['otlp-grpc']}}, {}, 'x')\n"
        "try: runtime.start(config); ids = []\n"
        "except ConfigError as error: ids = [problem.id for problem in error.problems]\n"
        "show(ids=ids, state=runtime.current().started, grpc='grpc' in sys.modules)"
    )
    assert run(code) == {"ids": ["django_otel.E004"], "state": False, "grpc": False}


@pytest.mark.parametrize(
    "name",
    ["opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http", "django-otel-kit", "Django", "no-such-package"],
)
def test_versions_are_those_of_the_metadata(name):
    """Read from the names of folders where that can be, else as always."""
    import importlib.metadata

    from django_otel.config.packages import package_version

    try:
        wanted = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        wanted = ""
    assert package_version(name) == wanted
