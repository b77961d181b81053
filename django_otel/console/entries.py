"""The console's entries in the admin."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.apps.registry import Apps
from django.contrib import admin
from django.db import models
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext_lazy

from django_otel.base.frozen import record
from django_otel.console.access import may_view
from django_otel.console.objects import add_button
from django_otel.models import Dashboard, Trace

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    # Generic only for the type checker.
    _ModelAdmin = admin.ModelAdmin


@record
class Page:
    """One address below that of a model, and the view in a module of the console that answers it."""

    route: str
    view: str
    name: str = "changelist"
    module: str = "pages"


class ConsoleAdmin(_ModelAdmin):
    """A page that is not a list of rows: it can only be viewed."""

    page_title: Any = ""
    pages: Sequence[Page] = ()

    def __init__(self, model: type[models.Model], admin_site: admin.AdminSite) -> None:
        # Not Django's, which copies the table of form fields and widgets for each page, and none has a form.
        self.model = model
        self.opts = model._meta
        self.admin_site = admin_site

    def get_urls(self) -> list[URLPattern]:
        return [self._url(page) for page in self.pages]

    def has_module_permission(self, request: HttpRequest) -> bool:
        return may_view(request)

    def has_view_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return may_view(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def _url(self, page: Page) -> URLPattern:
        def show(request: HttpRequest, *args: object, **kwargs: object) -> HttpResponse:
            # Late: most processes never show one of these pages, and the admin is loaded by all of them.
            views = importlib.import_module(f"django_otel.console.{page.module}")
            response: HttpResponse = getattr(views, page.view)(request, self, *args, **kwargs)
            return response

        name = f"django_otel_{self.model._meta.model_name}_{page.name}"
        return path(page.route, self.admin_site.admin_view(show), name=name)


class _PageMeta:
    """Options of a model that is a name for the admin alone. Outside Django's registry: no migration knows it."""

    app_label = "django_otel"
    apps = Apps()
    managed = False
    default_permissions = ()


@admin.register(Trace)
class TraceAdmin(ConsoleAdmin):
    page_title = gettext_lazy("Traces")
    pages = (
        Page("", "traces"),
        Page("import/", "import_trace", "import", "trace_pages"),
        Page("object/<str:model>/<path:pk>/", "object_traces", "object", "record_pages"),
        Page("<str:trace_id>/", "trace", "detail"),
        Page("<str:trace_id>/explain/", "explain_span", "explain", "plan_pages"),
        Page("<str:trace_id>/export/", "export", "export", "trace_pages"),
        Page("<str:trace_id>/compare/", "compare_traces", "compare", "trace_pages"),
    )


@admin.register(Dashboard)
class DashboardAdmin(ConsoleAdmin):
    page_title = gettext_lazy("Dashboard")
    pages = (Page("", "dashboard"),)


class Errors(models.Model):
    """The pages of errors."""

    class Meta(_PageMeta):
        verbose_name = gettext_lazy("error")
        verbose_name_plural = gettext_lazy("errors")


@admin.register(Errors)
class ErrorsAdmin(ConsoleAdmin):
    page_title = gettext_lazy("Errors")
    pages = (
        Page("", "errors", module="errors"),
        Page("<str:issue_id>/", "error", "detail", "errors"),
    )


class Instruments(models.Model):
    """The page of all instruments."""

    class Meta(_PageMeta):
        verbose_name = gettext_lazy("instruments")
        verbose_name_plural = gettext_lazy("instruments")


@admin.register(Instruments)
class InstrumentsAdmin(ConsoleAdmin):
    page_title = gettext_lazy("Instruments")
    pages = (Page("", "instruments", module="instrument_pages"),)


class Slow(models.Model):
    """The page of slow routes and releases."""

    class Meta(_PageMeta):
        verbose_name = gettext_lazy("slow routes and releases")
        verbose_name_plural = gettext_lazy("slow routes and releases")


@admin.register(Slow)
class SlowAdmin(ConsoleAdmin):
    page_title = gettext_lazy("Slow routes and releases")
    pages = (Page("", "slow", module="slow_pages"),)


class Queries(models.Model):
    """The page of statements."""

    class Meta(_PageMeta):
        verbose_name = gettext_lazy("queries")
        verbose_name_plural = gettext_lazy("queries")


@admin.register(Queries)
class QueriesAdmin(ConsoleAdmin):
    page_title = gettext_lazy("Queries")
    pages = (
        Page("", "queries", module="record_pages"),
        Page("explain/", "explain_statement", "explain", "plan_pages"),
    )


class Logs(models.Model):
    """The page of log records."""

    class Meta(_PageMeta):
        verbose_name = gettext_lazy("logs")
        verbose_name_plural = gettext_lazy("logs")


@admin.register(Logs)
class LogsAdmin(ConsoleAdmin):
    page_title = gettext_lazy("Logs")
    pages = (Page("", "logs", module="record_pages"),)


class Tasks(models.Model):
    """The page of tasks."""

    class Meta(_PageMeta):
        verbose_name = gettext_lazy("tasks")
        verbose_name_plural = gettext_lazy("tasks")


@admin.register(Tasks)
class TasksAdmin(ConsoleAdmin):
    page_title = gettext_lazy("Tasks")
    pages = (Page("", "tasks", module="task_pages"),)


add_button()
