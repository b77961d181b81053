"""Names that the project gives to an object of a relation: `author = book.author`, `{% with author=book.author %}`.

The cure for `author.country` is then one of the query for the books. That a book has this author proves nothing, since
an author's books have theirs from the related manager. So the code must say it: each place where the function stores
that name, or the template's tag; and the relation must lead there.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any, NamedTuple

from django.db.models import Model
from django.template.context import BaseContext

from django_otel.instrumentation.steps import read_steps

#: Django's methods that give values to names for the part of a template inside the tag.
_TAGS = frozenset({"WithNode.render", "IncludeNode.render"})
#: Frames outside of one that are looked at for them.
_MAX_FRAMES = 100


class Naming(NamedTuple):
    """The object that a name's value was read from, and the attributes on the way."""

    owner: Model
    attributes: tuple[str, ...]


def find_in_function(frame: FrameType, instance: Model) -> Naming | None:
    """Return how the variables of the function got `instance`; None where one may have it from elsewhere."""
    found: list[Naming | None] = []
    for name in [name for name, value in frame.f_locals.items() if value is instance]:
        codes, values = _find_scope(frame, name)
        read = _read_assignments(codes, name)
        if read is None:
            return None
        if len(read) == 1 and values.get(read[0]) is instance:
            # Another of these names.
            continue
        found.append(_follow(values.get(read[0]), read[1:], instance))
    return _only(found)


def find_in_template(frame: FrameType, instance: Model) -> Naming | None:
    """Return how the tags around what `frame` renders named `instance`; None where a name may be from elsewhere."""
    found: list[Naming | None] = []
    named: set[str] = set()
    explained: set[str] = set()
    outer: FrameType | None = frame
    for _ in range(_MAX_FRAMES):
        if outer is None:
            break
        if outer.f_code.co_qualname in _TAGS:
            for name, read, context in _read_tag(outer.f_locals, instance):
                scopes: Any = getattr(context, "dicts", ())
                named |= {each for scope in scopes for each, value in scope.items() if value is instance}
                explained.add(name)
                if len(read) != 1 or context.get(read[0]) is not instance:
                    found.append(_follow(context.get(read[0]), read[1:], instance))
        outer = outer.f_back
    return _only(found) if named <= explained else None


def _only(found: list[Naming | None]) -> Naming | None:
    """Return what all of them are."""
    first = found[0] if found else None
    # Models are compared by their keys, and new ones cannot be hashed.
    is_one = first is not None and all(
        each is not None and each.owner is first.owner and each.attributes == first.attributes for each in found
    )
    return first if is_one else None


def _read_tag(values: dict[str, Any], instance: Model) -> Iterator[tuple[str, tuple[str, ...], BaseContext]]:
    """Yield names that a tag gave the object, by which lookups (`book.author`), and the context; none with a filter."""
    context, given = values.get("context"), values.get("values")
    if not isinstance(context, BaseContext) or not isinstance(given, dict):
        return
    expressions = getattr(values.get("self"), "extra_context", {})
    for name, value in given.items():
        expression = expressions.get(name) if value is instance else None
        lookups = getattr(getattr(expression, "var", None), "lookups", None)
        if lookups and not getattr(expression, "filters", None):
            yield name, tuple(lookups), context


def _follow(owner: Any, attributes: tuple[str, ...], instance: Model) -> Naming | None:
    """Follow loaded relations, as far as they lead to the object."""
    current = owner
    for attribute in attributes:
        # To ask a lazy object for its class would load it.
        if not issubclass(type(current), Model):
            return None
        current = current._state.fields_cache.get(attribute)
    return Naming(owner, attributes) if attributes and current is instance else None


def _find_scope(frame: FrameType, name: str) -> tuple[list[CodeType], dict[str, Any]]:
    """Return the code that may store the variable, and the values there; no code where it is not known.

    A variable that functions share is one of the outermost of them, and each of them may store it.
    """
    code = frame.f_code
    values = dict(frame.f_locals)
    while name in code.co_freevars:
        outer = frame.f_back
        if outer is None or code not in outer.f_code.co_consts:
            return [], {}
        frame, code = outer, outer.f_code
        values = {**frame.f_locals, **values}
    return list(_find_sharing(code, name)), values


def _find_sharing(code: CodeType, name: str) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType) and name in constant.co_freevars:
            yield from _find_sharing(constant, name)


def _read_assignments(codes: list[CodeType], wanted: str) -> tuple[str, ...] | None:
    """Return variable and attributes of `wanted = variable.attribute...`; None where it is stored otherwise, too."""
    found = {chain for code in codes for name, chain in _read_stores(code) if name == wanted}
    return next(iter(found)) if len(found) == 1 and () not in found else None


def _read_stores(code: CodeType) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each variable that is stored, with the variable and attributes that are read for it; () for all else."""
    chain: tuple[str, ...] = ()
    copied = False
    for _, kind, name in read_steps(code):
        if kind == "STORE":
            yield name, chain
        is_kept = kind == "STORE" and copied
        copied = kind == "COPY"
        if kind == "LOAD":
            chain = (name,)
        elif kind == "ATTR" and chain:
            chain = (*chain, name)
        elif not (copied or is_kept):
            chain = ()
