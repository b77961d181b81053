"""The route of a request as a label: the URL pattern as a template with a leading slash."""

from __future__ import annotations

import re

from django.contrib.admindocs.utils import (
    remove_non_capturing_groups,
    replace_metacharacters,
    replace_named_groups,
    replace_unnamed_groups,
)

_LOOKS_LIKE_REGEX = re.compile(r"[\^$\\]|\(\?|\([^)]*\)[?*+]?")
#: Routes come from the URLconf, so they are few; the bound is against a URLconf made anew per request.
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
    if _LOOKS_LIKE_REGEX.search(route):
        # The steps of admindocs' simplify_regex, whose module needs django.contrib.auth.
        route = remove_non_capturing_groups(route)
        route = replace_named_groups(route)
        route = replace_unnamed_groups(route)
        route = replace_metacharacters(route)
    return route if route.startswith("/") else "/" + route
