"""Isolates texts from the writing direction around them: code and figures in right-to-left pages."""

from __future__ import annotations

import re

from django.utils.html import conditional_escape, format_html
from django.utils.safestring import SafeString, mark_safe

from django_otel.base import text
from django_otel.base.patterns import lazy_pattern

_RIGHT_TO_LEFT = lazy_pattern("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
#: Figures with units, code, paths, names: what falls apart in a sentence that is written from right to left.
_LEFT_TO_RIGHT = lazy_pattern(r"""(?:[\w"'`/*<>\[\](){}%+=:;,.@#&?!~|\\µ\u202f-]+\ ?)+""", re.ASCII)


def visible(value: object) -> SafeString:
    """Text with direction and other control characters written out, escaped unless it is markup of ours."""
    return value if isinstance(value, SafeString) else conditional_escape(text.visible(str(value)))


def bdi(value: object) -> SafeString:
    """Text isolated from the direction of the text around it; in one from right to left each part that is not."""
    if isinstance(value, SafeString) or not _RIGHT_TO_LEFT.search(str(value)):
        return format_html("<bdi>{}</bdi>", visible(value))
    return format_html("<bdi>{}</bdi>", _isolate_parts(text.visible(str(value))))


def _isolate_parts(sentence: str) -> SafeString:
    """The sentence with each of its parts that is written from left to right isolated."""
    parts, end = [], 0
    for found in _LEFT_TO_RIGHT.finditer(sentence):
        part = _without_punctuation(found[0])
        if not any(character.isalnum() or character in "/*" for character in part):
            continue
        start = found.start() + found[0].index(part)
        parts += [conditional_escape(sentence[end:start]), ltr(part)]
        end = start + len(part)
    return mark_safe("".join([*parts, conditional_escape(sentence[end:])]))  # noqa: S308 (each part is escaped)


def _without_punctuation(part: str) -> str:
    """The part without punctuation at its ends that belongs to the sentence, and without half a pair of brackets."""
    part = part.strip(" .,:;?!")
    while part.count("(") != part.count(")"):
        if part[-1] in "()":
            part = part[:-1].rstrip(" .,:;?!")
        elif part[0] in "()":
            part = part[1:].lstrip(" .,:;?!")
        else:
            break
    return part


def ltr(value: object) -> SafeString:
    """Code, a path, an id or a duration: isolated, and from left to right in every language."""
    return format_html('<bdi dir="ltr">{}</bdi>', visible(value))
