"""The GraphQL operation in `django.view`, for schemas that graphql-core executes: graphene, strawberry, ariadne.

On by default, where graphql-core is imported. No span and no metric of its own: attributes `graphql.operation.name`
and `graphql.operation.type` of the request's span, and the operation's name after the view's in `django.view`. Requests
that are not recorded cost one look at their span. Clients choose the names, so a process takes at most `_MAX_NAMES` of
them, none of more than `_MAX_LENGTH` characters; the language allows letters, digits and "_". An anonymous operation,
and several different ones of a batch, leave the view's name alone. The document is never read for anything else.
Source: OpenTelemetry semantic conventions, "GraphQL server".
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from django_otel.base import guard, import_hooks
from django_otel.config.schema import Config
from django_otel.requests.record import OPERATION, current
from django_otel.requests.view_names import name_view

_MODULE = "graphql.execution.execute"
_PLACE = "the name of a GraphQL operation"
_MAX_NAMES = 500
_MAX_LENGTH = 100
NAME, KIND, VIEW = "graphql.operation.name", "graphql.operation.type", "django.view"


class _State:
    """Effective settings."""

    def __init__(self) -> None:
        #: The method of graphql-core as it was, while ours is in its place.
        self.plain: Any = None
        #: Names of operations that were taken in this process.
        self.names: set[str] = set()


_state = _State()


def _note(operation: Any) -> None:
    """Note an operation that is about to be executed."""
    record = current()
    span = record.span_or_none if record is not None else None
    if record is None or span is None or not span.is_recording():
        return
    found = {KIND: operation.operation.value}
    name = _take(operation.name.value) if operation.name is not None else ""
    match = getattr(record.request, "resolver_match", None)
    if name:
        found[NAME] = name
        view = name_view(match, record.method) if match is not None else ""
        if view:
            found[VIEW] = f"{view}.{name}"
    kept = record.keep(OPERATION, found)
    # Of a batch: what all have in common.
    for key in [key for key, value in kept.items() if found.get(key) != value]:
        del kept[key]


def _take(name: str) -> str:
    """Return the name, or "" for one too many or too long."""
    if name not in _state.names:
        if len(name) > _MAX_LENGTH or len(_state.names) >= _MAX_NAMES:
            return ""
        _state.names.add(name)
    return name


def _watch() -> None:
    from graphql.execution.execute import ExecutionContext

    if _state.plain is not None:
        return
    plain = ExecutionContext.__dict__["build"]

    @functools.wraps(plain.__func__)
    def build(cls: type, *args: Any, **kwargs: Any) -> Any:
        built = plain.__func__(cls, *args, **kwargs)
        if isinstance(built, ExecutionContext):
            with guard.contained(_PLACE):
                _note(built.operation)
        return built

    _state.plain = plain
    ExecutionContext.build = classmethod(build)  # type: ignore[method-assign, assignment]


def install(config: Config) -> None:
    """Follow the settings: name operations, or leave everything as it was. May be called again and again."""
    if not config.enabled:
        uninstall()
        return
    if not import_hooks.when_imported(_MODULE, _watch):
        with guard.contained(_PLACE):
            _watch()


def uninstall() -> None:
    """Take everything back."""
    if _state.plain is not None:
        from graphql.execution.execute import ExecutionContext

        ExecutionContext.build = _state.plain  # type: ignore[method-assign]
        _state.plain = None
    elif _MODULE not in sys.modules:
        import_hooks.forget(_MODULE)
