"""Response headers about the request: `Server-Timing` and `traceresponse`.

Both are off by default and cost nothing then: the function below is None, and
nothing is added up. `RequestNotes` holds what is added up during a request.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from django_otel.config.schema import Config
from django_otel.requests.protocols import ResponseLike

if TYPE_CHECKING:
    from django_otel.requests.record import RequestRecord

SetHeaders = Callable[["RequestRecord", ResponseLike], None]


class RequestNotes:
    """Notes of one request for its response or its stored trace: times in seconds."""

    # Defaults of the class: most requests change none of them.
    database_s = 0.0
    cache_s = 0.0
    template_s = 0.0
    #: Whether the time runs already: a template includes templates.
    is_in_template = False


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
    total_s = time.perf_counter() - record.started_s
    shown = [f"total;dur={total_s * 1000:.2f}"]
    notes = record.notes
    if notes is not None:
        shown += [
            f"{name};dur={value_s * 1000:.2f}"
            for name, value_s in (("db", notes.database_s), ("cache", notes.cache_s), ("template", notes.template_s))
        ]
    given = response.get("Server-Timing")
    # The application's own entries stay.
    response["Server-Timing"] = ", ".join((given, *shown)) if given else ", ".join(shown)


def _set_traceresponse(record: RequestRecord, response: ResponseLike) -> None:
    """`traceresponse: 00-<trace>-<span>-<flags>`. Source: W3C "Trace Context Level 2", draft of the header."""
    ids = record.span.get_span_context()
    if ids.is_valid:
        response["traceresponse"] = f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{int(ids.trace_flags) & 0xFF:02x}"
