"""Every name of the OpenTelemetry packages that is not public, in one place.

Each is used through a function or constant here, with a fallback where a
version lacks it, so that a new SDK breaks one file and one test.
"""

from __future__ import annotations

import threading
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource

#: Marks a context in which nothing may be instrumented.
SUPPRESS_INSTRUMENTATION_KEY = _SUPPRESS_INSTRUMENTATION_KEY


def is_placeholder(provider: object) -> bool:
    """Whether a global provider is the API's proxy or no-op, that is, nobody has installed one."""
    name = type(provider).__name__.lstrip("_")
    return name.startswith(("Proxy", "NoOp", "Default"))


def global_tracer_provider() -> trace.TracerProvider | None:
    """The tracer provider somebody has installed, or None. Installs nothing itself."""
    # get_tracer_provider() would load the one of OTEL_PYTHON_TRACER_PROVIDER.
    provider = getattr(trace, "_TRACER_PROVIDER", None)
    return None if provider is None or is_placeholder(provider) else provider


def global_meter_provider() -> metrics.MeterProvider | None:
    """The meter provider somebody has installed, or None. Installs nothing itself."""
    from opentelemetry.metrics import _internal

    provider = getattr(_internal, "_METER_PROVIDER", None)
    return None if provider is None or is_placeholder(provider) else provider


def global_logger_provider() -> object | None:
    """The logger provider somebody has installed, or None. Installs nothing itself."""
    from opentelemetry._logs import _internal

    provider = getattr(_internal, "_LOGGER_PROVIDER", None)
    return None if provider is None or is_placeholder(provider) else provider


def set_resource(provider: Any, resource: Resource) -> None:
    """Give a provider another resource; its tracers, meters and loggers follow."""
    if hasattr(provider, "_sdk_config"):
        provider._sdk_config.resource = resource
        return
    provider._resource = resource
    for child in list(getattr(provider, "_tracers", {}).values()):
        child.resource = resource
    for child in list(getattr(provider, "_loggers", getattr(provider, "_logger_cache", {})).values()):
        child._resource = resource


def replace_reader(provider: MeterProvider, old: MetricReader, new: MetricReader) -> bool:
    """Put a fresh reader, which starts at zero, in the place of an old one; False where the SDK cannot."""
    add, remove = getattr(provider, "add_metric_reader", None), getattr(provider, "remove_metric_reader", None)
    if add is None or remove is None:
        return False
    remove(old)
    add(new)
    return True


def renew_collection_lock(provider: MeterProvider) -> None:
    """Make the lock that the SDK holds over callbacks anew, of what `threading` gives now."""
    consumer = getattr(provider, "_measurement_consumer", None)
    if hasattr(consumer, "_lock"):
        consumer._lock = threading.Lock()
