"""The one query of a poll: it finds what the tables' own queries find, and where it fails, those are asked."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Iterator

import pytest
from django.core.cache.backends.base import BaseCache
from django.core.cache.backends.db import DatabaseCache
from django.db import connection, connections
from django.test import override_settings
from django.utils import timezone

from django_otel.base.log_levels import levels
from django_otel.live_sampling import follower, hosts, log_levels
from django_otel.live_sampling.policy_cache import CacheNews
from django_otel.live_sampling.rows_together import RowsTogether
from django_otel.models import LogLevel, SamplingPolicy, SamplingRule, SamplingVersion, read_state, single_change

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("fresh_policy", "levels_end"),
]


@pytest.fixture
def levels_end():
    yield
    levels.restore_all()


@contextlib.contextmanager
def counted(alias: str = "default") -> Iterator[list[str]]:
    sent: list[str] = []

    def note(execute, sql, params, many, context):
        sent.append(sql)
        return execute(sql, params, many, context)

    with connections[alias].execute_wrapper(note):
        yield sent


def fill() -> None:
    """A row and more of each table, with every column that may be empty once empty and once not."""
    end = timezone.now().replace(microsecond=123456) + datetime.timedelta(hours=1)
    with single_change("default"):
        SamplingPolicy(
            ratio=0.25, max_per_second=7.5, keep_errors=True, keep_slow_s=2.5, expires_at=end, note='ä "quoted" %s',
        ).save()  # fmt: skip
        SamplingRule.objects.create(path="/a/*", ratio=1.0, priority=-3, expires_at=end, note="why")
        SamplingRule.objects.create(route="^b/(?P<pk>\\d+)/$", ratio=0.0, method="POST", priority=5)
        SamplingRule.objects.create(path="/c", ratio=0.5, priority=5)
    LogLevel.objects.create(logger="shop.b", level="DEBUG", expires_at=end)
    LogLevel.objects.create(logger="shop.a", level="ERROR", expires_at=end)
    LogLevel.objects.create(logger="over", level="ERROR", expires_at=timezone.now() - datetime.timedelta(minutes=1))
    hosts.watch("default")


@pytest.mark.parametrize("use_tz", [True, False], ids=["aware", "local"])
def test_it_finds_what_the_queries_of_each_table_find(use_tz):
    with override_settings(USE_TZ=use_tz):
        fill()
        together = RowsTogether()
        with counted() as sent:
            state = together.read("default")
        assert len(sent) == 1
        assert state == read_state("default")
        assert [rule.path or rule.route for rule in state.rules] == ["/c", "/^b/(?P<pk>\\d+)/$", "/a/*"]
        assert together.levels is not None
        assert together.levels.levels == log_levels.read_levels("default").levels
        assert [live.logger for live in together.levels.levels] == ["shop.a", "shop.b"]
        assert together.watched_at == SamplingVersion.objects.get().watched_at is not None


@pytest.mark.parametrize("what", ["nothing", "policy", "rule"])
def test_it_finds_the_same_where_tables_are_empty(what):
    if what == "policy":
        SamplingPolicy.objects.bulk_create([SamplingPolicy(pk=1, ratio=0.5, version=41)])
    if what == "rule":
        SamplingRule.objects.create(path="/a", ratio=1.0)
    together = RowsTogether()
    assert together.read("default") == read_state("default")
    assert (together.levels, together.is_whole) != (None, False)


def test_a_poll_is_one_query():
    fill()
    mine = follower.Follower()
    # A poll closes its connection, and with it the wrapper that counts stays.
    with counted() as sent:
        mine.poll()
        mine.poll()
    assert len(sent) == 2
    assert mine.fault == ""


def test_without_the_table_of_log_levels_the_rest_is_read():
    SamplingPolicy(ratio=0.25).save()
    with connection.schema_editor() as editor:
        editor.delete_model(LogLevel)
    try:
        together = RowsTogether()
        assert together.read("default").policy.ratio == 0.25
        assert together.levels is None
    finally:
        with connection.schema_editor() as editor:
            editor.create_model(LogLevel)


def test_before_the_migration_a_poll_says_so_after_one_look_at_the_tables():
    """No query for each of the tables, of which there is none."""
    kinds = (SamplingRule, SamplingPolicy, SamplingVersion, LogLevel)
    mine = follower.Follower()
    try:
        with connection.schema_editor() as editor:
            for kind in kinds:
                editor.delete_model(kind)
        with counted() as sent:
            mine.poll()
        assert "manage.py migrate django_otel" in mine.fault
        assert len(sent) == 2, sent
    finally:
        with connection.schema_editor() as editor:
            for kind in reversed(kinds):
                editor.create_model(kind)


def test_where_a_column_is_missing_the_rest_is_read():
    """Between two releases, say: what the policy needs is there."""
    SamplingPolicy(ratio=0.25).save()
    field = SamplingVersion._meta.get_field("watched_at")
    with connection.schema_editor() as editor:
        editor.remove_field(SamplingVersion, field)
    try:
        mine = follower.Follower()
        mine.poll()
        assert (mine.fault, follower.status()["ratio"]) == ("", 0.25)
    finally:
        with connection.schema_editor() as editor:
            editor.add_field(SamplingVersion, field)


def test_a_log_level_that_makes_no_sense_leaves_the_policy_alone():
    if connection.vendor != "sqlite":
        pytest.skip("only SQLite lets such a value in")
    SamplingPolicy(ratio=0.25).save()
    LogLevel.objects.create(logger="shop", level="DEBUG", expires_at=timezone.now())
    with connection.cursor() as cursor:
        cursor.execute("UPDATE django_otel_loglevel SET expires_at = '2026-99-99 00:00:00'")
    mine = follower.Follower()
    mine.poll()
    assert mine.fault == ""
    assert mine.read_at_s is not None and mine.read_at_s <= time.time()
    assert follower.status()["ratio"] == 0.25


class LevelsInOther:
    """A database router that keeps the log levels in the alias "other"."""

    def db_for_write(self, model, **hints):
        return "other" if model is LogLevel else None

    db_for_read = db_for_write


def test_log_levels_of_another_database_are_asked_for_there():
    """Then each of the two databases sees one query."""
    SamplingPolicy(ratio=0.25).save()
    end = timezone.now() + datetime.timedelta(hours=1)
    LogLevel.objects.using("other").create(logger="shop.other", level="DEBUG", expires_at=end)
    with override_settings(DATABASE_ROUTERS=[LevelsInOther()]), counted() as sent, counted("other") as sent_other:
        mine = follower.Follower()
        mine.poll()
    assert (len(sent), len(sent_other)) == (1, 1)
    assert mine.log_levels._reading is not None
    assert [live.logger for live in mine.log_levels._reading.levels] == ["shop.other"]


class OwnDatabaseCache(DatabaseCache):
    """As a library has one that measures it."""


class OwnSharedCache(BaseCache):
    """As a library has one for a server."""

    asked = 0

    def __init__(self, *_: object) -> None:
        super().__init__({})

    def get(self, key, default=None, version=None):
        type(self).asked += 1
        return default


@pytest.mark.parametrize(("backend", "is_asked"), [(OwnDatabaseCache, False), (OwnSharedCache, True)])
def test_a_cache_that_is_a_database_is_not_asked_for_news(backend, is_asked):
    """It would be a query each second; a subclass is one as well."""
    place = {"BACKEND": f"{backend.__module__}.{backend.__qualname__}", "LOCATION": "no_such_table"}
    OwnSharedCache.asked = 0
    with override_settings(CACHES={"default": place}), counted() as sent:
        assert not CacheNews().is_there()
    assert (sent, OwnSharedCache.asked) == ([], int(is_asked))
