"""Loaded values: the watched columns of an instance as stored in the database, without a query."""

from __future__ import annotations

import contextlib
import enum
import threading
from collections.abc import Iterator
from typing import Any

from django.db import models

from django_otel.base import guard
from django_otel.business.specs import spec_of
from django_otel.business.transactions import Unit
from django_otel.instrumentation.transactions import ROLLED_BACK

Values = dict[str, object]

#: On `instance._state`: the values of the watched columns as they are in the database. A plain dict, or a
#: `_Provisional` while a transaction may still undo them; never changed in place, since copies share it.
_LOADED = "_django_otel_loaded"
#: The row does not exist (any more): its creation was rolled back. Known by identity.
NO_ROW: Values = {}
#: Result of `comparable` for a value that cannot be compared.
UNKNOWN = object()


class _Provisional:
    """Values saved in a transaction that is still open, and those to go back to if it is rolled back.

    Pickled as the current plain dict, so that a cached instance can be
    loaded where this package is not installed.
    """

    __slots__ = ("previous", "unit", "values")

    def __init__(self, values: Values, previous: Values | _Provisional | None, unit: Unit) -> None:
        self.values = values
        self.previous = previous
        self.unit = unit

    def __deepcopy__(self, memo: object) -> _Provisional:
        # Never changed in place, and a copied unit would never learn its outcome.
        return self

    def __reduce__(self) -> tuple[type[Values], tuple[Values]]:
        held = _settled(self)
        return dict, (held.values if isinstance(held, _Provisional) else held or {},)


def _settled(held: Values | _Provisional | None) -> Values | _Provisional | None:
    while isinstance(held, _Provisional):
        outcome = held.unit.outcome
        if outcome is None:
            return held
        held = held.previous if outcome == ROLLED_BACK else held.values
    return held


def _below(held: Values | _Provisional | None, unit: Unit) -> Values | _Provisional | None:
    """Return the state if `unit` is undone."""
    while isinstance(held, _Provisional) and held.unit.find() is unit:
        held = held.previous
    return held


def loaded_values(instance: models.Model) -> Values | None:
    """The watched values as they are in the database, as far as this instance knows."""
    state = instance._state.__dict__
    held = state.get(_LOADED)
    if held is None or held.__class__ is dict:
        return held
    held = state[_LOADED] = _settled(held)
    return held.values if isinstance(held, _Provisional) else held


def set_loaded(instance: models.Model, values: Values, unit: Unit | None, is_new: bool = False) -> None:
    state = instance._state.__dict__
    if unit is None:
        state[_LOADED] = values
        return
    previous = _settled(state.get(_LOADED))
    if isinstance(previous, _Provisional):
        # Saves that are rolled back together share an entry: else it would be a chain of all saves of one instance.
        root = previous.unit.find()
        below = _below(previous, root)
        previous = below if root is unit else _Provisional(previous.values, below, root)
    if previous is None and is_new:
        previous = NO_ROW
    state[_LOADED] = _Provisional(values, previous, unit)


class _PerThread(threading.local):
    def __init__(self) -> None:
        #: For each `refresh_from_db` under way, the instances loaded by it.
        self.refreshing: list[list[models.Model]] = []


per_thread = _PerThread()


def remember_loaded(instance: models.Model) -> None:
    try:
        spec = spec_of(instance.__class__)
        if spec is None:
            return
        values = instance.__dict__
        loaded = {
            transition.attname: values[transition.attname]
            for transition in spec.transitions
            if transition.attname in values
        }
        instance._state.__dict__[_LOADED] = loaded
        refreshing = per_thread.refreshing
        if refreshing:
            refreshing[-1].append(instance)
    except Exception as error:
        guard.report("remembering loaded values", error)


@contextlib.contextmanager
def refreshing(instance: models.Model) -> Iterator[None]:
    """Around `refresh_from_db`: what it loads is what `instance` has loaded afterwards.

    Django loads a second instance and copies from it; that one knows which
    fields were asked for, whichever way.
    """
    loaded: list[models.Model] = []
    under_way = per_thread.refreshing
    under_way.append(loaded)
    try:
        yield
    finally:
        # By identity: two refreshes under way that loaded nothing yet are equal lists.
        del under_way[[other is loaded for other in under_way].index(True) :]
    try:
        _remember_refreshed(instance, loaded)
    except Exception as error:
        guard.report("remembering refreshed values", error)


def _remember_refreshed(instance: models.Model, loaded: list[models.Model]) -> None:
    if spec_of(instance.__class__) is None:
        return
    key = primary_key(instance)
    for other in reversed(loaded):
        if other._meta.concrete_model is instance._meta.concrete_model and primary_key(other) == key:
            fresh = other._state.__dict__.get(_LOADED) or {}
            former = loaded_values(instance)
            held = instance._state.__dict__.get(_LOADED)
            unit = held.unit.find() if isinstance(held, _Provisional) else None
            set_loaded(instance, {**(former or {}), **fresh}, unit)
            return


def primary_key(instance: models.Model) -> tuple[object, ...]:
    values = instance.__dict__
    return tuple(values.get(column.attname) for column in instance._meta.pk_fields)


def comparable(column: Any, value: object) -> Any:
    """A value as the column holds it, hashable, or `UNKNOWN`."""
    try:
        if isinstance(value, enum.Enum):
            value = value.value
        if value is None or hasattr(value, "resolve_expression"):
            return None if value is None else UNKNOWN
        value = column.to_python(value)
        hash(value)
    except Exception as error:
        guard.pass_on(error)
        # Not a value of this column, or a mutable one: nothing it could be compared with.
        return UNKNOWN
    return value
