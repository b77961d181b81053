"""Faults of other libraries, each of which a test here would find in ours; hard cases under real servers.

"pitfalls A6" and the like name the fault in the project's list of pitfalls. Most
of that list is tested beside the part it belongs to; this file has the rest.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import services

HARD = {"DJANGO_SETTINGS_MODULE": "tests.hard_settings"}
OPEN = {"METRICS_VIEW": {"ALLOW": "all"}, "SAMPLING": {"LIVE": False}}


def exporting(receiver, **more):
    return {
        "SERVICE_NAME": "hard",
        **OPEN,
        "TRACES": {"ENDPOINT": receiver.url, "BATCH": {"DELAY_S": 0.1}},
        "METRICS": {"EXPORTERS": ["prometheus", "otlp"], "INTERVAL_S": 0.3},
        "LOGS": {"EXPORTERS": ["otlp"]},
        **more,
    }


def samples(page: bytes, name: str) -> list[str]:
    return [line for line in page.decode().splitlines() if line.startswith(name + "{")]


def total(page: bytes, name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in samples(page, name))


def all_bytes(receiver) -> bytes:
    """What arrived, decoded and undone from its compression, as the bytes it was."""
    return b"".join(message.SerializeToString() for _, _, message in list(receiver.requests))


# --- Secrets: pitfalls, section 3. ---


@pytest.mark.parametrize("kind", ["gunicorn", "uvicorn"])
def test_no_planted_secret_is_among_the_bytes_a_receiver_gets(kind, receiver):
    """pitfalls 3.1, 3.2, 3.3, 3.5, 3.8: by URL, header, body of a log, SQL, exception, status, event, label, baggage."""
    secret, credential, in_path = "Zx81secretQ", "Qv77headerW", "Pk55pathR"
    otel = exporting(
        receiver,
        REQUEST={"QUERY": True, "REQUEST_HEADERS": ["*"], "RESPONSE_HEADERS": ["*"]},
        RESOURCE={"deploy.api_key": secret},
        PROPAGATION={"BAGGAGE_KEYS": ["password"]},
    )
    with services.serve(kind, otel, **HARD) as server:
        headers = {
            "Authorization": f"Bearer {credential}",
            "Cookie": f"sessionid={secret}",
            "X-Api-Key": secret,
            "Referer": f"https://shop.example/?access_token={secret}",
            "baggage": f"password={secret}",
        }
        status, _, _ = server.get(f"/leak/{in_path}/?password={secret}&X-Amz-Signature={secret}&q=ok", headers)
        assert status == 500
        services.wait_until(lambda: any(span.kind == 2 for _, span in receiver.spans()), what="the server span")
        services.wait_until(lambda: any("Internal" in str(record.body) for _, record in receiver.logs()), what="its log")
        services.wait_until(lambda: any(m.name == "leaks" for _, _, m in receiver.metrics()), what="the metrics")
        page = server.get("/metrics")[2]
    sent = all_bytes(receiver)
    found = [
        (path, text)
        for path, _, message in receiver.requests
        for text in re.findall(rf"(?:.*\n){{2}}.*(?:{secret}|{credential}|{in_path}).*", str(message))
    ]
    assert found == [], "\n".join(f"{path}: {text}" for path, text in found)
    for planted in (secret, credential, in_path):
        assert planted.encode() not in sent
        assert planted.encode() not in page
    # What is no secret is still there.
    assert b"q=ok" in sent
    assert b"refused" in sent
    names = {span.name for _, span in receiver.spans()}
    assert "GET /leak/<str:token>/" in names
    assert "payment" in names


def test_text_that_no_encoder_takes_costs_no_batch(receiver):
    """A lone surrogate from a client's JSON, or an integer of 70 bits, must not take a batch of 512 spans along."""
    with services.serve("gunicorn", exporting(receiver), **HARD) as server:
        for _ in range(3):
            assert server.get("/surrogates/")[0] == 200
            assert server.get("/fine/")[0] == 200
        services.wait_until(lambda: sum(span.kind == 2 for _, span in receiver.spans()) == 6, 10, "all spans")
        services.wait_until(
            lambda: sum("body" in str(record.body) for _, record in receiver.logs()) == 3, 10, "all log records"
        )
        services.wait_until(lambda: any(m.name == "surrogates" for _, _, m in receiver.metrics()), what="the metric")
        assert server.get("/metrics")[0] == 200
        assert "Traceback" not in server.log
    span = next(span for _, span in receiver.spans() if span.name == "GET /surrogates/")
    attributes = services.attributes_of(span)
    assert attributes["raw"] == "? lone"
    assert attributes["null"] == "a\x00b"


