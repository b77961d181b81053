"""The trace's id wherever Django shows a failure, and the headers that tell of a request."""

from __future__ import annotations

import logging
import re

import django
import pytest
from django.core import mail
from django.core.cache import caches
from django.template import Context, Template
from django.test import AsyncClient, Client, RequestFactory
from django.utils.log import AdminEmailHandler
from django.views.debug import ExceptionReporter

from django_otel import runtime, views
from django_otel.console import failures

TRACE_URL = "http://jaeger.example/trace/{trace_id}"


@pytest.fixture
def client():
    return Client(raise_request_exception=False)


def configure(settings, **otel):
    settings.OTEL = {"SERVICE_NAME": "tests", **otel}


def the_trace(otel_spans):
    return f"{next(span for span in otel_spans if span.parent is None).context.trace_id:032x}"


# --- Django's debug page. ---


def test_the_debug_page_names_the_trace_and_links_to_it(client, settings, otel_spans):
    settings.DEBUG = True
    configure(settings, TRACE_URL=TRACE_URL)
    page = client.get("/boom/").content.decode()
    trace_id = the_trace(otel_spans)
    assert f'Trace <code dir="ltr">{trace_id}</code>' in page
    assert f'<a href="http://jaeger.example/trace/{trace_id}">' in page
    assert page.index("</h1>") < page.index(trace_id) < page.index("<table")
    assert "ValueError" in page


def test_the_debug_page_links_to_the_console(client, settings, otel_spans, console, monkeypatch):  # noqa: F811
    settings.DEBUG = True
    monkeypatch.setattr(runtime.current(), "console", console)
    page = client.get("/boom/").content.decode()
    assert f'<a href="/admin/django_otel/trace/{the_trace(otel_spans)}/">' in page


def test_the_debug_page_as_plain_text_names_the_trace(client, settings, otel_spans):
    settings.DEBUG = True
    configure(settings, TRACE_URL=TRACE_URL)
    text = client.get("/boom/", headers={"accept": "text/plain"}).content.decode()
    trace_id = the_trace(otel_spans)
    assert text.startswith(f"Trace: {trace_id}\nhttp://jaeger.example/trace/{trace_id}\n\nValueError at /boom/")


def test_a_trace_that_is_not_recorded_is_named_without_a_link(client, settings):
    settings.DEBUG = True
    configure(settings, TRACE_URL=TRACE_URL, SAMPLING={"RATIO": 0.0})
    page = client.get("/boom/").content.decode()
    assert re.search(r'Trace \(not recorded\) <code dir="ltr">[0-9a-f]{32}</code>', page)
    assert "http://jaeger.example/trace/" not in page.partition("<table")[0]


def test_without_telemetry_the_debug_page_is_djangos_own(client, settings):
    settings.DEBUG = True
    configure(settings, ENABLED=False)
    page = client.get("/boom/")
    assert page.status_code == 500
    assert 'Trace <code dir="ltr">' not in page.content.decode()
    assert ExceptionReporter.get_traceback_html is failures._plain_html
    configure(settings)
    assert ExceptionReporter.get_traceback_html is not failures._plain_html


def test_a_fault_of_ours_leaves_the_debug_page_as_it_is(client, settings, monkeypatch):
    settings.DEBUG = True

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(failures, "trace_of", fail)
    page = client.get("/boom/")
    assert page.status_code == 500
    assert "ValueError" in page.content.decode()


# --- Mails. ---


@pytest.fixture
def admin_mails(settings):
    settings.ADMINS = ["ada@example.com"] if django.VERSION >= (6, 0) else [("Ada", "ada@example.com")]
    if django.VERSION >= (6, 1):
        settings.MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}
    mail.outbox = []
    logger = logging.getLogger("django.request")
    handler = AdminEmailHandler(include_html=True)
    handler.setLevel(logging.ERROR)
    logger.addHandler(handler)
    yield mail.outbox
    logger.removeHandler(handler)


