"""The size of a test, read from its source: "quick" is what needs no server, no browser and no other process.

A test is quick when neither it, nor a fixture or helper that it names, nor what those name, has one of `SLOW_WORDS`.
Where the process is started by code outside the tests, the test has the mark "process".
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: What starts a process, a server or a browser, or is a fixture of `tests/conftest.py` that does.
SLOW_WORDS = frozenset(
    "subprocess playwright multiprocessing fork serve running server_command start_postgres start_valkey "
    "start_valkey_process start_rotel new_database start_databases postgres postgres_database valkey_url rotel "
    "pytester".split()
)


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
        for node in ast.parse(path.read_bytes()).body:
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
    """Return the names of this file."""
    return Module(path)


def is_quick(item: pytest.Function) -> bool:
    """Return whether this test needs nothing but the process of the tests."""
    if item.get_closest_marker("process"):
        return False
    module = read(item.path)
    names = [getattr(item, "originalname", None) or item.name, *module.always]
    return SLOW_WORDS.isdisjoint(item.fixturenames) and not any(module.is_slow(name) for name in names)
