"""SQL text without any literal, for `db.query.text`, the span's name and the metric's operation.

A tokenizer, not a parser: it has to know for certain where literals begin and
end, and nothing else. Where a dialect or a server mode leaves that open, it
stops: the rest of the statement is dropped instead of guessed. So

- a string, comment or quoted name that does not end, takes the rest with it;
- a backslash before a quote stops PostgreSQL and MySQL texts, because
  `standard_conforming_strings` and `NO_BACKSLASH_ESCAPES` decide on the server
  whether that quote is the last one (`E'..'` strings are certain, and kept);
- a dialect unknown to us stops at the first string;
- SQLite takes `"x"` for a string when no column has that name, and we do not
  know the columns: `"x"` is a name where it is qualified (`"t"."x"`) or where
  the grammar wants a name (after FROM, AS, SET, in a column list), else `?`;
- SQL longer than `max_length` is cut before it is read, and what the cut left
  of a literal is a string that does not end.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from django_otel.base import guard
from django_otel.base.frozen import record
from django_otel.base.patterns import lazy_pattern

#: Characters of a statement that are read; also the default bound of a span attribute (`TRACES.LIMITS`).
MAX_LENGTH = 4096
#: Statements remembered. Their keys are at most `MAX_LENGTH` characters, so this is some 10 MB at worst.
REMEMBERED = 1000
#: `db.operation.name` of a statement whose first word is not a known SQL command.
OTHER = "OTHER"
_MAX_TABLE_LENGTH = 128


@record
class Statement:
    """The exportable facts of a statement.

    `text` has no literal. `operation` is one of `OPERATIONS` or `OTHER`, so it
    may become a label. `table` is the first table named (of a CALL the procedure), or None. `summary` is
    `{operation} {table}`, the name of the span.
    """

    text: str
    operation: str
    table: str | None
    summary: str


UNREADABLE = Statement("", OTHER, None, OTHER)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


OPERATIONS = _words(
    "ABORT ALTER ANALYZE ATTACH BEGIN CALL CHECKPOINT CLOSE CLUSTER COMMENT COMMIT COPY CREATE DEALLOCATE DECLARE "
    "DELETE DESCRIBE DETACH DISCARD DO DROP END EXEC EXECUTE EXPLAIN FETCH FLUSH GRANT INSERT KILL LISTEN LOAD LOCK "
    "MERGE MOVE NOTIFY OPTIMIZE PRAGMA PREPARE REFRESH REINDEX RELEASE RENAME REPLACE RESET REVOKE ROLLBACK SAVEPOINT "
    "SELECT SET SHOW START TABLE TRUNCATE UNLISTEN UNLOCK UPDATE UPSERT USE VACUUM VALUES"
)
#: Commands that may follow the common table expressions of a WITH.
_MAIN_OPERATIONS = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE", "VALUES", "TABLE"})
_DDL = frozenset({"CREATE", "ALTER", "DROP", "COMMENT", "REINDEX", "RENAME", "TRUNCATE", "LOCK"})
#: Savepoints are named afresh each time; their names would make every text unique.
_SAVEPOINTS = frozenset({"SAVEPOINT", "RELEASE", "ROLLBACK"})
_SAVEPOINT_WORDS = _SAVEPOINTS | {"TO", "WORK", "TRANSACTION"}

_TABLE_FOLLOWS = frozenset({"FROM", "JOIN", "INTO", "UPDATE"})
#: The target of CALL and EXEC is a procedure, that of COPY a table or a query in brackets.
_TARGET_FOLLOWS = frozenset({"TABLE", "TRUNCATE", "CALL", "EXEC", "COPY"})
#: Words between those and the table: `DELETE FROM ONLY t`, `CREATE TABLE IF NOT EXISTS t`, `UPDATE OR IGNORE t`.
_NOISE = _words(
    "ONLY LATERAL TABLE IF NOT EXISTS OR IGNORE REPLACE ROLLBACK ABORT FAIL LOW_PRIORITY HIGH_PRIORITY QUICK DELAYED "
    "CONCURRENTLY BINARY"
)
#: Words after which a sign belongs to the number, not to a difference.
_NO_OPERAND = _words(
    "SELECT DISTINCT ALL WHERE AND OR NOT IN LIKE BETWEEN THEN ELSE WHEN CASE BY LIMIT OFFSET VALUES SET RETURN "
    "HAVING ON DEFAULT RETURNING INTERVAL TOP IS"
)
#: SQLite: a quoted name, never a string, follows these.
_NAME_FOLLOWS = _words(
    "FROM JOIN INTO UPDATE AS SET WITH RECURSIVE COLLATE TABLE INDEX VIEW TRIGGER REFERENCES CONSTRAINT COLUMN TO "
    "RENAME ADD DROP"
)
#: SQLite: the parentheses after these hold a list of columns.
_COLUMNS_FOLLOW = frozenset({"INTO", "CONFLICT", "USING"})
_COLUMNS_FOLLOW_IN_DDL = frozenset({"TABLE", "REFERENCES", "KEY", "UNIQUE"})
#: Words that end a list of tables or of assignments.
_CLAUSES = frozenset({"FROM", "WHERE", "ON", "GROUP", "ORDER", "HAVING", "WINDOW", "LIMIT", "RETURNING"})
#: Objects of a CREATE, ALTER or DROP.
_OBJECTS = frozenset({"TABLE", "INDEX", "VIEW", "TRIGGER"})

_SPACE = r"(?P<space>[\s\x00-\x1f\x7f]++)"
# A letter directly before a quote is left to the literal: 1q'[..]' is a number and an Oracle string.
_NUMBER = r"(?P<number>(?:[0-9]|\.[0-9])(?:[eE][+-][0-9](?!')|[A-Za-z0-9_.](?!'))*+)"
_WORD = r"(?P<word>(?:[A-Za-z_]|[^\x00-\x7f])(?:[A-Za-z0-9_$]|[^\x00-\x7f])*+)"
_OTHER_CHARACTER = r"(?P<op>.)"
_CERTAIN_STRING = r"'(?:[^']++|'')*+'"
#: No match when a backslash leaves open whether a quote ends the string.
_DOUBTFUL_STRING = r"'(?:[^'\\]++|''|\\\\|\\(?!['\\]))*+'"
_BLOCK_COMMENT = r"/\*(?:[^*]++|\*(?!/))*+\*/"
_FORMAT_PLACEHOLDER = r"%(?:\([\w .-]*+\))?[sbt](?![A-Za-z0-9_])|\?"


def _compile(
    *,
    comment: str,
    string: str,
    name: str,
    stop: str,
    placeholder: str = _FORMAT_PLACEHOLDER,
    special: str = r"(?!)",
    number: str = _NUMBER,
) -> re.Pattern[str]:
    # Every repetition is possessive and every alternative begins with another character or
    # fails at once, so that reading is linear in the length, whatever the text.
    return lazy_pattern(
        "|".join(
            (
                _SPACE,
                f"(?P<comment>{comment})",
                f"(?P<special>{special})",
                f"(?P<string>{string})",
                f"(?P<name>{name})",
                f"(?P<stop>{stop})",
                f"(?P<placeholder>{placeholder})",
                number,
                _WORD,
                _OTHER_CHARACTER,
            )
        ),
        re.DOTALL,
    )


@record
class _Dialect:
    tokens: re.Pattern[str]
    #: Whether "x" may be a string as well as a name.
    doubtful_names: bool = False


_DOLLAR_TAG = r"\$(?:(?:[A-Za-z_]|[^\x00-\x7f])(?:[A-Za-z0-9_]|[^\x00-\x7f])*+)?\$"
_DOUBLE_QUOTED = r'"(?:[^"]++|"")*+"'
_BACKTICKED = r"`(?:[^`]++|``)*+`"

_POSTGRESQL = _Dialect(
    _compile(
        comment=r"--[^\r\n]*+",
        special=rf"/\*|{_DOLLAR_TAG}",
        string=rf"[Ee]'(?:[^'\\]++|''|\\.)*+'|(?:[NnXxBb]|[Uu]&)?{_DOUBTFUL_STRING}",
        name=rf"(?:[Uu]&)?{_DOUBLE_QUOTED}",
        stop=r"(?:[EeNnXxBb]|[Uu]&)?'|(?:[Uu]&)?\"",
        placeholder=rf"{_FORMAT_PLACEHOLDER}|\$[0-9]++",
    )
)
_MYSQL = _Dialect(
    _compile(
        # Two hyphens begin a comment only before white space; what stands in /*! .. */ is executed.
        comment=rf"#[^\n]*+|--(?:(?=[\x00-\x20])[^\n]*+|\Z)|(?!/\*M?!){_BLOCK_COMMENT}",
        string=rf'[NnXxBb]?{_DOUBTFUL_STRING}|"(?:[^"\\]++|""|\\\\|\\(?!["\\]))*+"',
        name=_BACKTICKED,
        # MySQL 9 quotes the bodies of functions with dollars.
        stop=rf"[NnXxBb]?'|[\"`]|/\*|{_DOLLAR_TAG}",
    )
)
_SQLITE = _Dialect(
    _compile(
        comment=rf"--[^\n]*+|{_BLOCK_COMMENT}",
        string=rf"[Xx]?{_CERTAIN_STRING}",
        name=rf"{_DOUBLE_QUOTED}|{_BACKTICKED}|\[[^\]]*+\]",
        stop=r"[Xx]?'|[\"`\[]|/\*",
        placeholder=r"%(?:\([\w .-]*+\))?s(?![A-Za-z0-9_])|\?[0-9]*+|[:@$][A-Za-z0-9_]++",
    ),
    doubtful_names=True,
)
_ORACLE = _Dialect(
    _compile(
        comment=rf"--[^\n]*+|{_BLOCK_COMMENT}",
        special=r"[Nn]?[Qq]'[^\s]",
        string=rf"[Nn]?{_CERTAIN_STRING}",
        name=r'"[^"]*+"',
        stop=r"[NnQq]{0,2}'|\"|/\*",
        placeholder=rf"{_FORMAT_PLACEHOLDER}|:[A-Za-z0-9_]++",
    )
)
_SQL_SERVER = _Dialect(
    _compile(
        # Comments nest, as in PostgreSQL.
        comment=r"--[^\n]*+",
        special=r"/\*",
        # A double-quoted text is a name or a string as QUOTED_IDENTIFIER says; Django quotes with brackets.
        string=rf"[Nn]?{_CERTAIN_STRING}|{_DOUBLE_QUOTED}",
        name=r"\[(?:[^\]]++|\]\])*+\]",
        stop=r"[Nn]?'|[\"\[]",
        # $12.50 is an amount of money.
        number=_NUMBER.replace("(?:[0-9]|", r"(?:\$?[0-9]|", 1),
    )
)
_UNKNOWN = _Dialect(
    _compile(
        comment=r"--(?=[\x00-\x20])[^\r\n]*+(?=\r?\n|\Z)|/\*(?![!M])(?:[^*/]++|\*(?!/)|/(?!\*))*+\*/",
        string=r"(?!)",
        name=r'"[^"\\]*+"(?!")|`[^`\\]*+`(?!`)|\[[A-Za-z_ ]++\]',
        stop=rf"['\"`\\#]|--|/\*|{_DOLLAR_TAG}",
        placeholder=rf"{_FORMAT_PLACEHOLDER}|\$[0-9]++|:[A-Za-z0-9_]++",
    ),
    doubtful_names=True,
)
_DIALECTS: dict[str, _Dialect] = {
    "postgresql": _POSTGRESQL,
    "cockroachdb": _POSTGRESQL,
    "redshift": _POSTGRESQL,
    "mysql": _MYSQL,
    "sqlite": _SQLITE,
    "oracle": _ORACLE,
    "microsoft": _SQL_SERVER,
    "mssql": _SQL_SERVER,
}

_ORACLE_CLOSING = {"[": "]", "{": "}", "(": ")", "<": ">"}
_COMMENT_BOUNDS = lazy_pattern(r"/\*|\*/")
_QUALIFIES = lazy_pattern(r"[\s\x00-\x1f]*+\.(?![0-9])")
_ASSIGNS = lazy_pattern(r"[\s\x00-\x1f]*+=")
_CONTROL_CHARACTERS = lazy_pattern(r"[\x00-\x1f\x7f]")
_UNREADABLE_CHARACTERS = lazy_pattern(r"[\s\x00-\x1f\x7f]+")

_VALUE = r"(?:\?[0-9]*+|%(?:\([\w .-]*+\))?[sbt]|[$:@]\w++|NULL|TRUE|FALSE)(?:::\w++(?:\[\])?)?"
_ROW = r"\((?:[^()]++|\([^()]*+\))*+\)"
#: Run on texts without literals. A list or row that the cut left open counts as closed.
_LISTS = lazy_pattern(
    rf"\b(?P<list>(?:IN|ARRAY) ?[(\[] ?{_VALUE})(?: ?, ?{_VALUE})++ ?,?(?= ?[)\]]|\Z)"
    rf"|\b(?P<rows>(?:VALUES|IN ?\() ?{_ROW})(?: ?, ?{_ROW})*+ ?,? ?(?:(?:\([^()]*+(?:\([^()]*+)?)?\Z|(?<=\)))",
    re.IGNORECASE,
)

# Some commands take a secret as a bare word, or as what other commands call a quoted name.
_BARE = (
    r"(?!\?|%s|%\(|\$[0-9]|[:@]\w|PASSWORD\b|DEFAULT\b|EXTERNALLY\b)"
    r"""(?:"(?:[^"]|"")*+"|`(?:[^`]|``)*+`|[^\s(),;]++)"""
)
_BARE_SECRETS = lazy_pattern(
    rf"(\bIDENTIFIED (?:WITH \S{{1,80}} )?(?:BY|AS|USING) (?:VALUES |PASSWORD )?"
    rf"|\bPRAGMA (?:\S{{1,80}}\.)?(?:hex|text)?(?:re)?key ?(?:= ?|\( ?)"
    rf"|\bSET PASSWORD(?: FOR \S{{1,200}})? ?(?:=|TO\b) ?"
    rf"|\b(?:CREATE|ALTER) (?:USER|ROLE|LOGIN) [^;]{{1,300}}?\bPASSWORD (?:= ?)?"
    rf"(?!=|(?:EXPIRE|HISTORY|REUSE|REQUIRE|NULL|LOCK|UNLOCK|NEVER|POLICY)\b)|\bENCRYPTION PASSWORD "
    rf"|\bATTACH .{{1,300}}? KEY ){_BARE}",
    re.IGNORECASE,
)
#: A parameter of an extension or application, `SET app.user = word`, may hold anything.
_BARE_PARAMETER = lazy_pattern(
    rf"(\bSET (?:SESSION |LOCAL |GLOBAL )?[\w\"`]{{1,80}}(?:\.[\w\"`]{{1,80}})+ ?(?:=|TO\b) ?){_BARE}(?: ?, ?{_BARE})*+",  # noqa: E501
    re.IGNORECASE,
)