def test_mails_to_the_admins_name_the_trace_and_link_to_it(client, settings, otel_spans, admin_mails):
    configure(settings, TRACE_URL=TRACE_URL)
    client.get("/boom/")
    trace_id = the_trace(otel_spans)
    # Django's own handler without HTML, and ours with it.
    assert len(admin_mails) == 2
    for message in admin_mails:
        assert f"Trace: {trace_id}\nhttp://jaeger.example/trace/{trace_id}\n" in message.body
    (page, _) = next(message.alternatives[0] for message in admin_mails if message.alternatives)
    assert f'Trace <code dir="ltr">{trace_id}</code>' in page


def test_a_mail_links_to_the_console_with_its_host(
    client, settings, otel_spans, admin_mails, console, monkeypatch  # noqa: F811
):  # fmt: skip
    monkeypatch.setattr(runtime.current(), "console", console)
    client.get("/boom/")
    message = admin_mails[0]
    assert f"http://testserver/admin/django_otel/trace/{the_trace(otel_spans)}/" in message.body


def test_a_mail_about_a_host_that_is_not_allowed_is_sent_all_the_same(
    settings, admin_mails, console, monkeypatch  # noqa: F811
):  # fmt: skip
    monkeypatch.setattr(runtime.current(), "console", console)
    client = Client(raise_request_exception=False)
    client.get("/boom/", headers={"host": "testserver"})
    request = RequestFactory().get("/boom/", headers={"host": "evil.example"})
    assert failures.trace_address("a" * 32, request, is_absolute=True) == f"/admin/django_otel/trace/{'a' * 32}/"


# --- The page for visitors. ---


@pytest.fixture
def failing(settings):
    """The test project with our page for visitors."""
    settings.ROOT_URLCONF = "tests.urls_with_server_error"
    return Client(raise_request_exception=False)


def test_the_page_for_visitors_names_the_trace(failing, settings, otel_spans, django_assert_num_queries, db):
    configure(settings, TRACE_URL=TRACE_URL)
    with django_assert_num_queries(0):
        answer = failing.get("/boom/")
    page = answer.content.decode()
    trace_id = the_trace(otel_spans)
    assert answer.status_code == 500
    assert f'<code dir="ltr">{trace_id}</code>' in page
    assert f'href="http://jaeger.example/trace/{trace_id}"' in page
    assert "/static/django_otel/failure.css" in page
    assert "ValueError" not in page
    assert "<style" not in page
    assert " style=" not in page


def test_the_admins_address_is_not_shown_to_everybody(failing, otel_spans, console, monkeypatch, settings):  # noqa: F811
    monkeypatch.setattr(runtime.current(), "console", console)
    assert "/admin/" not in failing.get("/boom/").content.decode()
    monkeypatch.setattr(failures, "may_see_console", lambda request: True)
    otel_spans.clear()
    assert f"/admin/django_otel/trace/{the_trace_after(failing, otel_spans)}/" in failing.last


def the_trace_after(failing, otel_spans):
    failing.last = failing.get("/boom/").content.decode()
    return the_trace(otel_spans)


def test_a_projects_own_page_may_extend_ours(failing, settings, otel_spans, tmp_path):
    (tmp_path / "500.html").write_text(
        '{% extends "django_otel/500.html" %}{% block message %}The kettle is cold.{% endblock %}'
    )
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [str(tmp_path)]}]
    page = failing.get("/boom/").content.decode()
    assert "The kettle is cold." in page
    assert the_trace(otel_spans) in page
    # Also through Django's own handler.
    settings.ROOT_URLCONF = "tests.urls"
    otel_spans.clear()
    page = failing.get("/boom/").content.decode()
    assert "The kettle is cold." in page
    assert the_trace(otel_spans) in page


def test_a_template_that_fails_leaves_djangos_plain_page(failing, settings, tmp_path):
    (tmp_path / "500.html").write_text("{% load no_such_library %}")
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [str(tmp_path)]}]
    request = RequestFactory().get("/")
    with pytest.raises(Exception, match="no_such_library"):
        # Django's own handler would raise it, too.
        views.server_error(request)


