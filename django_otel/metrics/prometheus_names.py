"""Prometheus' names, units, labels and numbers, from OpenTelemetry's.

Names, units and labels follow OpenTelemetry's "Prometheus and OpenMetrics Compatibility".
"""

from __future__ import annotations

import base64
import functools
import json
import re
from collections.abc import Iterable, Mapping

from django_otel.metrics.model import Attributes, MetricType

#: UCUM to words: OpenTelemetry "Prometheus and OpenMetrics Compatibility", Metric Metadata.
_UNITS = {
    "d": "days", "h": "hours", "min": "minutes", "s": "seconds", "ms": "milliseconds", "us": "microseconds",
    "ns": "nanoseconds", "By": "bytes", "KiBy": "kibibytes", "MiBy": "mebibytes", "GiBy": "gibibytes",
    "TiBy": "tebibytes", "kBy": "kilobytes", "KBy": "kilobytes", "MBy": "megabytes", "GBy": "gigabytes",
    "TBy": "terabytes", "m": "meters", "V": "volts", "A": "amperes", "J": "joules", "W": "watts", "g": "grams",
    "Cel": "celsius", "Hz": "hertz", "%": "percent",
}  # fmt: skip
#: The denominator of a rate is singular: "m/s" is meters_per_second.
_UNITS_PER = {
    "s": "second", "min": "minute", "m": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year",
}  # fmt: skip
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9:]+")
_NOT_IN_A_LABEL = re.compile(r"[^a-zA-Z0-9]+")
_ANNOTATION = re.compile(r"\{[^}]*\}")

#: Resource attributes that name one process: with several workers each scrape would show another target.
_NOT_IN_TARGET_INFO = frozenset({"service.instance.id", "process.pid", "process.parent_pid"})


@functools.lru_cache(maxsize=256)
def unit_word(unit: str) -> str:
    """The word a UCUM unit adds to a Prometheus name, "" for none.

    Annotations (`{request}`) say nothing about the unit and are dropped; "1"
    is the caller's business, because only gauges become a ratio.
    """
    if unit == "1":
        return ""
    unit = _ANNOTATION.sub("", unit)
    if unit in _UNITS:
        return _UNITS[unit]
    numerator, slash, denominator = unit.partition("/")
    if slash:
        per = _UNITS_PER.get(denominator) or _clean_word(denominator)
        if per:
            counted = _UNITS.get(numerator) or ("" if numerator == "1" else _clean_word(numerator))
            return f"{counted}_per_{per}" if counted else f"per_{per}"
        unit = numerator
    return _UNITS.get(unit) or _clean_word(unit)


def _clean_word(text: str) -> str:
    return _NOT_IN_A_LABEL.sub("_", text).strip("_")


@functools.lru_cache(maxsize=4096)
def family_name(name: str, unit: str, metric_type: MetricType) -> tuple[str, str]:
    """The Prometheus name of a family, without `_total`, and the unit's word if the name ends in it (else "")."""
    clean = _NOT_IN_A_NAME.sub("_", name) or "_"
    if clean[0].isdigit():
        clean = "_" + clean[1:].lstrip("_")
    if metric_type is MetricType.COUNTER:
        clean = clean.removesuffix("_total") or clean
    word = "ratio" if metric_type is MetricType.GAUGE and unit == "1" else unit_word(unit)
    if word and clean != word and not clean.endswith("_" + word):
        clean = f"{clean.rstrip('_')}_{word}"
    elif metric_type is not MetricType.GAUGE and metric_type is not MetricType.UP_DOWN_COUNTER:
        # A suffix follows, and consecutive underscores are one.
        clean = clean.rstrip("_") or clean
    # OpenMetrics: a family with a UNIT must end in "_" and that unit.
    return clean, word if word and clean.endswith("_" + word) else ""


