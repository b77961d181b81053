"""The live sampler: one object for the life of the process, whose policy is swapped inside.

SDK tracers copy their provider's sampler when they are made, so a new sampler
would not reach them; a new policy in the old sampler does.

A trace that begins here is decided once, in this order: excluded or suppressed
-> forced -> a trusted remote parent -> the first rule that matches -> the
ratio. The limit of traces per second then covers all but what was forced.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry.context import Context, create_key, get_current, set_value
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, TraceState, get_current_span
from opentelemetry.util.types import Attributes

from django_otel.base.sdk_compat import SUPPRESS_INSTRUMENTATION_KEY
from django_otel.sampling.decision import DROP, RECORD, RECORD_ONLY, OpenSeries
from django_otel.sampling.effective import LOW_64_BITS, EffectivePolicy, RuleOutcome, outcome_of_attributes
from django_otel.sampling.limiter import Limiter
from django_otel.sampling.policy import Policy
from django_otel.sampling.tracestate import build_state, replace_threshold

_UNTRACED_KEY = create_key("django_otel-untraced")
_OUTCOME_KEY = create_key("django_otel-sampling-branch")


def untraced(context: Context | None = None) -> Context:
    """A copy of `context` (default: the current one) in which the sampler drops every span."""
    return set_value(_UNTRACED_KEY, True, context)


def with_outcome(outcome: RuleOutcome, context: Context | None = None) -> Context:
    """A copy of `context` in which a trace that begins is decided by `outcome`."""
    return set_value(_OUTCOME_KEY, outcome, context)


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
        #: Opens the counters of decisions; None counts nothing. Takes effect with the next policy.
        self.open_series: OpenSeries | None = None
        #: Called with a policy before it is applied.
        self.on_compose: Callable[[EffectivePolicy], None] | None = None
        #: Called before the first decision of the process, and removed by the code that has done it.
        self.on_first: Callable[[], None] | None = None
        self._limiter: Limiter | None = None
        self._processes = 1
        self._clock: object = None
        self._expects_views = False
        self.rebase(base)

    @property
    def base(self) -> Policy:
        """The policy of settings and environment, below the admin's."""
        return self._base

    def rebase(self, base: Policy) -> None:
        """Replace the policy of settings and environment; one from the admin stays in effect.

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
        """Apply `policy` to every tracer of the process at once; None goes back to `base`."""
        self._live = policy
        self._compose(time.time())

    def share(self, processes: int, clock: object = None) -> None:
        """Say how many processes divide the limit of traces per second among them, and which clock they share."""
        self._processes, self._clock = max(1, processes), clock
        limiter = self._limiter
        if limiter is not None and (limiter.processes != self._processes or limiter.clock is not clock):
            limiter.share(self._processes, clock)

    def expect_views(self) -> None:
        """Note that views with ratios of their own exist: traces that no rule decides wait for the view."""
        if not self._expects_views:
            self._expects_views = True
            self._compose(time.time())

    @property
    def processes(self) -> int:
        """Return how many processes divide the limit of traces per second among them."""
        return self._processes

    def after_fork(self) -> None:
        """In the child: restart the limit, because a thread of the parent may have held its lock."""
        self._limiter = self._clock = None
        self._compose(time.time())

    def _compose(self, now_s: float) -> EffectivePolicy:
        base, live = self._base, self._live
        built = EffectivePolicy(base, live, now_s, None, self.open_series, expects_views=self._expects_views)
        if built.max_per_second is None:
            self._limiter = None
        elif self._limiter is None or self._limiter.max_per_second != built.max_per_second:
            self._limiter = Limiter(built.max_per_second, self._processes, self._clock)
        built.limiter = self._limiter
        built.is_steady = built.limiter is None and not built.is_timed
        built.usual = built.default_outcome if built.is_steady and not built.has_rules else None
        if self.on_compose is not None:
            self.on_compose(built)
        self.effective = built
        return built

    @property
    def policy(self) -> EffectivePolicy:
        """Return the effective policy."""
        policy = self.effective
        # The clock is only asked while something with an end is in effect. It may be set back as well.
        if policy.is_timed and not policy.since_s <= (now_s := time.time()) < policy.until_s:
            return self._compose(now_s)
        return policy

    def ratio_now(self) -> float:
        """The share of new traces that is recorded now where no rule says otherwise, from 0.0 to 1.0."""
        return self.policy.ratio

    def decide(self, trace_id: int) -> bool:
        """Return whether the ratio records this trace: the same in every process and service with the same ratio."""
        return trace_id & LOW_64_BITS < self.policy.default_outcome.bound

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
        is passed on, without its threshold where it is not the parent that has decided.
        """
        context = get_current() if parent_context is None else parent_context
        span = get_current_span(context)
        parent = span.get_span_context()
        has_parent = parent.is_valid
        passed_on = parent.trace_state if has_parent and parent.trace_state else None
        if context.get(_UNTRACED_KEY) or context.get(SUPPRESS_INSTRUMENTATION_KEY):
            result = DROP
        elif has_parent and not parent.is_remote:
            result = RECORD
            if not parent.trace_flags.sampled:
                # A local trace that is held back records its spans, too. The stock ParentBased would drop them.
                result = RECORD_ONLY if span.is_recording() else DROP
            if result is not DROP and not self._fits(trace_id):
                result = DROP
        else:
            if self.on_first is not None:
                # Nothing is decided before the process knows the policy of its host.
                self.on_first()
            policy = self.policy
            outcome: Any = context.get(_OUTCOME_KEY)
            if outcome is None and policy.has_rules and attributes and kind is SpanKind.SERVER:
                outcome = outcome_of_attributes(policy, attributes)
            decision = policy.judge(trace_id, parent if has_parent else None, outcome)
            result = decision.result
            if not has_parent:
                passed_on = build_state(decision.threshold, trace_id) or None
            elif decision.reason != "parent" or policy.limiter is not None:
                passed_on = replace_threshold(passed_on, decision.threshold) or None
        if result is DROP and passed_on is not None and parent.trace_flags.sampled:
            # A trace that is not sampled has no threshold.
            passed_on = replace_threshold(passed_on, "") or None
        if result is DROP or not attributes:
            # The shared results are good as they are.
            if passed_on is None:
                return result
            return SamplingResult(result.decision, result.attributes, passed_on)
        # The SDK gives the new span the result's attributes, not those it was asked with.
        both = {**attributes, **result.attributes} if result.attributes else attributes
        return SamplingResult(result.decision, both, passed_on)

    def follows(self, context: Context, parent: Span, parent_context: SpanContext) -> bool | None:
        """Return whether a child of `parent`, a local span that is or was recorded, is: `should_sample` in short."""
        if context.get(_UNTRACED_KEY) or context.get(SUPPRESS_INSTRUMENTATION_KEY):
            return False
        if not parent_context.trace_flags & 1 and not parent.is_recording():
            return False
        return self.budget is None or self.budget(parent_context.trace_id)

    def _fits(self, trace_id: int) -> bool:
        """Return whether a span of the SDK's own fits the budget; above it none is kept, failed or not."""
        fits = self.budget is None or self.budget(trace_id)
        if fits is None and self.end_over_budget is not None:
            self.end_over_budget(trace_id, False)
        return bool(fits)

    def get_description(self) -> str:
        policy = self.policy
        return f"LiveSampler{{ratio={policy.ratio:g}, source={policy.source}, version={policy.version}}}"
