"""Texts behind the name of a secret that are not secrets: words of a sentence, types, expressions of programs."""

from __future__ import annotations

import re

from django_otel.base.patterns import lazy_pattern
from django_otel.redaction.bare_pairs import SAMPLES, Judge, is_password, says_something
from django_otel.redaction.keys import PLAIN, PROSE, is_mechanism, is_thing, split_key, words

#: Of `fetch()`: with which requests cookies go.
_FETCH = words("include omit same-origin")
#: An expression of a program: an attribute, a call, an item. What could be a password with brackets in it is none.
_EXPRESSION = lazy_pattern(
    r"(?:self|cls)\.[a-z_]|(?:django_)?(?:settings|config|conf|app_settings)\.[A-Z]{2,}+(?:_[A-Z]{1,20}+){1,6}(?=[\s,;)\]}]|\Z)"
    r"|[A-Za-z_.]{2,60}+\[(?:\"[a-z_\-]{1,40}[0-9]?\"|'[a-z_\-]{1,40}[0-9]?')\](?=[\s,;)\]}]|\Z)|[A-Za-z_]{3,}+(?:\.[A-Za-z_]++)*+\(\)(?=[\s,;.)\]}]|\Z)"
)
_SPACED_EXPRESSION = lazy_pattern(
    r"await\s+[a-z_]|(?:settings|request|response|os|config|self|cls|ctx|context|event|args|kwargs|options|opts|env|environ|process|props|state"
    r"|form|user|obj|instance|params|cfg|conf|app|client|this|req|res|serializer|validated_data)\.[A-Za-z_]++(?:[.\[(,;\s]|\Z)"
    r"|[A-Za-z_]++(?:\.[A-Za-z_]++)++\((?=[^()\n]{0,200}+[()\n])"
    r"|[A-Za-z_]{2,}+\((?:[A-Za-z_][\w.]{0,60}+(?:=[\w.]{1,60}+)?(?:,\s?)?)*+\)"
    r"|[A-Za-z_]\w{0,30}+(?:\.[A-Za-z_]\w{0,30}+){1,4}+\((?:[A-Za-z_][\w.]{0,60}+(?:,\s?)?){0,8}+\)(?=[\s,;.)\]}]|\Z)"
    r"|[A-Za-z_]\w{1,40}+\([A-Za-z_]\w{1,40}+\([\w, .]{0,40}\)\)(?=[\s,;)]|\Z)"
    r"|(?:std::)?env::var\(|\$[A-Za-z_]{1,40}+(?:(?:->|::)\$?[A-Za-z_]{1,40}+(?![0-9])|(?=[;,)\]])"
    r"|\[(?:[0-9]{0,4}|\$?[A-Za-z_]{1,40}|\"[A-Za-z_.\-]{1,40}\"|'[A-Za-z_.\-]{1,40}')\](?![\w$]))"
    r"|[A-Za-z_$][A-Za-z_.$]{1,60}+(?:(?:->|::)[A-Za-z_]{1,40}+){0,4}+\([^\"'()\n0-9]{0,80}\)"
    r"|[A-Za-z_.]{0,60}(?:get|load|read|fetch|lookup|resolve|env|config|secret)[a-z_]{0,30}\((?:\"[a-z][a-z_./\-]{2,80}\"|'[a-z][a-z_./\-]{2,80}')[,)]"
    r"|[A-Z][A-Za-z_.]{1,60}+\((?:\.\.\.|None)(?:,[^\n\"']{0,200})?\)"
    r"|(?:getpass|input|raw_input|prompt|readline|askpass|getenv)\([\"'][^\"'\n]{0,80}[: >][\"']\)"
)
#: Behind a name of an object of JavaScript: another name, or the rules for a field.
_MEMBER = lazy_pattern(
    r"(?:process\.env|import\.meta\.env|req|request|this|self|props|state|config|settings|env|form|options|opts|params|data|user)"
    r"(?:\.[A-Za-z_]{1,40}+){1,4}+(?=[,;\s)}\]]|\Z)"
    r"|[A-Z][A-Za-z]{2,30}+\.[A-Z_]{2,30}+(?:\([0-9]{0,4}\))?(?=[,;\s)}\]]|\Z)"
    r"|[A-Za-z]{1,20}+(?:\.[A-Za-z]{1,30}+\((?:[^()\n\"']{0,60}+|\"[A-Z][^\"\n]{3,80} [^\"\n]{1,80}\"|'[A-Z][^'\n]{3,80} [^'\n]{1,80}')\)){1,6}+"  # noqa: E501
    r"(?=[,;\s)}\]]|\Z)"
)
#: What no expression goes on with: a(b)!12345678
_GLUED = lazy_pattern(r"(?:[^\s\w\"']{1,3}+|(?=[0-9]))(?=[A-Za-z]{0,30}[0-9])[A-Za-z0-9]{8,}")
#: Card(brand=
_THING = lazy_pattern(r"[A-Z][A-Za-z]{2,40}+\([a-z_]{1,40}+=")
_ANNOTATION = lazy_pattern(
    r"[A-Z][A-Za-z]{2,40}+(?:[<\[][\w, .|]{1,60}[>\]])?(?: \| None)? = (?:new |(?:None|null)\b|[A-Za-z_][A-Za-z_.]{1,60}+[(\[])"  # noqa: E501
)
#: A URL, a protocol and its version, or the status of an answer.
_HTTP = lazy_pattern(r"(?i)https?(?:://|/[0-9]|[_\-]?[0-9]{3}\Z|[^\w]{0,3}\Z)")
#: A type as languages write it behind a name.
_TYPE = lazy_pattern(
    r"[&*?]{0,2}+(?:(?:self|parent|str|int|bool|bytes|float|string|String|Bytes|Any|object|dict|list|tuple|SecretStr|Token|Secret|char|void|mixed|array|callable"
    r"|iterable|never|boolean|Boolean|number|unknown|undefined|never|static|varchar|text|uuid|ID|Int|Float)(?:\[\]|[!?]){0,2}+(?=[\s,;)\]}>=|]|\Z)"
    r"|[A-Z][A-Za-z]{2,40}+(?:<[\w, .|<>?&']{1,60}>|\[[A-Za-z, .|\[\]()]{1,60}\]))"
)
_SQL_STRING = lazy_pattern(r"""[NnEeBbXx]?'|[0-9]|"(?!\.)[^"\n]*+"(?!\s*\.)|\Z""")
#: [x for x in xs]
_COMPREHENSION = lazy_pattern(r"[\[({][\w.,()=+ ]{1,80}? for [\w, ]{1,40} in [^\"'\]})\n]{1,120}[\]})]")
#: (state) => state.auth
_FUNCTION = lazy_pattern(r"\([\w\s,.:={}\[\]?|<>]{0,120}\)(?:\s{0,4}:\s{0,4}[\w<>\[\]|. ]{1,60})?\s{0,4}=>")
#: Of a message of Django's checks: shop.Partner.api_key: (fields.E120) ...
_CHECK_ID = lazy_pattern(r"\([a-z_]{1,40}\.[CDEIW][0-9]{3}\)")
#: (user, password)
_NAMES = lazy_pattern(
    r"[(\[]\s{0,4}(?=[^()\[\]\n]{0,80}?\b(?:user|username|login|password|passwd|token|secret|key|api_key)\b)"
    r"[A-Za-z_.]{1,40}+(?:\s{0,4},\s{0,4}[A-Za-z_.]{1,40}+){1,5}+,?\s{0,4}[)\]]"
)
#: The type of a field in a schema: {"type": "string", "minLength": 8}
_SCHEMA = lazy_pattern(
    r"\{(?![^{}]{0,300}\b(?:default|examples?|const|enum|value)\b)[^{}]{0,200}?[\"']?\btype[\"']?\s{0,4}:\s{0,4}[\"']?"
    r"(?:string|String|Number|Boolean|Object|Array|Schema\.|DataTypes\.|Sequelize\.|integer|number|boolean|object|array|http|apiKey|oauth2|openIdConnect|text|keyword|password)\b"
)
#: ['required', 'min:8']
_RULES = lazy_pattern(
    r"\[\s{0,4}(?=[^\[\]\n]{0,120}?[\"'](?:required|nullable|sometimes|string|confirmed|(?:min|max):[0-9]{1,4})[\"'])"
    r"(?:[\"'][a-z_]{2,20}+(?::[\w,.]{1,40}+)?[\"'],?\s{0,4}){1,10}+\]"
)
#: required|min:8
_RULE = r"(?:required|nullable|sometimes|string|confirmed|current_password|(?:min|max|size):[0-9]{1,4})"
_RULES_IN_ROW = lazy_pattern(rf"{_RULE}(?:\|{_RULE}){{1,10}}\Z")
#: {"prompt": 12, "completion": 40}
_NUMBERS = lazy_pattern(
    r"\{\s{0,8}(?:\\{0,4}[\"'][\w.\-]{1,40}+\\{0,4}[\"']\s{0,4}:\s{0,4}[0-9]{1,9}+(?:\.[0-9]{1,9}+)?,?\s{0,8}){1,20}+\}"
)
#: Errors of forms and serializers about a field, not the field's value: a sentence of three words or of two known ones.
_SHORT_ERROR = r"(?:Bad|Expired|Incorrect|Invalid|Missing|Not|Required|Too|Unknown|Wrong) [a-z]{2,20}[.!]"
_FORM_ERRORS = lazy_pattern(
    r"""\[(?:\s{0,8}(?:ErrorDetail\(string=|ValidationError\(\[?)?"""
    rf"""(?:"(?:{_SHORT_ERROR}|[A-Z][a-z]{{1,20}}(?: [A-Za-z'\-]{{1,20}}){{2}}[ .!?][^"\n]{{0,400}}(?<=[.!?]))\""""
    rf"""|'(?:{_SHORT_ERROR}|[A-Z][a-z]{{1,20}}(?: [A-Za-z\-]{{1,20}}){{2}}[ .!?][^'\n]{{0,400}}(?<=[.!?]))')"""
    r"""(?:, code=['"]\w{1,40}['"])?\]?\)?,?){1,8}\s{0,8}\]"""
)
#: Errors of serializers about a field.
_SENTENCE = lazy_pattern(
    r"(?:This (?:field|password|token|value|code|key|link) |(?:The two|Ensure (?:this|that)|Not a|Must be|Unable to) "
    r"|(?:Please e|E)nter (?:a|the|your) |Your [a-z]{2,20} (?:has|is|must|can't|can) |Invalid (?=[a-z]{2,20}[ .]))"
    r"[A-Za-z0-9'\-]{1,20}(?: [A-Za-z0-9'\-]{1,20}){0,20}[.!]\Z"
)
_CONDITION = lazy_pattern(r"\b(?:if|elif|while|assert|and|or|not|return) [\w.]{1,80}\s?[!=]=\s?\Z")
#: Code that reads a secret from the environment names a variable, not the secret.
_ENVIRONMENT = lazy_pattern(
    r"(?:[A-Za-z_]\w{0,30}\.){0,3}(?:env|environ|getenv|getEnv|config|secrets?|get)(?:\.\w{1,20})?[(\[][\"'][A-Z][A-Z0-9_]{2,60}[\"']"
)
#: if not check(password): raise Denied
_STATEMENTS = words("raise return pass continue break yield assert del")
_DECLARED = lazy_pattern(
    r"\b(?:string|bytes|bool|float|double|u?int(?:32|64)|s?fixed(?:32|64)|[A-Z][A-Za-z.]{2,40})[ ]\Z"
)
#: tokens: prompt=120
_MEASURED = lazy_pattern(r"[a-z_]{2,20}=[0-9]{1,9}\Z")
_FIRST_WORD = lazy_pattern(
    r"([a-z]{2,20}+(?:_[a-z]{2,20}+){0,3}+)(?:[ ]+([a-z]{1,20}+)(?![\w=:])|[ \t\r.,;!]*+(?:\n|\Z))"
)
_FIRST_WORDS = lazy_pattern(r"([A-Za-z]{2,20}+)[ ]([a-z]{1,20}+)(?![\w=:])")
_LINKS = words("to on from with by as at in into for of has had have been was is are not and or but")
#: Kennwort: mindestens acht Zeichen
_FOREIGN = words(
    "passwort kennwort senha contraseña contrasena passe wachtwoord hasło haslo heslo lösenord salasana adgangskode "
    "пароль şifre sifre jelszó sandi"
)
_FOREIGN_SENTENCE = lazy_pattern(
    r"[^\W\d_]{2,20}+(?:[ ](?:[^\W\d_]{1,20}+|[0-9]{1,3}(?=[ ]))){2,20}+[.!?]?[ \t\r]*+(?:\n|\Z)"
)
_COUNT = lazy_pattern(r"[0-9]{1,4} [A-Za-z]{2,20}\b[^=\n]*+(?:\n|\Z)")
#: --token TOKEN
_METAVAR = lazy_pattern(r"[A-Z][A-Z_]{2,40}+(?=[\s\]),;|]|\Z)")
#: Behind the quote that ends a prompt.
_PROMPT_END = lazy_pattern(r"[ ]?[A-Z_]{2,40}(?:[\s;)]|\Z)|\s{0,2}[);]|\Z")
_PROMPT_LENGTH = 80


