"""`sample(ratio)`: views with a ratio of their own."""

from __future__ import annotations

import pytest
from django.http import HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from opentelemetry.trace import SpanKind

from django_otel import runtime, sample
from tests import views


@sample(1.0)
def always(request):
    return HttpResponse()


@sample(0.0)
def never(request):
    return HttpResponse()


@sample(1.0)
async def always_async(request):
    return HttpResponse()


@method_decorator(sample(1.0), name="dispatch")
class Always(View):
    def get(self, request):
        return HttpResponse()


def twice(request, *, page=1):
    return HttpResponse(str(page))


async def twice_async(request):
    return HttpResponse()


urlpatterns = [
    path("twice/", twice),
    path("twice/always/", sample(1.0)(twice)),
    path("twice/never/", sample(0.0)(twice)),
    path("twice/async/", sample(1.0)(twice_async)),
    path("twice/async/plain/", twice_async),
    path("twice/class/", sample(1.0)(Always.as_view())),
    path("always/", always),
    path("never/", never),
    path("async/", always_async),
    path("class/", Always.as_view()),
    path("hello/", views.hello),
]
pytestmark = pytest.mark.urls(__name__)
# That this module was imported must not change how other tests' requests are decided.
runtime.current().sampler._expects_views = False
runtime.current().sampler.rebase(runtime.current().sampler.base)


@pytest.fixture(autouse=True)
def views_are_expected():
    """As when they were imported; other tests are left as they were."""
    sampler = runtime.current().sampler
    before = sampler._expects_views
    sampler.expect_views()
    yield
    sampler._expects_views = before
    sampler.rebase(sampler.base)


def sampling(**values):
    return override_settings(OTEL={"SAMPLING": values})


def names(spans):
    return [span.name for span in spans if span.kind is SpanKind.SERVER]


def test_a_view_has_its_own_ratio_and_the_others_that_of_the_settings(otel_spans):
    with sampling(RATIO=0.0):
        for address in ("/always/", "/never/", "/class/", "/hello/", "/nowhere/"):
            Client().get(address)
    assert names(otel_spans) == ["GET /always/", "GET /class/"]
    assert {span.attributes["sampling.reason"] for span in otel_spans} == {"view"}


def test_one_view_has_a_ratio_at_each_of_its_addresses(otel_spans):
    with sampling(RATIO=0.0):
        for address in ("always", "never", "", "async", "async/plain", "class"):
            response = Client().get(f"/twice/{address}/".replace("//", "/"))
            assert response.status_code == 200
    assert names(otel_spans) == ["GET /twice/always/", "GET /twice/async/", "GET /twice/class/"]
    views_named = [span.attributes["django.view"].rpartition(".")[2] for span in otel_spans]
    assert views_named == ["twice", "twice_async", "Always"]


def test_it_also_says_no(otel_spans):
    with sampling(RATIO=1.0):
        Client().get("/never/")
        Client().get("/hello/")
    assert names(otel_spans) == ["GET /hello/"]


async def test_async_views_too(otel_spans):
    with sampling(RATIO=0.0):
        await AsyncClient().get("/async/")
    assert names(otel_spans) == ["GET /async/"]


@pytest.mark.parametrize("rule", [{"path": "/always/", "ratio": 0.0}, {"route": "/always/", "ratio": 0.0}])
def test_a_rule_comes_first(otel_spans, rule):
    """The operator's word counts more than the code's."""
    with sampling(RATIO=0.0, RULES=[rule]):
        Client().get("/always/")
    assert names(otel_spans) == []


def test_a_ratio_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"expected a number from 0\.0 to 1\.0"):
        sample(25)
