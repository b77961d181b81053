"""Our own spans and the SDK's: the same scenario over both, compared whole.

The fast path is `tracing.spans`; the plain API path is the SDK's own tracer, which
takes over when a processor has the SDK's private hook `_on_ending`: here one
that does nothing in it. Whatever differs is a fault of ours.
"""

from __future__ import annotations

import asyncio
import copy
import io
import itertools
import json
import logging
import pickle
import random
import threading
import time
from types import SimpleNamespace

import pytest
from django.db import connection
from django.template import Context as TemplateContext
from django.template import Template
from django.test import AsyncClient, Client, override_settings
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

import django_otel
from django_otel import runtime
from django_otel.base import sdk_compat
from django_otel.sampling.policy import Policy
from django_otel.sampling.sampler import LiveSampler, untraced
from django_otel.tracing.ids import OwnRandomIdGenerator
from django_otel.tracing.provider import OwnTracerProvider
from django_otel.tracing.spans import DroppedSpan, RecordedSpan
from django_otel.tracing.tracer import Tracer
from tests import sizes
from tests.business_app.models import Order
from tests.business_app.support import registered_fixture  # noqa: F401 (a fixture)

FAST, PLAIN = "fast", "plain"
REMOTE = SpanContext(
    0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, True, TraceFlags(1), TraceState([("vendor", "a")])
)
UNSAMPLED_REMOTE = SpanContext(REMOTE.trace_id, REMOTE.span_id, True, TraceFlags(0), TraceState([("vendor", "b")]))


class Ending(SpanProcessor):
    """A processor with the private hook: reason enough for the SDK's own spans."""

    def __init__(self):
        self.seen = []

    def _on_ending(self, span):
        self.seen.append(span)


class Recorder(SpanProcessor):
    """What a processor written for the SDK sees."""

    def __init__(self):
        self.started = []
        self.ended = []

    def on_start(self, span, parent_context=None):
        span.set_attribute("processor.saw", span.name)
        self.started.append(
            (
                span.name,
                dict(span.attributes),
                span.kind,
                span.parent and span.parent.span_id,
                span.context.span_id,
                span.get_span_context() is span.context,
                span.instrumentation_scope.name,
                span.resource.attributes["service.name"],
                span.start_time is not None,
                span.end_time,
                span.is_recording(),
                [link.context.span_id for link in span.links],
                isinstance(span, SdkSpan),
                trace.get_current_span(parent_context).get_span_context().span_id,
            )
        )

    def on_end(self, span):
        self.ended.append(span)


def build_provider(kind: str, *, ratio=1.0, limits=None, processors=()):
    sampler = LiveSampler(Policy(ratio, "settings"))
    ids = OwnRandomIdGenerator()
    # The same ids for both, so that nothing needs to be left out of the comparison.
    ids.bits = random.Random(7).getrandbits
    limits = limits or SpanLimits(max_attributes=128, max_events=128, max_links=128, max_attribute_length=100)
    provider = OwnTracerProvider(sampler, Resource({"service.name": "shop", "n": 1}), ids, limits)
    for processor in processors:
        provider.add_span_processor(processor)
    if kind == PLAIN:
        provider.add_span_processor(Ending())
    return provider


def run_on(kind: str, scenario, **arguments):
    """What the scenario left behind: each finished span as JSON and the parts that JSON leaves out."""
    recorder = Recorder()
    provider = build_provider(kind, processors=[recorder], **arguments)
    tracer = provider.get_tracer("scope", "1.2", "https://schema.example", {"scope.key": "v"})
    assert tracer.is_sdk_path == (kind == PLAIN)
    returned = scenario(tracer)
    return {"returned": returned, "started": recorder.started, "ended": [whole(span) for span in recorder.ended]}


def whole(span: ReadableSpan) -> dict:
    assert type(span) is ReadableSpan
    scope = span.instrumentation_scope
    return {
        "json": to_json(span),
        "attributes": list(span.attributes.items()),
        "dropped": (span.dropped_attributes, span.dropped_events, span.dropped_links),
        "events": [
            (event.name, event.timestamp, list((event.attributes or {}).items()), event.dropped_attributes)
            for event in span.events
        ],
        "links": [
            (tuple(link.context), list((link.attributes or {}).items()), link.dropped_attributes) for link in span.links
        ],
        "context": tuple(span.context),
        "flags": (int(span.context.trace_flags), span.context.trace_state.to_header()),
        "parent": span.parent and tuple(span.parent),
        "status": (span.status.status_code, span.status.description),
        "times": (span.start_time, span.end_time),
        "scope": (scope.name, scope.version, scope.schema_url, dict(scope.attributes or {})),
        "info": span._instrumentation_info,
        "resource": span.resource,
    }


