"""RQ: jobs sent by its queues and run by its workers; the sender's trace is in the job's `meta`.

Sending is measured around `Queue.enqueue_job`, `schedule_job` and `enqueue_many`, running around `Job.perform`. A job
whose process is gone is counted by the worker's main process. Arguments and results are never read. Jobs of Django's
tasks (`django-tasks-rq`) are measured as such; here only what their sender hands over is added.
"""

from __future__ import annotations

import functools
import importlib.util
import mmap
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Protocol

from django.conf import settings

from django_otel import runtime
from django_otel.base import guard, import_hooks
from django_otel.config.schema import Config
from django_otel.instrumentation.tasks import django_hooks
from django_otel.instrumentation.tasks.runs import FAILED, OTHER, RETRIED, SUCCEEDED, Backend, Run
from django_otel.instrumentation.tasks.runs import state as runs_state

_UID = "django_otel.tasks"
_MARK = "_django_otel_measures"
#: The name of the task, beside what the sender hands over: a worker's main process need not load the arguments.
_NAME = "django_otel_task"
#: How long Redis is waited for when the length of a queue is read, in seconds.
_TIMEOUT_S = 1.0
_MOST_QUEUES = 100

Method = Callable[..., object]


class Job(Protocol):
    id: str
    meta: dict[str, object]
    origin: str
    enqueued_at: datetime | None
    started_at: datetime | None
    retries_left: int | None

    @property
    def func_name(self) -> str: ...

    def get_status(self, refresh: bool = True) -> object: ...


class Queue(Protocol):
    name: str
    key: str
    connection: object


class _Memory:
    """State of this process about RQ."""

    def __init__(self) -> None:
        #: The queues that it has sent to or worked for, by name.
        self.queues: dict[str, Queue] = {}
        #: Shared with the process that a worker forks for a job: which job's wait it has counted, and which job's end.
        self.counted: mmap.mmap | None = None
        self.is_worker = False


_memory = _Memory()
_CHECKSUM_BYTES = 4
#: Where a job's checksum stands in `_Memory.counted`.
_WAIT, _END = slice(_CHECKSUM_BYTES), slice(_CHECKSUM_BYTES, 2 * _CHECKSUM_BYTES)
#: The job that is about to run in this context.
_current_job: ContextVar[Job | None] = ContextVar("django_otel_rq_job", default=None)


@functools.lru_cache(1000)
def _has_module(name: str) -> bool:
    with guard.contained("the module of an RQ job"):
        return importlib.util.find_spec(name) is not None
    return False


def _is_registered(name: str) -> bool:
    """Return whether code has a function of this name; a worker's main process does not import it."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        found: object = sys.modules.get(".".join(parts[:end]))
        if found is not None:
            for part in parts[end:]:
                found = getattr(found, part, None)
            return found is not None
    return _memory.is_worker and len(parts) > 1 and _has_module(name.rpartition(".")[0])


backend = Backend("rq", _is_registered)


def _find_name(job: Job) -> str:
    carried = job.meta.get(django_hooks.CARRIED)
    known = carried.get(_NAME) if isinstance(carried, dict) else None
    with guard.contained("the name of an RQ job"):
        return known if isinstance(known, str) else job.func_name
    return OTHER


def _is_of_django(job: Job) -> bool:
    """Return whether it runs one of Django's tasks, which are measured as such."""
    return type(job).__module__.partition(".")[0] == "django_tasks_rq"


# --- Sending. ---


def _remember(queue: Queue) -> None:
    if len(_memory.queues) < _MOST_QUEUES:
        _memory.queues.setdefault(queue.name, queue)


def _measure_sending(send: Method) -> Method:
    @functools.wraps(send)
    def measured(self: Queue, job: Job, *args: object, **options: object) -> object:
        if not runs_state.is_on:
            return send(self, job, *args, **options)
        _remember(self)
        if _is_of_django(job):
            headers = django_hooks.take_headers()
            if headers is not None:
                job.meta[django_hooks.CARRIED] = headers
            return send(self, job, *args, **options)
        name = _find_name(job)
        sending = backend.send(name, self.name, str(job.id))
        if sending is None:
            return send(self, job, *args, **options)
        job.meta[django_hooks.CARRIED] = {**sending.headers, _NAME: name}
        try:
            result = send(self, job, *args, **options)
        except BaseException as error:
            sending.fail(error)
            raise
        sending.end()
        return result

    return measured


