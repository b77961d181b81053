"""Invoices of paid orders: written into the database, and mailed."""

from __future__ import annotations

from django.core.mail import send_mail

import django_otel
from example_project.shop.models import Invoice, Order


class MailboxFullError(Exception):
    """The customer's mailbox takes no more mail."""


def send(order: Order) -> Invoice:
    """Write an order's invoice and mail it; an order has one, however often this is called.

    Errors: `MailboxFullError` for every customer called full@, so that there is a task that fails.
    """
    invoice, _ = Invoice.objects.get_or_create(order=order)
    with django_otel.span("invoice.print", **{"invoice.lines": order.lines.count()}):
        text = "\n".join(f"{line.quantity} x {line.product.name}" for line in order.lines.select_related("product"))
    if order.email.startswith("full@"):
        raise MailboxFullError("The customer's mailbox is full.")
    send_mail(f"Invoice {invoice.pk}", f"{text}\n\nTotal {order.total} EUR", None, [order.email])
    return invoice
