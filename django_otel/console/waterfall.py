"""A trace as rows: nesting, bars, self time, equal queries in groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from django.utils.safestring import SafeString

from django_otel.console import text
from django_otel.tracestore.reader import Trace

#: Fewer equal queries beneath one span than this each keep a row of their own.
GROUP_FROM = 3
#: So many equal queries in a trace look like a query per row of another one.
N_PLUS_ONE_FROM = 5
#: Further rows are left out of the page, and it says so.
MAX_ROWS = 600
MAX_LOGS = 500
#: Deeper nesting is indented no further.
_DEEPEST_INDENT = 14
_SERVICE_COLOURS = 6
#: A bar narrower than this could not be seen, in percent of the whole.
_NARROWEST = 0.35


@dataclass(frozen=True, slots=True)
class Bar:
    """A piece of the time line, in percent of the trace, as text for SVG attributes."""

    x: str
    width: str


@dataclass(slots=True)
class Row:
    """One span, or a group of equal ones (`members`)."""

    id: str
    name: str
    kind: str
    kind_text: str
    service: str
    service_number: int
    depth: int
    indent: int
    duration: str
    duration_ns: int
    self_time: str
    self_share: float
    offset: str
    bars: list[Bar]
    is_error: bool
    is_entry: bool
    span: Mapping[str, Any]
    note: str = ""
    members: list[Row] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The row in words, for a screen reader."""
        parts = [self.name, self.kind_text, f"{self.duration}, self {self.self_time}"]
        if self.is_error:
            parts.insert(0, "Error:")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class QueryGroup:
    """Equal statements of a trace."""

    statement: str
    title: str
    system: str
    service: str
    count: int
    total: str
    mean: str
    longest: str
    span_id: str
    source: str
    is_n_plus_one: bool


@dataclass(frozen=True, slots=True)
class LogRow:
    """A log record of the trace."""

    at: SafeString
    offset: str
    level: str
    is_bad: bool
    logger: str
    body: str
    stack: str
    span_id: str
    span_name: str
    service: str
    source: str


@dataclass(frozen=True, slots=True)
class Waterfall:
    """Everything the page of a trace shows beneath its head."""

    rows: Sequence[Row]
    hidden: int
    ticks: Sequence[tuple[str, str]]
    services: Sequence[tuple[str, int]]
    query_groups: Sequence[QueryGroup]
    query_time: str
    logs: Sequence[LogRow]
    hidden_logs: int
    first_error: Row | None
    #: What is known of why, in one line.
    failure: str


class _Node:
    __slots__ = ("children", "end", "span", "start")

    def __init__(self, span: Mapping[str, Any]) -> None:
        self.span = span
        self.start = _whole(span.get("start"))
        self.end = max(self.start, _whole(span.get("end")))
        self.children: list[_Node] = []

    @property
    def self_ns(self) -> int:
        """The time in which none of its children ran."""
        covered, reached = 0, self.start
        for child in sorted(self.children, key=lambda node: node.start):
            begin, end = max(child.start, reached), min(child.end, self.end)
            if end > begin:
                covered += end - begin
                reached = end
        return max(0, self.end - self.start - covered)


def build(trace: Trace) -> Waterfall:
    """The waterfall of a trace."""
    return _Builder(trace).build()


