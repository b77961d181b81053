"""What visitors see."""

from __future__ import annotations

import csv
import io
import itertools
import re
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.checks import run_checks
from django.core.management import call_command
from django.db import connections
from django.test import AsyncClient, Client
from opentelemetry.trace import StatusCode

from example_project.shop.models import Order, OrderLine, Payment, Product

pytestmark = pytest.mark.django_db

CUSTOMER = {"customer_name": "Ada", "email": "ada@example.com", "card": "tok_visa"}


def test_the_front_page_lists_every_product(client: Client) -> None:
    page = client.get("/").content.decode()
    for product in Product.objects.all():
        assert product.name in page
    assert Product.objects.count() == 9


def test_the_product_list_comes_from_the_cache_the_second_time(client: Client, django_assert_num_queries) -> None:
    client.get("/")
    with django_assert_num_queries(0):
        client.get("/")


def test_the_trace_shows_the_cache_and_the_transactions_of_an_order(client: Client, gateway: str, otel_spans) -> None:
    client.get("/")
    assert [found.attributes["django.cache.outcome"] for found in otel_spans.named("cache get")] == ["miss"]
    client.post("/order/", {**CUSTOMER, "quantity-sencha": "1"})
    outcomes = [found.attributes["django.transaction.outcome"] for found in otel_spans.named("transaction default")]
    assert outcomes and set(outcomes) == {"committed"}


def test_templates_and_the_time_budget_of_a_page(client: Client, otel_spans, otel_metrics) -> None:
    client.get("/")
    attributes = otel_spans.one("GET /").attributes
    layers = ("database", "cache", "template", "view", "middleware")
    assert all(attributes[f"django.layer.{layer}.duration"] > 0 for layer in layers)
    assert otel_metrics.value("django.template.duration", {"django.template.name": "shop/product_list.html"}).count == 1


def test_what_is_sold_out_cannot_be_ordered(client: Client) -> None:
    assert "product=moon-cup" not in client.get("/").content.decode()
    page = client.get("/order/").content.decode()
    assert re.search(r'<input[^>]*name="quantity-moon-cup"[^>]*disabled', page)
    client.post("/order/", {**CUSTOMER, "quantity-moon-cup": "1"})
    assert not Order.objects.exists()


def test_an_order_is_paid_and_shown(client: Client, gateway: str) -> None:
    stock = Product.objects.get(sku="sencha").stock
    answer = client.post("/order/", {**CUSTOMER, "quantity-sencha": "2", "quantity-clay-cup": "1"})
    order = Order.objects.get()
    assert answer.status_code == 302
    assert answer.url == f"/orders/{order.key}/"
    assert (order.status, str(order.total), order.channel) == ("paid", "36.60", "web")
    assert Product.objects.get(sku="sencha").stock == stock - 2
    page = client.get(answer.url).content.decode()
    assert "Thank you, Ada" in page
    assert "Morning Sencha" in page
    assert order.payments.get().reference.startswith("ch_")
    assert order.payments.get().reference in page


def test_a_declined_card_leaves_the_order_to_be_paid_with_another(client: Client, gateway: str) -> None:
    stock = Product.objects.get(sku="sencha").stock
    answer = client.post("/order/", {**CUSTOMER, "card": "tok_declined", "quantity-sencha": "2"})
    order = Order.objects.get()
    assert order.status == "payment_failed"
    assert Product.objects.get(sku="sencha").stock == stock
    assert "The bank declined the card." in client.get(answer.url).content.decode()

    client.post(f"{answer.url}pay/", {"card": "tok_visa"})
    order.refresh_from_db()
    assert order.status == "paid"
    assert Product.objects.get(sku="sencha").stock == stock - 2
    assert [payment.status for payment in order.payments.all()] == ["declined", "captured"]

    client.post(f"{answer.url}pay/", {"card": "tok_visa"})
    assert Payment.objects.count() == 2, "a paid order was charged again"


def test_no_gateway_is_no_failure_of_the_shop(client: Client, no_gateway: None) -> None:
    answer = client.post("/order/", {**CUSTOMER, "quantity-sencha": "1"}, follow=True)
    assert answer.status_code == 200
    assert "The payment service cannot be reached." in answer.content.decode()
    assert Order.objects.get().payments.get().status == "failed"


