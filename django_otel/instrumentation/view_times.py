"""The moments at which Django's handler enters and leaves the view, for the time budget (`REQUEST.TIME_BUDGET`).

On by default. No span and no metric of its own: two readings of the clock per request. The view's time ends with what
it returns; a `TemplateResponse`, or a response of Django REST framework, is rendered later, and that counts too. An
atomic request's BEGIN and COMMIT, and the hop of a sync view under ASGI into its thread, are inside.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from django.core.handlers.base import BaseHandler
from django.db import connections
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.template.response import SimpleTemplateResponse

from django_otel.base.sdk_compat import get_current
from django_otel.config.schema import Config
from django_otel.requests import layers
from django_otel.requests.record import REQUEST_KEY, RequestRecord, current

_plain_make_view_atomic = BaseHandler.make_view_atomic
_plain_check_response = BaseHandler.check_response
_plain_process_exception = BaseHandler.process_exception_by_middleware
_plain_render = SimpleTemplateResponse.render


def _make_view_atomic(self: BaseHandler, view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """Called right before the view."""
    record: Any = get_current()
    if type(record) is not RequestRecord:
        record = record.get(REQUEST_KEY)
    # A handler that a view calls is part of the view.
    if record is not None and record.view is None:
        if record.layers is None:
            record.view = view
            record.view_from_s = perf_counter()
        else:
            layers.enter_view(record, view)
    for database in connections.settings.values():
        # Mostly none is: to look here pays for the rest of what is done at a view.
        if database["ATOMIC_REQUESTS"]:
            return _plain_make_view_atomic(self, view)
    return view


def _check_response(
    self: BaseHandler,
    response: HttpResponseBase | None,
    callback: Callable[..., HttpResponseBase],
    name: str | None = None,
) -> None:
    """Called with the response of a view, and with that of a middleware."""
    record: Any = get_current()
    if type(record) is not RequestRecord:
        record = record.get(REQUEST_KEY)
    if record is not None and record.view is callback:
        if record.layers is None:
            record.view = None
            record.view_s += perf_counter() - record.view_from_s
        else:
            layers.leave_view(record, perf_counter())
    # Django refuses None and coroutines here, which are not responses.
    if not isinstance(response, HttpResponseBase):
        _plain_check_response(self, response, callback, name)  # type: ignore[arg-type]


def _process_exception(self: BaseHandler, exception: Exception, request: HttpRequest) -> HttpResponseBase | None:
    """Called when a view has raised."""
    record = current()
    if record is not None and record.view is not None and record.request is request:
        layers.leave_view(record, perf_counter())
    return _plain_process_exception(self, exception, request)


def _render(self: SimpleTemplateResponse) -> SimpleTemplateResponse:
    """Called after the view, where it left the rendering to Django."""
    record = current()
    if record is None or record.view is not None or record.is_finished or self.is_rendered:
        return _plain_render(self)
    layers.enter_view(record, self)
    try:
        return _plain_render(self)
    finally:
        _end_rendering(record, self)


def _end_rendering(record: RequestRecord, response: object) -> None:
    if record.view is response:
        layers.leave_view(record, perf_counter())


def install(config: Config) -> None:
    """Follow the settings: time views, or leave everything as Django made it. May be called again and again."""
    if not layers.is_wanted(config):
        uninstall()
    elif BaseHandler.check_response is _plain_check_response:
        BaseHandler.make_view_atomic = _make_view_atomic  # type: ignore[method-assign]
        BaseHandler.check_response = _check_response  # type: ignore[method-assign]
        BaseHandler.process_exception_by_middleware = _process_exception  # type: ignore[assignment, method-assign]
        SimpleTemplateResponse.render = _render  # type: ignore[method-assign]


def uninstall() -> None:
    """Take everything back."""
    if BaseHandler.check_response is _check_response:
        BaseHandler.make_view_atomic = _plain_make_view_atomic  # type: ignore[method-assign]
        BaseHandler.check_response = _plain_check_response  # type: ignore[method-assign]
        BaseHandler.process_exception_by_middleware = _plain_process_exception  # type: ignore[method-assign]
        SimpleTemplateResponse.render = _plain_render  # type: ignore[method-assign]
