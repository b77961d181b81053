"""Bucket bounds that a project gives its own histograms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import SupportsFloat


def read_bounds(name: object, bounds: Iterable[SupportsFloat] | None) -> tuple[float, ...]:
    """Return the upper bounds of the histogram `name` as numbers, without the infinite one, which is always there.

    Errors: `ValueError` for what is no ascending row of numbers.
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
    if found is None or not all(map(math.isfinite, found)) or any(a >= b for a, b in itertools.pairwise(found)):
        raise ValueError(
            f"The bounds of the histogram {name!r} are {given!r}; expected ascending numbers, such as (0.1, 0.5, 1)."
        )
    return found
