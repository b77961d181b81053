"""Series: values with their attributes, updated in well under a microsecond.

Updates take no lock where Python has its global one. CPython lets another
thread run, and signal handlers, only where a function begins, at a jump
backwards and after a call. Between "Not interrupted from here" and the end of
an update there is none of these, so to other threads it happens at once: half
the cost of an update. A build without the global lock takes ours
(`_under_lock`). `tests/metrics/test_cells.py` looks at the bytecode. `+=` on a
cell is two instructions of it more than what is written here.
"""

from __future__ import annotations

import functools
import math
import sys
import threading
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Protocol

from django_otel.metrics.cells import Definition, Memory, cells_of
from django_otel.metrics.model import Attributes, Exemplar, HistogramValue

_EXEMPLAR_RECORDS = 64
#: A bucket's exemplar is replaced so many times in so long, in seconds: scrapes come seconds apart, and a busy series
#: would push the exemplars of all others out.
_EXEMPLAR_AGE_S = 0.5
#: Of a bucket, in that time.
_EXEMPLARS_AT_ONCE = 5
#: Whether one thread at a time runs Python. A build that can do without says so; once on, it stays on.
HAS_GLOBAL_LOCK = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()


if TYPE_CHECKING:

    class SeriesStore(Protocol):
        """The store of instruments, as far as a series uses it."""

        lock: threading.RLock
        memory: Memory
        exemplars: ExemplarRing
        #: How often cells have moved, or were set to zero.
        moves: int
        #: Whether the process has joined, that is, its first measurement was noticed.
        joined: bool

        def wake(self) -> None:
            """Report the first measurement."""


class Series:
    """One value with its attributes: counter or up-down counter."""

    __slots__ = (
        "_baseline", "_definition", "_lock", "_place", "_store", "attributes", "cells", "is_overflow", "is_set",
        "start_time_unix_nano",
    )  # fmt: skip

    def __init__(self, store: SeriesStore, definition: Definition, attributes: Attributes, is_overflow: bool) -> None:
        self.attributes = attributes
        self.is_overflow = is_overflow
        self.is_set = False
        self.start_time_unix_nano = time.time_ns()
        self._definition = definition
        self._store = store
        self._lock = store.lock
        self._put(store.memory)

    def _put(self, memory: Memory) -> None:
        view, base = memory.place(self._definition, self.attributes, self.start_time_unix_nano)
        cells = view[base : base + cells_of(self._definition)]
        found: list[float] = cells.tolist()  # type: ignore[assignment]
        #: Counts of an earlier process in these cells; None without any.
        self._baseline: list[float] | None = found if any(found) else None
        #: The memory, and where in it the cells begin.
        self._place = view, base
        #: All at once, for updates take no lock.
        self.cells: memoryview[float] = cells

    def _own(self) -> list[float]:
        """Return the values of this process."""
        return _subtract(self.cells, self._baseline)

    def move(self, memory: Memory) -> None:
        """Move to other memory, with the counts of this process so far. The store's lock is held."""
        cells, place, baseline = self.cells, self._place, self._baseline
        self._put(memory)
        self._store.moves += 1
        if self._place[0] is place[0] and self._place[1] == place[1]:
            # It is there already (others were not, because the memory could not grow).
            self._baseline = baseline
            return
        # Only now that updates go to the new cells, so that none is lost.
        for index, counted in enumerate(_subtract(cells, baseline)):
            self.cells[index] += counted

    def rebase(self) -> None:
        """Take the cells as they are for what this process has counted, where they are below the baseline.

        The file was truncated while this process uses it. The store's lock is held.
        """
        if self._baseline is not None and any(value < 0 for value in self._own()):
            self._baseline = None

    def leave(self, memory: Memory) -> None:
        """Go on at zero in private memory (in a forked child)."""
        self._put(memory)
        self.clear()

    def add(self, amount: float) -> None:
        """Add `amount`, in the instrument's unit."""
        if not self._store.joined:
            self._store.wake()
        # Not interrupted from here.
        cells = self.cells
        cells[0] = cells[0] + amount
        self.is_set = True

    def read(self) -> float:
        """The value, as far as this process has counted it."""
        baseline = self._baseline
        value: float = self.cells[0]
        return value if baseline is None else value - baseline[0]

    def clear(self) -> None:
        self._store.moves += 1
        for index in range(len(self.cells)):
            self.cells[index] = 0.0
        self._baseline = None
        self.is_set = False
        self.start_time_unix_nano = time.time_ns()


