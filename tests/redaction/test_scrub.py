"""Scrubbing: no secret leaves, whatever form it has; what is no secret stays readable."""

from __future__ import annotations

import base64
import json
import re
import string
import subprocess
import sys
from types import MappingProxyType
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags

from django_otel.base import guard
from django_otel.redaction import forms, scrub
from django_otel.redaction.scrub import REDACTED, Scrubber
from django_otel.redaction.sdk_items import scrub_log_record, scrub_span
from tests import sizes
from tests.redaction.growth import MOST_PER_DOUBLING, growth_per_doubling

SCRUBBER = Scrubber()
LONG = settings(max_examples=sizes.examples(150), deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def _clean_guard():
    guard.reset()
    yield
    guard.reset()


# --- keys ---------------------------------------------------------------------------


@sizes.each(
    "key",
    [
        "password", "PASSWORD", "Passwd", "pwd", "passphrase", "old_password1", "passwordConfirm", "pgpassword",
        "user.password", "user[password]", "DB_PASS", "secret", "client_secret", "clientSecret", "SECRET_KEY",
        "django.secret.key", "token", "access_token", "refreshToken", "csrfmiddlewaretoken", "id-token", "APIToken",
        "authorization", "HTTP_AUTHORIZATION", "Proxy-Authorization", "http.request.header.authorization",
        "http.request.header.proxy_authorization", "cookie", "http.request.header.cookie",
        "http.response.header.set-cookie", "session", "sessionid", "session_id", "session.id", "session_key",
        "csrf", "csrftoken", "X-CSRFToken", "xsrf-token", "api_key", "apiKey", "APIKEY", "x-api-key", "HTTP_X_API_KEY",
        "stripe.api_keys", "card", "credit_card", "creditCard", "card_number", "cardNumber", "cvv", "cvc2",
        "private_key",
        "privateKey", "access_key", "aws_access_key_id", "credential", "credentials", "jwt", "auth", "x-hub-signature",
        "pass_word",
    ],
)  # fmt: skip
def test_a_value_under_a_sensitive_key_is_redacted_whatever_its_type(key):
    assert SCRUBBER.value(key, "hunter2") == REDACTED
    assert SCRUBBER.value(key, 12345678) == REDACTED
    assert SCRUBBER.value(key, b"hunter2") == REDACTED
    assert SCRUBBER.value(key, ("hunter2", "x")) == (REDACTED,)
    assert SCRUBBER.value(key, {"a": "hunter2"}) == REDACTED
    assert SCRUBBER.is_sensitive(key)


@sizes.each("key", ["card_id", "sid", "session_id", "session.id", "gift_card_id", "token_id", "userTokenId"])
def test_the_small_number_of_a_row_stays(key):
    assert SCRUBBER.value(key, 12) == 12
    assert SCRUBBER.value(key, "4711") == "4711"
    for text in (f"{key}=12", f"{key}: 12, name: x", f"deleted {key}=4711 now"):
        assert SCRUBBER.text(text) == text
    assert SCRUBBER.value(key, 12345678) == SCRUBBER.value(key, -1) == REDACTED
    assert SCRUBBER.value(key, "k3jd8fh2") == SCRUBBER.value(key, "12345678") == REDACTED


@sizes.each("key", ["card_number", "access_key_id", "sessionid", "session", "pin", "cvv", "password_id"])
def test_a_small_number_under_another_sensitive_key_does_not(key):
    assert SCRUBBER.value(key, 4711) == REDACTED


@sizes.each("name", ["t", "k", "h", "s", "c", "x", "p", "tok", "sess", "m", "magic", "verify", "unsubscribe", "mac"])
def test_a_random_value_under_a_short_name_of_a_query_is_redacted(name):
    secret = "Zk39fLmQ7xVtb2Rw"
    for url in (f"https://shop.example/?{name}={secret}", f"/start?lang=de&{name}={secret}&x=1"):
        assert SCRUBBER.value("http.request.header.referer", [url]) == [url.replace(secret, REDACTED)]
        assert SCRUBBER.value("url.full", url) == url.replace(secret, REDACTED)
    assert SCRUBBER.value("url.query", f"{name}={secret}") == f"{name}={REDACTED}"
    for value in ("12", "winter-shoes-2024", "category_of_the_year", "1700000000000", "true"):
        assert SCRUBBER.value("url.query", f"{name}={value}") == f"{name}={value}"


@sizes.each("key", ["trace_id", "traceparent", "exception.type", "code.file.path", "service.instance.id"])
def test_a_key_of_ids_and_names_keeps_these_alone(key):
    for name in ("4111111111111111", "shop.views.token_of.<locals>.<lambda>", "/srv/my app/token.py", "C:\\a b\\c.py"):
        assert SCRUBBER.value(key, name) == name
    assert SCRUBBER.value(key, "password=hunter2x") == f"password={REDACTED}"
    assert "hunter2x" not in SCRUBBER.value(key, "https://bob:hunter2x@shop.example/")


def test_colours_of_a_terminal_hide_no_secret_and_stay_elsewhere():
    assert SCRUBBER.text("\x1b[36mpin\x1b[0m=\x1b[35m4711\x1b[0m ok") == f"pin={REDACTED} ok"
    assert SCRUBBER.text("\x1b[31mERROR\x1b[0m password changed") == "\x1b[31mERROR\x1b[0m password changed"


@sizes.each(
    "key",
    [
        "postcard", "discard", "discarded", "cardinality", "cardigan", "scorecard", "tokenizer", "tokenize", "author",
        "authority", "authors", "secretary", "secretariat", "compass", "passenger", "bypass", "passed", "pin_map_x",
        "monkey", "keyboard", "primary_key", "foreign_key", "cache_key", "public_key", "idempotency_key", "obsession",
        "sessional", "cookieless", "http.route", "http.request.method", "db.operation.name", "user.id", "trace_id",
        "django.auth.event", "code.function.name", "error.type", "server.address", "key", "code", "state",
    ],
)  # fmt: skip
def test_a_key_that_only_looks_sensitive_is_left_alone(key):
    assert SCRUBBER.value(key, "value1") == "value1"
    assert not SCRUBBER.is_sensitive(key)


@sizes.each(
    ("key", "value"),
    [
        ("session_count", 5),
        ("token.limit", 12.5),
        ("gen_ai.usage.input_tokens", 811),
        ("cookies_total", 3),
        ("visit_token_count", "5"),
        ("password_required", True),
        ("session", None),
        ("token", False),
        ("password", ""),
        ("gen_ai.token.type", "input"),
    ],
)
def test_measures_booleans_and_nothing_stay(key, value):
    assert SCRUBBER.value(key, value) is value


def test_a_measure_does_not_excuse_a_text():
    assert SCRUBBER.value("session_count", "abcdef") == REDACTED
    assert SCRUBBER.value("token_limit", ("abc",)) == (REDACTED,)


def test_extra_takes_words_and_globs_without_regard_to_case():
    scrubber = Scrubber(extra=["passport", "Bank-Account", "internal.*", "x_?_z"])
    for key in ("user.passport_no", "userPassport", "bank_account_id", "BANK.ACCOUNT", "Internal.thing", "X_y_Z"):
        assert scrubber.value(key, "v") == REDACTED, key
    for key in ("passports_office", "bank", "account_bank", "not.internal.x", "x_yy_z"):
        assert scrubber.value(key, "v") == "v", key
    assert (
        scrubber.text("passport=12345 and Passport_No: 'A1 B2'") == f"passport={REDACTED} and Passport_No: '{REDACTED}'"
    )
    assert scrubber.text("password=abc") == f"password={REDACTED}", "the default list always applies"


# --- forms --------------------------------------------------------------------------

LEAKS = [
    # key and value
    "password=hunter2",
    "password = hunter2",
    "password: hunter2",
    "Password : 'hunter2'",
    "PASSWORD:hunter2",
    "password='hunter2 with spaces'",
    'password="hunter2 \\" hunter2"',
    "password='it''s hunter2'",
    "password => hunter2",
    "password -> 'hunter2'",
    "password == 'hunter2'",
    "password:=hunter2",
    '{"password": "hunter2", "user": "bob"}',
    '{"user":"bob","password":"hunter2"}',
    '{"password":"a\\"hunter2"}',
    "{'password': 'hunter2'}",
    "{'password': \"hunter2's\"}",
    '{\\"password\\": \\"hunter2\\"}',
    '{\\\\\\"password\\\\\\": \\\\\\"hunter2\\\\\\"}',
    "{b'password': b'hunter2'}",
    "{'password': ['hunter2', 'x hunter2']}",
    "{'password': {'raw': 'hunter2', 'salt': 'hunter2'}, 'user': 'bob'}",
    "<QueryDict: {'username': ['bob'], 'password': ['hunter2 x']}>",
    "User(name='bob', password='hunter2')",
    "def login(user, password: str = 'hunter2', retries=3):",
    "login(user, password=\"hunter2\")",
    'data["password"] = "hunter2"',
    "os.environ['SECRET_KEY'] = 'hunter2'",
    "--password hunter2 --user bob",
    "--password=hunter2",
    "['mysql', '--password', 'hunter2']",
    "[('authorization', 'hunter2'), ('accept', '*/*')]",
    "[(b'cookie', b'a=hunter2; b=hunter2')]",
    '<input type="hidden" name="csrfmiddlewaretoken" value="hunter2">',
    "API key: hunter2",
    "card number: hunter2",
    "secret: aHVudGVyMg==",
    "password=[hunter2",
    "password=(hunter2",
    "password={hunter2 hunter2",
    "password='hunter2",
    '"password": "hunter2',
    "password=a&hunter2",
    "password=a,hunter2;hunter2",
    "passphrase: correct horse hunter2",
    # headers
    "Authorization: Bearer hunter2",
    "Authorization: hunter2",
    "authorization=Bearer hunter2",
    "Authorization: Digest username=\"bob\", response=\"hunter2\"",
    "Cookie: theme=dark; sessionid=hunter2; x=hunter2",
    "Set-Cookie: sessionid=hunter2; Path=/",
    "X-Api-Key: hunter2",
    "sent Bearer hunter2 upstream",
    "sent Basic aHVudGVyMg== upstream",
    "sent bearer%20hunter2",
    "Token hunter2",
    # URLs
    "https://bob:hunter2@example.com/",
    "https://hunter2@example.com/",
    "https://hunter2:x-oauth-basic@github.com/a/b.git",
    "postgres://bob:hunter2@db:5432/shop",
    "postgresql+psycopg://bob:p@hunter2@db/shop",
    "redis://:hunter2@cache:6379/0",
    "redis://:hunter2/x@cache:6379/0",
    "amqp://bob:pa#hunter2@mq/",
    "postgres://bob:pa?hunter2@db/",
    "postgres://bob:pa'hunter2@db/",
    "could not connect to postgres://bob:hunter2",
    "redis://:hunter2@a:1,redis://:hunter2@b:2",
    "/login?password=hunter2&next=/",
    "/a?b=1&X-Amz-Signature=hunter2",
    "/a?b=1&amp;token=hunter2",
    "https://s3/x?X-Amz-Credential=hunter2&X-Amz-Security-Token=hunter2",
    "https://blob/x?sv=1&sig=hunter2",
    "https://api/x?key=hunter2",
    "https://app/cb?code=hunter2&state=hunter2",
    "https://app/cb#access_token=hunter2",
    "https://app/x?user%5Bpassword%5D=hunter2",
    "https://app/x?user[pwd]=hunter2",
    "url=https%3A%2F%2Fapp%2F%3Ftoken%3Dhunter2",
    "HTTPConnectionPool(host='gw', port=80): Max retries exceeded with url: /pay?card_number=hunter2&a=1 (Caused by x)",
    # DSNs
    "host=db user=bob password=hunter2 dbname=shop",
    "password='hunt er2 hunter2' host=db",
    'connection to server at "db" failed: password=hunter2',
    "Server=db;User Id=bob;Password=hunter2;Encrypt=yes",
    # database errors
    "duplicate key value violates unique constraint\nDETAIL:  Key (email)=(hunter2) already exists.\n",
    "DETAIL:  Key (lower(email::text))=(hunter2) already exists.",
    "DETAIL:  Key (a, b)=(1, hunter2 (x) hunter2) is not present in table \"t\".",
    "DETAIL:  Key (a)=(cut off hunter2",
    "DETAIL:  Failing row contains (1, hunter2, null, a) hunter2).",
    "Duplicate entry 'hunter2' for key 'users.email'",
    'invalid input syntax for type integer: "hunter2"\nLINE 1: x',
    "LINE 1: SELECT * FROM t WHERE name = 'hunter2' AND x",
    "LINE 1: ...WHERE name = 'hunter2 cut o...",
    "[SQL: SELECT ?]\n[parameters: ('hunter2', 3)]\n(Background)",
]  # fmt: skip


@sizes.each("text", LEAKS)
def test_a_secret_in_a_text_is_redacted_in_every_form(text):
    scrubbed = SCRUBBER.text(text)
    assert "hunter2" not in scrubbed
    assert "aHVudGVyMg" not in scrubbed
    assert REDACTED in scrubbed
    assert SCRUBBER.text(scrubbed) == scrubbed


@sizes.each("text", LEAKS)
def test_a_secret_in_an_exceptions_stack_trace_is_redacted(text):
    stack = (
        f'Traceback (most recent call last):\n  File "shop/views.py", line 7, in pay\n    call()\nValueError: {text}\n'
    )
    scrubbed = SCRUBBER.value("exception.stacktrace", stack)
    assert "hunter2" not in scrubbed
    assert scrubbed.startswith('Traceback (most recent call last):\n  File "shop/views.py", line 7, in pay\n')


KEPT = [
    "GET /orders/<int:pk>/",
    "GET /reset/<token:token>/",
    "The token expired at 12:00",
    "Invalid token provided",
    "Basic authentication failed for user bob",
    "Bearer token is missing",
    "TokenError: the grant is bad",
    "first pass: 12 items",
    "status code: 500",
    "code=404 state=open key=value",
    "http://localhost:8000/a/b?page=2&sort=name",
    "http://[::1]:8000/",
    "see https://example.com/@bob and mail bob@example.com",
    "ratio 0.4111111111111111 of 4111111111111111.5",
    "id 550e8400-e29b-4134-8716-446655440000",
    "traceparent 00-41111111111111114111111111111111-4111111111111111-01",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16",
    "epoch 1700000000000000007 ms 1700000000008",
    "token_count=5 input_tokens: 12",
    "password=None token=null secret: False",
    "host=db port=5432 dbname=shop",
    '{"user": "bob", "total": 12.5, "items": [1, 2, 3]}',
    "author: Ann, postcard: no, cardinality=7",
    'File "/app/auth/session.py", line 12, in refresh',
    "pk_",
    "",
    "a",
    "x" * 4000,
]


@sizes.each("text", KEPT)
def test_what_is_no_secret_stays_and_is_the_same_object(text):
    assert SCRUBBER.text(text) is text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a password=hunter2, b=1", "a password=[redacted], b=1"),
        ('{"password": "x", "user": "bob"}', '{"password": "[redacted]", "user": "bob"}'),
        ("/login?password=x&next=/shop", "/login?password=[redacted]&next=/shop"),
        ("postgres://bob:x@db:5432/shop", "postgres://[redacted]@db:5432/shop"),
        ("DETAIL:  Key (email)=(a@b.c) already exists.", "DETAIL:  Key (email)=([redacted]) already exists."),
        ("paid with 4111 1111 1111 1111 on 12/25", "paid with [redacted] on 12/25"),
        ("Cookie: a=1; b=2\nHost: x", "Cookie: [redacted]\nHost: x"),
    ],
)
def test_only_the_secret_goes_and_the_rest_of_the_text_stays(text, expected):
    assert SCRUBBER.text(text) == expected


