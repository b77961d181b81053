"""The console's pages: who sees them, what they show, and that nothing in them is taken for markup."""

from __future__ import annotations

import contextlib
import html
import html.parser
import io
import json
import math
import os
import re
import sqlite3
import time
import zlib
from contextlib import closing
from pathlib import Path

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils.html import conditional_escape

from django_otel import runtime
from django_otel.console import dashboard, span_details, svg, text, waterfall
from django_otel.metrics.model import HistogramValue
from django_otel.tracestore.items import StoredLog, StoredProcess, StoredSample, StoredSpans
from django_otel.tracestore.numbers import merge
from django_otel.tracestore.processor import numbers_of
from django_otel.tracestore.reader import Trace, TraceRow, read
from tests import sizes
from tests.pages import parse_text
from tests.tracestore.test_store import provider_with

LIST, DASHBOARD = "/admin/django_otel/trace/", "/admin/django_otel/dashboard/"
INSTRUMENTS = "/admin/django_otel/instruments/"
SLOW, ERRORS, QUERIES, LOGS = (f"/admin/django_otel/{page}/" for page in ("slow", "errors", "queries", "logs"))
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7|add:7 }}{% debug %}&lt;\u202e\x00"


def record(console, build):
    """Record what `build(tracer)` makes and wait until it is stored."""
    build(provider_with(console))
    assert console.force_flush()


def request_span(tracer, route="/orders/<int:pk>/", status=200, **attributes):
    from opentelemetry.trace import SpanKind

    return tracer.start_as_current_span(
        f"GET {route}", kind=SpanKind.SERVER,
        attributes={"http.request.method": "GET", "http.route": route, "http.response.status_code": status,
                    **attributes},
    )  # fmt: skip


def stored(console):
    with read(console.store()) as reader:
        from django_otel.tracestore.reader import TraceFilter

        return reader.list_traces(TraceFilter(), limit=1000).rows


class Markup(html.parser.HTMLParser):
    """What a strict content policy refuses, and texts that became elements."""

    def __init__(self, page):
        super().__init__()
        self.inline = []
        self.tags = set()
        self.text = []
        self.feed(page.content.decode())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        given = dict(attrs)
        if tag == "style" or (tag == "script" and not given.get("src")):
            self.inline.append(tag)
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        self.inline += [
            value for name, value in attrs if name in ("href", "src") and (value or "").startswith("javascript:")
        ]

    def handle_data(self, data):
        self.text.append(data)


def words(page):
    return " ".join("".join(Markup(page).text).split())


# --- Who may look. ---


@pytest.mark.parametrize("path", [LIST, DASHBOARD, f"{LIST}{'a' * 32}/", f"{LIST}?part=results", INSTRUMENTS])
def test_only_staff_with_the_permission_may_look(console, viewer, path):
    anonymous = Client().get(path)
    assert anonymous.status_code == 302
    assert "/admin/login/" in anonymous["Location"]
    for flags, expected in (({"is_staff": True}, 403), ({"is_staff": False}, 302)):
        client = Client()
        client.force_login(User.objects.create_user(f"u{expected}", **flags))
        assert client.get(path).status_code == expected
    viewer.is_staff = False
    viewer.save()
    client = Client()
    client.force_login(viewer)
    assert client.get(path).status_code == 302


def test_the_admins_index_names_the_pages_to_those_who_may_look(console, page, db):
    assert LIST in page("/admin/").content.decode()
    client = Client()
    client.force_login(User.objects.create_user("other", is_staff=True))
    index = client.get("/admin/").content.decode()
    assert LIST not in index
    assert DASHBOARD not in index
    assert client.get("/admin/django_otel/").status_code in (403, 404)


def test_nothing_can_be_added_changed_or_deleted(console, page):
    for path in (f"{LIST}add/", f"{LIST}1/change/", f"{LIST}1/delete/", f"{DASHBOARD}add/"):
        assert page(path).status_code == 404


def test_dumpdata_looks_for_no_table_of_the_pages(db):
    from django.core.management import call_command

    out = io.StringIO()
    call_command("dumpdata", "django_otel", stdout=out)
    assert "django_otel.trace" not in out.getvalue()


def test_a_request_to_the_console_is_neither_traced_nor_counted(console, viewer, configure, otel_spans):
    """Nor are the queries of the sign-in that belong to it."""
    configure(CONSOLE={"ENABLED": True})
    client = Client()
    client.force_login(viewer)
    otel_spans.clear()
    before = total_requests()
    record(console, lambda tracer: tracer.start_span("x").end())
    for path in (LIST, DASHBOARD, f"{LIST}{stored(console)[0].trace_id}/", f"{LIST}?part=results"):
        assert client.get(path).status_code == 200
    assert [span.name for span in otel_spans] == []
    assert total_requests() == before


def test_every_page_of_the_console_is_out_of_the_telemetry():
    from django_otel import conf
    from django_otel.console.page import TABS

    assert {name for name, _ in TABS} == set(conf.CONSOLE_PAGES)


def total_requests():
    return sum(
        point.value.count
        for family in runtime.collect() if family.name == "http.server.request.duration"
        for point in family.points if isinstance(point.value, HistogramValue)
    )  # fmt: skip


# --- Off, empty, broken. ---


def test_a_console_that_is_off_says_how_to_switch_it_on(page, monkeypatch):
    monkeypatch.setattr(runtime.current(), "console", None)
    assert "In tests spans are kept in memory" in words(page(LIST))
    monkeypatch.setattr(runtime, "is_testing", lambda: False)
    assert 'set OTEL["CONSOLE"] = {"ENABLED": True}' in words(page(DASHBOARD))


def test_empty_pages_say_what_to_do(console, page):
    assert "Open a page of your site in another tab" in words(page(LIST))
    assert "Figures appear as soon as a request has been answered" in words(
        page(DASHBOARD, minutes=5, service="unknown")
    )
    record(console, lambda tracer: tracer.start_span("x").end())
    answer = page(LIST, route="/nowhere/")
    assert "No matching traces" in words(answer)


def test_a_trace_that_is_not_there_is_told_so(console, page, configure):
    configure(TRACE_URL="http://jaeger.example/trace/{trace_id}")
    answer = page(f"{LIST}{'ab' * 16}/")
    assert answer.status_code == 404
    assert "has not arrived yet" in words(answer)
    assert f"http://jaeger.example/trace/{'ab' * 16}" in answer.content.decode()
    for nonsense in ("x", HOSTILE.replace("/", "").replace("\x00", "")):
        assert page(f"{LIST}{nonsense}/").status_code == 404


