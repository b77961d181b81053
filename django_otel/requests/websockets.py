"""One WebSocket connection from its handshake to its end: span, duration, messages both ways, and who closed it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode

from django_otel.base import guard
from django_otel.base.sdk_compat import attach
from django_otel.base.sdk_compat import detach_or_raise as detach
from django_otel.metrics.instruments import Histogram
from django_otel.metrics.series import Series
from django_otel.metrics.store import CellStore
from django_otel.redaction.paths import redact_unmatched
from django_otel.requests.observer import Observer
from django_otel.sampling.sampler import with_outcome
from django_otel.tracing.exceptions import record_exception, type_name

Message = MutableMapping[str, object]
Scope = MutableMapping[str, object]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Close codes that a server alone sends: it restarts.
_SERVER_CODES = frozenset({1012})
_MAX_PATH = 1024
#: Steps of the event loop in which a server says what it knows already.
_STEPS = 10


class Connection:
    """A connection under way; `find_route` returns its route once the application has accepted or refused it."""

    def __init__(self, store: CellStore, observer: Observer, scope: Scope, find_route: Callable[[], str]) -> None:
        self._store = store
        self._find_route = find_route
        self._scrub = observer.scrub_text
        self._route = ""
        self._closed_by = ""
        self._code: object = None
        self._accepted_s: float | None = None
        self._counts = {"receive": 0, "transmit": 0}
        self._messages: dict[str, Series] = {}
        self._open: Series | None = None
        self._has_ended = False
        #: Whether a message could not be sent.
        self._is_lost = False
        self.span = _start_span(observer, scope)

    # --- What passes through. ---

    def wrap_receive(self, receive: Receive) -> Receive:
        """Return `receive` with messages from the client counted."""

        async def received() -> Message:
            message = await receive()
            self._on_received(message)
            return message

        return received

    def wrap_send(self, send: Send) -> Send:
        """Return `send` with messages to the client counted once they were sent."""

        async def sent(message: Message) -> None:
            if message.get("type") == "websocket.close":
                self._on_close(message)
            try:
                await send(message)
            except OSError:
                # The connection is gone, as the ASGI specification has it.
                self._is_lost = True
                raise
            self._on_sent(message)

        return sent

    @guard.guarded("a message of a WebSocket", None)
    def _on_received(self, message: Message) -> None:
        kind = message["type"]
        if kind == "websocket.receive":
            self._count("receive")
        elif kind == "websocket.disconnect" and not self._closed_by:
            self._code = message.get("code")
            self._closed_by = "server" if self._code in _SERVER_CODES else "client"

    @guard.guarded("the closing of a WebSocket", None)
    def _on_close(self, message: Message) -> None:
        if not self._closed_by:
            self._closed_by, self._code = "server", message.get("code", 1000)

    @guard.guarded("a message of a WebSocket", None)
    def _on_sent(self, message: Message) -> None:
        kind = message.get("type")
        if kind == "websocket.send":
            self._count("transmit")
        elif kind == "websocket.accept" and self._accepted_s is None:
            self._accept()

    def _count(self, direction: str) -> None:
        self._counts[direction] += 1
        series = self._messages.get(direction)
        if series is not None:
            series.add(1.0)

    def _accept(self) -> None:
        self._name_route()
        route: dict[str, object] = {"http.route": self._route} if self._route else {}
        messages = self._store.catalogued("django.websocket.messages")
        self._messages = {
            direction: messages.series({**route, "network.io.direction": direction}) for direction in self._counts
        }
        self._open = self._store.catalogued("django.websocket.connections").series(route)
        self._open.add(1.0)
        self._accepted_s = perf_counter()

    def _name_route(self) -> None:
        with guard.contained("the route of a WebSocket"):
            self._route = self._find_route()
        if self._route:
            self.span.update_name(f"websocket {self._route}")
            self.span.set_attribute("http.route", self._route)

    # --- The end. ---

    async def look_for_end(self, receive: Receive, error: BaseException | None) -> None:
        """Ask the server whether the connection was closed, where the application has ended without having asked.

        One that only sends learns of it by an error, or is cancelled.
        """
        has_failed = self._is_lost or isinstance(error, Exception | asyncio.CancelledError)
        if self._closed_by or self._accepted_s is None or not has_failed or isinstance(error, GeneratorExit):
            # A coroutine that is thrown away may not wait any more.
            return
        for _ in range(_STEPS):
            reading = asyncio.ensure_future(receive())
            for _ in range(_STEPS):
                await asyncio.sleep(0)
                if reading.done():
                    break
            if not reading.done() or reading.cancelled() or reading.exception() is not None:
                reading.cancel()
                break
            message = reading.result()
            if message.get("type") == "websocket.disconnect":
                self._on_received(message)
                break
        if self._is_lost and not self._closed_by:
            self._closed_by = "client"

    def end(self, error: BaseException | None) -> None:
        """Count the connection as ended, once, and end its span; `error` is what the application raised."""
        if self._has_ended:
            return
        self._has_ended = True
        try:
            # An application that returns, fails or is cancelled closes what is open.
            closed_by = self._closed_by or "server"
            with guard.contained("counting the end of a WebSocket"):
                self._count_end(closed_by)
            if self.span.is_recording():
                with guard.contained("describing a WebSocket"):
                    self._describe(closed_by, error)
        finally:
            self.span.end()

    def _count_end(self, closed_by: str) -> None:
        accepted_s, series = self._accepted_s, self._open
        if accepted_s is None or series is None:
            # Refused before it was open.
            return
        self._open = None
        series.add(-1.0)
        durations = self._store.catalogued("django.websocket.duration")
        assert isinstance(durations, Histogram)
        route: dict[str, object] = {"http.route": self._route} if self._route else {}
        ids = self.span.get_span_context()
        durations.record(
            perf_counter() - accepted_s,
            {**route, "django.websocket.closed_by": closed_by},
            *((ids.trace_id, ids.span_id) if ids.trace_flags.sampled else ()),
        )

    def _describe(self, closed_by: str, error: BaseException | None) -> None:
        span = self.span
        if self._accepted_s is None:
            # Refused, or failed before: which consumer it was.
            self._name_route()
        span.set_attribute("django.websocket.closed_by", closed_by)
        for direction, number in self._counts.items():
            span.set_attribute(f"django.websocket.messages.{direction}", number)
        if isinstance(self._code, int):
            span.set_attribute("django.websocket.close_code", self._code)
        has_left = self._is_lost and isinstance(error, OSError)
        if error is not None and not has_left and not isinstance(error, asyncio.CancelledError | GeneratorExit):
            span.set_attribute("error.type", type_name(error))
            span.set_status(Status(StatusCode.ERROR))
            if isinstance(error, Exception):
                record_exception(span, error, self._scrub, escaped=True)


@guard.guarded("starting the span of a WebSocket", trace.INVALID_SPAN)
def _start_span(observer: Observer, scope: Scope) -> trace.Span:
    if not observer.makes_spans:
        return trace.INVALID_SPAN
    path = str(scope.get("path") or "/")
    attributes: dict[str, str | int] = {
        "url.scheme": str(scope.get("scheme") or "ws"),
        "url.path": redact_unmatched(path[:_MAX_PATH]),
        "network.protocol.name": "websocket",
    }
    server = scope.get("server")
    if isinstance(server, list | tuple) and len(server) == 2:
        attributes["server.address"] = str(server[0])
        if isinstance(server[1], int):
            attributes["server.port"] = server[1]
    context, links, has_parent = observer.starter.extract(Context(), _build_meta(scope))
    policy = observer.sampler.policy if observer.sampler is not None else None
    if policy is not None and policy.has_rules and not (has_parent and policy.follows_parent):
        context = with_outcome(policy.outcome("GET", path) or policy.default_outcome, context)
    return observer.starter.tracer().start_span("websocket", context, SpanKind.SERVER, attributes, links)


def _build_meta(scope: Scope) -> dict[str, str]:
    """Return the headers of a handshake as WSGI has them, and the client's address."""
    meta: dict[str, str] = {}
    headers = scope.get("headers")
    for name, value in headers if isinstance(headers, list | tuple) else ():
        meta["HTTP_" + name.decode("latin-1").upper().replace("-", "_")] = value.decode("latin-1")
    client = scope.get("client")
    if isinstance(client, list | tuple) and client:
        meta["REMOTE_ADDR"] = str(client[0])
    return meta


async def serve_websocket(
    application: Application,
    scope: Scope,
    receive: Receive,
    send: Send,
    connection: Connection,
) -> None:
    """Run the application for one connection, with the connection's span current in it."""
    token = attach(trace.set_span_in_context(connection.span))
    error: BaseException | None = None
    try:
        await application(scope, connection.wrap_receive(receive), connection.wrap_send(send))
    except BaseException as raised:
        error = raised
        raise
    finally:
        try:
            detach(token)
        except ValueError:
            # Ended in another context than it began in: nothing of ours is current there.
            pass
        try:
            with guard.contained("the end of a WebSocket"):
                await connection.look_for_end(receive, error)
        finally:
            connection.end(error)
