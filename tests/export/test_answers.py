"""What receivers answer: refused items, batches that are too large, endless and dripping answers."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gzip
import http.server
import resource
import shutil
import ssl
import subprocess
import threading
import time

import pytest
import requests
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.metrics import export as metrics_export
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from django_otel.base import guard
from django_otel.config.parse import parse
from django_otel.export import pipelines
from django_otel.export.answers import Points
from tests import services
from tests.export.test_export_load import Pipeline


@pytest.fixture(autouse=True)
def _forget_what_was_logged():
    guard.reset()
    yield
    guard.reset()


@contextlib.contextmanager
def answering(answer, tls=None):
    """A server whose `answer(handler, body)` writes the whole answer; gives its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with contextlib.suppress(OSError):
                answer(self, body)
            self.close_connection = True

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            pass

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reply(handler, status, body=b"", **headers):
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@contextlib.contextmanager
def pipeline(url, **more):
    made = Pipeline({"EXPORTERS": ["otlp"], "ENDPOINT": f"{url}/v1/traces", "BATCH": {"DELAY_S": 30}, **more})
    try:
        yield made
    finally:
        made.close()


def metrics_of(count):
    points = [metrics_export.NumberDataPoint({"n": n}, 0, 1, float(n)) for n in range(count)]
    metric = metrics_export.Metric("m", "", "1", metrics_export.Gauge(points))
    scope = metrics_export.ScopeMetrics(InstrumentationScope("s"), [metric, metric], "")
    return metrics_export.MetricsData([metrics_export.ResourceMetrics(Resource({}), [scope], "")])


def log_records(count):
    from opentelemetry._logs import LogRecord
    from opentelemetry.sdk._logs import ReadableLogRecord

    return [ReadableLogRecord(LogRecord(timestamp=1, body=f"line {n}"), Resource({})) for n in range(count)]


def build_exporter(url, signal, drops):
    config = parse({signal.upper(): {"EXPORTERS": ["otlp"], "ENDPOINT": f"{url}/v1/{signal}"}}, {})
    return pipelines.build_otlp_exporter("otlp", signal, config, lambda *drop: drops.append(drop))


def test_spans_that_the_receiver_refuses_are_counted_and_logged_once(caplog):
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 2
    answer.partial_success.error_message = "too old"
    body = answer.SerializeToString()
    with answering(lambda handler, _: reply(handler, 200, body)) as url, pipeline(url) as made:
        for _ in range(2):
            made.finish("a", "b", "c")
            assert made.flush()
        assert made.counts.drops == {"rejected": 4}
        assert made.counts.failures == 0
    assert caplog.text.count("too old") == 1


@pytest.mark.parametrize(
    ("signal", "answer", "field", "batch"),
    [
        ("metrics", ExportMetricsServiceResponse(), "rejected_data_points", metrics_of(2)),
        ("logs", ExportLogsServiceResponse(), "rejected_log_records", log_records(3)),
    ],
)
@pytest.mark.parametrize("is_packed", [False, True])
def test_refused_points_and_records_are_counted(signal, answer, field, batch, is_packed):
    answer = type(answer)()
    setattr(answer.partial_success, field, 2)
    body = answer.SerializeToString()
    headers = {"Content_Encoding": "gzip"} if is_packed else {}
    body = gzip.compress(body) if is_packed else body
    drops = []
    with answering(lambda handler, _: reply(handler, 200, body, **headers)) as url:
        exporter = build_exporter(url, signal, drops)
        assert exporter.export(batch).name == "SUCCESS"
        exporter.shutdown()
    assert drops == [(2, "rejected", signal)]


def refusing(most, count, seen):
    """An answer of 413 to requests of more than `most` items; the sizes of the others go to `seen`."""

    def answer(handler, body):
        number = count(gzip.decompress(body) if handler.headers.get("Content-Encoding") == "gzip" else body)
        if number > most:
            reply(handler, 413)
        else:
            seen.append(number)
            reply(handler, 200)

    return answer


def count_spans(body):
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    message = ExportTraceServiceRequest.FromString(body)
    return sum(len(scope.spans) for group in message.resource_spans for scope in group.scope_spans)


