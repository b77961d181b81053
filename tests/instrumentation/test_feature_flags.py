"""Evaluations of feature flags are span events in the form of the semantic conventions."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest

import django_otel
from django_otel.instrumentation import feature_flags
from tests.services import ROOT

EVENT = "feature_flag.evaluation"


def events(span) -> list[dict[str, object]]:
    return [dict(event.attributes) for event in span.events if event.name == EVENT]


@pytest.fixture
def client():
    openfeature = pytest.importorskip("openfeature.api")
    from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider

    flags = {
        "new-checkout": InMemoryFlag("on", {"on": True, "off": False}),
        "banner": InMemoryFlag("long", {"long": "x" * 999}),
        "limits": InMemoryFlag("all", {"all": {"customer": "grace"}}),
    }
    openfeature.set_provider(InMemoryProvider(flags))
    yield openfeature.get_client()
    openfeature.shutdown()


def test_openfeature(settings, otel_spans, client):
    from openfeature.evaluation_context import EvaluationContext

    settings.OTEL = {"FEATURE_FLAGS": True}
    context = EvaluationContext("grace@example.org", {"plan": "gold"})

    async def evaluate():
        return await client.get_boolean_value_async("new-checkout", False, context)

    with django_otel.span("page"):
        assert client.get_boolean_value("new-checkout", False, context) is True
        assert asyncio.run(evaluate()) is True
        assert client.get_boolean_value("unknown", False, context) is False
        assert len(client.get_string_value("banner", "")) == 999
        assert client.get_object_value("limits", {}) == {"customer": "grace"}
    span = otel_spans.one("page")
    first, again, unknown, banner, limits = events(span)
    assert (
        first
        == again
        == {
            "feature_flag.key": "new-checkout",
            "feature_flag.provider.name": "In-Memory Provider",
            "feature_flag.result.variant": "on",
            "feature_flag.result.value": True,
            "feature_flag.result.reason": "static",
        }
    )
    assert unknown["error.type"] == "flag_not_found" and unknown["feature_flag.result.value"] is False
    assert len(banner["feature_flag.result.value"]) == 256
    assert "feature_flag.result.value" not in limits
    assert "grace" not in span.to_json()


def test_without_a_span_and_when_off_nothing_is_recorded(settings, otel_spans, client, monkeypatch):
    settings.OTEL = {"FEATURE_FLAGS": True}
    assert client.get_boolean_value("new-checkout", False) is True
    monkeypatch.setattr(feature_flags, "_describe", lambda *_: 1 / 0)
    with django_otel.span("fault"):
        assert client.get_boolean_value("new-checkout", False) is True
    settings.OTEL = {}
    with django_otel.span("off"):
        assert client.get_boolean_value("new-checkout", False) is True
    assert events(otel_spans.one("off")) == []


WAFFLE = """
import json, django
from django.conf import settings
settings.configure(
    SECRET_KEY="only for tests", USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "waffle", "django_otel"],
    OTEL={"FEATURE_FLAGS": True, "TRACES": {"EXPORTERS": ["memory"]}},
    WAFFLE_CREATE_MISSING_FLAGS=True, WAFFLE_FLAG_DEFAULT=True,
)
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
import django_otel, waffle
from django.test import override_settings
from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest
from django_otel import runtime
from waffle.models import Flag, Switch
Flag.objects.create(name="new-checkout", everyone=True)
Switch.objects.create(name="mail", active=False)
request = HttpRequest(); request.user = AnonymousUser()
def use():
    assert waffle.flag_is_active(request, "new-checkout") is True
    assert waffle.switch_is_active("mail") is False
    assert not waffle.sample_is_active("missing")
    assert waffle.flag_is_active(request, "made")
use()
with django_otel.span("page"):
    use()
found = list(runtime.memory_spans())
with override_settings(OTEL={"TRACES": {"EXPORTERS": ["memory"]}}):
    with django_otel.span("off"):
        use()
    found += runtime.memory_spans()
print(json.dumps({
    span.name: [dict(event.attributes) for event in span.events] for span in found if not span.parent
}))
"""


def test_waffle():
    pytest.importorskip("waffle")
    done = subprocess.run(
        [sys.executable, "-c", WAFFLE], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["off"] == []
    assert [(event["feature_flag.key"], event["feature_flag.result.variant"]) for event in found["page"]] == [
        ("new-checkout", "on"), ("mail", "off"), ("missing", "off"), ("made", "on"),
    ]  # fmt: skip
    assert found["page"][0] == {
        "feature_flag.key": "new-checkout",
        "feature_flag.provider.name": "waffle",
        "feature_flag.result.variant": "on",
        "feature_flag.result.value": True,
    }
