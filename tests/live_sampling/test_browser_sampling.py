"""The page of the sampling policy in a real browser: three worker processes behind it, a strict content policy."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests import services
from tests.live_sampling.test_browser import LOOKS, WEAK_TEXT, Lender, chromium, give_session, keep_picture, lender
from tests.live_sampling.test_hosts import ADDRESS, signed_in
from tests.live_sampling.time_left import check_time_left

__all__ = ["chromium", "lender"]

pytestmark = pytest.mark.debian

WORKERS = 3
PAGE = "/admin/django_otel/samplingpolicy/"
OTEL = {"SERVICE_NAME": "page", "SAMPLING": {"RATIO": 0.5, "REFRESH_S": 1.0}}
#: The admin's own parts of the page are Django's to answer for.
WEAK_TEXT_OF_OURS = WEAK_TEXT.replace(
    "'body *'", "'.django-otel-overview *, .django-otel-rules *, .django-otel-turn *'"
)


class Site:
    """The server, and a shell beside it."""

    def __init__(self, url: str, env: dict[str, str]) -> None:
        self.url = url
        self._env = env
        self._session: requests.Session | None = None

    def run(self, code: str) -> str:
        """Python in a process of its own, as another host would change the policy."""
        lines = "import datetime, django; django.setup()\nfrom django.utils import timezone\n"
        lines += "from django.contrib.auth.models import Permission, User\n"
        lines += "from django_otel.models import SamplingPolicy, SamplingRule\n"
        return services.run_python(lines + code, self._env).stdout

    def reset(self) -> None:
        """The state every test begins with: no policy, no rule, in every process."""
        self.run("SamplingPolicy.objects.all().delete(); SamplingRule.objects.all().delete()")
        session = self._session = self._session or signed_in(self.url)

        def have_all_turned() -> bool:
            # A process is known from its first request on, and the first worker to be there may take all of them.
            requests.get(f"{self.url}/hello/", headers={"Connection": "close"}, timeout=60)
            status = session.get(f"{self.url}{ADDRESS}", headers={"Connection": "close"}, timeout=60).json()
            return status["is_settled"] and len(status["processes"]) == WORKERS

        services.wait_until(have_all_turned, 60, "every process without a policy")


@pytest.fixture(scope="module")
def site(tmp_path_factory: Any) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    env = services.server_env(OTEL, TEST_SQLITE=str(folder / "db.sqlite3"), DJANGO_SETTINGS_MODULE="tests.settings")
    port = services.free_port()
    made = Site(f"http://127.0.0.1:{port}", env)
    services.migrate_database(env)
    made.run(
        "for name in 'ada', 'bob': User.objects.create_superuser(name, password=name)\n"
        "eve = User.objects.create_user('eve', password='eve', is_staff=True)\n"
        "eve.user_permissions.set(Permission.objects.filter(codename='view_samplingpolicy'))"
    )
    command = [
        sys.executable, "-m", "gunicorn", "tests.policy_site:application", "--bind", f"127.0.0.1:{port}",
        "--workers", str(WORKERS), "--graceful-timeout", "5",
    ]  # fmt: skip
    with services.running(command, env, folder / "log") as process:
        services.wait_until(lambda: services.is_listening(port) or process.poll() is not None, 30, "gunicorn")
        assert process.poll() is None, (folder / "log").read_text()
        yield made


@pytest.fixture
def open_page(lender: Lender, site: Site) -> Iterator[Any]:
    """Opens the page, signed in; fails at the end when the browser had something to complain about."""
    site.reset()
    complaints: list[str] = []
    on = {
        "pageerror": lambda error: complaints.append(str(error)),
        # Violations of a content policy are reported here, too.
        "console": lambda message: complaints.append(message.text) if message.type == "error" else None,
    }
    with contextlib.ExitStack() as pages:

        def open_it(
            user: str = "ada", scheme: str = "light", width: int = 1600, has_script: bool = True, path: str = PAGE
        ) -> Any:
            page = pages.enter_context(lender.lend(site.url, scheme, width, on=on, java_script_enabled=has_script))
            give_session(page.context, site.url, user)
            page.goto(path)
            return page

        yield open_it
    assert [text for text in complaints if "the server responded with a status of" not in text] == []


def headline(page: Any) -> Any:
    return page.locator(".django-otel-headline")


def wait_for_text(locator: Any, pattern: str, timeout_s: float = 60.0) -> str:
    """Waits until the element's text has the pattern."""
    text = ""

    def is_there() -> bool:
        nonlocal text
        with contextlib.suppress(Exception):
            text = locator.first.inner_text(timeout=1000)
        return re.search(pattern, text) is not None

    services.wait_until(is_there, timeout_s, f"{pattern!r} in {text!r}")
    return text


