"""Search in the list of traces: by attributes, text, time, release, user; sorted; saved as an address."""

from __future__ import annotations

import time

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind

from django_otel.tracestore.reader import TraceFilter, read
from django_otel.tracestore.search import BadQuery, parse_query
from tests import sizes
from tests.console.test_console import HOSTILE
from tests.console.test_errors import parse_text

LIST = "/admin/django_otel/trace/"


@pytest.fixture
def filled(console):
    """Three traces: an order with a total, one without, and a failed one of another release and user."""
    for route, release, user, total, statement in (
        ("/orders/", "1.0", "7", 250, 'SELECT "a" FROM "shop_order"'),
        ("/basket/", "1.0", "8", 40, 'SELECT "a" FROM "shop_item"'),
        ("/pay/", "2.0", "", None, "UPDATE x"),
    ):
        provider = TracerProvider(
            resource=Resource({"service.name": "shop", "service.version": release}), shutdown_on_exit=False
        )
        provider.add_span_processor(console)
        tracer = provider.get_tracer("django_otel")
        attributes = {
            "http.request.method": "GET", "http.route": route, "http.response.status_code": 500 if not user else 200,
            **({"user.id": user} if user else {}),
        }  # fmt: skip
        with tracer.start_as_current_span(f"GET {route}", kind=SpanKind.SERVER, attributes=attributes):
            inner = {"db.query.text": statement, "db.system.name": "sqlite", "paid": total is not None}
            if total is not None:
                inner["business.total"] = total
            with tracer.start_as_current_span("SELECT x", attributes=inner) as span:
                if not user:
                    span.add_event("exception", {"exception.message": "Größe fehlt"})
    assert console.force_flush()
    return console


def find(console, query="", **wanted):
    with read(console.store()) as reader:
        page = reader.list_traces(TraceFilter(conditions=tuple(parse_query(query)), **wanted))
    return sorted(row.route for row in page.rows)


@sizes.each(
    ("query", "routes"),
    [
        ("http.route=/orders/", ["/orders/"]),
        ("business.total>100", ["/orders/"]),
        ("business.total>=40", ["/basket/", "/orders/"]),
        ("business.total<100", ["/basket/"]),
        ("business.total=250", ["/orders/"]),
        ("business.total!=250", ["/basket/"]),
        ("db.query.text~SHOP_ORDER", ["/orders/"]),
        ('db.query.text="UPDATE x"', ["/pay/"]),
        ("paid=true", ["/basket/", "/orders/"]),
        ("paid=false", ["/pay/"]),
        ("größe", ["/pay/"]),
        ('"größe fehlt"', ["/pay/"]),
        ("exception.message~GRÖSSE", []),
        ("exception.message~fehlt", ["/pay/"]),
        ("status>=500", ["/pay/"]),
        ("user.id=7", ["/orders/"]),
        ("user=8", ["/basket/"]),
        ("release=2.0", ["/pay/"]),
        ("http.route~a", ["/basket/", "/pay/"]),
        ("name~SELECT http.route~a", []),
        ("duration<10s", ["/basket/", "/orders/", "/pay/"]),
        ("duration>10s", []),
        ("business.total>10 db.query.text~item", ["/basket/"]),
        ("no.such.key=1", []),
        ("", ["/basket/", "/orders/", "/pay/"]),
    ],
)
def test_conditions(filled, query, routes):
    assert find(filled, query) == routes


@pytest.mark.parametrize("query", ["a>b", "duration>x", "status~5", "status=abc", "key>", " ".join("abcdefghijklm")])
def test_what_cannot_be_read_is_said_to_be_so(query):
    with pytest.raises(BadQuery):
        parse_query(query)


def test_time_release_and_user(filled):
    now_ns = time.time_ns()
    assert find(filled, since_ns=now_ns - 3600 * 10**9) == ["/basket/", "/orders/", "/pay/"]
    assert find(filled, since_ns=now_ns + 10**9) == []
    assert find(filled, until_ns=now_ns - 3600 * 10**9) == []
    assert find(filled, release="2.0") == ["/pay/"]
    assert find(filled, user="8") == ["/basket/"]


@sizes.each("sort", ["time", "-time", "duration", "-status", "name", "service", "-spans", "release", "user"])
def test_every_column_sorts(filled, sort):
    with read(filled.store()) as reader:
        rows = reader.list_traces(TraceFilter(sort=sort)).rows
        searched = reader.list_traces(TraceFilter(sort=sort, conditions=tuple(parse_query("http.route~/")))).rows
    name = {"time": "start_ns", "duration": "duration_ns"}.get(sort.removeprefix("-"), sort.removeprefix("-"))
    values = [getattr(row, name) for row in rows]
    assert values == sorted(values, reverse=sort.startswith("-"))
    assert [row.seq for row in searched] == [row.seq for row in rows]


@pytest.mark.usefixtures("db", "filled")
def test_the_page_keeps_the_search_in_its_address(page):
    answer = page(LIST, q="business.total>100", since="1h", sort="-duration")
    assert "/orders/" in parse_text(answer)
    assert "GET /basket/" not in parse_text(answer)
    content = answer.content.decode()
    assert 'value="business.total&gt;100"' in content
    assert "q=business.total%3E100&amp;since=1h&amp;sort=duration" in content


@pytest.mark.usefixtures("db", "filled")
@pytest.mark.parametrize(
    "query", [{"q": "a>b"}, {"q": HOSTILE}, {"since": "never"}, {"until": "x"}, {"sort": "; DROP TABLE trace"}]
)
def test_no_search_breaks_the_page(page, query):
    answer = page(LIST, **query)
    assert answer.status_code == 200
    assert "<script>alert" not in answer.content.decode()
    assert ("GET /orders/" in parse_text(answer)) == ("sort" in query)


def test_a_search_ends_in_time_and_says_so(filled, monkeypatch):
    monkeypatch.setattr("django_otel.tracestore.reader.BUDGET_S", -1.0)
    with read(filled.store()) as reader:
        found = reader.list_traces(TraceFilter(conditions=tuple(parse_query("business.total>1"))))
    assert found.is_partial
