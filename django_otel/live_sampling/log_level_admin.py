"""Temporary log levels in the admin: the list, a form to set one, Django's history and permissions."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.safestring import SafeString
from django.utils.translation import gettext, gettext_lazy

from django_otel import conf
from django_otel.config.schema import ConfigError
from django_otel.live_sampling import policy_rows
from django_otel.live_sampling import wording as text
from django_otel.live_sampling.assets import Stylesheet
from django_otel.live_sampling.isolation import bdi, ltr
from django_otel.live_sampling.log_levels import level_alias
from django_otel.live_sampling.row_pages import RowPages, needs_tables
from django_otel.log_level_model import save_in_place
from django_otel.models import LogLevel

if TYPE_CHECKING:
    from django.forms import ModelForm

_SECONDS = {code: seconds for code, seconds, _ in text.DURATIONS}


@admin.register(LogLevel)
class LogLevelAdmin(RowPages):
    """Setting a level takes effect within a second in all processes of this host; deleting it ends it."""

    tables = (LogLevel,)
    fields = ("logger", "level", "lasts", "note")
    list_display = ("shown_logger", "shown_level", "shown_end", "shown_author", "shown_note")
    list_per_page = 50
    list_display_links = ("shown_logger",)

    @property
    def form(self) -> type[ModelForm[LogLevel]]:  # type: ignore[override]
        # Late: every process loads the admin, and few show this form.
        from django_otel.live_sampling.log_level_form import LogLevelForm

        return LogLevelForm

    class Media:
        css = {"all": (Stylesheet("django_otel/admin.css"),)}

    def get_fields(self, request: HttpRequest, obj: LogLevel | None = None) -> tuple[str, ...]:
        if obj is not None and self.has_change_permission(request, obj):
            return ("shown_logger", "level", "lasts", "note")
        is_writing = obj is None and self.has_add_permission(request)
        return self.fields if is_writing else self.list_display

    def get_readonly_fields(self, request: HttpRequest, obj: LogLevel | None = None) -> tuple[str, ...]:
        # The row of another logger is another row, which is added.
        return self.list_display

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        # The widgets of the form rather than the admin's.
        return db_field.formfield(**kwargs)

    @admin.display(description=gettext_lazy("logger"), ordering="logger")
    def shown_logger(self, obj: LogLevel) -> SafeString:
        return ltr(obj.logger)

    @admin.display(description=gettext_lazy("level"), ordering="level")
    def shown_level(self, obj: LogLevel) -> SafeString:
        return ltr(obj.level)

    @admin.display(description=gettext_lazy("until"), ordering="expires_at")
    def shown_end(self, obj: LogLevel) -> SafeString:
        """Return when the level ends, or that it has."""
        if obj.expires_at is None:
            return SafeString("")
        if obj.is_over:
            return bdi(gettext("ended at %(time)s") % {"time": text.show(obj.expires_at)})
        return bdi(text.until(policy_rows.epoch_s(obj.expires_at) or 0.0))

    @admin.display(description=gettext_lazy("set by"), ordering="set_by")
    def shown_author(self, obj: LogLevel) -> SafeString:
        return bdi(obj.set_by)

    @admin.display(description=gettext_lazy("note"))
    def shown_note(self, obj: LogLevel) -> SafeString:
        return bdi(obj.note)

    def save_model(self, request: HttpRequest, obj: LogLevel, form: Any, change: bool) -> None:
        """Save it from now on, in place of the row that this logger has already."""
        obj.set_by = str(request.user)[:200]
        obj.expires_at = text.now() + datetime.timedelta(seconds=_SECONDS[form.cleaned_data["lasts"]])
        save_in_place(level_alias(), obj)

    def construct_change_message(self, request: HttpRequest, form: Any, formsets: object, add: bool = False) -> Any:
        """Return the text of the history: level, duration, and reason."""
        lasts_s = _SECONDS[form.cleaned_data["lasts"]]
        return text.level_for(form.cleaned_data.get("level", ""), lasts_s, form.cleaned_data.get("note", ""))

    def delete_model(self, request: HttpRequest, obj: LogLevel) -> None:
        obj.delete(using=level_alias())

    # --- The pages. ---

    @needs_tables
    def changeform_view(self, *args: Any, **kwargs: Any) -> HttpResponse:
        return super().changeform_view(*args, **kwargs)

    @needs_tables
    def changelist_view(self, request: HttpRequest, extra_context: dict[str, object] | None = None) -> HttpResponse:
        problem = _problem() if request.method == "GET" else ""
        if problem:
            self.message_user(request, bdi(problem), messages.WARNING)
        response = super().changelist_view(request, {**(extra_context or {}), "title": gettext("Log levels")})
        # Within the guard: the list is read when it is shown.
        return response.render() if isinstance(response, TemplateResponse) else response

    def unavailable(self, request: HttpRequest, *, is_answering: bool) -> HttpResponse:
        message = (
            gettext('Database "%(database)s" has no table of the log levels.')
            if is_answering
            else gettext('Database "%(database)s", which has the log levels, does not answer.')
        )
        problem = message % {"database": self.database()}
        return self.show_unavailable(request, gettext("Log levels"), problem, is_answering=is_answering)


def _problem() -> str:
    """Return why a level that is set would have no effect; "" where it would."""
    try:
        return text.why_no_level(conf.get_config())
    except ConfigError:
        return gettext("settings.OTEL is not valid, so no process applies a log level: run manage.py check.")
