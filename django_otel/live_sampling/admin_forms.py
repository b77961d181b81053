"""The forms of the sampling policy and its rules in the admin."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.forms.models import BaseInlineFormSet
from django.http import HttpRequest
from django.utils.translation import gettext, gettext_lazy, ngettext, pgettext

from django_otel import models
from django_otel.base.text import visible
from django_otel.live_sampling import follower
from django_otel.live_sampling import wording as text
from django_otel.live_sampling.admin_history import POLICY_FIELDS, RULE_FIELDS, alias, last_author, may_see
from django_otel.models import SamplingPolicy, SamplingRule
from django_otel.sampling.policy import MAX_RULES, METHODS

if TYPE_CHECKING:
    from django.db.models import QuerySet

    _ModelForm = forms.ModelForm[Any]
    _StackedInline = admin.StackedInline[SamplingRule, SamplingPolicy]
    _InlineFormSet = BaseInlineFormSet[SamplingRule, SamplingPolicy, Any]
else:
    # Generic only for the type checker.
    _ModelForm = forms.ModelForm
    _StackedInline, _InlineFormSet = admin.StackedInline, BaseInlineFormSet

_OPEN_END, _GIVEN_END = "open", ""
_ENDS = (
    (_OPEN_END, gettext_lazy("Until changed")),
    *((code, words) for code, _, words in text.DURATIONS),
    (_GIVEN_END, gettext_lazy("Until a time")),
)
_SECONDS = {code: seconds for code, seconds, _ in text.DURATIONS}


class _Number(forms.NumberInput):
    """A number without a needless ".0"."""

    def __init__(self, **attrs: str) -> None:
        super().__init__({"min": "0", "step": "any", **attrs})

    def format_value(self, value: object) -> str | None:
        return f"{value:.10g}" if isinstance(value, float) else super().format_value(value)


class _EndingForm(_ModelForm):
    """A form with an end, which may be chosen as a duration: then the server's clock counts, not the browser's."""

    lasts = forms.ChoiceField(
        label=gettext_lazy("For how long"),
        choices=_ENDS,
        required=False,
        help_text=gettext_lazy(
            "By the server's clock, starting when you save. For any other end, choose “Until a time” and enter "
            "it below."
        ),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["lasts"].initial = _GIVEN_END if self.instance.expires_at else _OPEN_END

    def choose_end(self) -> None:
        """Put the end that was chosen into `expires_at`, and refuse one that has passed."""
        if "expires_at" not in self.cleaned_data:
            return
        lasts, is_typed = self.cleaned_data.get("lasts", _GIVEN_END), "expires_at" in self.changed_data
        if lasts in _SECONDS:
            self.cleaned_data["expires_at"] = text.now() + datetime.timedelta(seconds=_SECONDS[lasts])
            return
        if lasts == _OPEN_END and not (is_typed and self.cleaned_data["expires_at"]):
            self.cleaned_data["expires_at"] = None
        expires_at = self.cleaned_data["expires_at"]
        # An end that has passed may stay while something else is changed.
        is_of_now = is_typed or not self.instance.pk or {"enabled", "ratio"} & set(self.changed_data)
        if expires_at is not None and expires_at <= text.now() and self.cleaned_data.get("enabled", True) and is_of_now:
            self.add_error(
                "expires_at",
                ValidationError(
                    gettext(
                        "%(end)s has passed (it is %(now)s), so this would never apply. "
                        "Choose a later time, or leave it empty."
                    ),
                    code="expired",
                    params={"end": text.show(expires_at), "now": text.show(text.now())},
                ),
            )


class SamplingPolicyForm(_EndingForm):
    #: The version that the form was made from: what was saved since then must not be lost without a word.
    seen_version = forms.IntegerField(required=False, widget=forms.HiddenInput)

    field_order = ("enabled", "ratio", "lasts", "expires_at", "note", "max_per_second", "keep_errors", "keep_slow_s")

    class Meta:
        model = SamplingPolicy
        fields = POLICY_FIELDS
        widgets = {
            "ratio": _Number(max="1", **{"data-otel-ratio": ""}),
            "note": forms.TextInput(attrs={"class": "vTextField", "dir": "auto"}),
            "max_per_second": _Number(),
            "keep_slow_s": _Number(),
        }

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        if "lasts" in self.fields:
            self.fields["lasts"].widget = forms.RadioSelect(choices=_ENDS)
        if "expires_at" in self.fields:
            # The admin's words beside them are not labels.
            for part, name in zip(
                self.fields["expires_at"].widget.widgets, (gettext("Until, date"), gettext("Until, time")), strict=True
            ):
                part.attrs["aria-label"] = name
        # Read with the row where there is one: what is read later may only be newer.
        seen = models.current_version(alias()) if self.instance.pk is None else self.instance.version
        self.fields["seen_version"].initial = seen
        if self.instance.pk is None and not self.is_bound:
            self.initial.setdefault("ratio", follower.status()["base_ratio"])

    def clean(self) -> dict[str, object]:
        cleaned = super().clean() or self.cleaned_data
        self.choose_end()
        seen = cleaned.get("seen_version")
        if seen is not None:
            current = models.lock_version(alias())
            if current != seen:
                self.add_error(None, ValidationError(_describe_conflict(), code="conflict"))
                # A user who has read that may save again.
                data: Any = self.data
                self.data = data.copy()
                self.data[self.add_prefix("seen_version")] = str(current)  # type: ignore[index]
        return cleaned


def _describe_conflict() -> str:
    author = last_author()
    if author is None:
        message = gettext("Not saved: in the meantime another user has changed the policy or its rules.")
    elif author.message:
        message = gettext("Not saved: in the meantime %(user)s has changed the policy or its rules (%(changes)s).")
    else:
        message = gettext("Not saved: in the meantime %(user)s has changed the policy or its rules.")
    if author is not None:
        message %= {"user": visible(author.name), "changes": visible(author.message)}
    advice = gettext(
        "Your input is still here. Check the current policy above; save again to replace it with yours, or "
        "reload the page to start from theirs."
    )
    return f"{message} {advice}"


class SamplingRuleForm(_EndingForm):
    class Meta:
        model = SamplingRule
        fields = RULE_FIELDS
        labels = {"route": gettext_lazy("or route")}
        widgets = {
            "path": forms.TextInput(attrs={"placeholder": "/checkout/*", "spellcheck": "false", "dir": "ltr"}),
            "route": forms.TextInput(
                attrs={
                    "placeholder": "/orders/<int:pk>/",
                    "spellcheck": "false",
                    "list": "django-otel-routes",
                    "dir": "ltr",
                }
            ),
            "ratio": _Number(max="1", list="django-otel-ratios"),
            "expires_at": forms.DateTimeInput(
                format="%Y-%m-%dT%H:%M:%S", attrs={"type": "datetime-local", "step": "1"}
            ),
            "note": forms.TextInput(attrs={"dir": "auto"}),
        }

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        field: Any = self.fields["method"]
        field.choices = [("", pgettext("any method", "any")), *((method, method) for method in METHODS)]

    def clean(self) -> dict[str, object]:
        cleaned = super().clean() or self.cleaned_data
        self.choose_end()
        return cleaned


class SamplingRuleFormSet(_InlineFormSet):
    def __init__(self, data: Any = None, *, prefix: str | None = None, **kwargs: Any) -> None:
        if data is not None and f"{prefix}-TOTAL_FORMS" not in data:
            # A script that sends the policy alone: the rules stay as they are.
            data = data.copy()
            data[f"{prefix}-TOTAL_FORMS"] = data[f"{prefix}-INITIAL_FORMS"] = "0"
        super().__init__(data, prefix=prefix, **kwargs)

    def add_fields(self, form: Any, index: int | None) -> None:
        super().add_fields(form, index)
        form.fields["id"].error_messages["invalid_choice"] = gettext(
            "In the meantime another user has removed this rule. Remove it here as well, or reload the page."
        )

    def clean(self) -> None:
        super().clean()
        # Not `validate_max`: the admin sets `max_num` to 0 for users who may not add any.
        removed = set(map(id, self.deleted_forms))
        kept = [form for form in self.forms if id(form) not in removed and (form.instance.pk or form.has_changed())]
        if len(kept) > MAX_RULES:
            raise ValidationError(
                ngettext(
                    "This is %(number)d rule; expected at most %(most)d. Remove some of them.",
                    "These are %(number)d rules; expected at most %(most)d. Remove some of them.",
                    len(kept),
                ),
                code="too_many_rules",
                params={"number": len(kept), "most": MAX_RULES},
            )

    def in_order(self) -> list[object]:
        """The forms in the order in which their rules are asked; those without a pattern are left out."""

        def place(form: Any) -> tuple[int, float]:
            try:
                priority = int(form["priority"].value() or 0)
            except ValueError:
                priority = 0
            # A rule without a number will be the newest.
            return (-priority, -(form.instance.pk or 1e18 + (form.index or 0)))

        for index, form in enumerate(self.forms):
            form.index = index
        return sorted((form for form in self.forms if form["path"].value() or form["route"].value()), key=place)


class SamplingRuleInline(_StackedInline):
    model = SamplingRule
    form = SamplingRuleForm
    formset = SamplingRuleFormSet
    template = "admin/django_otel/samplingpolicy/rules.html"
    fields = ("path", "route", "method", "ratio", "priority", "lasts", "expires_at", "note")
    extra = 1
    max_num = MAX_RULES
    verbose_name = gettext_lazy("rule")
    verbose_name_plural = gettext_lazy("rules")

    @property
    def media(self) -> forms.Media:
        # The admin's own scripts for inlines do not know this template.
        return forms.Media()

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: object) -> Any:
        # The widgets of the form rather than the admin's.
        return db_field.formfield(**kwargs)

    def get_queryset(self, request: HttpRequest) -> QuerySet[SamplingRule]:
        return super().get_queryset(request).using(alias())

    def has_view_permission(self, request: HttpRequest, obj: SamplingPolicy | None = None) -> bool:
        """Users who may view the policy may view its rules."""
        return may_see(request) or super().has_view_permission(request, obj)
