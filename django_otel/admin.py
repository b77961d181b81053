"""The admin page of the sampling policy: one row, its history, and what is in force in this process."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db import IntegrityError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import formats, timezone

from django_otel import live
from django_otel.models import SamplingPolicy

if TYPE_CHECKING:
    _ModelForm = forms.ModelForm[SamplingPolicy]
    _ModelAdmin = admin.ModelAdmin[SamplingPolicy]
else:
    # Generic only for the type checker.
    _ModelForm, _ModelAdmin = forms.ModelForm, admin.ModelAdmin


class SamplingPolicyForm(_ModelForm):
    class Meta:
        model = SamplingPolicy
        fields = ("enabled", "ratio", "expires_at", "note")
        widgets = {
            "ratio": forms.NumberInput(attrs={"min": "0", "max": "1", "step": "any"}),
            "note": forms.TextInput(attrs={"class": "vTextField"}),
        }

    def clean_expires_at(self) -> datetime.datetime | None:
        """Refuse a policy that would be over before it begins."""
        expires_at: datetime.datetime | None = self.cleaned_data["expires_at"]
        now = timezone.now() if expires_at is None or timezone.is_aware(expires_at) else datetime.datetime.now()
        if expires_at is not None and expires_at <= now and self.cleaned_data.get("enabled"):
            raise ValidationError(
                f"{_show(expires_at)} has passed (it is {_show(now)}), so this policy would never apply. "
                "Choose a later time, or leave it empty.",
                code="expired",
            )
        return expires_at


@admin.register(SamplingPolicy)
class SamplingPolicyAdmin(_ModelAdmin):
    """The one row, without a list: its address leads to the row, or to the form that makes it."""

    form = SamplingPolicyForm
    fields = ("enabled", "ratio", "expires_at", "note", "version", "updated_at")
    readonly_fields = ("version", "updated_at")

    class Media:
        css = {"all": ("django_otel/admin.css",)}

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if self._row_exists():
            return HttpResponseRedirect(self._row_url())
        if self.has_add_permission(request):
            return HttpResponseRedirect(self._url("add"))
        return super().changelist_view(request, {**(extra_context or {}), **self._status_context(None)})

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if self._row_exists():
            if request.method == "POST":
                self._say_somebody_was_first(request)
            return HttpResponseRedirect(self._row_url())
        return super().add_view(request, form_url, extra_context)

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        row = SamplingPolicy.objects.filter(pk=SamplingPolicy.ONLY_ID).first()
        context = {
            **(extra_context or {}),
            **self._status_context(row),
            # There is no other to add.
            "show_save_and_add_another": False,
        }
        try:
            return super().changeform_view(request, object_id, form_url, context)
        except IntegrityError:
            # The form's own checks have passed, so the row was made meanwhile by somebody else.
            if not self._row_exists():
                raise
            self._say_somebody_was_first(request)
            return HttpResponseRedirect(self._row_url())

    def construct_change_message(self, request: HttpRequest, form: Any, formsets: Any, add: bool = False) -> Any:
        """For the history: what each changed field was and is."""
        changed = form.changed_data
        if add:
            changed = [name for name in form.fields if name == "ratio" or form.cleaned_data[name] not in ("", None)]
            return "; ".join(f"{_label(form, name)}: {_show(form.cleaned_data[name])}" for name in changed)
        return "; ".join(
            f"{_label(form, name)}: {_show(form.initial.get(name))} → {_show(form.cleaned_data[name])}"
            for name in changed
        )

    def save_model(self, request: HttpRequest, obj: SamplingPolicy, form: Any, change: bool) -> None:
        if change:
            obj.save()
        else:
            obj.save(force_insert=True)

    def _row_exists(self) -> bool:
        return SamplingPolicy.objects.filter(pk=SamplingPolicy.ONLY_ID).exists()

    def _url(self, page: str, *arguments: object) -> str:
        return reverse(f"{self.admin_site.name}:django_otel_samplingpolicy_{page}", args=arguments)

    def _row_url(self) -> str:
        return self._url("change", SamplingPolicy.ONLY_ID)

    def _say_somebody_was_first(self, request: HttpRequest) -> None:
        self.message_user(
            request,
            "Not saved: somebody else has made the sampling policy meanwhile. This is theirs; change it if need be.",
            messages.WARNING,
        )

    def _status_context(self, row: SamplingPolicy | None) -> dict[str, Any]:
        status = live.status()
        return {"otel": describe(status, row), "otel_status": status}


def describe(status: dict[str, Any], row: SamplingPolicy | None) -> dict[str, Any]:
    """`live.status()` in words: `headline`, `reason`, `facts` (label, value) and `warnings`."""
    headline = f"{_percent(status['ratio'])} of new traces are recorded"
    reason = _reason(status, row)
    if not status["enabled"]:
        headline, reason = "Nothing is recorded", "Telemetry is off in this process."
    facts: list[tuple[str, str]] = []
    if status["since_s"] is not None:
        facts.append(("Since", _show(_moment(status["since_s"]))))
    if status["expires_at_s"] is not None:
        facts.append(("Until", _show(_moment(status["expires_at_s"]))))
    if status["source"] == "admin":
        facts.append(("Then", f"{_percent(status['base_ratio'])}, from {_source(status['base_source'])}"))
    facts.append(("Process", f"pid {status['pid']}"))
    return {"headline": headline, "reason": reason, "facts": facts, "warnings": _warnings(status, row)}


def _reason(status: dict[str, Any], row: SamplingPolicy | None) -> str:
    if status["source"] == "admin":
        return f"Set by the policy on this page, version {status['version']}."
    source = f"Set by {_source(status['base_source'])}"
    if status["expired"]:
        return f"{source}: the policy on this page has run out."
    if row is None:
        return f"{source}: no policy is saved here."
    if not row.enabled:
        return f"{source}: the policy on this page is not enabled."
    return f"{source}."


def _warnings(status: dict[str, Any], row: SamplingPolicy | None) -> list[str]:
    found = []
    if not status["enabled"]:
        found.append("Telemetry is off in this process, so what is saved here has no effect.")
    elif status["foreign"]:
        found.append("Another tool's tracer provider is in use and decides alone, so what is saved here has no effect.")
    elif not status["live"]:
        found.append('OTEL["SAMPLING"]["LIVE"] is False, so what is saved here has no effect.')
    elif row is not None and row.enabled and not status["expired"] and row.version != status["version"]:
        expires_at_s = live.epoch_s(row.expires_at)
        if expires_at_s is None or expires_at_s > timezone.now().timestamp():
            found.append(
                f"This process has not yet applied version {row.version}; it does so within {status['refresh_s']:g} s."
            )
    if status["error"]:
        found.append(status["error"])
    return found


def _source(source: str) -> str:
    if source.startswith("environment"):
        return f"the environment variable {source.removeprefix('environment').strip() or 'OTEL_TRACES_SAMPLER_ARG'}"
    return {
        "settings": 'settings, OTEL["SAMPLING"]["RATIO"]',
        "default": 'the default of OTEL["SAMPLING"]["RATIO"]',
    }.get(source, source)


def _percent(ratio: float) -> str:
    return f"{ratio * 100:.10g} %"


def _moment(epoch_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(epoch_s, tz=datetime.UTC)


def _label(form: Any, name: str) -> str:
    label = form.fields[name].label or name
    return str(label)[:1].upper() + str(label)[1:]


def _show(value: object) -> str:
    if isinstance(value, datetime.datetime):
        return formats.date_format(timezone.localtime(value) if timezone.is_aware(value) else value, "Y-m-d H:i:s")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    return "none" if value is None or value == "" else str(value)
