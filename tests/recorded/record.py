"""Records what the demo shop's /metrics says while each fault of the alerts is caused, for `promtool test rules`.

    python -m tests.recorded.record [ALERT ...]

Writes tests/recorded/faults.json: for each fault the series that the rules read, a scrape for each minute. A scrape
stands for a minute, so that an hour is recorded in a few seconds: what happens between two scrapes is what a quiet shop
does in a minute. The numbers are those of real processes: gunicorn with two workers, and what they are made to do.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from django_otel.operations.monitoring import rules
from tests import services

OUT = Path(__file__).parent / "faults.json"
MINUTES = 42
HEALTHY = ("/", "/order/", "/api/products/")
_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(\{.*\})? (\S+)$")
#: Names of series in the alerts and recording rules.
NAMES = set(
    re.findall(
        r"\b(?:http|django|db|process)_\w+", " ".join([a.expr for a in rules.ALERTS] + [e for _, e in rules.RECORDED])
    )
)


@dataclass
class Case:
    """A fault: how the shop is started, and what is done each minute beside the healthy requests."""

    #: Paths asked for each minute; `{minute}` is filled in.
    paths: tuple[str, ...] = ()
    #: Once, before the first minute.
    first: tuple[str, ...] = ()
    #: How long is waited after that, in seconds.
    wait_s: float = 0.0
    #: Between two scrapes at least.
    pause_s: float = 0.0
    healthy: int = 20
    headers: Callable[[], dict[str, str]] = dict
    otel: dict[str, object] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    server: tuple[str, ...] = ("--workers", "2", "--worker-class", "gthread", "--threads", "4")
    #: A module; all but gunicorn with two workers of their own.
    program: str = "gunicorn"
    #: Requests that are under way at each scrape.
    under_way: tuple[int, str] = (0, "")
    #: Commands of manage.py before the server is started, and environment for them.
    commands: tuple[tuple[str, ...], ...] = ()
    commands_env: dict[str, str] = field(default_factory=dict)
    sql: str = ""
    #: Scraped from a process of its own, as the workers have no time.
    is_served_apart: bool = False
    #: Whether the processor time between two scrapes is shown as if it had gone on for a minute. Wants a free core.
    stretches_cpu: bool = False
    #: Alerts that it may raise as well.
    also: tuple[str, ...] = ()


CASES = {
    "": Case(commands=(("restock",),), paths=("/order-now/?email=ada@shop.example",)),
    "DjangoErrorRatioHigh": Case(paths=("/unavailable/?fail",) * 2, also=("DjangoErrorBudgetBurning",)),
    "DjangoRouteErrorRatioHigh": Case(
        paths=("/unavailable/?fail",) * 4, healthy=110, also=("DjangoErrorBudgetBurning",)
    ),
    "DjangoErrorBudgetBurning": Case(paths=("/unavailable/?fail", *(("/unavailable/",) * 9)), healthy=30),
    "DjangoLatencyHigh": Case(paths=("/warehouse/?seconds=1.2",) * 2),
    "DjangoSaturated": Case(
        under_way=(70, "/warehouse/?seconds=0.7"), healthy=5,
        server=("--workers", "2", "--worker-class", "gthread", "--threads", "60"),
    ),
    "DjangoUnhandledExceptions": Case(paths=("/error/",) * 2, healthy=60),
    "DjangoDatabaseErrors": Case(paths=("/wrong-statement/",) * 2),
    "DjangoDatabaseUnreachable": Case(paths=("/database-gone/",) * 2),
    "DjangoCacheErrors": Case(paths=("/cache-gone/",) * 2),
    "DjangoOtelExportFailing": Case(
        env={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:{closed}", "OTEL_BSP_SCHEDULE_DELAY": "100"}, pause_s=0.3,
        also=("DjangoOtelSpansDropped",),
    ),
    "DjangoOtelSpansDropped": Case(
        env={
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:{closed}", "OTEL_BSP_MAX_QUEUE_SIZE": "4",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4", "OTEL_BSP_SCHEDULE_DELAY": "100",
        },
        also=("DjangoOtelExportFailing",),
    ),
    "DjangoOtelCardinalityOverflow": Case(otel={"METRICS": {"CARDINALITY_LIMIT": 3}}, paths=("/slow-{minute}/",)),
    "DjangoOtelWorkersNotShared": Case(otel={"METRICS": {"SHARED_DIR": "/proc/self"}}),
    "DjangoNPlusOneQueries": Case(first=("/order-now/?email=ada@shop.example",) * 3, paths=("/statement/",)),
    "DjangoMigrationsUnapplied": Case(
        sql="DELETE FROM django_migrations WHERE id = (SELECT max(id) FROM django_migrations)"
    ),
    "DjangoTasksFailing": Case(paths=("/order-now/?email=full@shop.example", "/order-now/?email=ada@shop.example")),
    "DjangoTasksWaiting": Case(
        first=(
            *(("/occupy/?seconds=64",) * 2), *(("/order-now/?email=ada@shop.example", "/occupy/?seconds=0.4") * 60),
        ),
        wait_s=66.0, pause_s=0.4, server=("--workers", "1", "--worker-class", "gthread", "--threads", "4"),
    ),
    "DjangoCommandLate": Case(commands=(("restock",),), commands_env={"RECORDED_CLOCK_S": str(-27 * 3600)}),
    "DjangoWorkersBusy": Case(
        under_way=(4, "/warehouse/?seconds=0.6"), healthy=0, server=("--workers", "2"), is_served_apart=True,
        pause_s=0.3,
    ),
    "DjangoWorkersBusy: threads": Case(
        under_way=(4, "/compute/?seconds=0.3"), healthy=0, is_served_apart=True, stretches_cpu=True, pause_s=1.0,
        server=("--workers", "1", "--worker-class", "gthread", "--threads", "4"), also=("DjangoLatencyHigh",),
    ),
    # In each process a request is under way all the time, and there is room for more.
    "healthy: threads": Case(under_way=(4, "/warehouse/?seconds=0.6"), healthy=3),
    "healthy: event loops": Case(under_way=(6, "/warehouse/?seconds=0.6"), healthy=3, program="uvicorn", server=()),
    "healthy: granian": Case(
        under_way=(4, "/warehouse/?seconds=0.6"), healthy=3, program="granian",
        server=("--interface", "wsgi", "--blocking-threads", "8"),
    ),
    "DjangoRequestsWaiting": Case(headers=lambda: {"X-Request-Start": f"t={time.time() - 2:.3f}"}),
}  # fmt: skip


def alert_of(name: str) -> str:
    """Return the alert that a case raises, "" for none; several cases of one differ in what follows a colon."""
    return name.partition(":")[0].replace("healthy", "")


def record(case: Case) -> list[dict[str, str]]:
    """Return the series of one fault."""
    with tempfile.TemporaryDirectory(prefix="django_otel-record-") as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        env = prepare(folder, case.otel, case.env)
        if case.sql:
            with contextlib.closing(sqlite3.connect(folder / "shop.sqlite3")) as database, database:
                database.execute(case.sql)
        port = stack.enter_context(serve(env, folder / "log", *case.server, program=case.program))
        scraped = port
        if case.is_served_apart:
            scraped = services.free_port()
            command = [sys.executable, "-m", "django", "otel", "serve", "--port", str(scraped)]
            stack.enter_context(services.running(command, env, folder / "serve-log"))
            services.wait_until(lambda: services.is_listening(scraped), 60, "otel serve")
        for words in case.commands:
            manage({**env, **case.commands_env}, *words)
        return watch(case, port, scraped)


def prepare(folder: Path, otel: Mapping[str, object], extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a migrated shop whose files are in the folder."""
    (folder / "shared").mkdir(mode=0o700)
    closed = services.free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "DATABASE_", "REDIS_"))}
    env |= {
        "DJANGO_SETTINGS_MODULE": "tests.recorded.settings", "RECORDED_FOLDER": str(folder), "DJANGO_DEBUG": "0",
        "CLOSED_PORT": str(closed), "DATABASE_URL": f"sqlite:///{folder / 'shop.sqlite3'}",
        "RECORDED_OTEL": json.dumps(otel), **{name: text.format(closed=closed) for name, text in extra.items()},
    }  # fmt: skip
    manage(env, "migrate", "--verbosity", "0")
    return env


