"""Python's garbage collector and the event loop of this process.

On by default (`RUNTIME`). Metrics `cpython.gc.collections`, `cpython.gc.pause`; under ASGI `django.event_loop.lag`;
those of /proc are read in `multiprocess.processes`. Collections are read from the interpreter's own counts when a page
is asked for, and each second by a background thread; a collection of the youngest objects costs a look. The event loop
is measured four times a second, by a timer. Requests cost nothing.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections import deque
from time import perf_counter_ns

from django_otel import runtime
from django_otel.base import forks, guard
from django_otel.config.schema import Config
from django_otel.metrics.instruments import Counter, Histogram

_MAX_PAUSES = 10_000
_PERIOD_S = 0.25
_IS_CPYTHON = sys.implementation.name == "cpython"


class Collector:
    """Counts and pauses of the garbage collector that are not in the metrics yet."""

    def __init__(self) -> None:
        self._began_ns = 0
        #: Filled in the middle of any code, so that nothing may be locked or called then.
        self._pauses: deque[tuple[int, int]] = deque(maxlen=_MAX_PAUSES)
        self.begin()

    def begin(self) -> None:
        """Count from here (in a forked child, and when switched on)."""
        self._lock = threading.Lock()
        self._pauses.clear()
        self._seen = _read_collections()

    def on_collection(self, phase: str, info: dict[str, int]) -> None:
        """Be called by the interpreter before and after each collection."""
        if info["generation"]:
            if phase == "start":
                self._began_ns = perf_counter_ns()
            elif self._began_ns:
                self._pauses.append((info["generation"], perf_counter_ns() - self._began_ns))
                self._began_ns = 0

    def update(self) -> None:
        """Bring the metrics up to date."""
        if not self._lock.acquire(blocking=False):
            # Another thread is at it.
            return
        try:
            now = _read_collections()
            collections = runtime.store.catalogued("cpython.gc.collections")
            assert isinstance(collections, Counter)
            for generation, (seen, number) in enumerate(zip(self._seen, now, strict=True)):
                if number > seen:
                    collections.add(number - seen, {"cpython.gc.generation": generation})
            self._seen = now
            pauses = runtime.store.catalogued("cpython.gc.pause")
            assert isinstance(pauses, Histogram)
            while self._pauses:
                generation, elapsed_ns = self._pauses.popleft()
                pauses.record(elapsed_ns / 1e9, {"cpython.gc.generation": generation})
        finally:
            self._lock.release()


def _read_collections() -> list[int]:
    return [found["collections"] for found in gc.get_stats()] if _IS_CPYTHON else []


class LoopWatch:
    """How late the timers of the server's event loop are: as late as a coroutine has to wait for its turn."""

    def __init__(self) -> None:
        self.is_on = False
        #: Whether the next ASGI request is to start it.
        self.is_wanted = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def switch(self, *, is_on: bool) -> None:
        """Follow the settings; a timer that runs goes on or ends by itself."""
        self.is_on = is_on
        self.is_wanted = is_on and (self._loop is None or self._loop.is_closed())

    def forget(self) -> None:
        """Begin again in a forked child."""
        self._loop = None
        self.is_wanted = self.is_on

    @guard.guarded("watching the event loop", None)
    def start(self) -> None:
        """Watch the event loop that runs here, unless it is watched already."""
        self.is_wanted = False
        loop = asyncio.get_running_loop()
        if self.is_on and loop is not self._loop:
            self._loop = loop
            self._schedule(loop)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_at(due_s := loop.time() + _PERIOD_S, self._measure, loop, due_s)

    @guard.guarded("measuring the event loop", None)
    def _measure(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        if not self.is_on or loop is not self._loop:
            self._loop = None if loop is self._loop else self._loop
            return
        lag = runtime.store.catalogued("django.event_loop.lag")
        assert isinstance(lag, Histogram)
        lag.record(max(0.0, loop.time() - due_s))
        self._schedule(loop)


collector = Collector()
loop_watch = LoopWatch()
forks.register("instrumentation.process_metrics", collector.begin)
forks.register("instrumentation.process_metrics", loop_watch.forget)


def install(config: Config) -> None:
    """Follow the settings; may be called again and again."""
    if not (config.enabled and config.runtime):
        uninstall()
        return
    loop_watch.switch(is_on=True)
    if _IS_CPYTHON and collector.on_collection not in gc.callbacks:
        collector.begin()
        gc.callbacks.append(collector.on_collection)
        runtime.store.updaters.append(collector.update)


def uninstall() -> None:
    """Take everything back."""
    loop_watch.switch(is_on=False)
    if collector.on_collection in gc.callbacks:
        gc.callbacks.remove(collector.on_collection)
        runtime.store.updaters.remove(collector.update)
