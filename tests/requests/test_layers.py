"""Where the time of a request goes: every layer has its time once, and together they are the whole."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import re
import threading
import time
import urllib.request
from http.client import HTTPConnection
from types import SimpleNamespace
from unittest import mock

import aiohttp
import httpx
import pytest
import requests
import urllib3
from asgiref.sync import sync_to_async
from django.core.cache import cache
from django.core.exceptions import PermissionDenied
from django.core.handlers.base import BaseHandler
from django.db import connection, connections, transaction
from django.http import HttpResponse, StreamingHttpResponse
from django.template import Context, Template, engines
from django.template.base import Template as BaseTemplate
from django.template.response import SimpleTemplateResponse, TemplateResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import clear_url_caches, path
from hypothesis import given
from hypothesis import strategies as st

from django_otel.requests import layers
from tests.http_echo import Reader, start_echo

LAYER = "django.request.layer.duration"
#: How long each step sleeps, at least.
NAP_S = 0.02


def query(_=None):
    connection.ensure_connection()
    connection.connection.create_function("nap", 1, time.sleep)
    with connection.cursor() as cursor:
        cursor.execute("SELECT nap(%s)", [NAP_S])
    return "x"


def nap(_=None):
    time.sleep(NAP_S)
    return "x"


def render(text="{{ nap }}", **more):
    return Template(text).render(Context({"nap": nap, "query": query, **more}))


class SlowValue:
    def __reduce__(self):
        nap()
        return str, ("slow",)


def everything(request):
    nap()
    query()
    render("{{ nap }}{{ query }}")
    cache.set("slow", SlowValue())
    return HttpResponse("ok")


async def everything_async(request):
    await asyncio.sleep(NAP_S)
    await sync_to_async(query)()
    await sync_to_async(render)("{{ nap }}{{ query }}")
    await cache.aset("slow", SlowValue())
    return HttpResponse("ok")


def nested(request):
    """A template that includes others, inside them a query, a cached part with a query, and a render in a render."""
    inner = Template("{{ nap }}{{ query }}")
    text = "{% load cache %}{% include inner %}{% cache 9 part %}{% include inner %}{% endcache %}{{ again }}"
    cache.clear()
    return HttpResponse(render(text, inner=inner, again=lambda: render("{{ query }}")))


def later(request):
    return TemplateResponse(
        request, engines["django"].from_string("{{ nap }}{{ query }}"), {"nap": nap, "query": query}
    )


class SlowResponse(SimpleTemplateResponse):
    """As a response of Django REST framework: rendered after the view, without a template."""

    @property
    def rendered_content(self):
        nap()
        return "x"


def rendered_later(request):
    return SlowResponse(None)


def atomic(request):
    return HttpResponse(str(connection.in_atomic_block))


@transaction.non_atomic_requests
def not_atomic(request):
    return atomic(request)


async def atomic_async(request):
    return HttpResponse("never")


async def overlapping(request):
    """Queries and calls at the same time."""

    async def answer(_):
        await asyncio.sleep(NAP_S)
        return httpx.Response(200)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        await asyncio.gather(
            *(sync_to_async(query, thread_sensitive=False)() for _ in range(3)),
            *(client.get("http://shop.example/") for _ in range(5)),
            asyncio.sleep(NAP_S),
        )
    return HttpResponse("ok")


def threads(request):
    found = [threading.Thread(target=contextvars.copy_context().run, args=(query,)) for _ in range(4)]
    for thread in found:
        thread.start()
    for thread in found:
        thread.join()
    return HttpResponse("ok")


def stays_open(request):
    """A thread that goes on after the request, in the middle of a query."""
    begun, go_on = threading.Event(), request.environ["test.go_on"]

    def work():
        connection.ensure_connection()
        connection.connection.create_function("wait", 0, lambda: (begun.set(), go_on.wait(30))[1])
        with connection.cursor() as cursor:
            cursor.execute("SELECT wait()")
        connection.close()

    request.environ["test.thread"] = thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
    thread.start()
    assert begun.wait(30)
    nap()
    return HttpResponse("ok")


def chunks():
    nap()
    yield b"a"
    query()
    yield b"b"
    render()


async def async_chunks():
    await asyncio.sleep(NAP_S)
    yield b"a"
    await sync_to_async(query)()
    yield b"b"


def stream(request):
    return StreamingHttpResponse(chunks())


async def async_stream(request):
    return StreamingHttpResponse(async_chunks())


def broken_stream(request):
    def failing():
        yield from chunks()
        raise RuntimeError("half way")

    return StreamingHttpResponse(failing())


def cut_stream(request):
    def cut():
        try:
            yield b"a"
        finally:
            query()

    return StreamingHttpResponse(cut())


def raises(request):
    query()
    nap()
    raise RuntimeError("boom")


class SlowlyToldError(Exception):
    """Notes when it is asked for its text."""

    asked_ns: list[int] = []

    def __str__(self):
        time.sleep(NAP_S)
        self.asked_ns.append(time.time_ns())
        return "slow"


def raises_slowly_told(request):
    raise SlowlyToldError


def forbidden(request):
    nap()
    raise PermissionDenied


def exits(request):
    nap()
    raise SystemExit


def around(request):
    """A request inside a view, of which every layer is the outer one's as well."""
    nap()
    Client().get("/everything/")
    nap()
    return HttpResponse("ok")