@pytest.mark.parametrize("break_it", ["folder", "foreign"])
def test_a_store_that_cannot_be_read_is_told_in_a_sentence(console, page, tmp_path, break_it):
    folder = tmp_path / "store"
    folder.mkdir(mode=0o700)
    if break_it == "folder":
        folder.chmod(0o777)
    else:
        with closing(sqlite3.connect(console.store().path)) as connection:
            connection.execute("CREATE TABLE orders (id INTEGER)")
    for path in (LIST, DASHBOARD, f"{LIST}{'a' * 32}/"):
        answer = page(path)
        assert answer.status_code == 503
        assert "The trace store cannot be used" in words(answer)


def test_a_damaged_store_is_begun_anew_by_the_page(console, page):
    record(console, lambda tracer: tracer.start_span("x").end())
    console.store().path.write_bytes(b"nothing at all" * 500)
    assert "No traces yet" in words(page(LIST))


# --- The list. ---


def test_the_list_shows_filters_and_turns_pages(console, page):
    def build(tracer):
        for number in range(70):
            with request_span(tracer, route=f"/r{number % 7}/", status=500 if number == 3 else 200):
                pass
        now_ns = time.time_ns()
        attributes = {"http.route": "/pay/", "http.response.status_code": 200, "business.event": "order.paid"}
        tracer.start_span("GET /pay/", start_time=now_ns, attributes=attributes).end(now_ns + 60_000_000_000)

    record(console, build)
    first = page(LIST)
    assert "71 stored traces" in words(first)
    assert "Page 1 of 2" in words(first)
    assert len(re.findall(r'class="otel-what"', first.content.decode())) == 50
    assert len(re.findall(r'class="otel-what"', page(LIST, page=2).content.decode())) == 21
    assert "1 of 71" in words(page(LIST, error=1))
    assert "10 of 71" in words(page(LIST, route="/r0/"))
    assert "1 of 71" in words(page(LIST, event="order.paid"))
    assert "1 of 71" in words(page(LIST, min_ms="50000"))
    assert "1 of 71" in words(page(LIST, status="5xx"))
    assert "70 of 71" in words(page(LIST, status="200"))
    trace_id = stored(console)[0].trace_id
    assert "of 71" in words(page(LIST, trace=trace_id[4:20].upper()))
    # Newest first.
    assert first.content.decode().index("/pay/") < first.content.decode().index("/r6/")


@sizes.each(
    "query",
    [{"page": "x"}, {"page": "-1"}, {"page": "9" * 30}, {"min_ms": "nan"}, {"min_ms": "1e400"}, {"status": "9xx"},
     {"status": "1 OR 1=1"}, {"trace": "' OR 1=1 --"}, {"route": "a" * 10_000}, {"event": HOSTILE}],
)  # fmt: skip
def test_nonsense_in_the_address_is_no_error(console, page, query):
    record(console, lambda tracer: tracer.start_span("x").end())
    answer = page(LIST, **query)
    assert answer.status_code == 200
    assert Markup(answer).inline == []


def test_a_part_is_the_page_without_its_frame(console, page):
    record(console, lambda tracer: tracer.start_span("only").end())
    part = page(LIST, part="results").content.decode()
    assert "only" in part
    assert "<html" not in part
    figures = page(DASHBOARD, part="figures").content.decode()
    assert "<html" not in figures


# --- One trace. ---


def query_span(tracer, statement="SELECT x FROM y WHERE id = ?", **attributes):
    from opentelemetry.trace import SpanKind

    return tracer.start_as_current_span(
        "SELECT y", kind=SpanKind.CLIENT,
        attributes={"db.system.name": "postgresql", "db.query.text": statement, **attributes},
    )  # fmt: skip


def test_a_trace_shows_nesting_queries_and_the_line_behind_n_plus_one(console, page):
    def build(tracer):
        with request_span(tracer, route="/list/"):
            for number in range(12):
                where = {
                    "code.file.path": "/srv/a.py",
                    "code.line.number": 42,
                    "code.function.name": "listing",
                }
                with query_span(tracer, **(where if number == 2 else {})):
                    pass
            with tracer.start_as_current_span("render"), query_span(tracer, "SELECT 1"):
                pass

    record(console, build)
    (row,) = stored(console)
    answer = page(f"{LIST}{row.trace_id}/")
    shown = words(answer)
    assert "Probably N+1: the same query ran 12 times" in shown
    assert "/srv/a.py:42 in listing" in shown
    assert "12 \u00d7 SELECT y" in shown
    assert answer.content.decode().count("otel-item") == 1 + 12 + 2
    assert "Queries" in shown


def test_the_cure_of_equal_queries_is_one_line_of_the_trace(console, page):
    """From the event of the request's span, if there is a cure."""
    event = {"db.query.text": "SELECT y", "django.n_plus_one.count": 12, "code.file.path": "/srv/a.py",
             "code.line.number": 42, "code.function.name": "listing"}  # fmt: skip
    cure = {"django.n_plus_one.model": "shop.Book", "django.n_plus_one.advice": 'select_related("<author>")'}

    def build(tracer):
        with request_span(tracer, route="/list/") as span:
            span.add_event("django.n_plus_one", {**event, **cure})
            span.add_event("django.n_plus_one", event)

    record(console, build)
    (row,) = stored(console)
    shown = words(page(f"{LIST}{row.trace_id}/"))
    assert shown.count("One query instead:") == 1
    assert 'shop.Book select_related("<author>") /srv/a.py:42 in listing SELECT y' in shown


def test_a_span_opens_with_everything_that_is_known_of_it(console, page):
    def build(tracer):
        with request_span(tracer) as outer:
            try:
                raise ValueError("no such tea")
            except ValueError as error:
                outer.record_exception(error)
            outer.add_event("cart.checked", {"items": 3})

    record(console, build)
    (row,) = stored(console)
    with read(console.store()) as reader:
        span_id = reader.trace(row.trace_id).spans[0]["id"]
    for query in ({"span": span_id}, {"span": span_id, "part": "span"}):
        answer = page(f"{LIST}{row.trace_id}/", **query)
        shown = words(answer)
        assert "ValueError" in shown
        assert "no such tea" in shown
        assert "Traceback (most recent call last)" in shown
        assert "cart.checked" in shown
        assert "http.response.status_code" in shown
        assert "exception.stacktrace" not in shown, "it stands on its own"
    assert page(f"{LIST}{row.trace_id}/", span="f" * 16, part="span").status_code == 404


