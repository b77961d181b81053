"""Every page in Chromium, in light and dark: axe-core finds nothing, and the keyboard is enough."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests import services, sizes
from tests.live_sampling.test_browser import Lender, chromium, give_session, keep_picture, lender

__all__ = ["chromium", "lender"]

pytestmark = pytest.mark.debian

DASHBOARD, TRACES = "/admin/django_otel/dashboard/", "/admin/django_otel/trace/"
POLICY = "/admin/django_otel/samplingpolicy/"
LOG_LEVELS = "/admin/django_otel/loglevel/"
NO_TRACE = f"{TRACES}{'0' * 31}1/"
OTEL = {"SERVICE_NAME": "shop", "SAMPLING": {"RATIO": 1.0, "REFRESH_S": 1.0, "FORCE": True}}
#: Marks that turn the direction of a text; a page shows their names in place of them.
BIDI_CONTROLS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
#: Languages and widths; a narrow page is the harder one. In the long run each is looked at in dark, too.
LOOKS = [
    ("en", (320,)), pytest.param("en", (1280,), marks=pytest.mark.long),
    pytest.param("ar", (1280, 320), marks=pytest.mark.long),
]  # fmt: skip
#: The rules of axe-core that depend on colours.
COLOUR_RULES = ["color-contrast", "link-in-text-block"]
PREPARE = """
import django
django.setup()
from django.contrib.auth.models import User
from django_otel.models import SamplingPolicy, SamplingRule
User.objects.create_superuser("ada", password="ada")
"""
RULES = """
SamplingPolicy(ratio=1, note="all of it").save()
SamplingRule.objects.create(path="/hello/*", ratio=1, priority=10)
SamplingRule.objects.create(path="/admin/*", ratio=1, method="GET")
"""
LEVELS = """
import datetime
from django.utils import timezone
from django_otel.models import LogLevel
LogLevel.objects.create(logger="django.db.backends", level="DEBUG", set_by="ada", note="incident 7",
                        expires_at=timezone.now() + datetime.timedelta(hours=1))
LogLevel.objects.create(logger="shop.\u202epayments", level="ERROR", set_by="ada", expires_at=timezone.now())
"""


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, installed by npm into the git-ignored cache."""
    folder = services.ROOT / ".cache" / "axe-core"
    source = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not source.exists():
        if shutil.which("npm") is None:
            services.missing("The accessibility tests need npm, which installs axe-core: apt-get install npm")
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", "axe-core@4"],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        if done.returncode:
            services.missing(f"npm cannot install axe-core: {done.stderr}")
    return source.read_text(encoding="utf-8")


def serve(folder: Path, otel: dict[str, Any], code: str, *manage: tuple[str, ...]) -> Iterator[str]:
    """The address of a site whose database `code` and then the commands `manage` have prepared."""
    env = services.server_env(
        otel, TEST_SQLITE=str(folder / "db.sqlite3"), DJANGO_SETTINGS_MODULE="tests.accessible_settings"
    )
    services.migrate_database(env)
    services.run_python(PREPARE + code, env)
    for arguments in manage:
        services.run_django(env, *arguments, "-v", "0")
    port = services.free_port()
    command = [sys.executable, "-m", "gunicorn", "tests.accessible_site:application", "--bind", f"127.0.0.1:{port}",
               "--graceful-timeout", "5"]  # fmt: skip
    with services.running(command, env, folder / "log") as process:
        services.wait_until(lambda: services.is_listening(port) or process.poll() is not None, 30, "gunicorn")
        assert process.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}"


