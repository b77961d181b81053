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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context, create_key
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from django_otel.base import guard
from django_otel.base.patterns import lazy_pattern
from django_otel.base.sdk_compat import SPAN_KEY, attach, build_remote_context, get_current
from django_otel.base.sdk_compat import detach_or_raise as detach
from django_otel.config.schema import Config
from django_otel.metrics.instruments import Counter
from django_otel.metrics.series import HAS_GLOBAL_LOCK, RequestSeries, Series
from django_otel.metrics.store import CellStore
from django_otel.redaction.cutting import cut
from django_otel.redaction.paths import redact_unmatched
from django_otel.requests.deferred import DeferredSpan
from django_otel.requests.response_headers import Notes
from django_otel.sampling.sampler import Branch, InForce, LiveSampler, untraced, with_branch
from django_otel.tracing.exceptions import record_exception, type_name
from django_otel.tracing.propagation import META_GETTER, parse_traceparent
from django_otel.tracing.spans import SPANS_DROPPED, DroppedSpan, RecordedSpan, Shared
from django_otel.tracing.tracer import Tracer

if TYPE_CHECKING:
    from opentelemetry.propagators.textmap import TextMapPropagator

UNMATCHED = "<unmatched>"
#: Headers that are never recorded, whatever was asked for (and whose capture check W010 warns about).
DENIED_HEADER = lazy_pattern(
    r"(?i)authori[sz]ation|cookie|csrf|xsrf|api[-_]?key|token|secret|password|session|credential"
)
_PROTOCOL_VERSIONS = {"0.9": "0.9", "1.0": "1.0", "1.1": "1.1", "2": "2", "2.0": "2", "3": "3", "3.0": "3"}
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_MAX_LEARNED_PATHS = 64
_MAX_KINDS = 256
_MAX_HANDLES = 10_000
#: Longest query string that is scrubbed and recorded, in characters.
_MAX_QUERY = 4096
_MAX_HOST_LENGTH = 255
_MAX_TEXT = 1024

_NOTHING = Context()
#: Where a context holds its request, beside the span: a variable of its own would cost 3 kI per request more.
REQUEST_KEY = create_key("django_otel-request")


def current() -> Observation | None:
    """The request that is being served in this context, or None."""
    context = get_current()
    if type(context) is Observation:
        return context
    found: Observation | None = context.get(REQUEST_KEY)  # type: ignore[assignment]
    return found


def find(request: Any) -> Observation | None:
    """What is measured of `request`, as it is or wrapped by Django REST framework, while it is being served here.

    Nothing is kept on the request: Django's are freed by the garbage collector
    alone, which would have to look at all that hangs on them (1 kI, 2 kI with a span).
    """
    found = current()
    if found is None or found.request is None:
        return None
    return found if found.request is request or found.request is getattr(request, "_request", None) else None


class SpanBudget:
    """Most spans recorded in one trace by this process: per request, or per trace id outside of one.

    Of the spans above the limit those that fail are exported, `MAX_FAILED` of a trace at most; `on_drop()` is called
    for each of the others.
    """

    MAX_FAILED = 100

    #: Traces outside of requests that are counted at a time; the oldest is forgotten.
    MAX_TRACES = 1000

    def __init__(self, limit: int, on_drop: Callable[[], None]) -> None:
        self._limit = limit
        self._on_drop = on_drop
        self._counts: dict[int, int] = {}
        self._failed: dict[int, int] = {}

    def take(self, trace_id: int) -> bool | None:
        """Whether one more span of this trace may be recorded; None when it is above the limit."""
        observation = current()
        if observation is not None:
            if observation.is_span_discarded:
                return False
            observation.spans += 1
            taken = observation.spans
        else:
            # The root was the first; a race between threads of one trace may let a span too many through.
            taken = self._counts.pop(trace_id, 1) + 1
            self._count(self._counts, trace_id, taken)
        return True if taken <= self._limit else None

    def end(self, trace_id: int, is_error: bool) -> bool:
        """A span above the limit has ended; whether it is exported."""
        failed = self._failed.pop(trace_id, 0) + 1 if is_error else 0
        if is_error:
            self._count(self._failed, trace_id, failed)
        if is_error and failed <= self.MAX_FAILED:
            observation = current()
            if observation is not None:
                # It is none of those that are missing in the trace.
                observation.spans -= 1
            return True
        self._on_drop()
        return False

    def _count(self, counts: dict[int, int], trace_id: int, number: int) -> None:
        counts[trace_id] = number
        if len(counts) > self.MAX_TRACES:
            with contextlib.suppress(KeyError, StopIteration, RuntimeError):
                del counts[next(iter(counts))]


