"""A small HTTP server for the scrape alone, on a port of its own: `manage.py otel serve`."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any

from django_otel.base import guard
from django_otel.metrics import exposition
from django_otel.metrics.model import Family

#: Scrapes that may be rendered at once, and how long one more waits before it is sent away.
MAX_SCRAPES = 4
_MAX_WAIT_S = 5.0
#: Connections at once; further ones are closed unheard.
MAX_CONNECTIONS = 32
#: How long a client may take to say what it wants, and how long the end waits for answers under way.
_CLIENT_TIMEOUT_S = 5.0


class Unavailable(Exception):  # noqa: N818
    """There is nothing to show now; the text says why and goes to the client."""


@dataclass
class Source:
    """What is served, and to whom."""

    #: Every family, at this moment. Errors: `Unavailable`.
    collect: Callable[[], list[Family]]
    resource_attributes: Mapping[str, object]
    exemplars: bool = True
    #: Whether this Authorization header may read the scrape.
    is_allowed: Callable[[str], bool] = lambda header: True
    _renders: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(MAX_SCRAPES))


class ScrapeServer(ThreadingHTTPServer):
    """Answers `/metrics` and `/livez`. Errors of the constructor: `OSError` when the port is taken."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, host: str, port: int, source: Source) -> None:
        self.source = source
        self.active = 0
        self._lock = threading.Lock()
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer asks the name service for the host's name, which nobody here needs and which may take long.
        super(HTTPServer, self).server_bind()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            is_full = self.active >= MAX_CONNECTIONS
            self.active += not is_full
        if is_full:
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._release()

    def _release(self) -> None:
        with self._lock:
            self.active -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to tell of."""

    def run_until(self, stop: StopFlag) -> None:
        """Serve until `stop` is set, then finish the answers under way, at most 5 s."""
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            while not stop.is_set:
                time.sleep(0.1)
        finally:
            self.shutdown()
            deadline_s = time.monotonic() + _CLIENT_TIMEOUT_S
            while self.active and time.monotonic() < deadline_s:
                time.sleep(0.02)
            self.server_close()


class StopFlag:
    """Set by a signal. No `threading.Event`: a handler that runs while the main thread holds its lock would hang."""

    def __init__(self) -> None:
        self.is_set = False

    def set(self, *_: object) -> None:
        self.is_set = True


def stop_on_signals() -> StopFlag:
    """A flag that SIGTERM and SIGINT set."""
    stop = StopFlag()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop.set)
    return stop


class _Handler(BaseHTTPRequestHandler):
    server: ScrapeServer
    timeout = _CLIENT_TIMEOUT_S
    server_version = "django_otel"
    sys_version = ""

    def do_GET(self) -> None:
        self._respond()

    def do_HEAD(self) -> None:
        self._respond()

    def __getattr__(self, name: str) -> Any:
        # http.server looks for do_<METHOD> and answers 501 without one; here 405 is true for all of them.
        if name.startswith("do_"):
            return self._refuse_method
        raise AttributeError(name)

    def _refuse_method(self) -> None:
        self._say(405, "Only GET and HEAD are allowed here.", {"Allow": "GET, HEAD"})

    def _respond(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/livez":
            self._say(200, "ok")
        elif path != "/metrics":
            self._say(404, "The numbers are at /metrics.")
        elif not self.server.source.is_allowed(self.headers.get("Authorization", "")):
            self._say(
                401,
                'Send the metrics token as "Authorization: Bearer <token>" (authorization.credentials in Prometheus).',
                {"WWW-Authenticate": 'Bearer realm="metrics"'},
            )
        elif not self.server.source._renders.acquire(timeout=_MAX_WAIT_S):
            self._say(503, f"{MAX_SCRAPES} scrapes are under way; try again.", {"Retry-After": "5"})
        else:
            try:
                self._render()
            finally:
                self.server.source._renders.release()

    def _render(self) -> None:
        source = self.server.source
        page_format = exposition.negotiate(self._header("Accept"))
        try:
            page = exposition.render(
                source.collect(),
                openmetrics=page_format.is_openmetrics,
                resource_attributes=source.resource_attributes,
                exemplars=source.exemplars,
            )
        except Unavailable as error:
            self._say(503, str(error))
            return
        except Exception as error:
            guard.report("the scrape of manage.py otel serve", error)
            self._say(500, "This page failed; the log says why.")
            return
        headers = {"Content-Type": page_format.content_type, "Vary": "Accept, Accept-Encoding"}
        if exposition.accepts_gzip(self._header("Accept-Encoding")):
            page = exposition.compress(page)
            headers["Content-Encoding"] = "gzip"
        self._send(200, page, headers)

    def _header(self, name: str) -> str | None:
        # A list may come in several headers (RFC 9110, section 5.3).
        found = self.headers.get_all(name)
        return ", ".join(found) if found else None

    def _say(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, f"{text}\n".encode(), {"Content-Type": "text/plain; charset=utf-8", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), "Cache-Control": "no-store"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """A line per scrape would fill the log."""
