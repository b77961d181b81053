"""`/livez`, `/readyz`, `/startupz`: what they check, what they say, and that they answer before everything else."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

import pytest
from django.contrib.auth.models import User
from django.core.checks import run_checks
from django.core.management import call_command
from django.db import connections
from django.test import AsyncClient, Client, override_settings
from django.urls import include, path, re_path
from django.utils import translation

from django_otel import own_paths
from django_otel import views as own_views
from django_otel.base import guard
from tests import health_checks, services, sizes, views

PROBES = ("/livez", "/readyz", "/startupz")
TOKEN = "a metrics token"
every_database = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@contextlib.contextmanager
def database(alias, settings):
    """A further database of the project."""
    connections.settings[alias] = {**connections["default"].settings_dict, "ATOMIC_REQUESTS": False, **settings}
    try:
        yield alias
    finally:
        connections[alias].close()
        del connections[alias], connections.settings[alias]


def otel(**sections):
    # A busy machine may let a check wait for longer than the usual second.
    health = {"TIMEOUT_S": 60, **sections.pop("HEALTH", {})}
    return override_settings(OTEL={"SERVICE_NAME": "tests", **sections, "HEALTH": health})


def require(*names, **keys):
    return otel(HEALTH={"READY": list(names), "STARTUP": list(names), **keys})


@pytest.fixture(autouse=True)
def fresh():
    health_checks.calls.clear()
    health_checks.release.clear()
    health_checks.outcome["error"] = None
    yield
    health_checks.release.set()
    services.wait_until(
        lambda: not any(thread.name.startswith("django_otel health") for thread in threading.enumerate()),
        what="the end of the checks' threads",
    )


# --- What is checked. ---


@every_database
@pytest.mark.parametrize("page", ["/readyz", "/startupz"])
@pytest.mark.parametrize("name", ["config", "databases", "database:default", "caches", "cache:default", "migrations",
                                  "tests.health_checks.good", "tests.health_checks.good_async"])  # fmt: skip
def test_every_kind_of_check_passes(client, page, name):
    with require(name):
        response = client.get(page)
    assert (response.status_code, response.content) == (200, b"ok\n")


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("tests.health_checks.bad", b"tests.health_checks.bad (ValueError)"),
        ("tests.health_checks.leaves", b"tests.health_checks.leaves (SystemExit)"),
        ("tests.no_such_module.check", b"tests.no_such_module.check (ModuleNotFoundError)"),
        ("database:nowhere", b"database:nowhere (ConnectionDoesNotExist)"),
        ("cache:nowhere", b"cache:nowhere (InvalidCacheBackendError)"),
    ],
)
@pytest.mark.parametrize("page", ["/readyz", "/startupz"])
def test_a_check_that_fails_is_named_without_its_text(client, page, name, named):
    with require("config", name):
        response = client.get(page)
    assert response.status_code == 503
    assert response.content == b"failed: " + named + b"\n"


@every_database
@pytest.mark.heavy
def test_startup_requires_the_migrations_by_default_and_readiness_does_not(client):
    with otel():
        assert client.get("/startupz").status_code == 200
        call_command("migrate", "django_otel", "zero", verbosity=0)
        try:
            assert client.get("/readyz").status_code == 200
            response = client.get("/startupz")
            assert (response.status_code, response.content) == (503, b"failed: migrations (NotApplied)\n")
        finally:
            call_command("migrate", "django_otel", verbosity=0)
        assert client.get("/startupz").status_code == 200


def test_a_cache_that_hides_its_errors_is_not_healthy(client, settings):
    """As django-redis does with IGNORE_EXCEPTIONS; a dummy cache stores nothing on purpose."""
    settings.CACHES = {
        "default": {"BACKEND": "tests.operations.test_health.SilentCache"},
        "off": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"},
    }
    with require("caches"):
        assert client.get("/readyz").content == b"failed: cache:default (NotStored)\n"
    with require("cache:off"):
        assert client.get("/readyz").status_code == 200


def test_checks_run_at_once_and_each_has_its_time(client):
    """Three that hang take one period, not three; what works is not blamed."""
    names = ["tests.health_checks.hang", "tests.health_checks.good"]
    hanging = b"failed: tests.health_checks.hang (no answer within 0.5 s)\n"
    with require(*names, TIMEOUT_S=0.5):
        # A busy machine may need a further probe until what works has answered.
        services.wait_until(lambda: client.get("/readyz").content == hanging, what="only what hangs")


def test_a_check_that_hangs_is_not_started_again(client):
    with require("tests.health_checks.hang", TIMEOUT_S=0.05):
        for _ in range(20):
            assert client.get("/readyz").status_code == 503
        services.wait_until(lambda: health_checks.calls, what="the check's thread")
        assert health_checks.calls == ["hang"]
        health_checks.release.set()
        services.wait_until(lambda: client.get("/readyz").status_code == 200, what="a check that returns again")


def test_checks_run_in_parallel(client):
    """Each of the three returns only while the other two run."""
    with require(*(f"tests.health_checks.meet_{name}" for name in "abc"), TIMEOUT_S=30):
        assert client.get("/readyz").content == b"ok\n"


def find_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("django_otel health")]


def postgres_at(url, **options):
    host, _, port = url.partition("//")[2].partition(":")
    names = {"NAME": "x", "USER": "x", "HOST": host, "PORT": port}
    return {"ENGINE": "django.db.backends.postgresql", **names, "OPTIONS": {"connect_timeout": 600, **options}}


@pytest.mark.parametrize("page", ["/readyz", "/startupz"])
def test_a_database_that_accepts_and_never_answers_holds_one_thread(client, page, django_db_blocker):
    """It is the check's own limit that answers: the driver still waits on its open connection."""
    with services.start_black_hole() as url, database("hole", postgres_at(url)) as alias, django_db_blocker.unblock():
        with require(f"database:{alias}", TIMEOUT_S=0.1):
            for _ in range(10):
                response = client.get(page)
                assert response.status_code == 503
                assert response.content == b"failed: database:hole (no answer within 0.1 s)\n"
            [waiting] = find_threads()
            assert waiting.is_alive()
            assert client.get("/livez").status_code == 200


