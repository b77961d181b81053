"""The processes of other hosts on the policy's page: reported through the database, and only while the page is open."""

from __future__ import annotations

import contextlib
import datetime
import re
import sys
import time
from pathlib import Path

import pytest
import requests
from django.db.models.functions import Now
from django.test import override_settings
from django.utils import timezone

from django_otel.live_sampling import admin_history, follower, hosts, log_levels, policy_rows, wording
from django_otel.live_sampling.rows_together import RowsTogether
from django_otel.models import LogLevel, SamplingHost, SamplingPolicy, SamplingVersion
from tests import services

ADDRESS = "/admin/django_otel/samplingpolicy/status/"
WORKERS = 2


def as_from(host: str, **member: object) -> None:
    """A row as another host's elected process writes it."""
    reporter = hosts.HostReporter()
    assert reporter.report("default", host, [{"host": host, "pid": 7, "fingerprint": "", "version": 0, **member}])


@pytest.mark.django_db
def test_reports_of_other_hosts_are_read_and_those_of_this_one_are_not():
    """This host's own processes are read directly."""
    begun_s = time.time()
    as_from("here/1", pid=1)
    as_from("there/2", pid=2)
    found = hosts.members_elsewhere("default", "here/1")
    assert [(member["host"], member["pid"], member["is_here"]) for member in found] == [("there/2", 2, False)]
    assert 0 <= found[0]["reported_s_ago"] <= time.time() - begun_s + 1


@pytest.mark.django_db
def test_a_host_that_stops_reporting_is_hidden_and_later_forgotten():
    """Its clock does not matter: both moments are the database's."""
    as_from("old/1")
    SamplingHost.objects.update(told_at=timezone.now() - datetime.timedelta(seconds=40))
    assert hosts.members_elsewhere("default", "") == []
    as_from("new/1")
    assert SamplingHost.objects.count() == 2
    SamplingHost.objects.filter(pk="old/1").update(told_at=timezone.now() - datetime.timedelta(hours=2))
    as_from("newer/1")
    assert set(SamplingHost.objects.values_list("pk", flat=True)) == {"new/1", "newer/1"}


@pytest.mark.django_db
def test_nothing_is_reported_while_no_page_is_open(monkeypatch):
    """Each poll asks only whether a page is open; a page counts as open for a while."""
    now_s = [time.monotonic()]
    monkeypatch.setattr(hosts.time, "monotonic", lambda: now_s[0])
    reporter = hosts.HostReporter()
    reporter.look("default")
    assert not reporter.is_due()

    hosts.watch("default")
    assert SamplingVersion.objects.get().version == 0
    reporter.look("default")
    assert reporter.is_due()
    assert reporter.report("default", "there/1", [{"pid": 1}])
    assert not reporter.is_due()
    now_s[0] += 2
    assert reporter.is_due()
    # No news: nothing is written until it is to be said that there are none.
    assert not reporter.report("default", "there/1", [{"pid": 1}])
    now_s[0] += 2
    assert reporter.report("default", "there/1", [{"pid": 1}, {"pid": 2}])
    now_s[0] += 6
    assert reporter.report("default", "there/1", [{"pid": 1}, {"pid": 2}])

    # The page was closed.
    reporter.look("default")
    now_s[0] += 20
    assert not reporter.is_due()
    SamplingVersion.objects.update(watched_at=timezone.now() - datetime.timedelta(seconds=1))
    reporter.look("default")
    assert reporter.is_due()


@pytest.mark.django_db
def test_a_look_of_long_ago_is_not_answered_by_a_new_process():
    """It finds the moment in the row and knows that it has passed."""
    SamplingVersion.objects.create(watched_at=timezone.now() - datetime.timedelta(hours=1))
    reporter = hosts.HostReporter()
    reporter.look("default")
    assert not reporter.is_due()


ZONES = [
    (use_tz, zone)
    for use_tz in (True, False)
    for zone in ("UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago", "Asia/Kathmandu")
]


@pytest.mark.django_db
@pytest.mark.parametrize(("use_tz", "zone"), ZONES)
def test_looks_and_reports_are_compared_in_any_time_zone(use_tz, zone, django_assert_num_queries):
    """SQLite's own clock is in UTC also where Django stores local times."""
    with override_settings(USE_TZ=use_tz, TIME_ZONE=zone):
        hosts.watch("default")
        for ask in (ask_alone, ask_together):
            reporter = hosts.HostReporter()
            ask(reporter)
            assert reporter.is_due(), "a page is open now"
        with django_assert_num_queries(1):
            hosts.watch("default")
        as_from("there/1")
        assert [member["reported_s_ago"] < 10 for member in hosts.members_elsewhere("default", "")] == [True]

        for hours in (1, -1, 14, -14, 26):
            moved = Now() - datetime.timedelta(hours=hours)
            SamplingVersion.objects.update(watched_at=moved)
            SamplingHost.objects.update(told_at=moved)
            for ask in (ask_alone, ask_together):
                reporter = hosts.HostReporter()
                ask(reporter)
                assert not reporter.is_due(), hours
            assert hosts.members_elsewhere("default", "") == []
            with django_assert_num_queries(2):
                hosts.watch("default")


def ask_alone(reporter: hosts.HostReporter) -> None:
    reporter.look("default")


def ask_together(reporter: hosts.HostReporter) -> None:
    together = RowsTogether()
    together.read("default")
    assert together.is_whole
    reporter.note(together.watched_at, together.now)


