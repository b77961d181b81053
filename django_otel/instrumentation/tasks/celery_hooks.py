"""Celery: tasks sent by any API, and run by a worker of any pool or eagerly.

Sending is measured around `AMQP.send_task_message`, through which every message goes; running around the tracer that
Celery builds for each task, which costs a fifth of the signals `task_prerun` and `task_postrun`. What ends outside of
them (revoked, unknown, lost with its process) is counted where the worker's main process learns of it, see
`celery_lost`. Arguments and results are never read.
"""

from __future__ import annotations

import datetime
import functools
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence

from django_otel import runtime
from django_otel.base import guard, import_hooks
from django_otel.base.sdk_compat import SUPPRESS_INSTRUMENTATION_KEY, get_current
from django_otel.config.schema import Config
from django_otel.instrumentation.tasks import celery_lost
from django_otel.instrumentation.tasks.celery_types import Amqp, App, Consumer, Message, Request, Task, WorkerRequest
from django_otel.instrumentation.tasks.runs import FAILED, OTHER, REJECTED, RETRIED, SUCCEEDED, Backend, Run
from django_otel.instrumentation.tasks.runs import state as runs_state

#: Sends one message: a method of an AMQP object.
Sender = Callable[..., object]
#: Runs one task: id, arguments, keyword arguments and request to result, how it ended, duration and text.
Trace = Callable[..., tuple[object, ...]]
_UID = "django_otel.tasks"
_MARK = "_django_otel_sends"
_OUTCOMES = {"REJECTED": REJECTED, "IGNORED": SUCCEEDED}


class _Memory:
    """Values that are looked up once."""

    def __init__(self) -> None:
        #: The apps that have sent or run a task in this process.
        self.apps: weakref.WeakSet[App] = weakref.WeakSet()
        #: Ids of the tasks that run in this process.
        self.running: set[str] = set()
        #: Whether it is known that this process is a worker.
        self.is_worker = False
        #: By app, exchange and routing key of a message, its queue.
        self.queues: dict[tuple[int, object, object], str] = {}


_memory = _Memory()


def find_apps() -> list[App]:
    """Return the apps of this process; there is no public list of them."""
    module = sys.modules.get("celery._state")
    list_apps = getattr(module, "_get_active_apps", None)
    known = list(_memory.apps)
    return [*known, *(app for app in list_apps() if app not in known)] if list_apps is not None else known


def _is_registered(name: str) -> bool:
    return any(name in app.tasks for app in find_apps())


backend = Backend("celery", _is_registered)


# --- Sending. ---


def _patch_amqp() -> None:
    """Measure the tasks of every sender that is made from now on."""
    from celery.app.amqp import AMQP

    make = getattr(AMQP, "_create_task_sender", None)
    if make is None:
        guard.warn_once("tasks.celery", "django_otel: tasks sent by this version of Celery are not measured.")
        return
    if hasattr(make, _MARK):
        return

    @functools.wraps(make)
    def make_measured(self: Amqp) -> Sender:
        return _measure_sender(self, make(self))

    setattr(make_measured, _MARK, True)
    AMQP._create_task_sender = make_measured  # noqa: SLF001 (Celery has no public name for it)


def _measure_sender(amqp: Amqp, send: Sender) -> Sender:
    _memory.apps.add(amqp.app)

    @functools.wraps(send)
    def send_task_message(
        producer: object, name: str, message: Sequence[object], *args: object, **options: object
    ) -> object:
        context = get_current()
        if not runs_state.is_on or (context and context.get(SUPPRESS_INSTRUMENTATION_KEY)):
            return send(producer, name, message, *args, **options)
        headers = message[0]
        queue = _find_target(amqp, options) if not args else OTHER
        task_id = headers.get("id") if isinstance(headers, dict) else None
        sending = backend.send(name, queue, str(task_id or ""))
        if sending is None:
            return send(producer, name, message, *args, **options)
        if isinstance(headers, dict):
            _put_headers(headers, options.get("headers"), sending.headers)
        try:
            result = send(producer, name, message, *args, **options)
        except BaseException as error:
            sending.fail(error)
            raise
        sending.end()
        return result

    return send_task_message


def _put_headers(headers: dict[str, object], own: object, carried: Mapping[str, str]) -> None:
    """Add our headers to the message.

    `own` are the sender's, which come on top: a retry brings along those of the run before.
    """
    headers.update(carried)
    if isinstance(own, dict):
        for key in carried.keys() & own.keys():
            own[key] = carried[key]


def _find_target(amqp: Amqp, options: Mapping[str, object]) -> str:
    """Return the name of the queue that a message goes to."""
    queue = options.get("queue")
    if queue is None:
        key = options.get("routing_key") if options.get("exchange") is not None else None
        return str(key or amqp.app.conf.task_default_queue)
    return str(getattr(queue, "name", queue))


