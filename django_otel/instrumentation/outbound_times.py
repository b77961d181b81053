"""Outbound HTTP of requests, for their time budget: the standard library, urllib3, requests, httpx and aiohttp.

On by default (`REQUEST.TIME_BUDGET`), whether the library is instrumented or not. A library is patched when the project
imports it, at methods that no instrumentor replaces. No span and no metric of its own; outside of a request a call
costs one look.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from importlib import import_module
from time import perf_counter
from typing import Any

from django_otel.base import frozen, guard, import_hooks
from django_otel.config.schema import Config
from django_otel.requests import layers
from django_otel.requests.record import current
from django_otel.requests.timed_calls import time_call

#: For a function that is called in a request.
_time_call = functools.partial(time_call, layers.HTTP)


def _time_coroutine(plain: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
    @functools.wraps(plain)
    async def timed(*args: object, **kwargs: object) -> object:
        opened = layers.enter(current(), layers.HTTP, perf_counter())
        try:
            return await plain(*args, **kwargs)
        finally:
            layers.leave(opened, layers.HTTP)

    return timed


def _time_iteration(plain: Callable[..., Iterable[object]]) -> Callable[..., Iterable[object]]:
    """Time a function that yields the parts of a body, without the caller's time between them."""

    @functools.wraps(plain)
    def timed(*args: object, **kwargs: object) -> Iterable[object]:
        parts = plain(*args, **kwargs)
        return parts if current() is None else _iterate(iter(parts))

    return timed


def _iterate(parts: Iterator[object]) -> Iterator[object]:
    read = _time_call(next)
    end = object()
    while (part := read(parts, end)) is not end:
        yield part


def _time_async_iteration(plain: Callable[..., AsyncGenerator[object]]) -> Callable[..., AsyncGenerator[object]]:
    """For an asynchronous one."""

    @functools.wraps(plain)
    def timed(*args: object, **kwargs: object) -> AsyncGenerator[object]:
        parts = plain(*args, **kwargs)
        return parts if current() is None else _iterate_async(parts)

    return timed


async def _iterate_async(parts: AsyncGenerator[object]) -> AsyncGenerator[object]:
    read = _time_coroutine(anext)
    end = object()
    try:
        while (part := await read(parts, end)) is not end:
            yield part
    finally:
        await parts.aclose()


@frozen.record
class _Place:
    """A method that is waiting for the network, by the module that is imported for it."""

    module: str
    owner: str
    method: str
    wrap: Callable[[Any], Callable[..., object]] = _time_call


_PLACES = (
    _Place("http.client", "HTTPConnection", "connect"),
    _Place("http.client", "HTTPSConnection", "connect"),
    _Place("http.client", "HTTPConnection", "endheaders"),
    _Place("http.client", "HTTPConnection", "getresponse"),
    _Place("http.client", "HTTPResponse", "read"),
    _Place("http.client", "HTTPResponse", "read1"),
    _Place("http.client", "HTTPResponse", "readinto"),
    _Place("http.client", "HTTPResponse", "readline"),
    _Place("urllib3.connection", "HTTPConnection", "connect"),
    _Place("urllib3.connection", "HTTPSConnection", "connect"),
    _Place("urllib3.response", "HTTPResponse", "read"),
    _Place("urllib3.response", "HTTPResponse", "stream", _time_iteration),
    _Place("requests.adapters", "HTTPAdapter", "send"),
    _Place("httpx._client", "Client", "send"),
    _Place("httpx._client", "AsyncClient", "send", _time_coroutine),
    _Place("httpx._models", "Response", "iter_raw", _time_iteration),
    _Place("httpx._models", "Response", "aiter_raw", _time_async_iteration),
    _Place("aiohttp.client", "ClientSession", "_request", _time_coroutine),
    _Place("aiohttp.client_reqrep", "ClientResponse", "read", _time_coroutine),
    # All its ways to read a body in parts wait in this one.
    _Place("aiohttp.streams", "StreamReader", "_wait", _time_coroutine),
)


class _Patches:
    """Replaced methods: by place, the class, the method as it was and ours."""

    def __init__(self) -> None:
        self._done: dict[_Place, tuple[type, object, object]] = {}

    def add(self, module: str) -> None:
        """Patch the places that exist in the module."""
        found = import_module(module)
        for place in _PLACES:
            owner: type | None = getattr(found, place.owner, None)
            plain = vars(owner).get(place.method) if owner is not None else None
            if place.module == module and owner is not None and plain is not None and place not in self._done:
                ours = place.wrap(plain)
                self._done[place] = owner, plain, ours
                setattr(owner, place.method, ours)

    def remove(self) -> None:
        """Restore the original methods, unless another tool has replaced ours since and calls it."""
        for place, (owner, plain, ours) in list(self._done.items()):
            if vars(owner).get(place.method) is ours:
                setattr(owner, place.method, plain)
                del self._done[place]


_patches = _Patches()


def install(config: Config) -> None:
    """Follow the settings: time outbound HTTP, or leave the libraries as they are. May be called again and again."""
    if not layers.is_wanted(config):
        uninstall()
        return
    for module in dict.fromkeys(place.module for place in _PLACES):
        if not import_hooks.when_imported(module, functools.partial(_patches.add, module)):
            with guard.contained(f"timing the calls of {module}"):
                _patches.add(module)


def uninstall() -> None:
    """Take everything back."""
    for module in dict.fromkeys(place.module for place in _PLACES):
        import_hooks.forget(module)
    _patches.remove()