def recorded_query(query: str | bytes, scrub_url: Callable[[str], str] | None) -> str:
    """Return a query string as `url.query` records it: at most `_MAX_QUERY` characters of it, scrubbed.

    Scrubbing takes time that grows with the length, and clients choose it. The cut is between two parameters, so
    that none leaves without the name or the end by which the scrubber knows it.
    """
    if len(query) > _MAX_QUERY:
        query = query[: _MAX_QUERY + 1]
    text = query if isinstance(query, str) else query.decode("latin-1")
    mark = ""
    if len(text) > _MAX_QUERY:
        text, mark = text.rpartition("&")[0], "&... [cut]"
    if scrub_url is not None and text:
        # The scrubber knows query strings by their question mark.
        text = scrub_url("?" + text)[1:]
    return (text + mark).removeprefix("&")


class _Kind:
    """What all requests of one method, scheme and protocol version share; looked up once per request."""

    __slots__ = ("active", "attributes", "hosts", "method", "name", "protocol", "routes", "scheme")

    def __init__(self, method: str, scheme: str, protocol: str, active: Series) -> None:
        self.method = method
        self.scheme = scheme
        self.protocol = protocol
        self.active = active
        #: What the spans of all these requests begin with.
        self.attributes: dict[str, Any] = {"http.request.method": method, "url.scheme": scheme}
        if protocol:
            self.attributes["network.protocol.version"] = protocol
        #: The same with the server's name and port, by Host header.
        self.hosts: dict[str | None, dict[str, Any]] = {}
        #: The name of a span whose route is not known.
        self.name = "HTTP" if method == "_OTHER" else method
        #: By raw route, of requests without an error: the handles of the status it last answered with. All are in
        #: `Observer`.
        self.routes: dict[str | None, _Handles] = {}


class _Unusual:
    """What most requests do not have."""

    __slots__ = ("exception", "force_token", "is_discarded", "is_joined", "is_span_discarded", "no_store")

    def __init__(self) -> None:
        self.exception: BaseException | None = None
        self.force_token = ""
        self.is_discarded = self.is_joined = self.is_span_discarded = self.no_store = False


_USUAL = _Unusual()


