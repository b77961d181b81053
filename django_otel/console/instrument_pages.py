"""The page of all instruments: those of this package, of the project and of its libraries, each with a small chart.

It shows what `/metrics` shows at this moment. A bucket of a histogram leads to the trace of its newest exemplar, if
that is in the store.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.functional import Promise
from django.utils.safestring import SafeString
from django.utils.translation import gettext, gettext_lazy, ngettext_lazy

from django_otel import runtime
from django_otel.base import guard
from django_otel.console import svg, text
from django_otel.console.entries import ConsoleAdmin
from django_otel.console.filters import whole
from django_otel.console.page import StoreFailed, console_page, read_store, trace_addresses
from django_otel.console.quantiles import quantile
from django_otel.metrics.classic_buckets import with_classic_buckets
from django_otel.metrics.exemplar_choice import exemplars_by_bucket
from django_otel.metrics.model import OWN_SCOPE, Exemplar, Family, HistogramValue, MetricType, Point
from django_otel.metrics.prometheus_names import format_bound, label_text
from django_otel.tracestore.processor import StoreProcessor

PAGE_SIZE = 24
#: Series of one instrument that are drawn and listed.
MAX_SERIES = 8
#: Exemplars of one page that are looked for in the store.
MAX_EXEMPLARS = 900
_MAX_SEARCH = 200
_SERIES = ngettext_lazy("%(count)s series", "%(count)s series", "n")
_MEASUREMENTS = ngettext_lazy("%(count)s measurement", "%(count)s measurements", "n")
_KINDS: dict[MetricType, Promise] = {
    MetricType.COUNTER: gettext_lazy("counter"),
    MetricType.UP_DOWN_COUNTER: gettext_lazy("up-down counter"),
    MetricType.GAUGE: gettext_lazy("gauge"),
    MetricType.HISTOGRAM: gettext_lazy("histogram"),
    MetricType.EXPONENTIAL_HISTOGRAM: gettext_lazy("exponential histogram"),
}


@dataclass(frozen=True, slots=True)
class Shown:
    """One instrument as the page shows it; `rows` are its largest series: name, value, and the bar's width."""

    name: str
    kind: str
    unit: str
    description: str
    scope: str
    summary: str
    drawing: SafeString | None
    labels: Sequence[str]
    ends: tuple[str, str]
    rows: Sequence[tuple[str, str]]
    #: Buckets whose exemplar has a stored trace: name and address.
    exemplars: Sequence[tuple[str, str]]
    hidden: int


