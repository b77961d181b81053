"""The request span and the request metrics, through Django's own handlers in process."""

import asyncio
import contextlib
import inspect

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, RequestFactory, override_settings
from opentelemetry import baggage, context, trace
from opentelemetry.trace import SpanKind, StatusCode

import django_otel
from django_otel import runtime
from django_otel.middleware import OTelMiddleware
from django_otel.requests import record
from tests import views

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
DURATION = "http.server.request.duration"
ACTIVE = "http.server.active_requests"


@pytest.fixture
def client():
    return Client(raise_request_exception=False)


@pytest.fixture
def async_client():
    return AsyncClient(raise_request_exception=False)


def active_requests() -> float:
    return sum(point.value for family in runtime.store.collect() if family.name == ACTIVE for point in family.points)


def nothing_is_current() -> bool:
    return trace.get_current_span() is trace.INVALID_SPAN and record.current() is None


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Whatever a test does, no span stays current and no request stays active."""
    before = active_requests()
    yield
    assert nothing_is_current()
    assert active_requests() == before


def server_span(otel_spans):
    found = [span for span in otel_spans if span.kind is SpanKind.SERVER]
    assert len(found) == 1, [span.name for span in otel_spans]
    return found[0]


# --- Names, attributes, routes. ---


@pytest.mark.parametrize(
    ("path", "name", "route"),
    [
        ("/hello/", "GET /hello/", "/hello/"),
        ("/orders/5/", "GET /orders/<int:pk>/", "/orders/<int:pk>/"),
        ("/articles/2020/", "GET /articles/<year>/", "/articles/<year>/"),
        ("/nested/deep/x/", "GET /nested/deep/<slug:name>/", "/nested/deep/<slug:name>/"),
        ("/en/greet/x/", "GET /en/greet/<str:name>/", "/en/greet/<str:name>/"),
        ("/de/greet/x/", "GET /de/greet/<str:name>/", "/de/greet/<str:name>/"),
    ],
)
def test_the_route_is_the_url_pattern_as_a_template(client, otel_spans, otel_metrics, path, name, route):
    if "articles" in path:
        route, name = "/articles/<year>/", "GET /articles/<year>/"
    assert client.get(path).status_code == 200
    span = server_span(otel_spans)
    assert (span.name, span.attributes["http.route"]) == (name, route)
    assert otel_metrics.value(DURATION, {"http.route": route}).count == 1


def test_a_span_has_the_attributes_of_the_stable_conventions(client, otel_spans):
    client.get("/orders/5/?q=1", headers={"host": "localhost:8123", "user-agent": "probe/1"})
    attributes = dict(server_span(otel_spans).attributes)
    # Both took their time.
    for layer in ("view", "middleware"):
        assert attributes.pop(f"django.layer.{layer}.duration") > 0
    assert attributes == {
        "http.request.method": "GET",
        "http.route": "/orders/<int:pk>/",
        "http.response.status_code": 200,
        "url.path": "/orders/5/",
        "url.scheme": "http",
        "server.address": "localhost",
        "server.port": 8123,
        "user_agent.original": "probe/1",
        "network.protocol.version": "1.1",
        "django.view": "tests.views.order",
    }


def test_script_name_is_part_of_the_path_and_not_of_the_route(client, otel_spans):
    client.get("/nested/deep/x/", SCRIPT_NAME="/app")
    span = server_span(otel_spans)
    assert span.name == "GET /nested/deep/<slug:name>/"
    assert span.attributes["url.path"] == "/app/nested/deep/x/"


def test_a_404_without_a_match_has_a_fixed_label_and_a_span_named_by_its_method(client, otel_spans, otel_metrics):
    client.get("/nope/1")
    client.get("/nope/2")
    spans = list(otel_spans)
    assert [span.name for span in spans] == ["GET", "GET"]
    assert "http.route" not in spans[0].attributes
    assert otel_metrics.value(DURATION, {"http.route": "<unmatched>", "http.response.status_code": 404}).count == 2


def test_a_404_raised_by_a_view_keeps_its_route(client, otel_spans):
    assert client.get("/missing/").status_code == 404
    span = server_span(otel_spans)
    assert span.name == "GET /missing/"
    assert span.status.status_code is StatusCode.UNSET


def test_https_behind_a_proxy_is_seen_through_the_secure_header(client, otel_spans):
    with override_settings(SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https"), OTEL={"SERVICE_NAME": "x"}):
        client.get("/hello/", headers={"x-forwarded-proto": "https"})
    assert server_span(otel_spans).attributes["url.scheme"] == "https"


def test_fifty_invented_methods_paths_and_hosts_make_a_fixed_number_of_series(client, otel_metrics):
    def series() -> int:
        return sum(len(family.points) for family in runtime.store.collect() if family.name.startswith("http.server"))

    client.generic("WEIRD", "/hello/")
    client.get("/nope")
    client.get("/hello/", headers={"host": "0.example"})
    before = series()
    for number in range(50):
        client.generic(f"WEIRD{number}", "/hello/")
        client.get(f"/nope/{number}")
        client.get("/hello/", headers={"host": f"{number}.example"})
    assert series() == before


def test_an_unknown_method_is_called_other_and_kept_on_the_span(client, otel_spans, otel_metrics):
    client.generic("PURGE", "/hello/")
    span = server_span(otel_spans)
    assert span.name == "HTTP /hello/"
    assert span.attributes["http.request.method"] == "_OTHER"
    assert span.attributes["http.request.method_original"] == "PURGE"
    assert otel_metrics.value(DURATION, {"http.request.method": "_OTHER"}).count == 1


# --- Errors. ---


@pytest.mark.parametrize("path", ["/boom/", "/async-boom/"])
def test_an_unhandled_exception_is_recorded_once_and_counted(client, otel_spans, otel_metrics, path):
    assert client.get(path).status_code == 500
    span = server_span(otel_spans)
    assert [event.name for event in span.events] == ["exception"]
    event = span.events[0]
    assert event.attributes["exception.type"] == "ValueError"
    assert "raise ValueError" in event.attributes["exception.stacktrace"]
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "500"
    assert otel_metrics.value(DURATION, {"http.route": path, "error.type": "500"}).count == 1
    assert otel_metrics.value("django.request.exceptions", {"http.route": path, "exception.type": "ValueError"}) == 1


def test_a_secret_in_an_exception_message_is_redacted(client, otel_spans):
    client.get("/boom/")
    event = server_span(otel_spans).events[0]
    assert "hunter2" not in str(dict(event.attributes))
    assert "[redacted]" in event.attributes["exception.message"]


@pytest.mark.parametrize(("path", "status"), [("/forbidden/", 403), ("/missing/", 404)])
def test_a_client_error_is_no_error_of_the_server(client, otel_spans, path, status):
    assert client.get(path).status_code == status
    span = server_span(otel_spans)
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in span.attributes
    assert not span.events


def test_system_exit_passes_through_and_leaves_nothing_behind(client, otel_spans, otel_metrics):
    with pytest.raises(SystemExit):
        client.get("/exit/")
    span = server_span(otel_spans)
    assert span.attributes["error.type"] == "SystemExit"
    assert otel_metrics.value(DURATION, {"error.type": "SystemExit"}).count == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, ValueError])
def test_whatever_get_response_raises_passes_through_unchanged(error, otel_spans):
    def get_response(request):
        raise error

    with pytest.raises(error):
        OTelMiddleware(get_response)(RequestFactory().get("/hello/"))
    assert len(list(otel_spans)) == 1


# --- Requests that are not as they should be. ---


@pytest.mark.parametrize(
    ("extra", "headers"),
    [
        ({}, {"host": "bad host!"}),
        ({"CONTENT_LENGTH": "abc"}, {}),
        ({"CONTENT_LENGTH": "-5"}, {}),
        ({"CONTENT_LENGTH": "²"}, {}),
        ({}, {"traceparent": "00-nonsense"}),
        ({}, {"traceparent": "x" * 10_000, "tracestate": "=" * 10_000, "baggage": ";;;=,," * 2000}),
        ({}, {"user-agent": "\x00\ud800ÿ"}),
        ({"REMOTE_ADDR": ""}, {}),
        ({"SERVER_NAME": "", "SERVER_PORT": "many"}, {}),
        ({"SERVER_PROTOCOL": ""}, {}),
        ({"wsgi.url_scheme": "gopher"}, {}),
    ],
)
def test_a_malformed_request_gets_the_same_answer_as_without_the_middleware(client, otel_spans, extra, headers):
    without = [name for name in _middleware() if "OTel" not in name]
    with override_settings(MIDDLEWARE=without):
        # A client keeps the middleware of its first request.
        expected = Client(raise_request_exception=False).get("/hello/", headers=headers, **extra)
    found = client.get("/hello/", headers=headers, **extra)
    assert (found.status_code, found.content) == (expected.status_code, expected.content)
    assert len(list(otel_spans)) == 1


def _middleware():
    from django.conf import settings

    return list(settings.MIDDLEWARE)


def test_a_bad_host_reaches_the_next_middleware(otel_spans):
    reached = []

    def get_response(request):
        reached.append(True)
        from django.http import HttpResponse

        return HttpResponse("fine")

    request = RequestFactory().get("/hello/", headers={"host": "bad host!"})
    assert OTelMiddleware(get_response)(request).status_code == 200
    assert reached


# --- Context. ---


def test_the_callers_trace_is_continued(client, otel_spans):
    client.get("/hello/", headers={"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01", "tracestate": "vendor=1"})
    span = server_span(otel_spans)
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert f"{span.parent.span_id:016x}" == SPAN_ID
    assert span.context.trace_state["vendor"] == "1"


def test_a_caller_that_does_not_sample_is_followed_and_metrics_still_count(client, otel_spans, otel_metrics):
    client.get("/hello/", headers={"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-00"})
    assert not list(otel_spans)
    assert otel_metrics.value(DURATION, {"http.route": "/hello/"}).count == 1


@pytest.mark.parametrize("trust", [False, ["10.0.0.0/8"]])
def test_an_untrusted_callers_trace_becomes_a_link(client, otel_spans, trust):
    with override_settings(OTEL={"PROPAGATION": {"TRUST_INBOUND": trust}}):
        client.get("/hello/", headers={"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"}, REMOTE_ADDR="192.0.2.7")
    span = server_span(otel_spans)
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" != TRACE_ID
    assert [f"{link.context.trace_id:032x}" for link in span.links] == [TRACE_ID]


def test_an_untrusted_caller_cannot_switch_tracing_on_at_ratio_0(client, otel_spans):
    with override_settings(OTEL={"PROPAGATION": {"TRUST_INBOUND": False}, "SAMPLING": {"RATIO": 0.0}}):
        for _ in range(10):
            client.get("/hello/", headers={"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"})
    assert not list(otel_spans)


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3"])
def test_a_caller_from_a_trusted_network_is_continued(client, otel_spans, address):
    with override_settings(OTEL={"PROPAGATION": {"TRUST_INBOUND": ["10.0.0.0/8"]}}):
        client.get("/hello/", headers={"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"}, REMOTE_ADDR=address)
    assert f"{server_span(otel_spans).context.trace_id:032x}" == TRACE_ID


def test_inbound_baggage_can_be_read_by_the_view_and_is_not_sent_on():
    seen = {}

    def get_response(request):
        from django.http import HttpResponse
        from opentelemetry import propagate

        seen["role"] = baggage.get_baggage("role")
        headers = {}
        propagate.inject(headers)
        seen["headers"] = headers
        return HttpResponse()

    OTelMiddleware(get_response)(RequestFactory().get("/hello/", headers={"baggage": "role=admin,tenant=7"}))
    assert seen["role"] == "admin"
    assert "traceparent" in seen["headers"]
    assert "baggage" not in seen["headers"]
    with override_settings(OTEL={"PROPAGATION": {"BAGGAGE_KEYS": ["tenant"]}}):
        OTelMiddleware(get_response)(RequestFactory().get("/hello/", headers={"baggage": "role=admin,tenant=7"}))
    assert seen["headers"]["baggage"] == "tenant=7"


def test_a_server_span_that_exists_is_joined(client, otel_spans, otel_metrics):
    tracer = runtime.current().tracer_provider.get_tracer("another tool")
    with tracer.start_as_current_span("GET outer", kind=SpanKind.SERVER) as outer:
        client.get("/orders/5/")
        assert outer.is_recording()
    span = server_span(otel_spans)
    assert span.name == "GET outer"
    assert span.attributes["django.view"] == "tests.views.order"
    assert otel_spans.one("order.load").parent.span_id == span.context.span_id
    assert otel_metrics.value(DURATION, {"http.route": "/orders/<int:pk>/"}).count == 1


def test_an_internal_span_around_the_request_is_its_parent(client, otel_spans):
    with django_otel.span("a test"):
        client.get("/hello/")
    assert server_span(otel_spans).parent.span_id == otel_spans.one("a test").context.span_id


# --- What is measured only when asked for. ---


def test_excluded_paths_are_out_of_spans_and_metrics(client, otel_spans, otel_metrics):
    with override_settings(OTEL={"REQUEST": {"EXCLUDE": ["/health*", "/hello/"]}}):
        client.get("/healthz")
        client.get("/hello/")
        client.get("/json/")
    assert [span.name for span in otel_spans] == ["GET /json/"]
    assert otel_metrics.value(DURATION).count == 1


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/internal/metrics", "/internal/livez"])
def test_our_own_pages_are_never_measured(client, otel_spans, otel_metrics, path):
    for _ in range(3):
        client.get(path)
    assert not list(otel_spans)
    assert otel_metrics.value(DURATION).count == 0


def test_headers_are_recorded_when_asked_for_and_never_the_sensitive_ones(client, otel_spans):
    wanted = {"REQUEST_HEADERS": ["*"], "RESPONSE_HEADERS": ["*"]}
    with override_settings(OTEL={"REQUEST": wanted}):
        client.get(
            "/hello/",
            headers={
                "x-tenant": "7",
                "authorization": "Bearer abc",
                "cookie": "sessionid=1",
                "x-api-key": "k",
                "x-csrftoken": "t",
            },
        )
    attributes = server_span(otel_spans).attributes
    assert attributes["http.request.header.x-tenant"] == ("7",)
    assert "http.response.header.content-type" in attributes
    names = " ".join(attributes)
    for denied in ("authorization", "cookie", "api-key", "csrf"):
        assert denied not in names


def test_no_header_is_recorded_by_default(client, otel_spans):
    client.get("/hello/", headers={"x-tenant": "7"})
    assert not [name for name in server_span(otel_spans).attributes if ".header." in name]


def test_the_query_string_is_recorded_only_when_asked_for_and_scrubbed(client, otel_spans):
    client.get("/hello/?password=hunter2&page=2")
    assert "url.query" not in server_span(otel_spans).attributes
    otel_spans.clear()
    with override_settings(OTEL={"REQUEST": {"QUERY": True}}):
        client.get("/hello/?password=hunter2&page=2")
    query = server_span(otel_spans).attributes["url.query"]
    assert "hunter2" not in query
    assert "page=2" in query


def test_the_clients_address_is_recorded_only_when_asked_for(client, otel_spans):
    client.get("/hello/", REMOTE_ADDR="192.0.2.7")
    assert "client.address" not in server_span(otel_spans).attributes
    otel_spans.clear()
    with override_settings(OTEL={"REQUEST": {"CLIENT_ADDRESS": True}}):
        client.get("/hello/", REMOTE_ADDR="192.0.2.7")
    assert server_span(otel_spans).attributes["client.address"] == "192.0.2.7"


def enrich(span, request, response):
    span.set_attribute("shop.tenant", f"{request.path} {response.status_code}")


def broken_enrich(span, request, response):
    raise RuntimeError("enrich is broken")


def test_enrich_gets_span_request_and_response(client, otel_spans):
    with override_settings(OTEL={"REQUEST": {"ENRICH": "tests.requests.test_middleware.enrich"}}):
        client.get("/hello/")
    assert server_span(otel_spans).attributes["shop.tenant"] == "/hello/ 200"


def test_a_broken_enrich_does_not_break_the_request(client, otel_spans):
    with override_settings(OTEL={"REQUEST": {"ENRICH": "tests.requests.test_middleware.broken_enrich"}}):
        assert client.get("/hello/").status_code == 200
    assert server_span(otel_spans).name == "GET /hello/"


@pytest.mark.django_db
@pytest.mark.parametrize(("mode", "key"), [("id", "user.id"), ("hash", "user.hash"), ("none", None)])
def test_the_user_is_recorded_as_the_setting_says_and_only_when_loaded(
    client, otel_spans, mode, key, django_user_model
):
    user = django_user_model.objects.create_user("ann", password="pw")
    client.force_login(user)
    with override_settings(OTEL={"REQUEST": {"USER": mode}}):
        client.get("/hello/")
        assert not [name for name in server_span(otel_spans).attributes if name.startswith("user.")]
        otel_spans.clear()
        # The admin loads the user.
        client.get("/admin/")
    attributes = server_span(otel_spans).attributes
    found = {name for name in attributes if name.startswith("user.")}
    assert found == ({key} if key else set())
    if mode == "id":
        assert attributes["user.id"] == str(user.pk)


def test_the_middleware_does_not_load_the_session_or_vary_by_cookie(client):
    with override_settings(OTEL={"REQUEST": {"USER": "id"}}):
        response = client.get("/hello/")
    assert "Cookie" not in response.headers.get("Vary", "")


def test_body_sizes_are_measured(client, otel_metrics):
    client.post("/echo/", data=b"x" * 1234, content_type="application/octet-stream")
    sent = otel_metrics.value("http.server.request.body.size", {"http.route": "/echo/"})
    assert (sent.count, sent.sum) == (1, 1234)
    client.get("/hello/")
    answered = otel_metrics.value("http.server.response.body.size", {"http.route": "/hello/"})
    assert (answered.count, answered.sum) == (1, 5)


@pytest.mark.django_db
def test_queries_of_a_request_are_counted(client, otel_metrics):
    client.get("/queries/")
    found = otel_metrics.value("django.request.queries", {"http.route": "/queries/"})
    assert (found.count, found.sum) == (1, 2)


# --- Streaming. ---


def test_a_streamed_response_is_measured_to_its_last_byte(client, otel_spans, otel_metrics):
    response = client.get("/stream/")
    assert not [span for span in otel_spans if span.kind is SpanKind.SERVER]
    body = b"".join(response)
    span = server_span(otel_spans)
    assert (span.end_time - span.start_time) / 1e9 >= 0.15
    found = otel_metrics.value(DURATION, {"http.route": "/stream/"})
    assert found.count == 1
    assert found.sum >= 0.15
    assert otel_metrics.value("http.server.response.body.size", {"http.route": "/stream/"}).sum == len(body)
    for number in range(3):
        assert otel_spans.one(f"chunk {number}").parent.span_id == span.context.span_id


def test_nothing_leaks_out_of_a_stream_between_its_chunks(client, otel_spans):
    chunks = iter(client.get("/stream/"))
    next(chunks)
    assert nothing_is_current()
    list(chunks)


@pytest.mark.django_db
def test_an_abandoned_stream_ends_when_it_is_closed(client, otel_spans):
    response = client.get("/stream/")
    next(iter(response))
    response.close()
    response.close()
    assert server_span(otel_spans).name == "GET /stream/"


def test_an_exception_in_a_stream_is_recorded(client, otel_spans, otel_metrics):
    response = client.get("/stream-boom/")
    with pytest.raises(ValueError, match="in the middle"):
        list(response)
    span = server_span(otel_spans)
    assert span.status.status_code is StatusCode.ERROR
    assert [event.name for event in span.events] == ["exception"]
    assert otel_metrics.value(DURATION, {"http.route": "/stream-boom/", "error.type": "ValueError"}).count == 1


@pytest.mark.django_db
@pytest.mark.parametrize(("method", "size_bytes"), [("get", 10_000), ("head", 0)])
def test_a_files_size_is_measured(client, otel_metrics, method, size_bytes):
    response = getattr(client, method)("/file/")
    list(response)
    response.close()
    found = otel_metrics.value("http.server.response.body.size", {"http.route": "/file/"})
    assert (found.count, found.sum) == (1, size_bytes)


@pytest.mark.django_db
def test_a_file_of_unknown_size_is_measured_as_it_is_sent(rf, otel_metrics):
    class Pipe:
        """It cannot say how long it is."""

        def __init__(self):
            self.left = [b"a" * 3_000, b"b" * 500]

        def read(self, size=-1):
            return self.left.pop(0) if self.left else b""

        def close(self):
            pass

    response = OTelMiddleware(lambda request: FileResponse(Pipe()))(rf.get("/pipe/"))
    assert len(b"".join(response)) == 3_500
    response.close()
    assert otel_metrics.value("http.server.response.body.size").sum == 3_500


class PartsOfItsOwn(HttpResponse):
    def __iter__(self):
        return iter([b"abc", b"de"])


@pytest.mark.django_db
@pytest.mark.parametrize(
    "build",
    [
        lambda: StreamingHttpResponse([b"abc", b"de"]),
        lambda: FileResponse([b"abc", b"de"]),
        PartsOfItsOwn,
        lambda: JsonResponse({}),
    ],
    ids=["stream", "file", "parts", "json"],
)
@pytest.mark.parametrize("status", [199, 204, 304])
def test_an_answer_whose_status_has_no_body_has_no_size(rf, otel_metrics, build, status):
    def view(request):
        response = build()
        response.status_code = status
        return response

    response = OTelMiddleware(view)(rf.get("/"))
    list(response)
    response.close()
    found = otel_metrics.value("http.server.response.body.size")
    assert (found.count, found.sum) == (1, 0)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "build",
    [lambda: StreamingHttpResponse([b"abc", b"de"]), lambda: FileResponse([b"abc", b"de"]), PartsOfItsOwn],
    ids=["stream", "file", "parts"],
)
@pytest.mark.parametrize(("method", "size_bytes"), [("GET", 5), ("HEAD", 0)])
def test_the_answer_to_head_has_no_size(rf, otel_metrics, build, method, size_bytes):
    response = OTelMiddleware(lambda request: build())(rf.generic(method, "/"))
    list(response)
    response.close()
    found = otel_metrics.value("http.server.response.body.size")
    assert (found.count, found.sum) == (1, size_bytes)


@pytest.mark.parametrize(("method", "size_bytes"), [("GET", 5), ("HEAD", 0)])
async def test_the_answer_to_head_has_no_size_where_it_is_streamed_by_async_code(rf, otel_metrics, method, size_bytes):
    async def chunks():
        yield b"abc"
        yield b"de"

    async def view(request):
        return StreamingHttpResponse(chunks())

    response = await OTelMiddleware(view)(rf.generic(method, "/"))
    assert [chunk async for chunk in response] == [b"abc", b"de"]
    found = otel_metrics.value("http.server.response.body.size")
    assert (found.count, found.sum) == (1, size_bytes)


@pytest.mark.django_db
def test_a_file_response_is_not_wrapped_and_ends_when_closed(client, otel_spans):
    response = client.get("/file/")
    assert hasattr(response, "file_to_stream")
    # A server that uses sendfile looks for exactly this iterator.
    assert type(response._iterator).__name__ != "_SyncStream"
    assert not list(otel_spans)
    response.close()
    assert server_span(otel_spans).name == "GET /file/"


# --- Async. ---


async def test_an_async_view_is_measured(async_client, otel_spans, otel_metrics):
    assert (await async_client.get("/async/")).status_code == 200
    span = server_span(otel_spans)
    assert span.name == "GET /async/"
    assert otel_spans.one("async work").parent.span_id == span.context.span_id
    assert otel_metrics.value(DURATION, {"http.route": "/async/"}).count == 1


async def test_a_sync_view_under_asgi_is_measured(async_client, otel_spans):
    await async_client.get("/orders/5/")
    assert otel_spans.one("order.load").parent.span_id == server_span(otel_spans).context.span_id


def test_the_middleware_is_natively_async():
    async def get_response(request):
        raise NotImplementedError

    middleware = OTelMiddleware(get_response)
    assert inspect.iscoroutinefunction(middleware.__acall__)
    from asgiref.sync import iscoroutinefunction

    assert iscoroutinefunction(middleware)


async def test_an_async_stream_is_measured_to_its_last_byte(async_client, otel_spans, otel_metrics):
    response = await async_client.get("/async-stream/")
    assert not [span for span in otel_spans if span.kind is SpanKind.SERVER]
    async for _ in response:
        assert nothing_is_current()
    span = server_span(otel_spans)
    assert (span.end_time - span.start_time) / 1e9 >= 0.15
    assert otel_spans.one("chunk 1").parent.span_id == span.context.span_id
    assert otel_metrics.value(DURATION, {"http.route": "/async-stream/"}).count == 1


async def test_parallel_requests_keep_their_contexts_apart(async_client, otel_spans):
    await asyncio.gather(*(async_client.get("/async/") for _ in range(20)))
    servers = {span.context.span_id: span for span in otel_spans if span.kind is SpanKind.SERVER}
    children = otel_spans.named("async work")
    assert len(servers) == len(children) == 20
    assert {child.parent.span_id for child in children} == set(servers)


def http_scope(path: str) -> dict:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"testserver")],
        "client": ["127.0.0.1", 1],
        "server": ["testserver", 80],
    }


@pytest.mark.parametrize("path", ["/async-slow/", "/async-stream/"])
async def test_a_disconnect_cancels_the_view_and_leaves_nothing_behind(path, otel_spans, otel_metrics):
    """The client goes away in the middle; that is no error of the server."""
    handler = ASGIHandler()
    messages = [{"type": "http.request", "body": b"", "more_body": False}]
    sent = []
    views.WAITING.clear()

    async def receive():
        if messages:
            return messages.pop(0)
        # The view that streams is left while it does, the other one while it waits.
        while not (sent if path == "/async-stream/" else views.WAITING):
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    with contextlib.suppress(asyncio.CancelledError):
        await handler(http_scope(path), receive, send)
    span = server_span(otel_spans)
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in span.attributes
    assert otel_metrics.value(DURATION, {"http.route": path}).count == 1


async def test_a_cancelled_task_leaves_nothing_behind(otel_spans):
    async def get_response(request):
        await asyncio.sleep(30)

    task = asyncio.create_task(OTelMiddleware(get_response)(RequestFactory().get("/hello/")))
    await asyncio.sleep(0.01)
    assert active_requests() == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server_span(otel_spans).status.status_code is StatusCode.UNSET


# --- Off. ---


@pytest.mark.parametrize("otel", [{"ENABLED": False}, {"NO_SUCH_KEY": 1}])
def test_when_off_requests_are_served_and_nothing_is_measured(client, otel_spans, otel_metrics, otel):
    with override_settings(OTEL=otel):
        assert client.get("/orders/5/").status_code == 200
        assert not list(otel_spans)
    assert otel_metrics.value(DURATION).count == 0
    client.get("/hello/")
    assert server_span(otel_spans).name == "GET /hello/"


def test_without_tracing_metrics_still_count(client, otel_spans, otel_metrics):
    with override_settings(OTEL={"PROVIDERS": "none"}):
        client.get("/hello/")
    assert not list(otel_spans)
    assert otel_metrics.value(DURATION, {"http.route": "/hello/"}).count == 1


def test_the_request_path_makes_no_query(client, django_assert_num_queries, db):
    with django_assert_num_queries(0):
        client.get("/hello/")


def test_a_fault_of_ours_does_not_break_the_request(client, monkeypatch):
    from django_otel.metrics.series import RequestSeries

    def broken(*args, **kwargs):
        raise RuntimeError("ours")

    monkeypatch.setattr("django_otel.requests.observer.attach", broken)
    assert client.get("/hello/").status_code == 200
    monkeypatch.undo()
    monkeypatch.setattr(RequestSeries, "finish", broken)
    assert client.get("/hello/").status_code == 200


def test_the_current_context_is_the_same_object_after_a_request(client):
    before = context.get_current()
    client.get("/hello/")
    assert context.get_current() is before
