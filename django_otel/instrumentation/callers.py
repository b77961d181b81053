"""The line of the project that is executing. Finding it walks the stack, so it is done rarely.

The line is the innermost one of the project, or of a template of it, inside the
view or middleware that runs: Django, installed packages and Python's own library
are passed over, and so is a method that only calls the one it overrides. Code of
a worker thread that coroutines wait for goes on at the line that awaits it.
Where the project has no line there, it is the class of the project whose method,
inherited from Django or a package, runs, or that a package reads: a schema of Ninja, a
type of GraphQL. At last it is the function that Ninja has called, or the innermost package.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import django
from django.db.models import Model, QuerySet
from django.db.models.manager import BaseManager

from django_otel.instrumentation.awaiting import find_waiting

#: Frames that are looked at; a query in a template is some twenty deep.
_MAX_FRAMES = 200
_DJANGO = str(Path(django.__file__).parent) + os.sep
_NEVER = tuple(
    Path(folder).as_posix() + "/" for folder in (_DJANGO, Path(__file__).parent.parent, Path(os.__file__).parent)
)
_INSTALLED = ("/site-packages/", "/dist-packages/")
#: Installed packages that are never a caller: OpenTelemetry's, and the part of Django that runs queries in threads,
#: where the coroutine that waits for them may not be known yet.
_BETWEEN = ("/opentelemetry/", "/asgiref/")
#: Classes of the project that say nothing about the place: many places use one object.
_PASSIVE = (Model, QuerySet, BaseManager)
#: Variables that lead to a class of the project: of graphql-core's functions, of methods, and of the functions that
#: show the admin's lists.
_GRAPHQL = "parent_type"
_OBJECTS = (_GRAPHQL, "self", "model_admin")

#: Kinds of file: never a caller (Django, us, Python), an installed package, the project, and those with the functions
#: of `_MARKS`, whose frames show more than a line.
_FRAMEWORK, _PACKAGE, _PROJECT, _MARKED = range(4)
_NODE, _BOUNDARY, _WORK_ITEM = range(3)
#: By the end of the file's name and the function's name.
_MARKS = {
    ("django/template/base.py", "render_annotated"): _NODE,
    # Around every middleware and the view: what is outside of it has not called the query.
    ("django/core/handlers/exception.py", "inner"): _BOUNDARY,
    ("concurrent/futures/thread.py", "run"): _WORK_ITEM,
    ("asgiref/current_thread_executor.py", "run"): _WORK_ITEM,
}
_MARKED_FILES = tuple(name for name, _ in _MARKS)
#: The file name that Jinja2 gives a template without a file.
_JINJA_TEXT = "<template>"

#: By file name.
_ranks: dict[str, int] = {}
_MAX_RANKS = 5000


class Caller:
    """Where the project called from."""

    __slots__ = ("attributes", "depth", "detail", "frame", "inner", "is_line")

    def __init__(
        self,
        attributes: dict[str, Any],
        frame: FrameType,
        depth: int,
        detail: tuple[Any, ...] | None,
        inner: list[FrameType],
        *,
        is_line: bool = True,
    ) -> None:
        #: `code.*` attributes.
        self.attributes = attributes
        #: The frame that shows it.
        self.frame = frame
        #: How far out that frame is; of a coroutine, how far out the thread's work item is.
        self.depth = depth
        #: None for a line of code; of a frame that does not tell by its code a template's name and line, or the class
        #: whose method runs, the variable that leads to it and the field of GraphQL; the coroutine's code and position,
        #: of a work item.
        self.detail = detail
        #: Whether it is a line of the project; else there was none on the whole stack.
        self.is_line = is_line
        #: The frames between the start and this one, innermost first.
        self.inner = inner


def find_caller() -> dict[str, Any]:
    """`code.*` attributes of the project's line, or of its template's, that led here; {} without one.

    Source: OpenTelemetry semantic conventions, "Source code attributes".
    """
    found = walk(sys._getframe(1))  # noqa: SLF001 (the documented way is much slower)
    return found.attributes if found is not None else {}


def walk(start: FrameType) -> Caller | None:
    """Find the project's line outside of `start`, whose depth is 0; None without one."""
    frames: list[FrameType] = []
    overriding: Caller | None = None
    frame: FrameType | None = start
    while frame is not None and len(frames) < _MAX_FRAMES:
        code = frame.f_code
        rank = _rank(code.co_filename)
        if rank == _PROJECT:
            calls_up = _calls_up(frame, frames)
            found = Caller(
                _describe(frame), frame, len(frames), None, frames.copy() if calls_up else frames, is_line=not calls_up
            )
            if not calls_up:
                return found
            overriding = overriding or found
        elif rank == _MARKED:
            mark = _find_mark(code)
            if mark == _BOUNDARY:
                break
            found_here = None
            if mark == _NODE:
                found_here = _read_node(frame, frames)
            elif mark == _WORK_ITEM:
                found_here = _walk_waiting(frame, frames)
            if found_here is not None:
                return found_here
        frames.append(frame)
        frame = frame.f_back
    return overriding or _find_object(frames) or _find_package(frames)


