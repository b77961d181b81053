"""Tokens in paths of URLs: `/reset/<uid>/<token>`, magic links, addresses of webhooks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from django_otel.base.patterns import lazy_pattern
from django_otel.redaction.keys import PLAIN, REDACTED, has_random_part, is_mixed, split_key, words

_HAS_LONG_SEGMENT = lazy_pattern(r"/[A-Za-z0-9_\-.:~%=@+]{16}")
_PATH = lazy_pattern(
    r"(?<![A-Za-z0-9_\-.~%=@+/])(?:https?:/)?[A-Za-z0-9_\-.~%=@+]*+(?::[0-9]{1,5})?(?:/[A-Za-z0-9_\-.:~%=@+]*+)++"
)
#: Words in a path that a token may follow: after one three segments are judged strictly.
_ACTIONS = words(
    "reset password passwd passwordreset confirm confirmation confirmations verify verification activate "
    "activation invite invites invitation invitations magic unsubscribe optout token tokens key login signin "
    "auth share shared shares download downloads signed claim accept callback webhook webhooks hook hooks "
    "private secret secrets recover recovery register registration join otp preview ical calendar feed approve "
    "decline session sessions sso onboarding set email subscribe subscription link links guest access"
)
_FILE = lazy_pattern(r".*\.[A-Za-z]{1,5}[0-9]?\Z")
#: A hash of a file, as in HTML and lock files.
_INTEGRITY = lazy_pattern(r"sha(?:1|256|384|512)[\-:]")
#: Capitals, small letters and digits mixed: /invite/Qx7kTb2w
_SHORT_TOKEN = lazy_pattern(r"(?=[A-Za-z]*[0-9])(?=[A-Z0-9]*[a-z])(?=[a-z0-9]*[A-Z])[A-Za-z0-9]{8,15}\Z")
_SHORTEST_TOKEN = 8
#: Of a file (characters).
_SHORTEST_STEM = 24
_UUID = lazy_pattern(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
_HEX = lazy_pattern(r"[0-9a-fA-F]{32,}\Z")
_WEBHOOK = lazy_pattern(
    r"(hooks\.slack(?:-gov)?\.com/[a-z]{1,20}/|discord(?:app)?\.com/api/(?:v[0-9]{1,2}/)?webhooks/"
    r"|webhook\.office\.com/webhookb2/|outlook\.office(?:365)?\.com/webhook(?:b2)?/"
    r"|hooks\.zapier\.com/hooks/[a-z]{1,20}/|maker\.ifttt\.com/trigger/[\w\-]{1,80}/(?:json/)?with/key/"
    r"|hc-ping\.com/|webhook\.site/|api\.telegram\.org/(?:file/)?bot|logic\.azure\.com(?::[0-9]{1,5})?/workflows/"
    r"|events\.pagerduty\.com/integration/|open\.(?:feishu\.cn|larksuite\.com)/open-apis/bot/(?:v2/)?hook/"
    r"|hooks\.airtable\.com/workflows/|hook(?:\.[a-z0-9]{1,10})?\.(?:make|integromat)\.com/|/services/(?=T[A-Z0-9]{8,12}/B[A-Z0-9]{8,12}/)|/hooks/(?:catch/|(?=[a-z0-9]{26}(?![A-Za-z0-9]))))([^\s\"'<>?#]+)"
)
_WEBHOOK_MARKS = ("hook", "/services/T", "/bot", "/integration/", "/with/key/", "hc-ping", "/workflows/")


def redact_paths(text: str) -> str:
    """Redact addresses of webhooks, and segments of paths that are tokens."""
    for mark in _WEBHOOK_MARKS:
        if mark in text:
            text = _WEBHOOK.sub(rf"\1{REDACTED}", text)
            break
    return _PATH.sub(_redact_path, text) if _HAS_LONG_SEGMENT.search(text) else text


def redact_unmatched(path: str) -> str:
    """Redact every segment that could be a token: of a path that no route matches, nothing says what it holds."""
    segments = path.split("/")
    for index, segment in enumerate(segments):
        if len(segment) >= _SHORTEST_TOKEN:
            segments[index] = _redact_unknown(segment, segments[index - 1] if index else "")
    return "/".join(segments)


def is_token(segment: str) -> bool:
    """Return whether a segment, or a value captured from a path, looks drawn at random rather than written."""
    return len(segment) >= 16 and has_random_part(segment) and not _FILE.match(segment)


def is_secret_capture(value: str, *, is_named: bool) -> bool:
    """Return whether a captured value is a secret: by the name of its group, or because it looks random."""
    return bool(value) and (is_named or (len(value) >= 20 and is_mixed(value) and not _UUID.match(value)))


def is_secret_unnamed(value: str) -> bool:
    """Return whether the value of an unnamed group may be a token."""
    return is_token(value) and not _UUID.match(value)


def redact_value(text: str, value: str) -> str:
    """Redact `value` where it stands by itself in a path."""
    return re.sub(rf"(?<![A-Za-z0-9]){re.escape(value)}(?![A-Za-z0-9])", REDACTED, text) if value in text else text


def redact_captured(
    text: str, captured: Mapping[str, object], unnamed: Iterable[object], judge: Callable[[str, bool, bool], int]
) -> str:
    """Return a text with a URL path without the secrets that its pattern `captured`, or its unnamed groups."""
    for name, value in captured.items():
        if isinstance(value, str) and is_secret_capture(value, is_named=judge(name, True, True) != PLAIN):
            text = redact_value(text, value)
    for value in unnamed:
        if isinstance(value, str) and is_secret_unnamed(value):
            text = redact_value(text, value)
    return text


def _redact_unknown(segment: str, before: str) -> str:
    if is_token(segment) and not _UUID.match(segment):
        return REDACTED
    if _SHORT_TOKEN.match(segment) and not _ACTIONS.isdisjoint(split_key(before[:64])):
        return REDACTED
    return _redact_file(segment)


def _redact_file(segment: str) -> str:
    stem, dot, extension = segment.rpartition(".")
    if dot and len(stem) >= _SHORTEST_STEM and is_mixed(stem) and _FILE.match(segment):
        # A private file under a name that cannot be guessed.
        return f"{REDACTED}.{extension}"
    return segment


def _redact_path(match: re.Match[str]) -> str:
    if _INTEGRITY.match(match.group()):
        return match.group()
    segments = match.group().split("/")
    armed = 0
    is_changed = False
    for index, segment in enumerate(segments):
        is_action = not _ACTIONS.isdisjoint(split_key(segment[:64])) if segment else False
        if is_action:
            armed = 4
        if index and len(segment) >= 16 and _is_secret(segment, is_armed=armed > 0):
            segments[index] = REDACTED
            is_changed = True
        elif armed > 0 and len(segment) >= _SHORTEST_STEM and (file := _redact_file(segment)) != segment:
            segments[index] = file
            is_changed = True
        armed -= 1
    return "/".join(segments) if is_changed else match.group()


def _is_secret(segment: str, *, is_armed: bool) -> bool:
    if _FILE.match(segment) and not segment.startswith(".eJ"):
        return False
    if is_armed:
        return has_random_part(segment)
    return len(segment) >= 20 and is_mixed(segment) and not _UUID.match(segment) and not _HEX.match(segment)
