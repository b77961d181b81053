"""Settings of the shop.

Environment: `DJANGO_DEBUG` (default on), `DJANGO_SECRET_KEY`, `DATABASE_URL`
(default SQLite), `REDIS_URL` (default a cache in each process's memory; with it, Celery sends the invoices:
`celery -A example_project.celery_app worker`),
`PAYMENT_GATEWAY_URL`, `CONSOLE_PATH` (where recent traces are kept), `SHOP_RELEASE`, and the `OTEL_*` variables of the
OpenTelemetry specification: `OTEL_EXPORTER_OTLP_ENDPOINT` says where traces go.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import django

from example_project.addresses import parse_database_url, parse_redis_url, sqlite

BASE_DIR = Path(__file__).resolve().parent.parent

DEBUG = os.environ.get("DJANGO_DEBUG", "1").lower() in ("1", "true", "yes", "on")
# For trying out on your own machine only; `manage.py demo` makes a new one for each run.
SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY") or "django-insecure-example-shop-for-your-own-machine-only"
# What runs. 1.1.0 asks the carriers one after the other: the demo shows how a release that is slower is seen.
RELEASE = os.environ.get("SHOP_RELEASE", "1.0.0")
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_otel",
    "example_project.shop",
    # Django's tasks for Django 5.2.
    *(["django_tasks"] if django.VERSION < (6, 0) and find_spec("django_tasks") else []),
]

MIDDLEWARE = [
    "django_otel.middleware.OTelMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "example_project.shop.middleware.ContentSecurityPolicy",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    # The shop is in English, the admin in the visitor's language.
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

OTEL = {
    "SERVICE_NAME": "shop",
    "SERVICE_VERSION": RELEASE,
    "ENVIRONMENT": "example",
    # The default list, and our own: what these commands do is not what the shop does.
    "SKIP_COMMANDS": [
        *("makemigrations", "migrate", "collectstatic", "check", "test", "shell"),
        *("demo", "shop_admin"),
    ],
    # Nightly jobs: how long they take, and when each last succeeded.
    "COMMANDS": ["restock"],
    # Which template takes how long, and with SHOP_MIDDLEWARE_SPANS=1 what each middleware does.
    "TEMPLATES": {"MIN_S": 0.001},
    "MIDDLEWARE_SPANS": os.environ.get("SHOP_MIDDLEWARE_SPANS") == "1",
    # Style sheets are neither traced nor counted.
    "REQUEST": {
        "EXCLUDE": ["/static/*", "/favicon.ico"],
        # Orders come from the web pages and from the API: every request metric shows which.
        "METRIC_ATTRIBUTES": {"shop.channel": 3},
    },
    # An order's transactions have a span each, and what the database logs of a statement names the page.
    "DATABASE": {"TRANSACTIONS": True, "COMMENTS": ["route"]},
    # The product list comes from the cache: whether it was there is seen on each trace.
    "CACHE": {"SPANS": True},
    # Invoices are mailed.
    "EMAIL": True,
    # Trace headers go to our own services, not to strangers.
    "PROPAGATION": {"OUTBOUND_HOSTS": ["127.0.0.1", "localhost"]},
    # The shop answers on the loopback address only, with no proxy before it; a public one sets a TOKEN instead.
    "METRICS_VIEW": {"ALLOW": "private"},
    # Recent traces and figures in the admin, also with DEBUG off. The shop and its payment gateway name one place,
    # so that a trace over both shows whole.
    "CONSOLE": {
        "ENABLED": True,
        "PATH": os.environ.get("CONSOLE_PATH") or BASE_DIR / ".console",
        # Some minutes of visitors, so that the release before this one is still there to compare with.
        "MAX_TRACES": 10_000,
        "MAX_MB": 256,
    },
    # A ratio turned in the admin reaches every worker within this many seconds.
    "SAMPLING": {"REFRESH_S": 1},
}

ROOT_URLCONF = "example_project.urls"
WSGI_APPLICATION = "example_project.wsgi.application"
ASGI_APPLICATION = "example_project.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {
    "default": parse_database_url(os.environ["DATABASE_URL"])
    if os.environ.get("DATABASE_URL")
    else sqlite(BASE_DIR / "shop.sqlite3"),
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CACHES = {
    "default": parse_redis_url(os.environ["REDIS_URL"])
    if os.environ.get("REDIS_URL")
    else {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
}

# Invoices are sent by a task: by Celery where it is installed and has a broker, else by a thread of the web server.
CELERY_BROKER_URL = (
    os.environ["REDIS_URL"]
    if os.environ.get("REDIS_URL", "").startswith(("redis://", "rediss://")) and find_spec("celery")
    else ""
)
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
TASKS = {"default": {"BACKEND": "example_project.shop.threads.ThreadBackend"}}
# There is no mail server: messages are counted, and go nowhere.
EMAIL_BACKEND = "django.core.mail.backends.dummy.EmailBackend"

STATIC_URL = "/static/"
# Served from the apps' own folders, so that there is no collectstatic to forget.
WHITENOISE_USE_FINDERS = True

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True

PAYMENT_GATEWAY_URL = os.environ.get("PAYMENT_GATEWAY_URL", "http://127.0.0.1:8001")
PAYMENT_TIMEOUT_S = 2.0

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "traced": {
            "()": "logging.Formatter",
            "fmt": "{asctime} {levelname} {name} trace={otelTraceID} {message}",
            "style": "{",
            # Records made before telemetry starts, or with it switched off, have no trace id.
            "defaults": {"otelTraceID": "-"},
        },
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "traced"}},
    # Django's own console handler would say everything a second time.
    "loggers": {"django": {"handlers": [], "level": "INFO"}},
    "root": {"handlers": ["console"], "level": "INFO"},
}
