"""The benchmarks run, check what they claim to check, and the published figures are those of the page."""

from __future__ import annotations

import ast
import gzip
import importlib
import json
import os
import re
import struct
import subprocess
import sys
import urllib.request
import xml.etree.ElementTree as ElementTree
import zlib
from pathlib import Path

import pytest

from benchmarks import callgrind, export, growth, layers, publication, scrape, startup
from benchmarks.peers import checks, environments, provenance, report
from benchmarks.peers.__main__ import Run, parse_options
from benchmarks.peers.catalogue import CASES, PEERS, TRACE_ID, VARIANTS, configurations, traceparents, why_not
from benchmarks.peers.process import Configuration, WorkerError, start_databases
from benchmarks.peers.receiver import Emission, Receiver, count, unpack
from benchmarks.peers.subjects import SUBJECTS
from django_otel.config.parse import parse
from tests import sizes

ROOT = Path(__file__).resolve().parents[2]
JSON_CASE = CASES[0]


@pytest.fixture(scope="module")
def databases(tmp_path_factory):
    """Prepared databases, and this interpreter in the place of the environments that a real run makes."""
    cache = tmp_path_factory.mktemp("benchmarks")
    (cache / "environments").mkdir()
    for name in ("bare", "django-otel", "official"):
        (cache / "environments" / name).symlink_to(sys.prefix)
    with start_databases(cache, with_postgres=False) as found:
        yield cache, found


# --- The peers. ---


@pytest.mark.parametrize(
    "variant", ["all", *(pytest.param(name, marks=pytest.mark.long) for name in ("off", "all+export"))]
)
@pytest.mark.parametrize("peer", ["django-otel", "official"])
def test_a_configuration_emits_what_it_claims_in_every_case(databases, peer, variant):
    """Spans are counted at the exporter or where they arrive, requests and queries in the metrics."""
    cache, found = databases
    with Configuration(PEERS[peer], VARIANTS[variant], cache, found) as configuration:
        for case in CASES:
            if case.needs_postgres:
                continue
            emission = configuration.emission(case.name, 6)
            assert checks.faults(PEERS[peer], VARIANTS[variant], case, 6, emission) == [], case.name


def test_times_are_of_whole_blocks(databases):
    cache, found = databases
    with Configuration(PEERS["bare"], VARIANTS["bare"], cache, found) as configuration:
        few = configuration.ask("time", "json", requests=2)
        many = configuration.ask("time", "json", requests=200)
        assert 0 < few["wall_s"] < many["wall_s"]
        assert many["cpu_s"] > 0


def test_a_failing_case_says_why(databases):
    """An answer other than the case expects is a fault, not a fast request."""
    cache, found = databases
    with Configuration(PEERS["bare"], VARIANTS["bare"], cache, found) as configuration:
        with pytest.raises(WorkerError, match="OperationalError|ConnectionDoesNotExist|answered"):
            configuration.ask("time", "postgres-query", requests=1)
        assert configuration.ask("time", "json", requests=1)["wall_s"] > 0


@pytest.mark.long
@pytest.mark.skipif(bool(callgrind.why_not()), reason=callgrind.why_not() or "-")
def test_instructions_repeat_to_one_percent(databases):
    """Two processes count the same request alike, which is what makes the figures worth comparing."""
    cache, found = databases
    figures = []
    for _ in range(2):
        with Configuration(PEERS["bare"], VARIANTS["bare"], cache, found, counts_instructions=True) as configuration:
            configuration.count("json", 2)
            figures.append((configuration.count("json", 7)[0] - configuration.count("json", 2)[0]) / 5)
    assert figures[0] == pytest.approx(figures[1], rel=0.01)
    assert 100_000 < figures[0] < 5_000_000


def test_every_peer_can_be_switched_on_and_installed():
    assert set(PEERS) == set(SUBJECTS)
    # The consoles of others are no peers of a request without one: `benchmarks.consoles` compares with them.
    # Neither is what measures tasks: `benchmarks.tasks`.
    consoles = {"django-orbit", "django-silk", "django-debug-toolbar"}
    assert set(environments.REQUIREMENTS) - set(PEERS) == {*consoles, "tasks"}


