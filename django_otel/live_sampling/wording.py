"""The sampling policy in words: for the admin, its history, and the command line."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from django.utils import formats, timezone

#: What an end can be chosen from: (what a form sends, seconds, words).
DURATIONS = (
    ("5m", 300, "5 minutes"),
    ("15m", 900, "15 minutes"),
    ("1h", 3600, "1 hour"),
    ("4h", 14_400, "4 hours"),
    ("24h", 86_400, "24 hours"),
)
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST_S = 366 * 86_400


class RuleLike(Protocol):
    """What of a rule is said in words."""

    @property
    def path(self) -> str: ...
    @property
    def route(self) -> str: ...
    @property
    def method(self) -> str: ...


def parse_duration_s(text: str) -> int:
    """`"90s"`, `"15m"`, `"1h30m"`, `"2d"` in seconds; a number without a unit is refused.

    Errors: `ValueError`; the text says what fits.
    """
    found = re.fullmatch(r"(?:\d+[smhd])+", text.strip())
    total_s = sum(int(number) * _UNITS_S[unit] for number, unit in re.findall(r"(\d+)([smhd])", text)) if found else 0
    if not 0 < total_s <= _LONGEST_S:
        raise ValueError(f"{text!r} is no duration; write it like 90s, 15m, 1h30m or 2d (at most 366d)")
    return total_s


def parse_ratio(text: str) -> float:
    """`"0.1"` or `"10%"` as a share from 0.0 to 1.0. Errors: `ValueError`; the text says what fits."""
    number = text.strip()
    try:
        value = float(number.removesuffix("%")) / (100.0 if number.endswith("%") else 1.0)
    except ValueError:
        value = float("nan")
    if 0.0 <= value <= 1.0:
        return value
    hint = f"; for {value:g} % write {value / 100:g} or {value:g}%" if 1.0 < value <= 100.0 else ""
    raise ValueError(f"{text!r} is no ratio; write a number from 0 to 1, or a percentage such as 10%{hint}")


def now() -> datetime.datetime:
    """This moment in whole seconds, as the database takes it: without a zone when USE_TZ is False."""
    return (timezone.now() if timezone.is_aware(timezone.now()) else datetime.datetime.now()).replace(microsecond=0)


def percent(ratio: float) -> str:
    """0.025 as "2.5 %"."""
    return f"{ratio * 100:.10g} %"


def moment(epoch_s: float) -> datetime.datetime:
    """Seconds since the Unix epoch as a moment."""
    return datetime.datetime.fromtimestamp(epoch_s, tz=datetime.UTC)


def show(value: object) -> str:
    """A value of a field, for a reader."""
    if isinstance(value, datetime.datetime):
        return formats.date_format(timezone.localtime(value) if timezone.is_aware(value) else value, "Y-m-d H:i:s")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    return "none" if value is None or value == "" else str(value)


def span(seconds: float) -> str:
    """A duration with its two greatest units: "14 min 52 s", "3 h 5 min", "2 d"."""
    whole = max(0, round(seconds))
    parts = []
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        number, whole = divmod(whole, size)
        if number:
            parts.append(f"{number} {unit}")
    return " ".join(parts[:2]) or "0 s"


def until(expires_at_s: float, now_s: float | None = None) -> str:
    """A moment that is to come with its time zone, and how far away it is."""
    left_s = expires_at_s - (time.time() if now_s is None else now_s)
    return f"{at(expires_at_s)} ({f'in {span(left_s)}' if left_s > 0 else 'over'})"


def at(epoch_s: float) -> str:
    """A moment with its time zone."""
    return f"{show(moment(epoch_s))} {timezone.localtime(moment(epoch_s)).tzname()}"


def source(name: str) -> str:
    """Where a value of the settings came from; `name` as `Config.sources` has it."""
    if name.startswith("environment"):
        return f"the environment variable {name.removeprefix('environment').strip() or 'OTEL_TRACES_SAMPLER_ARG'}"
    return {
        "settings": 'settings, OTEL["SAMPLING"]["RATIO"]',
        "default": 'the default of OTEL["SAMPLING"]["RATIO"]',
    }.get(name, name)


def limit(max_per_second: float) -> str:
    """A rate limit."""
    return f"{max_per_second:g} trace{'' if max_per_second == 1 else 's'} per second and server"


def kept(keep_errors: bool, keep_slow_s: float | None) -> str:
    """What is recorded although the ratio says no; empty when nothing is."""
    said = ["errors"] if keep_errors else []
    if keep_slow_s is not None:
        said.append(f"requests of {keep_slow_s:g} s or more")
    return " and ".join(said)


def rule_name(rule: RuleLike) -> str:
    """A rule in short, as the metrics have it: "GET /checkout/*"."""
    return f"{rule.method} {rule.path or rule.route}".strip()


def list_values(values: Mapping[str, Any], *, always: Iterable[str] = ()) -> str:
    """For the history of something new: what is not empty, and what is named in `always`."""
    return "; ".join(
        f"{label}: {show(value)}"
        for label, value in values.items()
        if label in always or value not in ("", None, False, 0)
    )


def list_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """For the history of a change: what each value was and is."""
    return "; ".join(
        f"{label}: {show(before.get(label))} → {show(value)}"
        for label, value in after.items()
        if (before.get(label) or None) != (value or None)
    )
