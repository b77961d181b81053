"""Cells of float64 that hold the values of our instruments.

A series owns a run of cells in a `Memory`: one for a counter, up-down counter
or gauge; one per bucket and one for the sum for a histogram (its count is the
sum of the buckets, never stored). `Memory` is the only part that knows where
the cells are; here they are private to the process.
"""

from __future__ import annotations

from dataclasses import field

from django_otel.base import frozen
from django_otel.metrics.model import Attributes, Exemplar, MetricType


@frozen.record
class Definition:
    """Definition of an instrument. Two definitions of one name must agree in type."""

    name: str
    metric_type: MetricType
    unit: str = ""
    #: Another wording is not another instrument.
    description: str = field(default="", compare=False)
    bounds: tuple[float, ...] = ()
    aggregation: str = "sum"


def cells_of(definition: Definition) -> int:
    """Return how many cells a series takes: buckets and sum, value and time of setting, or a value."""
    if definition.metric_type is MetricType.HISTOGRAM:
        return len(definition.bounds) + 2
    return 2 if definition.metric_type is MetricType.GAUGE else 1


class Memory:
    """Hands out runs of float64 cells, zeroed, that never move. These are private to the process.

    Memory grows by whole segments, because a buffer with an exported view
    cannot be resized; a run never spans two segments.
    """

    SEGMENT_CELLS = 4096
    #: Whether a growth has failed, so that some series are not where they should be.
    is_degraded = False

    def __init__(self) -> None:
        self._view: memoryview[float] = memoryview(bytearray()).cast("d")
        self._free = 0

    def allocate(self, cells: int) -> tuple[memoryview[float], int]:
        """Return the view and the index in it at which `cells` cells begin."""
        if self._free + cells > len(self._view):
            size = max(self.SEGMENT_CELLS, cells)
            self._view = memoryview(bytearray(size * 8)).cast("d")
            self._free = 0
        base = self._free
        self._free += cells
        return self._view, base

    def place(
        self, definition: Definition, attributes: Attributes, start_time_unix_nano: int
    ) -> tuple[memoryview[float], int]:
        """Return the place of a series' cells; they may hold counts of an earlier process."""
        return self.allocate(cells_of(definition))

    def has_room(self, definition: Definition, attributes: Attributes, limit: int) -> bool:
        """Return whether one more series fits below the cardinality limit, earlier processes' series included."""
        return True

    def mark(self, definition: Definition, attributes: Attributes) -> int | None:
        """Return the key of a placed series for `put_exemplar`; None if exemplars are not shown."""
        return None

    def put_exemplar(self, mark: int, bucket: int, exemplar: Exemplar) -> None:
        """Show an exemplar to the other processes."""
