"""The published figures: `results.json` in this folder, and what `docs/performance.md` shows of it.

A benchmark that is run with `--publish` puts its part into both.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results.json"
PAGE = ROOT / "docs" / "performance.md"


def load() -> dict[str, Any]:
    """Every published part by its name."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def publish(part: str, data: Any, text: str) -> None:
    """Replace one part: the figures, and the Markdown made of them.

    Errors: `ValueError` when the page has no place for the part.
    """
    page = with_part(PAGE.read_text(), part, text)
    RESULTS.write_text(json.dumps({**load(), part: data}, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page)


def with_part(page: str, part: str, text: str) -> str:
    """The page with `text` between the two marks of `part`."""
    marks = re.compile(rf"(<!-- {part} -->\n).*?(<!-- end of {part} -->)", re.DOTALL)
    if not marks.search(page):
        raise ValueError(f"{PAGE.name} has no marks <!-- {part} --> and <!-- end of {part} -->.")
    return marks.sub(lambda found: f"{found[1]}{text.strip()}\n{found[2]}", page)


def table(head: list[str], rows: list[list[str]], *, numbers: bool = True) -> str:
    """A Markdown table, the first column on the left and the others, as they are numbers, on the right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + ("---:|" if numbers else "---|") * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    import os
    import platform

    processor = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE)
        processor = found[1] if found else ""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": processor or platform.machine(),
        "cores": str(os.cpu_count()),
    }
