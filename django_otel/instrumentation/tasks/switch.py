"""Turns the measuring of tasks on and off with the settings."""

from __future__ import annotations

from django_otel.config.schema import Config
from django_otel.instrumentation.tasks import celery_hooks, django_hooks, queue_lengths, rq_hooks
from django_otel.instrumentation.tasks.runs import state

_LIBRARIES = (celery_hooks, django_hooks, rq_hooks)
_PLAIN = (("tracecontext",), ("tracecontext", "baggage"))


def install(config: Config) -> None:
    """Follow the settings: attach to the task libraries that the project imports, or detach. May be called again."""
    if not (config.enabled and config.tasks):
        uninstall()
        return
    state.is_on = True
    state.tracer = None
    state.is_plain = config.propagation.formats in _PLAIN
    for library in _LIBRARIES:
        library.install(config)
    queue_lengths.install()


def uninstall() -> None:
    """Measure nothing any more."""
    state.is_on = False
    for library in _LIBRARIES:
        library.uninstall()
    queue_lengths.uninstall()
