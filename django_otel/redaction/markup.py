"""Secrets beside their names in HTML, in texts with escaped quotes, and in keys that are written as JSON or XML."""

from __future__ import annotations

import re

from django_otel.base.patterns import lazy_pattern
from django_otel.redaction.bare_pairs import Judge, is_secret_pair, says_something
from django_otel.redaction.keys import LABEL, PLAIN, PROSE, REDACTED

#: A quote as HTML, JSON or a program writes it: &quot; \u0022 \x27
_QUOTE = r"(?:&(?:amp;)?(?:quot|apos|#0{0,4}3[49]|#[xX]0{0,4}2[27]);|\\{1,4}(?:u00|x)2[27])"
_DIVIDER = r"(?:&(?:amp;)?(?:#0{0,4}(?:61|58)|#[xX]0{0,4}3[DdAa]|equals|colon);|\\{1,4}(?:u00|x)3[DdAa])"
_ESCAPED_KEY = lazy_pattern(
    rf"(?<![\w.\-])([\w.\-]++)(?:(?P<closed>{_QUOTE})\s{{0,8}}(?:[:=,]|=>|{_DIVIDER})\s{{0,8}}(?P<opened>{_QUOTE})?"
    rf"|{_DIVIDER}\s{{0,8}}(?P<behind>{_QUOTE})?|\s{{0,8}}[:=]\s{{0,8}}(?P<only>{_QUOTE}))"
)
_ESCAPED_END = lazy_pattern(_QUOTE)
_ESCAPED_VALUE = lazy_pattern(r"[^\s&\\\"'<>,;]++")
#: The rest of an escape before a key: \u0022token
_ESCAPE_REST = lazy_pattern(r"(?:u00|x)2[27]|n|t|r")

_CELL = lazy_pattern(
    r"<(?P<tag>td|th|dt|code|b|strong|label|span|key)\b[^<>]{0,200}>\s{0,40}(?P<key>[\w.\- \[\]]{1,80}?):?\s{0,40}</(?P=tag)>\s{0,40}"  # noqa: E501
    r"(?:</t[hd]>\s{0,40})?<(?:td|dd|span|code|pre|p|div|string|data)\b[^<>]{0,200}>\s{0,40}(?:<(?:pre|code|span|div|b|p)\b[^<>]{0,200}>\s{0,40}){0,3}"
    r"(?P<value>[^<\s][^<]{0,2000})"
)
#: <b>Password:</b> x, Password:<br>x, Password:</td><td>x</td>
_LABELLED = lazy_pattern(
    r"(?<![\w\-])(?P<key>[\w\-]++(?: \w++)?)\s{0,4}"
    r"(?::\s{0,4}(?:</(?:b|strong|em|i|u|label|span|font|th|td|dt|p|div)>\s{0,8}"
    r"(?:<(?:td|dd|p|div|span|br ?/?)>\s{0,8})?"
    r"|<br ?/?>\s{0,8})|</(?:b|strong|em|i|u|label|span|font)>:\s{0,4})(?P<value>[^<\s]{1,400})"
)
_INLINE = ("code", "b", "strong", "label", "span", "em", "i")
#: Headings of columns that hold no secret.
_WEAK = ("session", "sessions", "card", "cards", "cookie", "cookies", "token", "tokens", "key", "secret")
_FIELD = lazy_pattern(r"<(?:input|meta|option|param|button)\b[^<>]{0,1000}>")
_FIELD_NAME = lazy_pattern(r"\b(?:name|id|property)\s{0,4}=\s{0,4}[\"']([^\"'<>]{1,100})[\"']")
_FIELD_VALUE = lazy_pattern(r"\b(?:value|content)\s{0,4}=\s{0,4}(?:\"([^\"<>]{1,2000})\"|'([^'<>]{1,2000})')")

#: password: <b>x</b>
_MARKED = lazy_pattern(
    r"(?<![\w.\-])(?P<key>[\w.\-]++)\s{0,4}[:=]\s{0,4}<(?P<tag>b|strong|code|em|i|pre|span|kbd|tt)\b[^<>]{0,200}>(?P<value>[^<>]{1,400})</(?P=tag)>"
)
#: &lt;password&gt;x&lt;/password&gt;
_ESCAPED_XML = lazy_pattern(r"&lt;(?P<key>[\w.\-:]{1,60})(?:\s[^&]{0,200})?&gt;(?P<value>[^&\s][^&]{0,400})(?=&lt;/)")

