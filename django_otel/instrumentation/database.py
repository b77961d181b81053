"""Spans and `db.client.operation.duration` of every query of Django, on any database.

Django offers `connection.execute_wrappers` for this: one `QueryWrapper` goes
to the front of each connection's list, so that it is the outermost and a
user's `with connection.execute_wrapper(...)`, which pops the last, leaves it in
place. It stays there over reconnects.

- A query inside a recorded span gets a span of its own. A query outside any
  span (a management command, a shell) is counted by the metrics and makes no
  trace, unless `DATABASE.ROOT_SPANS` is on: each would be a trace of a single
  span, and there would be many.
- No literal leaves: the text is `redaction.statements`'; of an error only its type
  and the database's code are recorded, since messages repeat values ("DETAIL: Key
  (email)=(...) already exists").
- One span per query: where an OpenTelemetry instrumentor has put itself into
  the driver's connection, it is taken out of Django's connections again, which
  costs nothing. An instrumentor that cannot be removed is suppressed, which costs
  some microseconds per query. Either way the comments that its `enable_commenter`
  adds to SQL are lost. With `DATABASE.SPANS` off the driver's spans stay.
- Commit, rollback, COPY and fetches of a server-side cursor do not pass here: see `driver_calls`. Nor does connecting.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.backends.utils import CursorWrapper
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, get_current_span

from django_otel import runtime
from django_otel.base import guard
from django_otel.base.frozen import record
from django_otel.base.sdk_compat import (
    SPAN_KEY,
    SUPPRESS_INSTRUMENTATION_KEY,
    attach,
    detach,
    get_current,
    with_span,
)
from django_otel.config.schema import Config
from django_otel.instrumentation.callers import find_caller
from django_otel.instrumentation.n_plus_one import KnownStatement, Watch, Watched, build_watch, look, note_query
from django_otel.instrumentation.query_outcome import note_error, note_rows
from django_otel.metrics.instruments import Counter, Histogram
from django_otel.metrics.series import HistogramSeries
from django_otel.redaction.statements import MAX_LENGTH, Statement, parameterise
from django_otel.requests import layers
from django_otel.requests.record import REQUEST_KEY, RequestRecord
from django_otel.tracing.attributes import are_ready
from django_otel.tracing.exceptions import type_name
from django_otel.tracing.spans import DroppedSpan, RecordedSpan
from django_otel.tracing.tracer import Tracer

Execute = Callable[[Any, Any, bool, dict[str, Any]], Any]

_PLACE = "the database layer"
_CLIENT = SpanKind.CLIENT
#: `connection.vendor`, in the words of the semantic conventions ("db.system.name").
_SYSTEMS = {
    "postgresql": "postgresql",
    "sqlite": "sqlite",
    "mysql": "mysql",
    "oracle": "oracle.db",
    "microsoft": "microsoft.sql_server",
    "mssql": "microsoft.sql_server",
    "cockroachdb": "cockroachdb",
    "redshift": "aws.redshift",
    "spanner": "gcp.spanner",
    "clickhouse": "clickhouse",
    "firebird": "firebirdsql",
    "db2": "ibm.db2",
    "trino": "trino",
}
#: Operations whose target is a procedure, not a table.
_PROCEDURES = frozenset({"CALL", "EXEC"})
#: Modules of the official instrumentors' cursor and connection classes.
_INSTRUMENTORS = "opentelemetry."
#: Vendors whose drivers have all rows when a query has ended, and the operations that return some.
_COUNTING = frozenset({"postgresql", "mysql"})
_RETURNING = frozenset({"SELECT", "SHOW", "TABLE", "VALUES"})
#: The key that `suppress_instrumentation` of older instrumentors sets.
_PLAIN_SUPPRESS_KEY = "suppress_instrumentation"
_MAX_SERIES_KEPT = 500
_MAX_QUERIES_KEPT = 500


@record
class Settings:
    """Effective options. A new object with every (re)start, so that its identity shows what was derived from it."""

    makes_spans: bool
    #: Whether a query outside any span gets one.
    makes_roots: bool
    measures: bool
    tells_text: bool
    makes_exemplars: bool
    #: Duration from which a query's span has the calling line, in seconds.
    source_over_s: float | None
    #: Whether the time of queries is part of a request's time budget.
    times_requests: bool
    #: Counts equal queries of a request; None while DATABASE.N_PLUS_ONE is off.
    watch: Watch | None
    duration: Histogram
    connections: Counter


class _State:
    """State that changes with the settings."""

    def __init__(self) -> None:
        #: None while queries are not looked at.
        self.settings: Settings | None = None


_state = _State()


class Query(Watched):
    """One SQL text on one connection, with the common parts of its spans and metrics."""

    __slots__ = ("has_row_count", "is_ready", "operation", "series", "statement")

    def __init__(self, statement: Statement, attributes: dict[str, Any], known: KnownStatement | None) -> None:
        super().__init__(known, attributes)
        self.statement = statement
        self.operation = statement.operation
        #: Whether a span keeps the attributes as they are; None when not known yet.
        self.is_ready: bool | None = None
        #: The series of successful executions.
        self.series: HistogramSeries | None = None
        #: Whether the driver knows how many rows it has returned.
        self.has_row_count = False


class QueryWrapper:
    """Measures the queries of one Django connection; it is an execute wrapper."""

    __slots__ = ("_attributes", "_labels", "_queries", "_series", "_settings", "_taken", "_traced", "_vendor")

    def __init__(self) -> None:
        self._vendor = ""
        self._attributes: dict[str, Any] = {}
        self._labels: dict[str, Any] = {}
        self._settings: Settings | None = None
        self._series: dict[object, HistogramSeries] = {}
        #: By SQL text, of those that were executed last.
        self._queries: dict[str, Query] = {}
        #: Cursor classes of this connection, and whether an instrumentor has them.
        self._traced: dict[type, bool] = {}
        #: The driver's connection and what was taken out of it.
        self._taken: tuple[Any, Any] | None = None

    # --- The path of a query. ---

    def __call__(self, execute: Execute, sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:  # noqa: C901 (one decision after the other, each with its reason)
        settings = _state.settings
        outer = get_current()
        request: Any = outer
        if type(outer) is RequestRecord:
            # As within most requests. Nothing else is in it; a span that was never accessed is not recorded.
            parent, is_suppressed = request.span_or_none, False
        else:
            request, parent = outer.get(REQUEST_KEY), outer.get(SPAN_KEY)
            is_suppressed = bool(outer.get(SUPPRESS_INSTRUMENTATION_KEY) or outer.get(_PLAIN_SUPPRESS_KEY))
        if settings is None or is_suppressed:
            return execute(sql, params, many, context)
        query = span = token = None
        try:
            if request is not None:
                request.queries += 1
            if settings is not self._settings:
                self._adopt(settings)
            # The text of most queries comes again: found by it, all else need not be.
            query = self._queries.get(sql) if type(sql) is str and not many else None
            if query is None:
                query = self._prepare(settings, sql, params, many)
            if settings.makes_spans:
                if type(parent) is RecordedSpan:
                    span = self._start(query, outer, parent) if parent.is_recording() else None
                elif type(parent) is not DroppedSpan and (parent is not None or request is None):
                    span = _start_elsewhere(query, outer, makes_roots=settings.makes_roots and request is None)
                inner = outer if span is None else with_span(outer, span)
                cursor_class = type(context["cursor"].cursor)
                if self._traced[cursor_class] if cursor_class in self._traced else self._examine(cursor_class):
                    inner = Context({**inner, SUPPRESS_INSTRUMENTATION_KEY: True, _PLAIN_SUPPRESS_KEY: True})
                token = attach(inner) if inner is not outer else None
        except Exception as error:
            guard.report(_PLACE, error)
        started_s = perf_counter()
        opened = layers.enter(request, layers.DATABASE, started_s) if settings.times_requests else None
        try:
            result = execute(sql, params, many, context)
        except BaseException as error:
            ended_s = layers.leave(opened, layers.DATABASE)
            self._finish_failed(settings, query, ended_s - started_s, (request, span, token), error)
            raise
        if span is not None and query is not None and query.has_row_count:
            note_rows(span, context["cursor"])
        ended_s = layers.leave(opened, layers.DATABASE)
        if request is not None and query is not None:
            # Calls cost most here; `n_plus_one.Watched` says what this does.
            if query.owner is request.started_s:
                if left := query.left - 1:
                    query.left = left
                else:
                    look(request, query, span)
            elif (known := query.known) is not None:
                if known.is_trusted and query.repeats is None:
                    first = known.limit if span is None else known.first_look
                    query.owner, query.look_at, query.left = request.started_s, first, first - 1
                else:
                    note_query(settings.watch, request, query, span)
        self.finish(settings, query, ended_s - started_s, span, token, None)
        return result

    def _finish_failed(
        self,
        settings: Settings,
        query: Query | None,
        took_s: float,
        around: tuple[Any, Any, Any],
        error: BaseException,
    ) -> None:
        """End a query that raised; `around` are its request, its span and the token of its context."""
        request, span, token = around
        if request is not None and query is not None and query.known is not None:
            note_query(settings.watch, request, query, span)
        self.finish(settings, query, took_s, span, token, error)

    def _start(self, query: Query, outer: Context, parent: RecordedSpan) -> Span:
        tracer = runtime.tracer()
        if type(tracer) is Tracer:
            if query.is_ready is None:
                query.is_ready = are_ready(query.attributes, tracer.shared.limits)
            if query.is_ready:
                return tracer.start_child(query.statement.summary, outer, _CLIENT, parent, query.attributes)
        return tracer.start_span(query.statement.summary, outer, _CLIENT, query.attributes)

    def finish(
        self,
        settings: Settings,
        query: Query | None,
        duration_s: float,
        span: Span | None,
        token: Any,
        error: BaseException | None,
    ) -> None:
        """Count an operation that has ended, and end its span."""
        if token is not None:
            detach(token)
        try:
            if settings.measures:
                series = query.series if error is None and query is not None else None
                if series is None:
                    series = self._find_series(settings, query, error)
                if span is None or not settings.makes_exemplars:
                    series.observe(duration_s)
                else:
                    own = span.get_span_context()
                    series.observe(duration_s, own.trace_id if own.trace_flags & 1 else 0, own.span_id)
            if span is not None:
                if error is not None:
                    note_error(span, error)
                if settings.source_over_s is not None and duration_s >= settings.source_over_s:
                    span.set_attributes(find_caller())
                span.end()
        except Exception as fault:
            guard.report(_PLACE, fault)

    # --- Once per SQL text. ---

    def query_of(self, settings: Settings, sql: object) -> Query:
        """Return the common parts of the spans and metrics of `sql`."""
        if settings is not self._settings:
            self._adopt(settings)
        known = self._queries.get(sql) if type(sql) is str else None
        return known or self._prepare(settings, sql, None, False)

    def _prepare(self, settings: Settings, sql: Any, params: Any, many: bool) -> Query:
        statement = parameterise(sql, self._vendor)
        if many:
            statement = _as_batch(statement, params)
        attributes = self._attributes.copy()
        attributes["db.operation.name"] = statement.operation
        attributes["db.query.summary"] = statement.summary
        if statement.table is not None:
            is_procedure = statement.operation in _PROCEDURES
            attributes["db.stored_procedure.name" if is_procedure else "db.collection.name"] = statement.table
        if settings.tells_text and statement.text:
            attributes["db.query.text"] = statement.text
        if many and (size := _size(params)) is not None and size != 1:
            attributes["db.operation.batch.size"] = size
        watched = settings.watch.find(statement, (sql, self._attributes, many)) if settings.watch is not None else None
        query = Query(statement, attributes, watched)
        query.has_row_count = not many and self._vendor in _COUNTING and statement.operation in _RETURNING
        if not many and type(sql) is str and len(sql) <= MAX_LENGTH:
            if len(self._queries) >= _MAX_QUERIES_KEPT:
                # Values written into SQL make every text a new one; those that come again are soon here again.
                self._queries.clear()
            self._queries[sql] = query
        return query

    def _find_series(self, settings: Settings, query: Query | None, error: BaseException | None) -> HistogramSeries:
        operation = query.operation if query is not None else ""
        key = operation if error is None else (operation, type(error))
        series = self._series.get(key) or self._make_series(settings, key, operation, error)
        if error is None and query is not None and not series.is_overflow:
            query.series = series
        return series

    # --- Once per setting, series, cursor class or connection. ---

    def _adopt(self, settings: Settings) -> None:
        # A change of buckets has made the old series invalid.
        self._series = {}
        self._queries = {}
        self._settings = settings

    def _make_series(
        self, settings: Settings, key: object, operation: str, error: BaseException | None
    ) -> HistogramSeries:
        labels = {**self._labels, "db.operation.name": operation}
        if error is not None:
            labels["error.type"] = type_name(error)
        series = settings.duration.series(labels)
        assert isinstance(series, HistogramSeries)
        if len(self._series) < _MAX_SERIES_KEPT and not series.is_overflow:
            self._series[key] = series
        return series

    def _examine(self, cursor_class: type) -> bool:
        """Return whether an instrumentor makes a span for queries of this cursor."""
        traced = any(_is_instrumentors(base) for base in cursor_class.__mro__)
        self._traced[cursor_class] = traced
        return traced

    def connected(self, connection: BaseDatabaseWrapper) -> None:
        """Learn which database this is, each time the connection is opened."""
        attributes = _describe(connection)
        # The instrumentors make a new class for each connection.
        self._traced = {}
        self._vendor = connection.vendor
        if attributes != self._attributes:
            self._attributes = attributes
            self._labels = {
                key: attributes[key]
                for key in ("db.system.name", "db.namespace", "django.db.alias")
                if key in attributes
            }
            self._series = {}
        self._queries = {}

    def take_over(self, connection: BaseDatabaseWrapper) -> None:
        """Take an OpenTelemetry instrumentor out of the driver's connection, so that a query has one span."""
        driver = connection.connection
        factory = getattr(driver, "cursor_factory", None)
        if isinstance(factory, type) and _is_instrumentors(factory):
            # psycopg and psycopg2: a subclass of the cursor class that Django asked for.
            self._taken = (driver, factory)
            base = factory
            while _is_instrumentors(base):
                base = base.__bases__[0]
            driver.cursor_factory = base
        elif _is_instrumentors(type(driver)) and hasattr(driver, "__wrapped__"):
            # sqlite3, MySQLdb, pymysql and the others: a proxy around the connection.
            self._taken = (driver.__wrapped__, driver)
            connection.connection = driver.__wrapped__

    def give_back(self, connection: BaseDatabaseWrapper) -> None:
        """Undo `take_over`."""
        taken, self._taken = self._taken, None
        if taken is None or connection.connection is not taken[0]:
            return
        driver, given = taken
        if isinstance(given, type):
            driver.cursor_factory = given
        else:
            connection.connection = given


