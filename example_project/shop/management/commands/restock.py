"""Fill up products that are nearly sold out, as a nightly job would."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from example_project.shop.models import Product


class Command(BaseCommand):
    help = "Fill up products that are nearly sold out."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--below", type=int, default=5, help="Fill up products with less than this in stock.")
        parser.add_argument("--to", type=int, default=20, help="How many there are afterwards.")

    def handle(self, *args: Any, below: int, to: int, **options: Any) -> None:
        number = Product.objects.filter(stock__lt=below).update(stock=to)
        self.stdout.write(f"Filled up {number} products.")
