"""Celery tasks whose process was killed: counted by the worker's main process, once.

A process of the pool counts each task that it ends, and notes its id in memory that it shares with the main process.
The main process learns of each lost process; whether it has counted its last task is in that note.
"""

from __future__ import annotations

import functools
import mmap
import os
import struct
import sys
import zlib
from collections.abc import Callable
from typing import Self

from django_otel.base import guard
from django_otel.instrumentation.tasks.celery_types import WorkerRequest
from django_otel.instrumentation.tasks.runs import FAILED, RETRIED

#: One note for each process, found by its pid.
_NOTES = 8192
_NOTE = struct.Struct("<III")
_BEGUN, _ENDED = 1, 2
_MARK = "_django_otel_counts"
_MOST_IDS = 1000

#: Ends a run that was lost: the worker's request, the outcome, the error, whether its start was counted.
EndLost = Callable[[WorkerRequest, str, BaseException | None, bool], None]


class _Shared:
    """Objects that the main process made before it forked its pool."""

    def __init__(self) -> None:
        self.notes: mmap.mmap | None = None
        self.main_pid = 0
        #: Tasks that ended by an exception no task may catch, in this process; the main process may report them, too.
        self.broken_off: dict[str, None] = {}


_shared = _Shared()


def prepare() -> None:
    """Make the notes, in the main process before it forks."""
    if _shared.notes is None:
        _shared.notes = mmap.mmap(-1, _NOTES * _NOTE.size)
    _shared.main_pid = os.getpid()


def note_begun(task_id: str | None) -> None:
    """Note that this process has counted the start of a task."""
    _note(task_id, _BEGUN)


def note_ended(task_id: str | None) -> None:
    """Note that this process has counted the end of a task."""
    _note(task_id, _ENDED)


def _note(task_id: str | None, stage: int) -> None:
    notes = _shared.notes
    if notes is not None and task_id and (pid := os.getpid()) != _shared.main_pid:
        _NOTE.pack_into(notes, pid % _NOTES * _NOTE.size, pid, zlib.crc32(task_id.encode()), stage)


def _find_stage(pid: int | None, task_id: str) -> int:
    """Return how much of this task the process `pid`, which is gone, has counted."""
    notes = _shared.notes
    if notes is None or not pid:
        return 0
    noted_pid, noted_id, stage = _NOTE.unpack_from(notes, pid % _NOTES * _NOTE.size)
    return int(stage) if (noted_pid, noted_id) == (pid, zlib.crc32(task_id.encode())) else 0


def ends_with_process(error: BaseException | None) -> bool:
    """Return whether this exception ends a process of the pool, so that the main process counts the task."""
    is_child = _shared.notes is not None and os.getpid() != _shared.main_pid
    return is_child and isinstance(error, SystemExit | KeyboardInterrupt)


def note_broken_off(task_id: str | None) -> None:
    """Note that a task ended here by an exception that it must not catch."""
    if task_id:
        _shared.broken_off[task_id] = None
        if len(_shared.broken_off) > _MOST_IDS:
            _shared.broken_off.pop(next(iter(_shared.broken_off)), None)


def was_broken_off(task_id: str) -> bool:
    """Return whether a task has ended so here; then it has been counted."""
    return task_id in _shared.broken_off


def is_cancelled(request: WorkerRequest) -> bool:
    """Return whether the worker itself has broken the task off: a cold shutdown, or a broker that is gone."""
    return bool(vars(request).get("_already_cancelled"))


def attach(end: EndLost) -> None:
    """Call `end` for each task that was lost with its process, or stopped at its hard time limit."""
    from celery.worker import request

    plain = request.Request.on_failure
    if hasattr(plain, _MARK):
        return

    @functools.wraps(plain)
    def on_failure(self: WorkerRequest, exc_info: object, *args: object, **options: object) -> object:
        error = _find_loss(exc_info)
        if error is None or vars(self).get("_already_revoked"):
            # One that was revoked is counted as such already.
            return plain(self, exc_info, *args, **options)
        sent = _Watch(self.id)
        try:
            with sent:
                return plain(self, exc_info, *args, **options)
        finally:
            with guard.contained("a lost Celery task"):
                _count(self, sent.has_failed, error, end)

    setattr(on_failure, _MARK, True)
    request.Request.on_failure = on_failure


def _count(request: WorkerRequest, has_failed: bool, error: BaseException, end: EndLost) -> None:
    stage = _find_stage(request.worker_pid, request.id)
    if vars(request).get(_MARK) or stage == _ENDED or was_broken_off(request.id):
        return
    vars(request)[_MARK] = True
    # Without a failure the message goes back to the queue, or was sent again. That of a task that was cancelled does
    # where it is acknowledged late; Celery speaks of a retry for the others.
    is_lost = not request.task.acks_late if is_cancelled(request) else has_failed
    end(request, FAILED if is_lost else RETRIED, error, stage == _BEGUN)


def _find_loss(exc_info: object) -> BaseException | None:
    """Return the exception of a run that did not end itself; None for one that did."""
    error = getattr(exc_info, "exception", None)
    error = getattr(error, "exc", error)
    exceptions = sys.modules.get("billiard.exceptions")
    if exceptions is None or not isinstance(error, BaseException):
        return None
    lost = (exceptions.WorkerLostError, exceptions.TimeLimitExceeded, exceptions.Terminated)
    kinds = (*lost, SystemExit, KeyboardInterrupt)
    return error if isinstance(error, kinds) else None


class _Watch:
    """Whether Celery says that a task has failed, while it deals with the loss."""

    def __init__(self, task_id: str) -> None:
        self._task_id = task_id
        self.has_failed = False

    def _on_failure(self, task_id: str | None = None, **_: object) -> None:
        self.has_failed = self.has_failed or task_id == self._task_id

    def __enter__(self) -> Self:
        from celery.signals import task_failure

        task_failure.connect(self._on_failure, weak=False)
        return self

    def __exit__(self, *_: object) -> None:
        from celery.signals import task_failure

        task_failure.disconnect(self._on_failure)
