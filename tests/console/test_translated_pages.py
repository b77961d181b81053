"""Every page in Arabic and German in Chromium: its direction, no words left in English, figures that hold together."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import screenshots, services
from tests.console.test_accessible import (
    DASHBOARD,
    PAGES,
    PAGES_WITHOUT,
    TRACES,
    chromium,
    is_too_wide,
    lender,
    open_page,
    open_trace,
    site,
    site_without,
)

__all__ = ["chromium", "lender", "open_page", "site", "site_without"]

pytestmark = pytest.mark.debian
Opener = Callable[..., Any]

#: Visible texts of our own parts of a page, each with the direction in which it is laid out.
TEXTS = """() => {
    const found = [];
    const walker = document.createTreeWalker(document.querySelector('main, .otel-failure'), NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const text = walker.currentNode.textContent.trim();
        const element = walker.currentNode.parentElement;
        if (!text || !element.checkVisibility() || element.closest('svg, script, style, template')) continue;
        const recorded = element.closest('code, pre, option, bdi, time, [dir=ltr], [dir=auto]');
        found.push([text, getComputedStyle(element).direction, Boolean(recorded)]);
    }
    return found;
}"""
#: Figures with a unit, and paths: laid out from right to left their parts change places.
FIGURE_OR_PATH = r"\d\s*(?:µs|ms|s|min|h|d)(?!\w)|(?:^|\s)/[\w<]"
#: Names and terms that stay as they are.
LATIN_WORDS = {
    "OpenTelemetry",
    "N",
    "p50",
    "p95",
    "p99",
    "xx",
    "ms",
    "Server",
    "Client",
    "INFO",
    "SQL",
    "OTLP",
    "JSON",
    "curl",
}


@pytest.fixture
def pages(open_page: Opener, site: str, site_without: str) -> Callable[[str], Any]:
    """Yields the name and page of each page in a language, with a trace and its span opened."""

    def visit(language: str) -> Any:
        page = open_page(site, DASHBOARD, language=language)
        for name, path in PAGES.items():
            page.goto(path)
            if "dashboard" in name:
                services.wait_until(lambda: page.reload() and page.locator(".otel-tile").count(), 30, "figures")
            yield name, page
        for what in ("/n-plus-one/", "/boom/"):
            open_trace(page, what)
            page.locator("[data-otel-open]").first.click()
            page.locator(".otel-details").wait_for()
            yield f"trace {what}", page
        page = open_page(site_without, TRACES, language=language)
        for name, path in PAGES_WITHOUT.items():
            page.goto(path)
            yield name, page

    return visit


def test_arabic_pages_run_from_right_to_left_and_hold_no_english(pages: Any) -> None:

    faults = []
    for name, page in pages("ar"):
        root = page.locator("html")
        assert (root.get_attribute("lang"), root.get_attribute("dir")) == ("ar", "rtl"), name
        for text, direction, is_recorded in page.evaluate(TEXTS):
            if direction == "rtl" and re.search(FIGURE_OR_PATH, text):
                faults.append(f"{name}: from right to left: {text}")
            words = set(re.findall(r"[A-Za-z]{2,}[A-Za-z0-9]*", text)) - LATIN_WORDS
            if words and not is_recorded:
                faults.append(f"{name}: in English: {text}")
        page.set_viewport_size({"width": 400, "height": 900})
        if is_too_wide(page):
            faults.append(f"{name}: scrolls sideways on a phone")
        page.set_viewport_size({"width": 1280, "height": 900})
    assert not faults, "\n".join(sorted(set(faults)))


@pytest.mark.long
def test_german_pages_are_marked_as_german(pages: Any) -> None:
    for name, page in pages("de"):
        root = page.locator("html")
        assert (root.get_attribute("lang"), root.get_attribute("dir")) == ("de", "ltr"), name


def test_times_are_in_the_language_of_the_page(open_page: Opener, site: str) -> None:
    """Also where the browser's own is another: the user has chosen one on the site."""
    page = open_page(site, TRACES, language="en-GB")
    page.context.add_cookies([{"name": "django_language", "value": "de", "url": site}])
    page.goto(TRACES)
    page.locator("time[title]").first.wait_for()
    assert page.locator("html").get_attribute("lang") == "de"
    assert any(day in page.locator("time[title]").first.get_attribute("title") for day in
               ("Montag", "Dienstag", "Mittwoch", "Donnerstag", "Freitag", "Samstag", "Sonntag"))  # fmt: skip


@pytest.mark.long
def test_pictures_are_taken_of_a_page_in_every_look(chromium: Any, tmp_path: Path) -> None:
    """The script that takes them still runs; `python -m tests.screenshots FOLDER` takes all."""
    names = screenshots.take_all(chromium, tmp_path, ["traces-none"])
    assert len(names) == len(screenshots.LOOKS)
    assert {path.name for path in tmp_path.iterdir()} == set(names)
