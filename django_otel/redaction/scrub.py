"""Redaction: what must not leave the process, taken out of everything that leaves it.

Two ways lead to a redaction: the *key* a value stands under (an attribute, a
header, `key=value` in a text), and the *form* of the value itself (a token, a
card number, a URL with a password). Where a rule is in doubt it redacts.

All patterns run in linear time: unbounded repeats are possessive or begin only
where a run of their characters begins, and what a rule has consumed is not
looked at again by it.
"""

from __future__ import annotations

import copy
import fnmatch
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import Link, Status

from django_otel.base import guard
from django_otel.base.patterns import lazy_pattern
from django_otel.base.text import encodable
from django_otel.metrics.model import Attributes

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadableLogRecord, ReadWriteLogRecord

REDACTED = "[redacted]"
#: Longer texts are cut before they are scanned (characters); no backend keeps longer ones.
MAX_TEXT_LENGTH = 262_144
_CUT_MARK = "... [cut]"
#: Nested values below this depth are redacted unseen.
_MAX_DEPTH = 8
_MAX_KEY_LENGTH = 256
_MAX_PASSES = 6
_CACHED_TEXT_LENGTH = 128
_CACHE_ENTRIES = 4096

#: Keys that end so hold a query string and nothing else.
_QUERY_KEYS = ("url.query", "QUERY_STRING", "query_string")

ScrubCallback = Callable[[str, Any], Any]
LogRecordT = TypeVar("LogRecordT", "ReadableLogRecord", "ReadWriteLogRecord")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# --- keys ------------------------------------------------------------------------------------------------------

