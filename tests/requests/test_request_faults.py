"""Requests, routes, lazy values and log fields: inputs from the field that gave wrong names, numbers or errors."""

import functools
import io
import logging
import os
import subprocess
import sys
import textwrap

import pytest
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.core.handlers.base import BaseHandler
from django.http import HttpResponse
from django.template import engines
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.urls import include, path, re_path
from django.utils.functional import SimpleLazyObject, lazy
from django.utils.translation import gettext_lazy
from django.views import View
from django.views.decorators.cache import cache_page, never_cache
from django.views.decorators.csrf import csrf_exempt
from opentelemetry import trace
from opentelemetry.trace import SpanKind

import django_otel
from django_otel import logs, runtime
from django_otel.base import attribute_values, guard
from django_otel.requests import record
from django_otel.requests.view_names import name_view
from django_otel.routes import route_template
from tests import sizes


def plain(request, *_, **__):
    return HttpResponse("ok")


@cache_page(60)
def cached(request):
    template = engines["django"].from_string("{% load otel %}{% otel_traceparent_meta %}{{ body }}")
    return HttpResponse(template.render({"body": "page"}, request))


@cache_page(60)
def cached_without_request(request):
    return HttpResponse(engines["django"].from_string("{% load otel %}{% otel_traceparent_meta %}").render())


def inner_request(request, **_):
    """As Wagtail shows a preview: the stack of middlewares once more, around another request."""
    Session.objects.count()
    handler = BaseHandler()
    handler._get_response = lambda request: HttpResponse(str(Session.objects.count()))
    handler.load_middleware()
    Session.objects.count()
    return handler.get_response(RequestFactory().get("/preview/"))


def inner_client(request):
    return HttpResponse(Client().get("/two/1/to/2/").content)


@django_otel.untraced
def untraced_view(request):
    Session.objects.count()
    return HttpResponse("ok")


def discarded(request, **_):
    with django_otel.span("inside"):
        Session.objects.count()
    if (found := record.find(request)) is not None:
        found.discard()
    Session.objects.count()
    return HttpResponse("ok")


def asking_middleware(get_response):
    """Queries before and after the view, inside a span that ends after it."""

    def middleware(request):
        with django_otel.span("around"):
            Session.objects.count()
            response = get_response(request)
            Session.objects.count()
        return response

    return middleware


urlpatterns = [
    path("inner/<int:pk>/", inner_request),
    path("inner-client/", inner_client),
    path("untraced/", untraced_view),
    path("discarded/", discarded),
    path("static/<path:rest>", discarded),
    path("files/<path:rest>", plain),
    path("cached/", cached),
    path("cached-alone/", cached_without_request),
    re_path(r"^two/(\d)/to/(\d)/$", plain),
    path("things(new)/", plain),
    path("set[1]/<int:pk>/", plain),
    path("price$/any.*/", plain),
    path("part(a)/", include([path("one(b)/", plain), re_path(r"^two/(\d+)/$", plain)])),
    re_path(r"^more(?P<x>[a-z])/", include([path("one(b)/", plain)])),
    path("metrics", plain),
    path("readyz", plain),
    path("ops/", include("django_otel.urls")),
    re_path(r"^more/ops\.d/", include("django_otel.urls", namespace="more")),
    path("of/<slug:tenant>/", include("django_otel.urls", namespace="captured")),
    re_path(r"^version/(\d)/", include("django_otel.urls", namespace="numbered")),
]


@pytest.fixture
def own_urls():
    cache.clear()
    with override_settings(ROOT_URLCONF=__name__):
        yield
    cache.clear()


# --- Routes. ---


