"""The Python API: spans around everything that can be called, events, users, instruments, carriers."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import decimal
import enum
import gc
import inspect
import logging
import threading
import time
import uuid

import hypothesis
import pytest
from asgiref.sync import async_to_sync, markcoroutinefunction, sync_to_async
from django.contrib.auth.models import AnonymousUser, User
from django.http import HttpResponse
from django.test import override_settings
from django.utils.decorators import method_decorator
from django.utils.functional import SimpleLazyObject, lazystr
from django.utils.safestring import mark_safe
from django.views import View
from hypothesis import strategies as st
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

import django_otel
from django_otel import runtime, span, timed, untraced
from django_otel.base import attribute_values, guard
from django_otel.metrics.store import CellStore
from django_otel.testing import override_sampling
from tests.app.models import Item


def current_name() -> str | None:
    return getattr(trace.get_current_span(), "name", None)


@pytest.fixture(autouse=True)
def nothing_stays_current():
    """Every test ends with the context it began with."""
    before = otel_context.get_current()
    yield
    assert otel_context.get_current() == before


@pytest.fixture
def faults():
    """The faults that the guard contained during this test."""
    guard.reset()
    yield guard.fault_counts
    guard.reset()


# --- span as a context manager ---


def test_span_nests_and_is_yielded(otel_spans):
    with span("outer", items=3) as outer:
        assert trace.get_current_span() is outer
        with span("inner"):
            assert current_name() == "inner"
        assert trace.get_current_span() is outer
    assert otel_spans.tree() == [("outer", [("inner", [])])]
    assert otel_spans.one("outer").attributes == {"items": 3}


def test_attributes_may_be_called_like_arguments(otel_spans):
    with span("s", name="n", self=1, attributes="a", **{"cart.items": 2}):
        pass
    assert otel_spans.one("s").attributes == {"name": "n", "self": 1, "attributes": "a", "cart.items": 2}


async def test_span_works_with_async_with(otel_spans):
    async with span("outer") as outer:
        await asyncio.sleep(0)
        assert trace.get_current_span() is outer
    assert otel_spans.one("outer").context.span_id == outer.get_span_context().span_id


def test_an_exception_is_recorded_once_and_goes_on(otel_spans):
    with pytest.raises(ValueError, match="no such thing"), span("s"):
        raise ValueError("no such thing")
    recorded = otel_spans.one("s")
    assert recorded.status.status_code is trace.StatusCode.ERROR
    assert "ValueError" in recorded.status.description
    assert [event.name for event in recorded.events] == ["exception"]
    assert recorded.events[0].attributes["exception.type"] == "ValueError"
    assert recorded.attributes["error.type"] == "ValueError"


@pytest.mark.parametrize("kind", [asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_other_base_exceptions_end_the_span_and_are_no_error(otel_spans, kind):
    with pytest.raises(kind), span("s"):
        raise kind
    recorded = otel_spans.one("s")
    assert recorded.status.status_code is trace.StatusCode.UNSET
    assert not recorded.events


def test_an_exception_whose_text_fails_is_recorded_all_the_same(otel_spans, faults):
    class Silent(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    with pytest.raises(Silent), span("s"):
        raise Silent
    assert otel_spans.one("s").status.status_code is trace.StatusCode.ERROR
    assert otel_spans.one("s").attributes["error.type"].endswith("Silent")


def test_an_exception_whose_text_no_exporter_can_encode_is_exported_all_the_same(otel_spans):
    with pytest.raises(ValueError), span("s"):
        raise ValueError("lone \ud800")
    encode_spans(list(otel_spans)).SerializeToString()


def test_one_span_object_may_be_entered_again_and_inside_itself(otel_spans):
    shared = span("shared")
    with shared as first:
        with shared as second:
            assert trace.get_current_span() is second
        assert trace.get_current_span() is first
    with shared:
        pass
    assert otel_spans.tree() == [("shared", [("shared", [])]), ("shared", [])]


def test_one_span_object_may_be_used_by_many_threads_at_once(otel_spans):
    shared = span("shared")
    inside = threading.Barrier(4)
    seen = []

    def work(number):
        with span(f"thread {number}"):
            with shared as mine:
                inside.wait(60)
                seen.append(trace.get_current_span() is mine)
                inside.wait(60)
            seen.append(current_name() == f"thread {number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == [True] * 8
    assert sorted(otel_spans.tree()) == [(f"thread {number}", [("shared", [])]) for number in range(4)]


async def test_one_span_object_may_be_used_by_many_tasks_at_once(otel_spans):
    shared = span("shared")

    async def work(number):
        async with span(f"task {number}"):
            async with shared as mine:
                await asyncio.sleep(0.01 * (4 - number))
                assert trace.get_current_span() is mine
            assert current_name() == f"task {number}"

    await asyncio.gather(*(work(number) for number in range(4)))
    assert sorted(otel_spans.tree()) == [(f"task {number}", [("shared", [])]) for number in range(4)]


async def test_a_span_that_ends_in_another_task_is_ended_without_a_complaint(otel_spans, caplog):
    shared = span("handed over")
    await asyncio.create_task(sync_enter(shared))
    await asyncio.create_task(sync_exit(shared))
    assert otel_spans.one("handed over").end_time
    assert not caplog.records


async def sync_enter(scope):
    scope.__enter__()


async def sync_exit(scope):
    scope.__exit__(None, None, None)


async def test_context_survives_tasks_and_gather(otel_spans):
    async def work(number):
        await asyncio.sleep(0)
        with span(f"work {number}"):
            await asyncio.sleep(0)

    async with span("parent"):
        await asyncio.gather(work(0), work(1))
        await asyncio.create_task(work(2))
        await sync_to_async(lambda: span("in a thread")(lambda: None)())()
    tree = otel_spans.tree()
    assert [name for name, _ in tree] == ["parent"]
    assert sorted(tree[0][1]) == [("in a thread", []), ("work 0", []), ("work 1", []), ("work 2", [])]


def test_context_survives_async_to_sync(otel_spans):
    @span("inner")
    async def inner():
        await asyncio.sleep(0)

    with span("outer"):
        async_to_sync(inner)()
    assert otel_spans.tree() == [("outer", [("inner", [])])]


# --- span as a decorator ---


def test_a_decorated_function_is_a_span_per_call(otel_spans):
    @span("add", kind="sum")
    def add(a, b=1):
        """Adds."""
        assert current_name() == "add"
        return a + b

    assert add(1) == 2
    assert add(1, b=2) == 3
    assert (add.__name__, add.__doc__) == ("add", "Adds.")
    assert len(otel_spans.named("add")) == 2
    assert otel_spans[0].attributes == {"kind": "sum"}


def test_a_decorated_function_may_call_itself(otel_spans):
    @span("fall")
    def fall(n):
        return n if n == 0 else fall(n - 1)

    fall(2)
    assert otel_spans.tree() == [("fall", [("fall", [("fall", [])])])]


async def test_a_decorated_coroutine_function_is_a_span_while_it_runs(otel_spans):
    @span("work")
    async def work(value):
        await asyncio.sleep(0.02)
        assert current_name() == "work"
        return value

    assert inspect.iscoroutinefunction(work)
    assert await work(4) == 4
    recorded = otel_spans.one("work")
    assert recorded.end_time - recorded.start_time >= 15_000_000


async def test_a_cancelled_coroutine_ends_its_span_without_an_error(otel_spans):
    @span("slow")
    async def slow():
        await asyncio.sleep(30)

    task = asyncio.create_task(slow())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert otel_spans.one("slow").status.status_code is trace.StatusCode.UNSET


def test_a_failing_function_records_its_exception(otel_spans):
    @span("fails")
    def fails():
        raise KeyError("x")

    with pytest.raises(KeyError):
        fails()
    assert otel_spans.one("fails").attributes["error.type"] == "KeyError"


def test_methods_of_every_kind_can_be_decorated(otel_spans):
    class Shop:
        @span("method")
        def method(self, value):
            return (self, value)

        @span("class method")
        @classmethod
        def of_class(cls):
            return cls

        @classmethod
        @span("class method")
        def of_class_inside(cls):
            return cls

        @span("static method")
        @staticmethod
        def static(value):
            return value

        @property
        @span("property")
        def price(self):
            return 3

    shop = Shop()
    assert shop.method(1) == (shop, 1)
    assert shop.of_class() is Shop
    assert Shop.of_class_inside() is Shop
    assert shop.static(2) == 2
    assert shop.price == 3
    assert [s.name for s in otel_spans] == ["method", "class method", "class method", "static method", "property"]


async def test_what_django_marks_as_a_coroutine_function_is_awaited(otel_spans):
    class Callable:
        async def __call__(self):
            await asyncio.sleep(0)
            return current_name()

    marked = markcoroutinefunction(lambda: Callable()())
    assert await span("marked")(marked)() == "marked"
    assert await span("object")(Callable())() == "object"


@pytest.mark.parametrize("make", [span, timed])
def test_a_decorator_without_a_name_says_how_to_write_it(make):
    with pytest.raises(TypeError, match=rf'write @{make.__name__}\("work"\)'):

        @make
        def work():
            pass


def test_a_class_is_refused_with_advice():
    with pytest.raises(TypeError, match="decorate its methods"):

        @span("x")
        class Thing:
            pass


# --- generators ---


def test_a_generators_span_lasts_while_it_is_consumed_and_does_not_leak(otel_spans):
    @span("numbers")
    def numbers():
        for n in range(3):
            assert current_name() == "numbers"
            with span(f"number {n}"):
                yield n
        return "done"

    def consume():
        result = yield from numbers()
        assert result == "done"

    with span("consumer") as consumer:
        for _ in consume():
            assert trace.get_current_span() is consumer
            assert not otel_spans.named("numbers")
            with span("between"):
                pass
    assert otel_spans.tree() == [
        (
            "consumer",
            [
                ("numbers", [("number 0", []), ("number 1", []), ("number 2", [])]),
                ("between", []),
                ("between", []),
                ("between", []),
            ],
        )
    ]


def test_a_generator_that_is_never_consumed_is_no_span(otel_spans):
    span("unused")(numbers_up_to)(3)
    gc.collect()
    assert len(otel_spans) == 0


def numbers_up_to(count):
    yield from range(count)


@pytest.mark.parametrize("how", ["close", "drop"])
def test_an_abandoned_generator_ends_its_span_and_runs_its_cleanup_inside(otel_spans, how):
    cleanup = []

    @span("numbers")
    def numbers():
        try:
            yield 1
            yield 2
        finally:
            cleanup.append(current_name())

    generator = numbers()
    next(generator)
    if how == "close":
        generator.close()
    else:
        del generator
        gc.collect()
    assert cleanup == ["numbers"]
    assert otel_spans.one("numbers").status.status_code is trace.StatusCode.UNSET


def test_send_and_throw_reach_a_decorated_generator(otel_spans):
    @span("echo")
    def echo():
        received = None
        while True:
            try:
                received = yield received
            except KeyError as error:
                received = error
            assert current_name() == "echo"

    generator = echo()
    assert next(generator) is None
    assert generator.send("a") == "a"
    error = KeyError("k")
    assert generator.throw(error) is error
    assert generator.send("b") == "b"
    with pytest.raises(ValueError, match="out"):
        generator.throw(ValueError("out"))
    assert otel_spans.one("echo").attributes["error.type"] == "ValueError"


async def test_an_async_generators_span_lasts_while_it_is_consumed_and_does_not_leak(otel_spans):
    @span("numbers")
    async def numbers():
        for n in range(2):
            await asyncio.sleep(0)
            assert current_name() == "numbers"
            with span(f"number {n}"):
                yield n

    async with span("consumer") as consumer:
        async for _ in numbers():
            assert trace.get_current_span() is consumer
            assert not otel_spans.named("numbers")
    assert otel_spans.tree() == [("consumer", [("numbers", [("number 0", []), ("number 1", [])])])]


async def test_an_async_generator_may_take_each_step_in_another_task(otel_spans, caplog):
    @span("numbers")
    async def numbers():
        with span("inner"):
            yield 1
            assert current_name() == "inner"
        assert current_name() == "numbers"
        yield 2

    generator = numbers()
    got = [await asyncio.create_task(anext(generator)) for _ in range(2)]
    await asyncio.create_task(generator.aclose())
    assert got == [1, 2]
    assert otel_spans.tree() == [("numbers", [("inner", [])])]
    assert not caplog.records


async def test_closing_an_async_generator_ends_its_span_and_runs_its_cleanup_inside(otel_spans):
    cleanup = []

    @span("numbers")
    async def numbers():
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            cleanup.append(current_name())

    async with contextlib.aclosing(numbers()) as generator:
        async for _ in generator:
            break
    assert cleanup == ["numbers"]
    assert otel_spans.one("numbers").status.status_code is trace.StatusCode.UNSET


async def test_throwing_into_an_async_generator_reaches_its_body(otel_spans):
    @span("numbers")
    async def numbers():
        try:
            yield 1
        except KeyError:
            yield 2
        raise ValueError("at the end")

    generator = numbers()
    assert await anext(generator) == 1
    assert await generator.athrow(KeyError("k")) == 2
    with pytest.raises(ValueError, match="at the end"):
        await anext(generator)
    assert otel_spans.one("numbers").attributes["error.type"] == "ValueError"


async def test_an_async_generator_cancelled_in_its_body_ends_its_span(otel_spans):
    @span("numbers")
    async def numbers():
        await asyncio.sleep(30)
        yield 1

    async def consume():
        async for _ in numbers():
            pass

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert otel_spans.one("numbers").status.status_code is trace.StatusCode.UNSET


# --- attributes ---


class Colour(enum.Enum):
    RED = "red"


class Failing:
    def __str__(self):
        raise RuntimeError("no text")


MOMENT = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
SOME_UUID = uuid.UUID(int=7)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (3, 3),
        (2.5, 2.5),
        ("text", "text"),
        (2**80, str(2**80)),
        (lazystr("lazy"), "lazy"),
        (mark_safe("<b>"), "<b>"),
        (decimal.Decimal("1.50"), "1.50"),
        (MOMENT, str(MOMENT)),
        (SOME_UUID, str(SOME_UUID)),
        (Colour.RED, "red"),
        (Item(name="a lamp"), "a lamp"),
        (b"bytes \xff", "bytes \ufffd"),
        ("lone \ud800", "lone ?"),
        (["a", "b"], ("a", "b")),
        ([1, 2.5], (1.0, 2.5)),
        ([1, "a", True], ("1", "a", "True")),
        ({"k": 1}, "{'k': 1}"),
        (Failing(), "<Failing>"),
    ],
)
def test_attributes_of_any_type_arrive_as_something_exportable(otel_spans, value, expected):
    with span("s", value=value):
        django_otel.event("e", value=value)
        django_otel.set_attributes(again=value)
    recorded = otel_spans.one("s")
    assert recorded.attributes["value"] == expected
    assert type(recorded.attributes["value"]) is type(expected)
    assert recorded.attributes["again"] == expected
    assert recorded.events[0].attributes["value"] == expected
    encode_spans(list(otel_spans)).SerializeToString()


def test_none_is_no_attribute(otel_spans):
    with span("s", nothing=None, something=1):
        pass
    assert otel_spans.one("s").attributes == {"something": 1}


def test_attributes_of_a_span_that_is_not_recorded_are_not_made_into_text():
    class Expensive:
        asked = 0

        def __str__(self):
            Expensive.asked += 1
            return "text"

    with override_sampling(0.0), span("s", value=Expensive()):
        django_otel.event("e", value=Expensive())
        django_otel.set_attributes(value=Expensive())
    assert Expensive.asked == 0
    with span("s", value=Expensive()):
        pass
    assert Expensive.asked == 1


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
    | st.decimals()
    | st.datetimes()
    | st.uuids()
    | st.sampled_from([Colour.RED, Failing(), object(), lambda: 1, Item(name="x")]),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.mark.heavy
@hypothesis.given(attributes=st.dictionaries(st.text(st.characters(exclude_categories=()), min_size=1), VALUES))
@hypothesis.settings(
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
def test_no_attribute_whatever_breaks_a_span_or_its_export(otel_spans, attributes):
    otel_spans.clear()
    with span("s", **attributes):
        django_otel.event("e", **attributes)
    (recorded,) = otel_spans
    encode_spans([recorded]).SerializeToString()
    cleaned = attribute_values.clean_attributes(attributes)
    assert len(cleaned) <= len(attributes)
    for value in cleaned.values():
        kinds = {type(item) for item in value} if isinstance(value, list) else {type(value)}
        assert len(kinds) <= 1
        assert kinds <= {str, bool, int, float}


def test_a_name_that_is_lazy_or_empty_is_a_name(otel_spans):
    with span(lazystr("lazy")), span(""):
        pass
    assert otel_spans.tree() == [("lazy", [("span", [])])]


# --- never by its own fault ---


def test_a_tracer_that_fails_does_not_reach_the_application(monkeypatch, faults, caplog):
    def fail():
        raise RuntimeError("broken tracer")

    monkeypatch.setattr(runtime, "tracer", fail)
    with span("s") as current:
        current.set_attribute("a", 1)
    assert span("f")(lambda: 5)() == 5
    assert list(span("g")(numbers_up_to)(2)) == [0, 1]
    with timed("t"):
        pass
    assert faults()["the start of a span"] == 3
    assert faults()["the start of a timed span"] == 1


def test_outside_of_a_span_events_and_attributes_go_nowhere(otel_spans):
    django_otel.event("e", a=1)
    django_otel.set_attributes(a=1)
    assert django_otel.current_trace_id() is None
    assert django_otel.trace_url() is None
    assert len(otel_spans) == 0


def test_events_and_attributes_go_to_the_innermost_span(otel_spans):
    with span("outer"), span("inner"):
        django_otel.event("payment_captured", amount=12)
        django_otel.set_attributes(**{"payment.method": "card"})
    assert otel_spans.one("inner").events[0].name == "payment_captured"
    assert otel_spans.one("inner").events[0].attributes == {"amount": 12}
    assert otel_spans.one("inner").attributes == {"payment.method": "card"}
    assert not otel_spans.one("outer").events


@override_settings(OTEL={"SERVICE_NAME": "tests", "ENABLED": False})
def test_switched_off_everything_is_silent(otel_spans):
    with span("s"), timed("t"):
        django_otel.event("e")
        assert django_otel.current_trace_id() is None
    assert django_otel.carrier() == {}
    assert len(otel_spans) == 0


# --- timed ---


def test_timed_is_a_span_and_a_histogram_from_one_measurement(otel_spans, otel_metrics):
    with timed("pack", size="xl"):
        pass
    recorded = otel_spans.one("pack")
    assert recorded.attributes == {"size": "xl"}
    measured = otel_metrics.value("pack", size="xl")
    assert measured.count == 1
    assert measured.sum == pytest.approx((recorded.end_time - recorded.start_time) / 1e9, rel=1e-12, abs=1e-9)


def test_timed_counts_an_error_under_its_type(otel_spans, otel_metrics):
    @timed("fails")
    def fails():
        raise ValueError

    with pytest.raises(ValueError):
        fails()
    assert otel_metrics.value("fails", {"error.type": "ValueError"}).count == 1
    assert otel_spans.one("fails").status.status_code is trace.StatusCode.ERROR


async def test_timed_decorates_coroutines_and_generators(otel_spans, otel_metrics):
    @timed("co")
    async def co():
        await asyncio.sleep(0.02)

    @timed("gen")
    def gen():
        yield 1
        yield 2

    @timed("agen")
    async def agen():
        yield 1

    begun_s = time.perf_counter()
    await co()
    lasted_s = time.perf_counter() - begun_s
    assert list(gen()) == [1, 2]
    assert [item async for item in agen()] == [1]
    assert [otel_metrics.value(name).count for name in ("co", "gen", "agen")] == [1, 1, 1]
    assert 0.015 < otel_metrics.value("co").sum <= lasted_s
    assert [s.name for s in otel_spans] == ["co", "gen", "agen"]


def test_timed_counts_what_is_not_sampled(otel_spans, otel_metrics):
    with override_sampling(0.0), timed("unsampled"):
        pass
    assert otel_metrics.value("unsampled").count == 1
    assert len(otel_spans) == 0


def test_timed_shows_its_trace_as_an_exemplar():
    with timed("with.exemplar") as current:
        trace_id = current.get_span_context().trace_id
    (family,) = [family for family in runtime.collect() if family.name == "with.exemplar"]
    assert family.unit == "s"
    assert [exemplar.trace_id for point in family.points for exemplar in point.exemplars] == [trace_id]


def test_timed_keeps_its_span_when_the_name_is_another_instruments(otel_spans, faults):
    django_otel.counter("taken.name").add(1)
    with timed("taken.name"):
        pass
    assert otel_spans.one("taken.name")
    assert faults() == {"the duration of a timed span": 1}


# --- instruments ---


def test_asking_twice_for_an_instrument_gives_the_same_one():
    for make in (django_otel.counter, django_otel.up_down_counter, django_otel.gauge, django_otel.histogram):
        name = f"twice.{make.__name__}"
        assert make(name, unit="1", description="d") is make(name)
    first = django_otel.observable_gauge("twice.observed", lambda: 1)
    assert django_otel.observable_gauge("twice.observed", lambda: 2, unit="1") is first


def test_a_name_of_another_kind_is_refused_with_both_kinds():
    django_otel.counter("orders.kind")
    with pytest.raises(ValueError, match=r"'orders\.kind' is of kind counter; it cannot be a histogram"):
        django_otel.histogram("orders.kind")
    with pytest.raises(ValueError, match="observable gauge"):
        django_otel.observable_gauge("orders.kind", lambda: 1)
    django_otel.observable_gauge("observed.kind", lambda: 1)
    with pytest.raises(ValueError, match="observable gauge"):
        django_otel.gauge("observed.kind")


def test_instruments_count_with_attributes(otel_metrics):
    django_otel.counter("orders.total").add(2, {"region": "eu"})
    django_otel.counter("orders.total").add(1, {"region": "us"})
    django_otel.up_down_counter("jobs.open").add(3)
    django_otel.up_down_counter("jobs.open").add(-1)
    django_otel.gauge("room.temperature").set(21.5, {"room": "attic"})
    django_otel.histogram("basket.size", bounds=(1, 5, 10)).record(7)
    django_otel.observable_gauge("queue.length", lambda: [(4, {"queue": "mail"})])
    assert otel_metrics.value("orders.total") == 3
    assert otel_metrics.value("orders.total", region="eu") == 2
    assert otel_metrics.value("jobs.open") == 2
    assert otel_metrics.value("room.temperature", room="attic") == 21.5
    assert otel_metrics.value("basket.size").buckets == (0, 0, 1, 0)
    assert otel_metrics.value("queue.length", queue="mail") == 4


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((1, 5, float("inf")), (1.0, 5.0)),
        ([decimal.Decimal("0.5"), 1], (0.5, 1.0)),
        ((bound for bound in (1, 2)), (1.0, 2.0)),
        (range(3), (0.0, 1.0, 2.0)),
    ],
)
def test_bounds_are_numbers_and_the_infinite_one_is_always_there(bounds, expected, request):
    histogram = django_otel.histogram(f"bounds.{request.node.name}", bounds=bounds)
    histogram.record(0.75)
    assert histogram.definition.bounds == expected


@pytest.mark.parametrize("bounds", [(3, 1), (1, 1), (float("nan"), 1), "12", ["1", "2"], [None], [10**400], (1, [2])])
def test_bounds_that_no_page_could_show_are_refused_where_they_are_given(bounds):
    with pytest.raises(ValueError, match=r"bounds of the histogram 'bounds\.refused' .* expected ascending numbers"):
        django_otel.histogram("bounds.refused", bounds=bounds)


def test_a_name_of_a_metric_of_ours_takes_nothing_away():
    store = CellStore()
    with pytest.raises(ValueError, match="is a histogram of django_otel"):
        store.counter("http.server.request.duration")
    with pytest.raises(ValueError, match="is a counter of django_otel"):
        store.observable_gauge("django.auth.events", lambda: 1)
    assert store.histogram("http.server.request.duration").definition.unit == "s"


def test_units_and_descriptions_may_be_missing(otel_metrics):
    for number, missing in enumerate((None, SimpleLazyObject(lambda: ""))):
        django_otel.counter(f"unit.{number}", unit=missing, description=missing).add(1)
        assert otel_metrics.value(f"unit.{number}") == 1
        assert django_otel.counter(f"unit.{number}").definition.unit == ""


def test_instruments_take_money_and_ignore_what_is_no_number(otel_metrics):
    django_otel.counter("money").add(decimal.Decimal("1.5"))
    django_otel.counter("money").add("much")
    django_otel.counter("money").add(1, None)
    django_otel.histogram("money.spread").record(decimal.Decimal("2.5"), {"of": Failing()})
    assert otel_metrics.value("money") == 2.5
    assert otel_metrics.value("money.spread", of="<Failing>").sum == 2.5


# --- users ---


def otel(**request):
    return override_settings(OTEL={"SERVICE_NAME": "tests", "REQUEST": request})


def test_users_are_not_recorded_by_default(otel_spans):
    with span("s"):
        django_otel.set_user(User(pk=5, username="ann"))
    assert not otel_spans.one("s").attributes


def test_user_id_is_the_primary_key_alone(otel_spans):
    with otel(USER="id"), span("s"):
        django_otel.set_user(User(pk=5, username="ann"))
    assert otel_spans.one("s").attributes == {"user.id": "5"}


def test_user_hash_is_stable_keyed_and_not_the_key(otel_spans):
    with otel(USER="hash"):
        with span("a"):
            django_otel.set_user(User(pk=5))
        with span("b"):
            django_otel.set_user(5)
        with override_settings(SECRET_KEY="another"), span("c"):
            django_otel.set_user(5)
    first, second, third = (otel_spans.one(name).attributes["user.hash"] for name in "abc")
    assert first == second != third
    assert len(first) == 64
    assert "user.id" not in otel_spans.one("a").attributes


def test_anonymous_users_are_not_recorded(otel_spans):
    with otel(USER="id"), span("s"):
        django_otel.set_user(AnonymousUser())
        django_otel.set_user(None)
    assert not otel_spans.one("s").attributes


def test_a_user_is_set_on_the_requests_span(otel_spans, rf):
    def view(request):
        with span("work"):
            django_otel.set_user(7)
        return HttpResponse()

    with otel(USER="id"):
        serve(rf.get("/hello/"), view)
    assert otel_spans.one("work").attributes.get("user.id") is None
    assert [s.attributes.get("user.id") for s in otel_spans if s.kind is trace.SpanKind.SERVER] == ["7"]


# --- where we are ---


def test_current_trace_id_and_trace_url():
    with override_settings(OTEL={"TRACE_URL": "https://jaeger.example/{trace_id}?x={y}"}), span("s") as current:
        trace_id = format(current.get_span_context().trace_id, "032x")
        assert django_otel.current_trace_id() == trace_id
        assert django_otel.trace_url() == f"https://jaeger.example/{trace_id}?x={{y}}"
    with span("s"):
        assert django_otel.trace_url() is None


def test_a_trace_that_is_not_recorded_has_no_url():
    with override_settings(OTEL={"TRACE_URL": "https://x/{trace_id}"}), override_sampling(0.0), span("s"):
        assert django_otel.current_trace_id() is not None
        assert django_otel.trace_url() is None


# --- untraced ---


def serve(request, view):
    from django_otel.middleware import OTelMiddleware

    return OTelMiddleware(view)(request)


def test_untraced_as_a_block_makes_no_spans(otel_spans):
    with span("outer"):
        for scope in (untraced, untraced()):
            with scope:
                with span("ours"):
                    pass
                with trace.get_tracer("theirs").start_as_current_span("theirs"):
                    pass
                django_otel.event("still here")
        with span("after"):
            pass
    assert otel_spans.tree() == [("outer", [("after", [])])]
    assert [event.name for event in otel_spans.one("outer").events] == ["still here"] * 2


def test_untraced_without_a_span_around_begins_no_trace(otel_spans):
    with untraced, span("root"):
        pass
    assert len(otel_spans) == 0


async def test_untraced_decorates_functions_coroutines_and_generators(otel_spans):
    def work():
        with span("inner"):
            return 1

    @untraced
    def sync():
        return work()

    @untraced()
    async def coroutine():
        await asyncio.sleep(0)
        return work()

    @untraced
    def generator():
        yield work()

    @untraced
    async def async_generator():
        yield work()

    with span("outer"):
        assert sync() == await coroutine() == next(generator()) == 1
        assert [item async for item in async_generator()] == [1]
        with span("after"):
            pass
    assert otel_spans.tree() == [("outer", [("after", [])])]


def test_untraced_silences_instrumentors():
    from opentelemetry.instrumentation.utils import is_instrumentation_enabled

    with untraced:
        assert not is_instrumentation_enabled()
    assert is_instrumentation_enabled()


def test_timed_in_untraced_counts_all_the_same(otel_spans, otel_metrics):
    with untraced, timed("silent"):
        pass
    assert otel_metrics.value("silent").count == 1
    assert len(otel_spans) == 0


def test_an_untraced_view_drops_the_requests_span_and_keeps_its_metrics(otel_spans, otel_metrics, rf):
    @untraced
    def view(request):
        with span("inner"):
            return HttpResponse("ok")

    assert serve(rf.get("/hello/"), view).content == b"ok"
    assert len(otel_spans) == 0
    assert otel_metrics.value("http.server.request.duration").count == 1


async def test_an_untraced_async_view_drops_the_requests_span(otel_spans, otel_metrics, async_rf):
    @untraced
    async def view(request):
        with span("inner"):
            await asyncio.sleep(0)
        return HttpResponse("ok")

    await serve(async_rf.get("/hello/"), view)
    assert len(otel_spans) == 0
    assert otel_metrics.value("http.server.request.duration").count == 1


def test_untraced_decorates_class_based_views(otel_spans, rf):
    @method_decorator(untraced, name="dispatch")
    class Hello(View):
        @span("inner")
        def get(self, request):
            return HttpResponse("ok")

    class Other(View):
        @untraced
        def get(self, request):
            return HttpResponse("ok")

    assert serve(rf.get("/hello/"), Hello.as_view()).status_code == 200
    assert serve(rf.get("/hello/"), Other.as_view()).status_code == 200
    assert len(otel_spans) == 0


def test_an_untraced_helper_keeps_the_requests_span(otel_spans, rf):
    @untraced
    def helper():
        with span("inner"):
            pass

    def view(request):
        helper()
        return HttpResponse()

    serve(rf.get("/hello/"), view)
    assert [s.kind for s in otel_spans] == [trace.SpanKind.SERVER]


# --- carriers ---


def test_a_carrier_takes_the_context_to_a_thread(otel_spans):
    def work(carried):
        with django_otel.from_carrier(carried), span("in the thread"):
            pass
        assert not trace.get_current_span().get_span_context().is_valid

    with span("parent") as parent:
        carried = django_otel.carrier()
        thread = threading.Thread(target=work, args=(carried,))
        thread.start()
        thread.join(60)
    ids = parent.get_span_context()
    assert carried["traceparent"] == f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{int(ids.trace_flags):02x}"
    assert otel_spans.tree() == [("parent", [("in the thread", [])])]


def test_a_carrier_says_no_to_sampling_as_well(otel_spans):
    with override_sampling(0.0), span("parent"):
        carried = django_otel.carrier()
    with django_otel.from_carrier(carried), span("child"):
        pass
    assert int(carried["traceparent"][-2:], 16) & trace.TraceFlags.SAMPLED == 0
    assert len(otel_spans) == 0


async def test_from_carrier_is_a_decorator_and_async_too(otel_spans):
    with span("parent"):
        carried = django_otel.carrier()

    @django_otel.from_carrier(carried)
    @span("decorated")
    async def work():
        await asyncio.sleep(0)

    await work()
    async with django_otel.from_carrier({key.upper(): value for key, value in carried.items()}):
        with span("upper case"):
            pass
    assert otel_spans.tree() == [("parent", [("decorated", []), ("upper case", [])])]


@pytest.mark.parametrize(
    "garbage",
    [
        None,
        {},
        [],
        "traceparent",
        7,
        {"traceparent": None},
        {"traceparent": 5, 5: "x"},
        {"traceparent": "garbage"},
        {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"},
        {"traceparent": "x" * 100_000, "baggage": ",=;" * 5000},
        {"tracestate": "only=state", "baggage": "%zz=%"},
    ],
)
def test_garbage_leaves_the_context_as_it_is(otel_spans, faults, garbage):
    with span("outer"), django_otel.from_carrier(garbage), span("inner"):
        pass
    assert otel_spans.tree() == [("outer", [("inner", [])])]
    assert faults() == {}


@hypothesis.given(
    garbage=st.dictionaries(
        st.sampled_from(["traceparent", "tracestate", "baggage", "Traceparent", "x"]) | st.text(),
        st.text(st.characters(exclude_categories=())) | st.none() | st.integers() | st.binary(),
    )
)
def test_no_carrier_whatever_raises_or_leaks(garbage):
    before = otel_context.get_current()
    guard.reset()
    with django_otel.from_carrier(garbage):
        pass
    assert otel_context.get_current() is before
    assert guard.fault_counts() == {}


def test_without_a_trace_the_carrier_is_empty():
    assert django_otel.carrier() == {}


# --- flush ---


def test_flush_answers_and_contains_faults(monkeypatch, faults):
    assert django_otel.flush(timeout_s=60.0) is True

    def fail(timeout_s):
        raise OSError("gone")

    monkeypatch.setattr(runtime, "flush", fail)
    assert django_otel.flush() is False
    assert faults() == {"flush()": 1}


def test_log_records_inside_a_span_carry_its_ids(otel_spans, caplog):
    with caplog.at_level(logging.INFO), span("s") as current:
        logging.getLogger("shop").info("hello")
    assert caplog.records[0].otelTraceID == format(current.get_span_context().trace_id, "032x")


@pytest.mark.django_db
def test_the_metrics_fixture_asks_no_callback_before_the_test_has_its_database(otel_metrics):
    """A gauge that counts rows is read when the test asks for it, and only then."""
    from django_otel.base import guard
    from tests.app.models import Item

    guard.reset()
    django_otel.observable_gauge("t.items", lambda: Item.objects.count())
    otel_metrics.clear()
    Item.objects.create(name="one")
    assert otel_metrics.value("t.items") == 1
    assert not guard.fault_counts()
    django_otel.observable_gauge("t.items", lambda: 0)


def test_lazy_numbers_cost_no_span_and_are_made_for_recorded_ones_alone(otel_spans):
    made = []
    number = SimpleLazyObject(lambda: made.append(1) or 5)
    items, big = SimpleLazyObject(lambda: [1, 2]), SimpleLazyObject(lambda: 2**70)
    with django_otel.span("lazy", number=number, items=items, big=big):
        pass
    assert dict(otel_spans[0].attributes) == {"number": 5, "items": (1, 2), "big": str(2**70)}
    with override_sampling(0.0), django_otel.span("none", number=SimpleLazyObject(lambda: made.append(2) or 5)):
        pass
    assert made == [1]
    assert not guard.fault_counts()


def test_a_lazy_member_of_a_mapping_is_what_it_stands_for(otel_spans):
    with django_otel.span("order", extra={"name": SimpleLazyObject(lambda: "shoes"), "count": 2}):
        pass
    assert otel_spans[0].attributes["extra"] == "{'name': 'shoes', 'count': 2}"


def test_lazy_texts_are_texts_wherever_they_stand(otel_spans):
    name, saved = SimpleLazyObject(lambda: "hello"), lazystr("Save")
    tracer = trace.get_tracer("shop")
    other = trace.SpanContext(1, 1, False)
    with tracer.start_as_current_span(name, links=[trace.Link(other, {"l": name})], attributes={name: [name]}) as one:
        one.add_event(name, {"e": name, "f": [name, saved], name: 1})
        one.add_event(saved, {"e": saved})
        one.add_link(other, {"l": name, "m": (saved,)})
        one.set_attribute(SimpleLazyObject(lambda: "key"), [name, saved])
        one.set_attributes({"several": (name, saved), "text": saved})
        one.set_attribute("one", saved)
        one.record_exception(ValueError("no"), {"z": name})
        one.set_status(trace.Status(trace.StatusCode.ERROR, name))
    found = otel_spans[0]
    assert dict(found.attributes) == {
        "hello": ("hello",), "key": ("hello", "Save"), "several": ("hello", "Save"), "text": "Save", "one": "Save"
    }  # fmt: skip
    first, second, exception = found.events
    assert (first.name, dict(first.attributes)) == ("hello", {"e": "hello", "f": ("hello", "Save"), "hello": 1})
    assert (second.name, dict(second.attributes)) == ("Save", {"e": "Save"})
    assert exception.attributes["z"] == "hello"
    assert [dict(link.attributes) for link in found.links] == [{"l": "hello"}, {"l": "hello", "m": ("Save",)}]
    assert (found.name, found.status.description) == ("hello", "hello")
    assert type(found.status.description) is type(found.events[0].name) is str
