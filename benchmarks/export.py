"""What a finished span costs on its way to the wire, beside the stock route; and whether any is lost under load.

    python benchmarks/export.py [--rounds 21] [--spans 4096]           CPU time per span
    python benchmarks/export.py --count                                instructions per span (needs valgrind)
    python benchmarks/export.py --load 15000 [--seconds 10] [--threads 1]
    python benchmarks/export.py --publish                              all three, into docs/performance.md

Each route is a process of its own: ours is a Django process with `django_otel`
and its defaults; the stock one has the SDK's provider, batch processor and OTLP
exporter with gzip. Both send to a real OTLP/HTTP receiver in a third process,
which unpacks, parses and counts.

CPU time is the process's, of all its threads, kernel included: `span.end()`,
queue, redaction (ours alone), encoding, gzip, HTTP. Starting the span and
setting its attributes is not in it. Rounds are interleaved; what is printed is
the median, and of the ratio the median of the rounds' ratios. Instructions are
counted in user space only.
"""

from __future__ import annotations

import argparse
import gzip
import http.server
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import callgrind, publication

ROUTES = ("ours", "stock")
#: Spans per second under which nothing may be lost.
_PUBLISHED_RATE = 15_000
KINDS = ("server span, 10 attributes", "database span, 7 attributes")


# --- The receiver. ---


def receive() -> None:
    """An OTLP/HTTP receiver that counts spans; prints its port, and the count for each line on its standard input."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    counted = 0
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        # Connections are kept, as a collector keeps them.
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            nonlocal counted
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            message = ExportTraceServiceRequest.FromString(body)
            number = sum(len(scope.spans) for group in message.resource_spans for scope in group.scope_spans)
            with lock:
                counted += number
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    for _ in sys.stdin:
        with lock:
            print(counted, flush=True)


# --- The routes. ---


class Route:
    """A tracer, how to flush what it has made, and how many spans it has lost."""

    tracer: Any
    flush: Callable[[], object]

    def lost(self) -> int:
        raise NotImplementedError


class Ours(Route):
    def __init__(self, url: str) -> None:
        import django
        from django.conf import settings

        settings.configure(
            SECRET_KEY="benchmark",
            INSTALLED_APPS=["django_otel"],
            DATABASES={},
            OTEL={"SERVICE_NAME": "shop", "TRACES": {"EXPORTERS": ["otlp"], "ENDPOINT": url}},
        )
        django.setup()
        from django_otel import runtime

        self._runtime = runtime
        self.tracer = runtime.tracer()
        self.flush = lambda: runtime.flush(60)

    def lost(self) -> int:
        dropped = [family for family in self._runtime.collect() if family.name == "django_otel.spans.dropped"]
        return int(sum(point.value for family in dropped for point in family.points))


class Stock(Route):
    def __init__(self, url: str) -> None:
        from opentelemetry.exporter.otlp.proto.http import Compression
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider = TracerProvider(resource=Resource.create({"service.name": "shop"}), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=url, compression=Compression.Gzip)
        # The same bounds as ours have by default.
        processor = BatchSpanProcessor(exporter, max_queue_size=8192, max_export_batch_size=512)
        provider.add_span_processor(processor)
        self.tracer = provider.get_tracer("shop", "1.0")
        self.flush = lambda: processor.force_flush(60_000)

    def lost(self) -> int:
        # It does not count them; the receiver does.
        return 0


def start_spans(tracer: Any, kind: str, number: int) -> list[Any]:
    """Spans under way, with the attributes that a request and a query have."""
    from opentelemetry.trace import SpanKind

    if kind == KINDS[0]:
        return [
            tracer.start_span(
                "GET /orders/<int:pk>/",
                kind=SpanKind.SERVER,
                attributes={
                    "http.request.method": "GET",
                    "http.route": "/orders/<int:pk>/",
                    "http.response.status_code": 200,
                    # Not the same for any two of them.
                    "url.path": f"/orders/{next(_order_numbers)}/",
                    "url.scheme": "https",
                    "server.address": "shop.example.com",
                    "server.port": 443,
                    "user_agent.original": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
                    "network.protocol.version": "1.1",
                    "django.view": "shop.views.order_detail",
                },
            )
            for _ in range(number)
        ]
    return [
        tracer.start_span(
            "SELECT shop_order",
            kind=SpanKind.CLIENT,
            attributes={
                "db.system.name": "postgresql",
                "db.namespace": "shop",
                "db.operation.name": "SELECT",
                "db.collection.name": "shop_order",
                "db.query.text": 'SELECT "shop_order"."id", "shop_order"."total" FROM "shop_order" WHERE "id" = %s',
                "db.query.summary": "SELECT shop_order",
                "django.db.alias": "default",
            },
        )
        for _ in range(number)
    ]


_order_numbers = iter(range(1, 10**12))


def end_spans(route: Route, spans: list[Any]) -> None:
    for span in spans:
        span.end()
    route.flush()


def serve_route(name: str, url: str) -> None:
    """A route's process: one command per line, one JSON answer per line."""
    route: Route = Ours(url) if name == "ours" else Stock(url)
    # Everything that is built by the first batch.
    for kind in KINDS:
        end_spans(route, start_spans(route.tracer, kind, 1024))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(ANSWERS[command.pop("do")](route, **command)), flush=True)


