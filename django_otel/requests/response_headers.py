"""Response headers about the request: `Server-Timing` and `traceresponse`.

Both are off by default and cost nothing then: the function below is None.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from django_otel.config.schema import Config
from django_otel.requests.layers import measure

if TYPE_CHECKING:
    from django_otel.requests.protocols import ResponseLike
    from django_otel.requests.record import RequestRecord

#: Each entry of `Server-Timing`, and the layer it shows.
_ENTRIES = (
    ("total", "total"), ("db", "database"), ("cache", "cache"), ("template", "template"), ("http", "http"),
    ("middleware", "middleware"), ("view", "view"),
)  # fmt: skip

SetHeaders = Callable[["RequestRecord", "ResponseLike"], None]


def build_response_headers(config: Config) -> SetHeaders | None:
    """f(record, response) that sets the headers the settings ask for; None when they ask for none."""
    parts: list[SetHeaders] = []
    if config.request.server_timing:
        parts.append(_set_server_timing)
    if config.request.traceresponse:
        parts.append(_set_traceresponse)
    if not parts:
        return None

    def set_headers(record: RequestRecord, response: ResponseLike) -> None:
        for part in parts:
            part(record, response)

    return set_headers


def _set_server_timing(record: RequestRecord, response: ResponseLike) -> None:
    """`Server-Timing: total;dur=12.3, db;dur=4.5, ...` in milliseconds, up to now.

    Of a streaming response only the time until it began is known. Source: W3C "Server Timing".
    """
    now_s = time.perf_counter()
    taken = {"total": now_s - record.started_s, **measure(record, now_s)}
    shown = [f"{name};dur={taken.get(layer, 0.0) * 1000:.2f}" for name, layer in _ENTRIES]
    given = response.get("Server-Timing")
    # The application's own entries stay.
    response["Server-Timing"] = ", ".join((given, *shown)) if given else ", ".join(shown)


def _set_traceresponse(record: RequestRecord, response: ResponseLike) -> None:
    """`traceresponse: 00-<trace>-<span>-<flags>`. Source: W3C "Trace Context Level 2", draft of the header."""
    ids = record.span.get_span_context()
    if ids.is_valid:
        response["traceresponse"] = f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{int(ids.trace_flags) & 0xFF:02x}"
