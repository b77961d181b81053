"""Generated dashboards, rules and Collector configuration: valid, and over metrics that exist."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml as pyyaml
from django.core.management import call_command
from django.test import override_settings

from django_otel.metrics.catalogue import CATALOGUE
from django_otel.metrics.model import MetricType
from django_otel.metrics.prometheus_names import family_name
from django_otel.operations.monitoring import collector, dashboards, examples, more_boards, rules, slo, yaml
from tests import services, sizes
from tests.recorded import record

SLOS = ("availability 99.9", "availability /orders/<int:pk>/ 99", "latency 1s 99", "latency /hello/ 500ms 95")
PROMETHEUS_NAMES = {
    f"{name}{suffix}"
    for metric in CATALOGUE.values()
    for name in [family_name(metric.name, metric.unit, metric.metric_type)[0]]
    for suffix in {MetricType.COUNTER: ("_total",), MetricType.HISTOGRAM: ("_bucket", "_sum", "_count")}.get(
        metric.metric_type, ("",)
    )
} | {"target_info"}
RECORDED = {name for name, _ in rules.RECORDED} | {
    f"job_slo:error_ratio:rate{window}" for window in ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
}


def _read_yaml(text):
    """What the text says; by libyaml where it is there, which takes a tenth of the time."""
    return pyyaml.load(text, Loader=getattr(pyyaml, "CSafeLoader", pyyaml.SafeLoader))


def build_rules() -> dict:
    return rules.build_rules([slo.parse_slo(text, {}) for text in SLOS])


def all_rules(built: dict) -> list[dict]:
    return [rule for group in built["groups"] for rule in group["rules"]]


def panel_queries() -> list[tuple[str, str, str]]:
    """(topic, panel, expression) of every query, with Grafana's variables filled in."""
    return [
        (board.topic, panel.title, fill(query.expr))
        for board in more_boards.ALL_DASHBOARDS
        for panel in board.panels
        for query in panel.queries
    ]


def fill(expr: str) -> str:
    for variable, value in (
        ("$__rate_interval", "1m"),
        ("$__range", "1m"),
        ("$job", ".*"),
        ("$instance", ".*"),
        ("$route", ".*"),
    ):
        expr = expr.replace(variable, value)
    return expr


def metric_names(expr: str) -> set[str]:
    """The names of series in an expression: what stands before a brace, a bracket or an operator and is no function."""
    without_strings = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expr)
    without_labels = re.sub(r"\b(?:by|on|without)\s*\([^)]*\)", "", re.sub(r"\{[^}]*\}", "", without_strings))
    words = re.findall(r"[a-zA-Z_][\w:]*(?!\w|\s*\()", without_labels)
    return {
        word for word in words if word not in {"and", "or", "unless", "by", "on"} and not re.fullmatch(r"[smhd]", word)
    }


# --- YAML. ---


@pytest.mark.parametrize(
    "node",
    [
        {"a": [{"b": 1, "c": {"d": [1, 2.5]}}, "x", []], "e": {}, "f": None, "g": True},
        {"text": 'with "quotes": and # marks', "lines": "one\n  two\n\nfour", "no": "no", "number": "1e3", "empty": ""},
        [["nested", ["lists"]], {"": "\u200f\t\\"}],
        ["\U0001f600\n é", " a\nb", "a\nb\n", "\n", "a\x85b\nc", "\x7f\ufeff\u2028", "ª", "1_0", "-", "?", "~"],
        ["a\r\nb", "\t", "a\tb\nc"],
    ],
)  # fmt: skip
def test_the_yaml_that_is_written_reads_back_as_the_same_data(node):
    assert pyyaml.safe_load(yaml.dump(node)) == node


def test_other_types_are_refused():
    with pytest.raises(TypeError):
        yaml.dump({"x": object()})


# --- Rules. ---


def test_every_expression_is_promql_over_metrics_that_exist():
    promql = pytest.importorskip("promql_parser", reason="promql-parser has no wheel here")
    expressions = [rule["expr"] for rule in all_rules(build_rules())] + [expr for _, _, expr in panel_queries()]
    expressions += [example.query for metric in CATALOGUE.values() for example in examples.find_examples(metric)]
    for expr in expressions:
        promql.parse(expr)
        names = metric_names(expr)
        assert names and names <= PROMETHEUS_NAMES | RECORDED, (expr, names - PROMETHEUS_NAMES - RECORDED)


