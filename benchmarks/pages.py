"""The views that `benchmarks/instructions.py` drives: small, so that what is added to them can be seen."""

from __future__ import annotations

from django.core.cache import cache
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import path


def json_view(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"status": "ok", "items": [1, 2, 3]})


def queries(request: HttpRequest, count: int) -> JsonResponse:
    with connection.cursor() as cursor:
        for number in range(count):
            cursor.execute("SELECT %s AS number WHERE 1 = 1", [number])
            cursor.fetchone()
    return JsonResponse({"queries": count})


def transactions(request: HttpRequest, count: int) -> JsonResponse:
    for _ in range(count):
        with transaction.atomic():
            pass
    return JsonResponse({"transactions": count})


def cached(request: HttpRequest, count: int) -> JsonResponse:
    for _ in range(count):
        cache.get("nothing")
    return JsonResponse({"operations": count})


def measured(request: HttpRequest) -> JsonResponse:
    import django_otel

    django_otel.set_metric_attributes(tenant="a")
    return JsonResponse({"status": "ok", "items": [1, 2, 3]})


def template(request: HttpRequest) -> HttpResponse:
    return render(request, "page.html", {"numbers": range(10), "title": "a title"})


async def async_view(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"status": "ok", "items": [1, 2, 3]})


urlpatterns = [
    path("json/", json_view),
    path("queries/<int:count>/", queries),
    path("template/", template),
    path("transactions/<int:count>/", transactions),
    path("cached/<int:count>/", cached),
    path("async/", async_view),
    path("measured/", measured),
]