def is_no_value(text: str, key: str, begin: int, word: str, separator: str, judge: Judge, *, is_closed: bool) -> bool:
    """Return whether the word at `begin`, behind a key and `separator`, is prose or a program's, and no secret.

    `is_closed`: a quote or a bracket stands behind the key.
    """
    lowered = word.lower()
    if separator.endswith(": ") and _is_said(text, key, begin, word, separator, judge, is_closed=is_closed):
        return True
    if _ENVIRONMENT.match(text, begin) or lowered in PROSE or _RULES_IN_ROW.match(lowered):
        return True
    if separator[:1] == " " and separator.strip() in ("==", "!=", "===") and word.isalpha() and word.islower():
        # Two names are compared.
        return True
    if is_mechanism(lowered, key):
        return True
    if lowered in _FETCH and key.lower() == "credentials":
        return True
    if word.isalpha() and is_thing(key) and says_something(word, judge):
        # A session that is "new", a card that is "declined".
        return True
    if separator == ":" and key.lower() == "session" and word.isdigit() and len(word) < 7:
        # session:12, the key of a cache
        return True
    if separator.strip() in ("!=", "==") and _CONDITION.search(text, max(0, begin - 120), begin):
        return True
    if separator.strip("\"' ") == "=>" and word.isalpha() and says_something(word, judge):
        # password => hash
        return True
    if is_closed and not separator.rstrip().endswith((":", "=>")):
        return False
    if is_thing(key) and _THING.match(text, begin):
        return True
    # "password=password", " = get(...)", "=self.token": a line of source outside a stack.
    return (
        (not is_closed and lowered == key.lower().rpartition(".")[2])
        or (word.isdigit() and _is_field_number(text, begin - len(separator) - len(key), begin + len(word)))
        or _is_expression(text, begin, separator)
    )