def _is_instrumentors(kind: type) -> bool:
    # A proxy's class may answer with what it wraps; its own dictionary does not.
    return str(vars(kind).get("__module__", "")).startswith(_INSTRUMENTORS)


def _size(batch: Any) -> int | None:
    # An iterator has no length, and counting would use it up.
    return len(batch) if hasattr(batch, "__len__") else None


def _as_batch(statement: Statement, batch: Any) -> Statement:
    """Name a batch as the semantic conventions of "db.operation.name" ask; one row is a single operation."""
    if _size(batch) == 1:
        return statement
    return dataclasses.replace(
        statement, operation=f"BATCH {statement.operation}", summary=f"BATCH {statement.summary}"
    )


def _start_elsewhere(query: Query, outer: Context, *, makes_roots: bool) -> Span | None:
    """Start the span of a query below a span that is not one of our requests', or as a root."""
    if not makes_roots and not get_current_span(outer).is_recording():
        return None
    return runtime.tracer().start_span(query.statement.summary, outer, _CLIENT, query.attributes)


# --- What a connection leads to. ---


def _describe(connection: BaseDatabaseWrapper) -> dict[str, Any]:
    """The attributes that all queries of a connection share. Asks the database nothing."""
    vendor = connection.vendor
    system = _SYSTEMS.get(vendor.lower(), "other_sql")
    if vendor == "mysql" and "mysql_server_data" in vars(connection) and getattr(connection, "mysql_is_mariadb", False):
        # Only when Django has already asked: a query of ours would change what assertNumQueries counts.
        system = "mariadb"
    given: Mapping[str, Any] = connection.settings_dict
    namespace, host, port = given.get("NAME"), given.get("HOST"), given.get("PORT")
    info = getattr(connection.connection, "info", None) if vendor != "sqlite" else None
    if info is not None and hasattr(info, "dbname"):
        # psycopg knows where it is connected to, also with several hosts, a service file or PGHOST.
        namespace, host, port = info.dbname or namespace, info.host or host, info.port or port
    attributes: dict[str, Any] = {"db.system.name": system, "django.db.alias": connection.alias}
    name = _database_name(vendor, namespace)
    if name:
        attributes["db.namespace"] = name
    if vendor != "sqlite" and host:
        attributes["server.address"] = str(host)
        number = str(port)
        if number.isascii() and number.isdigit() and not str(host).startswith("/"):
            attributes["server.port"] = int(number)
    return attributes


