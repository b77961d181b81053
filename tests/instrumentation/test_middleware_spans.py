"""A span per middleware, each inside the one before it."""

from __future__ import annotations

import asyncio

import pytest
from asgiref.sync import iscoroutinefunction
from django.core.handlers import base
from django.db import connection
from django.http import HttpResponse
from django.test import AsyncClient, Client
from django.urls import path
from django.utils.decorators import sync_and_async_middleware
from django.utils.module_loading import import_string

OURS = "django_otel.middleware.OTelMiddleware"
ON = {"MIDDLEWARE_SPANS": True}


def view(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse("ok")


async def async_view(request):
    return HttpResponse("ok")


def boom(request):
    raise RuntimeError("boom")


urlpatterns = [path("view/", view), path("async-view/", async_view), path("boom/", boom)]


def early(get_response):
    return lambda request: get_response(request)


def plain(get_response):
    def middleware(request):
        return HttpResponse("short") if "short" in request.GET else get_response(request)

    return middleware


@sync_and_async_middleware
def either(get_response):
    if iscoroutinefunction(get_response):

        async def middleware(request):
            return await get_response(request)

    else:

        def middleware(request):
            return get_response(request)

    return middleware


class Raising:
    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        response = self.get_response(request)
        if "fail" in request.GET:
            raise RuntimeError("on the way out")
        return response

    def process_view(self, request, *_):
        return HttpResponse("instead") if "instead" in request.GET else None


@pytest.fixture(autouse=True)
def is_on(settings, db):
    settings.ROOT_URLCONF = __name__
    settings.OTEL = ON
    use(settings, "plain", "either", "Raising")


def use(settings, *names):
    settings.MIDDLEWARE = [f"{__name__}.early", OURS, *(f"{__name__}.{name}" for name in names)]


def get(url, *, is_async=False):
    if is_async:
        return asyncio.run(AsyncClient(raise_request_exception=False).get(url))
    return Client(raise_request_exception=False).get(url)


def chain(otel_spans, name):
    """The names of a span and of all above it."""
    by_id = {span.context.span_id: span for span in otel_spans}
    span, found = otel_spans.one(name), []
    while span is not None:
        found.append(span.name)
        span = by_id.get(span.parent.span_id) if span.parent else None
    return found


@pytest.mark.parametrize("is_async", [False, True], ids=["wsgi", "asgi"])
@pytest.mark.parametrize("names", [("plain", "either", "Raising"), ("either",), ("Raising", "either", "plain")])
def test_they_nest_in_the_order_of_the_setting(otel_spans, settings, is_async, names):
    use(settings, *names)
    assert get("/view/", is_async=is_async).content == b"ok"
    expected = ["SELECT", *(f"middleware {name}" for name in reversed(names)), "GET /view/"]
    assert chain(otel_spans, "SELECT") == expected
    # None stands before ours.
    assert len(otel_spans) == len(expected)


def test_an_async_chain(otel_spans, settings):
    use(settings, "either")
    assert get("/async-view/", is_async=True).content == b"ok"
    assert chain(otel_spans, "middleware either") == ["middleware either", "GET /async-view/"]
    assert otel_spans.one("middleware either").attributes == {"code.function.name": f"{__name__}.either"}


def test_one_that_answers_itself_ends_the_chain(otel_spans):
    assert get("/view/?short").content == b"short"
    assert [span.name for span in otel_spans] == ["middleware plain", "GET"]


def test_its_other_methods_are_called_as_ever(otel_spans):
    assert get("/view/?instead").content == b"instead"
    assert get("/boom/").status_code == 500
    assert "SELECT" not in {span.name for span in otel_spans}


def test_one_that_raises_is_marked(otel_spans):
    assert get("/view/?fail").status_code == 500
    assert otel_spans.one("middleware Raising").attributes["error.type"] == "RuntimeError"
    assert "error.type" not in otel_spans.one("middleware plain").attributes


def test_unrecorded_requests_and_off_have_none(otel_spans, settings):
    client = Client()
    client.get("/view/")
    settings.OTEL = {"SAMPLING": {"RATIO": 0.0}, **ON}
    client.get("/view/")
    settings.OTEL = {}
    before = len(otel_spans)
    # Loaded while it was on.
    client.get("/view/")
    assert [span.name for span in otel_spans][before:] == ["SELECT", "GET /view/"]
    assert base.import_string is import_string
