"""Conditions under which a process follows the sampling policy."""

from __future__ import annotations

import sys

from django.db import connections

from django_otel import runtime
from django_otel.live_sampling.policy_rows import NO_DATABASE, policy_alias


def is_live() -> bool:
    current = runtime.current()
    return current.enabled and current.config.sampling.live


def reason_not_to_run() -> str:
    """Why this process must have no thread of ours; empty when it may."""
    current = runtime.current()
    if not is_live() and not (current.enabled and current.config.sampling.max_per_second is not None):
        return "SAMPLING.LIVE is False, and no limit is to be divided, or telemetry is off"
    if runtime.current().is_foreign:
        return "another tool's tracer provider decides"
    if is_under_test_runner():
        # A connection of a thread of ours would keep PostgreSQL from dropping the test database.
        return "a test runner is active"
    if connections[policy_alias()].settings_dict["ENGINE"] == NO_DATABASE:
        return "there is no database"
    return ""


def is_under_test_runner() -> bool:
    """Return whether tests run in this process."""
    # Django's test environment, also as pytest-django sets it up, is known by the outbox it puts there.
    mail = sys.modules.get("django.core.mail")
    return mail is not None and hasattr(mail, "outbox")
