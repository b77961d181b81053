"""Spans from their end to a real receiver: our encoding over the stock transport, load, and what is dropped."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from django_otel.base import guard, sdk_compat
from django_otel.config.parse import parse
from django_otel.export import building, exporters, otlp, shutdown
from django_otel.export.batch import BatchWorker
from django_otel.redaction import span_cleaner
from django_otel.redaction.scrub import Scrubber
from tests import services

RESOURCE = Resource({"service.name": "shop"})


@pytest.fixture(autouse=True)
def _forget_what_was_logged():
    yield
    guard.reset()


class Counts:
    def __init__(self):
        self.drops: dict[str, int] = {}
        self.failures = 0

    def drop(self, count, reason, signal):
        assert signal == "traces"
        self.drops[reason] = self.drops.get(reason, 0) + count

    def fail(self, signal):
        self.failures += 1


class Pipeline:
    """The processors of a configuration behind a provider of their own."""

    def __init__(self, traces: dict, *, clean=None):
        self.counts = Counts()
        config = parse({"TRACES": traces}, {})
        clean = span_cleaner.SpanCleaner(Scrubber()) if clean is None else clean
        self.processors = building.build_span_processors(config, clean, self.counts.drop, self.counts.fail)
        self.provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
        for processor in self.processors:
            self.provider.add_span_processor(processor)
        self.tracer = self.provider.get_tracer("shop", "1")

    def finish(self, *names: str, **attributes) -> None:
        for name in names:
            self.tracer.start_span(name, kind=SpanKind.SERVER, attributes=attributes).end()

    def flush(self) -> bool:
        return all(processor.force_flush(60_000) for processor in self.processors)

    def close(self) -> bool:
        return shutdown.shut_down(self.processors, 60.0)

    def exporter(self):
        return self.processors[0].exporter._inner


@pytest.fixture
def build():
    made: list[Pipeline] = []

    def build_pipeline(*args, **kwargs) -> Pipeline:
        made.append(Pipeline(*args, **kwargs))
        return made[-1]

    yield build_pipeline
    for pipeline in made:
        pipeline.close()


def http(receiver, **more) -> dict:
    return {"EXPORTERS": ["otlp"], "ENDPOINT": f"{receiver.url}/v1/traces", "BATCH": {"DELAY_S": 30}, **more}


def spans_of(message) -> list:
    return [span for group in message.resource_spans for scope in group.scope_spans for span in scope.spans]


# --- Over HTTP. ---


@pytest.mark.parametrize("compression", ["gzip", "deflate", "none"])
def test_spans_arrive_over_http_in_each_compression(receiver, build, compression):
    pipeline = build(http(receiver, COMPRESSION=compression, HEADERS={"X-Team": "shop"}))
    pipeline.finish("a", "b", **{"http.route": "/x/", "password": "hunter2"})
    assert pipeline.flush()
    assert isinstance(pipeline.exporter(), otlp.DirectSpanExporter)
    (path, headers, _), *more = receiver.requests
    assert (path, more) == ("/v1/traces", [])
    assert headers["x-team"] == "shop"
    assert headers["content-type"] == "application/x-protobuf"
    assert headers.get("content-encoding") == (None if compression == "none" else compression)
    assert headers["user-agent"].startswith("OTel-OTLP-Exporter-Python")
    found = receiver.spans()
    assert [(resource["service.name"], span.name, services.attributes_of(span)) for resource, span in found] == [
        ("shop", name, {"http.route": "/x/", "password": "[redacted]"}) for name in ("a", "b")
    ]
    assert not pipeline.counts.drops


def test_what_is_sent_is_what_the_stock_exporter_sends(receiver, build):
    pipeline = build(http(receiver))
    stock = exporters.build_otlp_exporter("otlp", "traces", parse({"TRACES": http(receiver)}, {}))
    pipeline.provider.add_span_processor(SimpleSpanProcessor(stock))
    pipeline.finish(*"abc", n=1, list=[1, 2])
    assert pipeline.flush()
    stock.shutdown()
    # The simple processor sends each span by itself.
    *singles, (_, ours, our_message) = receiver.requests
    assert len(singles) == 3
    for number, (_, theirs, their_message) in enumerate(singles):
        assert our_message.resource_spans[0].scope_spans[0].spans[number] == spans_of(their_message)[0]
        assert our_message.resource_spans[0].resource == their_message.resource_spans[0].resource
        assert {**ours, "content-length": ""} == {**theirs, "content-length": ""}


def test_a_receiver_that_is_away_for_a_moment_is_tried_again(receiver, build):
    receiver.first_statuses = [503]
    pipeline = build(http(receiver, TIMEOUT_S=60, BATCH={"DELAY_S": 0.05}))
    pipeline.finish("a")
    assert pipeline.flush()
    assert len(receiver.requests) == 2
    assert receiver.requests[0][2] == receiver.requests[1][2]
    assert not pipeline.counts.drops


def test_a_refused_batch_is_counted_once(receiver, build):
    receiver.status = 400
    pipeline = build(http(receiver))
    pipeline.finish("a", "b")
    assert pipeline.flush()
    assert pipeline.counts.drops == {"export_failed": 2}
    assert pipeline.counts.failures == 1


def test_shutdown_ends_the_waiting_between_two_tries(receiver, build):
    receiver.status = 503
    pipeline = build(http(receiver, TIMEOUT_S=600, BATCH={"DELAY_S": 0.05}))
    pipeline.finish("a")
    services.wait_until(lambda: receiver.requests, what="the first try")
    shutdown.shut_down(pipeline.processors, 0.2)
    services.wait_until(lambda: pipeline.counts.drops, what="the count")
    # Six tries, with ever longer waits between them, are all that there would be.
    assert len(receiver.requests) < 6
    assert pipeline.counts.drops == {"export_failed": 1}


def test_certificates_and_timeout_are_those_of_the_stock_exporter(monkeypatch, receiver, build, tmp_path):
    bundle = tmp_path / "ca.pem"
    bundle.write_text("")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(bundle))
    pipeline = build(http(receiver, TIMEOUT_S=3))
    pipeline.finish("a")
    assert pipeline.flush()
    inner = pipeline.exporter()._inner
    assert isinstance(inner, OTLPSpanExporter)
    # 1.43 keeps both itself, 1.45 in a client.
    session = inner._session if hasattr(inner, "_session") else inner._client._transport._session
    assert str(bundle) in (session.verify, getattr(inner, "_certificate_file", None))
    assert 3 in (getattr(inner, "_timeout", None), getattr(getattr(inner, "_client", None), "_timeout", None))


def test_the_module_of_the_stock_exporter_is_left_alone(receiver, build):
    """Another exporter in the same process goes on with its own encoding."""
    before = OTLPSpanExporter.export
    pipeline = build(http(receiver))
    pipeline.finish("a")
    assert pipeline.flush()
    assert OTLPSpanExporter.export is before
    stock = OTLPSpanExporter(endpoint=f"{receiver.url}/v1/traces")
    span = ReadableSpan("theirs", SpanContext(1, 2, False, TraceFlags(1)), resource=RESOURCE)
    assert stock.export([span]).name == "SUCCESS"
    stock.shutdown()
    assert [span.name for _, span in receiver.spans()] == ["a", "theirs"]


# --- Where the stock exporter is not as we know it. ---


@pytest.mark.parametrize("kind", ["otlp", "otlp-grpc"])
def test_an_exporter_that_is_built_differently_encodes_for_itself(monkeypatch, receiver, build, caplog, kind):
    got = []

    class Unknown:
        def __init__(self, **arguments):
            self.arguments = arguments

        def export(self, spans):
            got.extend(spans)
            return SpanExportResult.SUCCESS

        def shutdown(self):
            pass

    monkeypatch.setattr(exporters, "_import_exporter", lambda *_: Unknown)
    pipeline = build({**http(receiver), "EXPORTERS": [kind]})
    pipeline.finish("a", password="hunter2")
    assert pipeline.flush()
    assert [(span.name, dict(span.attributes)) for span in got] == [("a", {"password": "[redacted]"})]
    assert "Content-Encoding" not in dict(pipeline.exporter()._inner.arguments["headers"])
    assert "Unknown is built in a way this version does not know" in caplog.text


def test_both_stock_exporters_are_as_we_know_them():
    for kind in ("otlp", "otlp-grpc"):
        assert sdk_compat.build_encoded_exporter_class(kind, exporters._import_exporter(kind, "traces")) is not None
    assert sdk_compat.build_encoded_exporter_class("otlp", object) is None
    assert sdk_compat.build_encoded_exporter_class("otlp-grpc", object) is None


# --- Over gRPC. ---


class GrpcReceiver:
    def __init__(self):
        import grpc
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

        self.messages, self.metadata, self.codes = [], [], []

        class Servicer(trace_service_pb2_grpc.TraceServiceServicer):
            def Export(servicer, request, context):
                self.metadata.append(dict(context.invocation_metadata()))
                if self.codes:
                    context.abort(self.codes.pop(0), "not now")
                self.messages.append(request)
                return trace_service_pb2.ExportTraceServiceResponse()

        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Servicer(), self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def span_names(self):
        return [span.name for message in self.messages for span in spans_of(message)]


@pytest.fixture
def grpc_receiver():
    pytest.importorskip("grpc")
    made = GrpcReceiver()
    yield made
    made.server.stop(None)


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_spans_arrive_over_grpc(grpc_receiver, build, compression):
    pipeline = build({"EXPORTERS": ["otlp-grpc"], "ENDPOINT": f"http://127.0.0.1:{grpc_receiver.port}",
                      "HEADERS": {"X-Team": "shop"}, "COMPRESSION": compression})  # fmt: skip
    pipeline.finish("a", "b", password="hunter2")
    assert pipeline.flush()
    assert isinstance(pipeline.exporter(), otlp.DirectSpanExporter)
    assert grpc_receiver.span_names() == ["a", "b"]
    assert grpc_receiver.metadata[0]["x-team"] == "shop"
    assert b"hunter2" not in grpc_receiver.messages[0].SerializeToString()
    assert not pipeline.counts.drops


def test_grpc_tries_again_and_reconnects(grpc_receiver, build):
    import grpc

    grpc_receiver.codes = [grpc.StatusCode.UNAVAILABLE]
    pipeline = build({"EXPORTERS": ["otlp-grpc"], "ENDPOINT": f"http://127.0.0.1:{grpc_receiver.port}"})
    pipeline.finish("a")
    assert pipeline.flush()
    assert grpc_receiver.span_names() == ["a"]
    assert len(grpc_receiver.metadata) == 2
    assert not pipeline.counts.drops


def test_a_strict_collector_takes_what_we_encode(rotel, build):
    for kind, endpoint in (("otlp", f"{rotel.http_url}/v1/traces"), ("otlp-grpc", rotel.grpc_url)):
        pipeline = build({"EXPORTERS": [kind], "ENDPOINT": endpoint})
        with pipeline.tracer.start_as_current_span(
            f"over {kind}", attributes={"n": -1, "list": [1.5], "b": b"x"}
        ) as span:
            span.add_event("thing", {"done": True})
            span.record_exception(ValueError("no"))
        assert pipeline.flush()
        assert not pipeline.counts.drops
        services.wait_until(lambda kind=kind: f"over {kind}" in rotel.log, what="the span in rotel's log")
    assert "exception.stacktrace" in rotel.log


# --- What is dropped is counted, each with its reason. ---


def bad_span() -> ReadableSpan:
    return ReadableSpan("bad", SpanContext(1, 2, False, TraceFlags(1)), resource=RESOURCE, start_time=-1)


def test_a_span_that_cannot_be_encoded_is_counted_and_the_others_arrive(receiver, build):
    pipeline = build(http(receiver))
    pipeline.processors[0].on_end(bad_span())
    pipeline.finish("good")
    assert pipeline.flush()
    assert [span.name for _, span in receiver.spans()] == ["good"]
    assert pipeline.counts.drops == {"encode": 1}
    assert pipeline.counts.failures == 0


def test_a_batch_of_nothing_but_such_spans_is_not_sent(receiver, build):
    pipeline = build(http(receiver))
    pipeline.processors[0].on_end(bad_span())
    assert pipeline.flush()
    assert not receiver.requests
    assert pipeline.counts.drops == {"encode": 1}


def test_no_span_is_counted_for_two_reasons(receiver, build):
    receiver.status = 400
    pipeline = build(http(receiver))
    pipeline.processors[0].on_end(bad_span())
    pipeline.finish("a", "b")
    assert pipeline.flush()
    assert pipeline.counts.drops == {"encode": 1, "export_failed": 2}


@pytest.mark.parametrize("exporter", ["otlp", "tests.export.test_pipelines.RecordingExporter"])
def test_a_span_that_cannot_be_cleaned_does_not_leave_and_is_counted(receiver, build, exporter):
    def clean(span):
        if span.name == "bad":
            raise RuntimeError("no")
        return span

    pipeline = build(http(receiver, EXPORTERS=[exporter]), clean=clean)
    pipeline.finish("bad", "good")
    assert pipeline.flush()
    assert pipeline.counts.drops == {"encode": 1}


def test_a_request_that_is_too_large_is_refused_here(receiver, build, monkeypatch, caplog):
    monkeypatch.setattr(otlp, "_MAX_REQUEST_BYTES", 100)
    pipeline = build(http(receiver))
    pipeline.finish("x" * 200)
    assert pipeline.flush()
    assert not receiver.requests
    assert pipeline.counts.drops == {"too_large": 1}
    assert "larger than the OTLP receiver takes" in caplog.text


def test_what_the_queue_does_not_hold_is_counted(receiver, build):
    receiver.delay_s = 60.0
    pipeline = build(http(receiver, TIMEOUT_S=60, BATCH={"QUEUE_SIZE": 10, "BATCH_SIZE": 5, "DELAY_S": 0.05}))
    pipeline.finish(*(f"s{number}" for number in range(100)))
    receiver.delay_s = 0.0
    assert pipeline.flush()
    dropped = pipeline.counts.drops["queue_full"]
    assert set(pipeline.counts.drops) == {"queue_full"}
    assert len(receiver.spans()) + dropped == 100
    assert dropped >= 70


def test_what_comes_after_the_end_is_counted(receiver, build):
    pipeline = build(http(receiver))
    pipeline.finish("a")
    assert pipeline.close()
    pipeline.finish("late", "later")
    assert pipeline.counts.drops == {"shutdown": 2}
    assert [span.name for _, span in receiver.spans()] == ["a"]


def test_what_does_not_get_out_before_the_deadline_is_counted(build):
    with services.start_black_hole() as url:
        pipeline = build({"EXPORTERS": ["otlp"], "ENDPOINT": f"{url}/v1/traces", "TIMEOUT_S": 2,
                          "BATCH": {"QUEUE_SIZE": 50, "BATCH_SIZE": 10, "DELAY_S": 0.05}})  # fmt: skip
        pipeline.finish(*(f"s{number}" for number in range(30)))
        queue = pipeline.processors[0].worker._queue
        services.wait_until(lambda: len(queue) <= 20, what="the first batch to be under way")
        assert not shutdown.shut_down(pipeline.processors, 0.5)
        services.wait_until(lambda: sum(pipeline.counts.drops.values()) == 30, 60, "the count")
    assert set(pipeline.counts.drops) == {"export_failed", "shutdown"}


def test_each_reason_is_a_series_of_the_metric(receiver, settings):
    code = """
    import django, sys, json
    from django.conf import settings
    settings.configure(SECRET_KEY="x", INSTALLED_APPS=["django_otel"], DATABASES={}, OTEL={
        "TRACES": {"EXPORTERS": ["otlp"], "ENDPOINT": sys.argv[1], "BATCH": {"QUEUE_SIZE": 4, "BATCH_SIZE": 4}}})
    django.setup()
    from django_otel import runtime
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, TraceFlags
    context = SpanContext(1, 2, False, TraceFlags(1))
    bad = ReadableSpan("bad", context, resource=runtime.current().resource, start_time=-1)
    runtime.current().traces.switch.on_end(bad)
    runtime.flush(5)
    runtime.stop()
    runtime.tracer().start_span("late").end()
    found = {}
    for family in runtime.collect():
        if family.name == "django_otel.spans.dropped":
            found = {dict(point.attributes)["django_otel.reason"]: point.value for point in family.points}
    print(json.dumps(found))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), f"{receiver.url}/v1/traces"], cwd=services.ROOT,
                          env=services.server_env(), capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"encode": 1, "shutdown": 1}


