"""The benchmarks run, check what they claim to check, and the published figures are those of the page."""

from __future__ import annotations

import gzip
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

from benchmarks import callgrind, export, growth, publication, scrape
from benchmarks.peers import checks, environments, report
from benchmarks.peers.__main__ import parse_options
from benchmarks.peers.catalogue import CASES, PEERS, TRACE_ID, VARIANTS, configurations, traceparents, why_not
from benchmarks.peers.process import Configuration, WorkerError, start_databases
from benchmarks.peers.receiver import Emission, Receiver, count, unpack
from benchmarks.peers.subjects import SUBJECTS

ROOT = Path(__file__).resolve().parent.parent
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


@pytest.mark.parametrize("variant", ["off", "all", "all+export"])
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
    assert set(PEERS) == set(SUBJECTS) == set(environments.REQUIREMENTS)


def test_what_a_peer_cannot_do_is_a_case_that_exists():
    assert {name for peer in PEERS.values() for name, _ in peer.cannot} <= {case.name for case in CASES}


def test_bare_django_is_always_there_to_compare_with():
    assert next(iter(configurations(["official"], ["all"])))[0].name == "bare"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"requests": 19}, "recorded 19 of 20 requests"),
        ({"queries": 19}, "recorded 19 queries instead of 20"),
        ({"requests_counted": 0}, "counted 0 of 20 requests"),
        ({"queries_counted": 40}, "counted 40 of 20 queries"),
    ],
)
def test_a_configuration_that_emits_too_little_or_too_much_is_found_out(changes, fault):
    case = next(case for case in CASES if case.name == "query")
    right = {"requests": 20, "queries": 20, "trace_ids": [], "requests_counted": 20, "queries_counted": 20}
    peer, variant = PEERS["django-otel"], VARIANTS["all"]
    assert checks.faults(peer, variant, case, 20, right) == []
    found = checks.faults(peer, variant, case, 20, {**right, **changes})
    assert any(fault in text for text in found)


def test_an_inbound_trace_id_that_is_not_taken_over_is_found_out():
    case = next(case for case in CASES if case.has_traceparent)
    found = {"requests": 20, "queries": 0, "requests_counted": 20, "queries_counted": 0}
    peer, variant = PEERS["django-otel"], VARIANTS["all"]
    assert checks.faults(peer, variant, case, 20, {**found, "trace_ids": [TRACE_ID]}) == []
    assert "inbound trace id" in checks.faults(peer, variant, case, 20, {**found, "trace_ids": ["1" * 32]})[0]


@pytest.mark.parametrize(("variant", "sampled"), [("off", 0), ("10", 1), ("all", 10)])
def test_inbound_headers_are_sampled_in_the_variants_share(variant, sampled):
    assert sum(text.endswith("-01") for text in traceparents(VARIANTS[variant], 10)) == sampled


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


@pytest.mark.skipif(bool(callgrind.why_not()), reason=callgrind.why_not() or "-")
def test_instructions_of_a_page_are_counted():
    assert 0.1 < scrape.count_mi("django_otel", 20, 2) < scrape.count_mi("prometheus_client", 20, 1)


@pytest.mark.parametrize(("names", "processes"), [(scrape.ONE_PROCESS, 1), (scrape.SEVERAL_PROCESSES, 2)])
def test_every_contender_of_the_scrape_shows_every_measurement(names, processes):
    """`measure` reads each page and refuses one that lacks any."""
    found = scrape.measure(names, 20, processes, 1)
    assert list(found) == list(names)
    assert all(figures["ms"] > 0 and figures["peak_mb"] > 0 for figures in found.values())
    text = scrape.text_of([{"label_sets": 1000, "processes": processes, "contenders": found}])
    assert "1 000 label sets" in text
    assert "| **django_otel** |" in text


def test_growth_serves_in_threads_and_compares_with_bare_django(monkeypatch):
    monkeypatch.setattr(growth, "_BLOCK", 24)
    found = growth.thread_times((1, 2), 1)
    assert all(figures["bare_us"] > 0 and figures["unsampled_ratio"] > 0 for figures in found.values())
    assert "| 2 |" in growth.text_of({"threads": {str(count): figures for count, figures in found.items()}})


def test_growth_asks_for_every_route_once():
    paths = growth._paths(1000)
    assert len(set(paths)) == 1000
    assert paths != sorted(paths)


def test_growth_shows_how_flat_a_row_is():
    text = growth.text_of({"series": {"unsampled": {"10": 20.0, "10000": 22.0}}})
    assert "10: 20.0; 10000: 22.0 | 1.10 |" in text


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
    text = report.tables(_results())
    assert "| **django_otel, unsampled** | 30 |" in text
    assert "| **django_otel, unsampled** | 1/20.0 |" in text
    assert "| **django_otel, unsampled** | 10 (1/10.0) |" in text
    assert "| bare Django (whole request) | 400 |" in text


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


def test_figures_of_a_configuration_that_was_found_out_are_not_shown():
    results = _results()
    results["emission"] = {"django-otel/off": {"json": {"faults": ["counted 0 of 20 requests in its metrics"]}}}
    text = report.tables(results)
    assert "| **django_otel, unsampled** |  |" in text
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
    for part in ("peers", "scrape", "export", "growth"):
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
    for name, cases in published.items():
        peer = PEERS[name.partition("/")[0]]
        assert not [case for case in cases if why_not(peer, by_name[case])]
