"""Translates texts of other packages into the reader's language."""

from __future__ import annotations

from django.utils.translation import gettext

from django_otel.base.sentences import Sentence


def translate(text: object) -> str:
    """Return a `Sentence` in the language that is active; any other text as it is."""
    if not isinstance(text, Sentence):
        return str(text)
    found = gettext(text.template)
    return found % {name: translate(value) for name, value in text.values.items()} if text.values else found
