"""Django's database layer on SQLite: spans, durations, and what must not change or leave."""

import dataclasses
import sqlite3
import threading
import time
import types

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import DatabaseError, IntegrityError, connection, connections, models, transaction
from django.db.models import Q, Value
from django.db.models.expressions import RawSQL
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

from django_otel import conf, runtime, span
from django_otel.base import guard
from django_otel.instrumentation import database, query_outcome
from django_otel.instrumentation.database import QueryWrapper
from django_otel.testing import override_sampling
from django_otel.tracing.tracer import Tracer
from tests import services
from tests.app.models import Item

DURATION = "db.client.operation.duration"
SECRET = "hunter2"

pytestmark = pytest.mark.django_db


def our_wrappers(of=connection):
    return [wrapper for wrapper in of.execute_wrappers if isinstance(wrapper, QueryWrapper)]


def client_spans(spans):
    return [found for found in spans if found.kind is SpanKind.CLIENT]


def selects(metrics):
    """What we counted of SELECTs: savepoints around a test are counted too, and so do instrumentors."""
    return metrics.value(DURATION, {"db.operation.name": "SELECT", "django.db.alias": "default"})


def everything_told(spans):
    """Every text of every span, as an exporter would see it."""
    return " ".join(
        f"{found.name} {dict(found.attributes)} {found.status.description} "
        f"{[(event.name, dict(event.attributes)) for event in found.events]}"
        for found in spans
    )


# --- Spans. ---


@override_settings(OTEL={"DATABASE": {"SOURCE_OVER_S": 60}})
def test_a_query_inside_a_span_makes_one_client_span_with_stable_attributes(otel_spans):
    """Name, kind, parent and every attribute are those of the semantic conventions."""
    with span("parent"):
        list(Item.objects.filter(price_cents=7))
    query = otel_spans.one("SELECT app_item")
    parent = otel_spans.one("parent")
    assert len(otel_spans) == 2
    assert query.kind is SpanKind.CLIENT
    assert query.parent.span_id == parent.context.span_id
    assert query.status.status_code is StatusCode.UNSET
    assert dict(query.attributes) == {
        "db.system.name": "sqlite",
        "db.namespace": ":memory:",
        "django.db.alias": "default",
        "db.operation.name": "SELECT",
        "db.collection.name": "app_item",
        "db.query.summary": "SELECT app_item",
        "db.query.text": 'SELECT "app_item"."id", "app_item"."name", "app_item"."price_cents" FROM "app_item" '
        'WHERE "app_item"."price_cents" = %s',
    }


def test_a_query_outside_any_span_is_counted_and_makes_no_trace(otel_spans, otel_metrics):
    """A trace of a single span for every query of a command would flood the backend."""
    Item.objects.count()
    assert len(otel_spans) == 0
    assert selects(otel_metrics).count == 1


def test_a_query_of_an_unsampled_trace_is_counted_and_builds_nothing(otel_spans, otel_metrics, monkeypatch):
    """What costs is not even begun."""
    begun = []
    with override_sampling(0.0), span("parent"):
        monkeypatch.setattr(Tracer, "start_span", lambda *args, **kwargs: begun.append(args))
        Item.objects.count()
        Item.objects.count()
    assert begun == []
    assert len(otel_spans) == 0
    assert selects(otel_metrics).count == 2


def test_the_path_of_a_known_query_looks_nothing_up(otel_metrics, monkeypatch):
    """Series and statements are kept: the second query makes no label set and reads no SQL."""
    from django_otel.metrics import instruments
    from django_otel.redaction import statements

    Item.objects.count()
    before = statements._remembered.cache_info()
    made = []
    original = instruments.build_attributes
    monkeypatch.setattr(instruments, "build_attributes", lambda *args: made.append(args) or original(*args))
    Item.objects.count()
    after = statements._remembered.cache_info()
    assert made == []
    assert after == before
    assert selects(otel_metrics).count == 2


def test_every_query_of_nested_atomic_blocks_has_its_span(otel_spans):
    """Savepoints are queries too, under names that do not vary."""
    with span("parent"), transaction.atomic(), transaction.atomic():
        Item.objects.create(name="a")
    assert [found.name for found in otel_spans] == [
        "SAVEPOINT",
        "SAVEPOINT",
        "INSERT app_item",
        "RELEASE",
        "RELEASE",
        "parent",
    ]
    texts = [found.attributes["db.query.text"] for found in otel_spans.named("SAVEPOINT")]
    assert texts == ["SAVEPOINT ?"] * 2


