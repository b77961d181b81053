"""docs/deploy.md and the files in deploy/: every file parses, every command runs, and removal leaves nothing behind."""

from __future__ import annotations

import configparser
import http.server
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading

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


@pytest.mark.parametrize(
    "kind", ["gunicorn", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("uvicorn", "granian")), "uwsgi"]
)
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


def test_the_systemd_unit_is_accepted_by_systemd(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = (ROOT / "deploy" / "shop.service").read_text()
    # The program has to exist.
    unit = tmp_path / "shop.service"
    unit.write_text(re.sub(r"^(ExecStart=)\S+", rf"\g<1>{sys.executable}", text, flags=re.MULTILINE))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60
    )
    found = [line for line in (done.stdout + done.stderr).splitlines() if "shop.service" in line]
    assert found == [], found


def test_the_manifest_fits_the_schema_of_kubernetes():
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is in the extra test")
    for manifest in yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()):
        validate.validate(manifest, validate.latest_version(), strict=True)


class Echo(http.server.BaseHTTPRequestHandler):
    """An application server that answers with the headers it got."""

    def do_GET(self):
        body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.debian
def test_nginx_hides_our_pages_and_passes_on_the_rest(tmp_path):
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        services.missing("needs nginx: apt-get install nginx")
    port = services.free_port()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as upstream:
        thread = threading.Thread(target=upstream.serve_forever, daemon=True)
        thread.start()
        text = (ROOT / "deploy" / "nginx.conf").read_text()
        text = text.replace("127.0.0.1:8000", f"127.0.0.1:{upstream.server_port}")
        text = text.replace("listen 80;", f"listen 127.0.0.1:{port};")
        folders = "".join(
            f"{name}_temp_path {tmp_path}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (tmp_path / "shop.conf").write_text(text)
        (tmp_path / "nginx.conf").write_text(
            f"daemon off; pid {tmp_path}/pid; error_log stderr; events {{}}"
            f" http {{ access_log off; {folders} include {tmp_path}/shop.conf; }}"
        )
        command = [program, "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
        try:
            subprocess.run([*command, "-t"], check=True, capture_output=True, timeout=60)
            with services.running(command, None, tmp_path / "log") as process:
                services.wait_until(lambda: services.is_listening(port) or process.poll() is not None, 30, "nginx")
                server = services.Server(f"http://127.0.0.1:{port}", process, tmp_path / "log")
                for page in ("/metrics", "/livez", "/readyz", "/startupz"):
                    assert server.get(page, {"Host": "shop.example.com"})[0] == 404, page
                status, _, body = server.get("/orders/", {"Host": "shop.example.com"})
        finally:
            upstream.shutdown()
            thread.join()
    headers = json.loads(body)
    assert status == 200 and headers["host"] == "shop.example.com" and headers["x-forwarded-for"] == "127.0.0.1"
    assert re.fullmatch(r"t=\d{10}\.\d{3}", headers["x-request-start"]), headers


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
        return services.run_django(env, *arguments).stdout

    # The apps of the tests have no migrations, and one of them refers to content types.
    manage("migrate", "--run-syncdb", "-v", "0")
    steps = [shlex.split(line) for line in SNIPPETS["removal"].splitlines()]
    assert [step[:3] for step in steps] == [["python", "manage.py", "migrate"], ["python", "manage.py", "shell"]]
    for step in steps:
        manage(*step[2:])
    left = manage(
        "shell", "-v", "0", "-c",
        "from django.db import connection as c; from django.contrib.auth.models import Permission as P;"
        "print([t for t in c.introspection.table_names() if 'django_otel' in t],"
        "P.objects.filter(content_type__app_label='django_otel').count())",
    )  # fmt: skip
    assert left.strip().splitlines()[-1] == "[] 0"
