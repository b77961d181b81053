"""A secret that stands in a text more than once, under its name and without one; and columns that their table names."""

from __future__ import annotations

import logging

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_otel.redaction.scrub import REDACTED, Scrubber
from tests.redaction.fakes import Fakes

SCRUBBER = Scrubber()
FAKES = Fakes(7)


@pytest.mark.django_db
@pytest.mark.parametrize("column", ["token", "api_key"])
def test_djangos_log_of_a_statement_repeats_no_secret_in_its_arguments(column, caplog):
    secret = FAKES.draw("opaque")
    with (
        CaptureQueriesContext(connection),
        connection.cursor() as cursor,
        caplog.at_level(logging.DEBUG, "django.db.backends"),
    ):
        cursor.execute(f"CREATE TEMPORARY TABLE shop_partner (id integer, {column} varchar(64))")
        cursor.execute(f'UPDATE "shop_partner" SET "{column}" = %s WHERE "id" = %s', (secret, 12))
        message = caplog.records[-1].getMessage()
    assert message.count(secret) == 2
    scrubbed = SCRUBBER.text(message)
    assert secret not in scrubbed
    assert scrubbed.endswith(f"args=('{REDACTED}', 12); alias=default")


def test_a_word_under_a_sensitive_name_is_redacted_there_alone():
    text = "password=shopping shopping cart"
    assert SCRUBBER.text(text) == f"password={REDACTED} shopping cart"


@pytest.mark.parametrize(
    "text", ['"authtoken_token"."key" = \'{}\'', "`shop_apikey`.`hash` = '{}'", "[user_token].[value] IN ('{}')"]
)
def test_a_column_whose_table_says_that_it_holds_secrets(text):
    secret = FAKES.draw("hex")
    assert secret not in SCRUBBER.text(f"SELECT 1 FROM t WHERE ({text.format(secret)}) LIMIT 21")


@pytest.mark.parametrize("text", ['"shop_product"."key" = \'shoes\'', '"token_kind"."code" = \'refresh\''])
def test_a_column_of_another_table_and_a_word_stay(text):
    assert SCRUBBER.text(f"SELECT 1 FROM t WHERE {text}") == f"SELECT 1 FROM t WHERE {text}"


def test_a_fingerprint_of_a_public_key_stays():
    text = f"Accepted publickey for bob: ED25519 SHA256:{FAKES.draw('url64')}"
    assert SCRUBBER.text(text) == text


def test_a_code_of_oauth_is_random_and_others_are_words():
    code = FAKES.draw("opaque")
    assert SCRUBBER.text(f'{{"code": "{code}", "key": "shoes"}}') == f'{{"code": "{REDACTED}", "key": "shoes"}}'
    assert SCRUBBER.text('{"code": "token_not_valid_for_any_kind"}') == '{"code": "token_not_valid_for_any_kind"}'
