"""The database layer on a real PostgreSQL; run by `test_database_postgres`, once with each driver.

Not collected by itself: it needs TEST_DATABASE_URL, and the driver hidden that is not meant.
"""

import asyncio
import os
import threading

import pytest
from asgiref.sync import sync_to_async
from django.db import DataError, IntegrityError, OperationalError, connection, connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3, sql
from django.test import override_settings
from opentelemetry.trace import SpanKind, StatusCode

from django_otel import runtime, span
from django_otel.instrumentation.database import QueryWrapper
from tests.app.models import Item
from tests.relations.models import Author, Book, Tag

DURATION = "db.client.operation.duration"
SECRET = "hunter2"

if is_psycopg3:
    from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor as Instrumentor
else:
    from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor as Instrumentor

pytestmark = pytest.mark.django_db


def client_spans(spans):
    return [found for found in spans if found.kind is SpanKind.CLIENT]


def scopes(spans):
    return [found.instrumentation_scope.name for found in client_spans(spans)]


def everything_told(spans):
    return " ".join(
        f"{found.name} {dict(found.attributes)} {found.status.description} "
        f"{[(event.name, dict(event.attributes)) for event in found.events]}"
        for found in client_spans(spans)
    )


@pytest.fixture
def copy():
    """A connection of its own to the test database, outside of the test's transaction."""
    made = connections["default"].copy()
    yield made
    made.close()


@pytest.fixture
def instrumented():
    """The official instrumentor of the driver in use, recording into our provider."""
    instrumentor = Instrumentor()
    was_on = instrumentor.is_instrumented_by_opentelemetry
    if was_on:
        instrumentor.uninstrument()
    instrumentor.instrument(tracer_provider=runtime.current().tracer_provider)
    yield
    instrumentor.uninstrument()
    if was_on:
        instrumentor.instrument()


def test_the_driver_is_the_one_that_is_meant():
    """Django prefers psycopg 3 where both are installed."""
    assert connection.vendor == "postgresql"
    assert connection.Database.__name__ == os.environ["TEST_DRIVER"]
    assert is_psycopg3 == (os.environ["TEST_DRIVER"] == "psycopg")


@override_settings(OTEL={"DATABASE": {"SOURCE_OVER_S": 60}})
def test_a_query_makes_one_span_that_says_where_it_went(otel_spans, otel_metrics):
    """Host and database come from the driver; a socket's folder has no port."""
    with span("parent"):
        assert Item.objects.filter(name="a").count() == 0
    (query,) = client_spans(otel_spans)
    attributes = dict(query.attributes)
    assert query.name == "SELECT app_item"
    assert attributes.pop("server.address") == connection.connection.info.host
    if connection.connection.info.host.startswith("/"):
        assert "server.port" not in attributes
    else:
        assert attributes.pop("server.port") == connection.connection.info.port
    assert attributes == {
        "db.system.name": "postgresql",
        "db.namespace": connection.connection.info.dbname,
        "django.db.alias": "default",
        "db.operation.name": "SELECT",
        "db.collection.name": "app_item",
        "db.query.summary": "SELECT app_item",
        "db.query.text": 'SELECT COUNT(*) AS "__count" FROM "app_item" WHERE "app_item"."name" = %s',
        "db.response.returned_rows": 1,
    }
    labels = {
        "db.system.name": "postgresql",
        "db.namespace": connection.connection.info.dbname,
        "django.db.alias": "default",
        "db.operation.name": "SELECT",
    }
    assert labels in otel_metrics.series(DURATION)


def test_postgresqls_detail_with_the_values_is_not_told(otel_spans, otel_metrics):
    """The message of an IntegrityError says: Key (name)=(...) already exists."""
    Item.objects.create(name=SECRET)
    with span("parent"), pytest.raises(IntegrityError, match=SECRET), transaction.atomic():
        Item.objects.create(name=SECRET)
    failed = otel_spans.one("INSERT app_item")
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description == "django.db.utils.IntegrityError"
    assert failed.attributes["db.response.status_code"] == "23505"
    assert SECRET not in everything_told(otel_spans)
    assert otel_metrics.value(DURATION, {"error.type": "django.db.utils.IntegrityError"}).count == 1


def test_other_errors_tell_their_code_only(otel_spans, copy):
    """A value that does not fit its type is in the message; so is nothing of a timeout."""
    with span("parent"), copy.cursor() as cursor:
        with pytest.raises(DataError, match=SECRET):
            cursor.execute("SELECT %s::integer", [SECRET])
        cursor.execute("SET statement_timeout = 20")
        with pytest.raises(OperationalError):
            cursor.execute("SELECT pg_sleep(5)")
    codes = [found.attributes.get("db.response.status_code") for found in client_spans(otel_spans)]
    assert codes == ["22P02", None, "57014"]
    assert SECRET not in everything_told(otel_spans)


