"""The live sampler: one object for the life of the process, whose policy is swapped inside.

SDK tracers copy their provider's sampler when they are made, so a new sampler
would not reach them; a new policy in the old sampler does.

A trace that begins here is decided once, in this order: excluded or suppressed
-> forced -> a trusted remote parent -> the first rule that matches -> the
ratio. The limit of traces per second then covers all but what was forced. What
follows from a policy is worked out when it is put in force (`InForce`), so that
a decision is a comparison and a cell update.
"""

from __future__ import annotations

import array
import collections
import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from opentelemetry.context import Context, create_key, get_current, set_value
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, TraceState, get_current_span
from opentelemetry.util.types import Attributes

from django_otel.base.sdk_compat import SUPPRESS_INSTRUMENTATION_KEY
from django_otel.sampling.policy import METHODS, Policy, Rule

__all__ = ["Branch", "InForce", "LiveSampler", "Policy", "Rule", "Verdict", "untraced", "with_branch"]

REASON = "sampling.reason"
RULE = "sampling.rule"
DECISION = "sampling.decision"
#: How many traces a recorded one stands for: the inverse of the probability it was recorded with.
WEIGHT = "sampling.weight"

_LOW_64_BITS = (1 << 64) - 1
_UNTRACED_KEY = create_key("django_otel-untraced")
_BRANCH_KEY = create_key("django_otel-sampling-branch")
#: Paths whose matching rule is remembered, and the longest of them; clients choose paths.
_MAX_REMEMBERED = 4096
_MAX_REMEMBERED_LENGTH = 256
#: A limit lets as many traces through at once as it does in this time, in seconds (at least one).
_BURST_S = 0.1

_RECORD = SamplingResult(Decision.RECORD_AND_SAMPLE)
_RECORD_ONLY = SamplingResult(Decision.RECORD_ONLY)
_DROP = SamplingResult(Decision.DROP)


class _Series(Protocol):
    def add(self, amount: float) -> None: ...


#: Gives the counter series of (rule, decision, reason).
OpenSeries = Callable[[str, str, str], _Series]


def untraced(context: Context | None = None) -> Context:
    """A copy of `context` (default: the current one) in which the sampler drops every span."""
    return set_value(_UNTRACED_KEY, True, context)


def with_branch(branch: Branch, context: Context | None = None) -> Context:
    """A copy of `context` in which a trace that begins is decided by `branch`."""
    return set_value(_BRANCH_KEY, branch, context)


class Verdict:
    """One of the possible answers to "is this trace recorded?"; made once and given to many.

    `attributes` are for the local root span when the trace is recorded (None:
    nothing to say); `is_recording` without `is_sampled` means that its spans are
    held back until it is known how it ends (`tracing.tail`).
    """

    __slots__ = ("_open_series", "attributes", "is_recording", "is_sampled", "opened", "reason", "result", "rule")

    def __init__(
        self,
        *,
        is_sampled: bool,
        is_held: bool,
        reason: str,
        rule: str = "",
        weight: float | None = None,
        open_series: OpenSeries | None = None,
    ) -> None:
        self.is_sampled = is_sampled
        self.is_recording = is_sampled or is_held
        self.reason = reason
        self.rule = rule
        attributes: dict[str, Any] = {}
        if is_sampled:
            if reason != "ratio":
                attributes[REASON] = reason
            if rule:
                attributes[RULE] = rule
            if weight is not None and (weight != 1.0 or reason != "ratio"):
                attributes[WEIGHT] = weight
        self.attributes: Mapping[str, Any] | None = attributes or None
        if not is_sampled:
            self.result = _RECORD_ONLY if is_held else _DROP
        else:
            self.result = SamplingResult(Decision.RECORD_AND_SAMPLE, attributes) if attributes else _RECORD
        self._open_series = open_series
        #: `series()`, once somebody has asked for it.
        self.opened: Any = None

    def count(self) -> None:
        """Count one trace decided like this."""
        series = self.series()
        if series is not None:
            series.add(1.0)

    def series(self) -> Any:
        """The counter's series of traces decided like this; None when they are not counted."""
        series = self.opened
        if series is None and self._open_series is not None:
            series = self.opened = self._open_series(
                self.rule, "recorded" if self.is_sampled else "dropped", self.reason
            )
        return series

    def times(self, number: int) -> Verdict:
        """This answer for one trace that stands for `number`, because the limit refused the ones before it."""
        attributes = dict(self.attributes or ())
        if self.reason == "parent":
            # The share that the parent was recorded with is not known here.
            return self
        attributes[WEIGHT] = attributes.get(WEIGHT, 1.0) * number
        other: Verdict = object.__new__(Verdict)
        for name in Verdict.__slots__:
            setattr(other, name, getattr(self, name))
        other.attributes = attributes
        other.result = SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)
        return other


