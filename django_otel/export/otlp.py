"""Spans over the transport of the stock OTLP exporters, in our own encoding.

Session, headers, certificates, timeouts, retries and shutdown are the stock
exporter's. Replaced are the encoding, which is nine tenths of what an export
costs, and the level of the compression: 1 instead of 9 is three times as fast
and makes requests 3 % larger.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from django_otel.base import guard
from django_otel.base.sdk_compat import EncodedSpans, build_encoded_exporter_class
from django_otel.config.schema import Config
from django_otel.export.answers import Answers, Items, send_in_parts
from django_otel.export.encoder import SpanEncoder
from django_otel.redaction import library_spans
from django_otel.redaction.span_cleaner import SpanCleaner

if TYPE_CHECKING:
    from django_otel.export.answers import Halving

_LEVEL = 1
#: `wbits` of zlib's container formats; a "deflate" of HTTP is zlib's (RFC 9110, 8.4.1.2).
_CONTAINERS = {"gzip": 31, "deflate": 15}
#: A larger request, before compression, is refused by the stock exporters from 1.45 on (bytes).
_MAX_REQUEST_BYTES = 64 * 2**20


#: Called with spans that are not the caller's to count any more, and why they are lost; "" when they have arrived.
LossCounter = Callable[[int, str], None]


def _export_in_parts(
    spans: list[ReadableSpan], send: Callable[[list[ReadableSpan]], bool], answers: Answers, on_lost: LossCounter
) -> SpanExportResult:
    kind: Halving[list[ReadableSpan]] = Items
    outcome = send_in_parts(spans, send, answers, kind)
    if outcome.too_large:
        on_lost(outcome.too_large, "too_large")
    if not outcome.failed:
        return SpanExportResult.SUCCESS
    if outcome.delivered:
        on_lost(outcome.delivered, "")
    return SpanExportResult.FAILURE


class DirectSpanExporter:
    """Encodes, compresses and hands over to a stock exporter that takes `EncodedSpans`. For one thread at a time.

    `on_lost` is called for spans that cannot be encoded or are too large for the receiver.
    A batch that is too large for it is sent in parts.
    """

    def __init__(
        self, inner: Any, encoder: SpanEncoder, compression: str, on_lost: LossCounter, answers: Answers
    ) -> None:
        self._inner = inner
        self._answers = answers
        self._encoder = encoder
        self._wbits = _CONTAINERS.get(compression)
        self._on_lost = on_lost
        self._is_first = True

    def export(self, spans: list[ReadableSpan]) -> SpanExportResult:
        self._is_first = True
        return _export_in_parts(spans, self._send, self._answers, self._on_lost)

    def _send(self, spans: list[ReadableSpan]) -> bool:
        data = self._encoder.encode(spans)
        lost = self._encoder.spans_lost
        if lost and self._is_first:
            # Parts of the batch are encoded once more, and counted no more.
            self._on_lost(lost, "encode")
        self._is_first = False
        if not data:
            return True
        if len(data) > _MAX_REQUEST_BYTES:
            self._answers.call_too_large()
            return False
        if self._wbits is not None:
            data = zlib.compress(data, _LEVEL, self._wbits)
        return bool(self._inner.export(EncodedSpans(data, len(spans) - lost)) is SpanExportResult.SUCCESS)

    def shutdown(self) -> None:
        self._inner.shutdown()


class _CleaningExporter:
    """The stock exporter with its own encoding, after cleaning."""

    def __init__(
        self, inner: Any, clean: Callable[[ReadableSpan], ReadableSpan], on_lost: LossCounter, answers: Answers
    ) -> None:
        self._inner = inner
        self._answers = answers
        self._clean = clean
        self._on_lost = on_lost

    def export(self, spans: list[ReadableSpan]) -> SpanExportResult:
        cleaned: list[ReadableSpan] = []
        for span in spans:
            with guard.contained("cleaning a span"):
                cleaned.append(self._clean(span))
        if len(cleaned) < len(spans):
            self._on_lost(len(spans) - len(cleaned), "encode")
        return _export_in_parts(
            cleaned,
            lambda part: bool(self._inner.export(part) is SpanExportResult.SUCCESS),
            self._answers,
            self._on_lost,
        )

    def shutdown(self) -> None:
        self._inner.shutdown()


def build(
    kind: str,
    exporter_class: Any,
    arguments: dict[str, Any],
    config: Config,
    clean: Callable[[ReadableSpan], ReadableSpan],
    on_lost: LossCounter,
    answers: Answers,
) -> DirectSpanExporter | _CleaningExporter:
    """The exporter `kind` ("otlp", "otlp-grpc") over `exporter_class`, or the stock one where that one is unknown."""
    encoded_class = build_encoded_exporter_class(kind, exporter_class)
    if encoded_class is None:
        guard.warn_once(
            f"direct {kind}",
            "The installed %s is built in a way this version does not know; spans are encoded by it, which is slower.",
            exporter_class.__name__,
        )
        return _CleaningExporter(exporter_class(**arguments), clean, on_lost, answers)
    compression = "none"
    if kind == "otlp":
        compression = config.traces.compression
        if compression != "none":
            # Done here, with a level of our choice; gRPC compresses in its own transport.
            arguments = {**arguments, "headers": {**arguments["headers"], "Content-Encoding": compression}}
            arguments["compression"] = type(arguments["compression"]).NoCompression
    return DirectSpanExporter(encoded_class(**arguments), build_encoder(clean), compression, on_lost, answers)


def build_encoder(clean: Callable[[ReadableSpan], ReadableSpan]) -> SpanEncoder:
    """An encoder whose spans are clean. Those with one scrubber encode each span once for all of them."""
    if isinstance(clean, SpanCleaner):
        return SpanEncoder(
            clean.scrubber, prepare=clean.prepare, is_prepared=library_spans.is_library_scope, sharing=clean.scrubber
        )
    return SpanEncoder(prepare=clean)
