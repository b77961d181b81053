"""A small HTTP server for `/metrics` alone, on a separate port: `manage.py otel serve`.

One thread reads every request's head and writes every answer without blocking, so a
client that sends or reads slowly costs a connection and nothing else. Pages are
rendered by at most `MAX_SCRAPES` threads.
"""

from __future__ import annotations

import collections
import contextlib
import io
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler

from django.utils.translation import gettext, ngettext

from django_otel.base import guard
from django_otel.metrics import exposition, negotiation
from django_otel.metrics.model import Family

#: Scrapes that may be rendered at once, and how long one more waits before it is refused.
MAX_SCRAPES = 4
_MAX_WAIT_S = 5.0
#: Connections at once; for one more, the client that has been sending or reading longest is cut off.
MAX_CONNECTIONS = 64
#: Answers that may wait for their clients to read them; each holds a page in memory.
_MAX_ANSWERS = 16
#: Longest head of a request, in bytes.
MAX_HEAD_BYTES = 32_768
#: How long a client may take to send the whole head, or to read the whole answer; how long a stop waits for answers.
_CLIENT_TIMEOUT_S = 5.0
_TICK_S = 0.1


class Unavailable(Exception):  # noqa: N818 (an answer, not a fault)
    """There is nothing to show now; the text says why and goes to the client."""


@dataclass
class Source:
    """Options of the server: data and access."""

    #: Every family, at this moment. Errors: `Unavailable`.
    collect: Callable[[], list[Family]]
    resource_attributes: Mapping[str, object]
    exemplars: bool = True
    #: Whether names are OpenTelemetry's for a scraper that names an escaping.
    has_negotiated_names: bool = False
    #: Whether this Authorization header may read the scrape.
    is_allowed: Callable[[str], bool] = lambda header: True


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


class _Stage(Enum):
    HEAD = "the client sends its request"
    PAGE = "the page is rendered, or waits for that"
    ANSWER = "the client reads the answer"


@dataclass(eq=False, slots=True)
class _Connection:
    client: socket.socket
    #: On the clock of `time.monotonic()`, as is `deadline_s`.
    began_s: float
    deadline_s: float
    stage: _Stage = _Stage.HEAD
    head: bytearray = field(default_factory=bytearray)
    exchange: _Exchange | None = None
    answer: memoryview = field(default_factory=lambda: memoryview(b""))


