"""The effective policy in words, and which process applies which version: the head of the policy's page."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from django.utils import timezone
from django.utils.translation import gettext, ngettext

from django_otel import models, runtime
from django_otel.base.frozen import record
from django_otel.live_sampling import follower, policy_rows
from django_otel.live_sampling import wording as text
from django_otel.models import SamplingPolicy
from django_otel.sampling.effective import EffectivePolicy


def describe(
    status: dict[str, Any], row: SamplingPolicy | None, effective: EffectivePolicy, *, reason: str = ""
) -> dict[str, Any]:
    """Return the policy of this process in words: `headline`, `reason`, `facts` (label, value), `rules`, `warnings`.

    `reason` replaces that of `row` if the row is unknown.
    """
    headline = gettext("%(percent)s of new traces are recorded") % {"percent": text.percent(status["ratio"])}
    reason = reason or _reason(status, row)
    if not status["enabled"]:
        headline, reason = gettext("Nothing is recorded"), gettext("Telemetry is off in this process.")
    facts: list[tuple[str, str]] = []
    if status["since_s"] is not None:
        facts.append((gettext("Since"), text.at(status["since_s"])))
    if status["source"] == "admin":
        if status["expires_at_s"] is not None:
            facts.append((gettext("Until"), text.until(status["expires_at_s"])))
        facts.append((gettext("Then"), text.sourced(status["base_ratio"], status["base_source"])))
    if effective.max_per_second is not None:
        facts.append((gettext("Limit"), text.limit(effective.max_per_second)))
    kept = text.kept(effective.keep_errors, effective.keep_slow_s)
    if kept:
        facts.append((gettext("Kept"), kept))
    if status["source"] == "admin" and status["note"]:
        facts.append((gettext("Note"), status["note"]))
    facts.append((gettext("Process"), gettext("pid %(pid)s") % {"pid": status["pid"]}))
    rules = [
        {
            "name": rule.label,
            "share": text.percent(rule.ratio),
            "until": "" if rule.expires_at_s is None else text.until(rule.expires_at_s),
            "is_from_settings": source != "admin",
        }
        for rule, source in zip(effective.rules, effective.rule_sources, strict=True)
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
        return gettext("Set by the policy on this page, version %(version)s.") % {"version": status["version"]}
    said = [text.source(status["base_source"])]
    if status["expired"]:
        said.append(gettext("The policy on this page has expired."))
    elif row is None:
        said.append(gettext("No policy is saved here."))
    elif not row.enabled:
        said.append(gettext("The policy on this page is not enabled."))
    return " ".join(said)


def _warnings(status: dict[str, Any], row: SamplingPolicy | None) -> list[str]:
    found = []
    if not status["enabled"]:
        found.append(gettext("Telemetry is off in this process, so what is saved here has no effect."))
    elif status["foreign"]:
        found.append(
            gettext(
                "Another tool's tracer provider is in use and makes the decisions, so what is saved here has no effect."
            )
        )
    elif not status["live"]:
        found.append(gettext('OTEL["SAMPLING"]["LIVE"] is False, so what is saved here has no effect.'))
    if status["error"]:
        found.append(text.translate_fault(status["error"]))
    return found


# --- The processes. ---


@record
class Process:
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
    #: Seconds since the report of another host; 0 for this host's.
    reported_s_ago: float
    fault: str = ""

    @property
    def shown_version(self) -> str:
        return str(self.version) if self.version else gettext("settings")

    @property
    def applied(self) -> str:
        if self.applied_s_ago is None:
            return gettext("at its start")
        return gettext("%(duration)s ago") % {"duration": text.span(self.applied_s_ago)}

    @property
    def reported(self) -> str:
        if not self.reported_s_ago:
            return ""
        return gettext("(reported %(duration)s ago)") % {"duration": text.span(self.reported_s_ago)}

    @property
    def running(self) -> str:
        return "" if self.running_s is None else gettext("for %(duration)s") % {"duration": text.span(self.running_s)}


def fingerprint(state: models.SamplingState) -> str:
    """Return the report of a process that has applied these rows; empty if the settings apply."""
    try:
        policy = policy_rows.policy_from_state(state)
    except (ValueError, TypeError, OverflowError):
        # A process that reads them keeps to the settings.
        return ""
    return "" if policy is None else policy.fingerprint


def own_fingerprint() -> str:
    policy = runtime.current().sampler.live
    return "" if policy is None else policy.fingerprint


def is_followed(status: dict[str, object]) -> bool:
    return bool(status["enabled"] and status["live"] and not status["foreign"])


def list_processes(status: dict[str, object], wanted: str) -> list[Process]:
    """Every living process, this one first."""
    now_s = timezone.now().timestamp()

    def since(epoch_s: object) -> float | None:
        return max(0.0, now_s - epoch_s) if isinstance(epoch_s, float | int) else None

    members = [*follower.processes(), *follower.processes_elsewhere()]
    if not any(member.get("is_here") for member in members):
        # One that does not follow, or has not begun to.
        policy = runtime.current().sampler.live
        own = {
            "host": socket.gethostname(), "pid": status["pid"], "version": policy.version if policy else 0,
            "fingerprint": own_fingerprint(), "applied_at_s": status["since_s"], "is_here": True,
        }  # fmt: skip
        members = [own, *members]
    found = [
        Process(
            host=str(member.get("host", "")),
            pid=int(member.get("pid", 0)),
            command=str(member.get("command") or ""),
            version=int(member.get("version") or 0) if member.get("fingerprint") else 0,
            is_current=member.get("fingerprint") == wanted,
            is_self=bool(member.get("is_here")),
            applied_s_ago=since(member.get("applied_at_s")),
            running_s=since(member.get("started_at_s")),
            reported_s_ago=float(member.get("reported_s_ago") or 0.0),
            fault=text.translate_fault(str(member.get("error") or "")),
        )
        for member in members
    ]
    return sorted(found, key=lambda process: (not process.is_self, process.host, process.pid))


def summarise(processes: Sequence[Process], version: int, *, is_policy: bool, is_followed: bool) -> dict[str, object]:
    if not is_followed:
        words = gettext("This process does not follow the policy.")
        return {"summary": words, "is_settled": True, "is_followed": False}
    current, total = sum(process.is_current for process in processes), len(processes)
    words = _count_processes(current, total) % {"current": current, "total": total, "version": version}
    if version and not is_policy:
        words = " ".join((words, gettext("In this version the settings apply.")))
    return {"summary": words, "is_settled": current == total, "is_followed": True}


def _count_processes(current: int, total: int) -> str:
    """Return how many of the processes apply the version: with `%(current)d`, `%(total)d` and `%(version)s`."""
    if total == 1 and current:
        return gettext("The only known process applies version %(version)s.")
    if total == 1:
        return gettext("The only known process has not applied version %(version)s yet.")
    if current == total:
        return ngettext(
            "All %(total)d process applies version %(version)s.",
            "All %(total)d processes apply version %(version)s.",
            total,
        )
    return ngettext(
        "%(current)d of %(total)d process applies version %(version)s.",
        "%(current)d of %(total)d processes apply version %(version)s.",
        total,
    )