def _is_said(text: str, key: str, begin: int, word: str, separator: str, judge: Judge, *, is_closed: bool) -> bool:
    """Return whether what stands behind "password: " is part of a sentence, an address, a type or a count."""
    lowered = word.lower()
    if separator[0] == ")" and word in _STATEMENTS:
        return True
    if lowered in PROSE or _HTTP.match(word) is not None or _TYPE.match(text, begin) is not None:
        return True
    if (len(word) < 3 and word.isdigit()) or _MEASURED.match(word):
        return True
    if key.lower() == "token" and len(word) < 6 and word.isalpha() and word.isupper():
        # Of a parser: EOF.
        return True
    if not is_closed and key.lower() in _FOREIGN and _FOREIGN_SENTENCE.match(text, begin):
        return True
    found = None if is_closed else _FIRST_WORD.match(text, begin)
    if found is None and "." in key and (found := _FIRST_WORDS.match(text, begin)) is not None:
        # aws_secret.db: Refreshing state
        return says_something(found.group(1), judge)
    if found is None or not says_something(found.group(1), judge):
        return False
    if found.group(2) is None and (key.isupper() or "-" in key):
        # A header or a variable: its value is one word.
        return False
    if is_password(split_key(key), alone=True):
        return found.group(2) is not None and found.group(1) not in SAMPLES
    return True


