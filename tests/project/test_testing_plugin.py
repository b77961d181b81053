"""`django_otel.testing` in projects of its users: each a small project, run by pytest in a process of its own."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

import pytest

from django_otel.testing import HistogramDelta, SpanTree, override_sampling
from tests import services, sizes

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]
#: What takes long to import beforehand: no plugin, whose assertions pytest rewrites when it imports it.
PRELOADED = ("pytest", "django.test.client", "django.test.testcases")

SETTINGS = """
SECRET_KEY = "x"
ALLOWED_HOSTS = ["testserver"]
INSTALLED_APPS = ["django_otel"]
MIDDLEWARE = ["django_otel.middleware.OTelMiddleware"]
ROOT_URLCONF = "shop_urls"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
OTEL = {
    "SERVICE_NAME": "shop",
    # Nothing listens there: an export would be counted as failed.
    "TRACES": {"EXPORTERS": ["otlp"], "ENDPOINT": "http://127.0.0.1:9", "TIMEOUT_S": 0.2, "BATCH": {"DELAY_S": 0.05}},
    "METRICS": {"EXPORTERS": ["otlp"], "INTERVAL_S": 0.1},
    "LOGS": {"EXPORTERS": ["otlp"], "LEVEL": "INFO"},
}
"""
URLS = """
import asyncio, logging
from django.http import HttpResponse
from django.urls import path
from django_otel import counter, event, histogram, span

def order(request, pk):
    with span("process_order", pk=pk):
        with span("validate_inventory"):
            pass
        with span("charge_payment"):
            event("payment_captured")
    counter("orders.total").add(1, {"order.kind": "web"})
    histogram("order.value", unit="EUR").record(12.5)
    logging.getLogger("shop").warning("order %s placed", pk)
    return HttpResponse("ok")

async def slow(request):
    async with span("wait"):
        await asyncio.sleep(0)
    return HttpResponse("ok")

urlpatterns = [path("orders/<int:pk>/", order), path("slow/", slow)]
"""
INI = """
[pytest]
DJANGO_SETTINGS_MODULE = shop_settings
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""


@pytest.fixture
def project(pytester, monkeypatch):
    """A Django project with our app, as `startproject` and the README would leave it."""
    pytester.makeini(INI)
    pytester.makepyfile(shop_settings=SETTINGS, shop_urls=URLS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(pytester.path), str(ROOT)]))
    for name in ("DJANGO_SETTINGS_MODULE", "PYTEST_ADDOPTS", "TEST_OTEL"):
        monkeypatch.delenv(name, raising=False)
    return pytester


def run(project, *arguments: str):
    # As an installed plugin where the package is installed, by its name where it is only on the path.
    is_installed = bool(importlib.metadata.entry_points(group="pytest11", name="django_otel.testing"))
    loading = () if is_installed else ("-p", "django_otel.testing")
    return run_pytest(project, *loading, *arguments)


def run_pytest(project, *arguments: str) -> pytest.RunResult:
    """Run pytest over the project in a process of its own."""
    code = "import sys, pytest; sys.exit(pytest.main())"
    # Both take longer to import than most of these projects to run.
    order = () if "randomly" in arguments else ("-p", "no:randomly")
    command = ("pytest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *order, *arguments)
    done = services.run_python(code, dict(os.environ), argv=command, cwd=project.path, check=False, modules=PRELOADED)
    # Shown where the test fails.
    print(done.stdout, done.stderr, file=sys.stderr)
    return pytest.RunResult(done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), 0)