def _database_name(vendor: str, name: object) -> str | None:
    text = str(name) if name else ""
    if vendor == "sqlite":
        # A file's folder says something about the machine, nothing about the database.
        return ":memory:" if ":memory:" in text or "mode=memory" in text else text.replace("\\", "/").rpartition("/")[2]
    if vendor == "oracle":
        # host:port/service, or a connect descriptor.
        return None if "(" in text else text.rpartition("/")[2]
    return text


# --- On and off. ---


def install(config: Config) -> None:
    """Follow the settings: measure every connection, present and to come, or none. May be called again and again.

    Connections that other threads have open already are measured from their
    next opening on.
    """
    if not config.enabled or not (config.database.spans or config.database.metrics):
        uninstall()
        return
    duration = runtime.store.catalogued("db.client.operation.duration")
    opened = runtime.store.catalogued("django.db.connections")
    assert isinstance(duration, Histogram)
    assert isinstance(opened, Counter)
    _state.settings = Settings(
        makes_spans=config.database.spans,
        makes_roots=config.database.root_spans,
        measures=config.database.metrics,
        tells_text=config.database.statement != "off",
        makes_exemplars=config.metrics.exemplars,
        source_over_s=config.database.source_over_s,
        times_requests=layers.is_wanted(config),
        watch=build_watch(config),
        duration=duration,
        connections=opened,
    )
    connection_created.connect(_on_connection_created, dispatch_uid=__name__)
    if CursorWrapper.callproc is _plain_callproc:
        # Django has execute wrappers for execute() and executemany() only.
        CursorWrapper.callproc = _callproc  # type: ignore[method-assign]
    if BaseDatabaseWrapper.init_connection_state is _plain_init_connection_state:
        # connection_created comes after Django's first queries to the driver.
        BaseDatabaseWrapper.init_connection_state = _init_connection_state  # type: ignore[method-assign]
    for connection in connections.all(initialized_only=True):
        if connection.connection is not None:
            with guard.contained(_PLACE):
                _attach(connection, _state.settings)