#: Sensitive as a whole word anywhere in a key.
_WORDS = _words(
    "pwd passcode secret secrets token tokens authorization cookie cookies session sessions sessionid "
    "sessid phpsessid jsessionid sid card cards cardno cardnum cardholder giftcard bankcard cvv cvc cvn credential "
    "credentials creds jwt bearer totp ssn"
)
#: Sensitive wherever they stand in a key whose separators are taken out.
_STEMS = (
    "password", "passwd", "passphrase", "apikey", "apisecret", "secretkey", "privatekey", "accesskey", "signingkey",
    "encryptionkey", "authtoken", "authkey", "creditcard", "debitcard", "cardnumber", "clientsecret", "csrf", "xsrf",
)  # fmt: skip
_SUFFIXES = (
    "pwd", "secret", "token", "tokens", "cookie", "cookies", "sessionid", "sessid", "credential", "credentials",
)  # fmt: skip
#: "... key" and its kind; `primary_key`, `cache_key`, `public_key` and `idempotency_key` are not among them.
_KEY_OWNERS = _words(
    "api access private secret signing signature encryption master account auth ssh storage shared session service "
    "license subscription deploy webhook app application client consumer"
)
#: Sensitive as a key's last word; in running text ("first pass: 3") only in a compound or before "=".
_LAST_WORDS = _words("pass pw auth sig signature hmac pin otp mfa")
#: Sensitive as the name of a query parameter only: OAuth's `code`, Google's `key`, CAS' `ticket`.
_QUERY_WORDS = _words("code key state nonce ticket assertion samlresponse samlrequest hash sign")
#: A number under such a key is a measurement, not a secret.
_MEASURES = _words(
    "count counts counter total size length len limit max min age ttl expiry expires expiration timeout "
    "duration seconds ms remaining used attempts failures retries index enabled required"
)
_PLURALS = ("tokens", "sessions", "cookies", "cards")
#: The whole line after such a key belongs to the value.
_LINE_WORDS = frozenset(("authorization", "cookie", "cookies", "passphrase"))
#: Keys that are known to hold no secret, though a rule says otherwise, or whose ids could look like card numbers.
_SAFE_KEYS = _words(
    "trace_id span_id parent_id trace.id span.id parent.id traceparent traceid spanid oteltraceid otelspanid "
    "oteltracesampled otelservicename service.instance.id gen_ai.token.type exception.type code.file.path "
    "code.function.name code.line.number telemetry.sdk.version telemetry.distro.name telemetry.distro.version"
)
_OTEL_TYPES = (str, bool, int, float, bytes, Sequence, Mapping)
_CAMEL = lazy_pattern(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NOT_WORD = lazy_pattern(r"[\W_]+")

_PLAIN, _SENSITIVE, _SENSITIVE_LINE = 0, 1, 2


def split_key(key: str) -> tuple[str, ...]:
    """The lower-case words of a snake, kebab, dotted, bracketed or camelCase key, without digits at their ends."""
    parts = _NOT_WORD.split(_CAMEL.sub(" ", key))
    return tuple(word for word in (part.strip("0123456789").lower() for part in parts) if word)


def _judge_words(words: tuple[str, ...], loose: bool, query: bool) -> int:
    """What the default list says; `loose` counts the ambiguous last words in, `query` those of query strings."""
    if not words:
        return _PLAIN
    last = words[-1]
    joined = "".join(words)
    sensitive = (
        any(word in _WORDS or word.endswith(_SUFFIXES) for word in words)
        or any(stem in joined for stem in _STEMS)
        or (last in _LAST_WORDS and (loose or len(words) > 1))
        or any(b in ("key", "keys") and a in _KEY_OWNERS for a, b in itertools.pairwise(words))
        or (query and last in _QUERY_WORDS)
    )
    if not sensitive:
        return _PLAIN
    return _SENSITIVE_LINE if any(word in _LINE_WORDS for word in words) else _SENSITIVE


def _is_measure(words: tuple[str, ...]) -> bool:
    return bool(words) and (words[-1] in _MEASURES or words[-1].endswith(_PLURALS))


# --- forms -----------------------------------------------------------------------------------------------------

_PEM = lazy_pattern(
    r"-----BEGIN [^-\n]{0,60}PRIVATE KEY[^-\n]{0,20}-----.*?(?:-----END [^-\n]{0,80}-----|\Z)", re.DOTALL
)
_URL_RUN = lazy_pattern(r"://\S++")
_AUTHORITY_END = lazy_pattern(r"""[/?#"'<>\\`]""")
_PORT = lazy_pattern(r"(?:[0-9]{0,5}|\[redacted\])[).,;:\]}]*")
# base64url of '{"': a JWT, and what django.core.signing makes. Possessive, so a failure is at most eight characters.
_JWT = lazy_pattern(r"eyJ[A-Za-z0-9_\-]{8,}+(?:[.:][A-Za-z0-9_\-=]++)*+")
_KNOWN_TOKENS = lazy_pattern(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:AKIA|ASIA|ABIA|ACCA|AGPA|AIDA|AIPA|ANPA|ANVA|AROA)[A-Z0-9]{16}(?![A-Za-z0-9])"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{20,}+|github_pat_[A-Za-z0-9_]{20,}+|glpat-[A-Za-z0-9_\-]{16,}+"
    r"|xox[abeoprs]-[A-Za-z0-9\-]{10,}+"  # Slack
    r"|(?:sk|rk|pk|whsec)_(?:live_|test_)?[A-Za-z0-9]{16,}+|sk-[A-Za-z0-9_\-]{20,}+"  # Stripe, OpenAI
    r"|AIza[A-Za-z0-9_\-]{30,}+|npm_[A-Za-z0-9]{30,}+|pypi-[A-Za-z0-9_\-]{30,}+"
    r"|SG\.[A-Za-z0-9_\-]{16,}+\.[A-Za-z0-9_\-]{16,}+"
    r")"
)
#: Looking for a word is much cheaper than searching for a pattern. Each alternative above begins with one of these.
_KNOWN_MARKS = (
    "AKIA", "ASIA", "ABIA", "ACCA", "AGPA", "AIDA", "AIPA", "ANPA", "ANVA", "AROA", "ghp_", "gho_", "ghu_", "ghs_",
    "ghr_", "github_pat_", "glpat-", "xox", "sk_", "rk_", "pk_", "whsec_", "sk-", "AIza", "npm_", "pypi-", "SG.",
)  # fmt: skip
_HAS_KNOWN_MARK = lazy_pattern("|".join(map(re.escape, _KNOWN_MARKS)))
_SCHEME_NAMES = ("bearer", "basic", "token", "digest", "negotiate", "apikey")
_SCHEME = lazy_pattern(
    rf"(?i)(?<![A-Za-z0-9_\-])({'|'.join(_SCHEME_NAMES)})([ \t]++|%20|\+)"
    r"""(?!\[redacted\])((?:[^\s"'\\,;<>()\[\]{}&]|\\[^"'\\])++)"""
)
_HAS_SCHEME = lazy_pattern(rf"(?i)(?:{'|'.join(_SCHEME_NAMES)})(?:[ \t+]|%20)")
#: What follows "Bearer" or "Basic" in sentences.
_SCHEME_PROSE = _words(
    "a an and are as at auth authentication authorization by credential credentials error expired expires failed for "
    "format from has header headers http in invalid is key method missing must not of on or realm required scheme "
    "schemes tests the to token tokens type usage used user value was with"
)
# A UUID or a traceparent is an id: it is matched first so that its digits are not read as a card.
_CARD = lazy_pattern(
    r"(?<![0-9A-Za-z])(?<![0-9]\.)(?:"
    r"(?P<id>[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}(?![0-9A-Za-z])"
    r"|[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(?![0-9A-Za-z]))"
    r"|(?P<dotted>[0-9]{4}\.[0-9]{4}\.[0-9]{4}\.[0-9]{4}(?![0-9A-Za-z]))"
    r"|(?P<run>[0-9]++(?:[ \-\u00a0\u2010-\u2013][0-9]++)*+)(?![A-Za-z_])(?!\.[0-9]))"
)
_GROUP = lazy_pattern(r"[0-9]+")
_HAS_CARD = lazy_pattern(r"[0-9]{3}[0-9 \-.\u00a0\u2010-\u2013]{10}")

#: A text that no rule can find anything in: paths, words, short numbers. Every known token has a capital, a "_" or a
#: "-" in it; a card has 13 digits; all else needs a separator. Tests hold it against the rules.
_NOTHING_IN_IT = lazy_pattern(r"(?:[a-z/]++|[0-9]{1,12}+(?![0-9]))*+")

