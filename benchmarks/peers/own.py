"""django_otel switched on in the measured process.

Apart from the peers' subjects, so that what was counted of them is not counted
again when this changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.subject import DELAY_S, QUEUE, SERVICE, OpenTelemetrySubject, UnsupportedError


def stop_clocks() -> None:
    """Let our threads that work by the clock sleep; before the first request, which starts them."""
    from django_otel.live_sampling import follower
    from django_otel.metrics import series
    from django_otel.multiprocess import sharing

    follower._TICK_S = sharing._TICK_S = DELAY_S  # noqa: SLF001 (measures the inside)
    # Five exemplars in so long are five in thousands of requests at real speed, and every other one while instructions
    # are counted, fifty times slower.
    series._EXEMPLAR_AGE_S = 50 * 0.5  # noqa: SLF001 (measures the inside)


class DjangoOtel(OpenTelemetrySubject):
    """django_otel with its defaults."""

    def before_setup(self, settings: dict[str, Any]) -> None:
        sampling: dict[str, Any] = {"RATIO": self.variant.ratio}
        if self.variant.keeps_errors:
            from django_otel.config.schema import Config

            if not hasattr(Config().sampling, "keep_errors"):
                raise UnsupportedError("this version of django_otel has no SAMPLING.KEEP_ERRORS")
            sampling["KEEP_ERRORS"] = True
        traces: dict[str, Any] = {
            "EXPORTERS": ["benchmarks.peers.sinks.Exporter"],
            "BATCH": {"QUEUE_SIZE": QUEUE, "BATCH_SIZE": QUEUE, "DELAY_S": DELAY_S},
        }
        if self.variant.exports:
            traces = {"EXPORTERS": ["otlp"], "ENDPOINT": self.endpoint}
        settings["INSTALLED_APPS"].append("django_otel")
        settings["MIDDLEWARE"].insert(0, "django_otel.middleware.OTelMiddleware")
        settings["OTEL"] = {
            "SERVICE_NAME": SERVICE,
            "SAMPLING": sampling,
            "TRACES": traces,
            # The process runs in a folder of its own, which goes with it.
            "METRICS": {"SHARED_DIR": str(Path.cwd())},
        }

    def stop_clocks(self) -> None:
        stop_clocks()

    def flush(self) -> None:
        from django_otel import runtime

        runtime.flush(60)

    def requests_counted(self) -> float:
        return self._count("http.server.request.duration")

    def queries_counted(self) -> float:
        return self._count("db.client.operation.duration")

    def _count(self, name: str) -> float:
        from django_otel import runtime

        points = [point for family in runtime.collect() if family.name == name for point in family.points]
        return float(sum(sum(point.value.buckets) for point in points))
