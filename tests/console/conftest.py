"""A store that this process reads and writes, and a user who may look at the pages."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from django_otel import runtime
from tests.tracestore.test_store import Counted, processor


@pytest.fixture
def console(tmp_path, monkeypatch):
    """A store that this process reads and writes, as in a server."""
    part = processor(tmp_path / "store", Counted())
    monkeypatch.setattr(runtime.current(), "console", part)
    yield part
    part.shutdown()
    part.finish_shutdown(5)


@pytest.fixture
def viewer(db):
    """Staff with the permission, and nothing else."""
    user = User.objects.create_user("viewer", password="x", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_console"))
    return user


@pytest.fixture
def page(viewer):
    client = Client()
    client.force_login(viewer)

    def get(path, **data):
        return client.get(path, data)

    get.client = client
    return get


@pytest.fixture
def configure(console, settings):
    """Puts other settings in force; a restart would end the store that the test uses."""

    def put(**otel):
        runtime.current().console = None
        settings.OTEL = {"SERVICE_NAME": "tests", **otel}
        runtime.current().console = console

    yield put
    runtime.current().console = None