def to_json(span):
    try:
        return json.loads(span.to_json())
    except TypeError:
        # The SDK cannot write bytes as JSON.
        return {}


def assert_equal(scenario, **arguments):
    fast, plain = run_on(FAST, scenario, **arguments), run_on(PLAIN, scenario, **arguments)
    assert fast == plain
    return fast


# --- One span, every method. ---


class Loud:
    def __str__(self):
        return "loud"


ODD_VALUES = [
    "text", "x" * 200, "", 1, 2**80, -1, 1.5, float("inf"), True, None, b"bytes", ["a", "b"], [1, 2], [1, "a"], ("a",),
    [True, False], [], {"a": 1}, {"": 2}, Loud(), object, {"x": ["y" * 300]}, ["z" * 300], StatusCode.OK,
]  # fmt: skip


def test_every_kind_of_value_is_cleaned_alike():
    """At the start, one by one and many at once; values, order and the count of what was dropped."""

    def scenario(tracer):
        for value in ODD_VALUES:
            with tracer.start_as_current_span("at start", attributes={"a": 1, "key": value, "b": "c"}, start_time=1):
                pass
            span = tracer.start_span("one", start_time=2)
            span.set_attribute("key", value)
            span.set_attributes({"one": "1", "key2": value, "three": 3.0})
            span.end(3)

    def fix_times(tracer):
        scenario(_Timed(tracer))

    assert len(assert_equal(fix_times)["ended"]) == 2 * len(ODD_VALUES)


class _Timed:
    """A tracer whose spans of `start_as_current_span` end at a known time."""

    def __init__(self, tracer):
        self._tracer = tracer

    def start_span(self, *args, **kwargs):
        return self._tracer.start_span(*args, **kwargs)

    def start_as_current_span(self, name, **kwargs):
        tracer = self._tracer

        class Scope:
            def __enter__(self):
                self.manager = tracer.start_as_current_span(name, end_on_exit=False, **kwargs)
                self.span = self.manager.__enter__()
                return self.span

            def __exit__(self, *error):
                try:
                    return self.manager.__exit__(*error)
                finally:
                    self.span.end(9)

        return Scope()


@pytest.mark.parametrize("key", ["", 1, None, ("a",), b"a", "ok"])
def test_odd_keys_are_treated_alike(key):
    """One by one they are dropped, many at once made text or left out: as in the SDK."""

    def scenario(tracer):
        span = tracer.start_span("s", attributes={"a": 1, key: "v"}, start_time=1)
        span.set_attribute(key, "w")
        span.set_attributes({key: 5, "b": 2})
        span.add_event("e", {key: 1}, 2)
        span.end(3)

    assert_equal(scenario)


def test_attributes_beyond_the_limit_push_the_oldest_out():
    """At the start, later, and set again, with the count of those that went."""

    def scenario(tracer):
        span = tracer.start_span("s", attributes={f"k{n}": n for n in range(7)}, start_time=1)
        span.set_attribute("k6", "again")
        span.set_attributes({"k4": "again", "new": 1})
        for number in range(5):
            span.set_attribute(f"late {number}", number)
        span.end(2)

    limits = SpanLimits(max_attributes=4, max_span_attributes=4, max_events=4, max_links=4)
    found = assert_equal(scenario, limits=limits)
    assert found["ended"][0]["dropped"][0] > 0


