"""`manage.py otel collect`: receives OTLP over HTTP from other services of this machine into the console's store.

Traces and log records, as protobuf or JSON, also gzipped. Bodies, connections and
times are bounded; what arrives is redacted as our own data is. For one machine:
beyond it a Collector with Tempo or Jaeger, and `TRACE_URL`.
"""

from __future__ import annotations

import io
import json
import socket
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from django_otel.base import guard
from django_otel.base.private_files import Unusable
from django_otel.export.wire import write_field, write_varint
from django_otel.operations.serve import StopFlag
from django_otel.redaction.scrub import Scrubber
from django_otel.tracestore import incoming
from django_otel.tracestore.incoming import Received
from django_otel.tracestore.writer import TraceStore

#: Longest body as it arrives, and unpacked, in bytes.
MAX_BODY_BYTES = 4 << 20
MAX_UNPACKED_BYTES = 16 << 20
#: Requests at once; one more gets 503, to try again.
MAX_REQUESTS = 16
#: How long a client may take for its whole request, in seconds.
_TIMEOUT_S = 10.0
_TICK_S = 0.2
#: Of the length of a body; Python refuses to read numbers of thousands.
_MOST_DIGITS = 20
_PROTOBUF, _JSON = "application/x-protobuf", "application/json"


class Refused(Exception):  # noqa: N818 (an answer, not a fault)
    """A request is refused with a status; the text says why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass
class Collector:
    """The store that received items go to, and counts of them."""

    store: TraceStore
    scrubber: Scrubber
    keeps_statements: bool = True
    #: How many items were stored, refused and dropped; for the line at the end.
    counts: dict[str, int] = field(default_factory=lambda: {"stored": 0, "refused": 0, "dropped": 0})
    lock: threading.Lock = field(default_factory=threading.Lock)
    slots: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(MAX_REQUESTS))

    def take(self, path: str, body: bytes, *, is_json: bool) -> int:
        """Store a message, and return how many of its spans or records were refused. Errors: `Refused`."""
        try:
            received = self._read(path, body, is_json=is_json)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise Refused(400, "The body is not an OTLP message.") from error
        dropped: list[int] = []
        try:
            self.store.write(received.items, lambda count, reason: dropped.append(count))
        except (Unusable, sqlite3.Error, OSError) as error:
            guard.report("storing what was collected", error)
            raise Refused(503, "The trace store cannot be written to now.") from error
        with self.lock:
            self.counts["stored"] += len(received.items)
            self.counts["refused"] += received.refused
            self.counts["dropped"] += sum(dropped)
        return received.refused

    def _read(self, path: str, body: bytes, *, is_json: bool) -> Received:
        content: object = json.loads(body) if is_json else body
        if path == "/v1/logs":
            if is_json:
                return incoming.read_logs_json(content, self.scrubber)
            return incoming.read_logs(body, self.scrubber)
        if is_json:
            return incoming.read_spans_json(content, self.scrubber, keeps_statements=self.keeps_statements)
        return incoming.read_spans(body, self.scrubber, keeps_statements=self.keeps_statements)


class _BoundedReader(io.RawIOBase):
    """A client's bytes up to a moment: the timeout of a socket is that of each read, however little it brings."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        #: On the clock of `time.monotonic()`.
        self.deadline_s = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        left_s = self.deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._client.settimeout(left_s)
        try:
            return self._client.recv_into(buffer)
        finally:
            self._client.settimeout(_TIMEOUT_S)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT_S

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._reader = _BoundedReader(self.connection)
        self.rfile = io.BufferedReader(self._reader)

    def handle_one_request(self) -> None:
        # A request that takes longer ends as one of a client that is gone.
        self._reader.deadline_s = time.monotonic() + _TIMEOUT_S
        super().handle_one_request()

    def do_POST(self) -> None:
        collector = self.server.collector
        if not collector.slots.acquire(blocking=False):
            self._answer(503, b"Too many requests at once.", "text/plain")
            return
        try:
            self._collect(collector)
        finally:
            collector.slots.release()

    def _collect(self, collector: Collector) -> None:
        try:
            path = self.path.partition("?")[0].rstrip("/")
            if path == "/v1/metrics":
                raise Refused(404, "Metrics are not stored here; export traces and logs only.")
            if path not in ("/v1/traces", "/v1/logs"):
                raise Refused(404, "Expected /v1/traces or /v1/logs.")
            kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            if kind not in (_PROTOBUF, _JSON):
                raise Refused(415, f"Expected {_PROTOBUF} or {_JSON}.")
            body = self._unpack(self._read_body())
            refused = collector.take(path, body, is_json=kind == _JSON)
        except Refused as refusal:
            self._answer(refusal.status, str(refusal).encode(), "text/plain")
            return
        name = "rejectedLogRecords" if path == "/v1/logs" else "rejectedSpans"
        self._answer(200, _success(refused, name, is_json=kind == _JSON), kind)

    def _read_body(self) -> bytes:
        """The body as it arrives. Errors: `Refused`."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return self._read_chunks()
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refused(411, "The length of the body is missing.")
        if len(length) > _MOST_DIGITS or int(length) > MAX_BODY_BYTES:
            raise Refused(413, f"The body has more than {MAX_BODY_BYTES} bytes.")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise Refused(400, "The body ended early.")
        return body

    def _read_chunks(self) -> bytes:
        parts, size = [], 0
        while True:
            head = self.rfile.readline(100).partition(b";")[0].strip()
            try:
                length = int(head, 16)
            except ValueError:
                raise Refused(400, "A chunk without its length.") from None
            if length < 0 or size + length > MAX_BODY_BYTES:
                raise Refused(413, f"The body has more than {MAX_BODY_BYTES} bytes.")
            if not length:
                break
            parts.append(self.rfile.read(length))
            size += length
            self.rfile.readline(100)
        for _ in range(20):
            # Trailers.
            if self.rfile.readline(1000).strip() == b"":
                break
        return b"".join(parts)

    def _unpack(self, body: bytes) -> bytes:
        encoding = self.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding in ("", "identity"):
            return body
        if encoding != "gzip":
            raise Refused(415, "Expected gzip, or no compression.")
        unpacker = zlib.decompressobj(wbits=31)
        try:
            content = unpacker.decompress(body, MAX_UNPACKED_BYTES)
        except zlib.error as error:
            raise Refused(400, "The body is not gzip.") from error
        if unpacker.unconsumed_tail:
            raise Refused(413, f"The body has more than {MAX_UNPACKED_BYTES} bytes when unpacked.")
        if not unpacker.eof:
            raise Refused(400, "The body ended early.")
        return content

    def do_GET(self) -> None:
        self._answer(405, b"Send OTLP with POST.", "text/plain")

    def _answer(self, status: int, content: bytes, kind: str) -> None:
        if status != 200:
            # The rest of the body is not read.
            self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if status == 503:
            self.send_header("Retry-After", "1")
        if status != 200:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name of the base class)
        """Nothing: a line for each batch of each service says nothing."""

    def version_string(self) -> str:
        return "django_otel"


def _success(refused: int, name: str, *, is_json: bool) -> bytes:
    """The answer of OTLP: empty, or how many items were refused."""
    if is_json:
        return json.dumps({"partialSuccess": {name: str(refused)}} if refused else {}).encode()
    if not refused:
        return b""
    # Field 1, a message whose field 1 is the number. Source: opentelemetry-proto, trace_service.proto.
    return write_field(b"\x0a", b"\x08" + write_varint(refused))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host: str, port: int, collector: Collector) -> None:
        self.collector = collector
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away, or was too slow: nothing to say."""


def serve(host: str, port: int, collector: Collector, stop: StopFlag, on_start: Callable[[int], None]) -> None:
    """Receive until `stop` is set; call `on_start(port)` once the server listens. Errors: `OSError`."""
    with _Server(host, port, collector) as server:
        on_start(server.server_port)
        thread = threading.Thread(target=server.serve_forever, args=(_TICK_S,), daemon=True)
        thread.start()
        while not stop.is_set and thread.is_alive():
            thread.join(_TICK_S)
        server.shutdown()