def test_what_hangs_is_named_alone_whatever_its_kind(client, settings, django_db_setup, django_db_blocker):
    """A replica, its migrations and a cache hang; the primary database, another cache and a function work."""
    with services.start_black_hole() as url, database("replica", postgres_at(url)), django_db_blocker.unblock():
        settings.CACHES = {
            "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
            "far": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": url.replace("http", "redis")},
        }
        with require("config", "databases", "caches", "migrations", "tests.health_checks.good", TIMEOUT_S=0.5):
            hanging = ", ".join(
                f"{name} (no answer within 0.5 s)" for name in ("database:replica", "cache:far", "migrations")
            )
            for _ in range(5):
                # A busy machine may need a further probe until what works has answered.
                services.wait_until(
                    lambda: client.get("/readyz").content.decode() == f"failed: {hanging}\n", what=f"only {hanging}"
                )
            assert len([thread for thread in find_threads() if "good" not in thread.name]) == 3


def test_a_replica_that_is_down_is_named_and_the_primary_is_not(client, django_db_setup, django_db_blocker):
    url = f"http://127.0.0.1:{services.free_port()}"
    with database("replica", postgres_at(url)), django_db_blocker.unblock():
        with require("databases"):
            assert client.get("/readyz").content == b"failed: database:replica (OperationalError)\n"
        with require("database:default"):
            assert client.get("/readyz").status_code == 200


@every_database
def test_checks_leave_neither_spans_nor_numbers_nor_connections(client, otel_spans, otel_metrics):
    opened = connections["default"].connection
    with require("databases", "caches", "migrations"):
        client.get("/readyz")
    assert not list(otel_spans)
    assert otel_metrics.value("db.client.operation.duration").count == 0
    assert otel_metrics.value("django.cache.operations") == 0
    assert connections["default"].connection is opened


