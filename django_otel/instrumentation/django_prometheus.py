"""Statements under the names of django-prometheus (`METRICS["NAMES"]`), and what the project calls its parts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from opentelemetry.context import get_value

from django_otel import runtime
from django_otel.base import guard
from django_otel.base.sdk_compat import SUPPRESS_INSTRUMENTATION_KEY
from django_otel.config.schema import Config
from django_otel.metrics import django_prometheus
from django_otel.metrics.django_prometheus import Names
from django_otel.metrics.model import Family
from django_otel.metrics.series import HistogramSeries, Series
from django_otel.requests.django_prometheus import find_instrument

_PLACE = "the django-prometheus names of database operations"
#: By class path of the backend, the label that django-prometheus' own backends have.
_CACHE_LABELS = {
    "django.core.cache.backends.redis": "native_redis", "django_redis.cache": "redis",
    "django_prometheus.cache.backends.redis.NativeRedisCache": "native_redis",
}  # fmt: skip


class _State:
    """State that changes with the settings."""

    def __init__(self) -> None:
        #: Whether statements are counted.
        self.is_on = False
        #: Whether these names have been in use in this process.
        self.was_on = False
        #: The settings that series were opened under.
        self.generation = -1
        self.series: dict[tuple[str, ...], Series] = {}


_state = _State()


class _Parts:
    """Parts of the project that this package may not import."""

    def __init__(self) -> None:
        #: Labels of the models that are registered for business events; set by the app's configuration.
        self.find_models: Callable[[], Sequence[str]] = list


parts = _Parts()


class StatementCounter:
    """An execute wrapper of one connection."""

    def __call__(
        self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Mapping[str, Any]
    ) -> Any:
        """Run the statement, and count it."""
        # Queries of this package itself are not statements of the project.
        # Nor is SQLite's BEGIN counted there, which other databases do not have.
        if not _state.is_on or get_value(SUPPRESS_INSTRUMENTATION_KEY) or _is_begin(sql):
            return execute(sql, params, many, context)
        error: BaseException | None = None
        started_s = perf_counter()
        try:
            return execute(sql, params, many, context)
        except BaseException as raised:
            error = raised
            raise
        finally:
            duration_s = perf_counter() - started_s
            with guard.contained(_PLACE):
                _count(context["connection"], duration_s, params if many else None, error)


def _is_begin(sql: object) -> bool:
    return type(sql) is str and sql.startswith("BEGIN")


def _count(connection: BaseDatabaseWrapper, duration_s: float, batch: Any, error: BaseException | None) -> None:
    alias, vendor = connection.alias, connection.vendor
    # The number of rows; an iterator has used itself up, and counts as one.
    number = 1 if batch is None or not isinstance(batch, Sequence) else len(batch)
    _open("django_db_execute_total", alias, vendor).add(float(number))
    if batch is not None:
        _open("django_db_execute_many_total", alias, vendor).add(float(number))
    duration = _open("django_db_query_duration_seconds", alias, vendor)
    assert isinstance(duration, HistogramSeries)
    duration.observe(duration_s)
    if error is not None:
        # Django's exception stands for the driver's, by which django-prometheus counts.
        _open("django_db_errors_total", alias, vendor, type(error.__cause__ or error).__name__).add(1.0)


def _open(name: str, alias: str, vendor: str, error: str = "") -> Series:
    generation = runtime.current().generation
    if _state.generation != generation:
        _state.series, _state.generation = {}, generation
    key = (name, alias, vendor, error)
    found = _state.series.get(key)
    if found is None:
        labels = {"alias": alias, "vendor": vendor, **({"type": error} if error else {})}
        found = _state.series[key] = find_instrument(runtime.store, name).series(labels)
    return found


@guard.guarded(_PLACE, None)
def _attach(connection: BaseDatabaseWrapper) -> None:
    if not any(isinstance(wrapper, StatementCounter) for wrapper in connection.execute_wrappers):
        connection.execute_wrappers.append(StatementCounter())


# --- What the project calls its parts. ---


def _find_names() -> Names:
    """Vendors, cache backends and models by the names of our metrics. Opens no connection."""
    return Names(
        {alias: _find_vendor(alias) for alias in connections},
        {alias: _name_backend(str(given.get("BACKEND", ""))) for alias, given in settings.CACHES.items()},
        _name_models(parts.find_models()),
    )


def _find_vendor(alias: str) -> str:
    with guard.contained(_PLACE):
        return str(connections[alias].vendor)
    return "unknown"


def _name_backend(path: str) -> str:
    """`locmem`, `filebased`, `memcached`, `redis`, `native_redis`; of others the module's name."""
    module = path.rpartition(".")[0]
    return _CACHE_LABELS.get(path) or _CACHE_LABELS.get(module) or module.rpartition(".")[2] or path


def _name_models(labels: Sequence[str]) -> dict[str, str]:
    """Each label's name in lower case, as django-prometheus documents it; with the app where two share it."""
    names = [label.rpartition(".")[2].lower() for label in labels]
    return {
        label: name if names.count(name) == 1 else label.lower() for label, name in zip(labels, names, strict=True)
    }  # fmt: skip


# --- On and off. ---


def install(config: Config) -> None:
    """Follow `METRICS["NAMES"]`. May be called again and again."""
    if not config.enabled or config.metrics.names == "otel":
        uninstall()
        return
    keeps_ours = config.metrics.names == "both"
    _state.was_on = True

    def present(families: list[Family]) -> list[Family]:
        return django_prometheus.present(families, _find_names(), keeps_ours=keeps_ours)

    runtime.current().present = present
    _state.is_on = config.database.metrics
    if not _state.is_on:
        return
    connection_created.connect(_on_connection_created, dispatch_uid=__name__)
    for connection in connections.all(initialized_only=True):
        if connection.connection is not None:
            _attach(connection)


def uninstall() -> None:
    """Count nothing more under these names, and show what was counted no longer."""
    # Values measured under other settings are still in the store.
    runtime.current().present = django_prometheus.without_legacy if _state.was_on else list
    _state.is_on = False
    connection_created.disconnect(dispatch_uid=__name__)
    for connection in connections.all(initialized_only=True):
        for wrapper in [found for found in connection.execute_wrappers if isinstance(found, StatementCounter)]:
            with contextlib.suppress(ValueError):
                connection.execute_wrappers.remove(wrapper)


def _on_connection_created(connection: BaseDatabaseWrapper, **_: object) -> None:
    _attach(connection)
