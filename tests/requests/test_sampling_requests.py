"""Rules, limits and trust on real requests, through Django's handlers in process."""

from __future__ import annotations

import pytest
from django.http import HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import include, path
from opentelemetry import trace
from opentelemetry.trace import SpanKind

import django_otel
from django_otel import runtime
from tests import views
from tests.app.models import Item

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
DECISIONS = "django_otel.sampling.decisions"


def nested(request):
    with django_otel.span("inside"):
        Item.objects.count()
    return HttpResponse(django_otel.current_trace_id() or "")


async def async_nested(request, pk):
    with django_otel.span("inside"):
        return HttpResponse(trace.get_current_span().get_span_context().trace_flags.sampled)


def asks_early(get_response):
    """A middleware that needs the decision before Django has found the route."""

    def middleware(request):
        with django_otel.span("early"):
            pass
        return get_response(request)

    return middleware


urlpatterns = [
    path("orders/<int:pk>/", views.order),
    path("health/", nested),
    path("shop/", include([path("cart/<slug:name>/", views.hello), path("pay/", nested)])),
    path("async/<int:pk>/", async_nested),
    path("boom/<int:pk>/", views.boom),
]

pytestmark = [pytest.mark.urls(__name__), pytest.mark.django_db]


@pytest.fixture
def client():
    return Client(raise_request_exception=False)


def sampling(*rules, ratio=0.0, **more):
    return override_settings(OTEL={"SAMPLING": {"RATIO": ratio, "RULES": list(rules), **more}})


def roots(spans):
    return [span for span in spans if span.kind is SpanKind.SERVER]


def test_a_route_rule_decides_for_the_pattern_that_django_finds(client, otel_spans, otel_metrics):
    with sampling({"route": "/orders/<int:pk>/", "ratio": 1.0}):
        client.get("/orders/5/")
        client.get("/shop/cart/x/")
        client.get("/nowhere/")

    found = list(otel_spans)
    assert [span.name for span in found] == ["order.load", "GET /orders/<int:pk>/"]
    assert found[0].parent.span_id == found[1].context.span_id
    assert found[1].attributes["sampling.reason"] == "rule"
    assert found[1].attributes["sampling.rule"] == "/orders/<int:pk>/"
    assert found[1].start_time <= found[0].start_time
    rule = {"sampling.rule": "/orders/<int:pk>/", "sampling.decision": "recorded", "sampling.reason": "rule"}
    assert otel_metrics.value(DECISIONS, rule) == 1
    assert otel_metrics.value(DECISIONS, {"sampling.decision": "dropped", "sampling.reason": "ratio"}) == 2
    assert otel_metrics.value("http.server.request.duration").count == 3


async def test_a_route_rule_decides_under_asgi(otel_spans):
    with sampling({"route": "/async/<int:pk>/", "ratio": 1.0}):
        answer = await AsyncClient().get("/async/7/")

    assert answer.content == b"True"
    assert {span.name for span in otel_spans} == {"inside", "GET /async/<int:pk>/"}


def test_a_route_rule_also_says_no(client, otel_spans):
    with sampling({"route": "/orders/*", "ratio": 0.0}, ratio=1.0):
        client.get("/orders/5/")
        client.get("/shop/pay/")

    assert [span.name for span in roots(otel_spans)] == ["GET /shop/pay/"]


