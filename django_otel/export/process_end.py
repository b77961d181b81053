"""Ends of a process at which Python runs no `atexit` hook.

`os._exit` ends the children of `multiprocessing`, of billiard (Celery's
prefork pool) and of RQ, and programs that say so; uvicorn ends itself by
raising the signal again that it has caught; a program may put another one in
its place by `os.exec*`; a signal without a handler, such as the SIGTERM that
stops a container, ends it at once. What waits is exported before.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from django_otel.base import guard, import_hooks

#: A signal with its default action that ends the process, and that can be waited for.
_ENDING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGBREAK") if hasattr(signal, name)
)
#: Signals from outside that end a process without a handler. SIGINT has one, and what a crash raises cannot wait.
_NAMES = (
    ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGXCPU", "SIGUSR1", "SIGUSR2", "SIGBREAK")
    # Elsewhere the default action of SIGIO is to do nothing.
    + (("SIGIO", "SIGPWR", "SIGSTKFLT") if sys.platform == "linux" else ())
)
_CAUGHT = (
    *(int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name)),
    *(range(signal.SIGRTMIN, signal.SIGRTMAX + 1) if hasattr(signal, "SIGRTMIN") else ()),
)
_MARK = "_django_otel_exports_first"


def export_first(export: Callable[[], object], export_before_exec: Callable[[], object], budget_s: float) -> None:
    """Call `export()` before this process or a forked child ends itself, and wait for it `budget_s` seconds at most.

    `export_before_exec()` is called before another program takes its place, which may fail: then it goes on.
    """

    finish = _build_finish(export, budget_s)

    def is_end(number: Any) -> bool:
        return number in _ENDING and signal.getsignal(number) is signal.SIG_DFL

    def is_own_group(group: int) -> bool:
        return group == 0 or (hasattr(os, "getpgrp") and group == os.getpgrp())

    _wrap(os, "_exit", lambda *_, **__: True, finish)
    _wrap(os, "abort", lambda *_, **__: True, finish)
    _wrap(signal, "raise_signal", lambda number, *_: is_end(number), finish)
    _wrap(os, "kill", lambda pid, number, *_: (pid == os.getpid() or is_own_group(-pid)) and is_end(number), finish)
    _wrap(os, "killpg", lambda group, number, *_: is_own_group(group) and is_end(number), finish)
    _wrap(signal, "pthread_kill", lambda _, number, *__: is_end(number), finish)
    # All others of their kind call one of these.
    for name in ("execv", "execve"):
        _wrap(os, name, lambda *_, **__: True, _build_finish(export_before_exec, budget_s))


def _build_finish(export: Callable[[], object], budget_s: float) -> Callable[[], None]:
    """Return a function that calls `export()` in a thread and waits for it `budget_s` seconds at most."""

    def finish() -> None:
        with guard.contained("the export before the end of the process"):
            done = _thread.allocate_lock()
            done.acquire()

            def run() -> None:
                try:
                    with guard.contained("the export before the end of the process"):
                        export()
                finally:
                    done.release()

            # Not a `threading.Thread`: a signal may have come in the midst of starting one, with its locks held.
            try:
                _thread.start_new_thread(run, ())
            except RuntimeError:
                # The interpreter is shutting down; `atexit` has exported.
                return
            done.acquire(timeout=budget_s)

    return finish


def export_on_signals(export: Callable[[], object], flush: Callable[[], object], budget_s: float) -> None:
    """Call `export()` when a signal without a handler ends this process, wait `budget_s` seconds at most, then end so.

    In the main thread only. A handler that is installed later takes the place of ours, and one that is there stays.
    The first process of a container is spared by the kernel and goes on: `flush()` is called in it.
    """
    if "mod_wsgi" in sys.modules:
        # Apache ends its processes in an orderly way, and notes each handler that an application installs as a fault.
        return
    finish, finish_first = _build_finish(export, budget_s), _build_finish(flush, budget_s)
    kill = getattr(os.kill, "__wrapped__", os.kill)

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == 1:
            finish_first()
            return
        # First: the second one ends it at once.
        signal.signal(number, signal.SIG_DFL)
        finish()
        kill(os.getpid(), number)

    foreign = _find_foreign()
    for number in _CAUGHT:
        if signal.getsignal(number) is signal.SIG_DFL and not foreign >> (number - 1) & 1:
            with contextlib.suppress(ValueError, OSError):
                signal.signal(number, end)


def _find_foreign() -> int:
    """Return the signals that have a handler, as a number of one bit each: also handlers that Python does not know of.

    Those of `faulthandler.register` are such. Where the system does not say, there are none.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/status").read_text("ascii").partition("SigCgt:")[2].split(None, 1)[0], 16)
    return 0


def _wrap(module: ModuleType, name: str, is_end: Callable[..., bool], finish: Callable[[], None]) -> None:
    original = getattr(module, name, None)
    if original is None or hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def wrapper(*args: object, **options: object) -> object:
        with guard.contained("looking whether the process ends"):
            if is_end(*args, **options):
                finish()
        return original(*args, **options)

    setattr(wrapper, _MARK, True)
    setattr(module, name, wrapper)


def export_with_celery(export: Callable[[], object]) -> None:
    """Call `export()` at the end of each process of Celery's prefork pool.

    Before its `os._exit` such a process asks to be terminated, so that would be late.
    """

    def connect() -> None:
        from celery import signals

        signals.worker_process_shutdown.connect(lambda **_: export(), weak=False, dispatch_uid="django_otel")

    if not import_hooks.when_imported("celery.signals", connect, part="process_end"):
        with guard.contained("the end of Celery's processes"):
            connect()
