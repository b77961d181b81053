"""What each way to observe a Django project adds to a request, side by side.

    python -m benchmarks.peers                  everything: 20 to 25 minutes on two idle cores
    python -m benchmarks.peers --quick          a smaller set, some minutes
    python -m benchmarks.peers --peers official django-prometheus --cases json queries --instructions

Makes an environment per peer (kept under --cache), starts PostgreSQL, checks
that each configuration emits what it claims, counts instructions, takes times
in interleaved rounds, and writes tables, results.json and performance.svg into
the folder of --output. What is finished is kept there: --resume goes on.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import callgrind, publication
from benchmarks.peers import checks, environments, provenance, report
from benchmarks.peers.catalogue import CASES, PEERS, VARIANTS, Case, Peer, Variant, configurations, why_not
from benchmarks.peers.process import Configuration, Databases, NotSupportedError, WorkerError, start_databases

_QUICK_CASES = ["json", "queries", "postgres-queries", "async"]
#: How often a loop is counted; the least count is the one that no background thread added to.
_REPEATS = 2
#: How long a process is watched doing nothing, in seconds.
_IDLE_S = 10
_QUICK_VARIANTS = ["off", "all", "all+export"]


class Run:
    """One run: what to measure, and what is known so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.cases = [case for case in CASES if case.name in options.cases]
        self.wanted = list(configurations(options.peers, options.variants))
        self.path: Path = options.output / "results.json"
        self.results: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._end_s = time.monotonic() + options.minutes * 60
        if options.resume and self.path.exists():
            self.results = json.loads(self.path.read_text())
        for key in ("emission", "instructions", "idle", "wall", "counted"):
            self.results.setdefault(key, {})
        # What failed is tried again.
        self.results["errors"] = {}
        self.results.update(machine=publication.machine(), made_at=time.strftime("%Y-%m-%d"), rounds=options.rounds)

    def keep(self, kind: str, name: str, case: str, value: Any) -> None:
        """Note a figure and write everything down, so that an interrupted run is not lost."""
        with self._lock:
            self.results[kind].setdefault(name, {})[case] = value
            self._write()

    def fail(self, name: str, where: str, error: Exception) -> None:
        with self._lock:
            self.results["errors"][f"{name} {where}"] = str(error)
            self._write()
        say(f"  {name} {where}: {error}")

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(self.results, indent=1))
        temporary.replace(self.path)

    def is_over(self) -> bool:
        """Whether the time is up; what is missing then is not measured, and what is there is reported."""
        return time.monotonic() > self._end_s

    def cases_of(self, peer: Peer, databases: Databases) -> list[Case]:
        return [
            case
            for case in self.cases
            if not why_not(peer, case) and (databases.postgres is not None or not case.needs_postgres)
        ]

    # --- The environments. ---

    def prepare(self) -> None:
        """Make the environments that are wanted; a peer that cannot be installed is left out."""
        versions: dict[str, Any] = {}
        for name in dict.fromkeys(["django-otel", *(peer.name for peer, _ in self.wanted)]):
            say(f"environment {name}")
            try:
                python = environments.build(name, self.options.cache)
            except RuntimeError as error:
                if name == "django-otel":
                    raise
                self.fail(name, "environment", error)
                self.wanted = [(peer, variant) for peer, variant in self.wanted if peer.name != name]
                continue
            found = environments.versions(python)
            versions[name] = {key: found[key] for key in sorted(found) if key not in ("pip", "setuptools")}
        self.results["versions"] = {**self.results.get("versions", {}), **versions}
        for peer, variant in configurations():
            if (peer, variant) in self.wanted or f"{peer.name}/{variant.name}" in self.results["counted"]:
                self._forget_stale(peer, variant)

    def _forget_stale(self, peer: Peer, variant: Variant) -> None:
        """Keep what an earlier run counted of a configuration only while all that it depends on is the same."""
        name = f"{peer.name}/{variant.name}"
        now = provenance.provenance(peer, variant, self.results["versions"].get(peer.name, {}))
        before = self.results["counted"].get(name)
        if before is not None:
            what = provenance.changes(before["depends_on"], now)
            reason = "as asked for" if peer.name in self.options.again else what and f"other than before: {what}"
            if not reason:
                return
            say(f"  {name}: counted again, {reason}")
        for kind in ("emission", "instructions", "idle", "wall"):
            self.results[kind].pop(name, None)
        self.results["counted"][name] = {"depends_on": now, "on": time.strftime("%Y-%m-%d")}

    # --- What is emitted. ---

    def check(self, peer: Peer, variant: Variant, databases: Databases) -> None:
        """See whether the configuration emits what it claims in every case."""
        name = f"{peer.name}/{variant.name}"
        missing = [
            case for case in self.cases_of(peer, databases) if case.name not in self.results["emission"].get(name, {})
        ]
        if not missing or self.is_over():
            return
        with self._started(peer, variant, databases, "check") as configuration:
            if configuration is None:
                return
            requests = checks.requests_to_check(variant)
            for case in missing:
                try:
                    found = configuration.emission(case.name, requests)
                except WorkerError as error:
                    found = {"faults": [str(error)]}
                else:
                    found["faults"] = checks.faults(peer, variant, case, requests, found)
                for fault in found["faults"]:
                    say(f"  {name}, {case.title}: {fault}")
                self.keep("emission", name, case.name, found)

    # --- Instructions. ---

    def count(self, peer: Peer, variant: Variant, databases: Databases) -> None:
        """Count the instructions of a request in every case."""
        name = f"{peer.name}/{variant.name}"
        missing = [
            case
            for case in self.cases_of(peer, databases)
            if case.name not in self.results["instructions"].get(name, {})
        ]
        if not missing or self.is_over():
            return
        started_s = time.monotonic()
        with self._started(
            peer, variant, databases, "instructions", counts_instructions=True, stops_clocks=True
        ) as configuration:
            if configuration is None:
                return
            with contextlib.suppress(WorkerError):
                # What fails here says so again below.
                for case in missing:
                    configuration.ask("warm", case.name)
            for case in missing:
                # Enough to see a share of 10 %, which is then set right.
                many = case.many * (3 if 0 < variant.ratio < 1 else 1)
                try:
                    counts = {
                        length: [configuration.count(case.name, length) for _ in range(_REPEATS)]
                        for length in (case.few, many)
                    }
                except WorkerError as error:
                    self.fail(name, case.name, error)
                    break
                self.keep("instructions", name, case.name, {str(length): found for length, found in counts.items()})
        say(f"  {name}: counted in {time.monotonic() - started_s:.0f} s")

    def count_idle(self, peer: Peer, variant: Variant, databases: Databases) -> None:
        """Count what a second costs in which nothing happens: the threads that work by the clock."""
        name = f"{peer.name}/{variant.name}"
        if variant.name not in ("bare", "metrics", "off") or name in self.results["idle"] or self.is_over():
            return
        with self._started(peer, variant, databases, "idle", counts_instructions=True) as configuration:
            if configuration is not None:
                try:
                    self.keep("idle", name, "json", configuration.ask("idle", "json", seconds=_IDLE_S))
                except WorkerError as error:
                    self.fail(name, "idle", error)

    # --- Time. ---

    def take_times(self, databases: Databases) -> None:
        """Blocks of requests, round after round, each configuration once in a round and a case, in changing order."""
        with contextlib.ExitStack() as stack:
            running: list[Configuration] = []
            for peer, variant in self.wanted:
                configuration = stack.enter_context(self._started(peer, variant, databases, "wall"))
                if configuration is not None:
                    running.append(configuration)
            say(f"{len(running)} processes, {self.options.rounds} rounds")
            # Rounds of two runs are never compared with each other.
            self.results["wall"] = {}
            times: dict[tuple[str, str], dict[str, list[float]]] = {}
            order = random.Random(1)
            for number in range(self.options.rounds):
                if self.is_over():
                    say(f"the time is up after {number} rounds")
                    self.results["rounds"] = number
                    break
                for case in self.cases:
                    able = [found for found in running if case in self.cases_of(found.peer, databases)]
                    order.shuffle(able)
                    for configuration in able:
                        try:
                            found = configuration.ask("time", case.name, requests=case.block)
                        except WorkerError as error:
                            self.fail(configuration.name, f"{case.name} time", error)
                            running.remove(configuration)
                            continue
                        kept = times.setdefault((configuration.name, case.name), {"wall_us": [], "cpu_us": []})
                        for clock in ("wall", "cpu"):
                            kept[f"{clock}_us"].append(round(found[f"{clock}_s"] / case.block * 1e6, 2))
                for (name, case_name), kept in times.items():
                    self.results["wall"].setdefault(name, {})[case_name] = kept
                self._write()
                if number % 5 == 0:
                    say(f"  round {number + 1}")

    @contextlib.contextmanager
    def _started(
        self, peer: Peer, variant: Variant, databases: Databases, where: str, **how: bool
    ) -> Iterator[Configuration | None]:
        try:
            configuration = Configuration(peer, variant, self.options.cache, databases, **how)
        except NotSupportedError as reason:
            say(f"  {peer.name}/{variant.name} left out: {reason}")
            yield None
            return
        except WorkerError as error:
            self.fail(f"{peer.name}/{variant.name}", where, error)
            yield None
            return
        with configuration:
            yield configuration


