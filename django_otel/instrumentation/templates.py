"""Rendering of templates of Django and, by Django's backend, of Jinja2: its part of the time budget of requests.

On by default (`REQUEST.TIME_BUDGET`). A template that another one includes or extends is part of it.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

from django.template.base import Template
from django.template.context import Context
from django.utils.safestring import SafeString

from django_otel.base import import_hooks
from django_otel.config.schema import Config
from django_otel.requests import layers
from django_otel.requests.record import current

_JINJA2 = "django.template.backends.jinja2"
_plain_render = Template.render


def _render(self: Template, context: Context) -> SafeString:
    opened = layers.enter(current(), layers.TEMPLATE, perf_counter())
    try:
        return _plain_render(self, context)
    finally:
        layers.leave(opened, layers.TEMPLATE)


class _Jinja2:
    """Django's class of Jinja2 templates, once it was imported; Jinja2's own renders the templates included in one."""

    def __init__(self) -> None:
        self.owner: Any = None
        self.plain: Any = None

    def install(self) -> None:
        if not import_hooks.when_imported(_JINJA2, self._patch):
            self._patch()

    def _patch(self) -> None:
        from django.template.backends import jinja2

        if self.owner is not None:
            return
        self.owner = jinja2.Template
        plain = self.plain = jinja2.Template.render

        def render(self: jinja2.Template, *args: object, **kwargs: object) -> object:
            opened = layers.enter(current(), layers.TEMPLATE, perf_counter())
            try:
                return plain(self, *args, **kwargs)  # type: ignore[arg-type]
            finally:
                layers.leave(opened, layers.TEMPLATE)

        self.owner.render = render

    def uninstall(self) -> None:
        import_hooks.forget(_JINJA2)
        if self.owner is not None:
            self.owner.render = self.plain
            self.owner = None


_jinja2 = _Jinja2()


def install(config: Config) -> None:
    """Follow the settings: time templates, or leave everything as it was made. May be called again and again."""
    if not layers.is_wanted(config):
        uninstall()
        return
    if Template.render is _plain_render:
        Template.render = _render  # type: ignore[method-assign]
    _jinja2.install()


def uninstall() -> None:
    """Take everything back."""
    if Template.render is _render:
        Template.render = _plain_render  # type: ignore[method-assign]
    _jinja2.uninstall()
