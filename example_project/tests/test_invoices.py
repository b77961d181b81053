"""Invoices are sent by a task, in the trace of the order."""

from __future__ import annotations

import time
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from django.apps import apps
from django.core import mail
from django.db import connection
from django.test import Client

import django_otel
from example_project.shop import orders
from example_project.shop.models import Invoice, Order, Product
from example_project.tests.test_pages import CUSTOMER

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("products")]
TASK = "example_project.shop.tasks.send_invoice"


@pytest.fixture
def products(transactional_db: None) -> None:
    """What a test before this one has removed with everything else."""
    if not Product.objects.exists():
        import_module("example_project.shop.migrations.0002_first_products").add_products(
            apps, SimpleNamespace(connection=connection)
        )


def ancestors(otel_spans: Any, span: Any) -> list[str]:
    """Return the names of the spans around this one, the nearest first."""
    by_id = {found.context.span_id: found for found in otel_spans}
    names = []
    while span.parent is not None and (span := by_id.get(span.parent.span_id)) is not None:
        names.append(span.name)
    return names


def test_the_invoice_of_a_paid_order_is_sent_by_a_task(client: Client, gateway: str, otel_spans, otel_metrics) -> None:
    client.post("/order/", {**CUSTOMER, "quantity-sencha": "2"})
    assert Order.objects.get().invoice
    (message,) = mail.outbox
    assert "2 x Morning Sencha" in message.body
    process = otel_spans.one(f"process {TASK}")
    assert ancestors(otel_spans, process) == [
        *(f"send {TASK}", "charge_payment", "process_order", "POST /order/"),
    ]
    assert process.name in ancestors(otel_spans, otel_spans.one("invoice.written"))
    assert ancestors(otel_spans, otel_spans.one("send mail"))[0] == process.name
    succeeded = {"django.task.name": TASK, "django.task.outcome": "succeeded"}
    assert otel_metrics.value("django.task.duration", succeeded).count == 1
    assert "ada@example.com" not in str([span.to_json() for span in otel_spans])


def test_a_full_mailbox_is_a_failed_task_and_no_failed_order(client: Client, gateway: str, otel_metrics) -> None:
    answer = client.post("/order/", {**CUSTOMER, "email": "full@example.com", "quantity-sencha": "2"})
    assert answer.status_code == 302
    assert Order.objects.get().status == "paid"
    assert mail.outbox == []
    failed = {"django.task.name": TASK, "django.task.outcome": "failed"}
    assert otel_metrics.value("django.task.duration", failed).count == 1


def test_an_order_that_is_not_paid_has_no_invoice(client: Client, gateway: str) -> None:
    client.post("/order/", {**CUSTOMER, "card": "tok_declined", "quantity-sencha": "2"})
    assert not Invoice.objects.exists()
    client.post(f"{Order.objects.get().get_absolute_url()}pay/", {"card": "tok_visa"})
    assert Invoice.objects.count() == 1


def test_a_queue_that_refuses_is_no_failure_of_the_order(client: Client, gateway: str, settings: Any, caplog) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionError("no broker")

    name = "delay" if settings.CELERY_BROKER_URL else "enqueue"
    with pytest.MonkeyPatch.context() as patch:
        # What stands behind Celery's proxy of it.
        patch.setattr(orders.tasks.send_invoice.__class__, name, refuse)
        answer = client.post("/order/", {**CUSTOMER, "quantity-sencha": "2"})
    assert answer.status_code == 302
    assert "no broker" in caplog.text
    assert not Invoice.objects.exists()


def test_a_thread_sends_it_where_there_is_no_broker(settings: Any, otel_spans, otel_metrics) -> None:
    if settings.CELERY_BROKER_URL:
        pytest.skip("Celery sends it.")
    settings.TASKS = {"default": {"BACKEND": "example_project.shop.threads.ThreadBackend"}}
    for number, email in enumerate(("ada@example.com", "full@example.com"), start=1):
        order = Order.objects.create(customer_name="Ada", email=email)
        with django_otel.span("order"):
            orders.tasks.send_invoice_later(order)
        # A SQLite database in memory is used by one thread at a time.
        deadline_s = time.monotonic() + 60
        while len(otel_spans.named(f"process {TASK}")) < number:
            assert time.monotonic() < deadline_s, [span.name for span in otel_spans]
            time.sleep(0.01)
    found = otel_spans.named(f"process {TASK}")
    assert [span.attributes["django.task.outcome"] for span in found] == ["succeeded", "failed"]
    assert [ancestors(otel_spans, span) for span in found] == [[f"send {TASK}", "order"]] * 2
    assert otel_metrics.value("django.task.wait", {"django.task.name": TASK}).count == 2
    assert Invoice.objects.count() == 2