_started_s = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - _started_s:5.0f} s] {text}", file=sys.stderr, flush=True)


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", nargs="+", choices=[name for name in PEERS if name != "bare"], metavar="PEER",
                        help="only these: " + ", ".join(name for name in PEERS if name != "bare"))  # fmt: skip
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], metavar="CASE",
                        help="only these: " + ", ".join(case.name for case in CASES))  # fmt: skip
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), metavar="VARIANT",
                        help="only these: " + ", ".join(VARIANTS))  # fmt: skip
    parser.add_argument("--check", action="store_true", help="see whether all emit what they claim, measure nothing")
    parser.add_argument("--instructions", action="store_true", help="count instructions, take no times")
    parser.add_argument("--wall", action="store_true", help="take times, count no instructions")
    parser.add_argument("--rounds", type=int, default=21, help="interleaved rounds of times (default 21)")
    parser.add_argument("--minutes", type=float, default=60, help="begin nothing new after this time (default 60)")
    parser.add_argument("--quick", action="store_true", help="four cases, three variants, 7 rounds")
    parser.add_argument("--no-postgres", action="store_true", help="SQLite alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes counted at a time")
    parser.add_argument("--cache", type=Path, default=publication.ROOT / ".cache" / "benchmarks",
                        help="where environments are kept (default .cache/benchmarks)")  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder of results.json and performance.svg (default: --cache)")
    parser.add_argument("--resume", action="store_true",
                        help="keep what earlier runs with this --output finished while it holds")  # fmt: skip
    parser.add_argument("--again", nargs="+", choices=list(PEERS), default=[], metavar="PEER",
                        help="with --resume, measure these again")  # fmt: skip
    parser.add_argument("--publish", action="store_true", help="put the figures into docs/ and benchmarks/results.json")
    options = parser.parse_args(arguments)
    if options.quick:
        options.cases = options.cases or _QUICK_CASES
        options.variants = options.variants or _QUICK_VARIANTS
        options.rounds = min(options.rounds, 7)
    options.cases = options.cases or [case.name for case in CASES]
    options.cache = options.cache.resolve()
    options.output = (options.output or options.cache).resolve()
    if not options.instructions and not options.wall and not options.check:
        options.instructions = options.wall = True
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    if options.instructions and (reason := callgrind.why_not()):
        print(f"No instructions are counted: {reason}", file=sys.stderr)
        options.instructions = False
        if not options.wall:
            return 1
    run = Run(options)
    run.prepare()
    with start_databases(options.cache, with_postgres=not options.no_postgres) as databases:
        # Counting does not mind company, and neither does checking.
        with concurrent.futures.ThreadPoolExecutor(max(1, options.jobs)) as pool:
            say("what is emitted")
            list(pool.map(lambda pair: run.check(*pair, databases), run.wanted))
            if options.instructions:
                say("instructions")
                list(pool.map(lambda pair: run.count(*pair, databases), run.wanted))
                list(pool.map(lambda pair: run.count_idle(*pair, databases), run.wanted))
        if options.wall:
            run.take_times(databases)
    if options.check and not options.instructions and not options.wall:
        return 1 if run.results["errors"] else 0
    text = report.tables(run.results)
    print(text)
    drawing = report.chart(run.results)
    (options.output / "performance.svg").write_text(drawing)
    (options.output / "performance.md").write_text(text + "\n")
    if options.publish:
        publication.publish("peers", report.summary(run.results), text)
        (publication.ROOT / "docs" / "images" / "performance.svg").write_text(drawing)
    say(f"written to {options.output}")
    return 1 if run.results["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