@pytest.mark.django_db
@pytest.mark.parametrize(("use_tz", "zone"), ZONES)
def test_what_is_saved_now_is_of_now_whatever_zone_a_request_has_chosen(use_tz, zone):
    """The versions age, and what ends in an hour ends in an hour, also where the project activates another zone."""
    before_s = time.time()
    with override_settings(USE_TZ=use_tz, TIME_ZONE=zone), timezone.override("America/St_Johns"):
        SamplingVersion.objects.create(version=1, changed_at=timezone.now())
        assert re.search(r"saved [0-9]+ s ago", admin_history.last_change(1))
        LogLevel.objects.create(logger="a", level="DEBUG", expires_at=wording.now() + datetime.timedelta(hours=1))
        [level] = log_levels.read_levels("default").levels
        assert before_s + 3599 <= level.expires_at_s <= time.time() + 3600
        SamplingPolicy(ratio=0.5, expires_at=wording.now() + datetime.timedelta(hours=1)).save()
        policy = policy_rows.read_policy("default")
        assert policy is not None and policy.expires_at_s is not None
        assert before_s + 3599 <= policy.expires_at_s <= time.time() + 3600
        assert not SamplingPolicy.objects.filter(expires_at__lte=timezone.now()).exists()


@pytest.mark.django_db
def test_a_page_does_not_write_at_every_question(django_assert_num_queries):
    """It says that it is open every few seconds."""
    hosts.watch("default")
    with django_assert_num_queries(1):
        hosts.watch("default")
    SamplingVersion.objects.update(watched_at=timezone.now() - datetime.timedelta(seconds=6))
    with django_assert_num_queries(2):
        hosts.watch("default")


@pytest.mark.django_db
def test_a_damaged_row_does_not_break_the_page():
    """There are no others to show then."""
    SamplingHost.objects.create(name="bad/1", members="{", told_at=timezone.now())
    assert follower.processes_elsewhere() == []


def test_names_tell_two_servers_of_one_host_apart(tmp_path):
    """That share no folder, so do not see each other there."""
    assert hosts.name_of(tmp_path / "a") != hosts.name_of(tmp_path / "b")
    assert len(hosts.name_of(tmp_path / ("x" * 500))) <= 250


# --- Two hosts, as far as one machine can have them: two servers that share the database and nothing else. ---


@contextlib.contextmanager
def host(database: dict[str, str], folder: Path):
    """A server with a folder of its own."""
    folder.mkdir(mode=0o700)
    otel = {
        "SERVICE_NAME": "hosts",
        "SAMPLING": {"RATIO": 1.0, "REFRESH_S": 1.0},
        "METRICS": {"SHARED_DIR": str(folder)},
    }
    env = services.server_env(otel, DJANGO_SETTINGS_MODULE="tests.settings", **database)
    port = services.free_port()
    command = [
        sys.executable, "-m", "gunicorn", "tests.policy_site:application", "--bind", f"127.0.0.1:{port}",
        "--workers", str(WORKERS), "--graceful-timeout", "5",
    ]  # fmt: skip
    with services.running(command, env, folder / "log") as process:
        services.wait_until(lambda: services.is_listening(port) or process.poll() is not None, 30, "gunicorn")
        assert process.poll() is None, (folder / "log").read_text()
        url = f"http://127.0.0.1:{port}"

        def serve_by_all() -> bool:
            # A process is known from its first request on, and the first worker to be there may take all of them.
            requests.get(f"{url}/hello/", headers={"Connection": "close"}, timeout=60)
            return len(list(folder.glob("django-otel-*-policy/*/[0-9]*.json"))) >= WORKERS

        services.wait_until(serve_by_all, 60, "every worker's first request")
        yield url


def signed_in(url: str) -> requests.Session:
    session = requests.Session()
    page = session.get(f"{url}/admin/login/", timeout=60).text
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
    assert token
    session.post(
        f"{url}/admin/login/", timeout=60,
        data={"username": "ada", "password": "ada", "csrfmiddlewaretoken": token.group(1)},
    )  # fmt: skip
    return session


@pytest.mark.long
def test_the_page_shows_every_process_of_every_host_as_it_turns(postgres_database, tmp_path):
    """Two servers on one PostgreSQL; one shows the processes of both, and both turn to what is saved."""
    database = {"TEST_DATABASE_URL": postgres_database}
    env = services.server_env({}, DJANGO_SETTINGS_MODULE="tests.settings", **database)

    def run(code: str) -> None:
        services.run_python(f"import django; django.setup()\n{code}", env)

    services.migrate_database(env)
    run("from django.contrib.auth.models import User\nUser.objects.create_superuser('ada', password='ada')")
    with host(database, tmp_path / "a") as first, host(database, tmp_path / "b") as second:
        session = signed_in(first)

        def status() -> dict:
            return session.get(f"{first}{ADDRESS}", timeout=60).json()

        services.wait_until(lambda: len(status()["processes"]) == 2 * WORKERS, 60, "the processes of both hosts")
        found = status()
        assert sum(process["reported_s_ago"] > 0 for process in found["processes"]) == WORKERS
        assert found["is_settled"]

        run("from django_otel.models import SamplingPolicy; SamplingPolicy(ratio=0.25).save()")

        def have_all_turned() -> bool:
            now = status()
            return now["summary"] == f"All {2 * WORKERS} processes apply version {now['version']}."

        services.wait_until(have_all_turned, 60, "both hosts to turn")
        assert {process["version"] for process in status()["processes"]} == {status()["version"]}
        # And the other way round.
        other = signed_in(second)
        services.wait_until(
            lambda: len(other.get(f"{second}{ADDRESS}", timeout=60).json()["processes"]) == 2 * WORKERS, 60, "both"
        )
