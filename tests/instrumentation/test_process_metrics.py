"""What the processes use, the garbage collector, the event loop, busy workers, and the time in the proxy's queue."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import http.client
import os
import re
import signal
import threading
import time
import urllib.parse
from pathlib import Path

import pytest
from django.test import Client

from django_otel import runtime
from django_otel.instrumentation import process_metrics
from django_otel.multiprocess import processes
from django_otel.requests.queue_time import read_queue_time
from tests import sizes
from tests.services import serve, wait_until

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")


# --- The queue. ---

NOW_S = 1_700_000_010.0


@sizes.each(
    ("text", "expected"),
    [
        ("t=1700000009.500", 0.5), ("1700000009.5", 0.5), ("t=1700000009500", 0.5), ("1700000009500000", 0.5),
        ("1700000009500000000", 0.5), ("t=1700000009500.25", 0.49975), (" t=1700000009 ", 1.0),
        # A clock that is a little ahead.
        ("t=1700000010.020", 0.0),
        # Skewed, absurd, forged.
        ("t=1700000011", None), ("1700000090", None), ("t=1600000000", None), ("0", None), ("-5", None), ("t=", None),
        ("", None), ("nan", None), ("inf", None), ("1e9", None), ("t=1700000009,t=1700000008", None),
        ("9" * 5000, None),
        ("t=t=1700000009", None), ("１７００００００09", None), ("<script>", None), ("t=1700000009.5s", None),
        ("17000000095", None), ("99999999999999999999", None), ("t=1700000009.5\n", 0.5), ("1_700_000_009", None),
    ],
)  # fmt: skip
def test_times_of_proxies(text, expected):
    found = read_queue_time(text, NOW_S)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-3))


@pytest.mark.parametrize(
    ("otel", "headers", "expected"),
    [
        ({}, {"HTTP_X_REQUEST_START": "t={now}"}, 1),
        ({}, {"HTTP_X_QUEUE_START": "{now}"}, 1),
        ({}, {"HTTP_X_REQUEST_START": "forged", "HTTP_X_QUEUE_START": "{now}"}, 1),
        ({}, {"HTTP_X_REQUEST_START": "{now}", "HTTP_X_QUEUE_START": "{now}"}, 1),
        ({}, {"HTTP_X_REQUEST_START": "12"}, 0),
        ({}, {}, 0),
        ({"QUEUE_HEADERS": []}, {"HTTP_X_REQUEST_START": "{now}"}, 0),
        ({"QUEUE_HEADERS": ["X-Since"]}, {"HTTP_X_SINCE": "{now}"}, 1),
        ({"QUEUE_HEADERS": ["X-A", "X-B", "X-C"]}, {"HTTP_X_C": "{now}"}, 1),
    ],
)
def test_requests_that_waited_are_counted(settings, otel_metrics, otel, headers, expected):
    settings.OTEL = {"REQUEST": otel}
    found = {name: text.format(now=f"{time.time():.3f}") for name, text in headers.items()}
    assert Client().get("/hello/", **found).status_code == 200
    assert otel_metrics.value("http.server.request.time_in_queue").count == expected


# --- This process. ---


@needs_proc
def test_this_process():
    found = {family.name: family for family in runtime.collect_process()}
    status = Path("/proc/self/status").read_text()
    resident = int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024
    assert found["process.memory.usage"].points[0].value == pytest.approx(resident, rel=0.05)
    assert found["process.thread.count"].points[0].value == threading.active_count() + _foreign_threads(status)
    descriptors = len(list(Path("/proc/self/fd").iterdir())) - 1
    assert found["process.open_file_descriptor.count"].points[0].value == descriptors
    user_s, system_s = os.times()[:2]
    cpu = {dict(point.attributes)["cpu.mode"]: point.value for point in found["process.cpu.time"].points}
    assert cpu["user"] == pytest.approx(user_s, rel=0.05, abs=0.05)
    assert cpu["system"] == pytest.approx(system_s, rel=0.05, abs=0.05)
    # The same start at each reading, or an exporter of deltas would take each for a new beginning.
    again = next(family for family in runtime.collect_process() if family.name == "process.cpu.time")
    starts = {point.start_time_unix_nano for point in (*found["process.cpu.time"].points, *again.points)}
    assert len(starts) == 1 and 0 < min(starts) < time.time_ns()
    states = {dict(point.attributes)["state"]: point.value for point in found["django_otel.workers"].points}
    assert states == {"busy": 0, "idle": 1}


def _foreign_threads(status: str) -> int:
    return int(re.search(r"Threads:\s+(\d+)", status)[1]) - threading.active_count()


def test_where_there_is_no_proc_the_metrics_are_absent(monkeypatch):
    def fail(*args):
        raise FileNotFoundError

    monkeypatch.setattr(processes, "_stat", fail)
    monkeypatch.setattr(processes, "pid_namespace", lambda: 0)
    names = [family.name for family in processes.describe_processes([processes.own_member(1.0)], None)]
    assert names == ["django_otel.workers"]


def test_a_pid_of_another_container_or_process_is_not_read():
    own = processes.own_member(0.0)
    stranger = processes.Member(1, own.pid, own.started_ticks, own.namespace + 1, 1.0)
    assert [family.name for family in processes.describe_processes([own, stranger], None)] == ["django_otel.workers"]
    assert processes.read_usage(own.pid, own.started_ticks + 1) is None
    assert processes.read_usage(2**22 + 1, 5) is None


def test_cpu_times_never_go_back_and_outlive_their_process(tmp_path):
    namespace = processes.pid_namespace()
    gone, foreign = f"{namespace}:{2**22 + 1}:7", f"{namespace + 1}:7:7"
    own = processes.build_key(processes.own_member(0.0))
    assert processes.add_cpu_times(tmp_path, {gone: (3.0, 1.0), own: (1.0, 0.5)}) == (4.0, 1.5)
    assert processes.add_cpu_times(tmp_path, {own: (2.0, 0.5), foreign: (1.0, 1.0)}) == (6.0, 2.5)
    assert processes.add_cpu_times(tmp_path, {own: (1.0, 0.1)}) == (6.0, 2.5)
    (tmp_path / "cpu-times").write_text("{]")
    assert processes.add_cpu_times(tmp_path, {own: (1.0, 0.1)}) == (1.0, 0.1)


@needs_proc
def test_a_file_that_another_process_holds_stops_no_scrape(tmp_path):
    own = processes.own_member(0.0)
    processes.describe_processes([own], tmp_path)
    with (tmp_path / "cpu-times").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        names = [family.name for family in processes.describe_processes([own], tmp_path)]
    assert "process.memory.usage" in names and "process.cpu.time" not in names
    assert "process.cpu.time" in [family.name for family in processes.describe_processes([own], tmp_path)]


def test_collections_are_counted(settings, otel_metrics):
    settings.OTEL = {}
    gc.collect(1)
    gc.collect()
    # A collection of the youngest may come by itself at any time.
    assert otel_metrics.value("cpython.gc.collections", {"cpython.gc.generation": 2}) >= 1
    pauses = otel_metrics.value("cpython.gc.pause", {"cpython.gc.generation": 2})
    assert pauses.count >= 1 and pauses.sum > 0
    assert otel_metrics.value("cpython.gc.pause", {"cpython.gc.generation": 1}).count >= 1


def test_a_forked_child_counts_its_own(otel_metrics):
    gc.collect()
    process_metrics.collector.begin()
    before = list(process_metrics.collector._seen)
    assert before == [found["collections"] for found in gc.get_stats()]
    assert not process_metrics.collector._pauses


def test_off_means_off(settings, otel_metrics):
    settings.OTEL = {"RUNTIME": False}
    assert process_metrics.collector.on_collection not in gc.callbacks
    gc.collect()
    assert otel_metrics.value("cpython.gc.pause").count == 0
    assert not {family.name for family in runtime.collect_process()} & {"process.memory.usage", "django_otel.workers"}
    settings.OTEL = {}
    assert gc.callbacks.count(process_metrics.collector.on_collection) == 1


def test_the_event_loop_is_measured(settings, otel_metrics):
    settings.OTEL = {}
    watch = process_metrics.LoopWatch()
    watch.switch(is_on=True)

    async def serve_slowly():
        watch.start()
        watch.start()
        deadline_s = time.monotonic() + 30
        while otel_metrics.value("django.event_loop.lag").count < 2 and time.monotonic() < deadline_s:
            await asyncio.sleep(0.01)
        time.sleep(0.6)  # noqa: ASYNC251 (a coroutine that blocks the loop)
        await asyncio.sleep(0.01)
        watch.switch(is_on=False)

    asyncio.run(serve_slowly())
    found = otel_metrics.value("django.event_loop.lag")
    assert found.count >= 3 and found.sum > 0.2


# --- Workers. ---


def read_page(server) -> str:
    return server.get("/metrics", {"Authorization": "Bearer s3cret"})[2].decode()


def value(page: str, line: str) -> float:
    found = re.search(rf"(?m)^{re.escape(line)} (\S+)$", page)
    assert found, f"{line} is not in\n{page}"
    return float(found[1])


def approx_sum(stats: list[list[str]], field: int, factor: float = 1, *, abs: float | None = None):
    return pytest.approx(sum(int(stat[field]) for stat in stats) * factor, rel=0.05, abs=abs)


@needs_proc
def test_sums_over_workers_agree_with_proc_and_a_killed_worker_leaves_its_cpu_time(tmp_path):
    otel = {"METRICS_VIEW": {"TOKEN": "s3cret"}, "METRICS": {"SHARED_DIR": str(tmp_path)}}
    with serve("gunicorn", otel, workers=2) as server:

        def find_workers() -> list[int]:
            children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
            return [int(pid) for pid in children.split()]

        def all_joined() -> bool:
            server.get("/hello/")
            page = read_page(server)
            # Both have served a request, and neither several at once.
            has_served = 'django_otel_workers_web{concurrency="one"} 2' in page
            return has_served and len(re.findall(r"(?m)^process_uptime_seconds\{", page)) == 2

        wait_until(all_joined, 60, "both workers")
        for _ in range(100):
            server.get("/queries/")
        ticks, page_size = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")

        def differences() -> list[str]:
            """The figures of a page that differ from those of /proc right after it."""
            page = read_page(server)
            stats = [processes._stat(pid) for pid in find_workers()]
            descriptors = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in find_workers())
            wanted = {
                'process_cpu_time_seconds_total{cpu_mode="user"}': approx_sum(stats, 11, 1 / ticks, abs=0.05),
                'process_cpu_time_seconds_total{cpu_mode="system"}': approx_sum(stats, 12, 1 / ticks, abs=0.05),
                "process_memory_usage_bytes": approx_sum(stats, 21, page_size),
                "process_thread_count": approx_sum(stats, 17, abs=2),
                "process_open_file_descriptor_count": pytest.approx(descriptors, abs=2),
            }
            return [f"{name} {value(page, name)}: {sums}" for name, sums in wanted.items() if value(page, name) != sums]

        # Again where something has happened between the two: the first scrape of a worker reads the migrations in a
        # thread.
        wait_until(lambda: not differences(), 60, f"figures as in /proc, but for {differences()},")
        workers = find_workers()
        memory_bytes = sum(int(processes._stat(pid)[21]) for pid in workers) * page_size
        page = read_page(server)
        assert value(page, 'django_otel_workers{state="idle"}') == 2
        assert value(page, 'django_otel_workers{state="busy"}') == 0
        assert value(page, 'cpython_gc_collections_total{cpython_gc_generation="0"}') > 0

        # A worker that is killed: its memory is gone at the next scrape, its CPU time stays.
        before_s = value(page, 'process_cpu_time_seconds_total{cpu_mode="user"}')
        collections = value(page, 'cpython_gc_collections_total{cpython_gc_generation="0"}')
        os.kill(workers[0], signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{workers[0]}").exists(), 30, "the end of the worker")
        page = read_page(server)
        assert value(page, "process_memory_usage_bytes") < memory_bytes
        assert len(re.findall(r"(?m)^process_uptime_seconds\{", page)) <= 2
        assert value(page, 'django_otel_workers_web{concurrency="one"}') == 1, "the new worker has served none yet"
        assert value(page, 'process_cpu_time_seconds_total{cpu_mode="user"}') >= before_s
        assert value(page, 'cpython_gc_collections_total{cpython_gc_generation="0"}') >= collections


@needs_proc
def test_busy_workers_and_the_loop_of_a_server():
    otel = {"METRICS_VIEW": {"TOKEN": "s3cret"}}
    with serve("uvicorn", otel) as server:
        server.get("/hello/")
        assert value(read_page(server), 'django_otel_workers{state="busy"}') == 0
        address = urllib.parse.urlsplit(server.url)
        with contextlib.closing(http.client.HTTPConnection(address.hostname, address.port)) as connection:
            connection.request("GET", "/async-slow/")
            wait_until(lambda: value(read_page(server), 'django_otel_workers{state="busy"}') == 1, 30, "a busy worker")
        wait_until(lambda: value(read_page(server), 'django_otel_workers{state="busy"}') == 0, 30, "an idle worker")
        assert value(read_page(server), 'django_otel_workers_web{concurrency="several"}') == 1
        wait_until(lambda: "django_event_loop_lag_seconds_count" in read_page(server), 30, "the loop's lag")
