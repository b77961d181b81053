"""Which changes of the shop's data are events of its business; found by `django_otel` as admin.py is by the admin."""

from __future__ import annotations

from django_otel import business
from example_project.shop.models import Invoice, Order


@business.register(Order)
class OrderEvents(business.ModelEvents):
    created = "order.placed"
    transitions = {
        "status": {
            Order.Status.PAID: "order.paid",
            Order.Status.PAYMENT_FAILED: "order.payment_failed",
            Order.Status.OUT_OF_STOCK: "order.out_of_stock",
        }
    }
    attributes = ("id", "total", "channel")


@business.register(Invoice)
class InvoiceEvents(business.ModelEvents):
    created = "invoice.written"
    attributes = ("order_id",)