def test_a_span_made_while_the_query_runs_is_its_child_and_the_parent_is_current_again(otel_spans):
    """Another execute wrapper runs inside our span."""
    seen = []

    def wrapper(execute, *args):
        with span("inside"):
            return execute(*args)

    with span("parent") as parent:
        with connection.execute_wrapper(wrapper):
            Item.objects.count()
        seen.append(get_current_span() is parent or get_current_span().get_span_context())
    assert otel_spans.tree() == [("parent", [("SELECT app_item", [("inside", [])])])]
    assert seen[0] is True or seen[0].span_id == otel_spans.one("parent").context.span_id


def test_executemany_is_one_batch_with_its_size(otel_spans, otel_metrics):
    """Semantic conventions: BATCH from two rows on; one row is a single operation."""
    sql = "INSERT INTO app_item (name, price_cents) VALUES (%s, 1)"
    with span("parent"), connection.cursor() as cursor:
        cursor.executemany(sql, [("a",), ("b",), ("c",)])
        cursor.executemany(sql, [("d",)])
        cursor.executemany(sql, (row for row in [("e",), ("f",)]))
    three, one, unknown, _ = otel_spans
    assert (three.name, three.attributes["db.operation.batch.size"]) == ("BATCH INSERT app_item", 3)
    assert three.attributes["db.operation.name"] == "BATCH INSERT"
    assert three.attributes["db.query.summary"] == "BATCH INSERT app_item"
    assert one.name == "INSERT app_item"
    assert "db.operation.batch.size" not in one.attributes
    assert unknown.name == "BATCH INSERT app_item"
    assert "db.operation.batch.size" not in unknown.attributes
    assert Item.objects.count() == 6
    assert otel_metrics.value(DURATION, {"db.operation.name": "BATCH INSERT"}).count == 2


def test_an_iterator_is_one_query_and_yields_every_row(otel_spans):
    """Fetching in chunks is not counted as queries."""
    Item.objects.bulk_create([Item(name=str(number)) for number in range(30)])
    with span("parent"):
        assert len(list(Item.objects.iterator(chunk_size=7))) == 30
    assert len(client_spans(otel_spans)) == 1


def test_several_rows_and_long_lists_are_one_statement(otel_spans):
    """The text does not vary with how many rows or ids there are."""
    with span("parent"):
        Item.objects.bulk_create([Item(name=str(number)) for number in range(3)])
        Item.objects.bulk_create([Item(name=str(number)) for number in range(3, 20)])
        list(Item.objects.filter(price_cents__in=[1, 2, 3]))
        list(Item.objects.filter(price_cents__in=range(50)))
    inserts = {found.attributes["db.query.text"] for found in otel_spans.named("INSERT app_item")}
    lists = {found.attributes["db.query.text"] for found in otel_spans.named("SELECT app_item")}
    assert len(inserts) == 1
    assert len(lists) == 1
    assert lists.pop().endswith("IN (%s)")


@pytest.mark.django_db(transaction=True)
def test_async_queries_are_children_of_the_span_around_them(otel_spans):
    """The context goes with sync_to_async into the thread that queries."""
    import asyncio

    async def work():
        with span("parent"):
            await Item.objects.acreate(name="a")
            assert (await Item.objects.aget(name="a")).name == "a"
            assert [found.name async for found in Item.objects.all()] == ["a"]
            await sync_to_async(Item.objects.count)()

    asyncio.run(work())
    parent = otel_spans.one("parent")
    queries = client_spans(otel_spans)
    assert [found.name for found in queries if found.name != "SAVEPOINT"] == [
        "INSERT app_item",
        *["SELECT app_item"] * 3,
    ]
    assert {found.parent.span_id for found in queries} == {parent.context.span_id}


# --- No literal leaves. ---


