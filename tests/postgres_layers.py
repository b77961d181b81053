"""Transactions, pools, COPY, fetches and comments on a real PostgreSQL; run by `test_database_postgres`."""

import asyncio
import contextlib
import io
import threading

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, IntegrityError, OperationalError, connection, connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.test import override_settings
from opentelemetry.trace import StatusCode

from django_otel import span
from django_otel.requests import layers, record
from tests import services
from tests.app.models import Item

DURATION = "django.db.transaction.duration"
OPERATIONS = "db.client.operation.duration"
SECRET = "hunter2"

pytestmark = pytest.mark.django_db(transaction=True)


def outcomes(metrics):
    found = (metrics.value(DURATION, {"django.transaction.outcome": name}) for name in ("committed", "rolled_back"))
    return tuple(value.count if value else 0 for value in found)


def operations(metrics, name, **attributes):
    found = metrics.value(OPERATIONS, {"db.operation.name": name, **attributes})
    return found.count if found else 0


@pytest.fixture
def copy():
    made = connections["default"].copy()
    yield made
    made.close()


# --- Transactions. ---


def test_a_commit_that_postgresql_answers_with_rollback_is_one(otel_metrics):
    """An error that the project has swallowed: COMMIT raises nothing."""
    with transaction.atomic():
        Item.objects.create(name="a")
        with contextlib.suppress(DatabaseError):
            connection.cursor().execute("SELEKT")
    assert outcomes(otel_metrics) == (0, 1)
    assert not Item.objects.exists()


@override_settings(OTEL={"DATABASE": {"TRANSACTIONS": True}})
def test_the_server_ends_the_connection_in_the_middle(otel_metrics, otel_spans, copy):
    with span("parent"), pytest.raises(OperationalError), transaction.atomic():
        Item.objects.create(name="a")
        copy.cursor().execute("SELECT pg_terminate_backend(%s)", [connection.connection.info.backend_pid])
        Item.objects.create(name="b")
    assert outcomes(otel_metrics) == (0, 1)
    found = otel_spans.one("transaction default")
    assert found.status.status_code is StatusCode.ERROR
    assert found.attributes["error.type"] == "django.db.utils.OperationalError"
    connection.close()
    with transaction.atomic():
        Item.objects.create(name="a")
    assert outcomes(otel_metrics) == (1, 1)


def test_a_deferred_constraint_fails_the_commit(otel_metrics):
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE child (item bigint REFERENCES app_item DEFERRABLE INITIALLY DEFERRED)")
    try:
        with pytest.raises(DatabaseError), transaction.atomic():
            connection.cursor().execute("INSERT INTO child VALUES (99)")
        assert outcomes(otel_metrics) == (0, 1)
        assert operations(otel_metrics, "COMMIT", **{"error.type": "django.db.utils.IntegrityError"}) == 1
        transaction.set_autocommit(False)
        connection.cursor().execute("INSERT INTO child VALUES (99)")
        with pytest.raises(DatabaseError):
            transaction.commit()
        assert outcomes(otel_metrics) == (0, 2)
        transaction.set_autocommit(True)
    finally:
        connection.cursor().execute("DROP TABLE child")


# --- Rows, fetches and COPY. ---


def test_a_span_says_how_many_rows_came(otel_spans):
    Item.objects.bulk_create([Item(name=str(number)) for number in range(5)])
    with span("parent"):
        assert len(Item.objects.all()) == 5
        assert not Item.objects.filter(name="none")
        Item.objects.create(name="more")
    assert [found.attributes["db.response.returned_rows"] for found in otel_spans.named("SELECT app_item")] == [5, 0]
    assert "db.response.returned_rows" not in otel_spans.one("INSERT app_item").attributes


@override_settings(OTEL={"DATABASE": {"SOURCE_OVER_S": 60}})
def test_the_fetches_of_an_iterator_are_timed(otel_spans, otel_metrics):
    Item.objects.bulk_create([Item(name=str(number)) for number in range(30)])
    with span("parent"):
        assert len(list(Item.objects.iterator(chunk_size=10))) == 30
    # Three full ones, and the one that finds nothing more.
    assert operations(otel_metrics, "FETCH") == 4
    assert [found.name for found in otel_spans] == ["SELECT app_item", "parent"]
    otel_spans.clear()
    with override_settings(OTEL={"DATABASE": {"SOURCE_OVER_S": 0}}), span("parent"):
        list(Item.objects.iterator(chunk_size=20))
    fetches = otel_spans.named("FETCH")
    assert [found.attributes["db.response.returned_rows"] for found in fetches] == [20, 10, 0][: len(fetches)]
    assert {found.attributes["code.file.path"] for found in fetches} == {__file__}


