"""Figures of the dashboard: counts of the last minutes, by time step and by route.

They come from the samples in the store and from what `/metrics` would show now,
so that the page and the scrape agree at the moment the page is made.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.utils import timezone
from django.utils.translation import gettext, ngettext_lazy, pgettext

from django_otel import runtime
from django_otel.base import guard
from django_otel.console import layers, svg, text
from django_otel.console.quantiles import quantile
from django_otel.metrics.model import OWN_SCOPE, Family
from django_otel.tracestore.items import RouteNumbers
from django_otel.tracestore.numbers import SAMPLE_INTERVAL_S, rise
from django_otel.tracestore.processor import StoreProcessor, numbers_of
from django_otel.tracestore.reader import Numbers, ProcessRow, StoreReader

#: Periods to choose from, in minutes, and the width of a step of the charts, in seconds.
PERIODS = {5: 10, 30: 30, 180: 180}
DEFAULT_PERIOD = 30
#: A process that says nothing for so long is gone, in seconds.
_SILENT_S = 2.5 * SAMPLE_INTERVAL_S
_MAX_ROUTES = 100
_MAX_BUSY_ROUTES = 8
_MAX_EVENTS = 5
#: Stands for a missing figure.
_NOTHING = "-"
_REQUESTS = ngettext_lazy("%(count)s request", "%(count)s requests", "n")
_FAILED_REQUESTS = ngettext_lazy("%(count)s failed request", "%(count)s failed requests", "n")
_SERVICES = ngettext_lazy("%(count)s service", "%(count)s services", "n")
_EVENTS = ngettext_lazy("%(count)s event", "%(count)s events", "n")
_FAILED_EXPORTS = ngettext_lazy("%(count)s export failed", "%(count)s exports failed", "n")
_COLOURS = ("c0", "c1", "c2", "c3", "c4", "c5")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Parameters of a request for the page. `now_s` is seconds since the Unix epoch."""

    minutes: int
    route: str
    service: str
    now_s: float

    @property
    def step_s(self) -> int:
        return PERIODS[self.minutes]

    @property
    def end_s(self) -> int:
        return int(self.now_s // self.step_s) * self.step_s + self.step_s

    @property
    def begin_s(self) -> int:
        return self.end_s - self.minutes * 60


@dataclass(frozen=True, slots=True)
class Loaded:
    """Data behind the figures: of each step, and of each route over all steps ("routes", "bounds")."""

    numbers: Sequence[Numbers]
    routes: Sequence[Mapping[str, Any]]
    processes: Sequence[ProcessRow]
    services: Sequence[str]
    active_requests: float | None
    #: When the store began to count, in seconds since the Unix epoch; None where that is not known.
    begun_s: float | None = None


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure at the top."""

    name: str
    value: str
    note: str
    level: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """A chart with its title, or the reason why there is none."""

    title: str
    chart: svg.Chart | None
    hint: str = ""


@dataclass(frozen=True, slots=True)
class RouteFigures:
    """Figures of one route."""

    route: str
    address: str
    requests: float
    requests_text: str
    error_share: str
    error_level: str
    p50: str
    p95: str
    p99: str
    bar: str
    queries: str
    queries_p95: str


@dataclass(frozen=True, slots=True)
class Page:
    """Everything the template shows."""

    has_numbers: bool
    tiles: Sequence[Tile]
    panels: Sequence[Panel]
    axis: Sequence[str]
    slowest: Sequence[RouteFigures]
    hidden_routes: int
    busiest_queries: Sequence[RouteFigures]
    exporters: Sequence[dict[str, str]]
    processes: Sequence[dict[str, object]]
    services: Sequence[str]
    total: float


def load(reader: StoreReader, console: StoreProcessor, wanted: Wanted) -> Loaded:
    """Read the samples, and add what was counted since the last of them."""
    end_s, minutes, service = wanted.end_s, wanted.minutes, wanted.service
    numbers = reader.numbers(now_s=end_s, minutes=minutes, service=service, route=wanted.route or None)
    routes = [] if wanted.route else reader.route_numbers(now_s=end_s, minutes=minutes, service=service)
    active = None
    if not wanted.service or wanted.service == console.service():
        with guard.contained("adding the newest numbers to the dashboard"):
            families = runtime.collect()
            active = _active_requests(families)
            at_s, added = since_last_sample(reader, console, families, wanted.now_s)
            if added:
                # As the next sample would file it.
                counted_s = wanted.now_s - min(wanted.now_s - at_s, SAMPLE_INTERVAL_S) / 2
                if wanted.route:
                    added = {"total": added.get("routes", {}).get(wanted.route, {}), "bounds": added["bounds"]}
                numbers.append(Numbers(int(counted_s), 1, added))
                routes.append(added)
    return Loaded(
        numbers,
        routes,
        [
            process
            for process in reader.processes(seen_since_s=wanted.now_s - _SILENT_S)
            if not wanted.service or process.service == wanted.service
        ],
        reader.number_services(),
        active,
        reader.begun_s(),
    )


def since_last_sample(
    reader: StoreReader, console: StoreProcessor, families: Sequence[Family], now_s: float
) -> tuple[float, dict[str, Any]]:
    """Return when this server's numbers were last sampled, and what was counted since; empty if nothing was."""
    at_s, before, running = reader.baseline(console.source()) or (now_s, {}, {})
    newest = numbers_of(families)
    added = rise(newest, before, running)
    return at_s, {**added, "bounds": newest["bounds"]} if added else {}


def _active_requests(families: Sequence[Family]) -> float | None:
    for family in families:
        if family.name == "http.server.active_requests" and family.scope.name == OWN_SCOPE.name:
            # This page itself is excluded from telemetry, so it is not among them.
            return sum(point.value for point in family.points if isinstance(point.value, int | float))
    return None


# --- Histograms. ---


class _Sum:
    """Figures of some routes or steps, added up. A histogram is a list of its count, its sum and its buckets."""

    __slots__ = ("duration", "errors", "layers", "query", "refused")

    def __init__(self) -> None:
        self.duration: list[float] = []
        self.query: list[float] = []
        self.layers: list[float] = []
        self.errors = 0.0
        self.refused = 0.0

    @property
    def count(self) -> float:
        return self.duration[0] if self.duration else 0.0

    @property
    def mean_queries(self) -> float:
        return self.query[1] / self.query[0] if self.query and self.query[0] else 0.0

    def add(
        self, duration: list[float], query: list[float], errors: float, refused: float, layers: list[float]
    ) -> None:
        self.duration = _add(self.duration, duration)
        self.query = _add(self.query, query)
        self.layers = _add(self.layers, layers)
        self.errors += errors
        self.refused += refused


def _parts(figures: RouteNumbers) -> tuple[list[float], list[float], float, float, list[float]]:
    """The part of a set of figures that `_Sum.add` uses."""
    durations, queries = figures.get("duration", []), figures.get("queries", [])
    return durations, queries, figures.get("errors", 0), figures.get("refused", 0), figures.get("layers", [])


def _add(one: list[float], other: list[float]) -> list[float]:
    if not one or not other:
        return one or other
    if len(one) == len(other):
        return list(map(operator.add, one, other))
    return [a + b for a, b in itertools.zip_longest(one, other, fillvalue=0)]


# --- The page. ---


def build(loaded: Loaded, wanted: Wanted) -> Page:
    """The page's figures."""
    return _Builder(loaded, wanted).build()


class _Builder:
    def __init__(self, loaded: Loaded, wanted: Wanted) -> None:
        self._loaded = loaded
        self._wanted = wanted
        self._steps = wanted.minutes * 60 // wanted.step_s
        self._by_step = [_Sum() for _ in range(self._steps)]
        self._by_route: dict[str, _Sum] = {}
        self._events: list[dict[str, float]] = [{} for _ in range(self._steps)]
        self._cache: list[dict[str, float]] = [{} for _ in range(self._steps)]
        self._failures: dict[str, float] = {}
        self._dropped: dict[str, float] = {}
        self._total = _Sum()
        self._bounds: dict[str, list[float]] = {"duration": [], "queries": []}
        for numbers in loaded.numbers:
            self._add(numbers)
        for part in loaded.routes:
            for route, figures in part.get("routes", {}).items():
                self._by_route.setdefault(route, _Sum()).add(*_parts(figures))
        #: When the figures begin, within the period: a younger store does not cover all of it.
        self._first_s = self._find_first_s()
        self._elapsed_s = min(wanted.minutes * 60.0, max(1.0, wanted.now_s - self._first_s))
        is_whole = self._elapsed_s > wanted.minutes * 60 - wanted.step_s
        self._period = text.minutes(wanted.minutes) if is_whole else text.whole_seconds(self._elapsed_s)
        self._moments = [self._clock(wanted.begin_s + index * wanted.step_s) for index in range(self._steps)]

    def _find_first_s(self) -> float:
        wanted = self._wanted
        first_s = float(min((numbers.at_s for numbers in self._loaded.numbers), default=wanted.now_s))
        begun_s = self._loaded.begun_s
        if begun_s is not None and begun_s < first_s + wanted.step_s:
            # Steps without traffic are not stored; a step begins before the store did.
            first_s = begun_s
        return max(float(wanted.begin_s), first_s)

    def _clock(self, at_s: float) -> svg.Moment:
        at = text.moment(int(at_s * 1e9))
        return svg.Moment(text.iso(at), f"{timezone.localtime(at):%H:%M:%S}")

    def _add(self, numbers: Numbers) -> None:
        index = min(self._steps - 1, max(0, (numbers.at_s - self._wanted.begin_s) // self._wanted.step_s))
        values = numbers.values
        for name in self._bounds:
            if bounds := values.get("bounds", {}).get(name):
                self._bounds[name] = [float(bound) for bound in bounds.split()]
        if figures := values.get("total"):
            parts = _parts(figures)
            self._total.add(*parts)
            self._by_step[index].add(*parts)
        for place, target in (("events", self._events[index]), ("cache", self._cache[index]),
                              ("failures", self._failures), ("dropped", self._dropped)):  # fmt: skip
            for name, value in values.get(place, {}).items():
                target[name] = target.get(name, 0) + value

    def _seconds_of(self, index: int) -> float:
        """Return how much of a step has passed: the last one is not over. At least the distance of two samples."""
        begin = max(self._first_s, self._wanted.begin_s + index * self._wanted.step_s)
        return max(SAMPLE_INTERVAL_S, min(float(self._wanted.step_s), self._wanted.now_s - begin))

    def build(self) -> Page:
        by_p95 = sorted(
            ((self._quantile(figures, 0.95) or 0.0, route) for route, figures in self._by_route.items()
             if figures.count),
            key=lambda item: -item[0],
        )  # fmt: skip
        longest_s = by_p95[0][0] if by_p95 else 0.0
        by_queries = sorted(
            (route for route, figures in self._by_route.items() if figures.count and figures.mean_queries > 0),
            key=lambda route: -self._by_route[route].mean_queries,
        )
        return Page(
            has_numbers=bool(self._loaded.numbers),
            tiles=self._tiles(),
            panels=self._panels(),
            axis=[
                text.time_tag(int((self._wanted.begin_s + share * self._wanted.minutes * 60) * 1e9), "clock")
                for share in (0, 0.25, 0.5, 0.75, 1)
            ],
            slowest=[self._route(route, longest_s) for _, route in by_p95[:_MAX_ROUTES]],
            hidden_routes=max(0, len(by_p95) - _MAX_ROUTES),
            busiest_queries=[self._route(route, longest_s) for route in by_queries[:_MAX_BUSY_ROUTES]],
            exporters=self._exporters(),
            processes=_describe_processes(self._loaded.processes, self._wanted.now_s),
            services=self._loaded.services,
            total=self._total.count,
        )

    def _quantile(self, figures: _Sum, share: float) -> float | None:
        return quantile(figures.duration[2:], self._bounds["duration"], share)

    def _tiles(self) -> list[Tile]:
        total, wanted = self._total, self._wanted
        share = total.errors / total.count if total.count else 0.0
        p50, p95 = self._quantile(total, 0.5), self._quantile(total, 0.95)
        median = gettext("median %(duration)s") % {"duration": text.seconds(p50 or 0.0)}
        rate_note = gettext("%(rate)s in %(period)s") % {
            "rate": rate(total.count / self._elapsed_s),
            "period": self._period,
        }
        tiles = [
            Tile(gettext("Requests"), text.count(total.count), rate_note),
            Tile(
                gettext("Errors"),
                text.share(share) if total.count else _NOTHING,
                text.plural(total.errors, _FAILED_REQUESTS),
                "bad" if total.errors else "",
            ),
            Tile(
                gettext("p95 duration"),
                text.seconds(p95) if p95 is not None else _NOTHING,
                median if p50 is not None else gettext("no requests"),
            ),
        ]
        if self._loaded.active_requests is not None and not wanted.route:
            tiles.append(
                Tile(gettext("In flight"), text.count(max(0.0, self._loaded.active_requests)), gettext("requests now"))
            )
        if wanted.route:
            p99 = self._quantile(total, 0.99)
            tiles.append(
                Tile(
                    gettext("p99 duration"),
                    text.seconds(p99) if p99 is not None else _NOTHING,
                    gettext("1 of 100 requests takes longer"),
                )
            )
            tiles.append(Tile(gettext("Queries"), figure(total.mean_queries), gettext("per request")))
        if not wanted.route:
            tiles.append(Tile(gettext("Processes"), text.count(len(self._loaded.processes)), self._process_note()))
        return tiles

    def _process_note(self) -> str:
        services = {process.service for process in self._loaded.processes}
        if 0 < len(services) <= 2:
            return gettext("of %(services)s") % {"services": ", ".join(sorted(services))}
        return text.plural(len(services), _SERVICES)

    # Charts.

    def _panels(self) -> list[Panel]:
        period = self._period
        panels = [self._rate_panel(period), self._error_panel(period), self._duration_panel(period)]
        if not self._wanted.route:
            panels += [self._event_panel(period), self._cache_panel(period)]
        return [*panels, self._panel(*layers.draw_chart(self._by_step, self._moments, period, _axis_seconds))]

    def _rate_panel(self, period: str) -> Panel:
        rates: dict[str, list[float | None]] = {"answered": [], "refused": [], "failed": []}
        for index, figures in enumerate(self._by_step):
            passed_s = self._seconds_of(index)
            good = max(0.0, figures.count - figures.errors - figures.refused)
            for name, number in (("answered", good), ("refused", figures.refused), ("failed", figures.errors)):
                rates[name].append(number / passed_s)
        lines = [
            svg.Line(gettext("answered"), "c0", rates["answered"]),
            svg.Line("4xx", "warn", rates["refused"]),
            svg.Line(gettext("failed"), "bad", rates["failed"]),
        ]
        description = gettext("Requests per second in %(period)s: %(total)s in all.") % {
            "period": period,
            "total": text.plural(self._total.count, _REQUESTS),
        }
        chart = svg.draw_bars(lines, description=description, moments=self._moments, show=rate)
        return self._panel(gettext("Requests per second"), chart, gettext("No requests in this period."))

    def _error_panel(self, period: str) -> Panel:
        shares = [figures.errors / figures.count if figures.count else None for figures in self._by_step]
        known = [share for share in shares if share is not None]
        top = next((top for top in (0.05, 0.25, 0.5) if max(known, default=0) <= top), 1.0)
        description = gettext("Share of failed requests in %(period)s; at most %(share)s.") % {
            "period": period,
            "share": text.share(max(known, default=0)),
        }
        chart = svg.draw_lines([svg.Line("", "bad", shares)], description=description, moments=self._moments,
                               show=_axis_share, top=top)  # fmt: skip
        return self._panel(gettext("Error share"), chart, gettext("No requests in this period."))

    def _duration_panel(self, period: str) -> Panel:
        lines = [
            svg.Line(name, colour, [self._quantile(figures, share) for figures in self._by_step])
            for name, colour, share in (("p50", "c0", 0.5), ("p95", "c1", 0.95), ("p99", "c2", 0.99))
        ]
        p95 = self._quantile(self._total, 0.95)
        description = gettext("Duration of requests in %(period)s; 95 %% took at most %(duration)s.") % {
            "period": period,
            "duration": text.seconds(p95 or 0),
        }
        chart = svg.draw_lines(lines, description=description, moments=self._moments, show=_axis_seconds)
        return self._panel(pgettext("telemetry", "Duration"), chart, gettext("No requests in this period."))

    def _event_panel(self, period: str) -> Panel:
        totals: dict[str, float] = {}
        for step in self._events:
            for name, value in step.items():
                totals[name] = totals.get(name, 0) + value
        names = sorted(totals, key=lambda name: -totals[name])[:_MAX_EVENTS]
        lines = [
            svg.Line(
                name,
                _COLOURS[number],
                [step.get(name, 0) / self._seconds_of(index) * 60 for index, step in enumerate(self._events)],
            )
            for number, name in enumerate(names)
        ]
        others = [name for name in totals if name not in names]
        if others:
            lines.append(
                svg.Line(gettext("others"), _COLOURS[_MAX_EVENTS], [
                    sum(step.get(name, 0) for name in others) / self._seconds_of(index) * 60
                    for index, step in enumerate(self._events)
                ])
            )  # fmt: skip
        description = gettext("Business events per minute in %(period)s: %(total)s in all.") % {
            "period": period,
            "total": text.plural(sum(totals.values()), _EVENTS),
        }
        chart = svg.draw_bars(lines, description=description, moments=self._moments, show=text.count)
        registered = bool(runtime.current().config.business) or bool(totals)
        hint = (
            gettext("No business event in this period.")
            if registered
            else gettext(
                'No model is registered. List models in an app\'s otel.py or in OTEL["BUSINESS"] to count their saves.'
            )
        )
        return self._panel(gettext("Business events per minute"), chart, hint)

    def _cache_panel(self, period: str) -> Panel:
        shares: list[float | None] = []
        hits = misses = 0.0
        for step in self._cache:
            hit, miss = step.get("hit", 0), step.get("miss", 0)
            hits, misses = hits + hit, misses + miss
            shares.append(hit / (hit + miss) if hit + miss else None)
        whole = text.share(hits / (hits + misses)) if hits + misses else _NOTHING
        description = gettext("Cache hit share in %(period)s: %(share)s.") % {"period": period, "share": whole}
        chart = svg.draw_lines(
            [svg.Line("", "c3", shares)], description=description, moments=self._moments, show=_axis_share, top=1.0
        )
        if not runtime.current().config.cache.metrics:
            hint = gettext('Cache operations are not counted. Set OTEL["CACHE"]["METRICS"] to True.')
        else:
            hint = gettext("No cache was read in this period.")
        return self._panel(gettext("Cache hit share"), chart, hint)

    def _panel(self, title: str, chart: svg.Chart, hint: str) -> Panel:
        return Panel(title, None if chart.is_empty else chart, hint)

    # Tables.

    def _route(self, route: str, longest_s: float) -> RouteFigures:
        """Return the row of a route; `longest_s` is the p95 of the slowest one."""
        figures, wanted = self._by_route[route], self._wanted
        keep = {"minutes": wanted.minutes, **({"service": wanted.service} if wanted.service else {})}
        p50, p95, p99 = (self._quantile(figures, share) or 0.0 for share in (0.5, 0.95, 0.99))
        queries_p95 = quantile(figures.query[2:], self._bounds["queries"], 0.95)
        failed = figures.errors / figures.count
        return RouteFigures(
            route=route,
            address="?" + urlencode({**keep, "route": route}),
            requests=figures.count,
            requests_text=text.count(figures.count),
            error_share=text.share(failed) if failed else "0",
            error_level="bad" if failed else "",
            p50=text.seconds(p50),
            p95=text.seconds(p95),
            p99=text.seconds(p99),
            bar=f"{max(0.5, p95 / (longest_s or 1.0) * 100):.2f}%",
            queries=figure(figures.mean_queries),
            queries_p95=text.count(round(queries_p95 or 0.0)),
        )

    def _exporters(self) -> list[dict[str, str]]:
        """Return the state of exports: name, whether they arrive, number of lost items."""
        config = runtime.current().config
        names = {name for process in self._loaded.processes for name in process.facts.get("exporters", ())}
        failed = self._failures.get("traces", 0)
        state = text.plural(failed, _FAILED_EXPORTS) if failed else gettext("no failed export")
        level = "bad" if failed else "good"
        rows = [
            {"name": gettext("Traces: %(exporter)s") % {"exporter": name}, "state": state, "level": level}
            for name in sorted(map(str, names))
        ]
        if not names:
            hint = gettext('not exported; OTEL["TRACES"]["ENDPOINT"] sends them to a collector')
            rows.append({"name": gettext("Traces"), "state": hint, "level": ""})
        for signal, title in (("metrics", gettext("Metrics: %(exporter)s")), ("logs", gettext("Logs: %(exporter)s"))):
            count = self._failures.get(signal, 0)
            chosen = [str(name) for name in getattr(config, signal).exporters]
            if chosen or count:
                state = text.plural(count, _FAILED_EXPORTS) if count else gettext("no failed export")
                name = title % {"exporter": ", ".join(chosen) or gettext("none")}
                rows.append({"name": name, "state": state, "level": "bad" if count else "good"})
        for reason, count in sorted(self._dropped.items()):
            rows.append({"name": gettext("Spans dropped"), "state": f"{text.count(count)} ({reason.replace('_', ' ')})",
                         "level": "warn"})  # fmt: skip
        return rows


def _describe_processes(processes: Sequence[ProcessRow], now_s: float) -> list[dict[str, object]]:
    """Return the row of each process."""
    return [
        {
            "service": process.service,
            "host": process.host,
            "pid": str(process.pid),
            "running": text.whole_seconds(now_s - process.started_s),
            "program": str(process.facts.get("program", "")),
            "ratio": _ratio(process.facts.get("ratio")),
            "seen": text.whole_seconds(now_s - process.seen_s),
        }
        for process in processes
    ]


def _ratio(value: object) -> str:
    return f"{value * 100:g} %" if isinstance(value, int | float) else ""


def rate(per_second: float) -> str:
    """ "12.5 / s", or per minute where that says more."""
    if per_second == 0:
        return "0"
    if per_second < 0.95:
        return f"{figure(per_second * 60)} / min"
    return f"{figure(per_second) if per_second < 100 else text.count(round(per_second))} / s"


def figure(value: float) -> str:
    """A mean: one digit behind the point, where it says something."""
    return text.localized(f"{value:.1f}".removesuffix(".0"))


def _axis_share(value: float) -> str:
    return text.localized(f"{value * 100:.3g} %")


def _axis_seconds(value: float) -> str:
    if value == 0:
        return "0"
    return text.localized(f"{value:g} s" if value >= 1 else f"{value * 1000:g} ms")