def _is_field_number(text: str, start: int, end: int) -> bool:
    """Return whether a declaration of protobuf, `string password = 2;`, has its name at `start` and ends at `end`."""
    return text[end : end + 1] in (";", " ") and _DECLARED.search(text, max(0, start - 60), start) is not None


def is_field_error(value: str) -> bool:
    """Return whether a text in quotes is what a form or a serializer says of a field."""
    return value[-1:] in (".", "!") and _SENTENCE.match(value) is not None


def is_line_of_prose(line: str, judge: Judge) -> bool:
    """Return whether a line behind "authorization: " or "cookie: " is a sentence."""
    if line.rstrip(".,;!").lower() in PROSE or _COUNT.match(line) is not None:
        return True
    found = _FIRST_WORDS.match(line)
    if found is None:
        return False
    first, second = found.group(1).lower(), found.group(2)
    is_link = second in PROSE or second in _LINKS or says_something(second, judge)
    return is_link and (first in PROSE or (says_something(first, judge) and judge(first, True, False) == PLAIN))


def is_no_secret_list(text: str, pos: int, key: str) -> bool:
    """Return whether what stands in brackets at `pos` is an expression, or what a form or a schema says of a field."""
    if text[pos : pos + 1] not in ("[", "(", "{"):
        return False
    if (
        _CHECK_ID.match(text, pos)
        or _FUNCTION.match(text, pos)
        or _COMPREHENSION.match(text, pos)
        or _NAMES.match(text, pos)
        or _SCHEMA.match(text, pos)
        or _RULES.match(text, pos)
    ):
        return True
    if key.lower().endswith("tokens") and _NUMBERS.match(text, pos):
        return True
    found = _FORM_ERRORS.match(text, pos)
    return found is not None and found.group().count(" ") > 0


