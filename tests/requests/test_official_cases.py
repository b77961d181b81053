"""The request cases of the official Django instrumentation, through our middleware, with stable conventions.

Source: opentelemetry-instrumentation-django, tests/requests/test_middleware.py and
tests/test_middleware_asgi.py; each test names the case it covers. Where ours
differs on purpose, the test asserts ours and says why. Cases about its own
switches have no place here: `middleware_position` (our middleware is listed by
the project), old and doubled conventions (we emit the stable ones alone),
SQLCommenter, `OTEL_PYTHON_DJANGO_TRACED_REQUEST_ATTRS` (REQUEST.ENRICH does it)
and response propagators (a setting of a later release).
"""

from __future__ import annotations

import time

import pytest
from asgiref.sync import async_to_sync
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path, re_path
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from django_otel import runtime
from django_otel.metrics import catalogue

ACTIVE = "http.server.active_requests"
DURATION = "http.server.request.duration"
REQUEST_HOOKED: list[tuple] = []


def traced(request, *args, **kwargs):
    return HttpResponse("fine")


def error(request):
    raise ValueError("error")


def status(request, code):
    return HttpResponse(status=code)


def headers(request):
    response = HttpResponse("fine")
    response["custom-test-header-1"] = "test-header-value-1"
    response["custom-test-header-2"] = "test-header-value-2"
    response["my-custom-regex-header-1"] = "my-custom-regex-value-1,my-custom-regex-value-2"
    response["my-secret-header"] = "my-secret-value"
    response.set_cookie("sessionid", "my-cookie-value")
    return response


async def async_traced(request, *args, **kwargs):
    return HttpResponse("fine")


async def async_error(request):
    raise ValueError("error")


urlpatterns = [
    re_path(r"^traced/", traced),
    re_path(r"^traced_custom_header/", headers),
    re_path(r"^route/(?P<year>[0-9]{4})/template/$", traced),
    re_path(r"^error/", error),
    path("status/<int:code>/", status),
    re_path(r"^excluded_arg/", traced),
    re_path(r"^excluded_noarg/", traced),
    re_path(r"^excluded_noarg2/", traced),
    re_path(r"^span_name/([0-9]{4})/$", traced),
    re_path(r"^async/traced/", async_traced),
    re_path(r"^async/error/", async_error),
    re_path(r"^async/span_name/([0-9]{4})/$", async_traced),
    path("", traced, name="empty"),
]

pytestmark = pytest.mark.usefixtures("project")


@pytest.fixture
def project():
    """Their test project: its URLconf, and our middleware alone."""
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=["django_otel.middleware.OTelMiddleware"]):
        yield


class Caller:
    """Asks through the WSGI or the ASGI handler, so that each case runs in both."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.prefix = "/async" if kind == "async view" else ""

    def __call__(self, method: str, where: str, **more) -> HttpResponse:
        if self.kind == "wsgi":
            return Client(raise_request_exception=False).generic(method, where, **more)

        async def ask():
            return await AsyncClient(raise_request_exception=False).generic(method, where, **more)

        return async_to_sync(ask)()


@pytest.fixture(params=["wsgi", "asgi", "async view"])
def call(request):
    return Caller(request.param)


def only(otel_spans):
    assert len(otel_spans) == 1, otel_spans
    assert otel_spans[0].kind is SpanKind.SERVER
    return otel_spans[0]


# --- Spans. ---


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_traced(call, otel_spans, method):
    """test_traced_get, test_traced_post: the route is the pattern as a template, theirs its regular expression."""
    call(method, call.prefix + "/traced/")
    span = only(otel_spans)
    assert span.name == f"{method} {call.prefix}/traced/"
    assert span.status.status_code is StatusCode.UNSET
    assert span.attributes["http.request.method"] == method
    assert span.attributes["url.scheme"] == "http"
    assert span.attributes["url.path"] == call.prefix + "/traced/"
    assert span.attributes["server.address"] == "testserver"
    assert span.attributes["network.protocol.version"] == "1.1"
    assert span.attributes["http.route"] == call.prefix + "/traced/"
    assert span.attributes["http.response.status_code"] == 200
    # Theirs always has it; an address is a person's, so ours waits for REQUEST.CLIENT_ADDRESS.
    assert "client.address" not in span.attributes
    # The conventions leave a default port out when the Host header does.
    assert span.attributes.get("server.port", 80) == 80


def test_no_attribute_of_the_old_conventions_is_sent(call, otel_spans):
    """test_traced_get_both_semconv: one set of names, whatever OTEL_SEMCONV_STABILITY_OPT_IN says of others."""
    call("GET", call.prefix + "/traced/?a=b")
    old = {"http.method", "http.url", "http.target", "http.scheme", "http.status_code", "http.flavor", "http.host",
           "http.server_name", "net.host.port", "net.peer.ip", "net.host.name", "http.user_agent"}  # fmt: skip
    assert not old & set(only(otel_spans).attributes)


def test_templated_route(otel_spans, otel_metrics):
    """test_templated_route_get: a named group is shown by its name."""
    Client().get("/route/2020/template/")
    span = only(otel_spans)
    assert span.name == "GET /route/<year>/template/"
    assert span.attributes["http.route"] == "/route/<year>/template/"
    assert otel_metrics.series(DURATION)[0]["http.route"] == "/route/<year>/template/"


def test_not_recording(call, otel_spans, otel_metrics):
    """test_not_recording: nothing is built for a span that is not recorded; the metrics count all the same."""
    with override_settings(OTEL={"SAMPLING": {"RATIO": 0.0}, "REQUEST": {"ENRICH": f"{__name__}.enrich"}}):
        REQUEST_HOOKED.clear()
        call("GET", call.prefix + "/traced/")
    assert not list(otel_spans)
    assert not REQUEST_HOOKED
    assert otel_metrics.value(DURATION).count == 1


def test_empty_path(otel_spans):
    """test_empty_path: theirs is called "GET empty" by the URL's name; the conventions say the route."""
    Client().get("/")
    assert only(otel_spans).name == "GET /"


