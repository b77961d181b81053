"""Arguments of instrumentors: guards around the project's hooks, and our hooks for OUTBOUND_HOSTS."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from django.utils.module_loading import import_string
from opentelemetry import propagate, trace
from opentelemetry.propagators.textmap import Setter

from django_otel.base import guard
from django_otel.tracing import outbound

if TYPE_CHECKING:
    from django_otel.instrumentation.instrumentors import Wish


def build_arguments(name: str, wish: Wish) -> dict[str, object]:
    arguments: dict[str, object] = {}
    for keyword, value in wish.arguments.items():
        if keyword.endswith("_hook") and isinstance(value, str):
            value = import_string(value)
        if callable(value) and keyword.endswith("_hook"):
            value = _contain_hook(name, keyword, value)
        elif callable(value) and keyword == "url_filter":
            value = _contain_url_filter(name, value)
        arguments[keyword] = value
    patterns = wish.outbound_hosts
    if patterns is not None:
        for keyword, adapter in _CLIENTS.get(name, {}).items():
            arguments[keyword] = _add_decision(name, adapter, patterns, arguments.get(keyword), "async" in keyword)
        if name == "aiohttp-client":
            given: Any = arguments.get("trace_configs") or ()
            arguments["trace_configs"] = [*given, _build_aiohttp_redirect_guard(patterns)]
    return arguments


def _contain_hook(name: str, keyword: str, hook: Callable[..., Any]) -> Callable[..., object]:
    """A raising hook would break the application's own call (the instrumentors call hooks unprotected)."""
    place = f"instrumentors.{name} {keyword}"
    if inspect.iscoroutinefunction(hook):

        @functools.wraps(hook)
        async def contained_async(*args: object, **kwargs: object) -> object:
            with guard.contained(place):
                return await hook(*args, **kwargs)
            return None

        return contained_async

    @functools.wraps(hook)
    def contained(*args: object, **kwargs: object) -> object:
        with guard.contained(place):
            return hook(*args, **kwargs)
        return None

    return contained


def _contain_url_filter(name: str, url_filter: Callable[[object], str]) -> Callable[[object], str]:
    @functools.wraps(url_filter)
    def contained(url: object) -> str:
        with guard.contained(f"instrumentors.{name} url_filter"):
            return url_filter(url)
        # The filter exists because URLs hold something to hide.
        return str(url).partition("?")[0]

    return contained


#: Reads URL and headers of the request from the arguments of a client's request hook.
Adapter = Callable[..., tuple[str, Any]]


def _requests_request(span: trace.Span, request: Any) -> tuple[str, Any]:
    return str(request.url), request.headers


def _httpx_request(span: trace.Span, request: Any) -> tuple[str, Any]:
    return str(request.url), request.headers


def _urllib3_request(span: trace.Span, pool: Any, request: Any) -> tuple[str, object]:
    # Not `request.url`: a url_filter has been over it.
    host = f"[{pool.host}]" if ":" in pool.host and not pool.host.startswith("[") else pool.host
    port = f":{pool.port}" if pool.port else ""
    return f"{pool.scheme}://{host}{port}/", request.headers


def _urllib_request(span: trace.Span, request: Any) -> tuple[str, object]:
    return request.full_url, request.headers


def _aiohttp_request(span: trace.Span, params: Any) -> tuple[str, object]:
    return str(params.url), params.headers


_CLIENTS: dict[str, dict[str, Adapter]] = {
    "requests": {"request_hook": _requests_request},
    "httpx": {"request_hook": _httpx_request, "async_request_hook": _httpx_request},
    "httpx2": {"request_hook": _httpx_request, "async_request_hook": _httpx_request},
    "urllib3": {"request_hook": _urllib3_request},
    "urllib": {"request_hook": _urllib_request},
    "aiohttp-client": {"request_hook": _aiohttp_request},
}


def _add_decision(
    name: str, adapter: Adapter, patterns: tuple[str, ...], hook: Any, is_async: bool
) -> Callable[..., object]:
    """Return a hook that runs the project's, then decides whether the host may receive trace headers."""

    def judge(span: trace.Span, *args: object) -> None:
        try:
            url, headers = adapter(span, *args)
            if outbound.is_host_allowed(url, patterns):
                outbound.decide(span, True)
                if name == "requests":
                    _guard_requests_redirects(args[0], patterns)
                elif name == "urllib":
                    _inject_unredirected(span, args[0])
            else:
                outbound.decide(span, False)
                if headers is not None:
                    outbound.strip(headers, tuple(propagate.get_global_textmap().fields))
        except Exception as error:
            guard.report(f"instrumentors.{name} outbound", error)
            # The host is unknown: send no headers.
            outbound.decide(span, False)

    if is_async:

        async def judge_async(span: trace.Span, *args: object) -> None:
            if hook is not None:
                await hook(span, *args)
            judge(span, *args)

        return judge_async

    def judge_after_hook(span: trace.Span, *args: object) -> None:
        if hook is not None:
            hook(span, *args)
        judge(span, *args)

    return judge_after_hook


class _RequestsRedirectGuard:
    """A response hook of requests: a redirect is a copy of the request, trace headers and all."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self.patterns = patterns

    def __call__(self, response: Any, *args: object, **kwargs: object) -> None:
        with guard.contained("instrumentors.requests redirect"):
            if not response.is_redirect:
                return
            target = urljoin(response.url, response.headers["location"])
            if not outbound.is_host_allowed(target, self.patterns):
                outbound.strip(response.request.headers, tuple(propagate.get_global_textmap().fields))


def _guard_requests_redirects(request: Any, patterns: tuple[str, ...]) -> None:
    hooks = request.hooks.setdefault("response", [])
    if not any(isinstance(hook, _RequestsRedirectGuard) for hook in hooks):
        hooks.append(_RequestsRedirectGuard(patterns))


class _UnredirectedSetter(Setter[object]):
    def set(self, carrier: Any, key: str, value: str) -> None:
        carrier.add_unredirected_header(key, value)


def _inject_unredirected(span: trace.Span, request: object) -> None:
    """urllib copies a request's headers to wherever it is redirected, except those added as unredirected."""
    propagate.inject(request, setter=_UnredirectedSetter())
    outbound.decide(span, False)


def _build_aiohttp_redirect_guard(patterns: tuple[str, ...]) -> object:
    import aiohttp

    async def on_request_redirect(session: object, context: object, params: Any) -> None:
        with guard.contained("instrumentors.aiohttp-client redirect"):
            location = params.response.headers.get("Location") or params.response.headers.get("URI") or ""
            if not outbound.is_host_allowed(urljoin(str(params.url), location), patterns):
                outbound.strip(params.headers, tuple(propagate.get_global_textmap().fields))

    config = aiohttp.TraceConfig()
    config.on_request_redirect.append(on_request_redirect)
    return config
