"""Errors as issues: grouped by type and place, counted exactly over processes, with state and notices."""

from __future__ import annotations

import json
import os
import time

import pytest

from django_otel.redaction.scrub import Scrubber
from django_otel.tracestore import issues
from django_otel.tracestore.errors import MAX_PENDING, ErrorCollector
from django_otel.tracestore.file import transaction
from django_otel.tracestore.issue_reader import IssueFilter, find_issue, list_issues
from django_otel.tracestore.issues import StoredErrors, change_state, claim_notice, settle_notice
from django_otel.tracestore.reader import read
from django_otel.tracestore.writer import TraceStore


def catch(code, name="shop.views", file="/srv/shop/views.py"):
    """The exception that a piece of a project's code raises in `view()`."""
    namespace = {"__name__": name}
    exec(compile(code, file, "exec"), namespace)  # noqa: S102
    try:
        namespace["view"]()
    except Exception as error:
        return error
    raise AssertionError


VIEW = "def view():\n    raise ValueError('order 1 password=hunter2')\n"


@pytest.fixture
def store(tmp_path):
    return TraceStore(tmp_path / "store.sqlite3", max_traces=50, max_bytes=64 << 20)


def write(store, *caught, release="1.0", targets=(), started_s=0.0, quiet_s=3600.0, route="/x"):
    collector = ErrorCollector(lambda: None)
    for error in caught:
        collector.add(error, route, 7, 8)
    store.write(
        [StoredErrors("shop", release, started_s, collector.take(), Scrubber(), targets, quiet_s)],
        lambda *lost: pytest.fail(str(lost)),
    )


def rows(store, **wanted):
    with read(store) as reader:
        return list_issues(reader.connection, IssueFilter(**wanted)).rows


def detail(store, issue=1):
    with read(store) as reader:
        return find_issue(reader.connection, issue)


def change(store, state, issue=1):
    with store.connection() as connection, transaction(connection):
        assert change_state(connection, issue, state, "ada", time.time())


def test_equal_exceptions_are_one_issue_over_other_lines_and_messages(store):
    write(store, catch(VIEW), catch(VIEW))
    write(store, catch("\n\n\n# moved\n" + VIEW.replace("order 1", "order 2")), route="/y")
    (row,) = rows(store)
    assert (row.type, row.place, row.count, row.line) == ("ValueError", "shop.views.view", 3, 6)
    found = detail(store)
    assert dict(found.routes) == {"/x": 2, "/y": 1}
    assert sum(found.steps.values()) == 3
    assert [seen.trace_id for seen in found.traces] == [f"{7:032x}"] * 3
    assert "hunter2" not in json.dumps(found.stack) + row.message


@pytest.mark.parametrize(
    "code",
    [
        VIEW.replace("ValueError", "KeyError"),
        "def other():\n    raise ValueError('x')\ndef view():\n    other()\n",
        "class View:\n    def get(self):\n        raise ValueError('x')\ndef view():\n    View().get()\n",
    ],
)
def test_another_type_or_place_is_another_issue(store, code):
    write(store, catch(VIEW), catch(code))
    assert [row.count for row in rows(store)] == [1, 1]


def test_the_place_is_the_projects_own_innermost_frame(store):
    write(
        store, catch("import json\ndef view():\n    json.loads('{')\n"), catch("def view():\n    open('/nowhere/x')\n")
    )
    assert {(row.type, row.place) for row in rows(store)} == {
        ("json.decoder.JSONDecodeError", "shop.views.view"), ("FileNotFoundError", "shop.views.view")
    }  # fmt: skip


def test_the_chain_of_causes_is_kept(store):
    write(store, catch(
        "def view():\n    try:\n        {}['a']\n    except KeyError as e:\n        raise ValueError('b') from e\n"
    ))  # fmt: skip
    assert [raised["type"] for raised in detail(store).stack] == ["ValueError", "KeyError"]


def test_endless_recursion_keeps_its_beginning_and_end(store):
    write(store, catch("def view():\n    view()\n"))
    assert len(detail(store).stack[0]["frames"]) == 60


def test_an_exception_whose_text_raises_counts(store):
    write(store, catch(
        "class Bad(Exception):\n    def __str__(self):\n        raise RuntimeError\ndef view():\n    raise Bad()\n"
    ))  # fmt: skip
    assert [row.type for row in rows(store)] == ["shop.views.Bad"]


def test_counts_are_exact_over_threads_and_what_was_not_written():
    collector = ErrorCollector(lambda: None)
    error = catch(VIEW)
    for _ in range(5):
        collector.add(error, "/x")
    taken = collector.take()
    collector.add(error, "/x")
    collector.give_back(taken)
    (pending,) = collector.take()
    assert (pending.count, pending.routes, sum(pending.steps.values())) == (6, {"/x": 6}, 6)