@sizes.each(
    "token",
    [
        "AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE", "AROAIOSFODNN7EXAMPLE", "gho_" + "a1B2" * 9, "rk_" + "a1B2" * 5,
        "whsec_" + "a1B2" * 6, "pypi-" + "a1B2" * 9, "ghp_" + "a1B2" * 9, "github_pat_" + "a1B2" * 9,
        "glpat-" + "a1B2" * 5, "xoxb-123456789012-abcdef", "sk_live_" + "a1B2" * 6, "sk-" + "a1B2" * 10,
        "AIza" + "a1B2" * 9, "npm_" + "a1B2" * 9, "SG." + "a1B2" * 5 + "." + "a1B2" * 5,
    ],
)  # fmt: skip
@sizes.each("around", ["{}", "key {} used", "'{}'", "x/{}/y", "k={}"])
def test_well_known_tokens_are_found_anywhere(token, around):
    scrubbed = SCRUBBER.text(around.format(token))
    assert token not in scrubbed
    assert REDACTED in scrubbed


@sizes.each("name", ["RSA PRIVATE KEY", "PRIVATE KEY", "OPENSSH PRIVATE KEY", "PGP PRIVATE KEY BLOCK"])
@sizes.each("newline", ["\n", "\\n", "\r\n", " "])
def test_private_keys_are_redacted_whole_also_when_cut(name, newline):
    body = newline.join(["MIIEowIBAAKCAQEA", "q2hunter2q2", "AAAA="])
    block = f"-----BEGIN {name}-----{newline}{body}{newline}-----END {name}-----"
    assert SCRUBBER.text(f"before {block} after") == f"before {REDACTED} after"
    cut = SCRUBBER.text(f"before {block[:-40]}")
    assert "hunter2" not in cut
    assert "MIIE" not in cut


