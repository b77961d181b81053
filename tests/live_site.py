"""A project for test_live_processes.py: the test project plus addresses that show what a process does.

Every statement and cache call on the thread of a request is counted, from the
outermost WSGI layer on, and shown by the next answer of that process.
"""

from __future__ import annotations

import json
import logging
import os
import threading

from django.contrib import admin
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, JsonResponse
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

# First: the admin's addresses below need the apps.
_django = get_wsgi_application()
_statements = 0


def status(request):
    """What this process applies, without a query."""
    from django_otel.live_sampling import follower

    threads = [thread.name for thread in threading.enumerate()]
    levels = {name: logging.getLogger(name).level for name in ("root", "tests.live.shop")}
    return JsonResponse({**follower.status(), "statements": _statements, "threads": threads, "levels": levels})


def hello(request):
    return HttpResponse("hello")


@csrf_exempt
def fork(request):
    """Fork this process; the child follows for itself and says what it applies."""
    from django_otel.live_sampling import follower

    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            import time

            before = follower.status()
            follower.ensure_started()
            deadline_s = time.monotonic() + 10
            while follower.status()["read_at_s"] is None and time.monotonic() < deadline_s:
                time.sleep(0.02)
            os.write(write_end, json.dumps([before, follower.status()]).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    os.waitpid(pid, 0)
    with os.fdopen(read_end) as pipe:
        return HttpResponse(pipe.read(), content_type="application/json")


urlpatterns = [
    path("", include("django_otel.urls")),
    path("admin/", admin.site.urls),
    path("status/", status),
    path("hello/", hello),
    path("fork/", fork),
]


def application(environ, start_response):
    """The project, with every statement of a request's thread counted unless it is the admin's."""
    if environ.get("PATH_INFO", "").startswith("/admin/"):
        return _django(environ, start_response)
    from django.db import connections

    def count(execute, sql, params, many, context):
        global _statements
        _statements += 1
        return execute(sql, params, many, context)

    with connections["default"].execute_wrapper(count):
        return _django(environ, start_response)
