"""Tail keeping under load: does every error arrive, and what does it take?

    python -m benchmarks.tail [seconds] [workers]

A real server (gunicorn), 1 % of new traces recorded, 1 % of the requests an
error, each request with a database query and spans of its own. A real OTLP
receiver takes what is exported; the errors' addresses must all be there. Beside
it the same without tail keeping: resident memory per worker, and requests per
second. Then the buffer alone, full: bytes per span, which is the bound that
`SAMPLING.TAIL_BUFFER_SPANS` stands for.

Needs the environment of the tests. Loads two cores for `seconds` (10) twice.
"""

from __future__ import annotations

import http.client
import os
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ERROR_EVERY = 100
BUFFER_SPANS = 10_000
CLIENTS = 8

# --- The site. ---


def work(request: Any, number: int) -> Any:
    """A query, three spans, and an error for one request in a hundred."""
    from django.contrib.auth.models import Group
    from django.http import HttpResponse

    import django_otel

    with django_otel.span("prepare", number=number), django_otel.span("query"):
        found = Group.objects.filter(name=f"group {number}").count()
    with django_otel.span("render", found=found, text="x" * 64):
        if number % ERROR_EVERY == 0:
            raise ValueError(f"request {number} failed")
    return HttpResponse("fine")


def _configure() -> None:
    import json

    from django.conf import settings

    settings.configure(
        SECRET_KEY="benchmark",
        ALLOWED_HOSTS=["*"],
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django_otel"],
        MIDDLEWARE=["django_otel.middleware.OTelMiddleware"],
        ROOT_URLCONF="benchmarks.tail",
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["TAIL_DATABASE"]}},
        LOGGING_CONFIG=None,
        USE_TZ=True,
        OTEL=json.loads(os.environ["TAIL_OTEL"]),
    )


if "TAIL_OTEL" in os.environ:
    import django
    from django.core.wsgi import get_wsgi_application
    from django.urls import path

    _configure()
    django.setup()
    urlpatterns = [path("work/<int:number>/", work)]
    application = get_wsgi_application()


# --- The load. ---


def _environment(database: Path, endpoint: str, **sampling: Any) -> dict[str, str]:
    import json

    otel = {
        "SERVICE_NAME": "tail",
        "SAMPLING": {"RATIO": 0.01, "LIVE": False, "TAIL_BUFFER_SPANS": BUFFER_SPANS, **sampling},
        "TRACES": {"ENDPOINT": endpoint, "BATCH": {"DELAY_S": 1.0}},
        "METRICS_VIEW": {"ALLOW": "all"},
    }
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "DJANGO_"))}
    return {**clean, "PYTHONPATH": str(ROOT), "TAIL_OTEL": json.dumps(otel), "TAIL_DATABASE": str(database)}


def _resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def _served(environment: dict[str, str], workers: int) -> Iterator[tuple[int, int]]:
    from tests import services

    port = services.free_port()
    command = [
        sys.executable, "-m", "gunicorn", "benchmarks.tail:application", "--bind", f"127.0.0.1:{port}",
        "--workers", str(workers), "--worker-class", "gthread", "--threads", "4", "--graceful-timeout", "10",
    ]  # fmt: skip
    with services.running(command, environment, Path(environment["TAIL_DATABASE"]).with_name("log")) as process:
        services.wait_until(lambda: services.is_listening(port), 60, "gunicorn")
        yield port, process.pid


