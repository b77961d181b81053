"""`/metrics` beside the other ways to make it: time and memory for the histogram of request durations.

    python -m benchmarks.scrape [--label-sets 1000 10000] [--rounds 21] [--processes 4] [--no-count] [--publish]

One label set is 17 lines. Every contender has a process of its own, filled with
the same measurements; they make their pages in turn, round after round, and a
ratio is the median of the rounds' ratios, so that a noisy machine disturbs all
alike. The time is the processor's, kernel included: a page is made without
waiting for anything, and others on the machine stretch the clock for the slow
ones more than for the quick. Instructions of one page, after a first, are
counted by callgrind where valgrind is installed, in user space alone. Memory is
taken in a further fresh process each: the peak of three pages one after the
other, so that what is cached between them counts. Every page is read and must
hold every measurement.

Needs prometheus_client and opentelemetry-exporter-prometheus.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import re
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import callgrind, publication
from benchmarks.shared import RESOURCE, attributes_of, fill_ours, fill_theirs, folder, numbers_of, values_of

_METRIC = "http.server.request.duration"
_PER_SERIES = len(values_of(0))
#: Pages made for one figure of memory: the first fills what later ones use again.
_PAGES = 3
#: Beyond these counting the instructions of the slowest takes half an hour.
_MOST_COUNTED = 2000
Build = Callable[[int, int, Path], Callable[[], bytes]]


# --- The contenders: each gives a function that makes the page of `processes` processes. ---


def build_ours(label_sets: int, processes: int, at: Path) -> Callable[[], bytes]:
    """As the app answers: the slots of all processes merged, then rendered."""
    from django_otel.metrics import exposition
    from django_otel.metrics.store import CellStore
    from django_otel.multiprocess.memory import SharedMemory
    from django_otel.multiprocess.reader import Reader

    for process in range(processes):
        memory = SharedMemory(at)
        fill_ours(CellStore(memory), numbers_of(process, label_sets, same=True))
        # Its measurements stay; a living process would be read in the same way.
        _open_memories.append(memory)
    reader = Reader(at)
    return lambda: exposition.render(reader.merge(), openmetrics=False, resource_attributes=RESOURCE)


#: Kept, so that every process has a slot of its own.
_open_memories: list[Any] = []


def build_ours_plain(label_sets: int, processes: int, at: Path) -> Callable[[], bytes]:
    """Without a shared folder: this process' cells in plain memory."""
    from django_otel.metrics import exposition
    from django_otel.metrics.store import CellStore

    store = CellStore()
    fill_ours(store, numbers_of(0, label_sets, same=True))
    return lambda: exposition.render(store.collect(), openmetrics=False, resource_attributes=RESOURCE)


def build_official(label_sets: int, processes: int, at: Path) -> Callable[[], bytes]:
    """The SDK's histogram through the official exporter."""
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from prometheus_client import CollectorRegistry, generate_latest

    from django_otel.metrics.catalogue import CATALOGUE

    metric = CATALOGUE[_METRIC]
    registry = CollectorRegistry()
    reader = PrometheusMetricReader(registry=registry, scope_info_enabled=False)
    histogram = (
        MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
        .get_meter("django_otel")
        .create_histogram(
            metric.name,
            unit=metric.unit,
            description=metric.description,
            explicit_bucket_boundaries_advisory=metric.bounds,
        )
    )
    for number in numbers_of(0, label_sets, same=True):
        attributes: Any = attributes_of(number)
        for value in values_of(number):
            histogram.record(value, attributes)
    return lambda: generate_latest(registry)


def build_client(label_sets: int, processes: int, at: Path) -> Callable[[], bytes]:
    """prometheus_client in one process."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    fill_theirs(numbers_of(0, label_sets, same=True), registry)
    return lambda: generate_latest(registry)


def build_client_multiprocess(label_sets: int, processes: int, at: Path) -> Callable[[], bytes]:
    """prometheus_client's multiprocess mode: one file per process."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(at)
    context = multiprocessing.get_context("spawn")
    for process in range(processes):
        child = context.Process(target=_fill_file, args=(label_sets, process, str(at)))
        child.start()
        child.join()
        if child.exitcode:
            raise RuntimeError("a process of prometheus_client's multiprocess mode failed")
    from prometheus_client import CollectorRegistry, generate_latest, multiprocess

    def page() -> bytes:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, str(at))
        return generate_latest(registry)

    return page


def _fill_file(label_sets: int, process: int, at: str) -> None:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = at
    fill_theirs(numbers_of(process, label_sets, same=True))


CONTENDERS: dict[str, Build] = {
    "django_otel": build_ours,
    "django_otel, no shared folder": build_ours_plain,
    "PrometheusMetricReader": build_official,
    "prometheus_client": build_client,
    "prometheus_client, multiprocess": build_client_multiprocess,
}
#: Who is compared in one process and in several; the first one is ours.
ONE_PROCESS = ("django_otel", "django_otel, no shared folder", "PrometheusMetricReader", "prometheus_client")
SEVERAL_PROCESSES = ("django_otel", "prometheus_client, multiprocess")


# --- The measured processes. ---


def _counted(page: bytes) -> float:
    """Measurements on a page."""
    return sum(
        map(float, re.findall(rb"^http_server_request_duration_seconds_count\{[^\n]*\} (\S+)$", page, re.MULTILINE))
    )


def _count(name: str, label_sets: int, processes: int) -> None:
    """Under callgrind: one page is counted, after a first."""
    with folder() as at:
        page = CONTENDERS[name](label_sets, processes, at)
        page()
        gc.collect()
        callgrind.Counter().count("page", page)


