"""Template time of a request, for `REQUEST.SERVER_TIMING`; without it nothing here is in place.

Only sums of Django's own templates: no span, no metric. The caches' time comes from `instruments.cache`.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

from django.template.base import Template

from django_otel.config.schema import Config
from django_otel.requests import record

_plain_render = Template.render


def _render(self: Template, context: Any) -> Any:
    request = record.current()
    notes = request.notes if request is not None else None
    if notes is None or notes.is_in_template:
        return _plain_render(self, context)
    notes.is_in_template = True
    started_s = perf_counter()
    try:
        return _plain_render(self, context)
    finally:
        notes.is_in_template = False
        notes.template_s += perf_counter() - started_s


def install(config: Config) -> None:
    """Follow the settings: add times up, or leave everything as Django made it. May be called again and again."""
    wanted = config.enabled and config.request.server_timing
    if not wanted:
        uninstall()
        return
    if Template.render is _plain_render:
        Template.render = _render  # type: ignore[method-assign]


def uninstall() -> None:
    """Take everything back."""
    if Template.render is _render:
        Template.render = _plain_render  # type: ignore[method-assign]
