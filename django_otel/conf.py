"""`settings.OTEL` as a `Config`, parsed once, and again if the setting changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from django.conf import settings
from django.core.signals import setting_changed

from django_otel.config.parse import parse
from django_otel.config.schema import Config, ConfigError, Problem

_cached: Config | ConfigError | None = None
_change_callbacks: list[Callable[[], None]] = []


def get_config() -> Config:
    """The effective configuration.

    Errors: `ConfigError` with every problem when `settings.OTEL` is invalid.
    """
    global _cached  # noqa: PLW0603 (the one value that the module keeps)
    if _cached is None:
        try:
            _cached = parse(getattr(settings, "OTEL", None), os.environ, _default_service_name(), _is_propagator)
        except ConfigError as error:
            _cached = error
    if isinstance(_cached, ConfigError):
        raise _cached
    return _cached


def get_problems() -> list[Problem]:
    """Return the problems of `settings.OTEL`; empty if it is valid."""
    try:
        get_config()
    except ConfigError as error:
        return error.problems
    return []


def is_debug() -> bool:
    """Return whether `settings.DEBUG` is on."""
    return bool(settings.DEBUG)


def is_console_on(config: Config) -> bool:
    """Return whether traces are stored and shown in the admin: as `CONSOLE.ENABLED` says, else with DEBUG."""
    enabled = config.console.enabled
    return is_debug() if enabled is None else enabled


#: The pages of the console, wherever the admin is mounted.
CONSOLE_PAGES = ("trace", "dashboard", "errors", "slow", "queries", "logs", "instruments", "tasks")
CONSOLE_PATHS = tuple(f"*/django_otel/{page}/*" for page in CONSOLE_PAGES)


def excluded_paths(config: Config) -> tuple[str, ...]:
    """Path patterns of requests that are neither traced nor counted: the project's, and those of the console's pages.

    Where the console is off its addresses answer with a sentence, so they are left alone.
    """
    return (*config.request.exclude, *CONSOLE_PATHS) if is_console_on(config) else config.request.exclude


def deployment_identity(config: Config) -> str:
    """Return an identity of this deployment among others of the same user on this machine."""
    base = getattr(settings, "BASE_DIR", None) or Path.cwd()
    return "|".join((str(getattr(settings, "SETTINGS_MODULE", "")), str(base), config.service_name or ""))


def project_identity() -> str:
    """Return an identity of this project among others of the same user on this host, for web server and workers alike.

    Its place, the package of its settings and its database; not its SERVICE_NAME, which workers may have of their own.
    """
    package = _default_service_name()
    base = getattr(settings, "BASE_DIR", None) or Path.cwd()
    database = dict(getattr(settings, "DATABASES", {}).get("default", {}))
    place = [str(database.get(key) or "") for key in ("ENGINE", "NAME", "HOST", "PORT")]
    return "|".join((package, str(base), *place))


def forget() -> None:
    """Parse again at the next look."""
    global _cached  # noqa: PLW0603 (the one value that the module keeps)
    _cached = None


def _is_propagator(name: str) -> bool:
    """Return whether a propagation format of that name is installed."""
    from importlib.metadata import entry_points

    return bool(entry_points(group="opentelemetry_propagator", name=name))


def _default_service_name() -> str:
    module = getattr(settings, "SETTINGS_MODULE", None) or os.environ.get("DJANGO_SETTINGS_MODULE") or "django"
    return str(module).split(".", 1)[0]


def on_change(callback: Callable[[], None]) -> None:
    """Call `callback()` after `override_settings(OTEL=...)` has changed the setting."""
    if callback not in _change_callbacks:
        _change_callbacks.append(callback)


def _on_setting_changed(*, setting: str, **_: object) -> None:
    if setting == "OTEL":
        forget()
        for callback in _change_callbacks:
            callback()


setting_changed.connect(_on_setting_changed, dispatch_uid="django_otel.conf")