# --- The worker. ---


def build_worker(export, **more):
    drops: list[tuple[int, str]] = []
    options = {"queue_size": 100, "batch_size": 10, "delay_s": 300.0, **more}
    worker = BatchWorker("things", export, on_drop=lambda *drop: drops.append(drop), on_failure=lambda: None, **options)
    return worker, drops


def test_a_full_batch_goes_at_once_and_the_rest_waits_for_company():
    got: list[int] = []
    sizes: list[int] = []

    def export(batch):
        got.extend(batch)
        sizes.append(len(batch))
        return True

    worker, _ = build_worker(export)
    for number in range(9):
        worker.put(number)
    time.sleep(0.1)
    assert got == []
    for number in range(9, 35):
        worker.put(number)
    services.wait_until(lambda: len(got) >= 30, 60, "three batches")
    time.sleep(0.1)
    assert sizes == [10, 10, 10]
    assert worker.flush(60)
    assert got == list(range(35))
    assert sizes == [10, 10, 10, 5]
    worker.start_shutdown()
    assert worker.finish_shutdown(60)


def test_what_waits_goes_after_the_delay_however_little_it_is():
    got = []
    worker, _ = build_worker(lambda batch: got.append(list(batch)) or True, delay_s=0.05)
    worker.put(1)
    services.wait_until(lambda: got == [[1]], 60, "the batch")
    worker.start_shutdown()
    assert worker.finish_shutdown(60)