def test_links_lead_to_traces_that_are_stored(console, page):
    from opentelemetry.trace import Link, SpanContext, TraceFlags

    def build(tracer):
        with tracer.start_as_current_span("producer") as producer:
            pass
        known = producer.get_span_context()
        unknown = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1))
        tracer.start_span("consumer", links=[Link(known), Link(unknown)]).end()

    record(console, build)
    rows = {row.name: row for row in stored(console)}
    with read(console.store()) as reader:
        span_id = reader.trace(rows["consumer"].trace_id).spans[0]["id"]
    answer = page(f"{LIST}{rows['consumer'].trace_id}/", span=span_id)
    assert f"{LIST}{rows['producer'].trace_id}/?span=" in answer.content.decode()
    assert f"{0xABC:032x} not in the store" in words(answer)


def test_logs_of_the_trace_stand_beneath(console, page, configure, caplog):
    import logging

    from django_otel import logs

    configure(CONSOLE={"ENABLED": True})
    logs.install(runtime.current().config)

    def build(tracer):
        with request_span(tracer):
            logging.getLogger("shop.orders").warning("only %d left, password=hunter2", 3)
            logging.getLogger("shop.orders").debug("not this one")
        logging.getLogger("shop.orders").warning("outside of any trace")

    with caplog.at_level(logging.WARNING, "shop.orders"):
        record(console, build)
    (row,) = stored(console)
    shown = words(page(f"{LIST}{row.trace_id}/"))
    assert "only 3 left" in shown
    assert "shop.orders" in shown
    assert "hunter2" not in shown
    assert "not this one" not in shown
    assert "outside of any trace" not in shown


def test_the_address_elsewhere_is_offered(console, page, configure):
    configure(TRACE_URL="http://127.0.0.1:16686/trace/{trace_id}")
    record(console, lambda tracer: tracer.start_span("x").end())
    (row,) = stored(console)
    answer = page(f"{LIST}{row.trace_id}/").content.decode()
    assert f'href="http://127.0.0.1:16686/trace/{row.trace_id}"' in answer
    assert "Open in Jaeger" in answer


@pytest.mark.parametrize(
    ("url", "name"),
    [("http://tempo.internal/{trace_id}", "Tempo"), ("https://x.grafana.net/{trace_id}", "Grafana"),
     ("https://traces.example/{trace_id}/{x}", "traces.example"), (None, None)],
)  # fmt: skip
def test_the_place_elsewhere_is_named(url, name):
    found = span_details.trace_address(url, "abc")
    assert (found and found[1]) == name


@pytest.mark.parametrize(
    ("path", "place", "function"),
    [
        ("/n-plus-one/", "urls_with_server_error.py", "name_of"),
        ("/n-plus-one-template/", "n_plus_one.html", "template"),
    ],
)
def test_the_third_equal_query_of_a_request_names_its_line(
    console, configure, settings, client, otel_spans, db, path, place, function
):
    """In Python and in a template; the others cost no look at the stack."""
    settings.ROOT_URLCONF = "tests.urls_with_server_error"
    configure(CONSOLE={"ENABLED": True})
    client.get(path)
    queries = [span for span in otel_spans if span.attributes.get("db.collection.name") == "app_item"]
    assert len(queries) == 6
    named = [span for span in queries if "code.file.path" in span.attributes]
    assert named == [queries[2]]
    attributes = named[0].attributes
    assert attributes["code.file.path"].endswith(place)
    assert attributes["code.function.name"] == function
    line = Path(attributes["code.file.path"]).read_text().splitlines()[attributes["code.line.number"] - 1]
    assert "# the line" in line or "{{ name.exists }}" in line


# --- Hostile content. ---


def test_no_text_of_a_trace_becomes_markup(console, page):
    """Route, statement, header, exception, event, link, log, service: each is shown as text."""
    from opentelemetry.trace import Status, StatusCode

    def build(tracer):
        with request_span(
            tracer, route=f"/{HOSTILE}", status=500,
            **{"http.request.header.x-evil": [HOSTILE], "business.event": HOSTILE, HOSTILE: HOSTILE},
        ) as outer:  # fmt: skip
            for _ in range(6):
                with query_span(tracer, f"SELECT '{HOSTILE}' FROM {HOSTILE}", **{
                    "code.file.path": HOSTILE, "code.line.number": 1, "code.function.name": HOSTILE}):  # fmt: skip
                    pass
            outer.add_event(HOSTILE, {HOSTILE: HOSTILE})
            outer.add_event("exception", {"exception.type": HOSTILE, "exception.message": HOSTILE,
                                          "exception.stacktrace": HOSTILE})  # fmt: skip
            outer.set_status(Status(StatusCode.ERROR, HOSTILE))

    record(console, build)
    (row,) = stored(console)
    console.store().write(
        [
            StoredLog(row.trace_id, row.start_ns, HOSTILE, {
                "body": HOSTILE, "level": HOSTILE, "time": row.start_ns, "logger": HOSTILE,
                "attributes": {"exception.stacktrace": HOSTILE}}),
            StoredProcess(HOSTILE, HOSTILE, HOSTILE, 1, time.time(), time.time(),
                          {"program": HOSTILE, "exporters": [HOSTILE], "ratio": HOSTILE}),
            StoredSample("s", HOSTILE, time.time(), {
                "routes": {HOSTILE: {"duration": [5, 1.0, 5, 0], "errors": 2, "queries": [5, 9.0, 5, 0]}},
                "bounds": {"duration": "1.0", "queries": "1.0"}, "events": {HOSTILE: 3},
                "failures": {HOSTILE: 1}, "dropped": {HOSTILE: 2}}),
        ],
        print,
    )  # fmt: skip
    with read(console.store()) as reader:
        spans = reader.trace(row.trace_id).spans
    pages = [page(LIST), page(LIST, route=HOSTILE, event=HOSTILE, service=HOSTILE), page(f"{LIST}{row.trace_id}/")]
    pages += [page(DASHBOARD), page(DASHBOARD, route=HOSTILE), page(DASHBOARD, service=HOSTILE)]
    pages += [page(f"{LIST}{row.trace_id}/", span=span["id"]) for span in (spans[0], spans[-1])]
    for answer in pages:
        assert answer.status_code == 200
        markup = Markup(answer)
        assert markup.inline == []
        assert not markup.tags & {"img", "iframe", "object", "embed", "base"}
        content = answer.content.decode()
        assert "<script>alert" not in content
        assert "onerror=alert(2)>" not in content
        assert "alert(1)" in content, "shown as text"
        assert "7|add:7" in content, "not taken for a template"