def test_a_slow_bank_is_not_waited_for_longer_than_the_limit(client: Client, gateway: str, settings) -> None:
    settings.PAYMENT_TIMEOUT_S = 0.3
    answer = client.post("/order/", {**CUSTOMER, "card": "tok_slow_bank", "quantity-mint": "1"}, follow=True)
    assert "The bank took too long to answer." in answer.content.decode()


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, "Choose at least one product."),
        ({"quantity-sencha": "21"}, "less than or equal to 20"),
        ({"quantity-sencha": "1", "email": "nobody"}, "valid email"),
        ({"quantity-sencha": "1", "card": "4111111111111111"}, "valid choice"),
    ],
)
def test_a_form_with_a_mistake_comes_back_with_a_sentence(client: Client, fields, complaint) -> None:
    answer = client.post("/order/", {**CUSTOMER, **fields})
    assert answer.status_code == 422
    assert complaint in answer.content.decode()
    assert not Order.objects.exists()


def test_an_order_somebody_else_took_the_last_of(client: Client, gateway: str) -> None:
    Product.objects.filter(sku="sencha").update(stock=1)
    answer = client.post("/order/", {**CUSTOMER, "quantity-mint": "1", "quantity-sencha": "2"}, follow=True)
    assert "Someone was faster" in answer.content.decode()
    assert Product.objects.get(sku="mint").stock == 5000, "part of an order that failed was kept"
    assert not Payment.objects.exists()


def test_the_form_is_protected_against_forgery() -> None:
    assert Client(enforce_csrf_checks=True).post("/order/", CUSTOMER).status_code == 403


def test_names_are_escaped(client: Client, gateway: str) -> None:
    answer = client.post(
        "/order/", {**CUSTOMER, "customer_name": "<script>alert(1)</script>", "quantity-mint": "1"}, follow=True
    )
    assert "<script" not in answer.content.decode()


def test_sales_are_streamed_without_who_bought(client: Client, gateway: str) -> None:
    client.post("/order/", {**CUSTOMER, "quantity-sencha": "2", "quantity-mint": "1"})
    answer = client.get("/sales.csv")
    assert answer.streaming
    text = answer.getvalue().decode()
    header, row = csv.reader(io.StringIO(text))
    assert header[0] == "order"
    assert row[2:] == ["web", "paid", "3", "25.80"]
    assert "Ada" not in text
    assert "example.com" not in text


async def test_sales_are_streamed_under_asgi_too(async_client: AsyncClient, otel_spans) -> None:
    answer = await async_client.get("/sales.csv")
    text = b"".join([part async for part in answer]).decode()
    await sync_to_async(connections.close_all)()
    assert text.startswith("order,placed at,")
    assert otel_spans.one("GET /sales.csv").attributes["http.response.status_code"] == 200


def test_the_slow_page_counts_every_shelf(client: Client, otel_spans, otel_metrics) -> None:
    assert "Pieces" in client.get("/slow/").content.decode()
    shelves = [span.attributes["shelf"] for span in otel_spans.named("warehouse.count")]
    assert shelves == ["tea", "pot", "cup", "tin"]


async def test_the_delivery_page_asks_all_carriers_at_the_same_time(async_client: AsyncClient, otel_spans) -> None:
    answer = await async_client.get("/delivery/")
    # The view's queries ran in a thread of their own; its connection would keep PostgreSQL from dropping the database.
    await sync_to_async(connections.close_all)()
    assert answer.status_code == 200
    request = otel_spans.one("GET /delivery/")
    quotes = otel_spans.named("carrier.quote")
    assert {quote.parent.span_id for quote in quotes} == {request.context.span_id}
    assert max(quote.start_time for quote in quotes) < min(quote.end_time for quote in quotes)


def test_the_page_that_fails_shows_its_trace_and_nothing_of_the_code(client: Client, otel_spans) -> None:
    client.raise_request_exception = False
    answer = client.get("/error/")
    span = otel_spans.one("GET /error/")
    assert answer.status_code == 500
    assert f"{span.context.trace_id:032x}" in answer.content.decode()
    assert "WarehouseDoorStuckError" not in answer.content.decode()
    assert span.status.status_code is StatusCode.ERROR
    recorded = [event.attributes["exception.type"] for event in span.events if event.name == "exception"]
    assert recorded == ["example_project.shop.views.WarehouseDoorStuckError"]


def test_an_unknown_page_is_a_friendly_404(client: Client) -> None:
    answer = client.get("/teas/none/")
    assert answer.status_code == 404
    assert "nothing on this shelf" in answer.content.decode()


def test_an_unknown_order_is_not_found(client: Client) -> None:
    assert client.get("/orders/00000000-0000-0000-0000-000000000000/").status_code == 404


def test_pages_carry_a_policy_and_nothing_inline(client: Client) -> None:
    for path in ("/", "/order/", "/slow/"):
        answer = client.get(path)
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        assert not re.search(r"<script|<style|\sstyle=|\son\w+=", answer.content.decode())


