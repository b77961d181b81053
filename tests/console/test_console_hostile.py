"""What a store may hold, seen in a real browser: markup in every text, queries in a loop, links, logs, long names."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import services
from tests.console.test_console import HOSTILE, query_span, request_span
from tests.live_sampling.test_browser import LOOKS, Lender, assert_looks_right, chromium, lender  # noqa: F401 (fixtures)
from tests.tracestore.test_store import Counted, processor, provider_with

pytestmark = pytest.mark.debian

TRACES = "/admin/django_otel/trace/"
LONG = "/very" * 60 + "/<slug:" + "long_name_" * 20 + ">/"


def fill(folder: Path) -> dict[str, str]:
    """Store some traces; their ids by what they are about."""
    from opentelemetry.trace import Link, Status, StatusCode

    console = processor(folder, Counted())
    tracer = provider_with(console)
    found = {}

    def note(name: str, span: Any) -> None:
        found[name] = f"{span.get_span_context().trace_id:032x}"

    with request_span(tracer, route="/first/") as first:
        note("first", first)
    where = {"code.file.path": "/srv/shop/views.py", "code.line.number": 42, "code.function.name": "listing"}
    statement = 'SELECT "a"."id", "a"."name" FROM "shop_a" AS "a" WHERE "a"."id" = %s AND "a"."b" = ? ORDER BY "a"."c"'
    with request_span(tracer, route="/loop/") as loop:
        note("loop", loop)
        for number in range(12):
            with query_span(tracer, statement, **(where if number == 2 else {})):
                time.sleep(0.001)
        with tracer.start_as_current_span("render"):
            time.sleep(0.01)
    with tracer.start_as_current_span("consumer", links=[Link(first.get_span_context())]) as consumer:
        note("linked", consumer)
    with request_span(tracer, route=LONG, **{"http.request.header.x-long": ["x" * 900]}) as long:
        note("long", long)
        with query_span(tracer, "SELECT " + ", ".join(f'"{"column" * 12}{n}"' for n in range(40)) + ' FROM "t"'):
            pass
    with request_span(
        tracer, route=f"/{HOSTILE}", status=500,
        **{"http.request.header.x-evil": [HOSTILE], "business.event": HOSTILE, HOSTILE: HOSTILE},
    ) as hostile:  # fmt: skip
        note("hostile", hostile)
        for _ in range(6):
            with query_span(tracer, f"SELECT '{HOSTILE}' FROM {HOSTILE}", **{**where, "code.file.path": HOSTILE}):
                pass
        try:
            raise ValueError(HOSTILE)
        except ValueError as error:
            hostile.record_exception(error)
        hostile.add_event(HOSTILE, {HOSTILE: HOSTILE})
        hostile.set_status(Status(StatusCode.ERROR, HOSTILE))
    assert console.force_flush()
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a server, and the ids of the traces in its store."""
    folder = tmp_path_factory.mktemp("site")
    found = fill(folder / "console")
    environment = {
        **services.server_env(), "DJANGO_SETTINGS_MODULE": "tests.hostile_shop", "DJANGO_DEBUG": "0",
        "DATABASE_URL": f"sqlite:///{folder / 'app.sqlite3'}", "CONSOLE_PATH": str(folder / "console"),
        "DJANGO_SUPERUSER_PASSWORD": "x",
    }  # fmt: skip
    for command in (["migrate", "-v", "0"], ["shop_admin", "--username", "admin"]):
        services.run_django(environment, *command)
    port = services.free_port()
    command = [
        sys.executable, "-m", "gunicorn", "example_project.wsgi:application", "--bind", f"127.0.0.1:{port}",
    ]  # fmt: skip
    with services.running(command, environment, folder / "log") as process:
        services.wait_until(lambda: services.is_listening(port) or process.poll() is not None, 30, "the shop")
        yield f"http://127.0.0.1:{port}", found


