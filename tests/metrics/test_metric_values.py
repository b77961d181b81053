"""Numbers and labels that the field has brought: refused values, long labels, callbacks that query the database."""

from __future__ import annotations

import decimal
import enum
import fractions
import itertools
import math
import subprocess
import sys
import threading

import pytest
from django.contrib.auth.models import User
from django.db import connection, connections
from django.utils.functional import SimpleLazyObject

from django_otel import runtime
from django_otel.metrics.exposition import render
from django_otel.metrics.store import CellStore
from django_otel.redaction.keys import REDACTED
from django_otel.redaction.scrub import Scrubber


@pytest.fixture
def store():
    made = CellStore()
    made.joined = True
    return made


def families(store):
    return {family.name: family for family in store.collect()}


@pytest.mark.parametrize("value", [-3, -0.001, -math.inf, math.inf, math.nan, "text", None, 10**400])
def test_a_histogram_refuses_what_would_lower_its_sum(store, value, caplog):
    histogram = store.histogram(f"work.{value}"[:20], bounds=(0.0, 1.0))
    histogram.record(2.0)
    histogram.record(value)
    histogram.record(value)
    found = families(store)[histogram.name].points[0].value
    assert (sum(found.buckets), found.sum) == (1, 2.0)
    assert caplog.text.count("was not recorded") == 1


def test_a_histogram_with_a_bound_below_zero_takes_negative_values(store):
    histogram = store.histogram("temperature", bounds=(-10.0, 0.0, 10.0))
    for value in (-30, -3, 0, math.nan, -math.inf):
        histogram.record(value)
    found = families(store)["temperature"].points[0].value
    assert (found.buckets, found.sum) == ([1.0, 2.0, 0.0, 0.0], -33.0)


@pytest.mark.parametrize("value", [-1, -math.inf, math.inf, math.nan, "1x", None])
def test_a_counter_refuses_what_is_no_increment(store, value):
    counter = store.counter(f"refused.{value}")
    counter.add(2)
    counter.add(value)
    assert families(store)[counter.name].points[0].value == 2.0


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("x" * 100_000, "x" * 256),
        ("é" * 257, "é" * 256),
        ("x" * 256, "x" * 256),
        (["y" * 100_000, "z"], ("y" * 256,)),
        (("a", "b"), ("a", "b")),
        (10**200, str(10**200)),
        (10**300, str(10**300)[:256]),
    ],
)
def test_a_long_label_is_cut_and_counted(store, value, shown):
    counter = store.counter("orders")
    counter.add(1, {"key": value})
    counter.add(1, {"key": value})
    found = families(store)
    assert [(point.attributes, point.value) for point in found["orders"].points] == [((("key", shown),), 2.0)]
    counted = found.get("django_otel.cardinality.overflow")
    is_cut = isinstance(value, int) and len(str(value)) > 256 or shown not in (value, str(value))
    assert (counted is not None) is is_cut
    if counted is not None:
        assert dict(counted.points[0].attributes)["django_otel.reason"] == "attribute_length"
        assert counted.points[0].value == 2.0


def test_a_long_name_of_a_label_is_cut_and_counted_and_no_label_stands_twice(store):
    store.counter("orders").add(1, {"x" * 100_000: 1, "x" * 300: 2, "key": "a"})
    found = families(store)
    assert dict(found["orders"].points[0].attributes) == {"x" * 256: 1, "key": "a"}
    assert (
        dict(found["django_otel.cardinality.overflow"].points[0].attributes)["django_otel.reason"] == "attribute_length"
    )


def test_a_name_that_cannot_be_encoded_breaks_no_page(store):
    store.counter("orders").add(1, {"\ud800": "\ud800", 12: 1})
    assert b"orders_total" in render(store.collect(), openmetrics=False, resource_attributes={})


def test_values_that_differ_behind_the_cut_are_one_series(store):
    counter = store.counter("orders")
    for tail in "abc":
        counter.add(1, {"key": "x" * 300 + tail})
    assert [point.value for point in families(store)["orders"].points] == [3.0]


