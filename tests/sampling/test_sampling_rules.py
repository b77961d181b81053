"""Rules, the limit per second and the order of decisions, in the sampler itself."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from django_otel.sampling import limiter
from django_otel.sampling import sampler as sampler_module
from django_otel.sampling.policy import Policy, Rule
from django_otel.sampling.sampler import LiveSampler
from tests import services, sizes
from tests.sampling.test_policy import rules

HIGH, LOW = (1 << 64) - 1, 1


def parent(flag: int) -> SpanContext:
    return SpanContext(5, 6, is_remote=True, trace_flags=TraceFlags(flag))


class Counts(dict):
    """Counts decisions as the runtime's cells do."""

    def open(self, rule, decision, reason):
        key = (rule, decision, reason)

        class Series:
            @staticmethod
            def add(amount):
                self[key] = self.get(key, 0) + amount

        return Series


def sampler_of(policy: Policy, live: Policy | None = None) -> tuple[LiveSampler, Counts]:
    sampler, counts = LiveSampler(Policy(1.0)), Counts()
    sampler.open_series = counts.open
    sampler.rebase(policy)
    sampler.swap(live)
    return sampler, counts


def judge(sampler: LiveSampler, method: str, path: str, trace_id: int = HIGH):
    policy = sampler.policy
    return policy.judge(trace_id, None, policy.outcome(method, path))


def test_the_first_rule_that_matches_decides_instead_of_the_ratio():
    sampler, counts = sampler_of(
        Policy(0.5, rules=(Rule(0.0, path="/health*"), Rule(1.0, path="/checkout/*"), Rule(0.0, path="/checkout/*")))
    )

    assert judge(sampler, "GET", "/checkout/pay").is_sampled
    assert not judge(sampler, "GET", "/healthz", LOW).is_sampled
    assert judge(sampler, "GET", "/other", LOW).is_sampled
    assert not judge(sampler, "GET", "/other", HIGH).is_sampled
    assert counts == {
        ("/checkout/*", "recorded", "rule"): 1,
        ("/health*", "dropped", "rule"): 1,
        ("", "recorded", "ratio"): 1,
        ("", "dropped", "ratio"): 1,
    }


def test_a_recorded_root_says_why_and_how_many_it_stands_for():
    """Nothing is said of a trace that the ratio 1.0 recorded."""
    sampler, _ = sampler_of(Policy(1.0, rules=(Rule(0.25, path="/a"), Rule(1.0, path="/b", method="POST"))))
    policy = sampler.policy

    assert judge(sampler, "GET", "/x").attributes is None
    assert judge(sampler, "GET", "/a", LOW).attributes == {
        "sampling.reason": "rule", "sampling.rule": "/a", "sampling.weight": 4.0,
    }  # fmt: skip
    assert judge(sampler, "POST", "/b").attributes == {
        "sampling.reason": "rule", "sampling.rule": "POST /b", "sampling.weight": 1.0,
    }  # fmt: skip
    assert policy.judge(HIGH, parent(1)).attributes == {"sampling.reason": "parent"}
    assert policy.judge(HIGH, None, policy.forced).attributes == {"sampling.reason": "forced", "sampling.weight": 1.0}
    assert LiveSampler(Policy(0.1)).policy.judge(LOW).attributes == {"sampling.weight": 10.0}


@settings(max_examples=sizes.examples(300), deadline=None)
@given(
    st.lists(rules(), max_size=8),
    st.sampled_from(["GET", "POST", "DELETE", "_OTHER"]),
    st.from_regex(r"/[a-z/]{0,12}", fullmatch=True),
    st.none() | st.from_regex(r"/[a-z/<:>]{0,12}", fullmatch=True),
)
def test_what_was_worked_out_beforehand_is_what_trying_the_rules_in_order_gives(found, method, path, route):
    """The one pattern per method, what is remembered and the routes, against the definition."""
    sampler, _ = sampler_of(Policy(0.5), Policy(None, "admin", rules=tuple(found)))
    policy = sampler.policy
    expected = next((rule for rule in policy.rules if rule.matches(method, path, route)), None)
    without = next((rule for rule in policy.rules if rule.matches(method, path)), None)

    for _ in range(2):  # the second time from memory
        assert policy.outcome_of_route(method, path, route).rule is expected
        assert policy.outcome_of_route(method, path, None).rule is without
        early = policy.outcome(method, path)
        if early is not None:
            assert early.rule is without is expected
        else:
            place = policy.rules.index(without) if without is not None else len(policy.rules)
            assert any(rule.route and rule.method in ("", method) for rule in policy.rules[:place])