class SlowMiddleware:
    """Takes its time at every place that a middleware has."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        nap()
        if "short" in request.GET:
            query()
            return HttpResponse("from the middleware", status=403)
        response = self.get_response(request)
        query()
        return response

    def process_view(self, request, *_):
        nap()
        return HttpResponse("instead of the view") if "instead" in request.GET else None

    def process_exception(self, request, error):
        nap()
        return HttpResponse("saved") if "save" in request.GET else None

    def process_template_response(self, request, response):
        nap()
        return response


urlpatterns = [
    path(f"{view.__name__.replace('_', '-')}/", view)
    for view in (
        everything, everything_async, nested, later, rendered_later, overlapping, threads, stays_open, stream,
        async_stream, broken_stream, cut_stream, raises, raises_slowly_told, forbidden, exits, around,
        atomic, not_atomic, atomic_async,
    )
]  # fmt: skip
#: What each path takes at least, in naps, beside the three of the middleware and its query.
LEAST = {
    "/everything/": {"view": 1, "database": 2, "template": 1, "cache": 1},
    "/everything-async/": {"view": 1, "database": 2, "template": 1, "cache": 1},
    "/nested/": {"database": 3, "template": 2},
    "/later/": {"database": 1, "template": 1, "middleware": 1},
    "/rendered-later/": {"view": 1, "middleware": 1},
    "/overlapping/": {"database": 1},
    "/threads/": {"database": 1},
    "/stream/": {"view": 1, "database": 1, "template": 1},
    "/async-stream/": {"view": 1, "database": 1},
    "/raises/": {"view": 1, "database": 1, "middleware": 1},
    "/raises/?save": {"view": 1, "database": 1, "middleware": 1},
    "/forbidden/": {"view": 1, "middleware": 1},
    "/everything/?short": {"view": 0},
    "/everything/?instead": {"view": 0},
    "/nothing/": {"view": 0, "middleware": -1},
    "/around/": {"view": 3, "database": 2, "template": 1, "cache": 1},
}


@pytest.fixture(autouse=True)
def own_urls(db):
    with override_settings(
        ROOT_URLCONF=__name__,
        MIDDLEWARE=["django_otel.middleware.OTelMiddleware", f"{__name__}.SlowMiddleware"],
    ):
        yield
    cache.clear()


async def get_async(url):
    response = await AsyncClient(raise_request_exception=False).get(url)
    if response.streaming:
        if response.is_async:
            async for _ in response.streaming_content:
                pass
        else:
            list(response.streaming_content)
    response.close()


def get(url, **more):
    response = Client(raise_request_exception=False).get(url, **more)
    if response.streaming:
        list(response)
    response.close()
    return response


def read(otel_metrics):
    """The time of each layer and of all requests, by the metrics."""
    # Read once for all of them.
    kept = copy.copy(otel_metrics)
    kept.keep()
    found = {name: kept.value(LAYER, {"django.layer": name}).sum for name in (*layers.NAMES[1:], "view", "middleware")}
    return found, kept.value("http.server.request.duration").sum


def check(found, whole_s, least):
    assert sum(found.values()) == pytest.approx(whole_s, rel=1e-6)
    for name, naps in least.items():
        assert found[name] >= naps * NAP_S
    if least.get("view") == 0:
        assert found["view"] == 0


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("url", "least", "is_async"),
    [
        (url, least, is_async)
        for url, least in LEAST.items()
        for is_async in (False, True)
        # Django warns of a stream of the other kind.
        if is_async is ("async" in url) or "stream" not in url
    ],
)
def test_the_layers_add_up_to_the_whole(otel_metrics, otel_spans, url, least, is_async):
    if is_async:
        asyncio.run(get_async(url))
    else:
        get(url)
    found, whole_s = read(otel_metrics)
    is_cut_short = "short" in url
    extra = {
        "middleware": 1 if is_cut_short else least.get("middleware", 0) + 2,
        "database": least.get("database", 0) + 1,
    }
    if url == "/around/":
        # The request inside is not measured: what its middlewares do is the view's.
        extra["database"] += 1
        least = {**least, "view": 5}
    check(found, whole_s, {**least, **extra})
    # The span says the same of this request.
    attributes = [span for span in otel_spans if span.kind.name == "SERVER"][0].attributes
    noted = {name: attributes.get(f"django.layer.{name}.duration", 0.0) for name in found}
    assert noted == pytest.approx(found)


def test_nothing_is_counted_twice_where_layers_overlap(otel_metrics):
    """Eleven naps at the same time and in part one after the other: the sum is the whole, not what each would take."""
    asyncio.run(get_async("/overlapping/"))
    found, whole_s = read(otel_metrics)
    assert sum(found.values()) == pytest.approx(whole_s, rel=1e-6)
    assert found["http"] + found["database"] < whole_s


def test_a_layer_that_is_still_open_counts_up_to_the_end(otel_metrics):
    go_on = threading.Event()
    environ = {"test.go_on": go_on}
    client = Client()
    response = client.get("/stays-open/", **environ)
    found, whole_s = read(otel_metrics)
    go_on.set()
    response.wsgi_request.environ["test.thread"].join()
    check(found, whole_s, {"database": 1})
    # What comes after the request is no one's.
    assert read(otel_metrics) == (found, whole_s)


@pytest.mark.parametrize("url", ["/exits/", "/broken-stream/"])
def test_what_ends_early_adds_up(otel_metrics, url):
    with pytest.raises((SystemExit, RuntimeError)):
        get(url)
    check(*read(otel_metrics), {"view": 1, "middleware": 1})


def test_the_time_that_an_exceptions_text_takes_is_none_of_the_request(otel_spans):
    """Its span ends where its layers end."""
    get("/raises-slowly-told/")
    (server,) = (span for span in otel_spans if span.kind.name == "SERVER")
    (event,) = (event for event in server.events if event.name == "exception")
    assert server.start_time < event.timestamp == server.end_time < SlowlyToldError.asked_ns[-1]


def test_the_end_of_a_stream_that_is_closed_early_is_part_of_the_request(otel_metrics, otel_spans):
    """A client that goes away in the middle: what the view's generator does then, with its span."""
    response = Client().get("/cut-stream/")
    assert next(iter(response.streaming_content)) == b"a"
    response.close()
    check(*read(otel_metrics), {"database": 2})
    server, *queries = [*(span for span in otel_spans if span.kind.name == "SERVER"), *otel_spans.named("SELECT")]
    assert [span.parent.span_id for span in queries] == [server.context.span_id] * 2
    # What comes later is no one's.
    assert otel_metrics.value("django.request.queries").sum == 2