@contextlib.contextmanager
def serve(env: dict[str, str], log: Path, *options: str, program: str = "gunicorn") -> Iterator[int]:
    """Serve the shop; gives its port."""
    port = services.free_port()
    wsgi = "example_project.wsgi:application"
    arguments = {
        "gunicorn": [wsgi, "--bind", f"127.0.0.1:{port}", "--graceful-timeout", "2"],
        "uvicorn": ["example_project.asgi:application", "--port", str(port), "--workers", "2"],
        "granian": [wsgi, "--port", str(port), "--workers", "2"],
    }
    with services.running([sys.executable, "-m", program, *arguments[program], *options], env, log):
        services.wait_until(lambda: services.is_listening(port), 60, program)
        yield port


def manage(env: dict[str, str], *words: str) -> None:
    services.run_django(env, *words)


def get(port: int, path: str, headers: dict[str, str] | None = None) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers=headers or {})
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def watch(case: Case, port: int, scraped: int) -> list[dict[str, str]]:
    """Make traffic and scrape, minute by minute."""
    started_s = time.time()
    found: dict[str, list[float | None]] = {}
    clock = Stretched()
    with ThreadPoolExecutor(4) as pool, kept_under_way(case, port):
        list(pool.map(lambda path: get(port, path), case.first))
        time.sleep(case.wait_s)
        for minute in range(MINUTES):
            paths = [path.format(minute=minute) for path in case.paths]
            paths += [HEALTHY[number % len(HEALTHY)] for number in range(case.healthy)]
            list(pool.map(lambda path: get(port, path, case.headers()), paths))
            time.sleep(case.pause_s)
            for name, value in samples(get(scraped, "/metrics")):
                # promtool's clock begins at 0.
                value = value - started_s if name.startswith("django_command_last_success") else value
                if case.stretches_cpu and name.startswith("process_cpu_time"):
                    value = clock.stretch(name, value)
                values = found.setdefault(name, [None] * minute)
                values.append(value)
            for values in found.values():
                values.extend([None] * (minute + 1 - len(values)))
    return [{"series": name, "values": compress(values)} for name, values in sorted(found.items())]


