"""Batches, exporters, metrics over OTLP: cumulative, delta, over forks; one budget at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
from django.test import override_settings
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

import django_otel
from django_otel import runtime
from django_otel.config.parse import parse
from django_otel.config.schema import ConfigError
from django_otel.export import batch, building, exporters, limits, processors, resource, shutdown
from django_otel.export.batch import BatchWorker
from django_otel.metrics.model import ExponentialValue
from django_otel.metrics.sdk_metrics import MetricsDataBuilder, SdkMetrics, build_reader, merge_exponential
from django_otel.metrics.store import CellStore
from django_otel.redaction import span_cleaner
from django_otel.redaction.scrub import Scrubber
from django_otel.tracing import propagation
from django_otel.tracing.ids import OwnRandomIdGenerator
from django_otel.tracing.provider import OwnTracerProvider
from tests import services


def build_worker(export, **more):
    drops, failures = [], []
    options = {"queue_size": 100, "batch_size": 10, "delay_s": 0.02, **more}
    worker = BatchWorker(
        "things", export, on_drop=lambda count, reason: drops.append((count, reason)),
        on_failure=lambda: failures.append(1), **options,
    )  # fmt: skip
    return worker, drops, failures


# --- The batch worker. ---


def test_a_worker_has_no_thread_before_its_first_item():
    worker, _, _ = build_worker(lambda batch: True)
    assert worker._thread is None
    worker.put(1)
    assert worker._thread is not None
    worker.start_shutdown()
    assert worker.finish_shutdown(60)


def test_everything_arrives_in_order_and_in_batches():
    got = []
    worker, drops, _ = build_worker(lambda batch: got.append(list(batch)) or True, queue_size=1000, delay_s=5.0)
    for number in range(95):
        worker.put(number)
    assert worker.flush(60)
    assert [item for batch in got for item in batch] == list(range(95))
    assert max(map(len, got)) <= 10
    assert not drops


def test_a_full_queue_drops_what_comes_and_counts_it():
    gate = threading.Event()
    worker, drops, _ = build_worker(lambda batch: gate.wait(60), queue_size=10, batch_size=5)
    for number in range(50):
        worker.put(number)
        time.sleep(0.002)
    gate.set()
    assert worker.flush(60)
    assert sum(count for count, reason in drops if reason == "queue_full") >= 30


def test_a_failed_export_is_counted():
    worker, drops, failures = build_worker(lambda batch: False)
    worker.put(1)
    assert worker.flush(60)
    assert drops == [(1, "export_failed")]
    assert failures == [1]


def test_an_export_that_raises_is_contained_and_the_worker_goes_on():
    calls = []

    def export(batch):
        calls.append(list(batch))
        if len(calls) == 1:
            raise RuntimeError("first")
        return True

    worker, _, failures = build_worker(export)
    worker.put(1)
    assert worker.flush(60)
    worker.put(2)
    assert worker.flush(60)
    assert calls == [[1], [2]]
    assert failures == [1]


def test_flush_and_shutdown_keep_their_deadline_when_the_other_side_hangs():
    begun, gate = threading.Event(), threading.Event()
    worker, drops, _ = build_worker(lambda batch: (begun.set(), gate.wait(600))[1])
    worker.put(1)
    assert begun.wait(60)
    assert not worker.flush(0.3)
    worker.put(2)
    worker.start_shutdown()
    assert not worker.finish_shutdown(0.3)
    # The export is still under way.
    assert not worker._idle.is_set()
    assert (1, "shutdown") in drops
    gate.set()


def test_after_shutdown_items_are_counted_as_dropped():
    worker, drops, _ = build_worker(lambda batch: True)
    worker.start_shutdown()
    worker.put(1)
    assert drops == [(1, "shutdown")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_an_export_is_under_way_exports_for_itself():
    """OP#2767, OP#3307: the child has no thread and perhaps a held lock; what waits is the parent's."""
    code = """
import os, sys, threading, time
from django_otel.export.batch import BatchWorker
busy, gate, got = threading.Event(), threading.Event(), []
def export(batch):
    got.extend(batch)
    if "slow" in batch:
        busy.set(); gate.wait(60)
    return True
worker = BatchWorker("x", export, queue_size=10, batch_size=1, delay_s=0.01, on_drop=print, on_failure=print)
worker.put("slow"); busy.wait(60); worker.put("parent's")
pid = os.fork()
if pid == 0:
    got.clear()
    worker.put("child's")
    ok = worker.flush(60)
    os._exit(0 if ok and got == ["child's"] else 1)
gate.set()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert worker.flush(60) and got == ["slow", "parent's"], got
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


# --- Span exporters by name and path. ---


class RecordingExporter(SpanExporter):
    spans: list = []

    def export(self, spans):
        self.spans.extend(spans)
        return SpanExportResult.SUCCESS


class RecordingProcessor(SpanProcessor):
    ended: list = []

    def on_end(self, span):
        self.ended.append(span)


class BrokenProcessor(SpanProcessor):
    def on_start(self, span, parent_context=None):
        raise RuntimeError("mine")

    def on_end(self, span):
        raise RuntimeError("mine")


def build(*names):
    config = parse({"TRACES": {"EXPORTERS": list(names), "BATCH": {"DELAY_S": 0.01}}}, {})
    return building.build_span_processors(config, runtime.clean_span, lambda *_: None, lambda *_: None)


def finish_a_span(processors):
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider(shutdown_on_exit=False)
    for processor in processors:
        provider.add_span_processor(processor)
    with provider.get_tracer("t").start_as_current_span("s", attributes={"password": "hunter2"}):
        pass
    provider.force_flush()
    provider.shutdown()


def test_a_dotted_path_to_an_exporter_is_batched_and_gets_scrubbed_spans():
    RecordingExporter.spans.clear()
    finish_a_span(build("tests.export.test_pipelines.RecordingExporter"))
    assert [span.attributes["password"] for span in RecordingExporter.spans] == ["[redacted]"]


def test_a_dotted_path_to_a_processor_gets_scrubbed_spans():
    RecordingProcessor.ended.clear()
    finish_a_span(build("tests.export.test_pipelines.RecordingProcessor"))
    assert [span.attributes["password"] for span in RecordingProcessor.ended] == ["[redacted]"]


class RedactingProcessor(SpanProcessor):
    """A project's own rule, as the SDK lets processors write it."""

    def on_end(self, span):
        if "customer" in span.attributes:
            span._attributes["customer"] = "[hidden]"


