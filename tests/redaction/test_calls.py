"""Secrets among the arguments of calls, in what drivers and validators repeat, and the expressions beside them."""

from __future__ import annotations

import pytest

from django_otel.redaction.scrub import Scrubber

SECRET = "Hunter2xY"


@pytest.mark.parametrize(
    "call",
    [
        "mysqli_connect('db', 'bob', '{}')",
        "#0 /srv/db.php(7): PDO->__construct('mysql:host=db', 'bob', '{}')",
        'DriverManager.getConnection(url, "bob", "{}")',
        "paramiko: auth_password('bob', '{}')",
        'new PasswordAuthentication("bob", "{}")',
        "oci_connect('bob', '{}', 'shop')",
    ],
)
def test_the_password_among_the_arguments_of_a_call_is_redacted(call):
    text = Scrubber().text(call.format(SECRET))
    assert SECRET not in text
    assert "bob" in text or "[redacted]" in text


@pytest.mark.parametrize(
    "message",
    [
        "Invalid type for parameter Password, value: {}, type: <class 'str'>, valid types: <class 'int'>",
        "'{0}' is too short\n\nOn instance['user']['password']:\n    '{0}'",
        "ValueError: Port could not be cast to integer value as '{}'",
        'invalid dsn: missing "=" after "{}" in connection info string',
        'invalid integer value "{}" for connection option "port"',
        'parse "postgres://db": invalid port ":{}" after host',
    ],
)
def test_a_value_that_a_driver_or_a_validator_repeats_is_redacted(message):
    assert SECRET not in Scrubber().text(message.format(SECRET))


@pytest.mark.parametrize("port", ['":5432"', '"99999"', '"-1"'])
def test_a_port_that_is_a_number_stays(port):
    text = f"invalid port {port} after host"
    assert Scrubber().text(text) == text


@pytest.mark.parametrize(
    "source",
    [
        "client_secret=settings.OAUTH_CLIENT_SECRET,",
        'login(password=form.cleaned_data["password1"])',
        "if not check(password, user.password): raise Denied",
        "export const getToken = (state) => state.auth.token;",
        "usage: run [--password PASSWORD] [--api-key API_KEY]",
        "  --token TOKEN   API token of the user",
        "message Login { string user = 1; string password = 2; }",
        "public function setPassword(string $password): self",
        'fmt.Errorf("token: %w", err)',
        "password: DataTypes.STRING,",
        'SECRET_KEY = get_secret("django/secret-key")',
        "api_key: str = Field(..., min_length=20)",
        "~ password = (sensitive value)",
        "tests/test_password.py::test_reset PASSED",
        "{% url 'reset' uidb64=uid token=token %}",
        "secret = base64.b64decode(encoded_secret)",
        'puts "password: #{password}"',
        'read -s -p "Password: " PASSWORD',
        'curl -H "Authorization: Bearer $TOKEN" https://api.example.com',
        "docker login -u ci --password-stdin registry.example.com",
        "aws secretsmanager get-secret-value --secret-id shop/db",
        "alice : TTY=pts/0 ; PWD=/home/alice ; USER=root ; COMMAND=/bin/ls",
        "counts: {pass: 12, fail: 0}",
        "my ($user, $password) = @_;",
        "$token = bin2hex(random_bytes(16));",
        "password: { type: String, required: true, select: false }",
        "protected $hidden = ['password', 'remember_token'];",
        '<add key="TokenLifetimeMinutes" value="30" />',
    ],
)
def test_expressions_and_names_of_arguments_stay(source):
    assert Scrubber().text(source) == source


def test_what_follows_a_value_of_json_without_blanks_stays():
    text = '{"mfa":true,"user":7,"token":null,"name":"bob"}'
    assert Scrubber().text(text) == text
    assert Scrubber().text('{"pin":123456,"user":7}') == '{"pin":[redacted],"user":7}'


def test_a_member_of_a_struct_of_go_is_redacted():
    assert SECRET not in Scrubber().text(f"&{{Host:mail Port:587 User:bob Pass:{SECRET} TLS:true}}")


def test_a_word_under_a_parameter_with_many_meanings_stays():
    for text in (
        "https://shop.example/s?q=shoes&key=brand",
        "/list?state=active",
        "/list?code=de&sign=plus",
        "/list?code=DE&hash=md5",
    ):
        assert Scrubber().text(text) == text
    assert SECRET not in Scrubber().text(f"https://shop.example/s?key={SECRET}")


@pytest.mark.parametrize(
    "column", ["key = '67e39b630ae9f1a95ef9fa7261b2b0a7'", "key = '9f8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d2e1f0a'"]
)
def test_a_random_literal_of_a_statement_is_redacted_under_a_general_name(column):
    text = Scrubber().text(f"SELECT * FROM authtoken_token WHERE {column} LIMIT 21")
    assert text == "SELECT * FROM authtoken_token WHERE key = '[redacted]' LIMIT 21"
    kept = "SELECT * FROM item WHERE key = '6b2d1b3e-61ab-4c5e-9c1c-9a0d8a8b7c55'"
    assert Scrubber().text(kept) == kept


def test_a_secret_is_found_behind_what_it_is_for():
    assert SECRET not in Scrubber().text(f"new password for tenant 4 = {SECRET}")
    kept = "password for bob was changed by administrators"
    assert Scrubber().text(kept) == kept


