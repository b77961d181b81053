"""ASGI beyond the middleware: WebSockets, the lifespan protocol, and the export when a server stops.

uvicorn ends a worker by raising the signal again with its default action, so
nothing registered with `atexit` runs. Django's handler refuses the lifespan
protocol, which would notify us in time; so we answer it.

WebSockets do not pass through Django's middleware. `instrument()` measures them
for any ASGI application, such as the router of Channels.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING

from opentelemetry import trace

from django_otel import runtime
from django_otel.base import guard
from django_otel.instrumentation.process_metrics import loop_watch
from django_otel.routes import regex_of, route_template

if TYPE_CHECKING:
    from django_otel.requests.websockets import Connection

Scope = MutableMapping[str, object]
Receive = Callable[[], Awaitable[MutableMapping[str, object]]]
Send = Callable[[MutableMapping[str, object]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Where a scope holds the parts of its route, which routers of Channels add; a copy of a scope has the same list.
_PARTS = "django_otel.route"
_CHANNELS = "channels.routing"


async def serve_lifespan(receive: Receive, send: Send, *, flushes: bool = True) -> None:
    """Answer a server's lifespan messages; export the queues at shutdown, unless `send` does.

    Source: ASGI specification, "Lifespan Protocol".
    """
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            if flushes:
                await _flush()
            await send({"type": "lifespan.shutdown.complete"})
            return


async def _flush() -> None:
    with guard.contained("the flush at the server's shutdown"):
        # In a thread: an export blocks, and the loop still closes connections.
        await asyncio.to_thread(runtime.flush)


def answer_lifespan() -> None:
    """Let Django's ASGI handler answer the lifespan protocol. Does nothing where no ASGI handler is loaded."""
    handlers = sys.modules.get("django.core.handlers.asgi")
    if handlers is None:
        return
    handler_class = handlers.ASGIHandler
    original = handler_class.__call__
    if getattr(original, "_answers_lifespan", False):
        return

    @functools.wraps(original)
    async def call(self: object, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            loop_watch.start()
            await serve_lifespan(receive, send)
        else:
            if loop_watch.is_wanted:
                loop_watch.start()
            await original(self, scope, receive, send)

    call._answers_lifespan = True  # type: ignore[attr-defined]  # noqa: SLF001 (a mark of our own on the application)
    handler_class.__call__ = call


# --- Any ASGI application. ---


def instrument(app: Application, *, route: str | Callable[[Scope], str | None] | None = None) -> Instrumented:
    """Measure the WebSockets of an ASGI application, and answer the lifespan protocol where it does not.

    HTTP requests pass; Django's middleware measures them. The route of a
    WebSocket is found by itself under Channels and FastAPI; elsewhere `route`
    gives it: a text, or a function of the scope. Never the path itself, which
    has as many values as there are rooms.
    """
    if isinstance(app, Instrumented):
        return app
    with guard.contained("watching the routers of Channels"):
        _watch_routers()
    return Instrumented(app, route)


class Instrumented:
    """An ASGI application whose WebSockets are measured; all else of it is as it was."""

    def __init__(self, app: Application, route: str | Callable[[Scope], str | None] | None) -> None:
        self._app = app
        self._route = route
        self._connections: set[Connection] = set()
        atexit.register(self._end_connections)

    def _end_connections(self) -> None:
        """Count connections that are open at the end of the process; daphne leaves them without another word."""
        for connection in tuple(self._connections):
            with guard.contained("the end of a WebSocket"):
                connection.end(None)

    def __getattr__(self, name: str) -> object:
        return getattr(self._app, name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if loop_watch.is_wanted:
            loop_watch.start()
        if kind == "lifespan":
            await _Lifespan(self._app, receive, send).serve(scope)
            return
        connection = None
        if kind == "websocket" and _PARTS not in scope:
            scope = {**scope, _PARTS: []}
            connection = _build_connection(scope, self._route)
        if connection is None:
            await self._app(scope, receive, send)
            return
        from django_otel.requests.websockets import serve_websocket

        self._connections.add(connection)
        try:
            await serve_websocket(self._app, scope, receive, send, connection)
        finally:
            self._connections.discard(connection)


@guard.guarded("beginning a WebSocket", None)
def _build_connection(scope: Scope, route: str | Callable[[Scope], str | None] | None) -> Connection | None:
    from django_otel.middleware import get_observer
    from django_otel.requests.websockets import Connection

    observer = get_observer()
    if observer is None or observer.is_excluded(str(scope.get("path"))):
        return None
    return Connection(runtime.store, observer, scope, functools.partial(_find_route, scope, route))


def _find_route(scope: Scope, route: str | Callable[[Scope], str | None] | None) -> str:
    """The route of a connection that has reached its application; "" where none is known."""
    found = route(scope) if callable(route) else route
    if found is None:
        parts = scope.get(_PARTS)
        if isinstance(parts, list) and parts:
            return route_template("".join(parts))
        # FastAPI updates the scope that it was given.
        found = getattr(scope.get("route"), "path", None)
    return found if isinstance(found, str) else ""


def _watch_routers() -> None:
    """Have the routers of Channels note which of their patterns has matched; they keep that to themselves."""
    routing = sys.modules.get(_CHANNELS)
    if routing is None or getattr(routing.URLRouter.__call__, "_notes_route", False):
        return
    original = routing.URLRouter.__call__

    @functools.wraps(original)
    async def call(self: object, scope: Scope, receive: Receive, send: Send) -> None:
        parts = scope.get(_PARTS)
        if isinstance(parts, list):
            with guard.contained("the route of a WebSocket"):
                _note_route(getattr(self, "routes", ()), scope, parts)
        await original(self, scope, receive, send)

    call._notes_route = True  # type: ignore[attr-defined]  # noqa: SLF001 (a mark of our own on the application)
    routing.URLRouter.__call__ = call


def _note_route(routes: object, scope: Scope, parts: list[str]) -> None:
    path = scope.get("path_remaining")
    if path is None:
        path = str(scope.get("path") or "").removeprefix(str(scope.get("root_path") or ""))
    text = str(path).lstrip("/")
    for found in routes if isinstance(routes, list | tuple) else ():
        if found.pattern.match(text):
            parts.append(regex_of(found.pattern))
            return
    # Where a router inside of another one has no such route, there is none.
    parts.clear()


class _Lifespan:
    """The lifespan of an application: a span for its start and one for its end, and the last export."""

    def __init__(self, app: Application, receive: Receive, send: Send) -> None:
        self._app = app
        self._plain_receive = receive
        self._plain_send = send
        self._phase = ""
        self._has_answered = False
        self._span: trace.Span = trace.INVALID_SPAN

    async def serve(self, scope: Scope) -> None:
        loop_watch.start()
        try:
            await self._app(scope, self._receive, self._send)
        except Exception:
            if self._has_answered:
                raise
            # It knows no lifespan, as the routers of Channels.
            if self._phase == "startup":
                await self._send({"type": "lifespan.startup.complete"})
            await serve_lifespan(self._receive, self._send, flushes=False)

    async def _receive(self) -> MutableMapping[str, object]:
        message = await self._plain_receive()
        self._phase = str(message["type"]).rpartition(".")[2]
        with guard.contained("the span of a lifespan"):
            self._span.end()
            self._span = runtime.tracer().start_span(f"lifespan {self._phase}")
        return message

    async def _send(self, message: MutableMapping[str, object]) -> None:
        self._has_answered = True
        with guard.contained("the span of a lifespan"):
            if str(message["type"]).endswith(".failed"):
                self._span.set_status(trace.Status(trace.StatusCode.ERROR))
            self._span.end()
            self._span = trace.INVALID_SPAN
        if str(message["type"]).startswith("lifespan.shutdown."):
            await _flush()
        await self._plain_send(message)
