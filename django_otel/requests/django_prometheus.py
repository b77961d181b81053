"""Requests under the names of django-prometheus (`METRICS["NAMES"]`), counted once at their end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django_otel.metrics.django_prometheus import MEASURED
from django_otel.metrics.instruments import Counter, Histogram
from django_otel.metrics.series import HistogramSeries, Series
from django_otel.metrics.store import CellStore
from django_otel.requests.record import RequestRecord

if TYPE_CHECKING:
    from django_otel.requests.protocols import RequestLike, ResponseLike

#: As django-prometheus knows them; it calls every other method `<invalid method>`.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "TRACE", "OPTIONS", "CONNECT", "PATCH"})
_UNNAMED = "<unnamed view>"
_MAX_KEPT = 10_000


def find_instrument(store: CellStore, name: str) -> Counter | Histogram:
    """Return the instrument of a metric in `MEASURED`, made if need be."""
    metric = MEASURED[name]
    if metric.bounds:
        return store.histogram(name, "", metric.description, metric.bounds)
    return store.counter(name, "", metric.description)


class _Ended:
    """The series of requests that ended alike: those that grow by one, and the duration by view."""

    __slots__ = ("counters", "latency")

    def __init__(self, counters: tuple[Series, ...], latency: HistogramSeries) -> None:
        self.counters = counters
        self.latency = latency


class LegacyRequestMetrics:
    """Counts a request under the names of django-prometheus."""

    __slots__ = ("_ajax", "_ended", "_latency", "_request_size", "_response_size", "_store")

    def __init__(self, store: CellStore) -> None:
        self._store = store
        self._ended: dict[tuple[object, ...], _Ended] = {}
        self._latency = self._open_histogram("django_http_requests_latency_including_middlewares_seconds")
        self._request_size = self._open_histogram("django_http_requests_body_total_bytes")
        self._response_size = self._open_histogram("django_http_responses_body_total_bytes")
        self._ajax = self._open("django_http_ajax_requests_total")

    def count(
        self,
        record: RequestRecord,
        request: RequestLike,
        response: ResponseLike | None,
        size_bytes: int | None,
        duration_s: float,
    ) -> None:
        """Count a request that has ended; `response` is None when none was produced."""
        answer: Any = response
        match: Any = request.resolver_match
        view = (match.view_name if match is not None else None) or _UNNAMED
        method = request.method if request.method in _METHODS else "<invalid method>"
        status, charset, template = "", "", None
        is_streaming = False
        if answer is not None:
            status, charset = str(answer.status_code), str(getattr(answer, "charset", "") or "")
            is_streaming = bool(answer.streaming)
            if callable(getattr(answer, "render", None)) and hasattr(answer, "template_name"):
                template = str(answer.template_name)
        has_view = match is not None
        key = (view, has_view, method, record.request_class.scheme, status, charset, template, is_streaming)
        ended = self._ended.get(key) or self._make(key)
        for series in ended.counters:
            series.add(1.0)
        ended.latency.observe(duration_s)
        self._latency.observe(duration_s)
        self._request_size.observe(record.body_bytes or 0.0)
        if answer is not None and not is_streaming and size_bytes is not None:
            # What Django produced, also where the server leaves it out.
            self._response_size.observe(float(size_bytes))
        if request.META.get("HTTP_X_REQUESTED_WITH") == "XMLHttpRequest":
            self._ajax.add(1.0)

    def count_exception(self, exception: BaseException, match: Any) -> None:
        """Count an exception that a view raised, also one that Django answers (404, 403)."""
        self._open("django_http_exceptions_total_by_type", type=type(exception).__name__).add(1.0)
        if match is not None:
            self._open("django_http_exceptions_total_by_view", view=match.view_name or _UNNAMED).add(1.0)

    def _make(self, key: tuple[Any, ...]) -> _Ended:
        view, has_view, method, transport, status, charset, template, is_streaming = key
        counters = [
            self._open("django_http_requests_before_middlewares_total"),
            self._open("django_http_requests_total_by_method", method=method),
            self._open("django_http_requests_total_by_transport", transport=transport),
        ]
        if has_view:
            name = "django_http_requests_total_by_view_transport_method"
            counters.append(self._open(name, view=view, transport=transport, method=method))
        if status:
            name = "django_http_responses_total_by_status_view_method"
            counters += [
                self._open("django_http_responses_before_middlewares_total"),
                self._open("django_http_responses_total_by_status", status=status),
                self._open(name, status=status, view=view, method=method),
            ]
        if charset:
            counters.append(self._open("django_http_responses_total_by_charset", charset=charset))
        if template is not None:
            counters.append(self._open("django_http_responses_total_by_templatename", templatename=template))
        if is_streaming:
            counters.append(self._open("django_http_responses_streaming_total"))
        latency = self._open_histogram(
            "django_http_requests_latency_seconds_by_view_method", view=view, method=method
        )  # fmt: skip
        made = _Ended(tuple(counters), latency)
        if len(self._ended) < _MAX_KEPT and not any(series.is_overflow for series in (*counters, latency)):
            self._ended[key] = made
        return made

    def _open(self, name: str, **labels: str) -> Series:
        return find_instrument(self._store, name).series(labels)

    def _open_histogram(self, name: str, **labels: str) -> HistogramSeries:
        found = self._open(name, **labels)
        assert isinstance(found, HistogramSeries)
        return found
