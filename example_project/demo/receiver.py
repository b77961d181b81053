"""An OTLP/HTTP receiver that counts what arrives, and hands it on where the user wants it."""

from __future__ import annotations

import gzip
import threading
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import requests
from google.protobuf.message import DecodeError
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_PROTOBUF = "application/x-protobuf"
_FORWARD_TIMEOUT_S = 5.0
#: Headers that belong to one connection or are written again (RFC 9110, 7.6.1).
_NOT_FORWARDED = {"host", "connection", "content-length", "transfer-encoding", "keep-alive", "te", "upgrade"}


@dataclass
class Tally:
    """What was exported and accepted so far."""

    spans: Counter[str] = field(default_factory=Counter)
    """By service name."""
    services_of_trace: dict[bytes, set[str]] = field(default_factory=dict)
    rejected: int = 0
    """Exports that were not accepted: undecodable, or refused by the endpoint they were handed on to."""

    @property
    def span_count(self) -> int:
        return sum(self.spans.values())

    @property
    def crossing_traces(self) -> int:
        """Traces with spans of more than one service."""
        return sum(len(services) > 1 for services in self.services_of_trace.values())


def otlp_endpoint(environ: Mapping[str, str], signal: str) -> str | None:
    """Where the user wants `signal` ("traces", "metrics", "logs") to go, or None.

    Source: OpenTelemetry Protocol Exporter, "Endpoint URLs for OTLP/HTTP".
    """
    specific = environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    if specific:
        return specific
    general = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return f"{general.rstrip('/')}/v1/{signal}" if general else None


class Receiver:
    """Listens on a free port of 127.0.0.1.

    An export counts when it was decoded and, where the user has an endpoint of
    their own, when that endpoint accepted it too.
    """

    def __init__(self, forward_to: Mapping[str, str | None] | None = None) -> None:
        self.tally = Tally()
        self.forward_to = dict(forward_to or {})
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.receiver = self
        self._thread = threading.Thread(target=self._server.serve_forever, name="otlp-receiver", daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def accept(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        """Take one export; return the status and the body of the answer."""
        signal = urlsplit(path).path.removeprefix("/v1/")
        if signal not in ("traces", "metrics", "logs"):
            return HTTPStatus.NOT_FOUND, b""
        status, answer = HTTPStatus.OK, b""
        request = ExportTraceServiceRequest()
        try:
            plain = gzip.decompress(body) if _encoding(headers) == "gzip" else body
            if signal == "traces":
                request.ParseFromString(plain)
        except (OSError, EOFError, zlib.error, DecodeError):
            status = HTTPStatus.BAD_REQUEST
        else:
            target = self.forward_to.get(signal)
            if target is not None:
                status, answer = _forward(target, headers, body)
        with self._lock:
            if not 200 <= status < 300:
                self.tally.rejected += 1
            else:
                self._count(request)
        return status, answer

    def _count(self, request: ExportTraceServiceRequest) -> None:
        for resource_spans in request.resource_spans:
            service = next(
                (item.value.string_value for item in resource_spans.resource.attributes if item.key == "service.name"),
                "without a name",
            )
            for scope_spans in resource_spans.scope_spans:
                self.tally.spans[service] += len(scope_spans.spans)
                for span in scope_spans.spans:
                    self.tally.services_of_trace.setdefault(span.trace_id, set()).add(service)


def _encoding(headers: Mapping[str, str]) -> str:
    # Names of headers have no case (RFC 9110, 5.1), and exporters differ.
    return next((value.lower() for name, value in headers.items() if name.lower() == "content-encoding"), "")


def _forward(target: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
    kept = {name: value for name, value in headers.items() if name.lower() not in _NOT_FORWARDED}
    try:
        # What is handed on is not itself observed.
        with suppress_instrumentation():
            answer = requests.post(target, data=body, headers=kept, timeout=_FORWARD_TIMEOUT_S, allow_redirects=False)
    except requests.RequestException:
        # One of the statuses after which an exporter tries again (OTLP, "Retryable Response Codes").
        return HTTPStatus.SERVICE_UNAVAILABLE, b""
    return answer.status_code, answer.content


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Handlers of kept-alive connections would otherwise be waited for at the end.
    block_on_close = False
    receiver: Receiver


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 30

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, answer = self.server.receiver.accept(self.path, dict(self.headers.items()), body)
        self.send_response(status)
        self.send_header("Content-Type", _PROTOBUF)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        """Nothing: the demo has a line of its own."""
