"""The trace store: its bounds, its file, and what it survives."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_otel.base.private_files import Unusable
from django_otel.config.parse import parse
from django_otel.config.schema import Config
from django_otel.redaction.scrub import Scrubber
from django_otel.redaction.sdk_items import scrub_span
from django_otel.tracestore.file import DAMAGED_SUFFIX, FILE_NAME, StoreFile, candidate_folders, find_file
from django_otel.tracestore.items import StoredLog, StoredProcess, StoredSample, StoredSpans
from django_otel.tracestore.numbers import MAX_ROUTES, merge, subtract, sum_routes
from django_otel.tracestore.packing import pack_routes, unpack_route, unpack_routes
from django_otel.tracestore.processor import StoreProcessor, numbers_of
from django_otel.tracestore.reader import TraceFilter, read
from django_otel.tracestore.writer import TraceStore
from tests import services, sizes
from tests.services import ROOT, serve, wait_until

START_NS = 1_700_000_000_000_000_000
MS = 1_000_000


def span(trace, number=0, *, rank=None, duration_ms=10, status=200, is_error=False, route="/x/", service="shop",
         event="", text="", start_ms=0, is_query=False):  # fmt: skip
    start_ns = START_NS + trace * 1000 * MS + start_ms * MS
    end_ns = start_ns + duration_ms * MS
    return StoredSpans(
        trace_id=f"{trace:032x}", data=encoded(trace, number, start_ns, end_ns, text), spans=1, start_ns=start_ns,
        end_ns=end_ns, rank=(2 if number == 0 else 0) if rank is None else rank, root_start_ns=start_ns,
        root_end_ns=end_ns, name=f"GET {route}", method="GET", route=route, status=status, service=service,
        errors=int(is_error), queries=int(is_query), services={service}, events={event} - {""},
    )  # fmt: skip


def encoded(trace, number, start_ns, end_ns, text):
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

    from django_otel.export.encoder import SpanEncoder

    context = SpanContext(trace, number + 1, is_remote=False)
    attributes = {"text": text} if text else {}
    return SpanEncoder().encode(
        [ReadableSpan("x", context=context, start_time=start_ns, end_time=end_ns, attributes=attributes)]
    )


@pytest.fixture
def drops():
    return []


@pytest.fixture
def make(tmp_path):
    def build(*, max_traces=100, max_mb=8, path=None):
        return TraceStore(
            find_file(str(path or tmp_path / "store"), {}, "test"), max_traces=max_traces, max_bytes=max_mb << 20
        )

    return build


def write(store, *items, drops=None):
    store.write(
        items, lambda count, reason: drops.append((count, reason)) if drops is not None else pytest.fail(reason)
    )


def ids(store, **wanted):
    with read(store) as reader:
        page = reader.list_traces(TraceFilter(**wanted), limit=100_000)
        assert page.total == len(page.rows)
        return [int(row.trace_id, 16) for row in page.rows]


# --- Traces. ---


def test_a_trace_that_comes_in_parts_and_from_two_services_is_whole(make):
    """In any order of writing: the span without a parent gives the trace its name, route, status and duration."""
    store = make()
    write(store, span(1, 5, rank=1, service="gateway", route="/pay/", duration_ms=3, start_ms=4))
    write(store, span(1, 2, is_query=True), StoredLog(f"{1:032x}", START_NS, "shop", {"body": "hello", "time": 1}))
    with read(store) as reader:
        (row,) = reader.list_traces(TraceFilter()).rows
        assert (row.service, row.route, row.root_rank) == ("gateway", "/pay/", 1)
    write(store, span(1, 0, duration_ms=50, status=201, event="order.placed"))
    with read(store) as reader:
        (row,) = reader.list_traces(TraceFilter()).rows
        trace = reader.trace(row.trace_id)
    assert (row.service, row.route, row.status, row.duration_ns) == ("shop", "/x/", 201, 50 * MS)
    assert row.services == ("shop", "gateway"), "that of the root first"
    assert (row.spans, row.queries, row.logs, row.events) == (3, 1, 1, ("order.placed",))
    assert [item["id"][-1] for item in trace.spans] == ["3", "1", "6"]
    assert [log["body"] for log in trace.logs] == ["hello"]


def test_filters_find_what_they_say(make):
    store = make()
    write(
        store,
        span(1), span(2, route="/orders/<int:pk>/", status=404), span(3, status=503), span(4, is_error=True),
        span(5, duration_ms=900), span(6, event="order.placed"), span(0xABC, service="gateway"),
    )  # fmt: skip
    assert ids(store) == [0xABC, 6, 5, 4, 3, 2, 1]
    assert ids(store, route="/orders/<int:pk>/") == [2]
    assert ids(store, route="ORDERS") == [2]
    assert ids(store, route="%") == []
    assert ids(store, status="404") == [2]
    assert ids(store, status="5xx") == [3]
    assert ids(store, has_error=True) == [4, 3]
    assert ids(store, min_duration_s=0.5) == [5]
    assert ids(store, event="order.placed") == [6]
    assert ids(store, trace_id="ABC") == [0xABC]
    assert ids(store, service="gateway") == [0xABC]
    assert ids(store, service="gate") == []


# --- Bounds. ---


@pytest.mark.heavy
def test_the_newest_are_kept_and_errors_and_slow_ones_longest(make):
    store = make(max_traces=100)
    write(store, *(span(number, is_error=True) for number in range(1, 11)))
    write(store, *(span(number, duration_ms=5000) for number in range(11, 16)))
    for number in range(16, 250):
        write(store, span(number, duration_ms=number % 7))
    kept = ids(store)
    assert len(kept) == 100
    assert set(range(1, 16)) <= set(kept)
    # A few more of the slowest are kept; the newest are all there.
    assert set(range(190, 250)) <= set(kept)


@pytest.mark.heavy
def test_errors_alone_do_not_push_out_what_is_new(make):
    store = make(max_traces=100)
    for number in range(1, 250):
        write(store, span(number, is_error=number <= 200))
    kept = ids(store)
    assert len(kept) == 100
    assert set(range(201, 250)) <= set(kept)
    assert kept[-1] >= 140, "the newest of the errors, not the oldest"


def test_an_old_error_is_forgotten_in_the_end(make):
    store = make(max_traces=10)
    write(store, span(1, is_error=True))
    write(store, *(span(number) for number in range(2, 90)))
    assert 1 in ids(store)
    write(store, *(span(number) for number in range(90, 130)))
    assert 1 not in ids(store)


def test_pinned_traces_outlive_everything_and_are_bounded(make):
    store = make(max_traces=20)
    write(store, *(span(number) for number in range(1, 11)))
    assert [store.pin(f"{number:032x}", is_pinned=True) for number in range(1, 7)] == [True] * 5 + [False]
    assert store.pin(f"{1:032x}", is_pinned=True), "pinned already"
    assert store.pin(f"{1:032x}", is_pinned=False)
    for number in range(11, 100):
        write(store, span(number, is_error=number % 2 == 0))
    kept = ids(store)
    assert len(kept) == 20
    assert {2, 3, 4, 5} <= set(kept)
    assert 1 not in kept
    assert 99 in kept


def test_spans_are_decoded_as_the_official_library_reads_them(make):
    """Our reader of OTLP against protobuf's own, over every kind of value, with events, links and a remote parent."""
    from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode

    from django_otel.export.encoder import SpanEncoder
    from django_otel.tracestore import otlp

    attributes = {
        "text": "naïve \u202e", "whole": -5, "large": 2**62, "float": -0.5, "yes": True, "no": False,
        "list": ("a", "b"), "numbers": (1, 2, 300), "empty": "", "long": "x" * 5000,
    }  # fmt: skip
    spans = [
        ReadableSpan(
            f"span {number}", context=SpanContext(7, number, is_remote=False),
            parent=SpanContext(7, 99, is_remote=number % 2 == 0) if number > 1 else None,
            resource=Resource({"service.name": "shop", "service.instance.id": "one"}), attributes=attributes,
            events=[Event("exception", {"exception.message": "no", "n": 3}, 12345)],
            links=[Link(SpanContext(8, 9, is_remote=True), {"why": "because"})],
            kind=list(SpanKind)[number % 5], status=Status(StatusCode.ERROR, "broken"), start_time=10**18,
            end_time=10**18 + number, instrumentation_scope=InstrumentationScope("lib", "1.0"),
        )
        for number in range(1, 11)
    ]  # fmt: skip
    data = SpanEncoder().encode(spans)
    expected = TracesData.FromString(data).resource_spans[0].scope_spans[0].spans
    found = otlp.decode(data, "django_otel")
    assert len(found) == len(expected) == 10
    for span_found, message in zip(found, expected, strict=True):
        assert span_found["id"] == message.span_id.hex()
        assert span_found.get("parent", "") == message.parent_span_id.hex()
        assert (span_found["start"], span_found["end"]) == (message.start_time_unix_nano, message.end_time_unix_nano)
        assert span_found["name"] == message.name
        assert span_found["attributes"] == {**attributes, "list": ["a", "b"], "numbers": [1, 2, 300]}
        assert span_found["events"][0]["attributes"] == {"exception.message": "no", "n": 3}
        assert span_found["links"] == [{"trace": f"{8:032x}", "span": f"{9:016x}", "attributes": {"why": "because"}}]
        assert (span_found["status"], span_found["description"]) == ("ERROR", "broken")
        assert (span_found["service"], span_found["instance"], span_found["scope"]) == ("shop", "one", "lib 1.0")


