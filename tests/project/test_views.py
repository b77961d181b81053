"""`/metrics`, `/livez`, `/readyz`: who may read what, in which format, and what they leave behind: nothing."""

from __future__ import annotations

import gzip
import logging
import os
import threading

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.test import AsyncClient, Client, RequestFactory
from django.urls import reverse
from prometheus_client import REGISTRY, Counter

import django_otel
from django_otel import runtime, views
from django_otel.base import guard
from tests import sizes
from tests.pages import parse_openmetrics, parse_text

TOKEN = "correct horse battery staple"
OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


@pytest.fixture(autouse=True)
def _fresh_guard():
    guard.reset()
    yield
    guard.reset()


@pytest.fixture
def otel(settings):
    """Set METRICS_VIEW, and other sections by keyword."""

    def configure(allow=None, token=None, **sections):
        view = {key: value for key, value in (("ALLOW", allow), ("TOKEN", token)) if value is not None}
        settings.OTEL = {"SERVICE_NAME": "tests", "METRICS_VIEW": view, **sections}

    return configure


@pytest.fixture
def open_page(otel):
    otel("all")


def bearer(token):
    return {"HTTP_AUTHORIZATION": f"Bearer {token}"}


# --- The page --------------------------------------------------------------------------


def test_the_page_has_the_processs_numbers(client, open_page):
    """What the project counts and what the app itself measures."""
    django_otel.counter("visits.total", unit="{visit}", description="Visits.").add(2, {"kind": "test"})
    client.get("/hello/")
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    page = parse_text(response.content)
    assert page.value("visits_total", kind="test") == 2
    assert page.value("target_info", **_target_labels(page))
    assert any(
        name == "http_server_request_duration_seconds_count" and ("http_route", "/hello/") in labels
        for name, labels in page.samples
    )


def _target_labels(page):
    [labels] = [dict(labels) for name, labels in page.samples if name == "target_info"]
    assert labels["service_name"] == "tests"
    assert "service_instance_id" not in labels and "process_pid" not in labels
    return labels


def test_the_page_comes_in_openmetrics_when_asked(client, open_page):
    """By the Accept header of a real Prometheus."""
    client.get("/hello/")
    response = client.get("/metrics", headers={"accept": OPENMETRICS})
    assert response.headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    page = parse_openmetrics(response.content)
    assert "http_server_request_duration_seconds" in page.families
    older = client.get("/metrics", headers={"accept": "application/openmetrics-text;version=0.0.1"})
    assert older.headers["Content-Type"] == "application/openmetrics-text; version=0.0.1; charset=utf-8"


def test_a_sampled_request_leaves_an_exemplar_that_leads_to_its_trace(client, open_page):
    """Only in OpenMetrics."""
    trace_id = client.get("/json/").json()["trace_id"]
    page = parse_openmetrics(client.get("/metrics", headers={"accept": OPENMETRICS}).content)
    assert trace_id in {exemplar.labels["trace_id"] for exemplar in page.exemplars.values()}
    assert trace_id.encode() not in client.get("/metrics").content


def test_exemplars_can_be_switched_off(client, otel):
    """METRICS.EXEMPLARS."""
    otel("all", METRICS={"EXEMPLARS": False})
    client.get("/json/")
    assert parse_openmetrics(client.get("/metrics", headers={"accept": OPENMETRICS}).content).exemplars == {}


