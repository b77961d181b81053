"""Figures of the dashboard: cumulative values of scrapes, turned into increments per time step."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from django_otel.tracestore.items import StoredSample
from django_otel.tracestore.packing import pack, pack_routes, unpack, unpack_routes

#: How often numbers are sampled for the dashboard, in seconds.
SAMPLE_INTERVAL_S = 10.0
#: Steps in seconds, and how long each is kept. A step for each period that can be looked at, so that every page reads
#: at most some sixty of them.
STEPS_S = {10: 7 * 60, 30: 35 * 60, 180: 190 * 60}
#: Routes of one source that keep figures of their own, the busiest at first; all others share one row.
MAX_ROUTES = 300
OTHER_ROUTES = "(other routes)"


def write_sample(connection: sqlite3.Connection, sample: StoredSample) -> None:
    """Turn cumulative numbers into increments since the last sample, and add them to every step.

    A step has the sums over all routes (`data`), its own figures of each route (`routes`), and what had been counted
    of each route when it began (`opening`). So a page about all routes reads sixty small rows and two large ones for
    each source, whatever the number of routes: `running` less the `opening` of the first step is what came between.
    """
    row = connection.execute("SELECT at_s, data, running FROM baseline WHERE source = ?", (sample.source,)).fetchone()
    if row is not None and row[0] >= sample.at_s:
        # Another process of the group was faster; older numbers would look like a new beginning.
        return
    before = _unpack_or_nothing(row[1]) if row is not None else {}
    running = _unpack_or_nothing(row[2]) if row is not None else {}
    # The counts since the last sample are assigned to the middle of that time.
    counted_s = sample.at_s - min(sample.at_s - row[0] if row is not None else SAMPLE_INTERVAL_S, SAMPLE_INTERVAL_S) / 2
    bounds = sample.numbers.get("bounds", {})
    running = without_other_bounds(running, bounds)
    added = rise(sample.numbers, before, running)
    opening = pack(running)
    routes = added.pop("routes", {})
    if routes:
        running["routes"] = merge(running.get("routes", {}), routes)
    running["bounds"] = {**running.get("bounds", {}), **bounds}
    connection.execute(
        "INSERT OR REPLACE INTO baseline (source, at_s, data, running) VALUES (?, ?, ?, ?)",
        (sample.source, sample.at_s, pack(sample.numbers), pack(running)),
    )
    for step_s, kept_s in STEPS_S.items():
        if added or routes:
            at_s = int(counted_s // step_s) * step_s
            key = (step_s, at_s, sample.source)
            row = connection.execute(
                "SELECT data, routes, opening FROM sample WHERE step_s = ? AND at_s = ? AND source = ?", key
            ).fetchone()
            if row is None:
                total, by_route, begun = added, routes, opening
            else:
                total = merge(_unpack_or_nothing(row[0]), added)
                by_route = merge(_unpack_or_nothing(row[1], unpack_routes), routes)
                begun = row[2]
            connection.execute(
                "INSERT OR REPLACE INTO sample (step_s, at_s, source, service, data, routes, opening) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*key, sample.service, pack({**total, "bounds": bounds}), pack_routes(by_route), begun),
            )
        connection.execute("DELETE FROM sample WHERE step_s = ? AND at_s < ?", (step_s, sample.at_s - kept_s))
    connection.execute("DELETE FROM baseline WHERE at_s < ?", (sample.at_s - 86_400,))


def _unpack_or_nothing(data: bytes, unpack: Callable[[bytes], object] = unpack) -> dict[str, Any]:
    try:
        found = unpack(data)
    except (ValueError, zlib.error):
        return {}
    return found if isinstance(found, dict) else {}


def subtract(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return `now` minus `before`, leaf by leaf; a number that fell was reset and counts in full.

    Leaves are numbers and lists of numbers (a histogram: its count, sum and buckets, which is reset as a whole).
    What did not change is left out.
    """
    added: dict[str, Any] = {}
    for key, value in now.items():
        old = before.get(key)
        if isinstance(value, Mapping):
            inner = subtract(value, old if isinstance(old, Mapping) else {})
            if inner:
                added[key] = inner
        elif isinstance(value, list):
            more = _subtract_lists(value, old)
            if any(more):
                added[key] = more
        else:
            rise = value - old if isinstance(old, int | float) and old <= value else value
            if rise:
                added[key] = rise
    return added


