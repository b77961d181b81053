"""A context in which the official instrumentors create no spans."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from opentelemetry.context import attach, detach, set_value

from django_otel.base.sdk_compat import SUPPRESS_INSTRUMENTATION_KEY


@contextlib.contextmanager
def suppress_instrumentation() -> Iterator[None]:
    """As in `opentelemetry.instrumentation.utils`, whose import loads all of `wrapt`."""
    # The second key is for older instrumentors.
    token = attach(set_value("suppress_instrumentation", True, set_value(SUPPRESS_INSTRUMENTATION_KEY, True)))
    try:
        yield
    finally:
        detach(token)