def test_a_query_string_stays_out_of_everything_by_default(receiver):
    """pitfalls 2 (Django), 3.2: a 404 under gunicorn, which sets RAW_URI, leaks its query nowhere; nor does the host."""
    with services.serve("gunicorn", exporting(receiver), **HARD) as server:
        assert server.get("/nope/123?token=SECRETtok&x=PLAINquery", {"Host": "localhost:1"})[0] == 404
        assert server.get("/fine/?token=SECRETtok&x=PLAINquery", {"Host": "127.0.0.1:9"})[0] == 200
        services.wait_until(lambda: sum(span.kind == 2 for _, span in receiver.spans()) == 2, what="the spans")
        services.wait_until(lambda: receiver.metrics(), what="the metrics")
        page = server.get("/metrics")[2]
    for seen in (all_bytes(receiver), page):
        assert b"SECRETtok" not in seen
        assert b"PLAINquery" not in seen
    assert b"localhost:1" not in page
    assert b"nope" not in page


# --- Abandoned and concurrent requests under real servers. ---


def begin_and_leave(server, path: str, count: int = 1) -> None:
    """Ask for `path`, read a little, and close the connection as a client that gives up does."""
    for _ in range(count):
        parts = urllib.parse.urlsplit(server.url)
        with socket.create_connection((parts.hostname, parts.port), 5) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert connection.recv(64)


def active(server) -> float:
    return total(server.get("/metrics")[2], "http_server_active_requests")


@pytest.mark.parametrize(
    ("kind", "path", "route"),
    [
        ("gunicorn", "/big/", "/big/"),
        ("gunicorn-gthread", "/big/", "/big/"),
        ("uvicorn", "/async-stream/500/", "/async-stream/<int:number>/"),
        ("uvicorn", "/async-slow/", "/async-slow/"),
    ],
)
def test_clients_that_go_away_leave_no_request_active_and_are_no_errors(kind, path, route, receiver):
    """pitfalls A6: active_requests comes back to 0, every span ends, and a disconnect is no error of the server."""
    with services.serve(kind, exporting(receiver), **HARD) as server:
        if path == "/async-slow/":
            for _ in range(5):
                with pytest.raises(TimeoutError):
                    server.get(path, timeout_s=0.4)
        else:
            begin_and_leave(server, path, 5)
        services.wait_until(lambda: active(server) == 0, 15, "no active request")
        services.wait_until(lambda: sum(span.kind == 2 for _, span in receiver.spans()) == 5, 10, "five spans")
        page = server.get("/metrics")[2]
    counts = [line for line in samples(page, "http_server_request_duration_seconds_count") if f'"{route}"' in line]
    assert sum(float(line.rpartition(" ")[2]) for line in counts) == 5
    assert not any("error_type" in line for line in counts)
    assert all(span.status.code != 2 for _, span in receiver.spans())