def test_what_other_services_wrote_into_the_store_may_be_anything(console, page, monkeypatch):
    """Wrong types, circles of parents, missing fields: the page shows what makes sense."""
    odd = [
        {"id": "a" * 16, "parent": "b" * 16, "attributes": "none", "events": {"a": 1}, "links": [1, None, {}]},
        {"id": "b" * 16, "parent": "a" * 16, "start": "yesterday", "end": None, "events": [{"name": None}, 3]},
        {"id": "c" * 16, "parent": "c" * 16, "name": None, "kind": 5, "start": 10**18, "end": 1, "status": 3},
        {"start": 1e300, "attributes": {"db.system.name": 3, "db.query.text": {"a": [1]}}},
        {"id": 7},
    ]
    with monkeypatch.context() as patch:
        patch.setattr("django_otel.tracestore.otlp.decode", lambda data, own_scope: odd)
        console.store().write([StoredSpans("d" * 32, b"", spans=5, name="odd")], print)
        for query in ({}, {"span": "a" * 16}, {"span": "b" * 16}, {"span": "c" * 16}):
            assert page(f"{LIST}{'d' * 32}/", **query).status_code == 200
    for number, data in enumerate((b"\x0a\xff", b"\x07", b"\x0a\x05\x12\x03\x12\x01", os.urandom(200)), 1):
        console.store().write(
            [StoredSpans(f"{number:032x}", data, spans=1), StoredLog(f"{number:032x}", 1, "", {})], print
        )
        trace_id = f"{number:032x}"
        answer = page(f"{LIST}{trace_id}/")
        assert answer.status_code == 200
        assert "No span of this trace has arrived yet" in answer.content.decode()


def test_no_secret_of_the_settings_is_on_a_page(console, page, settings, configure):
    configure(
        CONSOLE={"ENABLED": True},
        METRICS_VIEW={"TOKEN": "hunter2-metrics"},
        TRACES={"HEADERS": {"authorization": "hunter2-header"}, "ENDPOINT": "http://user:hunter2-url@127.0.0.1:1"},
    )
    record(console, lambda tracer: tracer.start_span("x").end())
    (row,) = stored(console)
    assert console.sample()
    assert console.force_flush()
    for path in (LIST, DASHBOARD, f"{LIST}{row.trace_id}/"):
        content = page(path).content.decode()
        assert "hunter2" not in content
        assert settings.SECRET_KEY not in content


def test_pages_do_not_depend_on_the_language(console, page, settings):
    """A decimal comma would break every drawing."""
    settings.LANGUAGE_CODE = "de"
    settings.USE_THOUSAND_SEPARATOR = True
    record(console, lambda tracer: tracer.start_span("x").end())
    routes = {"/x/": {"duration": [12345, 100.5, 12000, 345]}}
    console.store().write(
        [StoredSample("s", "a", time.time(), {"routes": routes, "bounds": {"duration": "0.2"}})], print
    )
    (row,) = stored(console)
    for path in (LIST, DASHBOARD, f"{LIST}{row.trace_id}/"):
        content = page(path).content.decode()
        for drawing in re.findall(r"<(?:rect|line|polyline)[^>]*>", content):
            numbers = re.findall(r'(?:x|y|width|height|x1|x2|y1|y2)="([^"]*)"', drawing)
            assert all(re.fullmatch(r"[\d.]+%?", number) for number in numbers), drawing


# --- The dashboard. ---


def test_the_dashboard_agrees_with_the_scrape(console, page, client, configure):
    """Requests by route, failures and events, at the moment the page is made and after every sample."""
    configure(CONSOLE={"ENABLED": True}, METRICS_VIEW={"ALLOW": "all"})
    console._collect = runtime.collect
    client.raise_request_exception = False

    def compare():
        shown = page(DASHBOARD, minutes=5).context["page"]
        scraped = parse_text(client.get("/metrics").content)
        counts = {}
        for (name, labels), value in scraped.samples.items():
            if name == "http_server_request_duration_seconds_count":
                route = dict(labels).get("http_route", "(no route)")
                counts[route] = counts.get(route, 0) + value
        counts = {route: count for route, count in counts.items() if count}
        listed = {figures.route: figures.requests for figures in shown.slowest}
        # Where the tests before have asked for more routes than a page lists, each that is listed agrees.
        assert listed.items() <= counts.items()
        assert len(listed) == min(len(counts), dashboard._MAX_ROUTES)
        assert shown.total == sum(counts.values())
        return shown.total

    client.get("/hello/")
    before = compare()
    for _ in range(3):
        client.get("/hello/")
        client.get("/boom/")
        compare()
        assert console.sample()
        assert console.force_flush()
    client.get("/orders/7/")
    assert compare() == before + 7


