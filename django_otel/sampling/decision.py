"""Decisions: the possible answers to "is this trace recorded?", with their attributes and counters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry.sdk.trace.sampling import Decision as SdkDecision
from opentelemetry.sdk.trace.sampling import SamplingResult

REASON = "sampling.reason"
RULE = "sampling.rule"
#: How many traces a recorded one stands for: the inverse of the probability it was recorded with.
WEIGHT = "sampling.weight"

RECORD = SamplingResult(SdkDecision.RECORD_AND_SAMPLE)
RECORD_ONLY = SamplingResult(SdkDecision.RECORD_ONLY)
DROP = SamplingResult(SdkDecision.DROP)


if TYPE_CHECKING:

    class _Series(Protocol):
        def add(self, amount: float) -> None: ...


#: Gives the counter series of (rule, decision, reason).
OpenSeries = Callable[[str, str, str], "_Series"]


class Decision:
    """One of the possible answers to "is this trace recorded?"; made once and given to many.

    `attributes` are for the local root span when the trace is recorded (None:
    nothing to say); `is_recording` without `is_sampled` means that its spans are
    held back until it is known how it ends (`tracing.tail`).
    """

    __slots__ = (
        "_open_series", "attributes", "is_recording", "is_sampled", "opened", "reason", "result", "rule", "threshold",
    )  # fmt: skip

    def __init__(
        self,
        *,
        is_sampled: bool,
        is_held: bool,
        reason: str,
        rule: str = "",
        weight: float | None = None,
        open_series: OpenSeries | None = None,
        threshold: str = "",
    ) -> None:
        self.is_sampled = is_sampled
        self.is_recording = is_sampled or is_held
        #: `th` of the trace state (`sampling.tracestate`); "" where no ratio alone has decided.
        self.threshold = threshold if is_sampled else ""
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
            self.result = RECORD_ONLY if is_held else DROP
        else:
            self.result = SamplingResult(SdkDecision.RECORD_AND_SAMPLE, attributes) if attributes else RECORD
        self._open_series = open_series
        #: `series()`, cached at the first call.
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

    def weight(self, number: int) -> Decision:
        """This answer for one trace that stands for `number`, because the limit refused the ones before it."""
        attributes = dict(self.attributes or ())
        if self.reason == "parent":
            # The share that the parent was recorded with is not known here.
            return self
        attributes[WEIGHT] = attributes.get(WEIGHT, 1.0) * number
        other: Decision = object.__new__(Decision)
        for name in Decision.__slots__:
            setattr(other, name, getattr(self, name))
        other.attributes = attributes
        other.threshold = ""
        other.result = SamplingResult(SdkDecision.RECORD_AND_SAMPLE, attributes)
        return other
