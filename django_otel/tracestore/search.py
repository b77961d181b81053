"""Search in stored traces: by columns, by attributes of any span, by text.

    http.route=/orders/  business.total>100  db.query.text~orders  status>=500  duration>250ms  "no such order"

Conditions on what the list shows are left to SQLite. For the others the spans of each trace are looked at, newest
first, for a bounded time: their bytes at first, and only those in which all that is asked for occurs are decoded.
"""

from __future__ import annotations

import re
import sqlite3
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from django_otel.metrics.model import OWN_SCOPE
from django_otel.tracestore import otlp

#: How long spans are looked at for one page: CPU seconds of the thread, so that a busy machine finds no less; and how
#: many times as long it may take by the clock.
BUDGET_S = 0.12
_WALL_FACTOR = 3
#: Most conditions, and characters, of a query.
MAX_CONDITIONS = 12
MAX_QUERY = 500

_CONDITION = re.compile(r"([A-Za-z_][\w.\-]*)(!=|>=|<=|=|>|<|~)(.*)", re.DOTALL)
_NUMBER = re.compile(r"-?\d{1,15}(?:\.\d{1,9})?")
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(us|µs|ms|s|min|m)?")
_UNITS_NS = {"us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9, "m": 60e9, "min": 60e9, "": 1e6}
_SQL = {"=": "=", "!=": "!=", ">": ">", "<": "<", ">=": ">=", "<=": "<="}
#: Columns by the names that are searched by.
_TEXT_COLUMNS = {
    "http.route": "route", "route": "route", "http.request.method": "method", "method": "method", "name": "name",
    "service.name": "service", "service": "service", "service.version": "release", "release": "release",
    "user.id": "user", "user": "user",
}  # fmt: skip
_NUMBER_COLUMNS = {
    "http.response.status_code": "status", "status": "status", "spans": "spans", "queries": "queries",
    "errors": "errors",
}  # fmt: skip


class BadQuery(ValueError):  # noqa: N818 (an answer, not a fault)
    """A query that cannot be read; the argument is the piece of it."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One piece of a query; a text without an operator has no key."""

    key: str
    operator: str
    value: str

    def sql(self) -> tuple[str, list[object]] | None:
        """The condition on a column and its parameters; None when it is one on spans. Errors: `BadQuery`."""
        if self.key == "duration":
            found = _DURATION.fullmatch(self.value.lower())
            if found is None or self.operator not in _SQL:
                raise BadQuery(f"{self.key}{self.operator}{self.value}")
            return f"duration_ns {_SQL[self.operator]} ?", [int(float(found[1]) * _UNITS_NS[found[2] or ""])]
        if self.key == "business.event" and self.operator == "=":
            return "EXISTS (SELECT 1 FROM event WHERE event.seq = trace.seq AND event.name = ?)", [self.value]
        if column := _NUMBER_COLUMNS.get(self.key):
            if not _NUMBER.fullmatch(self.value) or self.operator not in _SQL:
                raise BadQuery(f"{self.key}{self.operator}{self.value}")
            return f"{column} {_SQL[self.operator]} ?", [float(self.value)]
        if column := _TEXT_COLUMNS.get(self.key):
            if self.operator == "~":
                return f"instr(lower({column}), lower(?)) > 0", [self.value]
            if self.operator == "=":
                # A span further in may have it, too: a call to another service, a user that only one view records.
                return (f"{column} = ?", [self.value]) if column in ("service", "release") else None
            return f"{column} {_SQL[self.operator]} ?", [self.value]
        return None

    def needles(self) -> list[bytes]:
        """Return the texts, in lower case, that the bytes of a fitting trace hold."""
        found = [] if self.key in _ALIASES else [self.key.lower().encode()]
        is_text = self.operator in ("=", "~", "") and self.value.isascii()
        if is_text and not _NUMBER.fullmatch(self.value) and self.value not in _FLAGS:
            # Beyond ASCII bytes have no case.
            found.append(self.value.lower().encode())
        return [part for part in found if part]

    def fits(self, span: otlp.SpanRecord) -> bool:
        """Return whether a span fits."""
        if not self.key:
            return any(self.value.lower() in text.lower() for text in _texts_of(span))
        return any(name == self.key and _compare(value, self.operator, self.value) for name, value in _pairs_of(span))


_FLAGS = ("true", "false")
#: Names that stand for others, or for parts of a span that are not attributes.
_ALIASES = ("", "name", "route", "kind", "user", "method")


def duration_fits(condition: Condition, duration_ns: int) -> bool:
    """Return whether a condition on the duration (`duration>250ms`) fits a time in nanoseconds."""
    found = _DURATION.fullmatch(condition.value.lower())
    if found is None:
        return False
    return _compare(duration_ns, condition.operator, str(float(found[1]) * _UNITS_NS[found[2] or ""]))


def parse_query(query: str) -> list[Condition]:
    """The conditions of a query; all of them must fit. Errors: `BadQuery`."""
    found = [_read_condition(piece) for piece in _split(query[:MAX_QUERY])]
    if len(found) > MAX_CONDITIONS:
        raise BadQuery(query[:40])
    for condition in found:
        condition.sql()
        is_order = condition.operator in (">", "<", ">=", "<=") and condition.key not in (*_TEXT_COLUMNS, "duration")
        if is_order and not _NUMBER.fullmatch(condition.value):
            raise BadQuery(f"{condition.key}{condition.operator}{condition.value}")
    return found


def _split(query: str) -> list[str]:
    """The pieces between blanks that do not stand in double quotes."""
    return [piece for piece in re.findall(r'(?:[^\s"]|"[^"]*"?)+', query) if piece.strip('"')]


def _read_condition(piece: str) -> Condition:
    found = _CONDITION.fullmatch(piece)
    if found is None or piece.startswith('"'):
        return Condition("", "", piece.replace('"', ""))
    value = found[3].replace('"', "")
    if not value and found[2] not in ("=", "!="):
        raise BadQuery(piece)
    return Condition(found[1], found[2], value)


def split_conditions(conditions: Sequence[Condition]) -> tuple[list[tuple[str, list[object]]], list[Condition]]:
    """Conditions for SQLite, and those on spans."""
    columns: list[tuple[str, list[object]]] = []
    spans: list[Condition] = []
    for condition in conditions:
        found = condition.sql()
        if found is not None:
            columns.append(found)
        else:
            spans.append(condition)
    return columns, spans


def matching(
    connection: sqlite3.Connection, seqs: Iterator[int], conditions: Sequence[Condition], budget_s: float
) -> Iterator[int | None]:
    """The traces in which each condition fits some span; None when the time is over: `budget_s`, as `BUDGET_S`."""
    cpu_end_s, wall_end_s = time.thread_time() + budget_s, time.monotonic() + budget_s * _WALL_FACTOR
    needles = sorted({needle for condition in conditions for needle in condition.needles()}, key=len, reverse=True)
    for seq in seqs:
        if time.thread_time() > cpu_end_s or time.monotonic() > wall_end_s:
            yield None
            return
        parts: list[bytes] = []
        for (data,) in connection.execute("SELECT data FROM chunk WHERE seq = ? AND kind = 'spans'", (seq,)):
            try:
                parts.append(zlib.decompress(data))
            except zlib.error:
                continue
        whole = b"".join(parts)
        lowered = whole.lower()
        if not all(needle in lowered for needle in needles):
            continue
        try:
            spans = otlp.decode(whole, OWN_SCOPE.name)
        except ValueError:
            continue
        if all(any(condition.fits(span) for span in spans) for condition in conditions):
            yield seq


def _pairs_of(span: otlp.SpanRecord) -> Iterator[tuple[str, object]]:
    yield from span["attributes"].items()
    yield "name", span["name"]
    yield "route", span["attributes"].get("http.route")
    yield "kind", span["kind"].lower()
    yield "user", span["attributes"].get("user.id") or span["attributes"].get("user.hash")
    yield "method", span["attributes"].get("http.request.method")
    for event in span.get("events", ()):
        yield from event["attributes"].items()


def _texts_of(span: otlp.SpanRecord) -> Iterator[str]:
    yield span["name"]
    yield span.get("description", "")
    yield from _leaves(span["attributes"])
    for event in span.get("events", ()):
        yield event["name"]
        yield from _leaves(event["attributes"])


def _leaves(attributes: Mapping[str, object]) -> Iterator[str]:
    for value in attributes.values():
        if isinstance(value, list):
            yield from map(str, value)
        else:
            yield str(value)


def _compare(value: object, operator: str, wanted: str) -> bool:
    if isinstance(value, list):
        return any(_compare(item, operator, wanted) for item in value)
    if isinstance(value, bool):
        value = "true" if value else "false"
    if value is None:
        return False
    if operator == "~":
        return wanted.lower() in str(value).lower()
    if isinstance(value, int | float) or operator in (">", "<", ">=", "<="):
        try:
            left, right = float(str(value)), float(wanted)
        except ValueError:
            return operator == "!="
        return {
            "=": left == right, "!=": left != right, ">": left > right, "<": left < right, ">=": left >= right,
            "<=": left <= right,
        }[operator]  # fmt: skip
    return (str(value) == wanted) == (operator == "=")
