"""`django_otel.testing` with any test runner: in this process, and in one where pytest cannot be imported."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import Group, User
from django.db import connections
from django.db.backends.utils import CursorWrapper
from django.test import TestCase, TransactionTestCase

import django_otel
from django_otel.testing import (
    assert_max_queries_per_statement,
    capture_logs,
    capture_metrics,
    capture_spans,
    override_sampling,
)
from tests import services
from tests.relations import models
from tests.services import close_for_good

ROOT = Path(__file__).resolve().parents[2]


def test_captures_see_what_happens_inside_and_keep_it():
    with django_otel.span("before"):
        pass
    with capture_spans() as spans, capture_metrics() as metrics:
        with django_otel.span("inside"):
            django_otel.counter("captured.things").add(3)
        assert [span.name for span in spans] == ["inside"]
    with django_otel.span("after"):
        django_otel.counter("captured.things").add(4)
    assert [span.name for span in spans] == ["inside"] and spans.one("inside")
    assert metrics.value("captured.things") == 3


def test_captures_nest_and_can_be_cleared():
    with capture_spans() as outer:
        with django_otel.span("one"):
            pass
        with capture_spans() as inner, django_otel.span("two"):
            pass
        assert ([span.name for span in outer], [span.name for span in inner]) == (["one", "two"], ["two"])
        outer.clear()
        assert list(outer) == []


def test_one_statement_too_often_is_named(db):
    group = Group.objects.create(name="staff")
    User.objects.create_user("ann").groups.add(group)
    with assert_max_queries_per_statement(2):
        for pk in (1, 2):
            list(User.objects.filter(pk=pk))
        list(Group.objects.all())
    with pytest.raises(AssertionError) as raised, assert_max_queries_per_statement(2):
        for pk in (1, 2, 3):
            list(User.objects.filter(username=f"secret {pk}"))
    text = str(raised.value)
    assert "at most 2 times" in text and "3 times on 'default': SELECT" in text and "secret" not in text


def test_literals_do_not_hide_a_repetition_and_savepoints_are_none(db):
    from django.db import connection, transaction

    with assert_max_queries_per_statement(1):
        for _ in range(3):
            with transaction.atomic():
                pass
    with pytest.raises(AssertionError), assert_max_queries_per_statement(1), connection.cursor() as cursor:
        for number in (1, 2):
            cursor.execute(f"SELECT {number}")


def test_an_error_inside_is_not_hidden(db):
    with pytest.raises(ZeroDivisionError), assert_max_queries_per_statement(0):
        list(User.objects.all())
        1 / 0
    with pytest.raises(ValueError, match="at least 0"), assert_max_queries_per_statement(-1):
        pass


@pytest.mark.parametrize("n", ["3", None, 2.5])
def test_a_limit_is_a_whole_number(n):
    with pytest.raises(ValueError, match="expected a whole number"):
        assert_max_queries_per_statement(n)


def test_what_runs_after_its_call_cannot_be_decorated():
    """A class would be a function afterwards, whose tests no runner finds; of a generator nothing would be counted."""

    class Case:
        def test(self):
            raise NotImplementedError

    def generate():
        yield

    async def generate_async():
        yield

    for each, kind in ((Case, "class"), (generate, "generator"), (generate_async, "generator")):
        with pytest.raises(TypeError, match=f"is a {kind}; .* inside"):
            assert_max_queries_per_statement(2)(each)


CASES = """
import logging, sys
sys.modules["pytest"] = None
import django_otel
from django.test import TestCase
from django_otel import runtime
from django_otel.testing import capture_logs, capture_metrics, capture_spans, override_sampling


class CaptureTests(TestCase):
    def setUp(self):
        self.spans = self.enterContext(capture_spans())
        self.metrics = self.enterContext(capture_metrics())
        self.logs = self.enterContext(capture_logs())

    def test_request(self):
        self.client.get("/hello/")
        self.assertEqual(self.spans.one("GET /hello/").attributes["http.response.status_code"], 200)
        self.assertEqual(self.metrics.value("http.server.request.duration").count, 1)
        logging.getLogger("shop").warning("placed")
        self.assertEqual(self.logs.bodies, ["placed"])

    def test_nothing_from_the_other_test(self):
        self.assertEqual((list(self.spans), self.metrics.value("http.server.request.duration").count), ([], 0))

    @override_sampling(0.0)
    def test_sampling(self):
        self.client.get("/hello/")
        self.assertEqual(list(self.spans), [])


