"""Texts as they may leave the process."""

from __future__ import annotations


def encodable(text: str) -> str:
    """Return `text` without lone surrogates.

    A client can send one in JSON, and OTLP could not encode the whole batch.
    """
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
