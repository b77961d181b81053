"""Settings of the test project: small, like a project that has just added the app."""

import os
import tempfile

import django

SECRET_KEY = "only for tests"
DEBUG = False
ALLOWED_HOSTS = ["testserver", "localhost", "127.0.0.1"]
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_otel",
    "tests.app",
    "tests.business_app",
    "tests.relations",
]
MIDDLEWARE = [
    "django_otel.middleware.OTelMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
ROOT_URLCONF = os.environ.get("TEST_ROOT_URLCONF", "tests.urls")
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        # Servers started by the tests share the file that the variable names.
        "NAME": os.environ.get(
            "TEST_SQLITE", os.path.join(tempfile.gettempdir(), f"django_otel-{os.getpid()}.sqlite3")
        ),
        "TEST": {"NAME": None},
    },
    # A second alias, for what must hold with several databases.
    "other": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
}
if "TEST_DATABASE_URL" in os.environ:
    from tests.services import parse_database_url

    DATABASES["default"] = parse_database_url(os.environ["TEST_DATABASE_URL"])
if "TEST_ATOMIC_REQUESTS" in os.environ:
    DATABASES["default"]["ATOMIC_REQUESTS"] = True
if "TEST_CACHE" in os.environ:
    CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": os.environ["TEST_CACHE"]}
    }
if "TEST_CLOCK" in os.environ:
    # A clock that jumps by as many seconds as the file says.
    import pathlib
    import time

    _time, _offset = time.time, pathlib.Path(os.environ["TEST_CLOCK"])
    time.time = lambda: _time() + float(_offset.read_text() or 0)
if "TEST_MAILS" in os.environ:
    # Mails into a folder, without those that Django itself sends of each failed request.
    _backend, _folder = "django.core.mail.backends.filebased.EmailBackend", os.environ["TEST_MAILS"]
    if django.VERSION >= (6, 1):
        MAILERS = {"default": {"BACKEND": _backend, "OPTIONS": {"file_path": _folder}}}
    else:
        EMAIL_BACKEND, EMAIL_FILE_PATH = _backend, _folder
    ADMINS = [("Ada", "ada@example.com")]
    LOGGING = {"version": 1, "loggers": {"django.request": {"handlers": [], "propagate": False}}}
USE_TZ = True
LANGUAGES = [("en", "English"), ("de", "German")]
STATIC_URL = "/static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
OTEL = {"SERVICE_NAME": "tests"}
if "TEST_OTEL" in os.environ:
    import json

    OTEL = json.loads(os.environ["TEST_OTEL"])
