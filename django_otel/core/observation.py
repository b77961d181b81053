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

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from django_otel.core import guard
from django_otel.core.cells import CellStore, Counter, RequestSeries, Series
from django_otel.core.config import Config
from django_otel.core.deferred import DeferredSpan
from django_otel.core.errors import record_exception, type_name
from django_otel.core.patterns import lazy_pattern
from django_otel.core.propagation import META_GETTER
from django_otel.core.response_headers import Notes
from django_otel.core.sampling import Branch, InForce, LiveSampler, with_branch
from django_otel.core.sdk_compat import attach, detach, get_current, with_span
from django_otel.core.spans import DroppedSpan, RecordedSpan, Tracer

if TYPE_CHECKING:
    from opentelemetry.propagators.textmap import TextMapPropagator

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"})
UNMATCHED = "<unmatched>"
#: Always excluded where `django_otel.urls` is mounted at the root; other places are learned by `Observer.learn`.
OWN_PATHS = ("/metrics", "/livez", "/readyz")
#: Headers that are never recorded, whatever was asked for (and whose capture check W010 warns about).
DENIED_HEADER = lazy_pattern(
    r"(?i)authori[sz]ation|cookie|csrf|xsrf|api[-_]?key|token|secret|password|session|credential"
)
_PROTOCOL_VERSIONS = {"0.9": "0.9", "1.0": "1.0", "1.1": "1.1", "2": "2", "2.0": "2", "3": "3", "3.0": "3"}
_MAX_LEARNED_PATHS = 64
_MAX_KINDS = 256
_MAX_HANDLES = 10_000
_MAX_HOST_LENGTH = 255
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


class _Kind:
    """What all requests of one method, scheme and protocol version share; looked up once per request."""

    __slots__ = ("active", "attributes", "handles", "method", "name", "protocol", "scheme")

    def __init__(self, method: str, scheme: str, protocol: str, active: Series) -> None:
        self.method = method
        self.scheme = scheme
        self.protocol = protocol
        self.active = active
        #: What the spans of all these requests begin with.
        self.attributes: dict[str, Any] = {"http.request.method": method, "url.scheme": scheme}
        if protocol:
            self.attributes["network.protocol.version"] = protocol
        #: The name of a span whose route is not known.
        self.name = "HTTP" if method == "_OTHER" else method
        #: By raw route and status, of requests without an error: what all others are looked up by in `Observer`.
        self.handles: dict[tuple[str | None, int], _Handles] = {}


class Observation:
    """One request under way. `queries` is counted up by the database layer."""

    # No defaults in the class: with them the interpreter looks a name up twice, for 200 instructions each time.
    __slots__ = (
        "_context_token", "_current_token", "decisions", "exception", "force_token", "is_active", "is_discarded",
        "is_finished", "is_joined", "is_span_discarded", "kind", "no_store", "notes", "observer", "queries", "request",
        "span", "spans", "started_s",
    )  # fmt: skip

    def __init__(self, observer: Observer, request: Any, kind: _Kind) -> None:
        self.observer = observer
        self.request = request
        self.kind = kind
        self.span: trace.Span = trace.INVALID_SPAN
        self.started_s = 0.0
        self.queries = 0
        #: Spans recorded in this request, for LIMITS.SPANS_PER_TRACE.
        self.spans = 1
        self.exception: BaseException | None = None
        #: Whether it counts among the active requests.
        self.is_active = True
        #: Whether the span belongs to another tool, which ends it.
        self.is_joined = False
        self.is_discarded = False
        self.is_span_discarded = False
        self.is_finished = False
        #: Whether the page shows trace ids and so must not be cached.
        self.no_store = False
        #: What makes the browser's further requests be traced as well.
        self.force_token = ""
        #: What is noted for the response's headers and the stored trace, when somebody wants it.
        self.notes: Notes | None = None
        #: The counter's series of how it was decided, where that is counted with all else at the end of the request.
        self.decisions: Series | None = None
        self._current_token: Any = None
        self._context_token: Any = None

    @property
    def method(self) -> str:
        return self.kind.method

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
        self._context_token = attach(context)

    def detach(self) -> None:
        """Put back what was current before; only where `attach` was called."""
        token = self._context_token
        if token is not None:
            self._context_token = None
            detach(token)
        token = self._current_token
        if token is not None:
            self._current_token = None
            try:
                _current.reset(token)
            except ValueError:
                # Ended in another context than it began in (an abandoned coroutine): nothing of ours is current there.
                pass


