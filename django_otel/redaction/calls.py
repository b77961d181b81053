"""Secrets among the arguments of calls, and where drivers and validators repeat an argument."""

from __future__ import annotations

import re

from django_otel.base.patterns import lazy_pattern
from django_otel.redaction.bare_pairs import Judge, replace_values
from django_otel.redaction.keys import LABEL, PLAIN, REDACTED

_STRING = r"(?:\"[^\"\n]{0,300}\"|'[^'\n]{0,300}')"
#: Another argument: a string, a name, an object as PHP prints it.
_OTHER = rf"(?:{_STRING}|[$\w.\->]{{1,80}}|Object\([\w\\]{{1,80}}\)|Resource id #[0-9]{{1,6}})"
_HIDDEN = r"(?!b?['\"]\[redacted\])b?(?:\"[^\"\n]{1,400}\"|'[^'\n]{1,400}')"
#: login("bob", "x")
_LOGIN = lazy_pattern(
    r"(?i)(\b(?:\w{0,30}auth(?:provider)?|login|authenticate|log_?in|sign_?in|(?:simple_)?bind(?:_s)?"
    r"|\w{0,30}credentials?:?[ ]?|create_(?:super)?user|auth_password|auth_interactive_dumb|oci_p?connect"
    r"|cx_Oracle\.connect|oracledb\.connect"
    rf"|PasswordAuthentication|NetworkCredential)\(\s*(?:(?:None|request|self\.request)\s*,\s*)?{_STRING}\s*,\s*"
    r"(?:(?:\"[^\"\n]{0,80}@[^\"\n]{0,80}\"|'[^'\n]{0,80}@[^'\n]{0,80}'|None)\s*,\s*)?)"
    rf"{_HIDDEN}"
)
#: mysqli_connect('db', 'bob', 'x'), DriverManager.getConnection(url, "bob", "x")
_CONNECT = lazy_pattern(
    r"(?i)((?:\b(?:PDO|mysqli|\w{0,20}Connection)(?:::|->)__construct|\bnew (?:PDO|mysqli)"
    r"|\b(?:mysqli?|odbc|mssql|db2|ibase)_p?connect"
    r"|\b(?:getConnection|DBI->connect|imap_open|ftp_login|ldap_bind|ssh2_auth_password))"
    rf"\(\s*{_OTHER}\s*,\s*(?:{_STRING}|[$\w.]{{1,80}})\s*,\s*)"
    rf"{_HIDDEN}"
)
#: Fernet(b"x"), hmac.new(b"x", ...), jwt.decode(token, "x")
_KEY = lazy_pattern(
    r"((?:\b(?:Fernet|MultiFernet|ChaCha20Poly1305|AESGCM|SecretBox)\(\[?\s*|\bhmac\.(?:new|digest)\(\s*"
    r"|\bjwt\.(?:encode|decode)\((?:\{[^{}\n]{0,400}\}|[\w.]{1,80}|\"[^\"\n]{0,4000}\"|'[^'\n]{0,4000}')\s*,\s*)b?)"
    r"(?!['\"]\[redacted\])(?:\"[^\"\n]{1,400}\"|'[^'\n]{1,400}')"
)
_HAS_CALL = lazy_pattern(
    r"(?:credentials?:?[ ]?|create_(?:super)?user|bind(?:_s)?|auth(?:entication|_password|_interactive_dumb)?|provider|log_?in|authenticate|sign_?in"  # noqa: E501
    r"|connect|__construct|pdo|mysqli|connection|imap_open)\("
)
#: Invalid type for parameter Password, value: x, type: <class 'str'>
_CHECKED = lazy_pattern(
    r"\bfor parameter (?P<key>[\w.\[\]]{1,80}), value: (?P<value>[^\n]{1,400}?)(?=, (?:type|valid)\b)"
)
#: HSET user:1 password x
_REDIS_FIELD = lazy_pattern(
    r"\bHM?SET(?:NX)?[ ]\S{1,100}(?:[ ]\S{1,100}[ ]\S{1,200}){0,10}?"
    r"[ ][\"']?(?P<key>[\w.\-]{1,60})[\"']?[ ](?P<value>\"[^\"\n]{1,300}\"|[^\s\"']{1,300})"
)
#: {"saslStart": 1, "payload": "x"}
_SASL = lazy_pattern(
    r"(\bsasl(?:Start|Continue)\b[^{}\n]{0,200}?\bpayload[\"']?\s{0,2}[:=]\s{0,2}"
    r"(?:Bin(?:ary|Data)\((?:[0-9],[ ]?)?)?b?[\"'])(?!\[redacted\])[^\"'\n]{4,4000}"
)
#: 'x' is too short ... On instance['password']: 'x', of jsonschema
_INSTANCE = lazy_pattern(
    r"\bOn instance(?:\[[\w\"'.\- ]{1,80}\]){0,8}?\[[\"'](?P<key>[^\"'\]\n]{1,80})[\"']\]:\s{1,20}"
    r"(?P<value>\"[^\"\n]{1,400}\"|'[^'\n]{1,400}')"
)


def redact_calls(text: str, lowered: str, judge: Judge) -> str:
    """Return `text` without the passwords and keys that calls were given. `lowered` is `text` in lower case."""
    if "(" in text and ('"' in text or "'" in text):
        if _HAS_CALL.search(lowered):
            text = _CONNECT.sub(rf'\1"{REDACTED}"', _LOGIN.sub(rf'\1"{REDACTED}"', text))
        if "Fernet(" in text or "jwt." in text or "hmac." in text or "AESGCM(" in text or "SecretBox(" in text:
            text = _KEY.sub(rf'\1"{REDACTED}"', text)
    if "HSET" in text or "HMSET" in text:
        text = replace_values(_REDIS_FIELD, text, lambda match: _is_named(match, judge))
    if "saslStart" in text or "saslContinue" in text:
        text = _SASL.sub(rf"\1{REDACTED}", text)
    if "for parameter " in text:
        text = replace_values(_CHECKED, text, lambda match: _is_named(match, judge))
    if "On instance[" in text:
        found = _INSTANCE.search(text)
        text = replace_values(_INSTANCE, text, lambda match: _is_named(match, judge))
        if found is not None and found.group() not in text:
            # The message begins with the value.
            text = text.replace(found.group("value"), f"'{REDACTED}'")
    return text


def _is_named(match: re.Match[str], judge: Judge) -> bool:
    return judge(match.group("key"), True, False) not in (PLAIN, LABEL)
