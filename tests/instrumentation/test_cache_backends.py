"""Every operation of every backend, sync and async, is measured once; spans, groups of keys, and what stays inside."""

import asyncio
import copy
import inspect

import pytest
from django.core.cache import caches
from django.core.cache.backends.base import BaseCache
from django.core.management import call_command
from django.test import override_settings
from opentelemetry.trace import StatusCode, get_current_span

import django_otel
from django_otel import span
from django_otel.base import guard
from django_otel.instrumentation import cache_operations
from django_otel.testing import override_sampling
from tests import services

BACKENDS = (
    "locmem",
    "file",
    pytest.param("database", marks=pytest.mark.django_db(transaction=True)),
    pytest.param("redis", marks=pytest.mark.process),
    pytest.param("django-redis", marks=pytest.mark.process),
)
SECRET = "hunter2-key"
SPANS = {"SERVICE_NAME": "tests", "CACHE": {"SPANS": True}}


def group_by_prefix(key):
    """The part before the colon; an error for some."""
    if key == "bad":
        raise LookupError(SECRET)
    return key.partition(":")[0] if ":" in key else None


def open_cache(name, request, settings):
    where = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "backends"}
    if name == "file":
        folder = str(request.getfixturevalue("tmp_path"))
        where = {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": folder}
    elif name == "database":
        where = {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cache_table"}
    elif name in ("redis", "django-redis"):
        url = request.getfixturevalue("valkey_url")
        backend = "django_redis.cache" if name == "django-redis" else "django.core.cache.backends.redis"
        where = {"BACKEND": f"{backend}.RedisCache", "LOCATION": url, "KEY_PREFIX": "backends"}
    settings.CACHES = {"default": where}
    if name == "database":
        call_command("createcachetable")
    return caches["default"]


@pytest.fixture(params=BACKENDS)
def cache(request, settings, otel_metrics):
    found = open_cache(request.param, request, settings)
    found.clear()
    otel_metrics.clear()
    yield found
    found.clear()


def counted(metrics):
    """What was counted: {(operation, outcome): number}; and how often each was timed."""
    # Read once for all of them.
    metrics = copy.copy(metrics)
    metrics.keep()
    operations = {
        (point["django.cache.operation"], point["django.cache.outcome"]): metrics.value(
            "django.cache.operations", point
        )
        for point in metrics.series("django.cache.operations")
    }
    timed = {
        point["django.cache.operation"]: metrics.value("django.cache.operation.duration", point).count
        for point in metrics.series("django.cache.operation.duration")
    }
    return {key: value for key, value in operations.items() if value}, {key: n for key, n in timed.items() if n}


#: Name, arguments, and what is counted.
CALLS = (
    ("get", ("k",), {("get", "hit"): 1}),
    ("get", ("none", 5), {("get", "miss"): 1}),
    ("set", ("k", 2), {("set", "ok"): 1}),
    ("add", ("new", 2), {("add", "ok"): 1}),
    ("touch", ("k", 60), {("touch", "ok"): 1}),
    ("delete", ("k",), {("delete", "ok"): 1}),
    ("has_key", ("k",), {("has_key", "hit"): 1}),
    ("has_key", ("none",), {("has_key", "miss"): 1}),
    ("incr", ("k", 2), {("incr", "ok"): 1}),
    ("decr", ("k",), {("decr", "ok"): 1}),
    ("get_many", (["k", "l", "none"],), {("get_many", "hit"): 2, ("get_many", "miss"): 1}),
    ("set_many", ({"k": 1, "m": 2},), {("set_many", "ok"): 1}),
    ("delete_many", (["k", "l"],), {("delete_many", "ok"): 1}),
    ("incr_version", ("k",), {("incr_version", "ok"): 1}),
    ("decr_version", ("v2", 1, 2), {("decr_version", "ok"): 1}),
    ("get_or_set", ("k", 7), {("get", "hit"): 1}),
    ("get_or_set", ("none", 7), {("get", "miss"): 1, ("add", "ok"): 1}),
    ("clear", (), {("clear", "ok"): 1}),
)


@pytest.mark.heavy
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_every_operation_is_measured_once(is_async, cache, otel_metrics):
    """Whatever it is made of in the backend: by its sync and its async name the same."""
    for name, arguments, expected in CALLS:
        cache.set_many({"k": 1, "l": 2})
        cache.delete_many(["new", "none"])
        cache.set("v2", 1, version=2)
        otel_metrics.clear()
        if is_async:
            result = asyncio.run(getattr(cache, f"a{name}")(*arguments))
        else:
            result = getattr(cache, name)(*arguments)
        assert result != cache_operations.MISSING
        operations, timed = counted(otel_metrics)
        assert operations == expected, (name, arguments)
        assert timed == {operation: 1 for operation, _ in expected}, name


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_key_that_is_not_there_is_a_miss_where_django_raises(is_async, cache, otel_metrics):
    for name in ("incr", "decr", "incr_version", "decr_version"):
        otel_metrics.clear()
        with pytest.raises(ValueError, match="none"):
            if is_async:
                asyncio.run(getattr(cache, f"a{name}")("none"))
            else:
                getattr(cache, name)("none")
        assert counted(otel_metrics)[0] == {(name, "miss"): 1}


def test_in_is_a_has_key(cache, otel_metrics):
    assert "none" not in cache
    assert counted(otel_metrics)[0] == {("has_key", "miss"): 1}


def test_arguments_by_name_work_as_before(cache):
    cache.set(key="k", value=1)
    assert cache.get(key="k", default=2) == 1
    assert cache.get(key="none", default=2) == 2
    assert cache.get("none", default=2, version=1) == 2
    assert cache.get_many(keys=["k"]) == {"k": 1}
    assert cache.get_or_set(key="k", default=5) == 1
    cache.delete_many(keys=iter(["k"]))
    assert "k" not in cache
    with pytest.raises(TypeError):
        cache.get()
    assert asyncio.run(cache.aget(key="none", default=3)) == 3
    assert inspect.iscoroutinefunction(cache.aget) and not inspect.iscoroutinefunction(cache.get)


def test_operations_of_one_task_do_not_hide_those_of_another(cache, otel_metrics):
    async def work():
        await cache.aset("k", 1)
        await asyncio.gather(*(cache.aget("k") for _ in range(5)), cache.aincr("k"))

    asyncio.run(work())
    assert counted(otel_metrics)[0] == {("set", "ok"): 1, ("get", "hit"): 5, ("incr", "ok"): 1}


# --- django-redis's own operations. ---


@pytest.fixture
def django_redis(request, settings):
    found = open_cache("django-redis", request, settings)
    found.clear()
    yield found
    found.clear()


@pytest.mark.process
def test_the_operations_that_only_django_redis_has(django_redis, otel_metrics):
    cache = django_redis
    cache.set_many({"k": 1, "l": 2})
    calls = {
        "keys": ("*",),
        "ttl": ("k",),
        "pttl": ("k",),
        "persist": ("k",),
        "expire": ("k", 60),
        "pexpire": ("k", 60_000),
        "sadd": ("s", "x"),
        "smembers": ("s",),
        "hset": ("h", "field", 1),
        "hexists": ("h", "field"),
        "zadd": ("z", {"member": 1}),
        "zscore": ("z", "member"),
        "lock": ("lock",),
        "delete_pattern": ("k*",),
        "close": (),
    }
    for name, arguments in calls.items():
        otel_metrics.clear()
        getattr(cache, name)(*arguments)
        assert counted(otel_metrics) == ({(name, "ok"): 1}, {name: 1}), name
    otel_metrics.clear()
    assert "l" in list(cache.iter_keys("*"))
    assert counted(otel_metrics) == ({("iter_keys", "ok"): 1}, {"iter_keys": 1})
    otel_metrics.clear()
    with cache.lock("lock", timeout=5):
        pass
    assert counted(otel_metrics)[0] == {("lock", "ok"): 1}


def test_a_dead_server_is_an_error_for_its_own_operations_too(settings, otel_metrics):
    options = {"IGNORE_EXCEPTIONS": True, "SOCKET_CONNECT_TIMEOUT": 2}
    where = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": f"redis://127.0.0.1:{services.free_port()}/0"}
    settings.CACHES = {"default": {**where, "OPTIONS": options}}
    with pytest.raises(Exception, match=r"(?i)connect"):
        caches["default"].ttl("k")
    assert asyncio.run(caches["default"].aget("k", 5)) == 5
    assert counted(otel_metrics)[0] == {("ttl", "error"): 1, ("get", "error"): 1}


# --- Spans. ---


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_each_operation_has_a_span_around_what_the_backend_does(is_async, cache, otel_spans):
    async def work():
        with span("parent"):
            await cache.aset("k", 1)
            await cache.aget("none")
            await cache.aget_many(["k", "none"])
            assert get_current_span().name == "parent"

    with override_settings(OTEL=SPANS):
        if is_async:
            asyncio.run(work())
        else:
            with span("parent"):
                cache.set("k", 1)
                cache.get("none")
                cache.get_many(["k", "none"])
                assert get_current_span().name == "parent"
    parent = otel_spans.one("parent")
    ours = [found for found in otel_spans if found.name.startswith("cache ")]
    assert [found.name for found in ours] == ["cache set", "cache get", "cache get_many"]
    assert {found.parent.span_id for found in ours} == {parent.context.span_id}
    assert dict(ours[1].attributes) == {
        "django.cache.alias": "default",
        "django.cache.operation": "get",
        "django.cache.outcome": "miss",
    }
    assert ours[2].attributes["django.cache.hits"] == 1
    assert ours[2].attributes["django.cache.misses"] == 1
    # A query of the database cache, a command of Redis: inside ours, and none beside it.
    own = {found.context.span_id for found in ours}
    others = [found for found in otel_spans if found not in ours and found is not parent]
    assert {found.parent.span_id for found in others} <= own | {found.context.span_id for found in others}


def test_get_or_set_holds_its_parts_and_what_its_callable_does(settings, request, otel_spans):
    settings.OTEL = SPANS
    cache = open_cache("locmem", request, settings)
    cache.clear()

    def make():
        django_otel.set_attributes(made=True)
        with span("made"):
            return 5

    with span("parent"):
        assert cache.get_or_set("k", make) == 5
        assert asyncio.run(cache.aget_or_set("l", make)) == 5
    assert otel_spans.one("parent").attributes["made"] is True
    outer = otel_spans.named("cache get_or_set")
    assert len(outer) == 2
    for found in outer:
        inside = [child.name for child in otel_spans if child.parent and child.parent.span_id == found.context.span_id]
        assert inside == ["cache get", "made", "cache add"]


def test_an_error_says_its_type_and_nothing_of_the_key(settings, otel_spans):
    settings.OTEL = SPANS
    settings.CACHES = {"default": {"BACKEND": "tests.instrumentation.test_cache.Broken"}}
    with span("parent"), pytest.raises(ConnectionError):
        caches["default"].get(SECRET)
    found = otel_spans.one("cache get")
    assert found.attributes["django.cache.outcome"] == "error"
    assert found.attributes["error.type"] == "ConnectionError"
    assert found.status.status_code is StatusCode.ERROR
    assert "secret" not in f"{found.attributes} {found.status.description} {found.events}"


def test_there_are_no_spans_without_a_trace_and_none_by_default(settings, request, otel_spans):
    cache = open_cache("locmem", request, settings)
    with span("parent"):
        cache.get("k")
    assert not [found for found in otel_spans if found.name.startswith("cache")]
    with override_settings(OTEL=SPANS):
        cache.get("k")
        with override_sampling(0.0), span("dropped"):
            cache.get("k")
    assert not [found for found in otel_spans if found.name.startswith("cache")]


def test_spans_alone_count_nothing(settings, request, otel_spans, otel_metrics):
    settings.OTEL = {"SERVICE_NAME": "tests", "CACHE": {"SPANS": True, "METRICS": False}}
    cache = open_cache("locmem", request, settings)
    with span("parent"):
        cache.get("k")
    assert otel_spans.one("cache get")
    assert counted(otel_metrics) == ({}, {})


# --- Groups of keys. ---


def grouped(metrics):
    return {
        (point["django.cache.operation"], point["django.cache.outcome"], point["django.cache.key.group"]): value
        for point in metrics.series("django.cache.operations")
        if "django.cache.key.group" in point and (value := metrics.value("django.cache.operations", point))
    }


@pytest.mark.parametrize("given", [group_by_prefix, f"{__name__}.group_by_prefix"], ids=["function", "path"])
def test_a_function_may_group_the_keys(given, settings, request, otel_metrics, otel_spans):
    cache = open_cache("locmem", request, settings)
    cache.clear()
    otel_metrics.clear()
    with override_settings(OTEL={"SERVICE_NAME": "tests", "CACHE": {"KEY_GROUP": given, "SPANS": True}}):
        with span("parent"):
            cache.set(f"user:{SECRET}", 1)
            cache.get("page:1")
            cache.get("plain")
            cache.get_many([f"user:{SECRET}", "page:1", "page:2"])
            cache.set_many({"page:8": 1, "page:9": 2})
            asyncio.run(cache.aget(f"user:{SECRET}"))
    assert grouped(otel_metrics) == {
        ("set", "ok", "user"): 1,
        ("get", "miss", "page"): 1,
        ("get", "hit", "user"): 1,
        ("get_many", "hit", "user"): 1,
        ("get_many", "miss", "page"): 2,
        ("set_many", "ok", "page"): 1,
    }
    assert {"django.cache.alias", "django.cache.operation", "django.cache.outcome"} in map(
        set, otel_metrics.series("django.cache.operations")
    )
    assert otel_spans.one("cache set").attributes["django.cache.key.group"] == "user"
    assert SECRET not in repr([dict(found.attributes) for found in otel_spans])


def test_groups_are_bounded_and_faults_of_the_function_contained(settings, request, otel_metrics):
    cache = open_cache("locmem", request, settings)
    otel_metrics.clear()
    with override_settings(OTEL={"SERVICE_NAME": "tests", "CACHE": {"KEY_GROUP": group_by_prefix}}):
        for number in range(150):
            cache.get(f"{number}:a")
        cache.get("bad")
    found = grouped(otel_metrics)
    assert found["get", "miss", cache_operations.OTHER_GROUP] == 50
    assert len({group for _, _, group in found}) == 101
    assert guard.fault_counts()
    guard.reset()


def test_a_path_that_leads_nowhere_is_an_error_of_the_checks():
    with override_settings(OTEL={"SERVICE_NAME": "tests", "CACHE": {"KEY_GROUP": "tests.nowhere.group"}}):
        from django_otel.operations.checks import check_configuration

        assert [found.id for found in check_configuration() if "KEY_GROUP" in found.msg] == ["django_otel.E003"]
    guard.reset()


# --- Backends with async operations of their own; off. ---


class Native(BaseCache):
    """Async alone, as some backends for asyncio are."""

    def __init__(self, *_):
        super().__init__({})
        self.kept = {}

    async def aget(self, key, default=None, version=None):
        await asyncio.sleep(0)
        return self.kept.get(key, default)

    async def aset(self, key, value, timeout=None, version=None):
        self.kept[key] = value


def test_a_backend_with_async_operations_of_its_own_is_measured(settings, otel_metrics):
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.Native"}}

    async def work():
        cache = caches["default"]
        await cache.aset("k", 1)
        assert await cache.aget("k") == 1
        assert await cache.aincr("k") == 2

    asyncio.run(work())
    assert counted(otel_metrics)[0] == {("set", "ok"): 1, ("get", "hit"): 1, ("incr", "ok"): 1}


def test_an_abandoned_operation_disturbs_nothing(settings, otel_metrics):
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.Native"}}

    async def work():
        left = caches["default"].aget("k")
        left.send(None)
        return left

    async def main():
        left = await asyncio.create_task(work())
        left.close()
        await caches["default"].aget("k")

    asyncio.run(main())
    assert counted(otel_metrics)[0] == {("get", "error"): 1, ("get", "miss"): 1}


def test_off_leaves_every_method_as_it_was(settings, request):
    cache = open_cache("locmem", request, settings)
    assert "aget" in vars(cache)
    with override_settings(OTEL={"SERVICE_NAME": "tests", "CACHE": {"METRICS": False}}):
        assert not [name for name, value in vars(cache).items() if callable(value) and name != "key_func"]
