"""A trace as rows: nesting, bars, self time, equal queries in groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.utils.safestring import SafeString
from django.utils.translation import gettext

from django_otel.console import text
from django_otel.console.span_filter import SpanFilter
from django_otel.console.stored_spans import (
    attributes_of,
    database_system,
    failure_of,
    has_exception,
    is_bad_log,
    is_error,
    is_reading,
    kind_of,
    kind_text,
    note_of,
    statement_of,
    whole_number,
)
from django_otel.tracestore.reader import Trace

#: Up to this number, equal queries below one span each keep a row of their own.
GROUP_FROM = 3
#: So many equal queries in a trace look like a query per row of another one.
N_PLUS_ONE_FROM = 5
#: Rows and log records of one page of a trace; failed ones of other pages come on top, up to a bound.
MAX_ROWS = 300
MAX_LOGS = 250
MAX_FAILED = 200
#: Log records between the spans of one page; all of them are in the list below.
MAX_INLINE_LOGS = 300
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


@dataclass(frozen=True, slots=True)
class Gap:
    """Rows that another page of the trace shows, and the first page that does."""

    count: int
    page: int


@dataclass(frozen=True, slots=True)
class Pages:
    """The visible part of a long list. Numbers count from 1."""

    number: int
    count: int
    first: int
    last: int
    total: int

    @property
    def before(self) -> int:
        """The page before; 0 where there is none."""
        return self.number - 1

    @property
    def after(self) -> int:
        """The page after; 0 where there is none."""
        return self.number + 1 if self.number < self.count else 0

    @classmethod
    def of(cls, total: int, size: int, number: int) -> Pages:
        """Page `number` of `total` things, or the nearest there is."""
        count = max(1, -(-total // size))
        number = min(max(1, number), count)
        return cls(number, count, (number - 1) * size + 1, min(total, number * size), total)

    def positions(self, failed: Sequence[int], *others: int) -> list[int]:
        """Return the positions (from 0) to show: those of the page, failed ones, and the opened one."""
        own = range(self.first - 1, self.last)
        outside = [position for position in failed if position not in own][:MAX_FAILED]
        return sorted({*own, *outside, *others})


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
    offset: str
    bars: list[Bar]
    is_error: bool
    is_entry: bool
    span: Mapping[str, Any]
    note: str = ""
    members: list[Row] = field(default_factory=list)
    #: Rows that are left out before it.
    gap: Gap | None = None
    #: Log records that follow it in time, or are its own.
    logs: list[InlineLog] = field(default_factory=list)
    #: Whether it has spans below it; how many are hidden, because it is collapsed; the address that turns that.
    is_parent: bool = False
    hidden: int = 0
    toggle: str = ""
    #: Whether it does not fit the filter, and is there for one below it.
    is_context: bool = False


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
class InlineLog:
    """A log record between the spans."""

    indent: int
    offset: str
    level: str
    is_bad: bool
    body: str


@dataclass(frozen=True, slots=True)
class Waterfall:
    """Everything the page of a trace shows below its head."""

    rows: Sequence[Row]
    pages: Pages
    #: Rows that are left out at the end.
    gap: Gap | None
    ticks: Sequence[tuple[str, str]]
    services: Sequence[tuple[str, int]]
    query_groups: Sequence[QueryGroup]
    query_time: str
    logs: Sequence[LogRow]
    log_pages: Pages
    first_error: Row | None
    #: The reason, as far as it is known, in one line.
    failure: str
    #: How many spans fit the filter, of how many.
    fitting: int
    total: int


class _Node:
    __slots__ = ("children", "end", "span", "start")

    def __init__(self, span: Mapping[str, Any]) -> None:
        self.span = span
        self.start = whole_number(span.get("start"))
        self.end = max(self.start, whole_number(span.get("end")))
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


@dataclass(slots=True)
class _Entry:
    """A span in the order of the page, and the group of equal queries it is shown in."""

    node: _Node
    depth: int
    group: Sequence[_Node] = ()
    #: Log records directly after it, with their depth.
    logs: list[tuple[Mapping[str, Any], int]] = field(default_factory=list)
    #: Spans below it that are not shown, because it is collapsed.
    hidden: int = 0
    is_parent: bool = False
    #: Whether a filter keeps it only for a span below it.
    is_context: bool = False

    @property
    def is_error(self) -> bool:
        return is_error(self.node.span)


def build(
    trace: Trace, *, page: int = 0, log_page: int = 1, span_id: str = "", chosen: SpanFilter | None = None
) -> Waterfall:
    """A page of the waterfall: the one asked for, else the one with the span asked for, else the first.

    Failed spans and the span asked for are among the rows of every page. With a filter there are the spans that fit it,
    and those above them.
    """
    return _Builder(trace, chosen or SpanFilter()).build(page, log_page, span_id)


class _Builder:
    def __init__(self, trace: Trace, chosen: SpanFilter) -> None:
        self._trace = trace
        self._chosen = chosen
        self._nodes = {str(span.get("id")): _Node(span) for span in trace.spans}
        starts = [node.start for node in self._nodes.values()] or [trace.row.start_ns]
        ends = [node.end for node in self._nodes.values()] or [trace.row.end_ns]
        self._start, self._end = min(starts), max(ends)
        self._total = max(1, self._end - self._start)
        names = dict.fromkeys(str(span.get("service", "")) for span in trace.spans)
        self._services = {name: number % _SERVICE_COLOURS for number, name in enumerate(names)}
        self._entries: list[_Entry] = []
        self._logs: dict[str, list[Mapping[str, Any]]] = {}
        for log in trace.logs:
            self._logs.setdefault(str(log.get("span", "")), []).append(log)
        self._inline_left = 0 if chosen.hides_logs else MAX_INLINE_LOGS
        self._fitting = 0
        #: A filter looks into collapsed spans.
        self._closed = set() if chosen.is_active else set(chosen.closed)

    def build(self, page: int, log_page: int, span_id: str) -> Waterfall:
        self._open_to(span_id)
        for root in self._roots():
            self._walk(root)
        total = len(self._entries)
        telling = _most_telling([entry for entry in self._entries if entry.is_error])
        if self._chosen.is_active:
            for entry in self._entries:
                entry.is_context = True
            self._filter(span_id)
        entries = self._entries
        wanted = next((index for index, entry in enumerate(entries) if entry.node.span.get("id") == span_id), None)
        if page < 1:
            page = 1 if wanted is None else wanted // MAX_ROWS + 1
        pages = Pages.of(len(entries), MAX_ROWS, page)
        failed = [index for index, entry in enumerate(entries) if entry.is_error]
        rows, gap = self._rows(pages.positions(failed, *(() if wanted is None else (wanted,))))
        logs = self._trace.logs
        log_pages = Pages.of(len(logs), MAX_LOGS, log_page)
        bad_logs = [index for index, log in enumerate(logs) if is_bad_log(log)]
        groups, query_ns = self._query_groups()
        return Waterfall(
            rows=rows,
            pages=pages,
            gap=gap,
            ticks=[(f"{step * 25}%", text.duration(self._total * step / 4)) for step in range(5)],
            services=list(self._services.items()),
            query_groups=groups,
            query_time=text.duration(query_ns),
            logs=[self._log(logs[index]) for index in log_pages.positions(bad_logs)],
            log_pages=log_pages,
            first_error=self._row(telling.node, telling.depth) if telling is not None else None,
            failure=failure_of(telling.node.span) if telling is not None else "",
            fitting=self._fitting if self._chosen.is_active else total,
            total=total,
        )

    def _filter(self, span_id: str) -> None:
        """Keep the spans that fit, with their log records, and those above them."""
        kept: dict[int, _Entry] = {}
        above: list[int] = []
        for index, entry in enumerate(self._entries):
            del above[entry.depth :]
            logs = self._logs.get(str(entry.node.span.get("id", "")), [])
            entry.logs = []
            fits = self._chosen.fits(entry.node.span, logs)
            # A link may lead to one that does not fit.
            if fits or entry.node.span.get("id") == span_id:
                for ancestor in above:
                    kept.setdefault(ancestor, self._entries[ancestor])
                entry.logs = [(log, entry.depth + 1) for log in logs] if fits else []
                entry.is_context = not fits
                kept[index] = entry
            above.append(index)
        self._fitting = sum(not entry.is_context for entry in kept.values())
        self._entries = [kept[index] for index in sorted(kept)]
        groups: dict[int, list[_Entry]] = {}
        for entry in self._entries:
            if entry.group:
                groups.setdefault(id(entry.group), []).append(entry)
        for members in groups.values():
            nodes = [entry.node for entry in members] if len(members) >= GROUP_FROM else []
            for entry in members:
                entry.group = nodes

    def _open_to(self, span_id: str) -> None:
        """Expand the spans above the one that is asked for."""
        node = self._nodes.get(span_id)
        seen: set[str] = set()
        while node is not None and (parent := str(node.span.get("parent", ""))) not in seen:
            seen.add(parent)
            self._closed.discard(parent)
            node = self._nodes.get(parent)

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
        """Spans in the order of the tree, with log records in time; without recursion, since traces may be deep."""
        seen: set[int] = set()
        waiting: list[tuple[list[_Node] | Mapping[str, Any], int]] = [([root], 0)]
        closed = self._closed
        while waiting:
            part, depth = waiting.pop()
            if not isinstance(part, list):
                self._entries[-1].logs.append((part, depth))
                continue
            if len(part) > 1:
                self._entries += [_Entry(node, depth, part) for node in part]
                # Within a group they would be hidden with it.
                self._entries[-1].logs += [(log, depth + 1) for node in part for log in self._logs_of(node)]
                continue
            (node,) = part
            if id(node) in seen:
                continue
            seen.add(id(node))
            entry = _Entry(node, depth, is_parent=bool(node.children))
            self._entries.append(entry)
            if node.children and node.span.get("id") in closed:
                entry.hidden = _count_below(node)
                entry.logs += [(log, depth + 1) for log in self._logs_of(node)]
                continue
            below: list[tuple[int, list[_Node] | Mapping[str, Any]]] = [
                (nodes[0].start, nodes) for nodes in _in_groups(node.children)
            ]
            below += [(whole_number(log.get("time")), log) for log in self._logs_of(node)]
            below.sort(key=lambda item: item[0])
            waiting += [(one, depth + 1) for _, one in reversed(below)]

    def _logs_of(self, node: _Node) -> list[Mapping[str, Any]]:
        return self._logs.get(str(node.span.get("id", "")), [])

    def _rows(self, positions: Sequence[int]) -> tuple[list[Row], Gap | None]:
        """The rows of these positions, and what is left out after them."""
        rows: list[Row] = []
        group: Any = None
        reached = 0
        for position in positions:
            entry = self._entries[position]
            gap = self._gap(reached, position)
            reached = position + 1
            if not entry.group:
                row = self._row(entry.node, entry.depth)
                row.is_parent, row.hidden, row.is_context = entry.is_parent, entry.hidden, entry.is_context
                if row.is_parent and not self._chosen.is_active:
                    row.toggle = self._chosen.turned(row.id)
                rows.append(row)
            elif entry.group is group:
                row = self._row(entry.node, entry.depth + 1)
                rows[-1].members.append(row)
            else:
                row = self._group_row(entry)
                row.members.append(self._row(entry.node, entry.depth + 1))
                rows.append(row)
            group = entry.group
            row.gap = gap
            rows[-1].logs += self._inline(entry.logs)
        return rows, self._gap(reached, len(self._entries))

    def _inline(self, logs: Sequence[tuple[Mapping[str, Any], int]]) -> list[InlineLog]:
        shown = logs[: self._inline_left]
        self._inline_left -= len(shown)
        return [
            InlineLog(
                min(depth, _DEEPEST_INDENT),
                text.duration(max(0, whole_number(log.get("time")) - self._start)),
                str(log.get("level", "")),
                is_bad_log(log),
                text.shorten(text.one_line(str(log.get("body", ""))), 300),
            )
            for log, depth in shown
        ]

    def _gap(self, begin: int, end: int) -> Gap | None:
        return Gap(end - begin, begin // MAX_ROWS + 1) if end > begin else None

    def _group_row(self, entry: _Entry) -> Row:
        nodes = entry.group
        total_ns = sum(node.end - node.start for node in nodes)
        row = self._row(nodes[0], entry.depth)
        row.name = f"{len(nodes)} \u00d7 {row.name}"
        row.duration = row.self_time = text.duration(total_ns)
        row.duration_ns = total_ns
        row.bars = [self._bar(node) for node in nodes[:MAX_ROWS]]
        row.is_error = any(is_error(node.span) for node in nodes)
        row.id = f"group-{row.id}"
        row.note = next(filter(None, (text.source_line(attributes_of(node.span)) for node in nodes)), "")
        return row

    def _bar(self, node: _Node) -> Bar:
        width = max(_NARROWEST, (node.end - node.start) / self._total * 100)
        x = min((node.start - self._start) / self._total * 100, 100 - width)
        return Bar(f"{x:.3f}%", f"{width:.3f}%")

    def _row(self, node: _Node, depth: int) -> Row:
        span = node.span
        kind = kind_of(span)
        self_ns = node.self_ns
        return Row(
            id=str(span.get("id", "")),
            name=str(span.get("name", "")) or gettext("(no name)"),
            kind=kind,
            kind_text=kind_text(span, kind),
            service=str(span.get("service", "")),
            service_number=self._services.get(str(span.get("service", "")), 0),
            depth=depth,
            indent=min(depth, _DEEPEST_INDENT),
            duration=text.duration(node.end - node.start),
            duration_ns=node.end - node.start,
            self_time=text.duration(self_ns),
            offset=text.duration(node.start - self._start),
            bars=[self._bar(node)],
            is_error=is_error(span),
            is_entry=bool(span.get("entry")),
            span=span,
            note=note_of(span, kind),
        )

    # Queries.

    def _query_groups(self) -> tuple[list[QueryGroup], int]:
        found: dict[tuple[str, str], list[_Node]] = {}
        for node in self._nodes.values():
            if kind_of(node.span) == "database":
                found.setdefault((str(node.span.get("service", "")), statement_of(node.span)), []).append(node)
        groups = []
        for (service, statement), nodes in found.items():
            times = [node.end - node.start for node in nodes]
            nodes.sort(key=lambda node: node.start)
            source = next(filter(None, (text.source_line(attributes_of(node.span)) for node in nodes)), "")
            groups.append(
                (
                    sum(times),
                    QueryGroup(
                        statement=statement,
                        title=text.shorten(text.one_line(statement), 160),
                        system=database_system(attributes_of(nodes[0].span)),
                        service=service,
                        count=len(nodes),
                        total=text.duration(sum(times)),
                        mean=text.duration(sum(times) / len(times)),
                        longest=text.duration(max(times)),
                        span_id=str(nodes[0].span.get("id", "")),
                        source=source,
                        is_n_plus_one=len(nodes) >= N_PLUS_ONE_FROM and is_reading(statement),
                    ),
                )
            )
        groups.sort(key=lambda item: item[0], reverse=True)
        return [group for _, group in groups], sum(total for total, _ in groups)

    # Logs.

    def _log(self, log: Mapping[str, Any]) -> LogRow:
        attributes = attributes_of(log)
        at_ns = whole_number(log.get("time"))
        span_id = str(log.get("span", ""))
        node = self._nodes.get(span_id)
        return LogRow(
            at=text.time_tag(at_ns, "time"),
            offset=text.duration(max(0, at_ns - self._start)),
            level=str(log.get("level", "")),
            is_bad=is_bad_log(log),
            logger=str(log.get("logger", "")),
            body=str(log.get("body", "")),
            stack=str(attributes.get("exception.stacktrace", "")),
            span_id=span_id if node is not None else "",
            span_name=str(node.span.get("name", "")) if node is not None else "",
            service=str(log.get("service", "")),
            source=text.source_line(attributes),
        )


def _count_below(node: _Node) -> int:
    seen: set[int] = set()
    waiting = list(node.children)
    while waiting:
        below = waiting.pop()
        if id(below) not in seen:
            seen.add(id(below))
            waiting += below.children
    return len(seen)


def _in_groups(children: list[_Node]) -> list[list[_Node]]:
    """Children in order of time, equal queries together where the first of them stands."""
    children.sort(key=lambda node: node.start)
    groups: dict[Any, list[_Node]] = {}
    for number, node in enumerate(children):
        is_query = not node.children and kind_of(node.span) == "database"
        key: Any = (node.span.get("service"), statement_of(node.span)) if is_query else number
        groups.setdefault(key, []).append(node)
    found: list[list[_Node]] = []
    for nodes in groups.values():
        found += [nodes] if len(nodes) >= GROUP_FROM else [[node] for node in nodes]
    return sorted(found, key=lambda nodes: nodes[0].start)


def _most_telling(failed: list[_Entry]) -> _Entry | None:
    """The failed span to look at first: one with an exception, the innermost of them."""
    with_exception = [entry for entry in failed if has_exception(entry.node.span)]
    return max(with_exception or failed, key=lambda entry: entry.depth, default=None)
