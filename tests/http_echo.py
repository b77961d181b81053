"""A small HTTP server that remembers what it was sent, and redirects on request."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Echo:
    """Listens on every loopback name, so that `localhost` and `127.0.0.1` are two hosts to a client."""

    port: int
    #: (Host header's name, path, headers by lower-case name) of each request.
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    #: How long it takes to send each byte of its answers.
    part_delay_s: float = 0.0

    def url(self, host: str = "127.0.0.1", path: str = "/", redirect_to: str = "") -> str:
        query = f"?to={urllib.parse.quote(redirect_to, safe='')}" if redirect_to else ""
        return f"http://{host}:{self.port}{path}{query}"

    @property
    def last(self) -> dict[str, str]:
        return self.requests[-1][2]

    def traced_hosts(self) -> list[tuple[str, bool]]:
        """Host and whether it got a traceparent, request by request."""
        return [(host, "traceparent" in headers) for host, _, headers in self.requests]


@contextlib.contextmanager
def start_echo() -> Iterator[Echo]:
    class Handler(http.server.BaseHTTPRequestHandler):
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
                time.sleep(echo.part_delay_s)
                self.wfile.write(part)
                self.wfile.flush()

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
