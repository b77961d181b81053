"""Take a picture of every page in German and Arabic, light and dark, on a desk and on a phone (400 px).

Usage: python -m tests.screenshots FOLDER [WORD ...]

With words, only pages whose name holds one of them. Needs Chromium and playwright (extra `test`); takes two minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import requests
from playwright.sync_api import Browser, Page, sync_playwright

from tests import services
from tests.console import test_accessible as accessible

#: Language, colour scheme, width in pixels.
LOOKS = [("de", "light", 1280), ("ar", "light", 1280), ("de", "dark", 400), ("ar", "dark", 400)]
#: Runs of the pages that carry the traces and figures; the last is a path that turns the direction of text.
VISITS = ("/hello/", "/n-plus-one/", "/boom/", f"/en/greet/{accessible.BIDI_CONTROLS}/")
POLICY = accessible.POLICY
PAGES = {**accessible.PAGES, "policy-delete": f"{POLICY}1/delete/", "metrics-refused": "/metrics"}
RULES = """
import datetime
from django.utils import timezone
SamplingPolicy(ratio=0.25, keep_errors=True, keep_slow_s=0.5, max_per_second=20, note="Black Friday",
               expires_at=timezone.now() + datetime.timedelta(days=2)).save()
SamplingRule.objects.create(path="/hello/*", ratio=1, priority=10, note="all of it")
SamplingRule.objects.create(path="/admin/*", ratio=0.01, method="GET",
                            expires_at=timezone.now() + datetime.timedelta(hours=1))
SamplingRule.objects.create(route="/boom/", ratio=0, expires_at=timezone.now() - datetime.timedelta(hours=1))
SamplingRule.objects.create(path="/*", ratio=1)
"""


def change_policy(page: Page) -> None:
    """Save a change and a faulty one, so that history, messages and errors are in the pictures."""
    page.goto(f"{POLICY}1/change/")
    page.locator("[name=note]").fill("Cyber Monday")
    page.locator("[name=_save]").click()
    page.locator(".messagelist").wait_for()


def saved(page: Page) -> None:
    change_policy(page)


def refused(page: Page) -> None:
    page.goto(f"{POLICY}1/change/")
    page.locator("[name=ratio]").fill("25")
    page.locator("[data-otel-rows] [name$=-ratio]").first.fill("7")
    page.locator("form#samplingpolicy_form").evaluate("form => { form.noValidate = true }")
    page.locator("[name=_save]").click()
    page.locator(".errornote").wait_for()


def rule_added(page: Page) -> None:
    page.goto(f"{POLICY}1/change/")
    page.locator("[data-otel-add] button").click()


def forced(page: Page) -> None:
    page.goto(f"{POLICY}1/change/")
    page.locator("[formaction]").click()
    page.locator(".messagelist").wait_for()


def trace_of(what: str) -> Callable[[Page], None]:
    def show(page: Page) -> None:
        accessible.open_trace(page, what)
        page.locator("[data-otel-open], a.otel-span").first.click()
        page.locator(".otel-details").wait_for()

    return show


ACTS: dict[str, Callable[[Page], None]] = {
    "policy-saved": saved, "policy-refused": refused, "policy-rule-added": rule_added, "policy-forced": forced,
    "trace-n-plus-one": trace_of("/n-plus-one/"), "trace-error": trace_of("/boom/"), "trace-bidi": trace_of("greet"),
}  # fmt: skip


def take(browser: Browser, url: str, folder: Path, pages: dict[str, str | Callable[[Page], None]]) -> list[str]:
    """Take pictures of the pages of one site in every look; return their names."""
    names, lender = [], accessible.Lender(browser)
    for language, scheme, width in LOOKS:
        with accessible.signed_in(lender, url, language, scheme, width) as page:
            for name, what in pages.items():
                if callable(what):
                    what(page)
                else:
                    page.goto(what)
                if name.startswith("dashboard") and "off" not in name:
                    services.wait_until(lambda: page.reload() and page.locator(".otel-tile").count(), 30, "figures")
                names.append(f"{name}-{language}-{scheme}-{width}.png")
                page.screenshot(path=folder / names[-1], full_page=True)
    return names


def take_all(browser: Browser, folder: Path, words: list[str]) -> list[str]:
    """Take pictures of all pages, or of those whose name holds one of the words; return their names."""
    names = []
    otel = {
        **accessible.OTEL, "SAMPLING": {**accessible.OTEL["SAMPLING"], "FORCE": True},
        "METRICS_VIEW": {"ALLOW": "token", "TOKEN": "of-the-scraper-only"},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        # Where the tests keep a database with all tables.
        os.environ.setdefault("DJANGO_OTEL_TESTS_FOLDER", place)
        for kind, pages, console, code, manage in (
            ("whole", {**PAGES, **ACTS}, {"ENABLED": True, "PATH": f"{place}/store"}, RULES + accessible.LEVELS, ()),
            ("part", accessible.PAGES_WITHOUT, {"ENABLED": False}, "", (("migrate", "django_otel", "zero"),)),
        ):
            chosen = {name: page for name, page in pages.items() if not words or any(word in name for word in words)}
            if not chosen:
                continue
            site = Path(place) / kind
            site.mkdir()
            for url in accessible.serve(site, {**otel, "CONSOLE": console}, code, *manage):
                for path in VISITS:
                    requests.get(url + path, headers={"User-Agent": "screenshots"}, timeout=20)
                names += take(browser, url, folder, chosen)
    return names


def main(folder: Path, words: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        print(*take_all(browser, folder, words), sep="\n")
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) < 2 or re.match("-", sys.argv[1]):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
