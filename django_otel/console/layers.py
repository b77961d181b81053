"""Time of a request by layer, on the pages: a bar for one trace, a stacked chart of all requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext, gettext_lazy

from django_otel.console import svg, text
from django_otel.console.stored_spans import attributes_of
from django_otel.requests.layers import PREFIX, SUFFIX
from django_otel.tracestore.items import LAYERS

_NAMES = {
    "database": gettext_lazy("database"),
    "cache": gettext_lazy("cache"),
    "template": gettext_lazy("template"),
    "http": gettext_lazy("outbound HTTP"),
    "view": gettext_lazy("view"),
    "middleware": gettext_lazy("middleware"),
}


class Step(Protocol):
    """Figures of the requests in a step of time: the seconds of each layer, and how many there were."""

    @property
    def layers(self) -> Sequence[float]: ...

    @property
    def count(self) -> float: ...


@dataclass(frozen=True, slots=True)
class LayerBar:
    """The bar of a trace and what it shows: name, colour class and time of each layer."""

    drawing: SafeString
    parts: Sequence[tuple[str, str, str]]


def build_bar(spans: Iterable[Mapping[str, Any]]) -> LayerBar | None:
    """The layers of the first request of a trace; None where no span has any."""
    for span in spans:
        found = _read(attributes_of(span))
        if found:
            return _draw(found)
    return None


def _read(attributes: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name in LAYERS:
        seconds = attributes.get(f"{PREFIX}{name}{SUFFIX}")
        # The store may hold spans of another hand.
        if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds < 1e9:
            found[name] = float(seconds)
    return found


def _draw(found: Mapping[str, float]) -> LayerBar:
    total, reached = sum(found.values()), 0.0
    parts, drawn = [], []
    for number, name in enumerate(LAYERS):
        if name in found:
            share = found[name] / total * 100
            drawn.append((f"c{number}", f"{reached:.2f}%", f"{share:.2f}%"))
            parts.append((str(_NAMES[name]), f"c{number}", text.seconds(found[name])))
            reached += share
    rects = format_html_join("", '<rect class="otel-bar otel-{}" x="{}" width="{}" height="12"/>', drawn)
    label = ", ".join(f"{name} {duration}" for name, _, duration in parts)
    drawing = format_html(
        '<svg class="otel-meter" width="100%" height="12" role="img" aria-label="{}">{}</svg>', label, rects
    )
    return LayerBar(drawing, parts)


def draw_chart(
    steps: Sequence[Step], moments: Sequence[svg.Moment], period: str, show: Callable[[float], str]
) -> tuple[str, svg.Chart, str]:
    """Return title and chart of the mean time in each layer, and the text for no requests."""
    lines = [
        svg.Line(
            str(_NAMES[name]),
            f"c{number}",
            [
                step.layers[number] / step.count if step.count and len(step.layers) == len(LAYERS) else None
                for step in steps
            ],
        )
        for number, name in enumerate(LAYERS)
    ]
    known = [line for line in lines if any(line.values)]
    description = gettext("Mean time of a request in each layer, in %(period)s.") % {"period": period}
    chart = svg.draw_bars(known, description=description, moments=moments, show=show)
    return gettext("Where the time goes"), chart, gettext("No requests in this period.")