def uninstall() -> None:
    """Measure nothing more.

    The wrappers of this thread's connections go; those of other threads stay,
    since a list must not shrink under the thread that walks through it, and
    pass queries on untouched.
    """
    _state.settings = None
    connection_created.disconnect(dispatch_uid=__name__)
    if CursorWrapper.callproc is _callproc:
        CursorWrapper.callproc = _plain_callproc  # type: ignore[method-assign]
    if BaseDatabaseWrapper.init_connection_state is _init_connection_state:
        BaseDatabaseWrapper.init_connection_state = _plain_init_connection_state  # type: ignore[method-assign]
    for connection in connections.all(initialized_only=True):
        wrapper = wrapper_of(connection)
        if wrapper is not None:
            connection.execute_wrappers.remove(wrapper)
            with guard.contained(_PLACE):
                wrapper.give_back(connection)


def current_settings() -> Settings | None:
    """Return the effective options; None while queries are not observed."""
    return _state.settings


def wrapper_of(connection: BaseDatabaseWrapper) -> QueryWrapper | None:
    """Return the wrapper that measures `connection`, if there is one."""
    for wrapper in connection.execute_wrappers:
        if isinstance(wrapper, QueryWrapper):
            return wrapper
    return None


def _attach(connection: BaseDatabaseWrapper, settings: Settings) -> None:
    wrapper = wrapper_of(connection)
    if wrapper is None:
        wrapper = QueryWrapper()
        connection.execute_wrappers.insert(0, wrapper)
    wrapper.connected(connection)
    if settings.makes_spans:
        wrapper.take_over(connection)
    else:
        wrapper.give_back(connection)


