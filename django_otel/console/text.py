"""Numbers, durations and statements as people read them: SI units, and the decimal separator of the language."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any

from django.utils import formats, timezone
from django.utils.html import conditional_escape, format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext

from django_otel.base import guard
from django_otel.base.patterns import lazy_pattern
from django_otel.base.text import visible

_NS_PER_MS = 1_000_000
#: Longer statements are shown as they are: laying them out takes time that grows with them.
_MAX_FORMATTED_SQL = 8_000
_MAX_VALUE = 4_000
#: A quoted text, or a clause of a statement with the space before it.
_CLAUSE = lazy_pattern(
    r"""('(?:[^']|'')*+'|"(?:[^"]|"")*+"|`[^`]*+`)|(?<!\s)\s++((?:(?:left|right|full|inner|cross)\s(?:outer\s)?)?join\b"""
    r"""|(?:from|where|group\sby|order\sby|having|limit|union|values|set|returning)\b)""",
    re.IGNORECASE,
)


def duration(ns: float) -> str:
    """A duration in nanoseconds with the unit that fits: "850 µs", "2.4 ms", "1.25 s", "2 min 3 s"."""
    ms = ns / _NS_PER_MS
    if ms < 1:
        return f"{ns / 1000:.0f} µs"
    if ms < 1000:
        return f"{_digits(ms)} ms"
    seconds = ms / 1000
    if seconds < 60:
        return f"{_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def seconds(value: float) -> str:
    """A duration in seconds, as `duration`."""
    return duration(value * 1e9)


def whole_seconds(value: float) -> str:
    """A time that passes while one looks, in seconds: "8 s", "4 min 12 s"."""
    rounded = max(1, round(value))
    return f"{rounded} s" if rounded < 60 else duration(rounded * 1e9)


def minutes(value: int) -> str:
    """A period in minutes: "30 min", "3 h"."""
    return f"{value} min" if value < 120 or value % 60 else f"{value // 60} h"


def _digits(value: float) -> str:
    """Three digits that matter."""
    if value >= 100:
        return f"{value:.0f}"
    return localized(f"{value:.1f}" if value >= 10 else f"{value:.2f}")


def localized(number: str) -> str:
    """The digits of a number with the decimal separator of the active language."""
    return number.replace(".", str(formats.get_format("DECIMAL_SEPARATOR")))


def count(value: float) -> str:
    """A number of things: "12", "1 250", "3.4 M"."""
    if value >= 10_000_000:
        return localized(f"{value / 1_000_000:.1f} M")
    if value != int(value):
        return _digits(value)
    # A thin space: it does not break and is not a decimal point anywhere.
    return f"{int(value):,}".replace(",", "\u202f")


def share(value: float) -> str:
    """A share from 0 to 1 as a percentage; never 0 % for what happened."""
    percent = value * 100
    if 0 < percent < 0.1:
        return localized("< 0.1 %")
    return localized(f"{percent:.1f} %") if percent < 10 else f"{percent:.0f} %"


def plural(number: float, message: Any) -> str:
    """ "1 query", "3 queries": `message` is an `ngettext_lazy` of texts with `%(count)s` whose number is "n"."""
    whole = int(number) if number == int(number) else int(number) + 1
    return str(message % {"n": whole, "count": count(number)})