class Branch:
    """Where the order of decisions led: a rule, the ratio, or a forced trace; `bound` decides by trace id."""

    __slots__ = ("bound", "dropped", "is_forced", "is_never", "limited", "recorded", "rule")

    def __init__(
        self, ratio: float, reason: str, rule: Rule | None, is_held: bool, open_series: OpenSeries | None
    ) -> None:
        #: Trace ids whose low 64 bits are below this are recorded. Source: `TraceIdRatioBased` of the SDK.
        self.bound = round(ratio * (_LOW_64_BITS + 1))
        #: Whether no trace is recorded, nor held back, so that no id is needed.
        self.is_never = self.bound == 0 and not is_held
        self.rule = rule
        self.is_forced = reason == "forced"
        label = rule.label if rule is not None else ""

        def verdict(is_sampled: bool, reason: str) -> Verdict:
            return Verdict(
                is_sampled=is_sampled, is_held=is_held, reason=reason, rule=label,
                weight=1.0 / ratio if ratio else None, open_series=open_series,
            )  # fmt: skip

        self.recorded = verdict(True, reason)
        self.dropped = verdict(False, reason)
        self.limited = verdict(False, "rate_limit")


class Limiter:
    """At most so many traces per second, over all processes of the server group.

    Each process takes `max_per_second / processes`. A bucket that is filled with
    time and holds what comes in a tenth of a second, so that a burst of a second
    or more stays within 10 % of the limit.

    Where that is less than two traces, what each process may record at once
    would add up to more. There they share a `clock`, two numbers in shared
    memory: the `time.monotonic()` from which the next trace of the group may be
    recorded, and when one of them asked last (0.0: never). Of two processes that look within
    the same 100 ns both may record one; nothing is locked for it.

    Never blocks: tokens are taken from a deque, which is atomic, and of several
    threads that find it due to be filled one does it while the others go on.
    """

    def __init__(self, max_per_second: float, processes: int, clock: Any = None) -> None:
        self.max_per_second = max_per_second
        self._filling = threading.Lock()
        self._filled_s = time.monotonic()
        self._fraction = 1.0
        self._refused = 0
        self._own_clock = array.array("d", (-math.inf, -math.inf))
        self.share(processes, clock)

    def share(self, processes: int, clock: Any = None) -> None:
        """Divide the limit by this number of processes, or share `clock` with them where that would be too little."""
        self.processes = max(1, processes)
        self.clock = clock
        self._per_second = self.max_per_second / self.processes
        self._most_credit = max(1.0, self._per_second * _BURST_S)
        self._most = int(self._most_credit)
        self._tokens: collections.deque[None] = collections.deque(maxlen=self._most)
        self._clock: Any = None
        if self._most_credit < 2.0:
            is_shared = clock is not None and self.processes > 1
            self._clock = clock if is_shared else self._own_clock
            self._interval_s = 1.0 / (self.max_per_second if is_shared else self._per_second)
            self._saved_s = max(0.0, _BURST_S - self._interval_s)

    def _is_next(self, clock: Any) -> bool:
        now_s, interval_s = time.monotonic(), self._interval_s
        # A new file holds zeros: no process has asked yet. On a machine that was booted lately, 0.0 is just now.
        due_s, asked_s = clock[0] or -math.inf, clock[1] or -math.inf
        clock[1] = now_s
        # What lies further ahead than any of us puts it is of before the machine was started last, or garbage.
        if now_s < due_s <= now_s + 2 * interval_s:
            return False
        # As long as more is offered than may pass, nothing is lost because nobody asked at the very moment.
        saved_s = max(interval_s, self._saved_s) if 0.0 <= now_s - asked_s < 2 * interval_s else self._saved_s
        clock[0] = (due_s if now_s - saved_s < due_s <= now_s else now_s - saved_s) + interval_s
        return True

    def take(self) -> int:
        """0 when the trace may not be recorded; else the number of traces it stands for, itself included."""
        if self._clock is not None:
            return self._stand(self._is_next(self._clock))
        now_s = time.monotonic()
        tokens = self._tokens
        if (now_s - self._filled_s) * self._per_second + self._fraction >= 1.0 and self._filling.acquire(False):
            try:
                due = (now_s - self._filled_s) * self._per_second + self._fraction
                if due >= 1.0:
                    whole = min(int(due), self._most)
                    # What does not fit is lost; a part of a token is not, unless it is more than fits.
                    is_full = len(tokens) + due >= self._most_credit
                    self._fraction = self._most_credit - self._most if is_full else due - int(due)
                    self._filled_s = now_s
                    tokens.extend((None,) * whole)
            finally:
                self._filling.release()
        try:
            tokens.pop()
        except IndexError:
            return self._stand(False)
        return self._stand(True)

    def _stand(self, is_recorded: bool) -> int:
        """Remember one that is refused; how many traces one stands for that is recorded."""
        if not is_recorded:
            self._refused += 1
            return 0
        refused, self._refused = self._refused, 0
        return refused + 1


