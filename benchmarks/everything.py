"""What a view of ten queries pays for everything at once: all layers, the console, every request recorded and exported.

    python -m benchmarks.everything [--rounds 31] [--count] [--publish]

The view, project and settings are those of `benchmarks.peers` ("10 queries", SQLite), each configuration a process of
its own in the environment of the tests: bare Django; all layers with every request recorded, whose spans
nothing takes; the same with OTLP over HTTP to a receiver of another process; with the console; with both. The console's
store is at its default bound, so that each trace that is stored has another one evicted.

CPU time is that of the process, all threads, kernel included, over a block of requests until everything is sent and
stored; blocks are interleaved, and what is shown is the median of the rounds' ratios to bare Django. The pace is that
of a busy server: what waits is taken in full batches. `--count` counts instructions instead (user space alone).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import callgrind, publication
from benchmarks.export import Child, Receiver

CASE = "queries"
#: What is added to bare Django, and whether spans are exported, and stored for the console.
SUBJECTS = {
    "bare": (False, False),
    "recorded": (False, False),
    "recorded, exported": (True, False),
    "recorded, console": (False, True),
    "everything": (True, True),
}
#: Everything that has a switch of its own.
LAYERS: dict[str, Any] = {
    "DATABASE": {"TRANSACTIONS": True},
    "CACHE": {"SPANS": True},
    "TEMPLATES": True,
    "MIDDLEWARE_SPANS": True,
    "EMAIL": True,
    "COMMANDS": True,
    "FEATURE_FLAGS": True,
}
#: Requests of a block, of which each gives eleven spans: four batches and a rest.
BLOCK = 200
#: Requests of the two loops whose instructions are subtracted: whole batches, as the delays are too long to matter.
FEW, MANY = 47, 141
#: More traces than the console keeps.
WARM_UP = 600
_DELAY_S = 3600.0
#: Of the processor's time of the view.
TARGET = 0.08


# --- The measured process. ---


def build_settings(subject: str, folder: Path, url: str) -> dict[str, Any]:
    """Settings of Django for a subject."""
    from benchmarks.peers.settings import base_settings

    given = base_settings(str(folder / "shop.sqlite3"), None)
    if subject != "bare":
        is_exported, has_console = SUBJECTS[subject]
        given["INSTALLED_APPS"].append("django_otel")
        given["MIDDLEWARE"].insert(0, "django_otel.middleware.OTelMiddleware")
        given["OTEL"] = {
            "SERVICE_NAME": "measured",
            # The thread asks the database every five seconds of the clock, which are two hundred requests or ten.
            "SAMPLING": {"RATIO": 1.0, "LIVE": not callgrind.is_counted()},
            "TRACES": {"EXPORTERS": ["otlp"], "ENDPOINT": url} if is_exported else {"EXPORTERS": ["none"]},
            "METRICS": {"SHARED_DIR": str(folder)},
            "CONSOLE": {"ENABLED": has_console, "PATH": str(folder / "console")},
            **LAYERS,
        }
    return given


def build_flush(subject: str) -> Callable[[], object]:
    """What waits until all that is queued is sent and stored; the sample that a flush takes at the end is left out."""
    if subject == "bare":
        return bool
    from django_otel import runtime

    workers = [part.worker for part in runtime.current().traces.switch.parts if hasattr(part, "worker")]

    if callgrind.is_counted():
        # What works by the clock would be counted fifty times as often for each request as at real speed.
        for worker in workers:
            worker._delay_s = _DELAY_S  # noqa: SLF001 (measures the inside)

    def flush() -> None:
        assert all(worker.flush(60) for worker in workers)

    return flush


def stop_clocks() -> None:
    """Let the other threads that work by the clock sleep; before the first request, which starts them."""
    from benchmarks.peers import own
    from django_otel.tracestore import processor

    own.stop_clocks()
    processor.SAMPLE_INTERVAL_S = _DELAY_S


def work(subject: str, url: str) -> None:
    """Answer the lines of standard input: instructions, or the seconds of a block."""
    import django
    from django.conf import settings

    with tempfile.TemporaryDirectory(prefix="everything-") as place:
        settings.configure(**build_settings(subject, Path(place), url))
        django.setup()
        if callgrind.is_counted() and subject != "bare":
            stop_clocks()
        from django.core.management import call_command

        call_command("migrate", run_syncdb=True, verbosity=0)
        from benchmarks.peers.shop.models import Product

        Product.objects.bulk_create(Product(name=f"Product {number}", price=number) for number in range(20))
        serve(subject)
    sys.stdout.flush()
    os._exit(0)


def serve(subject: str) -> None:
    from benchmarks.peers.catalogue import CASES, VARIANTS
    from benchmarks.peers.worker import build_wsgi_loop

    case = next(each for each in CASES if each.name == CASE)
    loop = build_wsgi_loop(case, VARIANTS["all"])
    loop(20)
    flush = build_flush(subject)
    loop(WARM_UP)
    flush()

    def run(times: int) -> None:
        loop(times)
        flush()

    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        if json.loads(line)["do"] == "count":
            print(json.dumps(callgrind.count_each(run, FEW, MANY, repeats=1)), flush=True)
            continue
        begun_s = time.process_time()
        run(BLOCK)
        print(json.dumps((time.process_time() - begun_s) / BLOCK), flush=True)


# --- Around it. ---


def start(subject: str, url: str, folder: str = "") -> Child:
    command = [sys.executable, str(Path(__file__).resolve()), "--work", subject, "--url", url]
    environ: dict[str, str] = {}
    if folder:
        command, environ = callgrind.command(command, folder), callgrind.environment({}, folder)
    child = Child(command, environ)
    assert json.loads(child.read()) == "ready"
    return child


def count(url: str) -> dict[str, float]:
    """Thousand instructions of a request, by subject."""
    found = {}
    for subject in SUBJECTS:
        with tempfile.TemporaryDirectory() as folder:
            child = start(subject, url, folder)
            found[subject] = child.ask(do="count") / 1000
            child.close()
        print(f"{subject}: {found[subject]:,.0f} kI", file=sys.stderr, flush=True)
    return found


def compare(url: str, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of a request in each round, by subject."""
    children = {subject: start(subject, url) for subject in SUBJECTS}
    found: dict[str, list[float]] = {subject: [] for subject in SUBJECTS}
    try:
        for number in range(rounds):
            names = list(SUBJECTS)
            # The first in a round is not always the same.
            turned = number % len(names)
            for subject in names[turned:] + names[:turned]:
                found[subject].append(children[subject].ask(do="time"))
    finally:
        for child in children.values():
            child.close()
    return found