def test_many_items_of_a_list_do_not_make_a_long_label(store):
    store.counter("orders").add(1, {"key": [""] * 100_000, "numbers": list(range(100_000))})
    assert len(render(store.collect(), openmetrics=False, resource_attributes={})) < 2_000


@pytest.mark.parametrize("text", ["x" * 1_000_000, "word " * 200_000, ["y" * 1_000] * 1_000])
def test_of_a_long_label_only_its_beginning_is_read(text):
    read = []

    def callback(key, value):
        read.append(len(value))
        return value

    value = tuple(text) if isinstance(text, list) else text
    ((_, kept),) = Scrubber(callback=callback).labels((("key", value),), longest=256)
    assert sum(read) < 6_000
    assert sum(map(len, kept)) >= 256


def test_a_long_secret_is_known_by_its_key_and_by_its_form():
    scrubber = Scrubber()
    tail = "s3cr3t" * 1_000
    assert scrubber.labels((("password", tail),), longest=256) == (("password", REDACTED),)
    ((_, kept),) = scrubber.labels((("key", f"password={tail}"),), longest=256)
    assert "s3cr3t" not in kept
    ((_, kept),) = scrubber.labels((("key", ("a", f"password={tail}", "b")),), longest=256)
    assert "s3cr3t" not in "".join(kept)


@pytest.mark.parametrize(
    ("given", "label"), [(["a", "b"], ("a", "b")), ({"a": 1}, "{'a': 1}"), (b"a", "a"), (None, REDACTED), (5, 5)]
)
def test_whatever_a_callback_of_redaction_gives_is_a_label(given, label):
    made = CellStore()
    made.configure(cardinality_limit=10, buckets={}, scrub=Scrubber(callback=lambda key, value: given).labels)
    made.counter("orders").add(1, {"key": "x"})
    made.counter("orders").add(1, {"key": "x" * 10_000})
    (point,) = families(made)["orders"].points
    assert (point.attributes, point.value) == ((("key", label),), 2.0)


RECURSIVE: list[object] = []
RECURSIVE.append(RECURSIVE)


class Status(str, enum.Enum):  # noqa: UP042 (its str() is another text)
    PAID = "paid"


@pytest.mark.parametrize(
    ("make", "label"),
    [
        (lambda: SimpleLazyObject(lambda: 1 / 0), "<SimpleLazyObject>"),
        (lambda: RECURSIVE, ("[[...]]",)),
        (lambda: SimpleLazyObject(lambda: 3), 3),
        # As on a span.
        (lambda: Status.PAID, "paid"),
        (lambda: b"caf\xc3\xa9", "café"),
        (lambda: [1, "a", SimpleLazyObject(lambda: "b"), [1]], (1, "a", "b", "[1]")),
        (lambda: None, "None"),
    ],
)
def test_labels_are_the_values_that_spans_have_and_none_raises(store, make, label):
    value = make()
    store.counter("orders").add(1, {"key": value})
    store.gauge("level").set(1, {"key": value})
    store.histogram("sizes").record(1, {"key": value})
    for name in ("orders", "level", "sizes"):
        assert families(store)[name].points[0].attributes == (("key", label),)


class Awkward:
    """As arrays and missing values of libraries are: neither a number nor a truth, and without words for itself."""

    def __float__(self):
        raise RuntimeError("no number")

    def __eq__(self, other):
        raise ValueError("ambiguous")

    __hash__ = None

    def __repr__(self):
        raise RuntimeError("no words")

    __bool__ = __repr__


@pytest.mark.parametrize(
    "make",
    [
        Awkward,
        lambda: decimal.Decimal("sNaN"),
        lambda: SimpleLazyObject(lambda: 1 / 0),
        lambda: 10**5000,
        lambda: "x" * 100_000,
    ],
    ids=["awkward", "signalling", "lazy", "huge", "long"],
)
def test_a_value_that_is_no_number_raises_nowhere_and_is_named_shortly(store, make, caplog, capfd):
    for measure in (
        store.counter("orders").add,
        store.up_down_counter("open").add,
        store.gauge("level").set,
        store.histogram("sizes").record,
    ):
        measure(make())
        assert len(caplog.messages.pop()) < 300
        caplog.clear()
    store.observable_gauge("seen", lambda: [(make(), {}), (1, {"k": "a"})])
    assert {name: len(family.points) for name, family in families(store).items()} == {"seen": 1}
    assert "Logging error" not in capfd.readouterr().err


