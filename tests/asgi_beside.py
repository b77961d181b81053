"""One ASGI application with FastAPI beside Django, as a project would write it."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
# First: it sets Django up, and with it the instrumentors that FastAPI() and httpx meet below.
django_application = get_asgi_application()

import httpx  # noqa: E402
from fastapi import FastAPI, Request  # noqa: E402

api = FastAPI()


@api.get("/api/orders/{pk}")
async def order(pk: int, request: Request):
    """Asks the Django side of the same server."""
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{request.base_url}json/")
    return {"pk": pk, "django_trace_id": answer.json()["trace_id"]}


async def application(scope, receive, send):
    """FastAPI below /api/, Django everywhere else; lifespan events are FastAPI's."""
    is_api = scope["type"] == "lifespan" or scope["path"].startswith("/api/")
    await (api if is_api else django_application)(scope, receive, send)


#: The other way round: Django mounted inside FastAPI, whose span is then the server span of both.
mounting = FastAPI()
mounting.mount("/", django_application)