class InForce:
    """The layers put together at one moment: what is decided by. Never changed afterwards.

    `ratio`, `source`, `version`, `note` and `expires_at_s` are those of the
    layer whose ratio applies; `rules` are the ones that have not run out, in the
    order they are tried, `rule_sources` whose each is. It holds from `since_s`
    (included) to `until_s` (seconds since the Unix epoch).
    """

    __slots__ = (
        "_branches", "_expects_views", "_open_series", "_parent_limited", "_parent_no", "_parent_yes", "_paths",
        "_remembered", "_route_branches", "_view_branches",
        "branch_by_default", "expires_at_s", "follows_parent", "forced", "has_route_rules",
        "has_rules", "is_steady", "is_timed",
        "keep_errors", "keep_slow_s", "keeps", "limiter", "max_per_second", "note", "ratio", "rule_sources", "rules",
        "since_s", "source", "until_s", "version",
    )  # fmt: skip

    def __init__(
        self,
        base: Policy,
        live: Policy | None,
        now_s: float,
        limiter: Limiter | None,
        open_series: OpenSeries | None,
        *,
        expects_views: bool = False,
    ) -> None:
        # Given up where the live layer's own values have run out; its rules have ends of their own.
        upper = live if live is not None and not live.is_expired(now_s) else None
        lower = Policy(0.0) if upper is not None and upper.is_whole else base
        owner = upper if upper is not None and upper.ratio is not None else lower
        #: Whether the decision of a remote parent is taken over.
        self.follows_parent = base.follows_parent
        assert owner.ratio is not None
        self.ratio = owner.ratio
        self.source = owner.source
        self.version = owner.version
        self.note = owner.note
        self.expires_at_s = upper.expires_at_s if upper is not None else None
        self.max_per_second = _first(upper and upper.max_per_second, lower.max_per_second)
        self.keep_errors = bool(_first(None if upper is None else upper.keep_errors, lower.keep_errors))
        self.keep_slow_s = _first(upper and upper.keep_slow_s, lower.keep_slow_s)
        above = [rule for rule in live.rules if not rule.is_expired(now_s)] if live is not None else []
        self.rules = (*above, *lower.rules)
        self.rule_sources = tuple([live.source] * len(above) if live is not None else []) + tuple(
            [lower.source if lower.source != "environment" else "settings"] * len(lower.rules)
        )
        ends = [end for end in (live.expires_at_s, *(rule.expires_at_s for rule in live.rules)) if end is not None] \
            if live is not None else []  # fmt: skip
        self.is_timed = bool(ends)
        self.since_s = max((end for end in ends if end <= now_s), default=-math.inf)
        self.until_s = min((end for end in ends if end > now_s), default=math.inf)
        self.limiter = limiter
        #: Whether nothing but the request decides: neither the clock nor a limit; set when all is put together.
        self.is_steady = False
        # One that is whole is all there is.
        self._expects_views = expects_views and not (upper is not None and upper.is_whole)
        #: Whether spans are held back until it is known how their trace ends.
        self.keeps = self.keep_errors or self.keep_slow_s is not None
        self._build(open_series)

    def _build(self, open_series: OpenSeries | None) -> None:
        held = self.keeps
        self.branch_by_default = Branch(self.ratio, "ratio", None, held, open_series)
        self.forced = Branch(1.0, "forced", None, held, open_series)
        self._branches = [Branch(rule.ratio, "rule", rule, held, open_series) for rule in self.rules]
        self._parent_yes, self._parent_no, self._parent_limited = (
            Verdict(is_sampled=sampled, is_held=held, reason=reason, open_series=open_series)
            for sampled, reason in ((True, "parent"), (False, "parent"), (False, "rate_limit"))
        )
        self.has_rules = bool(self.rules) or self._expects_views
        self._view_branches: dict[float, Branch] = {}
        self._open_series = open_series
        self.has_route_rules = any(rule.route for rule in self.rules)
        #: By method: one pattern over all rules without a route, and the place of the first one with a route.
        self._paths = {method: self._build_paths(method) for method in METHODS} if self.has_rules else {}
        self._remembered: dict[tuple[str, str], Branch | None] = {}
        self._route_branches: dict[tuple[str, str, Branch], Branch] = {}

    def _build_paths(self, method: str) -> tuple[Any, list[int], int]:
        patterns, places, first_route = [], [], len(self.rules)
        for place, rule in enumerate(self.rules):
            if rule.method and rule.method != method:
                continue
            if rule.route:
                first_route = min(first_route, place)
            else:
                # One alternation: the first alternative that matches is the first rule, and tells by its group.
                patterns.append(f"({rule.pattern})" if rule.path else "()")
                places.append(place)
        return re.compile("|".join(patterns)).match if patterns else None, places, first_route

    def early_branch(self, method: str, path: str) -> tuple[Branch, int]:
        """Where method and path alone lead, and the place of the first rule with a route that could come before."""
        match, places, first_route = self._paths.get(method) or self._paths["_OTHER"]
        found = match(path) if match is not None else None
        place = places[found.lastindex - 1] if found is not None else len(self.rules)
        branch = self._branches[place] if place < len(self.rules) else self.branch_by_default
        return branch, first_route if first_route < place else -1

    def branch(self, method: str, path: str) -> Branch | None:
        """The first rule for this request, or the ratio; None when that depends on the route."""
        if not self.has_rules:
            return self.branch_by_default
        key = (method, path)
        try:
            return self._remembered[key]
        except KeyError:
            pass
        early, first_route = self.early_branch(method, path)
        is_late = first_route >= 0 or (self._expects_views and early is self.branch_by_default)
        found = None if is_late else early
        if len(path) <= _MAX_REMEMBERED_LENGTH:
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[key] = found
        return found

    def branch_of_route(self, method: str, path: str, route: str | None) -> Branch:
        """The first rule for this request, or the ratio, now that `route` is known (None: it never will be)."""
        if not self.has_rules:
            return self.branch_by_default
        early, first_route = self.early_branch(method, path)
        if route is None or first_route < 0:
            return early
        key = (method, route, early)
        found = self._route_branches.get(key)
        if found is None:
            found = early
            for rule, branch in zip(self.rules, self._branches, strict=True):
                if branch is early:
                    break
                if rule.route and rule.matches(method, path, route):
                    found = branch
                    break
            # Bounded: routes come from the URLconf.
            self._route_branches[key] = found
        return found

    def branch_of_view(self, ratio: float) -> Branch:
        """Where a view leads that has a ratio of its own."""
        found = self._view_branches.get(ratio)
        if found is None:
            found = Branch(ratio, "view", None, self.keeps, self._open_series)
            self._view_branches[ratio] = found
        return found

    def judge(self, trace_id: int, parent: SpanContext | None = None, branch: Branch | None = None) -> Verdict:
        """Decide on a trace that begins here, and count it."""
        verdict = self.decide(trace_id, parent, branch)
        verdict.count()
        return verdict

    def decide(self, trace_id: int, parent: SpanContext | None = None, branch: Branch | None = None) -> Verdict:
        """Decide on a trace that begins here; the caller counts it.

        `parent` is a remote parent that may be trusted; `branch` where the
        request's rules led, None for the ratio. The same trace id gives the same
        answer in every process and service with the same ratio.
        """
        if branch is not None and branch.is_forced:
            verdict = branch.recorded
        else:
            if parent is not None and self.follows_parent:
                verdict = self._parent_yes if parent.trace_flags & 1 else self._parent_no
                limited = self._parent_limited
            else:
                if branch is None:
                    branch = self.branch_by_default
                verdict = branch.recorded if trace_id & _LOW_64_BITS < branch.bound else branch.dropped
                limited = branch.limited
            if self.limiter is not None and verdict.is_sampled:
                number = self.limiter.take()
                if number != 1:
                    verdict = verdict.times(number) if number else limited
        return verdict


