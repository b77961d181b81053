"""Export at the stop of an ASGI server, beyond the middleware.

uvicorn ends a worker by raising the signal again with its default action, so
nothing registered with `atexit` runs. Django's handler refuses the lifespan
protocol, which would notify us in time; so we answer it.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Awaitable, Callable, MutableMapping

from django_otel import runtime
from django_otel.base import guard

Scope = MutableMapping[str, object]
Receive = Callable[[], Awaitable[MutableMapping[str, object]]]
Send = Callable[[MutableMapping[str, object]], Awaitable[None]]


async def serve_lifespan(receive: Receive, send: Send) -> None:
    """Answer a server's lifespan messages; export what is left when it shuts down.

    Source: ASGI specification, "Lifespan Protocol".
    """
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            with guard.contained("the flush at the server's shutdown"):
                # In a thread: an export blocks, and the loop still closes connections.
                await asyncio.to_thread(runtime.flush)
            await send({"type": "lifespan.shutdown.complete"})
            return


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
            await serve_lifespan(receive, send)
        else:
            await original(self, scope, receive, send)

    call._answers_lifespan = True  # type: ignore[attr-defined]  # noqa: SLF001 (a mark of our own on the application)
    handler_class.__call__ = call
