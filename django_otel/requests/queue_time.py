"""Time that a request waited before Django, from the header in which a proxy states when it received it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from time import time

from django_otel.base.patterns import lazy_pattern
from django_otel.metrics.instruments import Histogram
from django_otel.metrics.series import HistogramSeries
from django_otel.metrics.store import CellStore

#: Seconds, milliseconds, microseconds or nanoseconds since the Unix epoch, with or without "t=".
_TIME = lazy_pattern(r"(?:t=)?(\d{10,19}(?:\.\d{1,9})?)", re.ASCII)
_LONGEST = 40
#: A unit is known by how large the number is; the years 2001 to 2286 have ten digits of seconds.
_UNITS = ((1e9, 1.0), (1e12, 1e3), (1e15, 1e6), (1e18, 1e9))
#: Longer than proxies wait; what says more is a clock that is wrong, or a client's invention.
_MAX_S = 60.0
#: A proxy's clock may be ahead by so much, which counts as no time at all.
_AHEAD_S = 0.05


def read_queue_time(text: str, now_s: float) -> float | None:
    """Return how long ago the time in a header's `text` is, in seconds; None for what cannot be so."""
    match = _TIME.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if match is None:
        return None
    number = float(match[1])
    for least, per_second in _UNITS:
        if least <= number < least * 10:
            waited_s = now_s - number / per_second
            if -_AHEAD_S <= waited_s <= _MAX_S:
                return max(0.0, waited_s)
    return None


class QueueTime:
    """Counts the time in the queue; made once, when the middleware is built."""

    def __init__(self, store: CellStore, headers: Sequence[str]) -> None:
        self.keys = tuple("HTTP_" + name.upper().replace("-", "_") for name in headers)
        histogram = store.catalogued("http.server.request.time_in_queue")
        assert isinstance(histogram, Histogram)
        self._histogram = histogram
        self._series: HistogramSeries | None = None

    def observe(self, meta: Mapping[str, str]) -> None:
        """Count the request of these headers, if one of them has a time that can be."""
        for key in self.keys:
            text = meta.get(key)
            waited_s = read_queue_time(str(text), time()) if text is not None else None
            if waited_s is None:
                continue
            if self._series is None:
                series = self._histogram.series({})
                assert isinstance(series, HistogramSeries)
                self._series = series
            self._series.observe(waited_s)
            return
