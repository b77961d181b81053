"""`manage.py otel serve` and `folder`, and processes outside the web server that share its numbers."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from django_otel.metrics.model import OWN_SCOPE, Family, MetricType, Point
from django_otel.operations import serve as serving
from tests import services
from tests.multiprocess.test_shared_servers import requests_counted, samples_of, total

TOKEN = "tell-nobody-4711"


def otel_settings(shared, **metrics):
    return {
        "SERVICE_NAME": "shared",
        "SAMPLING": {"LIVE": False},
        "METRICS_VIEW": {"ALLOW": "all"},
        "METRICS": {"SHARED_DIR": str(shared), **metrics},
    }


@pytest.fixture
def shared(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


def command(*arguments):
    return [sys.executable, "-m", "django", *arguments]


def run(otel, *arguments):
    return services.run_program(command(*arguments), services.server_env(otel))


@contextlib.contextmanager
def serve_scrape(otel, tmp_path, *arguments):
    """`manage.py otel serve`, and where it answers."""
    port = services.free_port()
    log = tmp_path / f"serve-{port}.log"
    environment = services.server_env(otel, PYTHONUNBUFFERED="1")
    with services.running(command("otel", "serve", "--port", str(port), *arguments), environment, log) as process:
        services.wait_until(lambda: services.is_listening(port) or process.poll() is not None, 60, "otel serve")
        yield services.Server(f"http://127.0.0.1:{port}", process, log)


def test_serve_shows_what_all_workers_have_counted_and_ends_at_sigterm(shared, tmp_path):
    otel = otel_settings(shared)
    otel["METRICS_VIEW"] = {"ALLOW": "token", "TOKEN": TOKEN}
    with services.serve("gunicorn", otel, workers=3) as web, serve_scrape(otel, tmp_path) as scrape:
        for _ in range(12):
            web.get("/hello/")
        status, headers, body = scrape.get("/metrics")
        assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="metrics"'), body
        assert scrape.get("/metrics", {"authorization": "Bearer wrong"})[0] == 401
        allowed = {"authorization": f"Bearer {TOKEN}"}
        status, headers, page = scrape.get("/metrics", allowed)
        assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        samples = samples_of(page)
        assert total(samples, "http_server_request_duration_seconds_count", http_route="/hello/") == 12
        assert total(samples, "http_server_active_requests") == 0
        assert total(samples, "django_otel_shared_active") == 1
        assert sum(name == "target_info" for name, _ in samples) == 1
        status, headers, page = scrape.get(
            "/metrics", {**allowed, "accept": "application/openmetrics-text; version=1.0.0", "accept-encoding": "gzip"}
        )
        assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert headers["vary"] == "Accept, Accept-Encoding"
        assert list(parse_openmetrics(gzip.decompress(page).decode()))
        assert scrape.request("HEAD", "/metrics", headers=allowed)[2] == b""
        assert scrape.request("POST", "/metrics", b"x")[0] == 405
        assert scrape.request("BREW", "/metrics")[0] == 405
        assert scrape.get("/admin/")[0] == 404
        assert scrape.get("/livez")[0] == 200
        # It joined nothing: the slots are those of the workers.
        [folder] = shared.glob("*/*/")
        assert len(list(folder.glob("*.cells"))) <= 3
        scrape.process.send_signal(signal.SIGTERM)
        assert scrape.process.wait(60) == 0
        assert TOKEN not in scrape.log


def test_serve_finds_a_server_that_starts_later_and_its_next_master(shared, tmp_path):
    otel = otel_settings(shared)
    with serve_scrape(otel, tmp_path) as scrape:
        status, _, body = scrape.get("/metrics")
        assert (status, b"No worker process of this project" in body) == (503, True)
        for count in (3, 2):
            with services.serve("gunicorn", otel, workers=2) as web:
                for _ in range(count):
                    web.get("/hello/")
                assert requests_counted(scrape) == count
        services.wait_until(lambda: scrape.get("/metrics")[0] == 503, 60, "the end of the second server")


def test_serve_asks_which_of_two_servers_is_meant(shared, tmp_path):
    otel = otel_settings(shared)
    with services.serve("gunicorn", otel, workers=1) as one, services.serve("gunicorn", otel, workers=1) as other:
        one.get("/hello/")
        [first] = map(str, shared.glob("*/*/"))
        other.get("/hello/")
        other.get("/hello/")
        found = run(otel, "otel", "serve", "--port", "0")
        assert found.returncode == 1
        folders = sorted(str(folder) for folder in shared.glob("*/*/"))
        assert len(folders) == 2
        said = found.stdout.replace("\n", " ")
        assert all(folder in said for folder in folders), said
        assert "--folder" in said
        assert "METRICS.GROUP" in said
        with serve_scrape(otel, tmp_path, "--folder", first) as scrape:
            assert requests_counted(scrape) == 1


def test_serve_says_why_it_cannot(shared):
    otel = otel_settings(shared)
    shared.chmod(0o755)
    assert "mode 755" in run(otel, "otel", "serve", "--port", "0", "--folder", str(shared)).stdout
    off = run({**otel, "METRICS": {"EXPORTERS": []}}, "otel", "serve", "--port", "0")
    assert (off.returncode, "nothing to serve" in off.stdout) == (1, True)
    assert run(otel, "otel", "serve", "--port", "70000").returncode == 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = run(otel, "otel", "serve", "--port", str(taken.getsockname()[1]))
    assert (busy.returncode, "Cannot listen on 127.0.0.1" in busy.stdout) == (1, True)


def test_folder_shows_slots_sizes_and_instruments(shared):
    otel = otel_settings(shared)
    nothing = run(otel, "otel", "folder")
    assert nothing.returncode == 1
    assert "SHARED_DIR" in nothing.stdout
    with services.serve("gunicorn", otel, workers=1) as web:
        web.get("/hello/")
        text = run(otel, "otel", "folder").stdout
        content = json.loads(run(otel, "otel", "folder", "--format", "json").stdout)
    [group] = content["groups"]
    assert group["living"]
    assert group["owner_pid"] == web.process.pid
    [slot] = group["slots"]
    assert slot["living"]
    assert slot["pid"] > 0
    assert slot["size_bytes"] > 8192
    assert slot["series"] >= 2
    assert "http.server.request.duration" in slot["instruments"]
    assert group["folder"] in text
    assert "1 slot, 1 held by a living process" in text
    assert "http.server.request.duration" in text.replace("\n", " ")


def test_a_management_command_of_the_same_group_is_seen_in_the_web_servers_scrape(shared, tmp_path):
    """While it runs and after it has ended; its counters add up with the workers' own, its in-flight numbers go."""
    otel = otel_settings(shared, GROUP="shop")
    with services.serve("gunicorn", otel, workers=2) as web, serve_scrape(otel, tmp_path) as scrape:
        for _ in range(4):
            web.get("/hello/")
        worker = subprocess.Popen(
            command("count_jobs", "3", "--wait"), cwd=services.ROOT, env=services.server_env(otel),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert worker.stdout.readline() == "counted\n"
        for server in (web, scrape):
            samples = samples_of(server.get("/metrics")[2])
            assert total(samples, "jobs_done_total") == 3
            assert total(samples, "jobs_running") == 1
        worker.communicate("\n", timeout=20)
        assert worker.returncode == 0
        # A second one takes the first one's slot and goes on from there.
        assert run(otel, "count_jobs", "2").returncode == 0
        for server in (web, scrape):
            samples = samples_of(server.get("/metrics")[2])
            assert total(samples, "jobs_done_total") == 5
            assert total(samples, "jobs_running") == 0
            assert requests_counted(server) == 4


def test_a_command_without_the_group_keeps_its_numbers_to_itself(shared):
    otel = otel_settings(shared)
    with services.serve("gunicorn", otel, workers=2) as web:
        web.get("/hello/")
        assert run(otel, "count_jobs", "3").returncode == 0
        assert total(samples_of(web.get("/metrics")[2]), "jobs_done_total") == 0


# --- The small HTTP server alone. ---


@contextlib.contextmanager
def scrape_server(collect):
    server = serving.ScrapeServer("127.0.0.1", 0, serving.Source(collect, {"service.name": "x"}))
    stop = serving.StopFlag()
    thread = threading.Thread(target=server.run_until, args=(stop,))
    thread.start()
    try:
        yield services.Server(f"http://127.0.0.1:{server.server_port}", None, None)
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


ONE_COUNTER = [Family("a", MetricType.COUNTER, "", "", OWN_SCOPE, [Point((), 1.0)])]


def _address(server):
    return "127.0.0.1", int(server.url.rpartition(":")[2])


def _drip(connections, stopped):
    """Send a byte of a request's head through each connection, again and again, never its end."""
    while not stopped.is_set():
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(b"G")
        stopped.wait(0.05)


@pytest.mark.heavy
@pytest.mark.parametrize("number", [32, 3 * serving.MAX_CONNECTIONS])
def test_clients_that_send_slowly_shut_nobody_out_and_are_cut_off(number):
    stopped = threading.Event()
    with scrape_server(lambda: ONE_COUNTER) as server, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(_address(server))) for _ in range(number)]
        dripping = threading.Thread(target=_drip, args=(connections, stopped))
        dripping.start()
        try:
            for _ in range(5):
                assert server.get("/livez")[0] == 200
                assert b"a_total 1" in server.get("/metrics")[2]
            # The whole head has 5 s, however often a byte of it comes.
            for connection in connections:
                connection.settimeout(20)
                with contextlib.suppress(ConnectionError):
                    assert connection.recv(1) == b""
        finally:
            stopped.set()
            dripping.join(60)


