"""Transactions on SQLite: duration by outcome, spans by setting, COMMIT and ROLLBACK; and connections that fail."""

import asyncio

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, IntegrityError, OperationalError, connection, connections, transaction
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import StatusCode, get_current_span

import django_otel
from django_otel import span
from django_otel.base import guard
from django_otel.instrumentation import transactions
from tests import services
from tests.app.models import Item

DURATION = "django.db.transaction.duration"
OPERATIONS = "db.client.operation.duration"
ON = override_settings(OTEL={"DATABASE": {"TRANSACTIONS": True}})


def count(metrics, outcome, alias="default"):
    found = metrics.value(DURATION, {"django.db.alias": alias, "django.transaction.outcome": outcome})
    return found.count if found else 0


def outcomes(metrics):
    return count(metrics, "committed"), count(metrics, "rolled_back")


@pytest.fixture
def other(tmp_path, transactional_db):
    """A connection of its own to a file, with one table, committed by the project itself or not."""
    made = connections["default"].copy()
    made.settings_dict = {**made.settings_dict, "NAME": str(tmp_path / "own.sqlite3"), "TEST": {}}
    made.alias = "default"
    before = connections["default"]
    connections["default"] = made
    with made.cursor() as cursor:
        cursor.execute("CREATE TABLE app_item (id integer primary key, name text unique, price_cents integer)")
    yield made
    services.close_for_good(made)
    connections["default"] = before


# --- Outcomes. ---


@pytest.mark.django_db(transaction=True)
def test_a_block_is_a_transaction_by_its_outcome(otel_metrics):
    with transaction.atomic():
        Item.objects.create(name="a")
    assert outcomes(otel_metrics) == (1, 0)
    with pytest.raises(KeyError), transaction.atomic():
        raise KeyError("a")
    assert outcomes(otel_metrics) == (1, 1)
    with transaction.atomic():
        transaction.set_rollback(True)
    assert outcomes(otel_metrics) == (1, 2)
    with transaction.atomic(durable=True):
        pass
    assert outcomes(otel_metrics) == (2, 2)
    assert set(otel_metrics.series(DURATION)[0]) == {"django.db.alias", "django.transaction.outcome"}


@pytest.mark.django_db
def test_a_test_cases_own_blocks_are_not_there(otel_metrics):
    """Inside a TestCase the outcomes are those of production, though the database sees savepoints."""
    with transaction.atomic():
        Item.objects.create(name="a")
    with pytest.raises(KeyError), transaction.atomic():
        raise KeyError("a")
    with transaction.atomic(savepoint=False):
        Item.objects.create(name="b")
    assert outcomes(otel_metrics) == (2, 1)


@pytest.mark.django_db(transaction=True)
def test_nested_blocks_are_one_transaction(otel_metrics):
    with transaction.atomic(), transaction.atomic(), transaction.atomic(savepoint=False):
        Item.objects.create(name="a")
        with pytest.raises(KeyError), transaction.atomic():
            raise KeyError("inner")
        with pytest.raises(RuntimeError, match="durable"), transaction.atomic(durable=True):
            pass
    assert outcomes(otel_metrics) == (1, 0)


@pytest.mark.django_db(transaction=True)
def test_a_decorated_function_that_calls_itself_is_one_transaction(otel_metrics):
    """Django enters the same object again."""

    @transaction.atomic
    def count_down(number):
        return count_down(number - 1) if number else "done"

    assert count_down(3) == "done"
    assert outcomes(otel_metrics) == (1, 0)


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_two_databases_are_two_transactions(otel_metrics):
    with transaction.atomic(), pytest.raises(KeyError), transaction.atomic(using="other"):
        raise KeyError
    assert count(otel_metrics, "committed") == 1
    assert count(otel_metrics, "rolled_back", "other") == 1