def test_bytes_that_are_no_spans_are_refused_and_nothing_else(make):
    from django_otel.tracestore import otlp

    for data in (os.urandom(size) for size in range(1, 400)):
        with contextlib.suppress(ValueError):
            otlp.decode(data, "")


@pytest.mark.heavy
def test_the_files_stay_within_the_bytes(make, tmp_path, drops):
    store = make(max_traces=100_000, max_mb=4)
    noise = os.urandom(20_000).hex()
    for number in range(1, 200):
        write(store, span(number, text=noise[number:] + noise[:number]), drops=drops)
        used = sum(file.stat().st_size for file in store.path.parent.iterdir())
        assert used <= 4 << 20
    assert drops == []
    kept = ids(store)
    assert 50 < len(kept) < 199
    assert kept == list(range(199, 199 - len(kept), -1)), "the newest"


@pytest.mark.heavy
def test_a_bound_that_is_lowered_gives_space_back(make):
    store = make(max_traces=10_000, max_mb=8)
    noise = os.urandom(20_000).hex()
    write(store, *(span(number, text=noise[number:]) for number in range(1, 200)))
    before = store.path.stat().st_size
    smaller = TraceStore(store.path, max_traces=10_000, max_bytes=1 << 20)
    for number in range(200, 210):
        write(smaller, span(number))
    assert store.path.stat().st_size <= 1 << 20 < before
    assert 209 in ids(smaller)


