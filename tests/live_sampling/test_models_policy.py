"""The tables of the policy: what they refuse, how their version grows, how they are made from the first ones."""

from __future__ import annotations

import datetime
import os
import threading

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import Error, IntegrityError, connection, connections, transaction
from django.test import Client, override_settings
from django.utils import timezone

from django_otel import models, runtime
from django_otel.live_sampling import follower
from django_otel.models import SamplingPolicy, SamplingRule, SamplingVersion, read_state
from django_otel.sampling import policy

pytestmark = pytest.mark.django_db(transaction=True)

POLICY = "django_otel_samplingpolicy"
RULE = "django_otel_samplingrule"
ON_POSTGRESQL = "TEST_DATABASE_URL" in os.environ


@pytest.fixture(autouse=True)
def _settings_policy():
    """What is saved here is also put in force; not for the next test."""
    yield
    follower._followers.clear()
    runtime.current().sampler.swap(None)


def insert(table: str, **values: object) -> None:
    """A row inserted in a database shell, past every check in Python."""
    now = timezone.now().replace(tzinfo=None) if not ON_POSTGRESQL else timezone.now()
    whole = {
        POLICY: {
            "id": 1, "enabled": True, "ratio": 0.5, "max_per_second": None, "keep_errors": False, "keep_slow_s": None,
            "expires_at": None, "note": "", "version": 1, "updated_at": now,
        },
        RULE: {
            "policy_id": 1, "path": "/checkout/*", "route": "", "method": "", "ratio": 1.0, "priority": 0,
            "expires_at": None, "note": "",
        },
        "django_otel_samplingversion": {"id": 1, "version": 0, "changed_at": None},
    }[table] | values  # fmt: skip
    names = ", ".join(whole)
    places = ", ".join("%s" for _ in whole)
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", list(whole.values()))


@pytest.mark.parametrize(
    ("table", "values"),
    [
        (POLICY, {}),
        (POLICY, {"ratio": 0.0, "max_per_second": 0.5, "keep_slow_s": 0.001, "keep_errors": True}),
        (POLICY, {"ratio": 1.0, "max_per_second": 1_000_000.0, "keep_slow_s": 86_400.0}),
        (RULE, {}),
        (RULE, {"path": "", "route": "/orders/<int:pk>/", "method": "POST", "ratio": 0.0, "priority": -5}),
    ],
)
def test_the_database_takes_what_makes_sense(table, values):
    """Or the test of what it refuses would pass with any typing error."""
    insert(table, **values)


@pytest.mark.parametrize(
    ("table", "values"),
    [
        (POLICY, {"id": 2}),
        (POLICY, {"id": 0}),
        (POLICY, {"ratio": -0.01}),
        (POLICY, {"ratio": 1.01}),
        (POLICY, {"ratio": float("nan")}),
        (POLICY, {"ratio": float("inf")}),
        (POLICY, {"ratio": None}),
        (POLICY, {"max_per_second": 0.0}),
        (POLICY, {"max_per_second": -1.0}),
        (POLICY, {"max_per_second": float("inf")}),
        (POLICY, {"keep_slow_s": 0.0}),
        (POLICY, {"keep_slow_s": -2.0}),
        (POLICY, {"keep_slow_s": float("inf")}),
        (RULE, {"policy_id": 2}),
        (RULE, {"path": "", "route": ""}),
        (RULE, {"path": "/a", "route": "/a"}),
        (RULE, {"ratio": -0.01}),
        (RULE, {"ratio": 1.01}),
        (RULE, {"ratio": float("nan")}),
        (RULE, {"method": "get"}),
        (RULE, {"method": "BREW"}),
        ("django_otel_samplingversion", {"id": 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items()),
)
def test_the_database_itself_refuses_what_makes_no_sense(table, values):
    """Raw SQL cannot bring it in either."""
    with pytest.raises(IntegrityError), transaction.atomic():
        insert(table, **values)


@pytest.mark.skipif(not ON_POSTGRESQL, reason="SQLite stores NULL for what is not a number")
@pytest.mark.parametrize("column", ["max_per_second", "keep_slow_s"])
def test_postgresql_refuses_what_is_not_a_number(column):
    """There it is greater than every number, so a lower bound alone would let it pass."""
    with pytest.raises(IntegrityError), transaction.atomic():
        insert(POLICY, **{column: float("nan")})


# --- Validation in Python. ---


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ratio": 25}, "For 25 % write 0.25"),
        ({"ratio": float("nan")}, "expected a number from 0.0 to 1.0"),
        ({"max_per_second": 0}, "To record nothing, set the ratio to 0."),
        ({"max_per_second": float("nan")}, "expected a number above 0"),
        ({"keep_slow_s": 0}, "To record everything, set the ratio to 1."),
        ({"keep_slow_s": float("inf")}, "expected seconds above 0"),
        ({"note": "x" * 201}, "at most 200 characters"),
    ],
)
def test_the_policy_says_what_fits(values, message):
    """full_clean() names what was found and what fits."""
    with pytest.raises(ValidationError, match=message.replace(".", r"\.")):
        SamplingPolicy(**{"ratio": 0.5, **values}).full_clean()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": "/a", "route": "/a"}, "Name either a path or a route, not both."),
        ({"path": ""}, "Name either a path or a route, not both."),
        ({"path": "checkout/*"}, '\'checkout/*\' matches nothing: start it with "/" or "*".'),
        ({"path": "/" + "a" * 200}, "at most 200 characters"),
        ({"method": "BREW"}, "'BREW' is not a valid choice"),
        ({"ratio": 100}, "For 100 % write 1."),
        ({"ratio": None}, "cannot be null"),
    ],
)
def test_a_rule_says_what_fits(values, message):
    """full_clean() names what was found and what fits."""
    with pytest.raises(ValidationError) as found:
        SamplingRule(**{"path": "/a", "ratio": 0.5, **values}).full_clean()
    assert message in " ".join(found.value.messages)


