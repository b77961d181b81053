"""Values in database errors (quoted) and in statements (written out)."""

from __future__ import annotations

import re

from django_otel.base.patterns import lazy_pattern
from django_otel.redaction.keys import REDACTED

# Database errors quote the values that offend. Each opening has the end that the server writes after the value;
# without that end (a text that was cut) the rest of the text is the value.
_LINE_END = r"(?=[.)\"']*\s*(?:\n|\Z))"
_DATABASE_VALUES: tuple[tuple[str, re.Pattern[str], re.Pattern[str], str], ...] = (
    (
        ")=(",
        lazy_pattern(r"\b[Kk]ey \([^\n()]{0,400}(?:\([^\n()]{0,100}\)[^\n()]{0,200}){0,4}\)=(?=\()"),
        lazy_pattern(r"\)(?= (?:already exists|is not present|is still referenced|is duplicated|conflicts)|\.?\s*\Z|\.\n)"),  # noqa: E501
        "()",
    ),
    ("Failing row", lazy_pattern(r"Failing row contains (?=\()"), lazy_pattern(r"\)(?=\.?[\"']?\s*(?:\n|\Z))"), "()"),
    ("Duplicate entry", lazy_pattern(r"Duplicate entry (?=')"), lazy_pattern(r"(?<!\A)'(?= for key)"), "''"),
    (
        "nvalid input",
        lazy_pattern(r"[Ii]nvalid input (?:syntax|value) for [^:\n]{1,120}: (?=\")"),
        lazy_pattern(r"(?<!\A)\"(?=\s*(?:\n|\Z))"),
        '""',
    ),
    ("[parameters:", lazy_pattern(r"\[parameters: ?(?=[\[({])"), lazy_pattern(r"[\])}](?=\])"), "()"),
    # MySQL
    (
        "ncorrect ",
        lazy_pattern(r"[Ii]ncorrect [\w ]{1,30} value: (?=')"),
        lazy_pattern(r"(?<!\A)'(?= for (?:column|function)|[\"')]*\s*(?:\n|\Z))"),
        "''",
    ),
    (
        "to use near '",
        lazy_pattern(r"to use near (?=')"),
        lazy_pattern(r"(?<!\A)'(?= at line [0-9])"),
        "''",
    ),
    # PostgreSQL
    (
        "out of range",
        lazy_pattern(r"out of range: (?=\")"),
        lazy_pattern(r"(?<!\A)\"(?=\s*(?:\n|\Z))"),
        '""',
    ),
    ("value \"", lazy_pattern(r"\bvalue (?=\"[^\n]{0,200}?\" is out of range)"), lazy_pattern(r"(?<!\A)\"(?= is out of range)"), '""'),  # noqa: E501
    (
        " literal: ",
        lazy_pattern(r"\bmalformed \w{1,20} literal: (?=\")"),
        lazy_pattern(r"(?<!\A)\"(?=\s*(?:\n|\Z))"),
        '""',
    ),
    (
        "COPY ",
        lazy_pattern(r"\bCOPY [^\n,]{1,200}, line [0-9]{1,12}(?:, column [^\n:]{1,120})?: (?=\")"),
        lazy_pattern(r"(?<!\A)\"(?=\s*(?:\n|\Z))"),
        '""',
    ),
    (
        "Token \"",
        lazy_pattern(r"\bDETAIL: {1,2}Token (?=\")"),
        lazy_pattern(r"(?<!\A)\"(?= is invalid)"),
        '""',
    ),
    (
        "but found \"",
        lazy_pattern(r"\bDETAIL: {1,2}[^\n\"]{1,80}\bbut found (?=\")"),
        lazy_pattern(r"(?<!\A)\"(?=\.?\s*(?:\n|\Z))"),
        '""',
    ),
    (
        "nvalid value \"",
        lazy_pattern(r"\b[Ii]nvalid value (?=\"[^\"\n]{0,400}\" for \")"),
        lazy_pattern(r"(?<!\A)\"(?= for \")"),
        '""',
    ),
    (
        "hexadecimal d",
        lazy_pattern(r"invalid hexadecimal (?:digit|data): (?=\")"),
        lazy_pattern(r"(?<!\A)\"(?=\s*(?:\n|\Z))"),
        '""',
    ),
    # Of addresses that cannot be read: what stands at the place of a port is a part of a password with a mark in it.
    (
        "in connection info",
        lazy_pattern(r"missing \"=\" after (?=\")"),
        lazy_pattern(r"(?<!\A)\"(?= in connection info)"),
        '""',
    ),
    ("value as '", lazy_pattern(r"\bPort could not be cast to integer value as (?=')"), lazy_pattern(rf"(?<!\A)'{_LINE_END}"), "''"),  # noqa: E501
    ("nvalid port", lazy_pattern(r"\b[Ii]nvalid port(?: number)?:? (?=\"(?!:?[0-9.\-]*\"))"), lazy_pattern(r"(?<!\A)\"(?= after host|[.)\"']*\s*(?:\n|\Z))"), '""'),  # noqa: E501
    ("nvalid port", lazy_pattern(r"\b[Ii]nvalid port(?: number)?:? (?='(?!:?[0-9.\-]*'))"), lazy_pattern(rf"(?<!\A)'{_LINE_END}"), "''"),  # noqa: E501
    ("connection option \"port\"", lazy_pattern(r"invalid integer value (?=\"[^\n]{0,200}?\" for connection option \"port\")"), lazy_pattern(r"(?<!\A)\"(?= for connection option)"), '""'),  # noqa: E501
    # SQL Server
    ("onversion of the", lazy_pattern(r"[Cc]onversion of the [\w ]{1,40} value (?=')"), lazy_pattern(r"(?<!\A)'(?= overflowed)"), "''"),  # noqa: E501
    (
        "duplicate key value is",
        lazy_pattern(r"duplicate key value is (?=\()"),
        lazy_pattern(rf"\){_LINE_END}|\)(?=\.[ \[(])"),
        "()",
    ),
    (
        "onverting",
        lazy_pattern(r"[Cc]onverting [^\n']{1,60} value (?=')"),
        lazy_pattern(rf"(?<!\A)'(?= to (?:a column of )?data type|{_LINE_END})"),
        "''",
    ),
    ("ncorrect syntax near", lazy_pattern(r"ncorrect syntax near (?=')"), lazy_pattern(rf"(?<!\A)'(?=\. |{_LINE_END})"), "''"),  # noqa: E501
    ("runcated value:", lazy_pattern(r"[Tt]runcated value: (?=')"), lazy_pattern(rf"(?<!\A)'(?=\. |{_LINE_END})"), "''"),  # noqa: E501
    (
        "character string",
        lazy_pattern(r"after the character string (?=')"),
        lazy_pattern(rf"(?<!\A)'(?=\. |{_LINE_END})"),
        "''",
    ),
)  # fmt: skip
#: Lines in which a server repeats a statement or its parameters.
_SQL_LINE = lazy_pattern(
    r"(\bLINE [0-9]+: |\bJSON data, line [0-9]+: |\b(?:QUERY|STATEMENT): {1,2}|\bSQL statement (?=\")|\bparameters: (?=\$[0-9]|\('|\{')|\bORA-[0-9]{5}\b)([^\n]*)"  # noqa: E501
)
_SQL_LINE_MARKS = ("LINE ", "JSON data", "QUERY: ", "STATEMENT: ", "SQL statement", "parameters: ", "ORA-")
_SQL_LITERAL = lazy_pattern(r"'(?:[^']|'')*+'?|\$(\w*)\$.*?(?:\$\1\$|\Z)")
_NEAR = lazy_pattern(r"(\bat or near )\"(?![A-Z]{2,20}\"|[^\w\s]{1,3}\")[^\"\n]*\"?")

