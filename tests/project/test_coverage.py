"""How the run of the tests is measured: in each process, and published in docs/coverage.md."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from coverage import CoverageData

from tests import services

PAGE = services.ROOT / "docs" / "coverage.md"

SUMMARY = {"num_statements": 10, "covered_lines": 9, "num_branches": 6, "covered_branches": 3}

PROGRAM = """
import os

from django_otel.base import text

if os.fork() == 0:
    from django_otel.tracing import ids

    os._exit(0)
os.wait()
"""


@pytest.fixture(scope="module")
def build_coverage():
    spec = importlib.util.spec_from_file_location("build_coverage", services.ROOT / "docs" / "build_coverage.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def _settings():
    return tomllib.loads((services.ROOT / "pyproject.toml").read_text())["tool"]["coverage"]


def test_the_rows_are_the_sums_of_the_files_of_each_package(build_coverage):
    table = build_coverage.build_table(
        [
            ("django_otel/apps.py", SUMMARY),
            ("django_otel/config/parse.py", SUMMARY),
            ("/x/django_otel/config/schema.py", {**SUMMARY, "covered_lines": 10, "covered_branches": 6}),
        ]
    )
    assert table.splitlines()[2:] == [
        "| modules at the top | 90.0 % of 10 | 50.0 % of 6 | 75.0 % |",
        "| `config/` | 95.0 % of 20 | 75.0 % of 12 | 87.5 % |",
        "| **all** | **93.3 % of 30** | **66.7 % of 18** | **83.3 %** |",
    ]


def test_the_page_is_filled_between_its_marks(build_coverage):
    day = build_coverage.datetime.date(2026, 1, 2)
    once = build_coverage.fill(PAGE.read_text(), "| a |", day)
    assert f"{build_coverage.BEGIN}\nMeasured on 2026-01-02 with Python 3." in once
    assert once.count("| a |") == 1
    assert build_coverage.fill(once, "| a |", day) == once


def test_the_page_has_every_package_and_the_gate_is_at_most_one_below_its_figure(build_coverage):
    page = PAGE.read_text()
    shown = re.findall(r"^\| `(\w+)/` \|", page, re.MULTILINE)
    assert set(build_coverage.sub_packages()) <= set(shown)
    whole = float(re.search(r"^\| \*\*all\*\* .*\*\*([\d.]+) %\*\* \|$", page, re.MULTILINE)[1])
    assert whole - 1 <= _settings()["report"]["fail_under"] <= whole


def test_no_handler_of_a_signal_is_installed_by_the_measurement():
    """The package ends its exports itself where SIGTERM has no handler; with one it would not be tested."""
    assert not _settings()["run"].get("sigterm")


def test_a_process_and_what_it_forks_are_measured(tmp_path):
    if not list(Path(sysconfig.get_path("purelib")).glob("*coverage.pth")):
        services.missing("coverage is not installed in this environment itself")
    environment = {
        **os.environ,
        "COVERAGE_PROCESS_START": str(services.ROOT / "pyproject.toml"),
        "COVERAGE_FILE": str(tmp_path / "data"),
    }
    environment.pop("COVERAGE_PROCESS_CONFIG", None)
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, cwd=tmp_path, check=True)
    found = {}
    for path in tmp_path.glob("data.*"):
        data = CoverageData(str(path))
        data.read()
        found[path] = {Path(file).name for file in data.measured_files() if data.lines(file)}
        data.close()
    assert len(found) == 2
    assert all("text.py" in names for names in found.values())
    assert sorted("ids.py" in names for names in found.values()) == [False, True]


def test_the_run_of_ci_measures_the_command_of_the_readme():
    text = (services.ROOT / ".ci" / "run").read_text()
    assert '"${measured[@]}" bash -euo pipefail -c "$command_line"' in text
    assert "-m coverage report" in text
