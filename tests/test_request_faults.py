"""Requests, routes, lazy values and log fields: inputs from the field that gave wrong names, numbers or errors."""

import io
import logging
import os
import subprocess
import sys
import textwrap

import pytest
from django.core.cache import cache
from django.http import HttpResponse
from django.template import engines
from django.test import AsyncClient, Client, override_settings
from django.urls import include, path, re_path
from django.utils.functional import SimpleLazyObject, lazy
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import cache_page
from opentelemetry import trace
from opentelemetry.trace import SpanKind

import django_otel
from django_otel import api, logs, runtime, views
from django_otel.base import guard
from django_otel.requests.observation import name_view
from django_otel.routes import find_own_pages, route_template


def plain(request, *_, **__):
    return HttpResponse("ok")


@cache_page(60)
def cached(request):
    template = engines["django"].from_string("{% load otel %}{% otel_traceparent_meta %}{{ body }}")
    return HttpResponse(template.render({"body": "page"}, request))


@cache_page(60)
def cached_without_request(request):
    return HttpResponse(engines["django"].from_string("{% load otel %}{% otel_traceparent_meta %}").render())


urlpatterns = [
    path("cached/", cached),
    path("cached-alone/", cached_without_request),
    re_path(r"^two/(\d)/to/(\d)/$", plain),
    path("metrics", plain),
    path("ops/", include("django_otel.urls")),
    re_path(r"^more/ops\.d/", include("django_otel.urls", namespace="more")),
    path("<str:tenant>/", include("django_otel.urls", namespace="tenant")),
]


@pytest.fixture
def own_urls():
    cache.clear()
    with override_settings(ROOT_URLCONF=__name__):
        yield
    cache.clear()


# --- Routes. ---


@pytest.mark.parametrize(
    ("pattern", "route"),
    [
        (r"^two/(\d)/to/(\d)/$", "/two/<var>/to/<var>/"),
        (r"^one/(\d)/two/(\w+)/three/([a-z]{2,3})/$", "/one/<var>/two/<var>/three/<var>/"),
        (r"^a/((b)(c))/d/(e)$", "/a/<var>/d/<var>"),
        (r"^(?P<a>(x|y)(\(|\)))/b/(?P<c>\w+)$", "/<a>/b/<c>"),
        (r"^(?P<a>\w+)/b/((x|y)\w+)/$", "/<a>/b/<var>/"),
        (r"^things\.(?P<format>[a-z0-9]+)/?$", "/things.<format>/"),
        (r"^things/(?P<pk>[^/.]+)\.(?P<format>[a-z0-9]+)/?$", "/things/<pk>.<format>/"),
        (r"^articles/(?P<year>[0-9]{4})/(?:page-(?P<page>[0-9]+)/)?$", "/articles/<year>/"),
        (r"^page-(?:(\d+))/$", "/page-<var>/"),
        (r"^(?:users)/(\d+)/$", "/users/<var>/"),
        (r"^x/(\d+)?$", "/x/<var>"),
        (r"^set/(?P<x>[)(]+)/([)])/$", "/set/<x>/<var>/"),
        (r"^(?i:docs)/(?P<rest>.*)\Z", "/docs/<rest>"),
        (r"^(?!api/)(?P<rest>.*)$", "/<rest>"),
        (r"^a\-b/\$c/$", "/a-b/$c/"),
        (r"^robots.txt$", "/robots.txt"),
        (r"api/^v1/(?P<pk>\d+)/$", "/api/v1/<pk>/"),
        ("orders/<int:pk>/", "/orders/<int:pk>/"),
        ("things<drf_format_suffix:format>", "/things<drf_format_suffix:format>"),
        ("odd(/", "/odd(/"),
        ("", "/"),
    ],
)
def test_a_regular_expression_becomes_a_template(pattern, route):
    assert route_template(pattern) == route


def test_two_unnamed_groups_are_a_label(own_urls, otel_spans):
    Client().get("/two/1/to/2/")
    assert [span.name for span in otel_spans] == ["GET /two/<var>/to/<var>/"]