def test_what_a_peer_cannot_do_is_a_case_that_exists():
    assert {name for peer in PEERS.values() for name, _ in peer.cannot} <= {case.name for case in CASES}


def test_bare_django_is_always_there_to_compare_with():
    assert next(iter(configurations(["official"], ["all"])))[0].name == "bare"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"requests": 19}, "recorded 19 of 20 requests"),
        ({"queries": 19}, "recorded 19 queries instead of 20"),
        ({"observed": 0}, "had a span in 0 of 20 requests"),
        ({"requests_counted": 0}, "counted 0 of 20 requests"),
        ({"queries_counted": 40}, "counted 40 of 20 queries"),
    ],
)
def test_a_configuration_that_emits_too_little_or_too_much_is_found_out(changes, fault):
    case = next(case for case in CASES if case.name == "query")
    right = {"requests": 20, "queries": 20, "trace_ids": [], "observed": 20, "requests_counted": 20}
    right["queries_counted"] = 20
    peer, variant = PEERS["django-otel"], VARIANTS["all"]
    assert checks.faults(peer, variant, case, 20, right) == []
    found = checks.faults(peer, variant, case, 20, {**right, **changes})
    assert any(fault in text for text in found)


def test_an_inbound_trace_id_that_is_not_taken_over_is_found_out():
    case = next(case for case in CASES if case.has_traceparent)
    found = {"requests": 20, "queries": 0, "observed": 20, "requests_counted": 20, "queries_counted": 0}
    peer, variant = PEERS["django-otel"], VARIANTS["all"]
    assert checks.faults(peer, variant, case, 20, {**found, "trace_ids": [TRACE_ID]}) == []
    assert "inbound trace id" in checks.faults(peer, variant, case, 20, {**found, "trace_ids": ["1" * 32]})[0]


@pytest.mark.parametrize(("variant", "sampled"), [("off", 0), ("10", 1), ("all", 10)])
def test_inbound_headers_are_sampled_in_the_variants_share(variant, sampled):
    assert sum(text.endswith("-01") for text in traceparents(VARIANTS[variant], 10)) == sampled


# --- Layers. ---


@pytest.mark.parametrize("layer", layers.LAYERS, ids=lambda layer: layer.name)
def test_the_settings_of_each_layer_differ_and_are_valid(layer):
    off, on = (parse(given, {}, "", lambda name: True).flat() for given in (layer.off, layer.on))
    assert off != on
    assert set(layer.peers) <= set(layers.SUBJECTS)
    assert bool(layer.path) != (layer.name in layers._LOOPS)


def test_a_peer_without_the_layer_has_no_cell():
    by_name = {layer.name: layer for layer in layers.LAYERS}
    assert layers.why_not(by_name["command"], "sentry") == "has none"
    assert layers.why_not(by_name["command"], "on") == ""


@pytest.mark.long
@pytest.mark.skipif(bool(callgrind.why_not()), reason=callgrind.why_not() or "-")
@pytest.mark.parametrize("layer", layers.LAYERS, ids=lambda layer: layer.name)
def test_every_layer_is_counted(layer):
    assert layers.count(layer, "on", layers.QUICK_REQUESTS, layers.QUICK_WARM_UP) > 0


@pytest.mark.long
@pytest.mark.parametrize("layer", layers.LAYERS, ids=lambda layer: layer.name)
def test_what_is_counted_of_every_layer_and_peer_runs(layer):
    """All cells, without callgrind."""
    for subject in layers.SUBJECTS:
        if not layers.why_not(layer, subject):
            arguments, variables = layers.process_of(layer, subject, layers.QUICK_REQUESTS, layers.QUICK_WARM_UP)
            command, environ = [sys.executable, *arguments], {**os.environ, **variables}
            done = subprocess.run(command, env=environ, capture_output=True, text=True)
            assert done.returncode == 0, f"{subject}: {done.stderr}"


