"""Renders metric families as the text that Prometheus scrapes.

Two things differ on purpose from OpenTelemetry's "Prometheus and OpenMetrics
Compatibility": no `otel_scope_*` labels (they multiply series), and exponential
histograms are shown with classic buckets (the text formats have no other).

`build_groups` puts the points of every meter that share a Prometheus name into
one group, `Page` writes the groups, `render` does both. A point or family that
cannot be shown is left out and reported; the page is always whole.
"""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Callable, Iterable, Mapping

from django_otel.base import guard
from django_otel.metrics.bounds import are_ascending
from django_otel.metrics.exemplar_choice import exemplar_labels, exemplars_by_bucket, newest_exemplar
from django_otel.metrics.model import Exemplar, ExponentialValue, Family, HistogramValue
from django_otel.metrics.page_groups import SUFFIXES, Claims, Group, build_groups
from django_otel.metrics.prometheus_names import (
    Naming,
    escape,
    format_bound,
    format_labels,
    format_value,
    is_legacy,
    label_pairs,
    target_attributes,
)

# Stands for the labels in a histogram's skeleton; labels never hold a NUL (`printable`).
_INNER = "\0"
_INNER_BYTES = _INNER.encode()


def check_bounds(bounds: tuple[float, ...]) -> None:
    """Errors: `ValueError` when the bounds are not finite and ascending: Prometheus would reject the whole page."""
    if not are_ascending(bounds):
        raise ValueError(f"bucket bounds must be finite and ascending: {bounds!r}")


def has_sum(value: HistogramValue) -> bool:
    """Return whether sum and count are shown: with buckets below zero the sum can fall, and OpenMetrics forbids it."""
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
    inner = _INNER if has_labels else ""
    before = f"{inner}," if inner else ""
    lines = [_series(f"{name}_bucket", f'{before}le="{bound}"') + " %d\n" for bound in escaped]
    if shows_sum:
        lines.append(f"{_series(f'{name}_sum', inner)} %b\n{_series(f'{name}_count', inner)} %d\n")
    return "".join(lines).encode()


def _series(name: str, labels: str) -> str:
    """A name with its labels; one that the old rules do not allow stands within the braces, in quotes."""
    if not is_legacy(name):
        quoted = escape(name).replace("%", "%%")
        return f'{{"{quoted}",{labels}}}' if labels else f'{{"{quoted}"}}'
    return f"{name}{{{labels}}}" if labels else name


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

    def add_target_info(self, resource_attributes: Mapping[str, object], naming: Naming) -> None:
        """Write the resource, once, without attributes that identify one process of many."""
        # Claimed in any case: a metric of that name would pass for the resource.
        self.claims.take("target", SUFFIXES["info"])
        with guard.contained("the exposition of target_info"):
            attributes = target_attributes(resource_attributes)
            if naming.escaping:
                labels = naming.labels(tuple(attributes), is_histogram=False)  # type: ignore[arg-type]
            else:
                labels = format_labels(label_pairs(attributes))
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
            name = name if is_legacy(name) else f'"{escape(name)}"'
            lines = f"# TYPE {name} {type_}\n"
            if unit:
                lines += f"# UNIT {name} {unit}\n"
            if help_:
                lines += f"# HELP {name} {escape(help_)}\n"
        else:
            # The older format has no info type, and its families bear the name of their samples.
            name += {"counter": "_total", "info": "_info"}.get(type_, "")
            name = name if is_legacy(name) else f'"{escape(name)}"'
            if help_:
                escaped = help_.replace("\\", "\\\\").replace("\n", "\\n")
                lines = f"# HELP {name} {escaped}\n"
            lines += f"# TYPE {name} {'gauge' if type_ == 'info' else type_}\n"
        self._out.write(lines.encode())

    def _write_numbers(self, group: Group) -> None:
        write = self._out.write
        is_counter = group.type == "counter"
        sample = group.name + "_total" if is_counter else group.name
        name, is_quoted = sample.encode(), not is_legacy(sample)
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
                if is_quoted:
                    write(f"{_series(sample, labels.decode())} {text}\n".replace("%%", "%").encode())
                    continue
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
    escaping: str = "",
) -> bytes:
    """Write the page.

    `extra` may write more families, of other sources, after ours
    (`metrics.registry.render_registry`). Exemplars appear in OpenMetrics alone:
    the older format has no place for them. With an `escaping` names are
    OpenTelemetry's, escaped like that.

    Units: as the families have them; a unit is named in the metric's name.
    Errors: none from a family or a point; what cannot be shown is reported and left out.
    Source: OpenTelemetry "Prometheus and OpenMetrics Compatibility"; OpenMetrics 1.0; Prometheus "Exposition formats".
    """
    page = Page(openmetrics=openmetrics, exemplars=exemplars)
    naming = Naming(escaping)
    page.add_target_info(resource_attributes, naming)
    page.add_groups(build_groups(families, page.claims, naming))
    if extra is not None:
        with guard.contained("the exposition of further sources"):
            extra(page)
    return page.finish()