def test_more_kinds_than_fit_share_one_and_none_is_lost():
    collector = ErrorCollector(lambda: None)
    for number in range(MAX_PENDING + 20):
        collector.add(catch(VIEW.replace("view()", "view(x=1)"), name=f"m{number}"), "/x")
    assert sum(pending.count for pending in collector.take()) == MAX_PENDING + 20


def test_a_forked_child_does_not_count_the_parents():
    collector = ErrorCollector(lambda: None)
    error = catch(VIEW)
    collector.add(error, "/x")
    receiver, sender = os.pipe()
    pid = os.fork()
    if not pid:
        collector.add(error, "/x")
        os.write(sender, str(sum(pending.count for pending in collector.take())).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(receiver, 10) == b"1"
    assert collector.take()[0].count == 1


@pytest.mark.parametrize(
    ("resolved_in", "later", "comes_back"),
    [
        ("1.0", "1.0", False), ("1.0", "1.0.1", True), ("1.9", "1.10", True), ("1.10", "1.9", False),
        ("abc", "def", True), ("v2", "v1", False), ("", "", False),
    ],
)  # fmt: skip
def test_a_resolved_issue_comes_back_under_a_newer_release_alone(store, resolved_in, later, comes_back):
    write(store, catch(VIEW), release=resolved_in)
    change(store, issues.RESOLVED)
    assert rows(store)[0].state == "resolved"
    write(store, catch(VIEW), release=later)
    (row,) = rows(store)
    assert (row.state, row.is_back, row.count) == (("open", True, 2) if comes_back else ("resolved", False, 2))


def test_without_releases_a_process_started_later_brings_it_back(store):
    write(store, catch(VIEW), release="")
    change(store, issues.RESOLVED)
    write(store, catch(VIEW), release="", started_s=time.time() + 1)
    assert rows(store)[0].is_back


def test_an_ignored_issue_is_counted_and_stays_ignored(store):
    write(store, catch(VIEW))
    change(store, issues.IGNORED)
    write(store, catch(VIEW), release="9.0", targets=("mail",))
    assert [(row.state, row.count) for row in rows(store)] == [("ignored", 2)]
    assert claim(store) is None


def claim(store, now_s=None):
    with store.connection() as connection, transaction(connection):
        return claim_notice(connection, "shop", time.time() + 1 if now_s is None else now_s)


def test_each_target_is_notified_once_and_again_when_it_comes_back_after_the_quiet_time(store):
    secret = "https://hooks.example/T0/secret"
    write(store, catch(VIEW), targets=("mail", secret))
    write(store, catch(VIEW), targets=("mail", secret))
    notices = [claim(store), claim(store), claim(store)]
    assert [notice and notice.target for notice in notices] == ["mail", issues.key_of(secret), None]
    assert b"secret" not in store.path.read_bytes()
    for notice in notices[:2]:
        with store.connection() as connection, transaction(connection):
            assert not settle_notice(connection, notice, time.time(), is_sent=True)
    change(store, issues.RESOLVED)
    write(store, catch(VIEW), release="2.0", targets=("mail",), quiet_s=100)
    assert claim(store) is None
    assert claim(store, time.time() + 101).reason == "back"


def test_a_notice_that_failed_is_tried_again_and_given_up_at_last(store):
    write(store, catch(VIEW), targets=("mail",))
    now_s = time.time()
    for attempt in range(issues.MAX_ATTEMPTS):
        now_s += 10_000
        notice = claim(store, now_s)
        assert claim(store, now_s) is None, "another process would send it, too"
        with store.connection() as connection, transaction(connection):
            assert settle_notice(connection, notice, now_s, is_sent=False) == (attempt < issues.MAX_ATTEMPTS - 1)
    assert claim(store, now_s + 10**6) is None


def test_a_notice_whose_sender_was_killed_is_taken_over(store):
    write(store, catch(VIEW), targets=("mail",))
    assert claim(store) is not None
    assert claim(store, time.time() + issues.CLAIM_S + 5) is not None


def test_the_number_of_issues_is_bounded(tmp_path):
    store = TraceStore(tmp_path / "small.sqlite3", max_traces=10, max_bytes=2 << 20)
    write(store, *(catch(VIEW, name=f"m{number}") for number in range(40)))
    with read(store) as reader:
        assert list_issues(reader.connection, IssueFilter()).stored == 12
        for table in ("issue_route", "issue_step", "issue_release", "issue_trace"):
            (left,) = reader.connection.execute(f"SELECT count(DISTINCT issue) FROM {table}").fetchone()
            assert left == 12


def test_issues_are_found_by_text_route_release_and_time(store):
    write(store, catch(VIEW), route="/a")
    write(store, catch(VIEW.replace("ValueError('order", "KeyError('basket")), route="/b", release="2.0")
    for wanted in ({"text": "BASKET"}, {"route": "/b"}, {"release": "2.0"}, {"text": "keyerror shop.views"}):
        assert [row.type for row in rows(store, **wanted)] == ["KeyError"], wanted
    assert rows(store, since_s=time.time() + 100) == []
    assert [row.type for row in rows(store, sort="type")] == ["KeyError", "ValueError"]
