"""Prevents environment variables that the OpenTelemetry packages cannot parse from stopping the site.

The API and the SDK read some variables when they are imported, and raise for what they do not understand; so do
exporters when they are made. What is configured is taken from `config`, so these variables are hidden for the moment
in which they would do harm, and only then.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Made = TypeVar("Made")

#: Modules whose import reads variables and may raise, with the variables.
_IMPORTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("opentelemetry.propagate", ("OTEL_PROPAGATORS",)),
    ("opentelemetry.sdk.trace", ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED")),
    # Runs the detectors that it names, some of which ask a server of the cloud, for a default that is not used.
    ("opentelemetry.sdk._logs", ("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS",)),
)
#: Of these, what must not be read though nothing is raised for it.
_HARMFUL = ("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS",)
#: Where the API remembers which variable names its provider: module, name of the constant.
_PROVIDERS = (
    ("OTEL_PYTHON_TRACER_PROVIDER", "opentelemetry.trace", "OTEL_PYTHON_TRACER_PROVIDER"),
    ("OTEL_PYTHON_METER_PROVIDER", "opentelemetry.metrics._internal", "OTEL_PYTHON_METER_PROVIDER"),
    ("OTEL_PYTHON_LOGGER_PROVIDER", "opentelemetry._logs._internal", "_OTEL_PYTHON_LOGGER_PROVIDER"),
)
#: Variables that exporters read for themselves, although the values are passed as arguments.
_EXPORTERS = (
    *(
        f"OTEL_EXPORTER_OTLP_{signal}{part}"
        for signal in ("", "TRACES_", "METRICS_", "LOGS_")
        for part in ("TIMEOUT", "COMPRESSION", "HEADERS", "INSECURE")
    ),
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
    "OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES",
)
#: What has to be looked after before anything of OpenTelemetry is imported; all others are harmless then.
WATCHED = tuple(name for _, names in _IMPORTS for name in names) + tuple(name for name, _, _ in _PROVIDERS)

_lock = threading.RLock()


def prepare() -> None:
    """Import the modules that read the environment when imported, so that no value of a variable makes them raise."""
    for module, names in _IMPORTS:
        if any(name in os.environ for name in names):
            survive(
                lambda module=module: importlib.import_module(module),  # type: ignore[misc]
                names,
                lambda name, value: name in _HARMFUL,
            )
    _forget_providers()


def _forget_providers() -> None:
    """Have the API not make a provider by itself: it would stand in the place of ours, without any exporter."""
    for variable, module_name, constant in _PROVIDERS:
        if variable in os.environ:
            module = importlib.import_module(module_name)
            if getattr(module, constant, None) == variable:
                setattr(module, constant, f"{variable} (PROVIDERS says whose are used)")


def restore_providers() -> None:
    """Take `prepare` back where telemetry is off: providers are the API's business then."""
    for variable, module_name, constant in _PROVIDERS:
        if variable in os.environ:
            setattr(importlib.import_module(module_name), constant, variable)


def survive(
    make: Callable[[], Made],
    names: tuple[str, ...] = _EXPORTERS,
    is_harmful: Callable[[str, str], bool] = lambda name, value: False,
) -> Made:
    """Return the result of `make` without the harmful variables of `names`; if it raises, once more without any.

    `is_harmful(name, value)` says which must not be read, although nothing is raised for them.
    """
    harmful = tuple(name for name in names if name in os.environ and is_harmful(name, os.environ[name]))
    if harmful:
        with _hidden(harmful):
            return survive(make, names)
    try:
        return make()
    except Exception:
        if not any(name in os.environ for name in names):
            raise
    with _hidden(names):
        return make()


@contextlib.contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    # There is no other way: they read the environment of the process, and it is as it was a moment later.
    with _lock:
        taken = {name: os.environ.pop(name) for name in names if name in os.environ}
        try:
            yield
        finally:
            os.environ.update(taken)


def is_any_set(variables: Iterable[str]) -> bool:
    """Return whether one of the variables, which the exporters read for themselves, has a value."""
    return any(map(os.environ.get, variables))
