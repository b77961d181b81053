"""Where the console stands in the admin: an entry each for traces and dashboard."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from django.apps.registry import Apps
from django.contrib import admin
from django.db import models
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext_lazy

from django_otel.console.access import may_view
from django_otel.console.objects import add_button
from django_otel.models import Dashboard, Trace

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    # Generic only for the type checker.
    _ModelAdmin = admin.ModelAdmin


class ConsoleAdmin(_ModelAdmin):
    """A page that is no list of rows: it can be looked at, nothing else."""

    page_title: Any = ""

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

    def _page(self, route: str, view: str, name: str, module: str = "pages") -> URLPattern:
        def page(request: HttpRequest, *args: object, **kwargs: object) -> HttpResponse:
            # Late: most processes never show one of these pages, and the admin is loaded by all of them.
            views = importlib.import_module(f"django_otel.console.{module}")
            response: HttpResponse = getattr(views, view)(request, self, *args, **kwargs)
            return response

        model = self.model._meta.model_name
        return path(route, self.admin_site.admin_view(page), name=f"django_otel_{model}_{name}")


@admin.register(Trace)
class TraceAdmin(ConsoleAdmin):
    page_title = gettext_lazy("Traces")

    def get_urls(self) -> list[URLPattern]:
        return [
            self._page("", "traces", "changelist"),
            self._page("import/", "import_trace", "import", module="trace_pages"),
            self._page("object/<str:model>/<path:pk>/", "object_traces", "object", module="record_pages"),
            self._page("<str:trace_id>/", "trace", "detail"),
            self._page("<str:trace_id>/export/", "export", "export", module="trace_pages"),
            self._page("<str:trace_id>/compare/", "compare_traces", "compare", module="trace_pages"),
        ]


@admin.register(Dashboard)
class DashboardAdmin(ConsoleAdmin):
    page_title = gettext_lazy("Dashboard")

    def get_urls(self) -> list[URLPattern]:
        return [self._page("", "dashboard", "changelist")]


class Errors(models.Model):
    """The pages of errors: a name for the admin alone. Outside Django's registry, so that no migration knows it."""

    class Meta:
        app_label = "django_otel"
        apps = Apps()
        managed = False
        default_permissions = ()
        verbose_name = gettext_lazy("error")
        verbose_name_plural = gettext_lazy("errors")


@admin.register(Errors)
class ErrorsAdmin(ConsoleAdmin):
    page_title = gettext_lazy("Errors")

    def get_urls(self) -> list[URLPattern]:
        return [
            self._page("", "errors", "changelist", module="errors"),
            self._page("<str:issue_id>/", "error", "detail", module="errors"),
        ]


class Instruments(models.Model):
    """The page of all instruments, likewise."""

    class Meta:
        app_label = "django_otel"
        apps = Apps()
        managed = False
        default_permissions = ()
        verbose_name = gettext_lazy("instruments")
        verbose_name_plural = gettext_lazy("instruments")


@admin.register(Instruments)
class InstrumentsAdmin(ConsoleAdmin):
    page_title = gettext_lazy("Instruments")

    def get_urls(self) -> list[URLPattern]:
        return [self._page("", "instruments", "changelist", module="instrument_pages")]


class Queries(models.Model):
    """The page of statements, likewise."""

    class Meta:
        app_label = "django_otel"
        apps = Apps()
        managed = False
        default_permissions = ()
        verbose_name = gettext_lazy("queries")
        verbose_name_plural = gettext_lazy("queries")


@admin.register(Queries)
class QueriesAdmin(ConsoleAdmin):
    page_title = gettext_lazy("Queries")

    def get_urls(self) -> list[URLPattern]:
        return [self._page("", "queries", "changelist", module="record_pages")]


class Logs(models.Model):
    """The page of log records, likewise."""

    class Meta:
        app_label = "django_otel"
        apps = Apps()
        managed = False
        default_permissions = ()
        verbose_name = gettext_lazy("logs")
        verbose_name_plural = gettext_lazy("logs")


@admin.register(Logs)
class LogsAdmin(ConsoleAdmin):
    page_title = gettext_lazy("Logs")

    def get_urls(self) -> list[URLPattern]:
        return [self._page("", "logs", "changelist", module="record_pages")]


class Tasks(models.Model):
    """The page of tasks, likewise."""

    class Meta:
        app_label = "django_otel"
        apps = Apps()
        managed = False
        default_permissions = ()
        verbose_name = gettext_lazy("tasks")
        verbose_name_plural = gettext_lazy("tasks")


@admin.register(Tasks)
class TasksAdmin(ConsoleAdmin):
    page_title = gettext_lazy("Tasks")

    def get_urls(self) -> list[URLPattern]:
        return [self._page("", "tasks", "changelist", module="task_pages")]


add_button()