def name_by_otlp(name: str, unit: str, kind: MetricType) -> str:
    """How Prometheus and the Collector name a metric that comes by OTLP (prometheus/otlptranslator)."""
    words = [word for word in re.split(r"[^a-zA-Z0-9:]+", name) if word]
    shown = {"s": "seconds", "ms": "milliseconds", "By": "bytes", "%": "percent"}.get(unit, unit)
    if unit not in ("", "1") and "{" not in unit and shown not in words:
        words.append(shown)
    last = "total" if kind is MetricType.COUNTER else "ratio" if kind is MetricType.GAUGE and unit == "1" else ""
    return "_".join([word for word in words if word != last] + ([last] if last else []))


def test_metrics_that_come_by_otlp_have_the_same_names():
    """So that one set of queries fits both ways."""
    for metric in CATALOGUE.values():
        name = family_name(metric.name, metric.unit, metric.metric_type)[0]
        scraped = f"{name}_total" if metric.metric_type is MetricType.COUNTER else name
        assert name_by_otlp(metric.name, metric.unit, metric.metric_type) == scraped


def test_every_metric_of_the_catalogue_is_on_a_dashboard():
    used = {name for _, _, expr in panel_queries() for name in metric_names(expr)}
    for metric in CATALOGUE.values():
        name = family_name(metric.name, metric.unit, metric.metric_type)[0]
        assert any(series.startswith(name) for series in used), metric.name


@sizes.each(
    ("text", "expected"),
    [
        ("latency /checkout/ 300ms 99", "(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.3, 0.5,"),
        ("latency 99", "expected"), ("availability", "expected"), ("", "expected"), ("speed 99", "expected"),
        ("availability 100", "below 100"), ("availability 0", "above 0"), ("availability x", "x\" is not valid"),
        ("latency 5 99", "a time such as"), ("latency checkout 1s 99", "a route such as"), ("latency nan 99", "a time"),
        ("availability /a\udcff/ 99", "a route such as"),
    ],
)  # fmt: skip
def test_an_objective_that_cannot_be_alerted_on_is_refused_with_what_fits(text, expected):
    with pytest.raises(slo.SloError, match=re.escape(expected)):
        slo.parse_slo(text, {})


def test_an_objective_follows_the_projects_own_buckets():
    found = slo.parse_slo("latency /x/ 300ms 99", {"http.server.request.duration": (0.1, 0.3, 1.0)})
    assert (found.kind, found.route, found.threshold_s, found.objective) == ("latency", "/x/", 0.3, 0.99)
    with pytest.raises(slo.SloError, match=r"bounds are 0\.1, 0\.3, 1\b"):
        slo.parse_slo("latency 0.5s 99", {"http.server.request.duration": (0.1, 0.3, 1.0)})


