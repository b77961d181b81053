"""Attributes and routes that the project adds to the request metrics, each with a limit on its distinct values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from django_otel.base import guard
from django_otel.metrics.model import Attributes, AttributeValue
from django_otel.metrics.store import CellStore

#: The value of everything beyond a limit.
OTHER = "_other"
#: Under this name the values of REQUEST.ROUTE share their limit; no attribute may have it.
ROUTE = "http.route"
#: A value is found again by what the project gave, in as many spellings times the limit.
_SPELLINGS = 4


class Dimensions:
    """Admits values of the project's attributes up to their limits, over all processes that share their numbers.

    `find_folder` returns where they share them; None for a process that shares nothing.
    """

    def __init__(
        self, store: CellStore, limits: Mapping[str, int], find_folder: Callable[[], Path | None] | None
    ) -> None:
        self._store = store
        self.limits = limits
        self._most_labels = _SPELLINGS * sum(limits.values())
        self._find_folder = find_folder
        #: By attribute, every value that is admitted. Replaced whole, so that threads need no lock.
        self._admitted: dict[str, frozenset[str]] = dict.fromkeys(limits, frozenset())
        #: Attributes whose values are all there will be.
        self._full: set[str] = set()
        #: By attribute and value as the project gave it, the label.
        self._labels: dict[tuple[str, str], str] = {}
        self._folder: Path | None = None

    def label_all(self, values: Mapping[str, str]) -> Attributes:
        """Return the labels of these attributes, sorted."""
        return tuple([(name, self.label(name, values[name])) for name in sorted(values)])

    def label(self, name: str, text: str) -> str:
        """Return `text` as a label of the attribute `name`, or `OTHER`, counted, where it is one too many."""
        found = self._labels.get((name, text))
        if found is None:
            found = self._find(name, text)
        return found

    def _find(self, name: str, text: str) -> str:
        # By what is shown: of two secrets, or of two long texts, one may look like the other.
        cleaned: AttributeValue = self._store.clean(((name, text),))[0][1]
        label = str(cleaned)
        if label not in self._admitted[name] and not self._admit(name, label):
            self._store.count_refused("metric_attribute")
            return OTHER
        if len(self._labels) < self._most_labels:
            self._labels[(name, text)] = label
        return label

    def _admit(self, name: str, label: str) -> bool:
        """Return whether there is room for one more value, here and in the processes beside."""
        folder = self._find_folder() if self._find_folder is not None else None
        if folder != self._folder:
            # Another folder has room of its own; there, what this process shows is counted first.
            self._folder = folder
            self._full.clear()
        if name in self._full:
            return False
        known, limit = self._admitted[name], self.limits[name]
        found = known | {label} if len(known) < limit else known
        if folder is not None:
            # Not at the top: this system may have no file locks, and no folder then.
            from django_otel.multiprocess import shared_values

            try:
                found = known | shared_values.admit(folder, name, [*sorted(known), label], limit)
            except OSError as error:
                guard.warn_once(
                    "requests.dimensions",
                    "Values of REQUEST.METRIC_ATTRIBUTES are limited for each process alone; %s cannot be used (%s).",
                    folder,
                    type(error).__name__,
                )
        self._admitted[name] = found
        if len(found) >= limit:
            self._full.add(name)
        return label in found


def to_text(value: object) -> str:
    """Return the value of an attribute as a label; "" for a value that is left out."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_route(found: object) -> str:
    """Return the name that REQUEST.ROUTE gave; "" where it gave none.

    Errors: `TypeError` for what is neither a text nor None.
    """
    if found is None:
        return ""
    if not isinstance(found, str):
        raise TypeError(f"REQUEST.ROUTE returned {type(found).__name__}; expected a str or None.")
    # A safe text becomes a plain one.
    return "".join(found.split("\n", 1)[0]).strip()
