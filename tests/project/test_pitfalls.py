"""Faults of other libraries, each of which a test here would find in ours; hard cases under real servers.

Most such faults are tested in the folder of the part they belong to; this file has
those that concern several parts.
"""

from __future__ import annotations

import contextlib
import gc
import gzip
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.parse
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from django.core.signals import request_finished
from django.db import close_old_connections, connection
from django.http import HttpResponse, StreamingHttpResponse
from django.middleware.gzip import GZipMiddleware
from django.test import Client, RequestFactory, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import URLResolver, path
from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, StatusCode

import django_otel
from django_otel import runtime
from django_otel.middleware import OTelMiddleware
from django_otel.requests import record
from tests import services, sizes

OURS = "django_otel.middleware.OTelMiddleware"
DURATION = "http.server.request.duration"
RESPONSE_SIZE = "http.server.response.body.size"
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


# --- Secrets. ---


@pytest.mark.parametrize("kind", ["gunicorn", "uvicorn"])
def test_no_planted_secret_is_among_the_bytes_a_receiver_gets(kind, receiver):
    """By URL, header, body of a log, SQL, exception, status, event, label, baggage."""
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
        services.wait_until(
            lambda: any("Internal" in str(record.body) for _, record in receiver.logs()), what="its log"
        )
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
        services.wait_until(lambda: sum(span.kind == 2 for _, span in receiver.spans()) == 6, 60, "all spans")
        services.wait_until(
            lambda: sum("body" in str(record.body) for _, record in receiver.logs()) == 3, 60, "all log records"
        )
        services.wait_until(lambda: any(m.name == "surrogates" for _, _, m in receiver.metrics()), what="the metric")
        assert server.get("/metrics")[0] == 200
        assert "Traceback" not in server.log
    span = next(span for _, span in receiver.spans() if span.name == "GET /surrogates/")
    attributes = services.attributes_of(span)
    assert attributes["raw"] == "? lone"
    assert attributes["null"] == "a\x00b"


def test_a_query_string_stays_out_of_everything_by_default(receiver):
    """A 404 under gunicorn, which sets RAW_URI, leaks neither its query nor the host."""
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


def begin_and_leave(server, path: str, count: int = 1, has_begun=lambda connection: connection.recv(64)) -> None:
    """Ask for `path`, wait until it has begun, and close the connection as a client that gives up does."""
    for _ in range(count):
        parts = urllib.parse.urlsplit(server.url)
        with socket.create_connection((parts.hostname, parts.port), 60) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert has_begun(connection)


def active(server) -> float:
    return total(server.get("/metrics")[2], "http_server_active_requests")


@pytest.mark.parametrize(
    ("kind", "path", "route"),
    sizes.few(
        [
            ("gunicorn-gthread", "/big/", "/big/"),
            ("gunicorn", "/big/", "/big/"),
            ("uvicorn", "/async-stream/500/", "/async-stream/<int:number>/"),
            ("uvicorn", "/async-slow/", "/async-slow/"),
        ],
        2,
    ),
)
def test_clients_that_go_away_leave_no_request_active_and_are_no_errors(kind, path, route, receiver):
    """Active_requests comes back to 0, every span ends, and a disconnect is no error of the server."""
    with services.serve(kind, exporting(receiver), **HARD) as server:
        if path == "/async-slow/":
            for _ in range(5):
                begin_and_leave(server, path, has_begun=lambda _: services.wait_until(lambda: active(server) == 1))
                services.wait_until(lambda: active(server) == 0, 60, "no active request")
        else:
            begin_and_leave(server, path, 5)
        services.wait_until(lambda: active(server) == 0, 60, "no active request")
        services.wait_until(lambda: sum(span.kind == 2 for _, span in receiver.spans()) == 5, 60, "five spans")
        page = server.get("/metrics")[2]
    counts = [line for line in samples(page, "http_server_request_duration_seconds_count") if f'"{route}"' in line]
    assert sum(float(line.rpartition(" ")[2]) for line in counts) == 5
    assert not any("error_type" in line for line in counts)
    assert all(span.status.code != 2 for _, span in receiver.spans())


