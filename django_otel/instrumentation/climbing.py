"""Lines that go from object to object by a relation of a model to itself: `node = node.parent`, or recursively.

Each object but the first has come by that relation, so no queryset could have loaded it. The object that a statement
reads from is then one that an earlier run of the statement has stored, under the same name or by others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import CodeType, FrameType

from django.db.models import Model

from django_otel.instrumentation.steps import Step, read_steps

#: Methods that keep an object for later.
_KEEPING = frozenset(
    {"append", "appendleft", "extend", "extendleft", "add", "insert", "put", "put_nowait", "update", "union"}
)


class _Statement:
    """Part of a function up to where it stores something: variables that it reads, iterates and stores."""

    def __init__(self, steps: list[Step]) -> None:
        self.last = steps[-1].offset
        self.read = {step.name for step in steps if step.kind == "LOAD"}
        self.stored = {step.name for step in steps if step.kind == "STORE"}
        self.iterated: set[str] = set()
        variable = ""
        for step, following in itertools.pairwise(steps):
            if step.kind == "LOAD":
                variable = step.name
                if following.name in _KEEPING and following.kind != "LOAD":
                    self.stored.add(variable)
            if following.kind == "ITER":
                self.iterated.add(variable)


def climbs(frames: Iterator[FrameType], instance: Model, name: str) -> bool:
    """Return whether the code goes from `instance` to another by the relation `name`, and from that one on.

    `frames` are the line's and those outside of it.
    """
    inner: list[CodeType] = []
    for frame in frames:
        code = frame.f_code
        if inner and code is inner[0]:
            return True
        statements = list(_read_statements(code))
        current = next((each for each in statements if each.last >= frame.f_lasti), None)
        if current is not None:
            start = {variable for variable, value in frame.f_locals.items() if value is instance}
            if not inner:
                start |= _find_bases(code, name)
            elif inner[-1] in code.co_consts:
                # A comprehension.
                start |= current.iterated
            if not start.isdisjoint(_follow(current.stored, statements)):
                return True
        inner.append(code)
    return False


def _read_statements(code: CodeType) -> Iterator[_Statement]:
    steps: list[Step] = []
    for step in read_steps(code):
        if steps and steps[-1].kind in ("STORE", "POP") and step.kind != "STORE":
            yield _Statement(steps)
            steps = []
        steps.append(step)
    if steps:
        yield _Statement(steps)


def _find_bases(code: CodeType, name: str) -> set[str]:
    """Variables from which a relation of that name is read, directly or through others."""
    found = set()
    variable = ""
    for step in read_steps(code):
        if step.kind == "LOAD":
            variable = step.name
        elif step.kind != "ATTR":
            variable = ""
        elif step.name == name and variable:
            found.add(variable)
    return found


def _follow(variables: set[str], statements: list[_Statement]) -> set[str]:
    """Return these variables and all that get something of them."""
    found = set(variables)
    for _ in statements:
        more = {each for statement in statements if not statement.read.isdisjoint(found) for each in statement.stored}
        if more <= found:
            break
        found |= more
    return found