def _first(upper: Any, lower: Any) -> Any:
    return lower if upper is None else upper


class LiveSampler(Sampler):
    """Decides which traces are recorded, by a policy that may change at any time.

    `base` is the policy of settings and environment. A policy given to `swap`
    stands above it until it expires, by this process's clock, or is taken back
    with `swap(None)`. Writers only ever assign one attribute, so readers need
    no lock and see either the old or the new policy whole.
    """

    def __init__(self, base: Policy) -> None:
        self._live: Policy | None = None
        #: Asked for each further span of a recorded local trace; False drops it, None says that it is above
        #: LIMITS.SPANS_PER_TRACE and is exported only if it fails.
        self.budget: Callable[[int], bool | None] | None = None
        #: Called at the end of each span above the limit with whether it failed; returns whether it is exported.
        self.end_over_budget: Callable[[int, bool], bool] | None = None
        #: Where decisions are counted; None counts nothing. Takes effect with the next policy.
        self.open_series: OpenSeries | None = None
        #: Called with what is put in force, before it is.
        self.on_compose: Callable[[InForce], None] | None = None
        #: Called before the first decision of the process, and taken away by whoever has done what it asks for.
        self.on_first: Callable[[], None] | None = None
        self._limiter: Limiter | None = None
        self._processes = 1
        self._clock: Any = None
        self._expects_views = False
        self.rebase(base)

    @property
    def base(self) -> Policy:
        """The policy of settings and environment, below the admin's."""
        return self._base

    def rebase(self, base: Policy) -> None:
        """Replace the policy of settings and environment; one from the admin stays in force.

        Errors: `ValueError` when `base` expires or has no ratio: nothing would be left to apply.
        """
        if base.expires_at_s is not None or any(rule.expires_at_s is not None for rule in base.rules):
            raise ValueError("The base policy of the sampler cannot expire.")
        if base.ratio is None:
            raise ValueError("The base policy of the sampler has no ratio.")
        self._base = base
        self._compose(time.time())

    @property
    def live(self) -> Policy | None:
        """The policy last given to `swap`, expired or not."""
        return self._live

    def swap(self, policy: Policy | None) -> None:
        """Put `policy` in force, for every tracer of the process at once; None goes back to `base`."""
        self._live = policy
        self._compose(time.time())

    def share(self, processes: int, clock: Any = None) -> None:
        """Say how many processes divide the limit of traces per second among them, and which clock they share."""
        self._processes, self._clock = max(1, processes), clock
        limiter = self._limiter
        if limiter is not None and (limiter.processes != self._processes or limiter.clock is not clock):
            limiter.share(self._processes, clock)

    def expect_views(self) -> None:
        """Say that views with ratios of their own exist: what no rule decides waits for the view."""
        if not self._expects_views:
            self._expects_views = True
            self._compose(time.time())

    @property
    def processes(self) -> int:
        """How many processes divide the limit of traces per second among them."""
        return self._processes

    def after_fork(self) -> None:
        """In the child: the limit begins anew, for its lock may have been held by a thread of the parent."""
        self._limiter = self._clock = None
        self._compose(time.time())

    def _compose(self, now_s: float) -> InForce:
        base, live = self._base, self._live
        built = InForce(base, live, now_s, None, self.open_series, expects_views=self._expects_views)
        if built.max_per_second is None:
            self._limiter = None
        elif self._limiter is None or self._limiter.max_per_second != built.max_per_second:
            self._limiter = Limiter(built.max_per_second, self._processes, self._clock)
        built.limiter = self._limiter
        built.is_steady = built.limiter is None and not built.is_timed
        if self.on_compose is not None:
            self.on_compose(built)
        self.in_force = built
        return built

    @property
    def policy(self) -> InForce:
        """What is in force now."""
        policy = self.in_force
        # The clock is only asked while something with an end is in force. It may be set back as well.
        if policy.is_timed and not policy.since_s <= (now_s := time.time()) < policy.until_s:
            return self._compose(now_s)
        return policy

    def ratio_now(self) -> float:
        """The share of new traces that is recorded now where no rule says otherwise, from 0.0 to 1.0."""
        return self.policy.ratio

    def decide(self, trace_id: int) -> bool:
        """Whether the ratio records this trace: the same answer in every process and service with the same ratio."""
        return trace_id & _LOW_64_BITS < self.policy.branch_by_default.bound

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide on one span: excluded or suppressed, else as its local parent, else as a trace that begins here.

        A remote parent is followed as `ParentBased` does; whether it may be
        trusted is settled before, when it is extracted. The parent's trace state
        is passed on.
        """
        context = get_current() if parent_context is None else parent_context
        span = get_current_span(context)
        parent = span.get_span_context()
        has_parent = parent.is_valid
        if context.get(_UNTRACED_KEY) or context.get(SUPPRESS_INSTRUMENTATION_KEY):
            result = _DROP
        elif has_parent and not parent.is_remote:
            result = _RECORD
            if not parent.trace_flags.sampled:
                # A local trace that is held back records its spans, too. The stock ParentBased would drop them.
                result = _RECORD_ONLY if span.is_recording() else _DROP
            if result is not _DROP and not self._fits(trace_id):
                result = _DROP
        else:
            if self.on_first is not None:
                # Nothing is decided before the process knows the policy of its host.
                self.on_first()
            policy = self.policy
            branch: Any = context.get(_BRANCH_KEY)
            if branch is None and kind is SpanKind.SERVER and policy.has_rules and attributes:
                branch = _branch_of_attributes(policy, attributes)
            result = policy.judge(trace_id, parent if has_parent else None, branch).result

        passed_on = parent.trace_state if has_parent and parent.trace_state else None
        if result is _DROP or not attributes:
            # The shared results are good as they are.
            if passed_on is None:
                return result
            return SamplingResult(result.decision, result.attributes, passed_on)
        # The SDK gives the new span the result's attributes, not those it was asked with.
        both = {**attributes, **result.attributes} if result.attributes else attributes
        return SamplingResult(result.decision, both, passed_on)

    def follows(self, context: Context, parent: Span, parent_context: SpanContext) -> bool | None:
        """Whether a child of `parent`, a local span that is or was recorded, is recorded: `should_sample` in short."""
        if context.get(_UNTRACED_KEY) or context.get(SUPPRESS_INSTRUMENTATION_KEY):
            return False
        if not parent_context.trace_flags & 1 and not parent.is_recording():
            return False
        return self.budget is None or self.budget(parent_context.trace_id)

    def _fits(self, trace_id: int) -> bool:
        """Whether a span of the SDK's own fits the budget; above it none is kept, whatever its end."""
        fits = self.budget is None or self.budget(trace_id)
        if fits is None and self.end_over_budget is not None:
            self.end_over_budget(trace_id, False)
        return bool(fits)

    def get_description(self) -> str:
        policy = self.policy
        return f"LiveSampler{{ratio={policy.ratio:g}, source={policy.source}, version={policy.version}}}"


def _branch_of_attributes(policy: InForce, attributes: Mapping[str, Any]) -> Branch | None:
    """For a server span that another instrumentation makes: what its method and path lead to."""
    path = attributes.get("url.path") or attributes.get("http.target")
    if not isinstance(path, str):
        return None
    method = attributes.get("http.request.method") or attributes.get("http.method")
    return policy.early_branch(str(method), path.partition("?")[0])[0]
