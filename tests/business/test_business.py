"""Business events: which saves and deletes are events, and what their spans, counters and signal say."""

from __future__ import annotations

import asyncio
import copy
import datetime
import gc
import pickle
import subprocess
import sys
import types
import uuid
import weakref
from decimal import Decimal
from unittest import mock

import django
import pytest
from django.core import serializers
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, connection, connections, models, transaction
from django.db.models import F
from django.db.models.signals import post_delete, post_init, post_save, pre_delete, pre_save
from django.test import override_settings
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from django_otel import api, business, runtime
from django_otel.business import happened, loaded, model_events, specs
from django_otel.config.parse import parse
from django_otel.signals import business_event
from django_otel.testing import override_sampling
from tests import sizes
from tests.business_app.models import (
    BugTicket,
    Customer,
    Order,
    OrderProxy,
    OverridingOrder,
    Parcel,
    ParcelScan,
    RushOrder,
    Ticket,
)
from tests.business_app.support import (  # noqa: F401 (fixtures)
    ORDER_EVENTS,
    business_spans,
    faults_fixture,
    nothing_went_wrong,
    registered_fixture,
    sent_fixture,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def orders(registered):
    """The usual registration of Order."""
    registered(Order, **ORDER_EVENTS)


def names(spans):
    return [name for name, outcome in business_spans(spans)]


# --- the span of one event ----------------------------------------------------------------


def test_a_created_order_is_one_internal_span_with_its_attributes(orders, otel_spans):
    """Name, kind, model, primary key, event, chosen attributes and outcome are the documented ones."""
    order = Order.objects.create(number=7, total=Decimal("12.50"))
    span = otel_spans.one("order.placed")
    assert span.kind is SpanKind.INTERNAL
    assert dict(span.attributes) == {
        "django.model": "business_app.Order",
        "django.model.pk": str(order.pk),
        "business.event": "order.placed",
        "business.id": order.pk,
        "business.number": 7,
        "business.total": 12.5,
        "django.transaction.outcome": "autocommit",
    }
    assert span.status.status_code is StatusCode.UNSET


def test_the_span_is_a_child_of_the_active_span_and_parent_of_the_sql(orders, otel_spans):
    """The SQL is inside the business span, and the business span inside what was active."""
    with api.span("checkout"):
        Order.objects.create(number=1)
    placed = otel_spans.one("order.placed")
    inserts = [span for span in otel_spans if span.parent and span.parent.span_id == placed.context.span_id]
    assert placed.parent.span_id == otel_spans.one("checkout").context.span_id
    assert [span.name.split()[0] for span in inserts] == ["INSERT"]
    assert placed.start_time <= inserts[0].start_time <= inserts[0].end_time <= placed.end_time


def test_the_span_lasts_from_pre_save_to_post_save(orders, otel_spans):
    """It includes a slow pre_save receiver registered later, and ends before the receivers of post_save."""
    import time

    during, begun_ns = [], []

    def slow_before(**kwargs):
        during.append(trace.get_current_span().name)
        time.sleep(0.05)

    def slow_after(**kwargs):
        during.append(trace.get_current_span())
        begun_ns.append(time.time_ns())
        time.sleep(0.2)

    pre_save.connect(slow_before, sender=Order)
    post_save.connect(slow_after, sender=Order)
    try:
        Order.objects.create(number=1)
    finally:
        pre_save.disconnect(slow_before, sender=Order)
        post_save.disconnect(slow_after, sender=Order)
    span = otel_spans.one("order.placed")
    assert span.end_time - span.start_time >= 50_000_000
    assert span.end_time <= begun_ns[0]
    assert during == ["order.placed", trace.INVALID_SPAN]


def test_a_transition_says_from_and_to(orders, otel_spans, otel_metrics):
    """A saved change to a registered value of a loaded instance is its event."""
    Order.objects.create(number=1)
    order = Order.objects.get()
    order.status = Order.Status.PAID
    order.save()
    span = otel_spans.one("order.paid")
    assert (span.attributes["business.from"], span.attributes["business.to"]) == ("draft", "paid")
    assert type(span.attributes["business.to"]) is str
    assert otel_metrics.value("django.business.events", business__event="order.paid") == 1


def test_several_events_of_one_save_are_siblings_and_the_first_has_the_sql(orders, otel_spans):
    """`updated` and a transition are two spans with one parent; only the first has children."""
    order = Order.objects.create(number=1)
    order.status = "paid"
    otel_spans.clear()
    with api.span("payment"):
        order.save()
    changed, paid, payment = (otel_spans.one(name) for name in ("order.changed", "order.paid", "payment"))
    assert changed.parent.span_id == paid.parent.span_id == payment.context.span_id
    parents = {span.parent.span_id for span in otel_spans if span.name.startswith("UPDATE")}
    assert parents == {changed.context.span_id}
    assert (changed.start_time, changed.end_time) == (paid.start_time, paid.end_time)
    assert "business.to" not in changed.attributes


def test_two_transitions_in_one_save_are_two_events(registered, otel_spans):
    """Each watched field is compared for itself."""
    registered(Order, transitions={"status": {"paid": "order.paid"}, "priority": {1: "order.rushed"}})
    order = Order.objects.create(number=1)
    order.status, order.priority = "paid", 1
    order.save()
    assert sorted(names(otel_spans)) == ["order.paid", "order.rushed"]
    assert otel_spans.one("order.rushed").attributes["business.to"] == 1


def test_creating_in_a_target_state_is_created_alone(orders, otel_spans):
    """A new object that is already paid was placed, and nothing else."""
    Order.objects.create(number=1, status="paid")
    assert names(otel_spans) == ["order.placed"]


def test_creating_in_a_target_state_without_a_created_event_is_nothing(registered, otel_spans):
    """No event, no business span."""
    registered(Order, transitions={"status": {"paid": "order.paid"}})
    Order.objects.create(number=1, status="paid")
    assert names(otel_spans) == []
    assert not [span for span in otel_spans if span.name.startswith("save ")]


def test_a_save_without_an_event_has_no_span_of_ours(registered, otel_spans):
    """The SQL of a save that changes nothing of interest keeps the parent it would have had."""
    registered(Order, transitions={"status": {"paid": "order.paid"}})
    order = Order.objects.create(number=1)
    otel_spans.clear()
    with api.span("view"):
        order.note = "changed"
        order.save()
    assert {span.parent.span_id for span in otel_spans if span.parent} == {otel_spans.one("view").context.span_id}
    assert {span.name.split()[0] for span in otel_spans} == {"UPDATE", "view"}


def test_saving_twice_fires_a_transition_once(orders, otel_spans):
    """The saved values are the loaded ones from then on."""
    order = Order.objects.create(number=1)
    order.status = "paid"
    order.save()
    order.save()
    assert names(otel_spans).count("order.paid") == 1
    assert names(otel_spans).count("order.changed") == 2


def test_transitions_back_and_forth_fire_each_time(orders, otel_spans):
    """There is no memory beyond the last saved value."""
    order = Order.objects.create(number=1)
    for status in ("paid", "draft", "paid"):
        order.status = status
        order.save()
    found = [name for name in names(otel_spans) if name != "order.changed"]
    assert found == ["order.placed", "order.paid", "order.reopened", "order.paid"]


def test_a_value_that_is_no_target_is_no_transition(orders, otel_spans):
    """Only registered values are events; a later change starts from the value in between."""
    order = Order.objects.create(number=1)
    order.status = "shipped"
    order.save()
    order.status = "paid"
    order.save()
    assert otel_spans.one("order.paid").attributes["business.from"] == "shipped"


def test_a_value_of_another_type_is_compared_as_the_column_holds_it(registered, otel_spans):
    """Text from a form becomes the same number in the database."""
    registered(Order, transitions={"priority": {2: "order.rushed"}})
    order = Order.objects.create(number=1, priority=1)
    order.priority = "2"
    order.save()
    assert otel_spans.one("order.rushed").attributes["business.to"] == 2
    order.priority = 2
    order.save()
    assert names(otel_spans) == ["order.rushed"]


def test_a_transition_from_null_leaves_from_out(registered, otel_spans):
    """OpenTelemetry has no null."""
    registered(Parcel, transitions={"weight_g": {500: "parcel.weighed"}})
    parcel = Parcel.objects.create()
    parcel.weight_g = 500
    parcel.save()
    attributes = otel_spans.one("parcel.weighed").attributes
    assert "business.from" not in attributes
    assert attributes["business.to"] == 500


def test_a_transition_to_null_can_be_registered(registered, otel_spans):
    """None is a value like any other."""
    registered(Parcel, transitions={"weight_g": {None: "parcel.unweighed"}})
    parcel = Parcel.objects.create(weight_g=5)
    parcel.weight_g = None
    parcel.save()
    assert otel_spans.one("parcel.unweighed").attributes["business.from"] == 5


def test_a_foreign_key_can_be_watched_without_loading_it(registered, otel_spans, django_assert_num_queries):
    """The column's value is compared, by the field's name or its attname."""
    first, second = (Customer.objects.create(name=name) for name in "ab")
    registered(Order, transitions={"customer": {second.pk: "order.moved"}}, attributes=["customer"])
    order = Order.objects.create(number=1, customer=first)
    order = Order.objects.get()
    order.customer = second
    with django_assert_num_queries(1):
        order.save(update_fields=["customer_id"])
    attributes = otel_spans.one("order.moved").attributes
    assert (attributes["business.from"], attributes["business.to"]) == (first.pk, second.pk)
    assert attributes["business.customer"] == second.pk


# --- what is loaded ----------------------------------------------------------------------------


def test_update_fields_without_the_field_is_no_transition(orders, otel_spans):
    """The status was not written; it is when it is saved."""
    order = Order.objects.create(number=1)
    order.status = "paid"
    order.save(update_fields=["note"])
    assert names(otel_spans) == ["order.placed", "order.changed"]
    order.save(update_fields=["status"])
    assert otel_spans.one("order.paid").attributes["business.from"] == "draft"


def test_empty_update_fields_saves_nothing_and_is_no_event(orders, otel_spans):
    """Django does not even send the signals."""
    order = Order.objects.create(number=1)
    otel_spans.clear()
    order.save(update_fields=[])
    assert len(otel_spans) == 0


def test_deferred_fields_are_never_loaded_for_us(registered, otel_spans, django_assert_num_queries):
    """defer() and only(): no query more than without the app, neither for transitions nor for attributes."""
    registered(Order, **ORDER_EVENTS | {"attributes": ("id", "note", "total")})
    Order.objects.create(number=1)
    with django_assert_num_queries(2):
        order = Order.objects.defer("status", "note").get()
        order.save()
    changed = otel_spans.one("order.changed")
    assert "business.note" not in changed.attributes
    assert changed.attributes["business.total"] == 0.0
    with django_assert_num_queries(2):
        order = Order.objects.only("id").get()
        order.number = 5
        order.save()
    assert names(otel_spans) == ["order.placed", "order.changed", "order.changed"]


def test_a_deferred_field_that_is_only_assigned_has_nothing_to_compare_with(
    orders, otel_spans, django_assert_num_queries
):
    """Whether it changed is not known, and asking would be a query. From that save on it is known."""
    Order.objects.create(number=1)
    order = Order.objects.only("id").get()
    order.status = "paid"
    with django_assert_num_queries(1):
        order.save()
    assert "order.paid" not in names(otel_spans)
    order.status = "draft"
    order.save()
    assert otel_spans.one("order.reopened").attributes["business.from"] == "paid"


def test_a_deferred_field_that_is_read_is_loaded(orders, otel_spans):
    """Reading it makes Django load it, and what it loaded counts."""
    Order.objects.create(number=1)
    order = Order.objects.only("id").get()
    assert order.status == "draft"
    order.status = "paid"
    order.save()
    assert otel_spans.one("order.paid").attributes["business.from"] == "draft"


def test_refresh_from_db_replaces_the_loaded_values(orders, otel_spans):
    """A change that another process has already made is not a transition of ours."""
    Order.objects.create(number=1)
    order = Order.objects.get()
    Order.objects.update(status="paid")
    order.refresh_from_db()
    order.save()
    assert "order.paid" not in names(otel_spans)
    order.status = "draft"
    order.save()
    assert otel_spans.one("order.reopened").attributes["business.from"] == "paid"


@pytest.mark.parametrize(
    "refresh",
    [
        lambda order: order.refresh_from_db(fields=["note"]),
        lambda order: order.refresh_from_db(None, iter(["note"])),
        lambda order: order.refresh_from_db(from_queryset=Order.objects.only("note")),
    ],
    ids=["fields", "iterator", "queryset"],
)
def test_a_partial_refresh_keeps_the_other_loaded_values(orders, otel_spans, refresh):
    """The status assigned before is still a change, however the fields to refresh were named."""
    Order.objects.create(number=1)
    order = Order.objects.get()
    order.status = "paid"
    refresh(order)
    order.save()
    assert otel_spans.one("order.paid").attributes["business.from"] == "draft"


def test_a_refresh_that_fails_changes_nothing(orders, otel_spans):
    """The exception passes, the loaded values stay."""
    order = Order.objects.create(number=1)
    clone = Order.objects.get()
    Order.objects.all().delete()
    with pytest.raises(Order.DoesNotExist):
        clone.refresh_from_db()
    assert loaded.loaded_values(clone) == {"status": "draft"}
    assert loaded.per_thread.refreshing == []
    assert order is not clone


def test_expressions_are_unknown_until_they_are_loaded(registered, otel_spans):
    """F() is computed by the database; from Django 6.0 on a save brings the result back, before it stays unknown."""
    registered(Order, transitions={"priority": {1: "order.rushed", 5: "order.urgent"}}, attributes=["priority"])
    order = Order.objects.create(number=1, priority=0)
    order.priority = F("priority") + 1
    order.save()
    assert names(otel_spans) == (["order.rushed"] if django.VERSION >= (6, 0) else [])
    order.refresh_from_db()
    assert order.priority == 1
    order.priority = 5
    order.save()
    assert otel_spans.one("order.urgent").attributes["business.from"] == 1


def test_saving_a_row_that_was_not_loaded_is_an_update_without_transition(orders, otel_spans):
    """Order(pk=existing).save() updates; which value was there before is not known."""
    existing = Order.objects.create(number=1)
    Order(pk=existing.pk, number=1, status="paid").save()
    assert names(otel_spans) == ["order.placed", "order.changed"]
    # It began as a creation, and was corrected.
    assert len([span for span in otel_spans if span.name.startswith("save ")]) == 0
    changed = otel_spans.one("order.changed")
    assert [
        span.name.split()[0] for span in otel_spans if span.parent and span.parent.span_id == changed.context.span_id
    ]


def test_an_expected_creation_that_updates_without_an_event_leaves_no_event(registered, otel_spans, otel_metrics):
    """Only `created` is registered and the row existed: the span around the SQL is no business event."""
    registered(Order, created="order.placed")
    existing = Order.objects.create(number=1)
    otel_spans.clear()
    Order(pk=existing.pk, number=1).save()
    assert names(otel_spans) == []
    span = otel_spans.one("save business_app.Order")
    assert dict(span.attributes) == {"django.model": "business_app.Order"}
    assert span.status.status_code is StatusCode.UNSET
    assert otel_metrics.value("django.business.events") == 1


def test_a_receiver_of_pre_save_that_changes_the_value_is_seen(registered, otel_spans):
    """Receivers that run after ours count as well: what was written decides."""
    registered(Order, transitions={"status": {"paid": "order.paid"}})

    def pay(instance, **kwargs):
        instance.status = "paid"

    order = Order.objects.create(number=1)
    pre_save.connect(pay, sender=Order)
    try:
        order.save()
    finally:
        pre_save.disconnect(pay, sender=Order)
    span = otel_spans.one("order.paid")
    assert (span.attributes["business.from"], span.attributes["business.to"]) == ("draft", "paid")


def test_a_receiver_of_pre_save_that_takes_the_change_back_is_seen(registered, otel_spans):
    """A transition that was expected and not written is none."""
    registered(Order, transitions={"status": {"paid": "order.paid"}})

    def keep(instance, **kwargs):
        instance.status = "draft"

    order = Order.objects.create(number=1)
    order.status = "paid"
    pre_save.connect(keep, sender=Order)
    try:
        order.save()
    finally:
        pre_save.disconnect(keep, sender=Order)
    assert names(otel_spans) == []


def test_a_receiver_of_post_save_that_saves_again_makes_its_own_event(registered, otel_spans):
    """Also a receiver connected before ours: paid by the first save, shipped by the second."""

    def ship(instance, created, **kwargs):
        if instance.status == "paid":
            instance.status = "shipped"
            instance.save()

    post_save.connect(ship, sender=Order)
    try:
        registered(Order, transitions={"status": {"paid": "order.paid", "shipped": "order.shipped"}})
        order = Order.objects.create(number=1)
        order.status = "paid"
        order.save()
    finally:
        post_save.disconnect(ship, sender=Order)
    assert names(otel_spans) == ["order.paid", "order.shipped"]
    shipped = otel_spans.one("order.shipped")
    assert shipped.attributes["business.from"] == "paid"
    assert shipped.parent is None


def test_a_save_of_another_model_inside_a_save_is_its_child(registered, otel_spans):
    """Saves nest, and each gets back what was current before."""
    registered(Order, created="order.placed")
    registered(Customer, created="customer.added")

    def add_customer(instance, **kwargs):
        instance.customer = Customer.objects.create(name="new")

    pre_save.connect(add_customer, sender=Order)
    try:
        Order.objects.create(number=1)
    finally:
        pre_save.disconnect(add_customer, sender=Order)
    placed, added = otel_spans.one("order.placed"), otel_spans.one("customer.added")
    assert added.parent.span_id == placed.context.span_id
    order_insert = [span for span in otel_spans if span.name == "INSERT business_app_order"]
    assert [span.parent.span_id for span in order_insert] == [placed.context.span_id]


# --- ways to save ----------------------------------------------------------------------------


def test_get_or_create_and_update_or_create(orders, otel_spans, django_assert_num_queries):
    """The manager's methods save like anybody else."""
    order, created = Order.objects.get_or_create(number=1)
    assert created
    Order.objects.get_or_create(number=1)
    assert names(otel_spans) == ["order.placed"]
    Order.objects.update_or_create(number=1, defaults={"status": "paid"})
    assert names(otel_spans) == ["order.placed", "order.changed", "order.paid"]
    Order.objects.update_or_create(number=2, defaults={"status": "paid"})
    assert names(otel_spans)[3:] == ["order.placed"]


def test_select_for_update_loads_like_any_query(orders, otel_spans):
    """The values under the lock are the loaded ones."""
    Order.objects.create(number=1)
    with transaction.atomic():
        order = Order.objects.select_for_update().get()
        order.status = "paid"
        order.save()
    assert ("order.paid", "committed") in business_spans(otel_spans)


def test_force_insert_and_force_update(orders, otel_spans):
    """Whether a row was inserted decides, not how the save was asked for."""
    order = Order(number=1)
    order.save(force_insert=True)
    order.status = "paid"
    order.save(force_update=True)
    assert names(otel_spans) == ["order.placed", "order.changed", "order.paid"]


def test_a_copy_made_by_clearing_the_primary_key_is_created(orders, otel_spans):
    """The documented way to copy an instance: Django inserts, so it is a creation."""
    order = Order.objects.create(number=1, status="paid")
    order = Order.objects.get()
    order.pk = None
    order.number = 2
    order.save()
    assert names(otel_spans) == ["order.placed", "order.placed"]


def test_bulk_create_update_and_bulk_update_emit_nothing(orders, otel_spans, otel_metrics):
    """They send no signals; `business.bulk` is for those."""
    made = Order.objects.bulk_create([Order(number=1), Order(number=2)])
    Order.objects.update(status="paid")
    made[0].status = "paid"
    Order.objects.bulk_update(made, ["status"])
    assert names(otel_spans) == []
    assert otel_metrics.value("django.business.events") == 0


def test_fixtures_make_no_events_and_are_the_loaded_values(orders, otel_spans, otel_metrics):
    """`raw` saves restore a state; nothing was placed or paid."""
    text = serializers.serialize("json", [Order(pk=5, number=1)])
    for wrapped in serializers.deserialize("json", text):
        wrapped.save()
        order = wrapped.object
    assert names(otel_spans) == []
    assert otel_metrics.value("django.business.events") == 0
    assert otel_metrics.value("django.model.operations") == 0
    order.status = "paid"
    order.save()
    assert otel_spans.one("order.paid").attributes["business.from"] == "draft"


def test_a_raw_save_through_the_instance_makes_no_event(orders, otel_spans):
    """Also when it runs through our own wrapper."""
    order = Order(pk=9, number=1)
    with api.span("import"):
        order.save_base(raw=True)
    parents = {span.parent.span_id for span in otel_spans if span.parent}
    assert parents == {otel_spans.one("import").context.span_id}
    order.status = "paid"
    order.save()
    assert names(otel_spans) == ["order.changed", "order.paid"]


def test_save_base_called_on_the_base_class_is_an_event_without_children(orders, otel_spans):
    """Nothing can be current around the SQL then, but the event happened."""
    models.Model.save_base(Order(number=1))
    assert names(otel_spans) == ["order.placed"]


def test_async_saves_have_the_active_span_as_parent(orders, otel_spans, django_db_blocker):
    """asave, acreate and adelete run in another thread with the caller's context."""

    async def run():
        with api.span("view") as view:
            order = await Order.objects.acreate(number=1)
            order.status = "paid"
            await order.asave()
            await order.adelete()
            assert trace.get_current_span() is view

    from asgiref.sync import async_to_sync

    async_to_sync(run)()
    view = otel_spans.one("view")
    for name in ("order.placed", "order.paid", "order.removed"):
        assert otel_spans.one(name).parent.span_id == view.context.span_id


# --- faults of the application ------------------------------------------------------------------


def test_an_integrity_error_in_an_atomic_block_leaves_nothing_current(orders, otel_spans, otel_metrics):
    """post_save never comes then: no event, no count, the former span current again, the error recorded."""
    Order.objects.create(number=1)
    otel_spans.clear()
    with api.span("view") as view, transaction.atomic():
        with pytest.raises(IntegrityError), transaction.atomic():
            Order.objects.create(number=1)
        assert trace.get_current_span() is view
        Order.objects.create(number=2)
    assert business_spans(otel_spans) == [("order.placed", "committed")]
    failed = otel_spans.one("save business_app.Order")
    assert failed.status.status_code is StatusCode.ERROR
    assert dict(failed.attributes) == {
        "django.model": "business_app.Order",
        "error.type": "django.db.utils.IntegrityError",
    }
    assert failed.events == ()
    assert not failed.status.description
    assert otel_metrics.value("django.business.events") == 2
    assert otel_metrics.value("django.model.operations") == 2


@pytest.mark.parametrize("is_before_ours", [True, False])
@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, asyncio.CancelledError, SystemExit])
def test_whatever_a_receiver_raises_passes_and_nothing_stays_current(registered, otel_spans, fault, is_before_ours):
    """An exception in pre_save, before or after our receiver: the save does not happen, the context is restored."""

    def refuse(**kwargs):
        raise fault("no")

    if is_before_ours:
        pre_save.connect(refuse, sender=Order)
    registered(Order, **ORDER_EVENTS)
    if not is_before_ours:
        pre_save.connect(refuse, sender=Order)
    try:
        with api.span("view") as view:
            with pytest.raises(fault):
                Order.objects.create(number=1)
            assert trace.get_current_span() is view
    finally:
        pre_save.disconnect(refuse, sender=Order)
    assert model_events.per_thread.saves == []
    assert names(otel_spans) == []
    assert Order.objects.count() == 0


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
def test_an_exception_in_post_save_comes_after_the_event(registered, otel_spans, fault):
    """The row is written by then, so the event stands; the application gets its exception."""

    def fail(**kwargs):
        raise fault("too late")

    registered(Order, created="order.placed")
    post_save.connect(fail, sender=Order)
    try:
        with pytest.raises(fault):
            Order.objects.create(number=1)
    finally:
        post_save.disconnect(fail, sender=Order)
    assert names(otel_spans) == ["order.placed"]


