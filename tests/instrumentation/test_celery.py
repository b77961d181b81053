"""Celery without a worker: eager tasks, what is sent, and how a sent task begins in a worker."""

from __future__ import annotations

import datetime
import time

import pytest
from celery import Celery, current_app
from celery.exceptions import Ignore, Reject
from opentelemetry import baggage, context
from opentelemetry.trace import SpanKind, StatusCode

import django_otel
from django_otel import runtime
from django_otel.export import log_records, task_logs
from django_otel.instrumentation.tasks import celery_hooks, celery_lost, runs
from django_otel.instrumentation.tasks.celery_hooks import backend
from django_otel.operations import checks
from django_otel.sampling.policy import Rule

SENT, WAIT, DURATION = "django.task.sent", "django.task.wait", "django.task.duration"


@pytest.fixture(scope="module")
def app():
    before = current_app._get_current_object()
    made = Celery("shop", broker="memory://", set_as_current=False)
    made.conf.update(task_ignore_result=True, task_default_queue="shop")

    @made.task(name="orders.send_invoice")
    def send_invoice(number: int, password: str = "") -> str:
        with django_otel.span("inside"):
            return password

    @made.task(name="orders.fail", bind=True, max_retries=3)
    def fail(self, how: str, password: str = "") -> None:
        if how == "retry" and not self.request.retries:
            raise self.retry(countdown=0)
        if how != "retry":
            raise {"ignore": Ignore(), "reject": Reject("no")}.get(how, ValueError(f"password={password}"))

    @made.task(
        name="orders.flaky", autoretry_for=(ValueError,), max_retries=2, default_retry_delay=0, retry_jitter=False
    )
    def flaky(password: str) -> None:
        raise ValueError(password)

    @made.task(name="bestellung für 1 Tee / süß")
    def outer() -> None:
        made.tasks["orders.send_invoice"].delay(1)

    # As where it has sent something.
    celery_hooks._memory.apps.add(made)
    yield made
    before.set_current()


@pytest.fixture
def sent(app):
    """Messages as they went to the broker."""
    with app.connection_for_write() as connection:
        channel = connection.default_channel

        def take(queue: str = "shop"):
            message = channel.basic_get(queue, no_ack=True)
            return None if message is None else message.headers

        while take() is not None:
            pass
        yield take


@pytest.fixture
def eager(app):
    app.conf.task_always_eager = True
    yield
    app.conf.task_always_eager = False


def labels(task: str, **more: str) -> dict[str, str]:
    return {"django.task.backend": "celery", "django.task.name": task, "django.task.queue": "shop", **more}


def count(otel_metrics, name: str, **attributes: str) -> float:
    """How often something was counted; a dot in a name is given as it is."""
    found = otel_metrics.value(name, attributes)
    return getattr(found, "count", found)


def test_a_task_that_is_sent_carries_its_senders_trace(app, sent, otel_spans, otel_metrics):
    with django_otel.span("order"):
        app.tasks["orders.send_invoice"].delay(1, password="hunter2")
    headers = sent()
    send, order = otel_spans.one("send orders.send_invoice"), otel_spans.one("order")
    assert send.parent.span_id == order.context.span_id
    assert send.kind is SpanKind.PRODUCER
    assert send.attributes == {
        "django.task.backend": "celery", "django.task.name": "orders.send_invoice", "django.task.queue": "shop",
        "django.task.id": headers["id"],
    }  # fmt: skip
    assert (
        headers["traceparent"]
        == f"00-{send.context.trace_id:032x}-{send.context.span_id:016x}-{send.context.trace_flags & 3:02x}"
    )
    assert abs(float(headers[runs.SENT_AT]) - time.time()) < 600
    assert count(otel_metrics, SENT, **labels("orders.send_invoice")) == 1


def test_baggage_and_formats_follow_the_settings(app, sent, settings):
    token = context.attach(baggage.set_baggage("tenant", "a", baggage.set_baggage("inbound", "b")))
    try:
        app.send_task("orders.send_invoice")
    finally:
        context.detach(token)
    assert sorted(sent()["baggage"].split(",")) == ["inbound=b", "tenant=a"]
    settings.OTEL = {"PROPAGATION": {"FORMATS": ["none"]}}
    app.send_task("orders.send_invoice")
    assert not {"traceparent", "baggage"} & sent().keys()


