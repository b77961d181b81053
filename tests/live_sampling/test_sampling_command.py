"""`manage.py otel sampling`: the policy of the admin from the command line."""

from __future__ import annotations

import datetime
import getpass
import io
import json
import re
import time

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import override_settings
from django.utils import timezone

from django_otel import runtime
from django_otel.models import SamplingPolicy, SamplingRule, SamplingVersion
from tests import sizes
from tests.live_sampling.time_left import check_time_left
from tests.services import free_port

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("fresh_policy")]


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and output of `manage.py otel sampling ...`, white space as one blank."""
    out = io.StringIO()
    code = 0
    try:
        call_command("otel", "sampling", *arguments, stdout=out, no_color=True)
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    return code, re.sub(r"\s+", " ", out.getvalue())


def get() -> dict:
    out = io.StringIO()
    call_command("otel", "sampling", "get", "--format", "json", stdout=out)
    return json.loads(out.getvalue())


# --- get. ---


def test_get_says_what_is_in_force_and_why():
    """Settings, policy, policy with an end, policy off, policy over."""
    why = 'Set by the default of OTEL["SAMPLING"]["RATIO"]. There is no policy in the admin.'
    assert run("get") == (0, f"100 % of new traces are recorded. {why} ")

    policy = SamplingPolicy.objects.create(ratio=0.025, note="quiet", max_per_second=5, keep_errors=True, keep_slow_s=2)
    code, said = run("get")
    assert code == 0
    assert "2.5 % of new traces are recorded. Set by the policy of the admin, version 1. Until it is changed." in said
    assert 'Without it: 100 %, from the default of OTEL["SAMPLING"]["RATIO"].' in said
    assert "Note: quiet At most 5 traces per second and server." in said
    assert "Kept at any ratio: errors and requests of 2 s or more." in said

    begun_s = time.time()
    policy.expires_at = timezone.now() + datetime.timedelta(minutes=15)
    policy.save()
    said = run("get")[1]
    check_time_left(said, "Until", 900, begun_s)
    assert "); then 100 %, from" in said

    policy.expires_at = timezone.now() - datetime.timedelta(minutes=15)
    policy.save()
    said = run("get")[1]
    assert "100 % of new traces are recorded." in said
    assert "The policy of the admin (2.5 %) expired at" in said
    assert "At most" not in said

    policy.enabled = False
    policy.save()
    assert "The policy of the admin (2.5 %) is not enabled." in run("get")[1]


@override_settings(OTEL={"SERVICE_NAME": "t", "SAMPLING": {"RATIO": 0.5, "RULES": [{"path": "/health*", "ratio": 0}]}})
def test_get_shows_the_rules_in_the_order_they_are_asked():
    """Those of the admin first, those of the settings behind them, named as such."""
    SamplingPolicy.objects.create(ratio=0.1)
    SamplingRule.objects.create(path="/low/*", ratio=0.2)
    SamplingRule.objects.create(route="/orders/<int:pk>/", method="POST", ratio=1, priority=10, note="why")
    said = run("get")[1]
    assert re.search(r"POST /orders/<int:pk>/ 100 % 10 why /low/\* 20 % 0 /health\* 0 % 0 from the settings", said)

    rules = get()["rules"]
    assert [(rule["path"] or rule["route"], rule["source"]) for rule in rules] == [
        ("/orders/<int:pk>/", "admin"),
        ("/low/*", "admin"),
        ("/health*", "settings"),
    ]


def test_get_as_json_has_everything():
    """For scripts."""
    expires_at = timezone.now().replace(microsecond=0) + datetime.timedelta(hours=1)
    SamplingPolicy.objects.create(ratio=0.25, expires_at=expires_at, note="n", keep_errors=True)
    found = get()
    assert found.pop("rules") == []
    assert found == {
        "ratio": 0.25, "source": "admin", "version": 1, "expires_at_s": expires_at.timestamp(), "note": "n",
        "max_per_second": None, "keep_errors": True, "keep_slow_s": None, "enabled": True, "live": True,
        "base_ratio": 1.0, "base_source": "default",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("otel", "said"),
    [
        ({"SAMPLING": {"LIVE": False}}, "SAMPLING.LIVE is False, so the policy of the admin has no effect."),
        ({"ENABLED": False}, "Telemetry is off (ENABLED), so nothing is recorded at all."),
    ],
)
def test_get_says_when_the_policy_has_no_effect(otel, said):
    """And does not take its ratio for the one in force."""
    SamplingPolicy.objects.create(ratio=0.25)
    with override_settings(OTEL={"SERVICE_NAME": "t", **otel}):
        found = run("get")[1]
    assert said in found
    assert "25 % of new traces" not in found


# --- set. ---


@pytest.mark.parametrize(("given", "ratio"), [("0.1", 0.1), ("10%", 0.1), ("0", 0.0), ("1", 1.0), ("100%", 1.0)])
def test_set_takes_a_share_or_a_percentage(given, ratio):
    """And it is in force in this process at once."""
    code, said = run("set", given)
    assert code == 0
    assert SamplingPolicy.objects.get().ratio == pytest.approx(ratio)
    assert runtime.current().sampler.ratio_now() == pytest.approx(ratio)
    assert "Every process applies it within 5 s." in said


def test_set_with_a_duration_ends_by_itself():
    """Counted from now."""
    before_s = time.time()
    assert run("set", "0.1", "--for", "1h30m", "--note", "incident 7")[0] == 0
    policy = SamplingPolicy.objects.get()
    assert before_s + 5399 <= policy.expires_at.timestamp() <= time.time() + 5400
    assert policy.note == "incident 7"
    assert runtime.current().sampler.live.expires_at_s == policy.expires_at.timestamp()

    # Without an end the next one has none.
    run("set", "0.2")
    assert SamplingPolicy.objects.get().expires_at is None


def test_set_until_a_moment():
    """In the time zone of the settings, or in one that is named."""
    run("set", "0.1", "--until", "2099-01-02T03:04")
    assert timezone.localtime(SamplingPolicy.objects.get().expires_at).isoformat()[:16] == "2099-01-02T03:04"
    run("set", "0.1", "--until", "2099-01-02T03:04:05Z")
    assert SamplingPolicy.objects.get().expires_at == datetime.datetime(2099, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


def test_set_keeps_what_is_not_named_and_enables_the_policy():
    """Only what is given changes, but for end and note, which belonged to the old ratio."""
    SamplingPolicy.objects.create(
        ratio=0.5, enabled=False, max_per_second=5, keep_errors=True, keep_slow_s=2, note="old",
        expires_at=timezone.now() + datetime.timedelta(hours=1),
    )  # fmt: skip
    run("set", "0.1")
    policy = SamplingPolicy.objects.get()
    assert (policy.enabled, policy.max_per_second, policy.keep_errors, policy.keep_slow_s) == (True, 5, True, 2)
    assert (policy.note, policy.expires_at, policy.version) == ("", None, 2)

    run("set", "0.1", "--max-per-second", "none", "--no-keep-errors", "--keep-slow", "0.5")
    policy.refresh_from_db()
    assert (policy.max_per_second, policy.keep_errors, policy.keep_slow_s) == (None, False, 0.5)


@sizes.each(
    ("arguments", "message"),
    [
        (("set", "20"), "'20' is not a ratio.*for 20 % write 0.2 or 20%"),
        (("set", "-0.1"), "."),
        (("set", "nan"), "'nan' is not a ratio"),
        (("set", "101%"), "'101%' is not a ratio"),
        (("set", "0.1", "--for", "15"), "'15' is not a duration; write it like 90s, 15m"),
        (("set", "0.1", "--for", "0m"), "is not a duration"),
        (("set", "0.1", "--for", "9999d"), "at most 366d"),
        (("set", "0.1", "--until", "soon"), "'soon' is not a time"),
        (("set", "0.1", "--until", "2020-01-01T00:00"), "has passed"),
        (("set", "0.1", "--for", "1m", "--until", "2099-01-01T00:00"), "not allowed with"),
        (("set", "0.1", "--max-per-second", "many"), 'neither a number nor "none"'),
        (("rule", "add", "/a", "7"), "'7' is not a ratio"),
        (("rule", "add", "/a", "1", "--method", "brew"), "invalid choice"),
        (("rule", "remove", "x"), "invalid int"),
        (("frobnicate",), "invalid choice"),
        ((), "required"),
    ],
)
def test_a_wrong_command_line_says_what_fits_and_changes_nothing(arguments, message):
    """As argparse does, which ends a program with 2."""
    with pytest.raises(CommandError, match=message):
        run(*arguments)
    assert not SamplingPolicy.objects.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("set", "0.1", "--max-per-second", "0"), "To record nothing, set the ratio to 0."),
        (("set", "0.1", "--keep-slow", "-1"), "expected seconds above 0"),
        (("set", "0.1", "--note", "x" * 201), "at most 200 characters"),
        (("rule", "add", "checkout", "1"), "'checkout' matches nothing"),
    ],
)
def test_a_value_that_the_model_refuses_is_refused(arguments, message):
    """Exit code 1, with the model's own words."""
    code, said = run(*arguments)
    assert code == 1
    assert message in said
    assert not SamplingPolicy.objects.exists()
    assert not SamplingRule.objects.exists()