def test_a_certificate_is_public():
    text = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"
    assert SCRUBBER.text(text) is text


def test_query_strings_alone_are_scrubbed_by_url_and_by_their_attribute():
    for query in ("code=hunter2&page=2", "page=2&code=hunter2", "key=hunter2"):
        assert "hunter2" not in SCRUBBER.url(query)
        assert "hunter2" not in SCRUBBER.value("url.query", query)
    assert SCRUBBER.url("page=2&sort=name") == "page=2&sort=name"
    assert SCRUBBER.url("https://u:hunter2@a/b?token=hunter2#x") == f"https://{REDACTED}@a/b?token={REDACTED}"


def test_argument_lists_hide_what_follows_a_sensitive_option():
    arguments = ["manage.py", "--password", "hunter2", "--user", "bob", "--token=hunter2"]
    assert SCRUBBER.value("process.command_args", arguments) == [
        "manage.py", "--password", REDACTED, "--user", "bob", f"--token={REDACTED}",
    ]  # fmt: skip


def test_ids_stay_also_when_they_look_like_cards():
    for key in ("trace_id", "span_id", "otelTraceID", "otelSpanID", "traceparent", "service.instance.id"):
        assert SCRUBBER.value(key, "4111111111111111") == "4111111111111111"


# --- fuzz: a planted secret never survives --------------------------------------------

