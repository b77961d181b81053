"""Keeps telemetry's own faults away from the application.

Only `Exception` is contained. `KeyboardInterrupt`, `SystemExit`,
`asyncio.CancelledError` and the like pass through: a guard that eats them
hangs workers.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

logger = logging.getLogger("django_otel")

P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D")

_logged: set[str] = set()
_counts: dict[str, int] = {}
_lock = threading.Lock()
#: A place is a fixed string in our code, so this bound is never met; it guards against a place made from data.
_MAX_PLACES = 500


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    # A thread that the child does not have may hold it.
    os.register_at_fork(after_in_child=_renew_lock)


def report(place: str, error: BaseException) -> None:
    """Count a contained fault and log it, with its traceback, the first time it happens at `place`.

    The exception's text is not logged on its own line, and later faults at the
    same place are only counted, so that a client cannot fill the log.
    """
    with _lock:
        _counts[place] = _counts.get(place, 0) + 1
        first = place not in _logged and len(_logged) < _MAX_PLACES
        if first:
            _logged.add(place)
    if first:
        logger.error(
            "django_otel: %s failed and was contained; the application is not affected. "
            "Further failures here are counted, not logged.",
            place,
            exc_info=(type(error), error, error.__traceback__),
        )


def warn_once(place: str, message: str, *arguments: object) -> None:
    """Log a warning the first time `place` has something to say."""
    with _lock:
        if place in _logged or len(_logged) >= _MAX_PLACES:
            return
        _logged.add(place)
    logger.warning(message, *arguments)


def fault_counts() -> dict[str, int]:
    """How many faults were contained so far in this process, by place."""
    with _lock:
        return dict(_counts)


def reset() -> None:
    """Forget what was logged and counted (for tests)."""
    with _lock:
        _logged.clear()
        _counts.clear()


@contextlib.contextmanager
def contained(place: str) -> Iterator[None]:
    """Run a block whose `Exception` must not reach the application."""
    try:
        yield
    except Exception as error:
        report(place, error)


def guarded(place: str, default: D) -> Callable[[Callable[P, R]], Callable[P, R | D]]:
    """Decorate a function so that an `Exception` in it is contained and `default` returned."""

    def decorate(function: Callable[P, R]) -> Callable[P, R | D]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R | D:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                report(place, error)
                return default

        return call

    return decorate
