"""Callbacks that run as soon as a module has been imported.

An instrumentor imports the library that it instruments. Where the project has
it installed but does not use it, or only in some processes, that is a hundred
milliseconds and twenty megabytes for nothing.

What finds and loads the module is whatever would have done so without us: we
ask the other finders, and stand before the loader for this one module alone.
When its code runs, the loader is in its place again, so that resources, source
and reloading work as always. `wrapt` has such hooks, too; importing it takes
half as long as all of the API.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from django_otel.base import forks, guard

if TYPE_CHECKING:
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_waiting: dict[str, dict[str, Callable[[], None]]] = {}


class _Finder:
    def __init__(self) -> None:
        self.renew_lock()

    def renew_lock(self) -> None:
        """In a forked child: another of the parent's threads may have held it."""
        self.lock = threading.Lock()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        # Every import of the process comes by here.
        if name not in _waiting:
            return None
        for finder in tuple(sys.meta_path):
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: Any = None if find is None else find(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader:
    """Stands before a module's loader until the module's code runs."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        create = getattr(self._loader, "create_module", None)
        return None if create is None else create(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        if getattr(module, "__loader__", None) is self:
            module.__loader__ = self._loader
        self._loader.exec_module(module)
        for callback in _take(module.__name__):
            # The application's import is under way; a fault of ours is not its business.
            with guard.contained(f"what waits for the import of {module.__name__}"):
                callback()


_finder = _Finder()
forks.register("base.import_hooks", _finder.renew_lock)


def when_imported(name: str, callback: Callable[[], None], *, part: str = "") -> bool:
    """Call `callback()` once, in the thread that imports the module `name`, right after its code has run.

    One callback per module and `part` of this package, the last one given.
    Gives False, and waits for nothing, when the module is there already.
    """
    with _finder.lock:
        if name in sys.modules:
            return False
        _waiting.setdefault(name, {})[part] = callback
        if _finder not in sys.meta_path:
            sys.meta_path.insert(0, _finder)
    return True


def forget(name: str, *, part: str = "") -> Callable[[], None] | None:
    """Stop waiting for a module; return its callback, or None."""
    with _finder.lock:
        parts = _waiting.get(name, {})
        callback = parts.pop(part, None)
        if not parts:
            _waiting.pop(name, None)
        _stop_if_idle()
    return callback


def _take(name: str) -> list[Callable[[], None]]:
    """Return the callbacks of a module that has been imported, and stop waiting."""
    with _finder.lock:
        callbacks = list(_waiting.pop(name, {}).values())
        _stop_if_idle()
    return callbacks


def _stop_if_idle() -> None:
    if not _waiting and _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
