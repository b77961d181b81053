"""Coroutines that wait for the code of a worker thread, which its own stack does not show.

Django's asynchronous queries run in a thread of asgiref's. Who waits for them
is found from the thread's work item: its future is chained to one of the event
loop, which holds the callback that wakes the waiting task. No public name leads
there before Python 3.14, so each step is one look that may find nothing.

A new thread begins its work while the coroutine that wants it still starts the
thread, so that nothing waits yet: then that coroutine's thread has the work on its stack, and runs its task.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import sys
import threading
from collections.abc import Iterable, Iterator
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
#: Function that a coroutine calls after that and before it waits, with the argument that is the future of the work.
_BEFORE_WAITING = {"shield": "arg"}
#: Flags of a coroutine's code.
_COROUTINE = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
#: Looks for the coroutine that hands in the work, or waits for it by now: other threads go on during a look.
_MAX_LOOKS = 3
#: Before Python 3.12 the garbage collector runs inside of any step that makes an object, and runs Python code, during
#: which other threads go on: the frame that an object is being made for may be gone then.
_COLLECTS_ANYTIME = sys.version_info < (3, 12)
_look_lock = threading.Lock()
#: Not longer, should a process have been forked while a thread had the lock.
_MAX_LOCKED_S = 0.05
#: Frames between the start of a thread and those.
_MAX_STARTING = 20


def find_waiting(work_item: object) -> list[FrameType]:
    """Return the frames of the coroutines that wait or will wait for `work_item`, innermost first; [] where none does.

    Where a task waits for that task (`gather`, a task group), its coroutines follow.
    """
    future = getattr(work_item, "future", None)
    frames: list[FrameType] = []
    seen: set[int] = set()
    task = _find_waiter(future, seen)
    for _ in range(_MAX_LOOKS):
        if task is not None:
            break
        frames, task = _find_handing_in(work_item, seen)
        if frames:
            break
        # It may have gone on meanwhile.
        seen = set()
        task = _find_waiter(future, seen)
    if task is not None and not frames:
        frames = _read_stack(task)
    for _ in range(_MAX_HOPS):
        task = _find_waiter(task, seen)
        if task is None:
            break
        frames += _read_stack(task)
    return frames


def _read_stack(task: asyncio.Task[Any]) -> list[FrameType]:
    """Return the frames of a task that waits, innermost first."""
    frames = list(_walk(task.get_coro()))
    frames.reverse()
    return frames


def _find_handing_in(work_item: Any, futures: set[int]) -> tuple[list[FrameType], asyncio.Task[Any] | None]:
    """Return the frames outside of the function that hands in `work_item` at this moment, in another thread.

    And the task that does so, if one does. `futures` are those that the work settles, by their identity.
    """
    if not HAS_GLOBAL_LOCK:
        # The other thread runs on, and a frame is not to be looked at then.
        return [], None
    # From Python 3.14 on it has function and arguments in one.
    work = getattr(work_item, "fn", None) or next(iter(getattr(work_item, "task", ())), None)
    if work is None:
        return [], None
    with _safe_look() as is_safe:
        return _look_at_threads(work, futures) if is_safe else ([], None)


def _look_at_threads(work: object, futures: set[int]) -> tuple[list[FrameType], asyncio.Task[Any] | None]:
    for innermost in sys._current_frames().values():  # noqa: SLF001 (the documented way to other threads' stacks)
        found: FrameType | None = None
        frame: FrameType | None = innermost
        for _ in range(_MAX_STARTING):
            if frame is None:
                break
            name = frame.f_code.co_name
            if name in _HANDING_IN:
                is_found = frame.f_locals.get(_HANDING_IN[name]) is work
            else:
                is_found = name in _BEFORE_WAITING and id(frame.f_locals.get(_BEFORE_WAITING[name])) in futures
            if is_found:
                # Outside of it may be another, whose executor this is.
                found = frame
            frame = frame.f_back
        if found is not None:
            frames = _outside(found)
            return frames, _find_running([found, *frames])
    return [], None


@contextlib.contextmanager
def _safe_look() -> Iterator[bool]:
    """Keep other threads from ending a frame while an object is made for it; False where that is not certain."""
    if not _COLLECTS_ANYTIME:
        yield True
        return
    if not _look_lock.acquire(timeout=_MAX_LOCKED_S):
        yield False
        return
    collects = gc.isenabled()
    gc.disable()
    try:
        yield True
    finally:
        if collects:
            gc.enable()
        _look_lock.release()


def _find_running(frames: Iterable[FrameType]) -> asyncio.Task[Any] | None:
    """Return the task that runs these frames, innermost first, where one of them knows its event loop."""
    for frame in frames:
        for name in ("self", "loop"):
            loop = frame.f_locals.get(name)
            if isinstance(loop, asyncio.AbstractEventLoop):
                return asyncio.current_task(loop)
    return None


def _outside(frame: FrameType) -> list[FrameType]:
    """Return the frames outside of this one; those of coroutines without the event loop's and of what runs that."""
    frames: list[FrameType] = []
    of_coroutines = 0
    outer = frame.f_back
    while outer is not None and len(frames) < _MAX_DEPTH:
        frames.append(outer)
        if outer.f_code.co_flags & _COROUTINE:
            of_coroutines = len(frames)
        outer = outer.f_back
    return frames[:of_coroutines] or frames


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