@pytest.mark.parametrize(
    "query",
    [
        pytest.param(
            lambda: list(Item.objects.raw(f"SELECT id, name FROM app_item WHERE name = '{SECRET}'")), id="raw"
        ),
        pytest.param(
            lambda: list(Item.objects.raw(f'SELECT id, name FROM app_item WHERE name = "{SECRET}"')),
            id="raw_double_quotes",
        ),
        pytest.param(
            lambda: list(Item.objects.raw(f"SELECT id, name, 1 AS x FROM app_item -- {SECRET}")), id="line_comment"
        ),
        pytest.param(
            lambda: list(Item.objects.raw(f"SELECT id /* {SECRET} */, name FROM app_item")), id="block_comment"
        ),
        pytest.param(lambda: list(Item.objects.extra(where=[f"name = '{SECRET}'"])), id="extra_where"),
        pytest.param(lambda: list(Item.objects.extra(select={"x": f"'{SECRET}' || name"})), id="extra_select"),
        pytest.param(lambda: list(Item.objects.annotate(x=Value(SECRET), y=RawSQL(f"'{SECRET}'", ()))), id="value"),
        pytest.param(lambda: list(Item.objects.filter(Q(name=SECRET) | Q(name__icontains=SECRET))), id="filter"),
        pytest.param(
            lambda: list(Item.objects.order_by(models.Case(models.When(name=SECRET, then=Value(SECRET))))), id="case"
        ),
        pytest.param(lambda: Item.objects.update(name=RawSQL(f"'{SECRET}'", ())), id="update"),
        pytest.param(lambda: Item.objects.filter(name__regex=SECRET).exists(), id="exists"),
        pytest.param(
            lambda: connection.cursor().execute(f"SELECT '{SECRET}', x'{SECRET.encode().hex()}'"), id="cursor"
        ),
        pytest.param(lambda: User.objects.create_user("someone", f"{SECRET}@example.com", SECRET), id="create_user"),
    ],
)
def test_no_literal_of_a_query_is_told(query, otel_spans):
    """Whether the ORM passes a value as a parameter or it was written into the SQL."""
    with span("parent"):
        query()
    assert client_spans(otel_spans)
    assert SECRET not in everything_told(otel_spans)
    assert SECRET.encode().hex() not in everything_told(otel_spans)


def test_an_error_tells_its_type_and_code_and_none_of_its_values(otel_spans, otel_metrics):
    """SQLite's message names columns, PostgreSQL's the values; neither is taken over."""
    Item.objects.create(name=SECRET)
    with span("parent"), pytest.raises(IntegrityError), transaction.atomic():
        Item.objects.create(name=SECRET)
    failed = otel_spans.one("INSERT app_item")
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description == "django.db.utils.IntegrityError"
    assert failed.attributes["error.type"] == "django.db.utils.IntegrityError"
    assert failed.attributes["db.response.status_code"] == "SQLITE_CONSTRAINT_UNIQUE"
    assert failed.events == ()
    assert SECRET not in everything_told(otel_spans)
    errors = otel_metrics.value(DURATION, {"error.type": "django.db.utils.IntegrityError"})
    assert errors.count == 1


def test_sql_that_the_database_rejects_is_not_told_either(otel_spans):
    """A syntax error often is a literal that was not ended."""
    with span("parent"), pytest.raises(DatabaseError), transaction.atomic():
        connection.cursor().execute(f"SELECT 'a', 'x {SECRET}")
    assert SECRET not in everything_told(otel_spans)
    assert otel_spans.one("SELECT").attributes["db.query.text"] == "SELECT ?, ?"


# --- Metrics. ---


def test_the_metric_has_exactly_the_documented_attributes(otel_metrics):
    """Nothing else becomes a label: no table, no statement, no server."""
    Item.objects.count()
    with pytest.raises(DatabaseError), transaction.atomic():
        connection.cursor().execute("SELEKT 1")
    base = {"db.system.name": "sqlite", "db.namespace": ":memory:", "django.db.alias": "default"}
    series = otel_metrics.series(DURATION)
    assert {**base, "db.operation.name": "SELECT"} in series
    assert {**base, "db.operation.name": "OTHER", "error.type": "django.db.utils.OperationalError"} in series
    assert {key for found in series for key in found} == {
        *base,
        "db.operation.name",
        "error.type",
    }


