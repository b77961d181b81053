"""Personal data: kept unless `SCRUB["PERSONAL"]` asks for its redaction, then redacted wherever it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from django_otel.config.parse import parse
from django_otel.config.schema import ConfigError
from django_otel.redaction.scrub import REDACTED, Scrubber
from tests import services, sizes
from tests.redaction.growth import MOST_PER_DOUBLING, growth_per_doubling

PLAIN = Scrubber()
PERSONAL = Scrubber(personal=True)

PERSONAL_TEXTS = [
    ("mail to ann.lee@shop.example now", "mail to [redacted] now"),
    ("o'brien@x.example", REDACTED),
    ("Ann <ann@x.example>", "Ann <[redacted]>"),
    ("/u/ann%40x.example/orders", "/u/[redacted]/orders"),
    ("müller@exämple.de", REDACTED),
    ("client 203.0.113.9:4711", "client [redacted]:4711"),
    ("x-forwarded-for: 203.0.113.9, 70.41.3.18", "x-forwarded-for: [redacted], [redacted]"),
    ("[2001:db8::1]:80", "[[redacted]]:80"),
    ("from ::ffff:192.0.2.7 and fe80::1.", "from [redacted] and [redacted]."),
    ("call +49 30 1234 5678.", "call [redacted]."),
    ("+491701234567", REDACTED),
    ("tel 0170/1234567", "tel [redacted]"),
    ("06 12 34 56 78", REDACTED),
    ("06.12.34.56.78", REDACTED),
    ("(555) 234-5678 or 1-800-555-0199", "[redacted] or [redacted]"),
    ("020 7946 0958", REDACTED),
    ("IBAN DE89 3704 0044 0532 0130 00 is hers", "IBAN [redacted] is hers"),
    ("gb29nwbk60161331926819", REDACTED),
    ('{"email": "ann", "phone": 4930123}', '{"email": "[redacted]", "phone": [redacted]}'),
    ("phone: 01701234567", "phone: [redacted]"),
    ("SELECT 1 FROM t WHERE e = 'ann@x.example'", "SELECT 1 FROM t WHERE e = '[redacted]'"),
]


@sizes.each(("text", "expected"), PERSONAL_TEXTS)
def test_personal_data_is_kept_by_default_and_redacted_when_asked(text, expected):
    assert PLAIN.text(text) == text
    assert PERSONAL.text(text) == expected
    assert PERSONAL.text(expected) == expected


@sizes.each(
    "text",
    [
        "Mozilla/5.0 (X11) Chrome/120.0.0.0 Safari/537.36", "2024-05-01 10:11:12.123", "10:20:30", "std::vector<a::b>",
        "00:1a:2b:3c:4d:5e", "release 1.2.3", "Django 5.2.1", "550e8400-e29b-41d4-a716-446655440000", "id 4930123456",
        "lat 52.5200 13.4050", "img@sha256:0123abcd", "left-pad@1.2.33", "1700000000.123", "@property", "a @ b",
        'SELECT "a"."b" FROM "a" WHERE "a"."c" = %s', "/orders/12/items/", "GET /a/<int:pk>/", "::", "DE12 is a street",
    ],
)  # fmt: skip
def test_what_only_resembles_personal_data_stays(text):
    assert PERSONAL.text(text) == text


@sizes.each(
    ("key", "value", "expected"),
    [
        ("user.email", "ann", REDACTED),
        ("user.phone", 4930123, REDACTED),
        ("customer.phone_number", "0301234", REDACTED),
        ("emailAddress", "ann", REDACTED),
        ("enduser.id", "ann@x.example", REDACTED),
        ("client.address", "203.0.113.9", REDACTED),
        ("network.peer.address", "2001:db8::7", REDACTED),
        ("server.address", "10.0.0.1", "10.0.0.1"),
        ("host.ip", ["10.0.0.1"], ["10.0.0.1"]),
        ("tags", ["vip", "ann@x.example"], ["vip", REDACTED]),
        ("form", {"email": "ann", "n": 1}, {"email": REDACTED, "n": 1}),
        ("email_sent", True, True),
        ("email_count", 3, 3),
        ("email_backend", "smtp", "smtp"),
        ("url.query", "email=ann%40x.example&page=2", "email=[redacted]&page=2"),
    ],
)
def test_personal_data_in_attributes(key, value, expected):
    assert PLAIN.value(key, value) == value
    assert PERSONAL.value(key, value) == expected


@pytest.mark.parametrize(
    "part", sizes.few(["1.2.", "a:", "+49 1", "06 12 ", "a@", "a.", "DE89 ", "(0", "+", "%4", "A/", "é@", "0123-4",
                       "AB12", "+1-1"], 4),
)  # fmt: skip
def test_hostile_texts_are_read_in_proportion_to_their_length(part):
    assert growth_per_doubling(PERSONAL.text, lambda length: part * (length // len(part)), 10_000) < MOST_PER_DOUBLING


def test_the_setting_is_a_boolean():
    assert parse({}, {}, "tests").scrub.personal is False
    assert parse({"SCRUB": {"PERSONAL": True}}, {}, "tests").scrub.personal is True
    with pytest.raises(ConfigError):
        parse({"SCRUB": {"PERSONAL": "email"}}, {}, "tests")


_SITE = """
import json, logging, sys
import django
from django.conf import settings
from django.http import HttpResponse
from django.urls import path

