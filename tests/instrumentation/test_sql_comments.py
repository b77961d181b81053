"""Comments in SQL, as the database gets them, and that nothing else changes by them."""

import re
from urllib.parse import unquote

import pytest
from django.db import connection, connections
from django.http import HttpResponse
from django.test import override_settings
from django.urls import path, re_path

from django_otel import span
from django_otel.base import guard
from django_otel.config.parse import parse
from django_otel.config.schema import ConfigError
from django_otel.instrumentation import sql_comments
from django_otel.instrumentation.sql_comments import CommentWrapper, add_comment
from django_otel.testing import override_sampling
from tests.app.models import Item

pytestmark = pytest.mark.django_db

COMMENT = re.compile(r"/\*(.*)\*/")
INJECTED = "^x'[*]/ ?;--DROP TABLE app_item(?P<pk>[0-9]+)/$"


def ask(request, **_):
    Item.objects.filter(name="100%", price_cents=5).exists()
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM app_item WHERE name LIKE 'a%'")
    return HttpResponse()


urlpatterns = [path("ask/<int:pk>/", ask), re_path(INJECTED, ask)]


@pytest.fixture
def statements(settings):
    """What SQLite executes, text by text."""
    settings.ROOT_URLCONF = __name__
    seen = []
    connection.ensure_connection()
    connection.connection.set_trace_callback(seen.append)
    yield seen
    connection.connection.set_trace_callback(None)


def comments(*parts):
    return override_settings(OTEL={"SERVICE_NAME": "tests", "DATABASE": {"COMMENTS": list(parts)}})


def read(statement):
    """The pairs of a comment, decoded; None without one."""
    found = COMMENT.findall(statement)
    assert len(found) <= 1
    if not found:
        return None
    return {name: unquote(value[1:-1]) for name, value in (pair.split("=") for pair in found[0].split(","))}


def selects(statements):
    return [found for found in statements if found.startswith("SELECT")]


def test_route_and_view_are_in_the_statement(client, statements):
    with comments("route", "view"):
        assert client.get("/ask/7/").status_code == 200
    both = [read(found) for found in selects(statements)]
    assert both == [{"route": "/ask/<int:pk>/", "view": f"{__name__}.ask"}] * 2
    assert selects(statements)[0].endswith("*/")
    assert "'100%'" in selects(statements)[0]
    assert "%%" not in selects(statements)[1]


def test_traceparent_is_that_of_the_statements_own_span(client, statements, otel_spans):
    with comments("traceparent"):
        client.get("/ask/7/")
    first = next(found for found in otel_spans if found.name == "SELECT app_item")
    ids = first.context
    assert read(selects(statements)[0]) == {"traceparent": f"00-{ids.trace_id:032x}-{ids.span_id:016x}-01"}


def test_traceparent_is_there_for_sampled_requests_alone(client, statements):
    with comments("route", "traceparent"), override_sampling(0.0):
        client.get("/ask/7/")
    assert {tuple(read(found)) for found in selects(statements)} == {("route",)}


def test_our_own_spans_and_series_see_the_statement_without_it(client, statements, otel_spans, otel_metrics):
    client.get("/ask/7/")
    before = [dict(found.attributes) for found in otel_spans if found.name.startswith("SELECT")]
    otel_spans.clear()
    with comments("route", "view", "traceparent"):
        client.get("/ask/7/")
    after = [dict(found.attributes) for found in otel_spans if found.name.startswith("SELECT")]
    assert after == before and len(after) == 2


def test_a_route_cannot_end_the_comment(client, statements):
    with comments("route"):
        response = client.get("/x'*/;--DROP%20TABLE%20app_item5/")
        if response.status_code == 404:
            response = client.get("/x'*/%20;--DROP%20TABLE%20app_item5/")
        assert response.status_code == 200
    for statement in selects(statements):
        text = COMMENT.findall(statement)[0]
        assert "DROP" in unquote(text)
        assert not set(text) & set('*;\\\n "') and text.count("'") == 2


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1", "SELECT 1 /*a='b'*/"),
        ("SELECT 1;", "SELECT 1 /*a='b'*/;"),
        ("SELECT 1 ;\n", "SELECT 1 /*a='b'*/ ;"),
        ("SELECT 1 -- why", "SELECT 1 -- why\n/*a='b'*/"),
        ("SELECT 1 -- why\n + 2", "SELECT 1 -- why\n + 2 /*a='b'*/"),
        ("SELECT 1 /* mine */", "SELECT 1 /* mine */"),
        ("", ""),
        (" ; ", " ; "),
    ],
)
def test_where_the_comment_goes(sql, expected):
    assert add_comment(sql, "/*a='b'*/", has_parameters=False) == expected
    assert add_comment(sql, "", has_parameters=False) == sql


def test_per_cent_signs_are_doubled_where_the_driver_reads_them():
    assert add_comment("SELECT %s", "/*a='%2F'*/", has_parameters=True) == "SELECT %s /*a='%%2F'*/"
    assert add_comment("SELECT 1", "/*a='%2F'*/", has_parameters=False) == "SELECT 1 /*a='%2F'*/"


def test_statements_outside_of_requests_batches_and_off_have_none(client, statements):
    with comments("route", "traceparent"):
        with span("parent"):
            Item.objects.count()
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO app_item (name, price_cents) VALUES (%s, 1)", [("a",), ("b",)])
    client.get("/ask/7/")
    assert not [found for found in statements if "/*" in found]
    assert not [found for found in connection.execute_wrappers if isinstance(found, CommentWrapper)]


def test_new_connections_have_one_wrapper_behind_ours(settings):
    with comments("route"):
        copy = connections["default"].copy()
        for _ in range(3):
            copy.close()
            copy.ensure_connection()
        assert [type(found).__name__ for found in copy.execute_wrappers] == ["QueryWrapper", "CommentWrapper"]
        copy.connection.close()


def test_a_fault_of_ours_never_reaches_the_query(client, statements, monkeypatch):
    monkeypatch.setattr(sql_comments, "build_comment", None)
    with comments("route"):
        assert client.get("/ask/7/").status_code == 200
    assert guard.fault_counts()
    guard.reset()


@pytest.mark.parametrize("value", [True, "route", ["rout"], ["route", 5], 5, {"route": True}])
def test_a_wrong_setting_is_refused(value):
    with pytest.raises(ConfigError, match="COMMENTS"):
        parse({"DATABASE": {"COMMENTS": value}}, {})


def test_the_settings_form():
    assert parse({"DATABASE": {"COMMENTS": ["view", "route", "view"]}}, {}).database.comments == ("route", "view")
    assert parse({"DATABASE": {"COMMENTS": []}}, {}).database.comments is False
