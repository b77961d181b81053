"""A type checker sees what users write against the public API as it is meant: decorators keep signatures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is in the extra lint")
ROOT = Path(__file__).resolve().parents[2]


def test_the_public_api_has_the_types_that_users_rely_on(tmp_path):
    """As a project checks itself: strict, our package found by its py.typed, no plugin."""
    config = tmp_path / "mypy.ini"
    options = ("strict = True", "python_version = 3.11", "follow_imports = silent", "ignore_missing_imports = True")
    config.write_text("\n".join(["[mypy]", *options, ""]))
    cache = ROOT / ".mypy_cache" / "api"
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(cache)]
    done = subprocess.run(
        [*command, "tests/project/public_types.py"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