def test_gzip_when_accepted(client, open_page):
    """And never otherwise."""
    packed = client.get("/metrics", headers={"accept-encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    parse_text(gzip.decompress(packed.content))
    assert "Content-Encoding" not in client.get("/metrics").headers
    vary = {name.strip() for name in packed.headers["Vary"].split(",")}
    assert {"Accept", "Accept-Encoding"} <= vary


def test_a_project_with_gzip_and_etags_answers_right(client, open_page, settings):
    """The page is packed once and never "304 Not Modified"."""
    settings.MIDDLEWARE = [
        "django.middleware.gzip.GZipMiddleware",
        "django.middleware.http.ConditionalGetMiddleware",
        *settings.MIDDLEWARE,
    ]
    for _ in range(30):
        django_otel.counter("padding").add(1, {"text": "x" * 50})
    response = Client().get("/metrics", headers={"accept-encoding": "gzip"})
    assert response.headers["Content-Encoding"] == "gzip"
    parse_text(gzip.decompress(response.content))
    assert "ETag" not in response.headers
    again = Client().get("/metrics", headers={"accept-encoding": "gzip", "if-none-match": "*"})
    assert again.status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz"])
def test_answers_are_never_cached(client, open_page, path):
    """Neither by browsers nor by proxies."""
    control = client.get(path).headers["Cache-Control"]
    assert "no-store" in control and "private" in control


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz"])
@pytest.mark.parametrize("method", ["post", "put", "patch", "delete", "options"])
def test_only_get_and_head_are_allowed(open_page, path, method):
    """Also with CSRF checks on."""
    response = getattr(Client(enforce_csrf_checks=True), method)(path)
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz"])
def test_head_has_the_headers_of_get(client, open_page, path):
    """And no content."""
    response = client.head(path)
    assert response.status_code == 200 and response.content == b""
    assert response.headers["Content-Type"] == client.get(path).headers["Content-Type"]


def test_the_names_of_the_urls():
    """Public: projects reverse them."""
    assert [reverse(f"django_otel:{name}") for name in ("metrics", "livez", "readyz")] == [
        "/metrics",
        "/livez",
        "/readyz",
    ]


def test_the_registrys_collectors_stand_on_the_page_when_asked_for(client, otel):
    """METRICS.INCLUDE_REGISTRY."""
    counter = Counter("from_prometheus_client", "Theirs.")
    try:
        counter.inc(3)
        otel("all", METRICS={"INCLUDE_REGISTRY": True})
        for accept, parse in ((None, parse_text), (OPENMETRICS, parse_openmetrics)):
            response = client.get("/metrics", headers={"accept": accept} if accept else None)
            assert parse(response.content).value("from_prometheus_client_total") == 3
        otel("all")
        assert b"from_prometheus_client" not in client.get("/metrics").content
    finally:
        REGISTRY.unregister(counter)


async def test_the_page_under_asgi(open_page):
    """Sync views, run by Django in a thread."""
    response = await AsyncClient().get("/metrics")
    assert response.status_code == 200
    parse_text(response.content)


# --- Left out of the telemetry ---------------------------------------------------------


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/internal/metrics"])
def test_probes_are_neither_traced_nor_measured(client, open_page, otel_spans, path):
    """Wherever the URLs are mounted."""
    client.get("/hello/")
    before = parse_text(client.get("/metrics").content).samples
    assert [span.name for span in otel_spans] == ["GET /hello/"]
    for _ in range(2):
        assert client.get(path).status_code == 200
    assert len(otel_spans) == 1
    after = parse_text(client.get("/metrics").content).samples
    measured = {key: value for key, value in after.items() if key[0].startswith("http_server_")}
    assert measured == {key: value for key, value in before.items() if key[0].startswith("http_server_")}
    assert {value for (name, _), value in measured.items() if name == "http_server_active_requests"} == {0}
    # Another test of this process may have measured a page of the project at such a path.
    assert not [key for key in measured.keys() - before.keys() if dict(key[1]).get("http_route", "").endswith(path)]


@pytest.mark.django_db
def test_a_staff_check_leaves_no_spans_of_its_queries(client, otel, otel_spans):
    """Session and user are read for it."""
    otel("staff")
    client.force_login(User.objects.create_user("boss", is_staff=True))
    otel_spans.clear()
    assert client.get("/metrics").status_code == 200
    assert [span.name for span in otel_spans] == []


# --- Who may read it -------------------------------------------------------------------


def test_auto_is_open_when_debugging(client, otel, settings):
    """So that the first look needs no settings."""
    otel("auto")
    assert client.get("/metrics").status_code == 403
    settings.DEBUG = True
    assert client.get("/metrics").status_code == 200


def test_without_a_token_a_stranger_reads_how_to_set_one(client, otel):
    """403 and one sentence that names the key."""
    otel()
    response = client.get("/metrics")
    assert response.status_code == 403
    text = response.content.decode()
    assert 'OTEL["METRICS_VIEW"]["TOKEN"]' in text and "Bearer" in text
    assert text.count("\n") == 1


@pytest.mark.parametrize("allow", ["auto", "private", "token"])
def test_the_bearer_token_opens_the_page(client, otel, allow):
    """Right: 200. Wrong or none: 401 with a challenge."""
    otel(allow, TOKEN)
    assert client.get("/metrics", **bearer(TOKEN), REMOTE_ADDR="8.8.8.8").status_code == 200
    none = client.get("/metrics", REMOTE_ADDR="8.8.8.8")
    wrong = client.get("/metrics", **bearer("wrong"), REMOTE_ADDR="8.8.8.8")
    assert none.status_code == wrong.status_code == 401
    assert none.headers["WWW-Authenticate"] == 'Bearer realm="metrics"'
    assert wrong.headers["WWW-Authenticate"] == 'Bearer realm="metrics", error="invalid_token"'
    assert TOKEN not in wrong.content.decode() and "Bearer" in wrong.content.decode()


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        (f"BEARER   {TOKEN}  ", 200),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("", 401),
        ("Bearer \xff\xfe\x00", 401),
        ("Bearer \u0442\u043e\u043a\u0435\u043d", 401),
        ("Bearer \ud800", 401),
        ("Bearer " + "x" * 100_000, 401),
    ],
)
def test_no_authorization_header_breaks_the_page(otel, header, status):
    """Garbage is a wrong token, no error."""
    otel("token", TOKEN)
    request = RequestFactory().get("/metrics", HTTP_AUTHORIZATION=header)
    assert views.metrics(request).status_code == status
    assert guard.fault_counts() == {}