def test_error(call, otel_spans, otel_metrics):
    """test_error: status, event and error.type of an unhandled exception."""
    assert call("GET", call.prefix + "/error/").status_code == 500
    span = only(otel_spans)
    assert span.name == f"GET {call.prefix}/error/"
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["http.response.status_code"] == 500
    assert span.attributes["error.type"] == "500"
    assert [event.name for event in span.events] == ["exception"]
    assert span.events[0].attributes["exception.type"] == "ValueError"
    assert span.events[0].attributes["exception.message"] == "error"
    assert otel_metrics.value(DURATION, {"error.type": "500", "http.response.status_code": 500}).count == 1


def test_error_that_the_test_client_raises_again(otel_spans):
    """test_error: Client() raises what the view raised; the span has ended before."""
    with pytest.raises(ValueError, match="error"):
        Client().get("/error/")
    assert only(otel_spans).status.status_code is StatusCode.ERROR


@pytest.mark.parametrize(
    ("code", "is_error"),
    [(200, False), (302, False), (400, False), (404, False), (499, False), (500, True), (503, True)],
)
def test_status_codes(otel_spans, otel_metrics, code, is_error):
    """Semantic conventions, "HTTP server span status": 4xx is the client's fault, 5xx ours."""
    Client().get(f"/status/{code}/")
    span = only(otel_spans)
    assert span.attributes["http.response.status_code"] == code
    assert span.status.status_code is (StatusCode.ERROR if is_error else StatusCode.UNSET)
    assert span.attributes.get("error.type") == (str(code) if is_error else None)
    assert not span.events
    assert otel_metrics.series(DURATION)[0].get("error.type") == (str(code) if is_error else None)


def test_exclude_lists(otel_spans, otel_metrics):
    """test_exclude_lists: ours is globs on paths, and for the metrics too."""
    with override_settings(OTEL={"REQUEST": {"EXCLUDE": ["/excluded_arg/123", "/excluded_noarg*"]}}):
        for where in ("/excluded_arg/123", "/excluded_arg/125", "/excluded_noarg/", "/excluded_noarg2/"):
            Client().get(where)
    assert only(otel_spans).attributes["url.path"] == "/excluded_arg/125"
    assert otel_metrics.value(DURATION).count == 1


@pytest.mark.parametrize("query", ["", "?query=test"])
def test_span_name(call, otel_spans, query):
    """test_span_name, test_span_name_for_query_string: a group without a name is <var>; a query changes nothing."""
    call("GET", f"{call.prefix}/span_name/1234/{query}")
    span = only(otel_spans)
    assert span.name == f"GET {call.prefix}/span_name/<var>/"
    assert "url.query" not in span.attributes


def test_span_name_404(call, otel_spans, otel_metrics):
    """test_span_name_404: no match, so the method alone; no path is a label."""
    call("GET", "/span_name/1234567890/")
    span = only(otel_spans)
    assert span.name == "GET"
    assert "http.route" not in span.attributes
    assert otel_metrics.series(DURATION)[0]["http.route"] == "<unmatched>"