def test_a_policy_is_set_by_clicking_and_every_process_turns_to_it(open_page: Any, site: Site) -> None:
    """Preset, duration, a rule with what it matches; then the table says that all have applied it."""
    page = open_page()
    assert "50 %" in headline(page).inner_text()
    assert page.get_by_label("Ratio:", exact=True).first.input_value() == "0.5"

    page.get_by_role("button", name="10 %", exact=True).click()
    assert page.locator("#id_ratio").input_value() == "0.1"
    page.get_by_text("15 minutes", exact=True).first.click()
    page.get_by_role("button", name="Add a rule").click()
    page.locator("#id_rules-0-path").fill("/orders/*")
    preview = page.locator("[data-otel-preview]").first
    assert "/orders/<int:pk>/" in wait_for_text(preview, r"Matches 1 of \d+ routes\.")
    page.locator("#id_rules-0-ratio").fill("1")
    begun_s = time.time()
    page.get_by_role("button", name="Save").click()

    page.locator(".messagelist .success").wait_for()
    wait_for_text(page.locator("[data-otel-summary]"), rf"All {WORKERS} processes apply version \d+\.")
    assert page.locator(".django-otel-processes tbody tr.is-current").count() == WORKERS
    text = page.locator(".django-otel-status").inner_text()
    assert "10 % of new traces are recorded" in text
    check_time_left(text, "Until", 900, begun_s)
    assert re.search(r"/orders/\* 100 %", text)
    ratio, end_s, *rule = site.run(
        "p = SamplingPolicy.objects.get(); r = SamplingRule.objects.get()\n"
        "print(p.ratio, p.expires_at.timestamp(), r.path, r.ratio, r.expires_at)"
    ).split()
    assert (ratio, rule) == ("0.1", ["/orders/*", "1.0", "None"])
    assert begun_s + 899 <= float(end_s) <= time.time() + 900


def test_a_change_from_elsewhere_shows_without_a_reload(open_page: Any, site: Site) -> None:
    """Saved by another process: the open page follows, and so do all processes."""
    page = open_page()
    wait_for_text(page.locator("[data-otel-summary]"), f"All {WORKERS} processes apply")
    page.evaluate("window.isTheSamePage = true")
    site.run("SamplingPolicy(ratio=0.025).save()")
    wait_for_text(headline(page), r"^2\.5 % of new traces")
    wait_for_text(page.locator("[data-otel-summary]"), f"All {WORKERS} processes apply version")
    site.run("SamplingPolicy.objects.get().delete()")
    wait_for_text(headline(page), "^50 % of new traces")
    wait_for_text(page.locator("[data-otel-summary]"), f"All {WORKERS} processes apply version .*the settings")
    assert page.evaluate("window.isTheSamePage") is True


def test_a_policy_that_runs_out_is_seen_to_end(open_page: Any, site: Site) -> None:
    """By itself, on the open page."""
    site.reset()
    page = open_page()
    site.run("SamplingPolicy(ratio=0.01, expires_at=timezone.now() + datetime.timedelta(seconds=55)).save()")
    wait_for_text(page.locator(".django-otel-status"), r"1 % of new traces[\s\S]*\(in \d+ s\)")
    # What is left of it is too short to be seen on a busy machine.
    site.run("SamplingPolicy.objects.update(expires_at=timezone.now() + datetime.timedelta(seconds=2))\n"
             "SamplingPolicy.objects.get().save()")  # fmt: skip
    wait_for_text(page.locator(".django-otel-status"), r"50 % of new traces[\s\S]*has expired")


@pytest.mark.long
def test_it_works_without_a_script(open_page: Any, site: Site) -> None:
    """The same form, the same result; what rules match is said once it is saved."""
    page = open_page(has_script=False)
    page.locator("#id_ratio").fill("0.2")
    page.get_by_label("1 hour").first.check()
    page.locator("#id_rules-0-route").fill("/articles/*")
    page.locator("#id_rules-0-ratio").fill("0.75")
    page.locator("#id_rules-0-method").select_option("GET")
    page.locator("#id_rules-0-lasts").select_option("15m")
    page.get_by_role("button", name="Save").click()
    page.locator(".messagelist .success").wait_for()
    said = site.run(
        "p = SamplingPolicy.objects.get(); r = SamplingRule.objects.get(); now = timezone.now()\n"
        "print(p.ratio, round((p.expires_at - now).total_seconds() / 60), r, "
        "round((r.expires_at - now).total_seconds() / 60))"
    )
    assert said.strip() == "0.2 60 GET /articles/*: 75 % 15"
    rule = page.locator(".django-otel-rule").first
    assert "/articles/<year>/" in rule.inner_text()
    # A rule is removed by a box.
    page.get_by_label("Remove").check()
    page.get_by_role("button", name="Save").click()
    page.locator(".messagelist .success").wait_for()
    assert site.run("print(SamplingRule.objects.count())").strip() == "0"