def test_a_commit_that_fails_is_a_rollback_and_leaves_nothing_behind(other, otel_metrics, otel_spans):
    """A deferred constraint is checked by COMMIT itself."""
    with other.cursor() as cursor:
        cursor.execute("CREATE TABLE child (id integer primary key, item integer REFERENCES app_item DEFERRABLE "
                       "INITIALLY DEFERRED)")  # fmt: skip
    with ON, span("parent"), pytest.raises(IntegrityError):
        with transaction.atomic():
            other.cursor().execute("INSERT INTO child (item) VALUES (99)")
    assert outcomes(otel_metrics) == (0, 1)
    found = otel_spans.one("transaction default")
    assert found.attributes["error.type"] == "django.db.utils.IntegrityError"
    assert otel_spans.one("COMMIT").attributes["db.response.status_code"] == "SQLITE_CONSTRAINT_FOREIGNKEY"
    assert transactions._ATTRIBUTE not in vars(other)
    with transaction.atomic():
        pass
    assert outcomes(otel_metrics) == (1, 1)


def test_a_connection_lost_in_the_middle_is_a_rollback(other, otel_metrics):
    with transaction.atomic():
        other.close()
    assert outcomes(otel_metrics) == (0, 1)
    with pytest.raises(DatabaseError), transaction.atomic():
        other.connection.close()
        Item.objects.create(name="a")
    assert outcomes(otel_metrics) == (0, 2)
    with transaction.atomic():
        pass
    assert outcomes(otel_metrics) == (1, 2)


def test_a_failing_hook_after_the_commit_does_not_undo_it(other, otel_metrics):
    with pytest.raises(KeyError), transaction.atomic():
        transaction.on_commit(lambda: {}["a"])
    assert outcomes(otel_metrics) == (1, 0)


# --- Without autocommit. ---


def test_a_project_that_commits_itself_is_measured_from_its_first_query(other, otel_metrics):
    transaction.set_autocommit(False)
    transaction.commit()
    assert outcomes(otel_metrics) == (0, 0), "nothing was begun"
    for number, end in enumerate((transaction.commit, transaction.rollback, transaction.commit)):
        Item.objects.create(name=str(number))
        end()
    assert outcomes(otel_metrics) == (2, 1)
    with transaction.atomic():
        Item.objects.create(name="inside")
    assert outcomes(otel_metrics) == (2, 1), "a savepoint of the project's own transaction"
    transaction.set_autocommit(True)
    assert outcomes(otel_metrics) == (3, 1)
    assert not [found for found in other.execute_wrappers if isinstance(found, transactions._FirstQuery)]
    transaction.set_autocommit(False)
    Item.objects.create(name="lost")
    other.close()
    assert outcomes(otel_metrics) == (3, 2)


def test_a_database_without_autocommit_is_measured_from_its_first_connection_on(other, otel_metrics):
    other.close()
    other.settings_dict = {**other.settings_dict, "AUTOCOMMIT": False}
    Item.objects.create(name="a")
    transaction.commit()
    Item.objects.create(name="b")
    transaction.rollback()
    assert outcomes(otel_metrics) == (1, 1)


# --- COMMIT and ROLLBACK. ---


@override_settings(OTEL={"DATABASE": {"SOURCE_OVER_S": 60}})
def test_commit_and_rollback_are_operations_and_no_queries(other, otel_metrics, otel_spans):
    with span("parent"), CaptureQueriesContext(other) as queries:
        with transaction.atomic():
            Item.objects.create(name="a")
        with pytest.raises(KeyError), transaction.atomic():
            raise KeyError
    assert otel_metrics.value(OPERATIONS, {"db.operation.name": "COMMIT"}).count == 1
    assert otel_metrics.value(OPERATIONS, {"db.operation.name": "ROLLBACK"}).count == 1
    # Django's own log has them; a trace has them where transactions were asked for, or where they are slow.
    assert [found["sql"] for found in queries.captured_queries][-2:] == ["BEGIN", "ROLLBACK"]
    assert not otel_spans.named("COMMIT")


@override_settings(OTEL={"DATABASE": {"SOURCE_OVER_S": 0}})
def test_a_slow_commit_has_a_span_with_the_calling_line(other, otel_spans):
    with span("parent"), transaction.atomic():
        Item.objects.create(name="a")
    commit = otel_spans.one("COMMIT")
    assert commit.attributes["code.file.path"] == __file__
    assert commit.attributes["db.operation.name"] == "COMMIT"
    assert commit.parent.span_id == otel_spans.one("parent").context.span_id
    assert commit.start_time <= commit.end_time
    for found in otel_spans.named("INSERT app_item"):
        assert found.attributes["code.function.name"].startswith("test_a_slow_commit")