def time_round(route: Route, kind: str, spans: int) -> float:
    """CPU time of this process per span, in microseconds."""
    made = start_spans(route.tracer, kind, spans)
    begun_ns = time.process_time_ns()
    end_spans(route, made)
    return (time.process_time_ns() - begun_ns) / spans / 1e3


def count_round(route: Route, kind: str, spans: int) -> float:
    """Instructions per span, in thousands: the difference of two lengths."""
    sets = iter([start_spans(route.tracer, kind, number) for number in (spans, 2 * spans)])
    few = callgrind.count(lambda: end_spans(route, next(sets)))
    many = callgrind.count(lambda: end_spans(route, next(sets)))
    return (many - few) / spans / 1e3


def load_round(route: Route, rate: int, seconds: float, threads: int) -> dict[str, float]:
    """Make `rate` spans per second, in small steps; what was made, lost, and the CPU time used."""
    step_s = 0.005
    per_step = max(1, round(rate * step_s / threads))
    made = [0] * threads

    def make(index: int) -> None:
        begun_s = time.monotonic()
        step = 0
        while time.monotonic() - begun_s < seconds:
            for span in start_spans(route.tracer, KINDS[step % 2], per_step):
                span.end()
            made[index] += per_step
            step += 1
            # When the machine is behind the pace is kept up, without a rest.
            time.sleep(max(0.0, begun_s + step * step_s - time.monotonic()))

    begun_s, begun_cpu_s = time.monotonic(), time.process_time()
    workers = [threading.Thread(target=make, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lasted_s = time.monotonic() - begun_s
    route.flush()
    return {
        "made": sum(made),
        "per_second": sum(made) / lasted_s,
        "lost": route.lost(),
        "cpu_us": (time.process_time() - begun_cpu_s) / sum(made) * 1e6,
    }


ANSWERS: dict[str, Callable[..., Any]] = {"time": time_round, "count": count_round, "load": load_round}


# --- Around them. ---


class Child:
    """A process that reads commands from its standard input."""

    def __init__(self, command: list[str], environ: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environ or {})}
        )

    def read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The process {self._process.args!r} ended with {self._process.wait()}.")
        return line

    def ask(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self.read())

    def close(self) -> None:
        self._process.terminate()
        # Waits, and closes the pipes.
        self._process.__exit__(None, None, None)


class Receiver(Child):
    def __init__(self) -> None:
        super().__init__([sys.executable, __file__, "--receive"])
        self.url = f"http://127.0.0.1:{int(self.read())}/v1/traces"

    def count(self) -> int:
        """How many spans have come so far."""
        return int(self.ask())


def start_route(name: str, url: str, folder: str | None = None) -> Child:
    command = [sys.executable, __file__, "--route", name, "--url", url]
    environ: dict[str, str] = {}
    if folder is not None:
        command = callgrind.command(command, folder)
        environ = callgrind.environment({}, folder)
    child = Child(command, environ)
    assert json.loads(child.read()) == "ready"
    return child


def compare(rounds: int, spans: int) -> dict[str, dict[str, float]]:
    """CPU microseconds per span of each kind of span: ours, stock, and the ratio.

    Errors: `RuntimeError` when spans are missing at the receiver.
    """
    receiver = Receiver()
    children = {name: start_route(name, receiver.url) for name in ROUTES}
    try:
        before = receiver.count()
        found: dict[tuple[str, str], list[float]] = {(name, kind): [] for name in ROUTES for kind in KINDS}
        for number in range(rounds):
            # The first in a round is not always the same.
            for name in ROUTES if number % 2 else reversed(ROUTES):
                for kind in KINDS:
                    found[name, kind].append(children[name].ask(do="time", kind=kind, spans=spans))
        expected = len(ROUTES) * len(KINDS) * rounds * spans
        arrived = receiver.count() - before
    finally:
        for child in (*children.values(), receiver):
            child.close()
    if arrived != expected:
        raise RuntimeError(f"{arrived} of {expected} spans arrived")
    result = {}
    for kind in KINDS:
        ours, stock = found["ours", kind], found["stock", kind]
        ratio = statistics.median(theirs / mine for mine, theirs in zip(ours, stock, strict=True))
        result[kind] = {
            "ours_us": round(statistics.median(ours), 1),
            # The least disturbed round: on a busy machine the median has the others' work in it.
            "ours_best_us": round(min(ours), 1),
            "stock_us": round(statistics.median(stock), 1),
            "stock_best_us": round(min(stock), 1),
            "ratio": round(ratio, 1),
        }
    return result


