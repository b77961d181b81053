"""Django's tasks (`django.tasks`, and its backport `django_tasks`), on any backend.

Sending is measured around `Task.enqueue`, running by the signals `task_started` and `task_finished`. The sender's trace
reaches the worker of the database backend (`django-tasks-db`) with the row: beside the arguments, which stay as they
are. Arguments and results are never read.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Protocol, TypeVar

from django.apps import apps
from django.conf import settings
from django.db import connections
from django.db.models import Count, Model, QuerySet
from django.db.models.signals import pre_save

from django_otel.base import guard, import_hooks
from django_otel.config.schema import Config
from django_otel.instrumentation.tasks.runs import FAILED, OTHER, SUCCEEDED, Backend, Run, Sending

_Kept = TypeVar("_Kept")
_UID = "django_otel.tasks"
_MARK = "_django_otel_sends"
#: The key of a row's arguments that holds what the sender hands to the worker.
CARRIED = "django_otel"
_PACKAGES = ("django.tasks", "django_tasks")
#: The models of the database backend, now and before it became a package of its own.
_MODELS = (("django_tasks_db", "DBTaskResult"), ("django_tasks_database", "DBTaskResult"))

backend = Backend("django")
#: The sending in this context.
_sending: ContextVar[Sending | None] = ContextVar("django_otel_sending", default=None)
#: The run in this context.
_run: ContextVar[_Running | None] = ContextVar("django_otel_run", default=None)


#: Find what a sender has handed over, where a queue of another library carries it.
elsewhere: list[Callable[[], Mapping[str, object]]] = []
#: By the id of a task that was sent here, and may run here: what its sender hands over.
_waiting: dict[str, dict[str, str]] = {}
_MOST_WAITING = 1000
#: By its id a task under way: signals that are sent asynchronously come in contexts of their own.
_running: dict[str, _Running] = {}


class _Running:
    """A task under way, and the one around it (an immediate backend runs a task inside another)."""

    __slots__ = ("outer", "run", "sending", "task_id")

    def __init__(self, run: Run | None, task_id: object) -> None:
        self.run = run
        self.task_id = task_id
        self.outer = _run.get()
        self.sending = _sending.get()


class Task(Protocol):
    queue_name: str
    run_after: datetime | None

    @property
    def module_path(self) -> str: ...


class Result(Protocol):
    """A task's result, as backends and signals give it."""

    task: Task
    id: object
    status: object
    enqueued_at: datetime | None
    worker_ids: list[str]


class Row(Protocol):
    """A result of the database backend."""

    args_kwargs: object
    status: str
    queue_name: str
    pk: object


# --- Sending. ---


def _patch(package: str) -> None:
    """Measure the sending of every task of `package`."""
    kind = getattr(sys.modules[f"{package}.base"], "Task", None)
    if kind is None or hasattr(kind.enqueue, _MARK):
        return
    kind.enqueue = _measure(kind.enqueue)
    kind.aenqueue = _measure_async(kind.aenqueue)


def _begin(task: Task) -> Sending | None:
    sending = backend.send(task.module_path, task.queue_name)
    if sending is not None:
        _sending.set(sending)
    return sending


def _end(sending: Sending, result: object) -> None:
    with guard.contained("the id of a task"):
        if sending.span is not None and sending.span.is_recording():
            sending.span.set_attribute("django.task.id", str(getattr(result, "id", "")))
    is_deferred = False
    if sending.database is not None:
        with guard.contained("the commit of a task"):
            connection = connections[sending.database]
            if connection.in_atomic_block:
                # A row that is rolled back was never sent.
                connection.on_commit(guard.guarded("counting a task", None)(sending.count), robust=True)
                is_deferred = True
    sending.end(counts=not is_deferred)