def parameterise(sql: object, vendor: str, max_length: int = MAX_LENGTH) -> Statement:
    """Return `sql` without literals, with its operation and first table.

    `sql` is what `cursor.execute` takes: str, bytes, or psycopg's composed SQL.
    `vendor` is Django's `connection.vendor`; of an unknown one less text is
    kept. Placeholders, names and keywords stay; comments go; `IN` lists and
    rows of `VALUES` become one.

    Units: `max_length` is characters of the SQL that are read, the rest is
        dropped and marked with "...".
    Errors: none; SQL that cannot be read gives `UNREADABLE`.
    Source: OpenTelemetry semantic conventions, "Sanitization of db.query.text"
        and "Generating a summary of the query".
    """
    if type(sql) is not str:
        try:
            sql = _text_of(sql, max_length)
        except Exception as error:
            guard.pass_on(error)
            # It is a driver's object in a state we do not know; the driver will say what is wrong with it.
            return UNREADABLE
    if len(sql) > max_length:
        return _remembered(sql[:max_length], vendor, True)
    return _remembered(sql, vendor, False)


def read_tokens(text: str, vendor: str) -> Iterator[tuple[str, str]]:
    """Yield the tokens of a statement as (kind, text).

    Kinds: "space", "comment", "word", "name" (quoted), "number", "string", "placeholder", "op" (one character),
    "special" (the beginning of a comment or a dollar-quoted string) and "stop" (where reading is uncertain), which end
    it.
    """
    match = _DIALECTS.get(vendor, _UNKNOWN).tokens.match
    position = 0
    while position < len(text):
        token = match(text, position)
        assert token is not None  # the last alternative takes any character
        position = token.end()
        kind = token.lastgroup or "op"
        yield kind, token.group()
        if kind in ("special", "stop"):
            return


