"""The routes that the rules of a form match, in words, whether saved or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.utils import timezone
from django.utils.translation import gettext, ngettext

from django_otel.base import guard
from django_otel.base.frozen import record
from django_otel.base.text import visible
from django_otel.live_sampling import policy_rows, preview
from django_otel.live_sampling import wording as text
from django_otel.models import SamplingRule
from django_otel.sampling.policy import MAX_PATTERN, TASK_PREFIX

#: Routes that are named for a rule before the rest is only counted.
_ROUTES_SHOWN = 12


@record
class Preview:
    summary: str
    routes: list[dict[str, str]]
    #: How many routes are not among `routes`, in words; empty when all are.
    more: str = ""


def project_routes() -> Sequence[preview.ProjectRoute]:
    # The page must come up when the URLconf is broken for another part of it.
    with guard.contained("reading the URLconf"):
        return preview.project_routes()
    return ()


@record
class _Entered:
    path: str
    route: str
    method: str


def build(formset: Any) -> dict[str, object]:
    """Gives each form of the formset its `preview`."""
    routes = project_routes()
    ordered = formset.in_order()
    entered = []
    for form in ordered:
        rule = SamplingRule(
            **{name: str(form[name].value() or "")[:MAX_PATTERN] for name in ("path", "route", "method")}
        )
        rule.normalise()
        # Of both only one may be saved.
        entered.append(_Entered(rule.path, "" if rule.path else rule.route, rule.method))
    matches: list[list[preview.Match] | None] = [[] for _ in entered]
    with guard.contained("matching rules with the routes of the project"):
        matches = preview.match_rules(entered, routes)
    for form in formset.forms:
        form.preview = None
    for form, fields, found in zip(ordered, entered, matches, strict=True):
        form.preview = _describe_matches(found, len(routes))
        if (fields.path or fields.route).startswith(TASK_PREFIX):
            form.preview = Preview(gettext("Matches tasks by name, if no sender has made the decision."), [])
    for form in formset.forms:
        if form.preview is None:
            form.preview = Preview("", [])
        if form.instance.pk and form.instance.ratio is not None:
            form.name, form.share = text.rule_name(form.instance), text.percent(form.instance.ratio)
            end_s = policy_rows.epoch_s(form.instance.expires_at)
            form.is_over = end_s is not None and end_s <= timezone.now().timestamp()
    return {"routes_total": len(routes), "routes": [route.label for route in routes][:500]}


def _describe_matches(found: Sequence[preview.Match] | None, total: int) -> Preview:
    if found is None:
        return Preview(gettext("Too complex to say which routes it matches."), [])
    if not found:
        return Preview(gettext("Matches no route of the project."), [])
    taken = sum(match.is_taken for match in found)
    if taken == len(found):
        summary = ngettext(
            "Matches %(number)d of %(total)d route, all of them decided by rules before this one.",
            "Matches %(number)d of %(total)d routes, all of them decided by rules before this one.",
            total,
        )
    elif taken:
        summary = ngettext(
            "Matches %(number)d of %(total)d route, %(taken)d of them decided by rules before this one.",
            "Matches %(number)d of %(total)d routes, %(taken)d of them decided by rules before this one.",
            total,
        )
    else:
        summary = ngettext("Matches %(number)d of %(total)d route.", "Matches %(number)d of %(total)d routes.", total)
    more = len(found) - _ROUTES_SHOWN
    return Preview(
        summary % {"number": len(found), "total": total, "taken": taken},
        [_describe_match(match) for match in found[:_ROUTES_SHOWN]],
        ngettext("and %(number)d more", "and %(number)d more", more) % {"number": more} if more > 0 else "",
    )


def _describe_match(match: preview.Match) -> dict[str, str]:
    if match.is_taken:
        kind, note = "taken", gettext("decided by an earlier rule")
    elif match.is_whole:
        kind, note = "whole", ""
    else:
        kind, note = "part", gettext("some of its paths")
    return {"route": visible(match.route), "kind": kind, "note": note}
