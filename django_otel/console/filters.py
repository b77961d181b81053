"""Values from page addresses: whole numbers and points in time."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Any

from django.utils import timezone
from django.utils.translation import gettext

_AGO = re.compile(r"(\d{1,6})\s*(s|m|min|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}


def whole(given: Any, lowest: int, highest: int) -> int:
    """Return a number of a query string, within bounds; the lowest for any other text."""
    try:
        return min(highest, max(lowest, int(given)))
    except (TypeError, ValueError):
        return lowest


def parse_time(given: str, now_s: float) -> tuple[float | None, str]:
    """Return a point in time (seconds since the Unix epoch) and a message if the text is not one.

    A time ago ("15m", "2h", "7d"), or a date with or without a time of day, in the current zone unless it names one.
    """
    if not given:
        return None, ""
    if found := _AGO.fullmatch(given.lower()):
        return now_s - int(found[1]) * _SECONDS[found[2]], ""
    try:
        at = datetime.datetime.fromisoformat(given)
        if timezone.is_naive(at):
            at = timezone.make_aware(at)
        return at.timestamp(), ""
    except (ValueError, OverflowError):
        return None, gettext("Expected a time ago such as 15m, 2h or 7d, or a date such as 2026-11-30 14:05.")


def read_time(values: Mapping[str, str], name: str, now_s: float, problems: dict[str, str]) -> float | None:
    """Return the point in time of a field, as `parse_time`; a message is added to `problems` if it is not one."""
    at_s, problem = parse_time(values.get(name, ""), now_s)
    if problem:
        problems[name] = problem
    return at_s