def count_mi(name: str, label_sets: int, processes: int) -> float:
    """Million instructions of one page, in user space. Errors: `RuntimeError` without valgrind or when it fails."""
    if reason := callgrind.why_not():
        raise RuntimeError(reason)
    root = str(Path(__file__).resolve().parent.parent)
    arguments = ["-m", "benchmarks.scrape", "--counted", name, str(label_sets), str(processes)]
    return callgrind.run(arguments, {"PYTHONPATH": root})["page"] / 1e6


def _serve(name: str, label_sets: int, processes: int, at: str, connection: Connection) -> None:
    """Fill, then answer "time" with milliseconds and "memory" with megabytes."""
    page = CONTENDERS[name](label_sets, processes, Path(at))
    gc.collect()
    connection.send("ready")
    while (order := connection.recv()) != "end":
        if order == "time":
            begun_ns = time.process_time_ns()
            page()
            connection.send((time.process_time_ns() - begun_ns) / 1e6)
        elif order == "memory":
            tracemalloc.start()
            for _ in range(_PAGES):
                page()
            connection.send(tracemalloc.get_traced_memory()[1] / 1e6)
            tracemalloc.stop()
        else:
            connection.send(_counted(page()))


class Contender:
    """A contender in a process of its own."""

    def __init__(self, name: str, label_sets: int, processes: int, at: Path) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        at.mkdir(mode=0o700)
        self._process = context.Process(target=_serve, args=(name, label_sets, processes, str(at), theirs))
        self._process.start()
        theirs.close()
        self._connection.recv()

    def ask(self, order: str) -> float:
        self._connection.send(order)
        return float(self._connection.recv())

    def close(self) -> None:
        self._connection.send("end")
        self._process.join()


def measure(
    names: Sequence[str], label_sets: int, processes: int, rounds: int, *, counts_instructions: bool = False
) -> dict[str, dict[str, float]]:
    """Milliseconds, megabytes and our ratio to each contender; million instructions and their ratio on demand.

    Errors: `RuntimeError` when a page does not hold every measurement.
    """
    expected = label_sets * _PER_SERIES * processes
    with folder() as base:
        memory: dict[str, float] = {}
        for index, name in enumerate(names):
            alone = Contender(name, label_sets, processes, base / f"memory-{index}")
            memory[name] = alone.ask("memory")
            alone.close()
        running = [Contender(name, label_sets, processes, base / f"time-{index}") for index, name in enumerate(names)]
        times: dict[str, list[float]] = {name: [] for name in names}
        for contender in running:
            found = contender.ask("count")
            if found != expected:
                raise RuntimeError(f"{contender.name} shows {found:.0f} of {expected} measurements")
        for _ in range(rounds):
            for contender in running:
                times[contender.name].append(contender.ask("time"))
        for contender in running:
            contender.close()
    found = {
        name: {
            "ms": round(statistics.median(times[name]), 2),
            "peak_mb": round(memory[name], 1),
            "ratio": round(statistics.median(b / a for a, b in zip(times[names[0]], times[name], strict=True)), 1),
        }
        for name in names
    }
    if counts_instructions:
        for name in names:
            found[name]["mi"] = round(count_mi(name, label_sets, processes), 1)
            found[name]["mi_ratio"] = round(found[name]["mi"] / found[names[0]]["mi"], 1)
    return found


def text_of(results: Sequence[dict[str, Any]]) -> str:
    """The figures as Markdown; a result is {"label_sets", "processes", "contenders"}."""
    parts = []
    for result in results:
        processes = result["processes"]
        count = f"{result['label_sets']:,}".replace(",", " ")
        title = f"{count} label sets, {processes} process{'es' if processes > 1 else ''}"
        rows = [
            [
                f"**{name}**" if number == 0 else name,
                f"{figures['ms']:.1f}",
                f"{figures['peak_mb']:.1f}",
                f"1/{figures['ratio']:.1f}" if number else "",
                f"{figures['mi']:.1f}" if "mi" in figures else "-",
                f"1/{figures['mi_ratio']:.1f}" if number and "mi_ratio" in figures else "",
            ]
            for number, (name, figures) in enumerate(result["contenders"].items())
        ]
        head = [title, "ms CPU", "peak MB", "our time against it", "million instructions", "ours against it"]
        parts.append(publication.table(head, rows))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label-sets", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument(
        "--no-count",
        action="store_true",
        help="no instructions, which take minutes",
    )
    parser.add_argument("--publish", action="store_true", help="put the figures into docs/ and benchmarks/results.json")
    parser.add_argument("--counted", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.counted:
        _count(options.counted[0], *map(int, options.counted[1:]))
        return
    obstacle = "" if options.no_count else callgrind.why_not()
    if obstacle:
        print(f"No instructions are counted: {obstacle}")
    is_counting = not options.no_count and not obstacle
    results = []
    for label_sets in options.label_sets:
        # Ten thousand take the slowest ten seconds a page.
        rounds = max(3, options.rounds // max(1, label_sets // 2000))
        is_counted = is_counting and label_sets <= _MOST_COUNTED
        for names, processes in ((ONE_PROCESS, 1), (SEVERAL_PROCESSES, options.processes)):
            contenders = measure(names, label_sets, processes, rounds, counts_instructions=is_counted)
            results.append({"label_sets": label_sets, "processes": processes, "contenders": contenders})
            print(text_of(results[-1:]), flush=True)
    if options.publish:
        publication.publish("scrape", {"machine": publication.machine(), "results": results}, text_of(results))


if __name__ == "__main__":
    # prometheus_client reads it when it is imported; who has a folder of its own names it.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    main()
