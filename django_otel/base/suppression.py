"""A context in which the official instrumentors make no spans."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from opentelemetry.context import attach, detach, set_value

from django_otel.base.sdk_compat import SUPPRESS_INSTRUMENTATION_KEY


@contextlib.contextmanager
def suppress_instrumentation() -> Iterator[None]:
    """What `opentelemetry.instrumentation.utils` has under this name, which imports all of `wrapt` first."""
    # The second key is for older instrumentors.
    token = attach(set_value("suppress_instrumentation", True, set_value(SUPPRESS_INSTRUMENTATION_KEY, True)))
    try:
        yield
    finally:
        detach(token)
