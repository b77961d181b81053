"""The shop's pages and its API."""

from __future__ import annotations

import asyncio
import csv
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from typing import Any

from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.db.models import QuerySet, Sum
from django.forms import ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_http_methods, require_POST

import django_otel
from example_project.shop import catalogue, orders
from example_project.shop.forms import CardForm, CustomerForm, OrderForm, parse_lines
from example_project.shop.models import Order, OrderLine, Product

CARRIERS = (
    ("Slow Boat", "4.90", 5), ("Postal Pigeon", "6.50", 3), ("Mail Coach", "8.20", 2), ("Night Train", "11.00", 1),
)  # fmt: skip


class WarehouseDoorStuckError(Exception):
    """Raised by the page whose purpose is to fail."""


@require_GET
def product_list(request: HttpRequest) -> HttpResponse:
    return render(request, "shop/product_list.html", {"products": catalogue.products()})


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def order_new(request: HttpRequest) -> HttpResponse:
    """The order form; a good one is processed at once and answered by the order's page."""
    # Not from the cache: the form must know what is in stock now.
    products = list(Product.objects.all())
    if request.method != "POST":
        chosen = {f"quantity-{request.GET['product']}": 1} if "product" in request.GET else {}
        return render(request, "shop/order_form.html", {"form": OrderForm(products, initial=chosen)})
    form = OrderForm(products, request.POST)
    if not form.is_valid():
        return render(request, "shop/order_form.html", {"form": form}, status=HTTPStatus.UNPROCESSABLE_ENTITY)
    order = orders.place_order(
        customer_name=form.cleaned_data["customer_name"],
        email=form.cleaned_data["email"],
        lines=form.lines(),
        channel=Order.Channel.WEB,
    )
    orders.process_order(order, form.cleaned_data["card"])
    return redirect(order)


@require_GET
@never_cache
def statement(request: HttpRequest) -> HttpResponse:
    """What was sold last, line by line. Slow on purpose: each line's product is a query of its own (N+1)."""
    lines = [f"{line.quantity} x {line.product.name}" for line in OrderLine.objects.order_by("-pk")[:25]]
    return HttpResponse("\n".join(lines), content_type="text/plain; charset=utf-8")


@require_GET
@never_cache
def order_page(request: HttpRequest, key: uuid.UUID) -> HttpResponse:
    order = get_object_or_404(Order.objects.prefetch_related("lines__product", "payments"), key=key)
    return render(request, "shop/order.html", {"order": order, "form": CardForm()})


@require_POST
def order_pay(request: HttpRequest, key: uuid.UUID) -> HttpResponseRedirect:
    """Pay an order whose first card did not work."""
    order = get_object_or_404(Order, key=key)
    form = CardForm(request.POST)
    if form.is_valid():
        orders.retry_payment(order, form.cleaned_data["card"])
    return HttpResponseRedirect(order.get_absolute_url())


@require_GET
def api_products(request: HttpRequest) -> JsonResponse:
    """List the products, `?limit=` of them. What is no number there is not expected: a second way to fail."""
    limit = int(request.GET.get("limit", 100))
    return JsonResponse(
        {
            "products": [
                {"sku": product.sku, "name": product.name, "price": str(product.price), "stock": product.stock}
                for product in catalogue.products()[:limit]
            ]
        }
    )


@csrf_exempt  # Called by programs, which hold no cookies.
@require_POST
def api_orders(request: HttpRequest) -> JsonResponse:
    """Place and pay an order.

    Takes `{"customer_name": "...", "email": "...", "card": "tok_visa", "lines": [{"sku": "sencha", "quantity": 2}]}`.
    Answers 201 when it is paid, 402 when it is placed but not paid, 409 when
    something is out of stock, 400 with `errors` for a request that makes no sense.
    """
    try:
        data: Any = json.loads(request.body)
    except ValueError:
        return _bad_request({"body": ["The body is not JSON."]})
    if not isinstance(data, dict):
        return _bad_request({"body": ["Expected a JSON object."]})
    # What is not text is as good as missing.
    texts = {
        name: data[name] if isinstance(data[name], str) else "" for name in CustomerForm.base_fields if name in data
    }
    form = CustomerForm({"card": "tok_visa", **texts})
    errors: dict[str, Any] = {} if form.is_valid() else {name: list(problems) for name, problems in form.errors.items()}
    try:
        lines = parse_lines(data)
    except ValidationError as problem:
        errors["lines"] = problem.messages
    if errors:
        return _bad_request(errors)
    order = orders.place_order(
        customer_name=form.cleaned_data["customer_name"],
        email=form.cleaned_data["email"],
        lines=lines,
        channel=Order.Channel.API,
    )
    orders.process_order(order, form.cleaned_data["card"])
    status = {
        Order.Status.PAID: HTTPStatus.CREATED,
        Order.Status.OUT_OF_STOCK: HTTPStatus.CONFLICT,
        Order.Status.PAYMENT_FAILED: HTTPStatus.PAYMENT_REQUIRED,
    }[Order.Status(order.status)]
    return JsonResponse(
        {
            "order": str(order.key),
            "status": order.status,
            "total": str(order.total),
            "url": order.get_absolute_url(),
            "trace_id": django_otel.current_trace_id(),
        },
        status=status,
    )


