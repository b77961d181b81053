"""What the console costs: the request path, the writer, and its pages over a full store.

    python benchmarks/console.py

Fills a store with 10 000 traces of 12 spans (two services, 600 statements, an exception in every twentieth), one of
1 000 spans, 10 000 log records and 500 issues, asks for every page through Django's test client with signed-in staff,
and fails when a median or the CPU time of any request is above 200 ms, of the trace of 1 000 spans 250 ms (a single
wall time says how busy the machine is). Beside it: what one `append` costs a request per span,
what redacting, packing and writing cost the thread behind it (CPU time of the process, not wall time), and how large
the files are. Times depend on the machine; the bounds do not.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

TRACES = 10_000
SPANS = 12
ROUNDS = 9
LONGEST_PAGE_MS = 200.0
LARGE_SPANS = 1000
LONGEST_LARGE_MS = 250.0
LOGS = 10_000
ISSUES = 500
_STATEMENT = (
    'SELECT "a"."id", "a"."b%d", '
    + ", ".join(f'"a"."column_{number}"' for number in range(14))
    + ' FROM "shop_order%d" '
    'AS "a" INNER JOIN "shop_customer" ON ("a"."customer_id" = "shop_customer"."id") WHERE "a"."id" = %%s LIMIT 21'
)
ROUTES = [f"/area{number % 7}/page{number}/<int:pk>/" for number in range(200)]

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="django_otel-console-"))
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    os.environ["TEST_SQLITE"] = str(folder / "app.sqlite3")
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0, run_syncdb=True)
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    from django_otel import runtime
    from django_otel.config.parse import parse
    from django_otel.redaction.span_cleaner import SpanCleaner
    from django_otel.tracestore.items import StoredSample
    from django_otel.tracestore.processor import StoreProcessor

    config = parse(
        {"CONSOLE": {"ENABLED": True, "PATH": str(folder / "store"), "MAX_TRACES": TRACES, "MAX_MB": 256}}, {}
    )
    resource = Resource({"service.name": "shop", "service.instance.id": "one"})
    lost: list[tuple[int, str]] = []
    console = StoreProcessor(
        config, "benchmark", clean=SpanCleaner(runtime.current().scrubber), scrubber=runtime.current().scrubber,
        resource=lambda: resource,
        collect=runtime.collect, group=lambda: None, facts=dict, on_drop=lambda *drop: lost.append(drop),
    )  # fmt: skip
    runtime.current().console = console
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    kept: list[object] = []
    provider.add_span_processor(_Keeper(kept))
    tracer = provider.get_tracer("django_otel")

    # As in an application, the same statements occur again and again.
    for number in range(200):
        record_trace(tracer, number % 20)
    put_us = per_item_us(lambda: [console.worker._queue.append(span) for span in kept], len(kept))  # noqa: SLF001 (measures the inside)
    console.worker._queue.clear()  # noqa: SLF001 (measures the inside)
    store = console.store()
    convert_us = per_item_us(lambda: console._preparer.prepare(kept), len(kept))  # noqa: SLF001 (measures the inside)
    converted = console._preparer.prepare(kept)  # noqa: SLF001 (measures the inside)
    write_us = per_item_us(lambda: store.write(converted, lost_nothing), len(kept))
    store.clear()

    print(f"filling the store with {TRACES} traces of {SPANS} spans", file=sys.stderr)
    for begin in range(0, TRACES, 40):
        kept.clear()
        for number in range(begin, begin + 40):
            record_trace(tracer, number)
        store.write(console._preparer.prepare(kept), lost_nothing)  # noqa: SLF001 (measures the inside)
    now_s = time.time()
    for ago_s in range(181 * 60, 0, -10):
        counts = (181 * 60 - ago_s) // 10
        routes = {
            route: {"duration": [counts * 3, counts * 0.2, *([counts] * 3), *([0] * 12)], "errors": counts // 9,
                    "queries": [counts * 3, counts * 9.0, *([counts] * 3), *([0] * 9)]}
            for route in ROUTES
        }  # fmt: skip
        bounds = {"duration": " ".join(map(str, range(14))), "queries": " ".join(map(str, range(11)))}
        store.write([StoredSample("s", "shop", now_s - ago_s, {"routes": routes, "bounds": bounds})], lost_nothing)

    kept.clear()
    record_trace(tracer, 1, LARGE_SPANS)
    large_id = f"{kept[0].context.trace_id:032x}"
    store.write(console._preparer.prepare(kept), lost_nothing)  # noqa: SLF001 (measures the inside)
    write_records(store, large_id, now_s)

    # What filling has left in memory is not for a page to walk through.
    gc.collect()
    gc.freeze()
    medians = measure_pages(console, large_id)
    size_mb = sum(file.stat().st_size for file in store.path.parent.iterdir()) / (1 << 20)
    with store.connection() as connection:
        (stored,) = connection.execute("SELECT count(*) FROM trace").fetchone()
    title = f"page, {stored} traces stored ({size_mb:.1f} MiB)"
    print(f"\n| {title} | median ms | slowest ms | CPU, median ms | CPU, slowest ms |\n|---|---|---|---|---|")
    for name, times_ms in medians.items():
        print(f"| {name} | {' | '.join(f'{ms:.0f}' for ms in times_ms)} |")
    print("\n| per span | CPU us |\n|---|---|")
    print(f"| on the request path: one append | {put_us:.2f} |")
    print(f"| in the writer's thread: redact and convert | {convert_us:.0f} |")
    print(f"| in the writer's thread: pack and write | {write_us:.0f} |")
    too_slow = [
        name
        for name, (median_ms, _, _, cpu_ms) in medians.items()
        if max(median_ms, cpu_ms) > (LONGEST_LARGE_MS if name.startswith("large") else LONGEST_PAGE_MS)
    ]
    if stored != TRACES or too_slow:
        print(f"\nNot held: {stored} traces stored, slower than {LONGEST_PAGE_MS:.0f} ms: {too_slow}")
        return 1
    return 0


class _Keeper:
    """Keeps finished spans."""

    def __init__(self, kept: list[object]) -> None:
        self._kept = kept

    def on_start(self, span: object, parent_context: object = None) -> None:
        pass

    def _on_ending(self, span: object) -> None:
        pass

    def on_end(self, span: object) -> None:
        self._kept.append(span)

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True


def lost_nothing(count: int, reason: str) -> None:
    raise SystemExit(f"{count} items lost: {reason}")


def write_records(store, trace_id: str, now_s: float) -> None:
    """Log records, of which a hundredth belong to the trace, and issues."""
    from django_otel.redaction.scrub import Scrubber
    from django_otel.tracestore.errors import Frame, PendingError, Raised, SeenIn
    from django_otel.tracestore.issues import StoredErrors
    from django_otel.tracestore.items import StoredLog

    logs = []
    for number in range(LOGS):
        level, severity = (("INFO", 9), ("WARNING", 13), ("ERROR", 17))[number % 3]
        at_ns = int((now_s - number / 10) * 1e9)
        record = {
            "time": at_ns, "span": "0" * 16, "level": level, "severity": severity, "logger": f"shop.part{number % 9}",
            "body": f"Order {number} of customer {number % 97} has been charged with {number * 3 % 1000} EUR",
            "service": "shop",
        }  # fmt: skip
        logs.append(StoredLog(trace_id if number % 100 == 0 else "0" * 32, at_ns, "shop", record))
    store.write(logs, lost_nothing)
    errors = []
    for number in range(ISSUES):
        function = f"charge{number}"
        chain = (Raised("ValueError", f"order {number} is lost", (Frame("shop.orders", function, "orders.py", 7),)),)
        first_route = number % 100
        errors.append(
            PendingError(
                "ValueError",
                "shop.orders",
                function,
                chain,
                count=40,
                first_s=now_s - 86_000,
                last_s=now_s - number,
                routes=dict.fromkeys(ROUTES[first_route : first_route + 20], 1),
                traces=[SeenIn(trace_id, "1" * 16, now_s, ROUTES[first_route])],
                steps={int(now_s) // 900 * 900 - 900 * step: step + 1 for step in range(90)},
            )
        )
    for release in ("1.0.0", "1.1.0"):
        store.write([StoredErrors("shop", release, now_s, errors, Scrubber())], lost_nothing)


def record_trace(tracer, number: int, spans: int = SPANS) -> None:
    """A request with queries, some equal, a call to another service, perhaps an exception."""
    from opentelemetry.trace import SpanKind, Status, StatusCode

    route = ROUTES[number % len(ROUTES)]
    is_error = number % 20 == 0
    with tracer.start_as_current_span(
        f"GET {route}", kind=SpanKind.SERVER,
        attributes={
            "http.request.method": "GET", "http.route": route, "url.path": f"/area/{number}/", "url.scheme": "https",
            "http.response.status_code": 500 if is_error else 200, "server.address": "shop.example",
            "user_agent.original": "Mozilla/5.0 (X11; Linux x86_64)", "django.view": "shop.views.page",
        },
    ) as span:  # fmt: skip
        for query in range(spans - 2):
            with tracer.start_as_current_span(
                "SELECT shop_order", kind=SpanKind.CLIENT,
                attributes={
                    "db.system.name": "postgresql", "db.namespace": "shop", "db.operation.name": "SELECT",
                    "db.query.summary": "SELECT shop_order", "db.collection.name": "shop_order",
                    "db.query.text": _STATEMENT % (query // 4 % 3, number % 200),
                },
            ):  # fmt: skip
                pass
        with tracer.start_as_current_span("order.checked", attributes={"business.event": f"event{number % 5}"}):
            pass
        if is_error:
            try:
                raise ValueError(f"order {number} is lost")
            except ValueError as error:
                span.record_exception(error)
                span.set_status(Status(StatusCode.ERROR))


def per_item_us(run: Callable[[], object], count: int) -> float:
    """CPU time of this process, the best of some rounds, in microseconds per item."""
    best = float("inf")
    for _ in range(ROUNDS):
        began_s = time.process_time()
        run()
        best = min(best, time.process_time() - began_s)
    return best / count * 1e6


def measure_pages(console, large_id: str) -> dict[str, tuple[float, float, float, float]]:
    """Of each page: median and slowest wall time, median and slowest CPU time, in milliseconds."""
    from django.contrib.auth.models import User
    from django.test import Client

    from django_otel.tracestore.reader import TraceFilter, read

    with read(console.store()) as reader:
        rows = reader.list_traces(TraceFilter(has_error=True), limit=1).rows
        trace_id = rows[0].trace_id
        span_id = reader.trace(trace_id).spans[0]["id"]
        (issue,) = reader.connection.execute("SELECT max(id) FROM issue").fetchone()
    client = Client(headers={"host": "localhost"})
    client.force_login(User.objects.create_superuser("admin", password="x"))
    console_pages = "/admin/django_otel"
    traces, dashboard = f"{console_pages}/trace/", f"{console_pages}/dashboard/"
    pages = {
        "traces": traces,
        "traces, last page": f"{traces}?page=200",
        "traces, errors of a route above 1 us": f"{traces}?error=1&min_ms=0.001&route=/area1/",
        "traces, by event and trace id": f"{traces}?event=event3&trace={trace_id[5:9]}",
        "trace": f"{traces}{trace_id}/",
        "trace, a span opened": f"{traces}{trace_id}/?span={span_id}",
        "large trace of 1 000 spans": f"{traces}{large_id}/",
        "large trace, next rows": f"{traces}{large_id}/?rows=2",
        "large trace, filtered": f"{traces}{large_id}/?find=db.query.text~shop_order&kind=database",
        "slow routes, of all requests": f"{console_pages}/slow/?at=1h",
        "slow routes, of stored traces": f"{console_pages}/slow/?at=1m&since=30d",
        "queries, a plan": f"{console_pages}/queries/explain/?statement=1",
        "traces, a text in any span": f"{traces}?q=shop_order77",
        "traces, an attribute": f"{traces}?q=db.query.text~shop_order77",
        "traces, an attribute that no span has": f"{traces}?q=business.total>100",
        "traces, columns": f"{traces}?q=status>=500 duration>0.001ms queries>2&sort=-duration",
        "compare two traces": f"{traces}{trace_id}/compare/?with={large_id}",
        "traces of an object": f"{traces}object/shop.order/7/",
        "errors, 500 issues": f"{console_pages}/errors/?state=all",
        "errors, by text": f"{console_pages}/errors/?state=all&q=charge33&sort=-count",
        "error": f"{console_pages}/errors/{issue}/",
        "queries, 600 statements": f"{console_pages}/queries/",
        "queries, repeated, with a text": f"{console_pages}/queries/?repeated=1&q=shop_order7&since=2h",
        "logs, 10 000 records": f"{console_pages}/logs/",
        "logs, words in none of 10 000 records": f"{console_pages}/logs/?q=no+such+text",
        "logs, a word, level and logger": f"{console_pages}/logs/?q=customer+33&level=WARNING&logger=shop",
        "tasks": f"{console_pages}/tasks/",
        "instruments": f"{console_pages}/instruments/",
        **{
            f"dashboard, {minutes} min, {len(ROUTES)} routes": f"{dashboard}?minutes={minutes}"
            for minutes in (5, 30, 180)
        },
        "dashboard, one route": f"{dashboard}?minutes=180&route={ROUTES[1]}",
    }
    found = {}
    for name, path in pages.items():
        times_ms, cpu_ms = [], []
        for _ in range(ROUNDS):
            began_s, began_cpu_s = time.perf_counter(), time.thread_time()
            answer = client.get(path)
            times_ms.append((time.perf_counter() - began_s) * 1000)
            cpu_ms.append((time.thread_time() - began_cpu_s) * 1000)
            assert answer.status_code == 200, (path, answer.status_code)
        found[name] = statistics.median(times_ms), max(times_ms), statistics.median(cpu_ms), max(cpu_ms)
    return found


if __name__ == "__main__":
    sys.exit(main())
