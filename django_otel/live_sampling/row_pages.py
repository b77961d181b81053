"""Admin pages over rows whose table may be missing or whose database may not answer; they then show advice."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db import Error as DatabaseFault
from django.db import connections, router, transaction
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from django_otel.live_sampling import policy_rows

if TYPE_CHECKING:
    from django.db.models import Model, QuerySet

    _ModelAdmin = admin.ModelAdmin[Any]
else:
    # Generic only for the type checker.
    _ModelAdmin = admin.ModelAdmin


def needs_tables(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Show advice instead of an error if the tables are missing or their database does not answer."""

    @functools.wraps(view)
    def guarded(self: RowPages, request: HttpRequest, *args: object, **kwargs: object) -> HttpResponse:
        try:
            # Under ATOMIC_REQUESTS PostgreSQL would answer nothing more, not even which tables there are.
            is_atomic = connections[self.database()].in_atomic_block
            with transaction.atomic(using=self.database()) if is_atomic else contextlib.nullcontext():
                return view(self, request, *args, **kwargs)
        except (DatabaseFault, ImproperlyConfigured, OSError):
            are_there = policy_rows.tables_exist(self.database(), self.tables)
            if are_there:
                # Something else, which is not to be hidden.
                raise
            if not (self.has_view_or_change_permission(request) or self.has_add_permission(request)):
                raise PermissionDenied from None
            return self.unavailable(request, is_answering=are_there is not None)

    return guarded


class RowPages(_ModelAdmin):
    """Pages of a model of ours; they read the alias that is written to: a replica may lag behind what was saved."""

    #: The models whose tables are needed; by default those of the sampling policy.
    tables: Sequence[type[Model]] = ()

    def database(self) -> str:
        """Return the database alias that the rows are written to, and read from."""
        return router.db_for_write(self.model)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).using(self.database())

    @needs_tables
    def delete_view(self, *args: Any, **kwargs: Any) -> HttpResponse:
        return super().delete_view(*args, **kwargs)

    @needs_tables
    def history_view(self, *args: Any, **kwargs: Any) -> HttpResponse:
        return super().history_view(*args, **kwargs)

    def unavailable(self, request: HttpRequest, *, is_answering: bool) -> HttpResponse:
        """Return the response while the rows cannot be read: `show_unavailable` with words of the model."""
        raise NotImplementedError

    def show_unavailable(
        self,
        request: HttpRequest,
        title: str,
        problem: str,
        *,
        is_answering: bool,
        template: str = "unavailable.html",
        **more: object,
    ) -> HttpResponse:
        """Return the page instead of any other, with status 503; it has the command that makes missing tables."""
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "problem": problem,
            "command": policy_rows.migrate_command(self.database()) if is_answering else "",
            "is_lost": request.method == "POST",
            **more,
        }
        return TemplateResponse(request, f"admin/django_otel/{template}", context, status=503)
