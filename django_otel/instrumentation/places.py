"""Places of the project that run a statement: how each is recognised on the stack, and the advice for it.

One line may do several things: `getattr(book, name)` in a helper, or a serializer that the line runs, loads now one
relation, now another, and of objects of other classes. So cures are kept by view, each for the relation and the class
that were seen there: a view does not get the cure of a relation that only another view loads.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from types import CodeType, FrameType, FunctionType
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Span

from django_otel.instrumentation.advice import PREFETCH, Advice, find_advice, fit_to_single, read_subject, render
from django_otel.instrumentation.callers import Caller, is_caller, walk
from django_otel.requests.record import RequestRecord
from django_otel.tracing.attributes import EventPattern
from django_otel.tracing.spans import RecordedSpan

if TYPE_CHECKING:
    from django_otel.instrumentation.n_plus_one import KnownStatement

EVENT = "django.n_plus_one"
COUNT = "django.n_plus_one.count"
ADVICE = "django.n_plus_one.advice"
MODEL = "django.n_plus_one.model"
SQL = "db.query.text"

#: Bounds of one place: relations of a view, and views.
_MAX_SUBJECTS = 20
_MAX_VIEWS = 100
#: So often a view has shown nothing new at a place before that is taken for granted; and how often in a row it then is.
TRUSTED = 100
_REST = 9

#: In place of a view's function; no request has it.
_NO_VIEW = object()

_getframe = sys._getframe  # noqa: SLF001 (the documented way is much slower)


def find_view(record: RequestRecord) -> str:
    """Return the key of the request's view, its route; "" before it is known."""
    request = record.request
    match = request.resolver_match if request is not None else None
    return match.route or "" if match is not None else ""


class Place:
    """A line of the project, and a statement that it runs."""

    __slots__ = ("_advice", "_plain", "attributes", "patterns", "plural", "statement")

    def __init__(self, statement: KnownStatement, attributes: dict[str, Any]) -> None:
        self.statement = statement
        #: `code.*` attributes.
        self.attributes = attributes
        #: Cures by view, and the events with them or without any.
        self._advice: dict[str, frozenset[Advice]] = {}
        self.patterns: dict[str, EventPattern] = {}
        self._plain = EventPattern(EVENT, self._build_event(()), COUNT)
        #: Tables whose objects are to be read for together.
        self.plural: frozenset[str] = frozenset()

    @property
    def has_advice(self) -> bool:
        """Return whether there is a cure."""
        return bool(self._advice)

    def advise(self, advice: Advice, view: str) -> None:
        """Add a cure for the queries of this line in a view."""
        found = self._advice[view] = self._advice.get(view, frozenset()) | {advice}
        if advice.method == PREFETCH or advice.has_peers:
            self.plural |= {advice.table}
        self.patterns[view] = EventPattern(EVENT, self._build_event(found), COUNT)

    def advise_nothing(self, view: str) -> None:
        """Note that no cure was found for a view."""
        self.patterns.setdefault(view, self._plain)

    def find_pattern(self, view: str) -> EventPattern:
        """Return the event of a request of that view."""
        # A middleware may have run it before the view was known.
        return self.patterns.get(view) or self.patterns.get("") or self._plain

    def tell(self, count: int, span: Span, view: str, read_singly: Collection[str] | None = None) -> None:
        """Say on the request's span how often this line ran the statement.

        Objects of the tables `read_singly` are read one by one.
        """
        if type(span) is RecordedSpan and not read_singly:
            span.add_pattern_event(self.find_pattern(view), count)
        elif span.is_recording():
            advice: Collection[Advice] = self._advice.get(view) or self._advice.get("") or ()
            if read_singly:
                advice = fit_to_single(advice, read_singly)
            span.add_event(EVENT, {**self._build_event(advice), COUNT: count})

    def _build_event(self, advice: Collection[Advice]) -> dict[str, Any]:
        event = {COUNT: 0, **self.attributes}
        if self.statement.watch.tells_text:
            event[SQL] = self.statement.text
        if advice:
            event[ADVICE] = render(advice)
            models = {each.model for each in advice}
            if len(models) == 1:
                event[MODEL] = models.pop()
        return event