def test_a_change_is_logged_once_with_its_reason_scrubbed(client, caplog):
    with require("tests.health_checks.choose"), caplog.at_level("INFO"):
        client.get("/readyz")
        caplog.clear()
        health_checks.outcome["error"] = ValueError("password=hunter2 refused")
        for _ in range(3):
            client.get("/readyz")
        health_checks.outcome["error"] = None
        client.get("/readyz")
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2, texts
    assert texts[0].startswith("/readyz answers 503: tests.health_checks.choose failed: ValueError: ")
    assert "hunter2" not in texts[0] and texts[1] == "/readyz answers 200 again"


# --- ?verbose. ---


def test_verbose_has_one_line_for_each_check_for_those_who_may_read_the_metrics(client, transactional_db):
    view = {"ALLOW": "token", "TOKEN": TOKEN}
    with otel(HEALTH={"READY": ["config", "database:default", "tests.health_checks.bad"]}, METRICS_VIEW=view):
        stranger = client.get("/readyz?verbose")
        operator = client.get("/readyz?verbose", HTTP_AUTHORIZATION=f"Bearer {TOKEN}")
    assert stranger.status_code == operator.status_code == 503
    assert stranger.content == b"failed: tests.health_checks.bad (ValueError)\n"
    lines = operator.content.decode().splitlines()
    assert [line.split(" (")[0] for line in lines] == [
        "[+] config ok",
        "[+] database:default ok",
        "[-] tests.health_checks.bad ValueError: password=[redacted] was refused",
        "failed",
    ]


@pytest.mark.parametrize("query", ["&".join(["verbose"] * 2000), "verbose&\u20ac"], ids=["too many", "no latin-1"])
@pytest.mark.parametrize("path", ["/readyz", "/startupz", "/livez", "/metrics"])
def test_a_query_that_django_refuses_to_read_fails_no_page(client, transactional_db, path, query):
    with otel(METRICS_VIEW={"ALLOW": "all"}, HEALTH={"READY": ["config"], "STARTUP": ["config"]}):
        answer = client.get(path, QUERY_STRING=query)
    assert answer.status_code == 200
    assert guard.fault_counts() == {}
    assert b"[+]" not in answer.content


def test_staff_read_the_verbose_page_through_their_session(transactional_db):
    client = Client()
    client.force_login(User.objects.create_user("ann", is_staff=True))
    with otel():
        assert b"[+] config ok" in client.get("/readyz?verbose").content
        assert b"[+]" not in Client().get("/readyz?verbose").content


# --- Before everything else. ---


class Stop(Exception):
    pass


def stopping_middleware(get_response):
    """Stands for every middleware that answers, redirects or fails."""

    def middleware(request):
        raise Stop

    return middleware


class SilentCache:
    """A cache whose server is gone and whose client says nothing."""

    def __init__(self, location, params):
        pass

    def set(self, *args, **kwargs):
        return True

    def get(self, key, default=None, **kwargs):
        return default

    def close(self, **kwargs):
        pass


STRICT = {
    "ALLOWED_HOSTS": ["shop.example"],
    "SECURE_SSL_REDIRECT": True,
    "DEBUG": False,
    "MIDDLEWARE": ["django_otel.middleware.OTelMiddleware", "tests.operations.test_health.stopping_middleware"],
}


@every_database
@pytest.mark.parametrize("page", ["/livez", "/readyz", "/startupz", "/internal/livez", "/internal/readyz"])
def test_probes_answer_before_every_other_middleware(page):
    with override_settings(**STRICT), otel():
        assert Client(raise_request_exception=False).get(page, HTTP_HOST="10.0.0.7:8000").status_code == 200


@pytest.mark.parametrize("page", ["/livez", "/readyz", "/startupz"])
async def test_probes_answer_before_every_other_middleware_async(page):
    with override_settings(**STRICT), otel(HEALTH={"STARTUP": ["config", "tests.health_checks.good"]}):
        response = await AsyncClient(raise_request_exception=False).get(page, headers={"host": "10.0.0.7:8000"})
    assert (response.status_code, response.content) == (200, b"ok\n")


