"""Hosts that may receive trace headers (`PROPAGATION.OUTBOUND_HOSTS`).

An instrumentor of an HTTP client calls its request hook, which knows the URL,
just before it injects headers, which no longer knows it. So the hook leaves its
decision in `OUTBOUND`, bound to the client span's id, and the propagator asks
`allowed()` before it writes anything.
"""

from __future__ import annotations

import fnmatch
from collections.abc import MutableMapping, Sequence
from contextvars import ContextVar
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context

from django_otel.base.frozen import record

_DEFAULT_PORTS = {"http": 80, "https": 443}


@record
class OutboundDecision:
    """Whether the request of one client span may carry trace headers."""

    span_id: int
    is_allowed: bool


#: Set by a client's request hook, taken by the next injection in the same context.
OUTBOUND: ContextVar[OutboundDecision | None] = ContextVar("django_otel_outbound", default=None)


def is_host_allowed(url: str, patterns: Sequence[str] | None) -> bool:
    """Return whether the host of `url` fits one of `patterns`; None means every host.

    A pattern is a glob on the host (`api.example.com`, `*.internal`), with
    `:port` it must fit the port as well. `*.internal` does not fit `internal`
    itself. A URL that cannot be read is refused.
    """
    if patterns is None:
        return True
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme.lower())
    except ValueError:
        return False
    if not host:
        return False
    return any(_fits(host, port, pattern.strip().lower()) for pattern in patterns)


def _fits(host: str, port: int | None, pattern: str) -> bool:
    # An IPv6 address has colons of its own: with a port it stands in brackets.
    if pattern.startswith("["):
        pattern_host, _, rest = pattern[1:].partition("]")
        # A bracket would open a character class in a glob.
        return pattern_host == host and rest in ("", f":{port}")
    if pattern.count(":") == 1:
        pattern, _, pattern_port = pattern.partition(":")
        if pattern_port not in ("*", str(port)):
            return False
    return fnmatch.fnmatchcase(host, pattern)


def decide(span: trace.Span, is_allowed: bool) -> None:
    """Leave a decision for the injection that follows for `span`."""
    OUTBOUND.set(OutboundDecision(span.get_span_context().span_id, is_allowed))


def allowed(context: Context | None = None) -> bool:
    """Return whether the current injection may write headers; to be asked once per injection.

    A decision counts for the span it was made for and is used up by it, so that
    nothing later in the same context is refused by mistake.
    """
    decision = OUTBOUND.get()
    if decision is None:
        return True
    if trace.get_current_span(context).get_span_context().span_id != decision.span_id:
        return True
    OUTBOUND.set(None)
    return decision.is_allowed


def strip(headers: MutableMapping[str, str], fields: Sequence[str]) -> None:
    """Remove trace headers that a redirect or the caller brought along, whatever their case."""
    wanted = {field.lower() for field in fields}
    for name in [name for name in headers if isinstance(name, str) and name.lower() in wanted]:
        del headers[name]
