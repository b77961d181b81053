"""`tracestate` of sampled traces: `ot=th` (and `rv`) of OpenTelemetry's probability sampling."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from django_otel.sampling.effective import RuleOutcome
from django_otel.sampling.policy import Policy, Rule
from django_otel.sampling.sampler import LiveSampler, untraced, with_outcome
from django_otel.sampling.tracestate import build_state, format_threshold, replace_threshold

trace_ids = st.integers(min_value=1, max_value=(1 << 128) - 1)


def members(state) -> dict[str, str]:
    """The parts of the member `ot`."""
    value = dict(state or {}).get("ot", "")
    return dict(part.split(":", 1) for part in value.split(";") if part)


def threshold(state) -> int:
    return int(members(state)["th"].ljust(14, "0"), 16)


def remote(trace_id: int, state: str | None, *, sampled: bool = True):
    entries = [tuple(part.split("=", 1)) for part in state.split(",")] if state else []
    parent = SpanContext(trace_id, 7, True, TraceFlags(3 if sampled else 2), TraceState(entries))
    return trace.set_span_in_context(NonRecordingSpan(parent), otel_context.Context())


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(1.0, "0"), (0.5, "8"), (0.25, "c"), (0.75, "4"), (1 / 16, "f"), (0.1, "e6666666666666"), (0.0, ""), (1e-30, "")],
)
def test_thresholds_are_those_of_the_specification(ratio, expected):
    assert format_threshold(RuleOutcome(ratio, "ratio", None, False, None).bound) == expected


@given(ratio=st.floats(min_value=1e-9, max_value=1.0), trace_id=trace_ids)
@example(ratio=0.5, trace_id=(1 << 63) - 1)
@example(ratio=0.1, trace_id=1)
def test_what_is_recorded_is_what_randomness_and_threshold_say(ratio, trace_id):
    """A consistent sampler behind us, such as the Collector's, comes to the same decision."""
    answer = LiveSampler(Policy(ratio)).should_sample(None, trace_id, "GET /")
    if answer.decision is not Decision.RECORD_AND_SAMPLE:
        assert "ot" not in dict(answer.trace_state or {})
        return
    found = members(answer.trace_state)
    randomness = int(found["rv"], 16) if "rv" in found else trace_id & ((1 << 56) - 1)
    assert randomness >= threshold(answer.trace_state)
    assert 2**56 / (2**56 - threshold(answer.trace_state)) == pytest.approx(1 / ratio, rel=1e-6)


@given(ratio=st.floats(min_value=0.01, max_value=0.99), trace_id=trace_ids)
def test_what_is_not_recorded_has_a_randomness_below_the_threshold(ratio, trace_id):
    sampler = LiveSampler(Policy(ratio))
    text = sampler.effective.default_outcome.recorded.threshold
    found = members(build_state(text, trace_id))
    assert (int(found["rv"], 16) >= int(text.ljust(14, "0"), 16)) == sampler.decide(trace_id)


@pytest.mark.parametrize("state", [None, "ot=th:8;rv:ffffffffffffff,acme=1", "acme=1", "acme=1,ot=rv:00000000000001"])
def test_a_callers_decision_keeps_the_callers_state(state):
    sampler = LiveSampler(Policy(0.001))
    answer = sampler.should_sample(remote(1 << 70, state), 1 << 70, "GET /")
    assert answer.decision is Decision.RECORD_AND_SAMPLE
    assert (answer.trace_state or TraceState()).to_header() == (state or "")