@pytest.mark.parametrize("is_known", [True, False])
def test_a_batch_that_is_too_large_is_sent_in_parts(is_known, monkeypatch):
    if not is_known:
        monkeypatch.setattr("django_otel.export.otlp.build_encoded_exporter_class", lambda *_: None)
    seen = []
    with answering(refusing(3, count_spans, seen)) as url, pipeline(url) as made:
        made.finish(*"abcdefghij")
        assert made.flush()
        assert sum(seen) == 10
        assert made.counts.drops == {}


def test_a_span_that_is_too_large_alone_is_counted_and_the_export_goes_on():
    seen = []
    with answering(refusing(0, count_spans, seen)) as url, pipeline(url) as made:
        made.finish(*"abc")
        made.flush()
        assert made.counts.drops == {"too_large": 3}


@pytest.mark.parametrize(("signal", "batch", "total"), [("metrics", metrics_of(5), 10), ("logs", log_records(10), 10)])
def test_points_and_records_are_sent_in_parts(signal, batch, total):
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    def count(body):
        if signal == "logs":
            message = ExportLogsServiceRequest.FromString(body)
            return sum(len(scope.log_records) for group in message.resource_logs for scope in group.scope_logs)
        message = ExportMetricsServiceRequest.FromString(body)
        return sum(
            len(metric.gauge.data_points)
            for group in message.resource_metrics
            for scope in group.scope_metrics
            for metric in scope.metrics
        )

    seen, drops = [], []
    with answering(refusing(3, count, seen)) as url:
        exporter = build_exporter(url, signal, drops)
        assert exporter.export(batch).name == "SUCCESS"
        exporter.shutdown()
    assert sum(seen) == total
    assert drops == []


def test_halves_of_metrics_hold_each_point_once():
    whole = metrics_of(5)
    first, second = Points.halve(whole, Points.count(whole))
    assert (Points.count(first), Points.count(second)) == (5, 5)


def drip(handler, status, head, forever):
    handler.wfile.write(head)
    for _ in range(600):
        handler.wfile.write(forever)
        time.sleep(0.05)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nX-Slow: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n",
        b"HTTP/1.1 400 No\r\nX-Slow: ",
    ],
    ids=["head", "body", "error"],
)
def test_the_timeout_is_that_of_the_whole_answer(head):
    with (
        answering(lambda handler, _: drip(handler, 200, head, b"a")) as url,
        pipeline(url, TIMEOUT_S=0.5) as made,
    ):
        made.finish("a")
        # The receiver would go on for thirty seconds.
        assert made.processors[0].force_flush(15_000)
        assert made.counts.failures == 1


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("is_packed", [True, False])
def test_a_huge_answer_is_not_read_into_memory(status, is_packed):
    body = gzip.compress(bytes(400 * 2**20), 9) if is_packed else b""
    written = []

    def answer(handler, _):
        if is_packed:
            reply(handler, status, body, Content_Encoding="gzip")
            return
        handler.send_response(status)
        handler.send_header("Content-Length", str(3 * 2**30))
        handler.end_headers()
        for _ in range(3 * 2**10):
            handler.wfile.write(bytes(2**20))
            written.append(1)

    with answering(answer) as url, pipeline(url) as made:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        made.finish("a")
        assert made.processors[0].force_flush(60_000)
        grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kb < 100_000
    assert len(written) < 100
    assert made.counts.failures == (0 if status == 200 else 1)


def test_the_certificate_of_otlp_counts_more_than_that_of_requests(monkeypatch, tmp_path):
    from django_otel.export.answers import Answers
    from django_otel.export.http_session import build_session

    for name in ("OTHER", "OURS"):
        (tmp_path / name).write_text("")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "OTHER"))
    session = build_session(Answers("traces", lambda *_: None))
    session.verify = str(tmp_path / "OURS")
    asked = []

    def send(request, **options):
        asked.append(options["verify"])
        raise requests.exceptions.SSLError("stop")

    monkeypatch.setattr(session, "send", send)
    with pytest.raises(requests.exceptions.SSLError, match="stop"):
        session.request("POST", "https://localhost/")
    assert asked == [str(tmp_path / "OURS")]


