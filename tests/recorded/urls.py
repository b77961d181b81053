"""Addresses of the shop, and those that cause a fault."""

import contextlib
import time

from django.contrib import admin
from django.core.cache import caches
from django.db import DatabaseError, connection, connections
from django.http import HttpRequest, HttpResponse
from django.urls import include, path

from example_project.shop import tasks, threads
from example_project.shop.models import Order, OrderLine, Product


def unavailable(request: HttpRequest) -> HttpResponse:
    """Fail as a view does that knows why."""
    return HttpResponse("closed", status=503 if "fail" in request.GET else 200)


def warehouse(request: HttpRequest) -> HttpResponse:
    """Take as many seconds as the address says."""
    time.sleep(float(request.GET["seconds"]))
    return HttpResponse("counted")


def compute(request: HttpRequest) -> HttpResponse:
    """Use the processor for as many seconds as the address says."""
    until_s = time.thread_time() + float(request.GET["seconds"])
    while time.thread_time() < until_s:
        sum(range(100_000))
    return HttpResponse("computed")


def wrong_statement(request: HttpRequest) -> HttpResponse:
    with contextlib.suppress(DatabaseError), connection.cursor() as cursor:
        cursor.execute("SELECT * FROM shop_no_such_table")
    return HttpResponse("caught")


def database_gone(request: HttpRequest) -> HttpResponse:
    with contextlib.suppress(DatabaseError):
        connections["gone"].ensure_connection()
    return HttpResponse("caught")


def cache_gone(request: HttpRequest) -> HttpResponse:
    with contextlib.suppress(OSError, Exception):
        caches["gone"].get("key")
    return HttpResponse("caught")


def order(request: HttpRequest) -> HttpResponse:
    """Place an order with a few lines, whose invoice is sent by a task."""
    placed = Order.objects.create(customer_name="Ada", email=request.GET["email"])
    for product in Product.objects.all()[:5]:
        OrderLine.objects.create(order=placed, product=product, quantity=1, unit_price=product.price)
    tasks.send_invoice_later(placed)
    return HttpResponse("placed")


def occupy(request: HttpRequest) -> HttpResponse:
    """Keep a thread that runs tasks from doing so, for as many seconds as the address says."""
    threads._threads().submit(time.sleep, float(request.GET["seconds"]))
    return HttpResponse("occupied")


urlpatterns = [
    path("", include("django_otel.urls")),
    path("", include("example_project.shop.urls")),
    path("admin/", admin.site.urls),
    path("unavailable/", unavailable),
    path("warehouse/", warehouse),
    path("compute/", compute),
    path("wrong-statement/", wrong_statement),
    path("database-gone/", database_gone),
    path("cache-gone/", cache_gone),
    path("order-now/", order),
    path("occupy/", occupy),
]

handler404 = "example_project.shop.views.page_not_found"
handler500 = "example_project.shop.views.server_error"
