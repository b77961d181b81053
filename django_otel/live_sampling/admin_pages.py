"""The sampling policy in the admin beside its form: its script's questions, links that trace a visit, no tables.

What a page is made of is imported when it is shown: every process loads the admin, and few show a page of it.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext

from django_otel import models, runtime
from django_otel.base import guard
from django_otel.live_sampling import admin_history
from django_otel.live_sampling import wording as text
from django_otel.live_sampling.admin_history import alias, may_see
from django_otel.live_sampling.row_pages import RowPages, needs_tables
from django_otel.models import SamplingPolicy, SamplingRule

#: Life of a link that traces one visit, in seconds.
_FORCE_TTL_S = 3600
STATUS_NAME = "django_otel_samplingpolicy_status"
#: The pages' own requests are sent at most this often, in seconds.
_POLL_S, _POLL_WHILE_CHANGING_S = 4.0, 0.7


class PolicyPages(RowPages):
    """Views of the policy's pages beside its form."""

    # --- No tables. ---

    def unavailable(self, request: HttpRequest, *, is_answering: bool) -> HttpResponse:
        """The page instead of any other while the rows cannot be reached, with status 503; JSON for the script."""
        if is_answering:
            title = gettext("The tables of the sampling policy are missing")
            problem = gettext(
                'Database "%(database)s" has no tables of the sampling policy, or those of an earlier version.'
            )
        else:
            title = gettext("The database does not answer")
            problem = gettext('Database "%(database)s", which has the sampling policy, does not answer.')
        problem %= {"database": alias()}
        if request.resolver_match is not None and request.resolver_match.url_name == STATUS_NAME:
            _leave_out(request)
            return JsonResponse({"problem": problem}, status=503)
        from django_otel.live_sampling import follower, overview

        status, effective = follower.status(), runtime.current().sampler.policy
        reason = text.source(status["base_source"]) if status["source"] != "admin" else ""
        # Beside the problem its fault would be said twice.
        otel = overview.describe({**status, "error": ""}, None, effective, reason=reason)
        return self.show_unavailable(
            request,
            title,
            problem,
            is_answering=is_answering,
            template="samplingpolicy/unavailable.html",
            otel=otel,
        )

    # --- What the page's script asks, again and again. ---

    @needs_tables
    def status_view(self, request: HttpRequest) -> HttpResponse:
        """Return the effective policy and the version of each process, as JSON."""
        if not may_see(request):
            raise PermissionDenied
        _leave_out(request)
        shown = self.overview()
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
                        "reported_s_ago": process.reported_s_ago,
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
        """Return the routes that the rules of the form would match, saved or not, as JSON."""
        if not (_may_change(request) if request.method == "POST" else may_see(request)):
            raise PermissionDenied
        _leave_out(request)
        from django_otel.live_sampling import rule_matches

        if request.method != "POST":
            return JsonResponse({"routes": [route.label for route in rule_matches.project_routes()]})
        from django_otel.live_sampling.admin_forms import SamplingRuleInline

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
        from django_otel.live_sampling import force

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
                change_message=gettext("Created a link that traces one visit, valid for %(duration)s")
                % {"duration": text.span(_FORCE_TTL_S)},
            )
            self.message_user(
                request,
                format_html(
                    '{} <a href="{}">{}</a> <code dir="ltr">{}</code>',
                    gettext(
                        "This link traces the visit of everyone who opens it, for at most %(duration)s. You "
                        "can add its query parameter to any other address of the site."
                    )
                    % {"duration": text.span(_FORCE_TTL_S)},
                    link,
                    gettext("Open the link"),
                    link,
                ),
            )
        return HttpResponseRedirect(self.url("changelist"))

    def overview(self) -> dict[str, Any]:
        """Return the effective policy and the processes that apply it, for the templates."""
        from django_otel.live_sampling import follower, overview

        row = SamplingPolicy.objects.using(alias()).filter(pk=SamplingPolicy.ONLY_ID).first()
        state = models.read_state(alias())
        status, effective = follower.status(), runtime.current().sampler.policy
        wanted = overview.fingerprint(state)
        processes = overview.list_processes(status, wanted)
        otel = overview.describe(status, row, effective)
        if wanted != overview.own_fingerprint() and overview.is_followed(status):
            otel["warnings"].append(
                gettext("This process has not applied version %(version)s yet; it will within %(seconds)s s.")
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
            "status_url": self.url("status"),
            "routes_url": self.url("routes"),
            "force_url": self.url("force") if runtime.current().config.sampling.force else "",
        }
        return {"otel": otel, "otel_status": status}

    def url(self, page: str, *arguments: object) -> str:
        """Return the address of a page of the policy."""
        return reverse(f"{self.admin_site.name}:django_otel_samplingpolicy_{page}", args=arguments)


def _may_change(request: HttpRequest) -> bool:
    user: Any = request.user
    return bool(user.has_perm("django_otel.change_samplingpolicy"))


def _leave_out(request: HttpRequest) -> None:
    """Neither trace nor metrics: a page that is left open asks all day. From the second time on nothing is begun."""
    from django_otel.requests.record import find

    record = find(request)
    if record is not None:
        with guard.contained("leaving a question of the page out of the telemetry"):
            record.discard()
