"""The pages of queries and logs: what they show, who sees them, and that nothing in them is taken for markup."""

from __future__ import annotations

import time

import pytest
from django.contrib.admin import AdminSite
from django.contrib.auth.models import User
from django.test import Client, override_settings
from django.urls import path as at

from django_otel.console import entries
from django_otel.tracestore.items import StatementSum, StoredLog, StoredSpans
from tests import sizes
from tests.console.test_console import HOSTILE, Markup

QUERIES, LOGS = "/admin/django_otel/queries/", "/admin/django_otel/logs/"
TRACE = "a" * 32

#: An admin site of a project with only two of the pages.
partial = AdminSite()
partial.register([entries.Logs], entries.LogsAdmin)
partial.register([entries.Queries], entries.QueriesAdmin)
urlpatterns = [at("admin/", partial.urls)]


def write_query(console, text="SELECT ? FROM shop_order", trace_id=TRACE, **sums):
    now_ns = time.time_ns()
    found = StatementSum(**{"count": 12, "total_ns": 3_000_000, "longest_ns": 1_000_000, **sums})
    console.store().write(
        [StoredSpans(trace_id, spans=1, start_ns=now_ns, end_ns=now_ns, rank=2, name="GET", method="GET",
                     route="/orders/", statements={text: found})],
        print,
    )  # fmt: skip


def write_log(console, body="paid", trace_id=TRACE, level="INFO", severity=9, logger="shop.pay", **attributes):
    now_ns = time.time_ns()
    record = {"time": now_ns, "span": "1" * 16, "level": level, "severity": severity, "logger": logger, "body": body,
              "service": "shop", "attributes": attributes}  # fmt: skip
    console.store().write([StoredLog(trace_id, now_ns, "shop", record)], print)


@pytest.mark.parametrize("path", [QUERIES, LOGS])
def test_only_staff_with_the_permission_may_look(console, path, page, db):
    assert page(path).status_code == 200
    other = Client()
    other.force_login(User.objects.create_user("other", is_staff=True))
    assert other.get(path).status_code == 403
    assert Client().get(path).status_code == 302


def test_a_site_without_the_page_of_traces_leads_to_none(console, page):
    write_query(console)
    write_log(console)
    with override_settings(ROOT_URLCONF=__name__):
        for address, shown in ((QUERIES, "shop_order"), (LOGS, "paid")):
            response = page(address)
            assert response.status_code == 200
            content = response.content.decode()
            assert shown in content and TRACE not in content


def test_queries_name_line_advice_and_trace(console, page):
    write_query(console, line="shop/views.py:7", advice="use select_related", repeated=12)
    write_query(console, "UPDATE shop_item SET n = ?", "b" * 32, count=1, total_ns=9_000_000)
    text = page(QUERIES).content.decode()
    assert text.index("UPDATE shop_item") < text.index("shop_order")
    assert "use select_related" in text and "views.py:7" in text and "12 times in one request" in text
    assert f"/admin/django_otel/trace/{TRACE}/" in text
    by_count = page(QUERIES, sort="count").content.decode()
    assert by_count.index("shop_order") < by_count.index("UPDATE shop_item")
    assert "UPDATE shop_item" not in page(QUERIES, repeated="1").content.decode()
    assert "UPDATE shop_item" not in page(QUERIES, q="select SHOP_order").content.decode()


def test_logs_are_searched_and_lead_to_their_trace(console, page):
    write_log(console, order=7)
    write_log(console, "refused", "0" * 32, "ERROR", 17, "shop.bank")
    text = page(LOGS).content.decode()
    assert "paid" in text and "refused" in text and text.count(f"/trace/{TRACE}/") == 1
    assert '<code dir="ltr">order</code>' in text.replace("<bdi>", "")
    for wanted in ({"level": "ERROR"}, {"logger": "shop.bank"}, {"q": "REFUSED"}):
        found = page(LOGS, **wanted, part="results").content.decode()
        assert "refused" in found and "paid" not in found, wanted
    assert "refused" not in page(LOGS, trace=TRACE, part="results").content.decode()
    assert "refused" not in page(LOGS, until="2001-01-01T00:00", part="results").content.decode()
    assert "refused" in page(LOGS, since="15m", part="results").content.decode()


def test_logs_are_followed_with_and_without_a_script(console, page):
    write_log(console)
    text = page(LOGS).content.decode()
    assert "data-otel-refresh" not in text and "?follow=1" in text
    text = page(LOGS, follow="1", q="paid").content.decode()
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in text
    assert 'data-otel-refresh="?q=paid&amp;follow=1&amp;page=1&amp;part=results"' in text
    assert "data-otel-refresh" not in page(LOGS, follow="1", page="2").content.decode()


@pytest.mark.parametrize("moment", ["9999-12-31T23:59:59+14:00", "9999-12-31", "0001-01-01", "999999999999d"])
def test_a_time_beyond_those_of_the_store_is_the_last_one(console, page, moment):
    write_log(console, "a body")
    write_query(console, "SELECT 1", f"{1:032x}")
    for path in (LOGS, QUERIES):
        for name in ("since", "until"):
            assert page(path, **{name: moment}).status_code == 200, (path, name)


@pytest.mark.parametrize("path", [QUERIES, LOGS])
def test_lists_have_pages(console, page, path):
    for number in range(60):
        write_log(console, f"body {number}")
        write_query(console, f"SELECT {number}", f"{number + 1:032x}")
    first, second = page(path).content.decode(), page(path, page="2").content.decode()
    assert 'rel="next"' in first and 'rel="prev"' not in first
    assert 'rel="prev"' in second and 'rel="next"' not in second
    assert page(path, page="x").status_code == page(path, page="999999").status_code == 200


@sizes.each("path", [QUERIES, LOGS])
@sizes.each(
    "query",
    [{"since": "yesterday"}, {"since": "9" * 40}, {"since": "0001-01-01T00:00"}, {"sort": "x; DROP"}, {"level": "LOUD"},
     {"trace": "zz"}, {"until": "2030-99-99T00:00"}, {"q": "%_'\"\x00"}, {"logger": HOSTILE}],
)  # fmt: skip
@pytest.mark.heavy
def test_nonsense_in_the_address_is_no_error(console, page, path, query):
    write_log(console)
    write_query(console)
    assert page(path, **query).status_code == 200


def test_nothing_is_taken_for_markup(console, page):
    write_query(console, f"SELECT {HOSTILE}", line=HOSTILE, advice=HOSTILE)
    write_log(console, HOSTILE, level=HOSTILE, logger=HOSTILE, **{HOSTILE: HOSTILE})
    for path in (QUERIES, LOGS):
        answer = page(path)
        text, markup = answer.content.decode(), Markup(answer)
        assert not markup.inline and "<script>alert" not in text and "<img" not in text and "\u202e" not in text, path


def test_empty_and_filtered_pages_say_so(console, page):
    assert "No queries" in page(QUERIES).content.decode()
    assert "No log records" in page(LOGS).content.decode()
    assert "Nothing matches the filter" in page(LOGS, q="nothing").content.decode()
