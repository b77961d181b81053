"""What the tests of business events share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connections
from opentelemetry import trace

from django_otel import business
from django_otel.base import guard
from django_otel.business import transactions
from django_otel.signals import business_event
from tests.business_app import models

ALL_MODELS = (
    models.Customer,
    models.Order,
    models.RushOrder,
    models.OverridingOrder,
    models.BugTicket,
    models.Parcel,
    models.ParcelScan,
)
#: The registration most tests use.
ORDER_EVENTS = {
    "created": "order.placed",
    "updated": "order.changed",
    "deleted": "order.removed",
    "transitions": {"status": {"paid": "order.paid", "draft": "order.reopened"}},
    "attributes": ("id", "number", "total"),
}


@pytest.fixture(name="registered")
def registered_fixture() -> Iterator[Callable[..., type[business.ModelEvents]]]:
    """`registered(Order, created="order.placed", ...)`: register for the duration of the test."""
    targets: list[Any] = []

    def register(*models_: Any, **keys: Any) -> type[business.ModelEvents]:
        made = type("Events", (business.ModelEvents,), {"__qualname__": f"Events{len(targets)}", **keys})
        targets.extend(models_)
        return business.register(*models_)(made)

    yield register
    business.unregister(*targets)


@pytest.fixture(name="faults")
def faults_fixture() -> None:
    """Faults of our own are what the test is about."""


@pytest.fixture(autouse=True)
def nothing_went_wrong(request: pytest.FixtureRequest) -> Iterator[None]:
    """No fault of our own may hide behind the guard, and nothing may stay current."""
    before = trace.get_current_span()
    guard.reset()
    yield
    assert trace.get_current_span() is before
    if "faults" not in request.fixturenames:
        assert guard.fault_counts() == {}
    guard.reset()


def business_spans(spans: Any) -> list[tuple[str, str]]:
    """(event, outcome) of every exported business span, in the order of their ends."""
    return [
        (span.attributes["business.event"], span.attributes["django.transaction.outcome"])
        for span in spans
        if "business.event" in span.attributes
    ]


@pytest.fixture(name="sent")
def sent_fixture() -> Iterator[list[dict[str, Any]]]:
    """What the signal `business_event` was sent with."""
    received: list[dict[str, Any]] = []

    def receive(sender: Any, **kwargs: Any) -> None:
        received.append({"sender": sender, **kwargs})

    business_event.connect(receive)
    yield received
    business_event.disconnect(receive)


@contextmanager
def database(alias: str, settings: dict[str, Any]) -> Iterator[str]:
    """A database of its own, with tables, under `alias`: no test case's transaction around it."""
    defaults = connections["default"].settings_dict
    connections.settings[alias] = {**defaults, "ATOMIC_REQUESTS": False, **settings}
    connection = connections[alias]
    try:
        with connection.schema_editor() as editor:
            for model in ALL_MODELS:
                editor.create_model(model)
        yield alias
    finally:
        while connection.in_atomic_block:
            # A test that failed in the middle.
            connection.in_atomic_block = False
        connection.close()
        fresh = connections[alias]
        with fresh.schema_editor() as editor:
            for model in reversed(ALL_MODELS):
                editor.delete_model(model)
        # Django does not close an in-memory SQLite database, and Python 3.13 complains.
        fresh.connection.close()
        fresh.close()
        del connections[alias]
        del connections.settings[alias]


def is_hooked(alias: str) -> bool:
    return transactions.existing_tracker(connections[alias]) is not None
