"""Projects with other libraries answer the same with the app and without it, and are traced as they should be.

Each test makes a project in `tmp_path` and asks it in a process of its own, twice.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import services

ROOT = Path(__file__).resolve().parent.parent.parent
#: Different in each answer, with any packages.
VOLATILE = ["date", "expires", "last-modified", "server-timing", "set-cookie"]

SETTINGS = """
from pathlib import Path

BASE_DIR = Path(__file__).parent
SECRET_KEY = "field"
DEBUG = False
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "urls"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
STATIC_URL = "/static/"
USE_TZ = True
"""

ADDED = """
INSTALLED_APPS = [*INSTALLED_APPS, "django_otel"]
MIDDLEWARE = ["django_otel.middleware.OTelMiddleware", *MIDDLEWARE]
OTEL = {"SERVICE_NAME": "field", "SAMPLING": {"LIVE": False}, "CONSOLE": {"ENABLED": False}}
"""

PROBE = """
import contextlib, json, os, sys

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
import django

django.setup()
from django.apps import apps
from django.test import Client

DURATION = "http.server.request.duration"
has_app = apps.is_installed("django_otel")
spans = metrics = ()
with contextlib.ExitStack() as stack:
    if has_app:
        from django_otel.testing import capture_metrics, capture_spans

        spans, metrics = stack.enter_context(capture_spans()), stack.enter_context(capture_metrics())
    client, answers = Client(raise_request_exception=False), []
    for method, path in json.loads(sys.argv[1]):
        response = getattr(client, method.lower())(path)
        headers = {name.lower(): value for name, value in response.items()}
        answers.append([response.status_code, headers, b"".join(response).decode()])
    import extra

    print(json.dumps({
        "answers": answers,
        "spans": [[span.name, span.kind.name, dict(span.attributes)] for span in spans],
        "requests": metrics.value(DURATION).count if has_app else 0,
        "extra": extra.result(),
    }, default=str))
"""


def need(module: str, distribution: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{distribution} is missing: pip install {distribution}")


def write(folder: Path, settings: str, urls: str, with_app: bool, extra: str) -> None:
    folder.mkdir()
    (folder / "settings.py").write_text(SETTINGS + settings + (ADDED if with_app else ""))
    (folder / "urls.py").write_text(urls)
    (folder / "probe.py").write_text(PROBE)
    (folder / "extra.py").write_text(extra)


def ask(folder: Path, requests: list[tuple[str, str]]) -> dict:
    done = subprocess.run(
        [sys.executable, "probe.py", json.dumps(requests)],
        cwd=folder,
        env=services.server_env(DJANGO_SETTINGS_MODULE="settings", PYTHONPATH=f"{folder}:{ROOT}"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for _, headers, _ in found["answers"]:
        for name in VOLATILE:
            headers.pop(name, None)
    return found


def compare(tmp_path: Path, settings: str, urls: str, *requests, extra: str = "result = dict\n", files=()) -> dict:
    """Return what the project with the app gave, once its responses equal those of the project without it."""
    found = []
    for with_app in (False, True):
        folder = tmp_path / ("with" if with_app else "without")
        write(folder, settings, urls, with_app, extra)
        for name, text in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
            # An ETag is made of it.
            os.utime(folder / name, (1_700_000_000, 1_700_000_000))
        found.append(ask(folder, list(requests)))
    without, with_app = found
    assert with_app["answers"] == without["answers"]
    assert with_app["requests"] == len(requests)
    return {**with_app, "without": without}


def views_of(found: dict) -> list:
    return [attributes.get("django.view") for _, kind, attributes in found["spans"] if kind == "SERVER"]


def test_a_viewset_of_rest_framework_is_named_with_its_action(tmp_path):
    need("rest_framework", "djangorestframework")
    urls = """
from django.urls import include, path
from rest_framework import routers, viewsets
from rest_framework.decorators import action
from rest_framework.response import Response

class Orders(viewsets.ViewSet):
    def list(self, request):
        return Response([1, 2])
    def create(self, request):
        return Response({"made": True}, status=201)
    @action(detail=True)
    def ship(self, request, pk):
        return Response({"shipped": pk})

