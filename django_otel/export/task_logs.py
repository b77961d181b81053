"""Log records of task libraries as they are exported: without arguments and results of tasks.

By the first part of the logger's name: Celery, RQ and Dramatiq write them into messages, Celery and RQ into attributes
as well.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping

from django_otel.base.patterns import lazy_pattern

_HIDDEN = "[not exported]"
_CELERY_VALUES = frozenset(("args", "kwargs", "return_value", "sargs", "skwargs"))
#: RQ's description of a job: the call of its function, in colours where it writes to a terminal.
_CALL = lazy_pattern(r"((?:\x1b\[[\d;]*m)*[\w.]+)\(.*\)((?:\x1b\[[\d;]*m)*)", re.DOTALL)

#: Attributes of a record that are left out, by library.
LEFT_OUT: dict[str, frozenset[str]] = {
    "celery": frozenset(("data",)),
    "rq": frozenset(("arguments", "kwargs")),
}


def library_of(record: logging.LogRecord) -> str:
    """Return the first part of the name of the record's logger."""
    return record.name.partition(".")[0]


def message_of(record: logging.LogRecord) -> str:
    """Return the record's message without a task's arguments or result."""
    hide = _HIDE.get(library_of(record)) if record.args else None
    return record.getMessage() if hide is None else hide(record)


def _hide_of_celery(record: logging.LogRecord) -> str:
    values = record.args
    if not isinstance(values, Mapping):
        return record.getMessage()
    hidden = {key: _HIDDEN if key in _CELERY_VALUES else value for key, value in values.items()}
    return str(record.msg) % hidden


def _hide_of_rq(record: logging.LogRecord) -> str:
    return _format(record, lambda value: _CALL.sub(_without_arguments, value) if isinstance(value, str) else value)


def _without_arguments(call: re.Match[str]) -> str:
    is_whole = call.span() == (0, len(call.string))
    return f"{call[1]}({_HIDDEN}){call[2]}" if is_whole else call[0]


def _hide_of_dramatiq(record: logging.LogRecord) -> str:
    def hide(value: object) -> object:
        name = getattr(value, "actor_name", None)
        return value if name is None else f"{name}({_HIDDEN})"

    return _format(record, hide)


def _format(record: logging.LogRecord, hide: Callable[[object], object]) -> str:
    values = record.args
    if not isinstance(values, tuple):
        return record.getMessage()
    return str(record.msg) % tuple(hide(value) for value in values)


_HIDE: dict[str, Callable[[logging.LogRecord], str]] = {
    "celery": _hide_of_celery, "rq": _hide_of_rq, "dramatiq": _hide_of_dramatiq,
}  # fmt: skip
