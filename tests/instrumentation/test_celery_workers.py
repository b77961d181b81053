"""Celery with real workers over Valkey: one trace from the order to its invoice, and exact numbers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import services

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Shop:
    """A broker, a database, and the settings that web server and workers share."""

    def __init__(self, broker: str, folder: Path, receiver) -> None:
        self.folder = folder
        self.receiver = receiver
        self.otel = {
            "SERVICE_NAME": "shop",
            "TRACES": {"EXPORTERS": ["otlp"], "ENDPOINT": f"{receiver.url}/v1/traces", "BATCH": {"DELAY_S": 0.2}},
            "METRICS": {"SHARED_DIR": str(folder)},
            "METRICS_VIEW": {"ALLOW": "all"},
            "SAMPLING": {"LIVE": False},
            "BUSINESS": {"business_app.Order": {"created": "order.placed"}},
            "SKIP_COMMANDS": [],
        }
        self.variables = {
            "TEST_BROKER": broker, "TEST_SQLITE": str(folder / "db.sqlite3"),
            "DJANGO_SETTINGS_MODULE": "tests.task_shop.settings",
        }  # fmt: skip
        services.migrate_database(self.environment())

    def environment(self) -> dict[str, str]:
        return services.server_env(self.otel, **self.variables)

    def web(self):
        return services.serve("gunicorn", self.otel, workers=2, **self.variables)

    def worker(self, *arguments: str, log: str = "worker.log"):
        program = ["-c", "import gevent.monkey; gevent.monkey.patch_all(); from celery.__main__ import main; main()"]
        command = [
            sys.executable, *(program if "gevent" in arguments else ["-m", "celery"]),
            "-A", "tests.task_shop.celery_app", "worker", "--loglevel", "INFO",
            "--without-gossip", "--without-mingle", "--without-heartbeat", *arguments,
        ]  # fmt: skip
        return services.running(command, self.environment(), self.folder / log)

    def run(self, code: str) -> None:
        prepared = "import django; django.setup(); from tests.task_shop.celery_app import *; " + code
        subprocess.run(
            [sys.executable, "-c", prepared], env=self.environment(), cwd=services.ROOT, check=True, timeout=120
        )

    def numbers(self, server) -> dict[tuple[str, str, str], float]:
        """The numbers of tasks on the web server's page, by metric, task and outcome."""
        found = {}
        for line in server.get("/metrics")[2].decode().splitlines():
            match = re.match(r"django_task_(sent_total|wait_seconds_count|duration_seconds_count)\{(.*)\} (\S+)", line)
            if match:
                labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
                assert labels["django_task_queue"] == "shop" and labels["django_task_backend"] == "celery"
                key = (match[1].partition("_")[0], labels["django_task_name"], labels.get("django_task_outcome", ""))
                found[key] = float(match[3])
        return found

    def spans(self, trace_id: bytes | None = None):
        return [span for _, span in self.receiver.spans() if trace_id is None or span.trace_id == trace_id]


@pytest.fixture
def shop(tmp_path, receiver):
    with services.start_valkey() as broker:
        yield Shop(broker, tmp_path, receiver)


def stop(worker) -> None:
    worker.send_signal(signal.SIGTERM)
    worker.wait(60)


#: All but one take a minute together and are long.
POOLS = {
    "prefork": ("--concurrency", "2"),
    "one task per child": ("--concurrency", "2", "--max-tasks-per-child", "1"),
    "threads": ("--pool", "threads", "--concurrency", "4"),
    "solo": ("--pool", "solo"),
    "gevent": ("--pool", "gevent", "--concurrency", "10"),
}


@pytest.mark.parametrize(
    "pool",
    [
        "prefork",
        *(pytest.param(pool, marks=pytest.mark.long) for pool in POOLS if pool != "prefork"),
    ],
)
def test_an_order_and_its_task_are_one_trace_and_all_ends_are_counted(shop, pool):
    if pool == "gevent":
        pytest.importorskip("gevent")
    with shop.web() as server:
        assert server.get("/orders/7/")[0] == 201
        assert b'length{django_task_backend="celery",django_task_queue="shop"} 1\n' in server.get("/metrics")[2]
        check_work(shop, server, pool)