def test_a_token_outside_ascii_works_as_servers_hand_it_over(otel):
    """UTF-8 bytes on the wire reach Django as latin-1."""
    token = "schlüssel-ключ"
    otel("token", token)
    as_servers_do = token.encode().decode("latin-1")
    assert views.metrics(RequestFactory().get("/metrics", **bearer(as_servers_do))).status_code == 200
    assert views.metrics(RequestFactory().get("/metrics", **bearer("schlüssel-ключ2"))).status_code == 401


def test_token_mode_admits_nobody_else(client, otel, settings, admin_user):
    """Neither staff nor a neighbour, nor when debugging."""
    otel("token", TOKEN)
    settings.DEBUG = True
    client.force_login(admin_user)
    assert client.get("/metrics", REMOTE_ADDR="127.0.0.1").status_code == 401


@pytest.mark.parametrize("allow", ["auto", "private", "staff"])
@pytest.mark.parametrize(
    ("flags", "status"),
    [
        ({"is_staff": True}, 200),
        ({"is_staff": True, "is_active": False}, 403),
        ({"is_superuser": True}, 403),
        ({}, 403),
    ],
)
@pytest.mark.django_db
def test_signed_in_staff_may_look(client, otel, allow, flags, status):
    """Active staff only."""
    otel(allow)
    client.force_login(User.objects.create_user("somebody", **flags))
    assert client.get("/metrics", REMOTE_ADDR="8.8.8.8").status_code == status


def test_staff_mode_says_what_a_scraper_needs_instead(client, otel):
    """A token alone would not help there."""
    otel("staff", TOKEN)
    response = client.get("/metrics", **bearer(TOKEN))
    assert response.status_code == 403
    assert '["ALLOW"]' in response.content.decode()


def test_a_scraper_with_a_token_reads_no_session(client, otel, django_assert_num_queries, db):
    """Nor does a stranger without a cookie."""
    otel("auto", TOKEN)
    with django_assert_num_queries(0):
        assert client.get("/metrics", **bearer(TOKEN)).status_code == 200
        assert client.get("/metrics").status_code == 401


def test_a_staff_check_without_a_database_refuses(client, otel, monkeypatch, admin_user, caplog):
    """It fails closed, and without a traceback for the client."""
    otel("staff")
    client.force_login(admin_user)
    from django.contrib.sessions.backends.db import SessionStore

    def fail(self):
        raise RuntimeError("database down")

    monkeypatch.setattr(SessionStore, "load", fail)
    response = client.get("/metrics")
    assert response.status_code == 403 and b"database down" not in response.content


@sizes.each(
    ("address", "is_private"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("10.1.2.3", True), ("172.16.0.1", True), ("172.32.0.1", False),
        ("192.168.3.4", True), ("169.254.1.1", True), ("::1", True), ("fd00::1", True), ("fe80::1", True),
        ("fe80::1%eth0", True), ("::ffff:10.0.0.1", True), ("::ffff:8.8.8.8", False), ("8.8.8.8", False),
        ("2001:db8::1", False), ("2606:4700::1111", False), ("100.64.0.1", False), ("0.0.0.0", False), ("::", False),
        ("", False), (None, False), ("unix:", False), ("localhost", False), ("10.0.0.1:5000", False),
        ("10.0.0.1, 8.8.8.8", False), ("10.0.0", False), ("0x7f.1", False),
    ],
)  # fmt: skip
def test_private_admits_direct_neighbours(otel, address, is_private):
    """By REMOTE_ADDR; an empty one (unix socket) says nothing."""
    otel("private")
    request = RequestFactory().get("/metrics")
    request.META["REMOTE_ADDR"] = address
    if address is None:
        del request.META["REMOTE_ADDR"]
    assert views.metrics(request).status_code == (200 if is_private else 403)
    assert guard.fault_counts() == {}


