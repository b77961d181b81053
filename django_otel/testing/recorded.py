"""Recorded spans, metrics and logs of a test, with methods to query them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.trace import ReadableSpan

    from django_otel.metrics.model import Family, Point


# --- spans --------------------------------------------------------------------------


class SpanTree(list["tuple[str, SpanTree]"]):
    """Names of spans, nested: a list of (name, children), which compares with plain lists and tuples.

    Siblings stand in the order in which they started. `str()` is an outline.
    """

    def __str__(self) -> str:
        return "\n".join(self._lines(""))

    def _lines(self, indent: str) -> Iterator[str]:
        for name, children in self:
            yield f"{indent}{name}"
            yield from children._lines(indent + "    ")  # noqa: SLF001 (the same class)


class RecordedSpans(Sequence["ReadableSpan"]):
    """The finished spans of this test, in the order in which they ended."""

    def __init__(self, read: Callable[[], Iterable[ReadableSpan]], clear: Callable[[], None]) -> None:
        self._read = read
        self._clear = clear

    def _all(self) -> list[ReadableSpan]:
        return list(self._read())

    def __iter__(self) -> Iterator[ReadableSpan]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    @overload
    def __getitem__(self, index: SupportsIndex) -> ReadableSpan: ...

    @overload
    def __getitem__(self, index: slice) -> list[ReadableSpan]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> ReadableSpan | list[ReadableSpan]:
        return self._all()[index]

    def named(self, name: str) -> list[ReadableSpan]:
        """Every span of that name."""
        return [span for span in self._all() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        """The only span of that name.

        Errors: `AssertionError`, with all spans there are, when there is none or more than one.
        """
        found = self.named(name)
        if len(found) != 1:
            raise AssertionError(f"Expected one span named {name!r}, found {len(found)}. {self._described()}")
        return found[0]

    def tree(self) -> SpanTree:
        """The spans by parent and child. A span whose parent was not recorded in this test is a root."""
        spans = sorted(self._all(), key=lambda span: span.start_time or 0)
        by_id: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, span in enumerate(spans):
            by_id[span.context.trace_id, span.context.span_id].append(index)
        children: dict[int | None, list[int]] = defaultdict(list)
        for index, span in enumerate(spans):
            parent = span.parent
            # A seed that is set again during a test (pytest-randomly) makes ids repeat:
            # the parent is then the last one that had started.
            same_id = by_id.get((parent.trace_id, parent.span_id), []) if parent is not None else []
            started = [other for other in same_id if other < index]
            children[started[-1] if started else None].append(index)

        def build(parent: int | None) -> SpanTree:
            return SpanTree((spans[index].name, build(index)) for index in children[parent])

        return build(None)

    def clear(self) -> None:
        """Forget the spans so far."""
        self._clear()

    def _described(self) -> str:
        tree = str(self.tree())
        return f"Recorded spans:\n{tree}" if tree else "No span was recorded."

    def __repr__(self) -> str:
        return f"<RecordedSpans {[span.name for span in self._all()]}>"


# --- metrics ------------------------------------------------------------------------


@dataclass(frozen=True)
class HistogramDelta:
    """Counts of a histogram since the test began. `sum` is in the metric's unit."""

    count: int = 0
    sum: float = 0.0
    bounds: tuple[float, ...] = ()
    #: One more than `bounds`, not cumulative; empty for exponential histograms.
    buckets: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Reading:
    """A point's numbers: value of a number, or sum, count and buckets of a histogram."""

    value: float
    count: int | None = None
    bounds: tuple[float, ...] = ()
    buckets: tuple[int, ...] = ()


