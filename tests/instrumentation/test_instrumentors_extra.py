"""httpx, SQLAlchemy, FastAPI and further HTTP clients: named in INSTRUMENT, proved on real parts."""

from __future__ import annotations

import asyncio
import urllib.request

import aiohttp
import httpx
import pytest
import sqlalchemy
import urllib3
from opentelemetry.trace import SpanKind

import django_otel
from django_otel import runtime
from django_otel.base import guard
from django_otel.instrumentation import instrumentors
from tests import services
from tests.http_echo import start_echo


@pytest.fixture(scope="module")
def echo_server():
    with start_echo() as echo:
        yield echo


@pytest.fixture
def echo(echo_server):
    echo_server.requests.clear()
    return echo_server


def is_on(name: str) -> bool:
    return {state.name: state.is_on for state in instrumentors.states()}.get(name, False)


# --- httpx. ---


def test_httpx_sync_is_a_client_span_in_the_trace(otel_spans, otel_metrics, echo, settings):
    """Span, context and duration of a sync client."""
    settings.OTEL = {"INSTRUMENT": ["httpx"]}
    with django_otel.span("caller"), httpx.Client() as client:
        client.get(echo.url(path="/a?token=hunter2"))
    span, caller = otel_spans.one("GET"), otel_spans.one("caller")
    assert span.kind is SpanKind.CLIENT
    assert span.parent.span_id == caller.context.span_id
    assert span.attributes["url.full"] == echo.url(path="/a")
    assert f"-{span.context.span_id:016x}-" in echo.last["traceparent"]
    assert otel_metrics.value("http.client.request.duration", {"server.port": echo.port}).count == 1


async def test_httpx_async_is_a_client_span_in_the_trace(otel_spans, echo, settings):
    """Concurrent calls each send their own span's id."""
    settings.OTEL = {"INSTRUMENT": ["httpx"]}
    async with httpx.AsyncClient() as client:
        with django_otel.span("caller"):
            await asyncio.gather(*(client.get(echo.url(path=f"/{number}")) for number in range(5)))
    caller = otel_spans.one("caller")
    spans = {span.attributes["url.full"]: span for span in otel_spans.named("GET")}
    assert len(spans) == 5
    for _, path, headers in echo.requests:
        span = spans[echo.url(path=path)]
        assert span.parent.span_id == caller.context.span_id
        assert headers["traceparent"].split("-")[1:3] == [
            f"{caller.context.trace_id:032x}",
            f"{span.context.span_id:016x}",
        ]


def test_httpx_is_off_cleanly(otel_spans, echo, settings):
    """Also for a client that was opened while it was on."""
    settings.OTEL = {"INSTRUMENT": ["httpx"]}
    with httpx.Client() as client:
        client.get(echo.url())
        settings.OTEL = {"INSTRUMENT": []}
        otel_spans.clear()
        client.get(echo.url())
    assert not hasattr(httpx.HTTPTransport.handle_request, "__wrapped__")
    assert not hasattr(httpx.AsyncHTTPTransport.handle_async_request, "__wrapped__")
    assert list(otel_spans) == []
    assert "traceparent" not in echo.last


async def test_httpx_hooks_that_raise_do_not_break_the_call(echo, settings, caplog):
    """Sync and async."""

    def broken(span, request):
        raise RuntimeError("hook")

    async def broken_async(span, request):
        raise RuntimeError("hook")

    guard.reset()
    settings.OTEL = {"INSTRUMENT": {"httpx": {"request_hook": broken, "async_request_hook": broken_async}}}
    with httpx.Client() as client:
        assert client.get(echo.url()).status_code == 200
    async with httpx.AsyncClient() as async_client:
        assert (await async_client.get(echo.url())).status_code == 200
    assert len([record for record in caplog.records if "request_hook failed" in record.getMessage()]) == 2


# --- SQLAlchemy. ---


