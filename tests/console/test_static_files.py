"""Our pages in the admin, before `collectstatic` has put their files into the manifest."""

from __future__ import annotations

import json

import pytest
from django.contrib.auth.models import User
from django.contrib.staticfiles import finders
from django.core.checks import run_checks
from django.test import Client

from django_otel.live_sampling.assets import FILES

PAGES = (
    "/admin/django_otel/trace/", "/admin/django_otel/dashboard/", "/admin/django_otel/samplingpolicy/",
    "/admin/django_otel/samplingpolicy/1/change/", "/admin/django_otel/samplingpolicy/add/",
)  # fmt: skip


@pytest.fixture
def old_manifest(settings, tmp_path):
    """A project whose static files were collected before it installed us."""
    paths = {}
    for finder in finders.get_finders():
        for path, _ in finder.list([]):
            if not path.startswith("django_otel/"):
                paths[path] = path
    (tmp_path / "staticfiles.json").write_text(json.dumps({"version": "1.1", "paths": paths, "hash": "x"}))
    settings.DEBUG = False
    settings.STATIC_ROOT = str(tmp_path)
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"},
    }


@pytest.mark.django_db
@pytest.mark.heavy
def test_pages_survive_and_a_check_says_what_to_do(old_manifest):
    client = Client()
    client.force_login(User.objects.create_superuser("admin", password="x"))
    for path in PAGES:
        answer = client.get(path, follow=True)
        assert answer.status_code == 200, path
        assert "/django_otel/" in answer.content.decode()
    (found,) = [message for message in run_checks(tags=["django_otel"]) if message.id == "django_otel.W017"]
    assert "collectstatic" in found.hint
    assert all(path in found.msg for path in FILES)


def test_with_plain_storage_nothing_is_missing():
    assert not [message for message in run_checks(tags=["django_otel"]) if message.id == "django_otel.W017"]


def test_every_file_of_ours_is_looked_for():
    ours = {path for finder in finders.get_finders() for path, _ in finder.list([]) if path.startswith("django_otel/")}
    assert ours == set(FILES)
