"""COPY of PostgreSQL's drivers and fetches of server-side cursors, which bypass execute wrappers.

On with `DATABASE.METRICS` or `DATABASE.SPANS`. A COPY by `cursor.copy` (psycopg 3), `copy_expert`, `copy_from` or
`copy_to` (psycopg2) is a query: a span `COPY {table}` from its beginning to the end of its data, with the time that
the project's code takes to produce or read them; in the time budget of a request that part is the project's, as far as
the driver lets it be seen (psycopg 3). So is `cursor.stream` (psycopg 3), by its own operation. Each fetch
of a server-side cursor (`QuerySet.iterator()`, `for row in cursor` of `connection.chunked_cursor()`) is counted as a
FETCH; it has a span only when it is slow. Costs other cursors nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.backends.utils import CursorWrapper

from django_otel.base import guard
from django_otel.config.schema import Config
from django_otel.instrumentation import driver_calls
from django_otel.requests import record

_PLACE = "the database layer"
#: Methods of psycopg 3's `Copy` that send or wait for data; its iterators go by them.
_STEPS = ("read", "read_row", "write", "write_row")


class _Copy:
    """The context manager of psycopg 3's `cursor.copy`, measured."""

    def __init__(self, cursor: CursorWrapper, inner: Any, statement: object) -> None:
        self._cursor = cursor
        self._inner = inner
        self._statement = statement
        self._call: driver_calls.DriverCall | None = None
        self._copy: object = None

    def __enter__(self) -> object:
        self._call = _begin(self._cursor, self._statement)
        try:
            copy: object = self._inner.__enter__()
        except BaseException as error:
            self._finish(error)
            raise
        if self._call is not None and self._call.is_in_budget:
            self._time_steps(copy, self._call)
        return copy

    @guard.guarded(_PLACE, None)
    def _time_steps(self, copy: object, call: driver_calls.DriverCall) -> None:
        """Have the project's code between the steps of a COPY be no time of the database."""
        steps = {name: call.step(getattr(copy, name)) for name in _STEPS if callable(getattr(copy, name, None))}
        vars(copy).update(steps)
        self._copy = copy
        call.pause()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> object:
        if self._copy is not None and self._call is not None:
            for name in _STEPS:
                vars(self._copy).pop(name, None)
            self._call.resume()
        try:
            is_swallowed = self._inner.__exit__(exc_type, exc, traceback)
        except BaseException as error:
            self._finish(error)
            raise
        self._finish(None if is_swallowed else exc)
        return is_swallowed

    def _finish(self, error: BaseException | None) -> None:
        if self._call is not None:
            self._call.finish(error)


def _begin(cursor: CursorWrapper, statement: object) -> driver_calls.DriverCall | None:
    call = driver_calls.begin(cursor.db, statement, has_span=True)
    request = record.current() if call is not None else None
    if request is not None:
        request.queries += 1
    return call


def _copy(cursor: CursorWrapper, method: Callable[..., object], *args: object, **kwargs: object) -> object:
    statement = args[0] if args else kwargs.get("statement")
    return _Copy(cursor, method(*args, **kwargs), statement)


def _copy_at_once(
    cursor: CursorWrapper, method: Callable[..., object], statement: object, *args: object, **kwargs: object
) -> object:
    return driver_calls.run(_begin(cursor, statement), method, *args, **kwargs)


def _stream(cursor: CursorWrapper, method: Callable[..., Any], *args: object, **kwargs: object) -> Iterator[object]:
    """Psycopg 3's `cursor.stream`, a query whose rows come one after the other: from its first row to its end."""
    call = _begin(cursor, args[0] if args else kwargs.get("query"))
    rows, error = 0, None
    try:
        for row in method(*args, **kwargs):
            rows += 1
            if call is None:
                yield row
            else:
                call.pause()
                yield row
                call.resume()
    except GeneratorExit:
        # The project wants no more of them.
        raise
    except BaseException as raised:
        error = raised
        raise
    finally:
        if call is not None:
            call.finish(error, rows)
        # The exception's traceback holds this frame.
        error = None


def _copy_expert(cursor: CursorWrapper, method: Callable[..., object], *args: object, **kwargs: object) -> object:
    return _copy_at_once(cursor, method, args[0] if args else kwargs.get("sql"), *args, **kwargs)


def _copy_from(cursor: CursorWrapper, method: Callable[..., object], *args: object, **kwargs: object) -> object:
    table = args[1] if len(args) > 1 else kwargs.get("table")
    return _copy_at_once(cursor, method, f'COPY "{table}" FROM STDIN', *args, **kwargs)


def _copy_to(cursor: CursorWrapper, method: Callable[..., object], *args: object, **kwargs: object) -> object:
    table = args[1] if len(args) > 1 else kwargs.get("table")
    return _copy_at_once(cursor, method, f'COPY "{table}" TO STDOUT', *args, **kwargs)


