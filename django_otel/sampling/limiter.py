"""Limit of traces per second, over all processes of a server group."""

from __future__ import annotations

import array
import collections
import math
import threading
import time
from typing import Any

#: A limit lets as many traces through at once as it does in this time, in seconds (at least one).
_BURST_S = 0.1


class Limiter:
    """At most so many traces per second, over all processes of the server group.

    Each process takes `max_per_second / processes`. A bucket that is filled with
    time and holds what comes in a tenth of a second, so that a burst of a second
    or more stays within 10 % of the limit.

    Where that is less than two traces, what each process may record at once
    would add up to more. There they share a `clock`, two numbers in shared
    memory: the `time.monotonic()` from which the next trace of the group may be
    recorded, and when one of them asked last (0.0: never). Of two processes that look within
    the same 100 ns both may record one; nothing is locked for it.

    Never blocks: tokens are taken from a deque, which is atomic, and of several
    threads that find it due to be filled one does it while the others go on.
    """

    def __init__(self, max_per_second: float, processes: int, clock: object = None) -> None:
        self.max_per_second = max_per_second
        self._filling = threading.Lock()
        self._filled_s = time.monotonic()
        self._fraction = 1.0
        self._refused = 0
        self._own_clock = array.array("d", (-math.inf, -math.inf))
        self.share(processes, clock)

    def share(self, processes: int, clock: object = None) -> None:
        """Divide the limit by this number of processes, or share `clock` with them where that would be too little."""
        self.processes = max(1, processes)
        self.clock = clock
        self._per_second = self.max_per_second / self.processes
        self._most_credit = max(1.0, self._per_second * _BURST_S)
        self._most = int(self._most_credit)
        self._tokens: collections.deque[None] = collections.deque(maxlen=self._most)
        self._clock: object = None
        if self._most_credit < 2.0:
            is_shared = clock is not None and self.processes > 1
            self._clock = clock if is_shared else self._own_clock
            self._interval_s = 1.0 / (self.max_per_second if is_shared else self._per_second)
            self._saved_s = max(0.0, _BURST_S - self._interval_s)

    def _is_next(self, clock: Any) -> bool:
        now_s, interval_s = time.monotonic(), self._interval_s
        # A new file holds zeros: no process has asked yet. On a machine that was booted lately, 0.0 is just now.
        due_s, asked_s = clock[0] or -math.inf, clock[1] or -math.inf
        clock[1] = now_s
        # A time further ahead than any process sets it is from before the last boot, or garbage.
        if now_s < due_s <= now_s + 2 * interval_s:
            return False
        # As long as more is offered than may pass, nothing is lost between two requests.
        saved_s = max(interval_s, self._saved_s) if 0.0 <= now_s - asked_s < 2 * interval_s else self._saved_s
        clock[0] = (due_s if now_s - saved_s < due_s <= now_s else now_s - saved_s) + interval_s
        return True

    def acquire(self) -> int:
        """Return 0 when the trace may not be recorded; else the number of traces it stands for, itself included."""
        if self._clock is not None:
            return self._stand(self._is_next(self._clock))
        now_s = time.monotonic()
        tokens = self._tokens
        if (now_s - self._filled_s) * self._per_second + self._fraction >= 1.0 and self._filling.acquire(False):
            try:
                due = (now_s - self._filled_s) * self._per_second + self._fraction
                if due >= 1.0:
                    whole = min(int(due), self._most)
                    # Tokens that do not fit are lost; a part of one is not, unless it exceeds the bucket.
                    is_full = len(tokens) + due >= self._most_credit
                    self._fraction = self._most_credit - self._most if is_full else due - int(due)
                    self._filled_s = now_s
                    tokens.extend((None,) * whole)
            finally:
                self._filling.release()
        try:
            tokens.pop()
        except IndexError:
            return self._stand(False)
        return self._stand(True)

    def _stand(self, is_recorded: bool) -> int:
        """Remember one that is refused; how many traces one stands for that is recorded."""
        if not is_recorded:
            self._refused += 1
            return 0
        refused, self._refused = self._refused, 0
        return refused + 1
