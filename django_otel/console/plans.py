"""Generic plans of stored statements: EXPLAIN (GENERIC_PLAN) of PostgreSQL 16 and later.

Only what the store holds is explained: one statement that reads, without a literal. Its placeholders become `$1`, `$2`,
..., so that the database plans it without their values; the statement itself is not run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.translation import gettext

from django_otel import runtime
from django_otel.console.stored_spans import attributes_of, database_system
from django_otel.redaction.keys import REDACTED
from django_otel.redaction.statements import parameterise, read_tokens
from django_otel.tracestore.records import MAX_STATEMENT

#: Bound of the database's work, in milliseconds.
TIMEOUT_MS = 2000
#: The first version that has generic plans, as the server numbers it.
FIRST_VERSION = 160_000
#: Bounds of what is shown.
MAX_LINES = 500
_MAX_LINE = 400
_MAX_ERROR = 1000
#: Words that only stand in statements that write, wherever they are.
_WRITING = frozenset({"INTO", "INSERT", "UPDATE", "DELETE", "MERGE"})
_READING = frozenset({"SELECT", "VALUES", "TABLE"})
#: Types whose literals are written behind their name (INTERVAL '1 day').
_TYPES = frozenset({"INTERVAL", "DATE", "TIME", "TIMESTAMP", "TIMESTAMPTZ"})
_KEYWORDS = frozenset({
    "SELECT", "DISTINCT", "ALL", "WHERE", "AND", "OR", "NOT", "IN", "LIKE", "ILIKE", "BETWEEN", "THEN", "ELSE", "WHEN",
    "CASE", "BY", "LIMIT", "OFFSET", "VALUES", "HAVING", "ON", "IS", "FROM", "USING", "AS", "SIMILAR", "ESCAPE", "ANY",
    "SOME",
})  # fmt: skip


class NotExplained(Exception):  # noqa: N818 (an answer, not a fault)
    """There is no plan; the text says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a statement: the query, its database, and the lines of the answer."""

    alias: str
    statement: str
    lines: Sequence[str]
    is_cut: bool


# --- The statement. ---


def number_placeholders(statement: str) -> str:
    """Return a stored statement with its placeholders as `$1`, `$2`, ... Errors: `NotExplained`."""
    if not statement:
        raise NotExplained(gettext("The text of this statement is not stored."))
    if len(statement) >= MAX_STATEMENT or statement.endswith((" ...", "\u2026")):
        raise NotExplained(gettext("Only a part of this statement is stored."))
    if REDACTED in statement:
        raise NotExplained(gettext("A part of this statement was redacted."))
    # Once more: what another service sent may hold literals.
    clean = parameterise(statement, "postgresql")
    if clean.operation not in _READING:
        raise NotExplained(_only_reading())
    return _Numbering(clean.text).build()


def _only_reading() -> str:
    return gettext("Plans are shown for statements that only read (SELECT, VALUES, TABLE).")


class _Numbering:
    """Writes a statement with numbered placeholders."""

    def __init__(self, statement: str) -> None:
        self._kinds: list[str] = []
        self._tokens: list[str] = []
        self._spaces: list[str] = []
        space = ""
        for kind, piece in read_tokens(statement.rstrip("; "), "postgresql"):
            if kind in ("space", "comment"):
                space = " "
                continue
            self._kinds.append(kind)
            self._tokens.append(piece)
            self._spaces.append(space)
            space = ""
        self._numbers: dict[str, int] = {}
        self._count = 0

    def build(self) -> str:
        self._refuse()
        item = 0
        for index, kind in enumerate(self._kinds):
            piece, before = self._tokens[index], self._before(index)
            word = piece.upper() if kind == "word" else ""
            if word:
                item = int(word == "BY" and before == "GROUP")
            elif item and piece == ",":
                item += 1
            if kind == "placeholder" and not self._is_operator(index):
                if item and piece == "?" and before in ("BY", ","):
                    # GROUP BY 1, 2: the positions of columns, which stand in front in this order.
                    self._tokens[index] = str(item)
                else:
                    self._number(index, before)
            elif piece == "%" and before == "%":
                # Doubled for the driver.
                self._tokens[index - 1] = ""
        return "".join(map(str.__add__, self._spaces, self._tokens)).strip()

    def _refuse(self) -> None:
        for index, kind in enumerate(self._kinds):
            piece = self._tokens[index].upper()
            if kind in ("special", "stop", "string") or piece == ";":
                raise NotExplained(gettext("This is not a single, complete statement."))
            is_locking = piece == "UPDATE" and self._before(index) in ("FOR", "KEY")
            if kind == "word" and piece in _WRITING and not is_locking and self._before(index) != ".":
                raise NotExplained(_only_reading())

    def _before(self, index: int) -> str:
        return self._tokens[index - 1].upper() if index else ""

    def _is_operator(self, index: int) -> bool:
        """Return whether a "?" is PostgreSQL's operator of JSON ("data" ? 'key'), not a value."""
        if self._tokens[index] != "?" or not index or index + 1 >= len(self._tokens):
            return False
        kind, piece = self._kinds[index - 1], self._tokens[index - 1]
        is_operand = kind in ("name", "placeholder") or piece in (")", "]")
        is_operand = is_operand or (kind == "word" and piece.upper() not in _KEYWORDS | _TYPES)
        after = self._tokens[index + 1]
        further = self._tokens[index + 2] if index + 2 < len(self._tokens) else ""
        is_long = after in ("|", "&") and further != after and not self._spaces[index + 1]
        return is_operand and (self._kinds[index + 1] == "placeholder" or is_long)

    def _number(self, index: int, before: str) -> None:
        piece = self._tokens[index]
        is_named = piece[0] == "$" or piece.startswith("%(")
        number = self._numbers.get(piece) if is_named else None
        if number is None:
            self._count += 1
            number = self._numbers[piece] = self._count
        self._tokens[index] = f"${number}"
        if before in _TYPES and self._kinds[index - 1] == "word":
            self._tokens[index - 1] = ""
            self._tokens[index] += f"::{before.lower()}"