# --- Running. ---


def _find_queue(app: App, delivery: object) -> str:
    """Return the queue that a message came from, by its exchange and routing key."""
    if not isinstance(delivery, dict):
        return str(app.conf.task_default_queue)
    exchange, key = delivery.get("exchange"), delivery.get("routing_key")
    known = _memory.queues.get((id(app), exchange, key))
    if known is not None:
        return known
    _memory.apps.add(app)
    found = str(key or app.conf.task_default_queue)
    queues = app.amqp.queues
    if found not in queues:
        for name, queue in queues.items():
            if queue.routing_key == key and (queue.exchange.name if queue.exchange else "") == (exchange or ""):
                found = name
                break
    if len(_memory.queues) < 1000:
        _memory.queues[id(app), exchange, key] = found
    return found


def read_due(eta: object) -> float | None:
    """Return the earliest time at which a task may start, in seconds since the Unix epoch."""
    if isinstance(eta, str):
        try:
            eta = datetime.datetime.fromisoformat(eta)
        except ValueError:
            return None
    if not isinstance(eta, datetime.datetime):
        return None
    return (eta if eta.tzinfo else eta.replace(tzinfo=datetime.UTC)).timestamp()


def _patch_tracer() -> None:
    """Measure the tasks of every tracer made from now on, the function by which a worker or eager mode runs a task."""
    module = sys.modules["celery.app.trace"]
    make = getattr(module, "build_tracer", None)
    if make is None or hasattr(make, _MARK):
        return

    @functools.wraps(make)
    def build_tracer(name: str, task: Task, *args: object, **options: object) -> Trace:
        return _measure_tracer(make(name, task, *args, **options), task)

    setattr(build_tracer, _MARK, True)
    # Others have imported it by its name already where Django was set up late.
    for found in list(sys.modules.values()):
        if getattr(found, "__name__", "").startswith("celery.") and vars(found).get("build_tracer") is make:
            vars(found)["build_tracer"] = build_tracer


def _measure_tracer(trace: Trace, task: Task) -> Trace:
    @functools.wraps(trace)
    def trace_task(
        uuid: str, args: object, kwargs: object, request: dict[str, object] | None = None
    ) -> tuple[object, ...]:
        run = _begin(task, uuid, request or {}) if runs_state.is_on else None
        if run is None:
            return trace(uuid, args, kwargs, request)
        try:
            result = trace(uuid, args, kwargs, request)
        except BaseException as error:
            _break_off(run, uuid, error)
            raise
        _finish(run, uuid, result)
        return result

    return trace_task


def _begin(task: Task, task_id: str, request: dict[str, object]) -> Run | None:
    try:
        context = get_current()
        if context and context.get(SUPPRESS_INSTRUMENTATION_KEY):
            return None
        if request.get("is_eager"):
            return _begin_eager(task, task_id)
        if not _memory.is_worker:
            _memory.is_worker = True
            runtime.work_in_background()
        queue = _find_queue(task.app, request.get("delivery_info"))
        eta, retries = request.get("eta"), request.get("retries")
        run = backend.run(
            task.name,
            queue,
            request,
            task_id=task_id,
            due_at_s=read_due(eta) if eta is not None else None,
            retries=retries if isinstance(retries, int) else 0,
        )
        if run is not None:
            _memory.running.add(task_id)
            celery_lost.note_begun(task_id)
        return run
    except Exception as fault:
        guard.report("the start of a Celery task", fault)
        return None


def _begin_eager(task: Task, task_id: str) -> Run | None:
    app = task.app
    _memory.apps.add(app)
    queue = str(getattr(task, "queue", None) or app.conf.task_default_queue)
    # As if it were sent, so that development looks as production does; not where the project runs it itself.
    sending = backend.send(task.name, queue, task_id) if app.conf.task_always_eager else None
    run = backend.run(task.name, queue, sending.headers if sending is not None else {}, task_id=task_id, is_local=True)
    if run is not None:
        run.sending = sending
        _memory.running.add(task_id)
    elif sending is not None:
        sending.end()
    return run


def _finish(run: Run, task_id: str, result: tuple[object, ...]) -> None:
    try:
        _memory.running.discard(task_id)
        ended = result[1]
        if ended is None:
            if result[2] is None:
                # A message that came again although the task had succeeded: Celery has not run it.
                run.set_attribute("django.task.reason", "duplicate")
                run.end(REJECTED)
            else:
                run.end(SUCCEEDED)
        else:
            _end_otherwise(run, str(getattr(ended, "state", "")), getattr(ended, "retval", None))
        celery_lost.note_ended(task_id)
    except Exception as fault:
        guard.report("the end of a Celery task", fault)


