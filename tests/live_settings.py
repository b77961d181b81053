"""The test project with the addresses of tests/live_site.py."""

from tests.settings import *  # noqa: F403

ROOT_URLCONF = "tests.live_site"
