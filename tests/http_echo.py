"""A small HTTP server that remembers what it was sent, and redirects on request."""

from __future__ import annotations

import contextlib
import http.server
import selectors
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass
class Echo:
    """Listens on every loopback name, so that `localhost` and `127.0.0.1` are two hosts to a client."""

    port: int
    #: (Host header's name, path, headers by lower-case name) of each request.
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    #: How long it takes to send each byte of its answers; where `reader` is set, from when the client waits for it.
    part_delay_s: float = 0.0
    reader: Reader | None = None

    def url(self, host: str = "127.0.0.1", path: str = "/", redirect_to: str = "") -> str:
        query = f"?to={urllib.parse.quote(redirect_to, safe='')}" if redirect_to else ""
        return f"http://{host}:{self.port}{path}{query}"

    @property
    def last(self) -> dict[str, str]:
        return self.requests[-1][2]

    def traced_hosts(self) -> list[tuple[str, bool]]:
        """Host and whether it got a traceparent, request by request."""
        return [(host, "traceparent" in headers) for host, _, headers in self.requests]


class Reader:
    """Knows when the one client of an echo waits for more than it has been sent.

    Under load a thread is stopped anywhere, so a time that passes on the server alone says nothing of the client's.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sent_bytes = self._received_bytes = 0
        self._is_waiting = False

    def wait_until_it_waits(self) -> None:
        with self._changed:
            assert self._changed.wait_for(
                lambda: self._is_waiting and self._received_bytes == self._sent_bytes, timeout=60
            )

    def note_sent(self, size_bytes: int) -> None:
        with self._changed:
            self._sent_bytes += size_bytes

    def _note_wait(self) -> None:
        with self._changed:
            self._is_waiting = True
            self._changed.notify_all()

    def _note_received(self, size_bytes: int) -> None:
        with self._changed:
            self._received_bytes += size_bytes
            self._is_waiting = False

    def watch(self, patch: pytest.MonkeyPatch, echo: Echo) -> None:
        """Watch the sockets that are connected to the echo, and event loops that have nothing else to do."""
        receive, receive_into = socket.socket.recv, socket.socket.recv_into
        select = selectors.DefaultSelector.select

        def watched(original: Callable[..., Any], size_of: Callable[[Any], int]) -> Callable[..., Any]:
            def call(connected: socket.socket, *args: Any, **named: Any) -> Any:
                if connected.getpeername()[1] != echo.port:
                    return original(connected, *args, **named)
                if connected.gettimeout() != 0:
                    self._note_wait()
                result = original(connected, *args, **named)
                self._note_received(size_of(result))
                return result

            return call

        def watched_select(selector: Any, timeout: float | None = None) -> Any:
            # The server asks a selector, too, in its own thread.
            if (timeout is None or timeout > 0) and threading.get_ident() == client_thread:
                self._note_wait()
            return select(selector, timeout)

        client_thread = threading.get_ident()
        patch.setattr(socket.socket, "recv", watched(receive, len))
        patch.setattr(socket.socket, "recv_into", watched(receive_into, int))
        patch.setattr(selectors.DefaultSelector, "select", watched_select)
        echo.reader = self


@contextlib.contextmanager
def start_echo() -> Iterator[Echo]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def setup(self) -> None:
            super().setup()
            if reader := echo.reader:
                write = self.wfile.write
                self.wfile.write = lambda part: reader.note_sent(len(part)) or write(part)  # type: ignore[func-returns-value,method-assign]

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            echo.requests.append((headers.get("host", "").partition(":")[0], self.path, headers))
            target = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query).get("to")
            self.send_response(302 if target else 200)
            if target:
                self.send_header("Location", target[0])
            self.send_header("Content-Length", "2")
            self.end_headers()
            for part in (b"o", b"k"):
                if echo.reader:
                    echo.reader.wait_until_it_waits()
                time.sleep(echo.part_delay_s)
                self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            # A client that went away.
            pass

    server = Server(("127.0.0.1", 0), Handler)
    echo = Echo(server.server_port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield echo
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