# --- Headers. ---


def test_no_header_is_set_unless_asked_for(client):
    answer = client.get("/hello/")
    assert "Server-Timing" not in answer
    assert "traceresponse" not in answer


def parse_timing(answer):
    return {name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.]+)", answer["Server-Timing"])}


def test_server_timing_tells_total_database_cache_and_template(client, settings, db):
    configure(settings, REQUEST={"SERVER_TIMING": True})
    settings.ROOT_URLCONF = "tests.urls_with_server_error"
    timing = parse_timing(client.get("/timed/"))
    assert list(timing) == ["total", "db", "cache", "template", "http", "middleware", "view"]
    assert timing["db"] > 0
    # The view sleeps 30 ms in a template that includes another, and 20 ms in the cache.
    assert 29 <= timing["template"] < timing["total"]
    assert 19 <= timing["cache"] < timing["total"]
    assert timing["template"] + timing["cache"] < timing["total"] + 1
    assert parse_timing(client.get("/hello/"))["template"] == 0


def seconds_in(name):
    """What a histogram has measured up to now, in all its series."""
    return sum(point.value.sum for family in runtime.collect() if family.name == name for point in family.points)


def test_server_timing_is_the_sum_of_what_the_metrics_measured(client, settings, db):
    """One query or many, in a view and in a template; a cache operation made of others counts once."""
    configure(settings, REQUEST={"SERVER_TIMING": True})
    settings.ROOT_URLCONF = "tests.urls_with_server_error"
    for path in ("/timed/", "/n-plus-one/", "/n-plus-one-template/"):
        before = [seconds_in(name) for name in ("db.client.operation.duration", "django.cache.operation.duration")]
        timing = parse_timing(client.get(path))
        after = [seconds_in(name) for name in ("db.client.operation.duration", "django.cache.operation.duration")]
        measured_ms = [(now - then) * 1000 for now, then in zip(after, before, strict=True)]
        assert timing["db"] > 0
        assert [timing["db"], timing["cache"]] == pytest.approx(measured_ms, abs=0.006)


async def test_server_timing_under_asgi_and_for_streams(settings):
    configure(settings, REQUEST={"SERVER_TIMING": True, "TRACERESPONSE": True})
    for path in ("/async/", "/async-stream/", "/stream/", "/file/"):
        answer = await AsyncClient().get(path)
        assert parse_timing(answer)["total"] > 0
        assert answer["traceresponse"].startswith("00-")
        answer.close()


def test_an_applications_own_entries_stay(settings):
    configure(settings, REQUEST={"SERVER_TIMING": True})
    settings.ROOT_URLCONF = "tests.urls_with_server_error"
    assert Client().get("/own-timing/")["Server-Timing"].startswith("edge;dur=3, total;dur=")


def test_nothing_of_server_timing_is_left_when_it_is_off(settings):
    configure(settings, REQUEST={"TIME_BUDGET": False})
    plain = Template.render
    configure(settings, REQUEST={"SERVER_TIMING": True, "TIME_BUDGET": False})
    assert Template.render is not plain
    assert caches["default"].get("x") is None
    assert "get" in vars(caches["default"])
    configure(settings, CACHE={"METRICS": False}, REQUEST={"TIME_BUDGET": False})
    assert Template.render is plain
    assert "get" not in vars(caches["default"])
    assert Template("{{ a }}").render(Context({"a": 1})) == "1"


def test_traceresponse_names_trace_and_span(client, settings, otel_spans):
    configure(settings, REQUEST={"TRACERESPONSE": True})
    header = client.get("/hello/")["traceresponse"]
    context = otel_spans.one("GET /hello/").context
    assert header == f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    assert context.trace_flags.sampled


def test_traceresponse_of_what_is_not_recorded(client, settings):
    configure(settings, REQUEST={"TRACERESPONSE": True}, SAMPLING={"RATIO": 0.0})
    flags = client.get("/hello/")["traceresponse"][-2:]
    assert int(flags, 16) & 1 == 0
