"""Database transactions: duration by outcome, the time of COMMIT and ROLLBACK, and spans if enabled.

On with `DATABASE.METRICS`: metric `django.db.transaction.duration`, and `db.client.operation.duration` of COMMIT and
ROLLBACK. With `DATABASE.TRANSACTIONS` each transaction of a recorded request has a span `transaction {alias}` around
its queries, with an event for the end of each savepoint.

- The outermost `atomic` block is the transaction: from before its BEGIN to after its COMMIT or ROLLBACK, without the
  `on_commit` hooks. Blocks inside it are savepoints. The blocks in which a test case wraps a test are not there.
- Where the project ends its transactions itself (autocommit is off) one lasts from its first query to `commit()` or
  `rollback()`. Its span is not current: nothing says where it would begin and end in the code.
- `committed` is what the database has confirmed: a failed COMMIT, a COMMIT that PostgreSQL answers with ROLLBACK and
  a lost connection are `rolled_back`.

Not seen: BEGIN, COMMIT and ROLLBACK sent as SQL of the project's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import Token
from time import perf_counter, time_ns
from types import TracebackType

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import Atomic, get_connection
from opentelemetry.context import Context
from opentelemetry.trace import Span

from django_otel import runtime
from django_otel.base import guard
from django_otel.base.frozen import record
from django_otel.base.sdk_compat import attach, detach, get_current
from django_otel.config.schema import Config
from django_otel.instrumentation import driver_calls
from django_otel.instrumentation.driver_calls import is_recorded, is_suppressed
from django_otel.metrics.series import HistogramSeries
from django_otel.requests.record import current
from django_otel.tracing.exceptions import mark_failed
from django_otel.tracing.span_form import with_enclosing

COMMITTED = "committed"
ROLLED_BACK = "rolled_back"
_ATTRIBUTE = "_django_otel_transaction"
_PLACE = "a database transaction"
# libpq's PQtransactionStatus, the same numbers in psycopg2 and psycopg 3.
_PG_IDLE, _PG_INERROR, _PG_UNKNOWN = 0, 3, 4


@record
class _Settings:
    """Effective options."""

    measures: bool
    makes_spans: bool
    #: Whether a transaction outside any span gets one.
    makes_roots: bool


class _State:
    """State that changes with the settings."""

    def __init__(self) -> None:
        #: None while transactions are not observed.
        self.settings: _Settings | None = None
        #: By alias and outcome.
        self.series: dict[tuple[str, str], HistogramSeries] = {}

    def find_series(self, alias: str, outcome: str) -> HistogramSeries:
        """Return where transactions of that outcome are counted."""
        found = self.series.get((alias, outcome))
        if found is None:
            attributes = {"django.db.alias": alias, "django.transaction.outcome": outcome}
            made = runtime.store.catalogued("django.db.transaction.duration").series(attributes)
            assert isinstance(made, HistogramSeries)
            found = self.series[alias, outcome] = made
        return found


_state = _State()


class _Transaction:
    """One transaction under way."""

    __slots__ = (
        "connection", "context", "depth", "error", "is_manual", "measures", "span", "started_s", "token", "undone",
    )  # fmt: skip

    def __init__(self, connection: BaseDatabaseWrapper, *, measures: bool, is_manual: bool) -> None:
        self.connection = connection
        self.measures = measures
        self.is_manual = is_manual
        #: Number of atomic blocks that are open in it, its own included.
        self.depth = 0
        #: Restores the context at its end; the context that is current meanwhile.
        self.token: Token[Context] | None = None
        self.context: Context | None = None
        self.span: Span | None = None
        #: The savepoint rolled back to last: atomic() releases it next.
        self.undone: str | None = None
        #: The exception of its block, or of a COMMIT that failed.
        self.error: BaseException | None = None
        self.started_s = perf_counter()

    def start_span(self, outer: Context) -> None:
        """Start the span; that of an atomic block becomes the current one."""
        alias = self.connection.alias
        self.span = runtime.tracer().start_span(f"transaction {alias}", outer, attributes={"django.db.alias": alias})
        if not self.is_manual:
            self.context = with_enclosing(outer, self.span)
            self.token = attach(self.context)

    def finish(self, outcome: str | None, error: BaseException | None = None) -> None:
        """Count the transaction and end its span, once; without `outcome` it has not begun at all."""
        vars(self.connection).pop(_ATTRIBUTE, None)
        try:
            if outcome is not None and self.measures:
                _state.find_series(self.connection.alias, outcome).observe(perf_counter() - self.started_s)
            if self.span is not None:
                self._end_span(self.span, outcome, error)
        except Exception as fault:
            guard.report(_PLACE, fault)

    def _end_span(self, span: Span, outcome: str | None, error: BaseException | None) -> None:
        # Not where a generator with the block in it is resumed elsewhere: what is current there is not ours.
        if self.token is not None and get_current() is self.context:
            detach(self.token)
        if outcome is not None:
            span.set_attribute("django.transaction.outcome", outcome)
        if error is not None:
            mark_failed(span, error)
        span.end()


def _current_of(connection: BaseDatabaseWrapper) -> _Transaction | None:
    found: _Transaction | None = vars(connection).get(_ATTRIBUTE)
    return found


def _begin(connection: BaseDatabaseWrapper, *, is_manual: bool) -> _Transaction | None:
    settings = _state.settings
    outer = get_current()
    if settings is None or is_suppressed(outer):
        return None
    left = _current_of(connection)
    if left is not None:
        # Its end was not seen: telemetry was off meanwhile, or it was sent as SQL.
        left.finish(ROLLED_BACK)
    made = _Transaction(connection, measures=settings.measures, is_manual=is_manual)
    vars(connection)[_ATTRIBUTE] = made
    if settings.makes_spans and (is_recorded(outer) or (settings.makes_roots and current() is None)):
        made.start_span(outer)
    return made


# --- Atomic blocks. ---

_plain_enter, _plain_exit = Atomic.__enter__, Atomic.__exit__


def _begin_block(block: Atomic) -> _Transaction | None:
    """Start the transaction that `block` opens; None where it opens none."""
    connection = get_connection(block.using)
    if connection.in_atomic_block:
        blocks = connection.atomic_blocks
        if not (blocks and getattr(blocks[-1], "_from_testcase", False)):
            return None
    elif not (connection.settings_dict["AUTOCOMMIT"] if connection.connection is None else connection.autocommit):
        # The project commits itself: a savepoint of its transaction.
        return None
    return _begin(connection, is_manual=False)


def _enter(self: Atomic) -> None:
    begun = None
    if not getattr(self, "_from_testcase", False):
        try:
            begun = _begin_block(self)
        except Exception as fault:
            guard.report(_PLACE, fault)
    try:
        _plain_enter(self)
    except BaseException as error:
        if begun is not None:
            begun.finish(None, error)
        raise
    if begun is not None:
        begun.depth = len(begun.connection.atomic_blocks)


def _find_block(block: Atomic) -> _Transaction | None:
    """Return the transaction that ends with `block`, the innermost one."""
    connection = get_connection(block.using)
    found = _current_of(connection)
    return found if found is not None and found.depth == len(connection.atomic_blocks) else None


def _exit(
    self: Atomic,
    exc_type: type[BaseException] | None,
    exc_value: BaseException | None,
    traceback: TracebackType | None,
) -> None:
    found = None
    if not getattr(self, "_from_testcase", False):
        try:
            found = _find_block(self)
        except Exception as fault:
            guard.report(_PLACE, fault)
    if found is None or found.is_manual:
        return _plain_exit(self, exc_type, exc_value, traceback)
    connection = found.connection
    # For a block of a test, whose end is that of a savepoint; otherwise `_commit` and `_rollback` know.
    outcome = ROLLED_BACK if exc_type or connection.needs_rollback or connection.closed_in_transaction else COMMITTED
    found.error = exc_value
    try:
        _plain_exit(self, exc_type, exc_value, traceback)
    except BaseException as error:
        if _current_of(connection) is found:
            found.finish(ROLLED_BACK, error)
        raise
    if _current_of(connection) is found:
        found.finish(outcome, exc_value)
    return None


# --- The ends, and autocommit. ---

_plain_commit, _plain_rollback = BaseDatabaseWrapper.commit, BaseDatabaseWrapper.rollback
_plain_set_autocommit, _plain_close = BaseDatabaseWrapper.set_autocommit, BaseDatabaseWrapper.close


def _run_measured(
    connection: BaseDatabaseWrapper, operation: str, plain: Callable[..., object], *args: object, **kwargs: object
) -> object:
    settings = _state.settings
    call = driver_calls.begin(connection, operation, has_span=settings is not None and settings.makes_spans)
    return driver_calls.run(call, plain, connection, *args, **kwargs)


@functools.wraps(_plain_commit)
def _commit(self: BaseDatabaseWrapper, *args: object, **kwargs: object) -> object:
    if self.in_atomic_block or self.connection is None:
        return _plain_commit(self, *args, **kwargs)
    found = _current_of(self)
    was_aborted = is_aborted(self)
    try:
        result = _run_measured(self, "COMMIT", _plain_commit, *args, **kwargs)
    except BaseException as error:
        if found is not None and found.is_manual and not is_open(self):
            found.finish(ROLLED_BACK, error)
        elif found is not None:
            # A rollback comes next.
            found.error = error
        raise
    if found is not None:
        found.finish(ROLLED_BACK if was_aborted else COMMITTED)
    return result


@functools.wraps(_plain_rollback)
def _rollback(self: BaseDatabaseWrapper, *args: object, **kwargs: object) -> object:
    if self.in_atomic_block or self.connection is None:
        return _plain_rollback(self, *args, **kwargs)
    result = _run_measured(self, "ROLLBACK", _plain_rollback, *args, **kwargs)
    found = _current_of(self)
    if found is not None:
        found.finish(ROLLED_BACK, found.error)
    return result


@functools.wraps(_plain_close)
def _close(self: BaseDatabaseWrapper, *args: object, **kwargs: object) -> object:
    try:
        return _plain_close(self, *args, **kwargs)
    finally:
        found = _current_of(self)
        if found is not None and found.is_manual and self.connection is None:
            found.finish(ROLLED_BACK)


class _FirstQuery:
    """Execute wrapper of a connection without autocommit: starts a transaction at its first query."""

    def __call__(
        self, execute: Callable[..., object], sql: object, params: object, many: bool, context: dict[str, object]
    ) -> object:
        try:
            connection = context["connection"]
            assert isinstance(connection, BaseDatabaseWrapper)
            if not connection.autocommit and _current_of(connection) is None:
                _begin(connection, is_manual=True)
        except Exception as fault:
            guard.report(_PLACE, fault)
        return execute(sql, params, many, context)


_first_query = _FirstQuery()


@functools.wraps(_plain_set_autocommit)
def _set_autocommit(
    self: BaseDatabaseWrapper, autocommit: bool, force_begin_transaction_with_broken_autocommit: bool = False
) -> object:
    # Only atomic() forces a BEGIN.
    is_manual = not autocommit and not force_begin_transaction_with_broken_autocommit
    result = _plain_set_autocommit(self, autocommit, force_begin_transaction_with_broken_autocommit)
    if is_manual:
        _enter_manual(self)
    elif autocommit:
        _leave_manual(self)
    return result


@guard.guarded(_PLACE, None)
def _enter_manual(connection: BaseDatabaseWrapper) -> None:
    if _first_query not in connection.execute_wrappers:
        connection.execute_wrappers.insert(0, _first_query)


@guard.guarded(_PLACE, None)
def _leave_manual(connection: BaseDatabaseWrapper) -> None:
    if _first_query in connection.execute_wrappers:
        connection.execute_wrappers.remove(_first_query)
        found = _current_of(connection)
        if found is not None and found.is_manual:
            # SQLite and MySQL commit an open transaction when autocommit is switched on; PostgreSQL's drivers refuse.
            found.finish(COMMITTED)


# --- Savepoints, on spans alone. ---

_plain_savepoint_commit, _plain_savepoint_rollback = (
    BaseDatabaseWrapper.savepoint_commit,
    BaseDatabaseWrapper.savepoint_rollback,
)


@guard.guarded(_PLACE, None)
def _note_savepoint(connection: BaseDatabaseWrapper, sid: str | None, outcome: str) -> None:
    found = _current_of(connection)
    if found is None or found.span is None or sid is None:
        return
    if outcome == ROLLED_BACK:
        found.undone = sid
    elif found.undone == sid:
        found.undone = None
        return
    found.span.add_event("django.savepoint", {"django.savepoint.outcome": outcome}, time_ns())


@functools.wraps(_plain_savepoint_commit)
def _savepoint_commit(self: BaseDatabaseWrapper, sid: str, *args: object, **kwargs: object) -> object:
    result = _plain_savepoint_commit(self, sid, *args, **kwargs)
    _note_savepoint(self, sid, "released")
    return result


@functools.wraps(_plain_savepoint_rollback)
def _savepoint_rollback(self: BaseDatabaseWrapper, sid: str, *args: object, **kwargs: object) -> object:
    result = _plain_savepoint_rollback(self, sid, *args, **kwargs)
    _note_savepoint(self, sid, ROLLED_BACK)
    return result


# --- What PostgreSQL says of a transaction. ---


def _postgresql_status(connection: BaseDatabaseWrapper) -> int | None:
    if connection.vendor != "postgresql" or connection.connection is None:
        return None
    return int(connection.connection.info.transaction_status)


@guard.guarded("the status of a transaction", False)
def is_aborted(connection: BaseDatabaseWrapper) -> bool:
    """Return whether PostgreSQL has given the transaction up: it answers COMMIT with ROLLBACK, and no driver raises."""
    return _postgresql_status(connection) == _PG_INERROR


@guard.guarded("the status of a transaction", True)
def is_open(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a transaction is open after COMMIT failed. If in doubt yes: a rollback or a close follows."""
    if connection.connection is None:
        return False
    if connection.vendor == "sqlite":
        return bool(connection.connection.in_transaction)
    return _postgresql_status(connection) not in (_PG_IDLE, _PG_UNKNOWN)