def test_reset_removes_policy_and_rules_as_one_change():
    """The settings apply again."""
    run("set", "0.1")
    run("rule", "add", "/a/*", "1")
    version = SamplingVersion.objects.get().version
    code, said = run("reset")
    assert code == 0
    assert "100 % of new traces are recorded." in said
    assert not SamplingRule.objects.exists()
    assert not SamplingPolicy.objects.exists()
    assert SamplingVersion.objects.get().version > version
    assert runtime.current().sampler.ratio_now() == 1.0
    assert run("reset") == (0, "There is no policy and no rule; the settings apply. ")


# --- rule. ---


def test_rules_are_added_listed_and_removed_by_number():
    """Without a policy they stand above the ratio of the settings."""
    begun_s = time.time()
    code, said = run("rule", "add", "/orders/*", "100%", "--for", "15m", "--priority", "10", "--note", "why")
    assert code == 0
    assert "It matches /orders/<int:pk>/." in said
    code, said = run("rule", "add", "--route", "articles/<year>/", "0.5", "--method", "post")
    assert "POST /articles/<year>/: 50 %. It matches /articles/<year>/." in said
    assert "It matches no route of the project." in run("rule", "add", "/nowhere/*", "0")[1]

    rules = list(SamplingRule.objects.all())
    assert [str(rule) for rule in rules] == ["/orders/*: 100 %", "/nowhere/*: 0 %", "POST /articles/<year>/: 50 %"]
    listed = run("rule", "list")[1]
    check_time_left(listed, rf"{rules[0].pk} /orders/\* 100 % 10", 900, begun_s)
    assert f") why {rules[1].pk} /now" in listed

    code, said = run("rule", "remove", str(rules[0].pk), str(rules[1].pk))
    assert code == 0
    assert list(SamplingRule.objects.all()) == rules[2:]
    assert "There are no rules." in (run("rule", "remove", str(rules[2].pk)), run("rule", "list"))[1][1]