@pytest.mark.parametrize(
    "header",
    ["x-forwarded-for", "forwarded", "x-real-ip", "x-forwarded-host", "x-forwarded-proto", "via", "true-client-ip",
     "cf-connecting-ip", "x-client-ip", "x-forwarded-anything"],
)  # fmt: skip
@pytest.mark.parametrize("text", ["127.0.0.1", ""])
def test_whoever_comes_through_a_proxy_is_not_private(client, otel, header, text):
    """REMOTE_ADDR is the proxy's then."""
    otel("private")
    assert client.get("/metrics", REMOTE_ADDR="127.0.0.1").status_code == 200
    assert client.get("/metrics", REMOTE_ADDR="127.0.0.1", headers={header: text}).status_code == 403


@pytest.mark.parametrize("allow", ["auto", "token", "staff"])
def test_a_private_address_means_nothing_in_the_other_modes(client, otel, allow):
    """A reverse proxy on the same host looks just so."""
    otel(allow, TOKEN)
    assert client.get("/metrics", REMOTE_ADDR="127.0.0.1").status_code in (401, 403)


def test_all_is_open(client, otel):
    """To every client."""
    otel("all")
    assert client.get("/metrics", REMOTE_ADDR="8.8.8.8").status_code == 200


def only_from_nine(request):
    """A project's own rule."""
    return request.META["REMOTE_ADDR"] == "9.9.9.9"


def says_perhaps(request):
    """No answer: neither True nor False."""
    return "perhaps"


async def asynchronous(request):
    """A coroutine is true, which must not open the page."""
    return True


def fails(request):
    raise RuntimeError("secret reason")


def denies(request):
    raise PermissionDenied


def test_a_dotted_path_decides(client, otel):
    """Whatever the project's function says."""
    otel("tests.project.test_views.only_from_nine", TOKEN)
    assert client.get("/metrics", REMOTE_ADDR="9.9.9.9").status_code == 200
    refused = client.get("/metrics", REMOTE_ADDR="127.0.0.1", **bearer(TOKEN))
    assert refused.status_code == 403 and b"ALLOW" in refused.content


@pytest.mark.parametrize("name", ["says_perhaps", "asynchronous", "fails", "denies"])
def test_a_function_that_does_not_say_true_keeps_the_page_closed(client, otel, name, settings):
    """It fails closed, shows nothing of the fault, and the log has it."""
    otel(f"tests.project.test_views.{name}")
    settings.DEBUG = True
    response = client.get("/metrics")
    assert response.status_code == 403 and b"secret" not in response.content
    assert guard.fault_counts() == {"METRICS_VIEW.ALLOW": 1}


def test_login_required_middleware_does_not_stand_in_the_way(client, otel, settings):
    """Access is decided here: a scraper cannot follow a redirect to a login page."""
    otel("auto", TOKEN)
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.contrib.auth.middleware.LoginRequiredMiddleware"]
    client = Client()
    assert client.get("/metrics", **bearer(TOKEN)).status_code == 200
    assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
    assert client.get("/hello/").status_code == 302


# --- Bad settings, no settings, faults ---------------------------------------------------


def test_bad_settings_close_the_page_for_everyone_and_show_ids_alone(client, settings, caplog):
    """No key, no value: anyone may read this answer."""
    settings.DEBUG = True
    settings.OTEL = {"SERVICE_NAME": "tests", "SAMPLING": {"RATIO": "hunter2"}, "NO_SUCH": "hunter3"}
    response = client.get("/metrics")
    text = response.content.decode()
    assert response.status_code == 503
    assert "django_otel.E001" in text and "django_otel.E002" in text
    assert not {"hunter2", "hunter3", "RATIO", "NO_SUCH"} & set(text.replace(",", " ").split())
    ready = client.get("/readyz")
    assert ready.status_code == 503 and "django_otel.E002" in ready.content.decode()
    assert client.get("/livez").status_code == 200
    assert client.get("/hello/").status_code == 200