def test_keyboard_interrupt_in_the_sql_leaves_nothing_behind(orders, otel_spans):
    """The innermost place where a signal handler may raise."""

    def interrupt(execute, sql, params, many, context):
        raise KeyboardInterrupt

    with connection.execute_wrapper(interrupt), pytest.raises(KeyboardInterrupt):
        Order(number=1).save()
    assert model_events.per_thread.saves == []
    assert names(otel_spans) == []


# --- faults of our own --------------------------------------------------------------------------


class _CountingOrder:
    """Counts how often the real save ran."""

    def __init__(self):
        self.saves = 0

    def __call__(self, execute, sql, params, many, context):
        self.saves += sql.startswith("INSERT")
        return execute(sql, params, many, context)


@pytest.mark.usefixtures("faults")
@pytest.mark.parametrize(
    "broken",
    [
        "django_otel.business.model_events.spec_of",
        "django_otel.business.model_events._events_of_save",
        "django_otel.business.model_events._remember_saved",
        "django_otel.business.happened._attributes",
        "django_otel.business.happened._count_event",
        "django_otel.business.model_events.loaded_values",
        "django_otel.business.model_events.start_span",
        "django_otel.business.model_events._end_without_event",
        "django_otel.business.transactions.outcome_now",
        "django_otel.business.transactions.tracker",
        "django_otel.runtime.tracer",
        "opentelemetry.context.attach",
    ],
)
def test_a_fault_of_ours_never_reaches_the_application(orders, broken):
    """Whatever part of ours breaks: one INSERT, one UPDATE, one DELETE, no exception, nothing current."""
    with mock.patch(broken, side_effect=RuntimeError("ours")) as patched:
        counting = _CountingOrder()
        with connection.execute_wrapper(counting), transaction.atomic():
            order = Order.objects.create(number=1)
            order = Order.objects.get()
            order.status = "paid"
            order.save()
            order.refresh_from_db()
        assert counting.saves == 1
        with pytest.raises(IntegrityError), transaction.atomic():
            Order.objects.create(number=1)
        order.delete()
        assert patched.called
    assert Order.objects.count() == 0
    assert model_events.per_thread.saves == []