def test_the_scrape_answers_by_pod_address_to_its_token():
    with override_settings(**STRICT), otel(METRICS_VIEW={"TOKEN": TOKEN}):
        client = Client(raise_request_exception=False)
        response = client.get("/metrics", HTTP_HOST="10.0.0.7:8000", HTTP_AUTHORIZATION=f"Bearer {TOKEN}")
        assert response.status_code == 200 and b"target_info" in response.content
        # Refused by us, not by the middleware that fails.
        assert client.get("/metrics", HTTP_HOST="10.0.0.7:8000").status_code == 401
        wrong = client.get("/metrics", HTTP_HOST="10.0.0.7:8000", HTTP_AUTHORIZATION="Bearer wrong")
        assert wrong.status_code == 401


async def test_the_scrape_answers_by_pod_address_to_its_token_async():
    with override_settings(**STRICT), otel(METRICS_VIEW={"TOKEN": TOKEN}):
        client = AsyncClient(raise_request_exception=False)
        response = await client.get("/metrics", headers={"host": "10.0.0.7", "authorization": f"Bearer {TOKEN}"})
        assert response.status_code == 200
        assert (await client.get("/metrics", headers={"host": "10.0.0.7"})).status_code == 401


@pytest.mark.parametrize("allow", ["auto", "staff", "private"])
def test_an_unknown_host_and_plain_http_refuse_a_stranger_as_before(allow, settings):
    """With Django's own middlewares: no redirect and no 400 for a scraper, no way in either."""
    settings.ALLOWED_HOSTS, settings.SECURE_SSL_REDIRECT = ["shop.example"], True
    with otel(METRICS_VIEW={"ALLOW": allow, "TOKEN": TOKEN}):
        response = Client().get("/metrics", HTTP_HOST="10.0.0.7:8000", REMOTE_ADDR="203.0.113.9")
    assert response.status_code == (403 if allow == "staff" else 401)


@pytest.mark.parametrize("left", ["ar", "en"])
@pytest.mark.parametrize(("method", "page"), [("get", "/metrics"), ("post", "/livez"), ("post", "/metrics")])
def test_a_page_before_all_middleware_is_in_the_language_of_its_request(client, settings, left, method, page):
    """Not in the one that the last request of the thread has left behind."""
    settings.LANGUAGES = [("en", "English"), ("de", "German"), ("ar", "Arabic")]
    with translation.override(left), otel(METRICS_VIEW={"ALLOW": "token", "TOKEN": TOKEN}):
        answers = [
            getattr(client, method)(page, headers={"accept-language": language}).content.decode()
            for language in ("de", "en", "ar")
        ]
        assert translation.get_language() == left
    assert len(set(answers)) == 3, answers
    assert answers[1].isascii(), answers


def test_staff_still_read_the_scrape_through_their_session(transactional_db):
    client = Client()
    client.force_login(User.objects.create_user("ann", is_staff=True))
    with otel(METRICS_VIEW={"TOKEN": TOKEN}):
        assert client.get("/metrics").status_code == 200
        assert client.get("/internal/metrics").status_code == 200
        # Their browser is sent to HTTPS, where its session cookie goes along.
        with override_settings(SECURE_SSL_REDIRECT=True):
            over_https = Client()
            over_https.cookies = client.cookies
            assert over_https.get("/metrics").status_code == 301
            assert over_https.get("/metrics", secure=True).status_code == 200


def test_a_function_of_the_project_sees_the_request_with_its_user(transactional_db, settings):
    client = Client()
    client.force_login(User.objects.create_user("ann"))
    with otel(METRICS_VIEW={"ALLOW": "tests.operations.test_health.is_ann"}):
        assert client.get("/metrics").status_code == 200
        assert Client().get("/metrics").status_code == 403


def is_ann(request):
    return request.user.is_authenticated and request.user.username == "ann"


@pytest.mark.parametrize("name", ["/livez/", "//livez", "/LIVEZ", "/livez/x", "/hello/", "/metrics/", "/nested/livez"])
def test_no_other_path_becomes_reachable(name):
    with override_settings(**STRICT), otel():
        assert Client(raise_request_exception=False).get(name, HTTP_HOST="10.0.0.7").status_code == 500