@pytest.mark.parametrize("pattern", ["/checkout/*", "*/export/", "/?", "[/]a"])
def test_a_pattern_may_begin_with_a_wildcard(pattern):
    """It can match, then."""
    SamplingRule(path=pattern, ratio=0.5).full_clean()


def test_all_but_the_ratio_have_defaults():
    """A policy is made with the ratio alone."""
    policy = SamplingPolicy.objects.create(ratio=0.25)
    assert (policy.enabled, policy.max_per_second, policy.keep_errors, policy.keep_slow_s) == (True, None, False, None)
    assert (policy.expires_at, policy.note) == (None, "")
    with pytest.raises(ValidationError, match="cannot be null"):
        SamplingPolicy().full_clean()


def test_a_rule_is_kept_as_it_is_compared():
    """The method in capitals, the route with its slash although a URLconf has none."""
    rule = SamplingRule.objects.create(route=" orders/<int:pk>/", method="post", ratio=1)
    assert (rule.route, rule.method) == ("/orders/<int:pk>/", "POST")
    SamplingRule(route="orders/", method="get", ratio=1).full_clean()


def test_what_the_rows_can_say_the_engine_can_apply():
    """Methods, lengths and patterns are the same on both sides."""
    assert SamplingRule._meta.get_field("path").max_length == policy.MAX_PATTERN
    for values in ({"path": "/a*"}, {"route": "orders/"}, {"path": "[/]a", "method": "get"}):
        rule = SamplingRule(ratio=0.5, **values)
        rule.full_clean()
        applied = policy.Rule(ratio=0.5, **values)
        assert (rule.path, rule.route, rule.method) == (applied.path, applied.route, applied.method)


def test_a_new_policy_keeps_errors_when_the_settings_do():
    """So that turning the ratio down does not lose them; the settings may also be faulty."""
    assert SamplingPolicy(ratio=0.5).keep_errors is False
    with override_settings(OTEL={"SERVICE_NAME": "tests", "SAMPLING": {"KEEP_ERRORS": True}}):
        assert SamplingPolicy(ratio=0.5).keep_errors is True
        call_command("makemigrations", "django_otel", check=True, dry_run=True, verbosity=0)
    with override_settings(OTEL={"SERVICE_NAME": "tests", "NONSENSE": 1}):
        assert SamplingPolicy(ratio=0.5).keep_errors is False


# --- The version. ---


def version() -> int:
    return SamplingVersion.objects.get().version


def test_every_save_and_every_deletion_of_either_makes_the_version_grow():
    """The policy carries the same number; it goes on after a deletion, so that no number means two things."""
    policy = SamplingPolicy.objects.create(ratio=0.5)
    assert (policy.version, version()) == (1, 1)

    rule = SamplingRule.objects.create(path="/a", ratio=1)
    policy.refresh_from_db()
    assert (policy.version, version()) == (2, 2)
    rule.ratio = 0.5
    rule.save(update_fields=["ratio"])
    assert version() == 3
    rule.delete()
    policy.refresh_from_db()
    assert (policy.version, version()) == (4, 4)

    SamplingRule.objects.create(path="/a", ratio=1)
    SamplingRule.objects.all().delete()
    assert version() == 6
    policy.delete()
    assert version() == 7
    assert SamplingPolicy.objects.create(ratio=0.5).version == 8


