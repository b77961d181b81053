"""State that the pipelines of traces, metrics and logs share: effective settings, resource, counts of losses."""

from __future__ import annotations

import threading
from collections.abc import Callable

from opentelemetry.sdk.resources import Resource

from django_otel.config.schema import Config, Problem
from django_otel.metrics.exponential import narrow
from django_otel.metrics.instruments import Counter
from django_otel.metrics.model import Family
from django_otel.metrics.store import CellStore
from django_otel.redaction.scrub import Scrubber
from django_otel.sampling.policy import Policy
from django_otel.sampling.sampler import LiveSampler

SCOPE_NAME = "django_otel"
#: The metric that counts lost items, by signal.
_DROPPED = {
    "traces": "django_otel.spans.dropped",
    "metrics": "django_otel.metrics.dropped",
    "logs": "django_otel.logs.dropped",
    "console": "django_otel.console.dropped",
}


class ProcessState:
    """Effective settings and resource of this process."""

    def __init__(self) -> None:
        #: Held while settings are applied, and while this process joins.
        self.lock = threading.RLock()
        self.enabled = False
        self.started = False
        self.config = Config()
        self.problems: list[Problem] = []
        self.resource = Resource({})
        self.sampler = LiveSampler(Policy(1.0, "default"))
        self.scrubber = Scrubber()
        #: The numbers of this process. It exists before the settings do and outlives a change of them.
        self.store = CellStore()
        #: Whether the spans go through a provider that another tool has installed.
        self.is_foreign = False
        #: Whether this is a management command in which nothing is exported.
        self.is_skipped = False
        #: Whether exporters are replaced by memory.
        self.is_testing = False
        #: Grows with every (re)start; what is derived from the settings is kept with the generation it belongs to.
        self.generation = 0
        self.started_at_s = 0.0
        #: Returns the families that a scrape and an exporter show (METRICS.NAMES).
        self.present: Callable[[list[Family]], list[Family]] = list

    @property
    def is_quiet(self) -> bool:
        """Return whether nothing may leave this process."""
        return self.is_testing or self.is_skipped

    def narrow(self, families: list[Family]) -> list[Family]:
        """Return families as a scrape shows them: with explicit buckets, also of exponential histograms."""
        return narrow(families, self.store.explicit_bounds) if self.store.is_exponential else families

    def count_drop(self, count: int, reason: str, signal: str) -> None:
        """Count items of `signal` ("traces", "metrics", "logs", "console") that are lost for `reason`."""
        self._add(_DROPPED[signal], count, {"django_otel.reason": reason})

    def count_failure(self, signal: str) -> None:
        """Count a failed export of `signal`."""
        self._add("django_otel.export.failures", 1, {"django_otel.signal": signal})

    def _add(self, name: str, count: int, attributes: dict[str, str]) -> None:
        counter = self.store.catalogued(name)
        assert isinstance(counter, Counter)
        counter.add(count, attributes)
