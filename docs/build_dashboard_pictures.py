"""Draws the generated dashboards with real data: `python docs/build_dashboard_pictures.py PROMETHEUS_URL`.

Prometheus must have scraped a running site for some minutes. Each panel asks what Grafana would ask; docs/images/ gets
an SVG for each dashboard. Panels without data are left out.
"""

from __future__ import annotations

import html
import json
import re
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

from django_otel.operations.monitoring.boards import Dashboard, Panel
from django_otel.operations.monitoring.more_boards import ALL_DASHBOARDS

FOLDER = Path(__file__).parent / "images"
MINUTES = 5
STEP_S = 5
WIDTH, HEIGHT, GAP, TOP = 400, 190, 16, 56
MOST_LINES = 6
COLOURS = ("#2f6fbf", "#c9621f", "#3d8b4f", "#8a4fb0", "#b3912b", "#b03a52")
#: One series of a panel: its name, and (seconds since the beginning, value).
Row = tuple[str, list[tuple[float, float]]]


def ask(
    address: str, expr: str, begin_s: float, end_s: float
) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
    """Return the series of a range query: labels, and (time, value)."""
    for variable, value in (("$__rate_interval", "30s"), ("$__range", f"{MINUTES}m"), ("$job", ".*"),
                            ("$instance", ".*"), ("$route", ".*")):  # fmt: skip
        expr = expr.replace(variable, value)
    query = urllib.parse.urlencode({"query": expr, "start": begin_s, "end": end_s, "step": STEP_S})
    with urllib.request.urlopen(f"{address}/api/v1/query_range?{query}", timeout=30) as answer:  # noqa: S310 (the caller's own Prometheus)
        found = json.load(answer)["data"]["result"]
    series = []
    for row in found:
        values = [(float(at) - begin_s, float(text)) for at, text in row["values"]]
        kept = [(at, value) for at, value in values if value == value and abs(value) != float("inf")]
        if kept:
            series.append((row["metric"], kept))
    return series


def name_of(legend: str, labels: dict[str, str]) -> str:
    """Return the legend with its labels filled in, as Grafana does."""
    if "{" not in legend and labels:
        return f"{' '.join(labels.values())} {legend}"
    # Labels that a series lacks are empty.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend)


def format_value(value: float, unit: str) -> str:
    """Return a value with the unit of its panel."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "bytes":
        for size, name in ((2**20, "MiB"), (2**10, "KiB")):
            if value >= size:
                return f"{value / size:.3g} {name}"
        return f"{value:.3g} B"
    return f"{value:.3g}" + {"reqps": " req/s", "ops": " ops/s"}.get(unit, "")


def draw_panel(panel: Panel, rows: list[Row], x: int, y: int) -> list[str]:
    """Return the SVG of one panel."""
    parts = [
        f'<g transform="translate({x},{y})">', f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" class="panel"/>',
        f'<text x="12" y="22" class="title">{html.escape(panel.title)}</text>',
    ]  # fmt: skip
    if panel.kind != "timeseries":
        for place, (name, values) in enumerate(rows[:5]):
            shown = (
                f"{name}: {format_value(values[-1][1], panel.unit)}"
                if name
                else format_value(values[-1][1], panel.unit)
            )
            parts.append(f'<text x="12" y="{52 + 24 * place}" class="figure">{html.escape(shown[:48])}</text>')
        return [*parts, "</g>"]
    top = max((value for _, values in rows for _, value in values), default=0) or 1
    for place, (name, values) in enumerate(rows[:MOST_LINES]):
        points = " ".join(
            f"{76 + at / (MINUTES * 60) * (WIDTH - 92):.1f},{112 - max(value, 0) / top * 76:.1f}"
            for at, value in values
        )
        colour = COLOURS[place % len(COLOURS)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        column, line = place % 2, place // 2
        parts.append(f'<rect x="{12 + column * 194}" y="{128 + line * 18}" width="10" height="4" fill="{colour}"/>')
        shown = html.escape(name[:28] or panel.title)
        parts.append(f'<text x="{26 + column * 194}" y="{134 + line * 18}" class="small">{shown}</text>')
    parts.append(f'<line x1="76" x2="{WIDTH - 16}" y1="112" y2="112" class="axis"/>')
    parts.append(
        f'<text x="70" y="42" class="small" text-anchor="end">{html.escape(format_value(top, panel.unit))}</text>'
    )
    parts.append('<text x="70" y="115" class="small" text-anchor="end">0</text>')
    return [*parts, "</g>"]


def draw(board: Dashboard, panels: list[tuple[Panel, list[Row]]]) -> str:
    """Return the SVG of a dashboard, two panels side by side."""
    lines = -(-len(panels) // 2)
    width, height = 2 * WIDTH + 3 * GAP, TOP + lines * (HEIGHT + GAP)
    title = html.escape(board.title)
    style = (
        "text{font-family:system-ui,sans-serif;fill:#222}.title{font-size:13px;font-weight:600}.small{font-size:10px}"
        ".figure{font-size:14px}.head{font-size:18px;font-weight:600}.panel{fill:#fff;stroke:#ccc}.axis{stroke:#bbb}"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">',
        f"<style>{style}</style>",
        f'<rect width="{width}" height="{height}" fill="#f4f5f7"/>',
        f'<text x="{GAP}" y="34" class="head">{title}</text>',
    ]
    for place, (panel, rows) in enumerate(panels):
        x, y = GAP + place % 2 * (WIDTH + GAP), TOP + place // 2 * (HEIGHT + GAP)
        parts += draw_panel(panel, rows, x, y)
    return "\n".join([*parts, "</svg>"]) + "\n"


def main(address: str, age_s: float = 0.0) -> None:
    """Write a picture for each dashboard that has data, of the minutes that ended `age_s` seconds ago."""
    end_s = time.time() - age_s
    begin_s = end_s - MINUTES * 60
    for board in ALL_DASHBOARDS:
        panels = []
        for panel in board.panels:
            rows: list[Row] = [
                (name_of(query.legend, labels), values)
                for query in panel.queries
                for labels, values in ask(address, query.expr, begin_s, end_s)
            ]
            rows.sort(key=lambda row: -max(value for _, value in row[1]))
            if rows:
                panels.append((panel, rows))
        if panels:
            (FOLDER / f"dashboard-{board.topic}.svg").write_text(draw(board, panels), encoding="utf-8")
            print(board.topic, len(panels), "of", len(board.panels), "panels")  # noqa: T201 (a script)


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), *map(float, sys.argv[2:3]))
