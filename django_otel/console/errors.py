"""The pages of errors: issues in a list, and one of them with its stack, chart, routes, releases and traces."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.translation import gettext, gettext_lazy, ngettext_lazy

from django_otel import runtime
from django_otel.console import svg, text
from django_otel.console.filters import read_time, whole
from django_otel.console.page import (
    PAGE_SIZE,
    console_page,
    issue_addresses,
    page_links,
    read_store,
    sorted_columns,
    store_errors,
    trace_addresses,
)
from django_otel.tracestore.errors import STEP_S
from django_otel.tracestore.file import transaction
from django_otel.tracestore.issue_reader import (
    SORTS,
    Issue,
    IssueFilter,
    IssuePage,
    IssueRow,
    find_issue,
    list_issues,
)
from django_otel.tracestore.issues import OPEN, STATES, change_state
from django_otel.tracestore.processor import StoreProcessor

if TYPE_CHECKING:
    from django_otel.console.entries import ConsoleAdmin

#: The chart's span, in seconds.
CHART_S = 86_400
_STATE_NAMES = {
    "open": gettext_lazy("open"),
    "resolved": gettext_lazy("resolved"),
    "ignored": gettext_lazy("ignored"),
}
_TIMES = ngettext_lazy("%(count)s time", "%(count)s times", "n")
_FILTERS = ("q", "state", "service", "route", "release", "since", "until", "sort")
#: Nothing of a list is chosen by "all".
ALL = "all"


@console_page
def errors(
    request: HttpRequest, admin: ConsoleAdmin, context: dict[str, object], console: StoreProcessor
) -> HttpResponse:
    """The list: those that were seen last first, open ones unless another state is asked for."""
    values = {name: str(request.GET.get(name, "")).strip()[:500] for name in _FILTERS}
    now_s = time.time()
    problems: dict[str, str] = {}
    state = values["state"] if values["state"] in (*STATES, ALL) else OPEN
    sort = values["sort"] if values["sort"].removeprefix("-") in SORTS else "-last"
    since_s, until_s = (read_time(values, name, now_s, problems) for name in ("since", "until"))
    wanted = IssueFilter(
        state="", text=values["q"], service=values["service"], route=values["route"], release=values["release"],
        since_s=since_s, until_s=until_s, sort=sort,
    )  # fmt: skip
    number = whole(request.GET.get("page"), 1, 1_000_000)

    def use(reader: Any) -> tuple[IssuePage, IssuePage]:
        every = list_issues(reader.connection, wanted, limit=0)
        chosen = replace(wanted, state="" if state == ALL else state)
        limit = 0 if problems else PAGE_SIZE
        return every, list_issues(reader.connection, chosen, offset=(number - 1) * PAGE_SIZE, limit=limit)

    every, page = read_store(console, use)
    kept = {name: value for name, value in values.items() if value}

    def address(state: str) -> str:
        return "?" + urlencode({**kept, "state": state})

    issue_address = issue_addresses(admin.admin_site.name)
    context |= {
        "title": gettext("Errors"),
        "rows": [_row(row, page.steps.get(row.id, {}), now_s, issue_address(row.id)) for row in page.rows],
        "states": [
            *(
                {"name": words, "count": text.count(every.counts[name]), "address": address(name),
                 "is_current": name == state}
                for name, words in _STATE_NAMES.items()
            ),
            {"name": gettext("all"), "count": text.count(every.total), "address": address(ALL),
             "is_current": state == ALL},
        ],
        "columns": _columns(sort, kept),
        "values": values,
        "time_example": "24h",
        "problems": problems,
        "state": state,
        "is_filtered": any(values[name] for name in _FILTERS if name not in ("sort", "state")),
        "stored": page.stored,
        **page_links(page.total, number, kept),
        "problem": console.problem,
    }  # fmt: skip
    return TemplateResponse(request, "django_otel/console/errors.html", context)


def _columns(sort: str, values: Mapping[str, object]) -> list[dict[str, str]]:
    """The heads of the columns that the list is sorted by."""
    names = (
        ("type", gettext("Error")), ("count", gettext("Times")), ("first", gettext("First seen")),
        ("last", gettext("Last seen")), ("release", gettext("Release")),
    )  # fmt: skip
    return sorted_columns(names, sort, values)


def _row(row: IssueRow, steps: Mapping[int, int], now_s: float, address: str) -> dict[str, object]:
    return {
        "row": row,
        "address": address,
        "count": text.count(row.count),
        "times": text.plural(row.count, _TIMES),
        "first": text.time_tag(int(row.first_s * 1e9)),
        "last": text.time_tag(int(row.last_s * 1e9)),
        "state": _STATE_NAMES.get(row.state, row.state),
        "message": text.shorten(text.one_line(row.message), 200),
        "chart": draw(steps, now_s),
    }


def draw(steps: Mapping[int, int], now_s: float) -> svg.Chart:
    """The bars of the last day, half an hour each."""
    step_s = 2 * STEP_S
    end_s = int(now_s // step_s) * step_s + step_s
    begins = range(end_s - CHART_S, end_s, step_s)
    counts: list[float | None] = [float(steps.get(begin, 0) + steps.get(begin + STEP_S, 0)) for begin in begins]
    moments = []
    for begin in begins:
        at = text.moment(begin * 1_000_000_000)
        moments.append(svg.Moment(text.iso(at), f"{at:%H:%M}"))
    total = sum(count or 0 for count in counts)
    description = gettext("In the last 24 hours: %(times)s.") % {"times": text.plural(total, _TIMES)}
    return svg.draw_bars([svg.Line("", "bad", counts)], description=description, moments=moments, show=text.count)


@console_page
def error(
    request: HttpRequest, admin: ConsoleAdmin, context: dict[str, object], console: StoreProcessor, issue_id: str
) -> HttpResponse:
    """One issue. A POST resolves, ignores or opens it."""
    number = whole(issue_id, 0, 2**62)
    found = read_store(console, lambda reader: find_issue(reader.connection, number)) if issue_id.isdigit() else None
    if found is None:
        context |= {"title": gettext("Error not found"), "what": issue_id[:40]}
        return TemplateResponse(request, "django_otel/console/error_missing.html", context, status=404)
    if request.method == "POST":
        state = str(request.POST.get("state", ""))
        user = request.user.get_username() if request.user.is_authenticated else ""
        with store_errors(), console.store().connection() as connection, transaction(connection):
            change_state(connection, number, state, user, time.time())
        return HttpResponseRedirect(request.path)
    row, now_s = found.row, time.time()
    address = trace_addresses(admin.admin_site.name)
    context |= {
        "title": row.type,
        "row": row,
        "state": _STATE_NAMES.get(row.state, row.state),
        "actions": [
            (state, name)
            for state, name in (
                ("resolved", gettext("Resolve")), ("ignored", gettext("Ignore")), ("open", gettext("Reopen"))
            )
            if state != row.state
        ],
        "count": text.plural(row.count, _TIMES),
        "changed": text.time_tag(int(row.changed_s * 1e9)) if row.changed_s else "",
        "first": text.time_tag(int(row.first_s * 1e9)),
        "last": text.time_tag(int(row.last_s * 1e9)),
        "chart": draw(found.steps, now_s),
        "axis": [text.time_tag(int((now_s - ago_s) * 1e9), "clock") for ago_s in (86_400, 64_800, 43_200, 21_600, 0)],
        "routes": _shares(found.routes),
        "releases": [
            {"release": release, "count": text.count(release.count), "first": text.time_tag(int(release.first_s * 1e9)),
             "last": text.time_tag(int(release.last_s * 1e9))}
            for release in found.releases
        ],
        "traces": [
            {"seen": seen, "at": text.time_tag(int(seen.at_s * 1e9)),
             "address": f"{page}?span={seen.span_id}" if seen.is_stored and (page := address(seen.trace_id)) else ""}
            for seen in found.traces
        ],
        "chain": _chain(found),
        "problem": console.problem,
    }  # fmt: skip
    return TemplateResponse(request, "django_otel/console/error.html", context)


def _shares(routes: Sequence[tuple[str, int]]) -> list[dict[str, str]]:
    total = sum(count for _, count in routes) or 1
    return [
        {"route": route, "count": text.count(count), "bar": f"{max(0.5, count / total * 100):.2f}%"}
        for route, count in routes
    ]


def _chain(found: Issue) -> list[dict[str, object]]:
    """The exceptions of the stack, each with its frames; those of libraries in a row are folded together."""
    chain: list[dict[str, object]] = []
    for raised in found.stack:
        groups: list[dict[str, Any]] = []
        frames = raised.get("frames")
        for frame in frames if isinstance(frames, list) else []:
            is_project = bool(frame.get("is_project"))
            if not groups or groups[-1]["is_project"] != is_project:
                groups.append({"is_project": is_project, "frames": []})
            groups[-1]["frames"].append(
                {
                    "place": f"{text.short_path(str(frame.get('file', '')))}:{frame.get('line', 0)}",
                    "function": str(frame.get("function", "")),
                    "source": str(frame.get("source", "")),
                    "editor": editor_address(str(frame.get("file", "")), whole(frame.get("line"), 0, 10**9)),
                }
            )
        chain.append({"type": str(raised.get("type", "")), "message": str(raised.get("message", "")), "groups": groups})
    return chain


def editor_address(file: str, line: int) -> str:
    """The address that opens a file in the editor of `EDITOR_URL`; "" without one, or with DEBUG off."""
    template = runtime.current().config.editor_url
    if not template or not settings.DEBUG or not file or file.startswith("<"):
        return ""
    return template.replace("{file}", quote(file)).replace("{line}", str(line))
