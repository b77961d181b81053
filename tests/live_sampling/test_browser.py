"""The shop in a real browser: clicked through, in light and dark, on a phone and on a large screen."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.project.test_demo import Demo, demo
from tests.services import missing, wait_until

# The shop has tests of its own, and the page of the policy and the console their own in the browser.
pytestmark = [pytest.mark.debian, pytest.mark.long]

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
LOOKS = [
    ("dark", 400), pytest.param(("light", 1600), marks=pytest.mark.long),
    pytest.param(("light", 400), marks=pytest.mark.long), pytest.param(("dark", 1600), marks=pytest.mark.long),
]  # fmt: skip

#: Text whose contrast to the nearest background is too weak: WCAG 2.2, 1.4.3 (large text is 24 px, or 18.66 px bold).
WEAK_TEXT = """() => {
    const channels = (text) => {
        const srgb = text.startsWith('color(srgb');
        const numbers = text.replace(/^color\\(srgb/, '').match(/[\\d.]+/g).map(Number);
        return [...numbers.slice(0, 3).map((n) => (srgb ? n : n / 255)), numbers[3] ?? 1];
    };
    const luminance = ([r, g, b]) => {
        const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    };
    const background = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const found = channels(getComputedStyle(at).backgroundColor);
            if (found[3] === 1) return found;
        }
        return [1, 1, 1, 1];
    };
    const weak = [];
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        const style = getComputedStyle(element);
        if (!own || !element.getClientRects().length || style.visibility === 'hidden') continue;
        const [a, b] = [luminance(channels(style.color)), luminance(background(element))];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const size = parseFloat(style.fontSize);
        const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
        if (contrast < (large ? 3 : 4.5)) weak.push(`${contrast.toFixed(2)} ${element.textContent.trim()}`);
    }
    return weak;
}"""


#: Leaves nothing behind of a page, which asks its server nothing more either.
END_PAGE = """() => {
    localStorage.clear();
    sessionStorage.clear();
    window.stop();
    for (let timer = setTimeout(() => {}); timer > 0; timer--) clearTimeout(timer);
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("The browser tests need playwright: pip install playwright")
    if not Path(CHROMIUM).exists():
        missing("The browser tests need Chromium: apt-get install --no-install-recommends chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Lender:
    """Lends pages of a browser, each in a context of its own, which is lent again: a new one costs more than a page."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser
        self._idle: dict[str, list[Any]] = {}

    @contextlib.contextmanager
    def lend(
        self, url: str, scheme: str = "light", width: int = 1600, *, cookies: Any = (), on: Any = None, **options: Any
    ) -> Iterator[Any]:
        """Lend a page as a new one would be; `on` are its listeners, `options` those of the browser's context."""
        idle = self._idle.setdefault(repr((url, sorted(options.items()))), [])
        page = idle.pop() if idle else self._browser.new_context(base_url=url, **options).new_page()
        page.context.set_default_timeout(20_000)
        page.context.add_cookies(list(cookies))
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        for event, listener in (on or {}).items():
            page.on(event, listener)
        try:
            yield page
        finally:
            for event, listener in (on or {}).items():
                page.remove_listener(event, listener)
            for other in page.context.pages:
                if other is not page:
                    other.close()
            page.context.clear_cookies()
            page.mouse.move(0, 0)
            # The next page is then drawn by the same process of the browser, as on the way over about:blank it is not.
            page.evaluate(END_PAGE)
            idle.append(page)


@pytest.fixture(scope="module")
def lender(chromium: Any) -> Lender:
    return Lender(chromium)


def give_session(context: Any, url: str, user: str) -> None:
    """Give a browser's context the session of a user whose password is the name; no page is drawn for it."""
    address = f"{url}/admin/login/?next=/static/none"
    with requests.Session() as session:
        session.get(address, timeout=20)
        fields = {"username": user, "password": user, "csrfmiddlewaretoken": session.cookies["csrftoken"]}
        done = session.post(address, fields, headers={"Referer": address}, allow_redirects=False, timeout=20)
        assert done.status_code == 302, done.text
        context.add_cookies([{"name": each.name, "value": each.value, "url": url} for each in session.cookies])


@pytest.fixture(scope="module")
def shop(chromium: Any) -> Iterator[Demo]:
    """The demo with hardly any visitors but ours."""
    with demo("--rate", "0.5") as run:
        run.wait_for("Visitors send")
        yield run


@pytest.fixture
def open_page(chromium: Any, shop: Demo) -> Iterator[Any]:
    """Opens a page of the shop with a look; fails at the end when the browser had something to complain about."""
    contexts = []
    complaints: list[str] = []

    def note_failure(request: Any) -> None:
        # The browser gives up by itself what it was loading when the page is left.
        if request.failure != "net::ERR_ABORTED":
            complaints.append(f"{request.url} {request.failure}")

    def open_it(path: str, scheme: str = "light", width: int = 1600) -> Any:
        context = chromium.new_context(
            base_url=f"http://127.0.0.1:{shop.port}", viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        contexts.append(context)
        context.set_default_timeout(15_000)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("requestfailed", note_failure)
        page.goto(path)
        return page

    yield open_it
    for context in contexts:
        context.close()
    # A page that is meant to fail or not to be there is logged by the browser as well.
    assert [text for text in complaints if "the server responded with a status of" not in text] == []


def order_something(page: Any, card: str = "Visa ending in 4242") -> None:
    """From the product list over the form to the order's page, by clicking."""
    page.get_by_role("link", name="Order Garden Mint").click()
    assert page.get_by_label("Garden Mint").input_value() == "1"
    page.get_by_label("Clay Cup").fill("2")
    page.get_by_label("Name").fill("Ada Lovelace")
    page.get_by_label("E-mail").fill("ada@example.com")
    page.get_by_label(re.compile(re.escape(card))).check()
    page.get_by_role("button", name="Place the order").click()
    page.wait_for_url("**/orders/*/")


def keep_picture(page: Any, name: str) -> None:
    """Take a picture of the whole page where `SCREENSHOTS` names a folder for them: to draw one takes long."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def assert_looks_right(page: Any, name: str, look: tuple[str, int]) -> None:
    """No horizontal scrolling, a label for everything to fill in, text that can be read."""
    scheme, width = look
    keep_picture(page, f"{name}-{scheme}-{width}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} scrolls sideways"
    fields = "[...document.querySelectorAll('input:not([type=hidden])')]"
    assert (
        page.evaluate(
            f"{fields}.filter((field) => !field.labels.length && !field.ariaLabel).map((field) => field.name)"
        )
        == []
    )
    assert page.evaluate("document.querySelectorAll('h1').length") == 1
    assert page.evaluate(WEAK_TEXT) == []


def test_an_order_is_placed_by_clicking(open_page: Any) -> None:
    """Product list, form, order page; the page names its trace."""
    page = open_page("/")
    order_something(page)
    assert "Thank you, Ada Lovelace" in page.get_by_role("status").inner_text()
    table = page.get_by_role("table").inner_text()
    assert "Garden Mint" in table
    assert "€ 40.20" in table
    assert re.fullmatch(r"[0-9a-f]{32}", page.locator(".trace code").inner_text())


def sign_in(page: Any, shop: Demo, path: str) -> None:
    """Open a page of the admin, with the printed password."""
    password = re.search(r"password (\S+)", shop.output)
    assert password
    page.goto(path)
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill(password.group(1))
    page.get_by_role("button", name="Log in").click()


def test_the_invoice_of_an_order_stands_in_its_trace(open_page: Any, shop: Demo) -> None:
    """On the page of tasks it is the last run; the link leads to the trace, in which the order is."""
    page = open_page("/")
    sign_in(page, shop, "/admin/django_otel/tasks/")
    name = "example_project.shop.tasks.send_invoice"

    def is_shown() -> bool:
        # In the loop: the test before may have switched traces off a moment ago.
        page.goto("/")
        order_something(page)
        page.goto("/admin/django_otel/tasks/")
        links = page.locator("a[href*='/django_otel/trace/']").evaluate_all("links => links.map(link => link.href)")
        for link in dict.fromkeys(links):
            page.goto(link)
            text = page.locator("main, #content").first.inner_text()
            if all(part in text for part in ("POST /order/", f"send {name}", f"process {name}")):
                return True
        return False

    wait_until(is_shown, 60, "the trace of the order with its invoice")


def test_a_declined_card_is_followed_by_a_good_one(open_page: Any) -> None:
    """On the same page, without a new order."""
    page = open_page("/")
    order_something(page, "Visa ending in 0002")
    assert "The bank declined the card." in page.get_by_role("status").inner_text()
    page.get_by_label("Mastercard").check()
    page.get_by_role("button", name="Pay €").click()
    page.get_by_text("the kettle is on").wait_for()


def test_a_mistake_in_the_form_keeps_what_was_typed(open_page: Any) -> None:
    """And says what is wrong beside the field."""
    page = open_page("/order/?product=mint")
    page.get_by_label("Name").fill("Ada")
    page.get_by_label("E-mail").fill("nobody")
    page.get_by_role("button", name="Place the order").click()
    assert "look at the marked fields" in page.get_by_role("alert").inner_text()
    assert page.get_by_label("Name").input_value() == "Ada"
    assert page.get_by_label("E-mail").get_attribute("aria-invalid") == "true"
    assert "valid email" in page.locator(".problem").inner_text()


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: f"{look[0]}-{look[1]}")
def test_every_page_looks_right(open_page: Any, look: tuple[str, int]) -> None:
    """On a phone and a large screen, in light and dark."""
    page = open_page("/", *look)
    assert_looks_right(page, "products", look)
    order_something(page)
    assert_looks_right(page, "order-paid", look)
    page.goto("/")
    order_something(page, "Visa ending in 9995")
    assert_looks_right(page, "order-unpaid", look)
    page.goto("/order/")
    page.get_by_role("button", name="Place the order").click()
    page.get_by_role("alert").wait_for()
    assert_looks_right(page, "form-with-mistakes", look)
    for name, path in (
        *(("form", "/order/?product=sencha"), ("slow", "/slow/"), ("delivery", "/delivery/")),
        *(("not-found", "/teas/none/"), ("failed", "/error/")),
    ):
        page.goto(path)
        assert_looks_right(page, name, look)


def test_the_sampling_ratio_is_turned_in_the_admin(open_page: Any, shop: Demo) -> None:
    """Signed in with the printed password; the admin keeps its styles under the shop's content policy."""
    page = open_page("/")
    sign_in(page, shop, "/admin/")
    page.goto("/admin/django_otel/samplingpolicy/")
    page.get_by_label("Ratio:", exact=True).first.fill("0")
    page.get_by_label("Note:", exact=True).first.fill("quiet, please")
    keep_picture(page, "admin-sampling")
    page.get_by_role("button", name="Save", exact=True).click()
    page.locator(".messagelist .success").wait_for()
    header = page.evaluate("getComputedStyle(document.querySelector('#header')).backgroundColor")
    assert header not in ("rgba(0, 0, 0, 0)", "rgb(255, 255, 255)"), "the admin has lost its style sheet"
    page.goto("/admin/django_otel/samplingpolicy/")
    cookies = {cookie["name"]: cookie["value"] for cookie in page.context.cookies()}
    said: dict[str, str] = {}

    def have_both_turned() -> bool:
        # A new connection each time, which either worker may take; the browser would keep the one it has.
        answer = requests.get(page.url, cookies=cookies, headers={"Connection": "close"}, timeout=60)
        text = " ".join(re.sub("<[^>]*>", " ", answer.text).split())
        pid, share = re.search(r"pid (\d+)", text), re.search(r"(\S+) ?% of new traces", text)
        assert pid, text
        assert share, text
        said[pid.group(1)] = share.group(1)
        return list(said.values()) == ["0", "0"]

    wait_until(have_both_turned, 60, "both workers to apply what was saved")
    # For the tests after this one.
    page.get_by_label("Ratio:", exact=True).first.fill("1")
    page.get_by_role("button", name="Save", exact=True).click()
    page.locator(".messagelist .success").wait_for()


def test_the_judge_of_contrast_finds_weak_text(open_page: Any) -> None:
    """Or the tests above could not fail."""
    page = open_page("/")
    page.evaluate("document.querySelector('h1').style.color = '#d0d0c8'")
    assert [text.split()[1] for text in page.evaluate(WEAK_TEXT)] == ["Tea"]
