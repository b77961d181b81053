"""Writes the metric tables of README.md and docs/metrics.md from the catalogue: `python docs/build_readme.py`."""

from __future__ import annotations

from pathlib import Path

from django_otel.metrics.catalogue import CATALOGUE, Metric
from django_otel.metrics.model import MetricType
from django_otel.metrics.prometheus_names import family_name
from django_otel.operations.monitoring.catalogue_page import build_queries_markdown

ROOT = Path(__file__).parent.parent
#: The README has one line per metric of requests and Django; the page has every metric with its labels.
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "metrics.md"
BEGIN = "<!-- metrics: made by docs/build_readme.py -->"
END = "<!-- end of metrics -->"
BEGIN_QUERIES = "<!-- queries: made by docs/build_readme.py -->"
END_QUERIES = "<!-- end of queries -->"

_TYPES = {
    MetricType.COUNTER: "counter",
    MetricType.UP_DOWN_COUNTER: "up-down counter",
    MetricType.GAUGE: "gauge",
    MetricType.HISTOGRAM: "histogram",
}


def build_short_table() -> str:
    """Return what requests, databases and Django itself are measured by, without labels, as a Markdown table."""
    lines = ["| on `/metrics` | type | meaning |", "|---|---|---|"]
    lines += [
        f"| `{shown_name(metric)}` | {_TYPES[metric.metric_type]} | {metric.description} |"
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
        cells = [
            f"`{metric.name}`",
            f"`{shown_name(metric)}`",
            _TYPES[metric.metric_type],
            metric.description,
            attributes,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shown_name(metric: Metric) -> str:
    """Return the name of a metric's samples on `/metrics`; of a histogram without its suffixes."""
    name, _ = family_name(metric.name, metric.unit, metric.metric_type)
    return f"{name}_total" if metric.metric_type is MetricType.COUNTER else name


def fill(page: str, table: str, begin: str = BEGIN, end: str = END) -> str:
    """Return a page with a table between its two marks. Errors: `ValueError` when a mark is missing."""
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def build_page(page: str) -> str:
    """Return docs/metrics.md with its table and the queries of each metric."""
    queries = build_queries_markdown(CATALOGUE.values())
    return fill(fill(page, build_table()), queries, BEGIN_QUERIES, END_QUERIES)


if __name__ == "__main__":
    README.write_text(fill(README.read_text(encoding="utf-8"), build_short_table()), encoding="utf-8")
    PAGE.write_text(build_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
