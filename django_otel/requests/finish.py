"""Finishes the measurement of a request: its metrics, then its span."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from django_otel.base import guard
from django_otel.base.sdk_compat import detach_or_raise as detach
from django_otel.config.schema import Config
from django_otel.redaction.cutting import cut
from django_otel.redaction.paths import redact_unmatched
from django_otel.requests.attributes import MAX_TEXT, StartAttributes
from django_otel.requests.dimensions import ROUTE, check_route
from django_otel.requests.layers import is_wanted, layer_attributes, settle
from django_otel.requests.options import ObserverOptions, select_headers
from django_otel.requests.record import OPERATION, RareState, RequestRecord
from django_otel.requests.series import Attributes, Labels, RequestMetrics, RouteSeries
from django_otel.requests.view_names import name_view
from django_otel.tracing.exceptions import record_exception, recording, type_name
from django_otel.tracing.spans import SPANS_DROPPED, DroppedSpan, RecordedSpan

if TYPE_CHECKING:
    from django_otel.requests.django_prometheus import LegacyRequestMetrics
    from django_otel.requests.protocols import MatchLike, RequestLike, ResponseLike


class RequestFinisher:
    """Ends the measurement of requests; `finish` is called once for each."""

    __slots__ = (
        "_enrich", "_exemplars", "_has_more", "_legacy", "_longest_path", "_metrics", "_most_spans",
        "_name_route", "_response_headers", "_scrub_path", "_scrub_text", "_user_attributes", "dimensions",
        "times_layers",
    )  # fmt: skip

    def __init__(
        self, config: Config, options: ObserverOptions, metrics: RequestMetrics, attributes: StartAttributes
    ) -> None:
        self._metrics = metrics
        self._legacy = options.legacy
        self._enrich = options.enrich
        self._user_attributes = options.user_attributes
        self._scrub_path = options.scrub_path
        self._scrub_text = options.scrub_text
        self._response_headers = tuple(name.lower() for name in config.request.response_headers)
        self._has_more = self._user_attributes is not None or bool(self._response_headers)
        #: Whether the time of requests is divided over its layers.
        self.times_layers = is_wanted(config)
        self._exemplars = config.metrics.exemplars
        self._most_spans = config.traces.limits.spans_per_trace
        self._longest_path = attributes.longest_path
        self._name_route = options.name_route
        #: Limits of what the project adds to the request metrics; None when it adds nothing.
        self.dimensions = options.dimensions

    @property
    def legacy(self) -> LegacyRequestMetrics | None:
        """Counts requests under the names of django-prometheus; None when `METRICS["NAMES"]` asks for ours alone."""
        return self._legacy

    def finish(  # noqa: C901 (one decision after the other, each with its reason)
        self,
        record: RequestRecord,
        response: ResponseLike | None,
        response_size_bytes: int | None = None,
        error: BaseException | None = None,
    ) -> None:
        """End the measurement, once; `response` is None when none was produced. Never raises an `Exception`."""
        request = record.request
        if request is None:
            return
        record.request = None  # Ended; and nothing holds the request longer than the server does.
        if (token := record.context_token) is not None:
            record.context_token = None
            try:
                detach(token)
            except ValueError:
                pass  # As in `RequestRecord.detach`.
        duration_s = (ended_s := perf_counter()) - record.started_s
        request_class, span, rare = record.request_class, record.span_or_none, record.rare
        is_counted = False
        try:
            if rare is not None:
                if rare.is_discarded:
                    record.observer.learn(request.path_info)
                    return
                span = record.span
            status = response.status_code if response is not None else 0
            match = request.resolver_match
            raw_route = match.route if match is not None else None
            error_type, exception = "", None
            if rare is not None or error is not None or status >= 500:
                error_type, exception = _find_failure(rare, status, error)
            series = request_class.routes.get(raw_route)  # Mostly as the route answered before.
            if series is None or error_type or series.status != status:
                series = self._metrics.find_route(request_class, raw_route, status, error_type)
            if self.dimensions is not None:
                series = self._refine(record, (request, response), series, error_type)
            own_s = duration_s if record.layers is None and record.view is None else settle(record, ended_s)
            series.finish(record.decisions, duration_s, response_size_bytes, record.queries, own_s, record.view_s)
            is_counted = True
            if record.layers is not None:
                self._metrics.count_layers(series, record.layers.seconds)
            if record.content_length and (body_bytes := record.body_bytes) is not None:
                series.request_size.observe(body_bytes)
            if exception is not None:
                self._count_exception(exception, series, span, is_failure=bool(error_type))
            if self._legacy is not None:
                self._legacy.count(record, request, response, response_size_bytes, duration_s)
            if record.repeats is not None:
                record.repeats.finish(span, series.label, raw_route or "")
            if span is not None and type(span) is not DroppedSpan:
                self._finish_span(record, span, ended_s, (request, response, series, match, error_type, exception))
        except BaseException as fault:
            _fail(record, span, fault)
        finally:
            if not is_counted:
                _count_as_ended(record)
            if rare is not None:
                _let_go(record, rare)

    def _refine(
        self,
        record: RequestRecord,
        exchange: tuple[RequestLike, ResponseLike | None],
        series: RouteSeries,
        error_type: str,
    ) -> RouteSeries:
        """Return the series with the route and the attributes that the project gives; as it is without any."""
        dimensions, rare = self.dimensions, record.rare
        request, response = exchange
        assert dimensions is not None
        extra: Labels = ()
        route = name = ""
        if rare is not None and rare.metric_attributes:
            extra = dimensions.label_all(rare.metric_attributes)
        if self._name_route is not None and response is not None:
            with guard.contained("REQUEST.ROUTE"):
                name = check_route(self._name_route(request, response))
        if name:
            route = dimensions.label(ROUTE, name)
        if not route and not extra:
            return series
        return self._metrics.find_labelled(
            record.request_class, route or series.route, route or series.label, series.status, error_type, extra
        )

    def _count_exception(
        self, exception: BaseException, series: RouteSeries, span: trace.Span | None, *, is_failure: bool
    ) -> None:
        self._metrics.count_exception(exception, series)
        if is_failure and recording.report is not None:
            recording.report(exception, series.label, span)

    def _finish_span(self, record: RequestRecord, span: trace.Span, ended_s: float, end: _End) -> None:
        if type(span) is RecordedSpan and self._is_forgotten(record, span, ended_s - record.started_s, end):
            return
        if self._exemplars:
            ids = span.get_span_context()
            if ids.trace_flags & 1:
                end[2].duration.show_exemplar(ended_s - record.started_s, ids.trace_id, ids.span_id)
        ended_ns = self._describe(record, span, ended_s, end) if span.is_recording() else None
        if record.rare is None or not record.rare.is_joined:
            span.end(ended_ns)

    def _is_forgotten(self, record: RequestRecord, span: RecordedSpan, duration_s: float, end: _End) -> bool:
        """Return whether the span was held back and nothing is kept for such a request: then it is forgotten here.

        It need not be described first. `REQUEST.ENRICH` may still make a failure of it.
        """
        shared = record.observer.shared
        held = shared.held if shared is not None else None
        if held is None or self._enrich is not None or end[4] or record.is_joined or not span.is_recording():
            return False
        if span.get_span_context().trace_flags & 1 or not held.passes(span, duration_s):
            return False
        span.forget(held)
        return True

    def _describe(self, record: RequestRecord, span: trace.Span, ended_s: float, end: _End) -> int | None:
        """Add the result of the request to the span; return when that ended, in nanoseconds; None for now."""
        request, response, series, match, error_type, exception = end
        ended_ns = None
        is_joined = record.rare is not None and record.rare.is_joined
        if match is not None and match.func is series.view and not is_joined:
            attributes = series.attributes
        else:
            attributes = _find_attributes(record, end)
        # Shared by all requests alike: copied where there is more to say.
        if self._scrub_path is not None and (match is None or match.kwargs or match.args):
            path = request.path
            scrubbed = redact_unmatched(path) if match is None else self._scrub_path(path, match.kwargs, match.args)
            if scrubbed != path:
                attributes = {**attributes, "url.path": scrubbed}
        if self.times_layers:
            attributes = {**attributes, **layer_attributes(record, ended_s)}
        if self._has_more or record.spans > self._most_spans or record.find_kept(OPERATION):
            attributes = {**attributes, **self._find_more(record, request, response)}
        if not is_joined:
            if exception is not None:
                # To format its stack takes long, which is no time of the request. Not every other tool's span has the
                # time at which it began.
                begun_ns = getattr(span, "start_time", None)
                ended_ns = begun_ns + int((ended_s - record.started_s) * 1e9) if begun_ns is not None else None
                record_exception(span, exception, self._scrub_text, escaped=response is None, time_ns=ended_ns)
            if error_type:
                # For a server span the description is left empty when the status code says it all
                # (semantic conventions, "HTTP server span status").
                span.set_status(Status(StatusCode.ERROR))
        name = series.span_name if not is_joined else ""
        if name and type(span) is RecordedSpan:
            # Texts of the URLconf, and numbers.
            span.complete(name, attributes, are_clean=self._longest_path > 0 and len(name) < MAX_TEXT)
        else:
            if name:
                span.update_name(name)
            span.set_attributes(attributes)
        if self._enrich is not None:
            with guard.contained("REQUEST.ENRICH"):
                self._enrich(span, request, response)
        return ended_ns

    def _find_more(self, record: RequestRecord, request: RequestLike, response: ResponseLike | None) -> Attributes:
        """Attributes of this request alone."""
        more: Attributes = dict(record.find_kept(OPERATION) or ())
        if record.spans > self._most_spans:
            more[SPANS_DROPPED] = record.spans - self._most_spans
        if self._user_attributes is not None:
            more.update(self._user_attributes(request))
        if self._response_headers and response is not None and not record.is_joined:
            lowered = ((name.lower(), value) for name, value in response.items())
            more.update(select_headers("http.response.header.", self._response_headers, lowered, self._cut))
        return more

    def _cut(self, text: str) -> str:
        return cut(text, MAX_TEXT, self._scrub_text)


#: How a request with a span has ended: request, response, series, match, `error.type` ("" without) and exception.
_End = tuple["RequestLike", "ResponseLike | None", RouteSeries, "MatchLike | None", str, BaseException | None]


def _fail(record: RequestRecord, span: trace.Span | None, fault: BaseException) -> None:
    """End the span, also when REQUEST.ENRICH is interrupted; what is not an `Exception` is raised again."""
    if span is not None and not record.is_joined:
        span.end()
    if not isinstance(fault, Exception):
        raise fault
    guard.report("finishing a request", fault)


def _count_as_ended(record: RequestRecord) -> None:
    """Count a request of which nothing else is known."""
    record.view = None
    record.request_class.active.add(-1.0)
    if record.decisions is not None:
        record.decisions.add(1.0)


def _let_go(record: RequestRecord, rare: RareState) -> None:
    """Hold neither the exception nor, by a span whose decision was put off, the request."""
    rare.exception = None
    if rare.is_discarded:
        record.span_or_none = trace.INVALID_SPAN


def _find_failure(rare: RareState | None, status: int, error: BaseException | None) -> tuple[str, BaseException | None]:
    """`error.type` of a request, and the exception that is counted and recorded."""
    error_type = _find_error_type(status, error)
    exception = rare.exception if rare is not None else None
    if exception is None and error_type:
        exception = error
    return error_type, exception


def _find_error_type(status: int, error: BaseException | None) -> str:
    """`error.type` of a request; "" where a client that went away, or the server's end, is all that has happened."""
    if status >= 500:
        return str(status)
    if error is None or isinstance(error, asyncio.CancelledError | GeneratorExit):
        return ""
    return type_name(error)


def _find_attributes(record: RequestRecord, end: _End) -> Attributes:
    """Last attributes of the spans of all requests that ended alike; kept for the next."""
    attributes: Attributes = {}
    _, _, series, match, error_type, _ = end
    if match is not None:
        view = name_view(match, record.method)
        if view:
            attributes["django.view"] = view
    if not record.is_joined:
        if series.route:
            attributes["http.route"] = series.route
        if series.status:
            attributes["http.response.status_code"] = series.status
        if error_type:
            attributes["error.type"] = error_type
        if match is not None:
            # The attributes first: another thread may look at once.
            series.attributes = attributes
            series.view = match.func
    return attributes
