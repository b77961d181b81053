"""The shared folder with real files and real processes: leases, adoption, growth, damage, full disks, forks."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import random
import signal
import stat
import struct
import subprocess
import threading
import time
import traceback
import types
import zlib
from pathlib import Path

import pytest

from django_otel import runtime
from django_otel.base import private_files
from django_otel.metrics.model import ExponentialValue, Family, HistogramValue, MetricType, Point, Scope
from django_otel.metrics.store import CellStore
from django_otel.multiprocess import lease as leases
from django_otel.multiprocess import server_group
from django_otel.multiprocess.lease import Lease, living_slots
from django_otel.multiprocess.memory import SharedMemory
from django_otel.multiprocess.reader import Reader
from django_otel.multiprocess.sharing import Sharing
from django_otel.multiprocess.snapshot import read_snapshot, write_snapshot
from django_otel.tracestore import file as tracestore_file
from tests import services, sizes

# Forking beside other tests' threads is what is tested; Python warns of it from 3.12 on.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "group"
    private_files.make_folder(path)
    return path


def start(work, *arguments) -> int:
    """Run `work` in a forked process that ends with 0, or with 1 and a traceback."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(pid) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(work, *arguments, expect=0):
    assert wait(start(work, *arguments)) == expect


@contextlib.contextmanager
def living(work, *arguments):
    """A process that has run `work` and lives on; SIGKILLed at the end."""
    reading, writing = os.pipe()

    def body():
        os.close(reading)
        kept = work(*arguments)
        os.write(writing, b"x")
        time.sleep(60)
        del kept

    pid = start(body)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"x"
        yield pid
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def join(folder) -> CellStore:
    return CellStore(SharedMemory(folder))


def merged(folder, skipped=None) -> dict:
    reader = Reader(folder, skipped.append if skipped is not None else lambda reason: None)
    return values(reader.merge())


def values(families) -> dict:
    found = {}
    for family in families:
        for point in family.points:
            key = (family.name, point.attributes) if point.attributes else family.name
            if family.scope.version:
                key = (key, family.scope.version)
            assert key not in found, f"{key} twice"
            found[key] = point.value
    return found


def sharing_in(base, store=None, collect_sdk=list, name="named-test") -> Sharing:
    made = Sharing(name, None, [base], store or CellStore(), collect_sdk)
    made.join()
    return made


# --- Leases. ---


def test_the_lowest_free_slot_is_taken_and_freed_by_sigkill(folder):
    with living(Lease, folder):
        with living(Lease, folder):
            assert living_slots(folder, range(4)) == {0, 1}
            third = Lease(folder)
            assert third.number == 2
            third.close()
        assert living_slots(folder, range(4)) == {0}
        again = Lease(folder)
        assert again.number == 1
        again.close()
        again.close()


@pytest.mark.long
def test_a_joiner_skips_no_free_slot_while_others_probe(folder):
    """Twelve processes that come and go, probed all the time, never take more than twelve slots."""

    def come_and_go():
        for _ in range(40):
            lease = Lease(folder)
            assert lease.number < 12, lease.number
            lease.close()

    def probe():
        while True:
            living_slots(folder, range(12))

    probes = [start(probe) for _ in range(2)]
    workers = [start(come_and_go) for _ in range(12)]
    try:
        assert [wait(pid) for pid in workers] == [0] * 12
    finally:
        for pid in probes:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_nobody_waits_long_for_a_process_that_was_stopped_while_it_joined(tmp_path):
    """A stopped process that holds join.lock: joiners keep their numbers for now, scrapes go on."""
    base = tmp_path / "base"
    base.mkdir()
    mine = sharing_in(base)
    mine._store.counter("a").add(1)

    folder = mine.folder

    def hold():
        with leases._joining(folder, leases.fcntl.LOCK_EX):
            os.kill(os.getpid(), signal.SIGSTOP)

    pid = start(hold)
    os.waitpid(pid, os.WUNTRACED)
    try:
        other = Sharing("named-test", None, [base], CellStore(), list)
        # The holder stays stopped until the end of this test.
        assert not other.join()
        assert "is held by another process" in other.problem
        other._store.counter("a").add(2)
        assert values(mine.merge())["a"] == 1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    other.tick()
    assert values(mine.merge())["a"] == 3
    other.stop()
    mine.stop()


def test_a_removed_lock_does_not_give_a_living_slot_away(tmp_path):
    mine = sharing_in(tmp_path)
    store = mine._store
    store.counter("n").add(3)
    (mine.folder / "0.lock").unlink()

    folder = mine.folder

    def other():
        memory = SharedMemory(folder)
        assert memory.lease.number == 1
        CellStore(memory).counter("n").add(1)

    run(other)
    mine.tick()
    assert living_slots(mine.folder, [0, 1]) == {0}
    assert values(mine.collect())["n"] == 4
    mine.stop()


