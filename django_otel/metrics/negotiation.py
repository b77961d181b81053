"""Negotiation of the page's format and compression with a scraper."""

from __future__ import annotations

import enum
import gzip
from collections.abc import Iterable

from django_otel.base import frozen

#: As much of an Accept header is read, in characters; a scraper sends some 300.
_MAX_ACCEPT = 4096


class Format(enum.Enum):
    """A format of the page; the value is (media type, version)."""

    TEXT = ("text/plain", "0.0.4")
    OPENMETRICS = ("application/openmetrics-text", "1.0.0")
    OPENMETRICS_0_0_1 = ("application/openmetrics-text", "0.0.1")

    @property
    def is_openmetrics(self) -> bool:
        return self is not Format.TEXT

    @property
    def content_type(self) -> str:
        media_type, version = self.value
        return f"{media_type}; version={version}; charset=utf-8"

    def content_type_with(self, escaping: str) -> str:
        """The content type, with the escaping that the scraper has named ("" for none)."""
        if not escaping:
            return self.content_type
        return f"{self.value[0]}; version=1.0.0; charset=utf-8; escaping={escaping}"


@frozen.record
class _MediaRange:
    media_type: str
    version: str
    quality: float
    position: int
    escaping: str = ""

    @property
    def named_escaping(self) -> str:
        """The escaping, in a version that has it; "" without a known one, or where the range is refused."""
        is_known = self.version == "1.0.0" and self.escaping in ESCAPINGS
        return self.escaping if is_known and self.quality > 0 else ""

    def specificity(self, wanted: Format) -> int:
        """Return how closely this range names `wanted`; 0 when it does not."""
        media_type, version = wanted.value
        if self.media_type == media_type:
            if not self.version:
                # No version means the format's current one.
                return 0 if wanted is Format.OPENMETRICS_0_0_1 else 3
            if wanted is Format.TEXT and self.named_escaping:
                # Text 1.0.0 has the same lines, and says how names are escaped.
                return 4
            return 4 if self.version == version else 0
        if self.media_type == media_type.partition("/")[0] + "/*":
            return 2
        return 1 if self.media_type == "*/*" else 0


def negotiate(accept_header: str | None) -> Format:
    """The format for a scraper that sends this Accept header.

    The highest quality wins, between equals the one named first. A header
    that names nothing we have gets the older text format, which every scraper
    and every human can read, rather than a 406.
    Source: RFC 9110, section 12.5.1.
    """
    ranges = list(_parse_accept(accept_header or ""))
    best = Format.TEXT
    best_rank: tuple[float, float] | None = None
    for wanted in Format:
        matches = [(found, r) for r in ranges if (found := r.specificity(wanted))]
        if not matches:
            continue
        closest = max(matches, key=_closeness)[1]
        rank = (closest.quality, -float(closest.position))
        if closest.quality > 0 and (best_rank is None or rank > best_rank):
            best, best_rank = wanted, rank
    return best


#: How names that Prometheus' old rules do not allow are written (Prometheus "Content negotiation", `escaping`).
ESCAPINGS = ("allow-utf-8", "underscores", "dots", "values")


def negotiate_escaping(accept_header: str | None, wanted: Format) -> str:
    """Return the escaping that the scraper names for the format it is given; "" where it names none that is known."""
    matches = [(found, r) for r in _parse_accept(accept_header or "") if (found := r.specificity(wanted))]
    return max(matches, key=_closeness)[1].named_escaping if matches else ""


def _closeness(match: tuple[int, _MediaRange]) -> tuple[int, float, int]:
    """Two versions of one format are equally close: the one that is wanted more counts."""
    return match[0], match[1].quality, -match[1].position


def _parse_accept(header: str) -> Iterable[_MediaRange]:
    if len(header) > _MAX_ACCEPT:
        # Clients choose it; a range that is cut in two would mean something else.
        header = header[:_MAX_ACCEPT].rpartition(",")[0]
    for position, item in enumerate(header.split(",")):
        media_type, *parameters = (part.strip() for part in item.split(";"))
        values = dict(_parse_parameter(parameter) for parameter in parameters)
        quality = _parse_quality(values.get("q", "1"))
        if media_type and quality is not None:
            escaping = values.get("escaping", "").lower()
            yield _MediaRange(media_type.lower(), values.get("version", ""), quality, position, escaping)


def _parse_parameter(parameter: str) -> tuple[str, str]:
    key, _, value = parameter.partition("=")
    return key.strip().lower(), value.strip().strip('"')


def _parse_quality(text: str) -> float | None:
    try:
        quality = float(text)
    except ValueError:
        return None
    return quality if 0 <= quality <= 1 else None


def accepts_gzip(accept_encoding_header: str | None) -> bool:
    """Return whether a client that sends this Accept-Encoding header can read gzip."""
    accepted = {item.media_type: item.quality > 0 for item in _parse_accept(accept_encoding_header or "")}
    return accepted.get("gzip", accepted.get("x-gzip", accepted.get("*", False)))


def compress(page: bytes) -> bytes:
    """gzip at level 1: metric pages are so repetitive that more effort saves next to nothing."""
    return gzip.compress(page, compresslevel=1, mtime=0)
