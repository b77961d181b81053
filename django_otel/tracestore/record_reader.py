"""Reads log records, statements and routes over all traces of the store."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from django_otel.tracestore.columns import DAMAGED, to_integer, to_storable, to_text
from django_otel.tracestore.packing import unpack

#: Orders of statements, and the column of each.
STATEMENT_ORDERS = {"total": "total_ns", "count": "queries", "longest": "longest_ns", "traces": "traces"}
#: As many equal queries in one trace are probably an N+1.
MANY_EQUAL = 5
_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class LogRow:
    """A log record. Units: `time_ns` is nanoseconds since the Unix epoch; `severity` is OpenTelemetry's number."""

    id: int
    time_ns: int
    severity: int
    level: str
    logger: str
    service: str
    trace_id: str
    span_id: str
    body: str
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogFilter:
    """A filter of log records: a part of the text, the lowest severity, a logger with those below it, a trace."""

    text: str = ""
    severity: int = 0
    logger: str = ""
    trace_id: str = ""
    since_ns: int = 0
    until_ns: int = 0
    #: Only records that were stored after the one with this id.
    after_id: int = 0

    def where(self) -> tuple[str, list[str | int]]:
        """The condition in SQL and its parameters."""
        conditions, values = ["id > ?"], list[str | int]([self.after_id])
        if self.severity:
            conditions.append("severity >= ?")
            values.append(self.severity)
        if self.since_ns:
            conditions.append("time_ns >= ?")
            values.append(to_storable(self.since_ns))
        if self.until_ns:
            conditions.append("time_ns < ?")
            values.append(to_storable(self.until_ns))
        if self.logger:
            conditions.append("(logger = ? OR substr(logger, 1, ?) = ?)")
            values += [self.logger, len(self.logger) + 1, f"{self.logger}."]
        if self.trace_id:
            conditions.append("trace_id = ?")
            values.append(self.trace_id)
        for word in self.text.split()[:8]:
            conditions.append("(instr(lower(body), ?) > 0 OR instr(lower(logger), ?) > 0)")
            values += [word.lower()] * 2
        return " AND ".join(conditions), values


@dataclass(frozen=True, slots=True)
class LogPage:
    """A part of the list. `total` counts all that fit the filter, `stored` all that there are."""

    rows: Sequence[LogRow]
    total: int
    stored: int


@dataclass(frozen=True, slots=True)
class StatementRow:
    """A statement over all traces. Units: `_ns` is nanoseconds.

    `most` is the highest count in one trace, `repeated` that of an event about repeated queries; `traces` counts
    traces, `repeating` those in which it ran often. `trace_id` is the trace in which it ran most often.
    """

    id: int
    text: str
    queries: int
    total_ns: int
    longest_ns: int
    traces: int
    most: int
    repeated: int
    repeating: int
    line: str
    advice: str
    trace_id: str
    route: str


@dataclass(frozen=True, slots=True)
class StatementPage:
    """A part of the list of statements."""

    rows: Sequence[StatementRow]
    total: int


@dataclass(frozen=True, slots=True)
class RequestRow:
    """Figures of a request that are compared. Units: `start_ns` is since the Unix epoch."""

    route: str
    method: str
    start_ns: int
    duration_ns: int
    is_error: bool
    queries: int
    trace_id: str


def search_logs(connection: sqlite3.Connection, wanted: LogFilter, *, offset: int = 0, limit: int = 50) -> LogPage:
    """The newest log records that fit, `limit` of them from `offset` on."""
    where, values = wanted.where()
    rows = connection.execute(
        "SELECT id, time_ns, severity, level, logger, service, trace_id, span_id, body, data FROM log "
        f"WHERE {where} ORDER BY time_ns DESC, id DESC LIMIT ? OFFSET ?",
        (*values, limit, offset),
    ).fetchall()
    (total,) = connection.execute(f"SELECT count(*) FROM log WHERE {where}", values).fetchone()
    (stored,) = connection.execute("SELECT count(*) FROM log").fetchone()
    return LogPage([_log_row(row) for row in rows], total, stored)


def list_loggers(connection: sqlite3.Connection, most: int = 200) -> list[str]:
    """The names of the loggers that have records."""
    rows = connection.execute("SELECT DISTINCT logger FROM log ORDER BY logger LIMIT ?", (most,))
    return [str(name) for (name,) in rows if name]


def _log_row(row: Sequence[object]) -> LogRow:
    details: Mapping[str, object] = {}
    if row[9] and isinstance(row[9], bytes):
        try:
            unpacked = unpack(row[9])
            details = unpacked if isinstance(unpacked, dict) else {}
        except DAMAGED:
            details = {}
    level, logger, service, trace_id, span_id, body = map(to_text, row[3:9])
    number, time_ns, severity = map(to_integer, row[:3])
    return LogRow(number, time_ns, severity, level, logger, service, trace_id, span_id, body, details)