def test_a_lazy_number_is_one(store):
    store.gauge("level").set(SimpleLazyObject(lambda: 3))
    store.histogram("sizes").record(SimpleLazyObject(lambda: decimal.Decimal("0.5")))
    found = families(store)
    assert (found["level"].points[0].value, found["sizes"].points[0].value.sum) == (3.0, 0.5)


@pytest.mark.parametrize("attributes", [[("k", 1)], "text", 5, Awkward()], ids=["pairs", "text", "number", "awkward"])
def test_what_are_no_attributes_raises_nowhere_and_the_measurement_counts(store, attributes):
    store.counter("orders").add(2, attributes)
    store.gauge("level").set(2, attributes)
    store.histogram("sizes").record(2, attributes)
    found = families(store)
    assert (found["orders"].points[0].value, found["level"].points[0].value) == (2.0, 2.0)
    assert found["sizes"].points[0].value.sum == 2.0


def test_a_name_of_a_label_that_has_no_text_is_named_by_its_type(store):
    class Key:
        def __str__(self):
            raise RuntimeError

    store.counter("orders").add(1, {Key(): 1})
    assert families(store)["orders"].points[0].attributes == (("<Key>", 1),)


def test_labels_of_observed_gauges_are_cut(store):
    store.observable_gauge("seen", lambda: [(1.0, {"key": "x" * 1_000})])
    assert families(store)["seen"].points[0].attributes == (("key", "x" * 256),)


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        (decimal.Decimal("1.5"), {(): 1.5}),
        (fractions.Fraction(1, 4), {(): 0.25}),
        # The sum over no rows.
        (None, {}),
        ([(decimal.Decimal(2), {"k": "a"}), (None, {"k": "b"})], {(("k", "a"),): 2.0}),
        ([("placed", 3), (4, {"k": "b"})], {(("k", "b"),): 4.0}),
        # Only one series may have these labels on the page.
        ([(1, {"k": "a"}), (2, {"k": "a"})], {(("k", "a"),): 2.0}),
    ],
)
def test_what_a_callback_gives(store, observed, expected):
    store.observable_gauge("seen", lambda: observed)
    points = families(store)["seen"].points if expected else store.collect()
    assert {point.attributes: point.value for point in points} == expected


def test_a_callback_that_fails_has_no_value_instead_of_its_last_one(store):
    answers = iter([5])
    gauge = store.observable_gauge("seen", lambda: next(answers))
    assert [point.value for point in families(store)["seen"].points] == [5.0]
    gauge.cache_s = 0.0
    assert "seen" not in families(store)


def test_a_callback_gives_as_many_series_as_an_instrument_may_have(store):
    store.observable_gauge("seen", lambda: ((1, {"k": number}) for number in itertools.count()))
    assert len(families(store)["seen"].points) == store.cardinality_limit
    (counted,) = families(store)["django_otel.cardinality.overflow"].points
    assert dict(counted.attributes)["django_otel.reason"] == "cardinality_limit"


def test_the_length_is_that_of_the_settings(settings, otel_metrics):
    settings.OTEL = {"SERVICE_NAME": "tests", "METRICS": {"ATTRIBUTE_LENGTH": 5}}
    runtime.store.counter("cut.by.settings").add(1, {"key": "abcdefgh"})
    found = {family.name: family for family in runtime.store.collect()}["cut.by.settings"]
    assert found.points[0].attributes == (("key", "abcde"),)


