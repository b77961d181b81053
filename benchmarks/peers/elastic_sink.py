"""Elastic's client names its transport by import path: this one drops what it is given."""

from __future__ import annotations

from typing import Any

from elasticapm.transport.base import Transport

from benchmarks.peers import sinks


class Sink(Transport):
    """Counts events and drops them where they would wait for the sending thread."""

    def queue(self, event_type: str, data: Any, flush: bool = False) -> None:
        if event_type == "transaction" and data.get("sampled", True):
            sinks.emission.requests += 1
            sinks.emission.trace_ids = {data["trace_id"]}
        elif event_type == "span" and str(data.get("type", "")).startswith("db"):
            sinks.emission.queries += (data.get("composite") or {}).get("count", 1)

    def start_thread(self, pid: int | None = None) -> None:
        pass

    def close(self) -> None:
        pass