def text_of(counts: dict[str, float], times: dict[str, list[float]]) -> str:
    """The figures as Markdown; either may be empty."""
    rows = []
    for subject in SUBJECTS:
        cells = [subject]
        if times:
            own, bare = times[subject], times["bare"]
            ratio = statistics.median(mine / theirs for mine, theirs in zip(own, bare, strict=True))
            cells += [
                f"{statistics.median(own) * 1e6:,.0f}", "" if subject == "bare" else f"+{ratio - 1:.1%}",
                "" if subject == "bare" else f"+{min(own) / min(bare) - 1:.1%}",
            ]  # fmt: skip
        if counts:
            more = counts[subject] - counts["bare"]
            cells += [f"{counts[subject]:,.0f}", "" if subject == "bare" else f"+{more / counts['bare']:.1%}"]
        rows.append(cells)
    head = ["10 queries"]
    head += ["CPU us a request", "of bare Django", "best rounds"] * bool(times)
    head += ["kI a request", "of bare Django"] * bool(counts)
    return publication.table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--count", action="store_true", help="instructions instead of time")
    parser.add_argument("--publish", action="store_true", help="both, into docs/ and benchmarks/results.json")
    parser.add_argument("--work", choices=SUBJECTS, help=argparse.SUPPRESS)
    parser.add_argument("--url", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.url)
        return
    receiver = Receiver()
    try:
        counts = count(receiver.url) if options.count or options.publish else {}
        times = compare(receiver.url, options.rounds) if not options.count or options.publish else {}
    finally:
        receiver.close()
    text = text_of(counts, times)
    print(text)
    if options.publish:
        data = {"machine": publication.machine(), "rounds": options.rounds, "instructions": counts, "cpu_s": times}
        publication.publish("everything", data, text)


if __name__ == "__main__":
    main()
