"""Template and cache time of a request, for `REQUEST.SERVER_TIMING`; without it nothing here is in place.

Only sums: no span, no metric. Django's own templates and every cache backend.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from time import perf_counter
from typing import Any

from django.core.cache import CacheHandler, caches
from django.core.cache.backends.base import BaseCache
from django.template.base import Template

from django_otel.core import guard, observation
from django_otel.core.config import Config

_METHODS = (
    "add", "get", "set", "touch", "delete", "get_many", "get_or_set", "has_key", "incr", "decr", "set_many",
    "delete_many", "clear",
)  # fmt: skip
_MARK = "_django_otel_timed"

_plain_render = Template.render
_plain_create_connection = CacheHandler.create_connection
_is_on = False


def _render(self: Template, context: Any) -> Any:
    request = observation.current()
    notes = request.notes if request is not None else None
    if notes is None or notes.is_in_template:
        return _plain_render(self, context)
    notes.is_in_template = True
    started_s = perf_counter()
    try:
        return _plain_render(self, context)
    finally:
        notes.is_in_template = False
        notes.template_s += perf_counter() - started_s


def _create_connection(self: CacheHandler, alias: str) -> Any:
    cache = _plain_create_connection(self, alias)
    with guard.contained("timing a cache"):
        _time_cache(cache)
    return cache


def _time_cache(cache: BaseCache) -> None:
    if _MARK in vars(cache):
        return
    for name in _METHODS:
        setattr(cache, name, _timed(getattr(cache, name)))
    setattr(cache, _MARK, True)


def _untime_cache(cache: BaseCache) -> None:
    if vars(cache).pop(_MARK, None):
        for name in _METHODS:
            vars(cache).pop(name, None)


def _timed(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        request = observation.current()
        notes = request.notes if request is not None else None
        if notes is None or notes.is_in_cache:
            return method(*args, **kwargs)
        notes.is_in_cache = True
        started_s = perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            notes.is_in_cache = False
            notes.cache_s += perf_counter() - started_s

    return call


def install(config: Config) -> None:
    """Follow the settings: add times up, or leave everything as Django made it. May be called again and again."""
    global _is_on
    wanted = config.enabled and config.request.server_timing
    if not wanted:
        uninstall()
        return
    _is_on = True
    if Template.render is _plain_render:
        Template.render = _render  # type: ignore[method-assign]
    if CacheHandler.create_connection is _plain_create_connection:
        CacheHandler.create_connection = _create_connection  # type: ignore[method-assign]
    for cache in caches.all(initialized_only=True):
        with guard.contained("timing a cache"):
            _time_cache(cache)


def uninstall() -> None:
    """Take everything back."""
    global _is_on
    if not _is_on:
        return
    _is_on = False
    if Template.render is _render:
        Template.render = _plain_render  # type: ignore[method-assign]
    if CacheHandler.create_connection is _create_connection:
        CacheHandler.create_connection = _plain_create_connection  # type: ignore[method-assign]
    for cache in caches.all(initialized_only=True):
        _untime_cache(cache)