def _end_otherwise(run: Run, state: str, found: object) -> None:
    """End a run by an exception, `found`."""
    error = found if isinstance(found, BaseException) else None
    if state == "RETRY":
        # The cause of the retry; none where the task only asks to be run later.
        cause = getattr(error, "exc", None)
        run.end(RETRIED, cause if isinstance(cause, BaseException) else None)
    elif state == "FAILURE":
        run.end(FAILED, error)
    else:
        if state == "IGNORED":
            run.set_attribute("django.task.reason", "ignored")
        run.end(_OUTCOMES.get(state, FAILED))


def _break_off(run: Run, task_id: str, error: BaseException) -> None:
    """End a run whose exception passes on: one no task may catch, or any where eager tasks propagate theirs."""
    with guard.contained("the end of a Celery task"):
        _memory.running.discard(task_id)
        if celery_lost.ends_with_process(error):
            run.abandon()
            return
        kind = type(error).__name__
        if kind in ("Retry", "Reject", "Ignore"):
            _end_otherwise(run, {"Retry": "RETRY", "Reject": "REJECTED"}.get(kind, "IGNORED"), error)
        else:
            celery_lost.note_broken_off(task_id)
            run.end(FAILED, error)
        celery_lost.note_ended(task_id)


# --- What never runs. ---


@guard.guarded("a revoked Celery task", None)
def _on_revoked(sender: Task, request: Request, expired: object = None, terminated: object = None, **_: object) -> None:
    task_id = str(getattr(request, "id", "") or "")
    if celery_lost.was_broken_off(task_id):
        return
    queue = _find_queue(sender.app, getattr(request, "delivery_info", None))
    reason = "expired" if expired else "terminated" if terminated else "revoked"
    backend.reject(sender.name, queue, vars(request), task_id, reason)


@guard.guarded("an unknown Celery task", None)
def _on_unknown(sender: Consumer, message: Message, **_: object) -> None:
    headers = message.headers if isinstance(message.headers, dict) else {}
    # Not by its name, which anyone who writes to the queue may choose.
    backend.reject(
        OTHER, _find_queue(sender.app, message.delivery_info), headers, str(headers.get("id") or ""), "unknown"
    )


@guard.guarded("a rejected Celery task", None)
def _on_rejected(sender: Consumer, message: Message, **_: object) -> None:
    headers = message.headers if isinstance(message.headers, dict) else {}
    name = headers.get("task")
    _memory.apps.add(sender.app)
    known = name if isinstance(name, str) and _is_registered(name) else OTHER
    backend.reject(known, _find_queue(sender.app, message.delivery_info), headers, "", "unreadable")


def _end_lost(request: WorkerRequest, outcome: str, error: BaseException | None, has_begun: bool) -> None:
    """Record a run whose process has ended without saying so. `request` is the worker's."""
    task = request.task
    headers = request.request_dict
    retries = headers.get("retries")
    run = backend.run(
        task.name,
        _find_queue(task.app, request.delivery_info),
        headers,
        task_id=request.id,
        due_at_s=read_due(headers.get("eta")),
        retries=retries if isinstance(retries, int) else 0,
        started_s=request.time_start or time.time(),
        counts_wait=not has_begun,
    )
    if run is not None:
        if celery_lost.is_cancelled(request):
            run.set_attribute("django.task.reason", "cancelled")
        run.end(outcome, error)


# --- On and off. ---


@guard.guarded("the start of a Celery worker", None)
def _on_worker(**_: object) -> None:
    runtime.work_in_background()
    celery_lost.prepare()


def _connect() -> None:
    from celery import signals

    for name, receiver in _RECEIVERS.items():
        getattr(signals, name).connect(receiver, weak=False, dispatch_uid=_UID)


def _disconnect() -> None:
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        for name, receiver in _RECEIVERS.items():
            getattr(signals, name).disconnect(receiver, dispatch_uid=_UID)


_RECEIVERS: dict[str, Callable[..., None]] = {
    "worker_init": _on_worker,
    "beat_init": _on_worker,
    "task_revoked": _on_revoked,
    "task_unknown": _on_unknown,
    "task_rejected": _on_rejected,
}
#: Functions that attach to a module as soon as it is imported.
_PARTS: dict[str, Callable[[], None]] = {
    "celery.signals": _connect,
    "celery.app.amqp": _patch_amqp,
    "celery.app.trace": _patch_tracer,
    "celery.worker.request": lambda: celery_lost.attach(_end_lost),
}


def install(config: Config) -> None:
    """Attach to Celery as soon as it is imported."""
    backend.forget()
    # Its spans come from the official instrumentor where the project has asked for that one.
    backend.makes_spans = "celery" not in config.instrument
    for module, attach in _PARTS.items():
        if not import_hooks.when_imported(module, attach, part=_UID):
            attach()


def uninstall() -> None:
    """Detach; what is attached for the life of the process does nothing."""
    for module in _PARTS:
        import_hooks.forget(module, part=_UID)
    _disconnect()