def test_shutdown_exports_the_rest():
    got = []
    worker, drops = build_worker(lambda batch: got.extend(batch) or True)
    for number in range(13):
        worker.put(number)
    worker.start_shutdown()
    assert worker.finish_shutdown(60)
    assert got == list(range(13))
    assert not drops


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_batch_that_ends_its_thread_is_counted_and_the_next_one_starts_another():
    calls = []

    def export(batch):
        calls.append(list(batch))
        if len(calls) == 1:
            raise SystemExit
        return True

    worker, drops = build_worker(export)
    for number in range(10):
        worker.put(number)
    services.wait_until(lambda: drops, 60, "the count")
    assert drops == [(10, "export_failed")]
    services.wait_until(lambda: worker._thread is None, 60, "the end of the thread")
    worker.put(10)
    assert worker.flush(60)
    assert calls[1:] == [[10]]


def test_every_item_is_exported_or_counted_when_many_threads_put_while_the_worker_shuts_down():
    for _ in range(20):
        exported = []
        worker, drops = build_worker(lambda batch, exported=exported: exported.extend(batch) or True, queue_size=50)
        begin = threading.Barrier(5)

        def put(worker=worker, begin=begin):
            begin.wait()
            for number in range(200):
                worker.put(number)

        threads = [threading.Thread(target=put) for _ in range(4)]
        for thread in threads:
            thread.start()
        begin.wait()
        time.sleep(0.001)
        worker.start_shutdown()
        worker.finish_shutdown(60)
        for thread in threads:
            thread.join()
        assert len(exported) + sum(count for count, _ in drops) == 800


