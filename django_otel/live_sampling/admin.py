"""The pages of the sampling policy in the admin: the policy with its rules, and what the page's script asks for."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db import Error as DatabaseFault
from django.db import IntegrityError, connections, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.translation import gettext

from django_otel import models, runtime
from django_otel.base import guard
from django_otel.live_sampling import admin_history, follower, force, overview, rule_matches
from django_otel.live_sampling import wording as text
from django_otel.live_sampling.admin_forms import POLICY_FIELDS, SamplingPolicyForm, SamplingRuleInline, may_see
from django_otel.live_sampling.admin_history import alias
from django_otel.live_sampling.assets import Script, Stylesheet
from django_otel.live_sampling.large_forms import allow_many_fields
from django_otel.models import SamplingPolicy, SamplingRule

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[SamplingPolicy]
else:
    # Generic only for the type checker.
    _ModelAdmin = admin.ModelAdmin

#: Life of a link that traces one visit, in seconds.
_FORCE_TTL_S = 3600
_STATUS_NAME = "django_otel_samplingpolicy_status"
#: Addresses whose forms have all the rules.
_LARGE_FORMS = frozenset(f"django_otel_samplingpolicy_{page}" for page in ("add", "change", "routes"))
#: The pages' own requests are sent at most this often, in seconds.
_POLL_S, _POLL_WHILE_CHANGING_S = 4.0, 0.7


def _needs_tables(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Say what to do, rather than fail, where the tables are missing or their database does not answer."""

    @functools.wraps(view)
    def guarded(self: SamplingPolicyAdmin, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            # Under ATOMIC_REQUESTS PostgreSQL would answer nothing more, not even which tables there are.
            is_atomic = connections[alias()].in_atomic_block
            with transaction.atomic(using=alias()) if is_atomic else contextlib.nullcontext():
                return view(self, request, *args, **kwargs)
        except (DatabaseFault, ImproperlyConfigured, OSError):
            are_there = follower.tables_exist(alias())
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
        return super().get_queryset(request).using(alias())

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        first: tuple[str, ...] = ("enabled", "ratio", "lasts", "expires_at", "note")
        may_write = self.has_change_permission(request, obj) if obj is not None else self.has_add_permission(request)
        if not may_write:
            first = tuple(name for name in first if name != "lasts")
        return (
            (gettext("Policy"), {"fields": first}),
            (gettext("Limit and keep"), {"fields": ("max_per_second", "keep_errors", "keep_slow_s")}),
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
        with transaction.atomic(using=alias()):
            # The first statement of the transaction: two who save at once come one after the other.
            models.lock_version(alias())
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
        database = alias()
        if is_answering:
            title = gettext("The tables of the sampling policy are missing")
            problem = gettext(
                'Database "%(database)s" has no tables of the sampling policy, or those of an earlier version.'
            )
        else:
            title = gettext("The database does not answer")
            problem = gettext('Database "%(database)s", which has the sampling policy, does not answer.')
        problem %= {"database": database}
        if request.resolver_match is not None and request.resolver_match.url_name == _STATUS_NAME:
            _leave_out(request)
            return JsonResponse({"problem": problem}, status=503)
        status, in_force = follower.status(), runtime.current().sampler.policy
        reason = text.source(status["base_source"]) if status["source"] != "admin" else ""
        # Beside the problem its fault would be said twice.
        otel = overview.describe({**status, "error": ""}, None, in_force, reason=reason)
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "problem": problem,
            "command": follower.migrate_command(database) if is_answering else "",
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
            context["otel"].update(rule_matches.build(formsets[0].formset))
        return super().render_change_form(request, context, *args, **kwargs)

    # --- Saving. ---

    def save_model(self, request: HttpRequest, obj: SamplingPolicy, form: Any, change: bool) -> None:
        """Nothing yet: policy and rules are saved together, as one change."""

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        with models.single_change(alias()):
            if change:
                form.instance.save()
            else:
                form.instance.save(force_insert=True)
            super().save_related(request, form, formsets, change)

    def construct_change_message(self, request: HttpRequest, form: Any, formsets: Any, add: bool = False) -> Any:
        """For the history: what each changed field was and is."""
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
        return "; ".join(part for part in said if part)

    # --- What the page's script asks, again and again. ---

    @_needs_tables
    def status_view(self, request: HttpRequest) -> HttpResponse:
        """What is in force, and which process applies which version; JSON."""
        if not may_see(request):
            raise PermissionDenied
        _leave_out(request)
        shown = self._overview()
        otel = shown["otel"]
        return JsonResponse(
            {
                "version": otel["version"],
                "in_force": shown["otel_status"],
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
                    name: render_to_string(f"admin/django_otel/samplingpolicy/{name}.html", shown, request)
                    for name in ("in_force", "processes")
                },
            }
        )

    def routes_view(self, request: HttpRequest) -> HttpResponse:
        """Which routes the rules of a form would match, as it is now, saved or not; JSON."""
        if not (_may_change(request) if request.method == "POST" else may_see(request)):
            raise PermissionDenied
        _leave_out(request)
        if request.method != "POST":
            return JsonResponse({"routes": [route.label for route in rule_matches.project_routes()]})
        formset_class = SamplingRuleInline(SamplingPolicy, self.admin_site).get_formset(request, None)
        data = request.POST.copy()
        prefix = formset_class.get_default_prefix()
        # As if all were new: what is asked for is what they would match, not what may be saved.
        data[f"{prefix}-INITIAL_FORMS"] = "0"
        formset: Any = formset_class(
            data,
            instance=SamplingPolicy(pk=SamplingPolicy.ONLY_ID),
            prefix=prefix,
            queryset=SamplingRule.objects.using(alias()).none(),
        )
        if not formset.management_form.is_valid():
            return JsonResponse({"problem": gettext("The form is incomplete.")}, status=400)
        for form in formset.forms:
            number = form["id"].value()
            # The number counts among rules of equal priority.
            form.instance.pk = int(number) if number and str(number).isdecimal() else None
        preview = rule_matches.build(formset)
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
                object_repr=gettext("sampling policy"),
                action_flag=CHANGE,
                change_message=gettext("Link made that traces one visit, for %(duration)s")
                % {"duration": text.span(_FORCE_TTL_S)},
            )
            self.message_user(
                request,
                format_html(
                    '{} <a href="{}">{}</a> <code dir="ltr">{}</code>',
                    gettext(
                        "This link traces the visit of everyone who opens it, for at most %(duration)s. Its parameter "
                        "works behind any other address of the site as well."
                    )
                    % {"duration": text.span(_FORCE_TTL_S)},
                    link,
                    gettext("Open the link"),
                    link,
                ),
            )
        return HttpResponseRedirect(self._url("changelist"))

    # --- Small parts. ---

    def _row_exists(self) -> bool:
        return SamplingPolicy.objects.using(alias()).filter(pk=SamplingPolicy.ONLY_ID).exists()

    def _url(self, page: str, *arguments: object) -> str:
        return reverse(f"{self.admin_site.name}:django_otel_samplingpolicy_{page}", args=arguments)

    def _row_url(self) -> str:
        return self._url("change", SamplingPolicy.ONLY_ID)

    def _say_somebody_was_first(self, request: HttpRequest) -> None:
        self.message_user(
            request,
            gettext(
                "Not saved: another user has made the sampling policy meanwhile. This is theirs; change it if need be."
            ),
            messages.WARNING,
        )

    def _overview(self) -> dict[str, Any]:
        row = SamplingPolicy.objects.using(alias()).filter(pk=SamplingPolicy.ONLY_ID).first()
        state = models.read_state(alias())
        status, in_force = follower.status(), runtime.current().sampler.policy
        wanted = overview.fingerprint(state)
        processes = overview.list_processes(status, wanted)
        otel = overview.describe(status, row, in_force)
        if wanted != overview.own_fingerprint() and overview.is_followed(status):
            otel["warnings"].append(
                gettext("This process has not applied version %(version)s yet; it does so within %(seconds)s s.")
                % {"version": state.version, "seconds": f"{status['refresh_s']:g}"}
            )
        changed = admin_history.last_change(state.version)
        if changed:
            otel["facts"].append((gettext("Version"), changed))
        otel |= {
            "version": state.version,
            "processes": processes,
            **overview.summarise(
                processes, state.version, is_policy=bool(wanted), is_followed=overview.is_followed(status)
            ),
            "promise": text.promise(status["refresh_s"]) if status["live"] else "",
            "status_url": self._url("status"),
            "routes_url": self._url("routes"),
            "force_url": self._url("force") if runtime.current().config.sampling.force else "",
        }
        return {"otel": otel, "otel_status": status}


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
