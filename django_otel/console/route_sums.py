"""Requests of stored traces, added up by method and route."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from django_otel.tracestore.record_reader import RequestRow


@dataclass(frozen=True, slots=True)
class RouteSum:
    """The requests of one route."""

    route: str
    method: str
    requests: int
    errors: int
    p50_ns: int
    p95_ns: int
    #: Queries a request, on average.
    queries: float
    longest: RequestRow


def by_route(rows: Sequence[RequestRow]) -> dict[tuple[str, str], RouteSum]:
    """The requests of each method and route, added up."""
    groups: dict[tuple[str, str], list[RequestRow]] = {}
    for row in rows:
        groups.setdefault((row.method, row.route), []).append(row)
    found = {}
    for (method, route), members in groups.items():
        durations = sorted(row.duration_ns for row in members)
        found[method, route] = RouteSum(
            route,
            method,
            len(members),
            sum(row.is_error for row in members),
            percentile(durations, 0.5),
            percentile(durations, 0.95),
            sum(row.queries for row in members) / len(members),
            max(members, key=lambda row: row.duration_ns),
        )
    return found


def percentile(ordered: Sequence[int], share: float) -> int:
    """The value that `share` of the ordered values do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]
