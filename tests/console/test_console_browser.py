"""The console in a real browser while the demo runs: clicked through, read in light and dark, narrow and wide."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.live_sampling.test_browser import LOOKS, Lender, assert_looks_right, chromium, lender  # noqa: F401 (fixtures)
from tests.project.test_demo import Demo, demo
from tests.services import wait_until

pytestmark = pytest.mark.debian

DASHBOARD, TRACES = "/admin/django_otel/dashboard/", "/admin/django_otel/trace/"


@pytest.fixture(scope="module")
def shop() -> Iterator[Demo]:
    """The demo, with visitors whose orders cross into the payment gateway and who run into the page that fails."""
    with demo("--rate", "4") as run:
        run.wait_for("Visitors send")
        for path in ("/error/", "/slow/"):
            # No test waits for the visitor who comes this way.
            requests.get(f"http://127.0.0.1:{run.port}{path}", timeout=60)
        yield run


@pytest.fixture(scope="module")
def signed_in(chromium: Any, shop: Demo) -> Any:  # noqa: F811
    """The cookies of the printed sign-in."""
    password = re.search(r"password (\S+)", shop.output)
    assert password
    context = chromium.new_context(base_url=f"http://127.0.0.1:{shop.port}")
    page = context.new_page()
    page.goto(f"/admin/login/?next={DASHBOARD}")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill(password.group(1))
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"**{DASHBOARD}")
    cookies = context.cookies()
    context.close()
    return cookies


@pytest.fixture
def open_page(lender: Lender, shop: Demo, signed_in: Any) -> Iterator[Any]:  # noqa: F811
    """Opens a page; fails at the end when the browser had something to complain about, such as the content policy."""
    complaints: list[str] = []
    on = {
        "pageerror": lambda error: complaints.append(str(error)),
        "console": lambda message: complaints.append(message.text) if message.type == "error" else None,
    }
    with contextlib.ExitStack() as pages:

        def open_it(path: str, scheme: str = "light", width: int = 1600, **options: Any) -> Any:
            url = f"http://127.0.0.1:{shop.port}"
            page = pages.enter_context(lender.lend(url, scheme, width, cookies=signed_in, on=on, **options))
            page.goto(path)
            return page

        yield open_it
    assert [text for text in complaints if "the server responded with a status of" not in text] == []


def wait_for_row(page: Any, path: str, row: str) -> None:
    """Open `path` when a row for `row` stands there; until then it is read and not drawn, which takes longer."""

    def is_there() -> bool:
        if row not in page.context.request.get(path).text():
            return False
        page.goto(path)
        return bool(page.locator(".otel-what").filter(has_text=row).count())

    wait_until(is_there, 60, f"{row} on {path}")


def test_from_the_dashboard_to_the_exception(open_page: Any) -> None:
    """By clicking: a route, one of its failed traces, the span with the exception."""
    page = open_page(DASHBOARD)
    wait_for_row(page, DASHBOARD, "/error/")
    page.get_by_role("link", name="/error/", exact=True).click()
    page.get_by_role("heading", name="/error/", exact=True).wait_for()
    wait_for_row(page, page.url, "GET /error/")
    page.locator(".otel-is-bad").get_by_role("link", name="GET /error/").first.click()
    page.wait_for_url(f"**{TRACES}*/")
    assert "WarehouseDoorStuckError" in page.locator(".otel-notice-bad").first.inner_text()
    row = page.locator(".otel-item").filter(has_text="GET /error/").locator("a.otel-span").first
    row.click()
    details = page.locator(".otel-details")
    details.wait_for()
    assert row.get_attribute("aria-expanded") == "true"
    assert "The warehouse door is stuck." in details.inner_text()
    assert "Traceback (most recent call last)" in details.locator("pre").first.inner_text()
    # Django's log records about it stand below.
    assert "Internal Server Error: /error/" in page.locator(".otel-logs").inner_text()
    # The address leads to the open span.
    page.goto(page.url)
    assert "The warehouse door is stuck." in page.locator(".otel-details").inner_text()


def test_a_trace_over_both_services_shows_whole(open_page: Any) -> None:
    page = open_page(TRACES)

    def open_one() -> bool:
        if "otel-what" not in page.context.request.get(f"{TRACES}?event=order.paid").text():
            return False
        page.goto(f"{TRACES}?event=order.paid")
        links = page.locator(".otel-what a")
        if not links.count():
            return False
        links.first.click()
        page.wait_for_url(re.compile(r"/[0-9a-f]{32}/"))
        return page.locator(".otel-services li").count() == 2

    wait_until(open_one, 60, "a paid order")
    assert page.locator(".otel-services").inner_text().split() == ["shop", "payment-gateway"]
    text = page.locator(".otel-waterfall").inner_text()
    assert "charge_payment" in text
    assert "POST /charges/" in text
    assert "order.paid" in text
    page.locator("a.otel-span").filter(has_text="shop_product").first.click()
    statement = page.locator(".otel-sql")
    statement.wait_for()
    assert "\n" in statement.inner_text()


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: f"{look[0]}-{look[1]}")
def test_every_page_looks_right(open_page: Any, look: tuple[str, int]) -> None:
    """On a phone and a large screen, in light and dark."""
    page = open_page(DASHBOARD, *look)
    wait_for_row(page, DASHBOARD, "/error/")
    assert_looks_right(page, "console-dashboard", look)
    page.goto(f"{DASHBOARD}?route=/order/&minutes=5")
    assert_looks_right(page, "console-route", look)
    page.goto(TRACES)
    assert_looks_right(page, "console-traces", look)
    page.goto(f"{TRACES}?route=/nowhere/")
    assert_looks_right(page, "console-nothing", look)
    page.goto(f"{TRACES}{'0' * 31}1/")
    assert_looks_right(page, "console-missing", look)
    wait_for_row(page, f"{TRACES}?error=1", "/error/")
    page.locator(".otel-what a").filter(has_text="/error/").first.click()
    page.wait_for_url(re.compile(r"/[0-9a-f]{32}/"))
    page.locator("[data-otel-open]").first.click()
    page.locator(".otel-details").wait_for()
    assert_looks_right(page, "console-trace", look)


def test_the_waterfall_is_walked_with_the_keyboard(open_page: Any) -> None:
    page = open_page(TRACES)
    wait_for_row(page, f"{TRACES}?route=/slow/", "/slow/")
    page.locator(".otel-what a").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/[0-9a-f]{32}/"))
    rows = page.locator(".otel-span")
    rows.first.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement === document.querySelectorAll('.otel-span')[1]")
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement === [...document.querySelectorAll('.otel-span')].at(-1)")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.locator(".otel-details").wait_for()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "the focus cannot be seen"
    page.keyboard.press("Escape")
    assert page.locator(".otel-details").count() == 0


def test_the_list_renews_itself_and_can_be_paused(open_page: Any, shop: Demo) -> None:
    page = open_page(TRACES)
    wait_for_row(page, TRACES, "/")
    first = page.locator(".otel-what a").first
    before = first.get_attribute("href")
    wait_until(lambda: page.wait_for_timeout(200) or first.get_attribute("href") != before, 60, "a newer trace")
    page.get_by_role("button", name="Pause").click()
    before = first.get_attribute("href")
    page.wait_for_timeout(6500)
    assert first.get_attribute("href") == before


def test_a_list_that_is_paused_while_it_is_renewed_stays_as_it_is(open_page: Any) -> None:
    page = open_page(TRACES)
    wait_for_row(page, TRACES, "/")
    held: list[Any] = []
    page.route(lambda address: TRACES in address, lambda route: held.append(route), times=1)
    wait_until(lambda: page.wait_for_timeout(200) or held, 60, "the request for newer traces")
    page.get_by_role("button", name="Pause").click()
    shown = page.locator("#otel-main").inner_html()
    with page.expect_response(lambda answer: TRACES in answer.url) as found:
        held[0].fulfill(body="<p>newer</p>", content_type="text/html")
    found.value.finished()
    page.wait_for_timeout(200)
    assert page.locator("#otel-main").inner_html() == shown


def test_times_are_those_of_the_viewers_zone(open_page: Any) -> None:
    shown = {}
    for zone in ("Asia/Tokyo", "America/New_York"):
        page = open_page(TRACES, timezone_id=zone, locale="en-GB")
        wait_for_row(page, TRACES, "/")
        tag = page.locator("time").first
        at = page.evaluate("(iso) => new Date(iso).getHours()", tag.get_attribute("datetime"))
        assert f" {at:02d}:" in tag.inner_text()
        shown[zone] = at
        # The tips of the charts as well.
        page.goto(f"{DASHBOARD}?minutes=5")
        hour = page.evaluate("new Date().getHours()")
        tip = page.locator(".otel-hover title").last.text_content()
        assert int(tip[:2]) in (hour, (hour - 1) % 24)
        assert page.locator("title[data-otel-at]").count() == 0
    assert shown["Asia/Tokyo"] != shown["America/New_York"]


def test_the_trace_id_is_copied(open_page: Any) -> None:
    page = open_page(TRACES, permissions=["clipboard-read", "clipboard-write"])
    wait_for_row(page, TRACES, "/")
    page.locator(".otel-what a").first.click()
    page.wait_for_url(re.compile(r"/[0-9a-f]{32}/"))
    page.get_by_role("button", name="Copy trace id").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#otel-trace-id").inner_text()


@pytest.mark.long
def test_everything_can_be_read_without_javascript(open_page: Any) -> None:
    page = open_page(TRACES, java_script_enabled=False)
    wait_for_row(page, f"{TRACES}?error=1", "/error/")
    assert page.get_by_role("button", name="Pause").count() == 0
    page.locator(".otel-what a").filter(has_text="/error/").first.click()
    page.locator("a.otel-span").first.click()
    assert "The warehouse door is stuck." in page.locator(".otel-details").inner_text()
    page.locator("a.otel-span").first.click()
    assert page.locator(".otel-details").count() == 0


@pytest.mark.long
def test_the_figures_are_those_of_the_scrape(open_page: Any, shop: Demo) -> None:
    """Both workers' further requests, at most a few apart: visitors go on between the two pages.

    The page also has those of the earlier release, whose process is gone.
    """
    page = open_page(f"{DASHBOARD}?minutes=30&service=shop")

    def count() -> int:
        text = requests.get(f"http://127.0.0.1:{shop.port}/metrics", timeout=10).text
        found = re.findall(r"^http_server_request_duration_seconds_count\{.*\} (\S+)", text, re.MULTILINE)
        return round(sum(map(float, found)))

    def look() -> tuple[int, int, int]:
        before = count()
        page.reload()
        shown = int(re.sub(r"\D", "", page.locator(".otel-tile-value").first.inner_text()))
        return before, shown, count()

    first = look()
    wait_until(lambda: count() > first[2] + 10, 60, "more visitors")
    second = look()
    assert second[0] - first[2] <= second[1] - first[1] <= second[2] - first[0]
