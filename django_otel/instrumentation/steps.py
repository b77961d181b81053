"""Steps of a function's code, what it does with variables and attributes: read for advice, see `naming`."""

from __future__ import annotations

import dis
import re
from collections.abc import Iterator
from types import CodeType
from typing import NamedTuple

#: Steps of the interpreter, as far as they matter here.
_KINDS = {
    **dict.fromkeys(("LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_CHECK", "LOAD_DEREF", "LOAD_NAME"), "LOAD"),
    **dict.fromkeys(("STORE_FAST", "STORE_DEREF", "STORE_NAME"), "STORE"),
    "LOAD_ATTR": "ATTR",
    "COPY": "COPY",
    "POP_TOP": "POP",
    **dict.fromkeys(("GET_ITER", "GET_AITER"), "ITER"),
}
_PAIRED = re.compile("LOAD|STORE")


class Step(NamedTuple):
    """One step; `kind` is "" for those that do something else, and "JUMPED_TO" before one that others lead to."""

    offset: int
    kind: str
    #: Of the variable, the attribute or the method.
    name: str


def read_steps(code: CodeType) -> Iterator[Step]:
    """Yield what a function does, in the order of its code."""
    for each in dis.get_instructions(code):
        if each.is_jump_target:
            yield Step(each.offset, "JUMPED_TO", "")
        if isinstance(each.argval, tuple) and "_FAST" in each.opname:
            # From Python 3.13 on one instruction may do two steps: STORE_FAST_LOAD_FAST.
            for kind, name in zip(_PAIRED.findall(each.opname), each.argval, strict=False):
                yield Step(each.offset, kind, name)
        else:
            yield Step(each.offset, _KINDS.get(each.opname, ""), str(each.argval))