# A pair in a URL that is itself a parameter, percent-encoded once or more often.
_ENCODED_KEY = lazy_pattern(
    r"(?<![\w.\-])([\w.\-]++)(?:%(?:25){0,4}(?:5[Dd]|2[27])){0,3}%(?:25){0,4}3[DdAa](?:%(?:25){0,4}2[027])?"
)
_ENCODED_VALUE = lazy_pattern(r"""(?:[^\s&"'<>%]|%(?!(?:25){0,4}(?:26|3[Bb]|2[027]|0[AaDd])))++""")

# A key: a run of word characters (with "." and "-", percent-encoding), then what may close it, then a separator.
_TYPE = (
    r"(?:str|bytes|int|float|bool|None|Any|object|dict|list|tuple|Optional|Union|Sequence|Mapping|SecretStr"
    r"|(?:typing|t)\.[A-Z]\w{0,30}+)(?:\[[\w., |]{0,60}\])?"
)
_KEY = lazy_pattern(
    r"(?<![\w.\-%])([\w.\-%]++)"
    r"(?:"
    r"""[\\"'\])}`]{0,8}+\s*+(?:"""
    rf":[ \t]*+{_TYPE}(?:[ \t]?\|[ \t]?{_TYPE}){{0,4}}+[ \t]++=[ \t]++(?!=)"  # an annotated name in a line of source
    r"|=>|->|:=|!=|={1,3}|:|%3[Aa]|%3[Dd])\s*+"
    r"""|["']\s++value\s*+=\s*+"""  # <input name="..." value="...">
    r"""|\\{0,4}["'],\s*+(?=[bu]?\\{0,4}["'])"""  # ("name", "value")
    r"|(?=[ \t]+[^\s\-]))"  # --name value
)
_PAIR_OPENING = lazy_pattern(r"""[(\[]\s{0,4}[bu]?\\{0,4}["']\Z""")
_WORD_BEFORE = lazy_pattern(r"(?:\A|[^A-Za-z])([A-Za-z]{2,30})[ \t]\Z")
_SECOND_WORDS = _words("id ids key value values number no num hash string code data header headers text")
_EXCEPTION_NAME = lazy_pattern(r"(?:Error|Exception|Warning|Exit|Interrupt)\Z")
_CONVERTER = lazy_pattern(r"\w+>")
_QUOTE = lazy_pattern(r"""(?:[bBuUrRfF]{0,2})(["'`])""")
_ESCAPED_QUOTE = lazy_pattern(r"""[bBuUrRfF]{0,2}(\\{1,8}+)(["'])""")
_QUOTED_REST = {
    # A quote behind an escaped backslash closes only where a value can end: in the repr of JSON it is in the value.
    '"': lazy_pattern(r'(?:[^"\\]|\\.|""|(?<=\\)"(?![\s,;:)\]}]|\Z))*+"', re.DOTALL),
    "'": lazy_pattern(r"(?:[^'\\]|\\.|''|(?<=\\)'(?![\s,;:)\]}]|\Z))*+'", re.DOTALL),
    "`": lazy_pattern(r"[^`]*+`"),
}
_RUN = lazy_pattern(
    r"""(?:[^\s&"'\\]|\\.|&(?!(?:amp;)?[\w.%\-\[\]]{1,64}=)|["'](?![\s,;:)\]}>]|\Z))++""",
    re.DOTALL,
)
_RUN_GOES_ON = lazy_pattern(r"""[.!`]*+[^\s,;:)\]}>&"'|/\\.!`]""")
_ESCAPED_CLOSING = {quote: lazy_pattern(rf"\\*+{quote}") for quote in "\"'"}
_BRACKET_TOKEN = lazy_pattern(r"""[\[({]|[\])}]|"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+'""", re.DOTALL)
_CLOSERS = ")]},;.!\"'`>"
_HARMLESS = frozenset(("none", "null", "nil", "true", "false", "undefined", "", REDACTED))
_NUMBER = lazy_pattern(r"[+\-]?[0-9]{1,12}(?:\.[0-9]{1,12})?(?:ms|s)?\Z")
_SCHEME_WORD = lazy_pattern(r"(?i)(?:bearer|basic|token|digest|negotiate|apikey|aws4-hmac-sha256|key)\Z")

# Database errors quote the values that offend. Each opening has the end that the server writes after the value;
# without that end (a text that was cut) the rest of the text is the value.
_DATABASE_VALUES: tuple[tuple[str, re.Pattern[str], re.Pattern[str], str], ...] = (
    (
        ")=(",
        lazy_pattern(r"\b[Kk]ey \([^\n()]{0,400}(?:\([^\n()]{0,100}\)[^\n()]{0,200}){0,4}\)=(?=\()"),
        lazy_pattern(r"\)(?= (?:already exists|is not present|is still referenced|is duplicated|conflicts)|\.?\s*\Z)"),
        "()",
    ),
    ("Failing row", lazy_pattern(r"Failing row contains (?=\()"), lazy_pattern(r"\)(?=\.?[\"']?\s*(?:\n|\Z))"), "()"),
    ("Duplicate entry", lazy_pattern(r"Duplicate entry (?=')"), lazy_pattern(r"(?<!\A)'(?= for key)"), "''"),
    (
        "nvalid input",
        lazy_pattern(r"[Ii]nvalid input (?:syntax|value) for [^:\n]{1,120}: (?=\")"),
        lazy_pattern(r"(?<!\A)\"(?=\s*(?:\n|\Z))"),
        '""',
    ),
    ("[parameters:", lazy_pattern(r"\[parameters: ?(?=[\[({])"), lazy_pattern(r"[\])}](?=\])"), "()"),
)  # fmt: skip
_SQL_LINE = lazy_pattern(r"(\bLINE [0-9]+: )(.*)")
_SQL_LITERAL = lazy_pattern(r"'(?:[^']|'')*+'?|\$(\w*)\$.*?(?:\$\1\$|\Z)")