def test_disabled_and_faulty_settings_answer_as_early():
    client = Client(raise_request_exception=False)
    with override_settings(**STRICT):
        with otel(ENABLED=False):
            assert [client.get(page).status_code for page in ("/livez", "/readyz")] == [200, 200]
        with otel(NO_SUCH=1):
            assert [client.get(page).status_code for page in (*PROBES, "/metrics")] == [200, 503, 503, 503]
            assert client.get("/hello/").status_code == 500


def test_a_transaction_for_each_request_is_not_opened(settings, client, django_db_blocker):
    """ATOMIC_REQUESTS with a database that is down: also where our middleware is not in the list at all."""
    settings.MIDDLEWARE = []
    with django_db_blocker.unblock():
        down = {"ENGINE": "django.db.backends.postgresql", "NAME": "x", "HOST": "127.0.0.1", "PORT": "1"}
        with database("down", {**down, "ATOMIC_REQUESTS": True}), otel(METRICS_VIEW={"ALLOW": "all"}):
            pages = ("/livez", "/readyz", "/metrics")
            assert [Client().get(page).status_code for page in pages] == [200, 200, 200]


def test_after_other_middlewares_the_pages_answer_as_well(settings):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE[1:], settings.MIDDLEWARE[0]]
    with otel(METRICS_VIEW={"ALLOW": "all"}):
        assert [Client().get(page).status_code for page in ("/livez", "/readyz", "/metrics")] == [200, 200, 200]


# --- Where our pages are. ---


def urlconf(*patterns):
    return override_settings(ROOT_URLCONF=tuple(patterns), **STRICT)


@pytest.mark.parametrize(
    ("pattern", "page"),
    [
        (path("ops/", include("django_otel.urls")), "/ops/livez"),
        (path("a/b c/", include("django_otel.urls")), "/a/b c/livez"),
        (re_path(r"^ops\.v1/", include("django_otel.urls")), "/ops.v1/livez"),
        (path("ops/", include([path("deep/", include("django_otel.urls"))])), "/ops/deep/livez"),
        (path("healthz", own_views.livez), "/healthz"),
    ],
)
def test_any_fixed_prefix(pattern, page):
    with urlconf(pattern):
        assert Client(raise_request_exception=False).get(page).status_code == 200
        assert Client(raise_request_exception=False).get("/livez").status_code == 500


def test_a_page_of_the_project_at_such_a_path_is_left_alone(otel_spans):
    """It is the project's middlewares that serve it, and it is measured."""
    mine = path("livez", views.hello)
    with override_settings(ROOT_URLCONF=(mine, path("ops/", include("django_otel.urls")))):
        assert Client().get("/livez").content != b"ok\n"
        assert Client().get("/ops/livez").content == b"ok\n"
    assert [span.name for span in otel_spans] == ["GET /livez"]
    # Also where ours stands behind it.
    with urlconf(mine, path("", include("django_otel.urls"))):
        assert Client(raise_request_exception=False).get("/livez").status_code == 500
        assert Client().get("/readyz").status_code == 200


def test_a_view_of_ours_inside_a_decorator_of_the_project_is_not_answered_early():
    """The decorator may restrict it."""
    from django.contrib.admin.views.decorators import staff_member_required

    with urlconf(path("metrics", staff_member_required(own_views.metrics))):
        assert Client(raise_request_exception=False).get("/metrics").status_code == 500


def test_a_prefix_for_each_language(settings):
    from django.conf.urls.i18n import i18n_patterns

    with urlconf(*i18n_patterns(path("ops/", include("django_otel.urls")))):
        client = Client(raise_request_exception=False)
        assert [client.get(page).status_code for page in ("/en/ops/livez", "/de/ops/livez", "/fr/ops/livez")] == [
            200, 200, 500,
        ]  # fmt: skip


def test_below_a_script_name(settings):
    settings.FORCE_SCRIPT_NAME = "/shop"
    with override_settings(**STRICT), otel():
        assert Client(raise_request_exception=False).get("/livez").status_code == 200