@pytest.mark.usefixtures("faults")
def test_a_span_processor_that_raises_does_not_break_a_commit(orders, otel_metrics):
    """span.end() runs foreign code in the middle of connection.commit()."""
    with mock.patch("opentelemetry.sdk.trace.Span.end", side_effect=RuntimeError("processor")):
        with transaction.atomic():
            Order.objects.create(number=1)
            Order.objects.create(number=2)
    assert Order.objects.count() == 2
    assert otel_metrics.value("django.business.events") == 2


# --- unregistered models ---------------------------------------------------------------------------


def test_unregistered_models_have_no_receiver_and_no_wrapper(orders):
    """No receiver is connected and no method replaced, on them or on Model; post_init never."""
    signals = (pre_save, post_save, pre_delete, post_delete)
    assert not any(signal.has_listeners(Customer) for signal in signals)
    assert all(signal.has_listeners(Order) for signal in signals)
    assert not post_init.has_listeners(Order)
    for name in ("save_base", "from_db", "refresh_from_db"):
        assert name not in vars(Customer)
        assert getattr(models.Model, name).__module__ == "django.db.models.base"
    assert Customer.save_base is models.Model.save_base


def test_a_thousand_saves_of_an_unlisted_model_never_call_us(orders):
    """A model that is not registered costs nothing."""
    called = []
    codes = {
        function.__code__
        for module in (model_events, loaded, happened, specs)
        for function in vars(module).values()
        if isinstance(function, types.FunctionType) and function.__code__.co_filename == module.__file__
    }
    assert model_events.open_save.__code__ in codes

    def watch(frame, event, argument):
        if event == "call" and frame.f_code in codes:
            called.append(frame.f_code.co_name)

    sys.setprofile(watch)
    try:
        for number in range(1000):
            Customer(name=str(number)).save()
    finally:
        sys.setprofile(None)
    assert called == []


