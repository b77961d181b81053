"""Business events and transactions on a real PostgreSQL server, through psycopg2 and through psycopg 3."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest
from django.db import DatabaseError, Error, IntegrityError, connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from tests.business_app.models import Order
from tests.business_app.scenarios import Scenarios, outcome
from tests.business_app.support import (  # noqa: F401 (fixtures)
    business_spans,
    database,
    faults_fixture,
    nothing_went_wrong,
    registered_fixture,
    sent_fixture,
)
from tests.services import ROOT, parse_database_url


class TestPostgreSQL(Scenarios):
    @pytest.fixture
    def using(self, postgres, django_db_blocker):
        with django_db_blocker.unblock(), database("business_postgres", parse_database_url(postgres)) as alias:
            yield alias

    def test_a_failed_transaction_that_is_committed_is_rolled_back(self, otel_spans, otel_metrics):
        """PostgreSQL answers COMMIT with ROLLBACK, and no driver raises: the row is not there."""
        with self.manual():
            self.place(1)
            with contextlib.suppress(DatabaseError), self.connection.cursor() as cursor:
                cursor.execute("SELECT 1 / 0")
            transaction.commit(using=self.using)
        assert business_spans(otel_spans) == [("order.placed", "rolled_back")]
        assert otel_metrics.value("django.business.events") == 0 == self.rows()

    def test_an_error_swallowed_inside_an_atomic_block(self, otel_spans, otel_metrics):
        """Django believes that it commits; nothing is written."""
        with self.atomic():
            self.place(1)
            with contextlib.suppress(DatabaseError), self.connection.cursor() as cursor:
                cursor.execute("SELECT 1 / 0")
        assert business_spans(otel_spans) == [("order.placed", "rolled_back")]
        assert otel_metrics.value("django.business.events") == 0 == self.rows()

    def test_a_deferred_constraint_that_fails_at_commit(self, otel_spans, otel_metrics):
        """The save succeeded; the transaction did not."""
        with contextlib.suppress(IntegrityError), self.atomic():
            self.place(1, customer_id=12345)
        assert business_spans(otel_spans) == [("order.placed", "rolled_back")]
        assert otel_metrics.value("django.business.events") == 0 == self.rows()

    def test_a_deferred_constraint_that_fails_at_a_manual_commit(self, otel_spans):
        """The failed COMMIT has ended the transaction: what follows is another one."""
        with self.manual():
            self.place(1, customer_id=12345)
            with pytest.raises(IntegrityError):
                transaction.commit(using=self.using)
            assert business_spans(otel_spans) == [("order.placed", "rolled_back")]
            self.place(2)
            transaction.commit(using=self.using)
        assert business_spans(otel_spans)[1:] == [("order.placed", "committed")]

    def test_a_server_that_ends_the_connection(self, otel_spans, otel_metrics):
        """pg_terminate_backend in the middle of a transaction, and the next request goes on."""
        with pytest.raises(Error), self.atomic():
            self.place(1)
            other = self.connection.copy()
            try:
                with other.cursor() as cursor, self.connection.cursor() as own:
                    own.execute("SELECT pg_backend_pid()")
                    cursor.execute("SELECT pg_terminate_backend(%s)", own.fetchone())
            finally:
                other.close()
            self.place(2)
        assert business_spans(otel_spans) == [("order.placed", "rolled_back")]
        self.connection.close_if_unusable_or_obsolete()
        self.place(3)
        assert [outcome(span) for span in otel_spans.named("order.placed")] == ["rolled_back", "autocommit"]
        assert otel_metrics.value("django.business.events") == 1 == self.rows()

    def test_select_for_update_on_real_locks(self, otel_spans):
        """The row is locked and loaded at once."""
        self.place()
        with self.atomic():
            order = Order.objects.using(self.using).select_for_update().get()
            order.status = "paid"
            order.save()
        assert outcome(otel_spans.one("order.paid")) == "committed"

    def test_connections_keep_their_own_transactions(self, otel_spans):
        """Two aliases of one server."""
        self.place(1)
        copy = self.connection.copy("business_copy")
        connections["business_copy"] = copy
        connections.settings["business_copy"] = copy.settings_dict
        try:
            with transaction.atomic(using="business_copy"):
                Order.objects.using("business_copy").create(number=2)
                with self.atomic():
                    self.place(3)
                numbers = [span.attributes["business.number"] for span in otel_spans.named("order.placed")]
                assert numbers == [1, 3]
        finally:
            copy.close()
            del connections["business_copy"]
            del connections.settings["business_copy"]
        assert len(otel_spans.named("order.placed")) == 3


def test_the_driver_that_was_asked_for_is_the_one_in_use():
    """Django takes psycopg 3 where it is installed; the run below hides it."""
    assert is_psycopg3 == ("TEST_WITHOUT_PSYCOPG3" not in os.environ)


@pytest.mark.long
def test_the_same_with_the_other_driver(postgres):
    """Django chooses its driver once in a process, so psycopg2 gets a process of its own."""
    if "TEST_WITHOUT_PSYCOPG3" in os.environ:
        return
    script = "import sys; sys.modules['psycopg'] = None; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    tests = [f"{__file__}::TestPostgreSQL", f"{__file__}::test_the_driver_that_was_asked_for_is_the_one_in_use"]
    done = subprocess.run(
        # Not spread over workers: those import the driver that is hidden here.
        [sys.executable, "-c", script, "-q", "-n", "0", "-p", "no:randomly", "-p", "no:cacheprovider", *tests],
        capture_output=True,
        text=True,
        cwd=ROOT,
        # Options of plugins that are not loaded there, or that choose other tests, would end it.
        env={**os.environ, "DATABASE_URL": postgres, "TEST_WITHOUT_PSYCOPG3": "1", "PYTEST_ADDOPTS": ""},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
