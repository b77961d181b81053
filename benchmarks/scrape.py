"""Our scrape beside the official exporter's: time and peak memory for the request histogram.

    python benchmarks/scrape.py [label sets]

One label set is 17 lines. Rounds are interleaved, and the ratio is the median of
the rounds' ratios, so that a noisy machine disturbs both alike. Nothing is
asserted: the numbers stand in the documentation.
"""

from __future__ import annotations

import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, generate_latest

from django_otel.core import cells, exposition
from django_otel.core.cells import Histogram

RESOURCE = {"service.name": "shop"}


def build(label_sets: int) -> tuple[Callable[[], bytes], Callable[[], bytes], cells.CellStore]:
    """Two ways to the page of the same measurements: ours and the official one."""
    store = cells.CellStore()
    store.cardinality_limit = label_sets
    ours = store.catalogued("http.server.request.duration")
    assert isinstance(ours, Histogram)
    registry = CollectorRegistry()
    reader = PrometheusMetricReader(registry=registry, scope_info_enabled=False)
    theirs = (
        MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
        .get_meter("django_otel")
        .create_histogram(
            ours.name,
            unit="s",
            description=ours.definition.description,
            explicit_bucket_boundaries_advisory=ours.definition.bounds,
        )
    )
    for number in range(label_sets):
        attributes = {
            "http.request.method": "GET",
            "http.route": f"/orders/{number}/<int:pk>/",
            "http.response.status_code": 200,
            "url.scheme": "http",
            "network.protocol.version": "1.1",
        }
        for count in range(20):
            value = (number * 7919 + count * 104729) % 10007 / 1000.0
            ours.record(value, attributes)
            theirs.record(value, attributes)

    def render() -> bytes:
        return exposition.render(store.collect(), openmetrics=False, resource_attributes=RESOURCE)

    return render, lambda: generate_latest(registry), store


def time_ms(function: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    function()
    return (time.perf_counter() - started_s) * 1e3


def peak_mb(function: Callable[[], object]) -> float:
    tracemalloc.start()
    function()
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak_bytes / 1e6


def main() -> None:
    label_sets = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    ours, theirs, store = build(label_sets)
    assert ours().count(b"\n") == theirs().count(b"\n")
    rounds = [(time_ms(ours), time_ms(theirs)) for _ in range(21)]
    families, page = store.collect(), ours()
    parts = {
        "collect": store.collect,
        "render": lambda: exposition.render(families, openmetrics=False, resource_attributes=RESOURCE),
        "gzip": lambda: exposition.compress(page),
    }
    print(f"{label_sets} label sets, {len(page) / 1e6:.1f} MB")
    print(f"ours     {statistics.median(r[0] for r in rounds):8.1f} ms  {peak_mb(ours):6.1f} MB at the peak")
    print(f"official {statistics.median(r[1] for r in rounds):8.1f} ms  {peak_mb(theirs):6.1f} MB at the peak")
    print(f"ratio    1/{statistics.median(theirs_ms / ours_ms for ours_ms, theirs_ms in rounds):.1f}")
    for name, part in parts.items():
        print(f"{name:8} {statistics.median(time_ms(part) for _ in range(21)):8.1f} ms")


if __name__ == "__main__":
    main()