@override_sampling(0.0)
class NothingIsRecordedTests(TestCase):
    @classmethod
    def setUpTestData(cls):
        cls.ratio = runtime.current().sampler.live.ratio

    def test_the_ratio_holds_in_the_class(self):
        with capture_spans() as spans:
            self.client.get("/hello/")
        self.assertEqual((list(spans), self.ratio), ([], 0.0))

    def test_in_each_of_its_tests(self):
        with capture_spans() as spans, override_sampling(1.0):
            self.client.get("/hello/")
        self.assertEqual(len(spans), 1)
        with capture_spans() as spans:
            self.client.get("/hello/")
        self.assertEqual(list(spans), [])


@override_sampling(1.0)
class InheritedTests(NothingIsRecordedTests):
    test_the_ratio_holds_in_the_class = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.inner = runtime.current().sampler.live.ratio

    def test_in_each_of_its_tests(self):
        self.assertEqual(self.inner, 0.0)


class AfterTests(TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.live = runtime.current().sampler.live

    def test_the_ratio_of_a_class_ends_with_it(self):
        self.assertNotEqual(getattr(self.live, "source", ""), "test")

    def test_the_settings_decide_again(self):
        with capture_spans():
            self.assertTrue(runtime.is_testing())
        self.assertFalse(runtime.is_testing())

    @capture_spans()
    def test_as_a_decorator(self):
        pass
"""


@pytest.mark.parametrize("plain", [False, True])
def test_in_a_test_case_without_pytest(tmp_path, plain):
    (tmp_path / "test_captures.py").write_text(textwrap.dedent(CASES))
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "django", "test", "test_captures", *(["--shuffle"] if plain else [])]
    done = services.run_program(command, env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Ran 9 tests" in done.stderr


def test_without_the_app_a_capture_says_what_is_missing(tmp_path):
    code = "from django_otel.testing import capture_spans\nwith capture_spans(): pass"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "INSTALLED_APPS" in done.stderr and "RuntimeError" in done.stderr


def test_the_import_loads_neither_pytest_nor_django():
    code = (
        "import sys, django_otel.testing as tools\n"
        "assert not {'pytest', 'django.conf'} & set(sys.modules)\n"
        "print(tools.__all__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "capture_spans" in done.stdout


def test_override_sampling_in_this_process():
    with capture_spans() as spans, override_sampling(0.0), django_otel.span("dropped"):
        pass
    assert list(spans) == []


def test_logs_are_captured():
    import logging

    with capture_logs() as logs:
        logging.getLogger("shop").warning("order placed")
    assert logs.one("order placed")


def test_the_failure_names_the_line_and_the_cure(db):
    """In the words of the event on the request's span."""
    for number in range(3):
        models.Book.objects.create(title="x", author=models.Author.objects.create(name=str(number)))
    with pytest.raises(AssertionError) as raised, assert_max_queries_per_statement(2):
        [book.author.name for book in models.Book.objects.all()]
    text = str(raised.value)
    assert f"3 from {__file__}:" in text
    assert 'relations.Book select_related("author")' in text
    with pytest.raises(AssertionError) as raised, assert_max_queries_per_statement(2):
        for book in models.Book.objects.all():
            models.Author.objects.get(pk=book.author_id)
    assert "3 from" in str(raised.value)
    assert "related" not in str(raised.value).partition("3 from")[2]
    with pytest.raises(AssertionError) as raised, assert_max_queries_per_statement(2):
        [list(models.Book.objects.get(pk=pk).tags.all()) for pk in models.Book.objects.values_list("pk", flat=True)]
    assert "prefetch_related" not in str(raised.value)
    models.Magazine.objects.create(title="x", owner=models.Author.objects.first())
    models.Book.objects.update(owner=models.Author.objects.first())
    found = [*models.Book.objects.all(), *models.Magazine.objects.all()]
    with pytest.raises(AssertionError, match="relations.Book: select_related.*; relations.Magazine: select_related"):
        with assert_max_queries_per_statement(1):
            [each.owner.name for each in found]


async def ask(times):
    for _ in range(times):
        await models.Country.objects.filter(name="x").afirst()


def run_by_asgiref(coroutine):
    async def wait():
        return await coroutine

    return async_to_sync(wait)()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("run", [asyncio.run, run_by_asgiref])
def test_asynchronous_queries_are_counted_around_and_inside(run):
    """They run in another thread, on a connection of its own."""

    async def limited(times):
        with assert_max_queries_per_statement(2):
            await asyncio.gather(ask(times - 1), ask(1))

    run(limited(2))
    with pytest.raises(AssertionError, match="3 times on 'default'"):
        run(limited(3))
    with pytest.raises(AssertionError) as raised, assert_max_queries_per_statement(2):
        run(ask(3))
    assert f"3 from {__file__}:" in str(raised.value)
    assert "in ask" in str(raised.value)


def test_it_decorates_functions_of_both_kinds(db):
    @assert_max_queries_per_statement(1)
    def count(times):
        for _ in range(times):
            Group.objects.count()
        return times

    @assert_max_queries_per_statement(1)
    async def count_async(times):
        """Its words."""
        for _ in range(times):
            await Group.objects.acount()
        return times

    for function in (count, async_to_sync(count_async)):
        # Each call begins again.
        assert (function(1), function(1)) == (1, 1)
        with pytest.raises(AssertionError, match="2 times"):
            function(2)
    assert asyncio.iscoroutinefunction(count_async)
    assert count_async.__doc__ == "Its words."


def test_limits_nest_and_leave_djangos_cursors_alone(db):
    plain = CursorWrapper.execute, CursorWrapper.executemany
    with assert_max_queries_per_statement(2):
        Group.objects.count()
        with assert_max_queries_per_statement(1):
            Group.objects.count()
        assert CursorWrapper.execute is not plain[0]
    with pytest.raises(AssertionError, match="at most 1"), assert_max_queries_per_statement(1):
        Group.objects.count()
        with pytest.raises(AssertionError, match="at most 0"), assert_max_queries_per_statement(0):
            Group.objects.count()
    assert (CursorWrapper.execute, CursorWrapper.executemany) == plain


@pytest.mark.django_db(databases=["default", "other"])
def test_threads_count_in_a_copy_of_the_context():
    """Those of others never do: a server's beside the test."""

    def ask_in_a_thread(wrap):
        def work():
            connections["other"].cursor().execute("SELECT 1")
            close_for_good(connections["other"])

        thread = threading.Thread(target=wrap(work))
        thread.start()
        thread.join()

    with assert_max_queries_per_statement(0):
        ask_in_a_thread(lambda work: work)
    with pytest.raises(AssertionError, match="1 times on 'other'"), assert_max_queries_per_statement(0):
        ask_in_a_thread(lambda work: functools.partial(contextvars.copy_context().run, work))


class QueriesOfATestCase(TestCase):
    """Without pytest's help."""

    async def test_asynchronous(self):
        with self.assertRaisesRegex(self.failureException, "at most 1 times"), assert_max_queries_per_statement(1):
            await ask(2)
        self.enterContext(assert_max_queries_per_statement(1))
        await ask(1)

    @assert_max_queries_per_statement(1)
    async def test_decorated(self):
        await ask(1)

    def test_context_manager_and_failure(self):
        with self.assertRaisesRegex(self.failureException, "at most 1 times"), assert_max_queries_per_statement(1):
            for _ in range(2):
                list(Group.objects.all())
        self.enterContext(assert_max_queries_per_statement(1))
        list(Group.objects.all())


class QueriesOfATransactionTestCase(TransactionTestCase):
    async def test_asynchronous(self):
        with self.assertRaisesRegex(self.failureException, "at most 1 times"), assert_max_queries_per_statement(1):
            await ask(2)
