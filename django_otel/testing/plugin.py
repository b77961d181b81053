"""Hooks and fixtures of the pytest plugin, which builds on `recorded` and `tools`.

pytest loads this module in every project of the environment, so it imports no
Django and no SDK until a test of a project that uses the app runs.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from django_otel.testing.recorded import RecordedLogs, RecordedMetrics, RecordedSpans
from django_otel.testing.tools import ABSENT, collect, is_used, put_in_memory

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.trace import ReadableSpan

_METRICS = pytest.StashKey[RecordedMetrics]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection() -> None:
    # Test modules may run code when they are imported.
    put_in_memory()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
    # pytest-django makes the test database in the first test that wants it; its queries are not that test's.
    if fixturedef.argname != "django_db_setup" or not is_used():
        return (yield)
    from opentelemetry import context

    from django_otel.base.sdk_compat import SUPPRESS_INSTRUMENTATION_KEY

    token = context.attach(context.set_value(SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        return (yield)
    finally:
        context.detach(token)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # Before the fixtures, so that what they record belongs to the test.
    if put_in_memory():
        _clear_spans()
        _clear_logs()
        if "otel_metrics" in getattr(item, "fixturenames", ()):
            item.stash[_METRICS] = RecordedMetrics(collect)


def _spans() -> list[ReadableSpan]:
    from django_otel import runtime

    return runtime.memory_spans()


def _clear_spans() -> None:
    _spans().clear()


def _logs() -> list[ReadableLogRecord]:
    from django_otel import runtime

    return runtime.memory_logs()


def _clear_logs() -> None:
    _logs().clear()


def _check_used() -> None:
    if not put_in_memory():
        pytest.fail(ABSENT, pytrace=False)


@pytest.fixture
def otel_spans() -> RecordedSpans:
    """The finished spans of this test: `.named(name)`, `.one(name)`, `.tree()`, `.clear()`, iteration."""
    _check_used()
    return RecordedSpans(_spans, _clear_spans)


@pytest.fixture
def otel_metrics(request: pytest.FixtureRequest) -> RecordedMetrics:
    """Metrics counted by this test: `.value(name, **attributes)`, `.series(name)`, `.clear()`."""
    _check_used()
    recorded = request.node.stash.get(_METRICS, None)
    # None when the fixture is asked for by name in the middle of a test.
    return recorded if recorded is not None else RecordedMetrics(collect)


@pytest.fixture
def otel_logs() -> RecordedLogs:
    """The log records of this test that would have been exported: `.bodies`, `.one(text)`, `.clear()`, iteration."""
    _check_used()
    return RecordedLogs(_logs, _clear_logs)
