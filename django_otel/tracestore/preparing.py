"""Prepares finished spans for the store: encoded once per trace, and the few columns that lists need.

The bytes are those of the OTLP encoder, redacted on the way. Of everything
else only what becomes a column is redacted here: name, method, route, service
and events of the one span by which a trace is listed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from django_otel.base import guard
from django_otel.base.sdk_compat import SpanParts, read_span
from django_otel.export.otlp import build_encoder
from django_otel.redaction import library_spans
from django_otel.redaction.scrub import Scrubber
from django_otel.tracestore import records
from django_otel.tracestore.items import StoredSpans
from django_otel.tracing.spans import SPANS_DROPPED, RecordedSpan, to_readable

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext

_ERROR = StatusCode.ERROR
_STATEMENT = "db.query.text"


class SpanPreparer:
    """Makes `StoredSpans` of finished spans. For one thread at a time.

    `clean` sets a whole span right and redacts it, `scrubber` redacts one value; `on_lost(count)` is called for spans
    that cannot be encoded.
    """

    def __init__(
        self,
        clean: Callable[[ReadableSpan], ReadableSpan],
        scrubber: Scrubber,
        on_lost: Callable[[int], None],
    ) -> None:
        self._clean = clean
        self._scrubber = scrubber
        self._on_lost = on_lost
        self._encoder = build_encoder(clean)
        # By identity: hashing a Resource takes longer than encoding a span.
        self._services: dict[int, tuple[Resource | None, str, str]] = {}

    def prepare(self, spans: Sequence[ReadableSpan]) -> list[StoredSpans]:
        """The spans by trace. Errors: none; see `on_lost`."""
        traces: dict[int, list[tuple[ReadableSpan, SpanParts]]] = {}
        for span in spans:
            parts = span.parts() if type(span) is RecordedSpan else read_span(span)
            traces.setdefault(parts[3].trace_id, []).append((span, parts))
        prepared: list[StoredSpans] = []
        for trace_id, members in traces.items():
            # One that cannot be prepared may not be stored, and must not take its batch along.
            with guard.contained("preparing spans for the trace store"):
                prepared.append(self._prepare_trace(trace_id, members))
        return prepared

    def _prepare_trace(self, trace_id: int, members: list[tuple[ReadableSpan, SpanParts]]) -> StoredSpans:
        stored = StoredSpans(f"{trace_id:032x}", spans=len(members))
        root: tuple[ReadableSpan, SpanParts] = members[0]
        best = (-1, 0)
        begin = end = 0
        for member in members:
            resource, scope, _, _, parent, kind, start_ns, end_ns, attributes, _, events, *_, status = member[1]
            start_ns = start_ns or 0
            if start_ns < begin or not begin:
                begin = start_ns
            if end_ns is not None and end_ns > end:
                end = end_ns
            if status.status_code is _ERROR:
                stored.errors += 1
            known = self._services.get(id(resource))
            stored.services.add(known[1] if known is not None else self._add_service(resource))
            rank = _rank(parent, kind)
            if (rank, -start_ns) > best or best[0] < 0:
                best, root = (rank, -start_ns), member
            if events:
                records.add_events(stored, events)
            if attributes:
                self._count(stored, member[0], scope, attributes, (end_ns or start_ns) - start_ns)
        stored.start_ns, stored.end_ns, stored.rank = begin, max(begin, end), best[0]
        self._set_root(stored, *root)
        self._redact(stored)
        stored.data = self._encoder.encode([span for span, _ in members])
        if lost := self._encoder.spans_lost:
            self._on_lost(lost)
            stored.spans -= lost
        return stored

    def _count(
        self,
        stored: StoredSpans,
        span: ReadableSpan,
        scope: InstrumentationScope | None,
        attributes: Mapping[str, object],
        duration_ns: int,
    ) -> None:
        """Note what the attributes of a span say about its trace."""
        if "django.model" in attributes:
            records.add_object(stored, attributes)
        system = attributes.get("db.system.name") or attributes.get("db.system")
        if system is not None and system not in records.SYSTEMS_WITHOUT_QUERIES:
            stored.queries += 1
            if library_spans.is_library_scope(scope):
                # Statements of other instrumentors have values in them.
                records.add_query(stored, self._clean(to_readable(span)).attributes or {}, duration_ns)
            else:
                records.add_query(stored, attributes, duration_ns)
        if event := attributes.get("business.event"):
            stored.events.add(str(self._scrubber.value("business.event", event)))
        if dropped := attributes.get(SPANS_DROPPED):
            stored.spans_dropped += records.to_whole(dropped)

    def _redact(self, stored: StoredSpans) -> None:
        """Redact what becomes a row of its own; statements once each, not once for each query."""
        scrubber = self._scrubber
        # As attributes, because the scrubber remembers those that hold no secret.
        texts = [scrubber.attributes({_STATEMENT: text})[_STATEMENT] for text in stored.statements]
        stored.statements = dict(zip(map(str, texts), stored.statements.values(), strict=True))
        for found in stored.statements.values():
            found.line, found.advice = scrubber.text(found.line), scrubber.text(found.advice)
        stored.objects = {
            (scrubber.text(model), str(scrubber.value("django.model.pk", pk))) for model, pk in stored.objects
        }

    def _add_service(self, resource: Resource | None) -> str:
        attributes = resource.attributes if resource is not None else {}
        name, release = str(attributes.get("service.name", "")), str(attributes.get("service.version", ""))
        if len(self._services) > 64:
            self._services.clear()
        # The object is kept, so that its identity stays its own.
        self._services[id(resource)] = (resource, name, release)
        return name

    def _set_root(self, stored: StoredSpans, span: ReadableSpan, parts: SpanParts) -> None:
        resource, scope, name, _, _, kind, start_ns, end_ns, attributes, *_ = parts
        stored.service = self._services[id(resource)][1]
        stored.root_start_ns = start_ns or 0
        stored.root_end_ns = end_ns or stored.root_start_ns
        values: Mapping[str, object] = attributes or {}
        if library_spans.is_library_scope(scope):
            cleaned = self._clean(to_readable(span))
            name, values = cleaned.name, cleaned.attributes or {}
        scrubber = self._scrubber
        name = scrubber.text(str(name))
        stored.method = str(scrubber.value("http.request.method", values.get("http.request.method", "")))
        stored.route = str(scrubber.value("http.route", values.get("http.route", "")))
        stored.status = records.to_whole(values.get("http.response.status_code"))
        stored.release = self._services[id(resource)][2]
        for key in records.USER_KEYS:
            if user := values.get(key):
                stored.user = str(scrubber.value(key, user))
                break
        path = values.get("url.path")
        if path and not stored.route and kind is SpanKind.SERVER:
            # A request without a route is listed by its path.
            name = f"{name} {scrubber.value('url.path', path)}"[: records.LONGEST_TITLE]
        stored.name = name


def _rank(parent: SpanContext | None, kind: SpanKind) -> int:
    """2 for a span without a parent, 1 for the first of its process, else 0."""
    if parent is None:
        return 2
    return 1 if parent.is_remote or kind in (SpanKind.SERVER, SpanKind.CONSUMER) else 0