@pytest.mark.heavy
def test_clients_that_do_not_read_their_answer_shut_nobody_out():
    families = [
        Family(f"a{number}", MetricType.COUNTER, "", "x" * 1000, OWN_SCOPE, [Point((), 1.0)]) for number in range(3_000)
    ]
    with scrape_server(lambda: families) as server, contextlib.ExitStack() as stack:
        for _ in range(serving.MAX_SCRAPES + 8):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(_address(server))
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            # Its answer has begun.
            assert connection.recv(1) == b"H"
        assert server.get("/livez")[0] == 200
        assert b"a2999_total 1" in server.get("/metrics")[2]


def test_connections_are_bounded():
    server = serving.ScrapeServer("127.0.0.1", 0, serving.Source(lambda: ONE_COUNTER, {}))
    stop = serving.StopFlag()
    thread = threading.Thread(target=server.run_until, args=(stop,))
    thread.start()
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(2 * serving.MAX_CONNECTIONS):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.server_port)))
                assert server.active <= serving.MAX_CONNECTIONS
            services.wait_until(lambda: server.active == serving.MAX_CONNECTIONS, 60, "the limit")
        services.wait_until(lambda: server.active == 0, 60, "the end of them")
    finally:
        stop.set()
        thread.join(60)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /metrics HTTP/1.1\r\nAccept: " + b"a/b;q=0.1," * 100_000 + b"\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"G" * 100_000,
    ],
)
def test_a_head_that_is_too_long_is_refused(head):
    with scrape_server(lambda: ONE_COUNTER) as server:
        with socket.create_connection(_address(server), timeout=10) as client:
            answered = b""
            # The server closes with part of the head unread, so the client may see a reset.
            with contextlib.suppress(ConnectionError):
                client.sendall(head)
                while read := client.recv(4096):
                    answered += read
            assert not answered or answered.startswith(b"HTTP/1.0 431 ")
        assert server.get("/livez")[0] == 200


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([b"GET /livez HT", b"TP/1.1\r\n", b"\r", b"\n"], b"200"),
        ([b"GET /livez HTTP/1.0\n\n"], b"200"),
        ([b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n"], b"200"),
        ([b"POST /metrics HTTP/1.1\r\n\r\n"], b"405"),
        ([b"BREW /pot HTTP/1.1\r\n\r\n"], b"405"),
        ([b"nonsense\r\n\r\n"], b"400"),
        ([b"\0\0\0\0\r\n\r\n"], b"400"),
        ([b"GET /elsewhere HTTP/1.1\r\n\r\n"], b"404"),
    ],
)
def test_a_head_may_come_in_pieces_and_nonsense_is_answered(pieces, status):
    with (
        scrape_server(lambda: ONE_COUNTER) as server,
        socket.create_connection(_address(server), timeout=10) as client,
    ):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
        answered = b""
        while read := client.recv(4096):
            answered += read
    assert status in answered.split(b"\r\n")[0] or status in answered


