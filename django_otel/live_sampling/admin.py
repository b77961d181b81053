"""The sampling policy in the admin: its one row with its rules, saved together as one change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.safestring import SafeString
from django.utils.translation import gettext, gettext_lazy

from django_otel import models
from django_otel.live_sampling import admin_history
from django_otel.live_sampling import wording as text
from django_otel.live_sampling.admin_history import POLICY_FIELDS, alias
from django_otel.live_sampling.admin_pages import STATUS_NAME, PolicyPages
from django_otel.live_sampling.assets import Script, Stylesheet
from django_otel.live_sampling.isolation import bdi
from django_otel.live_sampling.row_pages import needs_tables
from django_otel.models import SamplingPolicy

if TYPE_CHECKING:
    from django.forms import ModelForm

#: Addresses whose forms have all the rules.
_LARGE_FORMS = frozenset(f"django_otel_samplingpolicy_{page}" for page in ("add", "change", "routes"))


@admin.register(SamplingPolicy)
class SamplingPolicyAdmin(PolicyPages):
    """The one row, without a list: its address leads to the row, or to the form that makes it."""

    class Media:
        css = {"all": (Stylesheet("django_otel/admin.css"),)}
        js = (Script("django_otel/sampling.js"),)

    # Late: every process loads the admin, and few show this form.

    @property
    def form(self) -> type[ModelForm[SamplingPolicy]]:  # type: ignore[override]
        from django_otel.live_sampling.admin_forms import SamplingPolicyForm

        return SamplingPolicyForm

    @property
    def inlines(self) -> tuple[type[admin.StackedInline[Any, Any]], ...]:  # type: ignore[override]
        from django_otel.live_sampling.admin_forms import SamplingRuleInline

        return (SamplingRuleInline,)

    def get_urls(self) -> list[URLPattern]:
        """The addresses that the page's script asks, before Django's own."""
        from django_otel.live_sampling.large_forms import allow_many_fields

        own = [
            path("status/", self.admin_site.admin_view(self.status_view), name=STATUS_NAME),
            path("force/", self.admin_site.admin_view(self.force_view), name="django_otel_samplingpolicy_force"),
            path("routes/", self.admin_site.admin_view(self.routes_view), name="django_otel_samplingpolicy_routes"),
        ]
        found = [*own, *super().get_urls()]
        for pattern in found:
            if pattern.name in _LARGE_FORMS:
                pattern.callback = allow_many_fields(pattern.callback, self.admin_site.has_permission)
        return found

    def get_readonly_fields(self, request: HttpRequest, obj: object = None) -> tuple[str, ...]:
        return ("shown_note",)

    @admin.display(description=gettext_lazy("note"))
    def shown_note(self, obj: SamplingPolicy) -> SafeString:
        """Return the note, isolated and with marks for characters that reorder text."""
        return bdi(obj.note)

    def get_fieldsets(self, request: HttpRequest, obj: SamplingPolicy | None = None) -> Any:
        first: tuple[str, ...] = ("enabled", "ratio", "lasts", "expires_at", "note")
        may_write = self.has_change_permission(request, obj) if obj is not None else self.has_add_permission(request)
        if not may_write:
            # Read, not edited: as on every page, with what reorders its text written out.
            first = ("enabled", "ratio", "expires_at", "shown_note")
        return (
            (gettext("Policy"), {"fields": first}),
            (gettext("Limit and keep"), {"fields": ("max_per_second", "keep_errors", "keep_slow_s")}),
        )

    # --- The pages. ---

    @needs_tables
    def changelist_view(self, request: HttpRequest, extra_context: dict[str, object] | None = None) -> HttpResponse:
        if self._row_exists():
            return HttpResponseRedirect(self._row_url())
        if self.has_add_permission(request):
            return HttpResponseRedirect(self.url("add"))
        return super().changelist_view(request, {**(extra_context or {}), **self.overview()})

    @needs_tables
    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, object] | None = None
    ) -> HttpResponse:
        if self._row_exists():
            if request.method == "POST":
                self._warn_of_another_user(request)
            return HttpResponseRedirect(self._row_url())
        return super().add_view(request, form_url, extra_context)

    @needs_tables
    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, object] | None = None,
    ) -> HttpResponse:
        context = {
            **(extra_context or {}),
            **self.overview(),
            # There is no other to add, and every button stays on this page.
            "show_save_and_add_another": False,
            "show_save_and_continue": False,
        }
        if request.method != "POST":
            return super().changeform_view(request, object_id, form_url, context)
        with transaction.atomic(using=alias()):
            # The first statement of the transaction: two who save at once come one after the other.
            models.lock_version(alias())
            try:
                return super().changeform_view(request, object_id, form_url, context)
            except IntegrityError:
                # The form's own checks have passed, so another user created the row in the meantime.
                if not self._row_exists():
                    raise
                self._warn_of_another_user(request)
                return HttpResponseRedirect(self._row_url())

    def get_formset_kwargs(
        self, request: HttpRequest, obj: SamplingPolicy, inline: Any, prefix: str
    ) -> dict[str, object]:
        if obj.pk is None:
            # Rules may be there before the policy.
            obj.pk = SamplingPolicy.ONLY_ID
        kwargs: dict[str, object] = super().get_formset_kwargs(request, obj, inline, prefix)
        return kwargs

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        formsets = context["inline_admin_formsets"]
        if formsets:
            from django_otel.live_sampling import rule_matches

            context["otel"].update(rule_matches.build(formsets[0].formset))
        return super().render_change_form(request, context, *args, **kwargs)

    # --- Saving. ---

    def save_model(self, request: HttpRequest, obj: SamplingPolicy, form: object, change: bool) -> None:
        """Nothing yet: policy and rules are saved together, as one change."""

    def save_related(self, request: HttpRequest, form: Any, formsets: object, change: bool) -> None:
        with models.single_change(alias()):
            if change:
                form.instance.save()
            else:
                form.instance.save(force_insert=True)
            super().save_related(request, form, formsets, change)

    def construct_change_message(self, request: HttpRequest, form: Any, formsets: Any, add: bool = False) -> Any:
        """For the history: old and new value of each changed field."""
        values = {
            admin_history.label(form, name): form.cleaned_data[name] for name in POLICY_FIELDS if name in form.fields
        }
        if add:
            said = [text.list_values(values, always=(admin_history.label(form, "ratio"),))]
        else:
            before = {
                admin_history.label(form, name): form.initial.get(name) for name in POLICY_FIELDS if name in form.fields
            }
            said = [text.list_changes(before, values)]
        for formset in formsets or ():
            said += admin_history.describe_rules(formset)
        return "; ".join(part for part in said if part) or gettext("No fields changed.")

    # --- Small parts. ---

    def _row_exists(self) -> bool:
        return SamplingPolicy.objects.using(alias()).filter(pk=SamplingPolicy.ONLY_ID).exists()

    def _row_url(self) -> str:
        return self.url("change", SamplingPolicy.ONLY_ID)

    def _warn_of_another_user(self, request: HttpRequest) -> None:
        self.message_user(
            request,
            gettext(
                "Not saved: in the meantime another user has created the sampling policy. The form now shows "
                "theirs; change it if you need to."
            ),
            messages.WARNING,
        )
