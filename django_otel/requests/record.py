"""Record of the current request, and the context in which it and its span are found."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from contextvars import Token
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from opentelemetry import trace
from opentelemetry.context import Context, create_key

from django_otel.base.sdk_compat import SPAN_KEY, attach, get_current
from django_otel.base.sdk_compat import detach_or_raise as detach
from django_otel.requests.deferred import DeferredSpan
from django_otel.tracing.spans import DroppedSpan, RecordedSpan

if TYPE_CHECKING:
    from django_otel.metrics.series import Series
    from django_otel.requests.layers import Layers
    from django_otel.requests.observer import Observer
    from django_otel.requests.protocols import RequestLike
    from django_otel.requests.series import RequestClass

#: Key of a context's request, beside the span: a context variable of its own would cost more.
REQUEST_KEY = create_key("django_otel-request")
#: For `RequestRecord.keep`: attributes of the request's span that name the GraphQL operation.
OPERATION = "operation"
_NO_IDS = (0, 0)


if TYPE_CHECKING:

    class Repeats(Protocol):
        """Equal queries of one request; the database layer's."""

        def finish(self, span: trace.Span | None, route: str, view: str) -> None:
            """Report them; `view` is Django's route of the request. Never raises an `Exception`."""


class RareState:
    """State that most requests do not need."""

    __slots__ = (
        "exception", "force_token", "is_discarded", "is_joined", "is_span_discarded", "metric_attributes", "no_store",
    )  # fmt: skip

    def __init__(self) -> None:
        self.exception: BaseException | None = None
        self.force_token = ""
        #: The project's attributes of this request's metrics.
        self.metric_attributes: dict[str, str] = {}
        self.is_discarded = self.is_joined = self.is_span_discarded = self.no_store = False


_USUAL = RareState()