def _subtract_lists(now: list[float], before: object) -> list[float]:
    if not isinstance(before, list) or len(before) != len(now):
        return now
    rise = [new - old for new, old in zip(now, before, strict=True)]
    # The sum (second) is left out: what is added to it may round it down.
    fell = any(step < 0 for index, step in enumerate(rise) if index != 1)
    return now if fell else rise


def merge(one: Mapping[str, object], other: Mapping[str, object]) -> dict[str, object]:
    """The sum of two sets of numbers, leaf by leaf; where they do not fit each other the newer (`other`) is kept."""
    total = dict(one)
    for key, value in other.items():
        old = total.get(key)
        if isinstance(value, Mapping):
            total[key] = merge(old, value) if isinstance(old, Mapping) else value
        elif isinstance(value, list):
            if isinstance(old, list) and len(old) == len(value):
                total[key] = [a + b for a, b in zip(old, value, strict=True)]
            else:
                total[key] = value
        elif isinstance(value, int | float) and isinstance(old, int | float):
            total[key] = old + value
        else:
            total[key] = value
    return total


#: Reset together with the buckets of a histogram: it and the counts from the same points.
_OF_HISTOGRAM = {"duration": ("duration", "errors", "refused"), "queries": ("queries",)}


def without_other_bounds(numbers: Mapping[str, Any], bounds: Mapping[str, str]) -> dict[str, Any]:
    """Cumulative numbers without the figures of routes whose histogram has other bounds now: it was reset."""
    known = numbers.get("bounds", {})
    stale = {
        part
        for name, text in bounds.items()
        if known.get(name, text) != text
        for part in _OF_HISTOGRAM.get(name, (name,))
    }
    if not stale:
        return dict(numbers)
    routes = {
        route: {part: value for part, value in figures.items() if part not in stale}
        for route, figures in numbers.get("routes", {}).items()
    }
    return {**numbers, "routes": routes}


def rise(now: Mapping[str, Any], before: Mapping[str, Any], running: Mapping[str, Any]) -> dict[str, Any]:
    """Return `now` minus `before`, without bounds: by the routes of `running`, and over all as "total"."""
    before = without_other_bounds(before, now.get("bounds", {}))
    added = subtract({name: part for name, part in now.items() if name != "bounds"}, before)
    routes = added.get("routes")
    if routes:
        added["routes"] = _fold_routes(routes, running.get("routes", {}))
        added["total"] = sum_routes(routes)
    return added


def rise_of_routes(running: Mapping[str, Any], opening: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts of each route between two moments of one source."""
    opening = without_other_bounds(opening, running.get("bounds", {}))
    return subtract(running.get("routes", {}), opening.get("routes", {}))


def sum_routes(routes: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """The figures of all routes together."""
    total: dict[str, object] = {}
    for figures in routes.values():
        total = merge(total, figures)
    return total


def _fold_routes(routes: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Figures under the names they are kept by: those already known, further ones while there is room, "others"."""
    room = MAX_ROUTES - 1 - len(known)
    new = [route for route in routes if route not in known]
    if len(new) <= room:
        return dict(routes)
    new.sort(key=lambda route: routes[route].get("duration", [0])[0], reverse=True)
    others = set(new[max(0, room) :])
    folded: dict[str, Any] = {}
    for route, figures in routes.items():
        name = OTHER_ROUTES if route in others else route
        folded[name] = merge(folded[name], figures) if name in folded else figures
    return folded
