"""Paths at which the URLconf mounts our own pages: known before a request is resolved, and verified by resolving.

The middleware answers these paths itself and leaves them out of the telemetry.
Only our own view functions count: a page of the project at `/metrics`, and a
view of ours inside a decorator of the project, are served like any other page.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from django.conf import settings
from django.core.signals import setting_changed
from django.urls import Resolver404, URLPattern, URLResolver, get_resolver
from django.urls.resolvers import LocalePrefixPattern, RoutePattern
from django.utils import translation
from django.utils.module_loading import import_string
from django.utils.regex_helper import normalize

from django_otel.base.patterns import lazy_pattern

View = TypeVar("View", bound=Callable[..., object])

_MARK = "django_otel_page"
#: Settings that change where our pages are.
SETTINGS = frozenset({"ROOT_URLCONF", "LANGUAGES", "LANGUAGE_CODE", "MIDDLEWARE", "USE_I18N"})
#: Source that gives a request a URLconf of its own, as django-hosts and django-tenants do for some hosts.
_SETS_URLCONF = lazy_pattern(r"\.urlconf\s*=[^=]|setattr\([^)]*[\"']urlconf[\"']")


def own_page(view: View) -> View:
    """Mark a view function as a page of ours and return it."""
    # Itself, because a decorator of the project copies the mark to its wrapper, which may restrict access.
    setattr(view, _MARK, view)
    return view


def is_own_page(view: object) -> bool:
    """Return whether `view` is a page of ours, without a wrapper."""
    return getattr(view, _MARK, None) is view


def find_own_paths(urlconf: object = None) -> dict[str, Callable[..., Any]]:
    """Return our views by path, below the script prefix and with a leading slash.

    `urlconf` is a request's own URLconf; None is `ROOT_URLCONF`. Prefixes that
    capture a part of the path are left out: their pages are served by Django alone.

    Errors: those of importing the URLconf.
    """
    urlconf = urlconf or settings.ROOT_URLCONF
    return _find_own_paths(tuple(urlconf) if isinstance(urlconf, list) else urlconf)


@functools.lru_cache(maxsize=64)
def _find_own_paths(urlconf: Any) -> dict[str, Callable[..., object]]:
    resolver = get_resolver(urlconf)
    found: dict[str, Callable[..., object]] = {}
    for path, language in _candidates(resolver, "", None):
        with translation.override(language) if language is not None else translation.override(None):
            try:
                view = resolver.resolve(f"/{path}").func
            except Resolver404:
                continue
        # Another pattern may match first.
        if is_own_page(view):
            found[f"/{path}"] = view
    return found


def may_choose_urlconf() -> bool:
    """Return whether a middleware of the project may set `request.urlconf`, by the source of its module.

    Only then can one of our paths belong to a page of the project, depending on the host.
    """
    return _may_choose_urlconf(tuple(settings.MIDDLEWARE))


@functools.lru_cache(maxsize=4)
def _may_choose_urlconf(middleware: tuple[str, ...]) -> bool:
    return any(_SETS_URLCONF.search(source) for path in middleware for source in _read_sources(path))


def _read_sources(path: str) -> Iterator[str]:
    """Yield the source of the module of a middleware and of its base classes, without Django's and ours."""
    found = import_string(path)
    names = {base.__module__ for base in inspect.getmro(found)} if inspect.isclass(found) else {found.__module__}
    for name in sorted(names - {"builtins"}):
        if name.partition(".")[0] in ("django", "django_otel") or name not in sys.modules:
            continue
        try:
            yield inspect.getsource(sys.modules[name])
        except (OSError, TypeError):
            # Compiled, or made in memory.
            continue


def _candidates(resolver: URLResolver, prefix: str, language: str | None) -> Iterator[tuple[str, str | None]]:
    for entry in resolver.url_patterns:
        if isinstance(entry, URLPattern):
            if is_own_page(entry.callback):
                for part in _literal_paths(entry.pattern):
                    yield prefix + part, language
        elif isinstance(entry.pattern, LocalePrefixPattern):
            for code, _ in settings.LANGUAGES:
                with translation.override(code):
                    part = entry.pattern.language_prefix
                yield from _candidates(entry, prefix + part, code)
        else:
            for part in _literal_paths(entry.pattern):
                yield from _candidates(entry, prefix + part, language)


def _literal_paths(pattern: Any) -> list[str]:
    """Every text that `pattern` matches if it captures nothing, else none."""
    if isinstance(pattern, RoutePattern):
        return [] if pattern.converters else [str(pattern)]
    return [form for form, parameters in normalize(pattern.regex.pattern) if not parameters]


def _on_setting_changed(*, setting: str, **_: object) -> None:
    if setting in SETTINGS:
        _find_own_paths.cache_clear()
        _may_choose_urlconf.cache_clear()


setting_changed.connect(_on_setting_changed, dispatch_uid="django_otel.own_paths")