@pytest.mark.heavy
def test_every_figure_is_computed_from_the_scrape(console, page, client, configure, db):
    """Each table, tile, chart and list against what `/metrics` gives for it, before a sample and after."""
    from django.core.cache import cache

    from tests.business_app.models import Order

    configure(
        CONSOLE={"ENABLED": True}, METRICS_VIEW={"ALLOW": "all"},
        BUSINESS={"business_app.Order": {"created": "order.placed", "deleted": "order.gone"}},
    )  # fmt: skip
    runtime.store.clear()
    console._collect = runtime.collect
    client.raise_request_exception = False

    def compare():
        shown = page(DASHBOARD, minutes=30)
        samples = parse_text(client.get("/metrics").content).samples

        def by(name, label, **wanted):
            found = {}
            for (sample, labels), value in samples.items():
                known = dict(labels)
                if sample == name and wanted.items() <= known.items():
                    key = known.get(label, "")
                    found[key] = found.get(key, 0) + value
            return found

        def nonzero(found):
            return {key: value for key, value in found.items() if value}

        def quantile_of(name, share, **wanted):
            """As Prometheus' histogram_quantile computes it from the page's own cumulative buckets."""
            bounds = sorted((float(le), n) for le, n in by(f"{name}_bucket", "le", **wanted).items())
            rank, low, below = share * bounds[-1][1], 0.0, 0.0
            for bound, upto in bounds:
                if upto >= rank:
                    return low if bound == float("inf") else low + (bound - low) * (rank - below) / (upto - below)
                low, below = bound, upto
            return None

        duration, queries = "http_server_request_duration_seconds", "django_request_queries"
        counts = nonzero(by(f"{duration}_count", "http_route"))
        failed = by(f"{duration}_count", "http_route", http_response_status_code="500")
        total = sum(counts.values())
        figures = shown.context["page"]
        # The table of routes.
        rows = {row.route: row for row in figures.slowest}
        assert {route: row.requests for route, row in rows.items()} == counts
        for route, row in rows.items():
            assert row.error_share == (text.share(failed[route] / counts[route]) if route in failed else "0")
            for share, cell in ((0.5, row.p50), (0.95, row.p95), (0.99, row.p99)):
                assert cell == text.seconds(quantile_of(duration, share, http_route=route))
        # Most queries per request.
        sums, requests = nonzero(by(f"{queries}_sum", "http_route")), by(f"{queries}_count", "http_route")
        assert {row.route: (row.queries, row.queries_p95) for row in figures.busiest_queries} == {
            route: (dashboard.figure(sums[route] / requests[route]),
                    text.count(round(quantile_of(queries, 0.95, http_route=route))))
            for route in sums
        }  # fmt: skip
        # Tiles.
        tiles = {tile.name: (tile.value, tile.note) for tile in figures.tiles}
        assert tiles["Requests"][0] == text.count(total)
        assert tiles["Errors"] == (
            text.share(sum(failed.values()) / total), text.plural(sum(failed.values()), dashboard._FAILED_REQUESTS)
        )  # fmt: skip
        # Over all routes the scrape has to be summed by bucket.
        assert tiles["p95 duration"] == (
            text.seconds(quantile_of(duration, 0.95)), f"median {text.seconds(quantile_of(duration, 0.5))}"
        )  # fmt: skip
        active = sum(by("http_server_active_requests", "").values())
        # The scrape does not count itself, nor does this page.
        assert tiles["In flight"][0] == text.count(active)
        # Charts: the events of all steps are those of the scrape.
        content = shown.content.decode()
        events = nonzero(by("django_business_events_total", "business_event"))
        assert f"{text.plural(sum(events.values()), dashboard._EVENTS)} in all" in content
        built = {panel.title: panel for panel in figures.panels}
        assert dict(built["Business events per minute"].chart.legend).keys() == events.keys()
        hits, misses = (
            sum(by("django_cache_operations_total", "", django_cache_outcome=outcome).values())
            for outcome in ("hit", "miss")
        )
        share = re.escape(text.share(hits / (hits + misses)))
        assert re.search(rf"Cache hit share in \d+ (?:min|s)[^:]*: {share}\.", content)
        assert f"{text.plural(total, dashboard._REQUESTS)} in all" in content
        # Export: failures and losses by signal and reason.
        lost = by("django_otel_export_failures_total", "django_otel_signal")
        exports = {row["name"]: row["state"] for row in figures.exporters}
        assert exports["Traces"].startswith("not exported") or lost["traces"]
        assert exports["Logs: none"] == text.plural(lost["logs"], dashboard._FAILED_EXPORTS)
        dropped = by("django_otel_spans_dropped_total", "django_otel_reason")
        assert exports["Spans dropped"] == f"{text.count(dropped['queue_full'])} (queue full)"
        return total

    for number in range(3):
        for path in ("/hello/", "/boom/", "/queries/", "/queries/", "/orders/7/"):
            client.get(path)
        for unit in range(number + 2):
            Order.objects.create(number=number * 10 + unit)
        Order.objects.first().delete()
        cache.set("known", 1)
        for key in ("known", "known", "unknown"):
            cache.get(key)
        cells = runtime.store
        cells.catalogued("django_otel.export.failures").add(1, {"django_otel.signal": "logs"})
        cells.catalogued("django_otel.spans.dropped").add(3, {"django_otel.reason": "queue_full"})
        before = compare()
        assert console.sample()
        assert console.force_flush()
        assert compare() == before
    # The worker processes are those that say that they live.
    (process,) = page(DASHBOARD).context["page"].processes
    assert process["pid"] == str(os.getpid())


def test_the_cache_hit_share_is_that_of_the_counted_reads(console, page, client, configure):
    """Nothing read says so; then every read counts, whether it is in a sample already or not."""
    from django.core.cache import cache

    configure(CONSOLE={"ENABLED": True})
    runtime.store.clear()
    console._collect = runtime.collect

    def shown():
        text = page(DASHBOARD, minutes=5).content.decode()
        return re.search(r"Cache hit share in [^:]*: ([\d.]+)", text)

    assert shown() is None
    cache.set("known", 1)
    for key in ("known", "known", "known", "unknown"):
        cache.get(key)
    assert shown()[1] == "75"
    assert console.sample()
    assert console.force_flush()
    cache.get_many(["known", "unknown"])
    assert shown()[1] in ("67", "66.7")


@pytest.mark.parametrize("route", ["", "/queries/"])
def test_the_dashboard_stacks_the_layers_of_requests(console, page, client, configure, route):
    """Each layer with its colour, of all routes and of one, whether it is in a sample already or not."""
    configure(CONSOLE={"ENABLED": True})
    runtime.store.clear()
    console._collect = runtime.collect

    def shown():
        found = page(DASHBOARD, minutes=5, **({"route": route} if route else {})).context["page"].panels
        panel = next(panel for panel in found if panel.title == "Where the time goes")
        return panel.chart and dict(panel.chart.legend)

    assert shown() is None
    client.get("/queries/")
    expected = {"database": "c0", "view": "c4", "middleware": "c5"}
    assert shown() == expected
    assert console.sample()
    assert console.force_flush()
    assert shown() == expected


def test_a_trace_shows_where_its_time_went(console, page):
    def build(tracer):
        layers = {"database": 0.25, "view": 0.5, "middleware": 0.25, "http": "a text", "cache": -1.0}
        with request_span(tracer, **{f"django.layer.{name}.duration": value for name, value in layers.items()}):
            pass
        with request_span(tracer, route="/without/"):
            pass

    record(console, build)
    with_layers, without = sorted(stored(console), key=lambda row: row.route == "/without/")
    shown = page(f"{LIST}{with_layers.trace_id}/")
    bar = shown.context["layers"]
    assert [(name, colour) for name, colour, _ in bar.parts] == [
        ("database", "c0"), ("view", "c4"), ("middleware", "c5"),
    ]  # fmt: skip
    assert re.findall(r'x="([\d.]+)%" width="([\d.]+)%"', bar.drawing) == [
        ("0.00", "25.00"), ("25.00", "50.00"), ("75.00", "25.00"),
    ]  # fmt: skip
    assert Markup(shown).inline == []
    assert page(f"{LIST}{without.trace_id}/").context["layers"] is None