@pytest.fixture
def published(monkeypatch, tmp_path):
    """A page of its own with a place for the layers."""
    page, results = tmp_path / "performance.md", tmp_path / "results.json"
    page.write_text("<!-- layers -->\nold\n<!-- end of layers -->\nkept\n")
    monkeypatch.setattr(publication, "PAGE", page)
    monkeypatch.setattr(publication, "RESULTS", results)
    return page, results


@pytest.mark.long
@pytest.mark.process
@pytest.mark.skipif(bool(callgrind.why_not()), reason=callgrind.why_not() or "-")
def test_the_quick_variant_counts_a_layer_on_and_off(monkeypatch, published):
    """In processes of their own under callgrind; a layer that is on costs more than one that is off."""
    arguments = ["--quick", "--publish", "--layer", "command", "--subject", "off", "--subject", "on"]
    monkeypatch.setattr(sys, "argv", ["layers", *arguments])
    assert layers.main() == 0
    page, results = published
    found = json.loads(results.read_text())["layers"]["results"]["command"]
    assert found["on"] > found["off"]
    assert re.search(r"^\| command \| -?[\d,]+ \| [\d,]+ \| - \|", page.read_text(), re.MULTILINE)


def test_layers_that_are_not_counted_keep_their_published_figures(monkeypatch, published):
    page, results = published
    old = {"template": {"off": 1.0, "on": 1234.5}, "gone": {"on": 1.0}}
    results.write_text(json.dumps({"layers": {"results": old}}))
    monkeypatch.setattr(callgrind, "why_not", lambda: "")
    monkeypatch.setattr(layers, "count", lambda layer, subject, requests, warm_up: float(len(subject)))
    monkeypatch.setattr(sys, "argv", ["layers", "--layer", "command", "--publish"])
    assert layers.main() == 0
    text = page.read_text()
    assert "| template | 1 | 1,234 | - | - | - |" in text
    assert "| command | -1 | -2 | - | - | - |" in text
    assert "gone" not in text
    assert text.endswith("kept\n")


# --- What is kept of an earlier run. ---


def _finished_run(tmp_path, monkeypatch, versions):
    """A run that has counted every configuration of these two, whose environments hold `versions`."""
    monkeypatch.setattr(environments, "build", lambda name, cache: Path(name))
    monkeypatch.setattr(environments, "versions", lambda python: versions[python.name])
    run = Run(parse_options(["--peers", "django-otel", "official", "--output", str(tmp_path)]))
    run.prepare()
    for peer, variant in run.wanted:
        for kind in ("emission", "instructions", "wall"):
            run.keep(kind, f"{peer.name}/{variant.name}", "json", {"faults": []})
    return run


def _resumed(tmp_path, *arguments):
    run = Run(parse_options(["--peers", "django-otel", "official", "--output", str(tmp_path), "--resume", *arguments]))
    run.prepare()
    return {name.partition("/")[0] for name in run.results["instructions"]}


@pytest.fixture
def versions():
    return {name: {"django": "5.2.1", name: "1.0"} for name in ("bare", "django-otel", "official")}


@pytest.mark.heavy
def test_what_was_counted_is_kept_while_nothing_changed(tmp_path, monkeypatch, versions):
    _finished_run(tmp_path, monkeypatch, versions)
    assert _resumed(tmp_path) == {"bare", "django-otel", "official"}
    assert _resumed(tmp_path, "--again", "official") == {"bare", "django-otel"}


@pytest.mark.heavy
def test_a_peer_in_another_version_is_counted_anew(tmp_path, monkeypatch, versions):
    _finished_run(tmp_path, monkeypatch, versions)
    versions["official"]["official"] = "1.1"
    assert _resumed(tmp_path) == {"bare", "django-otel"}


@pytest.mark.heavy
def test_stale_figures_of_a_peer_that_is_not_asked_for_are_not_shown(tmp_path, monkeypatch, versions):
    _finished_run(tmp_path, monkeypatch, versions)
    monkeypatch.setattr(provenance, "_valgrind", lambda: "valgrind-0.1")
    run = Run(parse_options(["--peers", "django-otel", "--output", str(tmp_path), "--resume"]))
    run.prepare()
    assert run.results["instructions"] == run.results["emission"] == run.results["wall"] == {}


