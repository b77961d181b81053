"""Charts drawn on the server: SVG with classes and attributes only, which a strict content policy allows.

The drawing area is stretched to the width there is; everything written stands
beside it in HTML, so that it stays readable at any width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from django.utils.html import escape, format_html
from django.utils.safestring import SafeString, mark_safe

WIDTH = 600
HEIGHT = 150


@dataclass(frozen=True, slots=True)
class Line:
    """One row of values over time; None where there is no value. `colour` is a class, "c0" to "c5" or "bad"."""

    name: str
    colour: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Moment:
    """When a step begins: `at` for the script that shows it in the viewer's zone, `text` as it is without one."""

    at: str
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing and what is written around it."""

    drawing: SafeString
    #: From the top down.
    labels: Sequence[str]
    legend: Sequence[tuple[str, str]]
    is_empty: bool


def nice_top(highest: float) -> float:
    """The end of an axis: 1, 2, 2.5 or 5 times a power of ten, at or above `highest`."""
    if highest <= 0 or not math.isfinite(highest):
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    for factor in (1, 2, 2.5, 5, 10):
        if highest <= factor * power * 1.0000001:
            return float(factor * power)
    return 10 * power


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def draw_lines(
    lines: Sequence[Line],
    *,
    description: str,
    moments: Sequence[Moment],
    show: Callable[[float], str],
    top: float | None = None,
) -> Chart:
    """Lines over time. `moments` names each step, `show` writes a value of the axis."""
    highest = max((value for line in lines for value in line.values if value is not None), default=0.0)
    top = nice_top(highest) if top is None else top
    steps = max(1, len(moments))
    parts = [_grid()]
    for line in lines:
        parts += [
            f'<polyline class="otel-line otel-{line.colour}" points="{points}"/>'
            for points in _runs(line.values, steps, top)
        ]
    parts.append(_hovers(moments, [_tip(lines, index, show) for index in range(len(moments))], steps))
    return Chart(
        _svg(parts, description),
        [show(top), show(top / 2), show(0)],
        [(line.name, line.colour) for line in lines] if len(lines) > 1 else [],
        all(value is None for line in lines for value in line.values),
    )


def draw_bars(
    lines: Sequence[Line],
    *,
    description: str,
    moments: Sequence[Moment],
    show: Callable[[float], str],
    addresses: Sequence[str] = (),
) -> Chart:
    """Bars over time, one line's value on top of the other's. `addresses`: where each step leads; "" for nowhere."""
    steps = max(1, len(moments))
    sums = [sum(line.values[index] or 0 for line in lines) for index in range(len(moments))]
    top = nice_top(max(sums, default=0.0))
    parts = [_grid()]
    width = WIDTH / steps
    gap = min(2.0, width * 0.2)
    for index in range(len(moments)):
        reached = 0.0
        for line in lines:
            value = line.values[index] or 0.0
            if value <= 0:
                continue
            height = value / top * HEIGHT
            parts.append(
                # Of our own class and numbers: there is nothing to escape, and a chart has hundreds of them.
                f'<rect class="otel-bar otel-{line.colour}" x="{_number(index * width + gap / 2)}" '
                f'y="{_number(HEIGHT - reached - height)}" width="{_number(width - gap)}" '
                # A value above zero is always visible.
                f'height="{_number(max(1.0, height))}"/>'
            )
            reached += height
    parts.append(_hovers(moments, [_tip(lines, index, show) for index in range(len(moments))], steps, addresses))
    return Chart(
        _svg(parts, description, role="group" if any(addresses) else "img"),
        [show(top), show(top / 2), show(0)],
        [(line.name, line.colour) for line in lines] if len(lines) > 1 else [],
        not any(sums),
    )


def _svg(parts: Sequence[str], description: str, role: str = "img") -> SafeString:
    return format_html(
        '<svg class="otel-chart" viewBox="0 0 {} {}" preserveAspectRatio="none" role="{}" aria-label="{}">{}</svg>',
        WIDTH, HEIGHT, role, description, mark_safe("".join(parts)),  # noqa: S308 (what is not our own in a part is escaped)
    )  # fmt: skip


def _grid() -> str:
    heights = [_number(HEIGHT * share) for share in (0, 0.5, 1)]
    return "".join(f'<line class="otel-grid" x1="0" x2="{WIDTH}" y1="{y}" y2="{y}"/>' for y in heights)


def _runs(values: Sequence[float | None], steps: int, top: float) -> list[str]:
    """The points of a line, in one piece for each stretch without a gap."""
    runs: list[list[str]] = [[]]
    width = WIDTH / steps
    for index, value in enumerate(values):
        if value is None:
            if runs[-1]:
                runs.append([])
            continue
        y = HEIGHT - min(value / top, 1.0) * HEIGHT
        runs[-1].append(f"{_number((index + 0.5) * width)},{_number(y)}")
    for run in runs:
        if len(run) == 1:
            # A single point would not be seen.
            x, _, y_text = run[0].partition(",")
            run[:] = [f"{_number(float(x) - width / 3)},{y_text}", f"{_number(float(x) + width / 3)},{y_text}"]
    return [" ".join(run) for run in runs if run]


def _tip(lines: Sequence[Line], index: int, show: Callable[[float], str]) -> str:
    known = [(line.name, line.values[index]) for line in lines]
    return ", ".join(f"{name} {show(value)}" if name else show(value) for name, value in known if value is not None)


def _hovers(moments: Sequence[Moment], tips: Sequence[str], steps: int, addresses: Sequence[str] = ()) -> str:
    width = WIDTH / steps
    parts = []
    for index, (moment, tip) in enumerate(zip(moments, tips, strict=True)):
        if not tip:
            continue
        said = escape(f"{moment.text}: {tip}")
        area = (
            f'<rect class="otel-hover" x="{_number(index * width)}" y="0" width="{_number(width)}" height="{HEIGHT}">'
            f'<title data-otel-at="{escape(moment.at)}">{said}</title></rect>'
        )
        address = addresses[index] if index < len(addresses) else ""
        parts.append(f'<a href="{escape(address)}" aria-label="{said}">{area}</a>' if address else area)
    return "".join(parts)
