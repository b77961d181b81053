"""The shop's own numbers; they stand on /metrics beside those of `django_otel`."""

from __future__ import annotations

import os
import weakref
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

import django_otel

#: On the page as `orders_total`.
orders_total = django_otel.counter("orders.total", unit="{order}", description="Orders processed, by outcome.")
order_value = django_otel.histogram("shop.order.value", unit="{EUR}", description="What a paid order is worth.")
open_connections = django_otel.up_down_counter(
    "shop.db.open_connections", unit="{connection}", description="Database connections this service holds open."
)

_RELEASE = "_shop_release"


def count_connection(connection: BaseDatabaseWrapper, **_: Any) -> None:
    """Count one more open connection, and one less when it is closed (receiver of `connection_created`).

    Django says when a connection opens but not when it closes, so the
    wrapper's `close` is extended. A connection that disappears with its thread
    is never closed explicitly; the finalizer counts that one.
    """
    release = getattr(connection, _RELEASE, None)
    if release is None:
        connection.close = _closing(connection)
    else:
        # Connected again without a close: the earlier connection is gone.
        release()
    attributes = {"django.db.alias": connection.alias}
    open_connections.add(1, attributes)
    setattr(connection, _RELEASE, weakref.finalize(connection, _count_closed, attributes, os.getpid()))


def _closing(connection: BaseDatabaseWrapper) -> Any:
    close = connection.close

    def close_and_count() -> None:
        try:
            close()
        finally:
            # Inside a transaction Django closes the connection but keeps the object until the transaction ends;
            # a SQLite database in memory refuses to close.
            if connection.connection is None or connection.closed_in_transaction:
                # A finalizer runs at most once, however often close() is called.
                getattr(connection, _RELEASE)()

    return close_and_count


def _count_closed(attributes: dict[str, str], opened_by_pid: int) -> None:
    # A forked child starts at zero and holds only copies of its parent's connections.
    if os.getpid() == opened_by_pid:
        open_connections.add(-1, attributes)