class Observation(Context):
    """One request under way, filled in by `Observer.begin`. `queries` is counted up by the database layer.

    It is also what is current while the request is served, if nothing else was before: a context of the API in which
    the request's span and the observation itself are found. To put both into a dict, and to make a span that nothing
    records, would cost 3 kI, and mostly nobody asks for them.
    """

    # No __init__, whose call costs 1 kI, no defaults in the class, with which the interpreter looks a name up twice
    # (0.2 kI each time), and in one place what most requests do not need (0.1 kI each).
    __slots__ = (
        "content_length", "context_token", "decisions", "is_finished", "kind", "low_bits", "notes", "observer",
        "queries", "request", "span_or_none", "spans", "started_s", "unusual",
    )  # fmt: skip
    observer: Observer
    request: Any
    kind: _Kind
    #: The span, however it was made; None as long as nobody has asked for one that is not recorded.
    span_or_none: trace.Span | None
    #: Of that one's trace id, if it was decided by them.
    low_bits: int | None
    started_s: float
    queries: int
    #: Spans recorded in this request, for LIMITS.SPANS_PER_TRACE.
    spans: int
    is_finished: bool
    #: The header as it came, or None.
    content_length: str | None
    #: What is noted for the response's headers and the stored trace, when somebody wants it.
    notes: Notes | None
    #: The counter's series of how it was decided, where that is counted with all else at the end of the request.
    decisions: Series | None
    #: Puts back what was current before; None where nothing is to be put back.
    context_token: Any
    #: None as long as there is nothing unusual.
    unusual: _Unusual | None

    @property
    def span(self) -> trace.Span:
        """The request's span; `INVALID_SPAN` after `discard_span`."""
        if self.unusual is not None and self.unusual.is_span_discarded:
            return trace.INVALID_SPAN
        return self.current_span()

    def current_span(self) -> trace.Span:
        """The span as those see it that look for the current one."""
        found = self.span_or_none
        if found is None:
            assert self.observer.shared is not None
            dropped = DroppedSpan()
            dropped.shared, dropped.low_bits, dropped.below = self.observer.shared, self.low_bits, None
            # Of two threads that ask at once both see the same.
            found = self.span_or_none = self.__dict__.setdefault("_dropped", dropped)
        return found

    # --- The API's Context, which cannot be changed. ---

    def _refuse(self, *arguments: Any, **keywords: Any) -> Any:
        raise ValueError("A context cannot be changed. Make another of it with opentelemetry.context.set_value().")

    # Not left to the API, whose older versions refuse the first alone.
    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def get(self, key: str, default: Any = None) -> Any:
        if key == SPAN_KEY:
            return self.current_span()
        return self if key == REQUEST_KEY else default

    def __getitem__(self, key: str) -> Any:
        found = self.get(key)
        if found is None:
            raise KeyError(key)
        return found

    def copy(self) -> dict[str, Any]:
        return {SPAN_KEY: self.current_span(), REQUEST_KEY: self}

    def __contains__(self, key: object) -> bool:
        return key in (SPAN_KEY, REQUEST_KEY)

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[str]:
        return iter((SPAN_KEY, REQUEST_KEY))

    def __reversed__(self) -> Iterator[str]:
        return iter((REQUEST_KEY, SPAN_KEY))

    def keys(self) -> Any:
        return self.copy().keys()

    def values(self) -> Any:
        return self.copy().values()

    def items(self) -> Any:
        return self.copy().items()

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def __eq__(self, other: object) -> bool:
        return self is other or (not isinstance(other, Observation) and self.copy() == other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        # Not the request's path, which may hold a secret.
        return f"<{type(self).__name__} of a {self.kind.method} request>"

    # --- What is seldom. ---

    def make_unusual(self) -> _Unusual:
        """What is to be changed of it."""
        if self.unusual is None:
            self.unusual = _Unusual()
        return self.unusual

    @property
    def method(self) -> str:
        return self.kind.method

    @property
    def is_joined(self) -> bool:
        """Whether the span belongs to another tool, which ends it."""
        return (self.unusual or _USUAL).is_joined

    @property
    def is_discarded(self) -> bool:
        return (self.unusual or _USUAL).is_discarded

    @property
    def is_span_discarded(self) -> bool:
        return (self.unusual or _USUAL).is_span_discarded

    @property
    def force_token(self) -> str:
        """What makes the browser's further requests be traced as well."""
        return (self.unusual or _USUAL).force_token

    @property
    def no_store(self) -> bool:
        """Whether the page shows trace ids, or sets a cookie for them, and so must not be cached."""
        return (self.unusual or _USUAL).no_store

    @no_store.setter
    def no_store(self, value: bool) -> None:
        self.make_unusual().no_store = value

    @property
    def exception(self) -> BaseException | None:
        """The exception that Django has turned into a response."""
        return (self.unusual or _USUAL).exception

    @exception.setter
    def exception(self, value: BaseException | None) -> None:
        self.make_unusual().exception = value

    def discard(self) -> None:
        """Neither spans nor metrics for this request; also not the spans that have ended in it."""
        self.make_unusual().is_discarded = True
        self.discard_span()

    def discard_span(self) -> None:
        """No spans for this request, neither its own nor those inside it; its metrics still count."""
        if self.is_joined:
            return
        self.make_unusual().is_span_discarded = True
        span = self.span_or_none
        if type(span) is DeferredSpan:
            span = span.started()
        if type(span) is RecordedSpan:
            span.discard()

    def attach(self, context: Context) -> None:
        """Make the request current, with the span and all else of `context`."""
        if context.get(REQUEST_KEY) is not self:
            context = Context({**context, REQUEST_KEY: self})
        self.context_token = attach(context)

    def detach(self) -> None:
        """Put back what was current before; only where `attach` was called."""
        token = self.context_token
        if token is not None:
            self.context_token = None
            try:
                detach(token)
            except ValueError:
                # Ended in another context than it began in (an abandoned coroutine): nothing of ours is current there.
                pass


class _Handles(RequestSeries):
    """The series of one (method, route, status, ...), looked up once, and what is told of them."""

    __slots__ = ("attributes", "label", "route", "span_name", "status", "view")
    status: int
    #: The view that answered last, and what its spans end with.
    view: Any
    attributes: dict[str, Any]
    #: The route as a metric's label, as a span's attribute ("" for none), and in the span's name.
    label: str
    route: str
    span_name: str


class Observer:
    """Begins and finishes observations under one configuration.

    `template(route)` turns the framework's raw route into the label;
    `user_attributes(request)` gives the signed-in user's when that is asked for.
    """

    # With more than thirty attributes in a dict the interpreter looks each up anew (2 kI).
    __slots__ = (
        "_active", "_counts_queries", "_duration", "_enrich", "_exceptions", "_excluded", "_excluded_paths",
        "_exemplars", "_forwarded_host", "_handles", "_inbound_key", "_inbound_key_too",
        "_inbound_keys", "_inbound_keys_but_traceparent", "_inbound_keys_left", "_kinds", "_known_methods",
        "_last_kind",
        "_longest_path", "_makes_spans", "_most_spans", "_own_tracer", "_propagator", "_queries", "_records_client",
        "_records_query", "_request_headers", "_request_size", "_response_headers", "_response_size", "_sampler",
        "_scrub_path", "_scrub_text", "_scrub_url", "_secure_header", "_static_prefixes", "_store", "_takes_notes",
        "_template",
        "_traceparent", "_tracer", "_trust",
        "_user_attributes", "find_force_token", "set_headers", "shared",
    )  # fmt: skip

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
        scrub_path: Callable[[str, Mapping[str, Any], Sequence[Any]], str] | None = None,
        scrub_text: Callable[[str], str] = str,
        takes_notes: bool = False,
        static_prefixes: tuple[str, ...] = (),
        set_headers: Callable[[Observation, Any], None] | None = None,
        own_paths: Iterable[str] = (),
    ) -> None:
        self._store = store
        self._tracer = tracer
        self._propagator = propagator
        self._makes_spans = makes_spans
        self._template = template
        self._user_attributes = user_attributes
        self._enrich = enrich
        #: Gives the valid token of a request that is to be traced whatever the ratio; None where that is off.
        self.find_force_token = find_force_token
        #: None where another tool's provider decides.
        self._sampler: Any = sampler
        found = tracer()
        #: Where the request path may start spans by itself: our own tracer under our own sampler, and no links that
        #: force a trace. An observer is built anew when one of them changes.
        is_own = type(found) is Tracer and makes_spans and sampler is not None and find_force_token is None
        own: Any = found if is_own else None
        self._own_tracer: Tracer | None = own
        #: What its spans share; None where there is no such tracer.
        self.shared: Shared | None = own.shared if is_own else None
        self._secure_header = secure_header
        self._forwarded_host = forwarded_host
        self._scrub_url = scrub_url
        self._scrub_path = scrub_path
        self._scrub_text = scrub_text
        self._takes_notes = takes_notes
        #: Called with each response before it is sent; None when no header of ours is asked for.
        self.set_headers = set_headers
        request = config.request
        self._records_query = request.query
        self._records_client = request.client_address
        self._request_headers = tuple(name.lower() for name in request.request_headers)
        self._response_headers = tuple(name.lower() for name in request.response_headers)
        self._known_methods = frozenset(request.known_methods)
        self._exemplars = config.metrics.exemplars
        self._trust = config.propagation.trust_inbound
        #: META keys of the propagation formats: without any of them there is nothing to extract.
        self._inbound_keys = frozenset(
            "HTTP_" + name.upper().replace("-", "_")
            # Of no use alone. Source: W3C Trace Context, "Tracestate Header".
            for name in set(propagator.fields) - {"tracestate"}
        )
        # `traceparent` is parsed here when it comes alone, so that it costs a fifth (60 kI less).
        own = propagator.fields == {"traceparent", "tracestate", "baggage"} and self._trust is True
        # A caller's decision that does not count leaves the request to rules and ratio, as any other.
        own = own and config.sampling.parent
        self._traceparent = "HTTP_TRACEPARENT" if own else ""
        self._inbound_keys_but_traceparent = (self._inbound_keys | {"HTTP_TRACESTATE"}) - {self._traceparent}
        # One look for each of the usual two: a loop over them costs twice as much (0.5 kI).
        first, second, *others = [*sorted(self._inbound_keys), "", ""]
        self._inbound_key, self._inbound_key_too = first, second
        self._inbound_keys_left = tuple(filter(None, others)) or None
        limits = config.traces.limits
        is_plain = not (self._records_query or self._records_client or self._request_headers or self._response_headers)
        #: The longest path that needs no cutting; -1 when other values may, which are kept below `_MAX_TEXT` otherwise.
        self._longest_path = (
            limits.attribute_length
            if is_plain and user_attributes is None and limits.attribute_length >= _MAX_TEXT and limits.attributes >= 32
            else -1
        )
        #: Our own pages, and further ones that `learn` adds.
        self._excluded_paths = set(own_paths)
        self._static_prefixes = static_prefixes
        patterns = "|".join(fnmatch.translate(pattern) for pattern in request.exclude)
        self._excluded = re.compile(patterns).match if patterns else None
        self._duration: Any = store.catalogued("http.server.request.duration")
        self._active: Any = store.catalogued("http.server.active_requests")
        self._request_size: Any = store.catalogued("http.server.request.body.size")
        self._response_size: Any = store.catalogued("http.server.response.body.size")
        self._queries: Any = store.catalogued("django.request.queries")
        self._exceptions: Any = store.catalogued("django.request.exceptions")
        self._kinds: dict[tuple[str, Any, Any], _Kind] = {}
        self._last_kind: tuple[Any, Any, Any, Any] = (None, None, None, None)
        self._handles: dict[tuple[Any, ...], _Handles] = {}
        self._most_spans = config.traces.limits.spans_per_trace
        self._counts_queries = config.database.spans or config.database.metrics

    # --- Begin. ---

    def begin(self, request: Any) -> Observation | None:
        """Start measuring `request`, which has `META`, `method`, `path` and `path_info`; None when it is excluded.

        Never raises an `Exception`: it is reported, and the request goes unmeasured.
        """
        try:
            if not self._store.joined:
                # Also for a scrape, which is to see the other processes.
                self._store.wake()
            path = request.path_info
            if path in self._excluded_paths or (self._excluded is not None and self._excluded(path) is not None):
                # What happens inside has no spans either, see `is_excluded`.
                return None
            context = get_current()
            is_outermost = not context
            if not is_outermost and _is_inside(context):
                # The middleware stands in the list twice, or the project runs a stack of middlewares inside a request
                # (Wagtail's previews): the outer one measures.
                return None
            meta = request.META
            scheme, protocol = meta.get("wsgi.url_scheme"), meta.get("SERVER_PROTOCOL")
            if scheme is None or self._secure_header is not None:
                scheme, protocol = self._read_scheme(request, meta)
            # Mostly the same as before, which is seen in half the time of a look-up (1 kI less). Read and replaced
            # whole, so that threads need no lock for it.
            method, known = request.method, self._last_kind
            if known[0] == method and known[1] == scheme and known[2] == protocol:
                kind: _Kind = known[3]
            else:
                kind = self._find_kind(method, scheme, protocol)
            observation = Observation()
            observation.observer = self
            observation.request = request
            observation.kind = kind
            # Not at the end, when the request has grown and is slow to ask (0.5 kI).
            observation.content_length = meta.get("CONTENT_LENGTH")
            observation.queries = 0
            observation.spans = 1
            observation.unusual = observation.decisions = None
            observation.is_finished = False
            observation.notes = Notes() if self._takes_notes else None
            shared, sampler = self.shared, self._sampler
            current: Context = observation
            if self._static_prefixes and path.startswith(self._static_prefixes):
                current = self._start_nothing(context, observation)
            elif (
                shared is None
                or shared.is_sdk_path
                or not is_outermost
                or sampler.on_first is not None
                or self._inbound_key in meta
                or self._inbound_key_too in meta
                or (self._inbound_keys_left is not None and not meta.keys().isdisjoint(self._inbound_keys_left))
            ):
                current = self._start_span(context, observation, request, meta)
            else:
                # The usual case: nothing is current yet, no service has called us, and a ratio or a path decides.
                policy: InForce = sampler.in_force
                if not policy.is_steady:
                    policy = sampler.policy
                branch = policy.branch(kind.method, path) if policy.has_rules else policy.branch_by_default
                if branch is None:
                    # It depends on the route, which Django has yet to find.
                    current = self._start_span(context, observation, request, meta)
                elif branch.is_never:
                    observation.decisions = branch.dropped.opened or branch.dropped.series()
                    observation.span_or_none = observation.low_bits = None
                else:
                    self._start_root(observation, request, meta, policy, branch)
            # From here on it is measured, and `finish` comes.
            observation.context_token = attach(current)
            active = kind.active
            if HAS_GLOBAL_LOCK:
                # As `active.add(1.0)`, whose call costs 0.5 kI. Not interrupted from here.
                view, place = active.view, active.base
                view[place] += 1.0
                active.is_set = True
            else:
                active.add(1.0)
            observation.started_s = perf_counter()
            return observation
        except Exception as fault:
            guard.report("beginning a request", fault)
            return None

    def _read_scheme(self, request: Any, meta: Mapping[str, Any]) -> tuple[Any, Any]:
        """Scheme and protocol under ASGI, and where a proxy tells the scheme."""
        scope = getattr(request, "scope", None)
        if scope is None:
            scheme, protocol = meta.get("wsgi.url_scheme"), meta.get("SERVER_PROTOCOL")
        else:
            scheme, protocol = scope.get("scheme"), scope.get("http_version")
        if self._secure_header is not None:
            value = meta.get(self._secure_header[0])
            if value is not None:
                # As django.http.HttpRequest.scheme reads it.
                scheme = "https" if value.split(",", 1)[0].strip() == self._secure_header[1] else "http"
        return scheme, protocol

    def _find_kind(self, method: str, scheme: Any, protocol: Any) -> _Kind:
        key = (method if method in self._known_methods else "_OTHER", scheme, protocol)
        kind = self._kinds.get(key) or self._make_kind(key)
        self._last_kind = (method, scheme, protocol, kind)
        return kind

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

    def _start_nothing(self, context: Context, observation: Observation) -> Context:
        """Return what is to be current for a request that is counted and has no spans."""
        observation.span_or_none = observation.low_bits = None
        observation.discard_span()
        return Context({**untraced(context), REQUEST_KEY: observation})

    def _join_span(self, context: Context, observation: Observation) -> None:
        observation.span_or_none = trace.get_current_span(context)
        observation.make_unusual().is_joined = True

    def _start_root(
        self, observation: Observation, request: Any, meta: Mapping[str, Any], policy: InForce, branch: Branch
    ) -> None:
        """Start the span of a trace that begins here, where nothing is current and a part of them is recorded."""
        tracer: Any = self._own_tracer
        # The decision needs half of a trace id; the other ids, and attributes, only what is recorded.
        low_bits = tracer.shared.ids.bits(64)
        if policy.is_steady:
            # As decide() does, where there is nothing else to see to: half of what deciding costs (1.5 kI).
            verdict = branch.recorded if low_bits < branch.bound else branch.dropped
        else:
            verdict = policy.decide(low_bits, None, branch)
        observation.decisions = verdict.opened or verdict.series()
        if verdict.is_recording:
            attributes = self._start_attributes(observation, request, meta)
            if verdict.attributes:
                attributes.update(verdict.attributes)
            observation.span_or_none = tracer.record_root(
                observation.kind.name, _NOTHING, SpanKind.SERVER, low_bits, verdict.is_sampled, attributes,
                are_ready=len(request.path) <= self._longest_path,
            )  # fmt: skip
        else:
            observation.span_or_none, observation.low_bits = None, low_bits

    def _start_span(self, context: Context, observation: Observation, request: Any, meta: Mapping[str, Any]) -> Context:
        """Start the request's span in every other case, and return what is to be current with it."""
        tracer = self._own_tracer
        if not self._makes_spans:
            self._join_span(context, observation)
        elif (
            self._traceparent in meta
            and not context
            and tracer is not None
            and not tracer.shared.is_sdk_path
            and self._sampler.on_first is None
            and meta.keys().isdisjoint(self._inbound_keys_but_traceparent)
        ):
            context = self._start_span_of_caller(context, observation, request, meta)
        else:
            context = self._start_span_below(context, observation, request, meta)
        if not context:
            return observation
        return Context({**context, SPAN_KEY: observation.current_span(), REQUEST_KEY: observation})

    def _start_span_of_caller(
        self, context: Context, observation: Observation, request: Any, meta: Mapping[str, Any]
    ) -> Context:
        """The same below a `traceparent` that is to be trusted and came without anything else; nothing is current."""
        found = parse_traceparent(meta[self._traceparent])
        tracer, policy = self._own_tracer, self._sampler.policy
        if tracer is None or found is None or tracer.shared.starters:
            # A processor is given what came in.
            return self._start_span_below(context, observation, request, meta)
        trace_id, span_id, flags = found
        parent = build_remote_context(trace_id, span_id, flags)
        verdict = policy.decide(trace_id, parent)
        observation.decisions = verdict.opened or verdict.series()
        if verdict.is_recording:
            attributes = self._start_attributes(observation, request, meta)
            if verdict.attributes:
                attributes.update(verdict.attributes)
            observation.span_or_none = tracer.record_entry(
                observation.kind.name, context, SpanKind.SERVER, parent, verdict.is_sampled, attributes,
                are_ready=len(request.path) <= self._longest_path,
            )  # fmt: skip
        else:
            observation.span_or_none = dropped = DroppedSpan()
            dropped.shared, dropped.low_bits, dropped.below = tracer.shared, None, parent
        return context

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
            observation.span_or_none = outer
            observation.make_unusual().is_joined = True
            return context
        links: Sequence[Link] = ()
        has_parent = False
        if not meta.keys().isdisjoint(self._inbound_keys):
            inbound = self._propagator.extract(meta, context, META_GETTER)
            remote = trace.get_current_span(inbound).get_span_context()
            is_caller = remote.is_valid and remote.is_remote
            if self._trust is True or self._is_trusted(meta.get("REMOTE_ADDR")):
                context, has_parent = inbound, is_caller
            elif is_caller:
                links = (Link(remote),)
        policy = self._sampler.policy if self._sampler is not None else None
        token = self.find_force_token(meta) if self.find_force_token is not None and policy is not None else None
        if token is not None and policy is not None:
            unusual = observation.make_unusual()
            unusual.force_token, unusual.no_store = token, True
            span = self._open_span(observation, request, context, links, with_branch(policy.forced, context))
        elif policy is None or (has_parent and policy.follows_parent) or not policy.has_rules:
            span = self._open_span(observation, request, context, links, context)
        else:
            branch = policy.branch(observation.method, request.path_info)
            if branch is None:
                # It depends on the route, which Django has yet to find.
                span = self._defer_span(observation, request, context, links, policy)
            else:
                span = self._open_span(observation, request, context, links, with_branch(branch, context))
        observation.span_or_none = span
        return context

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
            if observation.is_span_discarded:
                return trace.INVALID_SPAN
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
        kind = observation.kind
        # Read raw: get_host() raises on a bad Host, and that is the application's to decide.
        host = (meta.get("HTTP_X_FORWARDED_HOST") if self._forwarded_host else None) or meta.get("HTTP_HOST")
        if type(host) is not str and host is not None:
            host = str(host)
        known = kind.hosts.get(host)
        if known is not None:
            attributes = known.copy()
        elif host:
            attributes = self._make_host(kind, host, split_host(host)).copy()
        else:
            server = (str(meta.get("SERVER_NAME") or ""), str(meta.get("SERVER_PORT") or ""))
            attributes = self._make_host(kind, "", server)
        attributes["url.path"] = request.path
        if kind.method == "_OTHER":
            attributes["http.request.method_original"] = cut(str(request.method), _MAX_TEXT, self._scrub_text)
        agent = meta.get("HTTP_USER_AGENT")
        if agent:
            agent = str(agent)
            attributes["user_agent.original"] = (
                agent if len(agent) <= _MAX_TEXT else cut(agent, _MAX_TEXT, self._scrub_text)
            )
        if self._records_query and (query := meta.get("QUERY_STRING")):
            attributes["url.query"] = recorded_query(query, self._scrub_url)
        if self._records_client and meta.get("REMOTE_ADDR"):
            attributes["client.address"] = str(meta["REMOTE_ADDR"])
        if self._request_headers:
            attributes.update(self._headers("http.request.header.", self._request_headers, _meta_headers(meta)))
        return attributes

    def _make_host(self, kind: _Kind, host: str, name_and_port: tuple[str, str]) -> dict[str, Any]:
        name, port = name_and_port
        # A client leaves out the port of the scheme.
        port = port or _DEFAULT_PORTS[kind.scheme]
        attributes = kind.attributes.copy()
        if name:
            attributes["server.address"] = name[:_MAX_TEXT]
        if name and port.isascii() and port.isdigit() and len(port) <= 5:
            attributes["server.port"] = int(port)
        # Clients choose it; what a site is called is seldom more than a few.
        if host and len(host) <= _MAX_HOST_LENGTH and len(kind.hosts) < _MAX_KINDS:
            kind.hosts[host] = attributes
        return attributes

    def _headers(self, prefix: str, wanted: Sequence[str], found: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
        attributes: dict[str, list[str]] = {}
        for name, value in found:
            if not DENIED_HEADER.search(name) and any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted):
                attributes.setdefault(prefix + name, []).append(cut(str(value), _MAX_TEXT, self._scrub_text))
        return attributes

    # --- Finish. ---

    def finish(
        self,
        observation: Observation,
        response: Any,
        response_size_bytes: int | None = None,
        error: BaseException | None = None,
    ) -> None:
        """End the measurement, once; `response` is None when none was produced. Never raises an `Exception`."""
        if observation.is_finished:
            return
        observation.is_finished = True
        duration_s = perf_counter() - observation.started_s
        request, kind, span = observation.request, observation.kind, observation.span_or_none
        unusual = observation.unusual
        is_counted = False
        try:
            if unusual is not None:
                if unusual.is_discarded:
                    # Next time from its beginning, so that what middlewares do for it leaves no spans either.
                    self.learn(request.path_info)
                    return
                span = observation.span
            status = response.status_code if response is not None else 0
            match = request.resolver_match
            raw_route = match.route if match is not None else None
            error_type, exception = "", None
            if unusual is not None or error is not None or status >= 500:
                error_type = _find_error_type(status, error)
                exception = unusual.exception if unusual is not None else None
                if exception is None and error_type:
                    exception = error
            # Mostly as the route answered before.
            handles = kind.routes.get(raw_route)
            if handles is None or error_type or handles.status != status:
                handles = self._find_handles(kind, raw_route, status, error_type)
            handles.finish(observation.decisions, duration_s, response_size_bytes, observation.queries)
            is_counted = True
            if observation.content_length:
                self._measure_body(handles, observation.content_length)
            if exception is not None:
                self._count_exception(exception, handles.label)
            if span is not None and type(span) is not DroppedSpan:
                self._finish_span(observation, span, response, duration_s, handles, match, error_type, exception)
        except BaseException as fault:
            # Also when REQUEST.ENRICH is interrupted; ending the span is the last thing that is done.
            if span is not None and not observation.is_joined:
                span.end()
            if not isinstance(fault, Exception):
                raise
            guard.report("finishing a request", fault)
        finally:
            if not is_counted:
                kind.active.add(-1.0)
                if observation.decisions is not None:
                    observation.decisions.add(1.0)
            # Nothing holds the request longer than the server does.
            observation.request = None
            if unusual is not None:
                unusual.exception = None
                if unusual.is_discarded:
                    # One whose decision was put off holds the request as well.
                    observation.span_or_none = trace.INVALID_SPAN

    def _measure_body(self, handles: _Handles, length: Any) -> None:
        length = str(length)
        if length.isascii() and length.isdigit() and len(length) < 16:
            handles.request_size.observe(float(length))

    def _find_handles(self, kind: _Kind, raw_route: str | None, status: int, error_type: str) -> _Handles:
        route = self._template(raw_route) if raw_route is not None else ""
        label = route or (UNMATCHED if status == 404 else "")
        key = (kind.method, label, status, kind.scheme, kind.protocol, error_type)
        handles = self._handles.get(key)
        if handles is None:
            handles = self._make_handles(key, kind.active, f"{kind.name} {route}" if route else "", route)
        # Beyond the limit every key would lead to the same overflow series and only use memory.
        if not error_type and not handles.is_overflow and len(kind.routes) < _MAX_HANDLES:
            kind.routes[raw_route] = handles
        return handles

    def _make_handles(self, key: tuple[Any, ...], active: Series, span_name: str, route: str) -> _Handles:
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
            active,
            self._duration.series(duration),
            self._request_size.series(sizes),
            self._response_size.series(sizes),
            self._queries.series({"http.route": label}) if label and self._counts_queries else None,
        )
        handles.view, handles.attributes = None, {}
        handles.status, handles.label, handles.route, handles.span_name = status, label, route, span_name
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
        span: trace.Span,
        response: Any,
        duration_s: float,
        handles: _Handles,
        match: Any,
        error_type: str,
        exception: BaseException | None,
    ) -> None:
        if self._exemplars:
            ids = span.get_span_context()
            if ids.trace_flags & 1:
                handles.duration.show_exemplar(duration_s, ids.trace_id, ids.span_id)
        if span.is_recording():
            self._describe(observation, span, response, handles, match, error_type, exception)
        if not observation.is_joined:
            span.end()

    def _describe(
        self,
        observation: Observation,
        span: trace.Span,
        response: Any,
        handles: _Handles,
        match: Any,
        error_type: str,
        exception: BaseException | None,
    ) -> None:
        if match is not None and match.func is handles.view and not observation.is_joined:
            attributes = handles.attributes
        else:
            attributes = self._find_attributes(observation, handles, match, error_type)
        # Shared by all requests alike: copied by who has more to say.
        if self._scrub_path is not None and (match is None or match.kwargs or match.args):
            path = observation.request.path
            scrubbed = redact_unmatched(path) if match is None else self._scrub_path(path, match.kwargs, match.args)
            if scrubbed != path:
                attributes = {**attributes, "url.path": scrubbed}
        if observation.spans > self._most_spans:
            attributes = {**attributes, SPANS_DROPPED: observation.spans - self._most_spans}
        if self._user_attributes is not None:
            attributes = {**attributes, **self._user_attributes(observation.request)}
        if not observation.is_joined:
            if self._response_headers and response is not None:
                lowered = ((name.lower(), value) for name, value in response.items())
                headers = self._headers("http.response.header.", self._response_headers, lowered)
                attributes = {**attributes, **headers}
            if exception is not None:
                record_exception(span, exception, self._scrub_text, escaped=response is None)
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

    def _find_attributes(
        self, observation: Observation, handles: _Handles, match: Any, error_type: str
    ) -> dict[str, Any]:
        attributes: dict[str, Any] = {}
        if match is not None:
            view = name_view(match, observation.method)
            if view:
                attributes["django.view"] = view
        if not observation.is_joined:
            if handles.route:
                attributes["http.route"] = handles.route
            if handles.status:
                attributes["http.response.status_code"] = handles.status
            if error_type:
                attributes["error.type"] = error_type
            if match is not None:
                # The attributes first: another thread may look at once.
                handles.attributes = attributes
                handles.view = match.func
        return attributes

    def is_excluded(self, path: str) -> bool:
        """Whether requests for this path have neither span nor metrics, nor spans of what happens inside."""
        return path in self._excluded_paths or (self._excluded is not None and self._excluded(path) is not None)

    def learn(self, path: str) -> None:
        """From now on exclude the exact path `path`: one of our own pages, mounted elsewhere."""
        if len(self._excluded_paths) < _MAX_LEARNED_PATHS:
            self._excluded_paths.add(path)


