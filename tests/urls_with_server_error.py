"""The test project's addresses, with our page for failed requests and views that take their time."""

import time
from pathlib import Path

from django.core.cache import cache
from django.db import connection
from django.http import HttpResponse
from django.template import Context, Engine
from django.urls import path

from tests.app.models import Item
from tests.urls import urlpatterns as plain_urlpatterns

handler500 = "django_otel.views.server_error"


class SlowKey(str):
    """A key that takes its time to become text."""

    def __str__(self):
        time.sleep(0.02)
        return "timed"


def timed(request):
    with connection.cursor() as cursor:
        cursor.execute(
            "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 20000) SELECT max(n) FROM c"
        )
    cache.get_or_set(SlowKey("timed"), 1)
    engine = Engine(loaders=[("django.template.loaders.locmem.Loader", {
        "outer": "{{ wait }}{% include 'inner' %}", "inner": "{{ wait }}"})])  # fmt: skip
    return HttpResponse(engine.get_template("outer").render(Context({"wait": lambda: time.sleep(0.015)})))


def own_timing(request):
    return HttpResponse("x", headers={"Server-Timing": "edge;dur=3"})


def n_plus_one(request):
    return HttpResponse(", ".join(name_of(pk) for pk in range(6)))


def name_of(pk):
    item = Item.objects.filter(pk=pk).first()  # the line
    return item.name if item else "none"


def n_plus_one_in_a_template(request):
    folder = Path(__file__).with_name("app") / "templates"
    engine = Engine(dirs=[str(folder)])
    names = [Item.objects.filter(pk=pk) for pk in range(6)]
    return HttpResponse(engine.get_template("n_plus_one.html").render(Context({"names": names})))


urlpatterns = [
    path("n-plus-one/", n_plus_one),
    path("n-plus-one-template/", n_plus_one_in_a_template),
    path("timed/", timed),
    path("own-timing/", own_timing),
    *plain_urlpatterns,
]