def test_the_keyboard_alone_will_do(open_page: Any, site: Site) -> None:
    """Slider by arrows, presets and the rule by Tab and Enter."""
    page = open_page()
    page.locator("#id_ratio").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "range"
    page.keyboard.press("Home")
    assert page.locator("#id_ratio").input_value() == "0"
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert page.locator("#id_ratio").input_value() == "0.01"
    assert page.evaluate("document.activeElement.getAttribute('aria-valuetext')") == "1 %"
    # Presets follow, each with Tab.
    for _ in range(4):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "10 %"
    page.keyboard.press("Enter")
    assert page.locator("#id_ratio").input_value() == "0.1"
    page.get_by_role("button", name="Add a rule").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.name") == "rules-0-path"
    page.keyboard.type("/hello/")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "rules-0-ratio"
    page.keyboard.type("1")
    page.keyboard.press("Enter")
    page.locator(".messagelist .success").wait_for()
    assert site.run("print(SamplingRule.objects.get())").strip() == "/hello/: 100 %"


def test_rows_of_rules_come_and_go(open_page: Any, site: Site) -> None:
    """Several at once, one taken back, path turned into route; nothing is sent of what was taken back."""
    page = open_page()
    for number, path in enumerate(("/a/*", "/b/*", "/c/*")):
        page.get_by_role("button", name="Add a rule").click()
        page.locator(f"#id_rules-{number}-path").fill(path)
        page.locator(f"#id_rules-{number}-ratio").fill("1")
    page.locator("[data-otel-rule]").nth(1).get_by_role("button", name="Take back").click()
    assert not page.locator("[data-otel-rule]").nth(1).is_visible()
    third = page.locator("[data-otel-rule]").nth(2)
    third.get_by_label("Match by:").select_option("route")
    assert page.locator("#id_rules-2-route").input_value() == "/c/*"
    assert not page.locator("#id_rules-2-path").is_visible()
    # A time of its own is only asked for when it is wanted.
    assert not page.locator("#id_rules-2-expires_at").is_visible()
    third.get_by_label("For how long:").select_option("")
    page.locator("#id_rules-2-expires_at").fill("2099-01-02T03:04:05")
    page.get_by_role("button", name="Save").click()
    page.locator(".messagelist .success").wait_for()
    said = site.run(
        "print([(r.path, r.route, r.expires_at and r.expires_at.year) for r in SamplingRule.objects.all()])"
    )
    assert said.strip() == "[('', '/c/*', 2099), ('/a/*', '', None)]"


@pytest.mark.long
def test_a_rule_that_others_decide_is_said_to_have_no_effect(open_page: Any) -> None:
    """While it is typed, by its priority."""
    page = open_page()
    for number, (path, priority) in enumerate((("/orders/*", "5"), ("/orders/1*", "1"))):
        page.get_by_role("button", name="Add a rule").click()
        page.locator(f"#id_rules-{number}-path").fill(path)
        page.locator(f"#id_rules-{number}-ratio").fill("1")
        page.locator(f"#id_rules-{number}-priority").fill(priority)
    second = page.locator("[data-otel-preview]").nth(1)
    wait_for_text(second, "all of them decided by rules before this one")
    page.locator("#id_rules-1-priority").fill("9")
    wait_for_text(second, r"Matches 1 of \d+ routes\.\s")
    assert "some of its paths" in second.inner_text()