# A value in SQL: a string, or a word that is neither a placeholder nor the name of a table's column.
_VALUE = (
    r"(?!\?|%s|%\(|\$[0-9]|:[A-Za-z_]|\[redacted\])"
    r"(?:[NnEe]?'(?:[^']|'')*+'?|\"(?:[^\"\n]|\"\")*+\"?|\$\$[^$]*+(?:\$\$)?|[^\s'\"();,]++)"
)
_SECRETS_IN_SQL: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "identified",
        lazy_pattern(
            rf"(?i)(\bidentified\s+(?:with\s+[\w\"'`]{{1,60}}\s+)?(?:by|as|using)\s+(?:values\s+|password\s+|random\s+)?)"
            rf"(?!(?:password|the|an?|its|their|this|that|these|ids?|pk|uuid|slug|names?|emails?|urls?|keys?|one|which|means)\b){_VALUE}"
        ),
    ),
    (
        "identified",
        lazy_pattern(rf"(?i)(\bidentified\s+by\s+\S{{1,200}}\s+replace\s+){_VALUE}"),
    ),
    (
        "set password",
        lazy_pattern(rf"(?i)(\bset\s+password\s+from\s+){_VALUE}"),
    ),
    (
        "set password",
        lazy_pattern(rf"(?i)(\bset\s+password\s+from\s+\S{{1,200}}\s+to\s+){_VALUE}"),
    ),
    (
        # UNLOAD ... SECRET_ACCESS_KEY 'x'
        "_",
        lazy_pattern(
            r"(\b[A-Z]{1,20}_(?:[A-Z]{1,20}_){0,3}(?:KEY|TOKEN|PASSWORD|SECRET|PASSPHRASE)\s+)(?!'\[redacted\])'(?:[^'\n]|'')*+'?"
        ),
    ),
    (
        "pragma",
        lazy_pattern(rf"(?i)(\bpragma\s+(?:[\w\"]{{1,60}}\.)?(?:hex|text)?(?:re)?key\s*(?:=\s*|\(\s*)){_VALUE}"),
    ),
    (
        "pass",
        lazy_pattern(
            r"(?i)(\bpass(?:word|phrase)\s+)(?!['\"]\[redacted\])[NnEe]?(?:'(?:[^'\n]|'')*+'?|\"[^\"\n]*+\"?)"
        ),
    ),
    (
        "set password",
        lazy_pattern(
            rf"(?i)(\bset\s+password(?:\s+for\s+\S{{1,200}})?\s*(?:=|\bto\b)\s*)(?!(?:old_)?password\(){_VALUE}"
        ),
    ),
    (
        # With a quoted name or word in its place, the pattern above has it.
        "password",
        lazy_pattern(
            rf"(?i)(\b(?:(?:create|alter)\s+(?:user|role|login)\s[^;\n]{{1,300}}?\bpassword\s+(?:=\s*)?|\bencryption\s+password\s+))"
            rf"(?!(?:expire|history|reuse|require|null|for|from|lock|unlock|never|policy|is|of|must|with)\b|=){_VALUE}"
        ),
    ),
    (
        "set ",
        lazy_pattern(
            r"(?i)((?:\A|[;\"'\n(]|: |\balter\s+(?:database|role|user)\s+\S{1,120}\s)\s{0,20}set\s+(?:session\s+|local\s+|global\s+)?\"?[A-Za-z_]\w{0,60}\.[A-Za-z_][\w.]{0,60}+\"?"  # noqa: E501
            rf"\s*(?:=|\bto\b)\s*)(?!\w{{1,60}}\.\w){_VALUE}"
        ),
    ),
    (
        "set_config",
        lazy_pattern(r"(?i)(\bset_config\s*\(\s*'[^'\n]{1,120}'\s*,\s*)(?!'\[redacted\]')'(?:[^']|'')*+'?"),
    ),
    (
        "secret",
        lazy_pattern(r"(\b(?:SECRET|SESSION_TOKEN)\s+)(?!'\[redacted\]')[NnEe]?'(?:[^'\n]|'')*+'?"),
    ),
    ("attach", lazy_pattern(rf"(?i)(\battach\s[^;\n]{{1,300}}?\bkey\s+){_VALUE}")),
)
#: Functions that are given a secret; all their literals go.
_CRYPTO_CALL = lazy_pattern(
    r"(?i)(\b(?:crypt|(?:aes|des)_(?:en|de)crypt|pgp_(?:sym|pub)_(?:en|de)crypt(?:_bytea)?|hmac|dblink_connect|encryptby\w{1,20})"
    r"\s*\(|\b(?:old_)?password\((?=')|\bdigest\((?=')|\bopen(?:rowset|datasource)\s*\("
    r"|\bsp_(?:addlogin|password|addlinkedsrvlogin|addapprole|setapprole)\s)"
    r"((?:[^()\n]|\([^()\n]{0,200}\)){1,500})"
)
_CRYPTO_MARKS = (
    "crypt", "hmac", "dblink", "password(", " sp_", "digest('", "openrowset", "opendatasource"
)  # fmt: skip
#: Tables elsewhere, with the credentials for them: FROM s3('https://...', 'id', 'x')
_TABLE_CALL = lazy_pattern(
    r"(?i)((?:\b(?:from|join|to|into|function)|=)\s+(?:s3(?:cluster)?|gcs|oss|mysql|postgresql|mongodb|redis|remote(?:secure)?"
    r"|azureblobstorage(?:cluster)?)\s*\((?=[^()]{0,400}',))((?:[^()\n]|\([^()\n]{0,200}\)){1,500})"
)
_HAS_TABLE_CALL = lazy_pattern(r"(?i)(?:s3|cluster|gcs|oss|sql|mongodb|redis|remote|secure|storage)\s?\([^()]{0,400}'")
#: set_password("x"), changeUserPassword("bob", "x")
_PASSWORD_CALL = lazy_pattern(
    r"(?i)((set|change|update|reset|make|check|verify|hash|with|\.)_?[a-z]{0,12}_?(?:password|passwd|pw)\()((?:[^()\n]|\([^()\n]{0,200}\)){1,500})"
)
_QUOTED = lazy_pattern(r"'(?:[^'\\\n]|\\.)*+'|\"(?:[^\"\\\n]|\\.)*+\"")