@pytest.mark.parametrize("most", [0, 1, 2])
def test_limits_of_events_links_and_their_attributes_hold(most):
    """The newest are kept; what was dropped is counted; also a limit of nothing."""

    def scenario(tracer):
        links = [Link(REMOTE, {"a": 1, "b": 2, "c": "x" * 300}), Link(trace.INVALID_SPAN_CONTEXT)] * 3
        span = tracer.start_span("s", links=links, attributes={"a": 1, "b": 2, "c": 3}, start_time=1)
        span.set_attribute("d", 1)
        for number in range(4):
            span.add_event(f"e{number}", {"a": 1, "b": "x" * 300, "c": [1, 2]}, timestamp=number)
            span.add_link(REMOTE, {"n": number, "m": 1})
            span.add_link(trace.INVALID_SPAN_CONTEXT)
            span.add_link(trace.INVALID_SPAN_CONTEXT, {"n": 1})
        span.end(2)

    limits = SpanLimits(
        max_attributes=most, max_span_attributes=most, max_events=most, max_links=most, max_event_attributes=most,
        max_link_attributes=most, max_attribute_length=10, max_span_attribute_length=10,
    )  # fmt: skip
    assert_equal(scenario, limits=limits)


def test_status_name_and_the_end_follow_the_same_rules(caplog):
    """OK stays, UNSET never comes back, nothing counts after the end; the same warnings in the same words."""

    def scenario(tracer):
        caplog.clear()
        for first, second in itertools.product(
            [StatusCode.OK, StatusCode.ERROR, StatusCode.UNSET, Status(StatusCode.OK), Status(StatusCode.ERROR, "bad")],
            repeat=2,
        ):
            span = tracer.start_span("s", start_time=1)
            span.set_status(first, "first")
            span.set_status(second)
            span.update_name("renamed")
            span.end(2)
            assert not span.is_recording()
            span.end(3)
            span.set_attribute("late", 1)
            span.set_attributes({"late": 1})
            span.add_event("late")
            span.add_link(REMOTE)
            span.update_name("late")
            span.set_status(StatusCode.ERROR)
            span.record_exception(ValueError("late"))
            span.start()
        return [(r.name, r.levelname, r.getMessage()) for r in caplog.records if r.name == "opentelemetry.sdk.trace"]

    with caplog.at_level(logging.WARNING):
        found = assert_equal(scenario)
    assert any("Calling end() on an ended span." in message for _, _, message in found["returned"])


def boom():
    raise ValueError("boom")


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("set_status", [True, False])
@pytest.mark.parametrize("error", [None, ValueError("v"), KeyError("k"), asyncio.CancelledError(), GeneratorExit()])
def test_exceptions_on_the_way_out_are_recorded_alike(record, set_status, error):
    """As a context manager of its own, through start_as_current_span, and by hand."""

    def scenario(tracer):
        arguments = {"record_exception": record, "set_status_on_exception": set_status, "start_time": 1}
        for make in (tracer.start_span, tracer.start_as_current_span):
            try:
                with make("s", **arguments):
                    if error is not None:
                        raise error
            except BaseException as raised:
                assert raised is error
        with tracer.start_as_current_span("by hand", start_time=1) as span:
            try:
                boom()
            except ValueError as raised:
                span.record_exception(raised, {"more": 1}, 5, escaped=True)
        assert trace.get_current_span() is trace.INVALID_SPAN

    fast, plain = without_times(run_on(FAST, scenario)), without_times(run_on(PLAIN, scenario))
    assert fast == plain


def without_times(found):
    """Ends and events that took the clock's time; of stacks the beginning, since ours have a limit of their own."""

    def begin(name, value):
        return value[:100] if name == "exception.stacktrace" else value

    for span in found["ended"]:
        span["times"] = span["times"][0]
        span["json"].pop("end_time")
        for event in span["json"]["events"]:
            event.pop("timestamp")
            event["attributes"] = {name: begin(name, value) for name, value in event["attributes"].items()}
        span["events"] = [
            (event, [(name, begin(name, value)) for name, value in items], dropped)
            for event, _, items, dropped in span["events"]
        ]
    return found


# --- Parents and decisions. ---


