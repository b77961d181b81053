"""What every subject is: bare Django, with what a peer may override."""

from __future__ import annotations

from typing import Any

from benchmarks.peers import sinks
from benchmarks.peers.catalogue import Variant
from benchmarks.peers.receiver import Emission

SERVICE = "measured"
#: Queue and delay of a batch processor that sends nothing while requests are measured.
QUEUE = 100_000
DELAY_S = 3600


class UnsupportedError(Exception):
    """A variant that this version of a peer does not know."""


class Subject:
    """Bare Django, and what a peer may override."""

    def __init__(self, variant: Variant, endpoint: str) -> None:
        self.variant = variant
        self.endpoint = endpoint

    def before_setup(self, settings: dict[str, Any]) -> None:
        """Change the settings, set the environment; before anything of Django is imported."""

    def after_setup(self) -> None:
        """After `django.setup()`."""

    def stop_clocks(self) -> None:
        """Let threads that work by the clock sleep: where a second holds few requests, each would pay for them."""

    def flush(self) -> None:
        """Send or drop what is queued; returns when it is done."""

    def emission(self) -> Emission:
        """What was recorded so far, where it is not exported."""
        return sinks.emission

    def has_span(self) -> bool:
        """Asked for within a request: whether the peer has a span or transaction of it, recorded or not."""
        return False

    def requests_counted(self) -> float:
        """Requests in the metrics so far."""
        return 0.0

    def queries_counted(self) -> float:
        """Queries in the metrics so far."""
        return 0.0


class OpenTelemetrySubject(Subject):
    """One whose spans are OpenTelemetry's."""

    def has_span(self) -> bool:
        from opentelemetry import trace

        return trace.get_current_span().get_span_context().is_valid
