"""Retries of stock exporters, corrected: which responses of a receiver are retried.

From 1.45 on they do as the OTLP specification says ("Failures", "Retryable Response Codes"). Older ones drop a batch
after 429, and send it six times after an answer that time does not change.
"""

from __future__ import annotations

import math
import time
import types
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

_RETRYABLE = frozenset({429, 502, 503, 504})
#: Name of the function of the older exporters that decides about an answer.
_ASKED = "_is_retryable"


def correct_retries(exporter_class: Any, timeout_s: float) -> Any:
    """Return a subclass of a stock exporter over HTTP that tries as specified, or the class itself where it does.

    A receiver that asks for more patience than `timeout_s` is left alone, and the batch is dropped.
    """

    def is_retryable(response: Any) -> bool:
        return response.status_code in _RETRYABLE and not _wait_s(response.headers.get("Retry-After")) > timeout_s

    methods: dict[str, Any] = {}
    for name, method in vars(exporter_class).items():
        if isinstance(method, types.FunctionType) and _ASKED in method.__code__.co_names:
            # The stock function with one other name; other exporters in the process are as they were.
            own_names = {**method.__globals__, _ASKED: is_retryable}
            methods[name] = types.FunctionType(
                method.__code__, own_names, name, method.__defaults__, method.__closure__
            )
            methods[name].__kwdefaults__ = method.__kwdefaults__
    return type(exporter_class.__name__, (exporter_class,), methods) if methods else exporter_class


def _wait_s(value: str | None) -> float:
    """Return how long a Retry-After asks to wait, in seconds; 0 for none, and for one that cannot be read."""
    try:
        seconds = float(value or 0)
    except ValueError:
        try:
            found = parsedate_to_datetime(value or "")
        except (TypeError, ValueError):
            return 0.0
        # Without a zone it is UTC, as all dates of HTTP.
        seconds = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() - time.time()
    return seconds if math.isfinite(seconds) else 0.0
