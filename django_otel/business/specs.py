"""Specs: registrations, prepared for one concrete class each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db import models

from django_otel.base.frozen import record


@record
class Transition:
    """The events of changes to one column, by the new value."""

    attname: str
    names: frozenset[str]
    column: Any
    events: Mapping[Any, str]


@record
class Spec:
    """A registration made ready for one concrete class."""

    model: type[models.Model]
    label: str
    created: str | None = None
    updated: str | None = None
    deleted: str | None = None
    transitions: tuple[Transition, ...] = ()
    #: (attribute name, attname)
    attributes: tuple[tuple[str, str], ...] = ()
    metric: bool = True

    @property
    def is_watching(self) -> bool:
        """Return whether values must be remembered when instances are loaded."""
        return bool(self.transitions)


class Registry:
    """The effective specs."""

    def __init__(self) -> None:
        #: By class, also of proxies and children. Replaced as a whole by `business`, never changed.
        self.specs: Mapping[type[models.Model], Spec] = {}


registry = Registry()


def spec_of(cls: type[models.Model]) -> Spec | None:
    """Return the spec of a class, or of its nearest ancestor if the class was made after the registration."""
    specs = registry.specs
    spec = specs.get(cls)
    if spec is None:
        spec = next((specs[base] for base in cls.__mro__ if base in specs), None)
    return spec
