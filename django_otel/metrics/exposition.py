"""From families of numbers to the text that Prometheus scrapes.

Names, units, labels and exemplars follow OpenTelemetry's "Prometheus and
OpenMetrics Compatibility". Two things differ on purpose: no `otel_scope_*`
labels (they multiply series and nobody asked for them), and exponential
histograms are shown with classic buckets (the text formats have no other).

The way through: `build_groups` puts the points of every meter that share a
Prometheus name under one roof, `Page` writes the groups, `render` does both.
A point or family that cannot be shown is left out and reported; the page is
always whole.
"""

from __future__ import annotations

import base64
import bisect
import enum
import functools
import gzip
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from django_otel.base import guard
from django_otel.metrics.model import (
    OWN_SCOPE,
    Attributes,
    Exemplar,
    ExponentialValue,
    Family,
    HistogramValue,
    Kind,
    Point,
)

# --- Names and units ---------------------------------------------------------------------------------------------

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

#: As much of an Accept header is read, in characters; a scraper sends some 300.
_MAX_ACCEPT = 4096
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9:]+")
_NOT_IN_A_LABEL = re.compile(r"[^a-zA-Z0-9]+")
_ANNOTATION = re.compile(r"\{[^}]*\}")

#: Resource attributes that name one process: with several workers each scrape would show another target.
_NOT_IN_TARGET_INFO = frozenset({"service.instance.id", "process.pid", "process.parent_pid"})

_TYPES = {
    Kind.COUNTER: "counter",
    Kind.UP_DOWN_COUNTER: "gauge",
    Kind.GAUGE: "gauge",
    Kind.HISTOGRAM: "histogram",
    Kind.EXPONENTIAL_HISTOGRAM: "histogram",
}
#: What a family's samples may be called, after its name (OpenMetrics 1.0, "Suffixes").
SUFFIXES = {
    "counter": ("", "_total", "_created"),
    "gauge": ("",),
    "histogram": ("", "_bucket", "_sum", "_count", "_created"),
    "info": ("", "_info"),
}


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
def family_name(name: str, unit: str, kind: Kind) -> tuple[str, str]:
    """The Prometheus name of a family, without `_total`, and the unit's word if the name ends in it (else "")."""
    clean = _NOT_IN_A_NAME.sub("_", name) or "_"
    if clean[0].isdigit():
        clean = "_" + clean[1:].lstrip("_")
    if kind is Kind.COUNTER:
        clean = clean.removesuffix("_total") or clean
    word = "ratio" if kind is Kind.GAUGE and unit == "1" else unit_word(unit)
    if word and clean != word and not clean.endswith("_" + word):
        clean = f"{clean.rstrip('_')}_{word}"
    elif kind is not Kind.GAUGE and kind is not Kind.UP_DOWN_COUNTER:
        # A suffix follows, and consecutive underscores are one.
        clean = clean.rstrip("_") or clean
    # OpenMetrics: a family with a UNIT must end in "_" and that unit.
    return clean, word if word and clean.endswith("_" + word) else ""


# --- Labels ------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def label_name(key: str) -> str:
    """The Prometheus label of an attribute key."""
    clean = _NOT_IN_A_LABEL.sub("_", key) or "_"
    return "_" + clean[1:].lstrip("_") if clean[0].isdigit() else clean


def _printable(text: str) -> str:
    # A lone surrogate cannot be written as UTF-8, and NUL ends the input for Prometheus' lexer.
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}") if "\0" in text else text