@functools.lru_cache(maxsize=4096)
def family_name_utf8(name: str, unit: str, metric_type: MetricType) -> tuple[str, str]:
    """`family_name` with the characters of OpenTelemetry's name as they are, and the suffixes of unit and counter."""
    clean = printable(name) or "_"
    if metric_type is MetricType.COUNTER:
        clean = _without_suffix(clean, "total")
    word = "ratio" if metric_type is MetricType.GAUGE and unit == "1" else unit_word(unit)
    if word and clean != word:
        clean = f"{_without_suffix(clean, word)}_{word}"
    return clean, word if word and clean.endswith("_" + word) else ""


def _without_suffix(name: str, word: str) -> str:
    """The name without `word` and the mark before it at its end: "a.total" and "a_total" are "a"."""
    rest = name.removesuffix(word)
    return rest[:-1] if rest != name and len(rest) > 1 and not rest[-1].isalnum() else name


_LEGACY_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


def is_legacy(name: str) -> bool:
    """Return whether Prometheus 2 allows the name."""
    return _LEGACY_NAME.fullmatch(name) is not None


@functools.lru_cache(maxsize=4096)
def escape_name(name: str, escaping: str) -> str:
    """Return a name as a scraper wants it ("allow-utf-8", "underscores", "dots", "values").

    Source: Prometheus, "Escaping schemes" (`EscapeName` of prometheus/common).
    """
    if escaping == "allow-utf-8" or (escaping != "dots" and is_legacy(name)):
        return name
    escaped = ["U__"] if escaping == "values" else []
    for place, character in enumerate(name):
        is_valid = character.isascii() and (
            character.isalpha() or character in "_:" or (character.isdigit() and place > 0)
        )
        if escaping == "underscores":
            escaped.append(character if is_valid else "_")
        elif character == "_":
            escaped.append("__")
        elif escaping == "dots":
            escaped.append("_dot_" if character == "." else character if is_valid else "__")
        else:
            escaped.append(character if is_valid else f"_{ord(character):x}_")
    return "".join(escaped)


class Naming:
    """How names are written on a page: by Prometheus' old rules, or OpenTelemetry's names in an escaping."""

    def __init__(self, escaping: str = "") -> None:
        #: "" is the specification's translation to names of the old rules.
        self.escaping = escaping

    def family(self, name: str, unit: str, metric_type: MetricType) -> tuple[str, str]:
        """Return the name without `_total`, and the unit's word where it ends in that."""
        if not self.escaping:
            return family_name(name, unit, metric_type)
        found, word = family_name_utf8(name, unit, metric_type)
        return escape_name(found, self.escaping), word if self.escaping == "allow-utf-8" else ""

    def labels(self, attributes: Attributes, *, is_histogram: bool) -> bytes:
        """Return the labels of a point as they are written."""
        if not self.escaping:
            return labels_of(attributes, is_histogram=is_histogram)
        found: dict[str, str] = {}
        for key, value in attributes:
            name = escape_name(printable(key) or "_", self.escaping)
            if is_histogram and name == "le":
                name = "exported_le"
            text = label_text(value)
            found[name] = f"{found[name]};{text}" if name in found else text
        return ",".join(
            f'{quote_label(name)}="{escape(text)}"' for name, text in sorted(found.items()) if text
        ).encode()  # fmt: skip


def quote_label(name: str) -> str:
    """A label's name, in quotes where the old rules do not allow it."""
    return name if is_legacy(name) and ":" not in name else f'"{escape(name)}"'


@functools.lru_cache(maxsize=4096)
def label_name(key: str) -> str:
    """The Prometheus label of an attribute key."""
    clean = _NOT_IN_A_LABEL.sub("_", key) or "_"
    return "_" + clean[1:].lstrip("_") if clean[0].isdigit() else clean


def printable(text: str) -> str:
    # A lone surrogate cannot be written as UTF-8, and NUL ends the input for Prometheus' lexer.
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}") if "\0" in text else text