# Letters that occur in no template, so that a part of the surroundings is never taken for the secret.
ALPHABET = "QXZqxz0123456789"
PRINTABLE = "".join(c for c in string.printable if c not in "\x0b\x0c") + "äß漢🔑\u2028"
KEYS = st.sampled_from(
    ["password", "DB_PASSWORD", "apiKey", "access_token", "x-api-key", "client_secret", "sessionid", "card_number"]
)
BEFORE = st.sampled_from(["", "error: ", "could not log in\n", "[ERROR] x (1/2) ", "2024-01-02 03:04:05,678 "])
AFTER = st.sampled_from(["", " ", "\n", " for user bob", "\nnext line a=b", " (see the log)"])


def secrets(alphabet: str, min_size: int = 1) -> st.SearchStrategy[str]:
    """A core that cannot be missed in the output, with any character of the alphabet on both sides of it."""
    around = st.text(alphabet, max_size=12)
    core = st.text(ALPHABET, min_size=8 + min_size, max_size=20).filter(lambda core: not core.isdigit())
    return st.tuples(around, core, around).map(lambda parts: "".join(parts))


def assert_gone(text: str, secret: str) -> None:
    core = max("".join(c if c in ALPHABET else " " for c in secret).split(), key=len)
    assert len(core) >= 8
    scrubbed = SCRUBBER.text(text)
    assert core not in scrubbed, (text, scrubbed)
    assert SCRUBBER.text(scrubbed) == scrubbed, (text, scrubbed)


@LONG
@given(KEYS, secrets(PRINTABLE), BEFORE, AFTER)
@example("password", "A00000000Q ?", "", "")
@example("password", "a\"b\\QXZQXZQXZ'", "", "")
@example("password", "\"':QXZQXZQXZ", "", "")
@example("password", "\"',QXZQXZQXZ", "", "")
@example("password", "\"']QXZQXZQXZ", "", "")
def test_a_secret_in_json_or_repr_of_any_depth_never_survives(key, secret, before, after):
    inner = {"user": "bob", key: secret, "n": [1, None]}
    as_json = json.dumps(inner)
    for text in (as_json, json.dumps(inner, ensure_ascii=False), repr(inner), json.dumps({"body": as_json})):
        assert_gone(before + text + after, secret)
        assert_gone(before + json.dumps([text]) + after, secret)
    assert_gone(before + repr([inner]) + after, secret)
    assert_gone(before + repr({key: [secret]}) + after, secret)
    assert_gone(before + json.dumps({key: {"value": secret}}, indent=2) + after, secret)


@LONG
@given(KEYS, secrets("".join(c for c in PRINTABLE if not c.isspace() and c not in "&\"'\\")), BEFORE, AFTER)
@example("password", "[QXZQXZQXZ(", "", "\nx")
@example("password", "[}:QXZQXZQXZ", "", "")
@example("password", "[]:QXZQXZQXZ", "", "")
@example("password", "([)]:QXZQXZQXZ", "", " x")
@example("password", "A|00000000Q", "", "")
@example("password", "the|QXZQXZQXZ", "", "")
@example("password", "required|QXZQXZQXZ", "", "")
@example("password", "$A)00000000Q", "", "")
@example("password", "$A->b!00000000Q", "", "")
@example("password", "AA()00000000Q", "", "")
@example("password", "settings.A(00000000Q", "", "")
@example("password", "self.a00000000Q", "", "")
@example("password", "</QXZQXZQXZ", "", "")
@example("password", "HTTP00000000Q", "", "")
@example("password", "<_>QXZQXZQXZ", "", "")
@example("password", "</A>QXZQXZQXZ", "", "")
@example("password", "[hidden]QXZQXZQXZ", "", "")
@example("password", "${A}QXZQXZQXZ", "", "")
@example("password", "{{a}}QXZQXZQXZ", "", "")
def test_a_secret_without_quotes_never_survives(key, secret, before, after):
    for separator in ("=", ": ", ":", " = ", "=>"):
        assert_gone(f"{before}{key}{separator}{secret}{after}", secret)
    assert_gone(f"{before}--{key} x{secret}{after}", "x" + secret)