@override_settings(OTEL={"DATABASE": {"SOURCE_OVER_S": 0}})
def test_a_server_side_cursor_that_is_iterated_is_timed(otel_spans, otel_metrics):
    Item.objects.bulk_create([Item(name=str(number)) for number in range(25)])
    with span("parent"), transaction.atomic(), connection.chunked_cursor() as cursor:
        cursor.execute("SELECT name FROM app_item ORDER BY id")
        cursor.cursor.itersize = 10
        rows = iter(cursor)
        assert next(rows) == ("0",)
        # In the middle of a fetch: those that the server has not sent yet.
        assert cursor.fetchone() == ("10",)
        assert [name for (name,) in rows] == [str(number) for number in range(1, 25) if number != 10]
        assert list(cursor) == []
    # Of 10, 1, 10, 4 and 0 rows.
    assert [found.attributes["db.response.returned_rows"] for found in otel_spans.named("FETCH")] == [10, 1, 10, 4, 0]
    assert operations(otel_metrics, "FETCH") == 5


def test_an_error_while_a_server_side_cursor_is_iterated_is_djangos(otel_metrics):
    """It comes with the row that has it."""
    with pytest.raises(DatabaseError), transaction.atomic(), connection.chunked_cursor() as cursor:
        cursor.execute("SELECT 1 / (3 - number) FROM generate_series(1, 5) AS number")
        cursor.cursor.itersize = 1
        assert [next(iter(cursor)) for _ in range(2)] == [(0,), (1,)]
        list(cursor)
    failed = {"error.type": "django.db.utils.DataError"}
    assert operations(otel_metrics, "FETCH", **failed) == 1


def test_async_code_is_measured_as_other_code_is(otel_spans, otel_metrics):
    def copy_in():
        with connection.cursor() as cursor:
            load(cursor, "a\t1\nb\t2\nc\t3\n")

    async def work():
        with span("parent"):
            await sync_to_async(copy_in)()
            found = [item async for item in Item.objects.aiterator(chunk_size=2)]
            with pytest.raises(IntegrityError):
                await Item.objects.acreate(pk=found[0].pk, name="again")
            await sync_to_async(connections.close_all)()
        return found

    assert len(asyncio.run(work())) == 3
    parent = otel_spans.one("parent").context.span_id
    assert [found.name for found in otel_spans if found.parent and found.parent.span_id == parent] == [
        "COPY app_item",
        "SELECT app_item",
        "INSERT app_item",
    ]
    assert otel_spans.one("INSERT app_item").attributes["db.response.status_code"] == "23505"
    assert operations(otel_metrics, "COPY") == 1
    # Of two rows, one and none.
    assert operations(otel_metrics, "FETCH") == 3
    assert operations(otel_metrics, "INSERT", **{"error.type": "django.db.utils.IntegrityError"}) == 1


def test_off_leaves_the_cursor_alone():
    from django.db.backends.postgresql.base import DatabaseWrapper
    from django.db.backends.utils import CursorWrapper

    with override_settings(OTEL={"DATABASE": {"METRICS": False, "SPANS": False}}):
        assert "copy" not in vars(CursorWrapper)
        with transaction.atomic(), connection.chunked_cursor() as cursor:
            assert type(cursor) is CursorWrapper
        assert "django_otel" not in DatabaseWrapper.chunked_cursor.__code__.co_filename
        assert len(list(Item.objects.iterator())) == 0


def load(cursor, text, sql="COPY app_item (name, price_cents) FROM STDIN"):
    if is_psycopg3:
        with cursor.copy(sql) as copy:
            copy.write(text)
    else:
        cursor.copy_expert(sql, io.StringIO(text))


def dump(cursor, sql):
    if is_psycopg3:
        with cursor.copy(sql) as copy:
            return b"".join(bytes(part) for part in copy).decode()
    into = io.StringIO()
    cursor.copy_expert(sql, into)
    return into.getvalue()


def test_copy_is_a_query_with_its_whole_time(otel_spans, otel_metrics):
    with span("parent"), connection.cursor() as cursor:
        load(cursor, f"{SECRET}\t1\nb\t2\n")
        assert dump(cursor, f"COPY (SELECT name FROM app_item WHERE name = '{SECRET}') TO STDOUT") == f"{SECRET}\n"
    assert Item.objects.count() == 2
    inward, outward = otel_spans.named("COPY app_item")
    assert inward.attributes["db.query.text"] == "COPY app_item (name, price_cents) FROM STDIN"
    assert inward.attributes["db.collection.name"] == "app_item"
    assert inward.parent.span_id == otel_spans.one("parent").context.span_id
    assert SECRET not in f"{outward.attributes}"
    assert operations(otel_metrics, "COPY") == 2


