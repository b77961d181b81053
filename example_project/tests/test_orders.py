"""The API, and what processing an order leaves in traces and numbers."""

from __future__ import annotations

import gc
import json
import socket
import threading
from decimal import Decimal
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.db.utils import ConnectionHandler
from django.test import Client
from opentelemetry.trace import SpanKind, StatusCode

from example_project.addresses import parse_database_url, parse_redis_url, sqlite
from example_project.gateway.views import parse_charge
from example_project.shop import orders
from example_project.shop.models import Order, Product

ORDER = {"customer_name": "Ada", "email": "ada@example.com", "lines": [{"sku": "sencha", "quantity": 2}]}


def post(client: Client, data: object):
    return client.post("/api/orders/", data, content_type="application/json")


def place(*lines: tuple[str, int]) -> Order:
    return orders.place_order(
        customer_name="Ada",
        email="ada@example.com",
        lines=[(Product.objects.get(sku=sku), quantity) for sku, quantity in lines],
        channel=Order.Channel.API,
    )


@pytest.mark.django_db
def test_an_order_by_api_is_paid(client: Client, gateway: str, otel_spans) -> None:
    answer = post(client, ORDER)
    order = Order.objects.get()
    assert answer.status_code == 201
    assert answer.json() == {
        "order": str(order.key),
        "status": "paid",
        "total": "19.60",
        "url": f"/orders/{order.key}/",
        "trace_id": f"{otel_spans.one('POST /api/orders/').context.trace_id:032x}",
    }


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"email": "nobody"}, "email"),
        ({"email": None}, "email"),
        ({"customer_name": ""}, "customer_name"),
        ({"card": "tok_unknown"}, "card"),
        ({"card": ["tok_visa"]}, "card"),
        ({"lines": []}, "lines"),
        ({"lines": "sencha"}, "lines"),
        ({"lines": [7]}, "lines"),
        ({"lines": [{"sku": ["sencha"], "quantity": 1}]}, "lines"),
        ({"lines": [{"sku": "sencha", "quantity": 0}]}, "lines"),
        ({"lines": [{"sku": "sencha", "quantity": True}]}, "lines"),
        ({"lines": [{"sku": "sencha", "quantity": 1.5}]}, "lines"),
        ({"lines": [{"sku": "no-such-tea", "quantity": 1}]}, "lines"),
        ({"lines": [{"sku": "sencha", "quantity": 1}] * 2}, "lines"),
    ],
)
def test_a_nonsense_order_by_api_is_refused_with_the_place(client: Client, change, where) -> None:
    answer = post(client, {**ORDER, **change})
    assert answer.status_code == 400
    assert list(answer.json()["errors"]) == [where]
    assert not Order.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("body", ["", "{", "[]", "7", "null"])
def test_a_body_that_is_no_object_is_refused(client: Client, body: str) -> None:
    answer = client.post("/api/orders/", body, content_type="application/json")
    assert answer.status_code == 400
    assert list(answer.json()["errors"]) == ["body"]


@pytest.mark.django_db
def test_the_api_tells_declined_from_out_of_stock(client: Client, gateway: str) -> None:
    assert post(client, {**ORDER, "card": "tok_no_funds"}).status_code == 402
    assert post(client, {**ORDER, "lines": [{"sku": "moon-cup", "quantity": 1}]}).status_code == 409
    assert client.get("/api/orders/").status_code == 405


@pytest.mark.django_db
def test_the_api_lists_products(client: Client) -> None:
    first = client.get("/api/products/").json()["products"][0]
    assert first == {"sku": "sencha", "name": "Morning Sencha", "price": "9.80", "stock": 5000}


def find_step_around(spans, span):
    """The span around this one, which may have a transaction between."""
    parents = {found.context.span_id: found for found in spans}
    around = parents[span.parent.span_id]
    return find_step_around(spans, around) if around.name.startswith("transaction ") else around


