"""A backend of Django's tasks that needs nothing else: threads of the process that sends them.

Tasks are lost with their process when that is killed; at its regular end they are waited for.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from traceback import format_exception
from typing import Any

from django.db import connections
from django.utils import timezone
from django.utils.crypto import get_random_string

try:
    from django.tasks import base, signals
    from django.tasks.backends.base import BaseTaskBackend
except ImportError:
    from django_tasks import base, signals
    from django_tasks.backends.base import BaseTaskBackend

_THREADS = 2


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Start the threads with the first task, after the web server has forked."""
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="task")


class ThreadBackend(BaseTaskBackend):
    """Runs each task in a thread, while its sender goes on."""

    supports_async_task = True

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> base.TaskResult:
        self.validate_task(task)
        result = base.TaskResult(
            task=task,
            id=get_random_string(32),
            status=base.TaskResultStatus.READY,
            enqueued_at=timezone.now(),
            started_at=None,
            finished_at=None,
            last_attempted_at=None,
            args=args,
            kwargs=kwargs,
            backend=self.alias,
            errors=[],
            worker_ids=[],
        )
        # Before it may start.
        signals.task_enqueued.send(type(self), task_result=result)
        _threads().submit(self._run, result)
        return result

    def _run(self, result: base.TaskResult) -> None:
        now = timezone.now()
        _note(result, status=base.TaskResultStatus.RUNNING, started_at=now, last_attempted_at=now)
        result.worker_ids.append(self.alias)
        signals.task_started.send(type(self), task_result=result)
        context = (base.TaskContext(task_result=result),) if result.task.takes_context else ()
        try:
            value = result.task.call(*context, *result.args, **result.kwargs)
        except Exception as error:
            kind = type(error)
            result.errors.append(
                base.TaskError(
                    exception_class_path=f"{kind.__module__}.{kind.__qualname__}",
                    traceback="".join(format_exception(error)),
                )
            )
            _note(result, status=base.TaskResultStatus.FAILED, finished_at=timezone.now())
            signals.task_finished.send(type(self), task_result=result)
        else:
            _note(result, status=_SUCCESSFUL, finished_at=timezone.now(), _return_value=value)
            signals.task_finished.send(type(self), task_result=result)
        finally:
            connections.close_all()


_SUCCESSFUL = base.TaskResultStatus.SUCCESSFUL


def _note(result: base.TaskResult, **values: object) -> None:
    for name, value in values.items():
        # Results are frozen.
        object.__setattr__(result, name, value)
