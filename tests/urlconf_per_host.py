"""Middlewares that choose the URLconf by the host, as django-hosts and django-tenants do."""

from __future__ import annotations

from django.http import HttpResponse
from django.urls import path
from django.utils.deprecation import MiddlewareMixin


def their_metrics(request):
    return HttpResponse("the tenant's own page")


def is_tenant(request):
    """By the host, or by a header: Django's async test client sends no other host."""
    return request.get_host().startswith("tenant.") or "X-Tenant" in request.headers


TENANT = (path("metrics", their_metrics), path("readyz", their_metrics))


def choose_urlconf(get_response):
    def middleware(request):
        if is_tenant(request):
            request.urlconf = TENANT
        return get_response(request)

    return middleware


class ChoosesUrlconf(MiddlewareMixin):
    """The same with `process_request`."""

    def process_request(self, request):
        if is_tenant(request):
            request.urlconf = TENANT
