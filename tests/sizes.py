"""The size of a test, read from its source: "quick" is what needs no server, no browser and no other process.

A test is quick when neither it, nor a fixture or helper that it names, nor what those name, has one of `SLOW_WORDS`.
Where the process is started by code outside the tests, the test has the mark "process"; where all it does takes the
time of many others, the mark "heavy".

`each()` runs a table of rows as one test; `few()`, `scaled()` and `examples()` keep a run short and give the whole
where DJANGO_OTEL_LONG=1 asks for it, which .ci/run does.
"""

from __future__ import annotations

import ast
import functools
import inspect
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: Whether this run takes everything; the mark "long" then also stands on what it makes larger.
IS_LONG = os.environ.get("DJANGO_OTEL_LONG") in ("1", "all")
#: What starts a process, a server or a browser, or is a fixture of `tests/conftest.py` that does.
SLOW_WORDS = frozenset(
    "subprocess playwright multiprocessing fork serve running server_command start_postgres start_valkey "
    "start_valkey_process start_rotel run_python new_database start_databases postgres postgres_database valkey_url "
    "rotel pytester run_django run_program fork_program".split()
)
#: Finds them in the text, and imports from other files of the tests: a file without both is quick unread.
_HINT = re.compile(rf"\b(?:{'|'.join(sorted(SLOW_WORDS))})\b|^ *from tests\b(?! import services$)", re.MULTILINE)


def few(rows: Iterable[Any], every: int) -> list[Any]:
    """Return each `every`-th of these rows for `parametrize`, beginning with the first; in a long run all of them.

    For rows that lead through the same code, of which one stands for the others.
    """
    found = list(rows)
    if not IS_LONG:
        return found[::every]
    for index, row in enumerate(found):
        if index % every:
            # A tuple where a test has several parameters; what `pytest.param` returned may have marks of its own.
            marks = [*getattr(row, "marks", ()), pytest.mark.long]
            values = row if isinstance(row, tuple) else (row,)
            found[index] = row._replace(marks=marks) if hasattr(row, "marks") else pytest.param(*values, marks=marks)
    return found


def scaled(usual: Any, whole: Any) -> Any:
    """Return how much a test does: `usual`, and `whole` in a long run, where the test needs the mark "scaled"."""
    return whole if IS_LONG else usual


def examples(whole: int) -> int:
    """Return how many examples hypothesis tries: the whole number in a long run, else a sixth of it."""
    return whole if IS_LONG else max(25, whole // 6)


def each(names: str | tuple[str, ...], rows: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test for each row of a table, as `parametrize` does, but as one test; it fails with all rows that fail.

    For rows that need no set-up of their own: pytest itself needs longer for a test than most of them take. All rows
    share the fixtures of the test.
    """
    fields = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    table = [row if len(fields) > 1 else (row,) for row in rows]
    assert table, f"no row for {names}"

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(**fixtures: Any) -> None:
            failed = []
            for row in table:
                try:
                    function(**fixtures, **dict(zip(fields, row, strict=True)))
                except (Exception, pytest.fail.Exception) as error:
                    failed.append((row, error))
            if failed:
                texts = "\n".join(f"{row!r:.300}: {type(error).__name__}: {error!s:.1000}" for row, error in failed)
                raise AssertionError(f"{len(failed)} of {len(table)} rows failed:\n{texts}") from failed[0][1]

        signature = inspect.signature(function)
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[part for name, part in signature.parameters.items() if name not in fields]
        )
        return run

    return decorate


def _words(node: ast.AST) -> Iterator[str]:
    """Yield the names in this part of a file; a string may be the name of a fixture."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr
        elif isinstance(part, ast.arg):
            yield part.arg
        elif isinstance(part, ast.alias):
            yield from part.name.split(".")
        elif isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value not in SLOW_WORDS:
            yield part.value


class Module:
    """The top-level names of a test file, each with its source and whether it is slow."""

    def __init__(self, path: Path) -> None:
        self.words: dict[str, set[str]] = {}
        self.imported: dict[str, tuple[Path, str]] = {}
        self.always: list[str] = []
        self._slow: dict[str, bool] = {}
        text = path.read_text()
        if _HINT.search(text):
            self._read(text)

    def _read(self, text: str) -> None:
        for node in ast.parse(text).body:
            if isinstance(node, ast.ImportFrom):
                self._note_import(node)
            for part in node.body if isinstance(node, ast.ClassDef) and node.name.startswith("Test") else [node]:
                self._note(part)

    def _note(self, node: ast.stmt) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = [node.name]
            if any("autouse" in ast.unparse(item) for item in node.decorator_list):
                self.always.append(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
            self.always += [name for name in names if name == "pytestmark"]
        else:
            return
        for name in names:
            self.words.setdefault(name, set()).update(_words(node))

    def _note_import(self, node: ast.ImportFrom) -> None:
        if (node.module or "").partition(".")[0] != "tests":
            return
        path = ROOT / (node.module or "").replace(".", "/")
        for item in node.names:
            if (file := path.with_suffix(".py")).is_file() and path.name != "services":
                self.imported[item.asname or item.name] = (file, item.name)

    def is_slow(self, name: str) -> bool:
        """Return whether what has this name starts anything, by itself or through another name."""
        if name in self._slow:
            return self._slow[name]
        if name in self.imported:
            file, original = self.imported[name]
            return read(file).is_slow(original)
        # A name that is reached again on the way decides nothing.
        self._slow[name] = False
        words = self.words.get(name, set())
        found = self._slow[name] = bool(words & SLOW_WORDS) or any(
            self.is_slow(word) for word in words if word != name and (word in self.words or word in self.imported)
        )
        return found


@functools.cache
def read(path: Path) -> Module:
    """Return the names of this file; one process of a run reads it for all."""
    folder = os.environ.get("DJANGO_OTEL_TESTS_FOLDER")
    if folder is None or not path.is_relative_to(ROOT):
        return Module(path)
    known = Path(folder, ".".join(("sizes", *path.relative_to(ROOT).parts)))
    try:
        return pickle.loads(known.read_bytes())
    except OSError:
        module = Module(path)
    own = known.with_suffix(f".{os.getpid()}")
    own.write_bytes(pickle.dumps(module))
    own.replace(known)
    return module


def is_quick(item: pytest.Function) -> bool:
    """Return whether this test needs nothing but the process of the tests, and little of its time."""
    if item.get_closest_marker("process") or item.get_closest_marker("heavy"):
        return False
    module = read(item.path)
    names = [getattr(item, "originalname", None) or item.name, *module.always]
    return SLOW_WORDS.isdisjoint(item.fixturenames) and not any(module.is_slow(name) for name in names)
