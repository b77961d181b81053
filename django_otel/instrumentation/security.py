"""Requests that Django refuses for security reasons, counted by kind.

On by default (`AUTH`). Metric `django.security.events`: "csrf" (the check of CsrfViewMiddleware), "disallowed_host",
"suspicious_operation" and "permission_denied" (an exception that reaches Django's handler). A framework that handles
PermissionDenied itself, as Django REST framework does, is not counted. Other requests cost nothing.
"""

from __future__ import annotations

import functools
from typing import Any

from django.core.exceptions import DisallowedHost, PermissionDenied, SuspiciousOperation
from django.core.handlers import exception as handler
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import CsrfViewMiddleware

from django_otel import runtime
from django_otel.base import guard
from django_otel.config.schema import Config

_plain_response_for_exception = handler.response_for_exception
_plain_reject = CsrfViewMiddleware._reject  # type: ignore[attr-defined]  # noqa: SLF001 (Django has no public name for it)

#: The first class that fits; DisallowedHost is a SuspiciousOperation.
_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (DisallowedHost, "disallowed_host"),
    (SuspiciousOperation, "suspicious_operation"),
    (PermissionDenied, "permission_denied"),
)


@guard.guarded("counting a security event", None)
def _count(event: str) -> None:
    runtime.store.catalogued("django.security.events").series({"django.security.event": event}).add(1.0)


@functools.wraps(_plain_response_for_exception)
def _response_for_exception(request: HttpRequest, exc: Exception) -> HttpResponse:
    for kind, event in _KINDS:
        if isinstance(exc, kind):
            _count(event)
            break
    return _plain_response_for_exception(request, exc)


@functools.wraps(_plain_reject)
def _reject(self: CsrfViewMiddleware, request: HttpRequest, reason: str) -> Any:
    _count("csrf")
    return _plain_reject(self, request, reason)


def install(config: Config) -> None:
    """Follow the settings: count, or leave everything as Django made it. May be called again and again."""
    if not (config.enabled and config.auth):
        uninstall()
        return
    # Django's handler looks the function up at each exception, and has no signal for these responses.
    if handler.response_for_exception is _plain_response_for_exception:
        handler.response_for_exception = _response_for_exception
    if CsrfViewMiddleware._reject is _plain_reject:  # type: ignore[attr-defined]  # noqa: SLF001 (Django has no public name for it)
        CsrfViewMiddleware._reject = _reject  # type: ignore[attr-defined]  # noqa: SLF001 (Django has no public name for it)


def uninstall() -> None:
    """Take everything back."""
    if handler.response_for_exception is _response_for_exception:
        handler.response_for_exception = _plain_response_for_exception
    if CsrfViewMiddleware._reject is _reject:  # type: ignore[attr-defined]  # noqa: SLF001 (Django has no public name for it)
        CsrfViewMiddleware._reject = _plain_reject  # type: ignore[attr-defined]  # noqa: SLF001 (Django has no public name for it)
