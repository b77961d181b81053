"""The database layers on a real MariaDB; run by `test_database_mariadb`."""

import datetime
import os

import pymysql

# Django asks for mysqlclient, which has no wheels: PyMySQL answers for it, under its version.
pymysql.version_info = (2, 2, 7, "final", 0)
pymysql.install_as_MySQLdb()

import django  # noqa: E402
from django.conf import settings  # noqa: E402

settings.configure(
    INSTALLED_APPS=["django_otel", "tests.app"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.mysql",
            "NAME": "shop",
            "USER": "root",
            "OPTIONS": {"unix_socket": os.environ["TEST_MARIADB_SOCKET"]},
        }
    },
    OTEL={"SERVICE_NAME": "mariadb", "DATABASE": {"TRANSACTIONS": True, "SOURCE_OVER_S": 0.2}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    USE_TZ=True,
)
django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import IntegrityError, OperationalError, connection, connections, transaction  # noqa: E402
from django.db.models.functions import Now  # noqa: E402
from django.utils import timezone  # noqa: E402
from opentelemetry.trace import StatusCode  # noqa: E402

from django_otel import span  # noqa: E402
from django_otel.live_sampling import hosts  # noqa: E402
from django_otel.live_sampling.log_levels import read_levels  # noqa: E402
from django_otel.live_sampling.rows_together import RowsTogether  # noqa: E402
from django_otel.models import LogLevel, SamplingPolicy, SamplingRule, SamplingVersion, read_state  # noqa: E402
from django_otel.testing import capture_metrics, capture_spans  # noqa: E402
from tests.app.models import Item  # noqa: E402

DURATION = "django.db.transaction.duration"
OPERATIONS = "db.client.operation.duration"


def outcomes(metrics):
    found = (metrics.value(DURATION, {"django.transaction.outcome": name}) for name in ("committed", "rolled_back"))
    return tuple(value.count if value else 0 for value in found)


def check_queries():
    with capture_spans() as spans, span("parent"):
        Item.objects.bulk_create([Item(name="a"), Item(name="b")])
        assert len(Item.objects.all()) == 2
        with connection.cursor() as cursor:
            cursor.execute("SELECT SLEEP(0.3)")
            cursor.executemany("INSERT INTO app_item (name, price_cents) VALUES (%s, 1)", [("c",), ("d",)])
    select = spans.one("SELECT app_item")
    assert select.attributes["db.response.returned_rows"] == 2
    assert select.attributes["db.system.name"] in ("mysql", "mariadb")
    slow = next(found for found in spans.named("SELECT") if "code.file.path" in found.attributes)
    assert slow.attributes["code.function.name"] == "check_queries"
    assert spans.one("BATCH INSERT app_item").attributes["db.operation.batch.size"] == 2


def check_transactions():
    with capture_metrics() as metrics, capture_spans() as spans, span("parent"):
        with transaction.atomic():
            Item.objects.create(name="e")
            with transaction.atomic():
                pass
        try:
            with transaction.atomic():
                connection.cursor().execute("INSERT INTO app_item (id, name, price_cents) VALUES (1, 'x', 1)")
                connection.cursor().execute("INSERT INTO app_item (id, name, price_cents) VALUES (1, 'hunter2', 1)")
        except IntegrityError:
            pass
        assert outcomes(metrics) == (1, 1)
        assert metrics.value(OPERATIONS, {"db.operation.name": "COMMIT"}).count == 1
    first, second = spans.named("transaction default")
    assert [event.name for event in first.events] == ["django.savepoint"]
    assert second.attributes["error.type"] == "django.db.utils.IntegrityError"
    failed = next(found for found in spans if found.attributes.get("db.response.status_code"))
    # PyMySQL knows the SQLSTATE, mysqlclient the number alone.
    assert failed.attributes["db.response.status_code"] in ("23000", "1062")
    assert failed.status.status_code is StatusCode.ERROR
    assert "hunter2" not in repr([(dict(found.attributes), found.status.description) for found in spans])


def check_a_lost_connection():
    with capture_metrics() as metrics:
        copy = connections["default"].copy()
        try:
            with transaction.atomic():
                Item.objects.create(name="f")
                with connection.cursor() as cursor:
                    cursor.execute("SELECT CONNECTION_ID()")
                    (own,) = cursor.fetchone()
                copy.cursor().execute(f"KILL {own}")
                Item.objects.create(name="g")
        except OperationalError:
            pass
        assert outcomes(metrics) == (0, 1)
        copy.close()
        connection.close()
        with transaction.atomic():
            Item.objects.count()
        assert outcomes(metrics) == (1, 1)
        refused = connections["default"].copy()
        refused.settings_dict = {**refused.settings_dict, "NAME": "no_such_database"}
        try:
            refused.ensure_connection()
        except OperationalError:
            pass
        attributes = {"django.db.alias": "default", "error.type": "django.db.utils.OperationalError"}
        assert metrics.value("django.db.connection.errors", attributes) == 1


def check_autocommit_off():
    with capture_metrics() as metrics:
        transaction.set_autocommit(False)
        Item.objects.create(name="h")
        transaction.rollback()
        Item.objects.create(name="i")
        transaction.set_autocommit(True)
        assert outcomes(metrics) == (1, 1)


def check_the_query_of_a_poll():
    end = timezone.now() + datetime.timedelta(hours=1)
    SamplingPolicy(ratio=0.25, max_per_second=7.5, keep_errors=True, expires_at=end, note="ä").save()
    SamplingRule.objects.create(path="/a/*", ratio=1.0, priority=-3)
    SamplingRule.objects.create(route="b/", ratio=0.0, method="POST", expires_at=end)
    LogLevel.objects.create(logger="shop", level="DEBUG", expires_at=end)
    together = RowsTogether()
    state = together.read("default")
    assert state == read_state("default") and state.policy.keep_errors is True
    assert together.is_whole and together.levels.levels == read_levels("default").levels


def check_an_open_page_where_the_server_is_in_another_zone():
    """Django leaves the zone of the session as it is, so the server's clock and stored times differ."""
    with connection.cursor() as cursor:
        cursor.execute("SET time_zone = '+09:00'")
    hosts.watch("default")
    for is_due, hours in ((True, 0), (False, 1), (False, -1)):
        if hours:
            SamplingVersion.objects.update(watched_at=Now() - datetime.timedelta(hours=hours))
        reporter = hosts.HostReporter()
        reporter.look("default")
        assert reporter.is_due() is is_due
    connection.close()


if __name__ == "__main__":
    call_command("migrate", "--run-syncdb", verbosity=0)
    for check in (
        check_queries,
        check_transactions,
        check_a_lost_connection,
        check_autocommit_off,
        check_the_query_of_a_poll,
        check_an_open_page_where_the_server_is_in_another_zone,
    ):
        check()
        print(check.__name__, "passed")
