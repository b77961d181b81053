"""Mail that Django sends, with any backend derived from BaseEmailBackend: messages counted, and a span per call.

Off by default (`EMAIL`). Metric `django.email.sent` by outcome; span `send mail` while a span is recorded, with the
number of messages. Addresses, subjects and texts are never read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

from django.core.mail.backends.base import BaseEmailBackend
from opentelemetry.trace import SpanKind, get_current_span

from django_otel import runtime
from django_otel.base import guard
from django_otel.config.schema import Config

_plain_init = BaseEmailBackend.__init__
#: Set while a backend sends: one that passes messages on to another one counts once.
_is_inside: ContextVar[bool] = ContextVar("django_otel_in_mail", default=False)


@guard.guarded("counting mail", None)
def _count(sent: int, failed: int) -> None:
    counter = runtime.store.catalogued("django.email.sent")
    for outcome, number in (("sent", sent), ("failed", failed)):
        if number:
            counter.series({"django.email.outcome": outcome}).add(float(number))


def _send_measured(send: Callable[[Any], Any], messages: Any) -> Any:
    """Call the backend. It returns how many messages it has sent; None, as some backends do, stands for all."""
    messages = messages if isinstance(messages, Sequence) else list(messages)
    total = len(messages)
    if not total or _is_inside.get():
        return send(messages)
    sent = 0
    token = _is_inside.set(True)
    try:
        result = _send_in_span(send, messages, total) if get_current_span().is_recording() else send(messages)
        # One that answers True or a text gives no number.
        sent = max(0, min(result, total)) if isinstance(result, int) and result is not True else total
        return result
    finally:
        _is_inside.reset(token)
        _count(sent, total - sent)


def _send_in_span(send: Callable[[Any], Any], messages: Any, total: int) -> Any:
    attributes = {"django.email.messages": total}
    with runtime.tracer().start_as_current_span("send mail", kind=SpanKind.CLIENT, attributes=attributes) as span:
        try:
            return send(messages)
        except Exception as error:
            span.set_attribute("error.type", type(error).__qualname__)
            raise


@functools.wraps(_plain_init)
def _init(self: BaseEmailBackend, *args: Any, **kwargs: Any) -> None:
    _plain_init(self, *args, **kwargs)
    # On the instance: the class of a backend stays as it is.
    vars(self)["send_messages"] = functools.partial(_send_measured, self.send_messages)


def install(config: Config) -> None:
    """Follow the settings: measure, or leave everything as Django made it. May be called again and again."""
    if not (config.enabled and config.email):
        uninstall()
    elif BaseEmailBackend.__init__ is _plain_init:
        BaseEmailBackend.__init__ = _init  # type: ignore[method-assign]


def uninstall() -> None:
    """Take everything back; a backend that exists stays measured for its lifetime."""
    if BaseEmailBackend.__init__ is _init:
        BaseEmailBackend.__init__ = _plain_init  # type: ignore[method-assign]
