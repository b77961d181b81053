"""The payment gateway's addresses."""

from __future__ import annotations

from django.urls import include, path

from example_project.gateway import views

urlpatterns = [
    path("", include("django_otel.urls")),
    path("charges/", views.create_charge, name="create-charge"),
]
