"""Prepares finished spans for the store: encoded once per trace, with the few columns that lists need.

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
from django_otel.base.sdk_compat import SpanParts, is_remote_of, read_span, trace_id_of
from django_otel.export.otlp import build_encoder
from django_otel.redaction import library_spans
from django_otel.redaction.scrub import Scrubber
from django_otel.tracestore import records
from django_otel.tracestore.items import StoredSpans
from django_otel.tracing.attributes import SharedAttributes
from django_otel.tracing.spans import SPANS_DROPPED, RecordedSpan, to_readable

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

_ERROR = StatusCode.ERROR
_FIRST_KINDS = (SpanKind.SERVER, SpanKind.CONSUMER)
_STATEMENT = "db.query.text"
#: With one of these a span says more than that there was a query.
_SAY_MORE = frozenset({"django.model", "business.event", SPANS_DROPPED})
#: Queries and texts that are remembered, before all are forgotten.
_MAX_REMEMBERED = 1024


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
        # By identity: hashing a Resource takes longer than encoding a span. The objects are kept, so that their
        # identities stay theirs.
        self._services: dict[int, tuple[Resource | None, str, str]] = {}
        #: Of the shared attributes of our queries: the scope of their spans, and what `_describe` says.
        self._queries: dict[int, tuple[SharedAttributes, object, tuple[str, str]]] = {}
        #: Texts that hold no secret, with the key they stand under.
        self._untouched: set[tuple[str, str]] = set()
        #: A status that is not an error: nearly all spans have the same, unset one.
        self._fine: object = None

    def prepare(self, spans: Sequence[ReadableSpan]) -> list[StoredSpans]:
        """The spans by trace. Errors: none; see `on_lost`."""
        traces: dict[int, tuple[list[ReadableSpan], list[SpanParts]]] = {}
        for span in spans:
            parts = span.parts() if type(span) is RecordedSpan else read_span(span)
            trace_id = trace_id_of(parts[3])
            members = traces.get(trace_id)
            if members is None:
                members = traces[trace_id] = ([], [])
            members[0].append(span)
            members[1].append(parts)
        prepared: list[StoredSpans] = []
        for trace_id, (members_spans, members_parts) in traces.items():
            # One that cannot be prepared may not be stored, and must not take its batch along.
            with guard.contained("preparing spans for the trace store"):
                prepared.append(self._prepare_trace(trace_id, members_spans, members_parts))
        return prepared

    def _prepare_trace(self, trace_id: int, spans: list[ReadableSpan], read: list[SpanParts]) -> StoredSpans:
        stored = StoredSpans(f"{trace_id:032x}", spans=len(spans))
        last_resource: object = None
        begin = end = 0
        for span, parts in zip(spans, read, strict=True):
            resource, scope, _, _, _, _, start_ns, end_ns, attributes, _, events, _, _, _, status = parts
            start_ns = start_ns or 0
            if start_ns < begin or not begin:
                begin = start_ns
            if end_ns is not None and end_ns > end:
                end = end_ns
            if status is not self._fine:
                if status.status_code is _ERROR:
                    stored.errors += 1
                else:
                    self._fine = status
            if resource is not last_resource or not stored.services:
                stored.services.add((self._services.get(id(resource)) or self._add_service(resource))[1])
                last_resource = resource
            if events:
                records.add_events(stored, events)
            if attributes:
                self._count(stored, span, scope, attributes, (end_ns or start_ns) - start_ns)
        stored.start_ns, stored.end_ns = begin, max(begin, end)
        root, stored.rank = find_root(read)
        self._set_root(stored, spans[root], read[root])
        self._redact(stored)
        stored.data = self._encoder.encode(spans, read)
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
        """Collect the attributes of a span that describe its trace."""
        if type(attributes) is SharedAttributes:
            known = self._queries.get(id(attributes))
            if known is None or known[1] is not scope:
                known = self._add_query(attributes, scope)
            if known is not None:
                stored.queries += 1
                records.count_statement(stored, *known[2], duration_ns)
                return
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
            stored.events.add(self._redacted("business.event", event))
        if dropped := attributes.get(SPANS_DROPPED):
            stored.spans_dropped += records.to_whole(dropped)

    def _add_query(
        self, attributes: SharedAttributes, scope: InstrumentationScope | None
    ) -> tuple[SharedAttributes, object, tuple[str, str]] | None:
        """Remember attributes that say nothing but that there was a query of ours; None for any others."""
        text, system = attributes.get(_STATEMENT), attributes.get("db.system.name")
        if (
            type(text) is not str
            or system is None
            or system in records.SYSTEMS_WITHOUT_QUERIES
            or library_spans.is_library_scope(scope)
            or not attributes.keys().isdisjoint(_SAY_MORE)
        ):
            return None
        if len(self._queries) >= _MAX_REMEMBERED:
            self._queries.clear()
        known = self._queries[id(attributes)] = (attributes, scope, (text, records.source_line(attributes)))
        return known

    def _redact(self, stored: StoredSpans) -> None:
        """Redact values that become rows; each statement once, not once for each query."""
        texts = [self._redacted(_STATEMENT, text) for text in stored.statements]
        stored.statements = dict(zip(texts, stored.statements.values(), strict=True))
        text = self._scrubber.text
        for found in stored.statements.values():
            if found.line:
                found.line = text(found.line)
            if found.advice:
                found.advice = text(found.advice)
        if stored.objects:
            stored.objects = {(text(model), self._redacted("django.model.pk", pk)) for model, pk in stored.objects}

    def _redacted(self, key: str, value: object) -> str:
        """Return a value as it is exported under its key, as text."""
        if type(value) is not str:
            return str(self._scrubber.value(key, value))
        if (key, value) in self._untouched:
            return value
        # As attributes, because the scrubber remembers those that hold no secret, for the encoder as well.
        redacted = str(self._scrubber.attributes({key: value})[key])
        if redacted == value and self._scrubber.is_pure and len(value) <= records.MAX_STATEMENT:
            if len(self._untouched) >= _MAX_REMEMBERED:
                self._untouched.clear()
            self._untouched.add((key, value))
        return redacted

    def _add_service(self, resource: Resource | None) -> tuple[Resource | None, str, str]:
        attributes = resource.attributes if resource is not None else {}
        name, release = str(attributes.get("service.name", "")), str(attributes.get("service.version", ""))
        if len(self._services) > 64:
            self._services.clear()
        found = self._services[id(resource)] = (resource, name, release)
        return found

    def _set_root(self, stored: StoredSpans, span: ReadableSpan, parts: SpanParts) -> None:
        resource, scope, name, _, _, kind, start_ns, end_ns, attributes, *_ = parts
        _, stored.service, stored.release = self._services.get(id(resource)) or self._add_service(resource)
        stored.root_start_ns = start_ns or 0
        stored.root_end_ns = end_ns or stored.root_start_ns
        values: Mapping[str, object] = attributes or {}
        if library_spans.is_library_scope(scope):
            cleaned = self._clean(to_readable(span))
            name, values = cleaned.name, cleaned.attributes or {}
        name = self._scrubber.text(str(name))
        stored.method = self._redacted("http.request.method", values.get("http.request.method", ""))
        stored.route = self._redacted("http.route", values.get("http.route", ""))
        stored.status = records.to_whole(values.get("http.response.status_code"))
        for key in records.USER_KEYS:
            if user := values.get(key):
                stored.user = self._redacted(key, user)
                break
        path = values.get("url.path")
        if path and not stored.route and kind is SpanKind.SERVER:
            # A request without a route is listed by its path.
            name = f"{name} {self._scrubber.value('url.path', path)}"[: records.LONGEST_TITLE]
        stored.name = name


def find_root(read: Sequence[SpanParts]) -> tuple[int, int]:
    """Return which of the spans a trace is listed by, and its rank: the earliest of the highest rank.

    The rank is 2 for a span without a parent, 1 for the first of its process, else 0.
    """
    place, best, earliest_ns = 0, -1, 0
    # Backwards: the span around all others ends last.
    for number in range(len(read) - 1, -1, -1):
        parts = read[number]
        parent = parts[4]
        if parent is None:
            rank = 2
        elif best == 2:
            continue
        else:
            rank = 1 if is_remote_of(parent) or parts[5] in _FIRST_KINDS else 0
        start_ns = parts[6] or 0
        if rank > best or (rank == best and start_ns <= earliest_ns):
            place, best, earliest_ns = number, rank, start_ns
    return place, best
