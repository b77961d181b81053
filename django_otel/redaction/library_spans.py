"""Corrections of spans of the official instrumentors before export.

They record SQL verbatim, copy found documents and whole query strings into
attributes and make span names out of 500 commands (psycopg2, redis,
requests). Their spans are read-only once they have ended, so the export
pipeline passes each through `clean_span()`, before the scrubber.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Status

from django_otel.base.sdk_compat import build_list
from django_otel.redaction import statements

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

    _Given = Mapping[str, AttributeValue]
    #: New values of attributes; None removes one.
    _Changes = dict[str, AttributeValue | None]

#: Scopes of the official instrumentors and of whatever follows their naming.
SCOPE_PREFIX = "opentelemetry.instrumentation."
#: Libraries that make their own spans without an instrumentor (newer FastAPI).
_NATIVE_SCOPES = frozenset({"fastapi"})
_STATEMENTS = ("db.query.text", "db.statement")
_PARAMETERS = ("db.statement.parameters", "db.query.parameter.")
_URLS = ("url.full", "http.url", "http.target")
_OPERATIONS = ("db.operation.name", "db.operation")
#: `db.system.name` of databases that speak SQL, and the vendor whose quoting they follow.
_VENDORS = {
    "postgresql": "postgresql",
    "cockroachdb": "postgresql",
    "redshift": "postgresql",
    "aws.redshift": "postgresql",
    "mysql": "mysql",
    "mariadb": "mysql",
    "sqlite": "sqlite",
    "oracle": "oracle",
    "oracle.db": "oracle",
    "mssql": "microsoft",
    "microsoft.sql_server": "microsoft",
    "other_sql": "",
}
_QUOTED_SQL = re.compile(r"SQL\((.*)\)", re.DOTALL)
#: Redis commands of two words; every other word after the first is a key or a value.
_CONTAINERS = frozenset(
    {"ACL", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DEBUG", "FUNCTION", "LATENCY", "MEMORY", "MODULE", "OBJECT",
     "PUBSUB", "SCRIPT", "SENTINEL", "SLOWLOG", "XGROUP", "XINFO"}
)  # fmt: skip
#: Names of spans that are not the command's.
_REDIS_OPERATIONS = {"redis.search": "FT.SEARCH", "redis.create_index": "FT.CREATE"}
_BATCH_SIZE = "db.operation.batch.size"
#: Names of before the stable conventions, and the stable ones; None for what has no counterpart.
_OLD_REDIS_NAMES = {
    "db.redis.database_index": "db.namespace",
    "db.redis.pipeline_length": _BATCH_SIZE,
    "db.redis.args_length": None,
    "db.system": "db.system.name",
    "db.statement": "db.query.text",
    "db.operation": "db.operation.name",
    "db.name": "db.namespace",
    "net.peer.name": "server.address",
    "net.peer.port": "server.port",
    "net.transport": None,
}
_COMMAND = re.compile(r"[A-Za-z][\w.|-]{0,39}")
_MAX_REDIS_TEXT = 1000
#: Redis and its client repeat the caller's arguments in their errors.
_REDIS_ARGUMENTS = re.compile(r"(with args beginning with: ).*|(Command # \d+ \().*(\) of pipeline)", re.DOTALL)
#: urllib3's errors, which requests passes on, hold the path with its query string.
_URL_QUERY = re.compile(r"(\burl: [^\s?]*|\bhttps?://[^\s?'\"<>]*)\?[^\s'\"<>)]*")


def clean_span(span: ReadableSpan, statement: str = "parameterised", keep_query: bool = False) -> ReadableSpan:
    """Clean one finished span; see `LibrarySpanCleaner` for the arguments."""
    return _cleaner(statement, keep_query).span(span)


def vendor_of(system: str) -> str:
    """Return the vendor whose quoting the SQL of a `db.system.name` follows; "" where that is not known."""
    return _VENDORS.get(system, "")


def is_library_scope(scope: InstrumentationScope | None) -> bool:
    """Return whether spans of this scope are cleaned; all others pass untouched."""
    return scope is not None and (scope.name.startswith(SCOPE_PREFIX) or scope.name in _NATIVE_SCOPES)


class LibrarySpanCleaner:
    """Cleans spans of official instrumentors; all other spans pass untouched.

    `statement` is `DATABASE.STATEMENT` ("parameterised" or "off"), `keep_query`
    is `REQUEST.QUERY`.
    """

    def __init__(self, statement: str = "parameterised", keep_query: bool = False) -> None:
        self._keeps_statement = statement != "off"
        self._keeps_query = keep_query

    def span(self, span: ReadableSpan) -> ReadableSpan:
        """The cleaned span; the same object when there is nothing to clean."""
        scope = span.instrumentation_scope
        if not is_library_scope(scope):
            return span
        given = span.attributes or {}
        changes: _Changes = {}
        name = span.name
        system = str(given.get("db.system.name") or given.get("db.system") or "")
        if system == "redis":
            name = self._redis(name, given, changes)
        elif system in _VENDORS:
            name = self._sql(name, _VENDORS[system], given, changes)
        if not self._keeps_query:
            _drop_queries(given, changes)
        events = [self._event(event, system) for event in span.events]
        description = span.status.description
        status_text = self._message(description, system) if description else description
        are_events_changed = any(new is not old for new, old in zip(events, span.events, strict=True))
        if not changes and name == span.name and not are_events_changed and status_text == description:
            return span
        return ReadableSpan(
            name=name,
            context=span.get_span_context(),
            parent=span.parent,
            resource=span.resource,
            attributes=_merge(given, changes, span.dropped_attributes),
            events=build_list(events, span.dropped_events),
            links=span.links,
            kind=span.kind,
            status=span.status if status_text == description else Status(span.status.status_code, status_text),
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=scope,
        )

    def _sql(self, name: str, vendor: str, given: _Given, changes: _Changes) -> str:
        """Statement, operation and name as our own database spans have them."""
        found: statements.Statement | None = None
        for key in _STATEMENTS:
            text = given.get(key)
            if isinstance(text, str):
                found = statements.parameterise(_unquote(text), vendor)
                _change(given, changes, key, found.text if self._keeps_statement else None)
        if not self._keeps_statement:
            changes.update((key, None) for key in given if key.startswith(_PARAMETERS))
        if found is None:
            # A span of connecting, or one whose name is all it has.
            return name
        for key in _OPERATIONS:
            if key in given:
                _change(given, changes, key, found.operation)
        # Theirs is the statement's first word, whatever that is: a comment mark, a bracket, even a literal.
        return found.summary

    def _redis(self, name: str, given: _Given, changes: _Changes) -> str:
        for key in given:
            # Documents that were found, and what was looked for.
            if key.startswith("redis.search.xdoc_") or key == "redis.search.query":
                changes[key] = None
        commands: list[str] = []
        for key in _STATEMENTS:
            text = given.get(key)
            if isinstance(text, str):
                lines = [_clean_command(line) for line in text.splitlines()]
                commands = [line.partition(" ?")[0] for line in lines]
                _change(given, changes, key, _cut(lines) if self._keeps_statement else None)
        is_pipeline = "db.redis.pipeline_length" in given
        if is_pipeline:
            # Semantic conventions, database spans: "PIPELINE SET" when all commands are the same.
            name = f"PIPELINE {commands[0]}" if len(set(commands)) == 1 and commands[0] else "PIPELINE"
        elif " " in name:
            name = _clean_command(name).partition(" ?")[0]
        operation = name if is_pipeline or not commands else commands[0] or name
        changes["db.operation.name"] = _REDIS_OPERATIONS.get(operation, operation)
        _use_stable_redis_names(given, changes)
        return name

    def _event(self, event: Event, system: str) -> Event:
        changes: _Changes = {}
        given = event.attributes or {}
        for key, value in given.items():
            if isinstance(value, str) and key in ("exception.message", "exception.stacktrace"):
                _change(given, changes, key, self._message(value, system))
        if not changes:
            return event
        return Event(event.name, _merge(given, changes, event.dropped_attributes), event.timestamp)

    def _message(self, text: str, system: str) -> str:
        if system == "redis":
            text = _REDIS_ARGUMENTS.sub(_hide_arguments, text)
        return text if self._keeps_query or "?" not in text else _URL_QUERY.sub(r"\1", text)


def _use_stable_redis_names(given: _Given, changes: _Changes) -> None:
    """Rename what the instrumentor still calls as before the conventions were stable, and drop the rest of it.

    Source: OpenTelemetry semantic conventions, "Redis client operations".
    """
    for key in given:
        if not key.startswith("db.redis.") and key not in _OLD_REDIS_NAMES:
            continue
        new = _OLD_REDIS_NAMES.get(key)
        value = changes.get(key, given[key])
        # A batch of one command is none, say the conventions.
        is_one = new == _BATCH_SIZE and isinstance(value, int) and value <= 1
        if new is not None and new not in given and value is not None and not is_one:
            changes[new] = str(value) if new in ("db.namespace", "server.address") else value
        changes[key] = None


@functools.lru_cache(maxsize=8)
def _cleaner(statement: str, keep_query: bool) -> LibrarySpanCleaner:
    return LibrarySpanCleaner(statement, keep_query)


def _change(given: _Given, changes: _Changes, key: str, value: AttributeValue | None) -> None:
    if value != given.get(key):
        changes[key] = value


def _hide_arguments(match: re.Match[str]) -> str:
    return f"{match.group(1) or match.group(2)}?{match.group(3) or ''}"


def _drop_queries(given: _Given, changes: _Changes) -> None:
    if "url.query" in given:
        changes["url.query"] = None
    for key in _URLS:
        url = given.get(key)
        if isinstance(url, str) and ("?" in url or "#" in url):
            changes[key] = re.split(r"[?#]", url, maxsplit=1)[0]


def _unquote(text: str) -> str:
    """psycopg2's `sql.SQL` is recorded as its repr."""
    match = _QUOTED_SQL.fullmatch(text)
    if match is None:
        return text
    try:
        inner = ast.literal_eval(match.group(1))
    except (ValueError, SyntaxError):
        return text
    return inner if isinstance(inner, str) else text


def _clean_command(text: str) -> str:
    """A Redis command with every argument as `?`; `execute_command("SET key value")` came as one word."""
    words = text.split()
    if not words:
        return ""
    if not _COMMAND.fullmatch(words[0]):
        return "?" * bool(words)
    keep = 2 if len(words) > 1 and words[0].upper() in _CONTAINERS and _COMMAND.fullmatch(words[1]) else 1
    return " ".join(words[:keep] + ["?"] * (len(words) - keep))


def _cut(lines: list[str]) -> str:
    text = "\n".join(lines)
    return text if len(text) <= _MAX_REDIS_TEXT else text[: _MAX_REDIS_TEXT - 3] + "..."


def _merge(given: _Given, changes: _Changes, dropped: int) -> BoundedAttributes:
    """Attributes with the changes applied (None removes), counting what the SDK had dropped before."""
    merged = {**given, **changes}
    bounded = BoundedAttributes(attributes={key: value for key, value in merged.items() if value is not None})
    bounded.dropped = dropped
    return bounded