def test_durations_are_seconds(otel_metrics):
    """A query that sleeps 20 ms counts that, and no more than the call takes."""
    connection.ensure_connection()
    connection.connection.create_function("nap", 0, lambda: __import__("time").sleep(0.02))
    begun_s = time.perf_counter()
    connection.cursor().execute("SELECT nap()")
    lasted_s = time.perf_counter() - begun_s
    measured = otel_metrics.value(DURATION, {"db.operation.name": "SELECT"})
    assert measured.count == 1
    assert 0.01 < measured.sum <= lasted_s


def test_a_sampled_query_leaves_an_exemplar(otel_spans):
    """Its ids are those of the query's own span; METRICS.EXEMPLARS off leaves none."""

    def span_ids():
        families = [family for family in runtime.store.collect() if family.name == DURATION]
        return {exemplar.span_id for family in families for point in family.points for exemplar in point.exemplars}

    # What earlier tests have shown in this moment would leave no room for it.
    runtime.store.exemplars.clear()
    with span("parent"):
        Item.objects.count()
    told = otel_spans.one("SELECT app_item").context.span_id
    assert told in span_ids()
    runtime.store.exemplars.clear()
    with override_settings(OTEL={"METRICS": {"EXEMPLARS": False}}), span("parent"):
        Item.objects.count()
    assert span_ids() == set()


@pytest.mark.django_db(databases=["default", "other"], transaction=True)
def test_connections_are_counted_when_they_open(otel_metrics):
    """Once for every opening, by alias."""
    other = connections["other"]
    other.close()
    assert otel_metrics.value("django.db.connections", {"django.db.alias": "other"}) == 0
    for _ in range(3):
        # An in-memory database of a test is kept open by Django, a copy of its connection is not.
        copy = other.copy()
        copy.ensure_connection()
        assert copy.execute_wrappers and isinstance(copy.execute_wrappers[0], QueryWrapper)
        services.close_for_good(copy)
    assert otel_metrics.value("django.db.connections", {"django.db.alias": "other"}) == 3


def test_a_request_counts_its_queries(client, otel_metrics):
    """`django.request.queries`, from the same wrapper."""
    assert client.get("/queries/").status_code == 200
    counted = otel_metrics.value("django.request.queries", {"http.route": "/queries/"})
    assert (counted.count, counted.sum) == (1, 2)


def test_a_query_that_fails_is_counted_and_a_batch_counts_once(rf):
    """As assertNumQueries counts."""
    from django.http import HttpResponse

    from django_otel.middleware import OTelMiddleware
    from django_otel.requests import record

    counts = []

    def view(request):
        with connection.cursor() as cursor:
            cursor.executemany("DELETE FROM app_item WHERE id = %s", [(1,), (2,)])
            counts.append(record.current().queries)
            with pytest.raises(DatabaseError), transaction.atomic():
                cursor.execute("SELEKT 1")
        counts.append(record.current().queries)
        return HttpResponse()

    OTelMiddleware(view)(rf.get("/hello/"))
    # The batch; then a savepoint, the failure, a rollback and a release.
    assert counts == [1, 5]


# --- What must not change. ---


def test_django_counts_the_same_queries_as_without_us(django_assert_num_queries, settings):
    """assertNumQueries, CaptureQueriesContext and connection.queries see the application's SQL, as it was."""
    with span("parent"):
        with django_assert_num_queries(2):
            Item.objects.count()
            list(Item.objects.filter(name="a"))
        with CaptureQueriesContext(connection) as captured:
            Item.objects.create(name="a")
        assert [query["sql"] for query in captured.captured_queries] == [
            'INSERT INTO "app_item" ("name", "price_cents") VALUES (\'a\', 0) RETURNING "app_item"."id"'
        ]
        settings.DEBUG = True
        before = len(connection.queries)
        Item.objects.count()
        assert len(connection.queries) == before + 1


def test_a_users_execute_wrapper_is_called_once_and_does_not_take_ours_away(otel_spans):
    """Also when the connection is opened inside of it, where an appended wrapper of ours would be popped."""
    called = []

    def wrapper(execute, *args):
        called.append(args[0])
        return execute(*args)

    copy = connections["default"].copy()
    with span("parent"):
        with copy.execute_wrapper(wrapper):
            assert not our_wrappers(copy)
            with copy.cursor() as cursor:
                cursor.execute("SELECT 1")
            assert copy.execute_wrappers[1:] == [wrapper]
        assert copy.execute_wrappers == our_wrappers(copy)
        with copy.cursor() as cursor:
            cursor.execute("SELECT 1")
        services.close_for_good(copy)
    assert called == ["SELECT 1"]
    # The first query of a connection looks for wrappers after it was opened.
    assert len(client_spans(otel_spans)) == 2


