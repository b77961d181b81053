"""Outcome of work in a database transaction: committed or rolled back.

`transaction.on_commit` is not enough: a hook registered earlier that raises drops
the later ones though the rows are committed, a rollback to a manual savepoint
keeps them, under manual transaction management it raises, and inside a
`TestCase` nothing is ever committed. So the methods that end a transaction or a
savepoint are wrapped, on one DatabaseWrapper, when the first work is reported
there; other connections and every other method stay as they are.

A `Unit` is the work between two savepoints. Units form a stack; releasing a
savepoint merges its unit into the one below, rolling back to it settles the
units above, the end of the transaction settles all.

Not seen: COMMIT and ROLLBACK sent as raw SQL, or called on the driver's own
connection. What was pending then is settled as rolled back by the next work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from django.db.backends.base.base import BaseDatabaseWrapper

from django_otel.base import guard
from django_otel.instrumentation.transactions import COMMITTED, ROLLED_BACK, is_aborted, is_open

AUTOCOMMIT = "autocommit"

#: How much work may wait for the end of one transaction. Beyond it work is only counted, so that an
#: import of a million rows in one transaction does not hold a million spans.
PENDING_LIMIT = 10_000

_ATTRIBUTE = "_django_otel_transactions"


if TYPE_CHECKING:

    class Pending(Protocol):
        """One piece of work that waits for its outcome."""

        #: Whether `deliver` has anything to do.
        is_delivered: bool

        def settle(self, outcome: str) -> None:
            """Finish our own part. Called at once, also while Django is between two states: no query, no user code."""

        def deliver(self, outcome: str) -> None:
            """Notify the application. Called when the connection can be used again."""


class Unit:
    """The work between two savepoints of a transaction."""

    __slots__ = ("_merged_into", "_outcome", "counts", "pending", "sid")

    def __init__(self, sid: str | None = None) -> None:
        self.sid = sid
        self.pending: list[Pending] = []
        self.counts: dict[str, int] = {}
        self._outcome: str | None = None
        self._merged_into: Unit | None = None

    def find(self) -> Unit:
        """The unit this one is part of now."""
        unit = self
        while unit._merged_into is not None:
            unit = unit._merged_into
        if unit is not self:
            self._merged_into = unit
        return unit

    @property
    def outcome(self) -> str | None:
        """None while it is not known."""
        return self.find()._outcome  # noqa: SLF001 (of the same package)

    def merge(self, above: Unit) -> None:
        """Take over the work of a unit whose savepoint was released."""
        self.pending.extend(above.pending)
        for key, amount in above.counts.items():
            self.counts[key] = self.counts.get(key, 0) + amount
        above._merged_into = self
        above.pending = []
        above.counts = {}

    def settle(self, outcome: str) -> None:
        self._outcome = outcome


class Tracker:
    """Tracker of the transactions of one connection. `count(key, amount)` is called for committed events."""

    def __init__(self, connection: BaseDatabaseWrapper, count: Callable[[str, int], None]) -> None:
        self._connection = connection
        self._count = count
        self._units = [Unit()]
        self._held = 0
        self._undelivered: list[tuple[Pending, str]] = []
        self._is_owned_by_atomic = False

    @property
    def unit(self) -> Unit:
        """Return where work done now belongs."""
        return self._units[-1]

    @property
    def has_room(self) -> bool:
        return self._held < PENDING_LIMIT

    def hold(self, pending: Pending) -> None:
        """Keep `pending` until its outcome is known."""
        self._units[-1].pending.append(pending)
        self._held += 1

    def add(self, key: str, amount: int) -> None:
        """Count `amount` under `key` if this is committed."""
        counts = self._units[-1].counts
        counts[key] = counts.get(key, 0) + amount

    def note_owner(self) -> None:
        """Remember whether an `atomic` block will end this transaction, or the application itself."""
        connection = self._connection
        self._is_owned_by_atomic = connection.in_atomic_block and connection.commit_on_exit

    def abandon(self) -> None:
        """Settle the pending events of a transaction whose end was not seen."""
        if len(self._units) > 1 or self._units[0].pending or self._units[0].counts:
            self._end(ROLLED_BACK)
            self._deliver()

    # --- the ends of a transaction ---

    def _end(self, outcome: str) -> None:
        units, self._units = self._units, [Unit()]
        self._settle(units, outcome)
        self._held = 0

    def _settle(self, units: list[Unit], outcome: str) -> None:
        for unit in units:
            unit.settle(outcome)
            pending, unit.pending = unit.pending, []
            counts, unit.counts = unit.counts, {}
            self._held -= len(pending)
            for item in pending:
                try:
                    item.settle(outcome)
                except Exception as error:
                    guard.report("settling a business event", error)
                if item.is_delivered:
                    self._undelivered.append((item, outcome))
            if outcome != ROLLED_BACK:
                for key, amount in counts.items():
                    try:
                        self._count(key, amount)
                    except Exception as error:
                        guard.report("counting business events", error)

    def _deliver(self) -> None:
        while self._undelivered:
            # Swapped first: a receiver may save, and so come here again.
            items, self._undelivered = self._undelivered, []
            for item, outcome in items:
                try:
                    item.deliver(outcome)
                except Exception as error:
                    guard.report("the signal business_event", error)

    def _deliver_unless_owned(self) -> None:
        # atomic() calls commit() and rollback() while autocommit is still off: a receiver's query would begin
        # a transaction that is never ended. It calls set_autocommit(True) next, where on_commit hooks run as well.
        if not self._is_owned_by_atomic:
            self._deliver()

    @guard.guarded("a database transaction's end", None)
    def after_commit(self, was_aborted: bool) -> None:
        # PostgreSQL answers COMMIT of a failed transaction with ROLLBACK, and no driver raises.
        self._end(ROLLED_BACK if was_aborted else COMMITTED)
        self._deliver_unless_owned()

    @guard.guarded("a database transaction's end", None)
    def after_failed_commit(self) -> None:
        if not is_open(self._connection):
            self._end(ROLLED_BACK)
            self._deliver_unless_owned()

    @guard.guarded("a database transaction's end", None)
    def after_rollback(self) -> None:
        self._end(ROLLED_BACK)
        self._deliver_unless_owned()

    @guard.guarded("a database transaction's end", None)
    def after_close(self) -> None:
        connection = self._connection
        # An in-memory SQLite database ignores close().
        if connection.connection is None or connection.closed_in_transaction:
            self._end(ROLLED_BACK)
            self._deliver()

    @guard.guarded("a database transaction's end", None)
    def after_set_autocommit(self) -> None:
        if self._connection.autocommit:
            # SQLite and MySQL commit an open transaction when autocommit is switched on; PostgreSQL's drivers refuse.
            self._end(COMMITTED)
            self._deliver()

    # --- savepoints ---

    @guard.guarded("a savepoint", None)
    def after_savepoint(self, sid: str | None) -> None:
        if sid is not None:
            self._units.append(Unit(sid))

    @guard.guarded("a savepoint", None)
    def after_savepoint_rollback(self, sid: str | None) -> None:
        if sid is None:
            return
        # A savepoint that is not known was made before the first work here: all of it is younger.
        at = self._index(sid)
        undone, self._units[at:] = self._units[at:], [Unit(sid) if at else Unit()]
        self._settle(undone, ROLLED_BACK)
        self._deliver()

    @guard.guarded("a savepoint", None)
    def after_savepoint_commit(self, sid: str | None) -> None:
        at = self._index(sid) if sid is not None else 0
        if at:
            released, self._units[at:] = self._units[at:], []
            for unit in released:
                self._units[-1].merge(unit)
        if self._connection.in_atomic_block and outcome_now(self._connection) is not None:
            # Only a test case's own atomics are left: what is released here would be committed in production.
            self._end(COMMITTED)
            self._deliver()

    def _index(self, sid: str) -> int:
        for at in range(len(self._units) - 1, 0, -1):
            if self._units[at].sid == sid:
                return at
        return 0


def outcome_now(connection: BaseDatabaseWrapper) -> str | None:
    """Return the outcome of work just done on `connection`, or None if the end of a transaction decides.

    A test case's own atomic blocks do not count as a transaction, since they
    do not exist in production.
    """
    if not connection.in_atomic_block:
        return AUTOCOMMIT if connection.autocommit else None
    blocks = connection.atomic_blocks
    if not blocks or not getattr(blocks[0], "_from_testcase", False):
        return None
    of_testcase = 0
    for block in blocks:
        if not getattr(block, "_from_testcase", False):
            break
        of_testcase += 1
    if of_testcase == len(blocks):
        return AUTOCOMMIT
    # The outermost block has no entry in savepoint_ids. A block without a savepoint (Django's own around a
    # delete) ends without calling the connection, inside a test case: no end would ever be seen.
    if all(sid is None for sid in connection.savepoint_ids[of_testcase - 1 :]):
        return COMMITTED
    return None


def existing_tracker(connection: BaseDatabaseWrapper) -> Tracker | None:
    return connection.__dict__.get(_ATTRIBUTE)


def tracker(connection: BaseDatabaseWrapper, count: Callable[[str, int], None]) -> Tracker:
    """The tracker of `connection`, made and hooked in at the first call."""
    found = connection.__dict__.get(_ATTRIBUTE)
    if found is None:
        found = Tracker(connection, count)
        _hook(connection, found)
        connection.__dict__[_ATTRIBUTE] = found
    found.note_owner()
    return found


def _hook(connection: BaseDatabaseWrapper, tracker: Tracker) -> None:
    originals = {
        name: getattr(connection, name)
        for name in (
            "commit",
            "rollback",
            "close",
            "set_autocommit",
            "savepoint",
            "savepoint_rollback",
            "savepoint_commit",
        )
    }

    def commit(*args: object, **kwargs: object) -> object:
        was_aborted = is_aborted(connection)
        try:
            result = originals["commit"](*args, **kwargs)
        except Exception:
            tracker.after_failed_commit()
            raise
        tracker.after_commit(was_aborted)
        return result

    def rollback(*args: object, **kwargs: object) -> object:
        result = originals["rollback"](*args, **kwargs)
        tracker.after_rollback()
        return result

    def close(*args: object, **kwargs: object) -> object:
        try:
            return originals["close"](*args, **kwargs)
        finally:
            tracker.after_close()

    def set_autocommit(*args: object, **kwargs: object) -> object:
        try:
            # An on_commit hook that raises does so in here.
            return originals["set_autocommit"](*args, **kwargs)
        finally:
            tracker.after_set_autocommit()

    def savepoint(*args: object, **kwargs: object) -> object:
        sid = originals["savepoint"](*args, **kwargs)
        tracker.after_savepoint(sid)
        return sid

    def savepoint_rollback(sid: Any, *args: object, **kwargs: object) -> object:
        result = originals["savepoint_rollback"](sid, *args, **kwargs)
        tracker.after_savepoint_rollback(sid)
        return result

    def savepoint_commit(sid: Any, *args: object, **kwargs: object) -> object:
        result = originals["savepoint_commit"](sid, *args, **kwargs)
        tracker.after_savepoint_commit(sid)
        return result

    for wrapper in (commit, rollback, close, set_autocommit, savepoint, savepoint_rollback, savepoint_commit):
        original = originals[wrapper.__name__]
        setattr(connection, wrapper.__name__, functools.wraps(original)(wrapper))
