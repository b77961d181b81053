"""Effective policy: all layers combined for one moment, and the outcome for each request.

What follows from a policy is computed when it is applied, so that a
decision is a comparison and a cell update.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from opentelemetry.trace import SpanContext

from django_otel.sampling.decision import Decision, OpenSeries
from django_otel.sampling.limiter import Limiter
from django_otel.sampling.policy import METHODS, TASK_PREFIX, Policy, Rule
from django_otel.sampling.tracestate import format_threshold

LOW_64_BITS = (1 << 64) - 1
#: Paths whose matching rule is remembered, and the longest of them; clients choose paths.
_MAX_REMEMBERED = 4096
_MAX_REMEMBERED_LENGTH = 256


class RuleOutcome:
    """Where the order of decisions led: a rule, the ratio, or a forced trace; `bound` decides by trace id."""

    __slots__ = ("bound", "dropped", "is_forced", "is_never", "limited", "recorded", "rule")

    def __init__(
        self,
        ratio: float,
        reason: str,
        rule: Rule | None,
        is_held: bool,
        open_series: OpenSeries | None,
        *,
        is_limited: bool = False,
    ) -> None:
        #: Trace ids whose low 64 bits are below this are recorded. Source: `TraceIdRatioBased` of the SDK.
        self.bound = round(ratio * (LOW_64_BITS + 1))
        #: Whether no trace is recorded, nor held back, so that no id is needed.
        self.is_never = self.bound == 0 and not is_held
        self.rule = rule
        self.is_forced = reason == "forced"
        label = rule.label if rule is not None else ""
        # Not where a limit decides as well, or a person: the share that is recorded is another one then.
        threshold = format_threshold(self.bound) if not is_limited and not self.is_forced else ""

        def decision(is_sampled: bool, reason: str) -> Decision:
            return Decision(
                is_sampled=is_sampled, is_held=is_held, reason=reason, rule=label,
                weight=1.0 / ratio if ratio else None, open_series=open_series, threshold=threshold,
            )  # fmt: skip

        self.recorded = decision(True, reason)
        self.dropped = decision(False, reason)
        self.limited = decision(False, "rate_limit")


class EffectivePolicy:
    """The layers combined at one moment, by which traces are decided. Immutable.

    `ratio`, `source`, `version`, `note` and `expires_at_s` are those of the
    layer whose ratio applies; `rules` are the ones that have not run out, in the
    order they are tried, `rule_sources` whose each is. It holds from `since_s`
    (included) to `until_s` (seconds since the Unix epoch).
    """

    __slots__ = (
        "_expects_views",
        "_open_series",
        "_outcomes",
        "_parent_limited",
        "_parent_no",
        "_parent_yes",
        "_paths",
        "_remembered",
        "_route_outcomes",
        "_view_outcomes",
        "default_outcome",
        "expires_at_s",
        "follows_parent",
        "forced",
        "has_rules",
        "is_steady",
        "is_timed",
        "keep_errors",
        "keep_slow_s",
        "keeps",
        "limiter",
        "max_per_second",
        "note",
        "ratio",
        "rule_sources",
        "rules",
        "since_s",
        "source",
        "until_s",
        "usual",
        "version",
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
        #: The outcome of every request, if this is steady and there are no rules; else None.
        self.usual: RuleOutcome | None = None
        # One that is whole is all there is.
        self._expects_views = expects_views and not (upper is not None and upper.is_whole)
        #: Whether spans are held back until it is known how their trace ends.
        self.keeps = self.keep_errors or self.keep_slow_s is not None
        self._build(open_series)

    def _build(self, open_series: OpenSeries | None) -> None:
        held, is_limited = self.keeps, self.max_per_second is not None
        self.default_outcome = RuleOutcome(self.ratio, "ratio", None, held, open_series, is_limited=is_limited)
        self.forced = RuleOutcome(1.0, "forced", None, held, open_series)
        self._outcomes = [
            RuleOutcome(rule.ratio, "rule", rule, held, open_series, is_limited=is_limited) for rule in self.rules
        ]
        self._parent_yes, self._parent_no, self._parent_limited = (
            Decision(is_sampled=sampled, is_held=held, reason=reason, open_series=open_series)
            for sampled, reason in ((True, "parent"), (False, "parent"), (False, "rate_limit"))
        )
        self.has_rules = self._expects_views or not all(rule.is_for_tasks for rule in self.rules)
        self._view_outcomes: dict[float, RuleOutcome] = {}
        self._open_series = open_series
        #: By method: one pattern over all rules without a route, and the place of the first one with a route.
        self._paths = {method: self._build_paths(method) for method in METHODS} if self.has_rules else {}
        self._remembered: dict[tuple[str, str], RuleOutcome | None] = {}
        self._route_outcomes: dict[tuple[str, str, RuleOutcome], RuleOutcome] = {}

    def _build_paths(self, method: str) -> tuple[Any, list[int], int]:
        patterns, places, first_route = [], [], len(self.rules)
        for place, rule in enumerate(self.rules):
            if rule.is_for_tasks or (rule.method and rule.method != method):
                continue
            if rule.route:
                first_route = min(first_route, place)
            else:
                # One alternation: the first alternative that matches is the first rule, identified by its group.
                patterns.append(f"({rule.pattern})" if rule.path else "()")
                places.append(place)
        return re.compile("|".join(patterns)).match if patterns else None, places, first_route

    def early_outcome(self, method: str, path: str) -> tuple[RuleOutcome, int]:
        """Return where method and path alone lead, and the place of the first rule with a route that may be before."""
        match, places, first_route = self._paths.get(method) or self._paths["_OTHER"]
        found = match(path) if match is not None else None
        place = places[found.lastindex - 1] if found is not None else len(self.rules)
        outcome = self._outcomes[place] if place < len(self.rules) else self.default_outcome
        return outcome, first_route if first_route < place else -1

    def outcome(self, method: str, path: str) -> RuleOutcome | None:
        """The first rule for this request, or the ratio; None when that depends on the route."""
        if not self.has_rules:
            return self.default_outcome
        key = (method, path)
        try:
            return self._remembered[key]
        except KeyError:
            pass
        early, first_route = self.early_outcome(method, path)
        is_late = first_route >= 0 or (self._expects_views and early is self.default_outcome)
        found = None if is_late else early
        if len(path) <= _MAX_REMEMBERED_LENGTH:
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[key] = found
        return found

    def outcome_of_route(self, method: str, path: str, route: str | None) -> RuleOutcome:
        """The first rule for this request, or the ratio, now that `route` is known (None: it never will be)."""
        if not self.has_rules:
            return self.default_outcome
        early, first_route = self.early_outcome(method, path)
        if route is None or first_route < 0:
            return early
        key = (method, route, early)
        found = self._route_outcomes.get(key)
        if found is None:
            found = early
            for rule, outcome in zip(self.rules, self._outcomes, strict=True):
                if outcome is early:
                    break
                if rule.route and rule.matches(method, path, route):
                    found = outcome
                    break
            # Bounded: routes come from the URLconf.
            self._route_outcomes[key] = found
        return found

    def outcome_of_task(self, name: str) -> RuleOutcome:
        """The first rule for the task of that name, or the ratio."""
        if not self.rules:
            return self.default_outcome
        path = TASK_PREFIX + name
        key = ("", path)
        known = self._remembered.get(key)
        if known is not None:
            return known
        found = self.default_outcome
        for rule, outcome in zip(self.rules, self._outcomes, strict=True):
            if rule.matches("", path, path):
                found = outcome
                break
        if len(self._remembered) < _MAX_REMEMBERED and len(path) <= _MAX_REMEMBERED_LENGTH:
            self._remembered[key] = found
        return found

    def outcome_of_sender(self, is_sampled: bool) -> RuleOutcome:
        """Return where a trace is led that is linked to its sender's and decided as that one was."""
        return RuleOutcome(1.0 if is_sampled else 0.0, "parent", None, self.keeps, self._open_series)

    def outcome_of_view(self, ratio: float) -> RuleOutcome:
        """Return where a view leads that has a ratio of its own."""
        found = self._view_outcomes.get(ratio)
        if found is None:
            is_limited = self.max_per_second is not None
            found = RuleOutcome(ratio, "view", None, self.keeps, self._open_series, is_limited=is_limited)
            self._view_outcomes[ratio] = found
        return found

    def judge(self, trace_id: int, parent: SpanContext | None = None, outcome: RuleOutcome | None = None) -> Decision:
        """Decide on a trace that begins here, and count it."""
        decision = self.decide(trace_id, parent, outcome)
        decision.count()
        return decision

    def decide(self, trace_id: int, parent: SpanContext | None = None, outcome: RuleOutcome | None = None) -> Decision:
        """Decide on a trace that begins here; the caller counts it.

        `parent` is a remote parent that may be trusted; `outcome` where the
        request's rules led, None for the ratio. The same trace id gives the same
        answer in every process and service with the same ratio.
        """
        if outcome is not None and outcome.is_forced:
            decision = outcome.recorded
        else:
            if parent is not None and self.follows_parent:
                decision = self._parent_yes if parent.trace_flags & 1 else self._parent_no
                limited = self._parent_limited
            else:
                if outcome is None:
                    outcome = self.default_outcome
                decision = outcome.recorded if trace_id & LOW_64_BITS < outcome.bound else outcome.dropped
                limited = outcome.limited
            if self.limiter is not None and decision.is_sampled:
                number = self.limiter.acquire()
                if number != 1:
                    decision = decision.weight(number) if number else limited
        return decision


def _first(upper: object, lower: object) -> Any:
    return lower if upper is None else upper


def outcome_of_attributes(policy: EffectivePolicy, attributes: Mapping[str, object]) -> RuleOutcome | None:
    """For a server span that another instrumentation makes: what its method and path lead to."""
    path = attributes.get("url.path") or attributes.get("http.target")
    if not isinstance(path, str):
        return None
    method = attributes.get("http.request.method") or attributes.get("http.method")
    return policy.early_outcome(str(method), path.partition("?")[0])[0]