@pytest.mark.django_db
def test_processing_an_order_is_one_trace_with_its_steps(client: Client, gateway: str, otel_spans) -> None:
    otel_spans.clear()
    post(client, ORDER)
    request = otel_spans.one("POST /api/orders/")
    process = otel_spans.one("process_order")
    inventory = otel_spans.one("validate_inventory")
    charge = otel_spans.one("charge_payment")
    placed, paid = otel_spans.one("order.placed"), otel_spans.one("order.paid")
    order = Order.objects.get()

    assert {span.context.trace_id for span in otel_spans} == {request.context.trace_id}
    assert process.parent.span_id == request.context.span_id
    assert find_step_around(otel_spans, inventory) is process
    assert find_step_around(otel_spans, charge) is process
    assert inventory.end_time <= charge.start_time
    assert [event.name for event in charge.events] == ["payment_captured"]
    assert charge.events[0].attributes["payment.amount"] == 19.6
    assert process.attributes["order.id"] == order.pk
    assert inventory.attributes["order.lines"] == 1

    assert find_step_around(otel_spans, placed) is request
    assert find_step_around(otel_spans, paid) is charge
    assert paid.attributes["business.from"] == "placed"
    assert paid.attributes["business.to"] == "paid"
    assert paid.attributes["django.model.pk"] == str(order.pk)
    assert placed.attributes["business.channel"] == "api"

    outbound = [span for span in otel_spans if span.kind is SpanKind.CLIENT and span.name == "POST"]
    assert [span.parent.span_id for span in outbound] == [charge.context.span_id]
    assert outbound[0].attributes["http.response.status_code"] == 201
    updates = [span for span in otel_spans if span.name == "UPDATE shop_product"]
    assert [find_step_around(otel_spans, span) for span in updates] == [inventory]


@pytest.mark.django_db
def test_no_name_or_address_of_a_customer_is_in_any_span(client: Client, gateway: str, otel_spans) -> None:
    post(client, {**ORDER, "customer_name": "Zaphod", "email": "zaphod@heart.example"})
    assert len(otel_spans) > 8
    recorded = "".join(span.to_json() for span in otel_spans)
    assert "aphod" not in recorded


@pytest.mark.django_db
def test_orders_are_counted_by_outcome(gateway: str, otel_metrics) -> None:
    orders.process_order(place(("sencha", 2)), "tok_visa")
    orders.process_order(place(("sencha", 1)), "tok_mastercard")
    orders.process_order(place(("moon-cup", 1)), "tok_visa")
    declined = orders.process_order(place(("mint", 1)), "tok_declined")
    orders.retry_payment(declined, "tok_visa")
    assert otel_metrics.value("orders.total", outcome="paid", channel="api") == 2
    assert otel_metrics.value("orders.total", outcome="out_of_stock") == 1
    assert otel_metrics.value("orders.total", outcome="payment_failed") == 1
    assert otel_metrics.value("orders.total") == 4, "paying an order again made it a new one"
    assert otel_metrics.value("shop.order.value").count == 3
    assert otel_metrics.value("shop.order.value").sum == pytest.approx(19.6 + 9.8 + 6.2)
    assert otel_metrics.value("django.business.events", {"business.event": "order.placed"}) == 4
    assert otel_metrics.value("django.business.events", {"business.event": "order.paid"}) == 3


@pytest.mark.django_db
def test_a_declined_card_is_an_event_and_no_error(gateway: str, otel_spans) -> None:
    order = orders.process_order(place(("sencha", 1)), "tok_no_funds")
    charge = otel_spans.one("charge_payment")
    assert order.status == Order.Status.PAYMENT_FAILED
    assert [(event.name, event.attributes["reason"]) for event in charge.events] == [
        ("payment_failed", "The account has not enough money.")
    ]
    assert charge.status.status_code is StatusCode.UNSET
    assert find_step_around(otel_spans, otel_spans.one("order.payment_failed")) is charge


@pytest.mark.django_db
def test_out_of_stock_takes_nothing_and_charges_nothing(otel_spans) -> None:
    order = orders.process_order(place(("mint", 1), ("moon-cup", 1)), "tok_visa")
    assert order.status == Order.Status.OUT_OF_STOCK
    assert Product.objects.get(sku="mint").stock == 5000
    assert otel_spans.named("charge_payment") == []
    assert "out_of_stock" in [event.name for event in otel_spans.one("process_order").events]