@LONG
@given(KEYS, secrets(PRINTABLE), BEFORE, AFTER)
def test_a_secret_in_a_query_string_never_survives(key, secret, before, after):
    encoded = quote(secret, safe="")
    for text in (f"/a/?b=1&{key}={encoded}&c=2", f"https://h.example/a?{key}={encoded}#f", f"a=1&{key}={encoded}"):
        assert_gone(before + text + after, encoded)


@LONG
@given(secrets("".join(c for c in PRINTABLE if not c.isspace() and c not in "/?#\"'<>\\`")), BEFORE, AFTER)
def test_a_secret_in_a_urls_user_information_never_survives(secret, before, after):
    assert_gone(f"{before}postgres://bob:{secret}@db.example:5432/shop{after}", secret)
    assert_gone(f"{before}https://{quote(secret, safe='')}@example.com/x{after}", quote(secret, safe=""))
    assert_gone(f"{before}redis://:{secret}@h{after}", secret)


@LONG
@given(secrets("".join(c for c in PRINTABLE if c not in "\n\r")), BEFORE)
def test_a_secret_in_a_header_line_never_survives(secret, before):
    for header in ("Authorization", "Cookie", "Set-Cookie", "Proxy-Authorization"):
        assert_gone(f"{before}\n{header}: {secret}\nHost: example.com", secret)


@LONG
@given(
    st.sampled_from(["Bearer", "bearer", "Basic", "Token"]),
    secrets(string.ascii_letters + "0123456789-._~+/"),
    BEFORE,
    AFTER,
)
def test_a_credential_of_a_scheme_never_survives(scheme, secret, before, after):
    assert_gone(f"{before}sent {scheme} {secret}{after}", secret)


@LONG
@given(
    st.dictionaries(st.text(max_size=8), st.text(max_size=8), min_size=1), st.binary(min_size=16, max_size=40), BEFORE
)
def test_a_jwt_never_survives(claims, signature, before):
    def encode(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    header, payload = encode(b'{"alg":"HS256"}'), encode(json.dumps(claims).encode())
    scrubbed = SCRUBBER.text(f"{before}got {header}.{payload}.{encode(signature)} here")
    assert payload not in scrubbed
    assert encode(signature) not in scrubbed


def luhn_digit(digits: str) -> str:
    doubled = [int(d) * 2 if i % 2 == 0 else int(d) for i, d in enumerate(reversed(digits))]
    return str(-sum(d - 9 if d > 9 else d for d in doubled) % 10)


@LONG
@given(
    st.sampled_from("23456"),
    st.text(string.digits, min_size=11, max_size=17),
    st.sampled_from(["", " ", "-"]),
    st.sampled_from(["", "paid with ", "card:", "'", "(", "\t", "n°"]),
    st.sampled_from(["", ".", " 123", " 12/27", "'", ")", ", thanks", "\n"]),
)
def test_a_card_number_never_survives(first, middle, separator, before, after):
    digits = first + middle
    digits += luhn_digit(digits)
    groups = [digits[i : i + 4] for i in range(0, len(digits), 4)]
    scrubbed = SCRUBBER.text(before + separator.join(groups) + after)
    assert digits not in scrubbed.replace(separator, "") if separator else digits not in scrubbed
    assert REDACTED in scrubbed


@LONG
@given(secrets("".join(c for c in PRINTABLE if c not in "()")), BEFORE)
def test_a_value_that_postgresql_quotes_never_survives(secret, before):
    for text in (
        f"DETAIL:  Key (email)=({secret}) already exists.",
        f'DETAIL:  Key (a, b)=(1, {secret}) is not present in table "t".',
        f"DETAIL:  Failing row contains (1, {secret}, null).",
    ):
        assert_gone(before + text, secret)


@LONG
@given(st.text())
def test_any_text_is_scrubbed_without_an_error_and_for_good(text):
    once = SCRUBBER.text(text)
    assert SCRUBBER.text(once) == once
    assert guard.fault_counts() == {}


FRAGMENTS = [
    "password", "=", ":", " ", '"', "'", "\\", "[", "]", "(", ")", "{", "}", "&", "?", ",", "://", "@", "eyJabcdefghij",
    "Bearer ", "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "Key (a)=(", ") already exists", "4111 ",
    "\n",
    "LINE 1: ", "$a$", "--token ", "=>", REDACTED, "cookie: ", "%3D", "x", "1", ".", "-", "secret",
    "Failing row contains (",
    "api key", "Duplicate entry '", "' for key", "value=", ": str = ", "None", "http", "<", ">", "``", "b'", "&amp;",
]  # fmt: skip


@settings(max_examples=sizes.examples(1500), deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join))
def test_scrubbing_twice_changes_nothing_more(text):
    once = SCRUBBER.text(text)
    assert SCRUBBER.text(once) == once