def _flood(port: int, seconds: float, first: int, least_errors: int = 0) -> tuple[list[int], int]:
    """Ask as fast as the server answers; gives the numbers of the errors and how many were answered.

    On a slow machine it takes longer than `seconds`, until there are `least_errors`.
    """
    numbers = iter(range(first, 1 << 40))
    lock = threading.Lock()
    errors: list[int] = []
    answered = 0
    stop_s = time.monotonic() + seconds

    def run() -> None:
        nonlocal answered
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while time.monotonic() < stop_s or len(errors) < least_errors:
            with lock:
                number = next(numbers)
            connection.request("GET", f"/work/{number}/")
            answer = connection.getresponse()
            answer.read()
            with lock:
                answered += 1
                if answer.status == 500:
                    errors.append(number)
        connection.close()

    threads = [threading.Thread(target=run) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors, answered


def measure(seconds: float, workers: int, *, keeps: bool, least_errors: int = 0) -> dict[str, Any]:
    """One run: errors sent and received, requests per second, memory per worker before and after."""
    import subprocess

    from tests import services

    with tempfile.TemporaryDirectory() as folder, services.start_receiver() as receiver:
        environment = _environment(Path(folder) / "db.sqlite3", receiver.url, KEEP_ERRORS=keeps)
        code = "import benchmarks.tail as _; from django.core.management import call_command as call; call('migrate')"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, capture_output=True)
        with _served(environment, workers) as (port, master):
            _flood(port, 2.0, 1_000_001)
            before_kib = [_resident_kib(pid) for pid in _children(master)]
            errors, answered = _flood(port, seconds, 1, least_errors)
            after_kib = [_resident_kib(pid) for pid in _children(master)]
        # Stopped gracefully: what waits has been exported.
        received: dict[str, int] = {}
        for _, span in receiver.spans():
            attributes = services.attributes_of(span)
            if "url.path" in attributes:
                received[attributes["url.path"]] = received.get(attributes["url.path"], 0) + 1
        spans_by_trace: dict[bytes, int] = {}
        for _, span in receiver.spans():
            spans_by_trace[span.trace_id] = spans_by_trace.get(span.trace_id, 0) + 1
        wanted = {f"/work/{number}/" for number in errors}
        whole = sum(
            spans_by_trace[span.trace_id] == 5
            for _, span in receiver.spans()
            if services.attributes_of(span).get("url.path") in wanted
        )
        return {
            "answered": answered, "errors": len(errors), "arrived": len(wanted & set(received)), "whole": whole,
            "others": len(set(received) - wanted), "per_second": answered / seconds,
            "before_kib": max(before_kib), "after_kib": max(after_kib),
        }  # fmt: skip


def measure_buffer(spans: int = BUFFER_SPANS) -> tuple[float, int]:
    """Bytes per span of a full buffer, and how many it holds after five times as many came."""
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.sdk.resources import Resource

    from django_otel.export.limits import build_span_limits
    from django_otel.export.processors import SwitchProcessor
    from django_otel.sampling.policy import Policy
    from django_otel.sampling.sampler import LiveSampler
    from django_otel.tracing.ids import OwnRandomIdGenerator
    from django_otel.tracing.provider import OwnTracerProvider
    from django_otel.tracing.tail import TailBuffer

    sampler = LiveSampler(Policy(0.0, keep_errors=True))
    switch = SwitchProcessor()
    provider = OwnTracerProvider(sampler, Resource({}), OwnRandomIdGenerator(), build_span_limits())
    provider.add_span_processor(switch)
    switch.tail = TailBuffer(
        spans,
        policy=lambda: sampler.policy,
        emit=switch.emit,
        discard=None,
        on_keep=lambda reason: None,
        on_drop=lambda count: None,
    )
    tracer = provider.get_tracer("benchmark")
    roots: list[trace.Span] = []
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    # Five times more than fit, in traces of ten spans with ten attributes, none of which ends.
    for number in range(spans // 2):
        root = tracer.start_span("GET /orders/<int:pk>/", Context(), trace.SpanKind.SERVER)
        roots.append(root)
        del roots[: -spans // 10]
        inside = trace.set_span_in_context(root, Context())
        for step in range(9):
            attributes = {f"attribute.{index}": f"value {number} {step} {index}" for index in range(10)}
            tracer.start_span(f"step {step}", inside, attributes=attributes).end()
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return used / len(switch.tail), len(switch.tail)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    workers = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    for keeps in (False, True):
        found = measure(seconds, workers, keeps=keeps)
        print(f"KEEP_ERRORS {'on' if keeps else 'off'}: {found['answered']} requests ({found['per_second']:.0f} per "
              f"second), {found['errors']} errors, of which {found['arrived']} arrived ({found['whole']} with all 5 "
              f"spans), and {found['others']} other traces; resident per worker {found['before_kib'] / 1024:.1f} MiB "
              f"before, {found['after_kib'] / 1024:.1f} after")  # fmt: skip
    per_span, held = measure_buffer()
    print(f"A full buffer holds {held} spans of {per_span:.0f} bytes (ten short attributes each): "
          f"{held * per_span / 2**20:.1f} MiB, after five times as many came")  # fmt: skip


if __name__ == "__main__":
    main()
