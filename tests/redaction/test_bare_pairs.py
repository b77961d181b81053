"""Secrets that neither `=` nor `:` divides from their name, in settings, protocols, tables and markup."""

from __future__ import annotations

import pytest

from django_otel.redaction.scrub import Scrubber
from tests import sizes

WORD = "qxeszycid"


@pytest.fixture(scope="module")
def scrubber():
    return Scrubber()


@sizes.each(
    "text",
    [
        "bind_pw {}", "rootpw {}", "smtp_pass {}", "ldap.bind.password {}", "db_passwd '{}'", "set admin_password {}",
        "binddn cn=x\nbindpw {}\nbase dc=x", "user bob\npassword {}", "password|{}", "user|bob|password|{}|", "password -> {}",  # noqa: E501
        "db_password ~> {}", "password \u2192 {}", "HELLO 3 AUTH bob {}", "AUTH bob {}", "(AUTH {}) of pipeline", "user x on >{} ~*",  # noqa: E501
        "USER bob\r\nPASS {}\r\n", "---> PASS {}", 'a1 LOGIN bob "{}"', "enable secret {}", "snmp-server community {} RO",  # noqa: E501
        "INSERT INTO u (name, password) VALUES ('bob', '{}')", "user,password\nbob,{}", "| password |\n|---|\n| {} |",
        "&quot;password&quot;: &quot;{}&quot;", "\\u0022token\\u0022:\\u0022{}\\u0022", "<td>DB_PASSWORD</td><td>{}</td>",  # noqa: E501
        '{{"value": "{}", "name": "DB_PASSWORD"}}', "{{'loc': ('password',), 'msg': 'short', 'input': '{}'}}",
        'name="password"\r\n\r\n{}\r\n--x', "password:\n- {}\n", 'set_password("{}")', "Secret(value='{}')",
        "CREATE ROLE bob LOGIN PASSWORD '{}'", "//bob:{}@host/x", "proxy=bob:{}@10.0.0.1:3128",
    ],
)  # fmt: skip
def test_what_stands_behind_a_name_is_redacted(scrubber, text):
    scrubbed = scrubber.text(text.format(WORD))
    assert WORD not in scrubbed
    assert scrubber.text(scrubbed) == scrubbed


@sizes.each(
    "text",
    [
        "rootpw secret",
        "bindpw admin",
        'bindpw "my secret"',
        "rootpw secret123",
        "requirepass foobared",
        "bind_pw hunter2",
    ],
)
def test_passwords_of_examples_are_redacted_too(scrubber, text):
    name, _, value = text.partition(" ")
    assert value.strip('"') not in scrubber.text(text).removeprefix(name)


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "XOAUTH2", "CRAM-MD5"])
@pytest.mark.parametrize("command", ["AUTH", "a1 AUTHENTICATE", ">>> AUTH", "send: 'AUTH"])
def test_the_credentials_of_a_mail_server_are_redacted(scrubber, command, mechanism):
    credentials = "AGJvYgBxeGVz" + "enljaWQ="
    assert credentials not in scrubber.text(f"{command} {mechanism} {credentials}")


@sizes.each(
    "text",
    [
        "bind_pw missing", "the bind_pw field is empty", "rootpw directive", "password|username", "(password|secret|token)",  # noqa: E501
        "| name | password | email |", "user;password;email", "PASS tests/foo.py::test_x", "PASS TestLogin", "AUTH failed",  # noqa: E501
        "AUTH LOGIN not supported", "250-AUTH PLAIN LOGIN CRAM-MD5", "user1 LOGIN attempt failed", "a1 OK LOGIN completed",  # noqa: E501
        "HELLO 3 SETNAME app", "requirepass is not set", "user bob on host web-1", "enable secret rotation", "token -> id mapping",  # noqa: E501
        "shop.tasks.send_password received", "password - required", "id,name\n1,bob", "password:\n  min: 8", "tokens = 128",  # noqa: E501
        "INSERT INTO u (name, password) VALUES (%s, %s)", "<td>Session</td><td>Room 4</td>", "actions/checkout@v4",
        "sip:bob@example.com:5060", "Token(kind='OP', value='+')", "password changed from web to app login",
    ],
)  # fmt: skip
def test_what_says_something_about_a_name_stays(scrubber, text):
    assert scrubber.text(text) == text
