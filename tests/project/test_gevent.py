"""Under gunicorn's gevent workers: nothing blocks, contexts stay apart, what waits is flushed at the end."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import services

pytest.importorskip("gevent")
# gevent patches the server's process, not this one.

HARD = {"DJANGO_SETTINGS_MODULE": "tests.hard_settings"}


def exporting(receiver, delay_s: float = 0.1):
    return {
        "SERVICE_NAME": "green",
        "SAMPLING": {"LIVE": False},
        "METRICS_VIEW": {"ALLOW": "all"},
        "TRACES": {"ENDPOINT": receiver.url, "BATCH": {"DELAY_S": delay_s}},
        "METRICS": {"EXPORTERS": ["prometheus", "otlp"], "INTERVAL_S": 0.3},
        "LOGS": {"EXPORTERS": ["otlp"]},
    }


def active_requests(page: bytes) -> float:
    lines = [line for line in page.decode().splitlines() if line.startswith("http_server_active_requests{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((), id="app loaded in the worker"),
        pytest.param(("--preload",), id="preloaded", marks=pytest.mark.long),
    ],
)
def test_concurrent_requests_keep_their_contexts_apart_and_nothing_blocks(arguments, receiver):
    """Locks made before the monkey-patch must not stop the whole hub; one thread serves 40 greenlets."""
    with services.serve("gunicorn-gevent", exporting(receiver), arguments=arguments, **HARD) as server:
        assert server.get("/fine/")[0] == 200
        with ThreadPoolExecutor(40) as pool:
            # Requests overlap, in one thread: while one sleeps others begin.
            assert [status for status, _, _ in pool.map(server.get, ["/meet/40/"] * 40)] == [200] * 40
            answers = list(pool.map(lambda n: server.get(f"/ids/{n}/"), range(200)))
        seen = [json.loads(body)["ids"] for status, _, body in answers if status == 200]
        assert len(seen) == 200
        # Each request saw one trace from its begin to its end, and no two the same.
        assert all(len(set(three)) == 1 and three[0] for three in seen)
        assert len({three[0] for three in seen}) == 200
        services.wait_until(lambda: sum(span.name == "inner" for _, span in receiver.spans()) == 200, what="the spans")
        services.wait_until(
            lambda: any(metric.name == "http.server.request.duration" for _, _, metric in receiver.metrics()),
            what="the metrics",
        )
        assert active_requests(server.get("/metrics")[2]) == 0
        log = server.log
    if not arguments:
        # A preloaded project has loaded ssl before gunicorn patches, with or without us.
        assert "MonkeyPatchWarning" not in log
    assert "Traceback" not in log
    servers = {span.span_id: span for _, span in receiver.spans() if span.kind == 2}
    for _, span in receiver.spans():
        if span.name == "inner":
            assert servers[span.parent_span_id].trace_id == span.trace_id


def test_exports_do_not_stop_requests_while_the_collector_is_slow(receiver):
    """An export under way is a greenlet like any other."""
    receiver.delay_s = 600.0
    arguments = ("--preload", "--graceful-timeout", "1")
    with services.serve("gunicorn-gevent", exporting(receiver), arguments=arguments, **HARD) as server:
        assert server.get("/ids/1/")[0] == 200
        services.wait_until(lambda: receiver.begun, what="an export under way")
        for _ in range(10):
            assert server.get("/ids/1/", timeout_s=60)[0] == 200
            assert server.get("/metrics", timeout_s=60)[0] == 200
        assert receiver.requests == []


@pytest.mark.long
def test_streams_of_greenlets_keep_their_contexts_apart(receiver):
    with services.serve("gunicorn-gevent", exporting(receiver), **HARD) as server:
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: server.get("/stream/10/"), range(40)))
        traces = [set(body.split()) for _, _, body in answers]
        assert all(len(found) == 1 for found in traces)
        assert len(set().union(*traces)) == 40
        services.wait_until(lambda: sum(span.name == "chunk" for _, span in receiver.spans()) == 400, what="the spans")
        assert active_requests(server.get("/metrics")[2]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((), id="app loaded in the worker", marks=pytest.mark.long),
        pytest.param(("--preload",), id="preloaded"),
    ],
)
def test_a_graceful_stop_flushes_what_waits(arguments, receiver):
    # Longer than a loaded machine needs for the last export.
    arguments = (*arguments, "--graceful-timeout", "60")
    with services.serve("gunicorn-gevent", exporting(receiver, 600.0), arguments=arguments, **HARD) as server:
        assert server.get("/fine/")[0] == 200
        assert not receiver.spans()
        server.process.terminate()
        assert server.process.wait(90) == 0
        assert "Traceback" not in server.log
    assert [span.name for _, span in receiver.spans()] == ["GET /fine/"]


@pytest.mark.long
def test_a_flush_during_an_export_does_not_stop_the_hub(receiver):
    """Preloaded, our locks are the system's; one held over a switch of greenlets would block for ever."""
    receiver.delay_s = 600.0
    with services.serve("gunicorn-gevent", exporting(receiver), arguments=("--preload",), **HARD) as server:
        assert server.get("/fine/")[0] == 200
        services.wait_until(lambda: receiver.begun, what="an export under way")
        for _ in range(3):
            assert server.get("/flush/", timeout_s=60)[2] == b'{"done": false}'
            assert server.get("/fine/", timeout_s=60)[0] == 200
        with ThreadPoolExecutor(1) as pool:
            flushed = pool.submit(server.get, "/flush/?s=500", timeout_s=600)
            # Answered while the flush waits: it has not returned yet.
            assert [server.get("/fine/", timeout_s=60)[0] for _ in range(20)] == [200] * 20
            assert not flushed.done()
            receiver.delay_s = 0.0
            assert flushed.result()[2] == b'{"done": true}'


@pytest.mark.long
def test_scrapes_during_a_slow_callback_do_not_stop_the_hub():
    """The callback of an observable instrument waits, and other greenlets scrape meanwhile."""
    otel = {"METRICS_VIEW": {"ALLOW": "all"}, "SAMPLING": {"LIVE": False}}
    with services.serve("gunicorn-gevent", otel, arguments=("--preload",), **HARD) as server:
        assert server.get("/watch-slowly/")[0] == 200
        with ThreadPoolExecutor(3) as pool:
            pages = list(pool.map(lambda _: server.get("/metrics", timeout_s=60), range(3)))
        assert [status for status, _, _ in pages] == [200] * 3
        assert all(b"slow_gauge 1" in page for _, _, page in pages)