@pytest.mark.parametrize(
    ("ratio", "state", "expected"),
    [
        (1.0, "ot=th:c;rv:ffffffffffffff,acme=1", "ot=th:0;rv:ffffffffffffff,acme=1"),
        (1.0, "acme=1,ot=th:c", "ot=th:0,acme=1"), (1.0, "acme=1", "ot=th:0,acme=1"), (1.0, None, "ot=th:0"),
        # Decided by our rule, of which the caller's randomness says nothing.
        (0.5, "acme=1,ot=th:c;rv:ffffffffffffff", "ot=rv:ffffffffffffff,acme=1"), (0.5, "ot=th:c,acme=1", "acme=1"),
    ],
)  # fmt: skip
def test_a_decision_in_place_of_the_callers_replaces_the_threshold_alone(ratio, state, expected):
    sampler = LiveSampler(Policy(ratio, follows_parent=False))
    answer = sampler.should_sample(remote(1, state), 1, "GET /")
    assert answer.decision is Decision.RECORD_AND_SAMPLE
    assert (answer.trace_state or TraceState()).to_header() == expected


def test_what_a_limit_or_a_person_decides_has_no_threshold():
    limited = LiveSampler(Policy(1.0, max_per_second=1000.0))
    assert not limited.should_sample(None, 1, "GET /").trace_state
    assert not limited.should_sample(remote(1, "ot=th:8"), 1, "GET /").trace_state
    sampler = LiveSampler(Policy(0.5))
    forced = with_outcome(sampler.policy.forced, otel_context.Context())
    assert not sampler.should_sample(forced, 1, "GET /").trace_state


def test_a_rule_has_the_threshold_of_its_ratio():
    sampler = LiveSampler(Policy(0.5, rules=(Rule(path="/all/*", ratio=1.0),)))
    outcome = sampler.policy.outcome("GET", "/all/x")
    answer = sampler.should_sample(with_outcome(outcome, otel_context.Context()), (1 << 64) - 1, "GET")
    assert members(answer.trace_state) == {"th": "0"}


def test_a_full_state_keeps_its_first_members_and_a_long_one_stays():
    full = TraceState([(f"k{number}", "v") for number in range(32)])
    found = replace_threshold(full, "0")
    assert list(found) == ["ot", *[f"k{number}" for number in range(31)]]
    long = TraceState([("ot", "x:" + "y" * 250)])
    assert replace_threshold(long, "0") is long


def test_an_unsampled_trace_has_no_threshold():
    sampler = LiveSampler(Policy(0.0, follows_parent=False))
    answer = sampler.should_sample(remote(1, "ot=th:8;rv:1,acme=1"), 1, "GET /")
    assert answer.decision is Decision.DROP
    assert answer.trace_state.to_header() == "ot=rv:1,acme=1"


def test_what_is_not_traced_within_a_sampled_trace_has_no_threshold():
    local = SpanContext(5, 7, False, TraceFlags(1), TraceState([("ot", "th:8;rv:ffffffffffffff"), ("acme", "1")]))
    context = untraced(trace.set_span_in_context(NonRecordingSpan(local), otel_context.Context()))
    answer = LiveSampler(Policy(1.0)).should_sample(context, 5, "inner")
    assert answer.decision is Decision.DROP
    assert answer.trace_state.to_header() == "ot=rv:ffffffffffffff,acme=1"


# --- On the wire. ---


@pytest.mark.django_db
def test_the_request_span_its_children_and_the_calls_it_makes_have_the_state(client, settings, otel_spans):
    settings.OTEL = {**settings.OTEL, "SAMPLING": {"RATIO": 1.0}}
    client.get("/queries/")
    spans = [span for span in otel_spans if span.name != "x"]
    assert len(spans) > 1
    assert {span.context.trace_state.to_header() for span in spans} == {"ot=th:0"}


def test_at_a_ratio_each_trace_names_its_randomness(client, settings, otel_spans):
    settings.OTEL = {**settings.OTEL, "SAMPLING": {"RATIO": 0.5}}
    for _ in range(40):
        client.get("/hello/")
    spans = list(otel_spans)
    assert spans
    for span in spans:
        found = members(span.context.trace_state)
        assert found["th"] == "8"
        assert int(found["rv"], 16) == (1 << 56) - 1 - ((span.context.trace_id & ((1 << 64) - 1)) >> 8)