def _text_of(sql: object, max_length: int) -> str:
    if isinstance(sql, str):
        # A subclass (SafeString) may bring its own hash or slices; a join gives the plain text.
        return "".join(str.__getitem__(sql, slice(max_length + 1)))
    if isinstance(sql, bytes | bytearray | memoryview):
        return bytes(sql[: max_length + 1]).decode("utf-8", "replace")
    return _compose(sql)


def _compose(part: object) -> str:
    """The text of psycopg's or psycopg2's composed SQL, with literals as `?`; needs no connection, unlike theirs."""
    if isinstance(part, list | tuple) or hasattr(part, "__iter__"):
        return "".join(_compose(item) for item in part)
    if type(part).__name__ == "Literal":
        return "?"
    strings = getattr(part, "strings", None)
    if isinstance(strings, tuple):
        return ".".join('"' + name.replace('"', '""') + '"' for name in strings)
    return str(part.as_string(None))  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=REMEMBERED)
def _remembered(sql: str, vendor: str, is_cut: bool) -> Statement:
    reader = _Reader(sql, _DIALECTS.get(vendor, _UNKNOWN))
    reader.read()
    text = _LISTS.sub(lambda found: found["list"] or found["rows"], "".join(reader.out))
    text = _BARE_SECRETS.sub(r"\1?", text)
    if reader.operation in {"SET", "ALTER"}:
        text = _BARE_PARAMETER.sub(r"\1?", text)
    if is_cut:
        text += " ..."
    operation = reader.operation if reader.operation in OPERATIONS else OTHER
    table = _printable(_UNREADABLE_CHARACTERS.sub(" ", reader.table)[:_MAX_TABLE_LENGTH]) or None
    return Statement(_printable(text), operation, table, f"{operation} {table}" if table else operation)