def _measure_scheduling(schedule: Method) -> Method:
    sending = _measure_sending(schedule)

    @functools.wraps(schedule)
    def measured(self: Queue, job: Job, *args: object, **options: object) -> object:
        # A worker schedules a job that is tried again later, or repeated: it stays in its sender's trace, as one does
        # that is tried again at once.
        is_again = django_hooks.CARRIED in job.meta
        return (schedule if is_again else sending)(self, job, *args, **options)

    return measured


def _measure_sending_many(send: Method) -> Method:
    @functools.wraps(send)
    def measured(self: Queue, job_datas: object, *args: object, **options: object) -> object:
        if runs_state.is_on:
            with guard.contained("sending RQ jobs"):
                _remember(self)
                job_datas = [_put_headers(self, data) for data in job_datas]  # type: ignore[attr-defined]
        return send(self, job_datas, *args, **options)

    return measured


def _put_headers(queue: Queue, data: object) -> object:
    """Return the arguments of a job, with the carrier in its `meta`. All jobs are written in one step."""
    func = getattr(data, "func", None)
    name = func if isinstance(func, str) else f"{getattr(func, '__module__', '')}.{getattr(func, '__qualname__', '')}"
    sending = backend.send(name, queue.name, str(getattr(data, "job_id", "") or ""))
    if sending is None:
        return data
    sending.end()
    meta = {**(getattr(data, "meta", None) or {}), django_hooks.CARRIED: {**sending.headers, _NAME: name}}
    return data._replace(meta=meta)  # type: ignore[attr-defined]


# --- Running. ---


def _note_job(prepare: Method) -> Method:
    @functools.wraps(prepare)
    def measured(self: Job, *args: object, **options: object) -> object:
        _current_job.set(self)
        return prepare(self, *args, **options)

    return measured


def _measure_run(perform: Method) -> Method:
    @functools.wraps(perform)
    def measured(self: Job) -> object:
        run = None if not runs_state.is_on or _is_of_django(self) else _begin(self)
        if run is None:
            return perform(self)
        _note(_WAIT, self)
        try:
            result = perform(self)
        except BaseException as error:
            _end(self, run, RETRIED if self.retries_left else FAILED, error)
            raise
        is_retry = type(result).__name__ == "Retry" and type(result).__module__.startswith("rq.")
        _end(self, run, RETRIED if is_retry else SUCCEEDED, None)
        return result

    return measured


@guard.guarded("the start of an RQ job", None)
def _begin(job: Job, started_s: float | None = None, counts_wait: bool = True) -> Run | None:
    carried = job.meta.get(django_hooks.CARRIED)
    sent_at = job.enqueued_at
    return backend.run(
        _find_name(job),
        job.origin,
        carried if isinstance(carried, dict) else {},
        task_id=str(job.id),
        # When it came into its queue: later than it was sent where it is scheduled, or tried again.
        sent_at_s=_to_seconds(sent_at) if sent_at is not None else None,
        started_s=started_s,
        counts_wait=counts_wait,
    )


def _to_seconds(when: datetime) -> float:
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


@guard.guarded("the end of an RQ job", None)
def _end(job: Job, run: Run, outcome: str, error: BaseException | None) -> None:
    run.end(outcome, error)
    _note(_END, job)


def _checksum(job: Job) -> bytes:
    return zlib.crc32(str(job.id).encode()).to_bytes(_CHECKSUM_BYTES, "big")


@guard.guarded("what is counted of an RQ job", None)
def _note(place: slice, job: Job) -> None:
    """Tell the worker's main process that the wait or the end of this job is counted."""
    if _memory.counted is not None:
        _memory.counted[place] = _checksum(job)


def find_carried() -> Mapping[str, object]:
    """Return the sender's carrier of the job that runs here."""
    job = _current_job.get()
    carried = job.meta.get(django_hooks.CARRIED) if job is not None else None
    return carried if isinstance(carried, dict) else {}


# --- The worker's main process. ---


def _note_execution(prepare: Method) -> Method:
    @functools.wraps(prepare)
    def measured(self: object, *args: object, **options: object) -> object:
        with guard.contained("the start of an RQ worker"):
            if not _memory.is_worker:
                _memory.is_worker = True
                runtime.work_in_background()
                for queue in getattr(self, "queues", ()):
                    _remember(queue)
            if _memory.counted is None:
                _memory.counted = mmap.mmap(-1, 2 * _CHECKSUM_BYTES)
            _memory.counted[:] = bytes(2 * _CHECKSUM_BYTES)
        return prepare(self, *args, **options)

    return measured


