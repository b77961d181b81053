"""Changes that the project's code makes to objects after their query: a cure of that query would come too early.

Where a view gives an object another key (`book.author_id = 5`), the related object that `select_related()` had joined
is gone; so is what was prefetched once a manager's `add()` or `refresh_from_db()` has run. Nothing on the object shows
it, so the code says: that of the line itself, of the project's functions around it in the request, and of the
functions and methods that those call by name. It is read once per place, and what it only may do counts as done.
"""

from __future__ import annotations

import dis
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType, FunctionType
from typing import NamedTuple

from django_otel.instrumentation.callers import is_boundary, is_project

#: Frames that are looked at, and functions called from them.
_MAX_FRAMES = 100
_MAX_CODES = 100
#: Methods of a related manager after which it has nothing prefetched.
_MUTATORS = frozenset({"add", "remove", "clear", "set", "create", "get_or_create", "update_or_create"})
_ALL_MUTATORS = _MUTATORS | {f"a{name}" for name in _MUTATORS}
#: By these an attribute's name is a text.
_BY_TEXT = frozenset({"setattr", "__setattr__", "__dict__", "vars", "delattr"})
#: By these objects come one by one: each has its relations loaded before it has peers.
_STREAMS = frozenset({"iterator", "aiterator"})
_REFRESHERS = frozenset({"refresh_from_db", "arefresh_from_db"})
#: Attributes in which Django keeps related objects.
_CACHES = frozenset({"fields_cache", "_prefetched_objects_cache"})


class Changes(NamedTuple):
    """Names of attributes that are set, deleted, and whose manager is changed; whether an object is read again.

    And whether objects are read by `iterator()`, one by one, and whether those of relations can only come by joins.
    """

    set: frozenset[str]
    deleted: frozenset[str]
    managed: frozenset[str]
    refreshes: bool
    streams: bool
    joins: bool

    def affect(self, keys: Iterable[str]) -> bool:
        """Return whether a relation that depends on these attributes may have changed since the object was loaded."""
        return self.refreshes or not self.set.isdisjoint(keys)


def read_changes(place: FrameType, models: Iterable[type]) -> Changes:
    """Return the changes that the code around a line may have made to objects of these models."""
    stored: set[str] = set()
    deleted: set[str] = set()
    managed: set[str] = set()
    refreshes = streams = joins = prefetches = False
    for code in _find_codes(place, tuple(models)):
        names = set(code.co_names)
        refreshes = refreshes or not names.isdisjoint(_REFRESHERS | _CACHES)
        streams = streams or not names.isdisjoint(_STREAMS)
        joins = joins or "select_related" in names
        prefetches = prefetches or "Prefetch" in names
        if not names.isdisjoint(_BY_TEXT):
            texts = {text for text in code.co_consts if isinstance(text, str)}
            stored |= texts
            deleted |= texts
        before = ""
        for each in dis.get_instructions(code):
            if each.opname == "STORE_ATTR":
                stored.add(each.argval)
            elif each.opname == "DELETE_ATTR":
                deleted.add(each.argval)
            elif each.argval in _ALL_MUTATORS and before:
                managed.add(before)
            before = each.argval if each.opname == "LOAD_ATTR" else ""
    return Changes(
        frozenset(stored), frozenset(deleted), frozenset(managed), refreshes, streams, joins and not prefetches
    )


def project_frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Frames of the project from this one outwards, inside the view or middleware that runs."""
    for _ in range(_MAX_FRAMES):
        if frame is None or is_boundary(frame.f_code):
            return
        if is_project(frame.f_code.co_filename):
            yield frame
        frame = frame.f_back


def _find_codes(place: FrameType, models: tuple[type, ...]) -> Iterator[CodeType]:
    """Code of the line's function, of those around it, and of what they call by name."""
    seen: set[CodeType] = set()
    for frame in project_frames(place):
        around = list(_nested(frame.f_code))
        called = [
            function.__code__
            for code in around
            for name in code.co_names
            for function in (
                frame.f_globals.get(name),
                *(vars(base).get(name) for kind in models for base in kind.__mro__),
            )
            if type(function) is FunctionType and is_project(function.__code__.co_filename)
        ]
        for code in (*around, *called):
            if code not in seen and len(seen) < _MAX_CODES:
                seen.add(code)
                yield code


def _nested(code: CodeType) -> Iterator[CodeType]:
    """Code of a function, and of those written inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
