"""The middleware: starts and finishes the record of a request, sync and async.

The two twins `__call__` and `__acall__` do the same around `get_response`. What
is measured of a request stands in `requests.observer`.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.core.signals import got_request_exception, setting_changed
from django.http import FileResponse, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import get_script_prefix
from django.utils.cache import patch_cache_control
from opentelemetry import context as otel_context
from opentelemetry.util.types import AttributeValue

from django_otel import conf, own_paths, runtime
from django_otel.base import guard
from django_otel.config.packages import import_path
from django_otel.config.schema import Config
from django_otel.requests import layers
from django_otel.requests.dimensions import ROUTE, Dimensions
from django_otel.requests.observer import Observer
from django_otel.requests.options import ObserverOptions
from django_otel.requests.record import RequestRecord, find
from django_otel.requests.response_headers import build_response_headers
from django_otel.routes import route_template
from django_otel.sampling.sampler import untraced

if TYPE_CHECKING:
    from django_otel.requests.django_prometheus import LegacyRequestMetrics
    from django_otel.requests.protocols import RequestLike

#: Made once and stays.
_runtime = runtime.current()
_MAX_CLASSES = 1000
#: Settings of Django that the observer is built of.
_REBUILDING_SETTINGS = frozenset(
    {"MEDIA_URL", "SECURE_PROXY_SSL_HEADER", "STATIC_URL", "USE_X_FORWARDED_HOST", *own_paths.SETTINGS}
)


class _Held:
    """The observer for the effective settings, and the generation of settings it was built for."""

    __slots__ = ("generation", "observer", "of_hosts", "of_hosts_generation")

    def __init__(self) -> None:
        self.observer: Observer | None = None
        self.generation = -1
        #: The same, and it leaves out none of our paths: for hosts at which they are pages of the project.
        self.of_hosts: Observer | None = None
        self.of_hosts_generation = -1


_held = _Held()


def get_observer() -> Observer | None:
    """The observer for the effective settings; None when telemetry is off."""
    generation = _runtime.generation
    if generation == _held.generation:
        return _held.observer
    # Local until it is there: another thread may be at the same.
    built = None
    with guard.contained("building the request observer"):
        built = _build_observer() if _runtime.enabled else None
    _held.observer, _held.generation = built, generation
    return built


def _get_observer_of_hosts() -> Observer | None:
    """Return the observer for requests that may be for a page of ours or of the project, depending on the host."""
    generation = _runtime.generation
    if generation != _held.of_hosts_generation:
        built = None
        with guard.contained("building the request observer of hosts"):
            built = _build_observer(knows_own_paths=False) if _runtime.enabled else None
        _held.of_hosts, _held.of_hosts_generation = built, generation
    return _held.of_hosts


def _build_observer(*, knows_own_paths: bool = True) -> Observer:
    current = runtime.current()
    config = current.config
    config = replace(config, request=replace(config.request, exclude=conf.excluded_paths(config)))
    enrich, route = config.request.enrich, config.request.route
    return _find_observer_class(config)(
        config,
        runtime.store,
        runtime.tracer,
        runtime.propagator(),
        ObserverOptions(
            makes_spans=config.request.spans == "native" and config.providers != "none",
            template=route_template,
            user_attributes=_build_user_attributes(config.request.user),
            sampler=None if current.is_foreign else current.sampler,
            find_force_token=_find_force_token() if config.sampling.force else None,
            enrich=import_path(enrich) if isinstance(enrich, str) else enrich,
            name_route=import_path(route) if isinstance(route, str) else route,
            dimensions=_build_dimensions(config),
            secure_header=settings.SECURE_PROXY_SSL_HEADER,
            forwarded_host=settings.USE_X_FORWARDED_HOST,
            scrub_url=current.scrubber.url,
            scrub_path=current.scrubber.path,
            scrub_text=current.scrubber.text,
            static_prefixes=() if config.request.static else _find_static_prefixes(),
            set_headers=build_response_headers(config),
            own_paths=_find_own_paths() if knows_own_paths else (),
            learns_paths=knows_own_paths,
            legacy=_build_legacy(config.metrics.names),
        ),
    )


def _find_force_token() -> Callable[[Mapping[str, str]], str | None]:
    from django_otel.live_sampling import force

    return force.find_token


def _build_dimensions(config: Config) -> Dimensions | None:
    """Return the limits of the project's attributes of request metrics; None without any."""
    request = config.request
    limits = dict(request.metric_attributes)
    if request.route is not None:
        # So that Django's own routes keep their place below the limit.
        limits[ROUTE] = max(1, config.metrics.cardinality_limit // 4)
    return Dimensions(runtime.store, limits, _find_shared_folder) if limits else None


def _find_shared_folder() -> Path | None:
    sharing = runtime.sharing()
    return None if sharing is None else sharing.folder


def _find_observer_class(config: Config) -> type[Observer]:
    if runtime.command_name() != "runserver":
        return Observer
    from django_otel.instrumentation import runserver_line

    # It also notes what is printed of the request.
    return runserver_line.LineObserver if runserver_line.is_wanted(config) else Observer


def _build_legacy(names: str) -> LegacyRequestMetrics | None:
    if names == "otel":
        return None
    # Late: few projects use these names.
    from django_otel.requests.django_prometheus import LegacyRequestMetrics

    return LegacyRequestMetrics(runtime.store)


@guard.guarded("finding our pages in the URLconf", {})
def _find_own_paths(urlconf: object = None) -> Mapping[str, Callable[[HttpRequest], HttpResponse]]:
    return own_paths.find_own_paths(urlconf)


def _find_static_prefixes() -> tuple[str, ...]:
    """Return how `request.path_info` begins for static and media files, where this site serves them."""
    script_prefix = get_script_prefix().rstrip("/")
    prefixes = []
    for url in (settings.STATIC_URL, settings.MEDIA_URL):
        path = urlsplit(url or "").path.removeprefix(script_prefix)
        # Served from the root of the site, it cannot be distinguished from pages.
        if path.strip("/"):
            prefixes.append(f"/{path.strip('/')}/")
    return tuple(prefixes)


def _build_user_attributes(mode: str) -> Callable[[RequestLike], Mapping[str, AttributeValue]] | None:
    if mode == "none":
        return None
    from django_otel.api import user_attributes

    def attributes(request: RequestLike) -> Mapping[str, AttributeValue]:
        # Only what is loaded already: touching request.user would read the session and add "Vary: Cookie".
        user = request.__dict__.get("_cached_user") or request.__dict__.get("_acached_user")
        key = getattr(user, "pk", None)
        return user_attributes(key, mode) if key is not None else {}

    return attributes


@guard.guarded("shielding an excluded request", None)
def _shield(request: HttpRequest) -> object:
    """For an excluded request: queries and calls inside it must not become traces of their own."""
    observer = get_observer()
    if observer is None or not observer.is_excluded(request.path_info):
        return None
    return otel_context.attach(untraced())


def _unshield(token: Any) -> None:
    if token is not None:
        otel_context.detach(token)


def _find_own_page(request: HttpRequest) -> Callable[[HttpRequest], HttpResponse] | None:
    """Our own view at the path of `request`; None for every page of the project."""
    return _find_own_paths(getattr(request, "urlconf", None)).get(request.path_info)


@guard.guarded("deciding who answers a page of ours", False)
def _is_answered_here(page: Callable[[HttpRequest], HttpResponse], request: HttpRequest) -> bool:
    """Return whether `page` answers before every other middleware, because access does not depend on them."""
    # Late, here and below: only a URLconf with our pages has loaded them.
    from django_otel import views

    if views.needs_user(page, request):
        return False
    if hasattr(request, "urlconf") or not own_paths.may_choose_urlconf():
        return True
    # This host may have a URLconf of its own; one that is not allowed has no page of the project.
    try:
        request.get_host()
    except DisallowedHost:
        return True
    return False


def _begin_by_host(page: Callable[[HttpRequest], HttpResponse] | None, request: HttpRequest) -> RequestRecord | None:
    """Begin to measure a request at a path of ours that may be the project's on its host; None for all others."""
    has_urlconf = hasattr(request, "urlconf")
    if has_urlconf if page is not None else not has_urlconf:
        # Ours for certain; or left out by the settings.
        return None
    if page is not None and not own_paths.may_choose_urlconf():
        return None
    observer = _get_observer_of_hosts()
    return observer.begin(request) if observer is not None else None


def _abort(record: RequestRecord, error: BaseException) -> None:
    """`get_response` raised: put everything back and end the measurement."""
    record.observer.finish(record, None, None, error)


def _respond(record: RequestRecord, response: HttpResponseBase) -> HttpResponseBase:
    """`get_response` returned: end the measurement now, or with the last byte of a streaming response."""
    observer = record.observer
    size_bytes: int | None = None
    try:
        if record.rare is not None or observer.set_headers is not None:
            _add_headers(record, response)
        if type(response) in _whole_kinds or _is_whole(type(response)):
            # The content's parts, which `content` would join.
            chunks: list[bytes] = response._container  # type: ignore[attr-defined]  # noqa: SLF001 (Django has no public name for it)
            size_bytes = len(chunks[0]) if len(chunks) == 1 else sum(map(len, chunks))
        elif response.streaming:
            _follow_stream(record, response)
            record.detach()
            return response
        else:
            size_bytes = sum(map(len, response))
    except Exception as fault:
        guard.report("measuring a response", fault)
    except BaseException:
        record.detach()
        raise
    observer.finish(record, response, size_bytes)
    return response


#: Classes of responses that are all there in the parts that `HttpResponse` keeps.
_whole_kinds: set[type] = set()


def _is_whole(kind: type[HttpResponseBase]) -> bool:
    found = issubclass(kind, HttpResponse) and kind.__iter__ is HttpResponse.__iter__ and not kind.streaming
    # Bounded: a project could make classes as it goes.
    if found and len(_whole_kinds) < _MAX_CLASSES:
        _whole_kinds.add(kind)
    return found


def _add_headers(record: RequestRecord, response: HttpResponseBase) -> None:
    if record.force_token and isinstance(record.request, HttpRequest):
        from django_otel.live_sampling import force

        force.remember(record.request, response, record.force_token)
    if record.no_store:
        patch_cache_control(response, private=True, no_store=True)
    if record.observer.set_headers is not None:
        record.observer.set_headers(record, response)


def _follow_stream(record: RequestRecord, response: Any) -> None:
    if record.observer.times_layers and record.view is None:
        # Up to its last byte.
        layers.enter_view(record, response)
    if isinstance(response, FileResponse) and (size_bytes := _announced_size(response)) is not None:
        # Wrapping it would lose the server's sendfile; its end is its close().
        closers: list[object] = response._resource_closers  # type: ignore[attr-defined]  # noqa: SLF001 (Django has no public name for it)
        closers.append(lambda: record.observer.finish(record, response, size_bytes))
    elif response.is_async:
        response.streaming_content = _AsyncStream(response.streaming_content, record, response)
    else:
        stream = _SyncStream(response.streaming_content, record, response)
        # The end of the project's generator belongs to the request, also where it is closed early.
        ends: list[Callable[[], object]] = response._resource_closers  # noqa: SLF001 (Django has no public name for it)
        ends[:] = [functools.partial(stream.run, end) for end in ends]
        response.streaming_content = stream


def _announced_size(response: FileResponse) -> int | None:
    """The size that the response says it has, in bytes; None where it does not know."""
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isascii() and length.isdecimal() else None


class _SyncStream:
    """A streaming response's chunks, each produced inside the request's context.

    The context is a copy, so that nothing leaks into the server's thread, also
    when chunks are produced by another one. Its `close()` is called by Django
    together with the response's.
    """

    def __init__(self, chunks: Iterator[bytes], record: RequestRecord, response: HttpResponseBase) -> None:
        self._record = record
        self._chunks = iter(chunks)
        self._response: HttpResponseBase | None = response
        self._context = contextvars.copy_context()
        self._size_bytes = 0

    def __iter__(self) -> _SyncStream:
        return self

    def __next__(self) -> bytes:
        try:
            chunk = self._context.run(next, self._chunks)
        except StopIteration:
            # Django's iterator holds the response, which holds this stream.
            self._chunks = iter(())
            self._finish()
            raise
        except BaseException as error:
            self._finish(error)
            raise
        self._size_bytes += len(chunk)
        return chunk

    def run(self, end: Callable[[], object]) -> object:
        """Call `end` inside the request's context while it lasts; in a copy, which can be entered at any time."""
        return end() if self._record.is_finished else self._context.copy().run(end)

    def close(self) -> None:
        """The response was closed: whatever was sent by now is all."""
        self._finish()

    def __del__(self) -> None:
        # The response was thrown away without being closed.
        if not self._record.is_finished:
            self._finish()

    def _finish(self, error: BaseException | None = None) -> None:
        record = self._record
        if error is not None:
            record.exception = record.exception or error
        # The response holds this stream: let go of it.
        response, self._response = self._response, None
        record.observer.finish(record, response, self._size_bytes, error)


async def _nothing() -> AsyncIterator[bytes]:
    """No chunks."""
    return
    yield b""


class _AsyncStream:
    """The same for an async iterator: attached and detached around each chunk, never across a yield."""

    def __init__(self, chunks: AsyncIterator[bytes], record: RequestRecord, response: HttpResponseBase) -> None:
        self._record = record
        self._chunks = aiter(chunks)
        self._response: HttpResponseBase | None = response
        self._otel_context = otel_context.get_current()
        self._size_bytes = 0

    def __aiter__(self) -> _AsyncStream:
        return self

    async def __anext__(self) -> bytes:
        record = self._record
        record.attach(self._otel_context)
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self._chunks = _nothing()
            self._finish()
            raise
        except BaseException as error:
            self._finish(error)
            raise
        finally:
            record.detach()
        self._size_bytes += len(chunk)
        return chunk

    async def aclose(self) -> None:
        """The server stopped reading, perhaps because the client went away."""
        try:
            close = getattr(self._chunks, "aclose", None)
            if close is not None:
                await close()
        finally:
            self._finish()

    def close(self) -> None:
        """The response was closed: whatever was sent by now is all."""
        self._finish()

    def __del__(self) -> None:
        # The response was thrown away without being closed.
        if not self._record.is_finished:
            self._finish()

    def _finish(self, error: BaseException | None = None) -> None:
        record = self._record
        response, self._response = self._response, None
        record.observer.finish(record, response, self._size_bytes, error)


class OTelMiddleware:
    """Measures every request: the server span and the request metrics. Put it first in `MIDDLEWARE`.

    Source: OpenTelemetry semantic conventions, "HTTP spans" and "HTTP metrics" (stable).
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._is_async:
            return self.__acall__(request)
        observer = _held.observer if _runtime.generation == _held.generation else get_observer()
        record = observer.begin(request) if observer is not None else None
        if record is None:
            return self._serve_unmeasured(request)
        try:
            response: HttpResponseBase = self.get_response(request)
        except BaseException as error:
            _abort(record, error)
            raise
        return _respond(record, response)

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        observer = get_observer()
        if observer is not None and observer.find_force_token is not None:
            from django_otel.live_sampling import force

            await force.look_up(request.META)
        record = observer.begin(request) if observer is not None else None
        if record is None:
            return await self._aserve_unmeasured(request)
        try:
            response: HttpResponseBase = await self.get_response(request)
        except BaseException as error:
            _abort(record, error)
            raise
        return _respond(record, response)

    def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        """Count the exception under the name of django-prometheus, if that is asked for; Django calls this."""
        observer = _held.observer
        if observer is not None and observer.legacy is not None:
            with guard.contained("counting an exception"):
                if find(request) is not None:
                    observer.legacy.count_exception(exception, request.resolver_match)

    def _serve_unmeasured(self, request: HttpRequest) -> HttpResponseBase:
        """Serve an excluded request, which may be one for a page of ours."""
        page = _find_own_page(request)
        if page is not None and _is_answered_here(page, request):
            from django_otel import views

            return views.call(page, request)
        record = _begin_by_host(page, request)
        if record is not None:
            return self._serve_by_host(page, request, record)
        token = _shield(request)
        try:
            response: HttpResponseBase = self.get_response(request)
            # A middleware may have chosen another URLconf, where the path is a page of the project.
            if page is None or _find_own_page(request) is not page:
                return response
            from django_otel import views

            return views.settle(page, request, response)
        finally:
            _unshield(token)

    def _serve_by_host(
        self, page: Callable[[HttpRequest], HttpResponse] | None, request: HttpRequest, record: RequestRecord
    ) -> HttpResponseBase:
        try:
            response: HttpResponseBase = self.get_response(request)
        except BaseException as error:
            _abort(record, error)
            raise
        if page is not None and _find_own_page(request) is page:
            # No middleware has chosen another URLconf: it is ours.
            record.discard()
            from django_otel import views

            response = views.settle(page, request, response)
        return _respond(record, response)

    async def _aserve_by_host(
        self, page: Callable[[HttpRequest], HttpResponse] | None, request: HttpRequest, record: RequestRecord
    ) -> HttpResponseBase:
        try:
            response: HttpResponseBase = await self.get_response(request)
        except BaseException as error:
            _abort(record, error)
            raise
        if page is not None and _find_own_page(request) is page:
            record.discard()
            from django_otel import views

            response = await sync_to_async(views.settle)(page, request, response)
        return _respond(record, response)

    async def _aserve_unmeasured(self, request: HttpRequest) -> HttpResponseBase:
        page = _find_own_page(request)
        if page is not None and _is_answered_here(page, request):
            from django_otel import views

            return await views.call_async(page, request)
        record = _begin_by_host(page, request)
        if record is not None:
            return await self._aserve_by_host(page, request, record)
        token = _shield(request)
        try:
            response: HttpResponseBase = await self.get_response(request)
        finally:
            _unshield(token)
        if page is None or _find_own_page(request) is not page:
            return response
        from django_otel import views

        return await sync_to_async(views.settle)(page, request, response)


def _on_request_exception(*, request: object = None, **_: object) -> None:
    """Django turned an unhandled exception into a 500 response; note it for the span."""
    import sys

    record = find(request)
    if record is not None:
        record.exception = sys.exc_info()[1]


def _on_setting_changed(*, setting: str, **_: object) -> None:
    if setting in _REBUILDING_SETTINGS:
        _held.generation = _held.of_hosts_generation = -1


got_request_exception.connect(_on_request_exception, dispatch_uid="django_otel.middleware")
setting_changed.connect(_on_setting_changed, dispatch_uid="django_otel.middleware")