class _Builder:
    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._nodes = {str(span.get("id")): _Node(span) for span in trace.spans}
        starts = [node.start for node in self._nodes.values()] or [trace.row.start_ns]
        ends = [node.end for node in self._nodes.values()] or [trace.row.end_ns]
        self._start, self._end = min(starts), max(ends)
        self._total = max(1, self._end - self._start)
        names = dict.fromkeys(str(span.get("service", "")) for span in trace.spans)
        self._services = {name: number % _SERVICE_COLOURS for number, name in enumerate(names)}
        self._rows: list[Row] = []
        self._count = 0

    def build(self) -> Waterfall:
        for root in self._roots():
            self._walk(root)
        logs = self._logs()
        groups, query_ns = self._query_groups()
        failed = _most_telling([row for row in self._rows for row in (row.members or (row,))])
        return Waterfall(
            rows=self._rows,
            hidden=max(0, len(self._nodes) - self._count),
            ticks=[(f"{step * 25}%", text.duration(self._total * step / 4)) for step in range(5)],
            services=list(self._services.items()),
            query_groups=groups,
            query_time=text.duration(query_ns),
            logs=logs[:MAX_LOGS],
            hidden_logs=max(0, len(logs) - MAX_LOGS),
            first_error=failed,
            failure=_failure_of(failed.span) if failed is not None else "",
        )

    def _roots(self) -> list[_Node]:
        """Spans without a parent here, and one of each circle that a faulty sender may have made."""
        roots = []
        for node in self._nodes.values():
            parent = self._nodes.get(str(node.span.get("parent", "")))
            if parent is None or parent is node:
                roots.append(node)
            else:
                parent.children.append(node)
        reached: set[int] = set()

        def reach(start: _Node) -> None:
            waiting = [start]
            while waiting:
                node = waiting.pop()
                if id(node) not in reached:
                    reached.add(id(node))
                    waiting += node.children

        for root in roots:
            reach(root)
        for node in self._nodes.values():
            if id(node) not in reached:
                roots.append(node)
                reach(node)
        return sorted(roots, key=lambda node: node.start)

    def _walk(self, root: _Node) -> None:
        """Rows in the order of the tree; without recursion, since traces may be deep."""
        seen: set[int] = set()
        waiting: list[tuple[list[_Node], int]] = [([root], 0)]
        while waiting:
            nodes, depth = waiting.pop()
            if self._count >= MAX_ROWS:
                return
            if len(nodes) > 1:
                self._add_group(nodes, depth)
                continue
            (node,) = nodes
            if id(node) in seen:
                continue
            seen.add(id(node))
            self._rows.append(self._row(node, depth))
            self._count += 1
            waiting += [(part, depth + 1) for part in reversed(_in_groups(node.children))]

    def _add_group(self, nodes: list[_Node], depth: int) -> None:
        members = [self._row(node, depth + 1) for node in nodes[: max(1, MAX_ROWS - self._count)]]
        self._count += len(members)
        total_ns = sum(node.end - node.start for node in nodes)
        first = self._row(nodes[0], depth)
        source = next(filter(None, (text.source_line(_attributes(node.span)) for node in nodes)), "")
        first.name = f"{len(nodes)} \u00d7 {first.name}"
        first.duration = first.self_time = text.duration(total_ns)
        first.duration_ns = total_ns
        first.bars = [self._bar(node) for node in nodes]
        first.is_error = any(member.is_error for member in members)
        first.id = f"group-{first.id}"
        first.note = source
        first.members = members
        self._rows.append(first)

    def _bar(self, node: _Node) -> Bar:
        width = max(_NARROWEST, (node.end - node.start) / self._total * 100)
        x = min((node.start - self._start) / self._total * 100, 100 - width)
        return Bar(f"{x:.3f}%", f"{width:.3f}%")

    def _row(self, node: _Node, depth: int) -> Row:
        span = node.span
        kind, kind_text = kind_of(span)
        self_ns = node.self_ns
        return Row(
            id=str(span.get("id", "")),
            name=str(span.get("name", "")) or "(no name)",
            kind=kind,
            kind_text=kind_text,
            service=str(span.get("service", "")),
            service_number=self._services.get(str(span.get("service", "")), 0),
            depth=depth,
            indent=min(depth, _DEEPEST_INDENT),
            duration=text.duration(node.end - node.start),
            duration_ns=node.end - node.start,
            self_time=text.duration(self_ns),
            self_share=self_ns / self._total,
            offset=text.duration(node.start - self._start),
            bars=[self._bar(node)],
            is_error=span.get("status") == "ERROR" or _has_exception(span),
            is_entry=bool(span.get("entry")),
            span=span,
            note=_note(span, kind),
        )

    # Queries.

    def _query_groups(self) -> tuple[list[QueryGroup], int]:
        found: dict[tuple[str, str], list[_Node]] = {}
        for node in self._nodes.values():
            if kind_of(node.span)[0] == "database":
                found.setdefault((str(node.span.get("service", "")), _statement(node.span)), []).append(node)
        groups = []
        for (service, statement), nodes in found.items():
            times = [node.end - node.start for node in nodes]
            nodes.sort(key=lambda node: node.start)
            source = next(filter(None, (text.source_line(_attributes(node.span)) for node in nodes)), "")
            groups.append(
                (
                    sum(times),
                    QueryGroup(
                        statement=statement,
                        title=text.shorten(text.one_line(statement), 160),
                        system=str(_attributes(nodes[0].span).get("db.system.name", "")),
                        service=service,
                        count=len(nodes),
                        total=text.duration(sum(times)),
                        mean=text.duration(sum(times) / len(times)),
                        longest=text.duration(max(times)),
                        span_id=str(nodes[0].span.get("id", "")),
                        source=source,
                        is_n_plus_one=len(nodes) >= N_PLUS_ONE_FROM and _is_reading(statement),
                    ),
                )
            )
        groups.sort(key=lambda item: item[0], reverse=True)
        return [group for _, group in groups], sum(total for total, _ in groups)

    # Logs.

    def _logs(self) -> list[LogRow]:
        rows = []
        for log in self._trace.logs:
            attributes = _attributes(log)
            at_ns = _whole(log.get("time"))
            span_id = str(log.get("span", ""))
            node = self._nodes.get(span_id)
            stack = str(attributes.get("exception.stacktrace", ""))
            rows.append(
                LogRow(
                    at=text.time_tag(at_ns, "time"),
                    offset=text.duration(max(0, at_ns - self._start)),
                    level=str(log.get("level", "")),
                    is_bad=_whole(log.get("severity")) >= 17,
                    logger=str(log.get("logger", "")),
                    body=str(log.get("body", "")),
                    stack=stack,
                    span_id=span_id if node is not None else "",
                    span_name=str(node.span.get("name", "")) if node is not None else "",
                    service=str(log.get("service", "")),
                    source=text.source_line(attributes),
                )
            )
        return rows