def redact_database_values(text: str) -> str:
    """Redact the values that PostgreSQL, MySQL, SQL Server and Oracle quote in their errors."""
    has_quote = "'" in text or '"' in text or "(" in text or "[" in text
    for mark, opening, closing, brackets in _DATABASE_VALUES if has_quote else ():
        if mark not in text:
            continue
        out: list[str] = []
        pos = 0
        while (found := opening.search(text, pos)) is not None:
            out += (text[pos : found.end()], brackets[0], REDACTED, brackets[1])
            end = closing.search(text, found.end() + 1)
            if end is None:
                pos = len(text)
                break
            pos = end.end()
        if out:
            out.append(text[pos:])
            text = "".join(out)
    if "existing key (" in text:
        text = _EXISTING.sub(rf"\1({REDACTED})", text)
    for mark in _SQL_LINE_MARKS if has_quote or "$" in text else ():
        if mark in text:
            text = _SQL_LINE.sub(_redact_sql_line, text)
            break
    if "at or near " in text:
        text = _NEAR.sub(rf'\1"{REDACTED}"', text)
    return text


_EXISTING = lazy_pattern(r"(existing key \([^\n()]{1,400}\)=)\([^\n]*\)")


def redact_statement_secrets(text: str, lowered: str) -> str:
    """Redact passwords and keys in SQL that stand under no name: `IDENTIFIED BY x`, `PRAGMA key(x)`, `SET a.b = x`.

    `lowered` is `text` in lower case.
    """
    for mark, pattern in _SECRETS_IN_SQL:
        if mark in lowered:
            text = pattern.sub(_redact_value, text)
    if "(" not in text and " sp_" not in lowered:
        return text
    for mark in _CRYPTO_MARKS:
        if mark in lowered:
            text = _CRYPTO_CALL.sub(_redact_call, text)
            break
    if "password(" in lowered or "passwd(" in lowered or "pw(" in lowered:
        text = _PASSWORD_CALL.sub(_redact_password_call, text)
    if "'," in text and _HAS_TABLE_CALL.search(text):
        text = _TABLE_CALL.sub(_redact_call, text)
    return text