def test_each_route_has_its_own_layers_and_only_those_with_time(otel_metrics):
    get("/forbidden/")
    get("/rendered-later/")
    for route in ("/forbidden/", "/rendered-later/"):
        of_route = otel_metrics.value(LAYER, {"http.route": route, "django.layer": "view"})
        assert (of_route.count, of_route.sum >= NAP_S) == (1, True)
        assert otel_metrics.value(LAYER, {"http.route": route, "django.layer": "template"}).count == 0


def with_http_client(url):
    connected = HTTPConnection(url.split("/")[2])
    connected.request("GET", "/")
    read_all = connected.getresponse().read()
    connected.close()
    return read_all


def streamed_by_httpx(url):
    with httpx.stream("GET", url) as response:
        return b"".join(response.iter_bytes())


async def streamed_by_async_httpx(url):
    async with httpx.AsyncClient() as client, client.stream("GET", url) as response:
        return b"".join([part async for part in response.aiter_bytes()])


async def with_aiohttp(url):
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return await response.read()


async def streamed_by_aiohttp(url):
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return b"".join([part async for part in response.content.iter_any()])


def in_parts(url):
    into = bytearray(2)
    response = urllib.request.urlopen(url)
    return bytes(into[: response.readinto(into)])


OUTBOUND = {
    "urllib": lambda url: urllib.request.urlopen(url).read(),
    "urllib, by lines": lambda url: b"".join(urllib.request.urlopen(url)),
    "urllib, read1": lambda url: (response := urllib.request.urlopen(url)).read1(1) + response.read1(1),
    "urllib, readinto": in_parts,
    "http.client": with_http_client,
    "urllib3": lambda url: urllib3.PoolManager().request("GET", url).data,
    "requests": lambda url: requests.get(url).content,
    "requests, streamed": lambda url: b"".join(requests.get(url, stream=True).iter_content(4)),
    "httpx": lambda url: httpx.get(url).content,
    "httpx, streamed": streamed_by_httpx,
    "httpx, asynchronously": lambda url: asyncio.run(streamed_by_async_httpx(url)),
    "aiohttp": lambda url: asyncio.run(with_aiohttp(url)),
    "aiohttp, streamed": lambda url: asyncio.run(streamed_by_aiohttp(url)),
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", OUTBOUND)
def test_outbound_calls_are_the_layer_http(otel_metrics, monkeypatch, name):
    """With their bodies, which come late."""
    with start_echo() as echo, monkeypatch.context() as patch:
        echo.part_delay_s = NAP_S
        Reader().watch(patch, echo)
        urlpatterns.append(path("call/", lambda request: HttpResponse(OUTBOUND[name](echo.url()))))
        clear_url_caches()
        try:
            assert get("/call/").content == b"ok"
        finally:
            urlpatterns.pop()
            clear_url_caches()
    check(*read(otel_metrics), {"http": 2})


def test_jinja2_is_a_template_too(otel_metrics, settings):
    settings.TEMPLATES = [{"BACKEND": "django.template.backends.jinja2.Jinja2", "NAME": "jinja2"}]
    urlpatterns.append(
        path("jinja2/", lambda request: HttpResponse(engines["jinja2"].from_string("{{ nap() }}").render({"nap": nap})))
    )
    try:
        get("/jinja2/")
    finally:
        urlpatterns.pop()
    check(*read(otel_metrics), {"template": 1})


def test_the_header_shows_the_layers(settings):
    settings.OTEL = {"REQUEST": {"SERVER_TIMING": True, "TIME_BUDGET": False}}
    header = Client().get("/everything/")["Server-Timing"]
    taken = {name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.]+)", header)}
    assert list(taken) == ["total", "db", "cache", "template", "http", "middleware", "view"]
    assert sum(taken.values()) == pytest.approx(2 * taken["total"], abs=0.05)
    assert min(taken["db"], taken["cache"], taken["template"], taken["view"]) >= NAP_S * 1000


