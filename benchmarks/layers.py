"""Instructions that each layer of Django costs on and off, beside the peers that have one.

    python -m benchmarks.layers [--layer NAME ...] [--subject NAME ...] [--requests N] [--quick] [--publish]

Each cell is a process of its own under callgrind, as in `instructions.py`, and shows thousand instructions for one
request (command, connection, collection) more than the same without any telemetry. "off" is django_otel with that
layer's settings off, "on" with them on, everything else at its defaults and all requests recorded. Of a peer the
same request is counted with its own part for that layer, and with nothing else of it where that can be chosen; "-"
where it has none, or is not installed. A cell is one layout of the memory: half a per cent of the request is chance.

`--publish` puts the figures into `docs/performance.md` and `benchmarks/results.json`; cells that are not counted in
this run keep their published figures. `--quick` counts few requests after a short warm-up: it shows that all cells can
be counted, and their magnitude.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import callgrind, instructions, publication

Loop = Callable[[int], None]
OWN = ("off", "on")
SUBJECTS = ("bare", *OWN, "official", "django-prometheus", "sentry")
#: The package that a peer needs; OpenTelemetry's instrumentors are packages each.
_PACKAGES = {"django-prometheus": "django_prometheus", "sentry": "sentry_sdk"}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: what is run, and the settings of django_otel that switch it."""

    name: str
    #: Of `benchmarks.pages`, or "" for what `_LOOPS` runs.
    path: str
    off: dict[str, Any]
    on: dict[str, Any] = field(default_factory=dict)
    #: Peers that have it, and the module that they need for it.
    peers: dict[str, str] = field(default_factory=dict)


_OFFICIAL = "opentelemetry.instrumentation"
LAYERS = (
    Layer(
        "database, 10 queries",
        "/queries/10/",
        {"DATABASE": {"SPANS": False, "METRICS": False}},
        peers={
            "official": f"{_OFFICIAL}.sqlite3",
            "django-prometheus": "django_prometheus.db",
            "sentry": "sentry_sdk.integrations.django",
        },
    ),
    Layer(
        "cache, 11 operations",
        "/cached/11/",
        {"CACHE": {"METRICS": False, "SPANS": False}},
        {"CACHE": {"METRICS": True, "SPANS": True}},
        {"django-prometheus": "django_prometheus.cache", "sentry": "sentry_sdk.integrations.django"},
    ),
    Layer(
        "template",
        "/template/",
        {"TEMPLATES": False},
        {"TEMPLATES": True},
        {"sentry": "sentry_sdk.integrations.django"},
    ),
    Layer(
        "7 middlewares",
        "/json/",
        {"MIDDLEWARE_SPANS": False},
        {"MIDDLEWARE_SPANS": True},
        {"sentry": "sentry_sdk.integrations.django"},
    ),
    Layer("time budget", "/json/", {"REQUEST": {"TIME_BUDGET": False}}),
    Layer(
        "own dimension",
        "/measured/",
        {"REQUEST": {"METRIC_ATTRIBUTES": {}}},
        {"REQUEST": {"METRIC_ATTRIBUTES": {"tenant": 10}}},
    ),
    Layer("command", "", {"COMMANDS": False}, {"COMMANDS": True}),
    Layer("websocket, 10 messages", "", {"ENABLED": False}, peers={"official": f"{_OFFICIAL}.asgi"}),
    Layer(
        "runtime metrics, a collection",
        "",
        {"RUNTIME": False},
        peers={"official": f"{_OFFICIAL}.system_metrics", "django-prometheus": "django_prometheus"},
    ),
)
#: Requests before any is counted, and with `--quick`.
WARM_UP, QUICK_WARM_UP = 120, 10
QUICK_REQUESTS = 3
_WARM_UP = "BENCHMARK_WARM_UP"


# --- The counted process. ---


def amend(layer: Layer, subject: str, given: dict[str, Any]) -> None:
    """Change the settings of Django for a subject."""
    given["OTEL"].update(layer.off if subject == "off" else layer.on)
    if subject == "django-prometheus":
        given["INSTALLED_APPS"] = ["django_prometheus", *given["INSTALLED_APPS"]]
        if layer.path.startswith("/queries"):
            given["DATABASES"]["default"]["ENGINE"] = "django_prometheus.db.backends.sqlite3"
        given["CACHES"] = {"default": {"BACKEND": "django_prometheus.cache.backends.locmem.LocMemCache"}}