@pytest.mark.parametrize("ratio", [0.0, 1.0])
@pytest.mark.parametrize(
    "parent",
    [
        None,
        NonRecordingSpan(REMOTE),
        NonRecordingSpan(UNSAMPLED_REMOTE),
        trace.INVALID_SPAN,
        NonRecordingSpan(SpanContext(5, 6, False, TraceFlags(3), TraceState([("k", "v")]))),
        "no span at all",
    ],
    ids=["root", "remote sampled", "remote unsampled", "invalid", "other local", "nonsense"],
)
def test_parents_are_followed_alike(ratio, parent):
    """Trace id, flags, state and parent of a span, its child and its grandchild, recorded or not."""

    def scenario(tracer):
        context = (
            Context() if parent is None else otel_context.set_value(trace.propagation._SPAN_KEY, parent, Context())
        )
        first = tracer.start_span("first", context, SpanKind.SERVER, {"a": 1}, [Link(REMOTE)], 1)
        second = tracer.start_span("second", trace.set_span_in_context(first, context), start_time=2)
        third = tracer.start_span("third", trace.set_span_in_context(second, context), start_time=3)
        fourth = tracer.start_span("fourth", trace.set_span_in_context(third, untraced(context)), start_time=4)
        answers = []
        for span in (first, second, third, fourth):
            found = span.get_span_context()
            assert found is span.get_span_context()
            assert found.is_valid
            assert not found.is_remote
            answers.append((span.is_recording(), int(found.trace_flags), found.trace_state.to_header()))
        for span in (fourth, third, second, first):
            span.end(9)
        contexts = [span.get_span_context() for span in (first, second, third, fourth)]
        # The ids of what is dropped are drawn later: the same trace, but other numbers.
        return answers, len({c.trace_id for c in contexts}), len({c.span_id for c in contexts})

    assert_equal(scenario, ratio=ratio)


def test_a_dropped_trace_id_is_one_that_would_be_dropped():
    """The part of the id that was decided by is the one that is told, also when it is drawn late."""
    provider = build_provider(FAST, ratio=0.5)
    tracer = provider.get_tracer("scope")
    kinds = set()
    for _ in range(200):
        span = tracer.start_span("s", Context())
        kinds.add(type(span))
        assert provider.sampler.decide(span.get_span_context().trace_id) == span.is_recording()
    assert kinds == {RecordedSpan, DroppedSpan}


def test_two_threads_that_ask_a_dropped_span_see_the_same_ids():
    """Its ids are drawn when they are first read, and kept."""
    tracer = build_provider(FAST, ratio=0.0).get_tracer("scope")
    for _ in range(50):
        span = tracer.start_span("s", Context())
        child = tracer.start_span("c", trace.set_span_in_context(span, Context()))
        barrier, seen = threading.Barrier(4), []

        def ask(barrier=barrier, seen=seen, child=child, span=span):
            barrier.wait()
            seen.append((child.get_span_context(), span.get_span_context()))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(found == seen[0] for found in seen)
        assert seen[0][0].trace_id == seen[0][1].trace_id


def test_the_budget_of_a_trace_is_asked_for_each_further_span():
    """Above it spans are dropped, whatever their parents are."""

    def scenario(tracer):
        taken = itertools.count()
        tracer.sampler.budget = lambda trace_id: next(taken) < 2
        with tracer.start_as_current_span("root"):
            return [tracer.start_span(str(n)).is_recording() for n in range(4)]

    assert without_times(run_on(FAST, scenario))["returned"] == [True, True, False, False]
    assert without_times(run_on(PLAIN, scenario))["returned"] == [True, True, False, False]


def test_a_span_can_be_recorded_without_being_sampled():
    """What a sampler answers with RECORD_ONLY reaches processors, and exporters not; its children do the same."""

    def scenario(tracer):
        with tracer.start_as_current_span("root") as root, tracer.start_as_current_span("child") as child:
            return [(s.is_recording(), s.get_span_context().trace_flags.sampled) for s in (root, child)]

    for kind in (FAST, PLAIN):
        memory, recorder = InMemorySpanExporter(), Recorder()
        provider = build_provider(kind, processors=[recorder, SimpleSpanProcessor(memory)])
        provider.sampler.rebase(Policy(0.0, "settings", keep_errors=True))
        assert scenario(provider.get_tracer("scope")) == [(True, False), (True, False)]
        assert [span.name for span in recorder.ended] == ["child", "root"]
        assert memory.get_finished_spans() == ()


# --- Random lives of a span. ---

