"""The cases of `postgres_cases` and the tests of the policy's tables, with psycopg 3 and with psycopg2.

Django chooses its driver when it is imported, so each has a process of its own.
"""

import os
import subprocess
import sys

import pytest

from tests import sizes
from tests.services import ROOT

CASES = ["tests/postgres_cases.py", "tests/postgres_layers.py", "tests/live_sampling/test_models_policy.py"]
#: psycopg2 is used when psycopg cannot be imported.
HIDING = "import sys; sys.modules['psycopg'] = None; import pytest; sys.exit(pytest.main(sys.argv[1:]))"


#: Of the policy's tests those alone that no other database can stand for: to empty the tables after each takes long.
CHOSEN = sizes.scaled(["-k", "not test_models_policy or moment or not_a_number"], [])


@pytest.mark.scaled
@pytest.mark.parametrize("driver", sizes.few(["psycopg", "psycopg2"], 2))
def test_the_database_layer_on_postgresql(driver, postgres):
    """Every case passes with this driver, and PostgreSQL can drop the test database afterwards."""
    start = ["-m", "pytest"] if driver == "psycopg" else ["-c", HIDING]
    plugin = [] if os.environ.get("PYTEST_PLUGINS") else ["-p", "django_otel.testing"]
    finished = subprocess.run(
        # Not spread over workers: those import the driver that is hidden here.
        [sys.executable, *start, *CASES, *CHOSEN, "-q", "-n", "0", "--create-db", "-p", "no:cacheprovider", *plugin],
        cwd=ROOT,
        env={**os.environ, "TEST_DATABASE_URL": postgres, "TEST_DRIVER": driver, "PYTEST_ADDOPTS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    assert " passed" in finished.stdout
    # Those that are about the other driver alone.
    assert finished.stdout.count("SKIPPED") <= 4