router = routers.SimpleRouter()
router.register("orders", Orders, basename="order")
urlpatterns = [path("", include(router.urls))]
"""
    settings = 'INSTALLED_APPS += ["rest_framework"]\n'
    asked = [("GET", "/orders/"), ("POST", "/orders/"), ("GET", "/orders/7/ship/"), ("DELETE", "/orders/")]
    found = compare(tmp_path, settings, urls, *asked)

    assert [status for status, _, _ in found["answers"]] == [200, 201, 200, 405]
    assert views_of(found)[:3] == ["urls.Orders.list", "urls.Orders.create", "urls.Orders.ship"]


def test_an_operation_of_ninja_is_named(tmp_path):
    need("ninja", "django-ninja")
    urls = """
from django.urls import path
from ninja import NinjaAPI

api = NinjaAPI()

@api.get("/orders/{number}")
def read_order(request, number: int):
    return {"number": number}

@api.post("/orders/{number}")
def pay_order(request, number: int):
    return {"paid": number}

urlpatterns = [path("api/", api.urls)]
"""
    found = compare(tmp_path, "", urls, ("GET", "/api/orders/7"), ("POST", "/api/orders/7"), ("GET", "/api/orders/x"))

    assert [status for status, _, _ in found["answers"]] == [200, 200, 422]
    assert views_of(found) == ["urls.read_order", "urls.pay_order", "urls.read_order"]


PLAIN = """
import logging
from django.http import HttpResponse
from django.urls import path

def hello(request):
    return HttpResponse("<html><body>hello</body></html>")

def fail(request):
    raise ValueError("planted")

urlpatterns = [path("hello/", hello), path("fail/", fail)]
"""


def test_static_files_of_whitenoise_are_counted_and_not_traced(tmp_path):
    need("whitenoise", "whitenoise")
    settings = """
MIDDLEWARE += ["whitenoise.middleware.WhiteNoiseMiddleware"]
STATIC_ROOT = BASE_DIR / "collected"
"""
    files = [("collected/site.css", "body { color: red }")]
    found = compare(tmp_path, settings, PLAIN, ("GET", "/static/site.css"), ("GET", "/hello/"), files=files)

    assert found["answers"][0][2] == "body { color: red }"
    assert views_of(found) == ["urls.hello"]


def test_debug_toolbar_stays_on_the_page(tmp_path):
    need("debug_toolbar", "django-debug-toolbar")
    settings = """
DEBUG = True
INSTALLED_APPS += ["django.contrib.staticfiles", "debug_toolbar"]
MIDDLEWARE += ["debug_toolbar.middleware.DebugToolbarMiddleware"]
DEBUG_TOOLBAR_CONFIG = {"SHOW_TOOLBAR_CALLBACK": "settings.show", "DISABLE_PANELS": set(), "IS_RUNNING_TESTS": False}
DEBUG_TOOLBAR_PANELS = ["debug_toolbar.panels.sql.SQLPanel"]
def show(request):
    return True
"""
    urls = (
        PLAIN
        + """
from debug_toolbar.toolbar import debug_toolbar_urls
from django.contrib.auth.models import User
from django.db import connection

