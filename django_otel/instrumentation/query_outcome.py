"""Outcome of a query on its span: rows, the class of an error and the database's own code."""

from __future__ import annotations

from django.db.backends.utils import CursorWrapper
from opentelemetry.trace import Span

from django_otel.base import guard
from django_otel.tracing.exceptions import mark_failed


@guard.guarded("the database layer", None)
def note_rows(span: Span, cursor: CursorWrapper) -> None:
    """Say in the span of a query how many rows its driver has."""
    rows = cursor.cursor.rowcount
    if rows >= 0:
        # Of a server-side cursor the driver knows nothing yet.
        span.set_attribute("db.response.returned_rows", rows)


def note_error(span: Span, error: BaseException) -> None:
    """Record the error of a query on its span."""
    mark_failed(span, error)
    code = status_code(error)
    if code:
        span.set_attribute("db.response.status_code", code)


def status_code(error: BaseException) -> str | None:
    """The database's own code: SQLSTATE, SQLite's name, the number of MySQL or Oracle."""
    cause = error.__cause__ or error
    for name in ("sqlstate", "pgcode", "sqlite_errorname"):
        code = getattr(cause, name, None)
        if isinstance(code, str) and code:
            return code
    first = cause.args[0] if cause.args else None
    if isinstance(first, int) and not isinstance(first, bool):
        return str(first)
    code = getattr(first, "full_code", None)
    return code if isinstance(code, str) and code else None
