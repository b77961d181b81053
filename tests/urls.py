from django.conf.urls.i18n import i18n_patterns
from django.contrib import admin
from django.urls import include, path, re_path

from tests import views

urlpatterns = [
    path("", include("django_otel.urls")),
    path("admin/", admin.site.urls),
    path("hello/", views.hello),
    path("cache-read/", views.cache_read),
    path("json/", views.json_view),
    path("orders/<int:pk>/", views.order),
    re_path(r"^articles/(?P<year>[0-9]{4})/(?:page-(?P<page>[0-9]+)/)?$", views.article),
    path("boom/", views.boom),
    path("forbidden/", views.forbidden),
    path("missing/", views.missing),
    path("exit/", views.system_exit),
    path("stream/", views.stream),
    path("stream-boom/", views.stream_boom),
    path("file/", views.file),
    path("async/", views.async_hello),
    path("async-boom/", views.async_boom),
    path("async-slow/", views.async_slow),
    path("async-stream/", views.async_stream),
    path("queries/", views.queries),
    path("echo/", views.echo),
    path("sdk-count/", views.sdk_count),
    path("own-histogram/", views.own_histogram),
    path("call/", views.call_out),
    path("test/", views.conformance),
    path("nested/", include([path("deep/<slug:name>/", views.hello)])),
    path("internal/", include("django_otel.urls", namespace="elsewhere")),
    *i18n_patterns(path("greet/<str:name>/", views.hello)),
]
