"""The pages of the console. Each is for signed-in staff with the permission `django_otel.view_console`.

They read the store and, for the dashboard, the numbers of the scrape; nothing
is written, nothing about a request to them is recorded, and their parts can be
asked for alone (`?part=`), which is how the pages refresh themselves.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.translation import gettext, ngettext_lazy, pgettext

from django_otel import runtime
from django_otel.console import dashboard as dashboard_parts
from django_otel.console import layers, span_details, span_filter, stored_spans, text, trace_view, waterfall
from django_otel.console.access import may_explain
from django_otel.console.filters import read_time, whole
from django_otel.console.page import (
    PAGE_SIZE,
    TRACE_ID,
    console_page,
    page_links,
    read_store,
    sorted_columns,
    store_errors,
    trace_addresses,
)
from django_otel.tracestore.issue_reader import find_issue_of_span
from django_otel.tracestore.processor import StoreProcessor
from django_otel.tracestore.reader import (
    NO_CHOICES,
    SORTS,
    Choices,
    StoreReader,
    Trace,
    TraceFilter,
    TracePage,
    TraceRow,
)
from django_otel.tracestore.search import BadQuery, Condition, parse_query

if TYPE_CHECKING:
    from django_otel.console.entries import ConsoleAdmin

_SPAN_ID = re.compile(r"[0-9a-f]{16}")
_STATUS = re.compile(r"[1-5]xx|[1-5][0-9][0-9]")
_FILTER_NAMES = (
    "q", "route", "status", "min_ms", "error", "event", "trace", "service", "release", "user", "since", "until", "sort",
)  # fmt: skip
#: Longest duration that the filter accepts, in milliseconds (ten days).
_MAX_MS = 864_000_000
#: Minimum durations to choose from, in milliseconds.
DURATIONS_MS = (5, 10, 50, 100, 250, 500, 1000, 5000)

_SPANS = ngettext_lazy("%(count)s span", "%(count)s spans", "n")
_QUERIES = ngettext_lazy("%(count)s query", "%(count)s queries", "n")
_ERRORS = ngettext_lazy("%(count)s error", "%(count)s errors", "n")


# --- The list of traces. ---


@dataclass(frozen=True, slots=True)
class _Asked:
    """Parsed query string: the filter, the values that the form shows again, and errors by field."""

    wanted: TraceFilter
    values: dict[str, str]
    problems: dict[str, str]


def _parse_filter(query: Mapping[str, object]) -> _Asked:
    """Return the filter of a query string. Invalid values stay in the form, and are named in `problems`."""
    given = {name: str(query.get(name, "")).strip()[:500] for name in _FILTER_NAMES}
    problems: dict[str, str] = {}
    status = given["status"].lower()
    if status and not _STATUS.fullmatch(status):
        problems["status"] = gettext("Expected a status such as 404, or a class such as 5xx.")
    min_duration_s = None
    if given["min_ms"]:
        min_duration_s = _parse_ms(given["min_ms"])
        if min_duration_s is None:
            problems["min_ms"] = gettext(
                "Expected a number of milliseconds from 0 to %(most)s, such as 250. Write one second as 1000."
            ) % {"most": _MAX_MS}
    trace_id = given["trace"].lower()
    if not re.fullmatch("[0-9a-f]{0,32}", trace_id):
        problems["trace"] = gettext("Expected a part of a trace id: at most 32 digits 0 to 9 and letters a to f.")
    now_s = time.time()
    times_s = (read_time(given, name, now_s, problems) for name in ("since", "until"))
    since_ns, until_ns = (None if at_s is None else int(at_s * 1e9) for at_s in times_s)
    conditions: tuple[Condition, ...] = ()
    try:
        conditions = tuple(parse_query(given["q"]))
    except BadQuery as error:
        problems["q"] = gettext(
            "“%(piece)s” is not valid. Expected words, or conditions such as http.route=/orders/, "
            "business.total>100 or db.query.text~orders."
        ) % {"piece": error.args[0]}
    if given["sort"].removeprefix("-") not in SORTS:
        given["sort"] = ""
    has_error = given["error"] not in ("", "0")
    given["error"] = "1" if has_error else ""
    wanted = TraceFilter(
        route=given["route"],
        status="" if "status" in problems else status,
        min_duration_s=min_duration_s or None,
        has_error=has_error,
        event=given["event"],
        trace_id="" if "trace" in problems else trace_id,
        service=given["service"],
        release=given["release"],
        user=given["user"],
        since_ns=since_ns,
        until_ns=until_ns,
        conditions=conditions,
        sort=given["sort"] or "-time",
    )
    return _Asked(wanted, {name: value for name, value in given.items() if value}, problems)


def _parse_ms(given: str) -> float | None:
    """A number of milliseconds as seconds; None for anything else."""
    # Not float() alone, which takes "nan", "1_000", "1e15" and digits of any script.
    if not re.fullmatch(r"[0-9]{1,9}(?:[.,][0-9]{1,9})?", given):
        return None
    ms = float(given.replace(",", "."))
    return ms / 1000 if ms <= _MAX_MS else None


@console_page
def traces(
    request: HttpRequest, admin: ConsoleAdmin, context: dict[str, object], console: StoreProcessor
) -> HttpResponse:
    """The list: newest first, filtered, in pages."""
    asked = _parse_filter(request.GET)
    wanted, values = asked.wanted, asked.values
    number = whole(request.GET.get("page"), 1, 1_000_000)

    is_part = request.GET.get("part") == "results"

    def use(reader: StoreReader) -> tuple[TracePage, Choices]:
        # With a filter that cannot be read nothing is listed: all traces would look like its result.
        limit = 0 if asked.problems else PAGE_SIZE
        page = reader.list_traces(wanted, offset=(number - 1) * PAGE_SIZE, limit=limit)
        return page, NO_CHOICES if is_part else reader.choices()

    page, choices = read_store(console, use)
    context |= {
        "title": gettext("Traces"),
        "rows": trace_rows(page.rows, admin.admin_site.name),
        "total": text.count(page.total),
        "stored": text.count(page.stored),
        "has_any": page.stored > 0,
        "is_filtered": any(name != "sort" for name in values),
        "is_partial": page.is_partial,
        "search_example": "business.total>100 db.query.text~orders",
        "time_example": "15m",
        "releases": _with_chosen(values.get("release", ""), choices.releases),
        "columns": _columns(wanted.sort, values),
        "values": values,
        "problems": asked.problems,
        "choices": choices,
        "statuses": _with_chosen(values.get("status", ""), [
            *(f"{digit}xx" for digit in sorted({status // 100 for status in choices.statuses})),
            *map(str, choices.statuses),
        ]),
        "events": _with_chosen(values.get("event", ""), choices.events),
        "services": _with_chosen(values.get("service", ""), choices.services),
        "stored_count": page.stored,
        "durations": [(f"{ms:g}", text.duration(ms * 1e6)) for ms in DURATIONS_MS],
        **page_links(page.total, number, values),
        "part_address": "?" + urlencode({**values, "page": number, "part": "results"}),
        "hints": [] if page.stored else _why_empty(console),
        "problem": console.problem,
        "limits": gettext("%(count)s traces or %(size)s MiB") % {
            "count": text.count(console.store().max_traces),
            "size": console.store().max_bytes >> 20,
        },
    }  # fmt: skip
    template = "traces_results" if is_part else "traces"
    return TemplateResponse(request, f"django_otel/console/{template}.html", context)


def _columns(sort: str, values: Mapping[str, str]) -> list[dict[str, str]]:
    names = (
        ("time", gettext("Time")), ("name", gettext("Request")), ("status", gettext("Status")),
        ("duration", pgettext("telemetry", "Duration")), ("spans", gettext("Spans")), ("service", gettext("Service")),
    )  # fmt: skip
    return sorted_columns(names, sort, values)


def _with_chosen(chosen: str, choices: Sequence[str]) -> list[str]:
    """Return the choices of a field, and the chosen value even if nothing stored has it."""
    return [*choices, *([chosen] if chosen and chosen not in choices else [])]


def _why_empty(console: StoreProcessor) -> list[str]:
    """Return reasons why the store may get no traces."""
    current = runtime.current()
    hints = []
    if current.is_foreign:
        hints.append(gettext("Another tool has installed its own tracer provider; its spans do not reach this "
                             'store. To use ours, set OTEL["PROVIDERS"] = "own".'))  # fmt: skip
    elif current.config.providers == "none":
        hints.append(gettext('OTEL["PROVIDERS"] is "none": no traces are recorded.'))
    elif current.sampler.ratio_now() == 0:
        hints.append(gettext("The sampling ratio is 0, so no new trace is recorded."))
    return hints


def trace_rows(rows: Sequence[TraceRow], site: str) -> list[dict[str, object]]:
    """Return the row of each trace."""
    longest = max((row.duration_ns for row in rows), default=1) or 1
    address = trace_addresses(site)
    return [
        {
            "row": row,
            "address": address(row.trace_id),
            "title": title_of(row),
            "at": text.time_tag(row.start_ns),
            "duration": text.duration(row.duration_ns),
            "bar": f"{max(0.5, row.duration_ns / longest * 100):.2f}%",
            "level": "bad" if row.is_error else "",
            "state": level_of(row),
            "spans": text.plural(row.spans, _SPANS),
            "queries": text.plural(row.queries, _QUERIES) if row.queries else "",
            "errors": text.plural(row.errors, _ERRORS) if row.errors else "",
        }
        for row in rows
    ]


def title_of(row: TraceRow) -> str:
    """Return how a trace is called."""
    if row.is_unfinished:
        return row.name or gettext("still running")
    return f"{row.method} {row.route}".strip() if row.route else row.name


def level_of(row: TraceRow) -> str:
    """A class for its status: "bad", "warn" or "good"; "" where there is none."""
    if row.status >= 500:
        return "bad"
    if row.status >= 400:
        return "warn"
    return "good" if row.status else ""


# --- One trace. ---


@console_page
def trace(
    request: HttpRequest, admin: ConsoleAdmin, context: dict[str, object], console: StoreProcessor, trace_id: str
) -> HttpResponse:
    """The waterfall of a trace, one of its spans opened when `?span=` names it."""
    trace_id = trace_id.lower()
    found = read_store(console, lambda reader: reader.trace(trace_id)) if TRACE_ID.fullmatch(trace_id) else None
    if found is None or not (found.spans or found.logs):
        return _answer_missing(request, context, trace_id)
    if request.method == "POST":
        if _pin(request, console, trace_id):
            return HttpResponseRedirect(request.path)
        context["pin_problem"] = (
            gettext("This trace cannot be pinned: at most %(count)s traces can be pinned.")
            % {"count": console.store().bounds.max_pinned}
            + " "
            + gettext("Unpin another one first.")
        )
    span_id = request.GET.get("span", "").lower()
    opened = span_details.details(found, span_id) if _SPAN_ID.fullmatch(span_id) else None
    if opened is not None:
        context["linked"] = _stored_links(console, opened, admin.admin_site.name)
    context |= {"opened": opened, "trace_id": trace_id, "page": request.path, "may_explain": may_explain(request)}
    if request.GET.get("part") == "span":
        status = 200 if opened is not None else 404
        return TemplateResponse(request, "django_otel/console/span.html", context, status=status)
    row, chosen = found.row, span_filter.parse(request.GET)
    shown = waterfall.build(
        found,
        chosen=chosen,
        page=whole(request.GET.get("rows"), 0, 1_000_000),
        log_page=whole(request.GET.get("logs"), 1, 1_000_000),
        span_id=span_id,
    )
    advice = stored_spans.advice_of(found.spans)
    context |= _beside(console, found)
    context |= {
        "title": title_of(row),
        "row": row,
        "level": level_of(row),
        "at": text.time_tag(row.start_ns),
        "duration": text.duration(row.duration_ns),
        "waterfall": shown,
        "chosen": chosen,
        "keep": chosen.address()[1:] + "&" if chosen.address() != "?" else "",
        "kinds": span_filter.kinds_in(found.spans),
        "layers": layers.build_bar(found.spans),
        "repeated": [group for group in shown.query_groups if group.is_n_plus_one],
        "advised": [(text.shorten(statement, 160), *rest) for count, statement, *rest in advice if rest[-1]],
        "opened_group": _group_of(shown, span_id),
        "elsewhere": span_details.trace_address(runtime.current().config.trace_url, trace_id),
        "facts": [
            (gettext("Services"), ", ".join(row.services)),
            (gettext("Spans"), text.count(row.spans)),
            (gettext("Queries"), text.count(row.queries)),
            (gettext("Log records"), text.count(row.logs)),
        ],
        "events": row.events,
        "damaged": found.damaged,
    }
    return TemplateResponse(request, "django_otel/console/trace.html", context)


def _answer_missing(request: HttpRequest, context: dict[str, object], trace_id: str) -> HttpResponse:
    """The answer where no such trace is stored."""
    elsewhere = span_details.trace_address(runtime.current().config.trace_url, trace_id)
    context |= {
        "title": gettext("Trace not found"), "trace_id": trace_id[:64],
        "elsewhere": elsewhere if TRACE_ID.fullmatch(trace_id) else None,
    }  # fmt: skip
    return TemplateResponse(request, "django_otel/console/missing.html", context, status=404)


def _beside(console: StoreProcessor, found: Trace) -> dict[str, object]:
    """The parts of the page beside the waterfall."""
    row, spans = found.row, trace_view.plain(found.spans)

    def use(reader: StoreReader) -> tuple[tuple[str, str], list[tuple[int, str, str]]]:
        return reader.neighbours(row), find_issue_of_span(reader.connection, row.trace_id)

    (before, after), issues = read_store(console, use)
    return {
        "before": before,
        "after": after,
        "issues": issues,
        "critical": trace_view.critical_path(spans),
        "minimap": trace_view.draw_flame(spans, is_map=True),
        "flame": trace_view.draw_flame(spans),
        "curl": trace_view.curl_of(spans),
    }


def _pin(request: HttpRequest, console: StoreProcessor, trace_id: str) -> bool:
    """Pin the trace, or no longer; whether there was room. The store is bounded, and so are its pinned traces."""
    with store_errors():
        return console.store().pin(trace_id, is_pinned=request.POST.get("pin") == "1")


def _group_of(shown: waterfall.Waterfall, span_id: str) -> str:
    """The group that must be open for a span to be seen."""
    for row in shown.rows:
        if any(member.id == span_id for member in row.members):
            return row.id
    return ""


def _stored_links(console: StoreProcessor, opened: span_details.Details, site: str) -> list[dict[str, object]]:
    """The links of a span, each with an address where its trace is stored here."""

    address = trace_addresses(site)

    def use(reader: StoreReader) -> list[dict[str, object]]:
        return [
            {"link": link, "address": address(link.trace_id) if reader.has_trace(link.trace_id) else ""}
            for link in opened.links
        ]

    return read_store(console, use) if opened.links else []


# --- The dashboard. ---


@console_page
def dashboard(
    request: HttpRequest, admin: ConsoleAdmin, context: dict[str, object], console: StoreProcessor
) -> HttpResponse:
    """Figures of the last minutes, of all routes or of one."""
    minutes = whole(request.GET.get("minutes"), 0, 10_000)
    if minutes not in dashboard_parts.PERIODS:
        minutes = dashboard_parts.DEFAULT_PERIOD
    route = str(request.GET.get("route", ""))[:500]
    service = str(request.GET.get("service", ""))[:200]
    now_s = time.time()
    wanted = dashboard_parts.Wanted(minutes=minutes, route=route, service=service, now_s=now_s)

    def use(reader: StoreReader) -> tuple[dashboard_parts.Loaded, list[TraceRow]]:
        recent: list[TraceRow] = []
        if route:
            failed = reader.list_traces(TraceFilter(route=route, service=service, has_error=True), limit=5).rows
            newest = reader.list_traces(TraceFilter(route=route, service=service), limit=10).rows
            known = {row.seq for row in failed}
            recent = [*failed, *(row for row in newest if row.seq not in known)][:10]
        return dashboard_parts.load(reader, console, wanted), recent

    loaded, recent = read_store(console, use)
    place = {name: value for name, value in (("route", route), ("service", service)) if value}
    values = {"minutes": str(minutes), **place}
    context |= {
        "title": gettext("Dashboard: %(route)s") % {"route": route} if route else gettext("Dashboard"),
        "page": dashboard_parts.build(loaded, wanted),
        "recent": trace_rows(recent, admin.admin_site.name),
        "periods": [
            {
                "minutes": period,
                "name": text.minutes(period),
                "address": "?" + urlencode({**values, "minutes": period}),
                "is_current": period == minutes,
            }
            for period in dashboard_parts.PERIODS
        ],
        "route": route,
        "service": service,
        "values": values,
        "part_address": "?" + urlencode({**values, "part": "figures"}),
        "trace_query": urlencode(place),
        "all_routes": "?" + urlencode({name: value for name, value in values.items() if name != "route"}),
        "problem": console.problem,
    }
    template = "dashboard_figures" if request.GET.get("part") == "figures" else "dashboard"
    return TemplateResponse(request, f"django_otel/console/{template}.html", context)
