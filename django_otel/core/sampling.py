"""The live sampler: one object for the life of the process, whose policy is swapped inside.

SDK tracers copy their provider's sampler when they are made, so a new sampler
would not reach them; a new policy in the old sampler does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from opentelemetry.context import Context, create_key, get_current, set_value
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState, get_current_span
from opentelemetry.util.types import Attributes

from django_otel.core.policy import Policy, Rule
from django_otel.core.sdk_compat import SUPPRESS_INSTRUMENTATION_KEY

__all__ = ["LiveSampler", "Policy", "Rule", "untraced"]

_LOW_64_BITS = (1 << 64) - 1
_UNTRACED_KEY = create_key("django_otel-untraced")

_RECORD = SamplingResult(Decision.RECORD_AND_SAMPLE)
_DROP = SamplingResult(Decision.DROP)


def untraced(context: Context | None = None) -> Context:
    """A copy of `context` (default: the current one) in which the sampler drops every span."""
    return set_value(_UNTRACED_KEY, True, context)


class LiveSampler(Sampler):
    """Decides which traces are recorded: by the parent, else by a ratio that may change at any time.

    `base` is the policy of settings and environment. A policy given to `swap`
    takes its place until it expires, by this process's clock, or is taken back
    with `swap(None)`. Writers only ever assign one attribute, so readers need
    no lock and see either the old or the new policy whole.
    """

    def __init__(self, base: Policy) -> None:
        self._live: Policy | None = None
        #: Asked for each further span of a recorded local trace; False drops it (LIMITS.SPANS_PER_TRACE).
        self.budget: Callable[[int], bool] | None = None
        self.rebase(base)

    @property
    def base(self) -> Policy:
        """The policy of settings and environment, in force when no other is or the other has expired."""
        return self._base

    def rebase(self, base: Policy) -> None:
        """Replace the policy of settings and environment; one from the admin stays in force.

        Errors: `ValueError` when `base` expires: nothing would be left to apply.
        """
        if base.expires_at_s is not None:
            raise ValueError("The base policy of the sampler cannot expire.")
        if base.ratio is None:
            raise ValueError("The base policy of the sampler has no ratio.")
        self._base = base

    @property
    def live(self) -> Policy | None:
        """The policy last given to `swap`, expired or not."""
        return self._live

    def swap(self, policy: Policy | None) -> None:
        """Put `policy` in force, for every tracer of the process at once; None goes back to `base`."""
        self._live = policy

    @property
    def policy(self) -> Policy:
        """The policy in force now."""
        policy = self._live
        # The clock is only asked while a policy with an end is in force.
        if policy is None or (policy.expires_at_s is not None and time.time() >= policy.expires_at_s):
            return self._base
        return policy

    def ratio_now(self) -> float:
        """The share of new traces that is recorded now, from 0.0 to 1.0."""
        return self.policy.ratio or 0.0

    def decide(self, trace_id: int) -> bool:
        """Whether a trace that begins here is recorded.

        The same trace id gives the same answer in every process and service
        with the same ratio.
        """
        return trace_id & _LOW_64_BITS < self.policy.bound

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
        """Decide on one span: excluded or suppressed, else as its parent, else by the ratio.

        A parent, local or remote, is followed as `ParentBased` does. Whether a
        remote parent may be trusted is settled before, when it is extracted.
        The parent's trace state is passed on.
        """
        context = get_current() if parent_context is None else parent_context
        parent = get_current_span(context).get_span_context()
        has_parent = parent.is_valid
        if context.get(_UNTRACED_KEY) or context.get(SUPPRESS_INSTRUMENTATION_KEY):
            sampled = False
        elif has_parent:
            sampled = parent.trace_flags.sampled
            if sampled and self.budget is not None and not parent.is_remote:
                sampled = self.budget(trace_id)
        else:
            sampled = self.decide(trace_id)

        passed_on = parent.trace_state if has_parent and parent.trace_state else None
        if not sampled:
            return _DROP if passed_on is None else SamplingResult(Decision.DROP, None, passed_on)
        if not attributes and passed_on is None:
            return _RECORD
        # The SDK gives the new span the result's attributes, not those it was asked with.
        return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, passed_on)

    def get_description(self) -> str:
        policy = self.policy
        return f"LiveSampler{{ratio={policy.ratio:g}, source={policy.source}, version={policy.version}}}"
