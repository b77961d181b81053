"""RQ with a real worker over Valkey, alone and below Django's tasks."""

from __future__ import annotations

import logging
import re
import sys

import django
import pytest

import django_otel
from django_otel.export import log_records, task_logs
from django_otel.instrumentation.tasks import rq_hooks
from tests import services

rq = pytest.importorskip("rq")
redis = pytest.importorskip("redis")
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
WORK = (
    "import django; django.setup(); from rq import SimpleWorker, Worker;"
    "from tests.task_shop.rq_jobs import queue;"
    "{kind}([queue], connection=queue.connection).work(burst=True)"
)


@pytest.fixture(autouse=True)
def no_queues():
    """No later reading of metrics asks for the queues of a server that is gone."""
    yield
    rq_hooks._memory.queues.clear()


def numbers(server) -> dict[tuple[str, str, str], float]:
    """The numbers of jobs on the web server's page, by metric, job and outcome."""
    found = {}
    for line in server.get("/metrics")[2].decode().splitlines():
        match = re.match(r"django_task_(sent|wait|duration|queue_length)(?:_total|_seconds_count)?\{(.*)\} (\S+)", line)
        if match:
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            if labels["django_task_backend"] != "rq":
                continue
            assert labels["django_task_queue"] == "shop"
            name = labels.get("django_task_name", "").rpartition(".")[2]
            found[match[1], name, labels.get("django_task_outcome", "")] = float(match[3])
    return found


def prepare_shop(folder, broker, otel):
    """Make the shop's database; return the variables of its server, and the environment of its worker."""
    variables = {
        "TEST_BROKER": broker, "TEST_SQLITE": str(folder / "db.sqlite3"),
        "DJANGO_SETTINGS_MODULE": "tests.task_shop.settings",
    }  # fmt: skip
    environment = services.server_env(otel, **variables)
    services.migrate_database(environment)
    return variables, environment


@pytest.mark.parametrize("kind", ["Worker", pytest.param("SimpleWorker", marks=pytest.mark.long)])
def test_an_order_and_its_jobs_are_one_trace_and_all_ends_are_counted(tmp_path, receiver, kind):
    otel = {
        "SERVICE_NAME": "shop", "SAMPLING": {"LIVE": False}, "METRICS_VIEW": {"ALLOW": "all"},
        "TRACES": {"EXPORTERS": ["otlp"], "ENDPOINT": f"{receiver.url}/v1/traces", "BATCH": {"DELAY_S": 0.2}},
        "LOGS": {"EXPORTERS": ["otlp"], "ENDPOINT": f"{receiver.url}/v1/logs"},
        "METRICS": {"SHARED_DIR": str(tmp_path)}, "BUSINESS": {"business_app.Order": {"created": "order.placed"}},
    }  # fmt: skip
    with services.start_valkey() as broker:
        variables, environment = prepare_shop(tmp_path, broker, otel)
        with services.serve("gunicorn", otel, workers=1, **variables) as server:
            assert server.get("/rq/7/")[0] == 201
            assert numbers(server)["queue_length", "", ""] == 6
            done = services.run_python(WORK.format(kind=kind), environment, check=False)
            # Killed in the middle of its job, the worker without processes of its own leaves the rest.
            is_killed = kind == "SimpleWorker"
            assert (done.returncode != 0) == is_killed, done.stderr
            if is_killed:
                services.run_python(WORK.format(kind=kind), environment, check=False)
            services.wait_until(lambda: numbers(server)["queue_length", "", ""] == 0, 60, "an empty queue")
            expected = {
                ("sent", "send_invoice", ""): 3, ("wait", "send_invoice", ""): 3,
                ("duration", "send_invoice", "succeeded"): 3,
                ("sent", "fail", ""): 1, ("wait", "fail", ""): 2,
                ("duration", "fail", "retried"): 1, ("duration", "fail", "failed"): 1,
                ("sent", "die", ""): 1, ("wait", "die", ""): 1, ("duration", "die", "failed"): 1,
                ("sent", "_other", ""): 1, ("wait", "_other", ""): 1, ("duration", "_other", "failed"): 1,
                ("queue_length", "", ""): 0,
            }  # fmt: skip
            if is_killed:
                # No process is left to report it.
                del expected["duration", "die", "failed"]
            assert numbers(server) == expected
    spans = [span for _, span in receiver.spans()]
    (request,) = [span for span in spans if span.name == "GET /rq/<int:number>/"]
    sent = {span.span_id: span for span in spans if span.name.startswith("send ")}
    ran = [span for span in spans if span.name.startswith("process ")]
    assert {span.parent_span_id for span in sent.values()} == {request.span_id}
    for span in ran:
        assert span.trace_id == request.trace_id
        assert sent[span.parent_span_id].name.partition(" ")[2] == span.name.partition(" ")[2]
    placed = [span for span in spans if span.name == "order.placed"]
    assert {span.parent_span_id for span in placed} <= {
        span.span_id for span in ran if span.name == "process tests.task_shop.rq_jobs.send_invoice"
    }
    # A worker without processes of its own takes along what it has not sent.
    assert len(placed) == 3 or kind == "SimpleWorker"
    text = repr([message for _, _, message in receiver.requests])
    assert "hunter2" not in text and "result-" not in text