# --- The database. ---


def find_alias(span: Mapping[str, Any]) -> str:
    """Return the connection that leads to the database of a span. Errors: `NotExplained`."""
    attributes = attributes_of(span)
    system = database_system(attributes)
    if system not in ("postgresql", "postgres"):
        raise NotExplained(gettext("Plans are shown for PostgreSQL; this is %(system)s.") % {"system": system or "-"})
    alias = str(attributes.get("django.db.alias", ""))
    is_own = str(span.get("service", "")) == (runtime.current().config.service_name or "")
    if alias in connections and is_own:
        found = [alias]
    else:
        found = [name for name in connections if _leads_to(name, attributes)]
        found = [alias] if alias in found else found
    if len(found) != 1 or connections[found[0]].vendor != "postgresql":
        raise NotExplained(gettext("No connection of this project is known to lead to the database of this statement."))
    return found[0]


def _leads_to(alias: str, attributes: Mapping[str, Any]) -> bool:
    given = connections[alias].settings_dict
    namespace = attributes.get("db.namespace") or attributes.get("db.name")
    host = attributes.get("server.address") or attributes.get("net.peer.name")
    return (
        connections[alias].vendor == "postgresql"
        and bool(namespace)
        and given.get("NAME") == namespace
        and (not host or not given.get("HOST") or given["HOST"] == host)
    )


def explain(span: Mapping[str, Any], statement: str) -> Plan:
    """Ask the database of a span for the generic plan of its statement. Errors: `NotExplained`."""
    alias = find_alias(span)
    numbered = number_placeholders(statement)
    with _reading(alias) as cursor:
        cursor.execute(f"EXPLAIN (GENERIC_PLAN) {numbered}")
        # Constants of views and indexes stand in a plan.
        lines = [_clean(str(row[0])[:_MAX_LINE]) for row in cursor.fetchmany(MAX_LINES + 1)]
    return Plan(alias, numbered, lines[:MAX_LINES], len(lines) > MAX_LINES)


@contextlib.contextmanager
def _reading(alias: str) -> Iterator[Any]:
    """A cursor in a read-only transaction of a connection of its own, rolled back. Errors: `NotExplained`."""
    connection: BaseDatabaseWrapper = connections[alias].copy()
    try:
        try:
            connection.ensure_connection()
        except Exception as error:
            # Its text names host and user.
            message = gettext("The database %(alias)s cannot be reached (%(reason)s).")
            raise NotExplained(message % {"alias": alias, "reason": type(error).__name__}) from error
        version = int(getattr(connection, "pg_version", 0))
        if version < FIRST_VERSION:
            message = gettext("Generic plans need PostgreSQL 16; the database %(alias)s runs %(version)s.")
            raise NotExplained(message % {"alias": alias, "version": f"{version // 10_000}.{version % 10_000}"})
        try:
            with connection.cursor() as cursor:
                cursor.execute("BEGIN READ ONLY")
                try:
                    cursor.execute(f"SET LOCAL statement_timeout = {TIMEOUT_MS}")
                    yield cursor
                finally:
                    cursor.execute("ROLLBACK")
        except Error as error:
            message = gettext("The database refused it: %(reason)s")
            raise NotExplained(message % {"reason": _clean(str(error).strip()[:_MAX_ERROR])}) from error
    finally:
        connection.close()


def _clean(given: str) -> str:
    return runtime.current().scrubber.text(given)
