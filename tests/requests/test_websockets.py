"""WebSockets are counted exactly, closed by either side, under real servers and when a server stops."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import re
import signal
import socket
import struct
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from django.urls import path as django_path

from django_otel import asgi
from django_otel.multiprocess.discovery import Outsider
from tests.services import free_port, is_listening, running, server_env, wait_until

pytest.importorskip("channels")
DISCONNECT = {"type": "websocket.disconnect", "code": 1001}


class Client:
    """The other end of a bare ASGI connection: gives `messages`, keeps what is sent."""

    def __init__(self, *messages):
        self.messages = [{"type": "websocket.connect"}, *messages]
        self.sent = []

    async def receive(self):
        if not self.messages:
            await asyncio.Event().wait()
        return self.messages.pop(0)

    async def send(self, message):
        self.sent.append(message)


def scope_of(path="/room/7/", **more):
    return {"type": "websocket", "path": path, "headers": [], "scheme": "ws", "server": ["testserver", 80], **more}


async def echo(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
        if message["text"] == "bye":
            return await send({"type": "websocket.close", "code": 4000})
        if message["text"] == "fail":
            raise ValueError("planted")
    return None


def text(content):
    return {"type": "websocket.receive", "text": content}


def run(client, app=echo, scope=None, **options):
    asyncio.run(asgi.instrument(app, **options)(scope or scope_of(), client.receive, client.send))


@pytest.fixture(autouse=True)
def is_on(settings):
    settings.OTEL = {}


def durations(otel_metrics, closed_by):
    return otel_metrics.value("django.websocket.duration", {"django.websocket.closed_by": closed_by}).count


@pytest.mark.parametrize(
    ("last", "closed_by", "code"),
    [
        (DISCONNECT, "client", 1001),
        (text("bye"), "server", 4000),
        ({"type": "websocket.disconnect", "code": 1012}, "server", 1012),
        ({"type": "websocket.disconnect"}, "client", None),
    ],
)
def test_a_connection_is_counted_with_its_messages(otel_metrics, otel_spans, last, closed_by, code):
    run(Client(text("a"), text("b"), last), route="/room/<int:number>/")
    number = 3 if last == text("bye") else 2
    route = {"http.route": "/room/<int:number>/"}
    assert otel_metrics.value("django.websocket.connections", route) == 0
    for direction in ("receive", "transmit"):
        wanted = {**route, "network.io.direction": direction}
        assert otel_metrics.value("django.websocket.messages", wanted) == number
    assert durations(otel_metrics, closed_by) == 1
    assert otel_metrics.value("django.websocket.duration").count == 1
    span = otel_spans.one("websocket /room/<int:number>/")
    assert span.kind.name == "SERVER"
    assert span.attributes["django.websocket.messages.receive"] == number
    assert span.attributes["django.websocket.closed_by"] == closed_by
    assert span.attributes.get("django.websocket.close_code") == code


def test_a_failing_application_and_a_cancelled_one(otel_metrics, otel_spans):
    with pytest.raises(ValueError, match="planted"):
        run(Client(text("fail")))
    span = otel_spans.one("websocket")
    assert span.attributes["error.type"] == "ValueError" and span.events[0].name == "exception"
    assert durations(otel_metrics, "server") == 1

    async def cancelled():
        task = asyncio.create_task(asgi.instrument(echo)(scope_of(), (client := Client()).receive, client.send))
        while not client.sent:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert otel_metrics.value("django.websocket.connections") == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert durations(otel_metrics, "server") == 2
    assert otel_metrics.value("django.websocket.connections") == 0
    assert otel_spans.named("websocket")[-1].status.status_code.name == "UNSET"


@pytest.mark.parametrize(
    ("known", "is_cancelled", "closed_by"),
    [
        # What the server says once the application has ended, and where it says nothing.
        ({"type": "websocket.disconnect", "code": 1006}, False, "client"),
        ({"type": "websocket.disconnect", "code": 1012}, False, "server"),
        (None, False, "client"),
        ({"type": "websocket.disconnect", "code": 1006}, True, "client"),
        ({"type": "websocket.disconnect", "code": 1012}, True, "server"),
        (None, True, "server"),
    ],
)
def test_an_application_that_only_sends_is_asked_for_at_its_end(
    otel_metrics, otel_spans, known, is_cancelled, closed_by
):
    """Its client has vanished, or the server stops: both show in an error, or in that it is cancelled."""

    class Vanished(Client):
        async def send(self, message):
            if message["type"] == "websocket.send":
                if not is_cancelled:
                    # As the ASGI specification has it.
                    raise ConnectionResetError("gone")
                await asyncio.Event().wait()
            await super().send(message)

        async def receive(self):
            if len(self.messages) < 3:
                # Not at once.
                await asyncio.sleep(0)
            return await super().receive()

    async def push(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            await send({"type": "websocket.send", "text": "x"})

    async def serve():
        client = Vanished(text("unread"), text("unread"), *([known] if known else []))
        task = asyncio.create_task(asgi.instrument(push)(scope_of(), client.receive, client.send))
        while not client.sent:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        if is_cancelled:
            task.cancel()
        with pytest.raises((ConnectionResetError, asyncio.CancelledError)):
            await task

    asyncio.run(serve())
    assert durations(otel_metrics, closed_by) == 1
    assert otel_metrics.value("django.websocket.connections") == 0
    span = otel_spans.one("websocket")
    assert span.status.status_code.name == "UNSET"
    assert span.attributes.get("django.websocket.close_code") == (known["code"] if known else None)
    assert not span.attributes["django.websocket.messages.receive"]


def test_an_application_that_is_thrown_away_after_an_error_waits_for_nothing(otel_metrics):
    class Gone(Client):
        async def send(self, message):
            if message["type"] == "websocket.send":
                raise ConnectionResetError("gone")

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        with contextlib.suppress(ConnectionResetError):
            await send({"type": "websocket.send", "text": "x"})
        await Forever()

    class Forever:
        def __await__(self):
            yield

    client = Gone()
    serving = asgi.instrument(app)(scope_of(), client.receive, client.send)
    serving.send(None)
    serving.close()
    assert otel_metrics.value("django.websocket.connections") == 0
    assert otel_metrics.value("django.websocket.duration").count == 1


def test_a_refused_connection_was_never_open(otel_metrics, otel_spans):
    async def refuse(scope, receive, send):
        await receive()
        await send({"type": "websocket.close"})

    run(Client(), refuse)
    assert otel_metrics.value("django.websocket.duration").count == 0
    assert otel_metrics.series("django.websocket.connections") == []
    assert otel_spans.one("websocket").attributes["django.websocket.closed_by"] == "server"


# Channels closes old connections of the database after each message, so of those that other tests have opened.
@pytest.mark.django_db
@pytest.mark.parametrize(
    ("path", "name"),
    [("/ws/refused/", "websocket /ws/refused/"), ("/ws/failing/7/", "websocket /ws/failing/<int:number>/"),
     ("/ws/nowhere/", "websocket")],
)  # fmt: skip
def test_a_connection_that_was_not_accepted_names_the_consumer(otel_spans, path, name):
    """In its span alone."""
    from channels.routing import URLRouter

    async def refuse(scope, receive, send):
        await receive()
        await send({"type": "websocket.close"})

    async def fail(scope, receive, send):
        raise LookupError("planted")

    routes = [django_path("refused/", refuse), django_path("failing/<int:number>/", fail)]
    with contextlib.suppress(LookupError, ValueError):
        run(Client(DISCONNECT), URLRouter([django_path("ws/", URLRouter(routes))]), scope_of(path=path))
    span = otel_spans.one(name)
    assert span.attributes.get("http.route") == (name.partition(" ")[2] or None)


def test_a_fault_of_ours_does_not_reach_the_application(otel_metrics):
    def fail(scope):
        raise LookupError("no route")

    client = Client(text("a"), DISCONNECT)
    run(client, route=fail)
    assert [message["type"] for message in client.sent] == ["websocket.accept", "websocket.send"]
    run(Client({"no": "type"}, DISCONNECT), lambda scope, receive, send: receive())
    assert durations(otel_metrics, "client") == 1


@pytest.mark.parametrize("otel", [{"ENABLED": False}, {"REQUEST": {"EXCLUDE": ["/room/*"]}}])
def test_off_and_excluded(settings, otel_spans, otel_metrics, otel):
    settings.OTEL = otel
    client = Client(text("a"), DISCONNECT)
    run(client)
    assert len(client.sent) == 2
    assert len(otel_spans) == 0
    assert otel_metrics.series("django.websocket.duration") == []


def test_the_caller_and_secrets_in_the_path(otel_spans):
    parent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    scope = scope_of("/room/sk_live_4eC39HqLyjWDarjtT1zdp7dc/", headers=[(b"traceparent", parent)])
    run(Client(DISCONNECT), scope=scope)
    span = otel_spans.one("websocket")
    assert f"{span.parent.span_id:x}" == "b7ad6b7169203331"
    assert "4eC39HqLyjWDarjtT1zdp7dc" not in span.to_json()


@pytest.mark.parametrize("knows", ["nothing", "after_receive", "lifespan"])
def test_the_lifespan_is_answered(otel_spans, knows):
    async def app(scope, receive, send):
        if knows == "nothing":
            raise ValueError("No application configured for scope type 'lifespan'")
        await receive()
        if knows == "after_receive":
            raise ValueError("lifespan?")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    client = Client()
    client.messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    run(client, app, {"type": "lifespan"})
    assert [message["type"] for message in client.sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert Counter(span.name for span in otel_spans) == {"lifespan startup": 1, "lifespan shutdown": 1}


# --- Real servers. ---


def command(kind: str, port: int, patience_s: int) -> list[str]:
    if kind == "daphne":
        return [
            sys.executable, "-m", "daphne", "-b", "127.0.0.1", "-p", str(port),
            "--application-close-timeout", str(patience_s), "tests.asgi_sockets:application",
        ]  # fmt: skip
    return [
        sys.executable, "-m", "uvicorn", "tests.asgi_sockets:application", "--host", "127.0.0.1", "--port", str(port),
        "--timeout-graceful-shutdown", str(patience_s),
    ]  # fmt: skip


def connect_all(stack: contextlib.ExitStack, port: int, paths: list[str]) -> list:
    from websockets.sync.client import connect

    found = []
    for path in paths:
        found.append(stack.enter_context(connect(f"ws://127.0.0.1:{port}{path}", close_timeout=60)))
        for number in range(3):
            found[-1].send(f"m{number}")
            assert found[-1].recv(timeout=30) == f"m{number}"
    return found


@contextlib.contextmanager
def serving(kind: str, folder: Path, patience_s: int = 2):
    """Run a server of the sockets that shares its numbers in `folder`; give the process, its port and its log.

    When it stops it waits for `patience_s` seconds until clients have closed their connections.
    """
    pytest.importorskip("websockets")
    pytest.importorskip(kind)
    otel = {"METRICS": {"SHARED_DIR": str(folder), "GROUP": "sockets"}}
    env = server_env(otel, TEST_SQLITE=str(folder / "db.sqlite3"), TEST_ROOT_URLCONF="tests.asgi_sockets")
    port, log = free_port(), folder / "log"
    with running(command(kind, port, patience_s), env, log) as process:
        wait_until(lambda: is_listening(port) or process.poll() is not None, 30, f"{kind} on port {port}")
        yield process, port, log


@pytest.mark.parametrize("kind", ["uvicorn", "daphne"])
def test_fifty_connections_are_exact_also_when_the_server_stops(kind):
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        with serving(kind, Path(folder), 20) as (process, port, log):
            paths = [
                "/bare/7/" if number % 2 else ("/ws/chat/a/" if number % 4 else "/live/b/") for number in range(50)
            ]
            clients = connect_all(stack, port, paths)
            (group,) = (path for path in Path(folder).glob("django-otel-*/named-*"))
            assert read(group, "django.websocket.connections") == {
                ("/bare/",): 25, ("/live/<room>/",): 13, ("/ws/chat/<str:room>/",): 12,
            }  # fmt: skip
            watch_events(port)
            wait_until(
                lambda: read(group, "http.server.active_requests") in ({("GET", "http"): 0}, {}), 30, "no stream"
            )
            assert sum(read(group, "http.server.request.duration").values()) == 6
            for client in clients[:20]:
                client.close()
            for client in clients[20:30]:
                client.send("bye")
                assert client.recv(timeout=30) == "bye"
            wait_until(lambda: sum(read(group, "django.websocket.connections").values()) == 20, 30, "20 left open")
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        assert re.search(r"Traceback|contained", log.read_text()) is None, log.read_text()
        assert sum(read(group, "django.websocket.connections").values()) == 0
        closed = Counter()
        for (by, _), number in read(group, "django.websocket.duration").items():
            closed[by] += number
        assert closed == {"client": 20, "server": 30}
        messages = Counter()
        for (_, direction), number in read(group, "django.websocket.messages").items():
            messages[direction] += number
        assert messages == {"receive": 160, "transmit": 160}


@pytest.mark.parametrize("kind", ["uvicorn", pytest.param("daphne", marks=pytest.mark.long)])
def test_clients_that_vanish_have_closed_their_connections(kind):
    """Of an application that only sends. Those that are open when the server stops, it closes."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        with serving(kind, Path(folder)) as (process, port, _):
            clients = [open_push(stack, port) for _ in range(4)]
            (group,) = (path for path in Path(folder).glob("django-otel-*/named-*"))
            assert read(group, "django.websocket.connections") == {("/push/",): 4}
            for client in clients[:2]:
                vanish(client)
            wait_until(lambda: read(group, "django.websocket.connections") == {("/push/",): 2}, 30, "two left open")
            assert read(group, "django.websocket.duration") == {("client", "/push/"): 2}
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        assert sum(read(group, "django.websocket.connections").values()) == 0
        assert read(group, "django.websocket.duration") == {("client", "/push/"): 2, ("server", "/push/"): 2}


def open_push(stack: contextlib.ExitStack, port: int) -> socket.socket:
    """Open a WebSocket by hand: a library would answer and close it properly."""
    client = stack.enter_context(contextlib.closing(socket.create_connection(("127.0.0.1", port), 30)))
    client.sendall(
        b"GET /push/ HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    received = b""
    while b"xxx" not in received:
        received += client.recv(65536)
    return client


def vanish(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def watch_events(port: int) -> None:
    """Read three streams of server-sent events to their end, and leave three others in the middle."""
    for query in ("", "?endless"):
        for _ in range(3):
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
                connection.request("GET", f"/events/{query}")
                answer = connection.getresponse()
                assert answer.headers["Content-Type"] == "text/event-stream"
                assert answer.readline() == b"data: 0\n"
                if not query:
                    assert answer.read().endswith(b"data: 2\n\n")


def read(group: Path, name: str) -> dict[tuple[str, ...], float]:
    found = {}
    for family in Outsider(group).collect():
        if family.name == name:
            for point in family.points:
                value = getattr(point.value, "count", point.value)
                found[tuple(str(value) for _, value in point.attributes)] = value
    return found
