"""Task libraries that need a call to be measured: `traced(broker)`.

Celery and Django's tasks need none.
"""

from __future__ import annotations

import sys
from typing import TypeVar

from django_otel.instrumentation.tasks import dramatiq_hooks

_Backend = TypeVar("_Backend")


def traced(backend: _Backend) -> _Backend:
    """Measure the tasks of a task library's object, and return it: `dramatiq.set_broker(traced(RedisBroker()))`.

    Brokers of Dramatiq. For a library that is not known, hand over `carrier()` with the task (docs/tasks.md).

    Errors: `TypeError` for anything else.
    """
    dramatiq = sys.modules.get("dramatiq")
    if dramatiq is not None and isinstance(backend, dramatiq.Broker):
        dramatiq_hooks.attach(backend)
        return backend
    kind = f"{type(backend).__module__}.{type(backend).__qualname__}"
    raise TypeError(
        f"traced() was called with a {kind}; expected a broker of Dramatiq. Celery and Django's tasks need no call; "
        "other libraries pass django_otel.carrier() with the task."
    )
