"""Settings of the project before and after moving: `MOVED_BY` is "django_prometheus" or "django_otel"."""

import os

THEIRS = os.environ.get("MOVED_BY") == "django_prometheus"
SECRET_KEY = "x" * 50
ALLOWED_HOSTS = ["*"]
DEBUG = False
USE_TZ = True
ROOT_URLCONF = "tests.moved.urls"
WSGI_APPLICATION = "tests.moved.wsgi.application"
DATABASES = {
    "default": {
        "ENGINE": "django_prometheus.db.backends.sqlite3" if THEIRS else "django.db.backends.sqlite3",
        "NAME": os.environ.get("MOVED_SQLITE", ":memory:"),
    }
}
CACHES = {
    "default": {
        "BACKEND": "django_prometheus.cache.backends.locmem.LocMemCache"
        if THEIRS
        else "django.core.cache.backends.locmem.LocMemCache"
    },
    "files": {
        "BACKEND": "django_prometheus.cache.backends.filebased.FileBasedCache"
        if THEIRS
        else "django.core.cache.backends.filebased.FileBasedCache",
        "LOCATION": os.environ.get("MOVED_SQLITE", "/tmp/django_otel-moved") + ".cache",
    },
}
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {
            "loaders": [("django.template.loaders.locmem.Loader", {"index.html": "<p>{{ text }}</p>"})],
        },
    }
]
INSTALLED_APPS = ["tests.moved.apps.MovedConfig", "django_prometheus" if THEIRS else "django_otel"]
MIDDLEWARE = (
    [
        "django_prometheus.middleware.PrometheusBeforeMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django_prometheus.middleware.PrometheusAfterMiddleware",
    ]
    if THEIRS
    else ["django_otel.middleware.OTelMiddleware", "django.middleware.common.CommonMiddleware"]
)
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
OTEL = {
    "SERVICE_NAME": "moved",
    "METRICS": {"NAMES": os.environ.get("MOVED_NAMES", "django_prometheus")},
    "METRICS_VIEW": {"ALLOW": "all"},
    "BUSINESS": {"moved.Lawn": {"created": "lawn.sown", "deleted": "lawn.paved"}},
}
LOGGING = {"version": 1, "disable_existing_loggers": False, "loggers": {"django": {"level": "CRITICAL"}}}
