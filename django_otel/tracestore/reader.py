"""Reads the trace store: the list of traces, one trace, the numbers of the dashboard."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from django_otel.metrics.model import OWN_SCOPE
from django_otel.tracestore import otlp
from django_otel.tracestore.columns import DAMAGED, to_integer, to_number, to_storable, to_text
from django_otel.tracestore.numbers import STEPS_S, rise_of_routes
from django_otel.tracestore.packing import unpack, unpack_route, unpack_routes
from django_otel.tracestore.search import BUDGET_S, Condition, matching, split_conditions
from django_otel.tracestore.writer import TraceStore

_Value = TypeVar("_Value", str, int)

_NS_PER_S = 1_000_000_000
_MOST_NS = 2**63 - 1
#: Longest list of choices that a filter offers.
MAX_CHOICES = 200


@dataclass(frozen=True, slots=True)
class TraceRow:
    """A line of the list. Units: times are nanoseconds since the Unix epoch, durations nanoseconds."""

    seq: int
    trace_id: str
    start_ns: int
    end_ns: int
    duration_ns: int
    root_rank: int
    name: str
    method: str
    route: str
    status: int
    service: str
    services: tuple[str, ...]
    spans: int
    queries: int
    errors: int
    logs: int
    dropped: int
    spans_dropped: int = 0
    is_pinned: bool = False
    release: str = ""
    user: str = ""
    events: tuple[str, ...] = ()

    @property
    def is_error(self) -> bool:
        return self.errors > 0 or self.status >= 500

    @property
    def is_unfinished(self) -> bool:
        """Return whether the span that began the trace has not ended yet, or did not get here."""
        return self.root_rank == 0


#: Columns that lists are sorted by.
SORTS = {
    "time": "start_ns", "duration": "duration_ns", "status": "status", "spans": "spans", "queries": "queries",
    "errors": "errors", "name": "name", "service": "service", "release": "release", "user": "user",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TraceFilter:
    """A filter of traces. `status` is a code or a class ("404", "5xx"); empty texts and None mean any."""

    route: str = ""
    status: str = ""
    min_duration_s: float | None = None
    has_error: bool = False
    event: str = ""
    trace_id: str = ""
    service: str = ""
    release: str = ""
    user: str = ""
    #: Began in between: nanoseconds since the Unix epoch.
    since_ns: int | None = None
    until_ns: int | None = None
    #: Further conditions, of the search.
    conditions: tuple[Condition, ...] = ()
    #: One of `SORTS`, with "-" before it for the largest first.
    sort: str = "-time"

    @property
    def order(self) -> str:
        """The order in SQL."""
        column = SORTS.get(self.sort.removeprefix("-"), "start_ns")
        direction = "DESC" if self.sort.startswith("-") else "ASC"
        return f"{column} {direction}" + ("" if column == "start_ns" else ", start_ns DESC")

    def _add_search(self, conditions: list[str], values: list[object]) -> None:
        for name, wanted in (("release", self.release), ("user", self.user)):
            if wanted:
                conditions.append(f"{name} = ?")
                values.append(wanted)
        if self.since_ns is not None:
            conditions.append("start_ns >= ?")
            values.append(to_storable(self.since_ns))
        if self.until_ns is not None:
            conditions.append("start_ns <= ?")
            values.append(to_storable(self.until_ns))
        for condition, parameters in split_conditions(self.conditions)[0]:
            conditions.append(condition)
            values += parameters

    def where(self, *, is_route: bool) -> tuple[str, list[object]]:
        """The condition in SQL and its parameters. `is_route`: there is this very route, so it alone is meant."""
        conditions, values = ["spans > 0"], list[object]()
        self._add_search(conditions, values)
        if self.status:
            if self.status.endswith("xx"):
                conditions.append("status >= ? AND status < ?")
                first = int(self.status[0]) * 100
                values += [first, first + 100]
            else:
                conditions.append("status = ?")
                values.append(int(self.status))
        if self.min_duration_s is not None:
            conditions.append("duration_ns >= ?")
            # SQLite's integers end there; "not a number" is longer than anything, too.
            ns = self.min_duration_s * _NS_PER_S
            values.append(int(ns) if abs(ns) < _MOST_NS else _MOST_NS)
        if self.has_error:
            conditions.append("(errors > 0 OR status >= 500)")
        if self.event:
            conditions.append("EXISTS (SELECT 1 FROM event WHERE event.seq = trace.seq AND event.name = ?)")
            values.append(self.event)
        if self.trace_id:
            conditions.append("instr(trace_id, ?) > 0")
            values.append(self.trace_id.lower())
        if self.service:
            conditions.append("instr(services, ?) > 0")
            values.append(f"\n{self.service}\n")
        # Last, because it takes longest.
        if self.route and is_route:
            conditions.append("route = ?")
            values.append(self.route)
        elif self.route:
            conditions.append("(instr(lower(route), lower(?)) > 0 OR instr(lower(name), lower(?)) > 0)")
            values += [self.route] * 2
        return " AND ".join(conditions), values


@dataclass(frozen=True, slots=True)
class TracePage:
    """A part of the list. `total` counts all that fit the filter, `stored` all that there are."""

    rows: Sequence[TraceRow]
    total: int
    stored: int
    #: Whether there may be more than `total`: spans were searched, and not all of them yet.
    is_partial: bool = False


@dataclass(frozen=True, slots=True)
class Choices:
    """Choices of the filters."""

    routes: Sequence[str]
    statuses: Sequence[int]
    events: Sequence[str]
    services: Sequence[str]
    releases: Sequence[str] = ()


NO_CHOICES = Choices((), (), (), ())


@dataclass(frozen=True, slots=True)
class Trace:
    """One trace, whole: spans and logs as `tracestore.processor` wrote them, oldest first."""

    row: TraceRow
    spans: Sequence[otlp.SpanRecord]
    logs: Sequence[Mapping[str, Any]]
    #: Parts that could not be read.
    damaged: int = 0


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """A process that writes to the store, and when it last said so (seconds since the Unix epoch)."""

    instance: str
    service: str
    host: str
    pid: int
    started_s: float
    seen_s: float
    facts: Mapping[str, Any]


@dataclass(slots=True)
class Numbers:
    """Counts of one source in one step of time."""

    at_s: int
    step_s: int
    values: dict[str, Any] = field(default_factory=dict)


_COLUMNS = (
    "seq, trace_id, start_ns, end_ns, duration_ns, root_rank, name, method, route, status, service, services, spans, "
    "queries, errors, logs, dropped, spans_dropped, is_pinned, release, user"
)
#: Their places among `_COLUMNS`; all others have whole numbers.
_TEXT_COLUMNS = frozenset({1, 6, 7, 8, 10, 11, 19, 20})


class StoreReader:
    """Reads through one connection, for the length of a page."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    # Traces.

    def list_traces(self, wanted: TraceFilter, *, offset: int = 0, limit: int = 50) -> TracePage:
        """The newest traces that fit, `limit` of them from `offset` on."""
        execute = self.connection.execute
        known = execute("SELECT 1 FROM trace WHERE route = ? LIMIT 1", (wanted.route,)) if wanted.route else None
        where, values = wanted.where(is_route=known is not None and known.fetchone() is not None)
        (stored,) = execute("SELECT count(*) FROM trace WHERE spans > 0").fetchone()
        if split_conditions(wanted.conditions)[1]:
            return self._search(wanted, where, values, stored, (offset, limit))
        rows = execute(
            f"SELECT {_COLUMNS} FROM trace WHERE {where} ORDER BY {wanted.order} LIMIT ? OFFSET ?",
            (*values, limit, offset),
        ).fetchall()
        total = stored
        if values or wanted.has_error:
            (total,) = execute(f"SELECT count(*) FROM trace WHERE {where}", values).fetchone()
        events = self._events([row[0] for row in rows])
        return TracePage([_build_row(row, events.get(row[0], ())) for row in rows], total, stored)

    def _search(
        self, wanted: TraceFilter, where: str, values: list[object], stored: int, place: tuple[int, int]
    ) -> TracePage:
        """Return a page of traces that match conditions on spans, as far as the search gets in time."""
        offset, limit = place
        ordered = self.connection.execute(
            f"SELECT seq FROM trace WHERE {where} ORDER BY {wanted.order}",
            values,
        ).fetchall()
        found: list[int] = []
        is_partial = False
        spans = split_conditions(wanted.conditions)[1]
        for seq in matching(self.connection, (row[0] for row in ordered), spans, BUDGET_S):
            if seq is None or len(found) > offset + limit:
                is_partial = True
                break
            found.append(seq)
        chosen = found[offset : offset + limit]
        marks = ", ".join("?" * len(chosen))
        rows = self.connection.execute(
            f"SELECT {_COLUMNS} FROM trace WHERE seq IN ({marks}) ORDER BY {wanted.order}",
            chosen,
        ).fetchall()
        events = self._events(chosen)
        return TracePage(
            [_build_row(row, events.get(row[0], ())) for row in rows], len(found), stored, is_partial=is_partial
        )

    def neighbours(self, row: TraceRow) -> tuple[str, str]:
        """The traces before and after this one of the same route and service; "" where there is none."""
        found = []
        for operator, direction in (("<", "DESC"), (">", "ASC")):
            one = self.connection.execute(
                f"SELECT trace_id FROM trace WHERE route = ? AND method = ? AND service = ? AND name = ? "
                f"AND spans > 0 AND (start_ns, seq) {operator} (?, ?) ORDER BY start_ns {direction}, seq {direction} "
                "LIMIT 1",
                (row.route, row.method, row.service, row.name, row.start_ns, row.seq),
            ).fetchone()
            found.append(to_text(one[0]) if one is not None else "")
        return found[0], found[1]

    def chunks(self, trace_id: str) -> bytes:
        """The spans of a trace as the bytes of an OTLP `TracesData`, as far as they can be read."""
        parts = []
        for (data,) in self.connection.execute(
            "SELECT data FROM chunk JOIN trace ON trace.seq = chunk.seq WHERE trace_id = ? AND kind = 'spans' "
            "ORDER BY id",
            (trace_id,),
        ):
            with contextlib.suppress(*DAMAGED):
                parts.append(zlib.decompress(data))
        return b"".join(parts)

    def _events(self, seqs: Sequence[int]) -> dict[int, tuple[str, ...]]:
        marks = ", ".join("?" * len(seqs))
        found: dict[int, tuple[str, ...]] = {}
        for seq, name in self.connection.execute(
            f"SELECT seq, name FROM event WHERE seq IN ({marks}) ORDER BY seq, name",
            seqs,
        ):
            found[seq] = (*found.get(seq, ()), to_text(name))
        return found

    def choices(self) -> Choices:
        """Return the stored values to filter by."""
        return Choices(
            routes=self._distinct("trace", "route", ""),
            statuses=self._distinct("trace", "status", 0),
            events=self._distinct("event", "name", ""),
            services=self._distinct("trace", "service", ""),
            releases=self._distinct("trace", "release", ""),
        )

    def _distinct(self, table: str, column: str, above: _Value) -> list[_Value]:
        """The values of a column above `above`, in order: one step in the column's index for each of them."""
        following = f"SELECT min({column}) FROM {table} WHERE {column} >"
        statement = (
            f"WITH RECURSIVE found (value) AS ({following} ? UNION ALL "
            f"SELECT ({following} found.value) FROM found WHERE found.value IS NOT NULL) "
            f"SELECT value FROM found WHERE value IS NOT NULL LIMIT {MAX_CHOICES}"
        )
        kind = type(above)
        return [value for (value,) in self.connection.execute(statement, (above,)) if isinstance(value, kind)]

    def trace(self, trace_id: str) -> Trace | None:
        """Return one trace with its spans and logs; None if it is not (or no longer) stored."""
        row = self.connection.execute(f"SELECT {_COLUMNS} FROM trace WHERE trace_id = ?", (trace_id,)).fetchone()
        if row is None:
            return None
        spans: list[otlp.SpanRecord] = []
        logs: list[Mapping[str, Any]] = []
        damaged = 0
        for kind, data in self.connection.execute("SELECT kind, data FROM chunk WHERE seq = ? ORDER BY id", (row[0],)):
            try:
                if kind == "spans":
                    spans += otlp.decode(zlib.decompress(data), OWN_SCOPE.name)
                else:
                    logs += [item for item in unpack(data) if isinstance(item, dict)]
            except DAMAGED:
                damaged += 1
        events = self._events([row[0]])
        return Trace(
            _build_row(row, events.get(row[0], ())),
            sorted(spans, key=lambda span: to_number(span.get("start"))),
            sorted(logs, key=lambda log: to_number(log.get("time"))),
            damaged,
        )

    def has_trace(self, trace_id: str) -> bool:
        """Return whether a trace is here."""
        row = self.connection.execute("SELECT 1 FROM trace WHERE trace_id = ? AND spans > 0", (trace_id,)).fetchone()
        return row is not None

    def stored_among(self, trace_ids: Sequence[str]) -> set[str]:
        """Return those of some ids whose trace is here."""
        marks = ", ".join("?" * len(trace_ids))
        rows = self.connection.execute(
            f"SELECT trace_id FROM trace WHERE spans > 0 AND trace_id IN ({marks})",
            trace_ids,
        )
        return {to_text(trace_id) for (trace_id,) in rows}

    # Numbers.

    def begun_s(self) -> float | None:
        """Return when the store began to count, in seconds since the Unix epoch."""
        row = self.connection.execute("SELECT begun_s FROM store").fetchone()
        return to_number(row[0]) if row is not None else None

    def numbers(self, *, now_s: float, minutes: int, service: str = "", route: str | None = None) -> list[Numbers]:
        """Return the counts of the last `minutes`, in the finest step that is kept that long, by time.

        Steps without traffic are left out; a step that several sources filled is there several times. "total" has
        the figures of all routes, or of `route` alone; with "" there are those of each as well ("routes").
        """
        step_s, since_s = _step_of(now_s, minutes)
        column = "routes" if route is not None else "NULL"
        found: list[Numbers] = []
        for at_s, data, routes in self.connection.execute(
            f"SELECT at_s, data, {column} FROM sample "
            "WHERE step_s = ? AND at_s >= ? AND (? = '' OR service = ?) ORDER BY at_s",
            (step_s, since_s, service, service),
        ):
            with contextlib.suppress(*DAMAGED):
                values = _mapping(unpack(data))
                if route:
                    values = {"total": unpack_route(routes, route), "bounds": values.get("bounds", {})}
                elif route is not None:
                    values["routes"] = unpack_routes(routes)
                found.append(Numbers(to_integer(at_s), step_s, values))
        return found

    def route_numbers(self, *, now_s: float, minutes: int, service: str = "") -> list[dict[str, Any]]:
        """Return `numbers` of each route, added up over the time: {"routes": ..., "bounds": ...} per source."""
        step_s, since_s = _step_of(now_s, minutes)
        found: list[dict[str, Any]] = []
        for running, opening in self.connection.execute(
            "SELECT baseline.running, sample.opening FROM baseline JOIN sample ON sample.source = baseline.source "
            "WHERE sample.step_s = ? AND (? = '' OR sample.service = ?) AND sample.at_s = (SELECT min(first.at_s) "
            "FROM sample AS first WHERE first.step_s = ? AND first.at_s >= ? AND first.source = baseline.source)",
            (step_s, service, service, step_s, since_s),
        ):
            with contextlib.suppress(*DAMAGED):
                now = _mapping(unpack(running))
                found.append({"routes": rise_of_routes(now, unpack(opening)), "bounds": now.get("bounds", {})})
        return found

    def counted_between(
        self, moments_s: Sequence[float], *, now_s: float, service: str = "", newest: Mapping[str, Any] | None = None
    ) -> tuple[int, list[list[dict[str, Any]]]] | None:
        """Return what was counted of each route between moments, per source; None where that is not kept any more.

        The moments are taken to the beginning of a step of time, whose length in seconds comes first. `newest` is what
        was counted since the last sample.
        """
        if now_s - moments_s[0] > max(STEPS_S.values()):
            return None
        (oldest_s,) = self.connection.execute("SELECT min(at_s) FROM sample").fetchone()
        # Of a young store the finest step has everything.
        reach_s = min(now_s - max(moments_s[0], to_number(oldest_s)), max(STEPS_S.values()))
        step_s = next(step for step, kept_s in STEPS_S.items() if reach_s <= kept_s)
        found: list[list[dict[str, Any]]] = [[] for _ in moments_s[1:]]
        sources = (
            "SELECT source, at_s, running FROM baseline WHERE source IN "
            "(SELECT source FROM sample WHERE ? IN ('', service))"
        )
        for source, last_s, data in self.connection.execute(sources, (service,)).fetchall():
            with contextlib.suppress(*DAMAGED):
                running = _mapping(unpack(data))
                # A process that had ended by then had counted all it ever did, whatever the step says.
                counted = [
                    running if to_number(last_s) <= at_s else self._counted_at(source, step_s, at_s, running)
                    for at_s in moments_s
                ]
                for part, (begin, end) in zip(found, itertools.pairwise(counted), strict=True):
                    part.append({"routes": rise_of_routes(end, begin), "bounds": running.get("bounds", {})})
        if newest and moments_s[-1] >= now_s:
            found[-1].append(dict(newest))
        return step_s, found

    def _counted_at(self, source: str, step_s: int, at_s: float, running: dict[str, Any]) -> dict[str, Any]:
        """Return the counts of a source at the beginning of a step."""
        row = self.connection.execute(
            "SELECT opening FROM sample WHERE step_s = ? AND source = ? AND at_s >= ? ORDER BY at_s LIMIT 1",
            (step_s, source, int(at_s // step_s) * step_s),
        ).fetchone()
        return _mapping(unpack(row[0])) if row is not None else running

    def baseline(self, source: str) -> tuple[float, dict[str, Any], dict[str, Any]] | None:
        """Return when a source was last sampled, its cumulative numbers then, and all counts of its routes."""
        row = self.connection.execute("SELECT at_s, data, running FROM baseline WHERE source = ?", (source,)).fetchone()
        if row is None:
            return None
        with contextlib.suppress(*DAMAGED):
            return to_number(row[0]), _mapping(unpack(row[1])), _mapping(unpack(row[2]))
        return None

    def number_services(self) -> list[str]:
        """The services whose numbers are here."""
        return [
            to_text(name) for (name,) in self.connection.execute("SELECT DISTINCT service FROM sample ORDER BY service")
        ]

    def processes(self, *, seen_since_s: float) -> list[ProcessRow]:
        """Processes that have said since then that they live."""
        found = []
        for row in self.connection.execute(
            "SELECT instance, service, host, pid, started_s, seen_s, data FROM process WHERE seen_s >= ? "
            "ORDER BY service, host, started_s, pid",
            (seen_since_s,),
        ):
            facts: Mapping[str, Any] = {}
            with contextlib.suppress(*DAMAGED):
                facts = _mapping(unpack(row[6]))
            instance, service, host, pid, started_s, seen_s, _ = row
            found.append(
                ProcessRow(
                    to_text(instance), to_text(service), to_text(host), to_integer(pid), to_number(started_s),
                    to_number(seen_s), facts,
                )
            )  # fmt: skip
        return found


def _step_of(now_s: float, minutes: int) -> tuple[int, int]:
    """The finest step that is kept so long, and where the first of these `minutes` begins."""
    step_s = next(step for step, kept_s in STEPS_S.items() if minutes * 60 <= kept_s)
    return step_s, int((now_s - minutes * 60) // step_s) * step_s


def _build_row(row: Sequence[Any], events: tuple[str, ...]) -> TraceRow:
    row = [to_text(value) if place in _TEXT_COLUMNS else to_integer(value) for place, value in enumerate(row)]
    others = (name for name in row[11].split("\n") if name and name != row[10])
    # That of the root first: it is the one that was asked.
    services = (*filter(None, [row[10]]), *others)
    values: tuple[Any, ...] = (*row[:11], services, *row[12:18], bool(row[18]), *row[19:21], events)
    return TraceRow(*values)


def _mapping(value: object) -> dict[str, Any]:
    """Errors: `TypeError` for anything but a dict."""
    if not isinstance(value, dict):
        raise TypeError(f"a {type(value).__name__} instead of a dict")
    return value


@contextlib.contextmanager
def read(store: TraceStore) -> Iterator[StoreReader]:
    """A reader of the store, for the length of a page.

    Errors: `Unusable`, `sqlite3.Error`, `OSError`.
    """
    with store.connection() as connection:
        connection.execute("PRAGMA query_only = ON")
        # One moment for everything on the page.
        connection.execute("BEGIN")
        yield StoreReader(connection)
