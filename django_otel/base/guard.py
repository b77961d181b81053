"""Keeps telemetry's own faults away from the application.

Only `Exception` is contained. `KeyboardInterrupt`, `SystemExit`,
`asyncio.CancelledError` and the like pass through: a guard that eats them
hangs workers. So does what a signal's handler raises while this code runs,
such as the time limit of a task in Celery (`SoftTimeLimitExceeded`) or RQ
(`JobTimeoutException`): it is meant for the application.
"""

from __future__ import annotations

import functools
import logging
import signal
import threading
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, TypeVar

logger = logging.getLogger("django_otel")

P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D")


class _Faults:
    """Faults that were reported so far, by place."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.logged: set[str] = set()
        self.counts: dict[str, int] = {}


_faults = _Faults()
#: A place is a fixed string in our code, so this bound is never met; it guards against a place made from data.
_MAX_PLACES = 500


def renew_lock() -> None:
    """In a forked child: a thread that it does not have may hold the lock."""
    _faults.lock = threading.Lock()


def report(place: str, error: BaseException) -> None:
    """Count a contained fault and log it, with its traceback, the first time it happens at `place`.

    The exception's text is not logged on its own line, and later faults at the
    same place are only counted, so that a client cannot fill the log.

    Raises `error` where it is no fault: a signal's handler raised it.
    """
    pass_on(error)
    with _faults.lock:
        _faults.counts[place] = _faults.counts.get(place, 0) + 1
        first = place not in _faults.logged and len(_faults.logged) < _MAX_PLACES
        if first:
            _faults.logged.add(place)
    if first:
        logger.error(
            "django_otel: %s failed and was contained; the application is not affected. "
            "Further failures here are counted, not logged.",
            place,
            exc_info=(type(error), error, error.__traceback__),
        )


def pass_on(error: BaseException) -> None:
    """Raise `error` where a signal's handler raised it; for what is contained and is no fault of ours to report."""
    if _is_from_signal(error):
        raise error


def _is_from_signal(error: BaseException) -> bool:
    """Return whether a handler of a signal, which runs between any two steps of the main thread, raised `error`."""
    if threading.current_thread() is not threading.main_thread():
        return False
    codes = {_code_of(signal.getsignal(number)) for number in range(1, signal.NSIG)} - {None}
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code in codes:
            return True
        step = step.tb_next
    return False


def _code_of(handler: object) -> object:
    """Return the code of a function, of a method, or of what is called like one; None without any."""
    call = handler if hasattr(handler, "__code__") else getattr(handler, "__call__", None)  # noqa: B004 (not asked for)
    return getattr(call, "__code__", None)


def warn_once(place: str, message: str, *arguments: object) -> None:
    """Log a warning the first time `place` has something to say."""
    with _faults.lock:
        if place in _faults.logged or len(_faults.logged) >= _MAX_PLACES:
            return
        _faults.logged.add(place)
    logger.warning(message, *arguments)


def fault_counts() -> dict[str, int]:
    """Return how many faults were contained so far in this process, by place."""
    with _faults.lock:
        return dict(_faults.counts)


def reset() -> None:
    """Forget what was logged and counted (for tests)."""
    with _faults.lock:
        _faults.logged.clear()
        _faults.counts.clear()


class contained:  # noqa: N801 (used as a function is, like `contextlib.suppress`)
    """Run a block whose `Exception` must not reach the application; `place` is where a report says it was."""

    # A class, because a context manager made of a generator is slower.
    __slots__ = ("_place",)

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if kind is None or not isinstance(error, Exception):
            return False
        report(self._place, error)
        return True


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
