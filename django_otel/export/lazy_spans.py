"""Finished spans for exporters of the project, built and redacted when an exporter reads them.

Building the SDK's form of a span and redacting it takes longer than recording it. Exporters that sample, count or
forward by name read few of the fields, and many read none of some spans.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan

from django_otel.base import guard
from django_otel.redaction import library_spans
from django_otel.redaction.keys import REDACTED
from django_otel.redaction.span_cleaner import SpanCleaner
from django_otel.tracing.spans import RecordedSpan, to_readable

Clean = Callable[[ReadableSpan], ReadableSpan]


class LazySpan(ReadableSpan):
    """A finished span in the SDK's form, built and redacted when the first of its fields is read."""

    def __init__(self, recorded: RecordedSpan, clean: Clean) -> None:
        # Not the SDK's, whose fields are what is put off: `__getattr__` is called for the first that is missing.
        self.__dict__["lazy_source"] = (recorded, clean)

    def __getattr__(self, name: str) -> Any:
        source = self.__dict__.get("lazy_source")
        if source is None or name.startswith("__"):
            raise AttributeError(name)
        self._build(*source)
        return getattr(self, name)

    def _build(self, recorded: RecordedSpan, clean: Clean) -> None:
        try:
            built = clean(recorded.readable_span())
        except Exception as error:
            # It may not leave, and must not take its batch along.
            guard.report("cleaning a span", error)
            built = ReadableSpan(REDACTED, recorded.get_span_context(), resource=Resource.get_empty())
        fields = self.__dict__
        for name, value in vars(built).items():
            # An exporter may have set one of them.
            fields.setdefault(name, value)
        # Last: a second thread that reads meanwhile builds the same.
        fields.pop("lazy_source", None)

    def __getstate__(self) -> dict[str, Any]:
        # For pickle and copy: what was recorded holds locks.
        source = self.__dict__.get("lazy_source")
        if source is not None:
            self._build(*source)
        return self.__dict__


def build_lazy_cleaner(clean: Clean) -> Clean:
    """Return a function that gives a clean span, built late where that is possible."""
    if not isinstance(clean, SpanCleaner):
        return lambda span: clean(to_readable(span))

    def prepare(span: ReadableSpan) -> ReadableSpan:
        # Attributes of official instrumentors are corrected at once, because a fault in them loses the span.
        if type(span) is RecordedSpan and not library_spans.is_library_scope(span.instrumentation_scope):
            return LazySpan(span, clean)
        return clean(to_readable(span))

    return prepare