HOSTILE = {
    "word": "a", "jwt": "eyJ", "jwt_parts": "eyJaaaaaaaa.", "scheme": "x://", "key": "password=", "quote": "password='",
    "json": '"password": "', "bracket": "password=[", "backslash": "\\", "escaped": 'password=\\"', "digits": "4",
    "groups": "4111 ", "detail": "Key (a)=(", "nested": "Key (a(b)(c)", "row": "Failing row contains (", "blank": " ",
    "words": "a ", "amp": "&", "amp_key": "password=&", "pem": "-----BEGIN PRIVATE KEY-----", "bearer": "Bearer ",
    "list": "'a', ", "dash": "--", "option": "--password ", "colon": "a:", "percent": "%", "token": "sk_",
    "line": "LINE 1: '",
    "dollar": "LINE 1: $a$", "at": "x://@", "cookie": "cookie: ", "annotation": "password: str | ", "open": "[((",
    "duplicate": "Duplicate entry '", "dots": "a.", "newlines": "password\n", "uuid": "00000000-",
    "parameters": "[parameters: [",
    "invalid": 'invalid input syntax for a: "', "quotes": "''", "value": 'name="password" value ', "scheme_key": "key ",
    "userinfo": "://a:b", "end": "-----END ", "open_url": "://x:y'z",
}  # fmt: skip


