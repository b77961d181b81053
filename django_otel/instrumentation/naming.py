"""Names that the project gives to an object of a relation: `author = book.author`, `{% with author=book.author %}`.

The cure for `author.country` is then one of the query for the books. That a book has this author proves nothing, since
an author's books have theirs from the related manager. So the code must say it: each place where the function stores
that name, or the template's tag; and the relation must lead there.
"""

from __future__ import annotations

import dis
import re
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any, NamedTuple

from django.db.models import Model
from django.template.context import BaseContext

#: Django's methods that give values to names for the part of a template inside the tag.
_TAGS = frozenset({"WithNode.render", "IncludeNode.render"})
#: Steps of the interpreter, as far as they matter here.
_KINDS = {
    **dict.fromkeys(("LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_CHECK", "LOAD_DEREF", "LOAD_NAME"), "LOAD"),
    **dict.fromkeys(("STORE_FAST", "STORE_DEREF", "STORE_NAME"), "STORE"),
    "LOAD_ATTR": "ATTR",
    "COPY": "COPY",
}
_PAIRED = re.compile("LOAD|STORE")
#: Frames outside of one that are looked at for them.
_MAX_FRAMES = 100


class Naming(NamedTuple):
    """The object that a name's value was read from, and the attributes on the way."""

    owner: Model
    attributes: tuple[str, ...]


def find_in_function(frame: FrameType, instance: Model) -> Naming | None:
    """Return how a variable of the function got `instance`; None where not all its assignments are of one form."""
    values = frame.f_locals
    for name in [name for name, value in values.items() if value is instance]:
        read = _read_assignments(frame.f_code, name)
        if read is not None:
            found = _follow(values.get(read[0]), read[1:], instance)
            if found is not None:
                return found
    return None


def find_in_template(frame: FrameType, instance: Model) -> Naming | None:
    """Return how a tag around what `frame` renders named `instance`; None without one."""
    outer: FrameType | None = frame
    for _ in range(_MAX_FRAMES):
        if outer is None:
            return None
        if outer.f_code.co_qualname in _TAGS:
            for read, context in _read_tag(outer.f_locals, instance):
                found = _follow(context.get(read[0]), read[1:], instance)
                if found is not None:
                    return found
        outer = outer.f_back
    return None


def _read_tag(values: dict[str, Any], instance: Model) -> Iterator[tuple[tuple[str, ...], BaseContext]]:
    """Yield the lookups (`book.author`) that gave a tag's name the object, and the context; none with a filter."""
    context, given = values.get("context"), values.get("values")
    if not isinstance(context, BaseContext) or not isinstance(given, dict):
        return
    expressions = getattr(values.get("self"), "extra_context", {})
    for name, value in given.items():
        expression = expressions.get(name) if value is instance else None
        lookups = getattr(getattr(expression, "var", None), "lookups", None)
        if lookups and not getattr(expression, "filters", None):
            yield tuple(lookups), context


def _follow(owner: Any, attributes: tuple[str, ...], instance: Model) -> Naming | None:
    """Follow loaded relations, as far as they lead to the object."""
    current = owner
    for attribute in attributes:
        # To ask a lazy object for its class would load it.
        if not issubclass(type(current), Model):
            return None
        current = current._state.fields_cache.get(attribute)
    return Naming(owner, attributes) if attributes and current is instance else None


def _read_assignments(code: CodeType, wanted: str) -> tuple[str, ...] | None:
    """Return variable and attributes of `wanted = variable.attribute...`; None where it is stored otherwise, too."""
    found: set[tuple[str, ...]] = set()
    chain: tuple[str, ...] = ()
    for kind, name in _read_steps(code):
        if kind == "STORE" and name == wanted:
            found.add(chain)
        if kind == "LOAD":
            chain = (name,)
        elif kind != "COPY":
            chain = (*chain, name) if kind == "ATTR" and chain else ()
    return next(iter(found)) if len(found) == 1 and () not in found else None


def _read_steps(code: CodeType) -> Iterator[tuple[str, str]]:
    """Yield what a function does with variables and attributes, in the order of its code; other steps have no name."""
    for each in dis.get_instructions(code):
        if isinstance(each.argval, tuple) and "_FAST" in each.opname:
            # From Python 3.13 on one instruction may do two steps: STORE_FAST_LOAD_FAST.
            yield from zip(_PAIRED.findall(each.opname), each.argval, strict=False)
        else:
            yield _KINDS.get(each.opname, ""), str(each.argval)
