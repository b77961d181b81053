"""Spans around the project's code that it has not asked for, such as that of a transaction.

They are current, so that what happens inside is below them. But what the project says of its own span (attributes,
events) is still said of that one.
"""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.context import Context, create_key, get_current

from django_otel.base.sdk_compat import SPAN_KEY

_KEY = create_key("django_otel-enclosing")


def with_enclosing(context: Context, span: trace.Span) -> Context:
    """Return `context` with `span` as its current one, which stands for the one before."""
    values = context.copy()
    around = values.get(SPAN_KEY)
    values[_KEY] = (span, trace.INVALID_SPAN if around is None else around, values.get(_KEY))
    values[SPAN_KEY] = span
    return Context(values)


def find_own_span() -> trace.Span:
    """Return the current span, or the project's own one around it."""
    context = get_current()
    span = trace.get_current_span(context)
    found: object = context.get(_KEY)
    while isinstance(found, tuple) and found[0] is span:
        _, span, found = found
    return span
