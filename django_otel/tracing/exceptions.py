"""Exceptions on spans."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from django_otel.base import guard
from django_otel.base.text import encodable
from django_otel.redaction import cutting

#: Stack traces have a limit of their own, in characters: LIMITS.ATTRIBUTE_LENGTH would cut the lines that matter.
MAX_STACK = 64 * 1024
STACK = "exception.stacktrace"
#: Of a span that is not ours: shorter than LIMITS.ATTRIBUTE_LENGTH's default, so that the SDK does not cut the end.
_MAX_SDK_STACK = 4000
_MAX_MESSAGE = 1000


def class_name(cls: type) -> str:
    """Return the qualified name of an exception's class, as OpenTelemetry writes `exception.type`."""
    return cls.__qualname__ if cls.__module__ in ("builtins", "", None) else f"{cls.__module__}.{cls.__qualname__}"


def type_name(error: BaseException) -> str:
    """Return the qualified name of the class of `error`."""
    return class_name(type(error))


def mark_failed(span: trace.Span, error: BaseException) -> None:
    """Say in a span which class of error ended it; cancellation or exit is not a failure of the operation."""
    name = type_name(error)
    span.set_attribute("error.type", name)
    if isinstance(error, Exception):
        span.set_status(Status(StatusCode.ERROR, name))


def format_stack(error: BaseException, scrub: Callable[[str], str], limit: int = MAX_STACK) -> str:
    """Return the stack trace of `error`, at most `limit` characters: its first lines and, more telling, its last.

    One that has to be cut is redacted before by `scrub`. Never raises an
    `Exception`, also when the exception's own text does.
    """
    try:
        text = encodable("".join(traceback.format_exception(error)))
    except Exception as fault:
        guard.pass_on(fault)
        return type_name(error)
    return cutting.cut_stack(text, limit, scrub)


def message_of(error: BaseException, scrub: Callable[[str], str]) -> str:
    """Return `str(error)`, redacted by `scrub` and cut when it is long; the class name when that fails."""
    try:
        return encodable(cutting.cut(str(error), _MAX_MESSAGE, scrub))
    except Exception as fault:
        guard.pass_on(fault)
        return type_name(error)


def message_for(span: trace.Span, error: BaseException, scrub: Callable[[str], str]) -> str:
    """Return `message_of(error)` as `span` may have it: redacted in any case where another tool exports the span."""
    message = message_of(error, scrub)
    return message if _is_redacted_later(span) else scrub(message)


def _is_redacted_later(span: trace.Span) -> bool:
    return getattr(span, "keeps_long_stacks", False)


def record_exception(
    span: trace.Span,
    error: BaseException,
    scrub: Callable[[str], str],
    *,
    escaped: bool = False,
    scrubs_now: bool = False,
    time_ns: int | None = None,
) -> None:
    """Add an `exception` event as the SDK does, within its length limits; `time_ns` is its Unix time, now without it.

    With `scrubs_now` its texts are redacted by `scrub` here, because it knows more than what redacts all spans later.

    Source: OpenTelemetry semantic conventions, "Exceptions on spans".
    """
    is_redacted_later = _is_redacted_later(span)
    stack = format_stack(error, scrub, MAX_STACK if is_redacted_later else _MAX_SDK_STACK)
    message = message_for(span, error, scrub)
    attributes = {
        "exception.type": type_name(error),
        "exception.message": scrub(message) if scrubs_now else message,
        STACK: stack if is_redacted_later and not scrubs_now else scrub(stack),
    }
    if recording.wants_event(span, attributes):
        span.add_event("exception", {**attributes, "exception.escaped": str(escaped)}, time_ns)


class Recording:
    """Where exceptions of spans are recorded: as events of the span, as log records, or as both."""

    def __init__(self) -> None:
        self._signal = "events"
        self._emit: Callable[[object, dict[str, object]], bool] | None = None
        #: Called with each exception that ends a request or a task, its route, and its span if there is one.
        self.report: Callable[[BaseException, str, trace.Span | None], None] | None = None

    def choose(self, signal: str, emit: Callable[[Any, dict[str, object]], bool]) -> None:
        """Record by `signal` ("events", "logs", "logs/dup"); `emit(span, attributes)` returns whether it could."""
        self._signal, self._emit = signal, emit

    def wants_event(self, span: trace.Span, attributes: dict[str, Any]) -> bool:
        """Emit the log record that is asked for; whether an event is wanted, too, as it is where no log leaves."""
        if self._signal == "events" or self._emit is None or not span.is_recording():
            return True
        emitted = False
        with guard.contained("recording an exception as a log record"):
            emitted = self._emit(span, attributes)
        return self._signal == "logs/dup" or not emitted


recording = Recording()
