"""Equal queries of one request from one place (N+1): detected, counted, and reported on the request's span.

Equal are statements with the same text without literals, on any database. A
place is a line of the project: file, line and function, or a template's name and
line, see `callers`; all that runs through a helper function is from the line in it.
Every query of a request counts, recorded or not, in whichever thread or task the
request's context is; transaction control does not. Outside of a request nothing
is counted: a command or a task may well run one statement a thousand times.

Walking the stack costs more than all else that is done for a query. So each place
of a statement is walked to once in a process, and known from then on by how far out
on the stack its frame is, that frame's code and the position in it: one look. Not
noticed is code that has never run the statement before, when it runs between exactly
that position and the query, and both are equally far apart. A statement that has come
from one line alone a hundred times is looked at by every `limit`th query of a request
only; when it then comes from another line for the first time, the queries since the
last look count as that line's, and afterwards each is looked at again. So is one that
several SQL texts are, or that runs on several databases: their counts are added up.
For which relation a cure is, and of what class its objects are, is asked a hundred
times for each view, and then each tenth time: to read a frame's variables takes 5 000
instructions. Until a statement is trusted several queries of a request are asked, since
a serializer alternates between its fields.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

from opentelemetry.trace import Span

from django_otel import runtime
from django_otel.base import guard
from django_otel.config.schema import Config
from django_otel.instrumentation.callers import find_outer, walk
from django_otel.instrumentation.places import TRUSTED, Place, Site, find_view
from django_otel.metrics.instruments import Counter
from django_otel.metrics.series import Series
from django_otel.redaction.statements import Statement
from django_otel.requests.record import RequestRecord
from django_otel.tracing.attributes import SharedAttributes
from django_otel.tracing.span_form import Extension
from django_otel.tracing.spans import RecordedSpan

#: So many equal queries make the console name the line of the last of them.
_NAMED = 3
#: Of a process: statements whose places are known, and places of each.
_MAX_STATEMENTS = 2000
_MAX_SITES = 100
#: Of a request: places that are counted, and events on its span. The counter counts all.
_MAX_PLACES = 1000
_MAX_EVENTS = 20
#: In vain the stack is walked so often per statement and request: Django's own code may run it again and again.
_MAX_FAILED_WALKS = 3
#: Of a process: from so many on a statement is walked for when it comes a second time in a request.
_MAX_FAILURES = 20
_MAX_LABELS = 1000
#: A statement that did not come from one line alone is looked at so much longer each time.
_DISTRUSTED = 10_000
#: Of a request: so many queries in a row are asked for their relation.
_LOOKS = 4
#: How a statement ends that reads one row.
_ONE = " LIMIT ?"
#: In place of a request's `Repeats`, for a query that is counted by place.
_BY_PLACE: Any = object()
_CONTROL = frozenset({"SAVEPOINT", "RELEASE", "ROLLBACK", "BEGIN", "COMMIT", "START", "END", "SET", ""})

_getframe = sys._getframe  # noqa: SLF001 (the documented way is much slower)


class KnownStatement:
    """A statement's text, and where it has been run from in this process."""

    __slots__ = (
        "depths", "failures", "first_look", "is_trusted", "known_series", "last", "limit", "one_of", "origin", "places",
        "sightings", "sites", "text", "usual_look", "watch",
    )  # fmt: skip

    def __init__(self, watch: Watch, statement: Statement, origin: object) -> None:
        self.watch = watch
        self.limit = watch.limit
        #: The watch's.
        self.known_series = watch.known_series
        self.text = statement.text
        self.one_of = find_one_of(statement)
        #: SQL text and database that run it; None once there are several.
        self.origin: object = origin
        #: Whether its queries are counted without a look; see `Watched`.
        self.is_trusted = False
        #: How often it has come from the one known line; negative once there was another.
        self.sightings = 0
        #: The count at which a query of a recorded request is looked at.
        self.first_look = watch.limit if runtime.console() is None else min(watch.limit, _NAMED)
        #: The first look of most requests, at which nothing is named.
        self.usual_look = watch.limit if watch.limit > _NAMED else 0
        #: The site of the last query.
        self.last: Site | None = None
        #: By depth, identity of the code (which the sites hold) and position in it.
        self.sites: dict[tuple[int, int, int], list[Site]] = {}
        #: Those of the sites, innermost first.
        self.depths: tuple[int, ...] = ()
        #: By file, line and function.
        self.places: dict[tuple[Any, ...], Place] = {}
        #: How often the stack had no line of the project: Django's own code runs it.
        self.failures = 0

    def add_origin(self, origin: object) -> None:
        """Note who runs the statement: an SQL text, on a database."""
        if origin != self.origin:
            self.origin, self.is_trusted = None, False

    def trust(self, site: Site, record: RequestRecord) -> bool:
        """Note that a query came from `site`; return whether the statement is trusted from now on."""
        self.sightings += 1
        if self.sightings < TRUSTED or self.origin is None or len(self.places) != 1:
            return False
        # Asynchronous requests share their connection.
        is_shared = hasattr(record.request, "scope") or (site.detail is not None and site.detail[0] == "awaiting")
        self.is_trusted = not is_shared
        return self.is_trusted

    def distrust(self) -> None:
        """Look at each query again, for a long time."""
        self.sightings, self.is_trusted = -_DISTRUSTED, False

    def learn(self, start: FrameType, view: str) -> Site | None:
        """Walk the stack outside of `start`, in a view; None where nothing of the project is found."""
        found = walk(start)
        if found is None:
            self.failures += 1
            return None
        if sum(map(len, self.sites.values())) >= _MAX_SITES:
            self.sites, self.places = {}, {}
        key = tuple(found.attributes.values())
        place = self.places.get(key)
        if place is None:
            place = self.places.setdefault(key, Place(self, found.attributes))
            self.is_trusted = False
        # Of a coroutine the thread's frame is recognised, and then what waits for it.
        seen = found.frame
        if found.detail is not None and found.detail[0] == "awaiting":
            seen = find_outer(start, found.depth)
        site = Site(found, seen, view, place)
        self.sites.setdefault((site.depth, id(site.code), site.lasti), []).append(site)
        self.depths = tuple(sorted({depth for depth, _, _ in self.sites}))
        return site

    def recognise(self, start: FrameType, view: str) -> Site | None:
        """Look for a known site outside of `start`, in a view, innermost first."""
        frame: FrameType | None = start
        depth = 0
        for wanted in self.depths:
            while frame is not None and depth < wanted:
                frame, depth = frame.f_back, depth + 1
            if frame is None:
                return None
            for site in self.sites.get((depth, id(frame.f_code), frame.f_lasti), ()):
                if site.fits(frame, view):
                    return site
        return None