def _measure(enqueue: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(enqueue)
    def measured(self: Task, *args: object, **kwargs: object) -> object:
        outer, running = _sending.get(), _run.get()
        sending = _begin(self)
        if sending is None:
            return enqueue(self, *args, **kwargs)
        try:
            result = enqueue(self, *args, **kwargs)
        except BaseException as error:
            sending.fail(error)
            raise
        finally:
            _sending.set(outer)
            _run.set(running)
        _end(sending, result)
        return result

    setattr(measured, _MARK, True)
    return measured


def _measure_async(enqueue: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
    @functools.wraps(enqueue)
    async def measured(self: Task, *args: object, **kwargs: object) -> object:
        outer, running = _sending.get(), _run.get()
        sending = _begin(self)
        if sending is None:
            return await enqueue(self, *args, **kwargs)
        try:
            result = await enqueue(self, *args, **kwargs)
        except BaseException as error:
            sending.fail(error)
            raise
        finally:
            _sending.set(outer)
            _run.set(running)
        _end(sending, result)
        return result

    setattr(measured, _MARK, True)
    return measured


# --- Rows of the database backend. ---


@guard.guarded("a row of a task", None)
def _on_save(instance: Row, using: str | None = None, **_: object) -> None:
    is_new = getattr(getattr(instance, "_state", None), "adding", False)
    if is_new:
        sending = _sending.get()
        if sending is not None and isinstance(instance.args_kwargs, dict):
            instance.args_kwargs = {**instance.args_kwargs, CARRIED: sending.headers}
            sending.is_carried, sending.database = True, using
    elif instance.status == "FAILED" and _run.get() is None:
        # Its task cannot be imported: it has failed without having started.
        backend.reject(OTHER, instance.queue_name, _carried(instance), str(instance.pk), "unknown")


def take_headers() -> dict[str, str] | None:
    """Return the carrier of the task that is being sent in this context, for its message; None without one."""
    sending = _sending.get()
    if sending is None:
        return None
    sending.is_carried = True
    return sending.headers


def _carried(row: object) -> Mapping[str, object]:
    arguments = getattr(row, "args_kwargs", None)
    found = arguments.get(CARRIED) if isinstance(arguments, dict) else None
    return found if isinstance(found, dict) else {}


def find_models() -> Iterator[type[Model]]:
    """Return the models of the database backend that the project has installed."""
    for label, name in _MODELS:
        if label in apps.app_configs:
            with guard.contained("the model of tasks"):
                yield apps.get_model(label, name)


def _configured_queues() -> Iterator[str]:
    for options in getattr(settings, "TASKS", {}).values():
        yield from options.get("QUEUES", ("default",))


def read_lengths() -> Iterator[tuple[float, Mapping[str, object]]]:
    """Return the number of tasks that wait in each queue of the database backend; 0 for those that are empty."""
    for model in find_models():
        rows: QuerySet[Model] = model._default_manager.filter(status="READY")
        due = getattr(rows, "ready", None)
        ready: QuerySet[Model] = due() if due is not None else rows
        waiting = dict(ready.order_by().values_list("queue_name").annotate(Count("pk")))
        for queue in sorted({*waiting, *_configured_queues(), *(backend.queues() - {OTHER})}):
            yield waiting.get(queue, 0), {"django.task.backend": backend.label, "django.task.queue": queue}


# --- Running. ---


def _keep(kept: dict[str, _Kept], task_id: str, value: _Kept) -> None:
    kept[task_id] = value
    while len(kept) > _MOST_WAITING:
        kept.pop(next(iter(kept)), None)


@guard.guarded("a task that is sent", None)
def _on_enqueued(task_result: Result, **_: object) -> None:
    """Keep the carrier for a backend that runs the task in another thread of this process."""
    sending = _sending.get()
    if sending is None or sending.is_carried:
        return
    _keep(_waiting, str(task_result.id), sending.headers)


@guard.guarded("the start of a task", None)
def _on_started(task_result: Result, **_: object) -> None:
    sending = _sending.get()
    task = task_result.task
    headers: Mapping[str, object] = sending.headers if sending is not None else {}
    sent_at = task_result.enqueued_at
    waiting = _waiting.pop(str(task_result.id), None)
    if sending is None:
        headers = waiting or _carried(getattr(task_result, "db_result", None))
        for carried_elsewhere in elsewhere:
            headers = headers or carried_elsewhere()
    run = backend.run(
        task.module_path,
        task.queue_name,
        headers,
        task_id=str(task_result.id),
        sent_at_s=sent_at.timestamp() if sent_at is not None else None,
        due_at_s=task.run_after.timestamp() if task.run_after is not None else None,
        retries=max(0, len(task_result.worker_ids) - 1),
        is_local=sending is not None,
    )
    running = _Running(run, task_result.id)
    _run.set(running)
    _keep(_running, str(task_result.id), running)
    # A task is the sender of the tasks that it sends, not its own sender.
    _sending.set(None)


@guard.guarded("the end of a task", None)
def _on_finished(task_result: Result, **_: object) -> None:
    started = _running.pop(str(task_result.id), None)
    running = _run.get()
    while running is not None and running.task_id != task_result.id:
        # One that was broken off, whose end no backend has announced.
        running = running.outer
    if running is not None:
        _run.set(running.outer)
        _sending.set(running.sending)
    elif started is not None and started.run is not None:
        running = started
        # Its span is current in the context in which it began.
        started.run.forget_context()
    if running is None or running.run is None:
        return
    is_failed = str(task_result.status) == "FAILED"
    # Backends send the signal while they handle the exception.
    running.run.end(FAILED if is_failed else SUCCEEDED, sys.exc_info()[1] if is_failed else None)


# --- On and off. ---


def _connect(package: str) -> None:
    signals = sys.modules[f"{package}.signals"]
    signals.task_enqueued.connect(_on_enqueued, dispatch_uid=_UID)
    signals.task_started.connect(_on_started, dispatch_uid=_UID)
    signals.task_finished.connect(_on_finished, dispatch_uid=_UID)


def _parts() -> Iterator[tuple[str, Callable[[], None]]]:
    for package in _PACKAGES:
        yield f"{package}.base", functools.partial(_patch, package)
        yield f"{package}.signals", functools.partial(_connect, package)


def install(config: Config) -> None:
    """Attach to the task classes and signals as soon as they are imported."""
    backend.forget()
    for module, attach in _parts():
        if not import_hooks.when_imported(module, attach, part=_UID):
            attach()
    for model in find_models():
        pre_save.connect(_on_save, sender=model, dispatch_uid=_UID)


def uninstall() -> None:
    """Detach; what is attached for the life of the process does nothing."""
    for module, _ in _parts():
        import_hooks.forget(module, part=_UID)
    for package in _PACKAGES:
        signals = sys.modules.get(f"{package}.signals")
        if signals is not None:
            signals.task_enqueued.disconnect(dispatch_uid=_UID)
            signals.task_started.disconnect(dispatch_uid=_UID)
            signals.task_finished.disconnect(dispatch_uid=_UID)
    for model in find_models():
        pre_save.disconnect(sender=model, dispatch_uid=_UID)
