"""The policy's way from its row to the sampler of this process, with everything that can go wrong on it."""

from __future__ import annotations

import datetime
import json
import logging
import resource
import threading
import time

import pytest
from django.db import IntegrityError, connection, connections, transaction
from django.test import override_settings
from django.utils import timezone

from django_otel import runtime
from django_otel.live_sampling import conditions, follower, policy_rows
from django_otel.models import SamplingPolicy
from django_otel.multiprocess.host_registry import HostRegistry, registry_folder
from django_otel.sampling.policy import Policy
from tests.services import close_for_good, free_port

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("fresh_policy"),
]


@pytest.fixture
def sampler():
    return runtime.current().sampler


def in_thread(function):
    """The function's result, from a thread of its own, as the poll has: with its own database connections."""
    results = []

    def work():
        try:
            results.append(function())
        finally:
            for opened in connections.all(initialized_only=True):
                close_for_good(opened)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert len(results) == 1, "the thread did not come to its end"
    return results[0]


def poll() -> float:
    """One turn of the background thread; gives the pause it asks for, in seconds."""
    return in_thread(lambda: follower.follower().poll())


class PolicyInOther:
    """A database router that keeps the policy in the alias "other"."""

    def db_for_write(self, model, **hints):
        return "other" if model is SamplingPolicy else None

    db_for_read = db_for_write


@pytest.fixture
def policy_in():
    """Routes the policy to the alias "other", and that alias, for connections made from now on, to another database."""
    unchanged = connections.settings["other"]
    routed = override_settings(DATABASE_ROUTERS=[PolicyInOther()])

    def change(**changes):
        connections.settings["other"] = {**unchanged, **changes}
        routed.enable()

    yield change
    routed.disable()
    connections.settings["other"] = unchanged


# --- Saving in this process. ---


def test_a_save_is_in_force_at_once(sampler):
    """create(), save() and a further save() each take effect when they return, without a poll."""
    policy = SamplingPolicy.objects.create(ratio=0.25, note="incident 7")
    assert (sampler.policy.ratio, sampler.policy.source, sampler.policy.note) == (0.25, "admin", "incident 7")

    policy.ratio = 0.5
    policy.save()
    assert sampler.ratio_now() == 0.5

    SamplingPolicy(ratio=0.75).save()
    assert sampler.ratio_now() == 0.75
    assert SamplingPolicy.objects.count() == 1


def test_each_save_takes_the_next_version(sampler):
    """Also one that names its fields, and one of an instance that was loaded before another save."""
    first = SamplingPolicy.objects.create(ratio=0.1)
    stale = SamplingPolicy.objects.get()
    first.save()
    stale.ratio = 0.3
    stale.save(update_fields=["ratio"])

    assert stale.version == 3
    assert SamplingPolicy.objects.get().version == 3
    assert (sampler.policy.version, sampler.policy.ratio) == (3, 0.3)


def test_a_save_is_in_force_when_its_transaction_commits_and_not_before(sampler):
    """The uncommitted policy of an open transaction decides nothing."""
    with transaction.atomic():
        SamplingPolicy(ratio=0.25).save()
        assert sampler.policy.source == sampler.base.source
    assert sampler.ratio_now() == 0.25


def test_a_rolled_back_save_changes_nothing(sampler):
    """Neither a first policy nor a change of one."""
    with pytest.raises(RuntimeError), transaction.atomic():
        SamplingPolicy(ratio=0.25).save()
        raise RuntimeError
    assert sampler.policy.source == sampler.base.source

    SamplingPolicy(ratio=0.5).save()
    with pytest.raises(RuntimeError), transaction.atomic():
        SamplingPolicy(ratio=0.25).save()
        raise RuntimeError
    assert (sampler.ratio_now(), sampler.policy.version) == (0.5, 1)


def test_a_save_in_a_rolled_back_inner_block_changes_nothing(sampler):
    """The outer transaction commits all the same."""
    with transaction.atomic():
        with pytest.raises(RuntimeError), transaction.atomic():
            SamplingPolicy(ratio=0.25).save()
            raise RuntimeError
    assert sampler.policy.source == sampler.base.source


def test_a_manual_savepoint_that_is_rolled_back_changes_nothing(sampler):
    """Django runs the commit hook then, although the row is as it was; what counts is the row."""
    SamplingPolicy(ratio=0.5).save()
    with transaction.atomic():
        # Its name before Django 6.1.
        create = getattr(transaction, "savepoint_create", None) or transaction.savepoint
        savepoint = create()
        SamplingPolicy(ratio=0.25).save()
        transaction.savepoint_rollback(savepoint)
    assert sampler.ratio_now() == 0.5


