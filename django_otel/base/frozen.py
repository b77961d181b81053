"""Frozen dataclasses that cost almost nothing to define.

`dataclass` writes source code for each class and compiles it, and looks at each
annotation with three regular expressions: half a millisecond for a class, at
every start of every process. Where a class is made a few times in a process's
life, methods that all of them share do as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError, field
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")
#: Past the class's own `__setattr__`, which refuses.
_put = object.__setattr__


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(kind: type[T]) -> type[T]:
    """Return a class as `dataclass(frozen=True)` would; without keyword-only fields.

    `__post_init__`, `field(init=False)`, `repr=` and `compare=` are kept, as is
    every method that the class has itself. `dataclasses.fields` and `replace` work.
    """
    if kind.__doc__ is None:
        # Else `dataclass` makes one of the signature, which takes longer than all the rest.
        kind.__doc__ = kind.__name__
    entries = _collect_fields(kind)
    methods: dict[str, object] = {
        "__init__": _build_init(kind.__name__, entries, hasattr(kind, "__post_init__")),
        "__repr__": _build_repr(tuple(entry.name for entry in entries if entry.repr)),
        "__setattr__": _refuse,
        "__delattr__": _refuse,
        "__match_args__": tuple(entry.name for entry in entries if entry.init),
    }
    methods["__eq__"], methods["__hash__"] = _build_comparison(tuple(entry.name for entry in entries if entry.compare))
    for name, method in methods.items():
        if name not in kind.__dict__:
            setattr(kind, name, method)
    return kind


#: Marks a field as one of instances, for `dataclasses.fields` and `replace`.
_INSTANCE_FIELD: Any = dataclasses._FIELD  # type: ignore[attr-defined]  # noqa: SLF001 (no public name)
#: The attribute in which `dataclasses` looks for the fields of a class.
_FIELDS = "__dataclass_fields__"


def _collect_fields(kind: type) -> tuple[Field[object], ...]:
    """Return the fields of a class and leave them where `dataclasses` looks for them."""
    found: dict[str, Field[object]] = {}
    for base in reversed(kind.__mro__[1:]):
        found.update(base.__dict__.get(_FIELDS, {}))
    for name, annotation in kind.__annotations__.items():
        if isinstance(annotation, str) and annotation.startswith("ClassVar"):
            continue
        given: Any = kind.__dict__.get(name, MISSING)
        entry: Any = given if isinstance(given, Field) else field(default=given)
        entry.name, entry.type, entry.kw_only, entry._field_type = name, annotation, False, _INSTANCE_FIELD  # noqa: SLF001 (no public name)
        if entry is given and entry.default is MISSING:
            delattr(kind, name)
        elif entry is given:
            setattr(kind, name, entry.default)
        found[name] = entry
    setattr(kind, _FIELDS, found)
    return tuple(found.values())


def _build_init(kind: str, entries: tuple[Field[object], ...], has_more: bool) -> Callable[..., None]:
    names = tuple(entry.name for entry in entries if entry.init)
    known = frozenset(names)

    def __init__(self: Any, *values: object, **named: object) -> None:  # noqa: N807 (put into a class as a method)
        if len(values) > len(names):
            raise TypeError(f"{kind}() takes {len(names)} values; {len(values)} were given")
        given = dict(zip(names, values, strict=False))
        for name in named:
            if name in given or name not in known:
                raise TypeError(f"{kind}() has no field {name!r}, or was given it twice")
        given.update(named)
        for entry in entries:
            name = entry.name
            if name in given:
                _put(self, name, given[name])
            elif entry.default is not MISSING:
                _put(self, name, entry.default)
            elif entry.default_factory is not MISSING:
                _put(self, name, entry.default_factory())
            elif entry.init:
                raise TypeError(f"{kind}() needs {name!r}")
        if has_more:
            self.__post_init__()

    return __init__


def _build_repr(names: tuple[str, ...]) -> Callable[[object], str]:
    def __repr__(self: object) -> str:  # noqa: N807 (put into a class as a method)
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    return __repr__


def _build_comparison(names: tuple[str, ...]) -> tuple[Callable[[object, object], object], Callable[[object], int]]:
    def content(self: object) -> tuple[object, ...]:
        return tuple([getattr(self, name) for name in names])

    def __eq__(self: object, other: object) -> object:  # noqa: N807 (put into a class as a method)
        return content(self) == content(other) if type(other) is type(self) else NotImplemented

    def __hash__(self: object) -> int:  # noqa: N807 (put into a class as a method)
        return hash(content(self))

    return __eq__, __hash__


def _refuse(self: object, name: str, *value: object) -> None:
    raise FrozenInstanceError(f"cannot change the field {name!r} of a {type(self).__name__}")
