"""Spans around project code that the project did not request, such as the span of a transaction.

They are current, so that what happens inside is below them. But what the project says of its own span (attributes,
events) is still said of that one.
"""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.context import create_key, get_current

#: Key of the enclosing span of a context, the one before it, and the one that encloses that.
ENCLOSING_KEY = create_key("django_otel-enclosing")


def find_own_span() -> trace.Span:
    """Return the current span, or the project's own one around it."""
    context = get_current()
    span = trace.get_current_span(context)
    found: object = context.get(ENCLOSING_KEY)
    while isinstance(found, tuple) and found[0] is span:
        _, span, found = found
    return span
