"""The admin page of the sampling policy: its row, its rules, their history, what is in force and in which process."""

from __future__ import annotations

import contextlib
import datetime
import functools
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ImproperlyConfigured, PermissionDenied, ValidationError
from django.db import Error as DatabaseFault
from django.db import IntegrityError, connections, router, transaction
from django.forms.models import BaseInlineFormSet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext

from django_otel import models, runtime
from django_otel.base import guard
from django_otel.base.frozen import record
from django_otel.live_sampling import follower, force
from django_otel.live_sampling import wording as text
from django_otel.live_sampling.assets import Script, Stylesheet
from django_otel.live_sampling.large_forms import allow_many_fields
from django_otel.models import SamplingPolicy, SamplingRule, SamplingVersion
from django_otel.sampling.policy import MAX_PATTERN, MAX_RULES
from django_otel.sampling.sampler import InForce

if TYPE_CHECKING:
    from django_otel.live_sampling import preview

    _ModelForm = forms.ModelForm[Any]
    _ModelAdmin = admin.ModelAdmin[SamplingPolicy]
    _StackedInline = admin.StackedInline[SamplingRule, SamplingPolicy]
    _InlineFormSet = BaseInlineFormSet[SamplingRule, SamplingPolicy, Any]
else:
    # Generic only for the type checker.
    _ModelForm, _ModelAdmin = forms.ModelForm, admin.ModelAdmin
    _StackedInline, _InlineFormSet = admin.StackedInline, BaseInlineFormSet

#: Routes that are named for a rule before the rest is only counted.
_ROUTES_SHOWN = 12
#: Life of a link that traces one visit, in seconds.
_FORCE_TTL_S = 3600
_STATUS_NAME = "django_otel_samplingpolicy_status"
#: Addresses whose forms have all the rules.
_LARGE_FORMS = frozenset(f"django_otel_samplingpolicy_{page}" for page in ("add", "change", "routes"))
#: The pages' own requests are sent at most this often, in seconds.
_POLL_S, _POLL_WHILE_CHANGING_S = 4.0, 0.7

_POLICY_FIELDS = ("enabled", "ratio", "expires_at", "note", "max_per_second", "keep_errors", "keep_slow_s")
_RULE_FIELDS = ("path", "route", "method", "ratio", "priority", "expires_at", "note")

_OPEN_END, _GIVEN_END = "open", ""
_ENDS = (
    (_OPEN_END, "Until changed"),
    *((code, words) for code, _, words in text.DURATIONS),
    (_GIVEN_END, "Until a time"),
)
_SECONDS = {code: seconds for code, seconds, _ in text.DURATIONS}


class _Number(forms.NumberInput):
    """A number without a needless ".0"."""

    def __init__(self, **attrs: str) -> None:
        super().__init__({"min": "0", "step": "any", **attrs})

    def format_value(self, value: Any) -> Any:
        return f"{value:.10g}" if isinstance(value, float) else super().format_value(value)


