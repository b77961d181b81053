"""An order that is placed by clicking, and the task that sends its invoice from another process: one trace."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import services
from tests.live_sampling.test_browser import chromium as chromium
from tests.live_sampling.test_browser import order_something

pytestmark = [
    pytest.mark.long,
    pytest.mark.debian,
    # Redis' connections, closed by Celery's own threads.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
TASK = "example_project.shop.tasks.send_invoice"


class Shop:
    """The demo shop, its payment gateway and a task worker, each with processes of its own."""

    def __init__(self, folder: Path, receiver: Any, settings: str, **more: str) -> None:
        kept = {
            name: text for name, text in os.environ.items() if not name.startswith(("OTEL_", "DATABASE_", "REDIS_"))
        }
        self.port, self.gateway_port = services.free_port(), services.free_port()
        self.folder = folder
        self.environment = {
            **kept, "DJANGO_SETTINGS_MODULE": settings, "DJANGO_DEBUG": "0", "CONSOLE_PATH": str(folder / "console"),
            "DATABASE_URL": f"sqlite:///{folder / 'shop.sqlite3'}",
            "PAYMENT_GATEWAY_URL": f"http://127.0.0.1:{self.gateway_port}",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "200", **more,
        }  # fmt: skip
        self.run("migrate", "--verbosity", "0")

    def run(self, *words: str) -> None:
        command = [sys.executable, "-m", "django", *words]
        subprocess.run(command, cwd=services.ROOT, env=self.environment, check=True, timeout=120)

    @contextlib.contextmanager
    def serve(self, *worker: str) -> Iterator[None]:
        """Start all three; the worker is a module with its arguments."""
        with contextlib.ExitStack() as stack:
            for settings, port in (("", self.port), ("example_project.settings_gateway", self.gateway_port)):
                named = {"DJANGO_SETTINGS_MODULE": settings} if settings else {}
                command = [
                    sys.executable, "-m", "gunicorn", "example_project.wsgi:application", "--workers", "2",
                    "--bind", f"127.0.0.1:{port}", "--graceful-timeout", "2",
                ]  # fmt: skip
                stack.enter_context(
                    services.running(command, {**self.environment, **named}, self.folder / f"server-{port}.log")
                )
            command = [sys.executable, "-m", *worker]
            stack.enter_context(services.running(command, self.environment, self.folder / "worker.log"))
            services.wait_until(
                lambda: services.is_listening(self.port) and services.is_listening(self.gateway_port),
                60,
                "both servers",
            )
            yield


def check_order(chromium: Any, shop: Shop, receiver: Any) -> dict[str, tuple[Any, Any]]:
    """Place an order in the browser; return resource and span of the request, the sending and the run of the task."""
    context = chromium.new_context(base_url=f"http://127.0.0.1:{shop.port}", locale="en-GB")
    try:
        page = context.new_page()
        page.goto("/")
        order_something(page)
        trace_id = bytes.fromhex(page.locator(".trace code").inner_text())
    finally:
        context.close()
    names = {f"send {TASK}", f"process {TASK}"}

    def find() -> dict[str, tuple[Any, Any]]:
        # The page after the order names its own trace where that is another one.
        spans = receiver.spans()
        ids = {span.trace_id for _, span in spans if span.name == f"process {TASK}"} or {trace_id}
        found = {span.name: (resource, span) for resource, span in spans if span.trace_id in ids}
        return found if names <= found.keys() and "POST /order/" in found else {}

    found = services.wait_until(find, 90, "the order, the sending and the run of its task")
    request, send, process = (found[name] for name in ("POST /order/", f"send {TASK}", f"process {TASK}"))
    assert request[1].trace_id == send[1].trace_id == process[1].trace_id
    assert process[1].parent_span_id == send[1].span_id and not request[1].parent_span_id
    assert process[0]["service.instance.id"] != request[0]["service.instance.id"], "in a process of its own"
    spans = {span.span_id: span for _, span in receiver.spans() if span.trace_id == request[1].trace_id}
    above = send[1]
    while above.parent_span_id:
        above = spans[above.parent_span_id]
    assert above.span_id == request[1].span_id
    below = [span for span in spans.values() if span.parent_span_id == process[1].span_id]
    assert any(span.name.startswith("SELECT") for span in below), "its queries stand below the task"
    return {"request": request, "send": send, "process": process}


def attributes(span: Any) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in span.attributes}


def test_in_a_prefork_worker_of_celery(tmp_path, receiver, chromium):
    with services.start_valkey() as broker:
        shop = Shop(tmp_path, receiver, "example_project.settings", REDIS_URL=broker)
        worker = ("celery", "-A", "example_project.celery_app", "worker", "--pool", "prefork", "--concurrency", "2")
        with shop.serve(*worker):
            found = check_order(chromium, shop, receiver)
    assert attributes(found["process"][1])["django.task.backend"] == "celery"


def test_in_a_database_worker_of_django_tasks(tmp_path, receiver, chromium):
    pytest.importorskip("django_tasks_db")
    shop = Shop(tmp_path, receiver, "tests.task_shop.demo_settings")
    with shop.serve("django", "db_worker", "--no-startup-delay", "--no-reload", "--interval", "0.2"):
        found = check_order(chromium, shop, receiver)
    assert attributes(found["process"][1])["django.task.backend"] == "django"