def test_what_is_saved_together_is_one_change():
    """A form with a policy and three rules makes one version of them."""
    with models.single_change("default"):
        policy = SamplingPolicy.objects.create(ratio=0.5)
        for path in "/a", "/b", "/c":
            SamplingRule.objects.create(path=path, ratio=1)
    policy.refresh_from_db()
    assert (policy.version, version()) == (1, 1)


def test_a_change_that_is_rolled_back_leaves_the_version():
    """Also one inside a transaction that goes on."""
    SamplingPolicy.objects.create(ratio=0.5)
    with transaction.atomic():
        with pytest.raises(RuntimeError), transaction.atomic():
            SamplingRule.objects.create(path="/a", ratio=1)
            raise RuntimeError
        assert version() == 1
    assert (version(), SamplingRule.objects.count()) == (1, 0)
    SamplingRule.objects.create(path="/a", ratio=1)
    assert version() == 2


def test_a_row_that_came_in_otherwise_does_not_turn_the_version_back():
    """As by bulk_create, a fixture or a restored backup."""
    SamplingPolicy.objects.bulk_create([SamplingPolicy(pk=1, ratio=0.5, version=41)])
    assert read_state("default").version == 41
    SamplingRule.objects.create(path="/a", ratio=1)
    assert read_state("default").version == 42


def test_deleting_the_policy_deletes_its_rules():
    """Back to the settings, whole."""
    SamplingPolicy.objects.create(ratio=0.5)
    SamplingRule.objects.create(path="/a", ratio=1)
    SamplingPolicy.objects.all().delete()
    assert read_state("default").rules == ()


def test_a_rule_may_stand_without_a_policy():
    """It then applies over the ratio of the settings; a later policy takes it over."""
    rule = SamplingRule.objects.create(path="/a", ratio=1)
    assert version() == 1
    assert list(SamplingPolicy.objects.create(ratio=0.5).rules.all()) == [rule]


@pytest.mark.parametrize("kind", ["rule", "policy"])
def test_changes_at_the_same_moment_take_different_versions(kind):
    """Eight threads, ten saves each: no version is taken twice, none is lost, no save fails."""
    if not ON_POSTGRESQL:
        pytest.skip("the test database of SQLite lies in memory and has no second connection")
    SamplingPolicy.objects.create(ratio=0.5)
    faults: list[BaseException] = []
    begin = threading.Barrier(8)

    def change() -> None:
        try:
            begin.wait(60)
            for _ in range(10):
                if kind == "rule":
                    SamplingRule.objects.create(path="/a", ratio=1).delete()
                else:
                    SamplingPolicy(ratio=0.5).save()
        except BaseException as fault:
            faults.append(fault)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=change) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []
    assert version() == 1 + 8 * 10 * (2 if kind == "rule" else 1)
    assert SamplingPolicy.objects.get().version == version()


@pytest.mark.skipif(not ON_POSTGRESQL, reason="the test database of SQLite lies in memory and has no second connection")
@pytest.mark.parametrize("is_new", [True, False], ids=["a first policy", "a change"])
def test_of_forms_sent_at_the_same_moment_one_is_saved_and_the_others_are_told(is_new):
    """Six admins who have all seen the same version; nothing is mixed, none gets an error page."""
    url = "/admin/django_otel/samplingpolicy/"
    if not is_new:
        SamplingPolicy.objects.create(ratio=0.5)
    seen = str(models.current_version("default"))
    user = User.objects.create_superuser("op")
    clients = [Client() for _ in range(6)]
    for client in clients:
        client.force_login(user)
    begin = threading.Barrier(len(clients))
    answers: dict[int, object] = {}

    def send(number: int) -> None:
        try:
            begin.wait(20)
            data = {
                "enabled": "on", "ratio": f"0.{number}", "expires_at_0": "", "expires_at_1": "", "note": f"no {number}",
                "seen_version": seen, "rules-TOTAL_FORMS": "1", "rules-INITIAL_FORMS": "0",
                "rules-0-path": f"/{number}/*", "rules-0-ratio": f"0.{number}", "rules-0-priority": "0",
                "rules-0-lasts": "open",
            }  # fmt: skip
            answers[number] = clients[number].post(url + ("add/" if is_new else "1/change/"), data)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=send, args=(number,)) for number in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    policy, rule = SamplingPolicy.objects.get(), SamplingRule.objects.get()
    winner = int(policy.note.removeprefix("no "))
    assert (policy.ratio, rule.path, rule.ratio) == (float(f"0.{winner}"), f"/{winner}/*", float(f"0.{winner}"))
    assert policy.version == version() == int(seen) + 1
    assert len(answers) == len(clients)
    for number, answer in answers.items():
        if number == winner:
            assert (answer.status_code, answer["Location"]) == (302, url)
        elif answer.status_code == 302:
            # It saw the row only when it came to be made.
            assert answer["Location"] == f"{url}1/change/"
        else:
            assert "Not saved" in answer.content.decode()
    assert LogEntry.objects.count() == 1