@pytest.mark.parametrize(("kind", "path"), [("gunicorn-gthread", "/ids/"), ("uvicorn", "/async-ids/"), ("uvicorn", "/ids/")])
def test_concurrent_requests_never_share_a_trace(kind, path, receiver):
    """Threads and tasks: what a request sees first is what it sees last, and its spans hang on its own span."""
    with services.serve(kind, exporting(receiver), **HARD) as server:
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda n: server.get(f"{path}{n}/", {"traceparent": f"00-{n + 1:032x}-{n + 1:016x}-01"}),
                                    range(120)))  # fmt: skip
        seen = [json.loads(body)["ids"] for _, _, body in answers]
        assert seen == [[f"{n + 1:032x}"] * 3 for n in range(120)]
        services.wait_until(lambda: sum(span.name == "inner" for _, span in receiver.spans()) == 120, 15, "the spans")
        assert active(server) == 0
    servers = {span.span_id: span for _, span in receiver.spans() if span.kind == 2}
    for _, span in receiver.spans():
        if span.name == "inner":
            outer = servers[span.parent_span_id]
            assert outer.trace_id == span.trace_id
            assert int.from_bytes(outer.trace_id, "big") == services.attributes_of(span)["number"] + 1


@pytest.mark.parametrize("kind", ["gunicorn", "uvicorn"])
def test_what_no_client_should_send_is_answered_as_ever_and_exported(kind, receiver):
    """Huge, latin-1 and control bytes in headers and paths: answered, measured, and every span arrives."""
    wanted = {"REQUEST_HEADERS": ["x-*"]}
    raw = [
        b"GET /fine/ HTTP/1.1\r\nHost: localhost\r\nX-Latin: caf\xe9 \xff\r\nUser-Agent: \xfc\xf6\r\nConnection: close\r\n\r\n",
        b"GET /fine/ HTTP/1.1\r\nHost: localhost\r\nX-Huge: " + b"h" * 7000 + b"\r\nUser-Agent: " + b"u" * 7000
        + b"\r\nConnection: close\r\n\r\n",
        b"GET /fine/a%00b%ff%ed%a0%80/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /fine/?q=%00%ff HTTP/1.1\r\nHost: \xe9vil:99999\r\nConnection: close\r\n\r\n",
        b"BREW /fine/ HTTP/1.1\r\nHost: localhost\r\nbaggage: " + b"k=v," * 900 + b"\r\nConnection: close\r\n\r\n",
    ]  # fmt: skip
    statuses = []
    with services.serve(kind, exporting(receiver, REQUEST={**wanted, "QUERY": True}), **HARD) as server:
        parts = urllib.parse.urlsplit(server.url)
        for message in raw:
            with socket.create_connection((parts.hostname, parts.port), 5) as connection:
                connection.sendall(message)
                statuses.append(int(connection.makefile("rb").readline().split()[1]))
        reached = sum(status != 400 for status in statuses)
        assert reached >= 4, statuses
        services.wait_until(lambda: sum(span.kind == 2 for _, span in receiver.spans()) >= reached, 10, "the spans")
        assert "django_otel" not in server.log
        assert server.get("/metrics")[0] == 200
    attributes = [services.attributes_of(span) for _, span in receiver.spans()]
    assert any(found.get("http.request.header.x-latin") == ["caf\xe9 \xff"] for found in attributes)
    assert all(len(found.get("user_agent.original", "")) <= 1024 for found in attributes)
    assert {found["http.request.method"] for found in attributes} == {"GET", "_OTHER"}


def test_a_websocket_is_refused_by_django_as_without_us():
    """Django's handler takes http alone; our lifespan answer must not change what it says of the rest."""
    code = (
        "import asyncio, django, sys\n"
        "django.setup()\n"
        "from django.core.asgi import get_asgi_application\n"
        "application = get_asgi_application()\n"
        "async def main():\n"
        "    try:\n"
        "        await application({'type': 'websocket', 'path': '/'}, None, None)\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
        "asyncio.run(main())\n"
    )
    said = []
    for otel in (OPEN, {"ENABLED": False}):
        environment = services.server_env(otel)
        done = subprocess.run([sys.executable, "-c", code], cwd=services.ROOT, env=environment, capture_output=True, text=True)
        said.append(done.stdout)
    assert said[0] == said[1]
    assert "Django can only handle ASGI/HTTP connections, not websocket." in said[0]


# --- Forks and ends of the process. ---


