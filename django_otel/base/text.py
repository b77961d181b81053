"""Texts in the form in which they may leave the process."""

from __future__ import annotations

import json
import re

from django_otel.base.patterns import lazy_pattern

#: Control characters, also those of C1, that a terminal would obey, and those that turn the direction of text.
_UNPRINTABLE = lazy_pattern("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def encodable(text: str) -> str:
    """Return `text` without lone surrogates.

    A client can send one in JSON, and OTLP could not encode the whole batch.
    """
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def printable(text: str) -> str:
    """Return `text` on one line, with control characters written out ("\\x1b"): for a terminal, or a label."""
    return _UNPRINTABLE.sub(_write_out, text)


def _write_out(found: re.Match[str]) -> str:
    code = ord(found.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable_json(content: object) -> str:
    """Return `content` as JSON over several lines, with control characters of terminals escaped."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    # Those below U+0020 stand in it as escapes already, but for its own line breaks.
    return _UNPRINTABLE.sub(lambda found: "\n" if found.group() == "\n" else f"\\u{ord(found.group()):04x}", text)


#: Characters that reorder text, hide in it or end a line unseen. Joiners stay: Persian, Hindi and emoji need them.
_UNSEEN = lazy_pattern(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)


def visible(content: str) -> str:
    """The text with each character that reorders or hides text written out, such as `\\u202e`."""
    return _UNSEEN.sub(_write_out, content.replace("\r\n", "\n"))
