"""Protocols for a framework's requests and responses; Django's classes implement them."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Mapping, Sequence
from typing import Protocol


class MatchLike(Protocol):
    """Where a URL has led to."""

    @property
    def route(self) -> str: ...

    @property
    def func(self) -> Callable[..., object]: ...

    @property
    def args(self) -> Sequence[object]: ...

    @property
    def kwargs(self) -> Mapping[str, object]: ...


class RequestLike(Protocol):
    """A request under way."""

    @property
    def META(self) -> Mapping[str, str]:  # noqa: N802 (as Django has it)
        """Headers and variables of the server, as WSGI has them; those that are read are texts."""

    @property
    def method(self) -> str | None: ...

    @property
    def path(self) -> str: ...

    @property
    def path_info(self) -> str: ...

    @property
    def resolver_match(self) -> MatchLike | None: ...


class ResponseLike(Protocol):
    """A response, whole or streaming."""

    @property
    def status_code(self) -> int: ...

    def items(self) -> ItemsView[str, str] | Iterable[tuple[str, str]]: ...

    def get(self, header: str) -> str | None: ...

    def __setitem__(self, header: str, value: str) -> None: ...
