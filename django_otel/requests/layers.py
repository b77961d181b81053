"""Time budget of a request: the time of each layer, with each moment counted once.

Of the layers that are open at a moment the innermost has the time: database before cache, cache before outbound HTTP,
that before templates, then the view, and middleware for everything else. So nested layers, and those that overlap in
several tasks or threads, are never counted twice, and the layers add up to the whole.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

from django_otel.config.schema import Config
from django_otel.metrics.series import HAS_GLOBAL_LOCK

if TYPE_CHECKING:
    from django_otel.requests.record import RequestRecord

#: The layers that `enter` takes, the outermost first.
TEMPLATE, HTTP, CACHE, DATABASE = range(1, 5)
#: The name of each, as `django.layer`.
NAMES = ("", "template", "http", "cache", "database")
MIDDLEWARE, VIEW = "middleware", "view"
#: Begin and end of the attributes of a request's span, in seconds.
PREFIX, SUFFIX = "django.layer.", ".duration"
_ATTRIBUTES = {name: f"{PREFIX}{name}{SUFFIX}" for name in (*NAMES, MIDDLEWARE, VIEW)}


def is_wanted(config: Config) -> bool:
    """Return whether the layers of requests are timed."""
    return config.enabled and (config.request.time_budget or config.request.server_timing)


class Layers:
    """Which layers of one request are open, and the time of each, in seconds."""

    __slots__ = ("active", "is_mixed", "open", "seconds", "since_s")

    def __init__(self) -> None:
        #: How often each layer is open.
        self.open = [0, 0, 0, 0, 0]
        #: By layer, up to `since_s`.
        self.seconds = [0.0, 0.0, 0.0, 0.0, 0.0]
        #: The innermost open layer, 0 without one, and since when.
        self.active = 0
        self.since_s = 0.0
        #: Whether another layer may be open as well.
        self.is_mixed = False


# No calls and no loops from the comments below on, so that CPython lets no other thread in between (see
# `metrics.series`). Times that another thread overtakes still add up: each interval begins where the last one ended.


def enter(record: RequestRecord | None, layer: int, now_s: float) -> Layers | None:
    """Let a layer of the request, if there is one, begin at `now_s`, a reading of `perf_counter`; `leave` ends it."""
    if record is None:
        return None
    opened = record.layers
    if opened is None:
        # Of two threads that come at once both get the same.
        opened = record.layers = record.keep("layers", Layers())
    # Not interrupted from here.
    opened.open[layer] += 1
    active = opened.active
    if not active:
        opened.active = layer
        opened.since_s = now_s
    elif layer > active:
        opened.seconds[active] += now_s - opened.since_s
        opened.active = layer
        opened.since_s = now_s
        opened.is_mixed = True
    elif layer < active:
        opened.is_mixed = True
    return opened


def leave(opened: Layers | None, layer: int) -> float:
    """Let the layer end that `enter` has begun; the time, as `perf_counter` has it."""
    now_s = perf_counter()
    # Not interrupted from here.
    if opened is not None:
        still_open = opened.open
        still_open[layer] -= 1
        if layer == opened.active and not still_open[layer]:
            opened.seconds[layer] += now_s - opened.since_s
            opened.since_s = now_s
            if not opened.is_mixed:
                opened.active = 0
            elif still_open[3]:
                opened.active = 3
            elif still_open[2]:
                opened.active = 2
            elif still_open[1]:
                opened.active = 1
            else:
                opened.active = 0
                opened.is_mixed = False
    return now_s


def settle_layers(opened: Layers, now_s: float) -> float:
    """Count open layers up to now; return the time in all layers, in seconds."""
    seconds = opened.seconds
    # Not interrupted from here.
    seconds[opened.active] += now_s - opened.since_s
    opened.since_s = now_s
    return seconds[1] + seconds[2] + seconds[3] + seconds[4]


def _under_lock(update: Callable[..., object]) -> Callable[..., object]:
    """The update for a Python without a global lock."""

    @functools.wraps(update)
    def locked(*arguments: object) -> object:
        with _lock:
            return update(*arguments)

    return locked


if not HAS_GLOBAL_LOCK:
    _lock = threading.Lock()
    enter = _under_lock(enter)  # type: ignore[assignment]
    leave = _under_lock(leave)  # type: ignore[assignment]
    settle_layers = _under_lock(settle_layers)  # type: ignore[assignment]


def enter_view(record: RequestRecord, view: object) -> None:
    """The view begins; `leave_view` ends it."""
    now_s, layers = perf_counter(), record.layers
    record.view = view
    # Of a clock that stands still while a layer inside is open.
    record.view_from_s = now_s if layers is None else now_s - settle_layers(layers, now_s)


def leave_view(record: RequestRecord, now_s: float) -> None:
    """The view ends at `now_s`."""
    layers = record.layers
    record.view = None
    record.view_s += (now_s if layers is None else now_s - settle_layers(layers, now_s)) - record.view_from_s


def settle(record: RequestRecord, ended_s: float) -> float:
    """End what is still open at the end of the request; the time outside of the layers inside, in seconds."""
    if record.view is not None:
        leave_view(record, ended_s)
    own_s = ended_s - record.started_s
    return own_s if record.layers is None else own_s - settle_layers(record.layers, ended_s)


def measure(record: RequestRecord, now_s: float) -> dict[str, float]:
    """The time of each layer up to now by its name, in seconds; layers without any are left out."""
    found: dict[str, float] = {}
    own_s, view_s, layers = now_s - record.started_s, record.view_s, record.layers
    nested_s = 0.0
    if layers is not None:
        nested_s = settle_layers(layers, now_s)
        found = {name: seconds for name, seconds in zip(NAMES, layers.seconds, strict=True) if name and seconds > 0.0}
    own_s -= nested_s
    if record.view is not None:
        view_s += now_s - nested_s - record.view_from_s
    if view_s > 0.0:
        found[VIEW] = view_s
    if own_s > view_s:
        found[MIDDLEWARE] = own_s - view_s
    return found


def layer_attributes(record: RequestRecord, ended_s: float) -> dict[str, float]:
    """The attributes of a request's span: `django.layer.<layer>.duration`, in seconds."""
    view_s = record.view_s
    if record.layers is None and record.view is None and view_s > 0.0:
        # As most requests are: middlewares and the view, and nothing inside.
        own_s = ended_s - record.started_s - view_s
        return {_ATTRIBUTES[VIEW]: view_s, _ATTRIBUTES[MIDDLEWARE]: own_s}
    return {_ATTRIBUTES[name]: seconds for name, seconds in measure(record, ended_s).items()}
