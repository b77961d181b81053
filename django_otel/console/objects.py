"""The button "Traces" on the admin's pages of objects whose model is registered for business events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, reverse

from django_otel import business, runtime
from django_otel.base import guard
from django_otel.console.access import may_view

if TYPE_CHECKING:
    from django.db import models

_TEMPLATE = "django_otel/console/object_change_form.html"


def address_of(site: str, instance: models.Model) -> str:
    """Return the page of an object's traces; "" where the admin site has none."""
    try:
        return reverse(f"{site}:django_otel_trace_object", args=[instance._meta.label, str(instance.pk)])
    except NoReverseMatch:
        return ""


def add_button() -> None:
    """Let every object page of every admin site have the button, also where the project has its own template."""
    original = admin.ModelAdmin.render_change_form
    if getattr(original, "is_of_django_otel", False):
        return

    def render_change_form(self: Any, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        response = original(self, request, context, *args, **kwargs)
        with guard.contained("adding the button of an object's traces"):
            instance = context.get("original")
            is_shown = instance is not None and runtime.console() is not None and may_view(request)
            if is_shown and isinstance(response, TemplateResponse) and not response.is_rendered:
                _add_to(response, instance, self.admin_site.name)
        return response

    render_change_form.is_of_django_otel = True  # type: ignore[attr-defined]
    admin.ModelAdmin.render_change_form = render_change_form  # type: ignore[method-assign]


def _add_to(response: TemplateResponse, instance: models.Model, site: str) -> None:
    if instance._meta.label not in business.registered_labels():
        return
    address = address_of(site, instance)
    if address and response.context_data is not None:
        # The project's own template, or Django's, with one more item in a block of it.
        parent: Any = response.resolve_template(response.template_name)
        response.context_data |= {"otel_parent": parent.template, "otel_traces": address}
        response.template_name = _TEMPLATE
