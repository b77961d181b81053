"""The shop as a Django app."""

from __future__ import annotations

from django.apps import AppConfig
from django.conf import settings
from django.db.backends.signals import connection_created


class ShopConfig(AppConfig):
    name = "example_project.shop"
    label = "shop"
    verbose_name = "Shop"

    def ready(self) -> None:
        from example_project.shop import metrics

        if settings.CELERY_BROKER_URL:
            from example_project import celery_app  # noqa: F401 (what shared_task() makes belongs to it)

        connection_created.connect(metrics.count_connection, dispatch_uid="example_project.shop.metrics")
