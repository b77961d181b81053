"""Signed links that trace one visit at any sampling ratio.

A member of staff makes a token and puts it behind any address of the site, as
the parameter `otel_force_token`. The request that brings it is recorded, and the
answer sets a cookie, so that the rest of that browser's visit is, too, until
the token ends. The signature is made with `SECRET_KEY` and the service's name:
a token that was forged, has ended or is another site's does nothing at all.
A request with a valid token costs one query: the token ends when its user is
deleted, deactivated or no longer staff, or loses the permission it was made with.
Requests without a token cost two searches in a header.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
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
#: In a request's META: by token, whether it is valid.
_LOOKED_UP = "django_otel.force"
_IN_QUERY = re.compile(rf"(?:^|&){PARAMETER}=([^&]*)")
_IN_COOKIES = re.compile(rf"(?:^|;)[ ]*{COOKIE}=([^;]*)")


def _salt() -> str:
    from django_otel import runtime

    # Two sites may share a SECRET_KEY, say in development.
    return f"django_otel.force:{runtime.current().config.service_name or ''}"


def force_trace_token(user: object, ttl_s: float = 3600.0) -> str:
    """A token that traces one visit, for the parameter `otel_force_token` of any address of this site.

    Takes effect while `OTEL["SAMPLING"]["FORCE"]` is True. Everyone who has the link
    is traced; give it to whom you want to follow.

    Units: `ttl_s` is the token's life in seconds, at most a week.
    Errors: `PermissionDenied` when `user` is not active staff; `ValueError` for
        a life out of range.
    """
    return make_token(user, ttl_s)


def make_token(user: Any, ttl_s: float, permission: str = "") -> str:
    """Return a token as `force_trace_token` does; with `permission` it ends when the user loses it."""
    from django.core import signing
    from django.core.exceptions import PermissionDenied

    from django_otel import runtime

    if not (getattr(user, "is_active", False) and getattr(user, "is_staff", False)):
        raise PermissionDenied("A forced trace needs an active member of staff as its user.")
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not 0.0 < ttl_s <= MAX_TTL_S:
        raise ValueError(f"ttl_s is {ttl_s!r}; expected seconds above 0 and at most {MAX_TTL_S:g}.")
    if not runtime.current().config.sampling.force:
        guard.warn_once(
            "force is off",
            'django_otel: a token for a forced trace has no effect while OTEL["SAMPLING"]["FORCE"] is off.',
        )
    content: list[object] = [str(user.pk), round(time.time() + ttl_s, 3)]
    if hasattr(user, "_meta"):
        # A row of the user model, not an object that only looks like a user: it is looked up again.
        content.append(permission)
    return signing.dumps(content, salt=_salt())


def _read(token: str) -> list[Any] | None:
    """Return the user's key, the end, and for a row of the user model the permission; None for no token of ours."""
    from django.core import signing

    if not token or len(token) > _MAX_LENGTH:
        return None
    try:
        content = signing.loads(token, salt=_salt())
    except (signing.BadSignature, ValueError):
        return None
    if not isinstance(content, list) or len(content) not in (2, 3):
        return None
    ends_at_s = content[1]
    return content if isinstance(ends_at_s, int | float) and time.time() < ends_at_s else None


def _is_user_entitled(key: str, permission: str) -> bool:
    """Return whether the token's user may still ask for forced traces. One query, or some with a permission."""
    from django.contrib.auth import get_user_model
    from django.db import router

    # Late: it loads the SDK, and this module is loaded with the names of the Python API.
    from django_otel.base.suppression import suppress_instrumentation

    with guard.contained("looking up the user of a forced trace"), suppress_instrumentation():
        model = get_user_model()
        # Not a replica, which may still have a user that was deleted.
        user: Any = model._default_manager.using(router.db_for_write(model)).filter(pk=key).first()
        return bool(
            user is not None
            and getattr(user, "is_active", False)
            and getattr(user, "is_staff", False)
            and (not permission or user.has_perm(permission))
        )
    return False


def is_valid(token: str, meta: Mapping[str, Any] | None = None) -> bool:
    """Return whether the token is one of this site, has not ended, and its user is still entitled to it.

    `meta` may have the answer of `look_up`, where a query cannot be made (async code).
    """
    content = _read(token)
    if content is None:
        return False
    if len(content) == 2:
        return True
    known = meta.get(_LOOKED_UP) if meta is not None else None
    if known is not None:
        return bool(known.get(token))
    return _is_user_entitled(content[0], content[2])


async def look_up(meta: dict[str, object]) -> None:
    """Ask for the users of the tokens of a request, for `find_token` in async code."""
    candidates = list(_candidates(meta))
    if candidates:
        from asgiref.sync import sync_to_async

        with guard.contained("looking up the user of a forced trace"):
            meta[_LOOKED_UP] = {token: await sync_to_async(is_valid)(token) for token in candidates}


def _candidates(meta: Mapping[str, Any]) -> Iterator[str]:
    """Yield the possible tokens in the query string and the cookies of a request."""
    query = meta.get("QUERY_STRING")
    if query and PARAMETER in (query := query if isinstance(query, str) else query.decode("latin-1")):
        found = _IN_QUERY.search(query)
        if found is not None:
            yield unquote(found.group(1))
    cookies = meta.get("HTTP_COOKIE")
    if cookies and COOKIE in cookies:
        found = _IN_COOKIES.search(cookies)
        if found is not None:
            yield found.group(1).strip().strip('"')


def find_token(meta: Mapping[str, object]) -> str | None:
    """The valid token that a request brings in its query string or its cookie; None for nearly all requests."""
    return next((token for token in _candidates(meta) if is_valid(token, meta)), None)


def site_prefix(request: HttpRequest) -> str:
    """Return the path below which the site is mounted on its host, with a slash at its end."""
    from django.urls import get_script_prefix

    script_name = str(request.META.get("SCRIPT_NAME") or "").strip("/")
    return f"/{script_name}/" if script_name else get_script_prefix()


def remember(request: HttpRequest, response: HttpResponseBase, token: str) -> None:
    """Have the browser bring the token for the rest of its visit."""
    if request.META.get("HTTP_COOKIE", "").find(f"{COOKIE}={token}") >= 0:
        return
    # No age: it ends with the visit. What it says ends by itself before that. Not for other sites of the same host.
    response.set_cookie(
        COOKIE, token, path=site_prefix(request), secure=request.is_secure(), httponly=True, samesite="Lax"
    )
