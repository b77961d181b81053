"""Answers of the store to terminals and assistants, as plain data: for `otel traces` and `otel mcp`.

Everything in the store is redacted; keys of the answers are stable. Units: `_ms` is milliseconds, times are ISO 8601
in UTC.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from django_otel.console.changes import figures_of, judge
from django_otel.console.route_sums import RouteSum, by_route
from django_otel.tracestore import record_reader
from django_otel.tracestore.issue_reader import IssueFilter, IssueRow, find_issue, list_issues, list_releases
from django_otel.tracestore.otlp import SpanRecord
from django_otel.tracestore.reader import StoreReader, TraceFilter, TraceRow
from django_otel.tracestore.record_reader import LogFilter, LogRow

Answer = dict[str, object]

#: Most rows of an answer.
MAX_ROWS = 500
DEFAULT_ROWS = 20
_MAX_SPANS = 300
_MAX_LOGS = 100
_LONGEST_TEXT = 500
_NS_PER_MS = 1e6
#: Severities of OpenTelemetry by the names of logging's levels.
SEVERITIES = {"DEBUG": 5, "INFO": 9, "WARNING": 13, "ERROR": 17, "CRITICAL": 21}


@dataclass(frozen=True, slots=True)
class Scope:
    """Scope of an answer: the last `since_s` seconds (None: all that is stored), at most `limit` rows."""

    since_s: float | None = None
    limit: int = DEFAULT_ROWS

    @property
    def begin_ns(self) -> int:
        """Return when it begins, in nanoseconds since the Unix epoch."""
        return 0 if self.since_s is None else max(0, int((time.time() - self.since_s) * 1e9))

    @property
    def rows(self) -> int:
        """Most rows of the answer."""
        return max(1, min(MAX_ROWS, self.limit))


class Answers:
    """Answers from one reader; `address(trace_id)` is where a trace can be looked at."""

    def __init__(self, reader: StoreReader, address: Callable[[str], str]) -> None:
        self._reader = reader
        self._address = address

    # --- Traces. ---

    def list_traces(self, scope: Scope, wanted: TraceFilter | None = None) -> Answer:
        """The newest traces that fit."""
        wanted = replace(wanted or TraceFilter(), since_ns=scope.begin_ns)
        page = self._reader.list_traces(wanted, limit=scope.rows)
        return {"traces": [self._trace_row(row) for row in page.rows], "stored": page.stored}

    def _trace_row(self, row: TraceRow) -> Answer:
        return {
            "trace_id": row.trace_id, "time": iso(row.start_ns), "duration_ms": ms(row.duration_ns), "name": row.name,
            "method": row.method, "route": row.route, "status": row.status or None, "is_error": row.is_error,
            "queries": row.queries, "spans": row.spans, "errors": row.errors, "logs": row.logs,
            "services": list(row.services), "events": list(row.events), "address": self._address(row.trace_id),
        }  # fmt: skip

    def get_trace(self, trace_id: str) -> Answer | None:
        """One trace with its spans, in the order of a tree, and its log records; None if it is not stored."""
        found = self._reader.trace(trace_id.strip().lower())
        if found is None or not (found.spans or found.logs):
            return None
        spans = in_tree_order(found.spans)
        return {
            **self._trace_row(found.row),
            "span_count": len(found.spans),
            "spans": [_span(span, depth, found.row.start_ns) for span, depth in spans[:_MAX_SPANS]],
            "log_records": [
                {"level": log.get("level"), "logger": log.get("logger"), "text": cut(log.get("body")),
                 "span_id": log.get("span"), "at_ms": ms(_whole(log.get("time")) - found.row.start_ns)}
                for log in found.logs[:_MAX_LOGS]
            ],
        }  # fmt: skip

    def find_id(self, given: str) -> str:
        """Return the newest trace id that contains this text; the text itself if there is none."""
        wanted = given.strip().lower()
        if len(wanted) == 32 or not wanted or wanted.strip("0123456789abcdef"):
            return wanted
        rows = self._reader.list_traces(TraceFilter(trace_id=wanted), limit=1).rows
        return rows[0].trace_id if rows else wanted

    # --- Errors. ---

    def list_errors(self, scope: Scope) -> Answer:
        """The issues of the page of errors, exactly counted; without any, exceptions of the traces that are stored."""
        wanted = IssueFilter(since_s=scope.begin_ns / 1e9 or None)
        page = list_issues(self._reader.connection, wanted, limit=scope.rows)
        if page.stored:
            return {"errors": [self._issue(row) for row in page.rows]}
        return self._errors_of_traces(scope)

    def _issue(self, row: IssueRow) -> Answer:
        found = find_issue(self._reader.connection, row.id)
        trace_id = next((seen.trace_id for seen in found.traces if seen.is_stored), "") if found is not None else ""
        return {
            "type": row.type, "message": cut(row.message), "place": row.place, "count": row.count,
            "routes": [route for route, _ in found.routes[:10]] if found is not None else [],
            "first": iso(int(row.first_s * 1e9)), "last": iso(int(row.last_s * 1e9)), "state": row.state,
            "trace_id": trace_id, "address": self._address(trace_id) if trace_id else "",
        }  # fmt: skip

    def _errors_of_traces(self, scope: Scope) -> Answer:
        """Exceptions by type and place; those seen last come first."""
        page = self._reader.list_traces(TraceFilter(has_error=True, since_ns=scope.begin_ns), limit=MAX_ROWS)
        groups: dict[tuple[str, str], Answer] = {}
        for row in page.rows:
            found = self._reader.trace(row.trace_id)
            for span in found.spans if found is not None else ():
                for kind, message, place in _exceptions(span):
                    group = groups.setdefault(
                        (kind, place or message),
                        {"type": kind, "message": message, "place": place, "count": 0, "routes": [],
                         "first": iso(row.start_ns), "last": iso(row.start_ns), "trace_id": row.trace_id,
                         "address": self._address(row.trace_id)},
                    )  # fmt: skip
                    group["count"] = _whole(group["count"]) + 1
                    group["first"] = iso(row.start_ns)
                    routes = group["routes"]
                    if isinstance(routes, list) and row.route not in routes and len(routes) < 10:
                        routes.append(row.route)
        return {"errors": list(groups.values())[: scope.rows]}

    # --- Routes. ---

    def list_slow_routes(self, scope: Scope) -> Answer:
        """Routes by their 95th percentile, slowest first, of the traces that are stored.

        With two releases or more each has its figures before the last one began (`before`), and since (`after`).
        """
        rows = record_reader.list_requests(self._reader.connection, since_ns=scope.begin_ns)
        releases = list_releases(self._reader.connection)
        release, began_ns = (releases[0][1], int(releases[0][2] * 1e9)) if len(releases) > 1 else ("", 0)
        before = by_route([row for row in rows if row.start_ns < began_ns])
        after = by_route([row for row in rows if row.start_ns >= began_ns]) if release else {}
        found = sorted(by_route(rows).values(), key=lambda route: -route.p95_ns)
        return {
            "routes": [
                {"route": route.route, "method": route.method, "requests": route.requests, "p50_ms": ms(route.p50_ns),
                 "p95_ms": ms(route.p95_ns), "longest_ms": ms(route.longest.duration_ns), "errors": route.errors,
                 "queries": round(route.queries, 1), "trace_id": route.longest.trace_id,
                 "address": self._address(route.longest.trace_id),
                 "before": _figures(before.get((route.method, route.route))),
                 "after": _figures(after.get((route.method, route.route))),
                 "change": _change(before.get((route.method, route.route)), after.get((route.method, route.route)))}
                for route in found[: scope.rows]
            ],
            "release": release or None,
        }  # fmt: skip

    # --- Queries. ---

    def list_n_plus_one(self, scope: Scope) -> Answer:
        """Statements that one request ran again and again, with the line that ran them and what to do."""
        page = record_reader.list_statements(
            self._reader.connection, only_repeated=True, since_ns=scope.begin_ns, order="count", limit=scope.rows
        )
        return {
            "statements": [
                {"statement": cut(row.text), "in_one_request": max(row.most, row.repeated), "traces": row.repeating,
                 "queries": row.queries, "total_ms": ms(row.total_ns), "line": row.line, "advice": row.advice,
                 "route": row.route, "trace_id": row.trace_id, "address": self._address(row.trace_id)}
                for row in page.rows
            ],
        }  # fmt: skip

    # --- Log records. ---

    def search_logs(self, scope: Scope, wanted: LogFilter | None = None) -> Answer:
        """The newest log records that fit."""
        wanted = replace(wanted or LogFilter(), since_ns=scope.begin_ns)
        page = record_reader.search_logs(self._reader.connection, wanted, limit=scope.rows)
        return {"log_records": [self._log(row) for row in page.rows], "total": page.total, "stored": page.stored}

    def _log(self, row: LogRow) -> Answer:
        return {
            "time": iso(row.time_ns), "level": row.level, "logger": row.logger, "text": cut(row.body),
            "service": row.service, "trace_id": row.trace_id or None, "span_id": row.span_id or None,
            "address": self._address(row.trace_id) if row.trace_id else None,
        }  # fmt: skip


# --- Routes. ---


def _change(before: RouteSum | None, after: RouteSum | None) -> str | None:
    """Return the verdict on a route since the release: "broken", "slower", ...; None where nothing can be compared."""
    if after is None:
        return None
    return judge(figures_of(before) if before is not None else None, figures_of(after))


def _figures(route: RouteSum | None) -> Answer | None:
    """Return the figures of a route that are compared between two releases."""
    if route is None:
        return None
    return {"requests": route.requests, "p95_ms": ms(route.p95_ns), "errors": route.errors}


# --- Spans. ---


def in_tree_order(spans: Sequence[SpanRecord]) -> list[tuple[SpanRecord, int]]:
    """The spans with their depth, each after its parent; those whose parent is not there begin a tree."""
    known = {span["id"] for span in spans}
    children: dict[str, list[SpanRecord]] = {}
    for span in spans:
        parent = span.get("parent", "")
        children.setdefault(parent if parent in known and parent != span["id"] else "", []).append(span)
    found: list[tuple[SpanRecord, int]] = []
    seen: set[int] = set()
    stack = [(span, 0) for span in reversed(children.get("", []))]
    while stack:
        span, depth = stack.pop()
        if id(span) in seen:
            continue
        seen.add(id(span))
        found.append((span, depth))
        stack += [(child, depth + 1) for child in reversed(children.get(span["id"], []))]
    # Spans that are each other's parents.
    return found + [(span, 0) for span in spans if id(span) not in seen]


def _span(span: SpanRecord, depth: int, start_ns: int) -> Answer:
    attributes = {key: cut(value) for key, value in span["attributes"].items()}
    content: Answer = {
        "span_id": span["id"], "depth": depth, "name": span["name"], "kind": span["kind"],
        "at_ms": ms(span["start"] - start_ns), "duration_ms": ms(span["end"] - span["start"]),
    }  # fmt: skip
    if span.get("status"):
        content["status"] = span["status"]
    if attributes:
        content["attributes"] = attributes
    events = [
        {"name": event["name"], "attributes": {key: cut(value) for key, value in event["attributes"].items()}}
        for event in span.get("events", ())
    ]
    if events:
        content["events"] = events[:20]
    return content


def _exceptions(span: Mapping[str, object]) -> list[tuple[str, str, str]]:
    """Type, message and place of each exception of a span."""
    found = []
    events = span.get("events")
    for event in events if isinstance(events, list) else ():
        if event.get("name") == "exception":
            known = event.get("attributes") or {}
            stack = str(known.get("exception.stacktrace", ""))
            found.append(
                (str(known.get("exception.type", "")), str(cut(known.get("exception.message", ""))), _place(stack))
            )
    return found


def _place(stack: str) -> str:
    """The file and function where an exception was raised: the last frame of its stack, without the line's number."""
    frames = [line.strip() for line in stack.splitlines() if line.strip().startswith('File "')]
    if not frames:
        return ""
    parts = frames[-1].split('"')
    function = parts[-1].rpartition(" in ")[2] if " in " in parts[-1] else ""
    return f"{parts[1]} in {function}".removesuffix(" in ")[-200:]