_texts = st.text(max_size=12)
_values = st.one_of(
    _texts, st.integers(), st.floats(allow_nan=False), st.booleans(), st.none(), st.lists(_texts, max_size=3),
    st.lists(st.integers(), max_size=3), st.binary(max_size=3), st.dictionaries(_texts, st.integers(), max_size=2),
)  # fmt: skip
_maps = st.dictionaries(_texts, _values, max_size=5)
_times = st.integers(1, 1000)
_operations = st.one_of(
    st.tuples(st.just("set_attribute"), _texts, _values),
    st.tuples(st.just("set_attributes"), _maps),
    st.tuples(st.just("add_event"), _texts, _maps, _times),
    st.tuples(st.just("add_link"), st.sampled_from([REMOTE, trace.INVALID_SPAN_CONTEXT]), _maps),
    st.tuples(st.just("update_name"), _texts),
    st.tuples(st.just("set_status"), st.sampled_from(list(StatusCode)), st.none() | _texts),
    st.tuples(st.just("set_status"), st.builds(Status, st.sampled_from(list(StatusCode)))),
    st.tuples(st.just("end"), _times),
)
_limits = st.builds(
    SpanLimits,
    max_attributes=st.integers(0, 4), max_span_attributes=st.integers(0, 4), max_events=st.integers(0, 2),
    max_links=st.integers(0, 2), max_event_attributes=st.integers(0, 2), max_link_attributes=st.integers(0, 2),
    max_attribute_length=st.integers(0, 8), max_span_attribute_length=st.integers(0, 8),
)  # fmt: skip


@settings(max_examples=sizes.examples(300), deadline=None)
@given(start=_maps, operations=st.lists(_operations, max_size=8), limits=_limits)
def test_any_life_of_a_span_ends_alike(start, operations, limits):
    """Random calls with random values under random limits."""

    def scenario(tracer):
        span = tracer.start_span("name", Context(), SpanKind.CLIENT, copy.deepcopy(start), start_time=1)
        for name, *arguments in operations:
            getattr(span, name)(*arguments)
        span.end(1001)
        return span.attributes, span.name, span.status.status_code, span.end_time, span.dropped_attributes

    logging.disable(logging.WARNING)
    try:
        assert_equal(scenario, limits=copy.deepcopy(limits))
    finally:
        logging.disable(logging.NOTSET)


# --- Processors, exporters and others that were written for the SDK. ---


def test_the_live_span_has_whatever_the_sdks_has():
    """Every public name of the SDK's span, and what it gives."""
    answers = []
    for kind in (FAST, PLAIN):
        tracer = build_provider(kind).get_tracer("scope", "1")
        span = tracer.start_span("s", Context(), SpanKind.CLIENT, {"a": 1}, [Link(REMOTE, {"b": 2})], 5)
        span.add_event("e", {"c": 3}, 6)
        names = {name for name in dir(SdkSpan) if not name.startswith("_")} - {"instrumentation_info"}
        values = {name: getattr(span, name) for name in names}
        found = {
            name: str(value)
            for name, value in values.items()
            if not callable(value) and name not in ("events", "links", "resource", "status")
        }
        found["json"] = span.to_json()
        found["status"] = (values["status"].status_code, values["status"].description)
        found["resource"] = values["resource"]
        found["events"] = [(e.name, dict(e.attributes)) for e in values["events"]]
        found["links"] = [(tuple(link.context), dict(link.attributes)) for link in values["links"]]
        assert isinstance(span, trace.Span)
        assert isinstance(span, ReadableSpan)
        with pytest.raises(TypeError):
            span.attributes["a"] = 2
        answers.append(found)
    assert answers[0] == answers[1]


def test_the_finished_span_stays_as_it_was_at_its_end():
    """Nothing that happens to the live one afterwards reaches what an exporter holds; it can be copied."""
    recorder = Recorder()
    span = build_provider(FAST, processors=[recorder]).get_tracer("scope").start_span("s", attributes={"a": [1, 2]})
    span.end()
    before = whole(recorder.ended[0])
    span.set_attribute("late", 1)
    span.update_name("late")
    assert whole(recorder.ended[0]) == before
    assert copy.copy(recorder.ended[0]).name == "s"
    assert pickle.loads(pickle.dumps(dict(recorder.ended[0].attributes))) == {"a": (1, 2), "processor.saw": "s"}


