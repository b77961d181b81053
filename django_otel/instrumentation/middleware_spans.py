"""A span `middleware {class}` for each middleware of a recorded request, sync and async.

Off by default (`MIDDLEWARE_SPANS`); it takes effect when Django loads the middlewares. No metric of its own: what
middlewares take together is in the time budget of requests. The span lasts from the middleware's call to what it
returns, so each lies inside that of the one before it, and the view inside all of them. A middleware that stands before
ours is not inside the request's span, and has none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.handlers import base
from django.http import HttpRequest
from opentelemetry.context import Context
from opentelemetry.trace import Span

from django_otel import runtime
from django_otel.base import guard
from django_otel.base.sdk_compat import SPAN_KEY, attach, detach, get_current, with_span
from django_otel.config.schema import Config
from django_otel.instrumentation.driver_calls import is_recorded
from django_otel.requests.record import RequestRecord
from django_otel.tracing.exceptions import mark_failed
from django_otel.tracing.span_form import SpanForm

_plain_import = base.import_string  # type: ignore[attr-defined]


class _State:
    """State that changes with the settings."""

    def __init__(self) -> None:
        self.is_on = False
        #: The spans' form, by the middleware's dotted path.
        self.forms: dict[str, SpanForm] = {}


_state = _State()


class _Measured:
    """In place of a middleware: calls it inside a span. All else that Django asks for is the middleware's."""

    def __init__(self, middleware: Callable[[HttpRequest], object], name: str, path: str) -> None:
        self._middleware = middleware
        self._name = name
        self._path = path
        if iscoroutinefunction(middleware):
            markcoroutinefunction(self)
            self._is_async = True
        else:
            self._is_async = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._middleware, name)

    def __call__(self, request: HttpRequest) -> object:
        span, inner = self._start()
        if self._is_async:
            return self._acall(request, span, inner)
        with _inside(span, inner):
            return self._middleware(request)

    async def _acall(self, request: HttpRequest, span: Span | None, inner: Context | None) -> object:
        with _inside(span, inner):
            found: Awaitable[object] = self._middleware(request)  # type: ignore[assignment]
            return await found

    def _start(self) -> tuple[Span | None, Context | None]:
        with guard.contained("the span of a middleware"):
            outer = get_current()
            if _state.is_on and is_recorded(outer):
                form = _state.forms.get(self._path)
                if form is None:
                    form = SpanForm(f"middleware {self._name}", {"code.function.name": self._path})
                    _state.forms[self._path] = form
                parent = outer.span_or_none if type(outer) is RequestRecord else outer.get(SPAN_KEY)
                span = form.start(runtime.tracer(), outer, parent)
                return span, with_span(outer, span)
        return None, None


@contextlib.contextmanager
def _inside(span: Span | None, inner: Context | None) -> Iterator[None]:
    """Have the span current, and end it; where there is none, nothing changes."""
    if span is None or inner is None:
        yield
        return
    token = attach(inner)
    try:
        yield
    except BaseException as error:
        with guard.contained("the span of a middleware"):
            mark_failed(span, error)
        raise
    finally:
        detach(token)
        span.end()


def _import(path: str) -> object:
    """In place of Django's `import_string`, by which its handler finds the middlewares of `MIDDLEWARE`."""
    factory = _plain_import(path)
    if any(kind.__module__ == "django_otel.middleware" for kind in getattr(factory, "__mro__", ())):
        return factory

    def build(get_response: Callable[[HttpRequest], object]) -> object:
        middleware = factory(get_response)
        if not callable(middleware):
            return middleware
        return _Measured(middleware, path.rpartition(".")[2], path)

    for name in ("sync_capable", "async_capable"):
        if hasattr(factory, name):
            setattr(build, name, getattr(factory, name))
    return build


def install(config: Config) -> None:
    """Follow the settings for middlewares that are loaded from now on. May be called again and again."""
    _state.is_on = config.enabled and config.middleware_spans
    _state.forms = {}
    base.import_string = _import if _state.is_on else _plain_import  # type: ignore[attr-defined]


def uninstall() -> None:
    """Leave Django to itself; middlewares that are loaded have no more spans."""
    _state.is_on = False
    base.import_string = _plain_import  # type: ignore[attr-defined]
