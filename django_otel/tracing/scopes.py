"""Scopes: objects that begin, are current for a while, and end.

A scope is a context manager and a decorator of functions, coroutine functions,
generators and async generators.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from types import TracebackType
from typing import Any, Self, TypeVar

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from django_otel.base import guard

F = TypeVar("F", bound=Callable[..., Any])


class Run:
    """One run of a scope: the context that is current inside, and the actions at its end."""

    __slots__ = ("context", "on_end", "previous", "span", "token")

    def __init__(
        self,
        context: Context | None,
        span: trace.Span = trace.INVALID_SPAN,
        on_end: Callable[[BaseException | None], None] | None = None,
    ) -> None:
        self.context = context
        self.span = span
        self.on_end = on_end
        self.previous: Context | None = None
        self.token: object | None = None

    def __enter__(self) -> Self:
        self.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()
        self.end(error)

    def attach(self) -> None:
        """Make the run's context current."""
        if self.context is not None:
            self.previous = otel_context.get_current()
            self.token = otel_context.attach(self.context)

    def detach(self) -> None:
        """Make the context before `attach` current again, and keep the one inside for a next `attach`."""
        token, self.token = self.token, None
        if token is None:
            return
        inside = otel_context.get_current()
        if isinstance(token, contextvars.Token):
            # Not otel_context.detach(): that logs an error where the run ends in another
            # task than it began in (an abandoned generator, a fixture), which is not a fault.
            try:
                token.var.reset(token)
            except (ValueError, RuntimeError):
                if inside is self.context and self.previous is not None:
                    otel_context.attach(self.previous)
                return
        else:
            otel_context.detach(token)  # type: ignore[arg-type]
        self.context = inside

    def end(self, error: BaseException | None) -> None:
        """End the run, once; `error` is the exception that ended it, if any."""
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            with guard.contained("the end of a span"):
                on_end(error if isinstance(error, Exception) else None)


class Scope:
    """A context manager (`with` and `async with`) and a decorator.

    One object may be entered many times, also at once by several threads and
    tasks and inside itself: each time is a run of its own.
    """

    _place = "a scope"

    def __init__(self) -> None:
        self._runs: list[Run] = []

    def _begin(self) -> Run:
        raise NotImplementedError

    def begin_call(self, args: tuple[object, ...], kwargs: dict[str, object]) -> Run:
        """Begin the run of a decorated function that is called with these arguments."""
        return self._begin_safely()

    def _begin_safely(self) -> Run:
        try:
            return self._begin()
        except Exception as error:
            guard.report(self._place, error)
            return Run(None)

    def _entered(self, run: Run) -> Any:
        return self

    def __enter__(self) -> Any:
        run = self._begin_safely()
        run.attach()
        self._runs.append(run)
        return self._entered(run)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        run = self._take_run()
        if run is not None:
            run.__exit__(kind, error, traceback)

    async def __aenter__(self) -> Any:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def _take_run(self) -> Run | None:
        """The innermost run of this thread or task: the one whose context is current here."""
        runs = self._runs
        if len(runs) > 1:
            current = otel_context.get_current()
            for index in range(len(runs) - 1, -1, -1):
                if runs[index].context is current:
                    return runs.pop(index)
        return runs.pop() if runs else None

    def __call__(self, function: F) -> F:
        return decorate(function, self)


class SimpleScope(Scope):
    """A scope whose begin is a function."""

    def __init__(self, begin: Callable[[], Run]) -> None:
        super().__init__()
        self._begin = begin  # type: ignore[method-assign]


def decorate(function: F, scope: Scope) -> F:
    """Wrap a function so that each call is a run of `scope`.

    Errors: `TypeError` for what cannot be called or is a class.
    """
    if isinstance(function, staticmethod | classmethod):
        return type(function)(decorate(function.__func__, scope))
    name = type(scope).__name__.strip("_").lower()
    if inspect.isclass(function):
        raise TypeError(
            f"{name} decorates functions and methods; {function.__qualname__} is a class: decorate its methods."
        )
    if not callable(function):
        raise TypeError(f"{name} decorates functions and methods, not {type(function).__name__!r} objects.")
    if inspect.isasyncgenfunction(function):
        return _decorate_async_generator(function, scope)  # type: ignore[return-value]
    if inspect.isgeneratorfunction(function):
        return _decorate_generator(function, scope)  # type: ignore[return-value]
    if _is_coroutine_function(function):
        return _decorate_coroutine(function, scope)  # type: ignore[return-value]

    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        with scope.begin_call(args, kwargs):
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def _is_coroutine_function(function: Callable[..., object]) -> bool:
    # asgiref's test also knows what Django marks as a coroutine function, on every Python.
    from asgiref.sync import iscoroutinefunction

    if iscoroutinefunction(function):
        return True
    call = getattr(function, "__call__", None)  # noqa: B004 (the method itself is looked at)
    return not inspect.isroutine(function) and call is not None and iscoroutinefunction(call)


def _decorate_coroutine(function: Callable[..., Any], scope: Scope) -> Callable[..., object]:
    @functools.wraps(function)
    async def call(*args: object, **kwargs: object) -> object:
        with scope.begin_call(args, kwargs):
            return await function(*args, **kwargs)

    return call


@contextlib.contextmanager
def _attached(run: Run) -> Generator[None]:
    run.attach()
    try:
        yield
    finally:
        run.detach()


def _decorate_generator(function: Callable[..., Any], scope: Scope) -> Callable[..., object]:
    # Like `yield from` (PEP 380), with the run's context current only while the body runs.
    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> Generator[object, object, object]:
        generator = function(*args, **kwargs)
        run = scope.begin_call(args, kwargs)
        step: Callable[[object], object] = generator.send
        argument: object = None
        try:
            while True:
                with _attached(run):
                    try:
                        item = step(argument)
                    except StopIteration as stop:
                        result = stop.value
                        break
                try:
                    argument = yield item
                    step = generator.send
                except GeneratorExit:
                    with _attached(run):
                        result = generator.close()
                    break
                except BaseException as error:
                    step, argument = generator.throw, error
        except BaseException as error:
            run.end(error)
            raise
        run.end(None)
        return result

    return call


def _decorate_async_generator(function: Callable[..., Any], scope: Scope) -> Callable[..., object]:
    @functools.wraps(function)
    async def call(*args: object, **kwargs: object) -> AsyncGenerator[object, object]:
        generator = function(*args, **kwargs)
        run = scope.begin_call(args, kwargs)
        step: Callable[[object], Any] = generator.asend
        argument: object = None
        try:
            while True:
                with _attached(run):
                    try:
                        item = await step(argument)
                    except StopAsyncIteration:
                        break
                try:
                    argument = yield item
                    step = generator.asend
                except GeneratorExit:
                    with _attached(run):
                        await generator.aclose()
                    raise
                except BaseException as error:
                    step, argument = generator.athrow, error
        except BaseException as error:
            run.end(error)
            raise
        run.end(None)

    return call