def test_an_sdk_instruments_labels_are_cut(otel_metrics):
    from opentelemetry import metrics

    metrics.get_meter("tests").create_counter("sdk.cut").add(1, {"key": "x" * 1_000})
    found = {family.name: family for family in runtime.collect_process()}["sdk.cut"]
    assert dict(found.points[0].attributes)["key"] == "x" * 256


# --- Callbacks that query the database. ---


def in_thread(function):
    """What `function` returns in a thread of its own, as the one that exports metrics."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join(30)
    return found[0]


#: The SDK gives one name's first instrument for ever.
numbers = itertools.count()


@pytest.fixture(params=["ours", "sdk"])
def gauge(request, otel_metrics):
    """A gauge that counts users; returns the function that reads it."""
    runtime.store.forget_observed()
    name = f"users.{request.param}.{next(numbers)}"
    if request.param == "ours":
        runtime.store.observable_gauge(name, User.objects.count)
    else:
        from opentelemetry import metrics

        is_over = []

        def observe(options):
            # The SDK keeps a callback for ever.
            return [] if is_over else [metrics.Observation(User.objects.count())]

        metrics.get_meter("tests").create_observable_gauge(name, [observe])

    def read():
        runtime.store.forget_observed()
        found = {family.name: family for family in runtime.collect_process()}.get(name)
        return None if found is None or not found.points else found.points[0].value

    yield read
    if request.param == "ours":
        runtime.store.observable_gauge(name, list)
    else:
        is_over.append(True)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("age_s", [0, None])
def test_a_background_thread_keeps_no_connection_after_a_round_of_callbacks(gauge, age_s, monkeypatch):
    closed = []

    def round_():
        mine = connections["default"]
        mine.settings_dict = {**mine.settings_dict, "CONN_MAX_AGE": age_s}
        close = mine.close
        monkeypatch.setattr(mine, "close", lambda: (closed.append(True), close()))
        value = gauge()
        mine.close = close
        return value

    User.objects.create(username="one")
    assert in_thread(round_) == 1
    assert closed


@pytest.mark.django_db
def test_a_round_of_callbacks_leaves_the_transaction_of_a_request_alone(gauge):
    User.objects.create(username="one")
    assert gauge() == 1
    assert connection.in_atomic_block
    assert User.objects.count() == 1


POOL_OF_ONE = """
import sys, threading
from django.conf import settings
from tests.services import parse_database_url
database = {**parse_database_url(sys.argv[1]), "ENGINE": "django.db.backends.postgresql", "CONN_MAX_AGE": 0}
database["OPTIONS"] = {**database.get("OPTIONS", {}), "pool": {"min_size": 1, "max_size": 1, "timeout": 5}}
settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django_otel"],
    DATABASES={"default": database},
    OTEL={"SERVICE_NAME": "pool", "SAMPLING": {"LIVE": False}},
)
import django
django.setup()
from django.db import connection
import django_otel
from django_otel import runtime

def backend():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]

def in_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]

def read():
    runtime.store.forget_observed()
    return [family.points[0].value for family in runtime.collect_process() if family.name == "backend"]

django_otel.observable_gauge("backend", backend)
go, done = threading.Event(), threading.Event()

def exporter():
    found = [read()]
    done.set()
    go.wait()
    found.append(read())
    found.append(read())
    return found

found = []
thread = threading.Thread(target=lambda: found.extend(exporter()))
thread.start()
done.wait()
# A request gets the only connection while the exporting thread lives on; then the server ends that connection.
pid = backend()
connection.close()
import psycopg
with psycopg.connect(sys.argv[1], autocommit=True) as other:
    other.execute("SELECT pg_terminate_backend(%s)", [pid])
go.set()
thread.join()
print(found, pid)
assert found[0] == [pid] and found[2] and found[2] != [pid]
assert in_thread(backend)
connection.close_pool()
"""


def test_callbacks_do_not_starve_requests_of_a_pool_of_one_and_survive_a_lost_connection(postgres_database):
    """A gauge that queries PostgreSQL, read by a background thread as by the exporter of metrics."""
    done = subprocess.run(
        [sys.executable, "-c", POOL_OF_ONE, postgres_database], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