def test_a_save_with_transactions_managed_by_hand_is_seen_by_the_next_poll(sampler):
    """Django has no commit hook there, and asking for one must not break the save."""
    transaction.set_autocommit(False)
    try:
        policy = SamplingPolicy(ratio=0.25)
        policy.save()
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    poll()
    assert sampler.ratio_now() == 0.25


@pytest.mark.parametrize("delete", [lambda: SamplingPolicy.objects.get().delete(), SamplingPolicy.objects.all().delete])
def test_deleting_the_row_goes_back_to_the_settings(sampler, delete):
    """Through the instance and through a queryset."""
    SamplingPolicy(ratio=0.25).save()
    assert sampler.ratio_now() == 0.25
    delete()
    assert sampler.policy.source == sampler.base.source


def test_a_fixture_counts_as_a_change(sampler, tmp_path):
    """loaddata does not call Model.save()."""
    from django.core.management import call_command

    fields = {"enabled": True, "ratio": 0.125, "version": 9, "updated_at": "2026-01-01T00:00:00Z"}
    path = tmp_path / "policy.json"
    path.write_text(json.dumps([{"model": "django_otel.samplingpolicy", "pk": 1, "fields": fields}]))
    call_command("loaddata", str(path), verbosity=0)

    assert (sampler.ratio_now(), sampler.policy.version) == (0.125, 9)


def test_a_policy_that_is_not_enabled_is_ignored(sampler):
    """The settings apply, tracing goes on."""
    SamplingPolicy(ratio=0.25).save()
    SamplingPolicy(ratio=0.25, enabled=False).save()
    assert sampler.policy.source == sampler.base.source


def test_a_policy_ends_by_the_clock_without_a_poll(sampler, pass_time):
    """And the status says since when."""
    ends_at = timezone.now() + datetime.timedelta(hours=1)
    SamplingPolicy(ratio=0.25, expires_at=ends_at).save()
    assert sampler.ratio_now() == 0.25
    pass_time(3601)
    assert sampler.policy.source == sampler.base.source
    status = follower.status()
    assert status["expired"] is True
    assert status["since_s"] == pytest.approx(ends_at.timestamp(), abs=0.001)


def test_a_time_without_zone_is_local_time(sampler):
    """With USE_TZ = False Django stores and gives naive local times."""
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo"):
        in_an_hour = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
        SamplingPolicy(ratio=0.25, expires_at=timezone.make_naive(in_an_hour)).save()
    assert sampler.policy.expires_at_s == pytest.approx(in_an_hour.timestamp(), abs=0.001)


def test_a_second_row_is_refused_by_the_database():
    """create() twice, another id, and a bulk insert."""
    SamplingPolicy.objects.create(ratio=0.25)
    for make in (
        lambda: SamplingPolicy.objects.create(ratio=0.5),
        lambda: SamplingPolicy(pk=2, ratio=0.5).save(),
        lambda: SamplingPolicy.objects.bulk_create([SamplingPolicy(pk=3, ratio=0.5)]),
    ):
        with pytest.raises(IntegrityError), transaction.atomic():
            make()
    assert SamplingPolicy.objects.get().ratio == 0.25


@pytest.mark.parametrize("ratio", [-0.1, 1.1, 25.0, float("nan"), float("inf")])
def test_a_ratio_outside_0_to_1_is_refused_by_the_database(sampler, ratio):
    """Also through QuerySet.update, which validates nothing."""
    with pytest.raises(IntegrityError), transaction.atomic():
        SamplingPolicy(ratio=ratio).save()
    SamplingPolicy(ratio=0.5).save()
    with pytest.raises(IntegrityError), transaction.atomic():
        SamplingPolicy.objects.update(ratio=ratio)
    assert sampler.ratio_now() == 0.5


# --- What the poll sees. ---


def test_a_poll_sees_what_sent_no_signal(sampler):
    """QuerySet.update and another process's save are the same to it."""
    SamplingPolicy(ratio=0.25).save()
    SamplingPolicy.objects.update(ratio=0.5)
    assert sampler.ratio_now() == 0.25
    pause_s = poll()
    assert sampler.ratio_now() == 0.5
    assert 0.5 * 5 <= pause_s <= 5


def test_without_a_row_the_settings_hold(sampler):
    """And nothing is wrong with that."""
    poll()
    assert sampler.policy.source == sampler.base.source
    assert follower.status()["error"] == ""


def test_a_poll_neither_counts_nor_traces_itself(otel_spans, otel_metrics, sampler):
    """Its query must not show among those of the application, which do."""
    SamplingPolicy.objects.bulk_create([SamplingPolicy(pk=1, ratio=1.0, version=1)])
    in_thread(SamplingPolicy.objects.count)
    before = (len(otel_spans), _operations_counted())
    poll()

    assert sampler.policy.version == 1
    assert before[1] > 0
    assert (len(otel_spans), _operations_counted()) == before