def serve_whole(folder: Path) -> Iterator[str]:
    """A site with rules and a filled store: equal queries, a failure, a path that turns the direction of text."""
    otel = {**OTEL, "CONSOLE": {"ENABLED": True, "PATH": str(folder / "store")}}
    for url in serve(folder, otel, RULES + LEVELS):
        for path in ("/hello/", "/n-plus-one/", "/boom/", f"/en/greet/{BIDI_CONTROLS}/"):
            requests.get(url + path, headers={"User-Agent": "test"}, timeout=20)
        yield url


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve_whole(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def site_unchanged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Another one, in whose history no test has written a text of its own language."""
    yield from serve_whole(tmp_path_factory.mktemp("unchanged"))


@pytest.fixture(scope="module")
def site_without(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A site whose console is off and whose tables of the policy are missing."""
    otel = {**OTEL, "CONSOLE": {"ENABLED": False}}
    yield from serve(tmp_path_factory.mktemp("without"), otel, "", ("migrate", "django_otel", "zero"))


@pytest.fixture(scope="module")
def site_new(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A site without a policy."""
    yield from serve(tmp_path_factory.mktemp("new"), {**OTEL, "CONSOLE": {"ENABLED": False}}, "")


Opener = Callable[..., Any]


@contextlib.contextmanager
def signed_in(lender: Lender, url: str, language: str, scheme: Any, width: int, **options: Any) -> Iterator[Any]:
    """Give a page of the site for its user; `options` are further ones of the browser's context."""
    with lender.lend(url, scheme, width, locale=language, **options) as page:
        give_session(page.context, url, "ada")
        yield page


@pytest.fixture
def open_page(lender: Lender) -> Iterator[Opener]:
    """Opens a page, signed in."""
    with contextlib.ExitStack() as contexts:

        def open_it(url: str, path: str, scheme: str = "light", language: str = "en", width: int = 1280) -> Any:
            # The strict content policy of the site is tested elsewhere; axe-core is a script of this test's own.
            page = contexts.enter_context(signed_in(lender, url, language, scheme, width, bypass_csp=True))
            page.goto(path)
            return page

        yield open_it


def violations(page: Any, axe: str, widths: tuple[int, ...] = (320,)) -> list[str]:
    """Every rule of axe-core that the page breaks, with the elements; in a long run those of colours in dark, too."""
    page.evaluate(axe)
    found = []
    for width in widths:
        page.set_viewport_size({"width": width, "height": 900})
        found += run_axe(page, f"{width} px")
    return found + violations_in_dark(page) if sizes.IS_LONG else found


def violations_in_dark(page: Any) -> list[str]:
    # Or colours would be on their way to others.
    page.add_style_tag(content="*, ::before, ::after { transition: none !important }")
    page.emulate_media(color_scheme="dark")
    found = run_axe(page, "dark", runOnly=COLOUR_RULES)
    page.emulate_media(color_scheme="light")
    return found


def run_axe(page: Any, what: str, **options: Any) -> list[str]:
    found = page.evaluate("options => axe.run(options)", {"resultTypes": ["violations"], **options})["violations"]
    return [f"{what}, {rule['id']}: {node['html'][:300]} {node['any'][:1]}" for rule in found for node in rule["nodes"]]


def is_too_wide(page: Any) -> bool:
    """Whether a visitor could scroll sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


def open_trace(page: Any, what: str) -> None:
    """Open the newest trace with `what` in its row."""

    def is_there() -> bool:
        # The requests of these tests themselves would push it off the first page.
        page.goto(f"{TRACES}?route={what}")
        return bool(page.locator(".otel-what a").filter(has_text=what).count())

    services.wait_until(is_there, 60, f"a trace of {what}")
    page.locator(".otel-what a").filter(has_text=what).first.click()
    page.wait_for_url(re.compile(r"/[0-9a-f]{32}/"))


PAGES = {
    "dashboard": DASHBOARD,
    "instruments": "/admin/django_otel/instruments/",
    "instruments-none": "/admin/django_otel/instruments/?q=no-such",
    "dashboard-route": f"{DASHBOARD}?route=/hello/",
    "traces": TRACES,
    "errors": "/admin/django_otel/errors/",
    "errors-none": "/admin/django_otel/errors/?state=all&since=x&q=no-such",
    "error": "/admin/django_otel/errors/1/",
    "trace-import": f"{TRACES}import/",
    "traces-none": f"{TRACES}?route=/nowhere/",
    "traces-unreadable": f"{TRACES}?min_ms=abc&trace=ZZZ&status=x",
    "trace-missing": NO_TRACE,
    "tasks": "/admin/django_otel/tasks/",
    "traces-search": f"{TRACES}?q=db.query.text~select&sort=-duration",
    "traces-search-unreadable": f"{TRACES}?q=%22open",
    "trace-object": f"{TRACES}object/app.thing/7/",
    "trace-compare": f"{NO_TRACE}compare/",
    "policy": POLICY,
    "policy-change": f"{POLICY}1/change/",
    "policy-history": f"{POLICY}1/history/",
    "policy-delete": f"{POLICY}1/delete/",
    "queries": "/admin/django_otel/queries/",
    "slow": "/admin/django_otel/slow/",
    "slow-split": "/admin/django_otel/slow/?at=1s",
    "slow-unreadable": "/admin/django_otel/slow/?at=x&since=x&until=x",
    "queries-repeated": "/admin/django_otel/queries/?repeated=1&sort=count",
    "query-plan": "/admin/django_otel/queries/explain/?statement=1",
    "query-plan-none": "/admin/django_otel/queries/explain/?statement=0",
    "logs": "/admin/django_otel/logs/?follow=1",
    "logs-unreadable": "/admin/django_otel/logs/?since=x&trace=x",
    "log-levels": LOG_LEVELS,
    "log-level-add": f"{LOG_LEVELS}add/",
    "log-level-change": f"{LOG_LEVELS}1/change/",
    "log-level-history": f"{LOG_LEVELS}1/history/",
    "log-level-delete": f"{LOG_LEVELS}1/delete/",
    "failed": "/boom/",
}
PAGES_WITHOUT = {
    "dashboard-off": DASHBOARD,
    "traces-off": TRACES,
    "trace-off": NO_TRACE,
    "policy-unavailable": POLICY,
    "policy-add-unavailable": f"{POLICY}add/",
    "log-levels-unavailable": LOG_LEVELS,
    "failed-without-console": "/boom/",
}


@pytest.mark.parametrize(("language", "widths"), LOOKS)
def test_axe_finds_nothing_on_any_page(
    open_page: Opener, site: str, axe: str, language: str, widths: tuple[int, ...]
) -> None:
    """Of the console, the policy's admin and the visitor's page of a failed request."""
    page = open_page(site, DASHBOARD, language=language)
    found = {}
    for name, path in PAGES.items():
        page.goto(path)
        if "dashboard" in name:
            services.wait_until(lambda: page.reload() and page.locator(".otel-tile").count(), 30, "figures")
        found[name] = violations(page, axe, widths)
        # Now as narrow as the last of `widths`.
        assert not is_too_wide(page), name
        assert page.evaluate("document.documentElement.dir") == ("rtl" if language == "ar" else "ltr"), name
    page.goto(POLICY)
    page.locator("[data-otel-add] button").click()
    found["policy-rule-added"] = violations(page, axe, widths)
    page.locator("#id_ratio").fill("7")
    page.locator("[name=_save]").click()
    page.locator(".errornote").wait_for()
    found["policy-errors"] = violations(page, axe, widths)
    page.goto(POLICY)
    page.locator("[formaction]").click()
    page.locator(".messagelist a").wait_for()
    found["policy-force-link"] = violations(page, axe, widths)
    for name, what in (("n-plus-one", "/n-plus-one/"), ("error", "/boom/")):
        open_trace(page, what)
        found[f"trace-{name}"] = violations(page, axe, widths)
        page.locator("[data-otel-open]").first.click()
        page.locator(".otel-details").wait_for()
        found[f"trace-{name}-opened"] = violations(page, axe, widths)
    assert {name: each for name, each in found.items() if each} == {}


@pytest.mark.parametrize(("language", "widths"), LOOKS)
def test_axe_finds_nothing_on_the_page_of_a_new_policy(
    open_page: Opener, site_new: str, axe: str, language: str, widths: tuple[int, ...]
) -> None:
    """There is none yet; nor after a form with errors."""
    page = open_page(site_new, f"{POLICY}add/", language=language)
    found = {"policy-add": violations(page, axe, widths)}
    page.locator("#id_ratio").fill("7")
    page.locator("[name$=-path]").first.evaluate("field => { field.value = 'no-slash' }")
    page.locator("[name=_save]").click()
    page.locator(".errornote").wait_for()
    found["policy-add-errors"] = violations(page, axe, widths)
    assert {name: each for name, each in found.items() if each} == {}


@pytest.mark.parametrize(("language", "widths"), LOOKS)
@pytest.mark.long
def test_axe_finds_nothing_where_a_part_is_off(
    open_page: Opener, site_without: str, axe: str, language: str, widths: tuple[int, ...]
) -> None:
    """The console is off, the tables of the policy are missing."""
    page = open_page(site_without, DASHBOARD, language=language)
    found = {}
    for name, path in PAGES_WITHOUT.items():
        page.goto(path)
        found[name] = violations(page, axe, widths)
    assert {name: each for name, each in found.items() if each} == {}


def test_axe_finds_what_is_wrong(open_page: Opener, site: str, axe: str) -> None:
    """Or the tests above could not fail."""
    page = open_page(site, TRACES)
    page.evaluate("document.querySelector('label[for=otel-event]').remove()")
    page.add_style_tag(content="@media (prefers-color-scheme: dark) { label { color: #333 !important } }")
    found = violations(page, axe)
    assert any(each.startswith("320 px, select-name") for each in found)
    assert not any(each.startswith("320 px, color-contrast") for each in found)
    assert {each.partition(":")[0] for each in violations_in_dark(page)} == {"dark, color-contrast"}


@pytest.mark.parametrize("language", ["en", "ar"])
def test_forward_opens_a_group_and_backward_closes_it(open_page: Opener, site: str, language: str) -> None:
    """Right and Left; swapped where the page is written from right to left."""
    page = open_page(site, TRACES, language=language)
    open_trace(page, "/n-plus-one/")
    forward, backward = ("ArrowRight", "ArrowLeft") if language == "en" else ("ArrowLeft", "ArrowRight")
    is_open = "document.querySelector('.otel-group details').open"
    page.locator(".otel-group summary").first.focus()
    assert not page.evaluate(is_open)
    page.keyboard.press(forward)
    assert page.evaluate(is_open)
    # Inside, forward goes to the first member and opens it; backward closes it, then leaves, then closes the group.
    page.keyboard.press(forward)
    assert page.evaluate("document.activeElement.matches('.otel-group li .otel-span')")
    page.keyboard.press(forward)
    page.locator(".otel-details").wait_for()
    page.keyboard.press(backward)
    services.wait_until(lambda: not page.locator(".otel-details").count(), 60, "the span closed")
    page.keyboard.press(backward)
    assert page.evaluate("document.activeElement.matches('.otel-group summary')")
    page.keyboard.press(backward)
    assert not page.evaluate(is_open)


@pytest.mark.parametrize("path", [DASHBOARD, pytest.param(TRACES, marks=pytest.mark.long)])
def test_the_skip_link_leads_over_the_head(open_page: Opener, site: str, path: str) -> None:
    """It shows itself with the focus, and the focus goes where it leads."""
    page = open_page(site, path)
    link = page.locator(".otel-skip")
    link.focus()
    box = link.bounding_box()
    assert box["x"] >= 0, "the link cannot be seen"
    assert box["width"] > 20, "the link cannot be seen"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "otel-main"


def test_no_control_of_direction_reaches_a_page(open_page: Opener, site: str) -> None:
    """Neither in the list nor in the trace with everything open."""
    page = open_page(site, TRACES)
    open_trace(page, "greet")
    page.locator("a.otel-span").first.click()
    page.locator(".otel-details").wait_for()
    for text in (page.content(), requests.get(page.url, cookies=cookies_of(page), timeout=20).text):
        assert [f"U+{ord(mark):04X}" for mark in BIDI_CONTROLS if mark in text] == []
    assert "\\u202e" in page.locator(".otel-details").inner_text()


@pytest.mark.long
def test_no_control_of_direction_reaches_a_page_of_the_policy(open_page: Opener, site: str) -> None:
    """From a note, a path or an author's name; the fields of the form keep what was typed."""
    page = open_page(site, POLICY)
    page.locator("#id_note").fill(f"note {BIDI_CONTROLS}")
    page.locator("[name$=-path]").first.fill(f"/x{BIDI_CONTROLS}/*")
    page.locator("[name=_save]").click()
    page.locator(".messagelist").wait_for()
    addresses = [POLICY, f"{POLICY}status/", f"{POLICY}1/history/", f"{POLICY}1/delete/", "/admin/"]
    for address in addresses:
        text = requests.get(page.url.partition("/admin/")[0] + address, cookies=cookies_of(page), timeout=20).text
        text = re.sub(r"<input [^>]*>", "", text)
        assert [f"U+{ord(mark):04X}" for mark in BIDI_CONTROLS if mark in text] == [], address
    assert "\\u202e" in page.locator("[data-otel-part=in_force]").inner_text()
    page.locator("[name$=-path]").first.fill("/hello/*")
    page.locator("#id_note").fill("all of it")
    page.locator("[name=_save]").click()
    page.locator(".messagelist").wait_for()


@pytest.mark.parametrize(
    "language", ["en", pytest.param("de", marks=pytest.mark.long), pytest.param("ar", marks=pytest.mark.long)]
)
def test_the_lists_of_a_rule_show_their_widest_choice(open_page: Opener, site: str, language: str) -> None:
    """Path or route, the method: not one is cut off."""
    page = open_page(site, POLICY, language=language)
    cut_off = page.evaluate("""() => [...document.querySelectorAll('[data-otel-rule]:not([hidden]) select')]
        .filter((field) => field.getClientRects().length)
        .flatMap((field) => [...field.options].map((option) => {
            const copy = field.cloneNode(false);
            copy.append(option.cloneNode(true));
            copy.style.cssText = 'width: auto; max-width: none; position: absolute';
            field.after(copy);
            const wanted = copy.offsetWidth;
            copy.remove();
            return wanted > field.offsetWidth ? `${option.text}: ${wanted} > ${field.offsetWidth}` : '';
        }))
        .filter(Boolean)""")
    assert cut_off == []


def cookies_of(page: Any) -> dict[str, str]:
    return {cookie["name"]: cookie["value"] for cookie in page.context.cookies()}


@pytest.mark.long
@pytest.mark.parametrize(
    ("language", "scheme", "width"),
    [
        ("ar", "dark", 400),
        ("de", "light", 1280),
        ("ar", "light", 1280),
        ("en", "dark", 320),
        ("de", "light", 320),
        ("de", "dark", 800),
        ("ar", "dark", 1024),
        ("de", "light", 1600),
    ],  # fmt: skip
)
def test_no_page_scrolls_sideways(open_page: Opener, site: str, language: str, scheme: str, width: int) -> None:
    """In German, in Arabic, on a phone."""
    page = open_page(site, DASHBOARD, scheme, language, width)
    too_wide = []
    for name, path in PAGES.items():
        page.goto(path)
        keep_picture(page, f"{name}-{language}-{scheme}-{width}")
        if is_too_wide(page):
            too_wide.append(name)
    open_trace(page, "/n-plus-one/")
    page.locator("[data-otel-open]").first.click()
    page.locator(".otel-details").wait_for()
    keep_picture(page, f"trace-{language}-{scheme}-{width}")
    if is_too_wide(page):
        too_wide.append("trace")
    assert too_wide == []


# --- In other languages: the direction, no words left in English, figures that hold together. ---

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
def pages(open_page: Opener, site_unchanged: str, site_without: str) -> Callable[[str], Any]:
    """Yields the name and page of each page in a language, with a trace and its span opened."""

    def visit(language: str) -> Any:
        page = open_page(site_unchanged, DASHBOARD, language=language)
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


@pytest.mark.long
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
