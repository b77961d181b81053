"""Tools for tests with any test runner: sampling, capture of spans, metrics and logs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from django_otel.testing.recorded import RecordedLogs, RecordedMetrics, RecordedSpans

if TYPE_CHECKING:
    from django_otel.metrics.model import Family
    from django_otel.tracing.scopes import Scope

Entry = TypeVar("Entry")

ABSENT = (
    "The fixtures of django_otel need configured Django settings with 'django_otel' in INSTALLED_APPS "
    "(with pytest-django: set DJANGO_SETTINGS_MODULE)."
)


def is_used() -> bool:
    """Return whether Django is set up with our app, without setting it up or importing it."""
    if "django" not in sys.modules:
        return False
    from django.apps import apps
    from django.conf import settings

    return settings.configured and apps.ready and apps.is_installed("django_otel")


def put_in_memory() -> bool:
    """Replace the exporters by memory; False where the plugin has nothing to do."""
    if not is_used():
        return False
    from django_otel import runtime

    runtime.use_memory_exporters()
    return True


def collect(*, observed: bool = True) -> list[Family]:
    from django_otel import runtime

    # Observable gauges keep what they read for some seconds, which is long in a test.
    runtime.store.forget_observed()
    return runtime.collect_process(observed=observed)


def override_sampling(ratio: float) -> Scope:
    """Record this share (0.0 to 1.0) of new traces inside: context manager and decorator, sync and async.

    Decorates functions, methods and test cases; a test case from its `setUpClass` to its last test.

    Errors: `ValueError` when the ratio is outside 0.0 to 1.0.
    """
    from django_otel import runtime
    from django_otel.sampling.policy import Policy
    from django_otel.tracing.scopes import F, Run, SimpleScope

    class OverrideSampling(SimpleScope):
        def __call__(self, function: F) -> F:
            if _is_test_case(function):
                _hold_during_tests(function, self)
                return function
            return super().__call__(function)

    policy = Policy(ratio, source="test", is_whole=True)

    def begin() -> Run:
        sampler = runtime.current().sampler
        before = sampler.live
        sampler.swap(policy)
        return Run(None, on_end=lambda error: sampler.swap(before))

    return OverrideSampling(begin)


def _is_test_case(target: object) -> bool:
    # Code that decorates a test case has imported unittest.
    module = sys.modules.get("unittest")
    return module is not None and isinstance(target, type) and issubclass(target, module.TestCase)


def _hold_during_tests(case: Any, scope: Scope) -> None:
    set_up = vars(case).get("setUpClass")

    def set_up_class(cls: Any) -> None:
        cls.enterClassContext(scope)
        if set_up is None:
            super(case, cls).setUpClass()
        else:
            set_up.__func__(cls)

    case.setUpClass = classmethod(set_up_class)


# --- Capture. ---


class _Tail(Generic[Entry]):
    """Entries that a growing list of the runtime receives from now on."""

    def __init__(self, find: Callable[[], list[Entry]]) -> None:
        self._find = find
        self._kept: list[Entry] | None = None
        self._start = len(find())

    def read(self) -> list[Entry]:
        return self._find()[self._start :] if self._kept is None else self._kept

    def clear(self) -> None:
        if self._kept is None:
            self._start = len(self._find())
        else:
            self._kept = []

    def keep(self) -> None:
        """Stop listening; results stay readable."""
        self._kept = self.read()


@contextlib.contextmanager
def _in_memory() -> Iterator[None]:
    """Exporters are memory inside, as they were after it.

    Errors: `RuntimeError` without django_otel among the installed apps.
    """
    if not is_used():
        raise RuntimeError(ABSENT)
    from django_otel import runtime

    was_testing = runtime.is_testing()
    runtime.use_memory_exporters()
    try:
        yield
    finally:
        if not was_testing:
            runtime.stop_memory_exporters()


@contextlib.contextmanager
def capture_spans() -> Iterator[RecordedSpans]:
    """Record the spans that end inside: `with capture_spans() as spans: ...; spans.one("charge")`.

    Also a decorator, and for `TestCase.enterContext`. What was recorded can be read after the block too.

    Errors: `RuntimeError` without django_otel among the installed apps.
    """
    from django_otel import runtime

    with _in_memory():
        tail = _Tail(runtime.memory_spans)
        try:
            yield RecordedSpans(tail.read, tail.clear)
        finally:
            tail.keep()


@contextlib.contextmanager
def capture_logs() -> Iterator[RecordedLogs]:
    """Capture the log records that would be exported, like `capture_spans()`."""
    from django_otel import runtime

    with _in_memory():
        tail = _Tail(runtime.memory_logs)
        try:
            yield RecordedLogs(tail.read, tail.clear)
        finally:
            tail.keep()


@contextlib.contextmanager
def capture_metrics() -> Iterator[RecordedMetrics]:
    """Record what the code inside counts: `with capture_metrics() as metrics: ...; metrics.value("orders.total")`.

    Errors: `RuntimeError` without django_otel among the installed apps.
    """
    with _in_memory():
        recorded = RecordedMetrics(collect)
        try:
            yield recorded
        finally:
            recorded.keep()
