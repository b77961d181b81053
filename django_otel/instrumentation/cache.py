"""Django's caches, with any backend: every operation counted and timed, sync and async; spans if enabled.

Metrics with `CACHE.METRICS`, a span `cache {operation}` with `CACHE.SPANS`, around what the backend does for it (the
Redis instrumentor's span, a query). Values are never read, keys only for `CACHE.KEY_GROUP`.

An operation that a backend makes of others (`incr` of `get` and `set`) counts once, as what was asked for, whether it
was asked for by its sync or its async name; `key in cache` is a `has_key`. `get_or_set` counts as the `get` and the
`add` it is made of, which know hit from miss, and not as the second `get` by which Django reads what it has just
added; its span has theirs, and what the callable does, inside. Closing is counted where a backend does something
then. Of django-redis its own operations are measured as well (`keys`, `ttl`, `lock`, `delete_pattern`, sets, hashes).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextvars import ContextVar
from time import perf_counter

from django.core.cache import CacheHandler, caches
from django.core.cache.backends.base import BaseCache

from django_otel.base import guard
from django_otel.base.sdk_compat import get_current
from django_otel.config.packages import import_path
from django_otel.config.schema import Config
from django_otel.instrumentation.cache_operations import CacheOperation, CacheSpan, Measured, group_of, inside, state
from django_otel.instrumentation.driver_calls import is_suppressed
from django_otel.requests import layers, record

_MARK = "_django_otel_measured"
#: django-redis: whether it swallows the errors of its server (IGNORE_EXCEPTIONS).
_SWALLOWS = "_ignore_exceptions"
_GETTING = ("get", "has_key", "get_many")
_PLAIN = (
    "add", "set", "touch", "delete", "incr", "decr", "incr_version", "decr_version", "set_many", "delete_many", "clear",
)  # fmt: skip
#: The operations of Django's own interface.
OPERATIONS = (*_GETTING, *_PLAIN)
#: Further ones of a backend that have to do with its server.
_EXTRA = (
    "keys", "ttl", "pttl", "persist", "expire", "expire_at", "pexpire", "pexpire_at", "lock", "delete_pattern",
    "sadd", "scard", "sdiff", "sdiffstore", "sinter", "sinterstore", "sismember", "smembers", "smove", "spop",
    "srandmember", "srem", "sscan", "smismember", "sunion", "sunionstore",
    "hset", "hget", "hgetall", "hdel", "hlen", "hkeys", "hexists",
    "zadd", "zcard", "zcount", "zincrby", "zpopmax", "zpopmin", "zrange", "zrangebyscore", "zrank", "zrem",
    "zremrangebyscore", "zrevrange", "zrevrangebyscore", "zscore",
)  # fmt: skip
#: Those that give an iterator, which asks the server as it goes.
_ITERATING = ("iter_keys", "sscan_iter")

#: Findings of the `get_or_set` in progress; an object, because async backends run each step in a copy.
_refill: ContextVar[_Refill | None] = ContextVar("django_otel_get_or_set", default=None)

_plain_create_connection = CacheHandler.create_connection


class _Refill:
    """One `get_or_set`: of which key, and whether its first `get` has begun."""

    __slots__ = ("cache", "has_looked", "key")

    def __init__(self, cache: object, key: object) -> None:
        self.cache = cache
        self.key = key
        self.has_looked = False

    def is_second_look(self, cache: object, args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
        """Return whether a `get` is the one by which `get_or_set` reads what it has added."""
        if self.cache is not cache or self.key != (args[0] if args else kwargs.get("key")):
            return False
        if self.has_looked:
            return True
        self.has_looked = True
        return False


class _NoticedTruth:
    """In place of django-redis's `_ignore_exceptions`, which is looked at when an error is about to be swallowed."""

    __slots__ = ()

    def __bool__(self) -> bool:
        operation = inside.get()
        if isinstance(operation, CacheOperation):
            operation.has_swallowed = True
        return True


# --- An operation, sync and async alike. ---