@pytest.fixture(scope="module")
def signed_in(chromium: Any, site: tuple[str, dict[str, str]]) -> Any:  # noqa: F811
    context = chromium.new_context(base_url=site[0])
    page = context.new_page()
    page.goto("/admin/login/?next=/admin/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill("x")
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/admin/")
    cookies = context.cookies()
    context.close()
    return cookies


@pytest.fixture
def open_trace(lender: Lender, site: tuple[str, dict[str, str]], signed_in: Any) -> Iterator[Any]:  # noqa: F811
    """Opens a trace; fails at the end when anything was run, or the browser complained."""
    complaints: list[str] = []
    on = {
        "pageerror": lambda error: complaints.append(str(error)),
        "console": lambda message: complaints.append(message.text) if message.type == "error" else None,
        "dialog": lambda dialog: (complaints.append("a script ran"), dialog.dismiss()),
    }
    with contextlib.ExitStack() as pages:

        def open_it(name: str, scheme: str = "light", width: int = 1600, path: str = "", **options: Any) -> Any:
            page = pages.enter_context(lender.lend(site[0], scheme, width, cookies=signed_in, on=on, **options))
            answer = page.goto(path or f"{TRACES}{site[1][name]}/")
            assert "default-src 'self'" in answer.headers["content-security-policy"]
            return page

        yield open_it
    assert complaints == []


@pytest.mark.long
def test_queries_in_a_loop_are_one_row_with_the_line_that_caused_them(open_trace: Any, site: Any) -> None:
    page = open_trace("loop")
    notice = page.locator(".otel-notice-warn").inner_text()
    assert "Probably N+1: the same query ran 12 times" in notice
    assert "srv/shop/views.py:42 in listing" in notice
    group = page.locator(".otel-group")
    assert "12 × SELECT y" in group.locator("summary").inner_text()
    assert group.locator(".otel-item").first.is_hidden()
    # By the keyboard alone: to the group, opened, to its first query, opened.
    group.locator("summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    sql = page.locator(".otel-sql")
    sql.wait_for()
    lines = sql.inner_text().splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["SELECT", "FROM", "WHERE", "ORDER"]
    assert page.locator(".otel-sql b").first.inner_text() == "SELECT"
    # Self time: what no query covered.
    assert re.search(r"self \d", page.locator(".otel-item").first.inner_text())
    link = page.get_by_role("link", name="Open in Jaeger")
    assert link.get_attribute("href") == f"http://127.0.0.1:16686/trace/{site[1]['loop']}"


def test_a_link_leads_to_the_other_trace(open_trace: Any, site: Any) -> None:
    page = open_trace("linked")
    page.locator(".otel-span").first.click()
    page.locator(".otel-events a").click()
    page.wait_for_url(f"**{TRACES}{site[1]['first']}/**")
    assert page.locator(".otel-details").count() == 1


def test_a_mark_for_right_to_left_turns_nothing_round(open_trace: Any) -> None:
    """The reason of a failure stands to the right of the name of the span that failed, and reads from the left."""
    page = open_trace("hostile")
    boxes = page.evaluate("""() => {
        const notice = document.querySelector('.otel-notice-bad');
        const node = notice.querySelector('code bdi').firstChild;
        return ['ValueError', ': <'].map((word) => {
            const range = document.createRange();
            const at = node.data.indexOf(word);
            range.setStart(node, at);
            range.setEnd(node, at + word.length);
            const {left, top} = range.getBoundingClientRect();
            return [top, left];
        });
    }""")
    assert boxes[0] < boxes[1]


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: f"{look[0]}-{look[1]}")
def test_nothing_hostile_runs_or_breaks_the_page(open_trace: Any, look: tuple[str, int]) -> None:
    for name in ("hostile", "long", "loop"):
        page = open_trace(name, *look)
        for row in page.locator(".otel-span:visible").all()[:3]:
            row.click()
        page.locator(".otel-details").first.wait_for()
        for group in page.locator(".otel-group summary").all():
            group.click()
        assert page.locator("#otel-waterfall img, #otel-waterfall script, .otel-logs img").count() == 0
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur()")
        assert_looks_right(page, f"console-{name}", look)
    for path in (TRACES, "/admin/django_otel/dashboard/"):
        page = open_trace("", *look, path=path)
        assert_looks_right(page, f"console-odd-{path.split('/')[-2]}", look)
        assert page.locator(".otel img").count() == 0