@override_settings(OTEL={"DATABASE": {"SOURCE_OVER_S": None}})
def test_no_line_is_looked_up_without_the_setting(other, otel_spans, monkeypatch):
    monkeypatch.setattr("django_otel.instrumentation.database.find_caller", None)
    with span("parent"):
        Item.objects.create(name="a")
    assert "code.file.path" not in otel_spans.one("INSERT app_item").attributes


@override_settings(OTEL={"DATABASE": {"SOURCE_OVER_S": 0}})
@pytest.mark.django_db
def test_every_kind_of_slow_query_names_its_line(otel_spans):
    """Batch, procedure and failure too; async code by the code that awaits."""

    def here():
        return [found.attributes.get("code.file.path") for found in otel_spans.named("SELECT")]

    with span("parent"), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.executemany("INSERT INTO app_item (name, price_cents) VALUES (%s, 1)", [("a",), ("b",)])
        with pytest.raises(OperationalError), transaction.atomic():
            cursor.execute("SELECT nothing")
    assert here() == [__file__, __file__]
    assert otel_spans.one("BATCH INSERT app_item").attributes["code.file.path"] == __file__


# --- Spans. ---


@ON
def test_a_transaction_has_a_span_around_its_queries(other, otel_spans):
    with span("parent"):
        with transaction.atomic():
            Item.objects.create(name="a")
            with transaction.atomic():
                pass
            with pytest.raises(KeyError), transaction.atomic():
                raise KeyError
            sid = connections["default"].savepoint()
            transaction.savepoint_commit(sid)
        assert get_current_span().name == "parent"
    found = otel_spans.one("transaction default")
    assert found.attributes["django.db.alias"] == "default"
    assert found.attributes["django.transaction.outcome"] == "committed"
    assert found.status.status_code is StatusCode.UNSET
    assert [(event.name, event.attributes["django.savepoint.outcome"]) for event in found.events] == [
        ("django.savepoint", "released"),
        ("django.savepoint", "rolled_back"),
        ("django.savepoint", "released"),
    ]
    inside = [child.name for child in otel_spans if child.parent and child.parent.span_id == found.context.span_id]
    assert inside[0] == "BEGIN" and inside[-1] == "COMMIT" and "INSERT app_item" in inside


@ON
def test_what_the_project_says_of_its_span_stays_there(other, otel_spans):
    """With the transaction's span as the current one, and its own spans inside as ever."""
    with span("parent"), transaction.atomic(), transaction.atomic():
        django_otel.set_attributes(place="parent")
        django_otel.event("said")
        with span("inside"):
            django_otel.set_attributes(place="inside")
    assert otel_spans.one("parent").attributes["place"] == "parent"
    assert [event.name for event in otel_spans.one("parent").events] == ["said"]
    assert otel_spans.one("inside").attributes["place"] == "inside"
    found = otel_spans.one("transaction default")
    assert "place" not in found.attributes
    assert otel_spans.one("inside").parent.span_id == found.context.span_id


@ON
def test_a_block_that_raises_says_by_what_and_none_of_its_words(other, otel_spans):
    with span("parent"), pytest.raises(KeyError), transaction.atomic():
        raise KeyError("hunter2")
    found = otel_spans.one("transaction default")
    assert found.attributes["django.transaction.outcome"] == "rolled_back"
    assert found.attributes["error.type"] == "KeyError"
    assert found.status.status_code is StatusCode.ERROR
    assert "hunter2" not in f"{found.attributes} {found.status.description} {found.events}"


@ON
def test_a_transaction_outside_of_any_trace_makes_none(other, otel_spans, otel_metrics):
    with transaction.atomic():
        Item.objects.create(name="a")
    assert not len(otel_spans)
    assert outcomes(otel_metrics) == (1, 0)


@ON
def test_a_transaction_ended_by_the_project_has_a_span_too(other, otel_spans):
    transaction.set_autocommit(False)
    with span("parent"):
        Item.objects.create(name="a")
        transaction.rollback()
    assert otel_spans.one("transaction default").attributes["django.transaction.outcome"] == "rolled_back"
    assert otel_spans.one("INSERT app_item").parent.span_id == otel_spans.one("parent").context.span_id
    transaction.set_autocommit(True)