# --- Values. ---


def ms(ns: float) -> float:
    """Nanoseconds as milliseconds."""
    return round(ns / _NS_PER_MS, 3)


def iso(ns: int) -> str:
    """A time in nanoseconds since the Unix epoch, as ISO 8601; "" for one out of range."""
    try:
        return datetime.datetime.fromtimestamp(ns / 1e9, datetime.UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return ""


def cut(value: object) -> object:
    """A value that is short enough for an answer; numbers and booleans as they are."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 3]}..."


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


# --- Bounds. ---

#: The lists of answers, which lose their last items to fit.
_LISTS = ("traces", "errors", "routes", "statements", "log_records", "spans")


def fit(answer: Answer, most_bytes: int) -> str:
    """The answer as JSON of at most `most_bytes` bytes, as a string in JSON, too; what is left out is counted.

    Rows go from the end; of the longest list first.
    """
    left_out = 0
    while True:
        text = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
        # In an answer of MCP the text stands in a string of JSON once more.
        size = len(json.dumps(text, ensure_ascii=True))
        if size <= most_bytes:
            return text
        lists = [(key, rows) for key in _LISTS if isinstance(rows := answer.get(key), list) and rows]
        if not lists:
            return json.dumps({"problem": "This answer is too long.", "left_out": left_out})
        key, rows = max(lists, key=lambda item: len(json.dumps(item[1], default=str)))
        kept = len(rows) * most_bytes * 9 // (size * 10)
        kept = min(kept, len(rows) - 1)
        left_out += len(rows) - kept
        answer = {**answer, key: rows[:kept], "left_out": left_out}
