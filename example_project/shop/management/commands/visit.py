"""Visit the shop's pages without a server, as `manage.py demo` does for an earlier release."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.test import Client

#: Pages, and how often a round of visits asks for each.
PAGES = {"/": 2, "/order/": 1, "/delivery/": 2, "/api/products/": 1, "/statement/": 1, "/sales.csv": 1}


class Command(BaseCommand):
    help = "Visit the shop's pages in this process, so that there are traces of the release that SHOP_RELEASE names."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--rounds", type=int, default=6, help="of visits (default %(default)s)")

    def handle(self, *args: Any, rounds: int, **options: Any) -> None:
        client = Client(headers={"host": "127.0.0.1", "user-agent": "visitor"})
        for _ in range(rounds):
            for page, times in PAGES.items():
                for _ in range(times):
                    answer = client.get(page)
                    if answer.streaming:
                        b"".join(answer)