# --- What all rows say together. ---


def test_the_state_has_the_rules_in_the_order_they_are_asked():
    """The highest priority first; of equal ones the newest, so that what was added last has its effect."""
    now = timezone.now()
    SamplingPolicy.objects.create(ratio=0.25, max_per_second=5, keep_errors=True, keep_slow_s=2, note="why")
    for path, priority in (("/old", 0), ("/new", 0), ("/high", 10), ("/low", -1)):
        SamplingRule.objects.create(path=path, ratio=1, priority=priority, expires_at=now)
    state = read_state("default")
    assert [rule.path for rule in state.rules] == ["/high", "/new", "/old", "/low"]
    assert state.rules[0].expires_at == now
    assert state.policy == models.PolicyRow(True, 0.25, 5.0, True, 2.0, None, "why")
    assert state.version == 5


def test_without_rows_the_state_is_empty():
    """And its version is 0."""
    assert read_state("default") == models.SamplingState(0, None, ())


def test_a_change_between_two_queries_does_not_mix_two_states(monkeypatch):
    """The policy of one version never comes with the rules of another."""
    SamplingPolicy.objects.create(ratio=0.1)
    SamplingRule.objects.create(path="/before", ratio=0.1)
    manager = type(SamplingRule._base_manager)
    using, done = manager.using, []

    def change_first(self, alias):
        if self.model is SamplingRule and not done:
            done.append(True)
            with models.single_change("default"):
                SamplingPolicy(ratio=0.9).save()
                SamplingRule.objects.all().delete()
                SamplingRule.objects.create(path="/after", ratio=0.9)
        return using(self, alias)

    monkeypatch.setattr(manager, "using", change_first)
    state = read_state("default")
    assert done
    assert state.policy is not None
    assert (state.policy.ratio, [rule.path for rule in state.rules], state.version) == (0.9, ["/after"], 3)


# --- The migration. ---


@pytest.fixture
def first_tables():
    """The tables as the first version of the app made them; afterwards as they are now."""
    call_command("migrate", "django_otel", "0001", verbosity=0)
    yield
    call_command("migrate", "django_otel", verbosity=0)


@pytest.mark.heavy
def test_a_policy_of_the_first_tables_is_kept(first_tables):
    """With its version, and with the other values as the settings have them."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {POLICY} (id, enabled, ratio, expires_at, note, version, updated_at) "
            "VALUES (1, %s, 0.25, NULL, 'kept', 7, %s)",
            [True, datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC).isoformat()],
        )
    call_command("migrate", "django_otel", verbosity=0)

    state = read_state("default")
    assert state == models.SamplingState(7, models.PolicyRow(True, 0.25, None, False, None, None, "kept"), ())
    SamplingRule.objects.create(path="/a", ratio=1)
    assert read_state("default").version == 8
    with pytest.raises(IntegrityError), transaction.atomic():
        insert(RULE, ratio=2.0)


def test_the_migration_can_be_taken_back_and_done_again(first_tables):
    """The first tables have neither rules nor a limit."""
    with pytest.raises(Error), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {RULE}")
    with connection.cursor() as cursor:
        columns = {column.name for column in connection.introspection.get_table_description(cursor, POLICY)}
    assert "max_per_second" not in columns
    assert "ratio" in columns


@pytest.mark.heavy
def test_tables_of_the_first_version_are_said_to_be_too_old(first_tables):
    """By the check and by who follows, with the command that helps; the settings apply."""
    assert "manage.py migrate django_otel" in str(follower.table_problem())
    follower.follower().read_and_apply("default")
    assert "manage.py migrate django_otel" in follower.status()["error"]
    assert runtime.current().sampler.live is None


def test_nothing_is_left_to_migrate():
    """Whatever the project's DEFAULT_AUTO_FIELD is, and with settings that give other defaults."""
    for auto_field in ("django.db.models.BigAutoField", "django.db.models.AutoField"):
        with override_settings(DEFAULT_AUTO_FIELD=auto_field):
            call_command("makemigrations", "django_otel", check=True, dry_run=True, verbosity=0)
