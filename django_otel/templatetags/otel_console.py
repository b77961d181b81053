"""Filters of the console's own templates; not part of the public template library."""

from __future__ import annotations

from collections.abc import Iterable

from django import template

from django_otel.live_sampling.assets import static_address
from django_otel.live_sampling.isolation import bdi, ltr, visible

register = template.Library()
register.filter(visible)
register.filter(bdi)
register.filter(ltr)


@register.simple_tag
def otel_static(path: str) -> str:
    """The address of a static file of ours, also before `collectstatic` has put it into the manifest."""
    return static_address(path)


@register.filter
def bdi_each(values: Iterable[object]) -> list[object]:
    """`bdi` of each text of a list, and of the lists within it."""
    return [bdi_each(value) if isinstance(value, list | tuple) else bdi(value) for value in values]
