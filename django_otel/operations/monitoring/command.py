"""The subcommands `dashboards`, `rules` and `collector` of `manage.py otel`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from django.core.management.base import CommandParser
from django.utils.translation import gettext

from django_otel.base.text import printable
from django_otel.config.schema import Config
from django_otel.operations.monitoring.collector import BACKENDS, build_collector
from django_otel.operations.monitoring.dashboards import build_dashboard
from django_otel.operations.monitoring.more_boards import ALL_DASHBOARDS
from django_otel.operations.monitoring.rules import build_rules
from django_otel.operations.monitoring.slo import parse_slo
from django_otel.operations.monitoring.yaml import dump

#: Exit codes of `manage.py otel`.
_OK, _FAILED, _WRONG_COMMAND_LINE = 0, 1, 2

NAMES = ("dashboards", "rules", "collector")


def add_arguments(commands: argparse._SubParsersAction[CommandParser]) -> None:
    """Add the three subcommands."""
    dashboards = commands.add_parser(
        "dashboards",
        help=gettext("Grafana dashboards for these metrics, as JSON"),
        description=gettext(
            "Prints one JSON object with a dashboard per topic, or writes one file per topic with --out."
        ),
    )
    dashboards.add_argument("--out", type=Path, metavar="DIR", help=gettext("folder for one file per dashboard"))

    rules = commands.add_parser(
        "rules",
        help=gettext("Prometheus recording and alert rules, as YAML"),
        description=gettext("Prints a rule file. Each --slo adds burn-rate alerts for an objective."),
    )
    rules.add_argument(
        "--slo",
        action="append",
        default=[],
        metavar="OBJECTIVE",
        help=gettext('such as "availability 99.9" or "latency /checkout/ 500ms 99"; repeatable'),
    )
    rules.add_argument("--out", type=Path, metavar="FILE", help=gettext("file to write instead of printing"))

    collector = commands.add_parser(
        "collector",
        help=gettext("configuration of an OpenTelemetry Collector, as YAML"),
        description=gettext(
            "Prints a configuration that receives OTLP on this host and forwards it. Keys are read from the "
            "Collector's environment."
        ),
    )
    collector.add_argument(
        "--to", action="append", choices=tuple(BACKENDS), metavar="BACKEND",
        help=gettext("%(backends)s; repeatable (default jaeger)") % {"backends": ", ".join(BACKENDS)},
    )  # fmt: skip
    collector.add_argument(
        "--tail-sampling", action="store_true", help=gettext("keep errors, slow traces and 5 %% of the rest")
    )
    collector.add_argument("--span-metrics", action="store_true", help=gettext("metrics computed from spans, by route"))
    collector.add_argument("--out", type=Path, metavar="FILE", help=gettext("file to write instead of printing"))


def run(
    name: str,
    options: Mapping[str, object],
    config: Config,
    write: Callable[[str], object],
    warn: Callable[[str], object],
) -> int:
    """Run one subcommand and return its exit code; `write` prints a line, and `warn` one beside the result."""
    if name != "collector" and config.metrics.names == "django_prometheus":
        # Queries without data look like a site without errors.
        message = gettext(
            'OTEL["METRICS"]["NAMES"] is "django_prometheus": /metrics lacks metrics that these queries use, such as '
            '%(metric)s. Set it to "both".'
        )
        warn(message % {"metric": "http_server_request_duration_seconds"})
    out = options.get("out")
    target = out if isinstance(out, Path) else None
    try:
        if name == "dashboards":
            _write_dashboards(config, target, write)
        elif name == "rules":
            objectives = [parse_slo(text, config.metrics.buckets) for text in _texts(options.get("slo"))]
            _write_text(dump(build_rules(objectives)), target, write)
        else:
            built = build_collector(
                _texts(options.get("to")) or ["jaeger"],
                has_tail_sampling=bool(options.get("tail_sampling")),
                has_span_metrics=bool(options.get("span_metrics")),
            )
            _write_text(dump(built), target, write)
    except ValueError as error:  # `SloError`, or backends that do not fit
        write(printable(str(error)))
        return _WRONG_COMMAND_LINE
    except OSError as error:
        message = gettext("Cannot write %(path)s: %(reason)s.")
        write(printable(message % {"path": error.filename or target, "reason": error.strerror or error}))
        return _FAILED
    return _OK


def _texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _write_dashboards(config: Config, folder: Path | None, write: Callable[[str], object]) -> None:
    built = {board.topic: build_dashboard(board, trace_url=config.trace_url) for board in ALL_DASHBOARDS}
    if folder is None:
        write(json.dumps(built, indent=2))
        return
    folder.mkdir(parents=True, exist_ok=True)
    for topic, model in built.items():
        path = folder / f"{topic}.json"
        path.write_text(json.dumps(model, indent=2) + "\n", encoding="utf-8")
        write(printable(str(path)))


def _write_text(text: str, path: Path | None, write: Callable[[str], object]) -> None:
    if path is None:
        write(text.rstrip("\n"))
    else:
        path.write_text(text, encoding="utf-8")
        write(printable(str(path)))