def test_exporters_of_the_sdk_take_our_spans(receiver):
    """The console's JSON, the memory exporter, and the stock OTLP exporter to a real receiver."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    memory, console = InMemorySpanExporter(), io.StringIO()
    otlp = OTLPSpanExporter(endpoint=f"{receiver.url}/v1/traces")
    processors = [SimpleSpanProcessor(exporter) for exporter in (memory, otlp, ConsoleSpanExporter(out=console))]
    tracer = build_provider(FAST, processors=processors).get_tracer("scope", "1")
    with tracer.start_as_current_span("parent", kind=SpanKind.SERVER) as parent:
        parent.add_event("event", {"n": 1})
        with tracer.start_as_current_span("child", links=[Link(REMOTE)]):
            pass
    assert [span.name for span in memory.get_finished_spans()] == ["child", "parent"]
    assert [span.name for _, span in receiver.spans()] == ["child", "parent"]
    assert '"name": "parent"' in console.getvalue()


def test_a_processor_that_comes_later_sees_the_spans_after_it():
    """Also one that overrides the private hook: from then on the SDK makes the spans."""
    provider = build_provider(FAST)
    tracer = provider.get_tracer("scope")
    assert type(tracer.start_span("s")) is RecordedSpan
    recorder, ending = Recorder(), Ending()
    provider.add_span_processor(recorder)
    tracer.start_span("seen").end()
    provider.add_span_processor(ending)
    span = tracer.start_span("by the SDK")
    assert type(span) is not RecordedSpan
    span.end()
    assert [s.name for s in recorder.ended] == ["seen", "by the SDK"]
    assert ending.seen == [span]


def test_a_projects_processor_with_the_private_hook_is_told_through_ours(monkeypatch):
    """Behind the one that scrubs, and the one that switches."""
    from django_otel.export.processors import CleanProcessor

    ending = Ending()
    with parts(monkeypatch, CleanProcessor(ending, lambda span: span)):
        with django_otel.span("seen") as span:
            assert type(span) is not RecordedSpan
    assert [s.name for s in ending.seen] == ["seen"]
    with django_otel.span("ours") as span:
        assert type(span) is RecordedSpan


class parts:  # noqa: N801
    """Further processors behind our provider, for a while."""

    def __init__(self, monkeypatch, *more):
        self.more = more

    def __enter__(self):
        self.before = runtime.current().traces.switch.parts
        runtime.current().traces.switch.parts = (*self.before, *self.more)

    def __exit__(self, *error):
        runtime.current().traces.switch.parts = self.before


def test_what_the_sdk_measures_or_switches_itself_it_does_itself(monkeypatch):
    """Its internal metrics, a tracer that is switched off, a sampler that other code put in."""
    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    assert type(build_provider(FAST).get_tracer("scope")) is SdkTracer
    monkeypatch.delenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED")
    provider = build_provider(FAST)
    tracer = provider.get_tracer("scope")
    assert isinstance(tracer, Tracer)
    provider._set_tracer_configurator(tracer_configurator=lambda scope: SimpleNamespace(is_enabled=False))
    assert not tracer.start_span("s").is_recording()
    other = build_provider(FAST)
    other.sampler = LiveSampler(Policy(0.0))
    assert type(other.get_tracer("scope")) is SdkTracer


def test_an_sdk_whose_span_has_new_names_makes_its_own_spans(monkeypatch):
    """A version that we do not know gets no span that lacks something."""
    monkeypatch.setattr(SdkSpan, "set_colour", lambda self, colour: None, raising=False)
    assert sdk_compat.find_unknown_names(RecordedSpan) == ["set_colour"]
    assert build_provider(FAST).get_tracer("scope").is_sdk_path


def test_the_sdk_in_use_is_one_that_we_know():
    """Else everything is right and slow, unnoticed."""
    assert sdk_compat.find_unknown_names(RecordedSpan) == []
    assert sdk_compat._IS_CONTEXT_KNOWN
    assert sdk_compat.attach is not otel_context.attach


def test_instrumentors_get_our_tracer_from_the_global_provider():
    """All code that uses the API while our provider is the global one."""
    assert isinstance(trace.get_tracer("an.instrumentor"), trace.Tracer)
    tracer = runtime.current().tracer_provider.get_tracer("an.instrumentor")
    assert isinstance(tracer, Tracer)
    assert tracer.instrumentation_info.name == "an.instrumentor"
    assert isinstance(tracer.start_span("s"), RecordedSpan)

    @tracer.start_as_current_span("decorated")
    async def work():
        return trace.get_current_span()

    assert isinstance(asyncio.run(work()), RecordedSpan)


def test_threads_that_share_a_span_lose_nothing():
    """Attributes, events and the end, from eight threads at once."""
    recorder = Recorder()
    span = build_provider(FAST, processors=[recorder]).get_tracer("scope").start_span("s")
    barrier = threading.Barrier(8)

    def work(number):
        barrier.wait()
        for count in range(12):
            span.set_attribute(f"{number}.{count}", count)
            span.set_attributes({f"{number}.{count}.b": "x"})
            span.add_event(f"{number}.{count}")
        barrier.wait()
        span.end()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (ended,) = recorder.ended
    assert len(ended.attributes) + ended.dropped_attributes == 1 + 8 * 24
    assert len(ended.events) == 96


# --- The whole app. ---


class Clock:
    """Three milliseconds later each time it is asked."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        self.now_s += 0.003
        return self.now_s


