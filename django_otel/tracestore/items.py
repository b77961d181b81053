"""Items of the store, prepared in the writer's thread: scrubbed, and off the request path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from django_otel.tracestore.issues import StoredErrors


@dataclass(slots=True)
class StatementSum:
    """How often a trace ran a statement, and how long that took.

    `repeated` is the count of the event about repeated queries, 0 without one; `line` the calling line ("file:line").
    """

    count: int = 0
    total_ns: int = 0
    longest_ns: int = 0
    repeated: int = 0
    line: str = ""
    advice: str = ""


@dataclass(slots=True)
class StoredSpans:
    """Finished spans of one trace that arrive together: the bytes of an OTLP `TracesData`, and the columns of lists.

    `rank` is that of the span the trace is listed by: 2 for one without a parent, 1 for the first of its process
    (remote parent), else 0; name, method, route, status and service are of that span.
    Units: times are nanoseconds since the Unix epoch.
    """

    trace_id: str
    data: bytes = b""
    spans: int = 0
    start_ns: int = 0
    end_ns: int = 0
    rank: int = -1
    root_start_ns: int = 0
    root_end_ns: int = 0
    name: str = ""
    method: str = ""
    route: str = ""
    status: int = 0
    service: str = ""
    #: `service.version` of the service, and the user where requests record one.
    release: str = ""
    user: str = ""
    queries: int = 0
    errors: int = 0
    #: How many spans the process did not record, because the trace had too many.
    spans_dropped: int = 0
    services: set[str] = field(default_factory=set)
    events: set[str] = field(default_factory=set)
    #: By the text of the statement, without values.
    statements: dict[str, StatementSum] = field(default_factory=dict)
    #: Model and primary key of objects that spans name.
    objects: set[tuple[str, str]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class StoredLog:
    """A log record of a trace."""

    trace_id: str
    time_ns: int
    service: str
    record: Mapping[str, object]


#: The layers of the time budget, in the order of their seconds in `RouteNumbers`.
LAYERS = ("database", "cache", "template", "http", "view", "middleware")


class RouteNumbers(TypedDict, total=False):
    """Counts of one route; histograms as in `SampleNumbers`."""

    layers: list[float]
    duration: list[float]
    queries: list[float]
    errors: float
    refused: float


class SampleNumbers(TypedDict):
    """Cumulative sums by route, event, reason.

    A histogram is the list of its count, its sum and its buckets (not cumulative); its bounds are a text.
    """

    routes: dict[str, RouteNumbers]
    bounds: dict[str, str]
    cache: dict[str, float]
    events: dict[str, float]
    failures: dict[str, float]
    dropped: dict[str, float]


@dataclass(frozen=True, slots=True)
class StoredSample:
    """Current numbers of `/metrics`, cumulative, of one `source` (a group of processes)."""

    source: str
    service: str
    at_s: float
    numbers: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredProcess:
    """A report of one process."""

    instance: str
    service: str
    host: str
    pid: int
    started_s: float
    seen_s: float
    facts: Mapping[str, object]


Stored = StoredSpans | StoredLog | StoredSample | StoredProcess | StoredErrors