def moment(ns: int) -> datetime.datetime:
    """Nanoseconds since the Unix epoch as a point in time."""
    try:
        return datetime.datetime.fromtimestamp(ns / 1e9, tz=datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.datetime.fromtimestamp(0, tz=datetime.UTC)


def iso(at: datetime.datetime) -> str:
    """A point in time as scripts read it."""
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def time_tag(ns: int, kind: str = "datetime") -> SafeString:
    """A `<time>` that a script turns into the viewer's zone; without one it is in the project's zone, and says so.

    `kind` is "datetime", "time" (with milliseconds) or "clock" (hours and minutes).
    """
    at = moment(ns)
    local = timezone.localtime(at)
    shown = {
        "datetime": f"{local:%Y-%m-%d %H:%M:%S}",
        "time": f"{local:%H:%M:%S}.{local.microsecond // 1000:03d}",
        "clock": f"{local:%H:%M}",
    }[kind]
    zone = "" if kind == "clock" else f" {local.tzname() or ''}".rstrip()
    return format_html(
        '<time datetime="{}" data-otel-time="{}">{}{}</time>',
        iso(at), kind, shown, zone,
    )  # fmt: skip


def value(content: object) -> str:
    """The value of an attribute as text, within a length."""
    if isinstance(content, bool):
        return "true" if content else "false"
    if isinstance(content, list | tuple):
        shown = ", ".join(value(item) for item in content)
    elif isinstance(content, Mapping):
        shown = ", ".join(f"{key}: {value(item)}" for key, item in content.items())
    else:
        shown = str(content)
    if len(shown) <= _MAX_VALUE:
        return shown
    return gettext("%(text)s… (%(count)s characters)") % {"text": shown[:_MAX_VALUE], "count": count(len(shown))}


def sql(statement: str) -> SafeString:
    """A statement laid out over lines, its keywords marked; escaped, whatever it is."""
    statement = visible(statement)
    if len(statement) <= _MAX_FORMATTED_SQL:
        with guard.contained("laying out a statement"):
            return _sql(statement)
    return conditional_escape(statement)


def _sql(statement: str) -> SafeString:
    # Django brings it.
    import sqlparse
    from sqlparse import tokens

    laid_out = sqlparse.format(statement, reindent=True, indent_width=2, wrap_after=100)
    parts = []
    for kind, text in sqlparse.lexer.tokenize(laid_out):  # type: ignore[no-untyped-call]
        if kind in tokens.Keyword:
            parts.append(format_html('<b class="otel-keyword">{}</b>', text))
        else:
            parts.append(conditional_escape(text))
    return mark_safe("".join(parts))  # noqa: S308 (each part is escaped)


def sql_lines(statement: str) -> SafeString:
    """A statement with its clauses on lines of their own: a hundredth of the time of `sql`, for lists of them."""
    return conditional_escape(_CLAUSE.sub(lambda found: found[1] or f"\n{found[2]}", visible(statement)))


def one_line(statement: str) -> str:
    """A statement on one line, as a title."""
    return re.sub(r"\s+", " ", statement).strip()


def shorten(line: str, length: int) -> str:
    """The line, cut to so many characters where it is longer, which is seen."""
    return line if len(line) <= length else f"{line[: length - 1].rstrip()}…"


def source_line(attributes: Mapping[str, object]) -> str:
    """Return the place of code, out of `code.*` attributes: "shop/views.py:42 in product_list"; "" if not known."""
    path = attributes.get("code.file.path", attributes.get("code.filepath"))
    if not path:
        return ""
    line = attributes.get("code.line.number", attributes.get("code.lineno"))
    function = attributes.get("code.function.name", attributes.get("code.function"))
    shown = f"{short_path(str(path))}:{line}" if line else short_path(str(path))
    if not function:
        return shown
    return gettext("%(place)s in %(function)s") % {"place": shown, "function": function}


def short_path(path: str) -> str:
    """Return the distinctive end of a path: relative to the project's folder if the file is there."""
    from django.conf import settings

    base = str(getattr(settings, "BASE_DIR", "") or "")
    normal = path.replace("\\", "/")
    if base and normal.startswith(base.replace("\\", "/").rstrip("/") + "/"):
        return normal[len(base.rstrip("/")) + 1 :]
    for marker in ("/site-packages/", "/dist-packages/"):
        if marker in normal:
            return normal.rpartition(marker)[2]
    parts: Sequence[str] = normal.split("/")
    return "/".join(parts[-3:]) if len(parts) > 4 else normal
