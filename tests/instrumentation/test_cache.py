"""Django's caches are counted, by any backend, and never a key."""

from __future__ import annotations

import asyncio
import contextlib
import inspect

import pytest
from django.core.cache import caches
from django.core.cache.backends.base import BaseCache
from django.test import Client
from opentelemetry.instrumentation.utils import suppress_instrumentation

from tests import services

LOCMEM = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "test_cache"}


class Broken(BaseCache):
    """A server that does not answer."""

    def __init__(self, *_):
        super().__init__({})

    def get(self, key, default=None, version=None):
        raise ConnectionError("no cache at secret-key")


class Made(BaseCache):
    """A backend with the least that Django asks for: the rest is made of it."""

    def __init__(self, *_):
        super().__init__({})
        self.kept = {}

    def get(self, key, default=None, version=None):
        return self.kept.get(key, default)

    def set(self, key, value, timeout=None, version=None):
        self.kept[key] = value

    def add(self, key, value, timeout=None, version=None):
        return self.kept.setdefault(key, value) is value

    def delete(self, key, version=None):
        return self.kept.pop(key, None) is not None


@pytest.fixture(params=["locmem", "made of the least", "valkey"])
def cache(request, settings):
    where = LOCMEM
    if request.param == "made of the least":
        where = {"BACKEND": "tests.instrumentation.test_cache.Made"}
    elif request.param == "valkey":
        url = request.getfixturevalue("valkey_url")
        where = {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": url}
    settings.CACHES = {"default": where, "broken": {"BACKEND": "tests.instrumentation.test_cache.Broken"}}
    cache = caches["default"]
    yield cache
    for key in ("a", "b", "c", "n"):
        cache.delete(key)


def count(otel_metrics, operation, outcome, alias="default"):
    return otel_metrics.value(
        "django.cache.operations",
        {"django.cache.alias": alias, "django.cache.operation": operation, "django.cache.outcome": outcome},
    )


def test_hits_misses_and_writes_are_told_apart(cache, otel_metrics):
    assert cache.get("a") is None
    assert cache.get("a", "instead") == "instead"
    cache.set("a", 1)
    assert cache.get("a") == 1
    assert cache.has_key("a")
    assert "b" not in cache
    assert cache.delete("a")
    assert count(otel_metrics, "get", "miss") == 2
    assert count(otel_metrics, "get", "hit") == 1
    assert count(otel_metrics, "set", "ok") == 1
    assert count(otel_metrics, "has_key", "hit") == 1
    assert count(otel_metrics, "has_key", "miss") == 1
    assert count(otel_metrics, "delete", "ok") == 1


def test_a_stored_none_is_a_hit(cache, otel_metrics):
    cache.set("a", None)
    assert cache.get("a", "instead") is None
    assert count(otel_metrics, "get", "hit") == 1


def test_several_keys_count_one_by_one_whatever_the_backend_makes_of_them(cache, otel_metrics):
    assert cache.set_many({"a": 1, "b": 2}) == []
    assert cache.get_many(iter(["a", "b", "c"])) == {"a": 1, "b": 2}
    assert count(otel_metrics, "get_many", "hit") == 2
    assert count(otel_metrics, "get_many", "miss") == 1
    assert count(otel_metrics, "set_many", "ok") == 1
    assert not count(otel_metrics, "get", "hit")
    assert not count(otel_metrics, "set", "ok")


def test_get_or_set_and_incr_keep_their_meaning(cache, otel_metrics):
    assert cache.get_or_set("a", lambda: 7) == 7
    assert cache.get_or_set("a", lambda: 8) == 7
    # Django's second get, which reads what another process may have added first, is no operation of the project's.
    assert count(otel_metrics, "get", "miss") == 1
    assert count(otel_metrics, "get", "hit") == 1
    assert count(otel_metrics, "add", "ok") == 1
    cache.set("n", 1)
    assert cache.incr("n") == 2
    assert count(otel_metrics, "incr", "ok") == 1
    with pytest.raises(ValueError, match="c"):
        cache.incr("c")
    assert count(otel_metrics, "incr", "miss") == 1


def test_a_cold_get_or_set_is_a_miss_and_an_add(cache, otel_metrics):
    """With what its callable does counted as ever; async as well."""
    assert cache.get_or_set("a", lambda: cache.get_or_set("b", lambda: 2)) == 2
    assert count(otel_metrics, "get", "miss") == 2
    assert asyncio.run(cache.aget_or_set("c", lambda: 3)) == 3
    assert count(otel_metrics, "get", "miss") == 3
    assert count(otel_metrics, "add", "ok") == 3
    assert not count(otel_metrics, "get", "hit")
    assert asyncio.run(cache.aget_or_set("c", lambda: 4)) == 3
    assert cache.get("a") == 2
    assert count(otel_metrics, "get", "hit") == 2


_CALLS = {
    "get": ("a", "instead"), "set": ("a", 1), "has_key": ("a",), "get_many": (["a", "b"],), "delete": ("a",),
    "add": ("a", 1), "incr": ("a",), "decr": ("a",), "incr_version": ("a",), "decr_version": ("a",),
    "set_many": ({"a": 1},), "delete_many": (["a"],), "clear": (),
}  # fmt: skip


@pytest.mark.heavy
@pytest.mark.parametrize("ignores", [True, False])
def test_a_dead_server_is_an_error_also_where_django_redis_ignores_it(settings, otel_metrics, ignores):
    settings.CACHES = {
        "default": {
            "BACKEND": "django_redis.cache.RedisCache",
            "LOCATION": f"redis://127.0.0.1:{services.free_port()}/0",
            "OPTIONS": {"IGNORE_EXCEPTIONS": ignores, "SOCKET_CONNECT_TIMEOUT": 2},
        }
    }
    cache = caches["default"]
    for name, arguments in _CALLS.items():
        for is_async in (False, True):
            call = getattr(cache, f"a{name}" if is_async else name)
            otel_metrics.clear()
            # Django's own async operations raise for a value that they could not read.
            with contextlib.suppress(ValueError) if ignores else pytest.raises(Exception, match=r"(?i)connect"):
                asyncio.run(call(*arguments)) if is_async else call(*arguments)
            assert count(otel_metrics, name, "error") == 1, (name, is_async)
            assert not any(count(otel_metrics, name, outcome) for outcome in ("hit", "miss", "ok")), (name, is_async)
    if ignores:
        assert cache.get("a", "instead") == "instead"
        assert cache.get_or_set("a", lambda: 5) == 5


def test_an_error_is_counted_and_raised_and_no_key_is_shown(cache, otel_metrics):
    with pytest.raises(ConnectionError):
        caches["broken"].get("secret-key")
    assert count(otel_metrics, "get", "error", "broken") == 1
    from django_otel import runtime

    text = repr([family for family in runtime.collect() if family.name.startswith("django.cache")])
    assert "broken" in text
    assert "secret-key" not in text


def test_every_operation_has_a_duration(cache, otel_metrics):
    cache.set("a", 1)
    cache.get("a")
    for operation in ("set", "get"):
        attributes = {"django.cache.alias": "default", "django.cache.operation": operation}
        assert otel_metrics.value("django.cache.operation.duration", attributes).count == 1


def test_async_operations_count_as_well(cache, otel_metrics):
    async def work():
        await cache.aset("a", 1)
        return await cache.aget("a"), await cache.aget_many(["a", "b"])

    assert asyncio.run(work()) == (1, {"a": 1})
    assert count(otel_metrics, "set", "ok") == 1
    assert count(otel_metrics, "get", "hit") + (count(otel_metrics, "get_many", "hit") or 0) == 2


def test_methods_tell_of_themselves_what_they_told_before(cache):
    """Django 6.1 asks `__func__` whether a backend has an operation of its own, and breaks without."""
    for name in ("get", "set", "add", "delete", "get_many", "has_key", "incr", "touch"):
        method = getattr(cache, name)
        assert name in vars(cache), "measured"
        assert method.__func__ is getattr(type(cache), name)
        assert method.__self__ is cache
        assert inspect.signature(method) == inspect.signature(getattr(type(cache), name).__get__(cache))
        assert not inspect.iscoroutinefunction(method)


def test_every_async_operation_does_what_it_does_unmeasured(cache):
    async def work():
        assert await cache.aadd("n", 1) and not await cache.aadd("n", 2)
        assert await cache.aincr("n", 4) == 5 and await cache.adecr("n") == 4
        assert await cache.aget_or_set("o", lambda: "made") == "made"
        assert await cache.ahas_key("o") and not await cache.ahas_key("p")
        assert await cache.aset_many({"q": 1, "r": 2}) == []
        assert await cache.aget_many(["q", "r", "s"]) == {"q": 1, "r": 2}
        if type(cache).touch is not BaseCache.touch:
            assert await cache.atouch("q", 60) and not await cache.atouch("s", 60)
        await cache.adelete_many(["q", "r"])
        assert await cache.adelete("o") and await cache.aget("o") is None

    # Twice: to wrap a method leaves nothing behind.
    asyncio.run(work())
    cache.delete("n")
    asyncio.run(work())
    assert not [name for name in ("get", "set", "get_many") if inspect.iscoroutinefunction(getattr(type(cache), name))]


def test_what_is_suppressed_is_not_counted(cache, otel_metrics):
    with suppress_instrumentation():
        cache.get("a")
    assert not count(otel_metrics, "get", "miss")


def test_off_leaves_caches_as_django_made_them(cache, settings, otel_metrics):
    settings.OTEL = {"SERVICE_NAME": "tests", "CACHE": {"METRICS": False}}
    assert not [name for name in vars(cache) if name in ("get", "set", "get_many")]
    cache.get("a")
    assert not count(otel_metrics, "get", "miss")
    settings.OTEL = {"SERVICE_NAME": "tests"}
    cache.get("a")
    assert count(otel_metrics, "get", "miss") == 1


def test_a_server_shows_them_on_its_page(valkey_url):
    """With real processes and a real cache: sessions are read through it."""
    otel = {"SERVICE_NAME": "cached", "METRICS_VIEW": {"ALLOW": "all"}, "SAMPLING": {"LIVE": False}}
    with services.serve("gunicorn", otel, workers=2, TEST_CACHE=valkey_url) as server:
        for _ in range(5):
            assert server.get("/cache-read/")[0] == 200
        page = server.get("/metrics")[2].decode()
    assert (
        'django_cache_operations_total{django_cache_alias="default",django_cache_operation="get",'
        'django_cache_outcome="miss"} 5' in page
    )


def test_a_request_is_answered_whatever_its_measuring_does(cache, monkeypatch):
    from django_otel import runtime
    from django_otel.instrumentation import cache_operations

    catalogued = runtime.store.catalogued

    def fail(name):
        if name.startswith("django.cache"):
            raise RuntimeError("no instruments")
        return catalogued(name)

    monkeypatch.setattr(runtime.store, "catalogued", fail)
    cache_operations.state.forget()
    cache.set("a", 1)
    assert cache.get("a") == 1
    assert Client().get("/hello/").status_code == 200
