"""The shop as a Django app."""

from __future__ import annotations

from django.apps import AppConfig
from django.db.backends.signals import connection_created


class ShopConfig(AppConfig):
    name = "example_project.shop"
    label = "shop"
    verbose_name = "Shop"

    def ready(self) -> None:
        from example_project.shop import metrics

        connection_created.connect(metrics.count_connection, dispatch_uid="example_project.shop.metrics")
