"""A meter provider that builds the SDK's on the first request for a meter.

Our own numbers do not go through the SDK (`metrics.cells`), and importing its
metrics takes as long as the rest of our start-up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider


class LazyMeterProvider(metrics.MeterProvider):
    """Has everything that the SDK's provider has, once it is asked for it."""

    def __init__(self, build: Callable[[], MeterProvider]) -> None:
        self._build = build
        self._lock = threading.Lock()
        #: The SDK's provider; None until it is needed.
        self.built: MeterProvider | None = None

    def _get(self) -> MeterProvider:
        if self.built is None:
            with self._lock:
                if self.built is None:
                    self.built = self._build()
        return self.built

    def get_meter(
        self, name: str, version: str | None = None, schema_url: str | None = None, attributes: Any = None
    ) -> metrics.Meter:
        return self._get().get_meter(name, version, schema_url, attributes)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._get(), name)

    def renew_locks(self) -> None:
        """Replace the lock, using the current `threading`."""
        self._lock = threading.Lock()
