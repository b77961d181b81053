"""The site of accessible_settings.py with its styles, as policy_site.py serves them."""

from __future__ import annotations

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.accessible_settings")

from tests.policy_site import application

__all__ = ["application"]
