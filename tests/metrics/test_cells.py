"""Cells: updates that take no lock lose nothing, while other threads run and the cells are moved."""

from __future__ import annotations

import dis
import sys
import threading

import pytest

from django_otel.metrics import series as series_module
from django_otel.metrics import store as store_module
from django_otel.metrics.cells import Memory
from django_otel.metrics.series import HistogramSeries, RequestSeries, Series
from django_otel.metrics.store import CellStore
from django_otel.requests.observer import Observer

#: Where CPython looks for another thread that wants to run, or for a signal.
_MAY_BE_INTERRUPTED = ("CALL", "PRECALL", "RESUME", "JUMP_BACKWARD", "POP_JUMP_BACKWARD", "FOR_ITER", "SEND", "YIELD")


@pytest.fixture
def store():
    made = CellStore()
    made.joined = True
    return made


@pytest.fixture
def often_switched():
    """Threads take turns after every few instructions, as far as the interpreter lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def request_series(store: CellStore) -> RequestSeries:
    active = store.up_down_counter("active").series({})
    named = {name: store.histogram(name, bounds=(1.0, 10.0)).series({}) for name in ("d", "b", "r", "q")}
    return RequestSeries(active, named["d"], named["b"], named["r"], named["q"])  # type: ignore[arg-type]


def value(store: CellStore, name: str):
    """The one point of an instrument; None where there is none."""
    found = next((family for family in store.collect() if family.name == name), None)
    return found.points[0].value if found is not None else None


def run_together(*functions) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.skipif(not series_module.HAS_GLOBAL_LOCK, reason="updates take a lock here")
@pytest.mark.parametrize(("owner", "name"), series_module.UPDATES, ids=lambda item: getattr(item, "__name__", item))
def test_nothing_lets_another_thread_in_between_the_look_at_where_the_cells_are_and_the_last_update(owner, name):
    """Else an increment could be lost, or go to cells that were given up."""
    instructions = list(dis.get_instructions(getattr(owner, name)))
    looks = [n for n, found in enumerate(instructions) if found.opname == "UNPACK_SEQUENCE"]
    begin = looks[-1] if looks else next(n for n, found in enumerate(instructions) if found.argval == "cells")
    end = max(n for n, found in enumerate(instructions) if found.opname in ("STORE_SUBSCR", "STORE_ATTR"))
    updates = [found for found in instructions[begin:end] if found.opname in ("BINARY_OP", "BINARY_OP_ADD_FLOAT")]
    assert updates, "the part that is looked at holds no update"
    interrupted = [
        found.opname for found in instructions[begin : end + 1] if found.opname.startswith(_MAY_BE_INTERRUPTED)
    ]
    assert interrupted == []


@pytest.mark.skipif(not series_module.HAS_GLOBAL_LOCK, reason="updates take a lock here")
def test_where_the_cells_are_is_looked_up_in_the_same_stretch():
    """Between the last look at whether something has moved and the first update no other thread runs."""
    instructions = list(dis.get_instructions(RequestSeries.finish))
    last_look = max(n for n, found in enumerate(instructions) if found.argval == "moves")
    # Some versions put the way back to another look behind the last one, and jump over it when nothing has moved.
    jump = next(found for found in instructions[last_look:] if "JUMP" in found.opname)
    if jump.opname == "POP_JUMP_IF_FALSE":
        last_look = next(n for n, found in enumerate(instructions) if found.offset == jump.argval)
    begin = next(n for n, found in enumerate(instructions) if found.opname == "UNPACK_SEQUENCE" and n > last_look)
    backwards = [found for found in instructions[last_look:begin] if "BACKWARD" in found.opname]
    # The jump back is taken when something has moved, and leads to another look.
    assert all(instructions[0].offset < found.argval <= instructions[last_look].offset for found in backwards)
    assert not [found for found in instructions[last_look:begin] if found.opname.startswith(("CALL", "PRECALL"))]


@pytest.mark.skipif(not series_module.HAS_GLOBAL_LOCK, reason="updates take a lock here")
def test_a_request_that_begins_is_counted_without_an_interruption():
    instructions = list(dis.get_instructions(Observer.begin))
    begin = next(n for n, found in enumerate(instructions) if found.argval == "cells")
    end = next(n for n, found in enumerate(instructions) if found.argval == "is_set" and n > begin)
    assert not [found for found in instructions[begin:end] if found.opname.startswith(_MAY_BE_INTERRUPTED)]


def test_threads_that_count_the_same_lose_nothing(store, often_switched):
    series = store.counter("c").series({})
    histogram = store.histogram("h", bounds=(1.0, 2.0)).series({})
    requests = request_series(store)
    assert isinstance(histogram, HistogramSeries)

    def count():
        for _ in range(5_000):
            series.add(1.0)
            histogram.observe(1.5)
            requests._active.add(1.0)
            requests.finish(series, 0.5, 7, 2)

    run_together(*[count] * 8)
    assert value(store, "c") == 80_000
    assert value(store, "h").buckets == [0.0, 40_000, 0.0]
    assert value(store, "h").sum == 60_000
    assert value(store, "active") == 0
    assert (value(store, "d").buckets[0], value(store, "d").sum) == (40_000, 20_000)
    assert (value(store, "r").buckets[1], value(store, "r").sum) == (40_000, 280_000)
    assert (value(store, "q").buckets[1], value(store, "q").sum) == (40_000, 80_000)


def test_cells_that_move_while_threads_count_lose_nothing(store, often_switched):
    """As when a process joins, or its files become too small or are deleted under it."""
    series = store.counter("c").series({})
    requests = request_series(store)
    is_over = threading.Event()

    def count():
        for _ in range(10_000):
            series.add(1.0)
            requests.finish(None, 0.5, 7, 2)

    def move():
        while not is_over.is_set():
            store.move(Memory())

    mover = threading.Thread(target=move)
    mover.start()
    try:
        run_together(*[count] * 4)
    finally:
        is_over.set()
        mover.join(60)
    assert store.moves > 100
    assert value(store, "c") == 40_000
    assert value(store, "active") == -40_000
    assert (value(store, "d").buckets[0], value(store, "d").sum) == (40_000, 20_000)
    assert value(store, "r").sum == 280_000
    assert value(store, "q").buckets[1] == 40_000


def test_a_new_series_leaves_the_others_where_they_are(store):
    """Else each new one would have all others looked for again (3 kI a request)."""
    requests = request_series(store)
    requests.finish(None, 0.5, 7, 0)
    before = store.moves
    store.counter("another").series({}).add(1.0)
    assert store.moves == before
    store.move(Memory())
    assert store.moves > before
    requests.finish(None, 0.5, 7, 0)
    assert value(store, "d").buckets[0] == 2


def test_requests_are_shown_again_after_everything_was_set_to_zero(store):
    requests = request_series(store)
    requests.finish(None, 0.5, 7, 0)
    store.clear()
    assert value(store, "d") is None
    requests.finish(None, 0.5, 7, 0)
    assert value(store, "d").buckets == [1.0, 0.0, 0.0]
    assert value(store, "q").buckets == [1.0, 0.0, 0.0]
    assert value(store, "active") == -1


def test_a_request_without_a_size_counts_none(store):
    request_series(store).finish(None, 0.5, None, 0)
    assert value(store, "d").buckets == [1.0, 0.0, 0.0]
    assert value(store, "r") is None


def test_without_a_global_lock_an_update_waits_for_ours(store):
    """What a build of Python that can do without is given instead."""
    series = store.counter("c").series({})
    add = series_module._under_lock(Series.add)
    done = threading.Event()

    def count():
        add(series, 2.0)
        done.set()

    with store.lock:
        thread = threading.Thread(target=count)
        thread.start()
        assert not done.wait(0.2)
        assert series.read() == 0.0
    thread.join(60)
    assert series.read() == 2.0


def test_a_busy_buckets_exemplars_leave_the_others_theirs(store, monkeypatch):
    """It would push the exemplars of all others out of the ring; the last of a few is always shown."""
    now_s = [1000.0]
    monkeypatch.setattr(series_module.time, "time", lambda: now_s[0])
    series = store.histogram("h", bounds=(1.0,)).series({})
    assert isinstance(series, HistogramSeries)

    def shown() -> list[int]:
        return sorted(found.trace_id for found in store.exemplars.latest().values())

    series.observe(5.0, 1000, 1)
    for number in range(1, 501):
        series.observe(0.5, number, 1)
    assert shown() == [series_module._EXEMPLARS_AT_ONCE, 1000]
    now_s[0] += series_module._EXEMPLAR_AGE_S
    series.observe(0.7, 501, 1)
    assert shown() == [501, 1000]
    # A clock that was set back does not keep new ones out, nor does what was forgotten.
    now_s[0] -= 3600
    series.observe(0.8, 502, 1)
    assert shown() == [502, 1000]
    for number in range(503, 603):
        series.observe(0.8, number, 1)
    now_s[0] += 0.01
    store.exemplars.clear()
    series.observe(0.8, 603, 1)
    assert shown() == [603]
    assert series.read_histogram().buckets == [603.0, 1.0]


def test_a_metric_of_ours_is_defined_once(store, monkeypatch):
    """What is asked for again is found: commands and sockets ask each time."""
    made = [store.catalogued(name) for name in ("django.command.duration", "django.websocket.messages")]
    monkeypatch.setattr(store_module, "_define_catalogued", None)
    assert [store.catalogued(instrument.definition.name) for instrument in made] == made