def count(spans: int) -> dict[str, dict[str, float]]:
    """Thousand instructions per span of each kind of span. Errors: `RuntimeError` without valgrind."""
    if reason := callgrind.why_not():
        raise RuntimeError(reason)
    receiver = Receiver()
    found: dict[tuple[str, str], float] = {}
    try:
        for name in ROUTES:
            with tempfile.TemporaryDirectory() as folder:
                child = start_route(name, receiver.url, folder)
                for kind in KINDS:
                    found[name, kind] = child.ask(do="count", kind=kind, spans=spans)
                child.close()
    finally:
        receiver.close()
    return {
        kind: {
            "ours_ki": round(found["ours", kind], 1),
            "stock_ki": round(found["stock", kind], 1),
            "ratio": round(found["stock", kind] / found["ours", kind], 1),
        }
        for kind in KINDS
    }


def load(rate: int, seconds: float, threads: int) -> dict[str, dict[str, float]]:
    """What each route makes of `rate` spans per second: made, per second, arrived, counted as dropped, CPU time."""
    found = {}
    for name in ROUTES:
        receiver = Receiver()
        child = start_route(name, receiver.url)
        try:
            before = receiver.count()
            result = child.ask(do="load", rate=rate, seconds=seconds, threads=threads)
            arrived = receiver.count() - before
        finally:
            child.close()
            receiver.close()
        found[name] = {**result, "arrived": arrived}
    return found


# --- Text. ---


def cost_text(times: dict[str, dict[str, float]], counts: dict[str, dict[str, float]]) -> str:
    """The figures of `compare` and `count` as Markdown; either may be empty."""
    parts = []
    if times:
        rows = [
            [
                kind, f"{of['ours_us']:.1f}", f"{of['ours_best_us']:.1f}", f"{of['stock_us']:.1f}",
                f"{of['stock_best_us']:.1f}", f"1/{of['ratio']:.1f}",
            ]
            for kind, of in times.items()
        ]  # fmt: skip
        head = ["CPU microseconds per span", "ours", "best round", "stock", "best round", "ours against stock"]
        parts.append(publication.table(head, rows))
    if counts:
        rows = [
            [kind, f"{of['ours_ki']:.1f}", f"{of['stock_ki']:.1f}", f"1/{of['ratio']:.1f}"]
            for kind, of in counts.items()
        ]
        parts.append(publication.table(["thousand instructions per span", "ours", "stock", "ours against stock"], rows))
    return "\n\n".join(parts)


def load_text(rate: int, found: dict[str, dict[str, float]]) -> str:
    """The figures of `load` as Markdown."""
    rows = [
        [
            name, f"{of['made']:.0f}", f"{of['per_second']:.0f}", f"{of['made'] - of['arrived']:.0f}",
            f"{of['lost']:.0f}" if name == "ours" else "not counted", f"{of['cpu_us']:.1f}",
        ]
        for name, of in found.items()
    ]  # fmt: skip
    head = [f"{rate} spans/s wanted", "made", "made per second", "lost", "counted as dropped", "us CPU per span"]
    return publication.table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--spans", type=int, default=4096, help="per round; more than 8192 would not fit the queue")
    parser.add_argument("--count", action="store_true", help="instructions instead of time")
    parser.add_argument("--load", type=int, metavar="SPANS_PER_SECOND")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--publish", action="store_true", help="all of it, into docs/ and benchmarks/results.json")
    parser.add_argument("--receive", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--route", choices=ROUTES, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.receive:
        receive()
    elif options.route:
        serve_route(options.route, options.url)
    elif options.publish:
        publish(options)
    elif options.count:
        print(cost_text({}, count(min(options.spans, 2048))))
    elif options.load:
        print(load_text(options.load, load(options.load, options.seconds, options.threads)))
    else:
        print(cost_text(compare(options.rounds, options.spans), {}))


def publish(options: argparse.Namespace) -> None:
    """Measure everything and put it into the documentation."""
    rate = options.load or _PUBLISHED_RATE
    load_per_core = round(os.getloadavg()[0] / (os.cpu_count() or 1), 1)
    times = compare(options.rounds, options.spans)
    counts = count(min(options.spans, 2048))
    loads = load(rate, options.seconds, options.threads)
    note = (
        f"{options.rounds} interleaved rounds; {load_per_core} processes waited for each core when they began. "
        "Every span arrived in both."
    )
    text = "\n\n".join([cost_text(times, counts), note, load_text(rate, loads)])
    data = {
        "machine": publication.machine(), "rounds": options.rounds, "load_per_core": load_per_core,
        "times": times, "instructions": counts, "load": {str(rate): loads},
    }  # fmt: skip
    publication.publish("export", data, text)
    print(text)


if __name__ == "__main__":
    main()
