"""Writes the metric table of README.md from the catalogue: `python docs/build_readme.py`."""

from __future__ import annotations

from pathlib import Path

from django_otel.metrics.catalogue import CATALOGUE, Metric
from django_otel.metrics.exposition import family_name
from django_otel.metrics.model import Kind

PAGE = Path(__file__).parent.parent / "README.md"
BEGIN = "<!-- metrics: made by docs/build_readme.py -->"
END = "<!-- end of metrics -->"

_TYPES = {
    Kind.COUNTER: "counter",
    Kind.UP_DOWN_COUNTER: "up-down counter",
    Kind.GAUGE: "gauge",
    Kind.HISTOGRAM: "histogram",
}


def build_table() -> str:
    """The catalogue as a Markdown table."""
    lines = [
        "| OpenTelemetry name | on `/metrics` | type | what it says | attributes (labels) |",
        "|---|---|---|---|---|",
    ]
    lines += [_build_row(metric) for metric in CATALOGUE.values()]
    return "\n".join(lines)


def _build_row(metric: Metric) -> str:
    name, _ = family_name(metric.name, metric.unit, metric.kind)
    if metric.kind is Kind.COUNTER:
        name += "_total"
    attributes = ", ".join(f"`{attribute}`" for attribute in metric.attributes) or "none"
    return f"| `{metric.name}` | `{name}` | {_TYPES[metric.kind]} | {metric.description} | {attributes} |"


def fill(page: str) -> str:
    """The page with the current table between its two marks. Errors: `ValueError` when a mark is missing."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{build_table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