def test_a_process_with_many_spans_loses_none(receiver):
    """As long as the queue has room: how fast spans may come depends on the machine, and on what else it does."""
    code = """
    import sys, time
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from django_otel.export import building, exporters, shutdown
    from django_otel.redaction import span_cleaner
    from django_otel.config.parse import parse
    from django_otel.redaction.scrub import Scrubber
    drops = []
    config = parse({"TRACES": {"EXPORTERS": ["otlp"], "ENDPOINT": sys.argv[1]}}, {})
    processors = building.build_span_processors(
        config, span_cleaner.SpanCleaner(Scrubber()), lambda *drop: drops.append(drop), lambda *_: None)
    provider = TracerProvider(resource=Resource({}), shutdown_on_exit=False)
    provider.add_span_processor(processors[0])
    tracer = provider.get_tracer("shop")
    for number in range(20_000):
        tracer.start_span("GET /orders/", attributes={"n": number, "http.route": "/orders/"}).end()
        while len(processors[0].worker._queue) > 1024:
            time.sleep(0.004)
    assert shutdown.shut_down(processors, 60)
    assert not drops, drops
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), f"{receiver.url}/v1/traces"], cwd=services.ROOT,
                          env=services.server_env(), capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    numbers = sorted(services.attributes_of(span)["n"] for _, span in receiver.spans())
    assert numbers == list(range(20_000))
    # Whole batches, but for the last.
    assert len(receiver.requests) <= 20_000 // 512 + 5


def test_the_exporters_own_log_lines_are_not_lost(receiver, build, caplog):
    receiver.status = 400
    caplog.set_level(logging.ERROR)
    pipeline = build(http(receiver))
    pipeline.finish("a")
    assert pipeline.flush()
    assert "Failed to export span" in caplog.text
