"""Attributes and routes of the project on the request metrics, with a limit on their values in every process."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys

import pytest
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client
from django.urls import include, path

import django_otel
from django_otel import runtime
from django_otel.base import guard
from django_otel.config.schema import ConfigError
from django_otel.middleware import get_observer
from django_otel.multiprocess import shared_values
from django_otel.requests.dimensions import Dimensions
from tests import sizes
from tests.services import ROOT, serve

DURATION = "http.server.request.duration"
TENANTS = {"REQUEST": {"METRIC_ATTRIBUTES": {"shop.tenant": 3, "beta": 2}}}


def tenant(request, value):
    django_otel.set_metric_attributes(**{"shop.tenant": value, "beta": request.GET.get("beta")})
    return HttpResponse("hello")


async def async_tenant(request, value):
    await asyncio.sleep(0)
    django_otel.set_metric_attributes(**{"shop.tenant": value})
    return HttpResponse("hello")


def stream_tenant(request, value):
    def chunks():
        yield b"one"
        django_otel.set_metric_attributes(**{"shop.tenant": value})
        yield b"two"

    return StreamingHttpResponse(chunks())


def failing_tenant(request, value):
    django_otel.set_metric_attributes(**{"shop.tenant": value})
    raise ValueError("no")


def anything(request, value):
    return HttpResponse(value)


urlpatterns = [
    path("", include("django_otel.urls")),
    path("tenant/<str:value>/", tenant),
    path("async/<str:value>/", async_tenant),
    path("stream/<str:value>/", stream_tenant),
    path("failing/<str:value>/", failing_tenant),
    path("pages/<path:value>", anything),
]
pytestmark = [pytest.mark.urls(__name__)]


def kind_of_page(request, response):
    found = request.path.rpartition("/")[2]
    return {"none": None, "number": 3, "empty": "  ", "query": request.GET.get("kind")}.get(found, f"page: {found}")


def fail(request, response):
    raise LookupError("no page")


def values(otel_metrics, name=DURATION):
    return sorted((str(found["http.route"]), str(found.get("shop.tenant", ""))) for found in otel_metrics.series(name))


def test_attributes_are_on_every_request_metric(settings, otel_metrics):
    settings.OTEL = TENANTS
    Client().get("/tenant/acme/?beta=yes")
    Client().get("/tenant/acme/")
    wanted = {"shop.tenant": "acme", "beta": "yes", "http.route": "/tenant/<str:value>/"}
    assert otel_metrics.value(DURATION, wanted).count == 1
    assert otel_metrics.value("http.server.response.body.size", wanted).count == 1
    assert otel_metrics.value("django.request.queries", wanted).count == 1
    assert otel_metrics.value(DURATION, {"shop.tenant": "acme"}).count == 2
    with pytest.raises(ValueError, match="no"):
        Client().get("/failing/acme/")
    assert otel_metrics.value("django.request.exceptions", {"shop.tenant": "acme"}) == 1
    assert otel_metrics.value("http.server.active_requests") == 0


@pytest.mark.parametrize("kind", ["stream", "async"])
def test_attributes_are_found_in_streams_and_coroutines(settings, otel_metrics, kind):
    settings.OTEL = TENANTS
    if kind == "async":
        asyncio.run(AsyncClient().get("/async/acme/"))
    else:
        b"".join(Client().get("/stream/acme/").streaming_content)
    assert values(otel_metrics) == [(f"/{kind}/<str:value>/", "acme")]


def test_values_beyond_the_limit_are_counted_as_one(settings, otel_metrics):
    settings.OTEL = TENANTS
    for value in ("a", "b", "a", "c", "d", "e", "a", "d"):
        Client().get(f"/tenant/{value}/")
    counts = {value: otel_metrics.value(DURATION, {"shop.tenant": value}).count for value in ("a", "b", "c", "_other")}
    assert counts == {"a": 3, "b": 1, "c": 1, "_other": 3}
    assert otel_metrics.value("django_otel.cardinality.overflow", {"django_otel.reason": "metric_attribute"}) == 3


@pytest.mark.parametrize("value", [None, "", 7, True, 1.5, object(), ["x"], b"\xff", "x" * 5000, "\ud800"])
def test_any_value_is_harmless(settings, otel_metrics, value):
    settings.OTEL = TENANTS

    def view(request):
        django_otel.set_metric_attributes(beta=value)
        return HttpResponse("hello")

    urlpatterns.append(path("any/", view))
    try:
        assert Client().get("/any/").content == b"hello"
    finally:
        urlpatterns.pop()
    (found,) = otel_metrics.series(DURATION)
    assert len(str(found.get("beta", ""))) <= 256
    assert ("beta" in found) is (value not in (None, ""))


class Nameless:
    """As an object whose text needs a connection that is gone."""

    def __str__(self):
        raise LookupError("no name")


def test_a_value_without_a_text_leaves_the_others(settings, otel_metrics):
    settings.OTEL = TENANTS

    def view(request):
        django_otel.set_metric_attributes(**{"shop.tenant": Nameless(), "beta": "on"})
        return HttpResponse("hello")

    urlpatterns.append(path("any/", view))
    try:
        assert Client().get("/any/").content == b"hello"
    finally:
        urlpatterns.pop()
    (found,) = otel_metrics.series(DURATION)
    assert found["beta"] == "on" and "shop.tenant" not in found
    assert guard.fault_counts() == {"set_metric_attributes()": 1}
    guard.reset()


def test_unknown_names_are_ignored_and_said_once(settings, otel_metrics, caplog):
    settings.OTEL = TENANTS
    guard.reset()

    def view(request):
        django_otel.set_metric_attributes(**{"plan": "gold", "http.route": "/mine/", "beta": "yes"})
        return HttpResponse("hello")

    urlpatterns.append(path("unknown/", view))
    try:
        for _ in range(2):
            Client().get("/unknown/")
    finally:
        urlpatterns.pop()
    (found,) = otel_metrics.series(DURATION)
    assert "plan" not in found and found["beta"] == "yes" and found["http.route"] == "/unknown/"
    assert len([record for record in caplog.records if "'plan'" in record.getMessage()]) == 1


def test_outside_of_a_request_nothing_happens(settings, caplog):
    """Nothing is raised, and not even a wrong name is logged."""
    settings.OTEL = TENANTS
    django_otel.set_metric_attributes(beta="x")
    assert caplog.text == "" and guard.fault_counts() == {}


@pytest.mark.parametrize(
    ("page", "route"),
    [
        ("home", "page: home"),
        ("none", "/pages/<path:value>"),
        ("empty", "/pages/<path:value>"),
        ("number", "/pages/<path:value>"),
    ],
)
def test_the_project_names_the_route(settings, otel_metrics, otel_spans, page, route):
    settings.OTEL = {"REQUEST": {"ROUTE": f"{__name__}.kind_of_page"}}
    assert Client().get(f"/pages/{page}").status_code == 200
    assert values(otel_metrics) == [(route, "")]
    span = otel_spans.one(f"GET {route}")
    assert span.attributes["http.route"] == route


def test_a_route_function_that_fails_keeps_djangos_route(settings, otel_metrics, otel_spans):
    settings.OTEL = {"REQUEST": {"ROUTE": f"{__name__}.fail"}}
    assert Client().get("/pages/x").status_code == 200
    assert values(otel_metrics) == [("/pages/<path:value>", "")]
    assert otel_spans.one("GET /pages/<path:value>")


def test_routes_without_end_leave_room_for_the_others(settings, otel_metrics):
    settings.OTEL = {"REQUEST": {"ROUTE": f"{__name__}.kind_of_page"}}
    limits = get_observer().dimensions.limits
    assert limits == {"http.route": 500}
    limits["http.route"] = 5
    for number in range(12):
        Client().get(f"/pages/p{number}")
    assert values(otel_metrics) == [("_other", ""), *sorted((f"page: p{number}", "") for number in range(5))]
    assert otel_metrics.value(DURATION).count == 12


def test_off_there_is_nothing_to_decide(settings):
    settings.OTEL = {}
    assert get_observer().dimensions is None


@sizes.each(
    ("value", "part"),
    [
        ({"http.route": 5}, "already"), ({"http_route": 5}, "already"), ({"le": 5}, "already"),
        ({"error.type": 5}, "already"), ({"a.b": 5, "a_b": 5}, "same label"), ({"tenant": 0}, "limit of 'tenant'"),
        ({"tenant": True}, "limit of 'tenant'"), ({"tenant": 10**9}, "limit of 'tenant'"), ({"": 5}, "not the name"),
        ({"a b": 5}, "not the name"), ({3: 5}, "not the name"), (["tenant"], ""), ("tenant", ""),
    ],
)  # fmt: skip
def test_names_and_limits_are_checked(value, part):
    from django_otel.config.parse import parse

    with pytest.raises(ConfigError) as caught:
        parse({"REQUEST": {"METRIC_ATTRIBUTES": value}}, {}, "shop", lambda name: True)
    (problem,) = caught.value.problems
    assert problem.id == "django_otel.E002" and "METRIC_ATTRIBUTES" in problem.message
    assert part in problem.message + problem.hint


# --- Over several processes. ---


def test_processes_share_one_limit(tmp_path):
    program = (
        "import sys; from pathlib import Path; from django_otel.multiprocess.shared_values import admit\n"
        "for number in range(40): admit(Path(sys.argv[1]), 'tenant', [f'{sys.argv[2]}-{number}'], 25)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(number)], cwd=ROOT) for number in range(3)
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert len(shared_values.admit(tmp_path, "tenant", ["late"], 25)) == 25


def test_a_damaged_file_and_a_folder_that_is_gone(tmp_path):
    known = shared_values.admit(tmp_path, "tenant", ["a", "a\nb", "ü"], 5)
    assert known == {"a", "a\nb", "ü"}
    (file,) = tmp_path.iterdir()
    with file.open("ab") as out:
        out.write(b'{}\nnull\n"torn')
    assert shared_values.admit(tmp_path, "tenant", ["c"], 5) == {"a", "a\nb", "ü", "c"}
    found = Dimensions(runtime.store, {"tenant": 2}, lambda: tmp_path / "gone")
    assert [found.label("tenant", value) for value in "abca"] == ["a", "b", "_other", "a"]
    os.unlink(file)
    file.symlink_to("/etc/passwd")
    found = Dimensions(runtime.store, {"tenant": 1}, lambda: tmp_path)
    assert [found.label("tenant", value) for value in "ab"] == ["a", "_other"]


def test_a_process_that_comes_to_another_folder_brings_its_values(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    shared_values.admit(folders[1], "tenant", ["x"], 3)
    place = [folders[0]]
    found = Dimensions(runtime.store, {"tenant": 3}, lambda: place[0])
    assert [found.label("tenant", value) for value in "abcd"] == ["a", "b", "c", "_other"]
    place[0] = folders[1]
    assert found.label("tenant", "d") == "_other"
    assert shared_values.admit(folders[1], "tenant", [], 3) == {"x", "a", "b"}


def test_workers_show_no_more_values_than_the_limit():
    otel = {
        "METRICS_VIEW": {"TOKEN": "s3cret"},
        "REQUEST": {"METRIC_ATTRIBUTES": {"shop.tenant": 5}},
    }
    with serve("gunicorn", otel, workers=3, TEST_ROOT_URLCONF=__name__) as server:
        for number in range(60):
            assert server.get(f"/tenant/t{number % 20}/")[0] == 200
        page = server.get("/metrics", {"Authorization": "Bearer s3cret"})[2].decode()
    lines = re.findall(r'(?m)^http_server_request_duration_seconds_count\{.*shop_tenant="([^"]*)".*\} (\d+)', page)
    counted = {}
    for name, number in lines:
        counted[name] = counted.get(name, 0) + int(number)
    assert len(counted) == 6 and "_other" in counted
    assert sum(counted.values()) == 60