def test_good_settings_open_it_again(client, settings):
    """After override_settings everything is as before."""
    settings.OTEL = {"NO_SUCH": 1}
    assert client.get("/readyz").status_code == 503
    settings.OTEL = {"SERVICE_NAME": "tests", "METRICS_VIEW": {"ALLOW": "all"}}
    assert client.get("/readyz").status_code == client.get("/metrics").status_code == 200


def test_a_runtime_that_did_not_start_is_not_ready(client, monkeypatch):
    """Though the settings are valid."""
    monkeypatch.setattr(runtime.current(), "started", False)
    response = client.get("/readyz")
    assert response.status_code == 503 and b"started" in response.content


def test_telemetry_switched_off_does_not_take_the_service_out_of_the_load_balancer(client, otel):
    """OTEL_SDK_DISABLED is a valid setting; the page says that it is off."""
    otel("all", ENABLED=False)
    assert client.get("/readyz").status_code == 200
    response = client.get("/metrics")
    assert response.status_code == 404 and b"ENABLED" in response.content


def test_without_the_prometheus_exporter_there_is_no_page(client, otel):
    """METRICS.EXPORTERS decides; who may not read the page does not learn even that."""
    otel("all", METRICS={"EXPORTERS": ["none"]})
    assert client.get("/metrics").status_code == 404
    otel("token", TOKEN, METRICS={"EXPORTERS": ["none"]})
    assert client.get("/metrics").status_code == 401


def test_probes_need_no_query(client, django_assert_num_queries, db):
    """They answer when the database does not."""
    with django_assert_num_queries(0):
        client.get("/livez")
        client.get("/readyz")


def test_a_fault_shows_no_traceback_even_when_debugging(client, open_page, monkeypatch, settings, caplog):
    """The log has it, the client has a sentence."""
    settings.DEBUG = True

    def fail():
        raise RuntimeError("secret reason")

    monkeypatch.setattr(runtime, "collect", fail)
    response = client.get("/metrics")
    assert response.status_code == 500
    assert response.headers["Content-Type"].startswith("text/plain")
    assert b"secret" not in response.content and b"Traceback" not in response.content
    assert "secret reason" in caplog.text


def test_system_exit_passes_and_gives_its_slot_back(open_page, monkeypatch):
    """Only Exception is contained."""

    def leave():
        raise SystemExit(3)

    monkeypatch.setattr(runtime, "collect", leave)
    for _ in range(views._MAX_SCRAPES + 1):
        with pytest.raises(SystemExit):
            views.metrics(RequestFactory().get("/metrics"))
    monkeypatch.undo()


# --- Scrapes at once ---------------------------------------------------------------------


def test_more_scrapes_at_once_than_allowed_are_sent_away(open_page, monkeypatch):
    """Four at a time; a further one waits and then gets 503 with Retry-After; afterwards all is well again."""
    monkeypatch.setattr(views, "_MAX_WAIT_S", 0.05)
    inside, release = threading.Semaphore(0), threading.Event()
    collect = runtime.collect

    def slow():
        inside.release()
        release.wait(20)
        return collect()

    monkeypatch.setattr(runtime, "collect", slow)
    statuses = []
    threads = [
        threading.Thread(target=lambda: statuses.append(views.metrics(RequestFactory().get("/metrics")).status_code))
        for _ in range(views._MAX_SCRAPES)
    ]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert inside.acquire(timeout=20)
    busy = views.metrics(RequestFactory().get("/metrics"))
    release.set()
    for thread in threads:
        thread.join()
    connection.close()
    assert busy.status_code == 503 and busy.headers["Retry-After"] == "5"
    assert statuses == [200] * views._MAX_SCRAPES
    assert views.metrics(RequestFactory().get("/metrics")).status_code == 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_during_a_scrape_has_all_its_slots(open_page):
    """A slot that a thread of the parent holds would never come back in the child."""
    slots = views._scrape_slots()
    for _ in range(views._MAX_SCRAPES):
        assert slots.acquire(blocking=False)
    try:
        child = os.fork()
        if child == 0:
            os._exit(0 if views._scrape_slots().acquire(blocking=False) else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        for _ in range(views._MAX_SCRAPES):
            slots.release()


def test_the_log_of_a_scraped_page_is_quiet(client, open_page, caplog):
    """Nothing to say about a good page."""
    with caplog.at_level(logging.INFO, "django_otel"):
        for _ in range(3):
            client.get("/metrics", headers={"accept": OPENMETRICS})
    assert caplog.records == []
