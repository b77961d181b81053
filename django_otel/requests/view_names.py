"""The name of the view that answers a request."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django_otel.requests.protocols import MatchLike


#: Decorators around one view; a chain of wrappers could lead back to its beginning.
_MOST_WRAPPERS = 20


def name_view(match: MatchLike, method: str) -> str:
    """Return the dotted name of the view that a URL leads to; "" where it has none.

    With the action of a viewset of Django REST framework, and the operation of django-ninja, whose own view stands for
    all methods of a path.
    """
    view = match.func
    named = str(getattr(match, "_func_path", None) or getattr(match, "view_name", None) or "")
    partial = _find_partial(view)
    if partial is not None:
        # Django names the class of the partial, and decorators cannot take over its name.
        named = _name_of(getattr(partial.func, "view_class", partial.func)) or _name_of(type(partial.func)) or named
    actions = getattr(view, "actions", None)
    if isinstance(actions, Mapping):
        # The framework answers HEAD by the view's GET.
        action = actions.get(method.lower()) or (actions.get("get") if method == "HEAD" else None)
        return f"{named}.{action}" if isinstance(action, str) and named else named
    for operation in _operations(view):
        methods = getattr(operation, "methods", ())
        if method in methods or (method == "HEAD" and "GET" in methods and "HEAD" not in methods):
            function = getattr(operation, "view_func", None)
            if name := _name_of(function):
                return name
    return named


def _find_partial(view: object) -> functools.partial[object] | None:
    """Return the partial that is the view, or the view of the decorators around it; None where there is none."""
    for _ in range(_MOST_WRAPPERS):
        if isinstance(view, functools.partial):
            return view
        view = getattr(view, "__wrapped__", None)
        if view is None:
            break
    return None


def _name_of(function: object) -> str:
    """Return the dotted name of a function or class; "" for what has no name."""
    name = getattr(function, "__qualname__", "")
    return f"{getattr(function, '__module__', '')}.{name}" if name else ""


def _operations(view: object) -> Sequence[object]:
    """The operations of the object whose method a view is, or which it closes over (`ninja.operation.PathView`)."""
    for _ in range(_MOST_WRAPPERS):
        owner = getattr(view, "__self__", None)
        names = getattr(getattr(view, "__code__", None), "co_freevars", ())
        if owner is None and "self" in names:
            try:
                owner = getattr(view, "__closure__", ())[names.index("self")].cell_contents
            except ValueError:  # An empty cell.
                owner = None
        found = getattr(owner, "operations", None)
        if isinstance(found, list | tuple):
            return found
        view = getattr(view, "__wrapped__", None) or getattr(view, "func", None)
        if view is None:
            break
    return ()
