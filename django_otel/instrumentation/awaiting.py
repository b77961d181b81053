"""Coroutines that wait for the code of a worker thread, which its own stack does not show.

Django's asynchronous queries run in a thread of asgiref's. Who waits for them
is found from the thread's work item: its future is chained to one of the event
loop, which holds the callback that wakes the waiting task. No public name leads
there before Python 3.14, so each step is one look that may find nothing.

A new thread begins its work while the coroutine that wants it still starts the
thread, so that nothing waits yet: then that coroutine's thread has the work on its stack.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from django_otel.metrics.series import HAS_GLOBAL_LOCK

#: Futures and tasks between a thread and the line that waits for it: wait_for() in gather() in a task group, ...
_MAX_HOPS = 12
_MAX_CALLBACKS = 20
#: Coroutines that one task is inside of.
_MAX_DEPTH = 100
#: Functions that hand in work, with the argument that is it: the event loop's, unless it is uvloop's, and executors'.
_HANDING_IN = {"run_in_executor": "func", "submit": "fn"}
#: Frames between the start of a thread and those.
_MAX_STARTING = 20


def find_waiting(work_item: object) -> list[FrameType]:
    """Return the frames of the coroutines that wait or will wait for `work_item`, innermost first; [] where none does.

    Where a task waits for that task (`gather`, a task group), its coroutines follow.
    """
    frames: list[FrameType] = []
    waited_for: Any = getattr(work_item, "future", None)
    seen: set[int] = set()
    for _ in range(_MAX_HOPS):
        task = _find_waiter(waited_for, seen)
        if task is None:
            break
        inner = list(_walk(task.get_coro()))
        inner.reverse()
        frames += inner
        waited_for = task
    return frames or _find_handing_in(work_item)


def _find_handing_in(work_item: Any) -> list[FrameType]:
    """Return the frames outside of the function that hands in `work_item` at this moment, in another thread."""
    if not HAS_GLOBAL_LOCK:
        # The other thread runs on, and a frame is not to be looked at then.
        return []
    # From Python 3.14 on it has function and arguments in one.
    work = getattr(work_item, "fn", None) or next(iter(getattr(work_item, "task", ())), None)
    if work is None:
        return []
    for innermost in sys._current_frames().values():  # noqa: SLF001 (the documented way to other threads' stacks)
        found: FrameType | None = None
        frame: FrameType | None = innermost
        for _ in range(_MAX_STARTING):
            if frame is None:
                break
            argument = _HANDING_IN.get(frame.f_code.co_name)
            if argument is not None and frame.f_locals.get(argument) is work:
                # Outside of it may be another, whose executor this is.
                found = frame
            frame = frame.f_back
        if found is not None:
            return list(_outside(found))
    return []


def _outside(frame: FrameType) -> Iterator[FrameType]:
    for _ in range(_MAX_DEPTH):
        outer = frame.f_back
        if outer is None:
            return
        yield outer
        frame = outer


def _find_waiter(future: Any, seen: set[int]) -> asyncio.Task[Any] | None:
    """Return the task that `future` wakes, directly or through further futures."""
    waiting = [future]
    while waiting and len(seen) < _MAX_HOPS * _MAX_CALLBACKS:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        callbacks = getattr(current, "_callbacks", None) or getattr(current, "_done_callbacks", None) or ()
        for entry in list(callbacks)[:_MAX_CALLBACKS]:
            callback = entry[0] if isinstance(entry, tuple) else entry
            owner = getattr(callback, "__self__", None)
            if isinstance(owner, asyncio.Task):
                return owner
            parent = getattr(owner, "_parent_task", None)
            if isinstance(parent, asyncio.Task):
                # A task group's.
                return parent
            waiting += _futures_of(callback)
    return None


def _futures_of(callback: Any) -> Iterator[Any]:
    """Futures that a callback settles."""
    if isinstance(callback, functools.partial):
        yield from (found for found in (*callback.args, *callback.keywords.values()) if asyncio.isfuture(found))
        callback = callback.func
    for cell in getattr(callback, "__closure__", None) or ():
        try:
            found = cell.cell_contents
        except ValueError:
            # Not filled yet.
            continue
        # A task in a closure is waited for, or cancelled; none of those of the standard library waits by one.
        if asyncio.isfuture(found) and not isinstance(found, asyncio.Task):
            yield found


def _walk(coroutine: Any) -> Iterator[FrameType]:
    """The frames of a coroutine and of all that it awaits, outermost first."""
    for _ in range(_MAX_DEPTH):
        frame = found = None
        for kind in ("cr", "ag", "gi"):
            if hasattr(coroutine, f"{kind}_frame"):
                frame = getattr(coroutine, f"{kind}_frame")
                found = getattr(coroutine, "gi_yieldfrom" if kind == "gi" else f"{kind}_await", None)
                break
        else:
            # A step of an asynchronous generator does not name its generator.
            found = next((part for part in gc.get_referents(coroutine) if hasattr(part, "ag_frame")), None)
        if frame is not None:
            yield frame
        if found is None:
            return
        coroutine = found