def test_the_fixtures_show_what_a_request_did(project):
    project.makepyfile(
        """
        import pytest

        def test_spans(client, otel_spans):
            client.get("/orders/7/")
            assert otel_spans.tree() == [
                ("GET /orders/<int:pk>/", [("process_order", [("validate_inventory", []), ("charge_payment", [])])])
            ]
            assert str(otel_spans.tree()).splitlines()[1:] == [
                "    process_order", "        validate_inventory", "        charge_payment"
            ]
            assert otel_spans.one("process_order").attributes == {"pk": 7}
            assert otel_spans.named("nothing") == []
            assert [span.name for span in otel_spans][-1] == otel_spans[-1].name == "GET /orders/<int:pk>/"
            assert len(otel_spans) == len(otel_spans[:]) == 4
            otel_spans.clear()
            assert not list(otel_spans)

        def test_one_says_what_there_was(client, otel_spans):
            with pytest.raises(AssertionError, match="No span was recorded"):
                otel_spans.one("x")
            client.get("/orders/7/")
            with pytest.raises(AssertionError) as caught:
                otel_spans.one("proces_order")
            assert "found 0" in str(caught.value) and "    process_order" in str(caught.value)
            client.get("/orders/7/")
            with pytest.raises(AssertionError, match="found 2"):
                otel_spans.one("process_order")

        @pytest.mark.parametrize("n", [1, 2])
        def test_metrics(client, otel_metrics, n):
            for _ in range(n):
                client.get("/orders/7/")
            assert otel_metrics.value("orders.total") == n
            assert otel_metrics.value("orders.total", {"order.kind": "web"}) == n
            assert otel_metrics.value("orders.total", order__kind="web") == n
            assert otel_metrics.value("orders.total", order__kind="shop") == 0
            duration = otel_metrics.value("http.server.request.duration", {"http.route": "/orders/<int:pk>/"})
            assert duration.count == n and 0 < duration.sum < 10 and sum(duration.buckets) == n
            assert otel_metrics.value("http.server.request.duration", http__response__status_code=200).count == n
            assert otel_metrics.value("http.server.request.duration", http__response__status_code=404).count == 0
            assert otel_metrics.value("order.value").sum == 12.5 * n
            assert otel_metrics.value("http.server.active_requests") == 0
            assert otel_metrics.series("orders.total") == [{"order.kind": "web"}]
            otel_metrics.clear()
            assert otel_metrics.value("orders.total") == 0

        def test_logs(client, otel_logs, otel_spans):
            client.get("/orders/7/")
            record = otel_logs.one("order 7")
            assert otel_logs.bodies == ["order 7 placed"]
            assert record.log_record.trace_id == otel_spans[0].context.trace_id
            with pytest.raises(AssertionError, match="order 7 placed"):
                otel_logs.one("order 8")
            otel_logs.clear()
            assert len(otel_logs) == 0

        async def test_async(async_client, otel_spans, otel_metrics):
            await async_client.get("/slow/")
            assert otel_spans.tree() == [("GET /slow/", [("wait", [])])]
            assert otel_metrics.value("http.server.request.duration").count == 1
        """
    )
    run(project).assert_outcomes(passed=6)


def test_nothing_leaks_from_test_to_test_in_any_order_or_process(project):
    project.makepyfile(
        """
        import pytest
        from django_otel import span

        @pytest.fixture
        def placed(client):
            client.get("/orders/1/")

        @pytest.mark.parametrize("n", range(8))
        def test_own(client, n, otel_spans, otel_metrics, otel_logs):
            for _ in range(n):
                client.get("/orders/1/")
            assert len(otel_spans.named("process_order")) == n
            assert otel_metrics.value("orders.total") == n
            assert len(otel_logs) == n

        @pytest.mark.parametrize("n", range(4))
        def test_without_fixtures(client, n):
            client.get("/orders/1/")

        def test_what_fixtures_did_belongs_to_the_test(otel_spans, otel_metrics, placed):
            assert otel_spans.one("process_order")
            assert otel_metrics.value("orders.total") == 1

        def test_in_whatever_order_they_are_asked_for(placed, otel_spans, otel_metrics):
            assert otel_spans.one("process_order")
            assert otel_metrics.value("orders.total") == 1
        """
    )
    run(project, "-p", "randomly", "-p", "no:xdist").assert_outcomes(passed=14)
    run(project, "-n", "2").assert_outcomes(passed=14)