class GaugeSeries(Series):
    """One value that is set, and when it was."""

    __slots__ = ()

    def set(self, value: float) -> None:
        """Replace the value, in the instrument's unit."""
        with self._lock:
            self.cells[0] = value
            self.cells[1] = time.time()
            self.is_set = True
        if not self._store.joined:
            self._store.wake()

    def read(self) -> float:
        value: float = self.cells[0]
        return value

    def move(self, memory: Memory) -> None:
        value, set_at_s = self.cells
        self._put(memory)
        self._store.moves += 1
        if self.is_set:
            self.cells[0], self.cells[1] = value, set_at_s


class HistogramSeries(Series):
    """One distribution with its attributes."""

    __slots__ = ("_bounds", "_exemplars", "_mark", "_shown", "_shown_since_s")

    def __init__(self, store: SeriesStore, definition: Definition, attributes: Attributes, is_overflow: bool) -> None:
        self._bounds = definition.bounds
        self._exemplars = store.exemplars
        super().__init__(store, definition, attributes, is_overflow)

    def _put(self, memory: Memory) -> None:
        super()._put(memory)
        # Found once: to look for it costs more than all else about an exemplar.
        self._mark = memory.mark(self._definition, self.attributes)
        #: By bucket, since when the replacements of its exemplar are counted, and how many there were; empty before the
        #: first, for most series have none.
        self._shown_since_s: list[float] = []
        self._shown: list[int] = []

    def observe(self, value: float, trace_id: int = 0, span_id: int = 0) -> None:
        """Count `value`, in the instrument's unit; with ids it may be shown as the bucket's exemplar."""
        if not self._store.joined:
            self._store.wake()
        if trace_id:
            self.show_exemplar(value, trace_id, span_id)
        # A bound is the inclusive upper end of its bucket, in OpenTelemetry and in Prometheus ("le").
        bucket = bisect_left(self._bounds, value)
        # Not interrupted from here.
        cells = self.cells
        cells[bucket] = cells[bucket] + 1.0
        cells[-1] = cells[-1] + value
        self.is_set = True

    def show_exemplar(self, value: float, trace_id: int, span_id: int) -> None:
        """Let `value`, which is counted as well, be its bucket's exemplar, unless that is replaced all the time."""
        bucket = bisect_left(self._bounds, value)
        now_s = time.time()
        if not self._shown:
            # This one last: it is looked at without a lock.
            self._shown_since_s = [-math.inf] * (len(self._bounds) + 1)
            self._shown = [0] * (len(self._bounds) + 1)
        since_s = self._shown_since_s[bucket]
        if not 0.0 <= now_s - since_s < _EXEMPLAR_AGE_S or since_s < self._exemplars.cleared_at_s:
            self._shown_since_s[bucket] = now_s
            self._shown[bucket] = 0
        elif self._shown[bucket] >= _EXEMPLARS_AT_ONCE:
            return
        self._shown[bucket] += 1
        exemplar = Exemplar(value, now_s, trace_id, span_id)
        # Not `with`, which looks up two special methods each time.
        lock = self._lock
        lock.acquire()
        try:
            self._put_exemplar(bucket, exemplar)
        finally:
            lock.release()

    def _put_exemplar(self, bucket: int, exemplar: Exemplar) -> None:
        # Shown to the other processes as well. The store's lock is held.
        self._exemplars.put(self, bucket, exemplar)
        if self._mark is not None:
            self._store.memory.put_exemplar(self._mark, bucket, exemplar)

    def read_histogram(self) -> HistogramValue:
        """The distribution, as far as this process has counted it."""
        with self._lock:
            cells = self._own()
        return HistogramValue(self._bounds, cells[:-1], cells[-1])