def test_nonstandard_http_method(call, otel_spans, otel_metrics):
    """test_nonstandard_http_method_span_name: theirs is named "HTTP" alone; the conventions keep the route."""
    call("NONSTANDARD", f"{call.prefix}/span_name/1234/")
    span = only(otel_spans)
    assert span.name == f"HTTP {call.prefix}/span_name/<var>/"
    assert span.attributes["http.request.method"] == "_OTHER"
    assert span.attributes["http.request.method_original"] == "NONSTANDARD"
    assert otel_metrics.series(DURATION)[0]["http.request.method"] == "_OTHER"
    assert "http.request.method_original" not in otel_metrics.series(DURATION)[0]


def test_a_method_in_lower_case_is_not_the_known_one(otel_spans):
    """Semantic conventions: methods are case-sensitive; Django itself upper-cases what WSGI hands over."""
    Client().generic("get", "/traced/")
    assert only(otel_spans).attributes["http.request.method"] == "GET"


def test_query_string_is_scrubbed_when_asked_for(otel_spans):
    """url.query: off by default; with REQUEST.QUERY in its order, blank parameters kept, secrets out."""
    with override_settings(OTEL={"REQUEST": {"QUERY": True}}):
        Client().get("/traced/?b=&a=1&X-Goog-Signature=abc&sig=abc&AWSAccessKeyId=abc&Signature=abc&c=%20")
    query = only(otel_spans).attributes["url.query"]
    assert "abc" not in query
    assert query.startswith("b=&a=1&X-Goog-Signature=")
    assert query.endswith("&c=%20")


@pytest.mark.parametrize(
    "rest",
    [
        "password=hunter2hunter2" * 4000,
        "token=" + "hunter2" * 10_000,
        "next=%2F%3Ftoken%3D" + "hunter2" * 10_000,
        "u=http://me:" + "hunter2" * 10_000 + "@host/",
        "data=-----BEGIN PRIVATE KEY-----" + "hunter2" * 10_000 + "-----END PRIVATE KEY-----",
        "hunter2" * 10_000,
        "x=1&" * 1010 + "password=" + "hunter2" * 10_000,
    ],
)
def test_a_long_query_string_is_cut_between_two_parameters(otel_spans, rest):
    """Scrubbing takes time that grows with the length; nothing of a secret leaves because its end was cut off."""
    with override_settings(OTEL={"REQUEST": {"QUERY": True}}):
        Client().get(f"/traced/?a=1&{rest}&b=2")
    query = only(otel_spans).attributes["url.query"]
    assert query.startswith("a=1&")
    assert query.endswith("&... [cut]")
    assert "hunter2" not in query
    assert len(query) < 5000


def test_user_agent(call, otel_spans):
    """test_user_agent: as it came; what a synthetic client is called is no business of ours."""
    call("GET", call.prefix + "/traced/", headers={"user-agent": "Googlebot/2.1 (+http://www.google.com/bot.html)"})
    span = only(otel_spans)
    assert span.attributes["user_agent.original"] == "Googlebot/2.1 (+http://www.google.com/bot.html)"
    # Theirs sets user_agent.synthetic.type by a list of two names; the attribute is not stable.
    assert "user_agent.synthetic.type" not in span.attributes


# --- Hooks. ---


def enrich(span, request, response):
    REQUEST_HOOKED.append((span, request, response))
    span.set_attribute("path_info", request.path_info)
    if response is not None:
        response["hook-header"] = "set by hook"


def broken_enrich(span, request, response):
    raise RuntimeError("response hook exception")


def test_hooks(call, otel_spans):
    """test_hooks, test_traced_request_attrs: REQUEST.ENRICH gets span, request and response and may change them."""
    REQUEST_HOOKED.clear()
    with override_settings(OTEL={"REQUEST": {"ENRICH": f"{__name__}.enrich"}}):
        response = call("GET", f"{call.prefix}/span_name/1234/")
    assert response["hook-header"] == "set by hook"
    span = only(otel_spans)
    assert span.attributes["path_info"] == f"{call.prefix}/span_name/1234/"
    [(hooked_span, request, hooked_response)] = REQUEST_HOOKED
    assert hooked_span.get_span_context() == span.context
    assert isinstance(request, HttpRequest)
    assert hooked_response is response
    REQUEST_HOOKED.clear()


