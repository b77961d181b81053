"""Writes the tables of packages and modules in docs/architecture.md, from the modules' own docstrings.

    python docs/build_architecture.py

The order of the packages is that of the import contract in pyproject.toml.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "django_otel"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- modules: made by docs/build_architecture.py -->"
END = "<!-- end of modules -->"


def layers() -> list[list[str]]:
    """Return the packages and modules of each layer, lowest layer first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    found = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in reversed(found)]


def docstring(path: Path) -> str:
    """Return a module's docstring; "" where there is none."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def summary(path: Path) -> str:
    """Return the first paragraph of a module's docstring in one line, fit for a cell of a table."""
    text = " ".join(docstring(path).split("\n\n")[0].split()).replace("|", "\\|")
    # Keys as the other pages write them.
    return re.sub(r'([A-Z_]+)\["([A-Z_]+)"\]', r"\1.\2", text)


def modules(folder: Path) -> Iterator[Path]:
    """Yield the modules of a package, also of folders below it."""
    yield from sorted(path for path in folder.rglob("*.py") if path.stem != "__init__")


def build() -> str:
    """Return the part of the page between the two marks."""
    lines = [BEGIN, ""]
    single: list[Path] = []
    for layer in layers():
        for name in layer:
            folder = PACKAGE / name
            if not folder.is_dir():
                single.append(PACKAGE / f"{name}.py")
                continue
            lines += [f"### `{name}/`", "", summary(folder / "__init__.py"), "", "| module | contents |", "|---|---|"]
            lines += [f"| `{path.relative_to(PACKAGE)}` | {summary(path)} |" for path in modules(folder)]
            lines.append("")
    lines += ["### Modules of their own", "", "| module | contents |", "|---|---|"]
    lines += [f"| `{path.relative_to(PACKAGE)}` | {summary(path)} |" for path in [PACKAGE / "__init__.py", *single]]
    return "\n".join([*lines, "", END])


def main() -> None:
    """Write the page."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: build(), page, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
