"""What the shop does after a page was answered.

By Celery where there is a broker for it (`settings.CELERY_BROKER_URL`), else by Django's own tasks with the backend of
`settings.TASKS`, a thread of the web server. Both name a task by its import path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.db import transaction

from example_project.shop import invoices
from example_project.shop.models import Order

if settings.CELERY_BROKER_URL:
    from celery import shared_task

    task: Callable[[Any], Any] = shared_task(ignore_result=True)
else:
    try:
        from django.tasks import task
    except ImportError:
        # Its backport for Django 5.2.
        from django_tasks import task


@task
def send_invoice(order_id: int) -> None:
    invoices.send(Order.objects.get(pk=order_id))


def send_invoice_later(order: Order) -> None:
    """Have an order's invoice sent as soon as the order is committed.

    A broker that is gone is logged: it is no reason to fail an order that is paid.
    """

    def enqueue() -> None:
        if settings.CELERY_BROKER_URL:
            send_invoice.delay(order.pk)
        else:
            send_invoice.enqueue(order.pk)

    transaction.on_commit(enqueue, robust=True)