def need(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        services.missing(f"{program} is not installed. Run: apt-get install prometheus")
    return str(path)


@pytest.mark.debian
def test_prometheus_accepts_the_rules(tmp_path):
    promtool = need("promtool")
    path = tmp_path / "rules.yml"
    path.write_text(yaml.dump(build_rules()))
    done = subprocess.run([promtool, "check", "rules", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


ODD_OBJECTIVES = (
    ("availability /a\"b\\c/ 99",), ("availability /café/\U0001f600/ 99",), ("availability /a/{{x}}/ 99",),
    ("availability /a/{{ 99",), ("availability 99", "availability 99"), ("availability 99", "availability 99.9"),
    (r"availability /^x/(?P<a>\d{2}|[^/]+)$ 99",), ("latency /\u2028 \u200f\x7f/ 1s 99",),
    ("availability /%s/%d/$1/ 99",), ("availability 99.99999999999",), ("availability 0.0000001",),
    ("availability /\x01\x1b\x85/ 99",), ("availability /'#:- / 99",), ("availability /my page/ 99",),
)  # fmt: skip


@pytest.mark.debian
def test_rules_of_odd_routes_and_objectives_are_accepted(tmp_path):
    """Quotes, templates, characters that YAML or PromQL write otherwise than JSON, and what is named twice."""
    promtool = need("promtool")
    for number, texts in enumerate(ODD_OBJECTIVES):
        built = rules.build_rules([slo.parse_slo(text, {}) for text in texts])
        written = yaml.dump(built)
        assert _read_yaml(written) == built, texts
        (tmp_path / f"{number}.yml").write_text(written, encoding="utf-8")
    done = subprocess.run(
        [promtool, "check", "rules", *sorted(map(str, tmp_path.iterdir()))],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "duplicate" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("names", "is_warned"), [("django_prometheus", True), ("both", False), ("otel", False)], ids=str
)
def test_names_that_leave_the_queries_without_data_are_named(names, is_warned, tmp_path):
    """Beside the result, which stays one document."""
    for command in ("dashboards", "rules", "collector"):
        out, beside = io.StringIO(), io.StringIO()
        with override_settings(OTEL={"METRICS": {"NAMES": names}}):
            call_command("otel", command, stdout=out, stderr=beside)
        assert _read_yaml(out.getvalue())
        assert ('Set it to "both"' in beside.getvalue()) is (is_warned and command != "collector")


def test_an_objective_names_a_route_with_blanks():
    assert slo.parse_slo("latency /my page/ 1s 99", {}).route == "/my page/"
    assert slo.parse_slo("availability  /my  page/  99.9 ", {}).route == "/my  page/"


#: What the demo shop's /metrics said while each fault was caused: `python -m tests.recorded.record`.
RECORDED_FAULTS = json.loads(record.OUT.read_text())
#: So that the faults of one alert do not burn another's budget.
RECORDED_SLOS = ("availability 95", "availability /unavailable/ 99", "latency 2.5s 99")


def test_each_alert_has_a_fault_that_was_recorded():
    """And the rules read nothing but what was recorded at some time."""
    names = {rule["alert"] for rule in all_rules(build_rules()) if "alert" in rule}
    assert record.CASES.keys() == RECORDED_FAULTS.keys()
    assert names == {record.alert_of(name) for name in record.CASES} - {""}
    series = {re.split("[{ ]", row["series"])[0] for rows in RECORDED_FAULTS.values() for row in rows}
    read = {name for rule in all_rules(build_rules()) for name in metric_names(rule["expr"])}
    assert read - RECORDED <= series


@pytest.mark.debian
@pytest.mark.parametrize("fault", sizes.few(RECORDED_FAULTS, 3), ids=lambda fault: fault or "healthy")
def test_each_alert_fires_on_its_fault_and_on_no_other(tmp_path, fault):
    """promtool evaluates the rules on the demo's numbers, minute by minute: a healthy shop, and one with each fault."""
    promtool = need("promtool")
    built = rules.build_rules([slo.parse_slo(text, {}) for text in RECORDED_SLOS])
    (tmp_path / "rules.yml").write_text(yaml.dump(built))
    fired = fired_alerts(
        promtool, tmp_path, RECORDED_FAULTS[fault], sorted({*map(record.alert_of, record.CASES)} - {""})
    )
    alert = record.alert_of(fault)
    assert {alert} - {""} <= fired <= {alert, *record.CASES[fault].also}


def fired_alerts(promtool: str, folder: Path, rows: list[dict], names: list[str]) -> set[str]:
    """The alerts that fire at any minute; promtool reports each one that was not expected."""
    series = [{**row, "series": as_scraped(row["series"])} for row in rows]
    test = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "alert_rule_test": [
                    {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": []}
                    for name in names
                    for minute in range(record.MINUTES)
                ],
            }
        ],
    }
    # JSON is YAML.
    (folder / "test.yml").write_text(json.dumps(test))
    done = subprocess.run(
        [promtool, "test", "rules", "test.yml"], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    output = done.stdout + done.stderr
    fired = set(re.findall(r"alertname: (\w+), time", output))
    assert done.returncode == 0 or fired, output
    return fired


def as_scraped(series: str) -> str:
    """With the labels that Prometheus adds."""
    name, _, labels = series.partition("{")
    whole = ",".join(filter(None, [labels.removesuffix("}"), TARGET]))
    return f"{name}{{{whole}}}"


TARGET = 'job="shop",instance="shop:8000"'


# --- Dashboards. ---


@sizes.each("board", more_boards.ALL_DASHBOARDS)
def test_a_dashboard_is_grafanas_model(board):
    """Grafana's own SDK reads it, and keeps every panel and variable."""
    sdk = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="needs grafana-foundation-sdk")
    from grafana_foundation_sdk.cog import plugins

    plugins.register_default_plugins()
    model = dashboards.build_dashboard(board, trace_url="https://jaeger.example/trace/{trace_id}")
    read = sdk.Dashboard.from_json(json.loads(json.dumps(model)))
    assert [panel.title for panel in read.panels] == [panel.title for panel in board.panels]
    assert [panel.type_val for panel in read.panels] == [panel.kind for panel in board.panels]
    assert [variable.name for variable in read.templating.list_val] == [
        "datasource",
        "environment",
        "job",
        "instance",
        "route",
    ]
    assert read.links[-1].url == "https://jaeger.example/trace/"


@sizes.each("board", more_boards.ALL_DASHBOARDS)
def test_panels_fill_the_grid_without_overlap(board):
    cells = set()
    for panel in dashboards.build_dashboard(board)["panels"]:
        grid = panel["gridPos"]
        taken = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not taken & cells and max(x for x, _ in taken) < 24, panel["title"]
        cells |= taken


def test_dashboards_have_ids_of_their_own():
    built = [dashboards.build_dashboard(board) for board in more_boards.ALL_DASHBOARDS]
    assert len({model["uid"] for model in built}) == len(built)
    assert built == [dashboards.build_dashboard(board) for board in more_boards.ALL_DASHBOARDS]


# --- The Collector. ---


@sizes.each("has_tail_sampling", [False, True])
@sizes.each("has_span_metrics", [False, True])
@sizes.each("names", [["jaeger", "prometheus"], ["datadog"], ["grafana-cloud"], list(collector.BACKENDS)])
def test_every_part_of_a_pipeline_is_defined_and_used(names, has_tail_sampling, has_span_metrics):
    config = collector.build_collector(names, has_tail_sampling=has_tail_sampling, has_span_metrics=has_span_metrics)
    pipelines = config["service"]["pipelines"]
    connectors = set(config.get("connectors", {}))
    for part in ("receivers", "processors", "exporters"):
        used = {name for pipeline in pipelines.values() for name in pipeline[part]} - connectors
        assert used == set(config[part]), part
    assert set(config["service"].get("extensions", [])) == set(config.get("extensions", {}))
    for exporter in config["exporters"].values():
        assert exporter.get("auth", {}).get("authenticator") in {None, *config.get("extensions", {})}
    assert pyyaml.safe_load(yaml.dump(config)) == config
    # Keys come from the environment.
    assert not re.search(r"(?:key|password|token): (?!\$\{env:)", yaml.dump(config).replace('"', ""))


@pytest.mark.parametrize(
    ("names", "has_span_metrics"), [([], False), (["jager"], False), (["jaeger"], True), (["prometheus"], True)]
)
def test_backends_that_do_not_fit_are_refused(names, has_span_metrics):
    with pytest.raises(ValueError, match=r"expected|need"):
        collector.build_collector(names, has_span_metrics=has_span_metrics)


# --- The commands. ---


def test_the_commands_print_or_write(tmp_path, capsys):
    call_command("otel", "dashboards")
    assert set(json.loads(capsys.readouterr().out)) == {board.topic for board in more_boards.ALL_DASHBOARDS}
    call_command("otel", "dashboards", "--out", str(tmp_path / "new" / "folder"))
    assert {path.stem for path in (tmp_path / "new" / "folder").glob("*.json")} == {
        b.topic for b in more_boards.ALL_DASHBOARDS
    }
    call_command("otel", "rules", "--slo", "availability 99.9", "--out", str(tmp_path / "rules.yml"))
    assert pyyaml.safe_load((tmp_path / "rules.yml").read_text())["groups"][2]["name"] == "django_otel.slo"
    capsys.readouterr()
    call_command("otel", "collector", "--to", "tempo")
    assert list(pyyaml.safe_load(capsys.readouterr().out)["exporters"]) == ["otlp_http/tempo"]


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("rules", "--slo", "latency /x/ 300ms 99"), 2, "not a bucket bound"),
        (("rules", "--slo", "\x1b[31m"), 2, "\\x1b[31m"),
        (("collector", "--span-metrics"), 2, "Span metrics need"),
        (("dashboards", "--out", "/proc/nowhere"), 1, "Cannot write"),
    ],
)
def test_a_fault_has_an_exit_code_and_a_reason(arguments, code, expected, capsys):
    with pytest.raises(SystemExit) as stopped:
        call_command("otel", *arguments)
    assert stopped.value.code == code
    assert expected in capsys.readouterr().out


# --- The catalogue. ---


@sizes.each("name", list(CATALOGUE))
def test_each_metric_has_queries_over_itself(name):
    found = examples.find_examples(CATALOGUE[name])
    assert found
    assert len({example.title for example in found}) == len(found)
    sample = examples.sample_name(CATALOGUE[name])
    assert any(series.startswith(sample) for series in metric_names(found[-1].query))


def test_the_catalogue_prints_the_queries(capsys):
    call_command("otel", "catalogue", "--format", "json")
    printed = {metric["name"]: metric for metric in json.loads(capsys.readouterr().out)}
    assert list(printed) == list(CATALOGUE)
    queries = printed["django.cache.operations"]["queries"]
    assert queries[0]["title"] == "Hit share, by cache"
    call_command("otel", "catalogue")
    assert queries[0]["query"] in capsys.readouterr().out
