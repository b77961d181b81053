"""The live sampler: right shares, the SDK's own answers, and changes that reach tracers already made."""

from __future__ import annotations

import math
import random
import threading
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from django_otel.sampling import sampler
from django_otel.sampling.policy import Policy
from django_otel.sampling.sampler import LiveSampler
from tests import sizes

ratios = st.floats(min_value=0.0, max_value=1.0, allow_nan=False)
trace_ids = st.integers(min_value=1, max_value=(1 << 128) - 1)
trace_states = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True), st.from_regex(r"[a-z0-9]{1,12}", fullmatch=True), max_size=3
)


@st.composite
def parent_contexts(draw):
    """No context, one without a span, or one with a local, remote, sampled, unsampled or invalid parent."""
    if draw(st.booleans()):
        return draw(st.sampled_from([None, otel_context.Context()]))
    parent = SpanContext(
        trace_id=draw(st.one_of(st.just(0), trace_ids)),
        span_id=draw(st.integers(min_value=0, max_value=(1 << 64) - 1)),
        is_remote=draw(st.booleans()),
        trace_flags=TraceFlags(draw(st.integers(min_value=0, max_value=255))),
        trace_state=TraceState(list(draw(trace_states).items())),
    )
    return trace.set_span_in_context(NonRecordingSpan(parent), otel_context.Context())


def _sampled(sampler, trace_id):
    return sampler.should_sample(None, trace_id, "GET /").decision is Decision.RECORD_AND_SAMPLE


@settings(max_examples=sizes.examples(500), deadline=None)
@given(ratio=ratios, trace_id=trace_ids, context=parent_contexts(), attributes=st.none() | st.just({"url.path": "/"}))
@example(ratio=1.0, trace_id=(1 << 128) - 1, context=None, attributes=None)
@example(ratio=0.0, trace_id=1 << 64, context=None, attributes=None)
def test_every_answer_is_that_of_the_sdk(ratio, trace_id, context, attributes):
    """ParentBased(TraceIdRatioBased) of the SDK gives the same decision, attributes and trace state."""
    ours = LiveSampler(Policy(ratio)).should_sample(context, trace_id, "GET /", attributes=attributes)
    theirs = ParentBased(TraceIdRatioBased(ratio)).should_sample(context, trace_id, "GET /", attributes=attributes)

    assert ours.decision is theirs.decision
    # Ours say besides why and with which probability a trace that begins here was recorded.
    said = {key: value for key, value in ours.attributes.items() if not key.startswith("sampling.")}
    assert said == dict(theirs.attributes)
    # An empty trace state and none are the same to the span that is made. Of a trace that begins here ours names the
    # probability besides (test_tracestate.py).
    has_parent = trace.get_current_span(context).get_span_context().is_valid
    state = dict(ours.trace_state or {})
    if not has_parent:
        state.pop("ot", None)
    assert state == dict(theirs.trace_state or {})


@settings(max_examples=sizes.examples(300), deadline=None)
@given(ratio=ratios, trace_id=trace_ids)
def test_the_fast_path_agrees_with_the_sampler_interface(ratio, trace_id):
    """decide() is should_sample() of a trace that begins here."""
    sampler = LiveSampler(Policy(ratio))

    assert sampler.decide(trace_id) is _sampled(sampler, trace_id)


@pytest.mark.parametrize("ratio", [0.001, 0.1, 0.25, 0.5, 0.9])
def test_the_share_over_100000_ids_is_within_the_binomial_bound(ratio):
    """Five standard deviations of a binomial distribution: a right sampler fails once in 1.7 million runs."""
    sampler = LiveSampler(Policy(ratio))
    draw = random.Random(20_260_101).getrandbits
    trials = 100_000

    recorded = sum(sampler.decide(draw(128)) for _ in range(trials))

    deviation = math.sqrt(trials * ratio * (1 - ratio))
    assert abs(recorded - trials * ratio) <= 5 * deviation


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 0), (1.0, 20_000)])
def test_ratio_0_and_1_are_exact(ratio, expected):
    """Nothing and everything, also for the smallest and largest trace ids."""
    sampler = LiveSampler(Policy(ratio))
    draw = random.Random(7).getrandbits
    ids = [1, (1 << 64) - 1, 1 << 64, (1 << 128) - 1, *(draw(128) for _ in range(19_996))]

    assert sum(sampler.decide(trace_id) for trace_id in ids) == expected


@pytest.mark.parametrize("ratio", [-0.01, 1.01, 25.0, math.nan, math.inf])
def test_a_policy_refuses_a_ratio_outside_0_to_1(ratio):
    """The message says what was found and what fits."""
    with pytest.raises(ValueError, match=r"expected a number from 0\.0 to 1\.0"):
        Policy(ratio)


def test_a_tracer_that_was_made_before_follows_a_swap():
    """SDK tracers copy their provider's sampler, so the change has to happen inside it."""
    exporter = InMemorySpanExporter()
    sampler = LiveSampler(Policy(0.0))
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("made before")

    tracer.start_span("dropped").end()
    sampler.swap(Policy(1.0, source="admin", version=1))
    tracer.start_span("kept", attributes={"a": 1}).end()
    sampler.swap(None)
    tracer.start_span("dropped again").end()

    spans = exporter.get_finished_spans()
    assert [(span.name, dict(span.attributes)) for span in spans] == [("kept", {"a": 1})]
    provider.shutdown()


