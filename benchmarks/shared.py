"""The scrape over all workers, beside prometheus_client's multiprocess mode on the same numbers.

    python benchmarks/shared.py [--workers 8] [--series 2000] [--rounds 15] [--no-http]

Every worker has the request histogram (15 buckets and a sum) with that many
label sets: the same ones in each worker, made in another order, and once
different ones in each. Both sides are scraped in turn, so that a noisy machine
disturbs both alike; "first" is what a process needs that has never scraped
before. Then a cell update in plain and in shared memory, and what the numbers
take in the folder and in each process. Nothing is asserted: the numbers stand
in the documentation.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

RESOURCE = {"service.name": "shop"}
_METRIC = "http.server.request.duration"
_VALUES_PER_SERIES = 5


def attributes_of(number: int) -> dict[str, object]:
    return {
        "http.request.method": "GET",
        "http.route": f"/orders/{number}/<int:pk>/",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "network.protocol.version": "1.1",
    }


def values_of(number: int) -> list[float]:
    return [(number * 7919 + count * 104729) % 10007 / 1000.0 for count in range(_VALUES_PER_SERIES)]


def numbers_of(worker: int, series: int, *, same: bool) -> list[int]:
    """The label sets of a worker, in an order of its own: no two workers answer the same requests first."""
    numbers = [number if same else worker * series + number for number in range(series)]
    random.Random(worker).shuffle(numbers)
    return numbers


# --- Filling. ---


def fill_ours(store: Any, numbers: Sequence[int]) -> None:
    store.cardinality_limit = 10**6
    histogram = store.catalogued(_METRIC)
    for number in numbers:
        series = histogram.series(attributes_of(number))
        for value in values_of(number):
            series.observe(value)


def fill_theirs(numbers: Sequence[int], registry: Any = None) -> None:
    """Needs PROMETHEUS_MULTIPROC_DIR before the first import of prometheus_client, for its multiprocess mode."""
    from prometheus_client import CollectorRegistry, Histogram

    from django_otel.metrics.catalogue import CATALOGUE

    names = [key.replace(".", "_") for key in attributes_of(0)]
    histogram = Histogram(
        "http_server_request_duration_seconds",
        CATALOGUE[_METRIC].description,
        names,
        buckets=CATALOGUE[_METRIC].bounds,
        registry=registry or CollectorRegistry(),
    )
    for number in numbers:
        child = histogram.labels(*map(str, attributes_of(number).values()))
        for value in values_of(number):
            child.observe(value)


def run_child(work: Callable[[], object]) -> Any:
    """What `work` returns in a forked child, which is gone afterwards."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.write(writing, json.dumps(work()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    path = Path(tempfile.mkdtemp(prefix="django-otel-benchmark-", dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path)


# --- (a) The scrape. ---


