"""The ends of a process at which Python runs no `atexit` hook.

`os._exit` ends the children of `multiprocessing`, of billiard (Celery's
prefork pool) and of RQ, and programs that say so; uvicorn ends itself by
raising the signal again that it has caught; a program may put another one in
its place by `os.exec*`. What waits is exported before.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from django_otel.base import guard, import_hooks

#: A signal with its default action that ends the process, and that can be waited for.
_ENDING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGBREAK") if hasattr(signal, name)
)
_MARK = "_django_otel_exports_first"


def export_first(export: Callable[[], object], export_before_exec: Callable[[], object], budget_s: float) -> None:
    """Call `export()` before this process or a forked child ends itself, and wait for it `budget_s` seconds at most.

    `export_before_exec()` is called before another program takes its place, which may fail: then it goes on.
    """

    def finish(export: Callable[[], object] = export) -> None:
        with guard.contained("the export before the end of the process"):
            thread = threading.Thread(target=export, name="django_otel-end", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # The interpreter is shutting down; `atexit` has exported.
                return
            thread.join(budget_s)

    def is_end(number: Any) -> bool:
        return number in _ENDING and signal.getsignal(number) is signal.SIG_DFL

    def is_own_group(group: int) -> bool:
        return group == 0 or (hasattr(os, "getpgrp") and group == os.getpgrp())

    _wrap(os, "_exit", lambda *_, **__: True, finish)
    _wrap(signal, "raise_signal", lambda number, *_: is_end(number), finish)
    _wrap(os, "kill", lambda pid, number, *_: (pid == os.getpid() or is_own_group(-pid)) and is_end(number), finish)
    _wrap(os, "killpg", lambda group, number, *_: is_own_group(group) and is_end(number), finish)
    _wrap(signal, "pthread_kill", lambda _, number, *__: is_end(number), finish)
    # All others of their kind call one of these.
    for name in ("execv", "execve"):
        _wrap(os, name, lambda *_, **__: True, lambda: finish(export_before_exec))


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