@contextlib.contextmanager
def _unmeasured() -> Iterator[None]:
    """Whatever a backend makes an operation of is not counted either."""
    token = inside.set(True)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            inside.reset(token)


class _Bound:
    """Stand-in for a bound method, whose attributes it has.

    Django 6.1 goes by `__func__` to see whether a backend has an operation of its own. A function with such an
    attribute will not do: what wraps it (asgiref) takes the attribute over, and then marks the backend's method.
    """

    __slots__ = ("__func__", "__name__", "__self__", "__wrapped__")

    def __init__(self, method: Callable[..., object]) -> None:
        self.__wrapped__ = method
        self.__func__ = getattr(method, "__func__", method)
        self.__self__ = getattr(method, "__self__", None)
        self.__name__ = getattr(method, "__name__", "")


class _BoundTo(_Bound):
    """Stand-in that calls another function."""

    __slots__ = ("_call",)

    def __init__(self, method: Callable[..., object], call: Callable[..., object]) -> None:
        super().__init__(method)
        self._call = call

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self._call(*args, **kwargs)


class _Measured(_Bound):
    """Stand-in that measures each call."""

    __slots__ = ("_cache", "_is_get", "_measured")

    def __init__(self, method: Callable[..., object], cache: object, measured: Measured) -> None:
        super().__init__(method)
        self._cache = cache
        self._measured = measured
        self._is_get = measured.name == "get"

    def __call__(self, *args: object, **kwargs: object) -> object:
        method = self.__wrapped__
        if inside.get():
            return method(*args, **kwargs)
        if self._is_get and (refill := _refill.get()) is not None and refill.is_second_look(self._cache, args, kwargs):
            with _unmeasured():
                return method(*args, **kwargs)
        operation = self._measured.begin(args, kwargs)
        try:
            result = method(*operation.args, **operation.kwargs)
        except BaseException as error:
            operation.end(None, error)
            raise
        return operation.end(result)


def _measured_async(
    method: Callable[..., Awaitable[object]], cache: object, measured: Measured
) -> Callable[..., object]:
    is_get = measured.name == "get"

    async def call(*args: object, **kwargs: object) -> object:
        if inside.get():
            return await method(*args, **kwargs)
        if is_get and (refill := _refill.get()) is not None and refill.is_second_look(cache, args, kwargs):
            with _unmeasured():
                return await method(*args, **kwargs)
        operation = measured.begin(args, kwargs)
        try:
            result = await method(*operation.args, **operation.kwargs)
        except BaseException as error:
            operation.end(None, error)
            raise
        return operation.end(result)

    return functools.update_wrapper(call, method)


def _measured_iterator(method: Callable[..., object], measured: Measured) -> Callable[..., object]:
    """Count once, when the iterator ends, with the time of its steps alone."""

    def call(*args: object, **kwargs: object) -> object:
        found = method(*args, **kwargs)
        return _iterate(iter(found), measured) if isinstance(found, Iterable) else found

    return call


def _iterate(found: Iterator[object], measured: Measured) -> Iterator[object]:
    took_s, outcome = 0.0, "ok"
    try:
        while True:
            started_s = perf_counter()
            opened = layers.enter(record.current(), layers.CACHE, started_s) if state.times_requests else None
            try:
                item = next(found)
            except StopIteration:
                return
            except BaseException:
                outcome = "error"
                raise
            finally:
                took_s += layers.leave(opened, layers.CACHE) - started_s
            yield item
    finally:
        if state.counts and not is_suppressed(get_current()):
            with guard.contained("measuring a cache operation"):
                measured.count(took_s, outcome)


# --- get_or_set, which is made of two. ---


