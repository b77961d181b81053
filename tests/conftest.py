"""Fixtures of the whole suite; the parts they start stand in `tests.services`."""

import contextlib
import functools
import gc
import importlib.metadata
import os
import shutil
import sqlite3
import sys
import tempfile
import time
import types

import hypothesis
import pytest

from tests import services, sizes

# Hundreds of processes import the same modules; without stored bytecode each would compile them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def _keep_metadata() -> None:
    """Read the metadata of each installed package once: hundreds of tests ask for those of all."""
    places, texts = frozenset(sys.path), {}
    read = importlib.metadata.PathDistribution.read_text

    def read_once(self, filename):
        # What a test installs lies elsewhere, and may change.
        if str(getattr(self._path, "parent", "")) not in places:
            return read(self, filename)
        key = (str(self._path), filename)
        if key not in texts:
            texts[key] = read(self, filename)
        return texts[key]

    importlib.metadata.PathDistribution.read_text = read_once
    if hasattr(importlib.metadata, "email"):
        importlib.metadata.email = types.SimpleNamespace(
            message_from_string=functools.cache(importlib.metadata.email.message_from_string)
        )


_keep_metadata()

# An example may take as long as the machine's load makes it take. The same examples in every run, as in CI: new ones
# are looked for with `--hypothesis-profile=random`, where what they find does not stop another change.
_profile = hypothesis.settings(
    max_examples=sizes.examples(100),
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("tests", _profile)
hypothesis.settings.register_profile("random", _profile, derandomize=False)
hypothesis.settings.load_profile("tests")

#: Files that take longest, the longest first: each begins before the others of its kind.
_LONGEST = (
    "test_accessible.py test_shared.py test_console_browser.py test_live_processes.py test_browser_sampling.py "
    "test_demo.py test_shared_servers.py test_gevent.py test_console.py test_admin.py test_cutting.py test_store.py "
    "test_encoder.py"
)
#: The same of a long run.
_LONGEST_OF_ALL = (
    "test_benchmarks.py test_demo.py test_accessible.py test_reach.py test_distribution.py test_panels.py "
    "test_celery_workers.py test_database_postgres.py test_pictures.py test_live_processes.py test_process_end.py "
    "test_scrub.py test_cutting.py test_environment.py test_browser.py test_console.py test_clocks.py "
    "test_browser_sampling.py test_shared.py test_hostile.py test_hosts.py test_django_tasks.py"
)
LONGEST = (_LONGEST_OF_ALL if sizes.IS_LONG else _LONGEST).split()
#: What the instrumentors said of themselves after a test, where it was right.
_checked = set()
#: Settings and environment that were read last, and what came of them.
_last = [None, None]


def pytest_configure(config):
    """Make a folder that the workers of this run share, and with them all processes that the tests start."""
    if not hasattr(config, "workerinput"):
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        os.environ["DJANGO_OTEL_TESTS_FOLDER"] = folder = tempfile.mkdtemp(prefix="tests-", dir=memory)
        # Each process that opens the folder of a policy looks through the others beside it: those of this run alone.
        os.environ["XDG_RUNTIME_DIR"] = folder


def pytest_unconfigure(config):
    """Delete it; and let pytest, which collects garbage five times at the end, look through what is new."""
    gc.collect()
    gc.freeze()
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop("DJANGO_OTEL_TESTS_FOLDER"), ignore_errors=True)


def pytest_xdist_auto_num_workers(config):
    """Two workers for each core, since much of the time is spent waiting for servers; three for two in quick tests."""
    return (3 if config.option.markexpr == "quick" else 4) * (os.cpu_count() or 1) // 2


def _seed_line(config) -> str | None:
    """Return the option that repeats the order of this run; None without pytest-randomly, and in xdist's workers."""
    seed = getattr(config.option, "randomly_seed", None)
    return None if seed is None or hasattr(config, "workerinput") else f"Random order: --randomly-seed={seed}"


def _sort_long(items):
    """Leave out what has the mark "long", unless DJANGO_OTEL_LONG asks for it; then it is also on what does more."""
    for item in items:
        if not sizes.IS_LONG:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="long: set DJANGO_OTEL_LONG=1"))
        elif item.get_closest_marker("scaled") or hasattr(getattr(item, "obj", None), "hypothesis"):
            item.add_marker(pytest.mark.long)


