"""The example shop passes its own tests, on SQLite and on PostgreSQL with Valkey.

They run in a process of their own, because the shop is another Django project
with other settings; they stand in `example_project/tests`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_the_shops_tests(environ: Mapping[str, str]) -> str:
    """Run them; return pytest's output. Fails, with that output, when one of them fails or none was found."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "DJANGO_", "PYTEST_")) and name not in ("DATABASE_URL", "REDIS_URL")
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "example_project/tests", "-q", "-n", "0", "--ds=example_project.settings"],
        cwd=ROOT,
        env={**clean, **environ},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed.group(1)) >= 60
    return done.stdout


def test_the_shop_works_on_sqlite_and_local_memory() -> None:
    run_the_shops_tests({})


@pytest.mark.long
def test_the_shop_works_on_postgresql_and_valkey(postgres: str, valkey_url: str) -> None:
    run_the_shops_tests({"DATABASE_URL": postgres, "REDIS_URL": valkey_url})