def whole_app(client):
    """Requests, queries, spans, template tags, business events and errors."""
    get = client.get
    for path in ("/hello/", "/json/", "/orders/7/", "/articles/2024/page-2/", "/nothing/", "/boom/", "/forbidden/",
                 "/missing/", "/queries/", "/nested/deep/a-b/", "/metrics"):  # fmt: skip
        get(path, headers={"user-agent": "test", "host": "localhost:81"} if path != "/metrics" else {})
    client.post("/echo/", b"body", content_type="text/plain")
    client.generic("BREW", "/hello/")
    for flag in ("00", "01"):
        get(
            "/queries/",
            headers={"traceparent": f"00-{REMOTE.trace_id:032x}-{REMOTE.span_id:016x}-{flag}", "tracestate": "a=b"},
        )
    b"".join(get("/stream/").streaming_content)
    with django_otel.span("shopping", items=3, note=None, total=Loud()):
        django_otel.event("looked", at="shoes")
        django_otel.set_attributes(colour="red")
        Order.objects.create(number=len(Order.objects.all()) + 100).delete()
        with connection.cursor() as cursor, django_otel.timed("raw.sql", kind="bad"):
            try:
                cursor.execute("SELECT * FROM nowhere WHERE secret = 'hunter2'")
            except Exception:
                pass
            cursor.executemany("UPDATE business_app_order SET number = number WHERE id = %s", [[1], [2]])
        Template('{% load otel %}{% otel_span "page" n=1 %}{% otel_event "e" k=2 %}{% endotel_span %}').render(
            TemplateContext({})
        )
    try:
        with django_otel.span("fails"):
            boom()
    except ValueError:
        pass


def describe(spans):
    """The spans without ids and times, with their parents and the traces they share."""
    by_id = {span.context.span_id: span for span in spans}
    traces = {}
    described = []
    for span in spans:
        assert 0 < span.start_time <= span.end_time
        parent = span.parent and by_id.get(span.parent.span_id)
        described.append(
            {
                "name": span.name,
                "kind": span.kind,
                "parent": parent.name if parent else span.parent and (span.parent.span_id, span.parent.is_remote),
                "trace": traces.setdefault(span.context.trace_id, len(traces)),
                "flags": int(span.context.trace_flags),
                "state": span.context.trace_state.to_header(),
                "attributes": [(k, v) for k, v in span.attributes.items() if k not in VARYING],
                "dropped": (span.dropped_attributes, span.dropped_events, span.dropped_links),
                "events": [
                    (e.name, [(k, v) for k, v in e.attributes.items() if k != "exception.stacktrace"])
                    for e in span.events
                ],
                "stacks": [
                    "Traceback" in e.attributes["exception.stacktrace"] for e in span.events if e.name == "exception"
                ],
                "links": [tuple(link.context) for link in span.links],
                "status": (span.status.status_code, span.status.description),
                "scope": (span.instrumentation_scope.name, span.instrumentation_scope.version),
                "resource": span.resource.attributes["service.name"],
            }
        )
    return described


#: Numbers that the database gives out.
VARYING = {"business.id", "django.model.pk"}


