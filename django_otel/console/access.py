"""Who may see the console."""

from __future__ import annotations

from django.http import HttpRequest

PERMISSION = "django_otel.view_console"


def may_view(request: HttpRequest) -> bool:
    """Whether the user of this request may see the console: active staff with the permission."""
    user = getattr(request, "user", None)
    return bool(user is not None and user.is_active and user.is_staff and user.has_perm(PERMISSION))
