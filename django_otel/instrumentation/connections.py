"""Database connections that could not be opened, counted by alias and class of the error.

On with `DATABASE.METRICS`. Metric `django.db.connection.errors`; those that were opened are counted by `database`
(`django.db.connections`). Costs nothing while connections stay open. `pools` observes psycopg's pools from here.
"""

from __future__ import annotations

import functools
from time import perf_counter

from django.core.exceptions import ImproperlyConfigured
from django.db import utils
from django.db.backends.base.base import BaseDatabaseWrapper

from django_otel import runtime
from django_otel.base import guard
from django_otel.base.sdk_compat import get_current
from django_otel.config.schema import Config
from django_otel.instrumentation.driver_calls import is_suppressed
from django_otel.requests import layers
from django_otel.requests.record import current
from django_otel.tracing.exceptions import type_name

#: The classes of PEP 249 as Django raises them, the most specific first.
_CLASSES = (
    utils.DataError,
    utils.OperationalError,
    utils.IntegrityError,
    utils.InternalError,
    utils.ProgrammingError,
    utils.NotSupportedError,
    utils.DatabaseError,
    utils.InterfaceError,
    utils.Error,
)
_plain_connect = BaseDatabaseWrapper.connect


def find_class_name(connection: BaseDatabaseWrapper, error: BaseException) -> str:
    """Return the name of the class by which Django raises a driver's error; a pool's own errors keep theirs."""
    driver = getattr(connection, "Database", None)
    if not type(error).__module__.startswith("psycopg_pool"):
        for known in _CLASSES:
            of_driver = getattr(driver, known.__name__, None)
            if isinstance(of_driver, type) and isinstance(error, of_driver):
                return f"{known.__module__}.{known.__qualname__}"
    return type_name(error)


@guard.guarded("counting a failed connection", None)
def _count(connection: BaseDatabaseWrapper, error: BaseException) -> None:
    if isinstance(error, ImproperlyConfigured) or is_suppressed(get_current()):
        # Nothing was tried.
        return
    attributes = {"django.db.alias": connection.alias, "error.type": find_class_name(connection, error)}
    runtime.store.catalogued("django.db.connection.errors").series(attributes).add(1.0)


@functools.wraps(_plain_connect)
def _connect(self: BaseDatabaseWrapper, *args: object, **kwargs: object) -> object:
    if (self.settings_dict.get("OPTIONS") or {}).get("pool"):
        # Late: few projects have a pool.
        from django_otel.instrumentation import pools

        pools.watch(self)
    request = current()
    opened = None
    if request is not None and request.observer.times_layers:
        opened = layers.enter(request, layers.DATABASE, perf_counter())
    try:
        return _plain_connect(self, *args, **kwargs)
    except Exception as error:
        _count(self, error)
        raise
    finally:
        layers.leave(opened, layers.DATABASE)


def install(config: Config) -> None:
    """Follow the settings: count, or leave everything as Django made it. May be called again and again."""
    if not (config.enabled and config.database.metrics):
        uninstall()
    elif BaseDatabaseWrapper.connect is _plain_connect:
        BaseDatabaseWrapper.connect = _connect  # type: ignore[assignment, method-assign]


def uninstall() -> None:
    """Take everything back."""
    if BaseDatabaseWrapper.connect is _connect:
        BaseDatabaseWrapper.connect = _plain_connect  # type: ignore[method-assign]
