"""The scrape of one host of fifty with eight workers: how long it takes with a growing number of routes.

    python benchmarks/fifty_hosts.py

The workers are stood in for by the files they write. Prometheus scrapes each host for itself, so the number of hosts
does not change a scrape. The first scrape is that of a process which has read none of the files yet. Times are those of
the processor, so that what else runs on the machine does not count.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from django_otel.base import private_files
from django_otel.metrics.exposition import render
from django_otel.metrics.store import CellStore
from django_otel.multiprocess.discovery import Outsider
from django_otel.multiprocess.memory import SharedMemory

WORKERS = 8
ROUTES = (20, 100, 300)
READERS, SCRAPES = 7, 10


def fill(store: CellStore, routes: int) -> None:
    """Write what a worker has after it has answered every route, with three statuses."""
    duration = store.catalogued("http.server.request.duration")
    size = store.catalogued("http.server.response.body.size")
    queries = store.catalogued("django.request.queries")
    for route in range(routes):
        for status in (200, 404, 500):
            labels = {
                "http.request.method": "GET", "http.route": f"/app/route-{route}/", "http.response.status_code": status,
            }  # fmt: skip
            duration.series({**labels, "url.scheme": "http"}).observe(0.02)  # type: ignore[attr-defined]
            size.series(labels).observe(900.0)  # type: ignore[attr-defined]
        queries.series({"http.route": f"/app/route-{route}/"}).observe(3.0)  # type: ignore[attr-defined]


def measure(routes: int) -> tuple[float, float, int]:
    """Return (first scrape, further ones, size of the page): medians over readers, in milliseconds and bytes."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "group"
        private_files.make_folder(folder)
        stores = [CellStore(SharedMemory(folder)) for _ in range(WORKERS)]
        for store in stores:
            store.cardinality_limit = 10_000
            fill(store, routes)
        first, further, page = [], [], b""
        for _ in range(READERS):
            outsider = Outsider(folder)
            times = []
            for _ in range(SCRAPES):
                started_s = time.process_time()
                page = render(outsider.collect(), openmetrics=True, resource_attributes={"service.name": "shop"})
                times.append((time.process_time() - started_s) * 1000)
            first.append(times[0])
            further += times[1:]
        return statistics.median(first), statistics.median(further), len(page)


if __name__ == "__main__":
    print("| routes | first scrape | further scrapes (median) | page |")
    print("|---|---|---|---|")
    for routes in ROUTES:
        first_ms, further_ms, size = measure(routes)
        print(f"| {routes} | {first_ms:.0f} ms | {further_ms:.0f} ms | {size / 1000:.0f} kB |")
