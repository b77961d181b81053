"""The three sizes of tests: what is quick is read from the source, and the database of a server is a copy."""

from __future__ import annotations

import sqlite3

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
