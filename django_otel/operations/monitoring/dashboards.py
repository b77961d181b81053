"""Grafana dashboards as plain data of Grafana's dashboard model (schema version 39), from the panels of `boards`.

Percentiles carry exemplars; the data source decides where these lead.
Source: Grafana documentation, "Dashboard JSON model".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

from django_otel.operations.monitoring.boards import DURATION, TARGET, Dashboard, Panel, Query

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_SCHEMA_VERSION = 39
#: Grafana's grid has 24 columns.
_COLUMNS = 24
_HEIGHT = 8


def build_dashboard(dashboard: Dashboard, *, trace_url: str | None = None) -> dict[str, object]:
    """Return the JSON model of a dashboard. `trace_url` (`TRACE_URL`) becomes a link to the tracing backend."""
    links: list[dict[str, object]] = [
        {
            "type": "dashboards", "tags": ["django_otel"], "title": "Django", "asDropdown": True, "includeVars": True,
            "keepTime": True, "targetBlank": False, "icon": "external link", "tooltip": "", "url": "",
        }
    ]  # fmt: skip
    if trace_url:
        links.append(
            {
                "type": "link", "title": "Traces", "url": trace_url.split("{trace_id}")[0], "asDropdown": False,
                "includeVars": False, "keepTime": False, "targetBlank": True, "icon": "external link", "tooltip": "",
                "tags": [],
            }
        )  # fmt: skip
    return {
        "uid": hashlib.sha256(f"django_otel/{dashboard.topic}".encode()).hexdigest()[:14],
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["django_otel"],
        "schemaVersion": _SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": links,
        "templating": {"list": _build_variables()},
        "annotations": {"list": []},
        "panels": _build_panels(dashboard.panels),
    }


def _build_variables() -> list[dict[str, object]]:
    """The data source, and the service, environment, instance and route by label."""
    source: dict[str, object] = {
        "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0,
        "includeAll": False, "multi": False, "refresh": 1, "regex": "", "skipUrlSync": False,
    }  # fmt: skip
    environment = 'deployment_environment_name=~"$environment"'
    return [
        source,
        _build_variable("environment", "Environment", "target_info", "deployment_environment_name"),
        _build_variable("job", "Service", f"target_info{{{environment}}}", "job"),
        _build_variable("instance", "Instance", f'target_info{{job=~"$job", {environment}}}', "instance"),
        _build_variable("route", "Route", f"{DURATION}_count{{{TARGET}}}", "http_route"),
    ]


def _build_variable(name: str, label: str, series: str, value: str) -> dict[str, object]:
    query = f"label_values({series}, {value})"
    return {
        "name": name, "label": label, "type": "query", "datasource": _SOURCE, "definition": query,
        "query": {"query": query, "refId": f"{name}-values", "qryType": 1}, "refresh": 2, "sort": 1, "regex": "",
        "multi": True, "includeAll": True, "allValue": ".*", "hide": 0, "skipUrlSync": False, "options": [],
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }  # fmt: skip


def _build_panels(panels: Iterable[Panel]) -> list[dict[str, object]]:
    built: list[dict[str, object]] = []
    x = y = 0
    for number, panel in enumerate(panels, start=1):
        height = _HEIGHT // 2 if panel.kind == "stat" and panel.width < 12 else _HEIGHT
        if x + panel.width > _COLUMNS:
            x, y = 0, y + _HEIGHT
        built.append(_build_panel(panel, number, {"x": x, "y": y, "w": panel.width, "h": height}))
        x += panel.width
        if x == _COLUMNS:
            x, y = 0, y + height
    return built


def _build_panel(panel: Panel, number: int, grid: dict[str, int]) -> dict[str, object]:
    build_options: Callable[[Panel], tuple[dict[str, object], dict[str, object]]] = _OPTIONS[panel.kind]
    options, custom = build_options(panel)
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": grid,
        "targets": _build_targets(panel.queries, panel),
        "options": options,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "transformations": [{"id": "merge", "options": {}}] if panel.kind == "table" else [],
    }


def _build_targets(queries: Sequence[Query], panel: Panel) -> list[dict[str, object]]:
    is_instant = panel.kind == "table"
    return [
        {
            "refId": chr(ord("A") + place), "datasource": _SOURCE, "expr": query.expr, "legendFormat": query.legend,
            "range": not is_instant, "instant": is_instant, "format": "table" if is_instant else "time_series",
            "exemplar": panel.has_exemplars, "editorMode": "code",
        }
        for place, query in enumerate(queries)
    ]  # fmt: skip


def _build_timeseries_options(panel: Panel) -> tuple[dict[str, object], dict[str, object]]:
    options: dict[str, object] = {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["mean", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    stacking = {"mode": "normal" if panel.is_stacked else "none", "group": "A"}
    return options, {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 10,
        "showPoints": "never",
        "stacking": stacking,
    }


def _build_stat_options(panel: Panel) -> tuple[dict[str, object], dict[str, object]]:
    reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    return {"reduceOptions": reduce, "graphMode": "area", "textMode": "auto", "colorMode": "value"}, {}


def _build_table_options(panel: Panel) -> tuple[dict[str, object], dict[str, object]]:
    return {"showHeader": True, "sortBy": [{"displayName": "Value #A", "desc": True}]}, {}


_OPTIONS = {
    "timeseries": _build_timeseries_options,
    "stat": _build_stat_options,
    "table": _build_table_options,
}