def test_models_without_transitions_do_not_touch_loading(registered):
    """Remembering loaded values costs something for each row, so only those who need it pay."""
    registered(Order, created="order.placed")
    assert "from_db" not in vars(Order)
    assert "save_base" in vars(Order)


def test_without_a_deleted_event_deletes_stay_fast(registered, django_assert_num_queries):
    """Delete signals make Django load the rows that it deletes, which was not asked for."""
    registered(Parcel, created="parcel.packed", updated="parcel.changed")
    assert not pre_delete.has_listeners(Parcel)
    assert not post_delete.has_listeners(Parcel)
    Parcel.objects.create()
    with django_assert_num_queries(1):
        Parcel.objects.all().delete()


def test_the_number_of_queries_is_unchanged(registered, django_assert_num_queries):
    """Everything but a deletion with a `deleted` event makes the queries it always made."""

    def work():
        order = Order.objects.create(number=1)
        order.status = "paid"
        order.save()
        order = Order.objects.select_related("customer").only("number", "customer__name").get()
        order.save()
        Order.objects.update_or_create(number=1, defaults={"note": "x"})
        rush = RushOrder.objects.create(number=2)
        rush.save()
        Order.objects.all().delete()

    with connections["default"].cursor():
        from django.test.utils import CaptureQueriesContext

        with CaptureQueriesContext(connection) as before:
            work()
        registered(Order, **{key: value for key, value in ORDER_EVENTS.items() if key != "deleted"})
        with CaptureQueriesContext(connection) as after:
            work()
    # RushOrder's parents make Django load for itself; the same either way.
    assert len(after) == len(before)


