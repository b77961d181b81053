"""The cost of a request as routes, sampling rules, series, worker processes and threads grow.

    python -m benchmarks.growth [--only routes rules ...] [--quick] [--publish]

What stands in one process alone is counted in instructions (valgrind), each
point in a fresh process, less what bare Django needs for the same requests.
Threads compete for the interpreter, which no count of instructions shows: there
bare Django and django_otel serve the same number of requests in the same number
of threads, block by block in turn, and the processor's time is compared.

A flat row is the aim.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import callgrind, publication
from benchmarks.peers.own import stop_clocks

ROOT = Path(__file__).resolve().parent.parent
#: What grows, and through which values; all else stays at the first value of its row.
DIMENSIONS: dict[str, tuple[str, tuple[int, ...]]] = {
    "routes": ("routes in the URLconf, each asked for in turn", (10, 1000)),
    "rules": ("sampling rules by path, none of which matches", (0, 50)),
    "series": ("series of the duration histogram", (10, 100, 1000, 10_000)),
    "processes": ("worker processes of the group, all serving", (1, 2, 4, 8)),
    "threads": ("threads serving at once", (1, 2, 4, 8, 16)),
}
#: Requests of the two loops that are subtracted; each asks for a further route.
_FEW, _MANY = 10, 70
#: How often each is counted; the least is the one that no background thread added to.
_REPEATS = 2
#: Layouts of the memory whose mean is taken: which caches of the interpreter collide, and how full the heap is, changes
#: what a request costs by some thousand instructions either way.
_LAYOUTS = 3
#: Objects more in the way for each.
_LAYOUT_STEP = 997
#: Requests of a block of threads, all together, and rounds.
_BLOCK, _ROUNDS = 960, 21


# --- The measured process. ---


def _views(count: int) -> tuple[Any, ...]:
    """A URLconf of `count` routes: sections of at most 32, as a project includes those of its apps."""
    from django.http import HttpRequest, JsonResponse
    from django.urls import include, path

    def view(request: HttpRequest, number: int) -> JsonResponse:
        return JsonResponse({"status": "ok", "items": [1, 2, 3]})

    patterns = [path(f"page{index % 32}/<int:number>/", view) for index in range(count)]
    return tuple(
        path(f"section{start // 32}/", include((patterns[start : start + 32], "section")))
        for start in range(0, count, 32)
    )


def _paths(count: int) -> list[str]:
    """A path of every route, shuffled: routes are not asked for in the order in which they are tried."""
    found = [f"/section{index // 32}/page{index % 32}/{index}/" for index in range(count)]
    random.Random(1).shuffle(found)
    return found


class Process:
    """Django with `spec`: instrumented, ratio, routes, rules, series, shared_dir, layout."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self._in_the_way = [str(number) for number in range(_LAYOUT_STEP * spec["layout"])]
        from benchmarks.peers.settings import base_settings

        settings = base_settings(":memory:", None)
        settings["ROOT_URLCONF"] = _views(spec["routes"])
        if spec["instrumented"]:
            settings["INSTALLED_APPS"].append("django_otel")
            settings["MIDDLEWARE"].append("django_otel.middleware.OTelMiddleware")
            sampling: dict[str, Any] = {"RATIO": spec["ratio"], "LIVE": False}
            if spec["rules"]:
                sampling["RULES"] = [{"path": f"/nowhere{number}/*", "ratio": 1.0} for number in range(spec["rules"])]
            settings["OTEL"] = {
                "SERVICE_NAME": "growing",
                "SAMPLING": sampling,
                "METRICS": {"SHARED_DIR": spec["shared_dir"], "GROUP": "growth", "CARDINALITY_LIMIT": 100_000},
                "TRACES": {
                    "EXPORTERS": ["benchmarks.peers.sinks.Exporter"],
                    "BATCH": {"QUEUE_SIZE": 100_000, "BATCH_SIZE": 100_000, "DELAY_S": 3600},
                },
            }
        import django
        from django.conf import settings as django_settings

        django_settings.configure(**settings)
        django.setup()
        if spec["instrumented"] and callgrind.is_counted():
            stop_clocks()
        from django.core.wsgi import get_wsgi_application

        self._application = get_wsgi_application()
        self._paths = _paths(spec["routes"])
        self._next = 0
        # Every route twice, so that what is kept per route is there, and was found once.
        self.serve(2 * max(len(self._paths), 50))
        self._fill(spec["series"])
        self.flush()

    def _fill(self, series: int) -> None:
        """Give the histogram of request durations that many series in all."""
        if not self.spec["instrumented"]:
            return
        from django_otel import runtime

        histogram: Any = runtime.store.catalogued("http.server.request.duration")
        for number in range(series - len(histogram.all_series())):
            histogram.record(0.01, {"http.request.method": "GET", "http.route": f"/other/{number}/"})

    def flush(self) -> None:
        if self.spec["instrumented"]:
            from django_otel import runtime

            runtime.flush(60)

    def serve(self, requests: int) -> None:
        """Requests one after the other."""
        start = self._next
        self._next = (start + requests) % len(self._paths)
        self._serve(range(start, start + requests))

    def _serve(self, numbers: range) -> None:
        paths, application = self._paths, self._application

        def start_response(status: str, headers: object, exc_info: object = None) -> Callable[[bytes], object]:
            if not status.startswith("200"):
                raise AssertionError(status)
            return print

        for number in numbers:
            environ = {
                "wsgi.url_scheme": "http",
                "wsgi.input": io.BytesIO(b""),
                "REQUEST_METHOD": "GET",
                "SCRIPT_NAME": "",
                "PATH_INFO": paths[number % len(paths)],
                "QUERY_STRING": "",
                "SERVER_NAME": "127.0.0.1",
                "SERVER_PORT": "8000",
                "SERVER_PROTOCOL": "HTTP/1.1",
                "HTTP_HOST": "shop.example",
                "HTTP_USER_AGENT": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
            }
            response = application(environ, start_response)
            for _chunk in response:
                pass
            response.close()  # type: ignore[attr-defined]

    def count(self) -> list[list[int]]:
        """Instructions of short and of long loops; in two processes the same loops ask for the same routes."""
        found = [
            [callgrind.count_settled(lambda: self.serve(requests)) for _ in range(_REPEATS)]  # noqa: B023
            for requests in (_FEW, _MANY)
        ]
        self.flush()
        return found

    def block(self, threads: int) -> list[float]:
        """Seconds that `_BLOCK` requests take in that many threads: on the clock, and of the processor."""
        each = _BLOCK // threads
        gate = threading.Barrier(threads + 1)

        def work(number: int) -> None:
            gate.wait()
            self._serve(range(number * each, (number + 1) * each))

        running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for thread in running:
            thread.start()
        gate.wait()
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        for thread in running:
            thread.join()
        found = [time.perf_counter() - started_s, time.process_time() - started_cpu_s]
        self.flush()
        return found

    def idle(self, seconds: float) -> int:
        """Be a worker process with some traffic: a request every 20 ms."""
        served = 0
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self.serve(1)
            served += 1
            time.sleep(0.02)
        return served