def _in_groups(children: list[_Node]) -> list[list[_Node]]:
    """Children in order of time, equal queries together where the first of them stands."""
    children.sort(key=lambda node: node.start)
    groups: dict[Any, list[_Node]] = {}
    for number, node in enumerate(children):
        is_query = not node.children and kind_of(node.span)[0] == "database"
        key: Any = (node.span.get("service"), _statement(node.span)) if is_query else number
        groups.setdefault(key, []).append(node)
    found: list[list[_Node]] = []
    for nodes in groups.values():
        found += [nodes] if len(nodes) >= GROUP_FROM else [[node] for node in nodes]
    return sorted(found, key=lambda nodes: nodes[0].start)


def _most_telling(rows: list[Row]) -> Row | None:
    """The failed span to look at first: one with an exception, the innermost of them."""
    failed = [row for row in rows if row.is_error]
    with_exception = [row for row in failed if _has_exception(row.span)]
    return max(with_exception or failed, key=lambda row: row.depth, default=None)


def _failure_of(span: Mapping[str, Any]) -> str:
    for event in _list(span.get("events")):
        if event.get("name") == "exception":
            known = _attributes(event)
            message = text.one_line(str(known.get("exception.message", "")))[:200]
            return f"{known.get('exception.type', '')}: {message}".strip(": ")
    attributes = _attributes(span)
    return str(span.get("description") or attributes.get("error.type", ""))[:200]


def _has_exception(span: Mapping[str, Any]) -> bool:
    return any(event.get("name") == "exception" for event in _list(span.get("events")))


def _note(span: Mapping[str, Any], kind: str) -> str:
    """A line beneath the name that tells more than the name does."""
    attributes = _attributes(span)
    if kind == "database":
        statement = text.one_line(str(attributes.get("db.query.text", "")))
        # "BEGIN" needs no "BEGIN IMMEDIATE" beneath it.
        return statement[:300] if len(statement) > len(str(span.get("name", ""))) + 12 else ""
    if kind == "client":
        return text.one_line(str(attributes.get("url.full") or attributes.get("server.address", "")))[:300]
    return text.source_line(attributes)


def kind_of(span: Mapping[str, Any]) -> tuple[str, str]:
    """What a span is: a class for its colour and a word for its reader."""
    attributes = _attributes(span)
    if "business.event" in attributes:
        return "business", "business event"
    system = str(attributes.get("db.system.name", attributes.get("db.system", "")))
    if system in ("redis", "valkey", "memcached"):
        return "cache", system
    if system:
        return "database", f"{system} query"
    name = str(span.get("name", ""))
    if name.startswith("cache "):
        return "cache", "cache"
    if name.startswith("render "):
        return "template", "template"
    kind = str(span.get("kind", "INTERNAL"))
    if kind == "CLIENT":
        return "client", "outgoing request"
    if kind == "SERVER":
        return "server", "request"
    if kind in ("PRODUCER", "CONSUMER"):
        return "queue", "message sent" if kind == "PRODUCER" else "message processed"
    return "internal", "span"


