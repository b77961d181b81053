"""Passwords among the arguments of well-known commands: `mysql -psecret`, `curl -u bob:secret`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from django_otel.base.patterns import lazy_pattern
from django_otel.redaction.keys import PROSE, REDACTED

_GAP = r"""["',\s]{1,8}"""
_ARGUMENT = r"""[^\s"',;|]+"""
#: Command, and what stands before its secret.
_OPTIONS: tuple[tuple[str, str], ...] = (
    (r"mysql\w{0,20}|mariadb[\w\-]{0,20}|7z[ar]?", r"""-p["']?"""),
    (r"sshpass", rf"-p(?:{_GAP})?"),
    (r"(?:docker|podman|helm|az|oc|buildah|skopeo)\b[^\n]{0,80}?\blogin", rf"-p{_GAP}"),
    (r"mongo(?:sh|dump|restore|export|import)?|influx|clickhouse-client", rf"-p{_GAP}"),
    (r"redis-cli|valkey-cli", rf"-a{_GAP}"),
    (r"ldap(?:search|modify|add|delete|passwd|whoami)", rf"-w{_GAP}"),
    (r"sqlcmd|bcp|zip|unzip|isql", rf"-P{_GAP}"),
    (r"curl", rf"(?:-u|--user|-U|--proxy-user)(?:{_GAP}|=)?[^\s:\"']{{1,120}}:"),
    (r"https?", rf"(?:-a|--auth){_GAP}[^\s:\"']{{1,120}}:"),
    (r"lftp", rf"-u{_GAP}[^\s,\"']{{1,120}},"),
    (r"smbclient|rpcclient|smbget", rf"-U{_GAP}[^\s%\"']{{1,120}}%"),
    (r"snmp(?:get|walk|set|bulkwalk|trap|table)", rf"-[AX]{_GAP}"),
    (r"net use", r"/user:[^\s\"']{1,120}\s+"),
    (r"openssl", r"\bpass:"),
    (r"sqlplus|impdp|expdp|rman|sqlldr|CONN(?:ECT)?", r"\b[A-Za-z_]\w{0,60}/(?=[^\s/@]+@)"),
    (r"htpasswd", r"-[a-zA-Z]*b[a-zA-Z]*\s+\S{1,200}\s+\S{1,100}\s+"),
    (r"mosquitto_(?:pub|sub)|ipmitool", rf"-P{_GAP}"),
    (r"plink|pscp|psftp|cqlsh|smbmap|arangosh", rf"-p(?:w)?{_GAP}"),
    (r"xfreerdp|wfreerdp", r"/p:"),
    (r"rabbitmqctl", r"(?:add_user|change_password)\s+\S{1,100}\s+"),
)
_COMMAND = lazy_pattern(
    r"(?<![\w.\-])(?:" + "|".join(f"(?P<c{number}>{name})" for number, (name, _) in enumerate(_OPTIONS)) + r")(?![\w.])"
)
_HAS_COMMAND = lazy_pattern(
    r"\b(?:mysql|mariadb|7z|sshpass|docker|podman|helm|az|oc|buildah|skopeo|mongo|influx|clickhouse|redis-cli|valkey-cli"
    r"|ldap|sqlcmd|bcp|zip|unzip|isql|curl|https?|lftp|smb|rpcclient|snmp|net use|openssl|sqlplus|impdp|expdp|rman|sqlldr|CONN"  # noqa: E501
    r"|htpasswd|mosquitto|ipmitool|plink|pscp|psftp|cqlsh|smbmap|arangosh|xfreerdp|wfreerdp|rabbitmqctl)"
)
_SECRETS = tuple(
    lazy_pattern(
        rf"(?:(?<=[\s\"',])|\A){option}(?P<secret>{_ARGUMENT})"
        if option[0] != "\\"
        else rf"{option}(?P<secret>[^\s\"',;|@]+)"
    )
    for _, option in _OPTIONS
)
_HAS_OPTION = lazy_pattern(r"[\s\"'](?:-[A-Za-z]|--[a-z])|/user:|\bpass:|_user |change_password |/[^\s/]{1,60}@")
_THIN = lazy_pattern(r"(\bjdbc:oracle:\w{1,10}:\w{1,60}/)[^\s@/]+(?=@)")
_NETRC = lazy_pattern(r"(\blogin\s+\S{1,200}\s+password\s+)(?!\[redacted\])\S+")
#: host:port:database:user:password, a line of ~/.pgpass.
_PGPASS = lazy_pattern(
    r"(?:^|(?<=[\s'\"]))([\w.*\-]{1,200}:(?:54[0-9]{2}|6432|6543|\*):[\w*\-]{1,60}:[\w*\-]{1,60}:)(?!\[redacted\])\S+",
    re.MULTILINE,
)
#: Settings and commands of Redis, which no name separates from their secret.
_REDIS = lazy_pattern(r"(?i)(\b(?:requirepass|masterauth)[\"']?[ \t]+[\"']?)(?!\[redacted\])[^\s\"']+")
_REDIS_AUTH = lazy_pattern(r"(\AAUTH[ \t]+(?:\S{1,100}[ \t]+)?)(?!\[redacted\]|\?)\S+(?=\s*\Z)")
_REDIS_ACL = lazy_pattern(r"(?i)(\bACL SETUSER [^\n]{0,200}?\s[><#!])(?!\[redacted\])[^\s]+")
#: A prompt with the answer: "password for bob: x".
_PROMPT = lazy_pattern(
    r"(?i)(\b(?:password|pass ?phrase|passwd) (?:for|of) (?:user |key )?['\"]?[\w@.\\/\-]{1,80}['\"]?: )"
    r"(?!\[redacted\])(\S+)"
)
#: echo x | sudo -S
_PIPED = lazy_pattern(
    r"(\becho(?:[ \t]+-[ne]{1,2})?[ \t]+)(?!['\"]?\[redacted\])(?:\"[^\"\n]{1,200}\"|'[^'\n]{1,200}'|[^\s|'\"]{1,200})"
    r"(?=[ \t]*\|[ \t]*"
    r"(?:sudo[ \t][^\n]{0,40}?-S|(?:ch)?passwd\b|su\b|docker[ \t]+login|gh[ \t]+auth|openssl\b|base64\b|cryptsetup\b))"
)
#: the password was "x"
_QUOTED_PROSE = lazy_pattern(
    r"(?i)(\b(?:password|passphrase|passcode|secret|api key|access token|pin) (?:was|is|used|given|entered) )"
    r"(?:\"([^\"\n]{1,200})\"|'([^'\n]{1,200})')"
)
#: the password is x1y2z3, mot de passe : x
_SAID_PASSWORD = lazy_pattern(
    r"(?i)(\b(?:(?:pass(?:word|phrase|code|wort)|kennwort)[ ](?:is|was|ist|war)[ ]|mot de passe ?: )['\"]?)"
    r"(?!(?:sha|md|base|utf|argon|pbkdf|bcrypt|scrypt|ascii)[\-_]?[0-9])(?=[^\s\"']{0,60}[0-9])(?=[^\s\"']{0,60}[A-Za-z])"
    r"[^\s\"'<>,;\[\]]{6,}"
)
#: your code is 123456, 2FA code 123456
_SAID_CODE = lazy_pattern(
    r"(?i)(\b(?:(?:verification|security|login|sign[\- ]in|one[\- ]time|access|confirmation|activation|authentication"
    r"|2fa|mfa|otp|sms|recovery)[ ](?:pass)?code|your[ ](?:pass)?code|(?:your|the)[ ]pin|otp)(?:[ ](?:is|was))?:?[ ])"
    r"(?:[0-9]{4,8}|[0-9]{3}[ \-][0-9]{3})(?![\w.:])"
)
#: login("bob", "x")
_LOGIN_CALL = lazy_pattern(
    r"(\b(?:auth|login|authenticate|logIn|signIn|sign_in|BasicAuth|HTTPBasicAuth|basic_auth|setBasicAuth)\(\s*"
    r"(?:\"[^\"\n]{0,120}\"|'[^'\n]{0,120}')\s*,\s*)(?!['\"]\[redacted\])(?:\"[^\"\n]{1,400}\"|'[^'\n]{1,400}')"
)
_PROSE_MARKS = tuple(
    f"{name} {verb} "
    for name in ("password", "passphrase", "passcode", "secret", "api key", "access token", "pin")
    for verb in ("was", "is", "used", "given", "entered")
)
_CALL_MARKS = ("auth(", "login(", "authenticate(", "signin(", "sign_in(")
_MAX_LINE_LENGTH = 2000


def redact_commands(text: str) -> str:
    """Redact passwords in command lines and in the files that commands read them from."""
    if _HAS_OPTION.search(text) and _HAS_COMMAND.search(text):
        text = _redact_options(text)
    if "jdbc:" in text:
        text = _THIN.sub(rf"\1{REDACTED}", text)
    if "login" in text and "password" in text:
        text = _NETRC.sub(rf"\1{REDACTED}", text)
    if "echo" in text and "|" in text:
        text = _PIPED.sub(rf"\1{REDACTED}", text)
    if ":" in text and (":54" in text or ":6432" in text or ":6543" in text or ":*:" in text):
        text = _PGPASS.sub(rf"\1{REDACTED}", text)
    lowered = text.lower()
    if (
        "pass" in lowered
        or "auth" in lowered
        or "secret" in lowered
        or "login" in lowered
        or "sign" in lowered
        or "setuser" in lowered
        or " key " in lowered
        or " token " in lowered
        or "pin " in lowered
        or "code " in lowered
        or "otp " in lowered
    ):
        text = _redact_prose(text, lowered)
    return text


def _redact_prose(text: str, lowered: str) -> str:
    """Redact what stands in sentences, calls and settings of Redis with such a word."""
    if "masterauth" in lowered or "requirepass" in lowered:
        text = _REDIS.sub(rf"\1{REDACTED}", text)
    if text.startswith("AUTH"):
        text = _REDIS_AUTH.sub(rf"\1{REDACTED}", text)
    if "setuser" in lowered:
        text = _REDIS_ACL.sub(rf"\1{REDACTED}", text)
    if "pass" in lowered and ": " in text:
        text = _PROMPT.sub(_redact_answer, text)
    if any(mark in lowered for mark in _PROSE_MARKS):
        text = _QUOTED_PROSE.sub(_redact_quoted, text)
    if "pass" in lowered or "kennwort" in lowered:
        text = _SAID_PASSWORD.sub(rf"\1{REDACTED}", text)
    if "code" in lowered or "pin " in lowered or "otp" in lowered:
        text = _SAID_CODE.sub(rf"\1{REDACTED}", text)
    if any(mark in lowered for mark in _CALL_MARKS):
        text = _LOGIN_CALL.sub(rf'\1"{REDACTED}"', text)
    return text


def _redact_answer(match: re.Match[str]) -> str:
    word = match.group(2).strip(".,;!").lower()
    return match.group() if word in PROSE else match.group(1) + REDACTED


def _redact_quoted(match: re.Match[str]) -> str:
    word = match.group(2) or match.group(3)
    if word == REDACTED or word.lower() in PROSE:
        return match.group()
    quote = match.group()[-1]
    return f"{match.group(1)}{quote}{REDACTED}{quote}"


def redact_arguments(arguments: Sequence[str]) -> Sequence[str]:
    """Redact passwords in a list of arguments whose first is a well-known command; the same list when there is none."""
    if not arguments or not all(isinstance(argument, str) for argument in arguments):
        return arguments
    joined = "\n".join(arguments)
    if len(joined) > _MAX_LINE_LENGTH or joined.count("\n") != len(arguments) - 1:
        return arguments
    line = joined.replace(" ", "\0").replace("\n", " ")
    name, slash, rest = line.partition(" ")
    scrubbed = _redact_options(name.rpartition("/")[2] + slash + rest)
    if scrubbed == name.rpartition("/")[2] + slash + rest:
        return arguments
    return [arguments[0], *(part.replace("\0", " ") for part in scrubbed.split(" ")[1:])]


def _redact_options(text: str) -> str:
    out: list[str] = []
    done = 0
    for command in _COMMAND.finditer(text):
        if command.start() < done:
            continue
        number = int(str(command.lastgroup)[1:])
        line_end = text.find("\n", command.end())
        end = min(len(text) if line_end < 0 else line_end, command.end() + _MAX_LINE_LENGTH)
        for found in _SECRETS[number].finditer(text, command.end(), end):
            start, stop = found.span("secret")
            if text[start:stop] != REDACTED and start >= done and not text.startswith("-", start):
                out += (text[done:start], REDACTED)
                done = stop
    if not out:
        return text
    out.append(text[done:])
    return "".join(out)
