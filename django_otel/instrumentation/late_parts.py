"""Parts that are imported only if something uses them: a library that the project imports, or a setting.

Most processes have none of Celery, RQ, GraphQL or the names of django-prometheus. A part for one of these is
imported, and follows the settings, from the moment its library is imported; a start pays for no more than a hook.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

from django_otel.base import guard, import_hooks
from django_otel.config.schema import Config

if TYPE_CHECKING:

    class Part(Protocol):
        """A module that follows the settings. Both may be called again and again."""

        def install(self, config: Config) -> None: ...

        def uninstall(self) -> None: ...


class LatePart:
    """A part by the name of its module, imported when one of `libraries` is, or when the settings ask for it."""

    def __init__(
        self, module: str, *libraries: str, is_wanted: Callable[[Config], bool] = lambda config: False
    ) -> None:
        self._module = module
        self._libraries = libraries
        self._is_wanted = is_wanted
        self._config: Config | None = None

    def install(self, config: Config) -> None:
        """Follow the settings, at once or as soon as a library is imported."""
        self._config = config
        if self._module in sys.modules or self._is_wanted(config):
            self._load().install(config)
            return
        for library in self._libraries:
            if not import_hooks.when_imported(library, self._arrive_with_library, part=self._module):
                self._load().install(config)
                return
        import_hooks.when_imported(self._module, self._arrive, part=self._module)

    def uninstall(self) -> None:
        """Take everything back, and wait for nothing."""
        self._config = None
        self._wait_no_longer()
        if self._module in sys.modules:
            self._load().uninstall()

    def _arrive_with_library(self) -> None:
        # Else the part itself is being imported, by a test say, and is not whole yet.
        if self._module not in sys.modules:
            self._arrive()

    def _arrive(self) -> None:
        config = self._config
        if config is not None:
            with guard.contained(f"starting {self._module}"):
                self._load().install(config)

    def _load(self) -> Part:
        # First: what the part imports may itself be waited for.
        self._wait_no_longer()
        return cast("Part", importlib.import_module(self._module))

    def _wait_no_longer(self) -> None:
        for library in (*self._libraries, self._module):
            import_hooks.forget(library, part=self._module)