# --- On and off. ---

_PATCHES = (
    (Atomic, "__enter__", _plain_enter, _enter),
    (Atomic, "__exit__", _plain_exit, _exit),
    (BaseDatabaseWrapper, "commit", _plain_commit, _commit),
    (BaseDatabaseWrapper, "rollback", _plain_rollback, _rollback),
    (BaseDatabaseWrapper, "set_autocommit", _plain_set_autocommit, _set_autocommit),
    (BaseDatabaseWrapper, "close", _plain_close, _close),
)
_SPAN_PATCHES = (
    (BaseDatabaseWrapper, "savepoint_commit", _plain_savepoint_commit, _savepoint_commit),
    (BaseDatabaseWrapper, "savepoint_rollback", _plain_savepoint_rollback, _savepoint_rollback),
)


def _put(patches: tuple[tuple[type, str, object, object], ...], *, is_on: bool) -> None:
    for owner, name, plain, ours in patches:
        expected, wanted = (plain, ours) if is_on else (ours, plain)
        if getattr(owner, name) is expected:
            setattr(owner, name, wanted)


def install(config: Config) -> None:
    """Follow the settings: observe, or leave everything as Django made it. May be called again and again."""
    wanted = config.database
    if not (config.enabled and (wanted.metrics or wanted.transactions)):
        uninstall()
        return
    # A change of buckets has made the old series invalid.
    _state.series = {}
    _state.settings = _Settings(wanted.metrics, wanted.transactions, wanted.root_spans)
    _put(_PATCHES, is_on=True)
    _put(_SPAN_PATCHES, is_on=wanted.transactions)
    for connection in connections.all(initialized_only=True):
        if connection.connection is not None and not connection.autocommit and not connection.in_atomic_block:
            _enter_manual(connection)


def uninstall() -> None:
    """Take everything back; a transaction under way is finished as it would have been."""
    _state.settings = None
    _put(_PATCHES, is_on=False)
    _put(_SPAN_PATCHES, is_on=False)
    for connection in connections.all(initialized_only=True):
        if _first_query in connection.execute_wrappers:
            connection.execute_wrappers.remove(_first_query)
