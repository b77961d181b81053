"""WebSockets beside Django: a consumer of Channels, and a bare ASGI application below /bare/."""

import asyncio
import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django_application = get_asgi_application()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402 (Django is set up first)
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.http import StreamingHttpResponse  # noqa: E402 (Django is set up first)
from django.urls import include, path, re_path  # noqa: E402

from django_otel.asgi import instrument  # noqa: E402


class Echo(AsyncWebsocketConsumer):
    async def connect(self):
        if self.scope["url_route"]["kwargs"].get("room") == "closed":
            await self.close()
        else:
            await self.accept()

    async def receive(self, text_data=None, bytes_data=None):
        if text_data == "fail":
            raise ValueError("planted")
        await self.send(text_data=text_data)
        if text_data == "bye":
            await self.close()


channels_application = ProtocolTypeRouter(
    {
        "http": django_application,
        "websocket": URLRouter(
            [
                path("ws/", URLRouter([path("chat/<str:room>/", Echo.as_asgi())])),
                re_path(r"^live/(?P<room>\w+)/$", Echo.as_asgi()),
            ]
        ),
    }
)


async def bare(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
        if message["text"] == "bye":
            return await send({"type": "websocket.close"})
    return None


async def push(scope, receive, send):
    """Only sends; what the client does, it does not ask."""
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        await send({"type": "websocket.send", "text": "x" * 1000})
        await asyncio.sleep(0.01)


async def watch(request):
    """Server-sent events until the client goes away, or three of them."""

    async def events():
        number = 0
        while "endless" in request.GET or number < 3:
            yield f"data: {number}\n\n"
            number += 1
            await asyncio.sleep(0.01)

    return StreamingHttpResponse(events(), content_type="text/event-stream")


urlpatterns = [path("", include("django_otel.urls")), path("events/", watch)]


async def choose(scope, receive, send):
    if scope["type"] == "websocket" and scope["path"].startswith("/bare/"):
        await bare(scope, receive, send)
    elif scope["type"] == "websocket" and scope["path"] == "/push/":
        await push(scope, receive, send)
    else:
        await channels_application(scope, receive, send)


def find_route(scope):
    return {"/bare": "/bare/", "/push": "/push/"}.get(scope["path"][:5])


application = instrument(choose, route=find_route)
