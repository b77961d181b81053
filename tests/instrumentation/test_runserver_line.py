"""The line of `runserver` for each request: one, with duration, queries and the address of the trace."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest

from django_otel.instrumentation import runserver_line
from tests import services

OTEL = {"SERVICE_NAME": "shop", "SAMPLING": {"RATIO": 1.0}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runserver")
    otel = {**OTEL, "CONSOLE": {"ENABLED": True, "PATH": str(folder / "store")}}
    (folder / "debug_settings.py").write_text(
        "from tests.settings import *\nDEBUG = True\nROOT_URLCONF = 'tests.urls_with_server_error'\n"
    )
    env = services.server_env(otel, TEST_SQLITE=str(folder / "db.sqlite3"))
    services.migrate_database(env)
    env |= {"DJANGO_SETTINGS_MODULE": "debug_settings", "PYTHONPATH": f"{folder}{os.pathsep}{services.ROOT}"}
    port = services.free_port()
    command = [sys.executable, "-m", "django", "runserver", "--noreload", f"127.0.0.1:{port}"]
    with services.running(command, env, folder / "log") as process:
        services.wait_until(lambda: services.is_listening(port) or process.poll() is not None, 60, "runserver")
        yield SimpleNamespace(url=f"http://127.0.0.1:{port}", log=folder / "log")


def lines(server, path: str) -> list[str]:
    """The lines that name a path, once there is one."""

    def found() -> list[str]:
        return [line for line in server.log.read_text().splitlines() if f'"GET {path} ' in line]

    services.wait_until(lambda: bool(found()), 60, f"the line of {path}")
    return found()


def get(server, path: str) -> None:
    try:
        urllib.request.urlopen(server.url + path, timeout=20).read()
    except urllib.error.HTTPError as error:
        with error:
            error.read()


def test_one_line_a_request_with_the_address_of_its_trace(server):
    get(server, "/n-plus-one/")
    (line,) = lines(server, "/n-plus-one/")
    address = r"http://127\.0\.0\.1:\d+/admin/.*/trace/[0-9a-f]{32}/"
    found = re.search(rf'" 200 \d+  (\d+) ms  (\d+) queries .*({address})$', line)
    assert found, line
    assert int(found[2]) >= 5 and found[3].startswith(server.url)


def test_failed_and_unmatched_requests_have_theirs(server):
    get(server, "/boom/")
    get(server, "/nowhere/at/all/")
    assert re.search(r'" 500 \d+  \d+ ms .*/trace/', lines(server, "/boom/")[0])
    assert re.search(r'" 404 \d+  \d+ ms .*/trace/', lines(server, "/nowhere/at/all/")[0])


def test_what_is_not_measured_keeps_djangos_line(server):
    get(server, "/livez")
    (line,) = lines(server, "/livez")
    assert re.search(r'" (200|404) \d+$', line), line


# --- The parts. ---


def record_of(*arguments) -> logging.LogRecord:
    return logging.LogRecord("django.server", logging.INFO, "x", 1, '"%s" %s %s', arguments, None)


def test_only_the_line_of_that_request_is_made_longer():
    added = runserver_line._AddToLine()
    runserver_line._finished.method, runserver_line._finished.text = "GET", "5 ms"
    other = record_of("a", "b")
    assert added.filter(other) and other.args == ("a", "b")
    mine = record_of("GET /x HTTP/1.1", "200", "12")
    assert added.filter(mine) and mine.getMessage() == '"GET /x HTTP/1.1" 200 12  5 ms'
    later = record_of("GET /static/x.css HTTP/1.1", "200", "12")
    assert added.filter(later) and later.getMessage() == '"GET /static/x.css HTTP/1.1" 200 12'

    runserver_line._finished.method, runserver_line._finished.text = "GET", "5 ms"
    elsewhere = record_of("GET /x HTTP/1.1", "200", "12")
    thread = threading.Thread(target=added.filter, args=(elsewhere,))
    thread.start()
    thread.join()
    assert elsewhere.getMessage() == '"GET /x HTTP/1.1" 200 12'
    post = record_of("POST /x HTTP/1.1", "200", "12")
    assert added.filter(post) and post.getMessage() == '"POST /x HTTP/1.1" 200 12'


def test_no_other_command_pays_for_it():
    from django_otel import middleware
    from django_otel.requests.observer import Observer

    assert type(middleware.get_observer()) is Observer
    assert not any(isinstance(one, runserver_line._AddToLine) for one in logging.getLogger("django.server").filters)


def test_n_plus_one_and_hostile_hosts(rf):
    request = rf.get("/orders/7/", headers={"host": "x\x1b[2J"})
    request.resolver_match = SimpleNamespace(kwargs={"pk": 7}, args=(), route="orders/<int:pk>/")
    event = SimpleNamespace(
        name="django.n_plus_one",
        attributes={"django.n_plus_one.count": 12, "code.file.path": "shop/views.py", "code.line.number": 7},
    )
    context = SimpleNamespace(is_valid=True, trace_flags=SimpleNamespace(sampled=True), trace_id=5)
    span = SimpleNamespace(events=[event], get_span_context=lambda: context)
    text = runserver_line.describe(SimpleNamespace(started_s=0.0, queries=1, span_or_none=span), request)
    assert "1 query  N+1: 12 shop/views.py:7  /orders/<int:pk>/" in text and "\x1b" not in text