@pytest.mark.parametrize(
    "sentence",
    [
        "sudo: password entered: {}",
        "Neues Passwort gesetzt: {}",
        "Votre mot de passe est {}",
        "Su contraseña es {}",
        "La tua password è {}",
        "temporary credentials: bob / {}",
        "auth failed (bob:{})",
        "WIFI:T:WPA;S:office;P:{};;",
        "etcdctl --user root:{} put a b",
        "listen stats\n  stats auth admin:{}",
        "SecretStr('{}')",
        "ParseResult(scheme='redis', netloc=':{}@redis:6379', path='/0')",
        "[Errno -2] Name or service not known: 'bob:{}@shop.example.com'",
        "bob:{}@10.0.0.1",
        "b'[AUTHENTICATIONFAILED]' after A001 LOGIN bob {}",
        "config.set('smtp', 'password', '{}')",
        "│ password │ '{}' │",
        "key slot 0 unlocked with '{}'",
        "auth: {{user: bob, pass: {}}}",
        "HSET user:1 name bob password {}",
        '{{"saslStart": 1, "payload": "{}"}}',
        "https://x.example/?u=bob&p={}",
        '[{{password,<<"{}">>}},{{user,<<"bob">>}}]',
        '{{password, "{}"}}',
        "Password REG_SZ {}",
        "/p:{} /u:bob",
        "password ........ {}",
        "Changed password from {} to Other4xYz",
    ],
)
def test_the_password_of_a_sentence_a_command_or_a_code_is_redacted(sentence):
    assert SECRET not in Scrubber().text(sentence.format(SECRET))


@pytest.mark.parametrize(
    "sentence",
    [
        "La password è stata modificata.",
        "Votre mot de passe est expiré",
        "password entered: correctly",
        "login failed (web1:8000)",
        "user:bob1990@mail.example",
        "login ok user=alice method=password mfa=totp ms=12",
        "HSET user:1 token_type bearer",
        "See *Token authentication* in the manual.",
        "password: N/A",
        "password: (none)",
        'auth = "mtls"',
        "password_encryption = scram-sha-256",
        "credential_process = aws-vault exec prod",
        "pinned digest sha256:4b825dc642cb6eb9a060e54bf8d69288fbee49044b825dc642cb6eb9a060e54b",
        "Bearer capability: read",
        "{token, expired}",
        "encrypted with 'AES-256-GCM'",
        "auth failed for bob: timeout after 30s",
    ],
)
def test_a_sentence_about_a_password_stays(sentence):
    assert Scrubber().text(sentence) == sentence


def test_values_that_are_compared_are_redacted():
    first, second = "Kc5MN6s4FIgxFJqYd29IojfE77BIcL17", "qDipF6zGBdIZ5QjwLSLDfVBSYgDOUpo3"
    text = Scrubber().text(f"csrf token mismatch: expected {first}, got {second}")
    assert text == "csrf token mismatch: expected [redacted], got [redacted]"
    kept = "checksum mismatch: expected 9f86d081884c7d659a2feaa0c55ad015, got 4b825dc642cb6eb9a060e54bf8d69288"
    assert Scrubber().text(kept) == kept


@pytest.mark.parametrize(
    "text",
    [
        "refresh token reuse detected: {}",
        "nonce {} already used",
        "authorization code {} already redeemed",
        "device code {} pending",
        "https://shop.example.com/join?i={}",
        "AuthForbidden: state={}",
    ],
)
def test_a_random_text_behind_the_name_of_a_code_is_redacted(text):
    secret = "xFJqY7d2A9Iojf77wBIcL16SUsqPsiQ3"
    assert secret not in Scrubber().text(text.format(secret))


def test_a_number_that_was_entered_as_a_pin_is_redacted():
    assert "779535" not in Scrubber().text("entered PIN 779535")
    assert Scrubber().text("wrong PIN 3 times") == "wrong PIN 3 times"


def test_a_private_file_under_a_random_name_is_redacted():
    assert Scrubber().value("url.path", "/ical/kuBsm8bbIUy6uICVx1U1Z6nCvRLhG4D7.ics") == "/ical/[redacted].ics"
    assert Scrubber().value("url.path", "/download/report-2026-03-01-final-version.pdf").endswith("version.pdf")


def test_the_code_of_oauth_is_redacted_as_an_attribute_and_a_count_stays():
    assert Scrubber().value("oauth.code", "ZuwlREBPSggMu8vR1oCZ29kf") == "[redacted]"
    assert Scrubber().value("secrets_mounted", "3") == "3"


@pytest.mark.parametrize(
    "sentence",
    [
        "Use 763318 to log in to Shop",
        "Votre code de vérification est 763318",
        "Su código de verificación es 763318",
        "Il tuo codice di verifica è 763318",
        "您的验证码是 763318",
    ],
)
def test_a_code_is_redacted_in_sentences_of_more_languages(sentence):
    assert "763318" not in Scrubber().text(sentence)


def test_a_number_that_is_used_stays():
    for text in ("use 1234 to 5678 workers", "code de pays est 4951", "use 8192 as buffer size"):
        assert Scrubber().text(text) == text
