"""Sensitive keys: whether the name that a value stands under says that the value is a secret."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence

from django_otel.base.patterns import lazy_pattern

REDACTED = "[redacted]"

#: The verdicts on a key. LABEL: a property of a secret (`card_brand`), which stays unless the value looks random.
PLAIN, SENSITIVE, SENSITIVE_LINE, LABEL = 0, 1, 2, 3


def words(text: str) -> frozenset[str]:
    """Return the words of a text as a set."""
    return frozenset(text.split())


#: Sensitive as a whole word anywhere in a key.
_WORDS = words(
    "pwd passcode passcodes secret secrets token tokens authorization cookie cookies session sessions sessionid "
    "sessid phpsessid jsessionid sid psk macaroon macaroons requirepass masterauth card cards cardno cardnum "
    "storepass keypass srcstorepass deststorepass srckeypass destkeypass dbpass userpass adminpass rootpass smtppass "
    "bindpass bindpw pw authtok aspxauth rocommunity rwcommunity primaryauth cardholder giftcard bankcard cvv cvc cvn credential "  # noqa: E501
    "credentials creds jwt bearer totp ssn senha passwort kennwort passkey "
    "hasło haslo heslo jelszó jelszo şifre sifre"
)
#: Of these, what they are said to hold decides: `session_id` is a secret, `session_title` is none.
_WEAK_WORDS = words("session sessions card cards cookie cookies token tokens")
#: An object with such a name has properties; of a token and a cookie every member is a secret.
_THINGS = words("session sessions card cards")
#: A whole number below it is the id of a row, no secret.
MANY_ROWS = 10_000_000
_LONGEST_ROW = len(str(MANY_ROWS))
#: Kinds of cards.
_BRANDS = words("visa mastercard maestro amex discover jcb unionpay diners girocard debit credit prepaid")
_CONTENTS = words(
    "id ids key keys value values val number numbers no num data hash code text string str content contents raw "
    "plain new "
    "old current header headers bytes hex base b64 encrypted encoded body payload pan exp expiry holder security "
    "digits "
    "full secure"
)
#: Sensitive wherever they stand in a key whose separators are taken out.
_STEMS = (
    "password", "passwd", "passphrase", "apikey", "apisecret", "secretkey", "privatekey", "accesskey", "signingkey",
    "encryptionkey", "authtoken", "authkey", "creditcard", "debitcard", "cardnumber", "cardtrack", "clientsecret", "csrf", "xsrf",  # noqa: E501
    "samlresponse", "samlrequest", "samlassertion", "clientassertion", "codeverifier", "oauthverifier", "oobcode",
    "secretphrase", "backupphrase", "motdepasse", "contrasena", "contraseña", "securityanswer", "recoveryphrase",
    "seedphrase", "mnemonic", "keymaterial", "communitystring", "snmpcommunity",
    # "password" in other languages.
    "пароль", "密码", "密碼", "パスワード", "비밀번호", "lösenord", "losenord", "salasana", "adgangskode",
    "סיסמה", "סיסמא", "كلمةالمرور", "كلمةمرور", "كلمةالسر", "كلمةسر", "الرقمالسري", "mậtkhẩu", "katasandi",
    # "verification code" and "access code".
    "رمزالتحقق", "رمزتحقق", "رمزالدخول", "验证码", "驗證碼", "認証コード", "인증번호", "кодподтверждения",
    "zugangscode", "bestätigungscode", "sicherheitscode", "freischaltcode", "einmalcode", "verifizierungscode",
    "wachtwoord", "connectionstring", "becomepass", "presharedkey", "authenticationstring", "writekey",
    "instrumentationkey", "authident", "signaturevalue", "licensekey", "deploykey", "wordpressloggedin",
    "onetimecode", "authuserhash", "sessionauthhash", "aspnetcoreidentity", "aspnetcoreantiforgery",
)  # fmt: skip
_SUFFIXES = (
    "pwd", "pw", "secret", "token", "tokens", "cookie", "cookies", "sessionid", "sessid", "credential", "credentials",
)  # fmt: skip
#: "... key" and its kind; `primary_key`, `cache_key`, `public_key` and `idempotency_key` are not among them.
_KEY_OWNERS = words(
    "api access private secret signing signature encryption master account auth ssh storage shared session service "
    "license subscription deploy webhook app application client consumer hmac aes rsa jwt gpg pgp wrapping preshared "
    "instrumentation write ingestion integration fastly fernet functions function admin server management merchant "
    "developer root recovery unseal "
    # Of services, whose keys are named after them.
    "stripe sendgrid mailgun mailchimp mandrill postmark sparkpost twilio vonage nexmo openai anthropic mistral "
    "cohere gemini huggingface algolia mapbox maps recaptcha hcaptcha turnstile paypal braintree adyen razorpay "
    "paystack mollie klarna plaid coinbase datadog newrelic cloudflare github gitlab slack telegram pusher ably "
    "firebase fcm onesignal intercom zendesk hubspot salesforce mixpanel amplitude cloudinary tinify openweather "
    "owm pinecone azure routing"
)
#: "... code" and its kind; `error_code`, `postal_code` and `promo_code` are not among them.
_CODE_OWNERS = words(
    "auth authorization recovery backup verification verify security access reset activation confirmation invite "
    "invitation login pin otp mfa totp sms pairing device unlock magic oauth oidc sso"
)
#: Links that let in who has them.
_LINK_OWNERS = words("magic reset invite invitation activation confirmation verification webhook hook signed presigned")
_PAIRS_OF_WORDS = (
    (_KEY_OWNERS, words("key keys")),
    (_CODE_OWNERS, words("code codes")),
    (_LINK_OWNERS, words("link links url urls uri")),
)
#: Sensitive as a key's last word; in running text ("first pass: 3") only in a compound or before "=".
_LAST_WORDS = words("pass auth sig signature hmac pin otp mfa salt")
#: Sensitive as the name of a query parameter only: OAuth's `code`, Google's `key`, CAS' `ticket`.
_QUERY_WORDS = words("code key state nonce ticket assertion hash sign verifier invite signed otp sso")
#: A word under such a parameter: ?key=brand, ?state=active, ?sort=name
_SHORT_WORD = lazy_pattern(r"[a-z]{1,8}(?:[_\-][a-z]{1,8})?\Z|[A-Z]{2,3}\Z|(?:md5|crc32|(?:sha|hs|rs|es)[0-9]{1,3})\Z")
#: Mechanisms that a mail server offers (AUTH=PLAIN), and by which a user has logged in (auth=ldap).
_MECHANISMS = words(
    "plain login cram-md5 digest-md5 ntlm gssapi xoauth2 oauthbearer external ldap oauth oauth2 oidc saml sso basic "
    "kerberos cert certificate mtls tls publickey password scram-sha-256 md5 trust peer pam radius iam anonymous optional "  # noqa: E501
    "local remote webauthn passkey jwt session token apikey"
)

#: What a second factor may be: mfa=totp.
_FACTORS = words("totp hotp sms email mail push webauthn passkey fido2 u2f app call voice duo optional backup")
#: A number or a date under such a key is a measurement, not a secret.
_MEASURES = words(
    "count counts counter total size length len limit max min age ttl expiry expires expiration timeout "
    "duration seconds ms remaining used attempts failures uses hits misses retries index enabled required at on "
    "budget lifetime days leeway skew delay interval window period threshold rounds iterations cost retries "
    "hours "
    "minutes rate ratio percent quota"
)
_COUNTS = words("count counts total limit")
#: Of `X-Hub-Signature-256` and `X-Shopify-Hmac-Sha256`, without their digits.
_HASHES = words("sha md")
_PLURALS = ("tokens", "sessions", "cookies", "cards", "secrets")
#: Last words of keys that describe a secret without holding it.
_DESCRIPTIONS = words(
    "layout title visible visibility helper scanning color colour icon image position row column width height style "
    "theme "
    "component widget detail details summary overview list grid section tab panel menu label labels caption "
    "description "
    "rules requirements history note comment ring reader deck slot "
    "brand type types kind status state engine backend backends network country present endpoint issuer algorithm alg "
    "policy hasher hashers strength field fields name names param params manager version provider providers domain samesite consent "  # noqa: E501
    "reason failure failures error errors result results method methods source format scheme funding level category class model module "  # noqa: E501
    "action event mode region role outcome stage step phase purpose scope scopes audience currency group tier plan "
    "channel platform device os language locale origin prefix header cache store storage serializer middleware "
    "origins hosts domains scopes audiences algorithms policies types classes modules valid invalid active expired "
    "secure httponly validator validators rotation encoding hint last path "
    "queue topic handler strategy protocol layer created updated changed env environment target owner vendor "
    "check checks supported available duration age bucket range "
    "rule flow attempt encoder typ kid decision server host arn region alias "
    "encryption maps process stdin prompt fd mounted issued rotated revoked loaded "
    "table view page form template screen task job url uri file interval"
)
#: The whole line after such a key belongs to the value.
_LINE_WORDS = frozenset(("authorization", "cookie", "cookies", "passphrase", "mnemonic"))
_PHRASES = ("passphrase", "mnemonic", "seedphrase", "recoveryphrase", "secretphrase", "backupphrase")
#: Keys that are known to hold no secret, though a rule says otherwise, or whose ids could look like card numbers.
SAFE_KEYS = words(
    "trace_id span_id parent_id trace.id span.id parent.id traceparent traceid spanid oteltraceid otelspanid "
    "oteltracesampled otelservicename service.instance.id gen_ai.token.type exception.type code.file.path "
    "code.function.name code.line.number telemetry.sdk.version telemetry.distro.name telemetry.distro.version"
)
#: Keys that end so hold a query string and nothing else.
QUERY_KEYS = ("url.query", "QUERY_STRING", "query_string")
#: Keys of texts that are SQL statements.
STATEMENT_KEYS = ("db.query.text", "db.statement")

#: Words that follow "password:" in sentences.
PROSE = words(
    "started stopped refused closed opened ended active inactive present absent enabled disabled saved loaded renewed "
    "refreshed rotated issued granted valid ok unavailable unsupported malformed unauthorized forbidden timeout "
    "pending "
    "a an the this that is was are must may can cannot could should shall will not no too and or of for field "
    "required invalid incorrect wrong missing expired failed failure changed reset updated created deleted "
    "revoked rejected accepted unknown empty blank too length please enter at use used unable expected got "
    "does do has have it its your ensure only at least denied mismatch error found insufficient try "
    "abgelaufen falsch fehlt ungültig geändert gesetzt zurückgesetzt erforderlich nicht leer unbekannt"
)

HARMLESS = words(
    "absent present missing unset enabled disabled required expired invalid none null nil true false undefined yes no "
    "on off"
) | {"", REDACTED}
_CAMEL = lazy_pattern(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NOT_WORD = lazy_pattern(r"[\W_]+")
_NUMBER = lazy_pattern(
    r"[+\-]?[0-9]{1,12}(?:\.[0-9]{1,12})?(?:[nuµm]s|%|[kmgKMG]i?[bB]?|[bB])?\Z"
    r"|(?:[0-9]{1,6}(?:\.[0-9]{1,6})? ?(?:d(?:ays?)?|h(?:rs?|ours?)?|m(?:ins?|inutes?)?|s(?:ecs?|econds?)?|w(?:eeks?)?|months?|years?)(?![a-z]) ?){1,4}\Z"  # noqa: E501
    r"|P(?:[0-9]{1,6}[DWMY])*(?:T(?:[0-9]{1,6}(?:\.[0-9]{1,6})?[HMS])+)?\Z"
    r"|[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9:.]{5,16}(?:Z|[+\-][0-9]{2}:?[0-9]{2})?)?\Z"
)
#: References to a secret, in the words of shells, of Terraform and CloudFormation, of Helm, of CI, and of examples.
_NAMED_ELSEWHERE = (
    r"\$\{\w[\w.\-]{0,80}(?::?\?[^{}\"'\n]{0,80})?\}|%[A-Z][A-Z_]{1,60}%|\$env:[A-Za-z_]{2,60}|env:[A-Z][A-Z_]{2,60}"
    r"|\{\{[ \w.|\-/:$()]{1,120}\}\}|\{\{ ?-? ?(?:lookup|env|include|query|hostvars|hashi_vault)\b[^{}\n]{1,120}\}\}|(?i:your)(?:[\-_ ][A-Za-z]{2,12}){0,4}[\-_ ](?i:password|token|key|secret|here)"  # noqa: E501
    r"|(?:secrets|steps|needs|inputs|vars|github|matrix|Values|params)(?:\.[A-Za-z_][A-Za-z_\-]{0,60}){1,4}"
    r"|(?:var|local|module|each|random_password|random_string|random_id|data\.[a-z_]{2,60}|(?:aws|azurerm|google)_[a-z_]{2,60})"
    r"(?:\.[A-Za-z_][A-Za-z_\-]{0,60}){1,5}(?:\[\"?[\w\-]{1,40}\"?\])?"
)
#: Of stores of secrets, whose addresses begin so.
_STORE = (
    r"!(?:Ref|Sub|GetAtt|ImportValue|Join|Select|FindInMap|secret|env_var|reference|include|file)[ \t]"
    r"|ENC\[AES256_GCM,|ENC\([A-Za-z0-9+/=]{16,}\)|(?:op|awssm|gcpsm|secretref|keyring|ref\+[a-z]{2,20})://"
    r"|vault:[\w\-]{1,40}/[\w/\-.]{1,80}|arn:aws[\w\-]{0,12}:(?:secretsmanager|ssm|kms):|projects/[\w\-]{1,40}/secrets/"
    r"|@Microsoft\.KeyVault\(|(?:file:(?://)?)?/(?:var/)?run/secrets/"
    r"|\$\((?:cat|op|vault|pass|aws|gcloud|kubectl|sops|openssl|printenv|security|head|jq)[ ][^()\n]{0,200}"
)
#: Stand-ins for a value: masks, placeholders of SQL, of formats and of templates.
_PLACEHOLDER = lazy_pattern(
    r"\*{2,}+\Z|•{2,}+\Z|[xX]{3,}+\Z|\.{3}\Z|%[sr]\Z|%\([\w.]{1,60}+\)s\Z|\?\Z|\$[0-9]{1,4}+\Z|\$\{?[A-Z_]++\}?\Z"
    r"|\{\{[ \w.|\-]{1,80}\}\}\Z|\{[a-z_.]{1,60}\}\Z|<[a-z_ \-]{1,40}>\Z"
    r"|\[(?i:hidden|redacted|filtered|removed|masked|secure|secret)\]\Z"
    r"|@_\Z|\$[@*#?]\Z|\((?:none|empty|null|unset|not set|blank)\)\Z|[nN]/[aA]\Z"
    r"|%[+#\-]?[0-9.]{0,4}[a-zA-Z]\Z|#?\{[\w.]{0,60}(?:![rsa])?(?::[^{}\s]{0,10})?\}\Z"
    r"|(?:required|nullable|sometimes|confirmed|bail)(?:\|[a-z_]{2,20}+(?::[\w,.]{1,40}+)?)*+\Z"
    r"|(?i:bearer|basic|token|apikey) (?:\$?\{[\w.]{1,60}\}|\{\{[ \w.|\-]{1,80}\}\}|%s|%\([\w.]{1,60}\)s|<[\w \-]{1,40}>|\$[A-Za-z_]{1,40})\Z"  # noqa: E501
    rf"|(?:{_NAMED_ELSEWHERE})\Z|(?:{_STORE})"
)
_MASK = lazy_pattern(
    rf"(?:{_NAMED_ELSEWHERE})(?=[\s\"',;)]|\Z)|(?:{_STORE})"
    r"|(?:<[a-z][a-z_ \-]{0,40}>|\[(?i:hidden|filtered|removed|masked|secure|secret)\])(?!\w)"
    r"|\((?:sensitive|hidden|redacted|masked|removed|unset|none|empty|null|not set|known after apply)"
    r"(?: value)?\)(?!\w)"
    r"|[A-Z]\w{2,30}\(['\"]?\*{3,}['\"]?\)|(?i:bearer|basic|token) \$\{[\w.]{1,60}\}`?"
    r"|(?:\$\{[A-Z_]{1,60}\}|\$?\{\{[ \w.|\-]{1,80}\}\})(?!\w)|#?\{[a-z_.]{1,60}\}(?=[\s\"',;)]|\Z)"
    r"|(?i:bearer|basic|token) \$(?:[A-Za-z_]{1,40}(?=[\"'\s]|\Z)|\([a-z]{2,20} [^()\n]{1,80}\))"
)
#: The rest of the address of a place: its path, in quotes or not.
_PLACE = lazy_pattern(r"[\"'][^\"'\n]{0,200}[\"']|[^\s\"',;]{0,200}")
#: Of a package, or a ratio.
_VERSION = lazy_pattern(r"[0-9]{1,4}(?:\.[0-9]{1,4}){1,3}(?:(?:a|b|rc|\.dev|\.post|-rc\.?)[0-9]{1,4})?\Z")
#: ("sessions", "0001_initial"), a migration.
_MIGRATION = lazy_pattern(r"[0-9]{4}(?:_(?:[a-z]{1,30}[0-9]{0,3}|[0-9]{4})){1,12}\Z")
#: Of a few characters, none of them a letter or a digit: brackets and the like in messages of parsers.
_NO_LETTER = lazy_pattern(r"[^\w\s]{1,3}+\Z")
#: The name of a scheme without a credential.
_SCHEMES = words("bearer basic token digest negotiate apikey")
#: Argon2PasswordHasher
_CLASS_NAME = lazy_pattern(
    r"(?=(?:[A-Za-z]{1,40}[0-9]{1,3}){1,2}[A-Za-z]{1,40}\Z)(?:[A-Z]{1,6}[a-z]{2,15}[0-9]{0,3}|[A-Z]{2,6}[0-9]{1,3}){1,6}(?<=[a-z]{3})\Z"
)
_RANDOM_RUN = lazy_pattern(r"[A-Za-z0-9+/_=\-]{12,}+")


def split_key(key: str) -> tuple[str, ...]:
    """Return the lower-case words of a snake, kebab, dotted, bracketed or camelCase key,
    without digits at their ends."""
    pieces = _NOT_WORD.split(_CAMEL.sub(" ", key))
    return tuple(word for word in (piece.strip("0123456789").lower() for piece in pieces) if word)


def judge_words(parts: tuple[str, ...], loose: bool, query: bool) -> int:
    """Return the verdict of the default list.

    `loose` counts the ambiguous last parts in, `query` those of query strings.
    """
    if not parts:
        return PLAIN
    if len(parts) > 1 and parts[-1] in _HASHES:
        parts = parts[:-1]
    last = parts[-1]
    joined = "".join(parts)
    is_strong = (
        any(word not in _WEAK_WORDS and (word in _WORDS or word.endswith(_SUFFIXES)) for word in parts)
        or any(stem in joined for stem in _STEMS)
        or (last in _LAST_WORDS and (loose or len(parts) > 1))
        or (len(parts) > 1 and _has_pair(parts))
        or (query and last in _QUERY_WORDS)
    )
    if not is_strong:
        if _WEAK_WORDS.isdisjoint(parts):
            return PLAIN
        if last not in _WEAK_WORDS and last not in _CONTENTS and not is_measure(parts):
            # `session_speaker`, `card_color`: a property of a session or a card.
            return LABEL
    if len(parts) > 1 and (
        parts[0] == "existing"
        or parts[-2:] in (("routing", "key"), ("secret", "id"))
        or (parts[-2:] == ("key", "id") and parts[-3:-2] != ("access",) and not any(word in _WORDS for word in parts))
        or (last in _DESCRIPTIONS and not _has_pair(parts[-2:]) and not joined.startswith("set"))
    ):
        return LABEL
    return SENSITIVE_LINE if any(word in _LINE_WORDS for word in parts) or joined.endswith(_PHRASES) else SENSITIVE


def _has_pair(parts: tuple[str, ...]) -> bool:
    return any(
        b in seconds and a in firsts for a, b in itertools.pairwise(parts) for firsts, seconds in _PAIRS_OF_WORDS
    )


def is_phrase(key: str) -> bool:
    """Return whether the value under a key may be several words: a passphrase."""
    return "".join(split_key(key)).endswith(_PHRASES)


def is_measure(parts: tuple[str, ...]) -> bool:
    """Return whether a number under a key of these parts is a measurement."""
    return bool(parts) and (
        parts[-1] in _MEASURES or parts[-1].endswith(_PLURALS) or (len(parts) > 1 and parts[-2] in _COUNTS)
    )


def is_harmless(value: str, key: str, verdict: int) -> bool:
    """Return whether a text under a sensitive key says nothing: none, a mask, a measurement, a label."""
    bare = value.strip().rstrip(",;")
    lowered = bare.lower()
    if lowered in HARMLESS or lowered in _SCHEMES:
        return True
    if _MIGRATION.match(bare) or ("_" in key and lowered == key.lower()):
        # A constant that is named as its value is.
        return True
    if _PLACEHOLDER.match(bare) or _VERSION.match(bare) or _NO_LETTER.match(bare):
        return True
    if verdict == LABEL:
        return not is_random(bare)
    if lowered in _BRANDS:
        return split_key(key)[-1:] in (("card",), ("cards",))
    if is_mechanism(lowered, key):
        return True
    if lowered in _FACTORS:
        return split_key(key)[-1:] == ("mfa",)
    if _NUMBER.match(bare) is None:
        return False
    parts = split_key(key)
    return is_measure(parts) or (len(bare) < _LONGEST_ROW and (parts[-2:] == ("key", "id") or is_of_row(parts)))


def is_of_row(parts: tuple[str, ...]) -> bool:
    """Return whether a small number under a key of these parts is the id of a row: `card_id`, `session.pk`, `sid`."""
    return parts == ("sid",) or (len(parts) > 1 and parts[-1] in ("id", "pk") and parts[-2] in _WEAK_WORDS)


def is_thing(key: str) -> bool:
    """Return whether a sensitive key names a thing with properties, a session or a card, rather than a secret."""
    parts = split_key(key)
    return bool(parts) and parts[-1] in _THINGS and judge_words((*parts, "speaker"), True, False) == LABEL


def is_property(value: str, key: str, verdict: int) -> bool:
    """Return whether a text under `key` of a session or a card is a property of it: no code, no id, no password."""
    if verdict in (SENSITIVE, SENSITIVE_LINE):
        return is_harmless(value, key, verdict)
    bare = value.strip()
    if _NUMBER.match(bare) is not None:
        return True
    is_code = len(bare) >= 6 and " " not in bare and any(map(str.isdigit, bare)) and any(map(str.isalpha, bare))
    return not is_code and not is_random(bare)


def is_description(value: object, key: str, judge: Callable[[str], int], depth: int = 8) -> bool:
    """Return whether an object, or a list of objects, describes a session or a card: no member of it may be a secret.

    Where one member is a secret, another one under a harmless name may be as well. Nested deeper than `depth`, nothing
    is known.
    """
    if isinstance(value, str):
        return is_property(value, key, judge(key))
    if value is None or isinstance(value, (bool, float)):
        return True
    if isinstance(value, int):
        is_row = key.endswith((".id", ".pk")) and abs(value) < MANY_ROWS
        return is_row or judge(key) in (PLAIN, LABEL) or is_measure(split_key(key))
    if depth and isinstance(value, Mapping):
        return all(is_description(item, f"{key}.{name}", judge, depth - 1) for name, item in value.items())
    if depth and isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return all(isinstance(item, Mapping) and is_description(item, key, judge, depth - 1) for item in value)
    return False


def is_mechanism(lowered: str, key: str) -> bool:
    """Return whether a value in lower case names a way to log in: auth=ldap, AUTH=PLAIN."""
    return lowered in _MECHANISMS and key.lower() == "auth"


def is_short_word(text: str) -> bool:
    """Return whether a text is one short word, or two, in small letters."""
    return _SHORT_WORD.match(text) is not None


def is_placeholder(text: str) -> bool:
    """Return whether a text stands for a value that is not there: a mask, `%s`, `$1`, `{name}`."""
    return _PLACEHOLDER.match(text) is not None


def is_masked(text: str, pos: int) -> bool:
    """Return whether a mask such as `<redacted>` stands at `pos`."""
    return _MASK.match(text, pos) is not None


def mask_end(text: str, pos: int) -> int:
    """Return where the mask, or the name of a place, that stands at `pos` ends; -1 when there is none."""
    match = _MASK.match(text, pos + 1 if text[pos : pos + 1] in ("'", '"', "`") else pos)
    if match is None:
        return -1
    place = _PLACE.match(text, match.end())
    return match.end() if place is None else place.end()


def is_random(text: str) -> bool:
    """Return whether a text holds a run of characters that no person wrote: letters and digits mixed, long."""
    if len(text) > 200:
        return True
    return any(map(has_random_part, _RANDOM_RUN.findall(text)))


def has_random_part(run: str, shortest: int = 12) -> bool:
    """Return whether a part of `run` between its separators mixes letters and digits over `shortest` characters."""
    for part in re.split(r"[-_.:=/+~]", run):
        if len(part) < shortest or _CLASS_NAME.match(part) is not None:
            continue
        digits = sum(map(str.isdigit, part))
        if 1 < digits < len(part) or (digits == 1 and not part[-1].isdigit()):
            return True
    return is_mixed(run)


def is_mixed(run: str) -> bool:
    """Return whether `run` changes between small letters, capitals and digits as often as a random text does."""
    if len(run) < 16 or not (any(map(str.isdigit, run)) and any(map(str.isupper, run)) and any(map(str.islower, run))):
        return False
    changes = digits = upper = lower = 0
    previous = ""
    for character in run:
        kind = "d" if character.isdigit() else "u" if character.isupper() else "l" if character.islower() else previous
        digits += kind == "d"
        upper += kind == "u"
        lower += kind == "l"
        # A capital before a small letter begins a word.
        if previous and kind != previous and not (previous == "u" and kind == "l"):
            changes += 1
        previous = kind
    return changes >= 0.3 * len(run) or (len(run) >= 24 and digits > 2 and upper > 3 and lower > 3)