# --- proxies, children, abstract classes ------------------------------------------------------------


def test_a_proxy_of_a_registered_model_makes_its_events(orders, otel_spans, otel_metrics):
    """The row is the same, so is the label."""
    OrderProxy.objects.create(number=1)
    order = OrderProxy.objects.get()
    order.status = "paid"
    order.save()
    order.delete()
    assert names(otel_spans) == ["order.placed", "order.changed", "order.paid", "order.removed"]
    assert {span.attributes["django.model"] for span in otel_spans if "django.model" in span.attributes} == {
        "business_app.Order"
    }
    assert otel_metrics.value("django.model.operations", django__model="business_app.Order") == 3


def test_a_registered_proxy_is_alone(registered, otel_spans):
    """Its concrete model is another class and not registered."""
    registered(OrderProxy, created="proxy.placed")
    Order.objects.create(number=1)
    assert names(otel_spans) == []
    OrderProxy.objects.create(number=2)
    assert otel_spans.one("proxy.placed").attributes["django.model"] == "business_app.OrderProxy"
    assert not pre_save.has_listeners(Order)


def test_a_proxy_registered_beside_its_model_has_its_own_events(orders, registered, otel_spans):
    """The nearest registration holds."""
    registered(OrderProxy, created="proxy.placed")
    OrderProxy.objects.create(number=1)
    Order.objects.create(number=2)
    assert names(otel_spans) == ["proxy.placed", "order.placed"]


def test_a_multi_table_child_makes_its_parents_events_once(orders, otel_spans):
    """A rush order is an order: one span for each save, with the SQL of both tables inside."""
    RushOrder.objects.create(number=1, courier="x")
    placed = otel_spans.one("order.placed")
    inside = [span.name for span in otel_spans if span.parent and span.parent.span_id == placed.context.span_id]
    assert [name for name in inside if name.startswith("INSERT")] == [
        "INSERT business_app_order",
        "INSERT business_app_rushorder",
    ]
    assert placed.attributes["django.transaction.outcome"] == "autocommit"
    order = RushOrder.objects.get()
    order.status = "paid"
    order.save()
    assert names(otel_spans) == ["order.placed", "order.changed", "order.paid"]


def test_deleting_a_multi_table_child_removes_its_parents_row_once(orders, otel_spans):
    """Django tells of the parent's row; keeping the parent is no removal."""
    RushOrder.objects.create(number=1).delete()
    assert names(otel_spans) == ["order.placed", "order.removed"]
    RushOrder.objects.create(number=2).delete(keep_parents=True)
    assert names(otel_spans) == ["order.placed", "order.removed", "order.placed"]


def test_a_registered_child_has_its_own_events(orders, registered, otel_spans):
    """With fields of the parent as well as its own."""
    registered(RushOrder, created="rush.placed", transitions={"status": {"paid": "rush.paid"}}, attributes=["courier"])
    order = RushOrder.objects.create(number=1, courier="bike")
    order.status = "paid"
    order.save()
    assert names(otel_spans) == ["rush.placed", "rush.paid"]
    assert otel_spans.one("rush.paid").attributes["business.courier"] == "bike"
    assert otel_spans.one("rush.paid").attributes["django.model"] == "business_app.RushOrder"


def test_a_class_with_its_own_methods_is_called_through(registered, otel_spans):
    """save_base, from_db and refresh_from_db of the class run once each, and keep their place after uninstalling."""
    own = {name: vars(OverridingOrder)[name] for name in ("save_base", "from_db", "refresh_from_db")}
    registered(OverridingOrder, created="own.placed", transitions={"status": {"paid": "own.paid"}})
    registered(Order, created="order.placed")
    OverridingOrder.calls.clear()
    OverridingOrder.objects.create(number=1)
    order = OverridingOrder.objects.get()
    assert OverridingOrder.calls == ["save_base", "from_db"]
    order.refresh_from_db()
    assert OverridingOrder.calls == ["save_base", "from_db", "refresh_from_db", "from_db"]
    order.status = "paid"
    order.save()
    assert names(otel_spans) == ["own.placed", "own.paid"]
    business.unregister(OverridingOrder, Order)
    assert {name: vars(OverridingOrder)[name] for name in own} == own
    assert "save_base" not in vars(Order)


def test_a_child_that_overrides_and_inherits_the_registration(orders, otel_spans):
    """super() leads from the child's method to our wrapper on the parent."""
    OverridingOrder.objects.create(number=1)
    order = OverridingOrder.objects.get()
    order.status = "paid"
    order.save()
    assert names(otel_spans) == ["order.placed", "order.changed", "order.paid"]


def test_a_model_with_an_abstract_base(registered, otel_spans):
    """Fields of the abstract class are fields of the model."""
    registered(BugTicket, created="bug.filed", transitions={"status": {"closed": "bug.closed"}})
    ticket = BugTicket.objects.create()
    ticket.status = "closed"
    ticket.save()
    assert names(otel_spans) == ["bug.filed", "bug.closed"]


def test_an_abstract_class_registers_its_models(registered, otel_spans):
    """Each under its own label."""
    registered(Ticket, created="ticket.filed", transitions={"status": {"closed": "ticket.closed"}})
    ticket = BugTicket.objects.create()
    ticket = BugTicket.objects.get()
    ticket.status = "closed"
    ticket.save()
    assert names(otel_spans) == ["ticket.filed", "ticket.closed"]
    assert otel_spans.one("ticket.closed").attributes["django.model"] == "business_app.BugTicket"
    business.unregister(Ticket)
    assert "save_base" not in vars(BugTicket)


def test_a_primary_key_with_a_default(registered, otel_spans):
    """Known before the insert, and still a creation."""
    registered(Parcel, created="parcel.packed", updated="parcel.changed", attributes=["id"])
    key = uuid.uuid4()
    parcel = Parcel.objects.create(id=key)
    parcel.save()
    assert names(otel_spans) == ["parcel.packed", "parcel.changed"]
    attributes = otel_spans.one("parcel.packed").attributes
    assert attributes["django.model.pk"] == attributes["business.id"] == str(key)


def test_a_composite_primary_key(registered, otel_spans):
    """Its parts in the order of the definition."""
    registered(ParcelScan, created="parcel.scanned", deleted="scan.removed")
    scan = ParcelScan.objects.create(parcel_number=4, station="north")
    scan.delete()
    assert otel_spans.one("parcel.scanned").attributes["django.model.pk"] == "4,north"
    assert otel_spans.one("scan.removed").attributes["django.model.pk"] == "4,north"


# --- deletes ------------------------------------------------------------------------------------------


def test_a_deletion_is_a_span_from_pre_to_post_delete_that_is_never_current(orders, otel_spans, otel_metrics):
    """A cascade sends all pre_delete before all post_delete, so these spans could not nest."""
    customer = Customer.objects.create(name="a")
    keys = [Order.objects.create(number=number, customer=customer).pk for number in range(3)]
    otel_spans.clear()
    current = []

    def look(**kwargs):
        current.append(trace.get_current_span())

    pre_delete.connect(look, sender=Order)
    try:
        with api.span("view") as view:
            customer.delete()
    finally:
        pre_delete.disconnect(look, sender=Order)
    assert current == [view] * 3
    spans = otel_spans.named("order.removed")
    assert sorted(span.attributes["django.model.pk"] for span in spans) == sorted(map(str, keys))
    parent = otel_spans.one("view").context.span_id
    assert all(span.parent.span_id == parent and span.start_time < span.end_time for span in spans)
    assert all("business.number" in span.attributes for span in spans)
    assert otel_metrics.value("django.business.events", business__event="order.removed") == 3