@pytest.mark.heavy
def test_one_trace_cannot_push_out_the_others(make, drops):
    store = make(max_mb=4)
    write(store, span(1))
    noise = os.urandom(50_000).hex()
    for number in range(100):
        write(store, span(2, number, text=noise[number:]), drops=drops)
    assert ids(store) == [2, 1]
    with read(store) as reader:
        trace = reader.trace(f"{2:032x}")
    assert trace.row.spans == 100
    assert trace.row.dropped == sum(count for count, _ in drops) == 100 - len(trace.spans) > 0
    assert {reason for _, reason in drops} == {"trace_too_large"}


# --- The file. ---


def test_folder_and_file_are_private_whatever_the_umask(tmp_path, make):
    before = os.umask(0o000)
    try:
        store = make()
        write(store, span(1))
        with read(store):
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in store.path.parent.iterdir()}
    finally:
        os.umask(before)
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    assert set(modes) >= {FILE_NAME}
    assert set(modes.values()) == {0o600}


def test_a_private_folder_per_deployment_is_found_on_disk(tmp_path):
    one, other = (candidate_folders(None, {"TMPDIR": str(tmp_path)}, name)[0] for name in ("shop", "gateway"))
    assert one != other
    assert one.parent == other.parent == tmp_path / f"django-otel-{os.geteuid()}"
    assert all("/dev/shm" not in str(folder) for folder in candidate_folders(None, {"TMPDIR": "/dev/shm/x"}, "shop"))
    path = find_file(None, {"TMPDIR": str(tmp_path)}, "shop")
    assert path == one / FILE_NAME
    assert stat.S_IMODE(one.parent.stat().st_mode) == stat.S_IMODE(one.stat().st_mode) == 0o700


def test_the_path_may_be_a_file(tmp_path):
    path = tmp_path / "sub" / "traces.sqlite3"
    store = TraceStore(find_file(str(path), {}, ""), max_traces=10, max_bytes=8 << 20)
    write(store, span(1))
    assert path.exists()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_folder_that_others_can_write_to_is_refused(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(Unusable, match="can be written to by others"):
        find_file(str(folder), {}, "")
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(Unusable, match="is a link"):
        find_file(str(link), {}, "")


def test_a_link_in_place_of_the_file_is_refused(tmp_path, make):
    target = tmp_path / "target"
    store = make()
    store.path.symlink_to(target)
    with pytest.raises(Unusable, match="is a link"):
        write(store, span(1))
    assert not target.exists()


def test_the_applications_database_is_never_touched(tmp_path):
    path = tmp_path / "own" / "db.sqlite3"
    path.parent.mkdir(mode=0o700)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")
        connection.commit()
    path.chmod(0o644)
    before = path.read_bytes()
    store = TraceStore(find_file(str(path), {}, ""), max_traces=10, max_bytes=8 << 20)
    with pytest.raises(Unusable, match="another application's database"):
        write(store, span(1))
    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [file.name for file in path.parent.iterdir()] == ["db.sqlite3"]


def test_the_file_of_another_version_is_left_alone_and_told_of(make, tmp_path):
    store = make(path=tmp_path / "own" / "traces.db")
    write(store, span(1))
    with closing(sqlite3.connect(store.path)) as connection:
        connection.execute("PRAGMA user_version = 1")
    with pytest.raises(Unusable, match=r"tables are of version 1, expected \d+\); remove it, or name another file"):
        write(store, span(2))
    with closing(sqlite3.connect(store.path)) as connection:
        assert connection.execute("SELECT count(*) FROM trace").fetchone() == (1,)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "middle"])
