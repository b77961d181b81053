"""Writer of YAML for the generated files: dicts, lists and scalars, so that no YAML library is needed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
#: Characters that YAML does not allow, or takes for the end of a line, wherever they stand; tab and newline apart.
_UNPRINTABLE = re.compile("[^\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
#: Words that YAML reads as a boolean or null.
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def dump(node: object) -> str:
    """Return a document of mappings, sequences, strings, numbers, booleans and None. Errors: `TypeError` otherwise."""
    return "\n".join(_lines(node)) + "\n"


def _lines(node: object) -> Iterator[str]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _entry(f"{_scalar(str(key))}:", value, "  ")
    elif isinstance(node, Sequence) and not isinstance(node, str) and node:
        for value in node:
            if isinstance(value, Mapping) and value:
                first, *rest = _lines(value)
                yield f"- {first}"
                yield from (f"  {line}" for line in rest)
            else:
                yield from _entry("-", value, "  ")
    else:
        yield _scalar(node)


def _entry(head: str, value: object, indent: str) -> Iterator[str]:
    if isinstance(value, str) and _is_block(value):
        yield f"{head} |-"
        yield from (f"{indent}{line}" for line in value.split("\n"))
    elif isinstance(value, Mapping | list | tuple) and value:
        yield head
        yield from (f"{indent}{line}" for line in _lines(value))
    else:
        yield f"{head} {_scalar(value)}"


def _is_block(text: str) -> bool:
    """Return whether a text of several lines reads back the same as a block; else it is quoted."""
    return "\n" in text and text[0] not in " \t\n" and text[-1] != "\n" and not _UNPRINTABLE.search(text)


def _quote(text: str) -> str:
    """JSON's form, but for pairs of surrogates, which YAML does not have."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


def _scalar(value: object) -> str:
    """A scalar; JSON's form is valid YAML and is used unless the text needs no quotes."""
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and value.lower() not in _WORDS else _quote(value)
    if isinstance(value, Mapping | list | tuple):
        return "{}" if isinstance(value, Mapping) else "[]"
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    raise TypeError(f"a {type(value).__name__} cannot be written as YAML")