#: Private parts of a JSON web key, and of a key as XML.
_JWK = lazy_pattern(
    r"""(\\{0,4}["'](?:d|k|p|q|dp|dq|qi)\\{0,4}["']\s{0,4}:\s{0,4}\\{0,4}["'])[A-Za-z0-9_\-+/=]{16,}+"""
)
_XML_KEY = lazy_pattern(r"(<(D|P|Q|DP|DQ|InverseQ)>)[A-Za-z0-9+/=\s]{16,}+(?=</\2>)")


def redact_markup(text: str, judge: Judge) -> str:
    """Return `text` without the secrets that stand beside their names in markup or between escaped quotes."""
    if "&" in text or "\\u00" in text or "\\x" in text:
        text = _redact_escaped(text, judge)
    if "&lt;/" in text:
        text = _ESCAPED_XML.sub(lambda match: _redact_cell(match, judge), text)
    if "<" in text:
        if "</" in text:
            text = _CELL.sub(lambda match: _redact_cell(match, judge), text)
            text = _MARKED.sub(lambda match: _redact_cell(match, judge), text)
            if "RSAKeyValue" in text:
                text = _XML_KEY.sub(rf"\1{REDACTED}", text)
        if ":<" in text or ": <" in text or ">:" in text:
            text = _LABELLED.sub(lambda match: _redact_labelled(match, judge), text)
        text = _FIELD.sub(lambda match: _redact_field(match, judge), text)
    return text


def redact_web_keys(text: str) -> str:
    """Redact the private parts of JSON web keys."""
    return _JWK.sub(rf"\1{REDACTED}", text)


def _is_secret(key: str, value: str, judge: Judge) -> bool:
    return is_secret_pair(key, value, judge) and not value.strip().strip("\"'").startswith("[redacted")


def _redact_escaped(text: str, judge: Judge) -> str:
    out: list[str] = []
    done = pos = 0
    while (match := _ESCAPED_KEY.search(text, pos)) is not None:
        key = match.group(1)
        pos = match.end(1)
        if match.start() and text[match.start() - 1] == "\\":
            rest = _ESCAPE_REST.match(key)
            key = key[rest.end() :] if rest is not None else key
        if judge(key, True, False) in (PLAIN, LABEL):
            continue
        start = match.end()
        if match.group("opened") or match.group("behind") or match.group("only"):
            closing = _ESCAPED_END.search(text, start)
            end = len(text) if closing is None else closing.start()
        else:
            value = _ESCAPED_VALUE.match(text, start)
            end = start if value is None else value.end()
        if end > start and _is_secret(key, text[start:end], judge):
            out += (text[done:start], REDACTED)
            done = pos = end
    if not out:
        return text
    out.append(text[done:])
    return "".join(out)


def _redact_cell(match: re.Match[str], judge: Judge) -> str:
    value = match.group("value")
    if " " in value.strip() and value.split()[0].lower() in PROSE:
        # A sentence.
        return match.group()
    key, bare = match.group("key"), value.strip()
    is_inline = "tag" in match.re.groupindex and match.group("tag") in _INLINE
    if key.strip().lower() in _WEAK:
        # <td>Session</td><td>Room 4</td>
        if " " in bare or not any(map(str.isdigit, bare)):
            return match.group()
    elif is_inline and not any(map(str.isdigit, bare)) and says_something(bare, judge):
        # <code>password</code> <code>string</code>
        return match.group()
    if not _is_secret(key, value.replace("&#x27;", "'").replace("&quot;", '"'), judge):
        return match.group()
    start, end = (position - match.start() for position in match.span("value"))
    return match.group()[:start] + REDACTED + value[len(value.rstrip()) :] + match.group()[end:]


def _redact_labelled(match: re.Match[str], judge: Judge) -> str:
    key, bare = match.group("key"), match.group("value").strip(".,;!")
    if says_something(bare, judge) or not _is_secret(key, bare, judge):
        return match.group()
    return match.group()[: match.start("value") - match.start()] + REDACTED


def _redact_field(match: re.Match[str], judge: Judge) -> str:
    field = match.group()
    name, value = _FIELD_NAME.search(field), _FIELD_VALUE.search(field)
    is_password = 'type="password"' in field or "type='password'" in field
    if value is None or not (is_password or name):
        return field
    group = 1 if value.group(1) is not None else 2
    key = name.group(1) if name is not None and not is_password else "password"
    if not _is_secret(key, value.group(group), judge):
        return field
    return f"{field[: value.start(group)]}{REDACTED}{field[value.end(group) :]}"