def time_ms(function: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    function()
    return (time.perf_counter() - started_s) * 1e3


def print_row(name: str, first: Sequence[float], later: Sequence[float], extra: str = "") -> None:
    print(
        f"  {name:34}{statistics.median(first):9.1f}{max(first):9.1f}{statistics.median(later):9.1f}{max(later):9.1f}"
        f"  {extra}"
    )


def bench_scrape(workers: int, series: int, rounds: int, *, same: bool) -> None:
    from django_otel.metrics import exposition, negotiation, page_groups, prometheus_names
    from django_otel.metrics.store import CellStore
    from django_otel.multiprocess.memory import SharedMemory
    from django_otel.multiprocess.reader import Reader

    with folder() as ours_at, folder() as theirs_at:

        def fill_slot(worker: int) -> int:
            fill_ours(CellStore(memories[worker]), numbers_of(worker, series, same=same))
            return 0

        def fill_files(worker: int) -> int:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(theirs_at)
            fill_theirs(numbers_of(worker, series, same=same))
            return 0

        memories = [SharedMemory(ours_at) for _ in range(workers)]
        for worker in range(workers):
            fill_slot(worker)
            run_child(lambda: fill_files(worker))  # noqa: B023 (called at once)

        def page(reader: Reader) -> bytes:
            return exposition.render(reader.merge(), openmetrics=False, resource_attributes=RESOURCE)

        def first() -> float:
            # What a process keeps between two scrapes: the reader's plan and the exposition's labels.
            page_groups._cache.labels = page_groups._Labels()  # noqa: SLF001 (measures the inside)
            prometheus_names._text_in_label.cache_clear()  # noqa: SLF001 (measures the inside)
            return time_ms(lambda: page(Reader(ours_at)))

        def theirs() -> bytes:
            from prometheus_client import CollectorRegistry, generate_latest, multiprocess

            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry, str(theirs_at))
            return generate_latest(registry)

        reader = Reader(ours_at)
        text = page(reader)
        found: dict[str, list[float]] = {"first": [], "later": [], "theirs": [], "merge": [], "gzip": []}
        theirs_rounds = max(3, rounds // 3) if same else 1
        for number in range(rounds):
            found["first"].append(first())
            page(reader)
            found["later"].append(time_ms(lambda: page(reader)))
            found["merge"].append(time_ms(reader.merge))
            found["gzip"].append(time_ms(lambda: negotiation.compress(text)))
            if number < theirs_rounds:
                found["theirs"].append(time_ms(theirs))
        kind = "the same" if same else "different"
        print(
            f"\nmerge and render, {workers} workers x {series} series, {kind} label sets ({len(text) / 1e6:.1f} MB), ms"
        )
        print(f"  {'':34}{'first':>9}{'worst':>9}{'median':>9}{'worst':>9}")
        ratio = statistics.median(a / b for a, b in zip(found["theirs"], found["later"], strict=False))
        ratio_first = statistics.median(a / b for a, b in zip(found["theirs"], found["first"], strict=False))
        print_row("ours", found["first"], found["later"], f"{ratio:.0f} times faster, {ratio_first:.1f} times at first")
        print_row("of it the merge", found["merge"][:1], found["merge"])
        print_row("prometheus_client, multiprocess", found["theirs"], found["theirs"])
        print_row("gzip, when the scraper asks for it", found["gzip"], found["gzip"])
        for memory in memories:
            memory.close()


# --- (a) The same over HTTP. ---

_SITE = """
import os, sys
sys.path.insert(0, {root!r})
import django
from django.conf import settings
settings.configure(
    ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="benchmark", DATABASES={{}},
    INSTALLED_APPS=["django_otel"],
    OTEL={{"SERVICE_NAME": "shop", "METRICS": {{"SHARED_DIR": {shared!r}}}, "METRICS_VIEW": {{"ALLOW": "all"}},
          "SAMPLING": {{"LIVE": False}}}},
)
django.setup()
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from django_otel import views

def theirs(request):
    from prometheus_client import CollectorRegistry, generate_latest, multiprocess
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, os.environ["PROMETHEUS_MULTIPROC_DIR"])
    return HttpResponse(generate_latest(registry), content_type="text/plain")

def pid(request):
    return HttpResponse(str(os.getpid()))

urlpatterns = [path("metrics", views.metrics), path("theirs", theirs), path("pid", pid)]
application = get_wsgi_application()
"""

_GUNICORN = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/benchmarks"]

def post_worker_init(worker):
    import shared
    from django_otel import runtime
    index = worker.age - 1
    numbers = shared.numbers_of(index % {workers}, {series}, same=True)
    shared.fill_ours(runtime.store, numbers)
    shared.fill_theirs(numbers)
    open({shared!r} + "/filled-%d" % worker.pid, "w").close()
"""


def ask(port: int, path: str) -> tuple[float, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    started_s = time.perf_counter()
    connection.request("GET", path)
    body = connection.getresponse().read()
    took_ms = (time.perf_counter() - started_s) * 1e3
    connection.close()
    return took_ms, body


def bench_http(workers: int, series: int, rounds: int) -> None:
    with folder() as shared, folder() as theirs_at, folder() as site:
        values = {"root": str(ROOT), "shared": str(shared), "workers": workers, "series": series}
        (site / "benchmark_site.py").write_text(_SITE.format(**values))
        (site / "gunicorn.conf.py").write_text(_GUNICORN.format(**values))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(theirs_at), "PYTHONPATH": f"{site}:{ROOT}"}
        command = [
            sys.executable, "-m", "gunicorn", "-w", str(workers), "-b", f"127.0.0.1:{port}", "-t", "120",
            "--log-level", "warning", "benchmark_site:application",
        ]  # fmt: skip
        server = subprocess.Popen(command, cwd=site, env=environ)
        try:
            deadline_s = time.monotonic() + 180
            while len(list(shared.glob("filled-*"))) < workers and time.monotonic() < deadline_s:
                time.sleep(0.2)
            time.sleep(2)
            ours: list[float] = []
            theirs: list[float] = []
            ask(port, "/pid")
            for number in range(rounds * 4):
                took_ms, body = ask(port, "/metrics")
                ours.append(took_ms)
                if number % 4 == 0:
                    theirs.append(ask(port, "/theirs")[0])
            lines = body.count(b"http_server_request_duration_seconds_count")
            expected = series * _VALUES_PER_SERIES * workers
            counted = sum(
                float(line.rpartition(b" ")[2])
                for line in body.split(b"\n")
                if line.startswith(b"http_server_request_duration_seconds_count")
            )
            requests = f"{counted:.0f} of {expected} requests"
            print(f"\nover HTTP, gunicorn with {workers} workers ({lines} series, {requests}), ms")
            print(f"  {'':34}{'first':>9}{'':9}{'median':>9}{'worst':>9}")
            print_row("ours /metrics", ours[:1], ours, "worst includes the first scrape of each worker")
            print_row("prometheus_client, multiprocess", theirs[:1], theirs)
        finally:
            server.terminate()
            server.wait()


# --- (b) A cell update. ---


def bench_update(rounds: int) -> None:
    from django_otel.metrics.cells import Memory
    from django_otel.metrics.store import CellStore
    from django_otel.multiprocess.memory import SharedMemory

    number = 20_000
    with folder() as at:
        memory = SharedMemory(at)
        found: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, place in (("plain", Memory()), ("shared", memory)):
                store = CellStore(place)
                store.joined = True
                histogram = store.catalogued(_METRIC).series(attributes_of(1))
                counter = store.counter("benchmark.counter").series({})
                for kind, update in (
                    ("histogram", lambda: histogram.observe(0.03)),  # noqa: B023
                    ("counter", lambda: counter.add(1.0)),  # noqa: B023
                ):
                    took_us = timeit.timeit(update, number=number) / number * 1e6
                    found.setdefault(f"{kind} {name}", []).append(took_us)
        memory.close()
    print(f"\nan update, us\n  {'':22}{'plain':>8}{'shared':>8}{'ratio':>8}")
    for kind in ("histogram", "counter"):
        plain, shared = found[f"{kind} plain"], found[f"{kind} shared"]
        ratio = statistics.median(b / a for a, b in zip(plain, shared, strict=True))
        print(f"  {kind:22}{statistics.median(plain):8.3f}{statistics.median(shared):8.3f}{ratio:8.2f}")


# --- (c) Memory. ---


def resident_kib() -> tuple[int, int]:
    """Private and shared resident memory of this process, in KiB (Linux)."""
    fields = dict(
        line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:] if ":" in line
    )
    private = sum(int(fields[f"Private_{kind}"].split()[0]) for kind in ("Clean", "Dirty"))
    return private, int(fields["Rss"].split()[0]) - private


def bench_memory(workers: int) -> None:
    from django_otel.metrics import exposition
    from django_otel.metrics.store import CellStore
    from django_otel.multiprocess.memory import SharedMemory
    from django_otel.multiprocess.reader import Reader

    def measure(series: int) -> list[float]:
        import gc

        with folder() as at:
            for worker in range(1, workers):
                # Another process, so that only the readers' memory is seen here.
                run_child(lambda: fill_one(at, worker, series))  # noqa: B023
            gc.collect()
            before = sum(resident_kib())
            memory = SharedMemory(at)
            store = CellStore(memory)
            fill_ours(store, numbers_of(0, series, same=True))
            gc.collect()
            filled = sum(resident_kib())
            reader = Reader(at)
            for _ in range(3):
                exposition.render(reader.merge(), openmetrics=False, resource_attributes=RESOURCE)
            gc.collect()
            scraped = sum(resident_kib())
            in_folder = sum(path.stat().st_blocks * 512 for path in at.iterdir())
            return [in_folder / 1024 / workers, filled - before, scraped - filled]

    def fill_one(at: Path, worker: int, series: int) -> int:
        memory = SharedMemory(at)
        # The number of the slot is free again when this child ends; its lease is kept by a file of another number.
        fill_ours(CellStore(memory), numbers_of(worker, series, same=True))
        (at / f"{memory.lease.number}.cells").rename(at / f"{worker + 100}.cells")
        (at / f"{memory.lease.number}.keys").rename(at / f"{worker + 100}.keys")
        return 0

    sizes = (0, 500, 1000, 2000)
    rows = [run_child(lambda: measure(size)) for size in sizes]  # noqa: B023
    print(f"\nmemory, {workers} workers with the same label sets, KiB")
    print(f"  {'series':>8}{'folder, a worker':>20}{'resident, a worker':>20}{'a scraping worker more':>24}")
    for size, row in zip(sizes, rows, strict=True):
        print(f"  {size:8}{row[0]:20.0f}{row[1]:20.0f}{row[2]:24.0f}")
    per = [(last - first) * 1024 / sizes[-1] for first, last in zip(rows[0], rows[-1], strict=True)]
    print(f"  {'bytes per':8}{per[0]:19.0f}{per[1]:20.0f}{per[2]:24.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--series", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-http", action="store_true")
    options = parser.parse_args()
    # Read when prometheus_client is imported; each measurement then names a folder of its own.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.gettempdir()
    bench_memory(options.workers)
    bench_update(options.rounds)
    for same in (True, False):
        bench_scrape(options.workers, options.series, options.rounds, same=same)
    if not options.no_http:
        bench_http(options.workers, options.series, options.rounds)


if __name__ == "__main__":
    main()