@pytest.fixture
def both_ways(monkeypatch, settings, otel_spans, db):
    """Runs a scenario over both paths, each from the same start; spans and what was counted."""

    def run(scenario):
        found = {}
        for kind in (FAST, PLAIN):
            clock = Clock()
            for module in (
                "requests.observer", "requests.finish", "requests.layers", "instrumentation.view_times",
                "instrumentation.database", "instrumentation.driver_calls", "instrumentation.connections",
                "instrumentation.transactions",
                "instrumentation.templates", "instrumentation.cache",
            ):  # fmt: skip
                monkeypatch.setattr(f"django_otel.{module}.perf_counter", clock)
            otel_spans.clear()
            runtime.store.clear()
            with parts(monkeypatch, *([Ending()] if kind == PLAIN else [])):
                assert runtime.tracer().is_sdk_path == (kind == PLAIN)
                scenario()
            found[kind] = (describe(list(otel_spans)), describe_numbers())
        return found[FAST], found[PLAIN]

    return run


def describe_numbers():
    numbers = {}
    for family in runtime.store.collect(observed=False):
        if family.name == "raw.sql":
            # By the real clock.
            assert [point.value.count for point in family.points] == [1]
            continue
        if family.name.startswith("cpython."):
            # When the garbage collector comes is nothing that requests decide.
            continue
        if family.name == "django_otel.workers.web":
            # Counted with the first request of the process.
            continue
        for point in family.points:
            value = point.value
            numbers[family.name, point.attributes] = (
                (tuple(value.bounds), tuple(value.buckets), round(value.sum, 6)) if hasattr(value, "bounds") else value
            )
    return numbers


@pytest.fixture
def events(registered):
    """Orders make business events."""
    registered(Order, created="order.placed", attributes=("number",))


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_the_whole_app_tells_the_same_over_both_paths(both_ways, events, ratio):
    """Every span, its place in its trace, and every point and bucket of every metric."""
    from django_otel.testing import override_sampling

    def scenario():
        with override_sampling(ratio):
            whole_app(Client(raise_request_exception=False))

    with override_settings(
        OTEL={"SERVICE_NAME": "shop", "TRACES": {"LIMITS": {"ATTRIBUTES": 12, "ATTRIBUTE_LENGTH": 60}}}
    ):
        fast, plain = both_ways(scenario)
    assert fast[0] == plain[0]
    assert fast[1] == plain[1]
    # The remote parent's flag records one request with its queries also at ratio 0.
    assert len(fast[0]) > (30 if ratio else 2)
    assert len(fast[1]) > 20


def test_asynchronous_requests_tell_the_same_over_both_paths(both_ways):
    """Views, errors and a stream under ASGI."""

    async def visit():
        client = AsyncClient(raise_request_exception=False)
        for path in ("/async/", "/async-boom/", "/nothing/", "/hello/"):
            await client.get(path)
        response = await client.get("/async-stream/")
        async for _ in response.streaming_content:
            pass

    fast, plain = both_ways(lambda: asyncio.run(visit()))
    assert fast[0] == plain[0]
    assert fast[1] == plain[1]
    assert len(fast[0]) >= 9


def test_a_foreign_provider_makes_every_span_itself(monkeypatch):
    """The plain API path: nothing of ours is asked of a provider that another tool installed."""
    recorder = Recorder()
    provider = TracerProvider(resource=Resource({"service.name": "theirs"}), shutdown_on_exit=False)
    provider.add_span_processor(recorder)
    monkeypatch.setattr(runtime.current().traces, "tracer", provider.get_tracer("theirs"))
    # As whenever the tracer changes; and once more when this is undone.
    monkeypatch.setattr(runtime.current(), "generation", runtime.current().generation + 1)
    Client().get("/orders/1/")
    assert [span.name for span in recorder.ended] == ["order.load", "GET /orders/<int:pk>/"]
    assert {type(span) for span in recorder.ended} == {ReadableSpan}


def test_times_of_our_spans_are_the_clocks():
    """Nanoseconds since the epoch, at the start and at the end."""
    recorder = Recorder()
    before = time.time_ns()
    build_provider(FAST, processors=[recorder]).get_tracer("scope").start_span("s").end()
    (span,) = recorder.ended
    assert before <= span.start_time <= span.end_time <= time.time_ns()