_MAYBE_PAIR = lazy_pattern(r"[=:,]|%3[AaDd]|--\w|->")


def _luhn(digits: str) -> bool:
    total = 0
    for index, digit in enumerate(reversed(digits)):
        number = ord(digit) - 48
        if index % 2:
            number = number * 2 - 9 if number > 4 else number * 2
        total += number
    return total % 10 == 0


def _redact_card(match: re.Match[str]) -> str:
    """Redact every 13 to 19 digits, of groups of three or more, that pass Luhn.

    A first digit of 0 or 1 is no card in shops' hands and is every epoch
    timestamp, so those stay. Windows begin and end at a group: the number may
    stand before a date or a CVV.
    """
    text = match.group()
    if match.lastgroup == "id":
        return text
    if match.lastgroup == "dotted":
        return REDACTED if text[0] > "1" and _luhn(text.replace(".", "")) else text
    groups = [(group.start(), group.end()) for group in _GROUP.finditer(text)]
    out: list[str] = []
    done = 0
    index = 0
    while index < len(groups):
        digits = ""
        hit = -1
        if text[groups[index][0]] > "1":
            for later in range(index, min(index + 7, len(groups))):
                start, end = groups[later]
                if end - start > 19:
                    break
                digits += text[start:end]
                if len(digits) > 19:
                    break
                if len(digits) >= 13 and _luhn(digits):
                    hit = later
                if end - start < 3:
                    break
        if hit >= 0:
            out += (text[done : groups[index][0]], REDACTED)
            done = groups[hit][1]
            index = hit + 1
        else:
            index += 1
    if not out:
        return text
    out.append(text[done:])
    return "".join(out)


def _redact_userinfo(match: re.Match[str]) -> str:
    """Redact `user:password@` and `token@` of every URL in a run without white space."""
    parts = match.group().split("://")
    for index in range(1, len(parts)):
        part = parts[index]
        stop = _AUTHORITY_END.search(part)
        authority = part[: stop.start()] if stop else part
        cut = authority.rfind("@")
        if cut < 0 and not authority.startswith("["):
            user, colon, port = authority.partition(":")
            is_port = _PORT.fullmatch(port) is not None
            # Not a port: a password with a "/" or a quote in it, or one that was cut off before its "@".
            if colon and (not is_port or not user):
                cut = part.rfind("@")
                if cut < 0 and not is_port:
                    parts[index] = f"{user}:{REDACTED}{part[len(authority) :]}"
                    continue
        if cut >= 0:
            parts[index] = REDACTED + part[cut:]
    return "://".join(parts)


def _redact_scheme(match: re.Match[str]) -> str:
    scheme, space, value = match.groups()
    bare = value.rstrip(".:!?")
    if not any(character.isalnum() for character in bare):
        return match.group()
    if scheme.lower() in ("bearer", "basic"):
        if bare.lower() in _SCHEME_PROSE:
            return match.group()
    elif (len(bare) < 20 and (bare.isalpha() and (bare.islower() or bare.istitle()))) or "=" in bare[:20]:
        # "token expired" is a sentence; "token=..." and "token user=..." are the business of the key rule.
        return match.group()
    return f"{scheme}{space}{REDACTED}"


def _redact_sql_line(match: re.Match[str]) -> str:
    return match.group(1) + _SQL_LITERAL.sub(f"'{REDACTED}'", match.group(2))


def _redact_database_values(text: str) -> str:
    for mark, opening, closing, brackets in _DATABASE_VALUES:
        if mark not in text:
            continue
        out: list[str] = []
        pos = 0
        while (found := opening.search(text, pos)) is not None:
            out += (text[pos : found.end()], brackets[0], REDACTED, brackets[1])
            end = closing.search(text, found.end() + 1)
            if end is None:
                pos = len(text)
                break
            pos = end.end()
        if out:
            out.append(text[pos:])
            text = "".join(out)
    if "LINE " in text:
        text = _SQL_LINE.sub(_redact_sql_line, text)
    return text


def _bracket_end(text: str, pos: int) -> int:
    """Where the bracket that opens at `pos` closes; the end of the text when it does not."""
    depth = 0
    for token in _BRACKET_TOKEN.finditer(text, pos):
        character = token.group()[0]
        if character in "[({":
            depth += 1
        elif character in "])}":
            depth -= 1
            if depth == 0:
                return token.end()
    return len(text)


def _line_end(text: str, pos: int) -> int:
    end = text.find("\n", pos)
    return len(text) if end < 0 else end


