"""Texts that Django and its usual packages write: what is secret in them, and what is not."""

from __future__ import annotations

import pytest
from django.contrib.sessions.backends import cache, cached_db
from django.core import checks
from django.db import models
from django.db.migrations.loader import MigrationLoader
from django.test.utils import isolate_apps

from django_otel.redaction.scrub import REDACTED, Scrubber
from tests.redaction.fakes import Fakes

SCRUBBER = Scrubber()
FAKES = Fakes(11)


@pytest.mark.django_db
@pytest.mark.parametrize("backend", [cache, cached_db])
def test_the_key_under_which_a_session_is_cached(backend):
    key = backend.SessionStore()._get_new_session_key()
    text = f"cache.get(':1:{backend.KEY_PREFIX}{key}')"
    assert SCRUBBER.text(text) == f"cache.get(':1:{backend.KEY_PREFIX}{REDACTED}')"


@pytest.mark.parametrize("text", ["_auth_user_hash={}", "{{'_auth_user_id': '12', '_auth_user_hash': '{}'}}"])
def test_the_hash_that_keeps_a_user_signed_in(text):
    digest = FAKES.draw("hex64")
    assert digest not in SCRUBBER.text(text.format(digest))


@pytest.mark.parametrize("name", ["Token", "shop.StaticDevice", "PartnerApiKey", "AuthSession"])
def test_the_key_of_an_object_that_is_named_after_a_secret(name):
    key = FAKES.draw("hex")
    assert SCRUBBER.text(f"{name}(id=12, key='{key}')") == f"{name}(id=12, key='{REDACTED}')"
    assert SCRUBBER.text(f"Product(id=12, key='{key}')") == f"Product(id=12, key='{key}')"


@isolate_apps("tests.app")
def test_a_message_of_djangos_checks_stays():
    class Partner(models.Model):
        api_key = models.CharField()
        password = models.CharField(max_length=-1)

        class Meta:
            app_label = "app"

    messages = [
        str(message)
        for field in Partner._meta.get_fields()
        for message in field.check()
        if message.level >= checks.ERROR
    ]
    assert messages
    assert [SCRUBBER.text(text) for text in messages] == messages


@pytest.mark.parametrize(
    "text",
    [
        '{"token":"This field is required."}',
        '{"password": "Ensure this field has at least 8 characters."}',
        '{"api_key":"Not a valid string."}',
        "{'password2': \"The two password fields didn't match.\"}",
    ],
)
def test_what_a_serializer_says_of_a_field_stays(text):
    assert SCRUBBER.text(text) == text


@pytest.mark.parametrize("word", ["Correct horse battery staple.", "This is my password", "Invalid"])
def test_a_phrase_under_a_password_is_one(word):
    assert word not in SCRUBBER.text(f'{{"password": "{word} 12"}}')


@pytest.mark.parametrize("app", ["auth", "sessions", "authtoken"])
def test_the_name_of_a_migration_stays(app):
    loader = MigrationLoader(None)
    nodes = [node for node in loader.graph.nodes if node[0] in ("auth", "sessions")]
    assert nodes
    for _, name in nodes:
        text = f"Migration shop.0002_x dependencies reference nonexistent parent node ({app!r}, {name!r})"
        assert SCRUBBER.text(text) == text


def test_a_key_that_is_named_after_its_service():
    assert SCRUBBER.value("stripe_key", "abcd1234") == REDACTED
    assert SCRUBBER.value("SENDGRID_KEY", "abcd1234") == REDACTED
    assert SCRUBBER.value("stripe_publishable_key", "abcd1234") == "abcd1234"
    assert SCRUBBER.value("encryption_key_id", "alias/main") == "alias/main"