def label_text(value: object) -> str:
    """The text of an attribute's value: OpenTelemetry "AnyValue representation for non-OTLP protocols"."""
    if isinstance(value, str):
        return printable(str(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return printable(json.dumps(value, default=str))


def label_pairs(attributes: Iterable[tuple[str, object]], *, is_histogram: bool = False) -> list[tuple[str, str]]:
    """The labels of a point, sorted by name, so that equal label sets are equal lists.

    Keys that become one label are joined by ";" in the order of the keys. A
    label without a value is the same as no label to Prometheus and is left
    out, or two series would be one. On a histogram `le` is the bucket's, so an
    attribute of that name is shown as `exported_le`, Prometheus' own way out.
    """
    labels: dict[str, str] = {}
    previous_key = ""
    for key, value in attributes:
        if key < previous_key:
            return label_pairs(sorted(attributes, key=_first), is_histogram=is_histogram)
        previous_key = key
        name = label_name(key)
        if is_histogram and name == "le":
            name = "exported_le"
        text = label_text(value)
        labels[name] = f"{labels[name]};{text}" if name in labels else text
    return sorted((name, text) for name, text in labels.items() if text)


def _first(item: tuple[str, object]) -> str:
    return item[0]


def target_attributes(resource_attributes: Mapping[str, object]) -> list[tuple[str, object]]:
    """Return the labels of `target_info` for a resource."""
    return [(key, resource_attributes[key]) for key in sorted(resource_attributes) if key not in _NOT_IN_TARGET_INFO]


def format_labels(pairs: Iterable[tuple[str, str]]) -> bytes:
    """`a="b",c="d"`, escaped, without the braces."""
    return ",".join([f'{name}="{escape(text)}"' for name, text in pairs]).encode()


@functools.lru_cache(maxsize=1024)
def _label_template(keys: tuple[str, ...], is_histogram: bool) -> str | None:
    """The labels of a point with these keys, `%s` for the values; None when the order or the number is another."""
    names = ["exported_le" if is_histogram and key == "le" else label_name(key) for key in keys]
    if list(keys) != sorted(keys) or names != sorted(set(names)):
        return None
    return ",".join([f'{name}="%s"' for name in names])


@functools.lru_cache(maxsize=4096)
def _text_in_label(value: str) -> str:
    return escape(printable(value))


def labels_of(attributes: Attributes, *, is_histogram: bool) -> bytes:
    """`format_labels(label_pairs(...))`, faster for the usual point: the first scrape makes thousands."""
    template = _label_template(tuple([key for key, _ in attributes]), is_histogram)
    texts = [_text_in_label(value) if value.__class__ is str else escape(label_text(value)) for _, value in attributes]
    if template is None or not all(texts):
        return format_labels(label_pairs(attributes, is_histogram=is_histogram))
    return (template % tuple(texts)).encode()


def escape(text: str) -> str:
    if "\\" in text or '"' in text or "\n" in text:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return text


_EXACT_INTEGER = 2**53
_NOT_FINITE = {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}


def format_value(value: float) -> str:
    """A sample's value: whole numbers without a point, others in the shortest form that reads back the same."""
    if value.__class__ is not float:
        if value.__class__ is int and -_EXACT_INTEGER < value < _EXACT_INTEGER:
            return str(value)
        try:
            value = float(value)
        except OverflowError:
            # Go's ParseFloat fails on it, and with it the scrape.
            return "+Inf" if value > 0 else "-Inf"
    if value.is_integer() and -1e15 < value < 1e15:
        return str(int(value))
    text = repr(value)
    return _NOT_FINITE.get(text, text)


def format_bound(bound: float) -> str:
    """A bucket's `le`, in the canonical form of OpenMetrics ("Considerations: Canonical Numbers")."""
    text = repr(float(bound))
    if text in _NOT_FINITE:
        return _NOT_FINITE[text]
    whole, point, rest = text.lstrip("-").partition(".")
    if not point or "e" in rest or len(whole) <= 6:
        return text
    digits = (whole + rest).rstrip("0")
    mantissa = f"{digits[0]}.{digits[1:]}" if len(digits) > 1 else digits
    return f"{'-' if bound < 0 else ''}{mantissa}e+{len(whole) - 1:02d}"
