"""Passwords among the arguments of well-known commands: `mysql -psecret`, `curl -u bob:secret`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from django_otel.base.patterns import lazy_pattern
from django_otel.redaction.keys import PROSE, REDACTED, has_random_part

_GAP = r"""["',\s]{1,8}"""
_ARGUMENT = r"""[^\s"',;|]+"""
#: Command, and what stands before its secret.
_OPTIONS: tuple[tuple[str, str], ...] = (
    (r"mysql\w{0,20}|mariadb[\w\-]{0,20}|7z[ar]?", r"""-p["']?"""),
    (r"(?:un)?rar", r"""-h?p["']?"""),
    (r"sshpass", rf"-p(?:{_GAP})?"),
    (r"(?:docker|podman|helm|az|oc|buildah|skopeo)\b[^\n]{0,80}?\blogin", rf"-p{_GAP}"),
    (r"mongo(?:sh|dump|restore|export|import)?|influx|clickhouse-client", rf"-p{_GAP}"),
    (r"redis-cli|valkey-cli", rf"-a{_GAP}"),
    (r"ldappasswd", rf"-[asw]{_GAP}"),
    (r"ldap(?:search|modify|add|delete|whoami)", rf"-w{_GAP}"),
    (r"sqlcmd|bcp|zip|unzip|isql", rf"-P{_GAP}"),
    (
        r"curl",
        rf"(?:-E|--cert|--proxy-cert)(?:{_GAP}|=)?[^\s:\"']{{1,120}}:|(?:-b|--cookie)(?:{_GAP}|=)?[^\s=\"']{{1,120}}=|(?:-u|--user|-U|--proxy-user)(?:{_GAP}|=)?[^\s:\"']{{1,120}}:",
    ),
    (r"https?", rf"(?:-a|--auth){_GAP}[^\s:\"']{{1,120}}:"),
    (
        r"etcdctl|nats|wget|aria2c|siege|ab|wrk|hey|kcat|consul|cypher-shell",
        rf"--(?:user|auth|creds|credentials|userpass)(?:{_GAP}|=)[^\s:\"']{{1,120}}:",
    ),
    (r"stats auth", r"[^\s:\"']{1,120}:"),
    (r"lftp", rf"-u{_GAP}[^\s,\"']{{1,120}},"),
    (r"smbclient|rpcclient|smbget", rf"-U{_GAP}[^\s%\"']{{1,120}}%"),
    (r"snmp(?:get|walk|set|bulkwalk|trap|table)", rf"-[AXc]{_GAP}(?!public\b)"),
    (
        r"vault",
        r"(?:login[ ]|kv[ ](?:put|patch)[ ](?:-\S{1,60}[ ]){0,3}[^\s=]{1,100}[ ][\w.\-]{1,60}=)(?![\w.\-]{1,60}=)",
    ),
    (r"kubectl|oc", r"--from-literal[= ][\"']?[\w.\-]{1,100}="),
    (r"useradd|usermod|twine", rf"-p{_GAP}"),
    (r"net user", r"\S{1,100}[ ](?!/)"),
    (r"rclone", r"obscure[ ]"),
    (r"mc", r"alias[ ]set[ ]\S{1,60}[ ]\S{1,200}[ ]\S{1,200}[ ]"),
    (r"composer", r"http-basic\.\S{1,100}[ ]\S{1,100}[ ]"),
    (r"doctl", rf"-t{_GAP}"),
    (r"nmcli", r"(?:password|[\w.\-]{1,40}\.psk)[ ]"),
    (r"ansible-vault", r"encrypt_string[ ][\"']?"),
    (r"ssh-keygen", rf"-[NP]{_GAP}"),
    (r"kinit|su|sudo|cryptsetup|gpg", r"<<<[ ]?[\"']?"),
    (r"chpasswd", r"<<<[ ]?[\"']?[\w.\-]{1,60}:"),
    (r"gh auth", r"--with-token[ ]<<<[ ]?[\"']?"),
    (r"net use", r"/user:[^\s\"']{1,120}\s+"),
    (r"openssl", rf"\bpass:|(?<=[ ])-k{_GAP}"),
    (r"sqlplus|impdp|expdp|rman|sqlldr|CONN(?:ECT)?", r"\b[A-Za-z_]\w{0,60}/(?=[^\s/@]+@)"),
    (r"htpasswd", r"-[a-zA-Z]*b[a-zA-Z]*\s+\S{1,200}\s+\S{1,100}\s+"),
    (r"mosquitto_(?:pub|sub)|ipmitool", rf"-P{_GAP}"),
    (r"plink|pscp|psftp|cqlsh|smbmap|arangosh", rf"-p(?:w)?{_GAP}"),
    (r"xfreerdp|wfreerdp|runas|mstsc|schtasks|psexec|wmic", r"/(?:p|rp|pass|password):"),
    (r"wpa_passphrase", r"\S{1,60}[ ](?=\S{8})"),
    (r"ConvertTo-SecureString", rf"(?:-String{_GAP})?[\"']?(?![-$([])"),
    (r"rabbitmqctl", r"(?:add_user|change_password)\s+\S{1,100}\s+"),
)
_COMMAND = lazy_pattern(
    r"(?<![\w.\-])(?:" + "|".join(f"(?P<c{number}>{name})" for number, (name, _) in enumerate(_OPTIONS)) + r")(?![\w.])"
)
_HAS_COMMAND = lazy_pattern(
    r"\b(?:mysql|mariadb|7z|(?:un)?rar|sshpass|docker|podman|helm|az|oc|buildah|skopeo|mongo|influx|clickhouse|redis-cli|valkey-cli"
    r"|ldap|sqlcmd|bcp|zip|unzip|isql|curl|vault|kubectl|user(?:add|mod)|twine|net user|rclone|mc|chpasswd|gh auth|composer|doctl|nmcli|ansible-vault|ssh-keygen|kinit|su|sudo|cryptsetup|gpg|https?|lftp|smb|rpcclient|snmp|net use|openssl|sqlplus|impdp|expdp|rman|sqlldr|CONN"  # noqa: E501
    r"|etcdctl|nats|wget|aria2c|siege|ab|wrk|hey|kcat|consul|cypher-shell|stats auth"
    r"|htpasswd|mosquitto|ipmitool|plink|pscp|psftp|cqlsh|smbmap|arangosh|xfreerdp|wfreerdp|rabbitmqctl|runas|mstsc|schtasks|psexec|wmic|wpa_pass|ConvertTo-)"
)
_SECRETS = tuple(
    lazy_pattern(
        rf"(?:(?<=[\s\"',])|\A)(?:{option})(?P<secret>{_ARGUMENT})"
        if option[0] != "\\"
        else rf"(?:{option})(?P<secret>[^\s\"',;|@]+)"
    )
    for _, option in _OPTIONS
)
_HAS_OPTION = lazy_pattern(r"[\s\"']--?[A-Za-z]")
_HAS_ACCOUNT = lazy_pattern(r"/[^\s/]{1,60}@")
#: Of commands that take their secrets without an option.
_PLAIN_ARGUMENTS = (
    "/user:", "pass:", "wpa_passphrase ", "SecureString ", "/p:", "/password:", "_user ", "change_password ", "vault ", "net user ", "rclone ", "mc alias ", "<<<", "http-basic.", "nmcli ", "encrypt_string ", "stats auth "  # noqa: E501
)  # fmt: skip
_THIN = lazy_pattern(r"(\bjdbc:oracle:\w{1,10}:\w{1,60}/)[^\s@/]+(?=@)")
_NETRC = lazy_pattern(r"(\blogin\s+[^\s|]{1,200}\s+password\s+)(?!\[redacted\]|[\-+|=])\S+")
#: user bob password x: of fetchmail and the like
_USER_PASSWORD = lazy_pattern(
    r"(?i)(\b(?:user(?:name)?|login)[ \t]+[\"']?\w[^\s\"']{0,100}[\"']?[ \t]+(?:there[ \t]+)?(?:with[ \t]+)?pass(?:word|wd)?[ \t]+(?:is[ \t]+)?[\"']?)"  # noqa: E501
    r"(?![\[\-|<>=+(])([^\s\"']+)(?=[\"']|[ \t]*$)",
    re.MULTILINE,
)
#: [smtp.example.com]:587 bob@example.com:x, of Postfix
_MAIL_ACCOUNT = lazy_pattern(
    r"(?:^|(?<=[\s\"']))(\[[\w.\-]{1,100}\](?::[0-9]{1,5})?[ \t]+[^\s:]{1,100}:)(?!\[redacted\])\S+"
)
#: : PSK "x", of ipsec.secrets
_PSK = lazy_pattern(r"((?:\A|\s): (?:PSK|EAP|XAUTH) [\"']?)(?!\[redacted\])[^\s\"']+")
#: "bob" * "x" *, of chap-secrets
_CHAP = lazy_pattern(
    r"^(\"?[\w.@\-]{1,60}\"?[ \t]+\*[ \t]+\"?)(?!\[redacted\])[^\s\"]+(?=\"?[ \t]+\*[ \t]*$)", re.MULTILINE
)
#: host:port:database:user:password, a line of ~/.pgpass.
_PGPASS = lazy_pattern(
    r"(?:^|(?<=[\s'\"]))([\w.*\-]{1,200}:(?:54[0-9]{2}|6432|6543|\*):[\w*\-]{1,60}:[\w*\-]{1,60}:)(?!\[redacted\])\S+",
    re.MULTILINE,
)
#: A prompt with the answer: "password for bob: x".
_PROMPT = lazy_pattern(
    r"(?i)(\b(?:password|pass ?phrase|passwd) (?:for|of) (?:user |key )?['\"]?[\w@.\\/\-]{1,80}['\"]?: )"
    r"(?!\[redacted\])(\S+)"
)
#: secret for tenant 4 = x
_SAID_FOR = lazy_pattern(
    r"(?i)(\b(?:password|passphrase|secret|token|(?:api|access|auth|private|secret|signing|encryption)[ _\-]?key"
    r"|credentials?)(?: [a-z]{1,20})? (?:for|of) (?:[a-z]{1,20} )?[\w@.\\/\-]{1,80} ?(?::|=|is|was) ?['\"]?)"
    r"(?!\[redacted\])(?=[^\s'\"]{0,400}[0-9])(?=[^\s'\"]{0,400}[A-Za-z])([^\s'\",;)\]}]{8,400})"
)
#: echo x | sudo -S
_PIPED = lazy_pattern(
    r"(\becho(?:[ \t]+-[ne]{1,2})?[ \t]+)(?!['\"]?(?:\[redacted\]|\$))(?:\"[^\"\n]{1,200}\"|'[^'\n]{1,200}'|[^\s|'\"]{1,200})"  # noqa: E501
    r"(?=[ \t]*\|[ \t]*"
    r"(?:sudo[ \t][^\n]{0,40}?-S|(?:ch)?passwd\b|su\b|docker[ \t]+login|gh[ \t]+auth|openssl\b|base64\b|cryptsetup\b))"
)
#: --password-file=<(echo x)
_SUBSTITUTED = lazy_pattern(
    r"(?i)((?:pass|key|secret|token|cred)[\w\-]{0,20}[= ]<\(echo(?: -n)? [\"']?)"
    r"(?![\"']?(?:\$|\[redacted\]))[^\s)\"']+"
)
#: the password was "x"
_QUOTED_PROSE = lazy_pattern(
    r"(?i)(\b(?:password|passphrase|passcode|secret|api key|access token|pin) (?:was|is|used|given|entered) )"
    r"(?:\"([^\"\n]{1,200})\"|'([^'\n]{1,200})')"
)
#: the password is x1y2z3, mot de passe : x
_SAID_PASSWORD = lazy_pattern(
    r"(?i)(\b(?:pass(?:word|phrase|code|wort)|kennwort)[ ](?:(?:for|of)[ ](?:user[ ])?[\w.@\-]{1,60}[ ])?"
    r"(?:(?:has been[ ]|was[ ])?(?:changed|reset|set)[ ](?:to|from)|is|was|ist|war|lautet)(?:[ ]now)?:?[ ](?:set to[ ])?['\"]?)"  # noqa: E501
    r"(?!(?:sha|md|base|utf|argon|pbkdf|bcrypt|scrypt|ascii)[\-_]?[0-9])(?=[^\s\"']{0,60}[0-9])(?=[^\s\"']{0,60}[A-Za-z])"
    r"[^\s\"'<>,;\[\]]{6,}"
)
#: from x1y2z3 to y2z3x1
_SAID_CHANGE = lazy_pattern(
    r"(?i)(\bpass(?:word|phrase|code) [^\n]{0,80}?\bfrom \[redacted\] to )(?!\[)[^\s\"'<>,;]{6,}"
)
#: default password (x)
_IN_BRACKETS = lazy_pattern(
    r"(?i)(\b(?:default|initial|temporary|old|new|current|wrong|bad|user|admin|root) password \()(?![^()]{0,60}[ =:])([^\s()\[]{6,60})(?=\))"  # noqa: E501
)
#: bad credentials bob:x
_ACCOUNT = lazy_pattern(
    r"(?i)(\b(?:(?:bad|invalid|wrong|incorrect|using|with|sent|got|received|decoded)[ ](?:\w{1,20}[ ])?credentials?"
    r"|basic auth(?:orization)?)(?::|[ ]for|[ ]are)?[ ][\"']?(?:\w{1,20}[ ])?(?!https?:|file:|port:)[\w.@+\-]{1,60}:)"
    r"(?!\[redacted\]|/|[0-9]{1,5}(?![^\s,;]))([^\s\"'<>,;]{4,})"
)
_ARABIC = lazy_pattern(
    r"((?:كلمة (?:المرور|السر|مرور|سر)|رمز (?:التحقق|الدخول|التأكيد)|الرقم السري)[^:=\n0-9A-Za-z]{0,30} (?:هي|هو):? )"
    r"(?=[^\s]{0,60}[0-9])[^\s\"'<>,;\[\]]{4,}"
)
_FRENCH = lazy_pattern(r"(?i)(\bmots? de passe ?: ?)(?!\[redacted\])(?![^\s]{1,20} [a-z])[^\s\"'<>,;]{4,}")
#: /u:bob /p:x
_WINDOWS = lazy_pattern(r"(?i)((?<![^\s\"'])/(?:p|pw|pwd|pass|password):)(?!\[redacted\])[^\s\"']+")
#: credentials: bob / x
_TWO = lazy_pattern(
    r"(?i)(\b(?:credentials?|creds|logins?|account)(?::| are| is| =)[ ][\"']?[\w.@+\-]{1,60}[\"']?[ ](?:/|:|and)[ ])"
    r"(?!\[redacted\])(?=[^\s]{0,60}[0-9])(?=[^\s]{0,60}[A-Za-z])([^\s\"'<>,;()]{6,60})"
)
#: auth failed (bob:x)
_FAILED = lazy_pattern(
    r"(?i)(\b(?:auth(?:entication|orization)?|log-?[io]n|sign-?in|bind)"
    r"[ ](?:failed|failure|error|rejected|denied|refused|attempt|ok|succeeded)"
    r"(?:[ ](?:for|with|by|as|using))?:?[ ][(\[\"']?[\w.@+\-]{1,60}:)"
    r"(?=[^\s]{0,60}[0-9])(?=[^\s]{0,60}[A-Za-z])(?=[^\s]{0,60}(?-i:[A-Z!#$%*+^~&?]))([^\s\"'<>,;()\[\]/:@=]{8,60})"
)
#: your code is 123456, 2FA code 123456
_SAID_CODE = lazy_pattern(
    r"(?i)(\b(?:(?:verification|security|login|sign[\- ]in|one[\- ]time|access|confirmation|activation|authentication"
    r"|2fa|mfa|otp|sms|recovery|reset)[ ](?:pass)?code|(?:bestätigungs|zugangs|sicherheits|freischalt|verifizierungs|anmelde|einmal)code|(?:ihre?|dein)[ ](?:code|tan)|your[ ](?:pass)?code|(?:(?:your|the|ihre|deine)[ ])?pin(?=[ ](?:is|was|for|of|ist|lautet)[ ])|(?:your|the|entered|typed|wrong|invalid|incorrect|bad|new|old|temporary|initial|default|card)[ ]pin|otp|one[\- ]time[ ]password)"  # noqa: E501
    r"(?:[ ](?:for|of)[ ](?:(?:user|card|account)[ ])?(?:ending[ ](?:in[ ])?)?[\w.@\-]{1,60})?(?:[ ](?:is|was|ist|lautet))?:?[ ]|\b(?:use|enter|type|submit)[ ](?:the[ ]|this[ ])?(?:code|pin)[ ])"  # noqa: E501
    r"(?:[0-9]{4,8}|[0-9]{3}[ \-][0-9]{3})(?!\w|[.:][0-9])"
)
#: Votre code de vérification est 123456, Use 123456 to log in
_FOREIGN_CODE = lazy_pattern(
    r"(?i)((?:\bcode de (?:vérification|sécurité|confirmation|connex[a-z]{3}|validation)|\bc[óo]digo de \w{4,16}"
    r"|\bcodice di \w{4,16}|验证码|驗證碼)[ ]?(?:est|es|è|é|:|是|为|為|\uff1a)[ ]?(?::[ ]?)?"
    r"|\b(?:use|enter)[ ](?=[0-9 \-]{4,8}[ ](?:to|as)[ ](?:log|sign|verify|confirm|reset|complete|access|your)))"
    r"(?:[0-9]{4,8}|[0-9]{3}[ \-][0-9]{3})(?![0-9]|[.:][0-9])"
)
#: OTP: 123456, 123456 is your login code
_SHOWN_CODE = lazy_pattern(
    r"(\b(?:OTP|PIN|TOTP|2FA|MFA)(?:[ ]code)?:[ ]?)(?:[0-9]{4,8}|[0-9]{3}[ \-][0-9]{3})(?![\w.:])"
    r"|(\b(?:G-)?)(?:[0-9]{4,8}|[0-9]{3}[ \-][0-9]{3})(?=[ ](?:is|as)[ ]your[ ](?:\w{1,20}[ ]){0,2}?(?:verification|security|login|sign-in|one-time|access"  # noqa: E501
    r"|confirmation|activation|authentication|2FA|OTP|recovery)?[ ]?(?:code|OTP|passcode)\b)"
)
#: password changed from "x" to "y"
_CHANGED = lazy_pattern(
    r"(?i)(\b(?:password|passphrase|passcode|secret|api key|token)[ ](?:was[ ]|has been[ ])?(?:changed[ ]|updated[ ]|set[ ]|rotated[ ])?(?:from|to)[ ])"  # noqa: E501
    r"(?P<first>\"[^\"\n]{1,200}\"|'[^'\n]{1,200}')(?:(?P<middle>[ ]to[ ])(?P<second>\"[^\"\n]{1,200}\"|'[^'\n]{1,200}'))?"  # noqa: E501
)
_PROSE_VERB = lazy_pattern(r" (?:was|is|used|given|entered) [\"']")
_MAX_LINE_LENGTH = 2000


def redact_commands(text: str, lowered: str, *, is_named: bool) -> str:
    """Redact passwords in command lines and in the files that commands read them from.

    `lowered` is `text` in lower case; `is_named`: it holds the name of a secret.
    """
    if _may_have_option(text) and _HAS_COMMAND.search(text):
        text = _redact_options(text)
    if "jdbc:" in text:
        text = _THIN.sub(rf"\1{REDACTED}", text)
    if "login" in text and "password" in text:
        text = _NETRC.sub(rf"\1{REDACTED}", text)
    if "]:" in text:
        text = _MAIL_ACCOUNT.sub(rf"\1{REDACTED}", text)
    if ": PSK " in text or ": EAP " in text or ": XAUTH " in text:
        text = _PSK.sub(rf"\1{REDACTED}", text)
    if " * " in text:
        text = _CHAP.sub(rf"\1{REDACTED}", text)
    if "echo" in text and ("|" in text or "<(" in text):
        text = _SUBSTITUTED.sub(rf"\1{REDACTED}", _PIPED.sub(rf"\1{REDACTED}", text))
    if ":" in text and (":54" in text or ":6432" in text or ":6543" in text or ":*:" in text):
        text = _PGPASS.sub(rf"\1{REDACTED}", text)
    if (
        is_named
        or "sign" in lowered
        or "pin" in lowered
        or "code" in lowered
        or "otp" in lowered
        or "bind" in lowered
        or "credential" in lowered
        or "create_" in lowered
        or "2fa" in lowered
        or "is your" in lowered
        or "ihre tan" in lowered
    ):
        text = _redact_prose(text, lowered)
    if "code d" in lowered or "digo d" in lowered or "codice d" in lowered or "use " in lowered or "enter " in lowered:
        text = _FOREIGN_CODE.sub(rf"\1{REDACTED}", text)
    if "/p" in lowered and "/u" in lowered:
        text = _WINDOWS.sub(rf"\1{REDACTED}", text)
    return _redact_accounts(text, lowered) if ":" in text else text


def _redact_accounts(text: str, lowered: str) -> str:
    """Redact the passwords of accounts, of which a name stands before each."""
    if "credentials " in lowered or "basic auth" in lowered:
        text = _ACCOUNT.sub(_redact_answer, text)
    if " / " in text or " and " in text or " : " in text:
        text = _TWO.sub(_redact_answer, text)
    if "fail" in lowered or "denied" in lowered or "reject" in lowered or "refused" in lowered:
        text = _FAILED.sub(_redact_answer, text)
    return text


def redact_sentences(text: str) -> str:
    """Redact passwords and codes in sentences of other languages that have no word of English in them."""
    if "验证码" in text or "驗證碼" in text:
        text = _FOREIGN_CODE.sub(rf"\1{REDACTED}", text)
    return _ARABIC.sub(rf"\1{REDACTED}", text) if "هي" in text or "هو" in text else text


def _may_have_option(text: str) -> bool:
    if "-" in text and _HAS_OPTION.search(text):
        return True
    if "@" in text and _HAS_ACCOUNT.search(text):
        return True
    for argument in _PLAIN_ARGUMENTS:  # noqa: SIM110 (a generator takes longer than all of it)
        if argument in text:
            return True
    return False


def _redact_prose(text: str, lowered: str) -> str:
    """Redact passwords in sentences and calls with such a word."""
    is_quoted = '"' in text or "'" in text
    if "pass" in lowered and ("user" in lowered or "login" in lowered):
        text = _USER_PASSWORD.sub(_redact_account, text)
    if " for " in lowered or " of " in lowered:
        text = _SAID_FOR.sub(_redact_random, _PROMPT.sub(_redact_answer, text))
    if is_quoted and _PROSE_VERB.search(lowered):
        text = _QUOTED_PROSE.sub(_redact_quoted, text)
    if (
        " is " in lowered
        or " was " in lowered
        or " ist " in lowered
        or " war " in lowered
        or " lautet" in lowered
        or " set to" in lowered
        or " from " in lowered
        or " reset to" in lowered
        or " changed to" in lowered
    ):
        text = _SAID_PASSWORD.sub(rf"\1{REDACTED}", text)
    if "from [redacted] to " in text:
        text = _SAID_CHANGE.sub(rf"\1{REDACTED}", text)
    if " password (" in lowered:
        text = _IN_BRACKETS.sub(rf"\1{REDACTED}", text)
    if "de passe" in lowered:
        text = _FRENCH.sub(rf"\1{REDACTED}", text)
    if (
        "code" in lowered
        or "pin " in lowered
        or "otp" in lowered
        or "time password" in lowered
        or "ihre tan" in lowered
    ):
        text = _SAID_CODE.sub(rf"\1{REDACTED}", text)
    if " your " in lowered or "otp" in lowered or "pin:" in lowered or "2fa" in lowered or "mfa" in lowered:
        text = _SHOWN_CODE.sub(_redact_code, text)
    if is_quoted and (" from " in lowered or " to " in lowered):
        text = _CHANGED.sub(_redact_change, text)
    return text


def _redact_answer(match: re.Match[str]) -> str:
    word = match.group(2).strip(".,;!").lower()
    return match.group() if word in PROSE else match.group(1) + REDACTED


def _redact_random(match: re.Match[str]) -> str:
    word = match.group(2)
    is_password = "pass" in match.group(1).lower() and "/" not in word
    return match.group(1) + REDACTED if is_password or has_random_part(word) else match.group()


def _redact_code(match: re.Match[str]) -> str:
    return (match.group(1) or match.group(2) or "") + REDACTED


def _redact_change(match: re.Match[str]) -> str:
    if match.group("first")[1:-1] == REDACTED:
        return match.group()
    quote = match.group("first")[0]
    first = f"{match.group(1)}{quote}{REDACTED}{quote}"
    return first if match.group("second") is None else f"{first}{match.group('middle')}{quote}{REDACTED}{quote}"


def _redact_account(match: re.Match[str]) -> str:
    """Redact the password of an account; without a digit it is one only where an account is described."""
    word = match.group(2)
    described = match.string[match.end(2) :][:1] in ("'", '"') or "with" in match.group(1) or "poll " in match.string
    return match.group(1) + REDACTED if described or not word.isalpha() else match.group()


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
            word = text[start:stop]
            if word != REDACTED and start >= done and word[0] != "-" and word.lower() not in PROSE:
                out += (text[done:start], REDACTED)
                done = stop
    if not out:
        return text
    out.append(text[done:])
    return "".join(out)