@pytest.mark.django_db(transaction=True)
def test_requests_are_atomic_where_the_project_wants_them_to_be(monkeypatch):
    """Whether they are is asked at each view, and it may change."""
    for is_wanted in (False, True, False):
        monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", is_wanted)
        assert get("/atomic/").content == str(is_wanted).encode()
        assert get("/not-atomic/").content == b"False"
        assert get("/atomic-async/").status_code == (500 if is_wanted else 200)


def test_off_it_leaves_everything_as_it_was(settings, otel_metrics):
    patched = [
        (BaseHandler, "make_view_atomic"), (BaseHandler, "check_response"),
        (BaseHandler, "process_exception_by_middleware"), (SimpleTemplateResponse, "render"),
        (BaseTemplate, "render"), (HTTPConnection, "getresponse"), (requests.adapters.HTTPAdapter, "send"),
        (httpx.Client, "send"), (aiohttp.ClientSession, "_request"),
    ]  # fmt: skip
    on = [vars(owner)[name] for owner, name in patched]
    settings.OTEL = {"REQUEST": {"TIME_BUDGET": False}}
    off = [vars(owner)[name] for owner, name in patched]
    assert all(was is not now for was, now in zip(on, off, strict=True))
    assert not [
        name for function, (_, name) in zip(off, patched, strict=True) if "django_otel" in function.__code__.co_filename
    ]
    get("/everything/")
    assert otel_metrics.value(LAYER).count == 0
    settings.OTEL = {}
    get("/everything/")
    assert otel_metrics.value(LAYER, {"django.layer": "view"}).count == 1


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(1, 20)), max_size=30), st.integers(0, 60))
def test_any_overlap_gives_each_moment_to_the_innermost_layer(spans, end):
    """Against counting every moment by itself."""
    intervals = [(layer, begin * 7, begin * 7 + length) for layer, begin, length in spans]
    events = sorted(
        [(begin, 1, layer) for layer, begin, _ in intervals] + [(stop, 0, layer) for layer, _, stop in intervals]
    )
    record = SimpleNamespace(layers=None, keep=lambda key, value: value)
    found = layers.enter(record, layers.TEMPLATE, 0.0)
    with mock.patch.object(layers, "perf_counter", lambda: 0.0):
        layers.leave(found, layers.TEMPLATE)
    for at, is_begin, layer in events:
        if at < end and is_begin:
            layers.enter(record, layer, float(at))
        elif at < end:
            with mock.patch.object(layers, "perf_counter", lambda at=at: float(at)):
                layers.leave(found, layer)
    total = layers.settle_layers(found, float(end))
    expected = [0.0] * 5
    for moment in range(end):
        open_layers = [layer for layer, begin, stop in intervals if begin <= moment < stop]
        if open_layers:
            expected[max(open_layers)] += 1.0
    assert found.seconds[1:] == expected[1:]
    assert total == sum(expected)
