"""What passes through a guard: all but the faults of telemetry itself."""

from __future__ import annotations

import signal

import pytest

from django_otel.base import guard


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