class Look:
    """Relations that one view has loaded at a site."""

    __slots__ = ("confirmed", "depth", "rest", "subjects")

    def __init__(self) -> None:
        #: How far out the frame is that a cure was found by; None without a cure.
        self.depth: int | None = None
        #: Relations that were seen, with the class of their objects; see `read_subject`.
        self.subjects: tuple[object, ...] = ()
        #: How often in a row they were known ones.
        self.confirmed = 0
        #: How often this is now taken for granted.
        self.rest = 0


class Site:
    """How to recognise a place on the stack."""

    __slots__ = ("code", "depth", "detail", "function", "is_certain", "lasti", "look", "looks", "place", "view")

    def __init__(self, found: Caller, seen: FrameType, view: str, place: Place) -> None:
        self.depth = found.depth
        self.code: CodeType = seen.f_code
        self.lasti = seen.f_lasti
        #: See `callers.Caller`.
        self.detail = found.detail
        #: The only view that comes here by this frame, where further out another one may have a line of its own.
        self.view = None if found.is_line else view
        #: Whether code and position are enough to recognise it.
        self.is_certain = found.is_line and found.detail is None
        self.place = place
        #: By view.
        self.looks: dict[str, Look] = {}
        #: The last view, by its function, and what it has loaded: to find it by its route takes longer.
        self.function: object = _NO_VIEW
        self.look: Look | None = None

    def fits(self, frame: FrameType, view: str) -> bool:
        """Return whether a frame with this code and position is at this place in that view."""
        return (self.view is None or self.view == view) and (self.detail is None or is_caller(frame, self.detail))

    def look_again(self, start: FrameType, record: RequestRecord) -> None:
        """Look for a cure outside of `start`, the caller's caller, where one is wanted for the request's view."""
        view = find_view(record)
        if self.wants_advice(3, view):
            self.advise(start, view)
        # A response that is rendered is none, and is not kept.
        if type(record.view) is FunctionType and view in self.looks:
            self.function, self.look = record.view, self.looks[view]

    def wants_advice(self, distance: int, view: str) -> bool:
        """Return whether a cure is to be looked for: once a view, and again for another relation that is loaded here.

        The query's frame is `distance` frames outside of this one.
        """
        look = self.looks.get(view)
        if look is None:
            return len(self.looks) < _MAX_VIEWS
        if look.rest:
            look.rest -= 1
            return False
        if look.depth is None:
            look.rest = _REST
            return False
        try:
            # In one step: each frame on the way would become an object.
            frame = _getframe(distance + look.depth)
        except ValueError:
            return False
        subject = read_subject(frame)
        if subject not in look.subjects:
            look.confirmed = 0
            if len(look.subjects) >= _MAX_SUBJECTS:
                return False
            # Also where there is no cure for it.
            look.subjects += (subject,)
            return True
        look.confirmed += 1
        if look.confirmed >= TRUSTED:
            look.rest = _REST
        return False

    def advise(self, start: FrameType, view: str) -> None:
        """Look for a cure; this site is on the stack outside of `start`."""
        look = self.looks.setdefault(view, Look())
        inner: list[FrameType] = []
        frame: FrameType | None = start
        if self.detail is not None and self.detail[0] == "awaiting":
            # Its coroutine is not on this stack.
            found = walk(start)
            inner, frame = (found.inner, found.frame) if found is not None else ([], None)
        else:
            while frame is not None and len(inner) < self.depth:
                inner.append(frame)
                frame = frame.f_back
        finding = find_advice(inner, frame) if frame is not None else None
        if finding is None:
            self.place.advise_nothing(view)
            return
        look.depth = finding.depth
        if finding.subject not in look.subjects:
            look.subjects += (finding.subject,)
        self.place.advise(finding.advice, view)
