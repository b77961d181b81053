"""Something is done as soon as a module has been imported, and the import is as it would be without us."""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import sys
import threading
import time

import pytest

from django_otel.base import guard, import_hooks
from django_otel.metrics.lazy_metrics import LazyMeterProvider

NAME = "module_that_is_waited_for"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that can be imported and is not; gone afterwards. Gives its file."""
    file = tmp_path / f"{NAME}.py"
    file.write_text("value = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield file
    import_hooks.forget(NAME)
    sys.modules.pop(NAME, None)


def test_the_callback_is_called_once_when_the_module_is_there(module):
    """After its code has run; not again for a second import or a reload."""
    calls = []
    assert import_hooks.when_imported(NAME, lambda: calls.append(sys.modules[NAME].value))
    assert calls == []
    found = importlib.import_module(NAME)
    importlib.import_module(NAME)
    importlib.reload(found)
    assert calls == [1]


def test_the_finder_goes_when_nothing_is_waited_for(module):
    """Every import of the process passes it, so it is there only as long as it is needed."""
    before = list(sys.meta_path)
    import_hooks.when_imported(NAME, lambda: None)
    assert len(sys.meta_path) == len(before) + (import_hooks._finder not in before)
    importlib.import_module(NAME)
    assert list(sys.meta_path) == before


def test_a_module_that_is_there_is_not_waited_for(module):
    """The caller does at once what it wanted to do."""
    importlib.import_module(NAME)
    assert import_hooks.when_imported(NAME, lambda: None) is False
    assert import_hooks.forget(NAME) is None


def test_the_imported_module_is_as_it_would_be_without_us(module):
    """Loader, spec, source and resources are the module's own."""
    import_hooks.when_imported(NAME, lambda: None)
    found = importlib.import_module(NAME)
    plain = importlib.util.spec_from_file_location(NAME, module)
    assert type(found.__loader__) is type(found.__spec__.loader) is type(plain.loader)
    assert found.__spec__.origin == found.__file__ == str(module)
    assert inspect.getsource(found) == "value = 1\n"


def test_a_module_that_cannot_be_imported_fails_as_ever_and_is_still_waited_for(module):
    """Its own exception; once it can be imported the callback comes."""
    calls = []
    module.write_text("raise RuntimeError('not yet')\n")
    import_hooks.when_imported(NAME, lambda: calls.append(1))
    with pytest.raises(RuntimeError, match="not yet"):
        importlib.import_module(NAME)
    assert calls == []
    assert NAME not in sys.modules
    module.write_text("value = 22222\n")
    importlib.invalidate_caches()
    assert importlib.import_module(NAME).value == 22222
    assert calls == [1]


def test_a_missing_module_is_missing():
    """`try: import ... except ImportError` in a project goes on to work."""
    import_hooks.when_imported("no_such_module_at_all", lambda: None)
    try:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("no_such_module_at_all")
        assert importlib.util.find_spec("no_such_module_at_all") is None
    finally:
        import_hooks.forget("no_such_module_at_all")


def test_looking_for_a_module_is_no_import(module):
    """`find_spec` is how projects ask whether a library is installed."""
    calls = []
    import_hooks.when_imported(NAME, lambda: calls.append(1))
    assert importlib.util.find_spec(NAME) is not None
    assert calls == []
    importlib.import_module(NAME)
    assert calls == [1]


def test_a_callback_that_raises_does_not_fail_the_import(module, caplog):
    """The application's import is not ours to fail; the fault is reported."""
    guard.reset()
    import_hooks.when_imported(NAME, lambda: 1 / 0)
    assert importlib.import_module(NAME).value == 1
    assert any(NAME in record.getMessage() for record in caplog.records)


def test_a_callback_may_be_interrupted(module):
    """Only Exception is contained."""

    def interrupted():
        raise KeyboardInterrupt

    import_hooks.when_imported(NAME, interrupted)
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module(NAME)


def test_forgetting_calls_nothing(module):
    """A change of the settings takes a wish back."""
    calls = []
    import_hooks.when_imported(NAME, lambda: calls.append(1))
    assert import_hooks.forget(NAME) is not None
    importlib.import_module(NAME)
    assert calls == []


def test_threads_that_import_at_once_see_one_call(module):
    """It comes before any of them goes on with the module."""
    module.write_text("import time\ntime.sleep(0.1)\nvalue = 1\n")
    calls, seen = [], []
    import_hooks.when_imported(NAME, lambda: calls.append(1))

    def work():
        importlib.import_module(NAME)
        seen.append(list(calls))

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [[1]] * 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_forked_while_another_thread_registers_can_import(module):
    """The lock that the lost thread held is not held in the child; what the parent waited for, it waits for as well."""
    import_hooks.when_imported(NAME, lambda: None)
    with import_hooks._finder.lock:
        pid = os.fork()
        if pid == 0:
            calls = []
            import_hooks.when_imported(NAME, lambda: calls.append(1))
            importlib.import_module(NAME)
            os._exit(0 if calls == [1] else 1)
    deadline_s = time.monotonic() + 10
    while (done := os.waitpid(pid, os.WNOHANG))[0] == 0 and time.monotonic() < deadline_s:
        time.sleep(0.02)
    if done[0] == 0:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(done[1]) == 0


def test_a_lazy_provider_is_built_once_by_the_first_who_asks():
    """By one of the threads; the others wait for it. In a child of a fork its lock is a new one."""
    from opentelemetry.sdk.metrics import MeterProvider

    built = []

    def build():
        time.sleep(0.05)
        built.append(MeterProvider(shutdown_on_exit=False))
        return built[-1]

    provider = LazyMeterProvider(build)
    assert provider.built is None
    assert not hasattr(provider, "__no_such_name__")
    assert built == []
    meters = []
    threads = [threading.Thread(target=lambda: meters.append(provider.get_meter("shop", "1"))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [provider.built]
    assert len(set(map(id, meters))) == 1
    assert provider.force_flush() is True
    former = provider._lock
    provider.renew_locks()
    assert provider._lock is not former
