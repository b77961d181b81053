"""Signed links that trace one visit, whatever is sampled otherwise.

A member of staff makes a token and puts it behind any address of the site, as
the parameter `otel_force_token`. The request that brings it is recorded, and the
answer sets a cookie, so that the rest of that browser's visit is, too, until
the token ends. The signature is made with `SECRET_KEY` and the service's name:
a token that was forged, has ended or is another site's does nothing at all.
Nothing is looked up; requests without a token cost two searches in a header.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from django_otel.base import guard

if TYPE_CHECKING:
    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

#: Named so that the scrubber redacts it where query strings are recorded.
PARAMETER = "otel_force_token"
COOKIE = "django_otel_force"
#: Longest life of a token, in seconds.
MAX_TTL_S = 7 * 86_400.0
_MAX_LENGTH = 512
_IN_QUERY = re.compile(rf"(?:^|&){PARAMETER}=([^&]*)")
_IN_COOKIES = re.compile(rf"(?:^|;)[ ]*{COOKIE}=([^;]*)")


def _salt() -> str:
    from django_otel import runtime

    # Two sites may share a SECRET_KEY, say in development.
    return f"django_otel.force:{runtime.current().config.service_name or ''}"


def force_trace_token(user: Any, ttl_s: float = 3600.0) -> str:
    """A token that traces one visit, for the parameter `otel_force_token` of any address of this site.

    Takes effect while `OTEL["SAMPLING"]["FORCE"]` is True. Whoever has the link
    is traced; give it to whom you want to follow.

    Units: `ttl_s` is the token's life in seconds, at most a week.
    Errors: `PermissionDenied` when `user` is not active staff; `ValueError` for
        a life out of range.
    """
    from django.core import signing
    from django.core.exceptions import PermissionDenied

    from django_otel import runtime

    if not (getattr(user, "is_active", False) and getattr(user, "is_staff", False)):
        raise PermissionDenied("A forced trace is for active staff to ask for.")
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not 0.0 < ttl_s <= MAX_TTL_S:
        raise ValueError(f"ttl_s is {ttl_s!r}; expected seconds above 0 and at most {MAX_TTL_S:g}.")
    if not runtime.current().config.sampling.force:
        guard.warn_once(
            "force is off",
            'django_otel: a token for a forced trace has no effect while OTEL["SAMPLING"]["FORCE"] is off.',
        )
    return signing.dumps([str(user.pk), round(time.time() + ttl_s, 3)], salt=_salt())


def is_valid(token: str) -> bool:
    """Whether the token is one of this site and has not ended."""
    from django.core import signing

    if not token or len(token) > _MAX_LENGTH:
        return False
    try:
        content = signing.loads(token, salt=_salt())
    except (signing.BadSignature, ValueError):
        return False
    ends_at_s = content[1] if isinstance(content, list) and len(content) == 2 else None
    return isinstance(ends_at_s, int | float) and time.time() < ends_at_s


def find_token(meta: Mapping[str, Any]) -> str | None:
    """The valid token that a request brings in its query string or its cookie; None for nearly all requests."""
    query = meta.get("QUERY_STRING")
    if query and PARAMETER in (query := query if isinstance(query, str) else query.decode("latin-1")):
        found = _IN_QUERY.search(query)
        if found is not None and is_valid(token := unquote(found.group(1))):
            return token
    cookies = meta.get("HTTP_COOKIE")
    if cookies and COOKIE in cookies:
        found = _IN_COOKIES.search(cookies)
        if found is not None and is_valid(token := found.group(1).strip().strip('"')):
            return token
    return None


def remember(request: HttpRequest, response: HttpResponseBase, token: str) -> None:
    """Have the browser bring the token for the rest of its visit."""
    if request.META.get("HTTP_COOKIE", "").find(f"{COOKIE}={token}") >= 0:
        return
    # No age: it ends with the visit. What it says ends by itself before that.
    response.set_cookie(COOKIE, token, secure=request.is_secure(), httponly=True, samesite="Lax")