def test_a_name_without_a_task_is_no_label(app, sent, otel_metrics, otel_spans):
    for number in range(3):
        app.send_task(f"orders.made_up_{number}")
    assert count(otel_metrics, SENT, **labels("_other")) == 3
    assert "made_up" not in str(otel_metrics.series(SENT))
    assert len(otel_spans.named("send orders.made_up_1")) == 1


def test_queues_are_told_apart_up_to_a_limit(app, otel_metrics, monkeypatch):
    monkeypatch.setattr(runs, "MAX_QUEUES", len(backend.queues()) + 1)
    for number in range(3):
        app.send_task("orders.send_invoice", queue=f"customer-{number}")
    assert count(otel_metrics, SENT, **{**labels("orders.send_invoice"), "django.task.queue": "customer-0"}) == 1
    assert count(otel_metrics, SENT, **{**labels("orders.send_invoice"), "django.task.queue": "_other"}) == 2


def test_a_broker_that_refuses_is_a_failed_send_and_nothing_sent(app, otel_spans, otel_metrics, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no broker")

    with app.producer_or_acquire() as producer:
        monkeypatch.setattr(type(producer), "publish", refuse)
        with pytest.raises(ConnectionError):
            app.tasks["orders.send_invoice"].apply_async((1,), producer=producer, retry=False)
    send = otel_spans.one("send orders.send_invoice")
    assert send.status.status_code is StatusCode.ERROR
    assert send.attributes["error.type"] == "ConnectionError"
    assert not otel_metrics.series(SENT)
    assert not context.get_current()


def test_an_eager_task_stands_below_its_sender(app, eager, otel_spans, otel_metrics):
    with django_otel.span("order"):
        assert app.tasks["orders.send_invoice"].delay(1, password="hunter2").result == "hunter2"
    send, process = otel_spans.one("send orders.send_invoice"), otel_spans.one("process orders.send_invoice")
    assert process.parent.span_id == send.context.span_id
    assert otel_spans.one("inside").parent.span_id == process.context.span_id
    assert process.kind is SpanKind.CONSUMER
    assert "hunter2" not in str([span.to_json() for span in otel_spans])
    for name in (SENT, WAIT):
        assert count(otel_metrics, name, **labels("orders.send_invoice")) == 1
    assert count(otel_metrics, DURATION, **labels("orders.send_invoice", **{"django.task.outcome": "succeeded"})) == 1


@pytest.mark.parametrize(
    ("how", "outcome", "status"),
    [
        ("fail", "failed", StatusCode.ERROR), ("ignore", "succeeded", StatusCode.UNSET),
        ("reject", "rejected", StatusCode.UNSET), ("retry", "retried", StatusCode.UNSET),
    ],
)  # fmt: skip
def test_every_end_has_its_outcome(app, eager, otel_spans, otel_metrics, how, outcome, status):
    app.tasks["orders.fail"].delay(how, password="hunter2")
    found = [
        span for span in otel_spans.named("process orders.fail") if span.attributes["django.task.outcome"] == outcome
    ]
    assert [span.status.status_code for span in found] == [status]
    assert count(otel_metrics, DURATION, **labels("orders.fail", **{"django.task.outcome": outcome})) == 1
    assert "hunter2" not in str([span.to_json() for span in otel_spans])
    if how == "fail":
        assert found[0].attributes["error.type"] == "ValueError"
        assert found[0].status.description == "ValueError: password=[redacted]"


def test_retries_that_run_out_are_a_failure(app, eager, otel_spans, otel_metrics):
    app.tasks["orders.flaky"].delay("hunter2")
    outcomes = [span.attributes["django.task.outcome"] for span in otel_spans.named("process orders.flaky")]
    assert sorted(outcomes) == ["failed", "retried", "retried"]
    for outcome, number in (("failed", 1), ("retried", 2)):
        assert count(otel_metrics, DURATION, **labels("orders.flaky", **{"django.task.outcome": outcome})) == number
    assert not context.get_current()


def test_a_task_of_any_name_that_sends_another_one(app, eager, otel_spans, otel_metrics):
    name = "bestellung für 1 Tee / süß"
    app.tasks[name].delay()
    outer, send = otel_spans.one(f"process {name}"), otel_spans.one("send orders.send_invoice")
    assert send.parent.span_id == outer.context.span_id
    assert count(otel_metrics, SENT, **labels(name)) == count(otel_metrics, SENT, **labels("orders.send_invoice")) == 1


def test_an_exception_that_eager_tasks_pass_on_is_a_failure(app, eager, otel_spans):
    app.conf.task_eager_propagates = True
    try:
        with pytest.raises(ValueError, match="password"):
            app.tasks["orders.fail"].delay("fail")
    finally:
        app.conf.task_eager_propagates = False
    assert otel_spans.one("process orders.fail").attributes["django.task.outcome"] == "failed"
    assert not context.get_current()


def begin(headers, **arguments):
    run = backend.run("orders.send_invoice", "shop", headers, **arguments)
    run.end(runs.SUCCEEDED)


def carried(flags: str = "01", sent_s_ago: float = 0.0) -> dict[str, str]:
    return {"traceparent": f"00-{'a' * 32}-{'b' * 16}-{flags}", runs.SENT_AT: str(time.time() - sent_s_ago)}


def test_a_task_that_waited_over_an_hour_begins_a_trace_with_a_link(app, otel_spans, otel_metrics):
    begin(carried(sent_s_ago=3500))
    begin(carried(sent_s_ago=3700))
    # One that was due later has not waited.
    begin(carried(sent_s_ago=7200), due_at_s=time.time() - 1)
    below, linked, due = otel_spans.named("process orders.send_invoice")
    for span in (below, due):
        assert span.context.trace_id == int("a" * 32, 16)
        assert span.parent.span_id == int("b" * 16, 16)
    assert linked.parent is None
    assert linked.context.trace_id != int("a" * 32, 16)
    assert [link.context.trace_id for link in linked.links] == [int("a" * 32, 16)]
    assert 3699 < linked.attributes["django.task.wait"] < 5000
    assert due.attributes["django.task.wait"] < 1200
    assert count(otel_metrics, WAIT, **labels("orders.send_invoice")) == 3


def test_sampling_follows_the_sender_also_over_a_link(app, otel_spans):
    with django_otel.testing.override_sampling(0.0):
        begin(carried("01"))
        begin(carried("01", sent_s_ago=4000))
    with django_otel.testing.override_sampling(1.0):
        begin(carried("00"))
        begin(carried("00", sent_s_ago=4000))
    assert len(otel_spans.named("process orders.send_invoice")) == 2


@pytest.mark.parametrize("key", ["path", "route"])
def test_rules_name_tasks_that_no_sender_has_decided(app, sent, otel_spans, settings, key):
    settings.OTEL = {"SAMPLING": {"RATIO": 0.0, "RULES": [
        {key: "task:orders.fail", "ratio": 0.0}, {key: "task:orders.*", "ratio": 1.0},
    ]}}  # fmt: skip
    app.send_task("orders.send_invoice")
    assert sent()["traceparent"][-2:] in ("01", "03")
    app.send_task("orders.fail")
    assert sent()["traceparent"][-2:] in ("00", "02")
    begin({})
    with django_otel.span("unsampled"):
        app.send_task("orders.send_invoice")
    assert [span.name for span in otel_spans] == ["send orders.send_invoice", "process orders.send_invoice"]
    span = otel_spans.one("process orders.send_invoice")
    assert span.attributes["sampling.reason"] == "rule"


def test_rules_for_tasks_cost_requests_nothing_and_have_no_method(settings):
    settings.OTEL = {"SAMPLING": {"RULES": [{"route": "task:orders.*", "method": "GET", "ratio": 0.5}]}}
    policy = runtime.current().sampler.policy
    assert not policy.has_rules
    assert policy.outcome_of_task("orders.x").rule.label == "task:orders.*"
    assert policy.outcome_of_task("other.x") is policy.default_outcome
    assert Rule(0.5, path="task:x", method="post").method == ""


def test_errors_and_slow_tasks_of_unsampled_senders_are_kept(app, otel_spans, settings):
    settings.OTEL = {"SAMPLING": {"RATIO": 0.0, "KEEP_ERRORS": True, "KEEP_SLOW_S": 0.05}}
    begin(carried("00"))
    run = backend.run("orders.fail", "shop", carried("00"))
    run.end(runs.FAILED, ValueError("password=hunter2"))
    run = backend.run("orders.slow", "shop", carried("00"))
    with django_otel.span("inside"):
        time.sleep(0.06)
    run.end(runs.SUCCEEDED)
    assert {span.name for span in otel_spans} == {"process orders.fail", "process orders.slow", "inside"}
    assert otel_spans.one("process orders.fail").attributes["sampling.reason"] == "error"


@pytest.mark.parametrize(
    "headers",
    [{}, {"traceparent": 5}, {"traceparent": "garbage", runs.SENT_AT: "soon"}, {runs.SENT_AT: "inf"},
     {"traceparent": "00-" + "0" * 32 + "-" + "b" * 16 + "-01"}, {"traceparent": "x" * 100_000, runs.SENT_AT: True}],
)  # fmt: skip
def test_headers_of_any_kind_are_no_reason_to_fail(app, otel_spans, headers):
    begin(headers)
    assert otel_spans.one("process orders.send_invoice").parent is None


def test_without_tasks_nothing_is_measured(app, sent, otel_spans, otel_metrics, settings):
    settings.OTEL = {"TASKS": False}
    with django_otel.span("order"):
        app.send_task("orders.send_invoice")
    assert runs.SENT_AT not in sent()
    assert [span.name for span in otel_spans] == ["order"]
    assert not otel_metrics.series(SENT)


def test_the_official_instrumentor_makes_the_spans_where_it_is_asked_for(app, otel_spans, otel_metrics, settings):
    settings.OTEL = {"INSTRUMENT": ["celery"]}
    app.send_task("orders.send_invoice")
    assert not otel_spans.named("send orders.send_invoice")
    assert count(otel_metrics, SENT, **labels("orders.send_invoice")) == 1
    assert "celery" in str([found for found in checks.check_project() if found.id == "django_otel.W003"])


def test_due_times_of_all_kinds():
    when = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
    assert celery_hooks.read_due(when.isoformat()) == when.timestamp()
    assert celery_hooks.read_due(when.replace(tzinfo=None)) == when.timestamp()
    assert celery_hooks.read_due("2026-01-01T14:00:00+02:00") == when.timestamp()
    assert [celery_hooks.read_due(value) for value in (None, "", "tomorrow", 5)] == [None] * 4


def test_a_process_of_the_pool_notes_what_it_has_counted(monkeypatch):
    monkeypatch.setattr(celery_lost._shared, "notes", bytearray(celery_lost._NOTES * celery_lost._NOTE.size))
    monkeypatch.setattr(celery_lost._shared, "main_pid", 1)
    import os

    stages = [celery_lost._find_stage(os.getpid(), "a")]
    celery_lost.note_begun("a")
    stages.append(celery_lost._find_stage(os.getpid(), "a"))
    celery_lost.note_ended("a")
    stages += [celery_lost._find_stage(os.getpid(), "a"), celery_lost._find_stage(os.getpid(), "b")]
    assert stages == [0, celery_lost._BEGUN, celery_lost._ENDED, 0]
    assert celery_lost.ends_with_process(SystemExit())
    assert not celery_lost.ends_with_process(ValueError())


def test_what_celery_logs_of_arguments_and_results_is_not_exported(app, eager, caplog):
    with caplog.at_level("INFO"):
        app.tasks["orders.send_invoice"].delay(1, password="hunter2")
    records = [record for record in caplog.records if record.name == "celery.app.trace"]
    assert records and any("hunter2" in str(vars(record)) for record in records)
    for record in records:
        attributes, _ = log_records.extra_attributes(record, str)
        assert "hunter2" not in f"{attributes} {task_logs.message_of(record)}"
        assert "orders.send_invoice" in task_logs.message_of(record)
