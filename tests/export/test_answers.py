"""What receivers answer: refused items, batches that are too large, endless and dripping answers."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
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
from django_otel.export import exporters, retries
from django_otel.export.answers import Points
from tests import services, sizes
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
    # A short interval: stopping it takes as long.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
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
    return exporters.build_otlp_exporter("otlp", signal, config, lambda *drop: drops.append(drop))


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


def test_no_more_is_refused_than_was_sent_and_a_message_leaves_no_secret(caplog):
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 10**15
    answer.partial_success.error_message = "bad attribute password=hunter2"
    body = answer.SerializeToString()
    with answering(lambda handler, _: reply(handler, 200, body)) as url, pipeline(url) as made:
        made.finish("a", "b", "c")
        assert made.flush()
        assert made.counts.drops == {"rejected": 3}
    assert "bad attribute" in caplog.text
    assert "hunter2" not in caplog.text


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


@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
def test_items_that_are_too_large_are_logged_once(signal, caplog):
    """However often batches are halved, and however many of them there are."""
    guard.reset()
    with answering(lambda handler, _: reply(handler, 413)) as url:
        if signal == "traces":
            with pipeline(url) as made:
                for names in ("abcdefgh", "ijkl"):
                    made.finish(*names)
                    made.flush()
                assert made.counts.drops == {"too_large": 12}
        else:
            drops = []
            exporter = build_exporter(url, signal, drops)
            for _ in range(2):
                assert exporter.export(metrics_of(4) if signal == "metrics" else log_records(8)).name == "SUCCESS"
            exporter.shutdown()
            assert sum(count for count, _, _ in drops) == 16
    guard.reset()
    lines = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert len(lines) == 1, lines
    assert "too_large" in lines[0]


def test_other_refusals_are_logged_as_before(caplog):
    with answering(lambda handler, _: reply(handler, 400)) as url, pipeline(url) as made:
        made.finish("a")
        made.flush()
    assert any(record.name.startswith("opentelemetry.exporter.otlp") for record in caplog.records)


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


@functools.cache
def _huge_answer():
    return gzip.compress(bytes(200 * 2**20), 6)


@pytest.mark.heavy
@pytest.mark.parametrize("status", [200, 302, 400, 500])
@pytest.mark.parametrize("is_packed", [True, False])
def test_a_huge_answer_is_not_read_into_memory(status, is_packed):
    body = _huge_answer() if is_packed else b""
    written = []

    def answer(handler, _):
        if is_packed:
            reply(handler, status, body, Content_Encoding="gzip", Location="/elsewhere")
            return
        handler.send_response(status)
        handler.send_header("Location", "/elsewhere")
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


@pytest.mark.parametrize("exporter", ["otlp", "otlp-json"])
@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("Content-Length: 100", b"abc"),
        ("Transfer-Encoding: chunked", b"zz\r\n"),
        ("Transfer-Encoding: chunked", b"-5\r\nabc"),
        ("Transfer-Encoding: chunked", b"5\r\nabcde\r\n"),
    ],
    ids=["short", "no chunk", "negative chunk", "unended"],
)
def test_a_success_whose_body_breaks_off_is_one_and_nothing_is_sent_twice(exporter, head, body):
    asked = []

    def answer(handler, _):
        asked.append(1)
        handler.wfile.write(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + body)

    with answering(answer) as url, pipeline(url, EXPORTERS=[exporter]) as made:
        made.finish("a")
        assert made.processors[0].force_flush(30_000)
    assert (len(asked), made.counts.failures) == (1, 0)


@pytest.mark.parametrize("place", ["http://[::1", "http://a:99999999/", "//", "\udcff"], ids=ascii)
def test_a_redirect_to_no_address_is_a_failure_and_not_sent_again(place):
    asked = []

    def answer(handler, _):
        asked.append(1)
        handler.wfile.write(b"HTTP/1.1 302 X\r\nLocation: " + place.encode("utf-8", "surrogateescape") + b"\r\n\r\n")

    with answering(answer) as url, pipeline(url) as made:
        made.finish("a")
        assert made.processors[0].force_flush(30_000)
    assert (len(asked), made.counts.failures) == (1, 1)


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


@pytest.mark.parametrize("content_type", ["application/json", "application/x-protobuf", "text/plain"])
@pytest.mark.parametrize("exporter", ["otlp-json", "otlp"])
def test_refused_spans_in_a_json_answer_are_counted(exporter, content_type):
    body = b'{"partialSuccess": {"rejectedSpans": "2", "errorMessage": "too old"}, "later": 1}'
    with (
        answering(lambda handler, _: reply(handler, 200, body, Content_Type=content_type)) as url,
        pipeline(url, EXPORTERS=[exporter]) as made,
    ):
        made.finish("a", "b", "c")
        assert made.flush()
        assert made.counts.drops == {"rejected": 2}


def grpc_answering(signal, answer):
    """A gRPC server that gives `answer` to each export of `signal`; gives its URL."""
    return grpc_server(signal, lambda *_: answer.SerializeToString())


@pytest.mark.parametrize("is_known", [True, False])
def test_spans_refused_over_grpc_are_counted(is_known, monkeypatch):
    if not is_known:
        monkeypatch.setattr("django_otel.export.otlp.build_encoded_exporter_class", lambda *_: None)
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 1
    with grpc_answering("traces", answer) as url:
        made = Pipeline({"EXPORTERS": ["otlp-grpc"], "ENDPOINT": url, "BATCH": {"DELAY_S": 30}})
        made.finish("a", "b")
        assert made.flush()
        assert made.counts.drops == {"rejected": 1}
        made.close()


@pytest.mark.parametrize(
    ("signal", "answer", "field", "batch"),
    [
        ("metrics", ExportMetricsServiceResponse, "rejected_data_points", metrics_of(2)),
        ("logs", ExportLogsServiceResponse, "rejected_log_records", log_records(3)),
    ],
)
def test_points_and_records_refused_over_grpc_are_counted(signal, answer, field, batch):
    made = answer()
    setattr(made.partial_success, field, 2)
    drops = []
    with grpc_answering(signal, made) as url:
        config = parse({signal.upper(): {"EXPORTERS": ["otlp-grpc"], "ENDPOINT": url}}, {})
        exporter = exporters.build_otlp_exporter("otlp-grpc", signal, config, lambda *drop: drops.append(drop))
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


# --- Kinds of answers. ---

BATCHES = {"metrics": metrics_of(1), "logs": log_records(1)}


def send_one(url, signal, **more):
    """Export one item to `url`; whether it arrived, and what was dropped for which reason."""
    if signal == "traces":
        with pipeline(url, **more) as made:
            made.finish("a")
            assert made.processors[0].force_flush(60_000)
            return not made.counts.failures, made.counts.drops
    drops = []
    exporter = build_exporter(url, signal, drops)
    arrived = exporter.export(BATCHES[signal]).name == "SUCCESS"
    exporter.shutdown()
    return arrived, {reason: count for count, reason, _ in drops}


@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 305, 307, 308, 399])
def test_a_redirect_is_a_failure_and_not_followed(signal, status, caplog):
    asked = []

    def elsewhere(handler, _):
        asked.append(dict(handler.headers))
        reply(handler, 200)

    with answering(elsewhere) as other:
        headers = {} if status == 304 else {"Location": f"{other}/taken?token=hunter2"}
        with answering(lambda handler, _: reply(handler, status, **headers)) as url:
            for _ in range(2):
                arrived, drops = send_one(url, signal)
                assert not arrived
                # Points and records are counted by the caller.
                assert drops == ({"export_failed": 1} if signal == "traces" else {})
    assert asked == []
    assert caplog.text.count(f"The OTLP receiver of {signal} answered {status}") == 1
    assert "hunter2" not in caplog.text
    assert (other in caplog.text) is (status != 304)


@pytest.mark.parametrize("is_json", [True, False])
def test_a_redirect_to_itself_ends(is_json):
    asked = []

    def answer(handler, _):
        asked.append(1)
        reply(handler, 307, Location=handler.path)

    with answering(answer) as url:
        arrived, drops = send_one(url, "traces", EXPORTERS=["otlp-json" if is_json else "otlp"])
    assert (arrived, drops, len(asked)) == (False, {"export_failed": 1}, 1)


@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
@pytest.mark.parametrize("status", [200, 201, 202, 204, 206])
def test_each_answer_of_success_is_one(signal, status):
    with answering(lambda handler, _: reply(handler, status)) as url:
        assert send_one(url, signal) == (True, {})


@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
@pytest.mark.parametrize("interim", ["100 Continue", "102 Processing", "103 Early Hints", "199 Later"])
@pytest.mark.parametrize("status", [200, 400])
def test_interim_answers_are_not_the_answer(signal, interim, status):
    def answer(handler, _):
        for _ in range(3):
            handler.wfile.write(f"HTTP/1.1 {interim}\r\nLink: </style.css>\r\n\r\n".encode())
        reply(handler, status)

    with answering(answer) as url:
        assert send_one(url, signal)[0] is (status == 200)


def test_an_answer_that_switches_the_protocol_is_a_failure():
    with answering(lambda handler, _: reply(handler, 101, Upgrade="h2c")) as url:
        assert send_one(url, "traces") == (False, {"export_failed": 1})


@pytest.mark.parametrize(
    "status", [400, 401, 403, 404, 405, 406, 408, 410, 415, 421, 431, 451, 499, 500, 501, 505, 511]
)
def test_an_answer_that_time_does_not_change_is_sent_once(status):
    asked = []

    def answer(handler, _):
        asked.append(1)
        reply(handler, status, b"no")

    with answering(answer) as url:
        assert send_one(url, "traces") == (False, {"export_failed": 1})
    assert len(asked) == 1


@pytest.mark.heavy
@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize("wait", ["0", "-1", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_an_answer_that_asks_for_patience_is_followed_by_another_try(signal, status, wait):
    asked = []

    def answer(handler, _):
        asked.append(1)
        reply(handler, 200 if len(asked) > 2 else status, Retry_After=wait)

    with answering(answer) as url:
        assert send_one(url, signal) == (True, {})
    assert len(asked) == 3


@pytest.mark.parametrize("wait", ["86400", "1e300", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_a_receiver_that_wants_to_be_left_alone_is(wait):
    """Its batch is dropped and counted at once: it cannot be sent within the time of an export."""
    asked = []

    def answer(handler, _):
        asked.append(1)
        reply(handler, 429, Retry_After=wait)

    with answering(answer) as url:
        assert send_one(url, "traces") == (False, {"export_failed": 1})
    assert len(asked) == 1


@sizes.each(
    "status, wait, is_tried_again",
    [
        *(
            (status, None, status in (429, 502, 503, 504))
            for status in (400, 408, 413, 429, 499, 500, 501, 502, 503, 504, 511)
        ),
        (429, "9", True),
        (429, "11", False),
        (503, "1e300", False),
        (503, "inf", True),
        (503, "soon", True),
        (503, "Thu, 01 Jan 1970 00:00:00 -0000", True),
        (503, "Fri, 01 Jan 2100 00:00:00 -0000", False),
        (503, "Fri, 01 Jan 99999 00:00:00 GMT", True),
    ],
)
def test_an_exporter_that_decides_it_itself_tries_again_as_specified(status, wait, is_tried_again):
    """Those before 1.45 do; with one of them the tests above show the whole."""
    names = {"_is_retryable": lambda response: not is_tried_again}
    exec("def export(self, response, *, more=1): return _is_retryable(response)", names)
    older = type("OTLPSpanExporter", (), {"export": names["export"]})
    response = requests.Response()
    response.status_code = status
    response.headers.update({"Retry-After": wait} if wait else {})
    corrected = retries.correct_retries(older, 10.0)
    assert corrected().export(response) is is_tried_again
    assert older().export(response) is not is_tried_again, "others in the process are as they were"


class Credentials:
    """An entry point of the group that gives the exporters sessions with credentials."""

    def load(self):
        def build():
            session = requests.Session()
            session.headers["X-Api-Key"] = "hunter2"
            return session

        return build


@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
def test_a_session_of_the_project_is_watched_as_ours_is(signal, monkeypatch):
    name = f"OTEL_PYTHON_EXPORTER_OTLP_HTTP_{signal.upper()}_CREDENTIAL_PROVIDER"
    monkeypatch.setenv(name, "ours")
    monkeypatch.setattr(
        "opentelemetry.exporter.otlp.proto.http._common.entry_points", lambda **_: [Credentials()], raising=True
    )
    got, asked = [], []

    def elsewhere(handler, _):
        asked.append(1)
        reply(handler, 200)

    statuses = [307, 200]

    def answer(handler, _):
        got.append(handler.headers.get("X-Api-Key"))
        reply(handler, statuses.pop(0) if statuses else 413, Location=other)

    with answering(elsewhere) as other, answering(answer) as url:
        assert [send_one(url, signal) for _ in range(3)] == [
            (False, {"export_failed": 1} if signal == "traces" else {}),
            (True, {}),
            # One that is too large alone is counted, and is no failure of the export.
            (True, {"too_large": 2 if signal == "metrics" else 1}),
        ]
    assert (set(got), asked) == ({"hunter2"}, [])


#: As servers in C, Go, Java, .NET and Rust say it, and a proxy's answer as gRPC for Python reports it.
TOO_LARGE = [
    ("RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (5242880 vs. 4194304)"),
    ("RESOURCE_EXHAUSTED", "grpc: received message larger than max (5242880 vs. 4194304)"),
    ("RESOURCE_EXHAUSTED", "grpc: received message after decompression larger than max 4194304"),
    ("RESOURCE_EXHAUSTED", "gRPC message exceeds maximum size 4194304: 5242880"),
    ("RESOURCE_EXHAUSTED", "Received message exceeds the maximum configured message size."),
    ("OUT_OF_RANGE", "Error, decoded message length too large: found 5242880 bytes, the limit is: 4194304 bytes"),
    ("UNKNOWN", "Received http2 header with status: 413"),
]
SERVICES = {
    "traces": "trace.v1.TraceService",
    "metrics": "metrics.v1.MetricsService",
    "logs": "logs.v1.LogsService",
}


@contextlib.contextmanager
def grpc_server(signal, export, **options):
    """A gRPC server whose `export(data, context)` gets what is exported of `signal`, encoded; gives its URL."""
    grpc = pytest.importorskip("grpc")
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(2), options=[(f"grpc.{key}", value) for key, value in options.items()]
    )
    handler = grpc.unary_unary_rpc_method_handler(export)
    service = f"opentelemetry.proto.collector.{SERVICES[signal]}"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def send_over_grpc(url, signal, count, **more):
    """Export `count` items; whether all arrived that can, and what was dropped."""
    drops = []
    settings = {"EXPORTERS": ["otlp-grpc"], "ENDPOINT": url, **more}
    if signal == "traces":
        made = Pipeline({**settings, "BATCH": {"DELAY_S": 30}})
        made.finish(*map(str, range(count)))
        assert made.processors[0].force_flush(60_000)
        made.close()
        return not made.counts.failures, made.counts.drops
    exporter = exporters.build_otlp_exporter(
        "otlp-grpc", signal, parse({signal.upper(): settings}, {}), lambda *drop: drops.append(drop)
    )
    arrived = exporter.export(metrics_of(count // 2) if signal == "metrics" else log_records(count)).name == "SUCCESS"
    exporter.shutdown()
    return arrived, {reason: number for number, reason, _ in drops}


@pytest.mark.parametrize(("code", "words"), TOO_LARGE)
@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
def test_what_is_too_large_over_grpc_is_sent_in_parts(signal, code, words):
    import grpc

    seen = []

    def export(data, context):
        seen.append(len(data))
        if len(data) > max(seen) // 3:
            context.abort(grpc.StatusCode[code], words)
        return b""

    with grpc_server(signal, export) as url:
        assert send_over_grpc(url, signal, 40) == (True, {})
    # Halved twice, and nothing was tried again as it was.
    assert len(seen) == 7


@pytest.mark.heavy
@pytest.mark.parametrize("is_known", [True, False])
def test_a_real_limit_of_a_grpc_server_is_met(is_known, monkeypatch):
    if not is_known:
        monkeypatch.setattr("django_otel.export.otlp.build_encoded_exporter_class", lambda *_: None)
    got = []

    def export(data, context):
        got.append(count_spans(data))
        return b""

    with grpc_server("traces", export, max_receive_message_length=1000) as url:
        assert send_over_grpc(url, "traces", 100, COMPRESSION="none") == (True, {})
    assert sum(got) == 100
    assert len(got) > 5


def test_what_is_too_large_alone_over_grpc_is_counted():
    with grpc_server("traces", lambda *_: b"", max_receive_message_length=10) as url:
        assert send_over_grpc(url, "traces", 3, COMPRESSION="none") == (True, {"too_large": 3})


def test_a_grpc_server_without_resources_is_not_asked_with_parts():
    """The code is also that of a quota; halves would only be more requests."""
    import grpc

    asked = []

    def export(data, context):
        asked.append(count_spans(data))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "quota exceeded for project 12")

    with grpc_server("traces", export) as url:

        def is_asked():
            # In a process that was stopped the time may be over before the server is asked.
            assert send_over_grpc(url, "traces", 4, TIMEOUT_S=0.5) == (False, {"export_failed": 4})
            return asked

        services.wait_until(is_asked, what="a request")
    assert set(asked) == {4}


@pytest.mark.parametrize("signal", ["metrics", "logs"])
def test_a_receiver_that_goes_away_after_a_413_fails_the_rest(signal):
    asked = []

    def answer(handler, _):
        asked.append(1)
        if len(asked) == 1:
            reply(handler, 413)

    drops = []
    with answering(answer) as url:
        config = parse(
            {signal.upper(): {"EXPORTERS": ["otlp"], "TIMEOUT_S": 0.5, "ENDPOINT": f"{url}/v1/{signal}"}}, {}
        )
        exporter = exporters.build_otlp_exporter("otlp", signal, config, lambda *drop: drops.append(drop))
        assert exporter.export(metrics_of(2) if signal == "metrics" else log_records(4)).name == "FAILURE"
        exporter.shutdown()
    assert drops == []


def test_a_batch_above_the_bound_of_a_request_is_sent_in_parts(monkeypatch):
    monkeypatch.setattr("django_otel.export.otlp._MAX_REQUEST_BYTES", 1000)
    seen = []
    with answering(refusing(1000, count_spans, seen)) as url, pipeline(url) as made:
        made.finish(*map(str, range(50)))
        assert made.flush()
        assert (sum(seen), made.counts.drops) == (50, {})
        assert len(seen) > 1