class Stretched:
    """Counters whose growth between two scrapes is shown as if it had gone on for a minute."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, float, float]] = {}

    def stretch(self, name: str, value: float) -> float:
        now_s = time.monotonic()
        before_s, before, shown = self._last.get(name, (now_s - 60, value, 0.0))
        shown += (value - before) * 60 / (now_s - before_s)
        self._last[name] = now_s, value, shown
        return shown


@contextlib.contextmanager
def kept_under_way(case: Case, port: int) -> Iterator[None]:
    """Keep as many requests under way as the case says."""
    number, path = case.under_way
    if not number:
        yield
        return
    is_over = False

    def ask_on() -> None:
        while not is_over:
            with contextlib.suppress(OSError, http.client.HTTPException):
                get(port, path)

    with ThreadPoolExecutor(number) as pool:
        get(port, path)
        for _ in range(number):
            pool.submit(ask_on)
        time.sleep(2)
        try:
            yield
        finally:
            is_over = True


def samples(page: str) -> Iterator[tuple[str, float]]:
    """The series of a page that rules read."""
    for line in page.splitlines():
        match = _LINE.match(line)
        if match and match[1] in NAMES:
            yield f"{match[1]}{match[2] or ''}", float(match[3])


def compress(values: list[float | None]) -> str:
    """Return values in promtool's notation: runs of equal steps are one word each."""
    words, position = [], 0
    while position < len(values):
        value = values[position]
        end = position + 1
        if value is None:
            while end < len(values) and values[end] is None:
                end += 1
            words.append(f"_x{end - position}")
        else:
            step = round(values[end] - value, 6) if end < len(values) and values[end] is not None else 0.0  # type: ignore[operator]
            while end < len(values) and values[end] is not None and round(values[end] - values[end - 1], 6) == step:  # type: ignore[operator]
                end += 1
            text = f"{round(value, 6):.15g}"
            words.append(text if end == position + 1 else f"{text}{step:+.15g}x{end - position - 1}")
        position = end
    return " ".join(words)


def main(names: list[str]) -> None:
    known = json.loads(OUT.read_text()) if OUT.exists() and names else {}
    for name, case in CASES.items():
        if not names or name in names or (name == "" and "healthy" in names):
            began_s = time.monotonic()
            known[name] = record(case)
            print(f"{name or 'healthy'}: {len(known[name])} series, {time.monotonic() - began_s:.0f} s", flush=True)
    lines = [
        f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(series) for series in known[name]) + "\n]"
        for name in CASES
        if name in known
    ]
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