def test_a_damaged_file_is_set_aside_and_a_new_one_made(make, damage):
    store = make(max_traces=1000)
    write(store, *(span(number, text=os.urandom(500).hex()) for number in range(300)))
    data = store.path.read_bytes()
    if damage == "garbage":
        store.path.write_bytes(b"no database at all" * 1000)
    elif damage == "truncated":
        store.path.write_bytes(data[: len(data) // 3])
    else:
        # The header is right, the tables are not.
        store.path.write_bytes(data[:100] + b"\xff" * (len(data) - 100))
    write(store, span(1000))
    assert ids(store) == [1000]
    assert store.path.with_name(store.path.name + DAMAGED_SUFFIX).exists()


def test_a_file_removed_beneath_us_is_made_again(make):
    store = make()
    write(store, span(1))
    for file in store.path.parent.iterdir():
        file.unlink()
    store.path.parent.rmdir()
    write(store, span(2))
    assert ids(store) == [2]


# --- Numbers. ---

numbers = st.fixed_dictionaries(
    {}, optional={"histogram": st.lists(st.integers(0, 50), min_size=3, max_size=3), "number": st.integers(0, 50)}
)


@given(st.lists(st.dictionaries(st.sampled_from("xy"), numbers, max_size=2), max_size=6))
def test_what_is_added_step_by_step_adds_up(steps):
    """Cumulative numbers taken apart into differences and added up again are what they were."""
    total, before, summed = {}, {}, {}
    for step in steps:
        total = merge(total, step)
        summed = merge(summed, subtract(total, before))
        before = total
    assert flat(summed) == flat(total)


def flat(tree, path=()):
    found = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, (*path, key))
        elif value if not isinstance(value, list) else any(value):
            found[*path, key] = value
    return found


def test_a_number_that_fell_has_begun_anew():
    assert subtract({"a": {"n": 3, "h": [2, 1.5, 2]}}, {"a": {"n": 5, "h": [7, 9.0, 7]}}) == {
        "a": {"n": 3, "h": [2, 1.5, 2]}
    }


def sample(at_s, count, source="group 1"):
    routes = {"/x/": {"duration": [count, count * 0.1, count, 0], "errors": count // 10}}
    return StoredSample(source, "shop", at_s, {"routes": routes, "bounds": {"duration": "1.0"}, "events": {"e": count}})


def test_samples_become_what_was_counted_between_them(make):
    store = make()
    now_s = 1_700_000_000.0
    write(store, sample(now_s, 10), sample(now_s + 10, 30))
    # An older one that comes late is left out; a restarted server counts from zero; another group is added.
    write(store, sample(now_s + 5, 20), sample(now_s + 20, 4), sample(now_s + 20, 100, "group 2"))
    with read(store) as reader:
        fine = reader.numbers(now_s=now_s + 20, minutes=5, route="")
        coarse = reader.numbers(now_s=now_s + 20, minutes=180, route="")
    # Each is filed in the middle of the time in which it was counted.
    assert [(step.at_s - now_s, step.values["routes"]["/x/"]["duration"][0]) for step in fine] == [
        (-10, 10), (0, 20), (10, 4), (10, 100)
    ]  # fmt: skip
    assert sum(step.values["routes"]["/x/"]["duration"][0] for step in coarse) == 134
    assert sum(step.values["events"]["e"] for step in coarse) == 134
    assert {step.values["bounds"]["duration"] for step in fine} == {"1.0"}


def test_old_numbers_and_processes_are_forgotten(make):
    store = make()
    now_s = 1_700_000_000.0
    for minute in range(0, 400, 2):
        at_s = now_s + minute * 60
        write(store, sample(at_s, minute), StoredProcess(f"i{minute}", "shop", "h", 1, at_s, at_s, {}))
    with store.connection() as connection:
        counts = dict(connection.execute("SELECT step_s, count(*) FROM sample GROUP BY step_s"))
        (processes,) = connection.execute("SELECT count(*) FROM process").fetchone()
    # Every other minute has a sample.
    assert counts == {10: 4, 30: 18, 180: 64}
    assert processes == 31


def test_many_routes_are_summed_beyond_a_bound(make):
    store = make()
    routes = {f"/r{number}/": {"duration": [number + 1, 1.0, number + 1]} for number in range(1000)}
    write(store, StoredSample("s", "shop", 1_700_000_000.0, {"routes": routes, "bounds": {}}))
    with read(store) as reader:
        (step,) = reader.numbers(now_s=1_700_000_000.0, minutes=5, route="")
    assert len(step.values["routes"]) == MAX_ROUTES
    assert sum(route["duration"][0] for route in step.values["routes"].values()) == sum(range(1, 1001))


def summed(parts):
    total = {}
    for routes in parts:
        total = merge(total, routes)
    return flat(total)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([7, 10, 45, 200]), st.sampled_from(["group 1", "group 2"]),
            st.dictionaries(st.sampled_from(["/a/", "/b/", "/c/"]), st.integers(0, 40), max_size=3), st.booleans(),
        ),
        min_size=1, max_size=12,
    ),
    st.sampled_from([5, 30, 180]),
)  # fmt: skip
def test_the_sums_of_a_period_are_those_of_its_steps(tmp_path_factory, history, minutes):
    """Whenever the period begins, however many sources there are, and although a server was restarted in between."""
    store = TraceStore(tmp_path_factory.mktemp("store") / "s.sqlite3", max_traces=9, max_bytes=8 << 20)
    now_s, counted = 1_700_000_000.0, {}
    for passed_s, source, more, begins_anew in history:
        now_s += passed_s
        so_far = {} if begins_anew else counted.get(source, {})
        counted[source] = so_far = merge(so_far, more)
        routes = {
            route: {
                "duration": [n, n / 4, n, 0],
                "queries": [n, 2.0 * n, 0, n],
                **({"errors": n // 3} if n > 2 else {}),
            }
            for route, n in so_far.items()
        }
        write(store, StoredSample(source, "shop", now_s, {
            "routes": routes, "bounds": {"duration": "1.0", "queries": "1.0"}, "events": {"e": 1}}))  # fmt: skip
    with read(store) as reader:
        period = {"now_s": now_s, "minutes": minutes}
        steps = reader.numbers(**period, route="")
        assert summed(part["routes"] for part in reader.route_numbers(**period)) == summed(
            step.values["routes"] for step in steps
        )
        for step in steps:
            assert flat(step.values.get("total", {})) == flat(sum_routes(step.values["routes"]))
        alone = [step.values["total"] for step in reader.numbers(**period, route="/a/")]
        assert summed(alone) == summed(step.values["routes"].get("/a/", {}) for step in steps)
        assert [step.values for step in reader.numbers(**period)] == [
            {name: part for name, part in step.values.items() if name != "routes"} for step in steps
        ]


def test_a_histogram_with_other_buckets_begins_anew_and_alone(make):
    """What was counted in the old buckets is not taken for what stands in the new ones; events go on."""
    store = make()
    now_s = 1_700_000_000.0

    def put(after_s, bounds, duration, queries, events):
        routes = {"/x/": {"duration": duration, "errors": 1, "queries": queries}}
        numbers = {"routes": routes, "bounds": {"duration": bounds, "queries": "5"}, "events": {"e": events}}
        write(store, StoredSample("s", "shop", now_s + after_s, numbers))

    put(0, "1.0", [10, 5.0, 8, 2], [10, 30.0, 10, 0], 10)
    put(10, "0.5", [4, 1.0, 3, 1], [14, 42.0, 14, 0], 12)
    put(20, "0.5", [6, 1.5, 5, 1], [16, 48.0, 16, 0], 13)
    with read(store) as reader:
        steps = reader.numbers(now_s=now_s + 20, minutes=5, route="")
        (sums,) = reader.route_numbers(now_s=now_s + 20, minutes=5)
    assert [step.values["total"]["duration"] for step in steps] == [
        [10, 5.0, 8, 2], [4, 1.0, 3, 1], [2, 0.5, 2, 0]
    ]  # fmt: skip
    assert [step.values["total"]["queries"][0] for step in steps] == [10, 4, 2]
    assert [step.values["events"]["e"] for step in steps] == [10, 2, 1]
    assert sums["bounds"]["duration"] == "0.5"
    assert sums["routes"]["/x/"] == {"duration": [6, 1.5, 5, 1], "errors": 1, "queries": [16, 48.0, 16, 0]}


@given(st.dictionaries(st.text(max_size=9), st.just({"duration": [1, 0.5]}), max_size=5), st.text(max_size=9))
def test_routes_of_any_name_are_found(routes, other):
    data = pack_routes(routes)
    assert unpack_routes(data) == routes
    for route in (*routes, other):
        assert unpack_route(data, route) == routes.get(route, {})


def test_what_the_filters_offer_is_what_is_stored(make):
    store = make()
    write(store, *(
        span(number, route=f"/r{number % 9}/", status=(200, 404)[number % 2], service=f"s{number % 4}",
             event=("", "paid", "placed")[number % 3])
        for number in range(40)
    ), span(50, route="", status=0, service=""))  # fmt: skip
    with read(store) as reader:
        choices = reader.choices()
    assert choices.routes == [f"/r{number}/" for number in range(9)]
    assert choices.statuses == [200, 404]
    assert choices.services == ["s0", "s1", "s2", "s3"]
    assert choices.events == ["paid", "placed"]


# --- Many processes, forks. ---

WRITER = """
import sys
sys.path.insert(0, {root!r})
from tests.tracestore.test_store import span
from django_otel.tracestore.file import find_file
from django_otel.tracestore.writer import TraceStore
store = TraceStore(find_file({path!r}, {{}}, ""), max_traces=10_000, max_bytes=32 << 20)
worker = int(sys.argv[1])
for number in range(60):
    store.write([span(number * 10, worker, rank=2 if worker == 0 else 0), span(worker * 1000 + number, 0)],
                lambda count, reason: print(count, reason))
"""


def test_several_processes_write_one_store(tmp_path):
    """Also into the same trace, and when all of them make the file at once."""
    code = WRITER.format(root=str(ROOT), path=str(tmp_path / "store"))
    environment = services.server_env()
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", code, str(worker)], cwd=ROOT, env=environment, stdout=subprocess.PIPE
                )
            )
            for worker in range(4)
        ]
        for process in processes:
            output, _ = process.communicate(timeout=60)
            assert (process.returncode, output) == (0, b"")
    store = TraceStore(find_file(str(tmp_path / "store"), {}, ""), max_traces=10_000, max_bytes=32 << 20)
    with read(store) as reader:
        page = reader.list_traces(TraceFilter(), limit=1000)
        shared = reader.trace(f"{590:032x}")
    assert page.total == len(
        {number * 10 for number in range(60)} | {w * 1000 + n for w in range(4) for n in range(60)}
    )
    assert len(shared.spans) == 4


