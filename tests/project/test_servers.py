"""The test project behind real gunicorn and uvicorn processes, exporting to a real OTLP receiver."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import services, sizes

KINDS = ["gunicorn", "gunicorn-gthread", "uvicorn"]
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


def exporting(receiver, **more):
    return {
        "SERVICE_NAME": "served",
        "ENVIRONMENT": "test",
        "SERVICE_VERSION": "1.2.3",
        "SAMPLING": {"LIVE": False},
        "METRICS_VIEW": {"ALLOW": "all"},
        "TRACES": {"ENDPOINT": receiver.url, "HEADERS": {"x-key": "k1"}, "BATCH": {"DELAY_S": 0.1}},
        "METRICS": {"EXPORTERS": ["prometheus", "otlp"], "INTERVAL_S": 0.3},
        "LOGS": {"EXPORTERS": ["otlp"]},
        **more,
    }


def count_requests(page: bytes, route: str) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
        if sample.name == "http_server_request_duration_seconds_count" and sample.labels.get("http_route") == route
    )


@pytest.mark.parametrize("kind", KINDS)
def test_requests_are_served_scraped_and_exported(kind, receiver):
    """One request each through the view, /metrics and all three OTLP signals."""
    with services.serve(kind, exporting(receiver)) as server:
        status, _, body = server.get("/orders/7/", {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"})
        assert (status, body) == (200, b"order 7")
        assert server.get("/boom/")[0] == 500
        services.wait_until(lambda: len(receiver.spans()) >= 3, what="the spans")
        status, headers, page = server.get("/metrics")
        assert status == 200
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        assert count_requests(page, "/orders/<int:pk>/") == 1
        services.wait_until(lambda: any(record for _, record in receiver.logs()), what="the log of the 500")
        services.wait_until(
            lambda: {metric.name for _, _, metric in receiver.metrics()} >= {"http.server.request.duration"},
            what="the metrics",
        )
    spans = {span.name: (resource, span) for resource, span in receiver.spans()}
    resource, span = spans["GET /orders/<int:pk>/"]
    assert span.trace_id.hex() == TRACE_ID
    assert resource["service.name"] == "served"
    assert resource["service.version"] == "1.2.3"
    assert resource["deployment.environment.name"] == "test"
    assert re.fullmatch(r"[0-9a-f-]{36}", resource["service.instance.id"])
    assert spans["order.load"][1].parent_span_id == span.span_id
    for path, request_headers, _ in receiver.requests:
        assert request_headers["content-encoding"] == "gzip", path
        assert request_headers["x-key"] == "k1", path
    everything = str([message for _, _, message in receiver.requests])
    assert "hunter2" not in everything


@pytest.mark.parametrize("kind", sizes.few(["gunicorn", "uvicorn"], 2))
def test_every_worker_has_an_instance_id_of_its_own(kind, receiver):
    with services.serve(kind, exporting(receiver), workers=3) as server:

        def ids():
            server.get("/hello/")
            return {resource["service.instance.id"] for resource, _ in receiver.spans()}

        services.wait_until(lambda: len(ids()) == 3, 60, "spans of three workers")


def test_workers_forked_after_import_report_only_what_they_counted(receiver):
    """--preload: what the master holds is not reported again by every child (21 for 11, seen elsewhere)."""
    with services.serve("gunicorn", exporting(receiver), workers=2, arguments=("--preload",)) as server:
        for _ in range(11):
            assert server.get("/hello/")[0] == 200

        def counted():
            latest = {}
            for resource, _, metric in receiver.metrics():
                if metric.name == "http.server.request.duration":
                    total = sum(point.count for point in metric.histogram.data_points)
                    latest[resource["service.instance.id"]] = total
            return sum(latest.values())

        services.wait_until(lambda: counted() == 11, what="11 requests over both workers")
        time.sleep(0.7)
        assert counted() == 11


def test_spans_that_wait_are_flushed_at_a_graceful_stop(receiver):
    slow = exporting(receiver, TRACES={"ENDPOINT": receiver.url, "BATCH": {"DELAY_S": 60.0}})
    with services.serve("gunicorn", slow) as server:
        server.get("/hello/")
        assert not receiver.spans()
    assert [span.name for _, span in receiver.spans()] == ["GET /hello/"]


def test_uvicorn_flushes_at_a_graceful_stop_too(receiver):
    slow = exporting(receiver, TRACES={"ENDPOINT": receiver.url, "BATCH": {"DELAY_S": 60.0}})
    with services.serve("uvicorn", slow) as server:
        server.get("/hello/")
    assert [span.name for _, span in receiver.spans()] == ["GET /hello/"]


@pytest.mark.parametrize("target", ["black hole", "refused"])
def test_a_dead_collector_delays_the_exit_by_no_more_than_the_budget(target):
    """Spans, metrics and logs wait; the process ends within 5 s in all plus its own time."""
    with services.start_black_hole() as hole:
        url = hole if target == "black hole" else f"http://127.0.0.1:{services.free_port()}"
        otel = {
            # Longer than the test waits for the process.
            "TRACES": {"ENDPOINT": url, "TIMEOUT_S": 600},
            "METRICS": {"EXPORTERS": ["otlp"], "TIMEOUT_S": 600},
            "LOGS": {"EXPORTERS": ["otlp"], "TIMEOUT_S": 600},
            "SAMPLING": {"LIVE": False},
        }
        code = (
            "import django; django.setup()\n"
            "import logging, django_otel\n"
            "with django_otel.span('work'): logging.getLogger('shop').error('something')\n"
            "django_otel.counter('c').add(1)\n"
        )
        done = services.run_python(code, services.server_env(otel), timeout_s=200, check=False)
    assert done.returncode == 0, done.stderr


def test_requests_are_not_slowed_down_by_a_dead_collector():
    with services.start_black_hole() as hole:
        # A request that waited for the export would be cut off by the client.
        otel = {"TRACES": {"ENDPOINT": hole, "TIMEOUT_S": 600, "BATCH": {"QUEUE_SIZE": 64, "BATCH_SIZE": 8}},
                "SAMPLING": {"LIVE": False},
                "METRICS_VIEW": {"ALLOW": "all"}}  # fmt: skip
        with services.serve("gunicorn", otel) as server:
            for _ in range(200):
                assert server.get("/hello/", timeout_s=60)[0] == 200
            page = server.get("/metrics")[2].decode()
    dropped = re.search(r'django_otel_spans_dropped_total\{django_otel_reason="queue_full"\} (\d+)', page)
    assert dropped
    assert int(dropped[1]) >= 100


@pytest.mark.parametrize("command", [pytest.param("check", marks=pytest.mark.long), "migrate"])
def test_a_skipped_command_exports_nothing_and_waits_for_nobody(command, receiver, tmp_path):
    otel = exporting(receiver)
    environment = services.server_env(otel, TEST_SQLITE=str(tmp_path / "db.sqlite3"))
    script = tmp_path / "manage.py"
    script.write_text("import sys\nfrom django.core.management import execute_from_command_line\n"
                      "execute_from_command_line(sys.argv)\n")  # fmt: skip
    done = services.run_program([sys.executable, str(script), command], environment)
    assert done.returncode == 0, done.stderr
    assert not receiver.requests


def test_rotel_takes_every_signal_without_complaint(rotel):
    """A strict collector judges traces, metrics and logs, over HTTP."""
    with services.serve("gunicorn", exporting(services.Receiver(rotel.http_url))) as server:
        server.get("/orders/7/")
        server.get("/boom/")
        services.wait_until(
            lambda: all(
                word in rotel.log for word in ("order.load", "http.server.request.duration", "Internal Server Error")
            ),
            60,
            "all three signals in rotel's log",
        )
        assert "Failed to export" not in server.log
        assert " 400" not in server.log


def test_rotel_takes_grpc(rotel):
    pytest.importorskip("grpc")
    otel = {
        "SERVICE_NAME": "over-grpc",
        "SAMPLING": {"LIVE": False},
        "TRACES": {"EXPORTERS": ["otlp-grpc"], "ENDPOINT": rotel.grpc_url, "BATCH": {"DELAY_S": 0.1}},
        "METRICS": {"EXPORTERS": ["otlp-grpc"], "INTERVAL_S": 0.3},
        "LOGS": {"EXPORTERS": ["otlp-grpc"]},
    }
    with services.serve("uvicorn", otel) as server:
        server.get("/articles/2021/")
        services.wait_until(
            lambda: "over-grpc" in rotel.log and "/articles/<year>/" in rotel.log, 60, "spans over gRPC"
        )
        assert "Failed to export" not in server.log


def test_nothing_is_on_the_console_of_a_default_project():
    with services.serve("gunicorn", {"SERVICE_NAME": "quiet"}, migrate=True) as server:
        assert server.get("/hello/")[0] == 200
        time.sleep(0.5)
        log = server.log
    assert "django_otel" not in log
    assert "rror" not in log
    assert "arning" not in log


@pytest.mark.parametrize("kind", sizes.few(["gunicorn", "uvicorn"], 2))
def test_a_bad_dict_serves_the_site_and_says_so(kind):
    with services.serve(kind, {"NO_SUCH_KEY": "secret-value"}) as server:
        assert server.get("/hello/")[0] == 200
        status, _, body = server.get("/metrics")
        assert status == 503
        assert b"django_otel.E001" in body
        assert b"secret-value" not in body
        assert server.get("/readyz")[0] == 503
        assert server.get("/livez")[0] == 200
        assert "NO_SUCH_KEY" in server.log


def test_a_worker_that_is_killed_mid_request_does_not_stop_the_others(receiver):
    with services.serve("gunicorn", exporting(receiver), workers=2) as server:
        server.get("/hello/")
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(server.process.pid)], capture_output=True, text=True
        ).stdout.split()
        os.kill(int(children[0]), signal.SIGKILL)
        services.wait_until(lambda: server.get("/hello/")[0] == 200, what="an answer")


def test_opentelemetry_instrument_keeps_its_providers_and_is_joined(receiver):
    """Under opentelemetry-instrument its providers are reused; one clear warning, one server span a request."""
    launcher = services.shutil.which("opentelemetry-instrument", path=os.path.dirname(sys.executable))
    assert launcher is not None
    port = services.free_port()
    environment = services.server_env(
        {"SAMPLING": {"LIVE": False}},
        OTEL_TRACES_EXPORTER="otlp",
        OTEL_METRICS_EXPORTER="none",
        # The tool's log handler on the root logger is where the warning goes then.
        OTEL_LOGS_EXPORTER="otlp",
        OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED="true",
        OTEL_BLRP_SCHEDULE_DELAY="100",
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        OTEL_SERVICE_NAME="auto",
        OTEL_BSP_SCHEDULE_DELAY="100",
    )
    command = [launcher, *services.server_command("uvicorn", port)]
    log = services.Path(services.tempfile.mkdtemp()) / "log"
    with services.running(command, environment, log) as process:
        services.wait_until(lambda: services.is_listening(port) or process.poll() is not None, 60, "the server")
        server = services.Server(f"http://127.0.0.1:{port}", process, log)
        assert server.get("/orders/7/")[0] == 200, server.log
        services.wait_until(lambda: any(span.name == "order.load" for _, span in receiver.spans()), what="the spans")
        time.sleep(0.3)
    kinds = [span.name for _, span in receiver.spans() if span.kind == 2]
    assert len(kinds) == 1, kinds
    warning = "another tool has installed a tracer provider"
    told = [record for _, record in receiver.logs() if warning in str(record.body)]
    assert len(told) + server.log.count(warning) == 1
    services.shutil.rmtree(log.parent)