def test_our_own_code_concerns_our_own_figures_alone(tmp_path, monkeypatch):
    """And a comment concerns none."""
    (tmp_path / "django_otel").mkdir()
    code = tmp_path / "django_otel" / "spans.py"
    code.write_text("x = 1")
    monkeypatch.setattr(publication, "ROOT", tmp_path)

    def now(peer):
        return provenance.provenance(PEERS[peer], VARIANTS["off"], {})

    before = {peer: now(peer) for peer in ("django-otel", "official")}
    code.write_text("x = 1  # one\n")
    assert provenance.changes(before["django-otel"], now("django-otel")) == ""
    code.write_text("x = 2")
    assert provenance.changes(before["django-otel"], now("django-otel")) == "the code"
    assert provenance.changes(before["official"], now("official")) == ""


def test_how_a_peer_is_switched_on_concerns_that_peer_alone():
    assert "sentry_sdk" in provenance._subject_code(PEERS["sentry"])
    assert "sentry_sdk" not in provenance._subject_code(PEERS["elastic"])
    assert "PrometheusMetricReader" not in provenance._subject_code(PEERS["bare"])
    # What is built on another's class depends on it, too.
    assert "_registry_sum" in provenance._subject_code(PEERS["official"])


@pytest.mark.parametrize("name", provenance._HARNESS)
def test_the_harness_concerns_every_figure(monkeypatch, name):
    before = provenance.provenance(PEERS["official"], VARIANTS["off"], {})
    code = provenance._code
    monkeypatch.setattr(provenance, "_code", lambda path: code(path) + "x" * path.match(Path(name).name))
    assert provenance.changes(before, provenance.provenance(PEERS["official"], VARIANTS["off"], {})) == "the harness"


# --- What arrives. ---


def test_the_receiver_counts_sentry_elastic_and_datadog():
    """One recorded request with one query in each protocol, and one that is not recorded where they are sent too."""
    transaction = {"spans": [{"op": "db"}, {"op": "http"}], "contexts": {"trace": {"trace_id": "a" * 32}}}
    payload = json.dumps(transaction).encode()
    envelope = b'{}\n{"type": "session"}\n{}\n' + json.dumps({"type": "transaction", "length": len(payload)}).encode()
    elastic = [
        {"metadata": {}},
        {"transaction": {"trace_id": "b" * 32, "sampled": True}},
        {"transaction": {"trace_id": "c" * 32, "sampled": False}},
        {"span": {"type": "db.sqlite.sql", "composite": {"count": 3}}},
    ]
    emission = Emission()
    count("/api/1/envelope/", envelope + b"\n" + payload + b"\n", emission)
    count("/intake/v2/events", b"\n".join(json.dumps(line).encode() for line in elastic), emission)
    # [[{"type": "sql", "trace_id": 1, "metrics": {"_sampling_priority_v1": 1}}], [{..: -1}]]
    key = b"\xb5_sampling_priority_v1"
    span = b"\x83\xa4type\xa3sql\xa8trace_id\x01\xa7metrics\x81" + key
    count("/v0.4/traces", b"\x92\x91" + span + b"\x01\x91" + span + b"\xff", emission)
    assert (emission.requests, emission.queries) == (3, 5)
    assert emission.trace_ids == {"a" * 32, "b" * 32, f"{1:032x}"}


@pytest.mark.parametrize("encoding", ["", "gzip", "deflate"])
def test_the_receiver_counts_otlp_over_http(encoding):
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

    spans = [
        Span(trace_id=bytes(range(16)), span_id=bytes(8), kind=kind, start_time_unix_nano=1, name="x" * 300)
        for kind in (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_CLIENT)
    ]
    body = ExportTraceServiceRequest(resource_spans=[ResourceSpans(scope_spans=[ScopeSpans(spans=spans)])])
    data = body.SerializeToString()
    data = {"": data, "gzip": gzip.compress(data), "deflate": zlib.compress(data)}[encoding]
    receiver = Receiver()
    try:
        request = urllib.request.Request(f"{receiver.url}/v1/traces", data)
        if encoding:
            request.add_header("Content-Encoding", encoding)
        receiver.is_counting = True
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert answer.status == 200
        assert receiver.faults == []
        assert (receiver.emission.requests, receiver.emission.queries) == (1, 2)
        assert receiver.emission.trace_ids == {bytes(range(16)).hex()}
    finally:
        receiver.close()