def switch_on(layer: Layer, subject: str) -> None:
    """Start a peer, with what it has for the layer alone where that can be chosen; every request is recorded."""
    if subject == "official":
        from opentelemetry.sdk.trace import TracerProvider

        instructions.install_provider(TracerProvider(shutdown_on_exit=False))
        if layer.path.startswith("/queries"):
            from opentelemetry.instrumentation.django import DjangoInstrumentor
            from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor

            DjangoInstrumentor().instrument()
            SQLite3Instrumentor().instrument()
    elif subject == "sentry":
        import sentry_sdk
        from sentry_sdk.integrations.django import DjangoIntegration

        class Sink(sentry_sdk.Transport):
            """Takes everything at no cost."""

            def capture_envelope(self, envelope: object) -> None:
                pass

        parts = DjangoIntegration(
            middleware_spans="middleware" in layer.name, cache_spans="cache" in layer.name, signals_spans=False
        )
        sentry_sdk.init("http://key@127.0.0.1:9/1", traces_sample_rate=1.0, integrations=[parts], transport=Sink)


def command_loop(subject: str) -> Loop:
    """A management command that does nothing."""
    from django.core.management import BaseCommand, call_command

    class Command(BaseCommand):
        requires_system_checks: list[str] = []

        def handle(self, *args: object, **options: object) -> None:
            pass

    command = Command()
    command.__module__ = "shop.management.commands.nothing"

    def loop(times: int) -> None:
        for _ in range(times):
            call_command(command)

    return loop


def websocket_loop(subject: str) -> Loop:
    """A connection of a bare ASGI application that answers ten messages."""

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})

    application: Any = echo
    if subject in OWN:
        from django_otel.asgi import instrument

        application = instrument(echo)
    elif subject == "official":
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        application = OpenTelemetryMiddleware(echo)
    scope = {**instructions.build_scope(instructions.Case("", "/socket/", 1.0)), "type": "websocket", "scheme": "ws"}
    del scope["method"]
    messages = [
        {"type": "websocket.connect"},
        *[{"type": "websocket.receive", "text": "x"}] * 10,
        {"type": "websocket.disconnect", "code": 1000},
    ]

    async def serve(times: int) -> None:
        async def send(message: object) -> None:
            pass

        for _ in range(times):
            coming = iter(messages)

            async def receive(coming: Any = coming) -> Any:
                return next(coming)

            await application(dict(scope), receive, send)

    return lambda times: asyncio.run(serve(times))


def collection_loop(subject: str) -> Loop:
    """A collection of all metrics of the process: those of a peer are of its process and of Python alone."""
    collect: Callable[[], object] = bool
    if subject in OWN:
        from django_otel import runtime

        collect = runtime.store.collect
    elif subject == "official":
        from opentelemetry.instrumentation import system_metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        reader = InMemoryMetricReader()
        provider = MeterProvider([reader], shutdown_on_exit=False)
        chosen: dict[str, Any] = {
            name: given
            for name, given in system_metrics._DEFAULT_CONFIG.items()  # noqa: SLF001 (its other part has no public name)
            if not name.startswith("system.")
        }
        system_metrics.SystemMetricsInstrumentor(config=chosen).instrument(meter_provider=provider)
        collect = reader.get_metrics_data
    elif subject == "django-prometheus":
        from prometheus_client import REGISTRY

        def collect() -> object:
            return list(REGISTRY.collect())

    def loop(times: int) -> None:
        for _ in range(times):
            collect()

    return loop


_LOOPS: dict[str, Callable[[str], Loop]] = {
    "command": command_loop, "websocket, 10 messages": websocket_loop, "runtime metrics, a collection": collection_loop,
}  # fmt: skip


