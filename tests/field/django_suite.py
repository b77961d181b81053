"""Django's own test suite, with django_otel and without it: what differs?

    python tests/field/django_suite.py                       the seven packages below, with SQLite
    python tests/field/django_suite.py handlers middleware   only these
    python tests/field/django_suite.py --source DIR          an unpacked sdist instead of a download

Downloads the sdist of the Django that is installed (`pip download`), and runs
its `tests/runtests.py` twice, once with the app and the middleware in the lists
that every test begins with. Tests that set INSTALLED_APPS or MIDDLEWARE
themselves run without ours, as they ask for.

Prints every test whose outcome differs, and the totals; the exit code is 1 when
one differs, else 0.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import django

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ["handlers", "middleware", "asgi", "transactions", "backends", "cache", "admin_views"]
#: runtests.py replaces both settings by lists of its own, which are found in `__main__`.
SETTINGS = """
import sys

from test_sqlite import *

main = sys.modules["__main__"]
if "django_otel" not in main.ALWAYS_INSTALLED_APPS:
    main.ALWAYS_INSTALLED_APPS.append("django_otel")
    main.ALWAYS_MIDDLEWARE.insert(0, "django_otel.middleware.OTelMiddleware")
OTEL = {"SERVICE_NAME": "suite"}
"""
#: "test_get (handlers.tests.HandlerTests.test_get)"; then its docstring, perhaps, and the outcome.
_TEST = re.compile(r"^\w+ \(([\w.]+)\)")
_OUTCOME = re.compile(r"(?:^|\.\.\. )(ok|FAIL|ERROR|skipped .*|expected failure|unexpected success)$")
_SECTION = re.compile(r"^(FAIL|ERROR): \w+ \(([\w.]+)\)")


def download(folder: Path) -> Path:
    """Return the unpacked sdist of the Django that is installed; CalledProcessError without a package index."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-binary", ":all:", "--no-deps", "-d", str(folder)]
    subprocess.run([*command, f"Django=={django.__version__}"], check=True)
    with tarfile.open(next(folder.glob("[Dd]jango-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(path for path in folder.iterdir() if path.is_dir())


def run(tests: Path, packages: list[str], settings: str, log: Path) -> dict[str, str]:
    """Run the suite with `settings`, keep its output in `log`, and return the outcome of each test by its name."""
    command = [sys.executable, "runtests.py", "--settings", settings, "--parallel", "1", "-v", "2", *packages]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tests}"}
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    with log.open("w") as out:
        subprocess.run(command, cwd=tests, env=environment, stdout=out, stderr=subprocess.STDOUT, check=False)
    text = log.read_text(errors="replace")
    if not re.search(r"^Ran \d+ tests?", text, re.MULTILINE):
        sys.exit(f"runtests.py did not come to its end with {settings}:\n{text[-3000:]}")
    return read_outcomes(text)


def read_outcomes(text: str) -> dict[str, str]:
    """Return the outcome of each test by its name, from what unittest prints at verbosity 2."""
    outcomes: dict[str, str] = {}
    current = ""
    for line in text.splitlines():
        if found := _SECTION.match(line):
            outcomes[found[2]] = found[1]
            current = ""
        elif found := _TEST.match(line):
            current = found[1]
        if current and (found := _OUTCOME.search(line)):
            outcomes[current] = found[1].partition(" ")[0]
            current = ""
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", default=PACKAGES)
    parser.add_argument("--source", type=Path, help="an unpacked sdist of Django")
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()), help="where the output of runs goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = options.source or download(Path(folder))
        tests = source.resolve() / "tests"
        (tests / "test_with_django_otel.py").write_text(SETTINGS)
        logs = options.logs / "django-suite-without.log", options.logs / "django-suite-with.log"
        without = run(tests, options.packages, "test_sqlite", logs[0])
        with_app = run(tests, options.packages, "test_with_django_otel", logs[1])
    for name in sorted({*without, *with_app}):
        before, after = without.get(name, "not run"), with_app.get(name, "not run")
        if before != after:
            print(f"{name}: {before} without, {after} with django_otel")
    print(f"Django {django.__version__}, {' '.join(options.packages)}")
    print(f"without: {dict(Counter(without.values()))}; with: {dict(Counter(with_app.values()))}")
    print(f"output: {logs[0]}, {logs[1]}")
    return without != with_app


if __name__ == "__main__":
    sys.exit(main())
