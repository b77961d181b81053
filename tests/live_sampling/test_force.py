"""Forced traces: a signed link traces one visit whatever is sampled; anything else does nothing."""

from __future__ import annotations

import http.cookies
import time
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from django.core import signing
from django.core.exceptions import PermissionDenied
from django.test import AsyncClient, Client, override_settings
from opentelemetry.trace import SpanKind

import django_otel
from django_otel import runtime
from django_otel.live_sampling import force
from tests import services

STAFF = SimpleNamespace(pk=7, is_active=True, is_staff=True)
NO = {"RATIO": 0.0, "FORCE": True}


def forcing(service="tests", **sampling):
    return override_settings(OTEL={"SERVICE_NAME": service, "SAMPLING": {**NO, **sampling}})


def roots(spans):
    return [span for span in spans if span.kind is SpanKind.SERVER]


def link(token: str, path: str = "/hello/") -> str:
    return f"{path}?a=1&otel_force_token={quote(token)}&b=2"


def test_a_link_traces_the_visit_and_nobody_elses(otel_spans, otel_metrics):
    """The request that brings it and those after it in the same browser, whatever rules, limit and caller say."""
    visitor, other = Client(), Client()
    with forcing(RULES=[{"path": "*", "ratio": 0.0}, {"route": "*", "ratio": 0.0}], MAX_PER_SECOND=0.0001):
        token = django_otel.force_trace_token(STAFF, ttl_s=60)
        other.get("/hello/")
        answer = visitor.get(link(token))
        cookie = answer.cookies[force.COOKIE]
        visitor.get("/orders/5/")
        visitor.get("/json/", headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"})
        other.get("/hello/")
        Client().get("/hello/")

    found = roots(otel_spans)
    assert [span.name for span in found] == ["GET /hello/", "GET /orders/<int:pk>/", "GET /json/"]
    assert {span.attributes["sampling.reason"] for span in found} == {"forced"}
    assert f"{found[2].context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert (cookie["httponly"], cookie["samesite"], cookie["max-age"]) == (True, "Lax", "")
    assert "no-store" in answer["Cache-Control"]
    forced = {"sampling.decision": "recorded", "sampling.reason": "forced"}
    assert otel_metrics.value("django_otel.sampling.decisions", forced) == 3


def test_the_cookie_is_set_once_and_only_over_https_where_the_site_is(otel_spans):
    visitor = Client()
    with forcing():
        token = django_otel.force_trace_token(STAFF)
        assert visitor.get(link(token), secure=True).cookies[force.COOKIE]["secure"] is True
        assert force.COOKIE not in visitor.get("/hello/", secure=True).cookies
    assert len(roots(otel_spans)) == 2


async def test_a_link_works_under_asgi(otel_spans):
    visitor = AsyncClient()
    with forcing():
        await visitor.get(link(django_otel.force_trace_token(STAFF), "/async/"))
        await visitor.get("/async/")
    assert len(roots(otel_spans)) == 2


def broken_tokens():
    """Forged, cut, changed, signed with another key or for something else, and no token at all."""
    good = django_otel.force_trace_token(STAFF)
    content = [str(STAFF.pk), time.time() + 60]
    body, rest = good.split(":", 1)
    return {
        "empty": "", "nonsense": "x", "unsigned": body, "cut": good[:-1], "changed": f"{body[:-1]}A:{rest}",
        "long": "a" * 100_000, "other key": signing.dumps(content, key="another", salt=force._salt()),
        "other salt": signing.dumps(content, salt="django.core.signing"),
        "other content": signing.dumps({"pk": 1}, salt=force._salt()),
        "no time": signing.dumps(["7", "soon"], salt=force._salt()), "bytes": "\x00\xff%00",
    }  # fmt: skip


@pytest.mark.parametrize("where", ["link", "cookie"])
def test_forged_tokens_do_nothing(otel_spans, where):
    with forcing():
        for name, token in broken_tokens().items():
            visitor = Client()
            if where == "link":
                answer = visitor.get(link(token))
            else:
                # By hand: newer Pythons refuse control characters in a cookie of their own.
                morsel = http.cookies._quote(token)
                answer = visitor.get("/hello/", HTTP_COOKIE=f"{force.COOKIE}={morsel}")
            assert answer.status_code == 200, name
            assert force.COOKIE not in answer.cookies, name
    assert list(otel_spans) == []


def test_an_expired_token_ends_the_visit(otel_spans, pass_time):
    visitor = Client()
    with forcing():
        token = django_otel.force_trace_token(STAFF, ttl_s=600)
        visitor.get(link(token))
        pass_time(601)
        visitor.get("/hello/")
        Client().get(link(token))
    assert len(roots(otel_spans)) == 1


def test_a_token_of_another_site_does_nothing(otel_spans):
    """Another service with the same key, or the same service with another key."""
    with forcing("gateway"):
        foreign = django_otel.force_trace_token(STAFF)
    with override_settings(SECRET_KEY="another"), forcing():
        other_key = django_otel.force_trace_token(STAFF)
    with forcing():
        Client().get(link(foreign))
        Client().get(link(other_key))
        assert list(otel_spans) == []
    with override_settings(SECRET_KEY="new", SECRET_KEY_FALLBACKS=["another"]), forcing():
        # A key that was replaced in good order goes on.
        Client().get(link(other_key))
    assert len(roots(otel_spans)) == 1


def test_without_the_setting_a_token_does_nothing(otel_spans):
    with forcing(FORCE=False):
        visitor = Client()
        assert force.COOKIE not in visitor.get(link(django_otel.force_trace_token(STAFF))).cookies
        visitor.get("/hello/")
    assert list(otel_spans) == []


def test_excluded_paths_stay_excluded(otel_spans):
    with override_settings(OTEL={"SERVICE_NAME": "tests", "SAMPLING": NO, "REQUEST": {"EXCLUDE": ["/hello/"]}}):
        Client().get(link(django_otel.force_trace_token(STAFF)))
    assert list(otel_spans) == []


@pytest.mark.parametrize(
    "user",
    [
        None,
        SimpleNamespace(pk=1, is_active=True, is_staff=False),
        SimpleNamespace(pk=1, is_active=False, is_staff=True),
    ],
)
def test_only_active_staff_gets_a_token(user):
    with forcing(), pytest.raises(PermissionDenied):
        django_otel.force_trace_token(user)


@pytest.mark.parametrize("ttl_s", [0, -1, float("nan"), float("inf"), 8 * 86_400, True, "60"])
def test_a_life_out_of_range_is_refused(ttl_s):
    with forcing(), pytest.raises(ValueError, match="seconds above 0"):
        django_otel.force_trace_token(STAFF, ttl_s)


def test_nobody_pays_with_a_query(otel_spans, django_assert_num_queries, db):
    with forcing(), django_assert_num_queries(0):
        visitor = Client()
        visitor.get("/hello/")
        visitor.get(link(django_otel.force_trace_token(STAFF)))
        visitor.get("/hello/")


def staff(name="alice", **fields):
    from django.contrib.auth.models import User

    return User.objects.create_user(name, is_staff=True, **fields)


def delete(user):
    user.delete()


def deactivate(user):
    user.is_active = False
    user.save()


def dismiss(user):
    user.is_staff = False
    user.save()


@pytest.mark.parametrize("end", [delete, deactivate, dismiss])
@pytest.mark.parametrize("where", ["link", "cookie"])
@pytest.mark.django_db
def test_a_token_ends_with_its_user(otel_spans, end, where):
    user, visitor = staff(), Client()
    with forcing():
        token = django_otel.force_trace_token(user)
        visitor.get(link(token))
        assert len(roots(otel_spans)) == 1
        # Its user is looked up, and that is no part of the trace.
        assert not [span for span in otel_spans if "auth_user" in span.name]
        end(user)
        if where == "link":
            assert force.COOKIE not in Client().get(link(token)).cookies
        else:
            visitor.get("/hello/")
    assert len(roots(otel_spans)) == 1


@pytest.mark.django_db(transaction=True)
async def test_a_token_ends_with_its_user_under_asgi(otel_spans):
    from asgiref.sync import sync_to_async

    user, visitor = await sync_to_async(staff)(), AsyncClient()
    with forcing():
        token = django_otel.force_trace_token(user)
        await visitor.get(link(token, "/async/"))
        await visitor.get("/async/")
        assert len(roots(otel_spans)) == 2
        await sync_to_async(user.delete)()
        await visitor.get("/async/")
        await AsyncClient().get(link(token, "/async/"))
    assert len(roots(otel_spans)) == 2


@pytest.mark.django_db
def test_a_token_made_with_a_permission_ends_with_it(otel_spans):
    from django.contrib.auth.models import Permission

    user = staff()
    user.user_permissions.add(Permission.objects.get(codename="change_samplingpolicy"))
    with forcing():
        token = force.make_token(user, 60.0, "django_otel.change_samplingpolicy")
        Client().get(link(token))
        assert len(roots(otel_spans)) == 1
        user.user_permissions.clear()
        Client().get(link(token))
    assert len(roots(otel_spans)) == 1


def test_the_cookie_is_for_this_site_alone(otel_spans):
    """Below a SCRIPT_NAME other sites of the same host do not get it."""
    with forcing():
        answer = Client().get(link(django_otel.force_trace_token(STAFF)), SCRIPT_NAME="/shop")
    assert answer.cookies[force.COOKIE]["path"] == "/shop/"


def test_the_token_is_redacted_where_query_strings_are_recorded(otel_spans):
    otel = {"SERVICE_NAME": "tests", "SAMPLING": NO, "REQUEST": {"QUERY": True}}
    with override_settings(OTEL=otel):
        token = django_otel.force_trace_token(STAFF)
        Client().get(link(token))
    assert token not in str(dict(roots(otel_spans)[0].attributes))
    assert "a=1" in roots(otel_spans)[0].attributes["url.query"]


def test_a_token_is_known_in_every_process_of_the_site(tmp_path):
    """Made by a command, used at a real server with ratio 0; the spans arrive at a real receiver."""

    with services.start_receiver() as receiver:
        otel = {"SERVICE_NAME": "site", "SAMPLING": NO, "TRACES": {"ENDPOINT": receiver.url, "BATCH": {"DELAY_S": 0.1}}}
        code = (
            "import django; django.setup(); import django_otel; from types import SimpleNamespace as N\n"
            "print(django_otel.force_trace_token(N(pk=7, is_active=True, is_staff=True), 600))"
        )
        token = services.run_python(code, services.server_env(otel)).stdout.strip()
        with services.serve("gunicorn", otel, workers=1) as server:
            services.wait_until(lambda: server.get("/hello/", timeout_s=40)[0] == 200, 60, "an answer")
            _, headers, _ = server.get(link(token))
            cookie = headers["set-cookie"].split(";")[0]
            server.get("/json/", {"Cookie": f"a=b; {cookie}; c=d"})
            server.get("/json/", {"Cookie": "a=b"})
            services.wait_until(lambda: len(receiver.spans()) >= 2, 60, "the spans")
            time.sleep(0.5)
        assert sorted(span.name for _, span in receiver.spans()) == ["GET /hello/", "GET /json/"]


def test_force_costs_nothing_where_it_is_off():
    from django_otel.middleware import get_observer

    runtime.restart()
    assert get_observer().find_force_token is None
