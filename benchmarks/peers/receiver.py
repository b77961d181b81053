"""A local stand-in for what the peers send to: an OTLP receiver, Sentry, Elastic's APM server, Datadog's agent.

It answers what they expect. While `is_counting` it also reads what they send
and counts recorded requests and queries in it.
"""

from __future__ import annotations

import gzip
import http.server
import json
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Emission:
    """What arrived: recorded requests, the queries in them, and the trace ids (hexadecimal)."""

    requests: int = 0
    queries: int = 0
    trace_ids: set[str] = field(default_factory=set)


class Receiver:
    """A server on a free port of loopback, in threads of this process."""

    def __init__(self) -> None:
        self.emission = Emission()
        self.is_counting = False
        #: What could not be read; a configuration with any of these has not proved its claim.
        self.faults: list[str] = []
        self.bytes_received = 0
        self._lock = threading.Lock()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Else an answer waits 40 ms for the sender's acknowledgement of its own head.
            disable_nagle_algorithm = True

            def answer(self) -> None:
                body = _read_body(self)
                receiver.take(self.path, self.headers.get("Content-Encoding", ""), body)
                content = _answer(self.path)
                self.send_response(202 if "/intake/" in self.path else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = answer  # noqa: N815 (the server's names)

            def log_message(self, *_: object) -> None:
                pass

        class QuietServer(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                # A client that went away.
                pass

        self._server = QuietServer(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, path: str, encoding: str, body: bytes) -> None:
        with self._lock:
            self.bytes_received += len(body)
            if not self.is_counting or not body:
                return
            try:
                if encoding == "gzip":
                    body = gzip.decompress(body)
                elif encoding == "deflate":
                    body = zlib.decompress(body)
                count(path, body, self.emission)
            except Exception as error:  # whatever a peer sends must not end the server
                self.faults.append(f"{path}: {error!r}")


def _read_body(handler: http.server.BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding", "").lower() == "chunked":
        parts = []
        while size := int(handler.rfile.readline().split(b";")[0], 16):
            parts.append(handler.rfile.read(size))
            handler.rfile.readline()
        handler.rfile.readline()
        return b"".join(parts)
    return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))


def _answer(path: str) -> bytes:
    if path == "/info":
        # Datadog's agent, with what its client asks for and nothing optional.
        return json.dumps({"version": "7.60.0", "endpoints": ["/v0.4/traces", "/v0.5/traces"]}).encode()
    if path == "/":
        # Elastic's APM server: since 8.0 clients send it no unsampled transactions.
        return json.dumps({"version": "8.15.0"}).encode()
    if "/traces" in path and "/v0." in path:
        return json.dumps({"rate_by_service": {"service:,env:": 1}}).encode()
    if "/envelope/" in path:
        return json.dumps({"id": "0" * 32}).encode()
    return b""


def count(path: str, body: bytes, into: Emission) -> None:
    """Add the recorded requests and queries of one message."""
    if path.endswith("/v1/traces"):
        _count_otlp(body, into)
    elif "/envelope/" in path:
        _count_sentry(body, into)
    elif "/intake/v2/events" in path:
        _count_elastic(body, into)
    elif path.endswith("/traces"):
        _count_datadog(path, body, into)


# --- OTLP: just enough of protobuf to walk down to the spans (trace.proto). ---

_SERVER, _CLIENT = 2, 3


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
        elif kind == 1:
            at += 8
        elif kind == 5:
            at += 4
        elif kind == 2:
            size, at = _varint(message, at)
            yield number, message[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {kind}")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _count_otlp(body: bytes, into: Emission) -> None:
    for number, resource_spans in _fields(body):
        if number != 1:
            continue
        for number, scope_spans in _fields(resource_spans):
            if number != 2:
                continue
            for number, span in _fields(scope_spans):
                if number == 2:
                    fields = dict(_fields(span))
                    kind = fields.get(6, 0)
                    into.requests += kind == _SERVER
                    into.queries += kind == _CLIENT
                    into.trace_ids.add(fields[1].hex())


# --- Sentry's envelopes, Elastic's lines, Datadog's MessagePack. ---


def _count_sentry(body: bytes, into: Emission) -> None:
    rest = body.partition(b"\n")[2]
    while rest.strip():
        header_line, _, rest = rest.partition(b"\n")
        if not header_line.strip():
            continue
        header = json.loads(header_line)
        size = header.get("length")
        payload, rest = (rest[:size], rest[size:]) if size is not None else rest.partition(b"\n")[::2]
        if header.get("type") == "transaction":
            event = json.loads(payload)
            into.requests += 1
            into.queries += sum(str(span.get("op", "")).startswith("db") for span in event.get("spans", ()))
            into.trace_ids.add(event["contexts"]["trace"]["trace_id"])


def _count_elastic(body: bytes, into: Emission) -> None:
    for line in body.splitlines():
        event = json.loads(line)
        if "transaction" in event and event["transaction"].get("sampled", True):
            into.requests += 1
            into.trace_ids.add(event["transaction"]["trace_id"])
        elif "span" in event and str(event["span"].get("type", "")).startswith("db"):
            # Equal queries in a row may be compressed into one span.
            into.queries += (event["span"].get("composite") or {}).get("count", 1)


def _count_datadog(path: str, body: bytes, into: Emission) -> None:
    message, _ = unpack(body, 0)
    if "/v0.5/" in path:
        strings, traces = message
        traces = [
            [
                {
                    "type": strings[span[11]],
                    "trace_id": span[3],
                    "parent_id": span[5],
                    "metrics": {strings[key]: value for key, value in span[10].items()},
                    "meta": {strings[key]: strings[value] for key, value in span[9].items()},
                }
                for span in trace
            ]
            for trace in traces
        ]
    else:
        traces = message
    for trace in traces:
        if not any(span.get("metrics", {}).get("_sampling_priority_v1", 0) > 0 for span in trace):
            continue
        into.requests += 1
        into.queries += sum(span.get("type") == "sql" for span in trace)
        high = next((span["meta"]["_dd.p.tid"] for span in trace if "_dd.p.tid" in span.get("meta", {})), "0" * 16)
        into.trace_ids.add(f"{high}{trace[0]['trace_id']:016x}")


def unpack(data: bytes, at: int) -> tuple[Any, int]:
    """One MessagePack value and where the next one begins (the kinds that Datadog's client writes)."""
    import struct

    code = data[at]
    at += 1
    if code <= 0x7F:
        return code, at
    if code >= 0xE0:
        return code - 256, at
    if code <= 0x8F:
        return _unpack_map(data, at, code & 15)
    if code <= 0x9F:
        return _unpack_list(data, at, code & 15)
    if code <= 0xBF:
        return data[at : at + (code & 31)].decode("utf-8", "replace"), at + (code & 31)
    if code in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[code], at
    formats = {
        0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i",
        0xD3: ">q",
    }  # fmt: skip
    if code in formats:
        size = struct.calcsize(formats[code])
        return struct.unpack_from(formats[code], data, at)[0], at + size
    sizes = {
        0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I", 0xDC: ">H", 0xDD: ">I", 0xDE: ">H",
        0xDF: ">I",
    }  # fmt: skip
    if code not in sizes:
        raise ValueError(f"MessagePack code {code:#x}")
    (size,) = struct.unpack_from(sizes[code], data, at)
    at += struct.calcsize(sizes[code])
    if code in (0xDC, 0xDD):
        return _unpack_list(data, at, size)
    if code in (0xDE, 0xDF):
        return _unpack_map(data, at, size)
    content = data[at : at + size]
    return (content if code <= 0xC6 else content.decode("utf-8", "replace")), at + size


def _unpack_list(data: bytes, at: int, size: int) -> tuple[list[Any], int]:
    found = []
    for _ in range(size):
        value, at = unpack(data, at)
        found.append(value)
    return found, at


def _unpack_map(data: bytes, at: int, size: int) -> tuple[dict[Any, Any], int]:
    found = {}
    for _ in range(size):
        key, at = unpack(data, at)
        found[key], at = unpack(data, at)
    return found, at