class ReplacingProcessor(SpanProcessor):
    def on_end(self, span):
        span._attributes = {**span.attributes, "customer": "[hidden]"}


class FailingAfterwards(RedactingProcessor):
    def on_end(self, span):
        super().on_end(span)
        raise RuntimeError("mine")


@pytest.mark.parametrize("name", ["RedactingProcessor", "ReplacingProcessor", "FailingAfterwards"])
@pytest.mark.parametrize("attributes", [{"customer": "Jane"}, {"customer": "Jane", "password": "hunter2"}])
@pytest.mark.parametrize("is_own", [True, False], ids=["our span", "the SDK's span"])
def test_what_a_processor_changes_is_seen_by_the_entries_after_it(receiver, name, attributes, is_own):
    switch = processors.SwitchProcessor()
    config = parse(
        {
            "TRACES": {
                "EXPORTERS": [f"tests.export.test_pipelines.{name}", "otlp", "memory"],
                "ENDPOINT": f"{receiver.url}/v1/traces",
            }
        },
        {},
    )
    clean = span_cleaner.SpanCleaner(Scrubber())
    parts = building.build_span_processors(config, clean, lambda *_: None, lambda *_: None)
    if is_own:
        provider = OwnTracerProvider(ALWAYS_ON, Resource({}), OwnRandomIdGenerator(), limits.build_span_limits())
    else:
        provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(switch)
    switch.parts = parts
    provider.get_tracer("shop").start_span("s", attributes=attributes).end()
    assert parts[1].force_flush(10_000)
    assert shutdown.shut_down(parts, 5.0)
    assert [span.attributes["customer"] for span in parts[2].spans] == ["[hidden]"]
    assert [services.attributes_of(span)["customer"] for _, span in receiver.spans()] == ["[hidden]"]


