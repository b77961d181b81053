"""The page of the sampling policy: one row, permissions, history, messages, and what is in force."""

from __future__ import annotations

import datetime
import html
import os
import re
import socket
import time
from html.parser import HTMLParser
from urllib.parse import urlencode

import pytest
from django.apps import apps
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.test import Client, override_settings
from django.utils import timezone
from opentelemetry.trace import SpanKind

from django_otel import runtime
from django_otel.live_sampling import admin_forms
from django_otel.models import SamplingPolicy, SamplingRule
from django_otel.sampling.policy import MAX_RULES
from tests import sizes
from tests.live_sampling.time_left import check_time_left

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("fresh_policy")]

LIST = "/admin/django_otel/samplingpolicy/"
ADD = f"{LIST}add/"
ROW = f"{LIST}1/change/"
STATUS = f"{LIST}status/"
ROUTES = f"{LIST}routes/"
FORCE = f"{LIST}force/"


def login(*permissions: str, is_superuser: bool = False) -> Client:
    user = User.objects.create_user("op", password="op", is_staff=True, is_superuser=is_superuser)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def save(client: Client, url: str, **values: str):
    data = {"enabled": "on", "ratio": "0.25", "expires_at_0": "", "expires_at_1": "", "note": "", **values}
    return client.post(url, {name: value for name, value in data.items() if value is not None})


def text(response) -> str:
    """What a reader sees: without tags, white space as one blank."""
    return text_of(response.content.decode())