def is_caller(frame: FrameType, detail: tuple[Any, ...]) -> bool:
    """Return whether `frame`, the same code at the position of a caller with that detail, is that caller again."""
    kind = detail[0]
    if kind == "node":
        return _node_key(frame.f_locals.get("self")) == detail
    if kind == "object":
        values = frame.f_locals
        return _find_owner(values.get(detail[2])) is detail[1] and _find_field(values, detail[2]) == detail[3]
    found = _walk_waiting(frame, [])
    return found is not None and found.detail == detail


def find_outer(frame: FrameType, depth: int) -> FrameType:
    """Return the frame so many steps outside of `frame`."""
    for _ in range(depth):
        assert frame.f_back is not None
        frame = frame.f_back
    return frame


def is_django(file_name: str) -> bool:
    """Return whether Django's code is in that file."""
    return file_name.startswith(_DJANGO)


def is_project(file_name: str) -> bool:
    """Return whether the project's own code is in that file."""
    return _rank(file_name) == _PROJECT


def is_boundary(code: CodeType) -> bool:
    """Return whether it is Django's code around every middleware and the view."""
    return _rank(code.co_filename) == _MARKED and _find_mark(code) == _BOUNDARY


def _rank(file_name: str) -> int:
    rank = _ranks.get(file_name)
    if rank is None:
        normal = file_name.replace("\\", "/")
        if normal.endswith(_MARKED_FILES):
            rank = _MARKED
        elif any(mark in normal for mark in _INSTALLED):
            is_between = normal.startswith(_NEVER) or any(part in normal for part in _BETWEEN)
            rank = _FRAMEWORK if is_between else _PACKAGE
        elif normal == _JINJA_TEXT:
            rank = _PROJECT
        else:
            rank = _FRAMEWORK if normal.startswith((*_NEVER, "<")) else _PROJECT
        if len(_ranks) < _MAX_RANKS:
            _ranks[file_name] = rank
    return rank


def _find_mark(code: CodeType) -> int | None:
    normal = code.co_filename.replace("\\", "/")
    return next(
        (mark for (name, function), mark in _MARKS.items() if code.co_name == function and normal.endswith(name)), None
    )


def _calls_up(frame: FrameType, inner: list[FrameType]) -> bool:
    """Return whether this method has called the one that it overrides, Django's or a package's."""
    if not inner or inner[-1].f_code.co_name != frame.f_code.co_name or _rank(inner[-1].f_code.co_filename) == _PROJECT:
        return False
    called_on = inner[-1].f_locals.get("self")
    return called_on is not None and called_on is frame.f_locals.get("self")


def _describe(frame: FrameType) -> dict[str, Any]:
    template = frame.f_globals.get("__jinja_template__")
    if template is not None:
        return _code(
            getattr(template, "filename", None) or getattr(template, "name", None) or frame.f_code.co_filename,
            template.get_corresponding_lineno(frame.f_lineno),
            "template",
        )
    return _code(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname)


def _code(path: str, line: int | None, function: str) -> dict[str, Any]:
    found: dict[str, Any] = {"code.file.path": path, "code.function.name": function}
    if line is not None:
        found["code.line.number"] = line
    return found


# --- Templates. ---


