"""Business events and transactions, on SQLite in a file; the scenarios stand in `business_app.scenarios`."""

from __future__ import annotations

import pytest
from django.db import connections, transaction

from tests.business_app.scenarios import Scenarios
from tests.business_app.support import (  # noqa: F401 (fixtures)
    business_spans,
    database,
    faults_fixture,
    nothing_went_wrong,
    registered_fixture,
    sent_fixture,
)


class TestSqliteFile(Scenarios):
    @pytest.fixture
    def using(self, tmp_path, django_db_blocker):
        settings = {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(tmp_path / "orders.sqlite3"),
            "OPTIONS": {"timeout": 10},
        }
        with django_db_blocker.unblock(), database("business_sqlite", settings) as alias:
            yield alias

    def test_switching_autocommit_on_commits(self, otel_spans, otel_metrics):
        """SQLite commits an open transaction then, without commit() being called."""
        transaction.set_autocommit(False, using=self.using)
        self.place(1)
        transaction.set_autocommit(True, using=self.using)
        assert business_spans(otel_spans) == [("order.placed", "committed")]
        assert otel_metrics.value("django.business.events") == 1 == self.rows()

    def test_a_locked_commit_can_be_tried_again(self, otel_spans):
        """SQLite keeps the transaction when COMMIT fails for a lock; it is not over."""
        transaction.set_autocommit(False, using=self.using)
        self.place(1)
        original = self.connection._commit

        def fail():
            self.connection._commit = original
            raise transaction.Error("database is locked")

        self.connection._commit = fail
        with pytest.raises(transaction.Error):
            transaction.commit(using=self.using)
        assert business_spans(otel_spans) == []
        transaction.commit(using=self.using)
        transaction.set_autocommit(True, using=self.using)
        assert business_spans(otel_spans) == [("order.placed", "committed")]


class TestSqliteInMemory:
    @pytest.fixture
    def using(self, django_db_blocker):
        settings = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        with django_db_blocker.unblock(), database("business_memory", settings) as alias:
            yield alias

    def test_close_does_nothing_to_an_in_memory_database(self, registered, otel_spans, using):
        """Django ignores it, and so the transaction goes on."""
        from tests.business_app.models import Order

        registered(Order, created="order.placed")
        with transaction.atomic(using=using):
            Order.objects.using(using).create(number=1)
            connections[using].close()
            assert business_spans(otel_spans) == []
        assert business_spans(otel_spans) == [("order.placed", "committed")]