def test_a_broken_processor_breaks_nothing():
    finish_a_span(build("tests.export.test_pipelines.BrokenProcessor"))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("no.such.module", "cannot be imported"),
        ("tests.export.test_pipelines.nothing", "cannot be imported"),
        ("builtins.dict", "gave a dict"),
        ("tests.export.test_pipelines.finish_a_span", "raised TypeError"),
    ],
)
def test_a_dotted_path_that_does_not_fit_is_a_problem(path, text):
    with pytest.raises(ConfigError, match=text) as caught:
        build(path)
    assert caught.value.problems[0].id == "django_otel.E003"


def test_a_missing_exporter_package_is_a_problem(monkeypatch):
    monkeypatch.setattr(exporters, "package_version", lambda name: "")
    with pytest.raises(ConfigError, match=r"pip install|not installed") as caught:
        build("otlp-grpc")
    assert caught.value.problems[0].id == "django_otel.E004"


def test_a_missing_propagator_package_is_a_problem():
    config = parse({"PROPAGATION": {"FORMATS": ["jaeger"]}}, {})
    with pytest.raises(ConfigError, match="opentelemetry-propagator-jaeger") as caught:
        propagation.build_propagators(config)
    assert caught.value.problems[0].id == "django_otel.E004"


def test_the_console_exporter_prints_a_span():
    otel = {"TRACES": {"EXPORTERS": ["console"]}, "SAMPLING": {"LIVE": False}}
    code = "import django; django.setup()\nimport django_otel\nwith django_otel.span('printed'): pass\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=services.ROOT,
        env=services.server_env(otel),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert '"name": "printed"' in done.stdout


# --- The resource. ---


def test_the_resource_names_service_version_environment_and_instance():
    config = parse({"SERVICE_NAME": "s", "SERVICE_VERSION": "2", "ENVIRONMENT": "prod", "RESOURCE": {"team": "a"}}, {})
    one, other = resource.build_resource(config).attributes, resource.build_resource(config).attributes
    assert one["service.name"] == "s"
    assert one["service.version"] == "2"
    assert one["deployment.environment.name"] == "prod"
    assert one["team"] == "a"
    assert one["service.instance.id"] != other["service.instance.id"]
    assert one["telemetry.sdk.language"] == "python"