def _operations_counted() -> float:
    found = [family for family in runtime.collect() if family.name == "db.client.operation.duration"]
    return sum(sum(point.value.buckets) for family in found for point in family.points)


def test_a_poll_closes_its_connection(policy_in, tmp_path):
    """Idle workers must not hold connections, and with DEBUG the texts of its queries must not pile up."""
    from django.core.management import call_command

    policy_in(NAME=str(tmp_path / "policy.sqlite3"))

    def turn():
        call_command("migrate", "django_otel", database="other", verbosity=0)
        with override_settings(DEBUG=True):
            follower.follower().poll()
        return connections["other"].connection, len(connections["other"].queries_log)

    assert in_thread(turn) == (None, 0)
    assert follower.status()["read_at_s"] is not None


def test_of_two_readings_that_overlap_the_one_that_began_later_wins(sampler, monkeypatch):
    """A poll that has read the old row and is slow to apply it must not undo a save."""
    SamplingPolicy(ratio=0.25).save()
    has_read, may_apply = threading.Event(), threading.Event()
    read = policy_rows.read_policy

    def slow(*given):
        policy = read(*given)
        if threading.current_thread().name == "slow poll":
            for opened in connections.all(initialized_only=True):
                close_for_good(opened)
            has_read.set()
            may_apply.wait(60)
        return policy

    monkeypatch.setattr(policy_rows, "read_policy", slow)
    thread = threading.Thread(target=follower.follower().poll, name="slow poll")
    thread.start()
    assert has_read.wait(60)
    SamplingPolicy(ratio=0.75).save()
    may_apply.set()
    thread.join()

    assert sampler.ratio_now() == 0.75


def test_while_the_database_is_down_the_last_policy_stays(sampler, policy_in, caplog):
    """It is said once, the pauses grow to a limit, and recovery is noticed."""
    SamplingPolicy(ratio=0.25).save()
    policy_in(ENGINE="django.db.backends.postgresql", NAME="x", HOST="127.0.0.1", PORT=str(free_port()), USER="x")
    with caplog.at_level(logging.INFO, logger="django_otel"):
        pauses = [poll() for _ in range(5)]

    assert sampler.ratio_now() == 0.25
    assert pauses == [5.0, 10.0, 20.0, 30.0, 30.0]
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "OperationalError" in warnings[0].getMessage()
    assert "the current policy stays in effect" in follower.status()["error"]

    caplog.clear()
    with override_settings(DATABASE_ROUTERS=[]), caplog.at_level(logging.INFO, logger="django_otel"):
        assert poll() <= 5.0
    assert follower.status()["error"] == ""
    assert "can be read again" in caplog.text


def test_a_process_that_cannot_share_what_it_has_read_lets_the_next_one_ask(sampler, tmp_path):
    """On a full disk the others would wait for it for ever."""
    asking = follower.Follower()
    asking.registry = HostRegistry(registry_folder("db", [tmp_path]))
    SamplingPolicy.objects.create(ratio=0.25)
    assert asking.registry.lead()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        assert asking.read_and_apply("default")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sampler.ratio_now() == 0.25
    assert not asking.registry.is_leading
    assert asking.registry.lead()
    assert asking.read_and_apply("default")
    assert asking.registry.is_leading
    asking.registry.close()


def test_without_its_table_the_settings_hold_with_one_warning(sampler, policy_in, caplog):
    """The message names the command to run; no attempt later says it again."""
    SamplingPolicy(ratio=0.25).save()
    policy_in(NAME=":memory:")
    with caplog.at_level(logging.WARNING, logger="django_otel"):
        for _ in range(3):
            poll()

    assert sampler.policy.source == sampler.base.source
    assert [record.getMessage() for record in caplog.records] == [
        (
            'django_otel: The table of the sampling policy is missing in database "other"; the settings apply. '
            "Run: manage.py migrate django_otel --database other"
        )
    ]
    assert in_thread(follower.table_problem) == follower.status()["error"]


def test_table_problem_says_nothing_when_the_table_is_there_or_nobody_can_tell(policy_in):
    """A database that is down is another check's business."""
    assert follower.table_problem() is None
    policy_in(ENGINE="django.db.backends.postgresql", NAME="x", HOST="127.0.0.1", PORT=str(free_port()))
    assert in_thread(follower.table_problem) is None


