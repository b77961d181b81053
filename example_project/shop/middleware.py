"""Headers every page of the shop has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponse

#: No script or style of ours is inline; the admin shows small images from data addresses.
POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"


class ContentSecurityPolicy:
    """Lets the browser load nothing from elsewhere. Sync and async natively."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse | Awaitable[HttpResponse]]) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponse | Awaitable[HttpResponse]:
        if self.is_async:
            return self.__acall__(request)
        return add_policy(self.get_response(request))  # type: ignore[arg-type]

    async def __acall__(self, request: HttpRequest) -> HttpResponse:
        return add_policy(await self.get_response(request))  # type: ignore[misc]


def add_policy(response: HttpResponse) -> HttpResponse:
    # Django's own error page of DEBUG is one file with its style and script inside.
    if not (settings.DEBUG and response.status_code >= 400):
        response.headers.setdefault("Content-Security-Policy", POLICY)
    return response