def test_a_child_follows_its_parent_over_a_swap():
    """A trace that began recorded stays whole when the ratio falls to 0 meanwhile."""
    exporter = InMemorySpanExporter()
    sampler = LiveSampler(Policy(1.0))
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("t")

    with tracer.start_as_current_span("root"):
        sampler.swap(Policy(0.0, source="admin", version=1))
        tracer.start_span("child").end()

    assert {span.name for span in exporter.get_finished_spans()} == {"root", "child"}
    provider.shutdown()


def test_an_expired_policy_gives_way_to_the_settings_by_the_clock_alone(pass_time):
    """No poll, no swap: the process's own clock ends the policy."""
    sampler = LiveSampler(Policy(0.0, source="environment"))
    sampler.swap(Policy(1.0, source="admin", version=4, expires_at_s=time.time() + 60))

    assert sampler.decide(1)
    assert sampler.policy.source == "admin"
    pass_time(61)
    assert not sampler.decide(1)
    assert sampler.policy.source == "environment"
    assert sampler.ratio_now() == 0.0


def test_new_settings_do_not_push_the_admins_policy_aside():
    """rebase() changes what applies after the admin's policy, not the policy itself."""
    sampler = LiveSampler(Policy(0.0))
    sampler.swap(Policy(0.5, source="admin", version=2))
    sampler.rebase(Policy(0.1))

    assert sampler.ratio_now() == 0.5
    sampler.swap(None)
    assert sampler.ratio_now() == 0.1


def test_a_base_policy_that_expires_is_refused():
    """Nothing would be left to apply."""
    with pytest.raises(ValueError, match="cannot expire"):
        LiveSampler(Policy(1.0, expires_at_s=1.0))


@pytest.mark.parametrize("parent_sampled", [None, True])
def test_an_untraced_context_drops_every_span_whatever_the_parent_says(parent_sampled):
    """Excluded paths stay excluded, also when a caller's flag asks for a trace."""
    context = otel_context.Context()
    if parent_sampled:
        parent = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("k", "v")]))
        context = trace.set_span_in_context(NonRecordingSpan(parent), context)

    result = LiveSampler(Policy(1.0)).should_sample(sampler.untraced(context), 1, "GET /")

    assert result.decision is Decision.DROP
    assert dict(result.trace_state or {}) == ({"k": "v"} if parent_sampled else {})


def test_nothing_is_recorded_where_instrumentation_is_suppressed():
    """OpenTelemetry's own mark counts, given as the parent context and as the current one."""
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    sampler = LiveSampler(Policy(1.0))
    with suppress_instrumentation():
        assert not _sampled(sampler, 1)
        context = otel_context.get_current()
    assert sampler.should_sample(context, 1, "x").decision is Decision.DROP
    assert _sampled(sampler, 1)


def test_decisions_share_constant_results():
    """A request that is dropped builds no result object, and what is recorded shares its attributes."""
    sampler = LiveSampler(Policy(0.5))

    # Of what is recorded the trace state differs: it names the randomness of the trace.
    first, second = sampler.should_sample(None, 1, "x"), sampler.should_sample(None, 2, "y")
    assert first.attributes == second.attributes == {"sampling.weight": 2.0}
    high = (1 << 64) - 1
    assert sampler.should_sample(None, high, "x", attributes={"a": 1}) is sampler.should_sample(None, high, "x")


def test_swapping_under_load_shows_only_whole_policies():
    """Readers in other threads see the old or the new policy, never a mixture, while a writer swaps."""
    sampler = LiveSampler(Policy(0.0, source="settings"))
    policies = {(0.0, "settings", 0), (1.0, "admin", 1), (0.5, "admin", 2)}
    stop = threading.Event()
    faults: list[object] = []
    counts = [0, 0]

    def read(index):
        draw = random.Random(index).getrandbits
        while not stop.is_set():
            policy = sampler.policy
            if (policy.ratio, policy.source, policy.version) not in policies or policy.default_outcome.bound != round(
                policy.ratio * (1 << 64)
            ):
                faults.append(policy)
            sampler.should_sample(None, draw(128), "x")
            counts[index] += 1

    readers = [threading.Thread(target=read, args=(index,)) for index in range(2)]
    for reader in readers:
        reader.start()
    wanted = sizes.scaled(1_000, 10_000)
    swaps = 0
    while swaps < wanted or min(counts) < wanted:
        for policy in (Policy(1.0, "admin", 1), Policy(0.5, "admin", 2), None):
            sampler.swap(policy)
            swaps += 1
    stop.set()
    for reader in readers:
        reader.join()

    assert faults == []


def test_the_description_names_ratio_source_and_version():
    """It is what the SDK and the command line show of a sampler."""
    sampler = LiveSampler(Policy(1.0))
    sampler.swap(Policy(0.25, source="admin", version=3))

    assert sampler.get_description() == "LiveSampler{ratio=0.25, source=admin, version=3}"
