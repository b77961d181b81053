"""What passes through a guard: all but the faults of telemetry itself."""

from __future__ import annotations

import ast
import logging
import signal
from pathlib import Path

import pytest

import django_otel
from django_otel import logs
from django_otel.base import guard
from django_otel.business import loaded
from django_otel.export import encoder, log_records
from django_otel.metrics import instruments
from django_otel.redaction import statements
from django_otel.tracestore import errors
from django_otel.tracing import attributes, exceptions


class TooLong(Exception):
    """A time limit of the project."""


class Limit:
    def stop(self, number, frame):
        raise TooLong

    __call__ = stop


def stop(number, frame):
    raise TooLong


@pytest.fixture
def alarm():
    """Install a handler of SIGALRM for the length of a test."""
    before = signal.getsignal(signal.SIGALRM)
    yield lambda handler: signal.signal(signal.SIGALRM, handler)
    signal.signal(signal.SIGALRM, before)


def interrupted_block():
    with guard.contained("a test"):
        signal.raise_signal(signal.SIGALRM)


@guard.guarded("a test", None)
def interrupted_call():
    signal.raise_signal(signal.SIGALRM)


@pytest.mark.parametrize("run", [interrupted_block, interrupted_call])
@pytest.mark.parametrize("handler", [stop, Limit().stop, Limit()], ids=["function", "method", "object"])
def test_what_a_signals_handler_raises_in_our_code_reaches_the_application(alarm, run, handler):
    alarm(handler)
    with pytest.raises(TooLong):
        run()
    assert guard.fault_counts() == {}


@pytest.mark.parametrize("run", [interrupted_block, interrupted_call])
def test_the_time_limit_of_an_rq_job_ends_it_though_our_code_runs(alarm, run):
    timeouts = pytest.importorskip("rq.timeouts")
    with pytest.raises(timeouts.JobTimeoutException):
        with timeouts.UnixSignalDeathPenalty(60, timeouts.JobTimeoutException):
            run()


@pytest.mark.parametrize("run", [interrupted_block, interrupted_call])
def test_the_soft_time_limit_of_a_celery_task_ends_it_though_our_code_runs(alarm, run):
    pool, exceptions = pytest.importorskip("billiard.pool"), pytest.importorskip("billiard.exceptions")
    alarm(pool.soft_timeout_sighandler)
    with pytest.raises(exceptions.SoftTimeLimitExceeded):
        run()


def test_a_fault_of_our_own_is_contained_though_signals_have_handlers(alarm):
    alarm(stop)
    with guard.contained("a test"):
        raise TooLong
    assert guard.fault_counts() == {"a test": 1}


class Interrupted(Exception):
    """A value of the project: whatever it is asked for, the signal arrives."""

    def _stop(self, *_):
        signal.raise_signal(signal.SIGALRM)

    __str__ = __repr__ = __float__ = __hash__ = as_string = to_python = _stop
    __class__ = property(_stop)


def log_body(error):
    record = logging.LogRecord("shop", logging.INFO, __file__, 1, "%s", (error,), None)
    return logs.OTelHandler._body(logs.OTelHandler(), record)


def attributes_of(error):
    record = logging.LogRecord("shop", logging.ERROR, __file__, 1, "late", None, (ValueError, error, None))
    return log_records.exception_attributes_of(record, str)


@pytest.mark.parametrize(
    "ask",
    [
        errors._message_of, encoder._hashable, instruments._read_number, attributes._is_lazy,
        lambda value: repr(instruments._Refused(value)),
        lambda value: exceptions.format_stack(value, str),
        lambda value: loaded.comparable(value, 1),
        lambda value: statements.parameterise(value, "postgresql"),
        log_body, attributes_of,
    ],
    ids=["error", "hash", "number", "proxy", "refused", "stack", "column", "statement", "log", "log's error"],
)  # fmt: skip
def test_a_signal_while_a_value_of_the_project_is_read_reaches_the_application(alarm, ask):
    """Where the value's own fault would be no fault to report."""
    alarm(stop)
    with pytest.raises(TooLong):
        ask(Interrupted())


def test_each_place_that_contains_exceptions_lets_those_of_signals_pass():
    """Commands, the doctor and checks of settings run no code of the application's requests and tasks."""
    package = Path(django_otel.__file__).parent
    own = ("management", "operations", "config")
    found = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in package.rglob("*.py")
        if path.relative_to(package).parts[0] not in own
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if contains_all(node) and not lets_pass(node)
    ]
    assert found == []


def contains_all(node):
    if isinstance(node, ast.ExceptHandler):
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        return any(isinstance(kind, ast.Name) and kind.id == "Exception" for kind in kinds)
    if isinstance(node, ast.With):
        return any("suppress(Exception" in ast.unparse(item) for item in node.items)
    return False


def lets_pass(node):
    calls = {ast.unparse(each.func).rpartition(".")[2] for each in ast.walk(node) if isinstance(each, ast.Call)}
    return bool(calls & {"report", "pass_on"}) or any(isinstance(each, ast.Raise) for each in ast.walk(node))
