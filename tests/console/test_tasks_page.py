"""The page of tasks: numbers of all processes, the last runs and failures out of the store."""

from __future__ import annotations

import re

import pytest
from opentelemetry.trace import SpanKind, Status, StatusCode

from django_otel import runtime
from django_otel.instrumentation.tasks import queue_lengths, runs
from tests.console.test_console import HOSTILE, record, request_span

TASKS = "/admin/django_otel/tasks/"


def text_of(response) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", response.content.decode()).split())


def run_span(tracer, name: str, outcome: str, message: str = ""):
    attributes = {
        "django.task.backend": "celery", "django.task.name": name, "django.task.queue": "mail",
        "django.task.wait": 1.5, "django.task.outcome": outcome,
    }  # fmt: skip
    with tracer.start_as_current_span(f"process {name}", kind=SpanKind.CONSUMER, attributes=attributes) as span:
        if outcome == "failed":
            span.set_status(Status(StatusCode.ERROR, message))


@pytest.mark.django_db
def test_runs_and_failures_of_stored_traces(console, admin_client):
    def build(tracer):
        with request_span(tracer):
            run_span(tracer, "orders.send_invoice", "succeeded")
        run_span(tracer, "orders.broken", "failed", "no paper")

    record(console, build)
    page = text_of(admin_client.get(TASKS))
    assert "orders.send_invoice" in page and "orders.broken" in page and "no paper" in page
    assert "succeeded" in page and "failed" in page
    failures = text_of(admin_client.get(TASKS, {"failed": "1"}))
    assert "orders.broken" in failures and "orders.send_invoice" not in failures.partition("Last failures")[2]
    html = admin_client.get(TASKS).content.decode()
    assert html.count("/admin/django_otel/trace/") >= 2


@pytest.mark.django_db
def test_numbers_and_queues_are_those_of_the_scrape(console, admin_client, monkeypatch):
    monkeypatch.setattr(
        queue_lengths, "READERS",
        {"x": lambda: [(17, {"django.task.backend": "celery", "django.task.queue": "mail"})]},
    )  # fmt: skip
    runtime.store.forget_observed()
    backend = runs.Backend("celery")
    sending = backend.send("reports.monthly", "slow")
    sending.end()
    backend.run("reports.monthly", "slow", sending.headers).end(runs.FAILED, ValueError("x"))
    page = text_of(admin_client.get(TASKS))
    assert "reports.monthly" in page and "slow" in page and "1 failed" in page
    assert "17" in page
    runtime.store.forget_observed()


@pytest.mark.django_db
def test_hostile_names_are_text(console, admin_client):
    record(console, lambda tracer: run_span(tracer, HOSTILE, "failed", HOSTILE))
    html = admin_client.get(TASKS).content.decode()
    assert "<script>alert" not in html and "<img src=x" not in html


@pytest.mark.django_db
def test_without_tasks_the_page_says_so(console, admin_client, client):
    assert admin_client.get(TASKS).status_code == 200
    assert client.get(TASKS).status_code == 302
