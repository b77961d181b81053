"""The catalogue of metrics for `manage.py otel catalogue`, as Markdown and as plain data."""

from __future__ import annotations

from collections.abc import Iterable

from django_otel.metrics.catalogue import Metric
from django_otel.operations.monitoring.examples import find_examples, sample_name


def build_catalogue_data(metrics: Iterable[Metric]) -> list[dict[str, object]]:
    """Return the catalogue as lists and dicts, with each metric's examples of queries."""
    return [
        {
            "name": metric.name,
            "prometheus_name": sample_name(metric),
            "kind": metric.metric_type.value,
            "unit": metric.unit,
            "description": metric.description,
            "attributes": list(metric.attributes),
            "bounds": list(metric.bounds),
            "cardinality": metric.cardinality,
            "source": metric.source,
            "queries": [{"title": example.title, "query": example.query} for example in find_examples(metric)],
        }
        for metric in metrics
    ]


def build_catalogue_markdown(metrics: Iterable[Metric]) -> str:
    """Return the catalogue as a Markdown table with a heading, and the queries of each metric."""
    metrics = list(metrics)
    lines = [
        "# Metrics",
        "",
        "| name | type | unit | meaning | attributes | series | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for metric in metrics:
        attributes = ", ".join(f"`{name}`" for name in metric.attributes)
        meaning = metric.description
        if metric.bounds:
            meaning += " Buckets: " + " ".join(f"{bound:g}" for bound in metric.bounds) + "."
        kind = metric.metric_type.value.replace("_", "-")
        cells = (f"`{metric.name}`", kind, metric.unit, meaning, attributes, metric.cardinality, metric.source)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "## Queries", "", build_queries_markdown(metrics)]) + "\n"


def build_queries_markdown(metrics: Iterable[Metric]) -> str:
    """Return the examples of queries as Markdown, a list for each metric."""
    parts = []
    for metric in metrics:
        lines = [f"- {example.title}:\n  `{example.query}`" for example in find_examples(metric)]
        parts.append("\n".join([f"**`{metric.name}`**", "", *lines]))
    return "\n\n".join(parts)