def _bad_request(errors: dict[str, Any]) -> JsonResponse:
    return JsonResponse({"errors": errors}, status=HTTPStatus.BAD_REQUEST)


@require_GET
@never_cache
def slow(request: HttpRequest) -> HttpResponse:
    """Counts the warehouse shelf by shelf: a page that takes most of a second."""
    shelves = []
    for kind in Product.Kind:
        with django_otel.timed("warehouse.count", shelf=kind.value):
            time.sleep(0.2)
            pieces = Product.objects.filter(kind=kind).aggregate(pieces=Sum("stock"))["pieces"] or 0
        shelves.append({"kind": kind.label, "pieces": pieces})
    return render(request, "shop/slow.html", {"shelves": shelves})


@require_GET
def error(request: HttpRequest) -> HttpResponse:
    """Fails, so that a failure can be looked at."""
    raise WarehouseDoorStuckError("The warehouse door is stuck.")


@require_GET
async def delivery(request: HttpRequest) -> HttpResponse:
    """Asks all carriers at the same time, natively async; release 1.1.0 one after the other."""
    waiting = await Order.objects.filter(status=Order.Status.PAID).acount()
    if settings.RELEASE == "1.1.0":
        quotes = [await _quote(*carrier) for carrier in CARRIERS]
    else:
        quotes = await asyncio.gather(*(_quote(*carrier) for carrier in CARRIERS))
    return render(request, "shop/delivery.html", {"quotes": quotes, "waiting": waiting})


async def _quote(name: str, price: str, days: int) -> dict[str, Any]:
    with django_otel.span("carrier.quote", **{"carrier.name": name}):
        # Long enough for the two releases to differ on a busy machine too.
        await asyncio.sleep(random.uniform(0.15, 0.35))
    return {"carrier": name, "price": price, "days": days}


class _Line:
    """The least of a file that csv needs: gives back what is written."""

    def write(self, text: str) -> str:
        return text


@require_GET
@never_cache
def sales_csv(request: HttpRequest) -> StreamingHttpResponse:
    """All orders, without who placed them, row by row as they come from the database."""
    return StreamingHttpResponse(
        # Under ASGI Django would collect a plain iterator whole before it sends anything.
        _sales_rows_async() if isinstance(request, ASGIRequest) else _sales_rows(),
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": 'attachment; filename="sales.csv"'},
    )


_SALES_HEADER = ("order", "placed at", "channel", "status", "pieces", "total in EUR")


def _sales_rows() -> Iterator[str]:
    writer = csv.writer(_Line())
    yield writer.writerow(_SALES_HEADER)
    for order in _sales().iterator(chunk_size=200):
        yield writer.writerow(_sales_row(order))


async def _sales_rows_async() -> AsyncIterator[str]:
    writer = csv.writer(_Line())
    yield writer.writerow(_SALES_HEADER)
    async for order in _sales().aiterator(chunk_size=200):
        yield writer.writerow(_sales_row(order))


def _sales() -> QuerySet[Order]:
    return Order.objects.annotate(pieces=Sum("lines__quantity")).order_by("pk")


def _sales_row(order: Any) -> tuple[object, ...]:
    placed_at = order.created_at.isoformat()
    return (order.pk, placed_at, order.channel, order.status, order.pieces or 0, order.total)


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return render(request, "shop/not_found.html", status=HTTPStatus.NOT_FOUND)


def server_error(request: HttpRequest) -> HttpResponse:
    return render(request, "shop/server_error.html", status=HTTPStatus.INTERNAL_SERVER_ERROR)