def test_messagepack_of_every_kind_is_read():
    numbers = b"\xcb" + struct.pack(">d", 1.5) + b"\xd3" + struct.pack(">q", -2)
    data = b"\x95" + numbers + b"\xd9\x02hi\xc3\xde\x00\x01\xa1a\xc0"
    assert unpack(data, 0) == ([1.5, -2, "hi", True, {"a": None}], len(data))


# --- The scrape, export and growth. ---


@pytest.mark.long
@pytest.mark.process
def test_export_compares_and_loads_both_routes():
    """`compare` refuses figures of spans that have not arrived; under a load ours counts what it loses."""
    times = export.compare(1, 64)
    assert list(times) == list(export.KINDS)
    assert all(of["ours_us"] > 0 and of["stock_us"] > 0 and of["ratio"] > 0 for of in times.values())
    loads = export.load(400, 0.5, 2)
    assert loads["ours"]["arrived"] + loads["ours"]["lost"] == loads["ours"]["made"] > 100
    text = export.cost_text(times, {kind: {"ours_ki": 60.0, "stock_ki": 330.0, "ratio": 5.5} for kind in export.KINDS})
    assert text.count(export.KINDS[0]) == 2
    assert "1/5.5" in text
    assert "| stock |" in export.load_text(400, loads)


@pytest.mark.long
@pytest.mark.process
@pytest.mark.skipif(bool(callgrind.why_not()), reason=callgrind.why_not() or "-")
def test_instructions_of_a_page_are_counted():
    assert 0.1 < scrape.count_mi("django_otel", 20, 2) < scrape.count_mi("prometheus_client", 20, 1)


@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize(("names", "processes"), [(scrape.ONE_PROCESS, 1), (scrape.SEVERAL_PROCESSES, 2)])
def test_every_contender_of_the_scrape_shows_every_measurement(names, processes):
    """`measure` reads each page and refuses one that lacks any."""
    found = scrape.measure(names, 20, processes, 1)
    assert list(found) == list(names)
    assert all(figures["ms"] > 0 and figures["peak_mb"] > 0 for figures in found.values())
    text = scrape.text_of([{"label_sets": 1000, "processes": processes, "contenders": found}])
    assert "1 000 label sets" in text
    assert "| **django_otel** |" in text


@pytest.mark.long
@pytest.mark.process
def test_growth_serves_in_threads_and_compares_with_bare_django(monkeypatch):
    monkeypatch.setattr(growth, "_BLOCK", 24)
    found = growth.thread_times((1, 2), 1)
    assert all(figures["bare_us"] > 0 and figures["unsampled_ratio"] > 0 for figures in found.values())
    assert "| 2 |" in growth.text_of({"threads": {str(count): figures for count, figures in found.items()}})


@pytest.mark.long
@pytest.mark.process
def test_growth_publishes_its_table(monkeypatch, tmp_path):
    page, results = tmp_path / "performance.md", tmp_path / "results.json"
    page.write_text("<!-- growth -->\nold\n<!-- end of growth -->\nkept\n")
    monkeypatch.setattr(publication, "PAGE", page)
    monkeypatch.setattr(publication, "RESULTS", results)
    monkeypatch.setattr(growth, "_BLOCK", 32)
    arguments = ["--only", "threads", "--quick", "--rounds", "1", "--publish"]
    monkeypatch.setattr(sys, "argv", ["growth", *arguments])
    assert growth.main() == 0
    text = page.read_text()
    assert "| 1 |" in text
    assert "| 16 |" in text
    assert "old" not in text
    assert text.endswith("kept\n")
    assert set(json.loads(results.read_text())["growth"]["threads"]) == {"1", "16"}


def test_growth_asks_for_every_route_once():
    paths = growth._paths(1000)
    assert len(set(paths)) == 1000
    assert paths != sorted(paths)