def _is_expression(text: str, pos: int, separator: str) -> bool:
    """Return whether a program's expression stands at `pos`, behind a name and `separator`."""
    if "=" not in separator:
        if separator != ": ":
            return False
        return _ANNOTATION.match(text, pos) is not None or _is_whole(_MEMBER.match(text, pos))
    return _is_whole(_EXPRESSION.match(text, pos)) or (
        separator != "=" and _is_whole(_SPACED_EXPRESSION.match(text, pos))
    )


def _is_whole(expression: re.Match[str] | None) -> bool:
    """Return whether there is an expression, without the rest of a password behind it."""
    return expression is not None and _GLUED.match(expression.string, expression.end()) is None


def is_no_literal(text: str, pos: int, separator: str) -> bool:
    """Return whether a pair in a text with SQL is one of names and placeholders: only literals are secrets there."""
    if separator.rstrip().endswith(","):
        return True
    if text.startswith(":", pos):
        return True
    is_sql = separator != "=" and "=" in separator
    return is_sql and _SQL_STRING.match(text, pos) is None


def is_metavar(text: str, key: str, begin: int) -> bool:
    """Return whether the name of an option's value follows, as in the help of a program: --api-key API_KEY."""
    found = _METAVAR.match(text, begin) if key.startswith("-") else None
    return found is not None and key.upper().replace("-", "_").endswith("_" + found.group())


def is_prompt(text: str, separator: str, begin: int) -> bool:
    """Return whether a string ends behind the name: read -p "Password: " NAME."""
    quote = text[begin : begin + 1]
    if separator.strip(" ") != ":" or quote not in ('"', "'") or not _PROMPT_END.match(text, begin + 1):
        return False
    start = max(0, begin - _PROMPT_LENGTH)
    line = text.rfind("\n", start, begin) + 1
    return text.count(quote, max(line, start), begin) % 2 == 1