@pytest.mark.parametrize("make", ["link", "folder", "pipe"])
@pytest.mark.parametrize("suffix", ["lock", "cells", "keys"])
def test_what_is_no_file_in_a_slot_is_never_followed_and_stops_nobody(folder, tmp_path, make, suffix):
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    path = folder / f"0.{suffix}"
    {"link": lambda: path.symlink_to(target), "folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}[make]()
    merged(folder)
    join(folder).counter("n").add(1)
    assert merged(folder)["n"] == 1
    assert target.read_bytes() == b"precious"


# --- Adoption. ---


def count_everything(folder, amount=1):
    store = join(folder)
    store.counter("n").add(amount)
    store.histogram("h", bounds=(1.0, 2.0)).record(1.5)
    store.gauge("g").set(7)
    store.up_down_counter("u").add(4)
    return store


def test_a_new_owner_goes_on_from_counters_and_zeroes_what_only_the_living_have(folder):
    with living(count_everything, folder):
        assert merged(folder)["u"] == 4 and merged(folder)["g"] == 7
    dead = merged(folder)
    assert dead["n"] == 1 and "u" not in dead and "g" not in dead
    store = count_everything(folder, 2)
    assert len(list(folder.glob("*.cells"))) == 1
    found = merged(folder)
    assert found["n"] == 3 and found["h"].buckets == [0, 2, 0] and found["h"].sum == 3 and found["u"] == 4
    # What goes to OTLP is this process's part alone.
    assert values(store.collect())["n"] == 2 and values(store.collect())["h"].buckets == [0, 1, 0]


def test_between_taking_a_slot_and_zeroing_it_the_dead_ones_gauges_are_not_shown(folder):
    with living(count_everything, folder):
        pass
    lease = Lease(folder)
    found = merged(folder)
    assert found["n"] == 1 and "u" not in found and "g" not in found
    lease.close()


@pytest.mark.long
def test_hundreds_of_killed_workers_lose_nothing_and_leave_no_more_files_than_the_first(folder):
    count = 500

    def work():
        store = join(folder)
        store.counter("n").add(1)
        store.histogram("h").record(1)
        kill_self()

    for first in range(0, count, 4):
        for pid in [start(work) for _ in range(min(4, count - first))]:
            assert wait(pid) == -signal.SIGKILL
    found = merged(folder)
    assert found["n"] == count and found["h"].count == count
    # Cells, keys and lock of four, and join.lock.
    assert len(list(folder.iterdir())) <= 13
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4 * 80_000


SYSTEM_CALLS = ["pwrite", "posix_fallocate", "ftruncate", "pread", "fstat", "mmap", "flock"]


@pytest.mark.parametrize("call", sizes.few(SYSTEM_CALLS, 3))
def test_a_kill_at_any_step_of_adoption_and_growth_loses_nothing(folder, call, monkeypatch):
    """A child is killed just before, or just after, the n-th system call of its kind, for every n."""
    owners = {"mmap": mmap, "flock": leases.fcntl}
    owner = owners.get(call, os)
    real = getattr(owner, call)
    counted = memoryview(mmap.mmap(-1, 64)).cast("d")

    def work(at, before):
        left = [at]

        def killing(*arguments, **named):
            left[0] -= 1
            if not left[0] and before:
                kill_self()
            result = real(*arguments, **named)
            if not left[0]:
                kill_self()
            return result

        setattr(owner, call, killing)
        store = join(folder)
        for number in range(4):
            # The series are of this size so that every second one begins a segment.
            store.histogram(f"h{number}", bounds=tuple(range(5000))).record(1)
            counted[number + 1] += 1
            store.counter("n").add(1)
            counted[0] += 1

    for at in range(1, 40):
        codes = [wait(start(work, at, before)) for before in (True, False)]
        assert set(codes) <= {0, -signal.SIGKILL}
        found = merged(folder, skipped := [])
        # Killed before anything was committed, what it leaves is no file of ours yet.
        assert not skipped or not any(counted)
        assert found.get("n", 0) == counted[0]
        for number in range(4):
            assert not counted[number + 1] or found[f"h{number}"].count == counted[number + 1]
        if codes == [0, 0]:
            break
    assert counted[0] >= 8
    assert len(list(folder.glob("*.cells"))) == 1


@pytest.mark.scaled
def test_kills_at_random_moments_lose_nothing(folder, tmp_path):
    """Each child writes down before and after what it counts, in a mapping that outlives it."""
    noted = memoryview(mmap.mmap(-1, 16)).cast("d")

    def work(seed):
        store = join(folder)
        counter, drawn = store.counter("n"), random.Random(seed)
        while True:
            noted[0] += 1
            counter.add(1)
            noted[1] += 1
            if drawn.random() < 0.2:
                store.histogram(f"h{drawn.randrange(200)}", bounds=tuple(range(300))).record(1)

    for seed in range(sizes.scaled(15, 40)):
        begun = noted[0]
        pid = start(work, seed)
        # One killed while it makes its file leaves a truncated one, which is rightly reported as skipped.
        services.wait_until(lambda begun=begun: noted[0] > begun, 60, "the first count")
        time.sleep(random.random() * 0.03)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        # Killed after the note, before the count.
        noted[0] = noted[1] = max(noted[1], merged(folder).get("n", 0.0))
        assert merged(folder, skipped := []).get("n", 0.0) == noted[1] and not skipped


# --- Growth. ---


def test_growth_over_several_segments_with_histograms_that_do_not_fit_an_end(folder):
    store = join(folder)
    for number in range(30):
        histogram = store.histogram(f"h{number}", bounds=tuple(float(bound) for bound in range(1500)))
        histogram.record(number)
        store.counter("n").add(1, {"series": number})
    found = merged(folder)
    for number in range(30):
        assert found[f"h{number}"].count == 1 and found[f"h{number}"].buckets[number] == 1
        assert found["n", (("series", number),)] == 1
    assert (folder / "0.cells").stat().st_size > 5 * 65536


def test_the_cardinality_limit_holds_over_adopted_series(folder):
    def work(first):
        store = join(folder)
        store.configure(cardinality_limit=50, buckets={})
        for number in range(first, first + 80):
            store.counter("n").add(1, {"series": number})

    for first in range(0, 800, 80):
        run(work, first)
    found = {key: value for key, value in merged(folder).items() if key[0] == "n"}
    assert len(found) <= 51
    assert sum(found.values()) == 800


# --- Definitions. ---


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("histogram", {"bounds": (1.0,)}), ("histogram", {"bounds": (1.0, 2.0)})),
        (("counter", {"unit": "s"}), ("counter", {"unit": "ms"})),
        (("counter", {}), ("up_down_counter", {})),
    ],
)
@pytest.mark.parametrize("old_lives", [True, False])
def test_a_changed_definition_starts_again_once_and_the_others_go_on(folder, before, after, old_lives):
    def work(definition, times):
        kind, named = definition
        store = join(folder)
        store.counter("other").add(1)
        made = getattr(store, kind)("x", **named)
        for _ in range(times):
            made.record(0.5) if kind == "histogram" else made.add(5)
        return store

    def count(value):
        return value.count if isinstance(value, HistogramValue) else value

    if not old_lives:
        run(work, before, 1)
    with living(work, before, 1) if old_lives else contextlib.nullcontext():
        with living(work, after, 3):
            found = merged(folder)
            assert count(found["x"]) == (3 if after[0] == "histogram" else 15)
            assert found["other"] == 2
    work(after, 1)
    found = merged(folder)
    assert found["other"] == 3
    if after[0] != "up_down_counter":
        # The new one goes on; the dead one's is not added to it.
        assert count(found["x"]) == (4 if after[0] == "histogram" else 20)


