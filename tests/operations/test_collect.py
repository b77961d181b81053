"""`manage.py otel collect`: real clients, bounds, refusals, redaction."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from django_otel.operations import collect
from django_otel.operations.serve import StopFlag
from django_otel.redaction.scrub import Scrubber
from django_otel.tracestore import record_reader
from django_otel.tracestore.reader import TraceFilter, read
from django_otel.tracestore.record_reader import LogFilter
from django_otel.tracestore.writer import TraceStore
from tests import services

TRACE = "5b8efff798038103d269b633813fc60c"
NODE = """
const { NodeTracerProvider } = require('@opentelemetry/sdk-trace-node');
const { BatchSpanProcessor } = require('@opentelemetry/sdk-trace-base');
const { OTLPTraceExporter } = require('@opentelemetry/exporter-trace-otlp-' + process.argv[3]);
const compression = process.argv[4] || 'none';
const exporter = new OTLPTraceExporter({ url: process.argv[2] + '/v1/traces', compression });
const provider = new NodeTracerProvider({ spanProcessors: [new BatchSpanProcessor(exporter)] });
provider.getTracer('gateway').startActiveSpan('from node ' + process.argv[3] + ' ' + compression, (span) => {
  span.setAttribute('password', 'hunter2');
  span.end();
});
provider.shutdown();
"""


@pytest.fixture
def server(tmp_path):
    """A collector in this process: its port, and its store."""
    tmp_path.chmod(0o700)
    store = TraceStore(tmp_path / "traces.sqlite3", max_traces=500, max_bytes=16 << 20)
    collector, stop, ports = collect.Collector(store, Scrubber()), StopFlag(), []
    started = threading.Event()

    def note(port: int) -> None:
        ports.append(port)
        started.set()

    thread = threading.Thread(target=collect.serve, args=("127.0.0.1", 0, collector, stop, note))
    thread.start()
    assert started.wait(20)
    yield SimpleNamespace(port=ports[0], url=f"http://127.0.0.1:{ports[0]}", store=store, collector=collector)
    stop.set()
    thread.join(20)
    assert not thread.is_alive()


def names(store) -> set[str]:
    with read(store) as reader:
        return {row.name for row in reader.list_traces(TraceFilter(), limit=100).rows}


def message(name: str = "pay", **attributes: str) -> dict:
    pairs = [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()]
    span = {"traceId": TRACE, "spanId": "eee19b7ec3c1b174", "name": name, "kind": 2,
            "startTimeUnixNano": "1800000000000000000", "endTimeUnixNano": "1800000001000000000",
            "attributes": pairs}  # fmt: skip
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "gateway"}}]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [span]}]}]}


def post(server, body: bytes, path: str = "/v1/traces", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        given = {"Content-Type": "application/json", **{key.replace("_", "-"): value for key, value in headers.items()}}
        connection.request("POST", path, body, given)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_json_is_stored_redacted_and_without_values(server):
    body = json.dumps(
        message(password="hunter2-a", **{"db.system.name": "postgresql", "db.query.text": "SELECT 'hunter2-b'"})
    ).encode()
    assert post(server, body) == (200, b"{}")
    with read(server.store) as reader:
        found = reader.trace(TRACE)
        assert found.row.services == ("gateway",) and "hunter2" not in str(found.spans)
        assert record_reader.list_statements(reader.connection).rows[0].text == "SELECT ?"
    assert post(server, gzip.compress(json.dumps(message("zipped")).encode()), Content_Encoding="gzip")[0] == 200


def test_logs_are_stored_with_and_without_a_trace(server):
    records = [
        {"timeUnixNano": "1800000000000000000", "severityNumber": 17, "severityText": "ERROR",
         "body": {"stringValue": "refused password=hunter2"}, **ids}
        for ids in ({}, {"traceId": TRACE, "spanId": "eee19b7ec3c1b174"})
    ]  # fmt: skip
    body = json.dumps({"resourceLogs": [{"scopeLogs": [{"scope": {"name": "bank"}, "logRecords": records}]}]}).encode()
    assert post(server, body, "/v1/logs")[0] == 200
    with read(server.store) as reader:
        rows = record_reader.search_logs(reader.connection, LogFilter()).rows
        assert sorted(row.trace_id for row in rows) == ["", TRACE]
        assert all("hunter2" not in row.body and row.logger == "bank" for row in rows)


def test_what_is_refused_is_counted_in_the_answer(server):
    faulty = message()
    faulty["resourceSpans"][0]["scopeSpans"][0]["spans"].append({"traceId": "x", "spanId": "y", "name": "z"})
    status, answer = post(server, json.dumps(faulty).encode())
    assert (status, json.loads(answer)) == (200, {"partialSuccess": {"rejectedSpans": "1"}})
    assert collect._success(300, "x", is_json=False) == b"\x0a\x03\x08\xac\x02"


@pytest.mark.parametrize(
    ("body", "path", "headers", "status"),
    [
        (b"{", "/v1/traces", {}, 400),
        (b"[" * 100_000, "/v1/traces", {}, 400),
        (b"\xff\xff", "/v1/traces", {"Content_Type": "application/x-protobuf"}, 400),
        (b"[]", "/v1/traces", {}, 400),
        (b'{"resourceSpans": 3}', "/v1/traces", {}, 400),
        (b'{"resourceLogs": [{"scopeLogs": [{"logRecords": [{"timeUnixNano": "x"}]}]}]}', "/v1/logs", {}, 400),
        (b"x", "/v1/traces", {"Content_Type": "text/plain"}, 415),
        (b"x", "/v1/traces", {"Content_Encoding": "br"}, 415),
        (b"x", "/v1/traces", {"Content_Encoding": "gzip"}, 400),
        (gzip.compress(b"{}")[:-4], "/v1/traces", {"Content_Encoding": "gzip"}, 400),
        (gzip.compress(bytes(collect.MAX_UNPACKED_BYTES + 1)), "/v1/traces", {"Content_Encoding": "gzip"}, 413),
        (b"x", "/v1/traces", {"Content_Length": str(collect.MAX_BODY_BYTES + 1)}, 413),
        (b"x", "/v1/traces", {"Content_Length": "-1"}, 411),
        (b"{}", "/v1/metrics", {}, 404),
        (b"{}", "/etc/passwd", {}, 404),
    ],
    ids=range(15),
)  # fmt: skip
def test_faulty_requests_are_refused_and_it_goes_on(server, body, path, headers, status):
    assert post(server, body, path, **headers)[0] == status
    assert post(server, json.dumps(message()).encode())[0] == 200


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"POST /v1/traces HTTP/1.1\r\nX-Slow: ",
        b"POST /v1/traces HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n",
    ],
    ids=["request line", "head", "body"],
)
def test_clients_that_drip_are_cut_off_and_shut_nobody_out(server, monkeypatch, head):
    monkeypatch.setattr(collect, "_TIMEOUT_S", 0.5)
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(collect.MAX_REQUESTS)]
    gone = set()

    def drip() -> bool:
        for client in clients:
            try:
                client.setblocking(False)
                if client in gone or client.recv(1000) == b"":
                    gone.add(client)
            except BlockingIOError:
                client.setblocking(True)
                with contextlib.suppress(OSError):
                    client.sendall(b"a")
            except OSError:
                gone.add(client)
        return len(gone) == len(clients)

    try:
        for client in clients:
            client.sendall(head)
        services.wait_until(drip, 60, "the end of clients that drip")
        monkeypatch.setattr(collect, "_TIMEOUT_S", 60)
        assert post(server, json.dumps(message("after")).encode())[0] == 200
    finally:
        for client in clients:
            client.close()


def test_a_length_of_thousands_of_digits_is_too_large(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request(
            "POST", "/v1/traces", headers={"Content-Type": "application/json", "Content-Length": "9" * 5000}
        )
        assert connection.getresponse().status == 413
    finally:
        connection.close()


def test_chunked_bodies_are_bounded(server):
    def chunks(size):
        for _ in range(size >> 16):
            yield bytes(1 << 16)

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    body = json.dumps(message("chunked")).encode()
    connection.request("POST", "/v1/traces", iter([body[:7], body[7:]]), {"Content-Type": "application/json"},
                       encode_chunked=True)  # fmt: skip
    assert connection.getresponse().status == 200
    connection.close()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("POST", "/v1/traces", chunks(8 << 20), {"Content-Type": "application/json"},
                           encode_chunked=True)  # fmt: skip
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass
    finally:
        connection.close()
    assert names(server.store) == {"chunked"}


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_the_official_python_sdk(server, compression):
    from opentelemetry._logs import LogRecord, SeverityNumber
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    kind = Compression(compression)
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = OTLPSpanExporter(f"{server.url}/v1/traces", compression=kind)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("gateway").start_as_current_span("from python", attributes={"password": "hunter2"}):
        pass
    logs = LoggerProvider(shutdown_on_exit=False)
    logs.add_log_record_processor(
        SimpleLogRecordProcessor(OTLPLogExporter(f"{server.url}/v1/logs", compression=kind))
    )  # fmt: skip
    logs.get_logger("gateway").emit(
        LogRecord(timestamp=1_800_000_000_000_000_000, body="a record", severity_number=SeverityNumber.INFO)
    )
    assert names(server.store) == {"from python"}
    with read(server.store) as reader:
        assert [row.body for row in record_reader.search_logs(reader.connection, LogFilter()).rows] == ["a record"]
    assert server.collector.counts == {"stored": 2, "refused": 0, "dropped": 0}


@pytest.mark.long
def test_the_official_sdk_of_npm(server):
    """As protobuf and as JSON, with and without gzip."""
    if shutil.which("npm") is None:
        services.missing("npm, which installs OpenTelemetry's SDK for Node.js: apt-get install npm")
    folder = services.ROOT / ".cache" / "otel-node"
    if not (folder / "node_modules" / "@opentelemetry" / "exporter-trace-otlp-proto").exists():
        folder.mkdir(parents=True, exist_ok=True)
        packages = [f"@opentelemetry/{name}" for name in (
            "api", "sdk-trace-node", "sdk-trace-base", "exporter-trace-otlp-proto", "exporter-trace-otlp-http",
        )]  # fmt: skip
        subprocess.run(
            ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", *packages],
            check=True, timeout=300, capture_output=True,
        )  # fmt: skip
    (folder / "send.js").write_text(NODE)
    wanted = set()
    for kind in ("proto", "http"):
        for compression in ("none", "gzip"):
            subprocess.run(
                ["node", "send.js", server.url, kind, compression], cwd=folder, check=True, timeout=60,
                capture_output=True,
            )  # fmt: skip
            wanted.add(f"from node {kind} {compression}")
    assert names(server.store) == wanted
    with read(server.store) as reader:
        for row in reader.list_traces(TraceFilter(), limit=10).rows:
            assert "hunter2" not in str(reader.trace(row.trace_id).spans)


def test_the_command_listens_on_loopback_and_stops(tmp_path):
    """And says what is missing where the console is off."""
    otel = {"SERVICE_NAME": "shop", "CONSOLE": {"ENABLED": True, "PATH": str(tmp_path / "store")}}
    command = [sys.executable, "-m", "django", "otel", "collect", "--port", "0"]
    with subprocess.Popen(
        command, cwd=services.ROOT, env=services.server_env(otel), stdout=subprocess.PIPE, text=True
    ) as process:
        line = process.stdout.readline()
        assert line.startswith("Listening on http://127.0.0.1:"), line
        server = SimpleNamespace(port=int(line.rstrip().rpartition(":")[2]))
        assert post(server, json.dumps(message()).encode())[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    off = services.server_env({"CONSOLE": {"ENABLED": False}})
    done = subprocess.run(command, cwd=services.ROOT, env=off, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "The console is off" in done.stdout
