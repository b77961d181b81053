"""OpenTelemetry for Django in one app.

Every public name is here and may be imported anywhere, also in a settings
module: nothing below is loaded before it is asked for, and nothing reads
settings before it is used.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from django_otel._version import __version__ as __version__

if TYPE_CHECKING:
    from django_otel import business
    from django_otel.api import (
        carrier,
        counter,
        current_trace_id,
        event,
        flush,
        force_trace_token,
        from_carrier,
        gauge,
        histogram,
        observable_gauge,
        sample,
        set_attributes,
        set_metric_attributes,
        set_user,
        span,
        timed,
        trace_url,
        untraced,
        up_down_counter,
    )

__all__ = [
    "__version__",
    "business",
    "carrier",
    "counter",
    "current_trace_id",
    "event",
    "flush",
    "force_trace_token",
    "from_carrier",
    "gauge",
    "histogram",
    "observable_gauge",
    "sample",
    "set_attributes",
    "set_metric_attributes",
    "set_user",
    "span",
    "timed",
    "trace_url",
    "untraced",
    "up_down_counter",
]


#: As `base.sdk_environment.WATCHED`, which is not imported for this.
_WATCHED = (
    "OTEL_PROPAGATORS",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED",
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS",
    "OTEL_PYTHON_TRACER_PROVIDER",
    "OTEL_PYTHON_METER_PROVIDER",
    "OTEL_PYTHON_LOGGER_PROVIDER",
)


def _prepare() -> None:
    """Import what reads variables when it is imported, so that none of them raises."""
    if any(name in os.environ for name in _WATCHED):
        from django_otel.base import sdk_environment

        sdk_environment.prepare()


# Before anything else of OpenTelemetry. The app does it again, for variables that the settings module has set since.
_prepare()


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # importlib and not "from . import": that would ask this function again.
    import importlib

    if name == "business":
        return importlib.import_module("django_otel.business")
    found: object = getattr(importlib.import_module("django_otel.api"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
