"""A payment gateway for the tests: the real one, as a process of its own."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
import pytest
from django.core.cache import cache

from example_project.demo.processes import Process, free_port, stop_all
from example_project.demo.run import fetch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def gateway_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    process = Process(
        "payment gateway",
        [
            *(sys.executable, "-m", "gunicorn", "example_project.wsgi:application", "--bind", f"127.0.0.1:{port}"),
            *("--config", "python:example_project.gunicorn_config"),
        ],
        environ={**os.environ, "DJANGO_SETTINGS_MODULE": "example_project.settings_gateway"},
        log_path=tmp_path_factory.mktemp("gateway") / "log",
        cwd=ROOT,
    )
    try:
        deadline_s = time.monotonic() + 30
        while fetch(port, "/readyz")[0] != 200:
            process.check()
            assert time.monotonic() < deadline_s, process.log_tail()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop_all([process])


@pytest.fixture
def gateway(gateway_url: str, settings: Any) -> str:
    settings.PAYMENT_GATEWAY_URL = gateway_url
    return gateway_url


@pytest.fixture
def no_gateway(settings: Any) -> None:
    """Nothing listens at the address of the payment gateway."""
    settings.PAYMENT_GATEWAY_URL = f"http://127.0.0.1:{free_port()}"


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    cache.clear()


@pytest.fixture(autouse=True)
def tasks_at_once(settings: Any) -> None:
    """Tasks run inside their sender: a test's transaction is seen by no other thread or process."""
    package = "django.tasks" if django.VERSION >= (6, 0) else "django_tasks"
    settings.TASKS = {"default": {"BACKEND": f"{package}.backends.immediate.ImmediateBackend"}}
    if settings.CELERY_BROKER_URL:
        from example_project.celery_app import app

        app.conf.task_always_eager = True