def _read_first(config):
    """Import the files of tests, each worker of a whole run from another one on.

    Of a fresh checkout each file is then compiled by one worker, and not by all of them at the same moment; so it is
    with the names that `sizes` reads in it.
    """
    worker = getattr(config, "workerinput", None)
    if worker is None or config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    names = sorted(path.relative_to(sizes.ROOT) for path in (sizes.ROOT / "tests").rglob("test_*.py"))
    first = len(names) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
    for name in names[first:] + names[:first]:
        sizes.read(sizes.ROOT / name)
        # What it raises, it raises again where pytest collects it; some say that they are skipped.
        with contextlib.suppress(Exception, pytest.skip.Exception):
            importlib.import_module(".".join(name.with_suffix("").parts))


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """Let no collection of garbage look through thousands of tests, neither now nor while they run."""
    gc.disable()
    try:
        _read_first(session.config)
        return (yield)
    finally:
        gc.freeze()
        # What tests leave is small beside what they imported: to look through it all often finds nothing.
        gc.set_threshold(10_000, 20, 50)
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items):
    """Mark as "quick" the tests that need nothing but this process, and put the files that have others first.

    Of both kinds the longest begin. The last files that run are then short ones, and no worker ends long after the
    others.
    """
    _sort_long(items)
    slow_files = set()
    for item in items:
        if sizes.is_quick(item):
            item.add_marker(pytest.mark.quick)
        else:
            slow_files.add(item.path)
    found = yield
    # After pytest-randomly has shuffled them.
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (item.path not in slow_files, ranks.get(item.path.name, len(ranks))))
    return found


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


@pytest.fixture(autouse=True)
def contained_faults():
    """Forget the faults of earlier tests: each place logs its first one again, and the counts start at zero."""
    from django_otel.base import guard

    guard.reset()


@pytest.fixture
def pass_time(monkeypatch):
    """Return a function that moves the wall clock of this process on by so many seconds, for what ends by it."""
    passed_s, now = [0.0], time.time
    monkeypatch.setattr(time, "time", lambda: now() + passed_s[0])

    def move_on(seconds: float) -> None:
        passed_s[0] += seconds

    return move_on


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup, django_db_blocker):
    """Empty the database after a test with transactions by a copy of it as it was made.

    Django's `flush` makes all content types and permissions again, which takes longer than most of these tests.
    """
    from django.contrib.contenttypes.models import ContentType
    from django.db import connections
    from django.test import TransactionTestCase

    flush = TransactionTestCase._fixture_teardown
    copies = {}

    def put_back(test):
        names = list(test._databases_names(include_mirrors=False))
        known = [(copies.get(name), connections[name].connection) for name in names]
        is_known = all(copy and connection for copy, connection in known) and test.available_apps is None
        try:
            for copy, connection in known if is_known else ():
                copy.backup(connection)
        except sqlite3.Error:
            # Another connection is in use.
            is_known = False
        if not is_known:
            flush(test)
        # Where another test was followed by a flush, the content types that were known since have other keys.
        ContentType.objects.clear_cache()

    with django_db_blocker.unblock():
        for connection in connections.all():
            if connection.vendor == "sqlite":
                connection.ensure_connection()
                copies[connection.alias] = sqlite3.connect(":memory:", check_same_thread=False)
                connection.connection.backup(copies[connection.alias])
    TransactionTestCase._fixture_teardown = put_back
    yield
    TransactionTestCase._fixture_teardown = flush
    for copy in copies.values():
        copy.close()


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


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item):
    """A test may set OTEL_* variables or install a provider; what was built with them must not outlive it."""
    # No fixture: pytest-django's own use monkeypatch, which would be undone after it.
    result = yield
    _restore_settings()
    return result


def _restore_settings():
    """Start again with the settings and the environment as they are now, if they are others than those in use."""
    from django.conf import settings

    from django_otel import conf, runtime
    from django_otel.config.parse import parse
    from django_otel.config.schema import ConfigError
    from django_otel.instrumentation import instrumentors

    try:
        parsed = conf.get_config()
    except ConfigError:
        parsed = None
    # To read them takes as long as many a test, and most tests change neither.
    key = (repr(settings.OTEL), dict(os.environ))
    if _last[0] != key:
        _last[:] = key, parse(settings.OTEL, os.environ, "tests")
    wanted = _last[1]
    # A test may have started with other settings than those of the project.
    running = runtime.current().config
    if parsed != wanted or (running is not parsed and running != wanted):
        conf.forget()
        runtime.restart()
    # One that is left off would fail another test, later and maybe of another file. To ask for the states reads the
    # metadata of every installed package, so it is done once for each.
    known = (tuple(instrumentors._states.values()), frozenset(instrumentors._waiting), tuple(wanted.instrument))
    if known not in _checked:
        found = instrumentors.states()
        assert {state.name for state in found if state.is_on} == set(wanted.instrument), (
            f"left off by the test: {found}"
        )
        _checked.add(known)