class _Method:
    """Attribute of `CursorWrapper`: the driver's method, measured; there is none where the driver has none."""

    def __init__(self, name: str, measured: Callable[..., object]) -> None:
        self._name = name
        self._measured = measured

    def __get__(self, cursor: CursorWrapper | None, owner: type) -> Callable[..., object]:
        if cursor is None:
            raise AttributeError(self._name)
        method = getattr(cursor.cursor, self._name)
        return functools.partial(self._measured, cursor, method)


_METHODS = {
    name: _Method(name, measured)
    for name, measured in (
        ("copy", _copy),
        ("copy_expert", _copy_expert),
        ("copy_from", _copy_from),
        ("copy_to", _copy_to),
        ("stream", _stream),
    )
}


# --- Server-side cursors. ---


def _measured_fetch(cursor: CursorWrapper, fetch: Callable[..., object]) -> Callable[..., object]:
    def call(*args: object, **kwargs: object) -> object:
        measured = driver_calls.begin(cursor.db, "FETCH")
        if measured is None:
            return fetch(*args, **kwargs)
        try:
            found = fetch(*args, **kwargs)
        except BaseException as error:
            measured.finish(error)
            raise
        measured.finish(rows=len(found) if isinstance(found, list) else int(found is not None))
        return found

    return call


def _iterate(cursor: CursorWrapper) -> Iterator[Any]:
    """`CursorWrapper.__iter__` of a server-side cursor: measured fetches, of as many rows as the driver takes."""
    size: int = cursor.cursor.itersize
    while True:
        rows = cursor.fetchmany(size)
        yield from rows
        if len(rows) < size:
            return


class _Chunked:
    """`chunked_cursor` of one kind of connection, as it was and measured."""

    def __init__(self, owner: type[BaseDatabaseWrapper], plain: Callable[..., CursorWrapper]) -> None:
        @functools.wraps(plain)
        def chunked_cursor(connection: BaseDatabaseWrapper, *args: object, **kwargs: object) -> CursorWrapper:
            cursor = plain(connection, *args, **kwargs)
            with guard.contained(_PLACE):
                # By its name the server knows it; without one it has all rows already.
                if getattr(cursor.cursor, "name", None):
                    for name in ("fetchone", "fetchmany", "fetchall"):
                        vars(cursor)[name] = _measured_fetch(cursor, getattr(cursor, name))
                    # Python looks this method up in the class alone.
                    cursor.__class__ = _state.find_iterated(type(cursor))
            return cursor

        self.owner = owner
        self.plain = plain
        self.measured = chunked_cursor


class _State:
    """State that changes with the settings."""

    def __init__(self) -> None:
        #: By the class that has the method.
        self.chunked: dict[type, _Chunked] = {}
        #: Of a class of cursors, the same with `_iterate`.
        self.iterated: dict[type, type] = {}

    def find_iterated(self, kind: type) -> type:
        """Return `kind` with an iteration that is measured."""
        found = self.iterated.get(kind)
        if found is None:
            found = type(kind.__name__, (kind,), {"__iter__": _iterate, "__module__": kind.__module__})
            self.iterated[kind] = found
        return found


_state = _State()


@guard.guarded(_PLACE, None)
def _measure_chunks(connection: BaseDatabaseWrapper) -> None:
    if connection.vendor != "postgresql":
        return
    for owner in type(connection).__mro__:
        plain = vars(owner).get("chunked_cursor")
        if plain is not None:
            if owner is not BaseDatabaseWrapper and owner not in _state.chunked:
                found = _state.chunked[owner] = _Chunked(owner, plain)
                setattr(owner, "chunked_cursor", found.measured)  # noqa: B010 (the type checker sees a method here)
            return


def _on_connection_created(connection: BaseDatabaseWrapper, **_: object) -> None:
    _measure_chunks(connection)


# --- On and off. ---


def install(config: Config) -> None:
    """Follow the settings: measure, or leave everything as Django made it. May be called again and again."""
    if not (config.enabled and (config.database.metrics or config.database.spans)):
        uninstall()
        return
    for name, method in _METHODS.items():
        if name not in vars(CursorWrapper):
            setattr(CursorWrapper, name, method)
    connection_created.connect(_on_connection_created, dispatch_uid=__name__)
    for connection in connections.all(initialized_only=True):
        if connection.connection is not None:
            _measure_chunks(connection)


def uninstall() -> None:
    """Take everything back."""
    for name, method in _METHODS.items():
        if vars(CursorWrapper).get(name) is method:
            delattr(CursorWrapper, name)
    connection_created.disconnect(dispatch_uid=__name__)
    for owner, found in list(_state.chunked.items()):
        if vars(owner).get("chunked_cursor") is found.measured:
            setattr(owner, "chunked_cursor", found.plain)  # noqa: B010 (the type checker sees a method here)
        del _state.chunked[owner]
