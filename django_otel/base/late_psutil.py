"""Import of the SDK's resources without psutil, which only an optional detector uses.

Where psutil is installed, `opentelemetry.sdk.resources` imports it: six modules, a tenth of what this package adds to
a start. Here that one import finds none, and the SDK gets a stand-in that imports psutil when it is first used.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any

_NAME = "psutil"
_RESOURCES = "opentelemetry.sdk.resources"


class _Refusal:
    """A finder that says to the thread that made it, and to no other, that psutil is not installed."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == _NAME and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"{_NAME} is imported later", name=name)


class _StandIn(ModuleType):
    """In the place of psutil; imports it with the first attribute that is read."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(_NAME), name)


def import_resources() -> None:
    """Import the SDK's resources; psutil stays out of the process unless it is there or is asked for."""
    if _NAME in sys.modules or _RESOURCES in sys.modules or importlib.util.find_spec(_NAME) is None:
        return
    refusal = _Refusal()
    sys.meta_path.insert(0, refusal)
    try:
        resources: Any = importlib.import_module(_RESOURCES)
    finally:
        sys.meta_path.remove(refusal)
    if getattr(resources, _NAME, _NAME) is None:
        resources.psutil = _StandIn(_NAME)
