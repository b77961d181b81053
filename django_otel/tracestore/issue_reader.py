"""Reads issues: the list, and one of them with its chart, routes, releases and traces."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django_otel.tracestore.columns import DAMAGED, to_integer, to_number, to_text
from django_otel.tracestore.errors import STEP_S
from django_otel.tracestore.issues import STATES
from django_otel.tracestore.packing import unpack


@dataclass(frozen=True, slots=True)
class IssueFilter:
    """A filter of issues; empty texts mean any. `since_s`, `until_s`: seen last in between, seconds since 1970."""

    state: str = ""
    text: str = ""
    service: str = ""
    route: str = ""
    release: str = ""
    since_s: float | None = None
    until_s: float | None = None
    #: One of `SORTS`, with "-" before it for the other direction.
    sort: str = "-last"

    def where(self) -> tuple[str, list[object]]:
        """The condition in SQL and its parameters, without the state."""
        conditions, values = ["1"], list[object]()
        for text in self.text.split():
            conditions.append("instr(lower(type || ' ' || message || ' ' || module || '.' || function), lower(?)) > 0")
            values.append(text)
        if self.service:
            conditions.append("service = ?")
            values.append(self.service)
        if self.route:
            conditions.append(
                "EXISTS (SELECT 1 FROM issue_route WHERE issue_route.issue = issue.id AND issue_route.route = ?)"
            )
            values.append(self.route)
        if self.release:
            conditions.append(
                "EXISTS (SELECT 1 FROM issue_release WHERE issue_release.issue = issue.id AND issue_release.name = ?)"
            )
            values.append(self.release)
        if self.since_s is not None:
            conditions.append("last_s >= ?")
            values.append(self.since_s)
        if self.until_s is not None:
            conditions.append("first_s <= ?")
            values.append(self.until_s)
        return " AND ".join(conditions), values


SORTS = {"last": "last_s", "first": "first_s", "count": "count", "type": "type", "release": "last_release"}


@dataclass(frozen=True, slots=True)
class IssueRow:
    """A line of the list. Units: seconds since the Unix epoch."""

    id: int
    service: str
    type: str
    module: str
    function: str
    file: str
    line: int
    message: str
    first_s: float
    last_s: float
    count: int
    first_release: str
    last_release: str
    state: str
    changed_s: float
    changed_by: str
    resolved_release: str
    is_back: bool

    @property
    def place(self) -> str:
        """Module and function."""
        return ".".join(filter(None, (self.module, self.function)))


@dataclass(frozen=True, slots=True)
class IssuePage:
    """A part of the list; `counts` is the number of issues of each state that fit the rest of the filter."""

    rows: Sequence[IssueRow]
    counts: dict[str, int]
    stored: int
    #: Of each row: counts by the beginning of their steps.
    steps: dict[int, dict[int, int]]

    @property
    def total(self) -> int:
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class SeenTrace:
    """A trace of an issue; `is_stored` says whether it can be looked at."""

    trace_id: str
    span_id: str
    at_s: float
    route: str
    is_stored: bool


@dataclass(frozen=True, slots=True)
class ReleaseCount:
    """How often an issue was seen under a release."""

    name: str
    count: int
    first_s: float
    last_s: float


@dataclass(frozen=True, slots=True)
class Issue:
    """All that is known of an issue. `stack` is the chain of exceptions, the newest first."""

    row: IssueRow
    routes: Sequence[tuple[str, int]]
    releases: Sequence[ReleaseCount]
    steps: dict[int, int]
    traces: Sequence[SeenTrace]
    stack: Sequence[dict[str, Any]]


_COLUMNS = (
    "id, service, type, module, function, file, line, message, first_s, last_s, count, first_release, last_release, "
    "state, changed_s, changed_by, resolved_release, is_back"
)


def list_issues(connection: sqlite3.Connection, wanted: IssueFilter, *, offset: int = 0, limit: int = 50) -> IssuePage:
    """Issues that fit, `limit` of them from `offset` on."""
    where, values = wanted.where()
    counts = dict.fromkeys(STATES, 0)
    for state, count in connection.execute(
        f"SELECT state, count(*) FROM issue WHERE {where} GROUP BY state",
        values,
    ):
        counts[to_text(state)] = to_integer(count)
    column = SORTS.get(wanted.sort.removeprefix("-"), "last_s")
    direction = "DESC" if wanted.sort.startswith("-") else "ASC"
    if wanted.state:
        where, values = f"{where} AND state = ?", [*values, wanted.state]
    rows = [
        _build_row(row)
        for row in connection.execute(
            f"SELECT {_COLUMNS} FROM issue WHERE {where} ORDER BY {column} {direction}, id DESC LIMIT ? OFFSET ?",
            (*values, limit, offset),
        )
    ]
    (stored,) = connection.execute("SELECT count(*) FROM issue").fetchone()
    if wanted.state:
        counts = {state: count if state == wanted.state else 0 for state, count in counts.items()}
    return IssuePage(rows, counts, stored, _steps(connection, [row.id for row in rows]))


def find_issue(connection: sqlite3.Connection, issue: int) -> Issue | None:
    """One issue; None if it is not, or no longer, stored."""
    row = connection.execute(f"SELECT {_COLUMNS}, stack FROM issue WHERE id = ?", (issue,)).fetchone()
    if row is None:
        return None
    stack: list[dict[str, Any]] = []
    with contextlib.suppress(*DAMAGED):
        stack = [raised for raised in unpack(row[-1]) if isinstance(raised, dict)]
    routes = connection.execute(
        "SELECT route, count FROM issue_route WHERE issue = ? ORDER BY count DESC, route", (issue,)
    ).fetchall()
    releases = connection.execute(
        "SELECT name, count, first_s, last_s FROM issue_release WHERE issue = ? ORDER BY last_s DESC", (issue,)
    ).fetchall()
    traces = connection.execute(
        "SELECT issue_trace.trace_id, issue_trace.span_id, issue_trace.at_s, issue_trace.route, trace.seq IS NOT NULL "
        "FROM issue_trace LEFT JOIN trace ON trace.trace_id = issue_trace.trace_id "
        "WHERE issue_trace.issue = ? ORDER BY issue_trace.at_s DESC",
        (issue,),
    ).fetchall()
    return Issue(
        _build_row(row[:-1]),
        [(to_text(route), to_integer(count)) for route, count in routes],
        [
            ReleaseCount(to_text(name), to_integer(count), _seconds(first), _seconds(last))
            for name, count, first, last in releases
        ],
        _steps(connection, [issue]).get(issue, {}),
        [
            SeenTrace(to_text(t), to_text(s), _seconds(at), to_text(route), bool(stored))
            for t, s, at, route, stored in traces
        ],
        stack,
    )


def find_issue_of_span(connection: sqlite3.Connection, trace_id: str) -> list[tuple[int, str, str]]:
    """Issues of a trace: id, type, and the span the exception was raised in."""
    rows = connection.execute(
        "SELECT DISTINCT issue.id, issue.type, issue_trace.span_id FROM issue_trace JOIN issue ON issue.id = "
        "issue_trace.issue WHERE issue_trace.trace_id = ? ORDER BY issue.id",
        (trace_id,),
    ).fetchall()
    return [(to_integer(issue), to_text(name), to_text(span_id)) for issue, name, span_id in rows]


def list_releases(connection: sqlite3.Connection, service: str = "") -> list[tuple[str, str, float]]:
    """Service, name and when it was first seen of each release, newest first."""
    rows = connection.execute(
        "SELECT service, name, first_s FROM release WHERE (? = '' OR service = ?) ORDER BY first_s DESC, name",
        (service, service),
    ).fetchall()
    return [(to_text(row[0]), to_text(row[1]), _seconds(row[2])) for row in rows]


def _steps(connection: sqlite3.Connection, issues: Sequence[int]) -> dict[int, dict[int, int]]:
    marks = ", ".join("?" * len(issues))
    found: dict[int, dict[int, int]] = {}
    for issue, at_s, count in connection.execute(
        f"SELECT issue, at_s, count FROM issue_step WHERE issue IN ({marks})",
        issues,
    ):
        found.setdefault(to_integer(issue), {})[to_integer(at_s) // STEP_S * STEP_S] = to_integer(count)
    return found


def _build_row(row: Sequence[Any]) -> IssueRow:
    text, number, seconds = to_text, to_integer, _seconds
    return IssueRow(
        number(row[0]), text(row[1]), text(row[2]), text(row[3]), text(row[4]), text(row[5]), number(row[6]),
        text(row[7]), seconds(row[8]), seconds(row[9]), number(row[10]), text(row[11]), text(row[12]), text(row[13]),
        seconds(row[14]), text(row[15]), text(row[16]), bool(row[17]),
    )  # fmt: skip


def _seconds(value: object) -> float:
    """A moment, in seconds since the Unix epoch, that can be counted in nanoseconds."""
    return max(0.0, min(1e11, to_number(value)))
