"""Secrets that a blank, a pipe or an arrow divides from their name: `bind_pw x`, `password|x`, `username bob secret x`.

Such a text may as well be a sentence (`bind_pw missing`), a list of names
(`password|email`) or a heading, so the words on both sides are judged. A whole
line of a name and one word is a line of configuration unless that word says
something about the name; within a sentence the value has to look like one.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from django_otel.base.patterns import lazy_pattern
from django_otel.redaction.keys import (
    LABEL,
    PLAIN,
    PROSE,
    REDACTED,
    SENSITIVE,
    has_random_part,
    is_harmless,
    split_key,
    words,
)

#: (key, loose, query) -> verdict.
Judge = Callable[[str, bool, bool], int]

_QUOTED = r"\"[^\"\n]{1,200}\"|'[^'\n]{1,200}'"
#: The value behind a name: one word, in quotes or not, and the end of the line.
_VALUE = lazy_pattern(rf"""[ \t]*+(?P<value>{_QUOTED}|(?:\{{[A-Z0-9\-]{{3,12}}\}}|[^\s"'|<>()\[\]{{}}])[^\s"'|<>]*+)""")
_REST_OF_LINE = lazy_pattern(r"[ \t\r]*+(?:[#;)][^\n]*+)?(?:\n|\Z)")
#: Prefixes of a name that begins a line.
_LINE_BEGIN = lazy_pattern(r"[ \t>$#:(\-'\"]{0,12}+(?:(?:set|export|setenv|setx|define|name)[ \t]++)?\Z")
_CALL = lazy_pattern(r"[A-Za-z_][\w.]*+\(")
_END_OF_NAME = lazy_pattern(r"(?<=\w)[)\]}=(]")
_NEXT_CELL = lazy_pattern(r"[ \t]*\|[ \t]*([\w ]{1,30})")
#: Lines of configuration of network devices.
_DEVICE = lazy_pattern(
    r"(?im)^[ \t]*+(?:no[ ])?(?:enable(?:[ ]algorithm-type[ ]\S{1,20})?(?:[ ]level[ ][0-9]{1,2})?"
    r"|username[ ]\S{1,60}(?:[ ]privilege[ ][0-9]{1,2})?|neighbor[ ]\S{1,60}|ppp[ ](?:chap|pap)(?:[ ]sent-username[ ]\S{1,60})?"  # noqa: E501
    r"|snmp-server(?:[ ]host[ ]\S{1,60}(?:[ ]version[ ]\S{1,4})?)?|(?:tacacs|radius)(?:-server)?(?:[ ]host[ ]\S{1,60})?"
    r"|crypto[ ](?:isakmp|ikev2)|ip[ ]ospf[ ](?:authentication|message-digest)|line|vty|(?:wlan[ ]security[ ])?wpa|security|set(?:[ ][\w\-.]{1,40}){0,6}?|r[ow]community6?(?=[ ])|trap2?sink[ ]\S{1,60}(?=[ ]))"  # noqa: E501
    r"(?:(?<=community)|(?<=community6)|[ ](?:password|secret|key|community|authentication-key|pre-shared-key|wpa-psk|psk|plain-text-password-value|encrypted-password)(?:[ ](?:ascii|hex|encrypted|[0-9]))?)[ ]"  # noqa: E501
    r"(?P<value>\"[^\"\n]{1,200}\"|\S{3,})(?=[ \t\r]*$|[ ](?:RO|RW|ro|rw|address|default|view|authorization)\b)"
)
_TRAP_HOST = lazy_pattern(
    r"(?im)^[ \t]*+snmp-server[ ]host[ ]\S{1,60}(?:[ ](?:traps|informs))?[ ]version[ ]\S{1,4}[ ](?P<value>[^\s]{3,})[ \t\r]*$"  # noqa: E501
)
_TYPED = lazy_pattern(
    r"(?P<key>(?i:\b(?:password|passwd|secret|key(?:-string)?|wpa-psk(?:[ ](?:ascii|hex))?)))[ ][05-9][ ](?P<value>\$[0-9]\$\S{8,}|[0-9A-Fa-f]{8,}+|(?<=ascii 0 )\S{6,})(?![\w.])"  # noqa: E501
)

_SOME_QUOTE = r"\\{0,4}[\"']"
_QUOTED_VALUE = r"(?P<quote>\\{0,4}[\"'])(?P<value>(?:(?!(?P=quote))[^\n]){1,400})(?=(?P=quote))"
#: Further members of an object.
_MEMBER = (
    rf",\s{{0,8}}{_SOME_QUOTE}(?!input|[Vv]alue|default)\w{{1,30}}{_SOME_QUOTE}\s{{0,4}}:\s{{0,4}}"
    rf"(?:{_SOME_QUOTE}[^\"'\\\n]{{0,300}}{_SOME_QUOTE}|[\w.\-]{{1,60}}|\{{[^{{}}]{{0,200}}\}})"
)
#: {"value": "x", "name": "password"}
_REVERSED = lazy_pattern(
    rf"{_SOME_QUOTE}(?:[Vv]alue|[Ii]nput){_SOME_QUOTE}\s{{0,4}}:\s{{0,4}}{_QUOTED_VALUE}"
    rf"(?=(?P=quote)(?:{_MEMBER}){{0,3}}?\s{{0,4}},\s{{0,8}}{_SOME_QUOTE}(?:[Nn]ame|[Kk]ey|[Ff]ield|param|path|id){_SOME_QUOTE}\s{{0,4}}:\s{{0,4}}"
    rf"{_SOME_QUOTE}(?P<key>[\w.\- ]{{1,80}}){_SOME_QUOTE})"
)
#: {"field": "password", "input": "x"}, {"loc": ("password",), "msg": "...", "input": "x"}
_FIELD = lazy_pattern(
    rf"{_SOME_QUOTE}(?:loc|field|param|path|name|[Kk]ey){_SOME_QUOTE}\s{{0,4}}:\s{{0,4}}[(\[]?(?:{_SOME_QUOTE}[\w.\-]{{1,60}}{_SOME_QUOTE}\s{{0,4}},\s{{0,4}}){{0,4}}"
    rf"{_SOME_QUOTE}(?P<key>[\w.\-]{{1,80}}){_SOME_QUOTE},?\s{{0,4}}[)\]]?(?:{_MEMBER}){{0,6}},\s{{0,8}}"
    rf"{_SOME_QUOTE}(?:input|[Vv]alue|default|rejectedValue|rejected_value|submitted|invalid_value){_SOME_QUOTE}\s{{0,4}}:\s{{0,4}}{_QUOTED_VALUE}"
)

#: name='X-Api-Key' value='x', key: password, value: x
_NAMED_VALUE = lazy_pattern(
    r"(?i)\b(?:name|key|field|header)\s{0,2}[=:]\s{0,2}[\"']?(?P<key>[\w.\-]{1,80})[\"']?,?\s{1,4}(?:value|val|content)\s{0,2}[=:]\s{0,2}"
    rf"(?P<value>b?(?:{_QUOTED})|[^\s\"',;)\]}}]{{1,400}})"
)
#: A part of a form: name="password", an empty line, and the value.
_FORM_PART = lazy_pattern(
    r"\bname=\"(?P<key>[\w.\[\]\-]{1,80})\"(?:\\r)?(?:\r?\n|\\n)(?:Content-Type: [^\n\\]{1,100}(?:\\r)?(?:\r?\n|\\n))?(?:\\r)?(?:\r?\n|\\n)"  # noqa: E501
    r"(?P<value>[^\r\n\\]{1,1000})"
)
#: ApiKey("x"), Secret(value='x'), ClientSecretCredential("tenant", "client", "x")
_TYPED_VALUE = lazy_pattern(
    r"\b(?P<key>(?:[A-Z]\w{0,40})?(?:Secret|SecretStr|SecretBytes|SecretValue|SecretString|Sensitive|Passphrase|Password|ApiKey|APIKey|AuthToken|AccessToken|RefreshToken|KeyCredential|SecretCredential))"
    rf"\((?:(?:value|secret|key|token|password)=|(?:(?:{_QUOTED}),\s{{0,4}}){{1,4}})?(?P<value>{_QUOTED})(?=\s{{0,4}}[,)])"
)

#: password,x1y2z3ab and "password" above it: what rarely divides a name from its value.
_TIGHT = lazy_pattern(
    r"(?i)(?P<key>pass(?:word|wd|phrase)?|pwd)(?:[,+*#\\!%&@(\[{<\"'`]|[ \t]*\r?\n[ \t]*)(?P<value>[A-Za-z0-9!$^]{8,60}+)(?![\w\-.:=/])"  # noqa: E501
)
#: {"password": "x", "confirm": "x"}
_CONFIRMED = lazy_pattern(
    rf"{_SOME_QUOTE}confirm(?:ation)?{_SOME_QUOTE}\s{{0,4}}:\s{{0,4}}(?P<value>\"[^\"\s]{{6,100}}\"|'[^'\s]{{6,100}}')"
)
#: Your temporary password is x
_SAID = lazy_pattern(
    r"(?i)\b(?:(?:new|temporary|initial|default|generated|one-time|current|admin|root)[ ](?:login[ ])?(?:password|passphrase|passcode)"  # noqa: E501
    r"(?:[ ]for[ ](?:user[ ])?[\w.@\-]{1,60})?[ ](?:is|was|will be)(?:[ ]now)?:?"
    r"|(?:entered|typed|tried|submitted|sent)[ ](?:the[ ]|a[ ])?password)[ ](?P<value>[^\s\"'<>\[\]()]{4,60})(?=[.!]?\s*(?:\n|\Z))"  # noqa: E501
)
#: unlocked with 'x'
_USED = lazy_pattern(
    r"(?i)\b(?:unlock|decrypt|encrypt|authenticat|logg|login|bound)[a-z]{0,5}(?:[ ]in)?(?:[ ][\w.\-]{1,30})?"
    r"[ ](?:with|using)[ ](?:key[ ]|pass[a-z]{3,6}[ ])?(?P<value>\"[^\"\s]{6,100}\"|'[^'\s]{6,100}')"
)
#: password entered: x, Passwort gesetzt: x, mot de passe est x, sua senha é x
_TOLD = lazy_pattern(
    r"(?i)\b(?:pass(?:word|wd|phrase|code|wort)|kennwort|mots? de passe|contrase[ñn]a|senha|clave|wachtwoord"
    r"|has[lł]o|l[öo]senord|salasana|adgangskode|пароль|şifre|sifre|jelszó)(?:[ ][^\W\d_]{2,20}){0,2}?"
    r"(?:[ ](?:est|es|è|é|ist|is|jest|är|er|on|это|to|from)[ :]|[ ][^\W\d_]{2,20}:|[ ][(][^\W\d_]{2,20}[)]:)[ ]{0,2}"
    r"(?P<value>[\"'][^\"'\s]{6,60}[\"']|[^\s\"'<>\[\](),;]{6,60})(?=[.!,;]?(?:\s|\Z))"
)
#: {password,<<"x">>} of Erlang, Password REG_SZ x, password ..... x
_OTHERS = lazy_pattern(r"\{(?P<key>[a-z]\w{1,40}),[ ]?(?:<<)?(?P<value>\"[^\"\n]{1,300}\")(?=(?:>>)?\})")
_REGISTRY = lazy_pattern(
    r"(?P<key>\b[\w.\-]{1,60})[ \t]{1,8}REG_(?:EXPAND_|MULTI_)?(?:SZ|BINARY)[ \t]{1,8}(?P<value>[^\s]{1,300})"
)
_LEADERS = lazy_pattern(r"(?P<key>\b[\w\-]{1,60})[ ]?\.{3,80}[ ]?(?P<value>[^\s.][^\s]{5,100})")
_HAS_TYPE = lazy_pattern(r"(?:Secret(?:Str|Bytes|Value|String)?|Sensitive|Passphrase|Password|Key|Token|Credential)\(")

#: Nouns that follow the name of a secret in sentences and in headings.
_NOUNS = words(
    "field fields column columns setting settings variable variables parameter parameters param params argument option "
    "options attribute attributes property properties header headers input form forms hash hashes hashing hasher "
    "hashers validation validator validators policy policies manager management change changes rotation rotations "
    "strength rule rules file files path paths store storage vault name names type types based auth authentication "
    "login logins logout page pages view views url link links email emails mail recovery confirmation confirm update "
    "updates check checks checker generator generation expiry expiration lifetime history prompt match matches do did "
    "doesn't don't didn't isn't wasn't can't will would been being by on with without via like as if when then than so "
    "but because while after before during until since username user users account accounts admin model models class "
    "function method methods module directive entry entries label labels line lines list table id ids uuid number "
    "count size limit policy role roles group groups scope scopes grant grants request requests response responses "
    "endpoint service provider backend middleware mixin helper util utils config configuration default defaults "
    "description data date time created_at string text str varchar char bool boolean int integer bytes optional "
    "active inactive ok true false yes no none null nil first last firstname lastname phone address city country "
    "birthday birthdate language locale status state comment comments title body subject sender host hostname port "
    "server database dbname driver schema version plain plaintext cleartext clear encrypted encryption encoded "
    "masked hidden visible secret secrets token tokens key keys pass passwd password passwords pin otp code codes "
    "cookie cookies session sessions jwt oauth saml ldap sso basic bearer digest sha1 sha256 sha512 md5 bcrypt "
    "argon2 scrypt pbkdf2 pbkdf2_sha256 utf8 utf-8 base64 ascii hex new old current previous next again twice once "
    "now later here there above below all any each every other others same different similar both either neither "
    "longer shorter long short weak strong common entirely numeric provided given supplied specified unset handling "
    "leak leaks dump dumps test tests tester sync syncing lookup reuse rehash prompt prompts value values let "
    "env environment logits configmap pod namespace fixture redis server-side client-side entropy complexity identical known requirements requirement hint hints reminder helper.store store"  # noqa: E501
)
#: Words of a program's output that end like these say what happened.
_SAYS = lazy_pattern(
    r"(?i)[a-z]{2,}(?:ed|ing|tion|tions|ment|able|ible|ly|less|ness|ity)\Z|[a-z]+_[a-z_]+\Z|[a-z]+\(\)?"
)
_PLAIN_NAME = lazy_pattern(r"[A-Z][a-z]+(?:[A-Z][a-z]+)+\Z|(?:https?|file|ftp)://|[./~]|[\w.+\-]+@[\w.\-]+\Z|[A-Z_]+\Z")
_ALGORITHM = lazy_pattern(
    r"(?i)(?:sha|md|base|utf|argon|pbkdf|bcrypt|scrypt|ascii|aes|rsa|oauth|http|html|ipv|rfc|py|v|x|e|id|user|step|test|field|row|line"
    r"|app|key|token|t|part|page|attempt|version)[\-_]?v?[0-9]{1,6}(?:[._\-][0-9a-z]{1,8})*[a-z]{0,2}\Z"
)
_DURATION = lazy_pattern(
    r"[+\-]?[0-9]+(?:\.[0-9]+)?(?:ns|us|µs|ms|s|m|h|d|%|x|k|kb|mb|gb|b|st|nd|rd|th)?\Z", re.IGNORECASE
)
#: Last words of names that hold a password: `bind_pw`, `smtp_pass`, `rootpw`.
_PASSWORDS = words("password passwd pwd pw pass passphrase passcode authtok")
_JOINED = lazy_pattern(r"[a-z]{2,30}(?:pw|pwd|passwd|password|passphrase|authtok)\Z")
#: Passwords of examples, which name something elsewhere.
SAMPLES = words("secret admin password changeme root guest")
_ALONE = words("password passwd pwd pw passphrase passcode")
#: Names of settings next to which `password x` is a setting too.
_NEIGHBOUR = lazy_pattern(
    r"(?i)[ \t]*+(?:user|username|user_name|login|account|host|hostname|server|machine|port|email|database|dbname|db|base|uri|url|binddn"  # noqa: E501
    r"|bind_dn|realm|domain|protocol|proto)[ \t]++\S++[ \t\r]*+\Z"
)


def redact_fields(text: str, lowered: str, judge: Judge) -> str:
    """Return `text` without the secrets of lines for network devices, and of fields whose name is a value itself.

    `lowered` is `text` in lower case.
    """

    def is_named(match: re.Match[str]) -> bool:
        return is_secret_pair(match.group("key"), match.group("value"), judge)

    if ('":' in text or "':" in text) and ("value" in lowered or "input" in lowered):
        text = replace_values(_REVERSED, text, is_named)
        text = replace_values(_FIELD, text, is_named)
    if "value" in lowered or "content" in lowered:
        text = replace_values(_NAMED_VALUE, text, is_named)
    text = _redact_dividers(text, judge, is_named)
    if 'name="' in text and "\n" in text.replace("\\n", "\n"):
        text = replace_values(_FORM_PART, text, is_named)
    if "pass" in lowered or "pwd" in lowered:
        text = replace_values(
            _TIGHT,
            text,
            lambda match: _is_strong(match.group("value")) and not says_something(match.group("value"), judge),
        )
        text = replace_values(_SAID, text, lambda match: not says_something(match.group("value"), judge))
        if "confirm" in lowered:
            text = replace_values(_CONFIRMED, text, lambda match: True)
    if "(" in text and _HAS_TYPE.search(text):
        text = replace_values(_TYPED_VALUE, text, lambda match: True)
    if (
        " password " in lowered
        or "password-value" in lowered
        or " secret " in lowered
        or " key " in lowered
        or "-key " in lowered
        or "key-string" in lowered
        or "community" in lowered
        or "psk " in lowered
    ):
        text = replace_values(_DEVICE, text, lambda match: not says_something(match.group("value"), judge))
        text = replace_values(_TYPED, text, lambda match: True)
    if "snmp-server" in lowered:
        text = replace_values(_TRAP_HOST, text, lambda match: not says_something(match.group("value"), judge))
    return text


def _redact_dividers(text: str, judge: Judge, is_named: Callable[[re.Match[str]], bool]) -> str:
    """Return `text` without the secrets that rare dividers part from their names."""
    if "{" in text and ('"}' in text or '">>' in text):
        text = replace_values(
            _OTHERS, text, lambda match: is_named(match) and not says_something(match.group("value"), judge)
        )
    if " REG_" in text:
        text = replace_values(_REGISTRY, text, is_named)
    if "..." in text:
        text = replace_values(_LEADERS, text, lambda match: is_named(match) and _is_strong(match.group("value")))
    return text


def redact_told(text: str, judge: Judge) -> str:
    """Return `text` without the passwords of sentences, in the languages in which "password" is known."""

    def is_told(match: re.Match[str]) -> bool:
        value = match.group("value").strip("\"'")
        return _is_strong(value) and not says_something(value, judge)

    if " with " in text or " using " in text:
        text = replace_values(_USED, text, is_told)
    return replace_values(_TOLD, text, is_told)


def is_secret_pair(key: str, value: str, judge: Judge) -> bool:
    """Return whether a name is that of a secret, and its value, with or without quotes, may be one."""
    is_named = judge(key.strip(), True, False) not in (PLAIN, LABEL)
    return is_named and not is_harmless(value.strip().strip("\"'"), key, SENSITIVE)


def find_secret(text: str, start: int, end: int, judge: Judge) -> tuple[int, int] | None:
    """Return where the secret behind a name that ends at `end` begins and ends; None when there is none.

    `start` is where the name begins; between them stands nothing but a blank.
    """
    match = _VALUE.match(text, end)
    if match is None or text[end : end + 1] not in (" ", "\t"):
        return None
    value = match.group("value")
    is_last = _REST_OF_LINE.match(text, match.end()) is not None
    if not is_last and value[0] not in "\"'" and not _is_strong(value):
        return None
    key = text[start:end].rstrip("\"'`")
    inner = _inside(match)
    if inner is None or judge(key, True, False) == LABEL:
        return None
    is_line = is_last and _LINE_BEGIN.match(text, text.rfind("\n", 0, start) + 1, start) is not None
    return inner if _is_within(key, match, judge) or (is_line and _is_line(key, match, start, judge)) else None


def find_divided(text: str, key: str, begin: int, judge: Judge, *, is_dash: bool = False) -> tuple[int, int] | None:
    """Return where the secret behind a name and a pipe, an arrow or the like begins and ends; None when there is none.

    `is_dash`: a dash divides them, as it does in sentences.
    """
    match = _VALUE.match(text, begin)
    inner = _inside(match) if match is not None else None
    if (
        match is None
        or inner is None
        or judge(key, True, False) == LABEL
        or says_something(match.group("value"), judge)
    ):
        return None
    is_strong = _is_strong(match.group("value"))
    if not is_strong and (is_dash or not is_password(split_key(key), alone=True)):
        return None
    # `token|type|expires`: a row of names.
    after = _NEXT_CELL.match(text, match.end())
    return inner if is_strong or after is None or not says_something(after.group(1).strip(), judge) else None


def _inside(match: re.Match[str]) -> tuple[int, int] | None:
    """Return where a value stands without its quotes and what follows it; None when it says nothing."""
    value = match.group("value")
    prefix = 1 if value[:2] in ("b'", 'b"') else 0
    quote = value[prefix] if value[prefix] in "\"'" else ""
    bare = value[prefix + 1 : -1] if quote else value.rstrip(",;:.)")
    if not bare or bare.startswith("[redacted") or is_harmless(bare, "password", SENSITIVE):
        return None
    if not quote and match.string.startswith("(", match.end()):
        # A call.
        return None
    begin = match.start("value") + (prefix + 1 if quote else 0)
    return begin, begin + len(bare)


def replace_values(pattern: re.Pattern[str], text: str, is_secret: Callable[[re.Match[str]], bool]) -> str:
    """Redact the groups "value" of `pattern` where `is_secret` says so."""
    out: list[str] = []
    done = pos = 0
    while (match := pattern.search(text, pos)) is not None:
        inner = _inside(match)
        if inner is None or not is_secret(match):
            # The value may be the next name.
            pos = max(match.start("value"), match.start() + 1)
            continue
        out += (text[done : inner[0]], REDACTED)
        done = pos = inner[1]
    if not out:
        return text
    out.append(text[done:])
    return "".join(out)


def says_something(value: str, judge: Judge) -> bool:
    """Return whether a word behind a name says something about it, or is a name, a place or a measurement itself."""
    if _CALL.match(value):
        return True
    bare = _END_OF_NAME.split(value.strip("\"'`").rstrip(",;:.!?)*"), maxsplit=1)[0]
    lowered = bare.lower()
    return (
        lowered in PROSE
        or lowered in _NOUNS
        or _SAYS.match(lowered) is not None
        or _PLAIN_NAME.match(bare) is not None
        or _DURATION.match(bare) is not None
        or _ALGORITHM.match(bare) is not None
        or (judge(bare, True, False) != PLAIN and not bare[-2:].isdigit())
    )


def _is_strong(value: str) -> bool:
    """Return whether a word has a digit and a letter, as passwords have and other words have not."""
    bare = value.rstrip(",;:.!?)*")
    return (
        len(bare) >= 6
        and any(map(str.isdigit, bare))
        and any(map(str.isalpha, bare))
        and not any(character in bare for character in "/\\@=(){}[]<>")
    )


def _is_line(key: str, match: re.Match[str], start: int, judge: Judge) -> bool:
    """Return whether a line of a name and a word is one of configuration."""
    value, parts = match.group("value"), split_key(key)
    if not parts:
        return False
    if is_password(parts) and "." not in key and (value[0] in "\"'" or value.lower() in SAMPLES):
        return True
    if says_something(value, judge):
        return False
    if value[0] in "\"'":
        return True
    last = key.rpartition(".")[2]
    if is_password(parts) and ("." not in key or "-" in last or last.lower() in _ALONE):
        return True
    if parts[-1] in _ALONE and "." not in key:
        return _has_neighbour(match.string, start, match.end())
    return _is_strong(value) and (len(parts) > 1 or parts[-1] not in ("secret", "token", "session", "cookie"))


def is_password(parts: tuple[str, ...], *, alone: bool = False) -> bool:
    """Return whether the words of a key name a password; `alone`: "password" itself does as well."""
    if not parts:
        return False
    if alone and parts[-1] in _PASSWORDS:
        return True
    if len(parts) > 1 and (parts[-1] in _PASSWORDS or "".join(parts[-3:]).endswith(("psk", "sharedkey", "ikekey"))):
        return True
    return _JOINED.match(parts[-1]) is not None


def _has_neighbour(text: str, start: int, stop: int) -> bool:
    """Return whether the line before or after is a setting of a name and a word."""
    line = text.rfind("\n", 0, start)
    before = text[text.rfind("\n", 0, line) + 1 : line] if line > 0 else ""
    end = text.find("\n", stop)
    after = text[end + 1 :].partition("\n")[0] if end >= 0 else ""
    return any(len(near) < 300 and _NEIGHBOUR.match(near) is not None for near in (before, after))


def _is_within(key: str, match: re.Match[str], judge: Judge) -> bool:
    """Return whether the word behind a name in a sentence looks like a password."""
    value, parts = match.group("value"), split_key(key)
    if not parts:
        return False
    is_compound = len(parts) > 1 or _JOINED.match(parts[-1]) is not None
    if not is_compound and parts[-1] not in _ALONE:
        return False
    if value[0] in "\"'":
        return is_compound and not says_something(value, judge)
    if not _is_strong(value) or says_something(value, judge):
        return False
    return is_compound is False or is_password(parts) or has_random_part(value)