def test_a_seed_set_anew_does_not_mix_up_the_tree(project):
    project.makepyfile(
        """
        import random
        from django_otel import span

        def test_tree(otel_spans):
            for name in ("first", "second"):
                random.seed(1)
                with span(name), span("inner " + name):
                    pass
            assert otel_spans.tree() == [("first", [("inner first", [])]), ("second", [("inner second", [])])]
        """
    )
    run(project).assert_outcomes(passed=1)


def test_nothing_is_exported_and_no_export_thread_runs(project):
    project.makepyfile(
        """
        import logging, threading, time
        from django.test import override_settings
        from django_otel import counter, runtime, span

        def test_work(client):
            client.get("/orders/1/")
            time.sleep(0.4)
            assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
            assert runtime.store.catalogued("django_otel.export.failures").all_series() == []

        def test_not_after_a_change_of_settings_either(client, otel_spans):
            changed = {"SERVICE_NAME": "other", "TRACES": {"EXPORTERS": ["otlp"], "ENDPOINT": "http://127.0.0.1:9"}}
            with override_settings(OTEL=changed):
                client.get("/orders/1/")
                assert otel_spans.one("process_order").resource.attributes["service.name"] == "other"
            client.get("/orders/1/")
            services = [span.resource.attributes["service.name"] for span in otel_spans.named("process_order")]
            assert services == ["other", "shop"]
            assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
        """
    )
    result = run(project, "-p", "no:xdist")
    result.assert_outcomes(passed=2)


def test_override_sampling_as_a_block_and_as_a_decorator(project):
    project.makepyfile(
        """
        import pytest
        from django_otel import span
        from django_otel.testing import override_sampling

        def test_block(client, otel_spans, otel_metrics):
            with override_sampling(0.0):
                client.get("/orders/1/")
                with override_sampling(1.0):
                    with span("seen"):
                        pass
                with span("unseen"):
                    pass
            with span("after"):
                pass
            assert [s.name for s in otel_spans] == ["seen", "after"]
            assert otel_metrics.value("orders.total") == 1
            assert otel_metrics.value("django_otel.sampling.ratio") == 1.0

        @override_sampling(0.0)
        def test_decorator(client, otel_spans):
            client.get("/orders/1/")
            assert len(otel_spans) == 0

        @override_sampling(0.0)
        async def test_async_decorator(async_client, otel_spans, otel_metrics):
            await async_client.get("/slow/")
            assert len(otel_spans) == 0
            assert otel_metrics.value("django_otel.sampling.ratio") == 0.0

        def test_undone(otel_spans):
            with span("s"):
                pass
            assert len(otel_spans) == 1

        def test_undone_after_an_error(otel_spans):
            with pytest.raises(KeyError), override_sampling(0.0):
                raise KeyError
            with span("s"):
                pass
            assert len(otel_spans) == 1
        """
    )
    run(project).assert_outcomes(passed=5)


def test_it_works_for_unittest_classes(project):
    project.makepyfile(
        """
        import pytest
        from django.test import SimpleTestCase

        class OrderTests(SimpleTestCase):
            @pytest.fixture(autouse=True)
            def telemetry(self, otel_spans, otel_metrics):
                self.spans, self.metrics = otel_spans, otel_metrics

            def test_order(self):
                self.client.get("/orders/1/")
                assert self.spans.one("process_order")
                assert self.metrics.value("orders.total") == 1

            def test_again(self):
                assert len(self.spans) == 0
        """
    )
    run(project).assert_outcomes(passed=2)