ORDER = """
import django; django.setup()
import datetime, django_otel
from rq import Retry
from tests.task_shop import rq_jobs as jobs
with django_otel.span("order"):
    first = jobs.queue.enqueue(jobs.nap, 0.2, description="first")
    jobs.queue.enqueue(jobs.send_invoice, 1, depends_on=first)
    jobs.queue.enqueue_in(datetime.timedelta(seconds=1), jobs.send_invoice, 2)
    jobs.queue.enqueue(jobs.fail_once, {path!r}, retry=Retry(max=2, interval=1))
    jobs.queue.enqueue(jobs.nap, 600, job_id="stopped")
    jobs.queue.enqueue(jobs.nap, 600, job_timeout=1)
"""
#: Tells when it knows the job's process: asked before that, or again after its end, RQ's worker kills itself.
STOPPABLE = """
import django; django.setup()
from rq import Worker
from tests.task_shop.rq_jobs import queue
class Telling(Worker):
    def monitor_work_horse(self, job, *arguments):
        self.connection.set("monitored", job.id)
        super().monitor_work_horse(job, *arguments)
Telling([queue], connection=queue.connection).work(with_scheduler=True)
"""
STOP = """
import os, time
from redis import Redis
from rq.command import send_stop_job_command
from rq.job import Job
connection = Redis.from_url(os.environ["TEST_BROKER"])
def wait_for(status):
    while Job.fetch("stopped", connection=connection).get_status() != status:
        time.sleep(0.1)
while connection.get("monitored") != b"stopped":
    time.sleep(0.1)
wait_for("started")
send_stop_job_command(connection, "stopped")
wait_for("stopped")
"""


