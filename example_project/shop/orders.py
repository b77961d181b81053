"""Placing and processing orders."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from decimal import Decimal

from django.db import transaction
from django.db.models import F

import django_otel
from example_project.shop import gateway, metrics, tasks
from example_project.shop.models import Order, OrderLine, Payment, Product

logger = logging.getLogger(__name__)


class OutOfStockError(Exception):
    """There is less of a product than the order needs."""

    def __init__(self, product: Product) -> None:
        super().__init__(f"There is not enough {product.name} left.")
        self.product = product


@transaction.atomic
def place_order(
    *, customer_name: str, email: str, lines: Iterable[tuple[Product, int]], channel: Order.Channel
) -> Order:
    """Write down what a customer wants: an order with one line per product, at today's prices."""
    wanted = list(lines)
    order = Order.objects.create(
        customer_name=customer_name,
        email=email,
        channel=channel,
        # Known before the order is written, so that the event order.placed carries it.
        total=sum((product.price * quantity for product, quantity in wanted), Decimal(0)),
    )
    OrderLine.objects.bulk_create(
        OrderLine(order=order, product=product, quantity=quantity, unit_price=product.price)
        for product, quantity in wanted
    )
    return order


def process_order(order: Order, card: str) -> Order:
    """Reserve the goods and charge the card; the order's status tells how it went.

    No transaction is open while the payment gateway is asked: a slow bank must
    not hold locks on our products.
    """
    django_otel.set_metric_attributes(**{"shop.channel": order.channel})
    with django_otel.span("process_order", **{"order.id": order.pk, "order.channel": order.channel}):
        _settle(order, card)
        metrics.orders_total.add(1, {"outcome": order.status, "channel": order.channel})
        logger.info("Order %d for %s EUR: %s", order.pk, order.total, order.get_status_display())
    return order


def retry_payment(order: Order, card: str) -> Order:
    """Try another card for an order that is waiting for payment; does nothing for any other order.

    It is not a new order, so `orders.total` does not count it again.
    """
    # Taken by one of two clicks on the button, so that the goods are reserved once.
    if not Order.objects.filter(pk=order.pk, status=Order.Status.PAYMENT_FAILED).update(status=Order.Status.PLACED):
        order.refresh_from_db()
        return order
    order.refresh_from_db()
    with django_otel.span("retry_payment", **{"order.id": order.pk, "order.channel": order.channel}):
        _settle(order, card)
    return order


def _settle(order: Order, card: str) -> None:
    try:
        validate_inventory(order)
    except OutOfStockError as shortage:
        django_otel.event("out_of_stock", **{"product.sku": shortage.product.sku})
        _set_status(order, Order.Status.OUT_OF_STOCK)
        return
    charge_payment(order, card)


@django_otel.span("validate_inventory")
@transaction.atomic
def validate_inventory(order: Order) -> None:
    """Take the order's goods from the stock, all of them or none.

    Errors: `OutOfStockError` names the first product there is not enough of.
    """
    # Always in the same sequence: two orders for the same products never wait for each other in a circle.
    lines = order.lines.select_related("product").order_by("product_id")
    for line in lines:
        taken = Product.objects.filter(pk=line.product_id, stock__gte=line.quantity).update(
            stock=F("stock") - line.quantity
        )
        if not taken:
            raise OutOfStockError(line.product)
    django_otel.set_attributes(**{"order.lines": len(lines)})


@transaction.atomic
def release_inventory(order: Order) -> None:
    """Put the goods of an order that was not paid back."""
    for line in order.lines.order_by("product_id"):
        Product.objects.filter(pk=line.product_id).update(stock=F("stock") + line.quantity)


@django_otel.span("charge_payment")
def charge_payment(order: Order, card: str) -> Payment:
    """Ask the payment gateway for the money.

    Never raises over the gateway: the payment and the order say what happened.
    """
    payment = Payment.objects.create(order=order, amount=order.total)
    django_otel.set_attributes(**{"payment.id": payment.pk, "payment.amount": float(payment.amount)})
    try:
        # The order's key, not the payment's: a second attempt after a timeout must not charge twice.
        payment.reference = gateway.charge(key=str(order.key), amount=payment.amount, card=card)
    except gateway.CardDeclinedError as declined:
        _give_up(order, payment, Payment.Status.DECLINED, str(declined))
    except gateway.GatewayUnavailableError as failure:
        logger.warning("Order %d could not be charged: %s", order.pk, failure)
        _give_up(order, payment, Payment.Status.FAILED, str(failure))
    else:
        with transaction.atomic():
            payment.status = Payment.Status.CAPTURED
            payment.save(update_fields=["status", "reference"])
            _set_status(order, Order.Status.PAID)
        django_otel.event("payment_captured", **{"payment.id": payment.pk, "payment.amount": float(payment.amount)})
        metrics.order_value.record(float(order.total), {"channel": order.channel})
        tasks.send_invoice_later(order)
    return payment


def _give_up(order: Order, payment: Payment, status: Payment.Status, reason: str) -> None:
    with transaction.atomic():
        payment.status = status
        payment.reason = reason[:200]
        payment.save(update_fields=["status", "reason"])
        release_inventory(order)
        _set_status(order, Order.Status.PAYMENT_FAILED)
    django_otel.event("payment_failed", reason=reason)


def _set_status(order: Order, status: Order.Status) -> None:
    order.status = status
    order.save(update_fields=["status"])
