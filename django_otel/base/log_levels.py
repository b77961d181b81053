"""Temporary levels of loggers: set, ended, and restored exactly."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from django_otel.base import forks
from django_otel.base.frozen import record

#: Most levels that hold at the same time.
MAX_LEVELS = 20
#: Longest name of a logger.
MAX_LOGGER_NAME = 200
#: Longest time that a level holds, in seconds.
MAX_LASTS_S = 24 * 3600
#: The root logger's name, as logging shows it.
ROOT = logging.root.name


@record
class LiveLevel:
    """A level for one logger until `expires_at_s` (seconds since the Unix epoch); `level` is a name of logging."""

    logger: str
    level: str
    expires_at_s: float


def level_names() -> list[str]:
    """Return the names of the levels of this process, highest first, one for each number, without NOTSET."""
    numbers = set(logging.getLevelNamesMapping().values()) - {logging.NOTSET}
    return [logging.getLevelName(number) for number in sorted(numbers, reverse=True)]


def level_number(name: str) -> int | None:
    """Return the number of a level; None for an unknown name. NOTSET cannot be set."""
    return logging.getLevelNamesMapping().get(name) or None


def logger_name(given: str) -> str:
    """Return the name of a logger without white space around it; `ROOT` for "".

    Errors: `ValueError` for one that is too long or has characters that cannot be printed.
    """
    name = given.strip()
    if len(name) > MAX_LOGGER_NAME or not name.isprintable():
        raise ValueError(given)
    return name or ROOT


class LiveLevels:
    """The levels that hold in this process for a time, and the ones they stand in for."""

    def __init__(self) -> None:
        self.renew_lock()
        #: By logger: the level it had, and the one set in its place.
        self._changed: dict[str, tuple[int, int]] = {}

    def renew_lock(self) -> None:
        self._lock = threading.Lock()

    def apply(self, levels: Iterable[LiveLevel], now_s: float) -> list[str]:
        """Set `levels`, without those that have ended, and end all others; return the unknown levels among them.

        Units: `now_s` is seconds since the Unix epoch.
        """
        unknown, wanted = [], dict[str, int]()
        for live in levels:
            if live.expires_at_s > now_s and len(wanted) < MAX_LEVELS:
                number = level_number(live.level)
                if number is None:
                    unknown.append(live.level)
                else:
                    wanted[live.logger] = number
        if not wanted and not self._changed:
            return unknown
        with self._lock:
            for name in [name for name in self._changed if name not in wanted]:
                self._restore(name)
            for name, number in wanted.items():
                self._set(name, number)
        return unknown

    def _set(self, name: str, number: int) -> None:
        logger = logging.getLogger(name)
        before = self._changed.get(name)
        if before is not None and before[1] == number == logger.level:
            return
        # A level that the application has set meanwhile is the one to go back to.
        earlier = before[0] if before is not None and logger.level == before[1] else logger.level
        self._changed[name] = earlier, number
        logger.setLevel(number)

    def _restore(self, name: str) -> None:
        earlier, number = self._changed.pop(name)
        logger = logging.getLogger(name)
        # Else the application has set another one meanwhile, which stays.
        if logger.level == number:
            logger.setLevel(earlier)

    def restore_all(self) -> None:
        """End every temporary level."""
        with self._lock:
            for name in list(self._changed):
                self._restore(name)

    def export_level(self, name: str, level: int) -> int:
        """Return the lowest level at which records of a logger are exported: `level`, or a lower one set for a time."""
        changed = self._changed
        if not changed:
            return level
        while name:
            found = changed.get(name)
            if found is not None:
                return min(level, found[1])
            name = name.rpartition(".")[0]
        found = changed.get(ROOT)
        return level if found is None else min(level, found[1])


levels = LiveLevels()


def _forget_of_parent() -> None:
    """In a forked child: it follows for itself, from its first measurement on, and would else never end a level."""
    levels.renew_lock()
    levels.restore_all()


forks.register("base.log_levels", _forget_of_parent)
