"""The button "Traces" on the page of an object, and the list behind it."""

from __future__ import annotations

import time

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.urls import reverse

from django_otel import business
from django_otel.console import objects
from django_otel.tracestore.items import StoredSpans
from tests.console.test_console import HOSTILE


@pytest.fixture
def group(db, monkeypatch):
    monkeypatch.setattr(business, "registered_labels", lambda: ["auth.Group"])
    return Group.objects.create(name="shops")


@pytest.fixture
def editor(viewer):
    for name in ("change_group", "view_group", "change_user", "view_user"):
        viewer.user_permissions.add(Permission.objects.get(codename=name))
    return viewer


def test_the_button_leads_to_the_traces_of_the_object(console, page, editor, group):
    address = objects.address_of("admin", group)
    text = page(reverse("admin:auth_group_change", args=[group.pk])).content.decode()
    assert f'<li><a href="{address}">Traces</a></li>' in text and "History" in text
    now_ns = time.time_ns()
    for number, pk in enumerate((str(group.pk), str(group.pk), "999"), 1):
        console.store().write(
            [StoredSpans(f"{number:032x}", spans=1, start_ns=now_ns, end_ns=now_ns, rank=2, name=f"trace {number}",
                         objects={("auth.group", pk)})],
            print,
        )  # fmt: skip
    listed = page(address).content.decode()
    assert "trace 1" in listed and "trace 2" in listed and "trace 3" not in listed


def test_only_registered_models_and_those_who_may_look(console, page, editor, group, client):
    user = User.objects.create_user("ada")
    assert "trace/object/" not in page(reverse("admin:auth_user_change", args=[user.pk])).content.decode()
    editor.user_permissions.remove(Permission.objects.get(codename="view_console"))
    assert "trace/object/" not in page(reverse("admin:auth_group_change", args=[group.pk])).content.decode()
    assert page(objects.address_of("admin", group)).status_code == 403


def test_nothing_of_an_address_becomes_markup(console, page):
    address = reverse("admin:django_otel_trace_object", args=["x", HOSTILE.replace("\x00", "")])
    text = page(address).content.decode()
    assert "<script>alert" not in text and "No traces" in text
