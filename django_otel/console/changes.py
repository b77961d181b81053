"""Routes before and after a point in time: failing, slower and new ones, the most important first.

Two sources: the figures of all requests, which are kept for some three hours, and the stored traces, which reach back
further but are a choice. Both sides of a comparison come from the same one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django_otel.console.quantiles import quantile
from django_otel.console.route_sums import RouteSum, by_route
from django_otel.tracestore import record_reader
from django_otel.tracestore.columns import DAMAGED
from django_otel.tracestore.numbers import merge
from django_otel.tracestore.reader import StoreReader

BROKEN, SLOWER, NEW, SAME, MENDED, FASTER, GONE = "broken", "slower", "new", "same", "mended", "faster", "gone"
#: In which order the routes are listed.
VERDICTS = (BROKEN, SLOWER, NEW, SAME, MENDED, FASTER, GONE)
#: A rise of the share of failed requests that counts.
_SHARE = 0.02
#: A change of the 95th percentile that counts: the ratio and the difference in nanoseconds; of few requests more.
_RATIO, _LEAST_NS = 1.25, 5_000_000
_FEW, _RATIO_OF_FEW, _LEAST_OF_FEW_NS = 10, 1.5, 20_000_000
_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Moments:
    """Compared spans of time: from `begin_s` to `split_s`, and from there to `end_s` (seconds since the Unix epoch)."""

    begin_s: float
    split_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Requests of a route on one side. `errors` counts failed ones; percentiles are nanoseconds."""

    requests: float
    errors: float
    p50_ns: float
    p95_ns: float

    @property
    def share(self) -> float:
        """The share of failed requests."""
        return self.errors / self.requests if self.requests else 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """A route on both sides; None where it had no request. `method` is known of traces alone."""

    method: str
    route: str
    before: Figures | None
    after: Figures | None

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`."""
        return judge(self.before, self.after)

    @property
    def weight(self) -> float:
        """Return how much it matters among those of its verdict: failed requests, or time that requests took longer."""
        before, after = self.before, self.after
        if after is None:
            return before.requests if before is not None else 0.0
        if self.verdict in (BROKEN, MENDED):
            return abs(after.share - (before.share if before is not None else 0.0)) * after.requests
        if before is None:
            return after.p95_ns * after.requests
        return abs(after.p95_ns - before.p95_ns) * after.requests


@dataclass(frozen=True, slots=True)
class Comparison:
    """The routes, most important first. `is_exact`: of all requests, else of those whose trace is stored.

    `step_s` is how exact the moments are, in seconds.
    """

    changes: Sequence[Change]
    is_exact: bool
    step_s: int = 0


def judge(before: Figures | None, after: Figures | None) -> str:
    """Return the verdict on a route."""
    if after is None or not after.requests:
        return GONE
    share = before.share if before is not None else 0.0
    if after.share - share >= _SHARE:
        return BROKEN
    if before is None or not before.requests:
        return NEW
    if is_slower(before, after):
        return SLOWER
    if share - after.share >= _SHARE:
        return MENDED
    return FASTER if is_slower(after, before) else SAME


def is_slower(one: Figures, other: Figures) -> bool:
    """Return whether the 95th percentile of `other` is above that of `one` by more than chance."""
    is_few = min(one.requests, other.requests) < _FEW
    ratio, least_ns = (_RATIO_OF_FEW, _LEAST_OF_FEW_NS) if is_few else (_RATIO, _LEAST_NS)
    return other.p95_ns >= one.p95_ns * ratio and other.p95_ns - one.p95_ns >= least_ns


def compare(
    reader: StoreReader, moments: Moments, *, now_s: float, service: str, newest: Mapping[str, Any] | None = None
) -> Comparison:
    """Compare the routes of a service ("": of all). `newest` has the figures counted since the last sample."""
    counted = reader.counted_between(
        (moments.begin_s, moments.split_s, moments.end_s), now_s=now_s, service=service, newest=newest
    )
    if counted is not None:
        step_s, (before, after) = counted
        return Comparison(_in_order(_of_numbers(before), _of_numbers(after)), is_exact=True, step_s=step_s)
    begin_ns, split_ns, end_ns = (int(at_s * _NS_PER_S) for at_s in (moments.begin_s, moments.split_s, moments.end_s))
    rows = record_reader.list_requests(reader.connection, since_ns=begin_ns, service=service)
    earlier = by_route([row for row in rows if row.start_ns < split_ns])
    later = by_route([row for row in rows if split_ns <= row.start_ns < end_ns])
    return Comparison(_in_order(_of_traces(earlier), _of_traces(later)), is_exact=False)


_Key = tuple[str, str]


def figures_of(route: RouteSum) -> Figures:
    """The figures of a route of stored traces."""
    return Figures(route.requests, route.errors, route.p50_ns, route.p95_ns)


def _of_traces(routes: Mapping[_Key, RouteSum]) -> dict[_Key, Figures]:
    return {key: figures_of(route) for key, route in routes.items()}


def _of_numbers(sources: Sequence[Mapping[str, Any]]) -> dict[_Key, Figures]:
    """The figures of each route over all sources."""
    total: dict[str, Any] = {}
    bounds: list[float] = []
    for source in sources:
        with contextlib.suppress(*DAMAGED):
            if text := source.get("bounds", {}).get("duration"):
                bounds = [float(bound) for bound in str(text).split()]
            total = merge(total, source.get("routes", {}))
    found = {}
    for route, figures in total.items():
        with contextlib.suppress(*DAMAGED):
            durations = figures["duration"]
            if durations[0] > 0:
                p50, p95 = (quantile(durations[2:], bounds, share) or 0.0 for share in (0.5, 0.95))
                errors = min(figures.get("errors", 0), durations[0])
                found["", str(route)] = Figures(float(durations[0]), errors, p50 * _NS_PER_S, p95 * _NS_PER_S)
    return found


def _in_order(before: Mapping[_Key, Figures], after: Mapping[_Key, Figures]) -> list[Change]:
    found = [Change(*key, before.get(key), after.get(key)) for key in {**before, **after}]
    return sorted(found, key=lambda change: (VERDICTS.index(change.verdict), -change.weight, change.route))
