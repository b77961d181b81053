"""Bucket bounds of histograms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import SupportsFloat


def are_ascending(bounds: tuple[float, ...]) -> bool:
    """Return whether all bounds are finite, and each is above the one before."""
    return all(map(math.isfinite, bounds)) and all(a < b for a, b in itertools.pairwise(bounds))


def read_bounds(name: object, bounds: Iterable[SupportsFloat] | None) -> tuple[float, ...]:
    """Return the upper bounds of the histogram `name` as numbers, without the infinite one, which is always there.

    Errors: `ValueError` unless the bounds are ascending numbers.
    """
    given = tuple(bounds) if isinstance(bounds, Iterable) else () if bounds is None else (bounds,)
    found: tuple[float, ...] | None = None
    if all(isinstance(bound, SupportsFloat) for bound in given):
        try:
            found = tuple(map(float, given))
        except (ValueError, TypeError, OverflowError):
            found = None
    if found and found[-1] == math.inf:
        found = found[:-1]
    if found is None or not are_ascending(found):
        raise ValueError(
            f"The bounds of the histogram {name!r} are {given!r}; expected ascending numbers, such as (0.1, 0.5, 1)."
        )
    return found