def _statement(span: Mapping[str, Any]) -> str:
    attributes = _attributes(span)
    return str(attributes.get("db.query.text") or attributes.get("db.statement") or span.get("name", ""))


def _is_reading(statement: str) -> bool:
    return statement.lstrip(" (").upper().startswith(("SELECT", "WITH"))


# --- One span. ---


@dataclass(frozen=True, slots=True)
class Fault:
    """An exception of a span."""

    type: str
    message: str
    stack: str


@dataclass(frozen=True, slots=True)
class SpanEvent:
    name: str
    offset: str
    attributes: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class SpanLink:
    trace_id: str
    span_id: str
    attributes: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Details:
    """Everything that is known of one span."""

    id: str
    facts: Sequence[tuple[str, str]]
    sql: SafeString
    faults: Sequence[Fault]
    attributes: Sequence[tuple[str, str]]
    events: Sequence[SpanEvent]
    links: Sequence[SpanLink]


def details(trace: Trace, span_id: str) -> Details | None:
    """One span of a trace; None when it is not in it."""
    span = next((span for span in trace.spans if span.get("id") == span_id), None)
    if span is None:
        return None
    start, end = _whole(span.get("start")), _whole(span.get("end"))
    begin = min(_whole(other.get("start")) for other in trace.spans)
    attributes = _attributes(span)
    facts = [
        ("Service", str(span.get("service", ""))),
        ("Kind", str(span.get("kind", "")).capitalize()),
        ("Began after", text.duration(start - begin)),
        ("Took", text.duration(end - start)),
        ("Made by", str(span.get("scope", "")) or "django_otel"),
        ("Span", span_id),
    ]
    if source := text.source_line(attributes):
        facts.insert(0, ("Called from", source))
    if span.get("status"):
        description = f": {span['description']}" if span.get("description") else ""
        facts.insert(0, ("Status", f"{str(span['status']).capitalize()}{description}"))
    if span.get("lost"):
        facts.append(("Left out", f"{text.plural(_whole(span['lost']), 'item')} above TRACES.LIMITS"))
    faults, events = [], []
    for event in _list(span.get("events")):
        known = _attributes(event)
        if event.get("name") == "exception":
            faults.append(
                Fault(
                    text.value(known.get("exception.type", "")),
                    text.value(known.get("exception.message", "")),
                    str(known.get("exception.stacktrace", "")),
                )
            )
            known = {key: item for key, item in known.items() if not key.startswith("exception.")}
            if not known:
                continue
        offset = text.duration(max(0, _whole(event.get("time")) - start))
        events.append(SpanEvent(str(event.get("name", "")), offset, _pairs(known)))
    statement = str(attributes.get("db.query.text") or attributes.get("db.statement") or "")
    return Details(
        id=span_id,
        facts=facts,
        sql=text.sql(statement) if statement else SafeString(""),
        faults=faults,
        attributes=_pairs({key: item for key, item in attributes.items() if key != "db.query.text"}),
        events=events,
        links=[
            SpanLink(str(link.get("trace", "")), str(link.get("span", "")), _pairs(_attributes(link)))
            for link in _list(span.get("links"))
        ],
    )


def _pairs(attributes: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(str(key), text.value(attributes[key])) for key in sorted(attributes)]


def _attributes(item: Mapping[str, Any]) -> Mapping[str, Any]:
    found = item.get("attributes")
    return found if isinstance(found, Mapping) else {}


def _list(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _whole(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0


def trace_address(template: str | None, trace_id: str) -> tuple[str, str] | None:
    """Where a trace can be looked at elsewhere, and the name of that place; None when TRACE_URL is not set."""
    if not template:
        return None
    url = template.replace("{trace_id}", trace_id)
    lowered = template.lower()
    for mark, name in (("jaeger", "Jaeger"), ("16686", "Jaeger"), ("tempo", "Tempo"), ("grafana", "Grafana"),
                       ("zipkin", "Zipkin"), ("datadog", "Datadog"), ("honeycomb", "Honeycomb")):  # fmt: skip
        if mark in lowered:
            return url, name
    return url, urlsplit(url).hostname or "tracing"
