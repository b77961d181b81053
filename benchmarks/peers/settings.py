"""The settings of the measured project; imports nothing of Django, which some peers must precede."""

from __future__ import annotations

from typing import Any

TEMPLATE = """<!doctype html>
<title>{{ title }}</title>
<h1>{{ title|upper }}</h1>
<ul>{% for product in products %}<li class="{% cycle 'odd' 'even' %}">{{ product.name }}: {{ product.price }}</li>
{% endfor %}</ul>
"""


def base_settings(sqlite: str, postgres: dict[str, Any] | None) -> dict[str, Any]:
    """Settings of the bare project; a peer adds its own to these."""
    # As on a site with traffic: otherwise each request would open a connection.
    databases: dict[str, Any] = {
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sqlite, "CONN_MAX_AGE": None}
    }
    if postgres is not None:
        databases["postgres"] = {**postgres, "CONN_MAX_AGE": None}
    return {
        "SECRET_KEY": "only for measuring",
        "ALLOWED_HOSTS": ["*"],
        "DEBUG": False,
        "ROOT_URLCONF": "benchmarks.peers.project",
        "INSTALLED_APPS": ["django.contrib.contenttypes", "django.contrib.auth", "benchmarks.peers.shop"],
        # Only what is measured: under ASGI most of Django's own middleware runs in threads, and that is not the
        # observer's cost.
        "MIDDLEWARE": [],
        "DATABASES": databases,
        "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
        "TEMPLATES": [
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "OPTIONS": {
                    "loaders": [
                        (
                            "django.template.loaders.cached.Loader",
                            [("django.template.loaders.locmem.Loader", {"products.html": TEMPLATE})],
                        )
                    ]
                },
            }
        ],
        # A line per 404 would be measured as well.
        "LOGGING": {"version": 1, "loggers": {"django.request": {"level": "CRITICAL"}}},
        "USE_TZ": True,
    }
