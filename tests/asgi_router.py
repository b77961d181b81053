"""Django behind a router that refuses the lifespan protocol, as Channels' ProtocolTypeRouter does."""

from __future__ import annotations

from tests.asgi import application as django_application


async def application(scope, receive, send):
    if scope["type"] != "http":
        raise ValueError(f"No application configured for scope type {scope['type']!r}")
    await django_application(scope, receive, send)
