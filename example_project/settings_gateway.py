"""Settings of the payment gateway: the same project as a second service, with a name of its own and no database."""

from __future__ import annotations

from example_project.settings import *  # noqa: F403
from example_project.settings import OTEL as SHOP_OTEL

INSTALLED_APPS = ["django_otel"]
MIDDLEWARE = [
    "django_otel.middleware.OTelMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
]
ROOT_URLCONF = "example_project.gateway.urls"
TEMPLATES = []
DATABASES = {}
CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}

OTEL = {
    **SHOP_OTEL,
    "SERVICE_NAME": "payment-gateway",
    # What is recorded is decided where the trace begins, in the shop; there is no admin here.
    "SAMPLING": {"LIVE": False},
}