def test_a_hundred_reconnects_leave_one_wrapper(otel_spans):
    """At the front of the list, and each query still makes one span."""
    copy = connections["default"].copy()
    for _ in range(100):
        copy.ensure_connection()
        services.close_for_good(copy)
    assert copy.execute_wrappers == our_wrappers(copy)
    assert len(copy.execute_wrappers) == 1
    with span("parent"), copy.cursor() as cursor:
        cursor.execute("SELECT 1")
    services.close_for_good(copy)
    assert len(client_spans(otel_spans)) == 1


@pytest.mark.django_db(databases=["default", "other"], transaction=True)
def test_every_thread_has_a_wrapper_of_its_own(otel_spans, otel_metrics):
    """Threads have their own connections; a carried context makes their queries children."""
    import contextvars

    found = []

    def work():
        own = connections["other"]
        with own.cursor() as cursor:
            cursor.execute("SELECT 1")
        found.append(our_wrappers(own))
        services.close_for_good(own)

    with span("parent"):
        carried = [threading.Thread(target=contextvars.copy_context().run, args=(work,)) for _ in range(4)]
        for thread in carried:
            thread.start()
        for thread in carried:
            thread.join()
    alone = threading.Thread(target=work)
    alone.start()
    alone.join()
    assert [len(wrappers) for wrappers in found] == [1] * 5
    assert len({id(wrapper) for wrappers in found for wrapper in wrappers}) == 5
    parent = otel_spans.one("parent")
    assert [one.parent.span_id for one in client_spans(otel_spans)] == [parent.context.span_id] * 4
    assert otel_metrics.value(DURATION, {"django.db.alias": "other"}).count == 5


def test_an_exception_that_is_no_error_passes_and_leaves_nothing_current(otel_spans):
    """SystemExit, KeyboardInterrupt and the like are not the query's failure."""

    def wrapper(execute, *args):
        raise KeyboardInterrupt

    with span("parent") as parent:
        del parent
        current = get_current_span()
        with pytest.raises(KeyboardInterrupt), connection.execute_wrapper(wrapper):
            connection.cursor().execute("SELECT 1")
        assert get_current_span() is current
    stopped = otel_spans.one("SELECT")
    assert stopped.status.status_code is StatusCode.UNSET
    assert stopped.attributes["error.type"] == "KeyboardInterrupt"


@pytest.mark.parametrize("broken", ["parameterise", "with_span", "are_ready"])
def test_a_fault_of_ours_never_reaches_the_query(broken, monkeypatch, caplog):
    """It is logged once and counted; the query gives its result."""

    class Broken:
        def __call__(self, *args):
            raise RuntimeError("broken")

        current = __call__

    guard.reset()
    # Statements are known from other tests.
    database.install(conf.get_config())
    monkeypatch.setattr(database, broken, Broken())
    with span("parent"):
        Item.objects.create(name="a")
        assert Item.objects.count() == 1
    assert guard.fault_counts()["the database layer"] >= 2
    assert len([record for record in caplog.records if "the database layer" in record.getMessage()]) == 1
    guard.reset()


def test_the_original_exception_object_is_raised():
    """Telemetry adds nothing to the traceback's causes and keeps no reference to the error."""
    import gc
    import weakref

    class Mine(Exception):
        pass

    error = Mine()

    def wrapper(execute, *args):
        raise error  # noqa: F821 (deleted below)

    with span("parent"), connection.execute_wrapper(wrapper):
        try:
            connection.cursor().execute("SELECT 1")
        except Mine as caught:
            assert caught is error
            assert caught.__context__ is None
        else:
            pytest.fail("nothing was raised")
    reference = weakref.ref(error)
    gc.disable()
    try:
        error.__traceback__ = None
        del error
        # `wrapper` closes over it; without that reference it is gone at once.
        wrapper.__closure__[0].cell_contents = None
        assert reference() is None
    finally:
        gc.enable()


