"""The test project with views that are hard on telemetry, for real servers (tests.hard_urls)."""

import json
import os

from tests.settings import *  # noqa: F403

ROOT_URLCONF = "tests.hard_urls"
MIDDLEWARE = [
    "django_otel.middleware.OTelMiddleware",
    *json.loads(os.environ.get("HARD_MIDDLEWARE", "[]")),
]
SESSION_COOKIE_NAME = "sessionid"
