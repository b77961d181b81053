"""Exceptions on their way to the store: captured on the request path, counted until the writer takes them.

Every exception counts, also of requests that are not sampled. What is captured holds no frame and no local variable:
names, files and line numbers alone. Source lines are read and texts redacted in the writer's thread.
"""

from __future__ import annotations

import os
import sysconfig
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from django_otel.base import guard
from django_otel.tracing.exceptions import type_name

#: Issues that wait for the writer; exceptions of further ones share one.
MAX_PENDING = 500
#: Of each issue until the writer takes it: traces and routes.
MAX_TRACES = 10
MAX_ROUTES = 50
OTHER_ROUTES = "(other routes)"
_MAX_FRAMES = 60
_MAX_CHAIN = 5
_MAX_MESSAGE = 2000
_OWN_PACKAGE = str(Path(__file__).resolve().parents[1]) + os.sep
_LIBRARIES = tuple(
    {path.rstrip(os.sep) + os.sep for name in ("stdlib", "platstdlib") if (path := sysconfig.get_path(name))}
    | {_OWN_PACKAGE}
)


@dataclass(frozen=True, slots=True)
class Frame:
    """A place that an exception passed through."""

    module: str
    function: str
    file: str
    line: int

    @property
    def is_project(self) -> bool:
        """Return whether it is code of the project: not of the standard library, an installed package or this one."""
        return not (
            self.file.startswith(_LIBRARIES)
            or "site-packages" in self.file
            or "dist-packages" in self.file
            or self.file.startswith("<frozen")
        )


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception: its type, its text and its frames, outermost first."""

    type: str
    message: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class SeenIn:
    """A trace in which an exception was raised."""

    trace_id: str
    span_id: str
    at_s: float
    route: str


@dataclass(slots=True)
class PendingError:
    """Equal exceptions since the writer last took them. Units: seconds since the Unix epoch."""

    type: str
    module: str
    function: str
    chain: tuple[Raised, ...] = ()
    count: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    routes: dict[str, int] = field(default_factory=dict)
    traces: list[SeenIn] = field(default_factory=list)
    #: Counts by the beginning of their step.
    steps: dict[int, int] = field(default_factory=dict)

    def add(self, other: PendingError) -> None:
        """Put back errors that could not be written."""
        self.chain = self.chain or other.chain
        self.count += other.count
        self.first_s = min(self.first_s or other.first_s, other.first_s)
        self.last_s = max(self.last_s, other.last_s)
        for route, count in other.routes.items():
            self.note_route(route, count)
        for at_s, count in other.steps.items():
            self.steps[at_s] = self.steps.get(at_s, 0) + count
        self.traces = [*other.traces, *self.traces][-MAX_TRACES:]

    def note_route(self, route: str, count: int) -> None:
        """Count exceptions of a route."""
        if route not in self.routes and len(self.routes) >= MAX_ROUTES:
            route = OTHER_ROUTES
        self.routes[route] = self.routes.get(route, 0) + count


#: The chart's steps, in seconds.
STEP_S = 900


class ErrorCollector:
    """Counts exceptions by type and place until the writer takes them. `on_first()` is called when there are some."""

    def __init__(self, on_first: Callable[[], None]) -> None:
        self._on_first = on_first
        self.reset()

    def reset(self) -> None:
        """In a child process: pending errors are the parent's, and its lock may be held."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._pending: dict[tuple[str, str, str], PendingError] = {}

    @property
    def has_pending(self) -> bool:
        return bool(self._pending)

    def add(self, error: BaseException, route: str, trace_id: int = 0, span_id: int = 0) -> None:
        """Count an exception; the ids are those of its recorded span, or 0. Never raises an `Exception`."""
        with guard.contained("counting an exception"):
            self._add(error, route, trace_id, span_id)

    def _add(self, error: BaseException, route: str, trace_id: int, span_id: int) -> None:
        if self._pid != os.getpid():
            # A fork that ran no hooks (uWSGI's own).
            self.reset()
        now_s = time.time()
        frames = _frames_of(error.__traceback__)
        place = find_place(frames)
        module, function = (place.module, place.function) if place is not None else ("", "")
        key = (type_name(error), module, function)
        if key not in self._pending and len(self._pending) >= MAX_PENDING:
            key = ("(other)", "", "")
        # The first alone is described. Should the writer take it just now, the next is stored without a description.
        chain = () if key in self._pending else _chain_of(error, frames)
        with self._lock:
            is_first = not self._pending
            pending = self._pending.setdefault(key, PendingError(*key))
            pending.chain = pending.chain or chain
            pending.count += 1
            pending.first_s = pending.first_s or now_s
            pending.last_s = now_s
            pending.note_route(route, 1)
            step = int(now_s // STEP_S) * STEP_S
            pending.steps[step] = pending.steps.get(step, 0) + 1
            if trace_id:
                pending.traces.append(SeenIn(f"{trace_id:032x}", f"{span_id:016x}", now_s, route))
                del pending.traces[:-MAX_TRACES]
        if is_first:
            self._on_first()

    def take(self) -> list[PendingError]:
        """Return the pending errors, and forget them."""
        with self._lock:
            taken, self._pending = self._pending, {}
        return list(taken.values())

    def give_back(self, errors: list[PendingError]) -> None:
        """Keep errors that could not be written for the next time."""
        with self._lock:
            for error in errors:
                key = (error.type, error.module, error.function)
                if key in self._pending:
                    self._pending[key].add(error)
                elif len(self._pending) < 2 * MAX_PENDING:
                    self._pending[key] = error


def find_place(frames: tuple[Frame, ...]) -> Frame | None:
    """The place by which an exception is grouped: the innermost of the project's own frames, else the innermost."""
    return next((frame for frame in reversed(frames) if frame.is_project), frames[-1] if frames else None)


def _frames_of(traceback: TracebackType | None) -> tuple[Frame, ...]:
    found: list[Frame] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        module = traceback.tb_frame.f_globals.get("__name__", "")
        found.append(Frame(str(module), code.co_qualname, code.co_filename, traceback.tb_lineno or 0))
        traceback = traceback.tb_next
        if len(found) >= 2 * _MAX_FRAMES:
            # Of an endless recursion its beginning and its end.
            del found[_MAX_FRAMES // 2]
    if len(found) > _MAX_FRAMES:
        del found[_MAX_FRAMES // 2 : len(found) - _MAX_FRAMES // 2]
    return tuple(found)


def _chain_of(error: BaseException, frames: tuple[Frame, ...]) -> tuple[Raised, ...]:
    """The exception and those that led to it, the newest first."""
    chain: list[Raised] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen and len(chain) < _MAX_CHAIN:
        seen.add(id(current))
        own = frames if current is error else _frames_of(current.__traceback__)
        chain.append(Raised(type_name(current), _message_of(current), own))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return tuple(chain)


def _message_of(error: BaseException) -> str:
    try:
        return str(error)[: 2 * _MAX_MESSAGE]
    except Exception as fault:
        guard.pass_on(fault)
        return ""