@ON
@pytest.mark.django_db(transaction=True)
def test_a_block_left_open_by_a_generator_does_not_disturb_others(otel_spans):
    def rows():
        with transaction.atomic():
            yield 1

    with span("parent"):
        left = rows()
        next(left)
        with span("meanwhile"):
            left.close()
            assert get_current_span().name == "meanwhile"
    assert len(otel_spans.named("transaction default")) == 1


@ON
@pytest.mark.django_db(transaction=True)
def test_async_code_sees_its_transactions(otel_spans, otel_metrics):
    @sync_to_async
    def work():
        with transaction.atomic():
            Item.objects.create(name="a")
        connections.close_all()

    async def main():
        with span("parent"):
            await work()
            await Item.objects.abulk_create([Item(name="b"), Item(name="c")], batch_size=1)

    asyncio.run(main())
    assert count(otel_metrics, "committed") == 2
    parent = otel_spans.one("parent").context.span_id
    assert {found.parent.span_id for found in otel_spans.named("transaction default")} == {parent}


# --- On and off, faults. ---


@pytest.mark.django_db(transaction=True)
def test_off_leaves_django_as_it_was(otel_metrics):
    from django.db.backends.base.base import BaseDatabaseWrapper

    with override_settings(OTEL={"DATABASE": {"METRICS": False}}):
        assert transaction.Atomic.__enter__ is transactions._plain_enter
        assert transaction.Atomic.__exit__ is transactions._plain_exit
        for name in ("commit", "rollback", "set_autocommit", "close", "connect", "savepoint_commit"):
            assert getattr(BaseDatabaseWrapper, name).__module__ == "django.db.backends.base.base"
            assert "django_otel" not in getattr(BaseDatabaseWrapper, name).__code__.co_filename
        with transaction.atomic():
            pass
    assert outcomes(otel_metrics) == (0, 0)
    with transaction.atomic():
        pass
    assert outcomes(otel_metrics) == (1, 0)


@pytest.mark.django_db(transaction=True)
def test_switching_off_or_on_in_the_middle_leaves_nothing_current(otel_metrics, otel_spans):
    with span("parent"):
        with ON:
            with transaction.atomic():
                with override_settings(OTEL={"ENABLED": False}):
                    pass
                Item.objects.create(name="a")
        assert get_current_span().name == "parent"
    assert transactions._ATTRIBUTE not in vars(connection)


@pytest.mark.django_db(transaction=True)
def test_what_is_suppressed_is_not_counted(otel_metrics):
    with suppress_instrumentation(), transaction.atomic():
        pass
    assert outcomes(otel_metrics) == (0, 0)


@pytest.mark.parametrize("broken", ["_begin_block", "_find_block", "_current_of"])
def test_a_fault_of_ours_never_reaches_the_transaction(broken, other, monkeypatch):
    def fail(*_):
        raise RuntimeError("fault")

    if broken == "_current_of":
        monkeypatch.setattr(transactions.runtime.store, "catalogued", fail)
    else:
        monkeypatch.setattr(transactions, broken, fail)
    with transaction.atomic():
        Item.objects.create(name="a")
    with pytest.raises(KeyError), transaction.atomic():
        raise KeyError
    assert list(Item.objects.values_list("name", flat=True)) == ["a"]
    guard.reset()


# --- Connections that cannot be opened. ---


def test_a_connection_that_fails_is_counted_by_its_class(other, otel_metrics):
    other.close()
    other.settings_dict = {**other.settings_dict, "NAME": "/no-such-folder/own.sqlite3"}
    for _ in range(2):
        with pytest.raises(OperationalError):
            Item.objects.count()
    attributes = {"django.db.alias": "default", "error.type": "django.db.utils.OperationalError"}
    assert otel_metrics.value("django.db.connection.errors", attributes) == 2
    with pytest.raises(OperationalError), transaction.atomic():
        pass
    assert otel_metrics.value("django.db.connection.errors", attributes) == 3
    assert outcomes(otel_metrics) == (0, 0)
