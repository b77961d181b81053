"""The ASGI application; `DJANGO_SETTINGS_MODULE` chooses the shop (default) or the payment gateway."""

from __future__ import annotations

import os

from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.db import close_old_connections

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_project.settings")

django_application = get_asgi_application()

from django_otel.asgi import Receive, Scope, Send, instrument  # noqa: E402 (Django is set up first)


async def serve(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve Django, and a WebSocket at /stock/ that answers an article number with what is left of it."""
    if scope["type"] != "websocket":
        await django_application(scope, receive, send)  # type: ignore[arg-type]
        return
    from example_project.shop.models import Product

    await receive()
    if scope["path"] != "/stock/":
        await send({"type": "websocket.close"})
        return
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        # As Django does around a request: a connection that has been lost is replaced.
        await sync_to_async(close_old_connections)()
        product = await Product.objects.filter(sku=str(message.get("text") or "")).afirst()
        await send({"type": "websocket.send", "text": str(product.stock if product else 0)})


application = instrument(serve, route="/stock/")