def test_a_hook_that_raises(call, otel_spans):
    """test_request_hook_exception, test_response_hook_exception: the span ends, the answer is the view's."""
    with override_settings(OTEL={"REQUEST": {"ENRICH": f"{__name__}.broken_enrich"}}):
        assert call("GET", f"{call.prefix}/span_name/1234/").status_code == 200
    assert only(otel_spans).name == f"GET {call.prefix}/span_name/<var>/"


# --- Context. ---


def test_trace_parent(call, otel_spans):
    """test_trace_parent: the caller's trace is continued."""
    trace_id, span_id = f"{0xABC:032x}", f"{0xDEF:016x}"
    call("GET", f"{call.prefix}/span_name/1234/", headers={"traceparent": f"00-{trace_id}-{span_id}-01"})
    span = only(otel_spans)
    assert trace.format_trace_id(span.context.trace_id) == trace_id
    assert trace.format_span_id(span.parent.span_id) == span_id
    assert span.parent.is_remote


def test_no_header_of_ours_is_on_the_response(call):
    """test_trace_response_headers: none unless asked for, and that setting is not there yet."""
    response = call("GET", f"{call.prefix}/span_name/1234/", headers={"traceparent": f"00-{1:032x}-{1:016x}-01"})
    assert not {"traceresponse", "server-timing", "traceparent"} & {name.lower() for name in response.headers}


def test_uninstrument(call, otel_spans, otel_metrics):
    """test_uninstrument, test_wsgi_metrics_unistrument: off, and on again, without a restart."""
    call("GET", call.prefix + "/traced/")
    with override_settings(OTEL={"ENABLED": False}):
        call("GET", call.prefix + "/traced/")
    assert otel_metrics.value(DURATION).count == 1
    only(otel_spans)
    call("GET", call.prefix + "/traced/")
    assert len(otel_spans) == 2


def test_tracer_provider_traced(otel_spans):
    """test_tracer_provider_traced: the resource of the settings is on the span."""
    with override_settings(OTEL={"RESOURCE": {"resource-key": "resource-value"}}):
        Client().post("/traced/")
    assert only(otel_spans).resource.attributes["resource-key"] == "resource-value"


def test_django_with_an_outer_server_span(call, otel_spans, otel_metrics):
    """test_django_with_wsgi_instrumented, test_django_with_asgi_instrumented: theirs nests; two spans of kind
    SERVER for one request would count it twice in every backend, so ours joins."""
    tracer = runtime.current().tracer_provider.get_tracer("test")
    with tracer.start_as_current_span("test", kind=SpanKind.SERVER) as outer:
        call("GET", f"{call.prefix}/span_name/1234/")
        assert outer.is_recording()
    span = only(otel_spans)
    assert span.name == "test"
    assert otel_metrics.value(DURATION).count == 1


# --- Metrics. ---


def test_metrics(call, otel_metrics):
    """test_wsgi_metrics_new_semconv, test_asgi_metrics_new_semconv: names, attributes, bounds."""
    begun_s = time.perf_counter()
    for _ in range(3):
        assert call("GET", f"{call.prefix}/span_name/1234/?token=x").status_code == 200
    lasted_s = time.perf_counter() - begun_s
    found = otel_metrics.value(DURATION)
    assert found.count == 3
    assert 0 < found.sum <= lasted_s
    assert otel_metrics.series(DURATION) == [
        {
            "http.request.method": "GET",
            "url.scheme": "http",
            "network.protocol.version": "1.1",
            "http.response.status_code": 200,
            "http.route": f"{call.prefix}/span_name/<var>/",
        }
    ]
    assert otel_metrics.value(ACTIVE) == 0
    family = next(family for family in runtime.collect() if family.name == DURATION)
    assert family.points[0].value.bounds == (
        0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
    )  # fmt: skip
    assert family.unit == catalogue.CATALOGUE[DURATION].unit == "s"


def test_active_requests_are_counted_while_they_run(otel_metrics):
    """test_wsgi_metrics: by method and scheme alone; theirs carries the server's name in its old form."""
    from django.test import RequestFactory

    from django_otel.middleware import OTelMiddleware

    seen = []

    def get_response(request):
        seen.append((otel_metrics.value(ACTIVE), otel_metrics.series(ACTIVE)))
        return HttpResponse()

    OTelMiddleware(get_response)(RequestFactory().get("/traced/"))
    assert seen == [(1, [{"http.request.method": "GET", "url.scheme": "http"}])]
    assert otel_metrics.value(ACTIVE) == 0


# --- Headers. ---

REQUEST_HEADERS = {
    "custom-test-header-1": "test-header-value-1",
    "custom-test-header-2": "test-header-value-2",
    "regex-test-header-1": "Regex Test Value 1",
    "regex-test-header-2": "RegexTestValue2,RegexTestValue3",
    "my-secret-header": "My Secret Value",
}