def test_renders_are_bounded_and_one_more_is_told_to_try_again(monkeypatch):
    monkeypatch.setattr(serving, "_MAX_WAIT_S", 0.2)
    release, begun = threading.Event(), threading.Semaphore(0)

    def collect():
        begun.release()
        release.wait(30)
        return ONE_COUNTER

    with scrape_server(collect) as server, contextlib.ExitStack() as stack:
        try:
            for _ in range(serving.MAX_SCRAPES):
                client = stack.enter_context(socket.create_connection(_address(server)))
                client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            for _ in range(serving.MAX_SCRAPES):
                assert begun.acquire(timeout=60)
            assert server.get("/livez")[0] == 200
            assert server.get("/metrics")[0] == 503
        finally:
            release.set()
        services.wait_until(lambda: _answers(server), 60, "a page again")


def _answers(server):
    with contextlib.suppress(OSError, services.http.client.HTTPException):
        return b"a_total 1" in server.get("/metrics")[2]
    return False


def test_what_fails_while_collecting_is_a_sentence_and_not_a_traceback(caplog):
    def collect():
        raise ValueError("password=hunter2")

    with scrape_server(collect) as server:
        status, _, body = server.get("/metrics")
    assert (status, body) == (500, b"This page failed; the log says why.\n")


def test_the_folder_is_left_as_it_was_when_it_vanishes(shared, tmp_path):
    """The page is refused while the folder is gone, and comes back with it."""
    otel = otel_settings(shared, GROUP="shop")
    with services.serve("gunicorn", otel, workers=1) as web, serve_scrape(otel, tmp_path) as scrape:
        web.get("/hello/")
        assert requests_counted(scrape) == 1
        services.delete_in_use(next(shared.glob(f"django-otel-{os.geteuid()}/*")))
        services.wait_until(
            lambda: scrape.get("/metrics")[0] == 200 and requests_counted(scrape) == 1, 60, "the new folder"
        )
