"""Notifies of new and returning errors, in a background thread that ends when nothing is due."""

from __future__ import annotations

import os
import threading
import time

from django.db import connections

from django_otel import runtime
from django_otel.base import forks, guard
from django_otel.base.suppression import suppress_instrumentation
from django_otel.config.schema import Config


class Notifier:
    """Sends due notices, in a thread that is started when one is due."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def wake(self) -> None:
        """Start the thread unless it runs."""
        if self._pid != os.getpid():
            # In a forked child the thread is the parent's, and the lock may be held.
            self._lock, self._thread, self._pid = threading.Lock(), None, os.getpid()
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            self._thread = threading.Thread(target=self._run, name="django_otel-console-notify", daemon=True)
            thread = self._thread
        try:
            thread.start()
        except RuntimeError:
            # The interpreter shuts down; another process, or the next start, sends it.
            self._thread = None

    def _run(self) -> None:
        with guard.contained("notifying of errors"), suppress_instrumentation():
            # Not before something is due: it loads sqlite3 and Django's mail.
            with forks.importing.using():
                from django_otel.console import notices

            console = runtime.console()
            while console is not None and runtime.console() is console:
                if notices.send_one(console):
                    continue
                wait_s = notices.wait_s(console)
                if wait_s is None:
                    break
                time.sleep(wait_s)
            connections.close_all()


notifier = Notifier()


def install(config: Config) -> None:
    """Have the store call the notifier, as the settings ask for it."""
    console = runtime.console()
    if console is not None and config.errors.notify:
        console.on_notices = notifier.wake


def uninstall() -> None:
    """Nothing is left to undo: the store's writer has gone."""
