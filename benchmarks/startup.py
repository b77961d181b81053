"""What `django.setup()` takes: bare, with django_otel, and with the official instrumentation.

    python benchmarks/startup.py [--rounds 21]
    python benchmarks/startup.py --count        instructions instead of time (needs valgrind)

A process per measurement: from before `import django` to after `django.setup()`,
for a project with the admin. "official" is DjangoInstrumentor with the SDK's
providers and the PrometheusMetricReader, as its documentation sets it up. Rounds
are interleaved. CPU time is the process's, kernel included; memory is what is
resident afterwards. Byte code is cached before the first round, in a folder of
its own, so that all alike load and none compiles.

The last column is what is added to the bare project, as a share of what the
official instrumentation adds: of time the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import callgrind

VARIANTS = ("bare", "django_otel", "official")


# --- The measured process. ---


def set_up(variant: str) -> None:
    import django
    from django.conf import settings

    apps = [f"django.contrib.{name}" for name in ("admin", "auth", "contenttypes", "sessions", "messages")]
    more: dict[str, object] = {}
    if variant == "django_otel":
        apps.append("django_otel")
        more = {"MIDDLEWARE": ["django_otel.middleware.OTelMiddleware"], "OTEL": {"SERVICE_NAME": "shop"}}
    settings.configure(
        SECRET_KEY="benchmark",
        INSTALLED_APPS=apps,
        ROOT_URLCONF="benchmark",
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        **more,
    )
    if variant == "official":
        from opentelemetry import metrics, trace
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from opentelemetry.instrumentation.django import DjangoInstrumentor
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        resource = Resource.create({"service.name": "shop"})
        trace.set_tracer_provider(TracerProvider(resource=resource))
        metrics.set_meter_provider(MeterProvider(resource=resource, metric_readers=[PrometheusMetricReader()]))
        DjangoInstrumentor().instrument()
    django.setup()


def resident_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def measure(variant: str) -> None:
    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
    set_up(variant)
    cpu_s, wall_s = time.process_time() - begun_cpu_s, time.perf_counter() - begun_s
    answer = {"cpu_ms": cpu_s * 1e3, "wall_ms": wall_s * 1e3, "mib": resident_mib(), "modules": len(sys.modules)}
    print(json.dumps(answer))


def count(variant: str) -> None:
    print(json.dumps(callgrind.count(lambda: set_up(variant)) / 1e6))


# --- Around it. ---


def environment(folder: str) -> dict[str, str]:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**environ, "PYTHONPYCACHEPREFIX": folder, "PYTHONHASHSEED": "0"}


def run(variant: str, folder: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", variant]
    done = subprocess.run(command, env=environment(folder), capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_counted(variant: str, folder: str) -> float:
    with tempfile.TemporaryDirectory() as dumps:
        command = callgrind.command([sys.executable, __file__, "--count-one", variant], dumps)
        environ = callgrind.environment(environment(folder), dumps)
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def share(rounds: list[dict[str, dict[str, float]]], key: str) -> float:
    """What ours adds as a share of what the official one adds; of each round, then the median."""
    shares = []
    for found in rounds:
        bare, ours, official = (found[variant][key] for variant in VARIANTS)
        if official > bare:
            shares.append((ours - bare) / (official - bare))
    return statistics.median(shares)


def compare(count_rounds: int, folder: str) -> None:
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(count_rounds):
        order = VARIANTS if number % 2 else VARIANTS[::-1]
        rounds.append({variant: run(variant, folder) for variant in order})
    print(f"django.setup(), {count_rounds} rounds, medians; Python {sys.version.split()[0]}")
    print(f"{'':10}{'bare':>10}{'ours':>10}{'official':>10}{'share':>10}")
    for key, name in (("cpu_ms", "CPU ms"), ("wall_ms", "wall ms"), ("mib", "MiB"), ("modules", "modules")):
        medians = [statistics.median(found[variant][key] for found in rounds) for variant in VARIANTS]
        print(f"{name:10}" + "".join(f"{value:10.1f}" for value in medians) + f"{share(rounds, key):10.2f}")


def compare_counts(folder: str) -> None:
    obstacle = callgrind.why_not()
    if obstacle:
        print(obstacle)
        return
    bare, ours, official = (run_counted(variant, folder) for variant in VARIANTS)
    print("Million instructions of django.setup()")
    print(f"bare {bare:.0f}, ours +{ours - bare:.0f}, official +{official - bare:.0f}: ", end="")
    print(f"{(ours - bare) / (official - bare):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--count", action="store_true", help="instructions instead of time")
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--count-one", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
    elif options.count_one:
        count(options.count_one)
    else:
        with tempfile.TemporaryDirectory() as folder:
            for variant in VARIANTS:
                run(variant, folder)
            if options.count:
                compare_counts(folder)
            else:
                compare(options.rounds, folder)


if __name__ == "__main__":
    main()