def test_rules_as_json():
    """With the number that removes them."""
    rule = SamplingRule.objects.create(path="/a/*", ratio=0.5, priority=3)
    out = io.StringIO()
    call_command("otel", "sampling", "rule", "list", "--format", "json", stdout=out)
    assert json.loads(out.getvalue()) == [
        {"id": rule.pk, "path": "/a/*", "route": "", "method": "", "ratio": 0.5, "priority": 3, "expires_at_s": None,
         "note": ""}
    ]  # fmt: skip


def test_a_rule_that_is_not_there_removes_none():
    """Half of a list is not done."""
    rule = SamplingRule.objects.create(path="/a/*", ratio=0.5)
    code, said = run("rule", "remove", str(rule.pk), str(rule.pk + 7))
    assert code == 1
    assert f"There is no rule {rule.pk + 7}; nothing was removed." in said
    assert SamplingRule.objects.count() == 1


def test_there_may_be_only_so_many_rules(monkeypatch):
    """As many as the engine takes."""
    from django_otel.live_sampling import command

    monkeypatch.setattr(command, "MAX_RULES", 2)
    assert [run("rule", "add", f"/{name}", "1")[0] for name in "abc"] == [0, 0, 1]
    assert SamplingRule.objects.count() == 2


def test_rules_of_a_policy_that_is_off_are_said_to_be_without_effect():
    """Or an operator would wait for it."""
    SamplingPolicy.objects.create(ratio=0.1, enabled=False)
    SamplingRule.objects.create(path="/a/*", ratio=0.5)
    assert "The policy is not enabled, so no rule applies." in run("rule", "list")[1]


# --- The history. ---