def test_request_headers(call, otel_spans):
    """test_http_custom_request_headers_in_span_attributes: as a list of one, by glob; a secret's never at all."""
    wanted = ["Custom-Test-Header-1", "custom-test-header-2", "custom-test-header-3", "regex-test-*", "*secret*"]
    with override_settings(OTEL={"REQUEST": {"REQUEST_HEADERS": wanted}}):
        call("GET", call.prefix + "/traced/", headers=REQUEST_HEADERS)
    found = {key: value for key, value in only(otel_spans).attributes.items() if key.startswith("http.request.header")}
    assert found == {
        "http.request.header.custom-test-header-1": ("test-header-value-1",),
        "http.request.header.custom-test-header-2": ("test-header-value-2",),
        "http.request.header.regex-test-header-1": ("Regex Test Value 1",),
        "http.request.header.regex-test-header-2": ("RegexTestValue2,RegexTestValue3",),
    }


def test_request_headers_not_asked_for(call, otel_spans):
    """test_http_custom_request_headers_not_in_span_attributes."""
    call("GET", call.prefix + "/traced/", headers=REQUEST_HEADERS)
    assert not [key for key in only(otel_spans).attributes if ".header." in key]


def test_response_headers(otel_spans):
    """test_http_custom_response_headers_in_span_attributes: cookies and secrets not even for "*"."""
    with override_settings(OTEL={"REQUEST": {"RESPONSE_HEADERS": ["*"]}}):
        Client().get("/traced_custom_header/")
    span = only(otel_spans)
    found = {key: value for key, value in span.attributes.items() if key.startswith("http.response.header")}
    assert found["http.response.header.custom-test-header-1"] == ("test-header-value-1",)
    assert found["http.response.header.my-custom-regex-header-1"] == (
        "my-custom-regex-value-1,my-custom-regex-value-2",
    )
    assert "my-secret-value" not in str(dict(span.attributes))
    assert "my-cookie-value" not in str(dict(span.attributes))


def test_response_headers_not_asked_for(otel_spans):
    """test_http_custom_response_headers_not_in_span_attributes."""
    Client().get("/traced_custom_header/")
    assert not [key for key in only(otel_spans).attributes if ".header." in key]


# --- The official instrumentor from outside, under a real server. ---


def test_an_instrumentor_started_by_the_project_makes_the_span_and_ours_joins(receiver, tmp_path):
    """A project that calls DjangoInstrumentor().instrument() itself: one server span a request, our metrics beside."""
    from tests import services

    config = tmp_path / "gunicorn.conf.py"
    config.write_text(
        "import os\n"
        "def post_fork(server, worker):\n"
        "    os.environ.setdefault('OTEL_SEMCONV_STABILITY_OPT_IN', 'http,database')\n"
        "    from opentelemetry.instrumentation.django import DjangoInstrumentor\n"
        "    DjangoInstrumentor().instrument()\n"
    )
    otel = {
        "SERVICE_NAME": "outside",
        "SAMPLING": {"LIVE": False},
        "METRICS_VIEW": {"ALLOW": "all"},
        "TRACES": {"ENDPOINT": receiver.url, "BATCH": {"DELAY_S": 0.1}},
        "METRICS": {"EXPORTERS": ["prometheus"]},
    }
    with services.serve("gunicorn", otel, arguments=("--config", str(config))) as server:
        for _ in range(3):
            assert server.get("/orders/5/?token=hunter2")[0] == 200
        services.wait_until(
            lambda: sum(span.name == "order.load" for _, span in receiver.spans()) == 3, what="the spans"
        )
        services.wait_until(lambda: sum(span.kind == 2 for _, span in receiver.spans()) == 3, what="the server spans")
        # Which pages theirs leaves out is its own setting (OTEL_PYTHON_DJANGO_EXCLUDED_URLS).
        seen = receiver.spans()
        page = server.get("/metrics")[2].decode()
    servers = {span.span_id: span for _, span in seen if span.kind == 2}
    assert len(servers) == 3, [span.name for span in servers.values()]
    assert all(span.parent_span_id in servers for _, span in seen if span.name == "order.load")
    assert "hunter2" not in str([message for _, _, message in receiver.requests])
    ours = [
        line
        for line in page.splitlines()
        if line.startswith("http_server_request_duration_seconds_count{") and 'http_route="/orders/<int:pk>/"' in line
    ]
    assert [line.rpartition(" ")[2] for line in ours] == ["3"]