def test_a_queryset_deletion_is_one_event_for_each_row(orders, otel_spans):
    """With the `deleted` event Django loads the rows and sends the signals."""
    Order.objects.create(number=1)
    Order.objects.create(number=2)
    Order.objects.all().delete()
    assert names(otel_spans).count("order.removed") == 2


def test_an_object_can_be_saved_again_after_its_deletion(orders, otel_spans):
    """It is created again."""
    order = Order.objects.create(number=1)
    order.delete()
    order.save()
    assert names(otel_spans) == ["order.placed", "order.removed", "order.placed"]


# --- attributes -----------------------------------------------------------------------------------------


@sizes.each(
    ("value", "expected"),
    [
        (Decimal("19.99"), 19.99),
        (Decimal("12.50"), 12.5),
        (Decimal("0.1"), 0.1),
        (Decimal("12345678901234567890.12"), "12345678901234567890.12"),
        (Decimal("1E+400"), "1E+400"),
        (Decimal("NaN"), "NaN"),
        (Decimal("sNaN"), "sNaN"),
        (Decimal("-Infinity"), "-Infinity"),
        (True, True),
        (3, 3),
        (2**70, str(2**70)),
        (1.5, 1.5),
        ("text", "text"),
        (Order.Status.PAID, "paid"),
        (datetime.date(2024, 2, 29), "2024-02-29"),
        (datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC), "2024-02-29T12:30:00+00:00"),
        (datetime.time(7, 5), "07:05:00"),
        (datetime.timedelta(hours=1), "P0DT01H00M00S"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ({"a": [1]}, '{"a": [1]}'),
        ([1, 2], [1, 2]),
        ([{"a": 1}], '[{"a": 1}]'),
        (None, None),
        (b"secret", None),
        (F("number"), None),
    ],
)
def test_attribute_values_keep_their_type_where_opentelemetry_has_it(value, expected):
    """A Decimal is a number where a float holds every digit of it, and text where not."""
    cleaned = happened.clean(value)
    assert cleaned == expected
    assert type(cleaned) is type(expected)


def test_attributes_are_those_after_the_save(registered, otel_spans):
    """The key the database gave is there, and what is null is not."""
    registered(Order, created="order.placed", attributes=["pk", "placed_on", "data", "customer"])
    order = Order.objects.create(number=1, placed_on=datetime.date(2024, 1, 2), data={"a": 1})
    attributes = otel_spans.one("order.placed").attributes
    assert attributes["business.pk"] == order.pk
    assert attributes["business.placed_on"] == "2024-01-02"
    assert attributes["business.data"] == '{"a": 1}'
    assert "business.customer" not in attributes


# --- metrics, sampling, switches --------------------------------------------------------------------------


def test_operations_are_counted_by_model(orders, otel_metrics):
    """create, update and delete of registered models."""
    order = Order.objects.create(number=1)
    order.save()
    order.save()
    order.delete()
    Customer.objects.create(name="x")
    for operation, count in (("create", 1), ("update", 2), ("delete", 1)):
        assert otel_metrics.value("django.model.operations", django__model__operation=operation) == count
    assert otel_metrics.value("django.model.operations") == 4


def test_metric_false_counts_nothing(registered, otel_spans, otel_metrics):
    """The spans are there all the same, in and out of a transaction."""
    registered(Order, created="order.placed", metric=False)
    Order.objects.create(number=1)
    with transaction.atomic():
        Order.objects.create(number=2)
    business.bulk(Order, "order.placed", count=5)
    assert len(names(otel_spans)) == 3
    assert otel_metrics.value("django.business.events") == 0
    assert otel_metrics.value("django.model.operations") == 0


def test_metrics_count_what_is_not_sampled(orders, otel_spans, otel_metrics):
    """Without a span events are still counted, and nothing is held for them."""
    with override_sampling(0.0):
        with transaction.atomic():
            Order.objects.create(number=1)
        Order.objects.create(number=2)
    assert names(otel_spans) == []
    assert otel_metrics.value("django.business.events", business__event="order.placed") == 2


def test_untraced_code_makes_no_business_spans(orders, otel_spans, otel_metrics):
    """`untraced` holds for them as for all others."""
    with api.untraced:
        Order.objects.create(number=1)
    assert len(otel_spans) == 0
    assert otel_metrics.value("django.business.events") == 1


def test_disabled_telemetry_disconnects_everything(orders, otel_spans):
    """ENABLED False: the registered models are as free as all others; and back again."""
    with override_settings(OTEL={"ENABLED": False}):
        assert not pre_save.has_listeners(Order)
        assert "save_base" not in vars(Order)
        Order.objects.create(number=1)
        business.bulk(Order, "order.placed", count=3)
    assert names(otel_spans) == []
    Order.objects.create(number=2)
    assert names(otel_spans) == ["order.placed"]


def test_overridden_settings_register_and_take_back(otel_spans, otel_metrics):
    """BUSINESS in settings.OTEL follows override_settings; numbers already counted stay."""
    entry = {
        "created": "order.placed",
        "transitions": {"status": {"paid": "order.paid"}},
        "attributes": ["number"],
    }
    with override_settings(OTEL={"BUSINESS": {"business_app.Order": entry}}):
        order = Order.objects.create(number=3)
        order.status = "paid"
        order.save()
        assert names(otel_spans) == ["order.placed", "order.paid"]
        assert otel_spans.one("order.placed").attributes["business.number"] == 3
    Order.objects.create(number=4)
    assert otel_metrics.value("django.business.events") == 2
    assert not post_save.has_listeners(Order)


def test_settings_replace_keys_of_the_code(orders, otel_spans):
    """The project has the last word over an app's otel.py, key by key."""
    entry = {"created": "shop.order", "attributes": []}
    with override_settings(OTEL={"BUSINESS": {"business_app.order": entry}}):
        assert business.problems() == []
        order = Order.objects.create(number=1)
        order.status = "paid"
        order.save()
    assert names(otel_spans) == ["shop.order", "order.changed", "order.paid"]
    assert "business.number" not in otel_spans.one("shop.order").attributes


def test_uninstalling_leaves_the_wrapper_of_somebody_else_in_place(registered):
    """Another library wrapped our wrapper: it keeps its own, and ours passes on."""
    registered(Order, created="order.placed")
    ours = Order.save_base

    def theirs(self, *args, **kwargs):
        return ours(self, *args, **kwargs)

    Order.save_base = theirs
    try:
        business.unregister(Order)
        assert Order.save_base is theirs
        Order.objects.create(number=1)
    finally:
        del Order.save_base
    assert Order.objects.count() == 1


def test_installing_twice_connects_once(orders, otel_spans):
    """Every restart of the runtime installs again."""
    business.install(runtime.current().config)
    business.install(runtime.current().config)
    Order.objects.create(number=1)
    assert names(otel_spans) == ["order.placed"]


# --- copies of instances --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda order: pickle.loads(pickle.dumps(order))],
    ids=["copy", "deep", "pickle"],
)
def test_copies_of_an_instance_know_what_was_loaded(orders, otel_spans, duplicate):
    """Copying, deep copying and pickling work, keep equality, and do not share later changes."""
    Order.objects.create(number=1)
    order = Order.objects.get()
    with transaction.atomic():
        order.note = "x"
        order.save()
        twin = duplicate(order)
        assert twin == order
        assert hash(twin) == hash(order)
        twin.status = "paid"
        twin.save()
        assert loaded.loaded_values(order) == {"status": "draft"}
    assert names(otel_spans).count("order.paid") == 1
    assert otel_spans.one("order.paid").attributes["business.from"] == "draft"