class RequestRecord(Context):
    """One request under way, filled in by `Observer.begin`. `queries` is counted up by the database layer.

    It is also what is current while the request is served, if nothing else was before: a context of the API, in which
    the record itself and the span are found. To put both into a dict, and to make a span that nothing records, would
    cost more, and few ask for them.
    """

    # Without `__init__` and defaults in the class: docs/decisions/hot-path.md.
    __slots__ = (
        "content_length", "context_token", "decisions", "layers", "low_bits", "observer",
        "queries", "rare", "repeats", "request", "request_class", "span_or_none", "spans", "started_s", "view",
        "view_from_s", "view_s",
    )  # fmt: skip
    observer: Observer
    #: None when the request has ended.
    request: RequestLike | None
    request_class: RequestClass
    #: The span, however it was made; None as long as no code has asked for one that is not recorded.
    span_or_none: trace.Span | None
    #: Of that one's trace id, if it was decided by them.
    low_bits: int | None
    started_s: float
    queries: int
    #: Spans recorded in this request, for LIMITS.SPANS_PER_TRACE.
    spans: int
    #: The header as it came, or None.
    content_length: str | None
    #: The counter's series of how it was decided, where that is counted with all else at the end of the request.
    decisions: Series | None
    #: Equal queries by place, once there was a query that is counted so.
    repeats: Repeats | None
    #: Times of the layers inside the view and the middlewares; None before the first of them.
    layers: Layers | None
    #: The part that answers now, if that is timed: the view, or the response that is rendered or streamed.
    view: object | None
    #: When that began, and the view's own time before, in seconds; see `layers.enter_view`.
    view_from_s: float
    view_s: float
    #: Puts back what was current before; None where nothing is to be put back.
    context_token: Token[Context] | None
    #: None as long as there is nothing rare.
    rare: RareState | None

    @property
    def span(self) -> trace.Span:
        """The request's span; `INVALID_SPAN` after `discard_span`."""
        if self.rare is not None and self.rare.is_span_discarded:
            return trace.INVALID_SPAN
        return self.current_span()

    def current_span(self) -> trace.Span:
        """The span as it is found in the context."""
        found = self.span_or_none
        if found is None:
            assert self.observer.shared is not None
            dropped = DroppedSpan()
            dropped.shared, dropped.low_bits, dropped.below = self.observer.shared, self.low_bits, None
            # Of two threads that ask at once both see the same.
            found = self.span_or_none = self.keep("span", dropped)
        return found

    @property
    def is_finished(self) -> bool:
        """Return whether the request has ended."""
        return self.request is None

    def keep(self, key: str, value: Any) -> Any:
        """Store a value made at its first use in the context's dict; of two threads the first one's is kept.

        Kept are "span", the span that is not recorded, "layers", and `OPERATION`. The context itself does not show it.
        """
        return dict.setdefault(self, key, value)

    def find_kept(self, key: str) -> Any:
        """Return the value that `keep` has kept, or None."""
        return dict.get(self, key)

    @property
    def body_bytes(self) -> float | None:
        """Return the length of the body from the request's header, in bytes; None without a valid one."""
        length = str(self.content_length or "")
        return float(length) if length.isascii() and length.isdigit() and len(length) < 16 else None

    def make_rare(self) -> RareState:
        """Return the changes to make."""
        if self.rare is None:
            self.rare = RareState()
        return self.rare

    @property
    def method(self) -> str:
        return self.request_class.method

    @property
    def is_joined(self) -> bool:
        """Return whether the span belongs to another tool, which ends it."""
        return (self.rare or _USUAL).is_joined

    @property
    def is_discarded(self) -> bool:
        return (self.rare or _USUAL).is_discarded

    @property
    def is_span_discarded(self) -> bool:
        return (self.rare or _USUAL).is_span_discarded

    @property
    def force_token(self) -> str:
        """Return the cookie that also records the browser's further requests."""
        return (self.rare or _USUAL).force_token

    @property
    def no_store(self) -> bool:
        """Return whether the page shows trace ids, or sets a cookie for them, and so must not be cached."""
        return (self.rare or _USUAL).no_store

    @no_store.setter
    def no_store(self, value: bool) -> None:
        self.make_rare().no_store = value

    @property
    def exception(self) -> BaseException | None:
        """The exception that Django has turned into a response."""
        return (self.rare or _USUAL).exception

    @exception.setter
    def exception(self, value: BaseException | None) -> None:
        self.make_rare().exception = value

    def discard(self) -> None:
        """Neither spans nor metrics for this request; also not the spans that have ended in it."""
        self.make_rare().is_discarded = True
        self.discard_span()

    def discard_span(self) -> None:
        """No spans for this request, neither its own nor those inside it; its metrics still count."""
        if self.is_joined:
            return
        self.make_rare().is_span_discarded = True
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
        """Restore the previous context; only where `attach` was called."""
        token = self.context_token
        if token is not None:
            self.context_token = None
            try:
                detach(token)
            except ValueError:
                # Ended in another context than it began in (an abandoned coroutine): nothing of ours is current there.
                pass

    # --- The context. ---

    def _refuse(self, *arguments: object, **keywords: object) -> NoReturn:
        raise ValueError("A context cannot be changed. Make another of it with opentelemetry.context.set_value().")

    # Not left to the API, whose older versions refuse the first alone.
    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def get(self, key: str, default: object = None) -> object:
        if key == SPAN_KEY:
            return self.current_span()
        return self if key == REQUEST_KEY else default

    def __getitem__(self, key: str) -> object:
        found = self.get(key)
        if found is None:
            raise KeyError(key)
        return found

    def copy(self) -> dict[str, object]:
        return {SPAN_KEY: self.current_span(), REQUEST_KEY: self}

    def __contains__(self, key: object) -> bool:
        return key in (SPAN_KEY, REQUEST_KEY)

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[str]:
        return iter((SPAN_KEY, REQUEST_KEY))

    def __reversed__(self) -> Iterator[str]:
        return iter((REQUEST_KEY, SPAN_KEY))

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        return self.copy().keys()

    def values(self) -> ValuesView[object]:  # type: ignore[override]
        return self.copy().values()

    def items(self) -> ItemsView[str, object]:  # type: ignore[override]
        return self.copy().items()

    def __or__(self, other: Mapping[str, object]) -> dict[str, object]:  # type: ignore[override]
        return {**self.copy(), **other}

    def __ror__(self, other: Mapping[str, object]) -> dict[str, object]:  # type: ignore[override]
        return {**other, **self.copy()}

    def __eq__(self, other: object) -> bool:
        return self is other or (not isinstance(other, RequestRecord) and self.copy() == other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        # Not the request's path, which may hold a secret.
        return f"<{type(self).__name__} of a {self.method} request>"


def current() -> RequestRecord | None:
    """The request that is being served in this context, or None."""
    context = get_current()
    if type(context) is RequestRecord:
        return context
    found: RequestRecord | None = context.get(REQUEST_KEY)  # type: ignore[assignment]
    return found


def sampled_ids() -> tuple[int, int]:
    """Return the ids of the current trace and span if the trace is recorded, for an exemplar; else zeros.

    Makes no span for a request that is not recorded, and decides on none before its route is known.
    """
    context = get_current()
    span: Any = context.span_or_none if type(context) is RequestRecord else context.get(SPAN_KEY)
    if span is None or type(span) is DroppedSpan:
        return _NO_IDS
    request = current()
    if type(span) is DeferredSpan:
        is_decidable = request is not None and getattr(request.request, "resolver_match", None) is not None
        span = span.decided() if is_decidable else span.started()
    if (request is not None and request.is_span_discarded) or (type(span) is RecordedSpan and span.is_discarded):
        return _NO_IDS
    # No span: what another package has put there in its place.
    ids = span.get_span_context() if isinstance(span, trace.Span) else trace.INVALID_SPAN_CONTEXT
    return (ids.trace_id, ids.span_id) if ids.trace_flags & 1 and ids.is_valid else _NO_IDS


def find(request: object) -> RequestRecord | None:
    """Return the observation of `request`, plain or wrapped by Django REST framework, while it is being served here.

    Nothing is kept on the request: Django's are freed by the garbage collector
    alone, which would have to look at all that hangs on them.
    """
    found = current()
    if found is None or found.request is None:
        return None
    return found if found.request is request or found.request is getattr(request, "_request", None) else None
