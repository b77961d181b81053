"""`path("", include("django_otel.urls"))`: metrics and probes, without a trailing slash, as scrapers request them."""

from __future__ import annotations

from django.urls import path

from django_otel import views

app_name = "django_otel"

urlpatterns = [
    path("metrics", views.metrics, name="metrics"),
    path("livez", views.livez, name="livez"),
    path("readyz", views.readyz, name="readyz"),
    path("startupz", views.startupz, name="startupz"),
]
