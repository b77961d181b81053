"""The pages of the sampling policy where its tables are missing or their database does not answer."""

from __future__ import annotations

import re

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import DatabaseError, connection, connections
from django.test import Client, override_settings
from opentelemetry.trace import SpanKind

from django_otel import models, runtime
from django_otel.models import SamplingPolicy
from django_otel.sampling.policy import Policy
from tests import sizes
from tests.live_sampling.test_admin import ADD, FORCE, LIST, ROUTES, ROW, STATUS, text
from tests.services import free_port

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("fresh_policy")]

DELETE, HISTORY = f"{LIST}1/delete/", f"{LIST}1/history/"
PAGES = (LIST, ADD, ROW, DELETE, HISTORY)
FORM = {"enabled": "on", "ratio": "0.25", "expires_at_0": "", "expires_at_1": "", "note": ""}


@pytest.fixture
def client():
    """An operator. A fault that is not answered is a page of Django's with status 500, as visitors get it."""
    client = Client(raise_request_exception=False)
    client.force_login(User.objects.create_superuser("op", password="op"))
    return client


@pytest.fixture(params=sizes.few(["zero", "0001"], 2))
def tables_of(request):
    """The tables as before a migration; afterwards as they are now."""
    call_command("migrate", "django_otel", request.param, verbosity=0)
    yield request.param
    call_command("migrate", "django_otel", verbosity=0)


class PolicyInOther:
    """A database router that keeps the policy in the alias "other"."""

    def db_for_write(self, model, **hints):
        return "other" if model._meta.app_label == "django_otel" else None

    db_for_read = db_for_write


@pytest.fixture(params=["postgresql", "sqlite3"])
def database_gone(request, tmp_path):
    """The policy is in a database of its own which does not answer; the admin's own one does."""
    where = {
        "postgresql": {"NAME": "x", "HOST": "127.0.0.1", "PORT": str(free_port())},
        "sqlite3": {"NAME": str(tmp_path / "missing_folder" / "policy.sqlite3")},
    }
    settings, connected = connections.settings["other"], connections["other"]
    connections.settings["other"] = {
        **settings, "ENGINE": f"django.db.backends.{request.param}", **where[request.param]
    }  # fmt: skip
    connections["other"] = connections.create_connection("other")
    with override_settings(DATABASE_ROUTERS=[PolicyInOther()]):
        yield
    connections["other"].close()
    connections.settings["other"], connections["other"] = settings, connected


@pytest.mark.heavy
@pytest.mark.parametrize("is_atomic", sizes.few([False, True], 2))
def test_every_page_says_which_command_makes_the_tables(tables_of, client, is_atomic):
    """Instead of Django's page for errors; afterwards the same addresses work, without a restart."""
    connection.settings_dict["ATOMIC_REQUESTS"] = is_atomic
    try:
        for address in (LIST, ADD, ROW):
            # The list of one leads on where the table of an earlier version tells that there is none.
            response = client.get(address, follow=True)
            assert response.status_code == 503, address
            assert "The tables of the sampling policy are missing" in text(response)
            assert "<code>manage.py migrate django_otel</code>" in response.content.decode()
            assert "100 % of new traces are recorded" in text(response)
        for address in (ADD, ROW):
            response = client.post(address, FORM)
            assert response.status_code == 503, address
            assert "Nothing was saved." in text(response)
        assert {client.get(address).status_code for address in (DELETE, HISTORY)} == {503}
        assert not LogEntry.objects.exists()
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False

    call_command("migrate", "django_otel", verbosity=0)
    assert client.get(LIST, follow=True).status_code == 200
    assert client.post(ADD, FORM).status_code == 302
    assert client.get(STATUS).status_code == 200


def test_what_the_script_asks_gets_an_answer_it_can_show(tables_of, client, otel_spans):
    """As JSON, and without a trace, as when all is well. The preview of routes needs no table."""
    response = client.get(STATUS)
    assert response.status_code == 503
    assert response.headers["Content-Type"] == "application/json"
    assert "no tables of the sampling policy" in response.json()["problem"]
    assert client.get(ROUTES).status_code == 200
    assert [span.name for span in otel_spans if span.kind is SpanKind.SERVER] == []


@pytest.mark.heavy
def test_the_rest_of_the_admin_does_not_need_the_tables(tables_of, client):
    """Its front page, ours in the list of apps, the console, and a link for one visit."""
    otel = {"SERVICE_NAME": "tests", "CONSOLE": {"ENABLED": True}, "SAMPLING": {"FORCE": True}}
    with override_settings(OTEL=otel):
        for address in ("/admin/", "/admin/django_otel/", "/admin/django_otel/trace/", "/admin/django_otel/dashboard/"):
            assert client.get(address).status_code == 200, address
        assert client.get(f"/admin/django_otel/trace/{'a' * 32}/").status_code in (200, 404)
        assert client.post(FORCE).status_code == 302
    assert "Created a link" in LogEntry.objects.get().get_change_message()


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_a_database_that_does_not_answer_is_named_and_the_policy_in_force_shown(database_gone, client):
    """With the policy that this process goes on applying; nothing of the driver's words."""
    runtime.current().sampler.swap(Policy(0.25, "admin", version=3))
    for address in PAGES:
        response = client.get(address)
        assert response.status_code == 503, address
        said = text(response)
        assert "The database does not answer" in said
        assert 'Database "other", which has the sampling policy, does not answer.' in said
        assert "25 % of new traces are recorded" in said
        assert "version 3" in said
        assert "manage.py" not in said
        assert not re.search(r"missing_folder|refused|127\.0\.0\.1", said)
    response = client.post(ADD, FORM)
    assert response.status_code == 503
    assert "Nothing was saved." in text(response)
    assert client.get(STATUS).json() == {"problem": 'Database "other", which has the sampling policy, does not answer.'}
    assert runtime.current().sampler.ratio_now() == 0.25


@pytest.mark.heavy
def test_who_may_not_see_the_policy_learns_nothing_of_its_tables(tables_of):
    """A visitor is sent to the login, staff without the permission is refused."""
    client = Client(raise_request_exception=False)
    assert client.get(LIST).status_code == 302
    client.force_login(User.objects.create_user("clerk", is_staff=True))
    for address in (*PAGES, STATUS):
        response = client.get(address, follow=True)
        assert response.status_code == 403, address
        assert "migrate" not in text(response)


def test_another_fault_is_not_hidden(client, monkeypatch):
    """With the tables there, whatever the database refuses stays the error it is."""
    SamplingPolicy(ratio=0.5).save()

    def refuse(using):
        raise DatabaseError("something else")

    monkeypatch.setattr(models, "read_state", refuse)
    assert client.get(ROW).status_code == 500