@pytest.mark.parametrize(
    ("kind", "path"), sizes.few([("gunicorn-gthread", "/ids/"), ("uvicorn", "/ids/"), ("uvicorn", "/async-ids/")], 2)
)
def test_concurrent_requests_never_share_a_trace(kind, path, receiver):
    """Threads and tasks: what a request sees first is what it sees last, and its spans hang on its own span."""
    with services.serve(kind, exporting(receiver), **HARD) as server:
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda n: server.get(f"{path}{n}/",
                                                         {"traceparent": f"00-{n + 1:032x}-{n + 1:016x}-01"}),
                                    range(120)))  # fmt: skip
        seen = [json.loads(body)["ids"] for _, _, body in answers]
        assert seen == [[f"{n + 1:032x}"] * 3 for n in range(120)]
        services.wait_until(lambda: sum(span.name == "inner" for _, span in receiver.spans()) == 120, 60, "the spans")
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
        (b"GET /fine/ HTTP/1.1\r\nHost: localhost\r\nX-Latin: caf\xe9 \xff\r\n"
         b"User-Agent: \xfc\xf6\r\nConnection: close\r\n\r\n"),
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
            with socket.create_connection((parts.hostname, parts.port), 60) as connection:
                connection.sendall(message)
                statuses.append(int(connection.makefile("rb").readline().split()[1]))
        reached = sum(status != 400 for status in statuses)
        assert reached >= 4, statuses
        services.wait_until(lambda: sum(span.kind == 2 for _, span in receiver.spans()) >= reached, 60, "the spans")
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
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=services.ROOT, env=environment, capture_output=True, text=True
        )
        said.append(done.stdout)
    assert said[0] == said[1]
    assert "Django can only handle ASGI/HTTP connections, not websocket." in said[0]


# --- Forks and ends of the process. ---


def test_uwsgi_workers_have_identities_ids_and_exports_of_their_own(receiver):
    """UWSGI's fork runs no hooks of Python's; workers must share neither instance id nor trace ids."""
    binary = shutil.which("uwsgi", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if binary is None:
        pytest.skip("uWSGI is not installed (pip install uwsgi; it compiles)")
    port = services.free_port()
    command = [
        binary, "--http-socket", f"127.0.0.1:{port}", "--master", "--processes", "3",
        "--enable-threads", "--die-on-term",
        "--need-app", "--module", "tests.wsgi:application", "--home", sys.prefix, "--pythonpath", str(services.ROOT),
    ]  # fmt: skip
    environment = services.server_env(exporting(receiver), **HARD)
    log = services.Path(services.tempfile.mkdtemp()) / "log"
    try:
        with services.running(command, environment, log) as process:
            services.wait_until(lambda: services.is_listening(port) or process.poll() is not None, 60, "uWSGI")
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

            services.wait_until(lambda: len(instances()) == 3, 60, "spans of three workers")
            services.wait_until(
                lambda: counted() == sum(span.kind == 2 for _, span in receiver.spans()) > 0,
                60,
                "every request counted once",
            )
        traces = [span.trace_id for _, span in receiver.spans() if span.kind == 2]
        assert len(traces) == len(set(traces))
        spans = [span.span_id for _, span in receiver.spans()]
        assert len(spans) == len(set(spans))
    finally:
        shutil.rmtree(log.parent, ignore_errors=True)


def test_stopping_twice_is_as_good_as_once():
    """The second shutdown of the official exporter raises KeyError."""
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
    done = subprocess.run([sys.executable, "-c", code], cwd=services.ROOT, env=environment,
                          capture_output=True, text=True,
                          timeout=30)  # fmt: skip
    assert done.returncode == 0
    assert "True True True" in done.stdout
    assert done.stderr == ""


def test_a_check_command_asks_its_collector_for_nothing(tmp_path, receiver):
    """A process that waits for its collector at exit takes 5 s and more when that is a black hole."""
    script = tmp_path / "manage.py"
    script.write_text("import sys\nfrom django.core.management import execute_from_command_line\n"
                      "execute_from_command_line(sys.argv)\n")  # fmt: skip

    otel = {
        **OPEN,
        "TRACES": {"ENDPOINT": receiver.url},
        "METRICS": {"EXPORTERS": ["otlp"], "ENDPOINT": receiver.url},
        "LOGS": {"EXPORTERS": ["otlp"], "ENDPOINT": receiver.url},
    }
    subprocess.run([sys.executable, str(script), "check"], cwd=services.ROOT, env=services.server_env(otel), check=True,
                   capture_output=True, timeout=200)  # fmt: skip
    assert receiver.begun == 0


# --- Middleware in every place, and Django's own ways round the view. ---


def short(request):
    return HttpResponse("short")


def long(request):
    return HttpResponse("long " * 1000)


def streamed(request):
    return StreamingHttpResponse(b"chunk " * 500 for _ in range(5))


def other(request):
    return HttpResponse("other")


def broken(request):
    raise ValueError("broken")


def gone(request, exception):
    return HttpResponse("nothing here", status=404)


def failed(request):
    return HttpResponse("we are sorry", status=500)


class OtherUrls:
    urlpatterns = [path("short/", other), path("only/<int:pk>/", lambda request, pk: HttpResponse("only"))]


class BrokenHandler:
    urlpatterns = [path("broken/", broken)]

    @staticmethod
    def handler500(request):
        raise RuntimeError("the handler is broken too")


urlpatterns = [
    path("short/", short),
    path("long/", long),
    path("streamed/", streamed),
    path("broken/", broken),
    path("reset/<uidb64>/<token>/", lambda request, uidb64, token: HttpResponse("reset")),
]
handler404 = gone
handler500 = failed


def answer_at_once(get_response):
    """A middleware that answers without asking on."""
    return lambda request: HttpResponse("at once", status=203)


def choose_urlconf(get_response):
    """A middleware that gives a request another URLconf, as for subdomains."""

    def middleware(request):
        request.urlconf = OtherUrls
        return get_response(request)

    return middleware


def project(*middleware, **more):
    """Our views behind these middlewares."""
    return override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=list(middleware), **more)