class Watched:
    """One SQL text on one connection, whose queries are counted.

    A statement that has come from the same line a hundred times is trusted to come from there: its queries are
    counted here, and looked at by the `look_at`th of a request alone. The only one that was looked at stands for
    the request's `Repeats`.
    """

    __slots__ = ("_line", "attributes", "known", "left", "look_at", "owner", "repeats")

    def __init__(self, known: KnownStatement | None, attributes: Mapping[str, Any]) -> None:
        #: With which its spans begin.
        self.attributes = SharedAttributes(attributes)
        #: A place that one of its spans was to name, and what that adds.
        self._line: tuple[Place, Extension] | None = None
        #: The line that ran it; None for one that is not counted by place.
        self.known = known
        #: The request whose queries are counted here, by its `started_s`, which is an object of its own.
        self.owner: float | None = None
        #: The count that is looked at, and how many queries are left until then: to count down takes a step less.
        self.look_at = 0
        self.left = 0
        #: The same request's, from the first look on.
        self.repeats: Repeats | Watched | None = None

    def name(self, place: Place, span: Span) -> None:
        """Give the line of `place` to the span of this query."""
        line = self._line
        if line is None or line[0] is not place:
            line = self._line = place, Extension(self.attributes, place.attributes, runtime.tracer())
        line[1].add_to(span)

    def finish(self, span: Span | None, route: str, view: str) -> None:
        """As `Repeats.finish`, for a request whose only repeated query this is."""
        self.owner = self.repeats = None
        try:
            known: KnownStatement = self.known  # type: ignore[assignment]
            count = self.look_at - self.left
            if count < known.limit:
                return
            place = known.last.place  # type: ignore[union-attr]
            try:
                series = known.known_series[route]
                pattern = place.patterns[view]
            except KeyError:
                series, pattern = known.watch.find_series(route), place.find_pattern(view)
            series.add(1.0)
            if type(span) is RecordedSpan:
                span.add_pattern_event(pattern, count)
            elif span is not None:
                place.tell(count, span, view)
        except Exception as fault:
            guard.report("reporting equal queries", fault)