def label_text(value: object) -> str:
    """The text of an attribute's value: OpenTelemetry "AnyValue representation for non-OTLP protocols"."""
    if isinstance(value, str):
        return _printable(str(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return _printable(json.dumps(value, default=str))


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
    """What `target_info` shows of a resource."""
    return [(key, resource_attributes[key]) for key in sorted(resource_attributes) if key not in _NOT_IN_TARGET_INFO]


def format_labels(pairs: Iterable[tuple[str, str]]) -> bytes:
    """`a="b",c="d"`, escaped, without the braces."""
    return ",".join([f'{name}="{_escape(text)}"' for name, text in pairs]).encode()


@functools.lru_cache(maxsize=1024)
def _label_template(keys: tuple[str, ...], is_histogram: bool) -> str | None:
    """The labels of a point with these keys, `%s` for the values; None when the order or the number is another."""
    names = ["exported_le" if is_histogram and key == "le" else label_name(key) for key in keys]
    if list(keys) != sorted(keys) or names != sorted(set(names)):
        return None
    return ",".join([f'{name}="%s"' for name in names])


@functools.lru_cache(maxsize=4096)
def _text_in_label(value: str) -> str:
    return _escape(_printable(value))


def _labels_of(attributes: Attributes, *, is_histogram: bool) -> bytes:
    """`format_labels(label_pairs(...))`, faster for the usual point: the first scrape makes thousands."""
    template = _label_template(tuple([key for key, _ in attributes]), is_histogram)
    texts = [_text_in_label(value) if value.__class__ is str else _escape(label_text(value)) for _, value in attributes]
    if template is None or not all(texts):
        return format_labels(label_pairs(attributes, is_histogram=is_histogram))
    return (template % tuple(texts)).encode()


def _escape(text: str) -> str:
    if "\\" in text or '"' in text or "\n" in text:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return text


# --- Numbers -----------------------------------------------------------------------------------------------------

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


# --- Groups: every point that has one Prometheus name -------------------------------------------------------------


@dataclass(slots=True)
class Group:
    """One family of the page, made of the families of any number of meters.

    `name` is without `_total`; `series` maps the formatted labels to the
    point, in which an exponential histogram is already a `HistogramValue`.
    """

    name: str
    type: str
    unit: str
    help: str
    #: Whether points with one label set are added (sums, distributions) or the last one stays (gauges).
    is_additive: bool = True
    series: dict[bytes, Point] = field(default_factory=dict)


class Claims:
    """Which group may use which sample name, so that no two families of a page meet."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}

    def take(self, name: str, suffixes: Iterable[str]) -> str | None:
        """Claim `name` with each suffix; when one is taken nothing is claimed and its owner's name returned."""
        wanted = [name + suffix for suffix in suffixes]
        for sample_name in wanted:
            if sample_name in self._owners:
                return self._owners[sample_name]
        self._owners.update(dict.fromkeys(wanted, name))
        return None


#: Label strings of the last rendering, per family, by the identity of the attributes: (attributes, labels). The tuple
#: is kept with its string, so an identity cannot be another tuple's; equality would not do, since 1 == 1.0 == True.
_LabelCache = dict[str, dict[int, tuple[Attributes, bytes]]]
_MAX_CACHED_LABELS = 50_000
_label_cache: _LabelCache = {}


def build_groups(families: Iterable[Family], claims: Claims | None = None) -> list[Group]:
    """Sort the points of all families under their Prometheus names.

    Families are taken in an order of their own (this package's first, then by
    name and scope), so that each worker and each scrape decides the same way:
    when two differ in type, the later is left out with one warning; of several
    descriptions the first is shown. Equal label sets become one series:
    counters, up-down counters and histograms add, of gauges the last stays.

    Errors: none; a family or point that cannot be shown is reported and left out.
    """
    global _label_cache
    claims = claims if claims is not None else Claims()
    known, fresh = _label_cache, dict[str, dict[int, tuple[Attributes, bytes]]]()
    budget = _MAX_CACHED_LABELS
    groups: dict[str, Group] = {}
    for family in sorted(families, key=_order):
        place = f"the exposition of {family.name}"
        try:
            group = _group_of(family, groups, claims)
            if group is None:
                continue
            points = family.points
            if family.kind is Kind.EXPONENTIAL_HISTOGRAM:
                points = _with_classic_buckets(points, place)
            labels_now = fresh.setdefault(group.name, {}) if budget > 0 else {}
            _add_points(group, points, known.get(group.name, {}), labels_now, place)
            budget -= len(points)
        except Exception as error:
            guard.report(place, error)
    _label_cache = fresh
    return list(groups.values())


def _order(family: Family) -> tuple[bool, str, str, str, str, str, str]:
    scope = family.scope
    return (
        scope != OWN_SCOPE,
        family.name,
        scope.name,
        scope.version,
        family.kind.value,
        family.unit,
        family.description,
    )


def _group_of(family: Family, groups: dict[str, Group], claims: Claims) -> Group | None:
    name, unit = family_name(family.name, family.unit, family.kind)
    type_ = _TYPES[family.kind]
    group = groups.get(name)
    if group is not None and group.type == type_:
        group.help = group.help or _clean_help(family.description)
        group.unit = group.unit or unit
        group.is_additive = group.is_additive and family.kind is not Kind.GAUGE
        return group
    owner = group.name if group is not None else claims.take(name, SUFFIXES[type_])
    if owner is not None:
        guard.warn_once(
            f"exposition.conflict.{name}.{type_}",
            "The metric %s (%s, from %s) is not on the Prometheus page: its name there, %s, meets that of another "
            "metric, %s. Rename one of the two.",
            family.name,
            family.kind.value,
            family.scope.name,
            name,
            owner,
        )
        return None
    group = Group(name, type_, unit, _clean_help(family.description), is_additive=family.kind is not Kind.GAUGE)
    groups[name] = group
    return group


def _clean_help(description: str) -> str:
    return _printable(description.strip())


def _add_points(
    group: Group,
    points: Iterable[Point],
    known: Mapping[int, tuple[Attributes, bytes]],
    fresh: dict[int, tuple[Attributes, bytes]],
    place: str,
) -> None:
    series = group.series
    is_histogram = group.type == "histogram"
    for point in points:
        try:
            attributes = point.attributes
            key = id(attributes)
            entry = known.get(key)
            if entry is None or entry[0] is not attributes:
                entry = (attributes, _labels_of(attributes, is_histogram=is_histogram))
            fresh[key] = entry
            labels = entry[1]
            if labels in series:
                point = _merge(series[labels], point, is_additive=group.is_additive)
            series[labels] = point
        except Exception as error:
            guard.report(place, error)


def _merge(first: Point, second: Point, *, is_additive: bool) -> Point:
    if not is_additive:
        return second
    value: float | HistogramValue
    if isinstance(first.value, HistogramValue) and isinstance(second.value, HistogramValue):
        value = _merge_histograms(first.value, second.value)
    elif isinstance(first.value, HistogramValue | ExponentialValue) or isinstance(
        second.value, HistogramValue | ExponentialValue
    ):
        raise TypeError("a number and a distribution cannot be added")
    else:
        value = first.value + second.value
    return Point(first.attributes, value, (*first.exemplars, *second.exemplars), first.start_time_unix_nano)


def _merge_histograms(first: HistogramValue, second: HistogramValue) -> HistogramValue:
    bounds = first.bounds
    if bounds != second.bounds:
        # Counts up to a bound that both have are exact; anything finer would be a guess.
        bounds = tuple(bound for bound in bounds if bound in set(second.bounds))
        first, second = _coarsen(first, bounds), _coarsen(second, bounds)
    buckets = [a + b for a, b in zip(first.buckets, second.buckets, strict=True)]
    return HistogramValue(bounds, buckets, first.sum + second.sum)


def _coarsen(value: HistogramValue, bounds: tuple[float, ...]) -> HistogramValue:
    buckets = [0.0] * (len(bounds) + 1)
    for bound, count in zip((*value.bounds, math.inf), value.buckets, strict=True):
        buckets[bisect.bisect_left(bounds, bound)] += count
    return HistogramValue(bounds, buckets, value.sum)


# --- Exponential histograms --------------------------------------------------------------------------------------

#: Finest step of the classic buckets: 2**(1/4), 19 %. Finer is more series than a quantile is worth.
_MAX_SCALE = 2
#: Most buckets of a side.
_MAX_BUCKETS = 24


def _with_classic_buckets(points: Sequence[Point], place: str) -> list[Point]:
    """Give exponential histograms explicit buckets, the same ones for every point of the family.

    The same, or `sum by (le)` over the series would be wrong. The bounds are
    those of the histogram's own buckets at a coarser scale; a bound of a
    coarser scale is one of every finer scale, so when the range grows, series
    end but none changes its meaning.
    """
    scale = _MAX_SCALE
    sides: list[tuple[int, int, int]] = []
    usable: list[Point] = []
    for point in points:
        value = point.value
        if isinstance(value, ExponentialValue):
            used = [
                (value.scale, value.positive_offset + first, value.positive_offset + last)
                for first, last in _used(value.positive)
            ] + [
                (value.scale, value.negative_offset + first, value.negative_offset + last)
                for first, last in _used(value.negative)
            ]
            scale = min(scale, value.scale)
            sides += used
        usable.append(point)
    if sides:
        while True:
            low = min(_rescale(first, from_scale, scale) for from_scale, first, _ in sides)
            high = max(_rescale(last, from_scale, scale) for from_scale, _, last in sides)
            if high - low < _MAX_BUCKETS:
                break
            scale -= 1
        magnitudes = [_bound(index, scale) for index in range(low, high + 2)]
    else:
        magnitudes = []
    has_negative = any(isinstance(p.value, ExponentialValue) and any(p.value.negative) for p in usable)
    has_zero = any(isinstance(p.value, ExponentialValue) and p.value.zero_count for p in usable)
    negative = [-magnitude for magnitude in reversed(magnitudes)] if has_negative else []
    zero = [0.0] if has_negative or has_zero else []
    # Beyond the range of a float a bound is 0 or infinity; the set leaves one of each at most.
    bounds = tuple(sorted({b for b in (*negative, *zero, *magnitudes) if math.isfinite(b)}))
    converted: list[Point] = []
    for point in usable:
        try:
            value = point.value
            if isinstance(value, ExponentialValue):
                classic = _to_classic(value, bounds, scale)
                point = Point(point.attributes, classic, point.exemplars, point.start_time_unix_nano)
            converted.append(point)
        except Exception as error:
            guard.report(place, error)
    return converted


def _used(counts: Sequence[int]) -> list[tuple[int, int]]:
    """The first and last index that counted anything, as a list of one pair or none."""
    used = [index for index, count in enumerate(counts) if count]
    return [(used[0], used[-1])] if used else []


def _rescale(index: int, from_scale: int, to_scale: int) -> int:
    """The bucket at a coarser scale that holds bucket `index` (data model, "Exponential Scale")."""
    return index >> (from_scale - to_scale)


def _bound(index: int, scale: int) -> float:
    """The lower bound of bucket `index`: 2**(index * 2**-scale)."""
    try:
        return float(2.0 ** math.ldexp(index, -scale))
    except OverflowError:
        return math.inf if index > 0 else 0.0


def _to_classic(value: ExponentialValue, bounds: tuple[float, ...], scale: int) -> HistogramValue:
    buckets = [0.0] * (len(bounds) + 1)
    for index, count in enumerate(value.negative):
        if count:
            upper = -_bound(_rescale(value.negative_offset + index, value.scale, scale), scale)
            buckets[bisect.bisect_left(bounds, upper)] += count
    if value.zero_count:
        buckets[bisect.bisect_left(bounds, 0.0)] += value.zero_count
    for index, count in enumerate(value.positive):
        if count:
            upper = _bound(_rescale(value.positive_offset + index, value.scale, scale) + 1, scale)
            buckets[bisect.bisect_left(bounds, upper)] += count
    return HistogramValue(bounds, buckets, value.sum)


# --- The page ----------------------------------------------------------------------------------------------------

# Stands for the labels in a histogram's skeleton; labels never hold a NUL (`_printable`).
_INNER = "\0"
_INNER_BYTES = _INNER.encode()


def check_bounds(bounds: tuple[float, ...]) -> None:
    """Errors: `ValueError` when the bounds are not finite and ascending: Prometheus would reject the whole page."""
    if not all(map(math.isfinite, bounds)) or any(a >= b for a, b in itertools.pairwise(bounds)):
        raise ValueError(f"bucket bounds must be finite and ascending: {bounds!r}")


def has_sum(value: HistogramValue) -> bool:
    """Whether sum and count are shown: with buckets below zero the sum can fall, and OpenMetrics forbids it."""
    return not value.bounds or value.bounds[0] >= 0


@functools.lru_cache(maxsize=512)
def _histogram_skeleton(name: str, bounds: tuple[float, ...], shows_sum: bool, has_labels: bool) -> bytes:
    """Every line of a series: `%d` for a bucket's count, `%b` and `%d` for sum and count, a NUL for the labels.

    Filling the numbers in first and the labels after, in bytes and in one go,
    was the fastest of the ways measured, and keeps a skeleton per family
    instead of one per series.

    Errors: `ValueError` when the bounds are not finite and ascending.
    """
    check_bounds(bounds)
    escaped = [*(format_bound(bound) for bound in bounds), "+Inf"]
    before = _INNER + "," if has_labels else ""
    braces = f"{{{_INNER}}}" if has_labels else ""
    lines = [f'{name}_bucket{{{before}le="{bound}"}} %d\n' for bound in escaped]
    if shows_sum:
        lines.append(f"{name}_sum{braces} %b\n{name}_count{braces} %d\n")
    return "".join(lines).encode()


class Page:
    """A page being written, in one of the two text formats."""

    def __init__(self, *, openmetrics: bool, exemplars: bool = True) -> None:
        self.openmetrics = openmetrics
        self.claims = Claims()
        self._exemplars = exemplars and openmetrics
        # One growing buffer, handed out without a copy: the page of many series is megabytes.
        self._out = io.BytesIO()

    def write(self, text: bytes) -> None:
        """Append whole lines that are valid in the page's format."""
        self._out.write(text)

    def finish(self) -> bytes:
        if self.openmetrics:
            self._out.write(b"# EOF\n")
        return self._out.getvalue()

    def add_target_info(self, resource_attributes: Mapping[str, object]) -> None:
        """Write the resource, once, without what names one process of many."""
        # Claimed in any case: a metric of that name would pass for the resource.
        self.claims.take("target", SUFFIXES["info"])
        with guard.contained("the exposition of target_info"):
            labels = format_labels(label_pairs(target_attributes(resource_attributes)))
            if labels:
                self._write_metadata("target", "info", "", "Target metadata")
                self._out.write(b"target_info{%b} 1\n" % labels)

    def add_groups(self, groups: Iterable[Group]) -> None:
        """Write families. One that fails leaves nothing behind."""
        for group in groups:
            start = self._out.tell()
            try:
                self._write_metadata(group.name, group.type, group.unit, group.help)
                after_metadata = self._out.tell()
                if group.type == "histogram":
                    self._write_histograms(group)
                else:
                    self._write_numbers(group)
                is_empty = self._out.tell() == after_metadata
            except Exception as error:
                guard.report(f"the exposition of {group.name}", error)
                is_empty = True
            if is_empty:
                self._out.seek(start)
                self._out.truncate()

    def _write_metadata(self, name: str, type_: str, unit: str, help_: str) -> None:
        lines = ""
        if self.openmetrics:
            lines = f"# TYPE {name} {type_}\n"
            if unit:
                lines += f"# UNIT {name} {unit}\n"
            if help_:
                lines += f"# HELP {name} {_escape(help_)}\n"
        else:
            # The older format has no info type, and its families bear the name of their samples.
            name += {"counter": "_total", "info": "_info"}.get(type_, "")
            if help_:
                escaped = help_.replace("\\", "\\\\").replace("\n", "\\n")
                lines = f"# HELP {name} {escaped}\n"
            lines += f"# TYPE {name} {'gauge' if type_ == 'info' else type_}\n"
        self._out.write(lines.encode())

    def _write_numbers(self, group: Group) -> None:
        write = self._out.write
        is_counter = group.type == "counter"
        name = (group.name + "_total" if is_counter else group.name).encode()
        place = f"the exposition of {group.name}"
        for labels, point in group.series.items():
            try:
                value = point.value
                if isinstance(value, HistogramValue | ExponentialValue):
                    raise TypeError("a distribution where a number belongs")
                if is_counter and self.openmetrics and not value >= 0:
                    # OpenMetrics forbids it (NaN, or an observable counter gone wrong); the older format shows it.
                    raise ValueError("a counter that is not a number of zero or more")
                text = format_value(value)
                if is_counter and self._exemplars:
                    text += _exemplar_text(newest_exemplar(point.exemplars))
                write(
                    (b"%b{%b} %b\n" % (name, labels, text.encode())) if labels else b"%b %b\n" % (name, text.encode())
                )
            except Exception as error:
                guard.report(place, error)

    def _write_histograms(self, group: Group) -> None:
        write = self._out.write
        name = group.name
        place = f"the exposition of {name}"
        accumulate = itertools.accumulate
        bounds: tuple[float, ...] | None = None
        skeleton = b""
        shows_sum = True
        for labels, point in group.series.items():
            try:
                value = point.value
                if value.__class__ is not HistogramValue:
                    raise TypeError("not a distribution")
                if value.bounds is not bounds:
                    bounds = None
                    shows_sum = has_sum(value)
                    skeleton = _histogram_skeleton(name, value.bounds, shows_sum, True)
                    bounds = value.bounds
                buckets, total = value.buckets, value.sum
                # `x != x` is NaN, which OpenMetrics does not have as a sum; a count without a sum neither.
                if not labels or total != total:
                    shows = shows_sum and not (self.openmetrics and total != total)
                    lines = _histogram_skeleton(name, value.bounds, shows, bool(labels))
                else:
                    shows, lines = shows_sum, skeleton
                if shows:
                    *counts, count = accumulate(buckets)
                    text = lines % (*counts, count, format_value(total).encode(), count)
                else:
                    text = lines % (*accumulate(buckets),)
                text = text.replace(_INNER_BYTES, labels)
                if self._exemplars and point.exemplars:
                    text = _with_exemplars(text, value.bounds, point.exemplars)
                write(text)
            except Exception as error:
                guard.report(place, error)


def _time(exemplar: Exemplar) -> float:
    return exemplar.time_unix_s


def is_showable(exemplar: Exemplar) -> bool:
    """Whether the exemplar leads to a span and both formats can hold its numbers."""
    return (
        0 < exemplar.trace_id < 1 << 128
        and 0 < exemplar.span_id < 1 << 64
        and math.isfinite(exemplar.value)
        and math.isfinite(exemplar.time_unix_s)
    )


def exemplar_labels(exemplar: Exemplar) -> dict[str, str]:
    """63 of the 128 characters that OpenMetrics allows."""
    return {"trace_id": f"{exemplar.trace_id:032x}", "span_id": f"{exemplar.span_id:016x}"}


def newest_exemplar(exemplars: Iterable[Exemplar]) -> Exemplar | None:
    return max(filter(is_showable, exemplars), key=_time, default=None)


def exemplars_by_bucket(bounds: tuple[float, ...], exemplars: Iterable[Exemplar]) -> dict[int, Exemplar]:
    """The newest exemplar of each bucket that has one."""
    newest: dict[int, Exemplar] = {}
    for exemplar in sorted(filter(is_showable, exemplars), key=_time):
        newest[bisect.bisect_left(bounds, exemplar.value)] = exemplar
    return newest


def _exemplar_text(exemplar: Exemplar | None) -> str:
    if exemplar is None:
        return ""
    labels = ",".join(f'{name}="{text}"' for name, text in exemplar_labels(exemplar).items())
    return f" # {{{labels}}} {format_value(exemplar.value)} {exemplar.time_unix_s:.3f}"


def _with_exemplars(text: bytes, bounds: tuple[float, ...], exemplars: Iterable[Exemplar]) -> bytes:
    """Put the newest exemplar of each bucket behind its line."""
    lines = text.split(b"\n")
    for bucket, exemplar in exemplars_by_bucket(bounds, exemplars).items():
        lines[bucket] += _exemplar_text(exemplar).encode()
    return b"\n".join(lines)


def render(
    families: Iterable[Family],
    *,
    openmetrics: bool,
    resource_attributes: Mapping[str, object],
    exemplars: bool = True,
    extra: Callable[[Page], None] | None = None,
) -> bytes:
    """Write the page.

    `extra` may write more families, of other sources, after ours
    (`core.registry.render_registry`). Exemplars appear in OpenMetrics alone:
    the older format has no place for them.

    Units: as the families have them; a unit is named in the metric's name.
    Errors: none from a family or a point; what cannot be shown is reported and left out.
    Source: OpenTelemetry "Prometheus and OpenMetrics Compatibility"; OpenMetrics 1.0; Prometheus "Exposition formats".
    """
    page = Page(openmetrics=openmetrics, exemplars=exemplars)
    page.add_target_info(resource_attributes)
    page.add_groups(build_groups(families, page.claims))
    if extra is not None:
        with guard.contained("the exposition of further sources"):
            extra(page)
    return page.finish()


# --- Negotiation -------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True, slots=True)
class _MediaRange:
    media_type: str
    version: str
    quality: float
    position: int

    def specificity(self, wanted: Format) -> int:
        """How closely this range names `wanted`; 0 when it does not."""
        media_type, version = wanted.value
        if self.media_type == media_type:
            if not self.version:
                # No version means the format's current one.
                return 0 if wanted is Format.OPENMETRICS_0_0_1 else 3
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


def _closeness(match: tuple[int, _MediaRange]) -> tuple[int, int]:
    return match[0], -match[1].position


def _parse_accept(header: str) -> Iterable[_MediaRange]:
    if len(header) > _MAX_ACCEPT:
        # Clients choose it; a range that is cut in two would mean something else.
        header = header[:_MAX_ACCEPT].rpartition(",")[0]
    for position, item in enumerate(header.split(",")):
        media_type, *parameters = (part.strip() for part in item.split(";"))
        values = dict(_parse_parameter(parameter) for parameter in parameters)
        quality = _parse_quality(values.get("q", "1"))
        if media_type and quality is not None:
            yield _MediaRange(media_type.lower(), values.get("version", ""), quality, position)


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
    """Whether a client that sends this Accept-Encoding header can read gzip."""
    accepted = {item.media_type: item.quality > 0 for item in _parse_accept(accept_encoding_header or "")}
    return accepted.get("gzip", accepted.get("x-gzip", accepted.get("*", False)))


def compress(page: bytes) -> bytes:
    """gzip at level 1: metric pages are so repetitive that more effort saves next to nothing."""
    return gzip.compress(page, compresslevel=1, mtime=0)
