"""Starts the span of a request according to its parent: none, a caller, a span of this process, or another tool's."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from time import time_ns
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import Link, SpanKind

from django_otel.base.sdk_compat import SPAN_KEY, build_remote_context
from django_otel.config.schema import Config
from django_otel.requests.attributes import StartAttributes
from django_otel.requests.deferred import DeferredSpan
from django_otel.requests.options import ObserverOptions
from django_otel.requests.record import REQUEST_KEY, RequestRecord
from django_otel.requests.series import Attributes
from django_otel.sampling.decision import Decision
from django_otel.sampling.effective import EffectivePolicy, RuleOutcome
from django_otel.sampling.sampler import untraced, with_outcome
from django_otel.tracing.propagation import META_GETTER, parse_traceparent
from django_otel.tracing.spans import DroppedSpan
from django_otel.tracing.tracer import Tracer

if TYPE_CHECKING:
    from django_otel.requests.protocols import RequestLike

_NOTHING = Context()
#: Here once: to find a member in its class takes Python 3.11 a thousand instructions.
_SERVER = SpanKind.SERVER


class SpanStarter:
    """Starts the spans of requests: `start_root`, `start_below_caller`, `start_child`, `join`; `start` chooses."""

    __slots__ = (
        "_attributes",
        "_find_force_token",
        "_inbound_keys",
        "_inbound_keys_but_traceparent",
        "_makes_spans",
        "_propagator",
        "_sampler",
        "_template",
        "_traceparent",
        "_trust",
        "own_tracer",
        "tracer",
    )  # fmt: skip

    def __init__(
        self,
        config: Config,
        tracer: Callable[[], trace.Tracer],
        propagator: TextMapPropagator,
        options: ObserverOptions,
        attributes: StartAttributes,
    ) -> None:
        self.tracer = tracer
        self._propagator = propagator
        self._makes_spans = options.makes_spans
        self._sampler = options.sampler
        self._template = options.template
        self._find_force_token = options.find_force_token
        self._attributes = attributes
        found = tracer()
        #: Our own tracer where the request path may start spans by itself: under our own sampler, without links that
        #: force a trace; else None. An observer is built again when one of them changes.
        is_own = options.makes_spans and options.sampler is not None and options.find_force_token is None
        self.own_tracer: Tracer | None = None
        if is_own and type(found) is Tracer and found.shared.sampler is options.sampler:
            self.own_tracer = found
        self._trust = config.propagation.trust_inbound
        #: META keys of the propagation formats: without any of them there is nothing to extract.
        self._inbound_keys = inbound_keys(propagator)
        # `traceparent` is parsed here when it comes alone, which costs less. A caller's decision that does not count
        # leaves the request to rules and ratio, as any other.
        is_usual = propagator.fields == {"traceparent", "tracestate", "baggage"} and self._trust is True
        self._traceparent = "HTTP_TRACEPARENT" if is_usual and config.sampling.parent else ""
        self._inbound_keys_but_traceparent = (self._inbound_keys | {"HTTP_TRACESTATE"}) - {self._traceparent}

    def start(self, context: Context, record: RequestRecord, request: RequestLike, meta: Mapping[str, str]) -> Context:
        """Start the request's span, except in the usual case of `start_root`; return what is to be current with it."""
        if not self._makes_spans:
            self.join(record, trace.get_current_span(context))
        elif self._has_traceparent_alone(context, meta):
            self.start_below_caller(record, request, meta)
        else:
            context = self.start_child(context, record, request, meta)
        if not context:
            return record
        return Context({**context, SPAN_KEY: record.current_span(), REQUEST_KEY: record})

    def start_nothing(self, context: Context, record: RequestRecord) -> Context:
        """Return what is to be current for a request that is counted and has no spans."""
        record.span_or_none = record.low_bits = None
        record.discard_span()
        return Context({**untraced(context), REQUEST_KEY: record})

    def join(self, record: RequestRecord, span: trace.Span) -> None:
        """Take `span`, another tool's, for the request's: it is described, and the other tool ends it."""
        record.span_or_none = span
        record.make_rare().is_joined = True

    def start_root(
        self,
        record: RequestRecord,
        request: RequestLike,
        meta: Mapping[str, str],
        policy: EffectivePolicy,
        outcome: RuleOutcome,
    ) -> None:
        """Start the span of a trace that begins here, where nothing is current and a part of them is recorded."""
        tracer = self.own_tracer
        assert tracer is not None
        # The decision needs half of a trace id; the other ids, and attributes, only what is recorded.
        low_bits = tracer.shared.ids.bits(64)
        if policy.is_steady:
            # As decide() does in the usual case, without its further questions.
            decision = outcome.recorded if low_bits < outcome.bound else outcome.dropped
        else:
            decision = policy.decide(low_bits, None, outcome)
        record.decisions = decision.opened or decision.series()
        if decision.is_recording:
            attributes = self._build_attributes(decision, record, request, meta)
            record.span_or_none = tracer.record_root(
                record.request_class.name, _NOTHING, _SERVER, low_bits, decision.is_sampled, attributes,
                are_ready=len(request.path) <= self._attributes.longest_path, threshold=decision.threshold,
            )  # fmt: skip
        else:
            record.span_or_none, record.low_bits = None, low_bits

    def _build_attributes(
        self, decision: Decision, record: RequestRecord, request: RequestLike, meta: Mapping[str, str]
    ) -> Attributes:
        """Return the attributes of a recorded span at its start, those of its decision included."""
        attributes = self._attributes.build(record.request_class, request, meta)
        if decision.attributes:
            attributes.update(decision.attributes)
        return attributes

    def _has_traceparent_alone(self, context: Context, meta: Mapping[str, str]) -> bool:
        """Return whether nothing but a trusted `traceparent` is above the request, and the span is ours to make."""
        return (
            self._traceparent in meta
            and not context
            and self.own_tracer is not None
            and not self.own_tracer.shared.is_sdk_path
            # A processor is given what came in.
            and not self.own_tracer.shared.starters
            and meta.keys().isdisjoint(self._inbound_keys_but_traceparent)
        )

    def start_below_caller(self, record: RequestRecord, request: RequestLike, meta: Mapping[str, str]) -> None:
        """Start the span below a `traceparent` that is trusted and came without anything else; nothing is current."""
        found = parse_traceparent(meta[self._traceparent])
        tracer, sampler = self.own_tracer, self._sampler
        assert tracer is not None and sampler is not None
        if found is None:
            self.start_child(_NOTHING, record, request, meta)
            return
        parent = build_remote_context(*found)
        decision = sampler.policy.decide(parent.trace_id, parent)
        record.decisions = decision.opened or decision.series()
        if decision.is_recording:
            attributes = self._build_attributes(decision, record, request, meta)
            record.span_or_none = tracer.record_entry(
                record.request_class.name, _NOTHING, _SERVER, parent, decision.is_sampled, attributes,
                are_ready=len(request.path) <= self._attributes.longest_path, threshold=decision.threshold,
            )  # fmt: skip
        else:
            record.span_or_none = dropped = DroppedSpan()
            dropped.shared, dropped.low_bits, dropped.below = tracer.shared, None, parent

    def start_child(
        self, context: Context, record: RequestRecord, request: RequestLike, meta: Mapping[str, str]
    ) -> Context:
        """Start the span below the present parent: a caller, or a span of another tool or a middleware.

        Returns the context above it.
        """
        outer = trace.get_current_span(context)
        outer_context = outer.get_span_context()
        if (
            outer_context.is_valid
            and not outer_context.is_remote
            and (getattr(outer, "kind", None) is SpanKind.SERVER or not outer.is_recording())
        ):
            # Another tool made the server span already, recorded or not.
            self.join(record, outer)
            return context
        context, links, has_parent = self.extract(context, meta)
        policy = self._sampler.policy if self._sampler is not None else None
        token = self._find_force_token(meta) if self._find_force_token is not None and policy is not None else None
        span: trace.Span
        if token is not None and policy is not None:
            rare = record.make_rare()
            rare.force_token, rare.no_store = token, True
            span = self._open(record, request, with_outcome(policy.forced, context), links)
        elif policy is None or (has_parent and policy.follows_parent) or not policy.has_rules:
            span = self._open(record, request, context, links)
        else:
            outcome = policy.outcome(record.method, request.path_info)
            if outcome is None:
                # It depends on the route, which Django has yet to find.
                span = self._defer(record, request, context, links, policy)
            else:
                span = self._open(record, request, with_outcome(outcome, context), links)
        record.span_or_none = span
        return context

    def extract(self, context: Context, meta: Mapping[str, str]) -> tuple[Context, Sequence[Link], bool]:
        """Return what a caller has sent: the context with it, or a link to one not trusted; whether it is a parent."""
        if meta.keys().isdisjoint(self._inbound_keys):
            return context, (), False
        inbound = self._propagator.extract(meta, context, META_GETTER)
        remote = trace.get_current_span(inbound).get_span_context()
        is_caller = remote.is_valid and remote.is_remote
        if self._is_trusted(meta.get("REMOTE_ADDR")):
            return inbound, (), is_caller
        return context, (Link(remote),) if is_caller else (), False

    def _open(
        self,
        record: RequestRecord,
        request: RequestLike,
        context: Context,
        links: Sequence[Link],
        start_time_unix_nano: int | None = None,
    ) -> trace.Span:
        """Start the server span in `context`, which may hold what the sampler is to know besides."""
        return self.tracer().start_span(
            record.request_class.name,
            context,
            SpanKind.SERVER,
            self._attributes.build(record.request_class, request, request.META),
            links,
            start_time_unix_nano,
        )

    def _defer(
        self,
        record: RequestRecord,
        request: RequestLike,
        context: Context,
        links: Sequence[Link],
        policy: EffectivePolicy,
    ) -> DeferredSpan:
        begun_unix_nano = time_ns()

        def decide() -> trace.Span:
            if record.is_span_discarded:
                return trace.INVALID_SPAN
            match = getattr(request, "resolver_match", None)
            route = self._template(match.route) if match is not None else None
            outcome = policy.outcome_of_route(record.method, request.path_info, route)
            if outcome is policy.default_outcome and match is not None:
                ratio = getattr(match.func, "_django_otel_sample_ratio", None)
                if ratio is not None:
                    outcome = policy.outcome_of_view(ratio)
            return self._open(record, request, with_outcome(outcome, context), links, begun_unix_nano)

        return DeferredSpan(decide)

    def _is_trusted(self, address: str | None) -> bool:
        if self._trust is True:
            return True
        if not self._trust or not address:
            return False
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None) or parsed
        return any(mapped in network for network in self._trust)


def inbound_keys(propagator: TextMapPropagator) -> frozenset[str]:
    """The META keys of the propagation formats; without `tracestate`, which is of no use alone.

    Source: W3C Trace Context, "Tracestate Header".
    """
    return frozenset("HTTP_" + name.upper().replace("-", "_") for name in set(propagator.fields) - {"tracestate"})
