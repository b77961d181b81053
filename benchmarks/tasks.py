"""Instructions that measuring Celery tasks adds, beside the official instrumentor and Sentry, counted by callgrind.

    python benchmarks/tasks.py [--check] [--tasks N] [--peers FOLDER]

A task is sent to a broker in memory and run by Celery's own tracer in the same process, all of it recorded, with an
exporter that does nothing. Bare Celery is subtracted. The official instrumentor (with its spans alone, no meter
provider) and Sentry (with a transport that does nothing) are counted where they are installed, in FOLDER or beside
this package. `--check` fails where this package costs more than a quarter of the official one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import callgrind  # noqa: E402
from benchmarks.instructions import counted, install_provider, settle  # noqa: E402

KINDS = ("bare", "django_otel", "official", "sentry")
#: Share of the official instrumentor's cost.
TARGET = 0.25
_WARM_UP = 300


def configure_django(*, is_instrumented: bool) -> None:
    """A Django project; with this package when `is_instrumented`."""
    import django
    from django.conf import settings

    settings.configure(
        SECRET_KEY="only for measuring",
        INSTALLED_APPS=["django_otel"] * is_instrumented,
        DATABASES={},
        OTEL={
            "SERVICE_NAME": "measured",
            "SAMPLING": {"LIVE": False},
            "METRICS": {"EXPORTERS": []},
            "TRACES": {
                "EXPORTERS": ["benchmarks.instructions.NothingExporter"],
                "BATCH": {"QUEUE_SIZE": 100_000, "BATCH_SIZE": 100_000, "DELAY_S": 3600},
            },
        },
    )
    django.setup()


def start_official() -> None:
    """The official instrumentor with the SDK's batch processor."""
    from opentelemetry.instrumentation.celery import CeleryInstrumentor
    from opentelemetry.sdk.trace import TracerProvider

    install_provider(TracerProvider(shutdown_on_exit=False))
    CeleryInstrumentor().instrument()


def start_sentry() -> None:
    """Sentry's SDK with everything recorded."""
    import sentry_sdk
    from sentry_sdk.integrations.celery import CeleryIntegration
    from sentry_sdk.transport import Transport

    class Nothing(Transport):
        def capture_envelope(self, envelope: object) -> None:
            pass

    sentry_sdk.init(
        dsn="http://key@127.0.0.1/1", traces_sample_rate=1.0, integrations=[CeleryIntegration()], transport=Nothing,
        auto_enabling_integrations=False,
    )  # fmt: skip


def count_here(kind: str, tasks: int) -> None:
    """Send and run tasks in this process, which runs under callgrind."""
    configure_django(is_instrumented=kind == "django_otel")
    if kind == "django_otel":
        from benchmarks.peers.own import stop_clocks

        stop_clocks()
    elif kind == "official":
        start_official()
    elif kind == "sentry":
        start_sentry()
    from celery import Celery
    from celery.app.trace import build_tracer

    app = Celery("shop", broker="memory://")
    app.conf.task_ignore_result = True

    @app.task(name="orders.send_invoice")
    def send_invoice(number: int) -> None:
        pass

    app.finalize()
    # Not the proxy that the decorator returns: workers do not go through it either.
    tracer = build_tracer(send_invoice.name, app.tasks[send_invoice.name], app=app)
    connection = app.connection_for_read()
    channel = connection.default_channel
    with app.producer_or_acquire() as producer:

        def send(number: int) -> None:
            for _ in range(number):
                send_invoice.apply_async((1,), producer=producer)

        def take(number: int) -> list[Any]:
            found = []
            for _ in range(number):
                message = channel.basic_get("celery", no_ack=True)
                found.append({**message.headers, "delivery_info": message.delivery_info})
            return found

        def run(requests: list[Any]) -> None:
            for request in requests:
                tracer(request["id"], (1,), {}, request)

        counter = callgrind.Counter()
        send(_WARM_UP)
        run(take(_WARM_UP))
        settle()
        send(20)
        run(take(20))
        with counted(counter, "send"):
            send(tasks)
        requests = take(tasks)
        with counted(counter, "run"):
            run(requests)
    # Neither is there anything to export, nor are other threads to be waited for.
    sys.stdout.flush()
    os._exit(0)


def is_installed(kind: str, path: str) -> bool:
    module = {"official": "opentelemetry.instrumentation.celery", "sentry": "sentry_sdk"}.get(kind)
    if module is None:
        return True
    command = [sys.executable, "-c", f"import {module}"]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail above a quarter of the official instrumentor")
    parser.add_argument("--tasks", type=int, default=50, help="how many tasks are counted")
    parser.add_argument("--peers", default="", help="folder with the official instrumentor and Sentry")
    parser.add_argument("--count", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count:
        count_here(options.count, options.tasks)
    if reason := callgrind.why_not():
        print(reason)
        return 0
    path = os.pathsep.join(filter(None, [str(ROOT), options.peers]))
    counts: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        if not is_installed(kind, path):
            print(f"{kind}: not installed")
            continue
        found = callgrind.run([__file__, "--count", kind, "--tasks", str(options.tasks)], {"PYTHONPATH": path})
        counts[kind] = {name: found[name] / options.tasks / 1000 for name in ("send", "run")}
    bare = counts.pop("bare")
    print(f"{'kI added per task':<20}{'send':>10}{'run':>10}{'both':>10}")
    both: dict[str, float] = {}
    for kind, found in counts.items():
        added = {name: found[name] - bare[name] for name in bare}
        both[kind] = sum(added.values())
        print(f"{kind:<20}{added['send']:>10.1f}{added['run']:>10.1f}{both[kind]:>10.1f}")
    print(f"{'Celery itself':<20}{bare['send']:>10.1f}{bare['run']:>10.1f}{sum(bare.values()):>10.1f}")
    if "official" in both:
        share = both["django_otel"] / both["official"]
        print(f"{share:.0%} of the official instrumentor")
        return 1 if options.check and share > TARGET else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