def test_growth_shows_how_flat_a_row_is():
    text = growth.text_of({"series": {"unsampled": {"10": 20.0, "10000": 22.0}}})
    assert "10: 20.0; 10000: 22.0 | 1.10 |" in text


# --- The start. ---


@pytest.mark.long
@pytest.mark.process
def test_every_contender_starts_and_answers():
    """A process each; the first request must be answered by the view."""
    found = startup.compare(1, counts=False)
    for moment in startup.MOMENTS:
        assert list(found[moment]) == list(startup.CONTENDERS)
        for figures in found[moment].values():
            assert figures["cpu_ms"] > 0
            assert figures["mib"] > 0
        assert found[moment][startup.OFFICIAL]["share_mib"] == 1.0
    text = startup.text_of(found)
    assert text.count("| **django_otel** |") == 2
    assert "million instructions" not in text


def test_shares_of_a_start_are_taken_round_by_round():
    """Medians of what is added; a noisy round disturbs both sides of its own share alone."""
    rounds = [
        {startup.BARE: {"ms": bare}, startup.OURS: {"ms": bare + ours}, startup.OFFICIAL: {"ms": bare + official}}
        for bare, ours, official in ((100, 20, 40), (100, 30, 50), (400, 90, 100))
    ]
    found = startup.summarise(rounds)
    assert found[startup.BARE] == {"ms": 100}
    assert found[startup.OURS] == {"ms": 30, "share_ms": 0.6}
    assert found[startup.OFFICIAL] == {"ms": 50, "share_ms": 1.0}


def test_a_start_that_fails_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(startup, "__file__", str(tmp_path / "nothing.py"))
    with pytest.raises(RuntimeError, match="nothing.py"):
        startup.run(startup.BARE, str(tmp_path))


# --- Tables, chart, the page. ---


def _results(shares=(0.0, 1.0)):
    def counts(each):
        return {"5": [[5 * each + 1000, 0], [5 * each + 9000, 0]], "20": [[20 * each + 1000, 20]]}

    return {
        "instructions": {
            "bare/bare": {"json": counts(400_000)},
            "django-otel/off": {"json": counts(430_000)},
            "official/off": {"json": counts(1_000_000)},
        },
        "wall": {
            name: {"json": {"wall_us": [base, base + 1, base + 90], "cpu_us": [base, base + 1, base + 90]}}
            for name, base in (("bare/bare", 70), ("django-otel/off", 80), ("official/off", 170))
        },
        "emission": {},
        "errors": {},
    }


def test_the_tables_show_what_is_added_and_the_ratio():
    instructions, _, times = report.tables(_results()).partition("### Microseconds")
    assert "| nothing sampled | JSON view |" in instructions
    assert "| **django_otel** | 30 (1/20) |" in instructions
    assert "| official instrumentation | 600 |" in instructions
    assert "in thousand instructions: JSON view 400." in instructions
    assert "| **django_otel** | 10 (1/10) |" in times


def test_a_time_less_than_chance_has_no_ratio():
    results = _results()
    results["wall"]["django-otel/off"]["json"]["wall_us"] = [68, 69, 158]
    times = report.tables(results).partition("### Microseconds")[2]
    assert "| **django_otel** | -2 |" in times


def test_the_tables_say_what_each_does_and_in_which_version():
    results = {**_results(), "versions": {"official": {"opentelemetry-instrumentation-django": "0.66b1"}}}
    text = report.tables(results)
    assert "| official instrumentation 0.66b1 | request, query | requests, requests at work | in the metrics |" in text


def test_the_tables_say_where_another_adds_less():
    results = _results()
    text = report.tables(results)
    assert "By instructions, in none of 1 comparisons." in text
    results["instructions"]["django-prometheus/metrics"] = {
        "json": {"5": [[5 * 420_000, 0]], "20": [[20 * 420_000, 0]]}
    }
    text = report.tables(results)
    assert "By instructions, in 1 of 2 comparisons:" in text
    assert "- JSON view, unsampled: 30 thousand, django-prometheus (metrics only) 20" in text