def ask(path="/short/", method="GET", **more):
    response = Client(raise_request_exception=False).generic(method, path, **more)
    if response.streaming:
        response.body = b"".join(response.streaming_content)
        # The test client leaves closing to us; the signal would close the test's database.
        request_finished.disconnect(close_old_connections)
        try:
            response.close()
        finally:
            request_finished.connect(close_old_connections)
    else:
        response.body = response.content
    return response


def server_span(otel_spans):
    found = [span for span in otel_spans if span.kind is SpanKind.SERVER]
    assert len(found) == 1, found
    return found[0]


@pytest.fixture
def nothing_left():
    yield
    assert record.current() is None
    assert trace.get_current_span() is trace.INVALID_SPAN
    active = [family for family in runtime.store.collect() if family.name == "http.server.active_requests"]
    assert all(point.value == 0 for family in active for point in family.points)


pytestmark = pytest.mark.usefixtures("nothing_left")
CONDITIONAL = "django.middleware.http.ConditionalGetMiddleware"
GZIP = "django.middleware.gzip.GZipMiddleware"


def test_a_head_request_has_no_body_and_the_views_route(otel_spans, otel_metrics):
    with project(OURS):
        assert ask(method="HEAD").status_code == 200
    assert server_span(otel_spans).name == "HEAD /short/"
    assert otel_metrics.value(RESPONSE_SIZE, {"http.request.method": "HEAD"}).sum == 0


def test_a_304_of_conditional_get_is_measured_as_sent(otel_spans, otel_metrics):
    with project(OURS, CONDITIONAL):
        first = ask()
        second = ask(headers={"if-none-match": first["ETag"]})
    assert (second.status_code, second.body) == (304, b"")
    assert [span.attributes["http.response.status_code"] for span in otel_spans] == [200, 304]
    assert otel_metrics.value(RESPONSE_SIZE, {"http.response.status_code": 304}).sum == 0
    assert otel_metrics.value(RESPONSE_SIZE, {"http.response.status_code": 200}).sum == 5


