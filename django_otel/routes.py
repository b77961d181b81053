"""The route of a request as a label: the URL pattern as a template with a leading slash."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from django_otel.base import guard
from django_otel.base.patterns import lazy_pattern

#: A pattern of `re_path()`: anchors, escapes, groups, repeated sets. Anything else is a pattern of `path()`.
_LOOKS_LIKE_REGEX = lazy_pattern(r"[\^$\\]|\(\?|\([^)]*\)|\[[^\]]+\]|\.[*+]")
#: Stands for a part of the path that the pattern neither names nor spells out.
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


def regex_of(pattern: object) -> str:
    """Return the text of a pattern of `path()` or `re_path()` as a regular expression; converters stay as they are."""
    text = str(pattern)
    return re.escape(text) if hasattr(pattern, "_route") and _LOOKS_LIKE_REGEX.search(text) else text


def _build(route: str) -> str:
    text = None
    if _LOOKS_LIKE_REGEX.search(route):
        pattern = route
        with guard.contained("the parts of a route"):
            # `path("things(new)/")` is not a regular expression, and the route does not say where it is from.
            pattern = _find_pattern(route)
        text = _Simplifier(pattern).simplify()
    if text is None:
        text = route
    return text if text.startswith("/") else "/" + text


def _find_pattern(route: str) -> str:
    """Return the regular expression of a route, in which literal characters of `path()` are escaped."""
    from django.urls import get_resolver, get_urlconf
    from django.utils.translation import get_language

    return _patterns_of(get_resolver(get_urlconf()), get_language() or "").get(route, route)


@functools.lru_cache(maxsize=8)
def _patterns_of(resolver: Any, language: str) -> dict[str, str]:
    """Return the regular expressions of the routes that differ from them; `language` is that of `i18n_patterns`."""
    return {route: pattern for route, pattern in _walk(resolver, "", "") if route != pattern}


def _walk(resolver: Any, above: str, pattern_above: str) -> Iterator[tuple[str, str]]:
    for part in resolver.url_patterns:
        # Joined as Django's URLResolver does for ResolverMatch.route.
        text, pattern = str(part.pattern), regex_of(part.pattern)
        route = above + text.removeprefix("^") if above else text
        joined = pattern_above + pattern.removeprefix("^") if above else pattern
        if hasattr(part, "url_patterns"):
            yield from _walk(part, route, joined)
        else:
            yield route, joined


class _Simplifier:
    """Turns a regular expression of a URLconf into a template, in one pass from left to right.

    Named groups become `<name>`, unnamed ones and repeated sets of characters `<var>`; a nested group belongs to
    the outer one. An optional group that captures nothing is left out with all that is in it; anchors, look-arounds
    and flags are left out as well. An escaped character stands for itself.
    """

    _ITEM = lazy_pattern(
        r"\\[AZzbB]|\\[dDwWsSpPX](?:\{\w+\})?|\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})|\\[1-9]\d?|\\."
        r"|\[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\]|\(\?P?[^)]?|.",
        re.DOTALL,
    )
    _QUANTIFIER = lazy_pattern(r"(?:[*+?]|\{\d*(?:,\d*)?\})[?+]?")

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._position = 0

    def simplify(self) -> str | None:
        """Return the template; None for an invalid regular expression, whose groups are not closed."""
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
        if item == "." or re.match(r"\\[dDwWsS1-9]", item):
            # A number is what a group has matched once more.
            return _UNNAMED
        if len(item) > 2 and item[1] in "xu":
            return item.encode("ascii").decode("unicode_escape")
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
