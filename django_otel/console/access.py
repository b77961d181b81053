"""Access to the console."""

from __future__ import annotations

from django.http import HttpRequest

PERMISSION = "django_otel.view_console"
#: Asking the database for the plan of a stored statement needs this one as well.
EXPLAIN_PERMISSION = "django_otel.explain_query"


def may_view(request: HttpRequest) -> bool:
    """Return whether the user of this request may see the console: active staff with the permission."""
    user = getattr(request, "user", None)
    # A user model need not have `is_staff`, nor permissions. Without the former the admin site that shows the pages
    # decides by itself who comes in (`AdminSite.has_permission`); the permission is needed all the same.
    return bool(
        user is not None
        and user.is_active
        and getattr(user, "is_staff", True)
        and hasattr(user, "has_perm")
        and user.has_perm(PERMISSION)
    )


def may_explain(request: HttpRequest) -> bool:
    """Return whether the user of this request may ask the database for query plans."""
    user = getattr(request, "user", None)
    return may_view(request) and user is not None and user.has_perm(EXPLAIN_PERMISSION)
