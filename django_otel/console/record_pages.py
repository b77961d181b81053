"""The console's pages over all traces: statements and log records."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.translation import gettext, gettext_lazy, ngettext_lazy

from django_otel.base.text import visible
from django_otel.console import text
from django_otel.console.access import may_explain
from django_otel.console.answers import SEVERITIES
from django_otel.console.filters import read_time, whole
from django_otel.console.page import PAGE_SIZE, TRACE_ID, console_page, page_links, read_store, trace_addresses
from django_otel.console.pages import trace_rows
from django_otel.tracestore import record_reader
from django_otel.tracestore.processor import StoreProcessor
from django_otel.tracestore.reader import StoreReader, TraceFilter, TraceRow
from django_otel.tracestore.record_reader import (
    STATEMENT_ORDERS,
    LogFilter,
    LogPage,
    LogRow,
    StatementPage,
    StatementRow,
)

if TYPE_CHECKING:
    from django_otel.console.entries import ConsoleAdmin

_TIMES = ngettext_lazy("%(count)s time", "%(count)s times", "n")
_TRACES = ngettext_lazy("%(count)s trace", "%(count)s traces", "n")
_IN_ONE = ngettext_lazy("%(count)s time in one request", "%(count)s times in one request", "n")
_ORDERS = {
    "total": gettext_lazy("Total time"),
    "count": gettext_lazy("Count"),
    "longest": gettext_lazy("Longest"),
    "traces": gettext_lazy("Traces"),
}
#: How often a page of log records that is followed asks for new ones, in seconds.
_FOLLOW_S = 2


def _moment_ns(values: Mapping[str, str], name: str, problems: dict[str, str]) -> int:
    """A time of an address in nanoseconds since the Unix epoch; 0 for none."""
    return max(0, int((read_time(values, name, time.time(), problems) or 0) * 1e9))


def _given(request: HttpRequest, names: tuple[str, ...]) -> dict[str, str]:
    """The values of the form that are there."""
    found = {name: str(request.GET.get(name, "")).strip()[:200] for name in names}
    return {name: value for name, value in found.items() if value}


# --- Statements. ---


@console_page
def queries(
    request: HttpRequest, admin: ConsoleAdmin, context: dict[str, object], console: StoreProcessor
) -> HttpResponse:
    """Statements of all stored requests, by total time, count or longest; those that requests repeat."""
    problems: dict[str, str] = {}
    values = _given(request, ("q", "since", "sort", "repeated"))
    order = values.get("sort", "total")
    if order not in STATEMENT_ORDERS:
        order = "total"
    since_ns = _moment_ns(values, "since", problems)
    number = whole(request.GET.get("page"), 1, 1_000_000)

    def use(reader: StoreReader) -> StatementPage:
        return record_reader.list_statements(
            reader.connection,
            text=values.get("q", ""),
            only_repeated="repeated" in values,
            since_ns=since_ns,
            order=order,
            offset=(number - 1) * PAGE_SIZE,
            limit=0 if problems else PAGE_SIZE,
        )

    page = read_store(console, use)
    address = trace_addresses(admin.admin_site.name)
    without_sort = {name: value for name, value in values.items() if name != "sort"}
    context |= {
        "title": gettext("Queries"),
        "rows": [_statement(row, address) for row in page.rows],
        "may_explain": may_explain(request),
        "total": page.total,
        "values": values,
        "problems": problems,
        "is_filtered": bool(without_sort),
        "orders": [
            {"name": name, "text": words, "address": "?" + urlencode({**without_sort, "sort": name}),
             "is_current": name == order}
            for name, words in _ORDERS.items()
        ],
        **page_links(page.total, number, values),
    }  # fmt: skip
    return TemplateResponse(request, "django_otel/console/queries.html", context)


def _statement(row: StatementRow, address: Callable[[str], str]) -> dict[str, object]:
    most = max(row.most, row.repeated)
    is_repeated = row.repeated > 0 or most >= record_reader.MANY_EQUAL
    return {
        "id": row.id,
        "title": text.shorten(text.one_line(row.text), 120),
        "sql": text.sql_lines(row.text),
        "total": text.duration(row.total_ns),
        "longest": text.duration(row.longest_ns),
        "average": text.duration(row.total_ns / max(1, row.queries)),
        "times": text.plural(row.queries, _TIMES),
        "traces": text.plural(row.traces, _TRACES),
        "in_one": text.plural(most, _IN_ONE) if is_repeated else "",
        "is_repeated": is_repeated,
        "line": text.short_path(row.line) if row.line else "",
        "advice": row.advice,
        "route": row.route,
        "address": address(row.trace_id),
    }


# --- Log records. ---


@console_page
def logs(
    request: HttpRequest, admin: ConsoleAdmin, context: dict[str, object], console: StoreProcessor
) -> HttpResponse:
    """Log records, newest first: searched, by level and logger; followed while `?follow=1`."""
    problems: dict[str, str] = {}
    values = _given(request, ("q", "level", "logger", "trace", "since", "until", "follow"))
    wanted = _log_filter(values, problems)
    number = whole(request.GET.get("page"), 1, 1_000_000)
    is_part = request.GET.get("part") == "results"

    def use(reader: StoreReader) -> tuple[LogPage, list[str]]:
        page = record_reader.search_logs(
            reader.connection, wanted, offset=(number - 1) * PAGE_SIZE, limit=0 if problems else PAGE_SIZE
        )
        return page, [] if is_part else record_reader.list_loggers(reader.connection)

    page, loggers = read_store(console, use)
    address = trace_addresses(admin.admin_site.name)
    is_followed = "follow" in values and number == 1 and not problems
    without_follow = {name: value for name, value in values.items() if name != "follow"}
    context |= {
        "title": gettext("Logs"),
        "rows": [_log(row, address) for row in page.rows],
        "total": page.total,
        "stored": page.stored,
        "values": values,
        "problems": problems,
        "is_filtered": bool(without_follow),
        "levels": list(SEVERITIES),
        # As values of the field they cannot be written out.
        "loggers": [name for name in loggers if visible(name) == name],
        "is_followed": is_followed,
        "follow_s": _FOLLOW_S,
        "follow_address": "?" + urlencode({**without_follow, "follow": "1"}),
        "stay_address": "?" + urlencode(without_follow),
        "part_address": "?" + urlencode({**values, "page": number, "part": "results"}),
        "problem": console.problem,
        **page_links(page.total, number, without_follow),
    }
    template = "logs_results" if is_part else "logs"
    return TemplateResponse(request, f"django_otel/console/{template}.html", context)


def _log_filter(values: Mapping[str, str], problems: dict[str, str]) -> LogFilter:
    level = values.get("level", "").upper()
    if level and level not in SEVERITIES:
        problems["level"] = gettext("Expected a level such as WARNING.")
    trace_id = values.get("trace", "").lower()
    if trace_id and not TRACE_ID.fullmatch(trace_id):
        problems["trace"] = gettext("Expected a trace id: 32 digits 0 to 9 and letters a to f.")
    return LogFilter(
        text=values.get("q", ""),
        severity=SEVERITIES.get(level, 0),
        logger=values.get("logger", ""),
        trace_id=trace_id,
        since_ns=_moment_ns(values, "since", problems),
        until_ns=_moment_ns(values, "until", problems),
    )


def _log(row: LogRow, address: Callable[[str], str]) -> dict[str, object]:
    return {
        "at": text.time_tag(row.time_ns),
        "level": row.level,
        "class": "bad" if row.severity >= 17 else "warn" if row.severity >= 13 else "",
        "logger": row.logger,
        "service": row.service,
        "body": row.body,
        "details": [(key, text.value(value)) for key, value in sorted(row.details.items())][:40],
        "address": address(row.trace_id),
    }


# --- One object. ---


@console_page
def object_traces(
    request: HttpRequest, admin: ConsoleAdmin, context: dict[str, object], console: StoreProcessor, model: str, pk: str
) -> HttpResponse:
    """The traces that created, changed or named an object."""
    number = whole(request.GET.get("page"), 1, 1_000_000)

    def use(reader: StoreReader) -> tuple[list[TraceRow], int]:
        ids, total = record_reader.traces_of_object(
            reader.connection, model[:200], pk[:200], offset=(number - 1) * PAGE_SIZE, limit=PAGE_SIZE
        )
        found = (reader.list_traces(TraceFilter(trace_id=trace_id), limit=1).rows for trace_id in ids)
        return [row for rows in found for row in rows], total

    rows, total = read_store(console, use)
    context |= {
        "title": gettext("Traces of %(object)s") % {"object": f"{model} {pk}"[:200]},
        "rows": trace_rows(rows, admin.admin_site.name),
        **page_links(total, number, {}),
    }
    return TemplateResponse(request, "django_otel/console/object_traces.html", context)
