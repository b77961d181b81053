"""The example shop as settings, for the browser: with another place to look at traces."""

from example_project.settings import *  # noqa: F403
from example_project.settings import OTEL as _OTEL

OTEL = {**_OTEL, "TRACE_URL": "http://127.0.0.1:16686/trace/{trace_id}", "SAMPLING": {"LIVE": False}}