def _subtract(cells: memoryview[float], baseline: list[float] | None) -> list[float]:
    found: list[float] = cells.tolist()  # type: ignore[assignment]
    return found if baseline is None else [now - before for now, before in zip(found, baseline, strict=True)]


class RequestSeries:
    """The series of all requests of one kind, updated together at the end of each.

    This costs less than one update after the other: the calls are left out, the
    look for where each series is and, as a view mostly makes the same number of
    queries and answers with the same size, the search for those two buckets.
    """

    __slots__ = (
        "_active", "_first_bound", "_first_layer_bound", "_found", "_last_queries", "_last_size", "_lock",
        "_store", "duration", "is_overflow", "middleware_time", "queries", "request_size", "response_size", "view_time",
    )  # fmt: skip

    def __init__(
        self,
        active: Series,
        duration: HistogramSeries,
        request_size: HistogramSeries,
        response_size: HistogramSeries,
        queries: HistogramSeries | None,
        middleware_time: HistogramSeries | None = None,
        view_time: HistogramSeries | None = None,
    ) -> None:
        self._active = active
        self.duration = duration
        self.request_size = request_size
        self.response_size = response_size
        self.queries = queries
        #: Time of the layers that nearly every request has.
        self.middleware_time = middleware_time
        self.view_time = view_time
        self.is_overflow = duration.is_overflow
        self._store = duration._store  # noqa: SLF001 (classes of one module, on the hot path)
        self._lock = duration._lock  # noqa: SLF001 (classes of one module, on the hot path)
        #: Most requests end within the first bound.
        self._first_bound = duration._bounds[0] if duration._bounds else -math.inf  # noqa: SLF001 (classes of one module, on the hot path)
        self._first_layer_bound = view_time._bounds[0] if view_time is not None and view_time._bounds else math.inf  # noqa: SLF001 (classes of one module, on the hot path)
        #: Size and queries of the last request, each with its bucket, and as a float, which is quicker to add. Read and
        #: replaced whole, so that threads need no lock.
        self._last_size: tuple[int, int, float] = (-1, 0, 0.0)
        self._last_queries: tuple[int, int, float] = (-1, 0, 0.0)
        #: `CellStore.moves` when it was found out where the cells are, and where. Read and replaced whole: threads find
        #: it out at the same time.
        self._found: tuple[Any, ...] = (-1,)

    def _find_cells(self) -> tuple[Any, ...]:
        """Find out where the cells are now: again after one has moved, or was set to zero."""
        duration, queries = self.duration, self.queries
        # First, so that what moves meanwhile is seen the next time.
        moves = self._store.moves
        maybe = (queries, self.middleware_time, self.view_time)
        self._found = found = (
            moves, self._active.cells, duration.cells, self.response_size.cells,
            *(None if series is None else series.cells for series in maybe),
        )  # fmt: skip
        self._active.is_set = duration.is_set = True
        if queries is not None:
            queries.is_set = True
        if self.middleware_time is not None:
            self.middleware_time.is_set = True
        # After it was set to zero; else it is so already.
        self.response_size.is_set = self._last_size[0] >= 0
        return found

    def finish(
        self,
        decisions: Series | None,
        duration_s: float,
        response_size_bytes: int | None,
        query_count: int,
        own_s: float = 0.0,
        view_s: float = 0.0,
    ) -> None:
        """A request has ended: one less is active, one more in `decisions` and the histograms.

        Without a size it is not counted. `own_s` is the time of middlewares and view, `view_s` the view's part of it.
        """
        size, size_bucket, size_value = self._last_size
        if size != response_size_bytes and response_size_bytes is not None:
            size_bucket = bisect_left(self.response_size._bounds, response_size_bytes)  # noqa: SLF001 (classes of one module, on the hot path)
            size_value = float(response_size_bytes)
            self._last_size = response_size_bytes, size_bucket, size_value
            self.response_size.is_set = True
        queries, queries_bucket, queries_value = self._last_queries
        if queries != query_count and self.queries is not None:
            queries_bucket = bisect_left(self.queries._bounds, query_count)  # noqa: SLF001 (classes of one module, on the hot path)
            queries_value = float(query_count)
            self._last_queries = query_count, queries_bucket, queries_value
        bucket = 0 if duration_s <= self._first_bound else bisect_left(self.duration._bounds, duration_s)  # noqa: SLF001 (classes of one module, on the hot path)
        own_s -= view_s
        own_bucket = 0 if own_s <= self._first_layer_bound else bisect_left(self.view_time._bounds, own_s)  # type: ignore[union-attr]  # noqa: SLF001 (as above)
        view_bucket = 0 if view_s <= self._first_layer_bound else bisect_left(self.view_time._bounds, view_s)  # type: ignore[union-attr]  # noqa: SLF001 (as above)
        store, found = self._store, self._found
        while found[0] != store.moves:
            found = self._find_cells()
        # Not interrupted from here; the loop above ends with a look at whether anything has moved.
        _, active, durations, sizes, counts, owns, views = found
        active[0] = active[0] - 1.0
        durations[bucket] = durations[bucket] + 1.0
        durations[-1] = durations[-1] + duration_s
        if response_size_bytes is not None:
            sizes[size_bucket] = sizes[size_bucket] + 1.0
            sizes[-1] = sizes[-1] + size_value
        if counts is not None:
            counts[queries_bucket] = counts[queries_bucket] + 1.0
            if query_count:
                counts[-1] = counts[-1] + queries_value
        if owns is not None:
            owns[own_bucket] = owns[own_bucket] + 1.0
            owns[-1] = owns[-1] + own_s
            if view_s:
                views[view_bucket] = views[view_bucket] + 1.0
                views[-1] = views[-1] + view_s
                self.view_time.is_set = True  # type: ignore[union-attr]
        if decisions is not None:
            decisions.cells[0] = decisions.cells[0] + 1.0
            decisions.is_set = True