@pytest.mark.parametrize("statements", range(8))
def test_a_file_that_another_process_makes_meanwhile_is_ours(tmp_path, monkeypatch, statements):
    """Between any two of the statements that look at a new file, another one may make its tables."""
    path = find_file(str(tmp_path / "store"), {}, "")
    connect = StoreFile._connect

    class Overtaken(sqlite3.Connection):
        done = 0

        def execute(self, *arguments):
            if Overtaken.done == statements:
                with monkeypatch.context() as plain:
                    plain.setattr(StoreFile, "_connect", connect)
                    with StoreFile(path).connection():
                        pass
            Overtaken.done += 1
            return super().execute(*arguments)

    def connect_overtaken(self):
        return sqlite3.connect(self.path, timeout=1, isolation_level=None, factory=Overtaken)

    monkeypatch.setattr(StoreFile, "_connect", connect_overtaken)
    with StoreFile(path).connection() as connection:
        assert connection.execute("SELECT count(*) FROM store").fetchone() == (1,)
    assert Overtaken.done > statements


def run(code, **environ):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=services.server_env(**environ), capture_output=True, timeout=60
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_no_connection_is_carried_over_a_fork(tmp_path):
    """Forks wait for a write that is under way; parent and child both go on writing."""
    code = f"""
import os, sys, threading, time, warnings
# From Python 3.12 on it warns of what is tried here.
warnings.simplefilter("ignore", DeprecationWarning)
from tests.tracestore.test_store import span, ids
from django_otel.tracestore.file import find_file
from django_otel.tracestore.writer import TraceStore
store = TraceStore(find_file({str(tmp_path / "store")!r}, {{}}, ""), max_traces=10_000, max_bytes=32 << 20)
fail = lambda count, reason: print("dropped", count, reason)
store.write([span(1)], fail)
stop = threading.Event()
def keep_writing():
    number = 10
    while not stop.is_set():
        store.write([span(number)], fail)
        number += 1
thread = threading.Thread(target=keep_writing)
thread.start()
for child in range(20):
    pid = os.fork()
    if pid == 0:
        files = ["/proc/self/fd/" + number for number in os.listdir("/proc/self/fd")]
        if any("traces-" in os.readlink(file) for file in files if os.path.islink(file)):
            print("an open store was inherited")
            os._exit(1)
        store.write([span(100_000 + child)], fail)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if status: print("child", status)
stop.set()
thread.join()
found = ids(store)
print(len([number for number in found if number >= 100_000]))
"""
    assert run(code) == (0, "20\n", "")


