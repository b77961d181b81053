"""Health checks: what `/readyz` and `/startupz` require (`HEALTH`).

Each check runs on a thread of its own, all of them at once. A check that has
not returned is not started a second time, so a database that hangs holds one
thread however often a probe asks.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.apps import apps
from django.core.cache import caches
from django.core.cache.backends.dummy import DummyCache
from django.db import connections
from django.utils.module_loading import import_string

from django_otel import runtime
from django_otel.base import forks, frozen, guard
from django_otel.base.suppression import suppress_instrumentation

logger = logging.getLogger("django_otel")

_DUMMY_DATABASE = "django.db.backends.dummy"
_CACHE_KEY = "django_otel:health"
_CACHE_S = 60
_MAX_DETAIL = 500
_MAX_NAMED = 5


class NotApplied(Exception):  # noqa: N818 (named in the answer)
    """Migrations are missing in a database."""


class NotStored(Exception):  # noqa: N818 (named in the answer)
    """A cache did not return the value it was given."""


@frozen.record
class Result:
    """Outcome of one check. `problem` may be read by anyone ("" is healthy); `detail` only by operators."""

    name: str
    duration_s: float
    problem: str = ""
    detail: str = ""


@dataclass(slots=True)
class _Run:
    """One execution of a check on its thread."""

    started_s: float
    done: threading.Event = field(default_factory=threading.Event)
    result: Result | None = None


class HealthChecks:
    """Runner of the checks of this process: parallel, each at most once at a time.

    The app's configuration holds the one of this process.
    """

    def __init__(self) -> None:
        #: By alias, the migrations that were all applied: loading them from disk takes far longer than the query.
        self._applied: dict[str, frozenset[tuple[str, str]]] = {}
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._runs: dict[str, _Run] = {}
        self._failing: dict[str, tuple[str, ...]] = {}

    def evaluate(self, probe: str, names: Iterable[str], timeout_s: float) -> list[Result]:
        """Run the checks `names` for the page `probe` and return their results, in that order.

        A check without an answer after `timeout_s` seconds has failed. A change
        of what fails is logged once.
        """
        if self._pid != os.getpid():
            # The threads and the lock's owner stayed in the parent.
            self._reset()
        deadline_s = time.monotonic() + timeout_s
        wanted = expand(names)
        runs = {name: self._start(name) for name in wanted if name != "config"}
        results = [
            self._wait(name, runs[name], deadline_s, timeout_s) if name in runs else check_started() for name in wanted
        ]
        self._log_change(probe, results)
        return results

    def _start(self, name: str) -> _Run:
        with self._lock:
            run = self._runs.get(name)
            if run is not None and not run.done.is_set():
                return run
            run = self._runs[name] = _Run(time.monotonic())
        # Outside the lock, which may be the system's: where threads are greenlets, this one runs at once.
        thread = threading.Thread(
            target=self._execute, args=(name, run), name=f"django_otel health {name}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            # The machine has no thread left, or the interpreter is ending.
            run.result = _failure(name, run, error)
            run.done.set()
        return run

    def _wait(self, name: str, run: _Run, deadline_s: float, timeout_s: float) -> Result:
        # A run that is late already gets no second period.
        limit_s = min(deadline_s, run.started_s + timeout_s)
        run.done.wait(max(0.0, limit_s - time.monotonic()))
        if run.result is not None:
            return run.result
        waited_s = time.monotonic() - run.started_s
        return Result(name, waited_s, f"no answer within {timeout_s:g} s", f"no answer for {waited_s:.1f} s")

    def _log_change(self, probe: str, results: Sequence[Result]) -> None:
        failing = tuple(result.name for result in results if result.problem)
        with self._lock:
            before, self._failing[probe] = self._failing.get(probe, ()), failing
        if failing and failing != before:
            logger.warning(
                "/%s answers 503: %s", probe, "; ".join(describe(result) for result in results if result.problem)
            )
        elif before and not failing:
            logger.info("/%s answers 200 again", probe)

    # --- On the check's own thread. ---

    def _execute(self, name: str, run: _Run) -> None:
        try:
            with suppress_instrumentation():
                self._find_check(name)()
            run.result = Result(name, time.monotonic() - run.started_s)
        except BaseException as error:  # noqa: BLE001, RUF100 (a thread of ours: nothing passes on, and none may be lost)
            run.result = _failure(name, run, error)
        finally:
            with guard.contained("closing the connections of a health check"):
                _close_connections()
            run.done.set()

    def _find_check(self, name: str) -> Callable[[], None]:
        if name == "migrations":
            return functools.partial(check_migrations, self._applied)
        kind, separator, alias = name.partition(":")
        if separator:
            return functools.partial({"database": check_database, "cache": check_cache}[kind], alias)
        return functools.partial(call_project, name)


def get_checks() -> HealthChecks | None:
    """Return the runner of this process; None where the app is not installed."""
    checks: HealthChecks | None = getattr(apps.app_configs.get("django_otel"), "health_checks", None)
    return checks


def describe(result: Result) -> str:
    """One line about a failed check, for operators."""
    return f"{result.name} failed: {result.detail or result.problem}"


def expand(names: Iterable[str]) -> list[str]:
    """Replace `databases` and `caches` by one check per alias, without duplicates."""
    found: list[str] = []
    for name in names:
        if name == "databases":
            found += [f"database:{alias}" for alias in _databases()]
        elif name == "caches":
            found += [f"cache:{alias}" for alias in caches.settings]
        else:
            found.append(name)
    return list(dict.fromkeys(found))


def _databases() -> list[str]:
    return [alias for alias, entry in connections.settings.items() if entry["ENGINE"] != _DUMMY_DATABASE]


def _close_connections() -> None:
    """Close the connections that this thread has opened."""
    for connection in connections.all(initialized_only=True):
        connection.close()
        if connection.connection is not None:
            # Django keeps an SQLite database in memory open.
            connection.connection.close()
    for cache in caches.all(initialized_only=True):
        cache.close()


def _failure(name: str, run: _Run, error: BaseException) -> Result:
    kind = type(error).__name__
    detail = kind
    with guard.contained("describing a failed health check"):
        text = " ".join(runtime.current().scrubber.text(str(error)).split())
        detail = f"{kind}: {text}"[:_MAX_DETAIL] if text else kind
    return Result(name, time.monotonic() - run.started_s, kind, detail)


def check_started() -> Result:
    """Require that telemetry has started, or is switched off by the settings. Needs no thread."""
    if runtime.current().started:
        return Result("config", 0.0)
    return Result("config", 0.0, "django_otel has not started; is it in INSTALLED_APPS?")


def check_database(alias: str) -> None:
    """Connect to a database and have it answer a query.

    Errors: the driver's, as Django wraps them.
    """
    connection = connections[alias]
    connection.ensure_connection()
    if not connection.is_usable():
        raise ConnectionError(f"database {alias!r} accepts connections but answers no query")


def check_cache(alias: str) -> None:
    """Write a value to a cache and read it.

    Errors: the client's; `NotStored` if the client hides its errors.
    """
    cache = caches[alias]
    cache.set(_CACHE_KEY, "ok", _CACHE_S)
    value = cache.get(_CACHE_KEY)
    if value != "ok" and not isinstance(cache, DummyCache):
        raise NotStored(f"cache {alias!r} did not return the value it was given")


def check_migrations(applied: dict[str, frozenset[tuple[str, str]]]) -> None:
    """Require that every migration is applied in each database that Django migrates.

    `applied` remembers, by alias, what was complete once.

    A database other than `default` without a table of migrations is not one of those.

    Errors: `NotApplied`, naming the first ones.
    """
    with forks.importing.using():
        from django.db.migrations.executor import MigrationExecutor
        from django.db.migrations.recorder import MigrationRecorder

    for alias in _databases():
        connection = connections[alias]
        recorder = MigrationRecorder(connection)
        if alias != "default" and not recorder.has_table():
            continue
        if alias in applied and applied[alias] <= recorder.applied_migrations().keys():
            continue
        executor = MigrationExecutor(connection)
        plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
        if plan:
            names = [f"{migration.app_label}.{migration.name}" for migration, _ in plan]
            more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
            raise NotApplied(f"database {alias!r} lacks {', '.join(names[:_MAX_NAMED])}{more}")
        applied[alias] = frozenset(executor.loader.graph.nodes)


def call_project(path: str) -> None:
    """Call the project's own check, sync or async; it fails by raising.

    Errors: the project's.
    """
    with forks.importing.using():
        check = import_string(path)
    found: object = check()
    if inspect.isawaitable(found):
        asyncio.run(_await(found))


async def _await(awaitable: Any) -> None:
    await awaitable
