"""Translatable sentences: built where the reader's language is unknown, and translated when they are shown."""

from __future__ import annotations

from typing import Self


def gettext_noop(text: str) -> str:
    """Mark a text for translators, as Django's function of this name does."""
    return text


class Sentence(str):
    """A text in English, for logs and programs, that keeps its template and values for `translate`."""

    template: str
    values: dict[str, object]

    def __new__(cls, template: str, **values: object) -> Self:
        made = super().__new__(cls, template % values if values else template)
        made.template, made.values = template, values
        return made
