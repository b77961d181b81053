"""Management commands, from the command line and by `call_command`: a span, a duration, and the last success.

Off by default (`COMMANDS`). Span `manage.py {command}` (never an argument), metrics `django.command.duration` and
`django.command.last_success`. A command costs two cell updates, requests nothing. Not measured: commands that serve or
work until they are stopped, commands of SKIP_COMMANDS, and our own.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from django.core import management
from django.core.management.base import BaseCommand
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from django_otel import runtime
from django_otel.base import guard
from django_otel.base.sdk_compat import attach, detach_or_raise
from django_otel.config.schema import Config
from django_otel.metrics.instruments import Gauge, Histogram
from django_otel.tracing.exceptions import record_exception, type_name

_plain_execute = BaseCommand.execute
_plain_load = management.load_command_class

#: They end when they are stopped: one span over everything they ever do says nothing.
_ENDLESS = frozenset({
    "celery", "daphne", "db_worker", "dbshell", "otel", "process_tasks", "procrastinate", "qcluster", "qmonitor",
    "rqscheduler", "rqworker", "rqworker-pool", "run_huey", "runapscheduler", "rundramatiq", "runserver",
    "runserver_plus", "runsslserver", "runworker", "shell", "shell_plus", "testserver", "tailwind",
})  # fmt: skip
#: The label of a command that no app registers, such as an object given to `call_command`.
_OTHER = "_other"
#: Attribute in which `load_command_class` leaves the name under which a command was found.
_NAME = "_django_otel_command"
#: Shorter values are not secrets, and would cut words of a message in two.
_SHORTEST_ARGUMENT = 4
#: Options of every command; their values are numbers and paths of the project.
_COMMON_OPTIONS = frozenset({"settings", "pythonpath", "verbosity", "traceback"})


@functools.wraps(_plain_load)
def _load_command_class(app_name: str, name: str) -> BaseCommand:
    command = _plain_load(app_name, name)
    with guard.contained("the name of a command"):
        vars(command)[_NAME] = name
    return command


@functools.wraps(_plain_execute)
def _execute(self: BaseCommand, *args: Any, **options: Any) -> Any:
    run = _begin(self)
    if run is None:
        return _plain_execute(self, *args, **options)
    error: BaseException | None = None
    try:
        return _plain_execute(self, *args, **options)
    except BaseException as raised:
        error = raised
        raise
    finally:
        run.end(error, (args, options))


@guard.guarded("beginning a command", None)
def _begin(command: BaseCommand) -> _Run | None:
    name = vars(command).get(_NAME) or type(command).__module__.rpartition(".")[2]
    config = runtime.current().config
    wanted = config.commands
    if name in _ENDLESS or name in config.skip_commands or (isinstance(wanted, tuple) and name not in wanted):
        return None
    if runtime.command_name() == name:
        # The server's page shows what this short-lived process has measured.
        runtime.work_in_background()
    return _Run(name)


class _Run:
    """One command under way."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._span = runtime.tracer().start_span(
            f"manage.py {name}", kind=SpanKind.INTERNAL, attributes={"django.command.name": name}
        )
        self._started_ns = time.perf_counter_ns()
        self._token = attach(trace.set_span_in_context(self._span))

    def end(self, error: BaseException | None, arguments: tuple[Iterable[object], Mapping[str, object]]) -> None:
        """Count the run and end its span; `error` is the exception that ended it."""
        duration_s = (time.perf_counter_ns() - self._started_ns) / 1e9
        failed = error is not None and not (isinstance(error, SystemExit) and error.code in (None, 0))
        try:
            with guard.contained("what was current before a command"):
                detach_or_raise(self._token)
            with guard.contained("counting a command"):
                self._count(duration_s, failed=failed)
            if failed and error is not None and self._span.is_recording():
                with guard.contained("recording the failure of a command"):
                    self._describe(error, arguments)
        finally:
            self._span.end()

    def _count(self, duration_s: float, *, failed: bool) -> None:
        label = self._name if self._name in management.get_commands() else _OTHER
        durations = runtime.store.catalogued("django.command.duration")
        assert isinstance(durations, Histogram)
        ids = self._span.get_span_context()
        durations.record(
            duration_s,
            {"django.command.name": label, "django.command.outcome": "failed" if failed else "succeeded"},
            *((ids.trace_id, ids.span_id) if ids.trace_flags.sampled else ()),
        )
        if not failed:
            last = runtime.store.catalogued("django.command.last_success")
            assert isinstance(last, Gauge)
            last.set(time.time(), {"django.command.name": label})

    def _describe(self, error: BaseException, arguments: tuple[Iterable[object], Mapping[str, object]]) -> None:
        kind = type_name(error)
        self._span.set_attribute("error.type", kind)
        self._span.set_status(Status(StatusCode.ERROR, kind))
        if isinstance(error, Exception):
            record_exception(self._span, error, _build_scrub(arguments), escaped=True, scrubs_now=True)


def _build_scrub(arguments: tuple[Iterable[object], Mapping[str, object]]) -> Callable[[str], str]:
    """Return a function that redacts the text of a command's exception: its arguments, and all other secrets."""
    scrub = runtime.current().scrubber.text
    positional, options = arguments
    values = [value for key, value in options.items() if key not in _COMMON_OPTIONS]
    # The longest first: one may be a part of another.
    found = sorted(set(_find_texts([*positional, *values])), key=len, reverse=True)

    def redact(text: str) -> str:
        for argument in found:
            text = text.replace(argument, "[argument]")
        return scrub(text)

    return redact


def _find_texts(values: Iterable[object]) -> Iterator[str]:
    for value in values:
        if isinstance(value, list | tuple | set | frozenset):
            yield from _find_texts(value)
        elif isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            text = str(value)
            if len(text) >= _SHORTEST_ARGUMENT:
                yield text


def install(config: Config) -> None:
    """Follow the settings: measure, or leave everything as Django made it. May be called again and again."""
    if not (config.enabled and config.commands):
        uninstall()
        return
    if BaseCommand.execute is _plain_execute:
        BaseCommand.execute = _execute  # type: ignore[method-assign]
    if management.load_command_class is _plain_load:
        management.load_command_class = _load_command_class


def uninstall() -> None:
    """Take everything back."""
    if BaseCommand.execute is _execute:
        BaseCommand.execute = _plain_execute  # type: ignore[method-assign]
    if management.load_command_class is _load_command_class:
        management.load_command_class = _plain_load