class ScrapeServer:
    """Answers `/metrics` and `/livez`. Errors of the constructor: `OSError` when the port is taken."""

    def __init__(self, host: str, port: int, source: Source) -> None:
        self._source = source
        self._connections: dict[_Connection, None] = {}
        self._waiting: collections.deque[_Connection] = collections.deque()
        self._rendering = 0
        #: Filled by the rendering threads, emptied by the serving one.
        self._rendered: collections.deque[_Connection] = collections.deque()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind((host, port))
            self._listener.listen(MAX_CONNECTIONS)
        except BaseException:
            self._listener.close()
            raise
        self._listener.setblocking(False)
        self.server_port = int(self._listener.getsockname()[1])
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        for end in (self._wake_reader, self._wake_writer):
            end.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, self._take_rendered)

    @property
    def active(self) -> int:
        """The number of connections."""
        return len(self._connections)

    def run_until(self, stop: StopFlag) -> None:
        """Serve until `stop` is set, then finish the answers under way, at most 5 s."""
        try:
            while not stop.is_set:
                self._turn()
            self._selector.unregister(self._listener)
            self._listener.close()
            for connection in [one for one in self._connections if one.stage is _Stage.HEAD]:
                self._close(connection)
            deadline_s = time.monotonic() + _CLIENT_TIMEOUT_S
            while self._connections and time.monotonic() < deadline_s:
                self._turn()
        finally:
            for connection in list(self._connections):
                self._close(connection)
            self._selector.close()
            for end in (self._listener, self._wake_reader, self._wake_writer):
                end.close()

    def _turn(self) -> None:
        for key, _ in self._selector.select(_TICK_S):
            if isinstance(key.data, _Connection):
                if key.data in self._connections:
                    self._advance(key.data)
            else:
                key.data()
        now_s = time.monotonic()
        for connection in [one for one in self._connections if now_s >= one.deadline_s]:
            if connection in self._waiting:
                self._waiting.remove(connection)
                assert connection.exchange is not None
                message = ngettext(
                    "%(count)d scrape is under way; try again.",
                    "%(count)d scrapes are under way; try again.",
                    MAX_SCRAPES,
                )
                connection.exchange.say(503, message % {"count": MAX_SCRAPES}, {"Retry-After": "5"})
                self._answer(connection)
            else:
                self._close(connection)

    # --- One connection, from its beginning to its end. ---

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError, InterruptedError):
            return
        except OSError:
            # No file descriptor is left: without a pause this would turn in circles.
            if not self._evict(_Stage.HEAD, _Stage.ANSWER):
                time.sleep(_TICK_S)
            return
        if len(self._connections) >= MAX_CONNECTIONS and not self._evict(_Stage.HEAD, _Stage.ANSWER, _Stage.PAGE):
            client.close()
            return
        client.setblocking(False)
        now_s = time.monotonic()
        connection = _Connection(client, now_s, now_s + _CLIENT_TIMEOUT_S)
        self._connections[connection] = None
        self._selector.register(client, selectors.EVENT_READ, connection)

    def _evict(self, *stages: _Stage) -> bool:
        """Close the oldest connection in the first of these stages that one is in."""
        for stage in stages:
            # The order of the dict is that of their beginning; a page that a thread renders is left alone.
            for connection in self._connections:
                if connection.stage is stage and (stage is not _Stage.PAGE or connection in self._waiting):
                    self._close(connection)
                    return True
        return False

    def _close(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)
        with contextlib.suppress(ValueError):
            self._waiting.remove(connection)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection.client)
        with contextlib.suppress(OSError):
            connection.client.shutdown(socket.SHUT_WR)
        connection.client.close()

    def _advance(self, connection: _Connection) -> None:
        try:
            if connection.stage is _Stage.HEAD:
                self._read(connection)
            else:
                sent = connection.client.send(connection.answer)
                connection.answer = connection.answer[sent:]
                if not connection.answer:
                    self._close(connection)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            # A client that went away.
            self._close(connection)

    def _read(self, connection: _Connection) -> None:
        read = connection.client.recv(MAX_HEAD_BYTES)
        if not read:
            self._close(connection)
            return
        # A mark may stand across two pieces.
        begin = max(0, len(connection.head) - 3)
        connection.head += read
        ends = [found for mark in (b"\r\n\r\n", b"\n\n") if (found := connection.head.find(mark, begin)) >= 0]
        if not ends and len(connection.head) < MAX_HEAD_BYTES:
            return
        self._selector.unregister(connection.client)
        connection.exchange = exchange = _Exchange(bytes(connection.head))
        connection.head.clear()
        if not ends or min(ends) > MAX_HEAD_BYTES:
            exchange.refuse_length()
        elif exchange.begin(self._source):
            connection.stage = _Stage.PAGE
            connection.deadline_s = time.monotonic() + _MAX_WAIT_S
            self._waiting.append(connection)
            self._start_rendering()
            return
        self._answer(connection)

    def _answer(self, connection: _Connection) -> None:
        assert connection.exchange is not None
        if sum(one.stage is _Stage.ANSWER for one in self._connections) >= _MAX_ANSWERS:
            self._evict(_Stage.ANSWER)
        connection.stage = _Stage.ANSWER
        connection.answer = memoryview(connection.exchange.wfile.getvalue())
        connection.exchange = None
        connection.deadline_s = time.monotonic() + _CLIENT_TIMEOUT_S
        self._selector.register(connection.client, selectors.EVENT_WRITE, connection)
        self._advance(connection)

    # --- Rendering. ---

    def _start_rendering(self) -> None:
        while self._waiting and self._rendering < MAX_SCRAPES:
            connection = self._waiting.popleft()
            # Ends when it ends: the project's own callbacks are among what is collected.
            connection.deadline_s = float("inf")
            self._rendering += 1
            threading.Thread(target=self._render, args=(connection,), name="django_otel-scrape", daemon=True).start()

    def _render(self, connection: _Connection) -> None:
        try:
            if connection.exchange is not None:
                connection.exchange.render(self._source)
        finally:
            self._rendered.append(connection)
            with contextlib.suppress(OSError):
                self._wake_writer.send(b"\0")

    def _take_rendered(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_reader.recv(4096)
        while self._rendered:
            connection = self._rendered.popleft()
            self._rendering -= 1
            if connection in self._connections:
                self._answer(connection)
        self._start_rendering()


class _Exchange(BaseHTTPRequestHandler):
    """One request, whose head is there, and its answer, which is kept in memory (`wfile`)."""

    server_version = "django_otel"
    sys_version = ""
    wfile: io.BytesIO

    def __init__(self, head: bytes) -> None:
        # Not the base's, which would read from a socket.
        self.rfile = io.BytesIO(head)
        self.wfile = io.BytesIO()
        self.client_address = ("", 0)
        self.command, self.requestline, self.request_version = "", "", "HTTP/1.0"
        self.close_connection = True

    def begin(self, source: Source) -> bool:
        """Answer, or return True when that takes `render`."""
        self.raw_requestline = self.rfile.readline(MAX_HEAD_BYTES + 1)
        if not self.parse_request():
            return False
        path = self.path.partition("?")[0]
        if self.command not in ("GET", "HEAD"):
            self.say(405, gettext("Only GET and HEAD are allowed here."), {"Allow": "GET, HEAD"})
        elif path == "/livez":
            self.say(200, "ok")
        elif path != "/metrics":
            self.say(404, gettext("The metrics are at /metrics."))
        elif not source.is_allowed(self.headers.get("Authorization", "")):
            self.say(
                401,
                gettext(
                    'Send the metrics token as "Authorization: Bearer <token>" (authorization.credentials in '
                    "Prometheus)."
                ),
                {"WWW-Authenticate": 'Bearer realm="metrics"'},
            )
        else:
            return True
        return False

    def refuse_length(self) -> None:
        """Answer a head that is too long."""
        message = gettext("The request line and headers together may have at most %(count)s bytes.")
        self.say(431, message % {"count": MAX_HEAD_BYTES})

    def render(self, source: Source) -> None:
        """Answer with the page, or with the reason why there is none."""
        try:
            self._render(source)
        except Unavailable as error:
            self.say(503, str(error))
        except Exception as error:
            guard.report("the scrape of manage.py otel serve", error)
            self.say(500, gettext("This page failed; the log says why."))

    def _render(self, source: Source) -> None:
        page_format = negotiation.negotiate(self._header("Accept"))
        named = negotiation.negotiate_escaping(self._header("Accept"), page_format)
        page = exposition.render(
            source.collect(),
            openmetrics=page_format.is_openmetrics,
            resource_attributes=source.resource_attributes,
            exemplars=source.exemplars,
            escaping=named if source.has_negotiated_names else "",
        )
        headers = {"Content-Type": page_format.content_type_with(named), "Vary": "Accept, Accept-Encoding"}
        if negotiation.accepts_gzip(self._header("Accept-Encoding")):
            page = negotiation.compress(page)
            headers["Content-Encoding"] = "gzip"
        self._send(200, page, headers)

    def _header(self, name: str) -> str | None:
        # A list may come in several headers (RFC 9110, section 5.3).
        found = self.headers.get_all(name)
        return ", ".join(found) if found else None

    def say(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        """Answer with a sentence."""
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
