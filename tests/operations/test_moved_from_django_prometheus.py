"""The names of django-prometheus: one project served twice, by django-prometheus and by us, gives the same numbers.

The scenarios are those of django-prometheus' end-to-end tests, asked of four gunicorn workers.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from django_otel.metrics.django_prometheus import DERIVED, MEASURED
from tests import services

pytest.importorskip("django_prometheus", reason="needs django-prometheus")

#: Samples by name and sorted labels.
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
WORKERS = 4
REQUESTS: list[tuple[str, str, bytes | None, dict[str, str]]] = [
    *[("GET", "/", None, {})] * 6,
    *[("POST", "/", b"test=data", {"Content-Type": "application/x-www-form-urlencoded"})] * 2,
    *[("GET", "/help", None, {"X-Requested-With": "XMLHttpRequest"})] * 3,
    ("HEAD", "/help", None, {}),
    ("BREW", "/help", None, {}),
    *[("GET", "/objection", None, {})] * 4,
    *[("GET", "/missing", None, {})] * 2,
    ("GET", "/forbidden", None, {}),
    *[("GET", "/stream", None, {})] * 3,
    *[("GET", "/shop/lawns", None, {})] * 5,
    *[("GET", "/bad-sql", None, {})] * 2,
    *[("GET", "/cached", None, {})] * 4,
    *[("GET", "/no-such-page", None, {})] * 2,
]


@contextlib.contextmanager
def serve(folder: Path, by: str, **env: str) -> Iterator[services.Server]:
    """The project behind four workers, measured by the library `by`."""
    folder.mkdir()
    environment = services.server_env(
        DJANGO_SETTINGS_MODULE="tests.moved.settings", MOVED_BY=by, MOVED_SQLITE=str(folder / "db"), **env
    )
    alone = {name: value for name, value in environment.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    services.run_django(alone, "migrate", "--run-syncdb", "-v", "0")
    port = services.free_port()
    command = [
        sys.executable, "-m", "gunicorn", "tests.moved.wsgi:application", "--bind", f"127.0.0.1:{port}",
        "--workers", str(WORKERS),
    ]  # fmt: skip
    with services.running(command, environment, folder / "log") as process:
        services.wait_until(lambda: services.is_listening(port) or process.poll() is not None, 30, "gunicorn")
        yield services.Server(f"http://127.0.0.1:{port}", process, folder / "log")


def send(server: services.Server) -> None:
    for method, path, body, headers in REQUESTS:
        server.request(method, path, body, headers)


def flatten(families) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("django_") and not sample.name.endswith("_created")
    }


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Iterator[tuple[Samples, Samples]]:
    """(theirs, ours) after the same requests to both."""
    folder = tmp_path_factory.mktemp("moved")
    shared = folder / "metrics"
    shared.mkdir()
    with serve(folder / "theirs", "django_prometheus", PROMETHEUS_MULTIPROC_DIR=str(shared)) as server:
        send(server)
        # Read from its files: a scrape would count itself.
        theirs = flatten(MultiProcessCollector(CollectorRegistry(), path=str(shared)).collect())
    with serve(folder / "ours", "django_otel") as server:
        send(server)
        ours = flatten(text_string_to_metric_families(server.get("/metrics")[2].decode()))
    yield theirs, ours


#: Counters of django-prometheus that count one thing twice, or that a page of ours has no use for.
NOT_MEASURED = {
    "django_http_requests_unknown_latency_including_middlewares_total",
    "django_http_requests_unknown_latency_total",
}


def is_time(name: str) -> bool:
    return name.endswith("_sum") and "seconds" in name


def test_the_same_requests_give_the_same_numbers(pages):
    theirs, ours = pages
    different = {}
    for (name, labels), value in theirs.items():
        if name in NOT_MEASURED or "latency" in name or "query_duration" in name or not value:
            continue
        if ours.get((name, labels)) != value:
            different[name, labels] = (value, ours.get((name, labels)))
    assert different == {}
    # And nothing else under the names that both have.
    names = {name for name, _ in theirs}
    extra = {key: value for key, value in ours.items() if key[0] in names and value and not theirs.get(key)}
    assert {key for key in extra if "_bucket" not in key[0] and "latency" not in key[0]} == set()


def test_latencies_have_the_same_buckets_and_failed_requests_count_once(pages):
    theirs, ours = pages
    raised = {"objection": 4, "missing": 2, "forbidden": 1, "bad-sql": 2}
    name = "django_http_requests_latency_seconds_by_view_method"
    seen = 0
    for (sample, labels), value in theirs.items():
        if sample != f"{name}_count":
            continue
        known = dict(labels)
        # Its label has the method as the client spells it.
        known["method"] = known["method"] if known["method"] != "BREW" else "<invalid method>"
        found = ours[sample, tuple(sorted(known.items()))]
        assert found == value - raised.get(known["view"], 0), labels
        seen += 1
    assert seen >= 9
    for family in (
        name,
        "django_http_requests_latency_including_middlewares_seconds",
        "django_db_query_duration_seconds",
    ):
        bounds = [
            {dict(labels)["le"] for sample, labels in page if sample == f"{family}_bucket"} for page in (theirs, ours)
        ]
        assert bounds[0] == bounds[1], family
    count = "django_http_requests_latency_including_middlewares_seconds_count"
    assert ours[count, ()] == theirs[count, ()] == len(REQUESTS)
    queries = ("django_db_query_duration_seconds_count", (("alias", "default"), ("vendor", "sqlite")))
    assert ours[queries] == theirs[queries]


#: What the panels of "Django Overview", "Django Requests Overview", "Django Requests by View" and "Django Model
#: Overview" (grafana.com, of the django-mixin) ask: metric, its labels matched, and the labels summed by.
_ANY_VIEW = 'view!~"<unnamed view>|health_check:health_check_home|prometheus-django-metrics"'
_STATUS = "django_http_responses_total_by_status_view_method_total"
_BY_VIEW = "django_http_requests_total_by_view_transport_method_total"
PUBLISHED = [
    ("django_db_new_connections_total", "", "namespace, job, vendor"),
    ("django_db_execute_total", "", "namespace, job"),
    ("django_db_errors_total", "", "type"),
    ("django_cache_get_hits_total", "", "namespace, job, backend"),
    ("django_cache_get_misses_total", "", "namespace, job, backend"),
    ("django_http_exceptions_total_by_view_total", _ANY_VIEW, "namespace, job, view"),
    ("django_http_exceptions_total_by_type_total", "", "namespace, job, type"),
    (_BY_VIEW, _ANY_VIEW, "view"),
    (_BY_VIEW, f'{_ANY_VIEW}, method=~"GET|POST"', "job"),
    (_BY_VIEW, _ANY_VIEW, "method"),
    (_STATUS, f'{_ANY_VIEW}, status=~"2.*"', "namespace, job, view"),
    (_STATUS, f'{_ANY_VIEW}, status=~"4.*"', "namespace, job, view"),
    (_STATUS, f'{_ANY_VIEW}, status=~"5.*"', "job"),
    (_STATUS, f'{_ANY_VIEW}, status!~"[4-5].*"', "status"),
    ("django_http_responses_total_by_templatename_total", 'templatename!~".*health_check.*|None"', "templatename"),
    ("django_model_inserts_total", 'model=~".*"', "namespace, job, model"),
    ("django_model_updates_total", 'model=~".*"', "namespace, job, model"),
    ("django_model_deletes_total", "", "model"),
    ("django_http_requests_body_total_bytes_bucket", "", "job, le"),
]
#: Over durations, which differ from run to run: only the series must be the same.
TIMED = [
    ("django_db_query_duration_seconds_bucket", "", "vendor, namespace, job"),
    ("django_http_requests_latency_seconds_by_view_method_bucket", f'{_ANY_VIEW}, method=~"GET|POST"', "job, view"),
]


def ask(page: Samples, folder: Path) -> dict[str, str]:
    """Prometheus' answer to each query, over a page that appeared between two scrapes a minute apart."""
    promtool = shutil.which("promtool")
    if promtool is None:
        services.missing("promtool is not installed. Run: apt-get install prometheus")
    queries = {f"sum by ({by}) (increase({name}{{{match}}}[5m])) > 0": True for name, match, by in PUBLISHED}
    for name, match, by in TIMED:
        queries[f"histogram_quantile(0.95, sum by ({by}, le) (rate({name}{{{match}}}[5m])) > 0)"] = False
    hits, reads = (f"sum by (job) (rate(django_cache_get_{name}[30m]))" for name in ("hits_total", "total"))
    queries[f"{hits} / {reads}"] = True
    series = []
    for (name, labels), value in page.items():
        shown = ", ".join(f"{key}={json.dumps(text)}" for key, text in (*labels, ("job", "shop")))
        series.append({"series": f"{name}{{{shown}}}", "values": f"0 {value:g} {value:g}"})
    test = {
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "promql_expr_test": [
                    {"expr": query, "eval_time": "2m", "exp_samples": [{"labels": "none", "value": -1}]}
                    for query in queries
                ],
            }
        ],
    }
    (folder / "test.yml").write_text(yaml.safe_dump(test))
    done = subprocess.run(
        [promtool, "test", "rules", "test.yml"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    output = done.stdout + done.stderr
    answers = {}
    for query, has_values in queries.items():
        found = re.search(re.escape(f"expr: {json.dumps(query)}") + r".*?got: (.*?)\s*(?=expr:|$)", output, re.DOTALL)
        assert found, (query, output)
        rows = [] if found[1] == "nil" else sorted(re.findall(r"\{[^}]*\} [^\s,]+", found[1]))
        answers[query] = "\n".join(rows if has_values else (row.rpartition(" ")[0] for row in rows))
    return answers


@pytest.mark.debian
def test_the_queries_of_published_dashboards_have_the_same_answers(pages, tmp_path):
    theirs, ours = (ask(page, tmp_path) for page in pages)
    assert all(theirs.values()), [query for query, answer in theirs.items() if not answer]
    assert ours == theirs


def test_ours_that_say_the_same_are_left_out_and_the_others_are_there(pages):
    _, ours = pages
    names = {name for name, _ in ours}
    assert "django_request_queries_count" in names
    assert not any(name.startswith(("django_cache_operations", "django_db_connections")) for name in names)


def test_every_metric_of_django_prometheus_is_measured_or_named_in_the_documentation(pages):
    theirs, _ = pages
    page = Path("docs/moving/django-prometheus.md").read_text()
    for name in sorted({name for name, _ in theirs}):
        base = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        known = {base, base.removesuffix("_total")} & (MEASURED.keys() | DERIVED.keys())
        assert known or f"`{base}`" in page, name
