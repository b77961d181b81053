"""Exceptions on spans."""

from __future__ import annotations

import traceback

from opentelemetry import trace

from django_otel.base.text import encodable

#: Shorter than LIMITS.ATTRIBUTE_LENGTH's default, so that the SDK has nothing to cut and to log.
_MAX_STACK = 4000
_MAX_MESSAGE = 1000


def type_name(error: BaseException) -> str:
    """The qualified name of an exception's class, as OpenTelemetry writes `exception.type`."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ in ("builtins", None) else f"{kind.__module__}.{kind.__qualname__}"


def format_stack(error: BaseException, limit: int = _MAX_STACK) -> str:
    """The stack trace of `error`, at most `limit` characters: its first lines and, more telling, its last.

    Never raises an `Exception`, also when the exception's own text does.
    """
    try:
        text = encodable("".join(traceback.format_exception(error)))
    except Exception:
        return type_name(error)
    if len(text) <= limit:
        return text
    mark = "\n... [cut] ...\n"
    head = limit // 4
    return text[:head] + mark + text[-(limit - head - len(mark)) :]


def message_of(error: BaseException) -> str:
    """`str(error)`, cut; the class name when that fails."""
    try:
        return encodable(str(error)[:_MAX_MESSAGE])
    except Exception:
        return type_name(error)


def record_exception(span: trace.Span, error: BaseException, *, escaped: bool = False) -> None:
    """Add an `exception` event as the SDK does, within its length limits.

    Source: OpenTelemetry semantic conventions, "Exceptions on spans".
    """
    span.add_event(
        "exception",
        {
            "exception.type": type_name(error),
            "exception.message": message_of(error),
            "exception.stacktrace": format_stack(error),
            "exception.escaped": str(escaped),
        },
    )