def _under_lock(update: Any) -> object:
    """The update for a Python without a global lock."""

    @functools.wraps(update)
    def locked(self: Any, *arguments: Any) -> None:
        # Joining takes locks of its own, in another order.
        if not self._store.joined:
            self._store.wake()
        with self._lock:
            update(self, *arguments)

    return locked


#: The updates that take no lock where they need none.
UPDATES = ((Series, "add"), (HistogramSeries, "observe"), (RequestSeries, "finish"))
if not HAS_GLOBAL_LOCK:
    for _owner, _name in UPDATES:
        setattr(_owner, _name, _under_lock(getattr(_owner, _name)))


class ExemplarRing:
    """The last 64 exemplars of the process, so that their number does not grow with the series."""

    def __init__(self) -> None:
        self._records: list[tuple[HistogramSeries, int, Exemplar] | None] = [None] * _EXEMPLAR_RECORDS
        self._next = 0
        #: `time.time()` of it.
        self.cleared_at_s = -math.inf

    def put(self, series: HistogramSeries, bucket: int, exemplar: Exemplar) -> None:
        self._records[self._next] = (series, bucket, exemplar)
        self._next = (self._next + 1) % _EXEMPLAR_RECORDS

    def latest(self) -> dict[tuple[int, int], Exemplar]:
        """The newest exemplar of each (id of the series, bucket)."""
        found: dict[tuple[int, int], Exemplar] = {}
        for offset in range(_EXEMPLAR_RECORDS):
            record = self._records[(self._next + offset) % _EXEMPLAR_RECORDS]
            if record is not None:
                found[(id(record[0]), record[1])] = record[2]
        return found

    def clear(self) -> None:
        self._records = [None] * _EXEMPLAR_RECORDS
        self._next = 0
        self.cleared_at_s = time.time()