def test_our_pages_are_known_from_the_urlconf(own_urls):
    found = find_own_pages()
    assert set(found) == {
        f"{prefix}/{name}" for prefix in ("/ops", "/more/ops.d") for name in ("metrics", "livez", "readyz")
    } | {path for path in found if path.endswith("/startupz")}
    assert found["/ops/livez"] is views.livez


# --- Names of views. ---


class Match:
    _func_path = "shop.api.Things"
    view_name = "things"

    def __init__(self, func):
        self.func = func


@pytest.mark.parametrize(("method", "action"), [("GET", "list"), ("HEAD", "list"), ("POST", "create")])
def test_a_viewset_is_named_with_its_action(method, action):
    def view(request):
        return None

    view.actions = {"get": "list", "post": "create"}
    assert name_view(Match(view), method) == f"shop.api.Things.{action}"
    assert name_view(Match(view), "OPTIONS") == "shop.api.Things"


def test_an_operation_of_ninja_is_named_as_its_function():
    class Operation:
        def __init__(self, methods, view_func):
            self.methods, self.view_func = methods, view_func

    def list_things():
        return []

    class PathView:
        def __init__(self):
            self.operations = [Operation(["GET"], list_things), Operation(["POST"], plain)]

        def _sync_view(self, request):
            return None

    view = PathView()._sync_view
    assert name_view(Match(view), "GET").endswith("list_things")
    assert name_view(Match(view), "POST") == f"{__name__}.plain"
    assert name_view(Match(view), "DELETE") == "shop.api.Things"


# --- META. ---


async def test_the_port_of_the_server_is_the_same_for_both_test_clients(otel_spans):
    await AsyncClient().get("/hello/")
    Client().get("/hello/")
    Client().get("/hello/", SERVER_PORT="8000")
    Client().get("/hello/", secure=True)
    assert [span.attributes.get("server.port") for span in otel_spans] == [None, None, 8000, None]
    assert {span.attributes["server.address"] for span in otel_spans} == {"testserver"}


@pytest.mark.parametrize(
    "meta",
    [
        {"CONTENT_LENGTH": 5},
        {"CONTENT_LENGTH": -1},
        {"CONTENT_LENGTH": None},
        {"HTTP_USER_AGENT": 7},
        {"HTTP_HOST": SimpleLazyObject(lambda: "testserver")},
        {"SERVER_PORT": 80},
    ],
)
def test_values_that_a_server_did_not_send_as_text_do_no_harm(otel_spans, meta):
    guard.reset()
    assert Client().get("/hello/", **meta).status_code == 200
    assert [(span.name, span.attributes["http.response.status_code"]) for span in otel_spans] == [("GET /hello/", 200)]
    assert guard.fault_counts() == {}


# --- Pages with ids in them, and Django's cache. ---


@pytest.mark.parametrize("url", ["/cached/", "/cached-alone/"])
def test_a_page_with_its_traceparent_is_not_cached(own_urls, otel_spans, url):
    first, second = Client().get(url), Client().get(url)
    ids = [format(span.context.trace_id, "032x") for span in otel_spans]
    assert len(set(ids)) == 2
    assert [one in page.content.decode() for one, page in zip(ids, (first, second), strict=True)] == [True, True]
    assert "no-store" in second["Cache-Control"]


# --- Lazy values. ---


LAZY_TEXTS = [
    SimpleLazyObject(lambda: "shoes"),
    SimpleLazyObject(lambda: SimpleLazyObject(lambda: "shoes")),
    gettext_lazy("shoes"),
    lazy(lambda: "shoes", str)(),
]


