"""Slow routes and releases: each route before and after a release, of all requests or of the stored traces."""

from __future__ import annotations

import time

import pytest
from django.contrib.auth.models import User
from django.test import Client

from django_otel import runtime
from django_otel.console.changes import Figures, judge
from django_otel.tracestore.file import transaction
from django_otel.tracestore.issues import note_release
from django_otel.tracestore.items import StoredSample, StoredSpans
from django_otel.tracestore.reader import read
from tests import sizes
from tests.console.test_console import HOSTILE
from tests.console.test_errors import parse_text

PATH = "/admin/django_otel/slow/"
MS, S = 1_000_000, 1_000_000_000
pytestmark = pytest.mark.usefixtures("db")


def release(console, name, ago_s, service="shop"):
    with console.store().connection() as connection, transaction(connection):
        note_release(connection, service, name, time.time() - ago_s)


def requests(console, route, durations_ms, ago_s, errors=0, method="GET", service="shop"):
    """Stored traces of a route, so long ago; the first `errors` of them failed."""
    begin_ns = time.time_ns() - int(ago_s * S)
    stored = []
    for number, ms in enumerate(durations_ms):
        start_ns, end_ns = begin_ns + number, begin_ns + number + int(ms * MS)
        trace_id = f"{abs(hash((route, ago_s, number))):032x}"[-32:]
        stored.append(
            StoredSpans(
                trace_id, spans=1, start_ns=start_ns, end_ns=end_ns, rank=2, root_start_ns=start_ns,
                root_end_ns=end_ns, name=f"{method} {route}", method=method, route=route,
                status=500 if number < errors else 200, service=service, services={service},
            )
        )  # fmt: skip
    console.store().write(stored, print)


def order_of(answer, *routes):
    content = answer.content.decode().partition("otel-changes")[2]
    return sorted((route for route in routes if route in content), key=content.index)


@pytest.fixture
def two_releases(console):
    """Release 1 a day ago, 2 eight hours ago; five routes that changed in different ways."""
    day, hours = 86_400, 8 * 3600
    release(console, "1.0", day)
    release(console, "2.0", hours)
    requests(console, "/same/", [10] * 20, day - 60)
    requests(console, "/same/", [11] * 20, hours - 60)
    requests(console, "/slower/", [10] * 20, day - 60)
    requests(console, "/slower/", [80] * 20, hours - 60)
    requests(console, "/broken/", [10] * 20, day - 60)
    requests(console, "/broken/", [10] * 20, hours - 60, errors=5)
    requests(console, "/faster/", [80] * 20, day - 60)
    requests(console, "/faster/", [10] * 20, hours - 60)
    requests(console, "/new/", [10] * 20, hours - 60)
    requests(console, "/gone/", [10] * 20, day - 60)
    return console


ROUTES = ("/broken/", "/slower/", "/new/", "/same/", "/faster/", "/gone/")


def test_what_broke_or_got_slower_since_the_last_release_comes_first(two_releases, page):
    answer = page(PATH)
    assert answer.status_code == 200
    assert order_of(answer, *reversed(ROUTES)) == list(ROUTES)
    text = parse_text(answer)
    for words in ("Before and since the release 2.0", "fails more", "slower", "as before", "no more requests",
                  "Only requests with a stored trace"):  # fmt: skip
        assert words in text, words
    assert "80.0 ms" in text
    assert "0.0 %" in text and "25 %" in text
    content = answer.content.decode()
    assert "/admin/django_otel/dashboard/?route=%2Fbroken%2F" in content
    assert "/admin/django_otel/trace/?route=%2Fbroken%2F&amp;since=" in content
    assert f'href="{PATH}" aria-current="page"' in content


def test_a_release_a_time_and_a_verdict_are_chosen(two_releases, page):
    assert order_of(page(PATH, only="broken"), *ROUTES) == ["/broken/"]
    assert order_of(page(PATH, route="SLOW"), *ROUTES) == ["/slower/"]
    first = parse_text(page(PATH, release="1.0"))
    assert "Before and since the release 1.0" in first and "Counted until" in first
    # Everything is on one side of these.
    assert set(order_of(page(PATH, at="2d", only="new"), *ROUTES)) == {*ROUTES} - {"/broken/"}
    assert set(order_of(page(PATH, at="1h", since="3d", only="gone"), *ROUTES)) == {*ROUTES}
    assert order_of(page(PATH, at="8h", since="20h", only="new"), *ROUTES) != []
    refused = page(PATH, at="yesterday")
    assert order_of(refused, *ROUTES) == []
    assert "Expected a time ago" in parse_text(refused)


def test_recent_releases_are_compared_by_all_requests(console, page, configure):
    """Exact figures, also of requests whose trace is not stored; those of the server since the last sample too."""
    release(console, "1", 9000)
    release(console, "2", 3600)
    now_s = time.time()

    def sample(ago_s, slow, errors):
        # Cumulative: 0.01 s and 1 s.
        return StoredSample("server", "shop", now_s - ago_s, {
            "routes": {"/orders/<int:pk>/": {"duration": [100 + slow, 1.0, 100, slow], "errors": errors}},
            "bounds": {"duration": "0.1 1.0"},
        })  # fmt: skip

    for item in (sample(7200, 0, 0), sample(7100, 1, 0), sample(3000, 1, 0), sample(2900, 301, 30)):
        console.store().write([item], print)
    answer = page(PATH)
    text = parse_text(answer)
    assert "All requests are counted, in steps of 3 min" in text
    assert "fails more" in text
    with read(console.store()) as reader:
        step_s, (before, after) = reader.counted_between((now_s - 10_000, now_s - 3600, now_s), now_s=now_s)
    assert step_s == 180
    assert before[0]["routes"] == {"/orders/<int:pk>/": {"duration": [101, 1.0, 100, 1]}}
    assert after[0]["routes"] == {"/orders/<int:pk>/": {"duration": [300, 0, 0, 300], "errors": 30}}
    with read(console.store()) as reader:
        assert reader.counted_between((now_s - 20_000, now_s - 3600, now_s), now_s=now_s) is None, "not kept so long"