@pytest.mark.long
def test_two_who_save_at_once_do_not_lose_what_the_other_did(open_page: Any, site: Site) -> None:
    """The second sees the author and the change, keeps the form, and may then decide."""
    ada, bob = open_page("ada"), open_page("bob")
    for page, ratio in ((ada, "0.1"), (bob, "0.9")):
        page.locator("#id_ratio").fill(ratio)
    ada.get_by_role("button", name="Save").click()
    ada.locator(".messagelist .success").wait_for()
    bob.get_by_role("button", name="Save").click()
    # The first row: bob's form was one that adds.
    wait_for_text(
        bob.locator(".messagelist, .errornote"), "in the meantime another user has created the sampling policy"
    )
    assert bob.locator("#id_ratio").input_value() == "0.1"

    for page, ratio in ((ada, "0.2"), (bob, "0.8")):
        page.locator("#id_ratio").fill(ratio)
    ada.get_by_role("button", name="Save").click()
    ada.locator(".messagelist .success").wait_for()
    bob.get_by_role("button", name="Save").click()
    wait_for_text(bob.locator(".errorlist.nonfield"), r"in the meantime ada has changed .*Ratio: 0\.1 → 0\.2")
    assert bob.locator("#id_ratio").input_value() == "0.8"
    assert site.run("print(SamplingPolicy.objects.get().ratio)").strip() == "0.2"
    bob.get_by_role("button", name="Save").click()
    bob.locator(".messagelist .success").wait_for()
    assert site.run("print(SamplingPolicy.objects.get().ratio)").strip() == "0.8"


@pytest.mark.long
def test_who_may_only_look_sees_everything_and_can_send_nothing(open_page: Any, site: Site) -> None:
    """The processes turn for them, too."""
    site.run("SamplingPolicy(ratio=0.3).save(); SamplingRule.objects.create(path='/orders/*', ratio=1)")
    page = open_page("eve", path=PAGE)
    wait_for_text(headline(page), "^30 % of new traces")
    assert "Matches 1 of" in page.locator(".django-otel-rules").inner_text()
    assert page.get_by_role("button", name="Save").count() == 0
    assert page.get_by_role("button", name="Add a rule").count() == 0
    site.run("SamplingPolicy(ratio=0.4).save()")
    wait_for_text(headline(page), "^40 % of new traces")


def test_a_page_that_was_left_open_says_that_its_visitor_is_signed_out(open_page: Any) -> None:
    """Rather than to show old figures as new ones."""
    page = open_page()
    page.context.clear_cookies()
    wait_for_text(page.locator("[data-otel-summary]"), "You are no longer signed in")


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: f"{look[0]}-{look[1]}")
@pytest.mark.parametrize(
    "has_script", [pytest.param(True, id="script"), pytest.param(False, id="no-script", marks=pytest.mark.long)]
)
def test_the_page_looks_right(open_page: Any, site: Site, look: tuple[str, int], has_script: bool) -> None:
    """No sideways scrolling even with long names, a label for everything to fill in, text that can be read."""
    scheme, width = look
    site.run(
        "SamplingPolicy(ratio=0.1, note='n' * 200, max_per_second=5, keep_errors=True, keep_slow_s=2).save()\n"
        "end = timezone.now() + datetime.timedelta(minutes=15)\n"
        "SamplingRule.objects.create(path='/orders/*', ratio=1, priority=10, expires_at=end)\n"
        "SamplingRule.objects.create(path='/admin/*', ratio=0.01, method='GET')\n"
        "SamplingRule.objects.create(path='/' + 'x' * 199, ratio=0)\n"
        "SamplingRule.objects.create(route='/over/', ratio=0, expires_at=timezone.now())"
    )
    page = open_page(scheme=scheme, width=width, has_script=has_script)
    if has_script:
        wait_for_text(page.locator("[data-otel-summary]"), f"All {WORKERS} processes apply")
        page.get_by_role("button", name="Add a rule").click()
    keep_picture(page, f"sampling-{scheme}-{width}{'' if has_script else '-no-script'}")
    if not has_script:
        assert page.locator(".django-otel-rule").count() == 5
        box = page.locator("#container").bounding_box()
        assert box["width"] <= width
        return
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    fields = "[...document.querySelectorAll('#content-main :is(input:not([type=hidden], [type=submit]), select)')]"
    labelled = "field.labels.length || field.getAttribute('aria-label')"
    assert page.evaluate(f"{fields}.filter((field) => !({labelled})).map((field) => field.name)") == []
    assert page.evaluate(WEAK_TEXT_OF_OURS) == []
    ids = "[...document.querySelectorAll('[id]')].map((found) => found.id)"
    assert page.evaluate(f"{ids}.filter((id, place, all) => all.indexOf(id) !== place)") == []


def test_the_judge_of_contrast_finds_weak_text_of_ours(open_page: Any) -> None:
    """Or the test above could not fail."""
    page = open_page()
    page.evaluate("document.querySelector('.django-otel-headline').style.color = '#e0e0e0'")
    assert any("of new traces" in text for text in page.evaluate(WEAK_TEXT_OF_OURS))