@pytest.mark.parametrize("where", ["/long/", "/streamed/"])
def test_compressed_answers_are_measured_in_the_bytes_that_leave(otel_metrics, monkeypatch, where):
    monkeypatch.setattr(GZipMiddleware, "max_random_bytes", 0)
    with project(OURS, GZIP):
        response = ask(where, headers={"accept-encoding": "gzip"})
    assert response["Content-Encoding"] == "gzip"
    assert len(gzip.decompress(response.body)) > 2 * len(response.body)
    found = otel_metrics.value(RESPONSE_SIZE, {"http.route": where})
    assert (found.count, found.sum) == (1, len(response.body))


@pytest.mark.parametrize("position", [0, 1, 2])
def test_ours_works_in_any_place(otel_spans, otel_metrics, position):
    """The check W002 says what is lost; nothing breaks."""
    listed = [CONDITIONAL, GZIP]
    listed.insert(position, OURS)
    with project(*listed):
        assert ask(headers={"accept-encoding": "gzip"}).status_code == 200
        assert ask("/streamed/", headers={"accept-encoding": "gzip"}).status_code == 200
    assert [span.name for span in otel_spans] == ["GET /short/", "GET /streamed/"]
    assert otel_metrics.value(DURATION).count == 2


@pytest.mark.parametrize("where", ["/short/", "/streamed/", "/broken/"])
def test_listed_twice_a_request_is_measured_once(otel_spans, otel_metrics, where):
    with project(OURS, CONDITIONAL, OURS):
        ask(where)
    assert server_span(otel_spans).name == f"GET {where}"
    assert otel_metrics.value(DURATION).count == 1


def test_a_middleware_that_answers_itself_leaves_no_route(otel_spans, otel_metrics):
    with project(OURS, f"{__name__}.answer_at_once"):
        assert ask("/whatever/1/").status_code == 203
    span = server_span(otel_spans)
    assert span.name == "GET"
    assert "http.route" not in span.attributes
    assert "http.route" not in otel_metrics.series(DURATION)[0]


def test_in_front_of_ours_nothing_is_measured_and_nothing_breaks(otel_spans):
    with project(f"{__name__}.answer_at_once", OURS):
        assert ask().status_code == 203
    assert not list(otel_spans)


def test_the_route_is_that_of_the_urlconf_the_request_was_given(otel_spans):
    """The official instrumentation resolves by itself, with the project's own URLconf."""
    with project(OURS, f"{__name__}.choose_urlconf"):
        assert ask("/only/7/").body == b"only"
    assert server_span(otel_spans).attributes["http.route"] == "/only/<int:pk>/"


def test_a_url_is_resolved_no_more_often_than_without_us(monkeypatch):
    """Never resolve twice."""
    calls = []
    original = URLResolver.resolve
    monkeypatch.setattr(URLResolver, "resolve", lambda self, url: calls.append(url) or original(self, url))
    with project():
        ask()
        ask("/nope/")
    without, calls[:] = list(calls), []
    with project(OURS):
        ask()
        ask("/nope/")
    assert calls == without


def test_custom_error_pages_are_shown_and_the_errors_recorded(otel_spans):
    with project(OURS):
        assert ask("/nope/").body == b"nothing here"
        assert ask("/broken/").body == b"we are sorry"
    missing, broken_span = otel_spans
    assert (missing.name, missing.status.status_code) == ("GET", StatusCode.UNSET)
    assert broken_span.status.status_code is StatusCode.ERROR
    assert [event.attributes["exception.type"] for event in broken_span.events] == ["ValueError"]


def test_an_error_page_that_fails_itself_passes_on(otel_spans, otel_metrics):
    """What handler500 raises goes to the server, as without us; the span ends and tells it."""
    with override_settings(ROOT_URLCONF=BrokenHandler, MIDDLEWARE=[OURS]):
        with pytest.raises(RuntimeError, match="the handler is broken too"):
            Client(raise_request_exception=False).get("/broken/")
    assert server_span(otel_spans).status.status_code is StatusCode.ERROR
    assert otel_metrics.value(DURATION).count == 1


