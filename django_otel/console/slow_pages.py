"""The page of slow routes and releases: each route before and after the last release, or another point in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.functional import Promise
from django.utils.translation import gettext, gettext_lazy

from django_otel import runtime
from django_otel.base import guard
from django_otel.console import text
from django_otel.console.changes import (
    BROKEN,
    FASTER,
    GONE,
    MENDED,
    NEW,
    SAME,
    SLOWER,
    VERDICTS,
    Change,
    Comparison,
    Figures,
    Moments,
    compare,
)
from django_otel.console.dashboard import since_last_sample
from django_otel.console.filters import read_time, whole
from django_otel.console.page import PAGE_SIZE, console_page, page_links, read_store
from django_otel.tracestore.issue_reader import list_releases
from django_otel.tracestore.numbers import STEPS_S
from django_otel.tracestore.processor import StoreProcessor
from django_otel.tracestore.reader import StoreReader

if TYPE_CHECKING:
    from django_otel.console.entries import ConsoleAdmin

_FIELDS = ("service", "release", "at", "since", "until", "route", "only")
#: Without a second release: the last minutes and what was before them.
_RECENT_S = 1800
#: So long the figures of all requests are kept, less the step that is being dropped.
_EXACT_S = STEPS_S[180] - 180
_NAMES: dict[str, Promise] = {
    BROKEN: gettext_lazy("fails more"),
    SLOWER: gettext_lazy("slower"),
    NEW: gettext_lazy("new"),
    SAME: gettext_lazy("as before"),
    MENDED: gettext_lazy("fails less"),
    FASTER: gettext_lazy("faster"),
    GONE: gettext_lazy("no more requests"),
}
_LEVELS = {BROKEN: "bad", SLOWER: "warn", MENDED: "good", FASTER: "good"}
_Release = tuple[str, str, float]


@console_page
def slow(
    request: HttpRequest, admin: ConsoleAdmin, context: dict[str, object], console: StoreProcessor
) -> HttpResponse:
    """Routes on both sides of a moment: those that broke or got slower first."""
    given = {name: str(request.GET.get(name, "")).strip()[:200] for name in _FIELDS}
    number = whole(request.GET.get("page"), 1, 1_000_000)
    problems: dict[str, str] = {}
    now_s = time.time()
    asked = {name: read_time(given, name, now_s, problems) for name in ("since", "at", "until")}

    def use(reader: StoreReader) -> tuple[list[_Release], Moments, _Release | None, Comparison]:
        releases = list_releases(reader.connection)
        release = _chosen(releases, given, console.service())
        moments = _moments(releases, release, asked, now_s)
        newest: Mapping[str, Any] = {}
        if given["service"] in ("", console.service()):
            with guard.contained("adding the newest numbers to the page of slow routes"):
                newest = since_last_sample(reader, console, runtime.collect(), now_s)[1]
        if problems:
            return releases, moments, release, Comparison([], is_exact=False)
        found = compare(reader, moments, now_s=now_s, service=given["service"], newest=newest)
        return releases, moments, release, found

    releases, moments, release, found = read_store(console, use)
    changes = [
        change
        for change in found.changes
        if given["route"].lower() in change.route.lower() and given["only"] in ("", change.verdict)
    ]
    values = {name: value for name, value in given.items() if value}
    context |= {
        "title": gettext("Slow routes and releases"),
        "rows": [
            _row(change, moments, context["otel_pages"])
            for change in changes[(number - 1) * PAGE_SIZE : number * PAGE_SIZE]
        ],
        "total": text.count(len(changes)),
        "counts": _counts(found.changes, values),
        "values": given,
        "problems": problems,
        "is_filtered": bool(values),
        "services": sorted({service for service, _, _ in releases if service}),
        "releases": _choices(releases, given["service"] or console.service(), given["release"]),
        "release": release[1] if release is not None and asked["at"] is None else "",
        "begin": text.time_tag(int(moments.begin_s * 1e9)) if moments.begin_s else "",
        "split": text.time_tag(int(moments.split_s * 1e9)),
        "end": text.time_tag(int(moments.end_s * 1e9)) if moments.end_s < now_s else "",
        "is_exact": found.is_exact,
        "step": text.seconds(found.step_s),
        "problem": console.problem,
        **page_links(len(changes), number, values),
    }  # fmt: skip
    return TemplateResponse(request, "django_otel/console/slow.html", context)


def _chosen(releases: Sequence[_Release], given: Mapping[str, str], own: str) -> _Release | None:
    """The release that is asked for, else the newest that is not the first of its service; own ones at first."""
    wanted = [given["service"]] if given["service"] else [own, *(service for service, _, _ in releases)]
    for service in wanted:
        known = [release for release in releases if release[0] == service]
        if given["release"]:
            known = [release for release in known if release[1] == given["release"]]
            if known:
                return known[0]
        elif len(known) > 1:
            return known[0]
    return None


def _moments(
    releases: Sequence[_Release], release: _Release | None, asked: Mapping[str, float | None], now_s: float
) -> Moments:
    """Return the times to compare, where possible those with figures of all requests, which are kept for hours."""
    at_s, end_s = asked["at"], asked["until"]
    if at_s is None and release is not None:
        at_s = release[2]
        later = [first_s for service, _, first_s in releases if service == release[0] and first_s > at_s]
        end_s = min(later, default=None) if end_s is None else end_s
    split_s = min(now_s - _RECENT_S if at_s is None else at_s, now_s)
    begin_s = asked["since"]
    if begin_s is None:
        begin_s = now_s - _EXACT_S if split_s > now_s - _EXACT_S / 2 else 0.0
    end_s = now_s if end_s is None else min(end_s, now_s)
    return Moments(max(0.0, min(begin_s, split_s)), max(0.0, split_s), max(split_s, end_s, 0.0))


def _choices(releases: Sequence[_Release], service: str, chosen: str) -> list[str]:
    names = list(dict.fromkeys(name for each, name, _ in releases if each == service))
    return [*names, *([chosen] if chosen and chosen not in names else [])]


def _counts(changes: Sequence[Change], values: Mapping[str, str]) -> list[dict[str, object]]:
    """The verdicts that occur, with the address of their routes alone."""
    found: dict[str, int] = {}
    for change in changes:
        found[change.verdict] = found.get(change.verdict, 0) + 1
    rest = {name: value for name, value in values.items() if name != "only"}
    every: dict[str, object] = {
        "name": gettext("all"), "count": text.count(len(changes)), "address": "?" + urlencode(rest),
        "is_current": "only" not in values,
    }  # fmt: skip
    return [
        every,
        *(
            {"name": _NAMES[verdict], "count": text.count(found[verdict]), "is_current": values.get("only") == verdict,
             "address": "?" + urlencode({**rest, "only": verdict})}
            for verdict in VERDICTS
            if verdict in found
        ),
    ]  # fmt: skip


def _row(change: Change, moments: Moments, pages: Any) -> dict[str, object]:
    sides = (change.before, change.after)
    query = {"route": change.route}
    traces = urlencode({**query, "since": _iso(moments.split_s), "sort": "-duration"})
    return {
        "title": f"{change.method} {change.route}".strip(),
        "verdict": _NAMES[change.verdict],
        "level": _LEVELS.get(change.verdict, ""),
        "requests": _pair(sides, lambda side: text.count(side.requests)),
        "p50": _pair(sides, lambda side: text.duration(side.p50_ns)),
        "p95": _pair(sides, lambda side: text.duration(side.p95_ns)),
        "errors": _pair(sides, lambda side: text.share(side.share)),
        "traces": f"{pages['trace']}?{traces}" if pages["trace"] and not change.route.startswith("(") else "",
        "dashboard": f"{pages['dashboard']}?{urlencode(query)}" if pages["dashboard"] else "",
    }


def _iso(at_s: float) -> str:
    return text.iso(text.moment(int(at_s * 1e9)))


def _pair(sides: Sequence[Figures | None], show: Callable[[Figures], str]) -> list[str]:
    return [show(side) if side is not None else "-" for side in sides]