def list_statements(
    connection: sqlite3.Connection,
    *,
    text: str = "",
    only_repeated: bool = False,
    since_ns: int = 0,
    order: str = "total",
    offset: int = 0,
    limit: int = 50,
) -> StatementPage:
    """Statements over all traces that began at or after `since_ns`, the first in `order` first."""
    conditions, values = ["1"], list[str | int]()
    tables = "statement"
    if since_ns:
        tables += " JOIN trace ON trace.seq = statement.seq"
        conditions.append("trace.start_ns >= ?")
        values.append(to_storable(since_ns))
    for word in text.split()[:8]:
        conditions.append("statement.sql IN (SELECT id FROM sql WHERE instr(lower(text), ?) > 0)")
        values.append(word.lower())
    having = ""
    if only_repeated:
        having = (
            "HAVING repeated > 0 OR (most >= ? AND (SELECT upper(substr(ltrim(text, ' ('), 1, 6)) "
            "FROM sql WHERE id = statement.sql) IN ('SELECT', 'WITH'))"
        )
        values.append(MANY_EQUAL)
    column = STATEMENT_ORDERS.get(order, "total_ns")
    grouped = (
        "SELECT statement.sql, sum(count) AS queries, sum(total_ns) AS total_ns, max(longest_ns) AS longest_ns, "
        "count(*) AS traces, max(count) AS most, max(repeated) AS repeated, "
        f"sum(count >= {MANY_EQUAL} OR repeated > 0) AS repeating, max(line) AS line, max(advice) AS advice "
        f"FROM {tables} WHERE {' AND '.join(conditions)} GROUP BY statement.sql {having}"
    )
    rows = connection.execute(
        f"SELECT * FROM ({grouped}) ORDER BY {column} DESC, sql LIMIT ? OFFSET ?",
        (*values, limit, offset),
    ).fetchall()
    (total,) = connection.execute(f"SELECT count(*) FROM ({grouped})", values).fetchone()
    return StatementPage([_statement_row(connection, row) for row in rows], total)


def _statement_row(connection: sqlite3.Connection, row: Sequence[object]) -> StatementRow:
    sql = to_integer(row[0])
    text = connection.execute("SELECT text FROM sql WHERE id = ?", (sql,)).fetchone()
    seen = connection.execute(
        "SELECT trace.trace_id, trace.route, trace.name FROM statement JOIN trace ON trace.seq = statement.seq "
        "WHERE statement.sql = ? ORDER BY statement.count DESC, statement.seq DESC LIMIT 1",
        (sql,),
    ).fetchone()
    queries, total_ns, longest_ns, traces, most, repeated, repeating = map(to_integer, row[1:8])
    trace_id, route, name = map(to_text, seen) if seen is not None else ("", "", "")
    return StatementRow(
        sql, to_text(text[0]) if text is not None else "", queries, total_ns, longest_ns, traces, most, repeated,
        repeating, to_text(row[8]), to_text(row[9]), trace_id, route or name,
    )  # fmt: skip


def find_statement(connection: sqlite3.Connection, number: int) -> tuple[str, str]:
    """Return the text of a statement and the id of the trace in which it ran most often; "" where missing."""
    row = connection.execute(
        "SELECT sql.text, trace.trace_id FROM sql JOIN statement ON statement.sql = sql.id "
        "JOIN trace ON trace.seq = statement.seq WHERE sql.id = ? ORDER BY statement.count DESC, statement.seq DESC "
        "LIMIT 1",
        (number,),
    ).fetchone()
    return (to_text(row[0]), to_text(row[1])) if row is not None else ("", "")


def list_requests(connection: sqlite3.Connection, *, since_ns: int = 0, service: str = "") -> list[RequestRow]:
    """Return the compared figures of the requests that began at or after `since_ns`; their traces have a route."""
    rows = connection.execute(
        "SELECT route, method, start_ns, duration_ns, (errors > 0 OR status >= 500), queries, trace_id FROM trace "
        "WHERE route != '' AND spans > 0 AND start_ns >= ? AND (? = '' OR service = ?)",
        (to_storable(since_ns), service, service),
    )
    return [
        RequestRow(
            to_text(row[0]), to_text(row[1]), to_integer(row[2]), to_integer(row[3]), bool(row[4]), to_integer(row[5]),
            to_text(row[6]),
        )
        for row in rows
    ]  # fmt: skip


def traces_of_object(
    connection: sqlite3.Connection, model: str, pk: str, *, offset: int = 0, limit: int = 50
) -> tuple[list[str], int]:
    """The ids of the traces that name an object, newest first, and how many there are."""
    rows = connection.execute(
        "SELECT trace.trace_id FROM object JOIN trace ON trace.seq = object.seq WHERE object.model = ? "
        "AND object.pk = ? ORDER BY trace.start_ns DESC LIMIT ? OFFSET ?",
        (model.lower(), pk, limit, offset),
    ).fetchall()
    (total,) = connection.execute(
        "SELECT count(*) FROM object JOIN trace ON trace.seq = object.seq WHERE object.model = ? AND object.pk = ?",
        (model.lower(), pk),
    ).fetchone()
    return [to_text(trace_id) for (trace_id,) in rows], total