def test_a_forced_trace_is_recorded_whatever_rules_parent_and_limit_say():
    sampler, counts = sampler_of(Policy(0.0, rules=(Rule(0.0, path="*"),), max_per_second=0.001))
    policy = sampler.policy

    assert all(policy.judge(HIGH, parent(0), policy.forced).is_sampled for _ in range(5))
    assert counts == {("", "recorded", "forced"): 5}


def test_a_remote_parent_comes_before_the_rules():
    sampler, _ = sampler_of(Policy(0.0, rules=(Rule(0.0, path="*"),)))
    policy = sampler.policy

    assert policy.judge(HIGH, parent(1), policy.outcome("GET", "/a")).is_sampled
    assert not policy.judge(LOW, parent(0), policy.outcome("GET", "/a")).is_sampled


def test_the_admins_rules_come_before_those_of_the_settings():
    """And what the admin leaves open is as the settings have it."""
    base = Policy(0.5, rules=(Rule(1.0, path="/checkout/*"), Rule(0.0, path="/health*")), max_per_second=7.0)
    live = Policy(None, "admin", 3, rules=(Rule(0.0, path="/checkout/*"),))
    sampler, _ = sampler_of(base, live)
    policy = sampler.policy

    assert (policy.ratio, policy.source, policy.max_per_second) == (0.5, "settings", 7.0)
    assert policy.outcome("GET", "/checkout/x").bound == 0
    assert policy.outcome("GET", "/health").rule is base.rules[1]
    assert list(policy.rule_sources) == ["admin", "settings", "settings"]


def test_a_rule_ends_by_the_clock_and_the_policy_without_it_goes_on(pass_time):
    """ "100 % on /checkout/ for 15 minutes", then back by itself; the ratio of the admin stays."""
    live = Policy(0.0, "admin", 1, rules=(Rule(1.0, path="/checkout/*", expires_at_s=time.time() + 60),))
    sampler, _ = sampler_of(Policy(1.0), live)

    assert judge(sampler, "GET", "/checkout/x").is_sampled
    pass_time(61)
    assert not judge(sampler, "GET", "/checkout/x").is_sampled
    assert sampler.policy.source == "admin"


def test_rules_outlive_the_policy_whose_ratio_has_run_out(pass_time):
    live = Policy(0.0, "admin", 1, expires_at_s=time.time() + 60, rules=(Rule(0.0, path="/noise"),))
    sampler, _ = sampler_of(Policy(1.0), live)
    pass_time(61)

    assert judge(sampler, "GET", "/other").is_sampled
    assert not judge(sampler, "GET", "/noise").is_sampled


def test_a_clock_that_is_set_back_brings_an_ended_policy_back(monkeypatch):
    """Each process goes by its own clock, whichever way that is moved."""
    now_s = 1_800_000_000.0
    monkeypatch.setattr(sampler_module.time, "time", lambda: now_s)
    sampler, _ = sampler_of(Policy(0.1), Policy(1.0, "admin", 1, expires_at_s=now_s + 60))
    assert sampler.ratio_now() == 1.0

    now_s += 3600
    assert sampler.ratio_now() == 0.1
    now_s -= 3590
    assert sampler.ratio_now() == 1.0
    now_s += 50
    assert sampler.ratio_now() == 0.1


def test_paths_that_clients_invent_do_not_fill_the_memory():
    sampler, _ = sampler_of(Policy(1.0, rules=(Rule(0.0, path="/a*"),)))
    policy = sampler.policy

    for number in range(3 * 4096):
        policy.outcome("GET", f"/{number}")
    policy.outcome("GET", "/" + "x" * 100_000)

    assert len(policy._remembered) <= 4096
    assert max(len(path) for _, path in policy._remembered) <= 256


# --- The SDK's interface. ---


def test_a_server_span_of_another_instrumentation_follows_the_rules_by_its_attributes():
    """REQUEST.SPANS = "instrumentor", or FastAPI beside Django; old and new attribute names."""
    sampler, _ = sampler_of(Policy(0.0, rules=(Rule(1.0, path="/checkout/*", method="POST"), Rule(1.0, route="/x/"))))

    assert sampler.should_sample(
        None, HIGH, "x", SpanKind.SERVER, {"url.path": "/checkout/1", "http.request.method": "POST"}
    ).decision is Decision.RECORD_AND_SAMPLE  # fmt: skip
    assert sampler.should_sample(
        None, HIGH, "x", SpanKind.SERVER, {"http.target": "/checkout/1?a=1", "http.method": "POST"}
    ).decision is Decision.RECORD_AND_SAMPLE  # fmt: skip
    assert sampler.should_sample(
        None, HIGH, "x", SpanKind.SERVER, {"url.path": "/x/", "http.request.method": "GET"}
    ).decision is Decision.DROP  # fmt: skip
    assert sampler.should_sample(
        None, HIGH, "x", SpanKind.CLIENT, {"url.path": "/checkout/1", "http.request.method": "POST"}
    ).decision is Decision.DROP  # fmt: skip


