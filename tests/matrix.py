"""The quick tests on each Python, Django and OpenTelemetry that the package takes; `make matrix` runs it.

    python tests/matrix.py                           every Python on PATH, with each Django that takes it
    python tests/matrix.py --write                   the same, and puts the rows into docs/matrix.md
    python tests/matrix.py --python python3.14 --django 6.1 --opentelemetry highest     one row
    python tests/matrix.py --servers ...             also the tests of `SERVER_TESTS`, which start processes and servers

Other arguments go to pytest, such as `-n 0`. Each combination gets a virtual environment under `--folder`; `uv`
makes it where that is on PATH, else pip brings an earlier one up to date. The exit code is 1 when a combination failed.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "matrix.md"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
#: Each Django, with the oldest Python that it takes.
DJANGOS = {"5.2": (3, 10), "6.0": (3, 12), "6.1": (3, 12)}
#: What pip is held to; the contrib packages follow the semantic conventions of their release.
OPENTELEMETRY = {
    "lowest": ["opentelemetry-api==1.43.*", "opentelemetry-sdk==1.43.*", "opentelemetry-instrumentation==0.64b0"],
    "highest": [],
}
#: Run by `--servers`: what starts processes and servers and lives on interfaces of Python, Django and OpenTelemetry.
#: Pages in a browser do not change with these versions.
SERVER_TESTS = (
    *("-m", "not quick", "-k", "not browser and not accessible"),
    *(f"tests/{name}" for name in "business console export instrumentation live_sampling requests tracing".split()),
)
_VERSIONS = """
import importlib.metadata as m, platform
print(platform.python_version(), m.version("django"), m.version("opentelemetry-sdk"))
"""
_HEAD = "| Python | Django | OpenTelemetry | quick tests | with processes and servers | on |"


@dataclass(frozen=True)
class Result:
    """What one combination gave: the exact versions, and the counts of pytest for each set of tests."""

    versions: tuple[str, ...]
    quick: str
    servers: str
    has_passed: bool

    @property
    def row(self) -> str:
        return f"| {' | '.join((*self.versions, self.quick, self.servers))} | {datetime.date.today()} |"


def find_pythons(named: list[str]) -> dict[str, str]:
    """Return "3.12" → interpreter for the named ones, else for each that starts from PATH."""
    found = {}
    for command in named or [f"python{version}" for version in PYTHONS]:
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        try:
            done = subprocess.run([command, "-c", code], capture_output=True, text=True)
        except OSError:
            continue
        if done.returncode == 0:
            found[done.stdout.strip()] = command
        elif named:
            sys.exit(f"{command} does not start: {done.stderr.strip()}")
    return found


def prepare(folder: Path, interpreter: str, django: str, held: list[str]) -> Path:
    """Return the interpreter of a virtual environment with the package, its test extra and these versions."""
    python = folder / "bin" / "python"
    wanted = ["-q", "-e", f"{ROOT}[test]", f"django~={django}.0", *held]
    uv = shutil.which("uv")
    if uv:
        # A new one takes seconds; an old one would keep pre-releases that it once got.
        subprocess.run([uv, "venv", "-q", "--clear", "--python", interpreter, str(folder)], check=True)
        subprocess.run([uv, "pip", "install", "--python", str(python), *wanted], check=True)
    else:
        if not python.exists():
            subprocess.run([interpreter, "-m", "venv", str(folder)], check=True)
        upgrading = ("--upgrade", "--upgrade-strategy", "eager")
        subprocess.run([str(python), "-m", "pip", "install", *upgrading, *wanted], check=True)
    return python


def count(output: str) -> str:
    """Return "12 passed, 1 skipped" of the last line of pytest; "" where it has none."""
    closing = re.findall(r"^(?:=+ )?(\d+ \w+.*) in [\d.]+s\b", output, re.MULTILINE)
    counts = closing[-1].split(", ") if closing else []
    return ", ".join(part for part in counts if not part.endswith(("deselected", "warning", "warnings")))


def run(python: Path, has_servers: bool, arguments: list[str]) -> Result:
    """Run the quick tests with this interpreter, and those with servers where they are wanted."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "DJANGO_", "PYTEST_"))}
    done = subprocess.run([str(python), "-c", _VERSIONS], capture_output=True, text=True, check=True)
    versions = tuple(done.stdout.split())
    outcomes, has_passed = [], True
    for chosen in [("-m", "quick"), SERVER_TESTS] if has_servers else [("-m", "quick")]:
        command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", *chosen, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        print(done.stdout if done.returncode else "", done.stderr, flush=True)
        outcomes.append(count(done.stdout) or f"exit code {done.returncode}")
        has_passed &= done.returncode == 0
    return Result(versions, outcomes[0], outcomes[1] if has_servers else "not run", has_passed)


def merge(page: str, results: list[Result]) -> str:
    """Return the page with the rows of these results, in place of earlier rows of the same minor versions."""

    def minor(row: str) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(map(int, cell.strip().split(".")[:2])) for cell in row.split("|")[1:4])

    before, _, table = page.partition(_HEAD)
    lines = table.splitlines()
    rows = {minor(line): line for line in lines if re.match(r"\| \d", line)}
    rows |= {minor(result.row): result.row for result in results}
    after = [line for line in lines[1:] if not line.startswith("|")]
    return "\n".join([before + _HEAD, "|---|---|---|---|---|---|", *(rows[key] for key in sorted(rows)), *after]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", action="append", default=[], metavar="INTERPRETER")
    parser.add_argument("--django", action="append", choices=DJANGOS, default=[])
    parser.add_argument("--opentelemetry", action="append", choices=OPENTELEMETRY, default=[])
    parser.add_argument("--folder", type=Path, default=ROOT / ".matrix", help="of the virtual environments")
    parser.add_argument("--servers", action="store_true", help="also run the tests of SERVER_TESTS")
    parser.add_argument("--write", action="store_true", help="put the rows into docs/matrix.md")
    options, arguments = parser.parse_known_args()
    pythons = find_pythons(options.python)
    results = []
    for (version, interpreter), django, otel in itertools.product(
        pythons.items(), options.django or DJANGOS, options.opentelemetry or OPENTELEMETRY
    ):
        if tuple(map(int, version.split("."))) < DJANGOS[django]:
            continue
        folder = options.folder / f"{version}-{django}-{otel}"
        result = run(prepare(folder, interpreter, django, OPENTELEMETRY[otel]), options.servers, arguments)
        print(result.row, flush=True)
        results.append(result)
        if options.write:
            PAGE.write_text(merge(PAGE.read_text(), [result]))
    for missing in sorted(set(PYTHONS) - pythons.keys()) if not options.python else ():
        print(f"Python {missing} is not on PATH: left out")
    return 0 if results and all(result.has_passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
