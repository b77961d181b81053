"""The sampling policy in words: for the admin, its history, and the command line."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from django.utils import formats, timezone
from django.utils.translation import gettext, gettext_lazy, gettext_noop, ngettext, pgettext

from django_otel.base.text import visible

if TYPE_CHECKING:
    from django_otel.config.schema import Config

#: Durations to choose from: (value of the form, seconds, words).
DURATIONS = (
    ("5m", 300, gettext_lazy("5 minutes")),
    ("15m", 900, gettext_lazy("15 minutes")),
    ("1h", 3600, gettext_lazy("1 hour")),
    ("4h", 14_400, gettext_lazy("4 hours")),
    ("24h", 86_400, gettext_lazy("24 hours")),
)
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST_S = 366 * 86_400


#: Why the rows do not apply. English in the log and between processes; pages translate them (`translate_fault`).
FAULTS = {
    "unreadable": gettext_noop(
        'The sampling policy could not be read from database "%(database)s" (%(error)s); the current policy '
        "stays in effect, and reading is retried."
    ),
    "faulty": gettext_noop(
        "The sampling policy in the database is ignored: %(reason)s The settings apply until it is saved again in the "
        "admin."
    ),
    "missing": gettext_noop(
        'The table of the sampling policy is missing in database "%(database)s"; the settings apply. Run: %(command)s'
    ),
}


if TYPE_CHECKING:

    class RuleLike(Protocol):
        """Parts of a rule that are put into words or matched; either of path and route is empty."""

        @property
        def path(self) -> str: ...
        @property
        def route(self) -> str: ...
        @property
        def method(self) -> str: ...


def level_for(level: str, lasts_s: float, note: str) -> str:
    """Return the history's text on a log level: level, duration, and reason."""
    said = gettext("Level %(level)s for %(duration)s. %(note)s")
    return (said % {"level": level, "duration": span(lasts_s), "note": note}).strip()


def why_no_level(config: Config) -> str:
    """Return why a log level that is set would have no effect under these settings; "" where it would."""
    if not config.enabled:
        return gettext("Telemetry is off (ENABLED), so no process applies a log level.")
    if not config.sampling.live:
        return gettext("SAMPLING.LIVE is False, so no process applies a log level.")
    return ""


def parse_duration_s(text: str) -> int:
    """`"90s"`, `"15m"`, `"1h30m"`, `"2d"` in seconds; a number without a unit is refused.

    Errors: `ValueError`; the text says what fits.
    """
    found = re.fullmatch(r"(?:\d+[smhd])+", text.strip())
    total_s = sum(int(number) * _UNITS_S[unit] for number, unit in re.findall(r"(\d+)([smhd])", text)) if found else 0
    if not 0 < total_s <= _LONGEST_S:
        raise ValueError(
            gettext("%(text)s is not a duration; write it like 90s, 15m, 1h30m or 2d (at most 366d)")
            % {"text": repr(text)}
        )
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
    values = {"text": repr(text), "value": f"{value:g}", "ratio": f"{value / 100:g}"}
    if 1.0 < value <= 100.0:
        message = gettext(
            "%(text)s is not a ratio; write a number from 0 to 1, or a percentage such as 10%%; "
            "for %(value)s %% write %(ratio)s or %(value)s%%"
        )
    else:
        message = gettext("%(text)s is not a ratio; write a number from 0 to 1, or a percentage such as 10%%")
    raise ValueError(message % values)


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
        return gettext("yes") if value else gettext("no")
    if isinstance(value, float):
        return f"{value:.10g}"
    return pgettext("an empty value", "none") if value is None or value == "" else visible(str(value))


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
    if left_s <= 0:
        return gettext("%(moment)s (over)") % {"moment": at(expires_at_s)}
    return gettext("%(moment)s (in %(duration)s)") % {"moment": at(expires_at_s), "duration": span(left_s)}


def at(epoch_s: float) -> str:
    """A moment with its time zone."""
    return f"{show(moment(epoch_s))} {timezone.localtime(moment(epoch_s)).tzname()}"