def test_a_route_shows_its_figures_and_traces_failed_ones_first(console, page):
    def build(tracer):
        with request_span(tracer, route="/pay/", status=500):
            pass
        for _ in range(12):
            with request_span(tracer, route="/pay/"):
                pass

    record(console, build)
    console.store().write([StoredSample("s", "shop", time.time(), {
        "routes": {"/pay/": {"duration": [13, 1.3, 12, 1], "errors": 1}, "/other/": {"duration": [500, 1.0, 500, 0]}},
        "bounds": {"duration": "0.5"}})], print)  # fmt: skip
    answer = page(DASHBOARD, route="/pay/", minutes=5)
    shown = words(answer)
    assert answer.context["page"].total == 13
    assert "7.7 %" in shown
    content = answer.content.decode()
    assert content.index(">500<") < content.index(">200<")
    assert f"{LIST}?route=%2Fpay%2F" in content


@pytest.mark.parametrize("minutes", [5, 30, 180])
def test_figures_of_every_period_are_filed_where_they_belong(console, page, minutes):
    now_s = time.time()
    count = 0
    samples = []
    for ago_s in range(200 * 60, 0, -60):
        count += 10
        samples.append(StoredSample("s", "other", now_s - ago_s, {
            "routes": {"/x/": {"duration": [count, count * 0.1, count, 0], "errors": count // 10}},
            "bounds": {"duration": "0.5"}}))  # fmt: skip
    console.store().write(samples, print)
    shown = page(DASHBOARD, minutes=minutes, service="other").context["page"]
    step_minutes = dashboard.PERIODS[minutes] / 60
    # The page is made after the samples were written, which takes its time on a busy machine: nothing came since.
    late_minutes = math.ceil((time.time() - now_s) / 60)
    assert abs(shown.total - 10 * minutes) <= 10 * (max(1, step_minutes) + late_minutes)
    (figures,) = shown.slowest
    assert figures.error_share == "10 %"


def test_processes_that_fell_silent_are_gone(console, page):
    now_s = time.time()
    console.store().write(
        [
            StoredProcess(f"i{ago_s}", "shop", "host", 4000 + ago_s, now_s - 500, now_s - ago_s, {})
            for ago_s in (1, 2, 60)
        ],
        print,
    )
    shown = page(DASHBOARD, minutes=5).context["page"]
    assert [process["pid"] for process in shown.processes] == ["4001", "4002"]


# --- Arithmetic. ---


def test_a_rate_names_and_divides_by_the_time_that_the_store_covers(console, page):
    """A store two minutes old has not counted thirty: 120 requests are one per second."""
    store = console.store()
    now_s = time.time()
    for ago_s, count in ((115, 0), (60, 60), (5, 120)):
        numbers = {"routes": {"/x/": {"duration": [count, 1.0, count]}}, "bounds": {"duration": "1.0"}}
        store.write([StoredSample("s", "other", now_s - ago_s, numbers)], print)

    def requests(begun_ago_s):
        with store.connection() as connection:
            connection.execute("UPDATE store SET begun_s = ?", (now_s - begun_ago_s,))
        tile = page(DASHBOARD, minutes=30, service="other").context["page"].tiles[0]
        return tile.value, tile.note

    value, note = requests(120)
    assert value == "120"
    found = re.fullmatch(r"([\d.]+) / (s|min) in 2 min (\d+) s", note)
    assert found is not None, note
    per_minute = float(found[1]) * (60 if found[2] == "s" else 1)
    assert per_minute == pytest.approx(120 * 60 / (120 + int(found[3])), rel=0.02), note
    value, note = requests(7200)
    # The window begins with a whole step, so it is up to one shorter.
    assert value == "120"
    assert re.fullmatch(r"4(?:\.[1-9])? / min in 30 min", note), "times without requests count"


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [([0, 0, 0], 0.5, None), ([10, 0, 0], 0.5, 0.5), ([0, 10, 0], 0.5, 1.5), ([5, 5, 0], 0.5, 1.0),
     ([0, 0, 4], 0.99, 2.0), ([1, 0, 1], 0.25, 0.5)],
)  # fmt: skip
def test_a_quantile_is_found_within_its_bucket(counts, share, expected):
    assert dashboard.quantile(counts, [1.0, 2.0], share) == expected


@pytest.mark.parametrize(
    ("ns", "expected"),
    [(0, "0 \u00b5s"), (850_000, "850 \u00b5s"), (2_345_678, "2.35 ms"), (45_600_000, "45.6 ms"),
     (1_250_000_000, "1.25 s"), (123e9, "2 min 3 s"), (7200e9, "2 h 0 min")],
)  # fmt: skip
def test_durations_are_written_with_the_unit_that_fits(ns, expected):
    assert text.duration(ns) == expected


def test_self_time_is_what_no_child_covers():
    def span(number, start, end, parent=None):
        return {"id": f"{number:016x}", "name": str(number), "start": start, "end": end,
                **({"parent": f"{parent:016x}"} if parent else {})}  # fmt: skip

    row = TraceRow(1, "a" * 32, 0, 100, 100, 2, "x", "", "", 0, "", (), 4, 0, 0, 0, 0)
    # Children overlap each other, and one outlives its parent.
    spans = [span(1, 0, 100_000), span(2, 10_000, 40_000, 1), span(3, 30_000, 60_000, 1), span(4, 90_000, 150_000, 1)]
    built = waterfall.build(Trace(row, spans, []))
    assert [(found.name, found.depth, found.self_time) for found in built.rows][0] == ("1", 0, "40 \u00b5s")


def huge_trace(count=5000, failed=(), queries=False):
    row = TraceRow(1, "a" * 32, 0, 100, 100, 2, "x", "", "", 0, "", (), 4, 0, 0, 0, 0)
    spans = [
        {"id": f"{n:016x}", "name": str(n), "start": n, "end": n + 1, "parent": f"{0 if queries else n - 1:016x}",
         **({"status": "ERROR"} if n in failed else {}),
         **({"attributes": {"db.system.name": "sqlite", "db.query.text": "SELECT 1"}} if queries and n else {})}
        for n in range(count)
    ]  # fmt: skip
    logs = [{"time": n, "body": f"log {n}", "severity": 17 if n in failed else 9} for n in range(count)]
    return Trace(row, spans, logs)


def shown(built):
    return [row.span["name"] for top in built.rows for row in (top.members or [top])]


@pytest.mark.parametrize("queries", sizes.few([True, False], 2))
@pytest.mark.heavy
def test_every_span_and_record_of_a_huge_trace_is_on_one_of_its_pages(queries):
    trace = huge_trace(1500, queries=queries)
    pages = -(-1500 // waterfall.MAX_ROWS)
    found = [waterfall.build(trace, page=number) for number in range(1, pages + 1)]
    assert [built.pages.count for built in found] == [pages] * pages
    assert [name for built in found for name in shown(built)] == [str(n) for n in range(1500)]
    assert (
        sum(gap.count for gap in [found[0].gap, *(row.gap for row in found[0].rows)] if gap)
        == 1500 - waterfall.MAX_ROWS
    )
    assert waterfall.build(trace, page=10**6).pages.number == pages
    log_pages = -(-1500 // waterfall.MAX_LOGS)
    logs = [log.body for number in range(log_pages) for log in waterfall.build(trace, log_page=number + 1).logs]
    assert logs == [f"log {n}" for n in range(1500)]


@pytest.mark.parametrize("queries", sizes.few([False, True], 2))
@pytest.mark.heavy
def test_failed_spans_and_the_one_asked_for_are_on_every_page_of_a_huge_trace(queries):
    trace = huge_trace(failed={3000, 4999}, queries=queries)
    first = waterfall.build(trace)
    assert shown(first)[-2:] == ["3000", "4999"]
    assert first.first_error.name == ("3000" if queries else "4999"), "the innermost"
    assert {"log 3000", "log 4999"} <= {log.body for log in first.logs if log.is_bad}
    asked = waterfall.build(trace, span_id=f"{2000:016x}")
    assert asked.pages.number == 2000 // waterfall.MAX_ROWS + 1
    assert {"2000", "3000", "4999"} <= set(shown(asked))
    assert "2000" in shown(waterfall.build(trace, page=1, span_id=f"{2000:016x}"))
    many = waterfall.build(huge_trace(failed=set(range(waterfall.MAX_ROWS, 5000)), queries=queries))
    assert len(shown(many)) == waterfall.MAX_ROWS + waterfall.MAX_FAILED, "bounded"


def test_a_page_of_a_huge_trace_leads_to_the_others(console, page):
    def build(tracer):
        with request_span(tracer):
            for number in range(700):
                with tracer.start_as_current_span(f"step {number}"):
                    pass

    record(console, build)
    (row,) = stored(console)
    # The flame view has spans of every page.
    content = page(f"{LIST}{row.trace_id}/").content.decode().partition('id="otel-spans-title"')[2]
    assert f"step {waterfall.MAX_ROWS - 2}" in content
    assert f"step {waterfall.MAX_ROWS - 1}<" not in content
    assert f"1 to {waterfall.MAX_ROWS} of 701" in content
    assert 'href="?rows=2#otel-main"' in content
    assert "step 699" in page(f"{LIST}{row.trace_id}/", rows=3).content.decode()


def test_a_pinned_trace_stays_and_pins_are_bounded(console, page):
    record(console, lambda tracer: request_span(tracer).__enter__().end())
    (row,) = stored(console)
    path = f"{LIST}{row.trace_id}/"
    assert page(path).status_code == 200
    assert page.client.post(path, {"pin": "1"}).status_code == 302
    assert stored(console)[0].is_pinned
    assert "Unpin" in words(page(path))
    assert page.client.post(path, {"pin": "0"}).status_code == 302
    assert not stored(console)[0].is_pinned


@pytest.mark.heavy
@sizes.each(
    "query",
    [{"min_ms": text} for text in ("abc", "1s", "nan", "inf", "1e15", "-5", "1_000", "9" * 400, "1 000", "٣", "0x10")]
    + [{"status": text} for text in ("ZZZ", "99", "6xx", "4xxx", "404.0")]
    + [{"trace": text} for text in ("xyz", "g" * 32, "a" * 33, "a-b")],
)
@sizes.each("part", ["", "results"])
def test_a_filter_that_cannot_be_read_is_an_error_beside_its_field(console, page, query, part):
    record(console, lambda tracer: request_span(tracer).__enter__().end())
    answer = page(LIST, part=part, **query)
    assert answer.status_code == 200
    content = answer.content.decode()
    assert "/orders/" not in re.sub("<datalist.*?</datalist>", "", content)
    ((name, value),) = query.items()
    if part:
        assert "Expected" in content
        return
    field = re.search(rf'<(?:input|select) [^>]*name="{name}".*?</(?:div|select)>', content, re.DOTALL)[0]
    assert 'aria-invalid="true"' in field
    assert value in html.unescape(content), "kept, to be put right"


def test_filters_that_can_be_read_have_no_error(console, page):
    record(console, lambda tracer: request_span(tracer).__enter__().end())
    for query in ({"min_ms": "0"}, {"min_ms": "0,001"}, {"status": "2XX"}, {"status": "200"}, {"trace": "A"}, {}):
        assert "aria-invalid" not in page(LIST, **query).content.decode()


def test_statements_of_a_list_have_a_line_for_each_clause():
    statement = "SELECT 'a from b' FROM \"x where\" LEFT OUTER JOIN y ON z  WHERE a = %s AND b < 1 ORDER BY offset"
    assert text.sql_lines(statement) == conditional_escape(
        "SELECT 'a from b'\nFROM \"x where\"\nLEFT OUTER JOIN y ON z\nWHERE a = %s AND b < 1\nORDER BY offset"
    )
    # In a time that grows no faster than the statement, also with quotes that are not closed.
    for piece in ("' ", '" "', "inner ", "left outer ", " \t\n", "``"):
        assert text.sql_lines(piece * 20_000)


def test_statements_are_laid_out_and_nothing_else():
    shown = text.sql("SELECT a FROM b WHERE c = ? ORDER BY d")
    assert "\n" in shown
    assert '<b class="otel-keyword">SELECT</b>' in shown
    assert "&lt;i&gt;" in text.sql("SELECT '<i>' FROM x")
    assert text.sql("(" * 5000) == "(" * 5000
    assert str(text.sql("SELECT " + "<b>, " * 5000)).count("<b>") == 0


@pytest.mark.parametrize(("highest", "top"), [(0, 1), (3, 5), (0.021, 0.025), (1000, 1000), (1001, 2000), (7e-9, 1e-8)])
def test_axes_end_at_round_numbers(highest, top):
    assert svg.nice_top(highest) == pytest.approx(top)


def test_numbers_stay_numbers(console):
    """What is written as JSON and read again adds up as before."""
    numbers = numbers_of(runtime.collect())
    assert json.loads(json.dumps(numbers)) == numbers
    assert merge(numbers, {}) == numbers


def test_the_detail_page_has_an_address():
    assert reverse("admin:django_otel_trace_detail", args=["a" * 32]) == f"{LIST}{'a' * 32}/"


# --- A store that another hand, or an older version, has written to. ---

ODD = [None, "", "x", b"\xff\x00", -1, 2**62, 1e300, float("inf"), -1e300, "9" * 30]


def _odd_blobs():
    contents = [1, "x", [], [1], [[]], {"routes": 1, "total": 2, "bounds": 3}, {"routes": {"a": 1}, "bounds": {"a": 1}},
                {"total": {"duration": "x", "errors": None}}, {"events": {"a": "b"}}, {"exporters": 5, "ratio": "x"},
                [{"time": 1e999, "severity": "x", "attributes": [1], "body": {"a": 1}, "level": 5, "span": []}],
                [{"time": float("nan"), "attributes": {"exception.stacktrace": 5}}]]  # fmt: skip
    deep = zlib.compress(b"[" * 100_000)
    packed = [zlib.compress(json.dumps(content).encode()) for content in contents]
    return [*packed, deep, b"", b"\x00" * 50, "text", 5, None]


@pytest.mark.heavy
@pytest.mark.scaled
@pytest.mark.parametrize(
    "table",
    [
        "trace",
        "chunk",
        "event",
        "sample",
        "baseline",
        "process",
        "store",
        "release",
        "issue",
        "sql",
        "statement",
        "log",
    ],
)
def test_rows_of_another_shape_break_no_page(console, page, viewer, table):
    viewer.user_permissions.add(Permission.objects.get(codename="explain_query"))

    def build(tracer):
        with request_span(tracer) as span, query_span(tracer):
            console.on_error(ValueError("odd"), "/a/", span)

    record(console, build)
    now_s = time.time()
    number = 0
    trace_id = stored(console)[0].trace_id
    # Of a table of traces the pages of traces, of one of figures the dashboard; both read "store" and "event".
    of_traces, of_figures = (
        (LIST, f"{LIST}?min_ms=1", f"{LIST}{trace_id}/"),
        (DASHBOARD, f"{DASHBOARD}?route=/a/", f"{SLOW}?at=1h"),
    )
    console.store().write([StoredLog(stored(console)[0].trace_id, 1, "shop", {"body": "odd"})], print)
    with console.store().connection() as connection:
        connection.executemany("INSERT INTO release VALUES ('shop', ?, ?)", [("1", now_s - 9000), ("2", now_s - 900)])
    urls = {
        "trace": of_traces,
        "chunk": of_traces,
        "sample": of_figures,
        "baseline": of_figures,
        "process": of_figures,
        "release": (SLOW,),
        "issue": (ERRORS, f"{ERRORS}1/"),
        "log": ("/admin/django_otel/logs/",),
        "sql": (QUERIES, f"{QUERIES}explain/?statement=1"),
        "statement": (QUERIES, f"{QUERIES}explain/?statement=1"),
    }
    urls = urls.get(table, (*of_traces, *of_figures))
    with sqlite3.connect(console.store().path) as connection:
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        step = sizes.scaled(10, 1)
        for place, column in enumerate(columns):
            is_blob = column in ("data", "running", "opening", "routes")
            # Every value in some column of some table; in a long run every value in every column.
            for value in (_odd_blobs() if is_blob else ODD)[place % step :: step]:
                number += 1
                with contextlib.suppress(sqlite3.Error):
                    if table == "sample":
                        connection.execute(
                            "INSERT OR REPLACE INTO sample SELECT step_s, ?, ?, 'tests', data, data, data "
                            "FROM sample LIMIT 1",
                            (int(now_s), f"odd{number}"),
                        )
                    connection.execute(f"UPDATE OR IGNORE {table} SET {column} = ?", (value,))
                    connection.commit()
                # Each value on one of the pages; in a long run on all of them.
                for url in sizes.scaled(urls[number % len(urls) :][:1], urls):
                    answer = page(url)
                    assert answer.status_code in (200, 404, 503), (table, column, value, url)


@sizes.each("given", ["1e15", "nan", "inf", "-inf", "1e308", "9" * 400, "-1", "0x10", "٣", "1_0", "\x00"])
def test_a_minimum_of_any_shape_breaks_no_page(console, page, given):
    assert page(LIST, min_ms=given).status_code == 200


@pytest.mark.parametrize("seconds", [1e15, 1e308, float("inf"), float("-inf"), float("nan"), -1.0])
def test_a_filter_of_any_length_is_asked(console, seconds):
    from django_otel.tracestore.reader import TraceFilter

    with read(console.store()) as reader:
        assert reader.list_traces(TraceFilter(min_duration_s=seconds)).total == 0


def test_pages_answer_whatever_times_another_service_has_sent(console, page):
    from django_otel.redaction.scrub import Scrubber
    from django_otel.tracestore import incoming

    query = [{"key": "db.system.name", "value": {"stringValue": "sqlite"}}]
    text = [{"key": "db.query.text", "value": {"stringValue": "SELECT 1"}}]
    spans = [
        {"traceId": "c" * 32, "spanId": f"{number:016x}", "name": "pay", "attributes": query + text,
         "startTimeUnixNano": str(start), "endTimeUnixNano": str(2**64 - 1)}
        for number, start in enumerate([0, 2**63 - 1, 2**64 - 1], 1)
    ]  # fmt: skip
    logs = [{"timeUnixNano": str(10**30), "body": {"stringValue": "late"}, "traceId": "c" * 32}]
    received = [
        *incoming.read_spans_json({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}, Scrubber()).items,
        *incoming.read_logs_json({"resourceLogs": [{"scopeLogs": [{"logRecords": logs}]}]}, Scrubber()).items,
    ]
    console.store().write(received, lambda count, reason: pytest.fail(reason))
    for path in (LIST, f"{LIST}{'c' * 32}/", f"{LIST}{'c' * 32}/export/", QUERIES, LOGS, SLOW, DASHBOARD):
        assert page(path).status_code == 200, path