def test_exceptions_that_django_propagates_pass_unchanged(otel_spans, otel_metrics):
    with project(OURS, DEBUG_PROPAGATE_EXCEPTIONS=True), pytest.raises(ValueError, match="broken"):
        Client().get("/broken/")
    span = server_span(otel_spans)
    assert span.name == "GET /broken/"
    assert span.attributes["error.type"] == "ValueError"
    assert [event.name for event in span.events] == ["exception"]
    assert otel_metrics.value(DURATION, {"error.type": "ValueError"}).count == 1


@pytest.mark.parametrize(
    ("middleware", "more", "where", "status", "route"),
    [
        ("django.middleware.security.SecurityMiddleware", {"SECURE_SSL_REDIRECT": True}, "/short/", 301, None),
        ("django.middleware.common.CommonMiddleware", {"APPEND_SLASH": True}, "/short", 301, None),
        ("django.middleware.common.CommonMiddleware", {"PREPEND_WWW": True}, "/short/", 301, None),
        (
            "django.middleware.common.CommonMiddleware",
            {"DISALLOWED_USER_AGENTS": [re.compile("bot")]},
            "/x/",
            403,
            None,
        ),
    ],
)
def test_redirects_and_refusals_of_djangos_middleware(otel_spans, otel_metrics, middleware, more, where, status, route):
    with project(OURS, middleware, **more):
        assert ask(where, headers={"user-agent": "bot", "host": "testserver"}).status_code == status
    span = server_span(otel_spans)
    assert span.attributes["http.response.status_code"] == status
    assert span.attributes.get("http.route") == route
    assert otel_metrics.series(DURATION)[0].get("http.route") == route
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.django_db
def test_a_login_redirect_has_the_route_of_the_view_behind_it(otel_spans):
    with project(
        OURS,
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
        LOGIN_URL="/login/",
    ):
        assert ask().status_code == 302
    assert server_span(otel_spans).name == "GET /short/"