def test_a_share_that_chance_changed_is_set_right():
    """6 of 60 requests should have been recorded and 12 were: what those six cost is taken off."""
    results = _results()
    each_off, each_all = 430_000, 500_000
    results["instructions"]["django-otel/all"] = {"json": {"5": [[5 * each_all, 5]], "20": [[20 * each_all, 20]]}}
    results["instructions"]["django-otel/10"] = {
        "json": {"5": [[5 * each_off, 0]], "60": [[60 * each_off + 12 * (each_all - each_off), 12]]}
    }
    added = report.Figures(results).added_ki("django-otel/10", "json")
    assert added == pytest.approx(30 + 0.1 * 70)


def test_sending_once_is_not_counted_with_a_share_of_the_requests():
    """The short loop recorded nothing and so sent nothing; the long one recorded its share and sent it once."""
    results, send = _results(), 4_000_000
    each_off, each_all = 430_000, 530_000
    instructions = results["instructions"]
    instructions["django-otel/all+export"] = {
        "json": {"5": [[5 * each_all + send, 5]], "20": [[20 * each_all + send, 20]]}
    }
    instructions["django-otel/10+export"] = {
        "json": {"5": [[5 * each_off, 0]], "60": [[60 * each_off + 6 * (each_all - each_off) + send, 6]]}
    }
    added = report.Figures(results).added_ki("django-otel/10+export", "json")
    assert added == pytest.approx(30 + 0.1 * 100)


def test_figures_of_a_configuration_that_was_found_out_are_not_shown():
    results = _results()
    results["emission"] = {"django-otel/off": {"json": {"faults": ["counted 0 of 20 requests in its metrics"]}}}
    text = report.tables(results)
    assert "| **django_otel** |  |" in text.partition("### Microseconds")[0]
    assert "django-otel/off, json: counted 0 of 20 requests in its metrics" in text


def test_the_chart_is_valid_svg_with_its_figures_as_text():
    drawing = report.chart(_results())
    root = ElementTree.fromstring(drawing)
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "django_otel" in texts
    assert "30" in texts
    assert "prefers-color-scheme: dark" in drawing


def test_the_page_has_a_place_for_every_published_part():
    page = publication.PAGE.read_text()
    for part in ("peers", "layers", "scrape", "export", "growth", "startup"):
        assert publication.with_part(page, part, "new text").count("new text") == 1
    with pytest.raises(ValueError, match="no marks"):
        publication.with_part(page, "missing", "text")


def test_the_options_of_the_documentation_exist():
    page = (ROOT / "benchmarks/README.md").read_text()
    commands = re.findall(r"^python3 -m benchmarks\.peers (.+?)(?:\s+#.*)?$", page, re.MULTILINE)
    assert len(commands) > 2
    for command in commands:
        parse_options(command.split())


def test_the_command_explains_itself():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0
    assert all(peer in done.stdout for peer in ("official", "ddtrace", "sentry"))


def test_no_figure_is_published_of_a_case_that_a_peer_cannot_do():
    published = publication.load().get("peers", {}).get("configurations", {})
    by_name = {case.name: case for case in CASES}
    assert published
    for name, cases in published.items():
        peer = PEERS[name.partition("/")[0]]
        assert not [case for case in cases if why_not(peer, by_name[case])]


# --- Names of the package that the benchmarks use, also those that only a measured process gets to. ---

BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))


def _is_module(name):
    return (ROOT / f"{name.replace('.', '/')}.py").exists() or (ROOT / name.replace(".", "/")).is_dir()


def _used_names(path):
    """Yield (module, name) for each name of the package that a file imports, reads or sets, wherever that stands."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "django_otel":
            for alias in node.names:
                if _is_module(f"{node.module}.{alias.name}"):
                    modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                else:
                    yield node.module, alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield modules[node.value.id], node.attr


@sizes.each("path", BENCHMARKS)
def test_a_benchmark_uses_names_that_exist(path):
    used = set(_used_names(path))
    assert not {f"{module}.{name}" for module, name in used if not hasattr(importlib.import_module(module), name)}
