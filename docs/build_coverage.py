"""Shows how much of each sub-package the tests execute, from the data that `coverage combine` left in COVERAGE_FILE.

python docs/build_coverage.py            prints the table
python docs/build_coverage.py --write    puts it into docs/coverage.md, with the day of the run
"""

from __future__ import annotations

import datetime
import json
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coverage import Coverage

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "coverage.md"
BEGIN = "<!-- coverage: made by docs/build_coverage.py -->"
END = "<!-- end of coverage -->"
#: What stands at the top of the package, as one row.
TOP = "modules at the top"


@dataclass
class Row:
    """How much of a sub-package the tests execute."""

    statements: int = 0
    executed: int = 0
    branches: int = 0
    taken: int = 0

    def add(self, summary: dict[str, Any]) -> None:
        """Add what coverage says of one file."""
        self.statements += summary["num_statements"]
        self.executed += summary["covered_lines"]
        self.branches += summary["num_branches"]
        self.taken += summary["covered_branches"]

    def share(self) -> float:
        """Return statements and branches together, in per cent: the figure that `fail_under` is compared with."""
        whole = self.statements + self.branches
        return 100 * (self.executed + self.taken) / whole if whole else 100.0

    def cells(self) -> list[str]:
        statements = f"{100 * self.executed / self.statements:.1f} % of {self.statements}" if self.statements else "-"
        branches = f"{100 * self.taken / self.branches:.1f} % of {self.branches}" if self.branches else "-"
        return [statements, branches, f"{self.share():.1f} %"]


def sub_packages() -> list[str]:
    """Return the names of the sub-packages, in order."""
    return sorted(path.parent.name for path in (ROOT / "django_otel").glob("*/__init__.py"))


def build_table(files: Iterable[tuple[str, dict[str, Any]]]) -> str:
    """Return the rows of all sub-packages and their sum, of the summaries of the files by path, as a Markdown table."""
    rows = {TOP: Row(), **{name: Row() for name in sub_packages()}}
    whole = Row()
    for path, summary in files:
        parts = Path(path).parts
        inside = parts[parts.index("django_otel") + 1 :]
        rows.setdefault(inside[0] if len(inside) > 1 else TOP, Row()).add(summary)
        whole.add(summary)
    lines = ["| package | statements | branches | together |", "|---|---:|---:|---:|"]
    for name, row in rows.items():
        if row.statements:
            shown = name if name == TOP else f"`{name}/`"
            lines.append(f"| {' | '.join([shown, *row.cells()])} |")
    lines.append(f"| **all** | {' | '.join(f'**{cell}**' for cell in whole.cells())} |")
    return "\n".join(lines)


def read_summaries() -> list[tuple[str, dict[str, Any]]]:
    """Return the path and the summary of every file of the package, out of the combined data."""
    measured = Coverage(config_file=str(ROOT / "pyproject.toml"))
    measured.load()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        measured.json_report(outfile=str(report))
        files = json.loads(report.read_text())["files"]
    return [(path, file["summary"]) for path, file in sorted(files.items())]


def fill(page: str, table: str, day: datetime.date) -> str:
    """Return the page with this table, and the day and Python version of the run, between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{before}{BEGIN}\nMeasured on {day} with Python {python}.\n\n{table}\n{END}{after}"


def main() -> None:
    """Print the table, or write it into the page."""
    table = build_table(read_summaries())
    if "--write" in sys.argv[1:]:
        PAGE.write_text(fill(PAGE.read_text(), table, datetime.datetime.now(datetime.UTC).date()))
    else:
        sys.stdout.write(f"{table}\n")


if __name__ == "__main__":
    main()
