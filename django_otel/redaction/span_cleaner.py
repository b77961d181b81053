"""Corrections and redaction of a finished span before it leaves the process."""

from __future__ import annotations

from opentelemetry.sdk.trace import ReadableSpan

from django_otel.redaction.scrub import Scrubber


class SpanCleaner:
    """Processing of a finished span before export: library spans are corrected, then secrets redacted.

    Calling it does both. The encoder takes the parts: `prepare` for spans of
    official instrumentors, and the scrubber for each text that it has not seen.
    """

    def __init__(self, scrubber: Scrubber, statement: str = "parameterised", keep_query: bool = False) -> None:
        self.scrubber = scrubber
        self._statement = statement
        self._keep_query = keep_query

    def __call__(self, span: ReadableSpan) -> ReadableSpan:
        from django_otel.redaction.sdk_items import scrub_span

        return scrub_span(self.scrubber, self.prepare(span))

    def prepare(self, span: ReadableSpan) -> ReadableSpan:
        """Return the span with the attributes of official instrumentors corrected."""
        from django_otel.redaction import library_spans

        return library_spans.clean_span(span, self._statement, self._keep_query)
