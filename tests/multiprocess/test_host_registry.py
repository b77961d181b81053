"""The folder through which a policy reaches the processes of a host: order, damage, deaths."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
import time

import pytest

from django_otel.base.private_files import Unusable
from django_otel.multiprocess import host_registry
from django_otel.multiprocess.host_registry import HostRegistry, Reading, registry_folder
from django_otel.sampling.policy import Policy, Rule
from tests import services

POLICY = Policy(0.25, "admin", 3, 2e9, "why", (Rule(1.0, path="/checkout/*", expires_at_s=1.9e9),), 10.0, True, 0.5)


def reading(policy=POLICY, began_s=None, fault=""):
    return Reading(policy, time.monotonic() if began_s is None else began_s, time.time(), fault)


@pytest.fixture
def folder(tmp_path):
    return registry_folder("db", [tmp_path])


def child(folder, code: str) -> subprocess.Popen:
    """Another process with a registry of its own; prints a line when it is ready and waits for its input to close."""
    begin = (
        "import os, sys, time, pathlib\nfrom django_otel.multiprocess.host_registry import HostRegistry\n"
        f"registry = HostRegistry(pathlib.Path({str(folder)!r}))\n{code}\nprint('ready', flush=True)\nsys.stdin.read()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", begin], cwd=services.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_what_one_process_publishes_another_reads_once(folder):
    writer, reader = HostRegistry(folder), HostRegistry(folder)
    assert reader.read() is None
    assert not reader.has_changed()

    published = reading()
    assert writer.publish(published)
    assert reader.has_changed()
    assert reader.read() == published
    assert not reader.has_changed()


def test_no_policy_is_news_too(folder):
    registry = HostRegistry(folder)
    registry.publish(reading())
    registry.publish(reading(None))
    assert registry.read().policy is None


def test_of_two_readings_the_one_that_began_later_stays(folder):
    registry = HostRegistry(folder)
    early = reading(Policy(0.1, "admin", 1))
    late = reading(Policy(0.2, "admin", 2))
    assert registry.publish(late)
    assert not registry.publish(early)
    assert registry.read().policy.version == 2


def test_the_same_again_does_not_make_the_others_read(folder):
    registry = HostRegistry(folder)
    registry.publish(reading())
    registry.read()
    registry.publish(reading())
    assert not registry.has_changed()


def test_a_fault_leaves_the_policy_as_it_is(folder):
    registry = HostRegistry(folder)
    registry.publish(reading())
    registry.publish_fault("the database is down", time.monotonic())
    assert (registry.read().policy, registry.read().fault) == (POLICY, "the database is down")
    registry.publish(reading())
    assert registry.read().fault == ""
    registry.publish_fault("an older fault", 0.0)
    assert registry.read().fault == ""


def test_a_file_of_before_a_restart_of_the_machine_is_older_than_anything_of_now(folder):
    registry = HostRegistry(folder)
    (folder / "policy.json").write_bytes(reading(began_s=time.monotonic() + 1e6).to_bytes())
    assert registry.read().policy == POLICY
    assert registry.publish(reading(None))
    assert registry.read().policy is None


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"\xff\xfe", b"{}", b'{"format": 1}', b"[" * 100_000, b"x" * ((1 << 20) + 1),
     reading().to_bytes().replace(b'"ratio": 0.25', b'"ratio": 25'), reading().to_bytes()[:-20]],
    ids=["empty", "cut", "list", "no text", "no format", "no times", "deep", "long", "out of range", "truncated"],
)  # fmt: skip
def test_a_damaged_file_is_refused_and_put_right_by_the_next_reading(folder, data):
    registry = HostRegistry(folder)
    (folder / "policy.json").write_bytes(data)
    with pytest.raises((ValueError, RecursionError)):
        registry.read()
    assert registry.publish(reading())
    assert registry.read().policy == POLICY


def test_a_link_in_place_of_the_file_is_not_followed(folder, tmp_path):
    target = tmp_path / "target"
    target.write_bytes(reading().to_bytes())
    (folder / "policy.json").symlink_to(target)
    with pytest.raises(OSError, match="link"):
        HostRegistry(folder).read()


def test_a_folder_that_others_can_write_is_refused(tmp_path):
    parent = tmp_path / f"django-otel-{os.geteuid()}-policy"
    parent.mkdir(mode=0o777)
    parent.chmod(0o777)
    with pytest.raises(Unusable, match="mode 777"):
        registry_folder("db", [tmp_path])


def test_a_missing_folder_of_the_settings_is_made(tmp_path):
    """Whichever comes first, numbers or policy."""
    assert registry_folder("a", [tmp_path / "missing"]).is_dir()


def test_policies_that_no_process_follows_are_swept_after_an_hour(tmp_path):
    idle, lately, followed = (registry_folder(name, [tmp_path]) for name in ("idle", "lately", "followed"))
    registries = [HostRegistry(folder) for folder in (idle, lately, followed)]
    for registry in registries:
        registry.join()
    for registry in registries[:2]:
        registry.close()
    for folder in (idle, followed):
        for path in (*folder.iterdir(), folder):
            os.utime(path, (1, 1))
    registry_folder("new", [tmp_path])
    assert [folder.exists() for folder in (idle, lately, followed)] == [False, True, True]


def test_another_database_is_another_folder(tmp_path):
    assert registry_folder("one", [tmp_path]) != registry_folder("two", [tmp_path])


def test_many_writers_leave_the_latest_and_no_rubbish(folder, monkeypatch):
    # Of a busy machine's time the one that holds the lock may get none for a second.
    monkeypatch.setattr(host_registry, "_LOCK_TIMEOUT_S", 60.0)

    def write(number):
        registry = HostRegistry(folder)
        for _ in range(30):
            registry.publish(reading(Policy(0.5, "admin", number)))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = reading(Policy(0.75, "admin", 99))
    HostRegistry(folder).publish(last)
    assert HostRegistry(folder).read() == last
    assert {path.name for path in folder.iterdir()} == {"policy.json", "policy.lock"}


def test_one_of_all_leads_and_the_next_takes_over_when_it_dies(folder):
    """By SIGKILL: the kernel frees the lock."""
    with child(folder, "assert registry.lead()") as process:
        assert process.stdout.readline() == "ready\n"
        registry = HostRegistry(folder)
        assert not registry.lead()
        process.kill()
        process.wait()
        services.wait_until(registry.lead, 60, "the lead")
        assert registry.lead()
        assert not HostRegistry(folder).lead()
        registry.resign()
        assert HostRegistry(folder).lead()


def test_the_living_say_what_they_apply_and_the_dead_nothing(folder):
    with child(folder, "registry.join(); registry.report({'pid': os.getpid(), 'version': 1})") as process:
        assert process.stdout.readline() == "ready\n"
        registry = HostRegistry(folder)
        registry.join()
        registry.report({"pid": os.getpid(), "version": 2})
        assert {(member["pid"], member["version"]) for member in registry.members()} == {
            (process.pid, 1), (os.getpid(), 2),
        }  # fmt: skip
        # Seen also by a process that holds no slot.
        assert len(HostRegistry(folder).members()) == 2
        process.kill()
        process.wait()
        assert [member["pid"] for member in registry.members()] == [os.getpid()]

        heir = HostRegistry(folder)
        heir.join()
        # The dead one's words are not taken for its heir's.
        assert [member["pid"] for member in registry.members()] == [os.getpid()]
        registry.close()
        heir.close()
        assert HostRegistry(folder).members() == []


def test_a_slot_whose_words_are_damaged_is_passed_over(folder):
    registry = HostRegistry(folder)
    registry.join()
    (folder / "0.json").write_text("{")
    assert registry.members() == []
    (folder / "0.json").write_text("[]")
    assert registry.members() == []
    registry.report({"pid": 1})
    assert json.loads((folder / "0.json").read_text()) == {"pid": 1}


def test_a_folder_deleted_beneath_is_noticed(folder):
    import shutil

    registry = HostRegistry(folder)
    registry.join()
    assert registry.is_intact()
    shutil.rmtree(folder)
    assert not registry.is_intact()
    assert not registry.has_changed()


# --- A leader that is silent. ---


def test_the_leader_gives_a_heartbeat_with_every_turn(folder):
    """Others read for how long it has given none; without a leader, or with a damaged file, that is not known."""
    registry, other = HostRegistry(folder), HostRegistry(folder)
    assert other.silent_s() == 0.0
    assert registry.lead()
    time.sleep(0.3)
    assert not other.lead()
    assert other.silent_s() >= 0.3
    begun_s = time.monotonic()
    assert registry.lead()
    assert other.silent_s() <= time.monotonic() - begun_s
    (folder / "leader.lock").write_bytes(b"x")
    assert other.silent_s() == 0.0


@contextlib.contextmanager
def no_space():
    """Files cannot grow here, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_there_is_a_leader_and_its_silence_is_seen(folder):
    registry, other = HostRegistry(folder), HostRegistry(folder)
    with no_space():
        assert registry.lead()
        assert registry.lead(), "in its next turn, too"
        assert not other.lead()
        long_ago_s = time.time() - 60
        os.utime(folder / "leader.lock", (long_ago_s, long_ago_s))
        assert other.silent_s() >= 60
    assert registry.lead()
    assert other.silent_s() < 30


# --- The clock of the limit. ---


def test_the_processes_of_a_server_share_one_clock(folder):
    """Another server of the same host has its own; a clock is there at once, and stays the same."""
    ours, other = HostRegistry(folder), HostRegistry(folder)
    clock = ours.clock("group")
    assert clock[0] == 0.0
    with child(folder, "registry.clock('group')[0] = 12.5") as process:
        assert process.stdout.readline() == "ready\n"
        assert clock[0] == 12.5
        process.stdin.close()
    assert ours.clock("group") is clock
    assert other.clock("another")[0] == 0.0


def test_clocks_of_servers_that_are_gone_are_removed_and_a_lost_one_is_made_anew(folder):
    registry = HostRegistry(folder)
    clock = registry.clock("gone")
    clock[0] = 1.0
    registry.sweep_clocks({"living"})
    assert not list(folder.glob("limit-*"))
    # Its memory is still there for those who look at it now.
    assert clock[0] == 1.0
    assert registry.clock("gone")[0] == 0.0
    registry.sweep_clocks({"gone"})
    assert len(list(folder.glob("limit-*"))) == 1
