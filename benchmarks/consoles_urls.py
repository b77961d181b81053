"""The views that `benchmarks/consoles.py` drives, and the addresses of the measured consoles."""

from __future__ import annotations

import sys
from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import include, path

from benchmarks.consoles import SUBJECTS
from benchmarks.peers.shop.models import Product


def json_view(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"status": "ok", "items": [1, 2, 3]})


def page(request: HttpRequest) -> HttpResponse:
    products = [Product.objects.get(pk=number + 1) for number in range(10)]
    return render(request, "products.html", {"title": "products", "products": products})


urlpatterns: list[Any] = [
    path("json/", json_view),
    path("page/", page),
    path("admin/", admin.site.urls),
    *(path(prefix, include(module)) for prefix, module in SUBJECTS[sys.argv[-1]]().urls()),
]