def test_sqlalchemy_queries_are_spans_without_literals(otel_spans, settings):
    """An engine made while the instrumentor is on."""
    settings.OTEL = {"INSTRUMENT": ["sqlalchemy"]}
    engine = sqlalchemy.create_engine("sqlite://")
    try:
        with django_otel.span("caller"), engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT 'alice@example.org', :n"), {"n": 1})
            connection.execute(sqlalchemy.text("CREATE TABLE people (ssn TEXT)"))
    finally:
        engine.dispose()
    queries = [span for span in otel_spans if span.name not in ("caller", "connect")]
    assert [span.name for span in queries] == ["SELECT", "CREATE people"]
    assert {span.parent.span_id for span in queries} == {otel_spans.one("caller").context.span_id}
    assert queries[0].attributes["db.query.text"] == "SELECT ?, ?"
    assert queries[0].attributes["db.system.name"] == "sqlite"


def test_sqlalchemy_is_off_cleanly(otel_spans, settings):
    """An engine made while it was on makes no span any more; one made later neither."""
    plain = sqlalchemy.create_engine
    settings.OTEL = {"INSTRUMENT": ["sqlalchemy"]}
    assert sqlalchemy.create_engine is not plain
    engines = [sqlalchemy.create_engine("sqlite://")]
    settings.OTEL = {"INSTRUMENT": []}
    engines.append(sqlalchemy.create_engine("sqlite://"))
    for engine in engines:
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT 1"))
        engine.dispose()
    assert list(otel_spans) == []
    assert sqlalchemy.create_engine is plain


# --- FastAPI beside Django in one ASGI application, under uvicorn. ---


def serve_beside(receiver, application, instrument):
    """uvicorn with an application of tests.asgi_beside, exporting to `receiver`."""
    otel = {
        "SERVICE_NAME": "beside",
        "INSTRUMENT": instrument,
        "TRACES": {"ENDPOINT": receiver.url, "BATCH": {"DELAY_S": 0.1}},
        "METRICS_VIEW": {"ALLOW": "all"},
    }
    folder_free = services.server_env(otel)
    port = services.free_port()
    command = services.server_command("uvicorn", port)
    command[command.index("tests.asgi:application")] = f"tests.asgi_beside:{application}"
    return port, services.running(command, folder_free)


def spans_by_id(receiver):
    return {span.span_id: span for _, span in receiver.spans()}


def test_fastapi_beside_django_is_one_trace(receiver):
    """Client -> FastAPI route -> httpx -> Django view on the same server: four spans of one trace."""
    port, process = serve_beside(receiver, "application", ["fastapi", "httpx"])
    with process:
        services.wait_until(lambda: services.is_listening(port), 60, "uvicorn")
        traceparent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
        answer = httpx.get(f"http://127.0.0.1:{port}/api/orders/7", headers={"traceparent": traceparent}, timeout=60)
        assert answer.json() == {"pk": 7, "django_trace_id": "a" * 32}

        def find():
            names = {span.name for _, span in receiver.spans()}
            return {"GET /api/orders/{pk}", "GET", "GET /json/"} <= names

        services.wait_until(find, 60, "the spans")
        by_id = spans_by_id(receiver)
        by_name = {span.name: span for span in by_id.values()}
        django, client, api = by_name["GET /json/"], by_name["GET"], by_name["GET /api/orders/{pk}"]
        assert {span.trace_id.hex() for span in (django, client, api)} == {"a" * 32}
        assert api.parent_span_id.hex() == "b" * 16
        assert client.parent_span_id == api.span_id
        assert django.parent_span_id == client.span_id
        assert (api.kind, client.kind, django.kind) == (2, 3, 2)
        assert services.attributes_of(api)["http.route"] == "/api/orders/{pk}"
        page = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text
        routes = [line for line in page.splitlines() if line.startswith("http_server_request_duration_seconds_count")]
        assert len([line for line in routes if 'http_route="/json/"' in line]) == 1
        assert len([line for line in routes if 'http_route="/api/orders/{pk}"' in line]) == 1


def test_django_mounted_in_fastapi_has_one_server_span(receiver):
    """FastAPI's span is there already, so ours joins it instead of making a second."""
    port, process = serve_beside(receiver, "mounting", ["fastapi"])
    with process:
        services.wait_until(lambda: services.is_listening(port), 60, "uvicorn")
        answer = httpx.get(f"http://127.0.0.1:{port}/orders/3/", timeout=60)
        assert answer.text == "order 3"
        services.wait_until(lambda: any(span.kind == 2 for _, span in receiver.spans()), 60, "the server span")
        services.wait_until(lambda: any(span.name == "order.load" for _, span in receiver.spans()), 60, "our span")
        spans = [span for _, span in receiver.spans()]
        servers = [span for span in spans if span.kind == 2]
        assert len(servers) == 1
        inner = next(span for span in spans if span.name == "order.load")
        assert inner.trace_id == servers[0].trace_id