def test_refused_spans_in_a_json_answer_are_counted():
    body = b'{"partialSuccess": {"rejectedSpans": "2", "errorMessage": "too old"}, "later": 1}'
    with (
        answering(lambda handler, _: reply(handler, 200, body, Content_Type="application/json")) as url,
        pipeline(url, EXPORTERS=["otlp-json"]) as made,
    ):
        made.finish("a", "b", "c")
        assert made.flush()
        assert made.counts.drops == {"rejected": 2}


@contextlib.contextmanager
def grpc_answering(service, method, answer):
    """A gRPC server that gives `answer` to each export; gives its URL."""
    grpc = pytest.importorskip("grpc")
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    handler = grpc.unary_unary_rpc_method_handler(lambda *_: answer.SerializeToString())
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize("is_known", [True, False])
def test_spans_refused_over_grpc_are_counted(is_known, monkeypatch):
    if not is_known:
        monkeypatch.setattr("django_otel.export.otlp.build_encoded_exporter_class", lambda *_: None)
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 1
    with grpc_answering("opentelemetry.proto.collector.trace.v1.TraceService", "Export", answer) as url:
        made = Pipeline({"EXPORTERS": ["otlp-grpc"], "ENDPOINT": url, "BATCH": {"DELAY_S": 30}})
        made.finish("a", "b")
        assert made.flush()
        assert made.counts.drops == {"rejected": 1}
        made.close()


@pytest.mark.parametrize(
    ("signal", "service", "answer", "field", "batch"),
    [
        ("metrics", "metrics.v1.MetricsService", ExportMetricsServiceResponse, "rejected_data_points", metrics_of(2)),
        ("logs", "logs.v1.LogsService", ExportLogsServiceResponse, "rejected_log_records", log_records(3)),
    ],
)
def test_points_and_records_refused_over_grpc_are_counted(signal, service, answer, field, batch):
    made = answer()
    setattr(made.partial_success, field, 2)
    drops = []
    with grpc_answering(f"opentelemetry.proto.collector.{service}", "Export", made) as url:
        config = parse({signal.upper(): {"EXPORTERS": ["otlp-grpc"], "ENDPOINT": url}}, {})
        exporter = pipelines.build_otlp_exporter("otlp-grpc", signal, config, lambda *drop: drops.append(drop))
        assert exporter.export(batch).name == "SUCCESS"
        exporter.shutdown()
    assert drops == [(2, "rejected", signal)]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Two unrelated certificates of localhost, each with its key: "receiver" and "client"."""
    folder = tmp_path_factory.mktemp("tls")
    if shutil.which("openssl") is None:
        services.missing("openssl is not installed")
    for name in ("receiver", "client"):
        subprocess.run(
            [
                "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
                "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", folder / f"{name}.key",
                "-out", folder / f"{name}.pem",
            ],
            check=True,
            capture_output=True,
        )  # fmt: skip
    return folder


@pytest.mark.parametrize("has_client", [False, True])
@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
def test_certificates_of_otlp_work_whatever_requests_is_told(monkeypatch, certificates, signal, has_client):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates / "client.pem"))
    monkeypatch.setenv("CURL_CA_BUNDLE", str(certificates / "client.pem"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(certificates / "receiver.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "receiver.pem", certificates / "receiver.key")
    if has_client:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", str(certificates / "client.pem"))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_KEY", str(certificates / "client.key"))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificates / "client.pem")
    got = []

    def answer(handler, body):
        got.append(body)
        reply(handler, 200)

    with answering(answer, context) as url:
        drops = []
        exporter = build_exporter(url, signal, drops)
        if signal == "traces":
            pipelines_of = Pipeline({"EXPORTERS": ["otlp"], "ENDPOINT": f"{url}/v1/traces"})
            pipelines_of.finish("a")
            assert pipelines_of.flush()
            pipelines_of.close()
            assert pipelines_of.counts.failures == 0
        else:
            assert exporter.export(metrics_of(1) if signal == "metrics" else log_records(1)).name == "SUCCESS"
        exporter.shutdown()
    assert len(got) == 1


def test_a_receiver_without_anything_to_say_costs_nothing():
    with services.start_receiver() as receiver:
        made = Pipeline({"EXPORTERS": ["otlp"], "ENDPOINT": f"{receiver.url}/v1/traces"})
        made.finish("a")
        assert made.flush()
        assert made.counts.drops == {}
        made.close()
