"""Hostile texts: each rule reads in proportion to the length, for texts of any content, and no rule fails on one."""

from __future__ import annotations

import random

import pytest

from django_otel.base import guard
from django_otel.redaction import cutting, scrub
from django_otel.redaction.scrub import Scrubber
from django_otel.redaction.statements import parameterise
from tests import sizes
from tests.redaction.growth import MOST_PER_DOUBLING, growth_per_doubling

#: What the rules look for, or the beginning of it.
PARTS = [
    'login("', "login('a','", "echo a|", "echo -n 'a' | sudo ", "AUTH ", "ACL SETUSER a >", "password for a: ",
    "ENV a ", '"password" { default = ', "string(9) ", "password: !a ", "password: | ", "token=[a for ",
    "password: ['A b c.',", "sha512-a/", "arn:a:", " -abcd ", "token is ", 'password was "', '<property name="a">',
    "secret '", "SECRET 'a'", 'DETAIL:  Token "', 'invalid value "', 'invalid value "a" ', "JSON data, line 1: ",
    "AAAA", "gAAAAA", "sl.a", "*A", "v4.local.", "LS0tLS1CRUdJTi", "curl -u a:", "mysql -p", "password=``",
    'password=\\"\\"', "a:1aaaaa:", ".eJx", "requirepass ", "credentials: a: ", "passphrase=a ", "x-api-key a",
    "if a == ", "os.environ[", 'env("', "<a name='", "a/b", "/bot1:", "Key (a)=(", "SET a.b = ", "IDENTIFIED BY ",
    "password|", "a_pw ", "password -> ", "a1 LOGIN a ", "AUTH PLAIN a", "HELLO 3 AUTH a ", "\nPASS a", "334 a\n", "AUTH\r\n$1\r\n",  # noqa: E501
    "&quot;password&quot;:", "\\u0022a\\u0022:", "<td>token</td>", "<input name='a' ", "&lt;a&gt;", '"loc": ["a", ', '"value": "a", ',  # noqa: E501
    "set a b ", "enable secret ", "username a secret 5 ", "insert into a (password) values (", "password,a\n", "| password |\n",  # noqa: E501
    "set_password('", "from s3('a', ", "jwt.decode(a, ", "//a:b", "a:b@c:", "user a password ", '"a" * b * ', "a" * 64 + "\n",  # noqa: E501
    "Private-Lines: 1\na\n", "PRIVATE KEY-----\n", "git config a ", "curl -b a=", "vault kv put a ", "<Cookie a=", "identified by a replace ",  # noqa: E501
    'name="password"\r\n\r\n', "name=a value=", "Secret('a'", "password:\n- a\n", "password: a -> ", "OTP: 1", "1234 is your ",  # noqa: E501
    "password changed from 'a' to ", "bad credentials a:", "admin password is ", "'a' as token ", "\tTRUE\t1\tsessionid\ta", "codes: abcdef, ", "AC",  # noqa: E501
    "key <(echo ", "//a:1,b:2,", "alter role a set a.b = ", '"a"."key" = ', 'code: a', "334 a\nYQ==\n", "simple_bind_s('a', ", "crypt('", "pragma key", "`", "\\", "'", '"', "%3D", "{", "[", "-", "_", "é", "\x00",  # noqa: E501
    "PDO->__construct('a', 'b', ", "getConnection(a, 'b', ", "for parameter password, value: ", "On instance['password']: ", "On instance['a']",  # noqa: E501
    "invalid port ", "secret for a = ", "LOGIN a@b ", "--token TOKEN ", "password=(a) ", "Kennwort: a b ", "{Pass:a ", "A:b Pass:c ", "k=aB1 SigningKey(",  # noqa: E501
    "SELECT a WHERE key = '", "/services/TAAAAAAAA/BAAAAAAAA/", "secret a~.", '"mfa":true,"', "password=a['b'] ",
    "token expected aB1", "csrf got ", "WIFI:P:", "Unseal Key 1: ", "::add-mask::", "auth failed a:", "credentials: a / ", "passwort a a ",  # noqa: E501
    "string password = 2", "etcdctl --user a:", "password = get(", "SecretStr('a'",
    ":aA1!aA1", "a:aA1!aA1@", "X01 LOGIN a ", ".set('a', '", "password │ ", "unlocked with 'a", "{pass: ", "{a: b, pass: ", "token a a a: aB1",  # noqa: E501
    'p "Password: " ', "password = a.b(a, ", "password=token ", "PWD=/",
    '{password, "a', '{password,<<"a">>', "password REG_SZ a ", "password ... a", "password ....", "/p:a /u:", "验证码是1234", "use 1234 to ",  # noqa: E501
    "['password', 'remember_token', ", "digest sha256:", "$a = b(c(1))",
    "HSET a b ", "HSET a password ", '"saslStart": 1, "payload": ', "?u=a&p=a1", "u=a ", "/ical/aB1aB1aB1aB1aB1aB1aB1aB1.ics",  # noqa: E501
    "\x1b[", "\x1b[1m", "password: <br>", "<b>password:</b>", "a b:</b>", "%3A%2F%2Fa", "&t=aB1", 'token=[a password=\\"\\"', 'File "a", line 1, in b\n    token=[a for ', "كلمة المرور هي ", "密码：",  # noqa: E501
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_limit(monkeypatch):
    monkeypatch.setattr(scrub, "MAX_TEXT_LENGTH", 10**9)
    guard.reset()
    yield
    assert not guard.fault_counts(), guard.fault_counts()


@pytest.mark.heavy
@pytest.mark.parametrize("start", ["", "password=", '"token": "'])
@pytest.mark.parametrize("part", sizes.few(PARTS, 8), ids=repr)
def test_a_text_takes_time_in_proportion_to_its_length(part, start):
    text = Scrubber(personal=True).text
    found = growth_per_doubling(text, lambda length: start + part * (length // len(part)), 4_000)
    assert found < MOST_PER_DOUBLING


@pytest.mark.heavy
@pytest.mark.parametrize(
    "part", ['"', "'", "(", "[", "IN (?,", "SET a.b=", "IDENTIFIED BY a ", "--", "/*", "$a$", "a."]
)
@pytest.mark.parametrize("vendor", sizes.few(["postgresql", "sqlite", "oracle", "mysql", "microsoft", "other"], 3))
def test_a_statement_takes_time_in_proportion_to_its_length(part, vendor):
    numbers = iter(range(10**9))

    def read(text: str) -> object:
        # Another text each time, since statements are remembered.
        return parameterise(f"SELECT {next(numbers)} {text}", vendor, 10**9)

    found = growth_per_doubling(read, lambda length: part * (length // len(part)), 4_000)
    assert found < MOST_PER_DOUBLING


@pytest.mark.scaled
def test_any_mixture_of_parts_is_read_without_a_fault():
    chance = random.Random(4)
    scrubber = Scrubber(personal=True)
    for _ in range(sizes.scaled(250, 1500)):
        text = "".join(chance.choice(PARTS) + chance.choice(["", "", " ", "\n", "x", "="]) for _ in range(12))
        once = scrubber.text(text[: chance.randrange(1, len(text) + 1)])
        assert scrubber.text(once) == once


def test_a_cut_reads_no_more_than_it_keeps():
    seen: list[int] = []

    def count(text: str) -> str:
        seen.append(len(text))
        return text

    for length in (100, 4096):
        for size in (10_000, 10_000_000):
            cutting.cut("x" * size, length, count)
            cutting.cut_stack("x\n" * size, length, count)
    assert max(seen) <= 100_000


@sizes.each("key", ["password=", "password: ", '"password": ', "password => ", "?password="])
@sizes.each(
    "quotes",
    ["``", "''", '""', "''''", '""""', "``````", 'b""', "u''", '\\"\\"', "\\'\\'", "``''", "''``", "`` ", "``` "],
)
def test_empty_quotes_before_a_value_do_not_save_it(key, quotes):
    assert "hunter2x" not in Scrubber().text(f"a {key}{quotes}hunter2x more")


WORDS = (
    "GET order 12 4111 1111 card user bob failed Set Cookie session ENV abc IBAN SET to Database row near value "
    "COPY line mysql p u curl docker login AUTH default x is was the password set secretly keytool Db Paris 99999 5 "
    "net use command global ORA LINE QUERY Duplicate entry key Pin code state otp api access private PRIVATE KEY "
    "BEGIN END snmpwalk zip helm your 2FA is "
).split()


@pytest.mark.scaled
def test_a_text_that_says_nothing_is_one_the_rules_leave_alone():
    chance = random.Random(3)
    scrubber = Scrubber()
    passed = 0
    count = sizes.scaled(3_000, 20_000)
    for _ in range(count):
        parts = (
            chance.choice(WORDS) + chance.choice([" ", "/", ", ", ". ", "-", " /"])
            for _ in range(chance.randrange(1, 9))
        )
        text = "".join(parts)
        if scrub._says_nothing(text):
            passed += 1
            assert scrubber._apply_rules(text) is text
    assert passed > count / 10