# --- Switches. ---


def test_statement_off_tells_no_text(otel_spans):
    """Operation and table are still recorded."""
    with override_settings(OTEL={"DATABASE": {"STATEMENT": "off"}}), span("parent"):
        Item.objects.count()
    query = otel_spans.one("SELECT app_item")
    assert "db.query.text" not in query.attributes
    assert query.attributes["db.collection.name"] == "app_item"


def test_spans_off_leaves_the_metric(otel_spans, otel_metrics):
    """DATABASE.SPANS."""
    with override_settings(OTEL={"DATABASE": {"SPANS": False}}), span("parent"):
        Item.objects.count()
    assert client_spans(otel_spans) == []
    assert selects(otel_metrics).count == 1


def test_metrics_off_leaves_the_span(otel_spans, otel_metrics):
    """DATABASE.METRICS."""
    with override_settings(OTEL={"DATABASE": {"METRICS": False}}), span("parent"):
        Item.objects.count()
        copy = connections["default"].copy()
        copy.ensure_connection()
        services.close_for_good(copy)
    assert len(client_spans(otel_spans)) == 1
    assert selects(otel_metrics).count == 0
    assert otel_metrics.value("django.db.connections") == 0


@pytest.mark.parametrize(
    "off", [{"ENABLED": False}, {"DATABASE": {"SPANS": False, "METRICS": False}}], ids=["enabled", "database"]
)
def test_off_takes_everything_out_and_on_puts_it_back(off, otel_spans, otel_metrics):
    """override_settings takes effect on open connections and is undone."""
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.backends.utils import CursorWrapper

    connection.ensure_connection()
    assert len(our_wrappers()) == 1
    with override_settings(OTEL=off):
        assert our_wrappers() == []
        assert CursorWrapper.callproc is database._plain_callproc
        assert BaseDatabaseWrapper.init_connection_state is database._plain_init_connection_state
        Item.objects.count()
        copy = connections["default"].copy()
        copy.ensure_connection()
        assert our_wrappers(copy) == []
        services.close_for_good(copy)
    assert selects(otel_metrics).count == 0
    assert len(our_wrappers()) == 1
    assert CursorWrapper.callproc is database._callproc
    with span("parent"):
        Item.objects.count()
    assert len(client_spans(otel_spans)) == 1
    assert selects(otel_metrics).count == 1


def test_a_wrapper_left_on_another_threads_connection_passes_queries_on(otel_spans, otel_metrics):
    """Uninstalling cannot reach other threads' lists; what stays there does nothing."""
    copy = connections["default"].copy()
    copy.ensure_connection()
    with override_settings(OTEL={"ENABLED": False}), copy.cursor() as cursor:
        assert len(our_wrappers(copy)) == 1
        assert cursor.execute("SELECT 41 + 1").fetchone() == (42,)
    assert selects(otel_metrics).count == 0
    with span("parent"), copy.cursor() as cursor:
        cursor.execute("SELECT 1")
    services.close_for_good(copy)
    assert len(client_spans(otel_spans)) == 1


def test_installing_and_uninstalling_twice_is_as_good_as_once(otel_spans):
    """Both are idempotent."""
    config = runtime.current().config
    connection.ensure_connection()
    for _ in range(2):
        database.install(config)
        assert len(our_wrappers()) == 1
    for _ in range(2):
        database.uninstall()
        assert our_wrappers() == []
    database.install(config)
    with span("parent"):
        Item.objects.count()
    assert len(client_spans(otel_spans)) == 1


def test_new_buckets_hold_for_connections_that_are_open(otel_metrics):
    """Series kept by the wrapper are forgotten when their instrument is made again."""
    Item.objects.count()
    with override_settings(OTEL={"METRICS": {"BUCKETS": {DURATION: [0.5, 1.0]}}}):
        Item.objects.count()
        measured = selects(otel_metrics)
        assert (measured.count, measured.bounds) == (1, (0.5, 1.0))
    otel_metrics.clear()
    Item.objects.count()
    assert selects(otel_metrics).count == 1


