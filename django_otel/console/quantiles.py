"""Percentiles of histograms."""

from __future__ import annotations

from collections.abc import Sequence


def quantile(counts: Sequence[float], bounds: Sequence[float], share: float) -> float | None:
    """The value below which `share` of all lie, by linear interpolation within its bucket; None without values.

    Above the last bound nothing is known, so that bound is given.
    Source: Prometheus, `histogram_quantile`.
    """
    total = sum(counts)
    if total <= 0:
        return None
    rank = share * total
    below = 0.0
    for index, number in enumerate(counts):
        if number > 0 and below + number >= rank:
            if index >= len(bounds):
                return float(bounds[-1]) if bounds else None
            low = bounds[index - 1] if index else min(0.0, bounds[0])
            return low + (bounds[index] - low) * max(0.0, rank - below) / number
        below += number
    return float(bounds[-1]) if bounds else None
