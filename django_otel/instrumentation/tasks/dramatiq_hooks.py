"""Dramatiq: a Dramatiq middleware that passes the sender's trace in the message's options.

Arguments and results are never read.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

from django_otel import runtime
from django_otel.base import guard
from django_otel.instrumentation.tasks.runs import FAILED, RETRIED, SUCCEEDED, Backend, Run, Sending

#: The option of a message that holds what the sender hands to the worker.
CARRIED = "django_otel"

backend = Backend("dramatiq")
_sending: ContextVar[Sending | None] = ContextVar("django_otel_dramatiq_sending", default=None)
_run: ContextVar[Run | None] = ContextVar("django_otel_dramatiq_run", default=None)


class Message(Protocol):
    actor_name: str
    queue_name: str
    message_id: str
    options: dict[str, object]


class Broker(Protocol):
    actors: dict[str, object]

    def add_middleware(self, middleware: object) -> None: ...


def attach(broker: Broker) -> None:
    """Add our middleware to a broker, as its outermost; once."""
    from dramatiq.middleware import Middleware

    if any(isinstance(found, Hooks) for found in getattr(broker, "middleware", ())):
        return
    kind = type("DjangoOtelMiddleware", (Hooks, Middleware), {})
    broker.add_middleware(kind())


class Hooks:
    """Hooks around sending and running a message."""

    def before_worker_boot(self, broker: Broker, worker: object) -> None:
        runtime.work_in_background()

    def before_enqueue(self, broker: Broker, message: Message, delay: int | None) -> None:
        with guard.contained("sending a task"):
            sending = backend.send(_name(broker, message), _queue(message), message.message_id)
            _sending.set(sending)
            if sending is not None:
                message.options[CARRIED] = sending.headers

    def after_enqueue(self, broker: Broker, message: Message, delay: int | None) -> None:
        sending = _sending.get()
        _sending.set(None)
        if sending is not None:
            sending.end()

    def before_process_message(self, broker: Broker, message: Message) -> None:
        with guard.contained("the start of a task"):
            headers = message.options.get(CARRIED)
            due_ms, retries = message.options.get("eta"), message.options.get("retries")
            _run.set(
                backend.run(
                    _name(broker, message),
                    _queue(message),
                    headers if isinstance(headers, dict) else {},
                    task_id=message.message_id,
                    due_at_s=due_ms / 1000 if isinstance(due_ms, int | float) else None,
                    retries=retries if isinstance(retries, int) else 0,
                )
            )

    def after_process_message(
        self, broker: Broker, message: Message, *, result: object = None, exception: BaseException | None = None
    ) -> None:
        run = _run.get()
        _run.set(None)
        if run is None:
            return
        if exception is None:
            run.end(SUCCEEDED)
        elif type(exception).__name__ == "Retry":
            run.end(RETRIED)
        else:
            run.end(FAILED, exception)


def _name(broker: Broker, message: Message) -> str:
    name = message.actor_name
    return name if name in broker.actors else "_other"


def _queue(message: Message) -> str:
    # Messages that are due later wait in a queue of their own.
    return message.queue_name.removesuffix(".DQ")