def test_what_needs_the_decision_before_the_route_is_known_decides_by_method_and_path(client, otel_spans, settings):
    """The route rule is too late then; a path rule or the ratio applies, for the whole request."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.asks_early"]
    with sampling({"route": "/orders/<int:pk>/", "ratio": 1.0}, {"path": "/shop/*", "ratio": 1.0}):
        client.get("/orders/5/")
        assert list(otel_spans) == []
        client.get("/shop/pay/")

    assert {span.name for span in otel_spans} >= {"early", "GET /shop/pay/"}


def test_a_path_rule_before_a_route_rule_is_decided_at_once(client, otel_spans):
    with sampling({"path": "/orders/*", "ratio": 1.0}, {"route": "/orders/<int:pk>/", "ratio": 0.0}):
        client.get("/orders/5/")

    assert roots(otel_spans)[0].attributes["sampling.rule"] == "/orders/*"


def test_a_rule_by_method_leaves_the_other_methods_alone(client, otel_spans):
    with sampling({"method": "POST", "ratio": 1.0}):
        client.get("/orders/5/")
        client.post("/orders/5/")

    assert [span.name for span in roots(otel_spans)] == ["POST /orders/<int:pk>/"]


def test_an_error_in_the_view_is_on_a_span_that_was_decided_late(client, otel_spans):
    with sampling({"route": "/boom/*", "ratio": 1.0}):
        assert client.get("/boom/1/").status_code == 500

    span = roots(otel_spans)[0]
    assert span.name == "GET /boom/<int:pk>/"
    assert not span.status.is_ok
    assert [event.name for event in span.events] == ["exception"]


def test_a_caller_that_is_trusted_comes_before_the_rules(client, otel_spans):
    with sampling({"path": "*", "ratio": 0.0}, {"route": "*", "ratio": 0.0}):
        client.get("/orders/5/", headers={"traceparent": TRACEPARENT})

    span = roots(otel_spans)[0]
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert span.attributes["sampling.reason"] == "parent"


@pytest.mark.parametrize("rule", [[], [{"path": "*", "ratio": 0.0}], [{"route": "*", "ratio": 0.0}]])
def test_a_strangers_flag_switches_nothing_on_at_ratio_0(client, otel_spans, rule):
    otel = {
        "SAMPLING": {"RATIO": 0.0, "RULES": rule},
        "PROPAGATION": {"TRUST_INBOUND": ["10.0.0.0/8"]},
    }
    with override_settings(OTEL=otel):
        client.get("/orders/5/", headers={"traceparent": TRACEPARENT}, REMOTE_ADDR="203.0.113.7")
        assert list(otel_spans) == []
        client.get("/orders/5/", headers={"traceparent": TRACEPARENT}, REMOTE_ADDR="10.1.2.3")
        assert len(roots(otel_spans)) == 1


def test_a_strangers_trace_is_a_link_and_follows_the_rules(client, otel_spans):
    rules = [{"route": "/orders/<int:pk>/", "ratio": 1.0}]
    otel = {"SAMPLING": {"RATIO": 0.0, "RULES": rules}, "PROPAGATION": {"TRUST_INBOUND": False}}
    with override_settings(OTEL=otel):
        client.get("/orders/5/", headers={"traceparent": TRACEPARENT})

    span = roots(otel_spans)[0]
    assert f"{span.context.trace_id:032x}" != TRACE_ID
    assert [f"{link.context.trace_id:032x}" for link in span.links] == [TRACE_ID]


@pytest.mark.parametrize("async_", [False, True])
async def test_an_excluded_path_stays_excluded_whatever_the_parent_says(otel_spans, otel_metrics, async_):
    """No span of the request, of a query or of our own API inside it; other paths go on."""
    otel = {"REQUEST": {"EXCLUDE": ["/health/", "/async/*"]}, "SAMPLING": {"RULES": [{"path": "*", "ratio": 1.0}]}}
    with override_settings(OTEL=otel):
        if async_:
            await AsyncClient().get("/async/7/", headers={"traceparent": TRACEPARENT})
        else:
            from asgiref.sync import sync_to_async

            await sync_to_async(Client().get)("/health/", headers={"traceparent": TRACEPARENT})
    assert list(otel_spans) == []
    assert otel_metrics.value("http.server.request.duration").count == 0
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_limit_counts_what_it_refuses_and_metrics_count_all(client, otel_spans, otel_metrics):
    with sampling(ratio=1.0, MAX_PER_SECOND=0.01):
        for _ in range(5):
            client.get("/orders/5/")

    assert len(roots(otel_spans)) == 1
    assert otel_metrics.value(DECISIONS, {"sampling.decision": "dropped", "sampling.reason": "rate_limit"}) == 4
    assert otel_metrics.value("http.server.request.duration").count == 5


def test_without_rules_the_decision_is_not_put_off(client, otel_spans):
    """The plain path makes no stand-in span."""
    from django_otel.requests.deferred import DeferredSpan

    seen = []

    def look(request, **_):
        seen.append(type(trace.get_current_span()))
        return HttpResponse()

    from django.urls import path as url

    urlpatterns.append(url("look/", look))
    try:
        with sampling({"path": "/x", "ratio": 1.0}, ratio=1.0):
            client.get("/look/")
        with sampling({"route": "/x", "ratio": 1.0}, ratio=1.0):
            client.get("/look/")
    finally:
        urlpatterns.pop()
    assert seen[0] is not DeferredSpan
    assert seen[1] is DeferredSpan


def test_an_override_in_a_test_is_above_rules_and_limits(client, otel_spans):
    from django_otel.testing import override_sampling

    with sampling({"path": "*", "ratio": 0.0}, MAX_PER_SECOND=0.001), override_sampling(1.0):
        for _ in range(3):
            client.get("/orders/5/")
    assert len(roots(otel_spans)) == 3
    assert runtime.current().sampler.live is None
