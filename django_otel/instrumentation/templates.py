"""Rendering of templates of Django and, by Django's backend, of Jinja2.

Their part of the time budget of requests is on by default (`REQUEST.TIME_BUDGET`). With `TEMPLATES`, off by default,
each render counts in `django.template.duration`, and inside a recorded span it has a span `render {template}` when it
takes `MIN_S` or has spans inside. A template that another one includes is a render inside it, in Jinja2 as well (with
context, which is the default), and so is a partial; one that is extended or imported is part of the one that does so.
A render then costs some microseconds.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextvars import Token
from time import perf_counter, time_ns
from types import TracebackType
from typing import Any
from weakref import WeakSet

from django.template import base
from django.template.base import Template
from django.template.context import Context as TemplateContext
from django.utils.safestring import SafeString
from opentelemetry.context import Context
from opentelemetry.trace import Span, get_current_span

from django_otel import runtime
from django_otel.base import guard, import_hooks
from django_otel.base.sdk_compat import SPAN_KEY, attach, detach, get_current, with_span
from django_otel.config.schema import Config
from django_otel.instrumentation.driver_calls import is_recorded, is_suppressed
from django_otel.metrics.series import HistogramSeries
from django_otel.requests import layers
from django_otel.requests.deferred import DeferredSpan
from django_otel.requests.record import current
from django_otel.tracing.exceptions import mark_failed

_PLACE = "measuring a template"
_JINJA2 = "django.template.backends.jinja2"
_MIN_S = 0.001
_MAX_SERIES = 1000
#: The name of templates that were made of a string.
_UNNAMED = "<string>"
_plain_render = Template.render
#: The class of `{% partialdef %}`, a part of a page that is rendered alone; None before Django 6.0.
_Partial: Any = getattr(base, "PartialTemplate", None)
_plain_partial_render: Any = getattr(_Partial, "render", None)
#: A compiled template of Jinja2: a generator function, asynchronous or not.
_Root = Callable[[Any], Any]


class _State:
    """State that changes with the settings."""

    def __init__(self) -> None:
        self.times_requests = False
        #: From which duration on a render has a span, in seconds; None while renders are not counted by name.
        self.min_s: float | None = None
        self.series: dict[str, HistogramSeries] = {}


_state = _State()


class _RenderSpan(DeferredSpan):
    """The span of a render, which is started when one inside asks for its parent, or at its end if it was long."""

    def __init__(self, decide: Callable[[], Span], outer_span: Span) -> None:
        super().__init__(decide)
        #: The span around it: a page names that one, and not a render that may leave no span.
        self.outer_span = outer_span


class _Render:
    """One render under way that is counted by name."""

    __slots__ = ("_name", "_span", "_started_s", "_token")

    def __init__(self, name: str) -> None:
        self._name = name
        self._span: _RenderSpan | None = None
        self._token: Token[Context] | None = None
        outer = get_current()
        # One that is not decided yet is not asked: it would start.
        if type(outer.get(SPAN_KEY)) is _RenderSpan or is_recorded(outer):
            started_unix_ns = time_ns()

            def decide() -> Span:
                attributes = {"django.template.name": name}
                return runtime.tracer().start_span(
                    f"render {name}", outer, attributes=attributes, start_time=started_unix_ns
                )

            self._span = _RenderSpan(decide, get_current_span(outer))
            self._token = attach(with_span(outer, self._span))
        self._started_s = perf_counter()

    def finish(self, ended_s: float, min_s: float, error: BaseException | None) -> None:
        """Count it, and end its span if it has one."""
        if self._token is not None:
            detach(self._token)
        took_s = ended_s - self._started_s
        series = _state.series.get(self._name) or _open(self._name)
        series.observe(took_s)
        if self._span is None:
            return
        span = self._span.decided() if took_s >= min_s else self._span.started()
        if span is not None:
            if error is not None:
                mark_failed(span, error)
            span.end()


def _open(name: str) -> HistogramSeries:
    series = runtime.store.catalogued("django.template.duration").series({"django.template.name": name})
    assert isinstance(series, HistogramSeries)
    if len(_state.series) < _MAX_SERIES and not series.is_overflow:
        _state.series[name] = series
    return series


def _begin(name: object) -> _Render | None:
    with guard.contained(_PLACE):
        if not is_suppressed(get_current()):
            return _Render(str(name or _UNNAMED))
    return None


class _Measured:
    """Around a render: its time, and where it is asked for its name."""

    __slots__ = ("_begun", "_min_s", "_opened")

    def __init__(self, name: object) -> None:
        self._min_s = _state.min_s
        self._begun = _begin(name) if self._min_s is not None else None
        self._opened = layers.enter(current(), layers.TEMPLATE, perf_counter()) if _state.times_requests else None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ended_s = layers.leave(self._opened, layers.TEMPLATE)
        if self._begun is not None and self._min_s is not None:
            with guard.contained(_PLACE):
                self._begun.finish(ended_s, self._min_s, exc)


def _render_timed(self: Template, context: TemplateContext) -> SafeString:
    opened = layers.enter(current(), layers.TEMPLATE, perf_counter())
    try:
        return _plain_render(self, context)
    finally:
        layers.leave(opened, layers.TEMPLATE)


def _render_named(self: Template, context: TemplateContext) -> SafeString:
    with _Measured(self.name):
        return _plain_render(self, context)


def _render_partial(self: Any, context: TemplateContext) -> SafeString:
    whole = getattr(self.origin, "template_name", None) or _UNNAMED
    with _Measured(f"{whole}#{self.name}"):
        rendered: SafeString = _plain_partial_render(self, context)
        return rendered


class _Jinja2:
    """Django's class of Jinja2 templates, once it was imported, and Jinja2's own, which renders the included ones."""

    def __init__(self) -> None:
        self._undo: Callable[[], None] | None = None

    def install(self) -> None:
        if not import_hooks.when_imported(_JINJA2, self._patch):
            self._patch()

    def _patch(self) -> None:
        from django.template.backends import jinja2

        if self._undo is not None:
            return
        owner = jinja2.Template
        plain = owner.render

        def render(self: jinja2.Template, *args: object, **kwargs: object) -> str:
            with _Measured(getattr(self.template, "name", None)):
                return plain(self, *args, **kwargs)  # type: ignore[arg-type]

        undo_included = _measure_included() if _state.min_s is not None else None

        def undo() -> None:
            owner.render = plain  # type: ignore[method-assign]
            if undo_included is not None:
                undo_included()

        owner.render = render  # type: ignore[method-assign]
        self._undo = undo

    def uninstall(self) -> None:
        import_hooks.forget(_JINJA2)
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()


def _measure_included() -> Callable[[], None]:
    """Measure templates of Jinja2 that others include; return what takes that back.

    An included template gets a context of its own, which shares the variables; one that is extended gets that of the
    template that extends it. One that is imported with context gets one as well, but renders nothing.
    """
    from jinja2 import Template as Own

    plain_build, plain_context = Own.__dict__["_from_namespace"], Own.new_context

    def build(cls: type[Own], environment: Any, *args: Any) -> Own:
        template: Own = plain_build.__func__(cls, environment, *args)
        render = _render_included_async if environment.is_async else _render_included
        template.root_render_func = _wrap_root(template.name, template.root_render_func, render)
        return template

    def new_context(self: Own, *args: Any, **kwargs: Any) -> Any:
        context = plain_context(self, *args, **kwargs)
        is_shared = kwargs.get("shared", args[1:2] == (True,))
        if is_shared and not sys._getframe(1).f_code.co_name.startswith("make_module"):  # noqa: SLF001 (one look)
            _included.add(context)
        return context

    def undo() -> None:
        Own._from_namespace = plain_build  # type: ignore[method-assign]  # noqa: SLF001 (the one place that all come by)
        Own.new_context = plain_context  # type: ignore[method-assign]

    Own._from_namespace = classmethod(build)  # type: ignore[method-assign, assignment]  # noqa: SLF001 (as above)
    Own.new_context = new_context  # type: ignore[method-assign]
    return undo


def _wrap_root(name: str | None, plain: _Root, render: Callable[[str | None, _Root, Any], Any]) -> _Root:
    def root(context: Any) -> Any:
        if _state.min_s is None or context not in _included or context.name != name:
            return plain(context)
        return render(name, plain, context)

    return root


# At once: between two parts of a generator, its caller's code would run inside the render.


def _render_included(name: str | None, plain: _Root, context: Any) -> Iterator[str]:
    with _Measured(name):
        parts = list(plain(context))
    yield from parts


async def _render_included_async(name: str | None, plain: _Root, context: Any) -> AsyncIterator[str]:
    with _Measured(name):
        parts = [part async for part in plain(context)]
    for part in parts:
        yield part


_jinja2 = _Jinja2()
#: Contexts of included templates, by identity.
_included: WeakSet[Any] = WeakSet()


def install(config: Config) -> None:
    """Follow the settings: time templates, or leave everything as it was made. May be called again and again."""
    uninstall()
    wanted = config.templates if config.enabled else False
    _state.times_requests = layers.is_wanted(config)
    _state.min_s = wanted.get("MIN_S", _MIN_S) if isinstance(wanted, Mapping) else _MIN_S if wanted else None
    if _state.min_s is not None:
        Template.render = _render_named  # type: ignore[method-assign]
    elif _state.times_requests:
        Template.render = _render_timed  # type: ignore[method-assign]
    else:
        return
    if _Partial is not None:
        _Partial.render = _render_partial
    _jinja2.install()


def uninstall() -> None:
    """Take everything back."""
    _state.min_s, _state.times_requests = None, False
    _state.series.clear()
    if Template.render in (_render_named, _render_timed):
        Template.render = _plain_render  # type: ignore[method-assign]
    if _Partial is not None and _Partial.render is _render_partial:
        _Partial.render = _plain_partial_render
    _jinja2.uninstall()