def count_here(layer: Layer, subject: str, requests: int) -> None:
    """Count in this process, which runs under callgrind."""
    is_own = subject in OWN
    case = instructions.Case("counted", layer.path if is_own or layer.path != "/measured/" else "/json/", 1.0)
    if subject == "sentry":
        switch_on(layer, subject)
    instructions.configure(is_instrumented=is_own, is_async=False, amend=lambda given: amend(layer, subject, given))
    if is_own:
        from benchmarks.peers.own import stop_clocks
        from django_otel import runtime

        stop_clocks()
        if runtime.current().config.enabled:
            runtime.current().traces.ids.bits = random.Random(1).getrandbits
            instructions.set_policy(case)
    elif subject == "official":
        switch_on(layer, subject)
    loop = _LOOPS[layer.name](subject) if not layer.path else instructions.build_sync_loop(case)
    warm_up = int(os.environ.get(_WARM_UP) or WARM_UP)
    loop(warm_up)
    instructions.settle()
    loop(min(20, warm_up))
    counter = callgrind.Counter()
    with instructions.counted(counter, case.name):
        loop(requests)
    # Threads of a peer are no part of what is counted, and may wait for a server that is not there.
    sys.stdout.flush()
    os._exit(0)


# --- The counting process. ---


def why_not(layer: Layer, subject: str) -> str:
    """Return why a cell stays empty; "" if it can be counted."""
    if subject not in SUBJECTS[3:]:
        return ""
    if subject not in layer.peers:
        return "has none"
    needed = (_PACKAGES.get(subject, "opentelemetry.sdk"), layer.peers[subject].partition(".")[0])
    if any(importlib.util.find_spec(name) is None for name in needed):
        return "is not installed"
    try:
        return "" if importlib.util.find_spec(layer.peers[subject]) else "is not installed"
    except ModuleNotFoundError:
        return "is not installed"


def process_of(layer: Layer, subject: str, requests: int, warm_up: int = WARM_UP) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the variables of the Python process that does a subject's requests."""
    arguments = [__file__, "--count", layer.name, "--subject", subject, "--requests", str(requests)]
    return arguments, {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), _WARM_UP: str(warm_up)}


def count(layer: Layer, subject: str, requests: int, warm_up: int = WARM_UP) -> float:
    """Return thousand instructions of one request of a subject."""
    return callgrind.run(*process_of(layer, subject, requests, warm_up))["counted"] / requests / 1000


def compare(layer: Layer, subjects: list[str], requests: int, warm_up: int = WARM_UP) -> dict[str, float | None]:
    """Return what each subject adds to bare Django, in thousand instructions; None for a cell that stays empty."""
    bare = count(layer, "bare", requests, warm_up)
    return {
        name: None if why_not(layer, name) else round(count(layer, name, requests, warm_up) - bare, 1)
        for name in subjects
    }


def text_of(results: dict[str, dict[str, float | None]]) -> str:
    """The table of the page."""
    shown = SUBJECTS[1:]
    rows = []
    for layer in LAYERS:
        if layer.name in results:
            cells = [results[layer.name].get(name) for name in shown]
            rows.append([layer.name, *("-" if cell is None else f"{round(cell):,}" for cell in cells)])
    head = ["thousand instructions added", "layer off", "**layer on**", *shown[2:]]
    return publication.table(head, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", action="append", help="only layers whose name contains this; may be repeated")
    parser.add_argument("--subject", action="append", choices=SUBJECTS, help="only these; may be repeated")
    parser.add_argument("--requests", type=int, help="requests counted per cell (default 50)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_REQUESTS} requests after {QUICK_WARM_UP}")
    parser.add_argument("--publish", action="store_true", help="put the figures into docs/ and benchmarks/results.json")
    parser.add_argument("--count", choices=[layer.name for layer in LAYERS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count:
        count_here(next(each for each in LAYERS if each.name == options.count), options.subject[0], options.requests)
    reason = callgrind.why_not()
    if reason:
        print(f"No instructions were counted: {reason}")
        return 1
    requests = options.requests or (QUICK_REQUESTS if options.quick else 50)
    shown = [subject for subject in SUBJECTS[1:] if not options.subject or subject in options.subject]
    known = publication.load().get("layers", {}).get("results", {})
    found: dict[str, dict[str, float | None]] = {}
    for layer in LAYERS:
        if options.layer and not any(part in layer.name for part in options.layer):
            continue
        found[layer.name] = compare(layer, shown, requests, QUICK_WARM_UP if options.quick else WARM_UP)
        print(text_of({layer.name: found[layer.name]}).splitlines()[-1], flush=True)
    print(text_of(found))
    if options.publish:
        results = {
            layer.name: {**known.get(layer.name, {}), **found.get(layer.name, {})}
            for layer in LAYERS
            if layer.name in known or layer.name in found
        }
        data = {"machine": publication.machine(), "requests": requests, "results": results}
        publication.publish("layers", data, text_of(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