class RecordedMetrics:
    """The metrics of this process, as far as this test changed them."""

    def __init__(self, collect: Callable[..., list[Family]]) -> None:
        self._collect = collect
        self._baseline: dict[object, _Reading] = {}
        self.clear()

    def clear(self) -> None:
        """Count from here."""
        # Gauges give the value they have, not a difference; and a callback may use the database, which a test
        # has not been given yet.
        self._baseline = {
            _identity(family, point): _read(point)
            for family in self._collect(observed=False)
            for point in family.points
        }

    def value(self, name: str, attributes: Mapping[str, object] | None = None, /, **more: object) -> Any:
        """Return the value of the metric `name` since the test began, over all series with these attributes.

        Attributes with dots go into a mapping, or with two underscores for the
        dot: `value("http.server.request.duration", {"http.route": "/a/"})` or
        `value("http.server.request.duration", http__route="/a/")`. Attributes
        that are not given may have any value.

        Counters and up-down counters give a number, histograms a
        `HistogramDelta` (`.count`, `.sum`), gauges the value they have now.
        Nothing counted is 0, and for a gauge None.

        Errors: `AssertionError` for a gauge of which more than one series fits.
        """
        wanted = {key.replace("__", "."): value for key, value in more.items()} | dict(attributes or {})
        found = [
            (family, point)
            for family in self._collect()
            if family.name == name
            for point in family.points
            if _fits(dict(point.attributes), wanted)
        ]
        if not found:
            return _nothing(name)
        metric_type = found[0][0].metric_type.value
        if metric_type == "gauge":
            if len(found) > 1:
                series = "\n".join(str(dict(point.attributes)) for _, point in found)
                raise AssertionError(
                    f"{len(found)} series of the gauge {name!r} fit; give more attributes of:\n{series}"
                )
            return found[0][1].value
        deltas = [self._delta(family, point) for family, point in found]
        if "histogram" not in metric_type:
            return math.fsum(delta.value for delta in deltas)
        same_bounds = len({delta.bounds for delta in deltas}) == 1
        return HistogramDelta(
            count=sum(delta.count or 0 for delta in deltas),
            sum=math.fsum(delta.value for delta in deltas),
            bounds=deltas[0].bounds if same_bounds else (),
            buckets=tuple(map(sum, zip(*(delta.buckets for delta in deltas), strict=True))) if same_bounds else (),
        )

    def series(self, name: str) -> list[dict[str, object]]:
        """The attributes of every series of the metric `name` that this test changed."""
        return [
            dict(point.attributes)
            for family in self._collect()
            if family.name == name
            for point in family.points
            if _read(point) != self._baseline.get(_identity(family, point))
        ]

    def names(self) -> list[str]:
        """The names of all metrics that have a number, from this test or before."""
        return sorted({family.name for family in self._collect() if family.points})

    def __repr__(self) -> str:
        return f"<RecordedMetrics {self.names()}>"

    def keep(self) -> None:
        """Stop counting; the values so far can still be read."""
        families = self._collect()
        self._collect = lambda **_: families

    def _delta(self, family: Family, point: Point) -> _Reading:
        now = _read(point)
        before = self._baseline.get(_identity(family, point))
        if before is None or before.bounds != now.bounds or (before.count or 0) > (now.count or 0):
            # New, or begun again (other buckets, a restarted provider).
            return now
        if now.count is None:
            return _Reading(now.value - before.value)
        buckets = tuple(a - b for a, b in zip(now.buckets, before.buckets, strict=True))
        return _Reading(now.value - before.value, now.count - (before.count or 0), now.bounds, buckets)


def _identity(family: Family, point: Point) -> object:
    # The start time changes when a series begins again.
    return (family.scope, family.name, family.metric_type, point.attributes, point.start_time_unix_nano)


def _read(point: Point) -> _Reading:
    value = point.value
    if isinstance(value, int | float):
        return _Reading(float(value))
    buckets = tuple(int(count) for count in getattr(value, "buckets", ()))
    return _Reading(value.sum, int(value.count), tuple(getattr(value, "bounds", ())), buckets)


def _fits(attributes: Mapping[str, object], wanted: Mapping[str, object]) -> bool:
    missing = object()
    for key, value in wanted.items():
        found = attributes.get(key, missing)
        if found != value and found != str(value):
            return False
    return True


def _nothing(name: str) -> object:
    """Return the value of a metric of that name if nothing was counted."""
    from django_otel import runtime
    from django_otel.metrics import catalogue

    catalogued = catalogue.CATALOGUE.get(name)
    metric_type = runtime.store.type_of(name) or (catalogued.metric_type if catalogued is not None else None)
    if metric_type is None:
        return 0
    if "histogram" in metric_type.value:
        return HistogramDelta()
    return None if metric_type.value == "gauge" else 0


# --- logs ---------------------------------------------------------------------------


class RecordedLogs(Sequence["ReadableLogRecord"]):
    """The log records of this test that would have been exported."""

    def __init__(self, read: Callable[[], Iterable[ReadableLogRecord]], clear: Callable[[], None]) -> None:
        self._read = read
        self._clear = clear

    def _all(self) -> list[ReadableLogRecord]:
        return list(self._read())

    def __iter__(self) -> Iterator[ReadableLogRecord]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    @overload
    def __getitem__(self, index: SupportsIndex) -> ReadableLogRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[ReadableLogRecord]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> ReadableLogRecord | list[ReadableLogRecord]:
        return self._all()[index]

    @property
    def bodies(self) -> list[Any]:
        """The texts of the records."""
        return [record.log_record.body for record in self._all()]

    def one(self, text: str) -> ReadableLogRecord:
        """The only record whose text contains `text`.

        Errors: `AssertionError`, with all texts, when there is none or more than one.
        """
        found = [record for record in self._all() if text in str(record.log_record.body)]
        if len(found) != 1:
            raise AssertionError(f"Expected one log record with {text!r}, found {len(found)}. Recorded: {self.bodies}")
        return found[0]

    def clear(self) -> None:
        """Forget the records so far."""
        self._clear()

    def __repr__(self) -> str:
        return f"<RecordedLogs {self.bodies}>"
