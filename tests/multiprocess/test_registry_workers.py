"""prometheus_client's own counters on our page, under several gunicorn workers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import urllib.request

import pytest

from tests import services

APP = """
import os, sys
import django
from django.conf import settings
settings.configure(
    DEBUG=True, SECRET_KEY="x", ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, INSTALLED_APPS=["django_otel"],
    MIDDLEWARE=["django_otel.middleware.OTelMiddleware"], DATABASES={},
    OTEL={"METRICS": {"INCLUDE_REGISTRY": True}, "CONSOLE": {"ENABLED": False}, "SAMPLING": {"LIVE": False},
          "METRICS_VIEW": {"ALLOW": "all"}, "INSTRUMENT": []},
)
django.setup()
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import include, path
from prometheus_client import Counter, REGISTRY
OWN = Counter("project_visits", "Visits.")

class Fixed:
    def collect(self):
        from prometheus_client.core import GaugeMetricFamily
        yield GaugeMetricFamily("project_fixed", "Fixed.", value=7)

REGISTRY.register(Fixed())

def visit(request):
    OWN.inc()
    return HttpResponse(str(os.getpid()))

urlpatterns = [path("visit/", visit), path("", include("django_otel.urls"))]
application = get_wsgi_application()
"""


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as response:
        return response.read().decode()


@pytest.mark.parametrize("is_shared", [True, False])
def test_counters_of_prometheus_client_are_those_of_all_workers_or_a_warning_says_so(tmp_path, is_shared):
    (tmp_path / "counting_app.py").write_text(textwrap.dedent(APP))
    port = services.free_port()
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("PROMETHEUS_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(services.ROOT)])
    if is_shared:
        folder = tmp_path / "multiproc"
        folder.mkdir()
        # Of a process that has just begun.
        (folder / "counter_1.db").touch()
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    command = [sys.executable, "-m", "gunicorn", "-w", "3", "-b", f"127.0.0.1:{port}", "counting_app:application"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    base = f"http://127.0.0.1:{port}"
    try:

        def is_up() -> bool:
            try:
                return bool(fetch(f"{base}/livez"))
            except OSError:
                return False

        services.wait_until(is_up, 30.0, "gunicorn answers")
        workers = set()
        visits = 0
        while visits < 60 or (len(workers) < 2 and visits < 2000):
            workers.add(fetch(f"{base}/visit/"))
            visits += 1
        assert len(workers) > 1
        pages = [fetch(f"{base}/metrics") for _ in range(9)]
    finally:
        server.terminate()
        server.wait(20)
    counted = [float(re.search(r"^project_visits_total (\S+)", page, re.MULTILINE)[1]) for page in pages]
    assert all(re.search(r"^project_fixed 7(\.0)?$", page, re.MULTILINE) for page in pages)
    text = (tmp_path / "log").read_text()
    if is_shared:
        assert counted == [float(visits)] * len(pages)
        assert "INCLUDE_REGISTRY" not in text
        assert not any("process_resident_memory_bytes" in page for page in pages)
    else:
        assert "PROMETHEUS_MULTIPROC_DIR" in text
