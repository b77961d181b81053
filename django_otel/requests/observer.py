"""One request from start to finish, independent of Django.

`begin` and `finish` are the request path. What they need from the settings was
put into attributes of `Observer` when the middleware was built, and what is the
same for all requests of one (method, route, status, ...) was looked up once.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import TextMapPropagator

from django_otel.base import guard
from django_otel.base.sdk_compat import attach, get_current
from django_otel.config.schema import Config
from django_otel.metrics.series import HAS_GLOBAL_LOCK
from django_otel.metrics.store import CellStore
from django_otel.requests.attributes import StartAttributes
from django_otel.requests.finish import RequestFinisher
from django_otel.requests.options import ObserverOptions
from django_otel.requests.queue_time import QueueTime
from django_otel.requests.record import REQUEST_KEY, RequestRecord
from django_otel.requests.series import RequestClass, RequestMetrics
from django_otel.requests.start import SpanStarter, inbound_keys
from django_otel.tracing.spans import Shared

if TYPE_CHECKING:
    from django_otel.requests.protocols import RequestLike

_MAX_LEARNED_PATHS = 64
#: Method, scheme and protocol of a request, and its class; all None before the first.
_LastClass = tuple[str | None, str | None, str | None, RequestClass | None]


class Observer(RequestFinisher):
    """Begins and finishes the measurement of requests under one configuration; built again when that changes."""

    # Slots: with more than thirty attributes in a dict the interpreter looks each up again and again.
    __slots__ = (
        "_counts_workers", "_excluded", "_excluded_paths", "_inbound_key", "_inbound_key_too", "_inbound_keys_left",
        "_last_class", "_learns", "_queue_key", "_queue_key_too", "_queue_time", "_secure_header", "_static_prefixes",
        "_store", "find_force_token", "makes_spans", "sampler", "scrub_text", "set_headers", "shared", "starter",
    )  # fmt: skip

    def __init__(
        self,
        config: Config,
        store: CellStore,
        tracer: Callable[[], trace.Tracer],
        propagator: TextMapPropagator,
        options: ObserverOptions,
    ) -> None:
        attributes = StartAttributes(config, options)
        metrics = RequestMetrics(
            store,
            frozenset(config.request.known_methods),
            options.template,
            counts_queries=config.database.spans or config.database.metrics,
            counts_layers=config.request.time_budget,
        )
        super().__init__(config, options, metrics, attributes)
        self._store = store
        self.sampler = options.sampler
        self._secure_header = options.secure_header
        self._static_prefixes = options.static_prefixes
        self.find_force_token = options.find_force_token
        self.makes_spans, self.scrub_text = options.makes_spans, options.scrub_text
        self.set_headers = options.set_headers
        self.starter = SpanStarter(config, tracer, propagator, options, attributes)
        own = self.starter.own_tracer
        #: Common parts of our own tracer's spans; None where the request path may not start spans by itself.
        self.shared: Shared | None = own.shared if own is not None else None
        # One look for each of the usual two, without a loop.
        first, second, *others = [*sorted(inbound_keys(propagator)), "", ""]
        self._inbound_key, self._inbound_key_too = first, second
        self._inbound_keys_left = tuple(filter(None, others)) or None
        self._queue_time = queue_time = QueueTime(store, config.request.queue_headers)
        # With more than two headers any of them may be there.
        keys = queue_time.keys
        self._queue_key, self._queue_key_too = [*keys, "", ""][:2] if len(keys) <= 2 else ("PATH_INFO", "")
        #: Our own pages, and further ones that `learn` adds.
        self._excluded_paths = set(options.own_paths)
        self._learns = options.learns_paths
        patterns = "|".join(fnmatch.translate(pattern) for pattern in config.request.exclude)
        self._excluded = re.compile(patterns).match if patterns else None
        self._last_class: _LastClass = (None, None, None, None)
        self._counts_workers = config.runtime

    def begin(self, request: RequestLike) -> RequestRecord | None:
        """Start measuring `request`; None when it is excluded, or after a fault. Never raises an `Exception`."""
        try:
            if not self._store.joined:
                self._store.wake()  # Also for a scrape, which is to see the other processes.
            path = request.path_info
            if path in self._excluded_paths or (self._excluded is not None and self._excluded(path) is not None):
                return None  # Nor are there spans of what happens inside, see `is_excluded`.
            context = get_current()
            if context and _is_inside(context):
                return None  # The middleware is listed twice, or runs in a view, as Wagtail's previews have it.
            meta = request.META
            record = RequestRecord()
            record.observer = self
            record.request = request
            scheme, protocol = meta.get("wsgi.url_scheme"), meta.get("SERVER_PROTOCOL")
            if scheme is None or self._secure_header is not None:
                scheme, protocol = self._read_scheme(request, meta)
            # Mostly as before. Read and replaced whole, so that threads need no lock for it.
            method = request.method
            last_method, last_scheme, last_protocol, request_class = self._last_class
            if request_class is None or last_method != method or last_scheme != scheme or last_protocol != protocol:
                request_class = self._find_class(method, scheme, protocol, meta)
            record.request_class = request_class
            if self._queue_key in meta or self._queue_key_too in meta:
                self._queue_time.observe(meta)
            record.content_length = meta.get("CONTENT_LENGTH")  # At the end the request has grown and is slow to ask.
            record.queries = 0
            record.spans = 1
            record.rare = record.repeats = record.layers = record.view = None
            record.view_s = 0.0
            if (
                (shared := self.shared) is None
                or shared.is_sdk_path
                or context
                or self._inbound_key in meta
                or self._inbound_key_too in meta
                or (self._inbound_keys_left is not None and not meta.keys().isdisjoint(self._inbound_keys_left))
                or (self._static_prefixes and path.startswith(self._static_prefixes))
            ):
                current = self._start(context, record, request, meta)
            elif (usual := shared.sampler.effective.usual) is not None and usual.is_never:
                # Nothing is current yet, no service has called us, and no such request is recorded.
                record.decisions = usual.dropped.opened or usual.dropped.series()
                record.span_or_none = record.low_bits = None
                current = record
            else:
                current = self._start_root(context, record, request, meta)
            record.context_token = attach(current)  # From here on it is measured, and `finish` comes.
            active = request_class.active
            if HAS_GLOBAL_LOCK:  # As `add` does, without a call for each request.
                active.cells[0] = active.cells[0] + 1.0
                active.is_set = True
            else:
                active.add(1.0)
            record.started_s = perf_counter()
            return record
        except Exception as fault:
            guard.report("beginning a request", fault)
            return None

    def _find_class(
        self, method: str | None, scheme: str | None, protocol: str | None, meta: Mapping[str, str]
    ) -> RequestClass:
        """Return the class of this request, and keep it for the next one."""
        found = self._metrics.find_class(method, scheme, protocol)
        if self._last_class[3] is None and self._counts_workers:
            _count_worker(self._store, meta)
        self._last_class = (method, scheme, protocol, found)
        return found

    def _start(self, context: Context, record: RequestRecord, request: RequestLike, meta: Mapping[str, str]) -> Context:
        """Start the span of an unusual request, and return what is to be current with it."""
        record.decisions = None
        if self._static_prefixes and request.path_info.startswith(self._static_prefixes):
            return self.starter.start_nothing(context, record)
        return self.starter.start(context, record, request, meta)

    def _start_root(
        self, context: Context, record: RequestRecord, request: RequestLike, meta: Mapping[str, str]
    ) -> Context:
        """The same where nothing is current yet, no service has called us, and a ratio or a path decides."""
        assert self.shared is not None
        policy = self.shared.sampler.effective
        outcome = policy.usual
        if outcome is None:
            policy = self.shared.sampler.policy
            outcome = policy.outcome(record.request_class.method, request.path_info)
            if outcome is None:
                # It depends on the route, which Django has yet to find.
                record.decisions = None
                return self.starter.start(context, record, request, meta)
        if outcome.is_never:
            record.decisions = outcome.dropped.opened or outcome.dropped.series()
            record.span_or_none = record.low_bits = None
        else:
            self.starter.start_root(record, request, meta, policy, outcome)
        return record

    def _read_scheme(self, request: RequestLike, meta: Mapping[str, str]) -> tuple[str | None, str | None]:
        """Scheme and protocol under ASGI, and where a proxy names the scheme."""
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

    def is_excluded(self, path: str) -> bool:
        """Return whether requests for this path have neither span nor metrics, and no spans inside."""
        return path in self._excluded_paths or (self._excluded is not None and self._excluded(path) is not None)

    def learn(self, path: str) -> None:
        """Exclude the exact path `path` from now on: one of our own pages, mounted elsewhere.

        Next time it is excluded from its beginning, so that middleware leaves no spans either.
        """
        if self._learns and len(self._excluded_paths) < _MAX_LEARNED_PATHS:
            self._excluded_paths.add(path)


def _is_inside(context: Context) -> bool:
    """Return whether a request is being measured here already."""
    outer: RequestRecord | None = context.get(REQUEST_KEY)  # type: ignore[assignment]
    return outer is not None and not outer.is_finished


def _count_worker(store: CellStore, meta: Mapping[str, str]) -> None:
    """Count this process among those that serve requests, by whether its server takes several at once."""
    web = store.catalogued("django_otel.workers.web")
    # Under ASGI there is no such key. PEP 3333 has the server say it.
    is_several = bool(meta.get("wsgi.multithread", True))
    series = web.series({"concurrency": "several" if is_several else "one"})
    with store.lock:
        # Once, also where the settings have changed or two first requests come at once.
        if not series.read():
            series.add(1.0)
