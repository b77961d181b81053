"""The page of the sampling policy: one row, permissions, history, messages, and what is in force."""

from __future__ import annotations

import datetime
import html
import re
import time

import pytest
from django.apps import apps
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.test import Client, override_settings
from django.utils import timezone

from django_otel import live, runtime
from django_otel.models import SamplingPolicy

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/django_otel/samplingpolicy/"
ADD = f"{LIST}add/"
ROW = f"{LIST}1/change/"


@pytest.fixture(autouse=True)
def _fresh():
    """Each test begins and ends with the settings' policy."""
    live._followers.clear()
    runtime.current().sampler.swap(None)
    yield
    live._followers.clear()
    runtime.current().sampler.swap(None)


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
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", response.content.decode())))


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
    assert sampler.policy is sampler.base


def test_the_address_of_the_list_leads_to_the_row_or_to_the_form_that_makes_it():
    """There is no list of one."""
    client = login(is_superuser=True)
    assert client.get(LIST).url == ADD
    SamplingPolicy(ratio=0.5).save()
    assert client.get(LIST).url == ROW
    assert client.get(ADD).url == ROW
    assert "add another" not in text(client.get(ROW))


def test_a_second_row_cannot_be_added():
    """Whoever comes second is told so, and the first one's policy stays."""
    client = login(is_superuser=True)
    SamplingPolicy(ratio=0.5).save()

    response = save(client, ADD, ratio="0.9")
    assert response.url == ROW
    assert "somebody else has made the sampling policy meanwhile" in text(client.get(ROW))
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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ratio": "25"}, "The ratio is 25; expected a number from 0.0 to 1.0. For 25 % write 0.25."),
        ({"ratio": "-0.1"}, "The ratio is -0.1; expected a number from 0.0 to 1.0."),
        ({"ratio": "1000"}, "The ratio is 1000; expected a number from 0.0 to 1.0."),
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


# --- What is in force. ---


def test_the_page_says_what_is_in_force_and_why():
    """Settings, then the policy, then the policy off, then run out."""
    client = login(is_superuser=True)
    assert "100 % of new traces are recorded" in text(client.get(ADD))
    assert 'Set by the default of OTEL["SAMPLING"]["RATIO"]: no policy is saved here.' in text(client.get(ADD))

    save(client, ADD, ratio="0.025")
    page = text(client.get(ROW))
    assert "2.5 % of new traces are recorded" in page
    assert "Set by the policy on this page, version 1." in page
    assert 'Then 100 %, from the default of OTEL["SAMPLING"]["RATIO"]' in page
    assert "in every worker process within 5 seconds, without a restart" in page

    save(client, ROW, enabled=None, ratio="0.025")
    assert "the policy on this page is not enabled." in text(client.get(ROW))

    policy = SamplingPolicy.objects.get()
    policy.enabled, policy.expires_at = True, timezone.now() + datetime.timedelta(seconds=0.05)
    policy.save()
    assert runtime.current().sampler.live is not None
    time.sleep(0.1)
    page = text(client.get(ROW))
    assert "100 % of new traces are recorded" in page
    assert "the policy on this page has run out." in page


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
    assert "This process has not yet applied version 3; it does so within 5 s." in text(client.get(ROW))


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
