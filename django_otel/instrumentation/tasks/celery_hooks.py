"""Celery: tasks sent by any of its ways, and run by a worker of any pool or eagerly.

Sending is measured around `AMQP.send_task_message`, through which every message goes; running by the signals
`task_prerun` and `task_postrun`. What ends outside of them (revoked, unknown, lost with its process) is counted where
the worker's main process learns of it, see `celery_lost`. Arguments and results are never read.
"""

from __future__ import annotations

import datetime
import functools
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence

from opentelemetry.context import get_value

from django_otel import runtime
from django_otel.base import guard, import_hooks
from django_otel.base.sdk_compat import SUPPRESS_INSTRUMENTATION_KEY
from django_otel.config.schema import Config
from django_otel.instrumentation.tasks import celery_lost
from django_otel.instrumentation.tasks.celery_types import Amqp, App, Consumer, Message, Request, Task, WorkerRequest
from django_otel.instrumentation.tasks.runs import FAILED, OTHER, REJECTED, RETRIED, SUCCEEDED, Backend, Run

#: What sends one message: the method of an AMQP object.
Sender = Callable[..., object]
_UID = "django_otel.tasks"
_MARK = "_django_otel_sends"
#: Where a task's request holds its run.
_RUN = "_django_otel_run"
_OUTCOMES = {"SUCCESS": SUCCEEDED, "FAILURE": FAILED, "RETRY": RETRIED, "REJECTED": REJECTED, "IGNORED": SUCCEEDED}


class _Memory:
    """What is looked up once."""

    def __init__(self) -> None:
        #: The apps that have sent or run a task in this process.
        self.apps: weakref.WeakSet[App] = weakref.WeakSet()
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
    """Measure what every sender made from now on sends."""
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
    AMQP._create_task_sender = make_measured  # noqa: SLF001


def _measure_sender(amqp: Amqp, send: Sender) -> Sender:
    _memory.apps.add(amqp.app)

    @functools.wraps(send)
    def send_task_message(
        producer: object, name: str, message: Sequence[object], *args: object, **options: object
    ) -> object:
        if get_value(SUPPRESS_INSTRUMENTATION_KEY):
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
    """Put what goes with the message into its headers.

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


@guard.guarded("the start of a Celery task", None)
def _on_prerun(task: Task, task_id: str | None = None, **_: object) -> None:
    if get_value(SUPPRESS_INSTRUMENTATION_KEY):
        return
    request = task.request
    app = task.app
    state = vars(request)
    sending = None
    is_eager = bool(request.is_eager)
    if is_eager:
        _memory.apps.add(app)
        queue = str(getattr(task, "queue", None) or app.conf.task_default_queue)
        if app.conf.task_always_eager:
            # As if it were sent, so that development looks as production does.
            sending = backend.send(task.name, queue, task_id or "")
    else:
        runtime.work_in_background()
        queue = _find_queue(app, request.delivery_info)
    run = backend.run(
        task.name,
        queue,
        sending.headers if sending is not None else state,
        task_id=task_id or "",
        due_at_s=read_due(request.eta),
        retries=request.retries or 0,
        is_local=is_eager,
    )
    if run is not None:
        run.sending = sending
        state[_RUN] = run
        celery_lost.note_begun(task_id)
    elif sending is not None:
        sending.end()


@guard.guarded("the end of a Celery task", None)
def _on_postrun(
    task: Task, task_id: str | None = None, retval: object = None, state: str | None = None, **_: object
) -> None:
    run: Run | None = vars(task.request).pop(_RUN, None)
    if run is None:
        return
    error: BaseException | None = None
    outcome = _OUTCOMES.get(state or "", "")
    if state in ("FAILURE", "RETRY", "REJECTED"):
        error = retval if isinstance(retval, BaseException) else None
        if state == "RETRY":
            # What made the task try again; none where it only asks to be run later.
            error = getattr(error, "exc", None)
            error = error if isinstance(error, BaseException) else None
        elif state == "REJECTED":
            error = None
    elif state == "IGNORED":
        run.set_attribute("django.task.reason", "ignored")
    elif not outcome:
        # An exception passes through: what a task must not catch, or every one where eager tasks propagate theirs.
        error = sys.exc_info()[1]
        if celery_lost.ends_with_process(error):
            run.abandon()
            return
        outcome = _OUTCOMES.get({"Retry": "RETRY", "Reject": "REJECTED"}.get(type(error).__name__, "FAILURE"), FAILED)
        celery_lost.note_broken_off(task_id)
    run.end(outcome, error)
    if not task.request.is_eager:
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


@guard.guarded("a Celery task that is sent again", None)
def _on_retry(sender: Task, request: Request | None = None, **_: object) -> None:
    """Count a run that was cancelled from outside: the main process says so, in which it does not run."""
    if request is None or _RUN in vars(request) or celery_lost.is_ending(request):
        return
    started_s = time.time()
    queue = _find_queue(sender.app, getattr(request, "delivery_info", None))
    run = backend.run(
        sender.name, queue, vars(request), task_id=str(request.id or ""), started_s=started_s, counts_wait=False
    )
    if run is not None:
        run.set_attribute("django.task.reason", "cancelled")
        run.end(RETRIED)


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
    "task_prerun": _on_prerun,
    "task_postrun": _on_postrun,
    "task_revoked": _on_revoked,
    "task_unknown": _on_unknown,
    "task_rejected": _on_rejected,
    "task_retry": _on_retry,
}
#: What is attached to as soon as it is imported.
_PARTS: dict[str, Callable[[], None]] = {
    "celery.signals": _connect,
    "celery.app.amqp": _patch_amqp,
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