@pytest.mark.parametrize("ends", ["well", "in an error"])
def test_the_projects_code_during_a_copy_is_no_time_of_the_database(client, settings, ends):
    """Of psycopg2 the whole COPY is one call."""
    from django.http import HttpResponse
    from django.urls import path

    def now():
        opened = record.current().layers
        return opened.active, opened.open[layers.DATABASE]

    def work(request):
        with contextlib.suppress(ZeroDivisionError), connection.cursor() as cursor:
            if not is_psycopg3:
                cursor.copy_expert("COPY app_item (name, price_cents) FROM STDIN", io.StringIO("a\t1\n"))
                seen.append(now())
                return HttpResponse("")
            with cursor.copy("COPY app_item (name, price_cents) FROM STDIN") as copy:
                copy.write_row(("a", 1))
                seen.append(now())
                copy.write("b\t2\n")
                seen.append(now())
                if ends == "in an error":
                    1 / 0
            assert "write" not in vars(copy)
            with cursor.copy("COPY app_item (name) TO STDOUT") as copy:
                assert {row for row in copy.rows() if not seen.append(now())} == {("a",), ("b",)}
        seen.append(now())
        return HttpResponse("")

    class Urls:
        urlpatterns = [path("work/", work)]

    seen = []
    settings.ROOT_URLCONF = Urls
    assert client.get("/work/").status_code == 200
    assert set(seen) == {(0, 0)}
    assert len(seen) == (1 if not is_psycopg3 else 5 if ends == "well" else 3)


def test_a_copy_that_fails_has_the_databases_code(otel_spans, otel_metrics):
    with span("parent"), pytest.raises(Exception, match="(?i)invalid input"), connection.cursor() as cursor:
        load(cursor, f"a\t{SECRET}\n")
    found = otel_spans.one("COPY app_item")
    assert found.status.status_code is StatusCode.ERROR
    assert found.attributes["db.response.status_code"] == "22P02"
    assert SECRET not in f"{found.attributes} {found.status.description} {found.events}"
    with span("missing"), pytest.raises(Exception, match="missing_table"), connection.cursor() as cursor:
        load(cursor, "", "COPY missing_table FROM STDIN")
    assert otel_spans.one("COPY missing_table").attributes["db.response.status_code"] == "42P01"


@pytest.mark.skipif(is_psycopg3, reason="methods of psycopg2")
def test_the_short_forms_of_psycopg2_are_measured_too(otel_spans):
    with span("parent"), connection.cursor() as cursor:
        cursor.copy_from(io.StringIO("a\t1\n"), "app_item", columns=("name", "price_cents"))
        into = io.StringIO()
        cursor.copy_to(into, "app_item", columns=("name",))
    assert into.getvalue() == "a\n"
    assert len(otel_spans.named("COPY app_item")) == 2


@pytest.mark.skipif(not is_psycopg3, reason="a method of psycopg 3")
def test_a_stream_is_a_query_with_its_rows(otel_spans, otel_metrics):
    sql = "SELECT 10 / (4 - number) FROM generate_series(1, %s) AS number"
    with span("parent"), connection.cursor() as cursor:
        assert list(cursor.stream(sql, [3])) == [(3,), (5,), (10,)]
        rows = cursor.stream(query=sql, params=[3])
        assert next(rows) == (3,)
        rows.close()
        with pytest.raises(Exception, match="division by zero"):
            list(cursor.stream(sql, [9]))
    whole, left, failed = otel_spans.named("SELECT generate_series")
    assert [found.attributes["db.response.returned_rows"] for found in (whole, left)] == [3, 1]
    assert [found.status.status_code for found in (whole, left, failed)] == [
        StatusCode.UNSET, StatusCode.UNSET, StatusCode.ERROR,
    ]  # fmt: skip
    assert failed.attributes["db.response.status_code"] == "22012"
    assert whole.attributes["db.query.text"].startswith("SELECT ? / (? - number)")
    assert operations(otel_metrics, "SELECT") == 3


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_a_cursor_has_only_what_its_driver_has():
    with connection.cursor() as cursor:
        assert hasattr(cursor, "copy") == hasattr(cursor, "stream") == is_psycopg3
        assert hasattr(cursor, "copy_expert") == (not is_psycopg3)
    with connections["other"].cursor() as cursor:
        assert not hasattr(cursor, "copy") and not hasattr(cursor, "copy_expert")


# --- Comments. ---