def test_a_definition_that_was_rolled_back_starts_to_count_again_in_the_slot_it_had(tmp_path):
    """Buckets changed by a deployment and changed back by the next: what the dead left is of an older date."""

    def count(bounds):
        sharing = sharing_in(tmp_path)
        sharing._store.histogram("took", bounds=bounds).record(0.5)
        sharing._store.counter("kept").add(1)
        return sharing

    def shown(sharing):
        found = values(sharing.merge())
        return found["took"].bounds, sum(found["took"].buckets), found["kept"]

    def first():
        assert shown(count((1.0,))) == ((1.0,), 1, 1)
        kill_self()

    def second():
        mine = count((2.0,))
        assert mine.memory.lease.number == 0
        assert shown(mine) == ((2.0,), 1, 2)
        kill_self()

    run(first, expect=-signal.SIGKILL)
    run(second, expect=-signal.SIGKILL)
    with living(count, (2.0,)):
        # The adopted definition of the slot 0 is in use there; slot 1 makes its own.
        assert shown(count((1.0,)))[0] == (1.0,)
    rolled_back = count((1.0,))
    assert rolled_back.memory.lease.number == 0
    bounds, observations, kept = shown(rolled_back)
    assert bounds == (1.0,)
    assert kept == 5
    assert observations == 3
    size = rolled_back.memory.path("keys").stat().st_size
    assert shown(rolled_back)[0] == (1.0,)
    # Said once, not with every scrape.
    assert rolled_back.memory.path("keys").stat().st_size == size
    rolled_back.stop()


def test_a_rolled_back_definition_is_seen_though_its_process_answers_no_scrape(tmp_path):
    """It is used for the first time long after the process has read the folder: the next look after it says so."""

    def count(bounds):
        sharing = sharing_in(tmp_path)
        sharing._store.histogram("took", bounds=bounds).record(0.5)
        sharing.merge()
        kill_self()

    for bounds in ((1.0,), (2.0,)):
        run(count, bounds, expect=-signal.SIGKILL)
    rolled_back = sharing_in(tmp_path)
    assert rolled_back.memory.lease.number == 0
    rolled_back.merge()
    rolled_back._store.histogram("took", bounds=(1.0,)).record(0.5)
    other = sharing_in(tmp_path)
    assert values(other.merge())["took"].bounds == (2.0,)
    rolled_back.tick()
    found = values(other.merge())["took"]
    assert (found.bounds, sum(found.buckets)) == ((1.0,), 2)
    size = rolled_back.memory.path("keys").stat().st_size
    for _ in range(3):
        rolled_back.tick()
    assert rolled_back.memory.path("keys").stat().st_size == size
    for sharing in (rolled_back, other):
        sharing.stop()


def test_another_description_is_no_other_instrument(folder):
    run(lambda: join(folder).counter("n", description="old words").add(1))
    join(folder).counter("n", description="new words").add(1)
    assert merged(folder)["n"] == 2


# --- Damage. ---


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 3])
    elif how == "garbage":
        path.write_bytes(random.Random(1).randbytes(len(data)))
    elif how == "a bit":
        middle = min(len(data), 60) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 0x40]) + data[middle + 1 :])
    elif how == "huge length":
        path.write_bytes(struct.pack("<II", 0xFFFFFFFF, 0) + data[8:])
    elif how == "sparse":
        os.truncate(path, 1 << 42)
    elif how == "foreign JSON":
        payload = json.dumps({"d": [[], 3, {}, None, ["x"], 1, "y"], "s": [0, 5, -1e300, "z"]}).encode()
        path.write_bytes(struct.pack("<II", len(payload), zlib.crc32(payload)) + payload)
    elif how == "deep JSON":
        payload = b"[" * 100_000
        path.write_bytes(struct.pack("<II", len(payload), zlib.crc32(payload)) + payload)
    elif how == "not a number":
        path.write_bytes(struct.pack("<6d", *([math.nan] * 6)) + data[48:])
    elif how == "length not a number":
        path.write_bytes(data[:8] + struct.pack("<d", math.nan) + data[16:])
    elif how == "length infinite":
        path.write_bytes(data[:8] + struct.pack("<d", math.inf) + data[16:])