def test_requests_of_this_moment_are_counted(console, page, client, configure):
    configure()
    # Other tests have counted routes enough for a second page.
    runtime.store.clear()
    for _ in range(3):
        client.get("/hello/")
    assert "/hello/" in parse_text(page(PATH, at="30m", only="new"))


def test_only_staff_with_the_permission_may_look(console, page):
    assert page(PATH).status_code == 200
    other = Client()
    other.force_login(User.objects.create_user("other", is_staff=True))
    assert other.get(PATH).status_code == 403
    assert Client().get(PATH).status_code == 302


NONSENSE = [
    {name: value}
    for name in ("service", "release", "at", "since", "until", "route", "only", "page")
    for value in (HOSTILE, "9" * 400, "-1", "\x00", "0001-01-01", "9999-12-31", "999999w")
]


# Every name and every value; in a long run every pair.
@pytest.mark.heavy
@pytest.mark.scaled
@sizes.each(
    "query",
    [
        *NONSENSE[:: sizes.scaled(3, 1)],
        {"at": "1h", "since": "2m"},
        {"at": "2030-01-01"},
        {"until": "2001-01-01"},
    ],
)
def test_nonsense_in_the_address_is_no_error(two_releases, page, query):
    answer = page(PATH, **query)
    assert answer.status_code == 200
    content = answer.content.decode()
    assert "<script>alert" not in content and "<img src=x" not in content


def test_no_text_becomes_markup_and_lists_have_pages(console, page):
    release(console, HOSTILE, 7 * 86_400)
    release(console, f"2{HOSTILE}", 86_400)
    for number in range(60):
        requests(console, f"/{number}/{HOSTILE}", [10], 3600)
    content = page(PATH).content.decode()
    assert "<script>alert" not in content and "<img src=x" not in content and "?page=2" in content
    assert page(PATH, page=2).status_code == 200


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (None, (10, 0, 5), "new"), (None, (10, 1, 5), "broken"), ((10, 0, 5), None, "gone"),
        ((100, 0, 5), (100, 1, 5), "same"), ((100, 0, 5), (100, 2, 5), "broken"), ((100, 9, 5), (100, 0, 5), "mended"),
        ((100, 0, 100), (100, 0, 124), "same"), ((100, 0, 100), (100, 0, 125), "slower"),
        ((100, 0, 125), (100, 0, 100), "faster"), ((100, 0, 1), (100, 0, 5), "same"),
        ((3, 0, 100), (3, 0, 140), "same"), ((3, 0, 100), (3, 0, 200), "slower"), ((5, 5, 100), (5, 5, 900), "slower"),
    ],
)  # fmt: skip
def test_what_became_of_a_route(before, after, verdict):
    def figures(given):
        return None if given is None else Figures(given[0], given[1], 0, given[2] * MS)

    assert judge(figures(before), figures(after)) == verdict


def test_a_release_of_a_minute_ago_is_compared_in_fine_steps_of_time(console):
    """A store that is younger than what the finest step keeps has everything in it."""
    now_s = time.time()
    for ago_s, count in ((90, 0), (80, 7), (40, 12)):
        numbers = {"routes": {"/": {"duration": [count, 1.0, count]}}, "bounds": {"duration": "1.0"}}
        console.store().write([StoredSample("server", "shop", now_s - ago_s, numbers)], print)
    with read(console.store()) as reader:
        step_s, (before, after) = reader.counted_between((now_s - 10_000, now_s - 60, now_s), now_s=now_s)
    assert step_s == 10
    assert before[0]["routes"]["/"]["duration"][0] == 7
    assert after[0]["routes"]["/"]["duration"][0] == 5


def test_a_process_that_ended_before_a_release_counts_before_it_also_within_one_step(console):
    now_s = time.time()
    step_begin_s = now_s // 10 * 10 - 60
    for source, at_s, count in (
        ("old", step_begin_s - 1, 3), ("old", step_begin_s + 4, 7),
        ("new", step_begin_s + 8, 5), ("new", step_begin_s + 9, 6),
    ):  # fmt: skip
        numbers = {"routes": {"/": {"duration": [count, 1.0, count]}}, "bounds": {"duration": "1.0"}}
        console.store().write([StoredSample(source, "shop", at_s, numbers)], print)
    with read(console.store()) as reader:
        _, (before, after) = reader.counted_between((now_s - 10_000, step_begin_s + 5, now_s), now_s=now_s)
    assert [found["routes"]["/"]["duration"][0] for found in before if found["routes"]] == [7]
    assert [found["routes"]["/"]["duration"][0] for found in after if found["routes"]] == [6]
