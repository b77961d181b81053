"""What stands behind the name of a secret and is none, and objects of which only some members are secrets."""

from __future__ import annotations

import json

import pytest

from django_otel.base import guard
from django_otel.redaction import scrub
from django_otel.redaction.scrub import Scrubber
from tests import sizes
from tests.redaction.growth import MOST_PER_DOUBLING, growth_per_doubling

R = "[redacted]"


@pytest.fixture(scope="module")
def scrubber():
    return Scrubber()


@sizes.each(
    "text",
    [
        # Names of places.
        "password: ${DB_PASSWORD}", 'password: "${DB_PASSWORD:?is not set}"', "token = var.api_token", "api_key: YOUR_API_KEY",  # noqa: E501
        "secret = module.vault.secret_id", "DbPassword: !Ref Password", "token: {{ .Values.auth.token | quote }}",
        "token: $(cat /run/secrets/token)", "password: op://prod/db/password", "password: /run/secrets/db",
        "secret: arn:aws:secretsmanager:eu-central-1:1:secret:db-AbCdEf", "token: secrets.GITHUB_TOKEN",
        # Programs.
        "let password = env::var(name)?;", "pub token: Option<String>,", "password: Mapped[str] = mapped_column(String(128))",  # noqa: E501
        "session: AsyncSession = Depends(get_session)", "auth = (user, password)", "'password' => ['required', 'min:8'],",  # noqa: E501
        "'password' => bcrypt($request->password),", "$token = $this->tokens->find($id);", "password => hash",
        "password = $user['password'];", 'token = $_POST["token"]', "secret = $secrets[0]", "token = $t[$name]",
        'password = getpass("Password: ")', "type Query { login(password: String!): Token }",
        'headers = {"Authorization": f"Bearer {token}"}', '{"password": {"minLength": 8, "type": "string"}}',
        # Sentences and measurements.
        "authorization: granted to role admin", "Authorization: header missing", "card: declined by issuer",
        "Invalid token: signature mismatch", "Invalid credentials: try again", "cookies: 3 set, 1 rejected", "token 12 of 40",  # noqa: E501
        "token_type=bearer expires_in=3600", "session_timeout=30m", "jwt_leeway=1.5s", "token_lifetime: 1h 30m",
        "auth=ldap user=bob", "redis GET session:12 miss", 'PASSWORD_HASHERS = ["hashers.Argon2PasswordHasher"]',
        '{"tokens": {"prompt": 12, "completion": 40}}', "imagePullSecrets:\n- name: registry", "auth:\n  type: oidc\n",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(scrubber, text):
    assert scrubber.text(text) == text


@sizes.each(
    "text",
    [
        "password: ${DB_PASSWORD:-{}}", "password: !vault {}", "Mypassword = Secret('{}')",
        "password: {} for user bob", "authorization: token {}", "password: Option<String> = \"{}\"", "passphrase: wrong {}",  # noqa: E501
        "session:\n  id: {}\n  title: x", "secrets:\n  a: {}\n  b: 1", "tokens:\n- {}", '{"tokens": {"access": "{}"}}',
        '{"password": {"type": "string", "default": "{}"}}', '{"password": "{}", "confirm": "{}"}', "password => {}",
        '{"cookies": {"a": "{}"}}', "auth = ('bob', '{}')", "'password' => ['{}', 'min:8'],", "mot de passe : {}",
        "default password ({}) is in use", 'ConvertTo-SecureString "{}" -AsPlainText', "runas /user:bob /pass:{}",
        "<key>apiToken</key><string>{}</string>", "https://x.example/l?t={}", "Temporary password for bob is {}",
        "password changed from a1b2c3d4 to {}", "existing_password: {}",
        "password = $A[{}", "password = $A->0{}", "token = $t[0]{}", "password = A.A({}",
    ],
)  # fmt: skip
def test_a_secret_beside_such_words_is_redacted(scrubber, text):
    secret = "Qx7pLm29" + "ZkR4wT81vBqN5"
    scrubbed = scrubber.text(text.replace("{}", secret))
    assert secret not in scrubbed
    assert scrubber.text(scrubbed) == scrubbed


@sizes.each(
    "key, value",
    [
        ("session", {"id": 12, "title": "Keynote", "room": "A", "starts_at": "2026-05-01T10:00:00Z"}),
        ("sessions", [{"id": 3, "speaker": "Jane"}, {"title": "Opening", "seats": 40}]),
        ("card", {"brand": "visa", "last4": "4242", "exp_year": 2027}),
        ("user.session", {"device": {"os": "linux", "is_mobile": False}}),
    ],
)
def test_the_properties_of_a_session_or_a_card_stay(scrubber, key, value):
    assert scrubber.value(key, value) is value
    text = json.dumps({key: value, "n": 1})
    assert scrubber.text(text) == text
    assert scrubber.text(repr({key: value})) == repr({key: value})


@sizes.each(
    "key, value",
    [
        ("session", {"id": "ab", "title": "Keynote"}),
        ("session", {"a": "hunter2"}),
        ("session", {"title": "Keynote", "a": {"b": {"password": "x"}}}),
        ("session", {"id": 4242424242424242}),
        ("session", {"data": ["hunter2"]}),
        ("sessions", [{"id": 3}, {"key": "ab"}]),
        ("card", {"brand": "visa", "cvc": 123}),
        ("card", {"brand": "visa", "number": "4242424242424242"}),
        ("session_id", {"a": "b"}),
        ("cookies", {"lang": "de"}),
        ("tokens", {"access": "x"}),
        ("password", {"hint": "x"}),
    ],
)
def test_with_a_secret_among_them_they_do_not(scrubber, key, value):
    assert scrubber.value(key, value) == ((R,) if isinstance(value, list) else R)
    assert scrubber.text(json.dumps({key: value, "n": 1})).startswith(f'{{"{key}": {R}')
    cut = json.dumps({key: value})[:-2]
    assert scrubber.text(cut) == f'{{"{key}": {R}'


def test_a_key_of_the_project_covers_all_members():
    assert Scrubber(["session"]).value("session", {"title": "x"}) == R
    assert Scrubber(["session"]).text('{"session": {"title": "x"}}') == f'{{"session": {R}}}'


PARTS = [
    '{"session": ', '"session": {"a": ', '"sessions": [{"id": 1}, ', "session:\n ", "session:\n  a: b\n", "password: ${",  # noqa: E501
    "password: {{ a", "token: $(cat ", "password: !Sub ", "password: Option<", "password = a.b(", "password => ",
    "password: {type: ", "password: ['required', ", "auth = (user, ", "tokens: {'a': 1, ", "password for a is ",
    "default password (", "mot de passe: ", "?t=aB3", '"password": "a", "confirm": "', "session_timeout: 1h 2m ",
    "wpa_passphrase a ", "ConvertTo-SecureString ", "<key>token</key>",
]  # fmt: skip


@pytest.mark.parametrize("part", sizes.few(PARTS, 5), ids=repr)
def test_such_texts_take_time_in_proportion_to_their_length(monkeypatch, part):
    monkeypatch.setattr(scrub, "MAX_TEXT_LENGTH", 10**9)
    guard.reset()
    growth = growth_per_doubling(Scrubber().text, lambda length: part * (length // len(part)), 4_000)
    assert growth < MOST_PER_DOUBLING
    assert not guard.fault_counts()
