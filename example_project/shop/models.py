"""What the shop keeps: products, orders with their lines, and attempts to pay."""

from __future__ import annotations

import uuid
from decimal import Decimal

from django.core.validators import MinValueValidator
from django.db import models
from django.urls import reverse


class Product(models.Model):
    """Something to buy. Prices are in euros."""

    class Kind(models.TextChoices):
        TEA = "tea", "Tea"
        POT = "pot", "Pot"
        CUP = "cup", "Cup"
        TIN = "tin", "Tin"

    sku = models.SlugField("article number", max_length=40, unique=True)
    name = models.CharField(max_length=80)
    description = models.CharField(max_length=200)
    kind = models.CharField(max_length=10, choices=Kind)
    price = models.DecimalField(max_digits=8, decimal_places=2, validators=[MinValueValidator(Decimal("0.01"))])
    stock = models.PositiveIntegerField(default=0)
    position = models.PositiveSmallIntegerField(default=100, help_text="Lower numbers come first in the list.")

    class Meta:
        ordering = ("position", "pk")

    def __str__(self) -> str:
        return self.name


class Order(models.Model):
    """What one customer wants, and how far we are with it."""

    class Status(models.TextChoices):
        PLACED = "placed", "Placed"
        PAID = "paid", "Paid"
        PAYMENT_FAILED = "payment_failed", "Waiting for payment"
        OUT_OF_STOCK = "out_of_stock", "Out of stock"

    class Channel(models.TextChoices):
        WEB = "web", "Shop"
        API = "api", "API"

    # The address of the order's page: not to be guessed, unlike the primary key.
    key = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    customer_name = models.CharField("name", max_length=80)
    email = models.EmailField("e-mail")
    status = models.CharField(max_length=20, choices=Status, default=Status.PLACED, db_index=True)
    channel = models.CharField(max_length=10, choices=Channel, default=Channel.WEB)
    total = models.DecimalField(max_digits=10, decimal_places=2, default=Decimal(0))
    created_at = models.DateTimeField("placed at", auto_now_add=True)

    class Meta:
        ordering = ("-pk",)

    def __str__(self) -> str:
        return f"Order {self.pk}"

    def get_absolute_url(self) -> str:
        return reverse("shop:order", args=(self.key,))

    @property
    def latest_payment(self) -> Payment | None:
        """The last attempt to pay; reads all of them, which a page has prefetched."""
        return max(self.payments.all(), key=lambda payment: payment.pk, default=None)

    @property
    def can_be_paid(self) -> bool:
        return self.status == self.Status.PAYMENT_FAILED


class OrderLine(models.Model):
    """One product in an order, at the price it had when the order was placed."""

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="lines")
    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="+")
    quantity = models.PositiveSmallIntegerField(validators=[MinValueValidator(1)])
    unit_price = models.DecimalField(max_digits=8, decimal_places=2)

    class Meta:
        ordering = ("pk",)
        constraints = (
            models.UniqueConstraint(fields=("order", "product"), name="shop_orderline_once_per_product"),
            models.CheckConstraint(condition=models.Q(quantity__gte=1), name="shop_orderline_quantity_positive"),
        )

    def __str__(self) -> str:
        return f"{self.quantity} of {self.product}"

    @property
    def total(self) -> Decimal:
        return self.unit_price * self.quantity


class Payment(models.Model):
    """One attempt to be paid. No card data is kept."""

    class Status(models.TextChoices):
        PENDING = "pending", "Pending"
        CAPTURED = "captured", "Captured"
        DECLINED = "declined", "Declined"
        FAILED = "failed", "Failed"

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="payments")
    amount = models.DecimalField(max_digits=10, decimal_places=2)
    status = models.CharField(max_length=10, choices=Status, default=Status.PENDING)
    reference = models.CharField("reference of the gateway", max_length=40, blank=True)
    reason = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField("tried at", auto_now_add=True)

    class Meta:
        ordering = ("pk",)

    def __str__(self) -> str:
        return f"{self.get_status_display()}: {self.amount} EUR"


class Invoice(models.Model):
    """The invoice of a paid order; its number is its primary key."""

    order = models.OneToOneField(Order, on_delete=models.CASCADE, related_name="invoice")
    written_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-pk",)

    def __str__(self) -> str:
        return f"Invoice {self.pk}"