# --- Settings. ---


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"REDY": []}, "E001", "READY"),
        ({"READY": "config"}, "E002", "list"),
        ({"READY": ["database"]}, "E002", "'databases'"),
        ({"READY": ["database:"]}, "E002", "database:<alias>"),
        ({"STARTUP": ["migration"]}, "E002", "Did you mean 'migrations'?"),
        ({"READY": [7]}, "E002", "dotted path"),
        ({"READY": ["shop..check"]}, "E003", "dotted"),
        ({"TIMEOUT_S": 0}, "E002", "above 0"),
        ({"READY": ["database:defalt"]}, "E002", "'database:default'"),
        ({"STARTUP": ["cache:nowhere"]}, "E002", "'cache:default'"),
        ({"READY": ["tests.no_such.check"]}, "E003", "cannot be imported"),
        ({"READY": ["tests.health_checks.NOT_CALLABLE"]}, "E003", "callable"),
    ],
)
@pytest.mark.django_db(databases=["default", "other"])
def test_faulty_settings_are_errors_of_the_check(given, error, text):
    with override_settings(OTEL={"HEALTH": given}):
        found = [message for message in run_checks(tags=["django_otel"]) if message.id == f"django_otel.{error}"]
    assert len(found) == 1 and "HEALTH" in found[0].msg and text in f"{found[0].msg} {found[0].hint}", found


def test_the_defaults():
    from django_otel.config.schema import Health

    assert (Health().ready, Health().startup, Health().timeout_s) == (("config",), ("config", "migrations"), 1.0)


# --- A real server and a real database that stops. ---


@pytest.mark.parametrize("kind", sizes.few(["gunicorn", "uvicorn"], 2))
def test_a_stopped_database_is_named(kind):
    """The check's limit is its default of a second, and answers 503 where the driver has not done so before."""
    if "DATABASE_URL" in os.environ:
        pytest.skip("DATABASE_URL names a server that is not to be stopped")
    settings = {"HEALTH": {"READY": ["config", "databases"]}, "SAMPLING": {"LIVE": False}}
    server = services.start_postgres()
    url = server.__enter__()
    try:
        with services.serve(kind, settings, TEST_DATABASE_URL=url, TEST_ATOMIC_REQUESTS="1") as site:
            services.wait_until(lambda: site.get("/readyz")[0] == 200, 30, "a ready server")
            server.__exit__(None, None, None)
            server = None
            status, _, body = site.get("/readyz")
            assert status == 503
            assert body.decode().strip() in (
                "failed: database:default (OperationalError)",
                "failed: database:default (no answer within 1 s)",
            )
            assert site.get("/livez")[0] == 200
    finally:
        if server is not None:
            server.__exit__(None, None, None)


@pytest.mark.parametrize("kind", ["gunicorn", "uvicorn"])
def test_a_database_that_hangs_is_named_while_its_connection_is_open(kind):
    settings = {"HEALTH": {"READY": ["config", "databases"]}, "SAMPLING": {"LIVE": False}}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        url = f"postgres://x:x@127.0.0.1:{listener.getsockname()[1]}/x"
        with services.serve(kind, settings, TEST_DATABASE_URL=url, TEST_ATOMIC_REQUESTS="1") as site:
            for _ in range(3):
                status, _, body = site.get("/readyz")
                assert (status, body.decode().strip()) == (503, "failed: database:default (no answer within 1 s)")
            connection, _ = listener.accept()
            with connection:
                # The driver's first message is here, and nothing says that the driver gave up.
                assert connection.recv(64)
                connection.setblocking(False)
                with pytest.raises(BlockingIOError):
                    connection.recv(64)
                # Three probes made one connection.
                listener.setblocking(False)
                with pytest.raises(BlockingIOError):
                    listener.accept()
                assert site.get("/livez")[0] == 200


# --- A URLconf for each host. ---


PER_HOST = [f"tests.urlconf_per_host.{name}" for name in ("choose_urlconf", "ChoosesUrlconf")]


