"""Filters of the console's own templates; not part of the public template library."""

from __future__ import annotations

from django import template
from django.utils.html import conditional_escape, format_html
from django.utils.safestring import SafeString

from django_otel.base import text
from django_otel.live_sampling.assets import static_address

register = template.Library()


@register.simple_tag
def otel_static(path: str) -> str:
    """The address of a static file of ours, also before `collectstatic` has put it into the manifest."""
    return static_address(path)


@register.filter
def visible(value: object) -> SafeString:
    """Text with direction and other control characters written out, escaped unless it is markup of ours."""
    return value if isinstance(value, SafeString) else conditional_escape(text.visible(str(value)))


@register.filter
def bdi(value: object) -> SafeString:
    """Recorded text, isolated from the direction of the text around it."""
    return format_html("<bdi>{}</bdi>", visible(value))


@register.filter
def ltr(value: object) -> SafeString:
    """Code, a path, an id or a duration: isolated, and from left to right in every language."""
    return format_html('<bdi dir="ltr">{}</bdi>', visible(value))
