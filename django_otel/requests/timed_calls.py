"""Calls whose time belongs to one layer of the request that makes them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from time import perf_counter

from django_otel.requests import layers
from django_otel.requests.record import current


def time_call(layer: int, plain: Callable[..., object]) -> Callable[..., object]:
    """Return `plain`, whose time is that layer's (`layers.DATABASE`, ...) where it is called in a request."""

    @functools.wraps(plain)
    def timed(*args: object, **kwargs: object) -> object:
        opened = layers.enter(current(), layer, perf_counter())
        try:
            return plain(*args, **kwargs)
        finally:
            layers.leave(opened, layer)

    return timed
