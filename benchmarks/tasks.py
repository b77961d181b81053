"""Instructions that measuring Celery tasks adds, beside the official instrumentor and Sentry, counted by callgrind.

    python -m benchmarks.tasks [--check] [--tasks N] [--here] [--publish]

A task is sent to a broker in memory and run by Celery's own tracer in the same process, all of it recorded, with an
exporter that does nothing. Bare Celery is subtracted. The official instrumentor (with its spans alone, no meter
provider) and Sentry (with a transport that does nothing) are counted in the same run: pip makes an environment with all
of them, of which each process switches on one. `--here` counts in the environment that runs this, those that are
installed there. `--check` fails where this package costs more than a quarter of the official instrumentor.
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

from benchmarks import callgrind, publication  # noqa: E402
from benchmarks.instructions import counted, install_provider, settle  # noqa: E402
from benchmarks.peers import environments  # noqa: E402

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


def is_installed(kind: str, python: Path) -> bool:
    """Return whether an environment has what is counted."""
    module = {"official": "opentelemetry.instrumentation.celery", "sentry": "sentry_sdk"}.get(kind)
    return module is None or subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0


def count(python: Path, tasks: int) -> dict[str, dict[str, float]]:
    """Thousand instructions of sending and of running a task, by kind; the first is Celery alone."""
    counts: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        if not is_installed(kind, python):
            print(f"{kind}: not installed", file=sys.stderr)
            continue
        arguments = [str(Path(__file__).resolve()), "--count", kind, "--tasks", str(tasks)]
        found = callgrind.run(arguments, {"PYTHONPATH": str(ROOT)}, python)
        counts[kind] = {name: found[name] / tasks / 1000 for name in ("send", "run")}
    return counts


def share_of_official(counts: dict[str, dict[str, float]], kind: str) -> float | None:
    """Return what a kind adds to Celery, as a share of what the official instrumentor adds; None without that."""
    if "official" not in counts or kind == "bare":
        return None
    bare = sum(counts["bare"].values())
    return (sum(counts[kind].values()) - bare) / (sum(counts["official"].values()) - bare)


def text_of(counts: dict[str, dict[str, float]]) -> str:
    """The figures as Markdown."""
    titles = {
        "bare": "Celery itself",
        "django_otel": "**django_otel**",
        "official": "official instrumentor",
        "sentry": "sentry-sdk",
    }
    rows = []
    for kind, found in counts.items():
        less = {"send": 0.0, "run": 0.0} if kind == "bare" else counts["bare"]
        sign = "" if kind == "bare" else "+"
        share = share_of_official(counts, kind)
        figures = [found["send"] - less["send"], found["run"] - less["run"]]
        cells = [f"{sign}{figure:,.0f}" for figure in (*figures, sum(figures))]
        rows.append([titles[kind], *cells, "" if share is None else f"{share:.2f}"])
    head = ["thousand instructions of a task", "sending", "running", "both", "of the official instrumentor"]
    return publication.table(head, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail above a quarter of the official instrumentor")
    parser.add_argument("--tasks", type=int, default=50, help="how many tasks are counted")
    parser.add_argument("--here", action="store_true", help="in this environment, without one that pip makes")
    parser.add_argument("--publish", action="store_true", help="put the figures into docs/ and benchmarks/results.json")
    parser.add_argument("--cache", type=Path, default=environments.ROOT / ".cache" / "benchmarks")
    parser.add_argument("--count", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count:
        count_here(options.count, options.tasks)
    if reason := callgrind.why_not():
        print(reason)
        return 0
    python = Path(sys.executable) if options.here else environments.build("tasks", options.cache)
    counts = count(python, options.tasks)
    text = text_of(counts)
    print(text)
    if options.publish:
        names = ("celery", "opentelemetry-instrumentation-celery", "sentry-sdk")
        found = environments.versions(python)
        versions = {name: found[name] for name in names if name in found}
        note = ", ".join(f"{name} {version}" for name, version in versions.items())
        data = {"machine": publication.machine(), "tasks": options.tasks, "counts": counts, "versions": versions}
        publication.publish("tasks", data, f"{text}\n\n{options.tasks} tasks; {note}.")
    share = share_of_official(counts, "django_otel")
    return 1 if options.check and (share is None or share > TARGET) else 0


if __name__ == "__main__":
    sys.exit(main())
