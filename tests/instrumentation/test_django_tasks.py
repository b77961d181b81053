"""Django's tasks: the immediate and dummy backends here, the database backend with a worker of its own."""

from __future__ import annotations

import subprocess
import sys

import django
import pytest
from opentelemetry import context
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


def test_an_order_and_its_task_in_the_database_are_one_trace(tmp_path, receiver):
    pytest.importorskip("django_tasks_db")
    otel = {
        "SERVICE_NAME": "shop", "SAMPLING": {"LIVE": False}, "METRICS_VIEW": {"ALLOW": "all"},
        "TRACES": {"EXPORTERS": ["otlp"], "ENDPOINT": f"{receiver.url}/v1/traces", "BATCH": {"DELAY_S": 0.2}},
        "METRICS": {"SHARED_DIR": str(tmp_path)}, "BUSINESS": {"business_app.Order": {"created": "order.placed"}},
    }  # fmt: skip
    variables = {"TEST_SQLITE": str(tmp_path / "db.sqlite3"), "DJANGO_SETTINGS_MODULE": "tests.task_shop.db_settings"}
    environment = services.server_env(otel, **variables)

    def manage(*arguments: str) -> None:
        command = [sys.executable, "-m", "django", *arguments]
        subprocess.run(command, env=environment, cwd=services.ROOT, check=True, timeout=120, capture_output=True)

    manage("migrate", "--run-syncdb")
    with services.serve("gunicorn", otel, workers=2, **variables) as server:
        assert server.get("/jobs/7/")[0] == 201
        length = 'django_task_queue_length{django_task_backend="django",django_task_queue="default"} '
        assert f"{length}2\n".encode() in server.get("/metrics")[2]
        # A row whose task is gone.
        code = (
            "import django; django.setup(); from tests.task_shop import jobs; result = jobs.asynchronous.enqueue();"
            "from django_tasks_db.models import DBTaskResult;"
            "DBTaskResult.objects.filter(id=result.id).update(task_path='tests.task_shop.jobs.gone')"
        )
        subprocess.run([sys.executable, "-c", code], env=environment, cwd=services.ROOT, check=True, timeout=120)
        manage("db_worker", "--batch", "--no-startup-delay", "--no-reload")
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
