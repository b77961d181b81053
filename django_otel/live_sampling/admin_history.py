"""The history of the sampling policy in the admin: changes of a form, and the author of the current version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib.admin.models import LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db import router
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext

from django_otel.base.frozen import record
from django_otel.base.text import visible
from django_otel.live_sampling import policy_rows
from django_otel.live_sampling import wording as text
from django_otel.models import SamplingPolicy, SamplingVersion

if TYPE_CHECKING:
    from django import forms

    from django_otel.live_sampling.admin_forms import SamplingRuleFormSet

POLICY_FIELDS = ("enabled", "ratio", "expires_at", "note", "max_per_second", "keep_errors", "keep_slow_s")
RULE_FIELDS = ("path", "route", "method", "ratio", "priority", "expires_at", "note")


def alias() -> str:
    """The database alias that the policy is written to, and read from."""
    return router.db_for_write(SamplingPolicy)


def may_see(request: HttpRequest) -> bool:
    """Return whether the user may see the policy and its rules."""
    user = request.user
    return bool(user.has_perm("django_otel.view_samplingpolicy") or user.has_perm("django_otel.change_samplingpolicy"))


def label(form: forms.BaseForm, name: str) -> str:
    label = form.fields[name].label or name
    return str(label)[:1].upper() + str(label)[1:]


def describe_rules(formset: SamplingRuleFormSet) -> list[str]:
    said = []
    for form in formset.forms:
        if form in formset.deleted_forms:
            if form.instance.pk or form.initial.get("ratio") is not None:
                said.append(gettext("Rule %(name)s removed") % {"name": _initial_name(form)})
        elif form.has_changed():
            values = {label(form, name): form.cleaned_data.get(name) for name in RULE_FIELDS}
            if form in formset.initial_forms:
                before = {label(form, name): form.initial.get(name) for name in RULE_FIELDS}
                changes = text.list_changes(before, values)
                if changes:
                    named = {"name": _initial_name(form), "changes": changes}
                    said.append(gettext("Rule %(name)s changed (%(changes)s)") % named)
            else:
                for name in ("path", "route", "method"):
                    values.pop(label(form, name))
                listed = text.list_values(values, always=(label(form, "ratio"),))
                named = {"name": text.rule_name(form.instance), "values": listed}
                said.append(gettext("Rule %(name)s added (%(values)s)") % named)
    return said


def _initial_name(form: forms.BaseForm) -> str:
    pattern = form.initial.get("path") or form.initial.get("route") or ""
    return visible(f"{form.initial.get('method') or ''} {pattern}".strip())


@record
class Author:
    name: str
    message: str


def last_author() -> Author | None:
    """Return the user of the change behind a version; None if it is not in the history."""
    versions = SamplingVersion._base_manager.using(alias()).filter(pk=SamplingVersion.ONLY_ID)
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
    return None if entry is None else Author(str(entry.user), entry.get_change_message())


def last_change(version: int) -> str:
    """Return the version, when it was saved and by whom; empty if nothing was ever changed."""
    versions = SamplingVersion._base_manager.using(alias()).filter(pk=SamplingVersion.ONLY_ID)
    changed_at = next(iter(versions.values_list("changed_at", flat=True)[:1]), None)
    if changed_at is None:
        return ""
    author = last_author()
    ago_s = timezone.now().timestamp() - (policy_rows.epoch_s(changed_at) or 0.0)
    values = {"version": version, "duration": text.span(ago_s), "user": author.name if author is not None else ""}
    if author is None:
        return gettext("%(version)s, saved %(duration)s ago") % values
    return gettext("%(version)s, saved %(duration)s ago by %(user)s") % values
