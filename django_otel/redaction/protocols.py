"""Secrets in the commands of protocols: Redis, SMTP, IMAP, POP, FTP, IRC."""

from __future__ import annotations

import re

from django_otel.base.patterns import lazy_pattern
from django_otel.redaction.keys import PROSE, REDACTED, is_placeholder, words

_WORD = r"(?:\"(?:[^\"\\\n]|\\.){0,300}+\"|'[^'\n]{0,300}'|[^\s\"'()]{1,400}+)"
#: The beginning of a command: of a line, a quote or a bracket, an arrow of a log.
_BEGIN = r"(?:^|(?<=[\"'(\[`>])|(?<=[>:*|] )|(?<= sent )|(?<= send )|(?<=quote )|(?<=\\n))"
#: The end of a command.
_END = r"(?=[\"')\]`]|(?:\\r)?\\n|\s*$)"
_SETTING = lazy_pattern(rf"(?i)(\b(?:requirepass|masterauth|primaryauth)[\"']?[ \t]+)(?!\[redacted\])({_WORD})")
_AUTH = lazy_pattern(rf"(?m){_BEGIN}([\"']?AUTH[\"']?[ \t]+)(?:({_WORD})([ \t]+))?({_WORD}){_END}")
_HELLO = lazy_pattern(
    rf"(?i)(\b(?:HELLO[\"']?[ \t]+[\"']?[23][\"']?[ \t]+[\"']?AUTH|MIGRATE[ \t][^\n]{{1,300}}?[ \t][\"']?AUTH2)[\"']?[ \t]+{_WORD}[ \t]+)({_WORD})"  # noqa: E501
)
_MIGRATE = lazy_pattern(rf"(?i)(\bMIGRATE[ \t][^\n]{{1,300}}?[ \t][\"']?AUTH[\"']?[ \t]+)({_WORD})")
_SENTINEL = lazy_pattern(rf"(?i)(\bsentinel\s+auth-pass\s+\S{{1,100}}\s+)({_WORD})")
_ACL = lazy_pattern(
    r"(?im)((?:\bACL SETUSER |^user \S{1,100} (?:on|off|reset|nopass|~)\b)[^\n]{0,200}?\s?[><#!])(?!\[redacted\])([^\s]+)"  # noqa: E501
)
#: The wire form: a length before each word.
_LINE_FEED = r"(?:\\r|\r)?(?:\\n|\n)"
_WIRE = lazy_pattern(
    rf"(?i)(\bAUTH{_LINE_FEED}(?:\$[0-9]{{1,4}}{_LINE_FEED}[^\s\\]{{1,100}}{_LINE_FEED}(?=\$))?\$[0-9]{{1,4}}{_LINE_FEED})([^\s\\]+)"
)
_MECHANISMS = (
    r"(?:PLAIN(?:-CLIENTTOKEN)?|LOGIN|CRAM-MD5|DIGEST-MD5|NTLM|GSSAPI|XOAUTH2?|OAUTHBEARER|EXTERNAL|ANONYMOUS"
    r"|SCRAM-SHA-[0-9]{1,3}(?:-PLUS)?)"
)
#: AUTH PLAIN x (SMTP, POP), a1 AUTHENTICATE PLAIN x (IMAP)
_MECHANISM = lazy_pattern(
    rf"(?i)(\bAUTH(?:ENTICATE)?[ \t]+{_MECHANISMS}(?:[ \t]+|{_LINE_FEED}(?:(?:S: )?\+ ?{_LINE_FEED})?(?:C: )?))({_WORD})"  # noqa: E501
)
_NO_CREDENTIAL = words(
    "plain login cram-md5 digest-md5 ntlm gssapi xoauth xoauth2 oauthbearer external anonymous scram"
)
#: A client's answer, in base64, to a server that asks for a name or a password.
_CHALLENGE = lazy_pattern(
    r"(\b334(?: |\); Msg: )[^\n]{0,200}\n(?:(?:(?:reply|S): ?[^\n]{0,200}\n){0,2}[^\n]{0,40}?(?:send: |C: |> |-> )b?[\"']?|(?=[A-Za-z0-9+/=]++\r?(?:\n|\Z))))([A-Za-z0-9+/=]{4,})"  # noqa: E501
)
_PASS = lazy_pattern(rf"(?m){_BEGIN}(PASS[ \t]+)(?!PASS\b)([^\s\"'()]{{1,300}}+){_END}")
#: Words of test runners.
_TEST = lazy_pattern(
    r"(?i)tests?[_A-Z/.]|Test|.*::|.*/|.*\.(?:js|ts|jsx|tsx|py|go|rb|sh|spec|test)\Z|[0-9]{1,3}\Z|[\W_]+\Z"
)
_APOP = lazy_pattern(r"(\bAPOP[ \t]+\S{1,100}[ \t]+)([0-9a-f]{32})(?![0-9A-Za-z])")
#: a1 LOGIN bob x
_LOGIN = lazy_pattern(
    rf"(?m)((?:^|[\"'`>]|[>:] |[ ](?=[A-Z]{{1,4}}[0-9]{{2,6}} ))(?:[A-Z0-9.]{{0,12}}[0-9.][A-Za-z0-9.]{{0,12}}|[a-z]{{1,4}}[0-9]{{1,6}})[ ]LOGIN[ ])({_WORD})([ ])({_WORD}){_END}"  # noqa: E501
)
#: LOGIN bob@shop.example x1y2z3
_MAILBOX_LOGIN = lazy_pattern(
    r"(\bLOGIN[ ][\"']?[\w.+\-]{1,60}@[\w.\-]{1,100}[\"']?)([ ])(?!\[redacted\])(?=[^\s]{0,60}[0-9])"
    rf"(?=[^\s]{{0,60}}[A-Za-z])({_WORD}){_END}"
)
_IDENTIFY = lazy_pattern(rf"(?im)(\b(?:NickServ|NS)[ ]:?IDENTIFY[ ](?:\S{{1,60}}[ ])?)(?!\[redacted\])({_WORD}){_END}")
_NO_PASSWORD = words(
    "command commands method methods mechanism tls ssl page form attempt attempts success ok no bad user handler "
    "view button event message server client directive does option sent by service header type scheme module "
    "unset succeeded completed denied cleaned skipped passed logged endpoint middleware backend provider state status flow step"  # noqa: E501
)