def _run_end(text: str, pos: int) -> int:
    run = _RUN.match(text, pos)
    if run is None:
        return pos
    end = run.end()
    while end > pos and text[end - 1] in _CLOSERS:
        end -= 1
    return end if end > pos else run.end()


def _escaped_end(text: str, pos: int, escapes: int, quote: str) -> int:
    """Where the string that was opened by `escapes` backslashes and a quote ends; the end of the text if nowhere.

    JSON in JSON doubles backslashes and adds one before a quote, repr only
    doubles: an opening has (2**depth - 1) * 2**reprs of them. A quote in the
    value, or one after a backslash in the value, has other numbers.
    """
    reprs = 0
    while escapes % 2 == 0:
        escapes //= 2
        reprs += 1
    for match in _ESCAPED_CLOSING[quote].finditer(text, pos):
        count = (match.end() - match.start() - 1) >> reprs
        if count % (2 * (escapes + 1)) == escapes:
            return match.end() - 1 - (escapes << reprs)
    return len(text)


def _value_span(text: str, pos: int, whole_line: bool, closed_key: bool) -> tuple[int, int]:
    """Where the value that begins at `pos` begins and ends, without the quotes around it.

    `closed_key`: the key had a quote or bracket around it, so that a quote
    before the value is one around it, also where a value takes its whole line.
    """
    if whole_line and not closed_key:
        return pos, _line_end(text, pos)
    quote = _QUOTE.match(text, pos)
    if quote is not None:
        start = quote.end()
        rest = _QUOTED_REST[quote.group(1)].match(text, start)
        if rest is None:
            return start, len(text)
        end = rest.end()
        # 'a'b: what follows belongs to it, and what is left must not look like an open quote.
        return (pos, _run_end(text, end)) if _RUN_GOES_ON.match(text, end) else (start, end - 1)
    escaped = _ESCAPED_QUOTE.match(text, pos)
    if escaped is not None:
        start = escaped.end()
        return start, _escaped_end(text, start, len(escaped.group(1)), escaped.group(2))
    if whole_line:
        return pos, _line_end(text, pos)
    if text[pos : pos + 1] in ("[", "(", "{"):
        end = _bracket_end(text, pos)
        return pos, (_run_end(text, end) if _RUN_GOES_ON.match(text, end) else end)
    end = _run_end(text, pos)
    if _SCHEME_WORD.match(text[pos:end][:20]) and text[end : end + 1] in (" ", "\t"):
        after = _skip_blanks(text, end)
        end = max(end, _run_end(text, after))
    return pos, end