@pytest.mark.parametrize(
    ("column", "value"), [("ratio", 7.0), ("ratio", "much"), ("expires_at", "2026-99-99 00:00:00")]
)
def test_a_row_that_makes_no_sense_is_ignored_with_a_warning(sampler, caplog, column, value):
    """Written past Django and past the constraints; a good save puts it right."""
    if connection.vendor != "sqlite":
        pytest.skip("only SQLite lets such a value in")
    SamplingPolicy(ratio=0.25).save()
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA ignore_check_constraints = ON")
        try:
            cursor.execute(f"UPDATE django_otel_samplingpolicy SET {column} = %s", [value])
        finally:
            cursor.execute("PRAGMA ignore_check_constraints = OFF")
    with caplog.at_level(logging.WARNING, logger="django_otel"):
        poll()
        poll()

    assert sampler.policy.source == sampler.base.source
    assert len(caplog.records) == 1
    assert "is ignored" in caplog.records[0].getMessage()

    SamplingPolicy(ratio=0.5).save()
    assert sampler.ratio_now() == 0.5
    assert follower.status()["error"] == ""


# --- Where nothing is followed. ---


def test_under_a_test_runner_there_is_no_thread():
    """A connection of a thread of ours would keep PostgreSQL from dropping the test database."""
    follower.ensure_started()
    assert follower.status()["following"] is False
    assert not [thread for thread in threading.enumerate() if thread.name == "django_otel-sampling-policy"]


def test_with_live_false_a_save_has_no_effect(sampler):
    """Nor does a poll that is under way, and the policy that was in force is given back."""
    SamplingPolicy(ratio=0.25).save()
    with override_settings(OTEL={"SERVICE_NAME": "tests", "SAMPLING": {"LIVE": False, "RATIO": 0.5}}):
        assert sampler.ratio_now() == 0.5
        SamplingPolicy(ratio=0.75).save()
        follower.follower().read_and_apply("default")
        assert sampler.ratio_now() == 0.5
        assert follower.status()["live"] is False
        assert conditions.reason_not_to_run()
        assert follower.table_problem() is None
    poll()
    assert sampler.ratio_now() == 0.75


def test_the_admin_stands_above_the_environment(sampler, monkeypatch):
    """Precedence: the admin, the environment, settings, the default."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.125")
    with override_settings(OTEL={"SERVICE_NAME": "tests", "SAMPLING": {"RATIO": 0.5}}):
        assert (sampler.ratio_now(), sampler.policy.source) == (0.125, "environment")
        policy = SamplingPolicy.objects.create(ratio=0.75)
        assert sampler.ratio_now() == 0.75
        assert follower.status()["base_source"] == "environment OTEL_TRACES_SAMPLER_ARG"
        policy.delete()
        assert sampler.ratio_now() == 0.125
        # Before the settings are read again.
        monkeypatch.undo()


# --- What it costs a request. ---


def test_a_request_runs_no_query_for_the_policy(client, sampler, otel_spans):
    """With a policy in force, one that has run out and none, 20 requests each: not one statement on any alias."""
    statements = []

    def count(execute, sql, params, many, context):
        statements.append(sql)
        return execute(sql, params, many, context)

    def twenty_requests():
        with connections["default"].execute_wrapper(count), connections["other"].execute_wrapper(count):
            for _ in range(20):
                assert client.get("/hello/").status_code == 200

    twenty_requests()
    SamplingPolicy(ratio=0.0).save()
    otel_spans.clear()
    twenty_requests()
    assert list(otel_spans) == []
    SamplingPolicy(ratio=1.0, expires_at=timezone.now() + datetime.timedelta(seconds=0.05)).save()
    time.sleep(0.1)
    twenty_requests()
    assert statements == []
    assert len(otel_spans) >= 20


def test_the_gauge_shows_the_ratio_in_force(otel_metrics):
    """At once after a save, and the settings' again after a delete."""
    policy = SamplingPolicy.objects.create(ratio=0.25)
    assert otel_metrics.value("django_otel.sampling.ratio") == 0.25
    policy.delete()
    assert otel_metrics.value("django_otel.sampling.ratio") == 1.0


def test_the_status_tells_what_is_in_force_and_why():
    """For the admin page and the command line."""
    begun_s = time.time()
    SamplingPolicy(ratio=0.25, note="why").save()
    status = follower.status()

    assert {key: status[key] for key in ("enabled", "live", "ratio", "source", "version", "note", "error")} == {
        "enabled": True,
        "live": True,
        "ratio": 0.25,
        "source": "admin",
        "version": 1,
        "note": "why",
        "error": "",
    }
    assert begun_s <= status["since_s"] <= time.time()
    assert status["base_ratio"] == 1.0
    assert status["refresh_s"] == 5.0
    assert runtime.current().sampler.live == Policy(0.25, "admin", 1, None, "why", keep_errors=False)
