"""How batches stand in the file: packed or not, under which number, and that statements for many rows do for any."""

from __future__ import annotations

import random
import sqlite3
import zlib

import pytest

from django_otel.tracestore.items import StatementSum, StoredSpans
from django_otel.tracestore.packing import compress, wrap
from django_otel.tracestore.reader import read
from django_otel.tracestore.rows import delete_in, select_in
from django_otel.tracestore.writer import TraceStore
from tests import sizes

SIZES = [0, 1, 100, 8 << 10, (8 << 10) + 1, 16 << 10, (16 << 10) + 1, 65_535]


@sizes.each("size", SIZES)
def test_what_is_wrapped_or_compressed_is_read_by_zlib(size):
    data = bytes(number * 7 % 251 for number in range(size))
    assert zlib.decompress(wrap(data)) == zlib.decompress(compress(data)) == data


def test_large_data_are_compressed_over_the_whole_window():
    half = random.Random(1).randbytes(20_000)
    assert len(compress(half + half)) < 1.1 * len(half)


@sizes.each("count", [0, 1, 899, 900, 901, 2000])
def test_rows_are_found_and_deleted_by_any_number_of_keys(count):
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (a INTEGER, b TEXT)")
    connection.executemany("INSERT INTO t VALUES (?, ?)", [(number, str(number)) for number in range(2001)])
    keys = list(range(count))
    assert list(select_in(connection, "SELECT a, b FROM t WHERE a", keys)) == [(key, str(key)) for key in keys]
    delete_in(connection, "t", "a", keys)
    assert connection.execute("SELECT count(*), min(a) FROM t").fetchone() == (2001 - count, count)
    connection.close()


def spans(number: int, data: bytes, **more) -> StoredSpans:
    text = f"SELECT {number % 3}"
    return StoredSpans(
        trace_id=f"{number:032x}", data=data, spans=1, start_ns=number, end_ns=number + 5, rank=2,
        root_start_ns=number, root_end_ns=number + 5, name=f"GET {number}", service="shop", services={"shop"},
        events={f"event{number % 2}"}, statements={text: StatementSum(1, 5, 5, line="a.py:1")},
        objects={("shop.order", str(number))}, **more,
    )  # fmt: skip


@pytest.fixture
def store(tmp_path):
    return TraceStore(tmp_path / "store.sqlite3", max_traces=1000, max_bytes=8 << 20)


def write(store, *items):
    store.write(items, lambda count, reason: pytest.fail(reason))


def rows_by_trace(store):
    """What each table has of each trace, by its id."""
    with read(store) as reader:
        found = {}
        for seq, trace_id, name in reader.connection.execute("SELECT seq, trace_id, name FROM trace"):
            query = reader.connection.execute
            found[int(trace_id, 16)] = (
                name,
                [zlib.decompress(data) for (data,) in query("SELECT data FROM chunk WHERE seq = ?", (seq,))],
                [event for (event,) in query("SELECT name FROM event WHERE seq = ?", (seq,))],
                query("SELECT text, count FROM statement JOIN sql ON id = sql WHERE seq = ?", (seq,)).fetchall(),
                [pk for (pk,) in query("SELECT pk FROM object WHERE seq = ?", (seq,))],
            )
        return found


def expected(number: int, times: int = 1):
    return (
        f"GET {number}", [str(number).encode()] * times, [f"event{number % 2}"], [(f"SELECT {number % 3}", times)],
        [str(number)],
    )  # fmt: skip


def test_rows_of_new_and_known_traces_of_a_batch_are_each_its_own(store):
    def batch(*numbers):
        write(store, *(spans(number, str(number).encode()) for number in numbers))

    batch(1, 2, 3)
    batch(7, 2, 5, 3, 6)
    assert rows_by_trace(store) == {number: expected(number, 1 + (number in (2, 3))) for number in (1, 2, 3, 5, 6, 7)}
    # Numbers are never used again: neither after the newest are gone nor after all are.
    with store.connection() as connection:
        connection.execute("DELETE FROM trace WHERE trace_id = ?", (f"{6:032x}",))
        for table in ("chunk", "event", "statement", "object"):
            connection.execute(f"DELETE FROM {table} WHERE seq NOT IN (SELECT seq FROM trace)")
    batch(8, 1, 9)
    assert rows_by_trace(store) == {
        number: expected(number, 1 + (number in (1, 2, 3))) for number in (1, 2, 3, 5, 7, 8, 9)
    }
    store.clear()
    batch(10, 11)
    assert rows_by_trace(store) == {number: expected(number) for number in (10, 11)}


def test_statements_of_more_texts_than_a_statement_has_room_for(store):
    part = spans(1, b"1")
    part.statements = {f"SELECT {number}": StatementSum(1, number, number) for number in range(2000)}
    write(store, part)
    write(store, part)
    with read(store) as reader:
        rows = reader.connection.execute(
            "SELECT text, count FROM statement JOIN sql ON id = sql ORDER BY id"
        ).fetchall()
    assert rows == [(f"SELECT {number}", 2) for number in range(2000)]


def packed_bytes(store, number: int) -> list[int]:
    with read(store) as reader:
        query = "SELECT length(data) FROM chunk JOIN trace ON trace.seq = chunk.seq WHERE trace_id = ? ORDER BY id"
        return [size for (size,) in reader.connection.execute(query, (f"{number:032x}",))]


def test_small_traces_are_compressed_once_the_file_is_half_full(store):
    data = b"x" * 10_000
    write(store, spans(1, data))
    assert packed_bytes(store, 1) == [len(wrap(data))]
    for number in range(2, 600):
        write(store, spans(number, data))
    sizes_seen = [packed_bytes(store, number)[0] for number in range(1, 600)]
    # From some one on all of them, until the file holds all that it may.
    first = sizes_seen.index(len(compress(data)))
    assert set(sizes_seen[first:]) == {len(compress(data))} and 100 < first < 500
    assert sum(sizes_seen) < store.bounds.file_bytes


def test_a_large_trace_is_compressed_in_an_empty_file_too(store):
    data = b"x" * 40_000
    write(store, spans(1, data))
    assert packed_bytes(store, 1) == [len(compress(data))]
    # One that grows by small parts: its first ones alone are not.
    for _ in range(6):
        write(store, spans(2, b"y" * 10_000))
    found = packed_bytes(store, 2)
    assert found[:2] == [len(wrap(b"y" * 10_000))] * 2 and set(found[2:]) == {len(compress(b"y" * 10_000))}


def test_many_traces_are_evicted_some_at_a_time_and_are_never_too_many(store):
    counts = []
    for begin in range(0, 1100, 10):
        write(store, *(spans(number, b"1") for number in range(begin + 1, begin + 11)))
        with read(store) as reader:
            counts.append(reader.connection.execute("SELECT count(*) FROM trace").fetchone()[0])
    assert max(counts) == 1000 and min(counts[100:]) == 980