class _Handles(RequestSeries):
    """The series of one (method, route, status, ...), looked up once, and what is told of them."""

    __slots__ = ("label", "route", "span_name")
    #: The route as a metric's label, as a span's attribute ("" for none), and in the span's name.
    label: str
    route: str
    span_name: str


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
        takes_notes: bool = False,
        set_headers: Callable[[Observation, Any], None] | None = None,
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
        self._takes_notes = takes_notes
        #: Called with each response before it is sent; None when no header of ours is asked for.
        self.set_headers = set_headers
        request = config.request
        self._records_query = request.query
        self._records_client = request.client_address
        self._request_headers = tuple(name.lower() for name in request.request_headers)
        self._response_headers = tuple(name.lower() for name in request.response_headers)
        self._exemplars = config.metrics.exemplars
        self._trust = config.propagation.trust_inbound
        #: META keys of the propagation formats: without any of them there is nothing to extract.
        self._inbound_keys = tuple("HTTP_" + name.upper().replace("-", "_") for name in propagator.fields)
        limits = config.traces.limits
        is_plain = not (self._records_query or self._records_client or self._request_headers or self._response_headers)
        #: The longest path that needs no cutting; -1 when other values may, which are kept below `_MAX_TEXT` otherwise.
        self._longest_path = (
            limits.attribute_length
            if is_plain and user_attributes is None and limits.attribute_length >= _MAX_TEXT and limits.attributes >= 32
            else -1
        )
        self._excluded_paths = set(OWN_PATHS)
        patterns = "|".join(fnmatch.translate(pattern) for pattern in request.exclude)
        self._excluded = re.compile(patterns).match if patterns else None
        self._duration: Any = store.catalogued("http.server.request.duration")
        self._active: Any = store.catalogued("http.server.active_requests")
        self._request_size: Any = store.catalogued("http.server.request.body.size")
        self._response_size: Any = store.catalogued("http.server.response.body.size")
        self._queries: Any = store.catalogued("django.request.queries")
        self._exceptions: Any = store.catalogued("django.request.exceptions")
        self._kinds: dict[tuple[str, Any, Any], _Kind] = {}
        self._hosts: dict[str, dict[str, Any]] = {}
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
        kind = self._find_kind(request, meta)
        observation = Observation(self, request, kind)
        request._django_otel = observation
        if self._takes_notes:
            observation.notes = Notes()
        context = self._start_span(observation, request, meta) if self._makes_spans else self._join_span(observation)
        observation._current_token = _current.set(observation)
        observation._context_token = attach(context)
        # From here on it is measured, and `finish` comes.
        kind.active.add(1.0)
        observation.started_s = perf_counter()
        return observation

    def _find_kind(self, request: Any, meta: Mapping[str, Any]) -> _Kind:
        method = request.method
        if method not in METHODS:
            method = "_OTHER"
        scope = request.__dict__.get("scope")
        if scope is None:
            scheme, protocol = meta.get("wsgi.url_scheme"), meta.get("SERVER_PROTOCOL")
        else:
            scheme, protocol = scope.get("scheme"), scope.get("http_version")
        if self._secure_header is not None:
            value = meta.get(self._secure_header[0])
            if value is not None:
                # As django.http.HttpRequest.scheme reads it.
                scheme = "https" if value.split(",", 1)[0].strip() == self._secure_header[1] else "http"
        key = (method, scheme, protocol)
        return self._kinds.get(key) or self._make_kind(key)

    def _make_kind(self, key: tuple[str, Any, Any]) -> _Kind:
        method, scheme, protocol = key
        scheme = "https" if scheme == "https" else "http"
        active = self._active.series({"http.request.method": method, "url.scheme": scheme})
        version = _PROTOCOL_VERSIONS.get(str(protocol or "").removeprefix("HTTP/"), "")
        kind = _Kind(method, scheme, version, active)
        # Not every server refuses a protocol that does not exist.
        if len(self._kinds) < _MAX_KINDS:
            self._kinds[key] = kind
        return kind

    def _join_span(self, observation: Observation) -> Context:
        context = get_current()
        observation.span = trace.get_current_span(context)
        observation.is_joined = True
        return context

    def _start_span(self, observation: Observation, request: Any, meta: Mapping[str, Any]) -> Context:
        """Start the request's span; the usual case, in which nothing is current yet and nobody has called us."""
        kind = observation.kind
        tracer = self._tracer()
        context = get_current()
        sampler = self._sampler
        if (
            context
            or type(tracer) is not Tracer
            or tracer.shared.is_plain
            or sampler is None
            or sampler.on_first is not None
            or self._find_force_token is not None
        ):
            return self._start_span_below(context, observation, request, meta)
        for name in self._inbound_keys:
            if name in meta:
                return self._start_span_below(context, observation, request, meta)
        policy = sampler.in_force
        if policy.is_simple:
            branch: Branch | None = policy.branch_by_default
        else:
            policy = sampler.policy
            branch = policy.branch(kind.method, request.path_info)
        if branch is None:
            # It depends on the route, which Django has yet to find.
            return self._start_span_below(context, observation, request, meta)
        # The decision needs half of a trace id; the other ids, and attributes, only what is recorded.
        low_bits = tracer.shared.ids.bits(64)
        if policy.is_simple:
            # As decide() does, where there is nothing else to see to: half of what deciding costs (1.5 kI).
            verdict = branch.recorded if low_bits < branch.bound else branch.dropped
        else:
            verdict = policy.decide(low_bits, None, branch)
        observation.decisions = verdict.series()
        span: trace.Span
        if verdict.is_recording:
            attributes = self._start_attributes(observation, request, meta)
            if verdict.attributes:
                attributes.update(verdict.attributes)
            span = tracer.record_root(
                kind.name, context, SpanKind.SERVER, low_bits, verdict.is_sampled, attributes,
                are_ready=len(request.path) <= self._longest_path,
            )  # fmt: skip
        else:
            span = tracer.drop_root(low_bits)
        observation.span = span
        return with_span(context, span)

    def _start_span_below(
        self, context: Context, observation: Observation, request: Any, meta: Mapping[str, Any]
    ) -> Context:
        """The same where there may be a parent: another tool's span, a caller's, or what a middleware has put there."""
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
        return with_span(context, span)

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
            observation.kind.name,
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
        attributes = observation.kind.attributes.copy()
        attributes["url.path"] = request.path
        if observation.kind.method == "_OTHER":
            attributes["http.request.method_original"] = str(request.method)[:_MAX_TEXT]
        # Read raw: get_host() raises on a bad Host, and that is the application's to decide.
        host = (meta.get("HTTP_X_FORWARDED_HOST") if self._forwarded_host else None) or meta.get("HTTP_HOST")
        if host:
            attributes.update(self._hosts.get(host) or self._make_host(host, split_host(host)))
        else:
            attributes.update(self._make_host("", (meta.get("SERVER_NAME") or "", str(meta.get("SERVER_PORT") or ""))))
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

    def _make_host(self, host: str, name_and_port: tuple[str, str]) -> dict[str, Any]:
        name, port = name_and_port
        attributes: dict[str, Any] = {}
        if name:
            attributes["server.address"] = name[:_MAX_TEXT]
        if port.isascii() and port.isdigit() and len(port) <= 5:
            attributes["server.port"] = int(port)
        # Clients choose it; what a site is called is seldom more than a few.
        if host and len(host) <= _MAX_HOST_LENGTH and len(self._hosts) < _MAX_KINDS:
            self._hosts[host] = attributes
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
        try:
            if observation.is_discarded:
                # Next time from its beginning, so that what middlewares do for it leaves no spans either.
                self.learn(observation.request.path_info)
            else:
                self._measure(observation, response, duration_s, response_size_bytes, error)
        except BaseException as fault:
            # Also when REQUEST.ENRICH is interrupted; ending the span is the last thing that _measure does.
            if not observation.is_joined:
                observation.span.end()
            if not isinstance(fault, Exception):
                raise
            guard.report("finishing a request", fault)
        finally:
            if observation.is_active:
                observation.kind.active.add(-1.0)
                if observation.decisions is not None:
                    observation.decisions.add(1.0)
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
        kind = observation.kind
        status = response.status_code if response is not None else 0
        match = getattr(request, "resolver_match", None)
        raw_route = match.route if match is not None else None
        if status >= 500:
            error_type = str(status)
        elif error is not None and not isinstance(error, asyncio.CancelledError | GeneratorExit):
            error_type = type_name(error)
        else:
            error_type = ""
        handles = (None if error_type else kind.handles.get((raw_route, status))) or self._find_handles(
            kind, raw_route, status, error_type
        )
        span = observation.span
        is_dropped = type(span) is DroppedSpan
        trace_id = span_id = 0
        if self._exemplars and not is_dropped:
            span_context = span.get_span_context()
            if span_context.trace_flags & 1:
                trace_id, span_id = span_context.trace_id, span_context.span_id
        observation.is_active = False
        handles.finish(
            kind.active, observation.decisions, duration_s, response_size_bytes, observation.queries, trace_id, span_id
        )
        size = request.META.get("CONTENT_LENGTH")
        if size and size.isascii() and size.isdigit() and len(size) < 16:
            handles.request_size.observe(float(size))
        exception = observation.exception or (error if error_type else None)
        if exception is not None:
            self._count_exception(exception, handles.label)
        if is_dropped:
            return
        if span.is_recording():
            self._finish_span(observation, response, status, handles, match, error_type, exception)
        if not observation.is_joined:
            span.end()

    def _find_handles(self, kind: _Kind, raw_route: str | None, status: int, error_type: str) -> _Handles:
        route = self._template(raw_route) if raw_route is not None else ""
        label = route or (UNMATCHED if status == 404 else "")
        key = (kind.method, label, status, kind.scheme, kind.protocol, error_type)
        handles = self._handles.get(key)
        if handles is None:
            handles = self._make_handles(key, f"{kind.name} {route}" if route else "", route)
        # Beyond the limit every key would lead to the same overflow series and only use memory.
        if not error_type and not handles.is_overflow and len(kind.handles) < _MAX_HANDLES:
            kind.handles[raw_route, status] = handles
        return handles

    def _make_handles(self, key: tuple[Any, ...], span_name: str, route: str) -> _Handles:
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
        handles.label, handles.route, handles.span_name = label, route, span_name
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
        handles: _Handles,
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
            if handles.route:
                attributes["http.route"] = handles.route
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
        name = handles.span_name if not observation.is_joined else ""
        if name and type(span) is RecordedSpan:
            # Texts of the URLconf, and numbers.
            span.complete(name, attributes, are_clean=self._longest_path > 0 and len(name) < _MAX_TEXT)
        else:
            if name:
                span.update_name(name)
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