def _is_inside(context: Context) -> bool:
    """Whether a request is being measured here already."""
    outer: Any = context.get(REQUEST_KEY)
    return outer is not None and not outer.is_finished


def _find_error_type(status: int, error: BaseException | None) -> str:
    """`error.type` of a request; "" where a client that went away, or the server's end, is all that has happened."""
    if status >= 500:
        return str(status)
    if error is None or isinstance(error, asyncio.CancelledError | GeneratorExit):
        return ""
    return type_name(error)


def name_view(match: Any, method: str) -> str:
    """Return the dotted name of the view that a URL leads to; "" where it has none.

    With the action of a viewset of Django REST framework, and the operation of django-ninja, whose own view stands for
    all methods of a path.
    """
    view = match.func
    named = str(getattr(match, "_func_path", None) or getattr(match, "view_name", None) or "")
    actions = getattr(view, "actions", None)
    if isinstance(actions, Mapping):
        # HEAD is answered by what answers GET, as the framework has it.
        action = actions.get(method.lower()) or (actions.get("get") if method == "HEAD" else None)
        return f"{named}.{action}" if isinstance(action, str) and named else named
    for operation in _operations(view):
        methods = getattr(operation, "methods", ())
        if method in methods or (method == "HEAD" and "GET" in methods and "HEAD" not in methods):
            function = getattr(operation, "view_func", None)
            name = getattr(function, "__qualname__", "")
            if name:
                return f"{getattr(function, '__module__', '')}.{name}"
    return named


def _operations(view: Any) -> Sequence[Any]:
    """The operations of the object whose method a view is, or which it closes over (`ninja.operation.PathView`)."""
    for _ in range(20):
        owner = getattr(view, "__self__", None)
        names = getattr(getattr(view, "__code__", None), "co_freevars", ())
        if owner is None and "self" in names:
            try:
                owner = view.__closure__[names.index("self")].cell_contents
            except ValueError:  # An empty cell.
                owner = None
        found = getattr(owner, "operations", None)
        if isinstance(found, list | tuple):
            return found
        view = getattr(view, "__wrapped__", None) or getattr(view, "func", None)
        if view is None:
            break
    return ()


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