class _RefillSpan(CacheSpan):
    """Around a `get_or_set`: which key it is about, and its span where there are spans."""

    __slots__ = ("_token",)

    def __init__(self, cache: object, measured: Measured, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        key = args[0] if args else kwargs.get("key")
        self.span = None
        outer = get_current()
        if state.makes_spans and not is_suppressed(outer):
            self.known = measured.find(group_of(key))
            self.start_span(outer)
        self._token = _refill.set(_Refill(cache, key))

    def end(self, error: BaseException | None = None) -> None:
        with contextlib.suppress(ValueError):
            # Not where an abandoned coroutine is closed.
            _refill.reset(self._token)
        if self.span is not None:
            self.end_span(None, error)


def _measured_get_or_set(method: Callable[..., object], cache: object, measured: Measured) -> Callable[..., object]:
    def get_or_set(*args: object, **kwargs: object) -> object:
        if inside.get():
            return method(*args, **kwargs)
        around = _RefillSpan(cache, measured, args, kwargs)
        try:
            result = method(*args, **kwargs)
        except BaseException as error:
            around.end(error)
            raise
        around.end()
        return result

    return get_or_set


def _measured_aget_or_set(
    method: Callable[..., Awaitable[object]], cache: object, measured: Measured
) -> Callable[..., object]:
    async def aget_or_set(*args: object, **kwargs: object) -> object:
        if inside.get():
            return await method(*args, **kwargs)
        around = _RefillSpan(cache, measured, args, kwargs)
        try:
            result = await method(*args, **kwargs)
        except BaseException as error:
            around.end(error)
            raise
        around.end()
        return result

    return functools.update_wrapper(aget_or_set, method)


# --- The methods of one cache. ---


def _create_connection(self: CacheHandler, alias: str) -> BaseCache:
    cache: BaseCache = _plain_create_connection(self, alias)
    with guard.contained("measuring a cache"):
        _measure_cache(cache, alias)
    return cache


def _measure_cache(cache: BaseCache, alias: str) -> None:
    if _MARK in vars(cache):
        return
    made: dict[str, object] = {}
    names = [*OPERATIONS, *(name for name in _EXTRA if callable(getattr(cache, name, None)))]
    if type(cache).close is not BaseCache.close:
        # Django closes every cache after each request, which most do not notice.
        names.append("close")
    for name in names:
        method = getattr(cache, name)
        measured = Measured(alias, name)
        made[name] = _Measured(method, cache, measured)
        twin = getattr(cache, f"a{name}", None)
        if inspect.iscoroutinefunction(twin):
            made[f"a{name}"] = _measured_async(twin, cache, measured)
    for name in _ITERATING:
        method = getattr(cache, name, None)
        if callable(method):
            made[name] = _BoundTo(method, _measured_iterator(method, Measured(alias, name)))
    both = Measured(alias, "get_or_set")
    made["get_or_set"] = _BoundTo(cache.get_or_set, _measured_get_or_set(cache.get_or_set, cache, both))
    made["aget_or_set"] = _measured_aget_or_set(cache.aget_or_set, cache, both)
    if vars(cache).get(_SWALLOWS):
        setattr(cache, _SWALLOWS, _NoticedTruth())
    vars(cache).update(made)
    setattr(cache, _MARK, tuple(made))


def _leave_cache(cache: BaseCache) -> None:
    for name in vars(cache).pop(_MARK, ()):
        vars(cache).pop(name, None)
    if isinstance(vars(cache).get(_SWALLOWS), _NoticedTruth):
        setattr(cache, _SWALLOWS, True)


def install(config: Config) -> None:
    """Follow the settings: measure, or leave everything as Django made it. May be called again and again."""
    wanted = config.cache
    state.forget()
    state.counts = config.enabled and wanted.metrics
    state.times_requests = layers.is_wanted(config)
    state.makes_spans = config.enabled and wanted.spans
    state.makes_roots = config.database.root_spans
    state.key_group = None
    with guard.contained("importing CACHE.KEY_GROUP"):
        state.key_group = import_path(wanted.key_group) if isinstance(wanted.key_group, str) else wanted.key_group
    # Off, their time is that of the layer around them.
    if not (state.counts or state.makes_spans or (config.enabled and config.request.server_timing)):
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
    state.counts = state.makes_spans = state.times_requests = False
    if CacheHandler.create_connection is _create_connection:
        CacheHandler.create_connection = _plain_create_connection  # type: ignore[method-assign]
        for cache in caches.all(initialized_only=True):
            _leave_cache(cache)