def test_settings_of_the_proxy_take_effect_without_a_change_of_otel(otel_spans):
    """`override_settings(SECURE_PROXY_SSL_HEADER=...)` in a project's tests."""
    with project(OURS):
        ask()
        with override_settings(SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https"), USE_X_FORWARDED_HOST=True):
            ask(headers={"x-forwarded-proto": "https", "x-forwarded-host": "front.example"})
        ask(headers={"x-forwarded-proto": "https", "x-forwarded-host": "front.example"})
    seen = [(span.attributes["url.scheme"], span.attributes["server.address"]) for span in otel_spans]
    assert seen == [("http", "testserver"), ("https", "front.example"), ("http", "testserver")]


# --- Nothing kept, nothing flooded, nothing changed. ---


@pytest.mark.parametrize("where", ["/short/", "/streamed/", "/broken/"])
def test_a_request_is_freed_without_the_garbage_collector(where):
    """A request that only a collection frees keeps its body and files until then."""
    alive = []

    def get_response(request):
        alive.append(weakref.ref(request))
        if where == "/broken/":
            raise ValueError("broken")
        response = short(request) if where == "/short/" else streamed(request)
        alive.append(weakref.ref(response))
        return response

    middleware = OTelMiddleware(get_response)
    with contextlib.suppress(ValueError):
        b"".join(middleware(RequestFactory().get("/warm-up/")))
    gc.disable()
    try:
        alive.clear()
        with contextlib.suppress(ValueError):
            b"".join(middleware(RequestFactory().get(where)))
        assert alive
        assert [reference() for reference in alive] == [None] * len(alive)
    finally:
        gc.enable()


@pytest.mark.parametrize("read", [0, 2])
def test_a_stream_that_is_thrown_away_unclosed_is_finished_all_the_same(otel_spans, read):
    """A middleware in front may put another response in its place and forget this one."""
    response = OTelMiddleware(streamed)(RequestFactory().get("/streamed/"))
    chunks = iter(response)
    for _ in range(read):
        next(chunks)
    del response, chunks
    gc.collect()
    assert server_span(otel_spans).name == "GET"


class Interrupt(BaseException):
    """Like gevent's Timeout: no `Exception`."""


def interrupted_enrich(span, request, response):
    raise Interrupt


def test_an_interrupt_in_enrich_passes_and_the_span_ends(otel_spans):
    """BaseException passes with everything restored."""
    with project(OURS, OTEL={"REQUEST": {"ENRICH": f"{__name__}.interrupted_enrich"}}), pytest.raises(Interrupt):
        Client().get("/short/")
    assert server_span(otel_spans).name == "GET /short/"


def test_a_client_cannot_fill_the_log(caplog):
    """Malformed context, baggage and Content-Length a hundred times; at most one line for each."""
    bad = [
        {"baggage": "no equals,;;=,%zz=%,k=\x80"},
        {"traceparent": "00-zz", "tracestate": ",,=,"},
        {"traceparent": f"00-{0:032x}-{0:016x}-01"},
        {"b3": "nonsense", "uber-trace-id": "x"},
        {"host": "bad host!"},
    ]
    with project(OURS):
        for number in range(100):
            for headers in bad:
                ask(headers=headers, CONTENT_LENGTH="x" * (number % 3))
    ours = [record for record in caplog.records if record.name.startswith(("django_otel", "opentelemetry"))]
    assert len(ours) <= len(bad)


@pytest.mark.django_db
def test_statements_reach_the_database_as_they_were(otel_spans):
    """No comment, no rewriting; a unique text for each would defeat every statement cache."""
    sent = []
    with CaptureQueriesContext(connection) as captured, django_otel.span("work"):

        def last(execute, sql, params, many, context):
            sent.append(sql)
            return execute(sql, params, many, context)

        with connection.execute_wrapper(last), connection.cursor() as cursor:
            cursor.execute("SELECT 'secret' AS x")
    assert sent == ["SELECT 'secret' AS x"]
    assert [query["sql"] for query in captured] == ["SELECT 'secret' AS x"]


def test_a_captured_token_leaves_the_path_and_the_log(otel_spans, otel_logs):
    """Django's own password reset has its token in the path."""
    with project(OURS):
        ask("/reset/MQ/c4x-0123abcdef/")
    span = server_span(otel_spans)
    assert span.attributes["url.path"] == "/reset/MQ/[redacted]/"
    assert span.name == "GET /reset/<uidb64>/<token>/"


def test_secrets_in_the_attributes_of_metrics_make_one_series(otel_metrics):
    """Our own instruments and the SDK's; a label that shows "[redacted]" a thousand times is one."""
    ours = django_otel.counter("pitfalls.tokens")
    theirs = metrics.get_meter("pitfalls").create_counter("pitfalls.sdk_tokens")
    for number in range(50):
        ours.add(1, {"token": f"secret-{number}"})
        theirs.add(1, {"token": f"secret-{number}"})
    families = {family.name: family for family in runtime.collect()}
    for name in ("pitfalls.tokens", "pitfalls.sdk_tokens"):
        assert [(point.attributes, point.value) for point in families[name].points] == [
            ((("token", "[redacted]"),), 50)
        ]


def test_a_span_that_cannot_be_cleaned_costs_only_itself():
    """The exporter of a batch gets the others, and the fault is counted."""
    from opentelemetry.sdk.trace.export import SpanExportResult

    from django_otel.config.parse import parse
    from django_otel.export.processors import SpanBatchProcessor

    got = []

    class Exporter:
        def export(self, spans):
            got.extend(spans)
            return SpanExportResult.SUCCESS

        def shutdown(self):
            pass

    def clean(span):
        if span == "poison":
            raise RuntimeError("cannot be cleaned")
        return span

    processor = SpanBatchProcessor(Exporter(), clean, parse({}, {}), lambda *_: None, lambda *_: None)
    assert processor._export(["a", "poison", "b"])
    assert got == ["a", "b"]


@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
def test_what_doctor_sends_is_scrubbed_like_the_rest(signal):
    """`manage.py otel doctor` sends the same resource that the server does."""
    from django_otel.config.parse import parse
    from django_otel.operations.doctor import build_test_batch

    batch = build_test_batch(signal, parse({"RESOURCE": {"deploy.api_key": "hunter2", "team": "shop"}}, {}))
    text = batch.to_json() if signal == "metrics" else str([item.to_json() for item in batch])
    assert "hunter2" not in text
    assert "shop" in text