def test_a_pickled_instance_needs_nothing_of_ours(orders):
    """Cached instances can be read after the app was taken out, also those saved in an open transaction."""
    with transaction.atomic():
        order = Order.objects.create(number=1)
        data = pickle.dumps(order)
    assert b"django_otel." not in data
    assert pickle.loads(data)._state.__dict__[loaded._LOADED] == {"status": "draft"}


def test_instances_are_not_kept_alive(orders):
    """Neither by a transaction nor by anything else, as long as the signal has no receiver."""
    with transaction.atomic():
        order = Order.objects.create(number=1)
        reference = weakref.ref(order)
        del order
        gc.collect()
        assert reference() is None


def test_to_dict_and_fields_of_an_instance_are_unchanged(orders):
    """What we remember is on `_state`, not among the attributes."""
    order = Order.objects.create(number=1)
    assert not [name for name in vars(order) if "otel" in name]


# --- the signal --------------------------------------------------------------------------------------------


def test_the_signal_tells_everything(orders, sent, otel_spans):
    """Arguments as django_otel.signals documents them, sender the registered model."""
    order = Order.objects.create(number=1)
    assert len(sent) == 1
    (event,) = sent
    event.pop("signal")
    attributes = event.pop("attributes")
    assert event == {
        "sender": Order,
        "event": "order.placed",
        "model": "business_app.Order",
        "instance": order,
        "count": 1,
        "outcome": "autocommit",
        "using": "default",
    }
    assert attributes == dict(otel_spans.one("order.placed").attributes)


def test_the_signal_comes_without_sampling(orders, sent):
    """Whether a trace is recorded is no concern of the application's."""
    with override_sampling(0.0):
        Order.objects.create(number=1, total=5)
    assert sent[0]["attributes"]["business.total"] == 5.0


def test_a_receiver_that_raises_harms_nobody(orders, caplog):
    """send_robust: Django logs it; the other receivers and the save go on."""
    received = []

    def fail(**kwargs):
        raise RuntimeError("receiver")

    def note(event, **kwargs):
        received.append(event)

    business_event.connect(fail)
    business_event.connect(note)
    try:
        with transaction.atomic():
            Order.objects.create(number=1)
    finally:
        business_event.disconnect(fail)
        business_event.disconnect(note)
    assert received == ["order.placed"]
    assert Order.objects.count() == 1


def test_a_receiver_may_save_the_instance(registered, otel_spans):
    """It runs last: all events of the save are complete, and its own save makes its own."""
    registered(Order, created="order.placed", updated="order.changed", transitions={"status": {"paid": "order.paid"}})

    def pay(event, instance, **kwargs):
        if event == "order.placed":
            instance.status = "paid"
            instance.save()

    business_event.connect(pay)
    try:
        Order.objects.create(number=1)
    finally:
        business_event.disconnect(pay)
    assert names(otel_spans) == ["order.placed", "order.changed", "order.paid"]


# --- business.bulk -------------------------------------------------------------------------------------------


def test_bulk_is_one_span_and_many_counts(otel_spans, otel_metrics, sent):
    """For operations that send no signals, of any model."""
    with api.span("import"):
        Order.objects.bulk_create([Order(number=1), Order(number=2)])
        business.bulk(Order, "order.placed", count=2, channel="import", total=Decimal("1.5"), skipped=None)
    span = otel_spans.one("order.placed")
    assert dict(span.attributes) == {
        "django.model": "business_app.Order",
        "business.event": "order.placed",
        "business.count": 2,
        "business.channel": "import",
        "business.total": 1.5,
        "django.transaction.outcome": "autocommit",
    }
    assert span.kind is SpanKind.INTERNAL
    assert span.parent.span_id == otel_spans.one("import").context.span_id
    assert otel_metrics.value("django.business.events", business__event="order.placed") == 2
    assert (sent[0]["sender"], sent[0]["instance"], sent[0]["count"]) == (Order, None, 2)


def test_bulk_follows_the_transaction(otel_spans, otel_metrics):
    """Committed ones are counted, rolled back ones are not."""
    with transaction.atomic():
        business.bulk("business_app.Order", "order.placed", count=2)
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            business.bulk(Order, "order.placed", count=40)
            raise ZeroDivisionError
        assert otel_metrics.value("django.business.events") == 0
    assert business_spans(otel_spans) == [("order.placed", "rolled_back"), ("order.placed", "committed")]
    assert otel_metrics.value("django.business.events") == 2


@pytest.mark.usefixtures("faults")
def test_bulk_never_raises(otel_spans, otel_metrics):
    """A wrong call is logged; a count of nothing is nothing."""
    business.bulk(Order, "order.placed", count=0)
    business.bulk(Order, "order.placed", count=-1)
    business.bulk(Order, "order.placed", count="2")
    business.bulk(Order, "order.placed", count=True)
    business.bulk("business_app.Nothing", "order.placed", count=1)
    business.bulk(Order, "order.placed", count=1, using="nowhere")
    business.bulk(Order, "order.placed")
    assert names(otel_spans) == []
    assert otel_metrics.value("django.business.events") == 0


# --- registration -----------------------------------------------------------------------------------------------


def test_register_takes_several_models_and_lazy_labels(registered, otel_spans):
    """A label may be given where the model cannot be imported yet."""
    registered("business_app.Parcel", Customer, created="thing.made")
    Parcel.objects.create()
    Customer.objects.create(name="x")
    assert names(otel_spans) == ["thing.made", "thing.made"]


def test_event_classes_may_inherit_from_each_other(registered, otel_spans):
    """A base class with shared keys is part of the registration."""

    class Base(business.ModelEvents):
        created = "thing.made"
        updated = "thing.changed"

    class Events(Base):
        created = "parcel.made"

        def helper(self):
            return "not a key"

    business.register(Parcel)(Events)
    try:
        assert business.problems() == []
        parcel = Parcel.objects.create()
        parcel.save()
    finally:
        business.unregister(Parcel)
    assert names(otel_spans) == ["parcel.made", "thing.changed"]


@pytest.mark.parametrize("target", ["Order", Order(), None, 3, business.ModelEvents], ids=repr)
def test_registering_what_is_no_model_raises_at_once(target):
    """It is a mistake in the line that is running."""
    with pytest.raises(ImproperlyConfigured, match=r"takes models or labels such as \"shop.Order\"; found"):
        business.register(target)


def test_registering_without_a_model_or_an_event_class_raises_at_once():
    """@business.register without parentheses, and decorating something else."""
    with pytest.raises(ImproperlyConfigured, match="needs a model"):
        business.register()
    with pytest.raises(ImproperlyConfigured, match="decorates a subclass of business.ModelEvents"):
        business.register(Order)(object)