def _printable(text: str) -> str:
    # Quoted names may hold anything; half a surrogate pair cannot be encoded by any exporter.
    text = _CONTROL_CHARACTERS.sub(" ", text)
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


class _Level:
    """State at one depth of parentheses."""

    __slots__ = ("clause", "holds_columns", "is_query")

    def __init__(self, *, is_query: bool = False, holds_columns: bool = False) -> None:
        #: FROM, SET or whatever command word came last.
        self.clause = ""
        #: EXTRACT(YEAR FROM x) has a FROM without being a query.
        self.is_query = is_query
        self.holds_columns = holds_columns


class _Reader:
    """Reads one statement. `out`, `operation` and `table` are the result."""

    def __init__(self, sql: str, dialect: _Dialect) -> None:
        self.sql = sql
        self.dialect = dialect
        self.out: list[str] = []
        self.operation = ""
        self.table = ""
        self._awaits_main_operation = False
        self._object = ""
        #: The upper-case word, the character, or one of "name", "value" that came last, and the one before.
        self._last = self._before_last = ""
        self._space = False
        self._levels = [_Level(is_query=True)]
        self._expects_table = False
        self._in_table = False
        self._columns_follow = False

    def read(self) -> None:
        sql, match = self.sql, self.dialect.tokens.match
        position, end = 0, len(sql)
        while position < end:
            token = match(sql, position)
            assert token is not None  # the last alternative takes any character
            kind = token.lastgroup
            position = token.end()
            if kind == "space" or kind == "comment":
                self._space = True
            elif kind == "word":
                self._word(token.group())
            elif kind == "op":
                self._character(token.group())
            elif kind == "name":
                self._name(token.group(), position)
            elif kind == "string" or kind == "number":
                self._literal(is_number=kind == "number")
            elif kind == "placeholder":
                self._emit(token.group(), "value")
            elif kind == "special":
                position = self._end_of(token.group(), token.start(), position)
                if position < 0:
                    self._emit("?", "value")
                    return
            else:
                self._emit("?", "value")
                return

    def _end_of(self, opening: str, start: int, position: int) -> int:
        """Return where the comment, dollar-quoted or Oracle string that opens at `start` ends; -1 when it does not."""
        if opening == "/*":
            depth = 0
            for bound in _COMMENT_BOUNDS.finditer(self.sql, start):
                depth += 1 if bound.group() == "/*" else -1
                if depth == 0:
                    self._space = True
                    return bound.end()
            return -1
        closing = opening if opening[0] == "$" else _ORACLE_CLOSING.get(opening[-1], opening[-1]) + "'"
        found = self.sql.find(closing, position)
        if found < 0:
            return -1
        self._literal(is_number=False)
        return found + len(closing)

    def _emit(self, text: str, kind: str) -> None:
        if self._space:
            if self.out:
                self.out.append(" ")
            self._space = False
        self.out.append(text)
        self._before_last, self._last = self._last, kind
        if kind != "name" and kind != ".":
            self._in_table = False
            self._expects_table = False

    def _literal(self, *, is_number: bool) -> None:
        last = self._last
        if is_number and last in {"-", "+"} and self._is_sign():
            # -1 and 1 are the same statement.
            self.out.pop()
            self._last = self._before_last
            self._space = bool(self.out) and self.out[-1] == " "
            if self._space:
                self.out.pop()
        elif last == "value" or _is_word(last):
            self._space = True
        self._columns_follow = False
        self._emit("?", "value")

    def _is_sign(self) -> bool:
        before = self._before_last
        if before in {"name", "value", ")", "]"}:
            return False
        return before in _NO_OPERAND or not _is_word(before)

    def _character(self, character: str) -> None:
        levels = self._levels
        if character == "(":
            levels.append(_Level(holds_columns=self._columns_follow))
            self._columns_follow = False
        elif character == ")":
            if len(levels) > 1:
                levels.pop()
        elif character != ".":
            self._columns_follow = False
        self._emit(character, character)

    def _word(self, text: str) -> None:
        word = text.upper()
        if not self.operation:
            self._begin(word)
        elif self._awaits_main_operation and word in _MAIN_OPERATIONS and len(self._levels) == 1:
            self.operation = word
            self._awaits_main_operation = False
            if word != "SELECT":
                # The table that is written to says more than those that the common table expressions read.
                self.table = ""
        if self._last == ".":
            self._named(text)
            self._emit(text, "name")
            return
        expects_table = self._expects_table
        if expects_table and word not in _NOISE and word not in {"SELECT", "VALUES", "SET"}:
            self._named(text)
            self._emit(text, "name")
            return
        level = self._levels[-1]
        is_ddl = self.operation in _DDL
        if is_ddl and not self._object and word in _OBJECTS:
            self._object = word
        if self.operation in _SAVEPOINTS and word not in _SAVEPOINT_WORDS:
            self._emit("?", "value")
            return
        last = self._last
        self._emit(text, word)
        if word in {"SELECT", "DELETE", "UPDATE", "INSERT"}:
            level.is_query = True
        if word in _TABLE_FOLLOWS:
            # Not: IS DISTINCT FROM x, EXTRACT(YEAR FROM x), FOR UPDATE.
            self._expects_table = not self.table and level.is_query and last not in {"DISTINCT", "FOR"}
        elif word in _TARGET_FOLLOWS or (word == "ON" and self._object == "INDEX"):
            self._expects_table = not self.table and self.operation in OPERATIONS
        elif word in _NOISE:
            self._expects_table = expects_table
        self._follow_columns(word, level, is_ddl)

    def _follow_columns(self, word: str, level: _Level, is_ddl: bool) -> None:
        if word in _COLUMNS_FOLLOW or (is_ddl and word in _COLUMNS_FOLLOW_IN_DDL):
            self._columns_follow = True
        elif word == "ON":
            self._columns_follow = self._object == "INDEX"
        elif word not in _NOISE and (word in _NO_OPERAND or word in OPERATIONS or word == "AS" or word == "CHECK"):
            self._columns_follow = False
        if word in OPERATIONS or word in _CLAUSES:
            level.clause = word

    def _begin(self, word: str) -> None:
        self.operation = word
        self._awaits_main_operation = word == "WITH"

    def _name(self, text: str, end: int) -> None:
        if text[0] == '"' and self.dialect.doubtful_names and not self._is_name(end):
            self._literal(is_number=False)
            return
        if self.operation in _SAVEPOINTS:
            self._literal(is_number=False)
            return
        self._named(text)
        self._emit(text, "name")

    def _named(self, text: str) -> None:
        """Take `text` as the table's name, or the next part of it, if that is what stands here."""
        if self._expects_table:
            self.table = _unquoted(text)
            self._expects_table = False
            self._in_table = True
        elif self._in_table and self._last == ".":
            self.table += "." + _unquoted(text)
        else:
            self._in_table = False

    def _is_name(self, end: int) -> bool:
        """Return whether a double-quoted text, ending at `end`, can only be a name."""
        last = self._last
        if last == "." or _QUALIFIES.match(self.sql, end):
            return True
        if last in _NAME_FOLLOWS:
            return not (last == "FROM" and self._before_last == "DISTINCT")
        if last == "name" or last == ")":
            # An alias.
            return True
        level = self._levels[-1]
        if last == "(":
            return level.holds_columns
        if last == ",":
            return level.holds_columns or level.clause == "FROM" or (level.clause == "SET" and self._is_assigned(end))
        # IF NOT EXISTS "t", CREATE INDEX "i" ON "t"
        return (last == "EXISTS" and self.operation in _DDL) or (last == "ON" and self._object == "INDEX")

    def _is_assigned(self, end: int) -> bool:
        return _ASSIGNS.match(self.sql, end) is not None


def _is_word(kind: str) -> bool:
    return bool(kind) and (kind[0].isalpha() or kind[0] == "_" or kind[0] > "\x7f")


def _unquoted(name: str) -> str:
    if name[:2] in {"U&", "u&"}:
        name = name[2:]
    return name[1:-1] if name[0] in '"`[' else name