@pytest.fixture
def sdk_metrics_at_zero_afterwards():
    """What an instrumentor counts in this process would stand on the page of later tests."""
    yield
    counted = runtime.current().metrics.sdk_metrics
    if counted is not None:
        counted.after_fork()


async def test_fastapi_is_off_cleanly(otel_spans, settings, sdk_metrics_at_zero_afterwards):
    """An application made while it was on makes no span any more, but for those that newer FastAPI makes itself."""
    import fastapi

    plain = fastapi.FastAPI
    settings.OTEL = {"INSTRUMENT": ["fastapi"]}
    assert fastapi.FastAPI is not plain
    application = fastapi.FastAPI()

    @application.get("/here")
    def here():
        return "ok"

    transport = httpx.ASGITransport(application)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        assert (await client.get("/here")).json() == "ok"
        assert otel_spans.one("GET /here").kind is SpanKind.SERVER
        settings.OTEL = {"INSTRUMENT": []}
        otel_spans.clear()
        assert (await client.get("/here")).json() == "ok"
    assert fastapi.FastAPI is plain
    assert [span.name for span in otel_spans if span.instrumentation_scope.name != "fastapi"] == []


# --- OUTBOUND_HOSTS for every client that it is promised for. ---


def call_httpx(url):
    with httpx.Client(follow_redirects=True) as client:
        client.get(url)


def call_httpx_async(url):
    async def call():
        async with httpx.AsyncClient(follow_redirects=True) as client:
            await client.get(url)

    asyncio.run(call())


def call_urllib3(url):
    with urllib3.PoolManager() as pool:
        pool.request("GET", url)


def call_urllib(url):
    urllib.request.urlopen(url, timeout=5).close()


def call_aiohttp(url):
    async def call():
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            await response.read()

    asyncio.run(call())


CLIENTS = [
    ("httpx", call_httpx),
    ("httpx", call_httpx_async),
    ("urllib3", call_urllib3),
    ("urllib", call_urllib),
    ("aiohttp-client", call_aiohttp),
]


@pytest.mark.parametrize(("name", "call"), CLIENTS, ids=[call.__name__ for _, call in CLIENTS])
def test_outbound_hosts_hold_for_every_client(name, call, otel_spans, echo, settings):
    """Listed hosts get headers, others none, and a redirect to another host takes none along."""
    settings.OTEL = {"INSTRUMENT": [name], "PROPAGATION": {"OUTBOUND_HOSTS": ["localhost"]}}
    assert is_on(name)
    with django_otel.span("caller"):
        call(echo.url("localhost"))
        call(echo.url("127.0.0.1"))
        call(echo.url("localhost", redirect_to=echo.url("127.0.0.1")))
    assert echo.traced_hosts() == [
        ("localhost", True),
        ("127.0.0.1", False),
        ("localhost", True),
        ("127.0.0.1", False),
    ]
    assert len(otel_spans.named("GET")) >= 3
    ids = {f"{span.context.span_id:016x}" for span in otel_spans.named("GET")}
    sent = [headers["traceparent"].split("-")[2] for _, _, headers in echo.requests if "traceparent" in headers]
    assert set(sent) <= ids


@pytest.mark.parametrize(("name", "call"), CLIENTS, ids=[call.__name__ for _, call in CLIENTS])
def test_every_client_sends_context_everywhere_by_default(name, call, echo, settings):
    """OUTBOUND_HOSTS = None is every host."""
    settings.OTEL = {"INSTRUMENT": [name]}
    call(echo.url("127.0.0.1"))
    assert echo.traced_hosts() == [("127.0.0.1", True)]
    settings.OTEL = {"INSTRUMENT": []}
    call(echo.url("127.0.0.1"))
    assert echo.traced_hosts()[-1] == ("127.0.0.1", False)
