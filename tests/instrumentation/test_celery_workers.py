"""Celery with real workers over Valkey: one trace from the order to its invoice, and exact numbers."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from celery import Celery, current_app

from django_otel.base.suppression import suppress_instrumentation
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
            "METRICS": {
                "SHARED_DIR": str(folder),
                "EXPORTERS": ["prometheus", "otlp"],
                "ENDPOINT": f"{receiver.url}/v1/metrics",
            },
            "LOGS": {"EXPORTERS": ["otlp"], "ENDPOINT": f"{receiver.url}/v1/logs"},
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
        services.run_python(prepared, self.environment())

    def run_command(self, code: str) -> None:
        """Run code in a management command."""
        code = f"from tests.task_shop.celery_app import *; {code}"
        services.run_django(self.environment(), "shell", "--command", code)

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
            "from celery import chord, group;"
            "group(nap.si(0), nap.si(0)).apply_async();"
            "chord([part.s(1, 'hunter2'), part.s(2, 'hunter2')])(whole.s());"
            "nap.apply_async((0,), countdown=2);"
            "nap.apply_async((0,), expires=-1)" + ("; too_long.delay(); soft.delay()" if has_processes else "")
        )
        shop.run_command("nap.delay(0)")
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
            ("sent", "orders.nap", ""): 5, ("wait", "orders.nap", ""): 4, ("duration", "orders.nap", "succeeded"): 4,
            ("duration", "orders.nap", "rejected"): 1,
            ("wait", "orders.part", ""): 2, ("duration", "orders.part", "succeeded"): 2,
            ("sent", "orders.whole", ""): 1, ("wait", "orders.whole", ""): 1,
            ("duration", "orders.whole", "succeeded"): 1,
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
        # But a management command's is.
        shown["sent", "orders.nap", ""] = 1
        # A retry and the end of a chord are sent by the worker.
        shown["sent", "orders.again", ""] = shown["sent", "orders.whole", ""] = 1

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
    # Everything that was exported: spans, metrics and log records.
    assert {path.rpartition("/")[2] for path, _, _ in shop.receiver.requests} == {"traces", "metrics", "logs"}
    text = repr([message for _, _, message in shop.receiver.requests])
    assert "hunter2" not in text and "result-" not in text
    assert "orders.send_invoice" in text
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
    # The end of a chord stands in the trace of its parts, below the one that ended last.
    (whole,) = [span for span in spans if span.name == "send orders.whole"]
    assert names[whole.parent_span_id].name == "process orders.part"
    assert len({span.trace_id for span in spans if span.name in ("process orders.part", "process orders.whole")}) <= 2
    # A task due in two seconds has not waited for them.
    waits = [services.attributes_of(span)["django.task.wait"] for span in spans if span.name == "process orders.nap"
             and services.attributes_of(span)["django.task.outcome"] == "succeeded"]  # fmt: skip
    assert len(waits) == 4


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.long
@pytest.mark.parametrize("task", ["nap", "late"])
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


def spans_of(shop, name: str) -> int:
    return sum(span.name == name for span in shop.spans())


@pytest.mark.parametrize("how", ["warm", pytest.param("cold", marks=pytest.mark.long)])
@pytest.mark.parametrize("task", ["nap", pytest.param("late", marks=pytest.mark.long)])
@pytest.mark.long
def test_a_shutdown_loses_nothing(shop, how, task):
    """Each task has ended, or waits in the queue again; a cold shutdown breaks off those that run."""
    total, name = 60, f"orders.{task}"
    with shop.web() as server, shop.worker("--concurrency", "2") as worker:
        shop.run(f"[{task}.delay(0.2) for number in range({total})]")
        services.wait_until(lambda: shop.numbers(server).get(("duration", name, "succeeded"), 0) >= 4, 60, "work")
        worker.send_signal(signal.SIGTERM if how == "warm" else signal.SIGQUIT)
        worker.wait(60)
        found = shop.numbers(server)
        ended = {outcome: number for (metric, _, outcome), number in found.items() if metric == "duration"}
        assert found["wait", name, ""] == sum(ended.values()), (shop.folder / "worker.log").read_text()
        assert spans_of(shop, f"process {name}") == sum(ended.values())
        broken_off = "retried" if task == "late" else "failed"
        assert ended.keys() <= ({"succeeded"} if how == "warm" else {"succeeded", broken_off})
        gone = sum(number for outcome, number in ended.items() if outcome != "retried")

        def waiting() -> float:
            return float(re.search(rb"length.* (\d+)\n", server.get("/metrics")[2])[1])

        # Celery puts back what a cold shutdown breaks off only when another worker asks for it.
        put_back = 0 if (how, task) != ("cold", "late") else 2
        services.wait_until(lambda: total - gone - put_back <= waiting() <= total - gone, 60, "the tasks that wait")


@contextlib.contextmanager
def repeating(call):
    """Call this ten times a second meanwhile."""
    is_over = threading.Event()

    def run():
        while not is_over.wait(0.1):
            call()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@pytest.mark.long
def test_numbers_are_exact_when_the_pool_grows_and_shrinks(shop, monkeypatch):
    monkeypatch.setenv("AUTOSCALE_KEEPALIVE", "1")
    with shop.web() as server, shop.worker("--autoscale", "4,1") as worker:
        total = 0
        for _ in range(2):
            sizes_seen = [0]
            # From before the first task on: on a busy machine the work may be done when all of it is sent.
            with repeating(lambda sizes_seen=sizes_seen: sizes_seen.append(len(children_of(worker.pid)))):
                shop.run("[nap.delay(0.2) for number in range(40)]")
                total += 40
                try:
                    services.wait_until(
                        lambda total=total: shop.numbers(server).get(("duration", "orders.nap", "succeeded")) == total
                    )
                except AssertionError:
                    numbers, spans = shop.numbers(server), spans_of(shop, "process orders.nap")
                    log = (shop.folder / "worker.log").read_text()
                    pytest.fail(f"of {total} tasks: {numbers}, {spans} spans, and the worker says:\n{log}")
            assert max(sizes_seen) > 2, "the pool has grown"
            services.wait_until(lambda: len(children_of(worker.pid)) == 1, 60, "a smaller pool")
        assert shop.numbers(server) == {
            ("wait", "orders.nap", ""): total, ("duration", "orders.nap", "succeeded"): total,
        }  # fmt: skip
        stop(worker)
    assert spans_of(shop, "process orders.nap") == total


@contextlib.contextmanager
def sender_without_traces(broker: str):
    """What sends a task without a trace: another program."""
    before = current_app._get_current_object()
    app = Celery("other", broker=broker, set_as_current=False)
    try:

        def send(name: str, *args: object, **options: object) -> str:
            with suppress_instrumentation():
                return app.send_task(name, args, queue="shop", **options).id

        yield send
    finally:
        app.close()
        before.set_current()


@pytest.mark.long
def test_a_message_that_waited_over_an_hour_is_linked_to_its_sender(shop):
    """What stands in the broker since then, and what was due a moment ago."""
    sent = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    long_ago = {"django_otel_sent_at": f"{time.time() - 3700:.6f}"}
    cases = {
        "below": {"headers": {**sent, "django_otel_sent_at": f"{time.time() - 1800:.6f}"}},
        "linked": {"headers": {**sent, **long_ago}},
        "due": {"headers": {**sent, **long_ago}, "countdown": 1},
        "unsampled": {"headers": {**long_ago, "traceparent": f"00-{'c' * 32}-{'d' * 16}-00"}},
    }
    with shop.web() as server, sender_without_traces(shop.variables["TEST_BROKER"]) as send:
        ids = {send("orders.send_invoice", 1, **options): case for case, options in cases.items()}
        with shop.worker("--pool", "solo") as worker:
            ended = ("duration", "orders.send_invoice", "succeeded")
            services.wait_until(lambda: shop.numbers(server).get(ended) == len(cases), 60, "the runs")
            stop(worker)
        assert shop.numbers(server)["wait", "orders.send_invoice", ""] == len(cases)
    found = {}
    for span in shop.spans():
        case = ids.get(services.attributes_of(span).get("django.task.id"))
        if case is not None:
            found[case] = span
    # A sender that is not recorded has a task that is not recorded, also over a link.
    assert found.keys() == {"below", "linked", "due"}
    for case in ("below", "due"):
        assert (found[case].trace_id.hex(), found[case].parent_span_id.hex()) == ("a" * 32, "b" * 16)
    assert not found["linked"].parent_span_id and found["linked"].trace_id.hex() != "a" * 32
    assert [(link.trace_id.hex(), link.span_id.hex()) for link in found["linked"].links] == [("a" * 32, "b" * 16)]
    waits = {case: services.attributes_of(span)["django.task.wait"] for case, span in found.items()}
    assert 3600 < waits["linked"] < 7200 and 1800 <= waits["below"] < 3600 and waits["due"] < 1800


@pytest.mark.long
def test_the_admins_policy_reaches_a_worker_that_runs(shop):
    """Ratio, a rule that names a task, errors and slow tasks; the worker's one process exports in sequence."""
    shop.otel["SAMPLING"] = {"RATIO": 1.0}
    broker = shop.variables["TEST_BROKER"]
    with shop.web(), shop.worker("--concurrency", "1"), sender_without_traces(broker) as send:

        def is_recorded(task_id: str) -> bool:
            return any(services.attributes_of(span).get("django.task.id") == task_id for span in shop.spans())

        def arrives(name: str, *args: object) -> bool:
            """Whether a task is recorded: what comes after it always is."""
            task_id, after = send(name, *args), send("orders.send_invoice", 1)
            services.wait_until(lambda: is_recorded(after), 60, "a span of the task that came after")
            return is_recorded(task_id)

        assert arrives("orders.nap", 0)
        change = "from django_otel.models import SamplingPolicy, SamplingRule;"
        shop.run(
            f"{change} SamplingRule.objects.create(path='task:orders.send_invoice', ratio=1);"
            "SamplingPolicy.objects.create(ratio=0)"
        )
        changed_s = time.monotonic()
        services.wait_until(lambda: not arrives("orders.nap", 0), 60, "the ratio")
        print("seconds to a running worker:", time.monotonic() - changed_s)
        assert not arrives("orders.fail", "hunter2")
        shop.run(f"{change} policy = SamplingPolicy.objects.get(); policy.keep_errors = True; policy.save()")
        services.wait_until(lambda: arrives("orders.fail", "hunter2"), 60, "errors")
        assert not arrives("orders.nap", 0)
        shop.run(f"{change} policy = SamplingPolicy.objects.get(); policy.keep_slow_s = 5; policy.save()")
        # Longer than a busy machine stops a worker that does nothing.
        services.wait_until(lambda: arrives("orders.nap", 5.1), 60, "slow tasks")
        assert not arrives("orders.nap", 0)
    reasons = {
        span.name: services.attributes_of(span).get("sampling.reason")
        for span in shop.spans() if span.name.startswith("process")
    }  # fmt: skip
    assert reasons == {
        "process orders.send_invoice": "rule", "process orders.fail": "error", "process orders.nap": "slow",
    }  # fmt: skip
