"""Django's caches, on any backend: every operation counted and timed, sync and async; spans where wanted.

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
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from time import perf_counter

from django.core.cache import CacheHandler, caches
from django.core.cache.backends.base import BaseCache

from django_otel.base import guard
from django_otel.base.sdk_compat import get_current
from django_otel.config.packages import import_path
from django_otel.config.schema import Config
from django_otel.instrumentation import cache_operations
from django_otel.instrumentation.cache_operations import (
    CacheOperation,
    CacheSpan,
    Outcome,
    group_of,
    group_of_all,
    inside,
    state,
)
from django_otel.instrumentation.driver_calls import is_suppressed
from django_otel.requests import layers, record

_MARK = "_django_otel_measured"
_MISSING = object()
#: django-redis: whether it swallows the errors of its server (IGNORE_EXCEPTIONS).
_SWALLOWS = "_ignore_exceptions"
_GETTING = ("get", "has_key", "get_many")
#: Operations of one key, their first argument.
_BY_KEY = frozenset(
    {"get", "has_key", "add", "set", "touch", "delete", "incr", "decr", "incr_version", "decr_version"}
    | {"ttl", "pttl", "persist", "expire", "expire_at", "pexpire", "pexpire_at", "lock"}
)
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

#: What the `get_or_set` in progress has found out; an object, because async backends run each step in a copy.
_refill: ContextVar[_Refill | None] = ContextVar("django_otel_get_or_set", default=None)

_plain_create_connection = CacheHandler.create_connection


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
        operation = inside.get()
        if isinstance(operation, CacheOperation):
            operation.has_swallowed = True
        return True


# --- An operation, sync and async alike. ---


class _Call:
    """One call of an operation: its arguments as they are passed on, and how its result is understood."""

    __slots__ = ("args", "default", "keys", "kwargs", "name")

    def __init__(self, name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        self.name = name
        self.args = args
        self.kwargs = kwargs
        self.default: object = None
        self.keys: Sequence[object] = ()
        if name == "get" and (args or "key" in kwargs):
            # None may be what is stored, and the default as well: a value of our own marks a miss.
            key, *rest = args or (kwargs.pop("key"),)
            self.default = rest.pop(0) if rest else kwargs.pop("default", None)
            self.args = (key, _MISSING, *rest)
        elif name in ("get_many", "delete_many") and (args or "keys" in kwargs):
            # An iterator would be used up by counting.
            keys, *more = args or (kwargs.pop("keys"),)
            assert isinstance(keys, Iterable)
            self.keys = keys if isinstance(keys, list | tuple) else list(keys)
            self.args = (keys if isinstance(keys, list | tuple | set | frozenset) else self.keys, *more)

    def group(self) -> str | None:
        """Return the group of the keys, where there are groups."""
        if state.key_group is None:
            return None
        if self.name in _BY_KEY:
            return group_of(self.args[0] if self.args else self.kwargs.get("key"))
        if self.name == "set_many":
            data = self.args[0] if self.args else self.kwargs.get("data")
            return group_of_all(data) if isinstance(data, Mapping) else None
        return group_of_all(self.keys)

    def outcomes(self, result: object, group: str | None) -> Sequence[Outcome]:
        """Return what `result` says."""
        if self.name == "get":
            return (("miss" if result is _MISSING else "hit", 1, group),)
        if self.name == "has_key":
            return (("hit" if result else "miss", 1, group),)
        if self.name != "get_many" or not isinstance(result, Mapping):
            return (("ok", 1, group),)
        asked = set(self.keys)
        if state.key_group is None:
            return ("hit", len(result), None), ("miss", max(0, len(asked) - len(result)), None)
        counts: dict[tuple[str, str | None], int] = {}
        for key in asked:
            found = ("hit" if key in result else "miss", group_of(key))
            counts[found] = counts.get(found, 0) + 1
        return [(outcome, number, of_group) for (outcome, of_group), number in counts.items()]

    def answer(self, result: object) -> object:
        """Return `result` as the caller expects it."""
        return self.default if self.name == "get" and result is _MISSING else result


def _is_second_look(cache: object, name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
    """Return whether this is the `get` by which `get_or_set` reads what it has added."""
    refill = _refill.get()
    if refill is None or name != "get" or refill.cache is not cache:
        return False
    if refill.key != (args[0] if args else kwargs.get("key")):
        return False
    if refill.has_looked:
        return True
    refill.has_looked = True
    return False


@contextlib.contextmanager
def _unmeasured() -> Iterator[None]:
    """Whatever a backend makes an operation of is not counted either."""
    token = inside.set(True)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            inside.reset(token)


def _measured(method: Callable[..., object], cache: object, alias: str, name: str) -> Callable[..., object]:
    def call(*args: object, **kwargs: object) -> object:
        if inside.get():
            return method(*args, **kwargs)
        if _is_second_look(cache, name, args, kwargs):
            with _unmeasured():
                return method(*args, **kwargs)
        made = _Call(name, args, kwargs)
        group = made.group()
        operation = CacheOperation(alias, name, group)
        try:
            result = method(*made.args, **made.kwargs)
        except BaseException as error:
            operation.fail(error)
            raise
        operation.succeed(lambda: made.outcomes(result, group))
        return made.answer(result)

    return call


def _measured_async(
    method: Callable[..., Awaitable[object]], cache: object, alias: str, name: str
) -> Callable[..., object]:
    async def call(*args: object, **kwargs: object) -> object:
        if inside.get():
            return await method(*args, **kwargs)
        if _is_second_look(cache, name, args, kwargs):
            with _unmeasured():
                return await method(*args, **kwargs)
        made = _Call(name, args, kwargs)
        group = made.group()
        operation = CacheOperation(alias, name, group)
        try:
            result = await method(*made.args, **made.kwargs)
        except BaseException as error:
            operation.fail(error)
            raise
        operation.succeed(lambda: made.outcomes(result, group))
        return made.answer(result)

    return functools.update_wrapper(call, method)


def _measured_iterator(method: Callable[..., object], alias: str, name: str) -> Callable[..., object]:
    """Count once, when the iterator ends, with the time of its steps alone."""

    def call(*args: object, **kwargs: object) -> object:
        found = method(*args, **kwargs)
        return _iterate(iter(found), alias, name) if isinstance(found, Iterable) else found

    return call


def _iterate(found: Iterator[object], alias: str, name: str) -> Iterator[object]:
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
                cache_operations.count(alias, name, took_s, ((outcome, 1, None),), None)


# --- get_or_set, which is made of two. ---


class _RefillSpan:
    """Around a `get_or_set`: which key it is about, and its span where there are spans."""

    __slots__ = ("_span", "_token")

    def __init__(self, cache: object, alias: str, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        key = args[0] if args else kwargs.get("key")
        self._span = CacheSpan(alias, "get_or_set", group_of(key)) if state.makes_spans else None
        self._token = _refill.set(_Refill(cache, key))

    def end(self, error: BaseException | None = None) -> None:
        with contextlib.suppress(ValueError):
            # Not where an abandoned coroutine is closed.
            _refill.reset(self._token)
        if self._span is not None:
            self._span.end((), error)


def _measured_get_or_set(method: Callable[..., object], cache: object, alias: str) -> Callable[..., object]:
    def get_or_set(*args: object, **kwargs: object) -> object:
        if inside.get():
            return method(*args, **kwargs)
        around = _RefillSpan(cache, alias, args, kwargs)
        try:
            result = method(*args, **kwargs)
        except BaseException as error:
            around.end(error)
            raise
        around.end()
        return result

    return get_or_set


def _measured_aget_or_set(method: Callable[..., Awaitable[object]], cache: object, alias: str) -> Callable[..., object]:
    async def aget_or_set(*args: object, **kwargs: object) -> object:
        if inside.get():
            return await method(*args, **kwargs)
        around = _RefillSpan(cache, alias, args, kwargs)
        try:
            result = await method(*args, **kwargs)
        except BaseException as error:
            around.end(error)
            raise
        around.end()
        return result

    return functools.update_wrapper(aget_or_set, method)


# --- The methods of one cache. ---


class _Bound:
    """A bound method that calls another function instead; its attributes are those of the method.

    Django 6.1 goes by `__func__` to see whether a backend has an operation of its own. A function with such an
    attribute will not do: what wraps it (asgiref) takes the attribute over, and then marks the backend's method.
    """

    __slots__ = ("__func__", "__name__", "__self__", "__wrapped__", "_call")

    def __init__(self, method: Callable[..., object], call: Callable[..., object]) -> None:
        self.__wrapped__ = method
        self.__func__ = getattr(method, "__func__", method)
        self.__self__ = getattr(method, "__self__", None)
        self.__name__ = getattr(method, "__name__", "")
        self._call = call

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self._call(*args, **kwargs)


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
        made[name] = _Bound(method, _measured(method, cache, alias, name))
        twin = getattr(cache, f"a{name}", None)
        if inspect.iscoroutinefunction(twin):
            made[f"a{name}"] = _measured_async(twin, cache, alias, name)
    for name in _ITERATING:
        method = getattr(cache, name, None)
        if callable(method):
            made[name] = _Bound(method, _measured_iterator(method, alias, name))
    made["get_or_set"] = _Bound(cache.get_or_set, _measured_get_or_set(cache.get_or_set, cache, alias))
    made["aget_or_set"] = _measured_aget_or_set(cache.aget_or_set, cache, alias)
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