@sizes.each(
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
        (r"^caf\xe9/(?P<pk>\d+)/$", "/café/<pk>/"),
        (r"^caf\u00e9/x/$", "/café/x/"),
        (r"^twice/(\d)-\1/$", "/twice/<var>-<var>/"),
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


@sizes.each(
    ("url", "route"),
    [
        ("/things(new)/", "/things(new)/"),
        ("/set[1]/3/", "/set[1]/<int:pk>/"),
        ("/price$/any.*/", "/price$/any.*/"),
        ("/part(a)/one(b)/", "/part(a)/one(b)/"),
        ("/part(a)/two/7/", "/part(a)/two/<var>/"),
        ("/morez/one(b)/", "/more<x>/one(b)/"),
    ],
)
def test_what_is_literal_in_a_path_is_so_in_its_route(own_urls, otel_spans, url, route):
    Client().get(url)
    assert otel_spans[-1].name == f"GET {route}"


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


def test_a_partial_is_named_as_its_function():
    view = functools.partial(functools.partial(plain, a=1), b=2)
    assert name_view(Match(view), "GET") == f"{__name__}.plain"

    class Shown(View):
        pass

    assert name_view(Match(functools.partial(Shown.as_view(), a=1)), "GET").endswith("<locals>.Shown")


def test_a_partial_below_a_decorator_and_one_of_an_object_have_names():
    class Called:
        def __call__(self, request):
            return None

    decorated = never_cache(csrf_exempt(functools.partial(plain, a=1)))
    assert name_view(Match(decorated), "GET") == f"{__name__}.plain"
    assert name_view(Match(functools.partial(Called(), a=1)), "GET").endswith("<locals>.Called")


# --- META. ---


async def test_the_port_of_the_server_is_the_same_for_both_test_clients(otel_spans):
    await AsyncClient().get("/hello/")
    Client().get("/hello/")
    Client().get("/hello/", SERVER_PORT="8000")
    Client().get("/hello/", secure=True)
    assert [span.attributes.get("server.port") for span in otel_spans] == [80, 80, 8000, 443]
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


RECURSIVE: list[object] = []
RECURSIVE.append(RECURSIVE)


@pytest.mark.parametrize(
    "make", [lambda: SimpleLazyObject(lambda: 1 / 0), lambda: RECURSIVE], ids=["fails", "contains itself"]
)
def test_a_value_that_cannot_be_read_raises_nowhere(otel_spans, make):
    value = make()
    with django_otel.span(value), django_otel.timed("t", key=value):
        django_otel.event(value, key=value)
    tracer = trace.get_tracer("shop")
    link = trace.Link(trace.get_current_span().get_span_context(), {"key": value})
    with tracer.start_as_current_span("x", attributes={"key": value, "other": 1}, links=[link]) as current:
        current.set_attribute("later", value)
        current.set_attributes({"again": value, "more": 2})
        current.add_event("seen", {"key": value, "other": 3})
        current.update_name("y")
    found = dict(otel_spans.one("y").attributes)
    assert (found["other"], found["more"]) == (1, 2)
    assert otel_spans.one("y").events[0].attributes["other"] == 3
    guard.reset()


@pytest.mark.parametrize("value", [3, 2.5, True, None, ["a", "b"]])
def test_a_lazy_value_is_what_it_stands_for(value):
    assert attribute_values.clean_value(SimpleLazyObject(lambda: value)) == value


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


# --- Requests inside a request. ---

DURATION = "http.server.request.duration"


@pytest.mark.django_db
def test_a_stack_of_middlewares_inside_a_request_is_part_of_it(own_urls, otel_spans, otel_metrics):
    assert Client().get("/inner/5/").status_code == 200
    assert otel_metrics.value(DURATION).count == 1
    assert otel_metrics.value(DURATION, {"http.route": "/inner/<int:pk>/"}).count == 1
    assert otel_metrics.value("django.request.queries", {"http.route": "/inner/<int:pk>/"}).sum == 3
    assert [span.name for span in otel_spans if span.kind is SpanKind.SERVER] == ["GET /inner/<int:pk>/"]
    assert len({span.context.trace_id for span in otel_spans}) == 1
    assert record.current() is None


def test_a_client_inside_a_request_is_part_of_it(own_urls, otel_spans, otel_metrics):
    assert Client().get("/inner-client/").content == b"ok"
    assert otel_metrics.value(DURATION).count == 1
    Client().get("/two/1/to/2/")
    assert otel_metrics.value(DURATION).count == 2


# --- Own pages. ---


@pytest.mark.parametrize("url", ["/metrics", "/readyz"])
def test_a_page_of_the_project_at_our_usual_path_is_measured(own_urls, otel_spans, otel_metrics, url):
    Client().get(url)
    assert [span.name for span in otel_spans] == [f"GET {url}"]
    assert otel_metrics.value(DURATION, {"http.route": url}).count == 1


ASKING = {"MIDDLEWARE": ["django_otel.middleware.OTelMiddleware", f"{__name__}.asking_middleware"]}


@pytest.mark.django_db
@pytest.mark.parametrize(
    "url",
    ["/ops/metrics", "/more/ops.d/livez", "/of/acme/metrics", "/version/2/livez", "/discarded/", "/untraced/"],
)
def test_what_is_left_out_leaves_no_spans_from_the_first_request_on(own_urls, otel_spans, url):
    with override_settings(**ASKING):
        client = Client()
        for _ in range(2):
            assert client.get(url).status_code in (200, 403)
    assert [span.name for span in otel_spans] == []


@pytest.mark.django_db
def test_a_discarded_request_leaves_the_other_spans_alone(own_urls, otel_spans):
    with override_settings(**ASKING), django_otel.span("job"):
        client = Client()
        client.get("/files/x")
        before = len(otel_spans)
        client.get("/discarded/")
        client.get("/untraced/")
        assert len(otel_spans) == before == 4
    assert {"job", "around", "GET /files/<path:rest>"} <= {span.name for span in otel_spans}


def test_discarded_spans_are_not_exported():
    from django_otel.export.processors import SpanBatchProcessor
    from django_otel.tracing.spans import is_discarded

    sent = []

    class Exporter:
        def export(self, spans):
            from opentelemetry.sdk.trace.export import SpanExportResult

            sent.extend(span.name for span in spans)
            return SpanExportResult.SUCCESS

        def shutdown(self):
            pass

    config = runtime.current().config
    processor = SpanBatchProcessor(Exporter(), None, config, lambda *_: None, lambda *_: None, delay_s=60)
    tracer = runtime.current().tracer_provider.get_tracer("shop")
    with tracer.start_as_current_span("root") as root:
        child = tracer.start_span("child")
        child.end()
    other = tracer.start_span("other")
    other.end()
    for span in (child, root, other):
        processor.take(span)
    root.discard()
    assert is_discarded(child)
    assert not is_discarded(other)
    assert processor.force_flush()
    processor.shutdown()
    assert sent == ["other"]


# --- Static files. ---


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("static_url", "url", "is_traced"),
    [
        ("/files/", "/files/a.css", False),
        ("files/", "/files/a.css", False),
        ("https://static.example.com/files/", "/files/a.css", False),
        ("/files/", "/two/1/to/2/", True),
        ("/fil/", "/files/a.css", True),
        ("/", "/files/a.css", True),
        (None, "/files/a.css", True),
    ],
)
def test_static_files_are_counted_and_not_traced(own_urls, otel_spans, otel_metrics, static_url, url, is_traced):
    with override_settings(**ASKING, STATIC_URL=static_url):
        Client().get(url, headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
    assert bool(list(otel_spans)) is is_traced
    assert otel_metrics.value(DURATION, {"http.response.status_code": 200}).count == 1


def test_media_and_missing_files_are_counted_and_not_traced(own_urls, otel_spans, otel_metrics):
    with override_settings(MEDIA_URL="/media/", STATIC_URL="/s/"):
        Client().get("/media/a/b.png")
        Client().get("/s/gone.css")
        Client().get("/s/gone.css", SCRIPT_NAME="/app")
    assert list(otel_spans) == []
    assert otel_metrics.value(DURATION).count == 3


def test_static_files_are_traced_when_the_settings_say_so(own_urls, otel_spans):
    with override_settings(STATIC_URL="/files/", OTEL={"REQUEST": {"STATIC": True}}):
        Client().get("/files/a.css")
    assert [span.name for span in otel_spans] == ["GET /files/<path:rest>"]
