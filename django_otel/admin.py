"""Everything of this app in the admin; the modules that are imported here register their pages."""

from __future__ import annotations

from django_otel.live_sampling.admin import SamplingPolicyAdmin
from django_otel.live_sampling.log_level_admin import LogLevelAdmin

# Last: registers the pages of the console, after the policy's.
import django_otel.console.entries  # noqa: F401 (registers the entries)  # isort: skip

__all__ = ["LogLevelAdmin", "SamplingPolicyAdmin"]