class Repeats:
    """The queries of one request, by place."""

    __slots__ = ("counts", "failed", "found", "queries", "watch")

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.counts: dict[Place, int] = {}
        #: Places with as many queries as are reported.
        self.found: list[Place] = []
        #: Those that count for themselves.
        self.queries: list[Watched] = []
        #: Walks in vain, by statement.
        self.failed: dict[KnownStatement, int] | None = None

    def finish(self, span: Span | None, route: str, view: str) -> None:
        """Report repeated statements when the request ends. Never raises an `Exception`.

        `route` is the counter's label, `view` as of `find_view`.
        """
        try:
            for query in self.queries:
                self.take(query)
            if self.found:
                self.watch.report(self.counts, self.found, span, route, view)
        except Exception as fault:
            guard.report("reporting equal queries", fault)

    def add(self, query: Watched) -> None:
        """Have a trusted query's count taken when the request ends."""
        query.repeats = self
        self.queries.append(query)

    def take(self, query: Watched) -> None:
        """Add what a trusted query has counted, which then begins again."""
        known = query.known
        if query.repeats is not self or known is None or known.last is None:
            return
        query.owner = query.repeats = None
        place = known.last.place
        count = self.counts[place] = self.counts.get(place, 0) + query.look_at - query.left
        if count >= self.watch.limit and place not in self.found:
            self.found.append(place)

    def make_room(self) -> None:
        """Forget places that have run their statement once, if there are very many."""
        if len(self.counts) >= _MAX_PLACES:
            self.counts = {place: count for place, count in list(self.counts.items()) if count > 1}


def build_watch(config: Config) -> Watch | None:
    """Build the watch that the settings ask for; None if DATABASE.N_PLUS_ONE is off."""
    limit = config.database.n_plus_one
    if limit is None:
        return None
    counter = runtime.store.catalogued("django.request.n_plus_one")
    assert isinstance(counter, Counter)
    return Watch(limit, counter, tells_text=config.database.statement != "off")


def look(record: RequestRecord, query: Watched, span: Span | None) -> None:
    """Look at the place of a trusted query, of which none is left. Called by `QueryWrapper`; raises no `Exception`."""
    try:
        known: KnownStatement = query.known  # type: ignore[assignment]
        site: Site = known.last  # type: ignore[assignment]
        if record.repeats is None:
            record.repeats = query.repeats = query
        elif query.repeats is None:
            known.watch.open(record).add(query)
        count = query.look_at
        if count == known.usual_look:
            query.left = count
            query.look_at = count + count
        else:
            query.look_at = known.watch.name(query, site.place, count, span)
            query.left = query.look_at - count
            if count % known.limit:
                return
        try:
            frame = _getframe(site.depth + 1)
        except ValueError:
            # The stack is not that deep.
            known.watch.move(record, query, _getframe(1))
            return
        if (
            frame.f_code is not site.code
            or frame.f_lasti != site.lasti
            or not known.is_trusted
            or not (site.is_certain or site.fits(frame, find_view(record)))
        ):
            known.watch.move(record, query, _getframe(1))
        elif record.view is site.function and (seen := site.look).rest:  # type: ignore[union-attr]
            seen.rest -= 1  # type: ignore[union-attr]
        else:
            site.look_again(_getframe(1), record)
    except Exception as fault:
        guard.report("counting equal queries", fault)


def note_query(watch: Watch | None, record: RequestRecord, query: Watched, span: Span | None) -> None:
    """Count a query of a request that has just run. Called by `QueryWrapper`. Never raises an `Exception`."""
    try:
        if watch is not None:
            watch.note(record, query, span)
    except Exception as fault:
        guard.report("counting equal queries", fault)


