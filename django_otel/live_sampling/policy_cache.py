"""Cache source of the sampling policy: a shared cache says that another host has changed it."""

from __future__ import annotations

import math
import secrets
import time
from typing import Any

from django_otel.base import guard
from django_otel.base.suppression import suppress_instrumentation

#: How often the elected process asks a shared cache whether there is news, in seconds.
_CACHE_S = 1.0
#: Where Django's caches are that other hosts do not share, or that would be a query. Not imported for that: a class of
#: theirs, or one that is derived from it, has its module there.
_NOT_SHARED = frozenset(f"django.core.cache.backends.{name}" for name in ("db", "dummy", "filebased", "locmem"))


def _shared_cache() -> Any:
    """The default cache, if other hosts may have the same; None otherwise."""
    from django.core.cache import caches

    found = caches["default"]
    # Caches of one process know no other host's change, and reading a database cache, or a subclass of it, is a query.
    return None if any(kind.__module__ in _NOT_SHARED for kind in type(found).__mro__) else found


def _cache_key() -> str:
    from django_otel.models import SamplingPolicy

    # Not the identity: hosts may name one database differently.
    return f"django_otel.sampling.{SamplingPolicy._meta.db_table}"


def tell_cache() -> None:
    with guard.contained("telling the cache of the sampling policy"), suppress_instrumentation():
        cache = _shared_cache()
        if cache is not None:
            cache.set(_cache_key(), secrets.token_hex(8), None)


class CacheNews:
    """Whether another host has changed the policy, as a shared cache knows."""

    def __init__(self) -> None:
        #: On the clock of `time.monotonic()`.
        self._next_look_s = -math.inf
        self._token: object = None

    def is_there(self) -> bool:
        """Ask the cache, at most once in `_CACHE_S` seconds, whether the policy has changed since the last time."""
        if time.monotonic() < self._next_look_s:
            return False
        self._next_look_s = time.monotonic() + _CACHE_S
        with guard.contained("asking the cache for news of the sampling policy"), suppress_instrumentation():
            cache = _shared_cache()
            if cache is not None:
                before, self._token = self._token, cache.get(_cache_key())
                return self._token != before
        return False
