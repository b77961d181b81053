"""The project that is measured: URLs and views, the same for every peer."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

_PRODUCTS = [{"name": f"Product {number}", "price": number * 1.25} for number in range(10)]


def json_view(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"status": "ok", "items": [1, 2, 3]})


async def async_view(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"status": "ok", "items": [1, 2, 3]})


def queries(request: HttpRequest, alias: str, count: int) -> JsonResponse:
    from benchmarks.peers.shop.models import Product

    names = [Product.objects.using(alias).get(pk=number + 1).name for number in range(count)]
    return JsonResponse({"names": names})


def template(request: HttpRequest) -> HttpResponse:
    from django.shortcuts import render

    return render(request, "products.html", {"title": "products", "products": _PRODUCTS})


urlpatterns = [
    path("json/", json_view),
    path("async/", async_view),
    path("queries/<slug:alias>/<int:count>/", queries),
    path("template/", template),
]
