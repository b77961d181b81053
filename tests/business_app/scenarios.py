"""What becomes of business events in transactions: the same scenarios on every database.

A test module subclasses `Scenarios` with a fixture `using`: the alias of a
database of its own with no test case's transaction around it.
"""

from __future__ import annotations

import contextlib
import threading
import unittest
from unittest import mock

import pytest
from django.db import DatabaseError, Error, IntegrityError, connections, transaction
from django.db.models.signals import pre_save
from django.test import TestCase, TransactionTestCase
from opentelemetry import trace

from django_otel import api, business
from django_otel.business import loaded, model_events, transactions
from django_otel.signals import business_event
from tests.business_app.models import Customer, Order, RushOrder
from tests.business_app.support import ORDER_EVENTS, business_spans, is_hooked

#: Renamed in Django 6.1.
create_savepoint = getattr(transaction, "savepoint_create", None) or transaction.savepoint


class Undo(Exception):
    """Raised to roll back."""


class Scenarios:
    @pytest.fixture(autouse=True)
    def prepared(self, registered, using):
        registered(Order, **{key: value for key, value in ORDER_EVENTS.items() if key != "updated"})
        self.using = using
        self.connection = connections[using]

    def place(self, number=1, **fields):
        return Order.objects.using(self.using).create(number=number, **fields)

    def atomic(self, **options):
        return transaction.atomic(using=self.using, **options)

    def rows(self):
        return Order.objects.using(self.using).count()

    # --- autocommit and atomic ---

    def test_autocommit(self, otel_spans, otel_metrics):
        """Without a transaction the outcome is known at once, and the connection stays as it is."""
        self.place()
        assert business_spans(otel_spans) == [("order.placed", "autocommit")]
        assert otel_metrics.value("django.business.events") == 1
        assert not is_hooked(self.using)
        assert "commit" not in vars(self.connection)

    def test_a_multi_table_save_is_autocommit(self, otel_spans):
        """Django's own transaction around the two tables is over at post_save."""
        RushOrder.objects.using(self.using).create(number=1)
        assert business_spans(otel_spans) == [("order.placed", "autocommit")]

    def test_atomic_commit(self, otel_spans, otel_metrics):
        """Exported and counted when the block has ended, with the times of the save."""
        with self.atomic():
            self.place()
            assert otel_spans.named("order.placed") == []
            assert otel_metrics.value("django.business.events") == 0
            with api.span("later"):
                pass
        span = otel_spans.one("order.placed")
        assert business_spans(otel_spans) == [("order.placed", "committed")]
        assert otel_metrics.value("django.business.events") == 1
        assert span.end_time <= otel_spans.one("later").start_time

    def test_atomic_rollback(self, otel_spans, otel_metrics):
        """The span says so, the counter does not move; the operations were work all the same."""
        with pytest.raises(Undo), self.atomic():
            self.place()
            raise Undo
        assert business_spans(otel_spans) == [("order.placed", "rolled_back")]
        assert otel_metrics.value("django.business.events") == 0
        assert otel_metrics.value("django.model.operations") == 1

    def test_set_rollback(self, otel_spans):
        """A block that ends well and was marked for rollback."""
        with self.atomic():
            self.place()
            transaction.set_rollback(True, using=self.using)
        assert business_spans(otel_spans) == [("order.placed", "rolled_back")]

    def test_each_transaction_begins_anew(self, otel_spans, otel_metrics):
        """What one transaction did is settled by its own end only, also between autocommits."""
        with self.atomic():
            self.place(1)
        with pytest.raises(Undo), self.atomic():
            self.place(2)
            raise Undo
        self.place(3)
        with self.atomic():
            self.place(4)
        outcomes = [outcome for _, outcome in business_spans(otel_spans)]
        assert outcomes == ["committed", "rolled_back", "autocommit", "committed"]
        assert otel_metrics.value("django.business.events") == 3

    def test_the_wrappers_are_put_on_once(self):
        """Further transactions do not pile up wrappers, also over a reconnect."""
        with self.atomic():
            self.place(1)
        commit = vars(self.connection)["commit"]
        self.connection.close()
        with self.atomic():
            self.place(2)
        assert vars(self.connection)["commit"] is commit
        assert commit.__name__ == "commit"

    # --- nested blocks ---

    def test_nested_commit(self, otel_spans):
        """The inner block alone decides nothing."""
        with self.atomic():
            with self.atomic():
                self.place(1)
            assert business_spans(otel_spans) == []
            self.place(2)
        assert business_spans(otel_spans) == [("order.placed", "committed")] * 2

    def test_an_inner_rollback(self, otel_spans, otel_metrics):
        """Only what the inner block did is undone, and known at once."""
        with self.atomic():
            self.place(1)
            with pytest.raises(Undo), self.atomic():
                self.place(2)
                raise Undo
            assert business_spans(otel_spans) == [("order.placed", "rolled_back")]
            self.place(3)
        found = [(span.attributes["business.number"], outcome(span)) for span in otel_spans.named("order.placed")]
        assert found == [(2, "rolled_back"), (1, "committed"), (3, "committed")]
        assert otel_metrics.value("django.business.events") == 2

    def test_an_outer_rollback_of_a_committed_inner_block(self, otel_spans, otel_metrics):
        """A released savepoint is undone with the transaction."""
        with pytest.raises(Undo), self.atomic():
            with self.atomic():
                self.place(1)
            raise Undo
        assert business_spans(otel_spans) == [("order.placed", "rolled_back")]
        assert otel_metrics.value("django.business.events") == 0

    def test_three_levels(self, otel_spans):
        """A released savepoint belongs to the one around it."""
        with self.atomic():
            self.place(1)
            with pytest.raises(Undo), self.atomic():
                self.place(2)
                with self.atomic():
                    self.place(3)
                raise Undo
            with self.atomic():
                self.place(4)
        found = {span.attributes["business.number"]: outcome(span) for span in otel_spans.named("order.placed")}
        assert found == {1: "committed", 2: "rolled_back", 3: "rolled_back", 4: "committed"}

    def test_a_first_event_inside_a_savepoint_made_before(self, otel_spans):
        """The savepoint was there before anything of ours was."""
        assert not is_hooked(self.using)
        with self.atomic():
            Customer.objects.using(self.using).create(name="x")
            with pytest.raises(Undo), self.atomic():
                self.place(1)
                raise Undo
            self.place(2)
        found = {span.attributes["business.number"]: outcome(span) for span in otel_spans.named("order.placed")}
        assert found == {1: "rolled_back", 2: "committed"}

    def test_blocks_without_savepoint(self, otel_spans):
        """An inner block with savepoint=False rolls back the whole."""
        with self.atomic(), self.atomic(savepoint=False):
            self.place(1)
        with pytest.raises(Undo), self.atomic():
            self.place(2)
            with contextlib.suppress(Undo), self.atomic(savepoint=False):
                self.place(3)
                raise Undo
            raise Undo
        found = {span.attributes["business.number"]: outcome(span) for span in otel_spans.named("order.placed")}
        assert found == {1: "committed", 2: "rolled_back", 3: "rolled_back"}

    def test_durable(self, otel_spans):
        """A durable block is a transaction like any other."""
        with self.atomic(durable=True):
            self.place(1)
        with pytest.raises(Undo), self.atomic(durable=True):
            self.place(2)
            raise Undo
        assert [outcome for _, outcome in business_spans(otel_spans)] == ["committed", "rolled_back"]

    # --- manual savepoints ---

    def test_a_manual_savepoint_rolled_back(self, otel_spans, otel_metrics):
        """on_commit would still run; the row is gone."""
        with self.atomic():
            self.place(1)
            sid = create_savepoint(using=self.using)
            self.place(2)
            transaction.savepoint_rollback(sid, using=self.using)
            self.place(3)
            transaction.savepoint_rollback(sid, using=self.using)
            self.place(4)
        found = {span.attributes["business.number"]: outcome(span) for span in otel_spans.named("order.placed")}
        assert found == {1: "committed", 2: "rolled_back", 3: "rolled_back", 4: "committed"}
        assert otel_metrics.value("django.business.events") == 2 == self.rows()

    def test_a_manual_savepoint_released(self, otel_spans):
        """It follows the transaction."""
        with self.atomic():
            sid = create_savepoint(using=self.using)
            self.place(1)
            transaction.savepoint_commit(sid, using=self.using)
            assert business_spans(otel_spans) == []
        assert business_spans(otel_spans) == [("order.placed", "committed")]

    def test_a_rollback_to_an_earlier_savepoint_undoes_later_ones(self, otel_spans):
        """SQL forgets the savepoints after it."""
        with self.atomic():
            first = create_savepoint(using=self.using)
            self.place(1)
            create_savepoint(using=self.using)
            self.place(2)
            transaction.savepoint_rollback(first, using=self.using)
        assert [outcome for _, outcome in business_spans(otel_spans)] == ["rolled_back", "rolled_back"]

    def test_savepoints_outside_of_a_transaction_are_nothing(self, otel_spans):
        """Django ignores them in autocommit; so do we, with our wrappers on."""
        with self.atomic():
            self.place(1)
        sid = create_savepoint(using=self.using)
        self.place(2)
        transaction.savepoint_rollback(sid, using=self.using)
        transaction.savepoint_commit(sid, using=self.using)
        assert [outcome for _, outcome in business_spans(otel_spans)] == ["committed", "autocommit"]

    # --- manual transactions ---

    @contextlib.contextmanager
    def manual(self):
        transaction.set_autocommit(False, using=self.using)
        try:
            yield
        finally:
            transaction.rollback(using=self.using)
            transaction.set_autocommit(True, using=self.using)

    def test_manual_commit_and_rollback(self, otel_spans, otel_metrics):
        """on_commit would raise inside the save."""
        with self.manual():
            self.place(1)
            assert business_spans(otel_spans) == []
            transaction.commit(using=self.using)
            assert business_spans(otel_spans) == [("order.placed", "committed")]
            self.place(2)
            transaction.rollback(using=self.using)
            assert business_spans(otel_spans) == [("order.placed", "committed"), ("order.placed", "rolled_back")]
        assert otel_metrics.value("django.business.events") == 1 == self.rows()

    def test_atomic_inside_a_manual_transaction(self, otel_spans):
        """The block is a savepoint there; the application commits."""
        with self.manual():
            with self.atomic():
                self.place(1)
            assert business_spans(otel_spans) == []
            with pytest.raises(Undo), self.atomic():
                self.place(2)
                raise Undo
            transaction.commit(using=self.using)
        found = {span.attributes["business.number"]: outcome(span) for span in otel_spans.named("order.placed")}
        assert found == {1: "committed", 2: "rolled_back"}

    def test_the_signal_of_a_manual_transaction_comes_with_the_commit(self, sent):
        """There is no switch back to autocommit to wait for."""
        with self.manual():
            self.place(1)
            transaction.commit(using=self.using)
            assert [event["outcome"] for event in sent] == ["committed"]

    # --- hooks ---

    def test_a_raising_on_commit_hook(self, otel_spans, otel_metrics, sent):
        """The row is committed whatever a hook does; on_commit would have dropped ours."""

        def fail():
            raise Undo

        with pytest.raises(Undo), self.atomic():
            transaction.on_commit(fail, using=self.using)
            self.place(1)
        assert business_spans(otel_spans) == [("order.placed", "committed")]
        assert otel_metrics.value("django.business.events") == 1 == self.rows()
        assert [event["outcome"] for event in sent] == ["committed"]

    def test_events_in_an_on_commit_hook(self, otel_spans):
        """The hook runs in autocommit."""
        with self.atomic():
            transaction.on_commit(lambda: self.place(2), using=self.using)
            self.place(1)
        assert [outcome for _, outcome in business_spans(otel_spans)] == ["committed", "autocommit"]

    # --- the end of the connection ---

    def test_close_inside_an_atomic_block(self, otel_spans, otel_metrics):
        """The database rolls back by itself."""
        with contextlib.suppress(Error), self.atomic():
            self.place(1)
            self.connection.close()
            assert business_spans(otel_spans) == [("order.placed", "rolled_back")]
        assert otel_metrics.value("django.business.events") == 0 == self.rows()
        with self.atomic():
            self.place(2)
        assert [outcome for _, outcome in business_spans(otel_spans)] == ["rolled_back", "committed"]

    def test_close_inside_a_manual_transaction(self, otel_spans, sent):
        """As above, without a block."""
        transaction.set_autocommit(False, using=self.using)
        self.place(1)
        self.connection.close()
        self.connection.connect()
        assert business_spans(otel_spans) == [("order.placed", "rolled_back")]
        assert [event["outcome"] for event in sent] == ["rolled_back"]
        assert self.rows() == 0

    def test_close_between_transactions(self, otel_spans):
        """A connection that was closed and opened again goes on as before."""
        with self.atomic():
            self.place(1)
        self.connection.close()
        with pytest.raises(Undo), self.atomic():
            self.place(2)
            raise Undo
        assert [outcome for _, outcome in business_spans(otel_spans)] == ["committed", "rolled_back"]

    def test_a_commit_that_fails(self, otel_spans, otel_metrics):
        """Django rolls back then; the error passes."""
        with self.atomic():
            self.place(0)
        with pytest.raises(DatabaseError), self.atomic():
            self.place(1)
            original = self.connection._commit

            def fail():
                self.connection._commit = original
                raise DatabaseError("the disk is full")

            self.connection._commit = fail
        assert [outcome for _, outcome in business_spans(otel_spans)] == ["committed", "rolled_back"]
        assert otel_metrics.value("django.business.events") == 1 == self.rows()

    def test_a_commit_that_is_forbidden_settles_nothing(self, otel_spans):
        """commit() inside atomic() raises before anything happens."""
        with self.atomic():
            self.place(1)
            with pytest.raises(transaction.TransactionManagementError):
                transaction.commit(using=self.using)
            with pytest.raises(transaction.TransactionManagementError):
                transaction.rollback(using=self.using)
            assert business_spans(otel_spans) == []
        assert business_spans(otel_spans) == [("order.placed", "committed")]

    def test_an_end_that_was_not_seen(self, otel_spans, otel_metrics):
        """COMMIT on the driver's own connection: no claim that it was committed, and no mix-up with what follows."""
        transaction.set_autocommit(False, using=self.using)
        self.place(1)
        self.connection.connection.commit()
        self.connection.autocommit = True
        self.place(2)
        self.connection.autocommit = False
        transaction.rollback(using=self.using)
        transaction.set_autocommit(True, using=self.using)
        assert [outcome for _, outcome in business_spans(otel_spans)] == ["rolled_back", "autocommit"]
        assert otel_metrics.value("django.business.events") == 1

    # --- faults inside ---

    def test_an_integrity_error_inside_an_atomic_block(self, otel_spans, otel_metrics):
        """Nothing stays current, the savepoint is undone, the rest is committed."""
        self.place(1)
        with api.span("view") as view, self.atomic():
            before = self.place(2)
            with pytest.raises(IntegrityError), self.atomic():
                self.place(3)
                self.place(1)
            assert trace.get_current_span() is view
            assert model_events.per_thread.saves == []
            before.status = "paid"
            before.save()
        assert trace.get_current_span() is trace.INVALID_SPAN
        found = [
            (span.name, span.attributes["business.number"], outcome(span))
            for span in otel_spans
            if "business.event" in span.attributes
        ]
        assert found == [
            ("order.placed", 1, "autocommit"),
            ("order.placed", 3, "rolled_back"),
            ("order.placed", 2, "committed"),
            ("order.paid", 2, "committed"),
        ]
        assert otel_metrics.value("django.business.events") == 3

    def test_an_integrity_error_that_ends_the_transaction(self, otel_spans):
        """Without a savepoint all is undone."""
        self.place(1)
        with pytest.raises(IntegrityError), self.atomic():
            self.place(2)
            self.place(1)
        assert business_spans(otel_spans) == [("order.placed", "autocommit"), ("order.placed", "rolled_back")]
        assert self.rows() == 1

    @pytest.mark.parametrize("fault", [KeyboardInterrupt, SystemExit])
    def test_base_exceptions_roll_back_like_all_others(self, otel_spans, fault):
        """They pass, and the outcome is recorded."""
        with pytest.raises(fault), self.atomic():
            self.place(1)
            raise fault
        assert business_spans(otel_spans) == [("order.placed", "rolled_back")]

    @pytest.mark.usefixtures("faults")
    @pytest.mark.parametrize("broken", ["_end", "_settle", "_deliver", "unit", "hold", "add", "note_owner"])
    def test_a_fault_in_the_tracker_never_reaches_the_application(self, broken):
        """The transaction does what it would have done."""
        property_or_method = mock.PropertyMock if broken == "unit" else mock.Mock
        with mock.patch.object(
            transactions.Tracker, broken, new_callable=property_or_method, side_effect=RuntimeError("ours")
        ):
            with self.atomic():
                self.place(1)
                with pytest.raises(Undo), self.atomic():
                    self.place(2)
                    raise Undo
            with pytest.raises(Undo), self.atomic():
                self.place(3)
                raise Undo
            with self.manual():
                self.place(4)
                transaction.commit(using=self.using)
        assert self.rows() == 2

    # --- deletes ---

    def test_a_deletion_is_committed_with_djangos_own_transaction(self, otel_spans):
        """The Collector opens one if there is none."""
        self.place().delete()
        assert business_spans(otel_spans) == [("order.placed", "autocommit"), ("order.removed", "committed")]

    def test_a_deletion_rolled_back(self, otel_spans, otel_metrics):
        """The cascade is undone as a whole."""
        customer = Customer.objects.using(self.using).create(name="x")
        self.place(1, customer=customer)
        self.place(2, customer=customer)
        with pytest.raises(Undo), self.atomic():
            customer.delete()
            raise Undo
        assert business_spans(otel_spans)[2:] == [("order.removed", "rolled_back")] * 2
        assert otel_metrics.value("django.business.events", business__event="order.removed") == 0
        assert self.rows() == 2

    # --- what an instance knows after a rollback ---

    def test_a_rolled_back_transition_fires_again(self, otel_spans):
        """The loaded values go back to those before."""
        order = self.place()
        for fails in (True, False, False):
            with contextlib.suppress(Undo), self.atomic():
                order.status = "paid"
                order.save()
                if fails:
                    raise Undo
        paid = [(outcome(span), span.attributes["business.from"]) for span in otel_spans.named("order.paid")]
        assert paid == [("rolled_back", "draft"), ("committed", "draft")]

    def test_a_rollback_to_a_savepoint_restores_what_was_before_it(self, otel_spans):
        """Not what was before the transaction."""
        order = self.place()
        with self.atomic():
            order.status = "shipped"
            order.save()
            with pytest.raises(Undo), self.atomic():
                order.status = "paid"
                order.save()
                raise Undo
            order.save()
        found = [(span.attributes["business.from"], outcome(span)) for span in otel_spans.named("order.paid")]
        assert found == [("shipped", "rolled_back"), ("shipped", "committed")]

    def test_an_outer_rollback_restores_through_released_savepoints(self, otel_spans):
        """Several saves in several savepoints: all of them undone at once."""
        order = self.place()
        with pytest.raises(Undo), self.atomic():
            for status in ("shipped", "paid", "draft", "shipped"):
                with self.atomic():
                    order.status = status
                    order.save()
            raise Undo
        order.status = "paid"
        order.save()
        assert outcome(otel_spans.named("order.paid")[-1]) == "autocommit"
        assert otel_spans.named("order.paid")[-1].attributes["business.from"] == "draft"

    def test_a_rolled_back_creation_is_created_again(self, otel_spans):
        """Also with the SQL inside its span, though Django does not take the instance for a new one any more."""
        order = Order(number=1, status="paid")
        with pytest.raises(Undo), self.atomic():
            order.save(using=self.using)
            raise Undo
        otel_spans.clear()
        order.save(using=self.using)
        span = otel_spans.one("order.placed")
        assert business_spans(otel_spans) == [("order.placed", "autocommit")]
        inside = {child.name for child in otel_spans if child.parent and child.parent.span_id == span.context.span_id}
        assert "INSERT business_app_order" in inside

    def test_a_refresh_in_a_transaction_that_is_rolled_back(self, otel_spans):
        """What was read there goes with it."""
        order = self.place()
        with pytest.raises(Undo), self.atomic():
            order.status = "paid"
            order.save()
            order.refresh_from_db()
            raise Undo
        order.save()
        assert [outcome(span) for span in otel_spans.named("order.paid")] == ["rolled_back", "autocommit"]

    # --- the signal ---

    def test_the_signal_comes_after_the_transaction_and_may_use_the_database(self, otel_spans):
        """Inside commit() a query would begin a transaction that is never ended."""
        received = []

        def audit(event, outcome, instance, **kwargs):
            received.append((event, outcome, self.connection.in_atomic_block, self.connection.autocommit))
            Customer.objects.using(self.using).create(name=f"{event} {outcome}")

        business_event.connect(audit)
        try:
            with self.atomic():
                self.place(1)
                with pytest.raises(Undo), self.atomic():
                    self.place(2)
                    raise Undo
            with pytest.raises(Undo), self.atomic():
                self.place(3)
                raise Undo
            self.place(4)
        finally:
            business_event.disconnect(audit)
        assert received == [
            ("order.placed", "rolled_back", True, False),
            ("order.placed", "committed", False, True),
            ("order.placed", "rolled_back", False, True),
            ("order.placed", "autocommit", False, True),
        ]
        # In the order of the rows: the first was written in the transaction that was committed.
        assert Customer.objects.using(self.using).count() == 4

    def test_a_receiver_may_save_in_a_transaction_of_its_own(self, otel_spans):
        """Events of receivers are events."""

        def again(event, instance, outcome, **kwargs):
            if instance.number < 3:
                with self.atomic():
                    self.place(instance.number + 1)

        business_event.connect(again)
        try:
            with self.atomic():
                self.place(1)
        finally:
            business_event.disconnect(again)
        assert business_spans(otel_spans) == [("order.placed", "committed")] * 3

    # --- test cases ---

    def run_case(self, base, test, **attributes):
        """Run `test` as a test case of Django's on this database."""

        def test_it(case):
            test()

        cls = type("Case", (base,), {"databases": {self.using}, "test_it": test_it, **attributes})
        result = unittest.TestResult()
        unittest.TestSuite([cls("test_it")]).run(result)
        assert not result.errors, result.errors[0][1]
        assert not result.failures, result.failures[0][1]
        assert result.testsRun == 1

    def test_events_are_visible_inside_a_test_case(self, otel_spans, otel_metrics, sent):
        """The test case's own transactions do not exist in production: what would be autocommit there is so here."""

        def test():
            order = self.place(1)
            assert business_spans(otel_spans) == [("order.placed", "autocommit")]
            order.status = "paid"
            order.save()
            assert business_spans(otel_spans)[1:] == [("order.paid", "autocommit")]
            assert otel_metrics.value("django.business.events") == 2
            assert len(sent) == 2

        self.run_case(TestCase, test)
        assert self.rows() == 0

    def test_atomic_blocks_inside_a_test_case_end_as_in_production(self, otel_spans, otel_metrics, sent):
        """Releasing the savepoint of the outermost block counts as commit, undoing it as rollback."""

        def test():
            with self.atomic():
                with self.atomic():
                    self.place(1)
                assert business_spans(otel_spans) == []
            assert business_spans(otel_spans) == [("order.placed", "committed")]
            with pytest.raises(Undo), self.atomic():
                self.place(2)
                raise Undo
            assert business_spans(otel_spans)[1:] == [("order.placed", "rolled_back")]
            with self.atomic(durable=True):
                self.place(3)
                with pytest.raises(Undo), self.atomic():
                    self.place(4)
                    raise Undo
            assert business_spans(otel_spans)[2:] == [("order.placed", "rolled_back"), ("order.placed", "committed")]
            assert otel_metrics.value("django.business.events") == 2
            assert [event["outcome"] for event in sent] == ["committed", "rolled_back", "rolled_back", "committed"]

        self.run_case(TestCase, test)

    def test_deletes_inside_a_test_case(self, otel_spans):
        """Django's own block around a delete has no savepoint there, so nothing would tell its end."""

        def test():
            order = self.place(1)
            order.delete()
            assert business_spans(otel_spans)[1:] == [("order.removed", "committed")]
            with self.atomic():
                self.place(2).delete()
                assert len(business_spans(otel_spans)) == 2
            assert business_spans(otel_spans)[2:] == [("order.placed", "committed"), ("order.removed", "committed")]

        self.run_case(TestCase, test)

    def test_events_of_set_up_test_data(self, otel_spans):
        """It runs in the class's transaction alone."""
        case = self

        def set_up_test_data(cls):
            cls.order = case.place(1)

        self.run_case(TestCase, lambda: None, setUpTestData=classmethod(set_up_test_data))
        assert business_spans(otel_spans) == [("order.placed", "autocommit")]

    def test_captured_on_commit_callbacks_inside_a_test_case(self, otel_spans):
        """Django's helper still sees the callbacks of the application, and none of ours."""

        def test():
            with TestCase.captureOnCommitCallbacks(using=self.using) as callbacks, self.atomic():
                self.place(1)
            assert callbacks == []
            assert business_spans(otel_spans) == [("order.placed", "committed")]

        self.run_case(TestCase, test)

    def test_a_transaction_test_case(self, otel_spans):
        """No transaction around: as in production."""

        def test():
            self.place(1)
            with self.atomic():
                self.place(2)
            with pytest.raises(Undo), self.atomic():
                self.place(3)
                raise Undo
            assert [found for _, found in business_spans(otel_spans)] == ["autocommit", "committed", "rolled_back"]

        # The flush at its end would empty every table of the project, and only some are in this database.
        with mock.patch.object(TransactionTestCase, "_fixture_teardown"):
            self.run_case(TransactionTestCase, test)

    # --- many ---

    def test_a_huge_transaction_holds_a_bounded_number_of_spans(self, otel_spans, otel_metrics, monkeypatch):
        """Beyond the limit events are counted, exactly, and their spans are counted as dropped."""
        monkeypatch.setattr(transactions, "PENDING_LIMIT", 5)
        with self.atomic():
            for number in range(8):
                self.place(number)
            with pytest.raises(Undo), self.atomic():
                self.place(100)
                raise Undo
        assert business_spans(otel_spans) == [("order.placed", "committed")] * 5
        assert otel_metrics.value("django.business.events") == 8 == self.rows()
        assert otel_metrics.value("django_otel.spans.dropped", django_otel__reason="transaction_limit") == 4
        with self.atomic():
            self.place(200)
        assert len(business_spans(otel_spans)) == 6

    def test_room_is_free_again_after_a_savepoint_was_undone(self, otel_spans, monkeypatch):
        """The limit is of what waits, not of what happened."""
        monkeypatch.setattr(transactions, "PENDING_LIMIT", 2)
        with self.atomic():
            for number in range(5):
                with pytest.raises(Undo), self.atomic():
                    self.place(number)
                    self.place(number + 10)
                    raise Undo
        assert business_spans(otel_spans) == [("order.placed", "rolled_back")] * 10

    def test_saving_one_instance_many_times_keeps_no_chain(self):
        """A thousand saves in a transaction remember one former state."""
        order = self.place()
        with self.atomic():
            for number in range(1000):
                order.priority = number
                with self.atomic():
                    order.save(update_fields=["priority"])
            depth, held = 0, order._state.__dict__[loaded._LOADED]
            while isinstance(held, loaded._Provisional):
                depth, held = depth + 1, held.previous
            assert depth <= 3

    def test_bulk_in_transactions(self, otel_spans, otel_metrics):
        """As aware of them as a save."""
        Order.objects.using(self.using).bulk_create([Order(number=1)])
        business.bulk(Order, "order.imported", count=1, using=self.using)
        with pytest.raises(Undo), self.atomic():
            business.bulk(Order, "order.imported", count=10, using=self.using)
            raise Undo
        with self.atomic():
            business.bulk(Order, "order.imported", count=100, using=self.using)
        assert [outcome for _, outcome in business_spans(otel_spans)] == ["autocommit", "rolled_back", "committed"]
        assert otel_metrics.value("django.business.events") == 101

    def test_threads_have_connections_of_their_own(self, otel_spans):
        """A commit here settles nothing there."""
        settled = []

        def work():
            with self.atomic():
                settled.append(business_spans(otel_spans))
            connections[self.using].close()

        with self.atomic():
            self.place(1)
            thread = threading.Thread(target=work)
            thread.start()
            thread.join(20)
            assert settled == [[]]
        assert business_spans(otel_spans) == [("order.placed", "committed")]

    def test_threads_do_not_see_each_others_saves(self, otel_spans):
        """What is current belongs to a thread: two saves under way at once keep their own parents."""
        barrier = threading.Barrier(2, timeout=60)
        errors = []

        def pause(**kwargs):
            barrier.wait()

        def work(number):
            try:
                with api.span(f"thread {number}"):
                    self.place(number)
            except BaseException as error:
                errors.append(error)
            finally:
                connections[self.using].close()

        pre_save.connect(pause, sender=Order)
        try:
            threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
        finally:
            pre_save.disconnect(pause, sender=Order)
        assert errors == []
        for span in otel_spans.named("order.placed"):
            parent = otel_spans.one(f"thread {span.attributes['business.number']}")
            assert span.parent.span_id == parent.context.span_id


def outcome(span):
    return span.attributes["django.transaction.outcome"]
