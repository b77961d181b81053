"""One request: its begin, its finish, and everything measured in between, without Django's help.

`begin` and `finish` are the request path. What they need from the settings was
put into attributes of `Observer` when the middleware was built, and what is the
same for all requests of one (method, route, status, ...) was looked up once.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from django_otel.core import guard
from django_otel.core.cells import CellStore, Counter, HistogramSeries, Series
from django_otel.core.config import Config
from django_otel.core.deferred import DeferredSpan
from django_otel.core.errors import record_exception, type_name
from django_otel.core.propagation import META_GETTER
from django_otel.core.sampling import InForce, LiveSampler, with_branch

if TYPE_CHECKING:
    from opentelemetry.propagators.textmap import TextMapPropagator

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"})
UNMATCHED = "<unmatched>"
#: Always excluded where `django_otel.urls` is mounted at the root; other places are learned by `Observer.learn`.
OWN_PATHS = ("/metrics", "/livez", "/readyz")
#: Headers that are never recorded, whatever was asked for (and whose capture check W010 warns about).
DENIED_HEADER = re.compile(
    r"(?i)authori[sz]ation|cookie|csrf|xsrf|api[-_]?key|token|secret|password|session|credential"
)
_PROTOCOL_VERSIONS = {"0.9": "0.9", "1.0": "1.0", "1.1": "1.1", "2": "2", "2.0": "2", "3": "3", "3.0": "3"}
_MAX_LEARNED_PATHS = 64
_MAX_TEXT = 1024

_current: ContextVar[Observation | None] = ContextVar("django_otel_observation", default=None)


def current() -> Observation | None:
    """The request that is being served in this context, or None."""
    return _current.get()


class SpanBudget:
    """Most spans recorded in one trace by this process: per request, or per trace id outside of one.

    `on_drop()` is called for each span above the limit.
    """

    #: Traces outside of requests that are counted at a time; the oldest is forgotten.
    MAX_TRACES = 1000

    def __init__(self, limit: int, on_drop: Callable[[], None]) -> None:
        self._limit = limit
        self._on_drop = on_drop
        self._counts: dict[int, int] = {}

    def take(self, trace_id: int) -> bool:
        """Whether one more span of this trace may be recorded."""
        observation = _current.get()
        if observation is not None:
            if observation.is_span_discarded:
                return False
            observation.spans += 1
            taken = observation.spans
        else:
            # The root was the first; a race between threads of one trace may let a span too many through.
            taken = self._counts.pop(trace_id, 1) + 1
            self._counts[trace_id] = taken
            if len(self._counts) > self.MAX_TRACES:
                with contextlib.suppress(KeyError, StopIteration, RuntimeError):
                    del self._counts[next(iter(self._counts))]
        if taken <= self._limit:
            return True
        self._on_drop()
        return False


class Observation:
    """One request under way. `queries` is counted up by the database layer."""

    __slots__ = (
        "_context_token",
        "_current_token",
        "active",
        "exception",
        "force_token",
        "is_discarded",
        "is_finished",
        "is_joined",
        "is_span_discarded",
        "method",
        "no_store",
        "observer",
        "protocol",
        "queries",
        "request",
        "scheme",
        "span",
        "spans",
        "started_s",
    )

    def __init__(
        self, observer: Observer, request: Any, method: str, scheme: str, protocol: str, active: Series
    ) -> None:
        self.observer = observer
        self.request = request
        self.method = method
        self.scheme = scheme
        self.protocol = protocol
        self.active = active
        self.span: trace.Span = trace.INVALID_SPAN
        self.started_s = 0.0
        self.queries = 0
        #: Spans recorded in this request, for LIMITS.SPANS_PER_TRACE.
        self.spans = 1
        self.exception: BaseException | None = None
        #: Whether the span belongs to another tool, which ends it.
        self.is_joined = False
        self.is_discarded = False
        self.is_span_discarded = False
        self.is_finished = False
        #: Whether the page shows trace ids and so must not be cached.
        self.no_store = False
        #: What makes the browser's further requests be traced as well.
        self.force_token = ""
        self._current_token: Any = None
        self._context_token: Any = None

    def discard(self) -> None:
        """Neither span nor metrics for this request."""
        self.is_discarded = True

    def discard_span(self) -> None:
        """No span for this request, nor further ones in it; its metrics still count."""
        if not self.is_joined:
            self.is_span_discarded = True
            self.span = trace.INVALID_SPAN

    def attach(self, context: Context) -> None:
        """Make the request and its span current."""
        self._current_token = _current.set(self)
        self._context_token = otel_context.attach(context)

    def detach(self) -> None:
        """Put back what was current before; only where `attach` was called."""
        token, self._context_token = self._context_token, None
        if token is not None:
            otel_context.detach(token)
        token, self._current_token = self._current_token, None
        if token is not None:
            try:
                _current.reset(token)
            except ValueError:
                # Ended in another context than it began in (an abandoned coroutine): nothing of ours is current there.
                pass


class _Handles:
    """The series of one (method, route, status, ...), looked up once."""

    __slots__ = ("duration", "is_overflow", "queries", "request_size", "response_size")

    def __init__(self, duration: Any, request_size: Any, response_size: Any, queries: Any) -> None:
        self.duration: HistogramSeries = duration
        self.request_size: HistogramSeries = request_size
        self.response_size: HistogramSeries = response_size
        self.queries: HistogramSeries | None = queries
        self.is_overflow = duration.is_overflow


class Observer:
    """Begins and finishes observations under one configuration.

    `template(route)` turns the framework's raw route into the label;
    `user_attributes(request)` gives the signed-in user's when that is asked for.
    """

    def __init__(
        self,
        config: Config,
        store: CellStore,
        tracer: Callable[[], trace.Tracer],
        propagator: TextMapPropagator,
        *,
        makes_spans: bool,
        template: Callable[[str], str],
        user_attributes: Callable[[Any], Mapping[str, Any]] | None = None,
        enrich: Callable[[trace.Span, Any, Any], None] | None = None,
        sampler: LiveSampler | None = None,
        find_force_token: Callable[[Mapping[str, Any]], str | None] | None = None,
        secure_header: tuple[str, str] | None = None,
        forwarded_host: bool = False,
        scrub_url: Callable[[str], str] | None = None,
        scrub_path: Callable[[str, Mapping[str, Any]], str] | None = None,
    ) -> None:
        self._store = store
        self._tracer = tracer
        self._propagator = propagator
        self._makes_spans = makes_spans
        self._template = template
        self._user_attributes = user_attributes
        self._enrich = enrich
        #: Gives the valid token of a request that is to be traced whatever the ratio; None where that is off.
        self._find_force_token = find_force_token
        #: None where another tool's provider decides.
        self._sampler = sampler
        self._secure_header = secure_header
        self._forwarded_host = forwarded_host
        self._scrub_url = scrub_url
        self._scrub_path = scrub_path
        request = config.request
        self._records_query = request.query
        self._records_client = request.client_address
        self._request_headers = tuple(name.lower() for name in request.request_headers)
        self._response_headers = tuple(name.lower() for name in request.response_headers)
        self._exemplars = config.metrics.exemplars
        self._trust = config.propagation.trust_inbound
        #: META keys of the propagation formats: without any of them there is nothing to extract.
        self._inbound_keys = tuple("HTTP_" + name.upper().replace("-", "_") for name in propagator.fields)
        self._excluded_paths = set(OWN_PATHS)
        patterns = "|".join(fnmatch.translate(pattern) for pattern in request.exclude)
        self._excluded = re.compile(patterns).match if patterns else None
        self._duration: Any = store.catalogued("http.server.request.duration")
        self._active: Any = store.catalogued("http.server.active_requests")
        self._request_size: Any = store.catalogued("http.server.request.body.size")
        self._response_size: Any = store.catalogued("http.server.response.body.size")
        self._queries: Any = store.catalogued("django.request.queries")
        self._exceptions: Any = store.catalogued("django.request.exceptions")
        self._active_series: dict[tuple[str, str], Series] = {}
        self._handles: dict[tuple[Any, ...], _Handles] = {}
        self._limit = config.metrics.cardinality_limit
        self._counts_queries = config.database.spans or config.database.metrics

    # --- Begin. ---

    def begin(self, request: Any) -> Observation | None:
        """Start measuring `request`, which has `META`, `method`, `path` and `path_info`; None when it is excluded."""
        path = request.path_info
        if path in self._excluded_paths or (self._excluded is not None and self._excluded(path) is not None):
            # What happens inside has no spans either, see `is_excluded`.
            return None
        outer = request.__dict__.get("_django_otel")
        if outer is not None and not outer.is_finished:
            # The middleware stands in the list twice: the first one measures.
            return None
        meta = request.META
        method = request.method
        if method not in METHODS:
            method = "_OTHER"
        scheme, protocol = self._scheme_and_protocol(request, meta)
        key = (method, scheme)
        active = self._active_series.get(key)
        if active is None:
            active = self._active.series({"http.request.method": method, "url.scheme": scheme})
            self._active_series[key] = active
        observation = Observation(self, request, method, scheme, protocol, active)
        request._django_otel = observation
        context = self._start_span(observation, request, meta) if self._makes_spans else self._join_span(observation)
        observation.attach(context)
        active.add(1.0)
        observation.started_s = perf_counter()
        return observation

    def _scheme_and_protocol(self, request: Any, meta: Mapping[str, Any]) -> tuple[str, str]:
        scope = getattr(request, "scope", None)
        if scope is None:
            scheme = meta.get("wsgi.url_scheme")
            version = _PROTOCOL_VERSIONS.get(str(meta.get("SERVER_PROTOCOL", ""))[5:], "")
        else:
            scheme = scope.get("scheme")
            version = _PROTOCOL_VERSIONS.get(scope.get("http_version", ""), "")
        if self._secure_header is not None:
            value = meta.get(self._secure_header[0])
            if value is not None:
                # As django.http.HttpRequest.scheme reads it.
                scheme = "https" if value.split(",", 1)[0].strip() == self._secure_header[1] else "http"
        return ("https" if scheme == "https" else "http"), version

    def _join_span(self, observation: Observation) -> Context:
        context = otel_context.get_current()
        observation.span = trace.get_current_span(context)
        observation.is_joined = True
        return context

    def _start_span(self, observation: Observation, request: Any, meta: Mapping[str, Any]) -> Context:
        context = otel_context.get_current()
        outer = trace.get_current_span(context)
        outer_context = outer.get_span_context()
        if (
            outer_context.is_valid
            and not outer_context.is_remote
            and (getattr(outer, "kind", None) is SpanKind.SERVER or not outer.is_recording())
        ):
            # Another tool made the server span already, recorded or not.
            observation.span = outer
            observation.is_joined = True
            return context
        links: Sequence[Link] = ()
        has_parent = False
        for name in self._inbound_keys:
            if name in meta:
                inbound = self._propagator.extract(meta, context, META_GETTER)
                remote = trace.get_current_span(inbound).get_span_context()
                is_caller = remote.is_valid and remote.is_remote
                if self._trust is True or self._is_trusted(meta.get("REMOTE_ADDR")):
                    context, has_parent = inbound, is_caller
                elif is_caller:
                    links = (Link(remote),)
                break
        policy = self._sampler.policy if self._sampler is not None else None
        token = self._find_force_token(meta) if self._find_force_token is not None and policy is not None else None
        if token is not None and policy is not None:
            observation.force_token = token
            span = self._open_span(observation, request, context, links, with_branch(policy.forced, context))
        elif policy is None or has_parent or not policy.has_rules:
            span = self._open_span(observation, request, context, links, context)
        else:
            branch = policy.branch(observation.method, request.path_info)
            if branch is None:
                # It depends on the route, which Django has yet to find.
                span = self._defer_span(observation, request, context, links, policy)
            else:
                span = self._open_span(observation, request, context, links, with_branch(branch, context))
        observation.span = span
        return trace.set_span_in_context(span, context)

    def _open_span(
        self,
        observation: Observation,
        request: Any,
        context: Context,
        links: Sequence[Link],
        decided: Context,
        start_time_unix_nano: int | None = None,
    ) -> trace.Span:
        """Start the server span; `decided` is `context` with what the sampler is to know besides."""
        return self._tracer().start_span(
            "HTTP" if observation.method == "_OTHER" else observation.method,
            decided,
            SpanKind.SERVER,
            self._start_attributes(observation, request, request.META),
            links,
            start_time_unix_nano,
        )

    def _defer_span(
        self, observation: Observation, request: Any, context: Context, links: Sequence[Link], policy: InForce
    ) -> DeferredSpan:
        begun_unix_nano = time_ns()

        def decide() -> trace.Span:
            match = getattr(request, "resolver_match", None)
            route = self._template(match.route) if match is not None else None
            branch = policy.branch_of_route(observation.method, request.path_info, route)
            if branch is policy.branch_by_default and match is not None:
                ratio = getattr(match.func, "_django_otel_sample_ratio", None)
                if ratio is not None:
                    branch = policy.branch_of_view(ratio)
            return self._open_span(
                observation, request, context, links, with_branch(branch, context), begun_unix_nano
            )  # fmt: skip

        return DeferredSpan(decide)

    def _is_trusted(self, address: Any) -> bool:
        if not self._trust or self._trust is True or not address:
            return bool(self._trust) and self._trust is True
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None) or parsed
        return any(mapped in network for network in self._trust)

    def _start_attributes(self, observation: Observation, request: Any, meta: Mapping[str, Any]) -> dict[str, Any]:
        attributes: dict[str, Any] = {
            "http.request.method": observation.method,
            "url.path": request.path,
            "url.scheme": observation.scheme,
        }
        if observation.method == "_OTHER":
            attributes["http.request.method_original"] = str(request.method)[:_MAX_TEXT]
        if observation.protocol:
            attributes["network.protocol.version"] = observation.protocol
        # Read raw: get_host() raises on a bad Host, and that is the application's to decide.
        host = (meta.get("HTTP_X_FORWARDED_HOST") if self._forwarded_host else None) or meta.get("HTTP_HOST")
        name, port = split_host(host) if host else (meta.get("SERVER_NAME") or "", str(meta.get("SERVER_PORT") or ""))
        if name:
            attributes["server.address"] = name[:_MAX_TEXT]
        if port.isascii() and port.isdigit() and len(port) <= 5:
            attributes["server.port"] = int(port)
        agent = meta.get("HTTP_USER_AGENT")
        if agent:
            attributes["user_agent.original"] = agent[:_MAX_TEXT]
        if self._records_query and (query := meta.get("QUERY_STRING")):
            query = query if isinstance(query, str) else query.decode("latin-1")
            # The scrubber knows query strings by their question mark.
            attributes["url.query"] = self._scrub_url("?" + query)[1:] if self._scrub_url else query
        if self._records_client and meta.get("REMOTE_ADDR"):
            attributes["client.address"] = meta["REMOTE_ADDR"]
        if self._request_headers:
            attributes.update(self._headers("http.request.header.", self._request_headers, _meta_headers(meta)))
        return attributes

    def _headers(self, prefix: str, wanted: Sequence[str], found: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
        attributes: dict[str, list[str]] = {}
        for name, value in found:
            if not DENIED_HEADER.search(name) and any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted):
                attributes.setdefault(prefix + name, []).append(str(value)[:_MAX_TEXT])
        return attributes

    # --- Finish. ---

    def finish(
        self,
        observation: Observation,
        response: Any,
        *,
        response_size_bytes: int | None = None,
        error: BaseException | None = None,
    ) -> None:
        """End the measurement, once; `response` is None when none was produced. Never raises an `Exception`."""
        if observation.is_finished:
            return
        observation.is_finished = True
        duration_s = perf_counter() - observation.started_s
        observation.active.add(-1.0)
        try:
            if not observation.is_discarded:
                self._measure(observation, response, duration_s, response_size_bytes, error)
        except BaseException as fault:
            # Also when REQUEST.ENRICH is interrupted; ending the span is the last thing that _measure does.
            if not observation.is_joined:
                observation.span.end()
            if not isinstance(fault, Exception):
                raise
            guard.report("finishing a request", fault)
        finally:
            # The request holds the observation: without this, only the garbage collector would free both.
            observation.request = observation.exception = None
            if observation.is_discarded:
                # One whose decision was put off holds the request as well.
                observation.span = trace.INVALID_SPAN

    def _measure(
        self,
        observation: Observation,
        response: Any,
        duration_s: float,
        response_size_bytes: int | None,
        error: BaseException | None,
    ) -> None:
        request = observation.request
        status = response.status_code if response is not None else 0
        match = getattr(request, "resolver_match", None)
        route = self._template(match.route) if match is not None else ""
        if status >= 500:
            error_type = str(status)
        elif error is not None and not isinstance(error, asyncio.CancelledError | GeneratorExit):
            error_type = type_name(error)
        else:
            error_type = ""
        label = route or (UNMATCHED if status == 404 else "")
        key = (observation.method, label, status, observation.scheme, observation.protocol, error_type)
        handles = self._handles.get(key) or self._make_handles(key)
        span = observation.span
        trace_id = span_id = 0
        if self._exemplars:
            span_context = span.get_span_context()
            if span_context.trace_flags.sampled:
                trace_id, span_id = span_context.trace_id, span_context.span_id
        handles.duration.observe(duration_s, trace_id, span_id)
        size = request.META.get("CONTENT_LENGTH")
        if size and size.isascii() and size.isdigit() and len(size) < 16:
            handles.request_size.observe(float(size))
        if response_size_bytes is not None:
            handles.response_size.observe(float(response_size_bytes))
        if handles.queries is not None:
            handles.queries.observe(float(observation.queries))
        exception = observation.exception or (error if error_type else None)
        if exception is not None:
            self._count_exception(exception, label)
        if span.is_recording():
            self._finish_span(observation, response, status, route, match, error_type, exception)
        if not observation.is_joined:
            span.end()

    def _make_handles(self, key: tuple[Any, ...]) -> _Handles:
        method, label, status, scheme, protocol, error_type = key
        sizes: dict[str, Any] = {"http.request.method": method}
        if label:
            sizes["http.route"] = label
        if status:
            sizes["http.response.status_code"] = status
        duration = {**sizes, "url.scheme": scheme}
        if protocol:
            duration["network.protocol.version"] = protocol
        if error_type:
            duration["error.type"] = error_type
        handles = _Handles(
            self._duration.series(duration),
            self._request_size.series(sizes),
            self._response_size.series(sizes),
            self._queries.series({"http.route": label}) if label and self._counts_queries else None,
        )
        # Beyond the limit every key would lead to the same overflow series and only use memory.
        if not handles.is_overflow:
            self._handles[key] = handles
        return handles

    def _count_exception(self, exception: BaseException, label: str) -> None:
        counter: Counter = self._exceptions
        attributes = {"exception.type": type_name(exception)}
        if label:
            attributes["http.route"] = label
        counter.add(1, attributes)

    def _finish_span(
        self,
        observation: Observation,
        response: Any,
        status: int,
        route: str,
        match: Any,
        error_type: str,
        exception: BaseException | None,
    ) -> None:
        span = observation.span
        attributes: dict[str, Any] = {}
        if match is not None:
            view = getattr(match, "_func_path", None) or getattr(match, "view_name", None)
            if view:
                attributes["django.view"] = str(view)
            captured = getattr(match, "kwargs", None)
            if captured and self._scrub_path is not None:
                path = observation.request.path
                scrubbed = self._scrub_path(path, captured)
                if scrubbed is not path:
                    attributes["url.path"] = scrubbed
        if self._user_attributes is not None:
            attributes.update(self._user_attributes(observation.request))
        if not observation.is_joined:
            if route:
                name = "HTTP" if observation.method == "_OTHER" else observation.method
                span.update_name(f"{name} {route}")
                attributes["http.route"] = route
            if status:
                attributes["http.response.status_code"] = status
            if error_type:
                attributes["error.type"] = error_type
            if self._response_headers and response is not None:
                lowered = ((name.lower(), value) for name, value in response.items())
                attributes.update(self._headers("http.response.header.", self._response_headers, lowered))
            if exception is not None:
                record_exception(span, exception, escaped=response is None)
            if error_type:
                # For a server span the description is left empty when the status code says it all
                # (semantic conventions, "HTTP server span status").
                span.set_status(Status(StatusCode.ERROR))
        span.set_attributes(attributes)
        if self._enrich is not None:
            with guard.contained("REQUEST.ENRICH"):
                self._enrich(span, observation.request, response)

    def is_excluded(self, path: str) -> bool:
        """Whether requests for this path have neither span nor metrics, nor spans of what happens inside."""
        return path in self._excluded_paths or (self._excluded is not None and self._excluded(path) is not None)

    def learn(self, path: str) -> None:
        """From now on exclude the exact path `path`: one of our own pages, mounted elsewhere."""
        if len(self._excluded_paths) < _MAX_LEARNED_PATHS:
            self._excluded_paths.add(path)


def split_host(host: str) -> tuple[str, str]:
    """Name and port of a Host header as it came, valid or not; IPv6 without its brackets."""
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        return name, rest.lstrip(":")
    name, separator, port = host.rpartition(":")
    if not separator or ":" in name:
        return host, ""
    return name, port


def _meta_headers(meta: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name, value in meta.items():
        if isinstance(value, str):
            if name.startswith("HTTP_"):
                yield name[5:].lower().replace("_", "-"), value
            elif name in ("CONTENT_TYPE", "CONTENT_LENGTH") and value:
                yield name.lower().replace("_", "-"), value