# --- The processor. ---


class Counted:
    def __init__(self):
        self.by_reason = {}
        self.lock = threading.Lock()

    def __call__(self, count, reason):
        with self.lock:
            self.by_reason[reason] = self.by_reason.get(reason, 0) + count


def processor(path, drops, **console):
    from opentelemetry.sdk.resources import Resource

    config = parse({"CONSOLE": {"ENABLED": True, "PATH": str(path), **console}}, {})
    scrubber = Scrubber()
    built = Resource({"service.name": "shop", "service.instance.id": "one"})
    return StoreProcessor(
        config, "test", clean=functools.partial(scrub_span, scrubber), scrubber=scrubber, resource=lambda: built,
        collect=list, group=lambda: None, facts=dict, on_drop=drops,
    )  # fmt: skip


def provider_with(*processors):
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider(resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
    for one in processors:
        provider.add_span_processor(one)
    return provider.get_tracer("django_otel")


def test_spans_are_scrubbed_before_they_are_stored(tmp_path):
    drops = Counted()
    part = processor(tmp_path / "store", drops)
    with provider_with(part).start_as_current_span(
        "pay", attributes={"password": "hunter2", "note": "fine"}
    ) as current:
        current.record_exception(ValueError("token=hunter2"))
    assert part.force_flush()
    with read(part.store()) as reader:
        (row,) = reader.list_traces(TraceFilter()).rows
        text = json.dumps(reader.trace(row.trace_id).spans)
    assert "hunter2" not in text
    assert "fine" in text
    assert drops.by_reason == {}


def test_what_is_not_sampled_is_not_stored(tmp_path):
    from opentelemetry import trace

    part = processor(tmp_path / "store", Counted())
    context = trace.SpanContext(1, 2, is_remote=True, trace_flags=trace.TraceFlags(0))
    tracer = provider_with(part)
    with tracer.start_as_current_span("x", trace.set_span_in_context(trace.NonRecordingSpan(context))):
        pass
    assert part.force_flush()
    assert not (tmp_path / "store").exists()


@pytest.mark.heavy
def test_a_store_that_is_locked_drops_counts_and_slows_nothing(tmp_path, monkeypatch):
    """As a slow disk does: the request path goes on, the queue fills, what does not fit is counted."""
    drops = Counted()
    part = processor(tmp_path / "store", drops)
    tracer = provider_with(part)
    tracer.start_span("first").end()
    assert part.force_flush()
    with closing(sqlite3.connect(part.store().path, isolation_level=None)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        # Were the lock waited for, this would not end: it is given back below.
        for _ in range(6000):
            tracer.start_span("x").end()
        wait_until(lambda: drops.by_reason.get("busy"), 60, "a batch given up")
        blocker.execute("ROLLBACK")
    tracer.start_span("last").end()
    assert part.force_flush(30_000)
    with part.store().connection() as connection:
        (stored,) = connection.execute("SELECT sum(spans) FROM trace").fetchone()
        (ever,) = connection.execute("SELECT max(seq) FROM trace").fetchone()
    assert set(drops.by_reason) == {"queue_full", "busy"}
    assert stored == 500
    assert ever == 6002 - sum(drops.by_reason.values())


def test_a_full_disk_drops_and_counts(tmp_path):
    """A process that may write no file beyond a size stands for a full disk; the old traces can still be read."""
    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from tests.tracestore.test_store import Counted, processor, provider_with, ids
drops = Counted()
part = processor({str(tmp_path / "store")!r}, drops)
tracer = provider_with(part)
tracer.start_span("first").end()
assert part.force_flush()
# The log of what is to be written ends within its second page.
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
import os
for _ in range(50):
    tracer.start_span("x", attributes={{"text": os.urandom(1500).hex()}}).end()
assert part.force_flush(30_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(drops.by_reason, part.problem != "", len(ids(part.store())))
tracer.start_span("again").end()
assert part.force_flush()
print(len(ids(part.store())), part.problem)
part.shutdown()
part.finish_shutdown(5)
"""
    code_, output, errors = run(code)
    assert code_ == 0, errors
    first, second = output.splitlines()
    assert "disk_full" in first or "failed" in first
    assert "50" in first
    assert first.endswith("True 1")
    assert second == "2 "
    assert "the trace store cannot be written to" in errors


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB; only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=20)


def fill(disk, free_kb=0):
    """Fill a disk but for some kB, by a file whose removal frees it again; its path is returned."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (4096, 1):
            with pytest.raises(OSError, match="No space left"):
                while True:
                    file.write(bytes(size))
        file.truncate(file.tell() - free_kb * 1024)
    return ballast


def test_a_disk_without_a_free_byte(small_disk, caplog):
    """Requests go on, what is lost is counted by its reason, what is stored can be read, and space helps at once."""
    drops = Counted()
    part = processor(small_disk / "store", drops)
    tracer = provider_with(part)
    tracer.start_span("first").end()
    assert part.force_flush()
    ballast = fill(small_disk)
    for _ in range(200):
        tracer.start_span("x", attributes={"text": os.urandom(1500).hex()}).end()
    assert part.force_flush(30_000)
    assert drops.by_reason == {"disk_full": 200}
    assert "disk is full" in part.problem
    assert len(ids(part.store())) == 1
    ballast.unlink()
    tracer.start_span("again").end()
    assert part.force_flush()
    assert (len(ids(part.store())), part.problem) == (2, "")
    assert list(part.store().path.parent.glob("*.damaged")) == []


@pytest.mark.parametrize("free_kb", [0, 4, 8, 12, 20, 32, 44, 64, 96])
def test_a_store_is_begun_on_a_disk_that_is_full(small_disk, caplog, free_kb):
    """However far its making comes: the reason is the disk, and with space it is made as if nothing had been."""
    drops = Counted()
    ballast = fill(small_disk, free_kb)
    part = processor(small_disk / "store", drops)
    tracer = provider_with(part)
    for _ in range(3):
        for _ in range(20):
            tracer.start_span("x", attributes={"text": os.urandom(1500).hex()}).end()
        assert part.force_flush(30_000)
    assert set(drops.by_reason) == {"disk_full"}
    assert drops.by_reason["disk_full"] > 0
    assert "disk is full" in part.problem
    assert "rollback" not in caplog.text + part.problem
    ballast.unlink()
    tracer.start_span("again").end()
    assert part.force_flush(30_000)
    assert part.problem == ""
    assert len(ids(part.store())) == 60 - drops.by_reason["disk_full"] + 1
    assert list(part.store().path.parent.glob("*.damaged")) == []


def test_a_folder_that_cannot_be_used_is_told_once(tmp_path, caplog):
    drops = Counted()
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    part = processor(folder, drops)
    tracer = provider_with(part)
    for _ in range(3):
        tracer.start_span("x").end()
        assert part.force_flush()
    assert drops.by_reason == {"unusable": 3}
    assert "can be written to by others" in part.problem
    assert list(folder.iterdir()) == []


def test_a_single_process_samples_for_itself_and_once_more_at_the_end(tmp_path):
    from django_otel.metrics.store import CellStore

    cells = CellStore()
    duration = cells.catalogued("http.server.request.duration")
    part = processor(tmp_path / "store", Counted())
    part._collect = cells.collect
    duration.record(0.2, {"http.route": "/x/", "http.response.status_code": 200})
    part.start()
    assert part.sample()
    assert part.force_flush()
    duration.record(0.3, {"http.route": "/x/", "http.response.status_code": 500, "error.type": "500"})
    part.shutdown()
    assert part.finish_shutdown(5)
    with read(part.store()) as reader:
        found = reader.numbers(now_s=time.time(), minutes=5, route="")
        (process,) = reader.processes(seen_since_s=0)
    total = {}
    for step in found:
        total = merge(total, step.values)
    assert total["routes"]["/x/"]["duration"][:2] == [2, 0.5]
    assert total["routes"]["/x/"]["errors"] == 1
    assert (process.pid, process.service) == (os.getpid(), "shop")


def test_numbers_are_those_of_the_scrape():
    """Every request, query and event of the families, and nothing of another scope."""
    from django_otel.metrics.store import CellStore

    cells = CellStore()
    for status, count in ((200, 5), (404, 2), (500, 1)):
        for _ in range(count):
            cells.catalogued("http.server.request.duration").record(
                0.01, {"http.route": "/x/", "http.response.status_code": status}
            )
    cells.catalogued("django.request.queries").record(3, {"http.route": "/x/"})
    cells.catalogued("django.business.events").add(2, {"business.event": "order.placed"})
    cells.catalogued("django_otel.export.failures").add(1, {"django_otel.signal": "traces"})
    found = numbers_of(cells.collect())
    route = found["routes"]["/x/"]
    assert (route["duration"][0], route["errors"], route["refused"]) == (8, 1, 2)
    assert route["queries"][:2] == [1, 3.0]
    assert found["events"] == {"order.placed": 2}
    assert found["failures"] == {"traces": 1}
    assert len(found["bounds"]["duration"].split()) + 3 == len(route["duration"])


# --- A real server. ---


def test_workers_of_a_server_fill_one_store(tmp_path):
    """Spans, queries and log records of both workers; the application's database holds nothing of it."""
    otel = {"SERVICE_NAME": "shop", "CONSOLE": {"ENABLED": True, "PATH": str(tmp_path / "store")}}
    with serve("gunicorn", otel, workers=2, migrate=True, TEST_SQLITE=str(tmp_path / "app.sqlite3")) as server:
        store = TraceStore(find_file(str(tmp_path / "store"), {}, ""), max_traces=500, max_bytes=64 << 20)
        sent = 0
        pids: set[int] = set()
        while len(pids) < 2:
            assert sent < 300, "only one worker has answered"
            for _ in range(15):
                assert server.get("/queries/", {"Connection": "close"})[0] == 200
            sent += 15
            wait_until(lambda count=sent: store.path.exists() and len(ids(store)) == count, 60, "every trace")
            with read(store) as reader:
                pids = {process.pid for process in reader.processes(seen_since_s=0)}
        assert server.get("/boom/")[0] == 500
        wait_until(lambda: len(ids(store)) == sent + 1, 60, "the failed request")
        with read(store) as reader:
            failed = reader.list_traces(TraceFilter(has_error=True)).rows
            trace = reader.trace(failed[0].trace_id)
    assert [row.route for row in failed] == ["/boom/"]
    assert trace.spans[0]["events"][0]["name"] == "exception"
    assert "hunter2" not in json.dumps([trace.spans, trace.logs])
    assert any("Internal Server Error" in log["body"] for log in trace.logs)
    with closing(sqlite3.connect(tmp_path / "app.sqlite3")) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert not tables & {"trace", "chunk", "sample"}


def test_the_store_is_off_unless_debug_or_asked_for(settings):
    from django_otel import conf

    assert not conf.is_console_on(Config())
    settings.DEBUG = True
    assert conf.is_console_on(Config())
    assert not conf.is_console_on(parse({"CONSOLE": {"ENABLED": False}}, {}))


@pytest.mark.parametrize("kind", sizes.few(["gunicorn", "uvicorn"], 2))
def test_the_samples_of_a_servers_workers_add_up_to_what_was_answered(tmp_path, kind):
    """One source for the whole group, whichever process samples it, and the last sample when the server stops."""
    otel = {"SERVICE_NAME": "shop", "CONSOLE": {"ENABLED": True, "PATH": str(tmp_path / "store")}}
    with serve(kind, otel, workers=2, TEST_SQLITE=str(tmp_path / "app.sqlite3")) as server:
        for _ in range(40):
            assert server.get("/hello/", {"Connection": "close"})[0] == 200
        server.get("/boom/", {"Connection": "close"})
    store = TraceStore(find_file(str(tmp_path / "store"), {}, ""), max_traces=500, max_bytes=64 << 20)
    total: dict[str, Any] = {}
    with read(store) as reader:
        for step in reader.numbers(now_s=time.time(), minutes=5, route=""):
            total = merge(total, step.values)
    with store.connection() as connection:
        sources = [source for (source,) in connection.execute("SELECT source FROM baseline")]
    assert len(sources) == 1, sources
    assert sources[0].startswith("group ")
    assert total["routes"]["/hello/"]["duration"][0] == 40
    assert total["routes"]["/boom/"]["duration"][0] == total["routes"]["/boom/"]["errors"] == 1
    assert len(ids(store)) == 41


def test_with_debug_traces_are_kept_without_any_setting(tmp_path):
    """Under runserver with its reloader, in a private folder of its own."""
    (tmp_path / "debug_settings.py").write_text("from tests.settings import *\nDEBUG = True\nOTEL = {}\n")
    folder = tmp_path / "temporary"
    folder.mkdir()
    environment = services.server_env(TMPDIR=str(folder), TEST_SQLITE=str(tmp_path / "app.sqlite3"))
    environment |= {"DJANGO_SETTINGS_MODULE": "debug_settings", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    port = services.free_port()
    command = [sys.executable, "-m", "django", "runserver", str(port)]
    with services.running(command, environment, tmp_path / "log") as process:
        wait_until(lambda: services.is_listening(port) or process.poll() is not None, 30, "runserver")
        server = services.Server(f"http://127.0.0.1:{port}", process, tmp_path / "log")
        assert server.get("/hello/")[0] == 200
        status, _, page = server.get("/boom/")
        assert status == 500
        assert b"/admin/django_otel/trace/" in page
        found = wait_until(
            lambda: list(folder.glob(f"django-otel-{os.geteuid()}/console-*/{FILE_NAME}")), 60, "a store"
        )
        store = TraceStore(found[0], max_traces=500, max_bytes=64 << 20)
        wait_until(lambda: len(ids(store)) == 2, 60, "both traces")
    assert "django_otel: the trace store" not in (tmp_path / "log").read_text()


def test_opening_the_store_drops_no_lock_of_another_thread(tmp_path):
    """Closing any descriptor of a file drops every POSIX lock that the process has on it, SQLite's among them."""
    store = TraceStore(tmp_path / "store.sqlite3", max_traces=10, max_bytes=1 << 22)
    look = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)\n"
        "connection.execute('PRAGMA locking_mode = EXCLUSIVE')\n"
        "try:\n    connection.execute('BEGIN EXCLUSIVE')\n"
        "except sqlite3.OperationalError as error:\n    print(error)\nelse:\n    print('taken')"
    )
    with store.connection() as first:
        first.execute("BEGIN")
        first.execute("SELECT count(*) FROM trace").fetchone()
        with store.connection() as second:
            second.execute("SELECT count(*) FROM trace").fetchone()
        done = subprocess.run(
            [sys.executable, "-c", look, str(store.path)], capture_output=True, text=True, timeout=60, check=True
        )
    assert "locked" in done.stdout
