"""The demo shop with addresses that cause faults, for `tests.recorded.record`."""

import json
import os
import time
from pathlib import Path

from example_project.settings import *  # noqa: F403
from example_project.settings import CACHES, DATABASES, MIDDLEWARE, OTEL

DEBUG = False
ROOT_URLCONF = "tests.recorded.urls"
MIDDLEWARE = [name for name in MIDDLEWARE if "whitenoise" not in name]
_FOLDER = Path(os.environ["RECORDED_FOLDER"])
DATABASES = {
    **DATABASES,
    # Nothing listens at its port.
    "gone": {
        "ENGINE": "django.db.backends.postgresql", "NAME": "gone", "HOST": "127.0.0.1",
        "PORT": os.environ["CLOSED_PORT"],
    },
}  # fmt: skip
if DATABASES["default"]["ENGINE"].endswith("postgresql"):
    DATABASES["default"] = {
        **DATABASES["default"], "CONN_MAX_AGE": 0, "OPTIONS": {"pool": {"min_size": 1, "max_size": 4}},
    }  # fmt: skip
CACHES = {
    **CACHES,
    "gone": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": f"redis://127.0.0.1:{os.environ['CLOSED_PORT']}",
    },
}
_given = json.loads(os.environ.get("RECORDED_OTEL", "{}"))
OTEL = {
    **OTEL,
    "CONSOLE": {"ENABLED": False},
    **_given,
    "METRICS": {"SHARED_DIR": str(_FOLDER / "shared"), **_given.get("METRICS", {})},
}
if "RECORDED_CLOCK_S" in os.environ:
    # A process of so many seconds ago.
    _time = time.time
    time.time = lambda: _time() + float(os.environ["RECORDED_CLOCK_S"])
