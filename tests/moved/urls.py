from django.conf import settings
from django.urls import include, path

from tests.moved import views

urlpatterns = [
    path("", include("django_prometheus.urls" if settings.THEIRS else "django_otel.urls")),
    path("", views.index),
    path("help", views.help_page),
    path("objection", views.objection, name="objection"),
    path("missing", views.missing, name="missing"),
    path("forbidden", views.forbidden, name="forbidden"),
    path("stream", views.stream, name="stream"),
    path("shop/", include(([path("lawns", views.lawns, name="lawns")], "shop"))),
    path("bad-sql", views.bad_sql, name="bad-sql"),
    path("cached", views.cached, name="cached"),
]