class _EndingForm(_ModelForm):
    """A form with an end, which may be chosen as a duration: then the server's clock counts, not the browser's."""

    lasts = forms.ChoiceField(
        label="For how long",
        choices=_ENDS,
        required=False,
        help_text="By the server's clock, from the moment of saving. "
        "For a time of your own choose “Until a time” and enter it below.",
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
        # What has run out by itself may stay as it is while something else is changed.
        is_of_now = is_typed or not self.instance.pk or {"enabled", "ratio"} & set(self.changed_data)
        if expires_at is not None and expires_at <= text.now() and self.cleaned_data.get("enabled", True) and is_of_now:
            self.add_error(
                "expires_at",
                ValidationError(
                    f"{text.show(expires_at)} has passed (it is {text.show(text.now())}), so this would never apply. "
                    "Choose a later time, or leave it empty.",
                    code="expired",
                ),
            )


class SamplingPolicyForm(_EndingForm):
    #: The version that the form was made from: what was saved since then must not be lost without a word.
    seen_version = forms.IntegerField(required=False, widget=forms.HiddenInput)

    field_order = ("enabled", "ratio", "lasts", "expires_at", "note", "max_per_second", "keep_errors", "keep_slow_s")

    class Meta:
        model = SamplingPolicy
        fields = _POLICY_FIELDS
        widgets = {
            "ratio": _Number(max="1", **{"data-otel-ratio": ""}),
            "note": forms.TextInput(attrs={"class": "vTextField"}),
            "max_per_second": _Number(),
            "keep_slow_s": _Number(),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "lasts" in self.fields:
            self.fields["lasts"].widget = forms.RadioSelect(choices=_ENDS)
        if "expires_at" in self.fields:
            # The admin's words beside them are no labels.
            for part, name in zip(
                self.fields["expires_at"].widget.widgets, ("Until, date", "Until, time"), strict=True
            ):
                part.attrs["aria-label"] = name
        # Read with the row where there is one: what is read later may only be newer.
        seen = models.current_version(_alias()) if self.instance.pk is None else self.instance.version
        self.fields["seen_version"].initial = seen
        if self.instance.pk is None and not self.is_bound:
            self.initial.setdefault("ratio", follower.status()["base_ratio"])

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        self.choose_end()
        seen = cleaned.get("seen_version")
        if seen is not None:
            current = models.lock_version(_alias())
            if current != seen:
                self.add_error(None, ValidationError(_describe_conflict(), code="conflict"))
                # Whoever has read that may save again.
                data: Any = self.data
                self.data = data.copy()
                self.data[self.add_prefix("seen_version")] = str(current)  # type: ignore[index]
        return cleaned


def _describe_conflict() -> str:
    author = _last_author()
    who = "somebody else" if author is None else author.name
    what = f" ({author.message})" if author is not None and author.message else ""
    return (
        f"Not saved: {who} has changed the policy or its rules meanwhile{what}. What you have entered is still here. "
        "Look at what is in force above; save again to put yours in its place, or reload the page to start from theirs."
    )


class SamplingRuleForm(_EndingForm):
    class Meta:
        model = SamplingRule
        fields = _RULE_FIELDS
        labels = {"route": "or route"}
        widgets = {
            "path": forms.TextInput(attrs={"placeholder": "/checkout/*", "spellcheck": "false"}),
            "route": forms.TextInput(
                attrs={"placeholder": "/orders/<int:pk>/", "spellcheck": "false", "list": "django-otel-routes"}
            ),
            "ratio": _Number(max="1", list="django-otel-ratios"),
            "expires_at": forms.DateTimeInput(
                format="%Y-%m-%dT%H:%M:%S", attrs={"type": "datetime-local", "step": "1"}
            ),
            "note": forms.TextInput(),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["method"].choices = [("", "any"), *((method, method) for method in models.METHODS)]  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
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
        form.fields["id"].error_messages["invalid_choice"] = (
            "Somebody else has removed this rule meanwhile. Remove it here as well, or reload the page."
        )

    def clean(self) -> None:
        super().clean()
        # Not `validate_max`: the admin sets `max_num` to 0 for users who may not add any.
        removed = set(map(id, self.deleted_forms))
        kept = [form for form in self.forms if id(form) not in removed and (form.instance.pk or form.has_changed())]
        if len(kept) > MAX_RULES:
            raise ValidationError(
                gettext("These are %(number)d rules; expected at most %(most)d. Remove some of them.")
                % {"number": len(kept), "most": MAX_RULES},
                code="too_many_rules",
            )

    def in_order(self) -> list[Any]:
        """The forms in the order in which their rules are asked; those without a pattern are left out."""

        def place(form: Any) -> tuple[int, float]:
            try:
                priority = int(form["priority"].value() or 0)
            except ValueError:
                priority = 0
            # What has no number yet will be the newest.
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
    verbose_name = "rule"
    verbose_name_plural = "rules"

    @property
    def media(self) -> forms.Media:
        # The admin's own scripts for inlines do not know this template.
        return forms.Media()

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        # The widgets of the form rather than the admin's.
        return db_field.formfield(**kwargs)

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).using(_alias())

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Who sees the policy sees its rules: without them it could not be understood."""
        return _may_see(request) or super().has_view_permission(request, obj)


def _needs_tables(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Say what to do, rather than fail, where the tables are missing or their database does not answer."""

    @functools.wraps(view)
    def guarded(self: SamplingPolicyAdmin, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            # Under ATOMIC_REQUESTS PostgreSQL would answer nothing more, not even which tables there are.
            is_atomic = connections[_alias()].in_atomic_block
            with transaction.atomic(using=_alias()) if is_atomic else contextlib.nullcontext():
                return view(self, request, *args, **kwargs)
        except (DatabaseFault, ImproperlyConfigured, OSError):
            are_there = follower.tables_exist(_alias())
            if are_there:
                # Something else, which is not to be hidden.
                raise
            return self.unavailable(request, is_answering=are_there is not None)

    return guarded


@admin.register(SamplingPolicy)
class SamplingPolicyAdmin(_ModelAdmin):
    """The one row, without a list: its address leads to the row, or to the form that makes it."""

    form = SamplingPolicyForm
    inlines = (SamplingRuleInline,)

    class Media:
        css = {"all": (Stylesheet("django_otel/admin.css"),)}
        js = (Script("django_otel/sampling.js"),)

    def get_urls(self) -> list[URLPattern]:
        """The addresses that the page's script asks, before Django's own."""
        own = [
            path("status/", self.admin_site.admin_view(self.status_view), name=_STATUS_NAME),
            path("force/", self.admin_site.admin_view(self.force_view), name="django_otel_samplingpolicy_force"),
            path("routes/", self.admin_site.admin_view(self.routes_view), name="django_otel_samplingpolicy_routes"),
        ]
        found = [*own, *super().get_urls()]
        for pattern in found:
            if pattern.name in _LARGE_FORMS:
                pattern.callback = allow_many_fields(pattern.callback, self.admin_site.has_permission)
        return found

    def get_queryset(self, request: HttpRequest) -> Any:
        """From the alias that is written to: a replica may not have what was saved a moment ago."""
        return super().get_queryset(request).using(_alias())

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        first: tuple[str, ...] = ("enabled", "ratio", "lasts", "expires_at", "note")
        may_write = self.has_change_permission(request, obj) if obj is not None else self.has_add_permission(request)
        if not may_write:
            first = tuple(name for name in first if name != "lasts")
        return (
            ("Policy", {"fields": first}),
            ("Limit and keep", {"fields": ("max_per_second", "keep_errors", "keep_slow_s")}),
        )

    # --- The pages. ---

    @_needs_tables
    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if self._row_exists():
            return HttpResponseRedirect(self._row_url())
        if self.has_add_permission(request):
            return HttpResponseRedirect(self._url("add"))
        return super().changelist_view(request, {**(extra_context or {}), **self._overview()})

    @_needs_tables
    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if self._row_exists():
            if request.method == "POST":
                self._say_somebody_was_first(request)
            return HttpResponseRedirect(self._row_url())
        return super().add_view(request, form_url, extra_context)

    @_needs_tables
    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        context = {
            **(extra_context or {}),
            **self._overview(),
            # There is no other to add, and every button stays on this page.
            "show_save_and_add_another": False,
            "show_save_and_continue": False,
        }
        if request.method != "POST":
            return super().changeform_view(request, object_id, form_url, context)
        with transaction.atomic(using=_alias()):
            # The first statement of the transaction: two who save at once come one after the other.
            models.lock_version(_alias())
            try:
                return super().changeform_view(request, object_id, form_url, context)
            except IntegrityError:
                # The form's own checks have passed, so the row was made meanwhile by somebody else.
                if not self._row_exists():
                    raise
                self._say_somebody_was_first(request)
                return HttpResponseRedirect(self._row_url())

    @_needs_tables
    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        return super().delete_view(request, object_id, extra_context)

    @_needs_tables
    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        return super().history_view(request, object_id, extra_context)

    def unavailable(self, request: HttpRequest, *, is_answering: bool) -> HttpResponse:
        """The page instead of any other while the rows cannot be reached, with status 503; JSON for the script."""
        if not (self.has_view_or_change_permission(request) or self.has_add_permission(request)):
            raise PermissionDenied
        alias = _alias()
        if is_answering:
            title = "The tables of the sampling policy are missing"
            problem = f'Database "{alias}" has no tables of the sampling policy, or those of an earlier version.'
        else:
            title = "The database does not answer"
            problem = f'Database "{alias}", which has the sampling policy, does not answer.'
        if request.resolver_match is not None and request.resolver_match.url_name == _STATUS_NAME:
            _leave_out(request)
            return JsonResponse({"problem": problem}, status=503)
        status, in_force = follower.status(), runtime.current().sampler.policy
        reason = f"Set by {text.source(status['base_source'])}." if status["source"] != "admin" else ""
        # Beside the problem its fault would be said twice.
        otel = describe({**status, "error": ""}, None, in_force, reason=reason)
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "problem": problem,
            "command": follower.migrate_command(alias) if is_answering else "",
            "is_lost": request.method == "POST",
            "otel": otel,
        }
        return TemplateResponse(request, "admin/django_otel/samplingpolicy/unavailable.html", context, status=503)

    def get_formset_kwargs(self, request: HttpRequest, obj: Any, inline: Any, prefix: str) -> dict[str, Any]:
        if obj.pk is None:
            # Rules may be there before the policy.
            obj.pk = SamplingPolicy.ONLY_ID
        kwargs: dict[str, Any] = super().get_formset_kwargs(request, obj, inline, prefix)
        return kwargs

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        formsets = context["inline_admin_formsets"]
        if formsets:
            context["otel"].update(_build_preview(formsets[0].formset))
        return super().render_change_form(request, context, *args, **kwargs)

    # --- Saving. ---

    def save_model(self, request: HttpRequest, obj: SamplingPolicy, form: Any, change: bool) -> None:
        """Nothing yet: policy and rules are saved together, as one change."""

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        with models.single_change(_alias()):
            if change:
                form.instance.save()
            else:
                form.instance.save(force_insert=True)
            super().save_related(request, form, formsets, change)

    def construct_change_message(self, request: HttpRequest, form: Any, formsets: Any, add: bool = False) -> Any:
        """For the history: what each changed field was and is."""
        values = {_label(form, name): form.cleaned_data[name] for name in _POLICY_FIELDS if name in form.fields}
        if add:
            said = [text.list_values(values, always=("Ratio",))]
        else:
            before = {_label(form, name): form.initial.get(name) for name in _POLICY_FIELDS if name in form.fields}
            said = [text.list_changes(before, values)]
        for formset in formsets or ():
            said += _describe_rules(formset)
        return "; ".join(part for part in said if part)

    # --- What the page's script asks, again and again. ---

    @_needs_tables
    def status_view(self, request: HttpRequest) -> HttpResponse:
        """What is in force, and which process applies which version; JSON."""
        if not _may_see(request):
            raise PermissionDenied
        _leave_out(request)
        overview = self._overview()
        otel = overview["otel"]
        return JsonResponse(
            {
                "version": otel["version"],
                "in_force": overview["otel_status"],
                "processes": [
                    {
                        "host": process.host,
                        "pid": process.pid,
                        "version": process.version,
                        "is_current": process.is_current,
                        "command": process.command,
                        "applied_s_ago": process.applied_s_ago,
                        "running_s": process.running_s,
                        "told_s_ago": process.told_s_ago,
                        "fault": process.fault,
                    }
                    for process in otel["processes"]
                ],
                "summary": otel["summary"],
                "is_settled": otel["is_settled"],
                "next_s": _POLL_S if otel["is_settled"] else _POLL_WHILE_CHANGING_S,
                "html": {
                    name: render_to_string(f"admin/django_otel/samplingpolicy/{name}.html", overview, request)
                    for name in ("in_force", "processes")
                },
            }
        )

    def routes_view(self, request: HttpRequest) -> HttpResponse:
        """Which routes the rules of a form would match, as it is now, saved or not; JSON."""
        if not (_may_change(request) if request.method == "POST" else _may_see(request)):
            raise PermissionDenied
        _leave_out(request)
        if request.method != "POST":
            return JsonResponse({"routes": [route.label for route in _project_routes()]})
        formset_class = SamplingRuleInline(SamplingPolicy, self.admin_site).get_formset(request, None)
        data = request.POST.copy()
        prefix = formset_class.get_default_prefix()
        # As if all were new: what is asked for is what they would match, not what may be saved.
        data[f"{prefix}-INITIAL_FORMS"] = "0"
        formset: Any = formset_class(
            data,
            instance=SamplingPolicy(pk=SamplingPolicy.ONLY_ID),
            prefix=prefix,
            queryset=SamplingRule.objects.using(_alias()).none(),
        )
        if not formset.management_form.is_valid():
            return JsonResponse({"problem": "The form is not whole."}, status=400)
        for form in formset.forms:
            number = form["id"].value()
            # The number counts among rules of equal priority.
            form.instance.pk = int(number) if number and str(number).isdecimal() else None
        preview = _build_preview(formset)
        return JsonResponse(
            {
                "total": preview["routes_total"],
                "rules": [
                    {"summary": form.preview.summary, "routes": form.preview.routes, "more": form.preview.more}
                    for form in formset.forms
                ],
            }
        )

    # --- A link that traces one visit. ---

    def force_view(self, request: HttpRequest) -> HttpResponse:
        """Make a link that traces one visit and show it, once; a button of the page, where `SAMPLING.FORCE` is on."""
        if not self.has_change_permission(request) or not runtime.current().config.sampling.force:
            raise PermissionDenied
        if request.method == "POST":
            user: Any = request.user
            token = force.make_token(user, _FORCE_TTL_S, "django_otel.change_samplingpolicy")
            link = request.build_absolute_uri(f"{force.site_prefix(request)}?{force.PARAMETER}={quote(token)}")
            LogEntry.objects.create(
                user_id=user.pk,
                # The key: the object may be a replica's, and a router refuse it.
                content_type_id=ContentType.objects.get_for_model(SamplingPolicy).pk,
                object_id=str(SamplingPolicy.ONLY_ID),
                object_repr="sampling policy",
                action_flag=CHANGE,
                change_message=f"Link made that traces one visit, for {text.span(_FORCE_TTL_S)}",
            )
            self.message_user(
                request,
                format_html(
                    'Whoever opens <a href="{}">this link</a> is traced for the rest of the visit, at most {}. '
                    "The parameter may stand behind any other address of the site as well: <code>{}</code>",
                    link,
                    text.span(_FORCE_TTL_S),
                    link,
                ),
            )
        return HttpResponseRedirect(self._url("changelist"))

    # --- Small parts. ---

    def _row_exists(self) -> bool:
        return SamplingPolicy.objects.using(_alias()).filter(pk=SamplingPolicy.ONLY_ID).exists()

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

    def _overview(self) -> dict[str, Any]:
        row = SamplingPolicy.objects.using(_alias()).filter(pk=SamplingPolicy.ONLY_ID).first()
        state = models.read_state(_alias())
        status, in_force = follower.status(), runtime.current().sampler.policy
        wanted = _fingerprint(state)
        processes = _processes(status, wanted)
        otel = describe(status, row, in_force)
        if wanted != _own_fingerprint() and _is_followed(status):
            otel["warnings"].append(
                f"This process has not yet applied version {state.version}; "
                f"it does so within {status['refresh_s']:g} s."
            )
        changed = _last_change()
        if changed:
            otel["facts"].append(("Version", f"{state.version}, {changed}"))
        otel |= {
            "version": state.version,
            "processes": processes,
            **_summarise(processes, state.version, is_policy=bool(wanted), is_followed=_is_followed(status)),
            "status_url": self._url("status"),
            "routes_url": self._url("routes"),
            "force_url": self._url("force") if runtime.current().config.sampling.force else "",
        }
        return {"otel": otel, "otel_status": status}


def _alias() -> str:
    return router.db_for_write(SamplingPolicy)


def _may_see(request: HttpRequest) -> bool:
    user: Any = request.user
    return bool(user.has_perm("django_otel.view_samplingpolicy") or user.has_perm("django_otel.change_samplingpolicy"))


def _may_change(request: HttpRequest) -> bool:
    user: Any = request.user
    return bool(user.has_perm("django_otel.change_samplingpolicy"))


def _leave_out(request: HttpRequest) -> None:
    """Neither trace nor metrics: a page that is left open asks all day. From the second time on nothing is begun."""
    from django_otel.requests.observation import find

    observation = find(request)
    if observation is not None:
        with guard.contained("leaving a question of the page out of the telemetry"):
            observation.discard()


# --- The history. ---


def _label(form: Any, name: str) -> str:
    label = form.fields[name].label or name
    return str(label)[:1].upper() + str(label)[1:]


def _describe_rules(formset: Any) -> list[str]:
    said = []
    for form in formset.forms:
        if form in formset.deleted_forms:
            if form.instance.pk or form.initial.get("ratio") is not None:
                said.append(f"Rule {_initial_name(form)} removed")
        elif form.has_changed():
            values = {_label(form, name): form.cleaned_data.get(name) for name in _RULE_FIELDS}
            if form in formset.initial_forms:
                before = {_label(form, name): form.initial.get(name) for name in _RULE_FIELDS}
                changes = text.list_changes(before, values)
                said += [f"Rule {_initial_name(form)} changed ({changes})"] if changes else []
            else:
                for name in ("path", "route", "method"):
                    values.pop(_label(form, name))
                said.append(
                    f"Rule {text.rule_name(form.instance)} added ({text.list_values(values, always=('Ratio',))})"
                )
    return said


def _initial_name(form: Any) -> str:
    pattern = form.initial.get("path") or form.initial.get("route") or ""
    return f"{form.initial.get('method') or ''} {pattern}".strip()


@record
class _Author:
    name: str
    message: str


def _last_author() -> _Author | None:
    """Who made the change that the version is of; None when that is not in the history."""
    versions = SamplingVersion._base_manager.using(_alias()).filter(pk=SamplingVersion.ONLY_ID)
    changed_at = next(iter(versions.values_list("changed_at", flat=True)[:1]), None)
    if changed_at is None:
        return None
    content_type = ContentType.objects.get_for_model(SamplingPolicy)
    entries = (
        LogEntry.objects.using(router.db_for_write(LogEntry))
        .filter(
            content_type_id=content_type.pk,
            object_id=str(SamplingPolicy.ONLY_ID),
            # The entry is written after the change, in the same transaction.
            action_time__gte=changed_at,
        )
        .select_related("user")
    )
    entry = entries.order_by("action_time").first()
    return None if entry is None else _Author(str(entry.user), entry.get_change_message())


def _last_change() -> str:
    """When and by whom, for a reader; empty when nothing was ever changed."""
    versions = SamplingVersion._base_manager.using(_alias()).filter(pk=SamplingVersion.ONLY_ID)
    changed_at = next(iter(versions.values_list("changed_at", flat=True)[:1]), None)
    if changed_at is None:
        return ""
    author = _last_author()
    ago_s = timezone.now().timestamp() - (follower.epoch_s(changed_at) or 0.0)
    return f"saved {text.span(ago_s)} ago" + (f" by {author.name}" if author is not None else "")


# --- What is in force, in words. ---


def describe(
    status: dict[str, Any], row: SamplingPolicy | None, in_force: InForce, *, reason: str = ""
) -> dict[str, Any]:
    """What this process applies in words: `headline`, `reason`, `facts` (label, value), `rules` and `warnings`.

    `reason` stands in place of the one that `row` gives, where nobody knows the row.
    """
    headline = f"{text.percent(status['ratio'])} of new traces are recorded"
    reason = reason or _reason(status, row)
    if not status["enabled"]:
        headline, reason = "Nothing is recorded", "Telemetry is off in this process."
    facts: list[tuple[str, str]] = []
    if status["since_s"] is not None:
        facts.append(("Since", text.at(status["since_s"])))
    if status["source"] == "admin":
        if status["expires_at_s"] is not None:
            facts.append(("Until", text.until(status["expires_at_s"])))
        facts.append(("Then", f"{text.percent(status['base_ratio'])}, from {text.source(status['base_source'])}"))
    if in_force.max_per_second is not None:
        facts.append(("Limit", text.limit(in_force.max_per_second)))
    kept = text.kept(in_force.keep_errors, in_force.keep_slow_s)
    if kept:
        facts.append(("Kept", kept))
    if status["source"] == "admin" and status["note"]:
        facts.append(("Note", status["note"]))
    facts.append(("Process", f"pid {status['pid']}"))
    rules = [
        {
            "name": rule.label,
            "share": text.percent(rule.ratio),
            "until": "" if rule.expires_at_s is None else text.until(rule.expires_at_s),
            "source": "" if source == "admin" else "settings",
        }
        for rule, source in zip(in_force.rules, in_force.rule_sources, strict=True)
    ]
    return {
        "headline": headline,
        "reason": reason,
        "facts": facts,
        "rules": rules if status["enabled"] else [],
        "warnings": _warnings(status, row),
    }


def _reason(status: dict[str, Any], row: SamplingPolicy | None) -> str:
    if status["source"] == "admin":
        return f"Set by the policy on this page, version {status['version']}."
    source = f"Set by {text.source(status['base_source'])}"
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
    if status["error"]:
        found.append(status["error"])
    return found


# --- The processes. ---


@record
class _Process:
    """A process as the page shows it. Units: seconds."""

    host: str
    pid: int
    #: Of the management command that it is; empty for a server's worker.
    command: str
    #: 0 where nothing of the policy applies.
    version: int
    is_current: bool
    is_self: bool
    applied_s_ago: float | None
    running_s: float | None
    #: Seconds since another host has told this; 0 for this host's.
    told_s_ago: float
    fault: str = ""

    @property
    def shown_version(self) -> str:
        return str(self.version) if self.version else "settings"

    @property
    def applied(self) -> str:
        return "at its start" if self.applied_s_ago is None else f"{text.span(self.applied_s_ago)} ago"

    @property
    def told(self) -> str:
        return f"{text.span(self.told_s_ago)} ago" if self.told_s_ago else ""

    @property
    def running(self) -> str:
        return "" if self.running_s is None else f"for {text.span(self.running_s)}"


def _fingerprint(state: models.SamplingState) -> str:
    """What a process says that has applied these rows; empty where the settings apply."""
    try:
        policy = follower.policy_from_state(state)
    except (ValueError, TypeError, OverflowError):
        # Whoever reads them keeps to the settings.
        return ""
    return "" if policy is None else policy.fingerprint


def _own_fingerprint() -> str:
    policy = runtime.current().sampler.live
    return "" if policy is None else policy.fingerprint


def _is_followed(status: dict[str, Any]) -> bool:
    return bool(status["enabled"] and status["live"] and not status["foreign"])


def _processes(status: dict[str, Any], wanted: str) -> list[_Process]:
    """Every living process, this one first."""
    now_s = timezone.now().timestamp()

    def since(epoch_s: Any) -> float | None:
        return max(0.0, now_s - epoch_s) if isinstance(epoch_s, float | int) else None

    members = [*follower.processes(), *follower.processes_elsewhere()]
    if not any(member.get("is_here") for member in members):
        # One that does not follow, or has not begun to.
        policy = runtime.current().sampler.live
        own = {
            "host": socket.gethostname(), "pid": status["pid"], "version": policy.version if policy else 0,
            "fingerprint": _own_fingerprint(), "applied_at_s": status["since_s"], "is_here": True,
        }  # fmt: skip
        members = [own, *members]
    found = [
        _Process(
            host=str(member.get("host", "")),
            pid=int(member.get("pid", 0)),
            command=str(member.get("command") or ""),
            version=int(member.get("version") or 0) if member.get("fingerprint") else 0,
            is_current=member.get("fingerprint") == wanted,
            is_self=bool(member.get("is_here")),
            applied_s_ago=since(member.get("applied_at_s")),
            running_s=since(member.get("started_at_s")),
            told_s_ago=float(member.get("told_s_ago") or 0.0),
            fault=str(member.get("error") or ""),
        )
        for member in members
    ]
    return sorted(found, key=lambda process: (not process.is_self, process.host, process.pid))


def _summarise(processes: Sequence[_Process], version: int, *, is_policy: bool, is_followed: bool) -> dict[str, Any]:
    if not is_followed:
        return {"summary": "This process does not follow the policy.", "is_settled": True, "is_followed": False}
    current, total = sum(process.is_current for process in processes), len(processes)
    what = f"version {version}" if is_policy or not version else f"version {version}: the settings"
    if total == 1:
        words = f"The one process that is known {'applies' if current else 'does not yet apply'} {what}."
    elif current == total:
        words = f"All {total} processes apply {what}."
    else:
        words = f"{current} of {total} processes apply {what}."
    return {"summary": words, "is_settled": current == total, "is_followed": True}


# --- What rules match. ---


@record
class _Preview:
    summary: str
    routes: list[dict[str, str]]
    more: int


def _project_routes() -> Sequence[preview.ProjectRoute]:
    from django_otel.live_sampling import preview

    # The page must come up when the URLconf is broken for another part of it.
    with guard.contained("reading the URLconf"):
        return preview.project_routes()
    return ()


@record
class _Entered:
    path: str
    route: str
    method: str


def _build_preview(formset: Any) -> dict[str, Any]:
    """Gives each form of the formset its `preview`."""
    routes = _project_routes()
    ordered = formset.in_order()
    entered = []
    for form in ordered:
        rule = SamplingRule(
            **{name: str(form[name].value() or "")[:MAX_PATTERN] for name in ("path", "route", "method")}
        )
        rule.normalise()
        # Of both only one may be saved.
        entered.append(_Entered(rule.path, "" if rule.path else rule.route, rule.method))
    from django_otel.live_sampling import preview

    matches: list[list[preview.Match] | None] = [[] for _ in entered]
    with guard.contained("matching rules with the routes of the project"):
        matches = preview.match_rules(entered, routes)
    for form in formset.forms:
        form.preview = None
    for form, found in zip(ordered, matches, strict=True):
        form.preview = _describe_matches(found, len(routes))
    for form in formset.forms:
        if form.preview is None:
            form.preview = _Preview("", [], 0)
        if form.instance.pk and form.instance.ratio is not None:
            form.name, form.share = text.rule_name(form.instance), text.percent(form.instance.ratio)
            end_s = follower.epoch_s(form.instance.expires_at)
            form.is_over = end_s is not None and end_s <= timezone.now().timestamp()
    return {"routes_total": len(routes), "routes": [route.label for route in routes][:500]}


def _describe_matches(found: Sequence[preview.Match] | None, total: int) -> _Preview:
    if found is None:
        return _Preview("Too complex to say which routes it matches.", [], 0)
    if not found:
        return _Preview("Matches no route of the project.", [], 0)
    taken = sum(match.is_taken for match in found)
    summary = f"Matches {len(found)} of {total} route{'' if total == 1 else 's'}"
    if taken == len(found):
        summary += ", all of them decided by rules before this one"
    elif taken:
        summary += f", {taken} of them decided by rules before this one"
    shown = [
        {
            "route": match.route,
            "kind": "taken" if match.is_taken else "whole" if match.is_whole else "part",
            "note": "decided by a rule before" if match.is_taken else "" if match.is_whole else "some of its paths",
        }
        for match in found[:_ROUTES_SHOWN]
    ]
    return _Preview(f"{summary}.", shown, len(found) - len(shown))


# Last: registers the pages of the console.
import django_otel.console.entries  # noqa: E402, F401
