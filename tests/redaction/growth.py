"""How the cost of a function grows with the length of its text: a ratio, so that no clock of a machine counts."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Twice the text may cost this many times as much; linear is 2, quadratic 4.
MOST_PER_DOUBLING = 3.2
_DOUBLINGS = 3
#: Below this CPU time the small text is repeated: shorter ones measure the interpreter (seconds).
_SHORTEST_S = 0.002


def _cost_s(function: Callable[[str], object], text: str, repeats: int) -> float:
    begun = time.thread_time()
    for _ in range(repeats):
        function(text)
    return (time.thread_time() - begun) / repeats


def growth_per_doubling(function: Callable[[str], object], make: Callable[[int], str], length: int) -> float:
    """Return by what factor the CPU time grows when the text of `make(length)` becomes twice as long.

    Other load only adds time, so the least of several measurements counts and a
    suspicious ratio is measured again.
    """
    small, large = make(length), make(length << _DOUBLINGS)
    repeats = 1
    while (least_small := _cost_s(function, small, repeats)) * repeats < _SHORTEST_S:
        repeats *= 2
    least_large = float("inf")
    ratio = float("inf")
    for _ in range(6):
        least_large = min(least_large, _cost_s(function, large, 1))
        ratio = (least_large / least_small) ** (1 / _DOUBLINGS)
        if ratio < MOST_PER_DOUBLING:
            break
        least_small = min(least_small, _cost_s(function, small, repeats))
    return ratio