@console_page
def instruments(
    request: HttpRequest, admin: ConsoleAdmin, context: dict[str, object], console: StoreProcessor
) -> HttpResponse:
    """Every instrument that has a value, by name; `q` filters by name, meaning and scope."""
    search = str(request.GET.get("q", ""))[:_MAX_SEARCH].strip()
    families = [family for family in runtime.collect() if family.points]
    found = sorted((family for family in families if _fits(family, search)), key=_order)
    pages = max(1, -(-len(found) // PAGE_SIZE))
    number = whole(request.GET.get("page"), 1, pages)
    chosen = found[(number - 1) * PAGE_SIZE : number * PAGE_SIZE]
    address_of = _addresses(chosen, console, admin.admin_site.name)
    shown = []
    for family in chosen:
        with guard.contained(f"the page of the instrument {family.name}"):
            shown.append(_show(family, address_of))

    def address(page: int) -> str:
        return "?" + urlencode({**({"q": search} if search else {}), "page": page})

    context |= {
        "title": gettext("Instruments"),
        "instruments": shown,
        "search": search,
        "total": len(found),
        "stored": len(families),
        "number": number,
        "pages": pages,
        "previous": address(number - 1) if number > 1 else "",
        "next": address(number + 1) if number < pages else "",
        "problem": console.problem,
    }
    return TemplateResponse(request, "django_otel/console/instruments.html", context)


def _fits(family: Family, search: str) -> bool:
    words = search.lower().split()
    place = f"{family.name} {family.name.replace('.', '_')} {family.description} {family.scope.name}".lower()
    return all(word in place for word in words)


def _order(family: Family) -> tuple[bool, str, str]:
    """Those of the project and its libraries first: ours have pages of their own."""
    is_ours = family.scope == OWN_SCOPE and family.name.startswith(("django_otel.", "django.", "http.", "db."))
    return is_ours, family.name, family.scope.name


def _addresses(families: Sequence[Family], console: StoreProcessor, site: str) -> Callable[[Exemplar], str]:
    """Return a function that gives the address of an exemplar's span; "" where its trace is not stored."""
    ids = {f"{one.trace_id:032x}" for family in families for point in family.points for one in point.exemplars}
    stored: set[str] = set()
    if ids:
        # Without the store the page has all the rest.
        with contextlib.suppress(StoreFailed):
            stored = read_store(console, lambda reader: reader.stored_among(sorted(ids)[:MAX_EXEMPLARS]))
    address = trace_addresses(site)

    def address_of(exemplar: Exemplar) -> str:
        trace_id, span_id = f"{exemplar.trace_id:032x}", f"{exemplar.span_id:016x}"
        page = address(trace_id) if trace_id in stored else ""
        return f"{page}?span={span_id}#s-{span_id}" if page else ""

    return address_of


def _show(family: Family, address_of: Callable[[Exemplar], str]) -> Shown:
    points: Sequence[Point] = family.points
    if family.metric_type is MetricType.EXPONENTIAL_HISTOGRAM:
        points = with_classic_buckets(points, f"the page of the instrument {family.name}")
    exemplars: list[tuple[str, str]] = []
    if any(isinstance(point.value, HistogramValue) for point in points):
        (summary, chart, ends, rows), exemplars = _draw_histogram(family, points, address_of)
    else:
        summary, chart, ends, rows = _draw_numbers(family, points)
    return Shown(
        name=family.name,
        kind=str(_KINDS[family.metric_type]),
        unit=family.unit,
        description=family.description,
        scope="" if family.scope == OWN_SCOPE else family.scope.name,
        summary=summary,
        drawing=None if chart.is_empty else chart.drawing,
        labels=chart.labels,
        ends=ends,
        rows=rows[:MAX_SERIES],
        exemplars=exemplars,
        hidden=max(0, len(points) - MAX_SERIES),
    )


#: What is written below the name, the chart, the ends of its axis, and the series with their values.
_Drawn = tuple[str, svg.Chart, tuple[str, str], list[tuple[str, str]]]


def _draw_numbers(family: Family, points: Sequence[Point]) -> _Drawn:
    show = _format_of(family.unit)
    numbers = [(_name(point), float(point.value)) for point in points if isinstance(point.value, int | float)]
    # NaN compares with no number.
    numbers.sort(key=lambda item: -abs(item[1]) if math.isfinite(item[1]) else 0.0)
    drawn = numbers[:MAX_SERIES]
    rows = [(name, show(value)) for name, value in drawn]
    description = ", ".join(f"{name}: {value}" if name else value for name, value in rows)
    chart = svg.draw_bars(
        [svg.Line("", "c0", [max(0.0, value) if math.isfinite(value) else 0.0 for _, value in drawn])],
        description=f"{family.name}: {description}",
        moments=[svg.Moment("", name or family.name) for name, _ in drawn],
        show=show,
    )
    summary = text.plural(len(numbers), _SERIES)
    if family.metric_type is MetricType.COUNTER and len(numbers) > 1:
        summary = gettext("%(total)s in %(series)s") % {
            "total": show(sum(value for _, value in numbers)), "series": summary,
        }  # fmt: skip
    return summary, chart, ("", ""), rows


def _draw_histogram(
    family: Family, points: Sequence[Point], address_of: Callable[[Exemplar], str]
) -> tuple[_Drawn, list[tuple[str, str]]]:
    show = _format_of(family.unit)
    values = [(point, point.value) for point in points if isinstance(point.value, HistogramValue)]
    values.sort(key=lambda item: -item[1].count)
    bounds = values[0][1].bounds
    same = [value for _, value in values if value.bounds == bounds]
    buckets = [sum(column) for column in zip(*(value.buckets for value in same), strict=True)]
    count, total = sum(buckets), sum(value.sum for value in same)
    summary = text.plural(count, _MEASUREMENTS)
    if count:
        p95 = quantile(buckets, bounds, 0.95)
        figures = {"count": summary, "mean": show(total / count), "p95": show(p95) if p95 is not None else "-"}
        summary = gettext("%(count)s, mean %(mean)s, p95 %(p95)s") % figures
    known = exemplars_by_bucket(
        tuple(bounds), (one for point, value in values if value.bounds == bounds for one in point.exemplars)
    )
    addresses = [address_of(known[index]) if index in known else "" for index in range(len(buckets))]
    names = [f"≤ {show(bound)}" for bound in bounds] + [f"> {show(bounds[-1])}" if bounds else format_bound(0.0)]
    chart = svg.draw_bars(
        [svg.Line("", "c0", buckets)],
        description=f"{family.name}: {summary}",
        moments=[svg.Moment("", name) for name in names],
        show=text.count,
        addresses=addresses,
    )
    rows = [
        (
            _name(point),
            gettext("%(count)s, mean %(mean)s")
            % {"count": text.plural(value.count, _MEASUREMENTS), "mean": show(value.sum / value.count)},
        )
        for point, value in values[:MAX_SERIES]
        if value.count
    ]
    links = [(name, address) for name, address in zip(names, addresses, strict=True) if address]
    return (summary, chart, (names[0], names[-1]), rows), links


def _name(point: Point) -> str:
    return ", ".join(f"{key}={label_text(value)}" for key, value in point.attributes)


def _format_of(unit: str) -> Callable[[float], str]:
    return _show_seconds if unit == "s" else _show_number


def _show_seconds(value: float) -> str:
    # A moment (Unix time) is not a duration.
    return text.seconds(value) if 0 <= value < 1e9 else _show_number(value)


def _show_number(value: float) -> str:
    return text.count(value) if math.isfinite(value) else str(value)