class Scrubber:
    """Takes secrets out of what is about to be exported. Immutable; one per configuration, for all threads.

    **Keys.** A key is cut into words (snake, kebab, dotted, camelCase;
    `HTTP_X_API_KEY`, `apiKey`, `user[password1]`), and whole words are compared:
    password, passwd, pwd, passphrase, secret, token, authorization, cookie,
    session, csrf, xsrf, card, cvv, credential, jwt and such, "api key",
    "private key", "access key" and such. So `postcard`, `discard`,
    `cardinality`, `tokenizer`, `author`, `primary_key` stay, while `card`,
    `refreshToken`, `csrfmiddlewaretoken`, `session.id`, `token_type` are
    redacted. A number under a key that ends in a measure (`session_count`,
    `token_limit`) or a plural (`gen_ai.usage.input_tokens`) stays, as do
    booleans and None anywhere. An `auth`, `pass`, `pin`, `signature` counts as
    last word only. Ids of traces and spans always stay.

    **Forms.** In any text: `key=value`, `key: value`, quoted with escapes as
    JSON, repr, headers, DSNs, forms and query strings have it (there also
    `code`, `key`, `state`, `sig`), user and password of a URL, `Bearer`,
    `Basic` and `Token` credentials, JWTs and Django's signed values, keys of
    AWS and other well-known services, PEM private keys, card numbers, the
    values that PostgreSQL and MySQL quote in their errors.

    `extra`: further keys. With `*`, `?` or `[` it is a glob over the whole key,
    otherwise words to be found in a row (`"passport"` finds `user.passport_no`).
    Upper and lower case are the same.

    `callback(key, value) -> value` sees every attribute value, message and body
    that the rules left, after them, and returns what is exported; None
    redacts. If it raises, the value is redacted and the fault counted by
    `base.guard` at the place "SCRUB.CALLBACK".

    Errors: no method raises `Exception`; a value that cannot be scrubbed is
    redacted. All methods are idempotent and return the object they were given
    when there was nothing to do.
    """

    __slots__ = ("_callback", "_extra_globs", "_extra_words", "_judged", "_texts")

    def __init__(self, extra: Sequence[str] = (), callback: ScrubCallback | None = None) -> None:
        self._callback = callback
        globs = [pattern for pattern in extra if any(character in pattern for character in "*?[")]
        self._extra_globs = tuple(re.compile(fnmatch.translate(pattern.lower())) for pattern in globs)
        self._extra_words = tuple(words for pattern in extra if pattern not in globs and (words := split_key(pattern)))
        self._judged: dict[tuple[str, bool, bool], int] = {}
        self._texts: dict[str, str] = {}

    @property
    def is_pure(self) -> bool:
        """Whether equal values are scrubbed equally each time, so that the result may be remembered."""
        return self._callback is None

    # --- keys

    def is_sensitive(self, key: str) -> bool:
        """Whether a value under `key` is redacted (numbers under a measure aside)."""
        return self._judge(key, loose=True) != _PLAIN

    def _judge(self, key: str, *, loose: bool, query: bool = False) -> int:
        entry = (key, loose, query)
        verdict = self._judged.get(entry)
        if verdict is None:
            verdict = self._judge_uncached(key[-_MAX_KEY_LENGTH:], loose, query)
            if len(self._judged) >= _CACHE_ENTRIES:
                self._judged.clear()
            if len(key) <= _MAX_KEY_LENGTH:
                self._judged[entry] = verdict
        return verdict

    def _judge_uncached(self, key: str, loose: bool, query: bool) -> int:
        if "%" in key:
            key = unquote(key)
        lowered = key.lower()
        for glob in self._extra_globs:
            if glob.match(lowered):
                return _SENSITIVE
        words = split_key(key)
        for extra in self._extra_words:
            for start in range(len(words) - len(extra) + 1):
                if words[start : start + len(extra)] == extra:
                    return _SENSITIVE
        if lowered in _SAFE_KEYS:
            return _PLAIN
        return _judge_words(words, loose, query)

    # --- values

    def value(self, key: str, value: Any) -> Any:
        """Scrub one attribute value: by its key, then by its form, then by the user's callback."""
        try:
            scrubbed = self._value(key, value, 0)
        except Exception as error:
            guard.report("core.scrub.value", error)
            return REDACTED
        if self._callback is None or scrubbed is None or scrubbed == REDACTED:
            return scrubbed
        try:
            changed = self._callback(key, scrubbed)
            if changed is None:
                return REDACTED
            return changed if isinstance(changed, _OTEL_TYPES) else str(changed)
        except Exception as error:
            guard.report("SCRUB.CALLBACK", error)
            return REDACTED

    def _value(self, key: str, value: Any, depth: int) -> Any:
        if value is None or value is True or value is False:
            return value
        if self._judge(key, loose=True) and key.lower() not in _SAFE_KEYS:
            if isinstance(value, (int, float)) and _is_measure(split_key(key)):
                return value
            if isinstance(value, str):
                bare = value.strip()
                harmless = bare.lower() in _HARMLESS or (_NUMBER.match(bare) and _is_measure(split_key(key)))
                return value if harmless else REDACTED
            if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
                if _is_measure(split_key(key)) and all(isinstance(item, (int, float)) for item in value):
                    return value
                return value if not value or tuple(value) == (REDACTED,) else (REDACTED,)
            return REDACTED
        if isinstance(value, str):
            if key.lower() in _SAFE_KEYS:
                return value
            return self._text(value, query=key.endswith(_QUERY_KEYS))
        if isinstance(value, int):
            # OTLP has 64 bits; a larger number would cost its batch, or a traceback in the log.
            return value if -(2**63) <= value < 2**63 else str(value)
        if isinstance(value, float):
            return value
        if depth >= _MAX_DEPTH:
            return REDACTED
        if isinstance(value, (bytes, bytearray)):
            decoded = bytes(value).decode("latin-1")
            text = self._text(decoded)
            return value if text == decoded else text.encode("latin-1", "replace")
        if isinstance(value, Mapping):
            return self._mapping(value, depth + 1)
        if isinstance(value, Sequence):
            return self._sequence(key, value, depth + 1)
        # Not an OpenTelemetry type: the SDK would turn it into text, after us.
        return self._text(str(value))

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> Any:
        scrubbed = {name: self._value(str(name), item, depth) for name, item in value.items()}
        return scrubbed if any(scrubbed[name] is not item for name, item in value.items()) else value

    def _sequence(self, key: str, value: Sequence[Any], depth: int) -> Any:
        scrubbed: list[Any] = []
        previous: Any = None
        for item in value:
            # ["--password", "x"] and ("authorization", "x"): the name stands one place before the value.
            named = isinstance(previous, str) and (
                (previous.startswith("-") and "=" not in previous) or (len(value) == 2 and len(previous) < 64)
            )
            if named and isinstance(item, str) and self._judge(previous.lstrip("-"), loose=True):
                scrubbed.append(item if item.strip().lower() in _HARMLESS else REDACTED)
            else:
                scrubbed.append(self._value(key, item, depth))
            previous = item
        if all(new is old for new, old in zip(scrubbed, value, strict=True)):
            return value
        return scrubbed if type(value) is list else tuple(scrubbed)

    # --- texts

    def is_text_only(self, key: str) -> bool:
        """Whether `value(key, text)` of a text is `fresh_text(text)`: the key says nothing and nobody is asked."""
        return (
            self._callback is None
            and self._judge(key, loose=True) == _PLAIN
            and key.lower() not in _SAFE_KEYS
            and not key.endswith(_QUERY_KEYS)
        )

    def fresh_text(self, text: str) -> str:
        """`text()` for a caller who remembers for himself what he has asked before."""
        try:
            if len(text) <= _CACHED_TEXT_LENGTH and _NOTHING_IN_IT.fullmatch(text):
                return text
            return self._text_uncached(text, False)
        except Exception as error:
            guard.report("core.scrub.text", error)
            return REDACTED

    def text(self, text: str) -> str:
        """Scrub a text that stands under no key: a message, a stack trace, a description."""
        try:
            return self._text(text)
        except Exception as error:
            guard.report("core.scrub.text", error)
            return REDACTED

    def url(self, url: str) -> str:
        """Scrub a URL, or a query string alone: user, password, token, and the parameters named like a secret."""
        try:
            return self._text(url, query="?" not in url and "://" not in url)
        except Exception as error:
            guard.report("core.scrub.url", error)
            return REDACTED

    def path(self, text: str, captured: Mapping[str, Any]) -> str:
        """Take out of a text with a URL path what its pattern `captured` under a sensitive name ("reset/<token>/")."""
        for name, value in captured.items():
            if isinstance(value, str) and value and value in text and self.is_sensitive(name):
                text = text.replace(value, REDACTED)
        return text

    def _text(self, text: str, query: bool = False) -> str:
        if len(text) > _CACHED_TEXT_LENGTH or query:
            return self._text_uncached(text, query)
        known = self._texts.get(text)
        if known is None:
            known = self._text_uncached(text, False)
            if known == text:
                known = text
                # Only what holds no secret is remembered.
                if len(self._texts) >= _CACHE_ENTRIES:
                    self._texts.clear()
                self._texts[text] = text
        return text if known == text else known

    def _text_uncached(self, text: str, query: bool) -> str:
        once = self._pass(text, query)
        # What one rule leaves may look new to another. Only a text with a secret in it is passed again.
        for _ in range(_MAX_PASSES - 1):
            if once is text:
                break
            text, once = once, self._pass(once, query)
        return once

    def _pass(self, text: str, query: bool) -> str:
        if not query and len(text) <= _CACHED_TEXT_LENGTH and _NOTHING_IN_IT.fullmatch(text):
            return text
        return self._apply_rules(text, query)

    def _apply_rules(self, text: str, query: bool) -> str:
        original = text
        if not text.isascii():
            text = encodable(text)
        if len(text) > MAX_TEXT_LENGTH and not text.endswith(_CUT_MARK):
            text = text[:MAX_TEXT_LENGTH] + _CUT_MARK
        if "-----BEGIN " in text:
            text = _PEM.sub(REDACTED, text)
        if "://" in text:
            text = _URL_RUN.sub(_redact_userinfo, text)
        text = _redact_database_values(text)
        if query or _MAYBE_PAIR.search(text):
            text = self._pairs(text, query)
        if "%" in text:
            text = self._encoded_pairs(text)
        if "eyJ" in text:
            text = _JWT.sub(REDACTED, text)
        if _HAS_KNOWN_MARK.search(text):
            text = _KNOWN_TOKENS.sub(REDACTED, text)
        if _HAS_SCHEME.search(text):
            text = _SCHEME.sub(_redact_scheme, text)
        if _HAS_CARD.search(text):
            text = _CARD.sub(_redact_card, text)
        return original if text == original else text

    def _pairs(self, text: str, query: bool) -> str:
        out: list[str] = []
        done = 0
        pos = 0
        while (match := _KEY.search(text, pos)) is not None:
            key = match.group(1)
            pos = match.end(1)
            # Most keys are no secret wherever they stand.
            if self._judge(key, loose=True, query=True) == _PLAIN and key.lower() not in _SECOND_WORDS:
                continue
            separator = text[pos : match.end()]
            verdict = self._judge_in_text(text, match.start(), key, separator, query)
            if verdict == _PLAIN:
                continue
            whole_line = verdict == _SENSITIVE_LINE and ":" in separator
            closed_key = separator[:1] not in (":", "=", "-", "!", " ", "\t", "")
            begin = match.end() if separator else _skip_blanks(text, pos)
            start, end = _value_span(text, begin, whole_line, closed_key)
            value = text[start:end]
            pos = max(pos, start)
            bare = value.strip()
            if bare.lower() in _HARMLESS or (_NUMBER.match(bare) and _is_measure(split_key(key))):
                continue
            out += (text[done:start], REDACTED)
            done = pos = end
        if not out:
            return text
        out.append(text[done:])
        return "".join(out)

    def _encoded_pairs(self, text: str) -> str:
        out: list[str] = []
        done = pos = 0
        while (match := _ENCODED_KEY.search(text, pos)) is not None:
            start, pos = match.span(1)
            key = match.group(1)
            # "%3Ftoken%3Dx": the run begins inside the escape of the "?".
            escape = key[:2] if start and text[start - 1] == "%" else ""
            if self._judge(key[len(escape) :], loose=True, query=escape.upper() in ("3F", "26")) == _PLAIN:
                continue
            value = _ENCODED_VALUE.match(text, match.end())
            if value is not None and value.group() != REDACTED:
                out += (text[done : match.end()], REDACTED)
                done = pos = value.end()
        if not out:
            return text
        out.append(text[done:])
        return "".join(out)

    def _judge_in_text(self, text: str, start: int, key: str, separator: str, query: bool) -> int:
        before = text[max(0, start - 1) : start]
        if not separator:
            # "--password x": nothing but white space follows, so only an option counts.
            return self._judge(key, loose=True) if key.startswith("--") else _PLAIN
        is_pair = separator.rstrip().endswith(",") and not key.startswith("--")
        if is_pair and not _PAIR_OPENING.search(text, max(0, start - 16), start):
            return _PLAIN
        in_query = start == 0 if before == "" else before in "?&#;"
        in_query = in_query and (query or before != "")
        verdict = self._judge(key, loose="=" in separator or '"' in separator or "'" in separator, query=in_query)
        if verdict != _PLAIN:
            if separator[0] == ":" and (
                _EXCEPTION_NAME.search(key)
                or (before == "<" and _CONVERTER.match(text, start + len(key) + len(separator)))
            ):
                return _PLAIN  # "TokenError: ..." is an exception, "<token:pk>" a URL pattern
            return verdict
        if key.lower() in _SECOND_WORDS:
            previous = _WORD_BEFORE.search(text, max(0, start - 40), start)
            if previous is not None:
                return self._judge(f"{previous.group(1)} {key}", loose=False)
        return _PLAIN

    # --- what the SDK exports

    def attributes(self, attributes: Mapping[str, Any] | None) -> Any:
        """Scrub a mapping of attributes; the same object when nothing changed, else a plain dict (or None for None)."""
        if not attributes:
            return attributes
        changed: dict[str, Any] | None = None
        for key, value in attributes.items():
            scrubbed = self.value(key, value)
            if scrubbed is not value:
                if changed is None:
                    changed = dict(attributes)
                changed[key] = scrubbed
        return attributes if changed is None else changed

    def labels(self, attributes: Attributes) -> Attributes:
        """Scrub the attributes of a metric series; the same tuple when nothing changed."""
        changed = False
        scrubbed = []
        for item in attributes:
            value = self.value(item[0], item[1])
            if value is not item[1]:
                changed = True
                item = (item[0], value)
            scrubbed.append(item)
        return tuple(scrubbed) if changed else attributes

    def span(self, span: ReadableSpan) -> ReadableSpan:
        """Scrub a finished span: name, attributes, events, links, status. Counts of what was dropped are kept."""
        name = self.text(span.name)
        given = span.attributes  # a new view at each access
        attributes = self.attributes(given)
        events = _each(self._event, span.events)
        links = _each(self._link, span.links)
        description = span.status.description
        status_text = self.value("status.description", description) if description else description
        if (
            name is span.name
            and attributes is given
            and events is None
            and links is None
            and status_text is description
        ):
            return span
        return ReadableSpan(
            name=name,
            context=span.get_span_context(),
            parent=span.parent,
            resource=span.resource,
            attributes=_bounded(attributes, span.dropped_attributes),
            events=_bounded_list(events if events is not None else span.events, span.dropped_events),
            links=_bounded_list(links if links is not None else span.links, span.dropped_links),
            kind=span.kind,
            status=span.status if status_text is description else Status(span.status.status_code, str(status_text)),
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    def _event(self, event: Event) -> Event:
        name = self.text(event.name)
        attributes = self.attributes(event.attributes)
        if name is event.name and attributes is event.attributes:
            return event
        return Event(name, _bounded(attributes, event.dropped_attributes), event.timestamp)

    def _link(self, link: Link) -> Link:
        attributes = self.attributes(link.attributes)
        if attributes is link.attributes:
            return link
        return Link(link.context, _bounded(attributes, link.dropped_attributes))

    def log_record(self, record: LogRecordT) -> LogRecordT:
        """Scrub a record of the SDK's log pipeline: body, attributes, event name. The exception object is taken out.

        The record given is not changed: other processors may hold it.
        """
        log = record.log_record
        body = self.value("body", log.body)
        attributes = self.attributes(log.attributes)
        event_name = self.text(log.event_name) if log.event_name else log.event_name
        exception = getattr(log, "exception", None)
        if body is log.body and attributes is log.attributes and event_name is log.event_name and exception is None:
            return record
        changed = copy.copy(log)
        changed.body = body
        changed.attributes = _bounded(attributes, record.dropped_attributes)
        changed.event_name = event_name
        if exception is not None:
            changed.exception = None
        scrubbed = copy.copy(record)
        object.__setattr__(scrubbed, "log_record", changed)  # ReadableLogRecord is frozen
        return scrubbed


def _skip_blanks(text: str, pos: int) -> int:
    while text[pos : pos + 1] in (" ", "\t"):
        pos += 1
    return pos


def _each(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any] | None:
    """The items after `function`, or None when it changed none of them."""
    items = tuple(items)
    changed = [function(item) for item in items]
    return None if all(new is old for new, old in zip(changed, items, strict=True)) else changed


def _bounded(attributes: Any, dropped: int) -> BoundedAttributes:
    if isinstance(attributes, BoundedAttributes):
        return attributes
    bounded = BoundedAttributes(attributes=dict(attributes) if attributes else None)
    bounded.dropped = dropped
    return bounded


def _bounded_list(items: Sequence[Any], dropped: int) -> BoundedList[Any]:
    bounded: BoundedList[Any] = BoundedList(None)
    bounded.extend(items)
    bounded.dropped = dropped
    return bounded