def _on_connection_created(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    settings = _state.settings
    if settings is None:
        return
    with guard.contained(_PLACE):
        _attach(connection, settings)
        outer = get_current()
        is_suppressed = outer.get(SUPPRESS_INSTRUMENTATION_KEY) or outer.get(_PLAIN_SUPPRESS_KEY)
        if settings.measures and not is_suppressed:
            settings.connections.add(1, {"django.db.alias": connection.alias})


_plain_init_connection_state = BaseDatabaseWrapper.init_connection_state


def _init_connection_state(self: BaseDatabaseWrapper) -> None:
    """`BaseDatabaseWrapper.init_connection_state`, once the connection is ours: the driver is silent from its start."""
    settings = _state.settings
    if settings is not None:
        with guard.contained(_PLACE):
            _attach(self, settings)
    _plain_init_connection_state(self)


_plain_callproc = CursorWrapper.callproc


def _callproc(self: CursorWrapper, procname: Any, params: Any = None, kparams: Any = None) -> Any:
    """`CursorWrapper.callproc`, passing the connection's `QueryWrapper` as a CALL of that procedure."""

    def execute(sql: Any, given: Any, many: bool, context: dict[str, Any]) -> Any:
        return _plain_callproc(self, procname, params, kparams)

    wrapper = wrapper_of(self.db)
    if wrapper is None:
        return execute("", None, False, {})
    call = f"CALL {procname}" if isinstance(procname, str) else "CALL"
    return wrapper(execute, call, None, False, {"connection": self.db, "cursor": self})