def test_a_forked_child_has_an_instance_id_of_its_own():
    code = """
import django; django.setup()
import os
from django_otel import runtime
from opentelemetry import trace, metrics
before = runtime.current().resource.attributes["service.instance.id"]
tracer = trace.get_tracer("t")
pid = os.fork()
if pid == 0:
    after = runtime.current().resource.attributes["service.instance.id"]
    span = tracer.start_span("s")
    os._exit(0 if after != before and span.resource.attributes["service.instance.id"] == after else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert runtime.current().resource.attributes["service.instance.id"] == before
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=services.ROOT,
        env=services.server_env({}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


# --- SDK metrics in and out. ---


@pytest.fixture
def sdk():
    reader = build_reader()
    provider = MeterProvider([reader], shutdown_on_exit=False, views=[
        View(instrument_name="exp", aggregation=ExponentialBucketHistogramAggregation())])  # fmt: skip
    return SdkMetrics(reader, provider), provider.get_meter("other", "1.0")


def families(sdk_metrics):
    return {family.name: family for family in sdk_metrics.collect()}


def test_increments_of_the_sdk_add_up_over_collections(sdk):
    collector, meter = sdk
    counter, histogram, level = (
        meter.create_counter("c"),
        meter.create_histogram("h"),
        meter.create_up_down_counter("u"),
    )
    for _ in range(3):
        counter.add(2, {"a": 1})
        histogram.record(7.0)
        level.add(1)
        found = families(collector)
    assert found["c"].points[0].value == 6
    assert found["u"].points[0].value == 3
    assert found["h"].points[0].value.count == 3
    assert found["h"].points[0].value.sum == 21.0
    assert families(collector)["c"].points[0].value == 6
    assert found["c"].scope.name == "other"


def test_observed_values_are_taken_as_they_are(sdk):
    collector, meter = sdk
    level = {"value": 5, "attributes": {"x": 1}}
    meter.create_observable_gauge("g", [lambda options: [metrics.Observation(level["value"], level["attributes"])]])
    meter.create_observable_up_down_counter("ou", [lambda options: [metrics.Observation(level["value"])]])
    meter.create_observable_counter("oc", [lambda options: [metrics.Observation(level["value"])]])
    families(collector)
    level["value"] = 9
    level["attributes"] = {"x": 2}
    found = families(collector)
    assert [(point.attributes, point.value) for point in found["g"].points] == [((("x", 2),), 9)]
    assert found["ou"].points[0].value == 9
    assert found["oc"].points[0].value == 9


def test_an_exponential_histogram_adds_up_over_a_change_of_scale(sdk):
    collector, meter = sdk
    histogram = meter.create_histogram("exp")
    for value in (1.0, 1.1):
        histogram.record(value)
    first = families(collector)["exp"].points[0].value
    for value in (1e-6, 1e9, 3.0):
        histogram.record(value)
    second = families(collector)["exp"].points[0].value
    assert (first.count, second.count) == (2, 5)
    assert second.scale < first.scale
    assert sum(second.positive) == 5


def test_merging_exponential_histograms_keeps_every_count_in_the_right_bucket():
    import math

    def histogram_of(values, scale):
        indexes = [math.ceil(math.log2(value) * 2**scale) - 1 for value in values]
        low, high = min(indexes), max(indexes)
        return ExponentialValue(
            scale, 0, low, [indexes.count(i) for i in range(low, high + 1)], 0, [], sum(values), len(values)
        )

    one, other = [1.3, 2.7, 9.1], [0.2, 100.3]
    merged = merge_exponential(histogram_of(one, 4), histogram_of(other, 2))
    direct = histogram_of(one + other, 2)
    assert merged.scale == 2
    assert (merged.positive_offset, merged.positive) == (direct.positive_offset, direct.positive)
    assert merged.count == 5


def points_of(data):
    return {
        metric.name: metric.data
        for group in data.resource_metrics
        for scope in group.scope_metrics
        for metric in scope.metrics
    }


def test_otlp_carries_cells_and_sdk_instruments_under_one_resource_and_each_scope_once(sdk):
    collector, meter = sdk
    store = CellStore()
    store.counter("mine").add(1)
    store.histogram("mine.h", bounds=(1.0,)).record(3)
    meter.create_counter("theirs").add(2)
    data = MetricsDataBuilder("cumulative").build(store.collect() + collector.collect(), Resource({}))
    assert len(data.resource_metrics) == 1
    assert sorted(scope.scope.name for scope in data.resource_metrics[0].scope_metrics) == ["django_otel", "other"]
    assert set(points_of(data)) == {"mine", "mine.h", "theirs"}


def test_cumulative_stays_and_delta_gives_what_came_since(sdk):
    collector, meter = sdk
    store = CellStore()
    mine, hist, level = store.counter("mine"), store.histogram("h", bounds=(1.0,)), store.up_down_counter("level")
    theirs = meter.create_counter("theirs")
    cumulative, delta = MetricsDataBuilder("cumulative"), MetricsDataBuilder("delta")
    for amount in (3, 4):
        mine.add(amount)
        theirs.add(amount)
        hist.record(0.5)
        level.add(1)
        numbers = store.collect() + collector.collect()
        total = points_of(cumulative.build(numbers, Resource({})))
        increment = points_of(delta.build(numbers, Resource({})))
    assert total["mine"].data_points[0].value == total["theirs"].data_points[0].value == 7
    assert increment["mine"].data_points[0].value == increment["theirs"].data_points[0].value == 4
    assert (total["h"].data_points[0].count, increment["h"].data_points[0].count) == (2, 1)
    assert increment["mine"].aggregation_temporality == AggregationTemporality.DELTA
    assert increment["level"].aggregation_temporality == AggregationTemporality.CUMULATIVE
    assert increment["level"].data_points[0].value == 2
    assert delta.build(store.collect()[:1], Resource({})) is None


def test_the_stock_encoder_takes_what_we_build(sdk):
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

    collector, meter = sdk
    meter.create_histogram("exp").record(3.0)
    store = CellStore()
    store.histogram("h", "s").record(0.2, {"a": (1, 2), "b": True}, trace_id=5, span_id=6)
    store.gauge("g").set(1.5)
    message = encode_metrics(
        MetricsDataBuilder("cumulative").build(store.collect() + collector.collect(), Resource({}))
    )
    found = {metric.name: metric for scope in message.resource_metrics[0].scope_metrics for metric in scope.metrics}
    point = found["h"].histogram.data_points[0]
    assert point.count == 1
    assert not point.HasField("min")
    assert point.exemplars[0].trace_id.hex() == f"{5:032x}"
    assert found["g"].gauge.data_points[0].as_double == 1.5


# --- The runtime. ---


def test_ready_makes_no_query_opens_no_socket_starts_no_thread_and_loads_no_urlconf():
    code = """