def check_work(shop, server, pool: str) -> None:
    has_processes = "--max-tasks-per-child" in POOLS[pool] or pool == "prefork"
    with shop.worker(*POOLS[pool]) as worker:
        shop.run(
            "fail.delay('hunter2'); again.delay(1); ignore.delay(); reject.delay(); app.send_task('orders.unknown');"
            "(send_invoice.si(1) | send_invoice.si(2)).apply_async();"
            "from celery import group;"
            "group(nap.si(0), nap.si(0)).apply_async();"
            "nap.apply_async((0,), countdown=2);"
            "nap.apply_async((0,), expires=-1)" + ("; too_long.delay(); soft.delay()" if has_processes else "")
        )
        expected = {
            ("sent", "orders.send_invoice", ""): 3, ("wait", "orders.send_invoice", ""): 3,
            ("duration", "orders.send_invoice", "succeeded"): 3,
            ("sent", "orders.fail", ""): 1, ("wait", "orders.fail", ""): 1, ("duration", "orders.fail", "failed"): 1,
            ("sent", "orders.again", ""): 2, ("wait", "orders.again", ""): 2,
            ("duration", "orders.again", "retried"): 1, ("duration", "orders.again", "succeeded"): 1,
            ("sent", "orders.ignore", ""): 1, ("wait", "orders.ignore", ""): 1,
            ("duration", "orders.ignore", "succeeded"): 1,
            ("sent", "orders.reject", ""): 1, ("wait", "orders.reject", ""): 1,
            ("duration", "orders.reject", "rejected"): 1,
            ("duration", "_other", "rejected"): 1,
            ("sent", "orders.nap", ""): 4, ("wait", "orders.nap", ""): 3, ("duration", "orders.nap", "succeeded"): 3,
            ("duration", "orders.nap", "rejected"): 1,
        }  # fmt: skip
        if has_processes:
            expected |= {
                ("sent", "orders.too_long", ""): 1, ("wait", "orders.too_long", ""): 1,
                ("duration", "orders.too_long", "failed"): 1,
                ("sent", "orders.soft", ""): 1, ("wait", "orders.soft", ""): 1,
                ("duration", "orders.soft", "failed"): 1,
            }  # fmt: skip
        # The sender of these is a process of its own, neither web server nor worker: what it sent is not shown.
        shown = {key: number for key, number in expected.items() if key[0] != "sent"}
        shown["sent", "orders.send_invoice", ""] = 2
        shown["sent", "orders.again", ""] = 1

        def numbers() -> dict:
            return shop.numbers(server)

        try:
            services.wait_until(lambda: numbers() == shown, 60, "the numbers")
        except AssertionError:
            print((shop.folder / "worker.log").read_text()[-3000:])
            found = numbers()
            assert {key: number for key, number in found.items() if shown.get(key) != number} == {}
            assert found == shown
        stop(worker)
        assert numbers() == shown
        check_traces(shop)
    text = repr(shop.spans())
    assert "hunter2" not in text and "result-" not in text
    if has_processes:
        assert "TimeLimitExceeded" in text


def check_traces(shop) -> None:
    spans = shop.spans()
    names = {span.span_id: span for span in spans}
    (request,) = [span for span in spans if span.name == "GET /orders/<int:number>/"]
    (send,) = [span for span in spans if span.name == "send orders.send_invoice" and span.trace_id == request.trace_id]
    (process,) = [
        span for span in spans if span.name == "process orders.send_invoice" and span.parent_span_id == send.span_id
    ]
    assert send.parent_span_id == request.span_id
    assert (send.kind, process.kind) == (4, 5)
    assert process.trace_id == request.trace_id
    attributes = services.attributes_of(process)
    assert attributes["django.task.backend"] == "celery" and attributes["django.task.queue"] == "shop"
    assert attributes["django.task.outcome"] == "succeeded" and attributes["django.task.wait"] >= 0
    inside = {span.name for span in spans if span.parent_span_id == process.span_id}
    assert "order.placed" in inside
    assert any("business_app_order" in span.name for span in shop.spans(request.trace_id)), inside
    # A chain is one trace, its second task below the first.
    seconds = [
        span for span in spans
        if span.name == "send orders.send_invoice" and names.get(span.parent_span_id, span).name.startswith("process")
    ]  # fmt: skip
    assert len(seconds) == 1
    (failed,) = [span for span in spans if span.name == "process orders.fail"]
    assert failed.status.code == 2 and failed.status.message == "ValueError: password=[redacted]"
    # A task due in two seconds has not waited for them.
    waits = [services.attributes_of(span)["django.task.wait"] for span in spans if span.name == "process orders.nap"
             and services.attributes_of(span)["django.task.outcome"] == "succeeded"]  # fmt: skip
    assert len(waits) == 3


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("task", ["nap", pytest.param("late", marks=pytest.mark.long)])
def test_numbers_are_exact_after_workers_were_killed_under_load(shop, task):
    """Five kills among 500 tasks: each task is counted once, and each run of one that went back to the queue."""
    total, kills = 500, 5
    with shop.web() as server, shop.worker("--concurrency", "4") as worker:
        shop.run(f"send_invoice.delay(1); [{task}.delay(0.01) for number in range({total})]")
        name = f"orders.{task}"

        def done(*outcomes: str) -> float:
            numbers = shop.numbers(server)
            return sum(numbers.get(("duration", name, outcome), 0) for outcome in outcomes)

        for kill in range(kills):
            services.wait_until(lambda least=total * kill // 10: done("succeeded") > least, 60, "work")
            victim = services.wait_until(lambda: children_of(worker.pid), 60, "a process of the pool")[-1]
            os.kill(victim, signal.SIGKILL)
        lost = "retried" if task == "late" else "failed"
        if task == "late":
            services.wait_until(lambda: done("succeeded") == total, 120, "all tasks")
        else:
            services.wait_until(lambda: done("succeeded", "failed") == total, 120, "all tasks")
        stop(worker)
        found = shop.numbers(server)
        # A process may have been killed between two tasks.
        times_lost = found.get(("duration", name, lost), 0)
        assert 0 <= times_lost <= kills
        ran = total + (times_lost if task == "late" else 0)
        assert found["wait", name, ""] == ran
        assert done("succeeded", "failed", "retried", "rejected") == ran
