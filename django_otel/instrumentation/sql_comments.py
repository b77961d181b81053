"""Comments in SQL that name the route, view or trace of a statement, in the format of sqlcommenter.

Off by default (`DATABASE.COMMENTS`). `SELECT ... /*route='%2Forders%2F',traceparent='00-...-01'*/`: what the server
logs of a statement then leads back to the request. Names and values are URL-encoded, so nothing in them ends the
comment. Only statements of a request have one; `traceparent` is that of the statement's own span, in sampled traces
alone. Batches (`executemany`), composed SQL and statements that end with a comment already stay as they are.

Our own spans and metrics see the statement without it. Everything that knows statements by their text does see it:
prepared statements of psycopg and SQLite's cache are of little use with `traceparent`.

Source: sqlcommenter specification, https://google.github.io/sqlcommenter/spec/
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from opentelemetry.trace import get_current_span

from django_otel.base import guard
from django_otel.config.schema import Config
from django_otel.instrumentation.database import QueryWrapper
from django_otel.requests import record
from django_otel.requests.view_names import name_view
from django_otel.routes import route_template

_PLACE = "comments in SQL"
_MAX_VALUE_LENGTH = 256


class _State:
    """State that changes with the settings."""

    def __init__(self) -> None:
        #: Names of what a comment has; empty while there are none.
        self.parts: tuple[str, ...] = ()


_state = _State()


def _encode(value: str) -> str:
    # Of a quote, a star, a slash, a backslash and a line end nothing is left.
    return quote(value[:_MAX_VALUE_LENGTH], safe="")


def build_comment(parts: tuple[str, ...]) -> str:
    """Return the comment of a statement that is executed now; "" where there is nothing to say."""
    found: dict[str, str] = {}
    request = record.current()
    if request is None:
        return ""
    match = request.request.resolver_match if request.request is not None else None
    if match is not None:
        if "route" in parts:
            found["route"] = route_template(match.route)
        if "view" in parts:
            found["view"] = name_view(match, request.method)
    if "traceparent" in parts and request.span_or_none is not None:
        ids = get_current_span().get_span_context()
        if ids.is_valid and ids.trace_flags & 1:
            found["traceparent"] = f"00-{ids.trace_id:032x}-{ids.span_id:016x}-01"
    pairs = [f"{name}='{_encode(value)}'" for name, value in sorted(found.items()) if value]
    return f"/*{','.join(pairs)}*/" if pairs else ""


def add_comment(sql: str, comment: str, *, has_parameters: bool) -> str:
    """Return `sql` with `comment` at its end, before a semicolon; unchanged where it ends with a comment already."""
    text = sql.rstrip()
    end = text.rstrip("; \t\r\n")
    if not comment or not end or end.endswith("*/"):
        return sql
    if has_parameters:
        # The driver puts parameters in by `%`.
        comment = comment.replace("%", "%%")
    last_line = end.rpartition("\n")[2]
    # Not at the end of a comment of the project's.
    space = "\n" if "--" in last_line or "#" in last_line else " "
    return f"{end}{space}{comment}{text[len(end) :]}"


class CommentWrapper:
    """Execute wrapper of one connection, inside of ours that measures."""

    def __call__(
        self, execute: Callable[..., Any], sql: Any, params: object, many: bool, context: dict[str, object]
    ) -> Any:
        parts = _state.parts
        if parts and type(sql) is str and not many:
            try:
                comment = build_comment(parts)
                if comment:
                    sql = add_comment(sql, comment, has_parameters=params is not None)
            except Exception as fault:
                guard.report(_PLACE, fault)
        return execute(sql, params, many, context)


@guard.guarded(_PLACE, None)
def _attach(connection: BaseDatabaseWrapper) -> None:
    wrappers = connection.execute_wrappers
    if any(isinstance(found, CommentWrapper) for found in wrappers):
        return
    # After the one that measures, which so sees the statement as it was; it goes to the front itself.
    at = next((index + 1 for index, found in enumerate(wrappers) if isinstance(found, QueryWrapper)), 0)
    wrappers.insert(at, CommentWrapper())


def _on_connection_created(connection: BaseDatabaseWrapper, **_: object) -> None:
    _attach(connection)


def install(config: Config) -> None:
    """Follow the settings: add comments, or leave everything as Django made it. May be called again and again."""
    parts = config.database.comments
    if not (config.enabled and isinstance(parts, tuple)):
        uninstall()
        return
    _state.parts = parts
    connection_created.connect(_on_connection_created, dispatch_uid=__name__)
    for connection in connections.all(initialized_only=True):
        if connection.connection is not None:
            _attach(connection)


def uninstall() -> None:
    """Take everything back; the wrappers of other threads' connections pass queries on untouched."""
    _state.parts = ()
    connection_created.disconnect(dispatch_uid=__name__)
    for connection in connections.all(initialized_only=True):
        for found in [found for found in connection.execute_wrappers if isinstance(found, CommentWrapper)]:
            connection.execute_wrappers.remove(found)
