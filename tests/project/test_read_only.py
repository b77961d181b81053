"""A container with a read-only root: only `/dev/shm` can be written, or nothing at all. In a mount namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests import services

#: `/dev/shm` as the first argument says, and everything else of this machine read-only.
ISOLATE = """
mount --make-rprivate / && mount -t tmpfs -o "$1" tmpfs /dev/shm && mount -o remount,bind,ro / && shift && exec "$@"
"""

SETTINGS = """
SECRET_KEY = "x"
DEBUG = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "closed_urls"
WSGI_APPLICATION = "closed_wsgi.application"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django_otel"]
MIDDLEWARE = ["django_otel.middleware.OTelMiddleware"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
OTEL = {"SERVICE_NAME": "closed", "SAMPLING": {"LIVE": False}, "METRICS_VIEW": {"ALLOW": "all"}}
"""
URLS = """
import os
from django.http import HttpResponse
from django.urls import include, path
urlpatterns = [path("", include("django_otel.urls")), path("pid/", lambda request: HttpResponse(str(os.getpid())))]
"""
WSGI = "from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()\n"
ASK = """
import django
from django.conf import settings
# A single process shares its numbers only if it is asked to.
settings.OTEL["METRICS"] = {"GROUP": "web"}
django.setup()
from django.test import Client
for _ in range(3):
    Client().get("/pid/")
print(Client().get("/metrics").content.decode())
"""


def isolated(mode: str, *command: str) -> list[str]:
    return ["unshare", "-m", "sh", "-c", ISOLATE, "sh", mode, *command]


@pytest.fixture
def project(tmp_path, monkeypatch):
    if shutil.which("unshare") is None or subprocess.run(isolated("rw", "true"), capture_output=True).returncode:
        pytest.skip("needs unshare(1) and the right to make a mount namespace")
    for name, text in (("settings", SETTINGS), ("urls", URLS), ("wsgi", WSGI)):
        (tmp_path / f"closed_{name}.py").write_text(text)
    for name in ("TMPDIR", "TEMP", "TMP", "XDG_RUNTIME_DIR", "RUNTIME_DIRECTORY", "CACHE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    env = services.server_env(None, DJANGO_SETTINGS_MODULE="closed_settings", PYTHONDONTWRITEBYTECODE="1")
    return {**env, "PYTHONPATH": f"{tmp_path}{os.pathsep}{services.ROOT}"}


def run(mode: str, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    command = isolated(mode, sys.executable, *arguments)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    done.words = " ".join(f"{done.stdout} {done.stderr}".split())
    return done


@pytest.mark.long
def test_with_shared_memory_alone_nothing_is_missing_but_the_store(project):
    assert "W005" not in run("rw", project, "-m", "django", "check").words
    assert "has written metrics to /dev/shm/django-otel-" in run("rw", project, "-m", "django", "otel", "folder").words
    doctor = run("rw", project, "-m", "django", "otel", "doctor").words
    assert "ok shared folder: worker processes share their metrics in /dev/shm/django-otel-" in doctor
    assert "warning store: traces cannot be stored: " in doctor


@pytest.mark.long
def test_with_shared_memory_alone_workers_share_their_numbers(project, tmp_path):
    port = services.free_port()
    gunicorn = [sys.executable, "-m", "gunicorn", "closed_wsgi:application", "--bind", f"127.0.0.1:{port}"]
    command = isolated("rw", *gunicorn, "--workers", "2", "--worker-tmp-dir", "/dev/shm")
    with services.running(command, project, tmp_path / "log") as process:
        server = services.Server(f"http://127.0.0.1:{port}", process, tmp_path / "log")
        services.wait_until(lambda: services.is_listening(port) or process.poll() is not None, 30, "gunicorn")
        pids: list[bytes] = []

        def both_answered() -> bool:
            pids.append(server.get("/pid/")[2])
            return len(set(pids)) == 2

        services.wait_until(both_answered, 60, "an answer of each worker")
        page = server.get("/metrics")[2].decode()
    assert "django_otel_shared_active 1" in page
    [counted] = [line for line in page.splitlines() if line.startswith("http_server_request_duration_seconds_count")]
    assert counted.endswith(f" {len(pids)}")


def test_where_nothing_is_writable_everything_says_so(project):
    check = run("ro", project, "-m", "django", "check").words
    assert "(django_otel.W005) Worker processes cannot share their metrics (/dev/shm is not writable" in check
    assert '(django_otel.W015) OTEL["CONSOLE"]: traces cannot be stored: ' in check
    folder = run("ro", project, "-m", "django", "otel", "folder")
    assert folder.returncode == 1 and "cannot share their metrics (/dev/shm is not writable" in folder.words
    doctor = run("ro", project, "-m", "django", "otel", "doctor").words
    assert "warning shared folder: worker processes cannot share their metrics" in doctor
    assert "warning store: traces cannot be stored: " in doctor
    asked = run("ro", project, "-c", ASK)
    assert "django_otel_shared_active 0" in asked.stdout
    [counted] = [line for line in asked.stdout.splitlines() if "request_duration_seconds_count{" in line]
    assert 'http_route="/pid/"' in counted and counted.endswith(" 3")
    assert asked.stderr.count("cannot share its numbers") == 1, asked.stderr
    assert asked.stderr.count("the trace store cannot be written to") == 1, asked.stderr