def test_the_server_sees_the_comment(client, settings, otel_spans):
    from django.http import HttpResponse
    from django.urls import path

    def ask(request):
        with connection.cursor() as cursor:
            cursor.execute("SELECT query, %s FROM pg_stat_activity WHERE pid = pg_backend_pid()", ["100%"])
            query, value = cursor.fetchone()
            assert value == "100%"
            return HttpResponse(query)

    class Urls:
        urlpatterns = [path("ask/", ask)]

    settings.ROOT_URLCONF = Urls
    settings.OTEL = {"DATABASE": {"COMMENTS": ["route", "traceparent"]}}
    text = client.get("/ask/").content.decode()
    query = otel_spans.one("SELECT pg_stat_activity")
    parent = f"00-{query.context.trace_id:032x}-{query.context.span_id:016x}-01"
    assert text.endswith(f"/*route='%2Fask%2F',traceparent='{parent}'*/")
    assert "/*" not in query.attributes["db.query.text"]


# --- Pools. ---


def gauges(metrics):
    def value(name, **attributes):
        return metrics.value(name, {"django.db.alias": "pooled", **attributes})

    return (
        value("django.db.pool.connections", state="idle"),
        value("django.db.pool.connections", state="used"),
        value("django.db.pool.waiting"),
    )


@pytest.fixture
def pooled():
    """A function that gives connections of a pool with at most two."""
    made = []

    def connect():
        copy = connections["default"].copy("pooled")
        options = {**copy.settings_dict["OPTIONS"], "pool": {"min_size": 1, "max_size": 2, "timeout": 60}}
        copy.settings_dict = {**copy.settings_dict, "OPTIONS": options, "CONN_MAX_AGE": 0}
        copy.inc_thread_sharing()
        made.append(copy)
        return copy

    yield connect
    for copy in made:
        copy.close()
    made[0].close_pool()


@pytest.mark.skipif(not is_psycopg3, reason="pools are of psycopg 3")
def test_a_pool_shows_its_size_use_and_queue(pooled, otel_metrics):
    first, second, third = pooled(), pooled(), pooled()
    first.ensure_connection()
    second.ensure_connection()
    assert gauges(otel_metrics) == (0, 2, 0)
    thread = threading.Thread(target=third.ensure_connection)
    thread.start()
    services.wait_until(lambda: gauges(otel_metrics) == (0, 2, 1), what="a request that waits")
    first.close()
    thread.join()
    services.wait_until(lambda: gauges(otel_metrics) == (0, 2, 0), what="its end")
    second.close()
    third.close()
    services.wait_until(lambda: gauges(otel_metrics) == (2, 0, 0), what="an idle pool")
    first.close_pool()
    assert gauges(otel_metrics) == (0, 0, 0)


@pytest.mark.skipif(not is_psycopg3, reason="pools are of psycopg 3")
def test_the_figures_of_a_busy_pool_are_exact_at_its_end(pooled, otel_metrics):
    """Many threads want one of two connections, commit and give it back, again and again."""
    connects = [pooled() for _ in range(12)]

    def work(own):
        for _ in range(10):
            connections["pooled"] = own
            with transaction.atomic(using="pooled"):
                own.cursor().execute("SELECT 1")
            own.close()

    threads = [threading.Thread(target=work, args=(own,)) for own in connects]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    services.wait_until(lambda: gauges(otel_metrics) == (2, 0, 0), what="an idle pool")
    found = otel_metrics.value(DURATION, {"django.db.alias": "pooled", "django.transaction.outcome": "committed"})
    assert found.count == 120
    assert otel_metrics.value("django.db.connections", {"django.db.alias": "pooled"}) == 120


@pytest.mark.skipif(not is_psycopg3, reason="pools are of psycopg 3")
def test_a_pool_that_has_no_connection_left_is_an_error_of_its_own(pooled, otel_metrics):
    first, second, third = pooled(), pooled(), pooled()
    first.ensure_connection()
    second.ensure_connection()
    first.pool.timeout = 0.05
    with pytest.raises(OperationalError):
        third.ensure_connection()
    attributes = {"django.db.alias": "pooled", "error.type": "psycopg_pool.PoolTimeout"}
    assert otel_metrics.value("django.db.connection.errors", attributes) == 1
    assert gauges(otel_metrics) == (0, 2, 0)


def test_a_refused_connection_is_counted(copy, otel_metrics):
    copy.settings_dict = {**copy.settings_dict, "NAME": "no_such_database"}
    with pytest.raises(OperationalError):
        copy.ensure_connection()
    attributes = {"django.db.alias": "default", "error.type": "django.db.utils.OperationalError"}
    assert otel_metrics.value("django.db.connection.errors", attributes) == 1
