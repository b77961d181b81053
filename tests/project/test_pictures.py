"""Each page of the console has something to show in the demo; the pictures of README and docs are taken of it.

`DJANGO_OTEL_PICTURES=docs/images` names a folder for the pictures (`make pictures`); otherwise none are kept.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live_sampling.test_browser import chromium
from tests.project.test_demo import Admin, Demo, demo
from tests.services import wait_until

__all__ = ["chromium"]

CONSOLE = "/admin/django_otel"
TRACES = f"{CONSOLE}/trace/"
POLICY = f"{CONSOLE}/samplingpolicy/"
FOLDER = os.environ.get("DJANGO_OTEL_PICTURES", "")
# What the pages show has tests of its own, with less than a whole demo.
pytestmark = [pytest.mark.debian, *([] if FOLDER else [pytest.mark.long])]
#: Colours of a picture: text on plain grounds needs no more, and the file has a third of the size.
COLOURS = 128
_TRACE = re.compile(r"/admin/django_otel/trace/[0-9a-f]{32}/")


class Shop:
    """A demo that has run until each page has what it shows, and browsers signed in to its admin."""

    def __init__(self, browser: Any, run: Demo) -> None:
        self._browser = browser
        self._url = f"http://127.0.0.1:{run.port}"
        self._admin = Admin.of(run, run.wait_for("Visitors send"))
        self._pages: dict[tuple[str, str, int], Any] = {}
        self._run = run

    def has(self, path: str, *texts: str) -> bool:
        """Whether a page has all of these texts."""
        page, _ = self._admin.get(path)
        return all(text in page for text in texts)

    def wait_for(self, path: str, *texts: str) -> None:
        wait_until(lambda: self.has(path, *texts), 90, f"{texts} on {path}")

    def trace_of(self, address: str) -> str:
        """The address of the first trace that a page leads to."""
        return wait_until(lambda: _TRACE.search(self._admin.get(address)[0]), 60, f"a trace on {address}").group()

    def open(self, path: str, *, language: str = "en", scheme: str = "light", width: int = 1280) -> Any:
        """A page of a browser at this address."""
        look = (language, scheme, width)
        if look not in self._pages:
            context = self._browser.new_context(
                base_url=self._url, viewport={"width": width, "height": 800}, color_scheme=scheme, locale=language
            )
            page = self._pages[look] = context.new_page()
            page.goto("/admin/login/")
            page.fill("#id_username", "admin")
            page.fill("#id_password", re.search(r"password (\S+)", self._run.output)[1])  # type: ignore[index]
            page.click("[type=submit]")
            page.wait_for_url("**/admin/")
        self._pages[look].goto(path)
        return self._pages[look]


@pytest.fixture(scope="module")
def shop(chromium: Any) -> Iterator[Shop]:
    with demo("--rate", "20") as run:
        found = Shop(chromium, run)
        found.wait_for(f"{CONSOLE}/tasks/", "MailboxFullError", "succeeded")
        found.wait_for(f"{CONSOLE}/errors/", "WarehouseDoorStuckError", "ValueError")
        found.wait_for(f"{CONSOLE}/queries/?repeated=1", "shop_product")
        yield found


def keep(page: Any, name: str, height: int = 800) -> None:
    """Keep a picture of the upper part of a page where a folder is named for it."""
    if not FOLDER:
        return
    from PIL import Image

    size = page.viewport_size
    page.set_viewport_size({"width": size["width"], "height": height})
    taken = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    page.set_viewport_size(size)
    small = taken.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    small.save(Path(FOLDER) / f"{name}.png", optimize=True)


@pytest.mark.parametrize(
    ("name", "language", "scheme"),
    [("console-dashboard", "en", "light"), ("console-german", "de", "light"), ("console-arabic", "ar", "light")],
)
def test_the_dashboard_has_figures(shop: Shop, name: str, language: str, scheme: str) -> None:
    page = shop.open(f"{CONSOLE}/dashboard/", language=language, scheme=scheme)
    wait_until(lambda: page.reload() and page.locator(".otel-tile").count(), 60, "figures")
    assert page.locator("svg").count() > 3
    keep(page, name, 1000)


def test_a_trace_goes_over_both_services(shop: Shop) -> None:
    page = shop.open(shop.trace_of(f"{TRACES}?service=payment-gateway&event=order.paid&route=/order/"))
    assert {"shop", "payment-gateway"} <= set(page.locator(".otel-services li").all_inner_texts())
    keep(page, "console-trace", 1100)


def test_a_request_that_makes_equal_queries_is_called_n_plus_one(shop: Shop) -> None:
    page = shop.open(shop.trace_of(f"{TRACES}?route=/statement/&q=queries>9"))
    assert "views.py" in page.locator(".otel-notice-warn").first.inner_text()
    page = shop.open(f"{CONSOLE}/queries/?repeated=1")
    assert page.locator(".otel-is-bad").count()
    shop.open(f"{CONSOLE}/queries/")
    keep(page, "console-queries")


def test_errors_are_issues_of_the_newer_release(shop: Shop) -> None:
    page = shop.open(f"{CONSOLE}/errors/")
    assert page.locator("tbody tr").count() >= 2
    keep(page, "console-errors", 620)
    page = shop.open(f"{CONSOLE}/errors/", scheme="dark")
    page.get_by_role("link", name="WarehouseDoorStuckError").first.click()
    page.wait_for_load_state()
    assert "1.1.0" in page.locator("body").inner_text()
    keep(page, "console-error", 900)


def test_a_search_finds_the_traces_of_what_was_dear(shop: Shop) -> None:
    address = f"{TRACES}?event=order.paid&q=business.total>50"
    shop.wait_for(address, "otel-what")
    page = shop.open(address)
    assert page.locator(".otel-what a").count()
    keep(page, "console-search", 720)


def test_log_records_lead_to_their_traces(shop: Shop) -> None:
    page = shop.open(f"{CONSOLE}/logs/")
    assert page.locator("tbody tr").count() > 3
    assert page.locator("tbody a[href*=trace]").count()
    keep(page, "console-logs", 720)


def test_a_task_fails_and_others_do_not(shop: Shop) -> None:
    page = shop.open(f"{CONSOLE}/tasks/")
    assert "send_invoice" in page.locator(".otel-table").first.inner_text()
    keep(page, "console-tasks", 720)
    # No word is broken: a cell of one word has one line.
    assert (
        page.locator("tbody td.otel-word bdi, section td.otel-word").evaluate_all(
            "cells => cells.filter(cell => { const words = document.createRange(); words.selectNodeContents(cell);"
            " return words.getClientRects().length > 1 }).map(cell => cell.innerText)"
        )
        == []
    )
    page = shop.open(f"{CONSOLE}/tasks/?failed=1")
    assert "MailboxFullError" in page.locator(".otel-error-text").first.inner_text()
    page = shop.open(f"{CONSOLE}/tasks/", language="de", scheme="dark", width=320)
    assert page.locator("#otel-main caption").evaluate("found => found.offsetWidth") > 250, "not a word a line"


def test_a_log_level_holds_for_a_time(shop: Shop) -> None:
    page = shop.open(f"{CONSOLE}/loglevel/")
    assert "example_project.shop" in page.locator("#result_list").inner_text()
    keep(page, "log-levels", 420)


def test_instruments_have_charts(shop: Shop) -> None:
    page = shop.open(f"{CONSOLE}/instruments/?q=order")
    assert "orders.total" in page.locator("#otel-main").inner_text()
    shop.open(f"{CONSOLE}/instruments/")
    keep(page, "console-instruments", 720)


def test_releases_can_be_chosen_and_one_route_is_slower(shop: Shop) -> None:
    for release in ("1.0.0", "1.1.0"):
        assert shop.has(f"{TRACES}?release={release}&route=/delivery/", "otel-what"), release
    shop.wait_for(f"{CONSOLE}/slow/?route=/delivery/", "slower", "1.1.0")
    page = shop.open(f"{CONSOLE}/slow/")
    assert "slower" in page.locator("tr", has_text="/delivery/").inner_text()
    keep(page, "console-slow", 720)


def test_the_policy_is_changed_in_the_admin(shop: Shop) -> None:
    page = shop.open(f"{POLICY}add/")
    page.fill("[name=ratio]", "0.25")
    page.fill("[name=note]", "Black Friday")
    page.check("[name=keep_errors]")
    page.locator("[data-otel-add] button").click()
    page.locator("#id_rules-0-path").fill("/api/*")
    page.locator("#id_rules-0-ratio").fill("1")
    page.locator("[name=_save]").click()
    page.locator(".messagelist").wait_for()
    for scheme, width, name in (("light", 1280, "sampling-policy"), ("dark", 1280, "sampling-policy-dark"),
                                ("light", 400, "sampling-policy-narrow")):  # fmt: skip
        page = shop.open(f"{POLICY}1/change/", scheme=scheme, width=width)
        assert page.locator("[name=ratio]").input_value() == "0.25"
        keep(page, name, 1100)