DAMAGES = [
    "empty", "truncated", "garbage", "a bit", "huge length", "sparse", "foreign JSON", "deep JSON", "not a number",
    "length not a number", "length infinite",
]  # fmt: skip


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("suffix", ["cells", "keys", "snap"])
def test_a_damaged_file_is_skipped_counted_once_and_taken_over(tmp_path, suffix, how):
    if suffix != "cells" and how in ("sparse", "not a number", "length not a number", "length infinite"):
        pytest.skip("of cells only")

    def work():
        sdk = [Family("sdk", MetricType.COUNTER, "", "", Scope("s"), [Point((), 3.0)])]
        sharing = sharing_in(tmp_path, collect_sdk=lambda: sdk)
        for number in range(20):
            sharing._store.counter("n").add(1, {"series": number})
        sharing.write_snapshot()

    with living(work):
        mine = sharing_in(tmp_path)
        mine._store.counter("mine").add(1)
        before = values(mine.collect())
        assert before["sdk"] == 3 and before["n", (("series", 7),)] == 1
        target = mine.folder / f"0.{suffix}"
        if suffix == "snap":
            damage(target, how)
            # The last good one.
            assert values(mine.collect())["sdk"] == 3
    if suffix != "snap":
        damage(target, how)
    for _ in range(3):
        found = values(mine.collect())
    skips = {key: value for key, value in values(mine._store.collect()).items() if "skipped" in key[0]}
    if how != "a bit" or suffix != "cells":
        assert sum(skips.values()) <= 1
    fresh = Reader(mine.folder, (reasons := []).append)
    fresh.merge()
    list(fresh.snapshots())
    fresh.merge()
    list(fresh.snapshots())
    assert len(reasons) == len(set(reasons))
    assert found["mine"] == 1

    def again():
        sharing = sharing_in(tmp_path)
        assert not sharing.problem, sharing.problem
        sharing._store.counter("n").add(1, {"series": 99})
        sharing.write_snapshot()
        values(sharing.collect())

    run(again)
    assert values(mine.collect())["n", (("series", 99),)] == 1
    mine.stop()


def test_a_change_that_still_reads_well_is_found_out(tmp_path):
    """Another letter in a label is no fault of form: the checksum alone tells."""

    def work():
        sharing_in(tmp_path)._store.counter("n").add(1, {"k": "abc"})

    run(work)
    mine = sharing_in(tmp_path / "elsewhere")
    (folder,) = (path.parent for path in tmp_path.rglob("0.keys") if path.parent != mine.folder)
    mine.stop()
    keys = folder / "0.keys"
    assert merged(folder)["n", (("k", "abc"),)] == 1
    keys.write_bytes(keys.read_bytes().replace(b'"abc"', b'"abd"'))
    reasons = []
    assert values(Reader(folder, reasons.append).merge()) == {}
    assert reasons == ["damaged"]
    memory = SharedMemory(folder)
    assert memory.problems == ["damaged"]
    memory.close()


@pytest.mark.parametrize("size", [0, 100, 8192, 8192 + 65536])
def test_a_file_cut_beneath_its_owner_is_made_whole_before_it_is_touched(tmp_path, size):
    def work():
        sharing = sharing_in(tmp_path)
        for number in range(10_000):
            sharing._store.counter("n").series({"series": number})
            if number == 0:
                sharing._store.counter("n").add(5, {"series": 0})
        sharing._store.configure(cardinality_limit=20_000, buckets={})
        os.truncate(sharing.folder / "0.cells", size)
        sharing.tick()
        sharing._store.counter("m").add(2)
        found = values(sharing.collect())
        assert found["m"] == 2
        assert found["n", (("series", 0),)] == (5 if size > 8192 else 0)
        assert all(value >= 0 for value in values(sharing._store.collect()).values())

    run(work)


def test_a_dictionary_cut_beneath_its_owner_is_written_anew(tmp_path):
    """The owner knows what was in it; readers that had it half forget what they knew."""
    mine = sharing_in(tmp_path)
    for number in range(20):
        mine._store.counter("a").add(number, {"n": number})
        mine._store.histogram("b", bounds=(1.0, 2.0)).record(number, {"n": number})
    before = values(mine.merge())
    outsider = Reader(mine.folder)
    assert values(outsider.merge()) == before
    keys = mine.memory.path("keys")
    os.truncate(keys, keys.stat().st_size // 2)
    mine.tick()
    mine._store.counter("a").add(1, {"n": "new"})
    after = values(mine.merge())
    assert after.pop(("a", (("n", "new"),))) == 1
    assert after == before
    assert values(Reader(mine.folder).merge()) == values(outsider.merge()) == values(mine.merge())
    mine.stop()


def test_names_of_others_in_the_folder_are_no_slots(folder):
    for name in ("05.cells", "²".encode().decode() + ".cells", "x.cells", "-1.cells", "99999999.cells", ".cells"):
        (folder / name).write_bytes(b"x")
    join(folder).counter("n").add(1)
    assert merged(folder, skipped := [])["n"] == 1
    assert not skipped


# --- The folder. ---


def test_folder_and_files_are_private_whatever_the_umask(tmp_path):
    for mask in (0, 0o277, 0o777):
        base = tmp_path / f"mask{mask}"
        base.mkdir()

        def work(base=base, mask=mask):
            os.umask(mask)
            sdk = [Family("sdk", MetricType.COUNTER, "", "", Scope("s"), [Point((), 3.0)])]
            name = server_group.build_group_name("p", None, os.getpid())
            sharing = Sharing(name, os.getpid(), [base], CellStore(), lambda: sdk)
            assert sharing.join(), sharing.problem
            sharing._store.counter("n").add(1)
            sharing.write_snapshot()

        run(work)
        for path in base.rglob("*"):
            expected = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_a_folder_that_is_a_link_or_open_or_foreign_is_refused_with_its_reason(tmp_path):
    def problem(change):
        base = tmp_path / change.__name__
        base.mkdir()
        change(base / f"django-otel-{os.geteuid()}")
        made = sharing_in(base)
        made._store.counter("n").add(1)
        found = values(made.collect())
        assert found["n"] == 1 and found["django_otel.shared.active"] == 0
        return made.problem

    def link(path):
        path.with_name("elsewhere").mkdir(mode=0o700)
        path.symlink_to(path.with_name("elsewhere"))

    def open_to_all(path):
        path.mkdir()
        path.chmod(0o777)

    def foreign(path):
        path.mkdir(mode=0o700)
        os.chown(path, 4711, 4711)

    def file(path):
        path.write_text("")

    assert "is a link or not a folder" in problem(link)
    assert "mode 777; expected 700" in problem(open_to_all)
    assert "is a link or not a folder" in problem(file)
    if os.geteuid() == 0:
        assert "belongs to user 4711; expected user 0" in problem(foreign)


def test_a_deleted_folder_is_made_anew_with_what_the_living_counted(tmp_path):
    sdk = [Family("sdk", MetricType.COUNTER, "", "", Scope("s"), [Point((), 3.0)])]
    mine = sharing_in(tmp_path, collect_sdk=lambda: sdk)
    mine._store.counter("n").add(3)
    mine.write_snapshot()
    services.shutil.rmtree(mine.folder)
    gone = values(mine.collect())
    assert gone["n"] == 3 and gone["django_otel.shared.active"] == 0
    mine._store.counter("n").add(1)
    mine.tick()
    found = values(mine.collect())
    assert found["n"] == 4 and found["sdk"] == 3 and found["django_otel.shared.active"] == 1
    assert read_snapshot(mine.folder / "0.snap")
    mine.stop()


@contextlib.contextmanager
def small_disk(path, size="64k"):
    path.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True).returncode
    ):
        pytest.skip("may not mount")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_falls_back_says_so_and_recovers_with_every_number(tmp_path):
    with small_disk(tmp_path / "disk", "400k") as disk:

        def work():
            sdk = [Family("sdk", MetricType.COUNTER, "", "", Scope("s"), [Point((), 3.0)])]
            mine = sharing_in(disk, collect_sdk=lambda: sdk)
            assert not mine.problem
            store = mine._store
            store.configure(cardinality_limit=100_000, buckets={})
            store.counter("first").add(1)
            filler = disk / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
            for number in range(10_000):
                store.counter("n").add(1, {"series": number})
            store.counter("first").add(1)
            for _ in range(3):
                mine.tick()
                found = values(mine.collect())
                assert found["django_otel.shared.active"] == 0
                assert found["first"] == 2 and found["n", (("series", 9999),)] == 1 and found["sdk"] == 3
            filler.unlink()
            os.truncate(disk / "other", 0) if (disk / "other").exists() else None
            subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
            mine.tick()
            found = values(mine.collect())
            assert found["django_otel.shared.active"] == 1
            assert found["first"] == 2 and all(found["n", (("series", number),)] == 1 for number in range(10_000))
            assert values(store.collect())["first"] == 2

        run(work)