def test_a_change_stands_in_the_admins_history():
    """Who, what was and what is, and that it came from the command line."""
    ada = User.objects.create_user("ada")
    assert "In the admin's history as a change of ada." in run("set", "0.1", "--note", "n", "--user", "ada")[1]
    run("set", "0.5", "--note", "n", "--user", "ada")
    run("rule", "add", "/a/*", "1", "--user", "ada")
    run("rule", "remove", str(SamplingRule.objects.get().pk), "--user", "ada")
    run("reset", "--user", "ada")

    entries = list(LogEntry.objects.order_by("pk"))
    assert {entry.user for entry in entries} == {ada}
    messages = [re.sub(r" \(manage.py otel sampling on [^)]+\)$", "", entry.change_message) for entry in entries]
    assert messages == [
        "Enabled: yes; Ratio: 0.1; Note: n",
        "Ratio: 0.1 → 0.5",
        "Rule /a/* added (Ratio: 1)",
        "Rule /a/* removed",
        "Removed, with every rule",
    ]
    assert all("manage.py otel sampling on" in entry.change_message for entry in entries)


def test_the_login_is_whose_change_it_is(monkeypatch):
    """Where a user of the project has the same name."""
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    assert "Not in the admin's history: there is no user 'ada'. Name one with --user." in run("set", "0.1")[1]
    User.objects.create_user("ada")
    run("set", "0.2")
    assert LogEntry.objects.get().user.username == "ada"


def test_a_user_who_is_not_there_changes_nothing():
    """A named user must be in the history."""
    code, said = run("set", "0.1", "--user", "nobody")
    assert code == 1
    assert "There is no user 'nobody'; nothing was changed." in said
    assert not SamplingPolicy.objects.exists()
    assert runtime.current().sampler.live is None


# --- Faults. ---


def test_faulty_settings_end_it_with_3():
    """Before anything is read or written."""
    with override_settings(OTEL={"SERVICE_NAME": "t", "SAMPLING": {"RATIO": 25}}):
        code, said = run("set", "0.1")
    assert code == 3
    assert "settings.OTEL is invalid" in said
    assert not SamplingPolicy.objects.exists()


@pytest.mark.heavy
def test_tables_that_are_not_there_are_told():
    """With the command that makes them."""
    call_command("migrate", "django_otel", "0001", verbosity=0)
    try:
        answers = [run(*arguments) for arguments in (("get",), ("set", "0.1"), ("rule", "list"), ("reset",))]
    finally:
        call_command("migrate", "django_otel", verbosity=0)
    for code, said in answers:
        assert code == 1
        assert "Run: manage.py migrate django_otel" in said


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
@pytest.mark.parametrize("arguments", [("get",), ("set", "0.1"), ("rule", "add", "/a", "1")])
def test_a_database_that_does_not_answer_is_told_in_one_line(arguments):
    """Without the driver's text, which may name hosts and users."""

    class InOther:
        def db_for_write(self, model, **hints):
            return "other" if model._meta.app_label == "django_otel" else None

    unchanged = connections.settings["other"]
    connections.settings["other"] = {
        **unchanged, "ENGINE": "django.db.backends.postgresql", "NAME": "x", "HOST": "127.0.0.1",
        "PORT": str(free_port()), "USER": "secretuser",
    }  # fmt: skip
    kept = connections["other"]
    del connections["other"]
    try:
        with override_settings(DATABASE_ROUTERS=[InOther()]):
            code, said = run(*arguments)
    finally:
        connections.settings["other"] = unchanged
        connections["other"] = kept
    assert code == 1
    assert said == 'The database "other" does not answer (OperationalError). '


def test_help_names_examples_and_exit_codes(capsys):
    """For urgent changes."""
    with pytest.raises(SystemExit):
        call_command("otel", "sampling", "--help")
    said = capsys.readouterr().out
    assert 'manage.py otel sampling set 0.1 --for 15m --note "incident 7"' in said
    assert "Exit codes: 0 success" in said


HOSTILE = "a\x1b]0;owned\x07b\x9b31mc\u202ed\r\ne\u2066f"


@pytest.mark.parametrize(
    "arguments",
    [("get",), ("get", "--format", "json"), ("rule", "list"), ("rule", "list", "--format", "json"), ("reset",)],
)
def test_what_others_have_stored_does_not_steer_the_terminal(arguments):
    """Notes and patterns of the admin; controls of C0 and C1, and marks that turn the direction, are written out."""
    SamplingPolicy.objects.create(ratio=0.5, note=HOSTILE)
    SamplingRule.objects.create(path=f"/{HOSTILE}/*", ratio=0.5, note=HOSTILE)
    _, output = run(*arguments)
    assert not re.findall("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", output)
    assert "\ne" not in output
    if "json" in arguments:
        found = json.loads(output)
        assert (found if isinstance(found, list) else found["rules"])[0]["note"] == HOSTILE