def test_pages_say_which_trace_they_are(client: Client, otel_spans) -> None:
    page = client.get("/").content.decode()
    span = otel_spans.one("GET /")
    assert f"<code>{span.context.trace_id:032x}</code>" in page
    # The last two digits are flags: 1 sampled, 2 random (W3C Trace Context level 2).
    context = f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-0[13]"
    assert re.search(f'<meta name="traceparent" content="{context}">', page)
    assert [event.name for event in span.events] == ["products.shown"]
    assert otel_spans.one("products.render").attributes["items"] == 9


def test_the_style_sheet_and_those_of_the_admin_are_served(client: Client, otel_metrics) -> None:
    for path in ("/static/shop/shop.css", "/static/admin/css/base.css"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert b"".join(answer)
        answer.close()
    assert otel_metrics.value("http.server.request.duration").count == 0


def test_every_model_of_the_shop_is_in_the_admin(admin_client: Client, gateway: str) -> None:
    admin_client.post("/order/", {**CUSTOMER, "quantity-sencha": "1"})
    for name in ("product", "order", "payment"):
        assert admin_client.get(f"/admin/shop/{name}/").status_code == 200
    assert admin_client.get(f"/admin/shop/order/{Order.objects.get().pk}/change/").status_code == 200


def test_migrations_are_complete_and_the_project_is_sound() -> None:
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)
    # W009 is right where psycopg 3 is installed beside psycopg2, as for the tests of django_otel.
    assert [problem for problem in run_checks() if problem.id != "django_otel.W009"] == []


def test_the_nightly_job_is_measured(otel_spans, otel_metrics) -> None:
    call_command("restock", below=3, to=12)
    assert not Product.objects.filter(stock__lt=3).exists()
    assert otel_spans.one("manage.py restock")
    assert otel_metrics.value("django.command.last_success", django__command__name="restock") > 0


def test_the_statement_of_sales_has_an_n_plus_one_whose_cure_is_named(client: Client, otel_spans) -> None:
    """On purpose: so it looks in a trace."""
    for product in Product.objects.all():
        for _ in range(2):
            order = Order.objects.create(customer_name="Ada", email="ada@example.com")
            OrderLine.objects.create(order=order, product=product, quantity=1, unit_price=product.price)
    assert "1 x Morning Sencha" in client.get("/statement/").content.decode()
    (event,) = [event for event in otel_spans.one("GET /statement/").events if event.name == "django.n_plus_one"]
    assert event.attributes["django.n_plus_one.count"] == 18
    assert event.attributes["django.n_plus_one.advice"].startswith('select_related("product")')
    assert event.attributes["code.file.path"].endswith("shop/views.py")


@pytest.mark.django_db(transaction=True)
async def test_the_websocket_tells_what_is_left(otel_spans, otel_metrics) -> None:
    from example_project.asgi import application

    incoming = [
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": "unknown"},
        {"type": "websocket.disconnect", "code": 1000},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    try:
        await application({"type": "websocket", "path": "/stock/", "headers": []}, receive, send)
    finally:
        # That of the thread that queries: PostgreSQL drops no database that is in use.
        await sync_to_async(connections.close_all)()
    assert sent == [{"type": "websocket.accept"}, {"type": "websocket.send", "text": "0"}]
    assert otel_metrics.value("django.websocket.messages", http__route="/stock/") == 2
    assert otel_spans.one("websocket /stock/")


def test_the_list_of_products_can_be_cut_and_fails_on_what_is_no_number(client: Client) -> None:
    assert len(client.get("/api/products/?limit=2").json()["products"]) == 2
    client.raise_request_exception = False
    assert client.get("/api/products/?limit=all").status_code == 500


async def test_release_1_1_0_asks_the_carriers_one_after_the_other(
    async_client: AsyncClient, otel_spans, settings
) -> None:
    """Which is slower, for the console to show."""
    settings.RELEASE = "1.1.0"
    await async_client.get("/delivery/")
    await sync_to_async(connections.close_all)()
    quotes = sorted(otel_spans.named("carrier.quote"), key=lambda quote: quote.start_time)
    assert all(before.end_time <= after.start_time for before, after in itertools.pairwise(quotes))


def test_an_earlier_release_is_visited_without_a_server(otel_spans) -> None:
    call_command("visit", rounds=2)
    assert len(otel_spans.named("GET /delivery/")) == 4
    assert len(otel_spans.named("GET /sales.csv")) == 2


def test_the_admin_is_in_the_language_of_its_user(client: Client) -> None:
    assert "Anmelden" in client.get("/admin/login/", headers={"accept-language": "de"}).content.decode()
    assert "Log in" in client.get("/admin/login/").content.decode()