def test_a_disk_full_from_the_start_keeps_numbers_in_the_process_until_there_is_space(tmp_path):
    with small_disk(tmp_path / "disk", "4k") as disk:

        def work():
            mine = sharing_in(disk)
            assert "No space left" in mine.problem
            mine._store.counter("n").add(2)
            assert values(mine.collect()) == {"n": 2, "django_otel.shared.active": 0}
            subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
            mine.tick()
            assert values(mine.collect()) == {"n": 2, "django_otel.shared.active": 1}

        run(work)


def test_a_file_system_that_becomes_read_only_breaks_no_scrape(tmp_path):
    with small_disk(tmp_path / "disk", "4m") as disk:

        def work():
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            mine = sharing_in(disk)
            assert "Read-only" in mine.problem
            mine._store.counter("n").add(2)
            assert values(mine.collect())["n"] == 2
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            mine.tick()
            assert values(mine.collect()) == {"n": 2, "django_otel.shared.active": 1}

        run(work)


def test_a_folder_mounted_read_only_beside_the_server_is_read(tmp_path):
    """As a sidecar has it: probing who lives must not ask for the right to write."""
    with small_disk(tmp_path / "disk", "4m") as disk:

        def work():
            store = sharing_in(disk)._store
            store.counter("n").add(2)
            store.up_down_counter("active").add(1)
            beside = tmp_path / "beside"
            beside.mkdir()
            subprocess.run(["mount", "--bind", str(disk), str(beside)], check=True)
            try:
                subprocess.run(["mount", "-o", "remount,bind,ro", str(beside)], check=True)
                (folder,) = (path.parent for path in beside.rglob("0.cells"))
                reasons = []
                found = values(Reader(folder, reasons.append).merge())
                assert (found["n"], found["active"], reasons) == (2, 1, [])
            finally:
                subprocess.run(["umount", str(beside)], check=True)

        run(work)


# --- Forks and threads. ---


def test_a_child_starts_at_zero_in_a_slot_of_its_own_and_never_touches_its_parents(tmp_path):
    parent = sharing_in(
        tmp_path, collect_sdk=lambda: [Family("sdk", MetricType.COUNTER, "", "", Scope("s"), [Point((), 3.0)])]
    )
    parent._store.counter("n").add(5)
    parent._store.gauge("g").set(1)
    parent.write_snapshot()
    folder = parent.folder
    cells, snapshot = (folder / "0.cells").read_bytes(), (folder / "0.snap").stat()

    def child():
        store = parent._store
        store.counter("n").add(1)
        store.up_down_counter("u").add(1)
        # Before it joins: its own numbers alone, and nothing written.
        assert values(parent.collect())["n"] == 1
        assert (folder / "0.cells").read_bytes() == cells
        assert (folder / "0.snap").stat().st_mtime_ns == snapshot.st_mtime_ns
        mine = sharing_in(tmp_path, store)
        assert mine.memory.lease.number == 1
        found = values(mine.collect())
        assert found["n"] == 6 and found["u"] == 1 and found["sdk"] == 3

    run(child)
    assert values(parent.collect())["n"] == 6
    # The child of a parent that dies does not keep its slot alive.
    parent.stop()


