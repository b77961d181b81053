"""Live log levels: from their rows in the database to the loggers of every process.

They take the way of the sampling policy (`follower`): the process that saves
writes a file that all processes of the host look at every half second, and the
one that is elected to ask the database finds the changes of other hosts. Each
process ends a level by its own clock. Nothing here runs on the path of a
request, except the one that saves.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseFault
from django.db import router

from django_otel.base import guard
from django_otel.base.log_levels import MAX_LEVELS, LiveLevel, levels
from django_otel.base.suppression import suppress_instrumentation
from django_otel.live_sampling.policy_rows import epoch_s, migrate_command, policy_alias, tables_exist

if TYPE_CHECKING:
    from datetime import datetime

    from django_otel.multiprocess.host_registry import HostRegistry
    from django_otel.multiprocess.level_file import LevelFile, LevelReading


def level_alias() -> str:
    """Return the database alias of the rows: the one for writing, as a replica may lag."""
    from django_otel.models import LogLevel

    return router.db_for_write(LogLevel)


def read_levels(alias: str) -> LevelReading:
    """Return the levels that the database has and that have not ended. Errors: those of the database."""
    from django_otel.models import LogLevel

    began_s = time.monotonic()
    with suppress_instrumentation():
        rows = LogLevel._base_manager.using(alias).order_by("logger").values_list("logger", "level", "expires_at")
        return build_reading(rows[: 2 * MAX_LEVELS], began_s)


def build_reading(rows: Iterable[tuple[str, str, datetime | None]], began_s: float) -> LevelReading:
    """Return the reading of rows of (logger, level, end), in the order of loggers, without those that have ended."""
    from django_otel.multiprocess.level_file import LevelReading

    found = [LiveLevel(logger, level, epoch_s(end) or 0.0) for logger, level, end in rows]
    now_s = time.time()
    return LevelReading(tuple(live for live in found if live.expires_at_s > now_s)[:MAX_LEVELS], began_s)


class LevelFollower:
    """Keeps the loggers of this process at the levels of the rows; a part of the process's `Follower`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: LevelFile | None = None
        self._reading: LevelReading | None = None
        self._began_s = -math.inf

    def tick(self, registry: HostRegistry | None) -> None:
        """Look at the file of this host, and end what has ended."""
        if registry is not None:
            file = self._file_of(registry)
            if file.has_changed():
                try:
                    reading = file.read()
                except (ValueError, RecursionError) as error:
                    guard.warn_once("level file", "django_otel: the file with the log levels is ignored: %s", error)
                else:
                    if reading is not None:
                        self.take(reading)
        self._apply()

    def _file_of(self, registry: HostRegistry) -> LevelFile:
        from django_otel.multiprocess.level_file import LevelFile

        file = self._file
        if file is None or file.registry is not registry:
            file = self._file = LevelFile(registry)
        return file

    def take(self, reading: LevelReading) -> None:
        """Let a reading hold, unless a later one does."""
        with self._lock:
            if reading.began_s < self._began_s:
                return
            self._reading, self._began_s = reading, reading.began_s
        self._apply()

    def _apply(self) -> None:
        reading = self._reading
        if reading is None:
            return
        for name in levels.apply(reading.levels, time.time()):
            guard.warn_once(
                f"log level {name}", "django_otel: this process has no log level %r; its logger stays as it is.", name
            )

    def end(self) -> None:
        """Set every logger back: this process follows no more."""
        with self._lock:
            self._reading, self._began_s = None, -math.inf
            self._file = None
        levels.restore_all()

    def poll(self, registry: HostRegistry | None, *, is_following: bool = True) -> None:
        """Read the rows through this thread's connection, apply them if this process follows, and share them."""
        alias = level_alias()
        try:
            reading = read_levels(alias)
        except (DatabaseFault, ImproperlyConfigured, OSError) as error:
            # Those that hold go on and end by themselves.
            if alias == policy_alias() and tables_exist(alias) is False:
                # The same migration makes the tables of the sampling policy, whose fault names it.
                return
            guard.warn_once(
                "log level rows",
                "django_otel: the log levels cannot be read (%s). If their table is missing, run: %s",
                type(error).__name__, migrate_command(alias),
            )  # fmt: skip
            return
        self.spread(reading, registry, is_following=is_following)

    def spread(self, reading: LevelReading, registry: HostRegistry | None, *, is_following: bool = True) -> None:
        """Apply a reading of the rows if this process follows, and share it."""
        if is_following:
            self.take(reading)
        if registry is not None:
            with contextlib.suppress(FileNotFoundError):
                self._file_of(registry).publish(reading)
