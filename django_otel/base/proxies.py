"""Values behind proxies: a lazy object claims the class of its value, without being of that type."""

from __future__ import annotations

from typing import Any

#: Deeper nesting of proxies than this is taken for a loop.
_MAX_DEPTH = 10


def resolve(value: object) -> Any:
    """Return the value of a proxy (Django's lazy objects, `wrapt`, werkzeug), any other value as it is.

    Errors: those of evaluating a lazy value.
    """
    for _ in range(_MAX_DEPTH):
        if value.__class__ is type(value):
            break
        inner = _inner(value)
        if inner is value:
            break
        value = inner
    return value


def _inner(proxy: object) -> object:
    # Not getattr(), which a proxy hands on to what it stands for.
    try:
        held = object.__getattribute__(proxy, "__dict__")
    except AttributeError:
        held = {}
    if "_wrapped" in held:
        return held["_wrapped"]
    for name in ("_get_current_object", "__wrapped__"):
        try:
            found = object.__getattribute__(proxy, name)
        except AttributeError:
            continue
        return found() if name == "_get_current_object" else found
    kind = proxy.__class__
    # An unknown proxy of a plain value: at least its text.
    return str(proxy) if isinstance(kind, type) and issubclass(kind, str) else proxy