class Watch:
    """Counts the queries of requests under the effective settings; made again when they change."""

    def __init__(self, limit: int, counter: Counter, *, tells_text: bool) -> None:
        self.limit = limit
        #: The count from which on there is something to do.
        self._first = min(limit, _NAMED)
        self._counter = counter
        self.tells_text = tells_text
        #: By route.
        self.known_series: dict[str, Series] = {}
        self._statements: dict[str, KnownStatement] = {}

    def find(self, statement: Statement, origin: object) -> KnownStatement | None:
        """Return the state of a statement, which `origin` runs; None for one that is not counted."""
        if statement.operation in _CONTROL or not statement.text:
            return None
        known = self._statements.get(statement.text)
        if known is None:
            if len(self._statements) >= _MAX_STATEMENTS:
                self._statements.pop(next(iter(self._statements)), None)
            known = self._statements.setdefault(statement.text, KnownStatement(self, statement, origin))
        known.add_origin(origin)
        return known

    def note(  # noqa: C901 (one decision after the other, each with its reason)
        self, record: RequestRecord, query: Watched, span: Span | None
    ) -> None:
        """Count a query of a request by its place. Called by `note_query`."""
        known = query.known
        assert known is not None
        repeats = record.repeats
        if type(repeats) is not Repeats:
            repeats = self.open(record)
        site = known.last
        if site is not None:
            try:
                frame = _getframe(site.depth + 2)
            except ValueError:
                site = None
            else:
                is_same = frame.f_code is site.code and frame.f_lasti == site.lasti
                if not is_same or not (site.is_certain or site.fits(frame, find_view(record))):
                    site = None
        if site is None:
            view = find_view(record)
            site = known.recognise(_getframe(2), view) or self._learn(repeats, known, _getframe(2), view)
            if site is None:
                return
            known.last = site
        if query.owner is record.started_s:
            # One that has failed: those that have not are counted by the query.
            if query.repeats is None:
                repeats.add(query)
        elif known.is_trusted or known.trust(site, record):
            # Those so far are counted by place, the following ones by the query.
            query.owner, query.look_at = record.started_s, self.limit
            query.left = query.look_at
            repeats.add(query)
        else:
            # Should another request make the statement a trusted one, this one's count goes on here.
            query.repeats = _BY_PLACE
        place = site.place
        counts = repeats.counts
        if place in counts:
            count = counts[place] = counts[place] + 1
            if count >= self._first:
                if count == _NAMED:
                    self.name(query, place, count, span)
                if count >= self.limit and (count < self.limit + _LOOKS or count % self.limit == 0 or not site.looks):
                    # As far out as from `move`.
                    self._report_later(repeats, site, _getframe(2), find_view(record))
        else:
            if len(counts) >= _MAX_PLACES:
                repeats.make_room()
            counts = repeats.counts
            # Another thread may have been the first meanwhile.
            counts.setdefault(place, 0)
            counts[place] += 1

    def open(self, record: RequestRecord) -> Repeats:
        """Return the request's `Repeats`, made if there is none."""
        while True:
            sole = record.repeats
            if type(sole) is Repeats:
                return sole
            repeats = Repeats(self)
            # Several threads may run queries of one request. No other comes between this look and the store.
            if record.repeats is sole:
                record.repeats = repeats
                if sole is not None:
                    repeats.add(sole)  # type: ignore[arg-type]

    def name(self, query: Watched, place: Place, count: int, span: Span | None) -> int:
        """Give the third equal query the line, for the console; return the next count to look at."""
        following = count - count % self.limit + self.limit
        if span is None or count > _NAMED or runtime.console() is None:
            return following
        if count == _NAMED:
            query.name(place, span)
            return following
        return min(following, _NAMED)

    def move(self, record: RequestRecord, query: Watched, start: FrameType) -> None:
        """Find the place of a trusted query that does not come from where it last did."""
        known, limit, repeats = query.known, self.limit, self.open(record)
        assert known is not None
        view = find_view(record)
        site = known.recognise(start, view) or self._learn(repeats, known, start, view)
        if site is None or len(known.places) != 1:
            query.left += limit
            repeats.take(query)
            query.owner = query.repeats = None
            known.distrust()
            if site is None:
                return
            # Those since the last look, as far as is known.
            repeats.counts[site.place] = repeats.counts.get(site.place, 0) + limit
            self._report_later(repeats, site, start, view)
        elif view not in site.looks:
            site.advise(start, view)
        known.last = site

    def _report_later(self, repeats: Repeats, site: Site, start: FrameType, view: str) -> None:
        if site.place not in repeats.found:
            repeats.found.append(site.place)
        if site.wants_advice(4, view):
            site.advise(start, view)

    def _learn(self, repeats: Repeats, known: KnownStatement, start: FrameType, view: str) -> Site | None:
        failed = repeats.failed
        if failed is None:
            failed = repeats.failed = {}
        elif len(failed) >= _MAX_PLACES:
            return None
        walked = failed.get(known, 0)
        # Django's own code runs some in every request, the session's: not before they are there a second time.
        if walked > _MAX_FAILED_WALKS or (known.failures >= _MAX_FAILURES and walked == 0):
            failed[known] = walked + 1
            return None
        site = known.learn(start, view)
        if site is None:
            failed[known] = walked + 1
        return site

    def report(self, counts: dict[Place, int], found: list[Place], span: Span | None, route: str, view: str) -> None:
        """Count the `found` places of a request of that route, and add an event for each to its span."""
        (self.known_series.get(route) or self.find_series(route)).add(float(len(found)))
        if span is None:
            return
        if len(found) > 1:
            found = sorted(found, key=lambda each: -counts[each])[:_MAX_EVENTS]
        for place in found:
            place.tell(counts[place], span, view, _find_singly(place, counts) if place.plural else None)

    def find_series(self, route: str) -> Series:
        """Return the counter's series of a route that is not among `known_series`."""
        series = self._counter.series({"http.route": route} if route else {})
        if not series.is_overflow and len(self.known_series) < _MAX_LABELS:
            self.known_series[route] = series
        return series


def find_one_of(statement: Statement) -> str | None:
    """Return the table of which it reads one row, as `get()` and `first()` do; None where it does anything else."""
    return statement.table if statement.operation == "SELECT" and statement.text.endswith(_ONE) else None


def _find_singly(place: Place, counts: dict[Place, int]) -> set[str]:
    """Return the tables whose objects were read one by one, each by a query of its own, as often as this place ran.

    Reads that have a cure themselves are none of them: with it they go away.
    """
    count = counts[place]
    tables = {other.statement.one_of for other in list(counts) if counts[other] >= count and not other.has_advice}
    return {table for table in tables if table in place.plural}