def test_a_parents_slot_is_free_when_it_dies_before_its_child(folder, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    reading, writing = os.pipe()

    def parent():
        sharing = sharing_in(base)
        sharing._store.up_down_counter("u").add(1)
        # The child lives until it is told to end.
        start(os.read, reading, 1)
        kill_self()

    run(parent, expect=-signal.SIGKILL)
    group = next(base.glob("*/*"))
    services.wait_until(lambda: not living_slots(group, [0]), 60, "a free slot")
    os.write(writing, b"x")
    os.close(reading), os.close(writing)


def test_threads_that_count_make_series_and_scrape_at_once_lose_nothing(tmp_path):
    mine = sharing_in(tmp_path)
    store = mine._store
    store.configure(cardinality_limit=10_000, buckets={})
    errors = []

    def work(number):
        try:
            for step in range(300):
                store.counter("n").add(1)
                store.histogram("h").record(step)
                store.counter("series").add(1, {"step": step % 60, "thread": number})
        except Exception as error:
            errors.append(error)

    def scrape():
        try:
            for _ in range(25):
                values(mine.collect())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    threads += [threading.Thread(target=scrape) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    found = values(mine.collect())
    assert found["n"] == 1200 and found["h"].count == 1200
    assert sum(value for key, value in found.items() if key[0] == "series") == 1200
    mine.stop()


def test_concurrent_scrapes_of_concurrent_writers_never_show_more_than_was_written(folder):
    """Each writer records 1 only: a sum never differs from the count by more than the writers that are at it."""

    def write():
        store = join(folder)
        for number in range(3000):
            store.histogram("h", bounds=(2.0,)).record(1)
            if number % 10 == 0:
                store.counter("n").add(1, {"series": number})

    def scrape():
        reader, before = Reader(folder, lambda reason: errors.append(reason)), 0
        errors = []
        for _ in range(40):
            found = values(reader.merge()).get("h")
            if found is not None:
                assert before <= found.count <= 9000 and abs(found.count - found.sum) <= 3
                before = found.count
        assert not errors, errors

    pids = [start(write) for _ in range(3)] + [start(scrape) for _ in range(2)]
    assert [wait(pid) for pid in pids] == [0] * 5
    assert merged(folder)["h"].count == 9000


# --- The SDK's instruments. ---


def test_snapshots_merge_by_name_scope_and_attributes_and_only_the_living_have_gauges(tmp_path):
    one, other = Scope("s", "1"), Scope("s", "2")

    def sdk(scale, offset, gauge):
        exponential = ExponentialValue(scale, 1, offset, [1, 2], 0, [], 5.0, 4)
        return [
            Family("c", MetricType.COUNTER, "", "", one, [Point((("k", 1),), 2), Point((("k", "1"),), 3)]),
            Family("c", MetricType.COUNTER, "", "", other, [Point((("k", 1),), 10)]),
            Family("g", MetricType.GAUGE, "", "", one, [Point((), gauge)]),
            Family("u", MetricType.UP_DOWN_COUNTER, "", "", one, [Point((), 1)]),
            Family("h", MetricType.HISTOGRAM, "", "", one, [Point((), HistogramValue((1.0,), [1, 2], 4.0))]),
            Family("e", MetricType.EXPONENTIAL_HISTOGRAM, "", "", one, [Point((), exponential)]),
        ]

    def work(*arguments):
        sharing = sharing_in(tmp_path, collect_sdk=lambda: sdk(*arguments))
        sharing.write_snapshot()
        return sharing

    mine = sharing_in(tmp_path)
    with living(work, 3, 8, 7.0):
        with living(work, 2, 4, 9.0):
            found = {
                (family.name, family.scope, point.attributes): point.value
                for family in mine.collect()
                for point in family.points
            }
            assert found["c", one, (("k", 1),)] == 4 and found["c", one, (("k", "1"),)] == 6
            assert found["c", other, (("k", 1),)] == 20
            assert found["u", one, ()] == 2 and found["g", one, ()] in (7.0, 9.0)
            assert found["h", one, ()].buckets == [2, 4]
            exponential = found["e", one, ()]
            assert (exponential.scale, exponential.count, exponential.zero_count) == (2, 8, 2)
            assert sum(exponential.positive) == 6
    dead = values(mine.collect())
    assert ("g", "1") not in dead and ("u", "1") not in dead and dead["h", "1"].buckets == [2, 4]
    # A process that takes the slot and has measured nothing through the SDK shows no gauge of the dead one's.
    with living(lambda: sharing_in(tmp_path)):
        after = values(mine.collect())
        assert ("g", "1") not in after and ("u", "1") not in after and after["h", "1"].buckets == [2, 4]
    with living(work, 3, 8, 5.0):
        again = values(mine.collect())
        assert again["g", "1"] == 5.0 and again["h", "1"].buckets == [3, 6] and again["e", "1"].count == 12
    mine.stop()


def test_a_snapshot_of_another_shape_is_no_snapshot(folder):
    path = folder / "0.snap"
    good = Family(
        "h",
        MetricType.HISTOGRAM,
        "",
        "",
        Scope("s"),
        [Point((("a", (1, 2)),), HistogramValue((1.0,), [1, 2], 4.0), [])],
    )
    write_snapshot(path, [good])
    assert read_snapshot(path) == [good]
    text = json.loads(path.read_bytes()[8:])
    for change in (
        lambda item: item.__setitem__(0, 5),
        lambda item: item.__setitem__(4, None),
        lambda item: item[5][0].__setitem__(1, 3),
        lambda item: item[5][0].__setitem__(1, {"b": [1], "c": [1], "s": 1}),
        lambda item: item[5][0].__setitem__(1, {"b": ["x"], "c": [1, 2], "s": 1}),
        lambda item: item[5][0].__setitem__(0, [["a", {}]]),
        lambda item: item[5][0].__setitem__(2, None),
    ):
        items = json.loads(json.dumps(text))
        change(items[0])
        payload = json.dumps(items).encode()
        path.write_bytes(struct.pack("<II", len(payload), zlib.crc32(payload)) + payload)
        assert read_snapshot(path) is None


def test_exemplars_of_several_slots_are_merged_the_newest_of_a_bucket(folder, pass_time):
    def work(trace_id, value):
        join(folder).histogram("h", bounds=(1.0, 2.0)).record(value, trace_id=trace_id, span_id=trace_id)
        return

    with living(lambda: join(folder).histogram("h", bounds=(1.0, 2.0)).record(0.5, trace_id=1 << 100, span_id=1)):
        run(work, 2, 1.5)
        pass_time(60)
        join(folder).histogram("h", bounds=(1.0, 2.0)).record(0.6, trace_id=3, span_id=3)
        family = next(family for family in Reader(folder).merge() if family.name == "h")
        assert [exemplar.trace_id for exemplar in family.points[0].exemplars] == [3, 2]


@pytest.mark.parametrize("kind", ["counter", "histogram", "exponential"])
@pytest.mark.parametrize("seed", range(5))
def test_exemplars_of_sdk_instruments_never_go_back_in_time(kind, seed):
    """Several processes, each adding what it has measured since its last collection; pages add them up in any order."""
    from django_otel.metrics.exemplar_choice import exemplars_by_bucket
    from django_otel.metrics.merging import merge_point, merge_processes
    from django_otel.metrics.model import Exemplar, ExponentialValue, Family, HistogramValue, MetricType, Point, Scope

    bounds = (1.0, 2.0, 4.0)
    values = {
        "counter": lambda: 1,
        "histogram": lambda: HistogramValue(bounds, [1, 1, 1, 1], 10.0),
        "exponential": lambda: ExponentialValue(0, 0, 0, [1], 0, [], 1.5, 1),
    }
    kinds = {
        "counter": MetricType.COUNTER,
        "histogram": MetricType.HISTOGRAM,
        "exponential": MetricType.EXPONENTIAL_HISTOGRAM,
    }
    chance = random.Random(seed)
    totals = [Point({}, values[kind]()) for _ in range(4)]
    shown: dict[int, float] = {}
    for now_s in range(1, 300):
        found = [
            Exemplar(chance.choice([0.5, 1.5, 3.0, 9.0]), now_s + chance.random(), now_s, now_s)
            for _ in range(chance.randrange(3))
        ]
        assert merge_point(chance.choice(totals), Point({}, values[kind](), found))
        parts = [
            ([Family("m", kinds[kind], "1", "", Scope("s"), [point])], chance.random() < 0.5)
            for point in chance.sample(totals, len(totals))
        ]
        [family] = merge_processes(parts)
        [point] = family.points
        buckets = (
            {0: max(point.exemplars, key=lambda exemplar: exemplar.time_unix_s)}
            if kind == "counter" and point.exemplars
            else exemplars_by_bucket(bounds, point.exemplars)
        )
        for bucket, exemplar in buckets.items():
            assert exemplar.time_unix_s >= shown.get(bucket, 0.0)
            shown[bucket] = exemplar.time_unix_s
        # None is lost either.
        assert shown.keys() == buckets.keys()


@pytest.mark.heavy
@pytest.mark.parametrize("seed", sizes.few(range(3), 3))
def test_exemplars_of_several_slots_never_go_back_in_time(folder, seed):
    """Also when the newest one was pushed out of its process's ring and another process has an older one."""
    chance = random.Random(seed)
    workers = [join(folder) for _ in range(3)]
    reader = Reader(folder)
    shown: dict[object, float] = {}
    found = 0
    for step in range(400):
        name = f"h{chance.randrange(40) if step % 4 else 0}"
        chance.choice(workers).histogram(name, bounds=(1.0,)).record(
            chance.choice((0.5, 1.5)), {"n": chance.randrange(3)}, trace_id=step + 1, span_id=1
        )
        for family in reader.merge():
            for point in family.points:
                for exemplar in point.exemplars:
                    key = family.name, point.attributes, exemplar.value
                    assert exemplar.time_unix_s >= shown.get(key, 0.0), step
                    shown[key] = exemplar.time_unix_s
                    found += 1
    assert found > 400


# --- Groups. ---


def test_group_names_differ_by_master_start_project_and_namespace(monkeypatch):
    names = {
        server_group.build_group_name("p", None, 1),
        server_group.build_group_name("q", None, 1),
        server_group.build_group_name("p", None, os.getpid()),
    }
    monkeypatch.setattr(server_group, "start_time", lambda pid: "another")
    names.add(server_group.build_group_name("p", None, 1))
    monkeypatch.setattr(server_group, "_pid_namespace", lambda: "another")
    names.add(server_group.build_group_name("p", None, 1))
    names |= {
        server_group.build_group_name("p", "a", None),
        server_group.build_group_name("p", "b", None),
        server_group.build_group_name("q", "a", None),
    }
    names |= {server_group.build_group_name("p", "../a/b", None), server_group.build_group_name("p", ".._a_b", None)}
    assert len(names) == 10 and None not in names
    assert all("/" not in name for name in names)
    assert server_group.build_group_name("p", None, None) is None


def test_groups_of_other_containers_are_swept_when_idle_for_an_hour(tmp_path):
    """Five starts of a container on one volume do not leave five folders in memory."""
    parent = tmp_path / "parent"
    parent.mkdir(mode=0o700)
    kept = []

    def make(name, age_s, *, is_held=False):
        folder = parent / name
        folder.mkdir(mode=0o700)
        (folder / "owner").write_text("1 1 4711")
        store = join(folder)
        store.counter("n").add(1)
        if is_held:
            kept.append(store)
        else:
            store.memory.close()
        at_s = time.time() - age_s
        for path in (*folder.iterdir(), folder):
            os.utime(path, (at_s, at_s))

    make("1-idle", 3700)
    make("2-lately", 3500)
    make("3-held", 9999, is_held=True)
    make("keep", 9999)
    # A file that was written to counts, not the folder alone.
    make("4-written", 9999)
    os.utime(parent / "4-written" / "0.cells")
    assert server_group.sweep(parent, keep="keep") == ["1-idle"]


def test_without_a_temporary_folder_what_is_writable_is_used(tmp_path, monkeypatch):
    """A container with a read-only root: Python finds no folder for temporary files and raises."""

    def refuse():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", refuse)
    bases = server_group.candidate_bases(None, {"RUNTIME_DIRECTORY": str(tmp_path)})
    assert bases == [tmp_path, Path("/dev/shm")]
    assert server_group.open_group("1-a", None, bases).parent.parent == tmp_path
    assert tracestore_file.candidate_folders(None, {}, "shop")
    with pytest.raises(server_group.Unusable, match="no folder for shared or temporary files"):
        server_group.open_group("1-a", None, [])


def test_where_nothing_is_writable_the_check_says_so(monkeypatch, settings):
    from django_otel import conf
    from django_otel.operations import checks

    monkeypatch.setattr(server_group, "candidate_bases", lambda *_: [])
    found = list(checks._check_shared_folder(conf.get_config()))
    assert [message.id for message in found] == ["django_otel.W005"]
    assert "no folder for shared or temporary files" in found[0].msg


def test_where_nothing_is_writable_the_page_and_one_log_line_say_so(caplog):
    store = CellStore()
    sharing = Sharing("1-a", None, [], store, list)
    for _ in range(3):
        assert not sharing.join()
    active = [family for family in sharing.collect() if family.name == "django_otel.shared.active"]
    assert [point.value for family in active for point in family.points] == [0.0]
    assert caplog.text.count("cannot share its numbers") == 1


def test_only_old_folders_of_dead_masters_without_a_living_process_are_swept(tmp_path):
    parent = tmp_path / "parent"
    parent.mkdir(mode=0o700)
    reading, writing = os.pipe()
    dead = start(os.read, reading, 1)

    def make(name, owner, age_s=3600):
        folder = parent / name
        folder.mkdir(mode=0o700)
        if owner is not None:
            server_group._write_owner(folder, owner)
        run(lambda: join(folder).counter("n").add(1))
        at_s = time.time() - age_s
        os.utime(folder, (at_s, at_s))
        return folder

    make("1-dead", dead)
    make("2-young", dead, 1)
    make("3-master-lives", os.getpid())
    held = make("4-worker-lives", dead)
    make("named-dead", dead)
    make("5-no-owner", None)
    make("keep", dead)
    other = make("6-other-namespace", dead)
    (other / "owner").write_text("1 1 4711")
    os.utime(other, (1, 1))
    (parent / "7-link").symlink_to(held)
    os.write(writing, b"x")
    wait(dead)
    os.close(reading), os.close(writing)
    with living(join, held):
        os.utime(held, (1, 1))
        assert sorted(server_group.sweep(parent, keep="keep")) == ["1-dead", "5-no-owner"]
    assert (held / "0.cells").exists()


# --- The whole. ---


def test_work_outside_the_web_server_is_seen_in_its_scrape(tmp_path):
    otel = {
        "SERVICE_NAME": "shared", "SAMPLING": {"LIVE": False}, "METRICS_VIEW": {"ALLOW": "all"},
        "METRICS": {"SHARED_DIR": str(tmp_path), "GROUP": "shop"}, "SKIP_COMMANDS": [],
    }  # fmt: skip
    code = (
        "import django; django.setup(); import django_otel; from django_otel import runtime;"
        "django_otel.counter('jobs.done').add(3); assert runtime.sharing().memory is not None"
    )
    environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "TEST_OTEL": json.dumps(otel)}
    for _ in range(2):
        subprocess.run([services.sys.executable, "-c", code], env=environ, cwd=services.ROOT, check=True)
    with services.serve("gunicorn", otel, workers=1) as server:
        services.wait_until(lambda: server.get("/livez")[0] == 200, 60, "an answer")
        assert b"jobs_done_total 6" in server.get("/metrics")[2]


def test_nothing_unpickles():
    for path in (services.ROOT / "django_otel").rglob("*.py"):
        text = path.read_text()
        assert not any(
            word in text for word in ("import pickle", "from pickle", "marshal", "shelve", "allow_pickle")
        ), path


def test_a_scrape_waits_for_the_thread_that_joins(monkeypatch):
    """The first requests of a process come in several threads: a page of this process alone would go backwards."""
    begun, may_end = threading.Event(), threading.Event()
    joined = types.SimpleNamespace(collect=lambda: ["of all processes"])

    current = runtime.current()
    membership = current.membership

    def start_sharing():
        begun.set()
        assert may_end.wait(60)
        membership.sharing = joined

    monkeypatch.setattr(membership, "sharing", None)
    monkeypatch.setattr(runtime.store, "joined", False)
    monkeypatch.setattr(current, "is_testing", False)
    monkeypatch.setattr(membership, "_start_sharing", start_sharing)
    monkeypatch.setattr(current.metrics, "thread", None)
    monkeypatch.setattr(current, "console", None)
    monkeypatch.setattr(membership, "prepare_callbacks", [])
    pages = []
    joiner = threading.Thread(target=runtime.join)
    scraper = threading.Thread(target=lambda: pages.append((runtime.join(), runtime.collect())[1]))
    joiner.start()
    assert begun.wait(60)
    scraper.start()
    scraper.join(0.2)
    assert pages == []
    may_end.set()
    joiner.join(60)
    scraper.join(60)
    assert pages == [["of all processes"]]