@pytest.mark.long
def test_jobs_that_wait_are_stopped_or_tried_again_later_stand_in_their_senders_trace(tmp_path, receiver):
    """Deferred, scheduled, stopped, too long, and failed with another try in a second."""
    otel = {
        "SERVICE_NAME": "shop", "SAMPLING": {"LIVE": False}, "METRICS_VIEW": {"ALLOW": "all"},
        "TRACES": {"EXPORTERS": ["otlp"], "ENDPOINT": f"{receiver.url}/v1/traces", "BATCH": {"DELAY_S": 0.2}},
        "METRICS": {"SHARED_DIR": str(tmp_path)},
    }  # fmt: skip
    expected = {
        ("duration", "nap", "succeeded"): 1, ("duration", "nap", "failed"): 2, ("wait", "nap", ""): 3,
        ("duration", "send_invoice", "succeeded"): 2, ("wait", "send_invoice", ""): 2,
        ("duration", "fail_once", "retried"): 1, ("duration", "fail_once", "succeeded"): 1,
        ("wait", "fail_once", ""): 2,
    }  # fmt: skip
    with services.start_valkey() as broker:
        variables, environment = prepare_shop(tmp_path, broker, otel)
        with services.serve("gunicorn", otel, workers=1, **variables) as server:
            services.run_python(ORDER.format(path=str(tmp_path / "tried")), environment)
            with services.running([sys.executable, "-c", STOPPABLE], environment, tmp_path / "worker.log") as worker:
                services.run_python(STOP, environment)
                services.wait_until(lambda: expected.items() <= numbers(server).items(), 90, "all ends")
                worker.terminate()
                worker.wait(60)
            assert {key: n for key, n in numbers(server).items() if key[0] in ("duration", "wait")} == expected
    spans = [span for _, span in receiver.spans()]
    (order,) = [span for span in spans if span.name == "order"]
    sent = {span.span_id: span for span in spans if span.name.startswith("send ")}
    assert {span.parent_span_id for span in sent.values()} == {order.span_id} and len(sent) == 6
    ran = [span for span in spans if span.name.startswith("process ")]
    assert {span.parent_span_id for span in ran} == sent.keys() and len(ran) == 7
    reasons = [services.attributes_of(span).get("django.task.reason") for span in ran]
    assert reasons.count("stopped") == 1 and reasons.count(None) == 6
    # Due in a second, or as soon as the first had ended: from then on it waited.
    assert all(services.attributes_of(span)["django.task.wait"] < 60 for span in ran)


EARLY = """
import django; django.setup()
import os, signal
from rq import Worker
from tests.task_shop.rq_jobs import queue, send_invoice
class Killed(Worker):
    def prepare_job_execution(self, *arguments, **options):
        super().prepare_job_execution(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
queue.enqueue(send_invoice, 1)
Killed([queue], connection=queue.connection).work(burst=True)
"""


def test_a_job_whose_process_is_killed_between_its_status_and_its_work_has_waited(tmp_path):
    """Redis says that it has started, but its process had no time to count the wait."""
    otel = {
        "SERVICE_NAME": "shop", "SAMPLING": {"LIVE": False}, "METRICS_VIEW": {"ALLOW": "all"},
        "METRICS": {"SHARED_DIR": str(tmp_path)},
    }  # fmt: skip
    with services.start_valkey() as broker:
        variables, environment = prepare_shop(tmp_path, broker, otel)
        services.run_python(EARLY, environment)
        with services.serve("gunicorn", otel, workers=1, **variables) as server:
            assert numbers(server) == {
                ("sent", "send_invoice", ""): 1, ("wait", "send_invoice", ""): 1,
                ("duration", "send_invoice", "failed"): 1,
            }  # fmt: skip


def test_jobs_that_run_at_once_stand_below_their_sender(valkey_url, otel_spans, otel_metrics):
    from redis import Redis
    from rq import Queue

    from tests.task_shop.rq_jobs import fail

    with Redis.from_url(valkey_url) as connection, django_otel.span("order"):
        Queue("at-once", connection=connection, is_async=False).enqueue(fail, "hunter2")
    send, process = (otel_spans.one(f"{kind} tests.task_shop.rq_jobs.fail") for kind in ("send", "process"))
    assert process.parent.span_id == send.context.span_id
    assert send.parent.span_id == otel_spans.one("order").context.span_id
    assert process.attributes["django.task.outcome"] == "failed"
    assert "hunter2" not in str([span.to_json() for span in (send, process)])


@pytest.mark.heavy
def test_a_queue_that_refuses_is_a_failed_send(otel_spans, otel_metrics):
    from redis import Redis
    from redis.exceptions import ConnectionError
    from rq import Queue

    from tests.task_shop.rq_jobs import fail

    with pytest.raises(ConnectionError):
        Queue("gone", connection=Redis(port=services.free_port())).enqueue(fail, "hunter2")
    assert otel_spans.one("send tests.task_shop.rq_jobs.fail").attributes["error.type"].endswith("ConnectionError")
    assert not otel_metrics.series("django.task.sent")