@pytest.mark.parametrize("chooser", PER_HOST)
@pytest.mark.parametrize("allow", ["all", "token", "auto"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_page_of_the_project_in_the_urlconf_of_a_host_is_not_shadowed(settings, chooser, allow, is_first):
    settings.ALLOWED_HOSTS = ["tenant.example", "shop.example"]
    ours = "django_otel.middleware.OTelMiddleware"
    settings.MIDDLEWARE = [ours, chooser] if is_first else [chooser, ours]
    client = Client(raise_request_exception=False)
    with otel(METRICS_VIEW={"ALLOW": allow, "TOKEN": TOKEN}):
        for page in ("/metrics", "/readyz"):
            assert client.get(page, HTTP_HOST="tenant.example").content == b"the tenant's own page"
        assert client.get("/livez", HTTP_HOST="tenant.example").status_code == 404
        # The other hosts have ours.
        key = {"HTTP_HOST": "shop.example", "HTTP_AUTHORIZATION": f"Bearer {TOKEN}"}
        assert b"target_info" in client.get("/metrics", **key).content
        assert client.get("/readyz", HTTP_HOST="shop.example").content == b"ok\n"
        if is_first:
            assert client.get("/readyz", HTTP_HOST="10.0.0.7:8000").content == b"ok\n"
            assert b"target_info" in client.get("/metrics", **{**key, "HTTP_HOST": "10.0.0.7:8000"}).content


@pytest.mark.parametrize("chooser", PER_HOST)
async def test_a_page_of_the_project_in_the_urlconf_of_a_host_is_not_shadowed_async(settings, chooser):
    settings.MIDDLEWARE = ["django_otel.middleware.OTelMiddleware", chooser]
    client = AsyncClient(raise_request_exception=False)
    with otel(METRICS_VIEW={"TOKEN": TOKEN}):
        for page in ("/metrics", "/readyz"):
            assert (await client.get(page, headers={"X-Tenant": "1"})).content == b"the tenant's own page"
        assert (await client.get("/readyz")).content == b"ok\n"
        # Not by the fixture, which would put back what is in force here when all of this is over.
        with override_settings(ALLOWED_HOSTS=["shop.example"]):
            assert (await client.get("/readyz")).content == b"ok\n"


@pytest.mark.django_db
@pytest.mark.parametrize("chooser", PER_HOST)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_page_of_the_project_at_a_path_of_ours_is_measured(settings, otel_spans, otel_metrics, chooser, is_first):
    settings.ALLOWED_HOSTS = ["tenant.example", "shop.example"]
    ours = "django_otel.middleware.OTelMiddleware"
    settings.MIDDLEWARE = [ours, chooser] if is_first else [chooser, ours]
    client = Client(raise_request_exception=False)
    with otel(METRICS_VIEW={"ALLOW": "all"}):
        for _ in range(2):
            # Also once ours have answered at the same paths.
            for page in ("/metrics", "/readyz", "/livez"):
                client.get(page, HTTP_HOST="shop.example")
                client.get(page, HTTP_HOST="tenant.example")
        assert sorted(span.name for span in otel_spans) == ["GET"] * 2 + ["GET /metrics"] * 2 + ["GET /readyz"] * 2
        counted = {
            route: otel_metrics.value("http.server.request.duration", {"http.route": route}).count
            for route in ("/metrics", "/readyz")
        }
        assert counted == {"/metrics": 2, "/readyz": 2}
        assert otel_metrics.value("http.server.active_requests") == 0


@pytest.mark.parametrize("chooser", PER_HOST)
async def test_a_page_of_the_project_at_a_path_of_ours_is_measured_async(settings, otel_spans, chooser):
    settings.MIDDLEWARE = ["django_otel.middleware.OTelMiddleware", chooser]
    client = AsyncClient(raise_request_exception=False)
    with otel(METRICS_VIEW={"ALLOW": "all"}):
        for _ in range(2):
            assert b"target_info" in (await client.get("/metrics")).content
            await client.get("/metrics", headers={"X-Tenant": "1"})
    assert [span.name for span in otel_spans] == ["GET /metrics"] * 2


def test_without_such_a_middleware_every_host_is_answered_early():
    """Django's own read `request.urlconf` and never set it."""
    with override_settings(MIDDLEWARE=[*STRICT["MIDDLEWARE"][:1], "django.middleware.locale.LocaleMiddleware"]):
        assert not own_paths.may_choose_urlconf()
    for chooser in PER_HOST:
        with override_settings(MIDDLEWARE=[chooser]):
            assert own_paths.may_choose_urlconf()