def text_of(markup: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", markup)))


def log() -> list[str]:
    return [entry.get_change_message() for entry in LogEntry.objects.order_by("pk")]


def test_a_save_is_in_force_in_this_process_at_once():
    """Adding, changing and deleting through the pages."""
    client, sampler = login(is_superuser=True), runtime.current().sampler

    assert save(client, ADD, ratio="0.25").status_code == 302
    assert sampler.ratio_now() == 0.25
    assert save(client, ROW, ratio="0.5").status_code == 302
    assert sampler.ratio_now() == 0.5
    assert client.post(f"{LIST}1/delete/", {"post": "yes"}).status_code == 302
    assert (sampler.live, sampler.ratio_now()) == (None, 1.0)


def test_the_address_of_the_list_leads_to_the_row_or_to_the_form_that_makes_it():
    """There is no list of one."""
    client = login(is_superuser=True)
    assert client.get(LIST).url == ADD
    SamplingPolicy(ratio=0.5).save()
    assert client.get(LIST).url == ROW
    assert client.get(ADD).url == ROW
    assert "add another" not in text(client.get(ROW))


def test_a_second_row_cannot_be_added():
    """The second user gets a message, and the first one's policy stays."""
    client = login(is_superuser=True)
    SamplingPolicy(ratio=0.5).save()

    response = save(client, ADD, ratio="0.9")
    assert response.url == ROW
    assert "in the meantime another user has created the sampling policy" in text(client.get(ROW))
    assert SamplingPolicy.objects.get().ratio == 0.5


def test_two_who_add_at_the_same_moment_get_one_row_and_no_error(monkeypatch):
    """The row appears between the second one's form and its insert; the database refuses, the page explains."""
    from django_otel import admin

    client = login(is_superuser=True)
    save_model = admin.SamplingPolicyAdmin.save_model

    def after_another(self, request, obj, form, change):
        SamplingPolicy.objects.bulk_create([SamplingPolicy(pk=1, ratio=0.5)], ignore_conflicts=True)
        save_model(self, request, obj, form, change)

    # The transaction of the request is rolled back with the other's insert in it, so it is made again outside.
    monkeypatch.setattr(admin.SamplingPolicyAdmin, "save_model", after_another)
    row_exists = admin.SamplingPolicyAdmin._row_exists
    answers = iter([False])

    def exists(self):
        first = next(answers, None)
        if first is None:
            SamplingPolicy.objects.get_or_create(pk=1, defaults={"ratio": 0.5})
            return row_exists(self)
        return first

    monkeypatch.setattr(admin.SamplingPolicyAdmin, "_row_exists", exists)
    response = save(client, ADD, ratio="0.9")

    assert response.url == ROW
    assert SamplingPolicy.objects.get().ratio == 0.5


@pytest.mark.parametrize(
    ("permissions", "may_see", "may_change"),
    [((), False, False), (("view_samplingpolicy",), True, False), (("change_samplingpolicy",), True, True)],
)
def test_the_page_has_permissions_of_its_own(permissions, may_see, may_change):
    """Staff alone is not enough; who may only look sees what is in force and no form to send."""
    SamplingPolicy(ratio=0.5).save()
    client = login(*permissions)

    page = client.get(ROW)
    assert page.status_code == (200 if may_see else 403)
    if may_see:
        assert "50 % of new traces are recorded" in text(page)
        assert (b'name="_save"' in page.content) is may_change
    assert save(client, ROW, ratio="0.9").status_code == (302 if may_change else 403)
    assert SamplingPolicy.objects.get().ratio == (0.9 if may_change else 0.5)


def test_who_may_only_look_sees_what_is_in_force_without_a_row():
    """The settings' ratio, and no way to add."""
    page = login("view_samplingpolicy").get(LIST)
    assert page.status_code == 200
    assert "100 % of new traces are recorded" in text(page)


def test_an_anonymous_visitor_is_sent_to_the_login():
    """For every page of the model."""
    for url in (LIST, ADD, ROW):
        assert "/admin/login/" in Client().get(url).url


def test_the_history_says_what_was_and_what_is():
    """Each field that changed, with its old and its new value, and who did it."""
    client = login(is_superuser=True)
    save(client, ADD, ratio="0.25", note="incident 7")
    save(client, ROW, ratio="1", note="incident 7", expires_at_0="2099-01-02", expires_at_1="03:04:05")
    save(client, ROW, enabled=None, ratio="1", note="<b>over</b>")

    assert log() == [
        "Enabled: yes; Ratio: 0.25; Note: incident 7",
        "Ratio: 0.25 → 1; Until: none → 2099-01-02 03:04:05",
        "Enabled: yes → no; Until: 2099-01-02 03:04:05 → none; Note: incident 7 → <b>over</b>",
    ]
    assert {entry.user.username for entry in LogEntry.objects.all()} == {"op"}
    history = client.get(f"{LIST}1/history/")
    assert "Ratio: 0.25 → 1" in text(history)
    assert b"<b>over</b>" not in history.content


def test_the_history_tells_of_a_deletion():
    """With the policy that was deleted."""
    client = login(is_superuser=True)
    SamplingPolicy(ratio=0.25).save()
    client.post(f"{LIST}1/delete/", {"post": "yes"})
    assert LogEntry.objects.get().object_repr == "25 % of traces"


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ratio": "25"}, "The ratio is 25; expected a number from 0.0 to 1.0. For 25 % write 0.25."),
        pytest.param(
            {"ratio": "-0.1"}, "The ratio is -0.1; expected a number from 0.0 to 1.0.", marks=pytest.mark.long
        ),
        pytest.param(
            {"ratio": "1000"}, "The ratio is 1000; expected a number from 0.0 to 1.0.", marks=pytest.mark.long
        ),
        ({"ratio": "nan"}, "Enter a number."),
        ({"ratio": ""}, "This field is required."),
        ({"expires_at_0": "2020-01-01", "expires_at_1": "00:00"}, "2020-01-01 00:00:00 has passed"),
        ({"note": "x" * 201}, "at most 200 characters"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_fits(values, message):
    """Nothing is stored, nothing changes."""
    client = login(is_superuser=True)
    response = save(client, ADD, **values)

    assert response.status_code == 200
    assert message in text(response)
    assert not SamplingPolicy.objects.exists()
    assert log() == []
    assert runtime.current().sampler.live is None


def test_a_policy_that_has_run_out_may_be_kept_when_it_is_not_enabled():
    """Its note can still be put right."""
    client = login(is_superuser=True)
    values = {"enabled": None, "expires_at_0": "2020-01-01", "expires_at_1": "00:00"}
    assert save(client, ADD, **values).status_code == 302


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_the_model_validates_as_the_form_does(ratio):
    """full_clean() accepts the ends and refuses what lies beyond, not a number included."""
    SamplingPolicy(ratio=ratio).full_clean()
    for bad in (ratio - 1.001, ratio + 1.001, float("nan")):
        with pytest.raises(ValidationError, match="expected a number from 0.0 to 1.0"):
            SamplingPolicy(ratio=bad).full_clean()


# --- Limit, kept requests, ends. ---


def test_limit_and_kept_requests_are_saved_and_said():
    """In the history and in what is in force."""
    client = login(is_superuser=True)
    save(client, ADD, ratio="0.1", max_per_second="5", keep_errors="on", keep_slow_s="1.5")
    policy = SamplingPolicy.objects.get()
    assert (policy.max_per_second, policy.keep_errors, policy.keep_slow_s) == (5, True, 1.5)
    assert log() == ["Enabled: yes; Ratio: 0.1; Limit per second: 5; Keep errors: yes; Keep slow, seconds: 1.5"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_per_second": "0"}, "The limit is 0; expected a number above 0"),
        ({"max_per_second": "inf"}, "Enter a number."),
        ({"keep_slow_s": "-1"}, "The duration is -1; expected seconds above 0"),
        ({"lasts": "3m"}, "Select a valid choice."),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(values, message):
    """Beside its field, and nothing is stored."""
    response = save(login(is_superuser=True), ADD, **values)
    assert message in text(response)
    assert not SamplingPolicy.objects.exists()


def test_an_end_can_be_chosen_as_a_duration():
    """By the server's clock: the browser's may be wrong, and no script is needed."""
    client = login(is_superuser=True)
    before_s = time.time()
    save(client, ADD, ratio="1", lasts="15m")
    policy = SamplingPolicy.objects.get()
    assert before_s + 899 <= policy.expires_at.timestamp() <= time.time() + 900
    page = client.get(ROW)
    check_time_left(text(page), "Until", 900, before_s)
    assert re.search(r'<input[^>]*name="lasts" value=""[^>]*checked', page.content.decode())

    # "Until changed" takes the end away although its fields are still filled in.
    kept = timezone.localtime(policy.expires_at)
    typed = {"expires_at_0": f"{kept:%Y-%m-%d}", "expires_at_1": f"{kept:%H:%M:%S}"}
    save(client, ROW, ratio="1", lasts="", **typed)
    policy.refresh_from_db()
    assert policy.expires_at == kept
    save(client, ROW, ratio="1", lasts="open", **typed)
    policy.refresh_from_db()
    assert policy.expires_at is None
    # But a time that was entered now counts, whatever stood selected beside it.
    save(client, ROW, ratio="1", lasts="open", expires_at_0="2099-01-02", expires_at_1="03:04:05")
    policy.refresh_from_db()
    assert timezone.localtime(policy.expires_at).year == 2099


def test_what_has_run_out_does_not_stand_in_the_way_of_a_rule():
    """The policy may stay over while its note or a rule is changed; not while its ratio is."""
    client = login(is_superuser=True)
    SamplingPolicy.objects.create(ratio=0.5, expires_at=timezone.now() - datetime.timedelta(hours=1))
    expires_at = timezone.localtime(SamplingPolicy.objects.get().expires_at)
    old = {"lasts": "", "expires_at_0": f"{expires_at:%Y-%m-%d}", "expires_at_1": f"{expires_at:%H:%M:%S}"}
    assert save(client, ROW, ratio="0.5", note="over", **old).status_code == 302
    response = save(client, ROW, ratio="0.9", **old)
    assert response.status_code == 200
    assert "has passed" in text(response)


# --- Rules. ---


def rules(*rows: dict[str, str], initial: int = 0) -> dict[str, str]:
    """The part of the form with the rules."""
    data = {"rules-TOTAL_FORMS": str(len(rows)), "rules-INITIAL_FORMS": str(initial)}
    for number, row in enumerate(rows):
        whole = {"path": "", "route": "", "method": "", "ratio": "1", "priority": "0", "lasts": "open",
                 "expires_at": "", "note": "", **row}  # fmt: skip
        data |= {f"rules-{number}-{name}": value for name, value in whole.items()}
    return data


def test_rules_are_added_changed_and_removed_with_the_policy():
    """In one form, as one change, with old and new values in the history."""
    client = login(is_superuser=True)
    before_s = time.time()
    save(
        client, ADD, ratio="0.1",
        **rules({"path": "/checkout/*", "lasts": "15m", "note": "incident 7"}, {"route": "orders/", "method": "POST"}),
    )  # fmt: skip
    first, second = SamplingRule.objects.order_by("pk")
    assert (first.path, first.ratio, first.note) == ("/checkout/*", 1.0, "incident 7")
    assert before_s + 899 <= first.expires_at.timestamp() <= time.time() + 900
    assert (second.route, second.method) == ("/orders/", "POST")
    assert SamplingPolicy.objects.get().version == 1

    kept = timezone.localtime(first.expires_at).strftime("%Y-%m-%dT%H:%M:%S")
    save(
        client, ROW, ratio="0.1",
        **rules(
            {"id": str(second.pk), "route": "/orders/", "method": "POST", "DELETE": "on"},
            {"id": str(first.pk), "path": "/checkout/*", "ratio": "0.5", "note": "incident 7", "lasts": "",
             "expires_at": kept},
            {"path": "/health*", "ratio": "0", "priority": "-1"},
            initial=2,
        ),
    )  # fmt: skip
    assert [str(rule) for rule in SamplingRule.objects.all()] == ["/checkout/*: 50 %", "/health*: 0 %"]
    first.refresh_from_db()
    assert timezone.localtime(first.expires_at).strftime("%Y-%m-%dT%H:%M:%S") == kept
    assert SamplingPolicy.objects.get().version == 2

    end = kept.replace("T", " ")
    assert log() == [
        (
            f"Enabled: yes; Ratio: 0.1; Rule /checkout/* added (Ratio: 1; Until: {end}; Note: incident 7); "
            "Rule POST /orders/ added (Ratio: 1)"
        ),
        (
            "Rule POST /orders/ removed; Rule /checkout/* changed (Ratio: 1 → 0.5); "
            "Rule /health* added (Ratio: 0; Priority: -1)"
        ),
    ]


def test_a_row_that_was_left_empty_is_no_rule():
    """There is always one more to fill in where there is no script."""
    client = login(is_superuser=True)
    assert save(client, ADD, **rules({"ratio": ""})).status_code == 302
    assert not SamplingRule.objects.exists()


def test_a_form_without_rules_leaves_them_alone():
    """A script that sends the policy alone does not remove them."""
    client = login(is_superuser=True)
    SamplingRule.objects.create(path="/a/*", ratio=1)
    SamplingPolicy.objects.create(ratio=0.5)
    assert save(client, ROW, ratio="0.25").status_code == 302
    assert SamplingRule.objects.count() == 1
    assert SamplingPolicy.objects.get().ratio == 0.25


def test_rules_without_a_policy_stand_in_the_form_that_makes_one():
    """They are there and must be seen; they stay what they are."""
    client = login(is_superuser=True)
    rule = SamplingRule.objects.create(path="/a/*", ratio=0.5)
    assert 'value="/a/*"' in client.get(ADD).content.decode()
    save(client, ADD, **rules({"id": str(rule.pk), "path": "/a/*", "ratio": "0.75"}, initial=1))
    assert [str(rule) for rule in SamplingRule.objects.all()] == ["/a/*: 75 %"]


WRONG_RULES = [
    ({"path": "/a", "route": "/a"}, "Name either a path or a route, not both."),
    ({"note": "nothing to match"}, "Name either a path or a route, not both."),
    ({"path": "checkout/*"}, '\'checkout/*\' matches nothing: start it with "/" or "*".'),
    ({"path": "/a", "ratio": "25"}, "For 25 % write 0.25."),
    ({"path": "/a", "ratio": ""}, "This field is required."),
    ({"path": "/a", "method": "BREW"}, "Select a valid choice."),
    ({"path": "/a", "priority": "99999"}, "less than or equal to 10000"),
    ({"path": "/a", "lasts": "", "expires_at": "2020-01-01T00:00:00"}, "2020-01-01 00:00:00 has passed"),
    ({"path": "/" + "a" * 200}, "at most 200 characters"),
]


def test_rules_that_make_no_sense_are_refused_each_beside_its_fields():
    """All in one form."""
    response = save(login(is_superuser=True), ADD, **rules(*(row for row, _ in WRONG_RULES)))
    assert response.status_code == 200
    (formset,) = response.context["inline_admin_formsets"]
    for form, (_, message) in zip(formset.formset.forms, WRONG_RULES, strict=False):
        assert message in text_of(str(form.errors)), form.errors
    assert not SamplingRule.objects.exists()


@pytest.mark.parametrize(("row", "message"), sizes.few(WRONG_RULES, 4))
def test_a_rule_that_makes_no_sense_is_refused_beside_its_fields(row, message):
    """And neither policy nor rules are stored."""
    client = login(is_superuser=True)
    response = save(client, ADD, **rules({"path": "/good/*"}, row))
    assert response.status_code == 200
    assert message in text(response)
    assert not SamplingRule.objects.exists()
    assert not SamplingPolicy.objects.exists()
    # What was entered is still there.
    assert 'value="/good/*"' in response.content.decode()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("permissions", "may_add", "may_change", "may_remove"),
    [
        (("change_samplingpolicy",), False, False, False),
        (("change_samplingpolicy", "add_samplingrule"), True, False, False),
        (("change_samplingpolicy", "change_samplingrule"), False, True, False),
        (("change_samplingpolicy", "change_samplingrule", "delete_samplingrule"), False, True, True),
    ],
)
def test_rules_have_permissions_of_their_own(permissions, may_add, may_change, may_remove):
    """Users who may view the policy may view them; a forged form changes nothing."""
    SamplingPolicy.objects.create(ratio=0.5)
    kept = SamplingRule.objects.create(path="/kept/*", ratio=0.5)
    gone = SamplingRule.objects.create(path="/gone/*", ratio=0.5)
    client = login(*permissions)
    page = client.get(ROW)
    assert "/kept/*" in page.content.decode()
    assert (b'name="rules-0-path"' in page.content) is may_change
    assert (b'name="rules-2-path"' in page.content) is may_add

    save(
        client, ROW, ratio="0.5",
        **rules(
            {"id": str(gone.pk), "path": "/gone/*", "ratio": "0.5", "DELETE": "on"},
            {"id": str(kept.pk), "path": "/kept/*", "ratio": "0.9"},
            {"path": "/new/*"},
            initial=2,
        ),
    )  # fmt: skip
    kept.refresh_from_db()
    assert kept.ratio == (0.9 if may_change else 0.5)
    assert SamplingRule.objects.filter(path="/new/*").exists() is may_add
    assert SamplingRule.objects.filter(path="/gone/*").exists() is not may_remove


def test_who_may_only_look_reads_the_rules():
    """As text, with what they match, and no form to send."""
    SamplingPolicy.objects.create(ratio=0.5)
    SamplingRule.objects.create(path="/orders/*", ratio=0.25, method="POST", note="<b>why</b>")
    page = login("view_samplingpolicy").get(ROW)
    said = text(page)
    assert "POST /orders/* 25 %" in said
    assert "Matches 1 of" in said
    assert b"<b>why" not in page.content
    assert b"rules-0-path" not in page.content


# --- Two at once. ---


def seen(client: Client, url: str = ROW) -> str:
    """The version that the form was made from."""
    found = re.search(r'name="seen_version" value="(\d+)"', client.get(url).content.decode())
    assert found
    return found.group(1)


def test_who_saves_second_is_told_and_loses_nothing():
    """Neither what the first has saved nor what the second has typed; a second save is a decision."""
    SamplingPolicy.objects.create(ratio=0.5)
    ada, bob = login(is_superuser=True), Client()
    bob.force_login(User.objects.create_superuser("bob"))
    before = seen(ada), seen(bob)
    assert save(ada, ROW, ratio="0.1", note="ada's", seen_version=before[0]).status_code == 302

    response = save(bob, ROW, ratio="0.9", note="bob's", seen_version=before[1], **rules({"path": "/bob/*"}))
    said = text(response)
    assert response.status_code == 200
    assert (
        "Not saved: in the meantime op has changed the policy or its rules (Ratio: 0.5 → 0.1; Note: none → ada's)"
        in said
    )
    assert 'value="bob&#x27;s"' in response.content.decode()
    assert 'value="/bob/*"' in response.content.decode()
    assert (SamplingPolicy.objects.get().ratio, SamplingPolicy.objects.get().note) == (0.1, "ada's")
    assert not SamplingRule.objects.exists()

    again = re.search(r'name="seen_version" value="(\d+)"', response.content.decode())
    assert save(bob, ROW, ratio="0.9", note="bob's", seen_version=again.group(1)).status_code == 302
    assert SamplingPolicy.objects.get().note == "bob's"


def test_a_rule_that_was_changed_meanwhile_counts_as_well():
    """By a command, another form, or the project's own code: then no author is invented."""
    SamplingPolicy.objects.create(ratio=0.5)
    client = login(is_superuser=True)
    save(client, ROW, ratio="0.4")
    version = seen(client)
    SamplingRule.objects.create(path="/a/*", ratio=1)
    response = save(client, ROW, ratio="0.9", seen_version=version)
    assert "Not saved: in the meantime another user has changed the policy or its rules. Your" in text(response)
    assert SamplingPolicy.objects.get().ratio == 0.4


def test_a_first_policy_is_not_made_over_rules_that_came_meanwhile():
    """The form that adds remembers its version, too."""
    client = login(is_superuser=True)
    version = seen(client, ADD)
    SamplingRule.objects.create(path="/a/*", ratio=1)
    assert "Not saved" in text(save(client, ADD, ratio="0.9", seen_version=version))
    assert not SamplingPolicy.objects.exists()


def test_a_rule_that_was_removed_meanwhile_is_named():
    """When the form is sent again all the same."""
    SamplingPolicy.objects.create(ratio=0.5)
    rule = SamplingRule.objects.create(path="/a/*", ratio=1)
    client = login(is_superuser=True)
    data = rules({"id": str(rule.pk), "path": "/a/*", "ratio": "0.5"}, initial=1)
    rule.delete()
    response = save(client, ROW, **data)
    assert "In the meantime another user has removed this rule." in text(response)
    assert not SamplingRule.objects.exists()


# --- What the page's script asks. ---


def test_the_status_is_there_as_json():
    """What is in force, the version that is wanted, and each process with what it applies."""
    client = login(is_superuser=True)
    save(client, ADD, ratio="0.25")
    answer = client.get(STATUS)
    found = answer.json()
    assert answer["Content-Type"] == "application/json"
    assert found["version"] == 1
    assert found["in_force"]["ratio"] == 0.25
    (process,) = found["processes"]
    assert (process["pid"], process["host"]) == (os.getpid(), socket.gethostname())
    assert (process["version"], process["is_current"], found["is_settled"]) == (1, True, True)
    assert "25 % of new traces are recorded" in found["html"]["in_force"]


def test_a_process_that_is_behind_is_shown_as_such():
    """And the script asks again sooner."""
    client = login(is_superuser=True)
    SamplingPolicy.objects.bulk_create([SamplingPolicy(pk=1, ratio=0.5, version=3)])
    found = client.get(STATUS).json()
    assert (found["version"], found["is_settled"]) == (3, False)
    assert found["processes"][0]["is_current"] is False
    assert found["summary"] == "The only known process has not applied version 3 yet."
    assert found["next_s"] < 1


def test_routes_are_matched_as_they_are_typed():
    """For each row of the form, saved or not, whole or not."""
    client = login(is_superuser=True)
    found = client.post(
        ROUTES,
        rules(
            {"path": "/orders/*"},
            {"path": "", "route": "/articles/*", "ratio": "nonsense"},
            {"path": "/orders/1*", "priority": "-3"},
            {"path": ""},
            {"path": "/nowhere"},
            {"path": "/orders/1*", "method": "POST", "priority": "7"},
        ),
    ).json()
    total = found["total"]
    assert total == len(client.get(ROUTES).json()["routes"]) > 30
    assert [rule["summary"] for rule in found["rules"]] == [
        f"Matches 1 of {total} routes.",
        f"Matches 1 of {total} routes.",
        f"Matches 1 of {total} routes, all of them decided by rules before this one.",
        "",
        "Matches no route of the project.",
        f"Matches 1 of {total} routes.",
    ]
    assert found["rules"][0]["routes"] == [{"route": "/orders/<int:pk>/", "kind": "whole", "note": ""}]
    assert found["rules"][5]["routes"][0]["note"] == "some of its paths"


def test_the_preview_stands_in_the_page_itself():
    """Without a script, too, for what is saved and for what was refused."""
    client = login(is_superuser=True)
    SamplingPolicy.objects.create(ratio=0.5)
    SamplingRule.objects.create(path="/orders/*", ratio=1)
    assert re.search(r"Matches 1 of \d+ routes\. /orders/<int:pk>/", text(client.get(ROW)))
    assert re.search(r"Matches 2 of \d+ routes\.", text(save(client, ROW, ratio="7", **rules({"path": "/async-s*"}))))


@pytest.mark.parametrize(
    ("permissions", "seen", "previewed"),
    [
        ((), 403, 403),
        (("add_samplingpolicy",), 403, 403),
        (("view_samplingpolicy",), 200, 403),
        (("change_samplingpolicy",), 200, 200),
    ],
)
def test_what_the_script_asks_needs_a_permission(permissions, seen, previewed):
    """Who may not see the page gets nothing from its addresses, and the preview is for those who may change rules."""
    client = login(*permissions)
    assert client.get(STATUS).status_code == seen
    assert client.post(ROUTES, rules({"path": "/*"})).status_code == previewed
    for url in STATUS, ROUTES:
        assert "/admin/login/" in Client().get(url).url


def test_routes_are_only_told_to_the_page_itself():
    """Another site cannot ask in a visitor's name."""
    user = User.objects.create_superuser("op2")
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    assert client.post(ROUTES, rules({"path": "/*"})).status_code == 403


def test_what_the_script_asks_leaves_no_trace(otel_spans):
    """It asks again and again while the page is open; a process learns the first time which addresses those are."""
    client = login(is_superuser=True)
    for _ in range(2):
        otel_spans.clear()
        client.get(STATUS)
        client.post(ROUTES, rules({"path": "/*"}))
        assert [span.name for span in otel_spans if span.kind is SpanKind.SERVER] == []
    assert [span.name for span in otel_spans] == []
    client.get(ADD)
    assert any("samplingpolicy" in span.name for span in otel_spans)


FORCED = {"SERVICE_NAME": "tests", "SAMPLING": {"RATIO": 0.0, "FORCE": True}}


def test_a_link_that_traces_one_visit_is_made_on_the_page(otel_spans):
    """It works, is shown once, and stands in the history."""
    client = login("change_samplingpolicy")
    SamplingPolicy.objects.create(ratio=0.0)
    with override_settings(OTEL=FORCED):
        page = client.get(ROW).content.decode()
        assert f'formaction="{FORCE}"' in page
        shown = html.unescape(client.post(FORCE, follow=True).content.decode())
        link = re.search(r'href="http://testserver(/\?otel_force_token=[^"]+)"', shown)
        assert link
        assert "otel_force_token" not in client.get(ROW).content.decode()
        otel_spans.clear()
        client.get("/hello/")
        assert list(otel_spans) == []
        Client().get(link.group(1).replace("/?", "/hello/?"))
        assert otel_spans.one("GET /hello/").attributes["sampling.reason"] == "forced"
    assert log() == ["Created a link that traces one visit, valid for 1 h"]


def test_the_link_leads_to_this_site_below_a_script_name(otel_spans):
    """A link to the root of the host would be another site's."""
    client = login("change_samplingpolicy")
    SamplingPolicy.objects.create(ratio=0.0)
    with override_settings(OTEL=FORCED):
        client.post(FORCE, SCRIPT_NAME="/shop")
        shown = html.unescape(client.get(ROW).content.decode())
        assert re.search(r'href="http://testserver/shop/\?otel_force_token=[^"]+"', shown)


@pytest.mark.parametrize(
    ("otel", "permission"),
    [(FORCED, "view_samplingpolicy"), ({"SERVICE_NAME": "tests"}, "change_samplingpolicy")],
    ids=["may only look", "is off"],
)
def test_no_link_is_made_for_who_may_not_or_where_it_is_off(otel, permission):
    """Neither button nor address."""
    client = login(permission)
    SamplingPolicy.objects.create(ratio=0.0)
    with override_settings(OTEL=otel):
        assert 'formaction="' not in client.get(ROW).content.decode()
        assert client.post(FORCE).status_code == 403
    assert log() == []


def test_a_broken_urlconf_does_not_break_the_page(monkeypatch):
    """The preview is empty then."""
    from django_otel.live_sampling import preview

    def broken():
        raise ImportError("no such module")

    client = login(is_superuser=True)
    SamplingRule.objects.create(path="/a/*", ratio=1)
    monkeypatch.setattr(preview, "project_routes", broken)
    assert "Matches no route" in text(client.get(ADD))


# --- What is in force. ---


@pytest.mark.heavy
def test_the_page_says_what_is_in_force_and_why(pass_time):
    """Settings, then the policy, then the policy off, then run out."""
    client = login(is_superuser=True)
    assert "100 % of new traces are recorded" in text(client.get(ADD))
    assert 'Set by the default of OTEL["SAMPLING"]["RATIO"]. No policy is saved here.' in text(client.get(ADD))

    save(client, ADD, ratio="0.025")
    page = text(client.get(ROW))
    assert "2.5 % of new traces are recorded" in page
    assert "Set by the policy on this page, version 1." in page
    assert 'Then 100 %, from the default of OTEL["SAMPLING"]["RATIO"]' in page
    assert "Every worker process applies a change saved here within 5 seconds, without a restart" in page

    save(client, ROW, enabled=None, ratio="0.025")
    assert "The policy on this page is not enabled." in text(client.get(ROW))

    policy = SamplingPolicy.objects.get()
    policy.enabled, policy.expires_at = True, timezone.now() + datetime.timedelta(hours=1)
    policy.save()
    assert runtime.current().sampler.live is not None
    pass_time(3601)
    page = text(client.get(ROW))
    assert "100 % of new traces are recorded" in page
    assert "The policy on this page has expired." in page


def test_the_page_names_the_environment_variable(monkeypatch):
    """An operator can find it."""
    client = login(is_superuser=True)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.125")
    with override_settings(OTEL={"SERVICE_NAME": "tests"}):
        page = text(client.get(ADD))
        monkeypatch.undo()
    assert "12.5 % of new traces are recorded" in page
    assert "Set by the environment variable OTEL_TRACES_SAMPLER_ARG" in page


@pytest.mark.parametrize(
    ("otel", "message"),
    [
        ({"SAMPLING": {"LIVE": False}}, 'OTEL["SAMPLING"]["LIVE"] is False, so what is saved here has no effect.'),
        ({"ENABLED": False}, "Telemetry is off in this process, so what is saved here has no effect."),
    ],
)
def test_the_page_says_when_it_has_no_effect(otel, message):
    """Better than a toggle that does nothing."""
    client = login(is_superuser=True)
    with override_settings(OTEL={"SERVICE_NAME": "tests", **otel}):
        assert message in text(client.get(ADD))


def test_the_page_says_when_this_process_has_yet_to_apply_the_row():
    """As in a worker that did not take the save itself."""
    client = login(is_superuser=True)
    SamplingPolicy.objects.bulk_create([SamplingPolicy(pk=1, ratio=0.5, version=3)])
    assert "This process has not applied version 3 yet; it will within 5 s." in text(client.get(ROW))


def test_a_hostile_note_is_escaped():
    """On the page and in the title."""
    client = login(is_superuser=True)
    SamplingPolicy(ratio=0.5, note="<script>alert(1)</script>").save()
    assert b"<script>alert" not in client.get(ROW).content


def test_the_page_needs_no_inline_script_or_style():
    """It works under Content-Security-Policy default-src 'self'."""
    client = login(is_superuser=True)
    SamplingPolicy(ratio=0.5).save()
    for url in (ROW, f"{LIST}1/history/", f"{LIST}1/delete/"):
        page = client.get(url).content.decode()
        scripts = re.findall(r"<script\b[^>]*>", page)
        assert all("src=" in tag or "application/json" in tag for tag in scripts), scripts
        assert "<style" not in page
        assert not re.search(r"\son[a-z]+=\"", page)
        assert " style=" not in page
    assert "django_otel/admin.css" in client.get(ROW).content.decode()


# --- The migration. ---


def test_the_migrations_are_complete_and_bring_the_default_permissions():
    """makemigrations finds nothing to do, whatever the project's DEFAULT_AUTO_FIELD is."""
    for auto_field in ("django.db.models.BigAutoField", "django.db.models.AutoField"):
        with override_settings(DEFAULT_AUTO_FIELD=auto_field):
            call_command("makemigrations", "django_otel", check=True, dry_run=True, verbosity=0)
    codes = Permission.objects.filter(content_type__app_label="django_otel").values_list("codename", flat=True)
    assert {f"{action}_samplingpolicy" for action in ("add", "change", "delete", "view")} <= set(codes)
    assert apps.get_app_config("django_otel").default_auto_field == "django.db.models.BigAutoField"


# --- Many rules, and a replica. ---


class _Fields(HTMLParser):
    """The fields that a browser would send of the page's form, templates left out."""

    def __init__(self):
        super().__init__()
        self.data, self._select, self._in_template = [], None, 0

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "template":
            self._in_template += 1
        if self._in_template:
            return
        if tag == "select":
            self._select = given.get("name")
        elif tag == "option" and self._select and "selected" in given:
            self.data.append((self._select, given.get("value", "")))
        elif tag == "input" and given.get("name"):
            kind = given.get("type", "text")
            if kind in ("submit", "button") or (kind in ("checkbox", "radio") and "checked" not in given):
                return
            self.data.append((given["name"], given.get("value") or ("on" if kind == "checkbox" else "")))

    def handle_endtag(self, tag):
        self._in_template -= tag == "template"
        if tag == "select":
            self._select = None


def fields_of(page) -> dict[str, str]:
    parser = _Fields()
    parser.feed(page.content.decode())
    return {name: value for name, value in parser.data if name not in ("q", "_popup")}


@pytest.mark.heavy
@pytest.mark.parametrize("form", ["urlencoded", pytest.param("multipart", marks=pytest.mark.long)])
@pytest.mark.scaled
def test_as_many_rules_as_are_allowed_can_be_saved_and_removed(form, settings):
    """They make more fields than DATA_UPLOAD_MAX_NUMBER_FIELDS; the CSRF check holds nevertheless."""
    number_of_rules = sizes.scaled(12, MAX_RULES)
    settings.DATA_UPLOAD_MAX_NUMBER_FIELDS = sizes.scaled(50, 1000)
    user = User.objects.create_superuser("op3")
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    SamplingPolicy.objects.create(ratio=0.5)
    SamplingRule.objects.bulk_create(
        [SamplingRule(path=f"/a{n}/*", ratio=0.5, note="ö&=;") for n in range(number_of_rules)]
    )

    def send(data, url=ROW):
        if form == "multipart":
            return client.post(url, data)
        return client.post(url, urlencode(data), content_type="application/x-www-form-urlencoded")

    data = fields_of(client.get(ROW))
    assert len(data) > settings.DATA_UPLOAD_MAX_NUMBER_FIELDS
    refused = send({**data, "csrfmiddlewaretoken": "x"})
    assert refused.status_code == 403
    answer = send({**data, "rules-0-ratio": "0.75", "rules-7-note": "ü" * 150})
    assert answer.status_code == 302, text(answer)[:3000]
    assert SamplingRule.objects.filter(ratio=0.75).count() == 1
    assert SamplingRule.objects.filter(note="ö&=;").count() == number_of_rules - 1
    assert send({**data, "rules-0-ratio": "0.75"}, ROUTES).status_code == 200

    data = fields_of(client.get(ROW))
    removed = {name.replace("-id", "-DELETE"): "on" for name in data if re.fullmatch(r"rules-\d+-id", name)}
    assert send({**data, **removed}).status_code == 302
    assert not SamplingRule.objects.exists()

    forms = {"rules-TOTAL_FORMS": str(number_of_rules), "rules-INITIAL_FORMS": "0"}
    for number in range(number_of_rules):
        forms |= {
            f"rules-{number}-path": f"/b{number}/*",
            f"rules-{number}-ratio": "1",
            f"rules-{number}-priority": "0",
        }
    page = fields_of(client.get(ROW))
    kept = {name: value for name, value in page.items() if not name.startswith("rules-")}
    assert send({**kept, **forms}).status_code == 302
    assert SamplingRule.objects.count() == number_of_rules


@pytest.mark.scaled
def test_more_rules_than_are_allowed_are_refused_with_a_sentence(monkeypatch):
    most = sizes.scaled(5, MAX_RULES)
    monkeypatch.setattr(admin_forms, "MAX_RULES", most)
    monkeypatch.setattr(admin_forms.SamplingRuleInline, "max_num", most)
    client = login(is_superuser=True)
    SamplingPolicy.objects.create(ratio=0.5)
    answer = save(client, ROW, **rules(*({"path": f"/a{number}/*"} for number in range(most + 1))))
    assert answer.status_code == 200
    assert f"at most {most}" in text(answer)
    assert not SamplingRule.objects.exists()


def test_a_form_without_end_is_refused_and_a_stranger_has_djangos_limit():
    client = login(is_superuser=True)
    endless = urlencode({f"x{number}": "" for number in range(20_000)})
    assert client.post(ROW, endless, content_type="application/x-www-form-urlencoded").status_code == 400
    assert Client().post(ROW, {f"x{number}": "" for number in range(2000)}).status_code in (302, 400)


class LaggingReplica:
    """A database router whose replica never gets what was saved."""

    def db_for_read(self, model, **hints):
        return "other" if model._meta.app_label in ("django_otel", "admin") else None

    def db_for_write(self, model, **hints):
        return "default" if model._meta.app_label in ("django_otel", "admin") else None


@pytest.mark.heavy
@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_the_page_reads_where_it_writes():
    """Behind a read replica that lags, nothing "doesn't exist" and no save is refused."""
    client = login(is_superuser=True)
    with override_settings(DATABASE_ROUTERS=[LaggingReplica()]):
        assert save(client, ADD, ratio="0.25", **rules({"path": "/a/*"})).status_code == 302
        for ratio in ("0.5", "0.75"):
            data = fields_of(client.get(ROW))
            assert data["rules-0-path"] == "/a/*"
            answer = client.post(ROW, {**data, "ratio": ratio, "rules-0-ratio": ratio})
            assert answer.status_code == 302, text(answer)[:2000]
            assert runtime.current().sampler.ratio_now() == float(ratio)
            assert SamplingRule.objects.using("default").get().ratio == float(ratio)
        assert client.get(f"{LIST}1/history/").status_code == 200
        page = client.get(f"{LIST}1/delete/")
        assert page.status_code == 200
        assert client.post(f"{LIST}1/delete/", {"post": "yes"}).status_code == 302
    assert not SamplingPolicy.objects.using("default").exists()
    assert not SamplingRule.objects.using("default").exists()


def test_a_change_of_nothing_is_named_in_the_history():
    """As Django names it, in place of an empty line."""
    client = login(is_superuser=True)
    save(client, ADD, ratio="0.1")
    save(client, ROW, ratio="0.1")
    assert LogEntry.objects.latest("pk").change_message == "No fields changed."
