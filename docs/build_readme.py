"""Writes the metric tables of README.md and docs/metrics.md from the catalogue: `python docs/build_readme.py`."""

from __future__ import annotations

from pathlib import Path

from django_otel.metrics.catalogue import CATALOGUE, Metric
from django_otel.metrics.model import Kind
from django_otel.metrics.prometheus_names import family_name

ROOT = Path(__file__).parent.parent
#: The README has one line per metric of requests and Django; the page has every metric with its labels.
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "metrics.md"
BEGIN = "<!-- metrics: made by docs/build_readme.py -->"
END = "<!-- end of metrics -->"

_TYPES = {
    Kind.COUNTER: "counter",
    Kind.UP_DOWN_COUNTER: "up-down counter",
    Kind.GAUGE: "gauge",
    Kind.HISTOGRAM: "histogram",
}


def build_short_table() -> str:
    """Return what requests, databases and Django itself are measured by, without labels, as a Markdown table."""
    lines = ["| on `/metrics` | type | meaning |", "|---|---|---|"]
    lines += [
        f"| `{shown_name(metric)}` | {_TYPES[metric.kind]} | {metric.description} |"
        for metric in CATALOGUE.values()
        if not metric.name.startswith("django_otel.")
    ]
    return "\n".join(lines)


def build_table() -> str:
    """Return the catalogue as a Markdown table."""
    lines = [
        "| OpenTelemetry name | on `/metrics` | type | meaning | attributes (labels) |",
        "|---|---|---|---|---|",
    ]
    for metric in CATALOGUE.values():
        attributes = ", ".join(f"`{attribute}`" for attribute in metric.attributes) or "none"
        cells = [f"`{metric.name}`", f"`{shown_name(metric)}`", _TYPES[metric.kind], metric.description, attributes]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shown_name(metric: Metric) -> str:
    """Return the name of a metric's samples on `/metrics`; of a histogram without its suffixes."""
    name, _ = family_name(metric.name, metric.unit, metric.kind)
    return f"{name}_total" if metric.kind is Kind.COUNTER else name


def fill(page: str, table: str) -> str:
    """Return a page with a table between its two marks. Errors: `ValueError` when a mark is missing."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


if __name__ == "__main__":
    README.write_text(fill(README.read_text(encoding="utf-8"), build_short_table()), encoding="utf-8")
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), build_table()), encoding="utf-8")
