"""The console where several requests share a thread (gevent) and where no Python hook runs at a fork (uWSGI)."""

from __future__ import annotations

import importlib.util
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from tests import services
from tests.pages import parse_text

DASHBOARD, TRACES = "/admin/django_otel/dashboard/", "/admin/django_otel/trace/"

#: A request may wait longer than uWSGI's four seconds on a busy machine.
PATIENT = ("--socket-timeout", "60")
SERVERS = {
    "gevent": ("gunicorn-gevent", ()),
    "gevent, preloaded": ("gunicorn-gevent", ("--preload", "--config", "python:tests.gunicorn_gevent")),
    "uWSGI": ("uwsgi", ("--enable-threads", *PATIENT)),
    "uWSGI with threads": ("uwsgi", ("--enable-threads", "--threads", "4", *PATIENT)),
    "uWSGI, loaded in the worker": ("uwsgi", ("--enable-threads", "--lazy-apps", *PATIENT)),
}


def open_session():
    """What asks once more when the connection was reset: uWSGI does that now and then, with telemetry and without."""
    session = requests.Session()
    session.headers["Connection"] = "close"
    session.mount("http://", HTTPAdapter(max_retries=Retry(total=5, backoff_factor=0.1)))
    return session


SIGN_IN = """
import django
django.setup()
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.sessions.backends.db import SessionStore
user = get_user_model().objects.create_superuser("ada", password="x")
session = SessionStore()
session[SESSION_KEY] = str(user.pk)
session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
session[HASH_SESSION_KEY] = user.get_session_auth_hash()
session.save()
print(session.session_key)
"""


def sign_in(environment):
    """The cookies of a superuser."""
    done = services.run_python(SIGN_IN, {**environment, "OTEL_SDK_DISABLED": "true"})
    return {"sessionid": done.stdout.strip()}


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.long
def test_the_console_holds_under_load(name, tmp_path):
    """Two processes, requests and pages at once: nothing blocks, every trace arrives, the figures are the scrape's."""
    kind, arguments = SERVERS[name]
    if kind == "uwsgi" and services.find_uwsgi() is None:
        pytest.skip("pip install uwsgi")
    if kind == "gunicorn-gevent" and importlib.util.find_spec("gevent") is None:
        pytest.skip("pip install gevent")
    otel = {
        "SERVICE_NAME": "shop", "CONSOLE": {"ENABLED": True, "PATH": str(tmp_path / "store"), "MAX_TRACES": 5000},
        "METRICS_VIEW": {"ALLOW": "all"}, "SAMPLING": {"LIVE": False},
    }  # fmt: skip
    database = {"TEST_SQLITE": str(tmp_path / "app.sqlite3")}
    with services.serve(kind, otel, workers=2, arguments=arguments, migrate=True, **database) as server:
        cookies = sign_in(services.server_env(otel, **database))

        def get_page(path):
            with open_session() as session:
                answer = session.get(f"{server.url}{path}", cookies=cookies, timeout=120)
            assert answer.status_code == 200, (path, answer.status_code)
            return answer.text

        def scraped():
            samples = parse_text(server.get("/metrics")[2]).samples
            return round(sum(n for (name, _), n in samples.items() if name.endswith("request_duration_seconds_count")))

        with ThreadPoolExecutor(12) as pool:
            load = [pool.submit(server.get, path) for path in ("/queries/", "/hello/", "/boom/") for _ in range(40)]
            looks = [pool.submit(get_page, path) for path in (TRACES, DASHBOARD) for _ in range(10)]
            assert sorted({answer.result()[0] for answer in load}) == [200, 500]
            # A lock held over a switch would be for ever.
            for look in looks:
                look.result()

        def is_there(text, path):
            return text in re.sub(r"<[^>]+>|\s", "", get_page(path))

        services.wait_until(lambda: is_there("40of", f"{TRACES}?route=/queries/"), 30, "the traces of /queries/")
        services.wait_until(lambda: is_there("40of", f"{TRACES}?route=/boom/&error=1"), 30, "the failed ones")
        page = get_page(f"{DASHBOARD}?minutes=5")
        shown = int(re.sub(r"\D", "", re.search(r'otel-tile-value"><bdi[^>]*>([^<]+)<', page)[1]))
        assert shown == scraped() >= 120
        # Both processes have said that they live, and one has sampled for both.
        services.wait_until(lambda: is_there("Processes2", f"{DASHBOARD}?minutes=5"), 30, "both processes")
        log = server.log
    assert "django_otel: " not in log, "nothing of ours had to be contained"
