"""The pages of the project, each with something that both libraries count."""

from django.core.cache import caches
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.http import Http404, HttpResponse, StreamingHttpResponse
from django.template.response import TemplateResponse

from tests.moved.models import Lawn


def index(request):
    # Reads the body: gunicorn resets a connection whose body is left unread.
    assert request.POST is not None
    return TemplateResponse(request, "index.html", {"text": "x" * 100})


def help_page(request):
    return HttpResponse("help " * 2000, content_type="text/plain; charset=latin-1")


def objection(request):
    raise ValueError("objection")


def missing(request):
    raise Http404("no such lawn")


def forbidden(request):
    raise PermissionDenied


def stream(request):
    return StreamingHttpResponse(iter([b"one ", b"two"]))


def lawns(request):
    lawn = Lawn.objects.create(location="here")
    lawn.location = "there"
    lawn.save()
    lawn.delete()
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO moved_lawn (location) VALUES (%s)", [["a"], ["b"], ["c"], ["d"]])
    return HttpResponse(str(Lawn.objects.count() > 0))


def bad_sql(request):
    with connection.cursor() as cursor:
        cursor.execute("this is no SQL")
    return HttpResponse()


def cached(request):
    for name in ("default", "files"):
        cache = caches[name]
        cache.set("foo1", "bar")
        cache.get("foo1")
        cache.get("foo1")
        cache.get("foofoo")
        cache.get("foofoo", default="default")
    return HttpResponse("cached")
