"""Dramatiq with its broker for tests, and the refusal of what traced() does not know."""

from __future__ import annotations

import pytest

import django_otel
from django_otel.export import task_logs
from django_otel.tasks import traced


def test_other_objects_are_refused_with_what_fits():
    with pytest.raises(TypeError, match="expected a broker of Dramatiq"):
        traced(object())


def test_an_actor_runs_in_its_senders_trace(otel_spans, otel_metrics):
    dramatiq = pytest.importorskip("dramatiq")
    from dramatiq.brokers.stub import StubBroker

    broker = traced(traced(StubBroker()))
    broker.emit_after("process_boot")

    @dramatiq.actor(broker=broker, actor_name="orders.send_invoice", max_retries=0)
    def send_invoice(number: int, secret: str) -> None:
        if number:
            raise ValueError(f"password={secret}")

    worker = dramatiq.Worker(broker, worker_timeout=100)
    worker.start()
    try:
        with django_otel.span("order"):
            send_invoice.send(0, "hunter2")
            send_invoice.send(1, "hunter2")
        broker.join(send_invoice.queue_name, fail_fast=False)
        worker.join()
    finally:
        worker.stop()
    sent = {span.context.span_id for span in otel_spans.named("send orders.send_invoice")}
    ran = otel_spans.named("process orders.send_invoice")
    assert {span.parent.span_id for span in ran} == sent and len(sent) == 2
    assert sorted(span.attributes["django.task.outcome"] for span in ran) == ["failed", "succeeded"]
    assert "hunter2" not in str([span.to_json() for span in otel_spans])
    assert otel_metrics.value("django.task.sent", {"django.task.backend": "dramatiq"}) == 2


def test_what_dramatiq_logs_of_arguments_is_not_exported(caplog):
    dramatiq = pytest.importorskip("dramatiq")
    from dramatiq.brokers.stub import StubBroker

    broker = StubBroker()

    @dramatiq.actor(broker=broker, actor_name="orders.send_invoice", max_retries=0)
    def send_invoice(secret: str) -> None:
        raise ValueError

    worker = dramatiq.Worker(broker, worker_timeout=100)
    with caplog.at_level("DEBUG", logger="dramatiq"):
        worker.start()
        try:
            send_invoice.send("hunter2")
            broker.join(send_invoice.queue_name, fail_fast=False)
            worker.join()
        finally:
            worker.stop()
    assert any("hunter2" in record.getMessage() for record in caplog.records)
    texts = [task_logs.message_of(record) for record in caplog.records if record.name.startswith("dramatiq")]
    assert any("orders.send_invoice([not exported])" in text for text in texts)
    assert not any("hunter2" in text for text in texts)
