"""Model objects that no `select_related()` of a queryset could have loaded: those of `raw()`, and new ones.

`advice` asks. On with `DATABASE.N_PLUS_ONE`. An object of `raw()` or `bulk_create()` costs one entry in its state; a
saved one is known by how Django fills that state. Objects of other querysets cost nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

from django.db.models import Model, QuerySet
from django.db.models.query import RawQuerySet

from django_otel.base import guard
from django_otel.config.schema import Config

_MARK = "_django_otel_origin"
_RAW, _CREATED = "raw", "bulk_create"
_plain_iterator = RawQuerySet.iterator
_plain_bulk_create = QuerySet.bulk_create


def is_raw(instance: Model) -> bool:
    """Return whether `raw()` has loaded it; such a query takes `prefetch_related()`, but no `select_related()`."""
    return vars(instance._state).get(_MARK) == _RAW


def is_new(instance: Model) -> bool:
    """Return whether this process has made it, saved or not: no query has loaded it."""
    state = vars(instance._state)
    if instance._state.adding or state.get(_MARK) == _CREATED:
        return True
    # `save()` notes the database first, a query that the object is there; later changes keep that order.
    names = [name for name in state if name in ("adding", "db")]
    return names == ["db", "adding"]


@guard.guarded("the origin of objects", None)
def _mark(instances: Iterable[object], origin: str) -> None:
    for instance in instances:
        if isinstance(instance, Model):
            vars(instance._state)[_MARK] = origin


@functools.wraps(_plain_iterator)
def _iterator(self: RawQuerySet[Any]) -> Iterator[Any]:
    for instance in _plain_iterator(self):
        _mark((instance,), _RAW)
        yield instance


@functools.wraps(_plain_bulk_create)
def _bulk_create(self: QuerySet[Any], *args: Any, **kwargs: Any) -> list[Any]:
    made = _plain_bulk_create(self, *args, **kwargs)
    if isinstance(made, list):
        _mark(made, _CREATED)
    return made


def install(config: Config) -> None:
    """Follow the settings: mark, or leave everything as Django made it. May be called again and again."""
    wanted = config.database
    if not (config.enabled and wanted.n_plus_one is not None and (wanted.spans or wanted.metrics)):
        uninstall()
        return
    if RawQuerySet.iterator is _plain_iterator:
        RawQuerySet.iterator = _iterator  # type: ignore[method-assign]
    if QuerySet.bulk_create is _plain_bulk_create:
        QuerySet.bulk_create = _bulk_create  # type: ignore[method-assign]


def uninstall() -> None:
    """Take everything back."""
    if RawQuerySet.iterator is _iterator:
        RawQuerySet.iterator = _plain_iterator  # type: ignore[method-assign]
    if QuerySet.bulk_create is _bulk_create:
        QuerySet.bulk_create = _plain_bulk_create  # type: ignore[method-assign]
