"""Log records and statements as rows of the store, for the pages that look over all traces: tables, writing, bounds."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence

from django_otel.tracestore.columns import to_storable
from django_otel.tracestore.items import StatementSum, StoredLog, StoredSpans
from django_otel.tracestore.packing import pack
from django_otel.tracestore.rows import select_in

#: Most log records.
MAX_LOGS = 20_000
#: Share of the file that log records may take: one part of so many.
_LOGS_PART = 8
_MAX_BODY = 4_000
_MAX_DETAILS_BYTES = 8_000
#: Statements that no trace has any more are forgotten when there are more than so many.
_MAX_STATEMENTS = 5_000
#: The id of a record without a trace.
NO_TRACE = "0" * 32

SCHEMA = """
CREATE TABLE log (
  id INTEGER PRIMARY KEY,
  time_ns INTEGER NOT NULL,
  severity INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  level TEXT NOT NULL,
  logger TEXT NOT NULL,
  service TEXT NOT NULL,
  trace_id TEXT NOT NULL,
  span_id TEXT NOT NULL,
  body TEXT NOT NULL,
  data BLOB NOT NULL
);
CREATE INDEX log_time ON log (time_ns);
CREATE INDEX log_bytes ON log (bytes);
CREATE INDEX log_logger ON log (logger);
CREATE TABLE sql (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE statement (
  seq INTEGER NOT NULL,
  sql INTEGER NOT NULL,
  count INTEGER NOT NULL,
  total_ns INTEGER NOT NULL,
  longest_ns INTEGER NOT NULL,
  repeated INTEGER NOT NULL,
  line TEXT NOT NULL,
  advice TEXT NOT NULL,
  PRIMARY KEY (seq, sql)
) WITHOUT ROWID;
CREATE INDEX statement_sql ON statement (sql);
CREATE TABLE object (model TEXT NOT NULL, pk TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (model, pk, seq))
  WITHOUT ROWID;
CREATE INDEX object_seq ON object (seq);
"""


# --- Log records. ---


def write_logs(connection: sqlite3.Connection, logs: Sequence[StoredLog], file_bytes: int) -> None:
    """Add log records, and forget the oldest beyond the bounds; `file_bytes` is the bound of the file."""
    if not logs:
        return
    connection.executemany(
        "INSERT INTO log (time_ns, severity, bytes, level, logger, service, trace_id, span_id, body, data) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        map(_log_values, logs),
    )
    count, size = connection.execute("SELECT count(*), total(bytes) FROM log").fetchone()
    allowed = file_bytes // _LOGS_PART
    while count and (count > MAX_LOGS or size > allowed):
        # A twentieth at a time: each batch would else begin with a deletion.
        removed = _forget_oldest(connection, max(1, count // 20, count - MAX_LOGS))
        count, size = connection.execute("SELECT count(*), total(bytes) FROM log").fetchone()
        if not removed:
            break


def _log_values(log: StoredLog) -> tuple[object, ...]:
    record = log.record
    body = str(record.get("body", ""))[:_MAX_BODY]
    details = record.get("attributes")
    data = pack(details) if details else b""
    if len(data) > _MAX_DETAILS_BYTES:
        data = b""
    trace_id = "" if log.trace_id == NO_TRACE else log.trace_id
    span_id = str(record.get("span", "")) if trace_id else ""
    level, logger = str(record.get("level", "")), str(record.get("logger", ""))
    size = len(body) * 2 + len(data) + len(logger) + 150
    severity = record.get("severity")
    return (
        to_storable(log.time_ns), to_storable(severity) if isinstance(severity, int) else 0, size, level, logger,
        log.service, trace_id, span_id, body, data,
    )  # fmt: skip


def _forget_oldest(connection: sqlite3.Connection, count: int) -> int:
    return connection.execute("DELETE FROM log WHERE id IN (SELECT id FROM log ORDER BY id LIMIT ?)", (count,)).rowcount


def make_room(connection: sqlite3.Connection) -> None:
    """Forget a fifth of the log records: the file is full."""
    (count,) = connection.execute("SELECT count(*) FROM log").fetchone()
    _forget_oldest(connection, count // 5)


# --- Statements. ---


_ADD_STATEMENT = (
    "INSERT INTO statement (seq, sql, count, total_ns, longest_ns, repeated, line, advice) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (seq, sql) DO UPDATE SET count = count + excluded.count, "
    "total_ns = total_ns + excluded.total_ns, longest_ns = max(longest_ns, excluded.longest_ns), "
    "repeated = max(repeated, excluded.repeated), "
    "line = CASE WHEN line = '' THEN excluded.line ELSE line END, "
    "advice = CASE WHEN advice = '' THEN excluded.advice ELSE advice END"
)


def write_statements(connection: sqlite3.Connection, parts: Sequence[tuple[int, StoredSpans]]) -> None:
    """Add the statements and objects of traces, each with its number."""
    found = [(seq, text, each) for seq, part in parts for text, each in part.statements.items()]
    texts = list(dict.fromkeys(text for _, text, _ in found))
    connection.executemany("INSERT OR IGNORE INTO sql (text) VALUES (?)", [(text,) for text in texts])
    numbers: dict[str, int] = dict(select_in(connection, "SELECT text, id FROM sql WHERE text", texts))
    rows = [
        (
            seq,
            numbers[text],
            each.count,
            to_storable(each.total_ns),
            to_storable(each.longest_ns),
            to_storable(each.repeated),
            each.line,
            each.advice,
        )
        for seq, text, each in found
    ]
    connection.executemany(_ADD_STATEMENT, rows)
    objects = [(model, pk, seq) for seq, part in parts for model, pk in part.objects]
    connection.executemany("INSERT OR IGNORE INTO object (model, pk, seq) VALUES (?, ?, ?)", objects)


def forget_statements(connection: sqlite3.Connection) -> None:
    """Forget the texts of statements that no trace has any more, if there are many."""
    (count,) = connection.execute("SELECT count(*) FROM sql").fetchone()
    if count > _MAX_STATEMENTS:
        connection.execute("DELETE FROM sql WHERE id NOT IN (SELECT sql FROM statement)")


# --- What a span says. ---

#: Longest statement that is distinguished from others by its text.
MAX_STATEMENT = 4_000
#: Most statements and objects of one trace that arrive together.
MAX_PER_TRACE = 200
#: Systems whose operations are not queries.
SYSTEMS_WITHOUT_QUERIES = ("redis", "valkey", "memcached")
#: The user of a request, where `REQUEST.USER` or the project records it.
USER_KEYS = ("user.id", "user.hash", "enduser.id")
#: Longest name under which a request without a route is listed.
LONGEST_TITLE = 200
_N_PLUS_ONE = "django.n_plus_one"
_N_PLUS_ONE_COUNT = f"{_N_PLUS_ONE}.count"
_N_PLUS_ONE_ADVICE = f"{_N_PLUS_ONE}.advice"


def add_query(stored: StoredSpans, attributes: Mapping[str, object], duration_ns: int) -> None:
    """Count a query of a trace. The text of its statement has no values in it, and is redacted later."""
    text = attributes.get("db.query.text") or attributes.get("db.statement")
    if isinstance(text, str):
        count_statement(stored, text, source_line(attributes), duration_ns)


def count_statement(stored: StoredSpans, text: str, line: str, duration_ns: int) -> None:
    """Count a statement of a trace; `line` is where it was made, as `source_line` has it."""
    found = _statement(stored, text)
    if found is None:
        return
    found.count += 1
    found.total_ns += duration_ns
    if duration_ns > found.longest_ns:
        found.longest_ns = duration_ns
    if not found.line:
        found.line = line


def add_n_plus_one(stored: StoredSpans, attributes: Mapping[str, object]) -> None:
    """Collect the repeated queries of a request's event."""
    text = attributes.get("db.query.text")
    found = _statement(stored, text) if isinstance(text, str) else None
    if found is not None:
        count = attributes.get(_N_PLUS_ONE_COUNT)
        found.repeated = max(found.repeated, count if isinstance(count, int) else 1)
        found.advice = str(attributes.get(_N_PLUS_ONE_ADVICE, ""))[:500] or found.advice
        found.line = source_line(attributes) or found.line


def add_events(stored: StoredSpans, events: Iterable[object]) -> None:
    """Note the repeated queries that the events of a span report."""
    for event in events:
        if getattr(event, "name", "") == _N_PLUS_ONE:
            add_n_plus_one(stored, getattr(event, "attributes", None) or {})


def add_object(stored: StoredSpans, attributes: Mapping[str, object]) -> None:
    """Note the object that a span names."""
    model, pk = attributes.get("django.model"), attributes.get("django.model.pk")
    if model and pk is not None and len(stored.objects) < MAX_PER_TRACE:
        stored.objects.add((str(model)[:200].lower(), str(pk)[:200]))


def _statement(stored: StoredSpans, text: str) -> StatementSum | None:
    text = text[:MAX_STATEMENT]
    found = stored.statements.get(text)
    if found is None and len(stored.statements) < MAX_PER_TRACE:
        found = stored.statements[text] = StatementSum()
    return found


def to_whole(value: object) -> int:
    """Return the value of an attribute as a whole number; 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def source_line(attributes: Mapping[str, object]) -> str:
    """Return where in the project a query was made, as "file:line"; "" where that is not known."""
    path, line = attributes.get("code.file.path"), attributes.get("code.line.number")
    return f"{path}:{line}"[-300:] if path and line else ""
