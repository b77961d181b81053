"""Series of requests: those of one class of requests, and those of one route and status.

Both are looked up once and kept, so that a request finds them in one step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from opentelemetry.util.types import AttributeValue

from django_otel.metrics.instruments import Counter, Histogram, Instrument, UpDownCounter
from django_otel.metrics.series import HistogramSeries, RequestSeries, Series
from django_otel.metrics.store import CellStore
from django_otel.requests.layers import MIDDLEWARE, NAMES, VIEW
from django_otel.tracing.exceptions import type_name

#: The label of requests that no route matches.
UNMATCHED = "<unmatched>"
_PROTOCOL_VERSIONS = {"0.9": "0.9", "1.0": "1.0", "1.1": "1.1", "2": "2", "2.0": "2", "3": "3", "3.0": "3"}
_MAX_CLASSES = 256
_MAX_ROUTES = 10_000

SomeInstrument = TypeVar("SomeInstrument", bound=Instrument)

#: Attributes of a span.
Attributes = dict[str, AttributeValue]
#: Attributes that the project adds, sorted.
Labels = tuple[tuple[str, AttributeValue], ...]
#: Method, label of the route, status, scheme, protocol, error, and what the project adds.
_Key = tuple[str, str, int, str, str, str, Labels]


class RequestClass:
    """State shared by all requests of one method, scheme and protocol version; looked up once per request."""

    __slots__ = ("active", "attributes", "hosts", "method", "name", "protocol", "routes", "scheme")

    def __init__(self, method: str, scheme: str, protocol: str, active: Series) -> None:
        self.method = method
        self.scheme = scheme
        self.protocol = protocol
        self.active = active
        #: First attributes of the spans of all these requests.
        self.attributes: Attributes = {"http.request.method": method, "url.scheme": scheme}
        if protocol:
            self.attributes["network.protocol.version"] = protocol
        #: The same with the server's name and port, by Host header.
        self.hosts: dict[str | None, Attributes] = {}
        #: The name of a span whose route is not known.
        self.name = "HTTP" if method == "_OTHER" else method
        #: By raw route, of requests without an error: the series of the status it last answered with. All are in
        #: `RequestMetrics`.
        self.routes: dict[str | None, RouteSeries] = {}


class RouteSeries(RequestSeries):
    """The series of one (method, route, status, ...), and the last attributes of its spans."""

    __slots__ = ("attributes", "extra", "label", "layers", "route", "span_name", "status", "view")
    status: int
    #: The view that answered last, and what its spans end with.
    view: object
    attributes: Attributes
    #: Time of the layers inside view and middlewares, as far as there was any, by layer.
    layers: dict[int, HistogramSeries]
    #: The route as a metric's label, as a span's attribute ("" for none), and in the span's name.
    label: str
    route: str
    span_name: str
    #: The project's attributes.
    extra: Labels


class BodilessSeries(RouteSeries):
    """The series of answers that servers send without their body.

    A class of its own, so that other requests are not asked for it.
    Source: RFC 9110, 6.4.1.
    """

    __slots__ = ()

    def finish(
        self,
        decisions: Series | None,
        duration_s: float,
        response_size_bytes: int | None,
        query_count: int,
        own_s: float = 0.0,
        view_s: float = 0.0,
    ) -> None:
        """Count a request as `RequestSeries` does, with a size of 0 where there is an answer."""
        size_bytes = None if response_size_bytes is None else 0
        super().finish(decisions, duration_s, size_bytes, query_count, own_s, view_s)


class RequestMetrics:
    """The instruments of requests, and the series of them that are known."""

    def __init__(
        self,
        store: CellStore,
        known_methods: frozenset[str],
        template: Callable[[str], str],
        *,
        counts_queries: bool,
        counts_layers: bool,
    ) -> None:
        self._known_methods = known_methods
        self._template = template
        self._counts_queries = counts_queries
        self._layers = _find(store, "django.request.layer.duration", Histogram) if counts_layers else None
        self._duration = _find(store, "http.server.request.duration", Histogram)
        self._active = _find(store, "http.server.active_requests", UpDownCounter)
        self._request_size = _find(store, "http.server.request.body.size", Histogram)
        self._response_size = _find(store, "http.server.response.body.size", Histogram)
        self._queries = _find(store, "django.request.queries", Histogram)
        self._exceptions = _find(store, "django.request.exceptions", Counter)
        self._classes: dict[tuple[str, str | None, str | None], RequestClass] = {}
        self._routes: dict[_Key, RouteSeries] = {}

    def find_class(self, method: str | None, scheme: str | None, protocol: str | None) -> RequestClass:
        """Return the shared parts of all requests like this."""
        known = method if method is not None and method in self._known_methods else "_OTHER"
        key = (known, scheme, protocol)
        return self._classes.get(key) or self._make_class(key)

    def _make_class(self, key: tuple[str, str | None, str | None]) -> RequestClass:
        method, scheme, protocol = key
        scheme = "https" if scheme == "https" else "http"
        active = self._active.series({"http.request.method": method, "url.scheme": scheme})
        version = _PROTOCOL_VERSIONS.get(str(protocol or "").removeprefix("HTTP/"), "")
        made = RequestClass(method, scheme, version, active)
        # Not every server refuses a protocol that does not exist.
        if len(self._classes) < _MAX_CLASSES:
            self._classes[key] = made
        return made

    def find_route(
        self, request_class: RequestClass, raw_route: str | None, status: int, error_type: str
    ) -> RouteSeries:
        """The series of requests that were answered like this; `raw_route` is the framework's, None without one."""
        route = self._template(raw_route) if raw_route is not None else ""
        label = route or (UNMATCHED if status == 404 else "")
        found = self.find_labelled(request_class, route, label, status, error_type)
        # Beyond the limit every key would lead to the same overflow series and only use memory.
        if not error_type and not found.is_overflow and len(request_class.routes) < _MAX_ROUTES:
            request_class.routes[raw_route] = found
        return found

    def find_labelled(
        self, request_class: RequestClass, route: str, label: str, status: int, error_type: str, extra: Labels = ()
    ) -> RouteSeries:
        """The series of the route `route` ("" without one), which metrics call `label`."""
        key = (request_class.method, label, status, request_class.scheme, request_class.protocol, error_type, extra)
        found = self._routes.get(key)
        if found is None:
            found = self._make_route(key, request_class.active)
            found.route, found.span_name = route, f"{request_class.name} {route}" if route else ""
        return found

    def _make_route(self, key: _Key, active: Series) -> RouteSeries:
        method, label, status, scheme, protocol, error_type, extra = key
        # Our own names win.
        sizes: dict[str, AttributeValue] = {**dict(extra), "http.request.method": method}
        if label:
            sizes["http.route"] = label
        if status:
            sizes["http.response.status_code"] = status
        duration = {**sizes, "url.scheme": scheme}
        if protocol:
            duration["network.protocol.version"] = protocol
        if error_type:
            duration["error.type"] = error_type
        is_bodiless = method == "HEAD" or status in (204, 304) or 100 <= status < 200
        made = (BodilessSeries if is_bodiless else RouteSeries)(
            active,
            _open(self._duration, duration),
            _open(self._request_size, sizes),
            _open(self._response_size, sizes),
            _open(self._queries, {**dict(extra), "http.route": label}) if label and self._counts_queries else None,
            *self._open_base(label),
        )
        made.layers = {}
        made.view, made.attributes = None, {}
        made.status, made.label, made.extra = status, label, extra
        # Beyond the limit every key would lead to the same overflow series and only use memory.
        if not made.is_overflow:
            self._routes[key] = made
        return made

    def _open_base(self, label: str) -> tuple[HistogramSeries, ...]:
        """The layers that nearly every request has, if they are counted."""
        return (self._open_layer(label, MIDDLEWARE), self._open_layer(label, VIEW)) if self._layers is not None else ()

    def _open_layer(self, label: str, layer: str) -> HistogramSeries:
        assert self._layers is not None
        route = {"http.route": label} if label else {}
        return _open(self._layers, {**route, "django.layer": layer})

    def count_layers(self, route: RouteSeries, seconds: Sequence[float]) -> None:
        """Count the time of the layers inside view and middlewares, in seconds by layer."""
        for layer, took_s in enumerate(seconds):
            if layer and took_s > 0.0 and self._layers is not None:
                series = route.layers.get(layer)
                if series is None:
                    series = route.layers[layer] = self._open_layer(route.label, NAMES[layer])
                series.observe(took_s)

    def count_exception(self, exception: BaseException, series: RouteSeries) -> None:
        """Count an exception that ended a request of this series."""
        attributes = {**dict(series.extra), "exception.type": type_name(exception)}
        if series.label:
            attributes["http.route"] = series.label
        self._exceptions.add(1, attributes)


def _find(store: CellStore, name: str, kind: type[SomeInstrument]) -> SomeInstrument:
    found = store.catalogued(name)
    assert isinstance(found, kind)
    return found


def _open(histogram: Histogram, attributes: Mapping[str, object]) -> HistogramSeries:
    found = histogram.series(attributes)
    assert isinstance(found, HistogramSeries)
    return found
