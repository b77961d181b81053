"""OTLP over HTTP in JSON (`http/json`): the stock exporter's requests, rewritten on their way out."""

from __future__ import annotations

import base64
import json
import zlib

import requests
from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]

#: Message of a signal's request: module and class below `opentelemetry.proto.collector`.
_MESSAGES = {
    "traces": ("trace.v1.trace_service_pb2", "ExportTraceServiceRequest"),
    "metrics": ("metrics.v1.metrics_service_pb2", "ExportMetricsServiceRequest"),
    "logs": ("logs.v1.logs_service_pb2", "ExportLogsServiceRequest"),
}
#: Fields that are hexadecimal, not base64. Source: OTLP specification, "JSON Protobuf Encoding".
_HEX_FIELDS = ("traceId", "spanId", "parentSpanId")
_CONTAINERS = {"gzip": 31, "deflate": 15}


def to_json(data: bytes, signal: str) -> bytes:
    """The JSON of an encoded request of `signal` ("traces", "metrics", "logs")."""
    import importlib

    module, name = _MESSAGES[signal]
    message = getattr(importlib.import_module(f"opentelemetry.proto.collector.{module}"), name)()
    message.ParseFromString(data)
    content = MessageToDict(message, use_integers_for_enums=True)
    _write_hex(content)
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _write_hex(content: object) -> None:
    if isinstance(content, list):
        for item in content:
            _write_hex(item)
    elif isinstance(content, dict):
        for key, value in content.items():
            if key in _HEX_FIELDS and isinstance(value, str):
                content[key] = base64.b64decode(value).hex()
            else:
                _write_hex(value)


class JsonSession(requests.Session):
    """Sends what a stock exporter posts as protobuf, not compressed, as JSON with `compression`."""

    def __init__(self, signal: str, compression: str) -> None:
        super().__init__()
        self._signal = signal
        self._compression = compression

    def send(self, request: requests.PreparedRequest, **arguments: object) -> requests.Response:
        if isinstance(request.body, bytes):
            body = to_json(request.body, self._signal)
            if self._compression in _CONTAINERS:
                body = zlib.compress(body, 1, _CONTAINERS[self._compression])
                request.headers["Content-Encoding"] = self._compression
            request.headers["Content-Type"] = "application/json"
            request.headers["Content-Length"] = str(len(body))
            request.body = body
        return super().send(request, **arguments)