@pytest.mark.django_db
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
        b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
        b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
        b"nonsense",
        b"",
    ],
)
def test_whatever_a_broken_gateway_says_the_order_waits_for_payment(settings, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings.PAYMENT_GATEWAY_URL = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def reply() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        order = orders.process_order(place(("sencha", 1)), "tok_visa")
        thread.join()
    assert order.status == Order.Status.PAYMENT_FAILED
    assert order.payments.get().status == "failed"
    assert Product.objects.get(sku="sencha").stock == 5000


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"key": ""}, "key"),
        ({"card": "4111"}, "card"),
        ({"card": []}, "card"),
        ({"amount": "NaN"}, "amount"),
        ({"amount": "-1"}, "amount"),
        ({"amount": None}, "amount"),
    ],
)
def test_the_gateway_refuses_nonsense(change, complaint) -> None:
    charge = {"key": "1", "amount": "1.00", "card": "tok_visa"}
    assert parse_charge(json.dumps(charge).encode()) == ("1", Decimal("1.00"), "tok_visa")
    with pytest.raises(ValueError, match=complaint):
        parse_charge(json.dumps({**charge, **change}).encode())


@pytest.mark.django_db
def test_open_connections_go_up_at_connect_and_down_at_close(tmp_path: Path, otel_metrics) -> None:
    def count() -> float:
        return otel_metrics.value("shop.db.open_connections", {"django.db.alias": "default"})

    # The test database's own connection has the same alias, and may be opened by this very test.
    connection.ensure_connection()
    before = count()
    database = ConnectionHandler({"default": sqlite(tmp_path / "one.sqlite3")})["default"]
    database.connect()
    assert count() == before + 1
    database.close()
    database.close()
    assert count() == before, "closing twice was counted twice"
    database.connect()
    database.set_autocommit(False, force_begin_transaction_with_broken_autocommit=True)
    database.in_atomic_block = True
    database.close()
    assert count() == before, "a connection closed inside a transaction still counts"


@pytest.mark.django_db
def test_a_connection_that_is_lost_with_its_thread_is_no_longer_counted(tmp_path: Path, otel_metrics) -> None:
    def count() -> float:
        return otel_metrics.value("shop.db.open_connections", {"django.db.alias": "default"})

    # As above: the first test of a run may open the test database's own connection.
    connection.ensure_connection()
    before = count()
    counted: list[float] = []

    def work() -> None:
        database = ConnectionHandler({"default": sqlite(tmp_path / "two.sqlite3")})["default"]
        database.connect()
        counted.append(count())
        # Behind Django's back, so that Python has no unclosed file to complain about.
        database.connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    gc.collect()
    assert counted == [before + 1]
    assert count() == before


def test_database_addresses_are_understood() -> None:
    full = parse_database_url("postgres://me:p%40ss@db.example:5433/shop?sslmode=require")
    assert (full["NAME"], full["USER"], full["PASSWORD"], full["HOST"], full["PORT"]) == (
        *("shop", "me", "p@ss", "db.example", "5433"),
    )
    assert full["OPTIONS"] == {"sslmode": "require"}
    socket_folder = parse_database_url("postgresql://postgres:@/postgres?host=/run/pg")
    assert (socket_folder["HOST"], socket_folder["PASSWORD"]) == ("/run/pg", "")
    assert parse_database_url("sqlite:////var/shop.sqlite3")["NAME"] == "/var/shop.sqlite3"


@pytest.mark.parametrize("url", ["mysql://me:secret@db/shop", "postgresql://me:secret@db", "secret"])
def test_an_unknown_address_is_refused_without_repeating_its_password(url: str) -> None:
    with pytest.raises(ImproperlyConfigured) as refused:
        parse_database_url(url)
    assert "secret@" not in str(refused.value)
    with pytest.raises(ImproperlyConfigured):
        parse_redis_url("http://127.0.0.1/")
