"""Django's caches, whatever their backend: operations counted and timed, and their part of the request's time budget.

Keys and values are never read. An operation that a backend makes of others
(`incr` of `get` and `set`) counts once, as what was asked for; `get_or_set`
counts as the `get` and the `add` it is made of, which know hit from miss, and
not as the second `get` by which Django reads what it has just added.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from contextvars import ContextVar
from time import perf_counter
from typing import Any

from django.core.cache import CacheHandler, caches
from django.core.cache.backends.base import BaseCache
from opentelemetry.context import get_value

from django_otel import runtime
from django_otel.base import guard
from django_otel.base.sdk_compat import SUPPRESS_INSTRUMENTATION_KEY
from django_otel.config.schema import Config
from django_otel.metrics.series import HistogramSeries, Series
from django_otel.requests import layers, record

_METHODS = ("add", "set", "touch", "delete", "incr", "decr", "set_many", "delete_many", "clear")
_MARK = "_django_otel_measured"
_MISSING = object()
#: django-redis: whether it swallows the errors of its server (IGNORE_EXCEPTIONS).
_SWALLOWS = "_ignore_exceptions"
#: Not a thread's own variable: greenlets share a thread.
_is_inside: ContextVar[bool] = ContextVar("django_otel_in_cache", default=False)

#: What the `get_or_set` in progress has found out; an object, because async backends run each step in a copy.
_refill: ContextVar[_Refill | None] = ContextVar("django_otel_get_or_set", default=None)
#: Set by a backend that swallows an error of its server, for the operation in progress.
_swallowed: ContextVar[list[bool] | None] = ContextVar("django_otel_cache_swallowed", default=None)

_plain_create_connection = CacheHandler.create_connection
#: By alias, operation and outcome; and by alias and operation.
_operations: dict[tuple[str, str, str], Series] = {}
_durations: dict[tuple[str, str], HistogramSeries] = {}


class _State:
    """What changes with the settings."""

    def __init__(self) -> None:
        #: Whether operations are counted.
        self.counts = False
        #: Whether their time is part of a request's time budget.
        self.times_requests = False


_state = _State()


class _Refill:
    """One `get_or_set`: of which key, and whether its first `get` has begun."""

    __slots__ = ("cache", "has_looked", "key")

    def __init__(self, cache: object, key: object) -> None:
        self.cache = cache
        self.key = key
        self.has_looked = False


class _NoticedTruth:
    """In place of django-redis's `_ignore_exceptions`, which is looked at when an error is about to be swallowed."""

    __slots__ = ()

    def __bool__(self) -> bool:
        swallowed = _swallowed.get()
        if swallowed is not None:
            swallowed.append(True)
        return True


@guard.guarded("measuring a cache operation", None)
def _note(alias: str, operation: str, took_s: float, outcomes: tuple[tuple[str, int], ...]) -> None:
    if not _state.counts or get_value(SUPPRESS_INSTRUMENTATION_KEY):
        return
    duration = _durations.get((alias, operation))
    if duration is None:
        attributes = {"django.cache.alias": alias, "django.cache.operation": operation}
        made: Any = runtime.store.catalogued("django.cache.operation.duration")
        duration = _durations[alias, operation] = made.series(attributes)
    duration.observe(took_s)
    for outcome, number in outcomes:
        if not number:
            continue
        series = _operations.get((alias, operation, outcome))
        if series is None:
            attributes = {
                "django.cache.alias": alias, "django.cache.operation": operation, "django.cache.outcome": outcome,
            }  # fmt: skip
            series = runtime.store.catalogued("django.cache.operations").series(attributes)
            _operations[alias, operation, outcome] = series
        series.add(float(number))


def _measure(alias: str, operation: str, call: Callable[[], object], outcomes: Callable[[Any], Any]) -> Any:
    """Run one operation that is not part of another one; `outcomes(result)` gives pairs of outcome and number."""
    token = _is_inside.set(True)
    swallowed: list[bool] = []
    swallowed_token = _swallowed.set(swallowed)
    found: tuple[tuple[str, int], ...] = (("error", 1),)
    started_s = perf_counter()
    opened = layers.enter(record.current(), layers.CACHE, started_s) if _state.times_requests else None
    try:
        result = call()
        if not swallowed:
            found = outcomes(result)
    except ValueError:
        if operation in ("incr", "decr"):
            # How Django says that there is no such key.
            found = (("miss", 1),)
        raise
    finally:
        took_s = layers.leave(opened, layers.CACHE) - started_s
        _is_inside.reset(token)
        _swallowed.reset(swallowed_token)
        _note(alias, operation, took_s, found)
    return result


def _ok(result: object) -> tuple[tuple[str, int], ...]:
    return (("ok", 1),)


def _has(result: object) -> tuple[tuple[str, int], ...]:
    return (("hit" if result else "miss", 1),)


def _got(result: object) -> tuple[tuple[str, int], ...]:
    return (("miss" if result is _MISSING else "hit", 1),)


def _measured(method: Callable[..., Any], alias: str, operation: str) -> Callable[..., Any]:
    outcomes = _has if operation == "has_key" else _ok

    def call(*args: object, **kwargs: object) -> Any:
        if _is_inside.get():
            return method(*args, **kwargs)
        return _measure(alias, operation, lambda: method(*args, **kwargs), outcomes)

    return call