def counted(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 42")
    return HttpResponse("<html><body>counted</body></html>")

urlpatterns += [path("counted/", counted), *debug_toolbar_urls()]
"""
    )
    # Its page has identifiers and times of its own: only that it is there, with its query, is compared.
    found = []
    for with_app in (False, True):
        folder = tmp_path / str(with_app)
        write(folder, settings, urls, with_app, "result = dict\n")
        found.append(ask(folder, [("GET", "/counted/")]))
    for answer in (each["answers"][0] for each in found):
        assert answer[0] == 200
        assert 'id="djDebug"' in answer[2]
        assert "1 query" in answer[2]
    assert views_of(found[1]) == ["urls.counted"]


def test_sentry_gets_the_same_events(tmp_path):
    need("sentry_sdk", "sentry-sdk")
    settings = """
import sentry_sdk
from sentry_sdk.integrations.django import DjangoIntegration
EVENTS = []
def keep(event, hint):
    EVENTS.append([event["exception"]["values"][0]["type"], event.get("transaction")])
    return None
sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", integrations=[DjangoIntegration()], before_send=keep)
"""
    extra = "import settings\ndef result():\n    return settings.EVENTS\n"
    found = compare(tmp_path, settings, PLAIN, ("GET", "/hello/"), ("GET", "/fail/"), extra=extra)

    assert [status for status, _, _ in found["answers"]] == [200, 500]
    assert found["extra"] == found["without"]["extra"] == [["ValueError", "/fail/"]]


def test_structlog_has_the_trace_of_the_request(tmp_path):
    need("structlog", "structlog")
    settings = """
import logging, structlog
LINES = []
class Keep(logging.Handler):
    def emit(self, record):
        LINES.append([record.getMessage(), getattr(record, "otelTraceID", None)])
logging.getLogger("shop").addHandler(Keep())
logging.getLogger("shop").setLevel("INFO")
structlog.configure(
    processors=[structlog.stdlib.add_log_level, structlog.processors.JSONRenderer(sort_keys=True)],
    logger_factory=structlog.stdlib.LoggerFactory(),
)
"""
    urls = (
        PLAIN
        + """
import structlog

def logged(request):
    structlog.get_logger("shop").info("paid", order=7)
    return HttpResponse("logged")

urlpatterns += [path("logged/", logged)]
"""
    )
    extra = """
import settings

def result():
    return settings.LINES
"""
    found = compare(tmp_path, settings, urls, ("GET", "/logged/"), extra=extra)

    [[line, trace_id]] = found["extra"]
    assert json.loads(line) == {"event": "paid", "level": "info", "order": 7}
    assert len(trace_id) == 32 and trace_id != "0" * 32
    assert found["without"]["extra"] == [[line, None]]


def test_a_task_of_celery_gives_the_same(tmp_path):
    need("celery", "celery")
    urls = (
        PLAIN
        + """
from celery import Celery

app = Celery("field")
app.conf.update(task_always_eager=True, task_store_eager_result=False)

@app.task
def add(a, b):
    return a + b

def added(request):
    return HttpResponse(str(add.delay(1, 2).get()))

urlpatterns += [path("added/", added)]
"""
    )
    found = compare(tmp_path, "", urls, ("GET", "/added/"))

    assert found["answers"][0][2] == "3"
    assert views_of(found) == ["urls.added"]


def test_a_cache_of_django_redis_gives_the_same_and_is_counted(tmp_path, valkey_url):
    need("django_redis", "django-redis")
    settings = f"""
VALKEY = "{valkey_url}"
CACHES = {{"default": {{"BACKEND": "django_redis.cache.RedisCache", "LOCATION": VALKEY, "KEY_PREFIX": "field"}}}}
INSTALLED_APPS += ["django.contrib.sessions"]
MIDDLEWARE += ["django.contrib.sessions.middleware.SessionMiddleware"]
SESSION_ENGINE = "django.contrib.sessions.backends.cache"
"""
    urls = (
        PLAIN
        + """
from django.core.cache import cache

def cached(request):
    cache.clear()
    first = cache.get("order")
    cache.set("order", {"total": 7}, 60)
    cache.set_many({"a": 1, "b": 2})
    with cache.lock("stock", timeout=5):
        cache.incr("a")
    left = cache.ttl("order")
    keys = sorted(cache.keys("*"))
    deleted = cache.delete_pattern("b*")
    return HttpResponse(f"{first} {cache.get('order')} {cache.get_many(['a', 'b'])} {0 < left <= 60} {keys} {deleted}")

def visited(request):
    request.session["visits"] = request.session.get("visits", 0) + 1
    return HttpResponse(str(request.session["visits"]))

urlpatterns += [path("cached/", cached), path("visited/", visited)]
"""
    )
    extra = """
from __main__ import metrics

def result():
    count = lambda outcome: metrics.value("django.cache.operations", django__cache__outcome=outcome)
    return metrics and {outcome: count(outcome) for outcome in ("hit", "miss")}
"""
    asked = [("GET", "/cached/"), ("GET", "/visited/"), ("GET", "/visited/")]
    found = compare(tmp_path, settings, urls, *asked, extra=extra)

    texts = [text for _, _, text in found["answers"]]
    assert texts == ["None {'total': 7} {'a': 2} True ['a', 'b', 'order'] 1", "1", "2"]
    # Found: "order", "a", the session by its load and its save. Missed: the first "order", "b", the new session's key.
    assert found["extra"] == {"hit": 4, "miss": 3}
    names = [name for name, kind, _ in found["spans"] if kind == "CLIENT"]
    assert {"GET", "SET"} <= set(names), names
    assert "order" not in json.dumps([attributes for _, kind, attributes in found["spans"] if kind == "CLIENT"])