@pytest.mark.parametrize(
    "literal",
    [
        f"'{SECRET}'",
        f"E'{SECRET}\\''",
        f"$${SECRET}$$",
        f"$q$ ' {SECRET} $$ $q$",
        f"U&'\\0061{SECRET}'",
        f"'it''s {SECRET}'",
        f"'a'\n'{SECRET}'",
        f"/* /* {SECRET} */ ' */ '{SECRET}'",
        f"-- {SECRET}\n '{SECRET}'",
    ],
)
def test_no_form_of_a_literal_is_told(literal, otel_spans):
    """Each is valid: PostgreSQL gives the text back."""
    with span("parent"), connection.cursor() as cursor:
        cursor.execute(f"SELECT {literal}, name FROM app_item UNION SELECT {literal}, 'z'")
        assert SECRET in cursor.fetchone()[0]
    assert otel_spans.one("SELECT app_item")
    assert SECRET not in everything_told(otel_spans)


def test_composed_sql_is_told_without_its_literals(otel_spans):
    """What the driver's own `sql` module builds."""
    query = sql.SQL("SELECT {} FROM {} WHERE {} = {}").format(
        sql.Identifier("id"), sql.Identifier("app_item"), sql.Identifier("name"), sql.Literal(SECRET)
    )
    with span("parent"), connection.cursor() as cursor:
        cursor.execute(query)
    assert otel_spans.one("SELECT app_item").attributes["db.query.text"] == (
        'SELECT "id" FROM "app_item" WHERE "name" = ?'
    )


def test_a_server_side_cursor_is_one_query(otel_spans):
    """`iterator()` declares a cursor; its fetches are not queries."""
    Item.objects.bulk_create([Item(name=str(number)) for number in range(30)])
    with span("parent"):
        assert len(list(Item.objects.iterator(chunk_size=7))) == 30
    assert [found.name for found in client_spans(otel_spans)] == ["SELECT app_item"]


def test_bulk_statements_have_one_text_each(otel_spans):
    """However many rows there are."""
    with span("parent"):
        for first, last in ((0, 3), (3, 20)):
            items = Item.objects.bulk_create([Item(name=str(number)) for number in range(first, last)])
        for item in items:
            item.price_cents = item.pk
        Item.objects.filter(pk__in=[item.pk for item in items]).delete()
        Item.objects.filter(name__in=["1", "2"]).update(price_cents=5)
        Item.objects.filter(name__in=["1", "2", "3"]).update(price_cents=5)
    texts = {found.attributes["db.query.text"] for found in client_spans(otel_spans)}
    assert len([text for text in texts if text.startswith("INSERT")]) == 1
    assert len([text for text in texts if text.startswith("UPDATE")]) == 1


def test_executemany_is_one_batch(otel_spans):
    """One span and the number of rows."""
    with span("parent"), connection.cursor() as cursor:
        cursor.executemany("INSERT INTO app_item (name, price_cents) VALUES (%s, 1)", [("a",), ("b",)])
    batch = otel_spans.one("BATCH INSERT app_item")
    assert batch.attributes["db.operation.batch.size"] == 2
    assert Item.objects.count() == 2


def test_a_stored_procedure_is_a_call(otel_spans, otel_metrics):
    """`callproc` passes no execute wrapper; it is measured all the same, once."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE FUNCTION add_up(a integer, b integer) RETURNS integer LANGUAGE sql AS 'SELECT a + b'")
        with span("parent"):
            cursor.callproc("add_up", [2, 3])
            assert cursor.fetchone() == (5,)
        with span("failing"), pytest.raises(Exception, match="add_down"), transaction.atomic():
            cursor.callproc("add_down", [2])
    call = otel_spans.one("CALL add_up")
    assert call.attributes["db.operation.name"] == "CALL"
    assert call.attributes["db.stored_procedure.name"] == "add_up"
    assert "db.collection.name" not in call.attributes
    assert otel_spans.one("CALL add_down").attributes["db.response.status_code"] == "42883"
    assert otel_metrics.value(DURATION, {"db.operation.name": "CALL"}).count == 2


@pytest.mark.django_db(transaction=True)
def test_reconnects_leave_one_wrapper_also_after_a_lost_connection(copy, otel_spans):
    """Closed by us a hundred times, and once by the server."""
    for _ in range(100):
        copy.ensure_connection()
        copy.close()
    copy.ensure_connection()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", [copy.connection.info.backend_pid])
    with span("parent"):
        with pytest.raises(OperationalError), copy.cursor() as cursor:
            cursor.execute("SELECT 1")
        copy.close()
        with copy.cursor() as cursor:
            cursor.execute("SELECT 2")
    assert [type(wrapper) for wrapper in copy.execute_wrappers] == [QueryWrapper]
    assert [found.status.status_code for found in client_spans(otel_spans)] == [StatusCode.ERROR, StatusCode.UNSET]


@pytest.mark.django_db(transaction=True)
def test_threads_and_async_code_query_under_the_span_around_them(otel_spans):
    """Each thread has a connection of its own."""
    import contextvars

    async def work():
        await Item.objects.acreate(name="a")
        assert (await Item.objects.aget(name="a")).name == "a"
        # The thread that queries for async code has a connection of its own.
        await sync_to_async(connections.close_all)()

    def in_thread():
        try:
            Item.objects.count()
        finally:
            connection.close()

    with span("parent"):
        asyncio.run(work())
        thread = threading.Thread(target=contextvars.copy_context().run, args=(in_thread,))
        thread.start()
        thread.join()
    parent = otel_spans.one("parent")
    names = [found.name for found in client_spans(otel_spans)]
    assert names == ["INSERT app_item", "SELECT app_item", "SELECT app_item"]
    assert {found.parent.span_id for found in client_spans(otel_spans)} == {parent.context.span_id}


# --- One span per query, with the driver instrumented too. ---


def test_the_driver_instrumented_too_makes_no_second_span(instrumented, copy, otel_spans):
    """Plain, batch, server-side and procedure; Django's cursor class is the one it asked for."""
    with span("parent"):
        with copy.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.executemany("SELECT %s", [(1,), (2,)])
            cursor.callproc("abs", [-1])
        with copy.chunked_cursor() as cursor:
            cursor.execute("SELECT generate_series(1, 10)")
            assert len(cursor.fetchmany(5)) == 5
        factory = copy.connection.cursor_factory
        assert not factory.__module__.startswith("opentelemetry")
    # Also what Django asks the driver while connecting, past its own wrappers, makes no span of the driver's.
    assert [found.name for found in client_spans(otel_spans)] == ["SELECT", "BATCH SELECT", "CALL abs", "SELECT"]
    assert set(scopes(otel_spans)) == {"django_otel"}


