"""Size and use of psycopg's connection pools, which Django creates if a database's options request one.

On with `DATABASE.METRICS`. Metrics `django.db.pool.connections` (idle, used) and `django.db.pool.waiting`, the sum
over the living processes of the server: each has a pool of its own. They are brought up to date whenever a
connection is taken from the pool or given back, and when the pool grows or shrinks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol, cast

from django.db.backends.base.base import BaseDatabaseWrapper

from django_otel import runtime
from django_otel.base import guard
from django_otel.metrics.series import GaugeSeries

_MARK = "_django_otel_watched"
_PLACE = "observing a connection pool"
#: Methods of a pool after which it may have another number of connections; two run in the pool's own threads, and
#: a version of psycopg_pool without them is brought up to date by the next request alone.
_CHANGES = ("close", "_add_to_pool", "_shrink_pool")


class _Pool(Protocol):
    """`psycopg_pool.ConnectionPool`, as far as it is observed."""

    getconn: Callable[..., object]
    putconn: Callable[..., object]

    def get_stats(self) -> dict[str, int]: ...


def _find_gauge(name: str, attributes: dict[str, object]) -> GaugeSeries:
    found = runtime.store.catalogued(name).series(attributes)
    assert isinstance(found, GaugeSeries)
    return found


class _Watch:
    """Observer of one pool. What was there before it is not counted: a pool is observed from its making."""

    def __init__(self, pool: _Pool, alias: str) -> None:
        self._alias = alias
        self._pool = pool
        # So that of two threads the one that has read later writes later.
        self._lock = threading.Lock()
        self._asking = 0
        self._used = 0
        self._is_closed = False
        pool.getconn = self._wrap_getconn(pool.getconn)
        pool.putconn = self._wrap_putconn(pool.putconn)
        for name in _CHANGES:
            if hasattr(pool, name):
                setattr(pool, name, self._wrap(getattr(pool, name), is_end=name == "close"))

    def _wrap_getconn(self, method: Callable[..., object]) -> Callable[..., object]:
        def getconn(*args: object, **kwargs: object) -> object:
            self.note(asking=1)
            taken = 0
            try:
                connection = method(*args, **kwargs)
                taken = 1
                return connection
            finally:
                self.note(asking=-1, used=taken)

        return getconn

    def _wrap_putconn(self, method: Callable[..., object]) -> Callable[..., object]:
        def putconn(*args: object, **kwargs: object) -> object:
            result = method(*args, **kwargs)
            self.note(used=-1)
            return result

        return putconn

    def _wrap(self, method: Callable[..., object], *, is_end: bool) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            try:
                return method(*args, **kwargs)
            finally:
                self._is_closed = self._is_closed or is_end
                self.note()

        return call

    @guard.guarded(_PLACE, None)
    def note(self, *, asking: int = 0, used: int = 0) -> None:
        """Bring the gauges up to date, with so many more that ask for a connection or use one."""
        alias = self._alias
        idle_series = _find_gauge("django.db.pool.connections", {"django.db.alias": alias, "state": "idle"})
        used_series = _find_gauge("django.db.pool.connections", {"django.db.alias": alias, "state": "used"})
        waiting = _find_gauge("django.db.pool.waiting", {"django.db.alias": alias})
        with self._lock:
            self._asking += asking
            self._used += used
            ready = 0 if self._is_closed else self._pool.get_stats().get("pool_available", 0)
            idle_series.set(float(ready))
            used_series.set(float(max(0, self._used)))
            waiting.set(float(max(0, self._asking - ready)))


@guard.guarded(_PLACE, None)
def watch(connection: BaseDatabaseWrapper) -> None:
    """Observe the pool that `connection` is about to be taken from."""
    pool = cast("_Pool | None", getattr(connection, "pool", None))
    mark = object()
    # Of two threads that come at once one does it.
    if pool is not None and vars(pool).setdefault(_MARK, mark) is mark:
        _Watch(pool, connection.alias)
