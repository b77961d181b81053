"""Choice of the exemplars that a Prometheus page shows."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable

from django_otel.metrics.model import Exemplar, ExponentialValue, HistogramValue


def _time(exemplar: Exemplar) -> float:
    return exemplar.time_unix_s


def is_showable(exemplar: Exemplar) -> bool:
    """Return whether the exemplar leads to a span and both formats can hold its numbers."""
    return (
        0 < exemplar.trace_id < 1 << 128
        and 0 < exemplar.span_id < 1 << 64
        and math.isfinite(exemplar.value)
        and math.isfinite(exemplar.time_unix_s)
    )


def exemplar_labels(exemplar: Exemplar) -> dict[str, str]:
    """63 of the 128 characters that OpenMetrics allows."""
    return {"trace_id": f"{exemplar.trace_id:032x}", "span_id": f"{exemplar.span_id:016x}"}


def newest_exemplar(exemplars: Iterable[Exemplar]) -> Exemplar | None:
    return max(filter(is_showable, exemplars), key=_time, default=None)


def keep_newest(value: object, one: Iterable[Exemplar], other: Iterable[Exemplar]) -> list[Exemplar]:
    """Return the exemplars of two points that are one series, whose sum is `value`: the newest of each bucket.

    Prometheus refuses exemplars that go back in time, so an older one must not come back when points are added up in
    another order or the newer one's process has nothing new to say.
    """
    every = [*one, *other]
    if len(every) < 2:
        return every
    newest: dict[int, Exemplar] = {}
    for exemplar in sorted(every, key=_time):
        if isinstance(value, HistogramValue):
            bucket = bisect.bisect_left(value.bounds, exemplar.value)
        elif isinstance(value, ExponentialValue):
            # As fine as their page needs it, and as few as there are powers of two.
            bucket = math.frexp(exemplar.value)[1]
        else:
            bucket = 0
        newest[bucket] = exemplar
    return list(newest.values())


def exemplars_by_bucket(bounds: tuple[float, ...], exemplars: Iterable[Exemplar]) -> dict[int, Exemplar]:
    """The newest exemplar of each bucket that has one."""
    newest: dict[int, Exemplar] = {}
    for exemplar in sorted(filter(is_showable, exemplars), key=_time):
        newest[bisect.bisect_left(bounds, exemplar.value)] = exemplar
    return newest
