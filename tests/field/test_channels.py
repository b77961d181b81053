"""Channels beside us: HTTP and websockets under daphne and uvicorn, without the app and with it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from tests import services

SETTINGS = """
import os

SECRET_KEY = "field"
DEBUG = False
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "site_urls"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions", "channels"]
MIDDLEWARE = ["django.contrib.sessions.middleware.SessionMiddleware",
              "django.contrib.auth.middleware.AuthenticationMiddleware"]
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["FIELD_SQLITE"]}}
CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
USE_TZ = True
if os.environ.get("WITH_APP"):
    INSTALLED_APPS += ["django_otel"]
    MIDDLEWARE = ["django_otel.middleware.OTelMiddleware", *MIDDLEWARE]
    OTEL = {
        "SERVICE_NAME": "field",
        "TRACES": {"ENDPOINT": os.environ["FIELD_ENDPOINT"]},
        "METRICS_VIEW": {"ALLOW": "all"},
        "SAMPLING": {"LIVE": False},
    }
"""

URLS = """
import os
from django.contrib.auth.models import User
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import include, path

def hello(request):
    return HttpResponse(f"hello, {User.objects.count()} users")

async def streamed(request):
    async def parts():
        for number in range(3):
            yield f"{number};"
    return StreamingHttpResponse(parts())

def fail(request):
    raise ValueError("planted")

urlpatterns = [path("hello/", hello), path("streamed/", streamed), path("fail/", fail)]
if os.environ.get("WITH_APP"):
    urlpatterns.append(path("", include("django_otel.urls")))
"""

ASGI = """
from django.core.asgi import get_asgi_application

django_application = get_asgi_application()

from channels.auth import AuthMiddlewareStack
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer, WebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.contrib.auth.models import User
from django.urls import path

class Echo(WebsocketConsumer):
    def receive(self, text_data=None, bytes_data=None):
        if text_data == "fail":
            raise ValueError("planted")
        self.send(text_data=f"{text_data} from {self.scope['user']}, {User.objects.count()} users")

class Group(AsyncJsonWebsocketConsumer):
    async def connect(self):
        await self.channel_layer.group_add("all", self.channel_name)
        await self.accept()
    async def receive_json(self, content):
        users = await database_sync_to_async(User.objects.count)()
        await self.channel_layer.group_send("all", {"type": "pass.on", "content": [content, users]})
    async def pass_on(self, event):
        await self.send_json(event["content"])

application = ProtocolTypeRouter({
    "http": django_application,
    "websocket": AuthMiddlewareStack(URLRouter([path("ws/echo/", Echo.as_asgi()), path("ws/group/", Group.as_asgi())])),
})
"""


def need(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is missing: pip install channels daphne websockets")


def ask(address: str) -> list:
    """Return the status, the headers that do not vary and the body of an answer over HTTP."""
    try:
        response = urllib.request.urlopen(address, timeout=20)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        headers.pop("date", None)
        return [response.status, headers, response.read().decode()]


def talk(port: int, path: str, *messages: str) -> list[str]:
    """Send messages over a websocket and return the answers; the last may be how the server closed it."""
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    answers = []
    with connect(f"ws://127.0.0.1:{port}{path}", open_timeout=20, close_timeout=20) as connection:
        for message in messages:
            connection.send(message)
            try:
                answers.append(str(connection.recv(20)))
            except ConnectionClosed as closed:
                answers.append(f"closed, {closed.rcvd and closed.rcvd.code}")
    return answers


def visit(kind: str, folder, **environment: str) -> dict:
    """Serve the project in `folder`, and return everything that it answers."""
    port = services.free_port()
    command = [sys.executable, "-m", kind]
    if kind == "daphne":
        command += ["-b", "127.0.0.1", "-p", str(port), "site_asgi:application"]
    else:
        command += ["site_asgi:application", "--host", "127.0.0.1", "--port", str(port)]
    env = services.server_env(
        None, DJANGO_SETTINGS_MODULE="site_settings", FIELD_SQLITE=str(folder / "db.sqlite3"), **environment
    )
    env["PYTHONPATH"] = f"{folder}{os.pathsep}{services.ROOT}"
    subprocess.run([sys.executable, "-m", "django", "migrate", "-v", "0"], env=env, check=True, timeout=120)
    with services.running(command, env, folder / "log") as process:
        services.wait_until(
            lambda: services.is_listening(port) or process.poll() is not None, 30, f"{kind} on port {port}"
        )
        assert process.poll() is None, (folder / "log").read_text()
        found = {path: ask(f"http://127.0.0.1:{port}{path}") for path in ("/hello/", "/streamed/", "/fail/", "/none/")}
        found["echo"] = talk(port, "/ws/echo/", "one", "two", "fail")
        found["group"] = talk(port, "/ws/group/", '{"order": 7}')
        found["after"] = ask(f"http://127.0.0.1:{port}/hello/")
        if "WITH_APP" in environment:
            _, _, found["metrics"] = ask(f"http://127.0.0.1:{port}/metrics")
    found["log"] = (folder / "log").read_text()
    return found


@pytest.mark.parametrize("kind", ["daphne", "uvicorn"])
def test_http_and_websockets_answer_the_same(kind, tmp_path, receiver):
    need("channels", "websockets", kind)
    found = []
    for with_app in (False, True):
        folder = tmp_path / ("with" if with_app else "without")
        folder.mkdir()
        for name, text in (("site_settings", SETTINGS), ("site_urls", URLS), ("site_asgi", ASGI)):
            (folder / f"{name}.py").write_text(text)
        environment = {"WITH_APP": "1", "FIELD_ENDPOINT": receiver.url} if with_app else {}
        found.append(visit(kind, folder, **environment))
    without, with_app = found

    metrics, log = with_app.pop("metrics"), with_app.pop("log")
    without.pop("log")
    assert with_app == without
    assert with_app["echo"][:2] == [f"{word} from AnonymousUser, 0 users" for word in ("one", "two")]
    assert with_app["echo"][2].startswith("closed"), with_app["echo"]
    assert with_app["group"] == ['[{"order": 7}, 0]'] or with_app["group"] == ['[{"order":7},0]']
    assert "django_otel" not in log.replace("django_otel/", ""), log

    counted = [line for line in metrics.splitlines() if line.startswith("http_server_request_duration_seconds_count{")]
    routes = {line.partition('http_route="')[2].partition('"')[0]: line.rpartition(" ")[2] for line in counted}
    assert routes == {"/hello/": "2", "/streamed/": "1", "/fail/": "1", "<unmatched>": "1"}
    # The server's end exports what waits.
    names = [span.name for _, span in receiver.spans()]
    assert names.count("GET /hello/") == 2 and "GET /fail/" in names, names
