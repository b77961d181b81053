"""Snapshot files of metrics that a process measured through the SDK."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django_otel.base.private_files import open_file
from django_otel.metrics.model import Exemplar, ExponentialValue, Family, HistogramValue, MetricType, Point, Scope
from django_otel.multiprocess.format import ENTRY, MALFORMED, MAX_KEYS_BYTES, parse_attributes, parse_bounds


def write_snapshot(path: Path, families: Sequence[Family]) -> None:
    """Write families to a temporary name and rename it, so that a reader sees the old or the new, whole."""
    payload = json.dumps([_dump_family(family) for family in families], separators=(",", ":")).encode()
    temporary = path.with_suffix(".tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        try:
            data = ENTRY.pack(len(payload), zlib.crc32(payload)) + payload
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
        temporary.rename(path)
    except BaseException:
        # Space that would otherwise never be freed.
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def read_snapshot(path: Path) -> list[Family] | None:
    """The families of a snapshot; None when there is none or it is damaged."""
    try:
        descriptor = open_file(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        data = os.pread(descriptor, MAX_KEYS_BYTES, 0)
    finally:
        os.close(descriptor)
    if len(data) < ENTRY.size:
        return None
    size, checksum = ENTRY.unpack_from(data)
    payload = data[ENTRY.size : ENTRY.size + size]
    if len(payload) != size or zlib.crc32(payload) != checksum:
        return None
    try:
        return [_parse_family(item) for item in json.loads(payload)]
    except MALFORMED:
        return None


def _dump_family(family: Family) -> object:
    return [
        family.name, family.metric_type.value, family.unit, family.description,
        [family.scope.name, family.scope.version, family.scope.schema_url, family.scope.attributes],
        [
            [point.attributes, _dump_value(point.value), point.start_time_unix_nano,
             [[e.value, e.time_unix_s, f"{e.trace_id:x}", f"{e.span_id:x}"] for e in point.exemplars]]
            for point in family.points
        ],
    ]  # fmt: skip


def _dump_value(value: object) -> object:
    if isinstance(value, HistogramValue):
        return {"b": value.bounds, "c": value.buckets, "s": value.sum}
    if isinstance(value, ExponentialValue):
        return {"e": [value.scale, value.zero_count, value.positive_offset, value.positive, value.negative_offset,
                      value.negative, value.sum, value.count]}  # fmt: skip
    return value


def _parse_family(item: Any) -> Family:
    name, metric_type, unit, description, scope, points = item
    if not all(isinstance(text, str) for text in (name, unit, description, *scope[:3])):
        raise TypeError("not texts")
    family = Family(
        name,
        MetricType(metric_type),
        unit,
        description,
        Scope(scope[0], scope[1], scope[2], parse_attributes(scope[3])),
    )
    for attributes, value, start, exemplars in points:
        found = [Exemplar(float(e[0]), float(e[1]), int(e[2], 16), int(e[3], 16)) for e in exemplars]
        parsed = _parse_value(value)
        expected = {MetricType.HISTOGRAM: HistogramValue, MetricType.EXPONENTIAL_HISTOGRAM: ExponentialValue}.get(
            family.metric_type
        )
        if not (_is_number(parsed) if expected is None else isinstance(parsed, expected)):
            raise TypeError("a value of another type")
        family.points.append(Point(parse_attributes(attributes), parsed, found, int(start)))
    return family


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parse_value(value: object) -> Any:
    if not isinstance(value, dict):
        if not _is_number(value):
            raise TypeError("no number")
        return value
    if "e" in value:
        scale, zero_count, positive_offset, positive, negative_offset, negative, total, count = value["e"]
        whole = (scale, zero_count, positive_offset, *positive, negative_offset, *negative, count)
        if not all(isinstance(number, int) for number in whole) or not _is_number(total):
            raise TypeError("no exponential histogram")
        return ExponentialValue(scale, zero_count, positive_offset, positive, negative_offset, negative, total, count)
    bounds, buckets = parse_bounds(value["b"]), list(value["c"])
    if len(buckets) != len(bounds) + 1 or not all(map(_is_number, (*buckets, value["s"]))):
        raise TypeError("no histogram")
    return HistogramValue(bounds, buckets, value["s"])