def test_the_parents_trace_state_and_the_spans_attributes_go_with_the_reasons():
    sampler, _ = sampler_of(Policy(0.0))
    state = trace.TraceState([("k", "v")])
    context = trace.set_span_in_context(
        NonRecordingSpan(SpanContext(5, 6, is_remote=True, trace_flags=TraceFlags(1), trace_state=state)), Context()
    )

    bare = sampler.should_sample(context, 5, "x")
    full = sampler.should_sample(context, 5, "x", attributes={"a": 1})

    assert dict(bare.trace_state) == dict(full.trace_state) == {"k": "v"}
    assert dict(bare.attributes) == {"sampling.reason": "parent"}
    assert dict(full.attributes) == {"sampling.reason": "parent", "a": 1}


def test_every_process_gives_the_same_answer_for_the_same_trace_id():
    """Ratio and rule, in fresh interpreters: nothing depends on hash seeds or on what came before."""
    code = (
        "import random, sys, hashlib\n"
        "from django_otel.sampling.policy import Policy, Rule\nfrom django_otel.sampling.sampler import LiveSampler\n"
        "policy = LiveSampler(Policy(0.3, rules=(Rule(0.6, path='/a'),))).policy\n"
        "draw = random.Random(1).getrandbits\n"
        "answers = bytearray()\n"
        "for _ in range(20000):\n"
        "    id = draw(128)\n"
        "    answers.append(policy.judge(id).is_sampled)\n"
        "    answers.append(policy.judge(id, None, policy.outcome('GET', '/a')).is_sampled)\n"
        "print(sum(answers), hashlib.sha256(answers).hexdigest())\n"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", code], cwd=services.ROOT, check=True, capture_output=True).stdout
        for _ in range(3)
    }
    assert len(outputs) == 1
    kept = int(outputs.pop().split()[0])
    assert abs(kept - 20_000 * 0.9) < 500


# --- The limit. ---


class Clock:
    """Stands for `time` in the sampler: goes on only when a test sets it."""

    def __init__(self, monkeypatch) -> None:
        self.now_s = 1000.0
        for module in (limiter, sampler_module):
            monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return 2e9 + self.now_s