def _work(spec: dict[str, Any]) -> None:
    process = Process(spec)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        order, *arguments = json.loads(line)
        print(json.dumps(getattr(process, order)(*arguments)), flush=True)
    os._exit(0)


# --- From outside. ---


class Worker:
    """A measured process."""

    def __init__(self, spec: dict[str, Any], folder: Path, *, counts: bool) -> None:
        command = [sys.executable, "-m", "benchmarks.growth", "--worker", json.dumps(spec)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
        environment["PYTHONPATH"] = str(ROOT)
        if counts:
            command, environment = callgrind.command(command, folder), callgrind.environment(environment, folder)
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answer()

    def tell(self, *order: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("A measured process ended.")
        return json.loads(line)

    def ask(self, *order: Any) -> Any:
        self.tell(*order)
        return self.answer()

    def close(self) -> None:
        # One that serves for a while yet is not waited for.
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait()


@contextmanager
def started(spec: dict[str, Any], *, counts: bool = False) -> Iterator[Worker]:
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(spec, Path(folder), counts=counts)
        try:
            yield worker
        finally:
            worker.close()


def _spec(shared_dir: str, ratio: float = 0.0, **changes: int) -> dict[str, Any]:
    return {
        "instrumented": True, "ratio": ratio, "routes": 10, "rules": 0, "series": 10, "layout": 0,
        "shared_dir": shared_dir, **changes,
    }  # fmt: skip


Bare = dict[tuple[int, int], list[list[int]]]


def added_ki(dimension: str, value: int, ratio: float, bare: Bare) -> float:
    """Thousand instructions added per request; `bare` keeps what bare Django needs, by routes and layout."""
    with tempfile.TemporaryDirectory() as shared_dir, ExitStack() as stack:
        grown = {dimension: value} if dimension != "processes" else {}
        spec = _spec(shared_dir, ratio, **grown)
        if dimension == "processes":
            for _ in range(value - 1):
                other = stack.enter_context(started(spec))
                other.tell("idle", 600)
        return statistics.mean(_added_ki({**spec, "layout": layout}, bare) for layout in range(_LAYOUTS))


def _added_ki(spec: dict[str, Any], bare: Bare) -> float:
    key = (spec["routes"], spec["layout"])
    if key not in bare:
        with started({**spec, "instrumented": False}, counts=True) as worker:
            bare[key] = worker.ask("count")
    with started(spec, counts=True) as worker:
        counts = worker.ask("count")
    few, many = (
        min(mine - base for mine, base in zip(found, base_found, strict=True))
        for found, base_found in zip(counts, bare[key], strict=True)
    )
    return (many - few) / (_MANY - _FEW) / 1000


def thread_times(threads: Sequence[int], rounds: int) -> dict[int, dict[str, float]]:
    """Microseconds of the processor per request in that many threads: bare, and what is added."""
    with tempfile.TemporaryDirectory() as shared_dir:
        spec = _spec(shared_dir)
        with (
            started({**spec, "instrumented": False}) as bare,
            started(spec) as unsampled,
            started(_spec(shared_dir, 1.0)) as sampled,
        ):
            workers = {"bare": bare, "unsampled": unsampled, "sampled": sampled}
            found: dict[int, dict[str, list[float]]] = {count: {name: [] for name in workers} for count in threads}
            order = random.Random(1)
            for _ in range(rounds):
                for count in threads:
                    names = list(workers)
                    order.shuffle(names)
                    for name in names:
                        cpu_s = workers[name].ask("block", count)[1]
                        found[count][name].append(cpu_s / _BLOCK * 1e6)
    return {
        count: {
            "bare_us": statistics.median(by_name["bare"]),
            **{
                f"{name}_ratio": statistics.median(a / b for a, b in zip(by_name[name], by_name["bare"], strict=True))
                for name in ("unsampled", "sampled")
            },
        }
        for count, by_name in found.items()
    }


def text_of(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    parts = []
    rows = []
    for dimension, (title, _) in DIMENSIONS.items():
        for sampled, by_value in results.get(dimension, {}).items():
            if dimension != "threads":
                points = "; ".join(f"{value}: {ki:.1f}" for value, ki in by_value.items())
                flat = max(by_value.values()) / max(min(by_value.values()), 1e-9)
                rows.append([title, sampled, points, f"{flat:.2f}"])
    if rows:
        head = ["what grows", "recorded", "thousand instructions added per request", "most / least"]
        parts.append(publication.table(head, rows, numbers=False))
    if "threads" in results:
        rows = [
            [
                str(count),
                f"{figures['bare_us']:.0f}",
                f"{figures['unsampled_ratio']:.2f}",
                f"{figures['sampled_ratio']:.2f}",
            ]
            for count, figures in results["threads"].items()
        ]
        head = [
            "threads serving at once", "bare Django, us of the processor per request",
            "with django_otel, unsampled / bare", "all sampled / bare",
        ]  # fmt: skip
        parts.append(publication.table(head, rows))
    return "\n\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(DIMENSIONS), default=list(DIMENSIONS))
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="interleaved rounds for threads")
    parser.add_argument("--quick", action="store_true", help="the first and the last value of each row, 3 rounds")
    parser.add_argument("--publish", action="store_true", help="put the figures into docs/ and benchmarks/results.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(json.loads(options.worker))
        return 0
    reason = callgrind.why_not()
    if reason:
        print(f"Only threads are measured: {reason}", file=sys.stderr)
        options.only = [name for name in options.only if name == "threads"]
    results: dict[str, Any] = {}
    bare: Bare = {}
    for dimension in options.only:
        values = DIMENSIONS[dimension][1]
        if options.quick:
            values = (values[0], values[-1])
        if dimension == "threads":
            found: dict[str, Any] = {
                str(count): {key: round(value, 3) for key, value in figures.items()}
                for count, figures in thread_times(
                    values, min(options.rounds, 3) if options.quick else options.rounds
                ).items()
            }
        else:
            found = {
                name: {str(value): round(added_ki(dimension, value, ratio, bare), 1) for value in values}
                for name, ratio in (("unsampled", 0.0), ("all sampled", 1.0))
            }
        results[dimension] = found
        print(text_of({dimension: found}), flush=True)
    if options.publish:
        publication.publish("growth", {"machine": publication.machine(), **results}, text_of(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