import socket, sys, threading
from django.db.backends.base.base import BaseDatabaseWrapper
def forbid(what):
    def fail(*args, **kwargs): raise AssertionError(what)
    return fail
BaseDatabaseWrapper.connect = forbid("database")
socket.socket.connect = forbid("socket")
threading.Thread.start = forbid("thread")
import django; django.setup()
assert "tests.urls" not in sys.modules, "URLconf"
from django_otel import runtime
assert runtime.current().enabled, runtime.current().problems
for name in ("google.protobuf", "grpc", "prometheus_client"):
    assert name not in sys.modules, name
"""
    otel = {
        "TRACES": {"ENDPOINT": "http://127.0.0.1:9"},
        "METRICS": {"EXPORTERS": ["prometheus", "otlp"]},
        "LOGS": {"EXPORTERS": ["otlp"]},
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=services.ROOT,
        env=services.server_env(otel),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_override_settings_takes_effect_and_is_undone(client, otel_spans):
    with override_settings(OTEL={"SERVICE_NAME": "other", "SAMPLING": {"RATIO": 0.0}}):
        client.get("/hello/")
        assert runtime.current().resource.attributes["service.name"] == "other"
        assert not list(otel_spans)
    client.get("/hello/")
    assert otel_spans[0].resource.attributes["service.name"] == "tests"


def test_numbers_are_kept_when_settings_change(client, otel_metrics):
    client.get("/hello/")
    with override_settings(OTEL={"SERVICE_NAME": "other"}):
        client.get("/hello/")
    assert otel_metrics.value("http.server.request.duration", {"http.route": "/hello/"}).count == 2


def test_limits_of_the_settings_hold_for_tracers_that_exist(otel_spans):
    tracer = trace.get_tracer("kept")
    with override_settings(OTEL={"TRACES": {"LIMITS": {"ATTRIBUTES": 2, "ATTRIBUTE_LENGTH": 3, "EVENTS": 1}}}):
        with tracer.start_as_current_span("s") as span:
            span.set_attributes({"a": "longer", "b": 1, "c": 2})
            span.add_event("one")
            span.add_event("two")
        found = otel_spans.one("s")
    assert len(found.attributes) == 2
    assert len(found.events) == 1
    assert {len(value) for value in found.attributes.values() if isinstance(value, str)} <= {3}


def test_a_long_attribute_is_cut_without_a_line_in_the_log(otel_spans, caplog):
    with django_otel.span("long", text="x" * 10_000):
        pass
    assert len(otel_spans.one("long").attributes["text"]) == 4096
    assert not caplog.records


def test_a_trace_records_no_more_spans_than_its_limit(client, otel_spans, otel_metrics):
    with override_settings(OTEL={"TRACES": {"LIMITS": {"SPANS_PER_TRACE": 3}}}):
        client.get("/stream/").getvalue()
        with django_otel.span("outside"):
            pass
    assert len([span for span in otel_spans if span.name != "outside"]) == 3
    assert otel_metrics.value("django_otel.spans.dropped", {"django_otel.reason": "trace_limit"}) == 1


def test_buckets_and_cardinality_limit_of_the_settings_hold(otel_metrics):
    with override_settings(OTEL={"METRICS": {"BUCKETS": {"t.h": [1, 2]}, "CARDINALITY_LIMIT": 5}}):
        histogram = django_otel.histogram("t.h")
        for number in range(10_000):
            histogram.record(1.5, {"n": number})
        family = next(family for family in runtime.store.collect() if family.name == "t.h")
    assert family.points[0].value.bounds == (1.0, 2.0)
    assert len(family.points) == 6
    overflow = [point for point in family.points if point.attributes == (("otel.metric.overflow", True),)]
    assert overflow[0].value.count == 9_995


def test_providers_own_leaves_another_tools_global_provider_alone():
    code = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
theirs = TracerProvider(); trace.set_tracer_provider(theirs)
import django; django.setup()
from django_otel import runtime
assert trace.get_tracer_provider() is theirs
assert runtime.current().tracer_provider is not theirs
assert not runtime.current().is_foreign
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=services.ROOT, env=services.server_env({"PROVIDERS": "own"}),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not allowed" not in done.stderr


def test_postgres_can_drop_its_test_database_with_the_app_installed(postgres, tmp_path):
    """No connection of ours is left behind by a test run under Django's own runner."""
    (tmp_path / "sample_tests.py").write_text(
        "from django.test import TestCase\n"
        "class Sample(TestCase):\n"
        "    def test_it(self):\n"
        "        self.assertEqual(self.client.get('/queries/').status_code, 200)\n"
    )
    script = tmp_path / "manage.py"
    script.write_text("import sys\nfrom django.core.management import execute_from_command_line\n"
                      "execute_from_command_line(sys.argv)\n")  # fmt: skip
    environment = services.server_env({"SAMPLING": {"REFRESH_S": 0.1}}, TEST_DATABASE_URL=postgres)
    environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    done = subprocess.run(
        [sys.executable, str(script), "test", "sample_tests", "--noinput"],
        cwd=services.ROOT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Ran 1 test" in done.stderr
    assert "being accessed" not in done.stderr


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("make", [batch.make_fork_mark, batch._Pid])
def test_a_forked_child_is_told_from_its_parent(make):
    """Hooks or none: uWSGI's fork runs none of Python's, and what the queue holds is the parent's."""
    mark = make()
    assert mark[0]
    pid = os.fork()
    if not pid:
        os._exit(0 if not mark[0] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert mark[0]


# --- The three pipelines of the runtime. ---


def test_a_stopped_pipeline_hands_nothing_on_and_starts_again(otel_spans):
    current = runtime.current()
    before = runtime.tracer()
    current.traces.stop()
    try:
        runtime.tracer().start_span("stopped").end()
        # A tracer that was handed out earlier goes on to work, and its spans go nowhere.
        before.start_span("handed out").end()
        assert current.tracer_provider is None and not list(otel_spans)
    finally:
        runtime.restart()
    runtime.tracer().start_span("started").end()
    before.start_span("handed out").end()
    assert [span.name for span in otel_spans] == ["started", "handed out"]


def test_each_pipeline_starts_stops_and_follows_a_fork():
    current = runtime.current()
    for pipeline in (current.traces, current.metrics, current.logs):
        for name in ("start", "stop", "after_fork"):
            assert callable(getattr(pipeline, name))


def test_settings_that_are_refused_stop_all_three():
    current = runtime.current()
    with override_settings(
        OTEL={"TRACES": {"EXPORTERS": ["tests.nowhere.Exporter"]}, "LOGS": {"EXPORTERS": ["nothing"]}}
    ):
        assert not current.enabled and current.problems
        assert current.traces.switch.parts == () and current.logs.parts == () and current.metrics.thread is None
    assert current.enabled and not current.problems