def offer(sampler: LiveSampler, clock: Clock, seconds: float, threads: int = 1) -> int:
    """Offer a hundred traces each millisecond, from several threads at once; how many passed.

    The clock waits for all of them: the system may let one of them wait for longer than the limit saves anything up.
    """
    passed, policy, end_s = [0] * threads, sampler.policy, clock.now_s + seconds

    def tick() -> None:
        clock.now_s += 0.001

    together = threading.Barrier(threads, tick, timeout=60)

    def run(index: int) -> None:
        draw = random.Random(index).getrandbits
        while clock.now_s < end_s:
            passed[index] += sum(policy.judge(draw(128)).is_sampled for _ in range(100 // threads))
            together.wait()

    workers = [threading.Thread(target=run, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(passed)


@pytest.mark.heavy
@pytest.mark.scaled
@pytest.mark.parametrize(("limit", "threads"), sizes.few([(50.0, 1), (50.0, 4), (400.0, 4), (400.0, 1)], 2))
def test_the_limit_holds_over_a_burst_within_10_percent(monkeypatch, limit, threads):
    """One or two seconds of many more, after a pause in which nothing was saved up."""
    clock = Clock(monkeypatch)
    sampler, counts = sampler_of(Policy(1.0, max_per_second=limit))
    clock.now_s += 0.5
    seconds = sizes.scaled(1.0, 2.0)

    passed = offer(sampler, clock, seconds, threads)

    assert 0.9 * limit * seconds <= passed <= 1.1 * limit * seconds
    assert counts["", "dropped", "rate_limit"] > passed


@pytest.mark.heavy
def test_each_process_takes_its_share_of_the_limit(monkeypatch):
    """Also when others come or go; as gentle as before for what is under way."""
    clock = Clock(monkeypatch)
    sampler, _ = sampler_of(Policy(1.0, max_per_second=400.0))

    def check(share: float) -> None:
        assert 0.85 * share <= offer(sampler, clock, 1.0) <= 1.15 * share

    sampler.share(4)
    check(100.0)
    sampler.share(1)
    check(400.0)
    sampler.swap(Policy(1.0, "admin", 1, max_per_second=100.0))
    sampler.share(2)
    check(50.0)
    sampler.swap(Policy(1.0, "admin", 2, is_whole=True))
    assert offer(sampler, clock, 0.1) > 500


def processes_of(number: int, limit: float) -> list[LiveSampler]:
    """So many processes that share a clock, as the follower lets them do."""
    clock = memoryview(bytearray(16)).cast("d")
    samplers = [sampler_of(Policy(1.0, max_per_second=limit))[0] for _ in range(number)]
    for sampler in samplers:
        sampler.share(number, clock)
    return samplers


@pytest.mark.parametrize("number", [2, 8, 32])
@pytest.mark.parametrize("limit", sizes.few([1.0, 5.0, 12.0, 19.0, 319.0, 100.0], 2))
@pytest.mark.parametrize("lasts_s", sizes.few([1.0, 3.0], 2))
def test_the_limit_holds_over_a_burst_of_many_processes(monkeypatch, number, limit, lasts_s):
    """Within 10 % also where the limit is less than ten per second and process; the very first trace always passes."""
    clock = Clock(monkeypatch)
    processes = processes_of(number, limit)
    for _ in range(2):
        # Idle: nothing is saved up meanwhile.
        clock.now_s += 60.0
        passed, begun_s = 0, clock.now_s
        while clock.now_s < begun_s + lasts_s:
            passed += sum(process.policy.judge(HIGH).is_sampled for process in processes)
            clock.now_s += 0.001
        assert 0.9 * limit * lasts_s - 1 <= passed <= max(1.1 * limit * lasts_s, 1.0)


def test_below_the_limit_nothing_is_refused_whichever_process_is_asked(monkeypatch):
    """Three traces per second over eight processes, of which none alone may record one per second."""
    clock = Clock(monkeypatch)
    processes = processes_of(8, 4.0)
    draw = random.Random(5)
    for _ in range(200):
        clock.now_s += 1 / 3
        assert draw.choice(processes).policy.judge(HIGH).is_sampled


@pytest.mark.parametrize("number", [1, 8])
def test_what_is_offered_at_odd_moments_uses_the_limit_up(monkeypatch, number):
    """Three times as much as may pass, at random: traces due between requests are not lost."""
    clock = Clock(monkeypatch)
    processes = processes_of(number, 10.0)
    draw = random.Random(7)
    passed, begun_s = 0, clock.now_s
    while clock.now_s < begun_s + 100.0:
        passed += draw.choice(processes).policy.judge(HIGH).is_sampled
        clock.now_s += draw.expovariate(30.0)
    assert 0.9 * 10.0 * 100.0 <= passed <= 10.0 * 100.0 + 1


def test_one_busy_process_may_have_the_limit_that_the_others_leave(monkeypatch):
    clock = Clock(monkeypatch)
    busy, *_ = processes_of(8, 10.0)
    passed = 0
    for _ in range(5000):
        passed += busy.policy.judge(HIGH).is_sampled
        clock.now_s += 0.001
    assert 45 <= passed <= 55


@pytest.mark.parametrize("garbage", [1e12, float("inf"), float("nan"), -1e12])
def test_a_clock_of_before_the_last_start_of_the_machine_or_a_damaged_one_is_put_right(monkeypatch, garbage):
    clock = Clock(monkeypatch)
    process, *_ = processes_of(4, 10.0)
    process._clock[0] = garbage
    passed = 0
    for _ in range(2000):
        passed += process.policy.judge(HIGH).is_sampled
        clock.now_s += 0.001
    assert 18 <= passed <= 22


def test_a_forked_child_waits_for_a_clock_of_its_own(monkeypatch):
    Clock(monkeypatch)
    process, *_ = processes_of(4, 10.0)
    process.after_fork()
    assert process._clock is None
    assert process.policy.limiter.clock is None


def test_the_limit_covers_what_remote_parents_switch_on(monkeypatch):
    Clock(monkeypatch)
    sampler, counts = sampler_of(Policy(0.0, max_per_second=20.0))
    policy = sampler.policy
    passed = sum(policy.judge(7, parent(1)).is_sampled for _ in range(500))

    assert 1 <= passed <= 2
    assert counts["", "dropped", "rate_limit"] == 500 - passed
    assert not any(policy.judge(7, parent(0)).is_sampled for _ in range(10))
    assert counts["", "dropped", "parent"] == 10


def test_the_weights_of_a_limited_trace_add_up_to_what_was_offered(monkeypatch):
    """Each one that passes also stands for those that the limit refused before it."""
    clock = Clock(monkeypatch)
    sampler, _ = sampler_of(Policy(0.5, max_per_second=200.0))
    policy = sampler.policy
    draw = random.Random(3).getrandbits
    weight, offered = 0, 50_000
    for _ in range(offered):
        clock.now_s += 1e-5
        decision = policy.judge(draw(128))
        if decision.is_sampled:
            weight += decision.attributes["sampling.weight"]

    assert weight == pytest.approx(offered, rel=0.1)
