"""Models for the tests of business spans. No migrations: the tests create the tables."""

from __future__ import annotations

import uuid
from typing import Any

from django.db import models


class Customer(models.Model):
    """Not registered by most tests."""

    name = models.CharField(max_length=50)


class Order(models.Model):
    class Status(models.TextChoices):
        DRAFT = "draft"
        PAID = "paid"
        SHIPPED = "shipped"

    number = models.IntegerField(unique=True)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.DRAFT)
    priority = models.IntegerField(default=0)
    total = models.DecimalField(max_digits=30, decimal_places=2, default=0)
    note = models.TextField(default="")
    placed_on = models.DateField(null=True)
    customer = models.ForeignKey(Customer, models.CASCADE, null=True, related_name="orders")
    data = models.JSONField(default=dict)


class OrderProxy(Order):
    class Meta:
        proxy = True


class RushOrder(Order):
    """A multi-table child."""

    courier = models.CharField(max_length=20, default="")


class OverridingOrder(Order):
    """A multi-table child that overrides what business spans wrap."""

    calls: list[str] = []

    def save_base(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append("save_base")
        super().save_base(*args, **kwargs)

    @classmethod
    def from_db(cls, db: Any, field_names: Any, values: Any, **kwargs: Any) -> Any:
        cls.calls.append("from_db")
        return super().from_db(db, field_names, values, **kwargs)

    def refresh_from_db(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append("refresh_from_db")
        super().refresh_from_db(*args, **kwargs)


class Ticket(models.Model):
    status = models.CharField(max_length=10, default="open")

    class Meta:
        abstract = True


class BugTicket(Ticket):
    title = models.CharField(max_length=20, default="")


class Parcel(models.Model):
    """Its primary key has a default, so Django inserts without trying an update."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    status = models.CharField(max_length=10, default="packed")
    weight_g = models.IntegerField(null=True)


class ParcelScan(models.Model):
    """A composite primary key."""

    pk = models.CompositePrimaryKey("parcel_number", "station")
    parcel_number = models.IntegerField()
    station = models.CharField(max_length=10)
