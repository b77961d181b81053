"""The route of a request as a label: the URL pattern as a template with a leading slash."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

#: A pattern of `re_path()`: anchors, escapes, groups, repeated sets. Anything else is a pattern of `path()`.
_LOOKS_LIKE_REGEX = re.compile(r"[\^$\\]|\(\?|\([^)]*\)|\[[^\]]+\]|\.[*+]")
#: What stands for a part of the path that the pattern neither names nor spells out.
_UNNAMED = "<var>"
#: Routes come from the URLconf, so they are few; the bound is against a URLconf built per request.
_MAX_ROUTES = 10_000
_templates: dict[str, str] = {}


def route_template(route: str) -> str:
    """`"orders/<int:pk>/"` -> `"/orders/<int:pk>/"`, `"^articles/(?P<year>[0-9]{4})/$"` -> `"/articles/<year>/"`."""
    template = _templates.get(route)
    if template is None:
        template = _build(route)
        if len(_templates) < _MAX_ROUTES:
            _templates[route] = template
    return template


def _build(route: str) -> str:
    text = _Simplifier(route).simplify() if _LOOKS_LIKE_REGEX.search(route) else None
    if text is None:
        text = route
    return text if text.startswith("/") else "/" + text


class _Simplifier:
    """Turns a regular expression of a URLconf into a template, in one pass from left to right.

    Named groups become `<name>`, unnamed ones and repeated sets of characters `<var>`; a nested group belongs to
    the outer one. An optional group that captures nothing is left out with all that is in it; anchors, look-arounds
    and flags are left out as well. An escaped character stands for itself.
    """

    _ITEM = re.compile(
        r"\\[AZzbB]|\\[dDwWsSpPX](?:\{\w+\})?|\\.|\[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\]|\(\?P?[^)]?|.", re.DOTALL
    )
    _QUANTIFIER = re.compile(r"(?:[*+?]|\{\d*(?:,\d*)?\})[?+]?")

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._position = 0

    def simplify(self) -> str | None:
        """Return the template; None for what is no regular expression, as its groups are not closed."""
        text = self._read_sequence()
        return text if text is not None and self._position == len(self._pattern) else None

    def _read_sequence(self) -> str | None:
        """Read up to the end of the pattern, or of the group that has been opened; None if a group is never closed."""
        parts: list[str] = []
        pattern = self._pattern
        while self._position < len(pattern) and pattern[self._position] != ")":
            if pattern[self._position] == "(":
                part = self._read_group()
                if part is None:
                    return None
            else:
                part = self._read_item()
            if part != _UNNAMED or not parts or parts[-1] != _UNNAMED:
                parts.append(part)
        return "".join(parts)

    def _read_item(self) -> str:
        match = self._ITEM.match(self._pattern, self._position)
        assert match is not None
        item = match.group()
        self._position = match.end()
        quantifier = self._read_quantifier()
        if item in ("^", "$") or re.fullmatch(r"\\[AZzbB]", item):
            return ""
        if item.startswith("["):
            # A set of one character is a way to escape it.
            return item[1] if len(item) == 3 and item[1] != "^" and not quantifier else _UNNAMED
        if item == "." and quantifier in ("", "?"):
            # Nearly always the dot of a file's name, which should have been escaped.
            return "."
        if item == "." or re.match(r"\\[dDwWsS]", item):
            return _UNNAMED
        return item.removeprefix("\\")

    def _read_quantifier(self) -> str:
        match = self._QUANTIFIER.match(self._pattern, self._position)
        if match is None:
            return ""
        self._position = match.end()
        return match.group()

    def _read_group(self) -> str | None:
        """Read a group with its quantifier; None if it is never closed."""
        head = re.compile(
            r"\((?:\?P?<(?P<name>[^\W\d]\w*)>|\?P=(?P<same>\w+)\)|\?#[^)]*\)|(?P<around>\?<?[=!]|\?\(\w+\))"
            r"|\?(?P<flags>[-a-zA-Z]+)\)|(?P<bare>\?(?:[-a-zA-Z]*:|>))|(?P<unnamed>))"
        ).match(self._pattern, self._position)
        assert head is not None
        self._position = head.end()
        if head.group().endswith(")"):
            # A comment, flags, or what a named group has matched once more.
            self._read_quantifier()
            return f"<{head['same']}>" if head["same"] else ""
        body = self._read_sequence()
        if body is None or not self._pattern.startswith(")", self._position):
            return None
        self._position += 1
        quantifier = self._read_quantifier()
        if head["name"]:
            return f"<{head['name']}>"
        if head["around"] is not None:
            return ""
        if head["bare"] is not None:
            if quantifier.startswith(("?", "*", "{0", "{,")):
                return ""
            return _UNNAMED if "|" in body else body
        return _UNNAMED


#: The names of our own pages in `django_otel.urls`.
OWN_PAGES = frozenset({"metrics", "livez", "readyz", "startupz"})
_VIEWS_MODULE = "django_otel.views"


def find_own_pages(urlconf: str | None = None) -> dict[str, Callable[..., Any]]:
    """Return our own pages of a URLconf by path (`request.path_info`), with the view that answers there.

    Pages below a variable part of the path are not among them. Imports the URLconf. `None` is `ROOT_URLCONF`.
    """
    from django.urls import get_resolver

    pages: dict[str, Callable[..., Any]] = {}
    for path, view in _walk(get_resolver(urlconf).url_patterns, ("/",)):
        # What stands first in the URLconf answers.
        pages.setdefault(path, view)
    return pages


def _walk(patterns: Iterable[Any], prefixes: tuple[str, ...]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield path and view of each of our pages below the given prefixes."""
    for entry in patterns:
        nested = getattr(entry, "url_patterns", None)
        if nested is None and not _is_own(entry.callback):
            continue
        texts = _literals(entry.pattern)
        paths = tuple(prefix + text for prefix in prefixes for text in texts)
        if not paths:
            continue
        if nested is not None:
            yield from _walk(nested, paths)
        else:
            for path in paths:
                yield path, entry.callback


def _is_own(view: Any) -> bool:
    """Whether a view is one of ours, as it is or wrapped by a decorator that says so (`functools.wraps`)."""
    for _ in range(20):
        if view is None:
            return False
        if getattr(view, "__module__", "") == _VIEWS_MODULE and getattr(view, "__name__", "") in OWN_PAGES:
            return True
        view = getattr(view, "__wrapped__", None)
    return False


def _literals(pattern: Any) -> tuple[str, ...]:
    """The texts that a URL pattern matches, if they are few and known; a prefix of the language has several."""
    from django.conf import settings
    from django.urls.resolvers import LocalePrefixPattern, RegexPattern

    if isinstance(pattern, LocalePrefixPattern):
        languages = [f"{code}/" for code, _ in settings.LANGUAGES]
        return (*languages, *(() if pattern.prefix_default_language else ("",)))
    route = str(pattern)
    if isinstance(pattern, RegexPattern):
        text = re.sub(r"\\([^\w\s])", r"\1", route.removeprefix("^").removesuffix("$"))
        return (text,) if pattern.regex.fullmatch(text) and not re.search(r"[()\[*+?|]", route) else ()
    return () if pattern.converters else (route,)