def test_uwsgi_workers_have_identities_ids_and_exports_of_their_own(receiver):
    """pitfalls A8, A9: uWSGI's fork runs none of Python's hooks; workers must share neither instance id nor trace ids."""
    binary = shutil.which("uwsgi", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if binary is None:
        pytest.skip("uWSGI is not installed (pip install uwsgi; it compiles)")
    port = services.free_port()
    command = [
        binary, "--http-socket", f"127.0.0.1:{port}", "--master", "--processes", "3", "--enable-threads", "--die-on-term",
        "--need-app", "--module", "tests.wsgi:application", "--home", sys.prefix, "--pythonpath", str(services.ROOT),
    ]  # fmt: skip
    environment = services.server_env(exporting(receiver), **HARD)
    log = services.Path(services.tempfile.mkdtemp()) / "log"
    try:
        with services.running(command, environment, log) as process:
            services.wait_until(lambda: services.is_listening(port) or process.poll() is not None, 20, "uWSGI")
            server = services.Server(f"http://127.0.0.1:{port}", process, log)

            def instances():
                with ThreadPoolExecutor(12) as pool:
                    list(pool.map(lambda n: server.get(f"/ids/{n}/"), range(24)))
                return {resource["service.instance.id"] for resource, span in receiver.spans() if span.kind == 2}

            def counted():
                latest = {}
                for resource, _, metric in receiver.metrics():
                    if metric.name == "http.server.request.duration":
                        number = sum(point.count for point in metric.histogram.data_points)
                        latest[resource["service.instance.id"]] = number
                return sum(latest.values())

            services.wait_until(lambda: len(instances()) == 3, 20, "spans of three workers")
            services.wait_until(
                lambda: counted() == sum(span.kind == 2 for _, span in receiver.spans()) > 0, 10, "every request counted once"
            )
        traces = [span.trace_id for _, span in receiver.spans() if span.kind == 2]
        assert len(traces) == len(set(traces))
        spans = [span.span_id for _, span in receiver.spans()]
        assert len(spans) == len(set(spans))
    finally:
        shutil.rmtree(log.parent, ignore_errors=True)


def test_stopping_twice_is_as_good_as_once():
    """pitfalls 2g: the second shutdown of the official exporter raises KeyError."""
    code = (
        "import django; django.setup()\n"
        "import django_otel\n"
        "from django_otel import runtime\n"
        "django_otel.counter('c').add(1)\n"
        "with django_otel.span('s'): pass\n"
        "print(runtime.stop(1.0), runtime.stop(1.0), django_otel.flush(0.2))\n"
    )
    otel = {"TRACES": {"EXPORTERS": ["console"]}, "METRICS": {"EXPORTERS": ["console", "prometheus-registry"]}}
    environment = services.server_env({**OPEN, **otel})
    done = subprocess.run([sys.executable, "-c", code], cwd=services.ROOT, env=environment, capture_output=True, text=True,
                          timeout=30)  # fmt: skip
    assert done.returncode == 0
    assert "True True True" in done.stdout
    assert done.stderr == ""


def test_a_check_command_takes_no_longer_with_a_collector_that_is_a_black_hole(tmp_path):
    """pitfalls A13: `manage.py check` adds under 1 s."""
    script = tmp_path / "manage.py"
    script.write_text("import sys\nfrom django.core.management import execute_from_command_line\n"
                      "execute_from_command_line(sys.argv)\n")  # fmt: skip

    def duration_s(otel) -> float:
        begun_s = time.monotonic()
        subprocess.run([sys.executable, str(script), "check"], cwd=services.ROOT, env=services.server_env(otel), check=True,
                       capture_output=True, timeout=60)  # fmt: skip
        return time.monotonic() - begun_s

    with services.start_black_hole() as hole:
        on = {**OPEN, "TRACES": {"ENDPOINT": hole}, "METRICS": {"EXPORTERS": ["otlp"], "ENDPOINT": hole}}
        # The better of two each: the machine may be busy.
        with_us = min(duration_s(on) for _ in range(2))
        without = min(duration_s({"ENABLED": False}) for _ in range(2))
    assert with_us - without < 1.0