@pytest.mark.parametrize("value", LAZY_TEXTS, ids=["lazy object", "nested", "translation", "lazy"])
def test_a_lazy_text_is_its_text(otel_spans, value):
    guard.reset()
    with django_otel.span(value, category=value, all=[value]):
        django_otel.set_attributes(later=value)
        django_otel.event("seen", category=value)
    tracer = trace.get_tracer("shop")
    with tracer.start_as_current_span(value, attributes={"category": value}) as plain_span:
        plain_span.set_attribute("later", value)
        plain_span.set_attributes({"again": value})
    with tracer.start_as_current_span("x") as renamed:
        renamed.update_name(value)
    assert [span.name for span in otel_spans] == ["shoes"] * 3
    assert dict(otel_spans[0].attributes) == {"category": "shoes", "all": ("shoes",), "later": "shoes"}
    assert dict(otel_spans[0].events[0].attributes) == {"category": "shoes"}
    if type(value) is SimpleLazyObject:
        assert dict(otel_spans[1].attributes) == {"category": "shoes", "later": "shoes", "again": "shoes"}
    assert guard.fault_counts() == {}


@pytest.mark.parametrize("value", [3, 2.5, True, None, ["a", "b"]])
def test_a_lazy_value_is_what_it_stands_for(value):
    assert api.clean_value(SimpleLazyObject(lambda: value)) == value


# --- Logs. ---


def test_exc_info_without_an_exception_adds_nothing(otel_logs):
    logger = logging.getLogger("shop.checkout")
    stream = logging.StreamHandler(io.StringIO())
    logger.addHandler(stream)
    try:
        logger.error("failed", exc_info=True)
    finally:
        logger.removeHandler(stream)
    assert "NoneType" in stream.stream.getvalue(), "the application's own output stays"
    record = otel_logs[-1].log_record
    assert record.body == "failed"
    assert not [key for key in record.attributes if key.startswith("exception.")]


def test_a_formatted_record_without_an_exception_adds_nothing():
    handler = logs.OTelHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    record = logging.makeLogRecord(
        {
            "name": "shop",
            "levelname": "ERROR",
            "msg": "failed",
            "exc_info": (None, None, None),
            "stack_info": "Stack:\n  x",
        }
    )
    assert handler._body(record) == "ERROR failed\nStack:\n  x"


FORMAT = "%(otelTraceID)s %(otelSpanID)s %(otelTraceSampled)s %(message)s"


@pytest.mark.parametrize(
    ("otel", "environment"),
    [
        ({"ENABLED": False}, {}),
        ({}, {"OTEL_SDK_DISABLED": "true"}),
        ({"SERVCE_NAME": "shop"}, {}),
        ({"SAMPLING": {"RATIO": 5}}, {}),
        ({}, {}),
    ],
)
def test_a_log_format_may_name_the_trace_whatever_the_settings_say(tmp_path, otel, environment):
    (tmp_path / "early_app.py").write_text("import logging\nlogging.getLogger('early').warning('early')\n")
    script = textwrap.dedent(
        f"""
        import logging
        import django
        from django.conf import settings
        settings.configure(
            OTEL={otel!r}, INSTALLED_APPS=["django_otel", "early_app"], DATABASES={{}},
            LOGGING={{"version": 1, "formatters": {{"f": {{"format": {FORMAT!r}}}}},
                      "handlers": {{"h": {{"class": "logging.StreamHandler", "formatter": "f"}}}},
                      "root": {{"handlers": ["h"], "level": "INFO"}}}},
        )
        django.setup()
        logging.getLogger("shop").warning("hello")
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Logging error" not in done.stderr
    lines = done.stderr.splitlines()
    assert "0 0 False hello" in lines
    assert "0 0 False early" in lines


# --- Tracers. ---


def test_a_tracer_has_its_scope_and_is_one_object():
    provider = runtime.current().tracer_provider
    tracer = provider.get_tracer("shop", "1.2", attributes={"team": "web"})
    assert provider.get_tracer("shop", "1.2", attributes={"team": "web"}) is tracer
    assert provider.get_tracer("shop", "1.3", attributes={"team": "web"}) is not tracer
    assert (tracer._instrumentation_scope.name, tracer._instrumentation_scope.version) == ("shop", "1.2")
    assert provider.get_tracer("shop", attributes={"odd": ["a"]}) is not None
    assert tracer.start_span("x", kind=SpanKind.CLIENT).instrumentation_scope is tracer._instrumentation_scope