def page(request):
    from django.db import connection
    from django_otel import span
    with connection.cursor() as cursor:
        cursor.execute("SELECT 'ann.lee@shop.example', '203.0.113.9'")
    logging.getLogger("shop").warning("order of %s from %s", "ann.lee@shop.example", "203.0.113.9",
        extra={"iban": "DE89370400440532013000"})
    with span("work for ann.lee@shop.example", attributes={"contact": "+49 30 12345678", "order.lines": 3}) as current:
        current.add_event("paid", {"account": "DE89 3704 0044 0532 0130 00"})
    raise ValueError("no such user: ann.lee@shop.example, 203.0.113.9")

urlpatterns = [path("page/", page)]
settings.configure(
    SECRET_KEY="x", ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, INSTALLED_APPS=["django_otel"],
    MIDDLEWARE=["django_otel.middleware.OTelMiddleware"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    OTEL=json.loads(sys.argv[1]),
)
django.setup()
from django.test import Client
Client(raise_request_exception=False).get("/page/?by=ann.lee%40shop.example", REMOTE_ADDR="203.0.113.9")
from django_otel import runtime
assert runtime.flush(20)
from django_otel.tracestore.reader import TraceFilter, read
with read(runtime.console().store()) as reader:
    for row in reader.list_traces(TraceFilter()).rows:
        print(repr(row), reader.trace(row.trace_id))
"""

FORMS = ("ann.lee", "203.0.113.9", "12345678", "DE89")


@pytest.mark.parametrize("is_on", [False, True])
def test_personal_data_in_all_that_leaves(receiver, tmp_path, is_on):
    export = {"EXPORTERS": ["otlp"], "ENDPOINT": receiver.url}
    otel = {
        "SERVICE_NAME": "shop",
        "TRACES": export,
        "LOGS": export,
        "CONSOLE": {"ENABLED": True, "PATH": str(tmp_path / "store")},
        "REQUEST": {"QUERY": True, "CLIENT_ADDRESS": True},
        "SCRUB": {"PERSONAL": is_on},
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_SITE), json.dumps(otel)],
        capture_output=True, text=True, timeout=120, env=services.server_env(), cwd=services.ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    spans = {span.name: span for _, span in receiver.spans()}
    sent = "".join(str(message) for _, _, message in receiver.requests)
    assert "order.lines" in sent
    assert "order.lines" in done.stdout
    assert "SELECT ?, ?" in sent
    server = services.attributes_of(spans["GET /page/"])
    assert server["server.address"] == "testserver"
    if is_on:
        assert server["client.address"] == REDACTED
        assert server["url.query"] == "by=[redacted]"
        assert [form for form in FORMS if form in sent or form in done.stdout] == []
    else:
        assert server["client.address"] == "203.0.113.9"
        assert [form for form in FORMS if form not in sent or form not in done.stdout] == []
