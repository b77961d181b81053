"""Django's tasks: the immediate and dummy backends here, the database backend with a worker of its own."""

from __future__ import annotations

import importlib
import re
import signal
import subprocess
import sys
from pathlib import Path

import django
import pytest
from asgiref.sync import sync_to_async
from opentelemetry import context, trace
from opentelemetry.trace import SpanKind, StatusCode

import django_otel
from django_otel.instrumentation.tasks import django_hooks
from tests import services

PACKAGE = "django.tasks" if django.VERSION >= (6, 0) else "django_tasks"
pytest.importorskip(PACKAGE)
LABELS = {"django.task.backend": "django", "django.task.queue": "default"}


@pytest.fixture
def backend(settings):
    def choose(name: str) -> None:
        settings.TASKS = {"default": {"BACKEND": f"{PACKAGE}.backends.{name.lower()}.{name}Backend"}}

    choose("Immediate")
    return choose


def count(otel_metrics, name: str, task: str, **more: str) -> float:
    found = otel_metrics.value(name, {**LABELS, "django.task.name": f"tests.task_shop.jobs.{task}", **more})
    return getattr(found, "count", found)


def test_an_immediate_task_stands_below_its_sender(backend, otel_spans, otel_metrics):
    from tests.task_shop import jobs

    with django_otel.span("order"):
        result = jobs.fail.enqueue(secret="hunter2")
        jobs.asynchronous.enqueue()
    send, process = (otel_spans.one(f"{kind} tests.task_shop.jobs.fail") for kind in ("send", "process"))
    assert (send.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert send.parent.span_id == otel_spans.one("order").context.span_id
    assert process.parent.span_id == send.context.span_id
    assert process.attributes["django.task.id"] == send.attributes["django.task.id"] == result.id
    assert (process.status.status_code, process.status.description) == (
        StatusCode.ERROR, "ValueError: password=[redacted]",
    )  # fmt: skip
    assert "hunter2" not in str([span.to_json() for span in otel_spans])
    assert otel_spans.one("process tests.task_shop.jobs.asynchronous").attributes["django.task.outcome"] == "succeeded"
    assert count(otel_metrics, "django.task.sent", "fail") == 1
    assert count(otel_metrics, "django.task.wait", "fail") == 1
    assert count(otel_metrics, "django.task.duration", "fail", **{"django.task.outcome": "failed"}) == 1
    assert not context.get_current()


@pytest.mark.heavy
@pytest.mark.django_db
def test_a_task_inside_a_task_stands_below_it(backend, otel_spans):
    from tests.task_shop import jobs

    jobs.outer.enqueue()
    outer, send = (
        otel_spans.one("process tests.task_shop.jobs.outer"),
        otel_spans.one("send tests.task_shop.jobs.invoice"),
    )
    assert send.parent.span_id == outer.context.span_id
    assert outer.attributes["django.task.outcome"] == "succeeded"
    assert otel_spans.one("process tests.task_shop.jobs.invoice").parent.span_id == send.context.span_id


async def test_signals_that_are_sent_asynchronously_are_one_run(backend, otel_spans, otel_metrics):
    """Each comes in a context of its own."""
    from tests.task_shop import jobs

    backend("Dummy")
    signals = importlib.import_module(f"{PACKAGE}.signals")
    with django_otel.span("order"):
        result = await jobs.asynchronous.aenqueue()
    for sent in (signals.task_started, signals.task_finished):
        await sent.asend(type(jobs.asynchronous.get_backend()), task_result=result)
    process = otel_spans.one("process tests.task_shop.jobs.asynchronous")
    assert process.parent.span_id == otel_spans.one("send tests.task_shop.jobs.asynchronous").context.span_id
    for name in ("wait", "duration"):
        assert count(otel_metrics, f"django.task.{name}", "asynchronous") == 1
    assert not context.get_current()
    assert result.id not in django_hooks._running


async def test_signals_in_copies_of_the_context_of_the_start(backend, otel_spans):
    """As Django 6.1 sends them: what a receiver has set is handed back, and the next one gets a copy of it."""
    from tests.task_shop import jobs

    backend("Dummy")
    signals = importlib.import_module(f"{PACKAGE}.signals")
    with django_otel.span("order"):
        before = context.get_current()
        result = await jobs.asynchronous.aenqueue()
        sender = type(jobs.asynchronous.get_backend())
        await sync_to_async(signals.task_started.send)(sender, task_result=result)
        assert trace.get_current_span().name == "process tests.task_shop.jobs.asynchronous"
        await sync_to_async(signals.task_finished.send)(sender, task_result=result)
        assert context.get_current() is before
    assert not context.get_current()


async def test_a_task_that_is_sent_asynchronously(backend, otel_spans):
    from tests.task_shop import jobs

    await jobs.asynchronous.aenqueue()
    send, process = (otel_spans.one(f"{kind} tests.task_shop.jobs.asynchronous") for kind in ("send", "process"))
    assert process.parent.span_id == send.context.span_id
    assert not context.get_current()


def test_the_dummy_backend_only_sends(backend, otel_spans, otel_metrics):
    from tests.task_shop import jobs

    backend("Dummy")
    jobs.fail.enqueue(secret="hunter2")
    assert [span.name for span in otel_spans] == ["send tests.task_shop.jobs.fail"]
    assert count(otel_metrics, "django.task.sent", "fail") == 1
    with pytest.raises(TypeError):
        jobs.fail.enqueue(object())
    assert count(otel_metrics, "django.task.sent", "fail") == 1


def test_a_thread_of_the_sender_continues_its_trace(settings, otel_spans, otel_metrics):
    from tests.task_shop import jobs

    settings.TASKS = {"default": {"BACKEND": "example_project.shop.threads.ThreadBackend"}}
    django_hooks._waiting.clear()
    with django_otel.span("order"):
        jobs.fail.enqueue(secret="hunter2")
        jobs.asynchronous.enqueue()
    services.wait_until(lambda: sum(span.name.startswith("process") for span in otel_spans) == 2, 60, "both runs")
    for task in ("fail", "asynchronous"):
        send, process = (otel_spans.one(f"{kind} tests.task_shop.jobs.{task}") for kind in ("send", "process"))
        assert process.parent.span_id == send.context.span_id
        assert process.context.trace_id == otel_spans.one("order").context.trace_id
        assert count(otel_metrics, "django.task.wait", task) == 1
    assert not django_hooks._waiting


def test_what_is_kept_for_tasks_that_run_elsewhere_is_bounded(backend, monkeypatch):
    from tests.task_shop import jobs

    monkeypatch.setattr(django_hooks, "_MOST_WAITING", 3)
    backend("Dummy")
    for _ in range(5):
        jobs.asynchronous.enqueue()
    assert len(django_hooks._waiting) <= 3
    django_hooks._waiting.clear()


def test_without_tasks_nothing_is_measured(backend, otel_spans, settings):
    from tests.task_shop import jobs

    settings.OTEL = {"TASKS": False}
    jobs.asynchronous.enqueue()
    assert not len(otel_spans)


class DatabaseShop:
    """A shop whose tasks lie in its database, and the settings that web server and workers share."""

    def __init__(self, folder: Path, receiver) -> None:
        self.otel = {
            "SERVICE_NAME": "shop", "SAMPLING": {"LIVE": False}, "METRICS_VIEW": {"ALLOW": "all"},
            "TRACES": {"EXPORTERS": ["otlp"], "ENDPOINT": f"{receiver.url}/v1/traces", "BATCH": {"DELAY_S": 0.2}},
            "METRICS": {"SHARED_DIR": str(folder)}, "BUSINESS": {"business_app.Order": {"created": "order.placed"}},
        }  # fmt: skip
        self.variables = {
            "TEST_SQLITE": str(folder / "db.sqlite3"),
            "DJANGO_SETTINGS_MODULE": "tests.task_shop.db_settings",
        }
        self.environment = services.server_env(self.otel, **self.variables)
        self.manage("migrate", "--run-syncdb")

    def web(self):
        return services.serve("gunicorn", self.otel, workers=2, **self.variables)

    def manage(self, *arguments: str) -> None:
        services.run_django(self.environment, *arguments)

    def start_worker(self, *arguments: str):
        command = [sys.executable, "-m", "django", "db_worker", "--no-startup-delay", "--no-reload", *arguments]
        return services.fork_program(command, self.environment, None) or subprocess.Popen(
            command, env=self.environment, cwd=services.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def run(self, code: str) -> str:
        prepared = f"import django; django.setup(); {code}"
        return services.run_python(prepared, self.environment).stdout

    def numbers(self, server) -> dict[tuple[str, str, str], float]:
        """The numbers of tasks on the web server's page, by metric, task and outcome."""
        found = {}
        for line in server.get("/metrics")[2].decode().splitlines():
            match = re.match(
                r"django_task_(sent|wait|duration|queue_length)(?:_total|_seconds_count)?\{(.*)\} (\S+)", line
            )
            if match:
                labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
                name = labels.get("django_task_name", "").rpartition(".")[2]
                found[match[1], name, labels.get("django_task_outcome", "")] = float(match[3])
        return found


@pytest.mark.long
def test_what_is_rolled_back_was_not_sent_and_what_is_due_later_has_not_waited(database_shop, receiver):
    shop = database_shop
    with shop.web() as server:
        sent = {"nap": 2, "asynchronous": 1, "outer": 1}
        assert server.get("/undo/")[0] == 201
        numbers = shop.numbers(server)
        assert {task: numbers["sent", task, ""] for task in sent} == sent

        def all_ran() -> bool:
            shop.manage("db_worker", "--batch", "--no-startup-delay", "--no-reload")
            numbers = shop.numbers(server)
            return numbers.get(("duration", "nap", "succeeded")) == sent["nap"]

        services.wait_until(all_ran, 120, "the task that is due later")
        numbers = shop.numbers(server)
    # A task that sends another one.
    assert numbers["sent", "invoice", ""] == numbers["duration", "invoice", "succeeded"] == 1
    for task, number in sent.items():
        assert numbers["duration", task, "succeeded"] == numbers["wait", task, ""] == number
    due = [
        services.attributes_of(span)["django.task.wait"] for _, span in receiver.spans()
        if span.name == "process tests.task_shop.jobs.nap"
    ]  # fmt: skip
    assert len(due) == sent["nap"]


@pytest.fixture
def database_shop(tmp_path, receiver):
    pytest.importorskip("django_tasks_db")
    return DatabaseShop(tmp_path, receiver)


@pytest.mark.long
@pytest.mark.parametrize(("total", "kills"), [(60, 1), (500, 5)], ids=["60", "500"])
def test_numbers_of_the_database_are_exact_after_workers_were_killed_under_load(database_shop, receiver, total, kills):
    """Two workers at a time. A task whose worker is killed stays RUNNING in its row: it has waited, and has no end."""
    shop = database_shop
    first = total // kills // 4
    with shop.web() as server:
        assert server.get(f"/load/{total}/{kills}/")[0] == 201
        assert shop.numbers(server)["queue_length", "", ""] == total
        killed = 0
        # A regular end before all is done.
        while (worker := shop.start_worker("--max-tasks", str(first))).wait(120) == -signal.SIGKILL:
            killed += 1
        assert worker.returncode == 0
        ready = int(shop.run(
            "from django_tasks_db.models import DBTaskResult;"
            "print(DBTaskResult.objects.filter(status='READY').count())"
        ))  # fmt: skip
        assert ready > 0
        services.wait_until(lambda: shop.numbers(server)["queue_length", "", ""] == ready, 60, "the tasks that wait")
        found = shop.numbers(server)
        assert sum(number for (metric, *_), number in found.items() if metric == "wait") == total - ready
        workers = [shop.start_worker("--batch"), shop.start_worker("--batch")]
        while workers:
            worker = workers.pop(0)
            if worker.wait(120) == -signal.SIGKILL:
                killed += 1
                workers.append(shop.start_worker("--batch"))
            else:
                assert worker.returncode == 0
        assert killed == kills
        failed = sum(1 for index in range(total) if index % 10 == 0 and index % (total // kills) != total // kills // 2)
        expected = {
            ("sent", "die", ""): kills, ("wait", "die", ""): kills,
            ("sent", "fail", ""): failed, ("wait", "fail", ""): failed, ("duration", "fail", "failed"): failed,
            ("sent", "nap", ""): total - kills - failed, ("wait", "nap", ""): total - kills - failed,
            ("duration", "nap", "succeeded"): total - kills - failed,
        }  # fmt: skip
        # Lengths are read every 15 seconds at most; who has not sent anything does not know of an empty queue.
        services.wait_until(lambda: not shop.numbers(server).get(("queue_length", "", "")), 60, "no task that waits")
        assert {key: number for key, number in shop.numbers(server).items() if key[0] != "queue_length"} == expected
        rows = shop.run(
            "from django_tasks_db.models import DBTaskResult; from django.db.models import Count;"
            "print(dict(DBTaskResult.objects.order_by().values_list('status').annotate(Count('pk'))))"
        )
        statuses = {"FAILED": failed, "RUNNING": kills, "SUCCESSFUL": total - kills - failed}
        assert eval(rows) == statuses
    # What a process has not sent when it is killed is gone with it; numbers are not.
    ends = [span for _, span in receiver.spans() if span.name.startswith("process ")]
    assert 0 < len(ends) <= total - kills


def test_an_order_and_its_task_in_the_database_are_one_trace(database_shop, receiver):
    shop = database_shop
    with shop.web() as server:
        assert server.get("/jobs/7/")[0] == 201
        length = 'django_task_queue_length{django_task_backend="django",django_task_queue="default"} '
        assert f"{length}2\n".encode() in server.get("/metrics")[2]
        # A row whose task is gone.
        code = (
            "from tests.task_shop import jobs; result = jobs.asynchronous.enqueue();"
            "from django_tasks_db.models import DBTaskResult;"
            "DBTaskResult.objects.filter(id=result.id).update(task_path='tests.task_shop.jobs.gone')"
        )
        shop.run(code)
        shop.manage("db_worker", "--batch", "--no-startup-delay", "--no-reload")
        page = server.get("/metrics")[2].decode()
        for outcome, task in (("succeeded", "invoice"), ("failed", "fail")):
            labels = (
                f'{{django_task_backend="django",django_task_name="tests.task_shop.jobs.{task}",'
                f'django_task_outcome="{outcome}",django_task_queue="default"}}'
            )
            assert f"django_task_duration_seconds_count{labels} 1\n" in page
        assert 'django_task_name="_other",django_task_outcome="rejected"' in page
    spans = [span for _, span in receiver.spans()]
    (request,) = [span for span in spans if span.name == "GET /jobs/<int:number>/"]
    for task in ("invoice", "fail"):
        (send,) = [span for span in spans if span.name == f"send tests.task_shop.jobs.{task}"]
        (process,) = [span for span in spans if span.name == f"process tests.task_shop.jobs.{task}"]
        assert (send.parent_span_id, process.parent_span_id) == (request.span_id, send.span_id)
        assert process.trace_id == send.trace_id == request.trace_id
    inside = [span.name for span in spans if span.parent_span_id == process.span_id or span.name == "order.placed"]
    assert "order.placed" in inside
    # The statements that write the row hold what is handed over, as parameters.
    assert "hunter2" not in str(spans) and "traceparent" not in str(spans)
