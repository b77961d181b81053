"""Personal data, redacted on demand (`Scrubber(personal=True)`): addresses of e-mail, telephone numbers, IBANs, IP addresses."""  # noqa: E501

from __future__ import annotations

import ipaddress
import re

from django_otel.base.patterns import lazy_pattern
from django_otel.redaction.keys import REDACTED, words

_EMAIL = lazy_pattern(
    r"(?<![A-Za-z0-9._%+\-])(?:[A-Za-z0-9._+\-]|%(?!40)|(?<=[A-Za-z])'(?=[A-Za-z]))++(?:@|%40)(?=[A-Za-z0-9])"
    r"(?:localhost\b|(?:[A-Za-z0-9\-]{1,63}\.){1,8}[A-Za-z][A-Za-z0-9\-]{1,62})"
)
_UNICODE_EMAIL = lazy_pattern(r"[^\s@<>\"'(),;:]{1,64}@[^\s@<>\"'(),;:.]{1,63}+(?:\.[^\s@<>\"'(),;:.]{1,63}+)++")
_IBAN = lazy_pattern(
    r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?:[ \-]?[A-Z0-9]{4}){2,7}(?:[ \-]?[A-Z0-9]{1,4})?(?![A-Za-z0-9])", re.IGNORECASE
)
#: International numbers, and national ones that are written in groups.
_PHONE = lazy_pattern(
    r"(?<![\w.+])(?:\+|00)[1-9][0-9]{0,2}(?:[ \-./]?\(?[0-9]{1,5}\)?){1,6}(?!\w|\.[0-9])"
    r"|(?<![\w.+\-])\(?0[1-9][0-9]{1,4}\)?[ \-/][0-9]{2,8}(?:[ \-][0-9]{2,8}){0,3}(?![\w\-]|\.[0-9])"
    r"|(?<![\w.+\-])0[1-9](?:([ .])[0-9]{2})(?:\1[0-9]{2}){3}(?![\w\-]|\.[0-9])"
    r"|(?<![\w.+\-])(?:1[\-. ])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[\-.])[2-9][0-9]{2}[\-.][0-9]{4}(?![\w\-]|\.[0-9])"
)
#: A product's version, as in a User-Agent, may look like an address; it is matched first and stays.
_IPV4 = lazy_pattern(
    r"(?<![\w.])(?:[A-Z][A-Za-z]{1,30}/[0-9.]++|(?P<ip>(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![A-Za-z_]|[0-9]|\.[0-9])))"
)
_IPV6 = lazy_pattern(r"(?<![\w.:])(?=[0-9A-Fa-f:.]{2,45}(?![0-9A-Fa-f:]))[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]*+(?![\w:])")
_KEY_WORDS = words(
    "email mail emails phone phones telephone tel mobile cellphone fax iban ibans msisdn phonenumber emailaddress "
    "telefon handynummer"
)
_SECOND_WORDS = words("address addresses number numbers no nr")
#: The server's own addresses are not personal data.
_OWN_ADDRESSES = ("server.", "host.", "network.local.", "net.host.", "k8s.", "container.", "service.")


def is_personal(parts: tuple[str, ...]) -> bool:
    """Return whether a text under a key of these words is personal data in any form."""
    if len(parts) > 1 and parts[-1] in _SECOND_WORDS:
        parts = parts[:-1]
    return bool(parts) and parts[-1] in _KEY_WORDS


def redact_personal(text: str, key: str = "") -> str:
    """Redact e-mail and IP addresses, telephone numbers and IBANs in a text."""
    if "@" in text or "%40" in text:
        if not text.isascii():
            text = _UNICODE_EMAIL.sub(REDACTED, text)
        text = _EMAIL.sub(REDACTED, text)
    if not key.startswith(_OWN_ADDRESSES):
        if ":" in text:
            text = _IPV6.sub(_redact_ipv6, text)
        text = _IPV4.sub(_redact_ipv4, text)
    text = _IBAN.sub(_redact_iban, text)
    return _PHONE.sub(_redact_phone, text)


def _redact_ipv4(match: re.Match[str]) -> str:
    text = match.group()
    return REDACTED if match.group("ip") is not None and _is_address(text) else text


def _redact_ipv6(match: re.Match[str]) -> str:
    text = match.group()
    address = text.rstrip(".")
    # Without a digit it is a name such as `a::b`.
    is_found = any(map(str.isdigit, address)) and _is_address(address)
    return REDACTED + text[len(address) :] if is_found else text


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


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
