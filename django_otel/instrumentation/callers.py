"""The project's line that is executing now. It walks the stack, so it is called rarely."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from types import FrameType
from typing import Any

import django

#: Frames that are looked at; a query in a template is some twenty deep.
_MAX_FRAMES = 200
_TEMPLATE_BASE = str(Path(django.__file__).parent / "template" / "base.py")
_NEVER = tuple(
    str(Path(folder)) + "/"
    for folder in (Path(django.__file__).parent, Path(__file__).parent.parent, sysconfig.get_paths()["stdlib"])
)
_INSTALLED = ("/site-packages/", "/dist-packages/")

#: By file name: 0 never a caller (Django, us, Python), 1 an installed package, 2 the project.
_ranks: dict[str, int] = {}
_MAX_RANKS = 5000


def find_caller() -> dict[str, Any]:
    """`code.*` attributes of the innermost line of the project, or of its template, that led here; {} without one.

    An installed package is named only when no line of the project is on the stack.
    Source: OpenTelemetry semantic conventions, "Source code attributes".
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 (the documented way is ten times slower)
    installed: FrameType | None = None
    for _ in range(_MAX_FRAMES):
        if frame is None:
            break
        code = frame.f_code
        rank = _rank(code.co_filename)
        if rank == 2:
            return _describe(frame)
        if rank == 1 and installed is None:
            installed = frame
        elif code.co_name == "render_annotated" and code.co_filename == _TEMPLATE_BASE:
            found = _describe_node(frame.f_locals.get("self"))
            if found:
                return found
        frame = frame.f_back
    return _describe(installed) if installed is not None else {}


def _rank(file_name: str) -> int:
    rank = _ranks.get(file_name)
    if rank is None:
        normal = file_name.replace("\\", "/")
        if any(mark in normal for mark in _INSTALLED):
            rank = 0 if normal.startswith(_NEVER) or "/opentelemetry/" in normal else 1
        else:
            rank = 0 if normal.startswith((*_NEVER, "<")) else 2
        if len(_ranks) < _MAX_RANKS:
            _ranks[file_name] = rank
    return rank


def _describe(frame: FrameType) -> dict[str, Any]:
    return {
        "code.file.path": frame.f_code.co_filename,
        "code.line.number": frame.f_lineno,
        "code.function.name": frame.f_code.co_qualname,
    }


def _describe_node(node: object) -> dict[str, Any]:
    """Where a template node stands."""
    origin, token = getattr(node, "origin", None), getattr(node, "token", None)
    name, line = getattr(origin, "name", None), getattr(token, "lineno", None)
    if not isinstance(name, str) or not isinstance(line, int) or _rank(name) == 0:
        return {}
    return {"code.file.path": name, "code.line.number": line, "code.function.name": "template"}