def test_metrics_of_the_sdk_and_gauges_are_seen(project):
    project.makepyfile(
        """
        import pytest
        from opentelemetry import metrics
        from django_otel import gauge, histogram, observable_gauge

        meter = metrics.get_meter("library")
        calls = meter.create_counter("library.calls")
        sizes = meter.create_histogram("library.sizes")

        @pytest.mark.parametrize("n", [1, 2])
        def test_sdk(otel_metrics, n):
            for _ in range(n):
                calls.add(2, {"kind": "x"})
                sizes.record(3)
            assert otel_metrics.value("library.calls", kind="x") == 2 * n
            assert otel_metrics.value("library.sizes").count == n

        def test_gauges(otel_metrics):
            length = [1]
            observable_gauge("queue.length", lambda: length[0])
            assert otel_metrics.value("queue.length") == 1
            length[0] = 5
            assert otel_metrics.value("queue.length") == 5
            gauge("room").set(20, {"room": "a"})
            gauge("room").set(25, {"room": "b"})
            assert otel_metrics.value("room", room="b") == 25
            with pytest.raises(AssertionError, match="2 series of the gauge 'room' fit"):
                otel_metrics.value("room")

        def test_nothing_counted(otel_metrics):
            assert otel_metrics.value("never.heard.of") == 0
            assert otel_metrics.value("http.server.request.duration", {"http.route": "/none/"}).count == 0
            gauge("unset")
            histogram("empty")
            assert otel_metrics.value("unset") is None
            assert otel_metrics.value("empty").sum == 0
            assert "queue.length" in otel_metrics.names()
        """
    )
    run(project).assert_outcomes(passed=4)


@pytest.mark.parametrize("how", sizes.few(["p", "conftest"], 2))
def test_it_can_be_named_beside_its_entry_point(project, how):
    if how == "conftest":
        project.makeconftest("pytest_plugins = ['django_otel.testing']")
    project.makepyfile("def test_fixture(otel_spans): assert len(otel_spans) == 0")
    named = ("-p", "django_otel.testing") if how == "p" else ()
    run_pytest(project, *named).assert_outcomes(passed=1)


def test_without_django_it_is_inert_and_loads_nothing(project):
    project.makeini("[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n")
    project.makepyfile(
        """
        import sys

        def test_plain():
            assert not {"opentelemetry.trace", "django_otel.api", "django_otel.runtime"} & set(sys.modules)

        def test_fixture_says_what_is_missing(otel_spans):
            raise AssertionError("not reached")
        """
    )
    # A new process: others have imported Django.
    result = project.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:django", "-p", "django_otel.testing")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*need configured Django settings with 'django_otel' in INSTALLED_APPS*"])


def test_in_a_django_project_without_our_app_it_is_inert(project):
    project.makepyfile(shop_settings=SETTINGS.replace('INSTALLED_APPS = ["django_otel"]', "INSTALLED_APPS = []"))
    project.makepyfile(
        test_plain="""
        import sys

        def test_plain():
            assert "django_otel.runtime" not in sys.modules
        """
    )
    run(project).assert_outcomes(passed=1)


def test_faulty_settings_do_not_break_the_plugin(project):
    project.makepyfile(shop_settings=SETTINGS + '\nOTEL = {"SAMPLING": {"RATIO": 25}}\n')
    project.makepyfile(
        test_plain="""
        def test_plain(client, otel_spans, otel_metrics):
            assert client.get("/orders/1/").status_code == 200
            assert len(otel_spans) == 0
        """
    )
    run(project).assert_outcomes(passed=1)


def test_a_tree_compares_with_plain_lists_and_prints_as_an_outline():
    tree = SpanTree([("a", SpanTree([("b", SpanTree()), ("c", SpanTree())])), ("d", SpanTree())])
    assert tree == [("a", [("b", []), ("c", [])]), ("d", [])]
    assert tree != [("a", [("c", []), ("b", [])]), ("d", [])]
    assert str(tree) == "a\n    b\n    c\nd"


def test_a_histogram_of_nothing_is_zero():
    assert (HistogramDelta().count, HistogramDelta().sum) == (0, 0.0)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_override_sampling_refuses_a_ratio_that_is_none(ratio):
    with pytest.raises(ValueError, match=r"from 0\.0 to 1\.0"):
        override_sampling(ratio)
