"""docs/deploy.md and the files in deploy/: every file parses, every command runs, and removal leaves nothing behind."""

from __future__ import annotations

import configparser
import importlib.util
import json
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from django_otel.config.parse import parse
from tests import services

ROOT = services.ROOT
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"^<!-- snippet: ([\w-]+) -->\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


def test_the_settings_are_valid_and_check_deploy_finds_nothing():
    names: dict = {}
    exec(SNIPPETS["production"], names)
    config = parse(names["OTEL"], {})
    assert config.health.ready == ("config", "databases") and config.sampling.ratio < 1


@pytest.mark.parametrize("kind", ["gunicorn", "uvicorn", "granian", "uwsgi"])
def test_the_command_starts_a_server_that_is_ready(kind, tmp_path):
    program, *arguments = shlex.split(SNIPPETS[kind])
    if kind == "uwsgi":
        start = [services.find_uwsgi()] if services.find_uwsgi() else []
    else:
        start = [sys.executable, "-m", program] if importlib.util.find_spec(program) else []
    if not start:
        pytest.skip(f"{kind} is not installed")
    port = services.free_port()
    command = [
        *start,
        *(part.replace("shop.", "tests.").replace(":8000", f":{port}") for part in arguments),
    ]
    command = [str(port) if part == "8000" else part for part in command]
    if kind == "uwsgi":
        command += ["--home", sys.prefix, "--pythonpath", str(ROOT)]
    env = services.server_env({"HEALTH": {"READY": ["config", "databases"]}}, TEST_SQLITE=str(tmp_path / "db.sqlite3"))
    with services.running(command, env, tmp_path / "log") as process:
        services.wait_until(
            lambda: services.is_listening(port) or process.poll() is not None, 30, f"{kind} on port {port}"
        )
        server = services.Server(f"http://127.0.0.1:{port}", process, tmp_path / "log")
        assert server.get("/livez", {"Host": "10.0.0.7:8000"})[0] == 200
        assert server.get("/readyz", {"Host": "10.0.0.7:8000"})[0] == 200
        assert server.get("/hello/", {"Host": "10.0.0.7:8000"})[0] == 400


def test_the_probes_of_kubernetes_are_pages_of_ours():
    manifest = yaml.safe_load((ROOT / "deploy" / "kubernetes.yaml").read_text())
    [container] = manifest["spec"]["template"]["spec"]["containers"]
    from django.urls import resolve

    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        match = resolve(container[probe]["httpGet"]["path"], "tests.urls")
        assert match.func.__module__ == "django_otel.views"
        # HEALTH.TIMEOUT_S is 1 s.
        assert container[probe]["timeoutSeconds"] > 1
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/dev/shm"}


def test_the_systemd_unit_has_the_folders():
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read(ROOT / "deploy" / "shop.service")
    assert unit["Service"]["RuntimeDirectory"] == unit["Service"]["CacheDirectory"] == "shop"


def test_the_image_does_not_run_as_root():
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    [user] = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert int(user) > 0
    [command] = [line.removeprefix("CMD ") for line in lines if line.startswith("CMD ")]
    assert json.loads(command)[0] == "gunicorn"


def test_removing_the_app_leaves_no_table_and_no_permission(tmp_path):
    """The steps of the page, in a database of its own."""
    env = services.server_env({}, TEST_SQLITE=str(tmp_path / "db.sqlite3"))

    def manage(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "django", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    [step] = re.findall(r"`manage\.py shell -c \"(.*?)\"`", PAGE, re.DOTALL)
    manage("migrate", "-v", "0")
    assert "manage.py migrate django_otel zero" in PAGE
    manage("migrate", "django_otel", "zero", "-v", "0")
    manage("shell", "-v", "0", "-c", " ".join(step.split()))
    left = manage(
        "shell", "-v", "0", "-c",
        "from django.db import connection as c; from django.contrib.auth.models import Permission as P;"
        "print([t for t in c.introspection.table_names() if 'django_otel' in t],"
        "P.objects.filter(content_type__app_label='django_otel').count())",
    )  # fmt: skip
    assert left.strip().splitlines()[-1] == "[] 0"
