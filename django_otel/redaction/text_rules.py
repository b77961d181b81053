"""The rules for a text, one after the other; imported with the first text that may hold a secret."""

from __future__ import annotations

from django_otel.base.patterns import lazy_pattern
from django_otel.redaction import (
    bare_pairs,
    calls,
    commands,
    database_errors,
    forms,
    markup,
    paths,
    personal,
    protocols,
    rows,
)
from django_otel.redaction.bare_pairs import Judge
from django_otel.redaction.keys import STATEMENT_KEYS
from django_otel.redaction.pairs import PairScrubber

#: Of a terminal, between a name and its value; they are left out of a text with a secret.
_COLOURS = lazy_pattern(r"\x1b\[[0-9;]{0,20}m")


def _is_secret_named(lowered: str) -> bool:
    """Return whether a text in lower case has a name in it behind which a secret may stand without `=` or `:`."""
    return (
        "pass" in lowered
        or "auth" in lowered
        or "key" in lowered
        or "token" in lowered
        or "secret" in lowered
        or "login" in lowered
        or "pw" in lowered
        or "psk" in lowered
        or "community" in lowered
        or "snmp-server" in lowered
        or "setuser" in lowered
        or "identify" in lowered
        or "csrf" in lowered
        or "cookie" in lowered
        or "session" in lowered
        or "apop" in lowered
        or lowered.startswith("user ")
        or "334 " in lowered
    )


def _redact_places(text: str, judge: Judge, *, is_statement: bool) -> tuple[str, bool]:
    """Redact values at known places of database errors, commands, protocols, markup and rows.

    Return the text, and whether there is a name in it behind which a secret may stand without `=` or `:`.
    """
    # A rule never adds a name, so one text in lower case serves all.
    lowered = text.lower()
    text = database_errors.redact_database_values(text)
    text = database_errors.redact_statement_secrets(text, lowered)
    is_named = _is_secret_named(lowered)
    text = commands.redact_commands(text, lowered, is_named=is_named)
    text = calls.redact_calls(text, lowered, judge)
    if not text.isascii():
        text = commands.redact_sentences(text)
    if (
        "pass" in lowered
        or "lock" in lowered
        or "crypt" in lowered
        or "contrase" in lowered
        or "senha" in lowered
        or "kennwort" in lowered
        or not text.isascii()
    ):
        text = bare_pairs.redact_told(text, judge)
    if is_named:
        text = protocols.redact_protocols(text, lowered)
        if not is_statement:
            text = markup.redact_markup(bare_pairs.redact_fields(text, lowered, judge), judge)
        text = rows.redact_rows(text, lowered, judge)
    return text, is_named


class TextRules:
    """All rules for texts, with the judgement of keys of one scrubber."""

    __slots__ = ("_is_personal", "_judge", "_pairs", "redact_arguments")

    def __init__(self, judge: Judge, *, is_personal: bool) -> None:
        self._judge = judge
        self._is_personal = is_personal
        self._pairs = PairScrubber(judge)
        self.redact_arguments = commands.redact_arguments

    def apply(self, text: str, query: bool, key: str) -> str:
        """Return a text that stands under `key` after one pass of all rules; `query` is for a query string alone."""
        if "\x1b[" in text:
            plain = _COLOURS.sub("", text)
            scrubbed = self._apply(plain, query, key)
            if scrubbed != plain:
                return scrubbed
        return self._apply(text, query, key)

    def _apply(self, text: str, query: bool, key: str) -> str:
        text = forms.redact_private_keys(text)
        if "://" in text or "@" in text or "%" in text:
            text = forms.redact_userinfo(text)
        if "/" in text:
            text = paths.redact_paths(text)
        is_statement = key in STATEMENT_KEYS
        text, is_named = _redact_places(text, self._judge, is_statement=is_statement)
        text = self._pairs.redact(text, query=query, is_sql=is_statement, may_be_bare=is_named)
        if "kty" in text:
            text = markup.redact_web_keys(text)
        text = forms.redact_tokens(text)
        if not is_statement:
            text = forms.redact_schemes(text)
        text = forms.redact_cards(text)
        if self._is_personal:
            text = personal.redact_personal(text, key)
        return text
