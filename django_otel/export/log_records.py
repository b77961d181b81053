"""Log records in OpenTelemetry's terms: severity, attributes, exception and trace of a record of `logging`."""

from __future__ import annotations

import datetime
import decimal
import enum
import logging
import pathlib
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry.semconv.attributes import exception_attributes
from opentelemetry.trace import TraceFlags

from django_otel.base import guard, proxies
from django_otel.export import task_logs
from django_otel.redaction import cutting
from django_otel.tracing.exceptions import class_name

if TYPE_CHECKING:
    from opentelemetry._logs import LogRecord, SeverityNumber

#: Redacts a text that is about to be cut.
Scrub = Callable[[str], str]

#: Longer bodies and stack traces are cut (characters).
MAX_BODY_LENGTH = 65_536
MAX_STACKTRACE_LENGTH = 65_536
_MAX_DEPTH = 5
_CUT_MARK = "... [cut]"
#: The text of `logging` for `exc_info=True` without an exception.
NO_EXCEPTION = "NoneType: None"

#: The number a record gets when it is made. It stays with copies and pickles, so that they are known as the same.
SEQUENCE = "_django_otel_sequence"
_FIELDS = ("otelTraceID", "otelSpanID", "otelTraceSampled", "otelServiceName")
#: https://docs.python.org/3/library/logging.html#logrecord-attributes, and ours.
_NOT_EXTRA = frozenset(
    (
        "args", "asctime", "created", "exc_info", "exc_text", "filename", "funcName", "levelname", "levelno", "lineno",
        "message", "module", "msecs", "msg", "name", "pathname", "process", "processName", "relativeCreated",
        "stack_info", "taskName", "thread", "threadName", SEQUENCE, *_FIELDS,
    )
)  # fmt: skip
_EVENT_NAMES = ("otel.event.name", "event.name", "event_name")
#: Of Django's SQL log: the statement with its literals. The database layer has spans for it, without them.
SQL_LOGGER = "django.db.backends"
_SQL_EXTRA = frozenset(("sql", "params"))
_NO_EXTRA: frozenset[str] = frozenset()


def is_below(name: str, parent: str) -> bool:
    """Return whether a logger is `parent` or below it."""
    return name.startswith(parent) and (len(name) == len(parent) or name[len(parent)] == ".")


# OpenTelemetry logs data model, "Displaying severity" and its mapping: ten Python levels are four numbers.
_SEVERITY_TEXT = {"WARNING": "WARN", "CRITICAL": "FATAL"}


def severity_text(level_name: str) -> str:
    """Return the severity as OpenTelemetry displays it."""
    return _SEVERITY_TEXT.get(level_name, level_name)


def severity_number(level: int) -> SeverityNumber:
    """The severity of a Python level: 10 to 13 are DEBUG to DEBUG4, 20 INFO, 30 WARN, 40 ERROR, 50 and up FATAL.

    Source: OpenTelemetry logs data model, "Severity fields".
    """
    from opentelemetry._logs import SeverityNumber

    if level <= 0:
        return SeverityNumber.UNSPECIFIED
    if level < 10:
        return SeverityNumber.TRACE
    tens = min(level // 10, 5)
    return SeverityNumber(1 + 4 * tens + min(level - 10 * tens, 3))


def cut(text: str, length: int, scrub: Scrub) -> str:
    """Return at most `length` characters of `text`, redacted before it is cut."""
    return text if len(text) <= length else cutting.cut(text, length, scrub, _CUT_MARK)


def cut_stack(text: str, scrub: Scrub) -> str:
    """Return a stack trace within its limit, redacted before it is cut."""
    return cutting.cut_stack(text, MAX_STACKTRACE_LENGTH, scrub)


def extra_attributes(record: logging.LogRecord, scrub: Scrub) -> tuple[dict[str, Any], str | None]:
    """The attributes the application gave, and the name of the event if it gave one."""
    left_out = task_logs.LEFT_OUT.get(task_logs.library_of(record), _NO_EXTRA)
    if is_below(record.name, SQL_LOGGER):
        left_out = _SQL_EXTRA
    attributes: dict[str, Any] = {}
    event_name: str | None = None
    for key, value in tuple(record.__dict__.items()):
        if key in _NOT_EXTRA or key in left_out or not isinstance(key, str) or not key:
            continue
        if key in _EVENT_NAMES and isinstance(value, str):
            event_name = event_name or value
            continue
        fitting = _fitting(value, 0, scrub)
        if fitting is not None:
            attributes[key] = fitting
    return attributes, event_name


_AS_TEXT = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID, pathlib.PurePath)


def _fitting(value: Any, depth: int, scrub: Scrub) -> Any:
    """The value as OpenTelemetry knows it; None when it has no such type."""
    if value.__class__ is not type(value):
        with guard.contained("a lazy value of a log record"):
            value = proxies.resolve(value)
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, str):
        return cut(str(value), MAX_BODY_LENGTH, scrub)
    if isinstance(value, (bool, int, float, bytes)):
        return value
    if isinstance(value, _AS_TEXT):
        return str(value)
    if depth >= _MAX_DEPTH:
        return None
    if isinstance(value, Mapping):
        return {str(key): item for key, item in _each_fitting(value.items(), depth, scrub) if item is not None}
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(item for _, item in _each_fitting(enumerate(value), depth, scrub) if item is not None)
    return None


def _each_fitting(items: Iterable[tuple[Any, Any]], depth: int, scrub: Scrub) -> Iterator[tuple[Any, Any]]:
    for key, item in items:
        yield key, _fitting(item, depth + 1, scrub)


def exception_attributes_of(record: logging.LogRecord, scrub: Scrub) -> dict[str, str]:
    """Return the attributes of the exception that a record carries; none where it carries none."""
    info = record.exc_info
    if isinstance(info, tuple) and len(info) == 3 and info[0] is not None:
        kind, error, trace_back = info
        attributes = {exception_attributes.EXCEPTION_TYPE: class_name(kind)}
        try:
            attributes[exception_attributes.EXCEPTION_MESSAGE] = cut(str(error), MAX_BODY_LENGTH, scrub)
            lines = "".join(traceback.format_exception(kind, error, trace_back))
            attributes[exception_attributes.EXCEPTION_STACKTRACE] = cut_stack(lines, scrub)
        except Exception as fault:
            guard.pass_on(fault)
            # The exception's own __str__ fails: its type is what is known.
            return attributes
        return attributes
    if record.exc_text and str(record.exc_text).strip() != NO_EXCEPTION:
        # A record that came through a pickle has the text alone.
        return {exception_attributes.EXCEPTION_STACKTRACE: cut_stack(str(record.exc_text), scrub)}
    return {}


def take_trace_of(record: logging.LogRecord, built: LogRecord) -> None:
    """Set the ids from the record's own fields: the thread that handles it may be in another trace, or in none."""
    trace_id = record.__dict__.get("otelTraceID")
    span_id = record.__dict__.get("otelSpanID")
    if not isinstance(trace_id, str) or not isinstance(span_id, str):
        return
    try:
        built.trace_id = int(trace_id, 16)
        built.span_id = int(span_id, 16)
    except ValueError:
        return
    sampled = bool(record.__dict__.get("otelTraceSampled"))
    built.trace_flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
