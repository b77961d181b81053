"""Measured processes and the databases they use, seen from the process that runs the benchmark."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from benchmarks import callgrind
from benchmarks.peers.catalogue import Peer, Variant
from benchmarks.peers.environments import ROOT, python_of
from benchmarks.peers.receiver import Emission, Receiver


class WorkerError(Exception):
    """A measured process failed; the message is its traceback or the end of its log."""


class NotSupportedError(Exception):
    """The installed version of a peer does not know the variant."""


def clean_environment() -> dict[str, str]:
    """This process's environment without what would configure a peer behind our back."""
    prefixes = ("OTEL_", "DD_", "SENTRY_", "ELASTIC_", "LOGFIRE_", "DJANGO_", "PROMETHEUS_", "PYTHON", "BENCHMARK_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    # The measured code, and not what was compiled of an older one.
    return {**kept, "PYTHONPATH": str(ROOT), "LOGFIRE_IGNORE_NO_CONFIG": "1"}


class Databases:
    """A prepared SQLite file, and PostgreSQL's settings or None."""

    def __init__(self, sqlite: Path, postgres: dict[str, Any] | None) -> None:
        self.sqlite = sqlite
        self.postgres = postgres


@contextlib.contextmanager
def start_databases(cache: Path, *, with_postgres: bool) -> Iterator[Databases]:
    """Databases with the measured project's tables and rows."""
    folder = Path(tempfile.mkdtemp(prefix="django-otel-peers-"))
    # PostgreSQL runs as a user of its own where we are root, who must be able to get there.
    folder.chmod(0o755)
    sqlite = folder / "prepared.sqlite3"
    command = [str(python_of("django-otel", cache)), "-m", "benchmarks.peers.services", str(sqlite)]
    if with_postgres:
        command += ["--postgres", str(folder / "postgres")]
    log = (folder / "services.log").open("wb")
    process = subprocess.Popen(
        command, cwd=ROOT, env=clean_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
    )
    try:
        line = process.stdout.readline() if process.stdout else b""
        if not line:
            process.wait(10)
            raise WorkerError(f"The databases did not start:\n{(folder / 'services.log').read_text()}")
        yield Databases(sqlite, json.loads(line))
    finally:
        _end(process, 20)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _end(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Close its input, which asks it to end; kill it when it does not."""
    with contextlib.suppress(OSError):
        if process.stdin:
            process.stdin.close()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()


class Configuration:
    """One peer in one variant, running."""

    def __init__(
        self,
        peer: Peer,
        variant: Variant,
        cache: Path,
        databases: Databases,
        *,
        counts_instructions: bool = False,
        stops_clocks: bool = False,
    ) -> None:
        self.peer = peer
        self.variant = variant
        self.receiver = Receiver()
        self._folder = Path(tempfile.mkdtemp(prefix="django-otel-peer-"))
        sqlite = self._folder / "db.sqlite3"
        shutil.copy(databases.sqlite, sqlite)
        command = [
            str(python_of(peer.name, cache)), "-m", "benchmarks.peers.worker", "--peer", peer.name,
            "--variant", variant.name, "--sqlite", str(sqlite), "--endpoint", self.receiver.url,
            "--postgres", json.dumps(databases.postgres) if databases.postgres else "",
        ]  # fmt: skip
        if stops_clocks:
            command.append("--stop-clocks")
        environment = clean_environment()
        if counts_instructions:
            command = callgrind.command(command, self._folder)
            environment = callgrind.environment(environment, self._folder)
        self._log = (self._folder / "log").open("wb")
        self._process = subprocess.Popen(
            command, cwd=self._folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
        )
        try:
            self._read(timeout_s=300)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        return f"{self.peer.name}/{self.variant.name}"

    def close(self) -> None:
        self.receiver.close()
        _end(self._process, 10)
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def ask(self, do: str, case: str, timeout_s: float = 600, **arguments: Any) -> dict[str, Any]:
        """What the worker answers.

        Errors: `WorkerError` when it fails, ends, or takes longer than `timeout_s`.
        """
        order = json.dumps({"do": do, "case": case, **arguments}).encode() + b"\n"
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(order)
            self._process.stdin.flush()
        except OSError as error:
            raise WorkerError(self._last_words()) from error
        return self._read(timeout_s)

    def _read(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline() if ready else b""
        if not ready:
            self._process.kill()
            raise WorkerError(f"{self.name} did not answer within {timeout_s:.0f} s.\n{self._last_words()}")
        if not line:
            raise WorkerError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "unsupported" in answer:
            raise NotSupportedError(answer["unsupported"])
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._log.flush()
        text = (self._folder / "log").read_text(errors="replace")
        return f"{self.name} ended: {text[-2000:]}"

    @property
    def _is_counted_here(self) -> bool:
        return self.variant.exports or not self.peer.shows_emission

    def emission(self, case: str, requests: int) -> dict[str, Any]:
        """What `requests` requests emit: counted where it arrives, when it is exported, else where it is dropped."""
        if not self._is_counted_here:
            return self.ask("check", case, requests=requests)
        # A first one, so that what the warm-up left behind has arrived.
        self.ask("check", case, requests=1)
        with self._counting(requests) as emission:
            found = self.ask("check", case, requests=requests)
        found.update(requests=emission.requests, queries=emission.queries, trace_ids=sorted(emission.trace_ids))
        return found

    def count(self, case: str, requests: int) -> tuple[float, int]:
        """Instructions of a loop of requests, and how many of them were recorded."""
        if self.variant.ratio in (0, 1) or not self._is_counted_here:
            found = self.ask("count", case, requests=requests)
            return found["instructions"], found["recorded"]
        with self._counting(requests) as emission:
            found = self.ask("count", case, requests=requests)
        return found["instructions"], emission.requests

    @contextlib.contextmanager
    def _counting(self, requests: int) -> Iterator[Emission]:
        """Read what arrives; a peer's flush may return before its last message is read here."""
        time.sleep(0.3)
        self.receiver.emission, self.receiver.is_counting = Emission(), True
        try:
            yield self.receiver.emission
            for _ in range(50 if self.variant.ratio == 1 else 5):
                time.sleep(0.1)
                if self.receiver.emission.requests >= requests:
                    break
        finally:
            self.receiver.is_counting = False
        if self.receiver.faults:
            raise WorkerError(f"{self.name} sent what cannot be read: {self.receiver.faults[:3]}")
