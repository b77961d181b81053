"""Writes the generated files of the stack: `python deploy/stack/generated.py` after an upgrade."""

from __future__ import annotations

import json
from pathlib import Path

from django_otel.operations.monitoring.collector import build_collector
from django_otel.operations.monitoring.dashboards import build_dashboard
from django_otel.operations.monitoring.more_boards import ALL_DASHBOARDS
from django_otel.operations.monitoring.rules import build_rules
from django_otel.operations.monitoring.slo import parse_slo
from django_otel.operations.monitoring.yaml import dump

FOLDER = Path(__file__).parent
OBJECTIVES = ("availability 99.9", "latency 0.5s 95")


def build_files() -> dict[str, str]:
    """Return the texts by path, relative to this folder."""
    collector = build_collector(["tempo", "prometheus"], has_tail_sampling=True, has_span_metrics=True)
    # Other containers send to it.
    protocols = {"http": {"endpoint": "0.0.0.0:4318"}, "grpc": {"endpoint": "0.0.0.0:4317"}}
    collector["receivers"] = {"otlp": {"protocols": protocols}}
    files = {
        "rules.yml": dump(build_rules([parse_slo(text, {}) for text in OBJECTIVES])),
        "collector.yaml": dump(collector),
    }
    for board in ALL_DASHBOARDS:
        files[f"grafana/dashboards/{board.topic}.json"] = json.dumps(build_dashboard(board), indent=1) + "\n"
    return files


if __name__ == "__main__":
    for path, text in build_files().items():
        target = FOLDER / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
