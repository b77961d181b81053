"""The three sizes of tests: what is quick is read from the source, and the database of a server is a copy."""

from __future__ import annotations

import inspect
import os
import signal
import sqlite3
import sys

import pytest

from tests import services, sizes

SOURCE = """
import subprocess
import pytest
from tests import services
from tests.services import serve as start_it

LIMIT = 3

def run(code):
    subprocess.run(code)

@pytest.fixture
def site():
    with services.serve("gunicorn") as found:
        yield found

@pytest.fixture
def page(site):
    return site.get("/")

def test_by_itself(): run("x")
def test_by_a_fixture_of_a_fixture(page): assert page
def test_by_name(request): request.getfixturevalue("site")
def test_with_a_word_in_its_text(): assert "subprocess" != LIMIT
def test_in_here(): assert services.wait_until(lambda: LIMIT)
"""


@pytest.mark.parametrize(
    ("name", "is_slow"),
    [
        ("test_by_itself", True),
        ("test_by_a_fixture_of_a_fixture", True),
        ("test_by_name", True),
        ("test_with_a_word_in_its_text", False),
        ("test_in_here", False),
    ],
)
def test_what_starts_a_process_is_not_quick(tmp_path, name, is_slow):
    (tmp_path / "test_it.py").write_text(SOURCE)
    assert sizes.Module(tmp_path / "test_it.py").is_slow(name) is is_slow


@pytest.mark.heavy
def test_what_is_heavy_is_not_quick(request):
    assert not sizes.is_quick(request.node)


def test_one_fixture_for_all_tests_of_a_file_makes_none_quick(tmp_path):
    (tmp_path / "test_it.py").write_text(SOURCE + "\n@pytest.fixture(autouse=True)\ndef always(site): pass\n")
    module = sizes.Module(tmp_path / "test_it.py")
    assert [name for name in module.always if module.is_slow(name)] == ["always"]


def test_a_migrated_database_has_every_table(tmp_path):
    """Also the one of the app without migrations."""
    for name in ("a", "b"):
        services.migrate_database({"TEST_SQLITE": str(tmp_path / name)})
    connection = sqlite3.connect(tmp_path / "b")
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    connection.close()
    assert {"django_migrations", "auth_user", "django_otel_samplingpolicy", "business_app_order"} <= tables


def test_a_table_fails_with_every_row_that_fails(tmp_path):
    tried = []

    @sizes.each(("a", "b"), [(1, 1), (1, 2), (3, 3), (2, 1)])
    @sizes.each("c", "xy")
    def test_it(a, c, b, folder):
        tried.append((a, b, c, folder))
        if a != b:
            pytest.fail(f"{a} is not {b}")

    with pytest.raises(AssertionError, match=r"(?s)2 of 4 rows failed.*1 is not 2.*2 is not 1"):
        test_it(folder=tmp_path)
    assert len(tried) == 8
    assert tried[1] == (1, 1, "y", tmp_path)
    # pytest asks for what is left.
    assert list(inspect.signature(test_it).parameters) == ["folder"]


@pytest.mark.parametrize("is_long", [False, True])
def test_a_long_run_takes_everything(monkeypatch, is_long):
    monkeypatch.setattr(sizes, "IS_LONG", is_long)
    found = sizes.few(["a", "b", "c", "d"], 3)
    assert [row for row in found if isinstance(row, str)] == ["a", "d"]
    others = [(row.values, [mark.name for mark in row.marks]) for row in found if not isinstance(row, str)]
    assert others == ([(("b",), ["long"]), (("c",), ["long"])] if is_long else [])
    assert sizes.few([(1, 2), (3, 4)], 2)[0] == (1, 2)
    assert sizes.scaled(2, 10) == (10 if is_long else 2)
    assert sizes.examples(600) == (600 if is_long else 100)


def test_a_table_without_rows_is_an_error():
    with pytest.raises(AssertionError, match="no row"):
        sizes.each("a", [])


def test_a_file_that_names_nothing_slow_is_not_parsed(tmp_path):
    (tmp_path / "test_it.py").write_text("def test_it(postgresql): assert postgresql\n")
    module = sizes.Module(tmp_path / "test_it.py")
    assert not module.words
    assert not module.is_slow("test_it")


# --- Processes beside the one in question. ---


def test_code_runs_as_in_a_process_of_its_own(tmp_path):
    """With its own environment, folder, arguments and end; nothing of it is left to the next one."""
    code = "import atexit, os, sys; atexit.register(print, 'end'); print(os.getcwd(), sys.argv, os.environ['A']); x = 1"
    done = services.run_python(code, {"A": "b"}, argv=("-c", "d"), cwd=tmp_path)
    assert (done.stdout, done.stderr) == (f"{tmp_path} ['-c', 'd'] b\nend\n", "")
    done = services.run_python("print(x)", services.server_env(), check=False)
    assert done.returncode == 1 and "NameError" in done.stderr
    done = services.run_python("import os, sys; print('A' in os.environ, os.getpid()); sys.exit(7)", {}, check=False)
    assert (done.returncode, done.stdout.split()[0]) == (7, "False")
    assert done.stdout.split()[1] != str(os.getpid())


def test_code_that_does_not_end_is_ended():
    done = services.run_python("import time; time.sleep(100)", services.server_env(), timeout_s=1, check=False)
    assert done.returncode == -signal.SIGALRM


def test_nothing_of_ours_is_imported_before_the_code():
    code = "import sys; print([name for name in sys.modules if name.startswith('django_otel')])"
    assert services.run_python(code, services.server_env()).stdout == "[]\n"


def test_a_command_of_django_runs(tmp_path):
    done = services.run_django(services.server_env({}), "check")
    assert "no issues" in done.stdout + done.stderr
    with pytest.raises(AssertionError, match="Unknown command"):
        services.run_django(services.server_env({}), "no_such_command")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is adopted")
def test_a_program_is_forked_and_a_child_of_the_tests(tmp_path):
    """With its own group and command line, and what it returns; another one may run beside it."""
    code = (
        "import os, sys, time; words = open('/proc/self/cmdline').read().split(chr(0))\n"
        # It is adopted as soon as the process between them has ended.
        "while os.getppid() != int(os.environ['ADOPTED_BY']): time.sleep(0.01)\n"
        "print(os.getpid(), os.getpgid(0), os.getppid(), *words[1:4], *sys.argv[1:3], os.environ['MINE']); sys.exit(3)"
    )
    command = [sys.executable, "-m", "django", "shell", "--command", code]
    logs = [tmp_path / name for name in ("one", "two")]
    environments = [services.server_env(MINE=log.name, ADOPTED_BY=str(os.getpid())) for log in logs]
    with (
        services.running(command, environments[0], logs[0]) as one,
        services.running(command, environments[1], logs[1]) as two,
    ):
        for process, log in ((one, logs[0]), (two, logs[1])):
            assert type(process).__name__ == "ForkedProgram"
            assert process.wait(60) == process.poll() == 3
            pid = str(process.pid)
            shown = log.read_text().splitlines()[-1].split()
            assert shown == [pid, pid, str(os.getpid()), "-m", "django", "shell", "shell", "--command", log.name]
    assert services.fork_program(command, {**environments[0], "OTEL_PROPAGATORS": "b3"}, None) is None
