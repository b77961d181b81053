"""Redaction of attributes and texts.

Two ways lead to a redaction: the *key* a value stands under (an attribute, a
header, `key=value` in a text), and the *form* of the value itself (a token, a
card number, a URL with a password). Where a rule is in doubt it redacts.

All patterns run in linear time: unbounded repeats are possessive or begin only
where a run of their characters begins, and what a rule has consumed is not
looked at again by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from django_otel.base import forks, guard
from django_otel.base.attribute_values import clean_value
from django_otel.base.patterns import lazy_pattern
from django_otel.base.text import encodable
from django_otel.metrics.model import Attributes, AttributeValue
from django_otel.redaction import paths
from django_otel.redaction.cutting import scrub_beginning, scrub_beginnings
from django_otel.redaction.key_judge import MAX_KEY_LENGTH, KeyJudge
from django_otel.redaction.keys import (
    LABEL,
    MANY_ROWS,
    PLAIN,
    QUERY_KEYS,
    REDACTED,
    SAFE_KEYS,
    STATEMENT_KEYS,
    is_description,
    is_harmless,
    is_measure,
    is_of_row,
    is_thing,
    split_key,
)

if TYPE_CHECKING:
    from django_otel.redaction.text_rules import TextRules

#: Longer texts are cut before they are scanned (characters); no backend keeps longer ones.
MAX_TEXT_LENGTH = 262_144
_CUT_MARK = "... [cut]"
#: Characters at the end of such a text that are left out when they are one word.
_MAX_WORD = 4096
#: Nested values below this depth are redacted unseen.
_MAX_DEPTH = 8
_MAX_PASSES = 6
_CACHED_TEXT_LENGTH = 128
_CACHE_ENTRIES = 4096
#: Attribute texts that are remembered as untouched, statements among them: the longest, and all together.
_UNTOUCHED_LENGTH = 2048
_UNTOUCHED_CHARACTERS = 1 << 20

ScrubCallback = Callable[[str, Any], Any]

_OTEL_TYPES = (str, bool, int, float, bytes, Sequence, Mapping)

#: A text that no rule can find anything in: paths, words, short numbers. Every known token has a capital, a "_" or a
#: "-" in it, or letters and digits mixed; a card has 13 digits; all else needs a separator. Tests hold it against the rules.  # noqa: E501
_NOTHING_IN_IT = lazy_pattern(r"(?:/*+(?:[a-z]++[0-9]{0,3}+|[0-9]{1,12}+(?:\.[0-9]{1,3}+)?)(?![a-z0-9]))*+/*+")
#: The name of an attribute by the conventions, in which no rule can find anything either.
_PLAIN_NAME = lazy_pattern(r"(?:[a-z]{1,15}+[0-9]{0,3}+(?:[._](?=[a-z])|\Z))++")
#: An id, a path, or the name of a class or a function.
_NAME_ALONE = lazy_pattern(r"[\w.\-<>/\\]*+")
#: Words alone, of letters or a few digits, with a blank, "/", "-" or a comma between them ...
_WORDS_ALONE = lazy_pattern(
    r"[ /]?+(?:(?:[A-Za-z]{1,15}+(?:-[A-Za-z]{1,15}+)*+|[0-9]{1,5}+(?! [0-9]))(?![A-Za-z0-9_])"
    r"(?:, |\. | /|/ |[ /])?+)*+[./]?+"
)
#: ... say nothing unless one of these is among them.
_SAYS_SOMETHING = lazy_pattern(
    r"(?i)pass|pw|psk|community|identify|obscure|net user|secret|token|bearer|basic|digest|negotiate|apikey|auth|identified|attach|pragma|\benv|\barg|setx|setuser|key|sql"  # noqa: E501
    r"|hook|login|redis|code|otp|\bpin"
)
#: Words that a metric of each request has; known without the two patterns above, the largest that a start would need.
_METHODS = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"))


def _says_nothing(text: str) -> bool:
    """Return whether no rule can find anything in a short text: most messages and paths."""
    return (
        text in _METHODS
        or _NOTHING_IN_IT.fullmatch(text) is not None
        or (_WORDS_ALONE.fullmatch(text) is not None and _SAYS_SOMETHING.search(text) is None)
    )


def _cut_at_word(text: str) -> str:
    """Return a text that was cut without its last word, which may be a part of a secret that no rule knows as such."""
    begin = len(text) - _MAX_WORD
    return text[: max(text.rfind(" ", begin), text.rfind("\n", begin), begin)]


class _Untouched:
    """Keys with a text each that the rules leave alone."""

    __slots__ = ("_length", "pairs")

    def __init__(self) -> None:
        self.pairs: set[tuple[str, str]] = set()
        #: Characters of these texts together.
        self._length = 0

    def add(self, key: str, text: str) -> None:
        """Remember a pair; all others are forgotten when they are too many or too long."""
        self._length += len(text)
        if len(self.pairs) >= _CACHE_ENTRIES or self._length > _UNTOUCHED_CHARACTERS:
            self.pairs.clear()
            self._length = len(text)
        self.pairs.add((key, text))


class Scrubber:
    """Redacts secrets before export. Immutable; one per configuration, for all threads.

    **Keys.** A key is cut into words (snake, kebab, dotted, camelCase;
    `HTTP_X_API_KEY`, `apiKey`, `user[password1]`), and whole words are compared:
    password, passwd, pwd, passphrase, secret, token, authorization, cookie,
    session, csrf, xsrf, card, cvv, credential, jwt and such, "api key",
    "private key", "access key" and such. So `postcard`, `discard`,
    `cardinality`, `tokenizer`, `author`, `primary_key` stay, while `card`,
    `refreshToken`, `csrfmiddlewaretoken`, `session.id` are redacted.
    Properties of a secret (`card_brand`, `token_status`) stay unless they look
    random. A number under a key that ends in a measure (`session_count`,
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

    `personal`: e-mail and IP addresses, telephone numbers and IBANs are
    redacted too, by their form and by keys such as `email` and `phone`.

    Errors: no method raises `Exception`; a value that cannot be scrubbed is
    redacted. All methods are idempotent and return the object they were given
    when there was nothing to do.
    """

    __slots__ = ("_callback", "_judge", "_keys", "_personal", "_rules", "_texts", "_untouched")

    def __init__(
        self, extra: Sequence[str] = (), callback: ScrubCallback | None = None, *, personal: bool = False
    ) -> None:
        self._callback = callback
        self._personal = personal
        self._judge = KeyJudge(extra, personal=personal).judge
        self._texts: dict[str, str] = {}
        #: Keys with no secret in them.
        self._keys: set[str] = set()
        self._untouched = _Untouched()
        self._rules: TextRules | None = None

    @property
    def is_pure(self) -> bool:
        """Return whether equal values are scrubbed equally each time, so that the result may be remembered."""
        return self._callback is None

    # --- keys

    def is_sensitive(self, key: str) -> bool:
        """Return whether a value under `key` is redacted (numbers under a measure aside)."""
        return self._judge(key) not in (PLAIN, LABEL)

    def key(self, key: str) -> str:
        """Return the key of an attribute without a secret that the application has put into it."""
        if key in self._keys:
            return key
        if _PLAIN_NAME.fullmatch(key) is None:
            scrubbed = self.text(key)
            if scrubbed != key:
                return scrubbed
        if len(key) <= MAX_KEY_LENGTH:
            if len(self._keys) >= _CACHE_ENTRIES:
                self._keys.clear()
            self._keys.add(key)
        return key

    # --- values

    def value(self, key: str, value: object) -> Any:
        """Scrub one attribute value: by its key, then by its form, then by the user's callback."""
        try:
            scrubbed = self._value(key, value, 0)
        except Exception as error:
            guard.report("redacting a value", error)
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

    def _value(self, key: str, value: object, depth: int) -> object:  # noqa: C901 (one decision after the other, each with its reason)
        if value is None or value is True or value is False:
            return value
        verdict = self._judge(key)
        if verdict != PLAIN and key.lower() not in SAFE_KEYS:
            return self._under_sensitive_key(key, value, verdict, depth)
        if isinstance(value, str):
            if key.lower() in SAFE_KEYS and _NAME_ALONE.fullmatch(value):
                return value
            if self._personal:
                return self._text_uncached(value, key.endswith(QUERY_KEYS), key)
            if key in STATEMENT_KEYS or key.endswith(QUERY_KEYS):
                return self._text_uncached(value, key.endswith(QUERY_KEYS), key)
            return self._text(value)
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

    def _under_sensitive_key(self, key: str, value: object, verdict: int, depth: int) -> object:
        words = split_key(key)
        if isinstance(value, (int, float)) and (
            verdict == LABEL or is_measure(words) or (is_of_row(words) and 0 <= value < MANY_ROWS)
        ):
            return value
        if isinstance(value, str):
            if not is_harmless(value, key, verdict):
                return REDACTED
            return self._text(value) if verdict == LABEL else value
        if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
            if is_measure(words) and all(isinstance(item, (int, float)) for item in value):
                return value
            if verdict == LABEL and all(isinstance(item, str) and is_harmless(item, key, verdict) for item in value):
                return self._sequence("", value, depth + 1)
            if value and is_thing(key) and is_description(value, key, self._judge):
                return self._sequence("", value, depth + 1)
            return value if not value or tuple(value) == (REDACTED,) else (REDACTED,)
        if isinstance(value, Mapping) and is_thing(key) and is_description(value, key, self._judge):
            return self._mapping(value, depth + 1)
        return REDACTED

    def _mapping(self, value: Mapping[object, object], depth: int) -> object:
        scrubbed = {
            self.key(name) if isinstance(name, str) else name: self._value(str(name), item, depth)
            for name, item in value.items()
        }
        is_same = len(scrubbed) == len(value) and all(
            name in scrubbed and scrubbed[name] is item for name, item in value.items()
        )
        return value if is_same else scrubbed

    def _sequence(self, key: str, value: Sequence[Any], depth: int) -> object:
        scrubbed: list[object] = []
        previous: Any = None
        for item in (self._rules or self._load_rules()).redact_arguments(value):
            # ["--password", "x"] and ("authorization", "x"): the name stands one place before the value.
            named = isinstance(previous, str) and (
                (previous.startswith("-") and "=" not in previous) or (len(value) == 2 and len(previous) < 64)
            )
            verdict = self._judge(previous.lstrip("-")) if named and isinstance(item, str) else PLAIN
            if verdict != PLAIN:
                scrubbed.append(item if is_harmless(item, previous, verdict) else REDACTED)
            else:
                scrubbed.append(self._value(key, item, depth))
            previous = item
        if all(new is old for new, old in zip(scrubbed, value, strict=True)):
            return value
        return scrubbed if type(value) is list else tuple(scrubbed)

    # --- texts

    def is_text_only(self, key: str) -> bool:
        """Return whether `value(key, text)` equals `fresh_text(text)`: the key decides nothing, without a callback."""
        is_ruled = self._callback is not None or self._personal or self._judge(key) != PLAIN
        return not (is_ruled or key.lower() in SAFE_KEYS or key in STATEMENT_KEYS or key.endswith(QUERY_KEYS))

    def fresh_text(self, text: str) -> str:
        """`text()` without its cache, for callers with a cache of their own."""
        try:
            if len(text) <= _CACHED_TEXT_LENGTH and _says_nothing(text):
                return text
            return self._text_uncached(text, False)
        except Exception as error:
            guard.report("redacting a text", error)
            return REDACTED

    def text(self, text: str) -> str:
        """Scrub a text that stands under no key: a message, a stack trace, a description."""
        try:
            return self._text(text)
        except Exception as error:
            guard.report("redacting a text", error)
            return REDACTED

    def url(self, url: str) -> str:
        """Scrub a URL, or a query string alone: user, password, token, and the parameters named like a secret."""
        try:
            return self._text(url, query="?" not in url and "://" not in url)
        except Exception as error:
            guard.report("redacting a URL", error)
            return REDACTED

    def path(self, text: str, captured: Mapping[str, object], unnamed: Iterable[object] = ()) -> str:
        """Return a text with a URL path without the secrets that its pattern `captured`, or its unnamed groups."""
        return paths.redact_captured(text, captured, unnamed, self._judge)

    def _text(self, text: str, query: bool = False) -> str:
        if len(text) > _CACHED_TEXT_LENGTH or query or self._personal:
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

    def _text_uncached(self, text: str, query: bool = False, key: str = "") -> str:
        if not query and not self._personal and len(text) <= _CACHED_TEXT_LENGTH and _says_nothing(text):
            return text
        once = self._apply_rules(text, query, key)
        # The result of one rule may match another. Only a text with a secret in it is passed again.
        for _ in range(_MAX_PASSES - 1):
            if once is text:
                break
            text, once = once, self._apply_rules(once, query, key)
        return once

    def _apply_rules(self, text: str, query: bool = False, key: str = "") -> str:
        original = text
        if not text.isascii():
            text = encodable(text)
        if len(text) > MAX_TEXT_LENGTH and not text.endswith(_CUT_MARK):
            text = _cut_at_word(text[:MAX_TEXT_LENGTH]) + _CUT_MARK
        text = (self._rules or self._load_rules()).apply(text, query, key)
        return original if text == original else text

    def _load_rules(self) -> TextRules:
        # Late: a start has no text that needs them. The first one may be that of a thread, while another one forks.
        with forks.importing.using():
            from django_otel.redaction.text_rules import TextRules

        self._rules = TextRules(self._judge, is_personal=self._personal)
        return self._rules

    # --- what the SDK exports

    def attributes(self, attributes: Mapping[str, object] | None) -> Any:
        """Scrub a mapping of attributes; the same object when nothing changed, else a plain dict (or None for None)."""
        if not attributes:
            return attributes
        changed: dict[str, object] | None = None
        renamed: dict[str, str] = {}
        untouched = self._untouched.pairs
        for key, value in attributes.items():
            # Texts alone: 1, True and 1.0 are equal, and are not judged alike.
            if type(value) is str and (key, value) in untouched:
                continue
            scrubbed = self.value(key, value)
            name = key if key in self._keys else self.key(key)
            if scrubbed is value and name is key:
                if type(value) is str and len(value) <= _UNTOUCHED_LENGTH and self._callback is None:
                    self._untouched.add(key, value)
            else:
                if changed is None:
                    changed = dict(attributes)
                changed[key] = scrubbed
                if name is not key:
                    renamed[key] = name
        if changed is None:
            return attributes
        return _rename(changed, renamed) if renamed else changed

    def labels(self, attributes: Attributes, longest: int = MAX_TEXT_LENGTH) -> Attributes:
        """Scrub the attributes of a series, of long values their beginning; the same tuple when nothing changed."""
        changed = False
        scrubbed = []
        for item in attributes:
            value = _scrub_label(item[1], longest, partial(self.value, item[0]))
            name = self.key(item[0])
            if value is not item[1] or name is not item[0]:
                changed = True
                item = (name, value)
            scrubbed.append(item)
        return tuple(scrubbed) if changed else attributes


def _scrub_label(value: AttributeValue, longest: int, scrub: Callable[[object], Any]) -> AttributeValue:
    """Return the value of a label scrubbed, as a series can have it; itself when nothing changed."""
    if type(value) is str and len(value) > longest:
        found = scrub_beginning(value, longest, scrub)
    elif isinstance(value, tuple) and sum(map(_length_of, value)) > longest:
        found = scrub_beginnings(value, longest, scrub)
    else:
        found = scrub(value)
    if found is value or type(found) is str:
        return found
    # The project's callback may give anything.
    cleaned = clean_value(found)
    return tuple(cleaned) if isinstance(cleaned, list) else str(cleaned) if cleaned is None else cleaned


def _length_of(item: object) -> int:
    return len(item) + 1 if isinstance(item, str) else 1


def _rename(attributes: Mapping[str, object], names: Mapping[str, str]) -> dict[str, object]:
    """Return the attributes under other names, in their order; of those that have one name then, the last is kept."""
    renamed: dict[str, object] = {}
    for key, value in attributes.items():
        name = names.get(key, key)
        # At the place of the kept one, not of the first one.
        renamed.pop(name, None)
        renamed[name] = value
    return renamed