def test_suppressed_instrumentation_gives_neither_spans_nor_metrics(otel_spans, otel_metrics):
    """Our own polling, and other code that suppresses instrumentation."""
    with span("parent"), suppress_instrumentation():
        Item.objects.count()
        copy = connections["default"].copy()
        copy.ensure_connection()
        services.close_for_good(copy)
    assert client_spans(otel_spans) == []
    assert selects(otel_metrics).count == 0
    assert otel_metrics.value("django.db.connections") == 0


# --- One span per query, with the driver instrumented too. ---


@pytest.fixture
def instrumented_sqlite():
    """The official instrumentor of Python's sqlite3, recording into our provider."""
    instrumentor = SQLite3Instrumentor()
    instrumentor.instrument(tracer_provider=runtime.current().tracer_provider)
    yield
    instrumentor.uninstrument()


def test_the_driver_instrumented_too_makes_no_second_span(instrumented_sqlite, otel_spans):
    """Django's connection is taken out of the proxy; other users of sqlite3 keep their spans."""
    copy = connections["default"].copy()
    with span("parent"), copy.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.executemany("DELETE FROM app_item WHERE id = %s", [(1,), (2,)])
        assert type(copy.connection) is sqlite3.Connection
    services.close_for_good(copy)
    assert [found.instrumentation_scope.name for found in client_spans(otel_spans)] == ["django_otel"] * 2
    otel_spans.clear()
    plain = sqlite3.connect(":memory:")
    with span("parent"):
        plain.cursor().execute("SELECT 1")
    plain.close()
    assert [found.instrumentation_scope.name for found in client_spans(otel_spans)] == [
        "opentelemetry.instrumentation.sqlite3"
    ]


def test_the_driver_keeps_its_spans_while_ours_are_off(instrumented_sqlite, otel_spans):
    """DATABASE.SPANS off gives the connection back to its instrumentor."""
    with span("parent"), override_settings(OTEL={"DATABASE": {"SPANS": False}}):
        copy = connections["default"].copy()
        with copy.cursor() as cursor:
            cursor.execute("SELECT 1")
        assert type(copy.connection) is not sqlite3.Connection
        services.close_for_good(copy)
    assert [found.instrumentation_scope.name for found in client_spans(otel_spans)] == [
        "opentelemetry.instrumentation.sqlite3"
    ]


def test_a_connection_instrumented_behind_our_back_is_told_to_keep_silent(otel_spans):
    """`instrument_connection` after the connection was opened: suppressed, query by query."""
    copy = connections["default"].copy()
    copy.ensure_connection()
    copy.connection = SQLite3Instrumentor.instrument_connection(
        copy.connection, tracer_provider=runtime.current().tracer_provider
    )
    with span("parent"):
        with copy.cursor() as cursor:
            cursor.execute("SELECT 1")
        current = get_current_span()
    assert current.get_span_context() == otel_spans.one("parent").context
    with copy.cursor() as cursor:
        cursor.execute("SELECT 2")
    services.close_for_good(copy)
    assert [found.name for found in otel_spans] == ["SELECT", "parent"]


# --- What a connection leads to. ---


