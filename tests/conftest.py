"""Fixtures of the whole suite; the parts they start stand in `tests.services`."""

import os

import pytest

from tests import services


def _seed_line(config) -> str | None:
    """Return the option that repeats the order of this run; None without pytest-randomly, and in xdist's workers."""
    seed = getattr(config.option, "randomly_seed", None)
    return None if seed is None or hasattr(config, "workerinput") else f"Random order: --randomly-seed={seed}"


#: A test file with one of these words starts a process, a server or a browser, and is not part of `make quick`.
_SLOW_WORDS = ("services", "subprocess", "playwright", "multiprocessing", "os.fork", "postgres", "valkey")
_sources: dict[str, bool] = {}


def pytest_collection_modifyitems(items):
    """Mark as "quick" all tests of files that need nothing but this process."""
    for item in items:
        path = str(item.path)
        if path not in _sources:
            source = item.path.read_text(encoding="utf-8")
            _sources[path] = not any(word in source for word in _SLOW_WORDS)
        if _sources[path]:
            item.add_marker(pytest.mark.quick)


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    """Print the seed at once, so that a run that is killed has named it; only -q leaves out the plugin's own header."""
    line, reporter = _seed_line(session.config), session.config.pluginmanager.get_plugin("terminalreporter")
    if line and reporter is not None and reporter.verbosity < 0:
        reporter.write_line(line)


def pytest_terminal_summary(terminalreporter, config):
    """Print the seed beside the failures."""
    line = _seed_line(config)
    if line:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def postgres():
    """The URL of a real PostgreSQL server."""
    with services.start_postgres() as url:
        yield url


@pytest.fixture
def postgres_database(postgres):
    """The URL of an empty database of this test alone, on the server of `postgres`."""
    with services.new_database(postgres) as url:
        yield url


@pytest.fixture(scope="session")
def valkey_url():
    """The redis:// URL of a real Valkey server."""
    with services.start_valkey() as url:
        yield url


@pytest.fixture(scope="session")
def rotel():
    """A real, strict OTLP collector."""
    with services.start_rotel() as collector:
        yield collector


@pytest.fixture
def receiver():
    """An OTLP/HTTP receiver that keeps what it gets."""
    with services.start_receiver() as found:
        yield found


@pytest.fixture(autouse=True)
def settings_as_the_environment_has_them():
    """A test may set OTEL_* variables; what was parsed with them must not outlive it."""
    yield
    # Set up before monkeypatch and settings, this ends after them.
    from django.conf import settings

    from django_otel import conf, runtime
    from django_otel.config.parse import parse
    from django_otel.config.schema import ConfigError
    from django_otel.instrumentation import instrumentors

    try:
        parsed = conf.get_config()
    except ConfigError:
        parsed = None
    wanted = parse(settings.OTEL, os.environ, "tests")
    if parsed != wanted:
        conf.forget()
        runtime.restart()
    # One that is left off would fail another test, later and maybe of another file.
    found = instrumentors.states()
    assert {state.name for state in found if state.is_on} == set(wanted.instrument), f"left off by the test: {found}"