_VARIABLE = "environment"
_DEFAULT_VARIABLE = "OTEL_TRACES_SAMPLER_ARG"


def _variable(name: str) -> str | None:
    """The environment variable that `Config.sources` names; None for another source."""
    return (name.removeprefix(_VARIABLE).strip() or _DEFAULT_VARIABLE) if name.startswith(_VARIABLE) else None


def source(name: str) -> str:
    """A sentence that says where the ratio came from; `name` as `Config.sources` has it."""
    if variable := _variable(name):
        return gettext("Set by the environment variable %(name)s.") % {"name": variable}
    if name == "settings":
        return gettext('Set by the settings, OTEL["SAMPLING"]["RATIO"].')
    if name == "default":
        return gettext('Set by the default of OTEL["SAMPLING"]["RATIO"].')
    return gettext("Set by %(name)s.") % {"name": name}


def sourced(ratio: float, name: str) -> str:
    """A ratio and where it comes from: "10 %, from the environment variable OTEL_TRACES_SAMPLER_ARG"."""
    values = {"percent": percent(ratio), "name": _variable(name) or name}
    if _variable(name):
        return gettext("%(percent)s, from the environment variable %(name)s") % values
    if name == "settings":
        return gettext('%(percent)s, from the settings, OTEL["SAMPLING"]["RATIO"]') % values
    if name == "default":
        return gettext('%(percent)s, from the default of OTEL["SAMPLING"]["RATIO"]') % values
    return gettext("%(percent)s, from %(name)s") % values


def plural_number(value: float) -> int:
    """The number that `ngettext` takes for `value`; for a fraction one with the most general form in every language."""
    return int(value) if value == int(value) else 100


def limit(max_per_second: float) -> str:
    """A rate limit."""
    message = ngettext(
        "%(count)s trace per second and server",
        "%(count)s traces per second and server",
        plural_number(max_per_second),
    )
    return message % {"count": f"{max_per_second:g}"}


def promise(refresh_s: float) -> str:
    """Return when a change takes effect, as the page words it."""
    message = ngettext(
        "Every worker process applies a change saved here within %(seconds)s second, without a restart.",
        "Every worker process applies a change saved here within %(seconds)s seconds, without a restart.",
        plural_number(refresh_s),
    )
    return message % {"seconds": f"{refresh_s:g}"}


def kept(keep_errors: bool, keep_slow_s: float | None) -> str:
    """Return a text on the traces that are kept at any ratio; empty without any."""
    values = {"seconds": "" if keep_slow_s is None else f"{keep_slow_s:g}"}
    if keep_errors and keep_slow_s is not None:
        return gettext("errors and requests of %(seconds)s s or more") % values
    if keep_slow_s is not None:
        return gettext("requests of %(seconds)s s or more") % values
    return gettext("errors") if keep_errors else ""


def rule_name(rule: RuleLike) -> str:
    """A rule in short, as the metrics have it: "GET /checkout/*"."""
    return visible(f"{rule.method} {rule.path or rule.route}".strip())


def list_values(values: Mapping[str, object], *, always: Iterable[str] = ()) -> str:
    """For the history of something new: values that are not empty, and those named in `always`."""
    return "; ".join(
        f"{label}: {show(value)}"
        for label, value in values.items()
        if label in always or value not in ("", None, False, 0)
    )


def list_changes(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    """For the history of a change: old and new value of each field."""
    return "; ".join(
        f"{label}: {show(before.get(label))} → {show(value)}"
        for label, value in after.items()
        if (before.get(label) or None) != (value or None)
    )


def translate_fault(said: str) -> str:
    """Return the fault of a follower (`FAULTS`) in the language of the page; another text as it is."""
    for template in FAULTS.values():
        pattern = re.sub(r"%\\\((\w+)\\\)s", r"(?P<\1>.*)", re.escape(template))
        if found := re.fullmatch(pattern, said, re.DOTALL):
            return gettext(template) % found.groupdict()
    return said
