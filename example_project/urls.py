"""The shop's addresses."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("", include("django_otel.urls")),
    path("", include("example_project.shop.urls")),
    path("admin/", admin.site.urls),
]

handler404 = "example_project.shop.views.page_not_found"
handler500 = "example_project.shop.views.server_error"