@pytest.mark.parametrize("name", sizes.few(HOSTILE, 12))
@pytest.mark.parametrize("start", ["", "password=", "x://"])
def test_hostile_text_takes_time_in_proportion_to_its_length(monkeypatch, name, start):
    monkeypatch.setattr(scrub, "MAX_TEXT_LENGTH", 10**9)

    def text(length: int) -> str:
        return start + (HOSTILE[name] * (length // len(HOSTILE[name]) + 1))[:length]

    assert growth_per_doubling(Scrubber().text, text, 16_000) < MOST_PER_DOUBLING


@pytest.mark.heavy
@pytest.mark.scaled
def test_a_very_long_text_is_cut_and_stays_cut():
    once = SCRUBBER.text("x y " * 200_000)
    assert len(once) < scrub.MAX_TEXT_LENGTH + 20
    assert once.endswith("[cut]")
    assert SCRUBBER.text(once) is once
    assert "hunter2" not in SCRUBBER.text("x" * (scrub.MAX_TEXT_LENGTH - 20) + " password=hunter2hunter2")
    token = "ghp_Qz7Xk2Vb9Wn4" + "Rt5Yp8Lm3Jd6Fh1Gc0Sa" * 2
    # Every place of the cut in the known part of the token, and some behind it.
    for kept in (*range(1, 24, sizes.scaled(5, 1)), len(token) - 1):
        assert "Qz7Xk2" not in SCRUBBER.text("x " * ((scrub.MAX_TEXT_LENGTH - kept) // 2) + token)


# --- values, mappings, the callback ---------------------------------------------------


def test_other_types_pass_and_nested_ones_are_searched():
    for value in (1, 1.5, True, None, b"\x00\xff", (1, 2), ["a", "b"], {"a": {"b": 1}}):
        assert SCRUBBER.value("x", value) is value
    nested = {"a": [{"password": "hunter2"}, "token=hunter2"], "b": (b"password=hunter2",), "count": 3}
    assert "hunter2" not in repr(SCRUBBER.value("x", nested))
    assert SCRUBBER.value("x", nested)["count"] == 3
    assert "hunter2" in repr(nested), "what was given is not changed"


def test_what_is_no_opentelemetry_type_becomes_scrubbed_text():
    class Form:
        def __str__(self) -> str:
            return "<Form password=hunter2>"

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert "hunter2" not in SCRUBBER.value("form", Form())
    assert SCRUBBER.value("form", Broken()) == REDACTED
    assert guard.fault_counts() == {"redacting a value": 1}


def test_a_structure_without_an_end_is_redacted():
    endless: list = []
    endless.append(endless)
    assert REDACTED in repr(SCRUBBER.value("x", endless))


def test_attributes_without_a_secret_are_the_same_object():
    for attributes in (
        {"http.route": "/a/", "n": 1},
        BoundedAttributes(attributes={"a": "b"}),
        MappingProxyType({}),
        None,
    ):
        assert SCRUBBER.attributes(attributes) is attributes


def test_attributes_with_a_secret_are_another_mapping():
    attributes = {"a": "b", "password": "hunter2", "url": "/?token=hunter2"}
    assert SCRUBBER.attributes(attributes) == {"a": "b", "password": REDACTED, "url": f"/?token={REDACTED}"}
    assert attributes["password"] == "hunter2"


def test_labels_keep_the_tuple_they_were_given_when_clean():
    clean = (("http.route", "/a/"), ("n", 1))
    assert SCRUBBER.labels(clean) is clean
    assert SCRUBBER.labels((("a", "x"), ("token", "hunter2"))) == (("a", "x"), ("token", REDACTED))


def test_the_callback_sees_what_the_rules_left_and_its_answer_counts():
    seen = []

    def callback(key, value):
        seen.append((key, value))
        return "changed" if key == "name" else value

    scrubber = Scrubber(callback=callback)
    assert scrubber.attributes({"name": "Ann", "password": "hunter2", "q": "token=hunter2", "n": 1}) == {
        "name": "changed", "password": REDACTED, "q": f"token={REDACTED}", "n": 1,
    }  # fmt: skip
    assert seen == [("name", "Ann"), ("q", f"token={REDACTED}"), ("n", 1)]


def test_a_callback_that_raises_redacts_and_is_counted():
    scrubber = Scrubber(callback=lambda key, value: 1 / 0)
    assert scrubber.attributes({"a": "x", "b": 2}) == {"a": REDACTED, "b": REDACTED}
    assert guard.fault_counts() == {"SCRUB.CALLBACK": 2}


def test_a_callback_that_returns_nothing_redacts_and_other_objects_become_text():
    assert Scrubber(callback=lambda key, value: None).value("a", "x") == REDACTED
    assert Scrubber(callback=lambda key, value: complex(1, 2)).value("a", "x") == "(1+2j)"


def test_a_callback_may_not_swallow_an_interrupt():
    def callback(key, value):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Scrubber(callback=callback).value("a", "x")


# --- spans ----------------------------------------------------------------------------


def finished_span(**limits) -> tuple[object, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "t"}), span_limits=SpanLimits(**limits))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("scope", "1"), exporter


def test_a_clean_span_is_the_same_object():
    tracer, exporter = finished_span()
    with tracer.start_as_current_span("GET /a/", attributes={"http.route": "/a/", "n": 1}) as span:
        span.add_event("hit", {"k": "v"})
    (span,) = exporter.get_finished_spans()
    assert scrub_span(SCRUBBER, span) is span


def test_every_text_of_a_span_is_scrubbed_and_all_else_is_kept():
    tracer, exporter = finished_span()
    other = SpanContext(7, 8, True, TraceFlags(1))
    with pytest.raises(ValueError, match="hunter2"):
        with tracer.start_as_current_span(
            "call https://u:hunter2@h/", links=[Link(other, {"token": "hunter2"}), Link(other, {"a": 1})]
        ) as span:
            span.set_attributes({"password": "hunter2", "url.full": "http://h/?password=hunter2&a=1", "n": 3})
            span.add_event("login token=hunter2", {"session": "hunter2", "ok": True})
            raise ValueError("gateway said password=hunter2")
    (span,) = exporter.get_finished_spans()
    scrubbed = scrub_span(SCRUBBER, span)
    assert isinstance(scrubbed, ReadableSpan)
    assert "hunter2" in span.to_json()
    assert "hunter2" not in scrubbed.to_json()
    assert scrubbed.attributes == {"password": REDACTED, "url.full": f"http://h/?password={REDACTED}&a=1", "n": 3}
    assert scrubbed.status.status_code is StatusCode.ERROR
    assert scrubbed.status.description == f"ValueError: gateway said password={REDACTED}"
    assert [event.timestamp for event in scrubbed.events] == [event.timestamp for event in span.events]
    exception = scrubbed.events[1].attributes
    assert exception["exception.type"] == "ValueError"
    assert exception["exception.message"] == f"gateway said password={REDACTED}"
    assert "in test_every_text_of_a_span" in exception["exception.stacktrace"]
    assert scrubbed.links[0].context is other
    assert scrubbed.links[0].attributes == {"token": REDACTED}
    assert scrubbed.links[1] is span.links[1]
    for name in ("context", "parent", "kind", "start_time", "end_time", "resource", "instrumentation_scope"):
        assert getattr(scrubbed, name) is getattr(span, name), name
    assert scrub_span(SCRUBBER, scrubbed) is scrubbed


def test_counts_of_what_a_span_dropped_are_kept():
    tracer, exporter = finished_span(max_attributes=2, max_events=1, max_links=1, max_event_attributes=1)
    context = SpanContext(7, 8, True, TraceFlags(1))
    with tracer.start_as_current_span("s", links=[Link(context, {"token": "hunter2"})] * 3) as span:
        for name in ("a", "b", "password"):
            span.set_attribute(name, "hunter2")
        span.add_event("one")
        span.add_event("two", {"a": 1, "token": "hunter2"})
    (span,) = exporter.get_finished_spans()
    scrubbed = scrub_span(SCRUBBER, span)
    assert scrubbed is not span
    assert (span.dropped_attributes, span.dropped_events, span.dropped_links) == (1, 1, 2)
    assert (scrubbed.dropped_attributes, scrubbed.dropped_events, scrubbed.dropped_links) == (1, 1, 2)
    assert scrubbed.events[0].dropped_attributes == span.events[0].dropped_attributes == 1


def test_a_scrubbed_span_encodes_as_otlp():
    encoder = pytest.importorskip("opentelemetry.exporter.otlp.proto.common.trace_encoder")
    tracer, exporter = finished_span()
    with tracer.start_as_current_span("s", attributes={"password": "hunter2", "l": ["token=hunter2"]}) as span:
        span.set_status(Status(StatusCode.ERROR, "secret: hunter2"))
    data = encoder.encode_spans(
        [scrub_span(SCRUBBER, span) for span in exporter.get_finished_spans()]
    ).SerializeToString()
    assert b"hunter2" not in data
    assert data.count(REDACTED.encode()) == 3


# --- log records ----------------------------------------------------------------------


def emitted(**fields) -> ReadableLogRecord:
    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider(resource=Resource({"service.name": "t"}), shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    provider.get_logger("shop").emit(LogRecord(timestamp=1, severity_number=SeverityNumber.INFO, **fields))
    (record,) = exporter.get_finished_logs()
    return record


def test_a_clean_log_record_is_the_same_object():
    record = emitted(body="hello", attributes={"a": 1})
    assert scrub_log_record(SCRUBBER, record) is record


@pytest.mark.parametrize(
    "body", ["password=hunter2", {"password": "hunter2"}, ["token=hunter2", 1], {"a": [{"b": "secret: hunter2"}]}]
)
def test_bodies_of_every_shape_are_scrubbed(body):
    record = emitted(body=body, attributes={"session": "hunter2", "n": 1}, event_name="login")
    scrubbed = scrub_log_record(SCRUBBER, record)
    assert "hunter2" not in scrubbed.to_json()
    assert "hunter2" in record.to_json(), "other processors may hold the record"
    assert scrubbed.log_record.attributes == {"session": REDACTED, "n": 1}
    assert type(scrubbed.log_record.body) is type(body)
    assert scrubbed.resource is record.resource
    assert scrubbed.instrumentation_scope is record.instrumentation_scope
    assert scrubbed.log_record.event_name == "login"
    for name in ("timestamp", "observed_timestamp", "trace_id", "span_id", "trace_flags", "severity_number"):
        assert getattr(scrubbed.log_record, name) == getattr(record.log_record, name)


def test_an_exception_in_a_log_record_is_scrubbed_and_the_object_taken_out():
    try:
        raise ValueError("token=hunter2")
    except ValueError as error:
        record = emitted(body="failed", exception=error)
    scrubbed = scrub_log_record(SCRUBBER, record)
    assert scrubbed.log_record.exception is None
    assert record.log_record.exception is not None
    assert scrubbed.log_record.attributes["exception.type"] == "ValueError"
    assert scrubbed.log_record.attributes["exception.message"] == f"token={REDACTED}"
    assert "hunter2" not in scrubbed.to_json()


def test_dropped_attributes_of_a_log_record_are_counted_on():
    record = emitted(body="x", attributes={"password": "hunter2"})
    record.log_record.attributes.dropped = 4
    assert scrub_log_record(SCRUBBER, record).dropped_attributes == 4


def test_the_module_needs_no_django():
    code = (
        "import sys; sys.modules['django'] = None\n"
        "from django_otel.redaction.scrub import Scrubber; Scrubber().text('a=b')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.heavy
def test_one_scrubber_serves_many_threads():
    from concurrent.futures import ThreadPoolExecutor

    scrubber = Scrubber()
    texts = [f"key{i}=value{i} password=hunter2 n{i}" for i in range(3000)]
    with ThreadPoolExecutor(8) as pool:
        assert not any("hunter2" in text for text in pool.map(scrubber.text, texts))


# --- Short cuts: what they pass by is what the rules would leave alone. ---

PIECES = st.sampled_from([
    "/", "orders", "12", "akia", "asiaabcdefghijklmnop", "sk", "npm", "eyj", "bearer", "token", "line", "key", "xoxb",
    "4111111111111111", "411111111111", "1111", "begin", "failing", "a" * 40, "AKIAABCDEFGHIJKLMNOP", "_", "-", ".",
    " ", "=", "Bearer", "%20", "+", "sk_live_" + "a1" * 12, "ghp_" + "a1" * 12, "SG.", "aIza", "\u212a", "to\u212aen",
    "\u0130",
])  # fmt: skip


@LONG
@given(st.lists(PIECES, max_size=8).map("".join))
def test_a_text_that_is_passed_by_is_one_the_rules_leave_alone(text):
    if scrub._says_nothing(text) or scrub._PLAIN_NAME.fullmatch(text):
        assert SCRUBBER._apply_rules(text) is text
    if forms._KNOWN_TOKENS.search(text):
        assert forms._HAS_RUN.search(text)
    if forms._SCHEME.search(text):
        assert forms._HAS_SCHEME.search(text)


@sizes.each("text", ["card: {}", "card_number={}", "card: {} exp 12/27", "cards: {}, {}", "pan: {}", "Card number {}"])
def test_of_a_number_in_groups_no_group_is_left(text):
    for number in ("4242 4242 4242 4242", "4242-4242-4242-4242", "1234 5678 1234 5678", "3782 822463 10005"):
        if number.startswith("1234") and not text.startswith(("card:", "card_number")):
            # It fails the checksum, so only its name says what it is.
            continue
        scrubbed = SCRUBBER.text(text.replace("{}", number))
        assert not re.search(r"[0-9]{4}", scrubbed), scrubbed


NAME_WORDS = st.sampled_from(
    "http request db password token key secret auth sk npm xoxb ghp eyj akia user login card 4111 a1b2 v1 otp".split()
)


@LONG
@given(st.lists(NAME_WORDS, max_size=5), st.sampled_from("._"))
def test_a_name_that_is_passed_by_is_one_the_rules_leave_alone(words, separator):
    name = separator.join(words)
    if scrub._PLAIN_NAME.fullmatch(name):
        assert SCRUBBER._apply_rules(name) is name


@pytest.mark.parametrize(
    "name",
    [
        "http.request.method",
        "db.query.text",
        "telemetry.sdk.version",
        "user_id",
        "v1",
        "secret_rotation_of_all_applications",
    ],
)
def test_the_names_of_the_conventions_are_passed_by(name):
    assert scrub._PLAIN_NAME.fullmatch(name)
    assert Scrubber().key(name) is name


@pytest.mark.parametrize(
    "name", ["ghp_" + "a1B2" * 9, "sk_live_" + "a1" * 12, "4111111111111111", "password=x", "a" * 40, "Bearer abc"]
)
def test_the_name_of_an_attribute_that_may_hold_a_secret_is_not_passed_by(name):
    assert not scrub._PLAIN_NAME.fullmatch(name)


def test_a_usual_path_is_passed_by_and_a_card_number_in_one_is_not():
    assert scrub._NOTHING_IN_IT.fullmatch("/orders/12345/items/")
    assert not scrub._NOTHING_IN_IT.fullmatch("/pay/4111111111111111/")
    assert SCRUBBER.text("/pay/4111111111111111/") == f"/pay/{REDACTED}/"


@LONG
@given(
    st.one_of(
        KEYS, st.sampled_from(["url.path", "http.route", "url.query", "traceparent", "session.id", "n"]), st.text()
    ),
    st.one_of(st.text(), st.lists(PIECES, max_size=6).map("".join), st.sampled_from(["password=x", "a\ud800"])),
)
def test_a_text_under_a_key_that_says_nothing_is_scrubbed_as_a_text(key, text):
    if SCRUBBER.is_text_only(key):
        assert SCRUBBER.value(key, text) == SCRUBBER.fresh_text(text) == SCRUBBER.text(text)


def test_keys_that_say_something_are_known():
    assert SCRUBBER.is_text_only("url.path")
    assert not any(map(SCRUBBER.is_text_only, ["password", "url.query", "trace_id"]))
    assert not Scrubber(callback=lambda key, value: value).is_text_only("url.path")