def _redact_value(match: re.Match[str]) -> str:
    opening = match.group(1)
    value = match.group()[len(opening) :]
    quote = value.lstrip("NnEe")[:1]
    quote = quote if quote in "'\"" else ""
    return f"{opening}{quote}{REDACTED}{quote}"


def _redact_call(match: re.Match[str]) -> str:
    return match.group(1) + _SQL_LITERAL.sub(f"'{REDACTED}'", match.group(2))


def _redact_password_call(match: re.Match[str]) -> str:
    """Redact the literals of a call; the first of `change(user, password)` is a name."""
    opening, verb, arguments = match.groups()
    skipped = 1 if verb.lower() in ("change", "update", "reset") else 0

    def redact(literal: re.Match[str]) -> str:
        nonlocal skipped
        skipped -= 1
        text = literal.group()
        # `form.cleaned_data["password"]` is not a literal.
        is_item = arguments[literal.start() - 1 : literal.start()] == "[" and arguments[literal.end() :][:1] == "]"
        return text if skipped >= 0 or len(text) == 2 or is_item else f"{text[0]}{REDACTED}{text[0]}"

    return opening + str(_QUOTED.sub(redact, arguments))


def _redact_sql_line(match: re.Match[str]) -> str:
    return match.group(1) + _SQL_LITERAL.sub(f"'{REDACTED}'", match.group(2))
