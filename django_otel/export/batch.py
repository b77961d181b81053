"""Passes finished items to an exporter in batches, from a background thread.

The thread starts with the first item, not before, and again after a fork; a
full queue drops what comes and counts it; flush and shutdown keep their
deadline also when the other side is a black hole. The SDK's batch processor
starts its thread when it is built, drops silently and ignores its timeouts.
"""

from __future__ import annotations

import collections
import contextlib
import mmap
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from opentelemetry import context as otel_context

from django_otel.base import guard
from django_otel.base.sdk_compat import SUPPRESS_INSTRUMENTATION_KEY

T = TypeVar("T")

#: `MADV_WIPEONFORK` of Linux 4.14 and later, which Python does not name.
_WIPE_ON_FORK = 18

#: After an export has failed, shutdown tries once more but waits no longer than this for it.
_UNREACHABLE_GRACE_S = 1.0


class _Pid:
    """`make_fork_mark` where the system has nothing better."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, index: int) -> bool:
        return self._pid == os.getpid()


def make_fork_mark() -> mmap.mmap | _Pid:
    """Something whose first item is true in this process and false in its forked children, hooks or none.

    Asked for each item: the kernel empties this page in a child, and looking at
    it takes a twentieth of `getpid()`, which is a system call (0.1 to 0.8 us).
    """
    with contextlib.suppress(AttributeError, OSError, ValueError):
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if os.uname().sysname == "Linux":
            page.madvise(_WIPE_ON_FORK)
            page[0] = 1
            return page
    return _Pid()


class BatchWorker(Generic[T]):
    """A bounded queue with one exporting thread.

    `export` gets a list of items and returns whether they arrived; it runs
    with OpenTelemetry instrumentation suppressed. What it loses for a reason of
    its own it counts itself and takes out of the list. `on_drop(count, reason)`
    is called for all other items that are lost ("queue_full", "export_failed",
    "shutdown"), `on_failure()` for each export that failed.

    The thread wakes when a whole batch is there, exports whole batches and
    leaves the rest for the next one: under load every request is full, and
    sending one costs as much as encoding a hundred spans. What has waited
    `delay_s` is exported however little it is.

    Units: `delay_s` is the longest wait of an item in seconds, sizes are items.
    """

    def __init__(
        self,
        name: str,
        export: Callable[[list[T]], bool],
        *,
        queue_size: int,
        batch_size: int,
        delay_s: float,
        on_drop: Callable[[int, str], None],
        on_failure: Callable[[], None],
    ) -> None:
        self._name = name
        self._export = export
        self._queue_size = queue_size
        self._batch_size = min(batch_size, queue_size)
        self._delay_s = delay_s
        self._on_drop = on_drop
        self._on_failure = on_failure
        self._is_shut_down = False
        self._last_failed = False
        self._reset()

    def _reset(self) -> None:
        self._queue: collections.deque[T] = collections.deque()
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._is_all_wanted = False
        self._is_here = make_fork_mark()

    def after_fork(self) -> None:
        """In the child: what is queued belongs to the parent, and its thread does not exist here."""
        self._reset()

    @property
    def is_used(self) -> bool:
        """Return whether something was put since the start of the process."""
        return bool(self._queue) or self._thread is not None

    def renew_locks(self) -> None:
        """Replace the locks, using the current `threading`; only before the thread has started."""
        if self._thread is None:
            self._start_lock = threading.Lock()
            self._wake = threading.Event()
            self._idle = threading.Event()
            self._idle.set()

    def put(self, item: T) -> None:
        """Queue an item; never blocks on the exporter."""
        if not self._is_here[0]:
            # A fork that ran no hooks (uWSGI's own).
            self._reset()
        if self._is_shut_down:
            self._on_drop(1, "shutdown")
            return
        queue = self._queue
        if len(queue) >= self._queue_size:
            self._on_drop(1, "queue_full")
            return
        # A deque's append and popleft need no lock of ours; two threads at once may pass the test by one item each.
        queue.append(item)
        if self._thread is None:
            self._start()
        if len(queue) >= self._batch_size and not self._wake.is_set():
            self._wake.set()
        if self._is_shut_down:
            # Shut down between the two tests; the thread may have looked for the last time.
            self._wake.set()
            if self._thread is None or not self._thread.is_alive():
                self._drop_what_is_left()

    def _start(self) -> None:
        with self._start_lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=f"django_otel-{self._name}", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    # The interpreter is shutting down and gives out no new thread; shutdown counts what is left.
                    return
                self._thread = thread

    def _run(self) -> None:
        try:
            while True:
                is_woken = self._wake.wait(self._delay_s)
                self._wake.clear()
                is_last = self._is_shut_down
                at_least = 1 if is_last or self._is_all_wanted or not is_woken else self._batch_size
                self._is_all_wanted = False
                self._drain(at_least)
                if is_last:
                    return
        except BaseException:
            # An exporter that raises SystemExit ends this thread; the next item starts another.
            self._thread = None
            raise

    def _drain(self, at_least: int) -> None:
        self._idle.clear()
        try:
            while len(self._queue) >= at_least:
                self._export_one_batch()
        finally:
            self._idle.set()

    def _export_one_batch(self) -> None:
        batch = self._take(self._batch_size)
        if not batch:
            return
        token = otel_context.attach(otel_context.set_value(SUPPRESS_INSTRUMENTATION_KEY, True))
        arrived = False
        try:
            with guard.contained(f"the export of {self._name}"):
                arrived = self._export(batch)
        finally:
            otel_context.detach(token)
            self._last_failed = not arrived
            # Here, so that a batch is counted also when a BaseException ends this thread.
            if not arrived:
                self._on_failure()
                if batch:
                    self._on_drop(len(batch), "export_failed")

    def _take(self, most: int) -> list[T]:
        """The oldest items, no more than `most`; at the end of a process two threads may take."""
        taken: list[T] = []
        popleft, append = self._queue.popleft, taken.append
        try:
            for _ in range(min(most, len(self._queue))):
                append(popleft())
        except IndexError:
            pass
        return taken

    def flush(self, timeout_s: float) -> bool:
        """Export what is queued now; whether that was done within `timeout_s` seconds."""
        deadline_s = time.monotonic() + timeout_s
        while self._queue or not self._idle.is_set():
            if self._thread is None:
                self._start()
                if self._thread is None:
                    return False
            self._is_all_wanted = True
            self._wake.set()
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            # The queue may be seen empty just before the batch is marked as under way; hence short steps.
            if not self._queue:
                self._idle.wait(left_s)
            else:
                time.sleep(min(0.002, left_s))
        return True

    def start_shutdown(self) -> None:
        """Take no more items and let the thread export what is left."""
        self._is_shut_down = True
        self._wake.set()

    def finish_shutdown(self, timeout_s: float) -> bool:
        """Wait for the thread, `timeout_s` seconds at most; whether everything was exported."""
        thread = self._thread
        if thread is not None and self._is_here[0]:
            thread.join(min(timeout_s, _UNREACHABLE_GRACE_S) if self._last_failed else timeout_s)
        return not self._drop_what_is_left() and self._idle.is_set()

    def _drop_what_is_left(self) -> int:
        dropped = len(self._take(len(self._queue)))
        if dropped:
            self._on_drop(dropped, "shutdown")
        return dropped


class WorkerOwner:
    """The end of a processor that hands its items to a `BatchWorker`."""

    worker: BatchWorker[Any]
    exporter: Any

    def shutdown(self) -> None:
        """Take no more items; `finish_shutdown` waits for what is left."""
        self.worker.start_shutdown()

    def finish_shutdown(self, timeout_s: float) -> bool:
        """Wait for the exporting thread, `timeout_s` seconds at most; whether everything was exported."""
        done = self.worker.finish_shutdown(timeout_s)
        # Ends the waiting between retries of an export that is still under way.
        self.exporter.shutdown()
        return done

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Export what is queued now; whether that was done in time."""
        return self.worker.flush(timeout_millis / 1000)

    def after_fork(self) -> None:
        """In the child: the queue, the thread and the connection are the parent's."""
        self.worker.after_fork()
        if hasattr(self.exporter, "after_fork"):
            self.exporter.after_fork()

    def renew_locks(self) -> None:
        """Replace the locks, using the current `threading`."""
        self.worker.renew_locks()
        if hasattr(self.exporter, "renew_locks"):
            self.exporter.renew_locks()
