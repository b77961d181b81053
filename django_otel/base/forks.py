"""Actions before and after a fork: one list, in one order.

Each part registers what it does under its name in `ORDER`; nothing else in the
package calls `os.register_at_fork`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator

from django_otel.base import guard

Hook = Callable[[], object]

#: Actions of a forked child, at once, in this order, each with the reason for its place.
EARLY = (
    ("base.guard", "its lock first: faults in what follows are reported through it"),
    ("base.forks", "its gate, before anything is imported"),
    ("base.import_hooks", "its lock, before anything is imported"),
    ("logs", "its lock, before anything is logged"),
    (
        "base.log_levels",
        "temporary levels end: the child follows them from its first measurement on",
    ),
    ("metrics.store", "numbers begin at zero, in private memory: the cells in the shared file are the parent's"),
    ("multiprocess.sharing", "the parent's slot is closed: a child that kept its lock open would keep it held"),
    ("live_sampling.follower", "the same for the lock of the host's folder"),
    ("tracestore.file", "connections of the parent are not used any more"),
)
#: Actions after the fork hooks of the SDK's providers, which replace their resource, in this order.
LATE = (
    ("runtime.membership", "locks and process id: the child joins with its first measurement, as a process of its own"),
    ("tracing.ids", "another state of the random source, or parent and child would draw the same ids"),
    ("sampling.limiter", "the limit of traces per second begins again; a thread of the parent may hold its lock"),
    ("export.resource", "another `service.instance.id`"),
    ("export.traces", "the resource in our tracer provider; empty queues, no tail of the parent"),
    ("export.metrics", "the resource in our meter provider; no thread, SDK instruments at zero"),
    ("export.logs", "the resource in our logger provider; empty queues"),
    ("instrumentation.process_metrics", "collections and pauses of the parent are the parent's; another event loop"),
    ("instrumentation.migrations", "the parent's thread is not there: the child reads for itself"),
    ("tracestore.processor", "an empty queue of the console; its thread starts with the first measurement"),
)
#: The whole list.
ORDER = (*EARLY, *LATE)


class ForkGate:
    """Delays a fork while other threads are in operations that a child must not inherit half done.

    Neither side waits longer than `patience_s` seconds for the other.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        #: Made with the first use, after gevent has patched `threading`.
        self._condition: threading.Condition | None = None
        self._pid = os.getpid()
        #: The threads inside, by `threading.get_ident`; once for each time that one is.
        self._users: list[int] = []
        self._forks = 0
        #: Whether this process was forked at a bad moment.
        self.is_tainted = False

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Hold forks off for as long as the block takes; a thread that is inside may enter again."""
        # A fork may have run no hooks (uWSGI's own).
        self.after_in_child()
        condition = self._condition
        if condition is None:
            # Of two threads both use the same.
            condition = self.__dict__.setdefault("_made", threading.Condition())
            self._condition = condition
        thread = threading.get_ident()
        with condition:
            condition.wait_for(lambda: not self._forks or thread in self._users, self._patience_s)
            self._users.append(thread)
        try:
            yield
        finally:
            with condition:
                # A child that was forked inside the block has begun with an empty list.
                if thread in self._users:
                    self._users.remove(thread)
                condition.notify_all()

    def before_fork(self) -> None:
        """Wait for the other threads inside, and let no other one in."""
        if self._condition is not None:
            # What is imported may fork itself; then its thread does not wait for itself.
            thread = threading.get_ident()
            with self._condition:
                self._forks += 1
                self._condition.wait_for(lambda: all(user == thread for user in self._users), self._patience_s)

    def after_in_parent(self) -> None:
        """Let threads in again."""
        if self._condition is not None:
            with self._condition:
                self._forks = max(0, self._forks - 1)
                self._condition.notify_all()

    def after_in_child(self) -> None:
        """Once in each forked child: nothing of the parent's threads is here."""
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self.is_tainted = self.is_tainted or bool(self._users)
        # Made with the next use: gunicorn's workers fork first and patch then.
        self._condition = None
        self.__dict__.pop("_made", None)
        self._users, self._forks = [], 0


#: A module that a thread is importing while another one forks stays locked in the child: an import of it there never
#: returns. So our threads do this inside `importing.using()`.
importing = ForkGate(patience_s=5.0)

_NAMES = {name for name, _ in ORDER}
_children: dict[str, list[Hook]] = {"base.guard": [guard.renew_lock], "base.forks": [importing.after_in_child]}
_before: list[Hook] = []
_parents: list[Hook] = []
#: One entry for each time the late part was registered; the last one does it.
_listeners: list[object] = []


def register(name: str, in_child: Hook, *, before: Hook | None = None, in_parent: Hook | None = None) -> None:
    """Call `in_child()` in every forked child at the place of `name` in `ORDER`; `before` and `in_parent` around forks.

    Faults in them are contained. Errors: ValueError when `ORDER` has no such name.
    """
    if name not in _NAMES:
        raise ValueError(f"{name!r} has no place in the order after a fork (base/forks.py).")
    _children.setdefault(name, []).append(in_child)
    if before is not None:
        _before.insert(0, before)
    if in_parent is not None:
        _parents.append(in_parent)


def run_child_hooks() -> None:
    """Do all that a forked child does, in a child whose fork ran none of Python's hooks (uWSGI's own)."""
    _run_children(ORDER)


def listen() -> None:
    """Do the late part after the fork hooks that exist now; call it when a provider of the SDK was made."""
    mark = object()
    _listeners.append(mark)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=functools.partial(_run_late, mark))


def _run_late(mark: object) -> None:
    if mark is _listeners[-1]:
        _run_children(LATE)


def _run_children(part: tuple[tuple[str, str], ...]) -> None:
    for name, _ in part:
        _run(_children.get(name, ()), f"what {name} does after a fork")


def _run(hooks: list[Hook] | tuple[Hook, ...], place: str) -> None:
    for hook in hooks:
        with guard.contained(place):
            hook()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        # The gate first, while the other locks are free: what is imported may count and log.
        before=lambda: _run([importing.before_fork, *_before], "what precedes a fork"),
        after_in_parent=lambda: _run([*_parents, importing.after_in_parent], "what the parent does after a fork"),
        after_in_child=lambda: _run_children(EARLY),
    )