@pytest.mark.skipif(django.VERSION >= (6, 1), reason="django-rq")
@pytest.mark.long
def test_djangos_tasks_on_rq_are_one_trace(tmp_path, receiver):
    pytest.importorskip("django_tasks_rq")
    otel = {
        "SERVICE_NAME": "shop", "SAMPLING": {"LIVE": False}, "METRICS": {"SHARED_DIR": str(tmp_path)},
        "TRACES": {"EXPORTERS": ["otlp"], "ENDPOINT": f"{receiver.url}/v1/traces", "BATCH": {"DELAY_S": 0.2}},
        "SKIP_COMMANDS": [],
    }  # fmt: skip
    with services.start_valkey() as broker:
        environment = services.server_env(
            otel, TEST_BROKER=broker, TEST_SQLITE=str(tmp_path / "db.sqlite3"),
            DJANGO_SETTINGS_MODULE="tests.task_shop.rq_settings",
        )  # fmt: skip
        services.migrate_database(environment)
        send = (
            "import django; django.setup(); import django_otel; from tests.task_shop import jobs\n"
            "with django_otel.span('order'): jobs.invoice.enqueue(7, secret='hunter2'); jobs.fail.enqueue('hunter2')"
        )
        work = [sys.executable, "-m", "django", "rqworker", "default", "--burst", "--job-class", "django_tasks_rq.Job"]
        for command in ([sys.executable, "-c", send], work):
            services.run_program(command, environment, check=True)
    spans = [span for _, span in receiver.spans()]
    (order,) = [span for span in spans if span.name == "order"]
    for task, outcome in (("invoice", "succeeded"), ("fail", "failed")):
        (sent,) = [span for span in spans if span.name == f"send tests.task_shop.jobs.{task}"]
        (ran,) = [span for span in spans if span.name == f"process tests.task_shop.jobs.{task}"]
        assert (sent.parent_span_id, ran.parent_span_id) == (order.span_id, sent.span_id), task
        assert services.attributes_of(ran)["django.task.outcome"] == outcome
    assert "hunter2" not in repr([message for _, _, message in receiver.requests])


@pytest.mark.parametrize("colour", ["", "\x1b[34;01m"])
def test_what_rq_logs_of_arguments_is_not_exported(colour):
    end = "\x1b[39;49;00m" if colour else ""
    call = f"{colour}shop.tasks.fail('hunter2', when=(1, 2),\nnote=')'){end}"
    extra = {"func": "shop.tasks.fail", "arguments": ("hunter2",), "kwargs": {"secret": "hunter2"}, "queue": "shop"}
    record = logging.getLogger("rq.worker").makeRecord(
        "rq.worker", logging.INFO, __file__, 1, "Worker %s: %s (%d)", ("w", call, 7), None, extra=extra
    )
    attributes, _ = log_records.extra_attributes(record, str)
    assert task_logs.message_of(record) == f"Worker w: {colour}shop.tasks.fail([not exported]){end} (7)"
    assert attributes.keys() == {"func", "queue"}


def test_other_texts_of_rq_stay_as_they_are():
    text = "Traceback (most recent call last):\n  File x, in fail\n    raise ValueError(f'{secret}')"
    record = logging.getLogger("rq.worker").makeRecord("rq.worker", logging.ERROR, __file__, 1, "%s", (text,), None)
    assert task_logs.message_of(record) == text


def test_a_server_that_is_gone_is_asked_once_a_reading(otel_metrics):
    """However many queues it has, and however often the project's own connection tries."""
    attempts = []

    class Connection(redis.Connection):
        def _connect(self):
            attempts.append(self)
            raise ConnectionRefusedError

    connection = redis.Redis(connection_pool=redis.ConnectionPool(connection_class=Connection, port=1))
    for name in ("mails", "invoices", "reports"):
        rq_hooks._remember(rq.Queue(name, connection=connection))
    assert otel_metrics.value("django.task.queue.length", {"django.task.backend": "rq"}) is None
    assert len(attempts) == 1
