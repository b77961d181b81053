"""Sign-ins and refused requests are counted by kind, with no word about who or what."""

from __future__ import annotations

import pytest
from django.contrib.auth import authenticate
from django.contrib.auth.models import User
from django.core.exceptions import DisallowedHost, PermissionDenied, SuspiciousFileOperation, SuspiciousOperation
from django.core.handlers.exception import response_for_exception
from django.http import HttpResponse
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from django_otel.base import guard


def raising(error):
    def view(request):
        raise error

    return csrf_exempt(view)


async def forbidden_async(request):
    raise PermissionDenied


urlpatterns = [
    path("forbidden/", raising(PermissionDenied("secret"))),
    path("forbidden-async/", forbidden_async),
    path("suspicious/", raising(SuspiciousOperation("secret"))),
    path("file/", raising(SuspiciousFileOperation("secret"))),
    path("host/", lambda request: HttpResponse(request.get_host())),
    path("form/", lambda request: HttpResponse("ok")),
    path("boom/", raising(ValueError("secret"))),
]


@pytest.fixture
def site(settings):
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = ["django_otel.middleware.OTelMiddleware", "django.middleware.csrf.CsrfViewMiddleware"]
    settings.ALLOWED_HOSTS = ["testserver"]


def security(otel_metrics, event):
    return otel_metrics.value("django.security.events", django__security__event=event)


@pytest.mark.django_db
def test_sign_ins_are_counted_without_the_users_name(client, otel_metrics):
    User.objects.create_user("ann", password="correct horse")
    assert client.login(username="ann", password="correct horse")
    assert not client.login(username="ann", password="wrong")
    assert authenticate(username="unknown", password="wrong") is None
    client.logout()
    values = {
        event: otel_metrics.value("django.auth.events", django__auth__event=event)
        for event in ("login", "login_failed", "logout")
    }
    assert values == {"login": 1, "login_failed": 2, "logout": 1}
    assert len(otel_metrics.series("django.auth.events")) == 3


@pytest.mark.parametrize(
    ("address", "event"),
    [
        ("/forbidden/", "permission_denied"), ("/suspicious/", "suspicious_operation"),
        ("/file/", "suspicious_operation"),
        ("/forbidden-async/", "permission_denied"),
    ],
)  # fmt: skip
def test_a_refused_request_is_counted_by_its_kind(site, otel_metrics, address, event):
    assert Client(raise_request_exception=False).get(address).status_code in (400, 403)
    assert security(otel_metrics, event) == 1
    assert len(otel_metrics.series("django.security.events")) == 1


async def test_an_async_request_is_counted_as_well(site, otel_metrics):
    assert (await AsyncClient(raise_request_exception=False).get("/forbidden-async/")).status_code == 403
    assert security(otel_metrics, "permission_denied") == 1


def test_a_host_that_is_not_allowed_is_counted_as_such(site, otel_metrics):
    assert Client(raise_request_exception=False).get("/host/", headers={"host": "evil.example"}).status_code == 400
    assert security(otel_metrics, "disallowed_host") == 1


def test_a_missing_csrf_token_is_counted(site, otel_metrics):
    assert Client(enforce_csrf_checks=True).post("/form/").status_code == 403
    assert security(otel_metrics, "csrf") == 1


def test_other_responses_are_not_counted(site, otel_metrics):
    client = Client(raise_request_exception=False)
    for address in ("/form/", "/boom/", "/missing/"):
        client.get(address)
    assert otel_metrics.series("django.security.events") == []


@pytest.mark.django_db
def test_nothing_is_counted_when_it_is_off(site, otel_metrics):
    with override_settings(OTEL={"AUTH": False}):
        assert Client(raise_request_exception=False).get("/forbidden/").status_code == 403
        assert Client(enforce_csrf_checks=True).post("/form/").status_code == 403
        assert not Client().login(username="ann", password="wrong")
        assert otel_metrics.series("django.security.events") == otel_metrics.series("django.auth.events") == []
    assert Client(raise_request_exception=False).get("/forbidden/").status_code == 403
    assert security(otel_metrics, "permission_denied") == 1


def test_a_fault_of_ours_leaves_djangos_response_as_it_is(site, monkeypatch):
    """The response is the same object's type and status, whatever happens to the count."""
    from django_otel import runtime

    def broken(name):
        raise RuntimeError("broken")

    monkeypatch.setattr(runtime.store, "catalogued", broken)
    request = RequestFactory().get("/")
    assert response_for_exception(request, PermissionDenied()).status_code == 403
    assert response_for_exception(request, DisallowedHost()).status_code == 400
    monkeypatch.undo()
    assert "counting a security event" in guard.fault_counts()
    guard.reset()