PROBLEMS = [
    ({"created": ""}, "E002", "Events0.created is ''; expected the name of an event"),
    ({"updated": 3}, "E002", "Events0.updated is 3; expected the name of an event"),
    ({"creatd": "x"}, "E001", "has 'creatd', which means nothing"),
    ({"metric": "no"}, "E002", "Events0.metric is 'no'; expected True or False"),
    ({"attributes": "total"}, "E002", "Events0.attributes is 'total'; expected a list of field names"),
    ({"attributes": ["totl"]}, "E002", "names 'totl', which is not a column of business_app.Order"),
    ({"attributes": [3]}, "E002", "names 3, which is not a column"),
    ({"transitions": ["status"]}, "E002", "expected a dict of {field: {value: event}}"),
    ({"transitions": {"statsu": {"paid": "x"}}}, "E001", "names 'statsu', which is not a column of business_app.Order"),
    ({"transitions": {"status": "paid"}}, "E002", "['status'] is 'paid'; expected a dict of {value: event}"),
    ({"transitions": {"status": {"paid": ""}}}, "E002", "expected a dict of {value: event}"),
    ({"transitions": {"priority": {"high": "x"}}}, "E002", "has the value 'high', which business_app.Order.priority"),
    ({"transitions": {"rushorder": {1: "x"}}}, "E001", "which is not a column"),
]


@pytest.mark.parametrize(("keys", "id", "text"), PROBLEMS, ids=[str(keys) for keys, _, _ in PROBLEMS])
def test_a_wrong_registration_is_told_once_and_the_rest_works(registered, otel_spans, keys, id, text):
    """With the check's id, the place and what was found; nothing raises and the right keys hold."""
    registered(Order, **{"created": "order.placed"} | keys)
    found = business.problems()
    assert [problem.id for problem in found] == [f"django_otel.{id}"]
    assert text in found[0].message
    if "created" not in keys:
        Order.objects.create(number=1)
        assert names(otel_spans) == ["order.placed"]


def test_hints_name_the_nearest_key_field_and_model(registered):
    """A typing mistake is corrected by reading the message."""
    registered(Order, creatd="x", attributes=["totl"], transitions={"statsu": {"a": "b"}})
    registered("business_app.Oder", created="x")
    hints = {problem.hint for problem in business.problems()}
    assert hints == {
        "Did you mean 'created'?",
        "Did you mean 'total'?",
        "Did you mean 'status'?",
        "Did you mean 'business_app.Order'?",
    }


def test_a_model_that_is_not_there_is_told(registered):
    """An app that is not installed."""
    registered("nowhere.Thing", created="x")
    (problem,) = business.problems()
    assert problem.id == "django_otel.E001"
    assert "is for the model 'nowhere.Thing'; there is none" in problem.message


def test_problems_of_settings_name_the_setting():
    """Given a configuration, whether or not it is in force."""
    config = parse({"BUSINESS": {"business_app.Order": {"attributes": ["totl"]}, "shop.Order": {}}}, {})
    messages = [problem.message for problem in business.problems(config)]
    assert messages == [
        'OTEL["BUSINESS"]["shop.Order"] is for the model \'shop.Order\'; there is none.',
        (
            'OTEL["BUSINESS"]["business_app.Order"]["attributes"] names \'totl\', '
            "which is not a column of business_app.Order."
        ),
    ]


def test_problems_are_errors_of_the_system_check(registered):
    """manage.py check refuses, with the id, the place and the nearest name."""
    from django.core import checks

    registered(Order, attributes=["totl"])
    with override_settings(OTEL={"BUSINESS": {"shop.Order": {"created": "x"}}}):
        found = [message for message in checks.run_checks(tags=["django_otel"]) if message.is_serious()]
    assert [(message.id, message.level) for message in found] == [
        ("django_otel.E001", checks.ERROR),
        ("django_otel.E002", checks.ERROR),
    ]
    assert "Did you mean 'total'?" in found[1].hint


def test_registering_a_model_twice_is_told_and_the_first_holds(registered, otel_spans):
    """Two places that do not know each other."""
    registered(Order, created="first")
    registered("business_app.Order", created="second")
    (problem,) = business.problems()
    assert problem.id == "django_otel.E005"
    assert "business_app.Order is registered twice: by " in problem.message
    Order.objects.create(number=1)
    assert names(otel_spans) == ["first"]
    business.unregister("business_app.Order")


def test_loading_a_module_again_replaces_its_registration(registered, otel_spans):
    """The development server's reload, importlib.reload."""

    def load(event):
        return type("Events", (business.ModelEvents,), {"created": event, "__module__": "shop.otel"})

    business.register(Order)(load("old"))
    business.register(Order)(load("new"))
    try:
        assert business.problems() == []
        Order.objects.create(number=1)
    finally:
        business.unregister(Order)
    assert names(otel_spans) == ["new"]


def test_swapped_and_automatic_models_are_told(registered):
    """Django would never send a signal for them."""
    from django.contrib.auth.models import Group

    registered(Group.permissions.through, created="x")
    with mock.patch.object(Customer._meta, "swapped", "auth.User"):
        registered(Customer, created="y")
        messages = [problem.message for problem in business.problems()]
    assert any("for which Django sends no signals" in message for message in messages)
    assert any("is swapped for auth.User" in message for message in messages)
    business.install(runtime.current().config)


def test_problems_are_logged_where_no_check_runs(registered, caplog):
    """A server started by gunicorn runs no checks."""
    registered(Order, attributes=["totl"])
    assert "names 'totl', which is not a column of business_app.Order. Did you mean 'total'?" in caplog.text


def test_the_module_otel_of_every_app_is_imported(tmp_path):
    """Found as admin.py is; one that cannot be imported is a problem, not an end. In a process of its own."""
    for app, text in {
        "goodapp": "from django_otel import business\n@business.register('goodapp.Thing')\n"
        "class Events(business.ModelEvents):\n    created = 'thing.made'\n",
        "badapp": "import nowhere_to_be_found\n",
        "plainapp": None,
    }.items():
        (tmp_path / app).mkdir()
        (tmp_path / app / "__init__.py").write_text("")
        (tmp_path / app / "models.py").write_text(
            "from django.db import models\nfrom django_otel import business\nclass Thing(models.Model):\n    pass\n"
        )
        if text is not None:
            (tmp_path / app / "otel.py").write_text(text)
    script = """
from django.conf import settings
import django_otel.business, django_otel.signals  # before settings are configured
settings.configure(
    INSTALLED_APPS=["django_otel", "goodapp", "badapp", "plainapp"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    OTEL={}, SECRET_KEY="x", DEFAULT_AUTO_FIELD="django.db.models.AutoField",
)
import django, logging
logging.disable(logging.CRITICAL)
django.setup()
from django.apps import apps
from django.db.models.signals import post_save
print([problem.id + " " + problem.message for problem in django_otel.business.problems()])
print([post_save.has_listeners(apps.get_model(name, "Thing")) for name in ("goodapp", "badapp", "plainapp")])
"""
    import os

    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    environ.pop("DJANGO_SETTINGS_MODULE", None)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        '["django_otel.E003 badapp.otel cannot be imported: ModuleNotFoundError: No module named'
    )
    assert lines[1] == "[True, False, False]"


def test_everything_public_is_reachable_from_the_package():
    """`from django_otel import business`, and its __all__ exists."""
    import django_otel

    assert django_otel.business is business
    assert all(hasattr(business, name) for name in business.__all__)


# --- several databases ----------------------------------------------------------------------------


@pytest.mark.django_db(databases=["default", "other"])
def test_each_database_has_its_own_transaction(orders, otel_spans):
    """A rollback on one is none on the other; `using` of the save decides."""
    with transaction.atomic(using="other"):
        Order.objects.create(number=1)
        Order(number=2).save(using="other")
        business.bulk(Order, "order.bulk", count=2, using="other")
        transaction.set_rollback(True, using="other")
    assert business_spans(otel_spans) == [
        ("order.placed", "autocommit"),
        ("order.placed", "rolled_back"),
        ("order.bulk", "rolled_back"),
    ]