def stand_in(vendor, driver=None, **given):
    """A connection as far as `_describe` looks at it, for databases that are not here."""
    mysql = given.pop("mysql", None)
    made = types.SimpleNamespace(vendor=vendor, alias="default", connection=driver, settings_dict=given)
    if mysql:
        made.mysql_server_data = {"version": mysql}
        made.mysql_is_mariadb = "mariadb" in mysql.lower()
    return made


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (stand_in("sqlite", NAME="/srv/app/db.sqlite3"), {"db.system.name": "sqlite", "db.namespace": "db.sqlite3"}),
        (
            stand_in("sqlite", NAME="file:memorydb?mode=memory"),
            {"db.system.name": "sqlite", "db.namespace": ":memory:"},
        ),
        (
            stand_in("mysql", NAME="shop", HOST="db.example", PORT="3307", mysql="8.4.1"),
            {
                "db.system.name": "mysql",
                "db.namespace": "shop",
                "server.address": "db.example",
                "server.port": 3307,
            },
        ),
        (
            stand_in("mysql", NAME="shop", HOST="/run/mysqld.sock", mysql="10.11.2-MariaDB"),
            {"db.system.name": "mariadb", "db.namespace": "shop", "server.address": "/run/mysqld.sock"},
        ),
        (
            stand_in("oracle", NAME="db.example:1521/orclpdb1", HOST="", PORT=""),
            {"db.system.name": "oracle.db", "db.namespace": "orclpdb1"},
        ),
        (
            stand_in("oracle", NAME="(DESCRIPTION=(ADDRESS=(HOST=h)))", HOST="", PORT=""),
            {"db.system.name": "oracle.db"},
        ),
        (
            stand_in("microsoft", NAME="shop", HOST="mssql", PORT=1433),
            {
                "db.system.name": "microsoft.sql_server",
                "db.namespace": "shop",
                "server.address": "mssql",
                "server.port": 1433,
            },
        ),
        (stand_in("elsewhere", NAME="x"), {"db.system.name": "other_sql", "db.namespace": "x"}),
        (
            stand_in(
                "postgresql",
                types.SimpleNamespace(info=types.SimpleNamespace(dbname="real", host="second", port=5433)),
                NAME="",
                HOST="first,second",
                PORT="",
            ),
            {
                "db.system.name": "postgresql",
                "db.namespace": "real",
                "server.address": "second",
                "server.port": 5433,
            },
        ),
    ],
    ids=["file", "memory", "mysql", "mariadb", "oracle", "oracle_descriptor", "sql_server", "unknown", "postgresql"],
)
def test_a_connection_is_described_in_the_words_of_the_conventions(made, told):
    """System, namespace and server, without asking the database and without a local path."""
    assert database._describe(made) == {**told, "django.db.alias": "default"}


def test_a_mysql_connection_is_not_asked_whether_it_is_mariadb():
    """The answer costs a query, which assertNumQueries would count."""

    class Asked:
        vendor, alias, connection, settings_dict = "mysql", "default", None, {"NAME": "shop"}

        @property
        def mysql_is_mariadb(self):
            raise AssertionError("asked")

    assert database._describe(Asked())["db.system.name"] == "mysql"


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (types.SimpleNamespace(sqlstate="23505", args=()), "23505"),
        (types.SimpleNamespace(pgcode="40001", args=()), "40001"),
        (types.SimpleNamespace(sqlite_errorname="SQLITE_BUSY", args=("x",)), "SQLITE_BUSY"),
        (types.SimpleNamespace(args=(1062, f"Duplicate entry '{SECRET}'")), "1062"),
        (types.SimpleNamespace(args=(types.SimpleNamespace(full_code="ORA-00001"),)), "ORA-00001"),
        (types.SimpleNamespace(args=(f"free text {SECRET}",)), None),
        (types.SimpleNamespace(args=()), None),
    ],
    ids=["psycopg", "psycopg2", "sqlite", "mysql", "oracle", "text", "nothing"],
)
def test_the_databases_own_code_is_told_and_never_its_words(cause, code):
    """What each driver calls it."""
    assert query_outcome.status_code(types.SimpleNamespace(__cause__=cause)) == code


@pytest.mark.django_db(transaction=True)
def test_schema_changes_are_told_by_their_table(otel_spans):
    """DDL passes the same way."""
    with span("parent"):
        with connection.schema_editor() as editor:
            editor.execute("CREATE TABLE scratch (a integer DEFAULT 5)")
            editor.execute("CREATE INDEX scratch_a ON scratch (a)")
            editor.execute("DROP TABLE scratch")
    names = [found.name for found in client_spans(otel_spans)]
    assert [name for name in names if name.endswith(" scratch")] == ["CREATE scratch", "CREATE scratch", "DROP scratch"]


@pytest.mark.django_db(databases=["default", "other"])
def test_commands_and_checks_run_as_before():
    """No query of ours, no warning."""
    call_command("check")
    assert dataclasses.is_dataclass(runtime.current().config)


def test_what_is_remembered_of_queries_stays_bounded(monkeypatch):
    """Values written into the SQL make every text another one."""
    monkeypatch.setattr(database, "_MAX_QUERIES_KEPT", 10)
    database.install(conf.get_config())
    (wrapper,) = our_wrappers()
    with connection.cursor() as cursor:
        for number in range(25):
            cursor.execute(f"SELECT {number}")
            assert cursor.fetchone() == (number,)
            assert len(wrapper._queries) <= 10
    assert wrapper._queries
