"""Cuts texts that are too long: redacted first, so that no cut hides the name of a secret or leaves its tail."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from django_otel.redaction.keys import REDACTED

#: Characters behind the cut that are redacted with it: a secret that begins before the cut is known by them.
_MARGIN = 4096
#: Characters of a stack trace that are redacted, at its beginning and at its end.
_MAX_HEAD = 24_576
_MAX_TAIL = 65_536
_MARK = "\n... [cut] ...\n"

Scrub = Callable[[str], str]
Value = TypeVar("Value")


def cut(text: str, length: int, scrub: Scrub, mark: str = "") -> str:
    """Return `text` as it is when it has at most `length` characters, else redacted, cut, and with `mark` behind it.

    The time is bounded by `length`: what is far behind the cut is not read.
    """
    if len(text) <= length:
        return text
    scrubbed: str = scrub_beginning(text, length, scrub)
    if len(scrubbed) <= length:
        return scrubbed + mark if len(text) > length + _MARGIN else scrubbed
    # Not within a mark of the redaction: another round of it would take the rest for a value, and make it longer.
    begin = scrubbed.find(REDACTED, max(0, length - len(REDACTED) + 1), length + len(REDACTED) - 1)
    return scrubbed[: length if begin < 0 else begin] + mark


def scrub_beginning(text: str, length: int, scrub: Callable[[str], Any]) -> Any:
    """Return `text` redacted, of a long one as much as its first `length` characters take, and not yet cut there."""
    window = length + _MARGIN
    if len(text) <= window:
        return scrub(text)
    scrubbed = scrub(text[:window])
    # The window may end within a secret, and what was redacted before it moved that end forward.
    is_whole = scrubbed == REDACTED or not isinstance(scrubbed, str)
    return scrubbed if is_whole else scrubbed[: max(0, len(scrubbed) - _MARGIN // 2)]


def scrub_beginnings(items: tuple[Value, ...], length: int, scrub: Callable[[Any], Any]) -> tuple[Value, ...]:
    """Return the items of a list redacted, as many of them as have `length` characters together."""
    kept: list[Value] = []
    for item in items:
        if length <= 0:
            break
        kept.append(scrub_beginning(item, length, scrub) if isinstance(item, str) else scrub(item))
        length -= len(item) + 1 if isinstance(item, str) else 1
    return tuple(kept)


def cut_stack(text: str, length: int, scrub: Scrub) -> str:
    """Return a stack trace of at most `length` characters: redacted, its first lines and its last ones."""
    if len(text) <= length:
        return text
    if len(text) <= _MAX_HEAD + _MAX_TAIL:
        head = tail = scrub(text)
        if len(head) <= length:
            return head
    else:
        head = scrub(text[:_MAX_HEAD])
        head = head[: len(head) - min(len(head), _MARGIN // 2)]
        tail = scrub(text[-_MAX_TAIL:])
        # The tail may begin within a secret that nothing names.
        tail = tail[min(len(tail), _MARGIN) :]
        tail = tail[tail.find("\n") + 1 :]
    first = min(length // 4, len(head))
    last = max(0, length - first - len(_MARK))
    return head[:first] + _MARK + (tail[-last:] if last else "")


def cut_value(value: object, length: int | None, scrub: Scrub) -> Any:
    """Return the value of an attribute with its texts, at any depth, redacted and cut that are longer than `length`."""
    if length is None:
        return value
    if isinstance(value, str):
        return cut(str.__str__(value), length, scrub) if len(value) > length else value
    if isinstance(value, Mapping):
        return cut_attributes(value, length, scrub)
    if not isinstance(value, Sequence) or isinstance(value, (bytes, bytearray)):
        return value
    changed = tuple(cut_value(item, length, scrub) for item in value)
    return changed if any(new is not old for new, old in zip(changed, value, strict=True)) else value


def cut_attributes(
    attributes: Mapping[str, Value] | None, length: int | None, scrub: Scrub
) -> Mapping[str, Value] | None:
    """Return the attributes with long texts redacted and cut; the same object when there is none."""
    if not attributes or length is None:
        return attributes
    changed = {key: cut_value(value, length, scrub) for key, value in attributes.items()}
    return changed if any(changed[key] is not value for key, value in attributes.items()) else attributes


def has_long_text(attributes: Mapping[str, object], length: int | None) -> bool:
    """Return whether a text among the attributes is longer than `length`."""
    return cut_attributes(attributes, length, str) is not attributes
