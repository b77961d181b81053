"""Personal data, redacted on demand (`Scrubber(personal=True)`): addresses of e-mail, telephone numbers, IBANs, IP addresses."""  # noqa: E501

from __future__ import annotations

import ipaddress
import re

from django_otel.base.patterns import lazy_pattern
from django_otel.redaction.keys import REDACTED, split_key

_EMAIL = lazy_pattern(
    r"(?<![A-Za-z0-9._%+\-])[A-Za-z0-9._%+\-]++(?:@|%40)(?=[A-Za-z0-9])(?:[A-Za-z0-9\-]{1,63}\.){0,8}[A-Za-z0-9\-]{2,63}"
)
_UNICODE_EMAIL = lazy_pattern(r"[^\s@<>\"'(),;:]{1,64}@[^\s@<>\"'(),;:.]{1,63}+(?:\.[^\s@<>\"'(),;:.]{1,63}+)++")
_IBAN = lazy_pattern(
    r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?:[ \-]?[A-Z0-9]{4}){2,7}(?:[ \-]?[A-Z0-9]{1,4})?(?![A-Za-z0-9])", re.IGNORECASE
)
#: International numbers, and national ones that are written in groups.
_PHONE = lazy_pattern(
    r"(?<![\w.+])(?:\+|00)[1-9][0-9]{0,2}(?:[ \-./]?\(?[0-9]{1,5}\)?){1,6}(?![\w.])"
    r"|(?<![\w.+\-])\(?0[1-9][0-9]{1,4}\)?[ \-/][0-9]{2,8}(?:[ \-][0-9]{2,8}){0,3}(?![\w.\-])"
    r"|(?<![\w.+\-])(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[\-.])[2-9][0-9]{2}[\-.][0-9]{4}(?![\w.\-])"
)
_IPV4 = lazy_pattern(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w]|\.[0-9])")
_IPV6 = lazy_pattern(r"(?<![\w.:])(?=[0-9A-Fa-f:.]{2,45}(?![0-9A-Fa-f:]))[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]*+(?![\w:])")
_KEY_WORDS = frozenset(["email", "mail", "emails", "phone", "telephone", "tel", "mobile", "fax", "iban"])
#: The server's own addresses are no person's.
_OWN_ADDRESSES = frozenset(
    ("server.address", "network.local.address", "net.host.ip", "net.host.name", "host.ip", "host.name")
)


def is_personal(key: str) -> bool:
    """Return whether a text under `key` is personal data whatever it looks like."""
    words = split_key(key)
    return bool(words) and words[-1] in _KEY_WORDS


def redact_personal(text: str, key: str = "") -> str:
    """Redact e-mail and IP addresses, telephone numbers and IBANs in a text."""
    if "@" in text or "%40" in text:
        text = _EMAIL.sub(REDACTED, text)
        if not text.isascii():
            text = _UNICODE_EMAIL.sub(REDACTED, text)
    if key not in _OWN_ADDRESSES:
        text = _IPV4.sub(_redact_address, text)
        if ":" in text:
            text = _IPV6.sub(_redact_address, text)
    text = _IBAN.sub(_redact_iban, text)
    return _PHONE.sub(_redact_phone, text)


def _redact_address(match: re.Match[str]) -> str:
    text = match.group()
    address = text.rstrip(".")
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return text
    return text if found.version == 6 and int(found) == 0 else REDACTED + text[len(address) :]


def _redact_iban(match: re.Match[str]) -> str:
    """An IBAN's letters as numbers, its first four characters last, leave 1 when divided by 97 (ISO 13616)."""
    text = match.group()
    plain = re.sub(r"[ \-]", "", text).upper()
    if not 15 <= len(plain) <= 34:
        return text
    number = "".join(str(int(character, 36)) for character in plain[4:] + plain[:4])
    return REDACTED if int(number) % 97 == 1 else text


def _redact_phone(match: re.Match[str]) -> str:
    digits = sum(map(str.isdigit, match.group()))
    return REDACTED if 7 <= digits <= 15 else match.group()