def _count_failures(handle: Method) -> Method:
    @functools.wraps(handle)
    def measured(self: object, job: Job, *args: object, **options: object) -> object:
        if runs_state.is_on and not getattr(self, "is_horse", False) and not _is_of_django(job):
            with guard.contained("a lost RQ job"):
                _count_lost(self, job)
        return handle(self, job, *args, **options)

    return measured


def _count_lost(worker: object, job: Job) -> None:
    """Count a job that failed without saying so: its process was killed."""
    counted, checksum = _memory.counted, _checksum(job)
    if counted is None or counted[_END] == checksum:
        return
    started_s = _to_seconds(job.started_at) if job.started_at is not None else time.time()
    has_begun = counted[_WAIT] == checksum
    if any(kind.__name__ == "SpawnWorker" for kind in type(worker).__mro__):
        # The job's process shares no memory with this one: it counts the wait soon after it has set the status.
        has_begun = str(getattr(job.get_status(refresh=False), "value", "")) == "started"
    run = _begin(job, started_s, counts_wait=not has_begun)
    if run is not None:
        is_stopped = getattr(worker, "_stopped_job_id", None) == job.id
        run.set_attribute("django.task.reason", "stopped" if is_stopped else "lost")
        run.end(RETRIED if job.retries_left and not is_stopped else FAILED)


# --- Lengths. ---


def read_lengths() -> Iterator[tuple[float, Mapping[str, object]]]:
    """Return the number of jobs that wait in each queue that is known here."""
    module = sys.modules.get("django_rq")
    if module is not None:
        with guard.contained("the queues of django-rq"):
            for name in getattr(settings, "RQ_QUEUES", {}):
                _remember(module.get_queue(name))
    silent = set()
    for name, queue in list(_memory.queues.items()):
        # A server that does not answer is asked for one of its queues alone.
        server = repr(queue.connection)
        if server in silent:
            continue
        silent.add(server)
        with guard.contained("the length of RQ's queues"):
            length = _count(queue)
            silent.discard(server)
            yield length, {"django.task.backend": backend.label, "django.task.queue": name}


def _count(queue: Queue) -> float:
    """Ask over a connection of its own, which tries once and gives up after `_TIMEOUT_S`."""
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    pool = queue.connection.connection_pool  # type: ignore[attr-defined]
    limits = {
        "socket_timeout": _TIMEOUT_S, "socket_connect_timeout": _TIMEOUT_S, "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False, "retry_on_error": [],
    }  # fmt: skip
    own = type(pool)(connection_class=pool.connection_class, **{**pool.connection_kwargs, **limits})
    try:
        return float(type(queue.connection)(connection_pool=own).llen(queue.key))  # type: ignore[attr-defined, call-arg]
    finally:
        own.disconnect()


# --- On and off. ---


def _wrap(module: str, owner: str, methods: Mapping[str, Callable[[Method], Method]]) -> None:
    kind = getattr(sys.modules[module], owner, None)
    for name, measure in methods.items():
        method = getattr(kind, name, None)
        if method is not None and not hasattr(method, _MARK):
            measured = measure(method)
            setattr(measured, _MARK, True)
            setattr(kind, name, measured)


#: Methods that are wrapped as soon as their module is imported: by module the class and its methods.
_PARTS: dict[str, tuple[str, dict[str, Callable[[Method], Method]]]] = {
    "rq.queue": (
        "Queue",
        {
            "enqueue_job": _measure_sending,
            "schedule_job": _measure_scheduling,
            "enqueue_many": _measure_sending_many,
        },
    ),
    "rq.job": ("Job", {"prepare_for_execution": _note_job, "perform": _measure_run}),
    "rq.worker": ("BaseWorker", {"prepare_execution": _note_execution, "handle_job_failure": _count_failures}),
}


def install(config: Config) -> None:
    """Attach to RQ as soon as it is imported."""
    backend.forget()
    if find_carried not in django_hooks.elsewhere:
        django_hooks.elsewhere.append(find_carried)
    for module, (owner, methods) in _PARTS.items():
        attach = functools.partial(_wrap, module, owner, methods)
        if not import_hooks.when_imported(module, attach, part=f"{_UID}.rq"):
            attach()


def uninstall() -> None:
    """Detach; what is attached for the life of the process does nothing."""
    _memory.queues.clear()
    for module in _PARTS:
        import_hooks.forget(module, part=f"{_UID}.rq")