def redact_protocols(text: str, lowered: str) -> str:
    """Return `text` without the passwords in commands of protocols. `lowered` is `text` in lower case."""
    if "auth" in lowered or "requirepass" in lowered or "setuser" in lowered or "user " in lowered:
        text = _redact_redis(text, lowered)
    if "auth" in lowered:
        text = _MECHANISM.sub(_redact_mechanism, text)
    if "PASS" in text:
        text = _PASS.sub(_redact_pass, text)
    if "334" in text:
        text = _CHALLENGE.sub(_redact_last, text)
    if "APOP" in text:
        text = _APOP.sub(_redact_last, text)
    if "LOGIN " in text:
        text = _LOGIN.sub(_redact_login, text)
        if "@" in text:
            text = _MAILBOX_LOGIN.sub(_redact_mailbox, text)
    if "identify" in lowered:
        text = _IDENTIFY.sub(_redact_last, text)
    return text


def _redact_redis(text: str, lowered: str) -> str:
    if "masterauth" in lowered or "requirepass" in lowered or "primaryauth" in lowered:
        text = _SETTING.sub(_redact_last, text)
    if "sentinel" in lowered:
        text = _SENTINEL.sub(_redact_last, text)
    if "hello" in lowered or "migrate" in lowered:
        text = _MIGRATE.sub(_redact_last, _HELLO.sub(_redact_last, text))
    if "AUTH" in text:
        text = _AUTH.sub(_redact_auth, text)
    if "$" in text:
        text = _WIRE.sub(_redact_last, text)
    if "setuser" in lowered or lowered.startswith("user ") or "\nuser " in lowered:
        text = _ACL.sub(_redact_last, text)
    return text


def _quoted(value: str) -> str:
    quote = value[0] if value[0] in "\"'" else ""
    return f"{quote}{REDACTED}{quote}"


def _is_said(value: str) -> bool:
    """Return whether a word is not a password: a part of a sentence, a mask, redacted already."""
    bare = value.strip("\"'").rstrip(".,;:!").lower().removesuffix("\\r")
    return (
        not bare
        or bare in PROSE
        or bare in _NO_PASSWORD
        or bare.startswith(("[redacted", "-", "<"))
        or is_placeholder(bare)
    )


def _redact_last(match: re.Match[str]) -> str:
    value = match.group(2)
    return match.group() if _is_said(value) else match.group(1) + _quoted(value)


def _redact_auth(match: re.Match[str]) -> str:
    command, user, gap, value = match.groups()
    if _is_said(value) or (user is not None and _is_said(user)) or _is_mechanism(user or value):
        return match.group()
    if user is not None and value.isalpha() and value.endswith(("ed", "ing")):
        # AUTH sessions cleaned
        return match.group()
    return f"{command}{user or ''}{gap or ''}{_quoted(value)}"


def _is_mechanism(word: str) -> bool:
    return word.strip("\"'").lower().removesuffix("\\r") in _NO_CREDENTIAL


def _redact_mechanism(match: re.Match[str]) -> str:
    value = match.group(2)
    bare = value.strip("\"'").replace("\\r", "").replace("\\n", "")
    is_base64 = len(bare) >= 4 and any(map(str.isalnum, bare)) and not (bare[1:].isalpha() and bare[1:].islower())
    if not is_base64 or _is_said(bare) or bare.lower().startswith(tuple(_NO_CREDENTIAL)):
        return match.group()
    return match.group(1) + _quoted(value)


def _redact_pass(match: re.Match[str]) -> str:
    value = match.group(2)
    return match.group() if _is_said(value) or _TEST.match(value) else match.group(1) + REDACTED


def _redact_login(match: re.Match[str]) -> str:
    command, user, gap, value = match.groups()
    if _is_said(value) or _is_said(user):
        return match.group()
    return f"{command}{user}{gap}{_quoted(value)}"


def _redact_mailbox(match: re.Match[str]) -> str:
    user, gap, value = match.groups()
    return f"{user}{gap}{_quoted(value)}"