def test_nothing_of_the_driver_is_told_over_reconnects(instrumented, copy, otel_spans):
    """Each new connection of the driver is taken over."""
    for _ in range(5):
        otel_spans.clear()
        with span("parent"), copy.cursor() as cursor:
            cursor.execute("SELECT 1")
        assert scopes(otel_spans) == ["django_otel"]
        copy.close()


def test_other_users_of_the_driver_keep_their_spans(instrumented, otel_spans):
    """Only Django's connections are taken over."""
    info = connection.connection.info
    own = connection.Database.connect(dbname=info.dbname, host=info.host, user=info.user, port=info.port)
    with span("parent"):
        own.cursor().execute("SELECT 1")
    own.close()
    assert scopes(otel_spans) == [Instrumentor.__module__]


def test_the_driver_keeps_its_spans_while_ours_are_off(instrumented, copy, otel_spans):
    """DATABASE.SPANS off leaves the driver's connection as its instrumentor made it."""
    with override_settings(OTEL={"DATABASE": {"SPANS": False}}):
        copy.ensure_connection()
        otel_spans.clear()
        with span("parent"), copy.cursor() as cursor:
            cursor.execute("SELECT 1")
    assert scopes(otel_spans) == [Instrumentor.__module__]


@pytest.mark.django_db(transaction=True)
def test_switching_our_spans_off_gives_an_open_connection_back(instrumented, otel_spans):
    """And switching them on takes it over again."""
    connection.close()
    connection.ensure_connection()
    assert not connection.connection.cursor_factory.__module__.startswith("opentelemetry")
    with override_settings(OTEL={"DATABASE": {"SPANS": False}}):
        assert connection.connection.cursor_factory.__module__.startswith("opentelemetry")
    assert not connection.connection.cursor_factory.__module__.startswith("opentelemetry")
    otel_spans.clear()
    with span("parent"):
        Item.objects.count()
    assert scopes(otel_spans) == ["django_otel"]
    connection.close()


def test_a_connection_instrumented_behind_our_back_is_told_to_keep_silent(copy, otel_spans):
    """`instrument_connection` after it was opened."""
    copy.ensure_connection()
    Instrumentor.instrument_connection(copy.connection, tracer_provider=runtime.current().tracer_provider)
    with span("parent"), copy.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert scopes(otel_spans) == ["django_otel"]


def test_django_counts_the_same_queries(django_assert_num_queries):
    """assertNumQueries is not changed."""
    with span("parent"), django_assert_num_queries(2):
        Item.objects.count()
        list(Item.objects.iterator())


def test_equal_queries_of_a_request_have_their_cure(client, otel_spans):
    """The driver's placeholders and quotes make no difference."""
    for number in range(12):
        author = Author.objects.create(name=str(number))
        Book.objects.create(title="x", author=author).tags.add(Tag.objects.create(name=str(number)))
    found = {}
    with override_settings(ROOT_URLCONF="tests.relations.views"):
        for view in ("foreign_key", "many_to_many", "deferred", "raw_cursor", "awaited"):
            client.get(f"/{view}/")
            (event,) = [event for event in otel_spans.one(f"GET /{view}/").events if event.name == "django.n_plus_one"]
            assert event.attributes["django.n_plus_one.count"] == 12
            found[view] = event.attributes.get("django.n_plus_one.advice", "").partition("(")[0]
    assert found == {
        "foreign_key": "select_related", "many_to_many": "prefetch_related", "deferred": "only", "raw_cursor": "",
        "awaited": "",
    }  # fmt: skip