def _node_key(node: object) -> tuple[Any, ...] | None:
    """Return where a template's node stands; None if it does not say."""
    origin, token = getattr(node, "origin", None), getattr(node, "token", None)
    name, line = getattr(origin, "name", None), getattr(token, "lineno", None)
    return ("node", name, line) if isinstance(name, str) and isinstance(line, int) else None


def _read_node(frame: FrameType, frames: list[FrameType]) -> Caller | None:
    detail = _node_key(frame.f_locals.get("self"))
    if detail is None or _rank(detail[1]) != _PROJECT:
        return None
    return Caller(_code(detail[1], detail[2], "template"), frame, len(frames), detail, frames)


# --- Coroutines. ---


def _walk_waiting(frame: FrameType, frames: list[FrameType]) -> Caller | None:
    """The line that awaits the work of this thread."""
    waiting = find_waiting(frame.f_locals.get("self"))
    for position, coroutine in enumerate(waiting):
        code = coroutine.f_code
        rank = _rank(code.co_filename)
        if rank == _PROJECT:
            detail = ("awaiting", code, coroutine.f_lasti)
            return Caller(_describe(coroutine), coroutine, len(frames), detail, [*frames, *waiting[:position]])
        if rank == _MARKED and _find_mark(code) == _BOUNDARY:
            break
    return None


# --- Without a line of the project. ---


def _find_object(frames: list[FrameType]) -> Caller | None:
    """The innermost object of a class of the project whose inherited method runs, or that a package reads."""
    for depth, frame in enumerate(frames):
        for name in _OBJECTS:
            if name not in frame.f_code.co_varnames:
                continue
            values = frame.f_locals
            owner = _find_owner(values.get(name))
            module = sys.modules.get(getattr(owner, "__module__", None) or "")
            path = getattr(module, "__file__", None)
            if not isinstance(path, str) or _rank(path) != _PROJECT:
                continue
            field = _find_field(values, name)
            if not isinstance(owner, type):
                attributes = _code(path, owner.__code__.co_firstlineno, owner.__qualname__)
            elif issubclass(owner, _PASSIVE):
                continue
            else:
                function = f"{owner.__qualname__}.{field}" if field else owner.__qualname__
                attributes = _code(path, _find_class(path, owner.__name__), function)
            detail = "object", owner, name, field
            return Caller(attributes, frame, depth, detail, frames[:depth], is_line=False)
    return None


def _find_field(values: Mapping[str, Any], name: str) -> str | None:
    """Return the field of a GraphQL type that graphql-core resolves: one view answers all operations."""
    nodes = values.get("field_nodes") if name == _GRAPHQL else None
    return str(nodes[0].name.value) if nodes else None


def _find_owner(value: object) -> type | FunctionType:
    """Return whose code a package runs with `value`: its class, or the project's class or function behind it."""
    kind = type(value)
    read = _OWNERS.get(kind.__name__)
    if read is not None:
        with contextlib.suppress(AttributeError, KeyError):
            found = read(value)
            if isinstance(found, type | FunctionType):
                return found
    return kind


#: What packages keep of the project, by the name of their class.
_OWNERS: dict[str, Callable[[Any], object]] = {
    # Ninja: an object that a schema reads, and what has called the view.
    "DjangoGetter": lambda value: value._schema_cls,  # noqa: SLF001 (no public name leads there)
    "Operation": lambda value: value.view_func,
    "AsyncOperation": lambda value: value.view_func,
    # GraphQL: types of graphene and of strawberry.
    "GrapheneObjectType": lambda value: value.graphene_type,
    "GraphQLObjectType": lambda value: value.extensions["strawberry-definition"].origin,
}


def _find_class(path: str, name: str) -> int | None:
    wanted = re.compile(rf"\s*class\s+{re.escape(name)}\b")
    lines = enumerate(linecache.getlines(path), 1)
    return next((number for number, line in lines if wanted.match(line)), None)


def _find_package(frames: list[FrameType]) -> Caller | None:
    for depth, frame in enumerate(frames):
        if _rank(frame.f_code.co_filename) == _PACKAGE:
            return Caller(_describe(frame), frame, depth, None, frames[:depth], is_line=False)
    return None
