"""A project for test_browser_sampling.py: the test project with styles, under a strict content policy."""

from __future__ import annotations

import os

from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

_django = StaticFilesHandler(get_wsgi_application())


def application(environ, start_response):
    """Every answer forbids inline scripts and styles, and anything from elsewhere."""

    def start(status, headers, *rest):
        return start_response(status, [*headers, ("Content-Security-Policy", "default-src 'self'")], *rest)

    return _django(environ, start)
