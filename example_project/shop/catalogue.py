"""The product list, kept in the cache."""

from __future__ import annotations

import logging

from django.core.cache import cache

import django_otel
from example_project.shop.models import Product

logger = logging.getLogger(__name__)

CACHE_KEY = "shop.products"
#: The list may be this old. What is really in stock is decided when an order is processed.
CACHE_S = 15


def products() -> list[Product]:
    """All products in the shop's sequence, at most `CACHE_S` seconds old."""
    found: list[Product] | None = cache.get(CACHE_KEY)
    django_otel.set_attributes(**{"shop.products.cached": found is not None})
    if found is None:
        logger.debug("The product list is read from the database")
        found = list(Product.objects.all())
        cache.set(CACHE_KEY, found, CACHE_S)
    return found
