"""Applied and unapplied migrations of each database, read off the request path.

On with `DATABASE.METRICS`. Metric `django.migrations`. The first scrape of a process starts a thread that reads the
tables of migrations; it waits for it at most a second. Later scrapes show the last result, and start the thread again
once that is 15 s old, or 5 min when no migration is missing. Requests cost nothing.
"""

from __future__ import annotations

import math
import threading
import time
from typing import Any

from django.db import connections
from django.db.utils import DEFAULT_DB_ALIAS

from django_otel import runtime
from django_otel.base import forks, guard
from django_otel.base.suppression import suppress_instrumentation
from django_otel.config.schema import Config
from django_otel.metrics import catalogue

_METRIC = "django.migrations"
_DUMMY = "django.db.backends.dummy"
_COMPLETE_AGE_S = 300.0
_INCOMPLETE_AGE_S = 15.0
#: How long a scrape waits for the first result.
_FIRST_WAIT_S = 1.0

#: A number of migrations, and the database and state it is for.
Reading = tuple[float, dict[str, object]]


class MigrationCounts:
    """The last known numbers of this process, and the thread that reads them again."""

    def __init__(self) -> None:
        self.is_on = False
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        """Read again at the next scrape (in a forked child, whose parent's thread is not there, and for tests)."""
        self._lock = threading.Lock()
        self._found: list[Reading] = []
        self._read_at_s = -math.inf
        self._done: threading.Event | None = None

    def read(self) -> list[Reading]:
        """Return what is known, and have it read again when it is old."""
        if not self.is_on or runtime.current().membership.is_patched_late:
            return []
        if runtime.current().is_quiet:
            # A thread would see neither the transaction of the test nor its database in memory.
            self._read_here()
            return self._found
        with self._lock:
            is_first = self._read_at_s == -math.inf
            is_due = self._done is None and time.monotonic() - self._read_at_s >= self._age_s()
            if is_due:
                self._done = threading.Event()
            done = self._done
        if is_due and done is not None:
            self._start(done)
        if is_first and done is not None:
            done.wait(_FIRST_WAIT_S)
        return self._found

    def _start(self, done: threading.Event) -> None:
        # Outside the lock, which may be the system's: where threads are greenlets, this one runs at once.
        thread = threading.Thread(target=self._run, args=(done,), name="django_otel migrations", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # The machine has no thread left, or the interpreter is ending.
            self._done = None
            done.set()

    def _age_s(self) -> float:
        missing = any(count for count, attributes in self._found if attributes["django.migration.state"] != "applied")
        return _INCOMPLETE_AGE_S if missing or not self._found else _COMPLETE_AGE_S

    def _run(self, done: threading.Event) -> None:
        try:
            with guard.contained("counting migrations"), suppress_instrumentation():
                self._found = count_all([alias for alias, entry in _databases()])
        finally:
            with guard.contained("closing the connections after counting migrations"):
                for connection in connections.all(initialized_only=True):
                    connection.close()
            with self._lock:
                self._read_at_s = time.monotonic()
                self._done = None
            done.set()

    def _read_here(self) -> None:
        """Read in this thread, on the connections it has open; not where a test counts queries."""
        if time.monotonic() - self._read_at_s < self._age_s():
            return
        opened = [found for found in connections.all(initialized_only=True) if found.connection is not None]
        aliases = [found.alias for found in opened]
        if aliases and not any(found.force_debug_cursor for found in opened):
            with suppress_instrumentation():
                self._found = count_all(aliases)
            self._read_at_s = time.monotonic()


def _databases() -> list[tuple[str, dict[str, Any]]]:
    return [(alias, entry) for alias, entry in connections.settings.items() if entry["ENGINE"] != _DUMMY]


def count_all(aliases: list[str]) -> list[Reading]:
    """Return the numbers for these databases; one that cannot be asked is left out."""
    found: list[Reading] = []
    for alias in aliases:
        try:
            counts = _count(alias)
        except Exception as error:
            guard.pass_on(error)
            guard.warn_once(
                f"django.migrations {alias}",
                "django.migrations: the migrations of the database %s cannot be read now (%s).",
                alias,
                type(error).__name__,
            )
            continue
        if counts is not None:
            for state, number in zip(("applied", "unapplied"), counts, strict=True):
                found.append((float(number), {"django.db.alias": alias, "django.migration.state": state}))
    return found


def _count(alias: str) -> tuple[int, int] | None:
    """Applied and unapplied migrations; None for a database that has none to have, such as a replica's."""
    with forks.importing.using():
        from django.db.migrations.loader import MigrationLoader
        from django.db.migrations.recorder import MigrationRecorder

    connection = connections[alias]
    if connection.vendor == "sqlite" and connection.settings_dict["NAME"] in ("", ":memory:"):
        # Each thread has one of its own.
        return None
    if alias != DEFAULT_DB_ALIAS and not MigrationRecorder(connection).has_table():
        return None
    loader = MigrationLoader(connection, ignore_no_migrations=True)
    # Of a squashed migration and those it replaces the graph has what `migrate` would use.
    nodes = set(loader.graph.nodes)
    applied = len(nodes & set(loader.applied_migrations))
    return applied, len(nodes) - applied


counts = MigrationCounts()
forks.register("instrumentation.migrations", counts.forget)


def install(config: Config) -> None:
    """Follow the settings; may be called again and again. Reads nothing."""
    counts.is_on = config.enabled and config.database.metrics
    if counts.is_on:
        metric = catalogue.CATALOGUE[_METRIC]
        runtime.store.observable_gauge(metric.name, counts.read, metric.unit, metric.description)


def uninstall() -> None:
    """Show nothing more."""
    counts.is_on = False