def _measured_get(method: Callable[..., Any], alias: str) -> Callable[..., Any]:
    cache = getattr(method, "__self__", None)

    def get(key: object, default: object = None, *args: object, **kwargs: object) -> Any:
        if _is_inside.get():
            return method(key, default, *args, **kwargs)
        refill = _refill.get()
        if refill is not None and refill.cache is cache and refill.key == key:
            if refill.has_looked:
                return method(key, default, *args, **kwargs)
            refill.has_looked = True
        # None may be what is stored, and the default as well: a value of our own marks a miss.
        found = _measure(alias, "get", lambda: method(key, _MISSING, *args, **kwargs), _got)
        return default if found is _MISSING else found

    return get


def _measured_get_or_set(method: Callable[..., Any]) -> Callable[..., Any]:
    cache = getattr(method, "__self__", None)

    def get_or_set(key: object, *args: object, **kwargs: object) -> Any:
        token = _refill.set(_Refill(cache, key))
        try:
            return method(key, *args, **kwargs)
        finally:
            _refill.reset(token)

    return get_or_set


def _measured_aget_or_set(method: Callable[..., Any]) -> Callable[..., Any]:
    cache = getattr(method, "__self__", None)

    async def aget_or_set(key: Any, *args: Any, **kwargs: Any) -> Any:
        token = _refill.set(_Refill(cache, key))
        try:
            return await method(key, *args, **kwargs)
        finally:
            _refill.reset(token)

    return aget_or_set


def _measured_get_many(method: Callable[..., Any], alias: str) -> Callable[..., Any]:
    def get_many(keys: Any, *args: object, **kwargs: object) -> Any:
        if _is_inside.get():
            return method(keys, *args, **kwargs)
        asked = keys if isinstance(keys, list | tuple | set | frozenset) else list(keys)

        def outcomes(found: Any) -> tuple[tuple[str, int], ...]:
            hits = len(found) if isinstance(found, Sized) else 0
            return ("hit", hits), ("miss", max(0, len(set(asked)) - hits))

        return _measure(alias, "get_many", lambda: method(asked, *args, **kwargs), outcomes)

    return get_many


def _create_connection(self: CacheHandler, alias: str) -> Any:
    cache = _plain_create_connection(self, alias)
    with guard.contained("measuring a cache"):
        _measure_cache(cache, alias)
    return cache


def _measure_cache(cache: BaseCache, alias: str) -> None:
    if _MARK in vars(cache):
        return
    for name in (*_METHODS, "has_key", "get", "get_many"):
        method = getattr(cache, name)
        if name == "get":
            call = _measured_get(method, alias)
        elif name == "get_many":
            call = _measured_get_many(method, alias)
        else:
            call = _measured(method, alias, name)
        setattr(cache, name, _Bound(method, call))
    refills: Any = cache
    refills.get_or_set = _measured_get_or_set(cache.get_or_set)
    refills.aget_or_set = _measured_aget_or_set(cache.aget_or_set)
    if vars(cache).get(_SWALLOWS):
        setattr(cache, _SWALLOWS, _NoticedTruth())
    setattr(cache, _MARK, True)


class _Bound:
    """A bound method that calls another function instead; its attributes are those of the method.

    Django 6.1 goes by `__func__` to see whether a backend has an operation of its own. A function with such an
    attribute will not do: what wraps it (asgiref) takes the attribute over, and then marks the backend's method.
    """

    __slots__ = ("__func__", "__name__", "__self__", "__wrapped__", "_call")

    def __init__(self, method: Any, call: Callable[..., Any]) -> None:
        self.__wrapped__ = method
        self.__func__ = getattr(method, "__func__", method)
        self.__self__ = getattr(method, "__self__", None)
        self.__name__ = getattr(method, "__name__", "")
        self._call = call

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return self._call(*args, **kwargs)


def _leave_cache(cache: BaseCache) -> None:
    if vars(cache).pop(_MARK, None):
        for name in (*_METHODS, "has_key", "get", "get_many", "get_or_set", "aget_or_set"):
            vars(cache).pop(name, None)
        if isinstance(vars(cache).get(_SWALLOWS), _NoticedTruth):
            setattr(cache, _SWALLOWS, True)


def install(config: Config) -> None:
    """Follow the settings: measure, or leave everything as Django made it. May be called again and again."""
    _state.counts = config.enabled and config.cache.metrics
    _operations.clear()
    _durations.clear()
    _state.times_requests = layers.is_wanted(config)
    # Off, their time is that of the layer around them.
    if not (_state.counts or (config.enabled and config.request.server_timing)):
        uninstall()
        return
    if CacheHandler.create_connection is _plain_create_connection:
        CacheHandler.create_connection = _create_connection  # type: ignore[method-assign]
    # Those that this thread has opened already; they do not say by which alias.
    opened = [cache for cache in caches.all(initialized_only=True) if _MARK not in vars(cache)]
    if opened:
        for alias in caches:
            with guard.contained("measuring a cache"):
                if caches[alias] in opened:
                    _measure_cache(caches[alias], alias)


def uninstall() -> None:
    """Take everything back."""
    _state.counts = _state.times_requests = False
    if CacheHandler.create_connection is _create_connection:
        CacheHandler.create_connection = _plain_create_connection  # type: ignore[method-assign]
        for cache in caches.all(initialized_only=True):
            _leave_cache(cache)
